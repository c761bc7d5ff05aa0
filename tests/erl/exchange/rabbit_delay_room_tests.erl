%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_room_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(R, rabbit_delay_room).

stat(Messages, Bytes) -> #{applied => 1, pending => Messages, pending_bytes => Bytes}.

who_drops_the_last_due_rejects_only_far_beyond_test_() ->
    [?_assertEqual(Expected, ?R:limits(Limits, Overflow))
     || {Limits, Overflow, Expected} <-
            [{{infinity, infinity}, reject_publish, {{infinity, infinity}, none}},
             {{infinity, infinity}, drop_latest_due, {{infinity, infinity}, none}},
             {{10, infinity}, reject_publish, {{10, infinity}, none}},
             {{10, infinity}, drop_latest_due, {{10 + 65536, infinity}, {10, infinity}}},
             {{infinity, 0}, drop_latest_due, {{infinity, 67108864}, {infinity, 0}}}]].

while_the_store_is_not_open_nothing_is_known_of_a_limit_test() ->
    Closed = #{pending => 0, pending_bytes => 0},
    ?assertEqual(unknown, ?R:room({10, infinity}, Closed, none)),
    ?assertEqual(unknown, ?R:room({infinity, 10}, Closed, {1, 1})),
    ?assertEqual(true, ?R:fits(1000000, ?R:room({infinity, infinity}, Closed, {1, 1}))).

beyond_is_more_than_a_limit_test_() ->
    [?_assertEqual(Is, ?R:is_beyond(Limits, stat(10, 100)))
     || {Limits, Is} <- [{{10, 100}, false}, {{9, infinity}, true}, {{infinity, 99}, true},
                         {{infinity, infinity}, false}, {{0, 0}, true}]].

%% Messages come one at a time until one does not fit, of several under way: what is taken in never
%% goes beyond a limit, whatever becomes of what is under way; and what is refused would have, had all
%% of that been stored. Refused for good is only what would have in any case.
model_test_() ->
    {timeout, 1200,
     fun () ->
             ?assert(proper:quickcheck(
                       ?FORALL({Limits, Stored, UnderWay, Sizes},
                               {{limit(), limit()}, {range(0, 30), range(0, 300)},
                                oneof([none, {range(1, 10), range(0, 100)}]),
                                list(range(0, 40))},
                               agrees(Limits, Stored, UnderWay, Sizes)),
                       [{numtests, 2000}, {to_file, user}]))
     end}.

limit() -> oneof([infinity, range(0, 40), range(0, 400)]).

agrees(Limits, {Stored, StoredBytes}, UnderWay, Sizes) ->
    Room = ?R:room(Limits, stat(Stored, StoredBytes), UnderWay),
    {N, Bytes} = case UnderWay of none -> {0, 0}; _ -> UnderWay end,
    is_same_at_once(Limits, {Stored + N, StoredBytes + Bytes}, UnderWay, Sizes, Room)
        andalso one_by_one(Limits, {Stored + N, StoredBytes + Bytes}, UnderWay, Sizes, Room).

within({Messages, Bytes}, {M, B}) -> M =< Messages andalso B =< Bytes.

refusal({infinity, infinity}, _) -> false;
refusal(_, none) -> false;
refusal(_, _) -> unknown.

is_same_at_once(_, _, _, [], _) ->
    true;
is_same_at_once(Limits, {M, B}, UnderWay, Sizes, Room) ->
    {N, Size} = {length(Sizes), lists:sum(Sizes)},
    ?R:admits(N, Size, Room) =:= case within(less(Limits, {M, B}), {N, Size}) of
                                     true -> true;
                                     false -> refusal(Limits, UnderWay)
                                 end.

one_by_one(_, _, _, [], _) ->
    true;
one_by_one(Limits, {M, B}, UnderWay, [Size | Sizes], Room) ->
    case {?R:fits(Size, Room), within(less(Limits, {M, B}), {1, Size})} of
        {true, true} ->
            {Before, After} = {?R:left(Room), ?R:left(?R:fill(Size, Room))},
            After =:= fewer(Before, Size)
                andalso one_by_one(Limits, {M + 1, B + Size}, UnderWay, Sizes, ?R:fill(Size, Room));
        {Refusal, false} ->
            Refusal =:= refusal(Limits, UnderWay)
                andalso one_by_one(Limits, {M, B}, UnderWay, Sizes, Room);
        _ ->
            false
    end.

less({Messages, Bytes}, {M, B}) -> {less_one(Messages, M), less_one(Bytes, B)}.

less_one(infinity, _) -> infinity;
less_one(Max, N) -> max(0, Max - N).

fewer({M, B}, Size) -> {minus(M, 1), minus(B, Size)}.

minus(infinity, _) -> infinity;
minus(Max, N) -> Max - N.
