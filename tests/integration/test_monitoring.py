# SPDX-License-Identifier: MPL-2.0
"""The alert rules and the dashboard of monitoring/, with a real Prometheus that scrapes a broker."""

import json
import os
import re
import subprocess
import urllib.parse
import urllib.request

import pytest

from management import eventually
from metrics import Metrics
from node import HOUR_MS
from private_broker import REPOSITORY, free_port

RULES = os.path.join(REPOSITORY, "monitoring", "alerts.yml")
DASHBOARD = os.path.join(REPOSITORY, "monitoring", "grafana-dashboard.json")


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False,
                          timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dashboard():
    """The expressions of each panel, as Grafana sends them, by the panel's title."""
    with open(DASHBOARD, encoding="utf8") as file:
        panels = json.load(file)["panels"]
    return {f"{panel['title']} ({panel['id']})": [target["expr"] for target in panel["targets"]]
            for panel in panels if panel["type"] != "row"}


def expressions():
    with open(RULES, encoding="utf8") as file:
        rules = file.read()
    return [rules, *(expression for targets in dashboard().values() for expression in targets)]


class Prometheus:
    """A server of its own that scrapes a broker every second."""

    def __init__(self, broker, directory):
        self.port = free_port()
        config = os.path.join(directory, "prometheus.yml")
        with open(config, "w", encoding="utf8") as file:
            json.dump({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                       "rule_files": [RULES],
                       "scrape_configs": [{"job_name": "rabbitmq", "static_configs": [{
                           "targets": [f"127.0.0.1:{broker.plugin_ports['rabbitmq_prometheus']}"]
                       }]}]}, file)
        with open(os.path.join(directory, "prometheus.log"), "wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log)

    def get(self, path, **query):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=120) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        return self.get("query", query=expression)["result"]

    def is_scraping(self):
        try:
            return self.query("rabbitmq_delayed_messages_published_total offset 3s")
        except OSError:
            return []

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=300)


@pytest.fixture(scope="module")
def prometheus(broker, tmp_path_factory):
    server = Prometheus(broker, str(tmp_path_factory.mktemp("prometheus")))
    eventually(server.is_scraping, bool)
    yield server
    server.end()


def test_the_rules_are_sound_and_are_raised_by_what_they_are_about():
    assert "18 rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool(
        "test", "rules", os.path.join(REPOSITORY, "tests", "monitoring", "alerts_test.yml"))


def test_every_figure_that_they_use_is_there(client, broker):
    client.publish(client.delayed(), delay=HOUR_MS)
    used = {name for text in expressions() for name in re.findall(r"rabbitmq_\w+", text)}
    # Labels and variables of the dashboard, and what is only there after a checkpoint
    used -= {"rabbitmq_cluster", "rabbitmq_node", "rabbitmq_delayed_messages"}
    used -= {name for name in used if "checkpoint_" in name}
    assert len(used) > 20
    eventually(lambda: used - {name for name, _ in Metrics(broker).values}, lambda missing: not missing)


def test_prometheus_takes_the_rules_and_none_is_raised_by_a_sound_broker(prometheus):
    groups = eventually(lambda: prometheus.get("rules")["groups"],
                        lambda groups: groups and all(rule["health"] == "ok" for group in groups
                                                      for rule in group["rules"]))
    states = {rule["name"]: rule["state"] for group in groups for rule in group["rules"]}
    assert len(states) == 18
    for name in ("DelayedMessagesRefused", "DelayedMessagesReleaseLags", "DelayedMessagesLost",
                 "DelayedMessagesGrow", "DelayedMessagesStoreNotCompacted"):
        assert states[name] == "inactive"


def test_every_panel_shows_something(prometheus, client):
    exchange, queue = client.delayed_and_queue()
    for number in range(20):
        client.publish(exchange, delay=10 + number)
    client.collect(queue, 20)
    client.publish(exchange, delay=HOUR_MS)
    cluster = prometheus.query("rabbitmq_identity_info")[0]["metric"]["rabbitmq_cluster"]
    # There is none before the store has made one.
    silent = ("checkpoint", )
    for panel, targets in dashboard().items():
        for expression in targets:
            asked = expression.replace("$rabbitmq_cluster", cluster).replace("$__rate_interval", "1m")
            if any(word in expression for word in silent):
                assert isinstance(prometheus.query(asked), list)
            else:
                assert eventually(lambda asked=asked: prometheus.query(asked), bool), panel
