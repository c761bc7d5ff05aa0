# SPDX-License-Identifier: MPL-2.0
"""A purge: one entry of the log, of all that is pending then."""

import re

import wire
from management import eventually
from node import HOUR_MS, evaluate, queue_process
from test_pending import counted, payloads, resource


def test_twenty_thousand_are_purged_and_what_comes_meanwhile_stays(client, broker):
    exchange, queue = client.delayed_and_queue()
    with wire.Publisher(broker) as publisher:
        publisher.publish(exchange, "k", [b"old"] * 20_000, headers={"x-delay": HOUR_MS})
        before = evaluate(broker, "element(2, rabbit_delay_pending:change_matching("
                                  f"{resource(exchange)}, cancel, #{{}}, "
                                  '#{by => <<"a test">>})).')
        publisher.publish(exchange, "k", [b"new"] * 10, headers={"x-delay": HOUR_MS})
    assert re.search(r"changed\s*=>\s*20000", before), before
    assert payloads(broker, exchange) == ["new"] * 10


def test_what_is_in_flight_is_purged_from_the_exchange_and_may_be_delivered(client, broker):
    exchange, queue = client.delayed_and_queue()
    evaluate(broker, f"sys:suspend({queue_process(queue)}).")
    try:
        client.publish(exchange, body=b"in flight", delay=300)
        client.publish(exchange, body=b"later", delay=HOUR_MS)
        eventually(lambda: counted(broker, exchange, "in_flight"), lambda n: n == 1)
        said = broker.ctl("--quiet", "purge_delayed_messages", exchange)
        assert "1 message cancelled, 1 is in flight already and may still be delivered" in said
        assert counted(broker, exchange, "messages_delayed") == 0
    finally:
        evaluate(broker, f"sys:resume({queue_process(queue)}).")
    assert client.texts(queue, 1) == ["in flight"]
    eventually(lambda: counted(broker, exchange, "in_flight"), lambda n: n == 0)
    assert counted(broker, exchange, "cancelled") == 1
    client.publish(exchange, body=b"after it", delay=300)
    assert client.texts(queue, 1) == ["after it"]
