# SPDX-License-Identifier: MPL-2.0
"""messages.py hold TEXT... publishes messages that are due in an hour; take NUMBER prints so many that came."""

import sys

import pika

connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1"))
channel = connection.channel()
channel.confirm_delivery()
channel.queue_declare("held", durable=True)
if sys.argv[1] == "hold":
    channel.exchange_declare("held", "x-delayed-message", durable=True, arguments={"x-delayed-type": "fanout"})
    channel.queue_bind("held", "held", "")
    for text in sys.argv[2:]:
        channel.basic_publish("held", "", text.encode(), pika.BasicProperties(
            delivery_mode=2, headers={"x-delay": 3_600_000}), mandatory=True)
else:
    left = int(sys.argv[2])
    for _, _, body in channel.consume("held", auto_ack=True, inactivity_timeout=120):
        print("nothing came" if body is None else body.decode())
        left -= 1
        if body is None or left == 0:
            break
connection.close()
