# SPDX-License-Identifier: MPL-2.0
"""What is seen when the archive in the plugins folder is not the right one: docs/install.md says it in the same
words, which are looked up there."""

import glob
import os
import shutil
import subprocess
import zipfile

import pytest

from client import Client, assert_serves
from conftest import PLUGIN, PLUGIN_DIRS
from node import has_enabled
from private_broker import REPOSITORY, BrokerFailed, default_series, dist_of

SERIES = default_series()
EARLIER = "0.0.9"


def documented(words):
    """These, as docs/install.md has them too."""
    with open(os.path.join(REPOSITORY, "docs", "install.md"), encoding="utf-8") as f:
        assert words in f.read()
    return words


def archive_of(directory):
    archive, = glob.glob(os.path.join(directory, f"{PLUGIN}-*.ez"))
    return archive


class Folder:
    """A folder of plugins; each call leaves it with that alone."""

    def __init__(self, path):
        self.path = str(path)
        os.makedirs(self.path)
        self.archive = archive_of(PLUGIN_DIRS[0])
        self.protected = False

    def protect(self):
        """Nothing can be written in it from now on, not by root either. False: this machine lets nobody mount."""
        for options in (["--bind", self.path, self.path], ["-o", "remount,bind,ro", self.path]):
            if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
                return False
            self.protected = True
        with pytest.raises(OSError):
            os.open(os.path.join(self.path, "x"), os.O_CREAT | os.O_WRONLY)
        return True

    def empty(self):
        for name in os.listdir(self.path):
            os.remove(os.path.join(self.path, name))

    def holds(self, archive):
        self.empty()
        return shutil.copy(archive, self.path)

    def damage(self, suffix):
        """One byte of the first file in it whose name ends so is another."""
        path = self.holds(self.archive)
        with zipfile.ZipFile(path) as content:
            entry = next(info for info in content.infolist() if info.filename.endswith(suffix))
        with open(path, "r+b") as f:
            f.seek(entry.header_offset + 26)
            name, extra = (int.from_bytes(f.read(2), "little") for _ in range(2))
            middle = entry.header_offset + 30 + name + extra + entry.compress_size // 2
            f.seek(middle)
            byte = f.read(1)[0]
            f.seek(middle)
            f.write(bytes([byte ^ 1]))

    def add_earlier(self):
        """The same as it would be in an earlier version."""
        top = os.path.basename(self.archive)[:-len(".ez")]
        path = os.path.join(self.path, f"{PLUGIN}-{EARLIER}.ez")
        with zipfile.ZipFile(self.archive) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                data = old.read(entry)
                if entry.filename.endswith(".app"):
                    version = top.split("+")[0].rpartition("-")[2]
                    assert f'{{vsn,"{version}"}}'.encode() in data
                    data = data.replace(f'{{vsn,"{version}"}}'.encode(), f'{{vsn,"{EARLIER}"}}'.encode())
                new.writestr(entry.filename.replace(top, f"{PLUGIN}-{EARLIER}", 1), data)
        return path


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path / "plugins")
    yield made
    if made.protected:
        subprocess.run(["umount", "--lazy", made.path], check=True)


def enable(broker):
    """What `rabbitmq-plugins enable` says that does not enable it, nor end the broker."""
    done = broker.plugins("enable", PLUGIN, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 70 and not has_enabled(broker, PLUGIN), said
    assert_serves(broker)
    return said


def delays(broker):
    client = Client(broker)
    exchange = client.delayed()
    queue = client.queue((exchange, "k"))
    client.publish(exchange, "k", b"later", delay=100)
    assert client.texts(queue, 1) == ["later"]
    client.close()


def forget(broker):
    """The next start has what the test enables."""
    for name in ("enabled_plugins", "enabled_by_us"):
        os.remove(broker.path("etc", name))


def does_not_start(broker):
    """What is said by a broker that ends instead."""
    with open(broker.path("log", "startup.log"), "ab") as f:
        before = f.tell()
    with pytest.raises(BrokerFailed):
        broker.start()
    broker.end()
    with open(broker.path("log", "startup.log"), encoding="utf-8", errors="replace") as f:
        return f.read()[before:]


def test_wrong_archives_and_then_a_right_one(brokers, folder):
    broker = brokers("archives", plugin_dirs=[folder.path], enable=())
    of_another_series(broker, folder)
    damaged(broker, folder)
    two_versions(broker, folder)


def of_another_series(broker, folder):
    other = dist_of("4.0" if SERIES == "3.10" else "3.10")
    if not os.path.isdir(other):
        return
    folder.holds(archive_of(other))
    said = enable(broker)
    if SERIES == "3.10":
        assert documented("not found, so not scanned for boot steps") in said
        assert documented("compiled for a later version of the runtime system") in said + broker.log()
    else:
        assert documented("Plugin doesn't support current server version. Actual broker version: ") in said
        assert documented('supported by the plugin: ["3.10.0-3.10.x"]') in said


def damaged(broker, folder):
    folder.damage(".beam")
    said = enable(broker)
    assert documented("Could not unzip plugin archive") in said and documented("bad_crc") in said
    # It counts as enabled, so that the next start ends with it.
    broker.stop()
    said = does_not_start(broker)
    assert documented("BOOT FAILED") in said and documented("failed_to_unzip_plugin") in said

    # Not even enabled is a file whose .app cannot be read.
    folder.damage(".app")
    forget(broker)
    assert "BOOT FAILED" in does_not_start(broker)


def two_versions(broker, folder):
    """The right one, beside an earlier one, in a folder in which nothing can be written."""
    folder.holds(folder.archive)
    duplicate = folder.add_earlier()
    protected = folder.protect()
    broker.enable = [PLUGIN]
    broker.start()
    delays(broker)
    version = os.path.basename(folder.archive)[len(PLUGIN) + 1:].split("+")[0].removesuffix(".ez")
    said = broker.plugins("list", PLUGIN, check=False)
    assert f"{PLUGIN} {version}" in " ".join(said.stdout.split())
    assert documented("Problem reading some plugins") in said.stdout + said.stderr
    assert documented("duplicate_plugin") in said.stdout + said.stderr and duplicate in said.stdout + said.stderr
    broker.end()
    if not protected:
        pytest.skip("all but a folder that is read-only, as nothing can be mounted here")
