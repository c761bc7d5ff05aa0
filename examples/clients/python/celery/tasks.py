# SPDX-License-Identifier: MPL-2.0
# celery -A tasks worker

import os

from delayed_celery import DelayedCelery

app = DelayedCelery("tasks", broker=os.environ.get("BROKER_URL", "amqp://guest:guest@localhost"))
app.conf.update(
    # apply_async returns when the broker has the task on disk.
    broker_transport_options={"confirm_publish": True},
    task_default_queue=os.environ.get("QUEUE", "tasks"),
    task_default_queue_type=os.environ.get("QUEUE_TYPE", "quorum"),
    # A task that a worker had as it died is done again.
    task_acks_late=True, task_reject_on_worker_lost=True)


@app.task
def remind(of):
    print(f"remind of {of}", flush=True)


@app.task(bind=True, max_retries=5)
def charge(self, order):
    attempt = self.request.retries + 1
    print(f"charge {order}, attempt {attempt}", flush=True)
    if attempt < 3:
        raise self.retry(countdown=0.2 * 2 ** attempt)
