%% SPDX-License-Identifier: MPL-2.0

%% What is asked of the HTTP API for delayed messages: which of them, what is to become of them, and how
%% much is to be shown.
%%
%% Pure functions but for the clock, to which times are relative, in the process of the request. What is
%% not known or not of its type is refused, never passed over.
-module(rabbit_delay_mgmt_request).

-export([parameters/1, list/1, message/2, change/2]).

-export_type([which/0]).

-type which() :: {ids, [rabbit_delay_store:id()]} | {filter, rabbit_delay_filter:filter()}.

-define(LIMIT, 100).
-define(MAX_LIMIT, 1000).
-define(BODY_BYTES, 50000).
-define(MAX_BODY_BYTES, 16777216).
-define(MAX_IDS, 1000).
-define(SELECTING, [due_from, due_to, key, routing_key, published_to, header]).

%% Those that the query may have.
-spec parameters(list | message) -> [atom()].
parameters(list) -> [cursor, limit, body, body_bytes | ?SELECTING];
parameters(message) -> [body, body_bytes].

%% A page of messages.
-spec list(#{atom() => binary()}) ->
          {ok, rabbit_delay_filter:filter(), map()} | {error, Why :: binary()}.
list(Words) ->
    rabbit_delay_http:all(
      [{limit, rabbit_delay_http:integer(limit, Words, ?LIMIT, 1, ?MAX_LIMIT)},
       {bytes, rabbit_delay_http:integer(body_bytes, Words, ?BODY_BYTES, 0, ?MAX_BODY_BYTES)},
       {body, rabbit_delay_http:boolean(body, Words)},
       {filter, rabbit_delay_filter:parse(Words, rabbit_delay_config:now_ms())}],
      fun (#{limit := Limit, bytes := Bytes, body := Body, filter := Filter}) ->
              {ok, Filter, with_body(Body, Bytes, (maps:with([cursor], Words))#{limit => Limit,
                                                                                content => true})}
      end).

%% The message with an id.
-spec message(Id :: binary(), #{atom() => binary()}) ->
          {ok, rabbit_delay_store:id(), map()} | {error, Why :: binary()}.
message(Id, Words) ->
    rabbit_delay_http:all(
      [{id, rabbit_delay_filter:id(Id)},
       {bytes, rabbit_delay_http:integer(body_bytes, Words, ?MAX_BODY_BYTES, 0, ?MAX_BODY_BYTES)},
       {body, rabbit_delay_http:boolean(body, Words)}],
      fun (#{id := N, bytes := Bytes, body := Body}) ->
              {ok, N, with_body(Body, Bytes, #{})}
      end).

with_body(true, Bytes, Options) -> Options#{body => Bytes};
with_body(false, _, Options) -> Options.

%% A change, as the body has it.
-spec change(cancel | release | reschedule, map()) ->
          {ok, rabbit_delay_pending:operation(), which(), map()} | {error, Why :: binary()}.
change(Resource, Json) ->
    Known = [<<"ids">>, <<"filter">>, <<"all">>, <<"dry_run">>, <<"cursor">>]
        ++ case Resource of
               reschedule -> [<<"to">>, <<"by">>];
               _ -> []
           end,
    case maps:keys(maps:without(Known, Json)) of
        [] ->
            rabbit_delay_http:all(
              [{operation, operation(Resource, Json)},
               {which, which(Json)},
               {dry_run, rabbit_delay_http:json_boolean(<<"dry_run">>, Json)},
               {cursor, json_cursor(Json)}],
              fun (#{operation := Operation, which := Which, dry_run := DryRun,
                     cursor := Cursor}) ->
                      {ok, Operation, Which, Cursor#{dry_run => DryRun}}
              end);
        [Unknown | _] ->
            {error, text("unknown member ~ts", [rabbit_delay_text:value(Unknown)])}
    end.

operation(reschedule, #{<<"to">> := _, <<"by">> := _}) ->
    {error, <<"either to or by">>};
operation(reschedule, #{<<"to">> := Word}) ->
    case rabbit_delay_filter:time(Word, rabbit_delay_config:now_ms()) of
        {ok, Time} -> {ok, {reschedule_to, Time}};
        Error -> Error
    end;
operation(reschedule, #{<<"by">> := Word}) ->
    case rabbit_delay_filter:offset(Word) of
        {ok, Offset} -> {ok, {reschedule_by, Offset}};
        Error -> Error
    end;
operation(reschedule, _) ->
    {error, <<"to when? Give to or by">>};
operation(Operation, _) ->
    {ok, Operation}.

which(Json) ->
    case maps:to_list(maps:with([<<"ids">>, <<"filter">>, <<"all">>], Json)) of
        [{<<"ids">>, Words}] when is_list(Words), Words =/= [], length(Words) =< ?MAX_IDS ->
            case is_map_key(<<"dry_run">>, Json) orelse is_map_key(<<"cursor">>, Json) of
                true -> {error, <<"dry_run and cursor do not go with ids">>};
                false -> ids(Words, [])
            end;
        [{<<"ids">>, _}] ->
            {error, text("ids: not a list of 1 to ~b ids", [?MAX_IDS])};
        [{<<"filter">>, Words}] when is_map(Words), map_size(Words) > 0 ->
            filter(Words);
        [{<<"filter">>, _}] ->
            {error, <<"filter: not an object with at least one member; all are meant by "
                      "\"all\": true">>};
        [{<<"all">>, true}] ->
            {ok, All} = rabbit_delay_filter:parse(#{}, 0),
            {ok, {filter, All}};
        _ ->
            {error, <<"which messages? Give one of ids, filter, and \"all\": true">>}
    end.

ids([], Acc) ->
    {ok, {ids, Acc}};
ids([Word | Rest], Acc) when is_binary(Word) ->
    case rabbit_delay_filter:id(Word) of
        {ok, Id} -> ids(Rest, [Id | Acc]);
        Error -> Error
    end;
ids(_, _) ->
    {error, <<"ids: each is a string">>}.

filter(Words) ->
    case rabbit_delay_http:known(maps:to_list(Words), ?SELECTING) of
        {ok, Known} ->
            case rabbit_delay_filter:parse(Known, rabbit_delay_config:now_ms()) of
                {ok, Filter} -> {ok, {filter, Filter}};
                Error -> Error
            end;
        Error ->
            Error
    end.

json_cursor(#{<<"cursor">> := Cursor}) when is_binary(Cursor) -> {ok, #{cursor => Cursor}};
json_cursor(#{<<"cursor">> := null}) -> {ok, #{}};
json_cursor(#{<<"cursor">> := _}) -> {error, <<"cursor: not a string">>};
json_cursor(_) -> {ok, #{}}.

text(Format, Args) ->
    rabbit_delay_text:printable(io_lib:format(Format, Args)).
