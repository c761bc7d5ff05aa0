# SPDX-License-Identifier: MPL-2.0
"""How fast delayed messages are confirmed, and what they cost the broker."""

import loadgen
import plots
from machine import Quiet
from session import shown, spread, turns, verdict

TITLE = "Confirmed publish"
ABOUT = ("{count:,} persistent messages, window 200 a connection, due in 1 to 2 hours (Q: no "
         "delay), no consumer. CPU: user + system of the broker process over the messages, until "
         "the last confirm; *settled*: until it is idle again.")
SHAPES = [(100, 1), (100, 4), (1024, 1), (1024, 4)]
HOUR_MS = 3600 * 1000


def one_run(session, node, peer, size, connections, count):
    peer.declare(node)
    node.settle()
    quiet = Quiet(node)
    cpu = node.cpu_seconds()
    done = loadgen.publish(
        node, run=session.run_id(), count=count, size=size, connections=connections,
        seed=session.seed, delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}",
        **peer.publish_options())
    at_end = node.cpu_seconds()
    noise = quiet.ended()
    node.settle()
    settled = node.cpu_seconds()
    pending = peer.pending(node)
    if pending != done["confirmed"]:
        raise loadgen.LoadFailed(f"{peer.label}: {done['confirmed']:,} confirmed, "
                                 f"{pending:,} pending")
    peer.clear(node)
    return {"peer": peer.key, "size": size, "connections": connections, "complete":
            done["complete"], "rejected": done["rejected"], "rate": done["rate"],
            "cpu_us": (at_end - cpu) / count * 1e6, "settled_us": (settled - cpu) / count * 1e6,
            "confirm_p50_ms": done["confirm_ms"]["p50"],
            "confirm_p99_ms": done["confirm_ms"]["p99"], "noise": noise}


def run(session):
    count = session.scaled(200_000)
    runs = []
    contestants = [(peer, shape) for shape in SHAPES
                   for peer in session.peers("ours", "Q", "B", "C")]
    with session.node() as node:
        for number, (peer, (size, connections)) in turns(contestants, session.rounds(5)):
            result = one_run(session, node, peer, size, connections, count)
            runs.append({"round": number, **result})
            session.say(f"publish {peer.key} {size} B x {connections}: {result['rate']:,.0f}/s, "
                        f"{result['cpu_us']:.1f} us, others {result['noise']['others']}")
    return {"count": count, "runs": runs}


def of(result, peer, shape, key):
    return [r[key] for r in result["runs"]
            if r["peer"] == peer and (r["size"], r["connections"]) == tuple(shape)]


def ratios(result, peer, shape, key):
    """To Q's of the same round."""
    ours = {r["round"]: r[key] for r in result["runs"]
            if r["peer"] == peer and (r["size"], r["connections"]) == tuple(shape)}
    theirs = {r["round"]: r[key] for r in result["runs"]
              if r["peer"] == "Q" and (r["size"], r["connections"]) == tuple(shape)}
    return [ours[n] / theirs[n] for n in ours if n in theirs and theirs[n]]


def report(result):
    lines = ["| messages | peer | rate, 1/s | to Q's | CPU, us | to Q's | CPU settled, us | to Q's "
             "| confirm p50, ms |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    verdicts = []
    for shape in SHAPES:
        name = f"{shape[0]:,} B, {shape[1]} conn."
        for peer in ("ours", "Q", "B", "C"):
            if not of(result, peer, shape, "rate"):
                continue
            cells = [name, peer]
            for key, form in (("rate", "{:,.0f}"), ("cpu_us", "{:.1f}"), ("settled_us", "{:.1f}")):
                cells += [shown(of(result, peer, shape, key), form),
                          shown(ratios(result, peer, shape, key), "{:.2f}")]
            cells.append(shown(of(result, peer, shape, "confirm_p50_ms"), "{:.1f}"))
            lines.append("| " + " | ".join(cells) + " |")
        for key, label, limit, at_most in (("rate", "rate over Q's", 1.0, False),
                                           ("cpu_us", "CPU over Q's", 1.3, True)):
            ratio = spread(ratios(result, "ours", shape, key))
            verdicts.append(verdict(f"{name}: {label}", ratio and ratio["median"], limit, at_most))
    return lines + [""] + verdicts


def plot(result, path):
    labels = [f"{size:,} B\n{connections} conn." for size, connections in SHAPES]
    plots.bars(path("publish"), labels, [
        ("confirmed a second", {p: [of(result, p, s, "rate") for s in SHAPES]
                                for p in ("ours", "Q", "B", "C")}),
        ("broker CPU a message, us", {p: [of(result, p, s, "cpu_us") for s in SHAPES]
                                      for p in ("ours", "Q", "B", "C")}),
    ])
    return ["publish"]
