# SPDX-License-Identifier: MPL-2.0
"""schemathesis tries out what openapi.json says, with requests that it makes up, valid and not,
and all its checks: no status of 500 and above but 503, no answer that is not described.

SCHEMATHESIS_EXAMPLES in the environment says how many it makes up for an operation: `make soak-api` has
many, `make check` few."""

import os
import re
import signal
import subprocess

import pytest

import programs
from client import Client
from conftest import hold_six
from management import eventually
from openapi import DESCRIBED
from test_redrive import park, topology

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "5"))
SECONDS = int(os.environ.get("SCHEMATHESIS_SECONDS", "0"))

# Where a request is allowed by the document, what it asks for may yet be out of range together, or not
# there. Of HTTP's methods, the server itself knows no TRACE.
CONFIG = """
[phases.stateful]
enabled = false

[phases.coverage]
unexpected-methods = ["get", "put", "post", "delete", "patch"]

[parameters]
"path.vhost" = "{vhost}"
"path.exchange" = "{exchange}"
"path.queue" = "{queue}"

[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "409", "415", "429", "503"]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "406", "415"]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


@pytest.fixture(scope="module")
def program():
    path, missing = programs.schemathesis()
    if missing:
        pytest.skip(f"no schemathesis from PyPI: {missing}")
    return path


@pytest.fixture
def plain(broker, management):
    """A client in a vhost whose name is the same in a path."""
    management.request("PUT", "vhosts/openapi", {})
    management.request("PUT", "permissions/openapi/guest", {"configure": ".*", "write": ".*", "read": ".*"})
    client = Client(broker, "openapi")
    yield client
    client.connection.close()
    management.request("DELETE", "vhosts/openapi")


def test_schemathesis_finds_nothing(broker, plain, program, tmp_path):
    client = plain
    exchange, _ = hold_six(client, lambda n: {"headers": {"n": n}, "message_id": f"n{n}"})
    _, queue = topology(client, work="work-openapi", parked="parked-openapi")
    park(client, "work-openapi", queue, ["a", "b"])
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.format(vhost="openapi", exchange=exchange, queue=queue))
    argv = [program, "--config-file", str(config), "run", os.path.join(DESCRIBED, "openapi.json"),
            "--url", f"http://127.0.0.1:{broker.management_port}/api", "--auth", "guest:guest",
            "--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1" if not SECONDS else str(os.getpid()),
            "--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off", "--no-color",
            "--generation-database", "none"]
    if SECONDS:
        argv += ["--max-time", str(SECONDS)]
    # It asks some hundred times: far longer than any machine needs.
    signal.alarm(SECONDS + 900)
    size = len(broker.log())
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path,
                          timeout=SECONDS + 880)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    log = eventually(lambda: broker.log()[size:], lambda _: True)
    assert not re.search(r"Ranch listener.*terminated|CRASH REPORT|crasher", log)
