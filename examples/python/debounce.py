# SPDX-License-Identifier: MPL-2.0
"""Debounce: a burst of changes to one thing leads to one message, a while after the last of them.

Each change replaces the delayed message of the one before it, because it has the same key.

    pip install pika  (Debian: apt install python3-pika)
    python3 debounce.py [amqp://guest:guest@localhost:5672]
"""

import sys
import time

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("example.debounce", "x-delayed-message", durable=True,
                         arguments={"x-delayed-type": "direct"})
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "example.debounce", "reindex")


def changed(document, version):
    """Asks for a reindex one second from now, unless another change comes before."""
    channel.basic_publish("example.debounce", "reindex", f"{document}: version {version}".encode(),
                          pika.BasicProperties(delivery_mode=2, headers={
                              "x-delay": 1000,
                              "x-delay-key": f"reindex {document}",
                              "x-delay-on-duplicate": "replace"}))


for version in range(1, 6):
    changed("report.odt", version)
    time.sleep(0.1)
changed("letter.odt", 1)

for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=3):
    if method is None:
        break
    print("reindex", body.decode())

channel.cancel()
channel.exchange_delete("example.debounce")
connection.close()
