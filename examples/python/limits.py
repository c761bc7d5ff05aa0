# SPDX-License-Identifier: MPL-2.0
"""Limits and defaults of an exchange: a delay for messages that ask for none, and so many messages
pending at most. What is beyond is refused: the publisher sees a nack.

The same can be set, and changed, by a policy:

    rabbitmqctl set_policy --apply-to exchanges later '^later$' \\
        '{"delay-default": 1000, "delay-max-length": 3}'

    pip install pika  (Debian: apt install python3-pika)
    python3 limits.py [amqp://guest:guest@localhost:5672]
"""

import sys

import pika
import pika.exceptions

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("example.limits", "x-delayed-message", durable=True,
                         arguments={"x-delayed-type": "direct", "x-delay-default": 1000,
                                    "x-delay-max-length": 3})
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "example.limits", "job")

for number in range(1, 6):
    try:
        channel.basic_publish("example.limits", "job", f"job {number}".encode(),
                              pika.BasicProperties(delivery_mode=2))
    except pika.exceptions.NackError:
        print("refused: job", number)

for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=3):
    if method is None:
        break
    print("done:", body.decode())

channel.cancel()
channel.exchange_delete("example.limits")
connection.close()
