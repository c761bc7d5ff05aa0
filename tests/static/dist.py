#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""dist.py EZ...: each plugin archive holds what a broker needs, names the series of brokers that it is
for (its directory's name), and its libraries need only a libc, of whatever age is promised."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile

# What the Erlang VM itself offers a NIF, and what the compiler adds.
PROVIDED = re.compile(r"enif_\w+|_ITM_\w+|__gmon_start__|__cxa_finalize")
VERSIONED = re.compile(r".+@@?GLIBC_(\d+)\.(\d+)(?:\.\d+)?")
OLDEST_GLIBC = (2, 28)
ALL = ["x86_64-gnu", "x86_64-musl", "aarch64-gnu", "aarch64-musl"]
MACHINES = {"x86_64": "X86-64", "aarch64": "AArch64"}
NEEDED = {"x86_64-gnu": {"libc.so.6", "ld-linux-x86-64.so.2"}, "x86_64-musl": {"libc.so"},
          "aarch64-gnu": {"libc.so.6", "ld-linux-aarch64.so.1"}, "aarch64-musl": {"libc.so"}}
SYSROOT = os.environ.get("SYSROOT") or os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "_build", "sysroot")
# The broker itself looks at an archive for one series; one that may meet later ones looks at the broker.
SAID = {"3.10": ['{broker_version_requirements,["3.10.0"]}', '{known_series,["3.10"]}'],
        "3.13-4.x": ['{broker_version_requirements,[]}', '{known_series,["3.13","4.0","4.1","4.2","4.3"]}']}


def output(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def problems(path):
    top = os.path.basename(path)[:-len(".ez")]
    app, version, some = re.fullmatch(r"(\w+)-([0-9.]+)((?:\+[\w-]+)*)", top).groups()
    builds = some.split("+")[1:] or ALL
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    if archive.testzip() is not None:
        yield f"{archive.testzip()}: its checksum is wrong"
    for name in names:
        if not re.fullmatch(rf"{re.escape(top)}/(ebin/[\w.]+\.(app|beam)|priv/[\w-]+/rabbit_delay_store\.(so|md5)|"
                            rf"priv/schema/\w+\.schema|priv/www/api/delay-wheel/(index\.html|openapi\.json|reference\.js)|"
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

    there = {name.split("/")[2] for name in names if name.endswith(".so")}
    if there != set(builds):
        yield f"its libraries are {sorted(there)}, not {builds}, as its name says"
    for build in sorted(there & set(NEEDED)):
        with tempfile.TemporaryDirectory() as directory:
            so = archive.extract(f"{top}/priv/{build}/rabbit_delay_store.so", directory)
            for problem in of_library(so, build):
                yield f"{build}: {problem}"


def of_library(so, build):
    processor, libc = build.split("-")
    if f"Machine: {MACHINES[processor]}" not in " ".join(output("readelf", "-hW", so).replace(
            "Advanced Micro Devices ", "").split()):
        yield f"it is not for {processor}"
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", so)))
    if not needed <= NEEDED[build]:
        yield f"it needs {needed}, not libc and its loader alone"
    musls = of_musl(processor) if libc == "musl" else None
    for line in output("nm", "-D", "--undefined-only", so).splitlines():
        symbol = line.split()[-1]
        versioned = VERSIONED.fullmatch(symbol)
        if libc == "musl" and (versioned or symbol.endswith("_chk")):
            yield f"{symbol} is glibc's"
        elif libc == "musl" and musls is not None and symbol in musls:
            continue
        elif versioned and tuple(map(int, versioned.groups())) > OLDEST_GLIBC:
            yield f"{symbol} is newer than {OLDEST_GLIBC}"
        elif not versioned and not PROVIDED.fullmatch(symbol) and not (libc == "musl" and musls is None):
            yield f"nobody provides {symbol}"
    exported = [line.split()[-1] for line in output("nm", "-D", "--defined-only", so).splitlines()]
    if exported != ["nif_init"]:
        yield f"it exports {exported}, not nif_init alone"
    headers = output("readelf", "-lW", so)
    if "GNU_RELRO" not in headers or "BIND_NOW" not in output("readelf", "-d", so):
        yield "it is not linked with relro and now"
    if re.search(r"GNU_STACK.*RWE", headers):
        yield "it asks for an executable stack"


def of_musl(processor):
    """What musl offers, where it is here."""
    libc = os.path.join(SYSROOT, processor, "lib", f"{processor}-linux-musl", "libc.so")
    if not os.path.exists(libc):
        return None
    return {line.split()[-1] for line in output("nm", "-D", "--defined-only", libc).splitlines()}


def main():
    archives = sys.argv[1:]
    found = [f"{path}: {problem}" for path in archives for problem in problems(path)]
    for problem in found:
        print(problem)
    return 1 if found or not archives else 0


if __name__ == "__main__":
    sys.exit(main())
