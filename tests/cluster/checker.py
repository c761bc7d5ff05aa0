#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""What publishers and consumers saw of a cluster, in a record, and what follows from it.

A Record is appended to and never changed. Each event is a dict with "at" (seconds on the monotonic clock,
which all that is in a record share), "what", and of which client or fault:

    sent        id, due (None: at once), after (the id of the nacked message that it is a retry of)
    confirmed   id
    nacked      id
    unknown     id: its connection ended, or the run did, before it was answered
    returned    id: it was unroutable
    delivered   id, redelivered
    opened, closed (why), cancelled (why): a client's connection or consumer
    silent      seconds: a publisher gave its connection up, as the oldest message had no answer for so long
    fault       name: what was done to a node, or began to be; struck name: that took until now;
                healed name: it was undone

judge(events) is a pure function of them. `checker.py FILE` judges one that was written.
"""

import argparse
import bisect
import collections
import dataclasses
import json
import sys
import threading
import time

ANSWERS = ("confirmed", "nacked", "unknown")
OF_MESSAGES = ("sent", *ANSWERS, "returned", "delivered")


class Record:
    """Written to `path`, too, an event a line, as it comes. Any thread may add to it."""

    def __init__(self, path=None):
        self.events = []
        self._counts = collections.Counter()
        self._changed = threading.Condition()
        self._file = open(path, "a", encoding="utf-8", buffering=1) if path else None

    def add(self, what, **event):
        with self._changed:
            event = {"at": time.monotonic(), "what": what, **event}
            self.events.append(event)
            self._counts[what] += 1
            if "client" in event:
                self._counts[what, event["client"]] += 1
            if self._file is not None:
                self._file.write(json.dumps(event) + "\n")
            self._changed.notify_all()

    def count(self, what, client=None):
        with self._changed:
            return self._counts[what if client is None else (what, client)]

    def wait_for(self, condition, within):
        """Waits until condition() is true, which is asked again after each event; whether it is."""
        deadline = time.monotonic() + within
        with self._changed:
            while not condition():
                if (left := deadline - time.monotonic()) <= 0:
                    return False
                self._changed.wait(min(left, 1))
            return True

    def close(self):
        with self._changed:
            if self._file is not None:
                self._file.close()
                self._file = None


def read(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


@dataclasses.dataclass
class Gap:
    """A time without any confirm, or without any release although something was due; and what was done
    to the cluster in it, or last before it."""
    seconds: float = 0.0
    began: float = 0.0
    fault: str = None


@dataclasses.dataclass
class Duplicate:
    """A delivery of a message that had been delivered. `after_fault`: how long after the last thing
    that was done to the cluster; `first_before_fault`: how long before that the first one was (negative:
    after it). Both None if nothing had been done."""
    id: str
    marked: bool
    apart: float
    fault: str = None
    after_fault: float = None
    first_before_fault: float = None


@dataclasses.dataclass
class Verdict:
    counts: dict
    unsound: list = dataclasses.field(default_factory=list)
    lost: list = dataclasses.field(default_factory=list)
    early: list = dataclasses.field(default_factory=list)
    open: list = dataclasses.field(default_factory=list)
    duplicates: list = dataclasses.field(default_factory=list)
    closed: list = dataclasses.field(default_factory=list)
    cancelled: list = dataclasses.field(default_factory=list)
    silent: list = dataclasses.field(default_factory=list)
    retried_and_both_delivered: list = dataclasses.field(default_factory=list)
    latest: float = 0.0
    latest_id: str = None
    no_confirm: Gap = dataclasses.field(default_factory=Gap)
    no_release: Gap = dataclasses.field(default_factory=Gap)

    @property
    def unmarked(self):
        return [duplicate for duplicate in self.duplicates if not duplicate.marked]

    def stale(self, seconds=1.0):
        """Unmarked duplicates whose first delivery was so long before the last fault: they were not in
        flight when it came. One without any fault before it is stale, too."""
        return [duplicate for duplicate in self.unmarked
                if duplicate.first_before_fault is None or duplicate.first_before_fault > seconds]

    def complaints(self):
        """What must not be whatever was done to the cluster; empty if all is well."""
        found = [f"unsound: {text}" for text in self.unsound]
        found += [f"lost: {message}" for message in self.lost]
        found += [f"early: {message} by {seconds:.6f} s" for message, seconds in self.early]
        found += [f"neither confirmed, nacked nor given up: {message}" for message in self.open]
        return found

    def summary(self):
        counted = " ".join(f"{what} {self.counts.get(what, 0)}" for what in OF_MESSAGES)
        return (f"{counted}; lost {len(self.lost)}, early {len(self.early)}, duplicates "
                f"{len(self.duplicates)} ({len(self.unmarked)} unmarked, {len(self.stale())} stale), closed "
                f"{len(self.closed)}, given up {len(self.silent)}; latest {self.latest:.3f} s; longest "
                f"without a confirm {self.no_confirm.seconds:.2f} s ({self.no_confirm.fault}), without a release "
                f"{self.no_release.seconds:.2f} s ({self.no_release.fault})")


@dataclasses.dataclass
class _Message:
    sent: float
    due: float
    delayed: bool
    after: str
    answer: str = None
    returned: bool = False
    deliveries: list = dataclasses.field(default_factory=list)


class _Faults:
    """What was done to the cluster, in order of time; undoing it is such an event, too."""

    def __init__(self, events):
        done = [(event["at"], event["name"]) for event in events if event["what"] in ("fault", "healed")]
        self._times = [at for at, _ in done]
        self._names = [name for _, name in done]

    def last_before(self, at):
        """(when, name), or None."""
        place = bisect.bisect_right(self._times, at)
        return (self._times[place - 1], self._names[place - 1]) if place else None

    def of(self, began, ended):
        """The name of the first in that time, else of the last before it, else None."""
        place = bisect.bisect_right(self._times, began)
        if place < len(self._times) and self._times[place] < ended:
            return self._names[place]
        return self._names[place - 1] if place else None


def judge(events, apart=0):
    """The Verdict on a record's events. What is confirmed and was not returned has to be delivered; a
    message that was nacked or is unknown may be. Nodes' clocks may be `apart`, seconds."""
    verdict = Verdict(dict(collections.Counter(event["what"] for event in events)))
    messages = _messages(events, verdict)
    faults = _Faults(events)
    for name, message in messages.items():
        _judge_message(name, message, faults, verdict, apart)
    verdict.retried_and_both_delivered = [
        name for name, message in messages.items()
        if message.after is not None and message.deliveries and messages[message.after].deliveries]
    verdict.closed = [event for event in events if event["what"] == "closed"]
    verdict.cancelled = [event for event in events if event["what"] == "cancelled"]
    verdict.silent = [event for event in events if event["what"] == "silent"]
    verdict.no_confirm = _no_confirm(events, messages, faults)
    verdict.no_release = _no_release(messages, faults)
    return verdict


def _messages(events, verdict):
    """The messages by id. What cannot be, whatever the cluster did, is noted as unsound: the record
    itself is not to be trusted then."""
    messages, last = {}, None
    for event in events:
        what, at = event["what"], event["at"]
        if last is not None and at < last:
            verdict.unsound.append(f"an event at {at} comes after one at {last}")
        last = at
        if what not in OF_MESSAGES:
            continue
        name = event["id"]
        if what == "sent":
            _note_sent(name, event, messages, verdict)
        elif name not in messages:
            verdict.unsound.append(f"{name} is {what} and was never sent")
        elif what == "delivered":
            messages[name].deliveries.append((at, bool(event["redelivered"])))
        elif what == "returned":
            messages[name].returned = True
        elif messages[name].answer is not None:
            verdict.unsound.append(f"{name} is {what} after it was {messages[name].answer}")
        else:
            messages[name].answer = what
    return messages


def _note_sent(name, event, messages, verdict):
    after, due = event.get("after"), event.get("due")
    if name in messages:
        verdict.unsound.append(f"{name} is sent twice")
        return
    if after is not None and (after not in messages or messages[after].answer != "nacked"):
        verdict.unsound.append(f"{name} is a retry of {after}, which was not nacked")
        after = None
    messages[name] = _Message(event["at"], event["at"] if due is None else due, due is not None, after)


def _judge_message(name, message, faults, verdict, apart):
    if message.answer is None:
        verdict.open.append(name)
    if not message.deliveries:
        if message.answer == "confirmed" and not message.returned:
            verdict.lost.append(name)
        return
    first = message.deliveries[0][0]
    if message.delayed and first < message.due - apart:
        verdict.early.append((name, message.due - first))
    if first - message.due > verdict.latest:
        verdict.latest, verdict.latest_id = first - message.due, name
    for at, marked in message.deliveries[1:]:
        duplicate = Duplicate(name, marked, at - first)
        last = faults.last_before(at)
        if last is not None:
            duplicate.fault = last[1]
            duplicate.after_fault = at - last[0]
            duplicate.first_before_fault = last[0] - first
        verdict.duplicates.append(duplicate)


def _no_confirm(events, messages, faults):
    """While publishing went on, from the first message to the last."""
    sent = [message.sent for message in messages.values()]
    longest = Gap()
    if not sent:
        return longest
    begin, end = min(sent), max(sent)
    times = [event["at"] for event in events if event["what"] == "confirmed" and event["at"] < end]
    for before, after in zip([begin, *times], [*times, end]):
        if after - before > longest.seconds:
            longest = Gap(after - before, before, faults.of(before, after))
    return longest


def _no_release(messages, faults):
    """From one message's first delivery to the next's, or from when the earliest of those that were
    still to come was due, if that was later."""
    delivered = sorted((message.deliveries[0][0], message.due) for message in messages.values()
                       if message.deliveries)
    longest = Gap()
    earliest = float("inf")
    for place in range(len(delivered) - 1, -1, -1):
        at, due = delivered[place]
        earliest = min(earliest, due)
        began = max(earliest, delivered[place - 1][0]) if place else earliest
        if at - began > longest.seconds:
            longest = Gap(at - began, began, faults.of(began, at))
    return longest


def main():
    parser = argparse.ArgumentParser(description="Judges a record of publishers and consumers.")
    parser.add_argument("file")
    verdict = judge(read(parser.parse_args().file))
    print(verdict.summary())
    for complaint in verdict.complaints():
        print(complaint)
    return 1 if verdict.complaints() else 0


if __name__ == "__main__":
    sys.exit(main())
