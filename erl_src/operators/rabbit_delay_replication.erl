%% SPDX-License-Identifier: MPL-2.0

%% What operators see and change of which nodes hold the messages of delayed exchanges: the members of
%% their groups. What is wrong with what was asked for is told here, before rabbit_delay_members does it.
%%
%% It runs in the process that asks, on any node, and owns nothing. What concerns many exchanges is asked
%% for one by one: first which they are, then a change of each, so that it ends with who asks.
-module(rabbit_delay_replication).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([status/1, compared/1, add/3, delete/3, transfer/3, force_shrink/3, to_grow/3, to_shrink/1, to_force_shrink/1,
         to_rebalance/1, leaders/0, critical/0]).
-export([leads/0]).

-export_type([error/0, patterns/0]).

-type error() :: {error, {not_found | conflict | unavailable, Why :: binary()}}.
%% Regular expressions of a vhost's and an exchange's name.
-type patterns() :: {VHosts :: binary(), Exchanges :: binary()}.
%% As it was written.
-type node_name() :: binary().

-define(ASK_MS, 5000).

%% The members, with how many entries of the log each has yet to get.
-spec status(rabbit_exchange:name()) -> {ok, [map()]} | error().
status(XName) ->
    with_members(XName, fun (_) ->
                                case rabbit_delay_members:status(XName) of
                                    {ok, Members} -> {ok, with_behind(Members)};
                                    {error, Why} -> unavailable("~ts", [Why])
                                end
                        end).

%% With what each holds, whether it is the same, and which are meant in words. As many at a time as may look
%% at queues: each asks the members' Raft servers some hundred times a second.
-spec compared(rabbit_exchange:name()) ->
          {ok, #{members := [map()], outcome := same | different | unknown, why := binary()}} | error().
compared(XName) ->
    with_members(
      XName, fun (_) ->
                     case rabbit_delay_budget:with(looks, 1, fun () -> rabbit_delay_members:compared(XName) end) of
                         {ok, Members, #{outcome := Outcome, why := Why}} ->
                             {ok, #{members => with_behind(Members), outcome => Outcome, why => Why}};
                         {error, {unavailable, _}} = Busy -> Busy;
                         {error, Why} -> unavailable("~ts", [Why])
                     end
             end).

with_behind(Members) ->
    Leaders = [Last || #{state := leader, last_index := Last} <- Members, is_integer(Last)],
    [Member#{behind => case {Leaders, Last} of
                           {[First | _], _} when is_integer(Last) -> max(0, First - Last);
                           _ -> undefined
                       end} || #{last_index := Last} = Member <- Members].

%% `unchanged' if there is one.
-spec add(rabbit_exchange:name(), node_name(), By :: binary()) -> ok | unchanged | error().
add(XName, Name, By) ->
    with_member_or_not(
      XName, Name, rabbit_delay_broker:cluster_nodes(),
      fun (_, true) -> unchanged;
          (Node, false) ->
              case takes_members(Node) of
                  ok -> change(add, XName, Node, "a member on ~s is to be added", By);
                  Error -> Error
              end
      end).

%% `unchanged' if there is none.
-spec delete(rabbit_exchange:name(), node_name(), By :: binary()) -> ok | unchanged | error().
delete(XName, Name, By) ->
    with_member_or_not(
      XName, Name, known_nodes([XName]),
      fun (_, false) -> unchanged;
          (Node, true) ->
              case members(XName) of
                  [Node] -> conflict("node ~s has the only member of ~ts, and all its messages",
                                     [Node, rabbit_delay_text:rs(XName)]);
                  _ -> change(remove, XName, Node, "the member on ~s is to be deleted", By)
              end
      end).

%% `unchanged' if there is no other.
-spec transfer(rabbit_exchange:name(), node_name(), By :: binary()) -> ok | unchanged | error().
transfer(XName, Name, By) ->
    with_member_or_not(
      XName, Name, known_nodes([XName]),
      fun (Node, true) ->
              case members(XName) of
                  [Node] -> unchanged;
                  _ -> change(transfer, XName, Node, "the member on ~s is to lead", By)
              end;
          (Node, false) -> conflict("node ~s has no member of ~ts", [Node, rabbit_delay_text:rs(XName)])
      end).

-spec force_shrink(rabbit_exchange:name(), node_name(), By :: binary()) -> ok | error().
force_shrink(XName, Name, By) ->
    with_member_or_not(
      XName, Name, rabbit_delay_broker:cluster_nodes(),
      fun (Node, true) -> change(force_shrink, XName, Node, "the member on ~s is to go on alone", By);
          (Node, false) -> conflict("node ~s has no member of ~ts", [Node, rabbit_delay_text:rs(XName)])
      end).

%% Before it is done: whatever becomes of it, it is known who asked for what.
change(What, XName, Node, Format, By) ->
    ?LOG_INFO("delayed messages of ~ts: " ++ Format ++ ", asked for by ~ts",
              [rabbit_delay_text:rs(XName), Node, By], ?LOG_DOMAIN),
    case rabbit_delay_members:What(XName, Node) of
        ok -> ok;
        {error, Why} -> unavailable("~ts", [Why])
    end.

%% The exchanges that would get a member on a node, and how many they have: all of them, or those that have
%% an even number.
-spec to_grow(node_name(), all | even, patterns()) -> {ok, [{rabbit_exchange:name(), pos_integer()}]} | error().
to_grow(Name, Which, Patterns) ->
    case node_of(Name, rabbit_delay_broker:cluster_nodes()) of
        {ok, Node} ->
            case takes_members(Node) of
                ok -> {ok, [{XName, length(Nodes)}
                            || {XName, Nodes} <- groups(Patterns), not lists:member(Node, Nodes),
                               Which =:= all orelse length(Nodes) rem 2 =:= 0]};
                Error -> Error
            end;
        Error ->
            Error
    end.

%% Those that have one there, which may be gone for good.
-spec to_shrink(node_name()) -> {ok, [{rabbit_exchange:name(), pos_integer()}]} | error().
to_shrink(Name) ->
    Groups = groups({<<>>, <<>>}),
    case node_of(Name, rabbit_delay_broker:cluster_nodes() ++ lists:append([Nodes || {_, Nodes} <- Groups])) of
        {ok, Node} -> {ok, [{XName, length(Nodes)} || {XName, Nodes} <- Groups, lists:member(Node, Nodes)]};
        Error -> Error
    end.

%% Those that have a member there, and no majority of members whose nodes are in the cluster.
-spec to_force_shrink(node_name()) -> {ok, [{rabbit_exchange:name(), pos_integer()}]} | error().
to_force_shrink(Name) ->
    Cluster = rabbit_delay_broker:cluster_nodes(),
    case node_of(Name, Cluster) of
        {ok, Node} -> {ok, [{XName, length(Nodes)}
                            || {XName, Nodes} <- groups({<<>>, <<>>}), lists:member(Node, Nodes),
                               2 * length([N || N <- Nodes, lists:member(N, Cluster)]) =< length(Nodes)]};
        Error -> Error
    end.

%% Those that another node is to lead, and which: of the nodes that run and are not being drained. Those
%% without a leader are left alone.
-spec to_rebalance(patterns()) -> {ok, [{rabbit_exchange:name(), node_name()}]}.
to_rebalance(Patterns) ->
    Said = ask_all(),
    Leaders = maps:from_list([{XName, Node} || {Node, #{leads := Led}} <- Said, XName <- Led]),
    Holding = [{Node, sets:from_list(Held)} || {Node, #{holds := Held, draining := false}} <- Said],
    Moves = rabbit_delay_balance:moves(
              [{XName, Leader, [Leader | [Node || {Node, Held} <- Holding, Node =/= Leader,
                                                  lists:member(Node, Nodes), sets:is_element(XName, Held)]]}
               || {XName, Nodes} <- groups(Patterns), #{XName := Leader} <- [Leaders]]),
    {ok, [{XName, atom_to_binary(To)} || {XName, To} <- Moves]}.

%% How many each node of the cluster leads that answers.
-spec leaders() -> {ok, [{node(), non_neg_integer()}]}.
leaders() ->
    {ok, [{Node, length(Led)} || {Node, #{leads := Led}} <- ask_all()]}.

ask_all() ->
    Nodes = [Node || Node <- rabbit_delay_broker:cluster_nodes(),
                     Node =:= node() orelse lists:member(Node, nodes())],
    [{Node, Said} || {Node, {ok, Said}} <- lists:zip(Nodes, erpc:multicall(Nodes, ?MODULE, leads, [], ?ASK_MS))].

%% Of which exchanges this node has members, and which of them it leads. Asked by others.
-spec leads() -> #{draining := boolean(), leads | holds := [rabbit_exchange:name()]}.
leads() ->
    #{draining => rabbit_delay_local_member:is_draining(),
      leads => rabbit_delay_table:led(),
      holds => [XName || {XName, _} <- rabbit_delay_table:members()]}.

%% The exchanges that would be without a majority of their members without this node.
-spec critical() -> {ok, single_node_cluster | under_maintenance | [rabbit_exchange:name()]} | error().
critical() ->
    case {rabbit_delay_broker:cluster_nodes(), rabbit_delay_local_member:is_draining()} of
        {[_], _} -> {ok, single_node_cluster};
        {_, true} -> {ok, under_maintenance};
        {_, false} -> case rabbit_delay_members:critical(node()) of
                          {ok, XNames} -> {ok, lists:sort(XNames)};
                          {error, Why} -> unavailable("~ts", [Why])
                      end
    end.

%% ---------------------------------------------------------------------------------- groups

%% Those that the broker's metadata names, of the nodes of a cluster.
groups({VHosts, Exchanges}) ->
    [{XName, Nodes} || X <- rabbit_delay_broker:delayed_exchanges(), Nodes <- [rabbit_delay_group:nodes_of(X)],
                       Nodes =/= none,
                       #resource{virtual_host = VHost, name = Name} = XName
                           <- [rabbit_delay_broker:exchange_name(X)],
                       re:run(VHost, VHosts) =/= nomatch, re:run(Name, Exchanges) =/= nomatch].

%% The nodes; none of an exchange that has delayed nothing.
members(XName) ->
    case rabbit_delay_group:find(XName) of
        {ok, Group} -> [Node || {_, Node} <- rabbit_delay_group:ids(Group)];
        _ -> [node() || rabbit_delay_table:leads(XName)]
    end.

with_members(XName, Fun) ->
    case rabbit_delay_exchange:show(XName, []) of
        {ok, _} ->
            case members(XName) of
                [] -> without_members(XName);
                Nodes -> Fun(Nodes)
            end;
        {error, not_found} ->
            {error, {not_found, text("there is no delayed ~ts", [rabbit_delay_text:rs(XName)])}}
    end.

%% What is here and has not been started is not nothing.
without_members(XName) ->
    case rabbit_delay_raft:find_member(XName) of
        none -> conflict("~ts has no members: it has not delayed anything yet", [rabbit_delay_text:rs(XName)]);
        {ok, _} -> unavailable("what ~ts holds is not at hand: try again", [rabbit_delay_text:rs(XName)])
    end.

with_member_or_not(XName, Name, Known, Fun) ->
    with_members(XName, fun (Nodes) ->
                                case node_of(Name, Known) of
                                    {ok, Node} -> Fun(Node, lists:member(Node, Nodes));
                                    Error -> Error
                                end
                        end).

%% A node that was forgotten may still have members.
known_nodes(XNames) ->
    rabbit_delay_broker:cluster_nodes() ++ lists:append([members(XName) || XName <- XNames]).

%% No name becomes an atom that is none.
node_of(Name, Known) ->
    case [Node || Node <- Known, atom_to_binary(Node) =:= Name] of
        [Node | _] -> {ok, Node};
        [] -> {error, {not_found, text("there is no node ~ts in the cluster", [rabbit_delay_text:escaped(Name)])}}
    end.

takes_members(Node) ->
    try erpc:call(Node, rabbit_delay_system, status, [], ?ASK_MS) of
        up -> ok;
        starting -> unavailable("delayed messages are not available on node ~s yet: try again", [Node]);
        {_, Why} -> unavailable("delayed messages are not available on node ~s: ~ts", [Node, Why])
    catch
        error:{exception, undef, _} -> conflict("node ~s does not run this plugin", [Node]);
        error:{erpc, _} -> unavailable("node ~s does not answer", [Node])
    end.

conflict(Format, Args) -> {error, {conflict, text(Format, Args)}}.

unavailable(Format, Args) -> {error, {unavailable, text(Format, Args)}}.

text(Format, Args) -> unicode:characters_to_binary(io_lib:format(Format, Args)).
