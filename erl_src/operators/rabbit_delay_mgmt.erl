%% SPDX-License-Identifier: MPL-2.0

%% The HTTP API for delayed messages, as an extension of the management plugin, which finds this module
%% by its behaviour and is needed by nothing else here. priv/openapi.json describes it.
%%
%% Who may what: as in the management plugin's own API, a user needs one of its tags and access to
%% the vhost, which is enough to see exchanges and how much they hold. Besides that, and whatever the
%% tags, seeing messages takes `read' permission for the exchange, which is what binding a queue to
%% it takes; changing, pausing and resuming take `configure', which is what deleting it takes. To
%% choose by what messages say, which tells what that is, takes `read' as well.
%%
%% What destroys must be spelled out: a parameter or member that is not known, or not of its type, is
%% refused wherever it stands. And it must be a program of the user's that asks, or a page of ours: a
%% page from elsewhere, in a browser that has the user's credentials, can send a POST of some types, or
%% of none, without asking the broker first. So a body is application/json, and what has neither
%% a body nor a type does not come from a browser, which would name its origin.
-module(rabbit_delay_mgmt).

-type resource() :: exchanges | exchange | due_times | lateness | messages | message | pause
                  | resume | cancel | release | reschedule.

-export([delete_resource/2]).
%% For rabbit_delay_dead_letter_mgmt.
-export([check_content/2, permitted/5, parameters/2, known/2, integer/5, json_boolean/2, all/2,
         body/1, with_json/3, refuse/5, reply/4]).

-include("rabbit_delay_mgmt.hrl").

-define(LIMIT, 100).
-define(MAX_LIMIT, 1000).
-define(BODY_BYTES, 50000).
-define(MAX_BODY_BYTES, 16777216).
-define(MAX_IDS, 1000).
%% Of rabbit_delay_budget.
-define(READING_BYTES, 67108864).
-define(COLUMNS, [name, type, messages_delayed, bytes_delayed, next_due, overdue, in_flight,
                  unreadable, paused]).

%% Of the list of exchanges.
-define(PAGE_SIZE, 100).
-define(MAX_PAGE_SIZE, 500).
-define(MAX_PAGE, 1000000000).
-define(MAX_PATTERN, 250).

-define(TEXTS, [<<"cursor">>, <<"due_from">>, <<"due_to">>, <<"key">>, <<"routing_key">>,
                <<"published_to">>, <<"header">>, <<"name">>, <<"sort">>, <<"columns">>]).

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
                  messages ->
                      case is_spelled_out(Req) of
                          true -> [<<"HEAD">>, <<"GET">>, <<"DELETE">>];
                          false -> [<<"HEAD">>, <<"GET">>]
                      end;
                  message -> [<<"HEAD">>, <<"GET">>, <<"DELETE">>];
                  _ -> [<<"POST">>]
              end,
    {Methods ++ [<<"OPTIONS">>], Req, Context}.

%% An id that is empty, or a dot, leaves a path that means all messages.
is_spelled_out(Req) ->
    lists:last(binary:split(cowboy_req:path(Req), <<"/">>, [global])) =:= <<"messages">>.

-spec is_authorized(cowboy_req:req(), #context{}) -> reply().
is_authorized(Req, Context) ->
    rabbit_mgmt_util:is_authorized_vhost(Req, Context).

-spec forbidden(cowboy_req:req(), #context{}) -> {boolean() | stop, cowboy_req:req(), #context{}}.
forbidden(Req, #context{impl = Resource} = Context) ->
    case permission(Resource, cowboy_req:method(Req)) of
        none -> {false, Req, Context};
        Permission -> permitted("delayed messages", Permission, exchange, Req, Context)
    end.

%% For valid_content_headers/2.
-spec check_content(cowboy_req:req(), #context{}) -> {true | stop, cowboy_req:req(), #context{}}.
check_content(Req, Context) ->
    case cowboy_req:method(Req) of
        <<"POST">> ->
            case content_type(Req) of
                {<<"application">>, <<"json">>, _} ->
                    {true, Req, Context};
                undefined ->
                    case {cowboy_req:has_body(Req), cowboy_req:header(<<"origin">>, Req)} of
                        {false, undefined} -> {true, Req, Context};
                        _ -> refuse_type(Req, Context)
                    end;
                _ ->
                    refuse_type(Req, Context)
            end;
        <<"DELETE">> ->
            case cowboy_req:has_body(Req) of
                true -> refuse(400, bad_request, <<"a DELETE has no body">>, Req, Context);
                false -> {true, Req, Context}
            end;
        _ ->
            {true, Req, Context}
    end.

content_type(Req) ->
    try
        cowboy_req:parse_header(<<"content-type">>, Req)
    catch
        _:_ -> malformed
    end.

refuse_type(Req, Context) ->
    refuse(415, unsupported_media_type, <<"the content-type must be application/json">>, Req,
           Context).

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
                true -> {false, Req, Context};
                false -> refuse_permission(What, Permission, Resource, Req, Context)
            end
    end.

refuse_permission(What, Permission, Resource, Req, #context{user = User} = Context) ->
    Why = text("~ts permission for ~ts refused for user '~ts'",
               [Permission, rabbit_delay_text:rs(Resource),
                rabbit_delay_text:escaped(User#user.username)]),
    ?LOG_WARNING("~s: ~ts (~ts ~ts)",
                 [What, Why, cowboy_req:method(Req), rabbit_delay_text:escaped(cowboy_req:path(Req))],
                 ?LOG_DOMAIN),
    refuse(403, forbidden, Why, Req, Context).

%% ------------------------------------------------------------------------------------- GET

-spec to_json(cowboy_req:req(), #context{}) -> reply().
to_json(Req, #context{impl = exchanges, user = User} = Context) ->
    case page_request(Req) of
        {ok, Request} ->
            VHosts = case rabbit_mgmt_util:vhost(Req) of
                         none -> rabbit_mgmt_util:list_visible_vhosts_names(User);
                         VHost -> [VHost]
                     end,
            Rows = rabbit_delay_exchange:list_in(VHosts, [vhost | ?COLUMNS]),
            encoded(page([shown_exchange(Row, rates) || Row <- Rows], Request), Req, Context);
        {error, Why} ->
            refuse(400, bad_request, Why, Req, Context)
    end;
to_json(Req, #context{impl = exchange} = Context) ->
    XName = exchange(Req),
    with_parameters(
      [], fun (_) ->
                  case rabbit_delay_exchange:show(XName, [vhost | ?COLUMNS]) of
                      {ok, Row} -> encoded(shown_exchange(Row, samples), Req, Context);
                      {error, not_found} -> refuse_unknown(XName, Req, Context)
                  end
          end, Req, Context);
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
            reading(fun () -> rabbit_delay_pending:list(exchange(Req), Filter, Options) end,
                    fun ({ok, Items, Cursor}) ->
                            encoded(#{items => Items, cursor => or_null(Cursor)}, Req, Context)
                    end, Req, Context);
        {error, Why} ->
            refuse(400, bad_request, Why, Req, Context)
    end;
to_json(Req, #context{impl = message} = Context) ->
    case message_request(Req) of
        {ok, Id, Options} ->
            reading(fun () -> rabbit_delay_pending:show(exchange(Req), Id, Options) end,
                    fun ({ok, Item}) -> encoded(Item, Req, Context) end, Req, Context);
        {error, Why} ->
            refuse(400, bad_request, Why, Req, Context)
    end.

%% As JSON it takes several times the memory: that counts as well.
reading(Read, Then, Req, Context) ->
    case rabbit_delay_budget:with(bytes, ?READING_BYTES,
                                  fun () -> answer(Read(), Then, Req, Context) end) of
        {error, _} = Busy -> answer(Busy, Then, Req, Context);
        Answer -> Answer
    end.

shown_exchange(Row, What) ->
    #{vhost := VHost, name := Name} = Shown = maps:from_list(Row),
    XName = rabbit_misc:r(VHost, exchange, Name),
    maps:fold(fun (Item, Value, Acc) when Item =:= vhost; Item =:= name; Item =:= type ->
                      Acc#{atom_to_binary(Item, utf8) => rabbit_delay_text:printable(Value)};
                  (Item, Value, Acc) ->
                      Acc#{atom_to_binary(Item, utf8) => if_none(Item, Value)}
              end, #{<<"message_stats">> => rabbit_delay_statistics:message_stats(XName, What)},
              Shown).

of_exchange(Fun, Req, Context) ->
    XName = exchange(Req),
    with_parameters(
      [], fun (_) ->
                  case rabbit_delay_exchange:show(XName, []) of
                      {ok, _} -> encoded(Fun(XName), Req, Context);
                      {error, not_found} -> refuse_unknown(XName, Req, Context)
                  end
          end, Req, Context).

%% The list of exchanges is asked for as those of the management plugin are, and answered alike. Not by
%% its code: of some combinations that makes a status of 500.
page_request(Req) ->
    case parameters(Req, [page, page_size, name, use_regex, sort, sort_reverse, columns,
                          pagination]) of
        {ok, Words} ->
            all([{page, page_number(Words)},
                 {pagination, boolean(pagination, Words)},
                 {size, integer(page_size, Words, ?PAGE_SIZE, 1, ?MAX_PAGE_SIZE)},
                 {reverse, boolean(sort_reverse, Words)},
                 {sort, {ok, path(maps:get(sort, Words, <<>>))}},
                 {columns, {ok, columns(Words)}},
                 {matches, matcher(Words)}], fun (Request) -> {ok, Request} end);
        Error ->
            Error
    end.

page_number(#{page := _} = Words) -> integer(page, Words, 1, 1, ?MAX_PAGE);
page_number(_) -> {ok, all}.

path(Word) ->
    [Name || Name <- binary:split(Word, <<".">>, [global]), Name =/= <<>>].

columns(#{columns := Word}) -> [path(Column) || Column <- binary:split(Word, <<",">>, [global])];
columns(_) -> all.

matcher(Words) ->
    case {maps:get(name, Words, <<>>), boolean(use_regex, Words)} of
        {_, {error, _} = Error} ->
            Error;
        {<<>>, _} ->
            {ok, fun (_) -> true end};
        {Bytes, {ok, UseRegex}} ->
            Name = rabbit_delay_text:printable(Bytes),
            case length(unicode:characters_to_list(Name)) =< ?MAX_PATTERN of
                true -> matcher(Name, UseRegex);
                false -> {error, text("name: more than ~b characters", [?MAX_PATTERN])}
            end
    end.

matcher(Name, UseRegex) ->
    case UseRegex of
        false ->
            Part = string:casefold(Name),
            {ok, fun (Other) -> string:find(string:casefold(Other), Part) =/= nomatch end};
        true ->
            case re:compile(Name, [caseless, unicode]) of
                {ok, Regex} ->
                    {ok, fun (Other) ->
                                 re:run(Other, Regex, [{capture, none},
                                                       {match_limit, 10000}]) =:= match
                         end};
                {error, _} ->
                    {error, <<"name: not a regular expression">>}
            end
    end.

%% Of whatever has no such column, nothing comes first.
page(Rows, #{page := Page, size := Size, sort := Sort, reverse := Reverse, columns := Columns,
             matches := Matches}) ->
    Keyed = lists:sort([{at(Sort, Row), maps:get(<<"vhost">>, Row), maps:get(<<"name">>, Row), Row}
                        || Row <- Rows]),
    Sorted = [Row || {_, _, _, Row} <- case Reverse of
                                           true -> lists:reverse(Keyed);
                                           false -> Keyed
                                       end],
    case Page of
        all ->
            [with_columns(Row, Columns) || Row <- Sorted];
        _ ->
            Filtered = [Row || #{<<"name">> := Name} = Row <- Sorted, Matches(Name)],
            Count = length(Filtered),
            Items = case (Page - 1) * Size of
                        Offset when Offset < Count -> lists:sublist(Filtered, Offset + 1, Size);
                        _ -> []
                    end,
            #{total_count => length(Sorted), filtered_count => Count, item_count => length(Items),
              page => Page, page_size => Size, page_count => (Count + Size - 1) div Size,
              items => [with_columns(Row, Columns) || Row <- Items]}
    end.

at([], _) -> 0;
at([Name | Rest], Map) when is_map(Map) ->
    Known = [Value || {Key, Value} <- maps:to_list(Map), key_name(Key) =:= Name],
    case {Known, Rest} of
        {[null], _} -> 0;
        {[Value], []} when not is_map(Value), not is_list(Value) -> Value;
        {[Value], _} -> at(Rest, Value);
        {[], _} -> 0
    end;
at(_, _) -> 0.

key_name(Key) when is_atom(Key) -> atom_to_binary(Key, utf8);
key_name(Key) -> Key.

with_columns(Value, all) ->
    Value;
with_columns(Map, Columns) when is_map(Map) ->
    maps:from_list([{Key, with_columns(Value, case lists:member([], Below) of
                                                  true -> all;
                                                  false -> Below
                                              end)}
                    || {Key, Value} <- maps:to_list(Map),
                       Below <- [[Rest || [Name | Rest] <- Columns, Name =:= key_name(Key)]],
                       Below =/= []]);
with_columns(Value, _) ->
    Value.

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
accept(Req, Context) ->
    with_parameters([], fun (_) -> accept_body(Req, Context) end, Req, Context).

accept_body(Req0, #context{impl = Switch} = Context) when Switch =:= pause; Switch =:= resume ->
    case cowboy_req:has_body(Req0) andalso body(Req0) of
        Nothing when Nothing =:= false; element(2, Nothing) =:= #{} ->
            switched(rabbit_delay_pending:Switch(exchange(Req0), by(Context)), Req0, Context);
        {ok, _, Req} ->
            refuse(400, bad_request, <<"nothing is to be said of it">>, Req, Context);
        {error, Why} ->
            refuse(400, bad_request, Why, Req0, Context)
    end;
accept_body(Req0, #context{impl = Resource, user = User} = Context) ->
    case body(Req0) of
        {ok, Json, Req} ->
            XName = exchange(Req),
            case change_request(Resource, Json) of
                {ok, Operation, Which, Options} ->
                    case discloses(Which)
                        andalso not rabbit_delay_broker:is_permitted(User, XName, read) of
                        true -> refuse_permission("delayed messages", read, XName, Req, Context);
                        false -> change(Operation, Which, Options, Req, Context)
                    end;
                {error, Why} ->
                    refuse(400, bad_request, Why, Req, Context)
            end;
        {error, Why} ->
            refuse(400, bad_request, Why, Req0, Context)
    end.

%% How many match says what is in them.
discloses({filter, Filter}) -> rabbit_delay_filter:needs_content(Filter);
discloses({ids, _}) -> false.

switched(Result, Req, Context) ->
    answer(Result, fun (ok) -> {stop, cowboy_req:reply(204, Req), Context} end, Req, Context).

-spec delete_resource(cowboy_req:req(), #context{}) -> reply().
delete_resource(Req, #context{impl = messages} = Context) ->
    with_parameters(
      [cursor, dry_run],
      fun (Words) ->
              case boolean(dry_run, Words) of
                  {ok, DryRun} ->
                      {ok, All} = rabbit_delay_filter:parse(#{}, 0),
                      change(cancel, {filter, All},
                             (maps:with([cursor], Words))#{dry_run => DryRun}, Req, Context);
                  {error, Why} ->
                      refuse(400, bad_request, Why, Req, Context)
              end
      end, Req, Context);
delete_resource(Req, #context{impl = message} = Context) ->
    with_parameters([], fun (_) -> delete_message(Req, Context) end, Req, Context).

delete_message(Req, Context) ->
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
            case length(binary:matches(Body, <<"\"dry_run\"">>)) > 1 orelse decoded(Body) of
                true -> {error, <<"dry_run is there twice">>};
                {ok, Json} when is_map(Json) -> {ok, Json, Req};
                {ok, _} -> {error, <<"the request's body is not a JSON object">>};
                {error, _} -> {error, <<"the request's body is not JSON">>}
            end;
        _ ->
            {error, <<"the request's body is too large">>}
    end.

%% The broker's decoder of some series takes bytes that are not UTF-8.
decoded(Body) ->
    case unicode:characters_to_binary(Body) of
        Body -> rabbit_json:try_decode(Body);
        _ -> {error, not_utf8}
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
    <<"user '", (rabbit_delay_text:escaped(Username))/binary, "' over HTTP">>.

%% ----------------------------------------------------------------------------- the request

exchange(Req) ->
    rabbit_misc:r(rabbit_mgmt_util:vhost(Req), exchange, rabbit_mgmt_util:id(exchange, Req)).

with_parameters(Known, Then, Req, Context) ->
    case parameters(Req, Known) of
        {ok, Words} -> Then(Words);
        {error, Why} -> refuse(400, bad_request, Why, Req, Context)
    end.

%% The query's parameters, all of which must be known. Of those that are text, empty ones count as
%% absent.
-spec parameters(cowboy_req:req(), [atom()]) -> {ok, #{atom() => binary()}} | {error, binary()}.
parameters(Req, Known) ->
    try cowboy_req:parse_qs(Req) of
        Parameters ->
            case [Name || {Name, true} <- Parameters] of
                [] -> known([P || {Name, Value} = P <- Parameters,
                                  Value =/= <<>> orelse not lists:member(Name, ?TEXTS)], Known);
                [Name | _] -> {error, text("~0tp has no value", [Name])}
            end
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
    Word = maps:get(Name, Words, integer_to_binary(Default)),
    case rabbit_delay_filter:number(Word) of
        {ok, N} when N >= Min, N =< Max -> {ok, N};
        _ -> {error, text("~s: not a number from ~b to ~b", [Name, Min, Max])}
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
    refuse(404, not_found, text("there is no delayed ~ts", [rabbit_delay_text:rs(XName)]), Req,
           Context).

-spec refuse(400..599, atom(), Why :: binary(), cowboy_req:req(), #context{}) ->
          {stop, cowboy_req:req(), #context{}}.
refuse(Status, Error, Why, Req, Context) ->
    reply(Status, #{error => Error, reason => Why}, Req, Context).

-spec reply(200..599, term(), cowboy_req:req(), #context{}) ->
          {stop, cowboy_req:req(), #context{}}.
reply(Status, Term, Req, Context) ->
    {stop, cowboy_req:reply(Status, #{<<"content-type">> => <<"application/json">>},
                            rabbit_json:encode(Term), Req), Context}.
