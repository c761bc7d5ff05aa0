# SPDX-License-Identifier: MPL-2.0
"""Python's clients: what the samples print is what happened."""

import os
import re

import pytest

import locked
from conftest import EXAMPLES

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


@pytest.mark.parametrize("package", ["pika"])
def test_the_sample_of_a_plain_client(broker, python, executed, checked, package):
    name = package.replace("-", "_")
    assert_said(executed(python, os.path.join(SAMPLES, f"with_{name}.py"), broker.amqp_url))
    checked(package, locked.version("python", package), *SAMPLED)
