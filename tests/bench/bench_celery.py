# SPDX-License-Identifier: MPL-2.0
"""What a Celery task with a countdown costs the broker: through the delayed exchange
(examples/clients/python/celery) and through Celery's own ladder of queues, in turns, on one broker.

    bench_celery.py [--tasks N] [--rounds N] [--seconds N]

Each round sends the tasks, confirmed, due evenly over the time given, to a quorum queue with one worker
of one process, and ends when all are done. What the broker uses while it has nothing to do is measured
before, and taken off.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
for part in ("tests/integration", "tests/clients"):
    sys.path.insert(0, os.path.join(REPOSITORY, part))
# pylint: disable=wrong-import-position
import locked  # noqa: E402
from management import eventually  # noqa: E402
from private_broker import PrivateBroker  # noqa: E402

PROGRAMS = os.path.join(REPOSITORY, "tests", "clients", "python")
WAYS = {"delayed exchange": {}, "Celery's ladder": {"OWN_LADDER": "1", "EXCHANGE_TYPE": "topic"}}
IDLE_SECONDS = 10


class Way:
    """Celery's configuration, with a worker of its own that stays."""

    def __init__(self, python, broker, name, directory):
        self.python = python
        self.record = os.path.join(directory, f"{len(name)}.record")
        self.env = {**os.environ, "BROKER_URL": broker.amqp_url, "QUEUE": f"q{len(name)}",
                    "QUEUE_TYPE": "quorum", "RECORD": self.record, "PYTHONDONTWRITEBYTECODE": "1",
                    "PYTHONPATH": os.path.join(REPOSITORY, "examples", "clients", "python", "celery"),
                    **WAYS[name]}
        self.log = os.path.join(directory, f"{len(name)}.log")

    def __enter__(self):
        with open(self.log, "wb") as out:
            self.worker = subprocess.Popen(
                [self.python, "-m", "celery", "-A", "recorded", "worker", "-c", "1", "-l", "INFO",
                 "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", "bench"],
                cwd=PROGRAMS, env=self.env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True)
        eventually(lambda: " ready." in self._read(self.log), bool)
        return self

    def __exit__(self, *_):
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()

    @staticmethod
    def _read(path):
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def done(self):
        return self._read(self.record).count("\n") if os.path.exists(self.record) else 0

    def round(self, broker, tasks, seconds):
        """The broker's CPU time, and how long it took."""
        if os.path.exists(self.record):
            os.remove(self.record)
        began, cpu = time.monotonic(), broker.cpu_seconds()
        subprocess.run([self.python, "recorded.py", str(tasks), str(seconds)], cwd=PROGRAMS,
                       env=self.env, stdout=subprocess.DEVNULL, check=True)
        eventually(self.done, lambda n: n >= tasks, within=3600)
        return broker.cpu_seconds() - cpu, time.monotonic() - began


def idle(broker):
    """Cores that the broker uses with nothing to do."""
    before = broker.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return (broker.cpu_seconds() - before) / IDLE_SECONDS


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    python = os.path.join(locked.install("python"), "bin", "python")
    measured = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as directory, \
            PrivateBroker(os.path.join(directory, "broker")) as broker:
        broker.start()
        print(f"RabbitMQ {broker.series}, Celery {locked.version('python', 'celery')}, "
              f"{options.tasks} tasks a round, due over {options.seconds} s", flush=True)
        for number in range(options.rounds):
            for name in list(WAYS) if number % 2 == 0 else reversed(WAYS):
                with Way(python, broker, name, directory) as way:
                    # The ladder counts whole seconds, from one on.
                    way.round(broker, options.tasks // 10, 8)
                    at_rest = idle(broker)
                    cpu, took = way.round(broker, options.tasks, options.seconds)
                a_task = (cpu - at_rest * took) / options.tasks * 1000
                measured[name].append(a_task)
                print(f"{name:17} {a_task:6.2f} ms a task  (in all {cpu:.1f} s of CPU in {took:.0f} s, "
                      f"{at_rest * 100:.1f} % of a core at rest)", flush=True)
    for name, figures in measured.items():
        print(f"{name:17} median {statistics.median(figures):.2f} ms, "
              f"{min(figures):.2f} to {max(figures):.2f}")
    ours, ladder = measured.values()
    ratios = [b / a for a, b in zip(ours, ladder)]
    print(f"the ladder takes {statistics.median(ratios):.1f} times as much, "
          f"{min(ratios):.1f} to {max(ratios):.1f} in {len(ratios)} rounds")


if __name__ == "__main__":
    main()
