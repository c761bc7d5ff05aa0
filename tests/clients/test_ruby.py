# SPDX-License-Identifier: MPL-2.0
"""Ruby's client, as Debian packages it: what the samples print is what happened."""

import pytest

from samples import SAID, WHAT, assert_said, sample


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, executed, checked, name):
    assert_said(executed("ruby", sample("ruby", f"{name}.rb"), broker.amqp_url), SAID[name])
    checked("Bunny", executed("dpkg-query", "-W", "-f", "${source:Upstream-Version}",
                              "ruby-bunny"), WHAT[name])
