# SPDX-License-Identifier: MPL-2.0
"""Confirmed publishing, from a connection to the node that leads and from one to another: messages a second, and CPU
time of all nodes a message. Ratios are ours to the quorum queue's, within a round."""

import time
from statistics import median

import plots
from cluster_figures.three_nodes import (EXCHANGE, HOUR_MS, PEERS, QUEUE, WINDOW, cpu_seconds, lead, lead_queue, load,
                                         purge, spread, to)

SIZES = (100, 1024)
PLACES = (("the leader's node", 0), ("another node", 1))


def one(cluster, peer, n, size, messages):
    """Messages a second, and CPU time in ms a message."""
    way = to(EXCHANGE, f"fixed:{HOUR_MS}") if peer == "ours" \
        else {"exchange": "", "key": QUEUE, "header": "none", "delay": "none"}
    before, began = cpu_seconds(cluster), time.monotonic()
    result = load(cluster.nodes[n], count=messages, size=size, window=WINDOW, connections=1, timeout=600,
                  **way).result()
    took = time.monotonic() - began
    assert result["complete"], result
    return messages / took, (cpu_seconds(cluster) - before) * 1000 / messages


def run(cluster, options):
    lead(cluster, EXCHANGE, 0)
    lead_queue(cluster, QUEUE, 0)
    found = {}
    for where, n in PLACES:
        for size in SIZES:
            of_each = found[f"{where}, {size} B"] = {peer: [] for peer in PEERS}
            # The first round warms up, and does not count.
            for number in range(-1, options.rounds):
                for peer in PEERS if number % 2 == 0 else PEERS[::-1]:
                    rate, cpu = one(cluster, peer, n, size, options.messages)
                    if number >= 0:
                        of_each[peer].append((rate, cpu))
                    print(f"{where:17} {size:4} B  {peer:4} {rate:8.0f}/s  {cpu:.3f} ms of CPU a message", flush=True)
                purge(cluster.nodes[0], QUEUE)
    return found


def ratios(found, place):
    return [ours[place] / queue[place] for ours, queue in zip(found["ours"], found["Q"])]


def lines(result):
    return [f"{where:25} {median([rate for rate, _ in found['ours']]):8.0f}/s, {spread(ratios(found, 0))} times the "
            f"quorum queue's rate, with {spread(ratios(found, 1))} of its CPU a message"
            for where, found in result.items()]


def draw(path, result):
    plots.bars(path, [where.replace(", ", "\n") for where in result],
               [(title, {peer: [[values[place] for values in found[peer]] for found in result.values()]
                         for peer in PEERS})
                for place, title in enumerate(("confirmed messages a second", "CPU of all nodes, ms a message"))])
