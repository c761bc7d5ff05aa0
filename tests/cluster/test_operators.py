# SPDX-License-Identifier: MPL-2.0
"""What an operator sees of a replicated exchange, and does to it, is the same on each node of a cluster,
the one that leads its group and those that do not, by the command-line tool and by the HTTP API."""

import json
import os
import uuid

import pika
import pytest

from cluster import PLUGIN, Cluster
from management import Management, eventually, quoted
from metrics import Metrics
from node import evaluate

HOUR_MS = 3_600_000
# Of what is published on each node.
EACH = 4
GAUGES = ["messages_delayed", "bytes_delayed", "next_due", "overdue", "in_flight", "waiting",
          "stuck_queues", "unreadable", "paused"]
COUNTS = ["released", "cancelled", "unroutable", "dead_lettered", "expired", "overflowed", "dropped"]
CONFIRMED = 120
# A command that hangs is one that takes longer than what it may wait for, all bounds together.
NEVER = 300


@pytest.fixture(scope="module")
def cluster(directory):
    with Cluster(directory, metadata=os.environ.get("CLUSTER_METADATA") or None,
                 enable=[PLUGIN, "rabbitmq_management", "rabbitmq_prometheus"],
                 conf=["management.tcp.ip = 0.0.0.0", "prometheus.tcp.ip = 0.0.0.0",
                       "cluster_partition_handling = pause_minority"]) as cluster:
        yield cluster


class Exchange:
    """A delayed exchange with a member on each node, and what was published to it on each for hours
    hence: m0, m1, ... in due order."""

    def __init__(self, cluster, each=EACH):
        self.cluster, self.nodes = cluster, cluster.nodes
        self.name = f"o-{uuid.uuid4().hex[:8]}"
        self.published = 0
        self.declare()
        for n in range(len(self.nodes)):
            self.publish(n, each)
        self.leader = self.leads()

    def channel(self, n):
        connection = pika.BlockingConnection(pika.ConnectionParameters(
            self.nodes[n].address, heartbeat=0, blocked_connection_timeout=CONFIRMED))
        channel = connection.channel()
        channel.confirm_delivery()
        return connection, channel

    def declare(self):
        connection, channel = self.channel(0)
        channel.exchange_declare(self.name, "x-delayed-message", durable=True,
                                 arguments={"x-delayed-type": "direct"})
        channel.queue_declare(self.name, durable=True)
        channel.queue_bind(self.name, self.name, "k")
        connection.close()

    def publish(self, n, count, key="k"):
        """Those that are refused while a leader is found are sent again."""
        connection, channel = self.channel(n)
        for _ in range(count):
            name = f"m{self.published}"
            properties = pika.BasicProperties(delivery_mode=2, headers={
                "x-delay": (self.published + 1) * HOUR_MS, "x-delay-key": name, "n": self.published})

            def taken():
                try:
                    channel.basic_publish(self.name, key, name.encode(), properties)
                    return True
                except pika.exceptions.NackError:
                    return False
            eventually(taken, bool)
            self.published += 1
        connection.close()

    @property
    def resource(self):
        return f'rabbit_misc:r(<<"/">>, exchange, <<"{self.name}">>)'

    def leads(self):
        server = evaluate(self.nodes[0], f"element(1, rabbit_delay_raft:server_id({self.resource})).")
        return self.cluster.await_leader(server)

    def queued(self):
        connection, channel = self.channel(0)
        count = channel.queue_declare(self.name, passive=True).method.message_count
        connection.close()
        return count

    # ------------------------------------------------------------------------- what is seen

    def bodies(self, n):
        return [item["payload"] for item in
                self.api(n).get(self.path("messages?body=true&limit=100"))["items"]]

    def listed_bodies(self, n, *switches):
        return [row["payload"] for row in self.listed(n, *switches)]

    def listed(self, n, *switches):
        return self.nodes[n].rows("list_delayed_messages", self.name, "id", "due", "payload",
                                  *switches)

    def figures(self, n, columns=(*GAUGES, *COUNTS)):
        row, = [row for row in self.nodes[n].rows("list_delayed_exchanges", "name", *columns)
                if row["name"] == self.name]
        return row

    def api(self, n):
        return Management(self.nodes[n])

    def path(self, *more):
        return "/".join(["delayed-exchanges/%2F", quoted(self.name), *more])

    def over_http(self, n):
        """All that the HTTP API says of it, but its samples and rates, and the time of day."""
        api = self.api(n)
        own = api.get(self.path())
        row, = [row for row in api.get("delayed-exchanges") if row["name"] == self.name]
        stats = {name: value for name, value in own.pop("message_stats").items()
                 if not name.endswith("_details")}
        listed = row.pop("message_stats")
        assert stats == {name: listed[name] for name in stats}
        assert own == row
        return {"exchange": own, "stats": stats, "lateness": api.get(self.path("lateness")),
                "due": api.get(self.path("due-times")),
                "pending": api.exchange(self.name)["messages_delayed"],
                "items": api.get(self.path("messages?body=true&limit=100"))}

    def ask_all(self, ask):
        return [ask(n) for n in range(len(self.nodes))]

    def same(self, ask):
        """What each node says, which must be one answer: as soon as nothing is under way."""
        return eventually(lambda: self.ask_all(ask), lambda said: said.count(said[0]) == len(said))[0]

    def delete(self):
        connection, channel = self.channel(self.leads())
        channel.exchange_delete(self.name)
        channel.queue_delete(self.name)
        connection.close()
        for node in self.nodes:
            eventually(lambda node=node: evaluate(node, f"rabbit_delay_registry:queue({self.resource})."),
                       lambda queue: queue == "undefined")


@pytest.fixture
def exchange(cluster):
    made = Exchange(cluster)
    yield made
    made.delete()


def at(where, exchange):
    """The leader's node, or one that has a member and does not lead."""
    return exchange.leader if where == "leader" else exchange.cluster.others(exchange.leader)[0]


WHERE = pytest.mark.parametrize("where", ["leader", "other"])


# --------------------------------------------------------------------------------- seen

def test_each_node_says_the_same(exchange):
    names = [f"m{n}" for n in range(exchange.published)]
    assert exchange.same(exchange.listed_bodies) == exchange.same(exchange.bodies) == names
    ids = [row["id"] for row in exchange.listed(0)]
    shown = exchange.same(lambda n: json.loads(exchange.nodes[n].ctl(
        "--quiet", "--formatter", "json", "show_delayed_message", exchange.name, ids[3], "--body")))
    assert (shown["id"], shown["payload"]) == (ids[3], "m3")
    assert exchange.same(lambda n: exchange.listed_bodies(n, "--key", "m2")) == ["m2"]
    assert exchange.same(lambda n: exchange.listed_bodies(n, "--header", "n=1")) == ["m1"]
    figures = exchange.same(exchange.figures)
    assert (figures["messages_delayed"], figures["paused"], figures["in_flight"]) == \
        (exchange.published, False, 0)
    assert figures["bytes_delayed"] > exchange.published and figures["next_due"] > 0

    seen = exchange.same(exchange.over_http)
    assert seen["exchange"]["messages_delayed"] == seen["pending"] == exchange.published
    assert seen["stats"]["published"] == exchange.published
    assert sum(bucket["messages"] for bucket in seen["due"]["buckets"]) == exchange.published
    assert [item["id"] for item in seen["items"]["items"]] == ids
    # A cursor of one node goes on at another.
    for n in range(len(exchange.nodes)):
        first = exchange.api(n).get(exchange.path("messages?limit=5"))
        cursor = first["cursor"]
        rest = exchange.api((n + 1) % 3).get(exchange.path(f"messages?limit=100&cursor={cursor}"))
        assert [item["id"] for item in first["items"] + rest["items"]] == ids


def test_what_does_not_exist_is_not_found_on_any_node(exchange):
    for n, node in enumerate(exchange.nodes):
        assert node.ctl("show_delayed_message", exchange.name, "1", check=False).returncode == 65
        assert node.ctl("list_delayed_messages", "no such exchange", check=False).returncode == 65
        assert exchange.api(n).request("GET", exchange.path("messages", "1"))[0] == 404
        assert exchange.api(n).request("GET", "delayed-exchanges/%2F/none/messages")[0] == 404


def test_sums_over_nodes_are_right(exchange):
    exchange.nodes[exchange.leader].ctl("release_delayed_messages", exchange.name, "--key", "m0")
    eventually(exchange.queued, lambda queued: queued == 1)

    def summed(name):
        return sum(Metrics(node, "metrics/per-object").get(
            f"rabbitmq_delayed_{name}", exchange=exchange.name, vhost="/") or 0
            for node in exchange.nodes)

    eventually(lambda: summed("messages_released_total"), lambda total: total == 1)
    assert summed("messages_published_total") == exchange.published
    assert summed("messages_pending") == exchange.published - 1
    assert summed("raft_leaders") == 1
    stats = exchange.same(exchange.over_http)["stats"]
    assert (stats["published"], stats["released"]) == (exchange.published, 1)
    lateness = exchange.same(exchange.over_http)["lateness"]
    assert sum(bucket["messages"] for bucket in lateness["buckets"]) == 1
    assert exchange.same(exchange.figures)["released"] == 1
    # Each node's internal queue counts what its own node holds.
    queues = [queue["messages"] for queue in exchange.api(0).get("queues")
              if queue["name"].startswith(f"amq.delayed.{exchange.name}@") and "messages" in queue]
    assert sum(queues) <= exchange.published


# ------------------------------------------------------------------------------ changed

@WHERE
def test_changed_by_commands(exchange, where):
    node = exchange.nodes[at(where, exchange)]
    ids = {row["payload"]: row["id"] for row in exchange.listed(0)}
    left = list(ids)

    assert "cancelled" in node.ctl("cancel_delayed_messages", exchange.name, ids["m1"])
    left.remove("m1")
    assert exchange.same(exchange.bodies) == left
    assert "1 message cancelled" in node.ctl("cancel_delayed_messages", exchange.name, "--key", "m2")
    left.remove("m2")
    assert exchange.same(exchange.bodies) == left
    assert exchange.same(exchange.over_http)["stats"]["cancelled"] == 2

    node.ctl("reschedule_delayed_messages", exchange.name, ids["m0"], "--by", "100h")
    left.append(left.pop(0))
    assert exchange.same(exchange.bodies) == left

    node.ctl("pause_delayed_exchange", exchange.name)
    assert exchange.same(exchange.over_http)["exchange"]["paused"] is True
    node.ctl("release_delayed_messages", exchange.name, ids["m3"])
    assert sorted(exchange.same(exchange.bodies)) == sorted(left)
    assert exchange.queued() == 0
    node.ctl("resume_delayed_exchange", exchange.name)
    eventually(exchange.queued, lambda queued: queued == 1)
    left.remove("m3")
    eventually(lambda: exchange.same(exchange.bodies), lambda bodies: bodies == left)
    assert exchange.same(exchange.over_http)["exchange"]["paused"] is False

    assert f"{len(left)} messages would be" in node.ctl("purge_delayed_messages", exchange.name,
                                                        "--dry-run")
    assert f"{len(left)} messages cancelled" in node.ctl("purge_delayed_messages", exchange.name)
    assert exchange.same(exchange.bodies) == []
    assert exchange.same(exchange.over_http)["pending"] == 0


@WHERE
def test_changed_over_http(exchange, where):
    api = exchange.api(at(where, exchange))
    ids = {row["payload"]: row["id"] for row in exchange.listed(0)}
    left = list(ids)

    def does(method, path, body=None, status=200):
        got, answer = api.request(method, exchange.path(*path), body)
        assert got == status, answer
        return answer

    does("DELETE", ["messages", ids["m1"]], status=204)
    left.remove("m1")
    assert exchange.same(exchange.bodies) == left
    assert does("POST", ["messages", "cancel"], {"ids": [ids["m1"], ids["m2"]]})["results"] == [
        {"id": ids["m1"], "outcome": "not_found"}, {"id": ids["m2"], "outcome": "done"}]
    left.remove("m2")
    assert exchange.same(exchange.bodies) == left
    does("POST", ["messages", "reschedule"], {"ids": [ids["m0"]], "by": 100 * HOUR_MS})
    left.append(left.pop(0))
    assert exchange.same(exchange.bodies) == left
    does("POST", ["pause"], status=204)
    assert exchange.same(exchange.over_http)["exchange"]["paused"] is True
    does("POST", ["messages", "release"], {"ids": [ids["m3"]]})
    assert exchange.queued() == 0
    does("POST", ["resume"], status=204)
    eventually(exchange.queued, lambda queued: queued == 1)
    left.remove("m3")
    eventually(lambda: exchange.same(exchange.bodies), lambda bodies: bodies == left)
    assert does("DELETE", ["messages"])["changed"] == len(left)
    assert exchange.same(exchange.over_http)["items"]["items"] == []


@WHERE
def test_moved_out_and_in(exchange, where):
    """What one node exports is what each exports; and it can be imported on any."""
    def exported(n):
        file = exchange.nodes[n].path(f"exported-{uuid.uuid4().hex[:8]}")
        exchange.nodes[n].ctl("export_delayed_messages", "--file", file, exchange.name)
        with open(file, encoding="utf-8") as lines:
            return file, lines.read()

    node = exchange.nodes[at(where, exchange)]
    exchange.same(lambda n: exported(n)[1])
    file, text = exported(at(where, exchange))
    assert len(text.splitlines()) == exchange.published
    node.ctl("purge_delayed_messages", exchange.name)
    said = node.ctl("import_delayed_messages", "--file", file)
    assert f"{exchange.published} messages imported" in said
    names = [f"m{n}" for n in range(exchange.published)]
    assert exchange.same(exchange.bodies) == names
    again = node.ctl("import_delayed_messages", "--file", file, "--skip-pending")
    assert exchange.same(exchange.bodies) == names, again


@pytest.mark.parametrize("n", range(3))
def test_what_has_delayed_nothing_is_paused_on_any_node(cluster, n):
    exchange = Exchange.__new__(Exchange)
    exchange.cluster, exchange.nodes = cluster, cluster.nodes
    exchange.name, exchange.published = f"o-{uuid.uuid4().hex[:8]}", 0
    exchange.declare()
    assert exchange.same(exchange.bodies) == []
    assert exchange.same(exchange.over_http)["pending"] == 0
    exchange.nodes[n].ctl("pause_delayed_exchange", exchange.name)
    assert exchange.same(exchange.over_http)["exchange"]["paused"] is True
    exchange.publish((n + 1) % 3, 2)
    assert exchange.same(exchange.bodies) == ["m0", "m1"]
    exchange.delete()


# ----------------------------------------------------------------------- the leader killed

def test_the_leader_is_killed_midway(cluster):
    """What is asked for at that moment succeeds, or is refused in words; soon all is as before."""
    exchange = Exchange(cluster)
    killed = exchange.leader
    one, other = cluster.others(killed)
    ids = [row["id"] for row in exchange.listed(one)]
    cluster.kill9(killed)
    try:
        left = list(ids)
        commands = [(["list_delayed_messages", exchange.name], None),
                    (["cancel_delayed_messages", exchange.name, ids[0]], ids[0]),
                    (["show_delayed_message", exchange.name, ids[1]], None),
                    (["pause_delayed_exchange", exchange.name], None),
                    (["list_delayed_exchanges"], None)]
        for command, changed in commands:
            done = exchange.nodes[one].ctl(*command, check=False, timeout=NEVER)
            assert done.returncode in (0, 69), (command, done.stdout, done.stderr)
            if done.returncode == 0:
                left = [name for name in left if name != changed]
            else:
                assert done.stderr.strip(), command
        status, answer = exchange.api(other).request("GET", exchange.path("messages"))
        assert status in (200, 503), answer

        # With a leader again, both that are left say the same.
        def listed(n):
            done = exchange.nodes[n].ctl("--quiet", "--formatter", "json", "list_delayed_messages",
                                         exchange.name, "id", check=False, timeout=NEVER)
            return [row["id"] for row in json.loads(done.stdout)] if done.returncode == 0 else None
        seen = eventually(lambda: listed(one), lambda ids: ids is not None)
        assert seen == listed(other)
        assert set(left) - set(seen) <= {ids[0]} and set(seen) <= set(ids)
        exchange.nodes[other].ctl("cancel_delayed_messages", exchange.name, ids[2], timeout=NEVER)
        assert listed(one) == [name for name in seen if name != ids[2]]
    finally:
        cluster.start(killed)
        cluster.await_whole()
    eventually(lambda: listed(killed), lambda now: now == [n for n in seen if n != ids[2]])
    exchange.delete()
