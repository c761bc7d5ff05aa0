# SPDX-License-Identifier: MPL-2.0
"""The members of a delayed exchange's group follow the cluster, with publishers and consumers at work: nothing
that was confirmed is lost, nothing is early, and all members that there are hold the same.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri.
"""

import os
import shutil

import pytest

from cluster import Cluster
from node import evaluate
from test_cluster import PENDING, Replicated, repair

CONF = ["cluster_partition_handling = pause_minority",
        "delayed_message.continuous_membership_reconciliation.interval = 1000"]


def made(directory, name, **options):
    return Cluster(os.path.join(directory, name), metadata=os.environ.get("CLUSTER_METADATA") or None,
                   conf=CONF, **options)


@pytest.fixture(scope="module")
def cluster(directory):
    with made(directory, "members") as cluster:
        yield cluster


class Group(Replicated):
    """Its members have names of their own. `expected` is how many there are in the end."""

    expected = 3

    def __init__(self, cluster, directory, request):
        super().__init__(cluster, directory, request)
        self.await_members(self.expected)

    def members(self, asked=0):
        """{node: (state, whether it votes, applied index)} as a node says."""
        answer = self.cluster.nodes[asked].ask(f"""case rabbit_delay_members:status({self.resource}) of
            {{ok, Members}} -> lists:flatten([io_lib:format("~s ~s ~s ~p;", [N, S, V, A]) ||
                #{{node := N, state := S, voter := V, last_applied := A}} <- Members]);
            Error -> lists:flatten(io_lib:format("~p", [Error])) end.""")
        names = {node.nodename: n for n, node in enumerate(self.cluster.nodes)}
        found = {}
        for part in (answer or "").strip('"').split(";"):
            if len(part.split()) == 4:
                name, state, voter, applied = part.split()
                found[names.get(name, name)] = (state, voter == "true", applied)
        return found

    def states(self):
        """Of the members that there are."""
        members = self.members(self.asked)
        found = []
        for n in members:
            digest = self.cluster.nodes[n].ask(
                f"""case catch rabbit_delay_store:stat(rabbit_delay_registry:store({self.resource}))
                of #{{pending := Count, digest := Digest}} -> {{Count, Digest}}; Other -> Other end.""")
            found.append((members[n][2], digest))
        return found if len(found) == self.expected else [(None, None)]

    asked = 0

    def leading(self, asked=0):
        return next((n for n, (state, _, _) in self.members(asked).items() if state == "leader"), None)

    def await_members(self, count, asked=0):
        """Until so many vote, with one that leads, and each has applied the same."""
        def whole():
            members = self.members(asked)
            return (len(members) == count and all(voter for _, voter, _ in members.values())
                    and sorted(state for state, _, _ in members.values())
                    == ["follower"] * (count - 1) + ["leader"])
        try:
            self.cluster.eventually(whole, f"{count} members")
        finally:
            print(f"\nmembers: {self.members(asked)}")

    def caught_up(self):
        self.cluster.await_whole()
        self.await_members(self.expected, self.asked)


@pytest.fixture
def group(cluster, directory, request):
    repair(cluster)
    group = Group(cluster, directory, request)
    yield group
    group.end()
    repair(cluster)


def say(cluster, n, call):
    """What a call answers, its text flattened."""
    return evaluate(cluster.nodes[n], f"""case {call} of {{error, Why}} -> lists:flatten(io_lib:format("~ts", [Why]));
        Other -> Other end.""".replace("\n", " "))


def test_a_group_of_one_grows_with_the_cluster(directory, request):
    cluster = made(directory, "grows")
    try:
        cluster.start_all()
        alone = type("Alone", (Group,), {"clients": (0,), "consumers": (0,), "expected": 1,
                                         "arguments": {}, "await_members": lambda *_: None})
        alone.caught_up = lambda self: None
        subject = None
        cluster_leader = cluster.await_leader
        cluster.await_leader = lambda *_, **__: 0
        cluster.await_caught_up = lambda *_: None
        subject = alone(cluster, directory, request)
        cluster.await_leader = cluster_leader
        try:
            subject.publish_pending(0, "kept")
            subject.also_pending = PENDING
            for n in (1, 2):
                cluster._join(n, 0, "reset")
                subject.goes_on()
            if cluster.metadata == "khepri" and cluster.series != "4.3":
                cluster.nodes[0].ctl("enable_feature_flag", "--experimental", "khepri_db")
            cluster.await_whole()
            subject.expected = 3
            Group.await_members(subject, 3)
            subject.last()
            cluster.kill9(0)
            subject.asked = 1
            cluster.eventually(lambda: subject.leading(1) in (1, 2), "another one leads")
            cluster.start(0)
            cluster.await_whole()
            Group.await_members(subject, 3, 1)
            subject.goes_on()
            subject.verdict()
        finally:
            subject.end()
    finally:
        cluster.end()


def test_a_forgotten_member_is_replaced_when_its_node_is_back(cluster, directory, request):
    repair(cluster)
    here = type("Here", (Group,), {"clients": (0, 1), "consumers": (0, 1)})
    group = here(cluster, directory, request)
    try:
        if group.leading() == 2:
            assert say(cluster, 0, f"rabbit_delay_members:transfer({group.resource}, '{cluster.nodes[0].nodename}')") == "ok"
        group.publish_pending(0, "kept")
        group.also_pending = PENDING
        cluster.stop(2)
        cluster.forget(2, by=0)
        group.await_members(2)
        group.goes_on()
        cluster.wipe_and_join(2, by=0)
        cluster.await_whole()
        group.await_members(3)
        assert cluster.members(2, group.name) == 1
        group.goes_on()
        group.verdict()
    finally:
        group.end()


def test_a_node_that_resets_itself_brings_nothing_back(cluster, directory, request):
    repair(cluster)
    here = type("Here", (Group,), {"clients": (0, 1), "consumers": (0, 1)})
    group = here(cluster, directory, request)
    try:
        group.publish_pending(0, "kept")
        group.also_pending = PENDING
        cluster.reset_and_join(2, by=1)
        cluster.await_whole()
        group.await_members(3)
        group.goes_on()
        group.verdict()
    finally:
        group.end()


def test_a_member_that_lost_its_disk_is_replaced(cluster, group):
    lost = next(n for n in cluster.others(group.leading()) if n != 0)
    cluster.kill9(lost)
    group.goes_on()
    shutil.rmtree(delayed_dir(cluster.nodes[lost]))
    before = evaluate(cluster.nodes[0], f"element(2, rabbit_delay_group:find({group.resource})).")
    cluster.start(lost)
    cluster.await_whole()
    cluster.eventually(lambda: evaluate(cluster.nodes[0],
                                        f"element(2, rabbit_delay_group:find({group.resource})).") != before,
                       "another member is named")
    group.await_members(3)
    group.goes_on()
    group.verdict()


def delayed_dir(node):
    for folder, folders, _ in os.walk(node.path("data")):
        if os.path.basename(folder) == "quorum" and "delayed" in folders:
            return os.path.join(folder, "delayed")
    raise AssertionError("no directory of delayed messages")


def test_members_are_removed_added_and_lead_as_asked(cluster, group):
    names = [node.nodename for node in cluster.nodes]
    for n in (1, 2, 0):
        assert say(cluster, 2, f"rabbit_delay_members:transfer({group.resource}, '{names[n]}')") == "ok"
        assert group.leading(1) == n
        group.goes_on()
    # Also of one that leads, and asked on its own node.
    assert say(cluster, 0, f"rabbit_delay_members:remove({group.resource}, '{names[0]}')") == "ok"
    group.await_members(2)
    assert say(cluster, 0, f"rabbit_delay_members:remove({group.resource}, '{names[0]}')") == "ok"
    cluster.eventually(lambda: cluster.members(0, group.name) == 0, "its files are gone")
    group.goes_on()
    # What was asked for stays, though there are nodes for three.
    group.traffic.go_on(5)
    group.await_members(2)
    assert say(cluster, 1, f"rabbit_delay_members:add({group.resource}, '{names[0]}')") == "ok"
    group.await_members(3)
    assert say(cluster, 1, f"rabbit_delay_members:add({group.resource}, '{names[0]}')") == "ok"
    assert "not in the cluster" in say(cluster, 1, f"rabbit_delay_members:add({group.resource}, 'rabbit@nowhere')")
    group.goes_on()
    # What was in flight was waited for.
    assert group.verdict().unmarked == []


def test_leaders_leave_a_node_that_is_drained(cluster, group):
    drained = group.leading()
    away = next(n for n in range(3) if n != drained)
    cluster.nodes[drained].tool("rabbitmq-upgrade", "drain")
    try:
        cluster.eventually(lambda: group.leading(away) not in (None, drained), "another one leads")
        group.goes_on()
    finally:
        cluster.nodes[drained].tool("rabbitmq-upgrade", "revive")
    group.asked = away
    assert group.verdict().unmarked == []
