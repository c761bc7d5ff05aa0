# SPDX-License-Identifier: MPL-2.0
"""Keys: x-delay-key, x-delay-on-duplicate, x-delay-cancel and x-delay-release, by one channel, by
channels that race, across crashes, and upon what is just being released."""

import random
import threading

import pytest

import wire
from client import Client
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, evaluate, kill_9, queue_process, set_clock


def keyed(key=None, on_duplicate=None, delay=HOUR_MS):
    headers = {"x-delay": delay, "x-delay-key": key, "x-delay-on-duplicate": on_duplicate}
    return {name: value for name, value in headers.items() if value is not None}


def holds(management, exchange, number):
    """An exchange that has just begun to delay shows its number a moment later."""
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == number)


def cancel(key):
    return {"x-delay-cancel": key}


def release(key):
    return {"x-delay-release": key}


# ----------------------------------------------------------------- what each of them does

def test_replace_leaves_the_newest(client, management, clock):
    exchange, queue = client.delayed_and_queue()
    for text in (b"first", b"second", b"third"):
        client.publish(exchange, body=text, headers=keyed("a", "replace"))
        holds(management, exchange, 1)
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["third"]
    assert client.texts_until_marker(queue) == []


def test_replace_moves_the_due_time_in_either_direction(client, clock):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"late", headers=keyed("sooner"))
    published = client.publish(exchange, body=b"soon", headers=keyed("sooner", "replace", 400))
    delivery = client.one(queue)
    assert delivery.text == "soon" and (delivery.at - published) * 1000 >= 400
    client.publish(exchange, body=b"early", headers=keyed("later", "replace"))
    client.publish(exchange, body=b"later", headers=keyed("later", "replace", 3 * HOUR_MS))
    client.publish(exchange, body=b"between", headers=keyed("another", delay=HOUR_MS + 1))
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["between"]
    clock(4 * HOUR_MS)
    assert client.texts(queue, 1) == ["later"]


def test_drop_leaves_the_oldest(client, management, clock):
    exchange, queue = client.delayed_and_queue()
    for text in (b"first", b"second", b"third"):
        client.publish(exchange, body=text, headers=keyed("a", "drop"))
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["first"]
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)
    client.publish(exchange, body=b"after it", headers=keyed("a", "drop", 300))
    assert client.texts(queue, 1) == ["after it"]


@pytest.mark.parametrize("word", [None, "keep"])
def test_keep_leaves_all(client, word):
    exchange, queue = client.delayed_and_queue()
    for text in (b"first", b"second"):
        client.publish(exchange, body=text, headers=keyed("a", word, 400))
    assert client.texts(queue, 2) == ["first", "second"]


def test_replace_and_cancel_take_all_that_was_kept(client, management):
    exchange, _ = client.delayed_and_queue()
    for key in ("a", "b"):
        for _ in range(5):
            client.publish(exchange, headers=keyed(key))
    client.publish(exchange, headers=keyed("a", "replace"))
    holds(management, exchange, 6)
    client.publish(exchange, headers=cancel("b"))
    holds(management, exchange, 1)


def test_cancel_takes_what_is_pending_and_is_never_delivered(client, management, clock):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"cancelled", headers=keyed("a"))
    client.publish(exchange, body=b"kept", headers=keyed("b"))
    client.publish(exchange, body=b"a cancel", headers=cancel("a"), mandatory=True)
    holds(management, exchange, 1)
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["kept"]
    assert client.texts_until_marker(queue) == []


def test_cancel_has_no_other_effect_whatever_else_it_says(client, management, clock):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"kept", headers=keyed("b"))
    client.publish(exchange, headers={**cancel("a"), **keyed("b", "replace", 300)})
    client.publish(exchange, headers={**cancel("a"), "x-delay": "soon"}, message_id="b")
    holds(management, exchange, 1)
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["kept"]


def test_cancel_without_anything_to_cancel_is_confirmed(client, management):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, headers=cancel("a"))
    client.publish(exchange, body=b"later", headers=keyed("a", delay=300))
    assert client.texts(queue, 1) == ["later"]
    client.publish(exchange, headers=cancel("a"))
    holds(management, exchange, 0)


def test_release_delivers_what_is_pending_and_is_never_delivered(client, management):
    exchange, queue = client.delayed_and_queue()
    for body, key, delay in ((b"third", "a", 3 * HOUR_MS), (b"first", "a", HOUR_MS),
                             (b"kept", "b", HOUR_MS), (b"second", "a", 2 * HOUR_MS)):
        client.publish(exchange, body=body, headers=keyed(key, delay=delay))
    published = client.publish(exchange, body=b"a release", mandatory=True,
                               headers={**release("a"), **keyed("b", "replace", 300)})
    deliveries = client.collect(queue, 3)
    # What is due at one time comes in the order of publishing.
    assert [delivery.text for delivery in deliveries] == ["third", "first", "second"]
    assert all(delivery.at < published + HOUR_MS / 1000 for delivery in deliveries)
    assert client.texts_until_marker(queue) == []
    holds(management, exchange, 1)


def test_release_is_of_what_was_published_before_it(client, management):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, headers=release("a"))
    client.publish(exchange, body=b"stays", headers=keyed("a"))
    holds(management, exchange, 1)
    client.publish(exchange, headers=cancel("a"))
    client.publish(exchange, headers=release("a"))
    holds(management, exchange, 0)
    assert client.texts_until_marker(queue) == []


def test_release_waits_while_the_exchange_is_paused(client, broker, management):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"held", headers=keyed("a"))
    broker.ctl("pause_delayed_exchange", exchange)
    client.publish(exchange, headers=release("a"))
    assert client.texts_until_marker(queue) == []
    holds(management, exchange, 1)
    broker.ctl("resume_delayed_exchange", exchange)
    assert client.texts(queue, 1) == ["held"]
    holds(management, exchange, 0)


def test_the_message_id_is_the_key_where_there_is_no_other(client, management):
    exchange, queue = client.delayed_and_queue()
    replace = {"x-delay-on-duplicate": "replace"}
    client.publish(exchange, body=b"1", delay=HOUR_MS, message_id="m")
    client.publish(exchange, body=b"2", delay=HOUR_MS, message_id="m", headers=replace)
    holds(management, exchange, 1)
    client.publish(exchange, body=b"3", headers=keyed("k"), message_id="m")
    client.publish(exchange, headers=cancel("m"))
    holds(management, exchange, 1)
    client.publish(exchange, body=b"4", delay=300, message_id="k", headers=replace)
    assert client.texts(queue, 1) == ["4"]


def test_keys_are_an_exchanges_own(client, management):
    one, other = client.delayed(), client.delayed()
    for exchange in (one, other):
        client.publish(exchange, headers=keyed("a"))
    client.publish(one, headers=cancel("a"))
    holds(management, other, 1)
    holds(management, one, 0)


def test_keys_are_bytes(client, management):
    exchange = client.delayed()
    keys = ["a", "A", "a ", "ä", "k" * 255, "k" * 254, wire.long_string(b"\xff\x00"),
            wire.byte_array(b"\xff\x00\x00")]
    for key in keys:
        client.publish(exchange, headers=keyed(key, "drop"))
    holds(management, exchange, len(keys))
    for left, key in reversed(list(enumerate(keys))):
        client.publish(exchange, headers=cancel(key))
        holds(management, exchange, left)


def test_what_is_not_delayed_leaves_its_key_alone(client, management):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"pending", headers=keyed("a"))
    client.publish(exchange, body=b"now", headers={"x-delay-key": "a",
                                                   "x-delay-on-duplicate": "replace"})
    assert client.texts(queue, 1) == ["now"]
    holds(management, exchange, 1)


def test_headers_are_delivered_as_they_were_published(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, headers=keyed("a", "replace", 300))
    assert client.one(queue).headers == {"x-delay": -300, "x-delay-key": "a",
                                         "x-delay-on-duplicate": "replace"}


# --------------------------------------------------------------------------- bad values

BAD = {
    "key of 256 bytes": ({"x-delay": 5, "x-delay-key": "k" * 256}, "x-delay-key", "k..."),
    "empty key": ({"x-delay": 5, "x-delay-key": ""}, "x-delay-key", 'the string ""'),
    "number as key": ({"x-delay": 5, "x-delay-key": 17}, "x-delay-key", "integer 17"),
    "unknown word": ({"x-delay": 5, "x-delay-key": "a", "x-delay-on-duplicate": "perhaps"},
                     "x-delay-on-duplicate", "perhaps"),
    "word in capitals": ({"x-delay": 5, "x-delay-key": "a", "x-delay-on-duplicate": "DROP"},
                         "x-delay-on-duplicate", "DROP"),
    "number as word": ({"x-delay": 5, "x-delay-key": "a", "x-delay-on-duplicate": 1},
                       "x-delay-on-duplicate", "1"),
    "word without a key": ({"x-delay": 5, "x-delay-on-duplicate": "drop"},
                           "x-delay-on-duplicate", "needs a key"),
    "cancel without a key": ({"x-delay-cancel": ""}, "x-delay-cancel", 'the string ""'),
    "cancel of null": ({"x-delay-cancel": wire.VOID}, "x-delay-cancel", "null"),
    "cancel of true": ({"x-delay-cancel": True}, "x-delay-cancel", "the boolean true"),
    "cancel of a table": ({"x-delay-cancel": {"key": "a"}}, "x-delay-cancel", 'the table {"key": "a"}'),
    "cancel of 256 bytes": ({"x-delay-cancel": "k" * 256}, "x-delay-cancel", "k..."),
    "release without a key": ({"x-delay-release": ""}, "x-delay-release", 'the string ""'),
    "release of null": ({"x-delay-release": wire.VOID}, "x-delay-release", "null"),
    "release of 256 bytes": ({"x-delay-release": "k" * 256}, "x-delay-release", "k..."),
    "release beside a cancel": ({"x-delay-release": "a", "x-delay-cancel": "a"}, "x-delay-release",
                                "x-delay-cancel"),
    "at once, but with a bad key": ({"x-delay-key": 17}, "x-delay-key", "17"),
}


@pytest.mark.parametrize("headers, header, value", BAD.values(), ids=BAD.keys())
def test_a_bad_value_closes_the_channel_and_changes_nothing(client, management, headers, header,
                                                            value):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"there", headers=keyed("a"))
    code, text = client.refusal(exchange, body=b"refused", headers=headers)
    assert code == 406 and header in text and value in text and exchange in text, text
    assert "<<" not in text
    holds(management, exchange, 1)
    assert client.texts_until_marker(queue) == []


def test_null_is_no_key_and_no_word(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"a", headers={"x-delay": 300, "x-delay-key": wire.VOID,
                                                 "x-delay-on-duplicate": wire.VOID})
    assert client.texts(queue, 1) == ["a"]


def test_a_long_message_id_is_refused_by_nobody(client):
    exchange, queue = client.delayed_and_queue()
    for text in (b"a", b"b"):
        client.publish(exchange, body=text, delay=300, message_id="i" * 255)
    assert client.texts(queue, 2) == ["a", "b"]


def test_a_bad_key_that_a_queue_dead_letters_is_delayed_without_it(client):
    exchange, queue = client.delayed_and_queue()
    source = client.queue(arguments={"x-dead-letter-exchange": exchange,
                                     "x-dead-letter-routing-key": "k", "x-message-ttl": 1})
    client.publish("", source, b"kept", headers={"x-delay": 300, "x-delay-key": 17,
                                                 "x-delay-on-duplicate": "perhaps"})
    delivery = client.one(queue)
    assert (delivery.text, delivery.headers["x-delay"]) == ("kept", -300)


# -------------------------------------------------------------- order, races and crashes

@pytest.fixture(scope="module")
def own(brokers):
    """A broker whose clock is stepped and that is killed."""
    broker = brokers("keys", enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


def release_all(broker):
    set_clock(broker, 2 * HOUR_MS)


@pytest.fixture(autouse=True)
def true_time(request):
    yield
    if "own" in request.fixturenames:
        set_clock(request.getfixturevalue("own"), 0)


class Expected:
    """What is pending, kept in the dumbest way: a list of (key, text)."""

    def __init__(self):
        self.pending = []

    def apply(self, kind, key, text):
        if kind == "drop" and any(k == key for k, _ in self.pending):
            return
        if kind in ("replace", "cancel"):
            self.pending = [(k, t) for k, t in self.pending if k != key]
        if kind != "cancel":
            self.pending.append((key, text))

    def texts(self):
        return sorted(text for _, text in self.pending)


KINDS = ["keep", "drop", "replace", "cancel"]


def random_operations(count, keys, seed, kinds=tuple(KINDS)):
    chosen = random.Random(seed)
    for number in range(count):
        yield (chosen.choice(kinds),
               f"key {chosen.randrange(keys)}", f"{seed}-{number}")


def headers_of(kind, key):
    if kind in ("cancel", "release"):
        return {"cancel": cancel, "release": release}[kind](key)
    return keyed(key, kind)


def publish_operations(broker, exchange, operations):
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [text for _, _, text in operations],
                          headers=lambda n: headers_of(*operations[n][:2]))
        assert publisher.refused == set()


@pytest.mark.parametrize("keys", [3, 300])
def test_one_channels_order_decides(own, keys):
    client = Client(own)
    exchange, queue = client.delayed_and_queue()
    operations = list(random_operations(6000, keys, keys))
    expected = Expected()
    for operation in operations:
        expected.apply(*operation)
    publish_operations(own, exchange, operations)
    holds(Management(own), exchange, len(expected.pending))
    assert expected.pending
    release_all(own)
    assert sorted(client.texts(queue, len(expected.pending))) == expected.texts()
    client.close()


def test_releases_among_others_in_one_channels_order(own):
    """While the exchange is paused: what is released stays there, and may be cancelled and replaced yet."""
    client = Client(own)
    exchange, queue = client.delayed_and_queue()
    own.ctl("pause_delayed_exchange", exchange)
    pending = []  # (key, text, released)
    operations = list(random_operations(6000, 30, 17, tuple(KINDS) + ("release",)))
    for kind, key, text in operations:
        there = [message for message in pending if message[0] == key]
        others = [message for message in pending if message[0] != key]
        if kind == "release":
            pending = others + [(k, t, True) for k, t, _ in there]
        elif kind == "cancel":
            pending = others
        elif kind == "replace":
            pending = others + [(key, text, False)]
        elif kind == "keep" or not there:
            pending = pending + [(key, text, False)]
    publish_operations(own, exchange, operations)
    holds(Management(own), exchange, len(pending))
    kill_9(own)
    own.start()
    client = Client(own)
    own.ctl("resume_delayed_exchange", exchange)
    released = sorted(text for _, text, is_released in pending if is_released)
    assert 0 < len(released) < len(pending)
    assert sorted(client.texts(queue, len(released))) == released
    assert client.texts_until_marker(queue) == []
    release_all(own)
    left = sorted(text for _, text, is_released in pending if not is_released)
    assert sorted(client.texts(queue, len(left))) == left
    client.close()


def test_a_transaction_takes_effect_in_its_order_on_commit(client, management):
    exchange, _ = client.delayed_and_queue()
    client.publish(exchange, headers=keyed("a"))
    channel = client.connection.channel()
    channel.tx_select()
    properties = wire.pika.BasicProperties
    for headers in (cancel("a"), keyed("a", "drop"), keyed("a", "drop"), keyed("b"), cancel("b")):
        channel.basic_publish(exchange, "k", b"x", properties(headers=headers, delivery_mode=2))
    channel.tx_rollback()
    holds(management, exchange, 1)
    for headers in (cancel("a"), keyed("b"), keyed("b"), keyed("b", "replace")):
        channel.basic_publish(exchange, "k", b"x", properties(headers=headers, delivery_mode=2))
    channel.tx_commit()
    holds(management, exchange, 1)


@pytest.mark.parametrize("kind", ["drop", "replace"])
def test_of_channels_that_race_for_a_key_one_message_stays(own, kind):
    client = Client(own)
    exchange, queue = client.delayed_and_queue()
    keys, failures = 50, []

    def race(name):
        try:
            publish_operations(own, exchange, [(kind, f"key {n % keys}", f"{n % keys} {name} {n}")
                                               for n in range(1000)])
        except Exception as failure:  # pylint: disable=broad-except
            failures.append(failure)

    threads = [threading.Thread(target=race, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    holds(Management(own), exchange, keys)
    release_all(own)
    texts = client.texts(queue, keys)
    assert sorted(int(text.split()[0]) for text in texts) == list(range(keys))
    if kind == "replace":  # of some channel the last
        assert all(int(text.split()[2]) >= 1000 - keys for text in texts)
    client.close()


def test_what_was_confirmed_of_keys_survives_kill_9(own):
    client = Client(own)
    exchange, queue = client.delayed_and_queue()
    expected = Expected()
    # Some of it is in the store's checkpoint and some in the log when the broker dies.
    for seed in range(3):
        operations = list(random_operations(2000, 200, 1000 + seed))
        for operation in operations:
            expected.apply(*operation)
        publish_operations(own, exchange, operations)
        kill_9(own)
        own.start()
    management = Management(own)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == len(expected.pending))
    # The same key is the same key after a restart.
    keys = {key for key, _ in expected.pending}
    cancelled = sorted(keys)[::2]
    operations = [("cancel", key, "") for key in cancelled]
    for operation in operations:
        expected.apply(*operation)
    publish_operations(own, exchange, operations)
    release_all(own)
    client = Client(own)
    assert sorted(client.texts(queue, len(expected.pending))) == expected.texts()
    client.close()


def test_kill_9_amid_keyed_publishing_leaves_one_message_a_key(own):
    exchange, queue = Client(own).delayed_and_queue()
    publisher = wire.Publisher(own)
    while len(publisher.confirmed) < 2000:
        for number in range(publisher.published, publisher.published + 200):
            publisher.send(exchange, "k", [str(number)],
                           headers=keyed(f"key {number % 20}", "replace"))
        publisher.drain()
    kill_9(own)
    publisher.drain()
    own.start()
    client = Client(own)
    management = Management(own)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 20)
    release_all(own)
    texts = [int(text) for text in client.texts(queue, 20)]
    assert {number % 20 for number in texts} == set(range(20))
    # Nothing older than the last confirmed one of its key: confirms come in order of the log.
    newest = {}
    for number in (tag - 1 for tag in publisher.confirmed):
        newest[number % 20] = max(newest.get(number % 20, 0), number)
    assert all(number >= newest[number % 20] for number in texts)
    client.close()


# ------------------------------------------------------------- upon what is being released

def settled(management, exchange):
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 0)


def test_what_is_on_its_way_to_its_queue_is_delivered_though_cancelled(client, broker, management):
    exchange, queue = client.delayed_and_queue()
    process = queue_process(queue)
    evaluate(broker, f"sys:suspend({process}).")
    try:
        client.publish(exchange, body=b"on its way", headers=keyed("a", delay=100))
        eventually(lambda: in_flight(broker, exchange), lambda n: n == 1)
        client.publish(exchange, headers=cancel("a"))
        holds(management, exchange, 0)
    finally:
        evaluate(broker, f"sys:resume({process}).")
    assert client.texts(queue, 1) == ["on its way"]
    assert client.texts_until_marker(queue) == []


def test_what_replaces_a_message_on_its_way_comes_after_it(client, broker):
    exchange, queue = client.delayed_and_queue()
    process = queue_process(queue)
    evaluate(broker, f"sys:suspend({process}).")
    try:
        client.publish(exchange, body=b"on its way", headers=keyed("a", delay=100))
        eventually(lambda: in_flight(broker, exchange), lambda n: n == 1)
        client.publish(exchange, body=b"its successor", headers=keyed("a", "replace", 200))
    finally:
        evaluate(broker, f"sys:resume({process}).")
    assert client.texts(queue, 2) == ["on its way", "its successor"]


def test_what_duplicates_a_message_on_its_way_is_dropped(client, broker, management):
    exchange, queue = client.delayed_and_queue()
    process = queue_process(queue)
    evaluate(broker, f"sys:suspend({process}).")
    try:
        client.publish(exchange, body=b"on its way", headers=keyed("a", delay=100))
        eventually(lambda: in_flight(broker, exchange), lambda n: n == 1)
        client.publish(exchange, body=b"its duplicate", headers=keyed("a", "drop", 200))
    finally:
        evaluate(broker, f"sys:resume({process}).")
    assert client.texts(queue, 1) == ["on its way"]
    settled(management, exchange)
    assert client.texts_until_marker(queue) == []


def in_flight(broker, exchange):
    """How many messages of the exchange have been handed to its dispatcher and not come back."""
    return int(evaluate(broker, 'maps:get(taken, rabbit_delay_registry:stat(rabbit_misc:r('
                                f'<<"/">>, exchange, <<"{exchange}">>))).'))


def of_dispatcher(broker, exchange, counter):
    return int(evaluate(broker, f"maps:get({counter}, rabbit_delay_dispatcher:counters("
                                f"rabbit_delay_registry:dispatcher(rabbit_misc:r("
                                f'<<"/">>, exchange, <<"{exchange}">>)))).'))


def test_what_its_queue_refuses_is_cancelled_and_not_tried_again(client, broker, management):
    exchange = client.delayed()
    queue = client.queue((exchange, "k"), arguments={"x-max-length": 1,
                                                     "x-overflow": "reject-publish"})
    client.publish("", queue, b"in the way")
    client.publish(exchange, body=b"cancelled", headers=keyed("a", delay=100))
    client.publish(exchange, body=b"kept", headers=keyed("b", delay=100))
    # Both have been refused, and wait for another try.
    eventually(lambda: of_dispatcher(broker, exchange, "retried"), lambda n: n >= 2)
    holds(management, exchange, 2)
    client.publish(exchange, headers=cancel("a"))
    holds(management, exchange, 1)
    assert client.texts(queue, 2) == ["in the way", "kept"]
    settled(management, exchange)
    assert client.texts_until_marker(queue) == []


def test_cancels_that_race_with_the_release_lose_nothing_and_cancel_what_is_not_due(client, broker,
                                                                                   management):
    exchange, queue = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [str(n) for n in range(3000)],
                          headers=lambda n: keyed(str(n), delay=HOUR_MS if n % 300 == 0
                                                  else 500 + n % 1500))
        publisher.publish(exchange, "k", [""] * 1000, headers=lambda n: cancel(str(3 * n)))
    settled(management, exchange)
    texts = client.texts_until_marker(queue)
    assert len(texts) == len(set(texts))
    came = {int(text) for text in texts}
    assert came >= {n for n in range(3000) if n % 3}
    assert not came & set(range(0, 3000, 300))
