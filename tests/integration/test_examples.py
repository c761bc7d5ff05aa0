# SPDX-License-Identifier: MPL-2.0
"""The examples do what they say."""

import os
import subprocess

import pytest

from private_broker import REPOSITORY, default_series
from programs import CLIENTS
from test_clients import JAVA_CLASSES

EXAMPLES = os.path.join(REPOSITORY, "examples")
PROGRAMS = {"python": (["/usr/bin/python3"], ".py"), "javascript": (["node"], ".js")}
OUTPUT = {
    "debounce": ["reindex report.odt: version 5", "reindex letter.odt: version 1"],
    "deduplicate": ["remind of invoice 17, attempt 1", "remind of invoice 18, attempt 1"],
    "cancel": ["expired: order 1", "expired: order 3"],
    "overflow": ["now: lunch", "now: dentist", "now: tea"],
    "retry": ["order 1, attempt 1: no answer", "order 1, attempt 2: no answer",
              "order 1, attempt 3: done",
              *(f"order 2, attempt {n}: no answer" for n in (1, 2, 3, 4)),
              "order 2 is parked: attempts_used_up, 4 times rejected"],
    "limits": ["refused: job 4", "refused: job 5", "done: job 1", "done: job 2", "done: job 3"],
}


def output(broker, command, *path):
    done = subprocess.run(
        [*command, os.path.join(EXAMPLES, *path), broker.amqp_url],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "NODE_PATH": os.path.join(CLIENTS, "node_modules")})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", OUTPUT)
@pytest.mark.parametrize("language", PROGRAMS)
def test_an_example_does_what_it_says(broker, node_modules, language, name):
    command, ending = PROGRAMS[language]
    assert output(broker, command, language, name + ending) == OUTPUT[name]


def test_the_java_example_does_what_it_says(broker):
    command = ["java", "-cp", ":".join(JAVA_CLASSES)]
    assert output(broker, command, "java", "Retry.java") == OUTPUT["retry"]


def test_two_ways_of_trying_again(broker):
    """The queue's own way takes a broker that has it."""
    by_exchange, by_queue = output(broker, ["/usr/bin/python3"], "python", "retry_in_queue.py")
    assert by_exchange == (
        "by the exchange: delivered 4 times, with pauses, then parked: rejected, count 4")
    assert "by the queue: delivered 4 times" in by_queue
    if default_series() == "4.3":
        assert by_queue.endswith("with pauses, then parked: delivery_limit, count 1")


def test_every_example_is_tested():
    for language, (_, ending) in PROGRAMS.items():
        names = {os.path.splitext(file)[0] for file in os.listdir(os.path.join(EXAMPLES, language))
                 if file.endswith(ending)}
        assert names - {"example", "retry_in_queue"} == set(OUTPUT)
