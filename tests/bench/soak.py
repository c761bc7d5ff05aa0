#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""Endurance: an hour of publishing and delivering while the broker is killed and restarted.

Rounds of some minutes. In each, two publishers with confirms (small messages into a quorum queue,
large ones with longer delays into a classic queue) and their consumers run against one exchange,
while the broker is ended at random moments, three times in four by kill -9. At the end of a round
everything confirmed must have arrived, nothing early, and nothing be left pending; resident memory
and what the broker has on disk must stay within bounds. Ends with 1 at the first round that
fails.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time

import loadgen
import peers
from loadgen import Consumer, Load, LoadFailed
from node import MEGABYTE, BrokerFailed, Node

DRAIN_S = 300


class Stream:
    """A publisher and the consumer of what it publishes."""

    def __init__(self, node, root, queue, number, rate, seconds, size, longest_ms, seed):
        self.name = f"{queue} of {size} B"
        ledger = os.path.join(root, f"ledger-{queue}-{number}")
        common = {"run": seed, "ledger": ledger, "reconnect": True,
                  "timeout": seconds + 2 * DRAIN_S}
        self.publisher = Load("publish", node, count=rate * seconds, rate=rate, size=size,
                              connections=2, exchange=peers.OURS.exchange, key=queue, seed=seed,
                              header="x-delay", delay=f"uniform:0:{longest_ms}", **common)
        self.ledger = ledger
        self.consumer = None
        loadgen.await_ledger(ledger, self.publisher)
        self.consumer = Consumer(node, queue=queue, prefetch=500, idle=DRAIN_S, linger=3, **common)

    def publishing(self):
        return self.publisher.process.poll() is None

    def result(self):
        published, consumed = self.publisher.result(), self.consumer.result()
        os.remove(self.ledger)
        return {"stream": self.name, "confirmed": consumed["confirmed"], "lost": consumed["lost"],
                "first_lost": consumed["first_lost"], "early": consumed["early"],
                "earliest_ms": consumed["earliest_ms"],
                "duplicates": consumed["duplicates_unmarked"],
                "redelivered": consumed["duplicates"] - consumed["duplicates_unmarked"],
                "rejected": published["rejected"], "unanswered": published["unknown"],
                "p99_ms": consumed["lateness_ms"]["p99"], "max_ms": consumed["lateness_ms"]["max"],
                "complete": published["complete"]}

    def end(self):
        self.publisher.kill()
        if self.consumer is not None:
            self.consumer.kill()


class Watch:
    """The greatest RSS of the broker, whichever process it is."""

    def __init__(self, node):
        self.node, self.greatest = node, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self):
        while not self._ended.wait(1):
            try:
                self.greatest = max(self.greatest, self.node.rss())
            except (OSError, AttributeError):
                continue  # it is down just now

    def end(self):
        self._ended.set()
        self._thread.join()


def disk_of(path):
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def disturb(node, chance, options, streams):
    """Ends and starts the broker at random until all is published. How often it was killed and
    stopped."""
    killed = stopped = 0
    while any(stream.publishing() for stream in streams):
        until = time.monotonic() + chance.expovariate(1 / options.mean_kill)
        while time.monotonic() < until and any(stream.publishing() for stream in streams):
            time.sleep(0.2)
        if not any(stream.publishing() for stream in streams):
            break
        if chance.random() < 0.75:
            node.kill9()
            killed += 1
        else:
            node.stop()
            stopped += 1
        time.sleep(chance.uniform(0, 3))
        node.boot(timeout=300)
    return killed, stopped


def one_round(node, root, number, chance, options, seconds):
    watch = Watch(node)
    streams = []
    try:
        for queue, rate, size, longest_ms in (("soak.quorum", options.rate, 100, 10_000),
                                              ("soak.classic", max(1, options.rate // 10), 4096,
                                               45_000)):
            streams.append(Stream(node, root, queue, number, rate, seconds, size, longest_ms,
                                  chance.getrandbits(48)))
        killed, stopped = disturb(node, chance, options, streams)
        results = [stream.result() for stream in streams]
    finally:
        for stream in streams:
            stream.end()
        watch.end()
    return {"round": number, "killed": killed, "stopped": stopped,
            "pending": peers.OURS.pending(node), "rss_mb": round(watch.greatest / MEGABYTE),
            "disk_mb": round(disk_of(node.data_dir) / MEGABYTE), "streams": results}


def faults(result, options):
    """What is wrong with a round, in words."""
    for stream in result["streams"]:
        if stream["lost"]:
            yield f"{stream['stream']}: {stream['lost']} lost, e.g. {stream['first_lost']}"
        if stream["early"]:
            yield f"{stream['stream']}: {stream['early']} early, up to {stream['earliest_ms']} ms"
        if not stream["complete"]:
            yield f"{stream['stream']}: not all were confirmed"
    if result["pending"]:
        yield f"{result['pending']} still pending"
    if result["rss_mb"] > options.rss_mb:
        yield f"{result['rss_mb']} MB of memory"
    if result["disk_mb"] > options.disk_mb:
        yield f"{result['disk_mb']} MB on disk"


def declare(node):
    with peers.channel_of(node) as channel:
        channel.exchange_declare(peers.OURS.exchange, "x-delayed-message", durable=True,
                                 arguments={"x-delayed-type": "direct"})
        for kind in ("quorum", "classic"):
            queue = f"soak.{kind}"
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
            channel.queue_bind(queue, peers.OURS.exchange, queue)


def soak(root, options):
    chance = random.Random(options.seed)
    node = Node(os.path.join(root, "node"), with_plugin=True)
    deadline = time.monotonic() + options.minutes * 60
    number = 0
    try:
        node.start()
        declare(node)
        while number == 0 or time.monotonic() < deadline:
            number += 1
            left = deadline - time.monotonic()
            seconds = int(max(10, min(options.round_s, left)))
            result = one_round(node, root, number, chance, options, seconds)
            print(json.dumps(result), flush=True)
            wrong = list(faults(result, options))
            if wrong:
                print("\n".join(wrong), node.log_tail(), sep="\n", file=sys.stderr)
                return 1
        print(f"{number} rounds, nothing lost, nothing early")
        return 0
    finally:
        node.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--round-s", type=int, default=240, help="length of a round's publishing")
    parser.add_argument("--rate", type=int, default=2000, help="small messages a second")
    parser.add_argument("--mean-kill", type=float, default=45, help="seconds between crashes")
    parser.add_argument("--rss-mb", type=int, default=1024, help="most memory that is in order")
    parser.add_argument("--disk-mb", type=int, default=4096, help="most disk that is in order")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--root", help="directory for the broker's files; default: a temporary one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = tempfile.mkdtemp(prefix="delay-wheel-soak-", dir=options.root)
    print(f"seed {options.seed}", flush=True)
    try:
        loadgen.build()
        return soak(root, options)
    except (BrokerFailed, LoadFailed) as failure:
        print(failure, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
