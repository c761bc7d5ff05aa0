# SPDX-License-Identifier: MPL-2.0
"""How much longer a broker takes to come back when a million messages are pending."""

import loadgen
import plots
from session import disk_needed, shown, spread, verdict

TITLE = "Time to answer after kill -9"
ABOUT = ("From the start of the broker's process until a client has a channel, after `kill -9`, "
         "with nothing pending and with {count:,} messages of 1 KB due in 1 to 2 hours. The first "
         "of the kills comes right after the last confirm, the others when the broker is idle. "
         "*first confirm*: until one more message is confirmed on the same way.")
HOUR_MS = 3600 * 1000


def crash_and_boot(session, node, peer):
    node.kill9()
    answered_ms = node.boot(timeout=900)
    confirmed = loadgen.publish(node, run=session.run_id(), count=1, reconnect=True, timeout=300,
                                delay=f"fixed:{2 * HOUR_MS}", **peer.publish_options())
    return {"answered_s": answered_ms / 1e3,
            "confirmed_s": (answered_ms + confirmed["confirm_ms"]["max"]) / 1e3}


def of_peer(session, peer, count, boots):
    runs = []
    with session.node() as node:
        peer.declare(node)
        for number in range(boots):
            node.settle()
            runs.append({"peer": peer.key, "pending": 0, "number": number,
                         **crash_and_boot(session, node, peer)})
        before = peer.pending(node)
        published = loadgen.publish(
            node, run=session.run_id(), count=count, size=1024, connections=4, timeout=1800,
            seed=session.seed, delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}", **peer.publish_options())
        for number in range(boots):
            if number > 0:
                node.settle(120)
            result = crash_and_boot(session, node, peer)
            node.settle(120)
            # What is pending: what was before, all that was confirmed, and a message for each boot.
            lost = before + published["confirmed"] + number + 1 - peer.pending(node)
            runs.append({"peer": peer.key, "pending": count, "number": number, "lost": lost,
                         **result})
            session.say(f"boot {peer.key}: {result['answered_s']:.2f} s with {count:,} pending, "
                        f"{lost} lost")
    return runs


def run(session):
    count = session.scaled(1_000_000)
    disk_needed(session.root, 30 / session.scale)
    runs = []
    for peer in session.peers("ours", "Q", "B", "C"):
        runs += of_peer(session, peer, count, session.rounds(3))
    return {"count": count, "runs": runs}


def of(result, peer, pending, key):
    return [r[key] for r in result["runs"]
            if r["peer"] == peer and (r["pending"] > 0) == pending and key in r]


def longer(result, peer):
    with_many, with_none = (spread(of(result, peer, pending, "answered_s"))
                            for pending in (True, False))
    return with_many["median"] - with_none["median"] if with_many and with_none else None


def report(result):
    lines = ["| peer | none pending, s | pending, s | longer, s | first confirm, none, s "
             "| first confirm, pending, s | lost |", "| --- " * 7 + "|"]
    for peer in ("ours", "Q", "B", "C"):
        if not of(result, peer, True, "answered_s"):
            continue
        cells = [peer, shown(of(result, peer, False, "answered_s"), "{:.2f}"),
                 shown(of(result, peer, True, "answered_s"), "{:.2f}"),
                 f"{longer(result, peer):.2f}",
                 shown(of(result, peer, False, "confirmed_s"), "{:.2f}"),
                 shown(of(result, peer, True, "confirmed_s"), "{:.2f}"),
                 shown(of(result, peer, True, "lost"))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines + ["", verdict("longer than with none pending", longer(result, "ours"), 3,
                                unit=" s")]


def plot(result, path):
    plots.bars(path("boot"), ["none pending", f"{result['count']:,} pending"], [
        ("s until AMQP answers after kill -9", {
            p: [of(result, p, pending, "answered_s") for pending in (False, True)]
            for p in ("ours", "Q", "B", "C")})])
    return ["boot"]
