# SPDX-License-Identifier: MPL-2.0
"""The examples do what they say."""

import os
import subprocess

import pytest

from private_broker import REPOSITORY
from programs import CLIENTS

EXAMPLES = os.path.join(REPOSITORY, "examples")
PROGRAMS = {"python": (["/usr/bin/python3"], ".py"), "javascript": (["node"], ".js")}
OUTPUT = {
    "debounce": ["reindex report.odt: version 5", "reindex letter.odt: version 1"],
    "deduplicate": ["remind of invoice 17, attempt 1", "remind of invoice 18, attempt 1"],
    "cancel": ["expired: order 1", "expired: order 3"],
    "overflow": ["now: lunch", "now: dentist", "now: tea"],
    "limits": ["refused: job 4", "refused: job 5", "done: job 1", "done: job 2", "done: job 3"],
}


@pytest.mark.parametrize("name", OUTPUT)
@pytest.mark.parametrize("language", PROGRAMS)
def test_an_example_does_what_it_says(broker, node_modules, language, name):
    command, ending = PROGRAMS[language]
    done = subprocess.run(
        [*command, os.path.join(EXAMPLES, language, name + ending), broker.amqp_url],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "NODE_PATH": os.path.join(CLIENTS, "node_modules")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == OUTPUT[name]


def test_every_example_is_tested():
    for language, (_, ending) in PROGRAMS.items():
        names = {os.path.splitext(file)[0] for file in os.listdir(os.path.join(EXAMPLES, language))
                 if file.endswith(ending)}
        assert names - {"example"} == set(OUTPUT)
