# SPDX-License-Identifier: MPL-2.0
"""A broker that is killed while confirms are out: what each client tells its user, and that all that it
had confirmed is there afterwards."""

import os
import subprocess

import pytest

import locked
from client import Client
from conftest import EXAMPLES, plugins
from management import WITHIN, Management, eventually
from private_broker import REPOSITORY, default_series

PROGRAM = os.path.join(REPOSITORY, "tests", "clients", "python", "lost_broker.py")
SAMPLES = os.path.join(EXAMPLES, "python")

# The exception, or one that it is a kind of; and the exchange, where the client has one of its own.
TOLD = {"pika": ("pika.exceptions.AMQPConnectionError", None),
        "aio-pika": ("builtins.ConnectionError", None),
        "kombu": ("builtins.OSError", None),
        "celery": ("kombu.exceptions.OperationalError", "celery.later"),
        "dramatiq": ("dramatiq.errors.ConnectionClosed", "dramatiq.later"),
        "taskiq": ("taskiq.exceptions.SendTaskError", "lost.taskiq.plugin_delay"),
        "faststream": ("builtins.ConnectionError", None),
        **({} if default_series() == "3.10" else
           {"proton": ("proton._exceptions.ConnectionException", None)})}


@pytest.fixture(scope="module")
def own(brokers):
    return brokers("lost", enable=plugins())


@pytest.mark.parametrize("name", TOLD)
def test_a_broker_is_lost_while_confirms_are_out(own, deps, checked, name):
    told, exchange = TOLD[name]
    client = Client(own)
    client.delayed(name="lost", keep=True)
    client.connection.close()
    management = Management(own)
    before = 0 if exchange else management.messages_delayed("lost")
    program = subprocess.Popen(
        [os.path.join(deps("python"), "bin", "python"), PROGRAM, name, own.amqp_url, "lost"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "QUEUE": "lost.celery",
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
    eventually(lambda: management.messages_delayed(exchange or "lost") - before,
               lambda there: there - int(confirmed) in (0, 1, 2))
    package = {"proton": "python-qpid-proton"}.get(name, name)
    checked("Celery" if name == "celery" else package, locked.version("python", package),
            "broker lost")
