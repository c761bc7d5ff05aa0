# SPDX-License-Identifier: MPL-2.0
"""What a publisher may write as a delay, in which AMQP type, and what it may not."""

import time

import pytest

import wire
from client import assert_on_time, lateness
from management import eventually
from node import HOUR_MS, MINUTE_MS

MAXIMUM = 315360000000

DELAYS = [
    ("signed byte", wire.signed_byte(127), 127),
    ("unsigned byte", wire.unsigned_byte(255), 255),
    ("signed short", wire.signed_short(400), 400),
    ("unsigned short", wire.unsigned_short(400), 400),
    ("signed int", wire.signed_int(400), 400),
    ("unsigned int", wire.unsigned_int(400), 400),
    ("signed long", wire.signed_long(400), 400),
    ("signed long written L", wire.also_signed_long(400), 400),
    ("float", wire.single_float(400.25), 401),
    ("double", wire.double_float(400.001), 401),
    ("decimal", wire.decimal(40001, 2), 401),
    ("decimal without scale", wire.decimal(400, 0), 400),
    ("numeric string", "400", 400),
    ("numeric string with an exponent", "4e2", 400),
    ("numeric string with a fraction", " .4001E3 ", 401),
    ("numeric bytes", wire.byte_array(b"400"), 400),
]

AT_ONCE = [
    ("zero", 0, 0),
    ("zero, unsigned long int", wire.unsigned_int(0), 0),
    ("zero, string", "0", 0),
    ("less than nothing, double", wire.double_float(-0.9), 0),
    ("negative decimal", wire.decimal(-1, 0), None),
    ("most negative decimal", wire.decimal(-2**31, 0), None),
    ("negative byte", wire.signed_byte(-128), -128),
    ("negative short", wire.signed_short(-300), -300),
    ("negative int", -5000, -5000),
    ("most negative long", wire.signed_long(-2**63), -2**63),
    ("negative string", "-5000", -5000),
    ("negative double", wire.double_float(-5000.5), -5000),
    ("huge negative double", wire.double_float(-1e300), None),
]

BEYOND = [
    ("one over the maximum", wire.signed_long(MAXIMUM + 1)),
    ("largest long", wire.signed_long(2**63 - 1)),
    ("over the maximum, string", str(MAXIMUM + 1)),
    ("over the maximum, double", wire.double_float(float(MAXIMUM) + 1024)),
    ("huge double", wire.double_float(1e300)),
    ("huge float", wire.single_float(3e38)),
    ("long string of digits", "9" * 30),
]

NOT_NUMBERS = [
    ("word", "soon"),
    ("empty string", ""),
    ("very long word", "x" * 100_000),
    ("very long string of digits", "9" * 100_000),
    ("number and unit", "5s"),
    ("number with a thousands separator", "2,500"),
    ("number with underscores", "2_500"),
    ("blanks", "   "),
    ("string that is not UTF-8", wire.long_string(b"\xff\xfe\x00")),
    ("bytes", wire.byte_array(b"\x00\xff\x13\x88")),
    ("true", True),
    ("false", False),
    ("table", {"ms": 5000}),
    ("array", [5000]),
    ("timestamp", wire.timestamp(5)),
]


def named(cases):
    return [pytest.param(*rest, id=name) for name, *rest in cases]


def header_is_text(value):
    return isinstance(value, str) or isinstance(value, wire.Field) and value.kind == b"x"


def as_number(value):
    """A header's value as a number, whatever the type it came in."""
    return int(float(value)) if not isinstance(value, int) else value


@pytest.mark.parametrize("header, delay", named(DELAYS))
def test_every_numeric_type_delays(client, header, delay):
    exchange, queue = client.delayed_and_queue()
    published = client.publish(exchange, body=b"later", delay=header)
    delivery = client.one(queue)
    assert_on_time(delivery, published, delay)
    back = delivery.headers["x-delay"]
    assert as_number(back) == -delay
    # A client reads other integer types as unsigned, or takes a double for none.
    assert isinstance(back, (str, bytes) if header_is_text(header) else wire.Long)


def test_what_is_delayed_does_not_hold_up_what_is_not(client, clock):
    exchange, queue = client.delayed_and_queue()
    for name in ("x-delay", "x-opt-delivery-delay"):
        client.publish(exchange, body=name.encode(), headers={name: 10 * MINUTE_MS})
    client.publish(exchange, body=b"at once")
    assert client.texts_until_marker(queue) == ["at once"]
    clock(20 * MINUTE_MS)
    assert client.texts(queue, 2) == ["x-delay", "x-opt-delivery-delay"]


@pytest.mark.parametrize("header, value", named(AT_ONCE))
def test_zero_and_negative_delays_route_at_once(client, header, value):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"at once", delay=header)
    client.publish("", queue, b"after it")
    first, second = client.collect(queue, 2)
    assert (first.text, second.text) == ("at once", "after it")
    if value is not None:
        assert int(float(first.headers["x-delay"])) == value


@pytest.mark.parametrize("headers", [
    pytest.param({}, id="no headers"), pytest.param({"other": 5000}, id="another header"),
    pytest.param({"x-delay": None}, id="void")])
def test_without_the_header_a_message_is_routed_at_once(client, headers):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"at once", headers=headers)
    client.publish("", queue, b"after it")
    first, second = client.collect(queue, 2)
    assert (first.text, second.text) == ("at once", "after it")
    assert first.headers == headers


@pytest.mark.parametrize("header", named(BEYOND + NOT_NUMBERS))
def test_an_unusable_delay_is_a_clear_channel_error(client, header):
    exchange, queue = client.delayed_and_queue()
    code, text = client.refusal(exchange, body=b"refused", delay=header)
    assert code == 406
    assert "x-delay" in text
    assert client.connection.is_open
    assert client.texts_until_marker(queue) == []


@pytest.mark.parametrize("header", named(BEYOND))
def test_the_error_names_the_limit(client, header):
    assert str(MAXIMUM) in client.refusal(client.delayed(), delay=header)[1]


def test_the_error_names_the_value(client):
    exchange = client.delayed()
    assert "soon" in client.refusal(exchange, delay="soon")[1]
    assert str(MAXIMUM + 1) in client.refusal(exchange, delay=wire.signed_long(MAXIMUM + 1))[1]


def test_the_maximum_itself_is_accepted(client, management):
    exchange = client.delayed()
    client.publish(exchange, body=b"in ten years", delay=wire.signed_long(MAXIMUM))
    assert management.messages_delayed(exchange) == 1


@pytest.mark.parametrize("delay", [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**38])
def test_delays_beyond_32_bits_are_not_cut(client, management, delay):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"in weeks", delay=wire.signed_long(delay))
    client.publish(exchange, body=b"soon", delay=300)
    assert client.texts(queue, 1) == ["soon"]
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)


def test_an_exchange_may_set_a_lower_maximum(client):
    exchange = client.delayed(arguments={"x-delay-max": 10000})
    client.publish(exchange, delay=10000)
    code, text = client.refusal(exchange, delay=10001)
    assert code == 406
    assert "10001" in text and "10000" in text


@pytest.mark.parametrize("header", [wire.signed_long(10001), "soon", True, {"ms": 1}])
def test_an_exchange_may_route_unusable_delays_at_once(client, header):
    exchange, queue = client.delayed_and_queue(
        arguments={"x-delay-unusable": "route_now", "x-delay-max": 10000})
    client.publish(exchange, body=b"routed", delay=header)
    client.publish("", queue, b"after it")
    assert client.texts(queue, 2) == ["routed", "after it"]


def test_a_refused_delay_does_not_disturb_earlier_messages(client):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"good", delay=500)
    client.refusal(exchange, body=b"bad", delay="soon")
    assert client.texts(queue, 1) == ["good"]


# ------------------------------------------------------------------ the other two headers

def now_ms():
    return time.time() * 1000


@pytest.mark.parametrize("header, delay", named(DELAYS))
def test_delivery_delay_is_understood_in_every_numeric_type(client, header, delay):
    exchange, queue = client.delayed_and_queue()
    published = client.publish(exchange, body=b"later", headers={"x-opt-delivery-delay": header})
    delivery = client.one(queue)
    assert_on_time(delivery, published, delay)
    assert as_number(delivery.headers["x-opt-delivery-delay"]) == pytest.approx(delay, abs=1)


@pytest.mark.parametrize("encode", [
    pytest.param(wire.signed_long, id="long"), pytest.param(str, id="string"),
    pytest.param(wire.double_float, id="double")])
def test_delivery_time_is_a_time_since_the_epoch(client, encode):
    exchange, queue = client.delayed_and_queue()
    due = int(now_ms()) + 600
    client.publish(exchange, body=b"later", headers={"x-opt-delivery-time": encode(due)})
    delivery = client.one(queue)
    assert now_ms() >= due
    assert int(float(delivery.headers["x-opt-delivery-time"])) == due


def test_a_delivery_time_of_type_timestamp_counts_in_seconds(client):
    exchange, queue = client.delayed_and_queue()
    due = int(time.time()) + 2
    client.publish(exchange, body=b"later", headers={"x-opt-delivery-time": wire.timestamp(due)})
    assert client.texts(queue, 1) == ["later"]
    assert time.time() >= due


@pytest.mark.parametrize("due", [
    wire.signed_long(10**11), "100000000000", wire.timestamp(1), wire.double_float(1.6e12), -1, 0])
def test_a_delivery_time_in_the_past_routes_at_once(client, due):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"at once", headers={"x-opt-delivery-time": due})
    client.publish("", queue, b"after it")
    assert client.texts(queue, 2) == ["at once", "after it"]


@pytest.mark.parametrize("name", ["x-opt-delivery-time", "x-opt-delivery-delay"])
@pytest.mark.parametrize("value", [
    pytest.param("soon", id="word"), pytest.param(True, id="bool"),
    pytest.param({"ms": 1}, id="table"),
    pytest.param(wire.signed_long(2**62), id="huge")])
def test_their_unusable_values_are_refused_by_name(client, name, value):
    exchange, queue = client.delayed_and_queue()
    code, text = client.refusal(exchange, headers={name: value})
    assert code == 406
    assert name in text
    assert client.texts_until_marker(queue) == []


@pytest.mark.parametrize("value, why", [
    pytest.param(lambda: int(time.time()), "seconds", id="seconds"),
    pytest.param(lambda: str(int(time.time()) + 60), "seconds", id="seconds, string"),
    pytest.param(lambda: wire.double_float(time.time() + 60), "seconds", id="seconds, double"),
    pytest.param(lambda: wire.single_float(now_ms() + 60000), "coarse", id="32-bit float")])
def test_what_cannot_be_meant_as_a_time_is_refused(client, value, why):
    exchange, queue = client.delayed_and_queue()
    code, text = client.refusal(exchange, headers={"x-opt-delivery-time": value()})
    assert code == 406
    assert "x-opt-delivery-time" in text and why in text
    assert client.texts_until_marker(queue) == []


@pytest.mark.parametrize("value, told", [
    pytest.param("5m", 'the string "5m"', id="string"),
    pytest.param("fünf", 'the string "fünf"', id="not ASCII"),
    pytest.param(wire.long_string(b"\xff\n"), 'the string "\\xff\\x0a"', id="not UTF-8"),
    pytest.param([wire.signed_int(300)], "the array [300]", id="array"),
    pytest.param({"ms": wire.signed_int(5)}, 'the table {"ms": 5}', id="table"),
    pytest.param(True, "the boolean true", id="boolean"),
    pytest.param("x" * 1000, "xxx...", id="long")])
def test_a_refusal_is_in_the_senders_words(client, value, told):
    exchange = client.delayed()
    code, text = client.refusal(exchange, delay=value)
    assert code == 406
    assert "header x-delay is " in text and told in text
    assert "<<" not in text


def test_a_refusal_names_an_exchange_that_is_not_ascii(client):
    exchange = client.delayed(name="verzögert-" + "ü" * 100)
    code, text = client.refusal(exchange, delay="5m")
    assert code == 406
    assert "verzögert-üü" in text


def test_a_delivery_time_beyond_the_maximum_delay_is_refused(client):
    exchange = client.delayed(arguments={"x-delay-max": 10 * MINUTE_MS})
    client.publish(exchange, headers={
        "x-opt-delivery-time": wire.signed_long(int(now_ms()) + 9 * MINUTE_MS)})
    code, text = client.refusal(exchange, headers={
        "x-opt-delivery-time": wire.signed_long(int(now_ms()) + HOUR_MS)})
    assert code == 406
    assert "x-opt-delivery-time" in text and str(10 * MINUTE_MS) in text


def test_delivery_time_goes_before_delivery_delay_and_x_delay(client):
    exchange, queue = client.delayed_and_queue()
    due = int(now_ms()) + 600
    client.publish(exchange, body=b"later", delay=HOUR_MS, headers={
        "x-opt-delivery-time": wire.signed_long(due), "x-opt-delivery-delay": HOUR_MS})
    delivery = client.one(queue)
    assert now_ms() >= due
    assert delivery.headers == {"x-opt-delivery-time": due, "x-opt-delivery-delay": HOUR_MS,
                                "x-delay": -HOUR_MS}


def test_delivery_delay_goes_before_x_delay(client):
    exchange, queue = client.delayed_and_queue()
    published = client.publish(exchange, body=b"later", delay=HOUR_MS,
                               headers={"x-opt-delivery-delay": 400})
    delivery = client.one(queue)
    assert_on_time(delivery, published, 400)
    assert delivery.headers == {"x-opt-delivery-delay": 400, "x-delay": -HOUR_MS}


def test_none_of_many_is_early(client):
    exchange, queue = client.delayed_and_queue()
    published = {}
    for number in range(200):
        delay = 50 + (number * 37) % 1000
        published[str(number)] = (client.publish(exchange, body=str(number).encode(), delay=delay),
                                  delay)
    early = [(delivery.text, lateness(delivery, *published[delivery.text]))
             for delivery in client.collect(queue, 200)
             if lateness(delivery, *published[delivery.text]) < 0]
    assert early == []
