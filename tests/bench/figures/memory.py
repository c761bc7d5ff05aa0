# SPDX-License-Identifier: MPL-2.0
"""What a pending message costs in resident memory."""

import loadgen
import plots
from machine import Quiet
from node import MEGABYTE
from session import disk_needed, shown, spread, turns, verdict

TITLE = "Memory with a million pending"
ABOUT = ("{count:,} messages due in 1 to 2 hours, on a broker of their own each time. RSS of the "
         "broker process once it no longer changes, less that of the same broker before, over the "
         "messages; *beyond 200 MB*: with the fixed 200 MB taken off first.")
SIZES = [100, 1024]
HOUR_MS = 3600 * 1000
FIXED = 200 * MEGABYTE


def one_run(session, peer, size, count):
    with session.node() as node:
        peer.declare(node)
        idle = node.settled_rss()
        quiet = Quiet(node)
        done = loadgen.publish(
            node, run=session.run_id(), count=count, size=size, connections=4, seed=session.seed,
            delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}", timeout=1800, **peer.publish_options())
        at_end = node.rss()
        noise = quiet.ended()
        settled = node.settled_rss()
        return {"peer": peer.key, "size": size, "complete": done["complete"],
                "pending": peer.pending(node), "idle_mb": idle / MEGABYTE,
                "at_last_confirm_mb": at_end / MEGABYTE, "settled_mb": settled / MEGABYTE,
                "each": (settled - idle) / count,
                "each_beyond": max(0, settled - idle - FIXED) / count, "noise": noise}


def run(session):
    count = session.scaled(1_000_000)
    disk_needed(session.root, 30 / session.scale)
    runs = []
    contestants = [(peer, size) for size in SIZES for peer in session.peers("ours", "B", "C")]
    for number, (peer, size) in turns(contestants, session.rounds(3)):
        if number > 0 and peer.key != "ours":
            continue
        result = one_run(session, peer, size, count)
        runs.append({"round": number, **result})
        session.say(f"memory {peer.key} {size} B: {result['idle_mb']:.0f} -> "
                    f"{result['settled_mb']:.0f} MB, {result['each']:.0f} B each, "
                    f"{result['pending']:,} pending")
    return {"count": count, "runs": runs}


def of(result, peer, size, key):
    return [r[key] for r in result["runs"] if r["peer"] == peer and r["size"] == size]


def report(result):
    lines = ["| size | peer | idle, MB | at the last confirm, MB | settled, MB | B each "
             "| B each beyond 200 MB | pending |", "| --- " * 8 + "|"]
    verdicts = []
    for size in SIZES:
        for peer in ("ours", "B", "C"):
            if not of(result, peer, size, "each"):
                continue
            cells = [f"{size:,} B", peer]
            cells += [shown(of(result, peer, size, key)) for key in
                      ("idle_mb", "at_last_confirm_mb", "settled_mb", "each", "each_beyond",
                       "pending")]
            lines.append("| " + " | ".join(cells) + " |")
        each = spread(of(result, "ours", size, "each_beyond"))
        verdicts.append(verdict(f"{size:,} B: memory each beyond 200 MB", each and each["median"],
                                64, unit=" B"))
    return lines + [""] + verdicts


def plot(result, path):
    plots.bars(path("memory"), [f"{size:,} B" for size in SIZES], [
        ("RSS a pending message, B", {p: [of(result, p, s, "each") for s in SIZES]
                                      for p in ("ours", "B", "C")}),
    ])
    return ["memory"]
