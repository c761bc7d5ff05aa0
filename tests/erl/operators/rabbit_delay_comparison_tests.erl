%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_comparison_tests).

-include_lib("eunit/include/eunit.hrl").

-define(C, rabbit_delay_comparison).
-define(DIGEST(N), <<N:64, 7:32>>).
%% So many messages, of which each number has another digest.
-define(HELD(N), {N, ?DIGEST(N)}).

%% What of the members at a, b and c was seen is what the outcome follows from.
outcomes_test_() ->
    [{Name, ?_assertEqual({Outcome, Held}, begin
                                               #{outcome := O, held := H} = ?C:judge(lists:zip([a, b, c], Answers)),
                                               {O, H}
                                           end)}
     || {Name, Answers, Outcome, Held} <-
            [{"all at one index",
              [seen([5]), seen([5]), seen([5])], same, at([{a, 5}, {b, 5}, {c, 5}])},
             {"at the last that all share, whatever else was seen",
              [seen([3, 4, 5, 8]), seen([3, 5, 7]), seen([3, 5, 6, 9])], same, at([{a, 5}, {b, 5}, {c, 5}])},
             {"one is behind",
              [seen([8, 9]), seen([9]), seen([1, 2])], unknown, at([{a, 9}, {b, 9}, {c, 2}])},
             {"each at another",
              [seen([7]), seen([8]), seen([9])], unknown, at([{a, 7}, {b, 8}, {c, 9}])},
             {"one does not tell",
              [seen([7]), {error, down}, seen([7, 8])], unknown, at([{a, 7}, {c, 7}])},
             {"the others do not tell",
              [seen([7]), {error, earlier}, {error, not_started}], unknown, at([{a, 7}])},
             {"nobody tells",
              [{error, unknown}, {error, down}, {error, down}], unknown, #{}},
             {"one was never at rest",
              [seen([7]), seen([]), seen([7])], unknown, at([{a, 7}, {c, 7}])},
             {"one differs",
              [seen([5]), {ok, #{5 => ?HELD(6)}}, seen([5])], different, (at([{a, 5}, {c, 5}]))#{b => {5, ?HELD(6)}}},
             {"two differ, at an index at which a third was not, though all share another",
              [{ok, #{4 => ?HELD(3), 5 => ?HELD(5)}}, seen([4, 5]), seen([5])], different,
              #{a => {4, ?HELD(3)}, b => {4, ?HELD(4)}, c => {5, ?HELD(5)}}},
             {"two differ, and one does not tell",
              [{ok, #{5 => ?HELD(3)}}, seen([5]), {error, down}], different,
              #{a => {5, ?HELD(3)}, b => {5, ?HELD(5)}}}]].

%% At index I, I messages.
seen(Indexes) -> {ok, maps:from_list([{I, ?HELD(I)} || I <- Indexes])}.

at(Nodes) -> maps:from_list([{Node, {I, ?HELD(I)}} || {Node, I} <- Nodes]).

words_test_() ->
    [?_assertEqual(iolist_to_binary(Words), maps:get(why, ?C:judge(lists:zip(['r@a', 'r@b', 'r@c'], Answers))))
     || {Answers, Words} <-
            [{[seen([5]), seen([5]), seen([5])], "r@a, r@b and r@c hold the same at index 5 of the log"},
             {[seen([5]), {error, down}, seen([5])],
              "r@a and r@c hold the same at index 5 of the log; not compared: r@b (its node does not answer)"},
             {[seen([5]), {error, not_started}, {error, unknown}],
              "not compared: r@a (no other answers); r@b (its member does not run); r@c (its member does not answer)"},
             {[seen([5]), {error, earlier}, seen([5])],
              "r@a and r@c hold the same at index 5 of the log; not compared: r@b (its node has an earlier version of "
              "the plugin, which does not tell, or it is not running there)"},
             {[seen([5]), seen([6]), {error, down}],
              "not compared: r@a and r@b (not seen at an index at which another was, in 5 s: it is behind, or "
              "messages come and go; try again, best while none do); r@c (its node does not answer)"},
             {[seen([1]), {ok, #{1 => ?HELD(2)}}, seen([1])],
              "members hold different messages: at index 1 of the log r@a and r@c 1 message (digest "
              "000000000000000100000007), r@b 2 messages (digest 000000000000000200000007)"},
             {[seen([2]), {ok, #{2 => {2, <<2:64, 8:32>>}}}, {error, down}],
              "members hold the same messages, but not the same sessions of publishers, or one is paused: at index 2 "
              "of the log r@a 2 messages (digest 000000000000000200000007), r@b 2 messages (digest "
              "000000000000000200000008); not compared: r@c (its node does not answer)"}]].

the_only_member_test() ->
    ?assertEqual(#{outcome => same, why => <<"it has one member: there is nothing to compare">>,
                   held => at([{a, 6}])}, ?C:judge([{a, seen([5, 6])}])),
    ?assertMatch(#{outcome := unknown, held := Held} when map_size(Held) =:= 0, ?C:judge([{a, {error, down}}])).

the_digest_is_shown_in_hexadecimal_test() ->
    ?assertEqual(<<"00ff00000000000a0000000b">>, ?C:shown(<<16#00ff00000000000a:64, 11:32>>)).
