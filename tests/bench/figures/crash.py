# SPDX-License-Identifier: MPL-2.0
"""Whether a confirmed message can be lost by killing the broker."""

import os
import time

import loadgen
import peers
from loadgen import Consumer
from session import shown

TITLE = "Lost after kill -9 under load"
ABOUT = ("In each repeat {count:,} messages of 100 B, due in 0.2 to 3 s, are confirmed on 1 or 4 "
         "connections; `kill -9` at a random moment of the publishing or (3 of 8) of the draining "
         "after it, a restart, and the publisher goes on until all are confirmed. What a "
         "connection leaves without an answer does not count. A consumer attaches after the "
         "restart. *duplicates* were not marked as redelivered. Target: a durable quorum or "
         "classic queue in turn; for B and C a classic one only (see the overdue messages).")
DRAINING_S = 3.5


def confirmed_in(ledger):
    """How many a publisher has had confirmed so far: bytes of value 2 after the header."""
    try:
        with open(ledger, "rb") as f:
            return f.read()[64:].count(2)
    except FileNotFoundError:
        return 0


def await_moment(moment, ledger, publisher, count):
    """From 0 to 1: that part of the messages is confirmed. Above: so much of the draining later."""
    while confirmed_in(ledger) < min(moment, 1) * count and publisher.process.poll() is None:
        time.sleep(0.01)
    time.sleep(max(0, moment - 1) * DRAINING_S)


def one_run(session, node, peer, count, number):
    run_id = session.run_id()
    connections = 1 if number % 2 == 0 else 4
    target = "classic" if number % 4 > 1 or peer.key in "BC" else "quorum"
    moment = session.random.uniform(0, 1.6)
    if moment > 1:
        moment = 1 + (moment - 1) / 0.6
    ledger = session.path("ledger")
    peers.declare_target(node, target)
    peer.declare(node)
    # Ra writes the name of a new quorum queue to disk up to half a second late: a kill before that
    # loses the queue, which is not what is measured here.
    node.settle()
    publisher = loadgen.Load(
        "publish", node, run=run_id, count=count, connections=connections, seed=run_id,
        delay="uniform:200:3000" if peer.delays else "none", ledger=ledger, reconnect=True,
        timeout=300, **peer.publish_options())
    consumer = None
    try:
        await_moment(moment, ledger, publisher, count)
        node.kill9()
        confirmed_before = confirmed_in(ledger)
        boot_ms = node.boot()
        consumer = Consumer(node, run=run_id, queue=peer.destination, prefetch=1000, ledger=ledger,
                            idle=30, linger=4, timeout=240, reconnect=True)
        published = publisher.result()
        consumed = consumer.result()
    finally:
        publisher.kill()
        if consumer is not None:
            consumer.kill()
        if os.path.exists(ledger):
            os.remove(ledger)
    peer.clear(node)
    return {"peer": peer.key, "connections": connections, "target": target, "moment": moment,
            "confirmed_before_kill": confirmed_before, "confirmed": published["confirmed"],
            "unanswered": published["unknown"], "rejected": published["rejected"],
            "lost_connections": published["lost_connections"], "lost": consumed["lost"],
            "first_lost": consumed["first_lost"], "duplicates": consumed["duplicates_unmarked"],
            "redelivered": consumed["duplicates"] - consumed["duplicates_unmarked"],
            "early": consumed["early"], "boot_s": boot_ms / 1e3,
            "unconfirmed_received": consumed["unconfirmed_received"]}


def run(session):
    count = session.scaled(50_000)
    runs = []
    for peer in session.peers("ours", "Q", "B", "C"):
        repeats = session.rounds(20) if peer.key == "ours" else min(5, session.rounds(5))
        with session.node() as node:
            for number in range(repeats):
                result = one_run(session, node, peer, count, number)
                runs.append({"number": number, **result})
                session.say(f"crash {peer.key} {number + 1}/{repeats}: killed with "
                            f"{result['confirmed_before_kill']:,} confirmed: {result['lost']} "
                            f"lost, {result['duplicates']} duplicates")
    return {"count": count, "runs": runs}


def of(result, peer, key):
    return [r[key] for r in result["runs"] if r["peer"] == peer]


def report(result):
    lines = ["| peer | repeats | confirmed | of them before the kill | lost | in repeats "
             "| duplicates | redelivered | early |", "| --- " * 9 + "|"]
    for peer in ("ours", "Q", "B", "C"):
        lost = of(result, peer, "lost")
        if not lost:
            continue
        cells = [peer, str(len(lost)), f"{sum(of(result, peer, 'confirmed')):,}",
                 shown(of(result, peer, "confirmed_before_kill")), f"{sum(lost):,}",
                 str(sum(1 for n in lost if n))]
        cells += [f"{sum(of(result, peer, key)):,}" for key in
                  ("duplicates", "redelivered", "early")]
        lines.append("| " + " | ".join(cells) + " |")
    lost = of(result, "ours", "lost")
    if not lost:
        return lines + ["", "- lost: not measured."]
    said = "met" if sum(lost) == 0 else f"**missed** by {sum(lost):,} messages"
    return lines + ["", f"- {sum(lost):,} lost in {len(lost)} repeats, none wanted: {said}."]


def plot(_result, _path):
    return []
