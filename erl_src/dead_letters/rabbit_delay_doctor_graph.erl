%% SPDX-License-Identifier: MPL-2.0

%% The doctor's rules for where dead letters go from queue to queue: in circles, and through ladders
%% of queues that only delay.
%%
%% Pure functions of a topology and its routes.
-module(rabbit_delay_doctor_graph).

-include("rabbit_delay_doctor.hrl").

-export([check/1]).

-import(rabbit_delay_doctor_mends,
        [finding/7, ms/1, names/1, more/1, to_parking/3, to_retries/3, replacement/2]).
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
    Names = lists:sort([Name || {queue, Name} <- Part]),
    Q = maps:get(worker(Names, Context), Qs),
    Causes = lists:usort(lists:append([automatic(maps:get(Name, Qs), Context) || Name <- Names])),
    {Severity, Maybe} = certainty(Part, error, warning, Context),
    {Mend, Commands} = broken(Q, Names, Context),
    finding(cycle_dropped, Severity, maps:get(hd(Names), Qs), Context,
            ["Dead letters ", Maybe, "go round: ", route_text(Names), ". A message that comes back to "
             "a queue without having been rejected on the way (", lists:join(", ", Causes),
             ") is dropped, and the broker logs it only once."],
            Mend, Commands).

cycle_unbounded(Names, Part, #{qs := Qs} = Context) ->
    Q = maps:get(worker([Name || Name <- Names, automatic(maps:get(Name, Qs), Context) =:= []],
                        Context), Qs),
    {Severity, Maybe} = certainty(Part, warning, info, Context),
    {Mend, Commands} = broken(Q, Names, Context),
    finding(cycle_unbounded, Severity, Q, Context,
            ["Dead letters ", Maybe, "go round: ", route_text(Names), ". A message that is rejected "
             "each time goes round for ever; nothing in the broker ends it."],
            [Mend, " Or leave it as it is, and have the consumer look at count in x-death and park the "
             "message after so many rounds."], Commands).

%% The queue that is worked on, of a cycle whose others delay.
worker(Names, #{qs := Qs, bindings_to := BindingsTo}) ->
    Rank = fun (Name) ->
                   #q{queue = #{consumers := Consumers}} = Q = maps:get(Name, Qs),
                   {not (is_integer(Consumers) andalso Consumers > 0), has(ttl, Q),
                    not is_map_key(Name, BindingsTo), Name}
           end,
    {_, _, _, Name} = lists:min([Rank(Name) || Name <- Names]),
    Name.

%% What goes round comes back by a delayed exchange instead, as late as before, and not for ever.
%% Where all queues wait, nobody knows where it is to come back to.
broken(#q{name = Name} = Q, Names, #{qs := Qs} = Context) ->
    Others = [maps:get(Other, Qs) || Other <- Names, Other =/= Name],
    Retries = not lists:any(fun (#q{queue = #{consumers := N}}) -> is_integer(N) andalso N > 0 end,
                            Others)
        andalso not has(ttl, Q),
    Ms = lists:sum([value(ttl, Other) || Other <- Others, has(ttl, Other)]),
    Past = [[" They no longer pass ", names([Other || #q{name = Other} <- Others]), ", where what is "
             "under way goes on as it did."] || Others =/= []],
    case Retries of
        true ->
            {["Let \"", Name, "\" dead-letter to a delayed exchange with x-delay-retry: its dead letters "
              "come back after ", ms(max(Ms, 1000)), " as they do now, but ten times only, and then go "
              "to \"", Name, ".parked\".", Past], to_retries(Q, max(Ms, 1000), Context)};
        false ->
            {["Let \"", Name, "\" dead-letter to a parking queue; for a retry, delay by a delayed "
              "exchange and not by going round.", Past], to_parking(Q, <<>>, Context)}
    end.

route_text([Name]) -> ["\"", Name, "\" to itself"];
route_text(Names) -> [names(Names), " and back"].

%% Whether some message goes round whatever its headers are, and whatever its key is where that is not
%% known.
certainty(Part, Certain, Possible, #{graph := Graph, index := Index}) ->
    Sure = maps:map(fun (Node, Next) ->
                            [To || To <- Next, rabbit_delay_dead_letter_routes:is_certain(Node, To, Index)]
                    end, maps:with(Part, Graph)),
    case rabbit_delay_dead_letter_routes:cycles(fun (_) -> true end, Sure) of
        [_ | _] -> {Certain, ""};
        [] -> {Possible, "can, depending on their routing keys, "}
    end.

growth(Names, #{qs := Qs} = Context) ->
    finding(x_death_growth, info, maps:get(hd(Names), Qs), Context,
            ["A dead letter can pass ", integer_to_binary(length(Names)), " queues: ", names(Names),
             ". x-death gets an entry for each queue and reason, some 150 bytes that every later "
             "queue stores and sends."],
            "Replace the chain by one delayed exchange, or strip x-death when redriving.", []).

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
    {Mend, Commands} = delayed(First, [Name || {_, Name} <- Sorted], Context),
    finding(delay_ladder, info, maps:get(First, Qs), Context,
            [integer_to_binary(length(Steps)), " queues do nothing but delay, by ",
             lists:join(", ", [ms(Ttl) || {Ttl, _} <- lists:sublist(Sorted, ?NAMES)]), more(Sorted),
             ": ", names([Name || {_, Name} <- Sorted]),
             ". Each step rewrites the message, and each entry of x-death goes with it."],
            [Mend, " Leave these queues until they are empty."], Commands).

delayed(First, Names, #{qs := Qs} = Context) ->
    #q{queue = Queue} = maps:get(First, Qs),
    {["Publish to a delayed exchange with the header x-delay (ms), and the key that a message has at "
      "the end of them, instead.",
      case rabbit_delay_doctor_frameworks:of_queue(Queue) of
          {Library, Advice} -> [" These look like queues that ", Library, " declares: ", Advice];
          none -> []
      end], replacement(Names, Context)}.
