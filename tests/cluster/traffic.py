# SPDX-License-Identifier: MPL-2.0
"""Publishers and consumers at the nodes of a cluster, which note what they see in a checker.Record.

All of them run on one thread of their own. Each connects to one node alone, and again whenever its
connection ends: what becomes of a node's clients is to be seen. A message is its id, nothing else.

    traffic = Traffic(record, {"1": "10.0.0.1", "2": "10.0.0.2"}, queue="q", key="q")
    traffic.start()
    traffic.await_more("confirmed", 100)
    ...
    traffic.finish()
"""

import collections
import random
import threading
import time

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop

# How long, in s, is waited for what is to come: far longer than any machine takes.
WITHIN = 300
AGAIN_SECONDS = 0.3
TICK_SECONDS = 0.02
PREFETCH = 100


class _Client:
    """One connection with one channel, again and again."""

    def __init__(self, traffic, name, address):
        self.traffic, self.name = traffic, name
        self._parameters = pika.ConnectionParameters(
            address, credentials=pika.PlainCredentials("guest", "guest"), heartbeat=0,
            socket_timeout=10, stack_timeout=20)
        self._connection = None
        self.channel = None
        self.ending = False

    def note(self, what, **event):
        self.traffic.record.add(what, client=self.name, **event)

    def connect(self):
        if not self.ending:
            self._connection = pika.SelectConnection(
                self._parameters, on_open_callback=self._opened, on_open_error_callback=self._refused,
                on_close_callback=self._closed, custom_ioloop=self.traffic.loop)

    def _opened(self, connection):
        self.note("opened")
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel):
        self.channel = channel
        channel.add_on_close_callback(self._channel_closed)
        self.begin(channel)

    def _refused(self, _connection, _error):
        self._connection = None
        self._later()

    def _channel_closed(self, _channel, reason):
        self.channel = None
        if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            self.note("closed", why=str(reason))
            self._give_up()

    def _closed(self, _connection, reason):
        self.channel = self._connection = None
        if not isinstance(reason, pika.exceptions.ConnectionClosedByClient):
            self.note("closed", why=str(reason))
        self.unanswered()
        self._later()

    def _give_up(self):
        """A connection without what it is there for; _closed() follows."""
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    def _later(self):
        self.traffic.loop.call_later(AGAIN_SECONDS, self.connect)

    def end(self):
        self.ending = True
        self._give_up()

    def begin(self, channel):
        raise NotImplementedError

    def unanswered(self):
        """The connection is gone, with all that nobody answered."""


class Publisher(_Client):
    """Keeps to its rate as long as no more than `window` messages are unanswered. A nacked one is sent
    again under a new id, which names the old one. One that has had no answer for too long is given up,
    with its connection, as a publisher would that has others to serve."""

    def __init__(self, traffic, name, address):
        super().__init__(traffic, name, address)
        self._open = {}
        self._tag = self._made = 0
        self._retries = collections.deque()
        self._ready = False
        self._next = 0.0

    def begin(self, channel):
        self._tag, self._ready = 0, False
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._answered, callback=self._confirming)

    def _confirming(self, _frame):
        self._ready = True
        self._next = time.monotonic()

    def tick(self):
        now = time.monotonic()
        if self._open and now - next(iter(self._open.values()))[1] > self.traffic.patience:
            self.note("silent", seconds=now - next(iter(self._open.values()))[1])
            self.unanswered()
            self._give_up()
        while (self._ready and self.channel is not None and self.channel.is_open
               and self.traffic.publishing and now >= self._next
               and len(self._open) < self.traffic.window):
            # What could not be sent in time is not made up for.
            self._next = max(self._next + 1 / self.traffic.rate, now - TICK_SECONDS)
            self._send(self._retries.popleft() if self._retries else None)

    def _send(self, after):
        self._made += 1
        self._tag += 1
        name = f"{self.name}.{self._made}"
        delay = self.traffic.draw_delay()
        self._open[self._tag] = name, time.monotonic()
        # Both before the broker can have seen it: due is never later than what the broker makes of it.
        self.note("sent", id=name, after=after,
                  due=None if delay is None else time.monotonic() + delay / 1000)
        self.channel.basic_publish(
            self.traffic.exchange, self.traffic.key, name.encode(),
            pika.BasicProperties(delivery_mode=2, headers=None if delay is None else {"x-delay": delay}),
            mandatory=True)

    def _answered(self, frame):
        method = frame.method
        what = "confirmed" if isinstance(method, pika.spec.Basic.Ack) else "nacked"
        tags = [tag for tag in self._open
                if tag == method.delivery_tag or (method.multiple and tag < method.delivery_tag)]
        for tag in tags:
            name, _ = self._open.pop(tag)
            self.note(what, id=name)
            if what == "nacked":
                self._retries.append(name)

    def _returned(self, _channel, _method, _properties, body):
        self.note("returned", id=body.decode())

    def unanswered(self):
        self._ready = False
        for name, _ in self._open.values():
            self.note("unknown", id=name)
        self._open.clear()

    @property
    def idle(self):
        return not self._open


class Consumer(_Client):
    def begin(self, channel):
        channel.add_on_cancel_callback(self._cancelled)
        channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: channel.basic_consume(
            self.traffic.queue, self._delivered))

    def _delivered(self, channel, method, _properties, body):
        self.note("delivered", id=body.decode(), redelivered=method.redelivered)
        if channel.is_open:
            channel.basic_ack(method.delivery_tag)

    def _cancelled(self, frame):
        self.note("cancelled", why=str(frame.method))
        self._give_up()


class Traffic:
    """`publish_at` and `consume_at` are addresses by name; those of `publish_at` publish to `exchange`
    with the routing key `key`, those of `consume_at` consume from `queue`. `delays` is None or a range of
    x-delay in ms, drawn from `seed`. `rate` is a publisher's, in messages a second, and `patience` for how
    many seconds it waits for an answer."""

    def __init__(self, record, publish_at, consume_at, queue, exchange="", key=None, delays=None, rate=40,
                 window=50, patience=30, seed=1):
        self.record, self.queue, self.exchange = record, queue, exchange
        self.key = queue if key is None else key
        self.rate, self.window, self.patience = rate, window, patience
        self._delays, self._draw = delays, random.Random(seed)
        self.loop = IOLoop()
        self.publishing = True
        self.publishers = [Publisher(self, f"p{name}", address) for name, address in publish_at.items()]
        self.consumers = [Consumer(self, f"c{name}", address) for name, address in consume_at.items()]
        self._failed = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def draw_delay(self):
        return None if self._delays is None else self._draw.randint(*self._delays)

    # ------------------------------------------------------------------- on its thread

    def _run(self):
        try:
            for client in (*self.publishers, *self.consumers):
                client.connect()
            self._tick()
            self.loop.start()
        # What ends the thread is told by whoever waits for it.
        except BaseException as error:  # noqa: B902
            self._failed = error
            raise

    def _tick(self):
        for publisher in self.publishers:
            publisher.tick()
        self.loop.call_later(TICK_SECONDS, self._tick)

    # ----------------------------------------------------------------- on any other one

    def start(self):
        self._thread.start()

    def _wait(self, condition, within, what):
        """Fails, with what has been seen, if it does not become true in time."""
        def over():
            return condition() or self._failed is not None

        if not self.record.wait_for(over, within) or self._failed is not None:
            raise AssertionError(f"{what}: not within {within} s ({self._failed!r}); "
                                 f"{dict(self.counts())}")

    def counts(self):
        return collections.Counter(event["what"] for event in list(self.record.events))

    def await_connected(self, within=WITHIN):
        """Until each client has been connected once."""
        self._wait(lambda: all(self.record.count("opened", client.name)
                               for client in (*self.publishers, *self.consumers)), within, "connections")

    def await_more(self, what, count, client=None, within=WITHIN):
        """Until so many more of them have come than had when this was called."""
        wanted = self.record.count(what, client) + count
        self._wait(lambda: self.record.count(what, client) >= wanted, within,
                   f"{count} more {what} at {client or 'any'}")

    def go_on(self, seconds):
        """Lets traffic go on for so long."""
        self.record.wait_for(lambda: False, seconds)

    def stop_publishing(self, within=WITHIN):
        """Until all that was sent is answered, or its connection lost."""
        self.publishing = False
        self._wait(lambda: all(publisher.idle for publisher in self.publishers), within,
                   "an answer to each message")

    def missing(self):
        """What is confirmed, not returned, and has not been delivered."""
        confirmed, came = set(), set()
        for event in list(self.record.events):
            if event["what"] == "confirmed":
                confirmed.add(event["id"])
            elif event["what"] in ("delivered", "returned"):
                came.add(event["id"])
        return confirmed - came

    def await_delivered(self, within=WITHIN):
        """Until all that is confirmed has come, or the time is over: then the judge says what is lost."""
        deadline = time.monotonic() + within
        while (missing := self.missing()) and (left := deadline - time.monotonic()) > 0:
            seen = self.record.count("delivered")
            at_least = seen + min(len(missing), PREFETCH)
            self.record.wait_for(lambda: self.record.count("delivered") >= at_least, min(left, 2))

    def finish(self, within=WITHIN):
        """Stops publishing, awaits what is to come, and disconnects."""
        self.stop_publishing(within)
        self.await_delivered(within)
        self.end()
        if self._failed is not None:
            raise self._failed

    def end(self):
        if not self._thread.is_alive():
            return
        self.publishing = False
        clients = (*self.publishers, *self.consumers)

        def close():
            for client in clients:
                client.end()
            self.loop.call_later(AGAIN_SECONDS, self.loop.stop)

        self.loop.add_callback_threadsafe(close)
        self._thread.join(WITHIN)
