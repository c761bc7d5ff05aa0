# SPDX-License-Identifier: MPL-2.0
"""Go's clients: what the samples print is what happened."""

import os
import re

import pytest

import locked
from samples import SAID, WHAT, assert_said, sample


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
