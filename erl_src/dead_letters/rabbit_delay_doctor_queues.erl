%% SPDX-License-Identifier: MPL-2.0

%% The doctor's rules for one queue at a time, and what they and the other rules ask of a queue.
%%
%% Pure functions of a topology.
-module(rabbit_delay_doctor_queues).

-include("rabbit_delay_doctor.hrl").

-export([check/2, value/2, origin/2, has/2, automatic/2]).

-import(rabbit_delay_doctor_mends,
        [finding/7, command/1, sh/1, ms/1, names/1, more/1, exchange_text/1, to_parking/3, set/3,
         recreate/4, put_exchange/4, put_queue/3, put_parking/3, bind/5, replacement/2]).

%% So many dead letters in one queue have been forgotten.
-define(UNWATCHED, 10000).

%% Keys of policies that have an effect there alone; as arguments they begin with x-.
-define(POLICY_KEYS, [<<"message-ttl">>, <<"expires">>, <<"dead-letter-exchange">>,
                      <<"dead-letter-routing-key">>, <<"dead-letter-strategy">>, <<"max-length">>,
                      <<"max-length-bytes">>, <<"overflow">>, <<"delivery-limit">>]).

-spec check(#q{}, rabbit_delay_doctor:context()) -> [rabbit_delay_doctor:finding()].
check(#q{type = stream}, _) ->
    [];
check(Q, Context) ->
    lists:append([dead_letter_exchange(Q, Context), time_to_live(Q, Context),
                  expiry(Q, Context), head_of_line(Q, Context), strategy(Q, Context),
                  no_dlx_at_limit(Q, Context), parking(Q, Context), priorities(Q, Context),
                  unusable_values(Q, Context), policy_keys(Q, Context)]).

dead_letter_exchange(Q, #{objects := #{exchanges := Exchanges}, retrying := Retrying} = Context) ->
    case {value(dlx, Q), value(dlk, Q)} of
        {undefined, undefined} ->
            [];
        {undefined, Key} ->
            [finding(routing_key_without_dlx, warning, Q, Context,
                     ["It has the dead-letter routing key \"", Key, "\" but no dead-letter exchange: "
                      "its dead letters are dropped."],
                     "Name the exchange too: the default one, which leads to the queue of that name, if "
                     "there is no other.",
                     [put_parking(Key, Q, Context),
                      set(Q, #{<<"dead-letter-exchange">> => <<>>}, Context)])];
        {X, _} when not is_map_key(X, Exchanges) ->
            Parked = <<X/binary, ".parked">>,
            [finding(dlx_missing, error, Q, Context,
                     ["Its dead-letter exchange \"", X, "\" does not exist: ", lost(Q, Context), "."],
                     "Declare the exchange, and a queue that takes what comes to it. Where an "
                     "application declares the exchange, let it have the type that it has there.",
                     [put_exchange(X, <<"fanout">>, #{}, Context),
                      put_parking(Parked, Q, Context), bind(X, Parked, <<>>, #{}, Context)])];
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
             [put_exchange(Parking, <<"fanout">>, #{}, Context), put_parking(Parked, Q, Context),
              bind(Parking, Parked, case Key of undefined -> <<>>; _ -> Key end, #{}, Context)])];
parking_missing(_, _, _, _) ->
    [].

unroutable(#q{name = Name, settings = Settings} = Q, X, DLK, #{index := Index, graph := Graph} = Context) ->
    Arrivals = rabbit_delay_dead_letter_routes:arrivals(Name, {X, DLK}, Index),
    {Routed, Lost} = lists:partition(
                       fun (Keys) ->
                               rabbit_delay_dead_letter_routes:leads_to_queue({routing, X, Keys},
                                                                              Graph)
                       end, Arrivals),
    case {Lost, X} of
        {[], _} ->
            [];
        {[any], <<>>} when Routed =/= [] ->
            [];
        {[any], <<>>} when is_map_key(ttl, Settings) ->
            %% a delay whose messages come back to the queue that they are named after
            [];
        {[any], <<>>} ->
            [finding(dlx_unroutable, warning, Q, Context,
                     ["Its dead letters go to the default exchange with the key that they were "
                      "published with, that is to a queue of that name; where there is none, ",
                      lost(Q, Context), "."],
                     "Say to which queue they go. They no longer go to the queues named as their keys "
                     "then.",
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
                      ": ", lost(Q, Context), "."],
                     "Bind a queue that takes them.", bind_lost(Q, X, Lost, Context))]
    end.

%% What becomes of dead letters that have nowhere to go.
lost(Q, #{topology := #{at_least_once := Available}}) ->
    case Q#q.type =:= quorum andalso Available andalso value(strategy, Q) =:= <<"at-least-once">>
        andalso value(overflow, Q) =:= <<"reject-publish">> of
        true -> "as it dead-letters at least once, they stay in it, are tried again and again, and "
                    "block it when it is full";
        false -> "the broker drops them and says nothing"
    end.

keys_text(Keys) ->
    Texts = [case K of
                 {key, Key} -> ["key \"", Key, "\""];
                 {pattern, Words} -> ["keys like \"", lists:join($., Words), "\""];
                 any -> "any key"
             end || K <- lists:sublist(Keys, ?NAMES)],
    [lists:join(", ", Texts), more(Keys)].

bind_lost(Q, <<>>, Lost, Context) ->
    [put_parking(Key, Q, Context) || {key, Key} <- lists:sublist(Lost, ?NAMES)];
bind_lost(Q, X, Lost, #{index := #{types := Types}} = Context) ->
    Parked = <<X/binary, ".parked">>,
    Keys = [binding_key(K, maps:get(X, Types)) || K <- lists:sublist(Lost, ?NAMES)],
    case lists:member(none, Keys) of
        true -> to_parking(Q, X, Context);
        false -> [put_parking(Parked, Q, Context) |
                  [bind(X, Parked, Key, #{}, Context) || Key <- lists:usort(Keys)]]
    end.

%% The key that binds for all of these; not each exchange has one.
binding_key({key, Key}, _) -> Key;
binding_key(_, direct) -> none;
binding_key({pattern, Words}, topic) -> iolist_to_binary(lists:join($., Words));
binding_key(any, topic) -> <<"#">>;
%% Of an exchange that hashes, a weight.
binding_key(_, other) -> <<"1">>;
binding_key(_, _) -> <<>>.

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
                     "Give messages the time that a consumer may need, or take the TTL away: what no consumer "
                     "takes at once waits then.",
                     without_ttl(Q, Context))];
        {Ttl, false} ->
            [finding(ttl_without_dlx, warning, Q, Context,
                     ["Messages expire after ", ms(Ttl), " and there is no dead-letter exchange: "
                      "they vanish."],
                     "If they matter, name a dead-letter exchange.",
                     case origin(ttl, Q) of
                         %% It can hold for the parking queue as well.
                         operator_policy -> [<<"rabbitmqctl list_operator_policies">>];
                         _ -> to_parking(Q, <<>>, Context)
                     end)
             || not is_meant_to_forget(Q)];
        _ ->
            []
    end.

%% Replies, caches and whatever ends with its client: there messages that are not fetched in time are of
%% no use.
is_meant_to_forget(#q{name = Name, queue = #{durable := Durable} = Queue} = Q) ->
    not Durable orelse maps:get(temporary, Queue, false) orelse has(expires, Q)
        orelse has(max_length, Q) orelse has(max_bytes, Q)
        orelse re:run(Name, "^amq\\.|repl(y|ies)|response|callback|rpc|cache|mqtt-subscription",
                      [caseless, {capture, none}]) =:= match.

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
expiry(#q{queue = Queue} = Q, Expires, HasDlx, _, Context) ->
    {Severity, When} =
        case value(ttl, Q) of
            Ttl when is_integer(Ttl), HasDlx, Ttl >= Expires ->
                {error, ["before they expire (", ms(Ttl), ")"]};
            Ttl when is_integer(Ttl), HasDlx ->
                {case rabbit_delay_doctor_frameworks:of_queue(Queue) of
                     %% They declare it each time before they publish.
                     {_, _} -> info;
                     none -> warning
                 end, ["unless it is declared again or read at least every ", ms(Expires - Ttl)]};
            _ ->
                {warning, ["with all that is in it"]}
        end,
    [finding(expires_loses_messages, Severity, Q, Context,
             ["The queue is deleted when it was unused for ", ms(Expires), ", ", When,
              ": its messages are not dead-lettered then, they are lost."],
             "For delays use a delayed exchange, which needs no such queue; else take x-expires away, "
             "and delete the queue yourself when nobody needs it any more.",
             case origin(expires, Q) of
                 argument -> recreate(Q, [<<"x-expires">>], #{}, Context);
                 policy -> [set(Q, #{<<"expires">> => undefined}, Context)];
                 operator_policy -> [<<"rabbitmqctl list_operator_policies">>]
             end)].

%% Per-message TTLs are in no definition: what gives such a queue away is its name, or that it is
%% what delays in a cycle whose others do not and have consumers. A queue whose dead letters stay where
%% they come is none.
head_of_line(#q{name = Name, queue = #{consumers := Consumers}} = Q, Context) ->
    case has(dlx, Q) andalso not has(ttl, Q)
        andalso (Consumers =:= 0 orelse Consumers =:= unknown)
        andalso not leads_to_parking(Name, Context)
        andalso (re:run(Name, "delay|wait|retry|later|defer|backoff|schedul",
                        [caseless, {capture, none}]) =:= match
                 orelse (Consumers =:= 0 andalso delays_in_cycle(Name, Context))) of
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

leads_to_parking(Name, #{graph := Graph}) ->
    Targets = lists:usort(lists:append(
                            [rabbit_delay_dead_letter_routes:targets(Node, Graph, ?NAMES)
                             || Node <- maps:get({queue, Name}, Graph, [])])),
    Targets =/= [] andalso lists:all(fun rabbit_delay_doctor_frameworks:is_parking/1, Targets).

delays_in_cycle(Name, #{cyclic := #{parts := Parts}, qs := Qs}) ->
    Others = [maps:get(Other, Qs) || Part <- Parts, lists:member({queue, Name}, Part),
                                     {queue, Other} <- Part, Other =/= Name],
    Others =/= [] andalso not lists:any(fun (Q) -> has(ttl, Q) end, Others)
        andalso lists:any(fun (#q{queue = #{consumers := N}}) -> is_integer(N) andalso N > 0 end,
                          Others).

durable(#q{queue = Queue} = Q) -> Q#q{queue = Queue#{durable := true}}.

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
                     ["Set dead-letter-strategy to at-least-once and overflow to reject-publish.",
                      [" When the queue is full it then refuses publishers, where it dead-letters its "
                       "oldest message today." || has(max_length, Q) orelse has(max_bytes, Q)],
                      " Dead letters that have nowhere to go stay in it."],
                     [set(Q, #{<<"dead-letter-strategy">> => <<"at-least-once">>,
                               <<"overflow">> => <<"reject-publish">>}, Context)])];
        true ->
            case has(ha_mode, Q) of
                true ->
                    [finding(at_most_once, warning, Q, Context,
                             ["The queue is mirrored but dead-letters at most once: a dead letter is "
                              "lost when its target is full or down at that moment."],
                             "Make it a quorum queue that dead-letters at least once. It has no "
                             "priorities and is always durable.",
                             recreate(durable(Q), [<<"x-max-priority">>, <<"x-queue-mode">>,
                                                   <<"x-queue-version">>, <<"x-queue-master-locator">>],
                                      #{<<"x-queue-type">> => <<"quorum">>,
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

%% Dead letters are meant to stay in such a queue; it is one that nobody looks into if they have become
%% many. What only comes through queues that delay, or also comes otherwise, is work.
parking(#q{name = Name, queue = #{consumers := 0, messages := Messages}} = Q,
        #{dead_letter_targets := Targets, vhost := VHost} = Context)
  when is_map_key(Name, Targets), is_integer(Messages), Messages >= ?UNWATCHED ->
    Grows = not has(dlx, Q) andalso not has(ttl, Q) andalso not has(max_length, Q)
        andalso not has(max_bytes, Q),
    [finding(parking_unwatched, warning, Q, Context,
             ["Dead letters end here, ", integer_to_binary(Messages), " by now, nobody consumes them "
              "and there is no length limit: it grows until the disk is full, and nobody notices what "
              "failed."],
             "See what they are, redrive or purge them, and have an alert on the queue's length. "
             "(A length limit would drop dead letters.)",
             [command(["rabbitmqctl dead_letter_stats --vhost ", sh(VHost), " -- ", sh(Name)])])
     || Grows, is_only_for_dead_letters(Name, Context)];
parking(_, _) ->
    [].

is_only_for_dead_letters(Name, #{qs := Qs, sources := Sources, graph := Graph,
                                 bindings_to := BindingsTo}) ->
    Feeders = [maps:get(Feeder, Qs)
               || Feeder <- maps:keys(Sources),
                  lists:any(fun (Node) ->
                                    lists:member(Name, rabbit_delay_dead_letter_routes:targets(
                                                         Node, Graph, map_size(Qs) + 1))
                            end, maps:get({queue, Feeder}, Graph))],
    DeadLetterExchanges = [X || {routing, X, _} <- maps:keys(Graph)],
    lists:any(fun (Q) -> not has(ttl, Q) end, Feeders)
        andalso lists:all(fun (#{source := X}) -> lists:member(X, DeadLetterExchanges) end,
                          maps:get(Name, BindingsTo, [])).

priorities(Q, Context) ->
    case {value(max_priority, Q), has(ttl, Q)} of
        {Max, true} when is_integer(Max), Max > 0 ->
            [finding(priority_ttl, warning, Q, Context,
                     "It has priorities and a TTL: expired messages leave only at the head, so those "
                     "of a low priority stay, and are delivered late or count as ready, for as long "
                     "as one of a higher priority has not expired.",
                     "Use a queue for each priority, or no TTL on this one. What the commands do takes "
                     "the priorities away, or the TTL.",
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
             "Correct the value where it is written.", [])
     || Key <- lists:usort(maps:get(unusable, Settings, []))].

%% The broker takes such arguments and does nothing about them.
policy_keys(#q{type = Type, queue = #{arguments := Arguments}} = Q, Context) ->
    case maps:with(?POLICY_KEYS, Arguments) of
        Ignored when map_size(Ignored) > 0 ->
            Known = maps:without(rabbit_delay_queue_settings:foreign_keys({queue, Type}, Ignored),
                                 Ignored),
            [finding(policy_key_as_argument, error, Q, Context,
                     ["It was declared with ", lists:join(", ", maps:keys(Ignored)), ", which are keys "
                      "of policies: the broker ignores them in a queue's arguments, where they begin "
                      "with x-."],
                     "Put them into a policy, or declare the queue with x- before each. They have an "
                     "effect from then on.",
                     [set(Q, Known, Context) || map_size(Known) > 0])
             || not is_in_force(Ignored, Q)];
        _ ->
            []
    end.

%% A policy, or the right argument, says so already.
is_in_force(Ignored, #q{held = Held, queue = #{arguments := Arguments}}) ->
    lists:all(fun ({Key, Value}) ->
                      is_map_key(<<"x-", Key/binary>>, Arguments)
                          orelse case Held of
                                     [#{definition := #{Key := Value}} | _] -> true;
                                     _ -> false
                                 end
              end, maps:to_list(Ignored)).

%% -------------------------------------------------------------------------- settings of a queue

%% What holds for the queue, undefined if nothing does.
-spec value(atom(), #q{}) -> term().
value(Item, #q{settings = Settings}) ->
    case Settings of
        #{Item := {Value, _}} -> Value;
        _ -> undefined
    end.

%% Of something that holds.
-spec origin(atom(), #q{}) -> argument | policy | operator_policy.
origin(Item, #q{settings = Settings}) ->
    #{Item := {_, Origin}} = Settings,
    Origin.

-spec has(atom(), #q{}) -> boolean().
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
-spec automatic(#q{}, rabbit_delay_doctor:context()) -> [string()].
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
