# SPDX-License-Identifier: MPL-2.0
"""What an exchange holds while it cannot be seen, as just after the broker's start: whoever asks waits
for it or is refused, and is never told that there is nothing."""

import contextlib
import json
import os
import time

import openapi
from browser import Page
from management import eventually
from node import evaluate
from official import resource

UNAVAILABLE = 69
ASKED = [
    ("list_delayed_messages", "{exchange}"),
    ("purge_delayed_messages", "{exchange}"),
    ("reschedule_delayed_messages", "{exchange}", "{id}", "--by", "1h"),
    ("pause_delayed_exchange", "{exchange}"),
    ("export_delayed_messages", "--file", "{file}", "{exchange}"),
]


def held(broker, exchange):
    return [row["id"] for row in broker.rows("list_delayed_messages", exchange, "id")]


@contextlib.contextmanager
def not_started(broker, exchange):
    """As between the start of the broker and that of the exchange's processes."""
    evaluate(broker, "sys:suspend(rabbit_delay_registry).")
    try:
        evaluate(broker, f"""begin X = {resource(exchange)}, Pid = rabbit_delay_registry:queue(X),
            {{_, D}} = process_info(Pid, dictionary), {{_, [Sup | _]}} = lists:keyfind('$ancestors', 1, D),
            ok = rabbit_delay_exchanges_sup:stop_exchange(Sup), rabbit_delay_table:take(X)
            end.""".replace("\n", " "))
        yield
    finally:
        evaluate(broker, "sys:resume(rabbit_delay_registry).")


def test_what_is_not_there_yet_is_not_nothing(broker, management, holding):
    exchange, _ = holding
    before = held(broker, exchange)
    assert len(before) == 6
    file = broker.path(f"not-ready-{time.monotonic_ns()}")
    path = f"delayed-exchanges/%2F/{exchange}/messages"
    with not_started(broker, exchange):
        for asked in ASKED:
            answer = broker.ctl(*(part.format(exchange=exchange, id=before[0], file=file)
                                  for part in asked), check=False)
            assert answer.returncode == UNAVAILABLE, answer
            assert "was not ready within" in answer.stderr
        status, answer = management.request("GET", path)
        assert status == 503 and "was not ready within" in answer["reason"]
        for what in ("due-times", "members"):
            status, answer = openapi.call(management, "GET", "/delayed-exchanges/{vhost}/{exchange}/" + what,
                                          vhost="/", exchange=exchange)
            assert status == 503 and "is not at hand: try again" in answer["reason"], answer
        done = broker.ctl("delayed_exchange_status", exchange, check=False)
        assert done.returncode == UNAVAILABLE and "is not at hand: try again" in done.stderr, done
        assert not os.path.exists(file) and not os.path.exists(file + ".part")
    assert held(broker, exchange) == before
    status, answer = management.request("GET", path)
    assert status == 200 and [item["id"] for item in answer["items"]] == before


def test_its_page_is_there_and_says_so(browser, broker, holding):
    exchange, _ = holding
    page = Page(browser, broker)
    with not_started(broker, exchange):
        page.exchange(exchange)
        for part in ("members", "due-times"):
            assert "is not at hand: try again" in page.texts(f"#delayed-{part} p.warning")[0]
        assert exchange in page.texts("#main h1")[0]
    # Whoever asks for its messages has it started.
    assert len(held(broker, exchange)) == 6
    page.waitForSelector("#delayed-chart-due-times .delayed-bar")
    assert page.errors() == []
    page.close()


def test_who_waits_for_less_is_told_so(broker, holding):
    """In words, with the code of the table; the tool's own for it is another one."""
    exchange, _ = holding
    with not_started(broker, exchange):
        for asked in ("list_delayed_messages", "purge_delayed_messages", "pause_delayed_exchange"):
            done = broker.ctl(asked, exchange, "--timeout", "1", check=False)
            assert done.returncode == UNAVAILABLE, done
            assert "did not answer in time (--timeout)" in done.stderr, done


def test_who_asks_just_before_gets_all(broker, holding):
    exchange, _ = holding
    file = broker.path(f"just-before-{time.monotonic_ns()}")
    dispatcher = f"rabbit_delay_registry:dispatcher({resource(exchange)})"
    evaluate(broker, f"sys:suspend({dispatcher}).")
    try:
        command = broker.start_tool("rabbitmqctl", "export_delayed_messages", "--file", file, exchange)
        eventually(lambda: evaluate(broker, f"process_info({dispatcher}, message_queue_len)."),
                   lambda queued: queued != "{message_queue_len,0}")
    finally:
        evaluate(broker, f"sys:resume({dispatcher}).")
    said, _ = command.communicate(timeout=300)
    assert command.returncode == 0 and "6 messages exported" in said
    with open(file, encoding="utf-8") as f:
        assert sum(json.loads(line)["exchange"] == exchange for line in f) == 6
