# SPDX-License-Identifier: MPL-2.0
"""The examples do what they say."""

import os
import re
import shutil
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
    "retry_after": ["order 1, attempt 1: busy, again in 500 ms", "order 1, attempt 2: busy, again in 500 ms",
                    "order 1, attempt 3: done"],
    "limits": ["refused: job 4", "refused: job 5", "done: job 1", "done: job 2", "done: job 3"],
}


# What README.md shows: by the language of the block there, the file and what runs it.
FIRST = {
    "python": ("python/first.py", ["/usr/bin/python3"]),
    "javascript": ("javascript/first.mjs", ["node"]),
    "java": ("java/First.java", ["java", "-cp", ":".join(JAVA_CLASSES)]),
    "go": ("go/first/main.go", ["go", "run"]),
}


def output(broker, command, *path, directory=None):
    done = subprocess.run(
        [*command, os.path.join(directory or EXAMPLES, *path), broker.amqp_url],
        capture_output=True, text=True, timeout=300, check=False, cwd=directory,
        env={**os.environ, "NODE_PATH": os.path.join(CLIENTS, "node_modules")})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", OUTPUT)
@pytest.mark.parametrize("language", PROGRAMS)
def test_an_example_does_what_it_says(broker, node_modules, language, name):
    command, ending = PROGRAMS[language]
    assert output(broker, command, language, name + ending) == OUTPUT[name]


@pytest.mark.parametrize("name, file", [("retry", "Retry.java"), ("retry_after", "RetryAfter.java")])
def test_a_java_example_does_what_it_says(broker, name, file):
    command = ["java", "-cp", ":".join(JAVA_CLASSES)]
    assert output(broker, command, "java", file) == OUTPUT[name]


def test_two_ways_of_trying_again(broker):
    """The queue's own way takes a broker that has it."""
    by_exchange, by_queue = output(broker, ["/usr/bin/python3"], "python", "retry_in_queue.py")
    assert by_exchange == (
        "by the exchange: delivered 4 times, with pauses, then parked: rejected, count 4")
    assert "by the queue: delivered 4 times" in by_queue
    if default_series() == "4.3":
        assert by_queue.endswith("with pauses, then parked: delivery_limit, count 1")


@pytest.fixture
def first(client, tmp_path):
    """Runs a program of FIRST on a copy of its directory, and deletes what it declared."""
    def run(broker, language):
        path, command = FIRST[language]
        directory = shutil.copytree(os.path.join(EXAMPLES, os.path.dirname(path)),
                                    tmp_path / "program")
        # A module looks for what it imports in the directories above it.
        os.symlink(os.path.join(CLIENTS, "node_modules"), tmp_path / "node_modules")
        lines = output(broker, command, os.path.basename(path), directory=directory)
        ((_, seconds),) = [re.fullmatch(r"(hello), (\d+\.\d) s later", line).groups()
                           for line in lines]
        assert float(seconds) >= 4.9

    yield run
    channel = client.connection.channel()
    channel.exchange_delete("later")
    channel.queue_delete("work")


def test_the_first_message_in_python(broker, first):
    first(broker, "python")


def test_the_first_message_in_javascript(broker, node_modules, first):
    first(broker, "javascript")


def test_the_first_message_in_java(broker, first):
    first(broker, "java")


def test_the_first_message_in_go(broker, first):
    directory = os.path.join(EXAMPLES, "go", "first")
    fetched = subprocess.run(["go", "mod", "download"], cwd=directory, capture_output=True,
                             text=True, timeout=300, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"a Go module cannot be had: {fetched.stderr.strip()}")
    first(broker, "go")


@pytest.mark.parametrize("language", FIRST)
def test_readme_shows_the_program(language):
    """Without its comment at the head; and there is no other block."""
    with open(os.path.join(EXAMPLES, FIRST[language][0]), encoding="utf-8") as f:
        program = re.sub(r"\A(?:(?:#|//).*\n|\n)+", "", f.read())
    with open(os.path.join(REPOSITORY, "README.md"), encoding="utf-8") as f:
        blocks = re.findall(r"^```(.*)\n((?s:.*?))^```$", f.read(), re.MULTILINE)
    assert [block for shown_in, block in blocks if shown_in == language] == [program]
    assert {shown_in for shown_in, _ in blocks} == set(FIRST)


def test_every_example_is_tested():
    for language, (_, ending) in PROGRAMS.items():
        names = {os.path.splitext(file)[0] for file in os.listdir(os.path.join(EXAMPLES, language))
                 if file.endswith(ending)}
        assert names - {"example", "first", "retry_in_queue"} == set(OUTPUT)
