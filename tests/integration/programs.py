# SPDX-License-Identifier: MPL-2.0
"""Runs the clients in other languages (clients/); as a program, installs them, and what drives the
browser (tests/ui/)."""

import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
CLIENTS = os.path.join(HERE, "clients")
UI = os.path.join(os.path.dirname(HERE), "ui")


def execute(*argv, directory=CLIENTS):
    """The output of a command that succeeds."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False,
                          cwd=directory)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def run(*argv):
    """Runs a client that ends with "ok" if all was as it should be."""
    assert execute(*argv).strip() == "ok"


def install(directory=CLIENTS):
    """Installs the npm packages as the directory's lock file has them, unless they are."""
    installed = os.path.join(directory, "node_modules", ".package-lock.json")
    locked = os.path.join(directory, "package-lock.json")
    if not os.path.exists(installed) or os.path.getmtime(installed) < os.path.getmtime(locked):
        execute("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", directory=directory)


if __name__ == "__main__":
    install()
    install(UI)
