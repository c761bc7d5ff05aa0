# SPDX-License-Identifier: MPL-2.0
"""From a single node of 0.1 to a cluster of three: what that version left on disk (tests/fixtures) is opened by the
present one, two nodes join, and all of it is on all three, and is released by one that joined.

CLUSTER_METADATA=khepri has a 4.0 cluster on Khepri.
"""

import collections
import json
import os
import shutil
import tarfile

import pytest

import fixture
from client import Client
from management import eventually
from node import evaluate, set_clock
from private_broker import REPOSITORY, default_series
from test_fixtures import READABLE, YEAR_MS, digest, held

ARCHIVES = [archive for archive in READABLE if archive.startswith("machine-0-")]
# Far longer than any machine takes.
WITHIN = 300


@pytest.fixture
def nodes(brokers):
    """They find each other through the first one's port mapper."""
    conf = [*fixture.NODE["conf"], "delayed_message.continuous_membership_reconciliation.interval = 1000"]
    nodes = [brokers(f"from-one-{n}", **{**fixture.NODE, "conf": conf, "name": name}, start=False)
             for n, name in enumerate(("fixture", None, None))]
    for node in nodes[1:]:
        node.cookie, node.epmd_port = nodes[0].cookie, nodes[0].epmd_port
    yield nodes
    for node in nodes[1:]:
        node._epmd = None
        node.end()
    nodes[0].end()


def opened(broker):
    """The first node with what 0.1 had: the rows of each exchange."""
    broker.start()
    client = Client(broker)
    for name, arguments in fixture.EXCHANGES.items():
        client.delayed("direct", name=name, keep=True, arguments=arguments)
    fixture.declare_queues(client)
    broker.stop()
    data = os.path.join(broker.data_dir, "quorum")
    shutil.rmtree(os.path.join(data, "delayed"), ignore_errors=True)
    with tarfile.open(os.path.join(REPOSITORY, "tests", "fixtures", ARCHIVES[-1] + ".tar.xz")) as tar:
        tar.extractall(data)
    with open(os.path.join(data, "recorded.json"), encoding="utf-8") as file:
        exchanges = json.load(file)["exchanges"]
    broker.start()
    for exchange, rows in exchanges.items():
        eventually(lambda exchange=exchange: held(broker, exchange), lambda n, rows=rows: n == len(rows), within=WITHIN)
    return exchanges


def resource(exchange):
    return f'rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)'


def holds(node, exchange):
    """How many messages its member has, the digest of them all, and the version of the machine in effect there."""
    return evaluate(node, f"""case catch {{rabbit_delay_store:stat(rabbit_delay_registry:store({resource(exchange)})),
        rabbit_delay_broker:raft_overview(rabbit_delay_raft:server_id({resource(exchange)}), 5000)}} of
        {{#{{pending := N, digest := D}}, {{ok, #{{effective_machine_version := V}}}}}} -> {{N, D, V}};
        _ -> none end.""".replace("\n", " ")).replace(" ", "")


def test_from_a_single_node_of_0_1_to_a_cluster(nodes):
    first, *others = nodes
    exchanges = opened(first)
    for node in others:
        node._epmd = first._epmd
        node.start()
        for command in (["stop_app"], ["reset"], ["join_cluster", first.nodename], ["start_app"]):
            node.ctl(*command)
    if os.environ.get("CLUSTER_METADATA") == "khepri" and default_series() != "4.3":
        first.ctl("enable_feature_flag", "--experimental", "khepri_db")
    ours = evaluate(first, "rabbit_delay_machine:version().")
    for exchange, rows in exchanges.items():
        held_by_all = eventually(
            lambda exchange=exchange: [holds(node, exchange) for node in nodes],
            lambda said, rows=rows: len(set(said)) == 1 and said[0].startswith(f"{{{len(rows)},")
            and said[0].endswith(f",{ours}}}"), within=WITHIN)
        print(f"\n{exchange}: {held_by_all[0]}")
    for n, exchange in enumerate(exchanges):
        first.ctl("transfer_delayed_exchange_leadership", exchange, others[n % 2].nodename)
    first.ctl("resume_delayed_exchange", "paused")
    for node in nodes:
        set_clock(node, 100 * YEAR_MS)
    client = Client(first)
    due = collections.Counter((("mortal" if row[3] & 0x8000 else "work"), row[4])
                              for rows in exchanges.values() for row in rows)
    for queue in ("work", "mortal"):
        expected = {body: count for (name, body), count in due.items() if name == queue}
        got = client.collect(queue, sum(expected.values()), prefetch=1000)
        assert collections.Counter(digest(delivery.body) for delivery in got) == expected, queue
    for exchange in exchanges:
        eventually(lambda exchange=exchange: {holds(node, exchange).split(",")[0] for node in nodes},
                   lambda said: said == {"{0"}, within=WITHIN)
    # What is new is taken on a node that joined, and nothing comes again.
    newcomer = Client(others[0])
    for exchange in ("plain", "log"):
        newcomer.publish(exchange, body=b"new", delay=1)
    assert client.texts("work", 2) == ["new", "new"]
    assert client.depth("work") == 0 and client.depth("mortal") == 0
