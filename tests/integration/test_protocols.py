# SPDX-License-Identifier: MPL-2.0
"""Delays over the other protocols that the broker speaks, with a client of each."""

import json
import socket
import struct
import time

import pytest

import wire
from client import Client, assert_on_time
from conftest import PLUGIN
from management import Management, eventually
from private_broker import default_series
from programs import execute, run

OLD = default_series() == "3.10"
MQTT_EXCHANGE = "mqtt.delayed"


@pytest.fixture(scope="module")
def protocols(brokers):
    """A broker that speaks all of them; its MQTT topics go through a delayed exchange."""
    broker = brokers("protocols", conf=[f"mqtt.exchange = {MQTT_EXCHANGE}"],
                     enable=(PLUGIN, "rabbitmq_amqp1_0", "rabbitmq_mqtt", "rabbitmq_stomp",
                             "rabbitmq_shovel", "rabbitmq_management"))
    client = Client(broker)
    client.delayed("topic", name=MQTT_EXCHANGE, keep=True)
    client.close()
    return broker


@pytest.fixture
def client(protocols):
    client = Client(protocols)
    yield client
    client.close()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_amqp_1_0(protocols, client, node_modules, kind):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-queue-type": kind})
    target, source = ((f"/exchange/{exchange}/k", f"/amq/queue/{queue}") if OLD else
                      (f"/exchanges/{exchange}/k", f"/queues/{queue}"))
    run("node", "amqp10_client.js", str(protocols.amqp_port), target, source)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_retries_of_amqp_1_0(protocols, client, node_modules, kind):
    parked = client.queue()
    exchange = client.delayed(arguments={
        "x-delay-retry": "1ms,1ms", "x-delay-retry-parking-exchange": "",
        "x-delay-retry-parking-routing-key": parked})
    queue = client.queue(arguments={"x-queue-type": kind, "x-dead-letter-exchange": exchange})
    target, source, place = (
        (f"/amq/queue/{queue}", f"/amq/queue/{queue}", f"/amq/queue/{parked}") if OLD else
        (f"/queues/{queue}", f"/queues/{queue}", f"/queues/{parked}"))
    run("node", "amqp10_retry.js", str(protocols.amqp_port), target, source, place,
        "false" if OLD else "true")


@pytest.mark.skipif(OLD, reason="RabbitMQ 3.10 takes no annotations with an outcome")
def test_a_consumer_chooses_when_a_message_comes_back(protocols, client, node_modules):
    exchange = client.delayed()
    queue = client.queue((exchange, "work"), arguments={
        "x-queue-type": "quorum", "x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": "work"})
    said = execute("node", "amqp10_retry_after.js", str(protocols.amqp_port), f"/exchanges/{exchange}/work",
               f"/queues/{queue}")
    came = [[int(ms) for ms in line.split()] for line in said.split("\n") if line]
    assert len(came) == 4
    assert all(at >= due for at, due in came)
    assert client.depth(queue) == 0


def test_what_a_shovel_brings_over_amqp_1_0(protocols, client):
    """It makes application properties of headers. Brought a second time, it is not delayed again."""
    exchange, queue = client.delayed_and_queue()
    source = client.queue()
    protocols.ctl("set_parameter", "shovel", source, json.dumps({
        "src-protocol": "amqp091", "src-uri": protocols.amqp_url, "src-queue": source,
        "dest-protocol": "amqp10", "dest-uri": protocols.amqp_url.removesuffix("/%2F"),
        "dest-address": f"/exchange{'' if OLD else 's'}/{exchange}/k"}))
    try:
        published = client.publish("", source, b"later", headers={"x-delay": wire.signed_long(1500),
                                                                  "kept": "yes"})
        delivery = client.one(queue)
        assert_on_time(delivery, published, 1500)
        if OLD:
            # RabbitMQ 3.10 shows AMQP 0-9-1 the sections of AMQP 1.0 as bytes.
            assert (b"x-delay\x81" + struct.pack(">q", -1500)
                    in delivery.headers["x-amqp-1.0-message-annotations"])
        else:
            assert (delivery.headers["kept"], delivery.headers["x-delay"]) == ("yes", -1500)
        client.publish("", source, b"again", headers=delivery.headers)
        client.publish("", source, b"after it", headers={"x-delay": 300})
        assert client.texts(queue, 2) == ["again", "after it"]
    finally:
        protocols.ctl("clear_parameter", "shovel", source)


@pytest.mark.parametrize("version", ["4", pytest.param("5", marks=pytest.mark.skipif(
    OLD, reason="RabbitMQ 3.10 does not speak MQTT 5"))])
def test_mqtt(protocols, node_modules, version):
    before = len(protocols.log())
    run("node", "mqtt_client.js", str(protocols.plugin_ports["rabbitmq_mqtt"]), version,
        protocols.amqp_url, MQTT_EXCHANGE)
    if version == "5":
        eventually(lambda: 'header x-delay is the string "soon"' in protocols.log()[before:], bool)


@pytest.mark.skipif(OLD, reason="RabbitMQ 3.10 does not speak MQTT 5")
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_delay_in_an_mqtt_5_user_property_stays_a_string(protocols, client, kind):
    queue = client.queue((MQTT_EXCHANGE, "strings.#"), arguments={"x-queue-type": kind})
    with socket.create_connection(("127.0.0.1", protocols.plugin_ports["rabbitmq_mqtt"])) as mqtt:
        def text(value):
            return struct.pack(">H", len(value)) + value

        def send(kind, body):
            mqtt.sendall(bytes([kind, len(body)]) + body)

        send(0x10, text(b"MQTT") + b"\x05\xc2\x00\x3c\x00" + text(b"strings") + text(b"guest")
             + text(b"guest"))
        assert mqtt.recv(2)[0] == 0x20
        for value in (b"300", b"-300", b" 700 "):
            properties = b"\x26" + text(b"x-delay") + text(value)
            send(0x30, text(b"strings/a") + bytes([len(properties)]) + properties + value)
        got = {delivery.text: delivery.headers["x-delay"] for delivery in client.collect(queue, 3)}
    assert got == {"300": "-300", "-300": "-300", " 700 ": "-700"}


def test_stomp(protocols, client, node_modules):
    exchange, queue = client.delayed_and_queue()
    run("node", "stomp_client.js", str(protocols.plugin_ports["rabbitmq_stomp"]), exchange,
        queue)


def test_the_http_api(protocols, client):
    exchange, queue = client.delayed_and_queue()
    management = Management(protocols)

    def publish(body, headers):
        return management.request("POST", f"exchanges/%2F/{exchange}/publish", {
            "routing_key": "k", "payload": body, "payload_encoding": "string",
            "properties": {"headers": headers, "delivery_mode": 2}})

    began = time.monotonic()
    assert publish("later", {"x-delay": 600}) == (200, {"routed": True})
    assert publish("now", {}) == (200, {"routed": True})
    now, later = client.collect(queue, 2)
    assert (now.text, later.text) == ("now", "later") and later.at - began >= 0.6
    status, answer = publish("never", {"x-delay": "soon"})
    assert status == 400
    assert 'header x-delay is the string "soon", not a number of milliseconds' in answer["reason"]


def test_a_topic_exchange_that_feeds_a_delayed_one(client):
    exchange, queue = client.delayed_and_queue("topic")
    client.channel.exchange_bind(exchange, "amq.topic", "k")
    published = client.publish("amq.topic", "k", b"later", delay=500)
    client.publish("amq.topic", "k", b"now")
    now, later = client.collect(queue, 2)
    assert (now.text, later.text) == ("now", "later")
    assert later.at - published >= 0.5
