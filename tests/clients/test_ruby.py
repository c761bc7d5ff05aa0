# SPDX-License-Identifier: MPL-2.0
"""Ruby's client, as Debian packages it: what the samples print is what happened."""

import json
import os

import pytest

import header_values
import locked
import lost
from samples import SAID, WHAT, assert_said, sample


def version(executed):
    return executed("dpkg-query", "-W", "-f", "${source:Upstream-Version}", "ruby-bunny")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, executed, checked, name):
    assert_said(executed("ruby", sample("ruby", f"{name}.rb"), broker.amqp_url), SAID[name])
    checked("Bunny", version(executed), WHAT[name])


def test_header_values(broker, client, executed, checked, tmp_path):
    """A decimal's fraction is lost in its encoder."""
    chosen = [case for case in header_values.cases("IldDTVtSAF") if case.name != "decimal"]
    exchange, queue = client.delayed_and_queue()
    told = executed("ruby", os.path.join(locked.HERE, "ruby", "header_values.rb"), broker.amqp_url,
                 exchange, header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told), {"I": "l"})
    checked("Bunny", version(executed), "header values")


def test_a_broker_that_is_lost(brokers, executed, checked):
    """It waits for as long as for any answer, and does not say why there is none."""
    lines = lost.told(brokers, "ruby", "ruby", os.path.join(locked.HERE, "ruby", "lost.rb")).splitlines()
    assert lines == ["Timeout::Error"]
    checked("Bunny", version(executed), "broker lost")
