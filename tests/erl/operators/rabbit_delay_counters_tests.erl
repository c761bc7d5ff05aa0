%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_counters_tests).

-include_lib("eunit/include/eunit.hrl").

-define(C, rabbit_delay_counters).

names() ->
    [published, released, unroutable, cancelled, replaced, deduplicated, rejected, retried, expired,
     overflowed, dead_lettered, returned, parked, corrupt].

each_count_is_its_own_test() ->
    Ref = ?C:new(),
    [ok = ?C:add(Ref, Name, N)
     || {N, Name} <- lists:zip(lists:seq(1, length(names())), names())],
    ok = ?C:add(Ref, published, 0),
    Values = ?C:read(Ref),
    ?assertEqual(lists:seq(1, length(names())), [maps:get(Name, Values) || Name <- names()]),
    ?assertEqual(lists:seq(1, length(names())), [?C:get(Ref, Name) || Name <- names()]),
    #{delay := {Delays, 0}, lateness := {Lateness, 0}, checkpoint := {0, 0}} = Values,
    ?assertEqual([0], lists:usort([N || {_, N} <- Delays ++ Lateness])).

histogram_test() ->
    Ref = ?C:new(),
    [ok = ?C:lateness(Ref, Ms) || Ms <- [-5, 0, 1, 2, 3, 5, 3600000, 3600001]],
    [ok = ?C:delay(Ref, Ms) || Ms <- [1, 100, 101, 31536000000, 31536000001]],
    #{lateness := {Lateness, LateSum}, delay := {Delays, DelaySum}} = ?C:read(Ref),
    ?assertEqual([{1, 3}, {2, 1}, {5, 2}, {3600000, 1}, {infinity, 1}],
                 [B || {_, N} = B <- Lateness, N > 0]),
    ?assertEqual(0 + 0 + 1 + 2 + 3 + 5 + 3600000 + 3600001, LateSum),
    ?assertEqual([{100, 2}, {1000, 1}, {31536000000, 1}, {infinity, 1}],
                 [B || {_, N} = B <- Delays, N > 0]),
    ?assertEqual(1 + 100 + 101 + 31536000000 + 31536000001, DelaySum).

sum_and_move_test() ->
    [A, B] = Refs = [?C:new(), ?C:new()],
    [begin
         ok = ?C:add(Ref, released, 10),
         ok = ?C:lateness(Ref, 7),
         ok = ?C:delay(Ref, 5000)
     end || Ref <- Refs],
    ok = ?C:checkpoint(A, 2000, 5),
    ok = ?C:checkpoint(B, 1000, 3),
    Sum = ?C:sum([?C:read(Ref) || Ref <- Refs]),
    ?assertMatch(#{released := 20, lateness := {_, 14}, delay := {_, 10000},
                   checkpoint := {1000, 5}}, Sum),
    ?assertEqual(?C:read(?C:new()), ?C:sum([])),
    ok = ?C:move(A, B),
    ?assertEqual(Sum#{checkpoint := {1000, 3}}, ?C:read(B)).

overdue_test_() ->
    Stat = #{taken => 3, next_due => 1000, histogram => [4, 8, 16 | lists:duplicate(45, 0)]},
    [?_assertEqual(Expected, ?C:overdue(S, Now))
     || {S, Now, Expected} <- [{Stat, 999, 3},
                               {Stat, 1000, 3 + 1},
                               {Stat, 1002, 3 + 4},
                               {Stat, 1003, 3 + 4 + 4},
                               {Stat, 1008, 3 + 4 + 8 + 16},
                               {Stat, 9999999, 3 + 4 + 8 + 16},
                               {Stat#{next_due := infinity}, 5000, 3}]].
