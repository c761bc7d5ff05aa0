# SPDX-License-Identifier: MPL-2.0
"""Rust's clients: what the samples print is what happened."""

import json
import os
import re

import pytest

import header_values
import locked
import lost
from private_broker import default_series
from samples import SAID, SAID_AMQP10, SAID_WITH, WHAT, assert_said, declare

FE2O3 = "fe2o3-amqp (AMQP 1.0)"
OLD = default_series() == "3.10"


@pytest.fixture(scope="module")
def rust(deps, executed):
    """rust(program, argument...): runs a program that tests/clients/rust/Cargo.toml names."""
    directory = deps("rust")
    target = os.path.join(directory, "target")
    executed("cargo", "build", "-q", "--locked", "--offline", "--target-dir", target,
             cwd=directory, timeout=2400)

    def run(program, *arguments):
        return executed(os.path.join(target, "debug", program), *arguments)

    run.directory = os.path.join(target, "debug")

    return run


def version(package):
    with open(os.path.join(locked.HERE, "rust", "Cargo.lock"), encoding="utf-8") as f:
        return re.search(rf'^name = "{package}"\nversion = "(.*)"', f.read(),
                         re.MULTILINE).group(1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, rust, checked, name):
    assert_said(rust(name, broker.amqp_url), SAID[name])
    checked("lapin", version("lapin"), WHAT[name])


@pytest.mark.usefixtures("alone")
def test_the_sample_of_amqprs(broker, rust, checked):
    assert_said(rust("with_amqprs", broker.amqp_url.removesuffix("/%2F")), [*SAID_WITH, *SAID["retry"]])
    checked("amqprs", version("amqprs"), *WHAT.values())


@pytest.mark.skipif(OLD, reason="the sample has RabbitMQ 4's addresses")
@pytest.mark.usefixtures("alone")
def test_amqp_1_0(broker, client, rust, checked):
    declare(client)
    client.queue(name="parked", keep=True)
    assert_said(rust("with_fe2o3_amqp", broker.amqp_url.removesuffix("/%2F")),
                [*SAID_AMQP10[:-1], "order 1 is parked"])
    checked(FE2O3, version("fe2o3-amqp"), *WHAT.values())


@pytest.mark.skipif(OLD, reason="the program has RabbitMQ 4's addresses")
def test_a_dead_letter_over_amqp_1_0(broker, client, rust):
    """fe2o3-amqp cannot read what the broker says of a message's deaths, with or without a delayed exchange."""
    client.queue(name="dead")
    queue = client.queue(arguments={
        "x-message-ttl": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
    client.publish("", queue, "x")
    assert rust("dead_letter", broker.amqp_url.removesuffix("/%2F")) == "it cannot be decoded\n"


@pytest.mark.parametrize("package", ["lapin", "amqprs"])
def test_header_values(broker, client, rust, checked, tmp_path, package):
    """amqprs' strings are UTF-8."""
    chosen = [case for case in header_values.cases("bBsuIilfdDTtSAFVx")
              if package == "lapin" or case.letter != "S" or isinstance(case.value, str)]
    exchange, queue = client.delayed_and_queue()
    told = rust("header_values", package, broker.amqp_url.removesuffix("/%2F"), exchange,
                header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told))
    checked(package, version(package), "header values")


@pytest.mark.skipif(OLD, reason="the program has RabbitMQ 4's addresses")
def test_header_values_of_amqp_1_0(broker, client, rust, checked, tmp_path):
    """The broker makes a string of the binary that it converts for AMQP 0-9-1."""
    chosen = [case for case in header_values.cases("bBsuIilfdTtSAFx")
              if case.letter != "S" or isinstance(case.value, str)]
    exchange, queue = client.delayed_and_queue()
    told = rust("header_values", "fe2o3-amqp", broker.amqp_url.removesuffix("/%2F"), exchange,
                header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told), {"x": "S"})
    checked(FE2O3, version("fe2o3-amqp"), "header values")


LOST = {"lapin": "failed: .*", "amqprs": "connection lost: true\nthe callback heard of it: false"}


@pytest.mark.parametrize("package", LOST)
def test_a_broker_that_is_lost(brokers, rust, checked, package):
    told = lost.told(brokers, f"rust-{package}", os.path.join(rust.directory, "lost"), package,
                     url=lambda broker: broker.amqp_url.removesuffix("/%2F"))
    assert re.fullmatch(LOST[package], told), told
    checked(package, version(package), "broker lost")


@pytest.mark.skipif(OLD, reason="the program has RabbitMQ 4's addresses")
def test_a_broker_that_is_lost_with_amqp_1_0(brokers, rust, checked):
    told = lost.told(brokers, "rust-fe2o3", os.path.join(rust.directory, "lost"), "fe2o3-amqp",
                     url=lambda broker: broker.amqp_url.removesuffix("/%2F"))
    assert told == "the session ended: Ok(())\nthe connection failed: true"
    checked(FE2O3, version("fe2o3-amqp"), "broker lost")
