# SPDX-License-Identifier: MPL-2.0
"""Celery tasks that note what is done; as a program, sends so many of them.

    celery -A recorded worker        recorded.py NUMBER SECONDS
"""

import os
import sys
import time

from amqp.exceptions import RecoverableConnectionError
from celery import Celery
from delayed_celery import DelayedCelery
from kombu.exceptions import OperationalError

app = (Celery if os.environ.get("OWN_LADDER") else DelayedCelery)(
    "recorded", broker=os.environ["BROKER_URL"])
app.conf.update(broker_transport_options={"confirm_publish": True},
                task_default_queue=os.environ["QUEUE"],
                task_default_queue_type=os.environ["QUEUE_TYPE"],
                task_default_exchange_type=os.environ.get("EXCHANGE_TYPE", "direct"),
                task_acks_late=True, task_reject_on_worker_lost=True)


@app.task
def record(number, due):
    with open(os.environ["RECORD"], "ab", buffering=0) as f:
        f.write(f"{number} {due} {time.time()}\n".encode())


def main():
    number, seconds = int(sys.argv[1]), float(sys.argv[2])
    for n in range(number):
        while True:
            countdown = seconds / 4 + seconds * 3 / 4 * n / number
            # Not before the time at which it was asked for.
            try:
                record.apply_async([n, time.time() + countdown], countdown=countdown)
                break
            except (OSError, OperationalError, RecoverableConnectionError) as error:
                print(f"again: {error}", file=sys.stderr)
        print(n, flush=True)


if __name__ == "__main__":
    main()
