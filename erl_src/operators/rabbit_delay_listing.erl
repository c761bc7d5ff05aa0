%% SPDX-License-Identifier: MPL-2.0

%% What operators are shown of delayed exchanges, the same on every node of a cluster. What an exchange
%% holds is what the node that leads its group says; what has happened to its messages is counted on the
%% nodes where it happened, and added up.
%%
%% It runs in the process that asks. All other nodes are asked at once, for a bounded time: those that do
%% not answer, or have no such plugin, are left out of the sums, and what cannot be known at present is ''.
-module(rabbit_delay_listing).

-include_lib("rabbit_common/include/resource.hrl").

-export([rows/2, pending/1, lateness/1]).
-export([figures/2]).

-export_type([item/0]).

%% A name, a gauge, or a counter's name. `leader' is the node that leads its group, `members' those that hold
%% its messages, `group_size' how many are to.
-type item() :: atom() | {message_stats, samples | rates}.

%% What the exchange's own record says.
-define(NAMES, [vhost, name, type, members, group_size]).
-define(GAUGES, [messages_delayed, bytes_delayed, next_due, in_flight, waiting, stuck_queues, overdue,
                 unreadable, paused, leader]).
-define(ANSWER_MS, 5000).
%% A process that was not answered in time does not ask again for so long.
-define(PENDING_MS, 1000).
-define(NOT_AGAIN_MS, 10000).

%% Of each exchange, these items.
-spec rows([rabbit_delay_broker:exchange()], [item()]) -> [[{item(), term()}]].
rows(Xs, Items) ->
    Asked = [Item || Item <- Items, not lists:member(Item, ?NAMES)],
    Figures = everywhere([rabbit_delay_broker:exchange_name(X) || X <- Xs], Asked),
    [[{Item, case lists:keyfind(Item, 1, Row) of
                 {_, Value} -> Value;
                 false -> name(Item, X)
             end} || Item <- Items]
     || {X, Row} <- lists:zip(Xs, Figures)].

name(vhost, X) -> (rabbit_delay_broker:exchange_name(X))#resource.virtual_host;
name(name, X) -> (rabbit_delay_broker:exchange_name(X))#resource.name;
name(type, X) ->
    {_, Type} = rabbit_misc:table_lookup(rabbit_delay_broker:exchange_arguments(X), <<"x-delayed-type">>),
    Type;
name(members, X) ->
    case rabbit_delay_group:nodes_of(X) of
        none -> [node() || rabbit_delay_table:leads(rabbit_delay_broker:exchange_name(X))];
        Nodes -> Nodes
    end;
name(group_size, X) -> rabbit_delay_group:aim_of(X).

everywhere(XNames, Items) ->
    Here = figures(XNames, Items),
    case Items =/= [] andalso rabbit_delay_broker:cluster_nodes() of
        Alone when Alone =:= false; tl(Alone) =:= [] ->
            [lists:zip(Items, Values) || {_, Values} <- Here];
        Nodes ->
            Answers = answers(Nodes, ?MODULE, figures, [XNames, Items]),
            together(XNames, Items, Here, [Here | Answers])
    end.

%% Of those that answer.
answers(Nodes, Module, Function, Args) ->
    Others = [Node || Node <- Nodes, lists:member(Node, nodes())],
    [Answer || {ok, Answer} <- erpc:multicall(Others, Module, Function, Args, ?ANSWER_MS)].

together([], _, _, _) ->
    [];
together([XName | XNames], Items, [Here | Heres], Answers) ->
    Each = [hd(Answer) || Answer <- Answers],
    Leaders = [Values || {true, Values} <- Each],
    Gauges = case Leaders =:= [] andalso rabbit_delay_group:find(XName) of
                 false -> hd(Leaders);
                 none -> hd([Values || {unknown, Values} <- Each] ++ [element(2, Here)]);
                 _ -> ['' || _ <- Items]
             end,
    Counts = transposed([Values || {_, Values} <- Each]),
    Row = lists:zipwith3(fun (Item, Gauge, Values) ->
                                 {Item, case lists:member(Item, ?GAUGES) of
                                            true -> Gauge;
                                            false -> sum(Item, Values)
                                        end}
                         end, Items, Gauges, Counts),
    [Row | together(XNames, Items, Heres, [tl(Answer) || Answer <- Answers])].

transposed([[] | _]) -> [];
transposed(Lists) -> [[hd(List) || List <- Lists] | transposed([tl(List) || List <- Lists])].

sum({message_stats, _}, Each) -> rabbit_delay_statistics:sum(Each);
sum(Item, Each) when Item =:= publish_rate; Item =:= release_rate -> tenths(lists:sum(Each));
sum(_, Each) -> lists:sum(Each).

%% Of each exchange, whether this node leads it, and what this node knows of these items; `unknown' where it
%% has a member, or files of one, that it cannot read. Asked by others.
-spec figures([rabbit_exchange:name()], [item()]) -> [{Leads :: boolean() | unknown, [Value :: term()]}].
figures(XNames, Items) ->
    [case rabbit_delay_table:leads_as_far_as_known(XName) of
         unknown -> {unknown, lists:zipwith(fun without_member/2, Items, values(XName, Items))};
         Leads -> {Leads, values(XName, Items)}
     end || XName <- XNames].

without_member(Item, Value) ->
    case lists:member(Item, ?GAUGES) of
        true -> '';
        false -> Value
    end.

values(_, []) ->
    [];
values(XName, Items) ->
    Stat = rabbit_delay_registry:stat(XName),
    [value(Item, XName, Stat) || Item <- Items].

value(messages_delayed, _, #{pending := N}) -> N;
value(bytes_delayed, _, #{pending_bytes := N}) -> N;
value(next_due, _, #{next_due := infinity}) -> '';
value(next_due, _, #{next_due := Ms}) -> Ms;
value(in_flight, _, #{taken := N}) -> N;
value(waiting, _, #{waiting := N}) -> N;
value(stuck_queues, _, #{stuck_queues := N}) -> N;
value(overdue, XName, Stat) -> rabbit_delay_registry:overdue(XName, Stat);
value(unreadable, _, Stat) -> maps:get(unreadable, Stat, 0);
value(paused, XName, _) -> rabbit_delay_registry:is_paused(XName);
value(leader, XName, _) ->
    case rabbit_delay_table:leads(XName) of
        true -> node();
        false -> ''
    end;
value(publish_rate, XName, _) -> rate(published, XName);
value(release_rate, XName, _) -> rate(released, XName);
value({message_stats, What}, XName, _) -> rabbit_delay_statistics:message_stats(XName, What);
%% What became of messages since the node started: a counter's name.
value(Name, XName, _) ->
    case rabbit_delay_registry:known_counters(XName) of
        undefined -> 0;
        Counters -> rabbit_delay_counters:get(Counters, Name)
    end.

rate(Name, XName) ->
    tenths(rabbit_delay_statistics:rate(Name, rabbit_delay_registry:samples(XName))).

tenths(Rate) -> round(Rate * 10) / 10.

%% How late released messages were, since the nodes started: rabbit_delay_statistics:lateness/1.
-spec lateness(rabbit_exchange:name()) ->
          {rabbit_delay_statistics:buckets(), Sum :: non_neg_integer()}.
lateness(XName) ->
    Here = rabbit_delay_statistics:lateness(XName),
    case rabbit_delay_broker:cluster_nodes() of
        [_] ->
            Here;
        Nodes ->
            lists:foldl(fun ({Buckets, Sum}, {AllBuckets, AllSum}) ->
                                {[{UpTo, N + M} || {{UpTo, N}, {_, M}} <- lists:zip(Buckets, AllBuckets)],
                                 Sum + AllSum}
                        end, Here, answers(Nodes, rabbit_delay_statistics, lateness, [XName]))
    end.

%% How many messages the exchange holds, in what the broker shows of all exchanges, one after the other:
%% 0 where that cannot be had at once.
-spec pending(rabbit_exchange:name()) -> non_neg_integer().
pending(XName) ->
    case rabbit_delay_leader:known(XName) of
        here -> rabbit_delay_registry:pending(XName);
        {there, Node} -> pending_there(XName, Node);
        unknown -> 0
    end.

pending_there(XName, Node) ->
    Now = erlang:monotonic_time(millisecond),
    case get({?MODULE, Node}) of
        Until when is_integer(Until), Now < Until ->
            0;
        _ ->
            try
                erpc:call(Node, rabbit_delay_registry, pending, [XName], ?PENDING_MS)
            catch
                error:_ ->
                    _ = put({?MODULE, Node}, Now + ?NOT_AGAIN_MS),
                    0
            end
    end.
