# SPDX-License-Identifier: MPL-2.0
"""A replicated delayed exchange with publishers and consumers on three nodes, and one random fault after the
other: what was confirmed is delivered, never early, and in the end all members hold the same.

    soak.py [--minutes M] [--seed S]

The seed decides which faults come, to whom and for how long; what happened is printed with it, as is the
verdict. Exits with 1 if there is something to complain about. CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri.
"""

import argparse
import os
import random
import sys
import tempfile
import time

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)),
                os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration")]

import test_cluster  # noqa: E402
from node import evaluate  # noqa: E402
from test_membership import Group, made, say  # noqa: E402

# A fault lasts from this many seconds to that many, and others go on afterwards for so long.
LASTS = (0.2, 12)
BETWEEN = (0.5, 6)
NO_SPACE = 1 << 50


class Named:
    """What a Subject wants to know of the test that it is for."""

    def __init__(self, name):
        self.node, self.name = self, name


class Soak:
    def __init__(self, cluster, group, draw):
        self.cluster, self.group, self.draw = cluster, group, draw

    def someone(self):
        """The one that leads, half of the time."""
        leader = self.cluster.eventually(lambda: [n for n in map(self.group.leading, range(3)) if n is not None],
                                         "a leader")[0]
        return leader if self.draw.random() < 0.5 else self.draw.choice(self.cluster.others(leader))

    # Each does something, and answers what undoes it.

    def kill(self, n):
        self.cluster.kill9(n)
        return lambda: self.cluster.start(n)

    def kill_two(self, n):
        other = self.draw.choice(self.cluster.others(n))
        self.cluster.kill9(n)
        self.cluster.kill9(other)

        def start():
            for node in (n, other):
                self.cluster.nodes[node].start(wait=False)
            for node in (n, other):
                self.cluster.nodes[node]._booting = True
                self.cluster.nodes[node].wait_until_amqp()
        return start

    def stop(self, n):
        self.cluster.stop(n)
        return lambda: self.cluster.start(n)

    def stop_app(self, n):
        self.cluster.stop_app(n)
        return lambda: self.cluster.start_app(n)

    def pause(self, n):
        self.cluster.pause(n)
        return lambda: self.cluster.resume(n)

    def cut(self, n):
        self.cluster.cut(n)
        return self.cluster.heal

    def cut_one_way(self, n):
        self.cluster.cut_one_way(n)
        return self.cluster.heal

    def disk_full(self, n):
        self.set(n, "disk_free_limit", NO_SPACE)
        return lambda: self.unset(n, "disk_free_limit")

    def clock_set_back(self, n):
        """By which messages are released there; later than they should be is allowed then."""
        self.set(n, "clock_offset_ms", -1500)
        return lambda: self.unset(n, "clock_offset_ms")

    def transfer(self, n):
        self.ask("transfer", n, n)
        return lambda: None

    def remove(self, n):
        self.ask("remove", self.draw.randrange(3), n)

        def add():
            self.ask("add", self.draw.randrange(3), n)
            # Until it votes the others can spare nobody.
            self.group.await_members(3)
        return add

    def ask(self, what, asked, n):
        """It may be refused, with a reason."""
        self.cluster._note("fault", f"{what} {n}")
        answer = say(self.cluster, asked,
                     f"rabbit_delay_members:{what}({self.group.resource}, '{self.cluster.nodes[n].nodename}')")
        self.cluster._note("healed", f"{what} {n}")
        if answer != "ok":
            print(f"    {what}: {answer}", flush=True)

    def set(self, n, key, value):
        self.cluster._note("fault", f"{key} {n}")
        evaluate(self.cluster.nodes[n], f"application:set_env(rabbitmq_delay_wheel, {key}, {value}).")

    def unset(self, n, key):
        evaluate(self.cluster.nodes[n], f"application:unset_env(rabbitmq_delay_wheel, {key}).")
        self.cluster._note("healed", f"{key} {n}")

    FAULTS = (kill, kill, kill_two, stop, stop_app, pause, pause, cut, cut, cut_one_way, disk_full, clock_set_back,
              transfer, remove)

    def step(self, number):
        fault, n = self.draw.choice(self.FAULTS), self.someone()
        lasts, between = self.draw.uniform(*LASTS), self.draw.uniform(*BETWEEN)
        print(f"{number:4} {fault.__name__} {n} for {lasts:.1f} s", flush=True)
        undo = fault(self, n)
        self.group.traffic.go_on(lasts)
        undo()
        self.cluster.await_whole()
        self.group.goes_on()
        self.group.traffic.go_on(between)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    test_cluster.SOME = 20
    with tempfile.TemporaryDirectory(prefix="dw-cluster-") as directory, made(directory, "soak") as cluster:
        print(f"RabbitMQ {cluster.series} ({cluster.metadata}), seed {seed}, {options.minutes:g} min", flush=True)
        group = Group(cluster, directory, Named("soak"))
        try:
            soak = Soak(cluster, group, random.Random(seed))
            until, number = time.monotonic() + 60 * options.minutes, 0
            while time.monotonic() < until:
                number += 1
                soak.step(number)
            group.await_members(3)
            group.verdict()
            print(f"{number} faults, seed {seed}: passed", flush=True)
        except BaseException:
            for node in cluster.nodes:
                print(node.log_tail(), flush=True)
            raise
        finally:
            group.end()


if __name__ == "__main__":
    main()
