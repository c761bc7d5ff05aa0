# SPDX-License-Identifier: MPL-2.0
"""Declaring a delayed exchange: what is accepted, what is refused, and how clearly."""

import uuid

import pytest

import wire
from client import DELAYED, closes_channel
from management import eventually, quoted


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers", "x-consistent-hash"])
def test_any_existing_type_can_be_underneath(client, management, kind):
    exchange = client.delayed(kind)
    shown = management.exchange(exchange)
    assert shown["type"] == DELAYED
    assert shown["arguments"]["x-delayed-type"] == kind


@pytest.mark.parametrize("arguments", [
    pytest.param({}, id="missing"),
    pytest.param({"x-delayed-type": "no-such-type"}, id="unknown"),
    pytest.param({"x-delayed-type": DELAYED}, id="itself"),
    pytest.param({"x-delayed-type": ""}, id="empty"),
    pytest.param({"x-delayed-type": 7}, id="number"),
    pytest.param({"x-delayed-type": None}, id="void"),
    pytest.param({"x-delayed-type": ["direct"]}, id="array"),
    pytest.param({"x-delayed-type": wire.byte_array(b"\xff\xfe")}, id="bytes"),
])
def test_an_unusable_underlying_type_is_refused(client, arguments):
    name = f"x-{uuid.uuid4().hex}"
    code, text = closes_channel(
        lambda: client.channel.exchange_declare(name, DELAYED, arguments=arguments))
    assert code == 406
    assert "x-delayed-type" in text
    code, _ = closes_channel(lambda: client.channel.exchange_declare(name, passive=True))
    assert code == 404


@pytest.mark.parametrize("argument, value", [
    ("x-delay-max", "soon"), ("x-delay-max", -1),
    ("x-delay-unusable", "perhaps"), ("x-delay-unusable", 1),
    ("x-delay-in-flight", "many"), ("x-delay-in-flight", 0), ("x-delay-in-flight", -1),
])
def test_a_wrong_argument_of_ours_is_refused_by_name(client, argument, value):
    code, text = closes_channel(lambda: client.delayed(arguments={argument: value}))
    assert code == 406
    assert argument in text


@pytest.mark.parametrize("unusable", ["reject", "nack", "route_now"])
def test_the_arguments_of_ours_are_accepted(client, management, unusable):
    ours = {"x-delay-max": 60000, "x-delay-unusable": unusable, "x-delay-in-flight": 100}
    exchange = client.delayed(arguments=ours)
    assert management.exchange(exchange)["arguments"] == {"x-delayed-type": "direct", **ours}


def test_a_refusal_leaves_the_connection_and_other_channels_open(client):
    other = client.connection.channel()
    closes_channel(lambda: client.channel.exchange_declare("refused", DELAYED))
    assert client.connection.is_open
    other.queue_declare("", exclusive=True)


def test_declaring_again_alike_is_accepted(client):
    exchange = client.delayed("topic", durable=True)
    client.channel.exchange_declare(exchange, DELAYED, durable=True,
                                    arguments={"x-delayed-type": "topic"})


@pytest.mark.parametrize("other", [
    pytest.param({"durable": False}, id="durable"),
    pytest.param({"auto_delete": True}, id="auto-delete"),
    pytest.param({"internal": True}, id="internal"),
    pytest.param({"exchange_type": "topic"}, id="type"),
    pytest.param({"arguments": {"x-delayed-type": "direct", "alternate-exchange": "amq.fanout"}},
                 id="alternate-exchange"),
])
def test_declaring_again_otherwise_is_refused(client, other):
    exchange = client.delayed()
    declared = {"exchange_type": DELAYED, "durable": True,
                "arguments": {"x-delayed-type": "direct"}, **other}
    code, _ = closes_channel(lambda: client.channel.exchange_declare(exchange, **declared))
    assert code == 406


OURS = {"x-delay-max": 60000, "x-delay-unusable": "route_now", "x-delay-in-flight": 100,
        "x-delay-default": 5, "x-delay-max-length": 10, "x-delay-max-length-bytes": 1000,
        "x-delay-overflow": "drop-latest-due", "x-delay-release-rate": 7, "x-delay-overdue": "drop",
        "x-delay-overdue-after": 9, "x-delay-initial-group-size": 3, "x-delay-retry": "1s,2s",
        "x-delay-retry-jitter": "0.5"}
OTHERWISE = {"x-delay-unusable": "reject", "x-delay-overflow": "reject-publish",
             "x-delay-overdue": "deliver", "x-delay-retry": "1s", "x-delay-retry-jitter": "0.25"}


@pytest.mark.parametrize("argument", OURS)
def test_declaring_again_with_another_argument_of_ours_is_refused(client, argument):
    exchange = client.delayed(arguments=OURS)
    again = {"x-delayed-type": "direct", **OURS}
    client.channel.exchange_declare(exchange, DELAYED, durable=True, arguments=again)
    other = OTHERWISE[argument] if argument in OTHERWISE else OURS[argument] + 1
    for changed in ({**again, argument: other}, {k: v for k, v in again.items() if k != argument}):
        code, text = closes_channel(lambda changed=changed: client.channel.exchange_declare(
            exchange, DELAYED, durable=True, arguments=changed))
        assert code == 406
        assert f"inequivalent arg '{argument}'" in text
    # An integer is the same in any size.
    client.channel.exchange_declare(exchange, DELAYED, durable=True, arguments={
        k: wire.signed_byte(v) if isinstance(v, int) and v < 128 else v for k, v in again.items()})


def test_declaring_again_with_another_underlying_type_changes_nothing_and_is_logged(client, broker):
    exchange = client.delayed("direct")
    client.channel.exchange_declare(exchange, DELAYED, durable=True,
                                    arguments={"x-delayed-type": "fanout"})
    eventually(broker.log, lambda log: f"'{exchange}' in vhost '/' is declared again" in log)
    queue = client.queue((exchange, "k"))
    client.publish(exchange, "other", b"lost")
    client.publish(exchange, "k", b"routed")
    assert client.texts(queue, 1) == ["routed"]


@pytest.mark.parametrize("argument, why", [
    ("x-delay-maximum", "none of this exchange type's"),
    ("x-delay-dead-letter-exchange", "a policy's key only"), ("x-delay-keys-from", "a policy's key only")])
def test_an_argument_that_is_none_of_ours_is_refused_to_who_declares_it_anew(client, management, broker,
                                                                           argument, why):
    name = f"x-{uuid.uuid4().hex}"
    arguments = {"x-delayed-type": "direct", argument: "amq.fanout"}
    code, text = closes_channel(lambda: client.channel.exchange_declare(name, DELAYED, durable=True,
                                                                        arguments=arguments))
    assert code == 406
    assert f"argument '{argument}' is {why}" in text
    path = f"exchanges/%2F/{name}"
    status, answer = management.request("PUT", path, {"type": DELAYED, "durable": True,
                                                      "arguments": arguments})
    assert status == 400
    assert argument in answer["reason"]
    # Where it is imported it is taken, as it was before, and who declares it then is not told.
    status, _ = management.request("POST", "definitions", {"exchanges": [
        {"name": name, "vhost": "/", "type": DELAYED, "durable": True, "auto_delete": False,
         "internal": False, "arguments": arguments}]})
    assert status in (200, 201, 204)
    assert management.exchange(name)["arguments"] == arguments
    eventually(broker.log, lambda log: f"'{name}' in vhost '/': argument '{argument}'" in log)
    client.channel.exchange_declare(name, DELAYED, durable=True, arguments=arguments)
    assert management.request("DELETE", path)[0] == 204


def test_a_passive_declare_finds_it(client):
    exchange = client.delayed()
    client.channel.exchange_declare(exchange, DELAYED, passive=True)


def test_a_passive_declare_of_what_is_not_there_is_not_found(client):
    code, _ = closes_channel(lambda: client.channel.exchange_declare(
        f"x-{uuid.uuid4().hex}", DELAYED, passive=True))
    assert code == 404


def test_clients_cannot_publish_to_an_internal_one(client):
    exchange = client.delayed(internal=True)
    code, _ = client.refusal(exchange, body=b"x", delay=100)
    assert code == 403


def test_an_internal_one_delays_what_other_exchanges_send_it(client):
    exchange = client.delayed("fanout", internal=True)
    front = client.exchange("fanout")
    queue = client.queue((exchange, ""))
    client.channel.exchange_bind(exchange, front)
    published = client.publish(front, body=b"later", delay=400)
    assert (client.one(queue).at - published) * 1000 >= 400


def test_the_http_api_declares_and_deletes_one(management):
    path = f"exchanges/%2F/{quoted(f'x/{uuid.uuid4().hex}')}"
    status, _ = management.request("PUT", path, {
        "type": DELAYED, "durable": True, "arguments": {"x-delayed-type": "topic"}})
    assert status == 201
    assert management.get(path)["messages_delayed"] == 0
    status, _ = management.request("DELETE", path)
    assert status == 204
    assert management.request("GET", path)[0] == 404


@pytest.mark.parametrize("arguments", [{}, {"x-delayed-type": "no-such-type"},
                                       {"x-delayed-type": DELAYED}, {"x-delayed-type": 7}])
def test_the_http_api_refuses_with_the_reason(management, arguments):
    path = f"exchanges/%2F/{uuid.uuid4().hex}"
    status, answer = management.request("PUT", path, {
        "type": DELAYED, "durable": True, "arguments": arguments})
    assert status == 400
    assert "x-delayed-type" in answer["reason"]
    assert management.request("GET", path)[0] == 404


@pytest.mark.parametrize("name", ["with space", "a/b", "ünïcödé-☃", "percent%2F", "q\"'\\",
                                  "x" * 249])
def test_any_legal_name_works(client, name):
    exchange = client.delayed(name=f"{name}{uuid.uuid4().hex[:6]}")
    queue = client.queue((exchange, "k"))
    client.publish(exchange, body=b"named", delay=100)
    assert client.texts(queue, 1) == ["named"]


def test_the_underlying_types_own_arguments_are_honoured(client):
    exchange = client.delayed("x-consistent-hash", arguments={"hash-header": "customer"})
    queues = [client.queue((exchange, "10")) for _ in range(2)]
    for number in range(60):
        client.publish(exchange, key=f"random-{number}", body=str(number % 20).encode(),
                       headers={"customer": f"c{number % 20}"}, delay=50)
    eventually(lambda: sum(map(client.depth, queues)), lambda depth: depth == 60)
    customers = [client.texts_until_marker(queue) for queue in queues]
    assert len(customers[0]) + len(customers[1]) == 60
    assert not set(customers[0]) & set(customers[1])


def test_a_direct_one_routes_by_key(client):
    exchange = client.delayed("direct")
    one, two = client.queue((exchange, "one")), client.queue((exchange, "two"))
    client.publish(exchange, "one", b"1", delay=100)
    client.publish(exchange, "two", b"2", delay=100)
    assert client.texts(one, 1) == ["1"]
    assert client.texts(two, 1) == ["2"]


def test_a_fanout_one_routes_to_all(client):
    exchange = client.delayed("fanout")
    queues = [client.queue((exchange, "")) for _ in range(3)]
    client.publish(exchange, "any", b"all", delay=100)
    assert [client.texts(queue, 1) for queue in queues] == [["all"]] * 3


def test_a_topic_one_routes_by_pattern(client):
    exchange = client.delayed("topic")
    star = client.queue((exchange, "order.*.paid"))
    hash_ = client.queue((exchange, "order.#"))
    for key in ("order.7.paid", "order.7.sent", "order"):
        client.publish(exchange, key, key.encode(), delay=100)
    assert client.texts(hash_, 3) == ["order.7.paid", "order.7.sent", "order"]
    assert client.texts_until_marker(star) == ["order.7.paid"]


def test_a_headers_one_routes_by_headers(client):
    exchange = client.delayed("headers")
    both = client.queue((exchange, "", {"x-match": "all", "a": "1", "b": "2"}))
    either = client.queue((exchange, "", {"x-match": "any", "a": "1", "b": "2"}))
    client.publish(exchange, "", b"ab", headers={"a": "1", "b": "2"}, delay=100)
    client.publish(exchange, "", b"a", headers={"a": "1"}, delay=100)
    assert client.texts(either, 2) == ["ab", "a"]
    assert client.texts_until_marker(both) == ["ab"]
