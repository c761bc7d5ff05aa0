# SPDX-License-Identifier: MPL-2.0
"""The plugin's archive with another version of the machine: the one that was built, but for rabbit_delay_machine,
which is compiled anew from its source. An earlier one does not know what the present one brings; a later one knows
a command that changes nothing and is answered.

EARLIER_DIST=DIRECTORY in the environment has the archives of an earlier version in its place, in 3.10/ and
3.13-4.x/: so a version that was built from its own sources can be tried.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))

from private_broker import REPOSITORY, dist_of  # noqa: E402

# Whether the earlier one differs from the present one in its machine alone.
IS_MADE = not os.environ.get("EARLIER_DIST")
MACHINE = os.path.join(REPOSITORY, "erl_src", "raft", "rabbit_delay_machine.erl")
# What the later one alone knows.
LATER_COMMAND = "{answer, 1}"


def version():
    with open(MACHINE, encoding="utf-8") as file:
        return int(re.search(r"^-define\(VERSION, (\d+)\)\.$", file.read(), re.MULTILINE).group(1))


def earlier(series, directory):
    """A directory with an archive of the machine before the present one."""
    if not IS_MADE:
        return os.path.join(os.environ["EARLIER_DIST"], os.path.basename(dist_of(series)))
    ours = version()
    return _with_machine(series, directory, [
        (f"-define(VERSION, {ours}).", f"-define(VERSION, {ours - 1})."),
        (f"-define(IS_OF_{ours}(Meta), map_get(machine_version, Meta) >= {ours}).",
         f"-define(IS_OF_{ours}(Meta), Meta =:= none).")])


def later(series, directory):
    """One with the machine after it."""
    ours = version()
    command = "apply(#{index := Index}, {settle, 1, Ids}, State) ->"
    return _with_machine(series, directory, [
        (f"-define(VERSION, {ours}).", f"-define(VERSION, {ours + 1})."),
        (command, f"apply(#{{index := Index, machine_version := V}}, {LATER_COMMAND}, State) when V > {ours} ->\n"
                  f"    {{noted(Index, State#?MODULE{{seen = Index}}), {{ok, V}}}};\n{command}")])


def _with_machine(series, directory, changes):
    with open(MACHINE, encoding="utf-8") as file:
        source = file.read()
    for old, new in changes:
        assert source.count(old) == 1, (old, source.count(old))
        source = source.replace(old, new)
    os.makedirs(directory)
    path = os.path.join(directory, os.path.basename(MACHINE))
    with open(path, "w", encoding="utf-8") as file:
        file.write(source)
    done = subprocess.run(["erlc", "-I", os.path.join(REPOSITORY, "include"), "-o", directory, path],
                          capture_output=True, text=True, check=False)
    beam = path.replace(".erl", ".beam")
    assert os.path.exists(beam), done.stdout + done.stderr
    _pack(dist_of(series), directory, beam)
    os.remove(path)
    os.remove(beam)
    return directory


def _pack(dist, directory, beam):
    """The archive of `dist`, with another module in it."""
    name, = (name for name in os.listdir(dist) if name.endswith(".ez"))
    replaced = []
    with zipfile.ZipFile(os.path.join(dist, name)) as old, \
            zipfile.ZipFile(os.path.join(directory, name), "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename.endswith("/ebin/" + os.path.basename(beam)):
                with open(beam, "rb") as file:
                    new.writestr(entry, file.read())
                replaced.append(entry.filename)
            else:
                with old.open(entry) as source, new.open(entry, "w") as copy:
                    shutil.copyfileobj(source, copy)
    assert len(replaced) == 1, replaced
