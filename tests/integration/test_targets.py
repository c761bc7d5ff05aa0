# SPDX-License-Identifier: MPL-2.0
"""Queues that take nothing for a while, or never: others get their messages meanwhile, and theirs
wait, each accounted for."""

import time

import pytest

import wire
from client import Client
from conftest import PLUGIN, QUICK_STATISTICS
from management import eventually
from metrics import Metrics
from node import evaluate, kill_9, kill_queue, queue_process

MANY = 8000
# What may be in flight, and what slow queues may have unconfirmed besides.
IN_FLIGHT, SLOW = 4000, 8256
CLASSIC, QUORUM = {}, {"x-queue-type": "quorum"}
TYPES = [pytest.param(CLASSIC, id="classic"), pytest.param(QUORUM, id="quorum")]


def figures(broker, exchange):
    return Metrics(broker, "metrics/per-object").of(exchange)


def counters(broker, exchange):
    """What figures() has of an exchange, without the Prometheus plugin."""
    text = evaluate(broker, f"""begin
        X = rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>),
        #{{released := Released, unroutable := Unroutable}} =
            rabbit_delay_counters:read(rabbit_delay_registry:known_counters(X)),
        #{{pending := Pending, taken := InFlight, waiting := Waiting, stuck_queues := Stuck}} =
            rabbit_delay_registry:stat(X),
        {{Released, Unroutable, Pending, InFlight, Waiting, Stuck}}
    end.""")
    return dict(zip(("released", "unroutable", "pending", "in_flight", "waiting", "stuck"),
                    map(int, text.strip("{}").split(","))))


def publish(broker, exchange, texts, delay=1500):
    """Each text's first word is its routing key."""
    with wire.Publisher(broker) as publisher:
        keys = {}
        for text in texts:
            keys.setdefault(text.split()[0], []).append(text)
        for key, of_key in keys.items():
            publisher.publish(exchange, key, of_key, headers={"x-delay": delay})


def suspended(queue):
    return f"sys:suspend({queue_process(queue)})."


def resumed(queue):
    return f"sys:resume({queue_process(queue)})."


def all_settled(broker, exchange):
    return eventually(lambda: counters(broker, exchange),
                      lambda now: now["pending"] == now["in_flight"] == now["waiting"] == 0,
                      within=60)


@pytest.mark.parametrize("arguments", TYPES)
def test_a_stalled_queue_holds_up_no_other_and_gets_all_when_it_goes_on(client, broker, arguments):
    exchange = client.delayed()
    stalled = client.queue((exchange, "stalled"), arguments=arguments)
    live = [client.queue((exchange, key), arguments=kind)
            for key, kind in (("classic", CLASSIC), ("quorum", QUORUM))]
    wanted = {key: [f"{key} {n}" for n in range(MANY)] for key in ("stalled", "classic")}
    wanted["quorum"] = [f"quorum {n}" for n in range(2000)]
    evaluate(broker, suspended(stalled))
    try:
        publish(broker, exchange, sum(wanted.values(), []))
        assert client.texts(live[0], MANY, within=60) == wanted["classic"]
        assert client.texts(live[1], 2000, within=60) == wanted["quorum"]
        now = eventually(lambda: counters(broker, exchange),
                         lambda now: now["waiting"] + now["in_flight"] == MANY, within=60)
        assert now["pending"] == MANY and now["stuck"] == 1 and now["unroutable"] == 0
        assert now["in_flight"] <= IN_FLIGHT and now["waiting"] >= MANY - IN_FLIGHT
        # And more for the others still goes at once.
        publish(broker, exchange, [f"classic {n}" for n in range(500)], delay=1)
        assert len(client.collect(live[0], 500, within=60)) == 500
        # What was delivered just now is in flight until it is settled.
        shown = eventually(lambda: figures(broker, exchange),
                           lambda shown: shown["messages_in_flight"] <= IN_FLIGHT)
        assert shown["messages_waiting"] >= MANY - IN_FLIGHT and shown["stuck_queues"] == 1
    finally:
        evaluate(broker, resumed(stalled))
    assert client.texts(stalled, MANY, within=90) == wanted["stalled"]
    now = all_settled(broker, exchange)
    assert (now["released"], now["stuck"]) == (2 * MANY + 2500, 0)
    assert client.depth(stalled) == client.depth(live[0]) == client.depth(live[1]) == 0


@pytest.mark.parametrize("arguments", TYPES)
def test_what_others_have_goes_only_to_the_one_that_stalled(client, broker, arguments):
    exchange = client.delayed("fanout")
    stalled = client.queue((exchange, ""), arguments=arguments)
    live = client.queue((exchange, ""))
    texts = [f"k {n}" for n in range(MANY)]
    evaluate(broker, suspended(stalled))
    try:
        publish(broker, exchange, texts)
        assert client.texts(live, MANY, within=60) == texts
        now = eventually(lambda: counters(broker, exchange),
                         lambda now: now["waiting"] + now["in_flight"] == MANY, within=60)
        assert now["in_flight"] <= IN_FLIGHT
    finally:
        evaluate(broker, resumed(stalled))
    assert client.texts(stalled, MANY, within=90) == texts
    assert all_settled(broker, exchange)["released"] == MANY
    assert client.depth(live) == client.depth(stalled) == 0


@pytest.mark.parametrize("arguments", TYPES)
def test_what_has_stalled_gets_all_in_order_while_another_one_does_not_answer(client, broker, arguments):
    """The first is full when the second stalls: what is in flight to that one waits for the first alone."""
    exchange = client.delayed("fanout")
    first, second = (client.queue((exchange, ""), arguments=arguments) for _ in range(2))
    texts = [f"k {n}" for n in range(MANY)]
    evaluate(broker, suspended(first))
    try:
        publish(broker, exchange, texts[:-500])
        assert client.texts(second, MANY - 500, within=60) == texts[:-500]
        evaluate(broker, suspended(second))
        publish(broker, exchange, texts[-500:], delay=1)
        # They are in flight to the second, which does not answer, and wait for the first as well.
        eventually(lambda: counters(broker, exchange),
                   lambda now: now["stuck"] == 2 and now["pending"] == MANY
                   and now["waiting"] + now["in_flight"] >= MANY, within=60)
    finally:
        evaluate(broker, resumed(first))
    try:
        assert client.texts(first, MANY, within=90) == texts
        eventually(lambda: counters(broker, exchange), lambda now: now["pending"] == 500, within=60)
    finally:
        evaluate(broker, resumed(second))
    assert client.texts(second, 500, within=60) == texts[-500:]
    assert all_settled(broker, exchange)["released"] == MANY
    assert client.depth(first) == client.depth(second) == 0


def test_several_stalled_queues_are_bounded_together(client, broker):
    exchange = client.delayed()
    stalled = [client.queue((exchange, str(n))) for n in range(5)]
    live = client.queue((exchange, "live"))
    for queue in stalled:
        evaluate(broker, suspended(queue))
    try:
        texts = [f"{key} {n}" for n in range(3000) for key in (*range(5), "live")]
        publish(broker, exchange, texts)
        assert client.texts(live, 3000, within=60) == [f"live {n}" for n in range(3000)]
        now = eventually(lambda: counters(broker, exchange),
                         lambda now: now["waiting"] + now["in_flight"] == 15_000, within=60)
        assert now["in_flight"] <= SLOW and now["stuck"] == 5
    finally:
        for queue in stalled:
            evaluate(broker, resumed(queue))
    for key, queue in enumerate(stalled):
        assert client.texts(queue, 3000, within=90) == [f"{key} {n}" for n in range(3000)]
    assert all_settled(broker, exchange)["released"] == 18_000


def test_what_waits_for_a_queue_can_be_cancelled_and_is_routed_anew(client, broker):
    exchange = client.delayed()
    stalled = client.queue((exchange, "k"))
    elsewhere = client.exchange("fanout")
    alternate = client.queue((elsewhere, ""))
    evaluate(broker, suspended(stalled))
    publish(broker, exchange, [f"k {n}" for n in range(5000)])
    # A queue that counts as slow is sent no more: what waits now goes on waiting.
    now = eventually(lambda: counters(broker, exchange),
                     lambda now: now["waiting"] + now["in_flight"] == 5000 and now["stuck"] == 1,
                     within=60)
    waiting = now["waiting"]
    assert waiting >= 1000
    broker.ctl("cancel_delayed_messages", exchange, "--due-to", "+1h")
    eventually(lambda: counters(broker, exchange),
               lambda now: now["pending"] == now["in_flight"] == 5000 - waiting)
    # What the queue did not take finds another, if that is bound in its place.
    client.channel.queue_bind(alternate, exchange, "k")
    client.channel.queue_unbind(stalled, exchange, "k")
    kill_queue(broker, stalled)
    client.collect(alternate, 5000 - waiting, within=60)
    all_settled(broker, exchange)


def test_after_leaderships_that_went_by_all_that_was_in_flight_is_released_again(client, broker):
    exchange, queue = client.delayed_and_queue()
    name = f'rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)'
    dispatcher = f"rabbit_delay_registry:dispatcher({name})"
    server = f"element(1, rabbit_delay_raft:server_id({name}))"
    texts = {f"k {n}" for n in range(3000)}
    evaluate(broker, suspended(queue))
    publish(broker, exchange, sorted(texts))
    eventually(lambda: counters(broker, exchange),
               lambda now: now["waiting"] + now["in_flight"] == 3000, within=60)
    evaluate(broker, f"sys:suspend({dispatcher}).")
    for _ in range(2):
        before = evaluate(broker, f"pid_to_list(whereis({server})).")
        evaluate(broker, f"exit(whereis({server}), kill).")
        eventually(lambda: evaluate(broker, f"case whereis({server}) of undefined -> none; P -> "
                                            f"pid_to_list(P) end."),
                   lambda pid, before=before: pid not in ("none", before), within=60)
        eventually(lambda: evaluate(broker, f"case catch ra:members({server}, 1000) of "
                                            "{ok, _, _} -> led; _ -> no end."),
                   lambda is_led: is_led == "led", within=60)
    evaluate(broker, f"sys:resume({dispatcher}).")
    eventually(lambda: counters(broker, exchange),
               lambda now: now["pending"] == 3000 and now["waiting"] + now["in_flight"] == 3000,
               within=60)
    evaluate(broker, resumed(queue))
    client.collect_every(queue, texts, within=60)
    all_settled(broker, exchange)


# ------------------------------------------------------------------------------ three nodes

@pytest.fixture(scope="module")
def cluster(brokers):
    """Three nodes that know each other; the delayed messages are on the first."""
    first, *others = nodes = [brokers(f"node{n}", enable=(PLUGIN,), start=False) for n in range(3)]
    for node in nodes:
        # On the first alone, whatever becomes of the others.
        node.conf = [*QUICK_STATISTICS, "delayed_message.initial_group_size = 1"]
        node.cookie, node.epmd_port = first.cookie, first.epmd_port
    first.start()
    for node in others:
        # They find each other through one port mapper.
        node._epmd = first._epmd
        node.start()
        for command in (["stop_app"], ["reset"], ["join_cluster", first.nodename], ["start_app"]):
            node.ctl(*command)
    eventually(lambda: evaluate(first, "length(nodes())."), lambda n: n == "2", within=60)
    yield nodes
    for node in others:
        node._epmd = None


@pytest.fixture
def near(cluster):
    for node in cluster:
        if not node.running():
            node.start()
    client = Client(cluster[0])
    yield client
    for node in cluster:
        if not node.running():
            node.start()
    client.close()


def leader_on(queue, node, broker):
    """Moves a quorum queue's leader, in every node's record of it too."""
    evaluate(broker, f"""begin
        {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
        {{Name, _}} = amqqueue:get_pid(Q),
        {{ok, _, Leader}} = ra:members({{Name, '{node}'}}),
        catch ra:transfer_leadership(Leader, {{Name, '{node}'}})
    end.""")
    eventually(lambda: evaluate(broker, f"""begin
        {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
        {{_, Node}} = amqqueue:get_pid(Q), Node end."""), lambda at: at.strip("'") == node,
               within=60)


def members_ready(queue, broker):
    eventually(lambda: evaluate(broker, f"""begin
        {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
        {{Name, _}} = amqqueue:get_pid(Q),
        case ra:members({{Name, node()}}, 1000) of {{ok, Ms, _}} -> length(Ms); _ -> 0 end end."""),
               lambda n: n == "3", within=60)


def test_a_quorum_queue_without_a_majority_holds_up_no_other(near, cluster):
    first, *others = cluster
    exchange = near.delayed()
    quorum = near.queue((exchange, "quorum"), arguments=QUORUM)
    live = near.queue((exchange, "live"))
    members_ready(quorum, first)
    # Its delay queue begins, which Khepri's minority could not write down.
    publish(first, exchange, ["live"], delay=1)
    near.collect(live, 1)
    for node in others:
        kill_9(node)
    wanted = {key: [f"{key} {n}" for n in range(5000)] for key in ("quorum", "live")}
    publish(first, exchange, sum(wanted.values(), []), delay=1500)
    assert near.texts(live, 5000, within=90) == wanted["live"]
    now = eventually(lambda: counters(first, exchange),
                     lambda now: now["waiting"] + now["in_flight"] == 5000, within=60)
    assert now["pending"] == 5000 and now["stuck"] == 1
    publish(first, exchange, [f"live {n}" for n in range(100)], delay=1)
    near.collect(live, 100, within=60)
    for node in others:
        node.start()
    near.collect_every(quorum, set(wanted["quorum"]), within=90)
    assert all_settled(first, exchange)["unroutable"] == 0


def test_a_quorum_queue_whose_leaders_node_dies_gets_messages_from_the_next(near, cluster):
    first, second, _ = cluster
    exchange = near.delayed()
    quorum = near.queue((exchange, "k"), arguments=QUORUM)
    members_ready(quorum, first)
    leader_on(quorum, second.nodename, first)
    texts = {f"k {n}" for n in range(600)}
    publisher = wire.Publisher(first)
    kill_9(second)
    began = time.monotonic()
    # The first is due before any other node leads.
    with publisher:
        publisher.publish(exchange, "k", sorted(texts),
                          headers=lambda n: {"x-delay": 1 + n * 10})
    near.collect_every(quorum, texts, within=60)
    # The last is due 6 s after that; nothing waits for half a minute, or for the dead node.
    assert time.monotonic() - began < 45
    all_settled(first, exchange)


@pytest.mark.parametrize("kind, binding, headers", [
    ("direct", ("k",), {}), ("fanout", ("",), {}), ("topic", ("*.#",), {}),
    ("headers", ("", {"x-match": "any", "a": 1, "b": "c"}), {"b": "c"})])
def test_what_comes_due_while_a_classic_queues_node_is_down_waits_for_it(near, cluster, kind,
                                                                         binding, headers):
    first, second, _ = cluster
    exchange = near.delayed(kind)
    # And once more through an exchange that has an alternate one for what it has no queue for.
    lost = near.exchange("fanout")
    unwanted = near.queue((lost, ""))
    behind = near.exchange("direct", arguments={"alternate-exchange": lost})
    near.channel.exchange_bind(behind, exchange, *binding)
    here = near.queue((exchange, *binding))
    far = Client(second)
    there = far.queue((exchange, *binding), keep=True)
    further = far.queue((behind, "k"), keep=True)
    far.connection.close()
    kill_9(second)
    # Not before the first has seen it.
    eventually(lambda: evaluate(first, "length(nodes())."), lambda n: int(n) < 3, within=60)
    texts = [f"k {n}" for n in range(300)]
    with wire.Publisher(first) as publisher:
        publisher.publish(exchange, "k", texts, headers={"x-delay": 2000, **headers})
    assert near.texts(here, 300, within=60) == texts
    now = eventually(lambda: counters(first, exchange),
                     lambda now: now["pending"] == 300 and now["waiting"] >= 300, within=60)
    assert (now["released"], now["unroutable"]) == (0, 0)
    second.start()
    near.collect_every(there, set(texts), within=90)
    near.collect_every(further, set(texts), within=90)
    assert all_settled(first, exchange)["released"] == 300
    assert near.depth(unwanted) == near.depth(here) == 0
    for queue in (there, further):
        near.channel.queue_delete(queue)
