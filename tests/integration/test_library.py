# SPDX-License-Identifier: MPL-2.0
"""The store's native library, as it is loaded into the broker."""

import glob
import os
import zipfile

import pytest

from client import Client
from conftest import PLUGIN
from private_broker import REPOSITORY, default_series


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


def test_a_broken_library_does_not_keep_the_broker_from_booting(brokers, tmp_path):
    """The plugin's directory, unpacked by hand, with a library that cannot be loaded."""
    [archive] = glob.glob(os.path.join(REPOSITORY, "dist", default_series(), "*.ez"))
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    [library] = tmp_path.glob("*/priv/rabbit_delay_store.so")
    library.write_bytes(b"not a library")
    broker = brokers("broken-library", plugin_dirs=[str(tmp_path)])
    try:
        assert "rabbit_delay_store" in broker.log()
        assert broker.ctl("list_exchanges", "name")
    finally:
        broker.end()
