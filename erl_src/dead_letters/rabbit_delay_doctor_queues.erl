%% SPDX-License-Identifier: MPL-2.0

%% The doctor's rules for one queue at a time, and what they and the other rules ask of a queue.
%%
%% Pure functions of a topology.
-module(rabbit_delay_doctor_queues).

-include("rabbit_delay_doctor.hrl").

-export([check/2, value/2, origin/2, has/2, automatic/2]).

-import(rabbit_delay_doctor_mends,
        [finding/7, command/1, sh/1, ms/1, names/1, more/1, exchange_text/1, to_parking/3, set/3,
         recreate/4, put_exchange/4, put_queue/3, bind/5, replacement/2]).

-spec check(#q{}, rabbit_delay_doctor:context()) -> [rabbit_delay_doctor:finding()].
check(#q{type = stream}, _) ->
    [];
check(Q, Context) ->
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
