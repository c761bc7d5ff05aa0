# SPDX-License-Identifier: MPL-2.0
"""What passes from the moment at which the node of both leaders is killed (`kill -9`), paused (SIGSTOP) or cut off from
the others, until a message that was sent after it is confirmed, and until one that was due, or sent, after it is
delivered, to clients of another node."""

import os
import tempfile
import time
from statistics import median

import plots
from checker import Record
from cluster import Cluster
from cluster_figures.three_nodes import EXCHANGE, KEY, PEERS, QUEUE, TARGET, lead, lead_queue
from traffic import Traffic

SINCE = (("confirmed", {"ours": "at", "Q": "at"}), ("delivered", {"ours": "due", "Q": "at"}))
WHAT = ("first confirm", "first delivery")
RATE = 200


def first_after(record, what, since, struck):
    """How long after it the first message came of those that were sent, or due, after it; None if there is none."""
    start = {event["id"]: event[since] for event in record.events if event["what"] == "sent"}
    return next((event["at"] - struck for event in record.events
                 if event["what"] == what and start.get(event["id"]) is not None and start[event["id"]] > struck), None)


def rejoin(cluster, n):
    """What was cut off for long may have given the others up: Mnesia's nodes then stay apart."""
    cluster.heal()
    cluster.stop(n)
    cluster.start(n)


# What is done to a node, and undone.
FAULTS = {"kill": (Cluster.kill9, Cluster.start), "pause": (Cluster.pause, Cluster.resume),
          "cut": (Cluster.cut, rejoin)}


def one(cluster, fault, directory):
    lead(cluster, EXCHANGE, 0)
    lead_queue(cluster, QUEUE, 0)
    lead_queue(cluster, TARGET, 1)
    there = {"1": cluster.nodes[1].address}
    records = {peer: Record(os.path.join(directory, f"{peer}.record")) for peer in PEERS}
    traffic = {"ours": Traffic(records["ours"], there, there, TARGET, exchange=EXCHANGE, key=KEY, delays=(200, 200),
                               rate=RATE, window=2000, patience=120),
               "Q": Traffic(records["Q"], there, there, QUEUE, rate=RATE, window=2000, patience=120)}
    for one_of in traffic.values():
        one_of.start()
    for one_of in traffic.values():
        one_of.await_connected()
        one_of.await_more("delivered", RATE)
    strike, undo = FAULTS[fault]
    strike(cluster, 0)
    struck = time.monotonic()
    found = {peer: [cluster.eventually(
        lambda peer=peer, what=what, since=since: first_after(records[peer], what, since[peer], struck),
        f"{peer}: {what} after a {fault}") for what, since in SINCE] for peer in PEERS}
    undo(cluster, 0)
    cluster.await_whole()
    for peer in PEERS:
        traffic[peer].finish()
        records[peer].close()
    return found


def run(cluster, options):
    found = {}
    for fault, times in zip(FAULTS, (options.kills, options.faults, options.faults)):
        of_each = found[fault] = {peer: [] for peer in PEERS}
        for number in range(times):
            with tempfile.TemporaryDirectory(prefix="dw-takeover-") as directory:
                for peer, times_of_it in one(cluster, fault, directory).items():
                    of_each[peer].append(times_of_it)
                    print(f"{fault} {number + 1:2}  {peer:4} first confirm {times_of_it[0]:.3f} s, "
                          f"first delivery {times_of_it[1]:.3f} s", flush=True)
    return found


def lines(result):
    said = []
    for fault, found in result.items():
        for place, what in enumerate(WHAT):
            values = {peer: [one_of[place] for one_of in found[peer]] for peer in PEERS}
            if values["ours"]:
                said.append(f"{fault}: {what}: " + ", ".join(
                    f"{peer} median {median(of_it):.3f} s, max {max(of_it):.3f} s" for peer, of_it in values.items())
                    + f"; {median(values['ours']) / median(values['Q']):.2f} of the quorum queue's")
    return said


def draw(path, result):
    plots.bars(path, list(result), [(f"{what}, s after it", {
        peer: [[one_of[place] for one_of in found[peer]] for found in result.values()] for peer in PEERS})
        for place, what in enumerate(WHAT)])
