# SPDX-License-Identifier: MPL-2.0
"""Other parts of the broker that meet a delayed exchange: dead letters, direct replies, STOMP,
permissions, limits, and policies and tools that do not know that some queues are not theirs."""

import socket
import uuid

import pika
import pika.exceptions
import pytest

from client import Client, assert_on_time, internal_queue
from management import eventually
from node import HOUR_MS
from private_broker import default_series


# ----------------------------------------------------------------------- dead letters

@pytest.mark.parametrize("arguments", [
    pytest.param({}, id="from a classic queue"),
    pytest.param({"x-queue-type": "quorum"}, id="from a quorum queue"),
    pytest.param({"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once",
                  "x-overflow": "reject-publish"}, id="from a quorum queue, at least once"),
])
def test_dead_letters_are_delayed(client, arguments):
    exchange, queue = client.delayed_and_queue()
    dying = client.queue(arguments={**arguments, "x-message-ttl": 100,
                                    "x-dead-letter-exchange": exchange,
                                    "x-dead-letter-routing-key": "k"})
    published = client.publish("", dying, b"dead", delay=700)
    delivery = client.one(queue)
    assert_on_time(delivery, published, 100 + 700)
    assert delivery.headers["x-delay"] == -700
    death, = delivery.headers["x-death"]
    assert (death["queue"], death["reason"]) == (dying, "expired")


def test_a_rejected_message_is_retried_after_its_delay(client):
    """The usual retry: a queue dead-letters into a delayed exchange bound to that queue."""
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-dead-letter-exchange": exchange,
                                                     "x-dead-letter-routing-key": "k"})
    channel = client.connection.channel()
    published = client.publish("", queue, b"retried", delay=500)
    eventually(lambda: client.depth(queue), lambda depth: depth == 1)
    method, _, _ = channel.basic_get(queue)
    channel.basic_reject(method.delivery_tag, requeue=False)
    delivery = client.one(queue)
    assert_on_time(delivery, published, 500)
    assert delivery.headers["x-death"][0]["reason"] == "rejected"


def test_a_dead_letter_with_an_unusable_delay_is_routed_at_once_and_harms_nothing(client):
    exchange, queue = client.delayed_and_queue()
    dying = client.queue(arguments={"x-message-ttl": 1, "x-dead-letter-exchange": exchange,
                                    "x-dead-letter-routing-key": "k"})
    client.publish("", dying, b"odd", delay="soon")
    assert client.texts(queue, 1) == ["odd"]
    client.publish("", dying, b"after it")
    assert client.texts(queue, 1) == ["after it"]


def test_a_message_that_expires_on_its_target_dead_letters_onwards(client):
    exchange = client.delayed()
    end = client.queue()
    client.queue((exchange, "k"), arguments={"x-message-ttl": 50, "x-dead-letter-exchange": "",
                                             "x-dead-letter-routing-key": end})
    published = client.publish(exchange, body=b"onwards", delay=400)
    assert_on_time(client.one(end), published, 450)


# --------------------------------------------------------------------- direct reply-to

def test_a_delayed_request_can_be_answered_directly(client, another_client):
    exchange, queue = client.delayed_and_queue()
    channel = client.connection.channel()
    replies = []
    channel.basic_consume("amq.rabbitmq.reply-to", lambda *reply: replies.append(reply[3]),
                          auto_ack=True)
    channel.basic_publish(exchange, "k", b"question", pika.BasicProperties(
        reply_to="amq.rabbitmq.reply-to", headers={"x-delay": 300}))
    request = another_client.one(queue)
    another_client.publish("", request.properties.reply_to, b"answer")

    def reply():
        client.connection.process_data_events(0.1)
        return replies

    assert eventually(reply, bool) == [b"answer"]


# ------------------------------------------------------------------------------- STOMP

def test_stomp_headers_are_strings_and_delay(client, broker):
    exchange, queue = client.delayed_and_queue()
    port = broker.plugin_ports["rabbitmq_stomp"]
    with socket.create_connection(("127.0.0.1", port), timeout=120) as stomp:
        stomp.sendall(b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0")
        assert stomp.recv(4096).startswith(b"CONNECTED")
        stomp.sendall(f"SEND\ndestination:/exchange/{exchange}/k\nx-delay:600\nreceipt:1\n\n"
                      "by STOMP\0".encode())
        delayed = client.one(queue)
        assert (delayed.text, int(delayed.headers["x-delay"])) == ("by STOMP", -600)
        answer = b""
        while b"RECEIPT" not in answer:
            answer += stomp.recv(4096)


# -------------------------------------------------------------- permissions and limits

def test_who_may_only_write_to_the_exchange_can_publish_with_a_delay(client, broker, management):
    exchange, queue = client.delayed_and_queue()
    user = f"u-{uuid.uuid4().hex[:8]}"
    assert management.request("PUT", f"users/{user}", {"password": "p", "tags": ""})[0] == 201
    assert management.request("PUT", f"permissions/%2F/{user}", {
        "configure": "", "write": f"^{exchange}$", "read": ""})[0] == 201
    try:
        writer = Client(broker, user=user, password="p")
        writer.publish(exchange, body=b"allowed", delay=300, user_id=user)
        delivery = client.one(queue)
        assert (delivery.text, delivery.properties.user_id) == ("allowed", user)
        writer.close()
    finally:
        management.request("DELETE", f"users/{user}")


def test_who_may_not_write_is_refused_at_once(client, broker, management):
    exchange, queue = client.delayed_and_queue()
    user = f"u-{uuid.uuid4().hex[:8]}"
    management.request("PUT", f"users/{user}", {"password": "p", "tags": ""})
    management.request("PUT", f"permissions/%2F/{user}",
                       {"configure": "", "write": "^other$", "read": ""})
    try:
        stranger = Client(broker, user=user, password="p")
        assert stranger.refusal(exchange, body=b"denied", delay=100)[0] == 403
        assert client.texts_until_marker(queue) == []
        stranger.close()
    finally:
        management.request("DELETE", f"users/{user}")


@pytest.fixture
def vhost(management):
    name = f"v-{uuid.uuid4().hex[:8]}"
    management.request("PUT", f"vhosts/{name}")
    management.request("PUT", f"permissions/{name}/guest",
                       {"configure": ".*", "write": ".*", "read": ".*"})
    yield name
    management.request("DELETE", f"vhosts/{name}")


def test_in_a_vhost_whose_queues_are_used_up_it_still_delays(broker, management, vhost):
    assert management.request("PUT", f"vhost-limits/{vhost}/max-queues", {"value": 1})[0] == 204
    client = Client(broker, vhost)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"delayed", delay=300)
    assert client.texts(queue, 1) == ["delayed"]
    client.close()


# -------------------------------------------- policies and tools meant for other queues

@pytest.mark.parametrize("kind, definition", [
    pytest.param("policies", {"ha-mode": "all", "ha-sync-mode": "automatic"},
                 marks=pytest.mark.skipif(default_series() != "3.10",
                                          reason="only 3.x mirrors classic queues")),
    ("policies", {"message-ttl": 1}),
    ("policies", {"expires": 100}),
    ("policies", {"max-length": 1, "overflow": "reject-publish"}),
    ("policies", {"max-length-bytes": 1}),
    ("policies", {"queue-mode": "lazy"}),
    ("policies", {"queue-version": 2}),
    ("policies", {"dead-letter-exchange": "amq.fanout", "message-ttl": 1}),
    ("operator-policies", {"message-ttl": 1, "expires": 100, "max-length": 1}),
], ids=lambda value: value if isinstance(value, str) else "+".join(value))
def test_a_policy_for_all_queues_does_not_touch_what_is_delayed(client, management, clock, kind,
                                                                definition):
    exchange = client.delayed()
    internal = internal_queue(exchange)
    client.publish(exchange, body=b"before", delay=HOUR_MS)
    path = f"{kind}/%2F/{exchange}"
    status, answer = management.request("PUT", path, {
        "pattern": f"^{internal}$".replace(".", "[.]"), "apply-to": "queues",
        "definition": definition})
    assert status == 201, answer
    try:
        queue = client.queue((exchange, "k"))
        client.publish(exchange, body=b"during", delay=HOUR_MS)
        clock(2 * HOUR_MS)
        assert client.texts(queue, 2) == ["before", "during"]
    finally:
        management.request("DELETE", path)
    client.publish(exchange, body=b"after", delay=200)
    assert client.texts(queue, 1) == ["after"]


@pytest.mark.parametrize("command", [
    ["rabbitmqctl", "purge_queue"], ["rabbitmqctl", "sync_queue"],
    ["rabbitmqctl", "cancel_sync_queue"],
    ["rabbitmqctl", "list_queues", "--local", "name", "state"],
    ["rabbitmq-queues", "rebalance", "all"],
    ["rabbitmq-queues", "check_if_node_is_mirror_sync_critical"],
    ["rabbitmq-diagnostics", "check_virtual_hosts"],
    ["rabbitmqctl", "close_all_connections", "--vhost", "no-such-vhost", "reason"],
], ids=lambda command: command[1])
def test_a_tool_used_on_everything_takes_nothing_away(client, broker, management, command):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"held", delay=HOUR_MS)
    tool, name, *rest = command
    on = [internal_queue(exchange)] if name.endswith("_queue") else rest
    broker.tool(tool, name, *on, check=False)
    assert management.messages_delayed(exchange) == 1
    client.publish(exchange, body=b"new", delay=100)
    assert client.texts(queue, 1) == ["new"]


def test_restarting_the_vhost_loses_nothing(client, broker, clock):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"held", delay=HOUR_MS)
    broker.ctl("close_all_connections", "about to restart the vhost")
    broker.ctl("restart_vhost", check=False)
    other = Client(broker)
    clock(2 * HOUR_MS)
    assert other.texts(queue, 1) == ["held"]
    other.publish(exchange, body=b"again", delay=100)
    assert other.texts(queue, 1) == ["again"]
    other.close()
