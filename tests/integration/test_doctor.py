# SPDX-License-Identifier: MPL-2.0
"""check_dead_lettering: each trap that it names does on a real broker what it says, and what it says
mends it does so. (The command itself: test_doctor_command.py.)"""

import time
import uuid

import pytest

from client import Client, closes_channel
from conftest import PLUGIN
from doctor import by_rule, findings, is_mended, run, the
from management import WITHIN, eventually, quoted
from node import HOUR_MS, evaluate
from private_broker import default_series

SERIES = default_series()


@pytest.fixture
def rule(broker, vhost):
    """rule(id, object): asserts that it is found, and answers what mends it."""
    def found(rule, name):
        the(broker, vhost, rule, name)
        return lambda: is_mended(broker, vhost, rule, name)
    return found


def policy(management, vhost, name, pattern, priority=0, **definition):
    status, answer = management.request(
        "PUT", f"policies/{quoted(vhost)}/{name}",
        {"pattern": pattern, "apply-to": "queues", "priority": priority,
         "definition": {key.replace("_", "-"): value for key, value in definition.items()}})
    assert status in (201, 204), answer


def dead(exchange, key=None, **more):
    arguments = {"x-dead-letter-exchange": exchange}
    if key is not None:
        arguments["x-dead-letter-routing-key"] = key
    return {**arguments, **{f"x-{name.replace('_', '-')}": value for name, value in more.items()}}


def reject(client, queue, body=b"x"):
    """Publishes to the queue, gets the message and rejects it."""
    client.publish("", queue, body)
    client.one_got = get(client, queue)
    client.channel.basic_reject(client.one_got[0].delivery_tag, requeue=False)


def get(client, queue, within=WITHIN):
    deadline = time.monotonic() + within
    while True:
        method, properties, body = client.channel.basic_get(queue)
        if method:
            return method, properties, body
        assert time.monotonic() < deadline, f"nothing in {queue}"
        time.sleep(0.02)


def is_empty(client, *queues):
    return all(client.texts_until_marker(queue) == [] for queue in queues)


def gone(client, queue):
    """Until nothing is in the queue; what expired is taken out when its time has come."""
    eventually(lambda: client.depth(queue), lambda depth: depth == 0)


# ---------------------------------------------------------------- the loss, and what mends it

def test_dlx_missing(local, rule):
    work = local.queue(name="work é/'x", arguments=dead("gone"))
    mend = rule("dlx_missing", work)
    reject(local, work)
    assert is_empty(local, work)
    mend()
    reject(local, work, b"kept")
    assert local.one("gone.parked").text == "kept"


def test_dlx_unroutable(local, rule):
    dlx = local.exchange("direct")
    parked = local.queue((dlx, "other"))
    work = local.queue(arguments=dead(dlx, "k"))
    mend = rule("dlx_unroutable", work)
    reject(local, work)
    assert is_empty(local, work, parked)
    mend()
    reject(local, work, b"kept")
    assert local.one(f"{dlx}.parked").text == "kept"


def test_dlx_unroutable_by_the_original_key(local, rule, broker, vhost):
    dlx, source = local.exchange("topic"), local.exchange("topic")
    local.queue((dlx, "us.#"))
    work = local.queue((source, "eu.*.new"), arguments=dead(dlx))
    mend = rule("dlx_unroutable", work)
    local.publish(source, "eu.x.new")
    local.channel.basic_reject(get(local, work)[0].delivery_tag, requeue=False)
    assert is_empty(local, work)
    mend()
    local.publish(source, "eu.x.new", b"kept")
    local.channel.basic_reject(get(local, work)[0].delivery_tag, requeue=False)
    assert local.one(f"{dlx}.parked").text == "kept"


def test_dlx_unroutable_through_headers_that_do_not_count(local, rule):
    """Headers whose names begin with x- match only with all-with-x and any-with-x."""
    dlx = local.exchange("headers")
    parked = local.queue((dlx, "", {"x-match": "any", "x-first-death-reason": "rejected"}))
    work = local.queue(arguments=dead(dlx))
    rule("dlx_unroutable", work)
    reject(local, work)
    assert is_empty(local, work, parked)
    local.channel.queue_bind(parked, dlx, "", {"x-match": "any-with-x",
                                               "x-first-death-reason": "rejected"})
    reject(local, work, b"kept")
    assert local.one(parked).text == "kept"


def test_retry_parking_missing(local, rule):
    retry = local.delayed(arguments={"x-delay-retry": "1ms",
                                     "x-delay-retry-parking-exchange": "gone"})
    work = local.queue(arguments=dead(retry))
    mend = rule("retry_parking_missing", work)
    mend()
    reject(local, work, b"kept")
    local.channel.basic_reject(get(local, work)[0].delivery_tag, requeue=False)
    assert local.one("gone.parked").text == "kept"


def test_a_delayed_exchange_that_retries_is_no_trap(local, broker, vhost):
    """Neither for want of a binding, nor as a cycle by one."""
    retry = local.delayed(arguments={"x-delay-retry": "1ms"})
    without = local.queue(arguments=dead(retry, "nowhere"))
    cycle = local.queue((retry, "round"), arguments=dead(retry, "round", message_ttl=1000))
    found = {(f["rule"], f["name"]) for f in findings(broker, vhost)}
    assert not found & {(rule, name) for name in (without, cycle)
                        for rule in ("dlx_unroutable", "cycle_dropped", "cycle_unbounded")}


def test_routing_key_without_dlx(local, rule, management, vhost):
    work = local.queue()
    parked = local.queue()
    policy(management, vhost, "half", "^" + work, dead_letter_routing_key=parked)
    mend = rule("routing_key_without_dlx", work)
    reject(local, work)
    assert is_empty(local, work, parked)
    mend()
    reject(local, work, b"kept")
    assert local.one(parked).text == "kept"


def test_ttl_without_dlx(local, rule):
    work = local.queue(arguments={"x-message-ttl": 50})
    mend = rule("ttl_without_dlx", work)
    local.publish("", work)
    gone(local, work)
    mend()
    local.publish("", work, b"kept")
    assert local.one(f"{work}.parked").text == "kept"


def test_expires_loses_messages(local, rule, management, vhost):
    parked = local.queue()
    delay = local.queue(arguments=dead("", parked, message_ttl=HOUR_MS, expires=HOUR_MS // 2))
    rule("expires_loses_messages", delay)
    local.publish("", delay)
    # Not in half an hour, but now.
    policy(management, vhost, "now", f"^{delay}$", expires=1)
    eventually(lambda: exists(local, delay), lambda there: not there)
    assert is_empty(local, parked)
    assert management.request("DELETE", f"policies/{quoted(vhost)}/now")[0] == 204
    again = local.queue(name=delay, arguments=dead("", parked, message_ttl=60000, expires=60000))
    rule("expires_loses_messages", again)()
    local.publish("", again)
    assert local.depth(again) == 1


def named(client, queue):
    """The queue's name in Erlang. (A client that asks for a queue keeps it from expiring.)"""
    vhost, name = ("<<" + ",".join(map(str, text.encode())) + ">>"
                   for text in (client.vhost, queue))
    return f"rabbit_misc:r({vhost}, queue, {name})"


def exists(client, queue):
    return evaluate(client.broker, f"rabbit_amqqueue:exists({named(client, queue)}).") == "true"


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_head_of_line_ttl(local, rule, kind):
    work = local.queue()
    delay = local.queue(name="delay", arguments={**dead("", work), "x-queue-type": kind})
    rule("head_of_line_ttl", delay)
    began = local.publish("", delay, b"long", expiration="2500")
    local.publish("", delay, b"short", expiration="50")
    long, short = local.collect(work, 2)
    assert (long.text, short.text) == ("long", "short")
    assert short.at - began >= 2.5, "the short one was not blocked"
    for command in the(local.broker, local.vhost, "head_of_line_ttl", delay)["commands"]:
        run(local.broker, command)
    local.publish("delayed", work, b"long", delay=HOUR_MS)
    local.publish("delayed", work, b"short", delay=50)
    assert local.texts(work, 1) == ["short"]


def test_cycle_dropped(local, rule, broker):
    first, second = f"a-{uuid.uuid4().hex}", f"b-{uuid.uuid4().hex}"
    local.queue(name=first, arguments=dead("", second, message_ttl=20))
    local.queue(name=second, arguments=dead("", first, message_ttl=20))
    mend = rule("cycle_dropped", first)
    local.publish("", first)
    broker.wait_until(lambda: any("cycle" in line and first in line
                                  for line in broker.log().replace("\n", " ").split("[warning]")),
                      what="the warning of a dropped message")
    eventually(lambda: local.depth(first) + local.depth(second), lambda depth: depth == 0)
    mend()
    local.publish("", first, b"kept")
    assert local.one(f"{first}.parked").text == "kept"


def test_cycle_dropped_at_the_delivery_limit(local, rule, broker):
    """A message that ran into the delivery limit does not come back even once."""
    work, wait = f"work-{uuid.uuid4().hex}", f"wait-{uuid.uuid4().hex}"
    local.queue(name=work, arguments=dead("", wait, queue_type="quorum", delivery_limit=1))
    local.queue(name=wait, arguments=dead("", work, message_ttl=20))
    rule("cycle_dropped", min(work, wait))
    local.publish("", work)
    for _ in range(2):
        local.channel.basic_reject(get(local, work)[0].delivery_tag, requeue=True)
    broker.wait_until(lambda: any("cycle" in line and work in line
                                  for line in broker.log().replace("\n", " ").split("[warning]")),
                      what="the warning of a dropped message")
    eventually(lambda: local.depth(work) + local.depth(wait), lambda depth: depth == 0)


def test_cycle_unbounded(local, rule):
    work, wait = "work", "wait"
    local.queue(name=work, arguments=dead("", wait))
    local.queue(name=wait, arguments=dead("", work, message_ttl=5))
    mend = rule("cycle_unbounded", work)
    local.publish("", work)
    for _ in range(30):
        method, properties, _ = get(local, work)
        local.channel.basic_reject(method.delivery_tag, requeue=False)
    assert max(death["count"] for death in properties.headers["x-death"]) == 29
    get(local, work)
    local.channel.close()
    local.channel.queue_purge(work)
    mend()
    local.publish("", wait, b"waited")
    assert get(local, work)[2] == b"waited"
    local.channel.close()
    local.channel.queue_purge(work)
    # It comes back ten times, and is kept then.
    local.publish("", work, b"kept")
    for _ in range(11):
        method, _, body = get(local, work)
        assert body == b"kept"
        local.channel.basic_reject(method.delivery_tag, requeue=False)
    assert local.one(f"{work}.parked").text == "kept"
    # What is in the other expires at once.
    assert is_empty(local, work)
    assert local.channel.queue_declare(wait, passive=True).method.message_count == 0


def full_target(client):
    """A queue that takes no more."""
    target = client.queue(arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    client.publish("", target, b"first")
    return target


@pytest.fixture
def quick_retry(broker):
    """A dead letter that its target refuses is tried again after a second, not after three minutes."""
    key = "rabbit, dead_letter_worker_publisher_confirm_timeout"
    before = evaluate(broker, f"application:get_env({key}, 180000).")
    evaluate(broker, f"application:set_env({key}, 1000).")
    yield
    evaluate(broker, f"application:set_env({key}, {before}).")


def test_at_most_once(local, rule, quick_retry):
    target = full_target(local)
    work = local.queue(arguments=dead("", target, queue_type="quorum"))
    mend = rule("at_most_once", work)
    reject(local, work, b"lost")
    eventually(lambda: evaluated_messages(local, work), lambda n: n == 0)
    # Its leader answers when the dead letter is under way.
    local.depth(work)
    local.channel.queue_purge(target)
    assert is_empty(local, target)
    mend()
    local.publish("", target, b"first")
    reject(local, work, b"kept")
    assert local.texts(target, 2) == ["first", "kept"]


def evaluated_messages(client, queue):
    """Ready, given to consumers, and dead letters that it still keeps."""
    return int(evaluate(client.broker, "(fun () -> {ok, Q} = rabbit_amqqueue:lookup("
                        f"{named(client, queue)}), [{{messages, N}}] = "
                        "rabbit_amqqueue:info(Q, [messages]), N end)()."))


def test_at_least_once_drop_head(local, rule, quick_retry):
    target = full_target(local)
    work = local.queue(arguments=dead("", target, queue_type="quorum",
                                      dead_letter_strategy="at-least-once"))
    mend = rule("at_least_once_drop_head", work)
    reject(local, work, b"lost")
    eventually(lambda: evaluated_messages(local, work), lambda n: n == 0)
    local.channel.queue_purge(target)
    assert is_empty(local, target)
    mend()
    local.publish("", target, b"first")
    reject(local, work, b"kept")
    assert local.texts(target, 2) == ["first", "kept"]


@pytest.mark.skipif(SERIES != "3.10", reason="the feature flag cannot be off since 3.12")
def test_at_least_once_unavailable(brokers):
    broker = brokers("without-streams", enable=(PLUGIN, "rabbitmq_management"),
                     env={"RABBITMQ_FEATURE_FLAGS": "quorum_queue,implicit_default_bindings,"
                          "virtual_host_metadata,maintenance_mode_status,user_limits"})
    client = Client(broker)
    target = full_target(client)
    work = client.queue(arguments=dead("", target, queue_type="quorum", overflow="reject-publish",
                                       dead_letter_strategy="at-least-once"))
    the(broker, "/", "at_least_once_unavailable", work)
    reject(client, work, b"lost")
    eventually(lambda: evaluated_messages(client, work), lambda n: n == 0)
    client.channel.queue_purge(target)
    assert is_empty(client, target)
    is_mended(broker, "/", "at_least_once_unavailable", work)
    client.close()
    broker.end()


def test_delivery_limit_without_dlx(local, rule):
    work = local.queue(arguments={"x-queue-type": "quorum", "x-delivery-limit": 1})
    mend = rule("delivery_limit_without_dlx", work)

    def give_back_twice(body):
        local.publish("", work, body)
        for _ in range(2):
            local.channel.basic_reject(get(local, work)[0].delivery_tag, requeue=True)

    give_back_twice(b"lost")
    eventually(lambda: evaluated_messages(local, work), lambda n: n == 0)
    mend()
    give_back_twice(b"kept")
    assert local.one(f"{work}.parked").text == "kept"


@pytest.mark.skipif(SERIES == "3.10", reason="there is no default delivery limit before 4.0")
def test_default_delivery_limit_without_dlx(local, rule):
    work = local.queue(arguments={"x-queue-type": "quorum"})
    rule("delivery_limit_without_dlx", work)
    local.publish("", work)
    for _ in range(21):
        local.channel.basic_reject(get(local, work)[0].delivery_tag, requeue=True)
    eventually(lambda: evaluated_messages(local, work), lambda n: n == 0)


def test_parking_unwatched(local, broker, vhost):
    """Dead letters that nobody has looked into for thousands; none of it before, none when they are gone."""
    parked = local.queue()
    work = local.queue(arguments=dead("", parked))
    for _ in range(20):
        reject(local, work)
    eventually(lambda: local.depth(parked), lambda depth: depth == 20)
    assert findings(broker, vhost) == []
    for _ in range(10_000 - 20):
        local.channel.basic_publish("", parked, b"")
    eventually(lambda: local.depth(parked), lambda depth: depth == 10_000)
    finding = the(broker, vhost, "parking_unwatched", parked)
    run(broker, finding["commands"][0])
    local.channel.queue_purge(parked)
    assert findings(broker, vhost) == []


def test_policy_key_as_argument(local, rule):
    parked = local.queue()
    work = local.queue(arguments={"dead-letter-exchange": "", "dead-letter-routing-key": parked})
    mend = rule("policy_key_as_argument", work)
    reject(local, work)
    assert is_empty(local, work, parked)
    mend()
    reject(local, work, b"kept")
    assert local.one(parked).text == "kept"


def test_x_death_growth(local, rule):
    names = [f"q{n}" for n in range(8)]
    for name, following in zip(names, names[1:] + names[:1]):
        ttl = {} if name == names[-1] else {"message_ttl": 5}
        local.queue(name=name, arguments=dead("", following, **ttl))
    rule("x_death_growth", "q0")
    local.publish("", "q0")
    deaths = local.one("q7").headers["x-death"]
    assert {death["queue"] for death in deaths} == set(names[:-1])


def test_priority_ttl(local, rule):
    """What came first expires first, unless it has to wait for what has priority."""
    outs = {}
    for name, more in (("by priority", {"max_priority": 5}), ("in line", {})):
        outs[name] = local.queue()
        local.queue(name=name, arguments=dead("", outs[name], message_ttl=10_000, **more))
        local.publish("", name, b"low", priority=0)
        local.publish("", name, b"high", priority=5)
    rule("priority_ttl", "by priority")
    assert local.texts(outs["by priority"], 2) == ["high", "low"]
    assert local.texts(outs["in line"], 2) == ["low", "high"]


def test_ttl_zero(local, rule):
    parked = local.queue()
    work = local.queue(arguments=dead("", parked, message_ttl=0))
    mend = rule("ttl_zero", work)
    local.publish("", work, b"at once")
    assert local.one(parked).text == "at once"
    mend()
    local.publish("", work, b"kept")
    assert get(local, work)[2] == b"kept"


def test_policy_tie(local, rule, management, vhost):
    work = local.queue(name="work")
    policy(management, vhost, "a", "^work", max_length=10)
    policy(management, vhost, "b", "k$", max_length=20)
    mend = rule("policy_tie", "a")
    url = f"queues/{quoted(vhost)}/{work}"
    assert eventually(lambda: management.get(url).get("policy"), lambda name: name in ("a", "b"))
    mend()
    assert eventually(lambda: management.get(url).get("policy"), lambda name: name == "a")


def test_policy_shadowed(local, rule, management, vhost):
    parked, work = local.queue(), local.queue()
    policy(management, vhost, "all", ".*", dead_letter_exchange="", dead_letter_routing_key=parked)
    policy(management, vhost, "limits", f"^{work}$", priority=1, max_length=1000)
    mend = rule("policy_shadowed", "limits")
    reject(local, work)
    assert is_empty(local, work, parked)
    mend()
    reject(local, work, b"kept")
    assert local.one(parked).text == "kept"


def test_policy_not_applicable(local, rule, management, vhost):
    parked, work = local.queue(), local.queue()
    policy(management, vhost, "dl", f"^{work}$", dead_letter_exchange="",
           dead_letter_routing_key=parked, delivery_limit=5)
    rule("policy_not_applicable", "dl")
    reject(local, work)
    assert is_empty(local, work, parked)
    for command in the(local.broker, vhost, "policy_not_applicable", "dl")["commands"]:
        run(local.broker, command)
    reject(local, work, b"kept")
    assert local.one(parked).text == "kept"


def test_argument_over_policy(local, rule, management, vhost):
    mine, theirs = local.exchange("fanout"), local.exchange("fanout")
    by_argument, by_policy = local.queue((mine, "")), local.queue((theirs, ""))
    work = local.queue(arguments=dead(mine))
    policy(management, vhost, "dl", f"^{work}$", dead_letter_exchange=theirs)
    rule("argument_over_policy", "dl")
    reject(local, work, b"kept")
    assert local.one(by_argument).text == "kept"
    assert is_empty(local, by_policy)


def test_topic_permissions_unchecked(local, rule, broker, vhost):
    """Named without the users whose they are, and gone with the permissions."""
    exchange = local.delayed("topic")
    broker.ctl("set_topic_permissions", "-p", vhost, "guest", exchange, "^a", "^a")
    rule("topic_permissions_unchecked", exchange)
    assert "guest" not in the(broker, vhost, "topic_permissions_unchecked", exchange)["why"]
    broker.ctl("clear_topic_permissions", "-p", vhost, "guest", exchange)
    assert not {f["rule"] for f in findings(broker, vhost)} & {"topic_permissions_unchecked"}


def test_what_the_broker_refuses_itself(local, management, vhost):
    """policy_unusable and unusable_value are about files: a broker takes neither."""
    status, _ = management.request("PUT", f"policies/{quoted(vhost)}/bad",
                                   {"pattern": "*(", "definition": {"max-length": 1}})
    assert status == 400
    code, _ = closes_channel(lambda: local.queue(arguments={"x-message-ttl": "soon"}))
    assert code == 406


def test_delay_ladder(local, rule):
    work = local.queue()
    for number, ttl in enumerate((10, 20, 30)):
        local.queue(name=f"wait{number}", arguments=dead("", work, message_ttl=ttl))
    rule("delay_ladder", "wait0")
    local.publish("", "wait1")
    assert local.one(work).headers["x-death"][0]["queue"] == "wait1"
    for command in the(local.broker, local.vhost, "delay_ladder", "wait0")["commands"]:
        run(local.broker, command)
    local.publish("delayed", work, b"x", delay=20)
    assert "x-death" not in local.one(work).headers


def test_a_sound_topology_has_no_findings(local, broker, vhost):
    parked = local.queue(arguments={"x-max-length": 100000, "x-queue-type": "quorum",
                                    "x-delivery-limit": -1} if SERIES != "3.10"
                         else {"x-max-length": 100000})
    dlx = local.exchange("fanout")
    local.channel.queue_bind(parked, dlx, "")
    local.queue(arguments=dead(dlx, queue_type="quorum", dead_letter_strategy="at-least-once",
                               overflow="reject-publish"))
    local.delayed_and_queue()
    assert findings(broker, vhost) == []
