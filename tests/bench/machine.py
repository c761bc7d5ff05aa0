# SPDX-License-Identifier: MPL-2.0
"""What the figures were measured on, and how quiet it was meanwhile."""

import os
import platform
import re
import resource
import subprocess

import loadgen

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def _first(pattern, path):
    with open(path, encoding="utf-8", errors="replace") as f:
        found = re.search(pattern, f.read(), re.MULTILINE)
    return found.group(1).strip() if found else "unknown"


def _file_system(path):
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True,
                          check=False)
    return done.stdout.strip() or "unknown"


def describe(broker):
    """Of the machine and of a running broker, for the head of the results."""
    versions = broker.eval('{ok, V} = application:get_key(rabbit, vsn), {ok, R} = '
                           'application:get_key(ra, vsn), io:format("~s ~s ~s", '
                           '[V, R, erlang:system_info(otp_release)]), '
                           'io:format(" ~s ~b", [erlang:system_info(emu_flavor), '
                           'erlang:system_info(schedulers_online)]).').splitlines()[0].split()
    return {
        "cpu": _first(r"^model name\s*:\s*(.*)$", "/proc/cpuinfo"),
        "cores": os.cpu_count(),
        "ram_gb": round(int(_first(r"^MemTotal:\s+(\d+)", "/proc/meminfo")) / 1024 / 1024, 1),
        "kernel": platform.release(),
        "system": _first(r'^PRETTY_NAME="(.*)"$', "/etc/os-release"),
        "file_system": _file_system(broker.root),
        "rabbitmq": versions[0],
        "ra": versions[1],
        "otp": versions[2].removesuffix("ok"),
        "emulator": versions[3],
        "schedulers": int(versions[4].removesuffix("ok")),
    }


def _cpu_ticks():
    with open("/proc/stat", encoding="ascii") as f:
        fields = [int(n) for n in f.readline().split()[1:]]
    idle = fields[3] + fields[4]
    return {"all": sum(fields[:8]), "idle": idle, "steal": fields[7]}


def _children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Quiet:
    """Watches a stretch of time: what share of the machine went to others than the broker and the
    children of this process, what share was stolen by the hypervisor, and how long a fixed piece
    of work takes beforehand."""

    def __init__(self, broker):
        self.broker = broker
        self.calibration = loadgen.calibrate()
        self.pid = broker.pid
        self.ticks = _cpu_ticks()
        self.broker_cpu = broker.cpu_seconds() if self.pid else 0
        self.children = _children_seconds()

    def ended(self):
        """All children that took part must have been waited for. `others` is None if the broker
        is not the process that it was."""
        now = _cpu_ticks()
        total = max(1, now["all"] - self.ticks["all"])
        steal = now["steal"] - self.ticks["steal"]
        busy = total - (now["idle"] - self.ticks["idle"]) - steal
        others = None
        if self.pid and self.broker.pid == self.pid:
            ours = (self.broker.cpu_seconds() - self.broker_cpu
                    + _children_seconds() - self.children) * TICKS_PER_SECOND
            others = round(max(0.0, busy - ours) / total, 3)
        return {"others": others, "steal": round(steal / total, 3),
                "calibration_ms": self.calibration["best_ms"],
                "calibration_worst_ms": self.calibration["worst_ms"]}
