# SPDX-License-Identifier: MPL-2.0
"""Commands about the members of delayed exchanges, on a node that is alone: what is shown, and what is wrong
with what is asked for. What they do in a cluster: tests/cluster/test_members_commands.py."""

import json
import re

import pytest

from management import eventually
from node import HOUR_MS

BAD_USAGE, BAD_DATA = 64, 65


@pytest.fixture
def exchange(client):
    """With a message pending."""
    name = client.delayed()
    client.publish(name, "k", b"x", delay=HOUR_MS)
    return name


def test_the_only_member_is_shown(client, broker, exchange):
    member, = broker.rows("delayed_exchange_status", exchange)
    assert member == {"node": broker.nodename, "state": "leader", "voter": True, "behind": 0, "messages_delayed": 1,
                      **{name: member[name] for name in ("last_index", "last_applied", "commit_index",
                                                         "snapshot_index", "term")}}
    assert member["last_index"] >= member["last_applied"] > 0 and member["term"] > 0
    client.publish(exchange, "k", b"x", delay=HOUR_MS)
    eventually(lambda: broker.rows("delayed_exchange_status", exchange)[0]["last_applied"],
               lambda applied: applied > member["last_applied"])
    assert f"{broker.nodename}\tleader\ttrue\t0\t2\t" in broker.ctl("delayed_exchange_status", exchange)
    row, = [row for row in broker.rows("list_delayed_exchanges", "name", "leader", "members", "group_size")
            if row["name"] == exchange]
    assert row == {"name": exchange, "leader": broker.nodename, "members": [broker.nodename], "group_size": 3}


def test_the_only_member_has_a_digest(client, broker, exchange):
    """Of what is pending, in no order, and of nothing that is not."""
    def shown(messages):
        member, = broker.rows("delayed_exchange_status", "--digest", exchange)
        assert member["messages_delayed"] == messages and 0 < member["digest_index"] <= member["last_applied"]
        assert re.fullmatch("[0-9a-f]{24}", member["digest"])
        return member["digest"]

    def pending():
        return [row["id"] for row in broker.rows("list_delayed_messages", exchange)]

    one = shown(1)
    first, = pending()
    client.publish(exchange, "k", b"x", delay=HOUR_MS)
    two = shown(2)
    second, = set(pending()) - {first}
    broker.ctl("pause_delayed_exchange", exchange)
    assert shown(2)[:16] == two[:16] and shown(2)[16:] != two[16:]
    broker.ctl("resume_delayed_exchange", exchange)
    assert shown(2) == two
    broker.ctl("reschedule_delayed_messages", exchange, second, "--by", "+1h")
    assert shown(2)[:16] not in (one[:16], two[:16])
    broker.ctl("cancel_delayed_messages", exchange, second)
    assert shown(1)[:16] == one[:16] != two[:16]
    broker.ctl("purge_delayed_messages", exchange)
    assert shown(0)[:16] == "0" * 16
    assert "it has one member: there is nothing to compare" in broker.ctl("delayed_exchange_status", "--digest", exchange)
    assert "nothing to compare" not in broker.ctl("--silent", "delayed_exchange_status", "--digest", exchange)


def test_one_that_has_delayed_nothing_has_no_members(client, broker):
    exchange = client.delayed(arguments={"x-delay-initial-group-size": 6})
    row, = [row for row in broker.rows("list_delayed_exchanges", "name", "leader", "members", "group_size")
            if row["name"] == exchange]
    assert row == {"name": exchange, "leader": "", "members": [], "group_size": 5}
    for command in (["delayed_exchange_status", exchange], ["delayed_exchange_status", "--digest", exchange],
                    ["add_delayed_exchange_member", exchange, broker.nodename],
                    ["delete_delayed_exchange_member", exchange, broker.nodename],
                    ["transfer_delayed_exchange_leadership", exchange, broker.nodename]):
        done = broker.ctl(*command, check=False)
        assert done.returncode == BAD_DATA and "has not delayed anything yet" in done.stderr, done


@pytest.mark.parametrize("command, code, why", [
    (["delayed_exchange_status", "none"], BAD_DATA, "there is no delayed exchange 'none' in vhost '/'"),
    (["delayed_exchange_status", "amq.direct"], BAD_DATA, "there is no delayed exchange 'amq.direct'"),
    (["delayed_exchange_status", "--vhost", "none", "none"], BAD_DATA, "there is no delayed exchange"),
    (["add_delayed_exchange_member", "none", "NODE"], BAD_DATA, "there is no delayed exchange 'none'"),
    (["add_delayed_exchange_member", "EXCHANGE", "rabbit@nowhere"], BAD_DATA,
     "there is no node rabbit@nowhere in the cluster"),
    (["delete_delayed_exchange_member", "EXCHANGE", "rabbit@nowhere"], BAD_DATA, "there is no node"),
    (["delete_delayed_exchange_member", "EXCHANGE", "NODE"], BAD_DATA, "has the only member of exchange"),
    (["transfer_delayed_exchange_leadership", "EXCHANGE", "é\x1b[31m"], BAD_DATA, "there is no node é"),
    (["grow_delayed_exchanges", "rabbit@nowhere", "all"], BAD_DATA, "there is no node"),
    (["grow_delayed_exchanges", "NODE", "some"], BAD_DATA, "all or even"),
    (["grow_delayed_exchanges", "NODE", "even", "--exchange-pattern", "("], BAD_DATA, "no regular expression"),
    (["shrink_delayed_exchanges", "rabbit@nowhere"], BAD_DATA, "there is no node"),
    (["force_shrink_delayed_exchanges", "rabbit@nowhere"], BAD_DATA, "there is no node"),
    (["force_shrink_delayed_exchanges"], BAD_USAGE, "not enough"),
    (["rebalance_delayed_exchanges", "--vhost-pattern", "["], BAD_DATA, "no regular expression"),
    (["delayed_exchange_status"], BAD_USAGE, "not enough"),
    (["delayed_exchange_status", "--digest", "none"], BAD_DATA, "there is no delayed exchange 'none' in vhost '/'"),
    (["delayed_exchange_status", "--digests", "EXCHANGE"], BAD_USAGE, "digests"),
    (["add_delayed_exchange_member", "EXCHANGE"], BAD_USAGE, "not enough"),
    (["grow_delayed_exchanges", "NODE"], BAD_USAGE, "not enough"),
    (["rebalance_delayed_exchanges", "NODE"], BAD_USAGE, "too many"),
    (["shrink_delayed_exchanges", "NODE", "NODE"], BAD_USAGE, "too many"),
], ids=lambda value: value[0] if isinstance(value, list) else "")
def test_what_cannot_be_is_refused_in_words(broker, exchange, command, code, why):
    words = [{"EXCHANGE": exchange, "NODE": broker.nodename}.get(word, word) for word in command]
    done = broker.ctl(*words, check=False)
    assert done.returncode == code and why in done.stderr + done.stdout, done
    assert "\x1b[31m" not in done.stderr + done.stdout
    assert [row["state"] for row in broker.rows("delayed_exchange_status", exchange)] == ["leader"]


def test_what_is_so_already_is_no_failure(broker, exchange):
    node = broker.nodename
    assert "has a member already" in broker.ctl("add_delayed_exchange_member", exchange, node)
    assert "the only member" in broker.ctl("transfer_delayed_exchange_leadership", exchange, node)
    # On a node that is alone no exchange has members that could be elsewhere.
    for command in (["grow_delayed_exchanges", node, "all"], ["shrink_delayed_exchanges", node],
                    ["force_shrink_delayed_exchanges", node]):
        assert broker.rows(*command) == []
        assert broker.ctl("--quiet", *command).strip() == ""
    leaders = {row["node"]: row["leaders"] for row in broker.rows("rebalance_delayed_exchanges")}
    assert leaders.keys() == {node} and leaders[node] > 0


def test_a_node_that_is_alone_is_not_critical(broker):
    said = broker.ctl("check_if_node_is_delayed_exchange_critical")
    assert "only one in a single node cluster" in said
    answer = json.loads(broker.ctl("--formatter", "json", "check_if_node_is_delayed_exchange_critical"))
    assert answer["result"] == "ok" and "does not apply" in answer["message"]
    assert broker.ctl("--silent", "check_if_node_is_delayed_exchange_critical").strip() == ""
    assert "does not apply" in broker.tool("rabbitmq-diagnostics", "check_if_node_is_delayed_exchange_critical")
