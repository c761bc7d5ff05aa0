# SPDX-License-Identifier: MPL-2.0
"""Three nodes with publishers and consumers, and what befalls them: nothing that was confirmed is lost,
nothing is early, and it goes on afterwards.

Of two subjects. `quorum`: what is published straight to a quorum queue of three members, which shows that
the harness and the checker are right. `delayed`: a delayed exchange, as far as one holds in a cluster: its
messages are on one node, whose clients must not notice what becomes of another.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri. CLUSTER_SECONDS is for how long a fault lasts
besides what is awaited, and traffic goes on after it.
"""

import os
import shutil
import tempfile
import uuid

import pika
import pytest

from checker import Record, judge
from cluster import Cluster
from node import evaluate
from traffic import Traffic

# Messages that must be confirmed and delivered before the next thing is done.
SOME = 100
SECONDS = float(os.environ.get("CLUSTER_SECONDS") or 2)
# Bounds that no machine comes near to; what was measured is printed.
NO_CONFIRM = NO_RELEASE = 180
DELAYS = (1, 3000)


@pytest.fixture(scope="module")
def directory():
    path = tempfile.mkdtemp(prefix="dw-cluster-")
    yield path
    if not os.environ.get("KEEP_BROKERS"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(directory):
    with Cluster(directory, metadata=os.environ.get("CLUSTER_METADATA") or None,
                 conf=["cluster_partition_handling = pause_minority"]) as cluster:
        yield cluster


@pytest.fixture
def whole(cluster):
    """The cluster, every node of it up before the test and after it."""
    repair(cluster)
    yield cluster
    repair(cluster)


def repair(cluster):
    cluster.record = None
    cluster.heal()
    for n, node in enumerate(cluster.nodes):
        if node.paused:
            cluster.resume(n)
        if not node.running():
            node.start()
    cluster.await_whole()


class Subject:
    """Something to publish to, its traffic and the record of it."""

    def __init__(self, cluster, directory, request):
        self.cluster = cluster
        self.name = f"s-{uuid.uuid4().hex[:8]}"
        self.record = Record(os.path.join(directory, f"{request.node.name}-{self.name}.record"))
        self.traffic = None

    def at(self, *nodes):
        return {str(n): self.cluster.nodes[n].address for n in nodes}

    def channel(self, n):
        connection = pika.BlockingConnection(pika.ConnectionParameters(
            self.cluster.nodes[n].address, heartbeat=0, socket_timeout=60, stack_timeout=60,
            blocked_connection_timeout=300))
        return connection, connection.channel()

    def begin(self):
        self.cluster.record = self.record
        self.traffic.start()
        self.traffic.await_connected()
        self.goes_on()

    def goes_on(self):
        """Until some more are confirmed, and some more delivered."""
        self.traffic.await_more("confirmed", SOME)
        self.traffic.await_more("delivered", SOME)

    def last(self):
        """The fault lasts, with traffic."""
        self.goes_on()
        self.traffic.go_on(SECONDS)

    def verdict(self):
        """Of all, after it has come to its end."""
        self.traffic.go_on(SECONDS)
        self.traffic.finish()
        self.record.close()
        verdict = judge(self.record.events)
        print(f"\n{self.cluster.series} {self.cluster.metadata} {type(self).__name__}: "
              f"{verdict.summary()}")
        assert verdict.complaints() == []
        assert verdict.stale() == []
        assert verdict.counts.get("returned", 0) == 0
        assert verdict.no_confirm.seconds < NO_CONFIRM and verdict.no_release.seconds < NO_RELEASE
        return verdict

    def end(self):
        if self.traffic is not None:
            self.traffic.end()
        self.record.close()
        self.cluster.record = None


class Quorum(Subject):
    """A quorum queue with a member on each node, a publisher and a consumer at each of `clients`."""

    clients = (0, 1, 2)
    delays = None

    def __init__(self, cluster, directory, request):
        super().__init__(cluster, directory, request)
        connection, channel = self.channel(0)
        channel.queue_declare(self.name, durable=True, arguments={
            "x-queue-type": "quorum", "x-quorum-initial-group-size": len(cluster.nodes)})
        connection.close()
        self.server = cluster.server_of(self.name)
        self.leader = cluster.await_leader(self.server)
        cluster.await_caught_up(self.server)
        here = self.at(*self.clients)
        self.traffic = Traffic(self.record, here, here, self.name, delays=self.delays)
        self.begin()

    def next_leader(self, asked):
        """That of a majority, once it has one other than that which was."""
        return self.cluster.await_leader(self.server, asked, other_than=self.leader)

    def caught_up(self):
        self.cluster.await_whole()
        self.cluster.await_leader(self.server)
        self.cluster.await_caught_up(self.server)


class Delayed(Subject):
    """A delayed exchange, which is on the node that first delayed something, with a classic queue there;
    a publisher and a consumer at that node."""

    owner = 0

    def __init__(self, cluster, directory, request):
        super().__init__(cluster, directory, request)
        connection, channel = self.channel(self.owner)
        channel.exchange_declare(self.name, "x-delayed-message", durable=True,
                                 arguments={"x-delayed-type": "direct"})
        channel.queue_declare(self.name, durable=True)
        channel.queue_bind(self.name, self.name, "k")
        connection.close()
        here = self.at(self.owner)
        self.traffic = Traffic(self.record, here, here, self.name, exchange=self.name, key="k",
                               delays=DELAYS, rate=100)
        self.begin()
        resource = f'rabbit_misc:r(<<"/">>, exchange, <<"{self.name}">>)'
        server = evaluate(cluster.nodes[self.owner],
                          f"element(1, rabbit_delay_raft:server_id({resource})).")
        assert cluster.leader(server, [self.owner]) == self.owner

    def verdict(self):
        verdict = super().verdict()
        # None of this was its node's fault.
        assert (verdict.closed, verdict.cancelled, verdict.silent) == ([], [], [])
        assert verdict.counts.get("nacked", 0) == verdict.counts.get("unknown", 0) == 0
        assert verdict.unmarked == []
        return verdict


class Replicated(Subject):
    """A delayed exchange with a member on each node, whose messages go to a quorum queue with a member on
    each; a publisher and a consumer at each of `clients`."""

    clients = (0, 1, 2)

    def __init__(self, cluster, directory, request):
        super().__init__(cluster, directory, request)
        connection, channel = self.channel(0)
        channel.exchange_declare(self.name, "x-delayed-message", durable=True,
                                 arguments={"x-delayed-type": "direct"})
        channel.queue_declare(self.name, durable=True, arguments={
            "x-queue-type": "quorum", "x-quorum-initial-group-size": len(cluster.nodes)})
        channel.queue_bind(self.name, self.name, "k")
        connection.close()
        here = self.at(*self.clients)
        self.traffic = Traffic(self.record, here, here, self.name, exchange=self.name, key="k",
                               delays=DELAYS, rate=100)
        self.begin()
        resource = f'rabbit_misc:r(<<"/">>, exchange, <<"{self.name}">>)'
        self.server = evaluate(cluster.nodes[0],
                               f"element(1, rabbit_delay_raft:server_id({resource})).")
        self.leader = cluster.await_leader(self.server)
        cluster.await_caught_up(self.server)

    def next_leader(self, asked):
        return self.cluster.await_leader(self.server, asked, other_than=self.leader)

    def caught_up(self):
        self.cluster.await_whole()
        self.cluster.await_leader(self.server)
        self.cluster.await_caught_up(self.server)


@pytest.fixture
def subject(whole, directory, request):
    """subject(kind): with its traffic going on."""
    made = []

    def make(kind):
        made.append(kind(whole, directory, request))
        return made[-1]

    yield make
    for one in made:
        one.end()


# ------------------------------------------------------------------------- that it can fail

class Prompt(Quorum):
    """Is asked to delay and does not."""

    delays = (600_000, 600_000)


def test_what_is_lost_or_early_is_seen(subject, whole):
    prompt = subject(Prompt)
    prompt.traffic.finish()
    verdict = judge(prompt.record.events)
    delivered = {event["id"] for event in prompt.record.events if event["what"] == "delivered"}
    assert {name for name, _ in verdict.early} == delivered and len(delivered) >= SOME
    assert verdict.lost == []

    quorum = subject(Quorum)
    # Its consumers do not come back after this; what is confirmed then is never seen by them.
    for consumer in quorum.traffic.consumers:
        quorum.traffic.loop.add_callback_threadsafe(consumer.end)
    for consumer in quorum.traffic.consumers:
        whole.eventually(lambda consumer=consumer: consumer.channel is None, f"{consumer.name} is gone")
    quorum.traffic.await_more("confirmed", SOME)
    quorum.traffic.stop_publishing()
    missing = quorum.traffic.missing()
    quorum.traffic.end()
    verdict = judge(quorum.record.events)
    assert set(verdict.lost) == missing and len(missing) >= SOME
    assert verdict.early == verdict.unsound == []


# -------------------------------------------------------------------------------- quorum queue

def test_quorum_leader_killed(whole, subject):
    quorum = subject(Quorum)
    killed = quorum.leader
    whole.kill9(killed)
    assert quorum.next_leader(whole.others(killed)) != killed
    quorum.last()
    whole.start(killed)
    quorum.caught_up()
    # Its clients find it again.
    quorum.traffic.await_more("confirmed", 1, f"p{killed}")
    verdict = quorum.verdict()
    assert {event["client"] for event in verdict.closed} >= {f"p{killed}", f"c{killed}"}


def test_quorum_follower_killed(whole, subject):
    quorum = subject(Quorum)
    killed = whole.others(quorum.leader)[0]
    whole.kill9(killed)
    quorum.last()
    whole.start(killed)
    quorum.caught_up()
    quorum.verdict()


def test_quorum_leader_stopped_in_an_orderly_way(whole, subject):
    quorum = subject(Quorum)
    stopped = quorum.leader
    whole.stop(stopped)
    assert quorum.next_leader(whole.others(stopped)) != stopped
    quorum.last()
    whole.start(stopped)
    quorum.caught_up()
    quorum.verdict()


def test_quorum_leader_cut_off(whole, subject):
    quorum = subject(Quorum)
    away = quorum.leader
    whole.cut(away)
    assert quorum.next_leader(whole.others(away)) != away
    quorum.last()
    whole.heal()
    quorum.caught_up()
    quorum.traffic.await_more("confirmed", 1, f"p{away}")
    quorum.verdict()


def test_quorum_minority_that_all_know_of(whole, subject):
    """As above, until the nodes have given each other up."""
    quorum = subject(Quorum)
    away = quorum.leader
    whole.cut(away)
    whole.await_down(away)
    whole.eventually(lambda: whole.sees_none(away, whole.others(away)), "it is alone")
    assert quorum.next_leader(whole.others(away)) != away
    quorum.last()
    whole.heal()
    quorum.caught_up()
    quorum.traffic.await_more("confirmed", 1, f"p{away}")
    quorum.verdict()


def test_quorum_leader_is_not_heard_but_hears(whole, subject):
    quorum = subject(Quorum)
    away = quorum.leader
    whole.cut_one_way(away)
    assert quorum.next_leader(whole.others(away)) != away
    quorum.last()
    whole.heal()
    quorum.caught_up()
    quorum.verdict()


def test_quorum_leader_paused(whole, subject):
    quorum = subject(Quorum)
    paused = quorum.leader
    whole.pause(paused)
    assert quorum.next_leader(whole.others(paused)) != paused
    quorum.last()
    whole.resume(paused)
    quorum.caught_up()
    quorum.traffic.await_more("confirmed", 1, f"p{paused}")
    quorum.verdict()


def test_quorum_application_of_the_leader_stopped(whole, subject):
    quorum = subject(Quorum)
    away = quorum.leader
    whole.stop_app(away)
    assert quorum.next_leader(whole.others(away)) != away
    quorum.last()
    whole.start_app(away)
    quorum.caught_up()
    quorum.verdict()


class ElsewhereThan2(Quorum):
    """Before it joins again, that node is a broker by itself, which has no such queue."""

    clients = (0, 1)


def test_quorum_member_forgotten_and_joined_with_nothing(whole, subject):
    quorum = subject(ElsewhereThan2)
    gone = 2
    assert quorum.leader != gone
    whole.stop(gone)
    whole.forget(gone, by=quorum.leader)
    quorum.last()
    whole.wipe_and_join(gone, by=quorum.leader)
    whole.await_whole()
    whole.nodes[quorum.leader].tool("rabbitmq-queues", "add_member", quorum.name,
                                    whole.nodes[gone].nodename)
    quorum.caught_up()
    quorum.verdict()


# --------------------------------------------------------------------- replicated exchange

def test_replicated_leader_killed(whole, subject):
    delayed = subject(Replicated)
    killed = delayed.leader
    whole.kill9(killed)
    assert delayed.next_leader(whole.others(killed)) != killed
    delayed.last()
    whole.start(killed)
    delayed.caught_up()
    delayed.traffic.await_more("confirmed", 1, f"p{killed}")
    delayed.verdict()


# ---------------------------------------------------------------------------- delayed exchange

def test_delayed_another_node_killed(whole, subject):
    delayed = subject(Delayed)
    whole.kill9(2)
    whole.await_down(2)
    delayed.last()
    whole.start(2)
    whole.await_whole()
    delayed.goes_on()
    delayed.verdict()


def test_delayed_another_node_cut_off(whole, subject):
    delayed = subject(Delayed)
    whole.cut(2)
    whole.await_down(2)
    delayed.last()
    whole.heal()
    whole.await_whole()
    delayed.goes_on()
    delayed.verdict()


def test_delayed_another_node_paused(whole, subject):
    delayed = subject(Delayed)
    whole.pause(1)
    delayed.last()
    whole.resume(1)
    whole.await_whole()
    delayed.goes_on()
    delayed.verdict()


def test_delayed_another_node_reset_and_joined(whole, subject):
    delayed = subject(Delayed)
    whole.reset_and_join(2, by=1)
    whole.await_whole()
    delayed.last()
    delayed.verdict()
