%% SPDX-License-Identifier: MPL-2.0

%% Finds the traps in how a broker's queues dead-letter and expire messages: those that lose
%% messages, block them, or let them go round for ever. It looks at a topology and at nothing else.
-module(rabbit_delay_doctor).

-export([check/1, live/1, live_graph/1, rules/0, severity_rank/1]).
-export([settings/2, at_once/1, reaches_at_once/3]).

-export_type([finding/0, rule/0, severity/0]).

-type severity() :: error | warning | info.

-type rule() :: dlx_missing | dlx_unroutable | routing_key_without_dlx | ttl_without_dlx |
                expires_loses_messages | head_of_line_ttl | cycle_dropped | cycle_unbounded |
                at_most_once | at_least_once_drop_head | at_least_once_unavailable |
                delivery_limit_without_dlx | parking_unwatched | x_death_growth | priority_ttl |
                ttl_zero | policy_tie | policy_shadowed | policy_not_applicable |
                argument_over_policy | policy_unusable | unusable_value | delay_ladder |
                retry_parking_missing.

-type finding() :: #{rule := rule(), severity := severity(), vhost := binary(),
                     kind := queue | policy, name := binary(),
                     %% why it bites
                     why := binary(),
                     %% what to do about it, in words and as shell commands that do it
                     mend := binary(), commands := [binary()]}.

-record(q, {name :: binary(),
            queue :: rabbit_delay_topology:queue(),
            type :: classic | quorum | stream | other,
            settings :: rabbit_delay_queue_settings:settings(),
            held :: [rabbit_delay_topology:policy()],
            foreign :: [rabbit_delay_topology:policy()]}).

%% Ladders and chains shorter than this are not worth a word.
-define(LADDER_STEPS, 3).
-define(LONG_CHAIN, 8).
%% How many names a text lists.
-define(NAMES, 5).
%% How many ends of a delay are looked for.
-define(ENDS, 20).

%% The worst first.
-spec check(rabbit_delay_topology:topology()) -> [finding()].
check(#{vhosts := VHosts} = Topology) ->
    Found = lists:append([check_vhost(Topology, VHost, maps:get(VHost, VHosts))
                          || VHost <- rabbit_delay_topology:vhosts(Topology)]),
    lists:sort(fun (A, B) -> order(A) =< order(B) end, Found).

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

%% Where dead letters go in a vhost of the broker that this runs in: from queues with a dead-letter
%% exchange on, and those queues whose exchange does not exist.
-spec live_graph(rabbit_types:vhost()) ->
          {ok, {rabbit_delay_dead_letter_routes:graph(), [{Queue :: binary(), Missing :: binary()}]}}
          | {error, {no_such_vhost, binary()}}.
live_graph(VHost) ->
    case rabbit_vhost:exists(VHost) of
        true ->
            #{vhosts := #{VHost := #{exchanges := Exchanges} = Objects}} =
                rabbit_delay_topology:live([VHost]),
            {Qs, _} = settle_policies(Objects),
            {Sources, _, Graph} = dead_lettering(Qs, retrying(Objects), Objects),
            Missing = [{Name, X} || #q{name = Name} = Q <- Qs, X <- [value(dlx, Q)],
                                    is_binary(X), not is_map_key(X, Exchanges),
                                    not is_map_key(Name, Sources)],
            {ok, {Graph, Missing}};
        false ->
            {error, {no_such_vhost, VHost}}
    end.

-spec rules() -> [rule()].
rules() ->
    [dlx_missing, dlx_unroutable, routing_key_without_dlx, ttl_without_dlx,
     expires_loses_messages, head_of_line_ttl, cycle_dropped, cycle_unbounded, at_most_once,
     at_least_once_drop_head, at_least_once_unavailable, delivery_limit_without_dlx,
     parking_unwatched, x_death_growth, priority_ttl, ttl_zero, policy_tie, policy_shadowed,
     policy_not_applicable, argument_over_policy, policy_unusable, unusable_value, delay_ladder,
     retry_parking_missing].

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
      Objects, maps:from_list([{Name, {X, value(dlk, Q)}}
                               || #q{name = Name} = Q <- Qs, value(ttl, Q) =:= 0,
                                  X <- [value(dlx, Q)], is_map_key(X, Exchanges)])).

%% Where a message published with this key gets at once.
-spec reaches_at_once(Exchange :: binary(), Key :: binary(),
                      rabbit_delay_dead_letter_routes:index()) -> #{Queue :: binary() => true}.
reaches_at_once(X, Key, Index) ->
    Graph = rabbit_delay_dead_letter_routes:explore([{routing, X, {key, Key}}], Index),
    maps:from_list([{Name, true} || {queue, Name} <- maps:keys(Graph)]).

%% The queues that dead-letter to an exchange that is there, and where that leads.
dead_lettering(Qs, Retrying, Objects) ->
    Sources = maps:from_list([{Name, Source} || #q{name = Name} = Q <- Qs,
                                                Source <- source(Q, Retrying, Objects)]),
    Index = rabbit_delay_dead_letter_routes:index(Objects, Sources),
    {Sources, Index,
     rabbit_delay_dead_letter_routes:explore([{queue, Name} || Name <- maps:keys(Sources)], Index)}.

check_vhost(Topology, VHost, #{queues := Queues} = Objects) ->
    {Qs, Unusable} = settle_policies(Objects),
    Retrying = retrying(Objects),
    {Sources, Index, Graph} = dead_lettering(Qs, Retrying, Objects),
    Context = #{vhost => VHost, objects => Objects, topology => Topology, index => Index,
                graph => Graph, sources => Sources, retrying => Retrying,
                qs => maps:from_list([{Name, Q} || #q{name = Name} = Q <- Qs]),
                dead_letter_targets => dead_letter_targets(Graph),
                bindings_to => bindings_to(Objects, Queues),
                cyclic => cyclic(Graph)},
    lists:append([lists:append([of_queue(Q, Context) || Q <- Qs]),
                  cycles(Context), ladders(Context), policies(Qs, Context),
                  [unusable_policy(P, Context) || P <- Unusable]]).

%% Where what dies in a queue goes for good. A delayed exchange that retries gives it back, so often
%% and no more, and then parks it: not by its bindings, and in no cycle.
source(Q, Retrying, #{exchanges := Exchanges}) ->
    Key = value(dlk, Q),
    case value(dlx, Q) of
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

%% -------------------------------------------------------------------------- settings of a queue

value(Item, #q{settings = Settings}) ->
    case Settings of
        #{Item := {Value, _}} -> Value;
        _ -> undefined
    end.

origin(Item, #q{settings = Settings}) ->
    #{Item := {_, Origin}} = Settings,
    Origin.

has(Item, #q{settings = Settings}) -> is_map_key(Item, Settings).

%% What the broker adds where nothing is set.
delivery_limit(#q{type = quorum} = Q, #{topology := #{version := Version}}) ->
    case value(delivery_limit, Q) of
        undefined ->
            case rabbit_delay_queue_settings:default_delivery_limit(Version) of
                infinity -> none;
                Limit -> {Limit, default}
            end;
        infinity -> none;
        Limit -> {Limit, explicit}
    end;
delivery_limit(_, _) ->
    none.

%% Why messages may leave the queue without having been rejected.
automatic(Q, Context) ->
    [Cause || {Cause, true} <-
                  [{"they expire", has(ttl, Q)},
                   {"the queue is full",
                    (has(max_length, Q) orelse has(max_bytes, Q))
                    andalso value(overflow, Q) =/= <<"reject-publish">>},
                   {"they reach the delivery limit",
                    element(1, delivery_limit_or_none(Q, Context)) =:= explicit}]].

delivery_limit_or_none(Q, Context) ->
    case delivery_limit(Q, Context) of
        none -> {none, none};
        {Limit, How} -> {How, Limit}
    end.

%% ------------------------------------------------------------------------------ rules of a queue

of_queue(#q{type = stream}, _) ->
    [];
of_queue(Q, Context) ->
    lists:append([dead_letter_exchange(Q, Context), time_to_live(Q, Context),
                  expiry(Q, Context), head_of_line(Q, Context), strategy(Q, Context),
                  no_dlx_at_limit(Q, Context), parking(Q, Context), priorities(Q, Context),
                  unusable_values(Q, Context)]).

dead_letter_exchange(Q, #{objects := #{exchanges := Exchanges}, retrying := Retrying} = Context) ->
    case {value(dlx, Q), value(dlk, Q)} of
        {undefined, undefined} ->
            [];
        {undefined, Key} ->
            [finding(routing_key_without_dlx, warning, Q, Context,
                     ["It has the dead-letter routing key \"", Key, "\" but no dead-letter exchange: "
                      "its dead letters are dropped."],
                     "Name the exchange too.",
                     [set(Q, #{<<"dead-letter-exchange">> => <<>>}, Context)])];
        {X, _} when not is_map_key(X, Exchanges) ->
            Parked = <<X/binary, ".parked">>,
            [finding(dlx_missing, error, Q, Context,
                     ["Its dead-letter exchange \"", X, "\" does not exist: the broker drops its "
                      "dead letters and says nothing."],
                     "Declare the exchange, and a queue that takes what comes to it.",
                     [put_exchange(X, <<"fanout">>, #{}, Context),
                      put_queue(Parked, #{}, Context), bind(X, Parked, <<>>, #{}, Context)])];
        {X, _} when is_map_key(X, Retrying) ->
            parking_missing(Q, X, maps:get(X, Retrying), Context);
        {X, Key} ->
            unroutable(Q, X, Key, Context)
    end.

parking_missing(Q, X, {Parking, Key}, #{objects := #{exchanges := Exchanges}} = Context)
  when not is_map_key(Parking, Exchanges) ->
    Parked = <<Parking/binary, ".parked">>,
    [finding(retry_parking_missing, error, Q, Context,
             ["Its dead letters are retried by the delayed exchange ", exchange_text(X),
              ", whose parking exchange \"", Parking, "\" does not exist: what is not to be tried "
              "again stays in the delayed exchange, unless that has a dead-letter exchange."],
             "Declare the exchange, and a queue that takes what comes to it.",
             [put_exchange(Parking, <<"fanout">>, #{}, Context), put_queue(Parked, #{}, Context),
              bind(Parking, Parked, case Key of undefined -> <<>>; _ -> Key end, #{}, Context)])];
parking_missing(_, _, _, _) ->
    [].

unroutable(#q{name = Name} = Q, X, DLK, #{index := Index, graph := Graph} = Context) ->
    Arrivals = rabbit_delay_dead_letter_routes:arrivals(Name, {X, DLK}, Index),
    {Routed, Lost} = lists:partition(
                       fun (Keys) ->
                               rabbit_delay_dead_letter_routes:leads_to_queue({routing, X, Keys},
                                                                              Graph)
                       end, Arrivals),
    case {Lost, X} of
        {[], _} ->
            [];
        {[any], <<>>} ->
            [finding(dlx_unroutable, warning, Q, Context,
                     ["Its dead letters go to the default exchange with the key that they were "
                      "published with, that is to a queue of that name; where there is none they are "
                      "dropped."],
                     "Say to which queue they go.",
                     to_parking(Q, X, Context))];
        _ ->
            {Severity, Which} = case Routed of
                                    [] -> {error, ["Its dead letters"]};
                                    _ -> {warning, ["Dead letters with ", keys_text(Lost)]}
                                end,
            [finding(dlx_unroutable, Severity, Q, Context,
                     [Which, " match no binding of the dead-letter exchange ", exchange_text(X),
                      case Routed of
                          [] -> [" (", keys_text(Lost), ")"];
                          _ -> []
                      end,
                      ": the broker drops them and says nothing."],
                     "Bind a queue that takes them.", bind_lost(Q, X, Lost, Context))]
    end.

keys_text(Keys) ->
    Texts = [case K of
                 {key, Key} -> ["key \"", Key, "\""];
                 {pattern, Words} -> ["keys like \"", lists:join($., Words), "\""];
                 any -> "any key"
             end || K <- lists:sublist(Keys, ?NAMES)],
    [lists:join(", ", Texts), more(Keys)].

more(List) ->
    case length(List) - ?NAMES of
        N when N > 0 -> [" and ", integer_to_binary(N), " more"];
        _ -> []
    end.

names(Names) ->
    [lists:join(", ", [["\"", Name, "\""] || Name <- lists:sublist(Names, ?NAMES)]), more(Names)].

exchange_text(<<>>) -> "\"\" (the default exchange)";
exchange_text(X) -> ["\"", X, "\""].

bind_lost(_, <<>>, Lost, Context) ->
    [put_queue(Key, #{}, Context) || {key, Key} <- lists:sublist(Lost, ?NAMES)];
bind_lost(_, X, Lost, Context) ->
    Parked = <<X/binary, ".parked">>,
    [put_queue(Parked, #{}, Context) |
     [bind(X, Parked, case Keys of
                          {key, Key} -> Key;
                          {pattern, Words} -> iolist_to_binary(lists:join($., Words));
                          any -> <<"#">>
                      end, #{}, Context) || Keys <- lists:sublist(Lost, ?NAMES)]].

time_to_live(Q, Context) ->
    case {value(ttl, Q), has(dlx, Q)} of
        {undefined, _} ->
            [];
        {0, HasDlx} ->
            [finding(ttl_zero, case HasDlx of true -> warning; false -> error end, Q, Context,
                     ["Its message TTL is 0: a message that cannot go to a waiting consumer at once ",
                      case HasDlx of
                          true -> "is dead-lettered";
                          false -> "vanishes"
                      end, ", and so does one that a consumer gives back."],
                     "Give messages the time that a consumer may need, or take the TTL away.",
                     without_ttl(Q, Context))];
        {Ttl, false} ->
            [finding(ttl_without_dlx, warning, Q, Context,
                     ["Messages expire after ", ms(Ttl), " and there is no dead-letter exchange: "
                      "they vanish."],
                     "If they matter, name a dead-letter exchange.", to_parking(Q, <<>>, Context))];
        _ ->
            []
    end.

without_ttl(Q, Context) ->
    case origin(ttl, Q) of
        argument -> recreate(Q, [<<"x-message-ttl">>], #{}, Context);
        policy -> [set(Q, #{<<"message-ttl">> => 60000}, Context)];
        operator_policy -> [<<"rabbitmqctl list_operator_policies">>]
    end.

expiry(#q{name = Name} = Q, #{dead_letter_targets := Targets} = Context) ->
    expiry(Q, value(expires, Q), has(dlx, Q), is_map_key(Name, Targets), Context).

expiry(_, undefined, _, _, _) ->
    [];
expiry(_, _, false, false, _) ->
    [];
expiry(Q, Expires, HasDlx, _, Context) ->
    {Severity, When} =
        case value(ttl, Q) of
            Ttl when is_integer(Ttl), HasDlx, Ttl >= Expires ->
                {error, ["before they expire (", ms(Ttl), ")"]};
            Ttl when is_integer(Ttl), HasDlx ->
                {warning, ["unless it is declared again or read at least every ",
                           ms(Expires - Ttl)]};
            _ ->
                {warning, ["with all that is in it"]}
        end,
    [finding(expires_loses_messages, Severity, Q, Context,
             ["The queue is deleted when it was unused for ", ms(Expires), ", ", When,
              ": its messages are not dead-lettered then, they are lost."],
             "Take x-expires away, and for delays use a delayed exchange, which needs no such queue.",
             case origin(expires, Q) of
                 argument -> recreate(Q, [<<"x-expires">>], #{}, Context);
                 policy -> [set(Q, #{<<"expires">> => undefined}, Context)];
                 operator_policy -> [<<"rabbitmqctl list_operator_policies">>]
             end)].

%% Per-message TTLs are in no definition: what gives such a queue away is its name, or that it is in
%% a cycle without consuming anything.
head_of_line(#q{name = Name, queue = #{consumers := Consumers}} = Q,
             #{cyclic := #{queues := Cyclic}} = Context) ->
    Suspected = re:run(Name, "delay|wait|retry|later|defer|backoff|schedul",
                       [caseless, {capture, none}]) =:= match
        orelse (Consumers =:= 0 andalso is_map_key(Name, Cyclic)),
    case has(dlx, Q) andalso not has(ttl, Q) andalso Suspected
        andalso (Consumers =:= 0 orelse Consumers =:= unknown) of
        true ->
            [finding(head_of_line_ttl, warning, Q, Context,
                     ["It looks like a delay by per-message TTL: it dead-letters, has no TTL of its "
                      "own", case Consumers of 0 -> " and no consumer"; _ -> "" end,
                      ". Messages leave a queue only at its head, so one with a long TTL blocks all "
                      "shorter ones behind it."],
                     "Delay by a delayed exchange (x-delay per message).",
                     replacement([Name], Context))];
        false ->
            []
    end.

strategy(#q{type = Type} = Q, #{topology := #{at_least_once := Available}} = Context) ->
    AtLeastOnce = value(strategy, Q) =:= <<"at-least-once">>,
    case has(dlx, Q) of
        true when Type =:= quorum, AtLeastOnce, not Available ->
            [finding(at_least_once_unavailable, error, Q, Context,
                     ["It asks for at-least-once dead-lettering, which this broker does not have: "
                      "that is RabbitMQ 3.10 and later with the feature flag stream_queue enabled. "
                      "It dead-letters at most once."],
                     "Enable the feature flag.",
                     [<<"rabbitmqctl enable_feature_flag stream_queue">>])];
        true when Type =:= quorum, AtLeastOnce ->
            case value(overflow, Q) of
                <<"reject-publish">> ->
                    [];
                Overflow ->
                    [finding(at_least_once_drop_head, error, Q, Context,
                             ["It asks for at-least-once dead-lettering, but its overflow is ",
                              case Overflow of
                                  undefined -> "drop-head, the default";
                                  _ -> Overflow
                              end, ": the broker falls back to at-most-once and says so only in its "
                              "log."],
                             "Set overflow to reject-publish.",
                             [set(Q, #{<<"overflow">> => <<"reject-publish">>}, Context)])]
            end;
        true when Type =:= quorum ->
            [finding(at_most_once, warning, Q, Context,
                     ["The queue is replicated but dead-letters at most once: a dead letter is lost "
                      "when its target is full, down or loses its leader at that moment."],
                     "Set dead-letter-strategy to at-least-once and overflow to reject-publish.",
                     [set(Q, #{<<"dead-letter-strategy">> => <<"at-least-once">>,
                               <<"overflow">> => <<"reject-publish">>}, Context)])];
        true ->
            case has(ha_mode, Q) of
                true ->
                    [finding(at_most_once, warning, Q, Context,
                             ["The queue is mirrored but dead-letters at most once: a dead letter is "
                              "lost when its target is full or down at that moment."],
                             "Make it a quorum queue that dead-letters at least once.",
                             recreate(Q, [], #{<<"x-queue-type">> => <<"quorum">>,
                                               <<"x-dead-letter-strategy">> => <<"at-least-once">>,
                                               <<"x-overflow">> => <<"reject-publish">>},
                                      Context))];
                false ->
                    []
            end;
        false ->
            []
    end.

no_dlx_at_limit(Q, Context) ->
    case {has(dlx, Q), delivery_limit(Q, Context)} of
        {false, {Limit, How}} ->
            {Severity, Said} = case How of
                                   explicit -> {error, "Its delivery limit is "};
                                   default -> {warning, "Its delivery limit is the default, "}
                               end,
            [finding(delivery_limit_without_dlx, Severity, Q, Context,
                     [Said, integer_to_binary(Limit), ", and there is no dead-letter exchange: a "
                      "message that consumers give back more often is dropped."],
                     "Name a dead-letter exchange.", to_parking(Q, <<>>, Context))];
        _ ->
            []
    end.

parking(#q{name = Name, queue = #{consumers := Consumers}} = Q,
        #{dead_letter_targets := Targets} = Context) ->
    Grows = is_map_key(Name, Targets) andalso not has(dlx, Q) andalso not has(ttl, Q)
        andalso not has(max_length, Q) andalso not has(max_bytes, Q),
    case {Grows, Consumers} of
        {true, 0} ->
            [finding(parking_unwatched, warning, Q, Context,
                     "Dead letters end here, nobody consumes them and there is no length limit: it "
                     "grows until the disk is full, and nobody notices what failed.",
                     "Watch it and redrive what is in it; limit its length.",
                     parking_limit(Q, Context))];
        {true, unknown} ->
            [finding(parking_unwatched, info, Q, Context,
                     "Dead letters end here and there is no length limit: unless somebody consumes "
                     "them it grows until the disk is full.",
                     "Watch it and redrive what is in it; limit its length.",
                     parking_limit(Q, Context))];
        _ ->
            []
    end.

parking_limit(#q{name = Name} = Q, #{vhost := VHost} = Context) ->
    [set(Q, #{<<"max-length">> => 1000000}, Context),
     command(["rabbitmqctl dead_letter_stats --vhost ", sh(VHost), " -- ", sh(Name)])].

priorities(Q, Context) ->
    case {value(max_priority, Q), has(ttl, Q)} of
        {Max, true} when is_integer(Max), Max > 0 ->
            [finding(priority_ttl, warning, Q, Context,
                     "It has priorities and a TTL: expired messages leave only at the head, so those "
                     "of a low priority stay, and are delivered late or count as ready, for as long "
                     "as one of a higher priority has not expired.",
                     "Use a queue for each priority, or no TTL on this one.",
                     case origin(ttl, Q) of
                         argument -> recreate(Q, [<<"x-max-priority">>], #{}, Context);
                         _ -> [set(Q, #{<<"message-ttl">> => undefined}, Context)]
                     end)];
        _ ->
            []
    end.

unusable_values(#q{settings = Settings} = Q, Context) ->
    [finding(unusable_value, error, Q, Context,
             ["The value of ", Key, " is one that the broker does not accept: it refuses the "
              "definition or ignores the key."],
             "Correct the value.", recreate(Q, [<<"x-", Key/binary>>], #{}, Context))
     || Key <- lists:usort(maps:get(unusable, Settings, []))].

%% ----------------------------------------------------------------------------- rules of the graph

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
    Edges = maps:fold(
              fun ({queue, Name}, _, Acc) when not is_map_key(Name, Delays) ->
                      Acc;
                  (Node, Next, Acc) ->
                      lists:foldl(fun (To, A) -> connect(Node, To, Delays, A) end, Acc, Next)
              end, #{}, Graph),
    [ladder(Steps, Context)
     || Part <- components(maps:keys(Edges), Edges, #{}),
        Steps <- [[Name || {queue, Name} <- Part, is_map_key(Name, Delays)]],
        is_ladder(Steps, Qs)].

connect(_, {queue, Name}, Delays, Edges) when not is_map_key(Name, Delays) ->
    Edges;
connect(A, B, _, Edges) ->
    add_edge(A, B, add_edge(B, A, Edges)).

add_edge(A, B, Edges) -> maps:update_with(A, fun (Bs) -> [B | Bs] end, [B], Edges).

components([], _, _) ->
    [];
components([Node | Rest], Edges, Seen) when is_map_key(Node, Seen) ->
    components(Rest, Edges, Seen);
components([Node | Rest], Edges, Seen0) ->
    {Part, Seen} = component([Node], Edges, [], Seen0),
    [Part | components(Rest, Edges, Seen)].

component([], _, Part, Seen) ->
    {Part, Seen};
component([Node | Rest], Edges, Part, Seen) when is_map_key(Node, Seen) ->
    component(Rest, Edges, Part, Seen);
component([Node | Rest], Edges, Part, Seen) ->
    component(lists:foldl(fun (N, Acc) -> [N | Acc] end, Rest, maps:get(Node, Edges)), Edges,
              [Node | Part], Seen#{Node => true}).

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

%% A delayed exchange that leads to where the dead letters of these queues go in the end.
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

%% ------------------------------------------------------------------------------ rules of policies

-define(DEAD_LETTER_KEYS, [<<"dead-letter-exchange">>, <<"message-ttl">>]).

policies(Qs, Context) ->
    Found = lists:foldl(
              fun (#q{name = Name} = Q, Acc) ->
                      lists:foldl(
                        fun (Clash, A) ->
                                maps:update_with(Clash, fun (Names) -> [Name | Names] end, [Name], A)
                        end, Acc, clashes(Q))
              end, #{}, Qs),
    [policy_finding(Clash, lists:sort(Names), Context)
     || {Clash, Names} <- lists:sort(maps:to_list(Found))].

clashes(#q{held = Held, foreign = Foreign} = Q) ->
    [{not_applicable, Name} || #{name := Name, definition := Definition} <- Foreign,
                               lists:any(fun (Key) -> is_map_key(Key, Definition) end,
                                         ?DEAD_LETTER_KEYS)]
        ++ held_clashes(Held, Q).

held_clashes([], _) ->
    [];
held_clashes([#{name := Best, priority := Priority, definition := Definition} | Others],
             #q{queue = #{arguments := Arguments}} = Q) ->
    [{tie, Best, Name} || #{name := Name, priority := P, definition := D} <- Others,
                          P =:= Priority, D =/= Definition]
        ++ lists:sublist(
             [{shadowed, Best, Name}
              || #{name := Name, priority := P, definition := #{<<"dead-letter-exchange">> := _}}
                     <- Others,
                 P < Priority, not is_map_key(<<"dead-letter-exchange">>, Definition),
                 not has(dlx, Q)], 1)
        ++ [{argument, Best} || #{<<"dead-letter-exchange">> := OfPolicy} <- [Definition],
                                #{<<"x-dead-letter-exchange">> := OfArgument} <- [Arguments],
                                OfPolicy =/= OfArgument].

policy_finding({tie, Best, Other}, Queues, Context) ->
    #{priority := Priority} = Policy = policy(Best, Context),
    policy_finding(policy_tie, error, Best, Context,
                   ["The policies \"", Best, "\" and \"", Other, "\" both match ", names(Queues),
                    " with priority ", integer_to_binary(Priority), ". Only one of them holds, and "
                    "which one is not defined."],
                   "Give one of them a higher priority.",
                   [set_policy(Policy#{priority := Priority + 1}, Context)]);
policy_finding({shadowed, Best, Other}, Queues, Context) ->
    #{definition := Definition} = Policy = policy(Best, Context),
    #{definition := Lost} = policy(Other, Context),
    policy_finding(policy_shadowed, error, Best, Context,
                   ["The policy \"", Other, "\" says where the dead letters of ", names(Queues),
                    " go, but \"", Best, "\" matches with a higher priority and holds alone: policies "
                    "are not merged. Their dead letters are dropped."],
                   "Put the keys of both into the one that wins.",
                   [set_policy(Policy#{definition := maps:merge(Lost, Definition)}, Context)]);
policy_finding({argument, Best}, Queues, Context) ->
    policy_finding(argument_over_policy, info, Best, Context,
                   ["The dead-letter exchange of the policy \"", Best, "\" does not hold for ",
                    names(Queues), ": the queue's argument x-dead-letter-exchange goes first."],
                   "Declare the queues without that argument, so that the policy decides.",
                   []);
policy_finding({not_applicable, Name}, Queues, #{qs := Qs} = Context) ->
    #{definition := Definition} = Policy = policy(Name, Context),
    #q{type = Type} = maps:get(hd(Queues), Qs),
    Keys = rabbit_delay_queue_settings:foreign_keys({queue, Type}, Definition),
    policy_finding(policy_not_applicable, error, Name, Context,
                   ["The policy \"", Name, "\" matches ", names(Queues), " but does not apply: ",
                    lists:join(", ", Keys), " is not for ", atom_to_binary(Type, utf8),
                    " queues, and then the broker ignores the whole policy. Dead-letter exchange and "
                    "TTL in it do not hold."],
                   "Make a policy without these keys for such queues.",
                   [set_policy(Policy#{name := <<Name/binary, "-", (atom_to_binary(Type, utf8))/binary>>,
                                       definition := maps:without(Keys, Definition)}, Context)]).

unusable_policy(#{name := Name, pattern := Pattern} = Policy, Context) ->
    policy_finding(policy_unusable, error, Name, Context,
                   ["Its pattern \"", Pattern, "\" is not a regular expression, or takes so many "
                    "steps that the broker is slow with each declaration."],
                   "Write a simpler pattern.",
                   [set_policy(Policy#{pattern := <<"^replace me$">>}, Context)]).

policy(Name, #{objects := #{policies := Policies}}) ->
    hd([Policy || #{name := N} = Policy <- Policies, N =:= Name]).

%% ---------------------------------------------------------------------------------------- findings

finding(Rule, Severity, #q{name = Name}, Context, Why, Mend, Commands) ->
    finding(Rule, Severity, queue, Name, Context, Why, Mend, Commands).

policy_finding(Rule, Severity, Name, Context, Why, Mend, Commands) ->
    finding(Rule, Severity, policy, Name, Context, Why, Mend, Commands).

finding(Rule, Severity, Kind, Name, #{vhost := VHost}, Why, Mend, Commands) ->
    #{rule => Rule, severity => Severity, vhost => VHost, kind => Kind, name => Name,
      why => iolist_to_binary(Why), mend => iolist_to_binary(Mend),
      commands => lists:flatten(Commands)}.

ms(Ms) when Ms rem 86400000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 86400000), " d"];
ms(Ms) when Ms rem 3600000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 3600000), " h"];
ms(Ms) when Ms rem 60000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 60000), " min"];
ms(Ms) when Ms rem 1000 =:= 0, Ms > 0 -> [integer_to_binary(Ms div 1000), " s"];
ms(Ms) -> [integer_to_binary(Ms), " ms"].

%% ---------------------------------------------------------------------------------------- commands

%% Dead letters of the queue go to a queue of their own.
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
set(#q{name = Name, held = Held}, Changes, Context) ->
    {Definition, Priority} = case Held of
                                 [#{definition := D, priority := P} | _] -> {D, P + 1};
                                 [] -> {#{}, 0}
                             end,
    set_policy(#{name => <<"for ", Name/binary>>, pattern => [$^, escaped(Name), $$],
                 apply_to => <<"queues">>, priority => Priority,
                 definition => maps:filter(fun (_, Value) -> Value =/= undefined end,
                                           maps:merge(Definition, Changes))}, Context).

set_policy(#{name := Name, pattern := Pattern, apply_to := ApplyTo, priority := Priority,
             definition := Definition}, #{vhost := VHost}) ->
    command(["rabbitmqctl set_policy --vhost ", sh(VHost), " --priority ",
             integer_to_binary(Priority), " --apply-to ", sh(ApplyTo), " -- ", sh(Name), " ",
             sh(Pattern), " ", sh(json(Definition))]).

escaped(Name) ->
    re:replace(Name, "[][^$.|?*+(){}\\\\]", "\\\\&", [global]).

%% The queue declared anew. Its messages must be out of it.
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

put_queue(Name, Arguments, Context) -> put_queue(Name, true, Arguments, Context).

put_queue(Name, Durable, Arguments, Context) ->
    curl("PUT", ["queues/", path(Context), $/, quoted(Name)],
         #{<<"durable">> => Durable, <<"arguments">> => Arguments}).

put_exchange(Name, Type, Arguments, Context) ->
    curl("PUT", ["exchanges/", path(Context), $/, quoted(Name)],
         #{<<"type">> => Type, <<"durable">> => true, <<"arguments">> => Arguments}).

bind(X, Queue, Key, Arguments, Context) ->
    curl("POST", ["bindings/", path(Context), "/e/", quoted(X), "/q/", quoted(Queue)],
         #{<<"routing_key">> => Key, <<"arguments">> => Arguments}).

curl(Method, Path, Body) ->
    command(["curl -fsS -X ", Method, " \"$API/", Path, "\" -H content-type:application/json -d ",
             sh(json(Body))]).

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
sh(Text) ->
    [$', binary:replace(iolist_to_binary(Text), <<"'">>, <<"'\\''">>, [global]), $'].
