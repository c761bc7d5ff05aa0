# SPDX-License-Identifier: MPL-2.0
"""A delayed publish, a mandatory one, a wrong delay, a cancel and a retry with pika.

    pip install pika  (Debian: apt install python3-pika)
    python3 with_pika.py [amqp://guest:guest@localhost:5672]
"""

import sys
import time

import pika
import pika.exceptions

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))


def confirming():
    channel = connection.channel()
    channel.confirm_delivery()
    return channel


def declare(channel):
    channel.exchange_declare("example.pika", "x-delayed-message", durable=True, arguments={
        "x-delayed-type": "direct",
        # What is rejected comes back after these pauses, and then is parked.
        "x-delay-retry": "100ms,200ms",
        "x-delay-retry-parking-exchange": "",
        "x-delay-retry-parking-routing-key": "example.pika.parked"})
    channel.queue_declare("example.pika.parked", durable=True)
    channel.queue_declare("example.pika", durable=True,
                          arguments={"x-dead-letter-exchange": "example.pika"})
    channel.queue_bind("example.pika", "example.pika", "job")


def publish(channel, body, headers, key="job"):
    """Returns when the broker has the message on disk."""
    channel.basic_publish("example.pika", key, body.encode(), pika.BasicProperties(
        delivery_mode=2, headers=headers), mandatory=True)


def consume(channel, queue="example.pika"):
    method, properties, body = next(channel.consume(queue))
    return method, properties.headers, body.decode()


def delayed(channel):
    published = time.monotonic()
    publish(channel, "hello", {"x-delay": 1000})
    method, headers, body = consume(channel)
    print(f"{body} after {time.monotonic() - published:.1f} s, x-delay is {headers['x-delay']}")
    channel.basic_ack(method.delivery_tag)


def mandatory(channel):
    """What is to be routed at once is returned if no queue is bound. What is delayed is not: that
    is known when it is due."""
    try:
        publish(channel, "at once", {}, key="nobody")
    except pika.exceptions.UnroutableError as returned:
        print(f"returned: {returned.messages[0].body.decode()}")
    publish(channel, "later", {"x-delay": 1000}, key="nobody")


def wrong_delay(channel):
    """The channel is closed; what it had not confirmed yet has to be published again."""
    try:
        publish(channel, "in five minutes", {"x-delay": "5m"})
    except pika.exceptions.ChannelClosedByBroker as closed:
        print(f"refused: {closed.reply_code} {closed.reply_text}")
        return confirming()


def cancel(channel):
    publish(channel, "expire order 17", {"x-delay": 3600_000, "x-delay-key": "order 17"})
    publish(channel, "", {"x-delay-cancel": "order 17"})
    print("cancelled: order 17")


def retry(channel):
    publish(channel, "job 1", {})
    for attempt in (1, 2, 3):
        method, _, body = consume(channel)
        print(f"{body}, attempt {attempt}")
        channel.basic_reject(method.delivery_tag, requeue=False)
    channel.cancel()
    _, headers, body = consume(channel, "example.pika.parked")
    print(f"{body} is parked: {headers['x-delay-death-reason']}")


channel = confirming()
declare(channel)
delayed(channel)
mandatory(channel)
channel = wrong_delay(channel)
cancel(channel)
retry(channel)
channel.cancel()
for queue in ("example.pika", "example.pika.parked"):
    channel.queue_delete(queue)
channel.exchange_delete("example.pika")
connection.close()
