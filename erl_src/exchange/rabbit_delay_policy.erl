%% SPDX-License-Identifier: MPL-2.0

%% Settings of an exchange that it has by an argument, x-NAME, or by a policy, NAME; the argument
%% goes before the policy, as RabbitMQ has it for exchanges.
%%
%%   delay-default            a delay for messages that say nothing of one; a time, as all times here,
%%                            is a number of ms or text (30s, 10m, 2h: rabbit_delay_notation)
%%   delay-max-length         how many messages may be pending
%%   delay-max-length-bytes   how many bytes may be pending, as stored: a message is taken if it
%%                            fits; a number, or text (2kB, 10MB)
%%   delay-overflow           what becomes of what is beyond either: "reject-publish" (the default:
%%                            publishers get a nack) or "drop-latest-due" (it is taken, and as many as
%%                            are too many go, those due last first)
%%   delay-release-rate       how many messages are released in a second, at most
%%   delay-overdue            what becomes of a message that is released too late: "deliver" (the
%%                            default), "drop", or "dead-letter"
%%   delay-overdue-after      from when on it is too late, a time after it was due; 0 if not given
%%   delay-initial-group-size how many nodes of a cluster hold the messages, from when the exchange first
%%                            delays something: rabbit_delay_group
%%   delay-retry...           how dead letters come back: rabbit_delay_retry
%%
%% By policy only, since nobody checks here whether whoever declares an exchange may publish there:
%%
%%   delay-dead-letter-exchange     where messages go that are unroutable when they are due, or
%%                                  dropped for overflow, or overdue, where that says "dead-letter"
%%                                  (without this: delivered)
%%   delay-dead-letter-routing-key  with this key instead of their own
%%   delay-keys-from                whose headers about keys count (rabbit_delay_key): those of
%%                                  "publishers" to this exchange (the default), or of "anyone" whose
%%                                  messages come here, by whatever way
%%
%% An operator policy may set the two limits; where a policy does as well, the lower one counts.
-module(rabbit_delay_policy).

-behaviour(rabbit_policy_validator).
-behaviour(rabbit_policy_merge_strategy).

-export([register/0, unregister/0, validate_policy/1, merge_policy_value/3]).
-export([validate_arguments/1, arguments/0, is_by_policy_only/1, default_delay/1, limits/1, overflow/1,
         release_rate/1, overdue/1, dead_letter_exchange/1, retry/1, keys_from/1, group_size/1]).

-export_type([overdue/0]).

-type overdue() :: deliver | {drop | dead_letter, AfterMs :: non_neg_integer()}.

-define(MAX_DELAY_MS, 3153600000000).
-define(MAX_MESSAGES, 4294967294).
-define(MAX_BYTES, 16#7fffffffffffffff).
-define(MAX_RATE, 10000000).
%% As of quorum queues, no number of nodes is too large.
-define(MAX_GROUP, 2147483647).

-define(DEFAULT, <<"delay-default">>).
-define(OVERDUE_AFTER, <<"delay-overdue-after">>).
-define(TIMES, [?DEFAULT, ?OVERDUE_AFTER]).
-define(MAX_LENGTH, <<"delay-max-length">>).
-define(MAX_LENGTH_BYTES, <<"delay-max-length-bytes">>).
-define(LIMITS, [?MAX_LENGTH, ?MAX_LENGTH_BYTES]).

-define(OVERFLOW, <<"delay-overflow">>).
-define(GROUP_SIZE, <<"delay-initial-group-size">>).

-define(DEAD_LETTER_EXCHANGE, <<"delay-dead-letter-exchange">>).
-define(DEAD_LETTER_KEY, <<"delay-dead-letter-routing-key">>).
-define(KEYS_FROM, <<"delay-keys-from">>).

-spec names() -> [binary()].
names() ->
    [?DEFAULT, <<"delay-release-rate">>, <<"delay-overdue">>, ?OVERDUE_AFTER, ?OVERFLOW, ?GROUP_SIZE
     | ?LIMITS] ++ rabbit_delay_retry:names().

by_policy_only() -> [?DEAD_LETTER_EXCHANGE, ?DEAD_LETTER_KEY, ?KEYS_FROM].

entries() ->
    [{policy_validator, Name} || Name <- by_policy_only() ++ names()]
        ++ [{Class, Name} || Class <- [operator_policy_validator, policy_merge_strategy],
                             Name <- ?LIMITS].

-spec register() -> ok.
register() ->
    lists:foreach(fun ({Class, Name}) -> rabbit_registry:register(Class, Name, ?MODULE) end,
                  entries()).

-spec unregister() -> ok.
unregister() ->
    lists:foreach(fun ({Class, Name}) -> rabbit_registry:unregister(Class, Name) end, entries()).

-spec validate_policy([{binary(), term()}]) -> rabbit_policy_validator:validate_results().
validate_policy(Terms) ->
    validated([check(Name, Name, Value) || {Name, Value} <- Terms]
              ++ [rabbit_delay_retry:check_together(
                    maps:from_list([{Name, {Name, Value}} || {Name, Value} <- Terms]))]).

-spec merge_policy_value(binary(), Value, Value) -> Value when Value :: non_neg_integer() | binary().
merge_policy_value(Name, Value, OperatorValue) ->
    case {understood(Name, Value), understood(Name, OperatorValue)} of
        {{ok, N}, {ok, M}} when N < M -> Value;
        {_, error} -> Value;
        _ -> OperatorValue
    end.

-spec arguments() -> [binary()].
arguments() -> [argument(Name) || Name <- names()].

%% Whether what would be such an argument is a key of policies.
-spec is_by_policy_only(binary()) -> boolean().
is_by_policy_only(Argument) ->
    lists:member(Argument, [argument(Name) || Name <- by_policy_only()]).

%% The arguments of these names, checked when an exchange is declared.
-spec validate_arguments(rabbit_framing:amqp_table()) -> ok | {error, string(), [term()]}.
validate_arguments(Args) ->
    Given = [{Name, argument(Name), Value}
             || Name <- names(),
                {_, Value} <- [rabbit_misc:table_lookup(Args, argument(Name))]],
    validated([check(Name, Shown, Value) || {Name, Shown, Value} <- Given]
              ++ [rabbit_delay_retry:check_together(
                    maps:from_list([{Name, {Shown, Value}} || {Name, Shown, Value} <- Given]))]).

validated([]) -> ok;
validated([ok | Rest]) -> validated(Rest);
validated([Error | _]) -> Error.

argument(Name) -> <<"x-", Name/binary>>.

check(?DEFAULT, Shown, Value) -> number(?DEFAULT, Shown, Value, 1, ?MAX_DELAY_MS);
check(?MAX_LENGTH, Shown, Value) -> number(?MAX_LENGTH, Shown, Value, 0, ?MAX_MESSAGES);
check(?MAX_LENGTH_BYTES, Shown, Value) -> number(?MAX_LENGTH_BYTES, Shown, Value, 0, ?MAX_BYTES);
check(<<"delay-release-rate">> = Name, Shown, Value) -> number(Name, Shown, Value, 1, ?MAX_RATE);
check(?OVERDUE_AFTER, Shown, Value) -> number(?OVERDUE_AFTER, Shown, Value, 0, ?MAX_DELAY_MS);
check(?GROUP_SIZE, Shown, Value) -> number(?GROUP_SIZE, Shown, Value, 1, ?MAX_GROUP);
check(?OVERFLOW, _, <<"reject-publish">>) -> ok;
check(?OVERFLOW, _, <<"drop-latest-due">>) -> ok;
check(?OVERFLOW, Shown, Value) ->
    {error, "~s must be \"reject-publish\" or \"drop-latest-due\", not ~s", [Shown, rabbit_delay_text:setting(Value)]};
check(<<"delay-overdue">>, _, <<"deliver">>) -> ok;
check(<<"delay-overdue">>, _, <<"drop">>) -> ok;
check(<<"delay-overdue">>, _, <<"dead-letter">>) -> ok;
check(<<"delay-overdue">>, Shown, Value) ->
    {error, "~s must be \"deliver\", \"drop\" or \"dead-letter\", not ~s", [Shown, rabbit_delay_text:setting(Value)]};
check(?KEYS_FROM, _, <<"publishers">>) -> ok;
check(?KEYS_FROM, _, <<"anyone">>) -> ok;
check(?KEYS_FROM, Shown, Value) ->
    {error, "~s must be \"publishers\" or \"anyone\", not ~s", [Shown, rabbit_delay_text:setting(Value)]};
check(<<"delay-retry", _/binary>> = Name, Shown, Value) ->
    rabbit_delay_retry:check(Name, Shown, Value);
check(Name, _, Value) when (Name =:= ?DEAD_LETTER_EXCHANGE orelse Name =:= ?DEAD_LETTER_KEY),
                           is_binary(Value), byte_size(Value) =< 255 -> ok;
check(_, Shown, Value) ->
    {error, "~s must be a string of at most 255 bytes, not ~s", [Shown, rabbit_delay_text:setting(Value)]}.

number(Name, Shown, Value, Min, Max) ->
    case understood(Name, Value) of
        {ok, N} when N >= Min, N =< Max ->
            ok;
        _ ->
            {error, "~s must be ~s from ~b to ~b~s, not ~s",
             case lists:member(Name, ?TIMES) of
                 true -> [Shown, "a time", Min, Max, " ms (such as 30s, 10m or 2h)", rabbit_delay_text:setting(Value)];
                 false when Name =:= ?MAX_LENGTH_BYTES ->
                     [Shown, "a size", Min, Max, " bytes (such as 2kB or 10MB)", rabbit_delay_text:setting(Value)];
                 false -> [Shown, "an integer", Min, Max, "", rabbit_delay_text:setting(Value)]
             end}
    end.

%% A number, or what is written of a time or a size.
understood(_, N) when is_integer(N) -> {ok, N};
understood(Name, Text) when is_binary(Text), (Name =:= ?DEFAULT orelse Name =:= ?OVERDUE_AFTER) ->
    rabbit_delay_notation:interval(Text);
understood(?MAX_LENGTH_BYTES, Text) when is_binary(Text) -> rabbit_delay_notation:size(Text);
understood(_, _) -> error.

setting(Name, X, Default) ->
    usable(Name, rabbit_policy:get_arg(argument(Name), Name, X), Default).

%% What was imported while the plugin was not there is not validated: it counts as absent.
usable(_, undefined, Default) ->
    Default;
usable(Name, Value, Default) ->
    case check(Name, Name, Value) of
        ok ->
            case understood(Name, Value) of
                {ok, N} -> N;
                error -> Value
            end;
        {error, _, _} ->
            Default
    end.

%% ms
-spec default_delay(rabbit_delay_broker:exchange()) -> pos_integer() | none.
default_delay(X) ->
    setting(?DEFAULT, X, none).

-spec limits(rabbit_delay_broker:exchange()) ->
          {Messages :: non_neg_integer() | infinity, Bytes :: non_neg_integer() | infinity}.
limits(X) ->
    {setting(?MAX_LENGTH, X, infinity), setting(?MAX_LENGTH_BYTES, X, infinity)}.

-spec overflow(rabbit_delay_broker:exchange()) -> reject_publish | drop_latest_due.
overflow(X) ->
    case setting(?OVERFLOW, X, <<"reject-publish">>) of
        <<"reject-publish">> -> reject_publish;
        <<"drop-latest-due">> -> drop_latest_due
    end.

%% Messages per second.
-spec release_rate(rabbit_delay_broker:exchange()) -> pos_integer() | infinity.
release_rate(X) ->
    setting(<<"delay-release-rate">>, X, infinity).

%% How many nodes hold its messages in a cluster, as far as there are so many.
-spec group_size(rabbit_delay_broker:exchange()) -> pos_integer().
group_size(X) ->
    setting(?GROUP_SIZE, X, rabbit_delay_config:group_size()).

-spec overdue(rabbit_delay_broker:exchange()) -> overdue().
overdue(X) ->
    case setting(<<"delay-overdue">>, X, <<"deliver">>) of
        <<"deliver">> ->
            deliver;
        <<"drop">> ->
            {drop, setting(?OVERDUE_AFTER, X, 0)};
        <<"dead-letter">> ->
            case dead_letter_exchange(X) of
                none -> deliver;
                _ -> {dead_letter, setting(?OVERDUE_AFTER, X, 0)}
            end
    end.

-spec dead_letter_exchange(rabbit_delay_broker:exchange()) ->
          {Name :: binary(), RoutingKey :: binary() | undefined} | none.
dead_letter_exchange(X) ->
    case usable(?DEAD_LETTER_EXCHANGE, rabbit_policy:get(?DEAD_LETTER_EXCHANGE, X), none) of
        none -> none;
        Name -> {Name, usable(?DEAD_LETTER_KEY, rabbit_policy:get(?DEAD_LETTER_KEY, X), undefined)}
    end.

%% Whose headers about keys count.
-spec keys_from(rabbit_delay_broker:exchange()) -> publishers | anyone.
keys_from(X) ->
    case usable(?KEYS_FROM, rabbit_policy:get(?KEYS_FROM, X), <<"publishers">>) of
        <<"publishers">> -> publishers;
        <<"anyone">> -> anyone
    end.

%% What becomes of dead letters, if they are to come back.
-spec retry(rabbit_delay_broker:exchange()) -> rabbit_delay_retry:plan() | none.
retry(X) ->
    rabbit_delay_retry:plan(fun (Name) -> setting(Name, X, undefined) end).
