# SPDX-License-Identifier: MPL-2.0
"""How many pending messages a second operators change, filter and export, and whether messages of another
exchange are late meanwhile."""

import os
import re
import statistics
import threading
import time

import loadgen
import peers
import plots
from loadgen import Consumer
from machine import Quiet
from session import disk_needed, shown, spread, verdict

# pylint: disable=wrong-import-order
from figures.operators import EXCHANGE, HOUR_MS, evaluated, selected

TITLE = "Changing and exporting what is pending"
ABOUT = ("{counts} messages of 100 B, due in 1 to 2 hours. All of it but one is measured in the broker, in the "
         "requests that the command-line tool makes. *reschedule*: all of them by an hour (met from the last one "
         "on), alone and while another exchange releases messages, then the first half to one time. *cancel*: a "
         "range of due times. *purge*: the rest of the exchange. *by header*: a dry run for a header that no "
         "message has, for which each is read. *export*: into lines of JSON; *with the tool*: by `rabbitmqctl "
         "export_delayed_messages`, into a file, its start included. *CPU*: of the broker, all its threads, a "
         "message: it says more than a rate where others use the machine. *overdue*: how long it takes to tell how "
         "many are overdue when all are, of a paused exchange. *late*: what another exchange releases, {rate:,} a "
         "second with delays of 0.5 to 1.5 s for {seconds} s, {pairs} times in each round alone and then while all is "
         "rescheduled, by an hour and back, again and again: quantiles of its lateness as a client sees it, and "
         "the ratio of the two.")
RATE = 500
SECONDS = 20
# One pair is not enough: a disk that writes back for somebody else doubles a p99.
PAIRS = 3
# At most so many of them are due in one millisecond: ten million are in an hour.
SAME_TIME = 50
OTHER_TARGET = "bench.other"


def other_exchange():
    other = peers.DelayedExchange()
    other.exchange = "bench.other"
    return other


def changed_rate(node, operation, words, dry_run=False):
    """Messages a second, and how many, of those that are changed, or looked at."""
    answer = evaluated(node, f"""
        Go = fun(Go, Request, N) ->
            {{ok, #{{examined := E, changed := C, cursor := Next}}}} =
                rabbit_delay_pending:change_matching({EXCHANGE}, {operation}, {selected(words)}, Request),
            Sum = N + {'E' if dry_run else 'C'},
            case Next of
                none -> Sum;
                _ -> Go(Go, Request#{{cursor => Next}}, Sum)
            end
        end,
        timer:tc(fun() -> Go(Go, #{{by => <<"bench">>, dry_run => {str(dry_run).lower()}}}, 0) end).""")
    us, count = map(int, re.findall(r"\d+", answer))
    return count / us * 1e6, count


def export_rate(node):
    answer = evaluated(node, f"""
        Lines = fun(Lines, <<>>, N) -> N;
                   (Lines, Ids, N) ->
            {{ok, Some, 0, Seen}} = rabbit_delay_transfer:export(<<"/">>, <<"{peers.OURS.exchange}">>, Ids),
            Lines(Lines, binary:part(Ids, Seen * 8, byte_size(Ids) - Seen * 8), N + length(Some))
        end,
        Go = fun(Go, Cursor, N) ->
            {{ok, Ids, Next}} = rabbit_delay_transfer:places(<<"/">>, <<"{peers.OURS.exchange}">>, Cursor),
            Sum = N + Lines(Lines, Ids, 0),
            case Next of
                done -> Sum;
                _ -> Go(Go, Next, Sum)
            end
        end,
        timer:tc(fun() -> Go(Go, {{0, 0}}, 0) end).""")
    us, count = map(int, re.findall(r"\d+", answer))
    return count / us * 1e6, count


class Others:
    """Messages of another exchange, released all the while."""

    def __init__(self, session, node, seconds):
        run_id, count = session.run_id(), RATE * seconds
        self.consumer = Consumer(node, run=run_id, queue=OTHER_TARGET, prefetch=1000, count=count, idle=20,
                                 linger=1, timeout=seconds + 120)
        self.publisher = threading.Thread(target=loadgen.publish, args=(node,), kwargs={
            "run": run_id, "count": count, "rate": RATE, "seed": session.seed,
            "delay": "uniform:500:1500", "timeout": seconds + 120, "exchange": "bench.other",
            "key": OTHER_TARGET, "header": "x-delay"})
        self.publisher.start()

    def are_published(self):
        return not self.publisher.is_alive()

    def late(self):
        """Quantiles, ms."""
        self.publisher.join()
        try:
            result = self.consumer.result()
        finally:
            self.consumer.kill()
        if not result["complete"]:
            raise loadgen.LoadFailed(f"others: {result['received']:,} were received")
        return result["lateness_ms"]


def filled(session, node, count):
    peers.OURS.declare(node)
    loadgen.publish(node, run=session.run_id(), count=count, size=100, connections=4, seed=session.seed,
                    delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}", timeout=3600, **peers.OURS.publish_options())
    node.settle()


def measured(node, what, result, how, wanted=None):
    """Notes the rate and the CPU time of what answers (rate, how many), and gives how many."""
    before = node.cpu_seconds()
    rate, count = how()
    if wanted not in (None, count):
        raise loadgen.LoadFailed(f"{what}: {count:,} of {wanted:,}")
    result[f"{what}_rate"] = rate
    result[f"{what}_cpu_us"] = (node.cpu_seconds() - before) / count * 1e6
    return count


def tool_rate(node, path):
    began = time.monotonic()
    node.ctl("--quiet", "export_delayed_messages", "--file", path, peers.OURS.exchange, timeout=3600)
    took = time.monotonic() - began
    with open(path, "rb") as lines:
        count = sum(1 for _ in lines)
    os.unlink(path)
    return count / took, count


def purge(node, count):
    """ms for a purge of all."""
    answer = evaluated(node, f"""
        timer:tc(fun() -> {{ok, #{{changed := N}}}} = rabbit_delay_pending:change_matching({EXCHANGE}, cancel,
            {selected()}, #{{by => <<"bench">>}}), N end).""")
    us, changed = map(int, re.findall(r"\d+", answer))
    if changed != count:
        raise loadgen.LoadFailed(f"{changed:,} of {count:,} were purged")
    return us / 1000


def overdue(node, count):
    """ms for the number of those that are overdue, all of them being so, while the exchange is paused."""
    evaluated(node, f'ok = rabbit_delay_pending:pause({EXCHANGE}, <<"bench">>).')
    measured(node, "overdue", {}, lambda: changed_rate(node, f"{{reschedule_to, {HOUR_MS}}}", ""), count)
    answer = evaluated(node, f"""
        timer:tc(fun() -> rabbit_delay_registry:overdue({EXCHANGE},
            rabbit_delay_store:stat(rabbit_delay_registry:store({EXCHANGE}))) end).""")
    us, told = map(int, re.findall(r"\d+", answer))
    if not count / 2 <= told <= count:
        raise loadgen.LoadFailed(f"{told:,} of {count:,} are said to be overdue")
    return us / 1000


def moved(node, hours, count):
    rate, changed = changed_rate(node, f"{{reschedule_by, {hours * HOUR_MS}}}", "due_from => 1")
    if changed != count:
        raise loadgen.LoadFailed(f"{changed:,} of {count:,} were rescheduled by {hours} h")
    return rate, changed


def moved_beside(session, node, count, rate):
    """How late another exchange's messages are while all that is pending here, which is an hour later already, is
    given another time over and over, and how fast, into `rate`; it is an hour later in the end."""
    others = Others(session, node, session.scaled(SECONDS, 10))
    # By when the first of them are released.
    moved(node, -1, count)
    measured(node, "meanwhile", rate, lambda: moved(node, 1, count))
    hours = 1
    while not others.are_published() or hours == 0:
        hours = 1 - hours
        moved(node, 1 if hours else -1, count)
    return others.late()


def others_late(session, node, count, result):
    """How fast all that is pending here is given another time, and how late another exchange's messages are, each
    alone; and both at once. What is pending is an hour later in the end."""
    rates = []
    for pair in range(session.scaled(PAIRS, 1)):
        node.settle()
        result.setdefault("alone", []).append(Others(session, node, session.scaled(SECONDS, 10)).late())
        node.settle()
        if pair == 0:
            measured(node, "later", result, lambda: moved(node, 1, count))
            node.settle()
        rates.append({})
        result.setdefault("beside", []).append(moved_beside(session, node, count, rates[-1]))
    for key in rates[0]:
        result[key] = [rate[key] for rate in rates]
    for of_all in ("p50", "p90", "p99"):
        for name, which in (("alone", "alone"), ("late", "beside")):
            result[f"{name}_{of_all}_ms"] = [late[of_all] for late in result[which]]
    result["late_ratio"] = [late / alone for late, alone in zip(result["late_p99_ms"], result["alone_p99_ms"])]


def one_run(session, node, count):
    filled(session, node, count)
    quiet = Quiet(node)
    result = {"count": count}
    measured(node, "header", result, lambda: changed_rate(node, "cancel", 'header => <<"none=1">>', True), count)
    measured(node, "export", result, lambda: export_rate(node), count)
    measured(node, "tool", result, lambda: tool_rate(node, os.path.join(session.root, "exported")), count)
    others_late(session, node, count, result)
    node_now = int(evaluated(node, "rabbit_delay_config:now_ms()."))
    middle = node_now + 5 * HOUR_MS // 2
    to_count = measured(node, "to", result, lambda: changed_rate(
        node, f"{{reschedule_to, {node_now + 2 * HOUR_MS}}}", f"due_to => {middle}"))
    range_count = measured(node, "range", result, lambda: changed_rate(node, "cancel", f"due_to => {middle}"))
    # Those that are due at that time already are not moved there: a few of ten million.
    if not 0 < to_count <= range_count <= to_count + SAME_TIME or range_count >= count:
        raise loadgen.LoadFailed(f"{to_count:,} were rescheduled to one time, {range_count:,} cancelled")
    result["overdue_ms"] = overdue(node, count - range_count)
    result["purge_ms"] = purge(node, count - range_count)
    evaluated(node, f'ok = rabbit_delay_pending:resume({EXCHANGE}, <<"bench">>).')
    result["noise"] = quiet.ended()
    peers.OURS.clear(node)
    return result


def run(session):
    counts = [session.scaled(n) for n in session.counts or [1_000_000, 10_000_000]]
    if session.scale > 1:
        counts = counts[:1]
    disk_needed(session.root, 3 * max(counts) / 1e6)
    runs = []
    with session.node() as node:
        other = other_exchange()
        other.declare(node)
        with peers.channel_of(node) as channel:
            channel.queue_declare(OTHER_TARGET, durable=True, arguments={"x-queue-type": "classic"})
            channel.queue_bind(OTHER_TARGET, other.exchange, OTHER_TARGET)
        for number in range(session.rounds(3)):
            for count in counts if number == 0 else counts[:1]:
                result = one_run(session, node, count)
                runs.append({"round": number, **result})
                session.say(f"changes of {count:,}: " + ", ".join(
                    f"{key} {value:,.4g}" for key, value in result.items()
                    if key != "count" and isinstance(value, (int, float))))
    return {"counts": " and ".join(f"{count:,}" for count in counts), "rate": RATE,
            "pairs": session.scaled(PAIRS, 1), "seconds": session.scaled(SECONDS, 10), "runs": runs}


ROWS = [("rescheduled a second, all by an hour", "later_rate", 200_000),
        ("rescheduled a second, all by an hour, while others are released", "meanwhile_rate", None),
        ("rescheduled a second, half of them to one time", "to_rate", 200_000),
        ("cancelled a second, by due time", "range_rate", 200_000),
        ("examined a second, by header", "header_rate", None),
        ("exported a second", "export_rate", 100_000),
        ("exported a second, with the tool", "tool_rate", None),
        ("CPU to reschedule by an hour, us", "later_cpu_us", None),
        ("CPU to reschedule to one time, us", "to_cpu_us", None),
        ("CPU to cancel, us", "range_cpu_us", None),
        ("CPU to examine by header, us", "header_cpu_us", None),
        ("CPU to export, us", "export_cpu_us", None),
        ("purge of all, ms", "purge_ms", None),
        ("to tell how many are overdue, ms", "overdue_ms", None),
        ("others late alone, median, ms", "alone_p50_ms", None),
        ("others late meanwhile, median, ms", "late_p50_ms", None),
        ("others late alone, p90, ms", "alone_p90_ms", None),
        ("others late meanwhile, p90, ms", "late_p90_ms", None),
        ("others late alone, p99, ms", "alone_p99_ms", None),
        ("others late meanwhile, p99, ms", "late_p99_ms", None),
        ("ratio of the p99", "late_ratio", None)]


def of(result, key, count):
    """Of all runs, and of all pairs of each where it has some."""
    found = [r[key] for r in result["runs"] if r["count"] == count]
    return [one for some in found for one in (some if isinstance(some, list) else [some])]


def rows_of(result):
    """What has been measured of them."""
    return [row for row in ROWS if row[1] in result["runs"][0]]


def counts_of(result):
    return sorted({r["count"] for r in result["runs"]})


def report(result):
    counts = counts_of(result)
    lines = ["| what | " + " | ".join(f"{count:,}" for count in counts) + " |",
             "| --- |" + " --- |" * len(counts)]
    for label, key, _ in rows_of(result):
        form = "{:,.0f}" if key.endswith("_rate") else "{:,.2f}"
        lines.append(f"| {label} | " + " | ".join(shown(of(result, key, n), form) for n in counts) + " |")
    return lines + ["", *[verdict(f"{label}, of {n:,}", spread(of(result, key, n))["median"], wanted, False)
                      for label, key, wanted in rows_of(result) if wanted for n in counts]]


def median_quantiles(result, which, count):
    some = of(result, which, count)
    return {q: statistics.median(one[q] for one in some) for q in some[0] if q != "count"}


def plot(result, path):
    rates = [(label, key) for label, key, _ in rows_of(result) if key.endswith("_rate")]
    plots.bars(path("changes"), [key.removesuffix("_rate") for _, key in rates], [
        (f"messages a second, of {n:,}", {"ours": [of(result, key, n) for _, key in rates]})
        for n in counts_of(result)])
    plots.quantiles(path("changes_lateness"), "lateness of another exchange, ms", {
        f"{words} {n:,} {what}": (peer, median_quantiles(result, which, n))
        for n in counts_of(result)
        for which, peer, words, what in (("alone", "Q", "beside", "that wait"),
                                         ("beside", "ours", "while", "are rescheduled"))})
    return ["changes", "changes_lateness"]
