# SPDX-License-Identifier: MPL-2.0
"""Runs the clients in other languages (clients/); as a program, installs them."""

import os
import subprocess

CLIENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients")


def execute(*argv):
    """The output of a command that succeeds."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False,
                          cwd=CLIENTS)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def run(*argv):
    """Runs a client that ends with "ok" if all was as it should be."""
    assert execute(*argv).strip() == "ok"


def install():
    """Installs the npm clients as the lock file has them, unless they are."""
    installed = os.path.join(CLIENTS, "node_modules", ".package-lock.json")
    locked = os.path.join(CLIENTS, "package-lock.json")
    if not os.path.exists(installed) or os.path.getmtime(installed) < os.path.getmtime(locked):
        execute("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")


if __name__ == "__main__":
    install()
