# SPDX-License-Identifier: MPL-2.0
"""Tests that run on one series only, in a run of several: each is there, and runs on one at least."""

import itertools
import os
import sys

import pytest

INTEGRATION = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration")
sys.path.insert(0, INTEGRATION)

import once  # noqa: E402

SERIES = ["3.10", "4.0", "4.3"]
RUNS = [list(some) for n in (1, 2, 3) for some in itertools.combinations(SERIES, n)]


@pytest.mark.parametrize("name", once.ONCE)
def test_what_is_named_is_there(name):
    file, _, test = name.partition("::")
    with open(os.path.join(INTEGRATION, file), encoding="utf-8") as f:
        text = f.read()
    assert not test or f"\ndef {test}(" in text
    assert once.ONCE[name] and set(once.ONCE[name]) <= set(SERIES)


@pytest.mark.parametrize("checked", RUNS, ids="+".join)
@pytest.mark.parametrize("name", once.ONCE)
def test_whatever_a_run_has_each_runs_where_it_is_named_or_once(name, checked):
    nodeid = "tests/integration/" + (name if "::" in name else f"{name}::test_x") + "[a-[b]]"
    where = [series for series in checked if once.runs(nodeid, series, checked)]
    named = [series for series in checked if series in once.ONCE[name]]
    assert where == (checked if len(checked) == 1 else named or checked[:1])


@pytest.mark.parametrize("nodeid", ["tests/integration/test_protocols.py::test_x",
                                    "tests/integration/test_transfer.py::test_there_and_back",
                                    "tests/integration/test_dead_letter_messages.py::test_looking"])
def test_all_others_run_on_every_series(nodeid):
    assert all(once.runs(nodeid, series, SERIES) for series in SERIES)
    assert once.runs(nodeid, "4.3", [])
