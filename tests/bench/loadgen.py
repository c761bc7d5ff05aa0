# SPDX-License-Identifier: MPL-2.0
"""The load generator (load.c) as seen from Python: options in, figures out."""

import json
import os
import subprocess
import threading
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(REPOSITORY, "_build", "bench", "load")


class LoadFailed(RuntimeError):
    """The load generator could not do what it was told; the message says why."""


def build():
    """Makes the program if it is missing or older than its source."""
    made = subprocess.run(["make", "--no-print-directory", "-s", "-f", "tests/bench/bench.mk",
                           "bench-load"], cwd=REPOSITORY, capture_output=True, text=True,
                          check=False)
    if made.returncode != 0:
        raise LoadFailed(f"the load generator does not build (make deps?)\n{made.stderr}")


class Load:
    """One run of it. Options are given by name (`size=100`); True is an option without a value."""

    def __init__(self, command, broker=None, **options):
        argv = [PROGRAM, command]
        if broker is not None:
            argv += ["--port", str(broker.amqp_port)]
        for name, value in options.items():
            if value is None or value is False:
                continue
            argv.append("--" + name.replace("_", "-"))
            if value is not True:
                argv.append(str(value))
        self.argv = argv
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True)
        # Standard error is drained beside standard output, so that neither pipe can fill up.
        self._complaints = []
        self._drain = threading.Thread(target=self._read_complaints, daemon=True)
        self._drain.start()

    def _read_complaints(self):
        for line in self.process.stderr:
            self._complaints.append(line)

    def started(self):
        """Waits for the line with which a consumer says that it is attached."""
        line = self.process.stdout.readline()
        if not line:
            self.result()
            raise LoadFailed(f"{self}: ended before it began")
        return json.loads(line)

    def result(self):
        """Waits for the end. `complete` is false if it was stopped before all was done."""
        output = self.process.stdout.read()
        status = self.process.wait()
        self._drain.join()
        complaints = "".join(self._complaints).strip()
        if status not in (0, 2) or not output.strip():
            raise LoadFailed(f"{self}: exit {status}\n{complaints}")
        figures = json.loads(output)
        figures["complete"] = status == 0
        if complaints:
            figures["complaints"] = complaints.splitlines()[-5:]
        return figures

    def stop(self):
        """Asks it to end early and report."""
        self.process.terminate()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __str__(self):
        return " ".join(self.argv)


class Consumer(Load):
    """A consumer; attached when the constructor returns unless told that the broker is down."""

    def __init__(self, broker, wait=True, **options):
        super().__init__("consume", broker, **options)
        self._waited = wait
        if wait:
            self.started()

    def result(self):
        if not self._waited:
            self._waited = True
            self.started()
        return super().result()


def publish(broker, **options):
    return Load("publish", broker, **options).result()


def calibrate():
    return Load("calibrate").result()


def await_ledger(path, publisher, timeout=30):
    """Waits until a publisher has made its ledger, so that a consumer can open it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            with open(path, "rb") as f:
                if any(f.read(8)):
                    return
        except FileNotFoundError:
            pass
        if publisher.process.poll() is not None:
            publisher.result()
            return
        time.sleep(0.01)
    raise LoadFailed(f"{publisher}: no ledger after {timeout} s")
