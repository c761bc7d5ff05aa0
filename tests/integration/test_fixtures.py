# SPDX-License-Identifier: MPL-2.0
"""What earlier versions left on disk is read: every message of every fixture in tests/fixtures, from
snapshots, from stores and from the Raft log, is there, and is delivered. make.py made them."""

import collections
import glob
import hashlib
import json
import os
import shutil
import tarfile

import pytest

import fixture
from client import Client
from management import eventually
from node import evaluate, set_clock
from private_broker import REPOSITORY, default_series
from test_series import EARLIER
from test_snapshots import Log

YEAR_MS = 31_536_000_000
ARCHIVES = sorted(os.path.basename(file)[:-len(".tar.xz")] for file in
                  glob.glob(os.path.join(REPOSITORY, "tests", "fixtures", "*.tar.xz")))


def series_of(archive):
    return archive.rpartition("-")[2]


READABLE = [archive for archive in ARCHIVES if series_of(archive) in (default_series(), EARLIER)]


def test_there_are_fixtures_of_every_version_of_the_machine():
    ours = 3
    for version in range(ours + 1):
        for series in ("3.10", "4.0"):
            assert f"machine-{version}-rabbitmq-{series}" in ARCHIVES
    assert READABLE


def digest(body):
    return hashlib.md5(body).hexdigest()


@pytest.mark.parametrize("archive", READABLE)
def test_every_message_is_there_and_is_delivered(brokers, archive):
    broker = brokers(f"fixture-{archive}", **fixture.NODE)
    client = Client(broker)
    for name, arguments in fixture.EXCHANGES.items():
        client.delayed("direct", name=name, keep=True, arguments=arguments)
    fixture.declare_queues(client)
    broker.stop()
    data = os.path.join(broker.data_dir, "quorum")
    shutil.rmtree(os.path.join(data, "delayed"), ignore_errors=True)
    with tarfile.open(os.path.join(REPOSITORY, "tests", "fixtures", archive + ".tar.xz")) as tar:
        tar.extractall(data)
    with open(os.path.join(data, "recorded.json"), encoding="utf-8") as file:
        recorded = json.load(file)
    assert recorded["node"] == broker.nodename and recorded["rabbitmq"] == series_of(archive)
    broker.start()
    same_series = series_of(archive) == default_series()
    wanted, due = {}, collections.Counter()
    for exchange, rows in recorded["exchanges"].items():
        assert len(rows) > 0
        # Of another series, the content is another term; what is in it comes below.
        wanted[exchange] = rows if same_series else [row[:5] for row in rows]
        eventually(lambda: held(broker, exchange), lambda n: n == len(rows))
        rows = fixture.listing(broker, exchange)
        assert (rows if same_series else [row[:5] for row in rows]) == wanted[exchange], exchange
        due.update((("mortal" if row[3] & 0x8000 else "work"), row[4]) for row in rows)
        # What it holds is seen before its member leads.
        log = Log(broker, exchange)
        eventually(log.overview, lambda now: now["version"] == now["ours"])
    eventually(lambda: evaluate(broker, 'rabbit_delay_registry:is_paused(rabbit_misc:r(<<"/">>, exchange, '
                                        '<<"paused">>)).'), lambda paused: paused == "true")
    broker.ctl("resume_delayed_exchange", "paused")
    assert_delivered(broker, due)
    # And not again.
    broker.stop()
    broker.start()
    set_clock(broker, 100 * YEAR_MS)
    client = Client(broker)
    client.publish("plain", body=b"new", delay=1)
    client.publish("log", body=b"new", delay=1)
    assert client.texts("work", 2) == ["new", "new"]
    assert client.depth("mortal") == 0 and client.depth("work") == 0


def held(broker, exchange):
    return int(evaluate(broker, f'rabbit_delay_registry:pending(rabbit_misc:r(<<"/">>, exchange, '
                                f'<<"{exchange}">>)).'))


def assert_delivered(broker, due):
    set_clock(broker, 100 * YEAR_MS)
    client = Client(broker)
    for queue in ("work", "mortal"):
        expected = {body: n for (name, body), n in due.items() if name == queue}
        got = client.collect(queue, sum(expected.values()), prefetch=1000)
        assert collections.Counter(digest(delivery.body) for delivery in got) == expected, queue
        if queue == "mortal":
            assert all(delivery.headers["x-death"][0]["queue"] == "mortal" for delivery in got)
    for exchange in fixture.EXCHANGES:
        eventually(lambda: held(broker, exchange), lambda n: n == 0)
    client.connection.close()
