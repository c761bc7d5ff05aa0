# SPDX-License-Identifier: MPL-2.0
"""Deduplicate: however often it is asked for, a thing is done once.

The first message with a key stays; those that come while it is pending are confirmed and dropped.
Here the message_id is the key, as it is wherever there is no x-delay-key: a publisher that is not
sure whether its message has arrived may send it again.

    pip install pika  (Debian: apt install python3-pika)
    python3 deduplicate.py [amqp://guest:guest@localhost:5672]
"""

import sys

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("example.deduplicate", "x-delayed-message", durable=True,
                         arguments={"x-delayed-type": "direct"})
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "example.deduplicate", "reminder")


def remind(invoice, attempt):
    channel.basic_publish("example.deduplicate", "reminder",
                          f"{invoice}, attempt {attempt}".encode(),
                          pika.BasicProperties(delivery_mode=2, message_id=f"reminder {invoice}",
                                               headers={"x-delay": 1000,
                                                        "x-delay-on-duplicate": "drop"}))


for attempt in (1, 2, 3):
    remind("invoice 17", attempt)
remind("invoice 18", 1)

for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=3):
    if method is None:
        break
    print("remind of", body.decode())

channel.cancel()
channel.exchange_delete("example.deduplicate")
connection.close()
