# SPDX-License-Identifier: MPL-2.0
"""What the samples of a plain client print, in whatever language, and what they leave behind."""

import os
import re

from management import quoted
from private_broker import REPOSITORY

EXAMPLES = os.path.join(REPOSITORY, "examples", "clients")
REFUSAL = r'.*header x-delay is the string "5m".*'

# By the sample's name. The seconds are how late the message came, at least as many as asked for.
SAID = {
    "delayed": [r"hello, ([\d.]+) s later", "x-delay: -2000"],
    "mandatory": ["in a second: taken", "at once: returned, NO_ROUTE"],
    "wrong": ["5m: " + REFUSAL, "1000: taken"],
    "cancel": ["expired: order 1", "expired: order 3"],
    "retry": [*(f"order 1, attempt {n}" for n in (1, 2, 3, 4)),
              "order 1 is parked: attempts_used_up"],
}
# Of a library that has one program for all.
SAID_WITH = ["delayed: taken", "at once: returned", "5m: " + REFUSAL,
             r"hello, ([\d.]+) s later", "x-delay: -6000"]
# Of one that is told of a wrong delay, but not more.
SAID_UNTOLD = ["5m refused: true", r"hello, ([\d.]+) s later", "x-delay: -6000"]
# Of one for AMQP 1.0.
SAID_AMQP10 = ["delayed: taken", "at once: returned", "5m: " + REFUSAL.replace("header", "annotation"),
               *SAID_UNTOLD[1:], *SAID["retry"]]
SECONDS = {"x-delay: -2000": 2.0, "x-delay: -6000": 6.0, "x-delay: 6000": 6.0}
WHAT = {"delayed": "delay", "mandatory": "mandatory", "wrong": "wrong delay", "cancel": "cancel",
        "retry": "retry"}


def sample(language, name):
    return os.path.join(EXAMPLES, language, name)


def assert_said(output, wanted):
    lines = output.splitlines()
    assert len(lines) == len(wanted), output
    for line, pattern, following in zip(lines, wanted, [*wanted[1:], None]):
        found = re.fullmatch(pattern, line)
        assert found, (line, pattern)
        if found.groups():
            # Rounded to a tenth of a second, and by a clock that may be another one.
            assert float(found.group(1)) >= SECONDS[following] - 0.1, output


def declare(client, kind="direct"):
    """What the samples for other protocols than AMQP 0-9-1 find there; `alone` deletes it."""
    client.delayed(kind, name="later", keep=True)
    client.queue(("later", "job"), name="work", keep=True)


def declare_retry(client):
    """And what those have that retry."""
    client.delayed(name="retry", keep=True, arguments={
        "x-delay-retry": "100ms,200ms,400ms", "x-delay-retry-parking-exchange": "",
        "x-delay-retry-parking-routing-key": "parked"})
    client.queue(name="parked", keep=True)
    client.queue(name="orders", keep=True, arguments={"x-dead-letter-exchange": "retry"})


def forget(management):
    """Deletes what the samples declare."""
    for kind, names in (("queues", ("work", "orders", "parked")),
                        ("exchanges", ("later", "retry"))):
        for name in names:
            management.request("DELETE", f"{kind}/%2F/{quoted(name)}")
