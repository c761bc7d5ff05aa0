# SPDX-License-Identifier: MPL-2.0
"""What a publisher is told, and what it is spared."""

import os
import time

import pika
import pika.exceptions
import pytest

import wire
from client import LATE, Client, closes_channel
from management import eventually
from node import HOUR_MS, evaluate, kill_9


@pytest.fixture
def returns(client):
    """What basic.return brought to a channel without confirms, and that channel."""
    channel = client.connection.channel()
    returned = []
    channel.add_on_return_callback(lambda _c, method, _p, body: returned.append((method, body)))
    yield channel, returned
    channel.close()


def counters(broker):
    """The broker's own counters of unroutable messages, dropped and returned."""
    return evaluate(broker, "[lists:sum([maps:get(K, M, 0) || M <- maps:values("
                    "rabbit_global_counters:overview())]) || K <- "
                    "[messages_unroutable_dropped_total, messages_unroutable_returned_total]].")


# --------------------------------------------------------------------------- confirms

def test_a_delayed_message_is_confirmed_long_before_it_is_due(client, management):
    exchange = client.delayed()
    began = client.publish(exchange, delay=600000)
    assert (time.monotonic() - began) * 1000 < LATE < 600000
    assert management.messages_delayed(exchange) == 1


def test_every_one_of_many_is_confirmed_once(client, broker, management):
    exchange = client.delayed()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", ["x"] * 10000, headers={"x-delay": 600000})
        assert publisher.confirmed == set(range(1, 10001))
        assert publisher.refused == set()
    assert management.messages_delayed(exchange) == 10000


def test_delayed_and_direct_messages_are_confirmed_on_one_channel(client, broker):
    exchange, queue = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [str(n) for n in range(2000)],
                          headers=lambda n: {"x-delay": 500 if n % 2 else 0})
        assert publisher.confirmed == set(range(1, 2001))
    got = client.texts(queue, 2000)
    assert sorted(map(int, got)) == list(range(2000))


def test_several_connections_publish_at_once(client, broker, management):
    exchange = client.delayed()
    publishers = [wire.Publisher(broker) for _ in range(4)]
    for publisher in publishers:
        publisher.send(exchange, "k", ["x"] * 500, headers={"x-delay": 600000})
    for publisher in publishers:
        publisher.await_answers()
        assert publisher.confirmed == set(range(1, 501))
        publisher.close()
    assert management.messages_delayed(exchange) == 2000


def test_without_confirms_they_arrive_too(client):
    exchange, queue = client.delayed_and_queue()
    for number in range(100):
        client.channel.basic_publish(exchange, "k", str(number).encode(),
                                     pika.BasicProperties(headers={"x-delay": 400}))
    assert len(client.texts(queue, 100)) == 100


# -------------------------------------------------------------------------- mandatory

def test_a_delayed_mandatory_message_is_not_returned(client, management, returns, clock):
    channel, returned = returns
    exchange = client.delayed()
    channel.basic_publish(exchange, "nowhere", b"kept",
                          pika.BasicProperties(headers={"x-delay": HOUR_MS}), mandatory=True)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    clock(2 * HOUR_MS)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)
    channel.queue_declare("", exclusive=True)
    assert returned == []


def test_a_delayed_mandatory_message_is_delivered(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"kept", delay=300, mandatory=True)
    assert client.texts(queue, 1) == ["kept"]


def test_an_undelayed_mandatory_message_without_a_route_is_returned(client):
    exchange = client.delayed()
    with pytest.raises(pika.exceptions.UnroutableError) as failure:
        client.publish(exchange, "nowhere", b"back", mandatory=True)
    assert failure.value.messages[0].method.reply_code == 312


def test_delayed_messages_are_not_counted_as_unroutable(client, broker, management):
    before = counters(broker)
    exchange, queue = client.delayed_and_queue()
    for number in range(20):
        client.publish(exchange, "k", b"x", delay=200, mandatory=bool(number % 2))
    client.collect(queue, 20)
    client.publish(exchange, "nowhere", b"x", delay=200)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)
    assert counters(broker) == before


# ------------------------------------------------------------------------------- tx

def test_a_transaction_delays_on_commit_only(client, management):
    exchange, queue = client.delayed_and_queue()
    channel = client.connection.channel()
    channel.tx_select()
    channel.basic_publish(exchange, "k", b"committed",
                          pika.BasicProperties(headers={"x-delay": 400}, delivery_mode=2))
    channel.queue_declare(queue, passive=True)
    assert management.messages_delayed(exchange) == 0
    committed = time.monotonic()
    channel.tx_commit()
    delivery = client.one(queue)
    assert delivery.text == "committed"
    assert (delivery.at - committed) * 1000 >= 400


def test_what_is_rolled_back_is_never_delivered(client, management):
    exchange, queue = client.delayed_and_queue()
    channel = client.connection.channel()
    channel.tx_select()
    delayed = pika.BasicProperties(headers={"x-delay": 200}, delivery_mode=2)
    channel.basic_publish(exchange, "k", b"rolled back", delayed)
    channel.tx_rollback()
    channel.basic_publish(exchange, "k", b"committed", delayed)
    channel.tx_commit()
    assert client.texts(queue, 1) == ["committed"]
    assert client.texts_until_marker(queue) == []
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)


def test_a_commit_of_a_bad_delay_is_refused(client):
    exchange, queue = client.delayed_and_queue()

    def commit():
        channel = client.connection.channel()
        channel.tx_select()
        channel.basic_publish(exchange, "k", b"bad",
                              pika.BasicProperties(headers={"x-delay": "soon"}))
        channel.tx_commit()

    assert closes_channel(commit)[0] == 406
    assert client.texts_until_marker(queue) == []


# ---------------------------------------------------------------------------- metrics

def test_publish_rates_count_each_message_once(client, management):
    exchange, queue = client.delayed_and_queue()
    for _ in range(25):
        client.publish(exchange, delay=500)
    client.collect(queue, 25)
    shown = eventually(lambda: management.exchange(exchange).get("message_stats", {}),
                       lambda stats: stats.get("publish_in") == 25
                       and stats.get("publish_out") == 25)
    assert (shown["publish_in"], shown["publish_out"]) == (25, 25)
    stats = eventually(lambda: management.queue(queue).get("message_stats", {}),
                       lambda stats: stats.get("publish") == 25)
    assert stats["publish"] == 25


# ------------------------------------------------------------------- sizes and limits

@pytest.mark.parametrize("size", [1, 1000, 131072, 1 << 20, 16 << 20])
def test_messages_of_any_size_come_back_byte_for_byte(client, size):
    exchange, queue = client.delayed_and_queue()
    body = os.urandom(min(size, 1 << 16)) * max(1, size >> 16)
    client.publish(exchange, body=body, delay=300)
    assert client.one(queue).body == body


def test_a_great_many_headers_come_back(client):
    exchange, queue = client.delayed_and_queue()
    headers = {f"header-{n}": "value" * 5 for n in range(1000)}
    client.publish(exchange, body=b"x", delay=300, headers=headers)
    assert client.one(queue).headers == {**headers, "x-delay": -300}


# ------------------------------------------------------------------------- durability

@pytest.fixture(scope="module")
def crashing(brokers):
    """A broker for tests that kill it, and start it again."""
    broker = brokers("crashing")
    yield broker
    broker.end()


def test_what_was_confirmed_survives_kill_9_right_after(crashing):
    exchange, queue = Client(crashing).delayed_and_queue()
    publisher = wire.Publisher(crashing)
    publisher.publish(exchange, "k", [str(n) for n in range(5000)], headers={"x-delay": 3000})
    kill_9(crashing)
    assert publisher.confirmed == set(range(1, 5001))
    crashing.start()
    client = Client(crashing)
    client.collect_every(queue, {str(n) for n in range(5000)})
    client.close()


def test_the_first_messages_of_new_exchanges_survive_kill_9_right_after(crashing):
    client = Client(crashing)
    queues = {}
    for n in range(20):
        exchange, queue = client.delayed_and_queue()
        client.publish(exchange, body=str(n).encode(), delay=3000)
        queues[n] = queue
    kill_9(crashing)
    crashing.start()
    client = Client(crashing)
    for n, queue in queues.items():
        assert client.texts(queue, 1) == [str(n)]
    client.close()


@pytest.mark.parametrize("left", [b"", b"not a table" * 1000, None], ids=["empty", "damaged", "gone"])
def test_without_rafts_table_of_names_nothing_confirmed_is_lost(crashing, left):
    client = Client(crashing)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"kept", delay=3000)
    kill_9(crashing)
    table = os.path.join(crashing.data_dir, "quorum", "delayed", "names.dets")
    os.remove(table)
    if left is not None:
        with open(table, "wb") as f:
            f.write(left)
    crashing.start()
    client = Client(crashing)
    assert client.texts(queue, 1) == ["kept"]
    client.close()


def test_kill_9_amid_publishing_loses_nothing_confirmed(crashing):
    exchange, queue = Client(crashing).delayed_and_queue()
    confirmed = set()
    for base in (0, 1000000):
        publisher = wire.Publisher(crashing)
        while len(publisher.confirmed) < 3000:
            first = base + publisher.published + 1
            publisher.send(exchange, "k", [str(first + n) for n in range(200)],
                           headers={"x-delay": 500 if first % 400 == 1 else 8000})
            publisher.drain()
        kill_9(crashing)
        publisher.drain()
        confirmed |= {str(base + n) for n in publisher.confirmed}
        crashing.start()
    client = Client(crashing)
    client.collect_every(queue, confirmed)
    client.close()


def test_kill_9_amid_releasing_loses_nothing(crashing):
    client = Client(crashing)
    exchange, queue = client.delayed_and_queue()
    with wire.Publisher(crashing) as publisher:
        publisher.publish(exchange, "k", [str(n) for n in range(5000)],
                          headers=lambda n: {"x-delay": 2000 + n % 1000})
    early = {delivery.text for delivery in client.collect(queue, 1000)}
    kill_9(crashing)
    crashing.start()
    client = Client(crashing)
    client.collect_every(queue, {str(n) for n in range(5000)} - early)
    client.close()
