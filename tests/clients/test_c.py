# SPDX-License-Identifier: MPL-2.0
"""C's client, as Debian packages it: what the samples print is what happened."""

import os

import pytest

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
    checked("librabbitmq", version(executed), "lost broker")
