# SPDX-License-Identifier: MPL-2.0
"""What the official delayed-message plugin leaves in a broker's Mnesia."""

import os

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rival", "official_tables.erl")


def binary(text):
    data = text if isinstance(text, bytes) else text.encode()
    return "<<" + ",".join(map(str, data)) + ">>"


def resource(exchange, vhost="/"):
    return f"rabbit_misc:r({binary(vhost)}, exchange, {binary(exchange)})"


class OfficialTables:
    """The tables, of a broker that runs. They are made if they are not there. evaluate(broker,
    expression) answers what Erlang prints."""

    def __init__(self, broker, evaluate):
        self._broker, self._evaluate = broker, evaluate
        with open(SOURCE, encoding="utf-8") as f:
            source = f.read()
        # Where the broker can read it, whatever it is in.
        path = broker.path("official_tables.erl")
        with open(path, "w", encoding="utf-8") as f:
            f.write(source)
        evaluate(broker, f'{{ok, M, B}} = compile:file("{path}", [binary]), '
                 f'{{module, M}} = code:load_binary(M, "{path}", B).')
        self._call("create()")

    def _call(self, call):
        return self._evaluate(self._broker, f"official_tables:{call}.")

    def write(self, exchange, numbers, due, per_ms=1, key="k", vhost="/", size=0):
        """Messages "m<N>" for the numbers of that range, in due order, padded to a size."""
        self._call(f"write_range({resource(exchange, vhost)}, {{{numbers[0]}, {numbers[-1]}}}, "
                   f"{due}, {per_ms}, {binary(key)}, {size})")

    def write_one(self, exchange, body, due, headers="[]", key="k", message_id=None, vhost="/"):
        """One message, with headers as Erlang has them."""
        self._call(f"write({resource(exchange, vhost)}, {due}, {binary(key)}, {headers}, "
                   f"{'undefined' if message_id is None else binary(message_id)}, {binary(body)})")

    def delete(self, due):
        self._call(f"delete({due})")

    def count(self):
        return int(self._call("count()"))
