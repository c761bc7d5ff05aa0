# SPDX-License-Identifier: MPL-2.0
"""Of a node that does not stop: who waits for whom, from the crash dump that SIGUSR1 has its VM write."""

import re

# Functions of what stops others: a process that is in one is told of. All of RabbitMQ's modules, Ra's and ours begin with ra.
STOPS = re.compile(r"\b(?:application_controller|application_master|supervisor2?|init|ra\w*):"
                   r"\S*(?:stop|shutdown|terminat|monitor_child|down|wait|call)\w*/")


def report(path, most=60):
    """A text, of a process a line: its name, and its stack's functions from where it is outwards."""
    try:
        with open(path, encoding="utf-8", errors="replace") as dump:
            text = dump.read()
    except OSError as error:
        return f"no crash dump: {error}"
    stacks = {pid: re.findall(r"Return addr \S+ \((\S+)", section) for pid, section in sections(text, "proc_stack")}
    lines = []
    for pid, section in sections(text, "proc"):
        name = re.search(r"^Name: (.*)$", section, re.M)
        stack = re.findall(r"^Program counter: \S+ \((\S+)", section, re.M) + stacks.get(pid, [])
        if any(STOPS.search(function) for function in stack):
            lines.append(f"{pid} {name.group(1) if name else ''}: {' < '.join(stack[:8])}")
    return "\n".join(lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else []))


def sections(text, kind):
    """Of that kind, each with the process that it is of."""
    for section in re.split(r"^=", text, flags=re.M):
        head, _, body = section.partition("\n")
        if head.startswith(f"{kind}:"):
            yield head.removeprefix(f"{kind}:"), body
