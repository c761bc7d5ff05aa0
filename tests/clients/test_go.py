# SPDX-License-Identifier: MPL-2.0
"""Go's clients: what the samples print is what happened."""

import json
import os
import re

import pytest

import header_values
import locked
import lost
from private_broker import default_series
from samples import (SAID, SAID_AMQP10, SAID_UNTOLD, WHAT, assert_said, declare, declare_retry, sample)

OLD = default_series() == "3.10"
# The clients for AMQP 1.0, by what programs call them: the client's name here, and the module.
AMQP10 = {"go-amqp": ("Azure/go-amqp (AMQP 1.0)", "github.com/Azure/go-amqp"),
          "rabbitmqamqp": ("rabbitmq-amqp-go-client (AMQP 1.0)",
                           "github.com/rabbitmq/rabbitmq-amqp-go-client")}


@pytest.fixture(scope="module")
def go(deps, executed):
    """go(file, argument...): runs a program with the modules that tests/clients/go locks."""
    directory = deps("go")

    def run(path, *arguments):
        return executed("go", "run", path, *arguments, cwd=directory)

    return run


def version(module):
    with open(os.path.join(locked.HERE, "go", "go.mod"), encoding="utf-8") as f:
        return re.search(rf"^\s*{re.escape(module)} v(\S+)", f.read(), re.MULTILINE).group(1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, go, checked, name):
    assert_said(go(sample("go", f"{name}.go"), broker.amqp_url), SAID[name])
    checked("amqp091-go", version("github.com/rabbitmq/amqp091-go"), WHAT[name])


@pytest.mark.usefixtures("alone")
def test_watermill(broker, go, checked):
    assert_said(go(sample("go", "with_watermill.go"), broker.amqp_url), SAID_UNTOLD)
    checked("Watermill", version("github.com/ThreeDotsLabs/watermill-amqp/v3"),
            "delay", "wrong delay", "cancel")


@pytest.mark.usefixtures("alone")
def test_machinery(broker, go, checked):
    """It logs to standard output, too."""
    output = go(sample("go", "with_machinery.go"), broker.amqp_url)
    lines = [line for line in output.splitlines() if re.match("hello, |5m ", line)]
    assert lines[1:] == ["5m refused: true"], output
    assert float(re.fullmatch(r"hello, ([\d.]+) s later", lines[0]).group(1)) >= 5.9
    checked("Machinery", version("github.com/RichardKnop/machinery/v2"),
            "delay", "wrong delay", "cancel")


@pytest.mark.skipif(OLD, reason="the sample has RabbitMQ 4's addresses")
@pytest.mark.usefixtures("alone")
def test_amqp_1_0(broker, client, go, checked):
    declare(client)
    declare_retry(client)
    assert_said(go(sample("go", "with_amqp10.go"), broker.amqp_url.removesuffix("/%2F")), SAID_AMQP10)
    name, module = AMQP10["go-amqp"]
    checked(name, version(module), *WHAT.values())


@pytest.mark.skipif(OLD, reason="rabbitmq-amqp-go-client needs RabbitMQ 4")
@pytest.mark.usefixtures("alone")
def test_rabbitmqs_client_for_amqp_1_0(broker, go, checked):
    assert_said(go(sample("go", "with_rabbitmqamqp.go"), broker.amqp_url.removesuffix("/%2F")), SAID_AMQP10)
    name, module = AMQP10["rabbitmqamqp"]
    checked(name, version(module), *WHAT.values())


def test_header_values(broker, client, go, checked, tmp_path):
    chosen = header_values.cases("bBsuIilfdDTVtSAFx")
    exchange, queue = client.delayed_and_queue()
    told = go(os.path.join(locked.HERE, "go", "header_values.go"), broker.amqp_url,
                 exchange, header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told))
    checked("amqp091-go", version("github.com/rabbitmq/amqp091-go"), "header values")


@pytest.mark.skipif(OLD, reason="it has RabbitMQ 4's addresses")
@pytest.mark.parametrize("package", AMQP10)
def test_header_values_of_amqp_1_0(broker, client, go, checked, tmp_path, package):
    """The broker makes a string of the binary that it converts for AMQP 0-9-1."""
    chosen = [case for case in header_values.cases("bBsuIilfdTtSAFx")
              if case.letter != "S" or isinstance(case.value, str)]
    exchange, queue = client.delayed_and_queue()
    told = go(os.path.join(locked.HERE, "go", "header_values_amqp10.go"), package,
              broker.amqp_url.removesuffix("/%2F"), exchange,
              header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told), {"x": "S"})
    name, module = AMQP10[package]
    checked(name, version(module), "header values")


def test_a_broker_that_is_lost(brokers, deps, checked):
    lines = lost.told(brokers, "go", "go", "run",
                      os.path.join(locked.HERE, "go", "lost.go"), cwd=deps("go")).splitlines()
    assert lines == ["confirmed: false", "closed: 501"]
    checked("amqp091-go", version("github.com/rabbitmq/amqp091-go"), "broker lost")


@pytest.mark.parametrize("name, module, wanted", [
    ("Watermill", "github.com/ThreeDotsLabs/watermill-amqp/v3", "delivery not confirmed for message [1]"),
    ("Machinery", "github.com/RichardKnop/machinery/v2",
     "Publish message error: Failed delivery of delivery tag: 0")])
def test_a_broker_that_is_lost_with_a_framework(brokers, deps, checked, name, module, wanted):
    told = lost.told(brokers, f"go-{name.lower()}", "go", "run",
                     os.path.join(locked.HERE, "go", f"lost_{name.lower()}.go"), cwd=deps("go"),
                     says_sent=False)
    assert told == wanted
    checked(name, version(module), "broker lost")


@pytest.mark.skipif(OLD, reason="it has RabbitMQ 4's addresses")
@pytest.mark.parametrize("package, program", [("go-amqp", "amqp10"), ("rabbitmqamqp", "rabbitmqamqp")])
def test_a_broker_that_is_lost_with_amqp_1_0(brokers, deps, checked, package, program):
    told = lost.told(brokers, f"go-{package}", "go", "run",
                     os.path.join(locked.HERE, "go", f"lost_{program}.go"), cwd=deps("go"))
    assert told == "connection lost: true"
    name, module = AMQP10[package]
    checked(name, version(module), "broker lost")
