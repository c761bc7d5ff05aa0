# SPDX-License-Identifier: MPL-2.0
"""JavaScript's clients: what the samples print is what happened."""

import json
import os
import shutil

import pytest

import locked
from samples import SAID, SAID_WITH, WHAT, assert_said, sample

TSC = ["--experimentalDecorators", "--emitDecoratorMetadata", "--module", "nodenext", "--target",
       "es2022", "--types", "node", "--strict", "--skipLibCheck"]


@pytest.fixture(scope="module")
def javascript(deps, executed, tmp_path_factory):
    """javascript(file, argument...): runs a program with the packages that tests/clients/javascript
    locks. It looks for them in the directories above it."""
    directory = tmp_path_factory.mktemp("javascript")
    os.symlink(os.path.join(deps("javascript"), "node_modules"), directory / "node_modules")

    def run(path, *arguments):
        copied = shutil.copy(path, directory)
        if copied.endswith(".mts"):
            executed(os.path.join(directory, "node_modules", ".bin", "tsc"), *TSC, copied,
                     cwd=directory)
            copied = copied.removesuffix(".mts") + ".mjs"
        return executed("node", copied, *arguments)

    return run


def version(package):
    with open(os.path.join(locked.HERE, "javascript", "package-lock.json"), encoding="utf-8") as f:
        return json.load(f)["packages"][f"node_modules/{package}"]["version"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAID)
def test_a_sample(broker, javascript, checked, name):
    assert_said(javascript(sample("javascript", f"{name}.mjs"), broker.amqp_url), SAID[name])
    checked("amqplib", version("amqplib"), WHAT[name])


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("package", ["rascal", "rabbitmq-client"])
def test_the_sample_of_a_library(broker, javascript, checked, package):
    name = f"with_{package.replace('-', '_')}.mjs"
    assert_said(javascript(sample("javascript", name), broker.amqp_url), SAID_WITH)
    checked(package, version(package), "delay", "mandatory", "wrong delay", "cancel")


@pytest.mark.usefixtures("alone")
def test_nestjs(broker, javascript, checked):
    """Compiled from TypeScript, as its users do. Order 2 is cancelled, order 3 has a wrong delay."""
    assert_said(javascript(sample("javascript", "nestjs.mts"), broker.amqp_url), [
        r"order 3, [\d.]+ s later, x-delay: 5m", r"order 4, [\d.]+ s later, x-delay: undefined",
        r"order 1, [2-9]\d*\.\d s later, x-delay: -2000"])
    checked("NestJS", version("@nestjs/microservices"), "delay", "wrong delay", "cancel")
