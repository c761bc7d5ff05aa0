# SPDX-License-Identifier: MPL-2.0
"""Cancel: what was to happen later does not happen, because something else has.

A message with the header x-delay-cancel cancels what is pending under that key, and does nothing
else. When it is confirmed, what was pending is gone for good; what was on its way to a queue at
that moment is delivered.

    pip install pika  (Debian: apt install python3-pika)
    python3 cancel.py [amqp://guest:guest@localhost:5672]
"""

import sys

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("example.cancel", "x-delayed-message", durable=True,
                         arguments={"x-delayed-type": "direct"})
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "example.cancel", "expire")


def publish(body, headers):
    channel.basic_publish("example.cancel", "expire", body.encode(),
                          pika.BasicProperties(delivery_mode=2, headers=headers))


for order in ("order 1", "order 2", "order 3"):
    publish(order, {"x-delay": 1000, "x-delay-key": order})

# Order 2 is paid for in time.
publish("", {"x-delay-cancel": "order 2"})

for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=3):
    if method is None:
        break
    print("expired:", body.decode())

channel.cancel()
channel.exchange_delete("example.cancel")
connection.close()
