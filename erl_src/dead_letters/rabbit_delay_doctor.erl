%% SPDX-License-Identifier: MPL-2.0

%% Finds the traps in how a broker's queues dead-letter and expire messages: those that lose
%% messages, block them, or let them go round for ever. It looks at a topology and at nothing else.
%%
%% Pure functions, but for those that first read the running broker (live/1, live_graph/1), in the
%% process that asks, rabbitmqctl's among them. The rules are in rabbit_delay_doctor_queues,
%% _exchanges, _policies and _graph, what they say in _mends and _report.
-module(rabbit_delay_doctor).

-export([check/1, live/1, live_graph/1, graph/1, rules/0, severity_rank/1]).
-export([settings/2, at_once/1, reaches_at_once/3, feeders/2]).

-export_type([drawn/0, finding/0, rule/0, severity/0, context/0]).

-include("rabbit_delay_doctor.hrl").

-type severity() :: error | warning | info.

-type rule() :: dlx_missing | dlx_unroutable | routing_key_without_dlx | ttl_without_dlx |
                expires_loses_messages | head_of_line_ttl | cycle_dropped | cycle_unbounded |
                at_most_once | at_least_once_drop_head | at_least_once_unavailable |
                delivery_limit_without_dlx | parking_unwatched | x_death_growth | priority_ttl |
                ttl_zero | policy_tie | policy_shadowed | policy_not_applicable |
                argument_over_policy | policy_unusable | unusable_value | delay_ladder |
                retry_parking_missing | topic_permissions_unchecked | policy_key_as_argument |
                argument_as_policy_key | unreadable_entry | acceptance_unused.

-type finding() :: #{rule := rule(), severity := severity(), vhost := binary(),
                     kind := queue | policy | exchange | entry, name := binary(),
                     %% why it bites
                     why := binary(),
                     %% what to do about it, in words and as shell commands that do it
                     mend := binary(), commands := [binary()],
                     %% the reason for which it is to count no more
                     accepted => binary()}.

%% From queues with a dead-letter exchange on, those queues whose exchange does not exist, and how many
%% messages queues have.
-type drawn() :: {rabbit_delay_dead_letter_routes:graph(), [{Queue :: binary(), Missing :: binary()}],
                  #{Queue :: binary() => non_neg_integer()}}.

%% A vhost as the rules look at it.
-type context() :: #{vhost := binary(), objects := rabbit_delay_topology:vhost(),
                     topology := rabbit_delay_topology:topology(),
                     index := rabbit_delay_dead_letter_routes:index(),
                     graph := rabbit_delay_dead_letter_routes:graph(),
                     sources := #{binary() => rabbit_delay_dead_letter_routes:source()},
                     %% the delayed exchanges that retry, and where they park
                     retrying := #{Exchange :: binary() => {binary(), binary() | undefined}},
                     qs := #{binary() => #q{}},
                     dead_letter_targets := #{Queue :: binary() => true},
                     bindings_to := #{Queue :: binary() => [rabbit_delay_topology:binding()]},
                     cyclic := #{parts := [[rabbit_delay_dead_letter_routes:node_()]],
                                 queues := #{binary() => true}}}.

%% The worst first.
-spec check(rabbit_delay_topology:topology()) -> [finding()].
check(#{vhosts := VHosts, odd := Odd} = Topology) ->
    Found = [unreadable(Where, What) || {Where, What} <- Odd]
        ++ lists:append([check_vhost(Topology, VHost, maps:get(VHost, VHosts))
                         || VHost <- rabbit_delay_topology:vhosts(Topology)]),
    lists:sort(fun (A, B) -> order(A) =< order(B) end, Found).

%% An entry of a definitions file.
unreadable(Where, What) ->
    #{rule => unreadable_entry, severity => warning, vhost => <<>>, kind => entry, name => Where,
      why => <<Where/binary, " ", What/binary, ", so it was left out: what it would lead to is not "
               "checked.">>,
      mend => <<"Export the definitions again, or correct the entry.">>, commands => []}.

order(#{severity := Severity, rule := Rule, vhost := VHost, name := Name}) ->
    {-severity_rank(Severity), VHost, Rule, Name}.

-spec severity_rank(severity()) -> 1..3.
severity_rank(info) -> 1;
severity_rank(warning) -> 2;
severity_rank(error) -> 3.

%% Of vhosts of the broker that this runs in.
-spec live([rabbit_types:vhost()] | all) -> {ok, [finding()]} | {error, {no_such_vhost, binary()}}.
live(all) ->
    live(rabbit_vhost:list_names());
live(VHosts) ->
    case [VHost || VHost <- VHosts, not rabbit_vhost:exists(VHost)] of
        [] -> {ok, check(rabbit_delay_topology:live(VHosts))};
        [Missing | _] -> {error, {no_such_vhost, Missing}}
    end.

%% Where dead letters go in a vhost of the broker that this runs in.
-spec live_graph(rabbit_types:vhost()) -> {ok, drawn()} | {error, {no_such_vhost, binary()}}.
live_graph(VHost) ->
    case rabbit_vhost:exists(VHost) of
        true ->
            #{vhosts := #{VHost := Objects}} = rabbit_delay_topology:live([VHost]),
            {ok, graph(Objects)};
        false ->
            {error, {no_such_vhost, VHost}}
    end.

-spec graph(rabbit_delay_topology:vhost()) -> drawn().
graph(#{exchanges := Exchanges, queues := Queues} = Objects) ->
    {Qs, _} = settle_policies(Objects),
    {Sources, _, Graph} = dead_lettering(Qs, retrying(Objects), Objects),
    Missing = [{Name, X} || #q{name = Name} = Q <- Qs,
                            X <- [rabbit_delay_doctor_queues:value(dlx, Q)],
                            is_binary(X), not is_map_key(X, Exchanges),
                            not is_map_key(Name, Sources)],
    {Graph, Missing, maps:from_list([{Name, N} || #{name := Name, messages := N} <- maps:values(Queues),
                                                  is_integer(N)])}.

-spec rules() -> [rule()].
rules() ->
    [dlx_missing, dlx_unroutable, routing_key_without_dlx, ttl_without_dlx,
     expires_loses_messages, head_of_line_ttl, cycle_dropped, cycle_unbounded, at_most_once,
     at_least_once_drop_head, at_least_once_unavailable, delivery_limit_without_dlx,
     parking_unwatched, x_death_growth, priority_ttl, ttl_zero, policy_tie, policy_shadowed,
     policy_not_applicable, argument_over_policy, policy_unusable, unusable_value, delay_ladder,
     retry_parking_missing, topic_permissions_unchecked, policy_key_as_argument,
     argument_as_policy_key, unreadable_entry, acceptance_unused].

%% What holds for one queue of a vhost.
-spec settings(binary(), rabbit_delay_topology:vhost()) ->
          rabbit_delay_queue_settings:settings() | undefined.
settings(Name, #{queues := Queues} = Objects) ->
    case settle_policies(Objects#{queues := maps:with([Name], Queues)}) of
        {[#q{settings = Settings}], _} -> Settings;
        {[], _} -> undefined
    end.

%% The routing of a vhost in which only those queues dead-letter that do so at once: by a TTL of 0.
-spec at_once(rabbit_delay_topology:vhost()) -> rabbit_delay_dead_letter_routes:index().
at_once(#{exchanges := Exchanges} = Objects) ->
    {Qs, _} = settle_policies(Objects),
    rabbit_delay_dead_letter_routes:index(
      Objects, maps:from_list([{Name, {X, rabbit_delay_doctor_queues:value(dlk, Q)}}
                               || #q{name = Name} = Q <- Qs, rabbit_delay_doctor_queues:value(ttl, Q) =:= 0,
                                  X <- [rabbit_delay_doctor_queues:value(dlx, Q)], is_map_key(X, Exchanges)])).

%% Where a message published with this key gets at once.
-spec reaches_at_once(Exchange :: binary(), Key :: binary(),
                      rabbit_delay_dead_letter_routes:index()) -> #{Queue :: binary() => true}.
reaches_at_once(X, Key, Index) ->
    Graph = rabbit_delay_dead_letter_routes:explore([{routing, X, {key, Key}}], Index),
    maps:from_list([{Name, true} || {queue, Name} <- maps:keys(Graph)]).

%% The queues whose dead letters can come to this one, without passing through another.
-spec feeders(binary(), rabbit_delay_topology:vhost()) -> #{Queue :: binary() => true}.
feeders(Queue, #{queues := Queues} = Objects) ->
    {Qs, _} = settle_policies(Objects),
    {Sources, _, Graph} = dead_lettering(Qs, retrying(Objects), Objects),
    Max = map_size(Queues) + 1,
    maps:filter(fun (Name, _) ->
                        lists:any(fun (Node) ->
                                          lists:member(Queue, rabbit_delay_dead_letter_routes:targets(
                                                                Node, Graph, Max))
                                  end, maps:get({queue, Name}, Graph))
                end, maps:map(fun (_, _) -> true end, Sources)).

%% The queues that dead-letter to an exchange that is there, and where that leads.
dead_lettering(Qs, Retrying, Objects) ->
    Sources = maps:from_list([{Name, Source} || #q{name = Name} = Q <- Qs,
                                                Source <- source(Q, Retrying, Objects)]),
    Index = rabbit_delay_dead_letter_routes:index(Objects, Sources),
    {Sources, Index,
     rabbit_delay_dead_letter_routes:explore([{queue, Name} || Name <- maps:keys(Sources)], Index)}.

check_vhost(Topology, VHost, #{queues := Queues, accepted := Accepted} = Objects) ->
    {Qs, Unusable} = settle_policies(Objects),
    Retrying = retrying(Objects),
    {Sources, Index, Graph} = dead_lettering(Qs, Retrying, Objects),
    Context = #{vhost => VHost, objects => Objects, topology => Topology, index => Index,
                graph => Graph, sources => Sources, retrying => Retrying,
                qs => maps:from_list([{Name, Q} || #q{name = Name} = Q <- Qs]),
                dead_letter_targets => dead_letter_targets(Graph),
                bindings_to => bindings_to(Objects, Queues),
                cyclic => cyclic(Graph)},
    Found = lists:append([lists:append([rabbit_delay_doctor_queues:check(Q, Context) || Q <- Qs]),
                          rabbit_delay_doctor_graph:check(Context),
                          rabbit_delay_doctor_policies:check(Qs, Unusable, Context),
                          rabbit_delay_doctor_exchanges:check(Context)]),
    rabbit_delay_doctor_accepted:mark(Found, Accepted)
        ++ rabbit_delay_doctor_accepted:unused(Found, [{VHost, A} || A <- Accepted]).

%% Where what dies in a queue goes for good. A delayed exchange that retries gives it back, so often
%% and no more, and then parks it: not by its bindings, and in no cycle.
source(Q, Retrying, #{exchanges := Exchanges}) ->
    Key = rabbit_delay_doctor_queues:value(dlk, Q),
    case rabbit_delay_doctor_queues:value(dlx, Q) of
        X when is_map_key(X, Retrying) ->
            case Retrying of
                #{X := {Parking, undefined}} when is_map_key(Parking, Exchanges) ->
                    [{Parking, Key}];
                #{X := {Parking, ParkingKey}} when is_map_key(Parking, Exchanges) ->
                    [{Parking, ParkingKey}];
                _ -> []
            end;
        X when is_map_key(X, Exchanges) ->
            [{X, Key}];
        _ ->
            []
    end.

%% The delayed exchanges that retry, and where they park.
retrying(#{exchanges := Exchanges, policies := Policies}) ->
    Compiled = rabbit_delay_queue_settings:compile(Policies),
    maps:from_list(
      [{Name, Parking}
       || {Name, #{type := <<"x-delayed-message">>} = X} <- maps:to_list(Exchanges),
          #{parking := Parking} <- [rabbit_delay_retry:plan(
                                      fun (Key) -> retry_setting(Key, X, Compiled) end)]]).

retry_setting(Key, #{name := Name, arguments := Arguments}, Policies) ->
    Argument = <<"x-", Key/binary>>,
    Value = case Arguments of
                #{Argument := FromArgument} ->
                    FromArgument;
                _ ->
                    case rabbit_delay_queue_settings:matching(exchange, Name, Policies) of
                        #{held := [#{definition := #{Key := FromPolicy}} | _]} -> FromPolicy;
                        _ -> undefined
                    end
            end,
    case rabbit_delay_retry:check(Key, Key, Value) of
        ok -> Value;
        {error, _, _} -> undefined
    end.

settle_policies(#{queues := Queues, policies := Policies0, operator_policies := Operator0}) ->
    Policies = rabbit_delay_queue_settings:compile(Policies0),
    Operator = rabbit_delay_queue_settings:compile(Operator0),
    {Qs, Unusable} =
        lists:mapfoldl(
          fun (#{name := Name, type := Type} = Queue, Acc) ->
                  #{held := Held, foreign := Foreign, unusable := Bad} =
                      rabbit_delay_queue_settings:matching({queue, Type}, Name, Policies),
                  #{held := HeldOp} =
                      rabbit_delay_queue_settings:matching({queue, Type}, Name, Operator),
                  {#q{name = Name, queue = Queue, type = Type, held = Held, foreign = Foreign,
                      settings = rabbit_delay_queue_settings:of_queue(Queue, Held, HeldOp)},
                   lists:foldl(fun (#{name := P} = Policy, A) -> A#{P => Policy} end, Acc, Bad)}
          end, #{}, maps:values(Queues)),
    {Qs, maps:values(Unusable)}.

dead_letter_targets(Graph) ->
    maps:fold(fun ({queue, _}, _, Acc) -> Acc;
                  (_, Next, Acc) -> lists:foldl(fun ({queue, Name}, A) -> A#{Name => true};
                                                    (_, A) -> A
                                                end, Acc, Next)
              end, #{}, Graph).

bindings_to(#{bindings := Bindings}, Queues) ->
    lists:foldl(fun (#{destination := {queue, Name}} = B, Acc) when is_map_key(Name, Queues) ->
                        maps:update_with(Name, fun (Bs) -> [B | Bs] end, [B], Acc);
                    (_, Acc) ->
                        Acc
                end, #{}, Bindings).

cyclic(Graph) ->
    Parts = rabbit_delay_dead_letter_routes:cycles(fun (_) -> true end, Graph),
    #{parts => Parts,
      queues => maps:from_list([{Name, true} || Part <- Parts, {queue, Name} <- Part])}.
