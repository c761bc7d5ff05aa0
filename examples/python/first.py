# SPDX-License-Identifier: MPL-2.0
# The first message: published now, consumed five seconds later.
#
#     pip install pika  (Debian: apt install python3-pika)
#     python3 first.py [amqp://guest:guest@localhost:5672]

import sys
import time

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("later", "x-delayed-message", durable=True,
                         arguments={"x-delayed-type": "direct"})
channel.queue_declare("work", durable=True)
channel.queue_bind("work", "later", "job")
channel.basic_publish("later", "job", b"hello", pika.BasicProperties(
    delivery_mode=2, headers={"x-delay": 5000}))
published = time.time()

for _, _, body in channel.consume("work", auto_ack=True):
    print(f"{body.decode()}, {time.time() - published:.1f} s later")
    break
connection.close()
