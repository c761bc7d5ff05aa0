# SPDX-License-Identifier: MPL-2.0
"""Two of three nodes are lost for good: what was pending goes on with the third one's member alone, as an operator says,
and on three again when two others have joined."""

import os
import uuid

import pika
import pytest

from cluster import Cluster
from management import eventually

NUMBER = 200
SOON_MS, LATER_MS = 30_000, 7_200_000
WITHIN = 300
LEFT, *LOST = range(3)


@pytest.fixture(name="cluster", scope="module")
def cluster_of_three(directory):
    with Cluster(directory, metadata=os.environ.get("CLUSTER_METADATA") or None) as cluster:
        yield cluster


def published(node, exchange, bodies, delay):
    """Those that were confirmed; each is tried once."""
    confirmed = []
    with node.connected() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for body in bodies:
            try:
                channel.basic_publish(exchange, "k", body.encode(), pika.BasicProperties(
                    delivery_mode=2, headers={"x-delay": delay}))
                confirmed.append(body)
            except pika.exceptions.NackError:
                pass
    return confirmed


def taken(node, queue, count):
    """So many messages, and what else there is then."""
    got = []
    with node.connected() as connection:
        channel = connection.channel()

        def all_came():
            method, _, body = channel.basic_get(queue, auto_ack=True)
            if method is not None:
                got.append(body.decode())
            return method is None and len(got) >= count
        eventually(all_came, bool, within=WITHIN)
    return got


def test_the_only_member_that_is_left_goes_on_alone(cluster):
    left = cluster.nodes[LEFT]
    name = f"f-{uuid.uuid4().hex[:8]}"
    with left.connected() as connection:
        channel = connection.channel()
        channel.queue_declare(name, durable=True)
        channel.exchange_declare(name, "x-delayed-message", durable=True, arguments={"x-delayed-type": "direct"})
        channel.queue_bind(name, name, "k")
    soon = [f"soon.{n}" for n in range(NUMBER)]
    later = [f"later.{n}" for n in range(NUMBER)]
    assert published(left, name, soon, SOON_MS) == soon
    assert published(left, name, later, LATER_MS) == later

    def status():
        return {row["node"]: row for row in left.rows("delayed_exchange_status", name)}
    eventually(status, lambda rows: len(rows) == 3 and all(row["behind"] == 0 for row in rows.values()), within=WITHIN)
    # A group that has a majority is not touched.
    assert left.rows("force_shrink_delayed_exchanges", left.nodename) == []
    for n in LOST:
        cluster.kill9(n)
    cluster.await_down(LOST[0], [LEFT])
    cluster.await_down(LOST[1], [LEFT])
    # Nor one whose nodes may come back.
    assert left.rows("force_shrink_delayed_exchanges", left.nodename) == []
    assert published(left, name, ["unheard"], SOON_MS) == []
    if cluster.metadata == "khepri":
        left.ctl("force_standalone_khepri_boot")
    for n in LOST:
        if cluster.nodes[n].nodename in left.ctl("cluster_status"):
            cluster.forget(n, LEFT)
    assert left.rows("force_shrink_delayed_exchanges", left.nodename) == [
        {"vhost": "/", "name": name, "size": 1, "result": "ok"}]
    # "unheard" was nacked, and may be stored all the same.
    assert sorted(set(taken(left, name, NUMBER)) - {"unheard"}) == sorted(soon)
    assert [(row["node"], row["state"]) for row in left.rows("delayed_exchange_status", name)] == [
        (left.nodename, "leader")]
    assert left.rows("force_shrink_delayed_exchanges", left.nodename) == []
    assert published(left, name, ["after"], 1) == ["after"]
    assert taken(left, name, 1) == ["after"]

    def pending(node):
        return [row["messages_delayed"] for row in node.rows("list_delayed_exchanges", "name", "messages_delayed")]
    assert pending(left) == [NUMBER]
    for n in LOST:
        cluster.wipe_and_join(n, LEFT)
    cluster.await_whole()
    rows = eventually(status, lambda rows: len(rows) == 3 and all(
        row["voter"] and row["behind"] == 0 for row in rows.values()), within=WITHIN)
    assert sorted(rows) == sorted(node.nodename for node in cluster.nodes)
    left.ctl("transfer_delayed_exchange_leadership", name, cluster.nodes[LOST[0]].nodename)
    left.ctl("release_delayed_messages", name, "--all")
    assert sorted(taken(left, name, NUMBER)) == sorted(later)
    assert pending(left) == [0]
