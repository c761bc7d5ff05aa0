# SPDX-License-Identifier: MPL-2.0
"""Installs what the lock files of tests/clients/LANGUAGE name into _build/clients/LANGUAGE, once.

A registry that does not answer is no fault of ours (Unreachable); one that answers, while what is
locked cannot be installed, is."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
BUILT = os.path.join(REPOSITORY, "_build", "clients")

MAVEN_ASKS = ("mvn -q -B -U -Dmaven.repo.local=asks dependency:get "
              "-Dartifact=com.rabbitmq:amqp-client:5.20.0 -Dtransitive=false")

# By language: the registry, the lock files (of directories all files), the commands that install (run in
# a copy of the language's directory, $OUT is where that is), and one that asks the registry for something
# small.
LANGUAGES = {
    "python": {
        "registry": "PyPI",
        "locks": ["requirements.txt"],
        "install": ["/usr/bin/python3 -m venv .",
                    # proton is there as source alone.
                    "bin/pip install -q --require-hashes --only-binary :all: "
                    "--no-binary python-qpid-proton -r requirements.txt"],
        "asks": "/usr/bin/python3 -m venv --clear asks && env -u PIP_FIND_LINKS asks/bin/pip "
                "download -q --no-cache-dir --no-deps -d asks pika==1.4.4",
    },
    "javascript": {
        "registry": "the npm registry",
        "locks": ["package.json", "package-lock.json"],
        "install": ["npm ci --ignore-scripts --no-audit --no-fund"],
        "asks": "npm view --prefer-online amqplib version",
    },
    "jvm": {
        "registry": "Maven Central",
        "locks": ["pom.xml"],
        "install": ["mvn -q -B dependency:copy-dependencies -DoutputDirectory=jars"],
        "asks": MAVEN_ASKS,
    },
    **{f"spring-{boot}": {
        "registry": "Maven Central",
        "from": os.path.join(REPOSITORY, "examples", "spring"),
        "locks": ["pom.xml", "src"],
        "install": [f"mvn -q -B {profile} compile dependency:copy-dependencies "
                    "-DoutputDirectory=target/jars"],
        "asks": MAVEN_ASKS,
    } for boot, profile in (("3.5", "-Dboot-3.5"), ("4.1", ""))},
    "go": {
        "registry": "the Go module proxy",
        "locks": ["go.mod", "go.sum"],
        "install": ["go mod download"],
        "asks": "GOMODCACHE=$OUT/asks GOFLAGS=-modcacherw go mod download "
                "github.com/rabbitmq/amqp091-go@v1.10.0",
    },
    "rust": {
        "registry": "crates.io",
        "locks": ["Cargo.toml", "Cargo.lock"],
        "install": ["cargo fetch -q --locked"],
        "asks": "cargo search -q --limit 1 lapin",
    },
}


class Unreachable(Exception):
    """The registry cannot be reached; the text says which, and what was said."""


def _run(command, directory):
    done = subprocess.run(["sh", "-ec", command], cwd=directory, capture_output=True, text=True,
                          timeout=1800, check=False, env={**os.environ, "OUT": directory})
    return done.returncode, (done.stdout + done.stderr).strip()


def install(language):
    """The directory with what is locked for that language."""
    wanted = LANGUAGES[language]
    directory = os.path.join(BUILT, language)
    os.makedirs(BUILT, exist_ok=True)
    with open(directory + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp, complete = _stamp(language), os.path.join(directory, "complete")
        if not _has(complete, stamp):
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(_source(language), directory,
                            ignore=shutil.ignore_patterns("target"))
            for command in wanted["install"]:
                code, said = _run(command, directory)
                if code != 0:
                    _explain(language, command, said)
            with open(complete, "w", encoding="utf-8") as f:
                f.write(stamp)
    return directory


def _explain(language, command, said):
    wanted = LANGUAGES[language]
    asks = os.path.join(BUILT, language + ".asks")
    shutil.rmtree(asks, ignore_errors=True)
    os.makedirs(asks)
    code, answer = _run(wanted["asks"], asks)
    shutil.rmtree(asks, ignore_errors=True)
    if code != 0:
        last = answer.splitlines()[-1] if answer else f"exit code {code}"
        raise Unreachable(f"{wanted['registry']} cannot be reached: {last}")
    raise AssertionError(f"{language}: {command}: {said}")


def _source(language):
    return LANGUAGES[language].get("from") or os.path.join(HERE, language)


def _files(path):
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(directory, name) for directory, _, names in os.walk(path)
                  for name in names)


def _stamp(language):
    """Changes with the lock files, and with how they are installed."""
    digest = hashlib.sha256(repr(LANGUAGES[language]["install"]).encode())
    for name in LANGUAGES[language]["locks"]:
        for path in _files(os.path.join(_source(language), name)):
            with open(path, "rb") as f:
                digest.update(f.read())
    return digest.hexdigest()


def _has(path, text):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read() == text
    except FileNotFoundError:
        return False


def version(language, package):
    """The version of a package that is locked: a name of PyPI's, or group:artifact of Maven Central's."""
    with open(os.path.join(_source(language), LANGUAGES[language]["locks"][0]), encoding="utf-8") as f:
        text = f.read()
    if language == "python":
        return next(line.split("==")[1].split()[0] for line in text.splitlines()
                    if line.startswith(package + "=="))
    group, artifact = package.split(":")
    return re.search(rf"<groupId>{re.escape(group)}</groupId>\s*<artifactId>{re.escape(artifact)}"
                     r"</artifactId>\s*<version>(.*?)</version>", text).group(1)
