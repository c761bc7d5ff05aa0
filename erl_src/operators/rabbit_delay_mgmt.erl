%% SPDX-License-Identifier: MPL-2.0

%% The HTTP API for delayed messages, as an extension of the management plugin, which finds this module
%% by its behaviour and is needed by nothing else here. priv/openapi.json describes it.
%%
%% Who may what: as in the management plugin's own API, a user needs one of its tags and access to
%% the vhost, which is enough to see exchanges and how much they hold. Besides that, and whatever the
%% tags, seeing messages takes `read' permission for the exchange, which is what binding a queue to
%% it takes; changing, pausing and resuming take `configure', which is what deleting it takes.
-module(rabbit_delay_mgmt).

-type resource() :: exchanges | exchange | due_times | lateness | messages | message | pause
                  | resume | cancel | release | reschedule.

-export([delete_resource/2]).
%% For rabbit_delay_dead_letter_mgmt.
-export([permitted/5, parameters/2, known/2, integer/5, json_boolean/2, all/2, body/1, with_json/3,
         refuse/5, reply/4]).

-include("rabbit_delay_mgmt.hrl").

-define(LIMIT, 100).
-define(MAX_LIMIT, 1000).
-define(BODY_BYTES, 50000).
-define(MAX_BODY_BYTES, 16777216).
-define(MAX_IDS, 1000).
-define(COLUMNS, [name, type, messages_delayed, bytes_delayed, next_due, overdue, in_flight,
                  unreadable, paused]).

-define(SELECTING, [due_from, due_to, key, routing_key, published_to, header]).

-spec dispatcher() -> [{string(), module(), [resource()]}].
dispatcher() ->
    [{"/delayed-exchanges" ++ Path, ?MODULE, [Resource]}
     || {Path, Resource} <-
            [{"", exchanges},
             {"/:vhost", exchanges},
             {"/:vhost/:exchange", exchange},
             {"/:vhost/:exchange/due-times", due_times},
             {"/:vhost/:exchange/lateness", lateness},
             {"/:vhost/:exchange/pause", pause},
             {"/:vhost/:exchange/resume", resume},
             {"/:vhost/:exchange/messages", messages},
             {"/:vhost/:exchange/messages/cancel", cancel},
             {"/:vhost/:exchange/messages/release", release},
             {"/:vhost/:exchange/messages/reschedule", reschedule},
             {"/:vhost/:exchange/messages/:id", message}]].

-spec web_ui() -> [{javascript, binary()}].
web_ui() -> [{javascript, <<"delayed.js">>}].

-spec allowed_methods(cowboy_req:req(), #context{}) -> reply().
allowed_methods(Req, #context{impl = Resource} = Context) ->
    Methods = case Resource of
                  exchanges -> [<<"HEAD">>, <<"GET">>];
                  exchange -> [<<"HEAD">>, <<"GET">>];
                  due_times -> [<<"HEAD">>, <<"GET">>];
                  lateness -> [<<"HEAD">>, <<"GET">>];
                  messages -> [<<"HEAD">>, <<"GET">>, <<"DELETE">>];
                  message -> [<<"HEAD">>, <<"GET">>, <<"DELETE">>];
                  _ -> [<<"POST">>]
              end,
    {Methods ++ [<<"OPTIONS">>], Req, Context}.

-spec is_authorized(cowboy_req:req(), #context{}) -> reply().
is_authorized(Req, Context) ->
    rabbit_mgmt_util:is_authorized_vhost(Req, Context).

-spec forbidden(cowboy_req:req(), #context{}) -> {boolean() | stop, cowboy_req:req(), #context{}}.
forbidden(Req, #context{impl = Resource} = Context) ->
    case permission(Resource, cowboy_req:method(Req)) of
        none -> {false, Req, Context};
        Permission -> permitted("delayed messages", Permission, exchange, Req, Context)
    end.

permission(_, <<"OPTIONS">>) -> none;
permission(exchanges, _) -> none;
permission(exchange, _) -> none;
permission(due_times, _) -> none;
permission(lateness, _) -> none;
permission(_, <<"POST">>) -> configure;
permission(_, <<"DELETE">>) -> configure;
permission(_, _) -> read.

%% For forbidden/2: whether the user has a permission for the exchange or queue that the path names.
%% What begins the line in the log if not.
-spec permitted(What :: string(), read | configure, exchange | queue, cowboy_req:req(), #context{}) ->
          {boolean() | stop, cowboy_req:req(), #context{}}.
permitted(What, Permission, Kind, Req, #context{user = User} = Context) ->
    case rabbit_mgmt_util:vhost(Req) of
        not_found ->
            {false, Req, Context};
        VHost ->
            Resource = rabbit_misc:r(VHost, Kind, rabbit_mgmt_util:id(Kind, Req)),
            case rabbit_delay_broker:is_permitted(User, Resource, Permission) of
                true ->
                    {false, Req, Context};
                false ->
                    Why = text("~ts permission for ~ts refused for user '~ts'",
                               [Permission, rabbit_misc:rs(Resource), User#user.username]),
                    ?LOG_WARNING("~s: ~ts (~ts ~ts)",
                                 [What, Why, cowboy_req:method(Req), cowboy_req:path(Req)],
                                 ?LOG_DOMAIN),
                    refuse(403, forbidden, Why, Req, Context)
            end
    end.

%% ------------------------------------------------------------------------------------- GET

-spec to_json(cowboy_req:req(), #context{}) -> reply().
to_json(Req, #context{impl = exchanges} = Context) ->
    VHosts = case rabbit_mgmt_util:vhost(Req) of
                 none -> rabbit_vhost:list_names();
                 VHost -> [VHost]
             end,
    Exchanges = lists:append([shown_exchanges(VHost, all, rates) || VHost <- VHosts]),
    rabbit_mgmt_util:reply_list_or_paginate(
      rabbit_mgmt_util:filter_vhost(Exchanges, Req, Context), Req, Context);
to_json(Req, #context{impl = exchange} = Context) ->
    #resource{virtual_host = VHost, name = Name} = XName = exchange(Req),
    case shown_exchanges(VHost, Name, samples) of
        [Exchange] -> encoded(maps:from_list(Exchange), Req, Context);
        [] -> refuse_unknown(XName, Req, Context)
    end;
to_json(Req, #context{impl = due_times} = Context) ->
    of_exchange(fun (XName) -> #{buckets => buckets(rabbit_delay_statistics:due_times(XName))} end,
                Req, Context);
to_json(Req, #context{impl = lateness} = Context) ->
    of_exchange(fun (XName) ->
                        {Buckets, Sum} = rabbit_delay_statistics:lateness(XName),
                        #{buckets => buckets(Buckets), sum => Sum}
                end, Req, Context);
to_json(Req, #context{impl = messages} = Context) ->
    case list_request(Req) of
        {ok, Filter, Options} ->
            answer(rabbit_delay_pending:list(exchange(Req), Filter, Options),
                   fun ({ok, Items, Cursor}) ->
                           encoded(#{items => Items, cursor => or_null(Cursor)}, Req, Context)
                   end, Req, Context);
        {error, Why} ->
            refuse(400, bad_request, Why, Req, Context)
    end;
to_json(Req, #context{impl = message} = Context) ->
    case message_request(Req) of
        {ok, Id, Options} ->
            answer(rabbit_delay_pending:show(exchange(Req), Id, Options),
                   fun ({ok, Item}) -> encoded(Item, Req, Context) end, Req, Context);
        {error, Why} ->
            refuse(400, bad_request, Why, Req, Context)
    end.

shown_exchanges(VHost, Which, What) ->
    [[{vhost, VHost},
      {message_stats, rabbit_delay_statistics:message_stats(rabbit_misc:r(VHost, exchange, Name),
                                                            What)}
      | [{Item, if_none(Item, Value)} || {Item, Value} <- Row]]
     || [{name, Name} | _] = Row <- rabbit_delay_exchange:list(VHost, Which, ?COLUMNS)].

of_exchange(Fun, Req, Context) ->
    #resource{virtual_host = VHost, name = Name} = XName = exchange(Req),
    case rabbit_delay_exchange:list(VHost, Name, [name]) of
        [_] -> encoded(Fun(XName), Req, Context);
        [] -> refuse_unknown(XName, Req, Context)
    end.

buckets(Buckets) ->
    [#{up_to => case UpTo of infinity -> null; _ -> UpTo end, messages => N}
     || {UpTo, N} <- Buckets].

if_none(next_due, '') -> null;
if_none(_, Value) -> Value.

or_null(none) -> null;
or_null(Value) -> Value.

list_request(Req) ->
    case parameters(Req, [cursor, limit, body, body_bytes | ?SELECTING]) of
        {ok, Words} ->
            all([{limit, integer(limit, Words, ?LIMIT, 1, ?MAX_LIMIT)},
                 {bytes, integer(body_bytes, Words, ?BODY_BYTES, 0, ?MAX_BODY_BYTES)},
                 {body, boolean(body, Words)},
                 {filter, rabbit_delay_filter:parse(Words, rabbit_delay_config:now_ms())}],
                fun (#{limit := Limit, bytes := Bytes, body := Body, filter := Filter}) ->
                        {ok, Filter, with_body(Body, Bytes, (maps:with([cursor], Words))
                                                            #{limit => Limit, content => true})}
                end);
        Error ->
            Error
    end.

message_request(Req) ->
    case parameters(Req, [body, body_bytes]) of
        {ok, Words} ->
            all([{id, rabbit_delay_filter:id(rabbit_mgmt_util:id(id, Req))},
                 {bytes, integer(body_bytes, Words, ?MAX_BODY_BYTES, 0, ?MAX_BODY_BYTES)},
                 {body, boolean(body, Words)}],
                fun (#{id := Id, bytes := Bytes, body := Body}) ->
                        {ok, Id, with_body(Body, Bytes, #{})}
                end);
        Error ->
            Error
    end.

with_body(true, Bytes, Options) -> Options#{body => Bytes};
with_body(false, _, Options) -> Options.

%% -------------------------------------------------------------------------- POST and DELETE

-spec accept(cowboy_req:req(), #context{}) -> reply().
accept(Req, #context{impl = pause} = Context) ->
    switched(rabbit_delay_pending:pause(exchange(Req), by(Context)), Req, Context);
accept(Req, #context{impl = resume} = Context) ->
    switched(rabbit_delay_pending:resume(exchange(Req), by(Context)), Req, Context);
accept(Req0, #context{impl = Resource} = Context) ->
    case body(Req0) of
        {ok, Json, Req} ->
            case change_request(Resource, Json) of
                {ok, Operation, Which, Options} ->
                    change(Operation, Which, Options, Req, Context);
                {error, Why} ->
                    refuse(400, bad_request, Why, Req, Context)
            end;
        {error, Why} ->
            refuse(400, bad_request, Why, Req0, Context)
    end.

switched(Result, Req, Context) ->
    answer(Result, fun (ok) -> {stop, cowboy_req:reply(204, Req), Context} end, Req, Context).

-spec delete_resource(cowboy_req:req(), #context{}) -> reply().
delete_resource(Req, #context{impl = messages} = Context) ->
    case parameters(Req, [cursor, dry_run]) of
        {ok, Words} ->
            case boolean(dry_run, Words) of
                {ok, DryRun} ->
                    {ok, All} = rabbit_delay_filter:parse(#{}, 0),
                    change(cancel, {filter, All},
                           (maps:with([cursor], Words))#{dry_run => DryRun}, Req, Context);
                {error, Why} ->
                    refuse(400, bad_request, Why, Req, Context)
            end;
        {error, Why} ->
            refuse(400, bad_request, Why, Req, Context)
    end;
delete_resource(Req, #context{impl = message} = Context) ->
    case rabbit_delay_filter:id(rabbit_mgmt_util:id(id, Req)) of
        {ok, Id} ->
            Result = rabbit_delay_pending:change_ids(exchange(Req), cancel, [Id], by(Context)),
            answer(Result,
                   fun ({ok, [{_, done}]}) ->
                           {stop, cowboy_req:reply(204, Req), Context};
                       ({ok, [{_, in_flight}]}) ->
                           refuse(409, conflict, <<"the message is in flight to its queues">>, Req,
                                  Context);
                       ({ok, [{_, not_found}]}) ->
                           refuse(404, not_found, text("no message with id ~b is pending there",
                                                       [Id]), Req, Context)
                   end, Req, Context);
        {error, Why} ->
            refuse(400, bad_request, Why, Req, Context)
    end.

%% The request's body, a JSON object.
-spec body(cowboy_req:req()) -> {ok, map(), cowboy_req:req()} | {error, Why :: binary()}.
body(Req0) ->
    case rabbit_mgmt_util:read_complete_body(Req0) of
        {ok, Body, Req} ->
            case rabbit_json:try_decode(Body) of
                {ok, Json} when is_map(Json) -> {ok, Json, Req};
                {ok, _} -> {error, <<"the request's body is not a JSON object">>};
                {error, _} -> {error, <<"the request's body is not JSON">>}
            end;
        _ ->
            {error, <<"the request's body is too large">>}
    end.

change_request(Resource, Json) ->
    Known = [<<"ids">>, <<"filter">>, <<"all">>, <<"dry_run">>, <<"cursor">>]
        ++ case Resource of
               reschedule -> [<<"to">>, <<"by">>];
               _ -> []
           end,
    case maps:keys(maps:without(Known, Json)) of
        [] ->
            all([{operation, operation(Resource, Json)},
                 {which, which(Json)},
                 {dry_run, json_boolean(<<"dry_run">>, Json)},
                 {cursor, json_cursor(Json)}],
                fun (#{operation := Operation, which := Which, dry_run := DryRun,
                       cursor := Cursor}) ->
                        {ok, Operation, Which, Cursor#{dry_run => DryRun}}
                end);
        [Unknown | _] ->
            {error, text("unknown member ~0tp", [Unknown])}
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
    case known(maps:to_list(Words), ?SELECTING) of
        {ok, Known} ->
            case rabbit_delay_filter:parse(Known, rabbit_delay_config:now_ms()) of
                {ok, Filter} -> {ok, {filter, Filter}};
                Error -> Error
            end;
        Error ->
            Error
    end.

%% Of a JSON object; false if it is not there.
-spec json_boolean(Name :: atom() | binary(), map()) -> {ok, boolean()} | {error, Why :: binary()}.
json_boolean(Name, Json) ->
    case maps:get(Name, Json, false) of
        Value when is_boolean(Value) -> {ok, Value};
        _ -> {error, text("~s: neither true nor false", [Name])}
    end.

json_cursor(#{<<"cursor">> := Cursor}) when is_binary(Cursor) -> {ok, #{cursor => Cursor}};
json_cursor(#{<<"cursor">> := null}) -> {ok, #{}};
json_cursor(#{<<"cursor">> := _}) -> {error, <<"cursor: not a string">>};
json_cursor(_) -> {ok, #{}}.

change(Operation, {ids, Ids}, _, Req, Context) ->
    answer(rabbit_delay_pending:change_ids(exchange(Req), Operation, Ids, by(Context)),
           fun ({ok, Outcomes}) ->
                   Results = [#{id => integer_to_binary(Id), outcome => Outcome}
                              || {Id, Outcome} <- Outcomes],
                   done(#{results => Results}, Req, Context)
           end, Req, Context);
change(Operation, {filter, Filter}, Options, Req, Context) ->
    answer(rabbit_delay_pending:change_matching(exchange(Req), Operation, Filter,
                                                Options#{by => by(Context)}),
           fun ({ok, #{cursor := Cursor} = Summary}) ->
                   done(Summary#{cursor := or_null(Cursor)}, Req, Context)
           end, Req, Context).

by(#context{user = #user{username = Username}}) ->
    <<"user '", Username/binary, "' over HTTP">>.

%% ----------------------------------------------------------------------------- the request

exchange(Req) ->
    rabbit_misc:r(rabbit_mgmt_util:vhost(Req), exchange, rabbit_mgmt_util:id(exchange, Req)).

%% The query's parameters, all of which must be known; empty ones count as absent.
-spec parameters(cowboy_req:req(), [atom()]) -> {ok, #{atom() => binary()}} | {error, binary()}.
parameters(Req, Known) ->
    try cowboy_req:parse_qs(Req) of
        Parameters -> known([P || {_, Value} = P <- Parameters, Value =/= <<>>], Known)
    catch
        _:_ -> {error, <<"the query string is malformed">>}
    end.

%% Given by names that all must be known, each once.
-spec known([{binary(), Value}], [atom()]) -> {ok, #{atom() => Value}} | {error, Why :: binary()}.
known(Given, Known) ->
    Names = maps:from_list([{atom_to_binary(Name, utf8), Name} || Name <- Known]),
    lists:foldl(fun ({Word, Value}, {ok, Acc}) ->
                        case Names of
                            #{Word := Name} when is_map_key(Name, Acc) ->
                                {error, text("~s is there twice", [Name])};
                            #{Word := Name} ->
                                {ok, Acc#{Name => Value}};
                            _ ->
                                {error, text("unknown parameter ~0tp", [Word])}
                        end;
                    (_, Error) ->
                        Error
                end, {ok, #{}}, Given).

-spec integer(atom(), #{atom() => binary()}, integer(), integer(), integer()) ->
          {ok, integer()} | {error, binary()}.
integer(Name, Words, Default, Min, Max) ->
    try binary_to_integer(maps:get(Name, Words, integer_to_binary(Default))) of
        N when N >= Min, N =< Max -> {ok, N};
        _ -> {error, text("~s: not a number from ~b to ~b", [Name, Min, Max])}
    catch
        error:badarg -> {error, text("~s: not a number from ~b to ~b", [Name, Min, Max])}
    end.

boolean(Name, Words) ->
    case maps:get(Name, Words, <<"false">>) of
        <<"true">> -> {ok, true};
        <<"false">> -> {ok, false};
        _ -> {error, text("~s: neither true nor false", [Name])}
    end.

%% Then is given the values when there are no errors.
-spec all([{atom(), {ok, term()} | {error, Why :: binary()}}],
          fun((#{atom() => term()}) -> Result)) -> Result | {error, Why :: binary()}.
all(Results, Then) ->
    case [Error || {_, {error, _} = Error} <- Results] of
        [] -> Then(maps:from_list([{Name, Value} || {Name, {ok, Value}} <- Results]));
        [Error | _] -> Error
    end.

%% ------------------------------------------------------------------------------ the answer

answer({error, {Kind, Why}}, _, Req, Context) ->
    Status = case Kind of
                 bad_request -> 400;
                 not_found -> 404;
                 unavailable -> 503
             end,
    refuse(Status, Kind, Why, Req, Context);
answer(Result, Then, _, _) ->
    Then(Result).

encoded(Term, Req, Context) ->
    with_json(rabbit_json:encode(Term), Req, Context).

%% The answer of to_json/2.
-spec with_json(iodata(), cowboy_req:req(), #context{}) ->
          {iodata(), cowboy_req:req(), #context{}}.
with_json(Json, Req, Context) ->
    {Json, cowboy_req:set_resp_header(<<"cache-control">>, <<"no-cache">>, Req), Context}.

done(Term, Req, Context) ->
    reply(200, Term, Req, Context).

refuse_unknown(XName, Req, Context) ->
    refuse(404, not_found, text("there is no delayed ~ts", [rabbit_misc:rs(XName)]), Req, Context).

-spec refuse(400..599, atom(), Why :: binary(), cowboy_req:req(), #context{}) ->
          {stop, cowboy_req:req(), #context{}}.
refuse(Status, Error, Why, Req, Context) ->
    reply(Status, #{error => Error, reason => Why}, Req, Context).

-spec reply(200..599, term(), cowboy_req:req(), #context{}) ->
          {stop, cowboy_req:req(), #context{}}.
reply(Status, Term, Req, Context) ->
    {stop, cowboy_req:reply(Status, #{<<"content-type">> => <<"application/json">>},
                            rabbit_json:encode(Term), Req), Context}.
