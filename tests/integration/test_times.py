# SPDX-License-Identifier: MPL-2.0
"""Times as people read and write them, in commands."""

import functools
import json
import re

import pytest

import wire
from conftest import hold_six
from test_pending import BAD_DATA, counted, done, ids


@pytest.fixture
def holding(client):
    return hold_six(client, lambda n: {})


# Without a zone's file: an hour ahead of UTC, two in summer.
ZONE = "CET-1CEST,M3.5.0,M10.5.0/3"


def test_people_read_times_and_programs_numbers(client, broker, monkeypatch):
    monkeypatch.setenv("TZ", ZONE)
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, headers={"x-opt-delivery-time": wire.signed_long(1815305696000)})
    tool = functools.partial(broker.tool, "rabbitmqctl", "--quiet")
    shown = r"2027-07-11 13:34:56 \(in \d+d( \d+h)?\)"
    rows = tool("list_delayed_messages", exchange, "due", "due_utc").splitlines()
    assert re.fullmatch(shown + "\t2027-07-11T11:34:56Z", rows[1]), rows
    rows = tool("list_delayed_exchanges", "name", "next_due").splitlines()
    row, = (row for row in rows if row.split("\t")[0] == exchange)
    assert re.fullmatch(shown, row.split("\t")[1])
    one, = ids(broker, exchange)
    said = tool("show_delayed_message", exchange, one)
    assert re.search(rf"^due: {shown}\ndue_utc: 2027-07-11T11:34:56Z$", said, re.MULTILINE), said
    for formatter in ("json", "csv"):
        assert "1815305696000" in tool("list_delayed_messages", exchange, "due", "--formatter", formatter)
        assert "1815305696000" in tool("list_delayed_exchanges", "next_due", "--formatter", formatter)


@pytest.mark.parametrize("written", ["2027-07-11 13:34:56", "2027-07-11 11:34:56Z", "1815305696000"])
def test_a_time_is_given_as_it_is_shown(client, broker, monkeypatch, written):
    monkeypatch.setenv("TZ", ZONE)
    exchange, _ = client.delayed_and_queue()
    for ms in (1815305695999, 1815305696000, 1815305696001):
        client.publish(exchange, headers={"x-opt-delivery-time": wire.signed_long(ms)})
    tool = functools.partial(broker.tool, "rabbitmqctl", "--quiet", "list_delayed_messages", exchange)
    got = tool("due", "--due-from", written, "--due-to", written, "--formatter", "json")
    assert [row["due"] for row in json.loads(got)] == [1815305696000]


def test_a_time_that_is_not_or_comes_twice_is_refused(broker, holding, monkeypatch):
    monkeypatch.setenv("TZ", ZONE)
    exchange, _ = holding
    for written, why in (("2027-03-28 02:30:00", "there is no"), ("2027-10-31 02:30:00", "comes twice")):
        done = broker.tool("rabbitmqctl", "cancel_delayed_messages", exchange, "--due-from", written,
                           check=False)
        assert done.returncode == BAD_DATA and why in done.stdout + done.stderr
    assert len(ids(broker, exchange)) == 6


def test_what_operators_cancelled_is_counted(broker, holding):
    exchange, _ = holding
    broker.rows("cancel_delayed_messages", exchange, *ids(broker, exchange)[:2])
    assert counted(broker, exchange, "cancelled") == 2
    done(broker, "purge_delayed_messages", exchange)
    assert counted(broker, exchange, "cancelled") == 6
