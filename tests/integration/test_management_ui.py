# SPDX-License-Identifier: MPL-2.0
"""The pages for delayed exchanges among the broker's management pages, clicked through in a headless
Chromium, with real messages."""

import base64
import re
import uuid

import pytest

import wire
from browser import HOSTILE, INFO, LOADED, WARNING, Page, popup, press
from management import eventually, quoted
from node import HOUR_MS, evaluate, queue_process
from test_pending import counted

TABLE = "#delayed-messages-table"
ROWS = TABLE + " tbody tr"
FILTER = "#delayed-filter-"


def shown(page, column=4):
    """A column of the messages on the page; the fourth, their headers, tells which they are."""
    return page.texts(f"{ROWS} td:nth-child({column})")


def numbers(page):
    return [int(re.search(r"\bn: (\d+)", headers).group(1)) for headers in shown(page)]


def choose(page, *numbers_):
    for number in numbers_:
        page.check(f'{ROWS}:has-text("n: {number}") input')


def show_filtered(page, rows, **filters):
    """Fills the filter in; there must be so many rows then."""
    for name in ("due_from", "due_to", "key", "routing_key", "header", "published_to"):
        page.fill(FILTER + name, filters.get(name, ""))
    press(page, "Show")
    page.waitForSelector(LOADED)
    assert len(shown(page)) == rows


def unfold(page, heading):
    page.click(f'#main .section-hidden h2:text-is("{heading}")')


def pending(management, exchange):
    return management.messages_delayed(exchange)


# ------------------------------------------------------------------------ the exchanges

def row_of(page, name):
    """The cells of an exchange's row, by their headings."""
    headings = page.texts("#delayed-exchanges-table thead tr:nth-child(2) th")
    cells = page.texts(f'#delayed-exchanges-table tbody tr:has(a:text-is("{name}")) td')
    return dict(zip([re.sub(r"^\W+", "", h) for h in headings], cells))


def test_the_tab_lists_exchanges_with_what_they_hold(client, page, holding):
    exchange, _ = holding
    empty = client.delayed("topic")
    page.visit("", "#tabs")
    page.click('#tabs a:text-is("Delayed")')
    page.waitForSelector("#delayed-exchanges-table")
    row = row_of(page, exchange)
    assert (row["Type"], row["State"].strip(), row["Pending"], row["Overdue"], row["In flight"]) == (
        "direct", "running", "6", "0", "0")
    assert re.match(r"in 5\dm", row["Next due"]) and row["Size"] != "0 B"
    assert re.fullmatch(r"[\d.]+/s", row["published"]) and re.fullmatch(r"[\d.]+/s", row["released"])
    row = row_of(page, empty)
    assert (row["Type"], row["Pending"], row["Next due"]) == ("topic", "0", "")
    assert page.texts("#tabs a.selected") == ["Delayed"]


def test_the_list_is_sorted_and_filtered(client, page, holding):
    exchange, _ = holding
    other = client.delayed()
    client.publish(other, delay=HOUR_MS)
    page.visit("#/delayed-exchanges", "#delayed-exchanges-table")
    counts = lambda: [int(t.replace(",", "")) for t in
                      page.texts("#delayed-exchanges-table tbody td:nth-child(4)")]
    page.click('a.sort:has-text("Pending")')
    eventually(counts, lambda c: len(c) >= 2 and c == sorted(c))
    page.click('a.sort:has-text("Pending")')
    eventually(counts, lambda c: len(c) >= 2 and c == sorted(c, reverse=True) and c[0] > c[-1])
    page.click('a.sort:has-text("released")')
    page.waitForSelector('a.sort:has-text("released") .arrow')
    page.fill("#delayed-exchanges-name", exchange)
    page.press("#delayed-exchanges-name", "Enter")
    eventually(lambda: page.texts("#delayed-exchanges-table tbody a"), lambda t: t == [exchange])
    page.fill("#delayed-exchanges-name", "")
    page.press("#delayed-exchanges-name", "Enter")
    eventually(lambda: page.texts("#delayed-exchanges-table tbody a"), lambda t: other in t)
    page.click(f'#delayed-exchanges-table a:text-is("{exchange}")')
    page.waitForSelector(TABLE)
    assert numbers(page) == list(range(6))


def test_rates_are_shown(client, page, broker, management):
    exchange = client.delayed()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [b"m"] * 500, headers={"x-delay": HOUR_MS})
        eventually(lambda: management.get(f"delayed-exchanges/%2F/{exchange}")["message_stats"],
                   lambda stats: len(stats["published_details"]["samples"]) > 1
                   and stats["published_details"]["samples"][0]["sample"] == 500)
    page.exchange(exchange)
    page.waitForSelector("#chart-delayed-rates canvas")
    assert "Published" in " ".join(page.texts("table.legend"))


# ------------------------------------------------------------------------- an exchange

def test_an_exchange_without_messages(client, page):
    page.exchange(client.delayed())
    assert page.texts("#delayed-pending") == ["0"]
    assert page.texts("#delayed-messages p") == ["... no messages ..."]
    assert page.count("#delayed-chart-due-times") == 0


def test_the_brokers_page_of_a_delayed_exchange_leads_here_and_back(client, page):
    exchange, plain = client.delayed(name=f"späte / {uuid.uuid4().hex} %"), client.exchange("topic")
    page.visit(f"#/exchanges/%2F/{quoted(exchange)}", "#delayed-link a")
    assert page.count("#delayed-link") == 1
    page.click("#delayed-link a")
    page.waitForSelector(LOADED)
    assert exchange in page.texts("#main h1")[0]
    page.click(f'#main td a:has-text("{exchange}")')
    page.waitForSelector("#delayed-link a")
    page.visit(f"#/exchanges/%2F/{quoted(plain)}", "#main table.facts td:has-text('topic')")
    assert page.count("#delayed-link") == 0


def test_what_else_became_of_messages_is_told(client, page, broker):
    exchange = client.delayed()
    page.exchange(exchange)
    assert page.texts("#delayed-outcomes p") == ["... nothing since the node started ..."]
    for n in range(3):
        client.publish(exchange, "nowhere", b"%d" % n, delay=1)
    for n in range(2):
        client.publish(exchange, "k", b"%d" % n, delay=HOUR_MS)
    broker.ctl("purge_delayed_messages", exchange)
    eventually(lambda: page.exchange(exchange) or page.texts("#delayed-outcomes tbody td"),
               lambda cells: cells == ["2", "cancelled, by their keys or by operators",
                                       "3", "dropped: no queue was bound for them when they were due"])


def test_its_members_are_shown(client, page, broker):
    exchange = client.delayed()
    page.exchange(exchange)
    assert page.texts("#delayed-members p") == ["... none, as it has delayed nothing yet ..."]
    client.publish(exchange, "k", delay=HOUR_MS)
    eventually(lambda: page.exchange(exchange) or page.texts("#delayed-members tbody td"),
               lambda cells: [cell.strip() for cell in cells] == [broker.nodename, "leader", "0"])


def test_one_message_is_in_the_chart_and_in_the_table(client, page):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, "k", b"soon", delay=1)
    client.one(queue)
    client.publish(exchange, "k", b"body", delay=2 * HOUR_MS, headers={"colour": "red"})
    page.exchange(exchange)
    page.waitForSelector("#delayed-chart-due-times .delayed-bar")
    assert page.texts("#delayed-chart-due-times .delayed-bar") == ["1"]
    page.waitForSelector("#delayed-chart-lateness .delayed-bar")
    assert page.texts("#delayed-chart-lateness .delayed-bar") == ["1"]
    assert shown(page, 3) == ["k"] and "colour: red" in shown(page)[0] and shown(page, 6) == ["4 B"]
    labels = page.texts("#delayed-chart-due-times .flot-x-axis .tickLabel")
    assert labels[:3] == ["due", "1 min", "5 min"] and labels[-1] == "later"


def test_messages_come_page_by_page(client, page):
    exchange = client.delayed()
    for n in range(45):
        client.publish(exchange, delay=HOUR_MS + n, headers={"n": n})
    page.exchange(exchange)
    assert numbers(page) == list(range(20))
    for button, first, last in (("Next", 20, 39), ("Next", 40, 44), ("Previous", 20, 39),
                                ("First page", 0, 19)):
        press(page, button)
        page.waitForSelector(f'{ROWS}:nth-child(1):has-text("n: {first},")')
        assert numbers(page) == list(range(first, last + 1))
    page.selectOption("#delayed-limit", "100")
    press(page, "Show")
    page.waitForSelector(LOADED)
    assert numbers(page) == list(range(45))
    assert page.count('button[data-delayed="next"][disabled]') == 1


def test_filters_choose(page, holding):
    page.exchange(holding[0])
    show_filtered(page, 3, routing_key="other")
    assert numbers(page) == [1, 3, 5]
    show_filtered(page, 1, header="n=4")
    assert numbers(page) == [4]
    show_filtered(page, 2, due_from="+90m", due_to="+200m")
    assert numbers(page) == [1, 2]
    show_filtered(page, 1, key="n5")
    assert numbers(page) == [5] and shown(page, 5) == ["n5"]
    show_filtered(page, 0, published_to="elsewhere")
    show_filtered(page, 6)
    page.fill(FILTER + "due_from", "tomorrow")
    press(page, "Show")
    assert "due_from" in popup(page, WARNING, "tomorrow")


def test_the_page_follows_while_what_is_filled_in_stays(client, page, holding):
    exchange, _ = holding
    page.exchange(exchange)
    choose(page, 2)
    page.fill(FILTER + "header", "half")
    client.publish(exchange, delay=HOUR_MS)
    page.evaluate("partial_update()")
    page.await_text("#delayed-pending", "7")
    page.waitForSelector("#delayed-chart-due-times .delayed-bar")
    assert page.inputValue(FILTER + "header") == "half"
    assert page.count(".delayed-one:checked") == 1


# ----------------------------------------------------------------------------- changes

def test_what_is_not_found_on_the_page_is_hidden_and_not_selected(page, management, holding):
    exchange, _ = holding
    page.exchange(exchange)
    visible = f"{ROWS}:visible"
    assert len(numbers(page)) == 6
    page.check("#delayed-all")
    page.fill("#delayed-find", "N: 3")
    assert page.count(visible) == 1 and page.texts("#delayed-found") == ["1 message of these"]
    assert page.count(f"{ROWS} .delayed-one:checked") == 1
    page.fill("#delayed-find", "in no message")
    assert page.count(visible) == 0 and page.count(f"{ROWS} .delayed-one:checked") == 0
    page.check("#delayed-all")
    assert page.count(f"{ROWS} .delayed-one:checked") == 0
    page.uncheck("#delayed-all")
    for hostile in HOSTILE + [".*", "[", "\\"]:
        page.fill("#delayed-find", hostile)
        assert page.count(visible) == 0
    # It stays when the messages come anew.
    page.fill("#delayed-find", "n: 3")
    press(page, "Show")
    page.await_text("#delayed-found", "1 message of these")
    assert page.inputValue("#delayed-find") == "n: 3"
    page.check("#delayed-all")
    press(page, "Cancel")
    assert page.asked(True) == ["1 message will be cancelled. They are gone then: nobody will get them. Are you sure?"]
    popup(page, INFO, "1 message cancelled.")
    assert pending(management, exchange) == 5
    page.fill("#delayed-find", "")
    assert page.count(visible) == 5


def test_selected_messages_are_cancelled_once_it_is_affirmed(page, management, holding):
    exchange, _ = holding
    page.exchange(exchange)
    press(page, "Cancel")
    popup(page, WARNING, "No message is selected")
    choose(page, 1, 2)
    page.asked(False)
    press(page, "Cancel")
    asked, = page.asked(True)
    assert "2 messages will be cancelled" in asked
    assert pending(management, exchange) == 6
    press(page, "Cancel")
    popup(page, INFO, "2 messages cancelled")
    assert len(page.asked(True)) == 1
    eventually(lambda: numbers(page), lambda n: n == [0, 3, 4, 5])
    assert pending(management, exchange) == 4


def test_selected_messages_are_released(client, page, holding):
    exchange, queue = holding
    page.exchange(exchange)
    choose(page, 2, 4)
    press(page, "Release now")
    popup(page, INFO, "2 messages made due now")
    assert "released now" in page.asked(True)[0]
    assert client.texts(queue, 2) == ["m2", "m4"]


def test_messages_are_rescheduled_to_and_by(page, holding):
    page.exchange(holding[0])
    choose(page, 0)
    press(page, "Reschedule")
    popup(page, WARNING, "Reschedule to when")
    page.selectOption("#delayed-due-kind", "by")
    page.fill("#delayed-due", "10h")
    press(page, "Reschedule")
    popup(page, INFO, "1 message rescheduled")
    eventually(lambda: numbers(page), lambda n: n == [1, 2, 3, 4, 5, 0])
    choose(page, 5)
    page.selectOption("#delayed-due-kind", "to")
    page.fill("#delayed-due", "+1m")
    press(page, "Reschedule")
    popup(page, INFO, "1 message rescheduled")
    eventually(lambda: numbers(page), lambda n: n == [5, 1, 2, 3, 4, 0])
    choose(page, 5)
    page.fill("#delayed-due", "whenever")
    press(page, "Reschedule")
    popup(page, WARNING, "whenever")
    assert len(page.asked(True)) == 3


def test_all_that_match_are_counted_and_asked_for_first(page, management, holding):
    exchange, _ = holding
    page.exchange(exchange)
    show_filtered(page, 3, routing_key="k")
    page.selectOption("#delayed-which", "matching")
    page.asked(False)
    press(page, "Cancel")
    eventually(lambda: page.asked(False), lambda asked: "3 messages will be" in "".join(asked))
    assert pending(management, exchange) == 6
    page.asked(True)
    press(page, "Cancel")
    popup(page, INFO, "3 messages cancelled")
    assert len(page.asked(True)) == 1
    press(page, "Cancel")
    popup(page, INFO, "No message matches")
    show_filtered(page, 3)
    assert numbers(page) == [1, 3, 5]


def test_paused_and_resumed(client, page, holding):
    exchange, queue = holding
    page.exchange(exchange)
    unfold(page, "Pause")
    press(page, "Pause")
    page.await_text("#delayed-state", "paused")
    assert "release none" in page.asked(True)[0]
    client.publish(exchange, body=b"held back", delay=1)
    page.visit("#/delayed-exchanges", "#delayed-exchanges-table")
    eventually(lambda: page.evaluate("update()") or row_of(page, exchange),
               lambda row: row.get("Overdue") == "1" and row["State"].strip() == "paused")
    assert client.depth(queue) == 0
    page.exchange(exchange)
    press(page, "Resume")
    page.await_text("#delayed-state", "running")
    assert len(page.asked(True)) == 1
    assert client.texts(queue, 1) == ["held back"]


def test_purged_once_it_is_affirmed(page, management, holding):
    exchange, _ = holding
    page.exchange(exchange)
    unfold(page, "Purge")
    page.asked(False)
    press(page, "Purge Messages")
    eventually(lambda: page.asked(False), lambda asked: "6 messages will be" in "".join(asked))
    assert pending(management, exchange) == 6
    page.asked(True)
    press(page, "Purge Messages")
    popup(page, INFO, "6 messages cancelled")
    page.await_text("#delayed-pending", "0")
    assert len(page.asked(True)) == 1
    assert pending(management, exchange) == 0


def test_a_purge_says_that_what_is_in_flight_may_still_come(page, broker, client, management):
    exchange, queue = client.delayed_and_queue()
    evaluate(broker, f"sys:suspend({queue_process(queue)}).")
    try:
        client.publish(exchange, body=b"in flight", delay=100)
        client.publish(exchange, body=b"later", delay=HOUR_MS)
        eventually(lambda: counted(broker, exchange, "in_flight"), lambda n: n == 1)
        page.exchange(exchange)
        # Pages remember what was unfolded.
        if not page.isVisible('#main button:text-is("Purge Messages")'):
            unfold(page, "Purge")
        page.asked(True)
        press(page, "Purge Messages")
        popup(page, INFO, "1 message cancelled. 1 message already in flight, which queues may still get.")
        page.await_text("#delayed-pending", "0")
        assert len(page.asked(True)) == 1
        assert pending(management, exchange) == 0
    finally:
        evaluate(broker, f"sys:resume({queue_process(queue)}).")
    assert client.texts(queue, 1) == ["in flight"]


# ---------------------------------------------------------------------------- a message

def open_first(page, exchange, vhost="/"):
    page.exchange(exchange, vhost)
    page.click(f"{ROWS}:nth-child(1) a")
    page.waitForSelector(".msg-payload")


def test_a_message_is_shown_and_changed(client, page, management, holding):
    exchange, queue = holding
    client.publish(exchange, "k", "tschüß\n  <b>".encode(), delay=HOUR_MS // 2, message_id="id-1",
                   headers={"deep": {"list": [1, "two", None]}})
    open_first(page, exchange)
    assert page.textContent(".msg-payload") == "tschüß\n  <b>"
    facts = " ".join(page.texts("#delayed-message"))
    assert "id-1" in facts and "two" in facts and "Encoding: string" in facts
    page.fill("#delayed-due", "+1h")
    press(page, "Reschedule")
    popup(page, INFO, "1 message rescheduled")
    page.waitForSelector(LOADED)
    open_first(page, exchange)
    press(page, "Release now")
    popup(page, INFO, "1 message made due now")
    client.one(queue)
    page.waitForSelector(LOADED)
    assert len(page.asked(True)) == 2


def test_a_body_that_is_not_utf8_is_shown_as_base64(client, page):
    body = bytes(range(256))
    exchange = client.delayed()
    client.publish(exchange, "\udcff".encode("utf8", "surrogatepass"), body, delay=HOUR_MS,
                   headers={"b": b"\xfe"})
    open_first(page, exchange)
    assert base64.b64decode(page.textContent(".msg-payload").replace("\n", "")) == body
    assert "Encoding: base64" in " ".join(page.texts("#delayed-message"))


def test_of_a_large_body_the_beginning_is_shown_at_first(client, page):
    exchange = client.delayed()
    client.publish(exchange, body=b"x" * 120_000, delay=HOUR_MS)
    open_first(page, exchange)
    assert page.textContent(".msg-payload") == "x" * 50_000
    press(page, "Show up to 16 MB")
    eventually(lambda: len(page.textContent(".msg-payload")), lambda n: n == 120_000)


def test_a_message_that_is_gone(page, client, holding):
    exchange, _ = holding
    page.visit(f"#/delayed-exchanges/%2F/{exchange}/messages/1", "#delayed-message p.warning")
    assert "no message with id 1" in page.texts("#delayed-message")[0]
    popup(page, WARNING, "no message with id 1")


# --------------------------------------------------------------- names, texts and users

@pytest.mark.parametrize("name", ["a/b c", "100% +1&x=?#y", "größe 'n'", "<b>", "%2F"])
def test_names_of_all_kinds(page, vhost, local, name):
    exchange = local.delayed(name=name)
    local.publish(exchange, "k", name.encode(), delay=HOUR_MS, headers={"n": 1})
    page.visit("#/delayed-exchanges", "#delayed-exchanges-table")
    page.click(f"#delayed-exchanges-table tr:has-text({wire_quoted(vhost)}) a:text-is("
               f"{wire_quoted(name)})")
    page.waitForSelector(LOADED)
    page.click(f"{ROWS}:nth-child(1) a")
    page.waitForSelector(".msg-payload")
    assert page.textContent(".msg-payload") == name
    press(page, "Cancel")
    popup(page, INFO, "1 message cancelled")
    page.waitForSelector(LOADED)
    assert page.texts("#delayed-pending") == ["0"]
    assert len(page.asked(True)) == 1


def wire_quoted(text):
    """As a string of a selector."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_nothing_else(client, page, text):
    exchange = client.delayed("topic", name=f"{text} {uuid.uuid4().hex[:8]}")
    for delay in (HOUR_MS, 2 * HOUR_MS):
        client.publish(exchange, text, text.encode(), delay=delay, message_id=text,
                       content_type=text, headers={text: text, "x-delay-key": text,
                                                   "table": {text: [text, {text: text}]}})

    def unharmed():
        assert page.evaluate("typeof window.hurt") == "undefined"
        assert page.count("img[src=x], #main svg, #main script, .form-popup-warn img") == 0

    page.visit("#/delayed-exchanges", "#delayed-exchanges-table")
    assert exchange in page.texts("#delayed-exchanges-table tbody a")
    unharmed()
    page.exchange(exchange)
    assert exchange in page.texts("h1")[0]
    assert shown(page, 3) == [text] * 2
    assert f"{text}: {text}" in shown(page)[0]
    unharmed()
    page.fill(FILTER + "header", text.replace("=", ""))
    press(page, "Show")
    popup(page, WARNING, "name=value")
    unharmed()
    open_first(page, exchange)
    assert page.textContent(".msg-payload") == text
    facts = page.textContent("#delayed-message")
    assert facts.count(text) >= 6
    unharmed()


@pytest.fixture
def user(broker, browser):
    """Makes users of the management plugin with these permissions, and opens the pages as them."""
    made = []

    def make(configure, read):
        name = f"u-{uuid.uuid4().hex[:8]}"
        made.append(name)
        broker.ctl("add_user", name, name)
        broker.ctl("set_user_tags", name, "management")
        broker.ctl("set_permissions", name, configure, ".*", read)
        return Page(browser, broker, name)

    yield make
    for name in made:
        broker.ctl("delete_user", name)


def test_a_page_one_of_whose_scripts_is_lost_is_made_anew(page):
    page.lose("**/jquery*.js")
    page.visit("#/delayed-exchanges", "#main h1:has-text('Delayed exchanges')")


def test_who_may_not_see_messages_is_told(user, holding):
    page = user(configure=".*", read="^$")
    page.exchange(holding[0])
    assert "read permission" in popup(page, WARNING, holding[0])
    assert "read permission" in page.texts("#delayed-messages")[0]
    assert page.texts("#delayed-pending") == ["6"]
    assert page.errors() == []
    page.close()


def test_who_may_not_change_messages_is_told(user, management, holding):
    exchange, _ = holding
    page = user(configure="^$", read=".*")
    page.exchange(exchange)
    choose(page, 0)
    press(page, "Cancel")
    assert "configure permission" in popup(page, WARNING, exchange)
    page.selectOption("#delayed-which", "matching")
    press(page, "Release now")
    assert "configure permission" in popup(page, WARNING, exchange)
    unfold(page, "Pause")
    press(page, "Pause")
    assert "configure permission" in popup(page, WARNING, exchange)
    assert page.errors() == []
    assert pending(management, exchange) == 6
    page.close()


# --------------------------------------------------------------------------------- many

def test_with_a_hundred_thousand_messages(broker, client, page, management):
    exchange = client.delayed()
    with wire.Publisher(broker) as publisher:
        for n in range(10):
            publisher.publish(exchange, f"k{n}", [b"m"] * 10_000,
                              headers={"x-delay": (n + 1) * HOUR_MS, "n": n})
    page.exchange(exchange)
    assert page.texts("#delayed-pending") == ["100,000"]
    assert len(shown(page)) == 20
    page.waitForSelector("#delayed-chart-due-times .delayed-bar")
    assert page.texts("#delayed-chart-due-times .delayed-bar") == ["10.0k", "20k", "70k"]
    show_filtered(page, 20, routing_key="k9")
    assert numbers(page) == [9] * 20
    show_filtered(page, 0, header="n=none")
    show_filtered(page, 20, routing_key="k9")
    page.selectOption("#delayed-which", "matching")
    press(page, "Cancel")
    popup(page, INFO, "10,000 messages cancelled")
    assert "10,000 messages will be cancelled" in page.asked(True)[0]
    assert pending(management, exchange) == 90_000
