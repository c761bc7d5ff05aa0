%% SPDX-License-Identifier: MPL-2.0

%% Where the dead letters of a vhost's queues can go: the graph of queues and exchanges.
%%
%% A message is dead-lettered with the queue's dead-letter routing key, or with the one that it was
%% published with. Of that all is known that the bindings through which it came to the queue say: a
%% key, a pattern, or nothing. So a node is a queue, or a routing by an exchange of such keys; and
%% where many routings end at the same bindings, those are a node, so that the graph stays small.
%%
%% Pure functions of a topology, in the process that asks.
-module(rabbit_delay_dead_letter_routes).

-export([index/2, arrivals/3, explore/2, leads_to_queue/2, targets/3, cycles/2,
         components/1, is_certain/3]).

-export_type([index/0, graph/0, node_/0, keys/0, source/0]).

%% Keys of dead letters that are followed for each queue.
-define(MOST_BROUGHT, 256).
-define(MOST_STEPS, 100000).
%% What a key costs that is kept: it is an edge of the graph.
-define(STEPS_OF_KEY, 10).

-type keys() :: {key, binary()} | {pattern, [binary()]} | any.

-type node_() :: {queue, binary()} |
                 {routing, Exchange :: binary(), keys()} |
                 %% the queues bound with a key, with any, or in a way that each message matches
                 {bound, Exchange :: binary(), {key, binary()} | all | whatever}.

-type graph() :: #{node_() => [node_()]}.

%% Of a queue: its dead-letter exchange and its dead-letter routing key.
-type source() :: {Exchange :: binary(), Key :: binary() | undefined}.

-type trie() :: #{binary() | {literal, binary()} | leaf => trie() | binary()}.

-type index() :: #{queues := #{binary() => term()},
                   types := #{binary() => direct | topic | fanout | headers | other},
                   alternates := #{binary() => binary()},
                   %% the bindings of an exchange, by key and together
                   queues_by_key := #{{binary(), binary()} => [binary()]},
                   exchanges_by_key := #{{binary(), binary()} => [binary()]},
                   queues_of := #{binary() => [binary()]},
                   exchanges_of := #{binary() => [binary()]},
                   %% those of them that each message matches
                   queues_always := #{binary() => [binary()]},
                   exchanges_always := #{{binary(), binary()} => [binary()]},
                   tries := #{binary() => trie()},
                   inbound := #{binary() => [keys()]},
                   %% keys that dead letters bring, besides
                   brought := #{binary() => #{keys() => true}},
                   sources := #{binary() => source()}}.

%% Sources are the queues that dead-letter to an exchange that exists.
-spec index(rabbit_delay_topology:vhost(), #{binary() => source()}) -> index().
index(#{queues := Queues, exchanges := Exchanges, bindings := Bindings, policies := Policies},
      Sources) ->
    Types = maps:map(fun (_, X) -> routing_type(X) end, Exchanges),
    Compiled = rabbit_delay_queue_settings:compile(
                 [P || #{definition := #{<<"alternate-exchange">> := _}} = P <- Policies]),
    Alternates = maps:fold(
                   fun (Name, X, Acc) ->
                           case rabbit_delay_queue_settings:of_exchange(
                                  X, <<"alternate-exchange">>, Compiled) of
                               {ok, Alternate} when is_map_key(Alternate, Exchanges) ->
                                   Acc#{Name => Alternate};
                               _ ->
                                   Acc
                           end
                   end, #{}, Exchanges),
    Usable = [B || #{source := X} = B <- Bindings, X =/= <<>>,
                   can_match(maps:get(X, Types, none), B)],
    ByKey = fun (Kind) ->
                    group([{{X, Key}, D}
                           || #{source := X, key := Key, destination := {K, D}} <- Usable,
                              K =:= Kind])
            end,
    Of = fun (Kind) ->
                 group([{X, D} || #{source := X, destination := {K, D}} <- Usable, K =:= Kind])
         end,
    Index = #{queues => Queues, types => Types, alternates => Alternates,
              queues_by_key => ByKey(queue), exchanges_by_key => ByKey(exchange),
              queues_of => Of(queue), exchanges_of => Of(exchange), tries => tries(Types, Usable),
              queues_always => group([{X, D} || #{source := X, destination := {queue, D}} = B <- Usable,
                                                always_matches(maps:get(X, Types), B)]),
              exchanges_always => group([{{X, D}, D}
                                         || #{source := X, destination := {exchange, D}} = B <- Usable,
                                            always_matches(maps:get(X, Types), B)]),
              inbound => inbound(Types, Usable, Sources), brought => #{}, sources => Sources},
    Index#{brought := brought(Index)}.

%% Whether any message goes by that binding.
always_matches(fanout, _) -> true;
always_matches(topic, #{key := Key}) -> Key =:= <<"#">>;
always_matches(headers, #{arguments := Arguments}) ->
    WithX = maps:get(<<"x-match">>, Arguments, <<"all">>) =:= <<"all-with-x">>,
    lists:member(maps:get(<<"x-match">>, Arguments, <<"all">>), [<<"all">>, <<"all-with-x">>])
        andalso not lists:any(fun (<<"x-match">>) -> false;
                                  (<<"x-", _/binary>>) -> WithX;
                                  (_) -> true
                              end, maps:keys(Arguments));
always_matches(_, _) -> false.

%% The keys that queues' dead letters bring to the next ones, and those on, where they keep them. More
%% than some of a queue are as good as any; and after so many steps those that are found will do.
brought(#{sources := Sources} = Index) ->
    Ways = [{X, Keys} || {Queue, {X, _} = Source} <- maps:to_list(Sources),
                         {key, _} = Keys <- arrivals(Queue, Source, Index)],
    brought(Ways, #{}, #{}, ?MOST_STEPS, Index#{sources := #{}}, Sources).

brought([{_, _} = Way | Ways], Done, Brought, Steps, Index, Sources)
  when is_map_key(Way, Done); Steps < 0 ->
    brought(Ways, Done, Brought, Steps, Index, Sources);
brought([{X, Keys} = Way | Ways], Done, Brought0, Steps, Index, Sources) ->
    Reached = maps:keys(explore([{routing, X, Keys}], Index)),
    {Next, Brought} =
        lists:foldl(
          fun ({queue, To}, {Next, Acc}) ->
                  Set = maps:get(To, Acc, #{}),
                  case {maps:get(To, Sources, none), is_new(Keys, Set)} of
                      {{OnTo, undefined}, true} -> {[{OnTo, Keys} | Next], Acc#{To => Set#{Keys => true}}};
                      _ -> {Next, Acc}
                  end;
              (_, Acc) ->
                  Acc
          end, {[], Brought0}, Reached),
    brought(lists:usort(Next) ++ Ways, Done#{Way => true}, Brought,
            Steps - length(Reached) - ?STEPS_OF_KEY * length(Next), Index, Sources);
brought([], _, Brought, _, _, _) ->
    Brought.

is_new(Keys, Set) -> not is_map_key(Keys, Set) andalso map_size(Set) < ?MOST_BROUGHT.

group(Pairs) ->
    lists:foldl(fun ({Key, Value}, Acc) ->
                        maps:update_with(Key, fun (Values) -> [Value | Values] end, [Value], Acc)
                end, #{}, Pairs).

%% How an exchange routes; a delayed one as its underlying type.
routing_type(#{type := <<"x-delayed-message">>, arguments := #{<<"x-delayed-type">> := Type}}) ->
    routing_type(Type);
routing_type(#{type := Type}) -> routing_type(Type);
routing_type(<<"direct">>) -> direct;
routing_type(<<"topic">>) -> topic;
routing_type(<<"fanout">>) -> fanout;
routing_type(<<"headers">>) -> headers;
routing_type(_) -> other.

%% Which messages arrive is not known, but some headers bindings match none: "any" of nothing. Names
%% that begin with x- count only if x-match says so.
can_match(none, _) ->
    false;
can_match(headers, #{arguments := #{<<"x-match">> := Match} = Arguments})
  when Match =:= <<"any">>; Match =:= <<"any-with-x">> ->
    lists:any(fun (<<"x-match">>) -> false;
                  (<<"x-", _/binary>>) -> Match =:= <<"any-with-x">>;
                  (_) -> true
              end, maps:keys(Arguments));
can_match(_, _) ->
    true.

tries(Types, Bindings) ->
    lists:foldl(
      fun (#{source := X, key := Key}, Acc) ->
              case Types of
                  #{X := Type} when Type =:= topic; Type =:= direct ->
                      Words = case Type of
                                  topic -> topic_words(Key);
                                  %% Without wildcards.
                                  direct -> literal(topic_words(Key))
                              end,
                      Acc#{X => insert(Words, Key, maps:get(X, Acc, #{}))};
                  _ ->
                      Acc
              end
      end, #{}, Bindings).

insert([], Key, Trie) -> Trie#{leaf => Key};
insert([Word | Words], Key, Trie) -> Trie#{Word => insert(Words, Key, maps:get(Word, Trie, #{}))}.

-spec topic_words(binary()) -> [binary()].
topic_words(<<>>) -> [];
topic_words(Key) -> binary:split(Key, <<".">>, [global]).

%% With which keys messages come to a queue through its bindings, and by dead-lettering through the
%% default exchange.
inbound(Types, Bindings, Sources) ->
    ByBinding = lists:foldl(
                  fun (#{source := X, key := Key, destination := {queue, Queue}}, Acc) ->
                          Keys = keys_of(maps:get(X, Types, other), Key),
                          maps:update_with(Queue, fun (Set) -> Set#{Keys => true} end,
                                           #{Keys => true}, Acc);
                      (_, Acc) ->
                          Acc
                  end, #{}, Bindings),
    All = maps:fold(
            fun (_, {<<>>, Key}, Acc) when Key =/= undefined ->
                    maps:update_with(Key, fun (Set) -> Set#{{key, Key} => true} end,
                                     #{{key, Key} => true}, Acc);
                (_, _, Acc) ->
                    Acc
            end, ByBinding, Sources),
    maps:map(fun (_, #{any := true}) -> [any];
                 (_, Set) -> maps:keys(Set)
             end, All).

keys_of(direct, Key) ->
    {key, Key};
keys_of(topic, Key) ->
    case topic_words(Key) of
        %% What begins so says little, and is dear to compare.
        [Wild | _] when Wild =:= <<"#">>; Wild =:= <<"*">> ->
            any;
        Words ->
            case lists:any(fun (Word) -> Word =:= <<"#">> orelse Word =:= <<"*">> end, Words) of
                true -> {pattern, Words};
                false -> {key, Key}
            end
    end;
keys_of(_, _) ->
    any.

%% The keys with which a queue's messages are dead-lettered. A queue without bindings is published
%% to by its name.
-spec arrivals(binary(), source(), index()) -> [keys()].
arrivals(_, {_, Key}, _) when Key =/= undefined -> [{key, Key}];
arrivals(Queue, _, #{inbound := Inbound, brought := Brought}) ->
    lists:usort(maps:get(Queue, Inbound, [{key, Queue}]) ++ maps:keys(maps:get(Queue, Brought, #{}))).

next({queue, Queue}, #{sources := Sources} = Index) ->
    case Sources of
        #{Queue := {X, _} = Source} -> [{routing, X, Keys} || Keys <- arrivals(Queue, Source, Index)];
        _ -> []
    end;
next({bound, X, all}, #{queues_of := QueuesOf} = Index) ->
    existing(maps:get(X, QueuesOf, []), Index);
next({bound, X, whatever}, #{queues_always := QueuesAlways} = Index) ->
    existing(maps:get(X, QueuesAlways, []), Index);
next({bound, X, {key, Key}}, #{queues_by_key := QueuesByKey} = Index) ->
    existing(maps:get({X, Key}, QueuesByKey, []), Index);
next({routing, <<>>, {key, Key}}, Index) ->
    existing([Key], Index);
next({routing, <<>>, _}, _) ->
    [];
next({routing, X, Keys} = Node, #{alternates := Alternates} = Index) ->
    Found = routed(X, Keys, Index),
    case Alternates of
        #{X := Alternate} ->
            case Found =:= [] orelse not lists:any(fun (To) -> is_certain(Node, To, Index) end, Found) of
                true -> [{routing, Alternate, Keys} | Found];
                false -> Found
            end;
        _ ->
            Found
    end.

existing(Names, #{queues := Queues}) -> [{queue, Name} || Name <- Names, is_map_key(Name, Queues)].

routed(X, Keys, #{types := Types} = Index) ->
    case {maps:get(X, Types, none), Keys} of
        {none, _} -> [];
        {direct, {key, Key}} -> by_keys(X, [Key], Keys, Index);
        {direct, {pattern, Words}} -> by_keys(X, overlapping(Words, X, Index), Keys, Index);
        {topic, {key, Key}} -> by_keys(X, overlapping(literal(topic_words(Key)), X, Index), Keys, Index);
        {topic, {pattern, Words}} -> by_keys(X, overlapping(Words, X, Index), Keys, Index);
        _ -> all(X, Keys, Index)
    end.

by_keys(X, BindingKeys, Keys, #{queues_by_key := Queues, exchanges_by_key := Exchanges}) ->
    [{bound, X, {key, Key}} || Key <- BindingKeys, is_map_key({X, Key}, Queues)]
        ++ [{routing, To, Keys} || Key <- BindingKeys, To <- maps:get({X, Key}, Exchanges, [])].

all(X, Keys, #{queues_of := Queues, queues_always := Always, exchanges_of := Exchanges}) ->
    [{bound, X, all} || is_map_key(X, Queues)]
        ++ [{bound, X, whatever} || is_map_key(X, Always)]
        ++ [{routing, To, Keys} || To <- maps:get(X, Exchanges, [])].

%% Whether each message with these keys takes this way, whatever its headers are. (Where nothing else is
%% bound, an alternate exchange gets all.)
-spec is_certain(node_(), node_(), index()) -> boolean().
is_certain({routing, _, _}, {bound, _, whatever}, _) -> true;
is_certain({routing, _, _}, {bound, _, all}, _) -> false;
is_certain({routing, X, {key, _}}, {bound, X, {key, _}}, _) -> true;
is_certain({routing, X, _}, {bound, X, {key, <<"#">>}}, #{types := Types}) ->
    maps:get(X, Types) =:= topic;
is_certain({routing, _, _}, {bound, _, _}, _) -> false;
is_certain({routing, X, Keys}, {routing, To, _}, #{types := Types, exchanges_always := Always,
                                                   alternates := Alternates,
                                                   queues_of := Queues, exchanges_of := Exchanges}) ->
    is_map_key({X, To}, Always)
        orelse (element_of(Keys) =:= key andalso lists:member(maps:get(X, Types, none), [direct, topic]))
        orelse (maps:get(X, Alternates, none) =:= To andalso not is_map_key(X, Queues)
                andalso not is_map_key(X, Exchanges));
is_certain(_, _, _) -> true.

element_of({Kind, _}) -> Kind;
element_of(any) -> any.

%% A message's key may have such words; they stand for themselves.
literal(Words) ->
    [case Word of
         _ when Word =:= <<"#">>; Word =:= <<"*">> -> {literal, Word};
         _ -> Word
     end || Word <- Words].

%% The binding keys of an exchange that some routing key matches which also matches these words. All
%% positions in the trie are followed at once, each one once, so that no number of # is dear.
overlapping(Words, X, #{tries := Tries}) ->
    case Tries of
        #{X := Trie} -> overlap(Words, #{[] => Trie});
        _ -> []
    end.

overlap(Words, Positions0) ->
    Positions = skip_hashes(maps:to_list(Positions0), Positions0),
    case Words of
        [] ->
            [Key || #{leaf := Key} <- maps:values(Positions)];
        [<<"#">> | Rest] ->
            overlap(Rest, beyond(maps:to_list(Positions), Positions));
        [Word | Rest] ->
            overlap(Rest, maps:fold(fun (Path, Trie, Acc) -> step(Word, Path, Trie, Acc) end,
                                    #{}, Positions))
    end.

%% A # of the trie may stand for nothing.
skip_hashes([], Positions) ->
    Positions;
skip_hashes([{Path, Trie} | Rest], Positions) ->
    case Trie of
        #{<<"#">> := Below} when not is_map_key([<<"#">> | Path], Positions) ->
            At = {[<<"#">> | Path], Below},
            skip_hashes([At | Rest], maps:put(element(1, At), Below, Positions));
        _ ->
            skip_hashes(Rest, Positions)
    end.

%% Where one word, which may be the wildcard *, leads from a position.
step(Word, Path, Trie, Acc0) ->
    Acc1 = case Path of
               %% The # that was passed takes this word too.
               [<<"#">> | _] -> Acc0#{Path => Trie};
               _ -> Acc0
           end,
    Next = case Word of
               <<"*">> -> [W || W <- maps:keys(Trie), W =/= leaf, W =/= <<"#">>];
               _ -> [W || W <- [Word, {literal, Word}, <<"*">>], is_map_key(W, Trie)]
           end,
    lists:foldl(fun (W, Acc) -> Acc#{[W | Path] => maps:get(W, Trie)} end, Acc1, Next).

%% A # of the words may stand for any number: everything below.
beyond([], Positions) ->
    Positions;
beyond([{Path, Trie} | Rest], Positions) ->
    Below = [{[W | Path], T} || {W, T} <- maps:to_list(Trie), W =/= leaf,
                                not is_map_key([W | Path], Positions)],
    beyond(Below ++ Rest, maps:merge(Positions, maps:from_list(Below))).

%% Whether some queue gets what this routing routes.
-spec leads_to_queue(node_(), graph()) -> boolean().
leads_to_queue(Node, Graph) -> leads_to_queue([Node], #{}, Graph).

leads_to_queue([], _, _) ->
    false;
leads_to_queue([{routing, _, _} = Node | Rest], Seen, Graph) when is_map_key(Node, Seen) ->
    leads_to_queue(Rest, Seen, Graph);
leads_to_queue([{routing, _, _} = Node | Rest], Seen, Graph) ->
    leads_to_queue(maps:get(Node, Graph) ++ Rest, Seen#{Node => true}, Graph);
leads_to_queue([_ | _], _, _) ->
    true.

%% Queues that a routing can reach, through exchanges only; no more than Max of them.
-spec targets(node_(), graph(), Max :: pos_integer()) -> [binary()].
targets(Node, Graph, Max) -> targets([Node], #{}, Graph, Max, #{}).

targets(Nodes, _, _, Max, Found) when Nodes =:= []; map_size(Found) >= Max ->
    lists:sort(maps:keys(Found));
targets([{queue, Queue} | Rest], Seen, Graph, Max, Found) ->
    targets(Rest, Seen, Graph, Max, Found#{Queue => true});
targets([Node | Rest], Seen, Graph, Max, Found) when is_map_key(Node, Seen) ->
    targets(Rest, Seen, Graph, Max, Found);
targets([Node | Rest], Seen, Graph, Max, Found) ->
    Next = lists:sublist(maps:get(Node, Graph), Max),
    targets(Next ++ Rest, Seen#{Node => true}, Graph, Max, Found).

%% The graph as far as it can be reached from these nodes.
-spec explore([node_()], index()) -> graph().
explore(Nodes, Index) -> explore(Nodes, Index, #{}).

explore([], _, Graph) ->
    Graph;
explore([Node | Rest], Index, Graph) when is_map_key(Node, Graph) ->
    explore(Rest, Index, Graph);
explore([Node | Rest], Index, Graph) ->
    Next = next(Node, Index),
    Unknown = lists:foldl(fun (N, Acc) when is_map_key(N, Graph) -> Acc;
                              (N, Acc) -> [N | Acc]
                          end, Rest, Next),
    explore(Unknown, Index, Graph#{Node => Next}).

%% ------------------------------------------------------------------------------------ cycles

%% The strongly connected parts that have a cycle, of the nodes that Keep holds for.
-spec cycles(fun((node_()) -> boolean()), graph()) -> [[node_()]].
cycles(Keep, Graph) ->
    parts(fun digraph_utils:cyclic_strong_components/1,
          maps:filter(fun (Node, _) -> Keep(Node) end, Graph)).

%% The parts of a graph that no edge connects, whichever way edges go.
-spec components(graph()) -> [[node_()]].
components(Graph) ->
    parts(fun digraph_utils:components/1, Graph).

%% In an order that does not depend on tables.
parts(Find, Graph) ->
    G = digraph:new(),
    try
        maps:foreach(fun (Node, _) -> digraph:add_vertex(G, Node) end, Graph),
        maps:foreach(fun (Node, Next) ->
                             [digraph:add_edge(G, Node, To) || To <- Next, is_map_key(To, Graph)]
                     end, Graph),
        lists:sort([lists:sort(Part) || Part <- Find(G)])
    after
        digraph:delete(G)
    end.
