# SPDX-License-Identifier: MPL-2.0
"""What tests need of the C sources beside the plugin: built when it is asked for, and the plugin with another
native library in the place of its own."""

import fcntl
import glob
import os
import platform
import subprocess
import zipfile

from private_broker import REPOSITORY
from shared_fixtures import PLUGIN_DIRS


def built(target):
    """The path of what the Makefile makes under that name, which no other suite makes."""
    os.makedirs(os.path.join(REPOSITORY, "_build"), exist_ok=True)
    with open(os.path.join(REPOSITORY, "_build", "native.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
        done = subprocess.run(["make", "--no-print-directory", "-s", target], cwd=REPOSITORY, env=env,
                              capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return os.path.join(REPOSITORY, target)


def plugin_with(library, directory):
    """A plugins directory: the archive, with that native library and no checksum of it."""
    [archive] = glob.glob(os.path.join(PLUGIN_DIRS[0], "*.ez"))
    with open(library, "rb") as file:
        replaced = {"so": file.read(), "md5": None}
    replaced = {f"priv/{platform.machine()}-gnu/rabbit_delay_store.{ending}": content
                for ending, content in replaced.items()}
    with zipfile.ZipFile(archive) as old, \
            zipfile.ZipFile(os.path.join(directory, os.path.basename(archive)), "w") as new:
        for item in old.infolist():
            content = replaced.pop(item.filename.partition("/")[2], old.read(item))
            if content is not None:
                new.writestr(item, content)
    assert not replaced, replaced
    return str(directory)
