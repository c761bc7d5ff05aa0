%% SPDX-License-Identifier: MPL-2.0

%% How the queues behave that a dispatcher publishes to, looked at a few times a second as long as
%% there are any: which are slow, which never answer, which are not used any more; and what the log and
%% the figures are told of it. In the dispatcher's process, which also owns the queues' publishers.
%%
%% A publisher is ended when its queue is given up or has not been used for a while, so there are only
%% as many processes as queues that are sent something.
-module(rabbit_delay_watch).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").
-include("rabbit_delay_dispatcher.hrl").

-export([tick/1, waiting_known/1, end_publisher/1]).

%% What a queue that does not send again by itself has not confirmed in this time is sent again.
-define(SETTLE_MS, 180000).
%% After this time without use a queue's publisher ends, or at once if there are so many.
-define(UNUSED_MS, 30000).
-define(MANY_PUBLISHERS, 1000).
-define(REPORT_MS, 60000).

-spec tick(#state{}) -> #state{}.
tick(State0) ->
    Now = erlang:monotonic_time(millisecond),
    State = waiting_known(report(Now, end_unused(Now, silent(Now, within_bounds(
                                                                    slow(Now, State0)))))),
    case rabbit_delay_targets:names(State#state.targets) of
        [] -> State;
        _ -> rabbit_delay_agenda:pump_soon(rabbit_delay_agenda:tick_soon(State))
    end.

slow(Now, #state{targets = Targets0, exchange = XName, warned = Warned0} = State) ->
    {Slow, Targets} = rabbit_delay_targets:tick(Now, Targets0),
    Warned = lists:foldl(
               fun (QName, Acc) ->
                       rabbit_delay_warnings:warn(
                         {slow, "~s has not confirmed delayed messages of ~s for a while",
                          [rabbit_delay_text:rs(QName), rabbit_delay_text:rs(XName)]}, Now, Acc)
               end, Warned0, Slow),
    State#state{targets = Targets, warned = Warned}.

%% So many slow queues that together they hold too much: what they have is counted as lost, and
%% waits in the store.
within_bounds(#state{targets = Targets} = State) ->
    case rabbit_delay_targets:beyond(Targets) of
        none -> State;
        QName -> within_bounds(give_up(QName, too_many_slow_queues, State))
    end.

%% A client that sends again by itself never tires; all others' messages may be lost.
silent(Now, #state{targets = Targets} = State) ->
    lists:foldl(fun (QName, S) ->
                        case rabbit_delay_broker:sends_again(QName) of
                            true -> S;
                            false -> give_up(QName, no_confirm, S)
                        end
                end, State, rabbit_delay_targets:silent(Now, ?SETTLE_MS, Targets)).

give_up(QName, Why, #state{targets = Targets, publishers = Publishers} = State) ->
    case rabbit_delay_targets:publisher(QName, Targets) of
        undefined ->
            State;
        Pid ->
            ok = end_publisher(Pid),
            rabbit_delay_outcomes:given_up(
              QName, Why, State#state{publishers = maps:remove(Pid, Publishers)})
    end.

end_unused(Now, #state{targets = Targets0, publishers = Publishers} = State) ->
    Before = case map_size(Publishers) > ?MANY_PUBLISHERS of
                 true -> Now;
                 false -> Now - ?UNUSED_MS
             end,
    {Unused, Targets} = rabbit_delay_targets:unused(Before, Targets0),
    lists:foreach(fun end_publisher/1, Unused),
    State#state{targets = Targets, publishers = maps:without(Unused, Publishers)}.

-spec end_publisher(pid()) -> ok.
end_publisher(Pid) ->
    unlink(Pid),
    exit(Pid, kill),
    ok.

%% As a line of the log now and then for as long as it lasts.
report(Now, #state{reported = At} = State) when Now - At < ?REPORT_MS ->
    State;
report(Now, #state{targets = Targets, exchange = XName} = State) ->
    case {rabbit_delay_targets:stuck(Targets), rabbit_delay_targets:waiting(Targets)} of
        {[_ | _] = Stuck, Waiting} when Waiting > 0 ->
            ?LOG_WARNING("~s of ~s due, waiting for ~s: ~ts",
                         [rabbit_delay_text:count(Waiting, "delayed message"), rabbit_delay_text:rs(XName),
                          rabbit_delay_text:count(length(Stuck), "queue"),
                          lists:join(", ", [shown(Name) || Name <- lists:sublist(Stuck, 5)])],
                         ?LOG_DOMAIN);
        _ ->
            ok
    end,
    State#state{reported = Now}.

shown(#resource{} = QName) -> rabbit_delay_text:rs(QName);
shown(parking) -> "a place for dead letters that are not retried";
shown(failing) -> "what they cannot be routed without".

%% For whoever asks for figures.
-spec waiting_known(#state{}) -> #state{}.
waiting_known(#state{targets = Targets, counters = Counters, in_flight = Book} = State) ->
    {InFlight, _} = rabbit_delay_in_flight:held(Book),
    ok = rabbit_delay_counters:waiting(Counters, rabbit_delay_targets:waiting(Targets),
                                       length(rabbit_delay_targets:stuck(Targets)), InFlight),
    State.
