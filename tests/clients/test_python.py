# SPDX-License-Identifier: MPL-2.0
"""Python's clients: what the samples print is what happened."""

import json
import os
import re

import pytest

import header_values
import locked
from conftest import EXAMPLES
from private_broker import REPOSITORY, default_series

PROGRAMS = os.path.join(REPOSITORY, "tests", "clients", "python")
SAMPLES = os.path.join(EXAMPLES, "python")

# What each sample for a plain client prints.
SAID = [r"hello after ([\d.]+) s, x-delay is -1000", "returned: at once",
        r'refused: 406 .*header x-delay is the string "5m".*', "cancelled: order 17",
        "job 1, attempt 1", "job 1, attempt 2", "job 1, attempt 3",
        "job 1 is parked: attempts_used_up"]
SAMPLED = ("delay", "mandatory", "wrong delay", "cancel", "retry")


@pytest.fixture(scope="module")
def python(deps):
    """The interpreter that has what tests/clients/python locks."""
    return os.path.join(deps("python"), "bin", "python")


def assert_said(output, wanted=SAID):
    lines = output.splitlines()
    assert len(lines) == len(wanted), output
    for line, pattern in zip(lines, wanted):
        assert re.fullmatch(pattern, line), (line, pattern)
    assert float(re.fullmatch(wanted[0], lines[0]).group(1)) >= 1.0


def without(*lines):
    return [said for said in SAID if said not in lines]


# What the frameworks' samples print, as far as it is not what the clients' do.
TASKS = [r"hello after ([\d.]+) s", "refused: .*more than the maximum delay.*", "cancelled",
         "charge order 17, attempt 1", "charge order 17, attempt 2", "charge order 17, attempt 3"]
FRAMEWORKS = {"dramatiq": TASKS, "taskiq": TASKS, "faststream": without("returned: at once")}


@pytest.mark.parametrize("package", ["pika", "aio-pika", "kombu"])
def test_the_sample_of_a_plain_client(broker, python, executed, checked, package):
    name = package.replace("-", "_")
    assert_said(executed(python, os.path.join(SAMPLES, f"with_{name}.py"), broker.amqp_url))
    checked(package, locked.version("python", package), *SAMPLED)


@pytest.mark.parametrize("package", FRAMEWORKS)
def test_the_sample_of_a_framework(broker, management, python, executed, checked, package):
    assert_said(executed(python, os.path.join(SAMPLES, f"with_{package}.py"), broker.amqp_url),
                FRAMEWORKS[package])
    # What was cancelled is gone.
    assert sum(exchange.get("messages_delayed", 0) for exchange in management.get("exchanges/%2F")
               if package in exchange["name"]) == 0
    checked(package, locked.version("python", package), "delay", "wrong delay", "cancel", "retry")


@pytest.mark.skipif(default_series() == "3.10", reason="the sample is for the addresses of RabbitMQ 4")
def test_the_sample_of_proton(broker, client, python, executed, checked):
    exchange, queue = "example.proton", "example.proton"
    client.delayed(name=exchange, arguments={
        "x-delay-retry": "100ms,200ms", "x-delay-retry-parking-exchange": "",
        "x-delay-retry-parking-routing-key": "example.proton.parked"})
    client.queue(name="example.proton.parked")
    client.queue((exchange, "job"), name=queue, arguments={"x-dead-letter-exchange": exchange})
    assert_said(executed(python, os.path.join(SAMPLES, "with_proton.py"),
                         f"amqp://guest:guest@127.0.0.1:{broker.amqp_port}"),
                [said.replace("refused: 406 .*header", "refused: .*annotation") for said in SAID])
    checked("python-qpid-proton", locked.version("python", "python-qpid-proton"), *SAMPLED)


# Which of the types each client writes, and as what: an int goes in as many bytes as it needs.
TYPES = {"pika": ("IlDStAFVTx", {"l": "Il"}),
         "aio-pika": ("IlfDStAFVT", {"I": "bBsuIi", "l": "bBsuIil"}),
         "kombu": ("IldDStAFVTx", {"l": "IlL", "x": "S"})}


@pytest.mark.parametrize("package", TYPES)
def test_header_values(broker, client, python, executed, checked, tmp_path, package):
    letters, becomes = TYPES[package]
    chosen = header_values.cases(letters)
    exchange, queue = client.delayed_and_queue()
    told = executed(python, os.path.join(PROGRAMS, "header_values.py"), package, broker.amqp_url,
                    exchange, header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told), becomes)
    checked(package, locked.version("python", package), "header values")


@pytest.mark.skipif(default_series() == "3.10", reason="it has RabbitMQ 4's addresses")
def test_header_values_of_proton(broker, client, python, executed, checked, tmp_path):
    """The broker makes a string of the binary that it converts for AMQP 0-9-1."""
    chosen = [case for case in header_values.cases("bBsuIilfdTtSAFx")
              if case.letter != "S" or isinstance(case.value, str)]
    exchange, queue = client.delayed_and_queue()
    told = executed(python, os.path.join(PROGRAMS, "header_values_proton.py"),
                    f"amqp://guest:guest@127.0.0.1:{broker.amqp_port}", exchange,
                    header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told), {"x": "S"})
    checked("python-qpid-proton", locked.version("python", "python-qpid-proton"), "header values")
