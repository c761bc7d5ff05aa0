# SPDX-License-Identifier: MPL-2.0
"""Commands about the members of delayed exchanges, and how many there are: on three nodes."""

import concurrent.futures
import json
import os
import threading
import uuid

import pika
import pytest

from cluster import Cluster
from management import Management, eventually
from node import evaluate

HOUR_MS = 3_600_000
FOUND, BAD_DATA, UNAVAILABLE = 1, 65, 69
# A command that hangs is one that takes longer than what it may wait for, all bounds together.
NEVER = 300


@pytest.fixture(scope="module")
def cluster(directory):
    with Cluster(directory, metadata=os.environ.get("CLUSTER_METADATA") or None,
                 enable=["rabbitmq_delay_wheel", "rabbitmq_management"],
                 conf=["management.tcp.ip = 0.0.0.0", "cluster_partition_handling = pause_minority"]) as cluster:
        # What is looked at are the commands alone.
        for node in cluster.nodes:
            evaluate(node, "application:set_env(rabbitmq_delay_wheel, membership_reconciliation, false).")
        yield cluster


class Exchange:
    """A delayed exchange with so many members, and one pending message, published at the first node."""

    def __init__(self, cluster, size):
        self.cluster, self.nodes = cluster, cluster.nodes
        self.name = f"m-{uuid.uuid4().hex[:8]}"
        self.published = 0
        with pika.BlockingConnection(pika.ConnectionParameters(self.nodes[0].address)) as connection:
            channel = connection.channel()
            channel.exchange_declare(self.name, "x-delayed-message", durable=True, arguments={
                "x-delayed-type": "direct", "x-delay-initial-group-size": size})
        self.publish(0)

    def publish(self, n):
        with pika.BlockingConnection(pika.ConnectionParameters(self.nodes[n].address)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()

            def taken():
                try:
                    channel.basic_publish(self.name, "k", b"x", pika.BasicProperties(
                        delivery_mode=2, headers={"x-delay": HOUR_MS}))
                    return True
                except pika.exceptions.NackError:
                    return False
            eventually(taken, bool)
        self.published += 1

    def delete(self):
        with pika.BlockingConnection(pika.ConnectionParameters(self.nodes[0].address)) as connection:
            connection.channel().exchange_delete(self.name)

    def number(self, name):
        return [node.nodename for node in self.nodes].index(name)

    def status(self, n):
        return {self.number(row["node"]): row for row in self.nodes[n].rows("delayed_exchange_status", self.name)}

    def compared(self, n, code=0):
        """The same with what each holds, and what is said of it."""
        done = self.nodes[n].ctl("--quiet", "--formatter", "json", "delayed_exchange_status", "--digest", self.name,
                                 check=False)
        assert done.returncode == code, done
        return {self.number(row["node"]): row for row in json.loads(done.stdout)}, done.stderr

    def differs(self, n):
        """A node's member is made to lack a message, and whatever the next entry of the log brings."""
        assert evaluate(self.nodes[n], f"""begin
            Id = rabbit_delay_raft:server_id(rabbit_misc:r(<<"/">>, exchange, <<"{self.name}">>)),
            {{ok, {{_, Settled}}, _}} = ra:local_query(Id, fun (State) ->
                Store = rabbit_delay_machine:store(State),
                {{ok, [#{{id := Message}}]}} = rabbit_delay_store:page(Store, {{0, 0}}, 1),
                rabbit_delay_store:settle(Store, rabbit_delay_store:applied(Store) + 1, <<Message:64/little>>)
            end), Settled end.""".replace("\n", " ")) == "{ok, 1}"
        self.publish(n)

    def shown(self):
        """What each node says over HTTP, which takes less time than a command."""
        return [Management(node).get(f"delayed-exchanges/%2F/{self.name}") for node in self.nodes]

    def members(self):
        """As each node says."""
        rows = eventually(self.shown, lambda rows: len({tuple(sorted(row["members"])) for row in rows}) == 1)
        return sorted(self.number(name) for name in rows[0]["members"])

    def leader(self):
        """As each node says."""
        rows = eventually(self.shown, lambda rows: len({row["leader"] for row in rows}) == 1 and rows[0]["leader"])
        return self.number(rows[0]["leader"])

    def is_whole(self):
        """All members vote, and have all that was published; and they are those that the record names."""
        rows = eventually(lambda: self.status(0), lambda rows: all(
            row["voter"] and row["behind"] == 0 for row in rows.values()))
        assert sorted(rows) == self.members()
        assert [n for n, row in rows.items() if row["state"] == "leader"] == [self.leader()]
        eventually(self.shown, lambda rows: [row["messages_delayed"] for row in rows] == [self.published] * 3)

    def named(self, n):
        return self.nodes[n].nodename


@pytest.fixture
def exchange(cluster):
    made = []

    def make(size):
        made.append(Exchange(cluster, size))
        return made[-1]
    yield make
    for one in made:
        one.delete()


def test_status_says_the_same_on_each_node(exchange):
    one = exchange(3)
    assert one.members() == [0, 1, 2]
    one.is_whole()
    leader = one.leader()
    for n in range(3):
        status = one.status(n)
        assert [row["state"] for m, row in status.items() if m != leader] == ["follower"] * 2
        assert len({(row["term"], row["last_index"]) for row in status.values()}) == 1
    assert [row["group_size"] for row in one.shown()] == [3] * 3
    row, = [row for row in one.nodes[leader - 1].rows("list_delayed_exchanges", "name", "leader", "members",
                                                      "group_size") if row["name"] == one.name]
    assert (one.number(row["leader"]), row["group_size"]) == (leader, 3)
    assert sorted(map(one.number, row["members"])) == [0, 1, 2]


def test_members_hold_the_same(exchange):
    one = exchange(3)
    digests = set()
    for n in range(3):
        one.publish(n)
        one.is_whole()
        rows, said = one.compared(n)
        assert said == "" and sorted(rows) == [0, 1, 2]
        (index, digest, held), = {(row["digest_index"], row["digest"], row["messages_delayed"]) for row in rows.values()}
        assert held == one.published and index <= min(row["last_applied"] for row in rows.values())
        assert len(digest) == 24 and digest not in digests
        digests.add(digest)
        assert [row["messages_delayed"] for row in one.status(n).values()] == [held] * 3
        shown = Management(one.nodes[n]).get(f"delayed-exchanges/%2F/{one.name}/members?digest=true")
        assert shown["outcome"] == "same" and "hold the same at index" in shown["why"]
        assert {one.number(row["node"]): row for row in shown["members"]} == rows
    assert "hold the same at index" in one.nodes[0].ctl("delayed_exchange_status", "--digest", one.name)


def test_members_are_compared_while_messages_come_and_go(exchange):
    """They are seen at one index in the end, and never found to differ."""
    one = exchange(3)
    one.is_whole()
    enough = threading.Event()

    def publish(n):
        with pika.BlockingConnection(pika.ConnectionParameters(one.nodes[n].address)) as connection:
            channel = connection.channel()
            while not enough.is_set():
                channel.basic_publish(one.name, "k", b"x", pika.BasicProperties(headers={"x-delay": 20}))
                connection.process_data_events(0.002)

    with concurrent.futures.ThreadPoolExecutor(max_workers=3) as pool:
        publishing = [pool.submit(publish, n) for n in range(3)]
        try:
            outcomes = []

            def outcome():
                answer = Management(one.nodes[0]).get(f"delayed-exchanges/%2F/{one.name}/members?digest=true")
                outcomes.append((answer["outcome"], len({row["digest_index"] for row in answer["members"]})))
                return answer["outcome"]
            eventually(outcome, lambda _: [what for what, _ in outcomes].count("same") == 3)
        finally:
            enough.set()
        for each in publishing:
            each.result()
    print(outcomes)
    assert {what for what, _ in outcomes} <= {"same", "unknown"}
    assert all(indexes == 1 for what, indexes in outcomes if what == "same")


def test_a_member_that_differs_is_found_and_made_again(exchange):
    one = exchange(3)
    one.is_whole()
    odd = [n for n in range(1, 3) if n != one.leader()][0]
    one.publish(0)
    one.is_whole()
    one.compared(odd)
    one.differs(odd)
    for n in range(3):
        rows, said = one.compared(n, FOUND)
        others = [m for m in range(3) if m != odd]
        assert f"{one.named(odd)} {rows[odd]['messages_delayed']} message" in said and "different messages" in said
        assert len({row["digest_index"] for row in rows.values()}) == 1
        assert len({rows[m]["digest"] for m in others}) == 1 and rows[odd]["digest"] != rows[others[0]]["digest"]
        assert {rows[m]["messages_delayed"] for m in others} == {one.published}
        shown = Management(one.nodes[n]).get(f"delayed-exchanges/%2F/{one.name}/members?digest=true")
        assert shown["outcome"] == "different" and shown["why"] in said
    for command in ("delete_delayed_exchange_member", "add_delayed_exchange_member"):
        one.nodes[0].ctl(command, one.name, one.named(odd), timeout=NEVER)
    one.is_whole()
    rows, _ = one.compared(odd)
    assert {row["messages_delayed"] for row in rows.values()} == {one.published}


def test_a_node_with_an_earlier_version_does_not_tell(cluster, exchange):
    one = exchange(3)
    one.is_whole()
    earlier = cluster.nodes[2]
    module = "rabbit_delay_digest"
    evaluate(earlier, f"""begin {{ok, M, B}} = compile:forms([{{attribute, 1, module, {module}}}]),
        code:purge(M), code:load_binary(M, "none", B) end.""".replace("\n", " "))
    try:
        rows, said = one.compared(0, UNAVAILABLE)
        assert f"not compared: {earlier.nodename} (its node has an earlier version of the plugin" in said
        assert f"{one.named(0)} and {one.named(1)} hold the same at index" in said
        assert rows[2]["digest"] is None and rows[2]["messages_delayed"] == 1 and rows[0]["digest"] == rows[1]["digest"]
    finally:
        evaluate(earlier, f"begin code:purge({module}), code:load_file({module}) end.")
    one.compared(0)


def test_a_member_is_added_and_deleted(exchange):
    one = exchange(1)
    assert one.members() == [0]
    at = one.nodes[2]
    at.ctl("add_delayed_exchange_member", one.name, one.named(1), timeout=NEVER)
    assert one.members() == [0, 1]
    one.is_whole()
    at.ctl("add_delayed_exchange_member", one.name, one.named(2), timeout=NEVER)
    assert one.members() == [0, 1, 2]
    one.is_whole()
    assert "has a member already" in at.ctl("add_delayed_exchange_member", one.name, one.named(2))
    one.publish(1)
    one.is_whole()
    # Also the one that leads, asked for at another.
    leader = one.leader()
    one.nodes[(leader + 1) % 3].ctl("delete_delayed_exchange_member", one.name, one.named(leader), timeout=NEVER)
    assert one.members() == [n for n in range(3) if n != leader]
    assert one.leader() != leader
    assert "has no member" in at.ctl("delete_delayed_exchange_member", one.name, one.named(leader))
    one.publish(leader)
    one.is_whole()


def test_leadership_is_transferred(exchange):
    one = exchange(3)
    one.is_whole()
    for _ in range(2):
        before = one.leader()
        to, at = [n for n in range(3) if n != before]
        one.nodes[at].ctl("transfer_delayed_exchange_leadership", one.name, one.named(to), timeout=NEVER)
        assert one.leader() == to
        one.publish(before)
        one.is_whole()


def test_exchanges_grow_and_shrink(exchange):
    of_one, of_two, of_three = exchange(1), exchange(1), exchange(3)
    node = of_one.nodes[0]
    node.ctl("add_delayed_exchange_member", of_two.name, of_two.named(1), timeout=NEVER)
    of_two.is_whole()
    pattern = f"^({of_one.name}|{of_two.name}|{of_three.name})$"

    def grow(which):
        return {row["name"]: (row["size"], row["result"]) for row in node.rows(
            "grow_delayed_exchanges", of_one.named(2), which, "--exchange-pattern", pattern, timeout=NEVER)}
    assert grow("even") == {of_two.name: (3, "ok")}
    assert grow("all") == {of_one.name: (2, "ok")}
    assert grow("all") == {}
    assert (of_one.members(), of_two.members(), of_three.members()) == ([0, 2], [0, 1, 2], [0, 1, 2])
    of_two.is_whole()
    rows = {row["name"]: (row["vhost"], row["size"], row["result"])
            for row in of_one.nodes[2].rows("shrink_delayed_exchanges", of_one.named(2), timeout=NEVER)}
    assert {name: rows[name] for name in (of_one.name, of_two.name, of_three.name)} == {
        of_one.name: ("/", 1, "ok"), of_two.name: ("/", 2, "ok"), of_three.name: ("/", 2, "ok")}
    assert (of_one.members(), of_two.members(), of_three.members()) == ([0], [0, 1], [0, 1])
    # The last one stays; the others are done.
    done = node.ctl("--quiet", "--formatter", "json", "shrink_delayed_exchanges", of_one.named(0), check=False,
                    timeout=NEVER)
    rows = {row["name"]: (row["size"], row["result"]) for row in json.loads(done.stdout)}
    assert done.returncode == 1 and rows[of_one.name][0] == 1 and "only member" in rows[of_one.name][1]
    assert rows[of_two.name] == rows[of_three.name] == (1, "ok")
    assert (of_one.members(), of_two.members(), of_three.members()) == ([0], [1], [1])
    for one in (of_one, of_three):
        one.publish(2)
        one.is_whole()


def test_leaders_are_rebalanced(cluster, exchange):
    made = [exchange(3) for _ in range(6)]
    made[-1].is_whole()
    for one in made:
        one.nodes[0].ctl("transfer_delayed_exchange_leadership", one.name, one.named(1), timeout=NEVER)
    assert [one.leader() for one in made] == [1] * 6
    leaders = {row["node"]: row["leaders"]
               for row in cluster.nodes[2].rows("rebalance_delayed_exchanges", timeout=NEVER)}
    assert leaders == {node.nodename: 2 for node in cluster.nodes}
    assert sorted(one.leader() for one in made) == [0, 0, 1, 1, 2, 2]
    for one in made[:2]:
        one.publish(0)
        one.is_whole()


def test_a_node_that_is_down(cluster, exchange):
    """It is shown, others are critical then, and what cannot be done is refused in words."""
    one, alone = exchange(3), exchange(1)
    one.is_whole()
    down = [n for n in range(1, 3) if n != one.leader()][0]
    up = 3 - down
    check = ["check_if_node_is_delayed_exchange_critical"]
    assert "no members of delayed exchanges" in cluster.nodes[up].ctl(*check)
    # It has the only member of that.
    assert cluster.nodes[0].ctl(*check, check=False).returncode == UNAVAILABLE
    cluster.stop(down)
    try:
        cluster.await_down(down)
        status = eventually(lambda: one.status(up), lambda status: status[down]["state"] == "down")
        assert status[down]["behind"] is None and status[down]["last_index"] is None
        done = cluster.nodes[up].ctl("--formatter", "json", *check, check=False)
        said = json.loads(done.stderr or done.stdout)
        assert done.returncode == UNAVAILABLE and said["result"] == "error"
        assert [(x["name"], x["virtual_host"]) for x in said["exchanges"]] == [(one.name, "/")]
        done = cluster.nodes[up].ctl(*check, check=False)
        assert f"delayed exchange '{one.name}' in vhost '/' will become unavailable" in done.stderr
        for command, code, why in (
                (["add_delayed_exchange_member", alone.name, one.named(down)], UNAVAILABLE, "does not answer"),
                (["grow_delayed_exchanges", one.named(down), "all"], UNAVAILABLE, "does not answer"),
                (["transfer_delayed_exchange_leadership", alone.name, one.named(up)], BAD_DATA, "has no member"),
                (["transfer_delayed_exchange_leadership", one.name, one.named(down)], UNAVAILABLE, "")):
            done = cluster.nodes[up].ctl(*command, check=False, timeout=NEVER)
            assert done.returncode == code and why in done.stderr and len(done.stderr) > 20, (command, done)
        # Nor has anything kept it from being led.
        assert "leader" in [member["state"] for member in one.status(up).values()]
        compared, said = one.compared(up, UNAVAILABLE)
        assert f"not compared: {one.named(down)} (its node does not answer)" in said
        assert f"{one.named(0)} and {one.named(up)}" in said and "hold the same at index" in said
        assert [compared[n]["digest"] is None for n in (0, up, down)] == [False, False, True]
        # Its member can be deleted nevertheless: the others are a majority.
        cluster.nodes[up].ctl("delete_delayed_exchange_member", one.name, one.named(down), timeout=NEVER)
        assert sorted(one.status(up)) == sorted({0, up})
    finally:
        cluster.start(down)
        cluster.await_whole()
    assert one.members() == sorted({0, up})
    eventually(lambda: cluster.members(down, one.name), lambda held: held == 0)
    one.publish(down)
    one.is_whole()


def test_a_node_without_the_plugin(cluster, exchange):
    one = exchange(1)
    without = cluster.nodes[2]
    without.plugins("disable", "rabbitmq_delay_wheel")
    try:
        done = cluster.nodes[0].ctl("add_delayed_exchange_member", one.name, without.nodename, check=False)
        assert done.returncode in (BAD_DATA, UNAVAILABLE) and done.stderr.strip(), done
        assert "plugin" in done.stderr
        assert one.status(0).keys() == {0}
    finally:
        without.plugins("enable", "rabbitmq_delay_wheel")
    cluster.await_whole()


@pytest.mark.parametrize("by", ["argument", "policy"])
def test_how_many_members_is_said_by(cluster, by):
    """At first; an even number is one less."""
    name, size = f"m-{uuid.uuid4().hex[:8]}", {"argument": 2, "policy": 1}[by]
    node = cluster.nodes[0]
    node.ctl("set_policy", "--apply-to", "exchanges", "sized", f"^{name}$",
             json.dumps({"delay-initial-group-size": 1 if by == "policy" else 3}))
    arguments = {"x-delay-initial-group-size": size} if by == "argument" else {}
    with pika.BlockingConnection(pika.ConnectionParameters(node.address)) as connection:
        channel = connection.channel()
        channel.exchange_declare(name, "x-delayed-message", durable=True,
                                 arguments={"x-delayed-type": "direct", **arguments})
        channel.confirm_delivery()
        channel.basic_publish(name, "k", b"x", pika.BasicProperties(headers={"x-delay": HOUR_MS}))
        assert [row["state"] for row in node.rows("delayed_exchange_status", name)] == ["leader"]
        row, = [row for row in node.rows("list_delayed_exchanges", "name", "group_size") if row["name"] == name]
        assert row["group_size"] == 1
        channel.exchange_delete(name)
    node.ctl("clear_policy", "sized")
