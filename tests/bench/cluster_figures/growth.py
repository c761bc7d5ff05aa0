# SPDX-License-Identifier: MPL-2.0
"""Publishing to and release from 1, 2, 4 and 8 delayed exchanges of three members at the same time, leaders spread over
the nodes: messages a second of all together, with confirms, from a connection each to the exchange's leader; and how
many a second come out of them, with all due at once, into a quorum queue each. With CPU time of all nodes a message."""

import time
from statistics import median

import plots
from cluster_figures.three_nodes import (HOUR_MS, WINDOW, cpu_seconds, declare, delete, lead, lead_queue, load,
                                         pending, spread, to)
from node import set_clock

NUMBERS = (1, 2, 4, 8)
SIZE = 100


def named(n):
    return f"one-of-many-{n}", f"one-of-many-target-{n}"


def one(cluster, number, messages):
    """Of so many exchanges: published a second, ms of CPU a message; the same of what is released."""
    each, nodes = messages // number, cluster.nodes
    before, began = cpu_seconds(cluster), time.monotonic()
    publishers = [load(nodes[n % 3], count=each, size=SIZE, window=WINDOW, connections=1, timeout=1800,
                       **to(named(n)[0], f"fixed:{HOUR_MS}")) for n in range(number)]
    for publisher in publishers:
        result = publisher.result()
        assert result["complete"], result
    published, used = time.monotonic() - began, cpu_seconds(cluster) - before
    before, began = cpu_seconds(cluster), time.monotonic()
    for node in nodes:
        set_clock(node, 2 * HOUR_MS)
    cluster.eventually(lambda: all(pending(nodes[n % 3], named(n)[0]) == 0 for n in range(number)), "all released",
                       within=1800)
    released, released_cpu = time.monotonic() - began, cpu_seconds(cluster) - before
    for node in nodes:
        set_clock(node, 0)
    done = each * number
    return done / published, used * 1000 / done, done / released, released_cpu * 1000 / done


def run(cluster, options):
    found = {}
    for n in range(max(NUMBERS)):
        exchange, target = named(n)
        declare(cluster.nodes[0], exchange, target)
        lead(cluster, exchange, n % 3)
        lead_queue(cluster, target, n % 3)
    for number in NUMBERS:
        found[str(number)] = []
        for _ in range(options.growths):
            found[str(number)].append(one(cluster, number, options.messages))
            print(f"{number} exchanges: {found[str(number)][-1]}", flush=True)
    for n in range(max(NUMBERS)):
        delete(cluster.nodes[0], *named(n))
    return found


def lines(result):
    said = []
    for number, rounds in result.items():
        one_of = [[values[place] for values in rounds] for place in range(4)]
        alone = [median(values[place] for values in result["1"]) for place in range(4)]
        if rounds:
            said.append(f"{number} exchanges: published {spread(one_of[0], '{:,.0f}')}/s "
                        f"({median(one_of[0]) / alone[0]:.2f} times one's), {spread(one_of[1], '{:.3f}')} ms of CPU a "
                        f"message; released {spread(one_of[2], '{:,.0f}')}/s ({median(one_of[2]) / alone[2]:.2f}), "
                        f"{spread(one_of[3], '{:.3f}')} ms")
    return said


def draw(path, result):
    plots.bars(path, list(result), [(title, {"ours": [[values[place] for values in rounds]
                                                      for rounds in result.values()]})
                                    for place, title in ((0, "published a second"), (2, "released a second"))])
