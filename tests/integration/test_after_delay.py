# SPDX-License-Identifier: MPL-2.0
"""What comes out after the delay, where it goes, and in which order."""

import time
from decimal import Decimal

import pytest

import wire
from client import Client, Delivery, assert_on_time
from management import WITHIN, eventually
from node import MINUTE_MS, evaluate


def test_the_delay_is_negated(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, delay=300)
    assert client.one(queue).headers["x-delay"] == -300


@pytest.mark.parametrize("header, expected", [
    pytest.param(wire.unsigned_byte(255), -255, id="unsigned byte"),
    pytest.param(wire.unsigned_short(256), -256, id="unsigned short"),
    pytest.param(wire.unsigned_int(300), -300, id="unsigned int"),
    pytest.param(wire.signed_byte(100), -100, id="signed byte"),
    pytest.param("300", -300, id="string"),
    pytest.param(wire.decimal(30000, 2), -300, id="decimal"),
    pytest.param(wire.double_float(300.5), -301, id="double"),
])
def test_a_message_republished_as_it_came_is_not_delayed_again(client, header, expected):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"again", delay=header)
    delivery = client.one(queue)
    assert int(float(delivery.headers["x-delay"])) == expected
    client.confirming.basic_publish(exchange, "k", delivery.body, delivery.properties)
    client.publish("", queue, b"after it")
    assert client.texts(queue, 2) == ["again", "after it"]


def test_body_properties_and_other_headers_are_untouched(client):
    exchange, queue = client.delayed_and_queue()
    body = bytes(range(256)) * 5
    headers = {"text": "ünï", "int": 7, "long": wire.signed_long(2**40), "bool": True,
               "none": wire.VOID, "list": [1, "two", {"three": 3}], "table": {"a": {"b": "c"}},
               "double": wire.double_float(1.5), "bytes": wire.byte_array(b"\x00\xff"),
               "decimal": wire.decimal(12345, 2)}
    properties = {
        "content_type": "application/json", "content_encoding": "gzip", "delivery_mode": 2,
        "priority": 7, "correlation_id": "correlation", "reply_to": "reply", "expiration": "60000",
        "message_id": "id", "timestamp": 1700000000, "type": "type", "user_id": "guest",
        "app_id": "app", "cluster_id": "cluster"}
    client.publish(exchange, body=body, delay=200, headers=headers, **properties)
    delivery = client.one(queue)
    assert delivery.body == body
    for name, value in properties.items():
        assert getattr(delivery.properties, name) == value, name
    got = dict(delivery.headers)
    assert got.pop("x-delay") == -200
    assert got == {"text": "ünï", "int": 7, "long": 2**40, "bool": True, "none": None,
                   "list": [1, "two", {"three": 3}], "table": {"a": {"b": "c"}}, "double": 1.5,
                   "bytes": b"\x00\xff", "decimal": Decimal("123.45")}


def test_a_transient_message_stays_transient(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, delay=200, delivery_mode=1)
    assert client.one(queue).properties.delivery_mode == 1


def test_no_death_is_recorded_and_it_is_not_redelivered(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, delay=200)
    delivery = client.one(queue)
    assert set(delivery.headers) == {"x-delay"}
    assert delivery.method.redelivered is False


def test_the_delivery_names_the_exchange_and_key_published_to(client):
    exchange = client.delayed("topic")
    queue = client.queue((exchange, "#"))
    client.publish(exchange, key="some.key", delay=200)
    method = client.one(queue).method
    assert (method.exchange, method.routing_key) == (exchange, "some.key")


def test_an_empty_body_and_an_empty_key_arrive(client):
    exchange = client.delayed("direct")
    queue = client.queue((exchange, ""))
    client.publish(exchange, key="", body=b"", delay=200)
    delivery = client.one(queue)
    assert (delivery.body, delivery.method.routing_key) == (b"", "")


def test_carbon_copies_are_routed_and_blind_ones_removed(client):
    exchange = client.delayed()
    to, copy, blind = (client.queue((exchange, key)) for key in ("to", "copy", "blind"))
    client.publish(exchange, "to", b"letter", delay=300,
                   headers={"CC": ["copy"], "BCC": ["blind"]})
    for queue in (to, copy, blind):
        delivery = client.one(queue)
        assert delivery.text == "letter"
        assert delivery.headers["CC"] == ["copy"]
        assert "BCC" not in delivery.headers


def test_a_queue_reached_twice_gets_one_copy(client):
    exchange = client.delayed()
    queue = client.queue((exchange, "a"), (exchange, "b"))
    client.publish(exchange, "a", b"once", delay=200, headers={"CC": ["b"]})
    client.publish(exchange, "a", b"last", delay=400)
    assert client.texts(queue, 2) == ["once", "last"]


def test_a_forged_user_id_is_refused_when_published(client):
    exchange, queue = client.delayed_and_queue()
    code, _ = client.refusal(exchange, delay=100, user_id="somebody-else")
    assert code == 406
    assert client.texts_until_marker(queue) == []


def test_expiration_starts_to_count_on_arrival(client):
    exchange, queue = client.delayed_and_queue()
    got = []
    channel = client.connection.channel()
    # It waits for the message, which does not wait for it.
    channel.basic_consume(queue, lambda _c, method, properties, body: got.append(
        Delivery(method, properties, body)), auto_ack=True)
    published = client.publish(exchange, body=b"fresh", delay=1000, expiration="400")
    deadline = time.monotonic() + WITHIN
    while not got and time.monotonic() < deadline:
        client.connection.process_data_events(0.5)
    channel.close()
    delivery, = got
    assert_on_time(delivery, published, 1000)
    assert delivery.properties.expiration == "400"


def test_expiration_still_holds_after_arrival(client):
    exchange = client.delayed()
    dead = client.queue()
    client.queue((exchange, "k"), arguments={"x-dead-letter-exchange": "",
                                             "x-dead-letter-routing-key": dead})
    client.publish(exchange, body=b"stale", delay=200, expiration="100")
    delivery = client.one(dead)
    assert delivery.headers["x-death"][0]["reason"] == "expired"


def test_priority_counts_in_the_target_queue(client):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-max-priority": 9})
    for priority in (1, 9, 5):
        client.publish(exchange, body=str(priority).encode(), delay=300, priority=priority)
    eventually(lambda: client.depth(queue), lambda depth: depth == 3)
    assert client.texts(queue, 3) == ["9", "5", "1"]


# ---------------------------------------------------------------------------- routing

def test_bindings_are_those_at_the_due_time(client, clock):
    exchange = client.delayed()
    before, after = client.queue((exchange, "k")), client.queue()
    client.publish(exchange, body=b"moved", delay=10 * MINUTE_MS)
    client.channel.queue_unbind(before, exchange, "k")
    client.channel.queue_bind(after, exchange, "k")
    clock(20 * MINUTE_MS)
    assert client.texts(after, 1) == ["moved"]
    assert client.texts_until_marker(before) == []


def test_a_queue_declared_after_publishing_gets_it(client, clock):
    exchange = client.delayed()
    client.publish(exchange, body=b"waiting for you", delay=10 * MINUTE_MS)
    queue = client.queue((exchange, "k"))
    clock(20 * MINUTE_MS)
    assert client.texts(queue, 1) == ["waiting for you"]


def test_it_routes_on_through_exchange_bindings(client):
    exchange = client.delayed("direct")
    next_, last = client.exchange("fanout"), client.exchange("topic")
    client.channel.exchange_bind(next_, exchange, "k")
    client.channel.exchange_bind(last, next_)
    queue = client.queue((last, "#"))
    published = client.publish(exchange, body=b"far", delay=400)
    assert_on_time(client.one(queue), published, 400)


def test_it_delays_what_another_exchange_routes_to_it(client, clock):
    first, exchange = client.exchange("topic"), client.delayed("fanout")
    client.channel.exchange_bind(exchange, first, "#")
    queue = client.queue((exchange, ""))
    client.publish(first, "any.key", body=b"relayed", delay=10 * MINUTE_MS)
    client.publish(first, "any.key", body=b"at once")
    assert client.texts_until_marker(queue) == ["at once"]
    clock(20 * MINUTE_MS)
    relayed = client.one(queue)
    assert (relayed.text, relayed.headers["x-delay"]) == ("relayed", -10 * MINUTE_MS)


@pytest.mark.parametrize("kind, keys, key", [("direct", ["k"], "k"), ("topic", ["#"], "a.b"), ("fanout", [""], "x")])
def test_queues_of_an_exchange_that_is_there_move_behind_it(client, clock, kind, keys, key):
    """As docs/delays.md says: who publishes goes on as before."""
    first = client.exchange(kind)
    queue = client.queue(*((first, binding) for binding in keys))
    exchange = client.delayed(kind)
    for binding in keys:
        client.channel.exchange_bind(exchange, first, binding)
        client.channel.queue_bind(queue, exchange, binding)
        client.channel.queue_unbind(queue, first, binding)
    client.publish(first, key, body=b"later", delay=10 * MINUTE_MS)
    client.publish(first, key, body=b"now")
    assert client.one(queue).text == "now"
    assert client.depth(queue) == 0
    clock(20 * MINUTE_MS)
    assert client.one(queue).text == "later"


def test_a_headers_exchange_can_feed_it(client):
    """RabbitMQ's JMS client declares a delayed exchange of type headers, and binds from one."""
    source = client.exchange("headers")
    exchange = client.delayed("headers", name=f"delayed-exchange-{source}")
    client.channel.exchange_bind(exchange, source, "",
                                 arguments={"x-match": "any", "delay-me": "yes"})
    queue = client.queue((exchange, "", {"x-match": "all", "delay-me": "yes"}))
    published = client.publish(source, "", b"jms", delay=400, headers={"delay-me": "yes"})
    assert_on_time(client.one(queue), published, 400)


def test_a_second_delayed_exchange_does_not_delay_it_again(client):
    first, second = client.delayed("fanout"), client.delayed("fanout")
    client.channel.exchange_bind(second, first)
    queue = client.queue((second, ""))
    published = client.publish(first, body=b"chain", delay=400)
    assert_on_time(client.one(queue), published, 400)


def test_one_publish_through_two_delayed_exchanges_is_delayed_in_each(client):
    front = client.exchange("fanout")
    queues = []
    for _ in range(2):
        exchange = client.delayed("fanout")
        client.channel.exchange_bind(exchange, front)
        queues.append(client.queue((exchange, "")))
    published = client.publish(front, body=b"both", delay=400)
    for queue in queues:
        assert_on_time(client.one(queue), published, 400)


def test_a_message_delayed_here_and_routed_at_once_elsewhere(client):
    front = client.exchange("fanout")
    exchange = client.delayed("fanout")
    client.channel.exchange_bind(exchange, front)
    direct, later = client.queue((front, "")), client.queue((exchange, ""))
    published = client.publish(front, body=b"both", delay=600)
    now = client.one(direct)
    assert now.headers["x-delay"] == 600
    assert_on_time(client.one(later), published, 600)


def test_it_can_be_delivered_to_quorum_queues_and_streams(client):
    exchange = client.delayed("fanout")
    quorum = client.queue((exchange, ""), arguments={"x-queue-type": "quorum"})
    stream = client.queue((exchange, ""), arguments={"x-queue-type": "stream"})
    client.publish(exchange, body=b"everywhere", delay=300)
    assert client.texts(quorum, 1) == ["everywhere"]
    channel = client.connection.channel()
    channel.basic_qos(prefetch_count=10)
    got = []

    def on_message(_channel, method, _properties, body):
        channel.basic_ack(method.delivery_tag)
        got.append(body)

    channel.basic_consume(stream, on_message, arguments={"x-stream-offset": "first"})
    deadline = time.monotonic() + WITHIN
    while not got and time.monotonic() < deadline:
        client.connection.process_data_events(0.5)
    channel.close()
    assert got == [b"everywhere"]


def test_fifty_copies_of_one_message_all_arrive(client):
    exchange = client.delayed("fanout")
    queues = [client.queue((exchange, "")) for _ in range(50)]
    client.publish(exchange, body=b"copy", delay=300)
    for queue in queues:
        assert client.texts(queue, 1) == ["copy"]


# ------------------------------------------------------------------------------ order

def test_those_due_at_the_same_millisecond_come_in_order_of_confirmation(client, clock):
    exchange, queue = client.delayed_and_queue()
    due = wire.signed_long(int(time.time() * 1000) + 10 * MINUTE_MS)
    wanted = [str(n) for n in range(300)]
    for body in wanted:
        client.publish(exchange, body=body.encode(), headers={"x-opt-delivery-time": due})
    clock(20 * MINUTE_MS)
    assert client.texts(queue, 300) == wanted


def test_thousands_due_at_the_same_millisecond_come_in_the_order_of_their_channel(client, broker,
                                                                                  clock):
    exchange, queue = client.delayed_and_queue()
    due = wire.signed_long(int(time.time() * 1000) + 10 * MINUTE_MS)
    wanted = [str(n) for n in range(5000)]
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", wanted, headers={"x-opt-delivery-time": due})
    clock(20 * MINUTE_MS)
    assert client.texts(queue, 5000) == wanted


def test_the_one_due_first_comes_first_whenever_it_was_published(client, clock):
    exchange, queue = client.delayed_and_queue()
    for minutes in (25, 5, 15, 10, 20):
        client.publish(exchange, body=str(minutes).encode(), delay=minutes * MINUTE_MS)
    clock(30 * MINUTE_MS)
    assert client.texts(queue, 5) == ["5", "10", "15", "20", "25"]


# ------------------------------------------------------------------------- unroutable

def test_the_alternate_exchange_gets_it_at_the_due_time_only(client, clock):
    alternate = client.exchange("fanout")
    queue = client.queue((alternate, ""))
    exchange = client.delayed(arguments={"alternate-exchange": alternate})
    client.publish(exchange, "nowhere", b"lost", delay=10 * MINUTE_MS)
    assert client.texts_until_marker(queue) == []
    clock(20 * MINUTE_MS)
    lost = client.one(queue)
    assert (lost.text, lost.headers["x-delay"]) == ("lost", -10 * MINUTE_MS)
    assert lost.method.routing_key == "nowhere"


def test_the_alternate_exchange_gets_an_undelayed_one_at_once(client):
    alternate = client.exchange("fanout")
    queue = client.queue((alternate, ""))
    exchange = client.delayed(arguments={"alternate-exchange": alternate})
    client.publish(exchange, "nowhere", b"lost")
    client.publish("", queue, b"after it")
    assert client.texts(queue, 2) == ["lost", "after it"]


def test_the_alternate_exchange_gets_nothing_that_has_a_route(client):
    alternate = client.exchange("fanout")
    spare = client.queue((alternate, ""))
    exchange = client.delayed(arguments={"alternate-exchange": alternate})
    queue = client.queue((exchange, "k"))
    client.publish(exchange, body=b"routed", delay=300)
    assert client.texts(queue, 1) == ["routed"]
    assert client.texts_until_marker(spare) == []


def test_one_without_a_route_is_dropped_and_no_longer_counted_as_delayed(client, management, clock):
    exchange = client.delayed()
    client.publish(exchange, "nowhere", delay=10 * MINUTE_MS)
    assert management.messages_delayed(exchange) == 1
    clock(20 * MINUTE_MS)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)


def test_those_without_a_route_are_counted_by_a_metric_of_their_own(client, broker, management):
    exchange, queue = client.delayed_and_queue()
    for key in ("nowhere", "k", "nowhere", "nowhere"):
        client.publish(exchange, key, delay=300)
    client.collect(queue, 1)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)
    dispatcher = ("rabbit_delay_registry:dispatcher(rabbit_misc:r(<<\"/\">>, exchange, "
                  f"<<\"{exchange}\">>))")
    unroutable = evaluate(
        broker, f"maps:get(unroutable, rabbit_delay_dispatcher:counters({dispatcher})).")
    assert unroutable == "3"
    # One in ten seconds is said to the log.
    told = f"exchange '{exchange}' in vhost '/' is dropped: no queue is bound for it"
    assert eventually(broker.log, lambda log: told in log).count(told) <= 3


def test_one_without_a_route_does_not_hold_up_others(client):
    exchange, queue = client.delayed_and_queue()
    for number in range(20):
        client.publish(exchange, "nowhere", delay=300)
        client.publish(exchange, "k", str(number).encode(), delay=300)
    assert client.texts(queue, 20) == [str(n) for n in range(20)]


def test_an_exclusive_queue_of_another_connection_gets_it(client, broker):
    exchange = client.delayed()
    other = Client(broker)
    queue = other.queue((exchange, "k"), exclusive=True, durable=False)
    client.publish(exchange, body=b"yours", delay=300)
    assert other.texts(queue, 1) == ["yours"]
    other.close()


def test_it_is_delivered_although_its_publisher_is_long_gone(client, broker):
    exchange, queue = client.delayed_and_queue()
    publisher = Client(broker)
    publisher.publish(exchange, body=b"posthumous", delay=1000)
    publisher.close()
    assert client.texts(queue, 1) == ["posthumous"]
