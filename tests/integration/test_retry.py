# SPDX-License-Identifier: MPL-2.0
"""Retry with backoff: dead letters that come back to the queue they died in, and are parked when
their attempts are used up."""

import contextlib
import time

import pika
import pika.exceptions
import pytest

import wire
from client import Client, closes_channel
from management import Management, eventually, quoted
from node import evaluate

QUEUES = [pytest.param({}, id="classic"),
          pytest.param({"x-queue-type": "quorum"}, id="quorum"),
          pytest.param({"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once",
                        "x-overflow": "reject-publish"}, id="quorum, at least once")]


def retrying(client, schedule="5ms", parked=True, **settings):
    """A delayed exchange that retries, and the queue where it parks, if so."""
    arguments = {"x-delay-retry": schedule} if schedule else {}
    arguments.update({f"x-delay-retry-{name.replace('_', '-')}": value
                      for name, value in settings.items()})
    queue = None
    if parked:
        queue = client.queue()
        arguments.update({"x-delay-retry-parking-exchange": "",
                          "x-delay-retry-parking-routing-key": queue})
    return client.delayed(arguments=arguments), queue


def working(client, exchange, arguments=None, **options):
    """A queue that dead-letters to the exchange."""
    return client.queue(arguments={"x-dead-letter-exchange": exchange, **(arguments or {})},
                        **options)


def die(client, queue, n, requeue=False, within=60):
    """Rejects the first n deliveries of the queue; answers them."""
    got = []
    channel = client.connection.channel()
    channel.basic_qos(prefetch_count=1)

    def on_message(_channel, method, properties, body):
        got.append((time.monotonic(), method, properties, body))
        channel.basic_reject(method.delivery_tag, requeue=requeue)
        if len(got) == n:
            channel.stop_consuming()

    timer = client.connection.call_later(within, channel.stop_consuming)
    channel.basic_consume(queue, on_message)
    channel.start_consuming()
    client.connection.remove_timeout(timer)
    channel.close()
    assert len(got) == n, f"{len(got)} of {n} came within {within} s"
    return got


def deaths(headers, queue):
    """How often it died in the queue, by reason."""
    return {death["reason"]: death["count"] for death in headers.get("x-death", [])
            if death["queue"] == queue}


def put_aside(delivery):
    """Why it was parked, in which queue it had died, and how often."""
    return (delivery.headers["x-delay-death-reason"], delivery.headers["x-delay-death-queue"],
            delivery.headers["x-delay-death-count"])


def figure(broker, exchange, name):
    return int(evaluate(broker, f"maps:get({name}, rabbit_delay_counters:read("
                                f"rabbit_delay_registry:counters(rabbit_misc:r("
                                f'<<"/">>, exchange, <<"{exchange}">>)))).'))


# ------------------------------------------------------------------------ back to the queue

@pytest.mark.parametrize("arguments", QUEUES)
def test_a_rejected_message_comes_back_until_its_attempts_are_used_up(client, broker, arguments):
    exchange, parked = retrying(client, "20ms, 40ms,80ms")
    front = client.exchange("topic")
    queue = working(client, exchange, arguments)
    client.channel.queue_bind(queue, front, "orders.#")
    other = client.queue((front, "orders.#"))
    before = time.time() * 1000
    client.publish(front, "orders.new", b"poison", headers={"kept": "yes"}, message_id="m",
                   priority=3)
    got = die(client, queue, 4)
    for n, (_, method, properties, body) in enumerate(got):
        assert (method.exchange, method.routing_key, body) == (front, "orders.new", b"poison")
        assert (properties.headers["kept"], properties.message_id, properties.priority) == (
            "yes", "m", 3)
        assert deaths(properties.headers, queue) == ({"rejected": n} if n else {})
    pauses = [later[0] - sooner[0] for sooner, later in zip(got, got[1:])]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08))), pauses
    delivery = client.one(parked)
    assert put_aside(delivery) == ("attempts_used_up", queue, 4)
    assert delivery.headers["x-delay-death-exchange"] == exchange
    assert before <= delivery.headers["x-delay-death-time"] <= time.time() * 1000
    assert delivery.headers["x-death"][0]["count"] == 4
    assert delivery.headers["kept"] == "yes" and delivery.text == "poison"
    assert client.texts(other, 1) == ["poison"]
    assert client.texts_until_marker(other) == []
    eventually(lambda: [figure(broker, exchange, name) for name in (
        "returned", "parked", "released", "unroutable")], lambda now: now == [3, 1, 0, 0])


@pytest.mark.parametrize("kind", [
    pytest.param({}, id="classic"), pytest.param({"x-queue-type": "quorum"}, id="quorum")])
@pytest.mark.parametrize("reason, arguments", [
    ("rejected", {}), ("expired", {"x-message-ttl": 1}), ("maxlen", {"x-max-length": 0})])
def test_fifty_rounds(client, reason, arguments, kind):
    """The broker drops what goes in a circle by itself; here it goes round all the same."""
    exchange, parked = retrying(client, "1ms", attempts=50, reasons=reason)
    queue = working(client, exchange, {**kind, **arguments})
    client.publish("", queue, b"round")
    if reason == "rejected":
        die(client, queue, 51)
    delivery = client.one(parked, within=60)
    assert deaths(delivery.headers, queue) == {reason: 51}
    assert put_aside(delivery) == ("attempts_used_up", queue, 51)


def test_fifty_rounds_of_the_delivery_limit(client):
    exchange, parked = retrying(client, "1ms", attempts=50)
    queue = working(client, exchange, {"x-queue-type": "quorum", "x-delivery-limit": 1})
    client.publish("", queue, b"round")
    got = die(client, queue, 102, requeue=True)
    assert all("x-delivery-count" not in properties.headers for _, _, properties, _ in got[::2])
    delivery = client.one(parked, within=60)
    assert deaths(delivery.headers, queue) == {"delivery_limit": 51}
    assert not delivery.headers.get("x-delivery-count")
