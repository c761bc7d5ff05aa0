# SPDX-License-Identifier: MPL-2.0
"""No test waits for ever, whatever is not answered, and none begins when the time of a run is over."""

import contextlib
import os
import signal
import time

import pytest


@contextlib.contextmanager
def time_limit(seconds):
    """What takes longer is interrupted."""
    def over(*_):
        raise TimeoutError(f"the test takes more than {seconds} s")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    yield
    signal.alarm(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """CHECK_ENDS is when the last test may begin, in seconds since 1970."""
    if time.time() > float(os.environ.get("CHECK_ENDS") or "inf"):
        pytest.skip("the time of the run is over")
