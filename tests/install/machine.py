# SPDX-License-Identifier: MPL-2.0
"""A machine with a suite of Debian, as it is before RabbitMQ is installed: a chroot in namespaces of its own, with a
network in which there is nothing but itself. Needs root that may mount, and a Debian mirror: the one that apt is set
up with, or DEBIAN_MIRROR.

    with Machine("trixie", directory) as machine:
        machine.apt("install", "/dist/some.deb")
        machine.run("rabbitmq-plugins", "list")

Its root directory is `machine.root`. When the process that made it ends, so does all that runs in it."""

import os
import shutil
import subprocess
import time

WITHIN = 900
NO_SERVICES = ('printf "#!/bin/sh\\nexit 101\\n" >"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d"')
# Outlives its parent by nothing: --kill-child, and the pipe that it reads from.
BEGIN = """
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && ip link set lo up && hostname machine && echo ready
exec cat >/dev/null
"""


class Failed(RuntimeError):
    pass


def debian_mirror():
    if os.environ.get("DEBIAN_MIRROR"):
        return os.environ["DEBIAN_MIRROR"]
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"],
        capture_output=True, text=True, check=True).stdout.split()
    return next(site for site in sites if "security" not in site)


class Machine:
    def __init__(self, suite, directory):
        self.suite, self.root = suite, os.path.join(directory, suite)
        # What a command has there, and how its broker is started by the user rabbitmq.
        self.env = {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
                    "DEBIAN_FRONTEND": "noninteractive"}
        self.server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        self._first, self._broker = None, None

    def how(self):
        """mmdebstrap's options."""
        return ["--variant=apt", f"--essential-hook={NO_SERVICES}"]

    def __enter__(self):
        made = subprocess.run(
            ["mmdebstrap", "--quiet", "--mode=root", "--keyring=/usr/share/keyrings",
             '--aptopt=Acquire::Check-Valid-Until "false"', *self.how(), self.suite, self.root,
             debian_mirror()], capture_output=True, text=True, check=False, timeout=WITHIN)
        if made.returncode != 0:
            raise Failed(f"Debian's {self.suite} cannot be installed: {made.stderr}")
        with open(os.path.join(self.root, "etc", "hosts"), "w", encoding="ascii") as f:
            f.write("127.0.0.1 localhost machine\n")
        self._first = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
             "sh", "-c", BEGIN, "sh", self.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._first.stdout.readline() != "ready\n":
            raise Failed("namespaces cannot be had on this machine")
        return self

    def __exit__(self, *_):
        if self._first is not None:
            self._first.stdin.close()
            self._first.wait(WITHIN)
        shutil.rmtree(self.root, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.root, name.lstrip("/"))

    def _inside(self, *options):
        with open(f"/proc/{self._first.pid}/task/{self._first.pid}/children", encoding="ascii") as f:
            first, = f.read().split()
        return ["nsenter", "--target", first, "--net", *options]

    def _in_root(self):
        return self._inside("--uts", "--mount", "--pid", "--", "chroot", self.root)

    def _run(self, argv, check):
        done = subprocess.run(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, check=False, timeout=WITHIN)
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{self.logs()}")
        return done

    def run(self, *argv, check=True):
        """What a command says that runs on it."""
        return self._run([*self._in_root(), *argv], check).stdout

    def apt(self, *arguments):
        """apt-get on it, with the network of this machine."""
        return self._run(["unshare", "--mount", "--propagation", "private", "chroot", self.root, "apt-get", "-q", "-y",
                          "--no-install-recommends", *arguments], True).stdout

    def beside(self, *argv):
        """What a command says that runs on this machine, and has its network."""
        return self._run([*self._inside(), *argv], True).stdout

    # --------------------------------------------------------------------- its broker

    def start_broker(self):
        """As its service does: the user rabbitmq runs what the unit names."""
        with open(os.path.join(self.path("/var/log/rabbitmq"), "of-the-service"), "ab") as said:
            self._broker = subprocess.Popen(
                [*self._in_root(), "su", "rabbitmq", "-s", "/bin/sh", "-c",
                 f"cd /var/lib/rabbitmq && exec {self.server}"],
                env={"PATH": self.env["PATH"], "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        deadline = time.monotonic() + WITHIN
        # It fails until the node's name is known, and then waits.
        while "completed" not in self.run("sh", "-c", "rabbitmqctl await_startup && echo completed", check=False):
            if self._broker.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the broker does not start\n{self.logs()}")

    def stop_broker(self):
        self.run("rabbitmqctl", "stop")
        self._broker.wait(WITHIN)

    def logs(self):
        folder = self.path("/var/log/rabbitmq")
        said = []
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if os.path.isfile(os.path.join(folder, name)):
                with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as f:
                    said += [f"--- {name}", *f.read().splitlines()[-60:]]
        return "\n".join(said)
