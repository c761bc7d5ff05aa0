# SPDX-License-Identifier: MPL-2.0
"""No test waits for ever, whatever is not answered."""

import contextlib
import signal


@contextlib.contextmanager
def time_limit(seconds):
    """What takes longer is interrupted."""
    def over(*_):
        raise TimeoutError(f"the test takes more than {seconds} s")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
