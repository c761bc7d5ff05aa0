# SPDX-License-Identifier: MPL-2.0
"""From ladders of queues with TTLs, as libraries declare them: what the doctor finds, what takes their
place, and that nothing is lost while they run dry (docs/moving-in.md)."""

import json

import pytest

from client import Client
from conftest import PLUGIN
from management import eventually

LEVELS = 28


def binary_levels(client, level_name, delivery, kind="quorum"):
    """One queue for each bit of a delay in seconds, as NServiceBus and Celery have them: a message goes
    from the exchange of its highest bit down, through the queues whose bits are set."""
    channel = client.channel
    for level in reversed(range(LEVELS)):
        below = level_name(level - 1) if level > 0 else delivery
        client.exchange("topic", name=level_name(level))
        client.queue(name=level_name(level), arguments={
            "x-queue-type": kind, "x-message-ttl": 1000 * 2 ** level,
            "x-dead-letter-exchange": below, "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish"})
    client.exchange("topic", name=delivery)
    for level in range(LEVELS):
        skipped = "*." * (LEVELS - 1 - level)
        channel.queue_bind(level_name(level), level_name(level), f"{skipped}1.#")
        channel.exchange_bind(level_name(level - 1) if level > 0 else delivery, level_name(level),
                              f"{skipped}0.#")


def binary_key(seconds, destination):
    return ".".join(f"{seconds:0{LEVELS}b}") + f".{destination}"


@pytest.fixture(name="broker", scope="module")
def broker_of_its_own(brokers):
    broker = brokers("ladders", enable=(PLUGIN,))
    yield broker
    broker.end()


@pytest.fixture(name="client")
def client_of_it(broker):
    client = Client(broker)
    yield client
    client.close()


def findings(broker, *names):
    """The rules that the doctor names these queues for."""
    done = broker.ctl("check_dead_lettering", "--formatter", "json", "--fail-on", "never", check=False)
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    return {finding["rule"]: finding for finding in report["findings"] if finding["name"] in names}


@pytest.mark.parametrize("library", ["NServiceBus", "Celery"])
def test_binary_levels(client, broker, library):
    if library == "NServiceBus":
        def level_name(level):
            return f"nsb.v2.delay-level-{level:02}"
        delivery = "nsb.v2.delay-delivery"
    else:
        def level_name(level):
            return f"celery_delayed_{level}"
        delivery = "celery_delayed_delivery"
    binary_levels(client, level_name, delivery)
    orders = client.queue(name=f"orders of {library}")
    client.channel.queue_bind(orders, delivery, "#.orders")
    found = findings(broker, level_name(0))["delay_ladder"]
    assert "28 queues do nothing but delay, by 1 s, 2 s" in found["why"]
    # What waits in the old levels, while publishers have moved on already.
    client.publish(level_name(LEVELS - 1), binary_key(5, "orders"), b"old, after 5 s")
    later = client.delayed("topic", name=f"later for {library}")
    client.channel.queue_bind(orders, later, "orders")
    client.publish(later, "orders", b"new, after 1 s", delay=1000)
    assert sorted(client.texts(orders, 2)) == ["new, after 1 s", "old, after 5 s"]


@pytest.mark.parametrize("library", ["Laravel", "Symfony"])
def test_queues_that_expire(client, broker, library):
    # The libraries have them expire sooner; here they are to be found before that.
    delays = [10_000, 11_000, 12_000]
    work = client.queue(name=f"work of {library}")
    if library == "Laravel":
        waits = [client.queue(name=f"{work}.delay.{ms}", keep=True, arguments={
            "x-dead-letter-exchange": "", "x-dead-letter-routing-key": work, "x-message-ttl": ms,
            "x-expires": 10 * ms}) for ms in delays]
    else:
        client.exchange("fanout", name="messages")
        client.exchange("direct", name="delays")
        client.channel.queue_bind(work, "messages")
        waits = [client.queue(("delays", f"delay_messages__{ms}_delay"),
                              name=f"delay_messages__{ms}_delay", keep=True, arguments={
            "x-dead-letter-exchange": "messages", "x-dead-letter-routing-key": "",
            "x-message-ttl": ms, "x-expires": ms + 100_000}) for ms in delays]
    for wait in waits:
        client.publish("", wait, f"old, {wait}".encode())
    found = findings(broker, *waits)
    assert "3 queues do nothing but delay, by 10 s, 11 s, 12 s" in found["delay_ladder"]["why"]
    assert found["expires_loses_messages"]["severity"] == "info"
    later = client.delayed("direct", name=f"later for {library}")
    client.channel.queue_bind(work, later, work)
    client.publish(later, work, b"new", delay=300)
    assert sorted(client.texts(work, 4)) == sorted(["new", *(f"old, {wait}" for wait in waits)])
    # They go by themselves, sooner by a policy.
    broker.ctl("set_policy", "expires", "|".join(f"^{wait}$" for wait in waits), '{"expires": 1}',
               "--apply-to", "queues")
    eventually(lambda: broker.ctl("list_queues", "-q", "name"),
               lambda listed: not any(wait in listed for wait in waits))
    broker.ctl("clear_policy", "expires")


def waiting(client, kind, ttl):
    """A queue in which messages wait, and the one that they come to."""
    work = client.queue(arguments={"x-queue-type": kind})
    return work, client.queue(arguments={
        "x-queue-type": kind, "x-message-ttl": ttl, "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": work})


def test_an_empty_queue_is_deleted_and_another_is_not(client, broker):
    _, wait = waiting(client, "classic", 3_600_000)
    client.publish("", wait, b"old")
    assert broker.ctl("delete_queue", "--if-empty", wait, check=False).returncode != 0
    assert client.texts(wait, 1) == ["old"]
    assert broker.ctl("delete_queue", "--if-empty", wait, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_what_is_not_to_wait_any_longer_is_moved(client, broker, kind):
    work, wait = waiting(client, kind, 3_600_000)
    for n in range(3):
        client.publish("", wait, f"{n}".encode())
    broker.ctl("redrive_dead_letters", "--to-queue", work, "--dry-run", wait)
    assert client.depth(wait) == 3
    broker.ctl("redrive_dead_letters", "--to-queue", work, wait)
    assert client.texts(work, 3) == ["0", "1", "2"]
    assert client.depth(wait) == 0
