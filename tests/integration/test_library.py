# SPDX-License-Identifier: MPL-2.0
"""The store's native library, as it is loaded into the broker."""

import glob
import os
import platform
import zipfile

import pika.exceptions
import pytest

from client import Client
from conftest import PLUGIN, PLUGIN_DIRS
from management import Management, eventually
from metrics import Metrics
from node import evaluate


@pytest.fixture
def own(brokers, request):
    broker = brokers(request.node.name)
    client = Client(broker)
    yield broker, client
    client.close()
    broker.end()


def mapped(broker):
    """The names under which the store's library is mapped into the broker."""
    with open(f"/proc/{broker.pid}/maps", encoding="utf-8") as f:
        names = {line.split(None, 5)[5].strip() for line in f if "rabbit_delay_store" in line}
    return {name.removeprefix(broker.chroot or "") for name in names}


def test_it_survives_that_the_broker_unpacks_the_plugin_again(own):
    """The broker unpacks every archive anew, over the files in use, when any plugin is enabled or
    disabled: a library mapped from there would take the broker down with it."""
    broker, client = own
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"before", delay=100)
    assert client.texts(queue, 1) == ["before"]
    pid = broker.pid
    for action in ("enable", "disable", "enable"):
        client.publish(exchange, body=action.encode(), delay=8000)
        broker.plugins(action, "rabbitmq_random_exchange")
    assert client.texts(queue, 3) == ["enable", "disable", "enable"]
    assert broker.pid == pid
    unpacked = os.path.join(broker.root, "expand")
    for name in mapped(broker):
        assert name.startswith(unpacked) and not name.endswith(("/rabbit_delay_store.so", "(deleted)"))


def test_one_copy_of_it_is_mapped_however_often_it_is_enabled(own):
    broker, _ = own
    for n in range(3):
        client = Client(broker)
        exchange, queue = client.delayed_and_queue()
        client.publish(exchange, body=str(n).encode(), delay=1)
        assert client.texts(queue, 1) == [str(n)]
        client.close()
        broker.plugins("disable", PLUGIN)
        broker.plugins("enable", PLUGIN)
    assert len(mapped(broker)) == 1


DAMAGES = {
    "another file": lambda library: b"not a library",
    "empty": lambda library: b"",
    "cut off": lambda library: library[:len(library) // 2],
    "its end not written": lambda library: library[:-4096] + bytes(4096),
    "one byte": lambda library: library[:len(library) // 3] + bytes(
        [library[len(library) // 3] ^ 1]) + library[len(library) // 3 + 1:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_a_damaged_library_all_else_works_and_delays_are_refused_in_words(brokers, tmp_path,
                                                                              damage):
    """The plugin's directory, unpacked by hand. Once the library is mended, messages are taken."""
    [archive] = glob.glob(os.path.join(PLUGIN_DIRS[0], "*.ez"))
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    [path] = tmp_path.glob(f"*/priv/{platform.machine()}-gnu/rabbit_delay_store.so")
    library = path.read_bytes()
    path.write_bytes(DAMAGES[damage](library))
    broker = brokers(f"damaged-{damage.replace(' ', '-')}", plugin_dirs=[str(tmp_path)],
                     enable=(PLUGIN, "rabbitmq_management", "rabbitmq_prometheus"))
    try:
        client = Client(broker)
        exchange, queue = client.delayed_and_queue("topic")
        client.publish(exchange, body=b"at once")
        assert client.texts(queue, 1) == ["at once"]
        for _ in range(3):
            with pytest.raises((pika.exceptions.NackError, pika.exceptions.ChannelClosedByBroker)):
                client.publish(exchange, body=b"refused", delay=1000)
        eventually(broker.log, lambda log: "rabbit_delay_store.so cannot be loaded" in log)
        assert evaluate(broker, 'length(rabbit_delay_exchange:list(<<"/">>, [name])).') == "1"
        assert Management(broker).messages_delayed(exchange) == 0
        # The collector is registered a little after the plugins are there.
        eventually(lambda: Metrics(broker).get("rabbitmq_delayed_up"), lambda up: up == 0)
        other = client.delayed()
        client.channel.exchange_delete(other)
        replacement = path.with_name("mended")
        replacement.write_bytes(library)
        os.rename(replacement, path)
        eventually(lambda: evaluate(broker, "rabbit_delay_system:status()."),
                   lambda status: status == "up", within=90)
        # It is looked at again a while after it was late.
        eventually(lambda: client.is_taken(exchange, body=b"later", delay=1), bool, within=90)
        assert client.texts(queue, 1) == ["later"]
        client.close()
    finally:
        broker.end()


def test_an_archive_for_other_machines_says_so(brokers, tmp_path):
    [archive] = glob.glob(os.path.join(PLUGIN_DIRS[0], "*.ez"))
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    for path in tmp_path.glob(f"*/priv/{platform.machine()}-*/rabbit_delay_store.so"):
        path.unlink()
    broker = brokers("other-machines", plugin_dirs=[str(tmp_path)])
    client = Client(broker)
    exchange, queue = client.delayed_and_queue("topic")
    client.publish(exchange, body=b"at once")
    assert client.texts(queue, 1) == ["at once"]
    with pytest.raises((pika.exceptions.NackError, pika.exceptions.ChannelClosedByBroker)):
        client.publish(exchange, body=b"refused", delay=1000)
    eventually(broker.log, lambda log: f"{platform.machine()}-gnu/rabbit_delay_store.so is not in this "
               "archive of the plugin, which was built for other machines" in log)
    broker.end()
