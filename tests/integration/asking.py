# SPDX-License-Identifier: MPL-2.0
"""Requests to the HTTP API as they are written, which a client library would not send; each answer that is documented
is held against openapi.json."""

import base64
import http.client
import json
import re
import urllib.parse

import openapi
from management import WITHIN, quoted

JSON = {"Content-Type": "application/json"}


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Asker:
    """Asks as a user: status, headers and bytes of the answer, on one connection for as long as the broker keeps it."""

    def __init__(self, broker, user="guest", password=None):
        self._broker, self._authorization = broker, basic(user, password or user)
        self._connection = None

    def __call__(self, method, path, body=None, headers=()):
        """Body: bytes, or an iterable of them, which is sent in chunks."""
        sent = {"Authorization": self._authorization, **dict(headers)}
        if body is not None and not isinstance(body, bytes):
            sent["Transfer-Encoding"] = "chunked"
        for attempt in range(2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._broker.management_port,
                                                              timeout=WITHIN)
                attempt = 1
            try:
                self._connection.request(method, "/api" + path, body, sent,
                                         encode_chunked="Transfer-Encoding" in sent)
                answer = self._connection.getresponse()
                text = answer.read()
                if answer.will_close:
                    self.close()
                return answer.status, answer.headers, text
            except (http.client.RemoteDisconnected, ConnectionError):
                # The broker has ended a connection on which nothing came for a while.
                self.close()
                if attempt == 1:
                    raise
        return None

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def declared(management, vhost):
    """What there is in a vhost, and its policies. (Definitions of a vhost are no JSON on RabbitMQ 4.3.)"""
    members = {"exchanges": ("name", "type", "arguments"), "queues": ("name", "arguments"), "policies": (),
               "operator-policies": (), "bindings": ()}
    return {kind: sorted(json.dumps({name: one[name] for name in wanted or sorted(one)})
                         for one in management.get(f"{kind}/{quoted(vhost)}"))
            for kind, wanted in members.items()}


def crashes(log):
    """Reports of processes that ended by an error in a module of ours. Of header fields that it cannot read the
    management plugin has such errors itself, on any of its paths."""
    found = set(re.findall(r"\[error\] (<[\d.]+>)\s+crasher:|Error in process (<[\d.]+>)|(Ranch listener)", log))
    return [line for line in log.splitlines()
            if "rabbit_delay" in line and any(name in line for names in found for name in names if name)]


def path_of(template, places, query=()):
    path = re.sub(r"\{(\w+)\}", lambda m: quoted(str(places[m.group(1)])), template)
    return path + ("?" + urllib.parse.urlencode(query) if query else "")


def undocumented(method, template, status, headers, text):
    """What an answer has that openapi.json does not say of it; None if there is nothing."""
    responses = openapi.OPENAPI["paths"][template][method.lower()]["responses"]
    if str(status) not in responses:
        return f"no status {status} is documented"
    content = openapi.resolved(responses[str(status)]).get("content")
    if not content:
        return f"an answer of {len(text)} bytes" if text else None
    if not re.match(r"application/json\b", headers.get("content-type", "")):
        return f"content-type {headers.get('content-type')}"
    # Of credentials that are wrong the management plugin itself tells, in the words of its series.
    if status == 401:
        return None
    return next(openapi.mismatches(json.loads(text), content["application/json"]["schema"]), None)
