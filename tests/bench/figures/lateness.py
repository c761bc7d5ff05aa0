# SPDX-License-Identifier: MPL-2.0
"""How late messages are at a steady rate, and that it does not grow."""

import statistics
from dataclasses import dataclass

import loadgen
import peers
import plots
from loadgen import Consumer
from machine import Quiet
from session import median_run, shown, spread, turns, verdict

TITLE = "Lateness at a steady rate"
ABOUT = ("{rate:,} a second for {seconds} s, 100 B, one publisher and one consumer (prefetch "
         "1,000, acknowledging) on the same machine. Lateness: from the due time, which counts "
         "from just before the publish, until the client has read the message. *uniform*: delays "
         "of 1 to 5 s to the millisecond; *fixed*: 3 s, at which dead-lettering from the head of "
         "a queue is at its best; *none*: published directly, the floor of this machine.")
RATE = 2000


@dataclass(frozen=True)
class Case:
    """A peer with a kind of delay and of target queue; `usual` rounds of it."""

    peer: str
    delay: str
    target: str
    usual: int

    @property
    def name(self):
        return f"{self.peer}, {self.delay}, {self.target}"


CASES = [Case("ours", "uniform", "quorum", 3), Case("ours", "uniform", "classic", 3),
         Case("Q", "none", "quorum", 3), Case("B", "fixed", "quorum", 3),
         Case("C", "fixed", "quorum", 3), Case("B", "uniform", "quorum", 1),
         Case("C", "uniform", "quorum", 1)]
DELAYS = {"uniform": "uniform:1000:5000", "fixed": "fixed:3000", "none": "none"}


def one_run(session, node, case, seconds):
    peer = peers.PEERS[case.peer]
    peers.declare_target(node, case.target)
    peer.declare(node)
    count = RATE * seconds
    window_s = max(1, seconds // 6)
    run_id = session.run_id()
    node.settle()
    quiet = Quiet(node)
    cpu = node.cpu_seconds()
    consumer = Consumer(node, run=run_id, queue=peer.destination, prefetch=1000, count=count,
                        idle=20, linger=1, timeout=seconds + 120, window_s=window_s)
    try:
        published = loadgen.publish(node, run=run_id, count=count, rate=RATE, seed=session.seed,
                                    delay=DELAYS[case.delay], timeout=seconds + 60,
                                    **peer.publish_options())
        consumed = consumer.result()
    finally:
        consumer.kill()
    used = node.cpu_seconds() - cpu
    noise = quiet.ended()
    peer.clear(node)
    return {"case": case.name, "published": published["confirmed"],
            "publish_rate": published["rate"], "received": consumed["received"],
            "duplicates": consumed["duplicates"], "early": consumed["early"],
            "earliest_ms": consumed["earliest_ms"], "out_of_order": consumed["out_of_order"],
            "confirm_p99_ms": published["confirm_ms"]["p99"],
            "p50": consumed["lateness_ms"]["p50"], "p99": consumed["lateness_ms"]["p99"],
            "max": consumed["lateness_ms"]["max"], "quantiles": consumed["lateness_ms"],
            "window_s": window_s,
            "windows_p99": [w["lateness_ms"]["p99"] for w in consumed["windows"]
                            if w["lateness_ms"]["count"] >= RATE * window_s / 2],
            "cpu_us": used / count * 1e6, "noise": noise}


def run(session):
    seconds = session.scaled(60, 10)
    runs = []
    cases = [case for case in CASES if session.peers(case.peer)]
    with session.node() as node:
        for number, case in turns(cases, session.rounds(3)):
            if number >= case.usual:
                continue
            result = one_run(session, node, case, seconds)
            runs.append({"round": number, **result})
            session.say(f"lateness {case.name}: p50 {result['p50']:.1f} p99 {result['p99']:.1f} "
                        f"max {result['max']:.1f} ms, early {result['early']}, "
                        f"others {result['noise']['others']}")
    return {"rate": RATE, "seconds": seconds, "runs": runs}


def of(result, case, key):
    return [r[key] for r in result["runs"] if r["case"] == case]


def growth(windows):
    """The median p99 of the second half of the windows over that of the first half: one hiccup
    of the machine is not growth."""
    half = len(windows) // 2
    if half == 0:
        return None
    return statistics.median(windows[-half:]) / max(statistics.median(windows[:half]), 0.001)


def report(result):
    lines = ["| peer, delays, target | p50, ms | p99, ms | max, ms "
             "| p99 over time, ms (median run) | early | missing | duplicates | CPU, us |",
             "| --- " * 9 + "|"]
    verdicts = []
    for case in CASES:
        runs = [r for r in result["runs"] if r["case"] == case.name]
        if not runs:
            continue
        windows = median_run(runs, "p99")["windows_p99"]
        missing = [r["published"] - r["received"] for r in runs]
        cells = [case.name] + [shown(of(result, case.name, key), "{:,.1f}")
                               for key in ("p50", "p99", "max")]
        cells += [" ".join(f"{w:.1f}" for w in windows), str(sum(of(result, case.name, "early"))),
                  str(sum(missing)), str(sum(of(result, case.name, "duplicates"))),
                  shown(of(result, case.name, "cpu_us"))]
        lines.append("| " + " | ".join(cells) + " |")
        if case.peer == "ours":
            verdicts.append(verdict(f"{case.name}: p99", spread(of(result, case.name, "p99"))
                                    ["median"], 10, unit=" ms"))
            grown = [growth(r["windows_p99"]) for r in runs]
            verdicts.append(verdict(f"{case.name}: p99 of the second half over the first",
                                    spread(grown) and spread(grown)["median"], 1.5))
            verdicts.append(verdict(f"{case.name}: early", sum(of(result, case.name, "early")), 0))
    return lines + [""] + verdicts


def plot(result, path):
    runs = {case.name: median_run([r for r in result["runs"] if r["case"] == case.name], "p99")
            for case in CASES if of(result, case.name, "p99")}
    plots.quantiles(path("lateness"), "lateness, ms",
                    {name: (name.split(",")[0], run["quantiles"])
                     for name, run in runs.items()})
    plots.lines(path("lateness_over_time"), "due, s of the run", "p99, ms",
                {name: (name.split(",")[0], [(i + 0.5) * run["window_s"] for i in
                                             range(len(run["windows_p99"]))], run["windows_p99"])
                 for name, run in runs.items()}, log=True)
    return ["lateness", "lateness_over_time"]
