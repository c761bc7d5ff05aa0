# SPDX-License-Identifier: MPL-2.0
"""Of a node that does not stop: who waits for whom, from the crash dump that SIGUSR1 has its VM write."""

import re

# Functions of what stops others; a process that is in one is told of, with those that have a name.
STOPS = re.compile(r"\b(?:application_controller|application_master|supervisor2?|init|rabbit|rabbit_\w*|ra\w*|rabbit_delay_\w+):"
                   r"\S*(?:stop|shutdown|terminat|monitor_child|down|wait|call)\w*/")


def report(path, most=60):
    """A text, of a process a line: its name, and its stack's functions from where it is outwards."""
    try:
        with open(path, encoding="utf-8", errors="replace") as dump:
            text = dump.read()
    except OSError as error:
        return f"no crash dump: {error}"
    sections = re.split(r"^=", text, flags=re.M)
    stacks = {}
    for section in sections:
        if section.startswith("proc_stack:"):
            pid = section.split(":", 1)[1].split("\n", 1)[0]
            stacks[pid] = re.findall(r"Return addr \S+ \((\S+)", section)
    lines = []
    for section in sections:
        if not section.startswith("proc:"):
            continue
        pid = section.split(":", 1)[1].split("\n", 1)[0]
        name = re.search(r"^Name: (.*)$", section, re.M)
        at = re.search(r"^Program counter: \S+ \((\S+)", section, re.M)
        stack = ([at.group(1)] if at else []) + stacks.get(pid, [])
        if any(STOPS.search(function) for function in stack):
            lines.append(f"{pid} {name.group(1) if name else ''}: {' < '.join(stack[:8])}")
    return "\n".join(lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else []))
