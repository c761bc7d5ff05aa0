#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""Takes the reference screenshots of the management pages, of the series in BROKER_SERIES, into
screenshots/SERIES/: a real broker with made-up orders, seen with a real browser."""

import json
import math
import os
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "integration"))
# pylint: disable=wrong-import-position
import programs  # noqa: E402
import wire  # noqa: E402
from browser import LOADED, Browser, Page  # noqa: E402
from client import Client  # noqa: E402
from node import HOUR_MS  # noqa: E402
from private_broker import PrivateBroker, default_series  # noqa: E402

SIZE = {"width": 1240, "height": 520}
# Longer than the pages show, so that how it began is not to be seen.
TRAFFIC_SECONDS = 80
MINUTE_MS = 60_000
REMINDERS = [(40, 20_000), (130, 4 * MINUTE_MS), (260, 12 * MINUTE_MS), (610, 50 * MINUTE_MS),
             (540, 2 * HOUR_MS), (420, 9 * HOUR_MS), (700, 20 * HOUR_MS), (350, 60 * HOUR_MS),
             (210, 150 * HOUR_MS), (320, 600 * HOUR_MS), (90, 2000 * HOUR_MS)]


def order(number):
    return json.dumps({"order": number, "customer": f"C-{number % 97:03d}", "attempt": 1,
                       "say": "Your basket is still here"}, indent=2).encode()


def fill(broker, client):
    reminders = client.delayed("topic", name="reminders")
    client.queue((reminders, "#"), name="mail")
    client.delayed("fanout", name="nightly.cleanup")
    retries = client.delayed("direct", name="orders.retry")
    client.queue((retries, "orders"), name="orders")
    with wire.Publisher(broker) as publisher:
        number = 4000
        for count, due in REMINDERS:
            bodies = [order(number + n) for n in range(count)]
            number += count
            publisher.publish(reminders, f"basket.{'shop' if number % 2 else 'app'}", bodies,
                              headers={"x-delay": due, "tenant": f"t{count % 7}"})
        publisher.publish(retries, "orders", [b"{}"] * 85, headers={"x-delay": HOUR_MS})
        for n in range(4):
            client.publish(reminders, "basket.abandoned", order(3990 + n),
                           delay=30 * MINUTE_MS * (n + 1), content_type="application/json",
                           headers={"tenant": "acme", "x-delay-key": f"basket/{3990 + n}"},
                           message_id=f"b-{3990 + n}")
        began = time.monotonic()
        while (passed := time.monotonic() - began) < TRAFFIC_SECONDS:
            waves = int(10 + 6 * math.sin(passed / 7))
            publisher.publish(reminders, "basket.app", [order(1)] * waves, headers={"x-delay": 8000})
            publisher.publish(retries, "orders", [b"{}"] * 5, headers={"x-delay": 800})
            time.sleep(0.2)
    return reminders


def fill_dead_letters(client):
    """Dead letters, and a topology with traps in it."""
    client.exchange("direct", name="dead")
    client.queue(("dead", "payments"), ("dead", "invoices"), name="parked")
    for name in ("payments", "invoices"):
        client.queue(name=name, arguments={"x-dead-letter-exchange": "dead",
                                           "x-dead-letter-routing-key": name})
    client.queue(name="emails", arguments={"x-dead-letter-exchange": "dead.emails"})
    client.queue(name="retry.30s", arguments={"x-message-ttl": 30_000, "x-dead-letter-exchange": "",
                                              "x-dead-letter-routing-key": "webhooks"})
    client.queue(name="webhooks", arguments={"x-dead-letter-exchange": "",
                                             "x-dead-letter-routing-key": "retry.30s"})
    channel = client.connection.channel()
    for name, count in (("payments", 12), ("invoices", 5)):
        for number in range(count):
            client.publish("", name, order(number))
            reject(channel, name)


def reject(channel, queue):
    while not (got := channel.basic_get(queue))[0]:
        pass
    channel.basic_reject(got[0].delivery_tag, requeue=False)


def take(page, exchange, directory):
    def shoot(name):
        page.evaluate("document.activeElement.blur(), window.scrollTo(0, 0)")
        page.screenshot({"path": os.path.join(directory, name + ".png"), "fullPage": True})

    page.setViewportSize(SIZE)
    page.visit("#/delayed-exchanges", "#delayed-exchanges-table")
    shoot("list")
    page.exchange(exchange)
    page.fill("#delayed-filter-routing_key", "basket.abandoned")
    page.press("#delayed-filter-routing_key", "Enter")
    page.waitForSelector(LOADED)
    page.waitForSelector("#delayed-chart-lateness .delayed-bar")
    shoot("exchange")
    page.click("#delayed-messages-table tbody tr:nth-child(1) a")
    page.waitForSelector(".msg-payload")
    shoot("message")
    page.visit("#/dead-lettering", "#dead-lettering-graph svg")
    shoot("dead-lettering")
    page.visit("#/dead-letters/%2F/parked", "#dead-letters-table")
    page.click('button:text-is("Explain")')
    page.waitForSelector("#dead-letters-history li")
    shoot("dead-letters")
    assert page.errors() == []


def main():
    programs.install(programs.UI)
    directory = os.path.join(HERE, "screenshots", default_series())
    os.makedirs(directory, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="delay-wheel-screenshots-") as root:
        with PrivateBroker(root, enable=["rabbitmq_delay_wheel", "rabbitmq_management"],
                           conf=["cluster_name = rabbit@shop"], name="shop") as broker:
            broker.start()
            browser = Browser()
            page = Page(browser, broker)
            client = Client(broker)
            fill_dead_letters(client)
            take(page, fill(broker, client), directory)
            browser.close()
    print(directory)


if __name__ == "__main__":
    main()
