# SPDX-License-Identifier: MPL-2.0
"""tests/clients/locked.py: what is locked is installed once, and a registry that does not answer is told
from one that does."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                                "clients"))
import locked  # noqa: E402  pylint: disable=wrong-import-position


@pytest.fixture
def language(monkeypatch, tmp_path):
    """language(install, asks) makes one of which a.lock is the lock file; each installation adds a
    line to `ran`."""
    (tmp_path / "here" / "some").mkdir(parents=True)
    (tmp_path / "here" / "some" / "a.lock").write_text("1")
    monkeypatch.setattr(locked, "HERE", str(tmp_path / "here"))
    monkeypatch.setattr(locked, "BUILT", str(tmp_path / "built"))

    def made(install, asks):
        monkeypatch.setattr(locked, "LANGUAGES", {"some": {
            "registry": "the registry", "locks": ["a.lock"],
            "install": [f"echo >>{tmp_path}/ran", install], "asks": asks}})
        return tmp_path

    return made


def runs(place):
    return len((place / "ran").read_text().splitlines())


def test_it_is_installed_once_and_again_when_the_lock_changes(language):
    place = language("cp a.lock b", "false")
    directory = locked.install("some")
    assert locked.install("some") == directory
    assert runs(place) == 1
    (place / "here" / "some" / "a.lock").write_text("2")
    locked.install("some")
    assert runs(place) == 2
    with open(os.path.join(directory, "b"), encoding="utf-8") as f:
        assert f.read() == "2"


def test_a_registry_that_does_not_answer_is_named(language):
    language("false", "echo no route >&2; false")
    with pytest.raises(locked.Unreachable, match="^the registry cannot be reached: no route$"):
        locked.install("some")


def test_what_cannot_be_installed_though_the_registry_answers_is_a_fault(language):
    place = language("echo the hash differs; false", "true")
    for _ in (1, 2):
        with pytest.raises(AssertionError, match="the hash differs"):
            locked.install("some")
    assert runs(place) == 2


def test_the_lock_files_of_each_language_are_there():
    for name, wanted in locked.LANGUAGES.items():
        directory = os.path.join(locked.HERE, name)
        if os.path.isdir(directory):
            assert [lock for lock in wanted["locks"]
                    if not os.path.exists(os.path.join(directory, lock))] == [], name
