# SPDX-License-Identifier: MPL-2.0
"""What the sum at the end of the tests says can be believed: nothing that failed, crashed, or did not
run is passed over, and what was skipped is named."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TALLY = os.path.join(TESTS, "tally")
INTEGRATION = os.path.join(TESTS, "integration")
WITHIN = 300


@pytest.fixture
def tally(tmp_path):
    """tally(argument...): runs it, its results in a directory of the test's own."""
    def run(*arguments, code=0, **environment):
        done = subprocess.run([sys.executable, TALLY, *arguments], capture_output=True, text=True,
                              check=False, timeout=WITHIN, cwd=tmp_path,
                              env={**os.environ, "CHECK_ENDS": "", "TALLY_RESULTS": str(tmp_path / "results"),
                                   **environment})
        assert done.returncode == code, done
        return done.stdout
    return run


def last(text):
    return text.splitlines()[-1]


def junit(path, *cases):
    """A command that writes such a file."""
    path.parent.mkdir(exist_ok=True)
    text = "<testsuites><testsuite>" + "".join(cases) + "</testsuite></testsuites>"
    return ["sh", "-c", 'printf %s "$0" >"$1"; exit $2', text, str(path)]


PASSED = '<testcase classname="c" name="passed"/>'
FAILED = '<testcase classname="c" name="failed"><failure message="no"/></testcase>'
SKIPPED = '<testcase classname="c" name="skipped"><skipped message="cannot be had"/></testcase>'


def test_commands_are_tests(tally):
    tally("run", "a", "--", "true")
    assert last(tally("sum")) == "1 passed, 0 failed"
    tally("run", "b", "--", "false")
    tally("run", "c", "--", "/no/such/command")
    said = tally("sum", code=1)
    assert last(said) == "1 passed, 2 failed"
    assert "FAILED exit code 1" in said and "FAILED exit code 127" in said
    assert last(tally("sum", "a")) == "1 passed, 0 failed"


def test_without_any_suite_the_sum_is_a_failure(tally):
    assert last(tally("sum", code=1)) == "0 passed, 0 failed"


@pytest.mark.parametrize("cases, code, wanted", [
    ([PASSED, PASSED], 0, "2 passed, 0 failed"),
    ([PASSED, SKIPPED], 0, "1 passed, 0 failed, 1 skipped"),
    ([PASSED, FAILED], 1, "1 passed, 1 failed"),
    ([PASSED, FAILED], 0, "1 passed, 1 failed"),
    ([PASSED, FAILED], 3, "1 passed, 2 failed"),
    ([PASSED], 1, "1 passed, 1 failed"),
    ([PASSED], 139, "1 passed, 1 failed"),
    ([], 0, "0 passed, 1 failed"),
    ([SKIPPED], 0, "0 passed, 1 failed, 1 skipped"),
])
def test_suites_are_what_they_wrote_and_how_they_ended(tally, tmp_path, cases, code, wanted):
    path = tmp_path / "junit" / "a.xml"
    tally("run", "a", "--junit", str(path), "--", *junit(path, *cases), str(code))
    said = tally("sum", code=0 if " 0 failed" in wanted else 1)
    assert last(said) == wanted
    if SKIPPED in cases:
        assert "skipped: a: cannot be had (c skipped)" in said.splitlines()
    if FAILED in cases:
        assert "    FAILED c failed\n        no\n" in said


@pytest.fixture
def steadying(tmp_path):
    """A module of tests that pass from so many runs on, and the command that runs it."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_s.py").write_text("""
import pathlib, pytest
@pytest.mark.parametrize("passes_from", [1, 1, 2, 3])
def test_it(passes_from, request):
    count = pathlib.Path(__file__).with_name(request.node.name.replace("/", "-"))
    runs = len(count.read_text()) + 1 if count.exists() else 1
    count.write_text("x" * runs)
    assert runs >= passes_from, "not yet"
""")
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def test_what_passes_when_run_once_more_is_named_as_unsteady(tally, tmp_path, steadying):
    command = [*steadying, f"--junitxml={tmp_path}/junit/a.xml"]
    tally("run", "a", "--junit", f"{tmp_path}/junit/*.xml", "--", *command, "tests")
    assert last(tally("sum", code=1)) == "2 passed, 2 failed"
    tally("again", "a", "--junit", f"{tmp_path}/again/*.xml", "--", *steadying,
          f"--junitxml={tmp_path}/again/a.xml")
    said = tally("sum", code=1)
    assert last(said) == "3 passed, 1 failed"
    assert re.search(r"^    unsteady, passed when run once more: tests.test_s test_it\[2\]\n .*not yet",
                     said, re.MULTILINE)
    assert re.search(r"^    FAILED tests.test_s test_it\[3\]\n .*not yet", said, re.MULTILINE)


@pytest.mark.parametrize("cases, code", [
    ([FAILED] * 6, 1), ([PASSED, FAILED], 3), ([PASSED], 139), ([PASSED], 0)])
def test_many_that_failed_or_a_crash_are_not_looked_at_again(tally, tmp_path, cases, code):
    path = tmp_path / "junit" / "a.xml"
    tally("run", "a", "--junit", str(path), "--", *junit(path, *cases), str(code))
    failed = 0 if cases == [PASSED] and code == 0 else 1
    before = tally("sum", code=failed)
    tally("again", "a", "--junit", str(path), "--", *junit(path, PASSED), "0")
    assert tally("sum", code=failed) == before


def test_what_was_written_before_or_only_in_part_does_not_count(tally, tmp_path):
    path = tmp_path / "junit" / "a.xml"
    subprocess.run([*junit(path, PASSED), "0"], check=True)
    tally("run", "a", "--junit", str(path), "--", "true")
    assert last(tally("sum", code=1)) == "0 passed, 1 failed"
    tally("run", "a", "--junit", str(path), "--", "sh", "-c", f"echo '<testsuites>' >{path}")
    assert last(tally("sum", code=1)) == "0 passed, 1 failed"


def test_what_a_suite_and_its_children_use_of_the_processor_is_said(tally):
    busy = "import time\nwhile time.process_time() < 1: pass"
    tally("run", "a", "--", "sh", "-c", f"{sys.executable} -c '{busy}'; true")
    tally("run", "b", "--", "true")
    lines = {line.split()[0]: float(line.split()[-3]) for line in tally("sum").splitlines()
             if line.endswith(" s CPU")}
    assert 0.9 <= lines["a"] < 30 and lines["b"] < 0.9


def test_what_has_not_begun_in_time_is_named_as_skipped(tally, tmp_path):
    soon, over = str(time.time() + WITHIN), str(time.time() - 1)
    tally("run", "a", "--", "true", CHECK_ENDS=soon)
    tally("run", "b", "--", "false", CHECK_ENDS=over)
    (tmp_path / "conftest.py").write_text("from time_limit import pytest_runtest_setup\n")
    (tmp_path / "test_two.py").write_text(
        "import os\n"
        f"def test_in_time(): os.environ['CHECK_ENDS'] = '{over}'\n"
        "def test_late(): assert False\n")
    tally("run", "c", "--junit", "c/*.xml", "--", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
          "--junitxml=c/c.xml", "test_two.py", CHECK_ENDS=soon, PYTHONPATH=INTEGRATION)
    said = tally("sum")
    assert last(said) == "2 passed, 0 failed, 2 skipped"
    assert "skipped: b: the time of the run is over" in said
    assert "skipped: c: the time of the run is over (test_two test_late)" in said


def test_what_cannot_be_had_is_skipped_with_its_reason(tally):
    tally("run", "a", "--", "true")
    tally("need", "b", "--", "sh", "-c", "echo more >&2; echo 'there is none' >&2; exit 3", code=3)
    said = tally("sum").splitlines()
    assert said[-2:] == ["skipped: b: there is none", "1 passed, 0 failed, 1 skipped"]
    tally("need", "c", "--", "sh", "-c", "echo 'it broke' >&2; exit 4", code=4)
    said = tally("sum", code=1)
    assert last(said) == "1 passed, 1 failed, 1 skipped" and "it broke" in said
    tally("need", "d", "--", "true")
    tally("fail", "e", "it cannot be built")
    assert last(tally("sum", code=1)) == "1 passed, 2 failed, 1 skipped"


CRASHES = """
import os
def test_before(): pass
def test_crash(): os._exit(0)
def test_after(): pass
"""


@pytest.mark.parametrize("crashing", [1, 3])
def test_a_worker_that_crashes_is_a_failure_and_the_other_tests_are_run(tally, tmp_path, crashing):
    suite = tmp_path / "suite"
    suite.mkdir()
    for n in range(4):
        (suite / f"test_{n}.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    for n in range(crashing):
        (suite / f"test_crash_{n}.py").write_text(CRASHES)
    path = tmp_path / "junit" / "a.xml"
    tally("run", "a", "--junit", str(path), "--", "env", f"PYTHONPATH={INTEGRATION}", sys.executable,
          "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-p", "workers",
          f"--junitxml={path}", str(suite))
    said = tally("sum", code=1)
    assert last(said) == f"{8 + 2 * crashing} passed, {crashing} failed"
    assert len(re.findall(r"FAILED .* test_crash$", said, re.M)) == said.count("FAILED") == crashing


LEAVES = """
import os, subprocess, sys, tempfile
told = open(sys.argv[1], "w")
with tempfile.NamedTemporaryFile(delete=False) as f:
    pass
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(f.name, child.pid, file=told)
"""


def is_there(pid):
    """A process that has ended may wait for a parent that does not ask."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_a_suite_leaves_behind_is_gone(tally, tmp_path):
    program, told = tmp_path / "leaves.py", tmp_path / "told"
    program.write_text(LEAVES)
    said = tally("run", "a", "--", sys.executable, str(program), str(told))
    name, pid = told.read_text().split()
    assert f"left running, ended: {pid} sleep 1000" in said
    assert not is_there(pid)
    assert not os.path.exists(name) and not os.path.exists(os.path.dirname(name))


def test_one_that_is_ended_leaves_nothing_and_does_not_count_as_passed(tally, tmp_path):
    program, told = tmp_path / "leaves.py", tmp_path / "told"
    program.write_text(LEAVES + "told.close(); child.wait()\n")
    with subprocess.Popen([sys.executable, TALLY, "run", "a", "--", sys.executable, str(program),
                           str(told)], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "TALLY_RESULTS": str(tmp_path / "results")}) as process:
        deadline = time.monotonic() + WITHIN
        while not (told.exists() and re.fullmatch(r"\S+ \d+\n", told.read_text())):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WITHIN)
    name, pid = told.read_text().split()
    assert not is_there(pid) and not os.path.exists(name)
    said = tally("sum", code=1)
    assert last(said) == "0 passed, 1 failed" and "did not end" in said
