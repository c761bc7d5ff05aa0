# SPDX-License-Identifier: MPL-2.0
"""Celery with examples/clients/python/celery: tasks wait in the broker, and none is lost."""

import json
import os
import re
import signal
import subprocess
import uuid

import pytest

import locked
from conftest import EXAMPLES, plugins
from management import Management, eventually
from private_broker import REPOSITORY

CELERY = os.path.join(EXAMPLES, "python", "celery")
RECORDED = os.path.join(REPOSITORY, "tests", "clients", "python")
KINDS = pytest.mark.parametrize("kind", ["classic", "quorum"])
VERSION = locked.version("python", "celery")


@pytest.fixture(scope="module")
def python(deps):
    return os.path.join(deps("python"), "bin", "python")


def environment(broker, kind, **more):
    return {**os.environ, "BROKER_URL": broker.amqp_url, "QUEUE_TYPE": kind, "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": CELERY, **more}


class Worker:
    """`celery worker` with its children, as one group of processes."""

    def __init__(self, python, app, directory, env, log):
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [python, "-m", "celery", "-A", app, "worker", "-c", "2", "-l", "INFO",
                 "-n", f"{uuid.uuid4().hex}@localhost"],
                cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True)

    def said(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    def ready(self):
        eventually(self.said, lambda text: " ready." in text)
        return self

    def kill9(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self):
        if self.process.poll() is None:
            self.kill9()


@pytest.fixture
def worker(python, tmp_path):
    """worker(app, directory, env) starts one."""
    made = []

    def start(app, directory, env):
        made.append(Worker(python, app, directory, env, tmp_path / f"worker-{len(made)}.log"))
        return made[-1]

    yield start
    for one in made:
        one.end()


def names_of(management, kind):
    return {row["name"] for row in management.get(f"{kind}/%2F")}


def has_no_ladder(management):
    return not [name for kind in ("queues", "exchanges") for name in names_of(management, kind)
                if name.startswith("celery_delayed")]


@KINDS
def test_the_sample(broker, management, client, python, worker, executed, checked, kind):
    queue = client.queue(name=f"celery-{kind}", arguments={"x-queue-type": kind}
                         if kind == "quorum" else None)
    env = environment(broker, kind, QUEUE=queue)
    running = worker("tasks", CELERY, env).ready()
    cancelled, refused = executed(python, "send.py", cwd=CELERY, env=env).splitlines()
    assert cancelled == "cancelled"
    assert re.match("refused: .*more than the maximum delay", refused)
    done = eventually(running.said, lambda text: all(line in text for line in (
        "remind of a countdown", "remind of an eta", "charge order 17, attempt 3")))
    assert [done.count(f"charge order 17, attempt {n}") for n in (1, 2, 3, 4)] == [1, 1, 1, 0]
    # One that waits is in the exchange, and in no worker.
    assert "a cancelled task" not in done
    eventually(lambda: management.messages_delayed("celery.later"), lambda n: n == 0)
    assert has_no_ladder(management)
    checked("Celery", VERSION, "countdown", "eta", "retry", "cancel", "wrong delay",
            f"{kind} queues")


@KINDS
def test_what_waits_is_in_no_worker(broker, management, client, python, worker, executed, checked,
                                    clock, tmp_path, kind):
    queue = client.queue(name=f"celery-waits-{kind}", arguments={"x-queue-type": kind}
                         if kind == "quorum" else None)
    record = tmp_path / "record"
    env = environment(broker, kind, QUEUE=queue, RECORD=str(record))
    client.delayed(name="celery.later", keep=True)
    before = management.messages_delayed("celery.later")
    running = worker("recorded", RECORDED, env).ready()
    executed(python, "recorded.py", "20", "14400", cwd=RECORDED, env=env)
    eventually(lambda: management.messages_delayed("celery.later"), lambda n: n == before + 20)
    assert "received" not in running.said()
    clock(5 * 3600 * 1000)
    eventually(lambda: numbers(record), lambda done: done == set(range(20)))
    checked("Celery", VERSION, "no task in a worker before it is due")


def lines(record):
    try:
        with open(record, encoding="utf-8") as f:
            return [line.split() for line in f if line.endswith("\n")]
    except FileNotFoundError:
        return []


def numbers(record):
    return {int(number) for number, _, _ in lines(record)}


@KINDS
def test_no_task_is_lost_when_workers_and_the_broker_are_killed(brokers, python, worker, checked,
                                                                tmp_path, kind):
    own = brokers(f"celery-{kind}", enable=plugins())
    record, number = tmp_path / "record", 400
    env = environment(own, kind, QUEUE="celery", RECORD=str(record))
    workers = [worker("recorded", RECORDED, env).ready() for _ in (1, 2)]
    with open(tmp_path / "sender.log", "wb") as log:
        sender = subprocess.Popen([python, "recorded.py", str(number), "20"], cwd=RECORDED, env=env,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                  text=True)
    try:
        sent = 0
        for line in sender.stdout:
            sent = int(line) + 1
            if sent == number // 2:
                own.kill9()
                own.start()
        assert sender.wait() == 0
        assert sent == number
    finally:
        if sender.poll() is None:
            sender.kill()
            sender.wait()
    for part, of in ((1, workers[0]), (2, workers[1])):
        eventually(lambda: len(numbers(record)), lambda n: n >= part * number // 8)
        of.kill9()
    workers = [worker("recorded", RECORDED, env).ready()]
    eventually(lambda: len(numbers(record)), lambda n: n >= number // 2)
    own.kill9()
    own.start()
    eventually(lambda: numbers(record), lambda done: done == set(range(number)))
    assert [line for line in lines(record) if float(line[2]) < float(line[1])] == []
    assert has_no_ladder(Management(own))
    checked("Celery", VERSION, "workers and broker killed: no task lost")
    own.end()


def test_every_way_to_say_when_is_heard(broker, management, client, python, executed, checked):
    sent, refused, to_be_refused = json.loads(executed(
        python, "celery_ways.py", cwd=RECORDED, env=environment(broker, "classic")))
    assert set(refused) == set(to_be_refused), refused
    assert all("has to be routed to a queue" in text for text in refused.values())
    pending = broker.rows("list_delayed_messages", "celery.later", "id", "key", "due", "routing_keys")
    keys = [row["key"] for row in pending]
    bound = {(row["destination"], row["routing_key"])
             for row in management.get("exchanges/%2F/celery.later/bindings/source")}
    for name, (task, queue, earliest, latest) in sent.items():
        assert keys.count(task) == 1, (name, pending)
        row = pending[keys.index(task)]
        assert earliest <= row["due"] <= latest, (name, earliest, row, latest)
        assert row["routing_keys"] == [queue], (name, row)
        assert (queue, queue) in bound, name
    checked("Celery", VERSION, "canvases and routes", "etas of every kind")
    for queue in {queue for _, queue, _, _ in sent.values()}:
        client.channel.queue_delete(queue)
