# SPDX-License-Identifier: MPL-2.0
"""An exchange whose log, snapshot or messages are of a later version of the plugin: it is refused in
words, keeps what it has, and costs no other exchange anything."""

import glob
import os
import shutil

import pika.exceptions
import pytest

from client import Client
from conftest import PLUGIN
from management import Management, eventually
from node import HOUR_MS, evaluate, kill_9, set_clock
from test_snapshots import Log


@pytest.fixture(scope="module")
def node(brokers):
    broker = brokers("later", enable=(PLUGIN, "rabbitmq_management"),
                     conf=["delayed_message.snapshot_interval.messages = 100"])
    yield broker
    broker.end()


def server_id(exchange):
    return (f'rabbit_delay_raft:server_id(rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>))')


def hold(node, n=10):
    """Two exchanges that hold n messages each, with a queue."""
    client = Client(node)
    pairs = [client.delayed_and_queue() for _ in range(2)]
    for exchange, _ in pairs:
        for i in range(n):
            client.publish(exchange, body=f"held {i}".encode(), delay=HOUR_MS)
    client.connection.close()
    return pairs


def assert_refused(node, exchange, words, said_before):
    """In words, at once, whoever asks; and the log does not go on about it."""
    def refusal():
        try:
            Client(node).publish(exchange, body=b"new", delay=HOUR_MS)
        except pika.exceptions.NackError:
            return None
        except pika.exceptions.ChannelClosedByBroker as closed:
            return closed.reply_code, closed.reply_text
        raise AssertionError("it was confirmed")

    code, text = eventually(refusal, bool, within=60)
    assert code == 406 and "of a later version of the plugin" in text and words in text, text
    said = f"delayed messages of exchange '{exchange}' in vhost '/' are unavailable: "
    eventually(lambda: node.log()[said_before:].count(said), lambda n: n == 1)
    for _ in range(3):
        assert refusal()[0] == 406
    assert node.log()[said_before:].count(said) == 1


def assert_goes_on(node, exchange, queue, body):
    client = Client(node)
    client.publish(exchange, body=body, delay=1)
    # What was in flight when the node was killed may come again before it.
    client.collect_every(queue, {body.decode()})
    client.connection.close()


@pytest.mark.parametrize("command", ["{enqueue, 5, 1, 1, {none, none}, <<>>}", "{settle, 4, <<>>}",
                                     "{open, 2, node(), 7}"])
def test_an_unknown_command_stops_its_exchange_alone(node, command):
    (exchange, _), (other, other_queue) = hold(node)
    log = Log(node, exchange)
    before = len(node.log())
    other_pid = evaluate(node, f"whereis(element(1, {server_id(other)})).")
    evaluate(node, f"ra:pipeline_command({server_id(exchange)}, {command}, 1, normal).")
    assert_refused(node, exchange, "machine 4 or later, this one's is 3", before)
    assert_goes_on(node, other, other_queue, b"meanwhile")
    assert evaluate(node, f"whereis(element(1, {server_id(other)})).") == other_pid
    # Found in the log by a restart, too.
    kill_9(node)
    before = len(node.log())
    node.start()
    assert_refused(node, exchange, "machine 4 or later, this one's is 3", before)
    assert_goes_on(node, other, other_queue, b"after a restart")
    assert glob.glob(os.path.join(log.member, "config"))
    client = Client(node)
    client.channel.exchange_delete(exchange)
    assert not os.path.exists(log.member)
    # What is declared anew is another.
    client.delayed(name=exchange)
    client.publish(exchange, body=b"new", delay=HOUR_MS)
    client.close()


def test_a_log_of_a_later_machine_is_refused_and_kept(node):
    (exchange, _), (other, other_queue) = hold(node)
    log = Log(node, exchange)
    evaluate(node, f"gen_statem:cast({server_id(exchange)}, {{command, {{noop, #{{ts => "
                   "erlang:system_time(millisecond)}, 4}}).")
    eventually(lambda: log.overview()["version"], lambda version: version == 4)
    # Taken into the log by the later version's leader, and not applied here: not confirmed either.
    kill_9(node)
    before = len(node.log())
    node.start()
    assert_refused(node, exchange, "machine 4", before)
    assert_goes_on(node, other, other_queue, b"meanwhile")
    assert os.path.exists(os.path.join(log.member, "config"))


def test_a_snapshot_of_a_later_version_is_refused_kept_and_read_again(node):
    (exchange, queue), (other, other_queue) = hold(node, 120)
    log = Log(node, exchange)
    eventually(log.rest, lambda n: n == 0, within=60)
    node.stop()
    newest = os.path.join(log.member, "snapshots",
                          sorted(os.listdir(os.path.join(log.member, "snapshots")))[-1])
    state = os.path.join(newest, "delay_snapshot")
    shutil.copy(state, state + ".kept")
    with open(state, "wb") as file:
        file.write(b"DWSN\x02" + b"of a later version")
    before = len(node.log())
    node.start()
    assert_refused(node, exchange, "file 2, this one reads 1", before)
    assert_goes_on(node, other, other_queue, b"meanwhile")
    with open(state, "rb") as file:
        assert file.read(5) == b"DWSN\x02"
    node.stop()
    os.replace(state + ".kept", state)
    node.start()
    eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == 120, within=60)
    assert_goes_on(node, exchange, queue, b"as before")


def test_a_message_of_a_later_series_is_kept(node):
    (exchange, queue), _ = hold(node, 2)
    # As this series stores it, but for the number.
    said = evaluate(node, f"""(fun () ->
        XName = rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>),
        Store = rabbit_delay_registry:store(XName),
        {{ok, [#{{id := Id}} | _]}} = rabbit_delay_store:page(Store, {{0, 0}}, 1),
        {{ok, #{{encoding := Number, body := Body}}}} = rabbit_delay_store:read(Store, Id),
        Batch = [rabbit_delay_store:record_header(byte_size(Body), 0, N, {HOUR_MS}, 0) || N <-
                 [(16#7f bsl 8) bor (Number band 16#ff), 16#ee]],
        Records = << <<Header/binary, Body/binary>> || Header <- Batch >>,
        {{ok, ok, _}} = ra:process_command({server_id(exchange)},
                                         {{enqueue, 1, 77, 1, {{{HOUR_MS}, none}}, Records}}),
        Number end)().""".replace("\n", " "))
    assert int(said) >> 8 > 0
    set_clock(node, 2 * HOUR_MS)
    client = Client(node)
    assert sorted(client.texts(queue, 2)) == ["held 0", "held 1"]
    eventually(lambda: "a later version of the plugin or of RabbitMQ stored it" in node.log(), bool,
               within=60)
    eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == 2)
    set_clock(node, 0)
    # They do not hold up others.
    client.publish(exchange, body=b"another", delay=1)
    assert client.texts(queue, 1) == ["another"]
    eventually(lambda: Management(node).messages_delayed(exchange), lambda n: n == 2)
