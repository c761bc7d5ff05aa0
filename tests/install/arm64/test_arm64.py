# SPDX-License-Identifier: MPL-2.0
"""A broker on arm64: Debian 13's Erlang for it runs under qemu, with the archive. It delays, and has what was pending
after a kill. The kernel is told of qemu while it runs (binfmt_misc), for all of the machine; where it cannot be told,
this is skipped. No script of a package runs, which qemu would take long for: RabbitMQ and Erlang are unpacked."""

import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from machine import WITHIN, Failed, Machine  # noqa: E402

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
BINFMT = "/proc/sys/fs/binfmt_misc"
QEMU = "/usr/bin/qemu-aarch64-static"
NAME = "delay-wheel-aarch64"
# An ELF header of a program or a library for aarch64, and what of it counts.
MAGIC = r"\x7fELF\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
MASK = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
PACKAGES = "base-files,dash,coreutils,sed,grep,mawk,hostname,rabbitmq-server"


@pytest.fixture(scope="module")
def emulated():
    if os.uname().machine == "aarch64":
        yield
        return
    if not os.path.exists(f"{BINFMT}/register"):
        subprocess.run(["mount", "-t", "binfmt_misc", "none", BINFMT], capture_output=True, check=False)
    forget()
    try:
        with open(f"{BINFMT}/register", "w", encoding="ascii") as f:
            f.write(f":{NAME}:M::{MAGIC}:{MASK}:{QEMU}:F")
    except OSError as error:
        pytest.skip(f"this kernel cannot be told to run programs for arm64: {error}")
    yield
    forget()


def forget():
    """One that was ended may have left it."""
    if os.path.exists(f"{BINFMT}/{NAME}"):
        with open(f"{BINFMT}/{NAME}", "w", encoding="ascii") as f:
            f.write("-1")


class Arm64(Machine):
    def how(self):
        return ["--variant=extract", "--architectures=arm64", "--skip=check/qemu", f"--include={PACKAGES}"]

    def prepare(self):
        """What scripts of packages would have made, and the plugin, enabled."""
        for name, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n"),
                           ("rabbitmq/enabled_plugins", "[rabbitmq_delay_wheel].\n")):
            os.makedirs(os.path.dirname(self.path(f"/etc/{name}")), exist_ok=True)
            with open(self.path(f"/etc/{name}"), "w", encoding="ascii") as f:
                f.write(text)
        for name in ("/root", "/var/lib/rabbitmq", "/var/log/rabbitmq", "/usr/lib/rabbitmq/plugins"):
            os.makedirs(self.path(name), exist_ok=True)
        archive, = glob.glob(os.path.join(TOP, "dist", "3.13-4.x", "*.ez"))
        shutil.copy(archive, self.path("/usr/lib/rabbitmq/plugins"))
        self.home, = (name[len(self.root):] for name in glob.glob(self.path("/usr/lib/rabbitmq/lib/rabbitmq_server-*")))
        # Two mappings of the same memory, as the JIT has otherwise, are not what qemu takes well.
        self.env.update(PATH=f"{self.home}/sbin:{self.env['PATH']}", RABBITMQ_NODENAME="rabbit@localhost",
                        ERL_FLAGS="+JMsingle true")

    def start_broker(self):
        said = self.path("/var/log/rabbitmq/of-the-service")
        with open(said, "wb") as f:
            self._broker = subprocess.Popen([*self._in_root(), "rabbitmq-server"], env=self.env, stdin=subprocess.DEVNULL,
                                            stdout=f, stderr=f)
        deadline = time.monotonic() + WITHIN
        while True:
            with open(said, encoding="utf-8", errors="replace") as f:
                if "completed with" in f.read():
                    return
            if self._broker.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the broker does not start\n{self.logs()}")
            time.sleep(1)

    def beam(self):
        """The process id, on this machine, of its Erlang."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    if b"beam.smp" in f.read() and os.readlink(f"/proc/{pid}/root") == self.root:
                        return int(pid)
            except OSError:
                continue
        raise Failed("its Erlang does not run")

    def kill_9(self):
        os.kill(self.beam(), signal.SIGKILL)
        self._broker.wait(WITHIN)


@pytest.fixture
def machine(emulated, tmp_path):
    with Arm64("trixie", str(tmp_path)) as made:
        made.prepare()
        yield made


def messages(machine, *arguments):
    return machine.beside("/usr/bin/python3", os.path.join(TOP, "tests", "install", "messages.py"), *arguments).split()


def test_it_delays_and_keeps_what_is_pending(machine):
    machine.start_broker()
    with open(f"/proc/{machine.beam()}/maps", encoding="utf-8") as f:
        assert re.search(r"/priv/aarch64-gnu/rabbit_delay_store\S*\.so", f.read())
    said = machine.beside("/usr/bin/python3", os.path.join(TOP, "examples", "python", "first.py"))
    assert re.fullmatch(r"hello, [0-9.]+ s later\n", said)
    messages(machine, "hold", "one", "two")
    machine.kill_9()
    machine.start_broker()
    machine.run("rabbitmqctl", "release_delayed_messages", "held", "--all")
    assert sorted(messages(machine, "take", "2")) == ["one", "two"]
