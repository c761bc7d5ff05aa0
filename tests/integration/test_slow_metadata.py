# SPDX-License-Identifier: MPL-2.0
"""The broker's metadata store does not answer, deletions take long, our processes end: nobody else
waits for them without a bound, and what was deleted does not come back."""

import contextlib
import glob
import os
import time

import pika.exceptions
import pytest

from client import Client, closes_channel
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, evaluate, kill_9, set_clock

# The longest that anyone waits is 5 s: far less than this, and far more than a busy machine adds.
BOUND_SECONDS = 40


@pytest.fixture(scope="module")
def own(brokers):
    broker = brokers("slow-metadata", enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


@pytest.fixture
def client(own):
    client = Client(own)
    yield client
    client.close()


@contextlib.contextmanager
def unanswering_metadata(broker):
    """Reads are answered from the node's memory, writes wait."""
    if evaluate(broker, "ets:whereis(rabbit_queue).") == "undefined":
        evaluate(broker, "sys:suspend(rabbitmq_metadata).")
        end = "sys:resume(rabbitmq_metadata)."
    else:
        evaluate(broker, """
            Self = self(),
            spawn(fun () ->
                      register(locks_queues, self()),
                      mnesia:transaction(fun () -> mnesia:write_lock_table(rabbit_queue),
                                                   Self ! locked,
                                                   receive unlock -> ok end end)
                  end),
            receive locked -> ok end.""")
        end = "locks_queues ! unlock."
    try:
        yield
    finally:
        evaluate(broker, end)


@contextlib.contextmanager
def slow_deletion(broker, exchange):
    """The exchange's queue process does not end when it is asked to: deleting it takes 10 s."""
    evaluate(broker, f"""
        Pid = rabbit_delay_registry:queue({named(exchange)}),
        spawn(fun () -> register(suspends, self()),
                        true = erlang:suspend_process(Pid),
                        receive stop -> ok end end).""")
    try:
        yield
    finally:
        evaluate(broker, "catch suspends ! stop.")


def named(exchange):
    return f'rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)'


def directories(broker):
    return [os.path.basename(name)
            for name in glob.glob(os.path.join(broker.data_dir, "quorum", "delayed", "*D*_*"))]


def publishes(client, exchange, body):
    """Whether it is confirmed; not if it is refused in words."""
    try:
        client.publish(exchange, body=body, delay=HOUR_MS)
    except pika.exceptions.ChannelClosedByBroker as closed:
        assert "cannot delay" in closed.reply_text
        return False
    return True


def test_a_publisher_is_told_and_others_go_on_while_metadata_do_not_answer(own, client):
    running, queue = client.delayed_and_queue()
    client.publish(running, body=b"before", delay=1)
    assert client.texts(queue, 1) == ["before"]
    first = client.delayed()
    with unanswering_metadata(own):
        for _ in range(3):
            began = time.monotonic()
            code, text = closes_channel(lambda: client.publish(first, body=b"x", delay=1))
            assert code == 406 and "cannot delay" in text and "not ready within" in text
            assert time.monotonic() - began < BOUND_SECONDS
        client.publish(running, body=b"meanwhile", delay=1)
        assert client.texts(queue, 1) == ["meanwhile"]
    eventually(lambda: publishes(client, first, b"after"), bool, within=90)
    eventually(lambda: Management(own).messages_delayed(first), lambda n: n == 1)


def test_what_serves_an_earlier_exchange_is_waited_for_once(own, client):
    """Its end may take longer than anybody is to wait; then who publishes is told at once."""
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"before", delay=1)
    assert client.texts(queue, 1) == ["before"]
    evaluate(own, f"rabbit_delay_registry:register_life({named(exchange)}, <<\"another\">>).")
    evaluate(own, f"""
        X = {named(exchange)},
        Uid = rabbit_delay_registry:member_uid(X),
        Row = tuple_to_list(rabbit_delay_table:row(X)),
        [Place] = [N || {{N, E}} <- lists:zip(lists:seq(1, length(Row)), Row), E =:= Uid],
        ok = rabbit_delay_table:update(X, {{Place, undefined}}).""")
    with unanswering_metadata(own):
        began = time.monotonic()
        assert not publishes(client, exchange, b"x")
        once = time.monotonic() - began
        began = time.monotonic()
        for _ in range(3):
            assert not publishes(client, exchange, b"x")
        assert time.monotonic() - began < once
    eventually(lambda: publishes(client, exchange, b"after"), bool, within=90)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_queue_that_dead_letters_does_not_hang_while_metadata_do_not_answer(own, client, kind):
    exchange = client.delayed(arguments={"x-delay-default": HOUR_MS})
    queue = client.queue(arguments={"x-queue-type": kind, "x-dead-letter-exchange": exchange})
    channel = client.connection.channel()
    for n in range(20):
        client.publish("", queue, str(n).encode())
    got = [eventually(lambda: channel.basic_get(queue), lambda m: m[0]) for _ in range(20)]
    with unanswering_metadata(own):
        began = time.monotonic()
        for method, _, _ in got:
            channel.basic_reject(method.delivery_tag, requeue=False)
        client.publish("", queue, b"taken")
        assert client.texts(queue, 1, within=BOUND_SECONDS) == ["taken"]
        assert time.monotonic() - began < BOUND_SECONDS
    eventually(lambda: publishes(client, exchange, b"after"), bool, within=90)


def test_the_internal_queue_is_declared_again_by_itself(own, client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"held", delay=HOUR_MS)
    with unanswering_metadata(own):
        evaluate(own, f"exit(rabbit_delay_registry:queue({named(exchange)}), kill).")
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker, pika.exceptions.NackError):
            client.publish(exchange, body=b"perhaps", delay=HOUR_MS)
    eventually(lambda: publishes(client, exchange, b"after"), bool, within=90)
    set_clock(own, 2 * HOUR_MS)
    try:
        assert {"held", "after"} <= set(client.texts(queue, 2, within=60))
    finally:
        set_clock(own, 0)


def test_one_made_again_during_a_slow_deletion_starts_empty(own, client):
    exchange = client.delayed(keep=True)
    client.publish(exchange, body=b"old", delay=HOUR_MS)
    with slow_deletion(own, exchange):
        began = time.monotonic()
        client.channel.exchange_delete(exchange)
        assert time.monotonic() - began < BOUND_SECONDS
        client.delayed(name=exchange)
        queue = client.queue((exchange, "k"))
        eventually(lambda: publishes(client, exchange, b"new"), bool, within=90)
    eventually(lambda: Management(own).messages_delayed(exchange), lambda n: n == 1)
    set_clock(own, 2 * HOUR_MS)
    try:
        assert client.texts(queue, 1) == ["new"]
    finally:
        set_clock(own, 0)
    assert client.depth(queue) == 0


def test_a_crash_during_a_slow_deletion_brings_nothing_back_and_leaves_nothing(own):
    client = Client(own)
    exchange = client.delayed(keep=True)
    client.publish(exchange, body=b"old", delay=HOUR_MS)
    before = set(directories(own))
    with slow_deletion(own, exchange):
        client.channel.exchange_delete(exchange)
        client.delayed(name=exchange, keep=True)
        queue = client.queue((exchange, "k"), keep=True)
        kill_9(own)
        # As a deletion leaves it that was interrupted later on.
        os.makedirs(os.path.join(own.data_dir, "quorum", "delayed", "deleted-D0_0", "x"))
        own.start()
    client = Client(own)
    client.publish(exchange, body=b"new", delay=HOUR_MS)
    set_clock(own, 2 * HOUR_MS)
    assert client.texts(queue, 1) == ["new"]
    set_clock(own, 0)
    assert client.depth(queue) == 0
    eventually(lambda: [name for name in directories(own) if name.startswith("deleted-")],
               lambda left: left == [])
    assert len(set(directories(own)) - before) == 1
    client.channel.exchange_delete(exchange)
    client.channel.queue_delete(queue)
    client.close()


def test_a_registry_that_ends_while_an_exchange_is_deleted_finishes_it(own, client):
    exchange = client.delayed(keep=True)
    client.publish(exchange, body=b"old", delay=HOUR_MS)
    before = set(directories(own))
    with slow_deletion(own, exchange):
        client.channel.exchange_delete(exchange)
        evaluate(own, "exit(whereis(rabbit_delay_registry), kill).")
        client.delayed(name=exchange)
        eventually(lambda: publishes(client, exchange, b"new"), bool, within=90)
    eventually(lambda: Management(own).messages_delayed(exchange), lambda n: n == 1)
    assert len(before - set(directories(own))) == 1


def test_publishing_goes_on_while_the_registry_ends_again_and_again(own, client):
    exchange, queue = client.delayed_and_queue()
    for n in range(5):
        evaluate(own, "exit(whereis(rabbit_delay_registry), kill).")
        another = client.delayed()
        client.publish(another, body=b"x", delay=HOUR_MS)
        client.publish(exchange, body=str(n).encode(), delay=1)
    assert sorted(client.texts(queue, 5)) == [str(n) for n in range(5)]


def test_an_exchange_that_delays_nothing_makes_no_atom(own, client):
    """Names that come and go must not fill the node's table of atoms."""
    def come_and_go():
        for _ in range(50):
            exchange, queue = client.delayed_and_queue()
            client.publish(exchange, body=b"x")
            Management(own).exchange(exchange)
            client.channel.exchange_delete(exchange)
            client.channel.queue_delete(queue)

    come_and_go()
    before = int(evaluate(own, "erlang:system_info(atom_count)."))
    come_and_go()
    made = int(evaluate(own, "erlang:system_info(atom_count).")) - before
    assert made < 50
