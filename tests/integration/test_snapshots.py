# SPDX-License-Identifier: MPL-2.0
"""Raft's snapshots and log: they are written and cut, so that neither grows with what passes through
and a restart replays little; and a node's settings are nothing that a replay could ask."""

import glob
import json
import os

import pytest

import wire
from client import Client
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, evaluate, kill_9, set_clock

WAL_BYTES = 1 << 20
INTERVAL = 1000
BODY = 4096
LARGE, SMALL = b"l" * 200_000, b"small"
# Notes of the dispatcher and of the queue's process at each start, and Ra's own.
FEW = 20


@pytest.fixture
def node(brokers, request):
    broker = brokers(f"snapshots-{request.node.name}", enable=(PLUGIN, "rabbitmq_management"),
                     conf=[f"delayed_message.wal_size = {WAL_BYTES}",
                           f"delayed_message.snapshot_interval.messages = {INTERVAL}"])
    yield broker
    broker.end()


class Log:
    """What Ra says of an exchange's member, and what is on the disk."""

    def __init__(self, broker, exchange):
        self._broker = broker
        self._id = (f"rabbit_delay_raft:server_id(rabbit_misc:r(<<\"/\">>, exchange, "
                    f"<<\"{exchange}\">>))")
        said = evaluate(broker, "rabbit_delay_config:data_dir().")
        self.dir = json.loads(said)
        said = evaluate(broker, "(fun () -> {ok, Uid} = rabbit_delay_raft:find_member(rabbit_misc:r("
                                f"<<\"/\">>, exchange, <<\"{exchange}\">>)), binary_to_list(Uid) end)().")
        self.member = os.path.join(self.dir, json.loads(said))

    def overview(self):
        # By Ra's own functions alone: fixtures of 0.1 are made with this, too.
        asked = (f"ra_server:overview(element(2, ra_server_proc:local_state_query({self._id}, all, "
                 "30000)))" if self._broker.series == "3.10" else
                 f"element(2, ra:member_overview({self._id}, 30000))")
        said = evaluate(self._broker,
                        f"(fun () -> O = {asked}, L = maps:get(log, O), "
                        "{maps:get(last_index, L), maps:get(last_applied, O), "
                        "case L of #{snapshot_index := I} when is_integer(I) -> I; _ -> 0 end, "
                        "maps:get(effective_machine_version, O), maps:get(machine_version, O)} end)().")
        return dict(zip(("last", "applied", "snapshot", "version", "ours"),
                        map(int, said.strip("{}").split(","))))

    def rest(self):
        """What a restart would replay, by what Ra says."""
        said = self.overview()
        return said["last"] - said["snapshot"]

    def snapshots(self):
        """The indexes of the whole snapshots on the disk."""
        return sorted(int(os.path.basename(os.path.dirname(file)).split("_")[1], 16)
                      for file in glob.glob(os.path.join(self.member, "snapshots", "*",
                                                         "delay_snapshot")))

    def bytes(self):
        """Of the log: the WAL, which all members share, and this one's segments."""
        files = (glob.glob(os.path.join(self.dir, "*.wal"))
                 + glob.glob(os.path.join(self.member, "*.segment")))
        return sum(os.path.getsize(file) for file in files if os.path.exists(file))

    def segments(self):
        return len(glob.glob(os.path.join(self.member, "*.segment")))


def test_snapshots_are_written_the_log_is_cut_and_a_restart_replays_little(node):
    client = Client(node)
    exchange, queue = client.delayed_and_queue()
    rounds, a_round = 6, 2000
    with wire.Publisher(node) as publisher:
        publisher.publish(exchange, "k", [b"first"], headers={"x-delay": HOUR_MS})
        log = Log(node, exchange)
        seen = [log.overview()["snapshot"]]
        for _ in range(rounds):
            publisher.publish(exchange, "k", [bytes(BODY)] * a_round, window=500,
                              headers=lambda n: {"x-delay": HOUR_MS if n % 2 else 1})
            # Offered while it goes on, and again by the tick: more than one, over the rounds.
            eventually(log.rest, lambda n: n < FEW)
            seen.append(log.overview()["snapshot"])
    assert seen == sorted(set(seen)), seen
    assert log.overview()["version"] == log.overview()["ours"] == 3
    assert log.snapshots()[-1] >= seen[-1] > rounds * a_round / 4096

    traffic = rounds * a_round * BODY
    eventually(log.bytes, lambda size: size < traffic / 4)
    assert log.segments() <= 4

    delayed = rounds * a_round // 2 + 1
    management = Management(node)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == delayed)
    eventually(log.rest, lambda n: n < FEW)
    last = log.overview()["last"]
    kill_9(node)
    assert last - log.snapshots()[-1] < FEW, (last, log.snapshots())
    node.start()
    again = Log(node, exchange)
    assert again.member == log.member
    assert again.overview()["last"] - last < FEW
    eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == delayed)
    set_clock(node, 2 * HOUR_MS)
    receiver = Client(node)
    assert len(receiver.collect(queue, delayed + rounds * a_round // 2,
                                prefetch=1000)) == delayed + rounds * a_round // 2


def publish_large_and_small(node, exchange):
    """Eight large ones and seven small ones: some in batches of their own, some beside others; by
    keys, too."""
    with wire.Publisher(node) as publisher:
        publisher.publish(exchange, "k", [LARGE], window=0, headers={"x-delay": HOUR_MS})
        publisher.publish(exchange, "k", [LARGE, SMALL] * 6, headers={"x-delay": HOUR_MS})
        publisher.publish(exchange, "k", [LARGE, SMALL], headers=lambda n: {
            "x-delay": HOUR_MS, "x-delay-on-duplicate": "replace", "x-delay-key": os.urandom(8).hex()})
        assert len(publisher.confirmed) == 15 and not publisher.refused


def test_what_was_confirmed_is_replayed_whatever_the_limit_is_now(node):
    client = Client(node)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=SMALL, delay=HOUR_MS)
    pending = 1
    # The tick takes a snapshot now and then: it is to come down before that.
    for _ in range(10):
        log = Log(node, exchange)
        before = log.overview()["last"]
        publish_large_and_small(node, exchange)
        pending += 15
        kill_9(node)
        if max([0, *log.snapshots()]) <= before:
            break
        node.start()
    assert max([0, *log.snapshots()]) <= before, (before, log.snapshots())
    node.conf.append("delayed_message.max_message_size = 1024")
    node.start()
    eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == pending)
    client = Client(node)
    code, text = client.refusal(exchange, body=LARGE, delay=HOUR_MS)
    assert code == 406 and "max_message_size" in text
    set_clock(node, 2 * HOUR_MS)
    got = [delivery.body for delivery in client.collect(queue, pending)]
    assert (got.count(LARGE), got.count(SMALL)) == (pending // 15 * 8, pending // 15 * 7 + 1)
    eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == 0)
