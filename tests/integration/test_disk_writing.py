# SPDX-License-Identifier: MPL-2.0
"""A store whose files cannot be written to, and file descriptors that run out: publishers are told,
nothing that was confirmed is lost, whatever else there is goes on, and all recovers by itself."""

import glob
import os
import resource
import shutil
import uuid

import pika
import pika.exceptions
import pytest

import wire
from client import Client
from conftest import PLUGIN
from management import eventually
from metrics import Metrics
from node import HOUR_MS, evaluate, kill_9, set_clock
from test_faults import assert_serves_others, publish_until_refused, publishes

MIB = 1 << 20


def store_dirs(broker):
    return {os.path.dirname(path) for path in
            glob.glob(broker.path("data", "*", "quorum", "delayed", "D*", "delay_store", "MANIFEST"))}


def descriptors(broker, part=""):
    """The file descriptors of the Erlang VM, of files whose name contains `part`."""
    names = []
    for fd in os.listdir(f"/proc/{broker.pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{broker.pid}/fd/{fd}"))
        except OSError:
            pass
    return [name for name in names if part in name]


# ------------------------------------------------------------------- writes that fail

def test_a_store_that_cannot_be_written_to(brokers, mountpoint):
    """Only the files of one exchange's store cannot be: the Raft log takes what comes, and what the
    store should have written piles up in memory, up to a bound."""
    broker = brokers(f"unwritable-{uuid.uuid4().hex[:6]}", enable=(PLUGIN, "rabbitmq_prometheus"),
                     conf=["delayed_message.snapshot_interval.messages = 500"])
    client = Client(broker)
    exchange = client.delayed(keep=True)
    queue = client.queue((exchange, "k"), keep=True)
    client.publish(exchange, body=b"before x", delay=HOUR_MS)
    eventually(lambda: store_dirs(broker), lambda dirs: len(dirs) == 1, within=60)
    client.close()
    [store] = store_dirs(broker)
    broker.stop()
    small = mountpoint("size=2m")
    shutil.copytree(store, small, dirs_exist_ok=True)
    shutil.rmtree(store)
    os.symlink(small, store)
    broker.start()
    client = Client(broker)
    other, others_queue = client.delayed_and_queue()
    client.publish(exchange, body=b"after x", delay=HOUR_MS)

    bodies = [f"{n:05} " + "x" * 100000 for n in range(1500)]
    confirmed = publish_until_refused(broker, exchange, bodies)
    assert 2 * MIB < len(confirmed) * 100000 < 100 * MIB
    eventually(lambda: "its files cannot be written to (enospc)" in broker.log(), bool)
    assert broker.log().count("cannot be written to: ") == 1
    assert broker.log().count("are refused: ") == 1
    figures = eventually(lambda: Metrics(broker),
                         lambda m: m.get("rabbitmq_delayed_stores_failing") == 1)
    assert 16 * MIB < figures.get("rabbitmq_delayed_stores_unwritten_bytes") < 120 * MIB
    assert figures.get("rabbitmq_delayed_store_write_failures_total") > 0

    # Who awaits no confirm is told otherwise; other exchanges are not concerned.
    if broker.series == "3.10":  # later ones do not tell an exchange who does
        refused = Client(broker)
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker,
                           match="its files cannot be written to .enospc."):
            refused.channel.basic_publish(exchange, "k", b"x",
                                          pika.BasicProperties(headers={"x-delay": HOUR_MS}))
            refused.channel.queue_declare(queue, passive=True)
    client.publish(other, body=b"elsewhere", delay=100)
    assert client.texts(others_queue, 1) == ["elsewhere"]
    assert_serves_others(broker)
    client.close()

    kill_9(broker)
    broker.start()
    mountpoint("size=512m")
    eventually(lambda: publishes(broker, exchange), bool, within=60)
    eventually(lambda: Metrics(broker).get("rabbitmq_delayed_stores_failing"),
               lambda n: n == 0, within=60)
    client = Client(broker)
    set_clock(broker, 2 * HOUR_MS)
    client.collect_every(queue, {"before", "after", *(body[:5] for body in confirmed)},
                         name=lambda delivery: delivery.text.split()[0])
    client.close()
    broker.end()


def test_writing_goes_on_by_itself(brokers, mountpoint):
    """Without a restart, and without a message that would have it tried again."""
    broker = brokers(f"heals-{uuid.uuid4().hex[:6]}")
    client = Client(broker)
    exchange = client.delayed(keep=True)
    queue = client.queue((exchange, "k"), keep=True)
    client.publish(exchange, body=b"before x", delay=HOUR_MS)
    eventually(lambda: store_dirs(broker), lambda dirs: len(dirs) == 1, within=60)
    [store] = store_dirs(broker)
    broker.stop()
    small = mountpoint("size=1m")
    shutil.copytree(store, small, dirs_exist_ok=True)
    shutil.rmtree(store)
    os.symlink(small, store)
    broker.start()
    bodies = [f"{n:05} " + "x" * 100000 for n in range(1500)]
    confirmed = publish_until_refused(broker, exchange, bodies)
    mountpoint("size=512m")
    eventually(lambda: "are accepted again" in broker.log(), bool, within=60)
    assert publishes(broker, exchange, within=60)
    assert "is written to again" in broker.log()
    client = Client(broker)
    set_clock(broker, 2 * HOUR_MS)
    client.collect_every(queue, {"before", *(body[:5] for body in confirmed)},
                         name=lambda delivery: delivery.text.split()[0])
    client.close()
    broker.end()


# -------------------------------------------------------------------- descriptors

def limit_descriptors(broker, limit):
    _, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (min(limit, hard), hard))


def test_descriptors_are_one_budget(brokers):
    """More exchanges than descriptors; each works, and idle ones have none."""
    broker = brokers("few-descriptors", conf=["delayed_message.max_open_files = 16"])
    client = Client(broker)
    exchanges = [client.delayed_and_queue() for _ in range(40)]
    for exchange, _ in exchanges:
        client.publish(exchange, body=b"x", delay=HOUR_MS)
    eventually(lambda: len(store_dirs(broker)), lambda n: n == 40, within=120)
    for exchange, _ in exchanges:
        client.publish(exchange, body=b"y", delay=HOUR_MS)
        assert len(descriptors(broker, "delay_store")) <= 24  # those that writers have pinned
    set_clock(broker, 2 * HOUR_MS)
    for _, queue in exchanges:
        assert sorted(client.texts(queue, 2)) == ["x", "y"]
    eventually(lambda: len(descriptors(broker, "delay_store")), lambda n: n <= 16, within=60)
    client.close()
    broker.end()


def refuses_to_begin(broker, client, why):
    """An exchange that has not delayed anything yet, which is refused, and what is not delayed comes; and its queue."""
    late, queue = client.delayed_and_queue()
    for _ in range(2):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=why):
            Client(broker).publish(late, body=b"x", delay=100)
    client.publish(late, body=b"at once")
    assert client.texts(queue, 1) == ["at once"]
    return late, queue


def test_the_broker_keeps_descriptors_for_itself(brokers):
    """Near their end no other exchange begins to delay messages; it can be declared, and those that
    have begun go on."""
    broker = brokers("no-descriptors-left")
    client = Client(broker)
    open_exchange, open_queue = client.delayed_and_queue()
    client.publish(open_exchange, body=b"x", delay=HOUR_MS)
    enough = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)[0]
    limit_descriptors(broker, len(descriptors(broker)) + 50)
    late, late_queue = refuses_to_begin(broker, client, "file descriptors")
    for n in range(20):
        client.publish(open_exchange, body=b"%d" % n, delay=HOUR_MS)
    client.publish(open_exchange, body=b"now", delay=100)
    assert client.texts(open_queue, 1) == ["now"]
    limit_descriptors(broker, enough)
    client.publish(late, body=b"later", delay=100)
    assert client.texts(late_queue, 1) == ["later"]
    set_clock(broker, 2 * HOUR_MS)
    assert len(client.texts(open_queue, 21)) == 21
    client.close()
    broker.end()


def test_the_broker_keeps_atoms_for_itself(brokers):
    """Near their end no other exchange begins to delay messages; those that have begun go on, also when their processes
    begin anew."""
    broker = brokers("few-atoms", env={"RABBITMQ_MAX_NUMBER_OF_ATOMS": "200000"})
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"before", delay=100)
    assert client.texts(queue, 1) == ["before"]
    evaluate(broker, """
        Left = erlang:system_info(atom_limit) - erlang:system_info(atom_count),
        [list_to_atom("few_atoms_" ++ integer_to_list(N)) || N <- lists:seq(1, Left - 5000)], ok.""")
    refuses_to_begin(broker, client, "of the 200000 atoms")
    name = f"rabbit_misc:r(<<\"/\">>, exchange, <<\"{exchange}\">>)"
    evaluate(broker, f"exit(rabbit_delay_registry:queue({name}), kill).")
    eventually(lambda: publishes(broker, exchange), bool, within=90)
    client.publish(exchange, body=b"after", delay=100)
    assert client.texts(queue, 1) == ["after"]
    client.close()
    broker.restart()
    client = Client(broker)
    late, late_queue = client.delayed_and_queue()
    client.publish(late, body=b"later", delay=100)
    assert client.texts(late_queue, 1) == ["later"]
    client.close()
    broker.end()


def test_descriptors_that_run_out_altogether(brokers):
    """Others take every last one: what is open goes on with what it has, and nothing is lost."""
    broker = brokers("all-descriptors-gone")
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"first", delay=HOUR_MS)
    enough = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)[0]
    publisher = wire.Publisher(broker)
    with publisher:
        # None is left, and a few are missing.
        limit_descriptors(broker, len(descriptors(broker)) - 3)
        publisher.send(exchange, "k", [b"%d" % n for n in range(200)],
                       headers={"x-delay": HOUR_MS})
        publisher.await_answers(60)
        confirmed = publisher.confirmed
        assert confirmed
    limit_descriptors(broker, enough)
    eventually(lambda: publishes(broker, exchange), bool, within=120)
    client = Client(broker)
    set_clock(broker, 2 * HOUR_MS)
    client.collect_every(queue, {"first", *(str(n - 1) for n in confirmed)})
    client.close()
    broker.end()
