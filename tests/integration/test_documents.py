# SPDX-License-Identifier: MPL-2.0
"""What the documents show works, and what they list is all that there is."""

import glob
import json
import os
import re
import shlex
import subprocess

import pika
import pytest

from client import Client
from management import Management, eventually, quoted
from metrics import Metrics
from node import HOUR_MS, evaluate
from private_broker import REPOSITORY

DOCS = {os.path.basename(path)[:-len(".md")]: path
        for path in glob.glob(os.path.join(REPOSITORY, "docs", "*.md"))}

# What a broker that was just made cannot do; test_moving_in does it.
ELSEWHERE = ["rabbitmqctl import_delayed_messages",
             "rabbitmqctl export_delayed_messages --mnesia-dir /backup/rabbit@old --file moved.jsonl",
             "rabbitmqctl import_delayed_messages --file moved.jsonl",
             # Goes on until it is ended: test_commands.py.
             "rabbitmqctl list_delayed_exchanges --watch 2s name messages_delayed release_rate"]
# It is told by the exit code whether something is found.
FINDS = "rabbitmqctl check_dead_lettering"


def text_of(name):
    with open(DOCS[name], encoding="utf-8") as f:
        return f.read()


def commands(text):
    """The commands for rabbitmqctl and curl that the document has lines of their own for."""
    found, begun = [], None
    for line in text.splitlines():
        if begun is not None:
            begun += "\n" + line
        elif re.match(r" {4,}(rabbitmqctl|curl) ", line):
            begun = line
        if begun is not None and is_whole(begun):
            found.append(begun.strip())
            begun = None
    assert begun is None
    return found


def is_whole(command):
    try:
        shlex.split(command)
    except ValueError:
        return False
    return not command.endswith("\\")


@pytest.fixture(scope="module")
def shown(brokers):
    return brokers("documents", enable=("rabbitmq_delay_wheel", "rabbitmq_management",
                                        "rabbitmq_prometheus"))


@pytest.fixture
def scene(shown):
    """What the documents' commands are about."""
    client, management = Client(shown), Management(shown)
    exchanges, queues = ("later", "orders", "retry"), ("QUEUE", "WORK", "nsb.v2.delay-level-27")
    for name in exchanges:
        client.delayed(name=name)
        client.publish(name, "job", b"hello", delay=10 * HOUR_MS, message_id="order-17",
                       headers={"tenant": "acme"})
    for name in queues:
        client.queue(name=name)
    client.queue(name="parked")
    client.queue(name="work", arguments={"x-dead-letter-exchange": "",
                                         "x-dead-letter-routing-key": "parked"})
    for _ in range(4):
        client.publish("", "work", b"rejected")
        method, _, _ = next(client.channel.consume("work"))
        client.channel.basic_reject(method.delivery_tag, requeue=False)
    client.channel.cancel()
    management.request("PUT", "vhosts/tenant-7", {})
    management.request("PUT", "permissions/tenant-7/guest",
                       {"configure": ".*", "write": ".*", "read": ".*"})
    tenant = Client(shown, "tenant-7")
    tenant.delayed(name="theirs", keep=True)
    tenant.close()
    with open(shown.path("accepted.json"), "w", encoding="utf-8") as f:
        json.dump({"accepted": []}, f)
    with open(shown.path("definitions.json"), "w", encoding="utf-8") as f:
        json.dump(management.get("definitions"), f)
    yield client
    client.close()
    for policy in management.get("policies/%2F"):
        assert management.request("DELETE", f"policies/%2F/{quoted(policy['name'])}")[0] == 204


def an_id(shown):
    """Of a message that is pending."""
    return str(shown.rows("list_delayed_messages", "later", "--limit", "1", "id")[0]["id"])


def run(shown, command):
    """Its exit code and what it said."""
    if command.startswith("curl"):
        for port, plugin in (("15672", "rabbitmq_management"), ("15692", "rabbitmq_prometheus")):
            command = command.replace(f"localhost:{port}",
                                      f"127.0.0.1:{shown.plugin_ports[plugin]}")
        done = subprocess.run(
            ["bash", "-c", "set -o pipefail; " + command.replace("curl ", "curl -fsS ", 1)],
            capture_output=True, text=True, timeout=300, check=False)
    else:
        words = [shown.path(word) if re.fullmatch(r"\w+\.jsonl?", word) else
                 an_id(shown) if word == "131072" else word
                 for word in shlex.split(command.replace("\\\n", " "))[1:]]
        if words[0].startswith("export_"):
            for file in glob.glob(shown.path("*.jsonl")):
                os.remove(file)
        done = shown.ctl(*words, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name, command", [
    pytest.param(name, command, id=f"{name}-{number}")
    for name in sorted(DOCS) for number, command in enumerate(commands(text_of(name)))
    if command not in ELSEWHERE])
@pytest.mark.usefixtures("scene")
def test_a_command_of_a_document_works(shown, name, command):
    if "import_" in command:
        assert run(shown, "rabbitmqctl export_delayed_messages --file orders.jsonl orders")[0] == 0
    code, said = run(shown, command)
    assert code == 0 or (code == 1 and command.startswith(FINDS)), (command, code, said)


def test_commands_are_found():
    text = "x\n    rabbitmqctl a \\\n      b 'c\n      d'\n    curl e\n\n    make f\n"
    assert commands(text) == ["rabbitmqctl a \\\n      b 'c\n      d'", "curl e"]
    assert len(commands(text_of("operating"))) > 10


# ------------------------------------------------------------------------------- programs


def python_of(name):
    return re.findall(r"^```python\n(.*?)^```$", text_of(name), re.DOTALL | re.MULTILINE)


def test_the_program_about_keys(shown, scene):
    names = {"pika": pika, "channel": scene.confirming}
    (program,) = python_of("keys")
    exec(program, names)  # pylint: disable=exec-used
    # However long this takes.
    shown.ctl("pause_delayed_exchange", "later")

    def pending():
        return shown.rows("list_delayed_messages", "later", "--key", "report", "--limit", "9", "id")

    names["changed"]("report")
    (first,) = pending()
    names["changed"]("report")
    (second,) = pending()
    assert first != second
    names["deleted"]("report")
    assert pending() == []


def test_the_program_about_retries(shown):
    client = Client(shown)
    (program,) = python_of("retries")
    exec(program, {"channel": client.channel})  # pylint: disable=exec-used
    client.publish("", "work", b"order")
    for attempt in (1, 2):
        method, properties, body = next(client.channel.consume("work"))
        assert body == b"order"
        assert bool(properties.headers and "x-death" in properties.headers) == (attempt > 1)
        client.channel.basic_reject(method.delivery_tag, requeue=False)
    client.channel.cancel()
    for queue in ("work", "work.parked"):
        client.channel.queue_delete(queue)
    client.channel.exchange_delete("retry")
    client.connection.close()


def test_the_line_of_an_export_can_be_imported(shown, scene):
    (line,) = re.findall(r"^ {4}(\{\"format\".*?\})$", text_of("moving-in"),
                         re.DOTALL | re.MULTILINE)
    queue = scene.queue(("orders", "k"))
    with open(shown.path("line"), "w", encoding="utf-8") as f:
        f.write(json.dumps(json.loads(line)) + "\n")
    shown.ctl("import_delayed_messages", "--file", shown.path("line"))
    assert scene.one(queue).text == "hello"


# ---------------------------------------------------------------------------------- lists


def column(text, number):
    """The names in that column of the document's tables."""
    return {name
            for line in text.splitlines() if line.startswith("|")
            for name in re.findall(r"`([^`]+)`", line.strip("|").split("|")[number])}


def part(name, title):
    """The document's section of that title."""
    return re.search(rf"^(#+) {title}\n(.*?)(?=^#{{1,2}} |\Z)", text_of(name),
                     re.DOTALL | re.MULTILINE).group(2)


def test_every_setting_is_in_the_table():
    with open(os.path.join(REPOSITORY, "priv", "schema", "rabbitmq_delay_wheel.schema"),
              encoding="utf-8") as f:
        keys = re.findall(r'^\{mapping, "([^"]+)"', f.read(), re.MULTILINE)
    listed = set()
    for name in sorted(column(part("operating", "Settings"), 0)):
        # `a.b.min`, `.max`
        listed |= {key for key in keys if key.endswith(name)} or {name}
    assert sorted(listed) == sorted(keys)


def test_every_policy_is_in_a_table(shown):
    known = re.findall(r"delay-[a-z-]+", evaluate(
        shown, 'lists:flatten(lists:join(" ", [atom_to_list(Name) || {Name, rabbit_delay_policy} '
               "<- rabbit_registry:lookup_all(policy_validator)]))."))
    assert len(known) > 10
    tables = part("limits", "Arguments and policies") + part("retries", "Arguments and policies")
    assert column(tables, 1) == set(known)
    # Each is an argument, too, but those that a policy alone may set.
    known_by_policy_only = {"delay-dead-letter-exchange", "delay-dead-letter-routing-key",
                            "delay-keys-from"}
    assert {f"x-{name}" for name in known if name not in known_by_policy_only} <= column(tables, 0)
    assert not {f"x-{name}" for name in known_by_policy_only} & column(tables, 0)


@pytest.mark.usefixtures("scene")
def test_every_metric_is_in_the_table(shown):
    table, _ = part("operating", "Prometheus").split("| alert |")
    listed = {name for name in column(table, 1)
              if re.fullmatch(r"[a-z_]+", name)}
    # Those of checkpoints are there from the first one on.
    eventually(lambda: {name.removeprefix("rabbitmq_delayed_") for name in Metrics(shown).types
                        if name.startswith("rabbitmq_delayed_")},
               lambda now: now == listed)


def test_every_alert_is_in_the_table():
    with open(os.path.join(REPOSITORY, "monitoring", "alerts.yml"), encoding="utf-8") as f:
        alerts = re.findall(r"^ +- alert: (\w+)$", f.read(), re.MULTILINE)
    _, table = part("operating", "Prometheus").split("| alert |")
    assert column(table, 0) == set(alerts) != set()


def test_every_rule_is_in_the_table(shown):
    rules = re.findall(r"\w+", evaluate(
        shown, 'lists:flatten(lists:join(" ", [atom_to_list(Rule) || Rule <- '
               "rabbit_delay_doctor:rules()]))."))
    assert column(part("dead-letters", "Find traps"), 0) == set(rules)


def test_every_command_is_in_a_document(shown):
    helped = set(re.findall(r"^\s+(\w*(?:delayed|dead_letter)\w*)", shown.ctl("help"),
                            re.MULTILINE))
    named = {word for name in DOCS for word in re.findall(r"\w+", text_of(name))}
    assert len(helped) >= 15
    assert helped - named == set()
