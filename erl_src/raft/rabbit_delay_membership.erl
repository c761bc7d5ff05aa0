%% SPDX-License-Identifier: MPL-2.0

%% Which change an exchange's group needs next, if any: one at a time, decided from what is known now.
%%
%% Rules (docs/internals/raft.md, D1 to D3): a node that is in the cluster no more, and a member that has
%% lost its files, are removed before another is added; nobody is removed for being down. A voter is made
%% only if those that are up are a majority of the larger group without it. An odd number is what it comes
%% to rest at, not a condition on steps, so a group of one grows only where there are nodes for three. A
%% group never shrinks by itself.
%%
%% Data only.
-module(rabbit_delay_membership).

-export([next/1, may_add/1, may_remove/2]).

-export_type([view/0, step/0]).

%% As the leader, which is up, sees it.
-type view() :: #{leader := ra:server_id(),
                  %% Raft's configuration, with what is not committed yet, and those that vote in it
                  members := [ra:server_id(), ...],
                  voters := [ra:server_id()],
                  %% what the exchange's record names
                  named := [ra:server_id()],
                  %% the nodes of the cluster, up or not
                  cluster := [node()],
                  %% members that run, and members of which their nodes say that they have no files; of those
                  %% that the record does not name, too
                  up := [ra:server_id()],
                  lost := [ra:server_id()],
                  %% other nodes that could take one, the best first
                  candidates := [node()],
                  target := pos_integer(),
                  term => non_neg_integer()}.

%% name: the record lacks these. unname: it has these for nothing.
-type step() :: rest | {name, [ra:server_id()]} | {unname, [ra:server_id()]}
              | {remove, ra:server_id()} | {add, node()}.

-spec next(view()) -> step().
next(#{members := Members, named := Named, cluster := Cluster, lost := Lost} = View) ->
    %% What is to be removed need not be named first, and could not be.
    Missing = [Id || {_, Node} = Id <- Members -- Named,
                     lists:member(Node, Cluster), not lists:member(Id, Lost)],
    case {Missing, Named -- Members} of
        {[_ | _], _} -> {name, Missing};
        {[], [_ | _] = Surplus} -> {unname, Surplus};
        {[], []} -> change(View)
    end.

change(#{members := Members, lost := Lost, cluster := Cluster, leader := Leader} = View) ->
    case [Id || {_, Node} = Id <- Members, Id =/= Leader, not lists:member(Node, Cluster)]
        ++ [Id || Id <- Members, Id =/= Leader, lists:member(Id, Lost)] of
        [Id | _] ->
            case may_remove(Id, View) of
                true -> {remove, Id};
                false -> rest
            end;
        [] ->
            grow(View)
    end.

%% What stays must be able to commit that.
-spec may_remove(ra:server_id(), view()) -> boolean().
may_remove(Id, #{voters := Voters, up := Up}) ->
    Staying = Voters -- [Id],
    is_majority(count_up(Staying, Up), length(Staying)).

grow(#{members := Members, voters := Voters, target := Target, candidates := Candidates} = View) ->
    Size = length(Members),
    case Candidates of
        [Node | _] when Size < Target, length(Voters) =:= Size ->
            case Size + length(Candidates) >= 3 andalso may_add(View) of
                true -> {add, Node};
                false -> rest
            end;
        _ ->
            rest
    end.

%% From one to two there is no such majority: both must be up until there is a third.
-spec may_add(view()) -> boolean().
may_add(#{voters := [_]}) -> true;
may_add(#{voters := Voters, up := Up}) -> is_majority(count_up(Voters, Up), length(Voters) + 1).

count_up(Ids, Up) -> length([Id || Id <- Ids, lists:member(Id, Up)]).

is_majority(Some, All) -> 2 * Some > All.
