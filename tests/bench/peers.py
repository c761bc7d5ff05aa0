# SPDX-License-Identifier: MPL-2.0
"""The ways to have a message delivered later that are compared, on the same broker.

All deliver into the queue TARGET. A peer knows how to set itself up, with which options the load
generator publishes to it, and how to throw away all that it holds.
"""

import contextlib

import pika

TARGET = "bench.target"


@contextlib.contextmanager
def channel_of(broker):
    connection = pika.BlockingConnection(pika.URLParameters(broker.amqp_url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def declare_target(broker, kind):
    with channel_of(broker) as channel:
        channel.queue_delete(TARGET)
        channel.queue_declare(TARGET, durable=True, arguments={"x-queue-type": kind})


def depth(broker, queue):
    with channel_of(broker) as channel:
        return channel.queue_declare(queue, passive=True).method.message_count


class Direct:
    """A plain durable queue, published to directly: no delay at all."""

    delays = False

    def __init__(self, key, label, queue, kind):
        self.key, self.label, self.queue, self.kind = key, label, queue, kind
        self.destination = TARGET if self.delays else queue

    def declare(self, broker):
        with channel_of(broker) as channel:
            channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": self.kind})

    def publish_options(self, **_):
        return {"exchange": "", "key": self.queue}

    def clear(self, broker):
        with channel_of(broker) as channel:
            channel.queue_delete(self.queue)

    def pending(self, broker):
        return depth(broker, self.queue)


class DeadLetter(Direct):
    """A queue in which messages expire, one by one from its head, and are dead-lettered to the
    target."""

    delays = True

    def declare(self, broker):
        with channel_of(broker) as channel:
            channel.queue_declare(self.queue, durable=True, arguments={
                "x-queue-type": self.kind,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": TARGET,
            })

    def publish_options(self, **_):
        return {"exchange": "", "key": self.queue, "header": "expiration"}


class DelayedExchange:
    """This plugin."""

    key, label = "ours", "rabbitmq_delay_wheel"
    delays, destination = True, TARGET
    exchange = "bench.delayed"

    def declare(self, broker):
        with channel_of(broker) as channel:
            channel.exchange_declare(self.exchange, "x-delayed-message", durable=True,
                                     arguments={"x-delayed-type": "direct"})
            with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):  # no target: no matter
                channel.queue_bind(TARGET, self.exchange, TARGET)

    def publish_options(self, absolute=False):
        return {"exchange": self.exchange, "key": TARGET,
                "header": "x-opt-delivery-time" if absolute else "x-delay"}

    def clear(self, broker):
        with channel_of(broker) as channel:
            channel.exchange_delete(self.exchange)

    def pending(self, broker):
        return int(broker.eval(
            '{ok, X} = rabbit_exchange:lookup(rabbit_misc:r(<<"/">>, exchange, <<"%s">>)), '
            '[{_, N}] = rabbit_exchange:info(X, [messages_delayed]), N.' % self.exchange))


OURS = DelayedExchange()
QUORUM = Direct("Q", "quorum queue, no delay", "bench.direct", "quorum")
CLASSIC_TTL = DeadLetter("B", "TTL + dead letter, classic", "bench.wait.classic", "classic")
QUORUM_TTL = DeadLetter("C", "TTL + dead letter, quorum", "bench.wait.quorum", "quorum")
PEERS = {peer.key: peer for peer in (OURS, QUORUM, CLASSIC_TTL, QUORUM_TTL)}
