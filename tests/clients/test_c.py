# SPDX-License-Identifier: MPL-2.0
"""C's client, as Debian packages it: what the samples print is what happened."""

import os

import pytest

from samples import SAID, WHAT, assert_said, sample

COMPILE = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
           "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def c(executed, tmp_path_factory):
    """c(file, argument...): compiles a program, with sanitizers, and runs it."""
    directory = tmp_path_factory.mktemp("c")

    def run(path, *arguments):
        program = os.path.join(directory, os.path.basename(path).removesuffix(".c"))
        executed(*COMPILE, "-o", program, path, "-lrabbitmq")
        return executed(program, *arguments)

    return run


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, c, executed, checked, name):
    assert_said(c(sample("c", f"{name}.c"), broker.amqp_url), SAID[name])
    checked("librabbitmq", executed("dpkg-query", "-W", "-f", "${source:Upstream-Version}",
                                    "librabbitmq-dev"), WHAT[name])
