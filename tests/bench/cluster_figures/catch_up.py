# SPDX-License-Identifier: MPL-2.0
"""A member is deleted on one node and added again, empty, with many messages of 1 KiB pending: how long it takes until
it has all of them on its disk, beside `tar` of the leader's files through a socket between the same two nodes, synced
at the end. What a publisher at its fastest has confirmed a second meanwhile, and how late messages at a steady rate
are, each beside what it is without."""

import os
import shutil
import subprocess
import time

from cluster_figures.three_nodes import (HOUR_MS, WINDOW, consumer, declare, delete, fill, lead, load, number,
                                         pending, resource, spread, to)
from node import evaluate

EXCHANGE, BESIDE, TARGET = "much", "beside", "beside-target"
SIZE = 1024
ADDED = 2
STEADY_RATE = 1000
PORT = 7999
# More than are sent before a publisher is told to stop.
MOST = 100_000_000


def folder(node):
    """Where a node's member of the exchange has its files."""
    uid = evaluate(node, f"binary_to_list(rabbit_delay_registry:member_uid({resource(EXCHANGE)})).").strip('"')
    return next(os.path.join(at, uid, "delay_store") for at, folders, _ in os.walk(node.path("data"))
                if os.path.basename(at) == "delayed" and uid in folders)


def bytes_in(path):
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())


def tar(cluster, source, into):
    """Seconds until what is in `source` on node 0 is in `into` on node 2, synced."""
    shutil.rmtree(into, ignore_errors=True)
    os.makedirs(into)
    host = cluster.nodes[ADDED].address
    receiver = subprocess.Popen(cluster.network.inside(ADDED, "/usr/bin/python3", "-c", f"""
import socket, subprocess
with socket.create_server(("{host}", {PORT})) as server:
    print("ready", flush=True)
    there, _ = server.accept()
    with there:
        subprocess.run(["tar", "-C", "{into}", "-xf", "-"], stdin=there.fileno(), check=True)
subprocess.run(["sync", "-f", "{into}"], check=True)
"""), stdout=subprocess.PIPE, text=True)
    assert receiver.stdout.readline() == "ready\n"
    began = time.monotonic()
    # 1: a file was written to meanwhile.
    sender = f"tar -C '{source}' -cf - . > /dev/tcp/{host}/{PORT} || [ $? -eq 1 ]"
    subprocess.run(cluster.network.inside(0, "bash", "-c", sender), check=True)
    assert receiver.wait(600) == 0
    took = time.monotonic() - began
    shutil.rmtree(into)
    return took


def empty(cluster):
    """Takes the member away, with its files."""
    node = cluster.nodes[ADDED]
    answer = evaluate(node, f"rabbit_delay_members:remove({resource(EXCHANGE)}, '{node.nodename}').")
    assert answer == "ok", answer
    cluster.eventually(lambda: cluster.members(ADDED, EXCHANGE) == 0, "its files are gone")


def catch_up(cluster, count):
    """Seconds until an empty member has what was pending when it was added, in files that were synced."""
    node = cluster.nodes[ADDED]
    began = time.monotonic()
    answer = evaluate(node, f"rabbit_delay_members:add({resource(EXCHANGE)}, '{node.nodename}').")
    assert answer == "ok", answer
    # What a snapshot brings is synced before it counts; what is pending is counted in the store.
    cluster.eventually(lambda: (pending_here(node) or 0) >= count, "all of it there", within=1800)
    return time.monotonic() - began


def pending_here(node):
    return number(node, f"""case rabbit_delay_registry:store({resource(EXCHANGE)}) of
        undefined -> none; Store -> maps:get(pending, rabbit_delay_store:stat(Store)) end.""")


def publishing(cluster, meanwhile):
    """What a publisher at its fastest has confirmed a second until meanwhile() is over, and what that answered."""
    publisher = load(cluster.nodes[0], count=MOST, size=100, window=WINDOW, connections=1, timeout=3600,
                     **to(BESIDE, f"fixed:{HOUR_MS}"))
    answer = meanwhile()
    publisher.stop()
    return publisher.result()["rate"], answer


def steadily(cluster, run_id, meanwhile):
    """The 99th percentile of how late messages at a steady rate are until meanwhile() is over, in ms."""
    reader = consumer(cluster.nodes[1], run=run_id, queue=TARGET, prefetch=1000, count=MOST, idle=5, timeout=3600)
    publisher = load(cluster.nodes[0], run=run_id, count=MOST, rate=STEADY_RATE, timeout=3600,
                     **to(BESIDE, "uniform:100:1000"))
    answer = meanwhile()
    publisher.stop()
    publisher.result()
    return reader.result()["lateness_ms"]["p99"], answer


def run(cluster, options):
    declare(cluster.nodes[0], EXCHANGE, "much-target")
    declare(cluster.nodes[0], BESIDE, TARGET)
    for exchange in (EXCHANGE, BESIDE):
        lead(cluster, exchange, 0)
    fill(cluster.nodes[0], EXCHANGE, options.pending, SIZE)
    cluster.eventually(lambda: (pending(cluster.nodes[0], EXCHANGE) or 0) >= options.pending, "all pending")
    found = {"pending": options.pending, "rounds": []}
    for number in range(options.catch_ups):
        source = folder(cluster.nodes[0])
        size = bytes_in(source)
        by_tar = tar(cluster, source, cluster.nodes[ADDED].path("tar"))
        empty(cluster)
        alone = catch_up(cluster, options.pending)
        quiet_rate, _ = publishing(cluster, lambda took=alone: time.sleep(max(5, took)))
        empty(cluster)
        rate, beside_publisher = publishing(cluster, lambda: catch_up(cluster, options.pending))
        quiet_p99, _ = steadily(cluster, 2 * number + 1, lambda took=alone: time.sleep(max(5, took)))
        empty(cluster)
        p99, beside_steady = steadily(cluster, 2 * number + 2, lambda: catch_up(cluster, options.pending))
        found["rounds"].append({
            "bytes": size, "tar_s": by_tar, "alone_s": alone, "rate": rate, "quiet_rate": quiet_rate,
            "beside_publisher_s": beside_publisher, "p99_ms": p99, "quiet_p99_ms": quiet_p99,
            "beside_steady_s": beside_steady})
        print(f"catch up {number + 1}: {found['rounds'][-1]}", flush=True)
    delete(cluster.nodes[0], EXCHANGE, "much-target")
    delete(cluster.nodes[0], BESIDE, TARGET)
    return found


def lines(result):
    rounds = result["rounds"]

    def of(key):
        return [one[key] for one in rounds]

    return [] if not rounds else [
        f"an empty member has {result['pending']:,} messages of {SIZE} B after {spread(of('alone_s'))} s, tar takes "
        f"{spread(of('tar_s'))} s: {spread([one['tar_s'] / one['alone_s'] for one in rounds])} times as fast",
        f"beside a publisher at its fastest {spread(of('beside_publisher_s'))} s; it has "
        f"{spread(of('rate'), '{:,.0f}')}/s confirmed, "
        f"{spread([one['rate'] / one['quiet_rate'] for one in rounds])} of what it has otherwise",
        f"beside {STEADY_RATE:,} messages a second {spread(of('beside_steady_s'))} s; their lateness p99 is "
        f"{spread(of('p99_ms'))} ms, otherwise {spread(of('quiet_p99_ms'))} ms"]
