# SPDX-License-Identifier: MPL-2.0
"""JavaScript's clients: what the samples print is what happened."""

import json
import os
import re
import shutil

import pytest

import header_values
import locked
import lost
from client import Client
from conftest import PLUGIN
from management import eventually
from private_broker import default_series
from samples import (SAID, SAID_AMQP10, SAID_WITH, WHAT, assert_said, declare, declare_retry, sample)

OLD = default_series() == "3.10"

TSC = ["--experimentalDecorators", "--emitDecoratorMetadata", "--module", "nodenext", "--target",
       "es2022", "--types", "node", "--strict", "--skipLibCheck"]


@pytest.fixture(scope="module")
def javascript(deps, executed, tmp_path_factory):
    """javascript(file, argument...): runs a program with the packages that tests/clients/javascript
    locks. It looks for them in the directories above it."""
    directory = tmp_path_factory.mktemp("javascript")
    os.symlink(os.path.join(deps("javascript"), "node_modules"), directory / "node_modules")

    def run(path, *arguments):
        copied = shutil.copy(path, directory)
        if copied.endswith(".mts"):
            executed(os.path.join(directory, "node_modules", ".bin", "tsc"), *TSC, copied,
                     cwd=directory)
            copied = copied.removesuffix(".mts") + ".mjs"
        return executed("node", copied, *arguments)

    run.directory = directory
    return run


def version(package):
    with open(os.path.join(locked.HERE, "javascript", "package-lock.json"), encoding="utf-8") as f:
        return json.load(f)["packages"][f"node_modules/{package}"]["version"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, javascript, checked, name):
    assert_said(javascript(sample("javascript", f"{name}.mjs"), broker.amqp_url), SAID[name])
    checked("amqplib", version("amqplib"), WHAT[name])


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("package", ["rascal", "rabbitmq-client"])
def test_the_sample_of_a_library(broker, javascript, checked, package):
    name = f"with_{package.replace('-', '_')}.mjs"
    assert_said(javascript(sample("javascript", name), broker.amqp_url), [*SAID_WITH, *SAID["retry"]])
    checked(package, version(package), *WHAT.values())


@pytest.mark.usefixtures("alone")
def test_nestjs(broker, javascript, checked):
    """Compiled from TypeScript, as its users do. Order 2 is cancelled, order 3 has a wrong delay."""
    assert_said(javascript(sample("javascript", "nestjs.mts"), broker.amqp_url), [
        "order 3: message nacked", r"order 4, [\d.]+ s later, x-delay: undefined",
        r"order 1, [2-9]\d*\.\d s later, x-delay: -2000"])
    checked("NestJS", version("@nestjs/microservices"), "delay", "wrong delay", "cancel")


@pytest.mark.skipif(OLD, reason="the sample has RabbitMQ 4's addresses")
@pytest.mark.usefixtures("alone")
def test_amqp_1_0(broker, client, javascript, checked):
    declare(client)
    declare_retry(client)
    assert_said(javascript(sample("javascript", "with_rhea.mjs"), broker.amqp_url), SAID_AMQP10)
    checked("rhea (AMQP 1.0)", version("rhea"), *WHAT.values())


@pytest.mark.usefixtures("alone")
def test_web_stomp(broker, client, javascript, checked):
    """The ERROR frame with the reason is lost: the connection is closed before it is sent."""
    declare(client)
    url = f"ws://127.0.0.1:{broker.plugin_ports['rabbitmq_web_stomp']}/ws"
    assert_said(javascript(sample("javascript", "with_stompjs.mjs"), url),
                ["5m: the connection is closed, 1000", *SAID_WITH[3:]])
    checked("stompjs (Web STOMP)", version("@stomp/stompjs"), "delay", "wrong delay", "cancel")


@pytest.mark.skipif(OLD, reason="RabbitMQ 3.10 does not speak MQTT 5")
def test_mqtt_5(brokers, javascript, checked):
    """A subscriber sees the user property as it was published."""
    broker = brokers("mqtt", conf=["mqtt.exchange = later"],
                     enable=(PLUGIN, "rabbitmq_mqtt"))
    client = Client(broker)
    client.delayed("topic", name="later", keep=True)
    client.close()
    url = f"mqtt://guest:guest@127.0.0.1:{broker.plugin_ports['rabbitmq_mqtt']}"
    assert_said(javascript(sample("javascript", "with_mqtt.mjs"), url),
                ["5m: the connection is closed", SAID_WITH[3], "x-delay: 6000"])
    eventually(broker.log, lambda log: 'header x-delay is the string "5m"' in log)
    broker.end()
    checked("MQTT.js (MQTT 5)", version("mqtt"), "delay", "wrong delay", "cancel")


# Which types each writes.
TYPES = {"amqplib": "bBsuIilfdDTVtSAFx", "rascal": "bBsuIilfdDTVtSAFx", "rabbitmq-client": "IldVtSAF",
         "rhea": "bBsuIilfdTtSAFx"}
# And as what. rhea's bytes are strings by the broker's conversion of AMQP 1.0.
BECOMES = {"rhea": {"x": "S"}, "rabbitmq-client": {"I": "bsI"}}


def values(package):
    """Strings are UTF-8, and the room for headers is 64 KiB."""
    chosen = [case for case in header_values.cases(TYPES.get(package, "S"))
              if case.letter != "S" or isinstance(case.value, str) and len(case.value) < 50_000]
    # It takes a double that is a whole number for an integer, and fails if that has more than 64 bits.
    return [case for case in chosen
            if package != "rabbitmq-client" or case.name != "huge negative double"]


def values_sent(javascript, tmp_path, package, url, exchange, chosen):
    return json.loads(javascript(
        os.path.join(locked.HERE, "javascript", "header_values.mjs"), package, url, exchange,
        header_values.written(tmp_path / "cases", chosen)))


@pytest.mark.parametrize("package", [
    "amqplib", "rascal", "rabbitmq-client",
    pytest.param("rhea", marks=pytest.mark.skipif(OLD, reason="RabbitMQ 4's addresses"))])
def test_header_values(broker, client, javascript, checked, tmp_path, package):
    exchange, queue = client.delayed_and_queue()
    chosen = values(package)
    told = values_sent(javascript, tmp_path, package, broker.amqp_url, exchange, chosen)
    header_values.check(client, queue, chosen, told, BECOMES.get(package, ()))
    checked("rhea (AMQP 1.0)" if package == "rhea" else package, version(package), "header values")


def test_header_values_of_web_stomp(broker, client, javascript, checked, tmp_path):
    exchange, queue = client.delayed_and_queue()
    chosen = values("stompjs")
    url = f"ws://127.0.0.1:{broker.plugin_ports['rabbitmq_web_stomp']}/ws"
    told = values_sent(javascript, tmp_path, "stompjs", url, exchange, chosen)
    header_values.check(client, queue, chosen, told, refusal="closed")
    checked("stompjs (Web STOMP)", version("@stomp/stompjs"), "header values")


@pytest.mark.skipif(OLD, reason="RabbitMQ 3.10 does not speak MQTT 5")
def test_header_values_of_mqtt_5(brokers, javascript, checked, tmp_path):
    broker = brokers("mqtt-values", conf=["mqtt.exchange = later"], enable=(PLUGIN, "rabbitmq_mqtt"))
    client = Client(broker)
    queue = client.queue((client.delayed("topic", name="later"), "k"))
    chosen = values("mqtt")
    url = f"mqtt://guest:guest@127.0.0.1:{broker.plugin_ports['rabbitmq_mqtt']}"
    told = values_sent(javascript, tmp_path, "mqtt", url, "later", chosen)
    header_values.check(client, queue, chosen, told, refusal="closed")
    client.close()
    broker.end()
    checked("MQTT.js (MQTT 5)", version("mqtt"), "header values")


# What a user is told.
LOST = {"amqplib": r"channel closed\nconnection error: .*, connection closed",
        "rascal": "error: .*", "rabbitmq-client": "(ECONNRESET|CONN_CLOSE): .*", "rhea": "disconnected"}


@pytest.mark.parametrize("package", [
    "amqplib", "rascal", "rabbitmq-client",
    pytest.param("rhea", marks=pytest.mark.skipif(OLD, reason="RabbitMQ 4's addresses"))])
def test_a_broker_that_is_lost(brokers, javascript, checked, package):
    told = lost.told(brokers, f"javascript-{package}", "node", shutil.copy(
        os.path.join(locked.HERE, "javascript", "lost.mjs"), javascript.directory), package)
    assert re.fullmatch(LOST[package], told), told
    checked("rhea (AMQP 1.0)" if package == "rhea" else package, version(package), "broker lost")


def test_a_broker_that_is_lost_with_nestjs(brokers, javascript, checked):
    told = lost.told(brokers, "javascript-nestjs", "node", shutil.copy(
        os.path.join(locked.HERE, "javascript", "lost.mjs"), javascript.directory), "nestjs", says_sent=False)
    assert told == "error: channel closed"
    checked("NestJS", version("@nestjs/microservices"), "broker lost")


# Neither has an outcome for what had none: the connection is closed, and that is all.
@pytest.mark.parametrize("package, told, name, plugin, url", [
    pytest.param("mqtt", "closed", "MQTT.js (MQTT 5)", "rabbitmq_mqtt", "mqtt://guest:guest@127.0.0.1:{}",
                 marks=pytest.mark.skipif(OLD, reason="RabbitMQ 3.10 does not speak MQTT 5")),
    ("@stomp/stompjs", "closed: 1006", "stompjs (Web STOMP)", "rabbitmq_web_stomp", "ws://127.0.0.1:{}/ws")])
def test_a_broker_of_other_protocols_that_is_lost(brokers, javascript, checked, package, told, name, plugin,
                                                  url):
    said = lost.told(
        brokers, f"javascript-{plugin}", "node",
        shutil.copy(os.path.join(locked.HERE, "javascript", "lost.mjs"), javascript.directory),
        package.rpartition("/")[2], enable=[plugin],
        url=lambda broker: url.format(broker.plugin_ports[plugin]))
    assert said == told
    checked(name, version(package), "broker lost")
