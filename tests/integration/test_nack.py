# SPDX-License-Identifier: MPL-2.0
"""Delayed exchanges that refuse a message whose delay cannot be used alone, with a nack."""

import contextlib
import re
import socket
import struct
import time

import pika
import pika.exceptions
import pytest

import wire
from client import Client, closes_channel
from conftest import PLUGIN
from management import WITHIN, Management, eventually
from metrics import Metrics
from node import HOUR_MS
from private_broker import default_series
from programs import run
from test_delay_header import BEYOND, NOT_NUMBERS

OLD = default_series() == "3.10"
MQTT_EXCHANGE = "mqtt.delayed"
NACK = {"x-delay-unusable": "nack"}


@pytest.fixture(scope="module")
def broker(brokers):
    """A broker that speaks every protocol; its MQTT topics go through an exchange that nacks."""
    broker = brokers("nacks", conf=[f"mqtt.exchange = {MQTT_EXCHANGE}"],
                     enable=(PLUGIN, "rabbitmq_amqp1_0", "rabbitmq_mqtt", "rabbitmq_stomp",
                             "rabbitmq_management", "rabbitmq_prometheus"))
    client = Client(broker)
    client.delayed("topic", name=MQTT_EXCHANGE, keep=True, arguments=NACK)
    client.close()
    # Our figures are there some moments after the endpoint is.
    eventually(lambda: Metrics(broker, "metrics/per-object").get("rabbitmq_delayed_up"),
               lambda up: up == 1)
    yield broker
    broker.end()


def nacking(client, kind="direct", **arguments):
    """A delayed exchange that nacks, and a queue bound to it with the key "k"."""
    return client.delayed_and_queue(kind, arguments={**NACK, **arguments})


def figures(broker, exchange):
    """What was counted of refusals: for the delay, for other reasons, and of what nobody heard of."""
    now = Metrics(broker, "metrics/per-object").of(exchange)
    return tuple(now.get(f"messages_{name}_total") for name in ("unusable", "rejected", "dropped"))


def refused_by_the_log(broker, exchange):
    """How many refusals each line of the log about them tells of, and the lines."""
    lines = re.findall(rf"cannot delay a message published to exchange '{exchange}' .*", broker.log())
    return [int(re.search(r"refused (\d+) such", line).group(1)) for line in lines], lines


def test_of_a_thousand_in_a_pipeline_the_bad_one_alone_is_nacked(client, broker):
    exchange, queue = nacking(client)
    bodies = [f"{n:03}" for n in range(1000)]
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", bodies, window=1000, headers=lambda n: {
            "x-delay": "soon" if n == 500 else wire.signed_int(1 + n % 300)})
        assert publisher.refused == {501}
        assert publisher.confirmed == set(range(1, 1001)) - {501}
    got = [delivery.text for delivery in client.collect(queue, 999)]
    assert sorted(got) == bodies[:500] + bodies[501:]
    assert client.texts_until_marker(queue) == []
    assert figures(broker, exchange) == (1, 0, 0)


def test_everything_that_cannot_be_used_is_nacked_and_nothing_else(client, broker):
    exchange, queue = nacking(client)
    now = int(time.time() * 1000)
    bad = ([{"x-delay": value} for _, value in BEYOND + NOT_NUMBERS]
           + [{"x-opt-delivery-delay": "5s"}, {"x-opt-delivery-time": int(time.time())},
              {"x-opt-delivery-time": wire.single_float(now + 60000.0)}])
    good = [{}, {"x-delay": 1}, {"x-delay": None}, {"x-delay": -5}, {"x-delay": "3"},
            {"x-opt-delivery-time": wire.signed_long(now)}]
    mixed = [headers for pair in zip(bad, good * len(bad)) for headers in pair]
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [str(n) for n in range(len(mixed))], headers=mixed.__getitem__)
        assert publisher.refused == set(range(1, len(mixed), 2))
    got = [int(delivery.text) for delivery in client.collect(queue, len(bad))]
    assert sorted(got) == list(range(1, len(mixed), 2))
    assert client.texts_until_marker(queue) == []
    assert figures(broker, exchange) == (len(bad), 0, 0)


def test_mandatory_it_is_nacked_and_not_returned(client):
    exchange, queue = nacking(client)
    with pytest.raises(pika.exceptions.NackError):
        client.publish(exchange, delay="soon", mandatory=True)
    # Nor where a message without a delay would be returned.
    with pytest.raises(pika.exceptions.NackError):
        client.publish(exchange, "nowhere", delay="soon", mandatory=True)
    assert client.confirming.is_open
    assert client.texts_until_marker(queue) == []


def test_from_a_publisher_without_confirms_it_is_dropped(client, broker):
    exchange, queue = nacking(client)
    channel = client.connection.channel()
    for delay in (1, "soon", 2):
        channel.basic_publish(exchange, "k", str(delay).encode(),
                              pika.BasicProperties(headers={"x-delay": delay}), mandatory=True)
    assert sorted(client.texts(queue, 2)) == ["1", "2"]
    eventually(lambda: figures(broker, exchange), lambda counts: counts == (1, 0, 0))
    assert channel.is_open
    assert client.texts_until_marker(queue) == []


def test_a_transaction_with_one_fails(client):
    exchange, queue = nacking(client)
    channel = client.connection.channel()
    channel.tx_select()
    for delay in (1, "soon"):
        channel.basic_publish(exchange, "k", str(delay).encode(),
                              pika.BasicProperties(headers={"x-delay": delay}))
    code, text = closes_channel(channel.tx_commit)
    assert (code, "partial tx completion" in text) == (406, True)
    # The broker's transactions are not undone.
    assert client.texts(queue, 1) == ["1"]
    assert client.texts_until_marker(queue) == []


def test_its_copies_go_nowhere(client):
    exchange, queue = nacking(client)
    other = client.queue((exchange, "cc"), (exchange, "bcc"))
    with pytest.raises(pika.exceptions.NackError):
        client.publish(exchange, headers={"x-delay": "soon", "CC": ["cc"], "BCC": ["bcc"]})
    assert client.texts_until_marker(queue) == client.texts_until_marker(other) == []


@pytest.mark.parametrize("way", ["by a binding", "as an alternate exchange"])
def test_what_comes_by_another_exchange_is_nacked(client, way):
    """It is its publisher's all the same. Another queue that it is routed to has it."""
    exchange, queue = nacking(client)
    if way == "by a binding":
        source = client.exchange("topic")
        client.channel.exchange_bind(exchange, source, "k")
        other = client.queue((source, "k"))
    else:
        source, other = client.exchange("direct", arguments={"alternate-exchange": exchange}), None
    with pytest.raises(pika.exceptions.NackError):
        client.publish(source, body=b"bad", delay="soon")
    assert client.confirming.is_open
    assert client.texts_until_marker(queue) == []
    assert other is None or client.texts_until_marker(other) == ["bad"]
    client.publish(source, body=b"good", delay=1)
    assert client.texts(queue, 1) == ["good"]


QUEUES = [pytest.param({}, id="classic"),
          pytest.param({"x-queue-type": "quorum"}, id="quorum"),
          pytest.param({"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once",
                        "x-overflow": "reject-publish"}, id="quorum, at least once")]


@pytest.mark.parametrize("arguments", QUEUES)
def test_a_dead_letter_is_routed_at_once(client, broker, arguments):
    """Nobody would be told, and a worker that dead-letters at least once would try for ever."""
    exchange, queue = nacking(client)
    dying = client.queue(arguments={**arguments, "x-message-ttl": 1, "x-dead-letter-exchange": exchange,
                                    "x-dead-letter-routing-key": "k"})
    client.publish("", dying, b"odd", delay="soon")
    assert client.texts(queue, 1) == ["odd"]
    client.publish("", dying, b"delayed", delay=1)
    assert client.texts(queue, 1) == ["delayed"]
    assert client.depth(dying) == 0
    assert figures(broker, exchange) == (0, 0, 0)


@pytest.mark.parametrize("arguments", QUEUES)
def test_an_exchange_that_retries_brings_dead_letters_back_and_nacks_publishers(
        client, broker, arguments):
    exchange = client.delayed(arguments={**NACK, "x-delay-retry": "1ms,1ms,1ms"})
    working = client.queue((exchange, "k"), arguments={**arguments, "x-dead-letter-exchange": exchange})
    client.publish("", working, b"failing", delay="soon")
    channel = client.connection.channel()
    channel.basic_qos(prefetch_count=1)
    seen = []

    def on_message(_channel, method, properties, _body):
        seen.append(properties.headers["x-delay"])
        if len(seen) < 4:
            channel.basic_reject(method.delivery_tag, requeue=False)
        else:
            channel.basic_ack(method.delivery_tag)
            channel.stop_consuming()

    timer = client.connection.call_later(WITHIN, channel.stop_consuming)
    channel.basic_consume(working, on_message)
    channel.start_consuming()
    client.connection.remove_timeout(timer)
    channel.close()
    assert seen == ["soon"] * 4
    with pytest.raises(pika.exceptions.NackError):
        client.publish(exchange, delay="soon")
    assert figures(broker, exchange) == (1, 0, 0)
    assert client.texts_until_marker(working) == []


def test_a_message_that_cancels_is_taken_whatever_it_says_of_a_delay(client, broker):
    exchange, queue = nacking(client)
    client.publish(exchange, headers={"x-delay": HOUR_MS, "x-delay-key": "a"})
    client.publish(exchange, headers={"x-delay": "soon", "x-delay-cancel": "a"})
    now = Metrics(broker, "metrics/per-object").of(exchange)
    assert (now["messages_cancelled_total"], now["messages_unusable_total"]) == (1, 0)


def test_a_full_exchange_nacks_both_and_counts_each_for_what_it_is(client, broker):
    exchange, _ = nacking(client, **{"x-delay-max-length": 1})
    client.publish(exchange, delay=HOUR_MS)
    for delay in ("soon", HOUR_MS):
        with pytest.raises(pika.exceptions.NackError):
            client.publish(exchange, delay=delay)
    assert figures(broker, exchange) == (1, 1, 0)


def test_the_log_says_why_in_the_words_of_the_channel_error_and_is_not_filled(client, broker):
    exchange, _ = nacking(client)
    began = time.monotonic()
    with wire.Publisher(broker) as publisher:
        for _ in range(10):
            publisher.publish(exchange, "k", ["x"] * 50, headers={"x-delay": "5m"})
        assert len(publisher.refused) == 500
    refused, lines = eventually(lambda: refused_by_the_log(broker, exchange),
                                lambda told: sum(told[0]) == 500)
    assert len(refused) <= 2 + (time.monotonic() - began) / 10
    assert all('header x-delay is the string "5m", not a number of milliseconds' in line
               for line in lines)
    _, text = client.refusal(client.delayed(), delay="5m")
    assert text.partition(": ")[2] in lines[0]


# ------------------------------------------------------------------------------- protocols

def test_the_http_api(client, broker):
    exchange, queue = nacking(client)
    management = Management(broker)

    def publish(delay):
        return management.request("POST", f"exchanges/%2F/{exchange}/publish", {
            "routing_key": "k", "payload": "x", "payload_encoding": "string",
            "properties": {"headers": {"x-delay": delay}, "delivery_mode": 2}})

    status, answer = publish("soon")
    assert status == 400 and "rejected" in str(answer), answer
    assert publish(1) == (200, {"routed": True})
    assert client.texts(queue, 1) == ["x"]


def test_amqp_1_0(broker, client, node_modules):
    """On 3.10 there is no nack for it: its session ends, with the reason."""
    exchange, queue = nacking(client)
    target, source = ((f"/exchange/{exchange}/k", f"/amq/queue/{queue}") if OLD else
                      (f"/exchanges/{exchange}/k", f"/queues/{queue}"))
    run("node", "amqp10_nack.js", str(broker.amqp_port), target, source, "false" if OLD else "true")
    assert client.texts_until_marker(queue) == []
    assert figures(broker, exchange) == ((None, None, None) if OLD else (2, 0, 0))


@pytest.mark.parametrize("receipt", ["", "receipt:1\n"])
def test_stomp_has_no_nack_and_is_told_the_reason(client, broker, receipt):
    exchange, queue = nacking(client)
    with socket.create_connection(("127.0.0.1", broker.plugin_ports["rabbitmq_stomp"]),
                                  timeout=WITHIN) as stomp:
        stomp.sendall(b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0")
        assert stomp.recv(4096).startswith(b"CONNECTED")
        stomp.sendall(f"SEND\ndestination:/exchange/{exchange}/k\nx-delay:1\nreceipt:0\n\ngood\0".encode())
        answer = b""
        while b"RECEIPT" not in answer:
            answer += stomp.recv(4096)
        stomp.sendall(f"SEND\ndestination:/exchange/{exchange}/k\nx-delay:soon\n{receipt}\nbad\0".encode())
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := stomp.recv(4096):
                answer += data
    assert answer.lstrip().startswith(b"ERROR") and b'header x-delay is the string "soon"' in answer
    assert client.texts(queue, 1) == ["good"]


@pytest.mark.skipif(OLD, reason="RabbitMQ 3.10 does not speak MQTT 5")
def test_mqtt_5(client, broker):
    queue = client.queue((MQTT_EXCHANGE, "nacks.#"))
    with socket.create_connection(("127.0.0.1", broker.plugin_ports["rabbitmq_mqtt"]),
                                  timeout=WITHIN) as mqtt:
        def text(value):
            return struct.pack(">H", len(value)) + value

        def packet():
            kind, size = mqtt.recv(1)[0], mqtt.recv(1)[0]
            body = b""
            while len(body) < size:
                body += mqtt.recv(size - len(body))
            return kind, body

        def publish(delay, packet_id):
            properties = b"\x26" + text(b"x-delay") + text(delay)
            body = (text(b"nacks/a") + (struct.pack(">H", packet_id) if packet_id else b"")
                    + bytes([len(properties)]) + properties + delay)
            mqtt.sendall(bytes([0x32 if packet_id else 0x30, len(body)]) + body)

        connect = (text(b"MQTT") + b"\x05\xc2\x00\x00\x00" + text(b"nacks") + text(b"guest")
                   + text(b"guest"))
        mqtt.sendall(bytes([0x10, len(connect)]) + connect)
        assert packet()[0] == 0x20
        publish(b"soon", None)
        outcomes = {}
        for packet_id, delay in ((1, b"1"), (2, b"later"), (3, b"3")):
            publish(delay, packet_id)
        while len(outcomes) < 3:
            kind, body = packet()
            assert kind == 0x40
            outcomes[struct.unpack(">H", body[:2])[0]] = body[2] if len(body) > 2 else 0
        # 4.3 takes whatever a classic queue rejects for one message too many.
        assert outcomes == {1: 0, 2: 0x97 if default_series() == "4.3" else 0x83, 3: 0}
    assert sorted(client.texts(queue, 2)) == ["1", "3"]
    assert client.texts_until_marker(queue) == []
    assert figures(broker, MQTT_EXCHANGE) == (2, 0, 0)
