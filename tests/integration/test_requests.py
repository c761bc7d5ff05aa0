# SPDX-License-Identifier: MPL-2.0
"""Requests of our own to all that openapi.json has, drawn from what it says, by users of each tag and with each
permission: the status is one of those that a model of who may do what allows, the answer is as documented, and
afterwards nothing is changed that none of them may change.

All with access to the vhost have all permissions for an exchange and a queue that are their own; for others' each
has some permission, or none. API_ROUNDS in the environment says how often each asks for each: `make check` little,
`make soak-api` much."""

import collections
import json
import os
import random
import uuid

import pytest

import openapi
from asking import JSON, Asker, crashes, declared, path_of, undocumented
from management import eventually, quoted
from test_redrive import park, topology

ROUNDS = int(os.environ.get("API_ROUNDS", "3"))
SEED = int(os.environ.get("API_SEED", "1"))

TAGS = ["", "management", "policymaker", "monitoring", "administrator"]
GRANTS = [(), ("read",), ("configure",), ("write",), ("read", "write"), ("read", "configure"),
          ("read", "configure", "write"), None]  # None: no access to the vhost

X = "/delayed-exchanges/{vhost}/{exchange}"
Q = "/dead-letters/{vhost}/{queue}"
DEAD_LETTER_ID = "^[0-9a-f]{32}$"
NO_QUEUE_NEEDED = {("GET", Q + "/redrives")}

OPERATIONS = [(method.upper(), template) for template, item in openapi.OPENAPI["paths"].items()
              for method in item if method in ("get", "post", "delete")]


def permission(method, template):
    """What it takes for the exchange or queue, and which of both."""
    if template.startswith(Q):
        return "read", "queue"
    if template.startswith(X):
        if method != "GET":
            return "configure", "exchange"
        if "/messages" in template:
            return "read", "exchange"
    return None, None


# ------------------------------------------------------------------------------- what is asked

class Drawn:
    """Values that fit the document and make sense together."""

    def __init__(self, rng, place):
        self._rng = rng
        self.pools = {
            "due_from": ["-1h", "+1s", 0], "due_to": ["+9h", 281474976710655], "header": ["n=1", "é=ü"],
            "key": ["n1", "x"], "routing_key": ["k", "other"], "published_to": [place["exchange"]], "cursor": [None],
            "to": ["+2h", "2026-12-31T12:00:00Z"], "by": ["90m", 1000, "+1h"], "older_than": [0, "0s", "1d"],
            "newer_than": [4294967295, "1h"], "reason": ["rejected", "expired"], "origin": [place["work"]],
            "to_queue": [place["work"]], "to_exchange": [place["plain"]], "targets": [["queue " + place["work"]], []],
            "payload": ["", "é"], "payload_encoding": ["string"], "properties": [{"type": "y"}, {"priority": None}],
            "headers": [{"h": [1, {"a": None}]}, {"n": None}], "page": [1], "name": ["", "x"], "sort": ["name"],
            "columns": ["name,vhost"], "rate": [1000, 1000000], "id": place["ids"], "items": place["ids"],
            "position": [1, 2]}
        self._dead = place["dead"] + ["0" * 32]

    def pick(self, name):
        return self._rng.choice(self.pools[name])

    def value(self, schema, name=""):
        schema = openapi.resolved(schema)
        if schema.get("pattern") == DEAD_LETTER_ID:
            return self._rng.choice(self._dead)
        if name in self.pools:
            return self.pick(name)
        if "oneOf" in schema:
            return self.value(self._rng.choice(schema["oneOf"]), name)
        if "enum" in schema:
            return self._rng.choice(schema["enum"])
        return getattr(self, "_" + schema["type"])(schema)

    def _object(self, schema):
        while True:
            found = {name: self.value(part, name) for name, part in schema.get("properties", {}).items()
                     if name in schema.get("required", []) or self._rng.random() < 0.3}
            if len(found) >= schema.get("minProperties", 0):
                return found

    def _array(self, schema):
        return [self.value(schema["items"], "items") for _ in range(self._rng.choice([1, 1, 2, 5]))]

    def _integer(self, schema):
        least = schema.get("minimum", 0)
        return self._rng.choice([least, least + 1, min(schema["maximum"], 3000)])

    def _boolean(self, _):
        return self._rng.random() < 0.5

    def body(self, method, template):
        content = openapi.OPENAPI["paths"][template][method.lower()].get("requestBody")
        if content is None:
            return None
        body = self.value(content["content"]["application/json"]["schema"])
        if "payload_encoding" in body and "payload" not in body:
            del body["payload_encoding"]
        return body

    def query(self, method, template):
        found = {}
        for parameter in openapi.OPENAPI["paths"][template][method.lower()].get("parameters", []):
            parameter = openapi.resolved(parameter)
            if parameter["in"] == "query" and self._rng.random() < 0.3:
                value = self.value(parameter["schema"], parameter["name"])
                if value is not None:
                    found[parameter["name"]] = str(value).lower() if isinstance(value, bool) else str(value)
        return found


# How a request is spoiled; which statuses that has if nothing else is in its way.
SPOILED = {
    None: None, "unknown member": {400}, "no JSON": {400}, "twice": {400}, "unknown parameter": {400},
    "content-type": {415}, "accept": {406}, "password": {401}, "method": {405}}


def spoilings(method):
    return [how for how in SPOILED if method == "POST" or how not in ("unknown member", "no JSON", "twice",
                                                                      "content-type")]


def spoil(how, body, query, headers):
    text = None if body is None else json.dumps(body).encode()
    if how == "unknown member":
        text = json.dumps({**body, "nonsense": 1}).encode()
    elif how == "no JSON":
        text = text[:-1] + b",}"
    elif how == "twice":
        text = text[:-1] + (b"," if body else b"") + b'"a"\r\n:1,"a":2}'
    elif how == "unknown parameter":
        query["nonsense"] = "1"
    elif how == "content-type":
        headers["Content-Type"] = "text/plain"
    elif how == "accept":
        headers["Accept"] = "text/html"
    return text


# --------------------------------------------------------------------------------- the model

class User:
    def __init__(self, tags, granted):
        self.name, self.tags, self.granted = f"p-{uuid.uuid4().hex[:8]}", tags, granted

    def patterns(self):
        """Of permissions: for what is its own, for what there is not, and for others' what is granted."""
        others = {"read": "|others.*", "configure": "|others.*", "write": "|others.*|amq\\.default"}
        return {what: f"^(own.*|none{others[what] if what in self.granted else ''})$"
                for what in ("configure", "read", "write")}

    def has(self, what, of):
        return self.granted is not None and (of in ("own", "none") or what in self.granted)

    @property
    def sees(self):
        return self.granted is not None or self.tags == "administrator"


def discloses(body):
    return bool(set((body or {}).get("filter", {})) - {"due_from", "due_to"})


def target_is_permitted(user, body, of):
    """None: each message is asked for by itself."""
    if "to_queue" in body:
        return "write" in (user.granted or ())
    if {"to_exchange", "routing_key"} <= set(body):
        return user.has("write", of)
    return None


def allowed(user, method, template, of, how, body):
    """The statuses of which one is right."""
    if how == "method":
        return {405}
    if user.tags == "" or how == "password":
        return {401}
    missing_vhost = of == "no vhost" and "{vhost}" in template
    if template.startswith("/dead-lettering"):
        if user.tags not in ("administrator", "policymaker"):
            # Some series tell who may not see it that there is no such vhost.
            return {401, 404} if missing_vhost else {401}
    if "{vhost}" in template and user.tags != "administrator" and (missing_vhost or not user.sees):
        # On some series that comes after what else is wrong with the request.
        return {401, 404} | (SPOILED[how] if missing_vhost and how in ("content-type", "accept") else set())
    what, kind = permission(method, template)
    if what and not missing_vhost and not user.has(what, of):
        return {403}
    if how == "content-type":
        return {415}
    if how == "accept":
        return {406}
    if missing_vhost:
        return {404}
    if how is not None:
        return SPOILED[how]
    return carried_out(user, method, template, of, body)


def carried_out(user, method, template, of, body):
    if template.startswith(X) and method == "POST" and discloses(body) and not user.has("read", of):
        return {403}
    if of == "none" and template.startswith((X, Q)) and (method, template) not in NO_QUEUE_NEEDED:
        return {404}
    good = {int(s) for s in openapi.OPENAPI["paths"][template][method.lower()]["responses"] if s.startswith("2")}
    if template.startswith(Q) and method == "POST" and body and target_is_permitted(user, body, of) is False:
        return {403}
    if "{id}" in template or "{position}" in template:
        # Those of its own go as it redrives and cancels.
        good |= {404, 409}
    if template == Q + "/redrives" and method == "POST":
        good |= {409, 429}
    return good


def would_change(user, method, template, of):
    """Whether it may change what is others': that is not asked for."""
    if method == "GET" or of != "others":
        return False
    what, kind = permission(method, template)
    if not user.has(what, of):
        return False
    if kind == "exchange" or template.endswith("/drop"):
        return True
    return user.has("write", of)


# --------------------------------------------------------------------------------- the world

class World:
    """What the users are let loose on."""

    def __init__(self, management, local, tags):
        self.management, self.local, self.vhost = management, local, local.vhost
        vhost = self.vhost
        self.others, self.own = self.make("others"), self.make("own")
        self.users = [User(tags, granted) for granted in GRANTS]
        for user in self.users:
            made = management.request("PUT", f"users/{user.name}", {"password": user.name, "tags": user.tags})[0]
            assert made == 201
            if user.granted is not None:
                assert management.request("PUT", f"permissions/{quoted(vhost)}/{user.name}",
                                          user.patterns())[0] == 201

    def make(self, name):
        local = self.local
        exchange = local.delayed("direct", name=f"{name}-x")
        plain = local.exchange("fanout", name=f"{name}-plain")
        for n in range(6):
            local.publish(exchange, "k", b"m%d" % n, delay=(n + 1) * 3_600_000, headers={"n": n}, message_id=f"n{n}")
        eventually(lambda: self.management.messages_delayed(exchange, self.vhost), lambda n: n == 6)
        work, queue = topology(local, work=f"{name}-work", parked=f"{name}-q")
        local.channel.queue_bind(work, plain, "")
        park(local, work, queue, ["a", "b", "c"])
        return {"vhost": self.vhost, "exchange": exchange, "queue": queue, "work": work, "plain": plain,
                "ids": [item["id"] for item in self.messages(exchange)],
                "dead": [item["id"] for item in self.dead_letters(queue)]}

    def messages(self, exchange):
        path = f"delayed-exchanges/{quoted(self.vhost)}/{quoted(exchange)}/messages?body=true"
        return self.management.get(path)["items"]

    def dead_letters(self, queue):
        return self.management.get(f"dead-letters/{quoted(self.vhost)}/{quoted(queue)}/messages")["messages"]

    def place(self, of):
        return {"own": self.own, "others": self.others, "none": {**self.own, "exchange": "none", "queue": "none"},
                "no vhost": {**self.own, "vhost": "no vhost"}}[of]

    def of_others(self):
        """All that none of the requests may change."""
        x, q = self.others["exchange"], self.others["queue"]
        exchange = self.management.get(f"delayed-exchanges/{quoted(self.vhost)}/{quoted(x)}")
        return {"messages": self.messages(x), "paused": exchange["paused"],
                "cancelled": exchange["message_stats"]["cancelled"], "released": exchange["message_stats"]["released"],
                "dead letters": [(item["id"], item["payload"]) for item in self.dead_letters(q)],
                "declared": declared(self.management, self.vhost),
                "work": self.local.depth(self.others["work"]),
                "jobs": [job for job in self.management.get("dead-letter-redrives")["redrives"]
                         if job["queue"] == q and not self.user(job["user"]).has("read", "others")]}

    def user(self, name):
        return next(user for user in self.users if user.name == name)

    def end(self):
        for user in self.users:
            self.management.request("DELETE", f"users/{user.name}")


@pytest.fixture
def world(management, local, request):
    made = World(management, local, request.param)
    yield made
    made.end()


@pytest.fixture
def no_crash(broker):
    size = len(broker.log())
    yield
    assert not crashes(broker.log()[size:])


def asked(rng, world, user, operation):
    """A request: of whose it asks, how it is spoiled, and what there is to send."""
    method, template = operation
    of = rng.choice(["own", "others", "others", "none", "no vhost"])
    how = rng.choice(spoilings(method)) if rng.random() < 0.3 else None
    while True:
        places = {**world.place(of), "position": rng.choice([1, 2])}
        places["id"] = rng.choice(places["ids"])
        draw = Drawn(rng, places)
        body, query = draw.body(method, template), draw.query(method, template)
        if how is not None or not would_change(user, method, template, of):
            return of, how, places, body, query
        of = "own"


@pytest.mark.parametrize("world", TAGS, indirect=True, ids=lambda tags: tags or "no tag")
def test_what_is_asked_is_answered_as_the_model_says_and_changes_nothing_of_others(broker, world, no_crash):
    rng = random.Random(SEED)
    before, wrong, statuses = world.of_others(), [], collections.Counter()
    for user in world.users:
        ask, nobody = Asker(broker, user.name), Asker(broker, user.name, "wrong")
        for method, template in OPERATIONS * ROUNDS:
            of, how, places, body, query = asked(rng, world, user, (method, template))
            headers = dict(JSON) if body is not None else {}
            text = spoil(how, body, query, headers)
            status, found, answer = (nobody if how == "password" else ask)(
                "PUT" if how == "method" else method, path_of(template, places, query), text, headers)
            statuses[status] += 1
            good = allowed(user, method, template, of, how, body)
            if status not in good:
                wrong.append((status, good))
            elif how != "method" and (odd := undocumented(method, template, status, found, answer)):
                wrong.append(odd)
            else:
                continue
            wrong[-1] = (wrong[-1], user.tags, user.granted, method, template, of, how, body, query, answer[:300])
        ask.close()
        nobody.close()
    assert not wrong, f"{len(wrong)} of {sum(statuses.values())}, seed {SEED}: " + "\n".join(map(str, wrong[:20]))
    assert world.of_others() == before
    # What it draws comes to all that there is.
    assert {401, 405} <= set(statuses)
    assert not world.users[0].tags or {200, 202, 204, 400, 403, 404, 406, 415} <= set(statuses), statuses
