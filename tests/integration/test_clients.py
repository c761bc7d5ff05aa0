# SPDX-License-Identifier: MPL-2.0
"""Client libraries of other languages: each program declares, publishes and consumes as its users
do, checks what it gets, and says ok."""

import os
import shutil
import subprocess

import pytest

CLIENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients")

JAVA_CLASSES = ["/usr/share/java/amqp-client.jar", "/usr/share/java/slf4j-api.jar",
                "/usr/share/java/slf4j-nop.jar"]


def run(argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False, **options)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def node_modules():
    """Installs the npm clients as the lock file has them, unless they are."""
    installed = os.path.join(CLIENTS, "node_modules", ".package-lock.json")
    locked = os.path.join(CLIENTS, "package-lock.json")
    if not os.path.exists(installed) or os.path.getmtime(installed) < os.path.getmtime(locked):
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=CLIENTS)


@pytest.mark.parametrize("program", ["amqplib_client.js", "rascal_client.js",
                                     "rabbitmq_client.js"])
def test_a_javascript_client_works(broker, node_modules, program):
    assert run(["node", program, broker.amqp_url], cwd=CLIENTS).strip() == "ok"


@pytest.mark.skipif(not shutil.which("java") or not os.path.exists(JAVA_CLASSES[0]),
                    reason="needs a JDK and librabbitmq-client-java")
def test_the_java_client_works(broker):
    assert run(["java", "-cp", ":".join(JAVA_CLASSES), "JavaClient.java", broker.amqp_url],
               cwd=CLIENTS).strip() == "ok"
