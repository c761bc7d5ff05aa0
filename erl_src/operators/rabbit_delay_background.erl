%% SPDX-License-Identifier: MPL-2.0

%% Has long work of operators done behind what messages wait for: walks over all that is pending, exports.
%%
%% In the process that asks. With a low priority its turn comes once while each of the others has had eight, so it is
%% slower on a busy node, and never stands still. But a process that runs goes on until its turn is over, which may be
%% a millisecond and more: so it ends its turns itself (give_way/1), and looks at the clock as often.
-module(rabbit_delay_background).

-export([create/0, run/1, give_way/1, by_turns/1, messages_pass/0]).

%% Steps, of a microsecond or so each, of one turn.
-define(STEPS, 128).
%% The longest rest: what took longer has waited for others itself.
-define(REST_MS, 20).
%% For so long after messages have gone through the log others are taken to follow.
-define(PASSING_MS, 1000).
%% When they last did, ms, monotonic.
-define(LAST, {?MODULE, last}).

%% Before there is an exchange.
-spec create() -> ok.
create() ->
    case persistent_term:get(?LAST, none) of
        none ->
            Last = atomics:new(1, [{signed, true}]),
            ok = atomics:put(Last, 1, now_ms() - ?PASSING_MS),
            persistent_term:put(?LAST, Last);
        _ ->
            ok
    end.

-spec run(fun(() -> Result)) -> Result.
run(Fun) ->
    Before = process_flag(priority, low),
    try
        Fun()
    after
        process_flag(priority, Before)
    end.

%% At each step, with its number.
-spec give_way(non_neg_integer()) -> ok.
give_way(Step) when Step rem ?STEPS =:= 0 ->
    _ = erlang:yield(),
    ok;
give_way(_) ->
    ok.

%% What goes through the log, which all exchanges share, and to its disk: while messages go there, too, these are left to
%% them afterwards for as long as it took.
-spec by_turns(fun(() -> Result)) -> Result.
by_turns(Fun) ->
    Began = now_ms(),
    Result = Fun(),
    case do_pass() of
        true -> receive after min(now_ms() - Began, ?REST_MS) -> Result end;
        false -> Result
    end.

%% Messages that were published or released have gone through this node's log, whoever leads.
-spec messages_pass() -> ok.
messages_pass() ->
    case persistent_term:get(?LAST, none) of
        none -> ok;
        Last -> atomics:put(Last, 1, now_ms())
    end.

do_pass() ->
    case persistent_term:get(?LAST, none) of
        none -> false;
        Last -> now_ms() - atomics:get(Last, 1) < ?PASSING_MS
    end.

now_ms() -> erlang:monotonic_time(millisecond).
