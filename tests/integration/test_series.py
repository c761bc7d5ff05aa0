# SPDX-License-Identifier: MPL-2.0
"""What depends on RabbitMQ's series: archives for others, the metadata store, feature flags, and what an
earlier series left on disk."""

import os
import shutil

import pika.exceptions
import pytest

from client import Client
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, evaluate, has_enabled, kill_9, set_clock
from private_broker import default_series, dist_of

SERIES = default_series()
EARLIER = {"4.0": "3.10", "4.3": "4.0"}.get(SERIES)
KINDS = {"direct": ("k", {}), "fanout": ("", {}), "topic": ("a.#", {}),
         "headers": ("", {"x-match": "all", "kind": "h"})}
KEYS = {"direct": "k", "fanout": "", "topic": "a.b.c", "headers": ""}


def hold(broker):
    """An exchange of each kind with a queue, and for each a message that is due in an hour."""
    client = Client(broker)
    held = {}
    for kind, (key, arguments) in KINDS.items():
        exchange = client.delayed(kind, name=f"held-{kind}", keep=True)
        held[kind] = exchange, client.queue((exchange, key, arguments), name=f"held-{kind}",
                                            keep=True)
        client.publish(exchange, KEYS[kind], kind.encode(), delay=HOUR_MS,
                       headers={"kind": "h", "kept": "yes"}, message_id=f"id-{kind}")
    hold_dead_letter(broker, client)
    client.close()
    return held


def hold_dead_letter(broker, client):
    """One that is to come back to its queue in an hour."""
    client.delayed(name="held-retry", keep=True, arguments={"x-delay-retry": "1h"})
    client.queue(name="held-retry", keep=True, arguments={"x-dead-letter-exchange": "held-retry"})
    client.publish("", "held-retry", b"retried")
    channel = client.connection.channel()
    method, _, _ = eventually(lambda: channel.basic_get("held-retry"), lambda got: got[0])
    channel.basic_reject(method.delivery_tag, requeue=False)
    eventually(lambda: evaluate(broker, 'rabbit_delay_registry:pending(rabbit_misc:r(<<"/">>, '
                                        'exchange, <<"held-retry">>)).'), lambda n: n == "1")


def assert_all_arrive(broker, held):
    """What is held, and then what is published now."""
    client = Client(broker)
    for kind, (exchange, queue) in held.items():
        assert client.depth(queue) == 0, kind
    for kind, (exchange, queue) in held.items():
        client.publish(exchange, KEYS[kind], b"later", delay=3 * HOUR_MS, headers={"kind": "h"})
        client.publish(exchange, KEYS[kind], b"now", headers={"kind": "h"})
        assert client.texts(queue, 1) == ["now"], kind
    set_clock(broker, 2 * HOUR_MS)
    for kind, (exchange, queue) in held.items():
        delivery = client.one(queue)
        assert delivery.text == kind and delivery.properties.message_id == f"id-{kind}"
        assert delivery.headers == {"kind": "h", "kept": "yes", "x-delay": -HOUR_MS}
        assert (delivery.method.exchange, delivery.method.routing_key) == (exchange, KEYS[kind])
    delivery = client.one("held-retry")
    assert delivery.text == "retried" and delivery.method.routing_key == "held-retry"
    death, = delivery.headers["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == ("held-retry", "rejected", 1)
    set_clock(broker, 4 * HOUR_MS)
    for kind, (exchange, queue) in held.items():
        assert client.texts(queue, 1) == ["later"], kind
    set_clock(broker, 0)
    client.close()


# --------------------------------------------------------------------- an archive for other series

@pytest.fixture(scope="module")
def foreign(brokers):
    """A broker that has an archive for other series at hand, and what is said of that."""
    other = "4.0" if SERIES == "3.10" else "3.10"
    if not os.path.isdir(dist_of(other)):
        pytest.skip(f"needs the archive for RabbitMQ {other}")
    broker = brokers("foreign", plugin_dirs=[dist_of(other)], enable=())
    yield broker, "not for RabbitMQ 3.10" if SERIES == "3.10" else "3.10.0"
    broker.end()


def test_an_archive_for_other_series_is_not_enabled(foreign):
    broker, saying = foreign
    refused = broker.plugins("enable", PLUGIN, check=False)
    said = refused.stdout + refused.stderr
    assert refused.returncode != 0 or not has_enabled(broker, PLUGIN), said
    assert saying in said + broker.log(), said


def test_a_boot_with_an_archive_for_other_series_leaves_it_out_and_says_so(foreign):
    broker, saying = foreign
    broker.stop()
    broker.enable = [PLUGIN]
    for written in ("enabled_plugins", "enabled_by_us"):
        os.remove(broker.path("etc", written))
    before = len(broker.log())
    broker.start()
    eventually(lambda: broker.log()[before:], lambda log: PLUGIN in log and saying in log)
    client = Client(broker)
    queue = client.queue()
    client.publish("", queue, b"plain")
    assert client.texts(queue, 1) == ["plain"]
    with pytest.raises((pika.exceptions.ChannelClosed, pika.exceptions.ConnectionClosed)):
        client.delayed()


# --------------------------------------------------------------------------------- Khepri

on_4_0 = pytest.mark.skipif(SERIES != "4.0", reason="3.10 has no Khepri, 4.3 has nothing else")


@pytest.fixture(scope="module")
def migrated(brokers):
    """A 4.0 broker whose metadata were moved to Khepri while messages were pending."""
    broker = brokers("khepri", enable=(PLUGIN, "rabbitmq_management"))
    held = hold(broker)
    broker.ctl("enable_feature_flag", "--experimental", "khepri_db")
    assert evaluate(broker, "rabbit_khepri:is_enabled().") == "true"
    yield broker, held
    broker.end()


@on_4_0
@pytest.mark.parametrize("then", ["at once", "stopped", "killed", "switched off and on"])
def test_what_is_pending_outlives_the_move_to_khepri(migrated, then):
    broker, held = migrated
    if then == "stopped":
        hold(broker)
        broker.restart()
    elif then == "killed":
        hold(broker)
        kill_9(broker)
        broker.start()
    elif then == "switched off and on":
        hold(broker)
        broker.plugins("disable", PLUGIN)
        broker.plugins("enable", PLUGIN)
    assert_all_arrive(broker, held)


@pytest.fixture(scope="module")
def topics(request, brokers):
    """The broker whose topic bindings are in an index of ours, if there is one."""
    return request.getfixturevalue("migrated")[0] if SERIES == "4.0" else brokers("topics")


def test_topic_bindings_come_and_go(topics):
    client = Client(topics)
    exchange = client.delayed("topic")
    patterns = ["#", "*", "a.*", "a.#", "#.z", "*.b.*", "a.b.c", "a.*.c", "#.b.#", "", "*.*", "a..c"]
    queues = {pattern: client.queue((exchange, pattern)) for pattern in patterns}

    def matching(pattern, key):
        """What AMQP says of it, as plainly as can be."""
        def match(p, k):
            if not p:
                return not k
            if p[0] == "#":
                return any(match(p[1:], k[n:]) for n in range(len(k) + 1))
            return bool(k) and p[0] in ("*", k[0]) and match(p[1:], k[1:])
        return match(pattern.split(".") if pattern else [], key.split(".") if key else [])

    def check(bound):
        for key in ["", "a", "z", "a.b", "a.b.c", "a..c", "b", "a.z", "x.b.y", "a.b.c.z", "..", "#"]:
            for delay in (None, 1):
                client.publish(exchange, key, key.encode(), delay=delay)
            for pattern in patterns:
                wanted = [key] * 2 if pattern in bound and matching(pattern, key) else []
                assert client.texts(queues[pattern], len(wanted)) == wanted, (pattern, key)

    check(patterns)
    for pattern in patterns[::2]:
        client.channel.queue_unbind(queues[pattern], exchange, pattern)
    check(patterns[1::2])
    for pattern in patterns[::2]:
        client.channel.queue_bind(queues[pattern], exchange, pattern)
    client.channel.queue_bind(queues["a.#"], exchange, "a.#", {"same key": "another binding"})
    check(patterns)
    client.channel.queue_unbind(queues["a.#"], exchange, "a.#")
    check(patterns)
    client.close()


def test_an_exchange_deleted_leaves_nothing_in_the_topic_index(topics):
    client = Client(topics)
    exchange = client.delayed("topic", keep=True)
    queue = client.queue((exchange, "a.b"), (exchange, "a.#"))
    client.channel.exchange_delete(exchange)
    client.delayed("topic", name=exchange)
    client.publish(exchange, "a.b", b"to nobody")
    client.publish("", queue, b"marker")
    assert client.texts(queue, 1) == ["marker"]
    client.channel.queue_delete(queue)
    assert evaluate(topics, "length([K || {{{resource, _, _, N}, _} = K, _, _} <- "
                            f'ets:tab2list(rabbit_delay_topic), N =:= <<"{exchange}">>]).') == "0"
    client.close()


def test_topic_bindings_hold_while_their_index_ends(topics):
    """It is derived: whenever its process ends, messages go where the broker's bindings say."""
    client = Client(topics)
    exchange = client.delayed("topic")
    queue = client.queue((exchange, "a.#"))
    client.publish(exchange, "a.b", b"held", delay=HOUR_MS)
    published = []
    for n in range(3):
        evaluate(topics, "exit(whereis(rabbit_delay_topic), kill).")
        client.publish(exchange, "a.b", f"now {n}".encode())
        client.publish(exchange, "a.b", f"later {n}".encode(), delay=1)
        client.channel.queue_bind(queue, exchange, f"*.c{n}")
        client.publish(exchange, f"x.c{n}", f"bound {n}".encode())
        client.channel.queue_unbind(queue, exchange, f"*.c{n}")
        client.publish(exchange, f"x.c{n}", b"to nobody")
        published += [f"{what} {n}" for what in ("now", "later", "bound")]
    evaluate(topics, "exit(whereis(rabbit_delay_topic), kill).")
    set_clock(topics, 2 * HOUR_MS)
    published.append("held")
    try:
        assert sorted(client.texts(queue, len(published))) == sorted(published)
    finally:
        set_clock(topics, 0)
    eventually(lambda: evaluate(topics, "is_pid(whereis(rabbit_delay_topic))."),
               lambda running: running == "true")
    assert client.depth(queue) == 0
    client.close()


# ----------------------------------------------------------------------------- feature flags

def test_it_works_with_no_feature_flag_but_those_that_are_required(brokers):
    broker = brokers("flagless", env={"RABBITMQ_FEATURE_FLAGS": ""})
    try:
        held = hold(broker)
        broker.restart()
        assert_all_arrive(broker, held)
    finally:
        broker.end()


@pytest.mark.skipif(SERIES == "3.10", reason="it has no other messages")
def test_what_no_container_holds_is_refused_in_words_or_routed(broker, client):
    """Messages as 3.13 has them until feature flag message_containers is enabled; later series only know
    what they are."""
    exchange, queue = client.delayed_and_queue()
    answers = evaluate(broker, f"""begin
        Name = rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>),
        {{ok, X}} = rabbit_exchange:lookup(Name),
        Routed = fun (By, Headers) ->
            Self = self(),
            spawn(fun () ->
                put('$initial_call', {{By, init, 1}}),
                Message = rabbit_basic:message(Name, <<"k">>, [{{headers, Headers}}], <<"x">>),
                basic_message = element(1, Message),
                Self ! {{routed, catch rabbit_exchange:route(X, Message)}}
            end),
            receive {{routed, Answer}} -> Answer end
        end,
        Delay = [{{<<"x-delay">>, long, 1000}}],
        {{'EXIT', {{amqp_error, precondition_failed, Why, _}}}} = Routed(rabbit_channel, Delay),
        [Q] = Routed(rabbit_channel, []),
        [] = Routed(rabbit_amqqueue_process, Delay),
        {{binary_to_list(iolist_to_binary(Why)), binary_to_list(element(4, Q))}}
        end.""".replace("\n", " "))
    assert "rabbitmqctl enable_feature_flag message_containers" in answers and queue in answers


def test_a_refusal_in_any_words_is_told_by_brokers_that_send_bytes(broker):
    """3.13, and 4.0 before 4.0.5, make the text that a channel is closed with a binary by list_to_binary/1."""
    assert evaluate(broker, """begin
        Self = self(),
        Words = [102, 252, 110, 102, 32, 26102],
        spawn(fun () ->
            put('$initial_call', {rabbit_channel, init, 1}),
            put(process_name, {rabbit_channel, test}),
            Self ! {raised, catch rabbit_delay_broker:protocol_error(precondition_failed, "~ts", [Words])}
        end),
        receive {raised, {'EXIT', {amqp_error, precondition_failed, Told, none}}} ->
            unicode:characters_to_list(list_to_binary(Told)) =:= Words
        end
        end.""".replace("\n", " ")) == "true"


# ------------------------------------------------------------------- what an earlier series left

after_another = pytest.mark.skipif(
    EARLIER is None or not os.path.isdir(dist_of(EARLIER)),
    reason="needs the archive for the series before, if there is one")


@after_another
def test_messages_of_the_series_before_move_with_their_directory(brokers, tmp_path):
    """The documented way where the broker itself cannot be upgraded in place: definitions, and the
    directory of the delayed messages, to a node of the same name."""
    old = brokers("before", plugin_dirs=[dist_of(EARLIER)], series=EARLIER, name="moving",
                  enable=(PLUGIN, "rabbitmq_management"))
    held = hold(old)
    definitions = Management(old).get("definitions")
    old.stop()
    new = brokers("after", name="moving", enable=(PLUGIN, "rabbitmq_management"))
    status, answer = Management(new).request("POST", "definitions", definitions)
    assert status in (200, 201, 204), answer
    new.stop()
    moved = os.path.join(new.data_dir, "quorum", "delayed")
    shutil.rmtree(moved)
    shutil.copytree(os.path.join(old.data_dir, "quorum", "delayed"), moved)
    new.start()
    management = Management(new)
    for exchange, _ in held.values():
        eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)
    assert_all_arrive(new, held)
    new.restart()
    held = hold(new)
    kill_9(new)
    new.start()
    assert_all_arrive(new, held)
    new.end()


@after_another
@pytest.mark.skipif(EARLIER == "3.10", reason="RabbitMQ does not go from 3.10 to 4.0 in one step")
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_broker_upgraded_in_place_keeps_what_is_pending(brokers, end):
    broker = brokers(f"upgraded-{end}", plugin_dirs=[dist_of(EARLIER)], series=EARLIER)
    broker.ctl("enable_feature_flag", "--experimental", "khepri_db")
    broker.ctl("enable_feature_flag", "all")
    held = hold(broker)
    if end == "killed":
        kill_9(broker)
        broker.end()
    else:
        broker.stop()
    broker.upgrade(SERIES, [dist_of(SERIES)])
    broker.start()
    assert_all_arrive(broker, held)
    broker.end()
