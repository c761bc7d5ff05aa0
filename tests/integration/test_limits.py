# SPDX-License-Identifier: MPL-2.0
"""What an exchange has by argument or by policy: a default delay, limits of what may be pending, a
rate of release, and what becomes of messages that are overdue."""

import json
import random
import time

import pika.exceptions
import pytest

import wire
from client import Client, closes_channel
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, MINUTE_MS, clock_ahead, evaluate, kill_9, set_clock


def holds(management, exchange, number):
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == number)


def refused(client, exchange, **options):
    """Whether a publish is answered with a nack."""
    try:
        client.publish(exchange, **options)
    except pika.exceptions.NackError:
        return True
    return False


def figure(broker, exchange, name):
    return int(evaluate(broker, f"maps:get({name}, rabbit_delay_counters:read("
                                f"rabbit_delay_registry:counters(rabbit_misc:r("
                                f'<<"/">>, exchange, <<"{exchange}">>)))).'))


def logged(broker, exchange, why):
    """How often the log says that a message was dropped: once at least, when it has been written."""
    told = f"exchange '{exchange}' in vhost '/' is dropped: {why}"
    return eventually(broker.log, lambda log: told in log).count(told)


# -------------------------------------------------------------------------- default delay

def test_a_default_delay_is_for_messages_that_say_nothing(client, management, clock):
    exchange, queue = client.delayed_and_queue(arguments={"x-delay-default": 30 * MINUTE_MS})
    client.publish(exchange, body=b"default")
    client.publish(exchange, body=b"at once", delay=0)
    client.publish(exchange, body=b"delivered before", delay=-5)
    client.publish(exchange, body=b"sooner", delay=10 * MINUTE_MS)
    client.publish(exchange, body=b"later", delay=HOUR_MS)
    client.publish(exchange, body=b"that time has passed",
                   headers={"x-opt-delivery-time": wire.signed_long(10**12)})
    assert client.texts_until_marker(queue) == ["at once", "delivered before",
                                                "that time has passed"]
    clock(20 * MINUTE_MS)
    assert client.texts(queue, 1) == ["sooner"]
    holds(management, exchange, 2)
    clock(40 * MINUTE_MS)
    delivery = client.one(queue)
    assert (delivery.text, delivery.headers) == ("default", {})
    holds(management, exchange, 1)


def test_a_default_delay_by_policy_comes_and_goes(client, management, policy, clock):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"without")
    assert policy(exchange, delay_default=HOUR_MS)[0] == 201
    client.publish(exchange, body=b"with")
    assert client.texts_until_marker(queue) == ["without"]
    management.request("DELETE", f"policies/%2F/{exchange}")
    client.publish(exchange, body=b"again without")
    assert client.texts_until_marker(queue) == ["again without"]
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["with"]


def test_the_argument_goes_before_the_policy(client, management, policy):
    exchange, queue = client.delayed_and_queue(arguments={"x-delay-default": 300})
    assert policy(exchange, delay_default=HOUR_MS)[0] == 201
    client.publish(exchange, body=b"soon")
    assert client.texts(queue, 1) == ["soon"]


def test_times_and_sizes_may_have_units(client, management, policy, clock):
    exchange, queue = client.delayed_and_queue(arguments={
        "x-delay-default": "30m", "x-delay-max": "2h", "x-delay-max-length-bytes": "2kB"})
    client.publish(exchange, body=b"default")
    assert refused(client, exchange, body=bytes(2048))
    assert client.texts_until_marker(queue) == []
    holds(management, exchange, 1)
    clock(30 * MINUTE_MS)
    assert client.texts(queue, 1) == ["default"]
    other, elsewhere = client.delayed_and_queue()
    assert policy(other, delay_default="1h", delay_max_length_bytes="1MB")[0] == 201
    client.publish(other, body=b"default")
    assert refused(client, other, body=bytes(1 << 20))
    assert client.texts_until_marker(elsewhere) == []
    holds(management, other, 1)
    assert client.refusal(exchange, delay=2 * HOUR_MS + 1)[0] == 406


def test_a_default_delay_makes_a_loop_of_dead_lettering_slow(client):
    exchange = client.delayed(arguments={"x-delay-default": 300})
    queue = client.queue((exchange, "k"), arguments={"x-dead-letter-exchange": exchange,
                                                     "x-dead-letter-routing-key": "k"})
    client.publish(exchange, body=b"job")
    channel = client.connection.channel()
    began = time.monotonic()
    for _ in range(3):
        method = eventually(lambda: channel.basic_get(queue), lambda got: got[0] is not None)[0]
        channel.basic_reject(method.delivery_tag, requeue=False)
    assert time.monotonic() - began >= 0.6
    assert client.texts(queue, 1) == ["job"]


# --------------------------------------------------------------------------------- limits

def test_messages_beyond_the_maximum_are_rejected(client, broker, management, clock):
    exchange, queue = client.delayed_and_queue(arguments={"x-delay-max-length": 3})
    for _ in range(3):
        client.publish(exchange, delay=HOUR_MS)
    for _ in range(2):
        assert refused(client, exchange, delay=HOUR_MS)
    client.publish(exchange, body=b"undelayed messages do not count")
    holds(management, exchange, 3)
    assert figure(broker, exchange, "rejected") == 2
    clock(2 * HOUR_MS)
    client.collect(queue, 4)
    holds(management, exchange, 0)
    client.publish(exchange, body=b"again", delay=100)
    assert client.texts(queue, 1) == ["again"]


@pytest.mark.parametrize("limit", [0, 1, 100, 4096, 5000])
def test_of_many_at_once_exactly_the_maximum_is_taken(client, broker, management, limit):
    exchange = client.delayed(arguments={"x-delay-max-length": limit})
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", ["x"] * (limit + 700), headers={"x-delay": HOUR_MS},
                          window=10000)
        assert len(publisher.confirmed) == limit
        assert publisher.refused == set(range(limit + 1, limit + 701))
    holds(management, exchange, limit)


def test_publishers_that_race_for_the_last_places_get_exactly_these(client, broker, management):
    exchange = client.delayed(arguments={"x-delay-max-length": 1000})
    publishers = [wire.Publisher(broker) for _ in range(4)]
    for _ in range(20):
        for publisher in publishers:
            publisher.send(exchange, "k", ["x"] * 20, headers={"x-delay": HOUR_MS})
    for publisher in publishers:
        publisher.await_answers()
    assert sum(len(publisher.confirmed) for publisher in publishers) == 1000
    assert sum(len(publisher.refused) for publisher in publishers) == 600
    for publisher in publishers:
        publisher.close()
    holds(management, exchange, 1000)


def test_bytes_beyond_the_maximum_are_rejected(client, broker, management):
    exchange = client.delayed(arguments={"x-delay-max-length-bytes": 50000})
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", ["x" * 1000] * 100, headers={"x-delay": HOUR_MS})
        taken = len(publisher.confirmed)
        # A message is stored with its properties, which are less than 600 bytes here.
        assert 50000 // 1600 <= taken < 50
        assert len(publisher.refused) == 100 - taken
    assert refused(client, exchange, body=b"x" * 60000, delay=HOUR_MS)
    shown, = [row for row in broker.rows("list_delayed_exchanges", "name", "bytes_delayed")
              if row["name"] == exchange]
    assert 50000 - 1600 <= shown["bytes_delayed"] <= 50000


def test_a_cancel_is_taken_where_a_message_is_not(client, management):
    exchange = client.delayed(arguments={"x-delay-max-length": 1})
    client.publish(exchange, headers={"x-delay": HOUR_MS, "x-delay-key": "a"})
    assert refused(client, exchange, delay=HOUR_MS)
    client.publish(exchange, headers={"x-delay-cancel": "a"})
    client.publish(exchange, delay=HOUR_MS)
    holds(management, exchange, 1)


def test_a_limit_by_policy_holds_for_what_comes_after_it(client, management, policy):
    exchange = client.delayed()
    for _ in range(5):
        client.publish(exchange, delay=HOUR_MS)
    assert policy(exchange, delay_max_length=5)[0] == 201
    assert refused(client, exchange, delay=HOUR_MS)
    assert policy(exchange, delay_max_length=6)[0] == 204
    client.publish(exchange, delay=HOUR_MS)
    assert refused(client, exchange, delay=HOUR_MS)
    assert policy(exchange, delay_max_length=2)[0] == 204
    assert refused(client, exchange, delay=HOUR_MS)
    holds(management, exchange, 6)


def test_of_an_operators_limit_and_another_the_lower_one_counts(client, policy):
    exchange = client.delayed()
    assert policy(exchange, kind="operator-policies", delay_max_length=2)[0] == 201
    assert policy(exchange, delay_max_length=100)[0] == 201
    for _ in range(2):
        client.publish(exchange, delay=HOUR_MS)
    assert refused(client, exchange, delay=HOUR_MS)
    assert policy(exchange, delay_max_length=1)[0] == 204
    assert refused(client, exchange, delay=HOUR_MS)


def test_a_limit_holds_after_a_restart(own):
    client = Client(own)
    exchange = client.delayed(arguments={"x-delay-max-length": 2})
    for _ in range(2):
        client.publish(exchange, delay=HOUR_MS)
    own.restart()
    client = Client(own)
    assert refused(client, exchange, delay=HOUR_MS)
    client.close()


# ------------------------------------------------------------------------------- overflow

DROPPING = {"x-delay-overflow": "drop-latest-due"}


def hours_pending(broker, exchange):
    return [int(row["payload"]) for row in broker.rows("list_delayed_messages", exchange, "payload")]


def publish_hours(client, exchange, *hours):
    for n in hours:
        assert not refused(client, exchange, body=str(n).encode(), delay=n * HOUR_MS)


def test_a_full_exchange_drops_what_is_due_last(client, broker, management):
    exchange, _ = client.delayed_and_queue(arguments={"x-delay-max-length": 3, **DROPPING})
    publish_hours(client, exchange, 3, 1, 5, 2, 9)
    eventually(lambda: figure(broker, exchange, "overflowed"), lambda n: n == 2)
    holds(management, exchange, 3)
    assert hours_pending(broker, exchange) == [1, 2, 3]
    assert figure(broker, exchange, "rejected") == 0


def test_a_full_exchange_drops_by_bytes(client, broker, management):
    exchange, _ = client.delayed_and_queue(arguments={"x-delay-max-length-bytes": 20_000, **DROPPING})
    for hour, size in ((1, 6000), (3, 6000), (2, 6000), (4, 1000), (5, 6000), (6, 2000)):
        client.publish(exchange, body=str(hour).ljust(size).encode(), delay=hour * HOUR_MS)
    eventually(lambda: figure(broker, exchange, "overflowed"), lambda n: n == 2)
    assert hours_pending(broker, exchange) == [1, 2, 3, 4]


def test_what_overflows_goes_to_the_dead_letter_exchange(client, broker, policy):
    exchange, _ = client.delayed_and_queue()
    dead = client.exchange("fanout")
    queue = client.queue((dead, ""))
    assert policy(exchange, delay_max_length=2, delay_overflow="drop-latest-due",
                  delay_dead_letter_exchange=dead)[0] == 201
    published = time.time() * 1000
    publish_hours(client, exchange, 1, 4, 2, 3)
    got = client.collect(queue, 2)
    assert sorted(d.text for d in got) == ["3", "4"]
    for delivery in got:
        assert delivery.headers["x-delay-death-reason"] == "maxlen"
        assert delivery.headers["x-delay-death-exchange"] == exchange
        assert delivery.headers["x-delay-death-due"] > published + 2 * HOUR_MS
        assert delivery.headers["x-delay"] == -int(delivery.text) * HOUR_MS
    eventually(lambda: [figure(broker, exchange, name) for name in ("dead_lettered", "overflowed")],
               lambda counts: counts == [2, 0])
    assert hours_pending(broker, exchange) == [1, 2]


def test_dead_letters_that_are_rejected_stay(client, broker, management, policy):
    exchange, queue = client.delayed_and_queue()
    dead = client.exchange("fanout")
    full = client.queue((dead, ""), arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    assert policy(exchange, delay_max_length=1, delay_overflow="drop-latest-due",
                  delay_dead_letter_exchange=dead)[0] == 201
    publish_hours(client, exchange, 1, 2)
    client.publish(exchange, body=b"3", delay=1500)
    eventually(lambda: figure(broker, exchange, "retried"), lambda n: n >= 2)
    assert client.texts(queue, 1) == ["3"]
    holds(management, exchange, 2)
    assert figure(broker, exchange, "cancelled") == 0
    client.channel.queue_delete(full)
    eventually(lambda: figure(broker, exchange, "overflowed"), lambda n: n == 1)
    assert hours_pending(broker, exchange) == [1]


def test_a_flood_leaves_what_is_due_first(client, broker, management, policy):
    exchange, _ = client.delayed_and_queue()
    assert policy(exchange, delay_max_length=500, delay_overflow="drop-latest-due")[0] == 201
    delays = [HOUR_MS + n * 1000 for n in range(6000)]
    random.Random(1).shuffle(delays)
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [str(delay) for delay in delays],
                          headers=lambda n: {"x-delay": delays[n]})
        assert len(publisher.confirmed) == len(delays)
    holds(management, exchange, 500)
    kept = [int(row["payload"]) for row in broker.rows("list_delayed_messages", exchange, "payload")]
    assert sorted(kept) == sorted(delays)[:500]
    assert figure(broker, exchange, "overflowed") == 5500
    # One in ten seconds.
    assert logged(broker, exchange, "the exchange has more than its limit") < 100


def test_a_limit_that_is_lowered_drops_without_a_publish(client, broker, management, policy):
    exchange, _ = client.delayed_and_queue()
    publish_hours(client, exchange, 1, 2, 3)
    assert policy(exchange, delay_max_length=1, delay_overflow="drop-latest-due")[0] == 201
    holds(management, exchange, 1)
    assert hours_pending(broker, exchange) == [1]


def test_what_is_to_overflow_is_bound_by_what_may_be_in_flight(client, broker, management, policy):
    exchange, _ = client.delayed_and_queue(arguments={"x-delay-in-flight": 4, "x-delay-max-length": 10,
                                                      **DROPPING})
    dead = client.exchange("fanout")
    queue = client.queue((dead, ""))
    assert policy(exchange, delay_dead_letter_exchange=dead)[0] == 201
    publish_hours(client, exchange, *range(1, 61))
    assert sorted(map(int, client.texts(queue, 50))) == list(range(11, 61))
    holds(management, exchange, 10)


def test_an_unknown_overflow_is_refused(client, policy):
    code, text = closes_channel(lambda: client.delayed(arguments={"x-delay-overflow": "drop-head"}))
    assert code == 406 and "drop-latest-due" in text
    status, answer = policy("any", delay_overflow="drop-head")
    assert status == 400 and "drop-latest-due" in answer["reason"]


# Which is of no setting, and what is told of it as an argument, in a policy, and of both.
WRONG = [("x-delay-overflow", "fünf €", 'not "f\\u00fcnf \\u20ac"'), ("x-delay-overdue", 5, "not 5"),
         ("x-delay-default", "fünf €", 'not "f\\u00fcnf \\u20ac"'), ("x-delay-max-length", [300], "not a list"),
         ("x-delay-overflow", "x" * 100, f'not "{"x" * 76}...'),
         ("x-delay-retry", "fünf €", 'not "f\\u00fcnf \\u20ac"'), ("x-delay-retry-jitter", 1.5, "not 1.5")]


@pytest.mark.parametrize("name, value, told", WRONG)
def test_a_refused_setting_is_shown_as_it_was_written(broker, client, policy, name, value, told):
    code, text = closes_channel(lambda: client.delayed(arguments={
        name: wire.double_float(value) if isinstance(value, float) else value}))
    assert code == 406 and told in text and "<<" not in text, text
    key = name.removeprefix("x-")
    status, answer = policy("any", **{key.replace("-", "_"): value})
    assert status == 400 and told in answer["reason"] and "<<" not in answer["reason"], answer
    answer = broker.ctl("set_policy", "--apply-to", "exchanges", "wrong", "^any$", json.dumps({key: value}),
                        check=False)
    said = answer.stdout + answer.stderr
    assert answer.returncode != 0 and told in said and "<<" not in said, said

# ---------------------------------------------------------------------------- bad settings

BAD = [("x-delay-default", 0), ("x-delay-default", "soon"), ("x-delay-default", -1),
       ("x-delay-default", wire.signed_long(3153600000001)), ("x-delay-max-length", -1),
       ("x-delay-max-length", "many"), ("x-delay-max-length-bytes", -1),
       ("x-delay-release-rate", 0), ("x-delay-release-rate", True), ("x-delay-overdue", "ignore"),
       ("x-delay-overdue", 1), ("x-delay-overdue-after", -1), ("x-delay-initial-group-size", 0),
       ("x-delay-initial-group-size", "all")]
BAD_BY_POLICY = [("x-delay-dead-letter-exchange", 5), ("x-delay-dead-letter-exchange", "x" * 256),
                 ("x-delay-dead-letter-routing-key", True)]


@pytest.mark.parametrize("name, value", BAD)
def test_a_bad_argument_is_refused(client, name, value):
    code, text = closes_channel(lambda: client.delayed(arguments={name: value}, keep=True))
    assert code == 406 and name in text, text


@pytest.mark.parametrize("name, value", [(name, value) for name, value in BAD + BAD_BY_POLICY
                                         if not isinstance(value, wire.Field)])
def test_a_bad_policy_is_refused(client, policy, name, value):
    name = name[len("x-"):]
    status, answer = policy(client.delayed(), **{name.replace("-", "_"): value})
    assert status == 400 and name in answer["reason"], answer


def test_only_the_limits_may_be_an_operators(client, policy):
    exchange = client.delayed()
    assert policy(exchange, kind="operator-policies", delay_max_length_bytes=10)[0] == 201
    status, answer = policy(exchange, kind="operator-policies", delay_default=10)
    assert status == 400 and "delay-default" in answer["reason"]


# --------------------------------------------------------------------------------- release

@pytest.fixture(scope="module")
def own(brokers):
    broker = brokers("limits", enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


@pytest.fixture(autouse=True)
def true_time(request):
    yield
    if "own" in request.fixturenames:
        set_clock(request.getfixturevalue("own"), 0)


def test_a_rate_of_release_holds_back_a_flood(own):
    client = Client(own)
    rate, number = 200, 400
    exchange, queue = client.delayed_and_queue(arguments={"x-delay-release-rate": rate})
    with wire.Publisher(own) as publisher:
        publisher.publish(exchange, "k", [str(n) for n in range(number)],
                          headers={"x-delay": HOUR_MS})
    began = time.monotonic()
    set_clock(own, 2 * HOUR_MS)
    got = client.collect(queue, number)
    assert [d.text for d in got] == [str(n) for n in range(number)]
    # A tenth of a second's messages may come at once.
    assert got[-1].at - began >= (number - rate / 10) / rate - 0.01
    client.close()


def test_a_rate_by_policy_can_be_lifted(own):
    client, management = Client(own), Management(own)
    exchange, queue = client.delayed_and_queue()
    path = f"policies/%2F/{exchange}"
    body = {"pattern": f"^{exchange}$", "apply-to": "exchanges",
            "definition": {"delay-release-rate": 1}}
    assert management.request("PUT", path, body)[0] == 201
    with wire.Publisher(own) as publisher:
        publisher.publish(exchange, "k", ["x"] * 3000, headers={"x-delay": HOUR_MS})
    set_clock(own, 2 * HOUR_MS)
    eventually(lambda: client.depth(queue), lambda depth: depth >= 2)
    assert management.messages_delayed(exchange) > 2900
    assert management.request("DELETE", path)[0] == 204
    holds(management, exchange, 0)
    assert client.depth(queue) == 3000
    client.close()


def test_overdue_messages_are_dropped_where_that_is_wanted(own):
    client = Client(own)
    exchange, queue = client.delayed_and_queue(arguments={"x-delay-overdue": "drop",
                                                          "x-delay-overdue-after": 600_000})
    def at(offset):
        return {"x-opt-delivery-time": wire.signed_long(int(time.time() * 1000) + offset)}

    client.publish(exchange, body=b"too late", headers=at(HOUR_MS))
    client.publish(exchange, body=b"late", headers=at(2 * HOUR_MS - 300_000))
    set_clock(own, 2 * HOUR_MS)
    assert client.texts(queue, 1) == ["late"]
    holds(Management(own), exchange, 0)
    assert figure(own, exchange, "expired") == 1
    assert logged(own, exchange, "it is overdue") == 1
    assert client.texts_until_marker(queue) == []
    client.close()


def test_overdue_messages_are_dropped_after_a_restart(brokers):
    own = brokers("overdue", enable=(PLUGIN, "rabbitmq_management"))
    client = Client(own)
    exchange, queue = client.delayed_and_queue(arguments={"x-delay-overdue": "drop"})
    delivered, other = client.delayed_and_queue()
    for name in (exchange, delivered):
        client.publish(name, body=b"due while the broker is down", delay=HOUR_MS)
    kill_9(own)
    clock_ahead(own, 2 * HOUR_MS)
    own.start()
    client = Client(own)
    assert client.texts(other, 1) == ["due while the broker is down"]
    holds(Management(own), exchange, 0)
    assert client.texts_until_marker(queue) == []
    client.close()
    own.end()


# ------------------------------------------------------------------------------ dead letters

def death(delivery):
    """Why, from which exchange, and when it was due."""
    return [delivery.headers.get(f"x-delay-death-{name}") for name in ("reason", "exchange", "due")]


def test_what_is_unroutable_goes_to_the_dead_letter_exchange(client, broker, management, policy):
    exchange, queue = client.delayed_and_queue()
    dead = client.exchange("topic")
    letters = client.queue((dead, "#"))
    assert policy(exchange, delay_dead_letter_exchange=dead)[0] == 201
    now = time.time() * 1000
    client.publish(exchange, "k", b"routable", delay=200)
    client.publish(exchange, "nowhere", b"dead", delay=200, headers={"kept": "yes"},
                   message_id="m")
    delivery = client.one(letters)
    reason, whence, due = death(delivery)
    assert (delivery.text, reason, whence) == ("dead", "unroutable", exchange)
    assert now + 200 <= due <= time.time() * 1000 + 200
    assert (delivery.method.routing_key, delivery.method.exchange) == ("nowhere", dead)
    assert delivery.headers["kept"] == "yes" and delivery.headers["x-delay"] == -200
    assert delivery.properties.message_id == "m"
    assert client.texts(queue, 1) == ["routable"]
    holds(management, exchange, 0)
    assert [figure(broker, exchange, name) for name in ("released", "dead_lettered",
                                                        "unroutable")] == [1, 1, 0]


def test_dead_letters_may_have_a_key_of_their_own(client, policy):
    exchange = client.delayed()
    dead = client.exchange("direct")
    letters = client.queue((dead, "letters"))
    assert policy(exchange, delay_dead_letter_exchange=dead,
                  delay_dead_letter_routing_key="letters")[0] == 201
    client.publish(exchange, "nowhere", b"dead", delay=100)
    assert client.one(letters).method.routing_key == "letters"


def test_without_a_place_for_dead_letters_the_unroutable_is_dropped(client, broker, management,
                                                                    policy):
    exchange = client.delayed()
    for number, dead in enumerate(["no-such-exchange", client.exchange("direct"), exchange], 1):
        assert policy(exchange, delay_dead_letter_exchange=dead)[0] in (201, 204)
        client.publish(exchange, "nowhere", b"dropped", delay=50)
        eventually(lambda: figure(broker, exchange, "unroutable"), lambda n: n == number)
    holds(management, exchange, 0)
    assert figure(broker, exchange, "dead_lettered") == 0


def test_dead_letters_that_are_rejected_are_tried_again(client, broker, policy):
    exchange = client.delayed()
    dead = client.exchange("fanout")
    full = client.queue((dead, ""), arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    other = client.queue((dead, ""))
    client.publish("", full, b"in the way")
    assert policy(exchange, delay_dead_letter_exchange=dead)[0] == 201
    client.publish(exchange, "nowhere", b"dead", delay=50)
    assert client.texts(other, 1) == ["dead"]
    eventually(lambda: figure(broker, exchange, "retried"), lambda n: n >= 1)
    assert client.texts(full, 2) == ["in the way", "dead"]
    eventually(lambda: figure(broker, exchange, "dead_lettered"), lambda n: n == 1)
    assert client.texts_until_marker(other) == []


def test_overdue_messages_go_to_the_dead_letter_exchange(own):
    client, management = Client(own), Management(own)
    exchange, queue = client.delayed_and_queue(arguments={"x-delay-overdue": "dead-letter",
                                                          "x-delay-overdue-after": 600_000})
    without, other = client.delayed_and_queue(arguments={"x-delay-overdue": "dead-letter"})
    dead = client.exchange("fanout")
    letters = client.queue((dead, ""))
    assert management.request("PUT", f"policies/%2F/{exchange}", {
        "pattern": f"^{exchange}$", "apply-to": "exchanges",
        "definition": {"delay-dead-letter-exchange": dead}})[0] == 201
    client.publish(exchange, body=b"too late", delay=HOUR_MS)
    client.publish(exchange, body=b"late", delay=2 * HOUR_MS - 300_000)
    client.publish(without, body=b"there is no dead-letter exchange", delay=HOUR_MS)
    set_clock(own, 2 * HOUR_MS)
    delivery = client.one(letters)
    assert (delivery.text, death(delivery)[:2]) == ("too late", ["overdue", exchange])
    assert client.texts(queue, 1) == ["late"]
    assert client.texts(other, 1) == ["there is no dead-letter exchange"]
    holds(management, exchange, 0)
    assert [figure(own, exchange, name) for name in ("released", "dead_lettered", "expired")] == [
        1, 1, 0]
    client.close()
