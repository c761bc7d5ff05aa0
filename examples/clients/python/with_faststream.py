# SPDX-License-Identifier: MPL-2.0
"""A delayed publish, a wrong delay, a cancel and a retry with FastStream.

    pip install faststream[rabbit]
    python3 with_faststream.py [amqp://guest:guest@localhost:5672]
"""

import asyncio
import sys
import time

from aio_pika.exceptions import ChannelInvalidStateError, ChannelPreconditionFailed
from faststream import AckPolicy
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
broker = RabbitBroker(url, logger=None)
later = RabbitExchange(
    "example.faststream", type=ExchangeType.X_DELAYED_MESSAGE, durable=True, arguments={
        "x-delayed-type": "direct",
        # What is rejected comes back after these pauses, and then is parked.
        "x-delay-retry": "100ms,200ms",
        "x-delay-retry-parking-exchange": "",
        "x-delay-retry-parking-routing-key": "example.faststream.parked"})
work = RabbitQueue("example.faststream", durable=True, routing_key="job",
                   arguments={"x-dead-letter-exchange": "example.faststream"})
parked = RabbitQueue("example.faststream.parked", durable=True)
done = asyncio.Queue()


@broker.subscriber(work, later, ack_policy=AckPolicy.REJECT_ON_ERROR)
async def on_job(body: str, message: RabbitMessage):
    await done.put((body, message.headers))
    if body.startswith("job"):
        raise RuntimeError("no answer")


@broker.subscriber(parked)
async def on_parked(body: str, message: RabbitMessage):
    await done.put((body, message.headers))


async def publish(body, headers, key="job"):
    """Returns when the broker has the message on disk. After a wrong delay the broker's channel is
    closed, and is opened again soon."""
    while True:
        try:
            return await broker.publish(body, exchange=later, routing_key=key, headers=headers,
                                        persist=True)
        except ChannelInvalidStateError:
            await asyncio.sleep(0.1)


async def delayed():
    published = time.monotonic()
    await publish("hello", {"x-delay": 1000})
    body, headers = await done.get()
    print(f"{body} after {time.monotonic() - published:.1f} s, x-delay is {headers['x-delay']}")


async def wrong_delay():
    try:
        await publish("in five minutes", {"x-delay": "5m"})
    except ChannelPreconditionFailed as closed:
        print(f"refused: 406 {closed}")


async def cancel():
    await publish("expire order 17", {"x-delay": 3600_000, "x-delay-key": "order 17"})
    await publish("", {"x-delay-cancel": "order 17"})
    print("cancelled: order 17")


async def retry():
    await publish("job 1", {})
    for attempt in (1, 2, 3):
        body, _ = await done.get()
        print(f"{body}, attempt {attempt}")
    body, headers = await done.get()
    print(f"{body} is parked: {headers['x-delay-death-reason']}")


async def main():
    await broker.start()
    await delayed()
    await wrong_delay()
    await cancel()
    await retry()
    await broker.stop()


asyncio.run(main())
