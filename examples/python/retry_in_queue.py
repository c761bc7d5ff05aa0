# SPDX-License-Identifier: MPL-2.0
"""Two ways to try again later, side by side: a delayed exchange, and RabbitMQ 4.3's quorum queues,
which can hold back what is returned to them (earlier ones take no notice of being told so).
docs/retries.md says when to prefer which.

    pip install pika  (Debian: apt install python3-pika)
    python3 retry_in_queue.py [amqp://guest:guest@localhost:5672]
"""

import sys
import time

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.exchange_declare("example.retry", "x-delayed-message", durable=True, arguments={
    "x-delayed-type": "direct", "x-delay-retry": "100ms,200ms,300ms",
    "x-delay-retry-parking-exchange": "",
    "x-delay-retry-parking-routing-key": "example.retry.parked"})
channel.queue_declare("example.retry.parked", durable=True)

BY_EXCHANGE = {"x-dead-letter-exchange": "example.retry"}
# The same pauses: the delivery count times 100 ms, and four deliveries in all.
BY_QUEUE = {"x-queue-type": "quorum", "x-delivery-limit": 3,
            "x-delayed-retry-type": "all", "x-delayed-retry-min": 100,
            "x-delayed-retry-max": 300,
            "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "example.retry.parked"}


def fail(way, arguments, requeue):
    """A job that fails whenever it is tried, until it is parked."""
    queue = f"example.retry.by-{way}"
    channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.basic_publish("", queue, b"job", pika.BasicProperties(delivery_mode=2))
    deliveries = []

    def on_job(_channel, method, _properties, _body):
        deliveries.append(time.monotonic())
        channel.basic_reject(method.delivery_tag, requeue=requeue)

    def on_parked(_channel, _method, properties, _body):
        death = properties.headers["x-death"][0]
        with_pauses = deliveries[-1] - deliveries[0] >= 0.6
        print(f"by the {way}: delivered {len(deliveries)} times, "
              f"{'with' if with_pauses else 'without'} pauses, then parked: {death['reason']}, "
              f"count {death['count']}")
        channel.stop_consuming()

    channel.basic_consume(queue, on_job)
    parked = channel.basic_consume("example.retry.parked", on_parked, auto_ack=True)
    channel.start_consuming()
    channel.basic_cancel(parked)
    channel.queue_delete(queue)


fail("exchange", BY_EXCHANGE, requeue=False)
fail("queue", BY_QUEUE, requeue=True)

channel.queue_delete("example.retry.parked")
channel.exchange_delete("example.retry")
connection.close()
