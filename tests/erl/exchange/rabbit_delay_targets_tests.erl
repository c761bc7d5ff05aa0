%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_targets_tests).

-include_lib("eunit/include/eunit.hrl").

-define(T, rabbit_delay_targets).
-define(PAUSE, {500, 8000}).

targets(Messages, Bytes) -> ?T:limits(Messages, Bytes, ?T:new()).

sent(Name, SeqNos, Now, Ts) ->
    lists:foldl(fun (SeqNo, Acc) -> ?T:sent(Name, SeqNo, 10, Now, Acc) end, Ts, SeqNos).

%% ------------------------------------------------------------------------------- windows

a_queue_gets_all_that_may_be_in_flight_and_half_of_it_beside_a_slow_one_test() ->
    Ts0 = targets(1000, 1000000),
    ?assert(?T:is_open(a, Ts0)),
    Ts1 = sent(a, lists:seq(1, 999), 0, Ts0),
    ?assert(?T:is_open(a, Ts1)),
    Ts2 = sent(a, [1000], 0, Ts1),
    ?assertNot(?T:is_open(a, Ts2)),
    {[a], Slow} = ?T:tick(1000, Ts2),
    ?assertEqual(500, ?T:room(b, Slow)),
    ?assert(?T:is_open(a, ?T:confirmed(a, [7], 1, Ts2))).

and_all_of_the_bytes_but_at_least_one_message_test() ->
    Ts = targets(1000, 100),
    ?assertNot(?T:is_open(a, ?T:sent(a, 1, 100, 0, Ts))),
    ?assert(?T:is_open(a, ?T:sent(a, 1, 99, 0, Ts))),
    ?assertNot(?T:is_open(a, ?T:sent(a, 1, 1000, 0, Ts))),
    ?assert(?T:is_open(b, ?T:sent(a, 1, 1000, 0, Ts))).

one_in_flight_is_one_test() ->
    Ts = targets(1, 100),
    ?assertEqual(1, ?T:least_room(Ts)),
    ?assertNot(?T:is_open(a, sent(a, [1], 0, Ts))),
    ?assertEqual(0, ?T:least_room(sent(a, [1], 0, Ts))).

more_and_more_slow_queues_get_less_and_less_test() ->
    Fill = fun (Name, {Next, Ts0}) ->
                   Room = ?T:room(Name, Ts0),
                   SeqNos = lists:seq(Next, Next + Room - 1),
                   Ts1 = sent(Name, SeqNos, 0, Ts0),
                   {[Name], Ts2} = ?T:tick(1000, Ts1),
                   {Next + Room, Ts2}
           end,
    {_, Ts} = lists:foldl(Fill, {1, targets(1000, 1000000)}, [a, b, c, d, e, f, g]),
    ?assertEqual([a, b, c, d, e, f, g], lists:sort(?T:slow(Ts))),
    ?assertEqual(none, ?T:beyond(Ts)),
    ?assertEqual(16, ?T:room(h, Ts)),
    {_, Full} = lists:foldl(Fill, {2000, Ts}, lists:seq(1, 20)),
    ?assertNotEqual(none, ?T:beyond(Full)).

%% ------------------------------------------------------------------------------ slowness

a_queue_is_slow_after_a_second_and_until_it_has_answered_in_time_test() ->
    Ts0 = sent(a, [1, 2], 0, targets(100, 100000)),
    ?assertEqual({[], Ts0}, ?T:tick(999, Ts0)),
    {[a], Ts1} = ?T:tick(1000, Ts0),
    ?assertEqual({[], Ts1}, ?T:tick(2000, Ts1)),
    ?assert(?T:has_slow(Ts1)),
    %% An answer after two seconds is no answer in time; but that to what is sent then is.
    Ts2 = ?T:confirmed(a, [1], 2000, Ts1),
    ?assertEqual([a], ?T:slow(Ts2)),
    Ts3 = sent(a, [3], 2001, Ts2),
    ?assertEqual([], ?T:slow(?T:confirmed(a, [2], 2100, Ts3))),
    ?assertEqual([], ?T:slow(?T:confirmed(a, [2, 3], 9000, Ts3))),
    ?assertNot(?T:has_slow(?T:confirmed(a, [2, 3], 9000, Ts3))).

silent_is_who_says_nothing_test() ->
    Ts0 = sent(a, [1, 2], 0, sent(b, [1], 0, targets(100, 100000))),
    Ts = ?T:confirmed(a, [1], 50, Ts0),
    ?assertEqual([b], ?T:silent(100, 100, Ts)),
    ?assertEqual([a, b], lists:sort(?T:silent(150, 100, Ts))),
    ?assertEqual([], ?T:silent(1000, 100, ?T:confirmed(b, [1], 60, ?T:confirmed(a, [2], 60, Ts)))).

what_is_slow_or_rejects_holds_up_no_reading_test() ->
    Ts = sent(a, lists:seq(1, 100), 0, targets(100, 100000)),
    ?assertEqual(0, ?T:least_room(Ts)),
    {[a], Slow} = ?T:tick(1000, Ts),
    ?assert(?T:least_room(Slow) > 0),
    {pause, 500, Paused} = ?T:pause(a, ?PAUSE, 0, ?T:rejected(a, lists:seq(2, 100), Ts)),
    ?assert(?T:least_room(Paused) > 0),
    ?assertEqual([a], ?T:stuck(Paused)).

%% -------------------------------------------------------------------------------- pauses

pauses_double_and_a_confirm_ends_that_test() ->
    Ts0 = targets(100, 100000),
    {pause, 500, Ts1} = ?T:pause(a, ?PAUSE, 0, Ts0),
    ?assertNot(?T:is_open(a, Ts1)),
    {paused, Ts1} = ?T:pause(a, ?PAUSE, 100, Ts1),
    Ts2 = ?T:resume(a, Ts1),
    ?assertEqual(1, ?T:room(a, Ts2)),
    {pause, 1000, Ts3} = ?T:pause(a, ?PAUSE, 500, Ts2),
    Ts4 = sent(a, [1], 1600, ?T:resume(a, Ts3)),
    ?assertNot(?T:is_open(a, Ts4)),
    Ts5 = ?T:confirmed(a, [1], 1601, Ts4),
    ?assertEqual(2, ?T:room(a, Ts5)),
    ?assertEqual(4, ?T:room(a, ?T:confirmed(a, [2, 3], 1602, sent(a, [2, 3], 1601, Ts5)))),
    {pause, 500, _} = ?T:pause(a, ?PAUSE, 1603, Ts5).

pauses_have_a_bound_test() ->
    Last = lists:foldl(fun (_, {_, Ts}) ->
                               {pause, Ms, Ts1} = ?T:pause(a, ?PAUSE, 0, Ts),
                               {Ms, ?T:resume(a, Ts1)}
                       end, {0, targets(100, 100000)}, lists:seq(1, 20)),
    ?assertMatch({8000, _}, Last).

what_may_be_back_is_tried_from_the_beginning_test() ->
    {pause, 500, Ts1} = ?T:pause(a, ?PAUSE, 0, targets(100, 100000)),
    {pause, 1000, Ts2} = ?T:pause(a, ?PAUSE, 0, ?T:resume(a, Ts1)),
    Ts3 = ?T:resume_all(Ts2),
    ?assert(?T:is_open(a, Ts3)),
    ?assertMatch({pause, 500, _}, ?T:pause(a, ?PAUSE, 0, Ts3)).

what_a_publisher_leaves_is_told_once_test() ->
    Ts0 = sent(a, [1, 2, 3], 0, targets(100, 100000)),
    {[1, 3], Ts1} = ?T:given_up(a, ?T:confirmed(a, [2], 1, Ts0)),
    ?assertEqual({[], Ts1}, ?T:given_up(a, Ts1)),
    ?assertEqual({[], Ts1}, ?T:given_up(b, Ts1)).

%% ------------------------------------------------------------------------------- waiting

nobody_overtakes_who_waits_test() ->
    Ts = ?T:wait(a, {5, 1}, 0, targets(100, 100000)),
    ?assertNot(?T:is_open(a, Ts)),
    ?assert(?T:is_taking(a, Ts)),
    ?assertEqual({[a], true}, ?T:crowded(Ts)),
    {[{5, 1}], Ts1} = ?T:next(a, 10, Ts),
    ?assert(?T:is_open(a, Ts1)),
    ?assertEqual({[], false}, ?T:crowded(Ts1)).

%% Against a queue and an ordered set, by random steps: of what was in flight, each goes before
%% whatever is at the head of the queue and due later.
what_waits_comes_in_order_test() ->
    rand:seed(exsss, 4711),
    lists:foreach(fun (_) -> steps(3000, 1, targets(100, 100000), [], []) end, lists:seq(1, 20)).

steps(0, _, Ts, Again, Waiting) ->
    ?assertEqual(length(Again) + length(Waiting), ?T:waiting(Ts)),
    {All, Ts1} = ?T:next(a, 100000, Ts),
    ?assertEqual(element(1, merged(100000, Again, Waiting, [])), All),
    ?assertEqual(0, ?T:waiting(Ts1));
steps(N, Next, Ts, Again, Waiting) ->
    case rand:uniform(20) of
        1 ->
            Most = rand:uniform(600) - 1,
            {Places, Ts1} = ?T:next(a, Most, Ts),
            {Wanted, Again1, Waiting1} = merged(Most, Again, Waiting, []),
            ?assertEqual(Wanted, Places),
            %% Some of them come back.
            Back = [Place || Place <- Places, rand:uniform(3) =:= 1],
            Ts2 = lists:foldl(fun (Place, T) -> ?T:wait_first(a, Place, 0, T) end, Ts1, Back),
            steps(N - 1, Next, Ts2, lists:usort(Back ++ Again1), Waiting1);
        _ ->
            Place = {rand:uniform(1000000), Next},
            steps(N - 1, Next + 1, ?T:wait(a, Place, 0, Ts), Again, Waiting ++ [Place])
    end.

merged(0, Again, Waiting, Acc) ->
    {lists:reverse(Acc), Again, Waiting};
merged(N, [A | Again], [W | _] = Waiting, Acc) when A < W ->
    merged(N - 1, Again, Waiting, [A | Acc]);
merged(N, Again, [W | Waiting], Acc) ->
    merged(N - 1, Again, Waiting, [W | Acc]);
merged(N, [A | Again], [], Acc) ->
    merged(N - 1, Again, [], [A | Acc]);
merged(_, [], [], Acc) ->
    {lists:reverse(Acc), [], []}.

beyond_the_bound_messages_are_only_counted_test_() ->
    {timeout, 60,
     fun () ->
             Ts0 = lists:foldl(fun (N, T) -> ?T:wait(a, {N, N}, 0, T) end, targets(100, 100000),
                               lists:seq(1, 1000000)),
             ?assertNot(?T:has_lost(Ts0)),
             Ts1 = ?T:wait(b, {7, 7}, 0, ?T:wait(a, {8, 8}, 0, Ts0)),
             ?assertEqual(1000002, ?T:waiting(Ts1)),
             ?assert(?T:has_lost(Ts1)),
             {pause, _, Ts2} = ?T:pause(b, ?PAUSE, 0, Ts1),
             ?assertNot(?T:has_lost(Ts2)),
             {Places, Ts3} = ?T:next(a, 2000000, Ts2),
             ?assertEqual(1000000, length(Places)),
             ?assert(?T:has_lost(Ts3)),
             Ts4 = ?T:forget_waiting(Ts3),
             ?assertEqual(0, ?T:waiting(Ts4)),
             ?assertNot(?T:has_lost(Ts4))
     end}.

unused_ones_are_forgotten_with_their_publishers_test() ->
    Ts0 = ?T:wait(b, {1, 1}, 0, sent(a, [1], 0, targets(100, 100000))),
    Ts1 = ?T:started(a, self(), Ts0),
    ?assertEqual({[], Ts1}, ?T:unused(1000, Ts1)),
    Ts2 = ?T:confirmed(a, [1], 5, Ts1),
    ?assertEqual({[], Ts2}, ?T:unused(0, Ts2)),
    {[Pid], Ts3} = ?T:unused(1000, Ts2),
    ?assertEqual(self(), Pid),
    ?assertEqual([b], ?T:names(Ts3)).
