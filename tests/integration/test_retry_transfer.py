# SPDX-License-Identifier: MPL-2.0
"""Dead letters that wait for their retry, through export_delayed_messages and import_delayed_messages: they stay
what they are."""

import base64
import json
import time

import pytest

from management import eventually
from node import HOUR_MS
from test_retry import QUEUES, deaths, die, put_aside, retrying, working


def exported(broker, exchange):
    """The lines of an export, by the body."""
    file = broker.path(f"retries-{time.monotonic_ns()}")
    broker.ctl("export_delayed_messages", "--file", file, exchange)
    with open(file, encoding="utf-8") as f:
        lines = {base64.b64decode(line["body"]): line for line in map(json.loads, f)}
    return file, lines


@pytest.mark.parametrize("arguments", QUEUES)
def test_what_waits_goes_through_a_file_as_what_it_is(client, broker, management, arguments):
    """Released, it comes back to the queue that it died in, its attempts go on, and its key cancels it: on the
    same exchange, and on another one that has other settings and no bindings."""
    exchange, parked = retrying(client, "1h,1h")
    front = client.exchange("topic")
    queue = working(client, exchange, arguments)
    client.channel.queue_bind(queue, front, "orders.#")
    elsewhere = client.queue((exchange, "orders.new"))
    client.publish(front, "orders.new", b"retry", message_id="m", headers={"kept": "yes", "CC": ["orders.old"]},
                   priority=3)
    die(client, queue, 1)
    client.publish(exchange, "orders.new", b"plain", delay=HOUR_MS)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 2)
    file, lines = exported(broker, exchange)
    assert (lines[b"retry"]["format"], lines[b"retry"]["retry"]) == (2, True)
    assert lines[b"plain"]["format"] == 1 and "retry" not in lines[b"plain"]

    broker.ctl("purge_delayed_messages", exchange)
    other = client.delayed()
    for target in (exchange, other):
        told = broker.ctl("import_delayed_messages", "--file", file, "--exchange", target)
        assert "2 messages imported" in told, told
        again = broker.ctl("import_delayed_messages", "--file", file, "--exchange", target, "--skip-pending")
        assert "0 messages imported" in again, again
        _, imported = exported(broker, target)
        assert imported[b"retry"]["retry"] is True and "retry" not in imported[b"plain"]
        for line, before in ((imported[b"retry"], lines[b"retry"]), (imported[b"plain"], lines[b"plain"])):
            assert line["due"] == before["due"] and line["properties"] == before["properties"]
        broker.ctl("release_delayed_messages", target, "--all")
        (_, method, properties, body), = die(client, queue, 1)
        assert (method.exchange, method.routing_key, body) == (front, "orders.new", b"retry")
        assert (properties.headers["kept"], properties.message_id, properties.priority) == ("yes", "m", 3)
        assert deaths(properties.headers, queue) == {"rejected": 1}
        # Its second death counts on.
        eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
        client.publish(exchange, headers={"x-delay-cancel": "m"})
        eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)
    assert client.texts(elsewhere, 1) == ["plain"]
    assert client.depth(elsewhere) == client.depth(queue) == client.depth(parked) == 0


def test_attempts_go_on_after_an_import(client, broker, management):
    exchange, parked = retrying(client, "1h,1ms")
    queue = working(client, exchange)
    onwards = client.queue(arguments={"x-message-ttl": 1, "x-dead-letter-exchange": "",
                                      "x-dead-letter-routing-key": queue})
    client.publish("", onwards, b"m")
    die(client, queue, 1)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    file, _ = exported(broker, exchange)
    broker.ctl("purge_delayed_messages", exchange)
    broker.ctl("import_delayed_messages", "--file", file)
    broker.ctl("release_delayed_messages", exchange, "--all")
    got = die(client, queue, 2)
    assert [deaths(properties.headers, queue) for _, _, properties, _ in got] == [{"rejected": 1}, {"rejected": 2}]
    delivery = client.one(parked)
    assert put_aside(delivery) == ("attempts_used_up", queue, 3)
    assert deaths(delivery.headers, onwards) == {"expired": 1}


def test_a_retry_that_cannot_go_back_is_refused_or_parked(client, broker, management):
    exchange, parked = retrying(client, "1h")
    queue = working(client, exchange)
    client.publish("", queue, b"m")
    die(client, queue, 1)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    file, lines = exported(broker, exchange)
    line = lines[b"m"]
    for bad, complaint in (({**line, "retry": False}, "retry"), ({**line, "headers": []}, "x-death"),
                           ({key: value for key, value in line.items() if key != "retry"}, "retry")):
        with open(broker.path("bad"), "w", encoding="utf-8") as f:
            f.write(json.dumps(bad) + "\n")
        told = broker.ctl("import_delayed_messages", "--file", broker.path("bad"), check=False)
        assert told.returncode == 65 and complaint in told.stderr, told
    assert management.messages_delayed(exchange) == 1
    broker.ctl("purge_delayed_messages", exchange)
    client.channel.queue_delete(queue)
    # Due already: it is parked, as it would have been.
    with open(file, "w", encoding="utf-8") as f:
        f.write(json.dumps({**line, "due": 1000}) + "\n")
    broker.ctl("import_delayed_messages", "--file", file)
    assert put_aside(client.one(parked)) == ("queue_gone", queue, 1)


def test_a_retry_is_not_taken_where_there_is_no_room(client, broker, management):
    exchange, _ = retrying(client, "1h")
    queue = working(client, exchange)
    client.publish("", queue, b"m")
    die(client, queue, 1)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    file, _ = exported(broker, exchange)
    full = client.delayed(arguments={"x-delay-max-length": 1})
    client.publish(full, "k", b"there", delay=HOUR_MS)
    told = broker.ctl("import_delayed_messages", "--file", file, "--exchange", full, check=False)
    assert told.returncode == 69 and "does not take messages" in told.stderr, told
    assert management.messages_delayed(full) == 1 and management.messages_delayed(exchange) == 1
