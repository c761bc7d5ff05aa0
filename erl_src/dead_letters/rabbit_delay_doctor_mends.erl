%% SPDX-License-Identifier: MPL-2.0

%% The doctor's findings as values, and the shell commands that mend what was found.
%%
%% Pure functions. Names in the commands are quoted for a shell, whatever is in them.
-module(rabbit_delay_doctor_mends).

-include("rabbit_delay_doctor.hrl").

-export([finding/7, policy_finding/7, exchange_finding/7]).
-export([ms/1, names/1, more/1, exchange_text/1]).
-export([to_parking/3, to_retries/3, replacement/2, set/3, set_policy/2, above/3, recreate/4,
         put_queue/3, put_parking/3, put_exchange/4, bind/5, command/1, sh/1]).

-export_type([commands/0]).

-import(rabbit_delay_doctor_queues, [value/2, origin/2, has/2]).

%% What mends something; anew is a queue that has to be deleted and declared again.
-type commands() :: [binary() | {anew, #q{}, commands()} | commands()].

%% How many ends of a delay are looked for.
-define(ENDS, 20).

%% Of a queue.
-spec finding(rabbit_delay_doctor:rule(), rabbit_delay_doctor:severity(), #q{},
              rabbit_delay_doctor:context(), Why :: iodata(), Mend :: iodata(), Commands :: list()) ->
          rabbit_delay_doctor:finding().
finding(Rule, Severity, #q{name = Name}, Context, Why, Mend, Commands) ->
    finding(Rule, Severity, queue, Name, Context, Why, Mend, Commands).

%% Of a policy.
-spec policy_finding(rabbit_delay_doctor:rule(), rabbit_delay_doctor:severity(), binary(),
                     rabbit_delay_doctor:context(), Why :: iodata(), Mend :: iodata(),
                     Commands :: list()) -> rabbit_delay_doctor:finding().
policy_finding(Rule, Severity, Name, Context, Why, Mend, Commands) ->
    finding(Rule, Severity, policy, Name, Context, Why, Mend, Commands).

%% Of an exchange.
-spec exchange_finding(rabbit_delay_doctor:rule(), rabbit_delay_doctor:severity(), binary(),
                       rabbit_delay_doctor:context(), Why :: iodata(), Mend :: iodata(),
                       Commands :: list()) -> rabbit_delay_doctor:finding().
exchange_finding(Rule, Severity, Name, Context, Why, Mend, Commands) ->
    finding(Rule, Severity, exchange, Name, Context, Why, Mend, Commands).

finding(Rule, Severity, Kind, Name, #{vhost := VHost}, Why, Mend, Commands0) ->
    Flat = lists:flatten(Commands0),
    {Taken, Commands} = case lists:keyfind(anew, 1, [C || C <- Flat, is_tuple(C)]) of
                            false -> {[], Flat};
                            {anew, Q, _} -> declared_anew(Q, Flat)
                        end,
    #{rule => Rule, severity => Severity, vhost => VHost, kind => Kind, name => Name,
      why => iolist_to_binary(Why), mend => iolist_to_binary([Mend, Taken]), commands => Commands}.

%% What declaring a queue anew takes, and the commands; none where the broker would delete it with
%% what is in it, or where a library declares it the old way again.
declared_anew(#q{queue = Queue, type = Type}, Commands) ->
    case {rabbit_delay_doctor_frameworks:of_queue(Queue), Type} of
        {{Library, Advice}, _} ->
            {[" The queue looks like one that ", Library, " declares, which is refused (406) if it is "
              "declared otherwise here. So change it there: ", Advice], []};
        {none, quorum} ->
            {" That takes a queue that is declared anew, in the application, which the broker refuses "
             "(406) as long as the old one is there; and a quorum queue is deleted with all that is in "
             "it. So end its publishers, let it run empty, delete it, and declare it as it should "
             "be.", []};
        {none, _} ->
            {" For that the queue is deleted and declared anew with its bindings. End its publishers "
             "and consumers before: as long as it has consumers or messages the deletion is refused, "
             "and what is published in between is lost. Then declare it so in the application as "
             "well, which is refused (406) otherwise.",
             lists:flatten([case C of
                                {anew, _, Anew} -> Anew;
                                _ -> C
                            end || C <- Commands])}
    end.

%% A time as people write it.
-spec ms(non_neg_integer()) -> iodata().
ms(Ms) when Ms rem 86400000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 86400000), " d"];
ms(Ms) when Ms rem 3600000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 3600000), " h"];
ms(Ms) when Ms rem 60000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 60000), " min"];
ms(Ms) when Ms rem 1000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 1000), " s"];
ms(Ms) -> [integer_to_binary(Ms), " ms"].

%% How many of a list a text leaves out.
-spec more(list()) -> iodata().
more(List) ->
    case length(List) - ?NAMES of
        N when N > 0 -> [" and ", integer_to_binary(N), " more"];
        _ -> []
    end.

-spec names([binary()]) -> iodata().
names(Names) ->
    [lists:join(", ", [["\"", Name, "\""] || Name <- lists:sublist(Names, ?NAMES)]), more(Names)].

-spec exchange_text(binary()) -> iodata().
exchange_text(<<>>) -> "\"\" (the default exchange)";
exchange_text(X) -> ["\"", X, "\""].

%% ---------------------------------------------------------------------------------------- commands

%% Dead letters of the queue go to a queue of their own.
-spec to_parking(#q{}, Exchange :: binary(), rabbit_delay_doctor:context()) -> commands().
to_parking(#q{name = Name} = Q, X, Context) ->
    Parked = <<Name/binary, ".parked">>,
    [put_parking(Parked, Q, Context),
     [bind(X, Parked, Parked, #{}, Context) || X =/= <<>>],
     dead_letter(Q, X, Parked, Context)].

%% Dead letters of the queue come back to it after this time (ms), ten times, and are parked then.
-spec to_retries(#q{}, pos_integer(), rabbit_delay_doctor:context()) -> commands().
to_retries(#q{name = Name} = Q, Ms, Context) ->
    Parked = <<Name/binary, ".parked">>,
    Retry = <<Name/binary, ".retry">>,
    Reasons = [<<"rejected,delivery_limit">>]
        ++ [<<",expired">> || has(ttl, Q)]
        ++ [<<",maxlen">> || has(max_length, Q) orelse has(max_bytes, Q)],
    [put_parking(Parked, Q, Context),
     put_exchange(Retry, <<"x-delayed-message">>,
                  #{<<"x-delayed-type">> => <<"direct">>,
                    <<"x-delay-retry">> => <<(integer_to_binary(Ms))/binary, "ms">>,
                    <<"x-delay-retry-attempts">> => 10,
                    <<"x-delay-retry-reasons">> => iolist_to_binary(Reasons),
                    <<"x-delay-retry-parking-exchange">> => <<>>,
                    <<"x-delay-retry-parking-routing-key">> => Parked}, Context),
     dead_letter(Q, Retry, undefined, Context)].

%% The queue's dead letters go to that exchange, with that key or their own.
dead_letter(Q, X, Key, Context) ->
    Reliable = value(strategy, Q) =/= <<"at-least-once">> andalso not has(dlx, Q)
        andalso Q#q.type =:= quorum andalso not has(max_length, Q) andalso not has(max_bytes, Q)
        andalso maps:get(at_least_once, maps:get(topology, Context)),
    case [Item || Item <- [dlx, dlk], has(Item, Q), origin(Item, Q) =:= argument] of
        [] ->
            set(Q, maps:merge(#{<<"dead-letter-exchange">> => X, <<"dead-letter-routing-key">> => Key},
                              %% what dies is not to be lost on the way either
                              maps:from_list(
                                [{K, V} || Reliable,
                                           {K, V} <- [{<<"dead-letter-strategy">>, <<"at-least-once">>},
                                                      {<<"overflow">>, <<"reject-publish">>}]])),
                Context);
        _ ->
            recreate(Q, [<<"x-dead-letter-routing-key">> || Key =:= undefined],
                     maps:from_list([{<<"x-dead-letter-exchange">>, X} |
                                     [{<<"x-dead-letter-routing-key">>, Key} || Key =/= undefined]]),
                     Context)
    end.

%% A queue for dead letters of that one, which are to stay there whatever policies say of all queues.
-spec put_parking(binary(), #q{}, rabbit_delay_doctor:context()) -> commands().
put_parking(Name, #q{type = Type0} = Q, #{objects := #{policies := Policies, queues := Queues},
                                         topology := #{version := Version}} = Context)
  when not is_map_key(Name, Queues) ->
    Type = case Type0 of
               quorum -> quorum;
               _ -> classic
           end,
    #{held := Held} = rabbit_delay_queue_settings:matching(
                        {queue, Type}, Name, rabbit_delay_queue_settings:compile(Policies)),
    Lossy = [<<"message-ttl">>, <<"expires">>, <<"max-length">>, <<"max-length-bytes">>,
             <<"overflow">>, <<"dead-letter-exchange">>, <<"dead-letter-routing-key">>,
             <<"dead-letter-strategy">>, <<"delivery-limit">>],
    Limit = [{<<"x-delivery-limit">>, -1} || Type =:= quorum, Version >= [4]],
    [[set(Q#q{name = Name, held = Held},
          maps:from_list([{Key, undefined} || Key <- Lossy]), Context)
      || [#{definition := Definition} | _] <- [Held], maps:with(Lossy, Definition) =/= #{}],
     put_queue(Name, maps:from_list([{<<"x-queue-type">>, atom_to_binary(Type, utf8)} | Limit]),
               Context)];
put_parking(_, _, _) ->
    [].

%% The policy that holds for the queue with these keys changed (undefined: taken away), for it alone.
-spec set(#q{}, #{binary() => term()}, rabbit_delay_doctor:context()) -> binary().
set(#q{name = Name, held = Held}, Changes, Context) ->
    {Definition, Priority} = case Held of
                                 [#{definition := D, priority := P} | _] -> {D, P + 1};
                                 [] -> {#{}, 0}
                             end,
    set_policy(#{name => <<"for ", Name/binary>>, pattern => [$^, escaped(Name), $$],
                 apply_to => <<"queues">>, priority => Priority,
                 definition => maps:filter(fun (_, Value) -> Value =/= undefined end,
                                           maps:merge(Definition, Changes))}, Context).

%% Policies in the place of one, each above it, while the order of all others stays.
-spec above([rabbit_delay_topology:policy()], Priority :: integer(), rabbit_delay_doctor:context()) ->
          commands().
above(New, Priority, #{objects := #{policies := Policies}} = Context) ->
    Higher = lists:reverse(lists:sort([{P, Name, Policy}
                                       || #{priority := P, name := Name} = Policy <- Policies,
                                          P > Priority])),
    [[set_policy(Policy#{priority := P + 1}, Context) || {P, _, Policy} <- Higher],
     [set_policy(Policy#{priority := Priority + 1}, Context) || Policy <- New]].

-spec set_policy(rabbit_delay_topology:policy() | map(), rabbit_delay_doctor:context()) -> binary().
set_policy(#{name := Name, pattern := Pattern, apply_to := ApplyTo, priority := Priority,
             definition := Definition}, #{vhost := VHost}) ->
    command(["rabbitmqctl set_policy --vhost ", sh(VHost), " --priority ",
             integer_to_binary(Priority), " --apply-to ", sh(ApplyTo), " -- ", sh(Name), " ",
             sh(Pattern), " ", sh(json(Definition))]).

escaped(Name) ->
    re:replace(Name, "[][^$.|?*+(){}\\\\]", "\\\\&", [global]).

%% The queue declared anew. Its messages must be out of it.
-spec recreate(#q{}, Without :: [binary()], With :: #{binary() => term()},
               rabbit_delay_doctor:context()) -> commands().
recreate(#q{name = Name, queue = #{arguments := Arguments0, durable := Durable}, type = Type} = Q,
         Without, With, #{bindings_to := BindingsTo} = Context) ->
    Arguments = maps:merge(maps:without(Without, Arguments0), With),
    Typed = maps:merge(#{<<"x-queue-type">> => atom_to_binary(Type, utf8)}, Arguments),
    [{anew, Q,
      [command(["curl -fsS -X DELETE \"$API/queues/", path(Context), $/, quoted(Name),
                "?if-empty=true&if-unused=true\""]),
       put_queue(Name, Durable, Typed, Context) |
       [bind(X, Name, Key, BindingArguments, Context)
        || #{source := X, key := Key, arguments := BindingArguments}
               <- maps:get(Name, BindingsTo, [])]]}].

%% Unless it is there.
-spec put_queue(binary(), #{binary() => term()}, rabbit_delay_doctor:context()) -> commands().
put_queue(Name, _, #{objects := #{queues := Queues}}) when is_map_key(Name, Queues) -> [];
put_queue(Name, Arguments, Context) -> [put_queue(Name, true, Arguments, Context)].

put_queue(Name, Durable, Arguments, Context) ->
    curl("PUT", ["queues/", path(Context), $/, quoted(Name)],
         #{<<"durable">> => Durable, <<"arguments">> => Arguments}).

-spec put_exchange(binary(), Type :: binary(), #{binary() => term()},
                   rabbit_delay_doctor:context()) -> binary().
put_exchange(Name, Type, Arguments, Context) ->
    curl("PUT", ["exchanges/", path(Context), $/, quoted(Name)],
         #{<<"type">> => Type, <<"durable">> => true, <<"arguments">> => Arguments}).

-spec bind(Exchange :: binary(), Queue :: binary(), Key :: iodata(), #{binary() => term()},
           rabbit_delay_doctor:context()) -> binary().
bind(X, Queue, Key, Arguments, Context) ->
    curl("POST", ["bindings/", path(Context), "/e/", quoted(X), "/q/", quoted(Queue)],
         #{<<"routing_key">> => Key, <<"arguments">> => Arguments}).

curl(Method, Path, Body) ->
    command(["curl -fsS -X ", Method, " \"$API/", Path, "\" -H content-type:application/json -d ",
             sh(json(Body))]).

-spec command(iodata()) -> binary().
command(Words) -> iolist_to_binary(Words).

path(#{vhost := VHost}) -> quoted(VHost).

quoted(Name) ->
    [case (C >= $a andalso C =< $z) orelse (C >= $A andalso C =< $Z)
          orelse (C >= $0 andalso C =< $9) orelse lists:member(C, "-_.~") of
         true -> C;
         false -> io_lib:format("%~2.16.0B", [C])
     end || <<C>> <= Name].

json(Map) -> rabbit_json:encode(Map).

%% One word of a shell's command line.
-spec sh(iodata()) -> iodata().
sh(Text) ->
    [$', binary:replace(iolist_to_binary(Text), <<"'">>, <<"'\\''">>, [global]), $'].

%% A delayed exchange that leads to where the dead letters of these queues go in the end, with the key
%% that a message is published with: where it is an exchange to that, else to its queues by name.
-spec replacement([binary()], rabbit_delay_doctor:context()) -> commands().
replacement(Names, #{graph := Graph, qs := Qs, sources := Sources,
                     objects := #{exchanges := Exchanges}} = Context) ->
    Few = lists:sublist([Name || Name <- Names, is_map_key(Name, Sources)], ?ENDS),
    Replaced = maps:from_list([{Name, true} || Name <- Names]),
    Ends = lists:usort([{X, End} || Name <- Few,
                                    {routing, X, _} = Node
                                        <- lists:sublist(maps:get({queue, Name}, Graph), ?ENDS),
                                    Targets <- [rabbit_delay_dead_letter_routes:targets(
                                                  Node, Graph, ?ENDS)],
                                    %% where they end, and not the exchanges between them
                                    not lists:any(fun (Target) -> is_map_key(Target, Replaced) end,
                                                  Targets),
                                    End <- Targets,
                                    Q <- [maps:get(End, Qs)],
                                    not (has(ttl, Q) andalso has(dlx, Q))]),
    To = lists:usort([X || {X, _} <- Ends, X =/= <<>>]),
    Queues = lists:usort([End || {<<>>, End} <- Ends]),
    [[[put_exchange(<<"delayed">>, <<"x-delayed-message">>,
                    #{<<"x-delayed-type">> => <<"direct">>}, Context) |
       [bind(<<"delayed">>, Final, Final, #{}, Context) || Final <- lists:sublist(Queues, ?NAMES)]]
      || Queues =/= [] orelse To =:= [], not is_map_key(<<"delayed">>, Exchanges)],
     [[put_exchange(<<X/binary, ".delayed">>, <<"x-delayed-message">>,
                    #{<<"x-delayed-type">> => <<"fanout">>}, Context),
       bind_exchange(<<X/binary, ".delayed">>, X, Context)]
      || X <- lists:sublist(To, ?NAMES), not is_map_key(<<X/binary, ".delayed">>, Exchanges)]].

bind_exchange(From, To, Context) ->
    curl("POST", ["bindings/", path(Context), "/e/", quoted(From), "/e/", quoted(To)],
         #{<<"routing_key">> => <<>>, <<"arguments">> => #{}}).
