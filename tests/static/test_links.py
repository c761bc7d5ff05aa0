# SPDX-License-Identifier: MPL-2.0
"""What tests/static/links finds, and what it lets be."""

import os
import subprocess

import pytest

LINKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "links")

README = """# It is `here`, or there!

[page](docs/page.md) [its part](docs/page.md#a-part) [same](#it-is-here-or-there) [dir](docs/)
[broken over
lines](docs/page.md#a-part-1) ![picture](docs/picture.svg) [away](https://example.org/#nothing)
`[code](nowhere.md)`

    [code](nowhere.md)

```
[code](nowhere.md)
# no heading
```

- an item

  [named][name] <img src="docs/picture.svg">

[name]: docs/page.md
"""
PAGE = "# Page\n\n## A *part*\n\n## A part\n\n[up](../README.md)\n"


@pytest.fixture
def checkout(tmp_path):
    """Writes files into a repository and answers what `links` says of it: its exit code and lines."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)

    def check(**changed):
        files = {"README.md": README, "docs/page.md": PAGE, "docs/picture.svg": "<svg/>", **changed}
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        done = subprocess.run([LINKS, tmp_path], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.splitlines()[:-1]

    return check


def test_what_leads_somewhere_is_let_be(checkout):
    assert checkout() == (0, [])


@pytest.mark.parametrize("link, why", [
    ("[x](docs/other.md)", "docs/other.md: there is no such file"),
    ("[x](docs/page.md#b-part)", "docs/page.md#b-part: there is no such heading"),
    ("[x](#no-heading)", "#no-heading: there is no such heading"),
    ("[x](/docs/page.md)", "/docs/page.md: not relative"),
    ("[x](../x.md)", "../x.md: outside of the repository"),
    ("[x](docs/picture.svg#a)", "docs/picture.svg#a: an anchor in what is no document"),
    ("![x](docs/other.png)", "docs/other.png: there is no such file"),
    ("[x\ny](docs/other.md)", "docs/other.md: there is no such file"),
    ("<a href=\"docs/other.md\">x</a>", "docs/other.md: there is no such file"),
    ("[![x](docs/picture.svg)](docs/other.md)", "docs/other.md: there is no such file"),
    ("[name]: docs/other.md", "docs/other.md: there is no such file"),
])
def test_what_leads_nowhere_is_found(checkout, link, why):
    code, lines = checkout(**{"README.md": f"{README}\n{link}\n"})
    assert code == 1 and len(lines) == 1
    place, said = lines[0].split(": ", 1)
    first = README.count("\n") + 2
    assert place in (f"README.md:{first}", f"README.md:{first + 1}")
    assert said == why


def test_a_document_that_nothing_leads_to_is_found(checkout):
    assert checkout(**{"docs/other.md": "[up](../README.md)"}) == (
        1, ["docs/other.md: no link leads there from README.md"])


def test_without_a_document_it_fails(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert subprocess.run([LINKS, tmp_path], capture_output=True, check=False).returncode == 1
