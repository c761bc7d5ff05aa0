# SPDX-License-Identifier: MPL-2.0
"""One test's connection to the broker: it declares, publishes with confirms, awaits deliveries, and
takes away with it what it declared."""

import contextlib
import time
import uuid

import pika
import pika.exceptions

from management import WITHIN
import wire  # noqa: F401  (teaches pika the missing field types)

DELAYED = "x-delayed-message"


def internal_queue(exchange):
    """The name of the queue that takes an exchange's delayed messages in."""
    return f"amq.delayed.{exchange}"


# How late, in ms, a message may come before a test calls it a failure: on the slowest of machines.
LATE = 60_000


class Delivery:
    """A message as it arrived, and when on the monotonic clock."""

    def __init__(self, method, properties, body):
        self.at = time.monotonic()
        self.method, self.properties, self.body = method, properties, body

    @property
    def headers(self):
        return self.properties.headers or {}

    @property
    def text(self):
        return self.body.decode()

    def __repr__(self):
        return f"<{self.body[:40]!r} {self.headers}>"


class Client:
    def __init__(self, broker, vhost="/", user="guest", password="guest"):
        self.broker, self.vhost = broker, vhost
        self._parameters = pika.ConnectionParameters(
            "127.0.0.1", broker.amqp_port, vhost, pika.PlainCredentials(user, password),
            heartbeat=0, blocked_connection_timeout=WITHIN, socket_timeout=WITHIN,
            stack_timeout=WITHIN)
        self.connection = pika.BlockingConnection(self._parameters)
        self._exchanges, self._queues = [], []
        self._channel = self._confirming = None

    # ------------------------------------------------------------------ channels

    @property
    def channel(self):
        """A plain channel, opened again if the last one was closed."""
        if self._channel is None or not self._channel.is_open:
            self._channel = self.connection.channel()
        return self._channel

    @property
    def confirming(self):
        """A channel in confirm mode."""
        if self._confirming is None or not self._confirming.is_open:
            self._confirming = self.connection.channel()
            self._confirming.confirm_delivery()
        return self._confirming

    # --------------------------------------------------------------- declarations

    def delayed(self, kind="direct", name=None, keep=False, arguments=None, **options):
        """Declares a delayed exchange of underlying type `kind`; its name."""
        return self.exchange(DELAYED, name, keep,
                             arguments={"x-delayed-type": kind, **(arguments or {})}, **options)

    def exchange(self, kind, name=None, keep=False, **options):
        name = name or f"x-{uuid.uuid4().hex[:10]}"
        options.setdefault("durable", True)
        self.channel.exchange_declare(name, kind, **options)
        if not keep:
            self._exchanges.append(name)
        return name

    def queue(self, *bindings, name=None, keep=False, **options):
        """Declares a queue and binds it to each (exchange, key) or (exchange, key, arguments)."""
        name = name or f"q-{uuid.uuid4().hex[:10]}"
        options.setdefault("durable", True)
        self.channel.queue_declare(name, **options)
        if not keep:
            self._queues.append(name)
        for exchange, key, *arguments in bindings:
            self.channel.queue_bind(name, exchange, key, arguments=arguments[0] if arguments
                                    else None)
        return name

    def delayed_and_queue(self, kind="direct", **options):
        """A delayed exchange and a queue bound to it with the key "k"."""
        exchange = self.delayed(kind, **options)
        return exchange, self.queue((exchange, "k"))

    # ----------------------------------------------------------------- publishing

    def publish(self, exchange, key="k", body=b"", delay=None, headers=None, mandatory=False,
                **properties):
        """Publishes, waits for the confirm, and answers when on the monotonic clock it began.
        Raises pika's NackError, UnroutableError or ChannelClosedByBroker."""
        headers = dict(headers or {})
        if delay is not None:
            headers["x-delay"] = delay
        properties.setdefault("delivery_mode", 2)
        channel = self.confirming
        began = time.monotonic()
        channel.basic_publish(exchange, key, body, pika.BasicProperties(headers=headers,
                                                                        **properties), mandatory)
        return began

    def is_taken(self, *args, **kwargs):
        """Publishes; False if that is refused for now."""
        try:
            self.publish(*args, **kwargs)
            return True
        except (pika.exceptions.NackError, pika.exceptions.ChannelClosedByBroker):
            return False

    def refusal(self, *args, **kwargs):
        """Publishes what the broker must refuse by closing the channel: the reply code and text."""
        return closes_channel(lambda: self.publish(*args, **kwargs))

    # ------------------------------------------------------------------ receiving

    def collect(self, queue, n, within=WITHIN, prefetch=0):
        """The first n deliveries of the queue, acknowledged; fails if they do not come in time."""
        got = self.consume(queue, lambda got: len(got) >= n, within, prefetch)
        assert len(got) >= n, f"{len(got)} of {n} came within {within} s: {got[:20]}"
        return got

    def one(self, queue, within=WITHIN):
        return self.collect(queue, 1, within)[0]

    def collect_every(self, queue, wanted, within=WITHIN, name=lambda delivery: delivery.text):
        """All deliveries until each name in `wanted` has come, once or more often."""
        missing, seen = set(wanted), 0

        def enough(got):
            nonlocal seen
            missing.difference_update(map(name, got[seen:]))
            seen = len(got)
            return not missing

        got = self.consume(queue, enough, within, prefetch=1000)
        assert not missing, f"{len(missing)} of {len(wanted)} did not come: {sorted(missing)[:20]}"
        return got

    def consume(self, queue, enough, within, prefetch=0):
        """Consumes until enough(deliveries) or until the time is over."""
        got = []
        channel = self.connection.channel()
        if prefetch:
            channel.basic_qos(prefetch_count=prefetch)

        def on_message(_channel, method, properties, body):
            got.append(Delivery(method, properties, body))
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(queue, on_message)
        deadline = time.monotonic() + within
        while not enough(got) and (left := deadline - time.monotonic()) > 0:
            self.connection.process_data_events(min(left, 0.5))
        channel.close()
        return got

    def texts(self, queue, n, within=WITHIN):
        return [delivery.text for delivery in self.collect(queue, n, within)]

    def depth(self, queue):
        """Ready messages in the queue."""
        return self.channel.queue_declare(queue, passive=True).method.message_count

    def texts_until_marker(self, queue, within=WITHIN):
        """What is in the queue now: a marker is sent behind it, and all before it is read."""
        self.publish("", queue, b"marker")
        got = self.consume(queue, lambda got: got and got[-1].body == b"marker", within, prefetch=1)
        assert got and got[-1].body == b"marker", got
        return [delivery.text for delivery in got[:-1]]

    # -------------------------------------------------------------------- closing

    def close(self):
        """Deletes what was declared and closes the connection, as far as they still exist."""
        with contextlib.suppress(pika.exceptions.AMQPError):
            if not self.connection.is_open:
                self.connection = pika.BlockingConnection(self._parameters)
                self._channel = None
            for queue in self._queues:
                self._quietly(lambda: self.channel.queue_delete(queue))
            for exchange in self._exchanges:
                self._quietly(lambda: self.channel.exchange_delete(exchange))
            self.connection.close()

    @staticmethod
    def _quietly(action):
        with contextlib.suppress(pika.exceptions.ChannelClosed):
            action()


def closes_channel(action):
    """Does what the broker must answer by closing the channel: the reply code and text."""
    try:
        action()
    except pika.exceptions.ChannelClosedByBroker as closed:
        return closed.reply_code, closed.reply_text
    raise AssertionError("the broker did not close the channel")


def lateness(delivery, published, delay):
    """How many ms after its due time it came; negative if early."""
    return (delivery.at - published) * 1000 - delay


def assert_on_time(delivery, published, delay, late=LATE):
    """Never early is exact; how late is bounded generously."""
    assert 0 <= lateness(delivery, published, delay) <= late, (
        f"{delivery} came {lateness(delivery, published, delay):.1f} ms after it was due")


def assert_serves(broker):
    """It publishes and delivers what is not delayed."""
    client = Client(broker)
    queue = client.queue()
    client.publish("", queue, b"plain")
    assert client.texts(queue, 1) == ["plain"]
    client.close()
