# SPDX-License-Identifier: MPL-2.0
"""The pages about clients show nothing that is not run: each block of a program's text is a part of a
file in examples/, and each file there is on its language's page. Their table is written as it should be."""

import glob
import importlib.machinery
import importlib.util
import os
import re
import textwrap

import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGES = {os.path.basename(path)[:-len(".md")]: path
         for path in glob.glob(os.path.join(REPOSITORY, "docs", "clients", "*.md"))}
# Commands and settings are no programs.
NO_PROGRAM = {"", "sh", "console", "text"}


def text_of(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def sources():
    """The examples' files, by path, without indentation."""
    found = {}
    for directory, _, files in os.walk(os.path.join(REPOSITORY, "examples")):
        if "node_modules" in directory or "target" in directory.split(os.sep):
            continue
        for name in files:
            path = os.path.join(directory, name)
            with open(path, encoding="utf-8", errors="replace") as f:
                found[os.path.relpath(path, REPOSITORY)] = f.read()
    return found


def flat(text):
    """Its lines without what they are indented by; blank lines count for nothing."""
    return "\n" + "".join(line.strip() + "\n" for line in text.splitlines() if line.strip())


@pytest.mark.parametrize("page", sorted(PAGES))
def test_what_a_page_shows_is_in_an_example(page):
    programs = [flat(text) for text in sources().values()]
    blocks = re.findall(r"^```(.*)\n((?s:.*?))^```$", text_of(PAGES[page]), re.MULTILINE)
    for language, block in blocks:
        if language.strip() not in NO_PROGRAM:
            shown = flat(textwrap.dedent(block))
            assert any(shown in program for program in programs), (
                f"{page}.md shows what is in no example:\n{block}")


def test_every_example_is_on_its_page():
    for path in sources():
        parts = path.split("/")
        if parts[:2] == ["examples", "clients"] and not parts[-1].startswith((".", "__")) \
                and not parts[-1].endswith((".pyc", ".lock", ".sum", "package-lock.json")):
            page = text_of(PAGES[parts[2]])
            named = ["/".join(parts[2:n]) for n in range(4, len(parts) + 1)]
            assert any(name in page for name in named), f"{path} is not on {parts[2]}.md"


# ------------------------------------------------------------------------- the table of clients

def table():
    path = os.path.join(REPOSITORY, "tests", "clients", "table")
    loader = importlib.machinery.SourceFileLoader("clients_table", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def row(client, version, series, *what, language="python"):
    return {"language": language, "client": client, "version": version, "series": series,
            "what": list(what)}


def test_a_row_of_what_was_not_run_stays():
    before = table().merged({}, [row("pika", "1", "3.10", "delay"), row("a", "2", "4.0", "delay"),
                                 row("pika", "1", "4.0", "delay")])
    after = table().merged(before, [row("pika", "1", "4.0", "retry")])
    assert after == {("python", "pika"): ({"3.10": "1", "4.0": "1"},
                                          {"delay": {"3.10", "4.0"}, "retry": {"4.0"}}),
                     ("python", "a"): ({"4.0": "2"}, {"delay": {"4.0"}})}


def test_of_another_version_only_what_was_run_is_there():
    before = table().merged({}, [row("pika", "1", "3.10", "delay"), row("pika", "1", "4.0", "old")])
    after = table().merged(before, [row("pika", "2", "4.0", "retry"), row("pika", "2", "4.3", "a")])
    assert after == {("python", "pika"): ({"4.0": "2", "4.3": "2"},
                                          {"retry": {"4.0"}, "a": {"4.3"}})}


def test_what_is_written_is_read_again():
    rows = [row("pika", "1", "3.10", "a", "delay"), row("pika", "1", "4.0", "a", "on (one)"),
            row("pika", "1", "4.3", "a", "delay"), row("Bunny", "3", "4.0", "z", language="ruby"),
            row("amqp", "1", "4.3", "b")]
    once = table().merged({}, rows)
    text = table().written(once)
    assert "| a, delay (3.10 and 4.3), on (one) (4.0) |" in text
    assert table().parsed(text) == once
    assert table().written(table().parsed(text)) == text
    assert [line.split("|")[2].strip() for line in text.splitlines()[2:]] == ["amqp", "pika", "Bunny"]


def test_the_table_of_the_page_is_as_it_is_written():
    page = text_of(PAGES["README"])
    written = page.split(table().BEGIN)[1].split(table().END)[0]
    assert table().written(table().parsed(written)) == written
