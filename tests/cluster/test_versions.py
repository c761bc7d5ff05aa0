# SPDX-License-Identifier: MPL-2.0
"""Nodes with different versions of the plugin in one cluster: one after the other is given another version, with
publishers and consumers at work, in any order, and nothing that was confirmed is lost, nothing is early, and in the
end all members hold the same. What only the later one knows is refused in words until it is in effect, and works
then without a restart.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri.
"""

import os
import uuid

import pika
import pytest

import versions
from management import eventually
from node import evaluate
from private_broker import default_series, dist_of
from test_cluster import LONG, SOME, repair
from test_membership import made, say
from test_short import Short

OURS = versions.version()


class Archives(dict):
    """By the version of the machine, where an archive is, which is made when it is first asked for."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def __missing__(self, version):
        series = default_series()
        made_by = {OURS - 1: versions.earlier, OURS + 1: versions.later}
        self[version] = (dist_of(series) if version == OURS
                         else made_by[version](series, os.path.join(self.directory, str(version))))
        return self[version]


@pytest.fixture(scope="module")
def archives(directory):
    return Archives(directory)


class Versions:
    """A cluster whose nodes have the plugin in one version or another."""

    def __init__(self, cluster, archives):
        self.cluster, self.archives = cluster, archives

    def all_have(self, version):
        """With no traffic: all nodes are restarted together, where they do not have it."""
        nodes = [node for node in self.cluster.nodes if node.plugin_dirs != [self.archives[version]]]
        for node in nodes:
            if node.running():
                node.stop()
            node.plugin_dirs = [self.archives[version]]

    def change(self, n, version):
        """As an operator would: the node is stopped, given another archive, and started."""
        archive = self.archives[version]
        self.cluster.stop(n)
        self.cluster.nodes[n].plugin_dirs = [archive]
        self.cluster.start(n)
        assert evaluate(self.cluster.nodes[n], "rabbit_delay_machine:version().") == str(version)


@pytest.fixture(scope="module")
def of_versions(directory, archives):
    with made(directory, "versions") as cluster:
        yield Versions(cluster, archives)


class Group(Short):
    rate = 20

    def await_same(self, total):
        """An earlier version that was built from its own sources may not tell."""
        if versions.IS_MADE:
            super().await_same(total)
            return
        stat = f"rabbit_delay_store:stat(rabbit_delay_registry:store({self.resource}))"
        self.cluster.eventually(lambda: len({node.ask(f"""case catch {stat} of
            #{{pending := {total}, digest := Digest}} -> Digest; _ -> node() end.""")
            for node in self.cluster.nodes}) == 1, f"members with the same {total} messages")

    def in_effect(self, n):
        """The version of the machine that a node's member goes by."""
        answer = self.cluster.nodes[n].ask(f"""case rabbit_delay_broker:raft_overview(
            rabbit_delay_raft:server_id({self.resource}), 5000) of
            {{ok, #{{effective_machine_version := V}}}} -> V; _ -> none end.""")
        return int(answer) if answer not in (None, "none") else None

    def await_in_effect(self, version):
        seen = []

        def equal():
            seen[:] = [self.in_effect(n) for n in range(3)]
            return seen == [version] * 3
        try:
            self.cluster.eventually(equal, f"machine {version} on all nodes")
        finally:
            print(f"\nin effect: {seen}")


def delete(cluster, name):
    """What one test has is not there when nodes are taken back for another."""
    connection = pika.BlockingConnection(pika.ConnectionParameters(cluster.nodes[0].address, heartbeat=0))
    channel = connection.channel()
    channel.exchange_delete(name)
    channel.queue_delete(name)
    connection.close()


class Operated:
    """Another exchange, of whose messages that are pending some are released by their key, and all are purged."""

    def __init__(self, cluster):
        self.cluster, self.name = cluster, f"operated-{uuid.uuid4().hex[:8]}"
        self.numbers = iter(range(1000))
        connection, channel = self.channel(0)
        channel.queue_declare(self.name, durable=True)
        channel.exchange_declare(self.name, "x-delayed-message", durable=True,
                                 arguments={"x-delayed-type": "direct"})
        channel.queue_bind(self.name, self.name, "k")
        connection.close()
        assert self.publish(0, {"x-delay": LONG, "x-delay-key": "first"})

    def channel(self, n):
        connection = self.cluster.nodes[n].connected()
        channel = connection.channel()
        channel.confirm_delivery()
        return connection, channel

    def publish(self, n, headers):
        """Whether it is confirmed."""
        connection, channel = self.channel(n)
        try:
            channel.basic_publish(self.name, "k", headers.get("x-delay-key", "").encode(),
                                  pika.BasicProperties(delivery_mode=2, headers=headers))
            return True
        except pika.exceptions.NackError:
            return False
        finally:
            connection.close()

    def keyed(self, n):
        key = f"key-{next(self.numbers)}"
        self.cluster.eventually(lambda: self.publish(n, {"x-delay": LONG, "x-delay-key": key}), f"{key} is taken")
        return key

    def release_is_refused(self, n):
        key = self.keyed(n)
        log = self.cluster.nodes[n].path("log", f"{self.cluster.nodes[n].nodename}.log")
        assert not self.publish(n, {"x-delay-release": key})
        eventually(lambda: "x-delay-release is not known to all nodes" in open(log, encoding="utf-8").read(), bool)
        assert max(self.pending()) > 0 and self.got() == []

    def releases(self, n):
        key = self.keyed(n)
        self.cluster.eventually(lambda: self.publish(n, {"x-delay-release": key}), "a release is taken")
        got = self.cluster.eventually(self.got, f"{key} is released")
        assert got == [key]

    def got(self):
        connection, channel = self.channel(0)
        bodies = []
        while (answer := channel.basic_get(self.name, auto_ack=True))[0] is not None:
            bodies.append(answer[2].decode())
        connection.close()
        return bodies

    def pending(self):
        """On each node."""
        return [int(evaluate(node, f"""rabbit_delay_registry:pending(
            rabbit_misc:r(<<"/">>, exchange, <<"{self.name}">>)).""".replace("\n", " ")))
            for node in self.cluster.nodes]

    def purged(self, n):
        """In one entry or one by one, as all members know it."""
        key = self.keyed(n)
        self.cluster.nodes[n].ctl("purge_delayed_messages", self.name)
        self.cluster.eventually(lambda: min(self.pending()) == 0, f"{key} and all others are gone")
        assert self.got() == []


@pytest.fixture
def begin(of_versions, directory, request):
    """begin(version): a group, all of whose nodes have that version."""
    groups = []
    cluster = of_versions.cluster

    def make(version):
        repair(cluster)
        of_versions.all_have(version)
        start_all(cluster)
        groups.append(Group(cluster, directory, request))
        groups[0].await_in_effect(version)
        cluster.record = groups[0].record
        return groups[0]

    yield make
    for group in groups:
        group.end()
    repair(cluster)
    for group in groups:
        delete(cluster, group.name)


def start_all(cluster):
    for node in cluster.nodes:
        if not node.running():
            node.start(wait=False)
    for node in cluster.nodes:
        node._booting = True
        node.wait_until_amqp()
    cluster.await_whole()


def upgrade_order(group, which):
    """Nodes as they are upgraded: the one that leads at first comes first or last."""
    leader = group.leading()
    others = group.cluster.others(leader)
    return {"the leader first": [leader, *others], "the leader last": [*others, leader]}[which]


@pytest.mark.parametrize("which", ["the leader first", "the leader last"])
def test_nodes_are_upgraded_one_after_the_other(of_versions, begin, which):
    cluster = of_versions.cluster
    group = begin(OURS - 1)
    operated = Operated(cluster)
    for n in range(3) if versions.IS_MADE else ():
        operated.release_is_refused(n)
    for number, n in enumerate(upgrade_order(group, which)):
        of_versions.change(n, OURS)
        group.caught_up()
        group.goes_on()
        print(f"\n{number + 1} upgraded: {[group.in_effect(n) for n in range(3)]}")
        if number == 0:
            operated.release_is_refused(n)
            operated.purged(n)
    group.await_in_effect(OURS)
    for n in range(3):
        operated.releases(n)
    operated.purged(0)
    delete(cluster, operated.name)
    group.accounted_for()


def test_nodes_are_upgraded_to_a_later_version(of_versions, begin):
    group = begin(OURS)
    for n in upgrade_order(group, "the leader last"):
        of_versions.change(n, OURS + 1)
        group.caught_up()
        group.goes_on()
    group.await_in_effect(OURS + 1)
    answer = evaluate(of_versions.cluster.nodes[0], f"""element(2, ra:process_command(
        rabbit_delay_registry:leader_of({group.resource}), {versions.LATER_COMMAND}, 5000)).""".replace("\n", " "))
    assert answer == f"{{ok, {OURS + 1}}}", answer
    group.accounted_for()


def test_a_node_is_taken_back_while_the_earlier_version_is_in_effect(of_versions, begin):
    group = begin(OURS - 1)
    changed = group.cluster.others(group.leading())[0]
    for version in (OURS, OURS - 1):
        of_versions.change(changed, version)
        group.caught_up()
        group.goes_on()
        group.await_in_effect(OURS - 1)
    group.accounted_for()


def test_a_node_has_an_earlier_version_than_is_in_effect(of_versions, begin):
    """It says so, and the others go on; it has all when it is upgraded again."""
    cluster = of_versions.cluster
    group = begin(OURS)
    low = cluster.others(group.leading())[0]
    before = len(cluster.nodes[low].log())
    of_versions.change(low, OURS - 1)
    await_said(cluster.nodes[low], group, before)
    for n in cluster.others(low):
        group.traffic.await_more("confirmed", SOME, f"p{n}")
    group.goes_on()
    of_versions.change(low, OURS)
    group.accounted_for()


def await_said(node, group, before):
    """Once."""
    def said():
        lines = [line for line in node.log()[before:].splitlines()
                 if f"exchange '{group.name}'" in line and "of a later version of the plugin" in line
                 and f"machine {OURS}, this one's is {OURS - 1}" in line]
        assert len(lines) <= 1, lines
        return lines
    group.cluster.eventually(said, "it says so")


def test_a_node_is_left_behind(of_versions, begin):
    """Up to Ra 2.15 a majority has the version in effect: the last node applies nothing from then on, whether it is
    started again or not, says so, and has all when it is upgraded."""
    cluster = of_versions.cluster
    if cluster.series == "4.3":
        pytest.skip("all members must have a version before it is in effect")
    group = begin(OURS - 1)
    left = group.leading()
    before = len(cluster.nodes[left].log())
    for n in cluster.others(left):
        of_versions.change(n, OURS)
        group.caught_up()
    led = cluster.others(left)[0]
    assert say(cluster, led, f"rabbit_delay_members:transfer({group.resource}, '{cluster.nodes[led].nodename}')") == "ok"
    await_said(cluster.nodes[left], group, before)
    group.goes_on()
    for n in range(3):
        group.traffic.await_more("confirmed", SOME, f"p{n}")
    before = len(cluster.nodes[left].log())
    cluster.stop(left)
    cluster.start(left)
    await_said(cluster.nodes[left], group, before)
    for n in cluster.others(left):
        group.traffic.await_more("confirmed", SOME, f"p{n}")
    group.goes_on()
    of_versions.change(left, OURS)
    group.accounted_for()
