# SPDX-License-Identifier: MPL-2.0
"""A node that does not stop says who waits in it."""

import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))

import stuck_node  # noqa: E402

# A child that its supervisor, and so the whole node, waits for without a bound.
STUCK = """
    {ok, _} = supervisor:start_child(kernel_safe_sup, #{
        id => stuck, shutdown => infinity, start => {proc_lib, start_link, [erlang, apply, [
            fun() ->
                process_flag(trap_exit, true),
                proc_lib:init_ack({ok, self()}),
                receive {'EXIT', _, shutdown} -> erlang:display(asked) end,
                receive never -> ok end
            end, []]]}}),
    init:stop()."""


def test_a_supervisor_that_waits_is_told_of(tmp_path):
    dump = tmp_path / "erl_crash.dump"
    node = subprocess.Popen(["erl", "-noshell", "-eval", STUCK], env={**os.environ, "ERL_CRASH_DUMP": str(dump)},
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert node.stdout.readline() == "asked\n"
        node.send_signal(signal.SIGUSR1)
        assert node.wait(60) != 0
    finally:
        node.kill()
        node.stdout.close()
    said = [line for line in stuck_node.report(str(dump)).splitlines() if "kernel_safe_sup" in line]
    assert len(said) == 1 and "supervisor:" in said[0], stuck_node.report(str(dump))


def test_no_dump_is_said(tmp_path):
    assert stuck_node.report(str(tmp_path / "none")).startswith("no crash dump: ")
