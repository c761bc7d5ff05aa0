# SPDX-License-Identifier: MPL-2.0
"""A store that is full: publishers are refused and told why, what was confirmed stays, and when it has room again
messages are taken again."""

import os
import subprocess
import time

import pika
import pika.exceptions
import pytest

import wire
from client import Client
from conftest import PLUGIN
from management import Management, eventually
from metrics import Metrics
from native import built
from node import HOUR_MS, evaluate, kill_9, set_clock
from test_faults import assert_serves_others, publishes
from test_later_versions import server_id
from test_snapshots import Log

# DW_FULL_PARTITIONS: so many make it full. There can be 4,095.
FULL = 3071
SPREAD = FULL - 4
# Far enough for a slice that can be split, whatever time it is now; just behind where a coarse one begins it is in a
# fine one, as if the clock stood there (c_src/dw_partition.h).
SPREAD_MS, COARSE_MS, FINE_MS = 10 * HOUR_MS, 1 << 24, 1 << 21
DELAYS = [2, 6, 12, 18, 24, 48, 72, 150, 300, 500, 1500, 2500, 4000, 6000, 8000]
REASON = "its store is full: there are as many messages, or files of them, as it can have"


@pytest.fixture
def node(brokers, request):
    broker = brokers(f"full-{request.node.callspec.params['then']}",
                     enable=(PLUGIN, "rabbitmq_management", "rabbitmq_prometheus"),
                     conf=["delayed_message.snapshot_interval.messages = 1000",
                           "prometheus.return_per_object_metrics = true"])
    yield broker
    broker.end()


def spread(node, exchange, due_ms):
    """Has each of its messages in files of its own."""
    log = Log(node, exchange)
    eventually(lambda: has_checkpoint(node, exchange), bool)
    node.stop()
    done = subprocess.run([built("_build/c/spread_store/spread_store"), os.path.join(log.member, "delay_store"),
                           str(due_ms - 1000)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout.split() == [str(SPREAD)] * 2, done
    node.start()


def has_checkpoint(node, exchange):
    """Whether all that was published is in the store's files as its manifest has them."""
    return evaluate(node, f'''begin #{{checkpoint_applied := Checkpoint, applied := Applied}} = rabbit_delay_registry:stat(
        rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)), Checkpoint >= Applied end.''') == "true"


def fill(node, exchange):
    """Publishes messages of ever other delays, most in a slice of time of its own, until one is refused: those that
    were confirmed."""
    confirmed = []
    client = Client(node)
    for hours in DELAYS:
        try:
            client.publish(exchange, body=f"in {hours} h".encode(), delay=hours * HOUR_MS)
        except pika.exceptions.NackError:
            break
        confirmed.append(f"in {hours} h")
    assert 0 < len(confirmed) < len(DELAYS)
    client.connection.close()
    return confirmed


def store_is_full(node, exchange):
    return evaluate(node, f'maps:get(full, rabbit_delay_registry:stat(rabbit_misc:r(<<"/">>, exchange, '
                          f'<<"{exchange}">>))).') == "true"


def refused_line(exchange):
    return f"delayed messages of exchange '{exchange}' in vhost '/' are refused: {REASON}"


def assert_full(node, exchange, other, others_queue, said_before):
    for _ in range(3):
        with pytest.raises(pika.exceptions.NackError):
            Client(node).publish(exchange, body=b"refused", delay=HOUR_MS)
    eventually(lambda: node.log()[said_before:].count(refused_line(exchange)), lambda n: n == 1)
    assert store_is_full(node, exchange)
    # The collector is registered a little after the node is up.
    figures = eventually(lambda: Metrics(node).of(exchange), bool)
    assert FULL <= figures["store_partitions"] < FULL + 16 and figures["messages_rejected_total"] > 0
    client = Client(node)
    client.publish(exchange, body=b"at once")
    client.publish(other, body=b"elsewhere", delay=1)
    client.collect_every(others_queue, {"elsewhere"})
    client.connection.close()
    assert_serves_others(node)


def publish_untold(node, exchange, body):
    """Without confirms: refused where the broker tells us so (3.10), and else it waits. Whether it does."""
    client = Client(node)
    client.channel.basic_publish(exchange, "k", body, pika.BasicProperties(headers={"x-delay": HOUR_MS}))
    try:
        client.channel.queue_declare("", exclusive=True)
    except pika.exceptions.ConnectionClosedByBroker as closed:
        assert node.series == "3.10" and closed.reply_code == 506 and REASON in closed.reply_text, closed
        return False
    assert node.series != "3.10"
    client.connection.close()
    return True


@pytest.mark.parametrize("then", ["purged", "killed"])
def test_a_full_store(node, then):
    client = Client(node)
    exchange, queue = client.delayed_and_queue()
    other, others_queue = client.delayed_and_queue()
    bodies = [f"held {n}" for n in range(SPREAD)]
    due = int(time.time() * 1000) + SPREAD_MS
    due += FINE_MS if due % COARSE_MS < FINE_MS else 0
    with wire.Publisher(node) as publisher:
        publisher.publish(exchange, "k", bodies, headers={"x-opt-delivery-time": wire.signed_long(due)})
        assert len(publisher.confirmed) == SPREAD
    spread(node, exchange, due)
    eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == SPREAD)
    assert not store_is_full(node, exchange)

    before = len(node.log())
    confirmed = bodies + fill(node, exchange)
    server = evaluate(node, f"whereis(element(1, {server_id(exchange)})).")
    assert_full(node, exchange, other, others_queue, before)
    if then == "killed":
        kill_9(node)
        before = len(node.log())
        node.start()
        eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == len(confirmed))
        server = evaluate(node, f"whereis(element(1, {server_id(exchange)})).")
        assert_full(node, exchange, other, others_queue, before)
    waits = publish_untold(node, exchange, b"untold")

    client = Client(node)
    if then == "purged":
        assert f"{len(confirmed)} messages cancelled" in node.ctl("--quiet", "purge_delayed_messages", exchange)
        confirmed = []
    else:
        set_clock(node, SPREAD_MS + 2 * HOUR_MS)
    eventually(lambda: publishes(node, exchange), bool)
    again = f"delayed messages of exchange '{exchange}' in vhost '/' are accepted again"
    log = eventually(lambda: node.log()[before:], lambda log: again in log)
    assert log.count(again) == log.count(refused_line(exchange)) == 1
    # Files go one after the other.
    eventually(lambda: store_is_full(node, exchange), lambda is_full: not is_full)
    set_clock(node, 10_000 * HOUR_MS)
    wanted = {*confirmed, "probe", "at once", *(["untold"] if waits else [])}
    got = [delivery.text for delivery in client.collect_every(queue, wanted)]
    got += client.texts_until_marker(queue)
    often = {"probe", "at once"}
    assert sorted(text for text in got if text not in often) == sorted(wanted - often)
    # Nothing was started again meanwhile.
    assert evaluate(node, f"whereis(element(1, {server_id(exchange)})).") == server
