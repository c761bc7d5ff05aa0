%% SPDX-License-Identifier: MPL-2.0

%% What a request over HTTP asks to be redriven, which messages and where to, and who may do what: the same
%% whether the answer is awaited or not. Pure functions of the request's JSON, in its process, but for wait/1;
%% may_publish/2 is asked in the redrive's.
-module(rabbit_delay_redrive_request).

-include_lib("rabbit_common/include/rabbit.hrl").

-export([options/3, chosen/3, may_publish/2, wait/1, by/1]).

-define(MAX_RATE, 1000000).
-define(MAX_S, 16#ffffffff).
-define(MAX_TARGETS, 1000).
%% Of one, as rabbit_delay_redrive_plan:target_text/2 has it: an exchange and a key of 255 bytes each, which are twice as
%% many where they are no UTF-8.
-define(MAX_TARGET, 1100).
-define(MAX_HEADER, 4096).
-define(MAX_IDS, 1000).

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
               {reason, optional(reason, fun is_reason/1,
                                 ["one of ", lists:join(", ", rabbit_delay_deaths:reasons())], Words)},
               {origin, optional(origin, fun is_text/1, "a string of at most 255 bytes", Words)},
               {header, header(Words)},
               {targets, optional(targets, fun is_targets/1, ["a list of at most ", integer_to_list(?MAX_TARGETS),
                                                              " strings of at most ", integer_to_list(?MAX_TARGET),
                                                              " bytes"], Words)},
               {older_than, age(older_than, Words)},
               {newer_than, age(newer_than, Words)},
               {limit, number(limit, Limit, MaxLimit, Words)},
               {rate, number(rate, infinity, ?MAX_RATE, Words)},
               {dry_run, rabbit_delay_http:json_boolean(dry_run, Words)},
               {keep_x_death, rabbit_delay_http:json_boolean(keep_x_death, Words)}],
              fun (Options) -> {ok, maps:filter(fun (_, Value) -> Value =/= none end, Options)} end);
        Error ->
            Error
    end.

%% What a request says of messages that it names. Members: what it has besides; To: where they go, or
%% targets if the request says it. With its other members.
-spec chosen(Json :: map(), Members :: [atom()], To :: targets | nowhere) ->
          {ok, map(), Words :: #{atom() => term()}} | {error, Why :: binary()}.
chosen(Json, Members, To) ->
    Targets = case To of
                  targets -> [to_queue, to_exchange, routing_key, to_original_exchange, keep_x_death];
                  nowhere -> []
              end,
    case rabbit_delay_http:known(maps:to_list(Json), Targets ++ Members) of
        {ok, Words} ->
            rabbit_delay_http:all(
              [{to, case To of targets -> to(Words); nowhere -> {ok, nowhere} end},
               {keep_x_death, rabbit_delay_http:json_boolean(keep_x_death, Words)},
               {ids, ids(Words)}],
              fun (Options) -> {ok, Options#{limit => infinity, rate => infinity, dry_run => false}, Words}
              end);
        Error ->
            Error
    end.

ids(#{id := Id}) -> ids(#{ids => [Id]});
ids(#{ids := Ids}) when is_list(Ids), Ids =/= [], length(Ids) =< ?MAX_IDS ->
    case [Id || Id <- Ids, not is_id(Id)] of
        [] -> {ok, Ids};
        _ -> {error, <<"an id is not one that the list of messages has">>}
    end;
ids(_) ->
    {error, text("ids is not an array of 1 to ~b ids", [?MAX_IDS])}.

is_id(Id) ->
    is_binary(Id) andalso re:run(Id, "^[0-9a-f]{32}$", [{capture, none}, dollar_endonly]) =:= match.

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

%% The redrive's result; it ends with the process that waits.
-spec wait(rabbit_delay_redrive:options()) ->
          {ok, rabbit_delay_redrive:result()} | rabbit_delay_browse:error().
wait(Options) ->
    Pid = rabbit_delay_redrive:start(Options, self()),
    Monitor = monitor(process, Pid),
    wait(Pid, Monitor).

wait(Pid, Monitor) ->
    receive
        {redrive, Pid, What, _} when What =/= done ->
            wait(Pid, Monitor);
        {redrive, Pid, done, Result} ->
            true = demonitor(Monitor, [flush]),
            Result;
        {'DOWN', Monitor, process, _, Reason} ->
            {error, {unavailable, text("the redrive failed: ~ts", [rabbit_delay_text:reason(Reason)])}}
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

is_targets(Values) ->
    is_list(Values) andalso length(Values) =< ?MAX_TARGETS
        andalso lists:all(fun (Value) -> is_binary(Value) andalso byte_size(Value) =< ?MAX_TARGET end, Values).

%% In s: a number, or a span of time as it is written elsewhere.
age(Name, Words) ->
    case Words of
        #{Name := Value} ->
            case seconds(Value) of
                {ok, Seconds} when Seconds >= 0, Seconds =< ?MAX_S -> {ok, Seconds};
                _ -> {error, text("~s: ~ts is no span of time such as 90s, 10m, 2h or 3d (a plain number: s) of at "
                                  "most ~b s", [Name, rabbit_delay_text:value(Value), ?MAX_S])}
            end;
        _ ->
            {ok, none}
    end.

seconds(N) when is_integer(N) -> {ok, N};
seconds(Word) when is_binary(Word) -> rabbit_delay_notation:seconds(Word);
seconds(_) -> error.

optional(Name, IsGood, Wanted, Words) ->
    case Words of
        #{Name := Value} ->
            case IsGood(Value) of
                true -> {ok, Value};
                false -> {error, text("~s: ~ts is not ~s", [Name, rabbit_delay_text:value(Value), Wanted])}
            end;
        _ ->
            {ok, none}
    end.

header(#{header := Word}) when is_binary(Word), byte_size(Word) > ?MAX_HEADER ->
    {error, text("header: more than ~b bytes", [?MAX_HEADER])};
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
