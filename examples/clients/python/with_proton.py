# SPDX-License-Identifier: MPL-2.0
"""A delayed publish, a mandatory one, a wrong delay, a cancel and a retry with Qpid Proton: AMQP 1.0, with
the addresses of RabbitMQ 4.0 and later.

    pip install python-qpid-proton  (Debian: apt install python3-qpid-proton)
    python3 with_proton.py [amqp://guest:guest@localhost:5672]

Proton declares nothing. Before this, an administrator has declared, for instance with AMQP 0-9-1, the
exchange "example.proton" (see with_pika.py: the same arguments), and bound the queue "example.proton".
"""

import sys
import time

from proton import Delivery, Endpoint, Message, symbol
from proton.utils import BlockingConnection

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
LATER = "/exchanges/example.proton"


def connect():
    return BlockingConnection(url, allowed_mechs="PLAIN", timeout=300)


def publish(sender, body, **annotations):
    """Returns when the broker has the message on disk, or whether it is routed at once to a queue. A
    BlockingSender's own send() does not hear that its session has ended, and waits for a timeout."""
    annotations = {symbol(name.replace("_", "-")): value for name, value in annotations.items()}
    delivery = sender.link.send(Message(body=body, durable=True, annotations=annotations))
    session = sender.link.session
    connection.wait(lambda: delivery.settled or session.state & Endpoint.REMOTE_CLOSED)
    if not delivery.settled:
        raise RuntimeError(session.remote_condition.description)
    return delivery.remote_state


def delayed(sender, receiver):
    published = time.monotonic()
    publish(sender, "hello", x_delay=1000)
    message = receiver.receive()
    print(f"{message.body} after {time.monotonic() - published:.1f} s, "
          f"x-delay is {message.annotations[symbol('x-delay')]}")
    receiver.accept()


def mandatory():
    """AMQP 1.0 is always mandatory: what is to be routed at once is released if no queue is bound.
    What is delayed is accepted: that is known when it is due."""
    nobody = connection.create_sender(f"{LATER}/nobody")
    if publish(nobody, "at once") == Delivery.RELEASED:
        print("returned: at once")
    assert publish(nobody, "later", x_delay=1000) == Delivery.ACCEPTED


def wrong_delay(sender):
    """The session is ended; what it had not settled yet has to be published again."""
    try:
        publish(sender, "in five minutes", x_delay="5m")
    except RuntimeError as ended:
        print(f"refused: {ended}")


def cancel(sender):
    publish(sender, "expire order 17", x_delay=3600_000, x_delay_key="order 17")
    publish(sender, "", x_delay_cancel="order 17")
    print("cancelled: order 17")


def retry(sender, receiver):
    publish(sender, "job 1")
    for attempt in (1, 2, 3):
        print(f"{receiver.receive().body}, attempt {attempt}")
        receiver.reject()
    parked = connection.create_receiver("/queues/example.proton.parked", credit=1)
    message = parked.receive()
    print(f"{message.body} is parked: {message.annotations[symbol('x-delay-death-reason')]}")
    parked.accept()


connection = connect()
sender = connection.create_sender(f"{LATER}/job")
receiver = connection.create_receiver("/queues/example.proton", credit=1)
delayed(sender, receiver)
mandatory()
wrong_delay(sender)
# A BlockingConnection has one session.
connection.close()
connection = connect()
sender = connection.create_sender(f"{LATER}/job")
receiver = connection.create_receiver("/queues/example.proton", credit=1)
cancel(sender)
retry(sender, receiver)
connection.close()
