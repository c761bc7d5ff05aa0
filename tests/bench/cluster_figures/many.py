# SPDX-License-Identifier: MPL-2.0
"""Many delayed exchanges of three members, each with a message pending: what the nodes take when nothing happens,
beside as many quorum queues of three members with a message each, what it takes to boot one of the nodes until all
its members run, and how long after a leader's `kill -9` each exchange has one of the others lead it."""

import time

import pika
from cluster_figures.three_nodes import HOUR_MS, KEY, QUORUM, channel, cpu_seconds, number, spread

ALL = '[X || {X, _, _} <- rabbit_delay_raft:members()]'
IDLE_SECONDS = 30


def named(n):
    return f"one-of-a-thousand-{n}"


def queues(cluster, count):
    """What the nodes take with as many quorum queues, which are gone afterwards."""
    with channel(cluster.nodes[0]) as there:
        there.confirm_delivery()
        for n in range(count):
            there.queue_declare(named(n), durable=True, arguments=QUORUM)
            there.basic_publish("", named(n), b"there", pika.BasicProperties(delivery_mode=2), mandatory=True)
        found = idle(cluster, IDLE_SECONDS)
        for n in range(count):
            there.queue_delete(named(n))
    return found


def declare_all(cluster, count):
    arguments = {"x-delayed-type": "direct"}
    for node, numbers in ((cluster.nodes[n], range(n, count, 3)) for n in range(3)):
        with channel(node) as there:
            there.queue_declare("of-a-thousand", durable=True)
            there.confirm_delivery()
            for n in numbers:
                there.exchange_declare(named(n), "x-delayed-message", durable=True, arguments=arguments)
                there.queue_bind("of-a-thousand", named(n), KEY)
                there.basic_publish(named(n), KEY, b"pending", pika.BasicProperties(
                    delivery_mode=2, headers={"x-delay": HOUR_MS}), mandatory=True)


def running(node):
    """How many members run on a node."""
    return number(node, f"length([X || X <- {ALL}, {{N, _}} <- [rabbit_delay_registry:server_id(X)], "
                        "whereis(N) =/= undefined]).") or 0


def led_by(node, names):
    """Of how many exchanges a node knows a leader on one of these nodes."""
    nodes = ",".join(f"'{name}'" for name in names)
    return number(node, f"length([X || X <- {ALL}, {{_, N}} <- [rabbit_delay_registry:leader_of(X)], "
                        f"lists:member(N, [{nodes}])]).") or 0


def idle(cluster, seconds):
    """Share of a core that all nodes take, and MB of each."""
    before = cpu_seconds(cluster)
    time.sleep(seconds)
    return (cpu_seconds(cluster) - before) / seconds, [node.rss() / 1e6 for node in cluster.nodes]


def run(cluster, options):
    count, names = options.exchanges, [node.nodename for node in cluster.nodes]
    found = {"exchanges": count, "before": idle(cluster, IDLE_SECONDS), "queues": queues(cluster, count)}
    began = time.monotonic()
    declare_all(cluster, count)
    found["declared_s"] = time.monotonic() - began
    for node in cluster.nodes:
        cluster.eventually(lambda node=node: running(node) >= count, "all members run", within=1800)
    found["idle"] = idle(cluster, IDLE_SECONDS)
    print(f"{count} exchanges: {found}", flush=True)
    found["boot_s"], found["takeover_s"] = [], []
    for _ in range(options.boots):
        cluster.nodes[0].ctl("rebalance_delayed_exchanges", timeout=1800)
        cluster.eventually(lambda: led_by(cluster.nodes[1], names) >= count, "each is led", within=1800)
        led = led_by(cluster.nodes[1], names[:1])
        began = time.monotonic()
        cluster.kill9(0)
        cluster.eventually(lambda: led_by(cluster.nodes[1], names[1:]) >= count, "the others lead all", within=1800)
        found["takeover_s"].append((led, time.monotonic() - began))
        began = time.monotonic()
        cluster.start(0)
        cluster.eventually(lambda: running(cluster.nodes[0]) >= count, "all members run again", within=1800)
        found["boot_s"].append(time.monotonic() - began)
        cluster.await_whole()
        print(f"{count} exchanges: takeover {found['takeover_s'][-1]}, boot {found['boot_s'][-1]:.1f} s", flush=True)
    with channel(cluster.nodes[1]) as there:
        for n in range(count):
            there.exchange_delete(named(n))
        there.queue_delete("of-a-thousand")
    return found


def lines(result):
    said = [f"{result['exchanges']:,} {what}: idle, all nodes take {100 * cpu:.1f}% of a core, each {min(mb):,.0f} to "
            f"{max(mb):,.0f} MB" for what, (cpu, mb) in (("of neither", result["before"]), (
                "quorum queues", result["queues"]), ("exchanges", result["idle"]))]
    said.append(f"declared, with a first message each, in {result['declared_s']:.0f} s")
    if result["boot_s"]:
        led = [led for led, _ in result["takeover_s"]]
        said.append(f"a killed node that led {min(led)} to {max(led)} of them: the others lead all after "
                    f"{spread([took for _, took in result['takeover_s']], '{:.1f}')} s; it boots, until all its "
                    f"members run, in {spread(result['boot_s'], '{:.1f}')} s")
    return said
