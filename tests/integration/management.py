# SPDX-License-Identifier: MPL-2.0
"""The broker's HTTP API, read strictly: what is not valid JSON (a NaN, a key that is there twice) is
an error."""

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request


# How long, in s, a test waits for what is to come: far longer than any machine takes.
WITHIN = 120


def quoted(name):
    return urllib.parse.quote(name, safe="")


def _no_such_number(text):
    raise ValueError(f"{text} is not JSON")


def _each_key_once(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"a key is there twice: {pairs}"
    return dict(pairs)


def _read(text):
    return json.loads(text, parse_constant=_no_such_number, object_pairs_hook=_each_key_once)


class Management:
    def __init__(self, broker, user="guest", password="guest"):
        self._broker = broker
        self._base = f"http://{broker.address}:{broker.management_port}/api/"
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def request(self, method, path, body=None):
        """The status and the decoded answer (None if it has no body)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WITHIN) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            status, text = refused.code, refused.read()
        return status, _read(text) if text else None

    def get(self, path):
        """The decoded answer; fails unless the status is 200."""
        status, answer = self.request("GET", path)
        assert status == 200, f"GET {path}: {status} {answer}\n{self._broker.log_tail()}"
        return answer

    def exchange(self, name, vhost="/"):
        return self.get(f"exchanges/{quoted(vhost)}/{quoted(name)}")

    def messages_delayed(self, name, vhost="/"):
        return self.exchange(name, vhost)["messages_delayed"]

    def queue(self, name, vhost="/"):
        return self.get(f"queues/{quoted(vhost)}/{quoted(name)}")


def eventually(value, wanted, within=WITHIN, every=0.1):
    """Polls value() until wanted(it) is true; answers it, or fails with the last one."""
    deadline = time.monotonic() + within
    while True:
        now = value()
        if wanted(now):
            return now
        assert time.monotonic() < deadline, f"still {now!r} after {within} s"
        time.sleep(every)
