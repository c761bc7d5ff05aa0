# SPDX-License-Identifier: MPL-2.0
"""How fast redrive_dead_letters moves messages, beside a shovel that moves the same ones."""

import json
import os
import subprocess
import threading
import time

import pika

import plots
from machine import Quiet
from session import shown, spread, turns, verdict

TITLE = "Redrive beside a shovel"
ABOUT = ("{count:,} dead letters of 1 KB (died by a TTL, so with `x-death`) moved from one queue to "
         "another of the same kind on one broker: by `redrive_dead_letters --to-queue`, and by a "
         "shovel that acknowledges on confirm with a prefetch of 1,000. From the first message in "
         "the target to the last.")
MOVERS = ["redrive", "shovel"]
KINDS = ["classic", "quorum"]


def connect(node):
    return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", node.amqp_port,
                                                             heartbeat=0))


def depth(channel, queue):
    return channel.queue_declare(queue, passive=True).method.message_count


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("it takes too long")
        time.sleep(0.005)


def fill(channel, kind, count):
    """A queue `parked` with so many dead letters, and an empty queue `target`."""
    for queue in ("parked", "target", "feed"):
        channel.queue_delete(queue)
    for queue in ("parked", "target"):
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
    channel.queue_declare("feed", durable=True, arguments={
        "x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "parked"})
    body, properties = os.urandom(1024), pika.BasicProperties(delivery_mode=2)
    for _ in range(count):
        channel.basic_publish("", "feed", body, properties)
    until(lambda: depth(channel, "parked") == count, 300)


def start_redrive(node):
    command = subprocess.Popen(
        node.tool_argv("rabbitmqctl", "--quiet", "redrive_dead_letters", "--to-queue", "target",
                       "parked"),
        env=node.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)

    def ended():
        out, _ = command.communicate(timeout=60)
        if command.returncode != 0:
            raise RuntimeError(out)
    return ended


def start_shovel(node):
    definition = {"src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": "parked",
                  "dest-protocol": "amqp091", "dest-uri": "amqp://", "dest-queue": "target",
                  "ack-mode": "on-confirm", "src-prefetch-count": 1000}
    # rabbitmqctl returns when the messages may be on their way.
    thread = threading.Thread(target=node.ctl, args=("set_parameter", "shovel", "mover",
                                                     json.dumps(definition)))
    thread.start()

    def ended():
        thread.join()
        node.ctl("clear_parameter", "shovel", "mover")
    return ended


def one_run(node, channel, mover, kind, count):
    fill(channel, kind, count)
    node.settle()
    quiet = Quiet(node)
    ended = {"redrive": start_redrive, "shovel": start_shovel}[mover](node)
    until(lambda: depth(channel, "target") > 0, 60)
    began = time.monotonic()
    until(lambda: depth(channel, "target") >= count, 600)
    seconds = time.monotonic() - began
    noise = quiet.ended()
    ended()
    return {"mover": mover, "kind": kind, "count": count, "seconds": seconds,
            "rate": count / seconds, "moved": depth(channel, "target"),
            "left": depth(channel, "parked"), "noise": noise}


def run(session):
    count = session.scaled(100_000)
    runs = []
    with session.node() as node:
        node.plugins("enable", "rabbitmq_shovel")
        connection = connect(node)
        channel = connection.channel()
        cases = [(mover, kind) for kind in KINDS for mover in MOVERS]
        for number, (mover, kind) in turns(cases, session.rounds(3)):
            result = one_run(node, channel, mover, kind, count)
            runs.append({"round": number, **result})
            session.say(f"redrive: {mover}, {kind}: {result['rate']:,.0f}/s, {result['moved']} "
                        f"moved, {result['left']} left")
        connection.close()
    return {"count": count, "runs": runs}


def of(result, mover, kind, key="rate"):
    return [r[key] for r in result["runs"] if (r["mover"], r["kind"]) == (mover, kind)]


def report(result):
    lines = ["| queues | redrive, 1/s | shovel, 1/s | redrive over shovel |", "| --- " * 4 + "|"]
    verdicts = []
    for kind in KINDS:
        ours, theirs = (spread(of(result, mover, kind))["median"] for mover in MOVERS)
        lines.append(f"| {kind} | {shown(of(result, 'redrive', kind))} | "
                     f"{shown(of(result, 'shovel', kind))} | {ours / theirs:.2f} |")
        verdicts.append(verdict(f"{kind}: rate over the shovel's", ours / theirs, 0.7,
                                at_most=False))
    return lines + [""] + verdicts


def plot(result, path):
    plots.bars(path("redrive"), KINDS, [
        ("moved a second", {mover: [of(result, mover, kind) for kind in KINDS]
                            for mover in MOVERS})])
    return ["redrive"]
