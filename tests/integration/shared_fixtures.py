# SPDX-License-Identifier: MPL-2.0
"""Fixtures that the tests of clients (tests/clients) have too. A conftest imports them, and has a
fixture `broker` itself."""

import collections
import os
import shutil
import tempfile

import pytest

import kept_rabbitmqctl
from client import Client
from management import Management
from node import set_clock
from private_broker import PrivateBroker, default_series, dist_of
from time_limit import time_limit

# The suite also runs against another implementation of the exchange type, for comparison:
# DELAY_PLUGIN names the plugin and DELAY_PLUGIN_DIR the directory that holds it.
PLUGIN = os.environ.get("DELAY_PLUGIN", "rabbitmq_delay_wheel")
PLUGIN_DIRS = [os.environ.get("DELAY_PLUGIN_DIR") or dist_of(default_series())]

# Statistics every second, so that a test which reads rates need not wait for five.
QUICK_STATISTICS = ["collect_statistics_interval = 1000"]

LONGEST_TEST_SECONDS = 900


@pytest.fixture(autouse=True)
def deadline():
    with time_limit(LONGEST_TEST_SECONDS):
        yield


# The scopes of the fixtures that are being set up, the innermost one last (pytest does not say it here of a session's);
# and, by theirs, the brokers that are not for all of the session.
_scopes = []
_running = collections.defaultdict(list)


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef):
    _scopes.append(fixturedef.scope)
    yield
    _scopes.pop()


def _end_all_of(scope):
    for broker in _running.pop(scope, ()):
        broker.end()


@pytest.fixture(autouse=True)
def brokers_of_a_test():
    yield
    _end_all_of("function")


@pytest.fixture(autouse=True, scope="module")
def brokers_of_a_file():
    yield
    _end_all_of("module")


@pytest.fixture(scope="session")
def brokers():
    """Makes brokers, which are ended with the test or file whose fixture they are made in, or are `lasting`: one
    that does nothing takes up a hundredth of a processor. They are deleted with the session; KEEP_BROKERS=1 in the
    environment leaves their directories, logs included."""
    root = tempfile.mkdtemp(prefix="delay-wheel-tests-")
    kept_rabbitmqctl.compile_into(root)
    made = []

    def make(directory, conf=(), enable=(PLUGIN,), start=True, plugin_dirs=None, lasting=False, **options):
        broker = PrivateBroker(os.path.join(root, directory), plugin_dirs=plugin_dirs or PLUGIN_DIRS,
                               enable=enable, conf=[*QUICK_STATISTICS, *conf], **options)
        broker.keep_rabbitmqctl(root)
        broker.loads_together = True
        made.append(broker)
        if not lasting:
            _running[_scopes[-1] if _scopes else "function"].append(broker)
        if start:
            broker.start()
        return broker

    yield make
    for broker in made:
        broker.end()
    if not os.environ.get("KEEP_BROKERS"):
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def management(broker):
    return Management(broker)


@pytest.fixture
def client(broker):
    client = Client(broker)
    yield client
    client.close()


@pytest.fixture
def clock(broker):
    """clock(ms): steps the clock by which messages are released to so far from the true time. What a
    test publishes for some minutes later stays pending until the test itself makes it due."""
    stepped = []

    def step(offset_ms):
        stepped.append(offset_ms)
        set_clock(broker, offset_ms)

    yield step
    if stepped:
        set_clock(broker, 0)


@pytest.fixture
def another_client(broker):
    client = Client(broker)
    yield client
    client.close()
