# SPDX-License-Identifier: MPL-2.0
"""Dead letters, and messages whose publisher awaits no confirm, when there are more than fit into
memory or there is no Raft leader: they wait as long as it takes, and what is dropped is counted."""

import contextlib
import glob
import os

import pika
import pytest

import wire
from client import Client
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, evaluate

# More than a delay queue keeps in memory.
MANY = 45000
IN_MEMORY = 20000


@pytest.fixture(scope="module")
def own(brokers):
    broker = brokers("overflow", enable=(PLUGIN, "rabbitmq_management", "rabbitmq_prometheus"))
    yield broker
    broker.end()


@pytest.fixture
def client(own):
    client = Client(own)
    yield client
    client.close()


def named(exchange):
    return f'rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)'


def overflow(broker):
    return glob.glob(os.path.join(broker.data_dir, "quorum", "delayed", "overflow", "*", "*"))


def figure(broker, exchange, name):
    return int(evaluate(broker, "rabbit_delay_counters:get(rabbit_delay_registry:counters("
                                f"{named(exchange)}), {name})."))


def delaying(client):
    """An exchange that has a leader and delays whatever comes, and holds one message."""
    exchange = client.delayed(arguments={"x-delay-default": HOUR_MS})
    client.publish(exchange, body=b"first")
    return exchange


def dying(client, exchange, kind="classic"):
    """A queue whose messages go to the exchange at once."""
    return client.queue(arguments={"x-queue-type": kind, "x-message-ttl": 0,
                                   "x-dead-letter-exchange": exchange})


def die(broker, queue, n, body=lambda n: str(n)):
    with wire.Publisher(broker) as publisher:
        publisher.publish("", queue, [body(number) for number in range(n)])


def assert_holds(broker, exchange, n):
    eventually(lambda: Management(broker).messages_delayed(exchange), lambda held: held == n,
               within=120)
    eventually(lambda: overflow(broker), lambda files: files == [])


@contextlib.contextmanager
def no_leader(broker, exchange):
    """The Ra system is away and is not started again."""
    evaluate(broker, f"""
        sys:suspend(rabbit_delay_system),
        {{ServerName, _}} = rabbit_delay_raft:server_id({named(exchange)}),
        Ref = monitor(process, ServerName),
        #{{names := #{{server_sup := Sup}}}} = ra_system:fetch(rabbit_delay_wheel),
        exit(whereis(Sup), kill),
        receive {{'DOWN', Ref, _, _, _}} -> ok end.""")
    try:
        yield
    finally:
        evaluate(broker, "sys:resume(rabbit_delay_system).")


@contextlib.contextmanager
def slow_leader(broker, exchange):
    """It leads, and takes nothing."""
    server = f"element(1, rabbit_delay_raft:server_id({named(exchange)}))"
    evaluate(broker, f"sys:suspend({server}).")
    try:
        yield
    finally:
        evaluate(broker, f"sys:resume({server}).")


@contextlib.contextmanager
def full_disk(broker):
    evaluate(broker, "application:set_env(rabbitmq_delay_wheel, disk_free_limit, 1 bsl 60).")
    eventually(lambda: evaluate(broker, "rabbit_delay_system:status()."), lambda s: "full" in s)
    try:
        yield
    finally:
        evaluate(broker, "application:unset_env(rabbitmq_delay_wheel, disk_free_limit).")


@pytest.mark.parametrize("without", [no_leader, slow_leader])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_dead_letters_wait_for_a_leader_however_many(own, client, without, kind):
    exchange = delaying(client)
    queue = dying(client, exchange, kind)
    with without(own, exchange):
        die(own, queue, MANY)
        eventually(lambda: overflow(own), bool, within=60)
        # What is in memory does not grow with what waits.
        waits = int(evaluate(own, f"element(2, process_info(rabbit_delay_registry:queue("
                                  f"{named(exchange)}), memory))."))
        assert waits < 150_000_000
    assert_holds(own, exchange, MANY + 1)
    assert figure(own, exchange, "dropped") == 0


def test_large_dead_letters_wait_as_well(own, client):
    exchange = delaying(client)
    queue = dying(client, exchange)
    with slow_leader(own, exchange):
        die(own, queue, 200, lambda n: f"{n}".rjust(1_000_000))
        eventually(lambda: sum(os.path.getsize(name) for name in overflow(own)),
                   lambda size: size > 50_000_000, within=60)
    assert_holds(own, exchange, 201)
    assert figure(own, exchange, "dropped") == 0


def test_they_keep_their_order(own, client):
    exchange = client.delayed("fanout", arguments={"x-delay-default": 3_000})
    client.publish(exchange, body=b"first")
    queue = dying(client, exchange)
    target = client.queue((exchange, ""))
    with slow_leader(own, exchange):
        die(own, queue, MANY)
        eventually(lambda: overflow(own), bool, within=60)
    got = client.texts(target, MANY + 1, within=120)
    assert got == ["first"] + [str(n) for n in range(MANY)]


def test_what_awaits_no_confirm_waits_longer_than_what_does(own, client):
    exchange = delaying(client)
    with no_leader(own, exchange):
        channel = client.connection.channel()
        for n in range(2000):
            channel.basic_publish(exchange, "k", str(n).encode())
        # The broker does not read what else the connection sends.
        another = Client(own)
        with pytest.raises(pika.exceptions.NackError):
            another.publish(exchange, body=b"nacked")
        another.close()
    assert_holds(own, exchange, 2001)
    assert figure(own, exchange, "dropped") == 0
    assert figure(own, exchange, "rejected") == 1


def test_a_full_disk_drops_dead_letters_only_beyond_memory_and_says_so(own, client):
    exchange = delaying(client)
    queue = dying(client, exchange)
    before = len(own.log())
    with full_disk(own):
        die(own, queue, MANY)
        eventually(lambda: figure(own, exchange, "dropped"),
                   lambda dropped: dropped == MANY - IN_MEMORY, within=60)
    assert_holds(own, exchange, IN_MEMORY + 1)
    said = [line for line in own.log()[before:].splitlines() if " dropped " in line]
    assert 1 <= len(said) < 20 and exchange in said[0] and "disk_free_limit" in said[0]


def test_what_cannot_be_written_is_dropped_counted_and_said(own, client):
    exchange = delaying(client)
    queue = dying(client, exchange)
    before = len(own.log())
    place = os.path.join(own.data_dir, "quorum", "delayed", "overflow")
    if os.path.isdir(place):
        os.rename(place, f"{place}-away")
    with open(place, "wb"):
        pass
    try:
        with slow_leader(own, exchange):
            die(own, queue, MANY)
            dropped = eventually(lambda: figure(own, exchange, "dropped"), bool, within=60)
            assert dropped > 0
            # The last one that was sent has come by now.
            eventually(lambda: evaluate(own, "element(2, process_info(rabbit_delay_registry:queue("
                                             f"{named(exchange)}), message_queue_len))."),
                       lambda n: n == "0", within=60)
    finally:
        os.remove(place)
    dropped = eventually(lambda: figure(own, exchange, "dropped"), bool)
    eventually(lambda: Management(own).messages_delayed(exchange)
               + figure(own, exchange, "dropped"), lambda n: n == MANY + 1, within=60)
    assert 1 <= len([line for line in own.log()[before:].splitlines()
                     if exchange in line and " dropped " in line]) < 20
    with slow_leader(own, exchange):
        die(own, queue, MANY)
        eventually(lambda: overflow(own), bool, within=60)
    assert_holds(own, exchange, 2 * MANY + 1 - dropped)


def test_a_disk_that_is_nearly_full_is_not_full_and_not_full_in_turns(own):
    """Messages are accepted again when there is clearly more space than the limit."""
    def set_limit(part):
        evaluate(own, "{ok, Free} = rabbit_delay_store:disk_free(rabbit_delay_config:data_dir()), "
                      f"application:set_env(rabbitmq_delay_wheel, disk_free_limit, trunc({part} * Free)).")
        evaluate(own, "rabbit_delay_system:check_space().")
        return evaluate(own, "rabbit_delay_system:status().")

    try:
        assert set_limit(0.97) == "up"
        assert "full" in set_limit(1.1)
        assert "full" in set_limit(0.97)
        assert set_limit(0.5) == "up"
        assert set_limit(0.97) == "up"
    finally:
        evaluate(own, "application:unset_env(rabbitmq_delay_wheel, disk_free_limit).")


def test_files_of_an_earlier_run_are_removed_and_that_is_said(own):
    place = os.path.join(own.data_dir, "quorum", "delayed", "overflow", "ABC")
    os.makedirs(place)
    with open(os.path.join(place, "1"), "wb") as file:
        file.write(b"x")
    own.restart()
    eventually(own.log, lambda log: "are lost: up to 1 bytes in 1 files below" in log)
    eventually(lambda: [name for name in os.listdir(os.path.join(own.data_dir, "quorum", "delayed"))
                        if name.startswith("deleted-")], lambda left: left == [])
    assert overflow(own) == []
