# SPDX-License-Identifier: MPL-2.0
"""What becomes of an exchange and its delayed messages when either, the plugin or the broker goes
and comes back."""

import json
import os
import shutil
import time
import uuid
from types import SimpleNamespace

import pika
import pika.exceptions
import pytest

import wire
from client import LATE, Client, closes_channel, internal_queue
from conftest import PLUGIN, PLUGIN_DIRS
from management import Management, eventually
from node import HOUR_MS, clock_ahead, evaluate, has_enabled, kill_9, set_clock
from private_broker import default_series


def due_in(ms):
    """A header for delivery so long from now, and that time in ms since the epoch."""
    due = int(time.time() * 1000) + ms
    return {"x-opt-delivery-time": wire.signed_long(due)}, due


def size_of(directory):
    """Bytes in the files below a directory, as far as they stay while one looks."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


# -------------------------------------------------------------------------- deletion

def test_an_exchange_deleted_and_made_again_starts_empty(client, management, clock):
    exchange, queue = client.delayed_and_queue()
    for _ in range(10):
        client.publish(exchange, body=b"old", delay=HOUR_MS)
    client.channel.exchange_delete(exchange)
    client.delayed(name=exchange)
    assert management.messages_delayed(exchange) == 0
    client.channel.queue_bind(queue, exchange, "k")
    client.publish(exchange, body=b"new", delay=HOUR_MS + 1000)
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["new"]


def test_one_made_again_and_again_keeps_only_its_last_messages(client, clock):
    queue = client.queue()
    name = f"x-{uuid.uuid4().hex}"
    for generation in range(10):
        client.delayed(name=name)
        client.channel.queue_bind(queue, name, "k")
        client.publish(name, body=str(generation).encode(), delay=HOUR_MS)
        if generation < 9:
            client.channel.exchange_delete(name)
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["9"]
    assert client.texts_until_marker(queue) == []


def test_one_with_bindings_is_not_deleted_if_only_when_unused(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"kept", delay=500)
    code, _ = closes_channel(lambda: client.channel.exchange_delete(exchange, if_unused=True))
    assert code == 406
    assert client.texts(queue, 1) == ["kept"]


def test_an_auto_delete_one_goes_with_its_last_binding_and_takes_its_messages_along(client, clock):
    name = f"x-{uuid.uuid4().hex}"
    client.delayed(name=name, auto_delete=True)
    queue = client.queue((name, "k"))
    client.publish(name, body=b"old", delay=HOUR_MS)
    client.channel.queue_unbind(queue, name, "k")
    assert closes_channel(lambda: client.channel.exchange_declare(name, passive=True))[0] == 404
    client.delayed(name=name, auto_delete=True)
    client.channel.queue_bind(queue, name, "k")
    client.publish(name, body=b"new", delay=HOUR_MS + 1000)
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["new"]


def test_a_non_durable_one_delays_as_well(client):
    exchange = client.delayed(durable=False)
    queue = client.queue((exchange, "k"))
    published = client.publish(exchange, body=b"later", delay=400)
    assert (client.one(queue).at - published) * 1000 >= 400


def test_a_deleted_one_leaves_no_internal_queue(client, broker):
    exchange = client.delayed()
    client.publish(exchange, delay=60000)
    client.channel.exchange_delete(exchange)
    names = {row["name"] for row in broker.rows("list_queues", "name")}
    assert internal_queue(exchange) not in names


def test_exchanges_that_come_and_go_leave_no_crash_in_the_log(client, broker):
    before = len(broker.log())
    queue = client.queue()
    delayed = pika.BasicProperties(headers={"x-delay": HOUR_MS}, delivery_mode=2)
    for number in range(150):
        exchange = client.delayed(keep=True)
        client.channel.queue_bind(queue, exchange, "k")
        client.channel.basic_publish(exchange, "k", b"x", delayed)
        # At different moments of the exchange's start.
        if number % 3 == 1:
            client.depth(queue)
        elif number % 3 == 2:
            client.publish(exchange, delay=HOUR_MS)
        client.channel.exchange_delete(exchange)
    done = f"done {uuid.uuid4()}"
    evaluate(broker, f'logger:log(notice, "{done}", #{{domain => [rabbitmq]}}).')
    eventually(lambda: done in broker.log(), bool)
    assert [line for line in broker.log()[before:].splitlines()
            if "crasher" in line or "terminating" in line] == []


def test_publishing_to_a_deleted_one_is_not_found(client):
    exchange = client.delayed()
    client.publish(exchange, delay=60000)
    client.channel.exchange_delete(exchange)
    assert client.refusal(exchange, delay=100)[0] == 404


def test_an_exchange_with_100_000_pending_is_deleted_at_once_and_its_disk_space_freed(
        client, broker, management):
    exchange, queue = client.delayed_and_queue()
    other, other_queue = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", ["x" * 200] * 100_000, headers={"x-delay": HOUR_MS})
        assert len(publisher.confirmed) == 100_000
    assert management.messages_delayed(exchange) == 100_000
    client.publish(other, body=b"others go on", delay=1000)
    held = size_of(broker.data_dir)
    began = time.monotonic()
    client.channel.exchange_delete(exchange)
    assert (time.monotonic() - began) * 1000 < LATE
    assert client.texts(other_queue, 1) == ["others go on"]
    eventually(lambda: size_of(broker.data_dir), lambda size: size < held - 15_000_000)
    client.delayed(name=exchange)
    assert management.messages_delayed(exchange) == 0
    assert client.depth(queue) == 0


def test_deleting_its_vhost_discards_its_messages(broker, management, clock):
    vhost = f"v-{uuid.uuid4().hex[:8]}"

    def make():
        assert management.request("PUT", f"vhosts/{vhost}")[0] in (201, 204)
        assert management.request("PUT", f"permissions/{vhost}/guest", {
            "configure": ".*", "write": ".*", "read": ".*"})[0] in (201, 204)
        client = Client(broker, vhost)
        exchange = client.delayed(name="x", keep=True)
        return client, exchange, client.queue((exchange, "k"), name="q", keep=True)

    client, exchange, _ = make()
    for _ in range(100):
        client.publish(exchange, body=b"old", delay=HOUR_MS)
    assert management.messages_delayed(exchange, vhost) == 100
    assert management.request("DELETE", f"vhosts/{vhost}")[0] == 204
    client, exchange, queue = make()
    assert management.messages_delayed(exchange, vhost) == 0
    client.publish(exchange, body=b"new", delay=HOUR_MS + 1000)
    clock(2 * HOUR_MS)
    assert client.texts(queue, 1) == ["new"]
    client.close()
    assert management.request("DELETE", f"vhosts/{vhost}")[0] == 204


def test_exchanges_of_one_name_in_two_vhosts_are_two(broker, client, management):
    vhost = f"v-{uuid.uuid4().hex[:8]}"
    management.request("PUT", f"vhosts/{vhost}")
    management.request("PUT", f"permissions/{vhost}/guest",
                       {"configure": ".*", "write": ".*", "read": ".*"})
    there = Client(broker, vhost)
    exchange, queue = client.delayed_and_queue()
    there.delayed(name=exchange)
    there_queue = there.queue((exchange, "k"))
    client.publish(exchange, body=b"here", delay=300)
    there.publish(exchange, body=b"there", delay=300)
    assert client.texts(queue, 1) == ["here"]
    assert there.texts(there_queue, 1) == ["there"]
    there.close()
    management.request("DELETE", f"vhosts/{vhost}")


# -------------------------------------------------------------------------- policies

def test_a_policy_may_give_it_an_alternate_exchange(client, management, clock):
    exchange = client.delayed()
    alternate = client.exchange("fanout")
    queue = client.queue((alternate, ""))
    client.publish(exchange, "nowhere", b"saved", delay=HOUR_MS)
    policy = f"policies/%2F/{exchange}"
    assert management.request("PUT", policy, {
        "pattern": f"^{exchange}$", "apply-to": "exchanges",
        "definition": {"alternate-exchange": alternate}})[0] in (201, 204)
    try:
        assert management.messages_delayed(exchange) == 1
        clock(2 * HOUR_MS)
        assert client.texts(queue, 1) == ["saved"]
    finally:
        management.request("DELETE", policy)
    assert management.exchange(exchange).get("policy") in (None, "")


# ------------------------------------------------------------------------------ many

def test_five_hundred_exchanges_delay_at_once(client, broker, management):
    queue = client.queue()
    names = [client.delayed() for _ in range(500)]
    for name in names:
        client.channel.queue_bind(queue, name, "k")
    with wire.Publisher(broker) as publisher:
        for name in names:
            publisher.send(name, "k", [name], headers={"x-delay": 4000})
        publisher.await_answers()
        assert len(publisher.confirmed) == 500
    got = client.texts(queue, 500)
    assert sorted(got) == sorted(names)
    for name in names:
        client.channel.exchange_delete(name)
    left = {row["name"] for row in broker.rows("list_queues", "name")}
    assert not left & {internal_queue(name) for name in names}
    assert management.get("overview")["object_totals"]["exchanges"] > 0


# --------------------------------------------------------------------------- restart

def test_after_a_boot_with_many_exchanges_each_holds_little(brokers):
    """Of the node's memory; what a process needed to begin is given back."""
    broker, many = brokers("many-exchanges"), 200
    client = Client(broker)
    for name in [client.delayed(keep=True) for _ in range(many)]:
        client.publish(name, body=b"x" * 10000, delay=HOUR_MS)
    client.close()
    broker.restart()
    held = eventually(lambda: json.loads(evaluate(broker, """
        Initial = fun (Pid) ->
                      {dictionary, D} = erlang:process_info(Pid, dictionary),
                      proplists:get_value('$initial_call', D)
                  end,
        [M || Pid <- processes(), {rabbit_delay_queue, _, _} <- [catch Initial(Pid)],
              {memory, M} <- [process_info(Pid, memory)]].""")), lambda held: len(held) == many, within=120)
    assert sum(held) / many < 200_000


MISSPELT = {"x-delayed-type": "direct", "x-delay-maximum": 1}


@pytest.fixture(scope="module", params=["stopped", "killed"])
def restarted(request, brokers):
    """A broker that was stopped, or killed, and started again while it held delayed messages. They
    are due about an hour later, by a clock that is two hours ahead from the start on."""
    broker = brokers(f"restarted-{request.param}", enable=(PLUGIN, "rabbitmq_management"))
    client = Client(broker)
    was = SimpleNamespace(broker=broker, due={}, queues={})

    for kind, key, arguments in [("direct", "k", None), ("fanout", "", None),
                                 ("topic", "a.*.c", None),
                                 ("headers", "", {"x-match": "all", "h": "1"})]:
        exchange = client.delayed(kind, name=f"durable-{kind}")
        was.queues[kind] = client.queue((exchange, key, arguments), name=f"q-{kind}")
        headers, was.due[kind] = due_in(2 * HOUR_MS + 9000)
        client.publish(exchange, {"topic": "a.b.c"}.get(kind, key), kind.encode(),
                       headers={**headers, "h": "1"})

    exchange, was.queues["overdue"] = client.delayed_and_queue(name="overdue")
    first = int(time.time() * 1000) + HOUR_MS
    for number in (3, 1, 2, 5, 4):
        client.publish(exchange, body=str(number).encode(), headers={
            "x-opt-delivery-time": wire.signed_long(first + number)})

    client.delayed(name="transient", durable=False)
    was.queues["transient"] = client.queue(name="q-transient")
    client.channel.queue_bind(was.queues["transient"], "transient", "k")
    client.publish("transient", body=b"as long as its exchange", delay=HOUR_MS)

    client.delayed(name="through")
    client.exchange("topic", name="onwards")
    client.channel.exchange_bind("onwards", "through", "k")
    was.queues["through"] = client.queue(("onwards", "#"), name="q-through")
    client.publish("through", body=b"through", delay=HOUR_MS)

    client.delayed(name="counted")
    for _ in range(7):
        client.publish("counted", delay=10 * HOUR_MS)

    status, _ = Management(broker).request("POST", "definitions", {"exchanges": [
        {"name": "misspelt", "vhost": "/", "type": "x-delayed-message", "durable": True,
         "auto_delete": False, "internal": False, "arguments": MISSPELT}]})
    assert status in (200, 201, 204)

    if request.param == "killed":
        kill_9(broker)
    else:
        broker.stop()
    clock_ahead(broker, 2 * HOUR_MS)
    broker.start()
    was.client = Client(broker)
    yield was
    was.client.close()
    broker.end()


def test_what_was_overdue_at_the_start_comes_in_due_order(restarted):
    assert restarted.client.texts(restarted.queues["overdue"], 5) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
def test_durable_ones_deliver_after_a_restart_and_never_early(restarted, kind):
    delivery = restarted.client.one(restarted.queues[kind])
    assert delivery.text == kind
    assert time.time() * 1000 + 2 * HOUR_MS >= restarted.due[kind]


def test_exchange_bindings_still_route_after_a_restart(restarted):
    assert restarted.client.texts(restarted.queues["through"], 1) == ["through"]


@pytest.mark.skipif(default_series() == "4.3", reason="Khepri keeps transient exchanges")
def test_a_restart_forgets_a_non_durable_one_and_its_messages(restarted):
    client = restarted.client
    assert closes_channel(lambda: client.channel.exchange_declare("transient", passive=True)
                          )[0] == 404
    client.delayed(name="transient", durable=False)
    client.channel.queue_bind(restarted.queues["transient"], "transient", "k")
    assert Management(restarted.broker).messages_delayed("transient") == 0
    client.publish("transient", body=b"new", delay=300)
    assert client.texts(restarted.queues["transient"], 1) == ["new"]


@pytest.mark.skipif(default_series() != "4.3", reason="Mnesia forgets transient exchanges")
def test_where_a_restart_keeps_a_non_durable_one_its_messages_are_kept_too(restarted):
    client = restarted.client
    client.channel.exchange_declare("transient", passive=True)
    assert client.texts(restarted.queues["transient"], 1) == ["as long as its exchange"]


def test_the_count_survives_a_restart(restarted):
    management = Management(restarted.broker)
    eventually(lambda: management.messages_delayed("counted"), lambda n: n == 7)


def test_it_goes_on_delaying_after_a_restart(restarted):
    client = restarted.client
    exchange, queue = client.delayed_and_queue()
    published = client.publish(exchange, body=b"after", delay=2 * HOUR_MS + 300)
    assert (client.one(queue).at - published) * 1000 >= 300


def test_what_would_be_refused_to_a_client_is_there_after_a_restart(restarted):
    assert Management(restarted.broker).exchange("misspelt")["arguments"] == MISSPELT
    client = restarted.client
    client.channel.exchange_declare("misspelt", "x-delayed-message", durable=True, arguments=MISSPELT)
    queue = client.queue(("misspelt", "k"))
    client.publish("misspelt", body=b"later", delay=300)
    assert client.texts(queue, 1) == ["later"]


@pytest.mark.skipif(default_series() == "4.3", reason="RabbitMQ 4.3 has no Mnesia")
def test_who_has_confirmed_a_message_knows_its_exchange_after_a_crash(brokers):
    """Mnesia is told of an exchange, and does not write it yet, as it now and then is by the broker."""
    broker = brokers("unwritten", enable=(PLUGIN, "rabbitmq_management"))
    client = Client(broker)
    client.delayed(name="written", keep=True)
    evaluate(broker, """
        Named = fun (Name) -> rabbit_misc:r(<<"/">>, exchange, Name) end,
        {atomic, ok} = mnesia:transaction(fun () ->
            [X] = mnesia:read(rabbit_exchange, Named(<<"written">>)),
            Unwritten = setelement(2, X, Named(<<"unwritten">>)),
            ok = mnesia:write(rabbit_durable_exchange, Unwritten, write),
            ok = mnesia:write(rabbit_exchange, Unwritten, write) end).""")
    client.publish("unwritten", body=b"confirmed", delay=HOUR_MS)
    broker.kill9()
    broker.start()
    assert Management(broker).get("delayed-exchanges/%2F/unwritten/messages?body=true")["items"][0][
        "payload"] == "confirmed"
    broker.end()


# -------------------------------------------------- the plugin disabled, enabled, removed

@pytest.fixture(scope="module")
def switched(brokers, tmp_path_factory):
    """A broker with a plugins directory of its own, from which the plugin can be taken away."""
    own = tmp_path_factory.mktemp("plugins")
    for source in PLUGIN_DIRS:
        shutil.copytree(source, own, dirs_exist_ok=True)
    broker = brokers("switched", plugin_dirs=[str(own)], enable=(PLUGIN, "rabbitmq_management"))
    yield broker
    broker.end()


@pytest.fixture
def pending(switched):
    """An exchange of every common type with a message pending for its queue, for an hour."""
    if not switched.running():
        switched.start()
    if not has_enabled(switched, PLUGIN):
        switched.plugins("enable", PLUGIN)
    client = Client(switched)
    queues = {}
    for kind, key in (("direct", "k"), ("topic", "a.#"), ("fanout", "")):
        exchange = client.delayed(kind, keep=True)
        queues[kind] = (exchange, client.queue((exchange, key), keep=True))
        client.publish(exchange, {"topic": "a.b"}.get(kind, key), kind.encode(), delay=HOUR_MS)
    return queues


def assert_they_arrive(broker, pending):
    client = Client(broker)
    assert all(client.depth(queue) == 0 for _, queue in pending.values())
    for kind, (exchange, queue) in pending.items():
        key = {"topic": "a.b", "direct": "k", "fanout": ""}[kind]
        client.publish(exchange, key, b"again", delay=HOUR_MS)
        client.publish(exchange, key, b"now")
        assert client.texts(queue, 1) == ["now"]
    set_clock(broker, 2 * HOUR_MS)
    for kind, (_, queue) in pending.items():
        assert client.texts(queue, 2) == [kind, "again"]
    set_clock(broker, 0)
    client.close()


def assert_the_broker_serves(broker):
    client = Client(broker)
    queue = client.queue()
    client.publish("", queue, b"plain")
    assert client.texts(queue, 1) == ["plain"]
    client.close()
    management = Management(broker)
    for path in ("exchanges", "queues", "overview", "vhosts", "definitions"):
        # AMQP is served while the boot goes on, and some pages are not yet.
        eventually(lambda: management.request("GET", path), lambda answer: answer[0] == 200
                   and answer[1])


def assert_nothing_is_confirmed_and_lost(broker, exchange):
    """Without the plugin a delayed publish may be refused in any way, but not confirmed."""
    client = Client(broker)
    with pytest.raises((pika.exceptions.NackError, pika.exceptions.UnroutableError,
                        pika.exceptions.ChannelClosed, pika.exceptions.ConnectionClosed)):
        client.publish(exchange, body=b"?", delay=1000, mandatory=True)


def test_disabled_and_enabled_at_run_time_it_keeps_its_messages(switched, pending):
    switched.plugins("disable", PLUGIN)
    assert_the_broker_serves(switched)
    assert_nothing_is_confirmed_and_lost(switched, pending["direct"][0])
    switched.plugins("enable", PLUGIN)
    assert_they_arrive(switched, pending)


def test_disabled_then_restarted_the_broker_serves_and_enabled_it_delivers(switched, pending):
    switched.plugins("disable", PLUGIN)
    switched.restart()
    assert_the_broker_serves(switched)
    switched.plugins("enable", PLUGIN)
    assert_they_arrive(switched, pending)


def test_with_its_files_gone_the_broker_boots_and_with_them_back_it_delivers(switched, pending):
    aside = switched.path("aside")
    switched.stop()
    os.rename(switched.plugin_dirs[0], aside)
    os.mkdir(switched.plugin_dirs[0])
    switched.start()
    assert_the_broker_serves(switched)
    switched.stop()
    os.rmdir(switched.plugin_dirs[0])
    os.rename(aside, switched.plugin_dirs[0])
    switched.start()
    assert_they_arrive(switched, pending)


def test_disabled_while_down_after_a_crash_the_broker_boots(switched, pending):
    kill_9(switched)
    switched.plugins("disable", "--offline", PLUGIN)
    switched.start()
    assert_the_broker_serves(switched)
    switched.plugins("enable", PLUGIN)
    assert_they_arrive(switched, pending)


def assert_only_the_new_message_arrives(broker, exchange, queue):
    """The exchange was made again; of its earlier self it knows nothing."""
    client = Client(broker)
    client.channel.queue_bind(queue, exchange, "k")
    client.publish(exchange, body=b"new", delay=HOUR_MS + 60_000)
    set_clock(broker, 2 * HOUR_MS)
    assert client.texts(queue, 1) == ["new"]
    set_clock(broker, 0)
    client.close()


def test_an_exchange_deleted_while_the_plugin_is_disabled_does_not_come_back(switched, pending):
    exchange, queue = pending["direct"]
    switched.plugins("disable", PLUGIN)
    Client(switched).channel.exchange_delete(exchange)
    switched.plugins("enable", PLUGIN)
    Client(switched).delayed(name=exchange)
    assert_only_the_new_message_arrives(switched, exchange, queue)


def test_the_application_may_be_stopped_and_started_within_the_node(switched, pending):
    switched.ctl("stop_app")
    switched.ctl("start_app")
    switched.wait_until_amqp()
    assert_they_arrive(switched, pending)


def test_a_reset_node_starts_empty(switched, pending):
    exchange, queue = pending["direct"]
    for step in ("stop_app", "reset", "start_app"):
        switched.ctl(step)
    switched.wait_until_amqp()
    client = Client(switched)
    client.delayed(name=exchange)
    client.queue(name=queue)
    assert_only_the_new_message_arrives(switched, exchange, queue)
