%% SPDX-License-Identifier: MPL-2.0

%% Whether messages go through this node's log, whoever leads: what operators have done leaves it to them then
%% (rabbit_delay_background).
-module(rabbit_delay_traffic).

-export([create/0, passes/0, is_there/0]).

%% For so long after some have passed, others are taken to follow.
-define(FOLLOWS_MS, 1000).
%% When they last did, ms, monotonic.
-define(LAST, {?MODULE, last}).

%% Before there is an exchange.
-spec create() -> ok.
create() ->
    case persistent_term:get(?LAST, none) of
        none ->
            Last = atomics:new(1, [{signed, true}]),
            ok = atomics:put(Last, 1, now_ms() - ?FOLLOWS_MS),
            persistent_term:put(?LAST, Last);
        _ ->
            ok
    end.

%% Messages that were published or released are applied here.
-spec passes() -> ok.
passes() ->
    case persistent_term:get(?LAST, none) of
        none -> ok;
        Last -> atomics:put(Last, 1, now_ms())
    end.

-spec is_there() -> boolean().
is_there() ->
    case persistent_term:get(?LAST, none) of
        none -> false;
        Last -> now_ms() - atomics:get(Last, 1) < ?FOLLOWS_MS
    end.

now_ms() -> erlang:monotonic_time(millisecond).
