# SPDX-License-Identifier: MPL-2.0
"""How quick the management pages are with no, one and a million pending messages, and what they cost
publishers."""

import threading
import time

import loadgen
import peers
import plots
from session import disk_needed, shown, spread, verdict

# pylint: disable=wrong-import-order
# These are of tests/integration, to which the session's node leads.
import programs
from browser import LOADED, Browser, Page
from management import Management
from private_broker import free_port

TITLE = "The management pages"
ABOUT = ("One exchange with no, one and {count:,} pending messages of 100 B, due in 1 to 2 hours, seen "
         "in a headless Chromium on the same machine. *list* and *exchange*: from going there, the "
         "pages' own program not yet loaded, until the table, or the charts and the first messages, "
         "are on the screen. *no match*: until a filter by a routing key that no message has, for "
         "which each is read, has shown that there is none. *due times*: the request behind the "
         "chart. *publish*: {published:,} messages on one connection, alone, and while what the page "
         "of the exchange shows is asked for again and again without a pause.")
HOUR_MS = 3600 * 1000
PATH = f"delayed-exchanges/%2F/{peers.OURS.exchange}"


def enable_management(node):
    port = free_port()
    node.eval(f"application:set_env(rabbitmq_management, tcp_config, [{{port, {port}}}, "
              '{ip, "127.0.0.1"}], [{persistent, true}]).')
    node.plugins("enable", "rabbitmq_management")
    node.plugin_ports["rabbitmq_management"] = port


def milliseconds(action):
    began = time.monotonic()
    action()
    return (time.monotonic() - began) * 1000


def no_match(page):
    page.fill("#delayed-filter-routing_key", "none")
    page.press("#delayed-filter-routing_key", "Enter")
    page.waitForSelector(LOADED)


def look(page, management, count, number):
    def exchange():
        page.exchange(peers.OURS.exchange)
        if count > 0:
            page.waitForSelector("#delayed-chart-due-times .delayed-bar")

    return {"round": number, "pending": count,
            "list_ms": milliseconds(lambda: page.visit("#/delayed-exchanges",
                                                       "#delayed-exchanges-table")),
            "exchange_ms": milliseconds(exchange),
            "no_match_ms": milliseconds(lambda: no_match(page)),
            "due_ms": milliseconds(lambda: management.get(PATH + "/due-times"))}


def publish(session, node, count, **options):
    return loadgen.publish(node, run=session.run_id(), count=count, size=100, seed=session.seed,
                           delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}", timeout=1800,
                           **peers.OURS.publish_options(), **options)


def publish_beside(session, node, count):
    management, over = Management(node), threading.Event()

    def ask():
        while not over.is_set():
            for what in ("", "/due-times", "/lateness", "/messages?limit=20"):
                management.get(PATH + what)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        return publish(session, node, count)["rate"]
    finally:
        over.set()
        asking.join()


def run(session):
    count, published = session.scaled(1_000_000), session.scaled(200_000)
    disk_needed(session.root, 4 / session.scale)
    programs.install(programs.UI)
    looks, rates = [], []
    with session.node() as node:
        enable_management(node)
        peers.OURS.declare(node)
        browser = Browser()
        page, management = Page(browser, node), Management(node)
        pending = 0
        for wanted in (0, 1, count):
            if wanted > pending:
                publish(session, node, wanted - pending, connections=4 if wanted > 4 else 1)
                pending = wanted
            for number in range(session.rounds(5)):
                node.settle()
                looks.append(look(page, management, pending, number))
                session.say(f"pages: {pending:,} pending, " + ", ".join(
                    f"{key} {value:,.0f}" for key, value in looks[-1].items() if "_ms" in key))
        if errors := page.errors():
            raise loadgen.LoadFailed(str(errors))
        browser.close()
        for number in range(session.rounds(5)):
            node.settle()
            alone = publish(session, node, published)["rate"]
            node.settle()
            rates.append({"round": number, "alone": alone,
                          "beside": publish_beside(session, node, published)})
            session.say(f"pages: publish {alone:,.0f}/s alone, {rates[-1]['beside']:,.0f}/s beside")
    return {"count": count, "published": published, "runs": looks, "rates": rates}


def of(result, pending, key):
    return [look[key] for look in result["runs"] if look["pending"] == pending]


def report(result):
    count = result["count"]
    lines = ["| pending | list, ms | exchange, ms | no match, ms | due times, ms |",
             "| --- " * 5 + "|"]
    for pending in (0, 1, count):
        cells = [shown(of(result, pending, key))
                 for key in ("list_ms", "exchange_ms", "no_match_ms", "due_ms")]
        lines.append(f"| {pending:,} | " + " | ".join(cells) + " |")
    beside = [rate["beside"] / rate["alone"] for rate in result["rates"]]
    return lines + [
        "", "| publish | 1/s |", "| --- | --- |",
        f"| alone | {shown([rate['alone'] for rate in result['rates']])} |",
        f"| beside the pages | {shown([rate['beside'] for rate in result['rates']])} |",
        f"| of the rate alone | {shown(beside, '{:.2f}')} |", "",
        verdict("due times", spread(of(result, count, "due_ms"))["median"], 100, unit=" ms"),
        verdict("exchange", spread(of(result, count, "exchange_ms"))["median"], 1000, unit=" ms"),
        verdict("publishing beside the pages, of its rate", spread(beside)["median"], 0.8, False)]


def plot(result, path):
    pending = (0, 1, result["count"])
    plots.bars(path("pages"), [f"{n:,}" for n in pending], [
        ("ms until it is shown", {"list": [of(result, n, "list_ms") for n in pending],
                                  "exchange": [of(result, n, "exchange_ms") for n in pending]})])
    return ["pages"]
