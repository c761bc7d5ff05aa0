# SPDX-License-Identifier: MPL-2.0
"""dramatiq's RabbitmqBroker, whose delayed messages (`send_with_options(delay=...)`, retries) wait in a
delayed exchange, on disk.

dramatiq itself sends them to a second queue, QUEUE.DQ, whose messages its workers hold in memory,
unacknowledged, until they are due.
"""

import time

import pika
import pika.exceptions
from dramatiq.brokers.rabbitmq import MAX_ENQUEUE_ATTEMPTS, RabbitmqBroker
from dramatiq.errors import ConnectionClosed


class DelayedRabbitmqBroker(RabbitmqBroker):
    later = "dramatiq.later"

    def __init__(self, **options):
        # Without confirms a message could be lost with the broker.
        super().__init__(confirm_delivery=True, **options)

    def _declare_queue(self, queue_name):
        declared = super()._declare_queue(queue_name)
        self.channel.exchange_declare(self.later, "x-delayed-message", durable=True,
                                      arguments={"x-delayed-type": "direct"})
        self.channel.queue_bind(queue_name, self.later, queue_name)
        return declared

    def enqueue(self, message, *, delay=None):
        if not delay:
            return super().enqueue(message)
        # A time and not a delay: a publish that is tried again is as due, and there once.
        headers = {"x-opt-delivery-time": int(time.time() * 1000) + delay,
                   "x-delay-key": message.message_id, "x-delay-on-duplicate": "replace"}
        self.emit_before("enqueue", message, delay)
        self._publish(message.queue_name, message.encode(), headers,
                      message.options.get("broker_priority"))
        self.emit_after("enqueue", message, delay)
        return message

    def cancel(self, message):
        """Takes a message back that waits."""
        self._publish(message.queue_name, b"", {"x-delay-cancel": message.message_id})

    def _publish(self, queue_name, body, headers, priority=None):
        for attempt in range(1, MAX_ENQUEUE_ATTEMPTS + 1):
            try:
                self.declare_queue(queue_name, ensure=True)
                return self.channel.basic_publish(
                    self.later, queue_name, body, pika.BasicProperties(
                        delivery_mode=2, priority=priority, headers=headers))
            except (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError) as error:
                del self.connection
                if getattr(error, "reply_code", None) == 406:
                    # A wrong delay is wrong the next time, too.
                    raise
                if attempt == MAX_ENQUEUE_ATTEMPTS:
                    raise ConnectionClosed(error) from None
