# SPDX-License-Identifier: MPL-2.0
"""The judge of a cluster's record finds each kind of fault, and none in a sound history."""

import json
import os
import random
import subprocess
import sys
import threading

import pytest

CLUSTER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cluster")
sys.path.insert(0, CLUSTER)

import checker  # noqa: E402
from checker import Record, judge  # noqa: E402

SEEDS = range(40)


def history(*events):
    """Events as (at, what, id or name, more...)."""
    made = []
    for at, what, name, *more in events:
        key = "name" if what in ("fault", "healed") else "client" if what in (
            "closed", "opened", "cancelled", "silent") else "id"
        event = {"at": at, "what": what, key: name, **(more[0] if more else {})}
        if what == "sent":
            event.setdefault("due", None)
        if what == "delivered":
            event.setdefault("redelivered", False)
        made.append(event)
    return made


SOUND = [(0.0, "sent", "a", {"due": 5.0}), (0.1, "sent", "b"), (0.2, "confirmed", "a"),
         (0.3, "confirmed", "b"), (0.4, "delivered", "b"), (5.0, "delivered", "a")]


def without(*gone):
    return [event for event in SOUND if event not in gone]


def test_a_sound_history_passes():
    verdict = judge(history(*SOUND))
    assert verdict.complaints() == []
    assert (verdict.duplicates, verdict.closed, verdict.open) == ([], [], [])
    assert verdict.counts == {"sent": 2, "confirmed": 2, "delivered": 2}
    assert verdict.latest == pytest.approx(0.3) and verdict.latest_id == "b"


def test_nothing_at_all_passes():
    assert judge([]).complaints() == []


def test_what_is_confirmed_and_not_delivered_is_lost():
    verdict = judge(history(*without((5.0, "delivered", "a"))))
    assert verdict.lost == ["a"] and verdict.complaints() == ["lost: a"]


@pytest.mark.parametrize("answer", ["nacked", "unknown"])
def test_what_is_not_confirmed_may_be_delivered_or_not(answer):
    assert judge(history((0, "sent", "a"), (1, answer, "a"))).complaints() == []
    assert judge(history((0, "sent", "a"), (1, answer, "a"), (2, "delivered", "a"))).complaints() == []


def test_what_was_returned_is_not_lost():
    verdict = judge(history((0, "sent", "a"), (1, "returned", "a"), (1, "confirmed", "a")))
    assert verdict.complaints() == [] and verdict.counts["returned"] == 1


def test_early_is_exact():
    for at, early in (5.0, []), (4.999999, ["a"]), (5.000001, []):
        events = history(*without((5.0, "delivered", "a")), (at, "delivered", "a"))
        assert [name for name, _ in judge(events).early] == early


def test_what_is_not_delayed_is_never_early():
    assert judge(history((1, "sent", "a"), (1, "confirmed", "a"), (1, "delivered", "a"))).early == []


def test_the_latest_is_told():
    verdict = judge(history((0, "sent", "a", {"due": 1.0}), (0, "sent", "b", {"due": 2.0}),
                            (0, "confirmed", "a"), (0, "confirmed", "b"),
                            (2.5, "delivered", "b"), (9, "delivered", "a")))
    assert (verdict.latest, verdict.latest_id) == (8.0, "a")


def test_what_is_never_answered_is_told():
    assert judge(history((0, "sent", "a"))).open == ["a"]
    assert judge(history((0, "sent", "a"))).complaints() != []


def test_duplicates_marked_and_unmarked_and_how_long_after_a_fault():
    events = history((0, "sent", "a"), (0, "sent", "b"), (0, "confirmed", "a"), (0, "confirmed", "b"),
                     (1, "delivered", "a"), (8, "delivered", "b"), (8.5, "fault", "kill 1"),
                     (9, "delivered", "a"), (10, "delivered", "b"),
                     (11, "delivered", "b", {"redelivered": True}))
    verdict = judge(events)
    assert verdict.complaints() == []
    assert [(d.id, d.marked, d.apart, d.fault, d.after_fault, d.first_before_fault)
            for d in verdict.duplicates] == [("a", False, 8, "kill 1", 0.5, 7.5),
                                             ("b", False, 2, "kill 1", 1.5, 0.5),
                                             ("b", True, 3, "kill 1", 2.5, 0.5)]
    assert [d.id for d in verdict.unmarked] == ["a", "b"]
    # b was in flight when the node was killed, a was not.
    assert [d.id for d in verdict.stale(1.0)] == ["a"]
    assert verdict.stale(8.0) == []


def test_a_duplicate_without_a_fault_is_stale():
    verdict = judge(history((0, "sent", "a"), (0, "confirmed", "a"), (1, "delivered", "a"),
                            (1.1, "delivered", "a"), (2, "fault", "kill 1")))
    assert [d.id for d in verdict.stale()] == ["a"] and verdict.duplicates[0].fault is None


def test_the_undoing_of_a_fault_counts_as_one():
    verdict = judge(history((0, "fault", "pause 1"), (0, "sent", "a"), (0, "confirmed", "a"),
                            (10, "delivered", "a"), (10.5, "healed", "resume 1"), (11, "delivered", "a")))
    assert verdict.stale() == [] and verdict.duplicates[0].fault == "resume 1"


def test_a_retry_is_no_duplicate_of_ours():
    events = history((0, "sent", "a"), (1, "nacked", "a"), (2, "sent", "a2", {"after": "a"}),
                     (3, "confirmed", "a2"), (4, "delivered", "a"), (5, "delivered", "a2"))
    verdict = judge(events)
    assert verdict.complaints() == [] and verdict.duplicates == []
    assert verdict.retried_and_both_delivered == ["a2"]
    # The retry is lost, though what it retries came: it was confirmed.
    assert judge(events[:-1]).lost == ["a2"]


@pytest.mark.parametrize("events", [
    [(0, "confirmed", "a")],
    [(0, "delivered", "a")],
    [(0, "returned", "a")],
    [(0, "sent", "a"), (1, "sent", "a"), (2, "confirmed", "a"), (3, "delivered", "a")],
    [(0, "sent", "a"), (1, "confirmed", "a"), (2, "confirmed", "a"), (3, "delivered", "a")],
    [(0, "sent", "a"), (1, "nacked", "a"), (2, "confirmed", "a"), (3, "delivered", "a")],
    [(0, "sent", "a"), (1, "confirmed", "a"), (2, "unknown", "a"), (3, "delivered", "a")],
    [(0, "sent", "a", {"after": "b"}), (1, "confirmed", "a"), (3, "delivered", "a")],
    [(0, "sent", "a"), (1, "unknown", "a"), (2, "sent", "b", {"after": "a"}), (2, "unknown", "b")],
    [(5, "sent", "a"), (4, "confirmed", "a"), (6, "delivered", "a")],
], ids=["answer to nothing", "delivery of nothing", "return of nothing", "sent twice", "confirmed twice",
        "nacked and confirmed", "confirmed and unknown", "retry of nothing", "retry of what was not nacked",
        "time runs backwards"])
def test_what_cannot_be_is_unsound(events):
    verdict = judge(history(*events))
    assert len(verdict.unsound) == 1 and verdict.complaints() == [f"unsound: {verdict.unsound[0]}"]


def test_connections_that_ended_are_told():
    closed = history((1, "closed", "p1", {"why": "(506, 'no')"}), (2, "cancelled", "c1", {"why": "gone"}),
                     (3, "silent", "p2", {"seconds": 30}))
    verdict = judge(history(*SOUND[:1]) + closed)
    assert [verdict.closed, verdict.cancelled, verdict.silent] == [[event] for event in closed]


def test_the_longest_time_without_a_confirm():
    events = [(0, "sent", "first"), (1, "confirmed", "first"), (1, "sent", "a"), (2, "fault", "kill 1"),
              (3, "sent", "b"), (9, "confirmed", "a"), (9, "confirmed", "b"), (10, "sent", "last"),
              (60, "confirmed", "last")]
    gap = judge(history(*events)).no_confirm
    assert (gap.seconds, gap.began, gap.fault) == (8, 1, "kill 1")
    # And if there is none any more, until the last message.
    gap = judge(history(*events[:5], (50, "sent", "c"))).no_confirm
    assert (gap.seconds, gap.began) == (49, 1)
    assert judge(history((0, "sent", "a"), (7, "sent", "b"))).no_confirm.seconds == 7


def test_a_gap_names_the_first_fault_in_it_or_the_last_before_it():
    def fault(*events):
        around = history((0, "sent", "a"), (1, "confirmed", "a"), (1, "sent", "b"), (9, "confirmed", "b"),
                         (10, "sent", "c"), (10, "confirmed", "c"))
        verdict = judge(sorted(around + history(*events), key=lambda event: event["at"]))
        assert verdict.no_confirm.seconds == 8
        return verdict.no_confirm.fault

    assert fault() is None
    assert fault((0.5, "fault", "kill 1")) == "kill 1"
    assert fault((0.5, "fault", "kill 1"), (3, "fault", "kill 2"), (4, "healed", "start 1")) == "kill 2"
    assert fault((9.5, "fault", "kill 1")) is None


def test_the_longest_time_without_a_release_counts_only_while_something_is_due():
    def gap(*due_and_delivered):
        sent = [(0, "sent", str(n), {"due": due}) for n, (due, _) in enumerate(due_and_delivered)]
        came = sorted((at, "delivered", str(n)) for n, (_, at) in enumerate(due_and_delivered))
        found = judge(history(*sent, *came)).no_release
        return found.seconds, found.began

    assert gap((10, 11)) == (1, 10)
    # Nothing is due from 11 to 50.
    assert gap((10, 11), (50, 50.5)) == (1, 10)
    # From 20 on something is, though another came late.
    assert gap((10, 11), (20, 31), (30, 30.5)) == (10.5, 20)
    assert gap((10, 11), (11, 11), (12, 19), (13, 18)) == (6, 12)


# ------------------------------------------------------------------- generated histories

def generated(seed, messages=150):
    """A sound history with kills, nacks and retries, lost connections, redeliveries, in order of time."""
    draw = random.Random(seed)
    events, at, count = [], 0.0, 0
    pending = []

    def send(after=None):
        nonlocal count
        name, due = f"m{count}", at + draw.random() * 20 if draw.random() < 0.7 else None
        count += 1
        events.append((at, "sent", name, {"due": due, "after": after}))
        pending.append((name, due))

    later = []
    while count < messages:
        at += draw.random()
        if draw.random() < 0.05:
            events.append((at, draw.choice(["fault", "healed"]), f"kill {count}"))
        send()
        while pending and draw.random() < 0.8:
            name, due = pending.pop(draw.randrange(len(pending)))
            at += 0.001
            answer = draw.choices(["confirmed", "nacked", "unknown"], [8, 1, 1])[0]
            events.append((at, answer, name))
            if answer == "confirmed" or draw.random() < 0.5:
                first = max(at, due or at) + draw.expovariate(5)
                later.append((first, "delivered", name))
                if draw.random() < 0.1:
                    later.append((first + draw.random(), "delivered", name, {"redelivered": True}))
            if answer == "nacked":
                at += 0.001
                send(after=name)
    for name, _ in pending:
        events.append((at + 1, "unknown", name))
    return history(*sorted(events + later, key=lambda event: event[0]))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_generated_sound_history_passes_and_each_harm_is_found(seed):
    events = generated(seed)
    verdict = judge(events)
    assert verdict.complaints() == [] and verdict.unmarked == []
    draw = random.Random(seed)
    by_id = {}
    for event in events:
        if "id" in event:
            by_id.setdefault(event["id"], {}).setdefault(event["what"], []).append(event)
    confirmed = [name for name, of in by_id.items() if "confirmed" in of]

    # All deliveries of a confirmed message taken away.
    name = draw.choice(confirmed)
    assert judge([e for e in events if not (e["what"] == "delivered" and e["id"] == name)]).lost == [name]

    # A delivery brought forward to before it was due.
    name = draw.choice([n for n in confirmed if by_id[n]["sent"][0]["due"] is not None])
    due, first = by_id[name]["sent"][0]["due"], by_id[name]["delivered"][0]
    changed = sorted(({**e, "at": max(due - 0.001, by_id[name]["sent"][0]["at"])} if e is first else e
                      for e in events), key=lambda e: e["at"])
    assert [n for n, _ in judge(changed).early] == [name]

    # One more delivery, unmarked.
    name = draw.choice(confirmed)
    again = {"at": events[-1]["at"] + 1, "what": "delivered", "id": name, "redelivered": False}
    assert [d.id for d in judge([*events, again]).unmarked] == [name]

    # An answer taken away.
    name = draw.choice(confirmed)
    assert judge([e for e in events if e is not by_id[name]["confirmed"][0]]).open == [name]

    # A second answer.
    again = {"at": events[-1]["at"], "what": "nacked", "id": draw.choice(confirmed)}
    assert len(judge([*events, again]).unsound) == 1


def test_judging_does_not_change_the_record():
    events = generated(1)
    before = json.dumps(events)
    judge(events)
    assert json.dumps(events) == before


# --------------------------------------------------------------------------------- the record

def test_a_record_keeps_the_order_of_many_threads_and_reads_back_the_same(tmp_path):
    path = tmp_path / "record"
    record = Record(path)

    def add(client):
        for n in range(500):
            record.add("sent", id=f"{client}.{n}", due=None, client=client)
            record.add("confirmed", id=f"{client}.{n}", client=client)
            record.add("delivered", id=f"{client}.{n}", client=client, redelivered=False)

    threads = [threading.Thread(target=add, args=(f"p{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    assert record.wait_for(lambda: record.count("delivered") >= 2000, 60)
    for thread in threads:
        thread.join()
    record.close()
    assert record.count("sent", "p2") == 500 and not record.wait_for(lambda: False, 0)
    assert judge(record.events).complaints() == []
    assert checker.read(path) == record.events


def test_the_program_judges_a_file(tmp_path):
    def ends(events):
        path = tmp_path / "record"
        path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        done = subprocess.run([sys.executable, os.path.join(CLUSTER, "checker.py"), path],
                              capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    code, said = ends(history(*SOUND))
    assert code == 0 and said.startswith("sent 2 confirmed 2 ") and len(said.splitlines()) == 1
    code, said = ends(history(*SOUND[:-1]))
    assert code == 1 and said.splitlines()[1:] == ["lost: a"]
