# SPDX-License-Identifier: MPL-2.0
"""The HTTP API under /api/delayed-exchanges, each answer held against openapi.json; who may
use what of it; and the management plugin absent, or enabled after us."""

import base64
import json
import os
import re
import urllib.error
import urllib.request
import uuid

import pytest

import openapi
import wire
from browser import Page
from client import Client
from management import Management, eventually
from node import HOUR_MS, evaluate, queue_process
from private_broker import free_port

class Api:
    """Requests below /api/delayed-exchanges of one user."""

    def __init__(self, broker, exchange=None, user="guest", vhost="/"):
        self.management = Management(broker, user, user)
        self.exchange, self.vhost = exchange, vhost

    def call(self, method, template="", body=None, query="", **places):
        """The status and the answer of a documented request; fails unless both are as documented."""
        places = {"vhost": self.vhost, "exchange": self.exchange, **places}
        return openapi.call(self.management, method, "/delayed-exchanges" + template, body, query,
                            **places)

    def ok(self, *arguments, **options):
        status, answer = self.call(*arguments, **options)
        assert status in (200, 204), (status, answer)
        return answer

    def messages(self, query=""):
        return self.ok("GET", X + "/messages", query=query)

    def payloads(self, query=""):
        return [m["payload"] for m in self.messages("?body=true" + query)["items"]]

    def ids(self):
        return [m["id"] for m in self.messages()["items"]]

    def post(self, what, **body):
        return self.ok("POST", f"{X}/messages/{what}", body=body)

    def refusal(self, status, *arguments, **options):
        got, answer = self.call(*arguments, **options)
        assert got == status, (got, answer)
        return answer["reason"]


X = "/{vhost}/{exchange}"


@pytest.fixture
def api(broker, holding):
    return Api(broker, holding[0])


# ----------------------------------------------------------------------------- exchanges

def test_exchanges_are_listed_sorted_and_paged(client, broker, api):
    row, = [x for x in api.ok("GET") if x["name"] == api.exchange]
    single = api.ok("GET", X)
    assert (row.pop("message_stats")["published"], single.pop("message_stats")["published"]) == (
        6, 6)
    assert row == single
    assert (row["vhost"], row["type"], row["messages_delayed"], row["overdue"], row["in_flight"],
            row["paused"]) == ("/", "direct", 6, 0, 0, False)
    assert row["next_due"] > 0 and row["bytes_delayed"] > 6
    empty = client.delayed("topic")
    assert api.ok("GET", X, exchange=empty)["next_due"] is None
    rows = api.ok("GET", "/{vhost}", query="?sort=messages_delayed&sort_reverse=true")
    counts = [x["messages_delayed"] for x in rows]
    assert counts == sorted(counts, reverse=True) and empty in [x["name"] for x in rows]
    rows = api.ok("GET", query="?sort=message_stats.published_details.rate&sort_reverse=true")
    rates = [x["message_stats"]["published_details"]["rate"] for x in rows]
    assert rates == sorted(rates, reverse=True)
    page = api.ok("GET", "/{vhost}", query=f"?page=1&page_size=1&name={empty}")
    assert ([x["name"] for x in page["items"]], page["filtered_count"]) == ([empty], 1)
    assert "reason" in api.call("GET", "/{vhost}", query="?page=1&page_size=100000")[1]


def test_paused_nothing_comes_until_it_is_resumed(client, broker, holding, api):
    for _ in range(2):
        api.ok("POST", X + "/pause")
    client.publish(api.exchange, body=b"held back", delay=1)
    eventually(lambda: api.ok("GET", X)["overdue"], lambda n: n == 1)
    assert api.ok("GET", X)["paused"] is True
    assert client.depth(holding[1]) == 0
    api.ok("POST", X + "/resume")
    assert client.texts(holding[1], 1) == ["held back"]
    assert api.ok("GET", X)["paused"] is False


def test_rates_of_what_is_published_and_released(client, broker, holding, api):
    def rates():
        stats = api.ok("GET", X)["message_stats"]
        return [stats[f"{what}_details"]["rate"] for what in ("published", "released")]

    with wire.Publisher(broker) as publisher:
        def rates_after_more():
            publisher.publish(api.exchange, "k", [b"m"] * 100, headers={"x-delay": 1})
            return rates()

        eventually(rates_after_more, lambda both: both[0] > 0 and both[1] > 0, every=0)
    count = publisher.published
    stats = api.ok("GET", X)["message_stats"]
    assert stats["published"] == 6 + count
    eventually(lambda: client.depth(holding[1]), lambda n: n == count)
    eventually(rates, lambda both: both == [0, 0])
    stats = api.ok("GET", X)["message_stats"]
    assert stats["released"] == count
    for what in ("published", "released"):
        samples = stats[f"{what}_details"]["samples"]
        assert samples[0]["sample"] == stats[what]
        assert samples == sorted(samples, key=lambda s: -s["timestamp"])
    row, = [x for x in broker.rows("list_delayed_exchanges", "name", "publish_rate", "release_rate")
            if x["name"] == api.exchange]
    assert (row["publish_rate"], row["release_rate"]) == (0, 0)
    empty = api.ok("GET", X, exchange=client.delayed())["message_stats"]
    assert (empty["published"], empty["released_details"]["rate"]) == (0, 0)


def due_times(api):
    """How many are pending by the hours until they are due; None: later."""
    return {bucket["up_to"] and bucket["up_to"] / HOUR_MS: bucket["messages"]
            for bucket in api.ok("GET", X + "/due-times")["buckets"] if bucket["messages"]}


def test_pending_messages_by_time_to_due(client, api):
    assert due_times(api) == {1: 1, 3: 2, 12: 3}
    api.ok("POST", X + "/pause")
    client.publish(api.exchange, delay=1)
    client.publish(api.exchange, delay=366 * 24 * HOUR_MS)
    eventually(lambda: due_times(api), lambda t: t == {0: 1, 1: 1, 3: 2, 12: 3, None: 1})
    assert not any(bucket["messages"] for bucket in api.ok(
        "GET", X + "/due-times", exchange=client.delayed())["buckets"])


def test_released_messages_by_lateness(client, holding, api):
    assert sum(b["messages"] for b in api.ok("GET", X + "/lateness")["buckets"]) == 0
    for _ in range(3):
        client.publish(api.exchange, delay=1)
    client.collect(holding[1], 3)
    lateness = eventually(lambda: api.ok("GET", X + "/lateness"),
                          lambda l: sum(b["messages"] for b in l["buckets"]) == 3)
    bounds = [bucket["up_to"] for bucket in lateness["buckets"]]
    assert bounds[:-1] == sorted(bounds[:-1]) and bounds[-1] is None
    assert lateness["sum"] >= 0


def test_the_members_of_an_exchange(client, broker, api):
    member, = api.ok("GET", X + "/members")["members"]
    assert (member["node"], member["state"], member["voter"], member["behind"]) == (
        broker.nodename, "leader", True, 0)
    pending = api.ok("GET", X)["messages_delayed"]
    assert member["messages_delayed"] == pending and "digest" not in member
    compared = api.ok("GET", X + "/members", query="?digest=true")
    assert compared["outcome"] == "same" and "nothing to compare" in compared["why"]
    digested, = compared["members"]
    assert digested["messages_delayed"] == pending and re.fullmatch("[0-9a-f]{24}", digested["digest"])
    assert "digest" in api.refusal(400, "GET", X + "/members", query="?digest=some")
    assert api.ok("GET", X + "/members", query="?digest=true", exchange=client.delayed()) == {"members": []}
    assert api.ok("GET", X + "/members", exchange=client.delayed())["members"] == []
    assert "none" in api.refusal(404, "GET", X + "/members", exchange="none")


# ------------------------------------------------------------------------------ messages

def test_messages_come_page_by_page(api):
    page = api.messages("?limit=4")
    assert [m["headers"]["n"] for m in page["items"]] == [0, 1, 2, 3]
    assert not [m for m in page["items"] if "payload" in m]
    page = api.messages(f"?limit=4&cursor={page['cursor']}")
    assert [m["routing_key"] for m in page["items"]] == ["k", "other"]
    assert page["cursor"] is None


def test_a_cursor_whose_messages_are_gone_goes_on_behind_them(api):
    page = api.messages("?limit=2")
    api.post("cancel", ids=[m["id"] for m in page["items"]])
    assert api.payloads(f"&cursor={page['cursor']}") == ["m2", "m3", "m4", "m5"]


@pytest.mark.parametrize("query, wanted", [
    ("&routing_key=other", ["m1", "m3", "m5"]), ("&header=n%3D4", ["m4"]),
    ("&due_from=%2B90m&due_to=%2B200m", ["m1", "m2"]), ("&due_to=5", []),
    ("&published_to=elsewhere", []), ("&key=nobody", []), ("&key=n3", ["m3"]), ("&routing_key=&limit=2", ["m0", "m1"]),
])
def test_filters_choose(api, query, wanted):
    assert api.payloads(query) == wanted


def test_one_is_shown_with_its_body_even_if_that_is_not_utf8(client, api):
    body = b"\xff\x00<script>"
    client.publish(api.exchange, "\udcff".encode("utf8", "surrogatepass"), body, delay=1000 * HOUR_MS,
                   headers={"b": b"\xfe", "none": None}, content_type="x/y")
    message = api.ids()[-1]
    shown = api.ok("GET", X + "/messages/{id}", id=message)
    assert "payload" not in shown and shown["payload_bytes"] == len(body)
    shown = api.ok("GET", X + "/messages/{id}", id=message, query="?body=true")
    assert (base64.b64decode(shown["payload"]), shown["payload_encoding"], shown["truncated"]) == (
        body, "base64", False)
    assert shown["headers"]["none"] is None
    assert base64.b64decode(shown["headers"]["b"]["base64"]) == b"\xfe"
    assert "base64" in shown["routing_key"] and shown["properties"]["content_type"] == "x/y"
    shown = api.ok("GET", X + "/messages/{id}", id=message, query="?body=true&body_bytes=1")
    assert (base64.b64decode(shown["payload"]), shown["truncated"]) == (b"\xff", True)


def test_a_page_of_large_bodies_ends_early(client, api):
    client.publish(api.exchange, body=b"x" * 5_000_000, delay=HOUR_MS // 2)
    client.publish(api.exchange, body=b"y" * 5_000_000, delay=HOUR_MS // 2)
    client.publish(api.exchange, body=b"z" * 5_000_000, delay=HOUR_MS // 2)
    page = api.messages("?body=true&body_bytes=16000000")
    assert len(page["items"]) == 2 and page["cursor"]
    rest = api.messages(f"?body=true&body_bytes=10&cursor={page['cursor']}")
    assert [m["payload"] for m in rest["items"]] == ["z" * 10, *(f"m{n}" for n in range(6))]


def test_an_exchange_that_never_delayed_anything_has_no_messages(client, api):
    empty = client.delayed()
    assert api.ok("GET", X + "/messages", exchange=empty) == {"items": [], "cursor": None}
    assert api.ok("DELETE", X + "/messages", exchange=empty)["changed"] == 0
    api.refusal(404, "GET", X + "/messages/{id}", exchange=empty, id=1)


# ------------------------------------------------------------------------------- changes

def test_one_is_cancelled_once(api):
    first, *others = api.ids()
    api.ok("DELETE", X + "/messages/{id}", id=first)
    assert api.ids() == others
    assert first in api.refusal(404, "DELETE", X + "/messages/{id}", id=first)


def test_one_in_flight_is_not_cancelled(client, broker, holding, api):
    _, queue = holding
    evaluate(broker, f"sys:suspend({queue_process(queue)}).")
    try:
        client.publish(api.exchange, body=b"released", delay=1)
        message = api.ids()[0]
        eventually(lambda: api.ok("GET", X)["in_flight"], lambda n: n == 1)
        assert "in flight" in api.refusal(409, "DELETE", X + "/messages/{id}", id=message)
        assert api.post("cancel", ids=[message, "1"])["results"] == [
            {"id": "1", "outcome": "not_found"}, {"id": message, "outcome": "in_flight"}]
    finally:
        evaluate(broker, f"sys:resume({queue_process(queue)}).")
    assert client.texts(queue, 1) == ["released"]


def test_cancelled_by_filter_first_only_counted(api):
    summary = api.post("cancel", filter={"routing_key": "k", "due_to": "+200m"}, dry_run=True)
    assert (summary["examined"], summary["matched"], summary["changed"]) == (3, 2, 0)
    summary = api.post("cancel", filter={"routing_key": "k", "due_to": "+200m"})
    assert (summary["matched"], summary["changed"], summary["cursor"]) == (2, 2, None)
    assert api.payloads() == ["m1", "m3", "m4", "m5"]


def test_all_are_purged(api):
    assert api.ok("DELETE", X + "/messages", query="?dry_run=true")["matched"] == 6
    assert len(api.ids()) == 6
    assert api.ok("DELETE", X + "/messages")["changed"] == 6
    assert api.ids() == []


def test_released_they_come_in_order(client, holding, api):
    assert api.post("release", all=True)["changed"] == 6
    assert client.texts(holding[1], 3) == ["m0", "m2", "m4"]


def test_rescheduled_by_ids_and_by_filter(api):
    before = {m["id"]: m["due"] for m in api.messages()["items"]}
    first, *_ = before
    assert api.post("reschedule", ids=[first], by="10h")["results"] == [
        {"id": first, "outcome": "done"}]
    assert api.payloads() == ["m1", "m2", "m3", "m4", "m5", "m0"]
    assert api.post("reschedule", filter={"header": "n=5"}, to=1896091200000)["changed"] == 1
    after = {m["id"]: m["due"] for m in api.messages()["items"]}
    assert after[first] == before[first] + 10 * HOUR_MS
    assert list(after.values())[-1] == 1896091200000
    assert api.post("reschedule", all=True, by=-1000)["changed"] == 6
    assert sorted(m["due"] for m in api.messages()["items"]) == sorted(
        due - 1000 for due in after.values())


def test_many_messages_are_changed_in_steps(client, api):
    """What takes long answers with a cursor; sent again with it, it covers each message once."""
    other = client.delayed()
    with wire.Publisher(client.broker) as publisher:
        publisher.publish(other, "k", [b"m"] * 10_000, headers={"x-delay": HOUR_MS})
    body = {"filter": {"header": f"x-delay={HOUR_MS}"}}
    changed, cursor = 0, None
    while True:
        summary = api.ok("POST", X + "/messages/cancel", exchange=other,
                         body={**body, "cursor": cursor})
        changed, cursor = changed + summary["changed"], summary["cursor"]
        if cursor is None:
            break
    assert changed == 10_000


# ------------------------------------------------------------------------------ wrong use

@pytest.mark.parametrize("query, wanted", [
    ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=ten", "limit"), ("limit=-1", "limit"),
    ("limit=" + "9" * 400, "limit"), ("body=yes", "body"), ("body_bytes=-1", "body_bytes"),
    ("body_bytes=16777217", "body_bytes"), ("due_from=tomorrow", "due_from"),
    ("due_from=10&due_to=9", "is after"), ("due_to=281474976710656", "out of range"),
    ("due_from=1e3", "not a time"), ("header=x", "name=value"), ("header=%3Dx", "name=value"),
    ("routing_key=" + "k" * 256, "255"), ("limit=", "limit"), ("body=", "body"), ("limit=%2B5", "limit"), ("cursor=00", "cursor"), ("cursor=%ff", "cursor"),
    ("filter=x", "unknown parameter"), ("limit=1&limit=2", "twice"),
])
def test_absurd_queries_are_refused_with_a_reason(api, query, wanted):
    assert wanted in api.refusal(400, "GET", X + "/messages", query="?" + query)


@pytest.mark.parametrize("what, body, wanted", [
    ("cancel", {}, "which messages"), ("cancel", [], "object"), ("cancel", "x", "object"),
    ("cancel", {"ids": []}, "1 to 1000"), ("cancel", {"ids": ["1"] * 1001}, "1 to 1000"),
    ("cancel", {"ids": [1]}, "string"), ("cancel", {"ids": ["one"]}, '"one"'),
    ("cancel", {"ids": ["1"], "all": True}, "which messages"),
    ("cancel", {"ids": ["1"], "dry_run": True}, "dry_run"),
    ("cancel", {"filter": {}}, "at least one"), ("cancel", {"filter": []}, "filter"),
    ("cancel", {"filter": {"keys": "x"}}, "unknown"), ("cancel", {"all": False}, "which messages"),
    ("cancel", {"filter": {"routing_key": 5}}, "routing_key"),
    ("cancel", {"filter": {"key": ""}}, "key"), ("cancel", {"filter": {"key": "k" * 256}}, "255"),
    ("cancel", {"filter": {"due_to": {}}}, "due_to"),
    ("cancel", {"all": True, "dry_run": "no"}, "dry_run"),
    ("cancel", {"all": True, "cursor": "x"}, "cursor"), ("cancel", {"all": True, "to": 5}, "to"),
    ("release", {"all": True, "by": "1h"}, "by"), ("reschedule", {"all": True}, "to when"),
    ("reschedule", {"all": True, "to": 5, "by": 5}, "either"),
    ("reschedule", {"all": True, "by": "soon"}, '"soon"'),
    ("reschedule", {"all": True, "by": 10 ** 30}, "offset"),
    ("reschedule", {"all": True, "by": 1.5}, "offset"),
    ("reschedule", {"all": True, "by": "101y"}, "offset"),
    ("reschedule", {"all": True, "by": "5300w"}, "maximum delay"),
])
def test_absurd_changes_are_refused_with_a_reason(api, what, body, wanted):
    assert wanted in api.refusal(400, "POST", f"{X}/messages/{what}", body=body)
    assert len(api.ids()) == 6


@pytest.mark.parametrize("what, body, wanted", [
    ("cancel", {"ids": ["\xff\n"]}, '"ÿ\\u000a" is not the id of a message'),
    ("cancel", {"filter": {"due_to": {"at": 5}}}, "due_to: an object is not a time"),
    ("cancel", {"filter": {"due_to": [300]}}, "due_to: a list is not a time"),
    ("cancel", {"filter": {"due_to": "fünf" * 100}}, 'due_to: "' + "fünf" * 19 + "... is not a time"),
    ("cancel", {"filter": {"header": "größe"}}, 'header: "größe" is not of the form name=value'),
    ("reschedule", {"all": True, "by": 1.5}, "1.5 is not an offset in ms"),
    ("reschedule", {"all": True, "by": True}, "true is not an offset in ms"),
    ("cancel", {"all": True, "größe": 5}, 'unknown member "größe"')])
def test_a_refusal_is_in_the_askers_words(api, what, body, wanted):
    told = api.refusal(400, "POST", f"{X}/messages/{what}", body=body)
    assert wanted in told and "<<" not in told


def test_a_parameter_is_named_as_it_was_written(api):
    assert 'unknown parameter "größe"' in api.refusal(400, "GET", X + "/messages", query="?gr%C3%B6%C3%9Fe=5")


def test_a_body_that_is_not_json_is_refused(api):
    base, headers = api.management._base, api.management._headers
    url = f"{base}delayed-exchanges/%2F/{api.exchange}/messages/cancel"
    for body in (b"", b"{", b"\xff"):
        request = urllib.request.Request(url, body, headers, method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=120)
        assert refused.value.code == 400
        assert "JSON" in json.load(refused.value)["reason"]


@pytest.mark.parametrize("method, template", [
    (method.upper(), path.removeprefix("/delayed-exchanges"))
    for path, methods in openapi.OPENAPI["paths"].items() for method in methods if "{exchange}" in path])
def test_what_is_not_there_is_not_found(api, method, template):
    body = {"all": True, "by": 1} if "reschedule" in template else {"all": True}
    options = {"id": 1, "body": body if template.count("/") == 4 and method == "POST" else None}
    api.refusal(404, method, template, exchange="none", **options)
    assert api.call(method, template, exchange="amq.direct", **options)[0] == 404
    status, _ = api.management.request(method, "delayed-exchanges" + template.format(
        vhost="none", exchange=api.exchange, id=1), options["body"])
    assert status == 404


def test_an_id_that_is_none_is_refused(api):
    for method in ("GET", "DELETE"):
        for wrong in ("x", "-1", str(2 ** 64)):
            assert "id" in api.refusal(400, method, X + "/messages/{id}", id=wrong)


def test_methods_and_paths_are_those_documented(broker, api):
    routed = evaluate(broker, "[P || {P, _, _} <- rabbit_delay_mgmt:dispatcher() "
                              "++ rabbit_delay_dead_letter_mgmt:dispatcher()].")
    paths = {re.sub(r":(\w+)", r"{\1}", path) for path in re.findall(r'"(/[^"]*)"', routed)}
    assert paths == set(openapi.OPENAPI["paths"])
    for path, methods in openapi.OPENAPI["paths"].items():
        request = urllib.request.Request(
            api.management._base + path[1:].format(vhost="%2F", exchange=api.exchange, id=1, queue="q",
                                                    position=1),
            headers=api.management._headers, method="OPTIONS")
        with urllib.request.urlopen(request, timeout=120) as answer:
            allowed = set(answer.headers["allow"].lower().replace(" ", "").split(","))
        assert allowed - {"head", "options"} == set(methods)


# ---------------------------------------------------------------------------- permissions

@pytest.fixture
def user(broker):
    """Makes users with these tags and, unless None, these permissions in the default vhost."""
    made = []

    def make(tags, configure=None, read=None):
        name = f"u-{uuid.uuid4().hex[:8]}"
        made.append(name)
        broker.ctl("add_user", name, name)
        broker.ctl("set_user_tags", name, *tags)
        if configure is not None:
            broker.ctl("set_permissions", name, configure, ".*", read)
        return name

    yield make
    for name in made:
        broker.ctl("delete_user", name)


def requests(message):
    """Every operation on an exchange, with the permission that it takes."""
    yield "configure", ("POST", X + "/messages/cancel"), {"body": {"ids": [message]}}
    yield "configure", ("POST", X + "/messages/release"), {"body": {"ids": ["1"]}}
    yield "configure", ("POST", X + "/messages/reschedule"), {"body": {"ids": ["1"], "by": 1}}
    yield "configure", ("DELETE", X + "/messages"), {}
    yield "configure", ("DELETE", X + "/messages/{id}"), {"id": "1"}
    yield "configure", ("POST", X + "/pause"), {}
    yield "configure", ("POST", X + "/resume"), {}
    yield "read", ("GET", X + "/messages"), {}
    yield "read", ("GET", X + "/messages/{id}"), {"id": "1"}


@pytest.mark.parametrize("granted", ["read", "configure"])
def test_each_operation_takes_its_permission(broker, api, user, granted):
    name = user(["management"], configure=".*" if granted == "configure" else "^$",
                read=".*" if granted == "read" else "^$")
    theirs = Api(broker, api.exchange, name)
    assert theirs.ok("GET", X)["messages_delayed"] == 6
    assert due_times(theirs) == due_times(api)
    assert api.exchange in [x["name"] for x in theirs.ok("GET")]
    message = api.ids()[0]
    for needed, request, options in requests(message):
        if needed == granted:
            assert theirs.call(*request, **options)[0] in (200, 204, 404)
        else:
            reason = theirs.refusal(403, *request, **options)
            assert f"{needed} permission for exchange '{api.exchange}'" in reason
    eventually(broker.log, lambda log: f"refused for user '{name}'" in log)
    if granted == "read":
        assert len(api.ids()) == 6


def test_an_administrator_without_permissions_sees_exchanges_but_no_messages(broker, api, user):
    theirs = Api(broker, api.exchange, user(["administrator"], configure="^$", read="^$"))
    assert theirs.ok("GET", X)["messages_delayed"] == 6
    for _, request, options in requests(api.ids()[0]):
        theirs.refusal(403, *request, **options)
    assert len(api.ids()) == 6


def test_without_access_to_the_vhost_nothing_is_seen(broker, api, user):
    """RabbitMQ 4.3 says that there is no such vhost, earlier ones that it is not for this user."""
    theirs = Api(broker, api.exchange, user(["management"]))
    assert theirs.ok("GET") == []
    assert theirs.management.request("GET", "delayed-exchanges/%2F")[0] in (401, 404)
    for _, (method, template), options in requests(api.ids()[0]):
        path = template.format(vhost="%2F", exchange=api.exchange, id=1)
        assert theirs.management.request(method, "delayed-exchanges" + path,
                                         options.get("body"))[0] in (401, 403, 404)
    assert len(api.ids()) == 6


def test_without_a_tag_or_with_a_wrong_password_nobody_gets_in(broker, api, user):
    name = user([], configure=".*", read=".*")
    assert Api(broker, api.exchange, name).call("GET")[0] == 401
    api.management = Management(broker, "guest", "wrong")
    assert api.call("GET")[0] == 401


# ----------------------------------------------------------------- the management plugin

SCRIPT = {"javascript": "delayed.js"}


def script(broker):
    """The status of what the pages load."""
    try:
        url = f"http://127.0.0.1:{broker.management_port}/js/delayed.js"
        with urllib.request.urlopen(url, timeout=120) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_without_the_management_plugin_all_else_works_and_enabled_later_it_serves(brokers, browser):
    broker = brokers("unmanaged")
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"in an hour", delay=HOUR_MS)
    client.publish(exchange, body=b"soon", delay=100)
    assert client.texts(queue, 1) == ["soon"]
    assert len(broker.rows("list_delayed_messages", exchange)) == 1
    port = free_port()
    evaluate(broker, "application:set_env(rabbitmq_management, tcp_config, "
                     f'[{{port, {port}}}, {{ip, "127.0.0.1"}}], [{{persistent, true}}]).')
    broker.plugins("enable", "rabbitmq_management")
    broker.plugin_ports["rabbitmq_management"] = port
    api = Api(broker, exchange)
    assert api.payloads() == ["in an hour"]
    page = Page(browser, broker)
    page.exchange(exchange)
    assert page.texts("#delayed-pending") == ["1"] and page.errors() == []
    page.close()
    broker.plugins("disable", "rabbitmq_management")
    client.publish(exchange, body=b"still", delay=100)
    assert client.texts(queue, 1) == ["still"]
    assert "CRASH REPORT" not in broker.log()
    client.close()
    broker.end()


def test_enabled_after_the_management_plugin_it_serves(brokers, browser):
    broker = brokers("managed_first", enable=("rabbitmq_management",))
    api = Api(broker)
    assert api.management.request("GET", "delayed-exchanges")[0] == 404
    assert SCRIPT not in api.management.get("extensions") and script(broker) == 404
    broker.plugins("enable", "rabbitmq_delay_wheel")
    assert api.ok("GET") == []
    assert SCRIPT in api.management.get("extensions") and script(broker) == 200
    page = Page(browser, broker)
    page.visit("#/delayed-exchanges", "h1:text-is('Delayed exchanges')")
    page.goto("about:blank")
    broker.plugins("disable", "rabbitmq_delay_wheel")
    assert api.management.request("GET", "delayed-exchanges")[0] == 404
    assert SCRIPT not in api.management.get("extensions") and script(broker) == 404
    page.visit("#/exchanges", "h1:text-is('Exchanges')")
    assert "Delayed" not in page.texts("#tabs a") and page.errors() == []
    page.close()
    broker.end()


# --------------------------------------------------------------------------- the reference

def test_the_broker_serves_the_reference_to_anybody(broker):
    base = f"http://127.0.0.1:{broker.management_port}/api/delay-wheel/"
    # The broker's file server does not know JSON.
    for name, kind in ("openapi.json", "octet-stream"), ("index.html", "html"), ("reference.js", "javascript"):
        with urllib.request.urlopen(base + name, timeout=60) as answer, \
                open(os.path.join(openapi.DESCRIBED, name), "rb") as file:
            assert answer.headers["content-type"].split(";")[0].split("/")[1] == kind
            assert answer.read() == file.read()


def test_the_page_of_the_reference_has_all_that_can_be_asked(browser, broker):
    page = Page(browser, broker)
    page.visit("#/delayed-exchanges", "#main h1:has-text('Delayed exchanges')")
    page.click("#main a:text-is('HTTP API for delayed messages')")
    page.waitForSelector("#operations tbody tr")
    asked = [(method, path) for path, operations in openapi.OPENAPI["paths"].items()
             for method in ("get", "put", "delete", "post") if method in operations]
    rows = zip(page.texts("#operations td:nth-child(1)"), page.texts("#operations td:nth-child(2)"))
    assert list(rows) == [(method.upper(), "/api" + path) for method, path in asked]
    for row, (method, path) in enumerate(asked, 1):
        operation = openapi.OPENAPI["paths"][path][method]
        shown = " ".join(page.evaluate(
            f"document.querySelector('#operations tbody tr:nth-child({row})').textContent").split())
        for text in [operation["summary"], *(openapi.resolved(p)["name"]
                                             for p in operation.get("parameters", [])),
                     *operation["responses"]]:
            assert text in shown
        for part in operation.get("description", "").split("`"):
            assert " ".join(part.split()) in shown
    assert "undefined" not in "".join(page.texts("#operations"))
    assert page.errors() == []
    page.goto(page.url + "api/delay-wheel/index.html")
    page.waitForSelector("#operations tbody tr")
