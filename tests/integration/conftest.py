# SPDX-License-Identifier: MPL-2.0
"""Fixtures: a broker that most tests share, brokers of one's own for tests that break theirs."""

import os
import shutil
import subprocess
import signal
import tempfile
import uuid

import pytest

import kept_rabbitmqctl
import programs
from browser import Browser, Page
from client import Client
from management import Management, quoted
from node import HOUR_MS, set_clock
from private_broker import REPOSITORY, PrivateBroker, default_series

# The suite also runs against another implementation of the exchange type, for comparison:
# DELAY_PLUGIN names the plugin and DELAY_PLUGIN_DIR the directory that holds it.
PLUGIN = os.environ.get("DELAY_PLUGIN", "rabbitmq_delay_wheel")
PLUGIN_DIRS = [os.environ.get("DELAY_PLUGIN_DIR") or
               os.path.join(REPOSITORY, "dist", default_series())]

# Statistics every second, so that a test which reads rates need not wait for five.
QUICK_STATISTICS = ["collect_statistics_interval = 1000"]


# No test waits for ever, whatever is not answered.
LONGEST_TEST_SECONDS = 900


@pytest.fixture(autouse=True)
def deadline():
    def over(*_):
        raise TimeoutError(f"the test takes more than {LONGEST_TEST_SECONDS} s")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(LONGEST_TEST_SECONDS)
    yield
    signal.alarm(0)


@pytest.fixture(scope="session")
def brokers():
    """Makes brokers, which are ended and deleted with the session; KEEP_BROKERS=1 in the
    environment leaves their directories, logs included."""
    root = tempfile.mkdtemp(prefix="delay-wheel-tests-")
    kept_rabbitmqctl.compile_into(root)
    made = []

    def make(directory, conf=(), enable=(PLUGIN,), start=True, plugin_dirs=None, **options):
        broker = PrivateBroker(os.path.join(root, directory), plugin_dirs=plugin_dirs or PLUGIN_DIRS,
                               enable=enable, conf=[*QUICK_STATISTICS, *conf], **options)
        broker.keep_rabbitmqctl(root)
        made.append(broker)
        if start:
            broker.start()
        return broker

    yield make
    for broker in made:
        broker.end()
    if not os.environ.get("KEEP_BROKERS"):
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def broker(brokers):
    """The broker that most tests share: none of them may harm it."""
    return brokers("shared", enable=(PLUGIN, "rabbitmq_management",
                                     "rabbitmq_consistent_hash_exchange", "rabbitmq_prometheus",
                                     "rabbitmq_stomp"))


@pytest.fixture(scope="session")
def management(broker):
    return Management(broker)


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
def another_client(broker):
    client = Client(broker)
    yield client
    client.close()


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
