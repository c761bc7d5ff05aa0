# SPDX-License-Identifier: MPL-2.0
"""A delayed message, a wrong delay, a cancel and a retry with dramatiq.

    pip install dramatiq[rabbitmq]
    python3 with_dramatiq.py [amqp://guest:guest@localhost:5672]

Workers run with `dramatiq MODULE` as ever; here one runs in the program itself.
"""

import queue
import sys
import time

import dramatiq
import pika.exceptions
from delayed_dramatiq import DelayedRabbitmqBroker

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
broker = DelayedRabbitmqBroker(url=url)
dramatiq.set_broker(broker)
done = queue.Queue()
attempts = []


@dramatiq.actor(queue_name="example.dramatiq")
def remind(of, asked):
    done.put(f"{of} after {time.time() - asked:.1f} s")


@dramatiq.actor(queue_name="example.dramatiq", max_retries=3, min_backoff=200, max_backoff=400)
def charge(order):
    attempts.append(order)
    done.put(f"charge {order}, attempt {len(attempts)}")
    if len(attempts) < 3:
        raise RuntimeError("no answer")


worker = dramatiq.Worker(broker, worker_threads=2)
worker.start()

remind.send_with_options(args=("hello", time.time()), delay=1000)
print(done.get())

try:
    remind.send_with_options(args=("a century", time.time()), delay=36526 * 86400_000)
except pika.exceptions.ChannelClosedByBroker as closed:
    print(f"refused: {closed.reply_text}")

broker.cancel(remind.send_with_options(args=("nothing", time.time()), delay=3600_000))
print("cancelled")

charge.send("order 17")
for _ in range(3):
    print(done.get())

worker.stop()
broker.close()
