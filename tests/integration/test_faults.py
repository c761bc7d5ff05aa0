# SPDX-License-Identifier: MPL-2.0
"""Target queues that fail as messages come due, broken stores, full disks, wrong clocks: nothing
confirmed is lost, nothing is early, and the broker lives."""

import glob
import os
import subprocess
import time
import uuid

import pika.exceptions
import pytest

import wire
from client import HOUR_MS, Client, set_clock
from conftest import PLUGIN
from management import Management, eventually

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
    client.collect_every(stays, {str(n) for n in range(3000)}, within=30)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)


def test_a_full_target_that_rejects_gets_the_rest_when_there_is_room(client, management):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-max-length": 2,
                                                     "x-overflow": "reject-publish"})
    for number in range(6):
        client.publish(exchange, body=str(number).encode(), delay=300)
    eventually(lambda: client.depth(queue), lambda depth: depth == 2)
    assert management.messages_delayed(exchange) >= 4
    client.collect_every(queue, {str(n) for n in range(6)}, within=60)
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
    process = "case amqqueue:get_pid(Q) of {N, _} -> whereis(N); P -> P end"
    for _ in range(2):
        broker.eval(f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, '
                    f'<<"{queue}">>)), exit({process}, kill).')
    client.collect_every(queue, {str(n) for n in range(5000)}, within=60)


def test_a_slow_consumer_slows_nobody_else(client, broker):
    slow, slow_queue = client.delayed_and_queue()
    fast, fast_queue = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(slow, "k", ["x" * 1000] * 5000, headers={"x-delay": 300})
    published = client.publish(fast, body=b"fast", delay=800)
    assert (client.one(fast_queue).at - published) * 1000 < 800 + 5000
    eventually(lambda: client.depth(slow_queue), lambda depth: depth == 5000, within=30)


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
    client.publish(exchange, body=b"before the step", delay=1500)
    clock(-HOUR_MS)
    for delay in (500, 2000):
        published = client.publish(exchange, body=str(delay).encode(),
                                   headers=at(delay - HOUR_MS))
        delivery = client.one(queue)
        assert delivery.text == str(delay)
        assert (delivery.at - published) * 1000 >= delay - 1
    management = Management(clocked)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    clock(0)
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
    client.publish(exchange, body=b"stamped in the future", headers=at(HOUR_MS + 1000))
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


# ---------------------------------------------------------------- broken store files

SMALL_SNAPSHOTS = ["delayed_message.snapshot_interval.messages = 500",
                   "delayed_message.snapshot_interval.bytes = 100000000"]


def store_files(broker, pattern):
    return glob.glob(os.path.join(broker.data_dir, "delayed", "*", "delay_store", pattern))


def holding(files, text):
    """The files that contain a text, and where."""
    found = []
    for path in files:
        with open(path, "rb") as file:
            at = file.read().find(text)
        if at >= 0:
            found.append((path, at))
    return found


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x55]))


@pytest.fixture(scope="module")
def corruptible(brokers):
    broker = brokers("corruptible", conf=SMALL_SNAPSHOTS,
                     enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


def fill_until_checkpointed(broker, soon_ms):
    """An exchange with 2,000 messages due then and 2,000 in 30 days, all of them in files of a
    checkpoint; with its queue."""
    client = Client(broker)
    exchange, queue = client.delayed_and_queue()
    due = int(time.time() * 1000) + soon_ms
    with wire.Publisher(broker) as publisher:
        for kind, when in (("soon", due), ("far", due + 30 * 24 * HOUR_MS)):
            publisher.publish(exchange, "k", [f"{exchange} {kind} {n:05} end" for n in range(2000)],
                              headers={"x-opt-delivery-time": wire.signed_long(when)})
        # More, so that a snapshot comes to cover all of the above.
        publisher.publish(exchange, "k", ["tail"] * 2000, headers={"x-delay": 90 * 24 * HOUR_MS})
    eventually(lambda: all(holding(store_files(broker, "*.rec"),
                                   f"{exchange} {kind} 01999 end".encode())
                           for kind in ("soon", "far")), bool)
    return exchange, queue


def test_a_corrupt_record_is_named_in_the_log_and_all_others_are_delivered(corruptible):
    broker = corruptible
    exchange, queue = fill_until_checkpointed(broker, 12000)
    victim = f"{exchange} soon 00100 end"
    broker.stop()
    (path, at), *_ = holding(store_files(broker, "*.rec"), victim.encode())
    flip(path, at + 3)
    before = len(broker.log())
    broker.start()
    client = Client(broker)
    got = client.collect_every(queue, {f"{exchange} soon {n:05} end" for n in range(2000)}
                               - {victim})
    assert victim not in {delivery.text for delivery in got}
    assert all(delivery.text.startswith(exchange) for delivery in got)
    eventually(lambda: os.path.basename(path) in broker.log()[before:], bool)
    management = Management(broker)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 4000)
    client.close()


def removed(path):
    os.unlink(path)


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


def emptied(path):
    os.truncate(path, 0)


def overwritten(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.write(os.urandom(size))


def made_a_directory(path):
    os.unlink(path)
    os.mkdir(path)


@pytest.mark.parametrize("breaks", [removed, cut, emptied, overwritten, made_a_directory])
def test_a_broken_file_is_named_in_the_log_and_the_rest_is_served(corruptible, breaks):
    broker = corruptible
    exchange, queue = fill_until_checkpointed(broker, 10000)
    other, other_queue = Client(broker).delayed_and_queue()
    client = Client(broker)
    client.publish(other, body=b"of another exchange", delay=8000)
    broker.stop()
    (path, _), *_ = holding(store_files(broker, "*.rec"), f"{exchange} far 00100 end".encode())
    breaks(path)
    before = len(broker.log())
    broker.start()
    client = Client(broker)
    assert client.texts(other_queue, 1) == ["of another exchange"]
    client.collect_every(queue, {f"{exchange} soon {n:05} end" for n in range(2000)})
    eventually(lambda: os.path.basename(path) in broker.log()[before:], bool)
    published = client.publish(exchange, body=b"new", delay=300)
    delivery = client.one(queue)
    assert delivery.text == "new" and (delivery.at - published) * 1000 >= 300
    client.close()


# ----------------------------------------------------------- the data directory itself

@pytest.fixture
def mountpoint(tmp_path):
    """A small file system of its own: mount(options) mounts it, or mounts it anew."""
    path = tmp_path / "mounted"
    path.mkdir()
    mounted = []

    def mount(options):
        again = ",remount" if mounted else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options + again, "tmpfs", str(path)],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0 and not mounted:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(options)
        return str(path)

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


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
    eventually(lambda: publishes(broker, exchange), bool, within=60)
    broker.end()


def test_a_read_only_data_directory_is_named_and_retried(brokers, mountpoint):
    data_dir = mountpoint("size=512m,ro")
    broker = brokers("data-dir-is-read-only", conf=[f"delayed_message.data_dir = {data_dir}"])
    exchange = assert_refuses_but_boots(broker, data_dir)
    mountpoint("size=512m,rw")
    eventually(lambda: publishes(broker, exchange), bool, within=60)
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
                publisher.await_answers(15)
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
        broker.kill9()
        broker.start()
        assert_serves_others(broker)
    mountpoint("size=512m")
    eventually(lambda: publishes(broker, exchange), bool, within=60)
    client = Client(broker)
    client.publish(exchange, body=b"afterwards", delay=100)
    set_clock(broker, 2 * HOUR_MS)
    client.collect_every(queue, {"afterwards", *(body[:5] for body in confirmed)},
                         name=lambda delivery: delivery.text.split()[0])
    client.close()
    broker.end()
