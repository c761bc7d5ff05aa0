# SPDX-License-Identifier: MPL-2.0
"""What looking at a million pending messages costs, and whom it keeps waiting."""

import re
import subprocess

import loadgen
import peers
import plots
from session import disk_needed, shown, spread, verdict

TITLE = "Looking at what is pending"
ABOUT = ("{count:,} messages of 100 B, due in 1 to 2 hours. *list_delayed_exchanges*, *first page* "
         "(100 messages with their headers) and *all pages* are measured in the broker, without the "
         "command-line tool's start. *examined*: counted by `--dry-run`, on the due time alone or "
         "on the routing key, for which every message is read. *publish*: {published:,} "
         "messages on one connection, alone, and while `rabbitmqctl list_delayed_messages` lists "
         "all that is pending, again and again. *memory*: the most that the VM held more than "
         "before, while all pages were read.")
HOUR_MS = 3600 * 1000
PAGE = 8192

EXCHANGE = f'rabbit_misc:r(<<"/">>, exchange, <<"{peers.OURS.exchange}">>)'


def selected(words=""):
    return f"element(2, rabbit_delay_filter:parse(#{{{words}}}, 0))"


def evaluated(node, expression):
    return node.eval(expression, timeout=600)


def milliseconds(node, expression):
    return int(evaluated(node, f"element(1, timer:tc(fun() -> {expression} end)).")) / 1000


def all_pages(node):
    """ms for all pages, how many messages they held, and by how much memory grew meanwhile, bytes."""
    answer = evaluated(node, f"""
        Go = fun(Go, Cursor, N, Most) ->
            {{ok, Items, Next}} = rabbit_delay_pending:list({EXCHANGE},
                {selected()}, maps:merge(Cursor, #{{limit => {PAGE}}})),
            Now = max(Most, erlang:memory(total)),
            case Next of
                none -> {{N + length(Items), Now}};
                _ -> Go(Go, #{{cursor => Next}}, N + length(Items), Now)
            end
        end,
        garbage_collect(),
        Before = erlang:memory(total),
        {{Us, {{N, Most}}}} = timer:tc(fun() -> Go(Go, #{{}}, 0, 0) end),
        {{Us, N, Most - Before}}.""")
    us, listed, grown = map(int, re.findall(r"-?\d+", answer))
    return us / 1000, listed, max(grown, 0)


def examined_rate(node, count, words):
    """Messages a second that a dry run looks at."""
    answer = evaluated(node, f"""
        Go = fun(Go, Request, N) ->
            {{ok, #{{examined := E, cursor := Next}}}} = rabbit_delay_pending:change_matching(
                {EXCHANGE}, cancel, {selected(words)}, Request),
            case Next of
                none -> N + E;
                _ -> Go(Go, Request#{{cursor => Next}}, N + E)
            end
        end,
        timer:tc(fun() -> Go(Go, #{{by => <<"bench">>, dry_run => true}}, 0) end).""")
    us, examined = map(int, re.findall(r"\d+", answer))
    if examined < count:
        raise loadgen.LoadFailed(f"{examined:,} of {count:,} messages were examined")
    return examined / us * 1e6


class Listing:
    """Lists all, again and again, with the command-line tool."""

    def __init__(self, node):
        tool = " ".join(node.inside(f"{node.home}/sbin/rabbitmqctl"))
        self.process = subprocess.Popen(
            ["sh", "-c", f"while {tool} -q list_delayed_messages {peers.OURS.exchange} id due; do "
                         "echo end; done"],
            env=node.environment(), cwd=node.root, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        self.process.stdout.readline()

    def ended(self):
        self.process.terminate()
        self.process.stdout.close()
        self.process.wait()


def publish_rate(session, node, count, listing):
    beside = Listing(node) if listing else None
    done = loadgen.publish(node, run=session.run_id(), count=count, size=100, seed=session.seed,
                           delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}", timeout=600,
                           **peers.OURS.publish_options())
    if beside:
        beside.ended()
    return done["rate"]


def run(session):
    count, published = session.scaled(1_000_000), session.scaled(200_000)
    disk_needed(session.root, 4 / session.scale)
    runs = []
    with session.node() as node:
        peers.OURS.declare(node)
        loadgen.publish(node, run=session.run_id(), count=count, size=100, connections=4,
                        seed=session.seed, delay=f"uniform:{HOUR_MS}:{2 * HOUR_MS}", timeout=1800,
                        **peers.OURS.publish_options())
        for number in range(session.rounds(5)):
            node.settle()
            listed_ms, listed, grown = all_pages(node)
            if listed < count:
                raise loadgen.LoadFailed(f"{listed:,} of {count:,} messages were listed")
            result = {
                "round": number, "all_ms": listed_ms, "grown_mb": grown / 1e6,
                "exchanges_ms": milliseconds(
                    node, 'rabbit_delay_exchange:list(<<"/">>, [name, messages_delayed, next_due, '
                          'overdue, paused])'),
                "page_ms": milliseconds(
                    node, f"{{ok, _, _}} = rabbit_delay_pending:list({EXCHANGE}, {selected()}, "
                          "#{limit => 100, content => true})"),
                "due_rate": examined_rate(node, count, "due_from => 1"),
                "key_rate": examined_rate(node, count, 'routing_key => <<"none">>'),
                "publish_alone": publish_rate(session, node, published, False)}
            node.settle()
            result["publish_beside"] = publish_rate(session, node, published, True)
            runs.append(result)
            session.say(f"operators: first page {result['page_ms']:.0f} ms, all {listed_ms:,.0f} ms, "
                        f"{result['due_rate']:,.0f} and {result['key_rate']:,.0f} examined a second")
    return {"count": count, "published": published, "runs": runs}


def of(result, key):
    return [r[key] for r in result["runs"]]


def report(result):
    beside = [r["publish_beside"] / r["publish_alone"] for r in result["runs"]]
    lines = ["| what | |", "| --- | --- |"]
    for label, values, form in (
            ("list_delayed_exchanges, ms", of(result, "exchanges_ms"), "{:,.1f}"),
            ("first page, ms", of(result, "page_ms"), "{:,.1f}"),
            ("all pages, ms", of(result, "all_ms"), "{:,.0f}"),
            ("memory while reading all pages, MB", of(result, "grown_mb"), "{:,.1f}"),
            ("examined a second, on due times", of(result, "due_rate"), "{:,.0f}"),
            ("examined a second, on routing keys", of(result, "key_rate"), "{:,.0f}"),
            ("publish alone, 1/s", of(result, "publish_alone"), "{:,.0f}"),
            ("publish beside a listing, 1/s", of(result, "publish_beside"), "{:,.0f}"),
            ("of the rate alone", beside, "{:.2f}")):
        lines.append(f"| {label} | {shown(values, form)} |")

    def median(values):
        return spread(values)["median"]

    return lines + [
        "", verdict("list_delayed_exchanges", median(of(result, "exchanges_ms")), 100, unit=" ms"),
        verdict("first page", median(of(result, "page_ms")), 100, unit=" ms"),
        verdict("examined a second, on due times", median(of(result, "due_rate")), 200_000, False),
        verdict("examined a second, on routing keys", median(of(result, "key_rate")), 200_000,
                False),
        verdict("publishing beside a listing, of its rate", median(beside), 0.9, False)]


def plot(result, path):
    plots.bars(path("operators"), ["due time", "routing key"], [
        ("messages examined a second", {"ours": [of(result, "due_rate"), of(result, "key_rate")]})])
    return ["operators"]
