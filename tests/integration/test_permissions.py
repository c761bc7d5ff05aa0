# SPDX-License-Identifier: MPL-2.0
"""Who may do what: operations over HTTP by tag and permission, all of them, against what
openapi.json says; keys, topic permissions and histories by those who may do nothing with them
otherwise; and that what cannot be read is not carried out."""

import http.client
import itertools
import json
import os
import re
import threading
import uuid

import pika
import pytest

import openapi
from client import Client, closes_channel
from management import Management, eventually, quoted
from node import HOUR_MS, evaluate
from private_broker import REPOSITORY
from test_keys import cancel, keyed
from test_redrive import park, redrive, reject_all, topology

X = "/delayed-exchanges/{vhost}/{exchange}"
Q = "/dead-letters/{vhost}/{queue}"
CHECK = "/dead-lettering/{vhost}"


@pytest.fixture
def people(broker, management, vhost):
    """people(tags, configure=..., read=..., write=...): a user's name; None: no access to the vhost."""
    made = []

    def make(tags="", **permissions):
        name = f"p-{uuid.uuid4().hex[:8]}"
        made.append(name)
        assert management.request("PUT", f"users/{name}", {"password": name, "tags": tags})[0] == 201
        if permissions is not None and permissions.get("access", True):
            permissions.pop("access", None)
            assert management.request("PUT", f"permissions/{quoted(vhost)}/{name}", {
                "configure": "^$", "read": "^$", "write": "^$", **permissions})[0] == 201
        return name

    yield make
    for name in made:
        management.request("DELETE", f"users/{name}")


# ------------------------------------------------------------------- the matrix over HTTP

# What each operation takes: an access to the vhost (None), a permission for the exchange or queue, both
# of two, or the tag that policies take.
OPERATIONS = [
    (None, "GET", "/delayed-exchanges/{vhost}", None), (None, "GET", X, None),
    (None, "GET", X + "/due-times", None), (None, "GET", X + "/lateness", None), (None, "GET", X + "/members", None),
    ("read", "GET", X + "/messages", None), ("read", "GET", X + "/messages/{id}", None),
    ("configure", "POST", X + "/pause", None), ("configure", "POST", X + "/resume", None),
    ("configure", "DELETE", X + "/messages", None), ("configure", "DELETE", X + "/messages/{id}", None),
    ("read", "GET", Q, None), ("read", "GET", Q + "/{position}", None),
    ("read", "POST", Q + "/redrive", {"dry_run": True}),
    ("read", "GET", Q + "/redrives", None), ("read", "POST", Q + "/redrives", {"limit": 1, "reason": "expired"}),
    ("read", "GET", Q + "/redrives/{id}", None), ("read", "POST", Q + "/redrives/{id}/stop", {}),
    ("policymaker", "GET", CHECK, None), ("policymaker", "GET", CHECK + "/graph", None),
] + [(needed, "POST", f"{X}/messages/{what}", {**more, **which})
     for what, more in (("cancel", {}), ("release", {}), ("reschedule", {"by": 1}))
     for needed, which in (("configure", {"ids": ["1"]}), ("configure", {"all": True, "dry_run": True}),
                           ("configure", {"filter": {"due_to": "+1h"}, "dry_run": True}),
                           ("configure+read", {"filter": {"key": "k"}, "dry_run": True}),
                           ("configure+read", {"filter": {"header": "a=b"}}))]

TAGS = ["", "management", "policymaker", "monitoring", "administrator"]
GRANTED = [frozenset(), *map(frozenset, (["read"], ["configure"], ["write"], ["read", "configure"])), None]


def expected(needed, tags, granted):
    """The statuses of which one is right."""
    if tags == "":
        return {401}
    if needed == "policymaker":
        if tags == "administrator" or tags == "policymaker" and granted is not None:
            return {200}
        return {401} if granted is not None else {401, 404}
    if granted is None and tags != "administrator":
        # RabbitMQ 4.3 does not say that there is such a vhost.
        return {401, 404}
    if needed is None or set(needed.split("+")) <= (granted or frozenset()):
        return {200, 202, 204, 404, 409}
    return {403}


@pytest.mark.parametrize("tags", TAGS)
def test_each_operation_by_tag_and_permission(broker, management, vhost, local, people, tags):
    exchange, _ = local.delayed_and_queue()
    work, parked = topology(local)
    local.publish(exchange, delay=HOUR_MS, headers={"x-delay-key": "k", "a": "b"})
    eventually(lambda: management.messages_delayed(exchange, vhost), lambda n: n == 1)
    wrong = []
    for granted in GRANTED:
        name = people(tags, access=granted is not None, **{p: ".*" for p in granted or ()})
        theirs = Management(broker, name, name)
        for needed, method, template, body in OPERATIONS:
            allowed = expected(needed, tags, granted)
            if 200 in allowed and method == "DELETE":
                continue
            status, answer = openapi.call(theirs, method, template, body, vhost=vhost,
                                          exchange=exchange, queue=parked, id=1, position=1)
            if status not in allowed:
                wrong.append((tags, granted and sorted(granted), method, template, body, status, answer))
    assert not wrong


def test_a_filter_by_content_changes_nothing_for_who_may_not_read(broker, management, vhost, local,
                                                                 people):
    exchange, _ = local.delayed_and_queue()
    local.publish(exchange, delay=HOUR_MS, headers={"secret": "42"})
    name = people("management", configure=".*")
    theirs = Management(broker, name, name)
    for what, dry in itertools.product(("cancel", "release"), (True, False)):
        for wanted in ({"header": "secret=42"}, {"routing_key": "k"}, {"published_to": exchange},
                       {"due_to": "+2h", "key": "x"}):
            status, answer = openapi.call(theirs, "POST", f"{X}/messages/{what}",
                                          {"filter": wanted, "dry_run": dry}, vhost=vhost,
                                          exchange=exchange)
            assert (status, "read permission" in answer["reason"]) == (403, True)
    assert management.messages_delayed(exchange, vhost) == 1


# ---------------------------------------------------------------- what is not carried out

class Raw:
    """Requests as they are written, which a client library would not send."""

    def __init__(self, broker):
        self.broker = broker
        self.authorization = Management(broker)._headers["Authorization"]

    def __call__(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.broker.management_port, timeout=60)
        try:
            connection.putrequest(method, "/api" + path, skip_accept_encoding=True)
            connection.putheader("Authorization", self.authorization)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            elif method == "POST":
                connection.putheader("Content-Length", "0")
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def raw(broker):
    return Raw(broker)


@pytest.fixture
def held(holding):
    return holding[0], f"/delayed-exchanges/%2F/{holding[0]}"


def untouched(management, exchange):
    assert management.messages_delayed(exchange) == 6
    assert management.request("GET", f"delayed-exchanges/%2F/{exchange}")[1]["paused"] is False


@pytest.mark.parametrize("query", [
    "dry_run=", "dry_run", "dry_run=True", "dry_run=null", "dry_run=yes", "dry_run=1", "dryrun=true",
    "DRY_RUN=true", "dry_run=true&dry_run=false", "dry_run=false&dry_run=true", "dry_run=%ff",
    "dry-run=true", "dry_run=true%20", "all=true", "cursor=", "cursor", "cursor=%20", "cursor=&dry_run=false"])
def test_a_purge_that_cannot_be_read_purges_nothing(raw, management, held, query):
    exchange, path = held
    assert raw("DELETE", f"{path}/messages?{query}")[0] == 400
    untouched(management, exchange)


@pytest.mark.parametrize("end, wanted", [
    ("/messages/", 405), ("/messages/.", 405), ("/messages/%2e", 405), ("/messages//", 400),
    ("/messages/%20", 400), ("/messages/..", 405), ("/messages/1/..", 405), ("/messages/-1", 400),
    ("/messages/+1", 400), ("/messages/01", 400), ("/messages/1?dry_run=true", 400)])
def test_an_id_that_is_none_is_not_all_of_them(raw, management, held, end, wanted):
    exchange, path = held
    assert raw("DELETE", path + end)[0] == wanted
    untouched(management, exchange)


def test_a_delete_with_a_body_is_refused(raw, management, held):
    exchange, path = held
    assert raw("DELETE", f"{path}/messages", b'{"dry_run": true}', Content_Type="application/json")[0] == 400
    untouched(management, exchange)


BAD_DRY_RUNS = ["null", '""', '"true"', "1", "0", "[]", "{}"]


@pytest.mark.parametrize("value", BAD_DRY_RUNS)
def test_a_dry_run_that_cannot_be_read_is_no_real_one(raw, management, held, value):
    exchange, path = held
    for what, more in (("cancel", ""), ("release", ""), ("reschedule", '"by": 1, ')):
        body = f'{{{more}"all": true, "dry_run": {value}}}'.encode()
        assert raw("POST", f"{path}/messages/{what}", body, Content_Type="application/json")[0] == 400
    twice = b'{"all": true, "dry_run": true, "dry_run": false}'
    for end, body in (("", twice), ("", twice.replace(b"dry_r", rb"dry\u005fr", 1)), ("?dry_run=true", b'{"all": true}'),
                      ("", b'{"filter": {"due_to": "+1m", "due_to": "+9h"}}'), ("", b'{"all": true, "Dry_run": true}'),
                      ("", b"{'dry_run': true, " + twice[1:]), ("", twice[:-1] + b'/* " */}')):
        assert raw("POST", f"{path}/messages/cancel{end}", body, Content_Type="application/json")[0] == 400
    untouched(management, exchange)


@pytest.mark.parametrize("value", BAD_DRY_RUNS)
def test_a_redrive_that_cannot_be_read_moves_nothing(raw, vhost, local, value):
    work, parked = topology(local)
    park(local, work, parked, ["a", "b"])
    path = f"/dead-letters/{quoted(vhost)}/{quoted(parked)}/redrive"
    for body in (f'{{"dry_run": {value}}}', f'{{"to_queue": "{value}", "dry_run": {value}}}',
                 '{"reason": null}', '{"limit": null}', '{"dry_run": true, "dry_run": false}',
                 '{"dry\\u005frun": true, "dry_run": false}', '{"limit": 1, "limit": 2}'):
        if '"' in value and "to_queue" in body:
            continue
        status, answer = raw("POST", path, body.encode(), Content_Type="application/json")
        assert status == 400, (body, answer)
    assert raw("POST", path + "?dry_run=true", b"{}", Content_Type="application/json")[0] == 400
    assert local.depth(parked) == 2


FOREIGN = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
           "text/plain;application/json", "application/jsonx", "nonsense"]


@pytest.mark.parametrize("content_type", FOREIGN)
def test_a_page_from_elsewhere_cannot_act_for_its_reader(raw, management, held, vhost, local, content_type):
    """It can send such POSTs, with the credentials that the browser knows, and no others."""
    exchange, path = held
    work, parked = topology(local)
    park(local, work, parked, ["a"])
    headers = {"Content_Type": content_type} if content_type else {}
    for what, body in (("messages/cancel", b'{"all": true}'), ("messages/release", b'{"all": true}'),
                       ("messages/reschedule", b'{"all": true, "by": 1}'), ("pause", b""), ("pause", b"{}")):
        status, _ = raw("POST", f"{path}/{what}", body, Origin="http://elsewhere.example", **headers)
        assert status == 415, what
    status, _ = raw("POST", f"/dead-letters/{quoted(vhost)}/{quoted(parked)}/redrive", b"{}",
                    Origin="null", **headers)
    assert status == 415
    untouched(management, exchange)
    assert local.depth(parked) == 1


def test_a_program_need_not_say_the_type_of_nothing(raw, management, held):
    exchange, path = held
    assert raw("POST", f"{path}/pause")[0] == 204
    assert raw("POST", f"{path}/resume", b"{}", Content_Type="application/json; charset=utf-8")[0] == 204
    assert raw("POST", f"{path}/pause", b"{}")[0] == 415
    untouched(management, exchange)


ODD = ["%ff", "%00", "%0a", "%1b%5b2J", "%e2%82%ac", "a%2fb", "%25", "%22", "..%2f"]


@pytest.mark.parametrize("name", ODD)
def test_names_of_any_bytes_are_answered_in_words(raw, broker, name):
    for method, path, body in [
            ("GET", f"/delayed-exchanges/%2F/{name}", None), ("GET", f"/delayed-exchanges/{name}/x", None),
            ("GET", f"/delayed-exchanges/%2F/{name}/messages", None),
            ("GET", f"/delayed-exchanges?page=1&name={name}&columns=vhost", None),
            ("GET", f"/delayed-exchanges?page=1&name={name}&use_regex=true", None),
            ("GET", f"/delayed-exchanges?sort={name}&columns={name}", None),
            ("GET", f"/delayed-exchanges/%2F/{name}/messages?key={name}&header={name}%3d{name}", None),
            ("DELETE", f"/delayed-exchanges/%2F/{name}/messages/{name}", None),
            ("POST", f"/delayed-exchanges/%2F/{name}/pause", None),
            ("GET", f"/dead-letters/%2F/{name}", None), ("GET", f"/dead-letters/{name}/{name}", None),
            ("GET", f"/dead-letters/%2F/{name}/1", None), ("GET", f"/dead-lettering/{name}", None),
            ("GET", f"/dead-lettering/{name}/graph", None),
            ("POST", f"/dead-letters/%2F/{name}/redrive", b"{}")]:
        headers = {"Content_Type": "application/json"} if body else {}
        status, answer = raw(method, path, body, **headers)
        assert status in (200, 400, 404), (method, path, status, answer)
        json.loads(answer)


@pytest.mark.parametrize("query, wanted", [
    ("page=1&name=a&columns=vhost", 200), ("page=0", 400), ("page=x", 400), ("page=1&page_size=501", 400),
    ("page=1&name=(&use_regex=true", 400), ("sort=message_stats", 200), ("sort=.", 200),
    ("sort=name.x&sort_reverse=true", 200), ("sort_reverse=maybe", 400), ("columns=,", 200),
    ("columns=message_stats.published_details.rate,name", 200), ("page=1000000000&page_size=500", 200),
    ("page=1&name=" + "a" * 250, 200), ("page=1&name=" + "a" * 251, 400), ("page=1&name=(a%2B)%2B$&use_regex=true", 200), ("pag=1", 400)])
def test_lists_of_exchanges_are_asked_for_in_any_way(management, client, query, wanted):
    client.delayed(name=f"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab{uuid.uuid4().hex}")
    status, answer = openapi.call(management, "GET", "/delayed-exchanges", query="?" + query)
    assert status == wanted, answer


def test_the_same_queue_is_missing_for_all(management, vhost):
    for method, template, body in (("GET", Q, None), ("GET", Q + "/{position}", None),
                                   ("POST", Q + "/redrive", {}), ("POST", Q + "/redrive", {"dry_run": True})):
        status, answer = openapi.call(management, method, template, body, vhost=vhost, queue="none",
                                      position=1)
        assert status == 404 and "no queue 'none'" in answer["reason"], answer


def test_a_method_that_there_is_not_is_not_allowed(raw, held):
    _, path = held
    for method in ("PUT", "PATCH", "BREW"):
        assert (method, raw(method, f"{path}/messages")[0]) == (method, 405)


# --------------------------------------------------------------------- what is written down

def log_after(broker, size):
    return broker.log()[size:]


def test_it_is_logged_who_asked_for_what_before_it_is_done(broker, management, people, vhost, local):
    exchange, _ = local.delayed_and_queue()
    local.publish(exchange, delay=HOUR_MS)
    name = people("management", configure=".*", read=".*", write=".*")
    theirs = Management(broker, name, name)
    work, parked = topology(local)
    park(local, work, parked, ["a"])
    size = len(broker.log())
    for template, body in ((X + "/messages/reschedule", {"all": True, "by": 1}), (X + "/pause", None),
                           (X + "/messages/cancel", {"ids": ["77"]}), (X + "/resume", None),
                           (X + "/messages/cancel", {"filter": {"key": "wanted\nkey"}}),
                           (Q + "/redrive", {})):
        assert openapi.call(theirs, "POST", template, body, vhost=vhost, exchange=exchange,
                            queue=parked)[0] in (200, 204)
    def asked():
        return [line for line in log_after(broker, size).splitlines() if f"asked for by user '{name}'" in line]
    lines = eventually(asked, lambda lines: len(lines) == 6)
    for line, part in zip(lines, ("all messages are to be rescheduled by 1 ms", "to be paused", "[77]",
                                  "to be resumed", "key 'wanted\\u000akey'",
                                  f"to be redriven to queue {work}")):
        assert part in line


def test_a_dry_run_is_no_deed(broker, management, held):
    exchange, _ = held
    size = len(broker.log())
    openapi.call(management, "POST", X + "/messages/cancel", {"all": True, "dry_run": True}, vhost="/",
                 exchange=exchange)
    assert "asked for" not in log_after(broker, size)


def test_names_cannot_write_lines_of_the_log(broker, management, vhost, local, people):
    line = "\n2027-01-01 00:00:00.000000+00:00 [error] <0.1.0> forged"
    # The broker takes line ends out of exchanges' names, and leaves them in what is asked for.
    exchange = local.delayed(name="x \x1b[31m\u2028red")
    local.publish(exchange, delay=HOUR_MS, body=b"m")
    name = people("management")
    size = len(broker.log())
    assert openapi.call(management, "POST", X + "/messages/cancel", {"filter": {"header": "a=b" + line}},
                        vhost=vhost, exchange=exchange)[0] == 200
    for asked in (exchange, "y" + line):
        assert openapi.call(Management(broker, name, name), "GET", X + "/messages", vhost=vhost,
                            exchange=asked)[0] == 403
    log = eventually(lambda: log_after(broker, size), lambda log: log.count("refused for user") == 2)
    assert "\\u000a" in log and "\x1b" not in log and "\u2028" not in log
    assert not [line for line in log.splitlines() if line.startswith("2027-01-01 00:00:00.000000")]
    code, text = closes_channel(lambda: local.publish(exchange, headers={"x-delay": "soon\n"}))
    assert code == 406 and "\n" not in text


def test_resources_are_written_by_one_function_only():
    """rabbit_misc:rs/1 writes names as they are."""
    found = []
    for directory, _, files in os.walk(os.path.join(REPOSITORY, "erl_src")):
        for file in files:
            with open(os.path.join(directory, file), encoding="utf-8") as text:
                found += [file for line in text if "rabbit_misc:rs(" in line]
    assert not found


# ------------------------------------------------------------------------------------ keys

@pytest.fixture
def ways(management, vhost, local):
    """An exchange with a pending message of key k, and the ways in which others' messages come to it:
    exchanges and queues that one publishes to."""
    exchange = local.delayed("fanout", name="target")
    feed = local.exchange("fanout", name="feed")
    local.channel.exchange_bind(exchange, feed, "")
    local.exchange("direct", name="main", arguments={"alternate-exchange": exchange})
    local.queue(name="dying", arguments={"x-dead-letter-exchange": exchange, "x-message-ttl": 1})
    local.queue(name="dying quorum", arguments={"x-dead-letter-exchange": exchange, "x-message-ttl": 1,
                                                "x-queue-type": "quorum"})
    local.publish(exchange, body=b"victim", headers=keyed("k"), message_id="k")
    eventually(lambda: management.messages_delayed(exchange, vhost), lambda n: n == 1)
    return exchange, {"binding": ("feed", ""), "alternate": ("main", "nothing"), "dead letter": ("", "dying"),
                      "dead letter of a quorum queue": ("", "dying quorum")}


def ignored(management, vhost, broker, exchange):
    return int(evaluate(broker, "rabbit_delay_counters:get(rabbit_delay_registry:counters(rabbit_misc:r("
                                f"unicode:characters_to_binary({json.dumps([ord(c) for c in vhost])}), "
                                f'exchange, <<"{exchange}">>)), keys_ignored).'))


WAYS = ["binding", "alternate", "dead letter", "dead letter of a quorum queue"]


@pytest.mark.parametrize("way", WAYS)
def test_keys_do_nothing_for_who_does_not_publish_there(broker, management, vhost, local, ways, people, way):
    exchange, sources = ways
    source, key = sources[way]
    # Who may publish there, and not to the delayed exchange.
    name = people(write=f"^(feed|main|amq\\.default)$")
    other = Client(broker, vhost, name, name)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        other.publish(exchange, headers=keyed("k", "replace"))
    queue = local.queue((exchange, ""))
    size, deaths = len(broker.log()), [{"queue": "dying", "reason": "expired", "count": 1,
                                        "exchange": exchange, "routing-keys": ["k"]}]
    for headers in (keyed("k", "replace"), {**keyed("k", "drop"), "x-death": deaths}, keyed("k", "keep")):
        other.publish(source, key, b"another", headers=headers, message_id="k")
    # As if it had no such headers: these ask for no delay.
    for headers in (cancel("k"), cancel(""), {"x-delay-key": 17}):
        other.publish(source, key, b"at once", headers=headers)
    assert local.texts(queue, 3, within=60) == ["at once"] * 3
    eventually(lambda: management.messages_delayed(exchange, vhost), lambda n: n == 4)
    eventually(lambda: ignored(management, vhost, broker, exchange), lambda n: n == 6)
    lines = eventually(lambda: [line for line in log_after(broker, size).splitlines()
                                if "headers about keys do not count" in line], bool)
    assert len(lines) == 1
    # They are no "duplicate" of what the owner publishes, and he cancels his own only.
    local.publish(exchange, headers=cancel("k"))
    eventually(lambda: management.messages_delayed(exchange, vhost), lambda n: n == 3)
    local.publish(exchange, headers=keyed("k", "drop"))
    eventually(lambda: management.messages_delayed(exchange, vhost), lambda n: n == 4)
    other.connection.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_policy_lets_keys_of_anyone_count(broker, management, vhost, local, ways, way):
    exchange, sources = ways
    policy = f"policies/{quoted(vhost)}/keys"
    definition = {"pattern": "^target$", "apply-to": "exchanges"}
    assert management.request("PUT", policy, {**definition, "definition": {"delay-keys-from": "all"}})[0] == 400
    assert management.request("PUT", policy, {**definition,
                                              "definition": {"delay-keys-from": "anyone"}})[0] in (201, 204)
    source, key = sources[way]
    local.publish(source, key, headers=cancel("k"))
    eventually(lambda: management.messages_delayed(exchange, vhost), lambda n: n == 0, within=60)


# ---------------------------------------------------------------------- topic permissions

def test_topic_permissions_hold_for_publishers(broker, management, vhost, local, people):
    exchange = local.delayed("topic", name="topics")
    plain = local.exchange("topic", name="plain topics")
    name = people("management", read=".*", write=".*", configure=".*")
    for x in (exchange, plain):
        assert management.request("PUT", f"topic-permissions/{quoted(vhost)}/{name}", {
            "exchange": x, "write": "^mine\\.", "read": "^mine\\."})[0] in (201, 204)
    queue = local.queue((exchange, "#"), (plain, "#"))
    other = Client(broker, vhost, name, name)
    for x in (exchange, plain):
        other.publish(x, "mine.a", b"allowed")
        for key, headers in (("others.a", {}), ("others.a", {"x-delay": 1}), ("others.a", {"x-delay": HOUR_MS}),
                             ("mine.a", {"CC": ["others.a"]}), ("others.a", cancel("k"))):
            if x == plain and "CC" in headers:
                continue  # RabbitMQ 3.10 asks of the first key only.
            code, text = other.refusal(x, key, b"refused", headers=headers)
            assert code == 403 and "others.a" in text, (x, key, text)
    assert local.texts(queue, 2) == ["allowed"] * 2
    assert management.messages_delayed(exchange, vhost) == 0
    statuses = [Management(broker, name, name).request(
        "POST", f"exchanges/{quoted(vhost)}/{quoted(x)}/publish",
        {"routing_key": "others.a", "payload": "x", "payload_encoding": "string", "properties": {}})[0]
                for x in (exchange, plain)]
    # The management plugin's own answer.
    assert statuses[0] == statuses[1] >= 400
    assert local.texts_until_marker(queue) == []
    other.connection.close()


def test_topic_permissions_hold_for_redrives(broker, management, vhost, local, people):
    exchange = local.delayed("topic", name="topics")
    behind = local.queue((exchange, "#"))
    work, parked = topology(local)
    park(local, work, parked, ["a"])
    name = people("management", read=".*", write=".*")
    assert management.request("PUT", f"topic-permissions/{quoted(vhost)}/{name}", {
        "exchange": exchange, "write": "^mine\\.", "read": ".*"})[0] in (201, 204)
    theirs = Management(broker, name, name)
    def ask(key):
        return openapi.call(theirs, "POST", Q + "/redrive", {"to_exchange": exchange, "routing_key": key},
                            vhost=vhost, queue=parked)[0]
    assert ask("others.a") == 403 and local.depth(parked) == 1
    assert ask("mine.a") == 200 and local.texts(behind, 1) == ["a"]


# ------------------------------------------------------------------------------- redriving

def forged(queue, exchange="", key="k"):
    return {"x-death": [{"queue": queue, "reason": "rejected", "count": 1, "exchange": exchange,
                         "routing-keys": [key]}],
            "x-first-death-queue": queue, "x-first-death-reason": "rejected",
            "x-first-death-exchange": exchange}


@pytest.fixture(params=["classic", "quorum"])
def kind(request):
    return request.param


def test_a_forged_history_leads_nowhere(broker, management, vhost, local, kind):
    """Neither to a queue that does not dead-letter here, nor to an exchange of a client's choice."""
    work, parked = topology(local, kind)
    local.queue(name="safe")
    fan = local.exchange("fanout", name="fan")
    local.queue((fan, ""), name="behind fan")
    for headers in (forged("safe"), forged("safe", "fan"), forged("none", "fan")):
        local.publish("", parked, b"forged", headers=headers)
    park(local, work, parked, ["true"])
    for options in ((), ("--to-original-exchange",)):
        report = redrive(broker, vhost, parked, "--dry-run", *options, check=1)
        assert report["targets"] == {f"queue {work}": 1} or options, report
    report = redrive(broker, vhost, parked, check=1)
    assert (report["redriven"], report["no_target"], report["unroutable"]) == (1, 2, 1)
    assert report["targets"] == {f"queue {work}": 1}
    redrive(broker, vhost, parked, "--to-original-exchange", check=1)
    assert (local.depth("safe"), local.depth("behind fan")) == (0, 0)
    assert local.texts(work, 1) == ["true"]
    eventually(lambda: local.depth(parked), lambda n: n == 3)


def test_only_to_targets_that_were_shown(management, vhost, local, kind):
    work, parked = topology(local, kind)
    second = local.queue(name="second work", arguments={"x-dead-letter-exchange": "",
                                                        "x-dead-letter-routing-key": parked})
    park(local, work, parked, ["a", "b"])
    park(local, second, parked, ["c"])
    def ask(body):
        status, answer = openapi.call(management, "POST", Q + "/redrive", body, vhost=vhost, queue=parked)
        assert status == 200, answer
        return answer
    assert ask({"dry_run": True})["targets"] == {f"queue {work}": 2, f"queue {second}": 1}
    assert ask({"targets": [f"queue {second}", "queue none"]})["targets"] == {f"queue {second}": 1}
    eventually(lambda: local.depth(parked), lambda n: n == 2)
    assert local.texts(second, 1) == ["c"]


def test_into_an_internal_exchange_nothing_is_redriven(management, vhost, local):
    work, parked = topology(local)
    park(local, work, parked, ["a"])
    inside = local.exchange("fanout", name="inside", internal=True)
    local.queue((inside, ""))
    for body in ({"to_exchange": inside}, {"to_exchange": inside, "routing_key": "k"}):
        for dry in (True, False):
            status, answer = openapi.call(management, "POST", Q + "/redrive", {**body, "dry_run": dry},
                                          vhost=vhost, queue=parked)
            assert (status, "internal" in answer["reason"]) == (400, True)
    assert local.depth(parked) == 1


def test_looking_is_bounded_as_on_the_command_line(management, vhost, local, kind):
    most = {"classic": 100_000, "quorum": 3000}[kind]
    _, parked = topology(local, kind)
    for n, wanted in ((most, 200), (most + 1, 400), (1_000_000, 400)):
        assert openapi.call(management, "GET", Q, query=f"?max={n}", vhost=vhost, queue=parked)[0] == wanted
    for n, wanted in ((most, 404), (most + 1, 400)):
        assert openapi.call(management, "GET", Q + "/{position}", vhost=vhost, queue=parked,
                            position=n)[0] == wanted


# --------------------------------------------------------------------- what listings cost

def memory(broker):
    return int(evaluate(broker, "erlang:memory(total)."))


def test_listings_with_bodies_share_a_bound(broker, management, client, api_exchange):
    """Eight that ask at a time for the beginnings of 128 MB hold no more than what they show."""
    for call in range(16):
        client.publish(api_exchange, body=b"x" * 8 * 2 ** 20, delay=HOUR_MS + call)
    before, most, done = memory(broker), 0, []

    def ask():
        for _ in range(2):
            status, answer = openapi.call(management, "GET", X + "/messages",
                                          query="?body=true&body_bytes=10000", vhost="/",
                                          exchange=api_exchange)
            done.append(status)
            assert status == 503 or answer["items"]

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, memory(broker))
    assert set(done) <= {200, 503} and 200 in done
    assert most - before < 400 * 2 ** 20, (most - before) // 2 ** 20


@pytest.fixture
def api_exchange(client):
    return client.delayed()
