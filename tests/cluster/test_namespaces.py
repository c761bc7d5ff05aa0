# SPDX-License-Identifier: MPL-2.0
"""What is cut off is so, that way and no other, and nothing is left when a test ends or dies."""

import os
import signal
import subprocess
import sys
import time

import pytest

import namespaces
from namespaces import Network, namespaces_of

WITHIN = 60
HERE = os.path.dirname(os.path.abspath(namespaces.__file__))

# Says on its output what comes.
LISTENER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 7000))
print("ready", flush=True)
while True:
    text, _ = s.recvfrom(100)
    print(text.decode(), flush=True)
"""
SENDER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    s.sendto(sys.argv[2].encode(), (sys.argv[1], 7000))
except OSError:
    sys.exit(1)
"""


@pytest.fixture
def network():
    with Network(3) as network:
        yield network


class Ears:
    """A listener on every host; what each of them hears in order."""

    def __init__(self, network):
        self.network = network
        self.processes = []
        for n, address in enumerate(network.addresses):
            self.processes.append(subprocess.Popen(
                network.inside(n, sys.executable, "-c", LISTENER, address), stdout=subprocess.PIPE,
                text=True))
        assert [p.stdout.readline() for p in self.processes] == ["ready\n"] * network.hosts

    def hears(self, sender, receiver):
        """Whether what `sender` sends arrives. The receiver's own message, sent after it, ends the wait:
        a bridge keeps the order, and a blackhole is before it."""
        subprocess.run(self.network.inside(sender, sys.executable, "-c", SENDER,
                                           self.network.addresses[receiver], "from afar"), check=False)
        subprocess.run(self.network.inside(receiver, sys.executable, "-c", SENDER,
                                           self.network.addresses[receiver], "marker"), check=True)
        heard = []
        while not heard or heard[-1] != "marker":
            heard.append(self.processes[receiver].stdout.readline().strip())
        return "from afar" in heard

    def all(self):
        hosts = range(self.network.hosts)
        return {(a, b) for a in hosts for b in hosts if a != b and self.hears(a, b)}

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def ears(network):
    ears = Ears(network)
    yield ears
    ears.end()


def every_way(hosts):
    return {(a, b) for a in range(hosts) for b in range(hosts) if a != b}


def test_cuts_hold_the_way_that_they_are_meant_and_heal(network, ears):
    assert ears.all() == every_way(3)
    network.cut(0, [1, 2])
    assert ears.all() == {(1, 2), (2, 1)}
    network.heal()
    assert ears.all() == every_way(3)
    network.cut_one_way(1, [0])
    assert ears.all() == every_way(3) - {(1, 0)}
    network.cut(1, [0])
    assert ears.all() == every_way(3) - {(1, 0), (0, 1)}
    network.heal()
    network.heal()
    assert ears.all() == every_way(3)


def test_two_networks_do_not_meet(network):
    with Network(1) as other:
        assert other.tag != network.tag and not other.subnet.overlaps(network.subnet)
        done = subprocess.run(other.inside(0, sys.executable, "-c", SENDER, network.addresses[0], "text"),
                              check=False)
        assert done.returncode == 1
    assert namespaces_of(other.tag) == [] and len(namespaces_of(network.tag)) == 4


def gone(tag, pid):
    return namespaces_of(tag) == [] and not os.path.exists(f"/proc/{pid}") \
        and not os.path.exists(f"/sys/class/net/{tag}-up")


def eventually_gone(tag, pid):
    deadline = time.monotonic() + WITHIN
    while not gone(tag, pid):
        assert time.monotonic() < deadline, (namespaces_of(tag), pid)
        time.sleep(0.05)


MAKER = """
import subprocess, sys, time
from namespaces import Network
network = Network(2)
network.up()
inside = subprocess.Popen(network.inside(1, "sleep", "1000"), start_new_session=True,
                          stdout=subprocess.DEVNULL)
while True:
    with open(f"/proc/{inside.pid}/comm") as f:
        if f.read() == "sleep\\n":
            break
print(network.tag, inside.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_of_one_who_is_killed_nothing_is_left(number):
    with subprocess.Popen([sys.executable, "-c", MAKER], cwd=HERE, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as maker:
        tag, pid = maker.stdout.readline().split()
        assert len(namespaces_of(tag)) == 3 and not gone(tag, pid)
        maker.send_signal(number)
        eventually_gone(tag, pid)


def test_a_sweep_by_hand_takes_all_of_its_tag_and_nothing_else(network):
    with subprocess.Popen([sys.executable, "-c", MAKER], cwd=HERE, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as maker:
        tag, pid = maker.stdout.readline().split()
        subprocess.run([sys.executable, os.path.join(HERE, "namespaces.py"), "--sweep", tag], check=True)
        assert namespaces_of(tag) == [] and len(namespaces_of(network.tag)) == 4
        # Its parent has yet to hear of its end.
        maker.stdin.close()
        eventually_gone(tag, pid)
    wrong = subprocess.run([sys.executable, os.path.join(HERE, "namespaces.py"), "--sweep", "d"],
                           capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "no network's tag" in wrong.stderr
    assert len(namespaces_of(network.tag)) == 4
