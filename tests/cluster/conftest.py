# SPDX-License-Identifier: MPL-2.0
"""Where namespaces cannot be had, nothing here can be tested, and why is said."""

import os
import shutil
import sys
import tempfile

import pytest

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)),
                os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration")]

import cluster  # noqa: E402
import namespaces  # noqa: E402
from time_limit import pytest_runtest_setup, time_limit  # noqa: E402, F401

LONGEST_TEST_SECONDS = 1800

cluster.Node.loads_together = True


@pytest.fixture(scope="session", autouse=True)
def allowed():
    reason = namespaces.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def directory():
    """Where the nodes of a module's clusters have what is theirs."""
    path = tempfile.mkdtemp(prefix="dw-cluster-")
    yield path
    if not os.environ.get("KEEP_BROKERS"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def deadline():
    with time_limit(LONGEST_TEST_SECONDS):
        yield
