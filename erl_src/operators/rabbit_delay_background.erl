%% SPDX-License-Identifier: MPL-2.0

%% Has long work of operators done behind what messages wait for: walks over all that is pending, exports.
%%
%% In the process that asks. With a low priority its turn comes once while each of the others has had eight, so it is
%% slower on a busy node, and never stands still. But a process that runs goes on until its turn is over, which may be
%% a millisecond and more: so it ends its turns itself (give_way/1), and looks at the clock as often.
-module(rabbit_delay_background).

-export([run/1, give_way/1, by_turns/1]).

%% Steps, of a microsecond or so each, of one turn.
-define(STEPS, 128).
%% The longest rest: what took longer has waited for others itself.
-define(REST_MS, 20).

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
    case rabbit_delay_traffic:is_there() of
        true -> receive after min(now_ms() - Began, ?REST_MS) -> Result end;
        false -> Result
    end.

now_ms() -> erlang:monotonic_time(millisecond).
