# SPDX-License-Identifier: MPL-2.0
"""Single messages of a queue over HTTP: they are looked at, redriven, dropped and sent edited by ids that
mean the same message wherever it is by then. What is in the queues afterwards is held against a model."""

import base64
import collections
import decimal
import random

import pytest

import openapi
from management import eventually
from test_dead_letter_api import QUEUE, as_user, refusal  # noqa: F401  (a fixture)
from test_redrive import counts, depth, kind, park, redrive, reject_all, topology  # noqa: F401

MESSAGES = QUEUE + "/messages"
REDRIVE, DROP, SEND = (MESSAGES + "/" + what for what in ("redrive", "drop", "send"))


@pytest.fixture
def api(management, vhost):
    """api(method, template, queue, body): an answer of 200."""
    def call(method, template, queue, body=None, query=""):
        status, answer = openapi.call(management, method, template, body, query, vhost=vhost, queue=queue)
        assert status == 200, answer
        return answer
    return call


def listed(api, queue, **query):
    return api("GET", MESSAGES, queue,
               query="?" + "&".join(f"{name}={value}" for name, value in query.items()))["messages"]


def body_of(item):
    return base64.b64decode(item["payload"]) if item["payload_encoding"] == "base64" else item["payload"].encode()


def assert_holds(client, queue, wanted):
    """The queue has these bodies, and they stay there."""
    wanted = +collections.Counter(wanted)
    eventually(lambda: depth(client, queue), lambda n: n == sum(wanted.values()))
    channel = client.connection.channel()
    got = collections.Counter()
    for _ in range(sum(wanted.values())):
        method, _, body = channel.basic_get(queue)
        assert method, f"{got} of {wanted}"
        got[body] += 1
    channel.close()
    assert got == wanted
    eventually(lambda: depth(client, queue), lambda n: n == sum(wanted.values()))


HEADERS = {"text": "é", "n": -7, "big": 2**40, "yes": True, "none": None, "list": ["a", 1, [2]],
           "table": {"in": {"deep": "x"}}, "decimal": decimal.Decimal("3.14"), "bytes": b"\xff\x00"}


def all_kinds(client, queue):
    """Messages of every kind: bodies with how many say it."""
    made = collections.Counter()

    def one(body, times=1, key=queue, **properties):
        for _ in range(times):
            client.publish("", key, body, **properties)
        made[body] += times

    one(b"")
    one(b"\xff\xfe\x00 no text", content_type="application/octet-stream")
    one("ünï".encode(), headers=HEADERS)
    one(b"same", times=3, headers={"n": 1})
    one(b"x" * 100_000)
    one(b"all", content_type="a/b", content_encoding="c", priority=3, correlation_id="d", reply_to="e",
        expiration="3600000", message_id="f", timestamp=2**33, type="g", user_id="guest", app_id="h",
        delivery_mode=1)
    one(b"cc", headers={"CC": ["nobody"]})
    for n in range(20):
        one(b"m%d" % n, headers={"n": n})
    return made


def test_what_is_ticked_goes_and_nothing_else(api, local, kind):
    """Drawn at random, while others take messages out and bring new ones."""
    work, parked = topology(local, kind)
    made = all_kinds(local, work)
    reject_all(local, work, sum(made.values()))
    eventually(lambda: depth(local, parked), lambda n: n == sum(made.values()))
    items = listed(api, parked, count=100, body_bytes=262144)
    assert [item["position"] for item in items] == list(range(1, len(items) + 1))
    assert collections.Counter(body_of(item) for item in items) == made
    assert all(item["death"]["reason"] == "rejected" and item["death"]["queue"] == work for item in items)
    assert all(any(work in sentence for sentence in item["history"]) for item in items)
    # The same ids, looked at from another position on, and when messages have gone from before them.
    again = [item for at in (1, 11, 21) for item in listed(api, parked, count=10, **{"from": at})]
    assert [item["id"] for item in again] == [item["id"] for item in items]
    draw = random.Random(7)
    draw.shuffle(items)
    redriven, dropped, left = items[:9], items[9:18], items[18:]
    channel = local.connection.channel()
    taken = channel.basic_get(parked)
    channel.basic_ack(taken[0].delivery_tag)
    channel.close()
    park(local, work, parked, ["late"])

    def gone(group):
        """How many of a group the consumer had taken; of those that say the same, one less is left."""
        found = [item for item in left + dropped + redriven if body_of(item) == taken[2]]
        return int(len(found) == 1 and any(item in group for item in found))

    answer = api("POST", REDRIVE, parked, {"ids": [item["id"] for item in redriven]})
    assert (answer["redriven"], answer["not_found"]) == (9 - gone(redriven), gone(redriven)), answer
    answer = api("POST", DROP, parked, {"ids": [item["id"] for item in dropped]})
    assert (answer["dropped"], answer["not_found"]) == (9 - gone(dropped), gone(dropped)), answer

    one = collections.Counter([taken[2]])

    def said(group):
        return collections.Counter(body_of(item) for item in group)

    to_work, out = said(redriven), said(dropped)
    to_work.subtract(one if gone(redriven) else {})
    out.subtract(one if gone(dropped) else {})
    stays = made + collections.Counter([b"late"])
    for some in (one, to_work, out):
        stays.subtract(some)
    assert_holds(local, work, to_work)
    assert_holds(local, parked, stays)
    # A second time there is nothing of them.
    answer = api("POST", DROP, parked, {"ids": [item["id"] for item in dropped]})
    assert counts(answer).get("dropped", 0) == 0 and answer["not_found"] == 9
    assert_holds(local, parked, stays)


def test_those_that_say_the_same_are_taken_as_often_as_they_are_named(api, local, kind):
    work, parked = topology(local, kind)
    park(local, work, parked, ["a", "same", "same", "same"])
    one, = {item["id"] for item in listed(api, parked) if body_of(item) == b"same"}
    assert api("POST", DROP, parked, {"ids": [one]})["dropped"] == 1
    answer = api("POST", REDRIVE, parked, {"ids": [one] * 5})
    assert (answer["redriven"], answer["not_found"]) == (2, 3)
    assert_holds(local, parked, {b"a": 1})


def test_dropped_is_not_dead_lettered_again(api, broker, local, kind):
    end = local.queue(name="the end")
    work, parked = topology(local, kind, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": end})
    park(local, work, parked, ["a", "b", "c"])
    b = next(item["id"] for item in listed(api, parked) if body_of(item) == b"b")
    size = len(broker.log())
    assert counts(api("POST", DROP, parked, {"ids": [b]})) == {"total": 3, "examined": 2, "skipped": 1, "dropped": 1}
    assert_holds(local, parked, {b"a": 1, b"c": 1})
    assert depth(local, end) == 0
    log = eventually(lambda: broker.log()[size:], lambda text: "1 dropped by user 'guest' over HTTP" in text)
    assert b in log and log.index("to be dropped, asked for by user 'guest'") < log.index("1 dropped by")


def test_looking_and_moving_few_never_drops_the_others(api, local, vhost, broker):
    """What it has in its hands and does not come to is given back, which counts as a delivery."""
    work, parked = topology(local, "quorum", **{"x-delivery-limit": 2})
    names = [f"m{n}" for n in range(12)]
    park(local, work, parked, names)
    for n in range(4):
        report = redrive(broker, vhost, parked, "--limit", "1", "--to-queue", work)
        assert report["redriven"] == 1
        item = listed(api, parked)[-1]
        assert api("POST", REDRIVE, parked, {"ids": [item["id"]]})["redriven"] == 1
        eventually(lambda left=10 - 2 * n: depth(local, parked), lambda now, left=10 - 2 * n: now == left)
    assert sorted(local.texts(work, 8) + local.texts(parked, 4)) == sorted(names)


def test_an_edited_copy_takes_its_place(api, broker, local, kind):
    work, parked = topology(local, kind)
    target = local.exchange("direct", name="target")
    other = local.queue((target, "new key"), name="other")
    local.publish("", work, b"\xff raw", headers=HEADERS, user_id="guest", content_type="a/b", priority=2,
                  expiration="100000")
    reject_all(local, work, 1)
    eventually(lambda: depth(local, parked), lambda n: n == 1)
    item, = listed(api, parked)
    size = len(broker.log())
    answer = api("POST", SEND, parked, {
        "id": item["id"], "keep": True, "to_exchange": target, "routing_key": "new key", "payload": "né",
        "properties": {"content_type": None, "message_id": "mine", "priority": 5},
        "headers": {"text": "other", "n": None, "new": {"a": [1, None, True, 1.5]}}})
    assert counts(answer)["redriven"] == 1
    got = local.one(other)
    wanted = {**HEADERS, "text": "other", "new": {"a": [1, None, True, 1.5]}, "x-redrive-count": 1}
    del wanted["n"]
    assert got.headers == wanted
    assert (got.text, got.method.routing_key) == ("né", "new key")
    assert (got.properties.content_type, got.properties.message_id, got.properties.priority,
            got.properties.user_id) == (None, "mine", 5, "guest")
    assert depth(local, parked) == 1
    log = eventually(lambda: broker.log()[size:], lambda text: "with another body" in text)
    assert "property message_id" in log and "header new" in log
    # Without keep the copy takes the message's place; binary bodies go through base64.
    answer = api("POST", SEND, parked, {"id": item["id"], "payload": base64.b64encode(b"\xfe").decode(),
                                        "payload_encoding": "base64"})
    assert answer["targets"] == {f"queue {work}": 1}
    assert local.one(work).body == b"\xfe"
    eventually(lambda: depth(local, parked), lambda n: n == 0)
    assert api("POST", SEND, parked, {"id": item["id"]})["not_found"] == 1


def test_nobody_speaks_in_anothers_name(as_user, local, vhost):  # noqa: F811
    work, parked = topology(local)
    local.publish("", work, b"m", user_id="guest")
    reject_all(local, work, 1)
    eventually(lambda: depth(local, parked), lambda n: n == 1)
    user = as_user("management", read=".*", write=".*")
    item, = openapi.call(user, "GET", MESSAGES, vhost=vhost, queue=parked)[1]["messages"]
    assert "user_id" in refusal(user, 400, "POST", SEND, vhost=vhost, queue=parked,
                                body={"id": item["id"], "properties": {"user_id": "guest"}})
    status, _ = openapi.call(user, "POST", SEND, {"id": item["id"], "payload": "forged"}, vhost=vhost, queue=parked)
    assert status == 200
    got = local.one(work)
    assert (got.text, got.properties.user_id) == ("forged", None)


def test_what_is_not_taken_stays(api, local, vhost, management):
    """A target that is full, gone, or from which it would come back."""
    work, parked = topology(local)
    park(local, work, parked, ["a", "b"])
    first, second = listed(api, parked)
    full = local.queue(name="full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    answer = api("POST", REDRIVE, parked, {"ids": [first["id"]], "to_queue": full})
    assert counts(answer)["refused"] == 1 and "does not take" in answer["stopped"]
    for to in ({"to_queue": "gone"}, {"to_queue": parked}):
        refusal(management, 400, "POST", REDRIVE, vhost=vhost, queue=parked, body={"ids": [first["id"]], **to})
    local.channel.queue_delete(work)
    assert counts(api("POST", REDRIVE, parked, {"ids": [second["id"]]}))["unroutable"] == 1
    assert_holds(local, parked, {b"a": 1, b"b": 1})


def test_pages_are_bounded(api, local, kind):
    queue = local.queue(arguments={"x-queue-type": kind})
    for n in range(7):
        local.publish("", queue, bytes([97 + n]) * (300_000 if n < 3 else 10))
    page = api("GET", MESSAGES, queue, query="?count=3")
    assert [len(item["payload"]) for item in page["messages"]] == [2000] * 3
    assert all(item["truncated"] and item["payload_bytes"] == 300_000 for item in page["messages"])
    assert (page["next"], page["truncated"]) == (4, False)
    assert [item["payload"][0] for item in page["messages"]] == ["a", "b", "c"]
    page = api("GET", MESSAGES, queue, query="?from=4&count=100")
    assert [item["payload"][0] for item in page["messages"]] == ["d", "e", "f", "g"]
    assert page["next"] is None and page["messages"][0]["death"] is None
    assert api("GET", MESSAGES, queue, query="?from=8")["messages"] == []
    # It ends by what it has, too.
    for _ in range(30):
        local.publish("", queue, b"z" * 262144)
    page = api("GET", MESSAGES, queue, query="?count=100&body_bytes=262144")
    assert len(page["messages"]) < 25 and page["next"] == len(page["messages"]) + 1
    assert depth(local, queue) == 37


ABSURD = [
          (DROP, {}, "ids"), (DROP, {"ids": []}, "ids"), (DROP, {"ids": ["x"]}, "an id"), (DROP, {"ids": "x"}, "ids"),
          (DROP, {"ids": ["0" * 32 + "\n"]}, "an id"), (DROP, {"ids": ["0" * 32] * 1001}, "1000"),
          (DROP, {"ids": ["0" * 32], "to_queue": "x"}, "unknown"), (REDRIVE, {"ids": ["0" * 32], "limit": 1}, "unknown"),
          (REDRIVE, {"ids": ["0" * 32], "payload": ""}, "unknown"), (REDRIVE, [], "object"),
          (SEND, {"id": "0" * 32, "payload": 1}, "payload"), (SEND, {"id": "0" * 32, "keep": 1}, "keep"),
          (SEND, {"id": "0" * 32, "payload": "%", "payload_encoding": "base64"}, "base64"),
          (SEND, {"id": "0" * 32, "payload_encoding": "base64"}, "goes with payload"),
          (SEND, {"id": "0" * 32, "headers": {"CC": ["x"]}}, "CC"), (SEND, {"id": "0" * 32, "headers": []}, "headers"),
          (SEND, {"id": "0" * 32, "headers": {"n": 2**64}}, "too large"),
          (SEND, {"id": "0" * 32, "headers": {"x" * 256: 1}}, "255"),
          (SEND, {"id": "0" * 32, "properties": {"priority": 256}}, "priority"),
          (SEND, {"id": "0" * 32, "properties": {"expiration": "1s"}}, "expiration"),
          (SEND, {"id": "0" * 32, "properties": {"cluster_id": "x"}}, "no property"),
          (SEND, {"payload": ""}, "ids"), (SEND, {"id": ["0" * 32]}, "an id")]


def test_absurd_requests_are_refused(management, vhost, local):
    work, parked = topology(local)
    park(local, work, parked, ["a"])
    for template, body, wanted in ABSURD:
        assert wanted in refusal(management, 400, "POST", template, vhost=vhost, queue=parked, body=body), body
    assert depth(local, parked) == 1


def test_absurd_pages_are_refused(management, vhost, local):
    queue = local.queue()
    for query in ("from=0", "from=x", "from=100001", "count=0", "count=101", "body_bytes=262145", "id=1"):
        refusal(management, 400, "GET", MESSAGES, vhost=vhost, queue=queue, query="?" + query)
    refusal(management, 404, "GET", MESSAGES, vhost=vhost, queue="none")
    refusal(management, 404, "POST", DROP, vhost=vhost, queue="none", body={"ids": ["0" * 32]})


def test_who_may_what(as_user, vhost, local, api):  # noqa: F811
    """As consuming and publishing, no more."""
    work, parked = topology(local)
    park(local, work, parked, ["a", "b"])
    first, second = (item["id"] for item in listed(api, parked))
    nothing = as_user("management", write=".*", configure=".*")
    for method, template, body in (("GET", MESSAGES, None), ("POST", DROP, {"ids": [first]}),
                                   ("POST", REDRIVE, {"ids": [first]}), ("POST", SEND, {"id": first})):
        assert "read permission" in refusal(nothing, 403, method, template, vhost=vhost, queue=parked, body=body)
    reader = as_user("management", read="^parked q$")
    for template, body in ((REDRIVE, {"ids": [first]}), (SEND, {"id": first, "payload": "x"})):
        status, answer = openapi.call(reader, "POST", template, body, vhost=vhost, queue=parked)
        assert (status, answer["redriven"], answer["refused"]) == (200, 0, 1)
    assert "permission" in refusal(reader, 403, "POST", REDRIVE, vhost=vhost, queue=parked,
                                   body={"ids": [first], "to_queue": work})
    assert_holds(local, parked, {b"a": 1, b"b": 1})
    status, answer = openapi.call(reader, "POST", DROP, {"ids": [second]}, vhost=vhost, queue=parked)
    assert (status, answer["dropped"]) == (200, 1)
    assert_holds(local, parked, {b"a": 1})
    writer = as_user("management", read="^parked q$", write="^amq.default$")
    status, answer = openapi.call(writer, "POST", REDRIVE, {"ids": [first]}, vhost=vhost, queue=parked)
    assert (status, answer["redriven"]) == (200, 1)
    assert local.texts(work, 1) == ["a"]
