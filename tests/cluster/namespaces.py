#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""A network on this machine: each host is a network namespace with an address of its own, and between
any two of them what they send each other can be cut off, both ways or one way. Needs root.

    with Network(3) as network:
        subprocess.run(network.inside(0, "ip", "address"))
        network.cut(0, [1, 2])
        network.heal()

All hosts hang on a bridge in a namespace of its own, where no rules of the machine's firewall apply.
The machine itself is on the bridge, too, with network.gateway: clients on it reach every host, also
those that are cut off from each other. Nothing leaves the machine: no host has a default route.

Names begin with the network's tag. When the process that made it ends, however it does, a guard that
hangs on a pipe to it ends what runs in the namespaces and takes them away;

    namespaces.py --sweep TAG     does so by hand
    namespaces.py --allowed       exit code 3, and why, where namespaces cannot be had
"""

import argparse
import contextlib
import ipaddress
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid

RUN = "/run/netns"
SWITCH = "sw"
# An interface's name has at most 15 characters.
TAG_LENGTH = 8
PRIVATE = ipaddress.ip_network("10.0.0.0/8")
END_SECONDS = 60


class NetworkFailed(RuntimeError):
    pass


def ip(*arguments, batch=None):
    """Runs iproute2's `ip`, or with `batch` a list of its commands; what it prints."""
    argv = ["ip", *arguments, *(["-batch", "-"] if batch is not None else [])]
    done = subprocess.run(argv, input="\n".join(batch or []), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkFailed(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def namespaces_of(tag):
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(RUN) if name.startswith(tag + "-"))
    return []


def processes_in(namespace):
    return [int(pid) for pid in ip("netns", "pids", namespace).split()]


def sweep(tag):
    """Ends what runs in a network's namespaces and takes them away; their links go with them."""
    deadline = time.monotonic() + END_SECONDS
    for namespace in namespaces_of(tag):
        with contextlib.suppress(NetworkFailed):
            while (left := processes_in(namespace)) and time.monotonic() < deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
    for namespace in namespaces_of(tag):
        # Another one may sweep at the same time.
        with contextlib.suppress(NetworkFailed):
            ip("netns", "delete", namespace)
    # A link whose namespace is not quite gone yet.
    for link in json.loads(ip("-json", "link")):
        if link["ifname"].startswith(tag + "-"):
            with contextlib.suppress(NetworkFailed):
                ip("link", "delete", link["ifname"])


def why_not():
    """Why namespaces cannot be had on this machine; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    # All of it is tried: in a container any step may be what is not allowed.
    try:
        with Network(2) as network:
            network.cut(0, [1])
            network.heal()
    except (NetworkFailed, OSError, ValueError, subprocess.SubprocessError) as error:
        return f"network namespaces cannot be had here: {' '.join(str(error).split())}"
    return None


def new_tag():
    return "dw" + uuid.uuid4().hex[:TAG_LENGTH - 2]


class Network:
    def __init__(self, hosts):
        self.tag = new_tag()
        self.hosts = hosts
        self._cuts = set()
        self._guard = None
        self.subnet, self._reservation = self._free_subnet()
        self.addresses = [str(self.subnet[n + 1]) for n in range(hosts)]
        self.gateway = str(self.subnet[254])

    def __enter__(self):
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_):
        self.down()

    @staticmethod
    def _free_subnet():
        """One that no route of this machine touches, and that is given once: until this process
        ends, no other call here or in another process has it."""
        taken = [ipaddress.ip_network(route["dst"]) for route in json.loads(ip("-json", "-4", "route",
                                                                              "show", "table", "all"))
                 if route["dst"] != "default"]
        subnets = list(PRIVATE.subnets(new_prefix=24))
        while True:
            subnet = random.choice(subnets)
            if any(subnet.overlaps(other) for other in taken):
                continue
            reservation = socket.socket(socket.AF_UNIX)
            try:
                reservation.bind(f"\0delay-wheel-net-{subnet}")
                return subnet, reservation
            except OSError:
                reservation.close()

    # ------------------------------------------------------------------- up and down

    def name(self, host):
        return f"{self.tag}-{host}"

    def up(self):
        # It outlives this process by as long as it takes to tidy up, and ends when the pipe does.
        self._guard = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--guard", self.tag],
                                       stdin=subprocess.PIPE, start_new_session=True)
        switch = self.name(SWITCH)
        ip(batch=[f"netns add {self.name(n)}" for n in (SWITCH, *range(self.hosts))])
        ip("-n", switch, batch=["link add name bridge type bridge forward_delay 0", "link set bridge up",
                                "link set lo up"])
        for n, address in enumerate(self.addresses):
            host = self.name(n)
            ip(batch=[f"link add eth0 netns {host} type veth peer name port{n} netns {switch}"])
            ip("-n", switch, batch=[f"link set port{n} master bridge up"])
            ip("-n", host, batch=["link set lo up", f"address add {address}/24 dev eth0",
                                  "link set eth0 up"])
            # A blackhole stops what a host sends to an address, and not what comes from there.
            for which in ("all", "default", "eth0"):
                subprocess.run(self.inside(n, "sh", "-c",
                                           f"echo 0 >/proc/sys/net/ipv4/conf/{which}/rp_filter"), check=True)
        link = f"{self.tag}-up"
        ip(batch=[f"link add {link} type veth peer name uplink netns {switch}",
                  f"address add {self.gateway}/24 dev {link}", f"link set {link} up"])
        ip("-n", switch, batch=["link set uplink master bridge up"])

    def down(self):
        """Ends what runs on the hosts and takes all away."""
        sweep(self.tag)
        if self._guard is not None:
            self._guard.stdin.close()
            self._guard.wait(2 * END_SECONDS)
            self._guard = None
        self._reservation.close()

    def inside(self, host, *argv):
        """A command line, made to run on that host. It becomes the command: its process is the same."""
        return ["nsenter", f"--net={RUN}/{self.name(host)}", "--", *argv]

    # -------------------------------------------------------------------------- cuts

    def cut_one_way(self, sender, receivers):
        """Nothing that `sender` sends to them arrives any more; what they send to it does."""
        for receiver in receivers:
            if (sender, receiver) not in self._cuts:
                ip("-n", self.name(sender), "route", "add", "blackhole", self.addresses[receiver] + "/32")
                self._cuts.add((sender, receiver))

    def cut(self, host, others):
        self.cut_one_way(host, others)
        for other in others:
            self.cut_one_way(other, [host])

    def heal(self):
        for sender, receiver in sorted(self._cuts):
            ip("-n", self.name(sender), "route", "delete", "blackhole", self.addresses[receiver] + "/32")
            self._cuts.discard((sender, receiver))


def main():
    parser = argparse.ArgumentParser(description="Networks of namespaces on this machine.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sweep", metavar="TAG", help="end and delete all that a network has")
    what.add_argument("--guard", metavar="TAG", help="the same, once standard input ends")
    what.add_argument("--allowed", action="store_true", help="exit code 3 where there can be none")
    options = parser.parse_args()
    if options.allowed:
        reason = why_not()
        if reason:
            print(reason, file=sys.stderr)
        return 3 if reason else 0
    tag = options.sweep or options.guard
    if len(tag) != TAG_LENGTH or not tag.startswith("dw"):
        parser.error(f"{tag} is no network's tag")
    if options.guard:
        sys.stdin.buffer.read()
    sweep(tag)
    return 0


if __name__ == "__main__":
    sys.exit(main())
