# SPDX-License-Identifier: MPL-2.0
"""The figures that every publisher and consumer feels, on each of RabbitMQ's series."""

import glob
import os

import peers
import plots
from figures import burst, lateness, publish
from private_broker import chroot_of, dist_of
from session import shown, spread, turns, verdict

TITLE = "RabbitMQ's series"
ABOUT = ("Confirmed publish ({publish_count:,} messages), lateness at a steady 2,000 a second for "
         "{seconds} s (uniform delays, into a quorum queue) and many due at once, as above, on each "
         "series: 3.10 as Debian 12 has it, 4.0 as Debian 13, 4.3 as Debian sid, the last two in a "
         "chroot on the same machine. Ratios are to the same series' own quorum queue, or its own "
         "direct publish.")
SERIES = ["3.10", "4.0", "4.3"]
LATENESS = lateness.CASES[0]


def at_hand(series):
    return glob.glob(os.path.join(dist_of(series), "*.ez")) and (
        chroot_of(series) is None or os.path.isdir(chroot_of(series)))


def run(session):
    runs, versions = [], {}
    count = session.scaled(200_000)
    seconds = session.scaled(60, 10)
    ours, direct = peers.PEERS["ours"], peers.PEERS["Q"]
    for series in filter(at_hand, SERIES):
        with session.node(series=series) as node:
            versions[series] = node.home.rpartition("-")[2]

            def keep(what, number, result):
                runs.append({"series": series, "what": what, "round": number, **result})

            for number, (peer, (size, connections)) in turns(
                    [(peer, shape) for shape in publish.SHAPES for peer in (ours, direct)],
                    session.rounds(3)):
                keep("publish", number, publish.one_run(session, node, peer, size, connections,
                                                        count))
            for number in range(session.rounds(2)):
                keep("lateness", number, lateness.one_run(session, node, LATENESS, seconds))
            for number, (kind, peer) in turns(
                    [(kind, peer) for kind in burst.BURSTS for peer in (None, ours)],
                    session.rounds(3)):
                size = session.scaled(kind.count)
                result = (burst.direct_run(session, node, size) if peer is None else
                          burst.delayed_run(session, node, peer, size, kind.window_ms,
                                            session.target))
                del result["curve"]
                keep("burst", number, {"burst": kind.name, "count": size, **result})
        session.say(f"series {series} ({versions[series]}) done")
    return {"publish_count": count, "seconds": seconds, "target": session.target,
            "versions": versions, "runs": runs}


def of(result, series, what):
    return {**result, "runs": [r for r in result["runs"]
                               if r["series"] == series and r["what"] == what]}


def measured(result, series):
    """What a row of the table shows, as lists over the rounds, with its form and its goal."""
    publishing, late, due = (of(result, series, what) for what in ("publish", "lateness", "burst"))
    for shape in publish.SHAPES:
        name = f"{shape[0]:,} B, {shape[1]} conn."
        yield f"publish {name}, 1/s", publish.of(publishing, "ours", shape, "rate"), "{:,.0f}", None
        yield (f"publish {name}, to Q's", publish.ratios(publishing, "ours", shape, "rate"),
               "{:.2f}", (1.0, False))
        yield (f"CPU {name}, to Q's", publish.ratios(publishing, "ours", shape, "cpu_us"), "{:.2f}",
               (1.3, True))
    for quantile, goal in (("p50", None), ("p99", (10, True))):
        yield (f"lateness {quantile}, ms", [r[quantile] for r in late["runs"]], "{:.1f}", goal)
    yield "early", [sum(r.get("early", 0) for r in late["runs"] + due["runs"])], "{:.0f}", (0, True)
    for kind in burst.BURSTS:
        yield (f"{kind.name}: last one, s", burst.of(due, kind, "ours", "seconds"), "{:.2f}", None)
        yield (f"{kind.name}: to direct", burst.ratios(due, kind, "ours"), "{:.2f}", (1.25, True))


def report(result):
    series = [s for s in SERIES if s in result["versions"]]
    lines = ["| | " + " | ".join(result["versions"][s] for s in series) + " |",
             "| --- " * (1 + len(series)) + "|"]
    verdicts = []
    for row in zip(*(measured(result, s) for s in series)):
        lines.append(f"| {row[0][0]} | " + " | ".join(shown(values, form)
                                                      for _, values, form, _ in row) + " |")
        for s, (name, values, _, goal) in zip(series, row):
            if goal:
                middle = spread(values)
                verdicts.append(verdict(f"{s}: {name}", middle and middle["median"], *goal))
    return lines + [""] + verdicts


def plot(result, path):
    series = [s for s in SERIES if s in result["versions"]]
    plots.bars(path("series"), [f"{size:,} B\n{connections} conn."
                                for size, connections in publish.SHAPES],
               [("confirmed a second",
                 {s: [publish.of(of(result, s, "publish"), "ours", shape, "rate")
                      for shape in publish.SHAPES] for s in series}),
                ("of the quorum queue's rate",
                 {s: [publish.ratios(of(result, s, "publish"), "ours", shape, "rate")
                      for shape in publish.SHAPES] for s in series})])
    return ["series"]
