# SPDX-License-Identifier: MPL-2.0
"""How long rabbitmqctl check_dead_lettering takes over a large definitions file, and its memory."""

import json
import os
import random
import resource
import subprocess
import time

import plots
from node import MEGABYTE
from session import shown, spread, verdict

TITLE = "The doctor on a definitions file"
ABOUT = ("`rabbitmqctl check_dead_lettering --definitions FILE` with {queues:,} queues, a third of "
         "them with a TTL and half with a dead-letter exchange, {bindings:,} bindings to "
         "exchanges of each type, half of the keys with wildcards, and 20 policies. From the start "
         "of the command to its end, and its greatest RSS; *empty*: the same of a file without "
         "queues, which is what the tool itself takes.")
EXCHANGES = 60


def definitions(queues, bindings, seed):
    rng = random.Random(seed)
    kinds = ["direct", "topic", "fanout", "headers"]

    def key(number):
        return rng.choice([f"region{number % 40}.order{number}", f"region{number % 40}.order{number}",
                           f"region{number % 40}.*.order{number % 500}", f"*.order{number % 900}.#"])

    def arguments(number):
        found = {}
        if number % 2:
            found["x-dead-letter-exchange"] = f"x{number % EXCHANGES}"
            if number % 4 == 1:
                found["x-dead-letter-routing-key"] = f"region{number % 40}.order{number}"
        if number % 3 == 0:
            found["x-message-ttl"] = 1000 * (1 + number % 7)
        if number % 5 == 0:
            found["x-queue-type"] = "quorum"
        return found

    common = {"vhost": "/", "durable": True}
    return {
        "rabbitmq_version": "3.10.8", "vhosts": [{"name": "/"}],
        "queues": [{"name": f"queue{n}", **common, "arguments": arguments(n)}
                   for n in range(queues)],
        "exchanges": [{"name": f"x{n}", **common, "type": kinds[n % 4], "arguments": {}}
                      for n in range(EXCHANGES)],
        "bindings": [{"source": f"x{rng.randrange(EXCHANGES)}", "vhost": "/",
                      "destination": f"queue{n % max(1, queues)}", "destination_type": "queue",
                      "routing_key": key(n), "arguments": {}} for n in range(bindings)],
        "policies": [{"vhost": "/", "name": f"p{n}", "pattern": f"^queue{n}", "priority": n,
                      "apply-to": "queues", "definition": {"max-length": 1000000 + n}}
                     for n in range(20)],
    }


def one_run(node, queues, bindings, seed):
    path = node.path("definitions.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(definitions(queues, bindings, seed), file)
    began = time.monotonic()
    # As a child of a process of its own, whose children's memory is then this command's alone.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        done = subprocess.run(node.tool_argv("rabbitmqctl", "check_dead_lettering", "--definitions",
                                             path, "--formatter", "json", "--fail-on", "never"),
                              env=node.environment(), capture_output=True, text=True, check=False)
        counts = json.loads(done.stdout)["counts"] if done.returncode == 0 else {}
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        os.write(writer, json.dumps({"counts": counts, "peak_kb": peak,
                                     "seconds": time.monotonic() - began}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        result = json.loads(told.read())
    os.waitpid(child, 0)
    if not result["counts"]:
        raise RuntimeError("check_dead_lettering failed")
    return {"queues": queues, "bindings": bindings, "file_mb": os.path.getsize(path) / MEGABYTE,
            "seconds": result["seconds"], "peak_mb": result["peak_kb"] / 1024,
            "findings": sum(result["counts"].values())}


def run(session):
    queues, bindings = session.scaled(10_000), session.scaled(50_000)
    runs = []
    with session.node() as node:
        node.settle()
        for number in range(session.rounds(5)):
            for size in ((0, 0), (queues, bindings)):
                result = one_run(node, *size, session.seed + number)
                runs.append({"round": number, **result})
                session.say(f"doctor {size[0]} queues: {result['seconds']:.2f} s, "
                            f"{result['peak_mb']:.0f} MB, {result['findings']} findings")
    return {"queues": queues, "bindings": bindings, "runs": runs}


def of(result, empty, key):
    return [r[key] for r in result["runs"] if (r["queues"] == 0) == empty]


def report(result):
    lines = ["| file | size, MB | s | peak RSS, MB | findings |", "| --- " * 5 + "|"]
    for name, empty in (("empty", True), ("full", False)):
        lines.append("| " + " | ".join(
            [name, shown(of(result, empty, "file_mb"), "{:.1f}"),
             shown(of(result, empty, "seconds"), "{:.2f}"), shown(of(result, empty, "peak_mb")),
             shown(of(result, empty, "findings"))]) + " |")
    return lines + ["", verdict("from start to end", spread(of(result, False, "seconds"))["median"],
                                5, unit=" s")]


def plot(result, path):
    plots.bars(path("doctor"), ["empty", "full"], [
        (title, {"ours": [of(result, empty, key) for empty in (True, False)]})
        for title, key in (("s from start to end", "seconds"), ("peak RSS, MB", "peak_mb"))])
    return ["doctor"]
