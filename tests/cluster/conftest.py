# SPDX-License-Identifier: MPL-2.0
"""Where namespaces cannot be had, nothing here can be tested, and why is said."""

import os
import signal
import sys

import pytest

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)),
                os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration")]

import namespaces  # noqa: E402

# No test waits for ever, whatever is not answered.
LONGEST_TEST_SECONDS = 1800


@pytest.fixture(scope="session", autouse=True)
def allowed():
    reason = namespaces.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def deadline():
    def over(*_):
        raise TimeoutError(f"the test takes more than {LONGEST_TEST_SECONDS} s")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(LONGEST_TEST_SECONDS)
    yield
    signal.alarm(0)
