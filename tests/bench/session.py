# SPDX-License-Identifier: MPL-2.0
"""What the figures share: the choice of peers, how often and how large, and the rounds in which
peers take turns."""

import contextlib
import os
import random
import shutil
import statistics
import sys
import time

import loadgen
import machine
import peers
from node import Node


class Session:
    """`scale` divides the numbers of messages and the lengths of runs (--quick)."""

    def __init__(self, root, chosen, rounds=None, scale=1, target="quorum", seed=1,
                 counts=None):
        self.root = root
        self.chosen = chosen
        self.rounds_asked = rounds
        self.scale = scale
        self.target = target
        self.seed = seed
        self.counts = counts
        self.random = random.Random(seed)
        self.machine = None
        self._nodes = 0
        self._runs = int(time.time() * 1000)

    @property
    def with_plugin(self):
        return "ours" in self.chosen

    def peers(self, *keys):
        """Of those that a figure compares, the ones asked for."""
        return [peers.PEERS[key] for key in keys if key in self.chosen]

    def rounds(self, usual):
        if self.rounds_asked is not None:
            return self.rounds_asked
        return usual if self.scale == 1 else 1

    def scaled(self, number, least=1):
        return max(least, number // self.scale)

    def run_id(self):
        """A number that no other run's messages carry."""
        self._runs += 1
        return self._runs

    @contextlib.contextmanager
    def node(self, series=None):
        """A new broker with an empty disk, which is gone afterwards."""
        self._nodes += 1
        node = Node(os.path.join(self.root, f"node{self._nodes}"), self.with_plugin, series)
        try:
            node.start()
            if self.machine is None:
                self.machine = machine.describe(node)
            yield node
        finally:
            node.remove()

    def path(self, name):
        return os.path.join(self.root, name)

    def say(self, text):
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def turns(contestants, rounds):
    """Rounds in which all take part, a different one first each time."""
    for number in range(rounds):
        shift = number % len(contestants) if contestants else 0
        for contestant in contestants[shift:] + contestants[:shift]:
            yield number, contestant


def spread(values):
    """Median, least and greatest."""
    values = [v for v in values if v is not None]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "of": len(values)}


def shown(values, form="{:,.0f}"):
    """`median (min to max)`, or a dash."""
    s = spread(values)
    if s is None:
        return "-"
    if s["of"] == 1 or s["min"] == s["max"]:
        return form.format(s["median"])
    return f"{form.format(s['median'])} ({form.format(s['min'])} to {form.format(s['max'])})"


def median_run(runs, key):
    """The run whose figure is (nearest to) the median."""
    middle = statistics.median(run[key] for run in runs)
    return min(runs, key=lambda run: abs(run[key] - middle))


def verdict(label, value, limit, at_most=True, unit=""):
    """A line that says whether a goal is met, and by how much it is missed."""
    if value is None:
        return f"- {label}: not measured."
    met = value <= limit if at_most else value >= limit
    bound = "at most" if at_most else "at least"
    said = f"- {label}: {value:,.2f}{unit}, {bound} {limit:,.2f}{unit} wanted: "
    if met:
        return said + "met."
    return said + f"**missed** by {abs(value - limit):,.2f}{unit}."


def disk_needed(root, gigabytes):
    free = shutil.disk_usage(root).free / 1e9
    if free < gigabytes:
        raise loadgen.LoadFailed(f"{root}: {free:.0f} GB free, {gigabytes} GB are needed")
