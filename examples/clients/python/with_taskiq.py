# SPDX-License-Identifier: MPL-2.0
"""A delayed task, a wrong delay, a cancel and a retry with taskiq and taskiq-aio-pika, which knows the
exchange: delayed_message_exchange_plugin.

    pip install taskiq-aio-pika
    python3 with_taskiq.py [amqp://guest:guest@localhost:5672]

Workers run with `taskiq worker MODULE:broker` as ever; here one runs in the program itself.
"""

import asyncio
import sys
import time

from aio_pika.exceptions import ChannelInvalidStateError
from taskiq import SmartRetryMiddleware
from taskiq.api import run_receiver_task
from taskiq.exceptions import SendTaskError
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672"
broker = AioPikaBroker(
    url, exchange=Exchange(name="example.taskiq"), task_queues=[Queue(name="example.taskiq")],
    dead_letter_queue=Queue(name="example.taskiq.dead"),
    delayed_message_exchange_plugin=True,
).with_middlewares(SmartRetryMiddleware(default_delay=0.2))
done = asyncio.Queue()
attempts = []


@broker.task
async def remind(of: str, asked: float) -> None:
    await done.put(f"{of} after {time.time() - asked:.1f} s")


@broker.task(retry_on_error=True, max_retries=3)
async def charge(order: str) -> None:
    attempts.append(order)
    await done.put(f"charge {order}, attempt {len(attempts)}")
    if len(attempts) < 3:
        raise RuntimeError("no answer")


async def send(kicker, *args):
    """After a wrong delay the broker's channel is closed, and is opened again soon."""
    while True:
        try:
            return await kicker.kiq(*args)
        except SendTaskError as error:
            if not isinstance(error.__cause__, ChannelInvalidStateError):
                raise
            await asyncio.sleep(0.1)


async def delayed():
    await send(remind.kicker().with_labels(delay=1), "hello", time.time())
    print(await done.get())


async def wrong_delay():
    """taskiq has what the broker said as the cause."""
    try:
        await send(remind.kicker().with_labels(delay=36526 * 86400), "a century", time.time())
    except SendTaskError as error:
        print(f"refused: {error.__cause__}")


async def cancel():
    """Labels become headers."""
    await send(remind.kicker().with_labels(delay=3600, **{"x-delay-key": "order 17"}), "x", 0)
    await send(remind.kicker().with_labels(delay=3600, **{"x-delay-cancel": "order 17"}), "", 0)
    print("cancelled")


async def retry():
    await send(charge.kicker(), "order 17")
    for _ in range(3):
        print(await done.get())


async def main():
    broker.is_worker_process = True
    await broker.startup()
    receiver = asyncio.create_task(run_receiver_task(broker))
    await delayed()
    await wrong_delay()
    await cancel()
    await retry()
    receiver.cancel()
    await asyncio.gather(receiver, return_exceptions=True)
    await broker.shutdown()


asyncio.run(main())
