%% SPDX-License-Identifier: MPL-2.0

%% The doctor's findings as values, and the shell commands that mend what was found.
%%
%% Pure functions. Names in the commands are quoted for a shell, whatever is in them.
-module(rabbit_delay_doctor_mends).

-include("rabbit_delay_doctor.hrl").

-export([finding/7, policy_finding/7, exchange_finding/7]).
-export([ms/1, names/1, more/1, exchange_text/1]).
-export([to_parking/3, replacement/2, set/3, set_policy/2, recreate/4, put_queue/3, put_exchange/4,
         bind/5, command/1, sh/1]).

-import(rabbit_delay_doctor_queues, [value/2, origin/2, has/2]).

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

finding(Rule, Severity, Kind, Name, #{vhost := VHost}, Why, Mend, Commands) ->
    #{rule => Rule, severity => Severity, vhost => VHost, kind => Kind, name => Name,
      why => iolist_to_binary(Why), mend => iolist_to_binary(Mend),
      commands => lists:flatten(Commands)}.

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
-spec to_parking(#q{}, Exchange :: binary(), rabbit_delay_doctor:context()) -> list().
to_parking(#q{name = Name} = Q, X, Context) ->
    Parked = <<Name/binary, ".parked">>,
    [put_queue(Parked, #{}, Context) |
     case has(dlx, Q) andalso origin(dlx, Q) =:= argument of
         true ->
             recreate(Q, [], #{<<"x-dead-letter-exchange">> => X,
                               <<"x-dead-letter-routing-key">> => Parked}, Context);
         false ->
             [set(Q, #{<<"dead-letter-exchange">> => X,
                       <<"dead-letter-routing-key">> => Parked}, Context)]
     end].

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
               rabbit_delay_doctor:context()) -> list().
recreate(#q{name = Name, queue = #{arguments := Arguments0, durable := Durable}, type = Type},
         Without, With, #{bindings_to := BindingsTo} = Context) ->
    Arguments = maps:merge(maps:without(Without, Arguments0), With),
    Typed = maps:merge(#{<<"x-queue-type">> => atom_to_binary(Type, utf8)}, Arguments),
    [command(["curl -fsS -X DELETE \"$API/queues/", path(Context), $/, quoted(Name),
              "?if-empty=true\""]),
     put_queue(Name, Durable, Typed, Context) |
     [bind(X, Name, Key, BindingArguments, Context)
      || #{source := X, key := Key, arguments := BindingArguments}
             <- maps:get(Name, BindingsTo, [])]].

-spec put_queue(binary(), #{binary() => term()}, rabbit_delay_doctor:context()) -> binary().
put_queue(Name, Arguments, Context) -> put_queue(Name, true, Arguments, Context).

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

%% A delayed exchange that leads to where the dead letters of these queues go in the end.
-spec replacement([binary()], rabbit_delay_doctor:context()) -> list().
replacement(Names, #{graph := Graph, qs := Qs, sources := Sources} = Context) ->
    Few = lists:sublist(Names, ?ENDS),
    Replaced = maps:from_list([{Name, true} || Name <- Names]),
    Ends = lists:usort(lists:append(
                         [rabbit_delay_dead_letter_routes:targets(Node, Graph, ?ENDS)
                          || Name <- Few, is_map_key(Name, Sources),
                             Node <- lists:sublist(maps:get({queue, Name}, Graph), ?ENDS)])),
    Finals = [End || End <- Ends, not is_map_key(End, Replaced),
                     Q <- [maps:get(End, Qs)], not (has(ttl, Q) andalso has(dlx, Q))],
    [put_exchange(<<"delayed">>, <<"x-delayed-message">>, #{<<"x-delayed-type">> => <<"direct">>},
                  Context) |
     [bind(<<"delayed">>, Final, Final, #{}, Context) || Final <- lists:sublist(Finals, ?NAMES)]].
