# SPDX-License-Identifier: MPL-2.0
"""The official delayed-message plugin beside ours: one serves the exchange type, the other says
what to do, and the broker serves. And the way from that one to ours."""

import os
import subprocess

import pytest

from client import Client, assert_serves
from conftest import PLUGIN, PLUGIN_DIRS
from management import eventually
from node import HOUR_MS, evaluate
from official import OfficialTables
from private_broker import chroot_of, default_series, stock_home

RIVAL = "rabbitmq_delayed_message_exchange"
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rival",
                      "rabbit_exchange_type_delayed_message.erl")
LIBRARIES = (chroot_of(default_series()) or "") + stock_home(default_series()) + "/plugins"


@pytest.fixture(scope="module")
def with_rival(brokers, tmp_path_factory):
    """A broker that both plugins are installed on, with only the rival enabled."""
    directory = tmp_path_factory.mktemp("rival")
    ebin = directory / f"{RIVAL}-3.10.2" / "ebin"
    ebin.mkdir(parents=True)
    subprocess.run(["erlc", "-o", str(ebin), SOURCE], check=True,
                   env={**os.environ, "ERL_LIBS": LIBRARIES})
    (ebin / f"{RIVAL}.app").write_text(
        f'{{application, {RIVAL}, [{{description, "the other plugin"}}, {{vsn, "3.10.2"}}, '
        "{modules, [rabbit_exchange_type_delayed_message]}, {registered, []}, {env, []}, "
        "{applications, [kernel, stdlib, rabbit_common, rabbit]}, "
        "{broker_version_requirements, []}]}.\n")
    broker = brokers("rival", plugin_dirs=[*PLUGIN_DIRS, str(directory)], enable=(RIVAL,))
    yield broker
    broker.end()


def served_by(broker):
    return evaluate(broker, "{ok, M} = rabbit_registry:lookup_module(exchange, "
                    "'x-delayed-message'), M.")


def test_enabling_ours_beside_the_other_is_refused_with_what_to_do(with_rival):
    refused = with_rival.plugins("enable", PLUGIN, check=False)
    said = refused.stdout + refused.stderr + with_rival.log()
    assert f"disable --offline {RIVAL}" in said.replace("\n", " ")
    assert served_by(with_rival) == "rabbit_exchange_type_delayed_message"
    assert_serves(with_rival)


def test_a_boot_with_both_enabled_succeeds_and_says_what_to_do(with_rival):
    with_rival.stop()
    with_rival.plugins("set", "--offline", PLUGIN, RIVAL)
    before = len(with_rival.log())
    with_rival.start()
    assert_serves(with_rival)
    eventually(lambda: f"disable --offline {RIVAL}" in with_rival.log()[before:], bool)


def test_exchanges_declared_with_the_other_go_on_with_ours(with_rival):
    with_rival.stop()
    with_rival.plugins("set", "--offline", RIVAL)
    with_rival.start()
    client = Client(with_rival)
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"undelayed by the other", delay=HOUR_MS)
    assert client.texts(queue, 1) == ["undelayed by the other"]
    with_rival.stop()
    with_rival.plugins("set", "--offline", PLUGIN)
    with_rival.start()
    client = Client(with_rival)
    client.delayed(name=exchange)
    published = client.publish(exchange, body=b"delayed", delay=300)
    assert (client.one(queue).at - published) * 1000 >= 300
    client.close()


def test_moving_in_as_the_guide_says(with_rival):
    with_rival.stop()
    with_rival.plugins("set", "--offline", RIVAL)
    with_rival.start()
    client = Client(with_rival)
    exchange, queue = client.delayed_and_queue(keep=True)
    OfficialTables(with_rival, evaluate).write(exchange, range(3), 1000)
    with_rival.plugins("disable", "--offline", RIVAL)
    with_rival.plugins("enable", "--offline", PLUGIN)
    assert served_by(with_rival) == "rabbit_exchange_type_delayed_message"
    with_rival.restart()
    client = Client(with_rival)
    tables = OfficialTables(with_rival, evaluate)
    assert tables.count() == 3
    with_rival.ctl("import_delayed_messages")
    assert client.texts(queue, 3) == ["m0", "m1", "m2"]
    assert tables.count() == 0
    client.close()
