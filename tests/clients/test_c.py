# SPDX-License-Identifier: MPL-2.0
"""C's client, as Debian packages it: what the samples print is what happened."""

import os

import pytest

import header_values
import locked
import lost
from samples import SAID, WHAT, assert_said, sample

COMPILE = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
           "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def c(executed, tmp_path_factory):
    """c(file): the program, compiled with sanitizers."""
    directory = tmp_path_factory.mktemp("c")

    def compiled(path):
        program = os.path.join(directory, os.path.basename(path).removesuffix(".c"))
        executed(*COMPILE, "-I", sample("c", ""), "-o", program, path, "-lrabbitmq")
        return program

    return compiled


def version(executed):
    return executed("dpkg-query", "-W", "-f", "${source:Upstream-Version}", "librabbitmq-dev")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, c, executed, checked, name):
    assert_said(executed(c(sample("c", f"{name}.c")), broker.amqp_url), SAID[name])
    checked("librabbitmq", version(executed), WHAT[name])


def test_a_broker_that_is_lost(brokers, c, executed, checked):
    lines = lost.told(brokers, "c", c(os.path.join(locked.HERE, "c", "lost.c"))).splitlines()
    assert lines in (["a socket error occurred"], ["connection closed unexpectedly"])
    checked("librabbitmq", version(executed), "broker lost")


def line_of(case):
    """A case as the program reads it."""
    value = case.value
    if case.letter in "SxD" and isinstance(value, list):
        value = bytes(value) if case.letter in "Sx" else "{} {}".format(*value)
    elif case.letter == "F":
        value = value["ms"]
    elif case.letter == "A":
        (value,) = value
    elif case.letter in "tV":
        value = int(value or 0)
    value = value if isinstance(value, bytes) else str(value).encode()
    copy = int(case.for_program["copy"])
    return f"{case.letter} {copy} {case.name.encode().hex()} {value.hex()}\n"


def test_header_values(broker, client, c, executed, checked, tmp_path):
    chosen = header_values.cases("bBsuIilfdDTVtSAFx")
    (tmp_path / "cases").write_text("".join(map(line_of, chosen)), encoding="ascii")
    exchange, queue = client.delayed_and_queue()
    output = executed(c(os.path.join(locked.HERE, "c", "header_values.c")), broker.amqp_url, exchange,
                      str(tmp_path / "cases"))
    told = dict(line.split("\t") for line in output.splitlines())
    header_values.check(client, queue, chosen, {name: said or None for name, said in told.items()})
    checked("librabbitmq", version(executed), "header values")
