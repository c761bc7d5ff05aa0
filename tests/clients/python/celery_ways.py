# SPDX-License-Identifier: MPL-2.0
"""Sends tasks for an hour later in every way in which Celery lets one say so; prints, for each, its id, the
queue that it is for, and between which times (ms since the epoch) it has to be due. Last, what is refused."""

import json
import os
import time
from datetime import datetime, timedelta, timezone

from celery import chain, group
from delayed_celery import DelayedCelery
from kombu import Exchange, Queue
from kombu.common import Broadcast

HOUR = 3600
app = DelayedCelery("ways", broker=os.environ["BROKER_URL"])
app.conf.update(
    broker_transport_options={"confirm_publish": True}, timezone="Asia/Tokyo",
    task_default_queue="ways",
    task_queues=[Queue("ways", Exchange("ways"), routing_key="ways"),
                 Queue("ways.topic", Exchange("ways.topic", "topic"), routing_key="a.b",
                       queue_arguments={"x-queue-type": "quorum"}),
                 Broadcast("ways.all")],
    task_routes={"ways.routed": {"queue": "ways.topic"},
                 "ways.exchanged": {"exchange": "amq.topic", "routing_key": "a"}})


@app.task(name="ways.plain")
def plain(*_):
    pass


@app.task(name="ways.routed")
def routed(*_):
    pass


@app.task(name="ways.exchanged")
def exchanged(*_):
    pass


WAYS = {
    "countdown": lambda: ("ways", plain.apply_async(countdown=HOUR)),
    "a fraction": lambda: ("ways", plain.apply_async(countdown=HOUR + 0.5)),
    "eta": lambda: ("ways", plain.apply_async(
        eta=datetime.now(timezone(timedelta(hours=-5))) + timedelta(seconds=HOUR))),
    "an eta without a time zone": lambda: ("ways", plain.apply_async(
        eta=datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(seconds=HOUR))),
    "an eta as a string": lambda: ("ways", plain.apply_async(
        eta=(datetime.now(timezone.utc) + timedelta(seconds=HOUR)).isoformat())),
    "a countdown goes before an eta": lambda: ("ways", plain.apply_async(
        countdown=HOUR, eta=datetime.now(timezone.utc))),
    "a queue by name": lambda: ("ways.topic", plain.apply_async(countdown=HOUR, queue="ways.topic")),
    "a queue of one's own": lambda: ("ways.new", plain.apply_async(
        countdown=HOUR, queue=Queue("ways.new", Exchange("ways.new"), routing_key="x"))),
    "a route": lambda: ("ways.topic", routed.apply_async(countdown=HOUR)),
    "by name": lambda: ("ways", app.send_task("ways.unknown", countdown=HOUR)),
    "a routed one by name": lambda: ("ways.topic", app.send_task("ways.routed", countdown=HOUR)),
    "a signature": lambda: ("ways", plain.s(1).set(countdown=HOUR).delay()),
    "a chain": lambda: ("ways", chain(plain.s(1), plain.s()).apply_async(countdown=HOUR).parent),
    "a group": lambda: ("ways", group(plain.s(1)).apply_async(countdown=HOUR).results[0]),
    "with an id": lambda: ("ways", plain.apply_async(countdown=HOUR, task_id="my own id")),
    "again with that id": lambda: ("ways", plain.apply_async(countdown=HOUR, task_id="my own id")),
    "with headers": lambda: ("ways", plain.apply_async(countdown=HOUR, headers={"mine": 1})),
    "with expires": lambda: ("ways", plain.apply_async(countdown=HOUR, expires=2 * HOUR)),
}
REFUSED = {"a broadcast": lambda: plain.apply_async(countdown=HOUR, queue="ways.all"),
           "an exchange": lambda: exchanged.apply_async(countdown=HOUR)}


def main():
    sent, refused = {}, {}
    # What a queue has been declared for before must not keep it from being bound.
    plain.delay()
    for name, send in WAYS.items():
        before = time.time()
        queue, result = send()
        sent[name] = [result.id, queue, (before + HOUR) * 1000, (time.time() + HOUR + 1) * 1000]
    for name, send in REFUSED.items():
        try:
            send()
        except ValueError as error:
            refused[name] = str(error)
    print(json.dumps([sent, refused, list(REFUSED)]))


if __name__ == "__main__":
    main()
