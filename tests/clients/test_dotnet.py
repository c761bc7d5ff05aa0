# SPDX-License-Identifier: MPL-2.0
"""Frameworks of .NET, which is not run here: what each declares and publishes, by its source, is replayed
with the same AMQP types, and what it reads of what comes back is looked at."""

import pytest

import wire
from client import assert_on_time
from test_moving_from_ladders import binary_key, binary_levels

VERSIONS = {"MassTransit": "8.5.8", "EasyNetQ": "8.1.5", "Rebus.RabbitMq": "10.1.0",
            "Brighter": "10", "NServiceBus.RabbitMQ": "11.2.1"}


@pytest.fixture
def replayed(checked):
    def row(name, *what):
        checked(f"{name} (replayed)", VERSIONS[name], *what)

    return row


def test_masstransit(client, replayed):
    """UseDelayedMessageScheduler(): ADDRESS_delay, bound to the exchange of the endpoint, a fanout."""
    endpoint = client.exchange("fanout", name="orders")
    queue = client.queue((endpoint, ""), name="orders")
    delay = client.delayed("fanout", name="orders_delay")
    client.channel.exchange_bind(endpoint, delay, "")
    published = client.publish(
        delay, "", b"{}", headers={"x-delay": wire.signed_long(1500),
                                   "MT-Activity-Id": "00-a-b-00", "publishId": "1"},
        content_type="application/vnd.masstransit+json", message_id="1", correlation_id="2")
    delivery = client.one(queue)
    assert_on_time(delivery, published, 1500)
    assert delivery.headers["x-delay"] == -1500
    assert isinstance(delivery.headers["x-delay"], wire.Long)
    replayed("MassTransit", "delay")


def test_masstransit_schedules_again_what_it_received(client, replayed):
    """Redelivery: a new message with the headers of the old one, and a delay of its own."""
    endpoint = client.exchange("fanout", name="orders")
    queue = client.queue((endpoint, ""), name="orders")
    delay = client.delayed("fanout", name="orders_delay")
    client.channel.exchange_bind(endpoint, delay, "")
    client.publish(delay, "", b"{}", headers={"x-delay": wire.signed_long(1)})
    first = client.one(queue)
    published = client.publish(delay, "", first.body, headers={
        **first.headers, "MT-Redelivery-Count": 1, "x-delay": wire.signed_long(1200)})
    assert_on_time(client.one(queue), published, 1200)
    replayed("MassTransit", "redelivery")


def test_easynetq(client, replayed):
    """FuturePublish with the delayed exchange's scheduler: EXCHANGE_delayed, of type direct, bound to
    EXCHANGE, a topic, by the topic."""
    exchange = client.exchange("topic", name="Orders, Shop")
    queue = client.queue((exchange, "#"), name="Orders, Shop_worker")
    delayed = client.delayed(name="Orders, Shop_delayed")
    client.channel.exchange_bind(exchange, delayed, "orders.new")
    published = client.publish(delayed, "orders.new", b"{}", type="Order, Shop", priority=0,
                               headers={"x-delay": wire.signed_int(1500)})
    delivery = client.one(queue)
    assert_on_time(delivery, published, 1500)
    assert delivery.properties.type == "Order, Shop"
    replayed("EasyNetQ", "delay")


def test_rebus(client, replayed):
    """Defer() with UseDelayedMessageExchange(): the recipient is the routing key, every header a
    string, the delay what is left of it when it is sent, which may be less than nothing."""
    exchange = client.delayed(name="RebusDelayed")
    queue = client.queue(name="receiver")
    client.channel.queue_bind(queue, exchange, queue)
    headers = {"rbs2-intent": b"p2p", "rbs2-msg-id": b"1", "rbs2-content-type": b"application/json"}
    late = client.publish(exchange, queue, b"late", headers={**headers, "x-delay": "1500"})
    client.publish(exchange, queue, b"at once", headers={**headers, "x-delay": "-3"})
    at_once, delivery = client.collect(queue, 2)
    assert (at_once.text, delivery.text) == ("at once", "late")
    assert_on_time(delivery, late, 1500)
    # It reads headers that are strings.
    assert (at_once.headers["x-delay"], delivery.headers["x-delay"]) == ("-3", "-1500")
    replayed("Rebus.RabbitMq", "delay")


def test_brighter(client, replayed):
    """An exchange with supportDelay. The delay is sent as a double; of one that comes back, Brighter
    reads an int or a long, and takes anything else for none."""
    exchange = client.delayed(name="paramore.brighter.exchange")
    queue = client.queue((exchange, "greeting"), name="paramore.greeting")
    published = client.publish(
        exchange, "greeting", b"{}", type="text/plain", content_type="text/plain", message_id="1",
        headers={"x-delay": wire.double_float(1500.0), "HandledCount": 0, "Topic": "greeting",
                 "cloudEvents_specversion": "1.0"})
    delivery = client.one(queue)
    assert_on_time(delivery, published, 1500)
    assert delivery.headers["x-delay"] == -1500
    assert isinstance(delivery.headers["x-delay"], wire.Long)
    replayed("Brighter", "delay")


def test_nservicebus(client, replayed):
    """It has a ladder of its own and no setting for another exchange; beside this plugin it works."""
    queue = client.queue(name="shop")
    binary_levels(client, lambda level: f"nsb.v2.delay-level-{level:02}", "nsb.v2.delay-delivery")
    client.channel.exchange_bind(client.exchange("fanout", name="shop"), "nsb.v2.delay-delivery",
                                 "#.shop")
    client.channel.queue_bind(queue, "shop", "")
    published = client.publish("nsb.v2.delay-level-01", binary_key(2, "shop"), b"{}", headers={
        "NServiceBus.Transport.RabbitMQ.DelayInSeconds": 2})
    assert_on_time(client.one(queue), published, 2000)
    replayed("NServiceBus.RabbitMQ", "its own ladder")
