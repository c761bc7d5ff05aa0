# SPDX-License-Identifier: MPL-2.0
"""header_values.py CLIENT URL EXCHANGE CASES: sends the cases with pika, aio-pika or kombu."""

import asyncio
import json
import sys
from datetime import datetime, timezone
from decimal import Decimal


def native(kind, value):
    """As this client's users write it."""
    if kind == "D":
        return Decimal(value[0]).scaleb(-value[1])
    if kind == "x":
        return bytes(value)
    if kind == "T":
        return datetime.fromtimestamp(value, timezone.utc)
    if kind in "fd":
        return float(value)
    return value


def with_pika(url, exchange, cases):
    import pika
    import pika.exceptions
    connection, told = pika.BlockingConnection(pika.URLParameters(url)), {}
    for name, headers in cases:
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            channel.basic_publish(exchange, "k", name, pika.BasicProperties(headers=headers))
            told[name] = None
            channel.close()
        except pika.exceptions.ChannelClosedByBroker as closed:
            told[name] = closed.reply_text
    connection.close()
    return told


def with_kombu(url, exchange, cases):
    import amqp
    from kombu import Connection
    told = {}
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        for name, headers in cases:
            with connection.channel() as channel:
                try:
                    connection.Producer(channel).publish(name, exchange=exchange, routing_key="k",
                                                         headers=headers)
                    told[name] = None
                except amqp.PreconditionFailed as closed:
                    told[name] = closed.reply_text
    return told


def with_aio_pika(url, exchange, cases):
    import aio_pika
    from aio_pika.exceptions import ChannelPreconditionFailed

    async def send():
        told = {}
        async with await aio_pika.connect(url) as connection:
            for name, headers in cases:
                channel = await connection.channel()
                later = await channel.get_exchange(exchange)
                try:
                    await later.publish(aio_pika.Message(name.encode(), headers=headers), "k")
                    told[name] = None
                    await channel.close()
                except ChannelPreconditionFailed as closed:
                    told[name] = str(closed)
        return told

    return asyncio.run(send())


def main():
    client, url, exchange, path = sys.argv[1:]
    with open(path, encoding="utf-8") as f:
        cases = json.load(f)
    values = []
    for case in cases:
        value = native(case["type"], case["value"])
        values.append((case["name"], {"x-delay": value, **({"copy": value} if case["copy"] else {})}))
    send = {"pika": with_pika, "kombu": with_kombu, "aio-pika": with_aio_pika}[client]
    print(json.dumps(send(url, exchange, values)))


if __name__ == "__main__":
    main()
