# SPDX-License-Identifier: MPL-2.0
"""Figures of a cluster of three nodes, which are on one machine: cluster_figures/, a file each.

    bench_cluster.py [--figures publish,takeover,...] [--rounds N] [--messages N] [--kills N] [--faults N]
                     [--pending N] [--catch-ups N] [--growths N] [--exchanges N] [--boots N] [--seconds N] [--out DIR]

Each figure is on a cluster of its own. What DIR gets: FIGURE.json, FIGURE.svg, and FIGURE.txt with what is printed at
the end. Ratios are within a round; medians, and least to greatest.
"""

import argparse
import datetime
import importlib
import json
import os
import sys
import tempfile

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
for part in ("tests/integration", "tests/cluster", "tests/bench"):
    sys.path.insert(0, os.path.join(REPOSITORY, part))
# pylint: disable=wrong-import-position
import loadgen  # noqa: E402
from cluster import Cluster  # noqa: E402
from cluster_figures import three_nodes  # noqa: E402

FIGURES = ("publish", "takeover", "catch_up", "growth", "many", "lateness")
WITH_QUORUM_QUEUE = ("publish", "takeover")


def measure(name, options):
    figure = importlib.import_module(f"cluster_figures.{name}")
    with tempfile.TemporaryDirectory(prefix="dw-cluster-") as directory, Cluster(
            directory, metadata=os.environ.get("CLUSTER_METADATA") or None) as cluster:
        if name in WITH_QUORUM_QUEUE:
            three_nodes.declare(cluster.nodes[0], three_nodes.EXCHANGE, three_nodes.TARGET)
            with three_nodes.channel(cluster.nodes[0]) as there:
                there.queue_declare(three_nodes.QUEUE, durable=True, arguments=three_nodes.QUORUM)
        result = figure.run(cluster, options)
        about = f"{name}: RabbitMQ {cluster.series} ({cluster.metadata}), {datetime.date.today()}"
    lines = [about, *figure.lines(result)]
    path = os.path.join(options.out, name)
    with open(path + ".json", "w", encoding="utf-8") as out:
        json.dump({"about": about, "result": result}, out, indent=1)
    with open(path + ".txt", "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")
    if hasattr(figure, "draw"):
        figure.draw(path, result)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", default=",".join(FIGURES), help="of " + ", ".join(FIGURES))
    for option, value in (("messages", 100_000), ("rounds", 7), ("kills", 20), ("faults", 5), ("pending", 1_000_000),
                          ("catch-ups", 3), ("growths", 3), ("exchanges", 1000), ("boots", 3), ("seconds", 60)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--out", default=os.path.join(REPOSITORY, "_build", "bench", "cluster"))
    options = parser.parse_args()
    chosen = options.figures.split(",")
    if unknown := set(chosen) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    loadgen.build()
    os.makedirs(options.out, exist_ok=True)
    said = [line for name in chosen for line in ["", *measure(name, options)]]
    print("\n".join(said))


if __name__ == "__main__":
    main()
