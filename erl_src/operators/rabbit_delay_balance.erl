%% SPDX-License-Identifier: MPL-2.0

%% Which groups another of their members is to lead, so that leaders are spread over the members' nodes as
%% evenly as can be: no node leads two more than another to which leadership could be moved, be it over a
%% third, whose own leadership moves on.
%%
%% Data only.
-module(rabbit_delay_balance).

-export([moves/1]).

%% What could be moved from the first node to the second.
-type between() :: #{{node(), node()} => #{Group :: term() => []}}.

%% Of groups, each with the node that leads it and all that could.
-spec moves([{Group, Leader :: node(), Members :: [node(), ...]}]) -> [{Group, To :: node()}].
moves(Groups) ->
    Members = maps:from_list([{Group, Nodes} || {Group, _, Nodes} <- Groups]),
    Before = maps:from_list([{Group, Leader} || {Group, Leader, _} <- Groups]),
    Between = maps:fold(fun (Group, Leader, Acc) ->
                                put_led(Group, Leader, map_get(Group, Members), Acc)
                        end, #{}, Before),
    None = maps:from_list([{Node, 0} || {_, Leader, Nodes} <- Groups, Node <- [Leader | Nodes]]),
    Loads = maps:fold(fun (_, Leader, Acc) -> plus(Leader, 1, Acc) end, None, Before),
    After = balanced(Loads, Between, Members, Before),
    lists:sort([{Group, To} || {Group, To} <- maps:to_list(After), To =/= map_get(Group, Before)]).

balanced(Loads, Between, Members, Leaders) ->
    MostFirst = [Node || {_, Node} <- lists:reverse(lists:sort([{N, Node} || {Node, N}
                                                                                 <- maps:to_list(Loads)]))],
    case first_way(MostFirst, Loads, Between) of
        none ->
            Leaders;
        [From | _] = Way ->
            {Moved, NewBetween} = move_along(Way, Between, Members, Leaders),
            balanced(plus(lists:last(Way), 1, plus(From, -1, Loads)), NewBetween, Members, Moved)
    end.

first_way([], _, _) ->
    none;
first_way([From | Rest], Loads, Between) ->
    Load = map_get(From, Loads),
    case way([[From]], [From], fun (Node) -> map_get(Node, Loads) =< Load - 2 end, Between) of
        none -> first_way(Rest, Loads, Between);
        Way -> Way
    end.

%% The shortest; each is kept with its end first.
way([], _, _, _) ->
    none;
way([[At | _] = Way | Others], Seen, IsEnd, Between) ->
    Next = lists:usort([To || {From, To} <- maps:keys(Between), From =:= At]) -- Seen,
    case lists:filter(IsEnd, Next) of
        [End | _] -> lists:reverse([End | Way]);
        [] -> way(Others ++ [[Node | Way] || Node <- Next], Next ++ Seen, IsEnd, Between)
    end.

move_along([_], Between, _, Leaders) ->
    {Leaders, Between};
move_along([From, To | Rest], Between, Members, Leaders) ->
    {Group, [], _} = maps:next(maps:iterator(map_get({From, To}, Between))),
    Nodes = map_get(Group, Members),
    move_along([To | Rest], put_led(Group, To, Nodes, take_led(Group, From, Nodes, Between)), Members,
               Leaders#{Group := To}).

-spec put_led(term(), node(), [node()], between()) -> between().
put_led(Group, Leader, Nodes, Between) ->
    lists:foldl(fun (Node, Acc) ->
                        maps:update_with({Leader, Node}, fun (Groups) -> Groups#{Group => []} end,
                                         #{Group => []}, Acc)
                end, Between, lists:delete(Leader, Nodes)).

-spec take_led(term(), node(), [node()], between()) -> between().
take_led(Group, Leader, Nodes, Between) ->
    lists:foldl(fun (Node, Acc) ->
                        case maps:remove(Group, map_get({Leader, Node}, Acc)) of
                            None when map_size(None) =:= 0 -> maps:remove({Leader, Node}, Acc);
                            Left -> Acc#{{Leader, Node} := Left}
                        end
                end, Between, lists:delete(Leader, Nodes)).

plus(Node, N, Loads) -> maps:update_with(Node, fun (Load) -> Load + N end, Loads).
