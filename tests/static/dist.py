#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""dist.py EZ...: each plugin archive holds what a broker needs, names the series of brokers that it is
for (its directory's name), and its library needs only libc."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile

# What the Erlang VM itself offers a NIF, and what the compiler adds.
PROVIDED = re.compile(r"enif_\w+|_ITM_\w+|__gmon_start__|.+@@?GLIBC_[0-9.]+")
OLDEST_BROKERS_GLIBC = (2, 36)
# The broker itself looks at an archive for one series; one that may meet later ones looks at the broker.
SAID = {"3.10": ['{broker_version_requirements,["3.10.0"]}', '{known_series,["3.10"]}'],
        "3.13-4.x": ['{broker_version_requirements,[]}', '{known_series,["3.13","4.0","4.1","4.2","4.3"]}']}


def output(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def problems(path):
    top = os.path.basename(path)[:-len(".ez")]
    app, version = top.rsplit("-", 1)
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    if archive.testzip() is not None:
        yield f"{archive.testzip()}: its checksum is wrong"
    for name in names:
        if not re.fullmatch(rf"{re.escape(top)}/(ebin/[\w.]+\.(app|beam)|priv/\w+\.(so|md5)|"
                            rf"priv/schema/\w+\.schema|priv/openapi\.json|"
                            rf"priv/www/js/\w+\.js|LICENSE[\w.-]*)", name):
            yield f"{name}: does not belong into it"

    app_file = f"{top}/ebin/{app}.app"
    if app_file not in names:
        yield f"{app_file} is missing"
        return
    properties = archive.read(app_file).decode()
    if f'{{vsn,"{version}"}}' not in properties.replace(" ", ""):
        yield f"{app_file}: its vsn is not {version}"
    series = os.path.basename(os.path.dirname(os.path.abspath(path)))
    for said in SAID[series]:
        if said not in re.sub(r"\s", "", properties):
            yield f"{app_file}: it is not for RabbitMQ {series}: {said} is missing"
    listed = re.search(r"\{modules,\s*\[(.*?)\]\}", properties, re.S).group(1)
    modules = set(re.findall(r"[\w.'@]+", listed))
    beams = {os.path.basename(n)[:-len(".beam")] for n in names if n.endswith(".beam")}
    if {m.strip("'") for m in modules} != beams:
        yield f"modules of the application and beams differ: {sorted(modules ^ beams)}"
    if "rabbit_delay_store" not in beams:
        yield "rabbit_delay_store.beam is missing"

    library = f"{top}/priv/rabbit_delay_store.so"
    if library not in names:
        yield f"{library} is missing"
        return
    with tempfile.TemporaryDirectory() as directory:
        so = archive.extract(library, directory)
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", so))
        if not set(needed) <= {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}:
            yield f"{library} needs {needed}, not libc and its loader alone"
        for line in output("nm", "-D", "--undefined-only", so).splitlines():
            symbol = line.split()[-1]
            if not PROVIDED.fullmatch(symbol):
                yield f"{library}: nobody provides {symbol}"
            at = re.search(r"@GLIBC_(\d+)\.(\d+)", symbol)
            if at and tuple(map(int, at.groups())) > OLDEST_BROKERS_GLIBC:
                yield f"{library}: {symbol} is newer than Debian 12"
        exported = [line.split()[-1]
                    for line in output("nm", "-D", "--defined-only", so).splitlines()]
        if exported != ["nif_init"]:
            yield f"{library} exports {exported}, not nif_init alone"
        headers = output("readelf", "-lW", so)
        if "GNU_RELRO" not in headers or "BIND_NOW" not in output("readelf", "-d", so):
            yield f"{library} is not linked with relro and now"
        if re.search(r"GNU_STACK.*RWE", headers):
            yield f"{library} asks for an executable stack"


def main():
    archives = sys.argv[1:]
    found = [f"{path}: {problem}" for path in archives for problem in problems(path)]
    for problem in found:
        print(problem)
    return 1 if found or not archives else 0


if __name__ == "__main__":
    sys.exit(main())
