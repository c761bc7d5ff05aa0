# SPDX-License-Identifier: MPL-2.0
"""A store that finds something in itself that cannot be: its exchange is closed, and says so; the broker, and the other
exchanges, go on; and after a restart all that was confirmed is there, and comes."""

import contextlib
import os

import pika.exceptions
import pytest

import wire
from client import Client
from conftest import PLUGIN
from management import Management, eventually
from metrics import Metrics
from native import built, plugin_with
from node import HOUR_MS, evaluate, kill_9, set_clock
from test_faults import assert_serves_others
from test_later_versions import server_id
from test_snapshots import Log

REASON = "its store found itself to be wrong and was closed"


@pytest.fixture(scope="module")
def node(brokers, tmp_path_factory):
    library = built("_build/c/broken_store/rabbit_delay_store.so")
    broker = brokers("broken-store", enable=(PLUGIN, "rabbitmq_management", "rabbitmq_prometheus"),
                     plugin_dirs=[plugin_with(library, tmp_path_factory.mktemp("plugin"))],
                     conf=["delayed_message.snapshot_interval.messages = 100",
                           "prometheus.return_per_object_metrics = true"])
    yield broker
    broker.end()


class Exchange:
    """A delayed exchange, what was confirmed of it, and what was not."""

    def __init__(self, client, broker):
        self.broker = broker
        self.name, self.queue = client.delayed_and_queue()
        self.confirmed, self.others = set(), set()

    def publish(self, n, delay):
        """Publishes n messages; how many were refused."""
        first = len(self.confirmed) + len(self.others)
        bodies = [f"{self.name} {first + i}" for i in range(n)]
        with wire.Publisher(self.broker) as publisher:
            # What comes when the exchange is refused already closes the channel.
            with contextlib.suppress(pika.exceptions.ChannelClosedByBroker, OSError):
                publisher.send(self.name, "k", bodies, headers={"x-delay": delay})
                publisher.await_answers()
            publisher.drain()
            confirmed = {bodies[i - 1] for i in publisher.confirmed}
        self.confirmed |= confirmed
        self.others |= set(bodies) - confirmed
        return n - len(confirmed)

    def store(self):
        return os.path.join(Log(self.broker, self.name).member, "delay_store")


def break_in(store, call):
    """The next such call of that store finds an invariant broken. The file that says so goes with it."""
    path = os.path.join(store, f"break-{call}")
    with open(path, "w", encoding="utf-8"):
        return path


def refusal(node, exchange):
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
        Client(node).publish(exchange, body=b"refused", delay=HOUR_MS)
    return closed.value.reply_code, closed.value.reply_text


def assert_broken_alone(node, broken, other, store, said_before):
    """The log names the store, and the exchange, once; everyone is told why; nothing else is concerned."""
    log = eventually(lambda: node.log()[said_before:],
                     lambda log: f"delayed messages of exchange '{broken.name}' in vhost '/' are unavailable: " in log,
                     within=60)
    [line] = [line for line in log.splitlines() if "the store is closed, as something that must hold" in line]
    assert f"{store}: the store is closed" in line and line.rstrip().endswith(")") and ".c:" in line
    # There are none of it at all while its processes are started again.
    eventually(lambda: Metrics(node).of(broken.name).get("raft_leaders"), lambda n: n == 0)
    for _ in range(3):
        code, text = refusal(node, broken.name)
        assert code == 406 and REASON in text, text
    said = node.log()[said_before:]
    assert said.count("are unavailable: " + REASON) == 1
    assert f"delayed messages of exchange '{other.name}'" not in said

    # Who looks is told, too.
    [member] = node.rows("delayed_exchange_status", broken.name)
    assert member["state"] == "not_started"
    # How many it holds cannot be known, and is not said to be none.
    listed = {row["name"]: row["messages_delayed"] for row in node.rows(
        "list_delayed_exchanges", "name", "messages_delayed")}
    assert listed[broken.name] == "" and listed[other.name] != "", listed
    assert Management(node).get(f"delayed-exchanges/%2F/{broken.name}")["messages_delayed"] is None
    for command in ["list_delayed_messages", broken.name], ["purge_delayed_messages", broken.name]:
        done = node.ctl(*command, check=False)
        assert done.returncode == 69 and REASON in done.stderr, done
    status, answer = Management(node).request("GET", f"delayed-exchanges/%2F/{broken.name}/messages")
    assert status == 503 and REASON in answer["reason"], (status, answer)
    figures = Metrics(node)
    assert figures.of(broken.name).get("raft_leaders", 0) == 0
    assert figures.of(other.name)["raft_leaders"] == 1
    assert_serves_others(node)


def assert_all_come(node, exchanges, came=()):
    """Each message that was confirmed once, and another one at most once; those that were in flight and came before may
    come again."""
    set_clock(node, 2 * HOUR_MS)
    client = Client(node)
    for exchange in exchanges:
        got = client.collect_every(exchange.queue, exchange.confirmed - set(came))
        eventually(lambda: Management(node).messages_delayed(exchange.name), lambda n: n == 0)
        got = [delivery.text for delivery in got] + client.texts_until_marker(exchange.queue)
        # A queue that was killed may have forgotten what was acknowledged.
        got = [text for text in got if text != "marker" and text not in came]
        assert set(got) <= exchange.confirmed | exchange.others and len(set(got)) == len(got)
    client.close()
    set_clock(node, 0)


@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_one_that_takes_messages_in(node, how):
    client = Client(node)
    broken, other = Exchange(client, node), Exchange(client, node)
    for exchange in broken, other:
        assert exchange.publish(250, HOUR_MS) == 0
    store, server = broken.store(), evaluate(node, f"whereis(element(1, {server_id(other.name)})).")
    before, pid = len(node.log()), node.pid
    flag = break_in(store, "insert")
    # In several entries of the log: one of them is what breaks it.
    refused = broken.publish(200, HOUR_MS)
    assert refused > 0 and not os.path.exists(flag)
    assert_broken_alone(node, broken, other, store, before)
    assert 0 < Metrics(node).of(broken.name)["messages_rejected_total"] <= refused
    assert other.publish(50, HOUR_MS) == 0
    assert node.pid == pid
    assert evaluate(node, f"whereis(element(1, {server_id(other.name)})).") == server
    (kill_9 if how == "killed" else lambda node: node.stop())(node)
    node.start()
    for exchange in broken, other:
        eventually(lambda: Management(node).messages_delayed(exchange.name), lambda n: n >= len(exchange.confirmed))
        assert exchange.publish(20, HOUR_MS) == 0
    assert_all_come(node, [broken, other])


@pytest.mark.parametrize("call", ["take", "settle_due_by"])
def test_one_that_releases(node, call):
    """It is the dispatcher that finds it, or the machine with messages in flight."""
    client = Client(node)
    broken, other = Exchange(client, node), Exchange(client, node)
    for exchange in broken, other:
        assert exchange.publish(250, HOUR_MS) == 0
    store, before = broken.store(), len(node.log())
    flag = break_in(store, call)
    set_clock(node, 2 * HOUR_MS)
    eventually(lambda: os.path.exists(flag), lambda there: not there)
    client = Client(node)
    client.collect_every(other.queue, other.confirmed)
    set_clock(node, 0)
    assert_broken_alone(node, broken, other, store, before)
    early = client.texts_until_marker(broken.queue)
    assert (call == "take" or early) and set(early) <= broken.confirmed and len(set(early)) == len(early)
    kill_9(node)
    node.start()
    left = len(broken.confirmed - set(early))
    eventually(lambda: Management(node).messages_delayed(broken.name), lambda n: n >= left)
    other.confirmed = set()
    for exchange in broken, other:
        assert exchange.publish(20, HOUR_MS) == 0
    assert_all_come(node, [broken, other], came=early)
