# SPDX-License-Identifier: MPL-2.0
"""The pages for dead-lettering among the broker's management pages, clicked through in a headless
Chromium, with real dead letters."""

import json
import re

import pytest

import wire
from browser import HOSTILE, INFO, WARNING, Page, popup, press
from management import eventually, quoted
from test_redrive import depth, park, topology

FINDINGS = "#dead-lettering-table"
GRAPH = "#dead-lettering-graph svg"
GROUPS = "#dead-letters-table"


@pytest.fixture
def parked(local):
    work, queue = topology(local)
    park(local, work, queue, ["a", "b", "c"], headers={"n": 1})
    return work, queue


def visit(page, vhost, selector=GRAPH):
    """The page of traps of one vhost, once it says nothing of others any more."""
    page.visit("#/dead-lettering", "#dead-lettering-findings")
    page.selectOption("#show-vhost", vhost)
    shown = f"#dead-lettering-findings[data-vhost={json.dumps(vhost, ensure_ascii=False)}]"
    page.waitForSelector(f"#main:has({shown}) {selector}")


def visit_queue(page, vhost, queue):
    page.visit(f"#/dead-letters/{quoted(vhost)}/{quoted(queue)}",
               f"{GROUPS}, #dead-letters-groups p:not(:has-text('Looking'))")


def test_the_traps_are_listed_with_what_mends_them(page, local, vhost, parked):
    local.queue(name="broken", arguments={"x-dead-letter-exchange": "gone é"})
    page.visit("#/exchanges", "#tabs a")
    page.click('#tabs a:text-is("Admin")')
    page.click('#rhs a:text-is("Dead Letters")')
    page.waitForSelector(FINDINGS)
    visit(page, vhost)
    row, = page.texts(f'{FINDINGS} tbody[data-rule="dlx_missing"]')
    assert "error" in row and "broken" in row and "gone é" in row
    assert page.count(f"{FINDINGS} pre") > 0
    local.channel.queue_delete("broken")
    press(page, "Check again")
    page.waitForSelector(f'{GRAPH}:not(:has-text("broken"))')
    assert page.count(f'{FINDINGS} tbody[data-rule="dlx_missing"]') == 0


def test_findings_of_a_rule_are_one_group(page, local, vhost, management):
    """The worst first, as over HTTP; of many the first ones, and the rest when one asks for them."""
    for n in range(8):
        local.queue(name=f"broken {n}", arguments={"x-dead-letter-exchange": "gone"})
    local.queue(name="alone", arguments={"x-dead-letter-exchange": local.exchange("direct")})
    visit(page, vhost)
    found = management.get(f"dead-lettering/{quoted(vhost)}")["findings"]
    rules = list(dict.fromkeys(finding["rule"] for finding in found))
    assert page.evaluate(f"Array.from(document.querySelectorAll('{FINDINGS} tbody'), t => t.dataset.rule)") == rules
    group = f'{FINDINGS} tbody[data-rule="dlx_missing"]'
    assert "8 times" in page.texts(f"{group} tr:nth-child(1)")[0]
    assert "once" in page.texts(f'{FINDINGS} tbody[data-rule="dlx_unroutable"] tr:nth-child(1)')[0]
    shown = f"{group} .dead-lettering-finding:visible"
    assert page.count(shown) == 5
    page.click(f'{group} button:text-is("Show 3 more")')
    assert page.count(shown) == 8
    names = {name for name in (f"broken {n}" for n in range(8)) if page.count(f'{group} a:text-is("{name}")') == 1}
    assert len(names) == 8


def test_the_drawing_shows_where_dead_letters_go(page, local, vhost, parked):
    work, queue = parked
    local.queue(name="broken", arguments={"x-dead-letter-exchange": "gone é"})
    for name, to in (("there", "back"), ("back", "there")):
        local.queue(name=name, arguments={"x-dead-letter-exchange": "",
                                          "x-dead-letter-routing-key": to})
    visit(page, vhost)
    names = page.evaluate(f"Array.from(document.querySelectorAll('{GRAPH} text'), t => t.textContent)")
    for name in (work, queue, "broken", "gone é", "there", "back", "(default)"):
        assert name in names
    assert page.count(f"{GRAPH} path.back") == 1
    red = page.evaluate("Array.from(document.querySelectorAll('" + GRAPH + " rect.red'), "
                        "r => r.parentNode.querySelector('text').textContent)")
    assert sorted(name for name in red if name != "(default)") == ["back", "gone é", "there"]
    assert any(text.startswith("queue, 3") for text in page.evaluate(
        f"Array.from(document.querySelectorAll('{GRAPH} text'), t => t.textContent)"))
    assert page.count(f"{GRAPH} path.forward") == 6
    page.click(f'{GRAPH} a:has-text("{queue}")')
    page.waitForSelector(GROUPS)
    assert work in page.texts(GROUPS)[0]


def test_the_queues_that_dead_letters_go_to_are_listed_the_fullest_first(page, local, vhost, parked):
    work, queue = parked
    other = local.queue(name="other \u00fc")
    local.queue(name="to other", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": other})
    rows = ".dead-lettering-queues tbody tr"
    visit(page, vhost, rows)
    assert page.texts(f"{rows} td:nth-child(1)") == [queue, other]
    assert page.texts(f"{rows} td:nth-child(2)") == ["3", "0"]
    # What the management plugin knows comes a little later.
    def consumers():
        press(page, "Check again")
        page.waitForSelector("#dead-lettering-findings[data-vhost]")
        page.waitForSelector(rows)
        return page.texts(f"{rows} td:nth-child(5)")

    eventually(consumers, lambda cells: cells == ["0", "0"], within=60)
    page.fill(".dead-lettering-filter", "OTHER")
    page.waitForSelector(f'.dead-lettering-queues:not(:has-text("{queue}"))')
    assert page.texts(f"{rows} td:nth-child(1)") == [other]
    page.fill(".dead-lettering-filter", "")
    page.click(f'{rows} a:text-is("{queue}")')
    page.waitForSelector(GROUPS)
    assert work in page.texts(GROUPS)[0]


def test_what_comes_in_and_by_how_much_it_grows_is_shown(page, local, vhost):
    """In the list and the drawing: of dead letters, which the broker does not count as they come."""
    _, queue = topology(local)
    source = local.queue(name="source", arguments={"x-dead-letter-exchange": "", "x-message-ttl": 1,
                                                   "x-dead-letter-routing-key": queue})
    visit(page, vhost, ".dead-lettering-queues")

    def rates():
        for _ in range(20):
            local.channel.basic_publish("", source, b"m")
        press(page, "Check again")
        page.waitForSelector("#dead-lettering-findings[data-vhost]")
        page.waitForSelector(f"{GRAPH} a")
        row = f'.dead-lettering-queues tr:has(a:text-is("{queue}")) td:nth-child'
        return [page.texts(f"{row}({column})") for column in (3, 4)], [
            text for text in page.evaluate(f"Array.from(document.querySelectorAll('{GRAPH} text'), t => t.textContent)")
            if re.fullmatch(r"queue, [\d,]+, [\d.,]+/s", text)]

    (comes, grows), drawn_rates = eventually(rates, lambda now: bool(now[1]) and now[0][0][0] not in ("", "0/s"), within=90)
    assert re.fullmatch(r"[\d.,]+/s", comes[0]) and re.fullmatch(r"[\d.,]+/s", grows[0])
    assert any(text.endswith(", " + comes[0]) for text in drawn_rates)


def test_when_the_first_of_a_queue_died_is_said_where_looking_changes_nothing(page, local, vhost):
    for kind in ("classic", "quorum"):
        work, queue = topology(local, kind, work=f"work {kind}", parked=f"parked {kind}")
        park(local, work, queue, ["a", "b"])

    def oldest():
        visit(page, vhost, ".dead-lettering-queues")
        page.waitForSelector('.dead-lettering-queues:has-text("ago")')
        return {name: page.texts(f'.dead-lettering-queues tr:has(a:text-is("parked {name}")) td:nth-child(6)')
                for name in ("classic", "quorum")}

    cells = oldest()
    assert cells["classic"] == [""] and cells["quorum"][0].endswith(" ago")
    assert local.texts("parked quorum", 2) == ["a", "b"]


def drawn(page):
    """The texts of queues in the drawing."""
    return page.evaluate(f"Array.from(document.querySelectorAll('{GRAPH} a'), a => a.textContent)")


def test_of_many_queues_the_red_ones_are_drawn_and_what_is_asked_for(page, local, vhost):
    """And what leads nowhere by its key is red."""
    dlx = local.exchange("direct")
    for number in range(500):
        parked = local.queue(name=f"parked {number}")
        local.channel.queue_bind(parked, dlx, f"k{number}")
        local.queue(name=f"work {number}", arguments={
            "x-dead-letter-exchange": dlx, "x-dead-letter-routing-key": f"k{number}"})
    local.queue(name="lost", arguments={"x-dead-letter-exchange": dlx,
                                        "x-dead-letter-routing-key": "nowhere"})
    visit(page, vhost)
    links = drawn(page)
    assert len(links) == 1 and "lost" in links[0]
    assert page.count(f"{GRAPH} rect.red") == 1
    page.fill(".dead-lettering-filter", "work 321")
    page.waitForSelector(f'{GRAPH} a:has-text("work 321")')
    links = drawn(page)
    assert len(links) == 2 and any("parked 321" in link for link in links)
    assert page.count(f"{GRAPH} rect.red") == 0


def test_a_queue_is_looked_into(page, local, vhost, parked):
    work, queue = parked
    visit(page, vhost)
    page.fill("#dead-letters-vhost", vhost)
    press(page, "Look")
    popup(page, WARNING, "Which queue")
    page.fill("#dead-letters-queue", queue)
    press(page, "Look")
    page.waitForSelector(GROUPS)
    cells = page.texts(f"{GROUPS} tbody td")
    assert cells[:5] == [work, "rejected", "(AMQP default)", work, "3"]
    page.fill("#dead-letters-position", "2")
    press(page, "Explain")
    page.waitForSelector("#dead-letters-history li")
    assert work in " ".join(page.texts("#dead-letters-history li"))
    page.fill("#dead-letters-position", "9")
    press(page, "Explain")
    popup(page, WARNING, "3 messages")
    assert depth(local, queue) == 3


def test_dead_letters_are_redriven_once_it_is_affirmed(page, local, vhost, parked):
    work, queue = parked
    visit_queue(page, vhost, queue)
    page.asked(False)
    press(page, "Redrive")
    asked, = eventually(lambda: page.asked(False), bool)
    assert "3 messages will be redriven" in asked and work in asked
    assert depth(local, queue) == 3
    page.asked(True)
    page.fill("#dead-letters-limit", "2")
    press(page, "Redrive")
    assert "2 of 2 messages redriven" in popup(page, INFO, "redriven")
    eventually(lambda: page.texts(f"{GROUPS} tbody td:nth-child(5)"), lambda texts: texts == ["1"])
    page.fill("#dead-letters-limit", "")
    page.selectOption("#dead-letters-reason", "expired")
    press(page, "Redrive")
    popup(page, INFO, "0 of 1 messages can be redriven")
    page.selectOption("#dead-letters-reason", "rejected")
    for field, wrong, right in (("header", "n=2", "n=1"), ("origin", "elsewhere", work),
                                ("older_than", "1h", "0s"), ("newer_than", "0", "1h")):
        page.fill(f"#dead-letters-{field}", wrong)
        press(page, "Redrive")
        popup(page, INFO, "0 of 1 messages can be redriven")
        page.fill(f"#dead-letters-{field}", right)
    page.check("#dead-letters-keep")
    page.selectOption("#dead-letters-to", "queue")
    press(page, "Redrive")
    popup(page, WARNING, "To which queue")
    local.queue(name="elsewhere")
    page.fill("#dead-letters-target", "elsewhere")
    press(page, "Redrive")
    popup(page, INFO, "1 of 1 messages redriven")
    page.waitForSelector("#dead-letters-groups p:has-text('no messages')")
    assert local.texts(work, 2) == ["a", "b"]
    delivery = local.one("elsewhere")
    assert delivery.text == "c" and delivery.headers["x-death"][0]["queue"] == work
    assert len(page.asked(True)) == 2


LIST = "#dead-letters-list"


def tick(page, *bodies):
    for body in bodies:
        page.click(f'{LIST} tbody tr:has(td:nth-child(6):text-is("{body}")) .dead-letters-one')


def rows(page):
    return page.texts(f"{LIST} tbody td:nth-child(6)")


def test_messages_are_looked_at_page_by_page(page, local, vhost):
    work, queue = topology(local, "quorum")
    park(local, work, queue, [f"m{n}" for n in range(45)], headers={"who": "\u00e9"}, content_type="a/b")
    visit_queue(page, vhost, queue)
    page.waitForSelector(LIST)
    assert rows(page) == [f"m{n}" for n in range(20)]
    press(page, "Next")
    page.await_text(LIST, "m20")
    press(page, "Next")
    page.await_text(LIST, "m40")
    assert rows(page) == [f"m{n}" for n in range(40, 45)]
    assert page.evaluate("document.querySelector('[data-dead-letter=next]').disabled") is True
    press(page, "Previous")
    page.await_text(LIST, "m20")
    page.click(f'{LIST} tbody tr:has(td:text-is("m21")) button')
    shown, = page.texts("#dead-letters-message")
    for said in ("a/b", "who", "\u00e9", "m21", "rejected", f"Routing key\t{queue}", "Message 22"):
        assert said in shown, shown
    assert work in page.texts("#dead-letters-message li")[0]
    press(page, "First page")
    page.await_text(LIST, "m0")
    assert rows(page) == [f"m{n}" for n in range(20)]
    assert depth(local, queue) == 45


def test_ticked_messages_are_redriven_or_dropped(page, local, vhost):
    work, queue = topology(local)
    park(local, work, queue, ["a", "b", "c", "d", "e"])
    visit_queue(page, vhost, queue)
    page.waitForSelector(LIST)
    press(page, "Drop selected")
    popup(page, WARNING, "Which messages")
    tick(page, "b", "d")
    page.asked(False)
    press(page, "Drop selected")
    asked, = eventually(lambda: page.asked(True), bool)
    assert "2 messages will be dropped" in asked and depth(local, queue) == 5
    press(page, "Drop selected")
    popup(page, INFO, "2 messages dropped")
    page.waitForSelector(f'{LIST}:not(:has(td:text-is("b")))')
    assert rows(page) == ["a", "c", "e"]
    # One of those that are ticked is gone meanwhile.
    tick(page, "a", "e")
    assert local.channel.basic_get(queue, auto_ack=True)[2] == b"a"
    press(page, "Redrive selected")
    said = popup(page, INFO, "redriven")
    assert "1 message redriven" in said and "1 message not in the queue any more" in said
    page.waitForSelector(f'{LIST}:not(:has(td:text-is("e")))')
    assert rows(page) == ["c"]
    assert local.texts(work, 1) == ["e"]
    local.queue(name="elsewhere")
    page.click("#dead-letters-all")
    page.selectOption("#dead-letters-chosen-to", "queue")
    press(page, "Redrive selected")
    popup(page, WARNING, "To which queue")
    page.fill("#dead-letters-chosen-target", "elsewhere")
    press(page, "Redrive selected")
    popup(page, INFO, "1 message redriven")
    page.waitForSelector("#dead-letters-messages p:has-text('no messages')")
    assert local.texts("elsewhere", 1) == ["c"]
    assert len(page.asked(True)) == 3


def test_an_edited_copy_is_sent(page, local, vhost):
    work, queue = topology(local)
    x = local.exchange("direct")
    other = local.queue((x, "new"))
    park(local, work, queue, ["\nline 1\nline 2", "b"], headers={"n": 1, "t": "x"}, content_type="a/b")
    visit_queue(page, vhost, queue)
    page.waitForSelector(LIST)
    page.click(f"{LIST} tbody tr:nth-child(1) button")
    press(page, "Edit a copy")
    # Nothing changed: the copy is as it came.
    page.click("#dead-letters-copy-keep")
    page.selectOption("#dead-letters-copy-to", "exchange")
    page.fill("#dead-letters-copy-target", x)
    page.fill("#dead-letters-copy-key", "new")
    press(page, "Send")
    popup(page, INFO, "1 message sent")
    got = local.one(other)
    assert (got.text, got.headers["n"], got.properties.content_type) == ("\nline 1\nline 2", 1, "a/b")
    page.waitForSelector(LIST)
    assert depth(local, queue) == 2
    page.click(f'{LIST} tbody tr:has(td:text-is("b")) button')
    press(page, "Edit a copy")
    page.fill("#dead-letters-copy-headers", "{")
    press(page, "Send")
    popup(page, WARNING, "headers are not a JSON object")
    page.fill("#dead-letters-copy-headers", '{"t": "y", "more": [1]}')
    page.fill("#dead-letters-copy-properties", '{"priority": 7}')
    page.fill("#dead-letters-copy-body", "\u00e9 new")
    press(page, "Send")
    popup(page, INFO, "1 message sent")
    got = local.one(work)
    assert (got.text, got.headers, got.properties.priority, got.properties.content_type) == (
        "\u00e9 new", {"t": "y", "more": [1], "x-redrive-count": 1}, 7, None)
    page.waitForSelector(f'{LIST}:not(:has(td:text-is("b")))')
    assert depth(local, queue) == 1 and len(page.asked(True)) == 2


def test_many_are_redriven_in_one_go(page, local, vhost, broker):
    work, queue = topology(local, "quorum")
    local.queue(name="source", arguments={"x-dead-letter-exchange": "", "x-message-ttl": 1,
                                          "x-dead-letter-routing-key": queue})
    with wire.Publisher(broker, vhost) as publisher:
        publisher.publish("", "source", [b"m"] * 12_000)
    eventually(lambda: depth(local, queue), lambda n: n == 12_000)
    local.queue(name="elsewhere")
    visit_queue(page, vhost, queue)
    page.await_text("#dead-letters-groups", "Only the first 3,000 messages were looked at")
    page.selectOption("#dead-letters-to", "queue")
    page.fill("#dead-letters-target", "elsewhere")
    press(page, "Redrive")
    assert "12,000 of 12,000 messages redriven" in popup(page, INFO, "redriven")
    assert depth(local, "elsewhere") == 12_000
    assert "3,000 or more messages" in page.asked(True)[0]


JOBS = ".dead-letters-jobs"


def test_a_redrive_survives_the_page_and_is_stopped(page, local, vhost, broker):
    """It goes on when the page is left, is shown with its progress on whatever page comes next, and ends when
    one is told to stop it."""
    many = 3000
    queue, target = local.queue(), local.queue()
    with wire.Publisher(broker, vhost) as publisher:
        publisher.publish("", queue, [b"m"] * many)
    eventually(lambda: depth(local, queue), lambda n: n == many)
    visit_queue(page, vhost, queue)
    page.selectOption("#dead-letters-to", "queue")
    page.fill("#dead-letters-target", target)
    page.fill("#dead-letters-rate", "x")
    press(page, "Redrive")
    popup(page, WARNING, "a second")
    page.fill("#dead-letters-rate", "20")
    page.fill("#dead-letters-older_than", "1y")
    press(page, "Redrive")
    popup(page, WARNING, "no span of time")
    page.fill("#dead-letters-older_than", "")
    press(page, "Redrive")
    page.waitForSelector(f"{JOBS} progress")
    assert page.asked(True)
    page.visit("#/exchanges", "#tabs a")
    eventually(lambda: depth(local, target), lambda n: n > 0)
    visit_queue(page, vhost, queue)
    page.waitForSelector(f"{JOBS} progress")

    def far():
        return page.texts(f"{JOBS} tbody tr .dead-letters-far")[0]

    first = far()
    assert "of 3,000 looked at" in eventually(far, lambda now: now != first)
    # On the page of all queues, too, from which one gets back.
    visit(page, vhost, "#dead-lettering-findings")
    page.waitForSelector(f'{JOBS} a:text-is("{queue}")')
    page.click(f'{JOBS} a:text-is("{queue}")')
    page.waitForSelector(f"#dead-letters-redrive:has(~ #dead-letters-redrives {JOBS})")
    press(page, "Stop")
    page.await_text(JOBS, "stopped by user 'guest'")
    assert page.count(f"{JOBS} button") == 0
    assert 0 < depth(local, target) < many
    eventually(lambda: depth(local, target) + depth(local, queue), lambda n: n == many)


def test_an_empty_queue_and_one_that_is_not_there(page, local, vhost):
    queue = local.queue()
    visit_queue(page, vhost, queue)
    assert page.texts("#dead-letters-groups p") == ["... no messages ..."]
    visit_queue(page, vhost, "none")
    popup(page, WARNING, "no queue")


def test_hostile_names_are_shown_and_do_nothing(page, local, vhost):
    for name in HOSTILE:
        local.queue(name=name, arguments={"x-dead-letter-exchange": name + " gone"})
    parked = local.queue(name="parked")
    work = local.queue(name="w" + HOSTILE[1], arguments={"x-dead-letter-exchange": "",
                                                         "x-dead-letter-routing-key": parked})
    park(local, work, parked, ["m"], headers={HOSTILE[0]: HOSTILE[2]})
    visit(page, vhost)
    page.click(f'{FINDINGS} tbody[data-rule="dlx_missing"] button')
    text = page.texts("#dead-lettering-findings")[0]
    for name in HOSTILE:
        assert name in text
    visit_queue(page, vhost, parked)
    assert work in page.texts(f"{GROUPS} tbody td")
    page.waitForSelector(LIST)
    page.click(f"{LIST} tbody tr:nth-child(1) button")
    press(page, "Edit a copy")
    for name in (HOSTILE[0], HOSTILE[2]):
        assert name in page.texts("#dead-letters-message")[0]
    assert HOSTILE[2] in json.loads(page.evaluate("document.querySelector('#dead-letters-copy-headers').value")).values()
    press(page, "Explain")
    page.waitForSelector("#dead-letters-history li")
    visit_queue(page, vhost, HOSTILE[0])
    assert page.evaluate("window.hurt === undefined") is True


def test_who_may_not_sees_why(browser, broker, management, vhost, parked):
    user = f"looker-{vhost[2:8]}"
    management.request("PUT", f"users/{user}", {"password": user, "tags": "management"})
    management.request("PUT", f"permissions/{quoted(vhost)}/{user}",
                       {"configure": "", "read": "^$", "write": ""})
    try:
        theirs = Page(browser, broker, user)
        theirs.click('#tabs a:text-is("Admin")')
        theirs.waitForSelector("#rhs a")
        assert theirs.count('#rhs a:text-is("Dead Letters")') == 0
        visit_queue(theirs, vhost, parked[1])
        assert "read permission" in popup(theirs, WARNING, "refused")
        theirs.close()
    finally:
        management.request("DELETE", f"users/{user}")
