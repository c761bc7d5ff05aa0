%% SPDX-License-Identifier: MPL-2.0

%% What a request over HTTP asks to be redriven, which messages and where to, and who may do what: the same
%% whether the answer is awaited or not. Pure functions of the request's JSON, in its process; may_publish/2
%% is asked in the redrive's.
-module(rabbit_delay_redrive_request).

-include_lib("rabbit_common/include/rabbit.hrl").

-export([options/3, may_publish/2, by/1]).

-define(MAX_RATE, 1000000).
-define(MAX_S, 16#ffffffff).
-define(MAX_TARGETS, 1000).

%% Limits: how many messages are moved if it does not say, and how many it may ask for. Others are the
%% members that this resource has besides.
-spec options(Json :: map(), {Limit :: pos_integer() | infinity, MaxLimit :: pos_integer()},
              Others :: [dry_run]) -> {ok, map()} | {error, Why :: binary()}.
options(Json, {Limit, MaxLimit}, Others) ->
    Members = [to_queue, to_exchange, routing_key, to_original_exchange, reason, origin, header,
               older_than, newer_than, limit, rate, keep_x_death, targets | Others],
    case rabbit_delay_http:known(maps:to_list(Json), Members) of
        {ok, Words} ->
            rabbit_delay_http:all(
              [{to, to(Words)},
               {reason, optional(reason, fun is_reason/1, Words)},
               {origin, optional(origin, fun is_text/1, Words)},
               {header, header(Words)},
               {targets, optional(targets, fun is_texts/1, Words)},
               {older_than, optional(older_than, fun is_seconds/1, Words)},
               {newer_than, optional(newer_than, fun is_seconds/1, Words)},
               {limit, number(limit, Limit, MaxLimit, Words)},
               {rate, number(rate, infinity, ?MAX_RATE, Words)},
               {dry_run, rabbit_delay_http:json_boolean(dry_run, Words)},
               {keep_x_death, rabbit_delay_http:json_boolean(keep_x_death, Words)}],
              fun (Options) -> {ok, maps:filter(fun (_, Value) -> Value =/= none end, Options)} end);
        Error ->
            Error
    end.

%% As the broker asks of a publisher.
-spec may_publish(rabbit_types:user(), rabbit_types:vhost()) ->
          fun((Exchange :: binary(), Key :: binary()) -> boolean()).
may_publish(User, VHost) ->
    fun (<<>>, _) ->
            rabbit_delay_broker:is_permitted(User, rabbit_misc:r(VHost, exchange, <<"amq.default">>),
                                             write);
        (X, Key) ->
            Resource = rabbit_misc:r(VHost, exchange, X),
            rabbit_delay_broker:is_permitted(User, Resource, write)
                andalso rabbit_delay_topic_permissions:is_permitted(User, Resource, Key, write)
    end.

%% Who asks, for the log.
-spec by(rabbit_types:user()) -> binary().
by(#user{username = Username}) ->
    text("user '~ts' over HTTP", [rabbit_delay_text:escaped(Username)]).

is_reason(Reason) -> lists:member(Reason, rabbit_delay_deaths:reasons()).

to(Words) ->
    case maps:with([to_queue, to_exchange, to_original_exchange], Words) of
        Targets when map_size(Targets) > 1 ->
            {error, <<"more than one target is given">>};
        Targets when is_map_key(routing_key, Words), not is_map_key(to_exchange, Targets) ->
            {error, <<"routing_key goes with to_exchange">>};
        #{to_queue := Queue} ->
            target([{to_queue, Queue}], {queue, Queue});
        #{to_exchange := X} ->
            Key = maps:get(routing_key, Words, undefined),
            target([{to_exchange, X} | [{routing_key, Key} || Key =/= undefined]],
                   {exchange, X, Key});
        #{to_original_exchange := true} ->
            {ok, original_exchange};
        #{to_original_exchange := _} ->
            {error, <<"to_original_exchange is true or absent">>};
        _ ->
            {ok, origin}
    end.

target(Given, Target) ->
    case [Name || {Name, Value} <- Given, not is_text(Value)] of
        [] -> {ok, Target};
        [Name | _] -> {error, text("~s is not a string of at most 255 bytes", [Name])}
    end.

is_text(Value) -> is_binary(Value) andalso byte_size(Value) =< 255.

is_texts(Values) ->
    is_list(Values) andalso length(Values) =< ?MAX_TARGETS
        andalso lists:all(fun is_binary/1, Values).

is_seconds(N) -> is_integer(N) andalso N >= 0 andalso N =< ?MAX_S.

optional(Name, IsGood, Words) ->
    case Words of
        #{Name := Value} ->
            case IsGood(Value) of
                true -> {ok, Value};
                false -> {error, text("~s has no usable value", [Name])}
            end;
        _ ->
            {ok, none}
    end.

header(#{header := Word}) when is_binary(Word) ->
    case binary:split(Word, <<"=">>) of
        [Name, Value] when Name =/= <<>> -> {ok, {Name, Value}};
        _ -> {error, <<"header is not of the form name=value">>}
    end;
header(#{header := _}) ->
    {error, <<"header is not of the form name=value">>};
header(_) ->
    {ok, none}.

number(Name, Default, Max, Words) ->
    case maps:get(Name, Words, Default) of
        Default -> {ok, Default};
        N when is_integer(N), N >= 1, N =< Max -> {ok, N};
        _ -> {error, text("~s is not a number from 1 to ~b", [Name, Max])}
    end.

text(Format, Args) ->
    rabbit_delay_text:printable(io_lib:format(Format, Args)).
