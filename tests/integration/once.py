# SPDX-License-Identifier: MPL-2.0
"""Which tests need not run on every series: what they look at is our own code behind the adapters, a
file format, a program that is the same everywhere; or what differs between the oldest broker and the newest,
and not between that one and those before it. A run of several series (CHECKED_SERIES) has each
of them on those named here; where none of those is among the run's, on its first. A run of one series
alone has all of them."""

import os

# A file's name, or a test's without its parameters: where it runs.
ONCE = {
    "test_after_delay.py": ["3.10", "4.3"],
    "test_archives.py": ["3.10", "4.0"],
    "test_attacks.py": ["3.10", "4.3"],
    "test_broken_store.py": ["3.10", "4.3"],
    "test_commands.py": ["4.0"],
    "test_configuration.py": ["4.0"],
    "test_delay_header.py": ["3.10", "4.3"],
    "test_delayed_api.py": ["4.0"],
    "test_disk_writing.py": ["4.3"],
    "test_doctor.py": ["3.10", "4.3"],
    "test_doctor_command.py": ["4.0"],
    "test_documents.py": ["3.10"],
    "test_examples.py": ["4.0"],
    "test_faults.py": ["3.10", "4.3"],
    "test_fixtures.py": ["3.10", "4.3"],
    "test_from_one_node.py": ["4.0"],
    "test_full_store.py": ["3.10", "4.3"],
    "test_keys.py": ["4.0"],
    "test_library.py": ["4.0"],
    "test_lifecycle.py": ["3.10", "4.3"],
    "test_limits.py": ["4.0"],
    "test_moving_from_ladders.py": ["3.10", "4.3"],
    "test_moving_in.py": ["3.10", "4.0"],
    "test_nack.py": ["3.10", "4.3"],
    "test_openapi.py": ["3.10", "4.3"],
    "test_operators.py": ["3.10", "4.3"],
    "test_overflow.py": ["3.10", "4.3"],
    "test_pending.py": ["4.0"],
    "test_permissions.py": ["3.10", "4.3"],
    "test_publisher.py": ["3.10", "4.3"],
    "test_redrive.py": ["3.10", "4.3"],
    "test_requests.py": ["3.10", "4.3"],
    "test_retry.py": ["3.10", "4.3"],
    "test_slow_metadata.py": ["3.10", "4.3"],
    "test_targets.py": ["3.10", "4.3"],
    "test_times.py": ["4.0"],
    "test_lifecycle.py::test_five_hundred_exchanges_delay_at_once": ["4.3"],
    "test_lifecycle.py::test_after_a_boot_with_many_exchanges_each_holds_little": ["4.3"],
    "test_member_commands.py::test_what_cannot_be_is_refused_in_words": ["4.0"],
    "test_metrics.py::test_figures_come_and_go_with_either_plugin": ["4.3"],
    "test_moving_in.py::test_the_broker_ends_in_the_middle": ["4.0"],
    "test_dead_letter_messages.py::test_looking_and_moving_few_never_drops_the_others": ["3.10", "4.3"],
    "test_redrive.py::test_the_broker_ends_in_the_middle": ["4.0"],
    "test_redrive_jobs.py::test_a_process_is_killed_in_the_middle": ["3.10"],
    "test_redrive_jobs.py::test_the_broker_is_killed_in_the_middle": ["4.0"],
    "test_targets.py::test_a_quorum_queue_without_a_majority_holds_up_no_other": ["4.3"],
    "test_transfer.py::test_the_broker_ends_in_the_middle": ["4.3"],
    # Drawn into the broker's own pages, where each is looked at narrow and wide on every series.
    "test_dead_letter_ui.py": ["4.0"],
    "test_management_ui.py": ["4.3"],
}


def where(nodeid):
    """The series named for a test, None if it runs on every one."""
    path, _, test = nodeid.partition("::")
    file = os.path.basename(path)
    return ONCE.get(f"{file}::{test.partition('[')[0]}") or ONCE.get(file)


def runs(nodeid, series, checked):
    """Whether a test runs on a series in a run of those checked."""
    named = where(nodeid)
    if named is None or len(checked) < 2:
        return True
    return series in ([one for one in named if one in checked] or checked[:1])
