# SPDX-License-Identifier: MPL-2.0
"""PHP's clients, as Debian packages them: what the samples print is what happened."""

import pytest

from samples import SAID, WHAT, assert_said, sample


@pytest.fixture(scope="module")
def php(executed, tmp_path_factory):
    """php(file, argument...): runs a program. vendor/autoload.php is Composer's for its users; here
    it loads Debian's packages."""
    directory = tmp_path_factory.mktemp("php")
    (directory / "vendor").mkdir()
    (directory / "vendor" / "autoload.php").write_text(
        "<?php require_once 'PhpAmqpLib/autoload.php';\n", encoding="utf-8")

    def run(path, *arguments):
        return executed("php", "-d", "include_path=.:/usr/share/php", "-d", "error_reporting=-1",
                        "-d", "display_errors=stderr", path, *arguments, cwd=directory)

    return run


def version(executed, package):
    return executed("dpkg-query", "-W", "-f", "${source:Upstream-Version}", package)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, php, executed, checked, name):
    assert_said(php(sample("php", f"{name}.php"), broker.amqp_url), SAID[name])
    checked("php-amqplib", version(executed, "php-amqplib"), WHAT[name])
