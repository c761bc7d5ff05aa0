# SPDX-License-Identifier: MPL-2.0
"""Retry with backoff: dead letters that come back to the queue they died in, and are parked when
their attempts are used up.

Longer than other files are, as all of it is on one topology, with its helpers."""

import contextlib
import datetime
import time

import pika
import pika.exceptions
import pytest

import wire
from client import Client, closes_channel
from management import WITHIN, Management, eventually, quoted
from node import HOUR_MS, evaluate, set_clock

QUEUES = [pytest.param({}, id="classic"),
          pytest.param({"x-queue-type": "quorum"}, id="quorum"),
          pytest.param({"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once",
                        "x-overflow": "reject-publish"}, id="quorum, at least once")]


def retrying(client, schedule="5ms", parked=True, **settings):
    """A delayed exchange that retries, and the queue where it parks, if so."""
    arguments = {"x-delay-retry": schedule} if schedule else {}
    arguments.update({f"x-delay-retry-{name.replace('_', '-')}": value
                      for name, value in settings.items()})
    queue = None
    if parked:
        queue = client.queue()
        arguments.update({"x-delay-retry-parking-exchange": "",
                          "x-delay-retry-parking-routing-key": queue})
    return client.delayed(arguments=arguments), queue


def working(client, exchange, arguments=None, **options):
    """A queue that dead-letters to the exchange."""
    return client.queue(arguments={"x-dead-letter-exchange": exchange, **(arguments or {})},
                        **options)


def die(client, queue, n, requeue=False, within=WITHIN):
    """Rejects the first n deliveries of the queue; answers them."""
    got = []
    channel = client.connection.channel()
    channel.basic_qos(prefetch_count=1)

    def on_message(_channel, method, properties, body):
        got.append((time.monotonic(), method, properties, body))
        channel.basic_reject(method.delivery_tag, requeue=requeue)
        if len(got) == n:
            channel.stop_consuming()

    timer = client.connection.call_later(within, channel.stop_consuming)
    channel.basic_consume(queue, on_message)
    channel.start_consuming()
    client.connection.remove_timeout(timer)
    channel.close()
    assert len(got) == n, f"{len(got)} of {n} came within {within} s"
    return got


def deaths(headers, queue):
    """How often it died in the queue, by reason."""
    return {death["reason"]: death["count"] for death in headers.get("x-death", [])
            if death["queue"] == queue}


def put_aside(delivery):
    """Why it was parked, in which queue it had died, and how often."""
    return (delivery.headers["x-delay-death-reason"], delivery.headers["x-delay-death-queue"],
            delivery.headers["x-delay-death-count"])


def figure(broker, exchange, name):
    return int(evaluate(broker, f"maps:get({name}, rabbit_delay_counters:read("
                                f"rabbit_delay_registry:counters(rabbit_misc:r("
                                f'<<"/">>, exchange, <<"{exchange}">>)))).'))


# ------------------------------------------------------------------------ back to the queue

@pytest.mark.parametrize("arguments", QUEUES)
def test_a_rejected_message_comes_back_until_its_attempts_are_used_up(client, broker, arguments):
    exchange, parked = retrying(client, "20ms, 40ms,80ms")
    front = client.exchange("topic")
    queue = working(client, exchange, arguments)
    client.channel.queue_bind(queue, front, "orders.#")
    other = client.queue((front, "orders.#"))
    before = time.time() * 1000
    client.publish(front, "orders.new", b"poison", headers={"kept": "yes"}, message_id="m",
                   priority=3)
    got = die(client, queue, 4)
    for n, (_, method, properties, body) in enumerate(got):
        assert (method.exchange, method.routing_key, body) == (front, "orders.new", b"poison")
        assert (properties.headers["kept"], properties.message_id, properties.priority) == (
            "yes", "m", 3)
        assert deaths(properties.headers, queue) == ({"rejected": n} if n else {})
    pauses = [later[0] - sooner[0] for sooner, later in zip(got, got[1:])]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08))), pauses
    delivery = client.one(parked)
    assert put_aside(delivery) == ("attempts_used_up", queue, 4)
    assert delivery.headers["x-delay-death-exchange"] == exchange
    assert before <= delivery.headers["x-delay-death-time"] <= time.time() * 1000
    assert delivery.headers["x-death"][0]["count"] == 4
    assert delivery.headers["kept"] == "yes" and delivery.text == "poison"
    assert client.texts(other, 1) == ["poison"]
    assert client.texts_until_marker(other) == []
    eventually(lambda: [figure(broker, exchange, name) for name in (
        "returned", "parked", "released", "unroutable")], lambda now: now == [3, 1, 0, 0])


# A queue that rejects what is too much has no deaths by maxlen.
@pytest.mark.parametrize("reason, arguments, kind", [
    pytest.param(reason, arguments, *kind.values, id=f"{reason}-{kind.id}")
    for reason, arguments in (("rejected", {}), ("expired", {"x-message-ttl": 1}),
                              ("maxlen", {"x-max-length": 0}))
    for kind in QUEUES if not (reason == "maxlen" and "x-overflow" in kind.values[0])])
def test_fifty_rounds(client, reason, arguments, kind):
    """The broker drops what goes in a circle by itself; here it goes round all the same."""
    exchange, parked = retrying(client, "1ms", attempts=50, reasons=reason)
    queue = working(client, exchange, {**kind, **arguments})
    client.publish("", queue, b"round")
    if reason == "rejected":
        die(client, queue, 51)
    delivery = client.one(parked)
    assert deaths(delivery.headers, queue) == {reason: 51}
    assert put_aside(delivery) == ("attempts_used_up", queue, 51)


def test_fifty_rounds_of_the_delivery_limit(client):
    exchange, parked = retrying(client, "1ms", attempts=50)
    queue = working(client, exchange, {"x-queue-type": "quorum", "x-delivery-limit": 1})
    client.publish("", queue, b"round")
    got = die(client, queue, 102, requeue=True)
    assert all("x-delivery-count" not in properties.headers for _, _, properties, _ in got[::2])
    delivery = client.one(parked)
    assert deaths(delivery.headers, queue) == {"delivery_limit": 51}
    assert not delivery.headers.get("x-delivery-count")


def test_attempts_are_counted_for_each_queue(client):
    """Two copies of a message, and one that dies in one queue after it died in another."""
    exchange, parked = retrying(client, "1ms,1ms")
    front = client.exchange("fanout")
    first, second = (working(client, exchange) for _ in range(2))
    for queue in (first, second):
        client.channel.queue_bind(queue, front, "")
    client.publish(front, "", b"to both")
    die(client, first, 3)
    assert put_aside(client.one(parked)) == ("attempts_used_up", first, 3)
    die(client, second, 3)
    assert put_aside(client.one(parked)) == ("attempts_used_up", second, 3)

    onwards = client.queue(arguments={"x-message-ttl": 1, "x-dead-letter-exchange": "",
                                      "x-dead-letter-routing-key": first})
    client.publish("", onwards, b"dead already")
    for _, _, properties, _ in die(client, first, 3):
        assert deaths(properties.headers, onwards) == {"expired": 1}
    delivery = client.one(parked)
    assert put_aside(delivery) == ("attempts_used_up", first, 3)
    assert deaths(delivery.headers, onwards) == {"expired": 1}


def test_what_is_not_retried_is_parked_at_once(client):
    exchange, parked = retrying(client, "1h", reasons="rejected,maxlen")
    queue = working(client, exchange, {"x-message-ttl": 1})
    client.publish("", queue, b"old")
    delivery = client.one(parked)
    assert put_aside(delivery) == ("not_retried", queue, 1)
    assert delivery.headers["x-death"][0]["reason"] == "expired"


def test_reasons_that_are_retried_count_together_and_the_others_do_not(client, broker):
    exchange, parked = retrying(client, "1ms,1ms,1ms", reasons="rejected,expired")
    queue = working(client, exchange, {"x-max-length": 1})
    client.publish("", queue, b"m", expiration="1")
    eventually(lambda: figure(broker, exchange, "returned"), lambda n: n == 1)
    die(client, queue, 2)
    eventually(lambda: client.depth(queue), lambda depth: depth == 1)
    client.publish("", queue, b"pushes it out")
    delivery = client.one(parked)
    assert put_aside(delivery) == ("not_retried", queue, 4)
    assert deaths(delivery.headers, queue) == {"expired": 1, "rejected": 2, "maxlen": 1}


def test_a_message_loses_its_own_ttl_with_its_first_death(client, broker):
    exchange, _ = retrying(client, "1ms", reasons="expired")
    queue = working(client, exchange)
    client.publish("", queue, b"old", expiration="1")
    eventually(lambda: figure(broker, exchange, "returned"), lambda n: n == 1)
    delivery = client.one(queue)
    assert delivery.headers["x-death"][0]["original-expiration"] == "1"
    assert delivery.properties.expiration is None


def test_exponential_pauses(client):
    exchange, parked = retrying(client, None, initial="20ms", multiplier="2", max="50ms",
                                attempts=3)
    queue = working(client, exchange)
    client.publish("", queue, b"m")
    got = die(client, queue, 4)
    pauses = [later[0] - sooner[0] for sooner, later in zip(got, got[1:])]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.05))), pauses
    assert put_aside(client.one(parked)) == ("attempts_used_up", queue, 4)


def test_without_a_place_to_park_it_keeps_coming_back(client, broker):
    exchange, _ = retrying(client, "1ms,2ms", parked=False)
    queue = working(client, exchange)
    client.publish("", queue, b"m")
    got = die(client, queue, 8)
    assert deaths(got[-1][2].headers, queue) == {"rejected": 7}
    eventually(lambda: client.depth(queue), lambda depth: depth == 1)
    assert figure(broker, exchange, "unroutable") == 0


def test_it_may_be_routed_by_the_exchange_instead(client):
    exchange, parked = retrying(client, "1ms", to="exchange")
    queue = working(client, exchange)
    bound = client.queue((exchange, queue))
    client.publish("", queue, b"m")
    die(client, queue, 1)
    delivery = client.one(bound)
    assert (delivery.method.exchange, delivery.method.routing_key) == (exchange, queue)
    client.channel.queue_unbind(bound, exchange, queue)
    client.publish("", queue, b"m")
    die(client, queue, 1)
    assert put_aside(client.one(parked)) == ("unroutable", queue, 1)


def test_what_the_message_says_of_delays_and_keys_does_not_count(client, management):
    exchange, parked = retrying(client, "1ms")
    queue = working(client, exchange)
    client.publish(exchange, "nowhere", b"pending", delay=HOUR_MS, headers={"x-delay-key": "key"})
    for headers in ({"x-delay": HOUR_MS}, {"x-opt-delivery-time": int(time.time() * 2000)},
                    {"x-delay": "soon"}, {"x-delay-key": "key", "x-delay-on-duplicate": "drop"},
                    {"x-delay-key": "key", "x-delay-on-duplicate": "replace"},
                    {"x-delay-cancel": "key"}, {"x-delay-key": ""}):
        client.publish("", queue, b"m", headers=headers)
        die(client, queue, 2)
        assert put_aside(client.one(parked)) == ("attempts_used_up", queue, 2)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)


@pytest.mark.parametrize("asks", [{"x-delay-on-duplicate": "replace"}, {"x-delay-on-duplicate": "drop"},
                                  {"x-delay-cancel": "key"}, {"x-delay-release": "key"}])
def test_a_history_that_its_author_wrote_lets_it_act_on_no_other(client, management, asks):
    """Who may publish to a work queue alone can say, on 3.10, that the message was published here before it died."""
    exchange, _ = retrying(client, "1h,1h,1h")
    queue = working(client, exchange)
    client.publish(exchange, "nowhere", b"pending", delay=HOUR_MS, headers={"x-delay-key": "key"})
    key = {} if "x-delay-on-duplicate" not in asks else {"x-delay-key": "key"}
    client.publish("", queue, b"m", headers={
        **key, **asks,
        "x-death": [{"queue": queue, "reason": "rejected", "exchange": exchange, "routing-keys": ["k"], "count": 1,
                     "time": datetime.datetime.now()}]})
    die(client, queue, 1)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 2)
    _, found = management.request("GET", f"delayed-exchanges/%2F/{exchange}/messages")
    assert min(message["due"] for message in found["items"]) > (time.time() + 1800) * 1000


def test_its_key_cancels_it(client, management):
    exchange, parked = retrying(client, "1h")
    queue = working(client, exchange)
    client.publish("", queue, b"m", message_id="order 7")
    die(client, queue, 1)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    client.publish(exchange, headers={"x-delay-cancel": "order 7"})
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)
    assert client.depth(queue) == client.depth(parked) == 0


def test_other_messages_of_the_exchange_are_delayed_as_ever(client):
    exchange, _ = retrying(client, "1h")
    queue = client.queue((exchange, "k"))
    client.publish(exchange, body=b"at once")
    client.publish(exchange, body=b"later", delay=100)
    assert client.texts(queue, 2) == ["at once", "later"]


def test_dead_letters_that_come_by_a_binding_do_not_go_back(client):
    """Whoever binds an exchange to that of others' dead letters may not write to their queues."""
    exchange, parked = retrying(client, "1ms")
    dead = client.exchange("fanout")
    client.channel.exchange_bind(exchange, dead, "")
    queue = working(client, dead)
    bound = client.queue((exchange, queue))
    client.publish("", queue, b"now")
    die(client, queue, 1)
    client.publish("", queue, b"delayed", delay=5)
    die(client, queue, 1)
    assert client.texts(bound, 2) == ["now", "delayed"]
    assert client.texts_until_marker(queue) == client.texts_until_marker(parked) == []


def test_a_dead_letter_routing_key_does_not_stay(client):
    exchange, parked = retrying(client, "1ms")
    queue = working(client, exchange, {"x-dead-letter-routing-key": "dead"})
    front = client.exchange("direct")
    for key in ("one", "two"):
        client.channel.queue_bind(queue, front, key)
    client.publish(front, "one", b"m", headers={"CC": ["two"]})
    methods = [method for _, method, _, _ in die(client, queue, 2)]
    assert [(m.exchange, m.routing_key) for m in methods] == [(front, "one")] * 2
    assert put_aside(client.one(parked))[0] == "attempts_used_up"


@pytest.mark.parametrize("arguments", QUEUES)
def test_names_of_all_sorts(local, arguments):
    name = "a b/c?%25 é ☃ '\"\\"
    parking = local.exchange("fanout", name=f"parking {name}")
    parked = local.queue((parking, ""), name=f"parked {name}")
    exchange = local.delayed(name=f"retry {name}", arguments={
        "x-delay-retry": "1ms", "x-delay-retry-parking-exchange": parking})
    queue = working(local, exchange, arguments, name=name)
    local.publish("", queue, b"m")
    die(local, queue, 2)
    delivery = local.one(parked)
    assert put_aside(delivery) == ("attempts_used_up", queue, 2)
    assert delivery.headers["x-delay-death-exchange"] == exchange


# ------------------------------------------------------------------------------- x-death

def entry(queue, reason="rejected", **more):
    return {"queue": queue, "reason": reason, "count": wire.signed_long(1), "exchange": "forged",
            "routing-keys": ["forged"], **more}


def test_a_published_x_death_leads_nowhere(client):
    """Who may publish to the exchange may not publish to any queue by its name."""
    exchange, parked = retrying(client, "1ms")
    victim = client.queue()
    bound = client.queue((exchange, "k"))
    for delay in (None, 5):
        client.publish(exchange, body=b"forged", delay=delay, headers={"x-death": [entry(victim)]})
        assert client.texts(bound, 1) == ["forged"]
    client.publish(exchange, "nowhere", b"forged", delay=5, headers={"x-death": [entry(victim)]})
    assert client.texts_until_marker(victim) == []
    assert client.texts_until_marker(parked) == []


@pytest.mark.parametrize("arguments", QUEUES[:2])
@pytest.mark.parametrize("forge", [
    pytest.param(lambda queue, exchange: [entry("another"), entry("third", "expired")],
                 id="other queues"),
    pytest.param(lambda queue, exchange: [entry(queue, "expired"), entry(queue, "maxlen")],
                 id="other reasons"),
    pytest.param(lambda queue, exchange: [entry(f"amq.delayed.{exchange}", "expired")],
                 id="the internal queue"),
    pytest.param(lambda queue, exchange: [entry(queue, count=wire.signed_long(-5))],
                 id="a negative count"),
    pytest.param(lambda queue, exchange: [], id="nothing"),
    pytest.param(lambda queue, exchange: "x-death", id="text"),
    pytest.param(lambda queue, exchange: {"queue": queue}, id="a table"),
    pytest.param(lambda queue, exchange: [{"queue": 7, "reason": {}, "count": "many"}],
                 id="wrong types"),
])
def test_a_forged_x_death_loses_no_message(client, forge, arguments):
    exchange, parked = retrying(client, "1ms,1ms", reasons="rejected,expired")
    queue = working(client, exchange, arguments)
    client.publish("", queue, b"forged", headers={"x-death": forge(queue, exchange)})
    assert die_until_parked(client, queue, parked) <= 10
    delivery = client.one(parked)
    assert delivery.text == "forged" and delivery.headers["x-delay-death-queue"] == queue


def die_until_parked(client, queue, parked, most=10):
    """Rejects the queue's message until it is parked; answers how often."""
    for rounds in range(most + 1):
        where, _ = eventually(lambda: [client.depth(q) for q in (queue, parked)], any, every=0.01)
        if not where:
            return rounds
        assert rounds < most, "it is not parked"
        die(client, queue, 1)
    return None


def test_a_forged_count_only_parks_earlier(client):
    exchange, parked = retrying(client, "1ms,1ms,1ms")
    queue = working(client, exchange)
    client.publish("", queue, b"forged",
                   headers={"x-death": [entry(queue, count=wire.signed_long(2**62))]})
    assert die_until_parked(client, queue, parked) in (1, 4)
    assert put_aside(client.one(parked))[:2] == ("attempts_used_up", queue)


@pytest.mark.parametrize("arguments", QUEUES[:2])
def test_a_forged_death_in_the_internal_queue_makes_no_cycle(client, arguments):
    exchange, parked = retrying(client, "1ms", attempts=3, reasons="expired")
    queue = working(client, exchange, {**arguments, "x-message-ttl": 1})
    client.publish("", queue, b"forged",
                   headers={"x-death": [entry(f"amq.delayed.{exchange}", "expired")]})
    delivery = client.one(parked)
    assert put_aside(delivery) == ("attempts_used_up", queue, 4)


# ------------------------------------------------------------------------- changes meanwhile

def release(broker, exchange):
    """Releases all that is pending, as an operator does."""
    eventually(lambda: broker.ctl("list_delayed_messages", exchange, "id", "--silent").strip(), bool)
    broker.ctl("release_delayed_messages", exchange, "--all")


def held(client, management, queue, exchange):
    """A dead letter of the queue that waits for its first retry."""
    client.publish("", queue, b"held")
    die(client, queue, 1)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)


def test_a_policy_may_say_it_all(client, management, policy):
    exchange = client.delayed()
    queue = working(client, exchange)
    parking = client.exchange("direct")
    parked = client.queue((parking, "parked"))
    assert policy(exchange, {
        "delay-retry-initial": 1, "delay-retry-multiplier": 1.5, "delay-retry-max": "10ms",
        "delay-retry-jitter": 0.5, "delay-retry-attempts": 2, "delay-retry-reasons": "rejected",
        "delay-retry-to": "queue", "delay-retry-parking-exchange": parking,
        "delay-retry-parking-routing-key": "parked"})[0] == 201
    client.publish("", queue, b"m")
    die(client, queue, 3)
    assert put_aside(client.one(parked)) == ("attempts_used_up", queue, 3)


def test_the_settings_at_the_due_time_count(client, broker, management, policy):
    exchange, parked = client.delayed(), client.queue()
    queue = working(client, exchange)
    parking = {"delay-retry-parking-exchange": "", "delay-retry-parking-routing-key": parked}
    assert policy(exchange, {"delay-retry": "1h", **parking})[0] == 201
    held(client, management, queue, exchange)
    policy(exchange, {"delay-retry": "1h", "delay-retry-attempts": 0, **parking})
    release(broker, exchange)
    assert put_aside(client.one(parked)) == ("attempts_used_up", queue, 1)
    policy(exchange, {"delay-retry": "1h", **parking})
    held(client, management, queue, exchange)
    policy(exchange)
    release(broker, exchange)
    assert client.texts(queue, 1) == ["held"]


def test_a_queue_that_is_gone_has_its_messages_parked(client, broker, management):
    exchange, parked = retrying(client, "1h")
    queue = working(client, exchange)
    held(client, management, queue, exchange)
    client.channel.queue_delete(queue)
    release(broker, exchange)
    assert put_aside(client.one(parked)) == ("queue_gone", queue, 1)


def test_a_queue_that_was_declared_again_gets_them(client, broker, management):
    exchange, _ = retrying(client, "1h")
    queue = working(client, exchange)
    held(client, management, queue, exchange)
    client.channel.queue_delete(queue)
    client.queue(name=queue, arguments={"x-queue-type": "quorum"})
    release(broker, exchange)
    assert client.texts(queue, 1) == ["held"]


def test_without_a_place_what_has_no_queue_is_dropped_and_counted(client, broker, management):
    exchange, _ = retrying(client, "1h", parked=False)
    queue = working(client, exchange)
    held(client, management, queue, exchange)
    client.channel.queue_delete(queue)
    release(broker, exchange)
    eventually(lambda: figure(broker, exchange, "unroutable"), lambda n: n == 1)
    eventually(broker.log, lambda log: f"a dead letter of queue '{queue}' is dropped" in log)


def test_the_dead_letter_exchange_takes_what_cannot_be_parked(client, policy):
    exchange = client.delayed(arguments={"x-delay-retry": "1ms",
                                         "x-delay-retry-parking-exchange": "no such exchange"})
    dead = client.exchange("fanout")
    letters = client.queue((dead, ""))
    assert policy(exchange, {"delay-dead-letter-exchange": dead})[0] == 201
    queue = working(client, exchange)
    client.publish("", queue, b"m")
    die(client, queue, 2)
    assert put_aside(client.one(letters)) == ("attempts_used_up", queue, 2)


def test_a_message_that_waits_is_seen_like_any_other(client, broker, management):
    exchange, _ = retrying(client, "1h")
    queue = working(client, exchange)
    held(client, management, queue, exchange)
    path = f"delayed-exchanges/%2F/{quoted(exchange)}/messages"
    message, = management.get(path)["items"]
    assert message["headers"]["x-death"][0]["queue"] == queue
    assert 0 < message["due"] - time.time() * 1000 <= HOUR_MS
    listed = broker.ctl("list_delayed_messages", exchange, "id", "headers", "--silent")
    assert str(message["id"]) in listed and "x-death" in listed


# --------------------------------------------------------------------- a broker of one's own

@pytest.fixture(scope="module")
def own(brokers):
    return brokers("retry", enable=("rabbitmq_delay_wheel", "rabbitmq_management"),
                   conf=["delayed_message.retry_interval.min = 10ms",
                         "delayed_message.retry_interval.max = 50ms"])


def test_what_cannot_be_parked_is_kept_until_it_can(own):
    client = Client(own)
    exchange = client.delayed(arguments={"x-delay-retry": "1ms",
                                         "x-delay-retry-parking-exchange": "parking"})
    queue = working(client, exchange)
    client.publish("", queue, b"m")
    die(client, queue, 2)
    eventually(own.log, lambda log: "cannot be parked" in log and "and is kept" in log)
    parking = client.exchange("fanout", name="parking")
    parked = client.queue((parking, ""))
    assert put_aside(client.one(parked)) == ("attempts_used_up", queue, 2)
    client.close()


def test_a_full_parking_queue_is_waited_for(own):
    client = Client(own)
    parked = client.queue(arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    exchange = client.delayed(arguments={
        "x-delay-retry": "1ms", "x-delay-retry-parking-exchange": "",
        "x-delay-retry-parking-routing-key": parked})
    client.publish("", parked, b"in the way")
    queue = working(client, exchange)
    client.publish("", queue, b"m")
    die(client, queue, 2)
    eventually(lambda: figure(own, exchange, "retried"), lambda n: n >= 1)
    assert client.texts(parked, 2) == ["in the way", "m"]
    client.close()


def consumes(broker, queue):
    """Whether the queue serves consumers: after a crash, quorum queues elect a leader first."""
    with contextlib.suppress(pika.exceptions.AMQPError):
        client = Client(broker)
        client.channel.basic_consume(queue, lambda *_: None)
        client.connection.close()
        return True
    return False


@pytest.mark.parametrize("arguments, end", [
    # Killed, a classic queue would forget its last acknowledgements.
    pytest.param({}, "stop", id="classic, stopped"),
    pytest.param({"x-queue-type": "quorum"}, "kill9", id="quorum, killed"),
])
def test_a_broker_that_ends_meanwhile(own, arguments, end):
    client = Client(own)
    parked = client.queue(keep=True)
    exchange = client.delayed(keep=True, arguments={
        "x-delay-retry": "1ms,1ms,1h", "x-delay-retry-parking-exchange": "",
        "x-delay-retry-parking-routing-key": parked})
    queue = working(client, exchange, arguments, keep=True)
    if end == "kill9":
        # Ra's list of members is not flushed as each is added.
        own.restart()
        eventually(lambda: consumes(own, queue), bool)
        client = Client(own)
    names = [f"m{n}" for n in range(20)]
    for name in names:
        client.publish("", queue, name.encode())
    die(client, queue, 3 * len(names))
    eventually(lambda: Management(own).messages_delayed(exchange), lambda n: n == len(names))
    getattr(own, end)()
    own.start()
    eventually(lambda: consumes(own, queue), bool)
    client = Client(own)
    channel = client.connection.channel()
    rejected = []

    def reject(_channel, method, properties, body):
        rejected.append((body.decode(), deaths(properties.headers, queue)))
        channel.basic_reject(method.delivery_tag, requeue=False)

    channel.basic_consume(queue, reject)
    set_clock(own, 2 * HOUR_MS)
    deliveries = client.collect_every(parked, names)
    set_clock(own, 0)
    # A queue that was killed may dead-letter once more what it had just dead-lettered.
    if end == "stop":
        assert sorted(rejected) == sorted((name, {"rejected": 3}) for name in names)
    assert {name for name, died in rejected if died == {"rejected": 3}} == set(names)
    assert {put_aside(delivery) for delivery in deliveries} == {("attempts_used_up", queue, 4)}
    client.close()


# ----------------------------------------------------------------------- settings and permissions

INVALID = {
    "": ["", "1s,", "1s,,2s", "soon", "0s", "0", "-1s", "1.5s", "1y", "36501d", ",".join(["1s"] * 101),
         True],
    "-initial": [0, "never", "0ms", "101000d", [1]],
    "-multiplier": [0.5, "0", 1001, "x"],
    "-max": [0, "", "never"],
    "-jitter": [-0.1, "1.1", 2, "x"],
    "-attempts": [-1, 1000001, "all", "5"],
    "-reasons": ["", "rejected,", "died", 7],
    "-to": ["queues", 1],
    "-parking-exchange": ["x" * 256, 3],
    "-parking-routing-key": ["x" * 256, 3],
}


@pytest.mark.parametrize("name, value", [
    pytest.param(f"delay-retry{suffix}", value, id=f"{suffix} {str(value)[:20]}")
    for suffix, values in INVALID.items() for value in values])
def test_a_wrong_setting_is_refused_with_a_reason(client, policy, name, value):
    argument = wire.double_float(value) if isinstance(value, float) else value
    code, text = closes_channel(lambda: client.delayed(arguments={f"x-{name}": argument}))
    assert code == 406 and f"x-{name} must be" in text, text
    status, answer = policy("no-exchange", {name: value})
    assert status == 400 and f"{name} must be" in answer["reason"], answer


@pytest.mark.parametrize("settings, reason", [
    ({"delay-retry": "1s", "delay-retry-initial": "1s"}, "exclude each other"),
    ({"delay-retry-initial": "2s", "delay-retry-max": "1s"}, "must not be shorter than"),
])
def test_settings_that_contradict_each_other_are_refused(client, policy, settings, reason):
    code, text = closes_channel(lambda: client.delayed(
        arguments={f"x-{name}": value for name, value in settings.items()}))
    assert code == 406 and reason in text, text
    status, answer = policy("no-exchange", settings)
    assert status == 400 and reason in answer["reason"], answer


@pytest.fixture
def user(management):
    """Makes users with such permissions."""
    made = []

    def make(**permissions):
        name = f"user {len(made)}"
        made.append(name)
        assert management.request("PUT", f"users/{quoted(name)}", {
            "password": "secret", "tags": ""})[0] in (201, 204)
        assert management.request("PUT", f"permissions/%2F/{quoted(name)}", {
            "configure": "", "write": "", "read": "", **permissions})[0] in (201, 204)
        return name

    yield make
    for name in made:
        management.request("DELETE", f"users/{quoted(name)}")


@pytest.mark.parametrize("parking, name", [("parking", "parking"), ("", "amq.default")])
@pytest.mark.parametrize("allowed, permissions", [
    (False, {}), (False, {"read": "^mine"}), (False, {"write": "^{}$"}),
    (True, {"read": "^mine", "write": "^{}$"})])
def test_a_parking_exchange_takes_permissions(client, broker, user, parking, name, allowed, permissions):
    permissions = {"configure": "^mine",
                   **{what: regexp.format(name) for what, regexp in permissions.items()}}
    theirs = Client(broker, user=user(**permissions), password="secret")
    with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
        client.channel.exchange_delete("mine")

    def declare():
        theirs.delayed(name="mine", arguments={"x-delay-retry": "1s",
                                               "x-delay-retry-parking-exchange": parking})

    if allowed:
        declare()
        client.channel.exchange_delete("mine")
    else:
        code, text = closes_channel(declare)
        assert code == 403 and f"write permission for exchange '{name}'" in text, text
    theirs.connection.close()
