# SPDX-License-Identifier: MPL-2.0
"""What the commands have in common: several exchanges at once, progress, what went nowhere, and going on
after an end."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
import uuid

import pytest

from client import Client
from management import eventually
from node import HOUR_MS
from private_broker import PrivateBroker
from test_pending import BAD_DATA, counted, ids, refused
from test_transfer import export, file_name, pending, put_in


@pytest.fixture
def vhost(broker):
    """Of its own, with two messages pending on each of three exchanges."""
    name = f"v-{uuid.uuid4().hex[:8]}"
    broker.ctl("add_vhost", name)
    broker.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    client = Client(broker, name)
    for exchange in ("a-1", "a-2", "b"):
        client.delayed(name=exchange)
        for _ in range(2):
            client.publish(exchange, delay=HOUR_MS)
    yield name
    client.close()
    broker.ctl("delete_vhost", name)


def held(broker, vhost, column="messages_delayed"):
    return {row["name"]: row[column]
            for row in broker.rows("list_delayed_exchanges", "--vhost", vhost, "name", column)}


def test_a_process_that_did_not_start_the_broker_may_command_it(broker, vhost):
    said = PrivateBroker.attach(broker.root).ctl("--quiet", "list_delayed_exchanges", "--vhost", vhost,
                                                 "name")
    assert {"a-1", "a-2", "b"} <= set(said.split())


def test_several_exchanges_are_named_by_a_pattern_or_are_all_of_a_vhost(broker, vhost):
    there = ["--vhost", vhost]
    said = broker.ctl("--quiet", "purge_delayed_messages", *there, "--pattern", "^a-", "--dry-run")
    assert said.splitlines() == ["a-1: 2 messages would be cancelled", "a-2: 2 messages would be cancelled"]
    one, = ids(broker, "a-1", *there)[:1]
    assert broker.ctl("--quiet", "cancel_delayed_messages", *there, "a-1", one).strip() == f"{one}: cancelled"
    rows = broker.rows("purge_delayed_messages", *there, "--pattern", "^a-")
    assert [(row["exchange"], row["changed"]) for row in rows] == [("a-1", 1), ("a-2", 2)]
    assert held(broker, vhost) == {"a-1": 0, "a-2": 0, "b": 2}
    broker.ctl("pause_delayed_exchange", *there, "--pattern", "1|b")
    assert held(broker, vhost, "paused") == {"a-1": True, "a-2": False, "b": True}
    broker.ctl("resume_delayed_exchange", *there, "--all-exchanges")
    assert held(broker, vhost, "paused") == {"a-1": False, "a-2": False, "b": False}
    broker.ctl("reschedule_delayed_messages", *there, "--all-exchanges", "--all", "--by", "1h")
    said = broker.ctl("--quiet", "purge_delayed_messages", *there, "--all-exchanges")
    assert said.splitlines() == ["a-1: 0 messages cancelled", "a-2: 0 messages cancelled",
                                 "b: 2 messages cancelled"]
    assert held(broker, vhost) == {"a-1": 0, "a-2": 0, "b": 0}


@pytest.mark.parametrize("command, why", [
    (["purge_delayed_messages", "b", "--pattern", "b"], "either an exchange"),
    (["cancel_delayed_messages", "b", "1", "--all-exchanges"], "either an exchange"),
    (["purge_delayed_messages", "--pattern", "b", "--all-exchanges"], "either --pattern"),
    (["purge_delayed_messages", "--pattern", "("], "no regular expression"),
    (["purge_delayed_messages", "--pattern", "none of them"], "no such delayed exchange"),
    (["release_delayed_messages", "--all-exchanges"], "which messages"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_pattern_that_is_none_changes_nothing(broker, vhost, command, why):
    code, said = refused(broker, *command, "--vhost", vhost)
    assert code == BAD_DATA and why in said
    assert held(broker, vhost) == {"a-1": 2, "a-2": 2, "b": 2}


@pytest.mark.parametrize("command", [["list_delayed_exchanges"], ["list_delayed_exchanges", "--watch", "1s"],
                                     ["check_dead_lettering"], ["pause_delayed_exchange", "--all-exchanges"],
                                     ["list_delayed_messages", "b"], ["dead_letter_stats", "b"]], ids=" ".join)
def test_a_vhost_that_is_not_there_is_no_empty_one(broker, command):
    code, said = refused(broker, *command, "--vhost", "no such vhost")
    assert code == BAD_DATA and "no such vhost" in said, said


@pytest.mark.parametrize("command, told", [
    (["list_delayed_messages", "b", "--due-from", "fünf"], '"fünf" is not a time'),
    (["list_delayed_messages", "b", "--due-to", "x" * 100], f'"{"x" * 76}... is not a time'),
    (["list_delayed_messages", "b", "--header", "größe"], 'header: "größe" is not of the form name=value'),
    (["show_delayed_message", "b", "fünf"], '"fünf" is not the id of a message'),
    (["cancel_delayed_messages", "b", "1", "fünf"], '"fünf" is not the id of a message'),
    (["release_delayed_messages", "b", "1e3"], '"1e3" is not the id of a message'),
    (["reschedule_delayed_messages", "b", "--all", "--to", "fünf"], '"fünf" is not a time'),
    (["reschedule_delayed_messages", "b", "--all", "--by", "fünf"], '"fünf" is not an offset such as +90m'),
], ids=range(8))
def test_a_refusal_is_in_the_users_words(broker, vhost, command, told):
    code, said = refused(broker, *command, "--vhost", vhost)
    assert code == BAD_DATA and told in said and "<<" not in said, said
    assert held(broker, vhost) == {"a-1": 2, "a-2": 2, "b": 2}


def test_one_message_is_one_message(client, broker):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, delay=HOUR_MS)
    file = broker.path(file_name())
    assert "1 message exported" in broker.ctl("export_delayed_messages", "--file", file, exchange)
    assert "1 message would be cancelled" in broker.ctl("purge_delayed_messages", exchange, "--dry-run")
    assert "1 message cancelled" in broker.ctl("purge_delayed_messages", exchange)
    assert "1 message imported" in broker.ctl("import_delayed_messages", "--file", file)


# ---------------------------------------------------------------------------- to nowhere

def test_what_is_released_or_imported_to_nowhere_is_told(client, broker):
    exchange, queue = client.delayed_and_queue()
    for _ in range(3):
        client.publish(exchange, "unbound", delay=HOUR_MS)
    client.publish(exchange, "k", body=b"bound", delay=HOUR_MS)
    name = file_name()
    lines = export(broker, exchange, name)
    one = ids(broker, exchange, "--routing-key", "unbound")[0]
    said = broker.ctl("release_delayed_messages", exchange, one)
    assert f"1 message of exchange '{exchange}' was unroutable meanwhile" in said
    assert broker.rows("release_delayed_messages", exchange, "--all")["unroutable"] == 2
    assert client.texts(queue, 1) == ["bound"]
    with open(broker.path(name), "w", encoding="utf-8") as f:
        f.writelines(json.dumps({**line, "due": 1000}) + "\n" for line in lines)
    assert "4 messages imported, of which 3 due already and unroutable" in put_in(broker, name).stdout
    assert client.texts(queue, 1) == ["bound"]
    assert counted(broker, exchange, "unroutable") == 3
    client.publish(exchange, "k", body=b"bound", delay=HOUR_MS)
    assert "unroutable" not in broker.ctl("release_delayed_messages", exchange, "--all")
    assert client.texts(queue, 1) == ["bound"]


# ------------------------------------------------------------------------------ progress

def on_terminal(broker, *arguments):
    """The exit code and what stands on the terminal that is its standard error."""
    ours, its = pty.openpty()
    with subprocess.Popen(broker.tool_argv("rabbitmqctl", *arguments), env=broker.environment(),
                          cwd=broker.root, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=its) as command:
        os.close(its)
        said = b""
        with contextlib.suppress(OSError):
            while more := os.read(ours, 4096):
                said += more
        os.close(ours)
        return command.wait(300), said.decode()


def test_a_terminal_has_a_bar_and_a_pipe_no_control_characters(client, broker):
    exchange, _ = client.delayed_and_queue()
    for _ in range(3):
        client.publish(exchange, delay=HOUR_MS)
    file = broker.path(file_name())
    commands = [["export_delayed_messages", "--file", file, exchange],
                ["purge_delayed_messages", exchange], ["import_delayed_messages", "--file", file]]
    for command in commands:
        code, said = on_terminal(broker, *command)
        assert code == 0 and re.search(r"\r\[#{30}\] 3 of 3 \(100 %\), \d+/s, 0s left", said), said
        assert said.endswith("\r\x1b[K")
        if command[0].startswith("export"):
            os.remove(file)
        assert on_terminal(broker, "--quiet", *command) == (0, "")
    assert pending(broker, exchange) == 6
    for command in commands[1:]:
        done = broker.tool("rabbitmqctl", *command, check=False)
        assert done.returncode == 0 and not re.search(r"[\r\x1b]", done.stderr + done.stdout)


def test_a_pipe_has_a_line_every_few_seconds(client, broker):
    """One is awaited, and then the command is ended: what it did not move is there again."""
    count = 600
    queue, target = client.queue(), client.queue()
    for _ in range(count):
        client.channel.basic_publish("", queue, b"m")
    eventually(lambda: client.depth(queue), lambda n: n == count)
    with broker.start_tool("rabbitmqctl", "redrive_dead_letters", "--to-queue", target, "--rate", "10",
                           queue) as command:
        said = []
        for line in command.stderr:
            said.append(line)
            if re.fullmatch(rf"\d+ of {count} \(\d+ %\), \d+/s, (\d+m|\d+s) left\n", line):
                break
        os.killpg(command.pid, signal.SIGKILL)
    assert said and " left" in said[-1], said
    assert not [line for line in said if re.search(r"[\r\x1b]", line)]
    eventually(lambda: client.depth(queue) + client.depth(target), lambda n: n >= count)


def test_exchanges_are_watched(client, broker):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, delay=HOUR_MS)
    with broker.start_tool("rabbitmqctl", "--quiet", "list_delayed_exchanges", "--watch", "100ms", "name",
                           "messages_delayed") as command:
        seen = set()
        for line in command.stdout:
            at, name, number = line.rstrip("\n").split("\t")
            if name == exchange and number not in seen:
                assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", at)
                seen.add(number)
                client.publish(exchange, delay=HOUR_MS)
            if seen >= {"1", "2", "3"}:
                break
        command.kill()
    code, said = refused(broker, "list_delayed_exchanges", "--watch", "often")
    assert code == BAD_DATA and "--watch" in said


# ------------------------------------------------------------------------ ended and resumed

def test_an_export_that_was_ended_is_resumed(client, broker):
    exchange, _ = client.delayed_and_queue()
    at = int(time.time() * 1000) + HOUR_MS
    for n in range(40):
        client.publish(exchange, body=b"%d" % n, headers={"x-opt-delivery-time": at + n // 8})
    whole = file_name()
    lines = export(broker, exchange, whole)
    with open(broker.path(whole), "rb") as f:
        text = f.read()
    for cut in (0, 5, len(b"".join(text.splitlines(True)[:13])), len(text) // 2, len(text) - 1, len(text)):
        name = file_name()
        with open(broker.path(name) + ".part", "wb") as f:
            f.write(text[:cut])
        said = broker.ctl("export_delayed_messages", "--file", broker.path(name), "--resume", exchange)
        assert "40 messages exported" in said
        with open(broker.path(name), "rb") as f:
            assert [json.loads(line) for line in f] == lines
    name = file_name()
    with open(broker.path(name) + ".part", "w", encoding="utf-8") as f:
        f.write("something else\n")
    code, said = refused(broker, "export_delayed_messages", "--file", broker.path(name), "--resume", exchange)
    assert code == BAD_DATA and "where to go on" in said


def test_what_there_is_of_another_exchange_is_not_gone_on_with(client, broker):
    exchange, other = client.delayed(), client.delayed()
    for of in exchange, other:
        client.publish(of, body=b"x", delay=HOUR_MS)
    whole, name = file_name(), file_name()
    export(broker, other, whole)
    os.rename(broker.path(whole), broker.path(name) + ".part")
    with open(broker.path(name) + ".part", "rb") as f:
        before = f.read()
    code, said = refused(broker, "export_delayed_messages", "--file", broker.path(name), "--resume", exchange)
    assert code == BAD_DATA and "is of another exchange" in said
    with open(broker.path(name) + ".part", "rb") as f:
        assert f.read() == before
    assert not os.path.exists(broker.path(name))
    # Nor of one of the same name in another vhost; lines of 0.1 do not say of which they are.
    lines = [json.loads(line) for line in before.splitlines()]
    assert [line["vhost"] for line in lines] == ["/"]
    for vhost, wanted in (("another", "is of another exchange"), (None, None)):
        for line in lines:
            line.pop("vhost")
            line.update({"vhost": vhost} if vhost else {})
        with open(broker.path(name) + ".part", "w", encoding="utf-8") as f:
            f.writelines(json.dumps(line) + "\n" for line in lines)
        if wanted:
            assert wanted in refused(broker, "export_delayed_messages", "--file", broker.path(name), "--resume",
                                     other)[1]
    broker.ctl("export_delayed_messages", "--file", broker.path(name), "--resume", other)
    with open(broker.path(name), encoding="utf-8") as f:
        assert len(f.readlines()) == 1


def test_more_than_the_store_gives_at_once_is_exported_each_once(client, broker):
    """A walk finds 65,535; of more there is another, which begins behind the last."""
    exchange, _ = client.delayed_and_queue()
    count = 66_000
    name = file_name()
    due = int(time.time() * 1000) + 24 * HOUR_MS
    with open(broker.path(name), "w", encoding="utf-8") as f:
        for n in range(count):
            f.write(json.dumps({"format": 1, "exchange": exchange, "due": due + n // 3, "routing_keys": ["k"],
                                "properties": {"message_id": str(n)}, "headers": [], "body": ""}) + "\n")
    put_in(broker, name)
    lines = export(broker, exchange, file_name())
    assert len(lines) == count
    assert {line["properties"]["message_id"] for line in lines} == set(map(str, range(count)))
    places = [(line["due"], int(line["id"])) for line in lines]
    assert places == sorted(places)
    # Twice, and nothing is there twice.
    assert "0 messages imported, 66000 messages left out" in put_in(broker, name, "--skip-pending").stdout
    assert pending(broker, exchange) == count


def test_what_is_pending_already_is_skipped_where_that_is_asked_for(client, broker):
    exchange, _ = client.delayed_and_queue()
    other, _ = client.delayed_and_queue()
    client.publish(exchange, body=b"twice", delay=HOUR_MS, headers={"x-delay": HOUR_MS, "h": [1, 2.5]})
    client.publish(exchange, body=b"once", delay=HOUR_MS, message_id="é")
    name = file_name()
    lines = export(broker, exchange, name)
    with open(broker.path(name), "a", encoding="utf-8") as f:
        f.write(json.dumps({**lines[0], "due": lines[0]["due"] + 1}) + "\n")
        f.write(json.dumps(lines[0]) + "\n")
    # Another due time, and the second of two of which one is pending.
    assert "2 messages imported, 2 messages left out" in put_in(broker, name, "--skip-pending").stdout
    assert "0 messages imported, 4 messages left out" in put_in(broker, name, "--skip-pending").stdout
    assert pending(broker, exchange) == 4
    # For another exchange they are new.
    said = put_in(broker, name, "--skip-pending", "--exchange", other).stdout
    assert "4 messages imported, 0 messages left out" in said
    assert put_in(broker, name).stdout and pending(broker, exchange) == 8
