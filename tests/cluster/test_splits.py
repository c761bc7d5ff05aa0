# SPDX-License-Identifier: MPL-2.0
"""Splits in which Mnesia goes on in both parts, and what follows when one part is taken back to what the other has: by
autoheal, which is made to choose the part that has less, or with `ignore` as the nodes of a part are started again.
And splits at a time that is drawn, as a group is being formed or a member added. None of it may cost a message that was
confirmed, and afterwards there is one group, which all nodes know and publish to.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri, where the same is done. SPLIT_SEED draws other times.
"""

import os
import random
import threading
import time

import pika
import pytest

from node import evaluate, set_clock
from test_cluster import LONG, PENDING, SOME, Subject, repair
from test_membership import Group, made, say
from traffic import Traffic

# By when, in s, a node that is not heard is given up.
TICK = 4
# Clients, by whose number autoheal chooses the part that stays.
CLIENTS = 15
ROUNDS = int(os.environ.get("SPLIT_ROUNDS") or 6)
SEED = int(os.environ.get("SPLIT_SEED") or 1)
# A first message is confirmed, and a member added, within about so many s.
TAKES = 0.6


@pytest.fixture(scope="module")
def cluster(directory):
    with made(directory, "splits") as cluster:
        yield cluster


@pytest.fixture
def whole(cluster):
    repair(cluster)
    yield cluster
    repair(cluster)


class Fresh(Group):
    """Nothing has been published yet."""

    delays, rate = (1, 2000), 50

    def __init__(self, cluster, directory, request, handling, away):
        Subject.__init__(self, cluster, directory, request)
        for node in cluster.nodes:
            evaluate(node, f"application:set_env(rabbit, cluster_partition_handling, {handling}).")
            evaluate(node, f"net_kernel:set_net_ticktime({TICK}, 0).")
        self.handling, self.clients_of_winner = handling, []
        connection, channel = self.channel(0)
        channel.queue_declare(self.name, durable=True, arguments=self.arguments)
        self.declare(channel)
        connection.close()
        # A quorum queue gives messages to a consumer whose channel ended while its node was away, too, and what one of
        # such a node had it gives to others without a mark.
        self.traffic = Traffic(self.record, self.at(*self.clients), self.at(*(n for n in self.clients if n not in away)),
                               self.name, exchange=self.name, key="k", delays=self.delays, rate=self.rate)

    def begin(self):
        self.cluster.record = self.record
        self.traffic.start()

    def wins(self, n):
        """More clients than all others have."""
        for _ in range(CLIENTS):
            self.clients_of_winner.append(self.channel(n)[0])

    def made_whole(self, restarted):
        """The network, and what the nodes know: with `ignore` those are restarted. What is in flight comes again."""
        self.cluster._note("fault", f"{self.handling} takes back {restarted}")
        self.cluster.network.heal()
        if self.handling == "ignore" and self.cluster.metadata != "khepri":
            # Until then it is not the time to restart nodes (docs/clusters.md).
            self.cluster.await_whole()
            self.cluster.eventually(lambda: all(self.knows(n) for n in range(3)), "all nodes know of a group")
            for n in restarted:
                self.cluster.nodes[n].stop()
            for n in restarted:
                self.cluster.nodes[n].start()
        if self.cluster.metadata != "khepri":
            self.cluster.eventually(lambda: all(node.ask("length(mnesia:system_info(running_db_nodes)).") == "3"
                                                for node in self.cluster.nodes), "no parts are left")
        self.cluster.await_whole()
        for n in range(len(self.cluster.nodes)):
            self.traffic.await_more("confirmed", 1, f"p{n}")
        self.cluster._note("struck", f"{self.handling} takes back {restarted}")

    def knows(self, n):
        return self.cluster.nodes[n].ask(f"""case rabbit_delay_group:find({self.resource}) of
            {{ok, #{{formed := Formed}}}} -> Formed; _ -> false end.""") == "true"

    def records(self):
        return {node.ask(f"erlang:phash2(rabbit_delay_group:find({self.resource})).") for node in self.cluster.nodes}

    def one_group(self):
        """That all nodes know, with nothing of another."""
        self.await_members(self.expected)
        self.cluster.eventually(lambda: len(self.records()) == 1, "all nodes have the same record")
        self.cluster.eventually(lambda: [self.cluster.members(n, self.name) for n in range(3)].count(1)
                                == self.expected, "a member each")

    def accounted_for(self, kept=()):
        """Each message, and those that are still pending are released."""
        self.one_group()
        self.goes_on()
        self.also_pending = len(kept)
        self.verdict()
        for node in self.cluster.nodes:
            set_clock(node, 2 * LONG)
        try:
            expected = sorted([*kept, *(f"pending.{n}.{number}" for n in range(3) for number in range(PENDING))])
            assert sorted(self.taken(len(expected))) == expected
        finally:
            for node in self.cluster.nodes:
                set_clock(node, 0)

    def taken(self, count):
        connection, channel = self.channel(0)
        bodies = []

        def got():
            method, _, body = channel.basic_get(self.name, auto_ack=True)
            if method is not None:
                bodies.append(body.decode())
            return method is None and len(bodies) >= count
        self.cluster.eventually(got, f"{count} of what was pending")
        connection.close()
        return bodies

    def kept(self, n):
        self.publish_pending(n, "kept")
        return [f"kept.{n}.{number}" for number in range(PENDING)]

    def end(self):
        while self.clients_of_winner:
            self.clients_of_winner.pop().close()
        super().end()


def split(cluster, part, noticed=True):
    """Cuts these nodes off from the others, until all have given each other up."""
    others = [n for n in range(len(cluster.nodes)) if n not in part]
    cluster._note("fault", f"split {part}")
    for n in part:
        cluster.network.cut(n, others)
    if noticed:
        for n in range(len(cluster.nodes)):
            there = others if n in part else part
            cluster.eventually(lambda n=n, there=there: cluster.sees_none(n, there), f"{n} misses {there}")
    cluster._note("struck", f"split {part}")


@pytest.fixture
def fresh(whole, directory, request):
    subjects = []

    def make(handling, away, kind=Fresh):
        subjects.append(kind(whole, directory, request, handling, away))
        return subjects[-1]
    yield make
    for subject in subjects:
        subject.end()


def quarantined(cluster, n):
    return sum(len(folders) for folder, folders, _ in os.walk(cluster.nodes[n].path("data"))
               if os.path.basename(folder) == "quarantine")


# ------------------------------------------------------------ a group that only one part knows

@pytest.mark.parametrize("handling", ["autoheal", "ignore", "pause_minority"])
def test_a_group_is_formed_in_the_part_that_is_taken_back(whole, fresh, handling):
    """Its record is lost with that part's metadata, its messages are not."""
    subject = fresh(handling, [0])
    before = [quarantined(whole, n) for n in range(3)]
    if handling == "autoheal":
        subject.wins(0)
    split(whole, [0], noticed=handling != "pause_minority" and whole.metadata != "khepri")
    subject.begin()
    for n in (1, 2):
        subject.traffic.await_more("confirmed", SOME, f"p{n}")
    kept = subject.kept(1)
    assert subject.record.count("confirmed", "p0") == 0
    subject.made_whole([1, 2] if handling != "pause_minority" else [0])
    subject.accounted_for(kept)
    assert [quarantined(whole, n) for n in range(3)] == before


def test_both_parts_use_an_exchange_as_their_databases_stay_apart(whole, fresh):
    """With `ignore`, as the network is whole again: the part that knew of no group finds the other's, however it
    goes on then."""
    if whole.metadata == "khepri":
        pytest.skip("Khepri has one record")
    subject = fresh("ignore", [0])
    split(whole, [0])
    subject.begin()
    for n in (1, 2):
        subject.traffic.await_more("confirmed", SOME, f"p{n}")
    kept = subject.kept(2)
    whole.heal()
    subject.traffic.await_more("confirmed", SOME, "p0")
    subject.made_whole([0])
    subject.accounted_for(kept)


# -------------------------------------------------------------------- in the middle of a commit

class Drawn:
    """What is drawn for each round."""

    def __init__(self, name):
        self.draw = random.Random(f"{SEED} {name}")

    def rounds(self):
        for number in range(ROUNDS):
            part = self.draw.choice([[0], [1], [2]])
            yield number, part, self.draw.uniform(0, TAKES), self.draw.choice(["those", "others"])


@pytest.mark.parametrize("handling", ["autoheal", "ignore", "pause_minority"])
def test_a_split_as_groups_are_formed(whole, fresh, handling):
    for number, part, after, wins in Drawn(handling).rounds():
        others = [n for n in range(3) if n not in part]
        subject = fresh(handling, part)
        stays = part if wins == "those" else others
        if handling == "autoheal":
            subject.wins(stays[0])
        subject.traffic.publishing = False
        subject.begin()
        subject.traffic.await_connected()
        began = time.monotonic()
        subject.traffic.publishing = True
        time.sleep(after)
        split(whole, part, noticed=handling != "pause_minority")
        print(f"\nround {number}: {part} cut off {after:.3f} s after the first message, all know it after "
              f"{time.monotonic() - began:.3f} s, {stays} stays; {dict(subject.traffic.counts())}")
        for n in others:
            subject.traffic.await_more("confirmed", 1, f"p{n}")
        kept = subject.kept(others[0])
        if handling == "pause_minority":
            subject.made_whole(part)
        else:
            subject.made_whole([n for n in range(3) if n not in stays])
        subject.accounted_for(kept)
        subject.end()


class Grown(Fresh):
    """A group of one, on the node that is given, to which members are added by command."""

    def __init__(self, cluster, directory, request, handling, away):
        for node in cluster.nodes:
            evaluate(node, "application:set_env(rabbitmq_delay_wheel, initial_group_size, 1).")
        super().__init__(cluster, directory, request, handling, away)

    def add(self, n, asked):
        name = self.cluster.nodes[n].nodename
        return say(self.cluster, asked, f"rabbit_delay_members:add({self.resource}, '{name}')")

    def end(self):
        for node in self.cluster.nodes:
            if node.running():
                evaluate(node, "application:unset_env(rabbitmq_delay_wheel, initial_group_size).")
        super().end()


def test_a_member_is_added_in_the_part_that_is_taken_back(whole, fresh):
    """The record is set back to one member, and a majority of the two takes both."""
    subject = fresh("autoheal", [0], Grown)
    subject.expected = 1
    kept = subject.kept(1)
    subject.begin()
    subject.await_members(1)
    subject.wins(0)
    split(whole, [0], noticed=whole.metadata != "khepri")
    assert whole.eventually(lambda: subject.add(2, 1) == "ok", "a second member")
    subject.expected = 2
    subject.await_members(2, 1)
    for n in (1, 2):
        subject.traffic.await_more("confirmed", SOME, f"p{n}")
    subject.made_whole([1, 2])
    subject.accounted_for(kept)


@pytest.mark.parametrize("handling", ["autoheal", "ignore"])
def test_a_split_as_a_member_is_added(whole, fresh, handling):
    for number, part, after, wins in Drawn(f"member {handling}").rounds():
        subject = fresh(handling, part, Grown)
        subject.expected = 1
        others = [n for n in range(3) if n not in part]
        has, gets = (part[0], others[0]) if wins == "those" else (others[0], part[0])
        kept = subject.kept(has)
        subject.begin()
        subject.await_members(1)
        if handling == "autoheal":
            subject.wins(others[0] if number % 2 else part[0])
        answers = []
        adding = threading.Thread(target=lambda: answers.append(subject.add(gets, has)))
        adding.start()
        time.sleep(after)
        split(whole, part, noticed=False)
        adding.join()
        for n in range(3):
            there = others if n in part else part
            whole.eventually(lambda n=n, there=there: whole.sees_none(n, there), f"{n} misses {there}")
        print(f"\nround {number}: {part} cut off {after:.3f} s after {gets} was to be added to {has}: {answers}")
        subject.made_whole([n for n in range(3) if n not in (others if number % 2 else part)])
        # Added or not: it is asked for again, and done once.
        whole.eventually(lambda: subject.add(gets, has) == "ok", "a second member")
        subject.expected = 2
        subject.accounted_for(kept)
        subject.end()
