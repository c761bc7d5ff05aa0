# SPDX-License-Identifier: MPL-2.0
"""What operators do to pending messages with rabbitmqctl: list, show, cancel, purge, release,
reschedule, pause and resume."""

import base64
import functools
import re
import time
import uuid

import pytest

import wire
from client import Client
from conftest import hold_six
from management import eventually
from node import HOUR_MS, evaluate, kill_9, queue_process

COMMANDS = ["list_delayed_messages", "show_delayed_message", "cancel_delayed_messages",
            "purge_delayed_messages", "release_delayed_messages", "reschedule_delayed_messages",
            "pause_delayed_exchange", "resume_delayed_exchange"]
USAGE, BAD_DATA = 64, 65


def resource(exchange, vhost="/"):
    return f'rabbit_misc:r(<<"{vhost}">>, exchange, <<"{exchange}">>)'


def listed(broker, exchange, *arguments):
    return broker.rows("list_delayed_messages", exchange, *arguments)


def ids(broker, exchange, *arguments):
    return [row["id"] for row in listed(broker, exchange, "id", *arguments)]


def payloads(broker, exchange, *arguments):
    return [row["payload"] for row in listed(broker, exchange, "payload", *arguments)]


def counted(broker, exchange, column):
    """A column of list_delayed_exchanges, without the command-line tool's start. None where it is empty: the exchange's
    member has not started yet."""
    answer = evaluate(broker, 'rabbit_delay_exchange:show(rabbit_misc:r(<<"/">>, exchange, '
                      f'<<"{exchange}">>), [{column}]).')
    value = re.fullmatch(rf"{{ok,\s*\[{{{column},\s*(\w+|'')}}\]}}", answer).group(1)
    return {"true": True, "false": False, "''": None}[value] if not value.isdecimal() else int(value)


def done(broker, *arguments):
    """What a command that changes messages says of it."""
    return broker.rows(*arguments)


def refused(broker, *arguments):
    """The exit code and the message of a command that fails."""
    answer = broker.ctl(*arguments, check=False)
    assert answer.returncode != 0, answer.stdout
    return answer.returncode, answer.stdout + answer.stderr


def change_ids(broker, exchange, wanted):
    """Cancels by id without the command-line tool's start: what became of each."""
    answer = evaluate(broker, f"element(2, rabbit_delay_pending:change_ids({resource(exchange)}, "
                              f'cancel, [{",".join(wanted)}], <<"a test">>)).')
    return dict(re.findall(r"\{(\d+),\s*(\w+)\}", answer))


@pytest.fixture
def holding(client):
    """With headers to choose by, and without ids."""
    return hold_six(client, lambda n: {"headers": {"n": n, "odd": n % 2 == 1, "text": f"t {n}"}})


# ---------------------------------------------------------------------------- list and show

def test_messages_are_listed_in_due_order_whatever_the_order_of_publishing(client, broker):
    exchange, _ = client.delayed_and_queue()
    for hours in (3, 1, 2):
        client.publish(exchange, body=f"{hours}".encode(), delay=hours * HOUR_MS)
    rows = listed(broker, exchange, "id", "due", "size", "routing_key", "exchange", "payload")
    assert [row["payload"] for row in rows] == ["1", "2", "3"]
    assert [row["due"] for row in rows] == sorted(row["due"] for row in rows)
    now = time.time() * 1000
    assert now + HOUR_MS - 60_000 < rows[0]["due"] <= now + HOUR_MS
    assert {(row["routing_key"], row["exchange"]) for row in rows} == {("k", exchange)}
    assert all(row["size"] > 1 and row["id"].isdigit() for row in rows)


def test_pages_continue_from_a_cursor(broker, holding):
    exchange, _ = holding
    first = listed(broker, exchange, "payload", "cursor", "--limit", "2")
    assert [row["payload"] for row in first] == ["m0", "m1"]
    second = listed(broker, exchange, "payload", "cursor", "--limit", "3", "--cursor",
                    first[-1]["cursor"])
    assert [row["payload"] for row in second] == ["m2", "m3", "m4"]
    assert payloads(broker, exchange, "--cursor", second[-1]["cursor"]) == ["m5"]


def test_a_cursor_whose_messages_are_gone_meanwhile_goes_on_behind_them(broker, holding):
    exchange, _ = holding
    page = listed(broker, exchange, "id", "cursor", "--limit", "3")
    broker.ctl("cancel_delayed_messages", exchange, *(row["id"] for row in page))
    assert payloads(broker, exchange, "--cursor", page[-1]["cursor"]) == ["m3", "m4", "m5"]


@pytest.mark.parametrize("switches, wanted", [
    (["--routing-key", "k"], ["m0", "m2", "m4"]),
    (["--header", "n=3"], ["m3"]),
    (["--header", "odd=true"], ["m1", "m3", "m5"]),
    (["--header", "text=t 2"], ["m2"]),
    (["--header", "text=t 7"], []),
    (["--due-from", "+90m", "--due-to", "+270m"], ["m1", "m2", "m3"]),
    (["--due-to", "+90m"], ["m0"]),
    (["--due-from", "+330m", "--routing-key", "other"], ["m5"]),
    (["--due-to", "2000-01-01T00:00:00Z"], []),
    (["--routing-key", "other", "--limit", "2"], ["m1", "m3"]),
])
def test_filters_choose(broker, holding, switches, wanted):
    assert payloads(broker, holding[0], *switches) == wanted


@pytest.fixture
def keyed(client):
    """An exchange with messages a1 to a4 of key a, one of them by its message_id, and others."""
    exchange, queue = client.delayed_and_queue()
    for n, (body, key, message_id) in enumerate([
            ("a1", "a", None), ("b1", "b", "a"), ("a2", "a", "b"), ("a3", None, "a"),
            ("none", None, None), ("a4", "a", None)]):
        client.publish(exchange, body=body.encode(), delay=(n + 1) * HOUR_MS,
                       headers={"x-delay-key": key} if key else {}, message_id=message_id)
    return exchange, queue


def test_messages_are_listed_by_key(broker, keyed):
    exchange, _ = keyed
    assert payloads(broker, exchange, "--key", "a") == ["a1", "a2", "a3", "a4"]
    assert payloads(broker, exchange, "--key", "a", "--due-from", "+90m", "--due-to", "+270m") == [
        "a2", "a3"]
    assert payloads(broker, exchange, "--key", "nobody's") == []
    rows = listed(broker, exchange, "key", "payload")
    assert {row["payload"]: row["key"] for row in rows} == {
        "a1": "a", "a2": "a", "a3": "a", "a4": "a", "b1": "b", "none": ""}
    page = listed(broker, exchange, "payload", "cursor", "--key", "a", "--limit", "3")
    assert payloads(broker, exchange, "--key", "a", "--cursor", page[-1]["cursor"]) == ["a4"]


@pytest.mark.parametrize("messages", [100, 9000])
def test_messages_are_changed_by_key(broker, keyed, messages):
    """With 9000, too many for a look-up."""
    exchange, _ = keyed
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [b"more"] * messages,
                          headers={"x-delay": 10 * HOUR_MS, "x-delay-key": "a"})
    summary = done(broker, "reschedule_delayed_messages", exchange, "--by", "+1h", "--key", "a",
                   "--due-to", "+9h")
    assert (summary["matched"], summary["changed"]) == (4, 4)
    assert done(broker, "cancel_delayed_messages", exchange, "--key", "a",
                "--dry-run")["matched"] == messages + 4
    assert done(broker, "cancel_delayed_messages", exchange, "--key", "a")["changed"] == messages + 4
    assert payloads(broker, exchange) == ["b1", "none"]


def test_messages_of_exchanges_bound_to_each_other_tell_where_they_were_published(client, broker):
    first = client.exchange("fanout")
    exchange, _ = client.delayed_and_queue()
    client.channel.exchange_bind(exchange, first)
    client.publish(first, body=b"indirectly", delay=HOUR_MS)
    client.publish(exchange, body=b"directly", delay=HOUR_MS)
    assert payloads(broker, exchange, "--published-to", first) == ["indirectly"]
    assert payloads(broker, exchange, "--published-to", exchange) == ["directly"]


def test_a_message_is_shown_with_all_that_it_has(client, broker):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, body="grüße".encode(), delay=HOUR_MS, content_type="text/plain",
                   priority=4, message_id="an id", headers={
                       "CC": ["copy"], "nested": {"list": [1, True, None, "x"]}, "ü": "ö"})
    message, = ids(broker, exchange)
    shown = broker.rows("show_delayed_message", exchange, message)
    assert "payload" not in shown
    assert (shown["id"], shown["exchange"], shown["routing_key"], shown["routing_keys"],
            shown["payload_bytes"]) == (message, exchange, "k", ["k", "copy"], 7)
    assert shown["properties"] == {"content_type": "text/plain", "priority": 4,
                                   "message_id": "an id", "delivery_mode": 2}
    assert shown["headers"] == {"x-delay": HOUR_MS, "CC": ["copy"], "ü": "ö",
                                "nested": {"list": [1, True, None, "x"]}}
    shown = broker.rows("show_delayed_message", exchange, message, "--body")
    assert (shown["payload"], shown["payload_encoding"], shown["truncated"]) == (
        "grüße", "string", False)
    text = broker.ctl("--quiet", "show_delayed_message", exchange, message, "--body")
    assert f"id: {message}\n" in text and "payload: grüße" in text


def test_what_is_not_utf8_or_would_act_on_a_terminal_is_shown_harmlessly(client, broker):
    exchange = client.delayed("fanout")
    body = b"\xff\x00\x1b[31m"
    client.publish(exchange, "\x1b]0;key\x07", body, delay=HOUR_MS,
                   headers={"bytes": b"\xfe\xff", "red": "\x1b[31m"})
    row, = listed(broker, exchange, "routing_key", "headers", "payload", "payload_encoding")
    assert (base64.b64decode(row["payload"]), row["payload_encoding"]) == (body, "base64")
    assert base64.b64decode(row["headers"]["bytes"]["base64"]) == b"\xfe\xff"
    assert base64.b64decode(row["headers"]["red"]["base64"]) == b"\x1b[31m"
    assert base64.b64decode(row["routing_key"]["base64"]) == b"\x1b]0;key\x07"
    for text in (broker.ctl("--quiet", "list_delayed_messages", exchange, "routing_key", "headers"),
                 broker.ctl("--quiet", "show_delayed_message", exchange, *ids(broker, exchange))):
        assert "\x1b" not in text and "\x07" not in text and "\\u001b[31m" in text


def test_a_long_body_is_cut_and_says_so(client, broker):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, body=b"x" * 5000, delay=HOUR_MS)
    row, = listed(broker, exchange, "payload", "truncated", "payload_bytes", "--body-bytes", "10")
    assert row == {"payload": "x" * 10, "truncated": True, "payload_bytes": 5000}


def test_fifty_thousand_are_listed_each_once_in_order(client, broker):
    exchange, _ = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [b"m"] * 50_000,
                          headers=lambda n: {"x-delay": HOUR_MS + (n * 7919) % 50_000})
    rows = listed(broker, exchange, "id", "due")
    places = [(row["due"], int(row["id"])) for row in rows]
    assert len(places) == len({place[1] for place in places}) == 50_000
    assert places == sorted(places)


def test_the_table_has_a_header_and_a_row_each(broker, holding):
    header, *rows = broker.ctl("--quiet", "list_delayed_messages", holding[0]).splitlines()
    assert header.split("\t") == ["id", "due", "routing_key", "size"]
    assert [row.split("\t")[2] for row in rows] == ["k", "other"] * 3


def test_an_exchange_that_never_delayed_anything_is_empty(client, broker):
    exchange, _ = client.delayed_and_queue()
    assert listed(broker, exchange) == []
    assert done(broker, "purge_delayed_messages", exchange)["matched"] == 0
    code, message = refused(broker, "show_delayed_message", exchange, "65536")
    assert code == BAD_DATA and "65536" in message


# ------------------------------------------------------------------------ cancel and purge

def test_cancelled_by_id_it_never_comes(client, broker):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"cancelled", delay=HOUR_MS)
    client.publish(exchange, body=b"kept", delay=HOUR_MS + 1000)
    first, second = ids(broker, exchange)
    assert done(broker, "cancel_delayed_messages", exchange, first) == [
        {"id": first, "outcome": "done"}]
    assert ids(broker, exchange) == [second]
    done(broker, "release_delayed_messages", exchange, "--all")
    assert client.texts(queue, 1) == ["kept"]
    assert client.texts_until_marker(queue) == []


def test_one_that_is_not_there_is_told_and_the_others_are_cancelled(broker, holding):
    exchange, _ = holding
    first, *others = ids(broker, exchange)
    code, message = refused(broker, "cancel_delayed_messages", exchange, first, "1")
    assert code == BAD_DATA and f"{first}: cancelled" in message and "1: not pending" in message
    assert ids(broker, exchange) == others
    code, message = refused(broker, "--formatter", "json", "cancel_delayed_messages", exchange,
                            first)
    assert code == BAD_DATA and f'{{"id":"{first}","outcome":"not_found"}}' in message


def test_cancelled_by_filter_first_only_counted(broker, holding):
    exchange, _ = holding
    command = ["cancel_delayed_messages", exchange, "--routing-key", "k", "--due-to", "+4h"]
    summary = done(broker, *command, "--dry-run")
    assert (summary["matched"], summary["changed"]) == (2, 0)
    assert "2 messages would be cancelled" in broker.ctl(*command, "--dry-run")
    assert len(ids(broker, exchange)) == 6
    summary = done(broker, *command)
    assert (summary["matched"], summary["changed"], summary["in_flight"]) == (2, 2, 0)
    assert payloads(broker, exchange) == ["m1", "m3", "m4", "m5"]


def test_purged_it_is_empty_and_goes_on_delaying(client, broker, holding):
    exchange, queue = holding
    assert done(broker, "purge_delayed_messages", exchange, "--dry-run")["matched"] == 6
    assert "6 messages cancelled" in broker.ctl("purge_delayed_messages", exchange)
    assert counted(broker, exchange, "messages_delayed") == 0
    client.publish(exchange, body=b"new", delay=100)
    assert client.texts(queue, 1) == ["new"]


def test_what_is_in_flight_is_not_cancelled_and_the_caller_is_told(client, broker):
    exchange, queue = client.delayed_and_queue()
    evaluate(broker, f"sys:suspend({queue_process(queue)}).")
    try:
        client.publish(exchange, body=b"released", delay=300)
        message, = ids(broker, exchange)
        eventually(lambda: counted(broker, exchange, "in_flight"), lambda n: n == 1)
        code, text = refused(broker, "cancel_delayed_messages", exchange, message)
        assert code == BAD_DATA and f"{message}: in flight" in text
        summary = done(broker, "cancel_delayed_messages", exchange, "--routing-key", "k")
        assert (summary["matched"], summary["changed"], summary["in_flight"]) == (1, 0, 1)
        code, text = refused(broker, "reschedule_delayed_messages", exchange, message, "--by", "1h")
        assert code == BAD_DATA and "in flight" in text
    finally:
        evaluate(broker, f"sys:resume({queue_process(queue)}).")
    assert client.texts(queue, 1) == ["released"]
    assert client.texts_until_marker(queue) == []


def test_one_that_its_queue_rejects_can_be_cancelled(client, broker):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-max-length": 1,
                                                     "x-overflow": "reject-publish"})
    client.publish("", queue, b"full")
    client.publish(exchange, body=b"rejected", delay=100)
    message, = ids(broker, exchange)
    eventually(lambda: change_ids(broker, exchange, [message])[message],
               lambda outcome: outcome == "done")
    assert client.texts(queue, 1) == ["full"]
    assert counted(broker, exchange, "messages_delayed") == 0
    assert client.texts_until_marker(queue) == []


def test_of_cancelling_and_releasing_exactly_one_happens(client, broker, clock):
    exchange, queue = client.delayed_and_queue()
    count = 6000
    with wire.Publisher(broker) as publisher:
        # Over a minute: time enough to cancel most of them while the first are released.
        began = int(time.time() * 1000)
        publisher.publish(exchange, "k", [str(n).encode() for n in range(count)], headers=lambda n: {
            "x-opt-delivery-time": wire.signed_long(began + HOUR_MS + 10 * n)})
    numbers = evaluate(broker, "[binary_to_integer(Id) || #{id := Id} <- element(2, rabbit_delay_pending:list("
                               f"{resource(exchange)}, #{{}}, #{{limit => {count}}}))].")
    wanted = sorted(map(int, re.findall(r"\d+", numbers)))
    assert len(wanted) == count
    clock(began + HOUR_MS - int(time.time() * 1000))
    eventually(lambda: client.depth(queue), lambda depth: depth > count // 20, every=0.01)
    outcome = {}
    for first in range(0, count, 500):
        outcome.update(change_ids(broker, exchange, [str(i) for i in wanted[first:first + 500]]))
    cancelled = {n for n, i in enumerate(wanted) if outcome[str(i)] == "done"}
    assert 0 < len(cancelled) < count
    delivered = [int(delivery.text) for delivery in client.collect(queue, count - len(cancelled))]
    assert client.texts_until_marker(queue) == []
    assert sorted(delivered) == sorted(set(range(count)) - cancelled)
    eventually(lambda: counted(broker, exchange, "messages_delayed"), lambda n: n == 0)


# ------------------------------------------------------------------- release and reschedule

def test_released_now_they_come_in_order(client, broker, holding):
    exchange, queue = holding
    summary = done(broker, "release_delayed_messages", exchange, "--routing-key", "k")
    assert summary["changed"] == 3
    assert client.texts(queue, 3) == ["m0", "m2", "m4"]
    assert payloads(broker, exchange) == ["m1", "m3", "m5"]


def test_released_by_id(client, broker, holding):
    exchange, queue = holding
    message = ids(broker, exchange)[4]
    assert done(broker, "release_delayed_messages", exchange, message)[0]["outcome"] == "done"
    assert client.texts(queue, 1) == ["m4"]


@pytest.mark.parametrize("offset, hours", [("+90m", 1.5), ("-30m", -0.5), ("2h", 2)])
def test_rescheduled_by_an_offset_each_moves_once(broker, holding, offset, hours):
    exchange, _ = holding
    before = {row["id"]: row["due"] for row in listed(broker, exchange, "id", "due")}
    summary = done(broker, "reschedule_delayed_messages", exchange, "--by", offset, "--due-to",
                   "+330m")
    assert (summary["matched"], summary["changed"]) == (5, 5)
    after = {row["id"]: row["due"] for row in listed(broker, exchange, "id", "due")}
    moved = {i: after[i] - before[i] for i in before}
    assert sorted(moved.values()) == sorted([hours * HOUR_MS] * 5 + [0])


def test_ten_thousand_are_moved_by_less_than_their_range_each_once(client, broker):
    exchange, _ = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [b"m"] * 10_000,
                          headers=lambda n: {"x-delay": HOUR_MS + n * 100})
    before = {row["id"]: row["due"] for row in listed(broker, exchange, "id", "due")}
    for offset in (60_000, -30_000):
        summary = done(broker, "reschedule_delayed_messages", exchange, "--all", "--by",
                       str(offset))
        assert (summary["changed"], summary["in_flight"]) == (10_000, 0)
    after = {row["id"]: row["due"] for row in listed(broker, exchange, "id", "due")}
    assert {after[i] - before[i] for i in before} == {30_000} and len(after) == 10_000


def test_rescheduled_to_a_time_they_come_then(client, broker):
    exchange, queue = client.delayed_and_queue()
    for body in (b"a", b"b"):
        client.publish(exchange, body=body, delay=HOUR_MS)
    due = int(time.time() * 1000) + 3000
    assert done(broker, "reschedule_delayed_messages", exchange, "--all", "--to",
                str(due))["changed"] == 2
    deliveries = client.collect(queue, 2)
    assert time.time() * 1000 >= due
    assert [delivery.text for delivery in deliveries] == ["a", "b"]


def test_rescheduled_by_id_to_a_date(broker, holding):
    exchange, _ = holding
    first = ids(broker, exchange)[0]
    assert done(broker, "reschedule_delayed_messages", exchange, first, "--to",
                "2030-01-31T12:00:00Z")[0]["outcome"] == "done"
    assert listed(broker, exchange, "id", "due")[-1] == {"id": first, "due": 1896091200000}


def test_rescheduling_beyond_the_maximum_delay_is_refused(client, broker):
    exchange, _ = client.delayed_and_queue(arguments={"x-delay-max": 2 * HOUR_MS})
    client.publish(exchange, delay=HOUR_MS)
    for switches in (["--by", "3h"], ["--to", "+3h"]):
        code, message = refused(broker, "reschedule_delayed_messages", exchange, "--all", *switches)
        assert code == BAD_DATA and "maximum delay" in message
    assert len(ids(broker, exchange)) == 1


# ------------------------------------------------------------------------- pause and resume

def test_paused_nothing_is_released_until_it_is_resumed(client, broker):
    exchange, queue = client.delayed_and_queue()
    other, others = client.delayed_and_queue()
    broker.ctl("pause_delayed_exchange", exchange)
    client.publish(exchange, body=b"held back", delay=100)
    client.publish(other, body=b"not concerned", delay=600)
    assert client.texts(others, 1) == ["not concerned"]
    assert client.depth(queue) == 0
    row, = [row for row in broker.rows("list_delayed_exchanges", "name", "overdue", "paused")
            if row["name"] == exchange]
    assert (row["overdue"], row["paused"]) == (1, True)
    done(broker, "release_delayed_messages", exchange, "--all")
    assert client.depth(queue) == 0
    client.publish(exchange, body=b"not delayed")
    assert client.texts(queue, 1) == ["not delayed"]
    broker.ctl("resume_delayed_exchange", exchange)
    assert client.texts(queue, 1) == ["held back"]
    assert counted(broker, exchange, "paused") is False


def test_paused_messages_can_be_cancelled_though_they_are_overdue(client, broker):
    exchange, queue = client.delayed_and_queue()
    broker.ctl("pause_delayed_exchange", exchange)
    client.publish(exchange, body=b"cancelled", delay=1)
    client.publish(exchange, body=b"kept", delay=2)
    eventually(lambda: counted(broker, exchange, "overdue"), lambda n: n == 2)
    done(broker, "cancel_delayed_messages", exchange, ids(broker, exchange)[0])
    broker.ctl("resume_delayed_exchange", exchange)
    assert client.texts(queue, 1) == ["kept"]
    assert client.texts_until_marker(queue) == []


def test_pausing_twice_and_resuming_what_is_not_paused_is_no_error(client, broker):
    exchange, _ = client.delayed_and_queue()
    for command in ("pause", "pause", "resume", "resume"):
        broker.ctl(f"{command}_delayed_exchange", exchange)
    assert counted(broker, exchange, "paused") is False


@pytest.mark.parametrize("messages, how", [(0, "restart"), (2, "kill9"), (3000, "kill9")])
def test_a_pause_and_changes_outlive_the_broker(brokers, messages, how):
    """With 3000 messages, from a snapshot rather than from the log."""
    broker = brokers(f"paused-{how}-{messages}",
                     conf=["delayed_message.snapshot_interval.messages = 500"])
    client = Client(broker)
    exchange, queue = client.delayed_and_queue(keep=True)
    broker.ctl("pause_delayed_exchange", exchange)
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [str(n).encode() for n in range(messages)],
                          headers={"x-delay": HOUR_MS})
    if messages:
        first, second, *_ = ids(broker, exchange)
        done(broker, "cancel_delayed_messages", exchange, first)
        done(broker, "release_delayed_messages", exchange, second)
    if how == "kill9":
        kill_9(broker)
        broker.start()
    else:
        broker.restart()
    eventually(lambda: counted(broker, exchange, "paused"), lambda paused: paused is True)
    client = Client(broker)
    if messages:
        assert counted(broker, exchange, "messages_delayed") == messages - 1
        assert counted(broker, exchange, "overdue") == 1
    client.publish(exchange, body=b"held back", delay=1)
    assert client.depth(queue) == 0
    broker.ctl("resume_delayed_exchange", exchange)
    assert client.texts(queue, 2 if messages else 1) == ["1", "held back"][not messages:]
    broker.end()


# -------------------------------------------------------------------------------- wrong use

@pytest.mark.parametrize("command", [
    ["list_delayed_messages", "id", "due", "payload"], ["--quiet", "show_delayed_message"],
    ["--formatter", "json", "cancel_delayed_messages", "--all", "--dry-run"],
    ["list_delayed_messages", "no such column"], ["reschedule_delayed_messages", "--by", "never"],
    ["cancel_delayed_messages", "", "é"], ["list_delayed_message"]], ids=" ".join)
def test_the_tool_that_is_kept_says_what_the_tool_says(broker, holding, command):
    """Other tests use one that is started once (kept_rabbitmqctl.py)."""
    exchange, _ = holding
    at = next((n for n, word in enumerate(command, 1) if word.endswith(("messages", "message"))))
    command = [*command[:at], exchange, *command[at:]]
    if "show_delayed_message" in command:
        command += ids(broker, exchange)[:1]
    kept, itself = (run(*command, check=False) for run in (
        broker.ctl, functools.partial(broker.tool, "rabbitmqctl")))
    assert kept.stdout + kept.stderr
    # How long it is until something is due may have changed by the second call.
    kept.stdout, itself.stdout = (re.sub(r"\(in [^)]*\)", "(in ...)", said.stdout) for said in (kept, itself))
    assert ((kept.returncode, kept.stdout, kept.stderr) ==
            (itself.returncode, itself.stdout, itself.stderr))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_misses_its_exchange(broker, command):
    text = broker.tool("rabbitmqctl", "help", command)
    assert f"{command} [--vhost <vhost>]" in text and "<exchange>" in text
    code, message = refused(broker, command)
    assert code in (USAGE, BAD_DATA) and "not enough arguments" in message or "to when" in message
    extra = {"list_delayed_messages": ["id"], "show_delayed_message": ["1"],
             "cancel_delayed_messages": ["1"], "release_delayed_messages": ["--all"],
             "reschedule_delayed_messages": ["--all", "--by", "1h"]}.get(command, [])
    code, message = refused(broker, command, "no such exchange", *extra)
    assert code == BAD_DATA and "there is no exchange 'no such exchange'" in message
    code, message = refused(broker, command, "amq.direct", *extra)
    assert code == BAD_DATA and "x-delayed-message" in message


@pytest.mark.parametrize("arguments, wanted", [
    (["list_delayed_messages", "X", "no_such_column"], "no_such_column"),
    (["list_delayed_messages", "X", "--limit", "0"], "--limit"),
    (["list_delayed_messages", "X", "--limit", "-5"], "--limit"),
    (["list_delayed_messages", "X", "payload", "--body-bytes", "-1"], "--body-bytes"),
    (["list_delayed_messages", "X", "--due-from", "yesterday"], '--due-from: "yesterday" is not a time'),
    (["list_delayed_messages", "X", "--due-from", "99999999999999999999"], "out of range: times from 1970"),
    (["list_delayed_messages", "X", "--due-from", "2030-01-02 00:00:00Z", "--due-to",
      "2030-01-01 00:00:00Z"],
     "--due-from (2030-01-02T00:00:00.000Z) is after --due-to (2030-01-01T00:00:00.000Z)"),
    (["list_delayed_messages", "X", "--header", "no value"], "name=value"),
    (["list_delayed_messages", "X", "--routing-key", "k" * 256], "--routing-key: not a string of at most 255"),
    (["list_delayed_messages", "X", "--cursor", "zz"], "cursor"),
    (["list_delayed_messages", "X", "--cursor", "01" * 37], "cursor"),
    (["show_delayed_message", "X", "-1"], "id"),
    (["show_delayed_message", "X", "x"], '"x" is not the id'),
    (["show_delayed_message", "X", str(2 ** 64)], "is not the id"),
    (["cancel_delayed_messages", "X"], "which messages"),
    (["cancel_delayed_messages", "X", "1", "--routing-key", "k"], "without filters"),
    (["cancel_delayed_messages", "X", "1", "--dry-run"], "without filters"),
    (["release_delayed_messages", "X"], "which messages"),
    (["release_delayed_messages", "X", "--all", "--routing-key", "k"], "either"),
    (["reschedule_delayed_messages", "X", "--all"], "to when"),
    (["reschedule_delayed_messages", "X", "--all", "--to", "+1h", "--by", "1h"], "either"),
    (["reschedule_delayed_messages", "X", "--all", "--by", "1 fortnight"], "is not an offset"),
    (["pause_delayed_exchange", "X", "Y"], "too many"),
])
def test_wrong_use_is_told_and_changes_nothing(broker, holding, arguments, wanted):
    exchange, _ = holding
    code, message = refused(broker, *(exchange if a == "X" else a for a in arguments))
    assert code in (USAGE, BAD_DATA) and wanted in message, message
    assert counted(broker, exchange, "messages_delayed") == 6


def test_a_cursor_of_another_exchange_is_refused(client, broker, holding):
    exchange, _ = holding
    cursor = listed(broker, exchange, "cursor", "--limit", "1")[0]["cursor"]
    other, _ = client.delayed_and_queue()
    client.publish(other, delay=HOUR_MS)
    code, message = refused(broker, "list_delayed_messages", other, "--cursor", cursor)
    assert code == BAD_DATA and "cursor" in message


def test_exchanges_of_another_vhost_are_chosen_by_vhost(broker, client, holding):
    vhost = f"v-{uuid.uuid4().hex[:8]}"
    broker.ctl("add_vhost", vhost)
    broker.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    there = Client(broker, vhost)
    there.delayed(name=holding[0])
    there.publish(holding[0], body=b"there", delay=HOUR_MS)
    assert payloads(broker, holding[0], "--vhost", vhost) == ["there"]
    assert done(broker, "purge_delayed_messages", holding[0], "--vhost", vhost)["changed"] == 1
    assert len(ids(broker, holding[0])) == 6
    there.close()
    broker.ctl("delete_vhost", vhost)


def test_what_operators_changed_is_in_the_log(broker, holding):
    exchange, _ = holding
    done(broker, "cancel_delayed_messages", exchange, "--routing-key", "k")
    broker.ctl("pause_delayed_exchange", exchange)
    log = eventually(broker.log, lambda text: f"exchange '{exchange}' in vhost '/': paused" in text)
    assert f"exchange '{exchange}' in vhost '/': 3 cancelled by rabbitmqctl" in log
