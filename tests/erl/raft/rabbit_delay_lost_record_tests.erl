%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_lost_record_tests).

-include_lib("eunit/include/eunit.hrl").

-define(MARK, <<"0123456789AB">>).
-define(LIFE, <<"0123456789ABFEDCBA987654">>).
-define(OTHER, <<"AAAAAAAAAAAAFEDCBA987654">>).

id(Node, Life) ->
    {binary_to_atom(<<"rabbit_delay_0011_", Life/binary>>), Node}.

held({_, Node} = Id, Initial) -> {Id, uid(Node), <<"salt">>, Initial}.

uid(Node) -> atom_to_binary(Node).

group(Nodes) -> group(?LIFE, Nodes).

group(Life, Nodes) -> [id(Node, Life) || Node <- Nodes].

%% What those have of a group that was made on these nodes.
of_group(There, Nodes) -> [held(id(Node, ?LIFE), group(Nodes)) || Node <- There].

members(Nodes) -> [{id(Node, ?LIFE), uid(Node)} || Node <- Nodes].

chosen(Complete, Away) -> chosen(Complete, [], Away).

chosen(Complete, Others, Away) -> rabbit_delay_lost_record:chosen(?MARK, Complete, Others, Away).

%% Every part of a group of three, and who of the others does not answer.
parts_of_a_group_test_() ->
    Nodes = [a, b, c],
    [{lists:flatten(io_lib:format("~p there, ~p away", [There, Away])),
      ?_assertEqual(case {length(There), length(There) + length(Away)} of
                        {0, _} -> none;
                        {N, _} when N >= 2 -> {ok, ?LIFE, <<"salt">>, members(There)};
                        {_, M} when M >= 2 -> unknown;
                        _ -> none
                    end, chosen(of_group(There, Nodes), Away))}
     || There <- [[], [a], [b], [c], [a, b], [a, c], [b, c], Nodes],
        Away <- [[], [a], [b], [c], [a, b], [a, c], [b, c]], Away -- There =:= Away].

%% Who may know that a group was complete, who has its files, and which majority of the nodes is there: all of these.
%% One of which most members know is never passed over for another, one is named again only with most members' files,
%% and always if these are there and most know.
parts_that_were_told_test() ->
    [part_that_was_told(Nodes, Told, NotTold, There)
     || Nodes <- [[a], [a, b, c], [a, b, c, d, e]], Told <- parts(Nodes), NotTold <- parts(Nodes -- Told),
        There <- parts(Nodes), 2 * length(There) > length(Nodes)].

part_that_was_told(Nodes, Told, NotTold, There) ->
    Of = fun (Some) -> of_group([Node || Node <- Some, lists:member(Node, There)], Nodes) end,
    Files = [Node || Node <- Nodes, lists:member(Node, Told ++ NotTold), lists:member(Node, There)],
    IsMost = fun (Some) -> 2 * length(Some) > length(Nodes) end,
    case chosen(Of(Told), Of(NotTold), Nodes -- There) of
        none -> ?assertNot(IsMost(Told), {Told, NotTold, There});
        unknown -> ?assertNot(IsMost(Files), {Told, NotTold, There});
        {ok, ?LIFE, _, Members} -> ?assertEqual({true, members(Files)}, {IsMost(Files), Members})
    end.

parts([]) -> [[]];
parts([Node | Nodes]) -> [Part || Rest <- parts(Nodes), Part <- [Rest, [Node | Rest]]].

%% Of another group, that was never complete, there is more.
others_of_another_test() ->
    Other = <<?MARK/binary, "00000000AAAA">>,
    Others = [held(id(Node, Other), group(Other, [a, b, c])) || Node <- [a, b, c]],
    ?assertEqual(none, chosen([], Others, [])),
    ?assertEqual(unknown, chosen(of_group([a], [a, b, c]), Others, [b])),
    ?assertEqual({ok, ?LIFE, <<"salt">>, members([a, b])}, chosen(of_group([a, b], [a, b, c]), Others, [c])).

%% One that may have been complete is not named where another may have been, and who is away may know; and not before
%% one that was.
one_of_two_test() ->
    Nodes = [a, b, c],
    Second = <<?MARK/binary, "00000000AAAA">>,
    OfSecond = fun (There) -> [held(id(Node, Second), group(Second, Nodes)) || Node <- There] end,
    MayBe = of_group([b], Nodes),
    ?assertEqual({ok, ?LIFE, <<"salt">>, members([a, b])}, chosen(MayBe, of_group([a], Nodes), [c])),
    ?assertEqual(unknown, chosen(MayBe ++ OfSecond([a]), of_group([a], Nodes), [c])),
    ?assertMatch({ok, Second, _, _}, chosen(MayBe ++ OfSecond([a, b]), of_group([a], Nodes), [c])),
    OfOne = held(id(a, Second), group(Second, [a])),
    ?assertMatch({ok, Second, _, _}, chosen([OfOne | MayBe], of_group([a], Nodes), [c])).

of_one_test() ->
    ?assertEqual({ok, ?LIFE, <<"salt">>, members([a])}, chosen(of_group([a], [a]), [b, c])).

%% It is of an exchange that was deleted.
of_another_mark_test() ->
    Held = [held(id(Node, ?OTHER), group(?OTHER, [a, b, c])) || Node <- [a, b, c]],
    ?assertEqual(none, chosen(Held, [])),
    ?assertEqual(none, rabbit_delay_lost_record:chosen(undefined, of_group([a, b, c], [a, b, c]), [], [])),
    ?assertEqual({ok, ?LIFE, <<"salt">>, members([b])}, chosen(Held ++ of_group([b], [b]), [])).

%% A member that was made on a node that was alone, to which others have been added.
from_one_test() ->
    Alone = {rabbit_delay_0011, a},
    Held = [held(Alone, [Alone]), held(id(b, ?LIFE), [Alone, id(b, ?LIFE)])],
    ?assertEqual({ok, ?LIFE, <<"salt">>, [{Alone, uid(a)} | members([b])]}, chosen(Held, [c])),
    ?assertEqual(none, chosen([held(Alone, [Alone])], [])).

%% Of a node that was given a member again, the later one, which it says last.
one_a_node_test() ->
    Later = {binary_to_atom(<<"rabbit_delay_0011_", ?LIFE/binary, "_00FF00">>), b},
    Held = of_group([a, b], [a, b, c]) ++ [{Later, <<"later">>, <<"salt">>, [id(a, ?LIFE), Later, id(c, ?LIFE)]}],
    ?assertEqual({ok, ?LIFE, <<"salt">>, [{id(a, ?LIFE), <<"a">>}, {Later, <<"later">>}]}, chosen(Held, [])).
