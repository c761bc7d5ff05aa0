# SPDX-License-Identifier: MPL-2.0
"""The command check_dead_lettering, with a broker, a file, what is no such file, and what is accepted."""

import json

from client import Client
from conftest import PLUGIN
from doctor import findings
from management import quoted
from test_doctor import dead


def check(broker, *arguments):
    return broker.ctl("check_dead_lettering", *arguments, check=False)


def test_the_command_on_a_broker(broker, local, vhost):
    local.queue(name="naïve \"q\"", arguments=dead("gone"))
    told = check(broker, "--vhost", vhost)
    assert told.returncode == 1
    assert "error dlx_missing: queue \"naïve \"q\"\" in vhost" in told.stdout
    assert "1 error" in told.stderr
    told = check(broker, "--vhost", vhost, "--formatter", "json")
    assert told.returncode == 1
    report = json.loads(told.stdout)
    assert report["counts"] == {"error": 1, "warning": 0, "info": 0}
    assert report["findings"][0]["name"] == "naïve \"q\""
    assert report["findings"][0]["vhost"] == vhost
    assert check(broker, "--vhost", vhost, "--fail-on", "never").returncode == 0


def test_the_command_says_by_its_exit_code_how_bad_it_is(broker, local, vhost):
    local.queue(arguments={"x-message-ttl": 1000})
    assert check(broker, "--vhost", vhost).returncode == 0
    assert check(broker, "--vhost", vhost, "--fail-on", "warning").returncode == 1
    assert check(broker, "--vhost", vhost, "--fail-on", "sometimes").returncode == 65
    assert check(broker, "--vhost", "no such vhost").returncode == 65
    assert check(broker, "surplus").returncode == 64


def test_findings_are_accepted(broker, local, vhost, management):
    """By a parameter, and by a file; a parameter that accepts nothing is refused."""
    work = local.queue(arguments={"x-message-ttl": 1000})
    other = local.queue(arguments={"x-message-ttl": 1000})
    fail = ("--vhost", vhost, "--fail-on", "warning")
    assert check(broker, *fail).returncode == 1

    def accept(**value):
        return broker.ctl("set_parameter", "-p", vhost, "accepted-dead-lettering", "mine",
                          json.dumps(value), check=False)

    for wrong in ({}, {"rule": "ttl_without_dlx"}, {"rule": "none", "reason": "r"},
                  {"rule": "ttl_without_dlx", "reason": ""},
                  {"rule": "ttl_without_dlx", "reason": "r", "vhost": vhost}):
        assert accept(**wrong).returncode != 0, wrong
    assert accept(rule="ttl_without_dlx", name=work, reason="a béd queue").returncode == 0
    told = check(broker, *fail)
    assert told.returncode == 1 and "a béd queue" in told.stdout and "1 accepted" in told.stderr
    assert [f["name"] for f in findings(broker, vhost)] == [other]
    file = broker.path("accepted.json")
    with open(file, "w", encoding="utf-16") as f:
        json.dump({"accepted": [{"rule": "ttl_without_dlx", "vhost": vhost, "name": other,
                                 "reason": "so be it"}]}, f)
    told = check(broker, *fail, "--accept", file)
    assert told.returncode == 0 and "so be it" in told.stdout and "a béd queue" in told.stdout
    unused = {"accepted": [{"rule": "dlx_missing", "name": "gone", "reason": "it was", **where}
                           for where in ({}, {"vhost": "another"}, {"vhost": vhost})]}
    with open(file, "w", encoding="utf-8") as f:
        json.dump(unused, f)
    told = check(broker, *fail, "--accept", file)
    assert told.stdout.count("acceptance_unused") == 1 and '"gone"' in told.stdout
    with open(file, "w", encoding="utf-8") as f:
        json.dump({"accepted": [{"rule": "ttl_without_dlx"}]}, f)
    told = check(broker, *fail, "--accept", file)
    assert told.returncode == 65 and "accepted[0]" in told.stderr
    # Over HTTP, and with the definitions that are exported.
    status, _ = management.request(
        "PUT", f"parameters/accepted-dead-lettering/{quoted(vhost)}/all",
        {"value": {"rule": "ttl_without_dlx", "pattern": ".*", "reason": "all"}})
    assert status in (201, 204)
    assert findings(broker, vhost) == []
    broker.ctl("export_definitions", file)
    told = check(broker, "--definitions", file, *fail)
    assert told.returncode == 0 and "accepted ttl_without_dlx" in told.stdout


def test_a_file_is_checked_without_a_broker(brokers):
    """And says the same as the broker that it was exported from."""
    broker = brokers("definitions", enable=(PLUGIN, "rabbitmq_management"))
    client = Client(broker)
    client.queue(name="a b/c", arguments=dead("gone"), keep=True)
    client.queue(name="ø", arguments=dead("", "ø", message_ttl=1000), keep=True)
    dlx = client.exchange("topic", keep=True)
    client.queue((dlx, "x.#"), name="z", arguments=dead(dlx, "y.z"), keep=True)
    client.connection.close()
    live = [(f["rule"], f["name"]) for f in findings(broker, "/")]
    file = broker.path("definitions.json")
    broker.ctl("export_definitions", file)
    broker.stop()
    told = check(broker, "--definitions", file, "--formatter", "json")
    assert told.returncode == 1, told.stderr
    assert [(f["rule"], f["name"]) for f in json.loads(told.stdout)["findings"]] == live
    assert {rule for rule, _ in live} >= {"dlx_missing", "cycle_dropped", "dlx_unroutable"}

    with open(file, encoding="utf-8") as f:
        whole = f.read()
    bad = broker.path("bad.json")
    for content, complaint in [(whole[:len(whole) // 2], "cut off"), ("", "empty"),
                               ("[" * 100000, "cut off"), ("[]", "not a JSON object"),
                               ("\0\xff", "JSON")]:
        with open(bad, "w", encoding="latin-1") as f:
            f.write(content)
        told = check(broker, "--definitions", bad)
        assert told.returncode == 65 and complaint in told.stderr, told
    with open(bad, "wb") as f:
        f.truncate(600 << 20)
    told = check(broker, "--definitions", bad)
    assert told.returncode == 65 and "at most" in told.stderr
    assert check(broker, "--definitions", broker.path("none.json")).returncode == 65
