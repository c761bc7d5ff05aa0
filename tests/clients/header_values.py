# SPDX-License-Identifier: MPL-2.0
"""What clients write as a delay, in which AMQP type, and what must come of it: one table for all, from
that of tests/integration/test_delay_header.py.

A language's program (tests/clients/LANGUAGE/) reads a JSON file of cases that its client can write, as
`cases` answers them, publishes each to an exchange with the case's name as the body and its value as
the header x-delay and, if the case says so, as the header copy, each on a channel that it may lose, and
prints a JSON object: by case's name null if the message was confirmed, else what the client was told. `check`
compares that, and what arrives, with the table.
"""

import json
import struct
from decimal import Decimal

import pika.data

import test_delay_header as table
import wire
from management import WITHIN

DELAYED, AT_ONCE, REFUSED = "delayed", "at once", "refused"
NUMBERS = "bBsuIilLfd"


class Case:
    """A value: its AMQP type as one letter, and for programs as JSON has it: a number, a string, true
    or false, a table, an array, null; bytes and strings that are not UTF-8 as a list of them, a
    decimal as [mantissa, scale]."""

    def __init__(self, name, value, outcome, delay=None):
        self.name, self.outcome, self.delay = name, outcome, delay
        self.letter, self.value = described(value)

    def __repr__(self):
        return f"{self.name} ({self.letter}: {self.value!r:.40})"

    @property
    def for_program(self):
        return {"name": self.name, "type": self.letter, "value": self.value,
                "copy": self.outcome != REFUSED}


def described(value):
    if isinstance(value, wire.Field):
        letter = value.kind.decode()
        if letter in NUMBERS:
            layout = wire._NUMBERS[value.kind]  # pylint: disable=protected-access
            return letter, struct.unpack(layout, value.payload)[0]
        if letter == "D":
            scale, mantissa = struct.unpack(">Bi", value.payload)
            return letter, [mantissa, scale]
        if letter == "T":
            return letter, struct.unpack(">Q", value.payload)[0]
        data = value.payload[4:]
        try:
            return letter, data.decode() if letter == "S" else list(data)
        except UnicodeDecodeError:
            return letter, list(data)
    if isinstance(value, bool):
        return "t", value
    if isinstance(value, int):
        return "I" if -2**31 <= value < 2**31 else "l", value
    letters = {str: "S", dict: "F", list: "A", type(None): "V"}
    return letters[type(value)], value


CASES = ([Case(name, value, DELAYED, delay) for name, value, delay in table.DELAYS]
         + [Case(name, value, AT_ONCE) for name, value, _ in table.AT_ONCE]
         + [Case("void", None, AT_ONCE)]
         + [Case(name, value, REFUSED) for name, value in table.BEYOND + table.NOT_NUMBERS])


def cases(letters):
    """Those of the types that a client can write."""
    return [case for case in CASES if case.letter in letters]


def written(path, chosen):
    with open(path, "w", encoding="utf-8") as f:
        json.dump([case.for_program for case in chosen], f)
    return str(path)


def _typed(decode):
    def decoded(encoded, offset):
        value, end = decode(encoded, offset)
        return (encoded[offset:offset + 1].decode(), value), end
    return decoded


def received(client, queue, number):
    """By body the headers, each with its type's letter."""
    plain = pika.data.decode_value
    pika.data.decode_value = _typed(plain)
    try:
        got = client.consume(queue, lambda got: len(got) >= number, WITHIN)
    finally:
        pika.data.decode_value = plain
    return [(delivery.text, delivery.headers) for delivery in got]


def check(client, queue, chosen, told, becomes=(), refusal="x-delay", uncopied=""):
    """`told` is what the program printed. `becomes` names the types that the client, or the broker for
    it, writes as another or as one of several: {"L": "l", "I": "bsI"}. `refusal` is in what a user is
    told of a wrong delay. Of the types `uncopied` it can write annotations alone."""
    becomes = dict(becomes)
    assert set(told) == {case.name for case in chosen}
    taken = [case for case in chosen if case.outcome != REFUSED]
    for case in chosen:
        if case.outcome == REFUSED:
            assert told[case.name] is not None and refusal in told[case.name], (case, told)
        else:
            assert told[case.name] is None, (case, told[case.name])
    came = received(client, queue, len(taken))
    assert sorted(name for name, _ in came) == sorted(case.name for case in taken)
    headers = dict(came)
    for case in taken:
        if case.letter not in uncopied:
            letter, _ = headers[case.name]["copy"]
            assert letter in becomes.get(case.letter, case.letter), (case, letter)
        letter, back = headers[case.name]["x-delay"]
        if case.outcome == DELAYED:
            assert as_number(back) == -case.delay, (case, back)
            assert letter in ("l" if case.letter in NUMBERS + "D"
                              else becomes.get(case.letter, case.letter)), (case, letter)
        elif case.letter in "SIl":
            assert as_number(back) == as_number(case.value), (case, back)


def as_number(value):
    return int(Decimal(value.decode() if isinstance(value, bytes) else value))
