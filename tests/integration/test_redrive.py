# SPDX-License-Identifier: MPL-2.0
"""dead_letter_stats, explain_dead_letter and redrive_dead_letters: what they move, what they leave, and
that nothing is lost whatever happens meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest

from client import Client
from conftest import PLUGIN
from management import WITHIN, eventually
from node import evaluate


@pytest.fixture(params=["classic", "quorum"])
def kind(request):
    return request.param


def topology(client, kind="classic", work="work é/'x", parked="parked q", **arguments):
    """A queue whose dead letters go to another, which is of that kind."""
    client.queue(name=parked, arguments={"x-queue-type": kind, **arguments})
    client.queue(name=work, arguments={"x-dead-letter-exchange": "",
                                       "x-dead-letter-routing-key": parked})
    return work, parked


def reject_all(client, queue, n):
    """Rejects so many messages of the queue."""
    channel = client.connection.channel()
    for _ in range(n):
        deadline = time.monotonic() + WITHIN
        while not (method := channel.basic_get(queue)[0]):
            assert time.monotonic() < deadline, "no message"
        channel.basic_reject(method.delivery_tag, requeue=False)
    channel.close()


def park(client, work, parked, bodies, **properties):
    """Dead letters with these bodies."""
    before = depth(client, parked)
    for body in bodies:
        client.publish("", work, body.encode(), **properties)
    reject_all(client, work, len(bodies))
    eventually(lambda: depth(client, parked), lambda n: n == before + len(bodies))


def depth(client, queue):
    return client.depth(queue)


def redrive(broker, vhost, queue, *options, check=0):
    done = broker.ctl("redrive_dead_letters", "--vhost", vhost, "--formatter", "json", *options,
                      "--", queue, check=False)
    assert done.returncode == check, done
    return json.loads(done.stdout) if done.stdout.startswith("{") else done


def counts(report):
    """Without what is zero."""
    return {key: value for key, value in report.items()
            if isinstance(value, int) and value and key != "version"}


# ------------------------------------------------------------------------------ what it moves

def test_back_to_the_queue_of_origin(broker, local, vhost, kind):
    work, parked = topology(local, kind)
    bodies = [f"m{n}" for n in range(30)]
    park(local, work, parked, bodies, headers={"who": "é", "n": 7}, content_type="text/x",
         message_id="id", priority=3)
    report = redrive(broker, vhost, parked)
    assert counts(report) == {"total": 30, "examined": 30, "redriven": 30}
    assert report["targets"] == {f"queue {work}": 30} and report["stopped"] is None
    got = local.collect(work, 30)
    assert [delivery.text for delivery in got] == bodies
    headers = got[0].headers
    assert (headers["who"], headers["n"], headers["x-redrive-count"]) == ("é", 7, 1)
    assert not [name for name in headers if "death" in name]
    properties = got[0].properties
    assert (properties.content_type, properties.message_id, properties.priority,
            properties.delivery_mode) == ("text/x", "id", 3, 2)
    assert depth(local, parked) == 0


def test_it_goes_where_it_died_last(broker, local, vhost):
    """Not to the queue that only delayed it before."""
    work, parked = topology(local)
    local.queue(name="wait", arguments={"x-dead-letter-exchange": "", "x-message-ttl": 5,
                                        "x-dead-letter-routing-key": work})
    local.publish("", "wait", b"m")
    reject_all(local, work, 1)
    eventually(lambda: depth(local, parked), lambda n: n == 1)
    assert redrive(broker, vhost, parked)["targets"] == {f"queue {work}": 1}


def test_to_where_it_is_told(broker, local, vhost, kind):
    work, parked = topology(local, kind)
    source = local.exchange("topic", name="source x")
    local.channel.queue_bind(work, source, "orders.*")
    other = local.queue((source, "orders.#"), (source, "cc"), name="other q")
    for n in range(4):
        local.publish(source, f"orders.{n}", b"m", headers={"CC": ["cc"]})
    local.collect(other, 4)
    reject_all(local, work, 4)
    eventually(lambda: depth(local, parked), lambda n: n == 4)
    assert redrive(broker, vhost, parked, "--limit", "1", "--to-queue", other)["redriven"] == 1
    assert "CC" not in local.one(other).headers
    assert redrive(broker, vhost, parked, "--limit", "1", "--to-exchange", source,
                   "--routing-key", "cc")["targets"] == {"exchange source x key cc": 1}
    assert local.one(other).method.routing_key == "cc"
    redrive(broker, vhost, parked, "--limit", "1", "--to-exchange", source)
    assert local.one(other).method.routing_key == "orders.2"
    report = redrive(broker, vhost, parked, "--to-original-exchange")
    assert report["targets"] == {"exchange source x key orders.3": 1}
    assert local.one(other).method.routing_key == "orders.3"


def test_what_would_go_to_where_was_not_shown_stays(broker, local, vhost):
    """It comes when the others' targets have been shown, and overtakes them."""
    many = 1000
    work, parked = topology(local, **{"x-max-priority": 5})
    park(local, work, parked, [f"m{n}" for n in range(many)])
    late, _ = topology(local, work="late w", parked=parked, **{"x-max-priority": 5})
    # The rate lets it be moved in 20 s: long after that it has overtaken them.
    tool = broker.start_tool("rabbitmqctl", "--formatter", "json", "redrive_dead_letters", "--vhost",
                             vhost, "--rate", "50", "--", parked)
    try:
        eventually(lambda: local.depth(work), lambda n: n >= 1)
        local.publish("", late, b"late", priority=5)
        reject_all(local, late, 1)
    finally:
        output, errors = tool.communicate(timeout=WITHIN)
    report = json.loads(output)
    assert report["targets"] == {f"queue {work}": many - 1}, errors
    assert (report["examined"], report["no_target"]) == (many, 1)
    assert local.depth(late) == 0
    assert sorted(local.texts(parked, 2)) == ["late", f"m{many - 1}"]


def test_filters_leave_the_others_in_their_place(broker, local, vhost, kind):
    work, parked = topology(local, kind)
    local.queue(name="second", arguments={"x-dead-letter-exchange": "", "x-message-ttl": 5,
                                          "x-dead-letter-routing-key": parked})
    for n in range(6):
        park(local, work, parked, [f"r{n}"], headers={"even": str(n % 2 == 0)})
        local.publish("", "second", f"e{n}".encode())
        eventually(lambda: depth(local, parked), lambda found: found == 2 * n + 2)
    report = redrive(broker, vhost, parked, "--dry-run", "--reason", "expired")
    assert counts(report) == {"total": 12, "examined": 12, "redriven": 6, "skipped": 6}
    assert depth(local, parked) == 12
    assert redrive(broker, vhost, parked, "--origin", "nowhere")["skipped"] == 12
    assert redrive(broker, vhost, parked, "--older-than", "1000")["skipped"] == 12
    report = redrive(broker, vhost, parked, "--origin", work, "--reason", "rejected", "--header",
                     "even=True", "--newer-than", "1000")
    assert counts(report) == {"total": 12, "examined": 12, "redriven": 3, "skipped": 9}
    assert local.texts(work, 3) == ["r0", "r2", "r4"]
    eventually(lambda: depth(local, parked), lambda found: found == 9)
    left = local.texts(parked, 9)
    assert sorted(left) == sorted(["e0", "r1", "e1", "e2", "r3", "e3", "e4", "r5", "e5"])
    if kind == "classic":
        assert left == ["e0", "r1", "e1", "e2", "r3", "e3", "e4", "r5", "e5"]


def test_more_are_skipped_than_fit_into_a_window(broker, local, vhost, kind):
    work, parked = topology(local, kind)
    channel = local.channel
    for n in range(2500):
        channel.basic_publish("", parked, b"none")
    eventually(lambda: depth(local, parked), lambda found: found == 2500)
    park(local, work, parked, ["wanted"])
    report = redrive(broker, vhost, parked, "--reason", "rejected")
    assert counts(report) == {"total": 2501, "examined": 2501, "redriven": 1, "skipped": 2500}
    assert local.one(work).text == "wanted"
    eventually(lambda: depth(local, parked), lambda found: found == 2500)


def test_many_are_moved_once(broker, local, vhost, kind):
    _, parked = topology(local, kind)
    target = local.queue(arguments={"x-queue-type": kind})
    for _ in range(20_000):
        local.channel.basic_publish("", parked, b"m")
    eventually(lambda: depth(local, parked), lambda n: n == 20_000)
    assert redrive(broker, vhost, parked, "--to-queue", target)["redriven"] == 20_000
    assert (depth(local, parked), depth(local, target)) == (0, 20_000)


def test_limit_rate_and_the_count(broker, local, vhost):
    work, parked = topology(local)
    park(local, work, parked, [f"m{n}" for n in range(30)])
    began = time.monotonic()
    report = redrive(broker, vhost, parked, "--limit", "20", "--rate", "10")
    assert time.monotonic() - began > 1.7
    assert report["redriven"] == 20
    assert local.texts(work, 20) == [f"m{n}" for n in range(20)]
    eventually(lambda: depth(local, parked), lambda n: n == 10)
    redrive(broker, vhost, parked, "--keep-x-death")
    reject_all(local, work, 10)
    eventually(lambda: depth(local, parked), lambda n: n == 10)
    redrive(broker, vhost, parked, "--keep-x-death")
    headers = local.one(work).headers
    assert headers["x-redrive-count"] == 2 and headers["x-death"][0]["queue"] == work


def test_a_quorum_queue_does_not_drop_what_is_looked_at_too_often(broker, local, vhost):
    work, parked = topology(local, "quorum", **{"x-delivery-limit": 2})
    park(local, work, parked, ["a", "b"])
    for _ in range(6):
        report = redrive(broker, vhost, parked, "--reason", "expired")
        assert report["skipped"] == 2
        eventually(lambda: depth(local, parked), lambda n: n == 2)
    assert sorted(local.texts(parked, 2)) == ["a", "b"]


# -------------------------------------------------------------------------- what it does not move

def test_what_would_come_back_at_once_is_refused(broker, local, vhost):
    work, parked = topology(local)
    park(local, work, parked, ["m"])
    refused = redrive(broker, vhost, parked, "--to-queue", parked, check=65)
    assert "at once" in refused.stderr
    local.queue(name="mirror", arguments={"x-dead-letter-exchange": "", "x-message-ttl": 0,
                                          "x-dead-letter-routing-key": parked})
    refused = redrive(broker, vhost, parked, "--to-queue", "mirror", check=65)
    assert "at once" in refused.stderr
    back = local.exchange("fanout")
    local.channel.queue_bind(parked, back, "")
    refused = redrive(broker, vhost, parked, "--to-exchange", back, "--routing-key", "k", check=65)
    assert "at once" in refused.stderr
    refused = redrive(broker, vhost, parked, "--to-queue", "none", check=65)
    assert "no queue is there" in refused.stderr
    assert depth(local, parked) == 1


def test_a_target_of_its_own_that_would_loop_or_is_gone(broker, local, vhost):
    work, parked = topology(local)
    local.queue(name="self", arguments={"x-dead-letter-exchange": "",
                                        "x-dead-letter-routing-key": "self"})
    local.publish("", "self", b"m")
    reject_all(local, "self", 1)
    eventually(lambda: depth(local, "self"), lambda n: n == 1)
    assert counts(redrive(broker, vhost, "self", check=1)) == {
        "total": 1, "examined": 1, "would_loop": 1}
    park(local, work, parked, ["m"])
    local.channel.queue_delete(work)
    assert counts(redrive(broker, vhost, parked, check=1)) == {
        "total": 1, "examined": 1, "unroutable": 1}
    assert depth(local, parked) == 1


def test_a_target_that_goes_meanwhile(broker, local, vhost, kind):
    work, parked = topology(local, kind)
    park(local, work, parked, [f"m{n}" for n in range(20)])
    with running(broker, vhost, parked, "--rate", "2") as command:
        eventually(lambda: depth(local, work), lambda n: n >= 2)
        local.channel.queue_delete(work)
        out, _ = command.communicate(timeout=300)
    report = json.loads(out)
    assert command.returncode == 1
    assert report["unroutable"] > 0 and report["redriven"] + report["unroutable"] == 20
    eventually(lambda: depth(local, parked), lambda n: n == report["unroutable"])


def test_a_target_that_rejects(broker, local, vhost, kind):
    work, parked = topology(local, kind)
    park(local, work, parked, [f"m{n}" for n in range(50)])
    full = local.queue(arguments={"x-max-length": 10, "x-overflow": "reject-publish"})
    report = redrive(broker, vhost, parked, "--to-queue", full, check=1)
    assert report["refused"] > 0 and report["stopped"] == "the target does not take messages"
    moved = depth(local, full)
    assert moved == report["redriven"] >= 10
    eventually(lambda: depth(local, parked), lambda n: n == 50 - moved)
    texts = local.texts(full, moved) + local.texts(parked, 50 - moved)
    assert sorted(texts) == sorted(f"m{n}" for n in range(50))


FORGED = ["text", 7, [], ["text"], [7, {"queue": 7}], [{"reason": "x"}],
          {"queue": "q"}, [{"queue": "no such queue", "count": -1, "time": "t",
                            "routing-keys": "k", "reason": ["r"]}],
          [{"queue": "q", "reason": "invented", "count": 2 ** 62, "routing-keys": [1]}] * 300]


def test_history_that_a_client_forged(broker, local, vhost, kind):
    _, parked = topology(local, kind)
    for forged in FORGED:
        local.publish("", parked, b"m", headers={"x-death": forged, "x-redrive-count": "many",
                                                 "x-first-death-queue": 7})
    report = redrive(broker, vhost, parked, check=1)
    assert report["redriven"] == 0 and report["unroutable"] + report["no_target"] == len(FORGED)
    eventually(lambda: depth(local, parked), lambda n: n == len(FORGED))
    rows = json.loads(broker.ctl("--quiet", "dead_letter_stats", "--vhost", vhost, "--formatter",
                                 "json", parked))
    assert sum(row["messages"] for row in rows) == len(FORGED)
    for position in range(1, len(FORGED) + 1):
        told = evaluate(broker, "rabbit_delay_dead_letter_stats:explain(" + ", ".join(
            "<<" + ",".join(map(str, text.encode())) + ">>" for text in (vhost, parked))
            + f", {position}).")
        assert told.startswith("{ok,"), told


# --------------------------------------------------------------------------- looking without taking

def stats(broker, vhost, queue, *options):
    return json.loads(broker.ctl("--quiet", "dead_letter_stats", "--vhost", vhost, "--formatter",
                                 "json", *options, queue))


def test_stats_group_and_leave_everything_there(broker, local, vhost, kind):
    work, parked = topology(local, kind)
    source = local.exchange("direct", name="source")
    local.channel.queue_bind(work, source, "k")
    for n in range(3):
        local.publish(source, "k", f"s{n}".encode())
    reject_all(local, work, 3)
    eventually(lambda: depth(local, parked), lambda n: n == 3)
    park(local, work, parked, ["d0", "d1"])
    eventually(lambda: depth(local, parked), lambda n: n == 5)
    rows = stats(broker, vhost, parked)
    assert [(row["first_queue"], row["reason"], row["exchange"], row["routing_key"],
             row["messages"]) for row in rows] == [(work, "rejected", "source", "k", 3),
                                                   (work, "rejected", "", work, 2)]
    assert all(0 <= row["newest_s"] <= row["oldest_s"] < 60 for row in rows)
    assert sum(row["messages"] for row in stats(broker, vhost, parked, "--limit", "2")) == 2
    eventually(lambda: depth(local, parked), lambda n: n == 5)
    # One that no consumer has seen before: others may be marked from the queue that they died in.
    local.publish("", parked, b"new")
    assert len(stats(broker, vhost, parked)) == 3
    eventually(lambda: depth(local, parked), lambda n: n == 6)
    got = local.collect(parked, 6)
    assert [delivery.text for delivery in got] == ["s0", "s1", "s2", "d0", "d1", "new"]
    assert got[-1].method.redelivered == (kind == "classic")
    assert stats(broker, vhost, parked) == []


def test_explain_tells_a_history(broker, local, vhost, kind, tmp_path):
    work, parked = topology(local, kind)
    local.queue(name="wait", arguments={"x-dead-letter-exchange": "",
                                        "x-dead-letter-routing-key": work})
    local.publish("", "wait", b"m", expiration="5")
    reject_all(local, work, 1)
    eventually(lambda: depth(local, parked), lambda n: n == 1)
    told = broker.ctl("explain_dead_letter", "--vhost", vhost, parked).splitlines()
    assert told[0] == 'It was published to the default exchange with the key "wait".'
    assert told[1].startswith('First it died in queue "wait": its own TTL of 5 ms had passed, on 2')
    assert told[2].startswith(f'Then it died in queue "{work}": a consumer rejected it')
    assert told[3:] == ["It died 2 times in all.", f'Now it is in queue "{parked}".']
    for queue, position, why in ((parked, "2", "the queue has 1 message\n"), ("none", "1", "no queue 'none'")):
        told_not = broker.ctl("explain_dead_letter", "--vhost", vhost, "--position", position, queue, check=False)
        assert told_not.returncode == 65 and why in told_not.stderr, told_not
    assert depth(local, parked) == 1
    headers = local.one(parked).headers
    for death in headers["x-death"]:
        death["time"] = int(death["time"].timestamp())
    for name, content in (("a", headers), ("b", {"properties": {"headers": headers}})):
        file = broker.path(f"{name}.json")
        with open(file, "w", encoding="utf-8") as f:
            json.dump(content, f)
        assert broker.ctl("explain_dead_letter", "--file", file).splitlines() == told[:-1]
    for content in ("{", "[]", ""):
        with open(file, "w", encoding="utf-8") as f:
            f.write(content)
        assert broker.ctl("explain_dead_letter", "--file", file, check=False).returncode == 65


# ------------------------------------------------------------------------------------- faults

@contextlib.contextmanager
def running(broker, vhost, queue, *options):
    command = broker.start_tool("rabbitmqctl", "redrive_dead_letters", "--vhost", vhost,
                                "--formatter", "json", *options, "--", queue)
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.wait(300)


def test_it_is_told_apart_from_other_consumers_and_ends_with_the_command(broker, local, vhost):
    work, parked = topology(local)
    park(local, work, parked, [f"m{n}" for n in range(40)])
    with running(broker, vhost, parked, "--rate", "1"):
        tags = eventually(lambda: broker.rows("list_consumers", "--vhost", vhost, "queue_name",
                                              "consumer_tag"), lambda rows: rows)
        assert tags == [{"queue_name": parked, "consumer_tag": "redrive_dead_letters.1"}]
        eventually(lambda: depth(local, work), lambda n: n >= 2)
    moved = eventually(lambda: (depth(local, work), depth(local, parked)),
                       lambda depths: sum(depths) == 40 and depths[1] > 0)
    assert moved[0] < 40
    assert broker.rows("list_consumers", "--vhost", vhost, "queue_name") == []


@pytest.mark.parametrize("way", ["kill9", "stop"])
def test_the_broker_ends_in_the_middle(brokers, kind, way):
    broker = brokers(f"redrive-{kind}-{way}", enable=(PLUGIN,))
    client = Client(broker)
    work, parked = topology(client, kind, work="work")
    bodies = [f"m{n}" for n in range(1500)]
    # Confirmed: what a queue dead-letters is not safe from a crash at once.
    for body in bodies:
        client.publish("", parked, body.encode())
    with running(broker, "/", parked, "--to-queue", work, "--rate", "150") as command:
        eventually(lambda: depth(client, work), lambda n: n > 100, every=0.02)
        getattr(broker, way)()
        command.communicate(timeout=300)
        assert command.returncode != 0
    broker.start()
    client = Client(broker)
    in_work, in_parked = (everything(client, queue) for queue in (work, parked))
    assert in_work and in_parked
    assert {*in_work, *in_parked} == set(bodies)
    # A classic queue that is killed has again what it had not written yet of acknowledgements, too.
    if (kind, way) != ("classic", "kill9"):
        assert len(in_work) + len(in_parked) <= len(bodies) + 500, "more than was in flight came twice"
    client.connection.close()
    broker.end()


def everything(client, queue):
    """What is in a queue. A count of it may be of before the crash still."""
    client.publish("", queue, b"marker")
    got = client.consume(queue, lambda got: got and got[-1].body == b"marker", 60, prefetch=1)
    assert got[-1].body == b"marker"
    return [delivery.text for delivery in got[:-1]]


def test_who_may_not_use_rabbitmqctl_may_not_use_these(broker, local, vhost):
    _, parked = topology(local)
    stranger = {**broker.environment(), "RABBITMQ_ERLANG_COOKIE": "not the cookie"}
    for command in (["check_dead_lettering"], ["dead_letter_stats", parked],
                    ["explain_dead_letter", parked], ["redrive_dead_letters", parked],
                    ["export_delayed_messages", "--file", broker.path("x"), parked],
                    ["import_delayed_messages", "--file", "/dev/null"]):
        done = subprocess.run(
            broker.tool_argv("rabbitmqctl", *command, "--vhost", vhost,
                             "--erlang-cookie", "not-the-cookie"),
            env=stranger, cwd=broker.root, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=300, check=False)
        assert done.returncode not in (0, 1), (command, done)


@pytest.mark.parametrize("arguments, code", [
    ([], 64), (["a", "b"], 64), (["q", "--limit", "0"], 65), (["q", "--header", "x"], 65),
    (["q", "--to-queue", "a", "--to-exchange", "b"], 65), (["q", "--routing-key", "a"], 65),
    (["q", "--reason", "foo"], 65), (["q", "--reason", ""], 65), (["q", "--older-than", "1y"], 65),
    (["q", "--newer-than", "-1"], 65),
    (["no such queue"], 65), (["q", "--vhost", "no such vhost"], 65), (["q", "--bad"], 64)])
def test_wrong_use(broker, arguments, code):
    assert broker.ctl("redrive_dead_letters", *arguments, check=False).returncode == code
