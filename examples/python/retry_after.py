# SPDX-License-Identifier: MPL-2.0
"""Retry-After: a consumer that cannot handle a message now says when it is to come back.

It publishes the message again, with the time, to a delayed exchange, awaits the confirm, and only then
acknowledges the one that it got. If it ends between the two, the message comes twice; it is never lost.

    pip install pika  (Debian: apt install python3-pika)
    python3 retry_after.py [amqp://guest:guest@localhost:5672]
"""

import sys
import time

import pika

EXCHANGE, ORDERS = "example.later", "example.later.orders"

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
# With confirms basic_publish waits for the broker's, and raises where it says no.
channel.confirm_delivery()
channel.exchange_declare(EXCHANGE, "x-delayed-message", durable=True,
                         arguments={"x-delayed-type": "direct"})
channel.queue_declare(ORDERS, durable=True)
channel.queue_bind(ORDERS, EXCHANGE, ORDERS)


class Busy(Exception):
    """What a service answers with 429 or 503, and its header Retry-After."""

    def __init__(self, retry_after_ms):
        super().__init__(f"busy, again in {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


def now_ms():
    return int(time.time() * 1000)


def work(attempt):
    if attempt < 3:
        raise Busy(500)


def on_order(_channel, method, properties, body):
    headers = properties.headers or {}
    attempt = headers.get("attempt", 1)
    assert now_ms() >= headers.get("x-opt-delivery-time", 0), "too early"
    try:
        work(attempt)
    except Busy as busy:
        print(f"{body.decode()}, attempt {attempt}: {busy}")
        # All else stays as it is, its message_id too, by which it can be found and cancelled meanwhile.
        properties.headers = {**headers, "attempt": attempt + 1,
                              "x-opt-delivery-time": now_ms() + busy.retry_after_ms}
        channel.basic_publish(EXCHANGE, ORDERS, body, properties, mandatory=True)
        channel.basic_ack(method.delivery_tag)
    else:
        print(f"{body.decode()}, attempt {attempt}: done")
        channel.basic_ack(method.delivery_tag)
        channel.stop_consuming()


channel.basic_consume(ORDERS, on_order)
channel.basic_publish("", ORDERS, b"order 1",
                      pika.BasicProperties(delivery_mode=2, message_id="order-1"))
channel.start_consuming()

channel.queue_delete(ORDERS)
channel.exchange_delete(EXCHANGE)
connection.close()
