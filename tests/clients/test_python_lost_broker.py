# SPDX-License-Identifier: MPL-2.0
"""A broker that is killed while confirms are out: what each client tells its user, and that each message
that was confirmed is there afterwards, once."""

import os
import re
import subprocess

import pytest

import locked
from client import Client
from conftest import EXAMPLES, plugins
from management import WITHIN, Management, eventually
from private_broker import REPOSITORY, default_series

PROGRAM = os.path.join(REPOSITORY, "tests", "clients", "python", "lost_broker.py")
SAMPLES = os.path.join(EXAMPLES, "python")

# The exception, or one that it is a kind of; and the exchange, where its name is not the test's to choose.
TOLD = {"pika": ("pika.exceptions.AMQPConnectionError", None),
        "aio-pika": ("builtins.ConnectionError", None),
        "kombu": ("builtins.OSError", None),
        "celery": ("kombu.exceptions.OperationalError", "celery.later"),
        "dramatiq": ("dramatiq.errors.ConnectionClosed", "dramatiq.later"),
        "taskiq": ("taskiq.exceptions.SendTaskError", "lost.taskiq.tasks.plugin_delay"),
        "faststream": ("builtins.ConnectionError", None),
        **({} if default_series() == "3.10" else
           {"proton": ("proton._exceptions.ConnectionException", None)})}


@pytest.fixture(scope="module")
def own(brokers):
    return brokers("lost", enable=plugins())


def numbers(management, exchange):
    """Which messages wait: each has its number as its body, or as a task's only argument."""
    page = management.get(f"delayed-exchanges/%2F/{exchange}/messages?body=true&limit=1000")
    assert page["cursor"] is None
    return sorted(int(re.search(r"\[(\d+)\]|^(\d+)$", message["payload"])[0].strip("[]"))
                  for message in page["items"])


@pytest.mark.parametrize("name", TOLD)
def test_a_broker_is_lost_while_confirms_are_out(own, deps, checked, name):
    told, exchange = TOLD[name]
    client = Client(own)
    client.delayed(name=f"lost.{name}", keep=True)
    client.connection.close()
    program = subprocess.Popen(
        [os.path.join(deps("python"), "bin", "python"), PROGRAM, name, own.amqp_url, f"lost.{name}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "QUEUE": "lost.tasks",
             "QUEUE_TYPE": "classic", "PYTHONPATH": f"{SAMPLES}:{SAMPLES}/celery"})
    try:
        assert program.stdout.readline() == "ready\n", program.stderr.read()
        own.kill9()
        said, complained = program.communicate(timeout=2 * WITHIN)
    finally:
        program.kill()
        program.wait()
        if not own.running():
            own.start()
    kinds, confirmed = said.splitlines()
    assert told in kinds.split(), (kinds, complained)
    # The one that was on its way may be there as well.
    wanted = list(range(int(confirmed)))
    eventually(lambda: numbers(Management(own), exchange or f"lost.{name}"),
               lambda there: there in (wanted, [*wanted, int(confirmed)]))
    package = {"proton": "python-qpid-proton"}.get(name, name)
    checked("Celery" if name == "celery" else package, locked.version("python", package),
            "broker lost")
