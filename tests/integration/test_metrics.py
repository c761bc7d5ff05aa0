# SPDX-License-Identifier: MPL-2.0
"""Figures for Prometheus, through the broker's own endpoint."""

import math
import time
import urllib.request
import uuid

import pytest

import wire
from client import LATE, Client
from conftest import PLUGIN
from management import eventually
from metrics import Metrics
from node import HOUR_MS, evaluate

GAUGES = {
    "messages_pending", "messages_pending_bytes", "messages_in_flight", "messages_overdue",
    "messages_waiting", "stuck_queues",
    "messages_unreadable", "release_lag_seconds", "store_partitions", "store_file_bytes",
    "store_dead_bytes", "store_memory_bytes", "store_buffered_bytes", "store_open_files",
    "store_uncheckpointed_entries", "raft_leaders", "raft_members", "paused"}
SOMETIMES = {"next_due_timestamp_seconds", "store_checkpoint_timestamp_seconds",
             "store_checkpoint_duration_seconds"}
COUNTERS = {f"messages_{what}_total" for what in (
    "published", "released", "unroutable", "cancelled", "replaced", "deduplicated", "rejected",
    "retried", "expired", "overflowed", "dead_lettered", "returned", "parked",
    "keys_ignored", "unusable", "corrupt", "dropped")}
NODE_GAUGES = {"descriptors_open", "descriptors_limit", "stores_failing", "stores_unwritten_bytes"}
NODE_COUNTERS = {"store_write_failures_total", "store_sync_failures_total"}
HISTOGRAMS = {"release_lateness_seconds", "message_delay_seconds"}


@pytest.fixture(scope="module", autouse=True)
def shown(broker):
    """Our figures are there some moments after the endpoint is."""
    for path in ("metrics", "metrics/per-object"):
        eventually(lambda: Metrics(broker, path).get("rabbitmq_delayed_up"), lambda up: up == 1)


def per_object(broker):
    return Metrics(broker, "metrics/per-object")


def of(broker, exchange):
    return per_object(broker).of(exchange)


def settled(broker, exchange, pending, **wanted):
    """The exchange's figures once so many are pending and its counters have these values: what is
    released counts as pending for a moment."""
    names = {f"messages_{name}_total": value for name, value in wanted.items()}
    names["messages_pending"] = pending
    return eventually(lambda: of(broker, exchange),
                      lambda now: all(now.get(name) == value for name, value in names.items()))


def test_every_figure_is_there_with_its_type(client, broker):
    exchange = client.delayed()
    client.publish(exchange, delay=HOUR_MS)
    for prefix, metrics in (("rabbitmq_delayed_", Metrics(broker)),
                            ("rabbitmq_delayed_", per_object(broker)),
                            ("rabbitmq_detailed_delayed_",
                             Metrics(broker, "metrics/detailed?family=delayed_exchange_metrics"))):
        types = {name[len(prefix):]: kind for name, kind in metrics.types.items()
                 if name.startswith(prefix)}
        assert {name for name, kind in types.items() if kind == "counter"} - NODE_COUNTERS == COUNTERS
        assert {name for name, kind in types.items() if kind == "histogram"} == HISTOGRAMS
        gauges = {name for name, kind in types.items() if kind == "gauge"}
        assert gauges >= GAUGES | {"next_due_timestamp_seconds"}
        assert gauges - GAUGES - SOMETIMES - NODE_GAUGES <= {"up", "exchanges"}
    assert Metrics(broker).get("rabbitmq_delayed_up") == 1


def test_what_is_pending(client, broker):
    exchange = client.delayed()
    assert of(broker, exchange) == {}
    now = time.time()
    client.publish(exchange, body=b"x" * 1000, delay=2 * HOUR_MS)
    client.publish(exchange, body=b"x" * 1000, delay=HOUR_MS)
    figures = of(broker, exchange)
    assert figures["messages_pending"] == 2
    assert 2000 <= figures["messages_pending_bytes"] <= 4000
    assert figures["messages_in_flight"] == figures["messages_overdue"] == 0
    assert figures["release_lag_seconds"] == 0
    assert now + 3600 <= figures["next_due_timestamp_seconds"] <= time.time() + 3600
    assert figures["raft_leaders"] == figures["raft_members"] == 1
    assert figures["store_memory_bytes"] > 0
    assert figures["messages_published_total"] == 2


def test_what_became_of_each_message_is_counted_once(client, broker):
    exchange, queue = client.delayed_and_queue()

    for key in ["k"] * 7 + ["nowhere"] * 3:
        client.publish(exchange, key, delay=300)
    for number in range(5):
        client.publish(exchange, headers={"x-delay": HOUR_MS, "x-delay-key": f"c{number}"})
        client.publish(exchange, headers={"x-delay-cancel": f"c{number}"})
    for word, times in (("replace", 4), ("drop", 3)):
        for _ in range(times):
            client.publish(exchange, headers={"x-delay": HOUR_MS, "x-delay-key": word,
                                              "x-delay-on-duplicate": word})
    client.publish(exchange, body=b"at once")
    client.collect(queue, 8)
    figures = settled(broker, exchange, 2, released=7, unroutable=3)
    assert {name: value for name, value in figures.items() if name in COUNTERS} == {
        "messages_published_total": 7 + 3 + 5 + 4 + 3, "messages_released_total": 7,
        "messages_unroutable_total": 3, "messages_cancelled_total": 5,
        "messages_replaced_total": 3, "messages_deduplicated_total": 2,
        "messages_rejected_total": 0, "messages_retried_total": 0, "messages_expired_total": 0,
        "messages_overflowed_total": 0, "messages_dead_lettered_total": 0,
        "messages_returned_total": 0, "messages_parked_total": 0, "messages_keys_ignored_total": 0, "messages_corrupt_total": 0,
        "messages_dropped_total": 0, "messages_unusable_total": 0}
    gone = 7 + 3 + 5 + 3 + 2
    assert figures["messages_pending"] == figures["messages_published_total"] - gone == 2


def test_histograms_count_each_message_in_its_bucket(client, broker):
    exchange, queue = client.delayed_and_queue()
    broker.ctl("pause_delayed_exchange", exchange)
    delays = [50, 500, 900, 5000, 30_000, 1000 * HOUR_MS]
    for delay in delays:
        client.publish(exchange, delay=delay)
    when = int(time.time() * 1000) + 300_000
    client.publish(exchange, headers={"x-opt-delivery-time": wire.signed_long(when)})
    metrics = per_object(broker)
    labels = {"exchange": exchange, "vhost": "/"}
    asked = dict(metrics.buckets("rabbitmq_delayed_message_delay_seconds", **labels))
    assert [asked[bound] for bound in (0.1, 1, 10, 60, 600, 31536000, math.inf)] == [
        1, 3, 4, 5, 6, 7, 7]
    assert metrics.get("rabbitmq_delayed_message_delay_seconds_count", **labels) == 7
    total = metrics.get("rabbitmq_delayed_message_delay_seconds_sum", **labels)
    assert 0 <= total - sum(delays) / 1000 <= 300


def test_lateness_is_counted_in_its_bucket(client, broker):
    exchange, queue = client.delayed_and_queue()
    for delay in (50, 500, 900):
        client.publish(exchange, delay=delay)
    client.collect(queue, 3)
    settled(broker, exchange, 0, released=3)
    metrics = per_object(broker)
    labels = {"exchange": exchange, "vhost": "/"}
    late = metrics.buckets("rabbitmq_delayed_release_lateness_seconds", **labels)
    assert [bound for bound, _ in late][-1] == math.inf and late[-1][1] == 3
    assert [count for _, count in late] == sorted(count for _, count in late)
    assert metrics.get("rabbitmq_delayed_release_lateness_seconds_count", **labels) == 3
    assert metrics.get("rabbitmq_delayed_release_lateness_seconds_sum", **labels) <= 3 * LATE / 1000


def test_the_brokers_own_count_of_what_went_into_queues_is_right_and_never_negative(client, broker):
    def counted():
        per_queue = {}
        for (name, labels), value in Metrics(broker, "metrics/per-object").values.items():
            if name == "rabbitmq_queue_messages_published_total":
                labels = dict(labels)
                if labels.get("exchange") in (exchange, via):
                    assert value >= 0, (labels, value)
                    per_queue[labels["queue"]] = per_queue.get(labels["queue"], 0) + value
        return per_queue

    exchange, queue = client.delayed_and_queue()
    via = client.exchange("fanout")
    client.channel.exchange_bind(exchange, via)
    internal = evaluate(broker, f'element(4, rabbit_delay_registry:queue_name(rabbit_misc:r(<<"/">>, '
                                f'exchange, <<"{exchange}">>))).').strip('<>"')
    publisher = Client(broker)
    for number in range(20):
        publisher.publish(exchange, body=b"x", delay=HOUR_MS if number % 2 else 1)
        publisher.publish(via, "k", b"x", delay=HOUR_MS)
    client.collect(queue, 10)
    eventually(counted, lambda now: now.get(internal, 0) == 0 and now.get(queue) == 10)
    # With the channel its counts go, and nothing is left of ours that was below them.
    publisher.close()
    for _ in range(3):
        client.publish(exchange, body=b"x", delay=HOUR_MS)
        eventually(counted, lambda now: now.get(internal, 0) == 0)


def test_what_a_full_queue_rejects_is_retried_and_overdue(client, broker):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-max-length": 1,
                                                     "x-overflow": "reject-publish"})
    for number in range(3):
        client.publish(exchange, body=str(number).encode(), delay=100)
    figures = eventually(lambda: of(broker, exchange),
                         lambda now: now["messages_retried_total"] >= 2 and
                         now["messages_pending"] == 2)
    assert figures["messages_released_total"] == 1
    client.collect_every(queue, {"0", "1", "2"})
    figures = settled(broker, exchange, 0, released=3)
    assert figures["messages_pending"] == figures["messages_overdue"] == 0


def test_sums_are_of_all_exchanges_and_do_not_fall_when_one_is_deleted(client, broker):
    def sums():
        metrics = Metrics(broker)
        return {name: metrics.get(f"rabbitmq_delayed_{name}") for name in COUNTERS | {
            "message_delay_seconds_count", "message_delay_seconds_sum", "messages_pending",
            "exchanges"}}

    before = sums()
    exchanges = [client.delayed() for _ in range(3)]
    for exchange in exchanges:
        client.publish(exchange, delay=HOUR_MS)
    between = sums()
    assert between["messages_published_total"] == before["messages_published_total"] + 3
    assert between["message_delay_seconds_sum"] == before["message_delay_seconds_sum"] + 3 * 3600
    assert between["messages_pending"] == before["messages_pending"] + 3
    assert between["exchanges"] == before["exchanges"] + 3
    for exchange in exchanges:
        client.channel.exchange_delete(exchange)
    after = sums()
    assert after == {**between, "messages_pending": before["messages_pending"],
                     "exchanges": before["exchanges"]}
    assert of(broker, exchanges[0]) == {}


def test_detailed_figures_of_one_vhost(broker):
    vhost = f"v-{uuid.uuid4().hex[:8]}"
    broker.ctl("add_vhost", vhost)
    broker.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    try:
        here, there = Client(broker), Client(broker, vhost=vhost)
        exchanges = [client.delayed() for client in (here, there)]
        for client, exchange in zip((here, there), exchanges):
            client.publish(exchange, delay=HOUR_MS)
        path = f"metrics/detailed?family=delayed_exchange_metrics&vhost={vhost}"
        prefix = "rabbitmq_detailed_delayed_"
        metrics = Metrics(broker, path)
        assert metrics.of(exchanges[1], vhost, prefix)["messages_pending"] == 1
        assert metrics.of(exchanges[0], "/", prefix) == {}
        assert "_delayed_" not in Metrics(
            broker, "metrics/detailed?family=queue_coarse_metrics").text
        here.close()
        there.close()
    finally:
        broker.ctl("delete_vhost", vhost)


def test_names_of_exchanges_may_hold_anything(client, broker):
    name = f'a "b" \\ c {uuid.uuid4().hex[:8]} é'
    client.delayed(name=name)
    client.publish(name, delay=HOUR_MS)
    found = [dict(labels)["exchange"] for (sample, labels) in per_object(broker).values
             if sample == "rabbitmq_delayed_messages_pending"]
    assert name.replace("\\", "\\\\").replace('"', '\\"') in found


# ------------------------------------------------------------- the other plugin comes and goes

@pytest.fixture(scope="module")
def own(brokers):
    broker = brokers("metrics", enable=(PLUGIN, "rabbitmq_prometheus"))
    yield broker
    broker.end()


def test_figures_come_and_go_with_either_plugin(own):
    client = Client(own)
    exchange = client.delayed()
    port = own.plugin_ports["rabbitmq_prometheus"]
    own.plugins("disable", "rabbitmq_prometheus")
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120)
    client.publish(exchange, delay=HOUR_MS)
    own.plugins("enable", "rabbitmq_prometheus")
    eventually(lambda: of(own, exchange).get("messages_pending"), lambda n: n == 1)
    own.plugins("disable", PLUGIN)
    assert "_delayed_" not in Metrics(own).text
    own.plugins("enable", PLUGIN)
    eventually(lambda: of(own, exchange).get("messages_pending"), lambda n: n == 1)
    own.restart()
    eventually(lambda: of(own, exchange).get("messages_pending"), lambda n: n == 1)
    client = Client(own)
    client.publish(exchange, delay=HOUR_MS)
    assert of(own, exchange)["messages_pending"] == 2
    assert of(own, exchange)["messages_published_total"] == 1
    client.close()
