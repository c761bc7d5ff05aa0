# SPDX-License-Identifier: MPL-2.0
"""What a redrive makes of a message's other keys, those of CC."""

import time
import uuid

import pytest

import openapi
from management import Management, eventually, quoted
from node import HOUR_MS
from test_redrive import depth, park, redrive, reject_all, topology


def keeping_cc(client, kind="classic", work="work é/'x", parked="parked q", **arguments):
    """A queue whose dead letters go to another, by an exchange: where a queue names a key for them, they lose their
    other ones."""
    fan = client.exchange("fanout", name="dead letters")
    client.queue((fan, ""), name=parked, arguments={"x-queue-type": kind, **arguments})
    client.queue(name=work, arguments={"x-dead-letter-exchange": fan})
    return work, parked


@pytest.fixture
def user(management, vhost):
    """Who may read and write all of the vhost."""
    name = f"u-{uuid.uuid4().hex[:8]}"
    assert management.request("PUT", f"users/{name}", {"password": name, "tags": "management"})[0] == 201
    assert management.request("PUT", f"permissions/{quoted(vhost)}/{name}", {
        "configure": "^$", "read": ".*", "write": ".*"})[0] == 201
    yield name
    management.request("DELETE", f"users/{name}")


@pytest.mark.parametrize("delayed", [True, False])
def test_topic_permissions_hold_for_the_other_keys_of_what_is_redriven(broker, management, vhost, local, user,
                                                                       delayed):
    exchange = local.delayed("topic", name="topics") if delayed else local.exchange("topic", name="topics")
    work, parked = keeping_cc(local)
    local.channel.queue_bind(work, exchange, "mine.*")
    copies = local.queue((exchange, "others.*"))
    for body, headers in ((b"alone", {}), (b"mine too", {"CC": ["mine.b"]}),
                          (b"with another", {"CC": ["mine.b", "others.a"]})):
        local.publish(exchange, "mine.a", body, headers=headers)
    assert local.texts(copies, 1) == ["with another"]
    reject_all(local, work, 3)
    eventually(lambda: local.depth(parked), lambda n: n == 3)
    assert management.request("PUT", f"topic-permissions/{quoted(vhost)}/{user}", {
        "exchange": exchange, "write": "^mine\\.", "read": ".*"})[0] in (201, 204)
    status, report = openapi.call(Management(broker, user, user), "POST", "/dead-letters/{vhost}/{queue}/redrive",
                                  {"to_original_exchange": True}, vhost=vhost, queue=parked)
    assert status == 200 and (report["redriven"], report["refused"]) == (2, 1), report
    assert sorted(local.texts(work, 2)) == ["alone", "mine too"]
    # Who may publish with all of them moves it, with all of them.
    redrive(broker, vhost, parked, "--to-original-exchange")
    assert local.texts(work, 1) == local.texts(copies, 1) == ["with another"]


def test_what_its_author_asked_of_delayed_messages_is_not_done_by_who_redrives(broker, management, vhost, local):
    """Who only publishes to a work queue has nothing cancelled, released or replaced in an exchange."""
    exchange, _ = local.delayed_and_queue()
    work, parked = topology(local)
    local.publish(exchange, "k", b"waits", delay=HOUR_MS, headers={"x-delay-key": "k"})
    hour = {"x-delay": HOUR_MS}
    asks = [{"x-delay-cancel": "k"}, {"x-delay-release": "k"}, {"x-delay-key": "k", "x-delay-on-duplicate": "replace"},
            {"x-delay-key": "k", "x-delay-on-duplicate": "drop"}, {"x-delay-on-duplicate": "nonsense"}]
    for ask in asks:
        park(local, work, parked, ["m"], headers={**hour, **ask})
    assert redrive(broker, vhost, parked, "--to-exchange", exchange,
                   "--routing-key", "k")["redriven"] == len(asks)
    path = f"delayed-exchanges/{quoted(vhost)}/{exchange}/messages"
    waiting = eventually(lambda: management.request("GET", path)[1]["items"], lambda items: len(items) == len(asks) + 1)
    assert sorted(item["due"] for item in waiting)[0] > time.time() * 1000 + HOUR_MS / 2


def test_what_is_put_at_the_end_of_its_queue_goes_to_no_other(broker, local, vhost):
    """Its other keys are names of queues, to the default exchange."""
    work, parked = keeping_cc(local, "quorum", **{"x-delivery-limit": 1})
    named = local.queue(name="named q")
    park(local, work, parked, ["a"], headers={"CC": [named]})
    assert local.texts(named, 1) == ["a"]
    moved = sum(redrive(broker, vhost, parked, "--reason", "expired")["moved"] for _ in range(4))
    assert moved > 0
    eventually(lambda: depth(local, parked), lambda n: n == 1)
    assert depth(local, named) == 0
