# SPDX-License-Identifier: MPL-2.0
"""lost_broker.py CLIENT URL EXCHANGE: publishes with confirms until the broker is gone, and says what
its user is told then: first "ready", at the end the exception's type and how many had been confirmed."""

import asyncio
import os
import sys
from itertools import count

HEADERS = {"x-delay": 3600_000}


def with_pika(url, exchange, confirmed):
    import pika
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.confirm_delivery()
    for n in count():
        channel.basic_publish(exchange, "k", str(n), pika.BasicProperties(
            headers=HEADERS, delivery_mode=2))
        confirmed(n)


def with_kombu(url, exchange, confirmed):
    from kombu import Connection
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer()
        for n in count():
            producer.publish(str(n), exchange=exchange, routing_key="k", headers=HEADERS)
            confirmed(n)


def with_celery(url, exchange, confirmed):
    os.environ["BROKER_URL"] = url
    from tasks import app, remind
    policy = {"max_retries": 2, "interval_start": 0, "interval_max": 0.1}
    for n in count():
        remind.apply_async([n], countdown=3600, retry_policy=policy)
        confirmed(n)


def with_aio_pika(url, exchange, confirmed):
    import aio_pika

    async def send():
        connection = await aio_pika.connect(url)
        later = await (await connection.channel()).get_exchange(exchange)
        for n in count():
            await later.publish(aio_pika.Message(str(n).encode(), headers=HEADERS,
                                                 delivery_mode=2), "k")
            confirmed(n)

    asyncio.run(send())


def with_dramatiq(url, exchange, confirmed):
    import dramatiq
    from delayed_dramatiq import DelayedRabbitmqBroker
    dramatiq.set_broker(DelayedRabbitmqBroker(url=url))

    @dramatiq.actor(queue_name=exchange)
    def nothing(number):
        return number

    for n in count():
        nothing.send_with_options(args=(n,), delay=3600_000)
        confirmed(n)


def with_taskiq(url, exchange, confirmed):
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

    async def send():
        broker = AioPikaBroker(url, exchange=Exchange(name=exchange + ".tasks"),
                               task_queues=[Queue(name=exchange + ".tasks")],
                               delayed_message_exchange_plugin=True)

        @broker.task
        async def nothing(number: int) -> int:
            return number

        await broker.startup()
        for n in count():
            await nothing.kicker().with_labels(delay=3600).kiq(n)
            confirmed(n)

    asyncio.run(send())


def with_faststream(url, exchange, confirmed):
    from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange

    async def send():
        broker = RabbitBroker(url, logger=None)
        await broker.start()
        later = RabbitExchange(exchange, type=ExchangeType.X_DELAYED_MESSAGE, durable=True,
                               arguments={"x-delayed-type": "direct"})
        for n in count():
            await broker.publish(str(n), exchange=later, routing_key="k", headers=HEADERS,
                                 persist=True)
            confirmed(n)

    asyncio.run(send())


def with_proton(url, exchange, confirmed):
    from proton import Message, symbol
    from proton.utils import BlockingConnection
    connection = BlockingConnection(url.removesuffix("/%2F"), allowed_mechs="PLAIN", timeout=300)
    sender = connection.create_sender(f"/exchanges/{exchange}/k")
    for n in count():
        sender.send(Message(body=str(n).encode(), inferred=True, durable=True,
                            annotations={symbol("x-delay"): 3600_000}))
        confirmed(n)


def main():
    client, url, exchange = sys.argv[1:]
    last = -1

    def confirmed(n):
        nonlocal last
        last = n
        if n == 20:
            print("ready", flush=True)

    try:
        globals()["with_" + client.replace("-", "_")](url, exchange, confirmed)
    except Exception as error:  # pylint: disable=broad-except
        names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
        print(" ".join(names))
        print(last + 1, flush=True)


if __name__ == "__main__":
    main()
