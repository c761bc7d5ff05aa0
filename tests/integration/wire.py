# SPDX-License-Identifier: MPL-2.0
"""What pika cannot say on the wire: field values of any AMQP type, and a publisher that is fast.

pika encodes an int as a signed 32- or 64-bit field only and has no floats; it reads signed bytes
and longs as unsigned. Importing this module teaches its codec the rest, byte for byte as RabbitMQ
reads and writes them.
"""

import contextlib
import socket
import struct
import time
from decimal import Decimal

import pika
import pika.data
import pika.frame
import pika.spec

from management import WITHIN


class Field:
    """A field value as it stands on the wire: its type octet and its bytes."""

    def __init__(self, kind, payload):
        self.kind, self.payload = kind, payload

    def __repr__(self):
        return f"{self.kind.decode()}:{self.payload!r}"


def _packed(kind, layout):
    return lambda value: Field(kind, struct.pack(layout, value))


signed_byte = _packed(b"b", ">b")
unsigned_byte = _packed(b"B", ">B")
signed_short = _packed(b"s", ">h")
unsigned_short = _packed(b"u", ">H")
signed_int = _packed(b"I", ">i")
unsigned_int = _packed(b"i", ">I")
signed_long = _packed(b"l", ">q")
also_signed_long = _packed(b"L", ">q")
single_float = _packed(b"f", ">f")
double_float = _packed(b"d", ">d")
timestamp = _packed(b"T", ">Q")
boolean = _packed(b"t", ">B")


class Long(int):
    """An integer that came as AMQP's signed 64-bit one (l), which every client reads as signed."""


def decimal(unscaled, scale):
    return Field(b"D", struct.pack(">Bi", scale, unscaled))


def byte_array(value):
    return Field(b"x", struct.pack(">I", len(value)) + value)


def long_string(value):
    value = value.encode() if isinstance(value, str) else value
    return Field(b"S", struct.pack(">I", len(value)) + value)


VOID = Field(b"V", b"")

_encode_value = pika.data.encode_value
_decode_value = pika.data.decode_value

_NUMBERS = {b"b": ">b", b"B": ">B", b"s": ">h", b"u": ">H", b"I": ">i", b"i": ">I", b"l": ">q",
            b"L": ">q", b"f": ">f", b"d": ">d"}


def _encode(pieces, value):
    if isinstance(value, Field):
        pieces.append(value.kind + value.payload)
        return 1 + len(value.payload)
    if isinstance(value, float):
        return _encode(pieces, double_float(value))
    return _encode_value(pieces, value)


def _decode(encoded, offset):
    kind = encoded[offset:offset + 1]
    if kind in _NUMBERS:
        layout = _NUMBERS[kind]
        value = struct.unpack_from(layout, encoded, offset + 1)[0]
        return Long(value) if kind == b"l" else value, offset + 1 + struct.calcsize(layout)
    if kind == b"D":
        scale, unscaled = struct.unpack_from(">BI", encoded, offset + 1)
        return Decimal(unscaled).scaleb(-scale), offset + 6
    return _decode_value(encoded, offset)


pika.data.encode_value = _encode
pika.data.decode_value = _decode


class Unanswered(AssertionError):
    """The broker did not answer all that was published in the time given."""


class Publisher:
    """A connection with one channel in confirm mode, for tens of thousands of messages a second.
    It counts what was confirmed and what was refused by their sequence numbers, from 1 on."""

    CHANNEL = 1
    FRAME_MAX = 131072

    def __init__(self, broker, vhost="/", user="guest", password="guest"):
        self._socket = socket.create_connection(("127.0.0.1", broker.amqp_port), timeout=WITHIN)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._input = bytearray()
        self._open = set()
        self.confirmed, self.refused = set(), set()
        self.published = 0
        self._write(b"AMQP\x00\x00\x09\x01")
        self._expect(pika.spec.Connection.Start)
        self._call(0, pika.spec.Connection.StartOk(
            client_properties={"capabilities": {"publisher_confirms": True, "basic.nack": True}},
            mechanism="PLAIN", response=f"\0{user}\0{password}", locale="en_US"),
            pika.spec.Connection.Tune)
        self._send(0, pika.spec.Connection.TuneOk(1, self.FRAME_MAX, 0))
        self._call(0, pika.spec.Connection.Open(virtual_host=vhost), pika.spec.Connection.OpenOk)
        self._call(self.CHANNEL, pika.spec.Channel.Open(), pika.spec.Channel.OpenOk)
        self._call(self.CHANNEL, pika.spec.Confirm.Select(), pika.spec.Confirm.SelectOk)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._socket.close()

    def publish(self, exchange, key, bodies, headers=None, window=2000, within=3 * WITHIN, **properties):
        """Publishes the bodies, never more than `window` of them unanswered, and waits until all
        are answered. `headers` is a dict, or a function from a body's position to one."""
        properties.setdefault("delivery_mode", 2)
        deadline = time.monotonic() + within
        for first in range(0, len(bodies), 100):
            chunk = bodies[first:first + 100]
            wanted = []
            for position, body in enumerate(chunk, first):
                given = headers(position) if callable(headers) else headers
                wanted.append(self.frames(exchange, key, body, given, **properties))
                self.published += 1
                self._open.add(self.published)
            self._write(b"".join(wanted))
            self._read_answers(window, deadline)
        self._read_answers(0, deadline)

    def send(self, exchange, key, bodies, headers=None, **properties):
        """Publishes without waiting for any answer."""
        properties.setdefault("delivery_mode", 2)
        for body in bodies:
            self._write(self.frames(exchange, key, body, headers, **properties))
            self.published += 1
            self._open.add(self.published)

    def await_answers(self, within=WITHIN):
        self._read_answers(0, time.monotonic() + within)

    def unanswered(self):
        return set(self._open)

    def drain(self):
        """Reads what answers have already come, also from a connection that has since died."""
        self._socket.settimeout(0.01)
        with contextlib.suppress(socket.timeout, ConnectionError):
            while self._receive():
                self._take_answers()

    def frames(self, exchange, key, body, headers=None, **properties):
        body = body if isinstance(body, bytes) else body.encode()
        properties = pika.spec.BasicProperties(headers=headers, **properties)
        method = pika.spec.Basic.Publish(exchange=exchange, routing_key=key)
        room = self.FRAME_MAX - 8
        return b"".join(
            [pika.frame.Method(self.CHANNEL, method).marshal(),
             pika.frame.Header(self.CHANNEL, len(body), properties).marshal()]
            + [pika.frame.Body(self.CHANNEL, body[at:at + room]).marshal()
               for at in range(0, len(body), room)])

    def _write(self, data):
        self._socket.settimeout(WITHIN)
        self._socket.sendall(data)

    def _send(self, channel, method):
        self._write(pika.frame.Method(channel, method).marshal())

    def _call(self, channel, method, answer):
        self._send(channel, method)
        return self._expect(answer)

    def _expect(self, answer):
        while True:
            frame = self._next_frame()
            if frame is None:
                if not self._receive():
                    raise ConnectionError(f"closed by the broker before {answer.NAME}")
                continue
            if isinstance(frame, pika.frame.Method):
                assert isinstance(frame.method, answer), frame.method
                return frame.method

    def _receive(self):
        data = self._socket.recv(1 << 16)
        self._input += data
        return data

    def _next_frame(self):
        used, frame = pika.frame.decode_frame(bytes(self._input[:1 << 17]))
        del self._input[:used]
        return frame

    def _read_answers(self, allowed, deadline):
        while len(self._open) > allowed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unanswered(f"{len(self._open)} publishes are not answered")
            self._socket.settimeout(left)
            try:
                if not self._receive():
                    raise ConnectionError("closed by the broker")
            except socket.timeout:
                continue
            self._take_answers()

    def _take_answers(self):
        while True:
            frame = self._next_frame()
            if frame is None:
                return
            if not isinstance(frame, pika.frame.Method):
                continue
            method = frame.method
            if isinstance(method, (pika.spec.Basic.Ack, pika.spec.Basic.Nack)):
                if method.multiple:
                    answered = {n for n in self._open if n <= method.delivery_tag}
                else:
                    answered = {method.delivery_tag}
                self._open -= answered
                kind = self.confirmed if isinstance(method, pika.spec.Basic.Ack) else self.refused
                kind |= answered
            elif isinstance(method, (pika.spec.Channel.Close, pika.spec.Connection.Close)):
                raise pika.exceptions.ChannelClosedByBroker(method.reply_code, method.reply_text)
