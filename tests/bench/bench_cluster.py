# SPDX-License-Identifier: MPL-2.0
"""A delayed exchange of three members beside a quorum queue of three, in turns, on the same three nodes.

    bench_cluster.py [--messages N] [--rounds N] [--kills N] [--out DIR]

`rate` is of confirmed publishing, from a connection to the node that leads and from one to another, with the
CPU time of all three nodes a message. `kill` is what passes from a leader's kill -9 until a message that was
sent after it is confirmed, and until one that was due, or sent, after it is delivered; both lead on the same
node, both have a publisher at work on another. Ratios are ours to the quorum queue's, within a round. What
DIR gets is cluster.json and a drawing.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
for part in ("tests/integration", "tests/cluster", "tests/bench"):
    sys.path.insert(0, os.path.join(REPOSITORY, part))
# pylint: disable=wrong-import-position
import pika  # noqa: E402
import loadgen  # noqa: E402
import plots  # noqa: E402
from checker import Record  # noqa: E402
from cluster import Cluster  # noqa: E402
from node import evaluate  # noqa: E402
from traffic import Traffic  # noqa: E402

SIZES = (100, 1024)
WINDOW = 4000
HOUR = 3_600_000
TICKS = os.sysconf("SC_CLK_TCK")
PEERS = ("ours", "Q")
QUEUE, EXCHANGE = "quorum", "delayed"
AT = 'rabbit_misc:r(<<"/">>, exchange, <<"delayed">>)'


def cpu_seconds(cluster):
    total = 0
    for node in cluster.nodes:
        with open(f"/proc/{node.pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def channel(cluster, n):
    connection = pika.BlockingConnection(pika.ConnectionParameters(
        cluster.nodes[n].address, heartbeat=0, blocked_connection_timeout=300))
    return connection, connection.channel()


def declare(cluster):
    """Both with members on all nodes, and what is delivered in a quorum queue of its own."""
    connection, there = channel(cluster, 0)
    arguments = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
    there.queue_declare(QUEUE, durable=True, arguments=arguments)
    there.queue_declare("target", durable=True, arguments=arguments)
    there.exchange_declare(EXCHANGE, "x-delayed-message", durable=True, arguments={"x-delayed-type": "direct"})
    there.queue_bind("target", EXCHANGE, "k")
    there.confirm_delivery()
    there.basic_publish(EXCHANGE, "k", b"first", pika.BasicProperties(delivery_mode=2, headers={"x-delay": 1}),
                        mandatory=True)
    connection.close()


def ours_leads(cluster, n):
    answer = evaluate(cluster.nodes[n], f"rabbit_delay_members:transfer({AT}, '{cluster.nodes[n].nodename}').")
    assert answer == "ok", answer


def queue_leads(cluster, queue, n):
    server, name = cluster.server_of(queue), cluster.nodes[n].nodename
    cluster.await_caught_up(server)

    def leads():
        leader = cluster.leader(server)
        if leader not in (None, n):
            evaluate(cluster.nodes[n], f"ra:transfer_leadership({{{server}, '{cluster.nodes[leader].nodename}'}}, "
                                       f"{{{server}, '{name}'}}).")
        return leader == n

    cluster.eventually(leads, f"{queue} led by {n}")


def purge(cluster):
    connection, there = channel(cluster, 0)
    there.queue_purge(QUEUE)
    connection.close()


def one(cluster, peer, n, size, messages):
    """Messages a second, and CPU time in ms a message."""
    to = {"exchange": EXCHANGE, "key": "k", "header": "x-delay", "delay": f"fixed:{HOUR}"} if peer == "ours" \
        else {"exchange": "", "key": QUEUE, "header": "none", "delay": "none"}
    before, began = cpu_seconds(cluster), time.monotonic()
    result = loadgen.publish(None, host=cluster.nodes[n].address, port=5672, count=messages, size=size,
                             window=WINDOW, connections=1, timeout=600, **to)
    took = time.monotonic() - began
    assert result["complete"], result
    return messages / took, (cpu_seconds(cluster) - before) * 1000 / messages


def rates(cluster, options):
    found = {}
    for where, n in (("leader's node", 0), ("another node", 1)):
        for size in SIZES:
            for number in range(-1, options.rounds):
                for peer in PEERS if number % 2 == 0 else PEERS[::-1]:
                    rate, cpu = one(cluster, peer, n, size, options.messages)
                    if number >= 0:
                        found.setdefault((where, size), {}).setdefault(peer, []).append((rate, cpu))
                    print(f"{where:13} {size:4} B  {peer:4} {rate:8.0f}/s  {cpu:.3f} ms of CPU a message", flush=True)
                purge(cluster)
    return found


def after_kill(cluster, traffic, record, killed_at, due):
    """The first that was sent after it and is confirmed, and the first due after it that is delivered; s."""
    def look(what, at):
        start = {event["id"]: event[at] for event in record.events if event["what"] == "sent"}
        return next((event["at"] - killed_at for event in record.events
                     if event["what"] == what and start.get(event["id"]) is not None
                     and start[event["id"]] > killed_at), None)

    return [cluster.eventually(lambda what=what, at=at: look(what, at), f"{what} after a kill")
            for what, at in (("confirmed", "at"), ("delivered", due))]


def kills(cluster, options, directory):
    found = {peer: [] for peer in PEERS}
    there = {"1": cluster.nodes[1].address}
    for number in range(options.kills):
        ours_leads(cluster, 0)
        queue_leads(cluster, QUEUE, 0)
        queue_leads(cluster, "target", 1)
        records = {peer: Record(os.path.join(directory, f"{peer}-{number}.record")) for peer in PEERS}
        traffic = {"ours": Traffic(records["ours"], there, there, "target", exchange=EXCHANGE, key="k",
                                   delays=(200, 200), rate=200, window=2000),
                   "Q": Traffic(records["Q"], there, there, QUEUE, rate=200, window=2000)}
        for one_of in traffic.values():
            one_of.start()
        for one_of in traffic.values():
            one_of.await_connected()
            one_of.await_more("delivered", 200)
        cluster.nodes[0].kill9()
        killed_at = time.monotonic()
        for peer in PEERS:
            confirmed, delivered = after_kill(cluster, traffic[peer], records[peer], killed_at,
                                              "due" if peer == "ours" else "at")
            found[peer].append((confirmed, delivered))
            print(f"kill {number + 1:2}  {peer:4} first confirm {confirmed:.3f} s, first delivery {delivered:.3f} s",
                  flush=True)
        for peer in PEERS:
            traffic[peer].finish()
            records[peer].close()
        cluster.start(0)
        cluster.await_whole()
    return found


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def ratios(found, place):
    return [ours[place] / queue[place] for ours, queue in zip(found["ours"], found["Q"])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", default=os.path.join(REPOSITORY, "_build", "bench", "cluster"))
    options = parser.parse_args()
    loadgen.build()
    os.makedirs(options.out, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dw-cluster-") as directory, Cluster(directory) as cluster:
        declare(cluster)
        ours_leads(cluster, 0)
        queue_leads(cluster, QUEUE, 0)
        rate = rates(cluster, options)
        kill = kills(cluster, options, directory)
        print(f"\nRabbitMQ {cluster.series} ({cluster.metadata}), three nodes on one machine; medians of "
              f"{options.rounds} rounds, ratios to the quorum queue's in the same round (least to greatest)")
        for (where, size), found in rate.items():
            print(f"{where:13} {size:4} B  {statistics.median(r for r, _ in found['ours']):8.0f}/s, "
                  f"{spread(ratios(found, 0))} times its rate, with {spread(ratios(found, 1))} of its CPU a message")
        for peer, times in kill.items():
            for place, what in enumerate(("first confirm", "first delivery")):
                values = [one_of[place] for one_of in times]
                if values:
                    print(f"kill -9  {peer:4} {what}: median {statistics.median(values):.3f} s, max {max(values):.3f} s")
        for place, what in enumerate(("first confirm", "first delivery")):
            if kill["Q"]:
                both = [statistics.median(one_of[place] for one_of in kill[peer]) for peer in PEERS]
                print(f"kill -9  {what}: median is {both[0] / both[1]:.2f} of the quorum queue's")
        with open(os.path.join(options.out, "cluster.json"), "w", encoding="utf-8") as out:
            json.dump({"series": cluster.series, "metadata": cluster.metadata,
                       "rates": {f"{where}, {size} B": found for (where, size), found in rate.items()},
                       "kills": kill}, out, indent=1)
        plots.bars(os.path.join(options.out, "cluster"), [f"{w}\n{s} B" for w, s in rate],
                   [("confirmed messages a second", {p: [[r for r, _ in found[p]] for found in rate.values()]
                                                     for p in PEERS}),
                    ("CPU of all nodes, ms a message", {p: [[c for _, c in found[p]] for found in rate.values()]
                                                        for p in PEERS})])


if __name__ == "__main__":
    main()
