# SPDX-License-Identifier: MPL-2.0
"""A leader whose node stands still while others are elected: what these have cancelled, released or moved to later, and
have confirmed, it does not release when it wakes, although it is due there and its own log does not know of it yet."""

import os
import time
import uuid

import pika
import pytest

from cluster import Cluster
from management import eventually
from node import evaluate

# Long enough for another leader to be found before; what was confirmed later on a slow machine may be in flight.
DELAY_MS = 40_000
LATER_MS = 7_200_000
EACH = 20
WITHIN = 300


@pytest.fixture(scope="module")
def cluster(directory):
    with Cluster(directory, metadata=os.environ.get("CLUSTER_METADATA") or None,
                 conf=["cluster_partition_handling = pause_minority"]) as cluster:
        yield cluster


class Exchange:
    """With a member on each node, and a quorum queue that has one there, too."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.name = f"p-{uuid.uuid4().hex[:8]}"
        with self.cluster.nodes[0].connected() as connection:
            channel = connection.channel()
            channel.queue_declare(self.name, durable=True, arguments={
                "x-queue-type": "quorum", "x-quorum-initial-group-size": len(cluster.nodes)})
            channel.exchange_declare(self.name, "x-delayed-message", durable=True,
                                     arguments={"x-delayed-type": "direct"})
            channel.queue_bind(self.name, self.name, "k")
        self.publish(0, "first", {"x-delay": 1})
        self.got = []
        self.take_until(0, lambda got: "first" in got)
        self.resource = f'rabbit_misc:r(<<"/">>, exchange, <<"{self.name}">>)'
        self.server = evaluate(cluster.nodes[0], f"element(1, rabbit_delay_raft:server_id({self.resource})).")
        self.leader = cluster.await_leader(self.server)
        cluster.await_caught_up(self.server)

    def pending(self, n):
        """How many its member on that node holds."""
        said = self.cluster.nodes[n].ask(
            f"case catch rabbit_delay_store:stat(rabbit_delay_registry:store({self.resource})) of "
            "#{pending := Count} -> Count; _ -> none end.")
        return None if said in (None, "none") else int(said)

    def publish(self, n, body, headers):
        """Confirmed, however often it takes; when it was."""
        with self.cluster.nodes[n].connected() as connection:
            channel = connection.channel()
            channel.confirm_delivery()

            def taken():
                try:
                    channel.basic_publish(self.name, "k", body.encode(), pika.BasicProperties(
                        delivery_mode=2, headers=headers))
                    return True
                except pika.exceptions.NackError:
                    return False
            eventually(taken, bool, within=WITHIN)
        return time.time()

    def take_until(self, n, enough):
        """What is in the queue, until that is enough and it is empty."""
        with self.cluster.nodes[n].connected() as connection:
            channel = connection.channel()

            def emptied():
                method, _, body = channel.basic_get(self.name, auto_ack=True)
                if method is not None:
                    self.got.append(body.decode())
                return method is None and enough(self.got)
            eventually(emptied, bool, within=WITHIN)


@pytest.mark.parametrize("raft_wakes", ["with it", "later"])
def test_what_others_have_confirmed_meanwhile_is_not_undone_by_a_leader_that_wakes(cluster, raft_wakes):
    exchange = Exchange(cluster)
    paused, elsewhere = exchange.leader, cluster.others(exchange.leader)
    due = {}
    for number in range(EACH):
        for what in ("kept", "cancelled", "released", "replaced"):
            name = f"{what}.{number}"
            due[name] = time.time() + DELAY_MS / 1000
            exchange.publish(elsewhere[0], name, {"x-delay": DELAY_MS, "x-delay-key": name})
    cluster.await_caught_up(exchange.server)
    if raft_wakes == "later":
        # Which term it is, its dispatcher does not hear from it then.
        evaluate(cluster.nodes[paused], f"sys:suspend({exchange.server}).")
    cluster.pause(paused)
    try:
        assert cluster.await_leader(exchange.server, elsewhere, other_than=paused) != paused
        done = {}
        for number in range(EACH):
            for what, headers in (("cancelled", {"x-delay-cancel": f"cancelled.{number}"}),
                                  ("released", {"x-delay-release": f"released.{number}"}),
                                  ("replaced", {"x-delay": LATER_MS, "x-delay-key": f"replaced.{number}",
                                                "x-delay-on-duplicate": "replace"})):
                done[f"{what}.{number}"] = exchange.publish(elsewhere[0], "later", headers)
        # All the rest is due, for the one that stands still as well, and has been released.
        cluster.eventually(lambda: exchange.pending(elsewhere[1]) == EACH, "only what was moved to later is pending")
    finally:
        cluster.resume(paused)
    if raft_wakes == "later":
        # The timer of what is due has run out: it is before these in the dispatcher's mailbox.
        evaluate(cluster.nodes[paused], f"""begin
            D = rabbit_delay_registry:dispatcher({exchange.resource}),
            [sys:get_status(D, 60000) || _ <- lists:seq(1, 1000)],
            sys:resume({exchange.server}) end.""")
    cluster.await_whole()
    cluster.await_leader(exchange.server)
    cluster.await_caught_up(exchange.server)
    for n in range(len(cluster.nodes)):
        exchange.publish(n, f"last.{n}", {"x-delay": 1})
    exchange.take_until(paused, lambda got: {f"last.{n}" for n in range(len(cluster.nodes))} <= set(got))
    in_time = {name for name, at in done.items() if at < due[name]}
    assert {name for name in in_time if name.startswith("cancelled")}, "no cancel came before it was due"
    never = {name for name in in_time if name.startswith(("cancelled", "replaced"))}
    assert never & set(exchange.got) == set()
    once = {name for name in due if name.startswith("kept")} | {n for n in in_time if n.startswith("released")}
    assert {name: exchange.got.count(name) for name in once} == dict.fromkeys(once, 1)
    assert set(done) - in_time >= {name for name in exchange.got if name.startswith(("cancelled", "replaced"))}
