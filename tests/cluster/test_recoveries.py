# SPDX-License-Identifier: MPL-2.0
"""Recoveries of a cluster that docs/clusters.md says something of and that no other file here has: all nodes lost and
restored from their files, and splits in which each part goes on, as Mnesia is told to. Nodes restarted in any order
are in test_cluster.py, a node or a disk that is lost for good in test_membership.py.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri.
"""

import shutil
import subprocess

import pytest

from node import evaluate
from test_cluster import PENDING, repair
from test_membership import Group, made

# By when, in s, a node that is not heard is given up.
TICK = 8


@pytest.fixture(scope="module")
def cluster(directory):
    with made(directory, "restored") as cluster:
        yield cluster


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_all_nodes_are_lost_and_restored_from_files(cluster, directory, request, how):
    repair(cluster)
    group = Group(cluster, directory, request)
    try:
        group.publish_pending(0, "kept")
        group.also_pending = PENDING
        group.traffic.stop_publishing()
        group.traffic.await_delivered()
        for n in range(3):
            (cluster.stop if how == "stopped" else cluster.kill9)(n)
        for node in cluster.nodes:
            subprocess.run(["cp", "-a", node.path("data"), node.path("kept")], check=True)
            node.wipe()
        for node in cluster.nodes:
            shutil.move(node.path("kept"), node.path("data"))
            node.start(wait=False)
        for node in cluster.nodes:
            node._booting = True
            node.wait_until_amqp()
        group.caught_up()
        group.await_same(PENDING)
        group.traffic.publishing = True
        group.goes_on()
        group.verdict()
    finally:
        group.end()


class Split(Group):
    """Which messages come twice is not looked at: the broker restarts nodes when it likes."""

    def stale(self, verdict):
        return []


@pytest.mark.parametrize("handling", ["autoheal", "ignore"])
def test_a_split_in_which_each_part_goes_on(directory, request, handling):
    """The larger part has the group; what is published in the smaller one is refused, and nothing of it that was
    confirmed is lost when that one is taken back, with `ignore` by restarting it."""
    cluster = made(directory, handling, partitions=handling)
    if cluster.metadata == "khepri":
        pytest.skip("Khepri has no parts that both go on")
    with cluster:
        for node in cluster.nodes:
            evaluate(node, f"net_kernel:set_net_ticktime({TICK}, 0).")
        group = Split(cluster, directory, request)
        try:
            group.publish_pending(0, "kept")
            group.also_pending = PENDING
            away = group.leading()
            asked = cluster.others(away)[0]
            cluster.cut(away)
            cluster.await_down(away)
            cluster.eventually(lambda: cluster.sees_none(away, cluster.others(away)), "it is alone")
            cluster.eventually(lambda: group.leading(asked) not in (None, away), "another one leads")
            group.goes_on()
            group.traffic.await_more("nacked", 1, f"p{away}")
            cluster.heal()
            if handling == "ignore":
                cluster.nodes[away].stop()
                cluster.nodes[away].start()
            cluster.eventually(lambda: all(node.ask("length(mnesia:system_info(running_db_nodes)).") == "3"
                                           for node in cluster.nodes), "no parts are left")
            cluster.await_whole()
            group.await_members(3, asked)
            group.asked = asked
            group.traffic.await_more("confirmed", 1, f"p{away}")
            group.goes_on()
            group.verdict()
        finally:
            group.end()
