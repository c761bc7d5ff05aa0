# SPDX-License-Identifier: MPL-2.0
"""The members of a delayed exchange's group follow the cluster, with publishers and consumers at work: nothing
that was confirmed is lost, nothing is early, and all members that there are hold the same.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri.
"""

import glob
import os
import shutil

import pytest

from cluster import Cluster
from node import evaluate
from test_cluster import PENDING, Replicated, repair

def made(directory, name, conf=(), partitions="pause_minority"):
    return Cluster(os.path.join(directory, name), metadata=os.environ.get("CLUSTER_METADATA") or None,
                   conf=[f"cluster_partition_handling = {partitions}",
                         "delayed_message.continuous_membership_reconciliation.interval = 1000", *conf])


@pytest.fixture(scope="module")
def cluster(directory):
    with made(directory, "members") as cluster:
        yield cluster


class Group(Replicated):
    """Its members have names of their own."""

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


def test_a_majority_with_a_member_that_was_added_goes_on(cluster, group):
    added = next(n for n in cluster.others(group.leading()) if n != 0)
    name = cluster.nodes[added].nodename
    for what in ("remove", "add"):
        assert say(cluster, 0, f"rabbit_delay_members:{what}({group.resource}, '{name}')") == "ok"
    group.await_members(3)
    gone = next(n for n in range(3) if n not in (0, added))
    cluster.kill9(gone)
    group.last()
    cluster.eventually(lambda: group.leading(0) not in (None, gone), "one of the others leads")
    cluster.start(gone)
    cluster.await_whole()
    group.await_members(3)
    group.verdict()


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


# --------------------------------------------------------------------------- damaged files

def store_files(cluster, group, n, kind):
    """A node's files of a kind, rec or idx, of the exchange's messages."""
    uid = evaluate(cluster.nodes[n], f"binary_to_list(rabbit_delay_registry:member_uid({group.resource})).").strip('"')
    folder = os.path.join(delayed_dir(cluster.nodes[n]), uid, "delay_store")
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(f".{kind}")]


def flip(path, text):
    """A bit of each place where the text is."""
    with open(path, "r+b") as file:
        content = bytearray(file.read())
        at = content.find(text)
        assert at >= 0, (path, len(content))
        count = 0
        while at >= 0:
            content[at] ^= 1
            count += 1
            at = content.find(text, at + len(text))
        file.seek(0)
        file.write(content)
    return count


def uids(cluster, group):
    return evaluate(cluster.nodes[0], f"element(2, rabbit_delay_group:find({group.resource})).")


def checkpointed(cluster, group, n):
    """Until what is pending is in files that a checkpoint names."""
    cluster.eventually(lambda: cluster.nodes[n].ask(
        f"""case rabbit_delay_store:stat(rabbit_delay_registry:store({group.resource})) of
            #{{checkpoint_applied := A, applied := B}} -> A >= B - 1 end.""") == "true", f"a checkpoint on {n}")


@pytest.mark.parametrize("how", ["flipped", "cut", "snapshot"])
def test_a_damaged_follower_is_found_and_replaced(cluster, group, how):
    damaged = next(n for n in cluster.others(group.leading()) if n != 0)
    group.traffic.stop_publishing()
    group.traffic.await_delivered()
    group.publish_pending(0, "kept")
    group.also_pending = PENDING
    checkpointed(cluster, group, damaged)
    records, indexes = (store_files(cluster, group, damaged, kind) for kind in ("rec", "idx"))
    before = uids(cluster, group)
    cluster.stop(damaged)
    if how == "flipped":
        with open(indexes[-1], "r+b") as file:
            file.seek(-40, os.SEEK_END)
            byte = file.read(1)
            file.seek(-40, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
    elif how == "snapshot":
        member = os.path.dirname(os.path.dirname(records[0]))
        assert [flip(path, b"DWSN\1") for path in glob.glob(os.path.join(member, "snapshots", "*", "delay_snapshot"))]
    else:
        os.truncate(records[-1], os.path.getsize(records[-1]) - 20)
    cluster.start(damaged)
    cluster.await_whole()
    cluster.eventually(lambda: uids(cluster, group) != before, "another member is named")
    group.await_members(3)
    assert "is damaged" in cluster.nodes[damaged].log()
    group.traffic.publishing = True
    group.goes_on()
    group.verdict()


def test_a_leader_whose_file_is_damaged_loses_no_message(cluster, group):
    group.traffic.stop_publishing()
    group.traffic.await_delivered()
    leader = group.leading()
    seen = group.record.count("delivered")
    group.publish_pending(0, "soon", delay=20_000)
    checkpointed(cluster, group, leader)
    before = uids(cluster, group)
    assert sum(flip(path, b"soon.0.") for path in store_files(cluster, group, leader, "rec")
               if os.path.getsize(path) > 1000) == PENDING
    cluster.eventually(lambda: group.record.count("delivered") >= seen + PENDING, "what was damaged is delivered")
    cluster.eventually(lambda: uids(cluster, group) != before, "another member is named")
    group.await_members(3)
    came = [event["id"] for event in group.record.events
            if event["what"] == "delivered" and event["id"].startswith("soon")]
    assert sorted(came) == sorted(f"soon.0.{n}" for n in range(PENDING))
    group.record.events[:] = [event for event in group.record.events if not str(event.get("id", "")).startswith("soon")]
    group.traffic.publishing = True
    group.goes_on()
    group.verdict()


# ------------------------------------------------------------------ one life after the other

def test_a_group_of_an_earlier_life_does_not_touch_the_next(cluster, group):
    """Deleted and declared again, with each node in turn as the first to delay something."""
    group.traffic.stop_publishing()
    group.traffic.await_delivered()
    for n in (1, 2, 0, 1, 2, 0):
        connection, channel = group.channel(n)
        channel.exchange_delete(group.name)
        group.declare(channel)
        connection.close()
        group.publish_pending((n + 1) % 3, f"life-{n}")
    group.await_members(3)
    record = uids(cluster, group)
    life = evaluate(cluster.nodes[0], f"binary_to_list(rabbit_delay_registry:life({group.resource})).").strip('"')
    assert record.count(f"_{life}") >= 3
    for n in range(3):
        cluster.eventually(lambda n=n: cluster.members(n, group.name) == 1, f"one member on {n}")
        cluster.eventually(lambda n=n: cluster.nodes[n].ask(
            f"rabbit_delay_registry:life({group.resource}).") is not None, "a life")
    group.await_same(PENDING)
    group.traffic.publishing = True
    group.goes_on()
    group.also_pending = PENDING
    group.verdict()
