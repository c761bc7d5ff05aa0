# SPDX-License-Identifier: MPL-2.0
"""The HTTP API under /api/dead-lettering and /api/dead-letters, each answer held against
openapi.json, and who may use what of it."""

import json

import pytest

import openapi
from management import Management, eventually, quoted
from test_redrive import counts, depth, park, topology

CHECK, CHECK_VHOST = "/dead-lettering", "/dead-lettering/{vhost}"
GRAPH = CHECK_VHOST + "/graph"
QUEUE = "/dead-letters/{vhost}/{queue}"
EXPLAIN, REDRIVE = QUEUE + "/{position}", QUEUE + "/redrive"


@pytest.fixture
def parked(local):
    """A queue that dead-letters to another, and three dead letters."""
    work, queue = topology(local)
    park(local, work, queue, ["a", "b", "c"], headers={"n": 1})
    return work, queue


@pytest.fixture
def api(management, vhost, parked):
    """api(method, template, ...): an answer of 200."""
    def call(method, template, **options):
        options = {"vhost": vhost, "queue": parked[1], **options}
        status, answer = openapi.call(management, method, template, **options)
        assert status == 200, answer
        return answer
    return call


def test_traps_are_found(api, vhost, local, parked):
    work, queue = parked
    local.queue(name="broken", arguments={"x-dead-letter-exchange": "gone é"})
    found = api("GET", CHECK_VHOST)
    assert ("dlx_missing", "broken") in {(f["rule"], f["name"]) for f in found["findings"]}
    assert found["counts"]["error"] >= 1
    assert {f["vhost"] for f in found["findings"]} == {vhost}
    everywhere = api("GET", CHECK)
    assert [f for f in everywhere["findings"] if f["vhost"] == vhost] == found["findings"]


def test_the_graph_shows_where_dead_letters_go(api, local, parked):
    work, queue = parked
    first, second = local.exchange("topic", name="first x"), local.exchange("fanout", name="second")
    local.channel.exchange_bind(second, first, "a.#")
    ends = [local.queue((second, ""), name="end 1"), local.queue((first, "a.b"), name="end 2")]
    local.queue(name="source", arguments={"x-dead-letter-exchange": first,
                                          "x-dead-letter-routing-key": "a.b"})
    local.queue(name="broken", arguments={"x-dead-letter-exchange": "gone é"})
    local.queue(name="alone")
    graph = api("GET", GRAPH)
    nodes = [(node["kind"], node["name"], node.get("key")) for node in graph["nodes"]]
    edges = {(nodes[a], nodes[b]) for a, b in graph["edges"]}
    queue_of = {name: ("queue", name, None) for name in (work, queue, "source", "broken", *ends)}
    routed = ("exchange", first, "a.b")
    assert {(queue_of[work], ("exchange", "", queue)), (("exchange", "", queue), queue_of[queue]),
            (queue_of["source"], routed), (routed, queue_of["end 2"]),
            (queue_of["broken"], ("missing_exchange", "gone é", None))} <= edges
    through = {b for a, b in edges if a == routed} - {queue_of["end 2"]}
    assert [b for a, b in edges if a in through] == [queue_of["end 1"]]
    assert ("queue", "alone", None) not in nodes
    assert graph["truncated"] is False


def test_dead_letters_are_counted_and_explained(api, local, parked):
    work, queue = parked
    group, = api("GET", QUEUE)["groups"]
    assert (group["first_queue"], group["reason"], group["messages"]) == (work, "rejected", 3)
    group, = api("GET", QUEUE, query="?max=2")["groups"]
    assert group["messages"] == 2
    sentences = api("GET", EXPLAIN, position=3)["sentences"]
    assert any(work in sentence for sentence in sentences)
    assert depth(local, queue) == 3


def test_dead_letters_are_redriven(api, local, parked):
    work, queue = parked
    would = api("POST", REDRIVE, body={"dry_run": True})
    assert counts(would) == {"total": 3, "examined": 3, "redriven": 3}
    assert depth(local, queue) == 3
    some = api("POST", REDRIVE, body={"limit": 2})
    assert (some["redriven"], some["targets"]) == (2, {f"queue {work}": 2})
    local.queue(name="elsewhere")
    assert api("POST", REDRIVE, body={"to_queue": "elsewhere"})["redriven"] == 1
    assert local.texts(work, 2) == ["a", "b"]
    assert local.texts("elsewhere", 1) == ["c"]
    assert api("POST", REDRIVE, body={})["total"] == 0


def test_filters_choose_what_is_redriven(api, local, parked):
    assert api("POST", REDRIVE, body={"reason": "expired"})["skipped"] == 3
    assert api("POST", REDRIVE, body={"header": "n=2", "origin": parked[0]})["skipped"] == 3
    for hour in (3600, "3600", "1h"):
        assert api("POST", REDRIVE, body={"older_than": hour})["skipped"] == 3
    kept = api("POST", REDRIVE, body={"header": "n=1", "newer_than": "1h", "rate": 1000,
                                      "keep_x_death": True})
    assert kept["redriven"] == 3
    assert local.one(parked[0]).headers["x-death"]


# ------------------------------------------------------------------------------ wrong use

def refusal(management, status, method, template, **options):
    got, answer = openapi.call(management, method, template, **options)
    assert got == status, answer
    return answer["reason"]


@pytest.mark.parametrize("body, wanted", [
    ({"to_queue": "x", "to_exchange": "y"}, "more than one"), ({"routing_key": "k"}, "to_exchange"),
    ({"to_queue": 1}, "to_queue"), ({"to_queue": "x" * 256}, "255"), ({"limit": 0}, "limit"),
    ({"limit": 100001}, "limit"), ({"rate": "fast"}, "rate"), ({"dry_run": 1}, "dry_run"),
    ({"header": "n"}, "name=value"), ({"older_than": -1}, "older_than: -1 is no span of time such as 90s"),
    ({"newer_than": "1y"}, 'newer_than: "1y" is no span of time'), ({"newer_than": "9999999w"}, "at most 4294967295 s"),
    ({"reason": "foo"}, 'reason: "foo" is not one of rejected, expired, maxlen, delivery_limit'), ({"queue": "x"}, "unknown"),
    ({"reason": []}, "reason"), ({"to_original_exchange": False}, "to_original_exchange"),
    ({"to_queue": "no such queue"}, "no queue"), ({"to_queue": "parked q"}, "come back"), ([], "object"),
])
def test_absurd_redrives_are_refused(management, vhost, local, parked, body, wanted):
    assert wanted in refusal(management, 400, "POST", REDRIVE, vhost=vhost, queue=parked[1], body=body)
    assert depth(local, parked[1]) == 3


def test_what_is_not_there_is_not_found(management, vhost, parked):
    for template in (CHECK_VHOST, GRAPH, QUEUE):
        status, _ = management.request("GET", template[1:].format(vhost="none", queue="q"))
        assert status == 404
    assert "no queue" in refusal(management, 404, "GET", QUEUE, vhost=vhost, queue="none")
    assert "3 messages" in refusal(management, 404, "GET", EXPLAIN, vhost=vhost, queue=parked[1],
                                   position=4)
    for wrong in ("0", "x", "1000001"):
        assert "position" in refusal(management, 400, "GET", EXPLAIN, vhost=vhost, queue=parked[1],
                                     position=wrong)
    assert "max" in refusal(management, 400, "GET", QUEUE, vhost=vhost, queue=parked[1],
                            query="?max=0")


# ---------------------------------------------------------------------------- permissions

@pytest.fixture
def as_user(broker, management, vhost):
    """as_user(tags, **permissions): a user of the management API with these in the vhost."""
    made = []

    def make(tags, **permissions):
        name = f"user-{len(made)}-{vhost[2:8]}"
        made.append(name)
        assert management.request("PUT", f"users/{name}", {"password": name, "tags": tags})[0] == 201
        assert management.request("PUT", f"permissions/{quoted(vhost)}/{name}", {
            "configure": "^$", "read": "^$", "write": "^$", **permissions})[0] == 201
        return Management(broker, name, name)

    yield make
    for name in made:
        management.request("DELETE", f"users/{name}")


def test_the_check_takes_what_policies_take(as_user, vhost, parked):
    for template in (CHECK_VHOST, GRAPH):
        assert openapi.call(as_user("management"), "GET", template, vhost=vhost)[0] == 401
        assert openapi.call(as_user("policymaker"), "GET", template, vhost=vhost)[0] == 200
    assert openapi.call(as_user("management"), "GET", CHECK)[0] == 401
    found = openapi.call(as_user("policymaker"), "GET", CHECK)[1]["findings"]
    assert {finding["vhost"] for finding in found} <= {vhost}


def test_looking_takes_read_permission(broker, as_user, vhost, parked):
    user = as_user("management")
    for template in (QUEUE, EXPLAIN):
        assert "read permission" in refusal(user, 403, "GET", template, vhost=vhost, queue=parked[1],
                                            position=1)
    assert "read permission" in refusal(user, 403, "POST", REDRIVE, vhost=vhost, queue=parked[1],
                                        body={})
    eventually(lambda: "read permission for queue" in broker.log(), bool)
    user = as_user("management", read="^parked q$")
    assert openapi.call(user, "GET", QUEUE, vhost=vhost, queue=parked[1])[0] == 200


def test_redriving_takes_write_permission_where_to(as_user, vhost, local, parked):
    work, queue = parked
    user = as_user("management", read=".*")
    status, answer = openapi.call(user, "POST", REDRIVE, vhost=vhost, queue=queue, body={})
    assert (status, counts(answer)) == (200, {"total": 3, "examined": 3, "refused": 3})
    local.exchange("fanout", name="target")
    local.queue(("target", ""), name="behind")
    body = {"to_exchange": "target", "routing_key": "k"}
    assert "permission" in refusal(user, 403, "POST", REDRIVE, vhost=vhost, queue=queue, body=body)
    why = refusal(user, 403, "POST", REDRIVE, vhost=vhost, queue=queue, body={"to_queue": "behind"})
    assert 'publish to exchange "amq.default" with key "behind"' in why
    assert depth(local, queue) == 3
    user = as_user("management", read=".*", write="^target$")
    assert openapi.call(user, "POST", REDRIVE, vhost=vhost, queue=queue, body=body)[1]["redriven"] == 3
    assert depth(local, "behind") == 3


def test_the_document_is_json_with_every_reference_there():
    text = json.dumps(openapi.OPENAPI)
    for name in set(part.split('"')[0] for part in text.split('"$ref": "')[1:]):
        assert openapi.resolved({"$ref": name})
