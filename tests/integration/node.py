# SPDX-License-Identifier: MPL-2.0
"""Evaluates Erlang expressions inside a broker, in milliseconds: rabbitmqctl takes a second or more
to start."""

import subprocess
import time

from management import WITHIN, eventually

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def evaluate(broker, expression):
    """The printed value of an expression that ends with a full stop."""
    deadline = time.monotonic() + WITHIN
    while True:
        done = subprocess.run(
            broker.erl_call("-timeout", str(WITHIN), "-e"),
            input=expression + "\n", capture_output=True, text=True, check=False,
            timeout=3 * WITHIN, env=broker.environment())
        # A busy node may not have answered in time; then nothing was evaluated.
        if "failed to connect to node" not in done.stdout + done.stderr or not broker.running() \
                or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert done.returncode == 0 and done.stdout.startswith("{ok, "), (
        f"{expression}\n{done.stdout}{done.stderr}")
    return done.stdout[len("{ok, "):].rstrip()[:-1]


def set_clock(broker, offset_ms):
    """Steps the clock by which messages are released to so far from the true time. What a broker
    holds can so be made due at a moment of the test's choosing; x-delay counts from the true time.
    Ends with a restart."""
    evaluate(broker, f"application:set_env(rabbitmq_delay_wheel, clock_offset_ms, {offset_ms}).")


def clock_ahead(broker, offset_ms):
    """The same from the next start on, before anything is released; for as long as the broker is."""
    arguments = "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"
    broker.extra_env[arguments] = (broker.environment()[arguments]
                                   + f" -rabbitmq_delay_wheel clock_offset_ms {offset_ms}")


def sync_metadata(broker):
    """With Mnesia a kill can lose an exchange that was declared just before, whatever its type."""
    evaluate(broker, "catch mnesia:sync_log().")


def kill_9(broker):
    """Kills a broker whose metadata are on the disk."""
    sync_metadata(broker)
    broker.kill9()


def has_enabled(broker, plugin):
    return evaluate(broker, f"lists:member({plugin}, rabbit_plugins:active()).") == "true"


def queue_process(queue):
    """An expression for the process of a queue in the default vhost, its leader if it is a quorum
    queue."""
    return (f'(fun () -> {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, '
            f'<<"{queue}">>)), case amqqueue:get_pid(Q) of {{N, _}} -> whereis(N); P -> P end '
            f'end)()')


def kill_queue(broker, queue):
    """Kills the process of a queue, and waits until another answers in its place."""
    before = evaluate(broker, f"pid_to_list({queue_process(queue)}).")
    evaluate(broker, f"exit(list_to_pid({before}), kill).")
    answers = f"""case catch begin P = {queue_process(queue)}, {{pid_to_list(P), P}} end of
        {{{before}, _}} -> no;
        {{_, Pid}} -> case catch begin {{registered_name, N}} = process_info(Pid, registered_name),
                                 ra:members({{N, node()}}, 1000) end of
                          {{timeout, _}} -> no;
                          {{error, _}} -> no;
                          _ -> is_process_alive(Pid)
                      end;
        _ -> no
    end.""".replace("\n", " ")
    eventually(lambda: evaluate(broker, answers), lambda answer: answer == "true", within=60)


def halt_beyond(broker, resource, messages):
    """Has an exchange's delay queue stand still once it holds more messages than that."""
    evaluate(broker, f"""spawn(fun () -> (fun Watch() ->
        case rabbit_delay_registry:pending({resource}) > {messages} of
            true -> erlang:suspend_process(rabbit_delay_registry:queue({resource})),
                    timer:sleep(infinity);
            false -> erlang:yield(), Watch()
        end end)() end).""".replace("\n", " "))
