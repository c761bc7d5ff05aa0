# SPDX-License-Identifier: MPL-2.0
"""Three nodes with publishers and consumers, and what befalls them: nothing that was confirmed is lost,
nothing is early, and it goes on afterwards.

Of three subjects. `quorum`: what is published straight to a quorum queue of three members, which shows that
the harness and the checker are right. `replicated`: a delayed exchange with three members. `alone`: one with a
group of one, whose node's clients must not notice what becomes of another.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri. CLUSTER_SECONDS is for how long a fault lasts
besides what is awaited, and traffic goes on after it.

Longer than other files are, as its tests share their subjects, and a cluster that takes half a minute to form.
"""

import os
import threading
import time
import uuid

import pika
import pytest

from checker import Record, judge
from cluster import Cluster
from node import evaluate, set_clock
from traffic import Traffic

# Messages that must be confirmed and delivered before the next thing is done.
SOME = 100
SECONDS = float(os.environ.get("CLUSTER_SECONDS") or 2)
# Bounds that no machine comes near to; what was measured is printed.
NO_CONFIRM = NO_RELEASE = 180
DELAYS = (1, 3000)
# How far the clocks of nodes on one machine may be apart, s: each VM has its own, and corrects it by the machine's
# at leisure. A message is due by the clock of the leader that takes it, and is released by that of a later one.
CLOCKS_APART = 0.005
# What the broker has by default.
NET_TICK = 60
# Until all nodes agree which group an exchange has, which is looked at now and then.
FOUND = 120
# So far from a fault, in s, is what was in flight then: the lease of a leader that is cut off, and more.
IN_FLIGHT = 1.5
# Messages that stay pending, and for how long, in ms.
PENDING = 30
LONG = 3_600_000


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

    clients = (0, 1, 2)

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
        return self.judged()

    def judged(self):
        """Of what is in the record."""
        verdict = judge(list(self.record.events), apart=CLOCKS_APART)
        print(f"\n{self.cluster.series} {self.cluster.metadata} {type(self).__name__}: "
              f"{verdict.summary()}")
        assert verdict.complaints() == []
        assert self.stale(verdict) == []
        assert verdict.counts.get("returned", 0) == 0
        assert verdict.no_confirm.seconds < NO_CONFIRM and verdict.no_release.seconds < NO_RELEASE
        return verdict

    def stale(self, verdict):
        return verdict.stale()

    def end(self):
        if self.traffic is not None:
            self.traffic.end()
        self.record.close()
        self.cluster.record = None


class HasMembers:
    """Of subjects with a Raft server called `server` on each node, of which that of node `leader` led at first."""

    def next_leader(self, asked):
        """That of a majority, once it has one other than that which was."""
        return self.cluster.await_leader(self.server, asked, other_than=self.leader)

    def caught_up(self):
        self.cluster.await_whole()
        self.cluster.await_leader(self.server)
        self.cluster.await_caught_up(self.server)


class Quorum(HasMembers, Subject):
    """A quorum queue with a member on each node, a publisher and a consumer at each of `clients`."""

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


class OnExchange(Subject):
    """A delayed exchange with the routing key k to a queue of its own name; a publisher at each of `clients`,
    a consumer at each of `consumers`."""

    consumers = (0, 1, 2)
    arguments = {}
    delays, rate = DELAYS, 100

    def __init__(self, cluster, directory, request):
        super().__init__(cluster, directory, request)
        connection, channel = self.channel(0)
        channel.queue_declare(self.name, durable=True, arguments=self.arguments)
        self.declare(channel)
        connection.close()
        self.traffic = Traffic(self.record, self.at(*self.clients), self.at(*self.consumers), self.name,
                               exchange=self.name, key="k", delays=self.delays, rate=self.rate)
        self.begin()
        self.server = evaluate(cluster.nodes[0],
                               f"element(1, rabbit_delay_raft:server_id({self.resource})).")

    def declare(self, channel):
        channel.exchange_declare(self.name, "x-delayed-message", durable=True,
                                 arguments={"x-delayed-type": "direct"})
        channel.queue_bind(self.name, self.name, "k")

    def stale(self, verdict):
        """What was not in flight when a fault came: due, or delivered, at a time other than shortly about it.
        What was in flight to the queue of a node that was cut off comes when it is heard again."""
        faults = []
        for event in self.record.events:
            if event["what"] == "fault":
                faults.append((event["at"], event["at"]))
            elif event["what"] == "struck":
                faults[-1] = (faults[-1][0], event["at"])
        due = {event["id"]: event["due"] for event in self.record.events if event["what"] == "sent"}
        first = {}
        for event in self.record.events:
            if event["what"] == "delivered":
                first.setdefault(event["id"], event["at"])
        return [duplicate for duplicate in verdict.unmarked
                if not any(first[duplicate.id] > began - IN_FLIGHT and due[duplicate.id] < ended + IN_FLIGHT
                           for began, ended in faults)]

    @property
    def resource(self):
        return f'rabbit_misc:r(<<"/">>, exchange, <<"{self.name}">>)'


class Replicated(HasMembers, OnExchange):
    """With a member on each node, and so has the queue. `expected` is how many members there are in the end, `asked`
    the node that tells of them."""

    arguments = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
    also_pending, expected, asked = 0, 3, 0

    def __init__(self, cluster, directory, request):
        super().__init__(cluster, directory, request)
        self.leader = cluster.await_leader(self.server)
        cluster.await_caught_up(self.server)

    def held(self):
        """Whether the members hold the same, of how many messages each, and what is said of that."""
        return self.cluster.nodes[self.asked].ask(f"""case catch rabbit_delay_replication:compared({self.resource}) of
            {{ok, #{{outcome := Outcome, members := Members, why := Why}}}} -> lists:flatten(io_lib:format(
                "~s ~w ~ts", [Outcome, [Count || #{{messages_delayed := Count}} <- Members], Why]));
            Other -> lists:flatten(io_lib:format("~0p", [Other])) end.""") or ""

    def verdict(self):
        """Also, what each node's publishers then send is pending, the same on all members."""
        verdict = super().verdict()
        for n in range(len(self.cluster.nodes)):
            self.publish_pending(n)
        self.await_same(self.also_pending + PENDING * len(self.cluster.nodes))
        return verdict

    def await_same(self, total):
        """Until all members hold the same of so many messages. That they hold different ones at one index is never so,
        not for a moment either."""
        held = []

        def same():
            held[:] = [self.held().strip('"')]
            assert not held[0].startswith("different"), held
            return held[0].startswith(f"same [{','.join([str(total)] * self.expected)}]")

        try:
            self.cluster.eventually(same, f"members with {total} pending messages")
        finally:
            print(f"\nmembers hold: {held}")

    def publish_pending(self, n, text="pending", delay=LONG):
        connection, channel = self.channel(n)
        channel.confirm_delivery()
        for number in range(PENDING):
            channel.basic_publish(self.name, "k", f"{text}.{n}.{number}".encode(), pika.BasicProperties(
                delivery_mode=2, headers={"x-delay": delay}), mandatory=True)
        connection.close()


class Alone(OnExchange):
    """With a group of one, on the first node, with a classic queue there. What is published at the last node
    crosses to it, and is not looked at: things befall that node."""

    consumers = (0, 1)

    def __init__(self, cluster, directory, request):
        for node in cluster.nodes:
            evaluate(node, "application:set_env(rabbitmq_delay_wheel, initial_group_size, 1).")
        super().__init__(cluster, directory, request)
        assert cluster.leader(self.server, [0]) == 0

    def begin(self):
        # The node that delays first has the group.
        connection, channel = self.channel(0)
        channel.confirm_delivery()
        channel.basic_publish(self.name, "none", b"first", pika.BasicProperties(headers={"x-delay": LONG}))
        connection.close()
        super().begin()

    def verdict(self):
        verdict = super().verdict()
        for n in range(len(self.cluster.nodes)):
            members = evaluate(self.cluster.nodes[n],
                               f"length([X || {{X, _, _}} <- rabbit_delay_raft:members(), X =:= {self.resource}]).")
            assert members == ("1" if n == 0 else "0")
        # None of this was their nodes' fault.
        there = [event for event in self.record.events if event.get("client") in ("p0", "p1", "c0", "c1")]
        assert [event for event in there
                if event["what"] in ("closed", "cancelled", "silent", "nacked", "unknown")] == []
        assert verdict.unmarked == []
        return verdict

    def end(self):
        for node in self.cluster.nodes:
            if node.running() and not node.paused:
                evaluate(node, "application:unset_env(rabbitmq_delay_wheel, initial_group_size).")
        super().end()


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


# ------------------------------------------------------------------------------- the faults

def leader_killed(whole, subject):
    killed = subject.leader
    whole.kill9(killed)
    assert subject.next_leader(whole.others(killed)) != killed
    subject.last()
    whole.start(killed)
    subject.caught_up()
    # Its clients find it again.
    subject.traffic.await_more("confirmed", 1, f"p{killed}")
    return killed


def follower_killed(whole, subject):
    killed = whole.others(subject.leader)[0]
    whole.kill9(killed)
    subject.last()
    whole.start(killed)
    subject.caught_up()
    subject.traffic.await_more("confirmed", 1, f"p{killed}")
    return killed


def leader_stopped_in_an_orderly_way(whole, subject):
    stopped = subject.leader
    whole.stop(stopped)
    assert subject.next_leader(whole.others(stopped)) != stopped
    subject.last()
    whole.start(stopped)
    subject.caught_up()
    return stopped


def leader_cut_off(whole, subject):
    away = subject.leader
    whole.cut(away)
    assert subject.next_leader(whole.others(away)) != away
    subject.last()
    whole.heal()
    subject.caught_up()
    subject.traffic.await_more("confirmed", 1, f"p{away}")
    return away


def minority_that_all_know_of(whole, subject):
    """As above, until the nodes have given each other up."""
    away = subject.leader
    whole.cut(away)
    whole.await_down(away)
    whole.eventually(lambda: whole.sees_none(away, whole.others(away)), "it is alone")
    assert subject.next_leader(whole.others(away)) != away
    subject.last()
    whole.heal()
    subject.caught_up()
    subject.traffic.await_more("confirmed", 1, f"p{away}")
    return away


def leader_is_not_heard_but_hears(whole, subject):
    away = subject.leader
    whole.cut_one_way(away)
    assert subject.next_leader(whole.others(away)) != away
    subject.last()
    whole.heal()
    subject.caught_up()
    return away


def leader_paused(whole, subject):
    paused = subject.leader
    whole.pause(paused)
    assert subject.next_leader(whole.others(paused)) != paused
    subject.last()
    whole.resume(paused)
    subject.caught_up()
    subject.traffic.await_more("confirmed", 1, f"p{paused}")
    return paused


def application_of_the_leader_stopped(whole, subject):
    away = subject.leader
    whole.stop_app(away)
    assert subject.next_leader(whole.others(away)) != away
    subject.last()
    whole.start_app(away)
    subject.caught_up()
    return away


FAULTS = (leader_killed, follower_killed, leader_stopped_in_an_orderly_way, leader_cut_off,
          minority_that_all_know_of, leader_is_not_heard_but_hears, leader_paused,
          application_of_the_leader_stopped)


@pytest.mark.parametrize("kind, fault", [
    pytest.param(kind, fault, id=f"{kind.__name__.lower()}_{fault.__name__}")
    for kind in (Quorum, Replicated) for fault in FAULTS])
def test_fault(whole, subject, kind, fault):
    made = subject(kind)
    node = fault(whole, made)
    verdict = made.verdict()
    # The clients of other nodes have waited, or sent again.
    assert {event["client"] for event in verdict.closed + verdict.cancelled} <= {f"p{node}", f"c{node}"}
    assert verdict.silent == []
    if fault is leader_killed:
        assert {event["client"] for event in verdict.closed} == {f"p{node}", f"c{node}"}


def leads_too(whole, replicated):
    """Has the node that leads the exchange's members lead the queue's, too."""
    server = whole.server_of(replicated.name)
    to = whole.nodes[replicated.leader]

    def moved():
        leader = whole.leader(server)
        if leader is not None and leader != replicated.leader:
            evaluate(whole.nodes[leader],
                     f"catch ra:transfer_leadership({{{server}, node()}}, {{{server}, '{to.nodename}'}}).")
        return leader == replicated.leader

    whole.eventually(moved, f"the queue is led on node {replicated.leader}")


def publishers(whole, n):
    """The processes of a node that send messages to queues."""
    return set(whole.nodes[n].ask("""[pid_to_list(Pid) || Pid <- processes(),
        proc_lib:translate_initial_call(Pid) =:= {rabbit_delay_publisher, init, 1}].""").split(","))


def test_replicated_its_leader_and_that_of_its_queue_cut_off_at_once(whole, subject):
    """Whoever leads then has never published to the queue: it does as soon as that has a leader, which it has
    not at first."""
    replicated = subject(Replicated)
    leads_too(whole, replicated)
    queue = whole.server_of(replicated.name)
    away, others = replicated.leader, whole.others(replicated.leader)
    before = [publishers(whole, n) for n in range(len(whole.nodes))]
    for n in others:
        evaluate(whole.nodes[n], f"sys:suspend({queue}).")
    try:
        whole.cut(away)
        leads = replicated.next_leader(others)
        whole.eventually(lambda: publishers(whole, leads) - before[leads], "it has begun to publish")
    finally:
        for n in others:
            evaluate(whole.nodes[n], f"sys:resume({queue}).")
    replicated.last()
    whole.heal()
    replicated.caught_up()
    verdict = replicated.verdict()
    # Not only when the nodes have given each other up, which the broker's own client waits for.
    assert verdict.no_release.seconds < NET_TICK / 2


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

def test_replicated_caught_up_by_a_snapshot(whole, subject):
    for node in whole.nodes:
        evaluate(node, "application:set_env(rabbitmq_delay_wheel, snapshot_interval_messages, 300).")
    replicated = subject(Replicated)
    killed = whole.others(replicated.leader)[0]
    whole.kill9(killed)
    last = whole.applied(replicated.leader, replicated.server)
    replicated.last()
    # Now the log begins after what the member has: it cannot be caught up by that.
    whole.eventually(lambda: whole.snapshot_index(replicated.leader, replicated.resource) > last + 100,
                     f"a snapshot beyond {last}")
    whole.start(killed)
    replicated.caught_up()
    replicated.traffic.await_more("confirmed", 1, f"p{killed}")
    replicated.verdict()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_replicated_all_nodes_restarted_in_another_order(whole, subject, how):
    replicated = subject(Replicated)
    replicated.traffic.stop_publishing()
    pending = PENDING
    replicated.publish_pending(0, "kept")
    for n in (1, 2, 0):
        (whole.kill9 if how == "killed" else whole.stop)(n)
    for n in (1, 0, 2):
        whole.nodes[n].start(wait=False)
    for node in whole.nodes:
        node._booting = True
        node.wait_until_amqp()
    replicated.caught_up()
    replicated.await_same(pending)
    replicated.traffic.publishing = True
    replicated.goes_on()
    replicated.also_pending = pending
    replicated.verdict()


def test_replicated_first_messages_at_the_same_instant(whole):
    """A group each, however many form it, and each message is confirmed and delivered once."""
    names = [f"first-{uuid.uuid4().hex[:6]}-{n}" for n in range(24)]
    queue = names[0]
    connections = [pika.BlockingConnection(pika.ConnectionParameters(
        node.address, heartbeat=0, socket_timeout=60, blocked_connection_timeout=300)) for node in whole.nodes]
    channels = [connection.channel() for connection in connections]
    channels[0].queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    for name in names:
        channels[0].exchange_declare(name, "x-delayed-message", durable=True,
                                     arguments={"x-delayed-type": "direct"})
        channels[0].queue_bind(queue, name, "k")
    instant, took, failed = threading.Barrier(len(channels)), [], []

    def publish(n):
        channels[n].confirm_delivery()
        for name in names:
            instant.wait(60)
            began = time.monotonic()
            try:
                channels[n].basic_publish(name, "k", f"{name}.{n}".encode(), pika.BasicProperties(
                    delivery_mode=2, headers={"x-delay": 10}), mandatory=True)
            except pika.exceptions.NackError as error:
                failed.append((name, n, error))
            took.append(time.monotonic() - began)

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(len(channels))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n{whole.series} {whole.metadata} first messages: median {sorted(took)[len(took) // 2]:.3f} s, "
          f"longest {max(took):.3f} s")
    assert len(took) == 3 * len(names) and failed == []
    came = []
    for method, _, body in channels[0].consume(queue, inactivity_timeout=2):
        if method is None:
            if len(came) >= len(took):
                break
            continue
        came.append(body.decode())
        channels[0].basic_ack(method.delivery_tag)
    assert sorted(came) == sorted(f"{name}.{n}" for name in names for n in range(3))
    for name in names:
        said = {node.ask(f"""element(2, rabbit_delay_group:find(
            rabbit_misc:r(<<"/">>, exchange, <<"{name}">>))).""") for node in whole.nodes}
        assert len(said) == 1 and "formed => true" in said.pop()
        assert [whole.members(n, name) for n in range(3)] == [1, 1, 1]
    for connection in connections:
        connection.close()


def killed(whole, n):
    whole.kill9(n)
    whole.await_down(n)
    return lambda: whole.start(n)


def cut_off(whole, n):
    whole.cut(n)
    whole.await_down(n)
    return whole.heal


@pytest.mark.parametrize("of", ["the_leader", "a_follower"])
@pytest.mark.parametrize("used", ["used_meanwhile", "not_used_meanwhile"])
@pytest.mark.parametrize("leaves", [killed, cut_off], ids=lambda leaves: leaves.__name__)
def test_replicated_deleted_and_declared_again_while_a_node_is_away(whole, subject, leaves, used, of):
    """The new one takes messages at once and starts empty on all nodes; what the node that was away has of the
    old one is never delivered, and holds nothing up."""
    replicated = subject(Replicated)
    replicated.traffic.stop_publishing()
    replicated.traffic.await_delivered()
    away = replicated.leader if of == "the_leader" else whole.others(replicated.leader)[0]
    there = whole.others(away)
    replicated.publish_pending(there[0], "old")
    replicated.caught_up()
    comes_back = leaves(whole, away)
    connection, channel = replicated.channel(there[0])
    channel.exchange_delete(replicated.name)
    replicated.declare(channel)
    connection.close()
    users = []

    def use(n):
        began = time.monotonic()
        replicated.publish_pending(n, "new")
        users.append(n)
        print(f"\nconfirmed at {n} after {time.monotonic() - began:.2f} s")

    if used == "used_meanwhile":
        for n in there:
            use(n)
    comes_back()
    whole.await_whole()
    # Until it has caught up with the metadata it serves the old one, and rejects.
    whole.eventually(lambda: len({node.ask(f"erlang:phash2(rabbit_delay_group:find({replicated.resource})).")
                                  for node in whole.nodes}) == 1, "all nodes have the same record")
    for n in [away, *there]:
        if n not in users:
            use(n)
    total = len(users) * PENDING

    def settled():
        groups = {node.ask(f"erlang:phash2(rabbit_delay_group:find({replicated.resource})).") for node in whole.nodes}
        named = [node.ask(f"""case rabbit_delay_group:find({replicated.resource}) of
            {{ok, #{{formed := true}} = Group}} -> rabbit_delay_group:member(Group) =/= none; _ -> none end.""")
            for node in whole.nodes]
        held = [whole.members(n, replicated.name) for n in range(len(whole.nodes))]
        lives = {node.ask(f"rabbit_delay_registry:life({replicated.resource}).") for node in whole.nodes}
        pending = [node.ask(f"""case rabbit_delay_table:leads({replicated.resource}) of
            true -> rabbit_delay_registry:pending({replicated.resource}); false -> none end.""")
            for node in whole.nodes]
        found[:] = [groups, named, held, lives, pending]
        return (len(groups) == len(lives) == 1 and "none" not in named
                and [str(count == 1).lower() for count in held] == named
                and sorted(pending) == sorted([str(total), *["none"] * (len(pending) - 1)]))

    found = []
    whole.eventually(settled, "one group, which all nodes know, and no other member", within=FOUND)
    print(f"\n{whole.series} {whole.metadata} {leaves.__name__} {used} {of}: {found[1]}")
    # All that is pending falls due now, on whatever node it is.
    for node in whole.nodes:
        set_clock(node, 2 * LONG)
    try:
        delivered = eventually_delivered(whole, replicated, total)
    finally:
        for node in whole.nodes:
            set_clock(node, 0)
    assert delivered == sorted(f"new.{n}.{number}" for n in users for number in range(PENDING))


def eventually_delivered(whole, replicated, total):
    """What came of what was pending, at least so many, and none that comes before what is published then."""
    def came():
        return sorted(event["id"] for event in list(replicated.record.events)
                      if event["what"] == "delivered" and event["id"].startswith(("old", "new", "last")))

    whole.eventually(lambda: len(came()) >= total, f"{total} are delivered")
    for n in range(len(whole.nodes)):
        replicated.publish_pending(n, "last", delay=1)
    whole.eventually(lambda: sum(name.startswith("last") for name in came()) >= total,
                     "what is published then is delivered")
    return [name for name in came() if not name.startswith("last")]


# --------------------------------------------------------------------------- group of one

def another_node_killed(whole, alone):
    whole.kill9(2)
    whole.await_down(2)
    alone.last()
    whole.start(2)


def another_node_cut_off(whole, alone):
    whole.cut(2)
    whole.await_down(2)
    alone.last()
    whole.heal()


def another_node_paused(whole, alone):
    whole.pause(2)
    alone.last()
    whole.resume(2)


def another_node_reset_and_joined(whole, alone):
    whole.reset_and_join(2, by=1)
    whole.await_whole()
    alone.last()


@pytest.mark.parametrize("fault", [another_node_killed, another_node_cut_off, another_node_paused,
                                   another_node_reset_and_joined], ids=lambda fault: f"alone_{fault.__name__}")
def test_fault_of_another(whole, subject, fault):
    alone = subject(Alone)
    fault(whole, alone)
    whole.await_whole()
    alone.goes_on()
    alone.traffic.await_more("confirmed", 1, "p2")
    alone.verdict()
