# SPDX-License-Identifier: MPL-2.0
"""Fixtures for the tests of client libraries: a broker with every protocol, what a language's lock files
name, and the rows of the table of clients."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                                "integration"))

# pylint: disable=wrong-import-position
import locked  # noqa: E402
import samples  # noqa: E402
from private_broker import REPOSITORY, default_series  # noqa: E402
from shared_fixtures import (PLUGIN, another_client, brokers, brokers_of_a_file,  # noqa: E402,F401
                             brokers_of_a_test, client, clock, deadline, management, pytest_fixture_setup)

EXAMPLES = os.path.join(REPOSITORY, "examples", "clients")
ROWS = os.path.join(REPOSITORY, "_build", "results", "clients-rows")
PROTOCOLS = ["rabbitmq_stomp", "rabbitmq_mqtt", "rabbitmq_web_stomp"]


def plugins():
    """What `broker` enables: AMQP 1.0 is a plugin until 4.0."""
    return (PLUGIN, "rabbitmq_management", *PROTOCOLS,
            *(["rabbitmq_amqp1_0"] if default_series() == "3.10" else []))


@pytest.fixture(scope="session")
def broker(brokers):
    """The broker that most tests share: none of them may harm it."""
    return brokers("clients", enable=plugins(), lasting=True)


@pytest.fixture(scope="session")
def deps():
    """deps(language): the directory in which the packages that tests/clients/LANGUAGE locks are
    installed. The test is skipped if their registry does not answer."""
    def installed(language):
        try:
            return locked.install(language)
        except locked.Unreachable as unreachable:
            pytest.skip(str(unreachable))

    return installed


@pytest.fixture(scope="session")
def executed():
    """executed(*argv, ...): what a program that succeeds writes to standard output."""
    def run(*argv, timeout=600, env=None, **options):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False,
                              env={**os.environ, **(env or {})}, **options)
        assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def alone(management):
    """For samples, which declare under fixed names: what others left is gone, and what they leave."""
    samples.forget(management)
    yield
    samples.forget(management)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call":
        item.has_passed = outcome.get_result().passed


@pytest.fixture
def checked(request):
    """checked(client, version, what...): says of which client the test is, for the table in
    docs/clients/README.md (tests/clients/table). It counts if the test passes."""
    rows = []

    def row(name, version, *what):
        # They are listed in a cell.
        assert not [text for text in (name, version, *what) if "," in text or "|" in text]
        rows.append({"language": request.path.stem.split("_")[1], "client": name,
                     "version": version, "series": default_series(), "what": list(what)})

    yield row
    if rows and getattr(request.node, "has_passed", False):
        os.makedirs(ROWS, exist_ok=True)
        test = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
        with open(os.path.join(ROWS, f"{default_series()}-{test}.json"), "w",
                  encoding="utf-8") as f:
            json.dump(rows, f)
