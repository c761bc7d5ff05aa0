# SPDX-License-Identifier: MPL-2.0
"""The pages on a narrow screen and on a wide one: nothing of them is cut off, or lies under another."""

import pytest

import wire
from browser import LOADED
from management import quoted
from node import HOUR_MS
from test_redrive import park, topology

# What is neither within the page's width nor within something that scrolls by itself and is.
CUT_OFF = """(() => {
    const main = document.querySelector('#main') || document.body, edge = main.getBoundingClientRect();
    const scrolls = at => ['auto', 'scroll'].includes(getComputedStyle(at).overflowX)
        && (at.classList.contains('delayed-wide') || at.matches('table.facts'));
    const found = [];
    for (const at of main.querySelectorAll('*')) {
        const place = at.getBoundingClientRect();
        if (place.width === 0 || place.height === 0) continue;
        if (place.left >= edge.left - 1 && place.right <= Math.min(edge.right, innerWidth) + 1) continue;
        let over = at.parentElement;
        while (over !== main.parentElement && !scrolls(over)) over = over.parentElement;
        if (over === main.parentElement) found.push(`${at.tagName} #${at.id} .${at.className} to ${place.right}`);
    }
    return found;
})()"""

# The heading is to be seen, and so is what the first thing to press says.
UNDER_OTHERS = """(() => {
    scrollTo(0, 0);
    return [...document.querySelectorAll('#main > h1, #main h2')].filter(at => {
        at.scrollIntoView({block: 'center'});
        const place = at.getBoundingClientRect();
        const seen = document.elementFromPoint(place.left + 30, place.top + place.height / 2);
        return !at.contains(seen);
    }).map(at => at.textContent);
})()"""


@pytest.fixture
def pages(local, vhost, broker):
    """Each of our pages: its address, and what is there once it has come."""
    long = "a-name-that-is-as-long-as-names-are-in-real-life." * 3
    exchange = local.delayed("topic", name=long + "x")
    local.queue((exchange, "#"), name=long + "q")
    for n in range(3):
        local.publish(exchange, "basket.abandoned.of.somebody", b'{"basket": %d}' % n, delay=(n + 1) * HOUR_MS,
                      headers={"x-delay-key": f"key/{n}" * 5, "tenant": "acme " * 20}, message_id=f"m{n}")
    work, parked = topology(local, work=long + "w", parked=long + "p")
    park(local, work, parked, ["a", "b"])
    local.queue(name="broken", arguments={"x-dead-letter-exchange": long + "gone"})
    many, target = local.queue(name=long + "m"), local.queue()
    with wire.Publisher(broker, vhost) as publisher:
        publisher.publish("", many, [b"m"] * 50)
    of = f"#/delayed-exchanges/{quoted(vhost)}/{quoted(exchange)}"
    dead = f"#/dead-letters/{quoted(vhost)}/{quoted(parked)}"
    return {"list": ("#/delayed-exchanges", "#delayed-exchanges-table"), "exchange": (of, LOADED),
            "message": (of, LOADED), "traps": ("#/dead-lettering", "#dead-lettering-graph svg"),
            "dead letters": (dead, "#dead-letters-table"), "parked": parked, "target": target}


@pytest.mark.parametrize("width", [480, 1440])
def test_nothing_is_cut_off(page, pages, width):
    page.setViewportSize({"width": width, "height": 900})
    try:
        for name in ("list", "exchange", "message", "traps", "dead letters"):
            address, selector = pages[name]
            page.visit(address, selector)
            if name == "message":
                page.click("#delayed-messages-table tbody tr:nth-child(1) a")
                page.waitForSelector(".msg-payload")
            if name == "dead letters":
                page.waitForSelector("#dead-letters-list")
                page.click("#dead-letters-list tbody tr:nth-child(1) button")
                page.click('#main button:text-is("Edit a copy")')
                page.waitForSelector("#dead-letters-copy-body")
                assert page.evaluate(CUT_OFF) == [] and page.evaluate(UNDER_OTHERS) == []
                page.click('#main button:text-is("Explain")')
                page.waitForSelector("#dead-letters-history li")
                page.selectOption("#dead-letters-to", "queue")
                page.fill("#dead-letters-target", pages["target"])
                page.click('#main button:text-is("Redrive")')
                page.waitForSelector(".dead-letters-jobs")
                page.await_text(".dead-letters-jobs", "redriven")
                assert page.asked(True)
                page.waitForSelector(".form-popup-info")
                page.click(".form-popup-info span")
            assert page.evaluate(CUT_OFF) == [], name
            assert page.evaluate(UNDER_OTHERS) == [], name
        page.goto(page.url + "api/delay-wheel/index.html")
        page.waitForSelector("#operations tbody tr")
        assert page.evaluate(CUT_OFF) == []
    finally:
        page.setViewportSize({"width": 1280, "height": 900})
