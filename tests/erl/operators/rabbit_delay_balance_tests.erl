%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_balance_tests).

-include_lib("eunit/include/eunit.hrl").

-define(NODES, [a, b, c, d]).

moved(Groups) -> rabbit_delay_balance:moves(Groups).

nothing_test() ->
    ?assertEqual([], moved([])),
    ?assertEqual([], moved([{x, a, [a]}, {y, a, [a]}, {z, a, [a]}])),
    ?assertEqual([], moved([{x, a, [a, b]}])),
    ?assertEqual([], moved([{x, a, [a, b, c]}, {y, b, [a, b, c]}, {z, c, [a, b, c]}])).

one_of_two_test() ->
    ?assertMatch([{_, b}], moved([{x, a, [a, b]}, {y, a, [a, b]}])).

%% From a to c leads no way but over b.
over_a_third_test() ->
    Groups = [{1, a, [a, b]}, {2, a, [a, b]}, {3, a, [a, b]}, {4, b, [b, c]}, {5, b, [b, c]}],
    ?assertMatch([{_, b}, {_, c}], lists:keysort(2, moved(Groups))).

%% Small clusters of every kind, against all that could be.
as_even_as_can_be_test_() ->
    {timeout, 300,
     fun () ->
             _ = rand:seed(exsss, {1, 2, 3}),
             lists:foreach(fun (_) -> as_even_as_can_be([group(N) || N <- lists:seq(1, rand:uniform(7))]) end,
                           lists:seq(1, 500))
     end}.

group(N) ->
    Members = [Node || {_, Node} <- lists:sort([{rand:uniform(), Node} || Node <- ?NODES])],
    [Leader | _] = Nodes = lists:sublist(Members, rand:uniform(3)),
    {N, Leader, lists:sort(Nodes)}.

as_even_as_can_be(Groups) ->
    Moves = moved(Groups),
    ?assertEqual(length(Moves), length(lists:ukeysort(1, Moves))),
    After = [{N, proplists:get_value(N, Moves, Leader), Nodes} || {N, Leader, Nodes} <- Groups],
    ?assert(lists:all(fun ({_, Leader, Nodes}) -> lists:member(Leader, Nodes) end, After)),
    ?assertEqual([], moved(After)),
    ?assertEqual(lists:min([unevenness(Leaders) || Leaders <- all(Groups)]),
                 unevenness([Leader || {_, Leader, _} <- After])).

all([]) -> [[]];
all([{_, _, Nodes} | Rest]) -> [[Node | Leaders] || Node <- Nodes, Leaders <- all(Rest)].

unevenness(Leaders) ->
    lists:sum([N * N || Node <- ?NODES, N <- [length([L || L <- Leaders, L =:= Node])]]).

many_test_() ->
    {timeout, 300,
     fun () ->
             Moves = moved([{N, a, [a, b, c]} || N <- lists:seq(1, 3000)]),
             ?assertEqual(2000, length(Moves)),
             ?assertEqual(1000, length([N || {N, b} <- Moves]))
     end}.
