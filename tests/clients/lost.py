# SPDX-License-Identifier: MPL-2.0
"""A broker that is lost while a confirm is out. A language's program connects, declares the queue `lost`, writes
"ready" and waits for a line on its standard input. Then it publishes a message, to a broker that is stopped,
writes "sent", waits for the confirm, and writes what it gets in its stead. One whose client says nothing before
the confirm is there does not write "sent"."""

import contextlib
import glob
import os
import signal
import subprocess
from urllib.parse import urlsplit

from conftest import PLUGIN
from management import eventually


def states(pid):
    """Of its threads. Those that run go on after SIGSTOP until one of them has seen to it."""
    found = set()
    for path in glob.glob(f"/proc/{pid}/task/*/stat"):
        with contextlib.suppress(FileNotFoundError), \
                open(path, encoding="utf-8", errors="replace") as f:
            found.add(f.read().rpartition(")")[2].split()[0])
    return found


ESTABLISHED = "01"
# More than a heartbeat, and less than a message.
LEAST_BYTES = 30


def unread(port):
    """How many bytes wait for whoever has the connections to the port, of the one for which most do."""
    found = [0]
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(path, encoding="ascii") as f:
            rows = [line.split() for line in f.readlines()[1:]]
        found += [int(row[4].rpartition(":")[2], 16) for row in rows
                  if row[3] == ESTABLISHED and int(row[1].rpartition(":")[2], 16) == port]
    return max(found)


def told(brokers, language, *argv, cwd=None, enable=(), url=lambda broker: broker.amqp_url, says_sent=True):
    """What the program writes after the broker was killed."""
    broker = brokers(f"lost-{language}", enable=(PLUGIN, *enable))
    with subprocess.Popen([*argv, url(broker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          cwd=cwd, text=True) as program:
        try:
            assert program.stdout.readline() == "ready\n"
            os.kill(broker.pid, signal.SIGSTOP)
            eventually(lambda: states(broker.pid), lambda found: found == {"T"})
            program.stdin.write("\n")
            program.stdin.flush()
            if says_sent:
                assert program.stdout.readline() == "sent\n"
            else:
                eventually(lambda: unread(urlsplit(url(broker)).port), lambda n: n >= LEAST_BYTES)
            broker.kill9()
            return program.stdout.read().strip()
        finally:
            program.kill()
            broker.end()
