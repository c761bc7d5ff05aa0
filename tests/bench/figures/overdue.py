# SPDX-License-Identifier: MPL-2.0
"""Messages that came due while the broker was down."""

import time

import loadgen
import peers
import plots
from figures import burst
from loadgen import Consumer
from session import median_run, shown, spread, turns, verdict

TITLE = "Overdue after a downtime"
ABOUT = ("{count:,} messages of 100 B due at {span_ms:,} different ms, all while the broker is "
         "stopped. The consumer attaches as soon as the broker answers. *burst*: the same number "
         "due in the same ms, on the running broker, consumer attached. Rates: messages over the "
         "time from the first delivery to the last. B and C deliver into a classic queue only: "
         "when a target quorum queue has not elected its leader yet, they drop what they "
         "dead-letter to it, all of it in some runs.")
SPAN_MS = 18_000
CASES = [("ours", "quorum"), ("ours", "classic"), ("B", "classic"), ("C", "classic")]


def one_run(session, node, peer, target, count, span_ms):
    run_id = session.run_id()
    peers.declare_target(node, target)
    peer.declare(node)
    node.settle()
    lead_s = 15 + count / 10_000
    start_ms = int((time.time() + lead_s) * 1000)
    published = loadgen.publish(
        node, run=run_id, count=count, seed=session.seed, timeout=300,
        delay=f"window:{start_ms}:{span_ms}", **peer.publish_options(absolute=True))
    node.stop()
    if time.time() * 1000 > start_ms:
        raise loadgen.LoadFailed(f"{peer.label}: the broker was not down when the first were due")
    time.sleep(max(0, (start_ms + span_ms) / 1e3 + 1 - time.time()))
    consumer = Consumer(node, wait=False, run=run_id, queue=peers.TARGET, prefetch=1000,
                        count=count, idle=60, linger=1, timeout=600, bucket=100, reconnect=True,
                        origin=int(time.time() * 1000))
    try:
        boot_ms = node.boot()
        answered_ms = time.time() * 1000
        consumed = consumer.result()
    finally:
        consumer.kill()
    peer.clear(node)
    if consumed["received"] < 2:
        raise loadgen.LoadFailed(f"{peer.label}: nothing was delivered after the downtime")
    drain_s = (consumed["last_arrival_ms"] - consumed["first_arrival_ms"]) / 1e3
    return {"peer": peer.key, "target": target, "published": published["confirmed"],
            "received": consumed["received"], "duplicates": consumed["duplicates"],
            "boot_s": boot_ms / 1e3, "drain_s": drain_s,
            "drain_rate": consumed["received"] / drain_s,
            "last_after_answer_s": (consumed["last_arrival_ms"] - answered_ms) / 1e3,
            "curve": consumed["curve"]}


def run(session):
    count = session.scaled(40_000)
    span_ms = session.scaled(SPAN_MS, 2000)
    runs = []
    cases = [(peers.PEERS[key], target) for key, target in CASES if session.peers(key)]
    with session.node() as node:
        for number, (peer, target) in turns(cases, session.rounds(3)):
            result = one_run(session, node, peer, target, count, span_ms)
            reference = burst.delayed_run(session, node, peer, count, 1, target)
            result["burst_rate"] = count / reference["drain_s"]
            runs.append({"round": number, **result})
            session.say(f"overdue {peer.key} to {target}: {result['drain_s']:.2f} s, "
                        f"{result['drain_rate']:,.0f}/s; burst {result['burst_rate']:,.0f}/s")
    curves = {}
    for peer, target in cases:
        some = [r for r in runs if (r["peer"], r["target"]) == (peer.key, target)]
        curves[f"{peer.key}, {target}"] = median_run(some, "drain_s")["curve"]
    for result in runs:
        del result["curve"]
    return {"count": count, "span_ms": span_ms, "runs": runs, "curves": curves}


def report(result):
    lines = ["| peer, target | drained in, s | rate, 1/s | burst's rate, 1/s | over the burst's "
             "| last one after AMQP answered, s | missing | duplicates |", "| --- " * 8 + "|"]
    verdicts = []
    for peer, target in CASES:
        runs = [r for r in result["runs"] if (r["peer"], r["target"]) == (peer, target)]
        if not runs:
            continue
        over = [r["drain_rate"] / r["burst_rate"] for r in runs]
        cells = [f"{peer}, {target}", shown([r["drain_s"] for r in runs], "{:.2f}"),
                 shown([r["drain_rate"] for r in runs]), shown([r["burst_rate"] for r in runs]),
                 shown(over, "{:.2f}"),
                 shown([r["last_after_answer_s"] for r in runs], "{:.2f}"),
                 str(sum(r["published"] - r["received"] for r in runs)),
                 str(sum(r["duplicates"] for r in runs))]
        lines.append("| " + " | ".join(cells) + " |")
        if peer == "ours":
            # The rates are the same if they differ by no more than runs of either do.
            verdicts.append(verdict(f"to a {target} queue: drain rate over the burst's",
                                    spread(over)["median"], 0.9, at_most=False))
    return lines + [""] + (verdicts or ["- drain rate over the burst's: not measured."])


def plot(result, path):
    plots.cumulative(path("overdue"), "s since the broker was started again", "delivered",
                     {name: (name.split(",")[0], curve)
                      for name, curve in result["curves"].items()})
    return ["overdue"]
