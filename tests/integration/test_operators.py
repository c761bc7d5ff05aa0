# SPDX-License-Identifier: MPL-2.0
"""What an operator sees and does: the count of delayed messages, the management API with our
internal queues present, definitions, and hands off those queues."""

import json
import time
import urllib.request
import uuid

import pika
import pika.exceptions
import pytest

import wire
from client import DELAYED, Client, closes_channel, internal_queue
from management import eventually, quoted
from metrics import Metrics
from node import MINUTE_MS, evaluate, queue_process


@pytest.fixture
def holding(client):
    """An exchange that holds three messages for an hour."""
    exchange, _ = client.delayed_and_queue()
    for _ in range(3):
        client.publish(exchange, body=b"x", delay=3600_000)
    return exchange


@pytest.fixture(scope="module")
def known(broker, management):
    """An exchange that holds three messages, for so long that the management plugin has statistics
    of its internal queue; and there is another one that has delivered all that it held."""
    client = Client(broker)
    exchange, _ = client.delayed_and_queue()
    for _ in range(3):
        client.publish(exchange, body=b"x", delay=3600_000)
    empty, queue = client.delayed_and_queue()
    client.publish(empty, body=b"x", delay=100)
    client.one(queue)
    for name, held in ((exchange, 3), (empty, 0)):
        path = f"queues/%2F/{quoted(internal_queue(name))}"
        eventually(lambda: management.get(path), lambda queue: queue.get("messages") == held
                   and {"consumers", "state", "messages_details"} <= queue.keys())
    yield exchange
    client.close()


def listed(broker, exchange, *columns):
    """What rabbitmqctl list_delayed_exchanges shows for it."""
    rows = broker.rows("list_delayed_exchanges", "name", *columns)
    return [row for row in rows if row["name"] == exchange]


# ------------------------------------------------------------------- messages_delayed

def test_list_delayed_exchanges_shows_what_each_holds(client, broker, holding):
    plain = client.exchange("direct")
    empty = client.delayed("topic")
    columns = ["type", "messages_delayed", "bytes_delayed", "next_due", "in_flight"]
    now = time.time() * 1000
    row, = listed(broker, holding, *columns)
    assert (row["type"], row["messages_delayed"], row["in_flight"]) == ("direct", 3, 0)
    assert row["bytes_delayed"] >= 3
    assert now + 3500_000 < row["next_due"] < now + 3600_000
    row, = listed(broker, empty, *columns)
    assert (row["type"], row["messages_delayed"], row["bytes_delayed"], row["in_flight"],
            row["next_due"]) == ("topic", 0, 0, 0, "")
    assert listed(broker, plain) == []


def test_list_delayed_exchanges_has_a_table_and_a_help(broker, holding):
    header, *rows = broker.ctl("--quiet", "list_delayed_exchanges").splitlines()
    assert header.split("\t") == ["name", "messages_delayed", "next_due"]
    assert [row for row in rows if row.split("\t")[:2] == [holding, "3"]]
    assert "messages_delayed" in broker.ctl("help", "list_delayed_exchanges")
    refused = broker.ctl("list_delayed_exchanges", "no_such_column", check=False)
    assert refused.returncode != 0 and "no_such_column" in refused.stdout + refused.stderr


def test_list_exchanges_shows_the_type(broker, holding):
    assert {row["name"]: row["type"] for row in broker.rows("list_exchanges")}[holding] == DELAYED


def test_the_count_falls_as_messages_are_delivered(client, broker, management, clock):
    exchange, queue = client.delayed_and_queue()
    for _ in range(5):
        client.publish(exchange, delay=10 * MINUTE_MS)
    client.publish(exchange, delay=3600_000)
    assert management.messages_delayed(exchange) == 6
    clock(20 * MINUTE_MS)
    client.collect(queue, 5)
    eventually(lambda: management.messages_delayed(exchange), lambda n: n == 1)


def test_undelayed_messages_are_not_counted(client, management, holding):
    for _ in range(5):
        client.publish(holding, body=b"now")
    assert management.messages_delayed(holding) == 3


def test_a_policy_change_does_not_alter_the_count(broker, management, holding):
    policy = f"policies/%2F/{holding}"
    assert management.request("PUT", policy, {
        "pattern": f"^{holding}$", "apply-to": "all",
        "definition": {"alternate-exchange": "amq.fanout"}})[0] in (201, 204)
    try:
        assert management.exchange(holding)["policy"] == holding
        assert management.messages_delayed(holding) == 3
        assert listed(broker, holding, "messages_delayed")[0]["messages_delayed"] == 3
    finally:
        management.request("DELETE", policy)
    assert management.messages_delayed(holding) == 3


# ----------------------------------------------------------------- the management API

@pytest.mark.parametrize("path", [
    "overview", "exchanges", "exchanges/%2F", "queues", "queues/%2F", "vhosts", "nodes",
    "connections", "channels", "consumers", "bindings", "bindings/%2F", "definitions", "policies",
    "queues?page=1&page_size=100", "exchanges?page=1&page_size=100",
    "queues?disable_stats=true&enable_queue_totals=true",
    "queues?sort=messages&sort_reverse=true", "exchanges?sort=message_stats.publish_in",
    "overview?msg_rates_age=60&msg_rates_incr=5&lengths_age=60&lengths_incr=5",
    "queues?msg_rates_age=60&msg_rates_incr=5&lengths_age=60&lengths_incr=5",
    "vhosts?msg_rates_age=60&msg_rates_incr=5&lengths_age=60&lengths_incr=5",
    "health/checks/virtual-hosts", "health/checks/local-alarms",
])
def test_the_page_answers_with_correct_json(management, known, path):
    assert isinstance(management.get(path), (dict, list))


def test_exchanges_show_the_count(management, holding):
    assert management.exchange(holding)["messages_delayed"] == 3
    shown = {x["name"]: x for x in management.get("exchanges/%2F")}
    assert shown[holding]["messages_delayed"] == 3
    assert shown[holding]["type"] == DELAYED


def test_queues_have_numbers_for_their_messages(management, known):
    for queue in management.get("queues"):
        for key in ("messages", "messages_ready", "messages_unacknowledged"):
            assert isinstance(queue.get(key, 0), int), queue


def test_the_internal_queues_own_page_shows_what_waits(management, known):
    shown = management.get(f"queues/%2F/{quoted(internal_queue(known))}")
    assert (shown["messages"], shown["messages_ready"], shown["state"]) == (3, 0, "running")


def test_what_is_delayed_is_nobodys_backlog(broker, client, management, known):
    """Not among what is ready, for whoever looks at all queues: by the tool, the API and Prometheus."""
    plain = client.queue()
    client.publish("", plain, b"x")
    rows = {row["name"]: row for row in broker.rows("list_queues", "name", "messages", "messages_ready")}
    assert rows[internal_queue(known)] == {"name": internal_queue(known), "messages": 3, "messages_ready": 0}
    eventually(lambda: management.get(f"queues/%2F/{plain}").get("messages_ready"), lambda n: n == 1)

    def ready(path):
        return {dict(labels).get("queue"): value for (name, labels), value in Metrics(broker, path).values.items()
                if name == "rabbitmq_queue_messages_ready"}

    each = eventually(lambda: ready("metrics/per-object"), lambda values: values.get(plain) == 1)
    assert each[internal_queue(known)] == 0
    eventually(lambda: (ready("metrics"), sum(ready("metrics/per-object").values())),
               lambda both: both[0] == {None: both[1]})


def test_the_vhosts_message_count_is_a_number(management, holding):
    vhost = eventually(lambda: management.get("vhosts/%2F"), lambda v: "messages" in v)
    assert isinstance(vhost["messages"], int)


def test_the_api_publishes_delayed_messages(client, management):
    exchange, queue = client.delayed_and_queue()
    status, answer = management.request("POST", f"exchanges/%2F/{exchange}/publish", {
        "properties": {"headers": {"x-delay": 400}}, "routing_key": "k", "payload": "by HTTP",
        "payload_encoding": "string"})
    assert (status, answer) == (200, {"routed": True})
    delivery = client.one(queue)
    assert (delivery.text, delivery.headers["x-delay"]) == ("by HTTP", -400)


def test_prometheus_metrics_answer(broker, client, holding):
    port = broker.plugin_ports["rabbitmq_prometheus"]
    for path in ("metrics", "metrics/per-object"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=120) as answer:
            text = answer.read().decode()
        assert "rabbitmq_identity_info" in text
        # The age of a queue's first message is NaN for any queue that has none.
        assert not [line for line in text.splitlines() if line.endswith(" NaN")
                    and "head_message_timestamp" not in line]


@pytest.mark.parametrize("command", [
    ["list_queues", "name", "type", "messages", "messages_ready", "messages_unacknowledged",
     "consumers", "memory", "state", "pid", "arguments", "policy", "durable", "auto_delete",
     "exclusive", "owner_pid", "head_message_timestamp", "message_bytes", "messages_persistent"],
    ["list_exchanges", "name", "type", "durable", "auto_delete", "internal", "arguments", "policy"],
    ["list_bindings"], ["list_consumers"], ["list_connections"], ["list_channels"],
    ["list_unresponsive_queues"],
])
def test_the_tools_list_what_there_is(broker, holding, command):
    assert isinstance(broker.rows(*command), list)


@pytest.mark.parametrize("arguments", [["status"], ["report"], ["environment"]])
def test_the_tools_report(broker, holding, arguments):
    assert broker.ctl(*arguments)


# ------------------------------------------------------------------------ definitions

def test_definitions_name_the_exchange_and_not_its_internal_queue(broker, holding, tmp_path):
    file = tmp_path / "definitions.json"
    broker.ctl("export_definitions", str(file))
    definitions = json.loads(file.read_text())
    exchange, = [x for x in definitions["exchanges"] if x["name"] == holding]
    assert exchange["type"] == DELAYED
    assert exchange["arguments"] == {"x-delayed-type": "direct"}
    assert not [q for q in definitions["queues"] if q["name"] == internal_queue(holding)]
    assert not [b for b in definitions["bindings"] if b["destination"] == internal_queue(holding)]


def test_imported_definitions_make_a_working_exchange(broker, management):
    vhost = f"v-{uuid.uuid4().hex[:8]}"
    status, answer = management.request("POST", "definitions", {
        "vhosts": [{"name": vhost}],
        "permissions": [{"user": "guest", "vhost": vhost, "configure": ".*", "write": ".*",
                         "read": ".*"}],
        "exchanges": [{"name": "later", "vhost": vhost, "type": DELAYED, "durable": True,
                       "auto_delete": False, "internal": False,
                       "arguments": {"x-delayed-type": "topic"}}],
        "queues": [{"name": "q", "vhost": vhost, "durable": True, "auto_delete": False,
                    "arguments": {}}],
        "bindings": [{"source": "later", "vhost": vhost, "destination": "q",
                      "destination_type": "queue", "routing_key": "a.#", "arguments": {}}]})
    assert status in (200, 201, 204), answer
    client = Client(broker, vhost)
    published = client.publish("later", "a.b", b"imported", delay=400)
    assert (client.one("q").at - published) * 1000 >= 400
    client.close()
    management.request("DELETE", f"vhosts/{vhost}")


def test_definitions_loaded_at_boot_make_a_working_exchange(brokers, tmp_path):
    file = tmp_path / "definitions.json"
    file.write_text(json.dumps({
        "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": "guest", "vhost": "/", "configure": ".*", "write": ".*",
                         "read": ".*"}],
        "exchanges": [{"name": "later", "vhost": "/", "type": DELAYED, "durable": True,
                       "auto_delete": False, "internal": False,
                       "arguments": {"x-delayed-type": "direct"}}],
        "queues": [{"name": "q", "vhost": "/", "durable": True, "auto_delete": False,
                    "arguments": {}}],
        "bindings": [{"source": "later", "vhost": "/", "destination": "q",
                      "destination_type": "queue", "routing_key": "k", "arguments": {}}]}))
    broker = brokers("definitions", conf=[f"load_definitions = {file}"])
    client = Client(broker)
    published = client.publish("later", body=b"loaded", delay=300)
    assert (client.one("q").at - published) * 1000 >= 300
    client.close()
    broker.end()


def test_definitions_exported_and_imported_again_change_nothing(broker, holding, management,
                                                                tmp_path):
    file = tmp_path / "definitions.json"
    broker.ctl("export_definitions", str(file))
    broker.ctl("import_definitions", str(file))
    assert management.messages_delayed(holding) == 3


# ---------------------------------------------------------- hands off the internal queue

@pytest.mark.parametrize("use", [
    pytest.param(lambda channel, queue: channel.basic_consume(queue, lambda *_: None),
                 id="consume"),
    pytest.param(lambda channel, queue: channel.basic_get(queue), id="get"),
    pytest.param(lambda channel, queue: channel.queue_purge(queue), id="purge"),
    pytest.param(lambda channel, queue: channel.queue_delete(queue), id="delete"),
    pytest.param(lambda channel, queue: channel.queue_declare(queue, passive=True),
                 id="passive declare"),
    pytest.param(lambda channel, queue: channel.queue_bind(queue, "amq.direct", "k"), id="bind"),
])
def test_clients_are_refused_any_use_of_it(client, management, holding, use):
    code, _ = closes_channel(lambda: use(client.channel, internal_queue(holding)))
    assert code == 405
    assert management.messages_delayed(holding) == 3


@pytest.mark.parametrize("durable", [False, True])
def test_clients_cannot_declare_a_queue_of_its_name(client, management, holding, durable):
    code, _ = closes_channel(lambda: client.channel.queue_declare(internal_queue(holding),
                                                                  durable=durable))
    assert code in (403, 405)
    assert management.messages_delayed(holding) == 3


def test_the_http_api_does_not_read_purge_or_delete_it(management, holding):
    path = f"queues/%2F/{quoted(internal_queue(holding))}"
    for method, end, body in [("DELETE", "", None), ("DELETE", "/contents", None),
                              ("POST", "/get", {"count": 1, "ackmode": "ack_requeue_true",
                                                "encoding": "auto"})]:
        assert management.request(method, path + end, body)[0] in (400, 404, 405)
    assert management.messages_delayed(holding) == 3


def test_a_message_sent_to_it_by_name_is_refused(client, management, holding):
    with pytest.raises((pika.exceptions.NackError, pika.exceptions.ChannelClosedByBroker)):
        client.publish("", internal_queue(holding), b"intruder")
    assert management.messages_delayed(holding) == 3


def test_a_delayed_looking_message_sent_to_it_by_name_is_refused(client, management, holding):
    with pytest.raises((pika.exceptions.NackError, pika.exceptions.ChannelClosedByBroker)):
        client.publish("", internal_queue(holding), b"intruder", delay=100)
    assert management.messages_delayed(holding) == 3


def test_dead_letters_and_carbon_copies_do_not_reach_it(client, management, holding):
    target = internal_queue(holding)
    dying = client.queue(arguments={"x-dead-letter-exchange": "", "x-message-ttl": 1,
                                    "x-dead-letter-routing-key": target})
    client.publish("", dying, b"dead letter")
    eventually(lambda: client.depth(dying), lambda depth: depth == 0)
    queue = client.queue()
    try:
        client.publish("", queue, b"copied", headers={"CC": [target]})
    except pika.exceptions.NackError:
        pass
    assert client.texts(queue, 1) == ["copied"]
    assert management.messages_delayed(holding) == 3


def test_deleting_its_record_heals_and_nothing_confirmed_is_lost(client, broker, management):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"before", delay=6000)
    broker.ctl("delete_queue", internal_queue(exchange), check=False)
    confirmed = []
    for number in range(200):
        try:
            client.publish(exchange, body=str(number).encode(), delay=1000)
            confirmed.append(str(number))
        except (pika.exceptions.NackError, pika.exceptions.ChannelClosedByBroker):
            continue
    assert confirmed
    client.collect_every(queue, {"before", *confirmed})


def test_publishing_while_its_record_is_deleted_again_and_again_loses_nothing(
        client, broker, management):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"first", delay=100)
    with wire.Publisher(broker) as publisher:
        for round_ in range(3):
            first = publisher.published
            publisher.send(exchange, "k", [str(first + n + 1) for n in range(1000)],
                           headers={"x-delay": 1500})
            broker.ctl("delete_queue", internal_queue(exchange), check=False)
        publisher.await_answers()
        confirmed = {str(n) for n in publisher.confirmed}
    assert confirmed
    client.collect_every(queue, {"first", *confirmed})


def test_its_process_killed_loses_nothing_confirmed(client, broker):
    exchange, queue = client.delayed_and_queue()
    client.publish(exchange, body=b"first", delay=2500)
    with wire.Publisher(broker) as publisher:
        publisher.send(exchange, "k", [str(n + 1) for n in range(2000)], headers={"x-delay": 1500})
        evaluate(broker, f"exit({queue_process(internal_queue(exchange))}, kill).")
        publisher.await_answers()
        confirmed = {str(n) for n in publisher.confirmed}
    client.collect_every(queue, {"first", *confirmed})
    eventually(lambda: client.is_taken(exchange, delay=100), bool)
