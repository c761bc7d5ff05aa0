%% SPDX-License-Identifier: MPL-2.0

%% What holds for a queue: its arguments, its policy and its operator policy taken together, as the
%% broker does it for that type of queue.
%%
%% Pure functions. A policy whose pattern is none, or takes too long to match, is told apart as
%% unusable.
-module(rabbit_delay_queue_settings).

-export([compile/1, of_queue/3, of_exchange/3, matching/3, foreign_keys/2,
         default_delivery_limit/1]).

-export_type([compiled/0, settings/0, origin/0]).

%% A pattern that takes more steps than this on one name is given up; the broker would go on.
-define(MATCH_LIMIT, 20000).

-define(QUORUM_ONLY, [<<"delivery-limit">>, <<"dead-letter-strategy">>]).
-define(CLASSIC_ONLY, [<<"max-priority">>, <<"queue-mode">>, <<"ha-mode">>, <<"ha-params">>,
                       <<"ha-sync-mode">>, <<"ha-promote-on-shutdown">>,
                       <<"ha-promote-on-failure">>, <<"queue-master-locator">>]).
-define(STREAM_ONLY, [<<"max-age">>, <<"stream-max-segment-size-bytes">>,
                      <<"initial-cluster-size">>]).
-define(NOT_STREAM, [<<"expires">>, <<"message-ttl">>, <<"dead-letter-exchange">>,
                     <<"dead-letter-routing-key">>, <<"max-length">>, <<"overflow">>]).

-type compiled() :: [{rabbit_delay_topology:policy(), Pattern :: tuple() | unusable}].

-type origin() :: argument | policy | operator_policy.

%% Times in ms. A delivery limit of infinity was asked for; without the key none was.
-type settings() :: #{ttl | expires | max_length | max_bytes | max_priority =>
                          {non_neg_integer(), origin()},
                      delivery_limit => {non_neg_integer() | infinity, origin()},
                      dlx | dlk | strategy | overflow | ha_mode => {binary(), origin()},
                      %% keys whose value the broker does not accept
                      unusable => [binary()]}.

%% By falling priority, as they are asked.
-spec compile([rabbit_delay_topology:policy()]) -> compiled().
compile(Policies) ->
    Sorted = lists:sort(fun (#{priority := A, name := NameA}, #{priority := B, name := NameB}) ->
                                {-A, NameA} =< {-B, NameB}
                        end, Policies),
    [{Policy, case re:compile(Pattern) of
                  {ok, Compiled} -> Compiled;
                  {error, _} -> unusable
              end} || #{pattern := Pattern} = Policy <- Sorted].

%% The policies that hold for an object, best first; those that do not although they match, because
%% its type does not know one of their keys; and those whose pattern cannot be evaluated on its name.
-spec matching({queue, classic | quorum | stream | other} | exchange, binary(), compiled()) ->
          #{held | foreign | unusable := [rabbit_delay_topology:policy()]}.
matching(Kind, Name, Policies) ->
    lists:foldr(
      fun ({#{apply_to := To, definition := Definition} = Policy, Pattern}, Acc) ->
              case applies(Kind, To) andalso run(Name, Pattern) of
                  false ->
                      Acc;
                  Result ->
                      As = case {Result, foreign_keys(Kind, Definition)} of
                               {unusable, _} -> unusable;
                               {true, []} -> held;
                               {true, _} -> foreign
                           end,
                      maps:update_with(As, fun (Found) -> [Policy | Found] end, Acc)
              end
      end, #{held => [], foreign => [], unusable => []}, Policies).

run(_, unusable) ->
    unusable;
run(Name, Pattern) ->
    case re:run(Name, Pattern, [{capture, none}, report_errors, {match_limit, ?MATCH_LIMIT},
                                {match_limit_recursion, ?MATCH_LIMIT}]) of
        match -> true;
        nomatch -> false;
        {error, _} -> unusable
    end.

applies(_, <<"all">>) -> true;
applies(exchange, <<"exchanges">>) -> true;
applies({queue, _}, <<"queues">>) -> true;
applies({queue, classic}, <<"classic_queues">>) -> true;
applies({queue, quorum}, <<"quorum_queues">>) -> true;
applies({queue, stream}, <<"streams">>) -> true;
applies(_, _) -> false.

%% A policy with one key that the type of queue does not know does not apply to it at all.
-spec foreign_keys({queue, classic | quorum | stream | other} | exchange, #{binary() => term()}) ->
          [binary()].
foreign_keys(exchange, _) -> [];
foreign_keys({queue, Type}, Definition) ->
    [Key || Key <- foreign(Type), is_map_key(Key, Definition)].

foreign(classic) -> ?QUORUM_ONLY ++ ?STREAM_ONLY;
foreign(quorum) -> ?CLASSIC_ONLY ++ ?STREAM_ONLY;
foreign(stream) -> ?NOT_STREAM ++ ?QUORUM_ONLY ++ ?CLASSIC_ONLY;
foreign(other) -> [].

%% An exchange's argument or policy key of that name: the argument goes first.
-spec of_exchange(rabbit_delay_topology:exchange(), Key :: binary(), compiled()) ->
          {ok, binary()} | none.
of_exchange(#{name := Name, arguments := Arguments}, Key, Policies) ->
    case Arguments of
        #{Key := Value} when is_binary(Value) ->
            {ok, Value};
        _ ->
            case matching(exchange, Name, Policies) of
                #{held := [#{definition := #{Key := Value}} | _]} when is_binary(Value) -> {ok, Value};
                _ -> none
            end
    end.

%% Of a queue with its matching policies (best first) and operator policies.
-spec of_queue(rabbit_delay_topology:queue(), [rabbit_delay_topology:policy()],
               [rabbit_delay_topology:policy()]) -> settings().
of_queue(#{type := Type, arguments := Arguments}, Policies, OperatorPolicies) ->
    Policy = definition(Policies),
    Operator = definition(OperatorPolicies),
    lists:foldl(
      fun ({Item, Key, Check}, Acc) ->
              Values = [{Value, Origin} || {Origin, #{Key := Value}} <-
                                               [{policy, Policy}, {operator_policy, Operator}]],
              Argument = <<"x-", Key/binary>>,
              FromArgument = [{Value, argument} || #{Argument := Value} <- [Arguments]],
              {Good, Bad} = lists:partition(fun ({Value, _}) -> Check(Value) end,
                                            Values ++ FromArgument),
              case merge(Item, Type, Good) of
                  none -> unusable(Key, Bad, Acc);
                  Merged -> unusable(Key, Bad, Acc#{Item => Merged})
              end
      end, #{}, [{Item, Key, Check} || {Item, Key, Check} <- items(), knows(Type, Item)]).

definition([#{definition := Definition} | _]) -> Definition;
definition([]) -> #{}.

items() ->
    Time = fun (Value) -> is_integer(Value) andalso Value >= 0 end,
    Text = fun is_binary/1,
    [{ttl, <<"message-ttl">>, Time},
     {expires, <<"expires">>, fun (Value) -> is_integer(Value) andalso Value > 0 end},
     {dlx, <<"dead-letter-exchange">>, Text},
     {dlk, <<"dead-letter-routing-key">>, Text},
     {strategy, <<"dead-letter-strategy">>, Text},
     {overflow, <<"overflow">>, Text},
     {max_length, <<"max-length">>, Time},
     {max_bytes, <<"max-length-bytes">>, Time},
     {delivery_limit, <<"delivery-limit">>, fun is_integer/1},
     {max_priority, <<"max-priority">>, Time},
     {ha_mode, <<"ha-mode">>, Text}].

knows(stream, Item) -> lists:member(Item, [max_bytes]);
knows(quorum, Item) -> not lists:member(Item, [max_priority, ha_mode]);
%% An unusual pair of classic queue and strategy is reported, so it must be seen.
knows(_, Item) -> Item =/= delivery_limit.

unusable(_, [], Settings) -> Settings;
unusable(Key, [_ | _], Settings) ->
    maps:update_with(unusable, fun (Keys) -> [Key | Keys] end, [Key], Settings).

merge(_, _, []) ->
    none;
merge(max_priority, _, Values) ->
    %% There is no policy key of that name.
    case lists:keyfind(argument, 2, Values) of
        false -> none;
        Found -> Found
    end;
merge(delivery_limit, _, Values) ->
    %% A negative one means that there is none.
    case lists:sort([{infinity_if_negative(Value), Origin} || {Value, Origin} <- Values]) of
        [Least | _] -> Least
    end;
merge(Item, _, Values) when Item =:= ttl; Item =:= expires; Item =:= max_length;
                            Item =:= max_bytes ->
    lists:min(Values);
merge(overflow, quorum, Values) ->
    hd(Values);
merge(_, _, Values) ->
    case lists:keyfind(argument, 2, Values) of
        %% Where both have it, the operator's does not replace the policy's.
        false -> hd(Values);
        Found -> Found
    end.

%% Of a quorum queue for which none is set, in a broker of this version.
-spec default_delivery_limit(Version :: [non_neg_integer()]) -> pos_integer() | infinity.
default_delivery_limit(Version) when Version >= [4] -> 20;
default_delivery_limit(_) -> infinity.

infinity_if_negative(Limit) when Limit < 0 -> infinity;
infinity_if_negative(Limit) -> Limit.
