%% SPDX-License-Identifier: MPL-2.0

%% The doctor's rules for where dead letters go from queue to queue: in circles, and through ladders
%% of queues that only delay.
%%
%% Pure functions of a topology and its routes.
-module(rabbit_delay_doctor_graph).

-include("rabbit_delay_doctor.hrl").

-export([check/1]).

-import(rabbit_delay_doctor_mends,
        [finding/7, ms/1, names/1, more/1, to_parking/3, replacement/2]).
-import(rabbit_delay_doctor_queues, [value/2, has/2, automatic/2]).

%% Ladders and chains shorter than this are not worth a word.
-define(LADDER_STEPS, 3).
-define(LONG_CHAIN, 8).

-spec check(rabbit_delay_doctor:context()) -> [rabbit_delay_doctor:finding()].
check(Context) ->
    cycles(Context) ++ ladders(Context).

cycles(#{cyclic := #{parts := Parts}} = Context) ->
    lists:append([cycle(Part, Context) || Part <- Parts]).

cycle(Part, #{graph := Graph, qs := Qs} = Context) ->
    In = maps:from_list([{Node, true} || Node <- Part]),
    Automatic = fun ({queue, Name}) ->
                        is_map_key({queue, Name}, In)
                            andalso automatic(maps:get(Name, Qs), Context) =/= [];
                    (Node) ->
                        is_map_key(Node, In)
                end,
    Dropped = rabbit_delay_dead_letter_routes:cycles(
                Automatic, maps:with(Part, Graph)),
    Names = lists:sort([Name || {queue, Name} <- Part]),
    AllAutomatic = lists:all(fun (Name) -> Automatic({queue, Name}) end, Names),
    lists:append([[cycle_dropped(P, Context) || P <- Dropped],
                  [cycle_unbounded(Names, Part, Context) || not AllAutomatic],
                  [growth(Names, Context) || length(Names) >= ?LONG_CHAIN]]).

cycle_dropped(Part, #{qs := Qs} = Context) ->
    [First | _] = Names = lists:sort([Name || {queue, Name} <- Part]),
    Q = maps:get(First, Qs),
    Causes = lists:usort(lists:append([automatic(maps:get(Name, Qs), Context) || Name <- Names])),
    {Severity, Maybe} = certainty(Part, error, warning),
    finding(cycle_dropped, Severity, Q, Context,
            ["Dead letters ", Maybe, "go round: ", route_text(Names), ". A message that comes back to "
             "a queue without having been rejected on the way (", lists:join(", ", Causes),
             ") is dropped, and the broker logs it only once."],
            "Let one of the queues dead-letter to a parking queue; for a retry, delay by a delayed "
            "exchange and not by going round.",
            to_parking(Q, <<>>, Context)).

cycle_unbounded(Names, Part, #{qs := Qs} = Context) ->
    Q = maps:get(hd([Name || Name <- Names, automatic(maps:get(Name, Qs), Context) =:= []]), Qs),
    {Severity, Maybe} = certainty(Part, warning, info),
    finding(cycle_unbounded, Severity, Q, Context,
            ["Dead letters ", Maybe, "go round: ", route_text(Names), ". A message that is rejected "
             "each time goes round for ever; nothing in the broker ends it."],
            "Retry by a delayed exchange with x-delay-retry, which ends it after so many attempts; or "
            "have the consumer look at count in x-death and park the message after so many rounds, or "
            "dead-letter to a parking queue and redrive from there.",
            to_parking(Q, <<>>, Context)).

route_text([Name]) -> ["\"", Name, "\" to itself"];
route_text(Names) -> [names(Names), " and back"].

%% Whether the keys are known for each routing on the way.
certainty(Part, Certain, Possible) ->
    case [X || {routing, X, Keys} <- Part, not is_tuple(Keys) orelse element(1, Keys) =/= key] of
        [] -> {Certain, ""};
        _ -> {Possible, "can, depending on their routing keys, "}
    end.

growth(Names, #{qs := Qs} = Context) ->
    finding(x_death_growth, info, maps:get(hd(Names), Qs), Context,
            ["A dead letter can pass ", integer_to_binary(length(Names)), " queues: ", names(Names),
             ". x-death gets an entry for each queue and reason, some 150 bytes that every later "
             "queue stores and sends."],
            "Replace the chain by one delayed exchange, or strip x-death when redriving.",
            replacement(lists:sublist(Names, 1), Context)).

%% Queues with a TTL whose dead letters end at the same bindings, or in one another.
ladders(#{graph := Graph, qs := Qs, sources := Sources} = Context) ->
    Delays = maps:filter(fun (Name, _) ->
                                 Q = maps:get(Name, Qs),
                                 has(ttl, Q) andalso value(ttl, Q) > 0
                         end, Sources),
    Between = maps:filter(fun ({queue, Name}, _) -> is_map_key(Name, Delays);
                              (_, _) -> true
                          end, Graph),
    [ladder(Steps, Context)
     || Part <- rabbit_delay_dead_letter_routes:components(Between),
        Steps <- [[Name || {queue, Name} <- Part, is_map_key(Name, Delays)]],
        is_ladder(Steps, Qs)].

is_ladder(Steps, Qs) ->
    length(Steps) >= ?LADDER_STEPS
        andalso length(lists:usort([value(ttl, maps:get(Name, Qs)) || Name <- Steps]))
            >= ?LADDER_STEPS.

ladder(Steps, #{qs := Qs} = Context) ->
    Sorted = lists:sort([{value(ttl, maps:get(Name, Qs)), Name} || Name <- Steps]),
    {_, First} = hd(Sorted),
    finding(delay_ladder, info, maps:get(First, Qs), Context,
            [integer_to_binary(length(Steps)), " queues do nothing but delay, by ",
             lists:join(", ", [ms(Ttl) || {Ttl, _} <- lists:sublist(Sorted, ?NAMES)]), more(Sorted),
             ": ", names([Name || {_, Name} <- Sorted]),
             ". Each step rewrites the message, and each entry of x-death goes with it."],
            "Replace them by one delayed exchange and publish with the header x-delay (ms).",
            replacement([Name || {_, Name} <- Sorted], Context)).
