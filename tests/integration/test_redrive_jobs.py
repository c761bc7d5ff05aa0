# SPDX-License-Identifier: MPL-2.0
"""Redrives that go on in the broker when nobody waits for them: begun, watched and stopped over HTTP, and
nothing lost whatever ends them. Each answer is held against openapi.json."""

import pytest

import openapi
import wire
from client import Client
from conftest import PLUGIN
from management import Management, eventually
from node import evaluate, kill_9
from test_dead_letter_api import as_user  # noqa: F401
from test_redrive import counts, depth, everything, kind, park, topology  # noqa: F401

QUEUE = "/dead-letters/{vhost}/{queue}"
REDRIVES = QUEUE + "/redrives"
REDRIVE = REDRIVES + "/{id}"
STOP = REDRIVE + "/stop"
EVERYWHERE = "/dead-letter-redrives"

# Slow enough to be met under way on any machine, quick enough to end by itself in time.
RATE = 100
# In flight at a time: what may be in both places.
WINDOW = 500
JOBS = "rabbit_delay_redrive_jobs"


class Jobs:
    """The redrives of a queue as a user sees them."""

    def __init__(self, management, vhost, queue):
        self._management, self._places = management, {"vhost": vhost, "queue": queue}

    def call(self, method, template, **options):
        return openapi.call(self._management, method, template, **{**self._places, **options})

    def begin(self, status=202, **body):
        got, answer = self.call("POST", REDRIVES, body=body)
        assert got == status, answer
        return answer if status == 202 else answer["reason"]

    def get(self, job):
        status, answer = self.call("GET", REDRIVE, id=job["id"])
        assert status == 200, answer
        return answer

    def list(self):
        status, answer = self.call("GET", REDRIVES)
        assert status == 200, answer
        return answer["redrives"]

    def stop(self, job, status=200):
        got, answer = self.call("POST", STOP, id=job["id"], body={})
        assert got == status, answer
        return answer

    def ended(self, job):
        return eventually(lambda: self.get(job), lambda now: now["state"] in ("ended", "failed"))

    def moving(self, job):
        """Once it has moved some."""
        return eventually(lambda: self.get(job), lambda now: now["progress"] and now["progress"]["redriven"] > 0)


@pytest.fixture
def jobs(management, vhost):
    return lambda queue: Jobs(management, vhost, queue)


def filled(client, n, kind="classic"):  # noqa: F811
    """A queue with so many messages, and one to move them to."""
    queue, target = client.queue(arguments={"x-queue-type": kind}), client.queue()
    bodies = [f"m{i}" for i in range(n)]
    with wire.Publisher(client.broker, client.vhost) as publisher:
        publisher.publish("", queue, [body.encode() for body in bodies])
    eventually(lambda: depth(client, queue), lambda found: found == n)
    return queue, target, bodies


def all_there(client, queue, target, bodies, twice):
    """Each message is in one of both, and no more than so many are in both."""
    here, there = everything(client, queue), everything(client, target)
    assert {*here, *there} == set(bodies)
    assert len(here) + len(there) <= len(bodies) + twice, "more than was in flight came twice"
    return here, there


# --------------------------------------------------------------------- begun, watched, stopped

def test_it_moves_what_is_there_and_is_remembered(broker, local, vhost, jobs, kind, management):  # noqa: F811
    work, queue = topology(local, kind)
    park(local, work, queue, ["a", "b", "c"])
    redrives, before = jobs(queue), len(broker.log())
    job = redrives.begin(reason="rejected", limit=2)
    assert (job["queue"], job["vhost"], job["user"], job["state"], job["ended"]) == (
        queue, vhost, "guest", "running", None)
    assert job["request"] == {"reason": "rejected", "limit": 2}
    done = redrives.ended(job)
    assert (done["state"], done["reason"]) == ("ended", None)
    assert done["started"] <= done["ended"]
    progress = done["progress"]
    assert (progress["redriven"], progress["targets"], progress["stopped"]) == (2, {f"queue {work}": 2}, None)
    assert local.texts(work, 2) == ["a", "b"]
    other = redrives.begin()
    redrives.ended(other)
    assert [one["id"] for one in redrives.list()] == [other["id"], job["id"]]
    everywhere = openapi.call(management, "GET", EVERYWHERE)[1]["redrives"]
    assert [one["id"] for one in everywhere if one["queue"] == queue] == [other["id"], job["id"]]
    lines = eventually(lambda: [line for line in broker.log()[before:].splitlines()
                                if "dead letters of queue" in line and vhost in line],
                       lambda found: len(found) >= 2)
    assert f"to be redriven to queue {work}, asked for by user 'guest' over HTTP" in lines[0]
    assert "2 of 2 redriven" in lines[1]


def test_it_is_watched_and_stopped(broker, local, jobs, kind):  # noqa: F811
    queue, target, bodies = filled(local, 1000, kind)
    redrives = jobs(queue)
    job = redrives.begin(to_queue=target, rate=RATE)
    assert redrives.moving(job)["progress"]["total"] == len(bodies)
    assert "already" in redrives.begin(409, to_queue=target)
    assert redrives.stop(job)["state"] == "stopping"
    done = redrives.ended(job)
    assert "stopped by user 'guest'" in done["progress"]["stopped"]
    here, there = all_there(local, queue, target, bodies, twice=0)
    assert len(there) == done["progress"]["redriven"] > 0 and here
    if kind == "classic":
        assert here == bodies[len(there):]
    assert redrives.stop(job)["state"] == "ended"
    eventually(lambda: f"redrive {job['id']} is to be stopped, asked for by user 'guest'" in broker.log(), bool)


def test_so_many_at_a_time(local, jobs):
    target = local.queue()
    queues = [local.queue() for _ in range(5)]
    for queue in queues:
        for _ in range(100):
            local.channel.basic_publish("", queue, b"m")
        eventually(lambda: depth(local, queue), lambda n: n == 100)
    begun = [(jobs(queue), jobs(queue).begin(to_queue=target, rate=1)) for queue in queues[:4]]
    assert "as many redrives" in jobs(queues[4]).begin(429, to_queue=target)
    assert jobs(queues[4]).list() == []
    for redrives, job in begun:
        redrives.stop(job)
        redrives.ended(job)
    last = jobs(queues[4])
    assert last.ended(last.begin(to_queue=target))["progress"]["redriven"] == 100


@pytest.mark.parametrize("body, status, wanted", [
    ({"to_queue": "none"}, 400, "no queue"), ({"to_queue": "parked q"}, 400, "come back"),
    ({"dry_run": True}, 400, "unknown"), ({"limit": 0}, 400, "limit"), ({"rate": -1}, 400, "rate")])
def test_what_cannot_be_is_refused_and_not_remembered(local, jobs, body, status, wanted):
    _, queue = topology(local)
    assert wanted in jobs(queue).begin(status, **body)
    assert jobs(queue).list() == []


def test_what_is_not_there_is_not_found(local, jobs):
    queue = local.queue()
    for method, template, body in (("GET", REDRIVE, None), ("POST", STOP, {})):
        assert jobs(queue).call(method, template, id="none", body=body)[0] == 404
    assert jobs("none").begin(404)


# ------------------------------------------------------------------------------- permissions

def test_who_may_what(as_user, vhost, local, jobs):  # noqa: F811
    queue, target, _ = filled(local, 1000)
    own = jobs(queue)
    stranger = as_user("management")
    assert Jobs(stranger, vhost, queue).call("GET", REDRIVES)[0] == 403
    assert Jobs(stranger, vhost, queue).call("POST", REDRIVES, body={})[0] == 403
    reader = as_user("management", read=".*")
    theirs = Jobs(reader, vhost, queue)
    assert "no permission to publish" in theirs.begin(403, to_queue=target)
    job = own.begin(to_queue=target, rate=RATE)
    assert theirs.get(job)["id"] == job["id"]
    assert "who began it" in theirs.stop(job, 403)["reason"]
    for user, seen in ((stranger, False), (reader, True)):
        listed = openapi.call(user, "GET", EVERYWHERE)[1]["redrives"]
        assert (job["id"] in [one["id"] for one in listed]) == seen
    assert own.get(job)["state"] == "running"
    assert Jobs(as_user("administrator", read=".*"), vhost, queue).stop(job)["state"] == "stopping"
    own.ended(job)


def test_it_has_the_permissions_of_who_began_it(as_user, vhost, local):  # noqa: F811
    work, queue = topology(local)
    park(local, work, queue, ["a", "b"])
    local.exchange("fanout", name="target")
    local.queue(("target", ""), name="behind")
    theirs = Jobs(as_user("management", read=".*", write="^target$"), vhost, queue)
    assert counts(theirs.ended(theirs.begin())["progress"]) == {"total": 2, "examined": 2, "refused": 2}
    done = theirs.ended(theirs.begin(to_exchange="target", routing_key="k"))
    assert done["progress"]["redriven"] == 2
    assert depth(local, "behind") == 2


# -------------------------------------------------------------------------------------- faults

@pytest.mark.parametrize("victim", ["redrive", "jobs"])
def test_a_process_is_killed_in_the_middle(broker, local, jobs, kind, victim):  # noqa: F811
    """Its own, or the one that it ends with: what was not moved is in the queue again, and others can begin."""
    queue, target, bodies = filled(local, 1000, kind)
    redrives = jobs(queue)
    job = redrives.begin(to_queue=target, rate=RATE)
    redrives.moving(job)
    if victim == "redrive":
        evaluate(broker, f"[exit(P, kill) || P <- maps:keys(element(3, sys:get_state({JOBS})))].")
        assert "killed" in redrives.ended(job)["reason"]
    else:
        before = evaluate(broker, f"whereis({JOBS}).")
        evaluate(broker, f"exit(whereis({JOBS}), kill).")
        eventually(lambda: evaluate(broker, f"whereis({JOBS})."), lambda now: now not in (before, "undefined"))
        assert redrives.list() == []
    eventually(lambda: broker.rows("list_consumers", "--vhost", local.vhost, "queue_name"), lambda rows: not rows)
    eventually(lambda: depth(local, queue) + depth(local, target), lambda n: n >= len(bodies))
    here, there = all_there(local, queue, target, bodies, twice=WINDOW if victim == "redrive" else 0)
    assert here and there
    other, target, _ = filled(local, 10, kind)
    assert jobs(other).ended(jobs(other).begin(to_queue=target))["progress"]["redriven"] == 10


def test_the_broker_is_killed_in_the_middle(brokers):
    broker = brokers("redrive-job", enable=(PLUGIN, "rabbitmq_management"))
    client, management = Client(broker), Management(broker)
    kinds = {kind: filled(client, 800, kind) for kind in ("classic", "quorum")}
    for queue, target, _ in kinds.values():
        redrives = Jobs(management, "/", queue)
        redrives.moving(redrives.begin(to_queue=target, rate=RATE))
    # Ra writes down after a while only that it has the queue: 4.0 would begin it anew, empty.
    evaluate(broker, "[dets:sync(Table) || Table <- dets:all()].")
    kill_9(broker)
    broker.start()
    client, management = Client(broker), Management(broker)
    for kind, (queue, target, bodies) in kinds.items():
        assert Jobs(management, "/", queue).list() == []
        # A classic queue that is killed has again what it had not written yet of acknowledgements, too.
        here, there = all_there(client, queue, target, bodies,
                                twice=len(bodies) if kind == "classic" else WINDOW)
        assert here and there
    client.connection.close()
    broker.end()
