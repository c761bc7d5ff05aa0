# SPDX-License-Identifier: MPL-2.0
"""A delayed publish, a mandatory one, a wrong delay, a cancel and a retry with aio-pika.

    pip install aio-pika
    python3 with_aio_pika.py [amqp://guest:guest@localhost:5672]
"""

import asyncio
import sys
import time

import aio_pika
from aio_pika.exceptions import ChannelPreconditionFailed, DeliveryError

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"


async def declare(channel):
    later = await channel.declare_exchange(
        "example.aio-pika", aio_pika.ExchangeType.X_DELAYED_MESSAGE, durable=True, arguments={
            "x-delayed-type": "direct",
            # What is rejected comes back after these pauses, and then is parked.
            "x-delay-retry": "100ms,200ms",
            "x-delay-retry-parking-exchange": "",
            "x-delay-retry-parking-routing-key": "example.aio-pika.parked"})
    parked = await channel.declare_queue("example.aio-pika.parked", durable=True)
    work = await channel.declare_queue("example.aio-pika", durable=True, arguments={
        "x-dead-letter-exchange": "example.aio-pika"})
    await work.bind(later, "job")
    return later, work, parked


async def publish(later, body, headers, key="job"):
    """Returns when the broker has the message on disk."""
    await later.publish(aio_pika.Message(
        body.encode(), headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT), key)


async def next_of(queue):
    async with queue.iterator() as messages:
        async for message in messages:
            return message


async def delayed(later, work):
    published = time.monotonic()
    await publish(later, "hello", {"x-delay": 1000})
    message = await next_of(work)
    print(f"{message.body.decode()} after {time.monotonic() - published:.1f} s, "
          f"x-delay is {message.headers['x-delay']}")
    await message.ack()


async def mandatory(later):
    """aio-pika publishes as mandatory, and raises what is returned if the channel has been opened with
    on_return_raises. What is delayed is not returned: whether a queue is bound is known when it is
    due."""
    try:
        await publish(later, "at once", {}, key="nobody")
    except DeliveryError as returned:
        print(f"returned: {returned.message.body.decode()}")
    await publish(later, "later", {"x-delay": 1000}, key="nobody")


async def wrong_delay(later):
    """The channel is closed; what it had not confirmed yet has to be published again."""
    try:
        await publish(later, "in five minutes", {"x-delay": "5m"})
    except ChannelPreconditionFailed as closed:
        print(f"refused: 406 {closed}")


async def cancel(later):
    await publish(later, "expire order 17", {"x-delay": 3600_000, "x-delay-key": "order 17"})
    await publish(later, "", {"x-delay-cancel": "order 17"})
    print("cancelled: order 17")


async def retry(later, work, parked):
    await publish(later, "job 1", {})
    for attempt in (1, 2, 3):
        message = await next_of(work)
        print(f"{message.body.decode()}, attempt {attempt}")
        await message.reject()
    message = await next_of(parked)
    print(f"{message.body.decode()} is parked: {message.headers['x-delay-death-reason']}")
    await message.ack()


async def main():
    async with await aio_pika.connect(url) as connection:
        later, work, parked = await declare(await connection.channel(on_return_raises=True))
        await delayed(later, work)
        await mandatory(later)
        await wrong_delay(later)
        later, work, parked = await declare(await connection.channel(on_return_raises=True))
        await cancel(later)
        await retry(later, work, parked)
        for queue in (work, parked):
            await queue.delete()
        await later.delete()


asyncio.run(main())
