# SPDX-License-Identifier: MPL-2.0
"""The HTTP API as somebody meets it who means no good: bodies, headers and paths that no program of the user's would
send, and pages from elsewhere. Nothing is done that was not spelled out, nothing crashes, and none of it takes the
broker's memory, its log or its time."""

import base64
import gzip
import json
import socket
import threading
import time

import pytest

from asking import JSON, Asker, basic, crashes
from client import Client
from management import WITHIN, eventually, quoted
from node import HOUR_MS, evaluate
from test_redrive import park, topology

HEX = "0" * 32


@pytest.fixture(autouse=True)
def no_crash(broker):
    size = len(broker.log())
    yield
    assert not crashes(broker.log()[size:])


@pytest.fixture
def ask(broker):
    asker = Asker(broker, "guest")
    yield asker
    asker.close()


@pytest.fixture
def held(holding):
    """An exchange that holds six, as a path."""
    return f"/delayed-exchanges/%2F/{holding[0]}"


@pytest.fixture
def dead(vhost, local):
    """A queue with two dead letters, as a path."""
    work, parked = topology(local)
    park(local, work, parked, ["a", "b"])
    yield f"/dead-letters/{quoted(vhost)}/{quoted(parked)}"
    assert local.depth(parked) == 2


@pytest.fixture
def untouched(management, holding, held):
    def look():
        return (management.get(f"{held[1:]}/messages?body=true"), management.get(held[1:])["paused"])
    before = look()
    assert len(before[0]["items"]) == 6 and before[1] is False
    yield
    assert look() == before


def posts(held, dead):
    """Each POST, with a body that does something."""
    return {f"{held}/messages/cancel": {"all": True}, f"{held}/messages/release": {"all": True},
            f"{held}/messages/reschedule": {"all": True, "by": 1}, f"{held}/pause": {}, f"{dead}/redrive": {},
            f"{dead}/redrives": {}, f"{dead}/redrives/x/stop": {}, f"{dead}/messages/redrive": {"ids": [HEX]},
            f"{dead}/messages/drop": {"ids": [HEX]}, f"{dead}/messages/send": {"id": HEX}}


# ---------------------------------------------------------------------------------- bodies

def spoiled_bodies(good):
    text = json.dumps(good).encode()
    inner = text[1:-1] + (b"," if good else b"")
    return {
        "nothing": b"", "a blank": b" ", "cut": text[:-1], "a comma": b"{" + inner + b"}" if good else b"{,}",
        "a comment": text[:-1] + b"/* */}", "a line comment": b"// \n" + text, "two": text + text,
        "behind it": text + b"x",
        "a NUL": text + b"\0", "a byte order mark": "\ufeff".encode() + text, "UTF-16": text.decode().encode("utf-16"),
        "UTF-32": text.decode().encode("utf-32-le"), "no UTF-8": text[:-1] + b',"x":"\xff"}',
        "a surrogate": b"{" + inner + b'"x":"\xed\xa0\x80"}', "an array": b"[" + text + b"]",
        "a string": json.dumps(text.decode()).encode(), "null": b"null", "a number": b"1",
        "single quotes": text.replace(b'"', b"'") if good else b"{''}",
        "NaN": b"{" + inner + b'"x":NaN}', "no quotes": b"{" + inner + b"x:1}",
        "twice": b"{" + inner + b'"x":1,"x":1}', "twice, lines end between": b"{" + inner + b'"x"\r\n:1,"x"\r\n:1}',
        "a long number": b"{" + inner + b'"x":' + b"7" * 1_000_000 + b"}", "no float": b"{" + inner + b'"x":1e400}',
        "deep": b"{" + inner + b'"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        "deep and open": b'{"x":' * 200_000, "gzip": gzip.compress(text),
    }


def test_a_body_that_is_no_json_object_does_nothing(ask, held, dead, untouched):
    wrong = []
    for path, good in posts(held, dead).items():
        for what, body in spoiled_bodies(good).items():
            if body == b"" and path.endswith(("/pause", "/stop")):
                continue
            began = time.monotonic()
            status, headers, answer = ask("POST", path, body, JSON)
            took = time.monotonic() - began
            # Most of it is read in a millisecond; what a decoder makes of long numbers takes minutes.
            if status != 400 or took > 30 or not json.loads(answer)["reason"] or len(answer) > 1000:
                wrong.append((path, what, status, round(took, 1), answer[:200]))
    assert not wrong


def test_what_is_there_twice_is_not_carried_out(ask, held, dead, untouched):
    """Whatever ends a line: dry_run counts for who reads the request, and its second value for a decoder."""
    for path in (f"{held}/messages/cancel", f"{held}/messages/release", f"{dead}/redrive"):
        for between in (b"", b" ", b"\n", b"\r", b"\t", b"\r\n", b"\r\n\r\n", b" \r\n\t"):
            start = b"{" if path.endswith("redrive") else b'{"all": true, '
            for first, second in ((b'"dry_run"', b'"dry_run"'), (rb'"dry\u005frun"', b'"dry_run"')):
                body = start + first + between + b": true, " + second + between + b": false}"
                status, _, answer = ask("POST", path, body, JSON)
                assert (status, b"twice" in answer) == (400, True), (path, between, answer)


NUMBERS = ["1e400", "-1e400", "1e99", "-0.0", "1.0", "0.5", "1e0", str(2**63), str(-2**63 - 1), str(2**64), "9" * 999,
           "-" + "9" * 999, "null", '""', '"1e5"', '"0x10"', '"' + "9" * 1_000_000 + '"', '"+' + "9" * 1_000_000 + 'h"',
           '"\\u0661"', '"1\\u0000"', '"\\u0000"', "[1]", "{}", "true"]


def test_numbers_that_are_none_do_nothing(ask, held, dead, untouched):
    wrong = []
    for path, member, rest in [
            (f"{held}/messages/reschedule", "by", '"all": true'), (f"{held}/messages/reschedule", "to", '"all": true'),
            (f"{dead}/redrive", "limit", '"dry_run": true'), (f"{dead}/redrive", "rate", '"dry_run": true'),
            (f"{dead}/redrive", "older_than", '"dry_run": true'), (f"{dead}/redrive", "newer_than", '"dry_run": true'),
            (f"{held}/messages/cancel", "cursor", '"all": true, "dry_run": true'),
            (f"{held}/messages/cancel", "ids", ""), (f"{dead}/messages/drop", "ids", "")]:
        for number in NUMBERS:
            if (member, number) == ("cursor", "null"):
                continue
            body = f'{{"{member}": {number}{", " + rest if rest else ""}}}'
            began = time.monotonic()
            status, _, answer = ask("POST", path, body.encode(), JSON)
            if status != 400 or len(answer) > 4000 or time.monotonic() - began > 30:
                wrong.append((path, member, number[:20], status, answer[:200]))
    assert not wrong


def test_minus_nothing_is_nothing(ask, held, untouched):
    status, _, answer = ask("POST", f"{held}/messages/reschedule", b'{"filter": {"due_to": -0}, "by": -0}', JSON)
    assert (status, json.loads(answer)["matched"]) == (200, 0)


def test_a_body_may_come_in_parts(ask, held):
    for body in ((b"{", b'"all": true', b', "dry_run": true}'), [b"%c" % c for c in b'{"all": true, "dry_run": true}']):
        status, _, answer = ask("POST", f"{held}/messages/cancel", iter(body), JSON)
        assert (status, json.loads(answer)["matched"]) == (200, 6)


def test_what_is_too_large_is_refused(broker, held, dead, untouched):
    """Whether its length is said before or not; whoever sends it on is cut off."""
    for path, good in posts(held, dead).items():
        for chunked in (False, True):
            ask = Asker(broker, "guest")
            blanks = b" " * 2**20
            body = json.dumps(good).encode()[:-1]
            try:
                status, _, _ = ask("POST", path, iter([body] + [blanks] * 40 + [b"}"]) if chunked
                                   else body + blanks * 40 + b"}", JSON)
                assert status in (400, 413), (path, status)
            except ConnectionError:
                pass
            ask.close()


def test_slow_bodies_hold_up_nobody(broker, ask, held, untouched):
    sockets = []
    for _ in range(50):
        connection = socket.create_connection(("127.0.0.1", broker.management_port), timeout=WITHIN)
        connection.sendall(f"POST /api{held}/messages/cancel HTTP/1.1\r\nHost: x\r\nAuthorization: "
                           f"{basic('guest', 'guest')}\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
                           '{"all":'.encode())
        sockets.append(connection)
    for _ in range(20):
        assert ask("GET", f"{held}/messages")[0] == 200
        assert ask("POST", f"{held}/messages/cancel", b'{"all": true, "dry_run": true}', JSON)[0] == 200
    for connection in sockets:
        connection.close()


# --------------------------------------------------------------------------------- headers

CONDITIONS = [("GET", {"If-None-Match": "*"}, {304}), ("GET", {"If-Match": '"x"'}, {412}),
              ("GET", {"If-Match": "*"}, {200}), ("GET", {"If-None-Match": '"x"'}, {200, 412}),
              ("GET", {"Range": "bytes=0-0"}, {200}),
              ("GET", {"If-Modified-Since": "Sat, 29 Oct 2050 19:43:31 GMT"}, {200}),
              ("GET", {"If-Unmodified-Since": "Sat, 29 Oct 1994 19:43:31 GMT"}, {200}),
              ("POST", {"If-None-Match": "*"}, {412}), ("POST", {"If-Match": '"x"'}, {412}),
              ("DELETE", {"If-None-Match": "*"}, {412}), ("DELETE", {"If-Match": 'W/"x"'}, {412})]


@pytest.mark.parametrize("method, headers, wanted", CONDITIONS)
def test_conditions_hold(ask, held, untouched, method, headers, wanted):
    """Nothing has a tag or a time by which one would know it again."""
    path = f"{held}/messages" + ("/cancel" if method == "POST" else "")
    status, _, answer = ask(method, path, b'{"all": true}' if method == "POST" else None,
                            {**headers, **(JSON if method == "POST" else {})})
    assert status in wanted, answer
    assert status == 200 or not answer


ODD_HEADERS = [{"Accept": ";;;"}, {"Accept": "application/json;q=nonsense"}, {"Accept": "application/json;q=0"},
               {"Accept": "\xff"}, {"Accept": "*/*;q=2"}, {"Accept-Charset": "utf-16"}, {"Accept-Language": ";"},
               {"Accept-Encoding": "gzip;q=x"}, {"Accept-Encoding": "identity;q=0"}, {"If-Match": "nonsense"},
               {"If-None-Match": "\xff"}, {"Cookie": "=;;=\xff"}, {"Content-Type": "application/json; charset=utf-16"},
               {"Content-Type": "application/json;;"}, {"Content-Type": "application"}, {"Content-Type": "\xff/\xff"},
               {"Content-Encoding": "gzip"}, {"Expect": "nonsense"}, {"X-HTTP-Method-Override": "DELETE"},
               {"X-HTTP-Method": "DELETE"}, {"Origin": "\xff"}, {"Host": "\xff"}, {"Range": "bytes=-"},
               {"Sec-Fetch-Site": "\xff"}, {"Upgrade": "websocket", "Connection": "upgrade"}]


@pytest.mark.parametrize("headers", ODD_HEADERS, ids=str)
def test_odd_headers_are_no_error_of_ours(ask, held, dead, untouched, headers):
    for method, path in (("GET", f"{held}/messages"), ("GET", dead), ("HEAD", held), ("OPTIONS", held),
                         ("POST", f"{held}/messages/reschedule"), ("POST", f"{dead}/messages/drop")):
        body = b'{"by": 1}' if method == "POST" else None
        status, _, answer = ask(method, path, body, {**(JSON if body else {}), **headers})
        assert status < 500 and (method != "POST" or status in (400, 406, 415)), (method, path, status, answer)


CREDENTIALS = ["", "Basic", "Basic ", "Basic !!!", "Basic " + base64.b64encode(b"guest").decode(),
               "Basic " + base64.b64encode(b"\xff:\xff").decode(), "Basic " + base64.b64encode(b":").decode(),
               "Basic " + base64.b64encode(b"guest:" + b"x" * 5000).decode(), "Bearer x", "Bearer ", "Digest x", "\xff",
               "Basic " + base64.b64encode(b"guest:guest\0").decode()]


@pytest.mark.parametrize("credentials", CREDENTIALS, ids=lambda c: c[:20].encode("unicode_escape").decode())
def test_odd_credentials_open_nothing(ask, held, dead, untouched, credentials):
    for method, path, body in (("GET", f"{held}/messages", None), ("DELETE", f"{held}/messages", None),
                               ("GET", dead, None), ("GET", "/delayed-exchanges", None),
                               ("POST", f"{held}/messages/cancel", b'{"all": true}')):
        status, _, answer = ask(method, path, body, {**(JSON if body else {}), "Authorization": credentials})
        assert status in (400, 401, 431), (method, path, status, answer)


def test_head_is_get_without_its_body_and_options_tells_what_may_be(ask, held, dead):
    for path in ("/delayed-exchanges", held, f"{held}/messages", f"{held}/due-times", f"{held}/messages/77", dead,
                 f"{dead}/1", f"{dead}/messages", f"{dead}?max=x", "/dead-lettering", "/dead-letter-redrives"):
        got, head, options = (ask(method, path) for method in ("GET", "HEAD", "OPTIONS"))
        assert (head[0], head[2]) == (got[0], b"") and head[1]["content-type"] == got[1]["content-type"]
        assert options[0] == 200 and not options[2] and "GET" in options[1]["allow"]


# ----------------------------------------------------------------------------------- paths

ENDS = ["%2e", "%2e%2e", "%2E%2E%2Fmessages", "%c0%af", "%252F", "%", "%zz", "%u0041", "%00", "%0d%0aX:%20y", "a%00b",
        "%ff%fe", "%EF%BF%BF", "x" * 5000, "%41" * 1500, "..;", "a;b=c", "%3F", "%23", "+", "%20", "1%20", "%201",
        "1%00", "١", "1e0", "0x1", "18446744073709551616", "9" * 4000, "-0"]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end[:20])
def test_odd_paths_lead_nowhere(ask, held, dead, untouched, end):
    path = quoted(end) if not end.isascii() else end
    for method, start in (("GET", "/delayed-exchanges/"), ("GET", "/delayed-exchanges/%2F/"), ("POST", f"{held}/"),
                          ("GET", f"{held}/messages/"), ("DELETE", f"{held}/messages/"), ("POST", f"{held}/messages/"),
                          ("GET", f"{dead}/"), ("POST", f"{dead}/"), ("GET", f"{dead}/redrives/"),
                          ("GET", "/dead-lettering/")):
        body = b'{"all": true}' if method == "POST" else None
        status, _, answer = ask(method, start + path, body, JSON if body else {})
        # A dot is a path's own, and two, for who reads.
        good = {400, 401, 404, 405, 414} | ({200, 301} if method == "GET" and end.lower().startswith("%2e") else set())
        assert status in good, (method, start, status, answer)
        assert len(answer) < 40_000


QUERIES = ["limit=1&limit=2", "limit=1&limit=1", "limit=%31", "limit=1%00", "limit=+1", "limit=1.0", "limit=1e1",
           "limit=-0", "limit=" + "9" * 5000, "body=TRUE", "body=1", "body", "body_bytes=-1", "due_to=" + "9" * 5000,
           "due_to=1e400", "due_to=%00", "due_to=-0", "due_from=%2B" + "9" * 5000 + "h", "cursor=" + "00" * 2000,
           "cursor=%ff", "key=" + "x" * 5000, "header=" + "x" * 5000 + "%3D", "header=%3D", "x[]=1", "limit[]=1",
           "%6cimit=1&limit=2", "=", "&&&", ";", "limit=1;body=true", "%", "%zz=1", "%ff=1"]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query[:20])
def test_odd_queries_are_answered_in_words(ask, held, query):
    status, _, answer = ask("GET", f"{held}/messages?{query}")
    # Those are taken: a limit that is encoded, parameters that are none, times before all others.
    assert status == (200 if query in ("limit=%31", "&&&", "due_to=-0") else 400), answer
    assert len(answer) < 20_000 and json.loads(answer)


# ------------------------------------------------------------------------- pages from elsewhere

FOREIGN = [{"Origin": "http://elsewhere.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
           {"Sec-Fetch-Site": "same-site"}]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_from_elsewhere_looks_into_no_queue(broker, ask, dead, vhost, local, headers):
    """The browser would not show it the answer, but consumers would do without the messages meanwhile, and they are
    marked as redelivered."""
    queue = local.queue()
    local.publish("", queue, b"new")
    path = f"/dead-letters/{quoted(vhost)}/{quoted(queue)}"
    for end in ("", "/1", "/messages"):
        for method in ("GET", "HEAD"):
            assert ask(method, path + end, headers=headers)[0] == 403
    assert local.one(queue).method.redelivered is False
    env = "application:set_env(rabbitmq_management, cors_allow_origins, "
    evaluate(broker, env + '["http://elsewhere.example"]).')
    try:
        allowed = ask("GET", dead, headers={"Sec-Fetch-Site": "cross-site", "Origin": "http://elsewhere.example"})
        assert allowed[0] == 200 and allowed[1]["access-control-allow-origin"] == "http://elsewhere.example"
        assert ask("GET", dead, headers={"Origin": "http://another.example"})[0] == 403
    finally:
        evaluate(broker, env + "[]).")


def test_our_own_pages_and_programs_look(ask, dead):
    for headers in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert ask("GET", dead, headers=headers)[0] == 200


# ------------------------------------------------------------------------ the log and the memory

def test_no_line_of_the_log_is_forged_or_endless(broker, ask, held, vhost, local):
    work, parked = topology(local)
    park(local, work, parked, ["a"])
    path = f"/dead-letters/{quoted(vhost)}/{quoted(parked)}"
    _, _, answer = ask("GET", path + "/messages")
    (found,) = json.loads(answer)["messages"]
    size = len(broker.log())

    def send(status, **more):
        body = json.dumps({"id": found["id"], "keep": True, **more}).encode()
        got, _, answer = ask("POST", path + "/messages/send", body, JSON)
        assert got == status, answer

    send(400, properties={"type\n2027-01-01 [error] forged": None})
    send(400, headers={"CC": None})
    send(400, headers={f"h{n}": n for n in range(1001)})
    send(200, headers={f"{'é' * 100}\n{n}": "x" * 1000 for n in range(1000)})
    for body in ({"filter": {"header": "x=" + "é" * 1_000_000}}, {"filter": {"header": "x=" + "x" * 4095}},
                 {"filter": {"due_to": "x" * 1_000_000}}, {"x" * 1_000_000: 1},
                 {"filter": {"x" + "\u0301" * 1_000_000: 1}}):
        status, _, answer = ask("POST", f"{held}/messages/cancel", json.dumps(body).encode(), JSON)
        assert status == 400 and len(answer) < 2000
    body = json.dumps({"filter": {"header": "x=" + "\n" * 4094}}).encode()
    assert ask("POST", f"{held}/messages/cancel", body, JSON)[0] == 200
    log = eventually(lambda: broker.log()[size:], lambda log: "messages with header" in log)
    assert "another header" in log and len(log) < 100_000
    assert not [line for line in log.splitlines() if line.startswith("2027-01-01 [error]")]


def memory(broker):
    return int(evaluate(broker, "begin [garbage_collect(P) || P <- processes()], erlang:memory(total) end."))


def test_redrives_that_are_remembered_hold_no_more_than_they_show(broker, ask, vhost, local):
    queue = local.queue()
    path = f"/dead-letters/{quoted(vhost)}/{quoted(queue)}/redrives"
    targets = [f"{n:04}" + "x" * 1090 for n in range(1000)]
    assert ask("POST", path, json.dumps({"targets": [targets[0] + "x" * 10]}).encode(), JSON)[0] == 400
    before, begun = memory(broker), []
    padded = b'{"header": "n=' + b"x" * 100 + b'"' + b" " * 2**20 + b"}"
    for body in [padded] * 60 + [json.dumps({"targets": targets}).encode()] * 30:
        status, _, answer = ask("POST", path, body, JSON)
        while status == 409:
            status, _, answer = ask("POST", path, body, JSON)
        assert status == 202, answer
        begun.append(json.loads(answer)["id"])
    _, _, answer = ask("GET", path)
    kept = json.loads(answer)["redrives"]
    # The last ones are there, what they asked for included.
    assert [job["id"] for job in kept] == begun[:-1 - len(kept):-1] and 1 <= len(kept) < 30
    assert kept[0]["request"] == {"targets": targets}
    assert memory(broker) - before < 40 * 2**20


def test_many_who_count_at_a_time_are_served_in_turn(broker, held, untouched):
    """What one has counted takes a dirty scheduler meanwhile, of which there is one for each processor."""
    found, most = [], []

    def ask():
        asker = Asker(broker, "guest")
        for _ in range(20):
            status, _, answer = asker("GET", f"{held}/due-times")
            found.append((status, status == 503 or sum(b["messages"] for b in json.loads(answer)["buckets"])))
        asker.close()

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    counting = ("length([P || P <- processes(), {current_function, {rabbit_delay_store, count_until, 2}} <- "
                "[process_info(P, current_function)]]).")
    while any(thread.is_alive() for thread in threads):
        most.append(int(evaluate(broker, counting)))
    assert set(found) <= {(200, 6), (503, True)} and (200, 6) in found
    assert max(most) <= 1


def test_listings_in_parallel_and_half_read(broker, held, ask, untouched):
    """Of those who do not read what they asked for, the node goes on with others."""
    sockets = []
    for _ in range(100):
        connection = socket.create_connection(("127.0.0.1", broker.management_port), timeout=WITHIN)
        connection.sendall((f"GET /api{held}/messages?body=true HTTP/1.1\r\nHost: x\r\nAuthorization: "
                            f"{basic('guest', 'guest')}\r\n\r\n" * 20).encode())
        sockets.append(connection)
    for _ in range(20):
        assert ask("GET", f"{held}/messages?body=true")[0] == 200
    for connection in sockets:
        connection.close()
    assert ask("GET", f"{held}/messages?body=true")[0] == 200
