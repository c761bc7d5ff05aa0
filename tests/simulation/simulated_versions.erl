%% SPDX-License-Identifier: MPL-2.0

%% Versions of the machine in a simulated cluster, as Ra has them. In a part of the seeds nodes begin with the
%% earlier one, are upgraded one after the other, and some are taken back for a while. An entry of the leader's
%% says which is in effect from there on: of Ra before 2.16 the first one of a term, which names the leader's own
%% version; of later ones another one in the midst of a term, when all members have said that they have it.
%%
%% A node with the earlier version is its member without what the later one knows, and processes that hear of no
%% later one: they are the same code.
-module(simulated_versions).

-export([begin_all/0, is_mixed/0, of_node/1, set/2, earlier_ones/0, may_go_back/0]).
-export([in_effect/1, appended/2, raised_at/1, goes_up_to/1, needed_by/1]).
-export([of_first/2, votes/4, has_heard/3, shown_to/2]).

-define(EARLIER, 2).
-define(LATER, 3).
%% So many of 100 seeds have nodes with the earlier one.
-define(MIXED, 40).

-type rule() :: ra_2_2 | ra_2_14 | ra_3.

begin_all() ->
    IsMixed = simulated_process:chance(?MIXED),
    Nodes = simulated_process:all_nodes(),
    put_all([{rule, simulated_process:one_of([ra_2_2, ra_2_14, ra_3])},
             {mixed, IsMixed},
             {raises, [{0, case IsMixed of true -> ?EARLIER; false -> ?LATER end}]}
             | [{{node, Node}, case IsMixed andalso simulated_process:chance(70) of
                                   true -> ?EARLIER;
                                   false -> ?LATER
                               end} || Node <- Nodes]]),
    _ = IsMixed andalso simulated_process:note("~p, versions ~p", [known(rule), [of_node(Node) || Node <- Nodes]]),
    ok.

put_all(Rows) -> lists:foreach(fun ({Key, Value}) -> erlang:put({versions, Key}, Value) end, Rows).

known(Key) -> erlang:get({versions, Key}).

is_mixed() -> known(mixed).

%% The latest that a node knows.
of_node(Node) -> known({node, Node}).

set(Node, later) -> put_all([{{node, Node}, ?LATER}]);
set(Node, earlier) -> put_all([{{node, Node}, ?EARLIER}]).

earlier_ones() -> [Node || Node <- simulated_process:all_nodes(), of_node(Node) < ?LATER].

%% Whether a node may be taken back to the earlier one.
may_go_back() -> is_mixed() andalso length(known(raises)) =:= 1.

%% ------------------------------------------------------------------------------- the log

%% After that entry.
in_effect(Index) -> hd([Version || {At, Version} <- known(raises), At =< Index]).

%% One that names this version was committed.
appended(Index, Version) ->
    case known(raises) of
        [{_, Before} | _] = Raises when Version > Before ->
            simulated_process:note("machine ~b is in effect from ~b on", [Version, Index]),
            put_all([{raises, [{Index, Version} | Raises]}]);
        _ ->
            ok
    end.

%% What that entry raised it from, and to.
raised_at(Index) ->
    case [Version || {At, Version} <- known(raises), At =:= Index, Index > 0] of
        [Version] -> {in_effect(Index - 1), Version};
        [] -> none
    end.

%% A member applies nothing from there on where a later one than its own is in effect.
goes_up_to(Node) ->
    lists:min([infinity | [At - 1 || {At, Version} <- known(raises), Version > of_node(Node)]]).

%% The first that knows it.
needed_by({enqueue, 6, _, _, _, _}) -> 3;
needed_by({settle, 3, _}) -> 3;
needed_by({purge, 1}) -> 3;
needed_by(_) -> 2.

%% ------------------------------------------------------------------------------- elections

%% What the first entry of a node's term names, which has applied so much.
of_first(Node, Applied) ->
    case known(rule) of
        ra_3 -> in_effect(Applied);
        _ -> of_node(Node)
    end.

%% As what is in effect has come to its notice.
votes(Voter, Voter, _, _) -> true;
votes(Voter, Candidate, Applied, Stored) ->
    InEffect = in_effect(case goes_up_to(Voter) of
                             Applied when Stored > Applied -> Applied + 1;
                             _ -> Applied
                         end),
    grants(known(rule), InEffect, of_node(Voter), of_node(Candidate)).

-spec grants(rule(), InEffect :: integer(), Ours :: integer(), Theirs :: integer()) -> boolean().
grants(ra_2_2, InEffect, Ours, Theirs) -> Theirs >= InEffect andalso Theirs =< Ours;
grants(_, InEffect, Ours, Theirs) -> Theirs =:= InEffect orelse Theirs >= InEffect andalso Theirs =< Ours.

%% A leader of this term has asked the others that hear it; those that have said to know as much as it does are not
%% asked again. The version that all have, where others wait for that.
has_heard(Leader, Term, Others) ->
    Ours = of_node(Leader),
    Before = case known({heard, Leader}) of
                 {Term, Heard} -> Heard;
                 _ -> #{}
             end,
    Now = lists:foldl(fun (Node, Heard) ->
                              case Heard of
                                  #{Node := Known} when Known >= Ours -> Heard;
                                  _ -> Heard#{Node => of_node(Node)}
                              end
                      end, Before, Others),
    ok = put_all([{{heard, Leader}, {Term, Now}}]),
    case known(rule) =:= ra_3 andalso map_size(Now) =:= length(simulated_process:all_nodes()) - 1 of
        true -> lists:min([Ours | maps:values(Now)]);
        false -> none
    end.

%% What a process on a node makes of an answer.
shown_to(Node, {ok, #{machine_version := Version} = Note}) ->
    {ok, Note#{machine_version := min(Version, of_node(Node))}};
shown_to(_, Reply) ->
    Reply.
