# SPDX-License-Identifier: MPL-2.0
"""PHP's clients, as Debian packages them: what the samples print is what happened."""

import json
import os

import pytest

import header_values
import locked
from samples import SAID, SAID_WITH, WHAT, assert_said, sample

PACKAGES = ["PhpAmqpLib", "Symfony/Component/Messenger", "Symfony/Component/Messenger/Bridge/Amqp"]


@pytest.fixture(scope="module")
def php(executed, tmp_path_factory):
    """php(file, argument...): runs a program. vendor/autoload.php is Composer's for its users; here
    it loads Debian's packages."""
    directory = tmp_path_factory.mktemp("php")
    (directory / "vendor").mkdir()
    (directory / "vendor" / "autoload.php").write_text(
        "<?php\n" + "".join(f"require_once '{package}/autoload.php';\n" for package in PACKAGES),
        encoding="utf-8")

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


@pytest.mark.usefixtures("alone")
def test_symfony_messenger(broker, php, executed, checked):
    assert_said(php(sample("php", "symfony.php"), broker.amqp_url), SAID_WITH[2:])
    checked("Symfony Messenger", version(executed, "php-symfony-amqp-messenger").split("+")[0],
            "delay", "wrong delay", "cancel")


def test_header_values(broker, client, php, checked, tmp_path, executed):
    chosen = header_values.cases("bBsuIilDTVtSAFx")
    exchange, queue = client.delayed_and_queue()
    told = php(os.path.join(locked.HERE, "php", "header_values.php"), broker.amqp_url,
                 exchange, header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told))
    checked("php-amqplib", version(executed, "php-amqplib"), "header values")
