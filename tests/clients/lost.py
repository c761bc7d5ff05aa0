# SPDX-License-Identifier: MPL-2.0
"""A broker that is lost while a confirm is out. A language's program connects, declares the queue `lost`, writes
"ready" and waits for a line on its standard input. Then it publishes a message, to a broker that is stopped,
writes "sent", waits for the confirm, and writes what it gets in its stead."""

import os
import signal
import subprocess

from conftest import PLUGIN


def told(brokers, language, *argv, cwd=None):
    """What the program writes after the broker was killed."""
    broker = brokers(f"lost-{language}", enable=(PLUGIN,))
    with subprocess.Popen([*argv, broker.amqp_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          cwd=cwd, text=True) as program:
        try:
            assert program.stdout.readline() == "ready\n"
            os.kill(broker.pid, signal.SIGSTOP)
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "sent\n"
            broker.kill9()
            return program.stdout.read().strip()
        finally:
            program.kill()
            broker.end()
