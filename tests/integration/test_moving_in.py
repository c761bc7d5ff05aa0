# SPDX-License-Identifier: MPL-2.0
"""Messages that the official plugin left in Mnesia: import_delayed_messages takes them over, and
export_delayed_messages --mnesia-dir reads them from the data directory of a node that does not run."""

import base64
import glob
import json
import os
import re
import shutil
import time

import pytest

from client import Client
from conftest import PLUGIN
from management import eventually
from node import HOUR_MS, evaluate, halt_beyond, kill_9, sync_metadata
from official import OfficialTables, resource
from test_transfer import file_name, start

DUE = int(time.time() * 1000) + 24 * HOUR_MS


def take_over(broker, *options, code=0):
    done = broker.ctl("import_delayed_messages", *options, check=False)
    assert done.returncode == code, done
    return done


def counts(broker, *options, code=0):
    done = take_over(broker, "--formatter", "json", *options, code=code)
    return json.loads(done.stdout.splitlines()[0])


def pending(broker, exchange, vhost="/"):
    return int(evaluate(broker, f"rabbit_delay_registry:pending({resource(exchange, vhost)})."))


def lines_of(broker, *arguments, vhost="/"):
    name = broker.path(file_name())
    done = broker.ctl("export_delayed_messages", "--vhost", vhost, "--file", name, *arguments,
                      check=False)
    assert done.returncode == 0, done
    with open(name, encoding="utf-8") as f:
        return [json.loads(line) for line in f], done


def bodies(lines):
    """Without what they are padded with."""
    return [base64.b64decode(line["body"]).decode().rstrip("\0") for line in lines]


@pytest.fixture(scope="module")
def mover(brokers):
    broker = brokers("moving-in", enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


@pytest.fixture(name="tables")
def empty_tables(mover):
    tables = OfficialTables(mover, evaluate)
    assert tables.count() == 0
    yield tables
    evaluate(mover, '[{atomic, ok} = mnesia:clear_table(T) || T <- mnesia:system_info(tables), '
             'lists:prefix("rabbit_delayed_message", atom_to_list(T))].')


@pytest.fixture(name="there")
def client_there(mover):
    client = Client(mover)
    yield client
    client.close()


def test_keeps_keys_headers_properties_and_due_times(mover, tables, there):
    exchange = there.delayed("direct", name="späte 'x'/\"1\"")
    queue = there.queue((exchange, "k"), (exchange, "copy"), (exchange, "hidden"))
    copies = there.queue((exchange, "copy"))
    hidden = there.queue((exchange, "hidden"))
    soon = int(time.time() * 1000) + 15_000
    tables.write_one(exchange, "soon", soon, '[{<<"x-delay">>, signedint, 9000}, '
                     '{<<"CC">>, array, [{longstr, <<"copy">>}]}, '
                     '{<<"BCC">>, array, [{longstr, <<"hidden">>}]}, '
                     '{<<"deep">>, table, [{<<"yes">>, bool, true}]}]', message_id="id é")
    tables.write_one(exchange, "overdue", 1000, '[{<<"x-delay">>, signedint, 9000}]')
    tables.write(exchange, range(100), DUE, per_ms=7)
    assert counts(mover) == {"found": 102, "imported": 102, "imported_before": 0, "left": 0,
                             "skipped": []}
    assert tables.count() == 0
    first = there.one(queue)
    assert first.text == "overdue" and first.headers["x-delay"] == -9000
    got, = there.collect(queue, 1)
    assert time.time() * 1000 >= soon
    assert got.text == "soon"
    assert got.headers == {"x-delay": -9000, "CC": ["copy"], "deep": {"yes": True}}
    properties = got.properties
    assert (properties.content_type, properties.delivery_mode, properties.priority,
            properties.correlation_id, properties.message_id, properties.timestamp,
            properties.app_id) == ("text/plain", 2, 3, "c", "id é", 1700000000, "app")
    assert there.texts(copies, 1) == ["soon"] and there.texts(hidden, 1) == ["soon"]
    lines, _ = lines_of(mover, "--", exchange)
    assert bodies(lines) == [f"m{n}" for n in range(100)]
    assert [line["due"] for line in lines] == [DUE + n // 7 for n in range(100)]
    assert sorted(lines[0]["headers"]) == [["n", "long", 0], ["x-delay", "signedint", 3600000]]
    # Again: nothing is there to be taken.
    assert counts(mover)["found"] == 0
    assert pending(mover, exchange) == 100


def test_says_how_to_remove_the_official_plugin(mover, tables, there):
    exchange = there.delayed()
    tables.write(exchange, range(3), DUE)
    told = take_over(mover)
    assert "3 of 3 messages" in told.stderr
    assert "3 imported, 0 left" in told.stdout
    assert "rabbitmq_delayed_message_exchange-*.ez" in told.stdout
    expression = re.search(r"rabbitmqctl eval '(.*)'", told.stdout).group(1)
    assert mover.ctl("eval", expression, check=False).stdout.count("{atomic,ok}") == 2
    assert take_over(mover, code=65).stderr.count("--mnesia-dir") == 1
    OfficialTables(mover, evaluate)


def test_a_message_id_is_a_key_afterwards(mover, tables, there):
    exchange, _ = there.delayed_and_queue()
    tables.write_one(exchange, "a", DUE, message_id="order 1")
    tables.write_one(exchange, "b", DUE, message_id="order 1",
                     headers='[{<<"x-delay-on-duplicate">>, longstr, <<"drop">>}]')
    tables.write_one(exchange, "c", DUE, headers='[{<<"x-delay-cancel">>, longstr, <<"order 1">>}]')
    assert counts(mover)["imported"] == 3
    assert pending(mover, exchange) == 3
    there.publish(exchange, headers={"x-delay-cancel": "order 1"})
    assert pending(mover, exchange) == 1


def test_vhosts(mover, tables, there):
    management_there = "späte v/host 1"
    mover.ctl("add_vhost", management_there)
    mover.ctl("set_permissions", "-p", management_there, "guest", ".*", ".*", ".*")
    other = Client(mover, management_there)
    theirs, ours = other.delayed(name="x y"), there.delayed(name="x y")
    tables.write(theirs, range(5), DUE, vhost=management_there)
    tables.write(ours, range(3), DUE)
    told = take_over(mover, "--vhost", management_there)
    assert "5 imported" in told.stdout and ".ez" not in told.stdout
    assert (pending(mover, theirs, management_there), pending(mover, ours)) == (5, 0)
    assert tables.count() == 3
    # A vhost without any delayed exchange, and one that is not there.
    assert counts(mover, "--vhost", "none")["found"] == 0
    assert counts(mover)["imported"] == 3
    other.close()
    mover.ctl("delete_vhost", management_there)


def test_what_cannot_be_taken_stays_and_is_named(mover, tables, there):
    good = there.delayed()
    full = there.delayed(arguments={"x-delay-max-length": 4})
    plain = there.exchange("direct")
    tables.write(good, range(10), DUE)
    tables.write(full, range(10), DUE, per_ms=5)
    tables.write(plain, range(2), DUE)
    tables.write("gone é", range(3), DUE, per_ms=3)
    tables.write("gone", range(1), DUE, vhost="no vhost")
    told = take_over(mover, code=1)
    assert "26 messages found in the official plugin's tables: 14 imported, 12 left" in told.stdout
    for row in [f'6: exchange "{full}" in vhost "/" is full', f'2: exchange "{plain}" in vhost "/" is not',
                '3: exchange "gone é" in vhost "/" does not exist',
                '1: exchange "gone" in vhost "no vhost" does not exist']:
        assert row in told.stdout
    assert "run it again" in told.stderr
    assert (pending(mover, good), pending(mover, full), tables.count()) == (10, 4, 12)
    lines, _ = lines_of(mover, full)
    assert bodies(lines) == ["m0", "m1", "m2", "m3"]
    # Mended as far as it can be.
    there.delayed(name="gone é")
    mover.ctl("purge_delayed_messages", full)
    again = counts(mover, code=1)
    assert (again["found"], again["imported"], again["left"]) == (12, 7, 5)
    assert {"vhost": "no vhost", "exchange": "gone", "reason": "no_exchange",
            "messages": 1} in again["skipped"]
    assert pending(mover, "gone é") == 3
    lines, _ = lines_of(mover, full)
    assert sorted(bodies(lines)) == ["m4", "m5", "m6", "m7"]


def test_more_than_the_limit_of_bytes_and_what_is_too_large(mover, tables, there):
    exchange = there.delayed(arguments={"x-delay-max-length-bytes": 100_000})
    for n in range(5):
        tables.write_one(exchange, f"{n}" * 40_000, DUE + n)
    found = counts(mover, code=1)
    assert (found["imported"], found["skipped"]) == (2, [
        {"vhost": "/", "exchange": exchange, "reason": "full", "messages": 3}])


def test_a_publisher_goes_on_beside_it(mover, tables, there):
    exchange, queue = there.delayed_and_queue()
    tables.write(exchange, range(20_000), DUE)
    command = start(mover, "import_delayed_messages")
    published = 0
    while command.poll() is None:
        there.publish(exchange, body=b"now", delay=1)
        published += 1
    assert command.wait() == 0, command.communicate()
    command.communicate()
    assert len(there.collect(queue, published)) == published
    assert pending(mover, exchange) == 20_000 and tables.count() == 0


def test_only_while_the_official_plugin_does_not_run(mover, tables, there):
    exchange = there.delayed()
    tables.write(exchange, range(2), DUE)
    evaluate(mover, "register(rabbit_delayed_message, spawn(fun () -> receive stop -> ok end end)).")
    told = take_over(mover, code=69)
    assert "disable --offline rabbitmq_delayed_message_exchange" in told.stderr
    evaluate(mover, "rabbit_delayed_message ! stop.")
    assert tables.count() == 2 and pending(mover, exchange) == 0
    assert counts(mover)["imported"] == 2


def test_one_at_a_time(mover, tables, there):
    exchange = there.delayed()
    tables.write(exchange, range(2), DUE)
    evaluate(mover, "(fun () -> Asks = self(), register(holder, spawn(fun () -> "
             "true = global:set_lock({rabbit_delay_official_tables, self()}, [node()]), "
             "Asks ! holds, receive stop -> ok end end)), receive holds -> ok end end)().")
    assert "another import" in take_over(mover, code=69).stderr
    evaluate(mover, "holder ! stop.")
    eventually(lambda: counts(mover), lambda found: found["left"] == 0)
    assert pending(mover, exchange) == 2


def test_wrong_use(mover):
    for code, *options in [(65, "--exchange", "x"), (65, "--from-line", "2"), (64, "x")]:
        take_over(mover, *options, code=code)


@pytest.mark.parametrize("way", ["kill9", "stop"])
def test_the_broker_ends_in_the_middle(brokers, way):
    broker = brokers(f"official-{way}", enable=(PLUGIN,))
    client = Client(broker)
    one, other = client.delayed(keep=True), client.delayed(keep=True)
    tables = OfficialTables(broker, evaluate)
    tables.write(one, range(15_000), DUE, per_ms=3, size=4096)
    tables.write(one, range(15_000, 17_000), DUE + 2000, per_ms=2000)
    tables.write(other, range(17_000, 24_000), DUE, size=4096)
    total = 24_000
    sync_metadata(broker)
    for _ in (1, 2):
        held = pending(broker, one)
        halt_beyond(broker, resource(one), held)
        command = start(broker, "import_delayed_messages")
        eventually(lambda: pending(broker, one), lambda n, to=held: n > to)
        getattr(broker, way)()
        _, told = command.communicate(timeout=300)
        assert command.returncode == 69 and "run it again" in told, told
        broker.start()
        # Until then it counts up to what it had.
        eventually(lambda: evaluate(broker, "rabbit_delay_dispatcher:await_ready("
                                            f"rabbit_delay_registry:dispatcher({resource(one)}), "
                                            "10000)."), lambda ready: ready == "ok")
        tables = OfficialTables(broker, evaluate)
        assert 0 < tables.count() <= total
    done = counts(broker)
    assert done["left"] == 0 and done["found"] == done["imported"] + done["imported_before"]
    assert (pending(broker, one), pending(broker, other)) == (17_000, 7_000)
    for exchange, numbers in [(one, range(17_000)), (other, range(17_000, 24_000))]:
        lines, _ = lines_of(broker, exchange)
        assert sorted(bodies(lines)) == sorted(f"m{n}" for n in numbers)
    assert counts(broker)["found"] == 0
    broker.end()


def under_way(broker):
    """The places in their sessions of what the note says to be under way, and of how many messages each is."""
    said = evaluate(broker, "[{S, N, byte_size(I) div 8} || {_, {S, N}, I} <- element(1, "
                            "rabbit_delay_official_note:under_way(rabbit_delay_official_note:read()))].")
    return [tuple(map(int, place)) for place in re.findall(r"{(\d+),(\d+),(\d+)}", re.sub(r"\s", "", said))]


def server(exchange):
    return f"rabbit_delay_raft:server_id({resource(exchange)})"


def come_late(broker, exchange, places):
    """What a leader that was replaced had of an import, and sends on now: messages of another body, to tell."""
    for session, number, _ in places:
        said = evaluate(broker, "element(2, ra:process_command(%s, {enqueue, 1, %d, %d, {none, %d}, iolist_to_binary("
                                "[rabbit_delay_store:record_header(4, 1, 0, %d, 0), <<\"late\">>])}, 30000))." %
                        (server(exchange), session, number, DUE, DUE))
        assert said == "ok", said


@pytest.mark.parametrize("room", ["enough", "too little at first"])
def test_what_was_under_way_when_the_broker_ended_and_comes_late_is_not_taken_twice(brokers, room):
    broker = brokers(f"official-late-{room[0]}", enable=(PLUGIN,))
    client = Client(broker)
    one, other = client.delayed(keep=True), client.delayed(keep=True)
    tables = OfficialTables(broker, evaluate)
    tables.write(one, range(3000), DUE, per_ms=3, size=4096)
    # Its member is there.
    client.publish(one, body=b"first", delay=24 * HOUR_MS)
    sync_metadata(broker)
    evaluate(broker, f"sys:suspend(element(1, {server(one)})).")
    command = start(broker, "import_delayed_messages")
    sent = eventually(lambda: under_way(broker), lambda places: len(places) > 1)
    broker.kill9()
    _, told = command.communicate(timeout=300)
    assert command.returncode == 69, told
    broker.start()
    tables = OfficialTables(broker, evaluate)
    assert (under_way(broker), tables.count()) == (sent, 3000)
    tables.write(other, range(3000, 3500), DUE)
    if room != "enough":
        # For the first of them, not for the second: the others go on, and it waits.
        fits = sent[0][2] + 10
        broker.ctl("set_policy", "limited", f"^{one}$", json.dumps({"delay-max-length": fits}),
                   "--apply-to", "exchanges")
        found = counts(broker, code=1)
        assert (pending(broker, one), pending(broker, other)) == (1 + sent[0][2], 500)
        assert [(row["exchange"], row["reason"]) for row in found["skipped"]] == [(one, "full")]
        assert found["left"] == tables.count() == 3000 - sent[0][2]
        broker.ctl("clear_policy", "limited")
    done = counts(broker)
    assert done["left"] == 0 and tables.count() == 0
    assert (pending(broker, one), pending(broker, other)) == (3001, 500)
    come_late(broker, one, sent)
    assert pending(broker, one) == 3001
    lines, _ = lines_of(broker, one)
    assert sorted(bodies(lines)) == sorted([f"m{n}" for n in range(3000)] + ["first"])
    broker.end()


def test_the_log_says_that_there_is_something_to_import(brokers):
    broker = brokers("official-announced", enable=(PLUGIN,))
    tables = OfficialTables(broker, evaluate)
    tables.write("later", range(3), DUE)
    if broker.series == "4.3":
        pytest.skip("RabbitMQ 4.3 does not start Mnesia")
    broker.restart()
    eventually(broker.log, lambda log: "3 messages of the official delayed-message plugin" in log)
    broker.end()


# ------------------------------------------------------------------- a directory of a stopped node

@pytest.mark.parametrize("way", ["kill9", "stop"])
def test_from_the_directory_of_a_stopped_node(brokers, mover, there, way):
    old = brokers(f"official-files-{way}", enable=(PLUGIN,))
    tables = OfficialTables(old, evaluate)
    name = "späte x/1"
    tables.write(name, range(1000), DUE, per_ms=4)
    evaluate(old, "mnesia:dump_log().")
    tables.write(name, range(1000, 3000), DUE + 1000, per_ms=4)
    tables.delete(DUE)
    tables.delete(DUE + 1000)
    evaluate(old, "mnesia:dump_log().")
    tables.write(name, range(3000, 3100), DUE + 2000)
    tables.write("theirs", range(7), DUE, vhost="other vhost")
    tables.delete(DUE + 2000)
    if way == "kill9":
        kill_9(old)
    else:
        old.stop()
    directory = mover.path(f"old node's dir {way}")
    shutil.copytree(old.data_dir, directory)
    old.end()
    expected = [f"m{n}" for n in range(3100) if n not in (0, 1, 2, 3, 1000, 1001, 1002, 1003, 3000)]
    lines, told = lines_of(mover, "--mnesia-dir", directory)
    assert f"{len(expected)} messages exported" in told.stdout
    assert 'left out: 7 of vhost "other vhost"' in told.stdout
    assert sorted(bodies(lines)) == sorted(expected)
    assert {line["exchange"] for line in lines} == {name}
    assert min(line["due"] for line in lines) == DUE + 1
    theirs, _ = lines_of(mover, "--mnesia-dir", directory, vhost="other vhost")
    assert sorted(bodies(theirs)) == [f"m{n}" for n in range(7)]
    assert lines_of(mover, "--mnesia-dir", directory, "another")[0] == []
    # Into a broker of any series.
    there.delayed(name=name)
    with open(mover.path("moved"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    mover.ctl("import_delayed_messages", "--file", mover.path("moved"))
    assert pending(mover, name) == len(expected)
    # A log that ends in the middle of a record.
    logs = [f for f in glob.glob(os.path.join(glob.escape(directory), "LATEST.LOG"))
            if os.path.getsize(f) > 1000]
    for log in logs:
        with open(log, "r+b") as f:
            f.truncate(os.path.getsize(log) - 11)
        fewer, told = lines_of(mover, "--mnesia-dir", directory)
        assert "were not written whole" in told.stdout
        assert 0 < len(fewer) <= len(expected) + 1
    shutil.rmtree(directory)


def test_a_directory_that_has_no_such_table(mover):
    for directory in (mover.path("log"), mover.path("no such")):
        done = mover.ctl("export_delayed_messages", "--mnesia-dir", directory, "--file",
                         mover.path("nothing"), check=False)
        assert done.returncode == 65 and "rabbit_delayed_message" in done.stderr, done
    assert not os.path.exists(mover.path("nothing"))
