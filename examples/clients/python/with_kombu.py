# SPDX-License-Identifier: MPL-2.0
"""A delayed publish, a mandatory one, a wrong delay, a cancel and a retry with kombu.

    pip install kombu
    python3 with_kombu.py [amqp://guest:guest@localhost:5672]
"""

import sys
import time

import amqp
from kombu import Connection, Exchange, Queue

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
later = Exchange("example.kombu", "x-delayed-message", durable=True, arguments={
    "x-delayed-type": "direct",
    # What is rejected comes back after these pauses, and then is parked.
    "x-delay-retry": "100ms,200ms",
    "x-delay-retry-parking-exchange": "",
    "x-delay-retry-parking-routing-key": "example.kombu.parked"})
parked = Queue("example.kombu.parked")
work = Queue("example.kombu", later, routing_key="job",
             queue_arguments={"x-dead-letter-exchange": "example.kombu"})

# Each publish returns when the broker has the message on disk.
connection = Connection(url, transport_options={"confirm_publish": True})


def publish(body, headers, key="job", **options):
    """What is to be tried again, with retry=True, is to have a time and not a delay: x-opt-delivery-time."""
    producer.publish(body, exchange=later, routing_key=key, headers=headers,
                     declare=[later, work, parked], **options)


def get(queue):
    consumer = queue(connection.default_channel)
    while (message := consumer.get()) is None:
        time.sleep(0.01)
    return message


def delayed():
    published = time.monotonic()
    publish("hello", {"x-delay": 1000})
    message = get(work)
    print(f"{message.payload} after {time.monotonic() - published:.1f} s, "
          f"x-delay is {message.headers['x-delay']}")
    message.ack()


def mandatory():
    """What is to be routed at once is returned if no queue is bound. What is delayed is not: that
    is known when it is due."""
    returned = []
    producer.on_return = lambda error, exchange, key, message: returned.append(message.body)
    producer.revive(connection.default_channel)
    publish("at once", {}, key="nobody", mandatory=True)
    print(f"returned: {returned[0]}")
    publish("later", {"x-delay": 1000}, key="nobody", mandatory=True)


def wrong_delay():
    """The channel is closed; what it had not confirmed yet has to be published again."""
    try:
        publish("in five minutes", {"x-delay": "5m"})
    except amqp.PreconditionFailed as closed:
        print(f"refused: {closed.reply_code} {closed.reply_text}")


def cancel():
    publish("expire order 17", {"x-delay": 3600_000, "x-delay-key": "order 17"})
    publish("", {"x-delay-cancel": "order 17"})
    print("cancelled: order 17")


def retry():
    publish("job 1", {})
    for attempt in (1, 2, 3):
        message = get(work)
        print(f"{message.payload}, attempt {attempt}")
        message.reject()
    message = get(parked)
    print(f"{message.payload} is parked: {message.headers['x-delay-death-reason']}")
    message.ack()


with connection:
    producer = connection.Producer()
    delayed()
    mandatory()
    wrong_delay()
    # The connection is as it was; a producer on a new channel goes on.
    producer = connection.Producer()
    cancel()
    retry()
    for queue in (work, parked):
        queue(connection.default_channel).delete()
    later(connection.default_channel).delete()
