%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_rate_tests).

-include_lib("eunit/include/eunit.hrl").

-define(R, rabbit_delay_rate).

no_limit_is_what_is_asked_for_test() ->
    R = ?R:new(-5),
    ?assertEqual({256, R}, ?R:allowed(1000, 256, R)),
    ?assertEqual(R, ?R:spend(1000000, R)).

%% In every second, whenever it is looked, never more than the rate and what may come at once.
rate_is_kept_test_() ->
    [{lists:flatten(io_lib:format("~b a second, looked at every ~b ms", [PerSecond, Every])),
      fun () ->
              Released = released(?R:set(PerSecond, ?R:new(0)), fun (_) -> Every end, 0, 20000, []),
              Most = PerSecond + max(1, PerSecond div 10),
              [?assert(lists:sum([N || {T, N} <- Released, T > At, T =< At + 1000]) =< Most)
               || At <- lists:seq(0, 20000, 250)]
      end}
     || PerSecond <- [1, 3, 7, 100, 999, 100000], Every <- [1, 10, 33, 100, 700]].

%% All of it, if it is looked when it says: the rest of a millisecond may be lost in each 100.
rate_is_used_test_() ->
    [{integer_to_list(PerSecond),
      fun () ->
              Released = released(?R:set(PerSecond, ?R:new(0)), fun ?R:wait_ms/1, 0, 60000, []),
              All = lists:sum([N || {_, N} <- Released]),
              ?assert(All >= 0.99 * 60 * PerSecond - 1),
              ?assert(All =< 60 * PerSecond + max(1, PerSecond div 10))
      end}
     || PerSecond <- [1, 3, 7, 10, 11, 100, 999, 100000]].

%% As the dispatcher does it: all that is allowed is released.
released(_, _, Now, Until, Acc) when Now > Until ->
    Acc;
released(R0, Pause, Now, Until, Acc) ->
    {N, R1} = ?R:allowed(Now, 1, R0),
    R = ?R:spend(N, R1),
    released(R, Pause, Now + max(1, Pause(R)), Until, [{Now, N} || N > 0] ++ Acc).

one_is_allowed_when_it_says_so_and_not_before_test_() ->
    [{integer_to_list(PerSecond),
      fun () ->
              {_, R1} = ?R:allowed(10000, 1, ?R:set(PerSecond, ?R:new(0))),
              {0, R2} = ?R:allowed(10000, 1, ?R:spend(max(1, PerSecond div 10), R1)),
              Wait = ?R:wait_ms(R2),
              ?assert(Wait > 0 andalso Wait =< 1000),
              ?assertMatch({0, _}, ?R:allowed(10000 + Wait - 1, 1, R2)),
              {N, _} = ?R:allowed(10000 + Wait, 1, R2),
              ?assert(N >= 1)
      end}
     || PerSecond <- [1, 2, 3, 7, 10, 50, 100, 250, 1000]].

nothing_is_saved_up_and_a_new_rate_counts_from_now_test() ->
    R0 = ?R:set(1000, ?R:new(0)),
    {100, R1} = ?R:allowed(3600000, 1, R0),
    {100, R2} = ?R:allowed(7200000, 1, ?R:spend(0, R1)),
    {0, R3} = ?R:allowed(7200000, 1, ?R:spend(100, R2)),
    ?assertEqual(R3, ?R:set(1000, R3)),
    {1, _} = ?R:allowed(7200010, 1, ?R:set(100, R3)),
    {10, _} = ?R:allowed(7200010, 1, R3).
