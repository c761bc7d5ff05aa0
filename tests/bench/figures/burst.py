# SPDX-License-Identifier: MPL-2.0
"""Many messages due at once: how long until the last one is there."""

import time
from dataclasses import dataclass

import loadgen
import peers
import plots
from loadgen import Consumer
from machine import Quiet
from session import median_run, shown, spread, turns, verdict

TITLE = "Many due at once"
ABOUT = ("100 B, one publisher, one consumer attached all along (prefetch 1,000, acknowledging), "
         "target: a durable {target} queue. *direct*: the time in which the same client publishes "
         "the same messages with confirms straight into the target queue, consumed meanwhile. "
         "Times are from the first due time to the last delivery.")
DIRECT = "direct"


@dataclass(frozen=True)
class Burst:
    """So many messages due at random milliseconds of a window; 1 ms: all at the same one."""

    name: str
    count: int
    window_ms: int


BURSTS = [Burst("within one second", 200_000, 1000), Burst("in the same ms", 50_000, 1)]


def attach(node, run_id, count, **options):
    return Consumer(node, run=run_id, queue=peers.TARGET, prefetch=1000, count=count, idle=60,
                    linger=1, timeout=900, bucket=100, **options)


def direct_run(session, node, count):
    """The yardstick."""
    run_id = session.run_id()
    peers.declare_target(node, session.target)
    node.settle()
    quiet = Quiet(node)
    cpu = node.cpu_seconds()
    consumer = attach(node, run_id, count)
    try:
        published = loadgen.publish(node, run=run_id, count=count, key=peers.TARGET)
        consumed = consumer.result()
    finally:
        consumer.kill()
    return {"peer": DIRECT, "seconds": published["seconds"],
            "last_s": (consumed["last_arrival_ms"] - published["began_ms"]) / 1e3,
            "published": published["confirmed"], "received": consumed["received"],
            "cpu_us": (node.cpu_seconds() - cpu) / count * 1e6,
            "curve": consumed["curve"], "noise": quiet.ended()}


def attempt(session, node, peer, count, window_ms, target, lead_s):
    """None if the first were due before the last was published."""
    run_id = session.run_id()
    peers.declare_target(node, target)
    peer.declare(node)
    node.settle()
    start_ms = int((time.time() + lead_s) * 1000)
    consumer = attach(node, run_id, count, origin=start_ms)
    try:
        published = loadgen.publish(
            node, run=run_id, count=count, seed=session.seed, timeout=600,
            delay=f"scatter:{start_ms}:{window_ms}", **peer.publish_options(absolute=True))
        if published["ended_ms"] + 1000 > start_ms:
            return None
        time.sleep(max(0, start_ms / 1e3 - time.time() - 0.7))
        quiet = Quiet(node)
        cpu = node.cpu_seconds()
        consumed = consumer.result()
        noise = quiet.ended()
    finally:
        consumer.kill()
        peer.clear(node)
    return {"peer": peer.key, "publish_rate": published["rate"],
            "seconds": (consumed["last_arrival_ms"] - start_ms) / 1e3,
            "after_last_due_s": (consumed["last_arrival_ms"] - consumed["last_due_ms"]) / 1e3,
            "drain_s": (consumed["last_arrival_ms"] - consumed["first_arrival_ms"]) / 1e3,
            "first_ms": consumed["lateness_ms"]["min"], "p50_ms": consumed["lateness_ms"]["p50"],
            "published": published["confirmed"], "received": consumed["received"],
            "early": consumed["early"], "earliest_ms": consumed["earliest_ms"],
            "duplicates": consumed["duplicates"],
            "cpu_us": (node.cpu_seconds() - cpu) / count * 1e6,
            "curve": consumed["curve"], "noise": noise}


def delayed_run(session, node, peer, count, window_ms, target):
    """Published well ahead of the window."""
    lead_s = 6 + count / 15_000
    for _ in range(4):
        result = attempt(session, node, peer, count, window_ms, target, lead_s)
        if result is not None:
            return result
        session.say(f"{peer.key}: {lead_s:.0f} s are too short to publish {count:,} ahead")
        lead_s *= 2
    raise loadgen.LoadFailed(f"{peer.label} is too slow to publish {count} messages ahead")


def run(session):
    runs = []
    with session.node() as node:
        contestants = [(burst, peer) for burst in BURSTS
                       for peer in [None] + session.peers("ours", "B", "C")]
        for number, (burst, peer) in turns(contestants, session.rounds(3)):
            count = session.scaled(burst.count)
            if peer is None:
                result = direct_run(session, node, count)
            else:
                result = delayed_run(session, node, peer, count, burst.window_ms,
                                     session.target)
            runs.append({"round": number, "burst": burst.name, "count": count, **result})
            session.say(f"burst {count:,} {burst.name}, {result['peer']}: "
                        f"{result['seconds']:.2f} s, others {result['noise']['others']}")
    curves = {}
    for burst in BURSTS:
        for peer in (DIRECT, "ours", "B", "C"):
            some = [r for r in runs if r["burst"] == burst.name and r["peer"] == peer]
            if some:
                curves[f"{burst.name}|{peer}"] = median_run(some, "seconds")["curve"]
    for result in runs:
        del result["curve"]
    return {"target": session.target, "runs": runs, "curves": curves}


def of(result, burst, peer, key):
    return [r[key] for r in result["runs"]
            if r["burst"] == burst.name and r["peer"] == peer and key in r]


def ratios(result, burst, peer):
    """To the direct publish of the same round."""
    direct = {r["round"]: r["seconds"] for r in result["runs"]
              if r["burst"] == burst.name and r["peer"] == DIRECT}
    return [r["seconds"] / direct[r["round"]] for r in result["runs"]
            if r["burst"] == burst.name and r["peer"] == peer and r["round"] in direct]


def report(result):
    lines = ["| due | peer | last one after the first due time, s | to direct "
             "| after the last due time, s | first one late, ms | early | missing | duplicates "
             "| CPU, us | publish rate, 1/s |", "| --- " * 11 + "|"]
    verdicts = []
    for burst in BURSTS:
        for peer in (DIRECT, "ours", "B", "C"):
            seconds = of(result, burst, peer, "seconds")
            if not seconds:
                continue
            count = of(result, burst, peer, "count")[0]
            missing = sum(of(result, burst, peer, "published")) - sum(
                of(result, burst, peer, "received"))
            cells = [f"{count:,} {burst.name}", peer, shown(seconds, "{:.2f}"),
                     "1" if peer == DIRECT else shown(ratios(result, burst, peer), "{:.2f}"),
                     shown(of(result, burst, peer, "after_last_due_s"), "{:.2f}"),
                     shown(of(result, burst, peer, "first_ms"), "{:,.1f}"),
                     str(sum(of(result, burst, peer, "early"))), str(missing),
                     str(sum(of(result, burst, peer, "duplicates"))),
                     shown(of(result, burst, peer, "cpu_us"), "{:.1f}"),
                     shown(of(result, burst, peer, "publish_rate"))]
            lines.append("| " + " | ".join(cells) + " |")
        ratio = spread(ratios(result, burst, "ours"))
        verdicts.append(verdict(f"{burst.name}: last delivery over the direct publish",
                                ratio and ratio["median"], 1.25))
    return lines + [""] + verdicts


def plot(result, path):
    made = []
    for number, burst in enumerate(BURSTS, 1):
        curves = {("published directly" if peer == DIRECT else peer): (peer, curve)
                  for peer in (DIRECT, "ours", "B", "C")
                  if (curve := result["curves"].get(f"{burst.name}|{peer}"))}
        plots.cumulative(path(f"burst_{number}"), f"due {burst.name}: s since the first due time",
                         "delivered", curves)
        made.append(f"burst_{number}")
    return made
