# SPDX-License-Identifier: MPL-2.0
"""Fixtures: a broker that most tests share, brokers of one's own for tests that break theirs."""

import subprocess
import uuid

import pytest

import programs
from browser import Browser, Page
from client import Client
from management import quoted
from node import HOUR_MS
from shared_fixtures import (PLUGIN, PLUGIN_DIRS, QUICK_STATISTICS,  # noqa: F401
                             another_client, brokers, brokers_of_a_file, brokers_of_a_test, client, clock,
                             deadline, management, pytest_fixture_setup)
from time_limit import pytest_runtest_setup  # noqa: F401


@pytest.fixture(scope="session")
def broker(brokers):
    """The broker that most tests share: none of them may harm it."""
    return brokers("shared", enable=(PLUGIN, "rabbitmq_management",
                                     "rabbitmq_consistent_hash_exchange", "rabbitmq_prometheus",
                                     "rabbitmq_stomp"), lasting=True)


@pytest.fixture(scope="session")
def node_modules():
    programs.install()


@pytest.fixture(scope="session")
def browser():
    programs.install(programs.UI)
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def guests_page(browser, broker):
    return Page(browser, broker)


@pytest.fixture
def page(guests_page):
    """The pages as guest sees them. A test must not leave an error in them, nor a question unread."""
    guests_page.asked(True)
    yield guests_page
    assert guests_page.errors() == []
    assert guests_page.texts("#debug p") == []
    assert guests_page.asked(True) == []


@pytest.fixture
def vhost(management):
    """A vhost of the test's own, with a name that has to be quoted everywhere."""
    name = f"v {uuid.uuid4().hex[:8]}/'é"
    url = quoted(name)
    assert management.request("PUT", f"vhosts/{url}", {})[0] in (201, 204)
    assert management.request("PUT", f"permissions/{url}/guest",
                              {"configure": ".*", "write": ".*", "read": ".*"})[0] in (201, 204)
    yield name
    management.request("DELETE", f"vhosts/{url}")


@pytest.fixture
def local(broker, vhost):
    """A client in that vhost."""
    client = Client(broker, vhost)
    yield client
    client.connection.close()


@pytest.fixture
def holding(client):
    """An exchange that holds m0 to m5, due in one to six hours, with the keys k and other in turns;
    and the queue that gets those of key k."""
    return hold_six(client, lambda n: {"headers": {"n": n}, "message_id": f"n{n}"})


def hold_six(client, properties):
    """What `holding` is; properties(n) are those of message n."""
    exchange, queue = client.delayed_and_queue()
    for n in range(6):
        client.publish(exchange, "k" if n % 2 == 0 else "other", f"m{n}".encode(),
                       delay=(n + 1) * HOUR_MS, **properties(n))
    return exchange, queue


@pytest.fixture
def policy(management):
    """policy(exchange, definition, key=value...): gives an exchange a policy, or takes it away if
    there is nothing in it; the status and the answer. What was set is deleted afterwards."""
    made = set()

    def put(exchange, definition=None, kind="policies", **more):
        path = f"{kind}/%2F/{quoted(exchange)}"
        wanted = {**(definition or {}), **{name.replace("_", "-"): value
                                           for name, value in more.items()}}
        if not wanted:
            made.discard(path)
            return management.request("DELETE", path)
        status, answer = management.request("PUT", path, {
            "pattern": f"^{exchange}$", "definition": wanted,
            "apply-to": "exchanges" if kind == "policies" else "all"})
        if status in (201, 204):
            made.add(path)
        return status, answer

    yield put
    for path in made:
        management.request("DELETE", path)


@pytest.fixture
def mountpoint(tmp_path):
    """A small file system of its own: mount(options) mounts it, or mounts it anew; a broker with
    mounts of its own has to be named then."""
    path = tmp_path / "mounted"
    path.mkdir()
    mounted = []

    def mount(options, broker=None):
        again = ",remount" if mounted else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options + again, "tmpfs", str(path)],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0 and not mounted:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        if broker is not None and broker.chroot:
            subprocess.run(["nsenter", "--target", str(broker.pid), "--mount", "mount", "-o",
                            f"{options},remount,bind", broker.chroot + str(path)], check=True)
        mounted.append(options)
        return str(path)

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)
