# SPDX-License-Identifier: MPL-2.0
"""How fast delayed messages are cancelled by their keys."""

import loadgen
import peers
import plots
from machine import Quiet
from session import shown, spread, turns, verdict

TITLE = "Cancel by key"
ABOUT = ("{count:,} messages of 100 B with a key each, due in 1 to 2 hours, published on one "
         "channel with confirms, window {window:,}; then a cancel for each of them, published "
         "likewise. CPU: user + system of the broker process over the messages.")
WINDOW = 2000
HOUR_MS = 3600 * 1000


def published(session, node, header, count, **options):
    quiet = Quiet(node)
    cpu = node.cpu_seconds()
    done = loadgen.publish(node, run=session.run_id(), count=count, window=WINDOW,
                           exchange=peers.OURS.exchange, key=peers.TARGET, header=header, **options)
    used = node.cpu_seconds() - cpu
    return {"rate": done["rate"], "cpu_us": used / count * 1e6, "complete": done["complete"],
            "confirm_p50_ms": done["confirm_ms"]["p50"], "noise": quiet.ended()}


def one_run(session, node, count):
    peers.OURS.declare(node)
    node.settle()
    kept = published(session, node, "x-delay-key", count, seed=session.seed,
                     delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}")
    pending = peers.OURS.pending(node)
    if pending != count:
        raise loadgen.LoadFailed(f"{pending:,} of {count:,} are pending")
    node.settle()
    cancelled = published(session, node, "x-delay-cancel", count)
    left = peers.OURS.pending(node)
    if left != 0:
        raise loadgen.LoadFailed(f"{left:,} of {count:,} have not been cancelled")
    peers.OURS.clear(node)
    return {"publish_rate": kept["rate"], "publish_cpu_us": kept["cpu_us"], **cancelled}


def run(session):
    count = session.scaled(200_000)
    runs = []
    with session.node() as node:
        for number, _ in turns(session.peers("ours"), session.rounds(5)):
            result = one_run(session, node, count)
            runs.append({"round": number, "peer": "ours", **result})
            session.say(f"cancel: {result['rate']:,.0f}/s, {result['cpu_us']:.1f} us, published at "
                        f"{result['publish_rate']:,.0f}/s, others {result['noise']['others']}")
    return {"count": count, "window": WINDOW, "runs": runs}


def report(result):
    def of(key, form="{:,.0f}"):
        return shown([r[key] for r in result["runs"]], form)

    rates = spread([r["rate"] for r in result["runs"]])
    return ["| what | rate, 1/s | CPU, us | confirm p50, ms |", "| --- " * 4 + "|",
            f"| publish with a key | {of('publish_rate')} | {of('publish_cpu_us', '{:.1f}')} | |",
            f"| cancel | {of('rate')} | {of('cpu_us', '{:.1f}')} "
            f"| {of('confirm_p50_ms', '{:.1f}')} |",
            "", verdict("cancels a second through one channel", rates and rates["median"], 20_000,
                        at_most=False)]


def plot(result, path):
    plots.bars(path("cancel"), ["publish", "cancel"], [
        ("a second, one channel", {"ours": [[r["publish_rate"] for r in result["runs"]],
                                            [r["rate"] for r in result["runs"]]]}),
    ])
    return ["cancel"]
