# SPDX-License-Identifier: MPL-2.0
"""Target queues that fail as messages come due, broken stores, full disks, wrong clocks: nothing
confirmed is lost, nothing is early, and the broker lives."""

import glob
import os
import subprocess
import time
import uuid
from types import SimpleNamespace

import pika.exceptions
import pytest

import wire
from client import Client, assert_on_time
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, evaluate, kill_9, kill_queue, set_clock

REFUSALS = (pika.exceptions.NackError, pika.exceptions.UnroutableError,
            pika.exceptions.ChannelClosedByBroker)


def at(offset_ms):
    """A header for delivery so far from now by the true time."""
    return {"x-opt-delivery-time": wire.signed_long(int(time.time() * 1000) + offset_ms)}


def publishes(broker, exchange, within=10):
    """Whether a delayed publish is confirmed at present; not if it is refused, nor if nothing is
    heard of it."""
    with wire.Publisher(broker) as publisher:
        publisher.send(exchange, "k", [b"probe"], headers={"x-delay": HOUR_MS})
        try:
            publisher.await_answers(within)
        except (wire.Unanswered, pika.exceptions.ChannelClosedByBroker):
            return False
        return publisher.confirmed == {1}


def assert_serves_others(broker):
    """Queues and exchanges that are not ours work."""
    client = Client(broker)
    queue = client.queue()
    client.publish("", queue, b"plain")
    assert client.texts(queue, 1) == ["plain"]
    client.close()


# ---------------------------------------------------------------------- target queues

def test_a_target_deleted_before_the_due_time_gets_nothing_and_harms_nothing(client, management):
    exchange, queue = client.delayed_and_queue()
    other = client.queue((exchange, "other"))
    client.publish(exchange, body=b"for nobody", delay=1000)
    client.publish(exchange, "other", b"for somebody", delay=1200)
    client.channel.queue_delete(queue)
    assert client.texts(other, 1) == ["for somebody"]
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)


def test_targets_deleted_while_messages_come_due_do_not_stop_the_release(client, broker,
                                                                         management):
    exchange = client.delayed("fanout")
    stays = client.queue((exchange, ""))
    going = [client.queue((exchange, "")) for _ in range(5)]
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "", [str(n) for n in range(3000)],
                          headers=lambda n: {"x-delay": 1000 + n % 1500})
    client.collect(going[0], 100)
    for queue in going:
        client.channel.queue_delete(queue)
    client.collect_every(stays, {str(n) for n in range(3000)})
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)


def test_a_full_target_that_rejects_gets_the_rest_when_there_is_room(client, management):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-max-length": 2,
                                                     "x-overflow": "reject-publish"})
    for number in range(6):
        client.publish(exchange, body=str(number).encode(), delay=300)
    eventually(lambda: client.depth(queue), lambda depth: depth == 2)
    assert management.messages_delayed(exchange) >= 4
    client.collect_every(queue, {str(n) for n in range(6)})
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)


def test_a_full_target_does_not_hold_up_messages_for_others(client):
    exchange = client.delayed()
    full = client.queue((exchange, "full"), arguments={"x-max-length": 1,
                                                       "x-overflow": "reject-publish"})
    queue = client.queue((exchange, "k"))
    for number in range(50):
        client.publish(exchange, "full", b"x", delay=300)
        client.publish(exchange, "k", str(number).encode(), delay=300)
    assert client.texts(queue, 50) == [str(n) for n in range(50)]
    assert client.depth(full) == 1


def test_a_full_target_that_drops_from_its_head_takes_all(client, management):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-max-length": 2})
    for number in range(6):
        client.publish(exchange, body=str(number).encode(), delay=300 + 50 * number)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)
    assert client.texts(queue, 2) == ["4", "5"]


@pytest.mark.parametrize("arguments", [
    pytest.param({}, id="classic"), pytest.param({"x-queue-type": "quorum"}, id="quorum")])
def test_a_target_whose_process_is_killed_as_messages_come_due_gets_them_all(client, broker,
                                                                             arguments):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments=arguments)
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [str(n) for n in range(5000)],
                          headers=lambda n: {"x-delay": 1500 + n % 2500})
    missing = {str(n) for n in range(5000)}
    for _ in range(2):
        # A few at a time, or a slow machine has all of them before the queue is killed.
        missing -= {delivery.text for delivery in client.collect(queue, 200, prefetch=10)}
        kill_queue(broker, queue)
    client.collect_every(queue, missing)


def test_a_slow_consumer_slows_nobody_else(client, broker):
    slow, slow_queue = client.delayed_and_queue()
    fast, fast_queue = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(slow, "k", ["x" * 1000] * 5000, headers={"x-delay": 300})
    published = client.publish(fast, body=b"fast", delay=800)
    assert_on_time(client.one(fast_queue), published, 800)
    eventually(lambda: client.depth(slow_queue), lambda depth: depth == 5000)


# ------------------------------------------------------------------------- the clock

@pytest.fixture(scope="module")
def clocked(brokers):
    broker = brokers("clocked", enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


@pytest.fixture
def clock(clocked):
    """Steps the clock; it is set right again afterwards."""
    yield lambda offset_ms: set_clock(clocked, offset_ms)
    set_clock(clocked, 0)


def test_a_clock_stepped_forwards_releases_what_is_then_due(clocked, clock):
    client = Client(clocked)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"in half an hour", delay=HOUR_MS // 2)
    client.publish(exchange, body=b"in two hours", delay=2 * HOUR_MS)
    clock(HOUR_MS)
    assert client.texts(queue, 1) == ["in half an hour"]
    published = client.publish(exchange, body=b"after the step", headers=at(HOUR_MS + 500))
    delivery = client.one(queue)
    assert delivery.text == "after the step"
    assert (delivery.at - published) * 1000 >= 499
    management = Management(clocked)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    client.close()


def test_a_clock_stepped_backwards_delays_and_loses_nothing(clocked, clock):
    client = Client(clocked)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"before the step", delay=HOUR_MS // 2)
    clock(-HOUR_MS)
    for delay in (500, 2000):
        published = client.publish(exchange, body=str(delay).encode(),
                                   headers=at(delay - HOUR_MS))
        delivery = client.one(queue)
        assert delivery.text == str(delay)
        assert (delivery.at - published) * 1000 >= delay - 1
    management = Management(clocked)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    clock(HOUR_MS)
    assert client.texts(queue, 1) == ["before the step"]
    client.close()


def test_a_clock_stepped_to_and_fro_under_load_loses_nothing_and_is_never_early(clocked, clock):
    client = Client(clocked)
    exchange, queue = client.delayed_and_queue()
    with wire.Publisher(clocked) as publisher:
        for number, offset in enumerate((HOUR_MS, -HOUR_MS, 0)):
            clock(offset)
            publisher.publish(exchange, "k", [f"{number}-{n}" for n in range(1000)],
                              headers=lambda n: {"x-delay": 100 + n})
    clock(HOUR_MS)
    client.collect_every(queue, {f"{number}-{n}" for number in range(3) for n in range(1000)})
    client.close()


def test_a_restart_after_the_clock_went_back_loses_nothing(clocked, clock):
    client = Client(clocked)
    exchange, queue = client.delayed_and_queue()
    clock(HOUR_MS)
    client.publish(exchange, body=b"stamped in the future", headers=at(HOUR_MS + HOUR_MS // 2))
    clock(0)
    clocked.restart()
    client = Client(clocked)
    client.publish(exchange, body=b"now", delay=500)
    assert client.texts(queue, 1) == ["now"]
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["stamped in the future"]
    client.close()


# --------------------------------------------------------------- stop while releasing

def test_a_stop_while_releasing_loses_nothing(brokers):
    broker = brokers("stopped-while-releasing")
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [str(n) for n in range(20000)],
                          headers=lambda n: {"x-delay": 4000 + n // 20})
    got = {delivery.text for delivery in client.collect(queue, 2000)}
    broker.stop()
    broker.start()
    client = Client(broker)
    client.collect_every(queue, {str(n) for n in range(20000)} - got)
    client.close()
    broker.end()


# -------------------------------------------------------------- damaged store files

def flipped(path, at):
    at += 3
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x55]))


def removed(path, _):
    os.unlink(path)


def cut(path, at):
    os.truncate(path, at - 1000)


def emptied(path, _):
    os.truncate(path, 0)


def overwritten(path, _):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.write(os.urandom(size))


def made_a_directory(path, _):
    os.unlink(path)
    os.mkdir(path)


WAYS = [flipped, removed, cut, emptied, overwritten, made_a_directory]


@pytest.fixture(scope="module")
def damaged(brokers):
    """A broker that was stopped and started, and whose files were damaged in between: of one
    exchange in each way. Each had 1,000 messages due soon and 1,000 due in 30 days, in files of
    their own; what is damaged is message 100 of those due late, or its file."""
    broker = brokers("damaged", enable=(PLUGIN, "rabbitmq_management"), conf=[
        "delayed_message.snapshot_interval.messages = 500",
        "delayed_message.snapshot_interval.bytes = 100000000"])
    client = Client(broker)
    queues, damage = {}, {}
    for way in WAYS:
        exchange = client.delayed(name=way.__name__)
        queues[way] = client.queue((exchange, "k"))
        with wire.Publisher(broker) as publisher:
            for kind, offset in (("soon", HOUR_MS), ("late", 30 * 24 * HOUR_MS)):
                publisher.publish(exchange, "k", [text_of(way, kind, n) for n in range(1000)],
                                  headers=at(offset))
            # More, so that a snapshot comes to cover all of the above.
            publisher.publish(exchange, "k", ["tail"] * 1000, headers=at(90 * 24 * HOUR_MS))
    for way in WAYS:
        eventually(lambda: holding(broker, way, "soon", 999) and holding(broker, way, "late", 999),
                   bool)
    broker.stop()
    for way in WAYS:
        path, offset = holding(broker, way, "late", 100)
        assert holding(broker, way, "soon", 100)[0] != path
        way(path, offset)
        damage[way] = os.path.basename(path)
    before = len(broker.log())
    broker.start()
    yield SimpleNamespace(broker=broker, queues=queues, files=damage,
                          log=lambda: broker.log()[before:])
    broker.end()


def text_of(way, kind, number):
    return f"{way.__name__} {kind} {number:05} end"


def holding(broker, way, kind, number):
    """The file of the delay store that contains a message, and where; None if none does."""
    text = text_of(way, kind, number).encode()
    for path in glob.glob(os.path.join(broker.data_dir, "quorum", "delayed", "*", "delay_store",
                                       "*.rec")):
        with open(path, "rb") as file:
            at = file.read().find(text)
        if at >= 0:
            return path, at
    return None


def named(ways):
    return [pytest.param(way, id=way.__name__) for way in ways]


@pytest.mark.parametrize("way", named(WAYS))
def test_what_is_in_whole_files_is_served(damaged, way):
    client = Client(damaged.broker)
    management = Management(damaged.broker)
    eventually(lambda: management.messages_delayed(way.__name__), lambda n: n >= 2000)
    set_clock(damaged.broker, 2 * HOUR_MS)
    client.collect_every(damaged.queues[way], {text_of(way, "soon", n) for n in range(1000)})
    set_clock(damaged.broker, 0)
    client.close()


@pytest.mark.parametrize("way", named(WAYS))
def test_an_exchange_with_a_damaged_file_goes_on_delaying(damaged, way):
    client = Client(damaged.broker)
    published = client.publish(way.__name__, body=b"new", delay=300)
    delivery = client.one(damaged.queues[way])
    assert delivery.text == "new" and (delivery.at - published) * 1000 >= 300
    client.close()


def test_of_a_file_with_one_damaged_record_all_others_are_served(damaged):
    client = Client(damaged.broker)
    set_clock(damaged.broker, 31 * 24 * HOUR_MS)
    wanted = {text_of(flipped, "late", n) for n in range(1000) if n != 100}
    got = {delivery.text for delivery in client.collect_every(damaged.queues[flipped], wanted)}
    assert text_of(flipped, "late", 100) not in got
    assert got == wanted
    client.close()
    # What is left of it is kept aside.
    kept = glob.glob(os.path.join(damaged.broker.data_dir, "quorum", "delayed", "*", "delay_store",
                                  "CORRUPT"))
    assert any(b"late 00100 end" in open(path, "rb").read() for path in kept)
    assert damaged.files[flipped].encode() in b"".join(open(path, "rb").read() for path in kept)


@pytest.mark.parametrize("way", named(WAYS))
def test_the_damaged_file_is_named_in_the_log(damaged, way):
    set_clock(damaged.broker, 31 * 24 * HOUR_MS)
    eventually(lambda: damaged.files[way] in damaged.log(), bool)


@pytest.fixture(scope="module")
def unreadable(brokers):
    """A broker that was started again with 1,000 messages due in an hour and 1,000 due in 30 days."""
    broker = brokers("unreadable", enable=(PLUGIN, "rabbitmq_management"), conf=[
        "delayed_message.snapshot_interval.messages = 500",
        "delayed_message.snapshot_interval.bytes = 100000000"])
    client = Client(broker)
    exchange = client.delayed(name="unreadable")
    queue = client.queue((exchange, "k"))
    with wire.Publisher(broker) as publisher:
        for kind, offset in (("soon", HOUR_MS), ("late", 30 * 24 * HOUR_MS)):
            publisher.publish(exchange, "k", [text_of(out_of_reach, kind, n) for n in range(1000)],
                              headers=at(offset))
        publisher.publish(exchange, "k", ["tail"] * 1000, headers=at(90 * 24 * HOUR_MS))
    eventually(lambda: holding(broker, out_of_reach, "soon", 999) and
               holding(broker, out_of_reach, "late", 999), bool)
    broker.stop()
    broker.start()
    yield SimpleNamespace(broker=broker, exchange=exchange, queue=queue)
    broker.end()


def out_of_reach(path):
    """Makes opening the file fail. Answers what undoes it."""
    os.rename(path, path + ".elsewhere")
    os.symlink("elsewhere", path)

    def undo():
        os.unlink(path)
        os.rename(path + ".elsewhere", path)
    return undo


def test_a_store_that_cannot_be_read_is_not_opened_and_is_whole_when_it_can(unreadable):
    broker = unreadable.broker
    path, _ = holding(broker, out_of_reach, "late", 0)
    broker.stop()
    undo = out_of_reach(path[:-len("rec")] + "idx")
    before = len(broker.log())
    broker.start()
    eventually(lambda: "the store is not opened" in broker.log()[before:], bool, within=120)
    undo()
    management = Management(broker)
    eventually(lambda: management.messages_delayed(unreadable.exchange), lambda n: n == 3000,
               within=120)


def test_messages_that_cannot_be_read_are_kept_and_come_when_they_can(unreadable):
    broker = unreadable.broker
    management = Management(broker)
    eventually(lambda: management.messages_delayed(unreadable.exchange), lambda n: n == 3000,
               within=120)
    undo = out_of_reach(holding(broker, out_of_reach, "soon", 0)[0])
    before = len(broker.log())
    client = Client(broker)
    set_clock(broker, 2 * HOUR_MS)
    eventually(lambda: [row["unreadable"] for row in broker.rows("list_delayed_exchanges", "name",
                                                                 "unreadable")],
               lambda counts: counts == [1000], within=120)
    assert "cannot be read" in broker.log()[before:]
    assert management.messages_delayed(unreadable.exchange) == 3000
    undo()
    client.collect_every(unreadable.queue,
                         {text_of(out_of_reach, "soon", n) for n in range(1000)})
    eventually(lambda: [row["unreadable"] for row in broker.rows("list_delayed_exchanges", "name",
                                                                 "unreadable")],
               lambda counts: counts == [0], within=120)
    set_clock(broker, 0)
    client.close()


# ----------------------------------------------------------- the data directory itself

def assert_refuses_but_boots(broker, data_dir):
    """The broker serves all but delays, says why in its log, and confirms nothing that it cannot
    keep."""
    assert_serves_others(broker)
    eventually(lambda: f"data directory {data_dir} (delayed_message.data_dir) cannot be used"
               in broker.log(), bool)
    client = Client(broker)
    exchange = client.delayed(keep=True)
    with pytest.raises(REFUSALS):
        client.publish(exchange, body=b"x", delay=1000)
    queue = client.queue((exchange, "k"))
    client.publish(exchange, body=b"undelayed")
    assert client.texts(queue, 1) == ["undelayed"]
    client.close()
    return exchange


def test_a_data_directory_that_is_a_file_is_named_and_retried(brokers, tmp_path):
    data_dir = tmp_path / "in-the-way"
    data_dir.write_text("a file")
    broker = brokers("data-dir-is-a-file", conf=[f"delayed_message.data_dir = {data_dir}"])
    exchange = assert_refuses_but_boots(broker, str(data_dir))
    data_dir.unlink()
    eventually(lambda: publishes(broker, exchange), bool)
    broker.end()


def test_a_data_directory_that_the_broker_would_delete_is_refused(brokers):
    """And by every command alike, which say the same."""
    broker = brokers("data-dir-misplaced", conf=["delayed_message.data_dir = delayed"])
    eventually(lambda: "not below its quorum" in broker.log(), bool)
    client = Client(broker)
    exchange = client.delayed(keep=True)
    with pytest.raises(REFUSALS):
        client.publish(exchange, body=b"x", delay=1000)
    with open(broker.path("lines"), "w", encoding="utf-8") as f:
        f.write('{"format": 1, "exchange": "%s", "due": 9999999999999, "routing_keys": ["k"], '
                '"properties": {}, "headers": [], "body": ""}\n' % exchange)
    for command in (["list_delayed_messages", exchange], ["show_delayed_message", exchange, "1"],
                    ["cancel_delayed_messages", exchange, "1"], ["purge_delayed_messages", exchange],
                    ["release_delayed_messages", exchange, "--all"],
                    ["reschedule_delayed_messages", exchange, "--all", "--by", "1h"],
                    ["pause_delayed_exchange", exchange], ["resume_delayed_exchange", exchange],
                    ["export_delayed_messages", exchange, "--file", broker.path("out")],
                    ["import_delayed_messages", "--file", broker.path("lines")]):
        done = broker.ctl(*command, check=False)
        assert done.returncode == 69 and "not below its quorum" in done.stdout + done.stderr, done
    assert not os.path.exists(os.path.join(broker.data_dir, "delayed"))
    client.close()
    broker.end()


def test_publishers_without_confirms_while_nothing_can_be_taken(brokers, tmp_path):
    """Up to 3.13 an exchange knows that nobody would hear of a nack, and closes the connection. Later
    it does not, and the message is dropped, as RabbitMQ drops one for a queue that is down."""
    data_dir = tmp_path / "in-the-way"
    data_dir.write_text("a file")
    broker = brokers("no-confirms", conf=[f"delayed_message.data_dir = {data_dir}"])
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    eventually(lambda: "cannot be used" in broker.log(), bool)
    channel = client.channel
    channel.basic_publish(exchange, "k", b"x", pika.BasicProperties(headers={"x-delay": 1}))
    if broker.series == "3.10":
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as closed:
            channel.queue_declare(queue, passive=True)
        assert closed.value.reply_code == 506 and "cannot be used" in closed.value.reply_text
    else:
        channel.queue_declare(queue, passive=True)
        channel.basic_publish(exchange, "k", b"undelayed")
        assert client.texts(queue, 1) == ["undelayed"]
    client.close()
    broker.end()


def test_a_read_only_data_directory_is_named_and_retried(brokers, mountpoint):
    data_dir = mountpoint("size=512m,ro")
    broker = brokers("data-dir-is-read-only", conf=[f"delayed_message.data_dir = {data_dir}"])
    exchange = assert_refuses_but_boots(broker, data_dir)
    mountpoint("size=512m,rw", broker)
    eventually(lambda: publishes(broker, exchange), bool)
    broker.end()


def publish_until_refused(broker, exchange, bodies):
    """Publishes with confirms until something is refused, or is not answered any more; the bodies
    that were confirmed."""
    publisher = wire.Publisher(broker)
    confirmed = []
    with publisher:
        try:
            for first in range(0, len(bodies), 100):
                publisher.send(exchange, "k", bodies[first:first + 100],
                               headers={"x-delay": HOUR_MS})
                publisher.await_answers(30)
                if publisher.refused:
                    break
        except (wire.Unanswered, OSError, pika.exceptions.ChannelClosedByBroker):
            pass
        publisher.drain()
        confirmed = [bodies[n - 1] for n in sorted(publisher.confirmed)]
    assert len(confirmed) < len(bodies), "the disk was never full"
    return confirmed


@pytest.mark.parametrize("limit, then", [
    pytest.param(0, "space returns", id="no space at all"),
    pytest.param(0, "killed and started while full", id="no space at all, and a crash"),
    pytest.param(16 << 20, "space returns", id="less than the limit of free space")])
def test_a_full_disk_refuses_publishers_and_loses_nothing(brokers, mountpoint, limit, then):
    data_dir = mountpoint("size=48m")
    broker = brokers(f"full-{uuid.uuid4().hex[:6]}", conf=[
        f"delayed_message.data_dir = {data_dir}",
        f"delayed_message.disk_free_limit = {limit}",
        "delayed_message.wal_size = 4194304",
        "delayed_message.snapshot_interval.messages = 500"])
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    bodies = [f"{n:05} " + "x" * 20000 for n in range(6000)]
    confirmed = publish_until_refused(broker, exchange, bodies)
    assert len(confirmed) > 100
    assert_serves_others(broker)
    if then != "space returns":
        kill_9(broker)
        broker.start()
        assert_serves_others(broker)
    mountpoint("size=512m")
    eventually(lambda: publishes(broker, exchange), bool)
    client = Client(broker)
    client.publish(exchange, body=b"afterwards", delay=100)
    set_clock(broker, 2 * HOUR_MS)
    client.collect_every(queue, {"afterwards", *(body[:5] for body in confirmed)},
                         name=lambda delivery: delivery.text.split()[0])
    client.close()
    broker.end()
