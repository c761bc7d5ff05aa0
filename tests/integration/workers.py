# SPDX-License-Identifier: MPL-2.0
"""A pytest plugin: how the tests are shared out among workers (pytest-xdist), which crash now and then
when a suite is being written. pytest-xdist's own way by file gives a test that crashes its worker to
the next one too, and may wait for ever; one that crashes after its last test is no failure to it."""

import contextlib
import os

import pytest
from xdist.scheduler import LoadFileScheduling

import once

# None of the files that take longest is to be the last that begins.
LONGEST = ["test_moving_in.py", "test_lifecycle.py", "test_faults.py", "test_series.py",
           "test_doctor.py", "test_retry.py", "test_redrive.py", "test_pending.py", "test_limits.py",
           "test_targets.py", "test_management_ui.py", "test_delayed_api.py", "test_examples.py",
           "test_slow_metadata.py", "test_library.py"]


def _place(path):
    name = os.path.basename(path)
    return (LONGEST.index(name) if name in LONGEST else len(LONGEST), path)


def pytest_collection_modifyitems(config, items):
    checked = os.environ.get("CHECKED_SERIES", "").split()
    elsewhere = [item for item in items
                 if not once.runs(item.nodeid, os.environ.get("BROKER_SERIES", "3.10"), checked)]
    if elsewhere:
        items[:] = [item for item in items if item not in set(elsewhere)]
        config.hook.pytest_deselected(items=elsewhere)
    items.sort(key=lambda item: _place(str(item.path)))


class ByFile(LoadFileScheduling):
    """Each file is one worker's, and a test that crashed is done."""

    def remove_node(self, node):
        workload = self.assigned_work[node]
        crashed = next((nodeid for unit in workload.values()
                        for nodeid, done in unit.items() if not done), None)
        for unit in workload.values():
            if crashed in unit:
                unit[crashed] = True
        left = {scope: unit for scope, unit in workload.items() if not all(unit.values())}
        del self.assigned_work[node]
        self.workqueue.update(left)
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    def _reschedule(self, node):
        # A worker begins a test when it has the next one as well, or knows that there is none.
        # One that takes a crashed one's place gets none before it has said which it knows.
        if node.shutting_down or node not in self.registered_collections:
            return
        while self.workqueue and self._pending_of(self.assigned_work[node]) <= 2:
            # What is given to one that has just crashed is taken back when that is known.
            with contextlib.suppress(OSError):
                self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


class _Watch:
    """In the process that has the workers: none of them may crash, no test may be missing."""

    def __init__(self):
        self.collected, self.reported, self.crashed = set(), set(), []

    def pytest_xdist_node_collection_finished(self, ids):
        self.collected.update(ids)

    def pytest_runtest_logreport(self, report):
        self.reported.add(report.nodeid)

    def pytest_testnodedown(self, node, error):
        if error:
            self.crashed.append(f"worker {node.gateway.id}: {error}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == 0 and self.problems():
            session.exitstatus = 1

    def problems(self):
        return self.crashed + [f"{nodeid}: was not run"
                               for nodeid in sorted(self.collected - self.reported)]

    def pytest_terminal_summary(self, terminalreporter):
        for problem in self.problems():
            terminalreporter.write_line(f"ERROR {problem}")


def pytest_configure(config):
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Watch())
