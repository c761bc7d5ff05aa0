# SPDX-License-Identifier: MPL-2.0
"""The rabbitmq.conf of examples/deploy/docker: three nodes that have it, and are started at the same time, become one
cluster, in which what is delayed on one node is consumed on the others."""

import os
import re

import pika
import pytest

from cluster import Cluster
from private_broker import REPOSITORY, default_series

CONF = os.path.join(REPOSITORY, "examples", "deploy", "docker", "rabbitmq.conf")


class Composed(Cluster):
    """Its nodes find each other, as `rabbit1` to `rabbit3`, which are names for addresses here."""

    def __init__(self, root):
        super().__init__(root)
        with open(CONF, encoding="utf-8") as f:
            lines = [line for line in f.read().splitlines() if line and not line.startswith("#")]
        for n, node in enumerate(self.nodes):
            node.conf = [re.sub(r"rabbit@rabbit(\d)$", lambda m: self.nodes[int(m[1]) - 1].nodename, line)
                         for line in lines]

    def form(self):
        self.start_all()
        self.await_whole()


@pytest.fixture
def composed(directory):
    if os.environ.get("CLUSTER_METADATA") == "khepri" and default_series() == "4.0":
        pytest.skip("it is the same as with Mnesia until a flag is enabled")
    with Composed(directory) as cluster:
        yield cluster


def test_its_nodes_form_a_cluster_that_delays(composed):
    members = "all" if composed.series == "3.10" else "list_members"
    for node in composed.nodes:
        assert (sorted(re.findall("'(.*?)'", node.ask(f"rabbit_nodes:{members}().")))
                == sorted(other.nodename for other in composed.nodes))
    connections = [pika.BlockingConnection(pika.ConnectionParameters(node.address, node.amqp_port))
                   for node in composed.nodes]
    channels = [connection.channel() for connection in connections]
    channels[0].exchange_declare("later", "x-delayed-message", durable=True, arguments={"x-delayed-type": "fanout"})
    channels[1].queue_declare("work", durable=True, arguments={"x-queue-type": "quorum"})
    channels[1].queue_bind("work", "later", "")
    channels[0].confirm_delivery()
    for n in range(3):
        channels[0].basic_publish("later", "", f"message {n}".encode(), pika.BasicProperties(
            delivery_mode=2, headers={"x-delay": 1000}))
    for channel in channels:
        channel.basic_qos(prefetch_count=1)
    came = []
    for channel in channels[::-1]:
        for method, _, body in channel.consume("work", inactivity_timeout=120):
            assert body is not None, came
            came.append(body.decode())
            channel.basic_ack(method.delivery_tag)
            channel.cancel()
            break
    assert sorted(came) == ["message 0", "message 1", "message 2"]
    for connection in connections:
        connection.close()
