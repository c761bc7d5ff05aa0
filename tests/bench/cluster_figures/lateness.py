# SPDX-License-Identifier: MPL-2.0
"""How late messages are, at a steady rate and when they are sparse, from an exchange of three members and from one that
is on a single node, in turns, delays of 1 to 5 s, into a quorum queue: what replication adds, and what the lease of the
leader costs who sends so little that it has run out when a message comes due. With CPU time of all nodes a second."""

import time
from statistics import median

import plots
from cluster_figures.three_nodes import consumer, cpu_seconds, declare, delete, lead, lead_queue, load, spread, to

GROUPS = {"three members": 3, "one member": 1}
RATES = (1000, 1)


def names(group):
    return f"late-{GROUPS[group]}", f"late-{GROUPS[group]}-target"


def one(cluster, group, rate, seconds, run_id):
    exchange, target = names(group)
    count = max(20, rate * seconds)
    before, began = cpu_seconds(cluster), time.monotonic()
    reader = consumer(cluster.nodes[1], run=run_id, queue=target, prefetch=1000, count=count, idle=60, linger=1,
                      timeout=seconds + 300)
    published = load(cluster.nodes[0], run=run_id, count=count, rate=rate, timeout=seconds + 120,
                     **to(exchange, "uniform:1000:5000")).result()
    consumed = reader.result()
    assert published["complete"] and consumed["received"] == count and consumed["early"] == 0, (published, consumed)
    return {"p50": consumed["lateness_ms"]["p50"], "p99": consumed["lateness_ms"]["p99"],
            "max": consumed["lateness_ms"]["max"],
            "cpu": (cpu_seconds(cluster) - before) / (time.monotonic() - began)}


def run(cluster, options):
    for group, members in GROUPS.items():
        declare(cluster.nodes[0], *names(group), members=members)
        lead(cluster, names(group)[0], 0)
        lead_queue(cluster, names(group)[1], 0)
    found, run_id = {}, 1
    for rate in RATES:
        for number in range(options.rounds):
            for group in GROUPS if number % 2 == 0 else reversed(GROUPS):
                run_id += 1
                one_of = one(cluster, group, rate, options.seconds, run_id)
                found.setdefault(f"{rate}/s", {}).setdefault(group, []).append(one_of)
                print(f"{rate}/s {group}: {one_of}", flush=True)
    for group in GROUPS:
        delete(cluster.nodes[0], *names(group))
    return found


def lines(result):
    return [f"{rate}, {group}: lateness p50 {spread([one['p50'] for one in rounds])} ms, "
            f"p99 {spread([one['p99'] for one in rounds])} ms, "
            f"{median([one['p99'] / alone['p99'] for one, alone in zip(rounds, found['one member'])]):.2f} of one "
            f"member's; {spread([1000 * one['cpu'] for one in rounds], '{:.0f}')} ms of CPU a second"
            for rate, found in result.items() for group, rounds in found.items()]


def draw(path, result):
    plots.bars(path, list(result), [("lateness p99, ms", {
        peer: [[one["p99"] for one in found[group]] for found in result.values()]
        for peer, group in (("ours", "three members"), ("direct", "one member"))})])
