# SPDX-License-Identifier: MPL-2.0
"""PHP's clients, as Debian packages them: what the samples print is what happened."""

import json
import os
import time

import pytest

import header_values
import locked
import lost
from client import assert_on_time
from samples import SAID, SAID_WITH, WHAT, assert_said, declare, sample

PACKAGES = ["PhpAmqpLib", "Symfony/Component/Messenger", "Symfony/Component/Messenger/Bridge/Amqp"]

PHP = ["php", "-d", "include_path=.:/usr/share/php", "-d", "error_reporting=-1", "-d",
       "display_errors=stderr"]


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
        return executed(*PHP, path, *arguments, cwd=directory)

    run.directory = directory
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


@pytest.mark.usefixtures("alone")
def test_laravel(client, broker, php, checked):
    """The example's class, on what it calls of the package: it is no Debian package."""
    declare(client)
    client.channel.queue_bind("work", "later", "work")
    began = time.monotonic()
    assert php(os.path.join(locked.HERE, "php", "laravel.php"), broker.amqp_url,
               sample("php", "laravel.php")) == "later now\n"
    now, later = client.collect("work", 2)
    assert (now.properties.correlation_id, later.properties.correlation_id) == ("now", "later")
    assert later.at - began >= 2
    assert later.headers == {"laravel": {"attempts": 3}, "x-delay": -2000}
    checked("Laravel: laravel-queue-rabbitmq (replayed)", "14.5.3", "delay")


@pytest.mark.usefixtures("alone")
def test_laravels_own_ladder_on_a_delayed_exchange(client, checked):
    """What it declares for a delay of 2 s when its exchange is a delayed one: the queue of that delay
    expires to the exchange, which does not delay a message without a header."""
    declare(client)
    client.channel.queue_bind("work", "later", "work")
    client.queue(name="work.delay.2000", arguments={
        "x-dead-letter-exchange": "later", "x-dead-letter-routing-key": "work",
        "x-message-ttl": 2000, "x-expires": 4000})
    published = client.publish("", "work.delay.2000", b"{}", headers={"laravel": {"attempts": 0}})
    assert_on_time(client.one("work"), published, 2000)
    checked("Laravel: laravel-queue-rabbitmq (replayed)", "14.5.3", "its own ladder")


def test_header_values(broker, client, php, checked, tmp_path, executed):
    chosen = header_values.cases("bBsuIilDTVtSAFx")
    exchange, queue = client.delayed_and_queue()
    told = php(os.path.join(locked.HERE, "php", "header_values.php"), broker.amqp_url,
                 exchange, header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told))
    checked("php-amqplib", version(executed, "php-amqplib"), "header values")


def test_a_broker_that_is_lost(brokers, php, executed, checked):
    lines = lost.told(brokers, "php", *PHP, os.path.join(locked.HERE, "php", "lost.php"),
                      cwd=php.directory).splitlines()
    assert lines == ["PhpAmqpLib\\Exception\\AMQPConnectionClosedException"]
    checked("php-amqplib", version(executed, "php-amqplib"), "broker lost")


def test_a_broker_that_is_lost_with_symfony_messenger(brokers, php, executed, checked):
    told = lost.told(brokers, "php-symfony", *PHP, os.path.join(locked.HERE, "php", "lost_symfony.php"),
                     cwd=php.directory, says_sent=False)
    assert told.startswith("Symfony\\Component\\Messenger\\Exception\\TransportException"), told
    checked("Symfony Messenger", version(executed, "php-symfony-amqp-messenger").split("+")[0], "broker lost")
