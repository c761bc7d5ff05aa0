# SPDX-License-Identifier: MPL-2.0
"""tests/static/locks finds what is called without the lock that it needs, and what keeps one."""

import os
import subprocess
import sys
import textwrap

import pytest

LOCKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "locks")


def found(tmp_path, body, function="int f(struct s *s)", name="a.c"):
    path = tmp_path / name
    path.write_text(function + " {\n" + textwrap.indent(body, "    ") + "\n}\n")
    done = subprocess.run([sys.executable, LOCKS, str(path)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == bool(done.stdout.strip()), done
    return [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("body", [
    "dw_lock(s);\ng_locked(s);\ndw_unlock(s);\nreturn 0;",
    "if (dw_enter(s) != DW_OK) {\nreturn 1;\n}\ng_locked(s);\nreturn dw_leave(s, 0);",
    "dw_lock(s);\nif (x) {\ndw_unlock(s);\nreturn 1;\n}\ng_locked(s);\ndw_unlock(s);\nreturn 0;",
    "for (;;) {\ndw_lock(s);\nif (!g_locked(s)) {\ndw_unlock(s);\nbreak;\n}\ndw_unlock(s);\n}\nreturn 0;",
    "/* g_locked(s); */\nlog(\"g_locked(s) \\\" {\");\nreturn 0;",
])
def test_what_is_right_is_passed(tmp_path, body):
    assert found(tmp_path, body) == []


@pytest.mark.parametrize("body, wanted", [
    ("g_locked(s);\nreturn 0;", "f calls g_locked without a lock"),
    ("dw_lock(s);\ndw_unlock(s);\ng_locked(s);\nreturn 0;", "f calls g_locked without a lock"),
    ("dw_lock(s);\nif (x) {\ndw_unlock(s);\n}\ng_locked(s);\ndw_unlock(s);\nreturn 0;",
     "f calls g_locked without a lock"),
    ("dw_lock(s);\nif (x) {\nreturn 1;\n}\ndw_unlock(s);\nreturn 0;", "f returns with a lock"),
    ("dw_lock(s);\ng_locked(s);", "f ends with a lock"),
    ("if (dw_enter(s) != DW_OK) {\ng_locked(s);\nreturn 1;\n}\nreturn dw_leave(s, 0);",
     "f calls g_locked without a lock"),
])
def test_what_is_wrong_is_told(tmp_path, body, wanted):
    assert wanted in found(tmp_path, body)


def test_who_is_named_for_it_has_the_callers_lock(tmp_path):
    head = "static void f_locked(struct s *s)"
    assert found(tmp_path, "g_locked(s);", head) == []
    assert found(tmp_path, "dw_unlock(s);", head) == ["f_locked ends without a lock"]


def test_a_store_that_is_being_opened_is_nobody_elses(tmp_path):
    assert found(tmp_path, "g_locked(s);\nreturn 0;", name="dw_recovery.c") == []


def test_nothing_to_look_at_is_no_success():
    assert subprocess.run([sys.executable, LOCKS], check=False).returncode == 1
