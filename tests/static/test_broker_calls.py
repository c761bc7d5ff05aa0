# SPDX-License-Identifier: MPL-2.0
"""tests/static/broker_calls finds what it is there to find, in a small archive of two modules."""

import os
import shutil
import subprocess

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TABLE = """
{series, ["1.0", "main"]}.
{source, broker, "https://example.org", ["v1.0", "v2.0"]}.
{calls, broker, all, [{broker, always, 0}]}.
{calls, broker, ["1.0"], [{broker, sometimes, 1}]}.
"""
SERIES = """
-module(rabbit_delay_series).
-export([has/1, varying/0]).
has(F) -> lists:member(F, varying()).
varying() -> [{broker, sometimes, 1}].
"""
ADAPTER = """
-module(adapter).
-export([one/0, two/1]).
one() -> broker:always().
two(X) -> case is_there() of true -> broker:sometimes(X); false -> lists:sort([X]) end.
is_there() -> rabbit_delay_series:has({broker, sometimes, 1}).
"""
APP = '{application, rabbitmq_delay_wheel, [{env, [{known_series, ["1.0"]}]}]}.'


def check(directory, table=TABLE, series=SERIES, adapter=ADAPTER, app=APP):
    shutil.copy(os.path.join(HERE, "broker_calls"), directory)
    for name, text in (("broker_calls.eterm", table), ("rabbit_delay_series.erl", series),
                       ("adapter.erl", adapter), ("rabbitmq_delay_wheel.app", app)):
        (directory / name).write_text(text)
    subprocess.run(["erlc", "+debug_info", "rabbit_delay_series.erl", "adapter.erl"], cwd=directory,
                   check=True)
    done = subprocess.run([directory / "broker_calls", directory], capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout


def test_what_is_right_passes(tmp_path):
    assert check(tmp_path) == (0, "")


@pytest.mark.parametrize("changed, said", [
    ({"adapter": ADAPTER.replace("broker:always()", "[broker:always(), broker:later()]")},
     "adapter:one/0 calls broker:later/0, which tests/static/broker_calls.eterm does not have"),
    ({"adapter": ADAPTER.replace("broker:always()", "[broker:always(), fun broker:later/0]")},
     "adapter:one/0 calls broker:later/0, which tests/static/broker_calls.eterm does not have"),
    ({"adapter": ADAPTER.replace("broker:always()", "ok")},
     "has broker:always/0, which nobody calls"),
    ({"adapter": ADAPTER.replace("rabbit_delay_series:has({broker, sometimes, 1})", "get(there)")},
     "adapter:two/1 calls broker:sometimes/1, which some series lack, and does not ask"),
    ({"adapter": ADAPTER.replace("lists:sort", "lists:sorted")},
     "adapter:two/1 calls lists:sorted/1, which Erlang "),
    ({"series": SERIES.replace("[{broker, sometimes, 1}]", "[]")},
     "some series lack broker:sometimes/1: it belongs into rabbit_delay_series:varying/0"),
    ({"series": SERIES.replace("[{broker, sometimes, 1}]",
                               "[{broker, sometimes, 1}, {broker, always, 0}]")},
     "rabbit_delay_series:varying/0 has broker:always/0"),
    ({"app": APP.replace('"1.0"', '"1.0", "1.1"')}, "the archive is for"),
    ({"table": TABLE.replace(', "v2.0"', "")}, "does not say where broker was read"),
])
def test_what_is_wrong_is_said(tmp_path, changed, said):
    status, out = check(tmp_path, **changed)
    assert status == 1 and said in out and out.count("\n") == 1, out
