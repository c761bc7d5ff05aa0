# SPDX-License-Identifier: MPL-2.0
"""header_values_proton.py URL EXCHANGE CASES: sends the cases of ../header_values.py with Proton."""

import json
import sys

from proton import (Delivery, Endpoint, Message, byte, float32, int32, short, symbol, timestamp,
                    ubyte, uint, ushort)
from proton.utils import BlockingConnection

# An int is a long, a float a double.
TYPES = {"b": byte, "B": ubyte, "s": short, "u": ushort, "I": int32, "i": uint, "f": float32,
         "d": float, "x": bytes, "T": lambda seconds: timestamp(seconds * 1000)}


def told(url, exchange, case):
    value = TYPES.get(case["type"], lambda plain: plain)(case["value"])
    connection = BlockingConnection(url, allowed_mechs="PLAIN", timeout=300)
    try:
        sender = connection.create_sender(f"/exchanges/{exchange}/k")
        delivery = sender.link.send(Message(
            body=case["name"].encode(), inferred=True, annotations={symbol("x-delay"): value},
            properties={"copy": value} if case["copy"] else None))
        session = sender.link.session
        connection.wait(lambda: delivery.settled or session.state & Endpoint.REMOTE_CLOSED)
        if not delivery.settled:
            return session.remote_condition.description
        return None if delivery.remote_state == Delivery.ACCEPTED else str(delivery.remote_state)
    finally:
        connection.close()


def main():
    url, exchange, path = sys.argv[1:]
    with open(path, encoding="utf-8") as f:
        print(json.dumps({case["name"]: told(url, exchange, case) for case in json.load(f)}))


if __name__ == "__main__":
    main()
