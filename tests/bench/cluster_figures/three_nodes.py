# SPDX-License-Identifier: MPL-2.0
"""What the figures have in common: exchanges, queues and leaders of a cluster, CPU time, and how figures are said."""

import contextlib
from statistics import median

import loadgen
import pika
from node import HOUR_MS, evaluate

WINDOW = 4000
PEERS = ("ours", "Q")
QUORUM = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
EXCHANGE, QUEUE, TARGET, KEY = "delayed", "quorum", "target", "k"


def resource(exchange):
    return f'rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)'


def cpu_seconds(cluster):
    """Of all nodes' VMs so far. None of them may have been started anew since it was last asked."""
    return sum(node.cpu_seconds() for node in cluster.nodes)


@contextlib.contextmanager
def channel(node):
    connection = pika.BlockingConnection(pika.ConnectionParameters(
        node.address, heartbeat=0, blocked_connection_timeout=300))
    yield connection.channel()
    connection.close()


def declare(node, exchange, target, members=3):
    """A delayed exchange with its target, a quorum queue on all nodes; its group is there afterwards."""
    with channel(node) as there:
        there.queue_declare(target, durable=True, arguments=QUORUM)
        there.exchange_declare(exchange, "x-delayed-message", durable=True, arguments={
            "x-delayed-type": "direct", "x-delay-initial-group-size": members})
        there.queue_bind(target, exchange, KEY)
        there.confirm_delivery()
        there.basic_publish(exchange, KEY, b"first", pika.BasicProperties(delivery_mode=2, headers={"x-delay": 1}),
                            mandatory=True)


def delete(node, exchange, *queues):
    with channel(node) as there:
        there.exchange_delete(exchange)
        for queue in queues:
            there.queue_delete(queue)


def purge(node, *queues):
    with channel(node) as there:
        for queue in queues:
            there.queue_purge(queue)


def number(node, expression):
    """What an expression is in a node; None if it is no number, or the node cannot answer now."""
    answer = node.ask(expression)
    return int(answer) if answer is not None and answer.isdigit() else None


def pending(node, exchange):
    return number(node, f"rabbit_delay_registry:pending({resource(exchange)}).")


def lead(cluster, exchange, n):
    """Has a delayed exchange led by a node, when its member there is up again."""
    transfer = f"rabbit_delay_members:transfer({resource(exchange)}, '{cluster.nodes[n].nodename}')."
    cluster.eventually(lambda: evaluate(cluster.nodes[n], transfer) == "ok", f"{exchange} led by {n}")


def lead_queue(cluster, queue, n):
    """The same of a quorum queue."""
    server, name = cluster.server_of(queue), cluster.nodes[n].nodename
    cluster.await_caught_up(server)

    def leads():
        leader = cluster.leader(server)
        if leader not in (None, n):
            evaluate(cluster.nodes[n], f"ra:transfer_leadership({{{server}, '{cluster.nodes[leader].nodename}'}}, "
                                       f"{{{server}, '{name}'}}).")
        return leader == n

    cluster.eventually(leads, f"{queue} led by {n}")


def to(exchange, delay):
    """How the load generator is told to publish to a delayed exchange."""
    return {"exchange": exchange, "key": KEY, "header": "x-delay", "delay": delay}


def load(node, **options):
    """A publisher that has begun."""
    return loadgen.Load("publish", None, host=node.address, port=node.amqp_port, **options)


def consumer(node, **options):
    return loadgen.Consumer(None, host=node.address, port=node.amqp_port, **options)


def fill(node, exchange, count, size):
    """So many messages of so many bytes, due in an hour."""
    result = load(node, count=count, size=size, window=WINDOW, connections=1, timeout=3600,
                  **to(exchange, f"fixed:{HOUR_MS}")).result()
    assert result["complete"], result


def spread(values, form="{:.2f}"):
    return f"{form.format(median(values))} ({form.format(min(values))} to {form.format(max(values))})"
