%% SPDX-License-Identifier: MPL-2.0

%% The doctor's findings as text for people and as JSON for programs.
%%
%% Pure functions. Names in the text are escaped for terminals; the JSON has a version.
-module(rabbit_delay_doctor_report).

-export([text/1, json/1, graph_json/1, summary/1, worst/1]).

%% A drawing of more is of no use.
-define(MAX_NODES, 2000).

-spec text([rabbit_delay_doctor:finding()]) -> binary().
text([]) ->
    <<"No traps found.\n">>;
text(Findings) ->
    {Open, Accepted} = rabbit_delay_doctor_accepted:split(Findings),
    unicode:characters_to_binary(
      [lists:join($\n, [text_of(Finding) || Finding <- Open]),
       ["No traps found but what is accepted.\n" || Open =:= []],
       [io_lib:format("~naccepted ~s: ~s \"~ts\" in vhost \"~ts\": ~ts~n",
                      [Rule, Kind, rabbit_delay_text:escaped(Name), rabbit_delay_text:escaped(VHost),
                       rabbit_delay_text:escaped(Reason)])
        || #{rule := Rule, kind := Kind, name := Name, vhost := VHost, accepted := Reason} <- Accepted]]).

text_of(#{rule := Rule, severity := Severity, vhost := VHost, kind := Kind, name := Name,
          why := Why, mend := Mend, commands := Commands}) ->
    [io_lib:format("~s ~s: ~s \"~ts\" in vhost \"~ts\"~n",
                   [Severity, Rule, Kind, rabbit_delay_text:escaped(Name),
                    rabbit_delay_text:escaped(VHost)]),
     "  ", rabbit_delay_text:escaped(Why), "\n  ", rabbit_delay_text:escaped(Mend), $\n,
     [["    ", rabbit_delay_text:escaped(Command), $\n] || Command <- Commands]].

%% One object: how many findings of each severity, the findings, and those that are accepted. Shapes:
%% docs/dead-letters.md.
-spec json([rabbit_delay_doctor:finding()]) -> binary().
json(Findings) ->
    {Open, Accepted} = rabbit_delay_doctor_accepted:split(Findings),
    iolist_to_binary(
      rabbit_json:encode(#{<<"version">> => 1, <<"counts">> => counts(Open),
                           <<"findings">> => [json_of(Finding) || Finding <- Open],
                           <<"accepted">> => [json_of(Finding) || Finding <- Accepted]})).

%% What rabbit_delay_doctor:live_graph/1 found. A node is a queue, or an exchange that routes dead
%% letters with certain keys; an edge is a pair of their numbers. Without the queues that neither
%% dead-letter nor get dead letters. Nodes on the same circle have the same number; what leads nowhere
%% is told.
-spec graph_json(rabbit_delay_doctor:drawn()) -> binary().
graph_json({Graph0, Missing, Messages}) ->
    Graph = lists:foldl(fun ({Queue, X}, Acc) ->
                                Acc#{{queue, Queue} => [{missing, X}], {missing, X} => []}
                        end, Graph0, Missing),
    Shown = [Node || Node <- lists:sort(maps:keys(Graph)), element(1, Node) =/= bound],
    Numbers = maps:from_list(lists:zip(lists:sublist(Shown, ?MAX_NODES),
                                       lists:seq(0, min(length(Shown), ?MAX_NODES) - 1))),
    Edges = [[From, To] || {Node, From} <- maps:to_list(Numbers),
                           Next <- beyond(maps:get(Node, Graph), Graph),
                           {ok, To} <- [maps:find(Next, Numbers)]],
    Parts = rabbit_delay_dead_letter_routes:cycles(fun (_) -> true end, Graph),
    Circles = maps:from_list([{Node, N} || {N, Part} <- lists:zip(lists:seq(1, length(Parts)), Parts),
                                           Node <- Part]),
    Node = fun (N) -> maps:merge(node_json(N), more_json(N, Graph, Circles, Messages)) end,
    iolist_to_binary(
      rabbit_json:encode(#{<<"version">> => 1,
                           <<"nodes">> => [Node(N) || N <- lists:sublist(Shown, ?MAX_NODES)],
                           <<"edges">> => lists:sort(Edges),
                           <<"truncated">> => length(Shown) > ?MAX_NODES})).

%% Bindings that several routings share are no node of a drawing.
beyond(Nodes, Graph) ->
    lists:usort(lists:append([case Node of
                                  {bound, _, _} -> beyond(maps:get(Node, Graph), Graph);
                                  _ -> [Node]
                              end || Node <- Nodes])).

more_json(Node, Graph, Circles, Messages) ->
    maps:from_list([{<<"circle">>, N} || {ok, N} <- [maps:find(Node, Circles)]]
                   ++ [{<<"messages">>, N} || {queue, Name} <- [Node],
                                              {ok, N} <- [maps:find(Name, Messages)]]
                   ++ [{<<"leads_nowhere">>, true} || leads_nowhere(Node, Graph)]).

%% With a key that is not known the default exchange leads to whatever queue has that name.
leads_nowhere({routing, <<>>, any}, _) -> false;
leads_nowhere({routing, <<>>, {pattern, _}}, _) -> false;
leads_nowhere({routing, _, _} = Node, Graph) ->
    not rabbit_delay_dead_letter_routes:leads_to_queue(Node, Graph);
leads_nowhere({missing, _}, _) -> true;
leads_nowhere({queue, _}, _) -> false.

node_json({queue, Name}) ->
    #{<<"kind">> => <<"queue">>, <<"name">> => rabbit_delay_text:printable(Name)};
node_json({missing, X}) ->
    #{<<"kind">> => <<"missing_exchange">>, <<"name">> => rabbit_delay_text:printable(X)};
node_json({routing, X, Keys}) ->
    #{<<"kind">> => <<"exchange">>, <<"name">> => rabbit_delay_text:printable(X),
      <<"key">> => case Keys of
                       {key, Key} -> rabbit_delay_text:printable(Key);
                       {pattern, Words} -> rabbit_delay_text:printable(lists:join($., Words));
                       any -> null
                   end}.

json_of(Finding) ->
    maps:fold(fun (commands, Commands, Acc) ->
                      Acc#{<<"commands">> => [rabbit_delay_text:printable(Command)
                                              || Command <- Commands]};
                  (Key, Value, Acc) when is_atom(Value) ->
                      Acc#{atom_to_binary(Key, utf8) => atom_to_binary(Value, utf8)};
                  (Key, Value, Acc) ->
                      Acc#{atom_to_binary(Key, utf8) => rabbit_delay_text:printable(Value)}
              end, #{}, Finding).

counts(Findings) ->
    lists:foldl(fun (#{severity := Severity}, Acc) ->
                        maps:update_with(atom_to_binary(Severity, utf8), fun (N) -> N + 1 end, Acc)
                end, #{<<"error">> => 0, <<"warning">> => 0, <<"info">> => 0}, Findings).

-spec summary([rabbit_delay_doctor:finding()]) -> binary().
summary(Findings) ->
    {Open, Accepted} = rabbit_delay_doctor_accepted:split(Findings),
    #{<<"error">> := Errors, <<"warning">> := Warnings, <<"info">> := Infos} = counts(Open),
    iolist_to_binary([io_lib:format("dead-lettering: ~b error, ~b warning, ~b info",
                                    [Errors, Warnings, Infos]),
                      [io_lib:format(", ~b accepted", [length(Accepted)]) || Accepted =/= []]]).

%% 0 where there is none.
-spec worst([rabbit_delay_doctor:finding()]) -> 0..3.
worst(Findings) ->
    {Open, _} = rabbit_delay_doctor_accepted:split(Findings),
    lists:max([0 | [rabbit_delay_doctor:severity_rank(S) || #{severity := S} <- Open]]).
