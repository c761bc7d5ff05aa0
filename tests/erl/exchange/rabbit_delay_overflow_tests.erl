%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_overflow_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(O, rabbit_delay_overflow).

excess_is_of_what_is_in_nobodys_hands_test_() ->
    Stat = #{pending => 10, pending_bytes => 1000},
    [?_assertEqual(Excess, ?O:excess(Limits, S, InHand))
     || {Limits, S, InHand, Excess} <-
            [{{infinity, infinity}, Stat, {0, 0}, {0, 0}},
             {{7, infinity}, Stat, {0, 0}, {3, 0}},
             {{7, infinity}, Stat, {3, 900}, {0, 0}},
             {{7, 400}, Stat, {2, 200}, {1, 400}},
             {{0, 0}, Stat, {10, 1000}, {0, 0}},
             {{0, 0}, {error, eclosed}, {0, 0}, {0, 0}}]].

%% What a store would tell: so many before a place, the last one first.
records(All) ->
    Sorted = lists:reverse(lists:sort(All)),
    fun (Before, Most) ->
            {ok, lists:sublist([R || {Due, Id, _} = R <- Sorted, {Due, Id} < Before], Most)}
    end.

all_free(_) -> true.

as_many_as_are_beyond_the_last_one_first_test() ->
    Records = records([{Due, 100 - Due, 10} || Due <- lists:seq(1, 99)]),
    ?assertEqual({[{1, 99}, {2, 98}, {3, 97}], {0, 0}},
                 ?O:last_due({3, 0}, 256, fun all_free/1, Records)),
    ?assertEqual({[{1, 99}, {2, 98}, {3, 97}], {0, 0}},
                 ?O:last_due({1, 25}, 256, fun all_free/1, Records)),
    ?assertEqual({[{2, 98}, {4, 96}], {0, 0}},
                 ?O:last_due({2, 0}, 256, fun (Id) -> Id rem 2 =:= 0 end, Records)),
    ?assertEqual({[{1, 99}], {2, 20}}, ?O:last_due({3, 30}, 1, fun all_free/1, Records)),
    ?assertEqual({[], {3, 30}},
                 ?O:last_due({3, 30}, 9, fun all_free/1, fun (_, _) -> {error, eclosed} end)).

%% However many are in flight, only so many are looked at: what is left is said.
only_so_many_are_looked_at_test() ->
    All = [{Due, Due, 1} || Due <- lists:seq(1, 10000)],
    Looked = counters:new(1, []),
    Tell = records(All),
    {[], {5, 0}} = ?O:last_due({5, 0}, 10, fun (Id) -> Id < 100 end,
                               fun (Before, Most) ->
                                       {ok, Some} = Tell(Before, Most),
                                       counters:add(Looked, 1, length(Some)),
                                       {ok, Some}
                               end),
    ?assert(counters:get(Looked, 1) >= 4096),
    ?assert(counters:get(Looked, 1) < 2 * 4096).

%% Among few enough messages that all are looked at, the choice is that of a plain walk.
as_a_walk_would_test_() ->
    {timeout, 1200,
     fun () ->
             ?assert(proper:quickcheck(
                       ?FORALL({All, Excess, Room, Odd},
                               {list({range(1, 50), range(1, 1000), range(0, 100)}),
                                {range(0, 40), range(0, 2000)}, range(0, 40), boolean()},
                               same(lists:ukeysort(2, All), Excess, Room, Odd)),
                       [{numtests, 1000}, {to_file, user}]))
     end}.

same(All, Excess, Room, Odd) ->
    IsFree = fun (Id) -> not Odd orelse Id rem 2 =:= 1 end,
    Free = [R || {_, Id, _} = R <- lists:reverse(lists:sort(All)), IsFree(Id)],
    walk(Free, Excess, Room, []) =:= ?O:last_due(Excess, Room, IsFree, records(All)).

walk([{Due, Id, Size} | Rest], {M, B}, Room, Acc) when M + B > 0, Room > 0 ->
    walk(Rest, {max(0, M - 1), max(0, B - Size)}, Room - 1, [{Id, Due} | Acc]);
walk(_, Excess, _, Acc) ->
    {lists:reverse(Acc), Excess}.
