# SPDX-License-Identifier: MPL-2.0
"""Asks the doctor in the broker, and does what it says."""

import base64
import json
import subprocess

from node import evaluate


def findings(broker, vhost):
    """What it finds in a vhost."""
    told = evaluate(broker, "(fun () -> {ok, Found} = rabbit_delay_doctor:live([base64:decode(\""
                    + base64.b64encode(vhost.encode()).decode() + "\")]), "
                    "base64:encode_to_string(rabbit_delay_doctor_report:json(Found)) end)().")
    return json.loads(base64.b64decode(told.strip('"').replace("\\n", "").replace("\n", "")))["findings"]


def by_rule(found, rule):
    return [finding for finding in found if finding["rule"] == rule]


def the(broker, vhost, rule, name):
    """The finding of that rule about that object."""
    found = findings(broker, vhost)
    named = [finding for finding in by_rule(found, rule) if finding["name"] == name]
    assert len(named) == 1, (rule, name, found)
    return named[0]


def is_mended(broker, vhost, rule, name):
    """Runs the finding's commands as they stand; it must then be gone."""
    finding = the(broker, vhost, rule, name)
    assert finding["commands"], finding
    for command in finding["commands"]:
        run(broker, command)
    left = [f for f in by_rule(findings(broker, vhost), rule) if f["name"] == name]
    assert not left, (finding, left)


def run(broker, command):
    environment = {**broker.environment(),
                   "API": f"http://guest:guest@127.0.0.1:{broker.management_port}/api"}
    shell = ["sh", "-c", command]
    if not command.startswith("curl "):
        shell = broker.inside(*shell)
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
