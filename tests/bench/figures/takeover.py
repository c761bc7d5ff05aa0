# SPDX-License-Identifier: MPL-2.0
"""How fast the official plugin's messages are imported from Mnesia, what memory that takes, and whom
it keeps waiting."""

import subprocess
import time

import loadgen
import peers
import plots
from loadgen import Consumer
from machine import Quiet
from node import MEGABYTE
from official import OfficialTables
from session import disk_needed, shown, spread, verdict

TITLE = "Import from the official plugin's tables"
ABOUT = ("{count:,} messages of 1 KB in its tables, two in a millisecond, taken over by `rabbitmqctl "
         "import_delayed_messages`; the time is the command's, the tool's start included. *memory*: "
         "RSS with the tables full, the most that it was more meanwhile, and what it is afterwards. "
         "*beside it*: {rate:,} persistent messages a second through a classic queue, with confirms, "
         "to a consumer; how long they take alone and while the import runs.")
RATE = 1000
HOUR_MS = 3600 * 1000
WRITTEN_AT_ONCE = 50_000


class Steady:
    """The load beside it, until it is told to end."""

    def __init__(self, session, node, peer):
        run_id = session.run_id()
        self.consumer = Consumer(node, run=run_id, queue=peer.destination, prefetch=1000,
                                 count=RATE * 3600, idle=20, linger=1, timeout=3600)
        self.publisher = loadgen.Load("publish", node, run=run_id, count=RATE * 3600, rate=RATE,
                                      seed=session.seed, delay="none", timeout=3600,
                                      **peer.publish_options())

    def ended(self):
        self.publisher.stop()
        published = self.publisher.result()
        # What is on its way arrives.
        time.sleep(1)
        self.consumer.stop()
        consumed = self.consumer.result()
        if consumed["received"] < published["confirmed"]:
            raise loadgen.LoadFailed(f"{published['confirmed']} confirmed, {consumed['received']} "
                                     "received")
        return {"rate": published["rate"], "confirm_p99": published["confirm_ms"]["p99"],
                "p50": consumed["lateness_ms"]["p50"], "p99": consumed["lateness_ms"]["p99"],
                "max": consumed["lateness_ms"]["max"]}


def filled(node, count):
    tables = OfficialTables(node, lambda broker, expression: broker.eval(expression, timeout=600))
    due = int(time.time() * 1000) + 24 * HOUR_MS
    for first in range(0, count, WRITTEN_AT_ONCE):
        numbers = range(first, min(first + WRITTEN_AT_ONCE, count))
        tables.write(peers.OURS.exchange, numbers, due + first // 2, per_ms=2, size=1024)
    return tables


def imported(node):
    """Seconds, and the highest RSS meanwhile."""
    began, peak = time.monotonic(), 0
    command = subprocess.Popen(
        node.tool_argv("rabbitmqctl", "--quiet", "import_delayed_messages"),
        env=node.environment(), cwd=node.root, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True)
    while command.poll() is None:
        peak = max(peak, node.rss())
        time.sleep(0.05)
    if command.returncode != 0:
        raise loadgen.LoadFailed(command.stderr.read())
    command.stderr.close()
    return time.monotonic() - began, peak


def one_run(session, count):
    with session.node() as node:
        peers.OURS.declare(node)
        plain = peers.Direct("plain", "classic queue", "bench.plain", "classic")
        plain.declare(node)
        tables = filled(node, count)
        before = node.settled_rss()
        steady = Steady(session, node, plain)
        time.sleep(session.scaled(20, 5))
        alone = steady.ended()
        quiet = Quiet(node)
        steady = Steady(session, node, plain)
        seconds, peak = imported(node)
        beside = steady.ended()
        noise = quiet.ended()
        if tables.count() != 0 or peers.OURS.pending(node) != count:
            raise loadgen.LoadFailed(f"{tables.count():,} are left, {peers.OURS.pending(node):,} "
                                     "are pending")
        return {"seconds": seconds, "rate": count / seconds, "before_mb": before / MEGABYTE,
                "grown_mb": (peak - before) / MEGABYTE, "after_mb": node.settled_rss() / MEGABYTE,
                "alone": alone, "beside": beside, "noise": noise}


def run(session):
    count = session.scaled(1_000_000)
    disk_needed(session.root, 12 / session.scale)
    runs = []
    for number in range(session.rounds(3)):
        result = one_run(session, count)
        runs.append({"round": number, **result})
        session.say(f"import: {result['rate']:,.0f}/s, {result['before_mb']:,.0f} MB before, "
                    f"{result['grown_mb']:+,.0f} MB at most, {result['after_mb']:,.0f} MB after; "
                    f"p99 {result['alone']['p99']:.1f} ms alone, {result['beside']['p99']:.1f} ms "
                    "beside it")
    return {"count": count, "rate": RATE, "runs": runs}


def of(result, key):
    return [r[key] for r in result["runs"]]


def report(result):
    lines = ["| what | |", "| --- | --- |"]
    for label, values, form in (
            ("imported, 1/s", of(result, "rate"), "{:,.0f}"),
            ("time, s", of(result, "seconds"), "{:,.1f}"),
            ("memory before, MB", of(result, "before_mb"), "{:,.0f}"),
            ("more while it ran, at most, MB", of(result, "grown_mb"), "{:+,.0f}"),
            ("memory afterwards, MB", of(result, "after_mb"), "{:,.0f}")):
        lines.append(f"| {label} | {shown(values, form)} |")
    lines += ["", "| the load beside it | alone | while the import ran |", "| --- | --- | --- |"]
    for label, key, form in (("published and confirmed, 1/s", "rate", "{:,.0f}"),
                             ("confirm p99, ms", "confirm_p99", "{:,.1f}"),
                             ("delivered after, p50, ms", "p50", "{:,.1f}"),
                             ("p99, ms", "p99", "{:,.1f}"), ("max, ms", "max", "{:,.0f}")):
        cells = [shown([r[when][key] for r in result["runs"]], form) for when in ("alone", "beside")]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    kept = spread([r["beside"]["rate"] / r["alone"]["rate"] for r in result["runs"]])["median"]
    return lines + ["", verdict("imported a second", spread(of(result, "rate"))["median"], 10_000,
                                False),
                    verdict("the load's rate beside it, of its rate alone", kept, 0.95, False),
                    verdict("memory more than before", max(of(result, "grown_mb")), 500,
                            unit=" MB")]


def plot(result, path):
    plots.bars(path("import"), ["alone", "beside"], [
        ("ms until delivered, p99", {"ours": [[r[when]["p99"] for r in result["runs"]]
                                              for when in ("alone", "beside")]})])
    return ["import"]
