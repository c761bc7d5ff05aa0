# SPDX-License-Identifier: MPL-2.0
"""What tests/static/sizes finds, and what it lets be."""

import os
import subprocess

import pytest

SIZES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sizes")


def c_function(name, lines, head="int {}(void)"):
    return f"{head.format(name)} {{\n" + "    f(\"} ends nothing\");\n" * (lines - 2) + "}\n"


def erlang_function(name, lines, spec=""):
    """In clauses of three lines, with what looks like an end in comments, strings and numbers."""
    clauses = [f"{name}({n}) ->\n    %% one. Then\n    {{\"a.\", 1.5}};\n" for n in range(lines // 3 - 1)]
    return spec + "".join(clauses) + f"{name}(_) ->\n" + "    f(),\n" * (lines % 3 + 1) + "    ok.\n"


@pytest.fixture
def checkout(tmp_path):
    """Writes files into a repository and answers what `sizes` says of it: its exit code and lines."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)

    def check(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        done = subprocess.run([SIZES, tmp_path], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.strip().splitlines()
    return check


@pytest.mark.parametrize("name, mark", [("c_src/a.c", "/* {} */"), ("erl_src/a.erl", "%% {}"),
                                        ("tests/a.py", "{}"), ("priv/a.js", "// {}"),
                                        ("tests/c/a.c", " * {}")])
def test_long_files_say_why(checkout, name, mark):
    assert checkout({name: "\n" * 600}) == (0, [])
    assert checkout({name: "\n" * 601}) == (1, [f"{name}: 601 lines, and its head does not say why"])
    why = mark.format("Longer than other files are, as it is of one kind.") + "\n"
    assert checkout({name: "\n" * 10 + why + "\n" * 600}) == (0, [])
    for none in (mark.format("Longer than other files are, as \n"), mark.format("Longer than other files are\n"), "\n" * 50 + why):
        assert checkout({name: none + "\n" * 601})[0] == 1


@pytest.mark.parametrize("head", ["int {}(void)", "static void *{}(int a,\n    struct b *c)",
                                  "DW_LOCKED int\n{}(const char *s)"])
def test_long_c_functions(checkout, head):
    extra = head.count("\n")
    fits = c_function("fits", 60 - extra, head)
    assert checkout({"c_src/a.c": "#include <a.h>\n\n" + fits}) == (0, [])
    before = "#include <a.h>\n\nstruct s {\n    int a;\n};\n\nstatic int table[] = {\n    1,\n};\n\n"
    at = (before + fits).count("\n") + 2
    text = before + fits + "\n" + c_function("long_one", 61 - extra, head) + "\n" + c_function("last", 3)
    assert checkout({"c_src/a.c": text}) == (1, [f"c_src/a.c:{at}: long_one has 61 lines"])


def test_long_erlang_functions(checkout):
    head = "-module(a).\n-export([f/1]).\n\n"
    fits = erlang_function("fits", 60)
    assert checkout({"erl_src/a.erl": head + fits}) == (0, [])
    spec = "-spec long_one(integer()) ->\n          ok.\n"
    text = head + fits + "\n" + erlang_function("long_one", 61, spec) + "\n" + erlang_function("last", 6)
    at = text.splitlines().index("long_one(0) ->") + 1
    assert checkout({"erl_src/a.erl": text}) == (1, [f"erl_src/a.erl:{at}: long_one has 61 lines"])


def test_functions_of_tests_may_be_long(checkout):
    assert checkout({"tests/c/a.c": c_function("cases", 100),
                     "tests/erl/a.erl": erlang_function("cases", 100)}) == (0, [])
