# SPDX-License-Identifier: MPL-2.0
"""export_delayed_messages and import_delayed_messages: a file takes what is pending to another broker,
each message due when it was."""

import base64
import datetime
import decimal
import json
import os
import re
import signal
import time

import pytest

from client import Client, assert_on_time
from conftest import PLUGIN
from management import eventually
from node import evaluate, halt_beyond, sync_metadata
from official import resource

HOUR = 3600_000
EVERY_TYPE = {"text": "é", "bytes": b"\xff\x00", "int": -5, "long": 2 ** 40, "float": 1.5,
              "yes": True, "none": None, "list": [1, "a", [True]], "table": {"deep": {"er": 1}},
              "when": datetime.datetime(2026, 1, 1), "decimal": decimal.Decimal("1.25")}


def export(broker, exchange, name, vhost="/", code=0):
    """The decoded lines."""
    file = broker.path(name)
    done = broker.ctl("export_delayed_messages", "--vhost", vhost, "--file", file, "--", exchange,
                      check=False)
    assert done.returncode == code, done
    if code:
        return done
    with open(file, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def put_in(broker, name, *options, code=0, vhost="/"):
    done = broker.ctl("import_delayed_messages", "--vhost", vhost, "--file", broker.path(name),
                      *options, check=False)
    assert done.returncode == code, done
    return done


def pending(broker, exchange):
    name = ",".join(map(str, exchange.encode()))
    return int(evaluate(broker, "rabbit_delay_registry:pending(rabbit_misc:r(<<\"/\">>, exchange, "
                                f"<<{name}>>))."))


def file_name():
    return f"lines-{time.monotonic_ns()}"


def test_there_and_back(client, broker):
    exchange = client.delayed("direct", name="späte \"x\"/'1'")
    queue = client.queue((exchange, "k"), (exchange, "copy"), (exchange, "hidden"))
    for n in range(30):
        client.publish(exchange, "k", os.urandom(50), delay=HOUR + n * 1000)
    client.publish(exchange, "k", b"full", delay=HOUR // 2, content_type="text/plain",
                   headers={**EVERY_TYPE, "CC": ["copy"], "BCC": ["hidden"]}, priority=4,
                   expiration="60000", message_id="id é", timestamp=1700000000, user_id="guest",
                   app_id="app", type="t", correlation_id="c", reply_to="r", content_encoding="e")
    first = file_name()
    lines = export(broker, exchange, first)
    assert len(lines) == 31 and pending(broker, exchange) == 31
    assert base64.b64decode(lines[0]["body"]) == b"full"
    assert [line["due"] for line in lines] == sorted(line["due"] for line in lines)

    client.channel.exchange_delete(exchange)
    client.channel.exchange_declare(exchange, "x-delayed-message", durable=True,
                                    arguments={"x-delayed-type": "direct"})
    for key in ("k", "copy", "hidden"):
        client.channel.queue_bind(queue, exchange, key)
    assert "31 messages imported" in put_in(broker, first).stdout
    again = export(broker, exchange, file_name())

    def bare(line):
        headers = sorted(header for header in line["headers"]
                         if header[0] not in ("x-delay", "x-opt-delivery-time"))
        return {**line, "id": None, "headers": headers, "routing_keys": sorted(line["routing_keys"])}

    assert [bare(line) for line in again] == [bare(line) for line in lines]
    # The first once more, due soon.
    began, soon = time.monotonic(), {**lines[0], "due": int(time.time() * 1000) + 8000}
    with open(broker.path(first), "w", encoding="utf-8") as f:
        f.write(json.dumps(soon) + "\n")
    put_in(broker, first)
    got = client.collect(queue, 1)
    assert_on_time(got[0], began, 8000)
    headers = dict(got[0].headers)
    assert headers.pop("x-delay") == -HOUR // 2
    assert headers.pop("x-opt-delivery-time") == soon["due"]
    assert headers.pop("CC") == ["copy"]
    assert headers == EVERY_TYPE
    properties = got[0].properties
    assert (properties.content_type, properties.priority, properties.message_id, properties.user_id,
            properties.expiration, properties.timestamp, properties.delivery_mode) == (
                "text/plain", 4, "id é", "guest", "60000", 1700000000, 2)


def test_into_another_exchange_and_what_is_overdue(client, broker):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, body=b"a", delay=HOUR)
    client.publish(exchange, body=b"b", delay=HOUR)
    name = file_name()
    lines = export(broker, exchange, name)
    other, queue = client.delayed_and_queue()
    lines[1]["due"] = 1000
    with open(broker.path(name), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    put_in(broker, name, "--exchange", other, "--from-line", "2")
    assert client.one(queue).text == "b"
    assert pending(broker, other) == 0
    put_in(broker, name, "--exchange", other)
    assert pending(broker, other) == 1


def test_what_is_not_such_a_file(client, broker):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, body=b"a", delay=HOUR)
    name = file_name()
    line, = export(broker, exchange, name)
    assert "there already" in export(broker, exchange, name, code=65).stderr
    with open(broker.path(name), encoding="utf-8") as f:
        good = f.read()
    for bad, complaint in [
            (good[:-20], "cut off"), ("\n", "cut off"), ("[]", "format"), ("{}", "format"),
            (json.dumps({**line, "format": 3}), "another format"),
            (json.dumps({**line, "body": "?"}), "body"),
            (json.dumps({**line, "due": -1}), "due"), (json.dumps({**line, "due": "soon"}), "due"),
            (json.dumps({**line, "routing_keys": []}), "routing_keys"),
            (json.dumps({**line, "routing_keys": ["k" * 256]}), "routing_keys"),
            (json.dumps({**line, "properties": {"priority": 256}}), "properties"),
            (json.dumps({**line, "properties": {"evil": "x"}}), "properties"),
            (json.dumps({**line, "headers": [["a", "signedint", 2 ** 31]]}), "headers"),
            (json.dumps({**line, "headers": [["a", "pid", "x"]]}), "headers"),
            (json.dumps({**line, "headers": [["a", "table", 7]]}), "headers"),
            (json.dumps({**line, "exchange": "none"}), "no delayed exchange"),
            (json.dumps({**line, "exchange": "amq.direct"}), "no delayed exchange")]:
        with open(broker.path(name), "w", encoding="utf-8") as f:
            f.write(good + bad)
        told = put_in(broker, name, code=65)
        assert complaint in told.stderr and "--from-line 1" in told.stderr, told
        # It says so of what is wrong in a line: nothing of its thousand is in.
        assert ("none from line 1 on" in told.stderr) == ("no delayed exchange" not in complaint), told
    # Nothing of a chunk with a bad line was published.
    assert pending(broker, exchange) == 1
    assert put_in(broker, "no such file", code=65)
    assert export(broker, "amq.direct", file_name(), code=65)
    assert export(broker, "none", file_name(), code=65)


def test_a_due_time_that_the_exchange_does_not_accept(client, broker):
    exchange = client.delayed(arguments={"x-delay-max": 1000})
    with open(broker.path("far"), "w", encoding="utf-8") as f:
        f.write(json.dumps({"format": 1, "exchange": exchange, "routing_keys": ["k"],
                            "due": int(time.time() * 1000) + HOUR, "properties": {}, "headers": [],
                            "body": ""}))
    assert "406" in put_in(broker, "far", code=65).stderr


def test_a_vhost_without_delayed_exchanges(broker, management):
    management.request("PUT", "vhosts/bare", {})
    assert "no delayed exchange" in export(broker, "x", file_name(), vhost="bare", code=65).stderr
    with open(broker.path("one"), "w", encoding="utf-8") as f:
        f.write(json.dumps({"format": 1, "exchange": "x", "due": 1, "routing_keys": ["k"],
                            "properties": {}, "headers": [], "body": ""}))
    assert "no delayed exchange" in put_in(broker, "one", vhost="bare", code=65).stderr
    management.request("DELETE", "vhosts/bare")


def test_an_exchange_that_delayed_nothing_yet(client, broker):
    assert export(broker, client.delayed("topic"), file_name()) == []


def start(broker, *arguments):
    return broker.start_tool("rabbitmqctl", *arguments)


@pytest.mark.parametrize("way", ["kill9", "stop"])
def test_the_broker_ends_in_the_middle(brokers, way):
    broker = brokers(f"transfer-{way}", enable=(PLUGIN,))
    client = Client(broker)
    exchange = client.delayed(keep=True)
    sync_metadata(broker)
    count = 30_000
    due = int(time.time() * 1000) + 24 * HOUR
    with open(broker.path("lines"), "w", encoding="utf-8") as f:
        for n in range(count):
            f.write(json.dumps({"format": 1, "exchange": exchange, "due": due + n,
                                "routing_keys": ["k"], "properties": {"delivery_mode": 2},
                                "headers": [], "body": base64.b64encode(b"m%d" % n).decode()}) + "\n")
    halt_beyond(broker, resource(exchange), 2000)
    command = start(broker, "import_delayed_messages", "--file", broker.path("lines"))
    eventually(lambda: pending(broker, exchange), lambda n: n > 2000)
    getattr(broker, way)()
    _, told = command.communicate(timeout=300)
    assert command.returncode == 69, told
    line = int(re.search(r"--from-line (\d+)", told).group(1))
    assert 1000 < line < count
    broker.start()
    put_in(broker, "lines", "--from-line", str(line))
    held = pending(broker, exchange)
    assert count <= held <= count + 1000

    command = start(broker, "export_delayed_messages", "--file", broker.path("out"), exchange)
    eventually(lambda: os.path.exists(broker.path("out.part")), bool, every=0.005)
    getattr(broker, way)()
    command.communicate(timeout=300)
    if command.returncode != 0:
        assert not os.path.exists(broker.path("out"))
    broker.start()
    bodies = [base64.b64decode(line["body"]) for line in export(broker, exchange, "whole")]
    assert len(bodies) == held and set(bodies) == {b"m%d" % n for n in range(count)}
    broker.end()


def test_an_export_that_is_ended_leaves_no_file(client, broker):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, body=b"a", delay=HOUR)
    file = broker.path(file_name())
    command = start(broker, "export_delayed_messages", "--file", file, exchange)
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate(timeout=300)
    assert not os.path.exists(file)
    assert len(export(broker, exchange, os.path.basename(file))) == 1
