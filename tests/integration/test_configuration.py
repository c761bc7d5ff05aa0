# SPDX-License-Identifier: MPL-2.0
"""Keys in rabbitmq.conf: what they do, and what a wrong value does."""

import re

import pika
import pika.exceptions
import pytest

import wire
from client import Client
from conftest import PLUGIN
from management import Management, eventually
from private_broker import BrokerFailed


def refused(client, *args, **kwargs):
    """True if the publish was refused in one of the ways that a publisher can see."""
    try:
        client.publish(*args, **kwargs)
    except pika.exceptions.NackError:
        return True
    except pika.exceptions.ChannelClosedByBroker as closed:
        return closed.reply_code == 406
    return False


def test_a_message_over_the_limit_is_refused_and_the_rest_goes_on(limited):
    client = Client(limited)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"small", delay=1000)
    assert refused(client, exchange, body=bytes(1 << 20), delay=300)
    client.publish(exchange, body=b"small too", delay=1000)
    assert client.texts(queue, 2) == ["small", "small too"]
    client.close()


@pytest.fixture(scope="module")
def limited(brokers):
    """A broker whose every limit of ours is set, and whose WAL and snapshots are small."""
    broker = brokers("limited", conf=[
        "delayed_message.max_message_size = 100000",
        "delayed_message.max_delay = 20000",
        "delayed_message.unusable_delay = route_now",
        "delayed_message.in_flight.messages = 10",
        "delayed_message.in_flight.bytes = 10000",
        "delayed_message.wal_size = 4194304",
        "delayed_message.snapshot_interval.messages = 1000",
        "delayed_message.snapshot_interval.bytes = 1000000",
    ], enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


def test_unusable_delays_are_routed_at_once_where_so_configured(limited):
    client = Client(limited)
    exchange, queue = client.delayed_and_queue()
    for header in (20001, "soon", True):
        client.publish(exchange, body=str(header).encode(), delay=header)
    assert client.texts_until_marker(queue) == ["20001", "soon", "True"]
    client.close()


def test_unusable_delays_are_nacked_where_so_configured(brokers):
    broker = brokers("nacking", conf=["delayed_message.unusable_delay = nack"])
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    assert refused(client, exchange, delay="soon")
    assert client.confirming.is_open
    otherwise = client.delayed(arguments={"x-delay-unusable": "reject"})
    assert client.refusal(otherwise, delay="soon")[0] == 406
    client.publish(exchange, body=b"good", delay=1)
    assert client.texts(queue, 1) == ["good"]
    assert client.texts_until_marker(queue) == []
    client.close()
    broker.end()


def test_an_exchange_argument_goes_before_the_configuration(limited):
    client = Client(limited)
    exchange = client.delayed(arguments={"x-delay-unusable": "reject", "x-delay-max": 30000})
    client.publish(exchange, delay=25000)
    code, text = client.refusal(exchange, delay=30001)
    assert code == 406 and "30000" in text
    client.close()


def test_a_small_limit_in_flight_delays_nothing_for_good(limited):
    client = Client(limited)
    exchange, queue = client.delayed_and_queue()
    with wire.Publisher(limited) as publisher:
        publisher.publish(exchange, "k", [f"{n:05}" * 200 for n in range(3000)],
                          headers={"x-delay": 500})
    got = [delivery.text[:5] for delivery in client.collect(queue, 3000)]
    assert sorted(got) == [f"{n:05}" for n in range(3000)]
    client.close()


def test_a_memory_alarm_blocks_publishers_of_delayed_messages(limited):
    client = Client(limited)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"before", delay=100)
    publisher = wire.Publisher(limited)
    limited.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        management = Management(limited)
        eventually(lambda: management.get("nodes")[0].get("mem_alarm"), bool)
        publisher.send(exchange, "k", ["during"], headers={"x-delay": 100})
        with pytest.raises(wire.Unanswered):
            publisher.await_answers(2)
        assert client.texts(queue, 1) == ["before"]
    finally:
        limited.ctl("set_vm_memory_high_watermark", "0.6")
    publisher.await_answers()
    assert publisher.confirmed == {1}
    assert client.texts(queue, 1) == ["during"]
    publisher.close()
    client.close()




# --------------------------------------------------------------------- wrong values

WRONG = {
    "not of the kind": [
        ("max_delay", "soon"), ("unusable_delay", "perhaps"), ("in_flight.messages", "many"),
        ("continuous_membership_reconciliation.enabled", "perhaps"),
        ("snapshot_interval.messages", "1.5"), ("retry_interval.min", "often")],
    "not a size": [("wal_size", "big")],
    "a small size": [("wal_size", "1023kB"), ("max_message_size", "0kB")],
    "no unit of ours": [("in_flight.bytes", "2XB"), ("snapshot_interval.bytes", "kB")],
    "out of range": [
        ("max_delay", "0"), ("in_flight.messages", "0"), ("in_flight.bytes", "-5"),
        ("wal_size", "12"), ("snapshot_interval.messages", "0"), ("snapshot_interval.bytes", "1"),
        ("max_message_size", "0"), ("disk_free_limit", "-1"), ("retry_interval.max", "99999999"),
        ("continuous_membership_reconciliation.interval", "999"),
        ("max_open_files", "15"), ("initial_group_size", "0"), ("initial_group_size", "2147483648")],
    "unknown": [("no_such_key", "1")],
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_values_stop_the_start_and_are_all_named(brokers, kind):
    broker = brokers(f"wrong-{kind}", start=False, conf=[
        f"delayed_message.{key} = {value}" for key, value in WRONG[kind]])
    with pytest.raises(BrokerFailed):
        broker.start()
    assert not broker.running()
    with open(broker.path("log", "startup.log"), encoding="utf-8") as startup:
        said = startup.read() + broker.log()
    assert [key for key, _ in WRONG[kind] if f"delayed_message.{key}" not in said] == []
    if kind in ("not a size", "a small size", "no unit of ours", "out of range"):
        assert re.findall(r"must be from \d.* to \d", said)
    broker.end()


def test_units_are_understood(brokers, tmp_path):
    data_dir = tmp_path / "elsewhere"
    broker = brokers("units", conf=[
        f"delayed_message.data_dir = {data_dir}",
        "delayed_message.max_delay = 2h",
        "delayed_message.wal_size = 8MB",
        "delayed_message.in_flight.bytes = 64kB",
        "delayed_message.snapshot_interval.bytes = 64 kB",
        "delayed_message.max_message_size = 1024KB",
        "delayed_message.disk_free_limit = 10MB"])
    assert broker.eval("rabbit_delay_config:in_flight_bytes().") == "65536"
    assert broker.eval("element(2, rabbit_delay_config:snapshot_interval()).") == "65536"
    assert broker.eval("rabbit_delay_config:max_message_size().") == "1048576"
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    code, text = client.refusal(exchange, delay=7200_001)
    assert code == 406 and "7200000" in text
    client.publish(exchange, body=b"kept elsewhere", delay=300)
    assert client.texts(queue, 1) == ["kept elsewhere"]
    assert any(data_dir.iterdir())
    client.close()
    broker.end()
