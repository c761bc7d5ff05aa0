# SPDX-License-Identifier: MPL-2.0
"""Retry: what fails is tried again later, and is parked when it has failed too often.

The consumer only rejects. Its queue dead-letters to a delayed exchange, which gives each message
back to the queue after a pause that grows, three times at most.

    pip install pika  (Debian: apt install python3-pika)
    python3 retry.py [amqp://guest:guest@localhost:5672]
"""

import sys

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("example.retry", "x-delayed-message", durable=True, arguments={
    "x-delayed-type": "direct",
    "x-delay-retry": "100ms,200ms,400ms",
    "x-delay-retry-parking-exchange": "",
    "x-delay-retry-parking-routing-key": "example.retry.parked"})
channel.queue_declare("example.retry.parked", durable=True)
channel.queue_declare("example.retry.orders", durable=True,
                      arguments={"x-dead-letter-exchange": "example.retry"})


def attempt_of(properties):
    """Which attempt this is: one more than it was rejected."""
    return 1 + sum(death["count"] for death in (properties.headers or {}).get("x-death", [])
                   if death["queue"] == "example.retry.orders")


def work(order, attempt):
    """Order 1 can be done when the warehouse is back, order 2 never."""
    if order == "order 2" or attempt < 3:
        raise RuntimeError("no answer")


def on_order(_channel, method, properties, body):
    order, attempt = body.decode(), attempt_of(properties)
    try:
        work(order, attempt)
    except RuntimeError as error:
        print(f"{order}, attempt {attempt}: {error}")
        channel.basic_reject(method.delivery_tag, requeue=False)
    else:
        print(f"{order}, attempt {attempt}: done")
        channel.basic_ack(method.delivery_tag)
        publish("order 2")


def on_parked(_channel, _method, properties, body):
    print(f"{body.decode()} is parked: {properties.headers['x-delay-death-reason']}, "
          f"{properties.headers['x-delay-death-count']} times rejected")
    channel.stop_consuming()


def publish(order):
    channel.basic_publish("", "example.retry.orders", order.encode(),
                          pika.BasicProperties(delivery_mode=2))


channel.basic_consume("example.retry.orders", on_order)
channel.basic_consume("example.retry.parked", on_parked, auto_ack=True)
publish("order 1")
channel.start_consuming()

for queue in ("example.retry.orders", "example.retry.parked"):
    channel.queue_delete(queue)
channel.exchange_delete("example.retry")
connection.close()
