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
from test_cluster import PENDING  # noqa: E402
from test_membership import Group, made, say, store_files  # noqa: E402

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
        self.kept, self.compared = 0, []

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

    def without_queue(self, n):
        """What becomes of a quorum queue's member there is not looked at: it is taken away before, and added after."""
        by = self.cluster.nodes[self.draw.choice(self.cluster.others(n))]
        member = ["--vhost", "/", self.group.name, self.cluster.nodes[n].nodename]
        by.tool("rabbitmq-queues", "delete_member", *member)

        def again():
            self.cluster.await_whole()
            by.tool("rabbitmq-queues", "add_member", *member)
        return again

    def forget(self, n):
        """Taken out of the cluster, and it comes back with nothing."""
        again, by = self.without_queue(n), self.draw.choice(self.cluster.others(n))
        self.cluster.stop(n)
        self.cluster.forget(n, by=by)

        def join():
            self.group.await_members(2, by)
            self.cluster.wipe_and_join(n, by=by)
            again()
            self.group.await_members(3, by)
        return join

    def reset(self, n):
        again, by = self.without_queue(n), self.draw.choice(self.cluster.others(n))
        self.cluster.reset_and_join(n, by=by)

        def whole():
            again()
            self.group.await_members(3, by)
        return whole

    def damage(self, n):
        """While it is stopped, a bit of the index of what it keeps changes, or the records lose their end: it is found
        when it is started, said, and mended from the others."""
        by = self.draw.choice(self.cluster.others(n))
        self.kept += 1
        text = f"kept-{self.kept}"
        self.group.publish_pending(by, text)
        self.group.also_pending += PENDING
        records = self.checkpointed_file(n, text)
        before = self.uids(by)
        self.cluster.stop(n)
        if self.draw.random() < 0.5:
            os.truncate(records, os.path.getsize(records) - 20)
        else:
            with open(records.removesuffix("rec") + "idx", "r+b") as file:
                file.seek(-40, os.SEEK_END)
                byte = file.read(1)
                file.seek(-40, os.SEEK_END)
                file.write(bytes([byte[0] ^ 1]))

        def start():
            logged = len(self.cluster.nodes[n].log())
            self.cluster.start(n)
            self.cluster.await_whole()
            self.cluster.eventually(lambda: self.uids(by) != before, "another member is named")
            assert "is damaged" in self.cluster.nodes[n].log()[logged:]
            self.group.await_members(3, by)
        return start

    def uids(self, by):
        return self.cluster.nodes[by].ask(f"element(2, rabbit_delay_group:find({self.group.resource})).")

    def checkpointed_file(self, n, text):
        """That of the records with this text, once a checkpoint of the node's member has them."""
        def stat(key):
            return int(self.cluster.nodes[n].ask(f"""case catch maps:get({key}, rabbit_delay_store:stat(
                rabbit_delay_registry:store({self.group.resource}))) of I when is_integer(I) -> I; _ -> -1 end.""")
                       or -1)

        def holding():
            """All of them, which it was sent one after the other."""
            found = []
            for path in store_files(self.cluster, self.group, n, "rec"):
                with open(path, "rb") as file:
                    found += [path] * file.read().count(f"{text}.".encode())
            return found if len(found) >= PENDING and len(set(found)) == 1 else None
        records = self.cluster.eventually(holding, f"{text} is in a file on {n}")[0]
        applied = stat("applied")
        self.cluster.eventually(lambda: stat("checkpoint_applied") >= applied > 0, f"a checkpoint on {n}")
        return records

    def compare(self):
        """While messages come and go. Members that differ are what must never be."""
        held = self.group.held().strip('"')
        print(f"    {held}", flush=True)
        assert not held.startswith("different"), held
        self.compared.append(held.split()[0] if held else "")

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
              transfer, remove, forget, reset, damage)

    def step(self, number):
        fault, n = self.draw.choice(self.FAULTS), self.someone()
        lasts, between = self.draw.uniform(*LASTS), self.draw.uniform(*BETWEEN)
        print(f"{number:4} {fault.__name__} {n} for {lasts:.1f} s", flush=True)
        undo = fault(self, n)
        self.group.traffic.go_on(lasts)
        undo()
        self.cluster.await_whole()
        self.group.goes_on()
        self.compare()
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
            # With nothing that comes or goes, and as an operator sees it: it ends with another code if they differ.
            print(cluster.nodes[0].ctl("delayed_exchange_status", "--digest", group.name), flush=True)
            print(f"{number} faults, seed {seed}: passed; in the midst of messages members were found the same "
                  f"{soak.compared.count('same')} of {len(soak.compared)} times", flush=True)
        except BaseException:
            for node in cluster.nodes:
                print(node.log_tail(), flush=True)
            raise
        finally:
            group.end()


if __name__ == "__main__":
    main()
