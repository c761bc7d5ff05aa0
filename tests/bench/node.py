# SPDX-License-Identifier: MPL-2.0
"""The private broker as the figures need it: quiet before each run, and measured."""

import os
import sys
import time

import loadgen

sys.path.insert(0, os.path.join(loadgen.REPOSITORY, "tests", "integration"))
from private_broker import BrokerFailed, PrivateBroker  # noqa: E402,F401

PLUGIN = "rabbitmq_delay_wheel"
QUIET_CORES = 0.05
MEGABYTE = 1024 * 1024


class Node(PrivateBroker):
    """A node with or without the plugin. The memory alarm is put high: a peer that keeps a million
    messages in memory is to be measured, not blocked."""

    def __init__(self, root, with_plugin, series=None):
        super().__init__(root, series=series, plugin_dirs=None if with_plugin else [],
                         enable=[PLUGIN] if with_plugin else [],
                         conf=["vm_memory_high_watermark.relative = 0.8"])

    def settle(self, at_most=60):
        """Waits until the broker has done what it still had to do: two seconds in a row in which
        it uses next to no CPU. False if it is still busy after `at_most` seconds."""
        deadline = time.monotonic() + at_most
        quiet = 0
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(1)
            now = self.cpu_seconds()
            quiet = quiet + 1 if now - before < QUIET_CORES else 0
            if quiet == 2:
                return True
            before = now
        return False

    def settled_rss(self, at_most=180):
        """RSS once it no longer changes: within 1 % or 4 MB over ten seconds."""
        deadline = time.monotonic() + at_most
        self.settle(at_most)
        seen = [self.rss()]
        while time.monotonic() < deadline:
            time.sleep(1)
            seen = (seen + [self.rss()])[-10:]
            spread = max(seen) - min(seen)
            if len(seen) == 10 and spread < max(0.01 * seen[-1], 4 * MEGABYTE):
                break
        return seen[-1]

    def boot(self, timeout=600):
        """Starts it; ms from the start of its process until a client had a channel. The client
        tries every 20 ms."""
        probe = loadgen.Load("probe", self, timeout=timeout)
        try:
            began = time.time() * 1000
            self.start(wait=False)
            answered = probe.result()
        finally:
            probe.kill()
        if not answered["complete"]:
            raise BrokerFailed(f"no answer within {timeout} s\n{self.log_tail()}")
        return answered["answered_ms"] - began
