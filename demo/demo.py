#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""Shows delayed messages at work on a RabbitMQ node of its own.

Publishes messages with different delays and shows each as it arrives; then does so again, kills the
broker with `kill -9` while some are pending, starts it, and shows the rest arriving. The broker is
left running for you to try; demo.py --stop (make demo-stop) ends it and deletes all it has.
"""

import argparse
import os
import signal
import sys
import time

import pika

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "tests", "integration"))
# pylint: disable=wrong-import-position
from private_broker import BrokerFailed, PrivateBroker  # noqa: E402

ROOT = os.path.join(os.path.dirname(HERE), "_build", "demo")
EXCHANGE, QUEUE = "demo.delayed", "demo.arrived"
PATIENCE = 60  # seconds after the last due time


def clock(seconds):
    """A time of day with milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}"


class Session:
    """A connection, and the messages sent and not yet seen over this and earlier ones."""

    def __init__(self, broker):
        self.broker = broker
        self.pending = {}
        self.early = 0
        self.number = 0
        self.connect()

    def connect(self):
        self.connection = pika.BlockingConnection(pika.URLParameters(self.broker.amqp_url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.channel.exchange_declare(EXCHANGE, "x-delayed-message", durable=True,
                                      arguments={"x-delayed-type": "direct"})
        self.channel.queue_declare(QUEUE, durable=True)
        self.channel.queue_bind(QUEUE, EXCHANGE, routing_key="demo")

    def publish(self, delays):
        """Publishes a message for each delay (ms); each is confirmed when this returns."""
        for delay in delays:
            self.number += 1
            name = f"message {self.number}"
            published = time.time()
            self.channel.basic_publish(
                EXCHANGE, "demo", name.encode(),
                pika.BasicProperties(delivery_mode=2, headers={"x-delay": delay}))
            self.pending[name] = (delay, published + delay / 1000)
        print(f"published and confirmed: {len(delays)} messages, delays "
              + ", ".join(f"{d / 1000:g}" for d in delays) + " s\n")
        print(f"{'':12} {'delay':>8}  {'due at':12}  {'arrived at':12}  {'late':>8}")

    def show(self, count):
        """Shows the next `count` arrivals."""
        last_due = max(due for _, due in self.pending.values())
        for method, properties, body in self.channel.consume(
                QUEUE, inactivity_timeout=max(1, last_due - time.time() + PATIENCE)):
            if body is None:
                raise BrokerFailed(f"still not here: {', '.join(self.pending)}")
            arrived = time.time()
            self.channel.basic_ack(method.delivery_tag)
            name = body.decode()
            if name not in self.pending:
                print(f"{name:12} {'(a second time: at least once is the promise)'}")
                continue
            delay, due = self.pending.pop(name)
            late = (arrived - due) * 1000
            # What is due by the client's clock, which it read before the broker read its own, is
            # due by the broker's: less than nothing is early, but for the rounding of our print.
            self.early += late < -1
            again = "  (redelivered)" if method.redelivered else ""
            print(f"{name:12} {delay / 1000:6.2f} s  {clock(due)}  {clock(arrived)}  "
                  f"{late:5.0f} ms{again}")
            count -= 1
            if count == 0 or not self.pending:
                break
        self.channel.cancel()


def demonstrate(broker):
    print("starting a private broker ...", flush=True)
    seconds = broker.start()
    print(f"RabbitMQ runs with rabbitmq_delay_wheel after {seconds:.1f} s\n")

    session = Session(broker)
    print("== 1. Each message arrives when it is due")
    session.publish([3000, 500, 2000, 250, 1000, 1500])
    session.show(6)

    print("\n== 2. kill -9 while messages are pending")
    session.publish([1000, 2000, 4000, 6000, 9000, 14000, 16000, 18000])
    session.show(2)
    time.sleep(1)  # what is being delivered at the crash may come twice; nothing is, here
    broker.kill9()
    killed = time.time()
    print(f"\n{clock(killed)}  kill -9: the broker is gone, {len(session.pending)} messages are "
          "pending")
    broker.start()
    print(f"{clock(time.time())}  it is back; what came due meanwhile is late by the downtime, the "
          "rest is on time\n")
    session.connect()
    session.show(len(session.pending))
    session.connection.close()
    if session.pending or session.early:
        raise BrokerFailed(f"missing: {len(session.pending)}, early: {session.early}")
    print("\nall messages have arrived, none of them early")


def stop():
    try:
        broker = PrivateBroker.attach(ROOT)
    except BrokerFailed:
        print("there is no demo broker")
        return 0
    broker.remove()
    print("the demo broker is stopped and deleted")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stop", action="store_true", help="end the broker that a demo left")
    if parser.parse_args().stop:
        return stop()

    def interrupted(number, _frame):
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    if os.path.exists(os.path.join(ROOT, "broker.json")):
        PrivateBroker.attach(ROOT).remove()
    broker = PrivateBroker(ROOT, enable=["rabbitmq_delay_wheel", "rabbitmq_management"])
    try:
        demonstrate(broker)
    except BaseException as failure:
        broker.end()
        if isinstance(failure, KeyboardInterrupt):
            print("\ninterrupted; nothing is left running", file=sys.stderr)
            return 130
        if isinstance(failure, BrokerFailed):
            print(failure, file=sys.stderr)
            return 1
        raise
    broker.detach()
    print(f"""
The broker is still running:
  AMQP         {broker.amqp_url}
  management   http://127.0.0.1:{broker.management_port}/   (user guest, password guest)
  its log      {broker.log_file}
Stop it with   make demo-stop""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
