# SPDX-License-Identifier: MPL-2.0
"""A broker of a later series than the archive knows: it boots, the plugin takes no part and says so to
whoever asks; a setting lets it try, if the broker has what it calls."""

import glob
import os
import re
import subprocess
import zipfile

import pytest

from client import Client, closes_channel
from conftest import PLUGIN, PLUGIN_DIRS
from management import Management, eventually
from node import has_enabled
from test_series import KEYS, assert_all_arrive, hold

ALLOWED = "delayed_message.allow_untested_series = true"
LATER = """
-module(rabbit_delay_later).
-export([f/0]).
f() -> [rabbit_misc:later(), rabbit_misc:later(1), no_such_plugin:f(), rabbit_misc:version()].
"""


def earlier(directory, calls_more=False):
    """A directory with this archive as it would be if it had been made before the broker: it knows earlier
    series alone, and with calls_more it calls what was there then."""
    archive, = glob.glob(os.path.join(PLUGIN_DIRS[0], "rabbitmq_delay_wheel-*.ez"))
    with zipfile.ZipFile(archive) as old:
        files = {info: old.read(info) for info in old.infolist()}
    top = next(iter(files)).filename.split("/")[0]
    if calls_more:
        (directory / "rabbit_delay_later.erl").write_text(LATER)
        subprocess.run(["erlc", "rabbit_delay_later.erl"], cwd=directory, check=True)
        files[zipfile.ZipInfo(f"{top}/ebin/rabbit_delay_later.beam")] = (
            directory / "rabbit_delay_later.beam").read_bytes()
    target = directory / "plugins"
    target.mkdir()
    with zipfile.ZipFile(target / os.path.basename(archive), "w") as new:
        for info, data in files.items():
            if info.filename.endswith("/rabbitmq_delay_wheel.app"):
                text, known = re.subn(r"\{known_series,\s*\[[^]]*\]\}", '{known_series,["3.8","3.9"]}',
                                      data.decode())
                text, listed = re.subn(r"\{modules,\s*\[", "{modules,[rabbit_delay_later,"
                                       if calls_more else "{modules,[", text)
                assert known == 1 and listed == 1
                data = text.encode()
            new.writestr(info, data)
    return str(target)


def refused(broker, action):
    """What the broker closes the channel with that does this."""
    client = Client(broker)
    code, text = closes_channel(lambda: action(client))
    client.connection.close()
    assert code == 406
    return text


@pytest.fixture
def held(brokers, request):
    """A broker that stopped with messages pending."""
    broker = brokers(f"untested-{request.node.name}", enable=(PLUGIN, "rabbitmq_management"))
    held = hold(broker)
    broker.stop()
    yield broker, held
    broker.end()


def start_with(broker, plugins, *conf, saying):
    """Starts it, and answers what it has logged since, once that is there."""
    broker.plugin_dirs = [plugins]
    broker.conf = [line for line in broker.conf if line != ALLOWED] + list(conf)
    before = len(broker.log())
    broker.start()
    return eventually(lambda: broker.log()[before:], lambda log: saying in log)


def test_a_later_series_is_said_and_nothing_else_is_disturbed(held, tmp_path):
    broker, exchanges = held
    version = broker.home.rpartition("-")[2]
    log = start_with(broker, earlier(tmp_path),
                     saying="rabbitmq_delay_wheel does not take part in this broker")
    assert f"tested up to RabbitMQ 3.9, not with {version}" in log
    assert "delayed_message.allow_untested_series = true" in log
    for kind, (exchange, _) in exchanges.items():
        for delay in (1000, None):
            said = refused(broker, lambda client: client.publish(exchange, KEYS[kind], b"x", delay=delay))
            assert exchange in said and "takes no part" in said and "allow_untested_series" in said
    said = refused(broker, lambda client: client.delayed(name="new"))
    assert "cannot declare" in said and "allow_untested_series" in said
    management = Management(broker)
    assert {name for name, _ in exchanges.values()} <= {x["name"] for x in management.get("exchanges")}

    # Who cannot be told goes on.
    client = Client(broker)
    exchange, queue = exchanges["direct"]
    client.queue(name="dying", keep=True, arguments={"x-dead-letter-exchange": exchange,
                                                     "x-dead-letter-routing-key": "k"})
    channel = client.connection.channel()
    for text in (b"dies", b"lives"):
        client.publish("", "dying", text)
    method, _, body = eventually(lambda: channel.basic_get("dying"), lambda got: got[0])
    assert body == b"dies"
    channel.basic_reject(method.delivery_tag, requeue=False)
    assert client.texts("dying", 1) == ["lives"] and client.depth(queue) == 0
    eventually(lambda: broker.log()[-20000:], lambda said: "is dropped by its publisher" in said)

    # Bindings come and go meanwhile.
    extra = client.queue((exchanges["topic"][0], "a.*.c"), keep=True)
    client.connection.close()
    broker.stop()
    start_with(broker, broker.plugin_dirs[0], ALLOWED,
               saying=f"has not been tested with RabbitMQ {version}; it takes part")
    assert_all_arrive(broker, exchanges)
    client = Client(broker)
    assert sorted(client.texts(extra, 3)) == ["later", "now", "topic"]


def test_with_a_function_missing_it_is_named_and_nothing_is_tried(held, tmp_path):
    broker, exchanges = held
    log = start_with(broker, earlier(tmp_path, calls_more=True), ALLOWED,
                     saying="rabbitmq_delay_wheel does not take part in this broker")
    for arity in (0, 1):
        assert f"rabbitmq_delay_wheel needs rabbit_misc:later/{arity}, which RabbitMQ" in log
    assert log.count("rabbitmq_delay_wheel needs ") == 2
    said = refused(broker, lambda client: client.publish("held-direct", "k", b"x", delay=1000))
    assert "lacks 2 functions" in said
    broker.stop()
    start_with(broker, PLUGIN_DIRS[0], saying="delayed messages are kept in")
    assert_all_arrive(broker, exchanges)


def test_it_is_not_enabled_while_the_broker_runs(brokers, tmp_path):
    broker = brokers("untested-enable", plugin_dirs=[earlier(tmp_path)], enable=())
    done = broker.plugins("enable", PLUGIN, check=False)
    assert done.returncode != 0 or not has_enabled(broker, PLUGIN)
    assert "allow_untested_series" in done.stdout + done.stderr + broker.log()
    client = Client(broker)
    queue = client.queue()
    client.publish("", queue, b"plain")
    assert client.texts(queue, 1) == ["plain"]
    broker.end()
