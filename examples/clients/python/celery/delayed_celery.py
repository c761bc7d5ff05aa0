# SPDX-License-Identifier: MPL-2.0
"""Celery whose tasks with `countdown` or `eta`, and retries, wait in a delayed exchange, on disk.

Celery itself gives a task with an ETA to a worker at once, which holds it, unacknowledged; or, with
quorum queues, sends it down a ladder of 28 queues. Here a worker gets it when it is due. Use it as
`Celery`; all that calls `apply_async`, canvases and `self.retry` too, goes this way.

A task goes to the queue that Celery routes it to. One routed to an exchange without a queue, or to a
`Broadcast`, has no one queue to wait for: with a countdown it is refused.
"""

import math
import time

import celery
from celery.utils import uuid
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu import Exchange, Queue
from kombu.common import Broadcast


class Consumer(CeleryConsumer):
    """A worker's consumer that does not declare Celery's own ladder of queues."""

    class Blueprint(CeleryConsumer.Blueprint):
        default_steps = [step for step in CeleryConsumer.Blueprint.default_steps
                         if not step.endswith(":DelayedDelivery")]


class DelayedCelery(celery.Celery):
    later = Exchange("celery.later", "x-delayed-message", durable=True,
                     arguments={"x-delayed-type": "direct"})

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conf.worker_consumer = f"{__name__}:Consumer"

    def send_task(self, name, args=None, kwargs=None, countdown=None, eta=None, task_id=None,
                  router=None, **options):
        task_id = task_id or uuid()
        if countdown or eta:
            # Neither goes on to Celery, which would have the task wait a second time.
            router = _Later(self, router or self.amqp.router, self._due(countdown, eta), task_id)
        return super().send_task(name, args, kwargs, task_id=task_id, router=router, **options)

    def cancel(self, task_id):
        """Takes a task back that waits. Once this returns it does not wait any more: a worker has it
        (`control.revoke` is for those), or nobody."""
        with self.producer_or_acquire() as producer:
            producer.publish("", exchange=self.later, routing_key="", declare=[self.later],
                             retry=True, headers={"x-delay-cancel": task_id})

    def _due(self, countdown, eta):
        """Milliseconds since the epoch: a time, so that a publish which is tried again is as due."""
        if countdown:
            return math.ceil((time.time() + countdown) * 1000)
        # As to Celery, one without a time zone is UTC.
        return math.ceil(maybe_make_aware(maybe_iso8601(eta)).timestamp() * 1000)


class _Bound(Queue):
    """A queue's binding to the delayed exchange. kombu remembers by hash what it has declared."""

    def __hash__(self):
        return hash(f"celery.later|{self.name}")


class _Later:
    """Routes a task as Celery does, and from there to the delayed exchange."""

    def __init__(self, app, router, due, task_id):
        self.app, self.router, self.due, self.task_id = app, router, due, task_id

    def route(self, options, name, args=(), kwargs=None, task_type=None):
        options = self.router.route(options, name, args, kwargs, task_type)
        queue = options.pop("queue", None)
        if queue is None or isinstance(queue, Broadcast):
            raise ValueError(f"{name} with a countdown or eta has to be routed to a queue")
        bound = _Bound(**{**queue.as_dict(), "exchange": self.app.later,
                          "routing_key": queue.name, "bindings": None})
        return {**options, "exchange": self.app.later, "exchange_type": self.app.later.type,
                "routing_key": queue.name, "declare": [queue, bound],
                "headers": {**(options.get("headers") or {}),
                            "x-opt-delivery-time": self.due, "x-delay-key": self.task_id,
                            # A publish that is tried again is there once.
                            "x-delay-on-duplicate": "replace"}}
