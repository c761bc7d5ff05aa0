# SPDX-License-Identifier: MPL-2.0
"""The Debian package on a machine that had neither it nor RabbitMQ: from the file to a delayed message in two
commands, an upgrade with messages pending, removed, back, and purged. DEBIAN_SUITE: on what."""

import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile

import pytest

from machine import Machine

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SUITE = os.environ.get("DEBIAN_SUITE") or "trixie"
FOLDER = "3.10" if SUITE == "bookworm" else "3.13-4.x"
PACKAGE = "rabbitmq-delay-wheel-3.10" if SUITE == "bookworm" else "rabbitmq-delay-wheel"
PYTHON = "/usr/bin/python3"
LATER = "99.0.0"


def built():
    package, = glob.glob(os.path.join(TOP, "dist", FOLDER, "*.deb"))
    return package


def of_a_later_version(directory):
    """The package of the same archive, whose version is another."""
    for folder in ("3.10", "3.13-4.x"):
        archive, = glob.glob(os.path.join(TOP, "dist", folder, "*.ez"))
        top = os.path.basename(archive)[:-len(".ez")]
        version = top.rpartition("-")[2]
        os.makedirs(os.path.join(directory, folder))
        new_top = f"rabbitmq_delay_wheel-{LATER}"
        with zipfile.ZipFile(archive) as old, \
                zipfile.ZipFile(os.path.join(directory, folder, new_top + ".ez"), "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                data = old.read(entry)
                if entry.filename.endswith(".app"):
                    data = data.replace(f'{{vsn,"{version}"}}'.encode(), f'{{vsn,"{LATER}"}}'.encode())
                    assert LATER.encode() in data
                new.writestr(entry.filename.replace(top, new_top, 1), data)
    subprocess.run([os.path.join(TOP, "scripts", "deb"), directory, LATER, "1800000000"], check=True)
    package, = glob.glob(os.path.join(directory, FOLDER, "*.deb"))
    return package


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("machine")
    with Machine(SUITE, str(directory)) as made:
        os.mkdir(made.path("/root/downloads"))
        for package in (built(), of_a_later_version(str(directory / "later"))):
            shutil.copy(package, made.path("/root/downloads"))
        yield made


def download(machine, version):
    name, = glob.glob(os.path.join(machine.path("/root/downloads"), f"*_{version}_all.deb"))
    return "/root/downloads/" + os.path.basename(name)


def enabled(machine):
    listed = machine.run("rabbitmq-plugins", "list", "--minimal", "--enabled").split()
    return [name for name in listed if "delay" in name]


def pending(machine):
    said = machine.run("rabbitmqctl", "--quiet", "--formatter", "json", "list_delayed_exchanges", "name",
                       "messages_delayed")
    return {row["name"]: row["messages_delayed"] for row in json.loads(said[said.index("[\n"):])}


def running_version(machine):
    return re.search(r"\[E\*\] rabbitmq_delay_wheel +([0-9.]+)", machine.run("rabbitmq-plugins", "list", "delay")).group(1)


def kept(machine):
    """{path below the data of delayed messages: sum of its content}."""
    top, = glob.glob(machine.path("/var/lib/rabbitmq/mnesia/*/quorum/delayed"))
    sums = {}
    for folder, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(folder, name), "rb") as f:
                sums[os.path.relpath(os.path.join(folder, name), top)] = hashlib.sha256(f.read()).hexdigest()
    return sums


def hold(machine, *texts):
    machine.beside(PYTHON, os.path.join(TOP, "tests", "install", "messages.py"), "hold", *texts)


def take(machine, number):
    return machine.beside(PYTHON, os.path.join(TOP, "tests", "install", "messages.py"), "take", str(number)).split()


def release(machine):
    machine.run("rabbitmqctl", "release_delayed_messages", "held", "--all")


def test_from_the_file_to_a_delayed_message_and_back(machine):
    version = re.search(r"_([0-9.]+)_all\.deb$", built()).group(1)
    machine.apt("update")
    series = re.search(r"^Version: *([0-9]+\.[0-9]+)\.", machine.run("apt-cache", "show", "rabbitmq-server"), re.M).group(1)
    if series not in ("3.10", "3.13", "4.0", "4.1", "4.2", "4.3"):
        pytest.skip(f"Debian's {SUITE} has RabbitMQ {series} by now")

    installs_without_enabling(machine, version)
    delays(machine)
    upgrades_with_messages_pending(machine, version)
    goes_and_comes_back(machine)
    is_purged(machine)


def installs_without_enabling(machine, version):
    machine.apt("install", download(machine, version))
    assert not enabled(machine)
    machine.start_broker()
    assert not enabled(machine)
    assert "x-delayed-message" not in machine.run("rabbitmqctl", "eval", "rabbit_registry:lookup_all(exchange).")


def delays(machine):
    machine.run("rabbitmq-plugins", "enable", "rabbitmq_delay_wheel")
    said = machine.beside(PYTHON, os.path.join(TOP, "examples", "python", "first.py"))
    assert re.fullmatch(r"hello, [0-9.]+ s later\n", said)
    assert pending(machine) == {"later": 0}
    assert "list_delayed_exchanges" in machine.run("rabbitmqctl", "help")


def upgrades_with_messages_pending(machine, version):
    hold(machine, "one", "two")
    machine.run("apt-get", "-q", "-y", "install", download(machine, LATER))
    # The broker that runs is left alone, and still has what it had.
    assert pending(machine)["held"] == 2
    assert not glob.glob(machine.path(f"/usr/lib/rabbitmq/lib/*/plugins/*delay_wheel-{version}.ez"))
    machine.stop_broker()
    machine.start_broker()
    assert running_version(machine) == LATER
    assert pending(machine)["held"] == 2
    hold(machine, "three")
    release(machine)
    assert sorted(take(machine, 3)) == ["one", "three", "two"]


def goes_and_comes_back(machine):
    hold(machine, "four", "five")
    machine.stop_broker()
    before = kept(machine)
    # Its member's; the store may have written nothing yet, as the log has it.
    assert any(os.path.basename(name) == "config" for name in before)
    machine.run("apt-get", "-q", "-y", "remove", PACKAGE)
    assert not [path for path in glob.glob(machine.path("/usr/lib/rabbitmq/**/*delay_wheel*"), recursive=True)]
    # It is enabled still: the broker starts without it.
    with open(machine.path("/etc/rabbitmq/enabled_plugins"), encoding="ascii") as f:
        assert "rabbitmq_delay_wheel" in f.read()
    machine.start_broker()
    assert "x-delayed-message" not in machine.run("rabbitmqctl", "eval", "rabbit_registry:lookup_all(exchange).")
    machine.stop_broker()
    assert kept(machine) == before

    machine.run("apt-get", "-q", "-y", "install", download(machine, LATER))
    machine.start_broker()
    assert pending(machine)["held"] == 2
    release(machine)
    assert sorted(take(machine, 2)) == ["five", "four"]


def is_purged(machine):
    hold(machine, "six")
    machine.stop_broker()
    before = kept(machine)
    said = machine.run("apt-get", "-q", "-y", "purge", PACKAGE)
    assert re.search(r"delayed messages, if any are pending, stay in /var/lib/rabbitmq/mnesia/\S+/quorum/delayed", said)
    assert kept(machine) == before
    machine.start_broker()
    machine.stop_broker()
