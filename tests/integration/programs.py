# SPDX-License-Identifier: MPL-2.0
"""Runs the clients in other languages (clients/); as a program, installs them, what drives the browser
(tests/ui/), and what tries the HTTP API out (schemathesis)."""

import fcntl
import os
import shutil
import subprocess
import sys

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


SCHEMATHESIS = "4.32.5"
_REPOSITORY = os.path.dirname(os.path.dirname(HERE))


def schemathesis():
    """The program, installed from PyPI into an environment of its own unless it is there; and why it
    cannot be had, if it cannot."""
    home = os.path.join(_REPOSITORY, "_build", f"schemathesis-{SCHEMATHESIS}")
    program = os.path.join(home, "bin", "schemathesis")
    os.makedirs(os.path.dirname(home), exist_ok=True)
    with open(home + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(os.path.join(home, "complete")):
            shutil.rmtree(home, ignore_errors=True)
            for argv in (["/usr/bin/python3", "-m", "venv", home],
                         [os.path.join(home, "bin", "pip"), "install", "-q", "--disable-pip-version-check",
                          f"schemathesis=={SCHEMATHESIS}"]):
                done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
                if done.returncode != 0:
                    lines = (done.stdout + done.stderr).strip().splitlines()
                    return None, lines[-1] if lines else f"{argv}: exit {done.returncode}"
            with open(os.path.join(home, "complete"), "w", encoding="utf-8"):
                pass
    return program, None


if __name__ == "__main__":
    install()
    install(UI)
    _, missing = schemathesis()
    if missing:
        print(f"no schemathesis: {missing}", file=sys.stderr)
