# SPDX-License-Identifier: MPL-2.0
"""A full exchange that keeps what is due soonest: only the next three appointments are of interest, so
what is due last makes room, and is seen where a dead-letter exchange takes it (that is set by a policy:
"delay-dead-letter-exchange"). The rest is released one after another, ten in a second at most.

    pip install pika  (Debian: apt install python3-pika)
    python3 overflow.py [amqp://guest:guest@localhost:5672]
"""

import sys

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("example.overflow", "x-delayed-message", durable=True,
                         arguments={"x-delayed-type": "direct", "x-delay-max-length": 3,
                                    "x-delay-overflow": "drop-latest-due",
                                    "x-delay-release-rate": 10})
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "example.overflow", "appointment")

for name, delay in (("dentist", 2500), ("holiday", 60_000), ("lunch", 1000), ("next year", 3600_000),
                    ("tea", 4000)):
    channel.basic_publish("example.overflow", "appointment", name.encode(),
                          pika.BasicProperties(delivery_mode=2, headers={"x-delay": delay}))

for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=4):
    if method is None:
        break
    print("now:", body.decode())

channel.cancel()
channel.exchange_delete("example.overflow")
connection.close()
