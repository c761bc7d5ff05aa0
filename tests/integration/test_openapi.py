# SPDX-License-Identifier: MPL-2.0
"""schemathesis tries out what openapi.json says, with requests that it makes up, valid and not,
and all its checks: no status of 500 and above but 503, no answer that is not described; as users with each tag
and with each permission, and what these may not change is as it was.

SCHEMATHESIS_EXAMPLES in the environment says how many it makes up for an operation: `make soak-api` has
many, and users of each tag with each permission; `make check` has few."""

import collections
import contextlib
import itertools
import os
import signal
import subprocess

import pytest

import programs
from asking import crashes, declared
from client import Client
from conftest import hold_six
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


TAGS = ["administrator", "management", "policymaker", "monitoring", ""]
GRANTS = {"all": ("configure", "read", "write"), "nothing": (), "read": ("read",), "configure": ("configure",),
          "write": ("write",), "elsewhere": None}
# Each tag and each permission once.
FEW = [("administrator", "all"), ("management", "configure"), ("policymaker", "read"), ("monitoring", "write"),
       ("administrator", "elsewhere"), ("", "nothing")]
USERS = list(itertools.product(TAGS, GRANTS)) if SECONDS else FEW

Open = collections.namedtuple("Open", "client exchange queue")


@pytest.fixture(scope="module")
def opened(broker, management):
    """A vhost whose name is the same in a path, and what the requests are about."""
    management.request("PUT", "vhosts/openapi", {})
    management.request("PUT", "permissions/openapi/guest", {"configure": ".*", "write": ".*", "read": ".*"})
    client = Client(broker, "openapi")
    exchange, _ = hold_six(client, lambda n: {"headers": {"n": n}, "message_id": f"n{n}"})
    work, queue = topology(client, work="work-openapi", parked="parked-openapi")
    park(client, work, queue, ["a", "b"])
    yield Open(client, exchange, queue)
    client.connection.close()
    management.request("DELETE", "vhosts/openapi")


@contextlib.contextmanager
def user(management, tag, granted):
    name = f"{tag or 'untagged'}-{granted}"
    assert management.request("PUT", f"users/{name}", {"password": name, "tags": tag})[0] == 201
    if GRANTS[granted] is not None:
        assert management.request("PUT", f"permissions/openapi/{name}", {
            what: ".*" if what in GRANTS[granted] else "^$" for what in GRANTS["all"]})[0] == 201
    yield name
    management.request("DELETE", f"users/{name}")


def what_there_is(management, opened, granted):
    """All that who has only this may not change."""
    granted = GRANTS[granted] or ()
    found = declared(management, "openapi")
    if "configure" not in granted:
        path = f"delayed-exchanges/openapi/{opened.exchange}"
        found.update(messages=management.get(f"{path}/messages?body=true")["items"],
                     paused=management.get(path)["paused"])
    if "read" not in granted:
        found.update(depth=opened.client.depth(opened.queue),
                     jobs=[job["id"] for job in management.get("dead-letter-redrives")["redrives"]])
    return found


# The user that may do most comes last.
@pytest.mark.parametrize("tag, granted", USERS[::-1])
def test_schemathesis_finds_nothing(broker, management, opened, program, tmp_path, tag, granted):
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.format(vhost="openapi", exchange=opened.exchange, queue=opened.queue))
    most = (tag, granted) == FEW[0]
    argv = [program, "--config-file", str(config), "run", os.path.join(DESCRIBED, "openapi.json"),
            "--url", f"http://127.0.0.1:{broker.management_port}/api",
            "--checks", "all", "--max-examples", str(EXAMPLES if most or SECONDS else 1),
            "--seed", "1" if not SECONDS else str(os.getpid()),
            "--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off", "--no-color",
            "--generation-database", "none"]
    if SECONDS:
        argv += ["--max-time", str(SECONDS if most else SECONDS // len(USERS))]
    elif not most:
        argv += ["--phases", "fuzzing"]
    # It asks some hundred times: far longer than any machine needs.
    signal.alarm(SECONDS + 900)
    size, before = len(broker.log()), what_there_is(management, opened, granted)
    with user(management, tag, granted) as name:
        done = subprocess.run([*argv, "--auth", f"{name}:{name}"], capture_output=True, text=True, check=False,
                              cwd=tmp_path, timeout=SECONDS + 880)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert what_there_is(management, opened, granted) == before
    assert not crashes(broker.log()[size:])
