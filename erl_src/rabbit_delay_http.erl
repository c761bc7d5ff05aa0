%% SPDX-License-Identifier: MPL-2.0

%% What the HTTP APIs of the plugin have in common: what of a request is taken, and how it is answered.
%% The callbacks of cowboy that are the same in all are in include/rabbit_delay_mgmt.hrl.
%%
%% What destroys must be spelled out: a parameter or member that is not known, or not of its type, is
%% refused wherever it stands. And it must be a program of the user's that asks, or a page of ours: a
%% page from elsewhere, in a browser that has the user's credentials, can send a POST of some types, or
%% of none, without asking the broker first. So a body is application/json, and what has neither
%% a body nor a type does not come from a browser, which would name its origin. A GET it can send as well; looking
%% into a queue has effects on that, and so is for nobody whose answer the browser would keep from the page.
%%
%% All of it runs in the process of the request; nothing is kept between two.
-module(rabbit_delay_http).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbitmq_management_agent/include/rabbit_mgmt_records.hrl").
-include("rabbit_delay.hrl").

-export([check_content/2, permitted/5, refuse_permission/5]).
-export([with_parameters/4, parameters/2, body/1, known/2, integer/5, boolean/2, json_boolean/2,
         all/2]).
-export([answer/4, encoded/3, with_json/3, reply/4, failed/3, bad_request/3, refuse/5]).

%% Parameters that are text.
-define(TEXTS, [<<"cursor">>, <<"due_from">>, <<"due_to">>, <<"key">>, <<"routing_key">>,
                <<"published_to">>, <<"header">>, <<"name">>, <<"sort">>, <<"columns">>]).

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

%% For forbidden/2: whether the user has a permission for the exchange or queue that the path names.
%% What begins the line in the log if not.
-spec permitted(What :: string(), read | configure, exchange | queue, cowboy_req:req(), #context{}) ->
          {boolean() | stop, cowboy_req:req(), #context{}}.
permitted(What, Permission, Kind, Req, #context{user = User} = Context) ->
    case Kind =:= queue andalso is_foreign(Req) orelse rabbit_mgmt_util:vhost(Req) of
        true ->
            refuse(403, forbidden, <<"a page from elsewhere may not look into a queue">>, Req, Context);
        not_found ->
            {false, Req, Context};
        VHost ->
            Resource = rabbit_misc:r(VHost, Kind, rabbit_mgmt_util:id(Kind, Req)),
            case rabbit_delay_broker:is_permitted(User, Resource, Permission) of
                true -> {false, Req, Context};
                false -> refuse_permission(What, Permission, Resource, Req, Context)
            end
    end.

%% Whether a page of another origin asks, to whom the broker's settings do not give the answer. What is no
%% browser says nothing of that, and neither does one of its user's own accord.
is_foreign(Req) ->
    HasOrigin = cowboy_req:header(<<"origin">>, Req) =/= undefined,
    Site = cowboy_req:header(<<"sec-fetch-site">>, Req),
    not cowboy_req:has_resp_header(<<"access-control-allow-origin">>, Req)
        andalso (HasOrigin andalso lists:member(cowboy_req:method(Req), [<<"GET">>, <<"HEAD">>])
                 orelse Site =:= <<"cross-site">> orelse Site =:= <<"same-site">>).

-spec refuse_permission(What :: string(), read | configure, rabbit_types:r(exchange | queue),
                        cowboy_req:req(), #context{}) -> {stop, cowboy_req:req(), #context{}}.
refuse_permission(What, Permission, Resource, Req, #context{user = User} = Context) ->
    Why = text("~ts permission for ~ts refused for user '~ts'",
               [Permission, rabbit_delay_text:rs(Resource),
                rabbit_delay_text:escaped(User#user.username)]),
    ?LOG_WARNING("~s: ~ts (~ts ~ts)",
                 [What, Why, cowboy_req:method(Req), rabbit_delay_text:escaped(cowboy_req:path(Req))],
                 ?LOG_DOMAIN),
    refuse(403, forbidden, Why, Req, Context).

%% ----------------------------------------------------------------------------- the request

%% Then is given the query's parameters, as parameters/2 has them.
-spec with_parameters([atom()], fun((#{atom() => binary()}) -> Answer), cowboy_req:req(), #context{}) ->
          Answer | {stop, cowboy_req:req(), #context{}}.
with_parameters(Known, Then, Req, Context) ->
    case parameters(Req, Known) of
        {ok, Words} -> Then(Words);
        {error, Why} -> refuse(400, bad_request, Why, Req, Context)
    end.

%% The query's parameters, all of which must be known. Of those that are text, empty ones count as
%% absent, but not in a DELETE: without the cursor it would begin anew.
-spec parameters(cowboy_req:req(), [atom()]) -> {ok, #{atom() => binary()}} | {error, binary()}.
parameters(Req, Known) ->
    try cowboy_req:parse_qs(Req) of
        Parameters ->
            case [Name || {Name, true} <- Parameters] of
                [] -> known([P || {Name, Value} = P <- Parameters,
                                  Value =/= <<>> orelse not lists:member(Name, ?TEXTS)
                                      orelse cowboy_req:method(Req) =:= <<"DELETE">>], Known);
                [Name | _] -> {error, text("~ts has no value", [rabbit_delay_text:value(Name)])}
            end
    catch
        _:_ -> {error, <<"the query string is malformed">>}
    end.

%% The request's body, a JSON object.
-spec body(cowboy_req:req()) -> {ok, map(), cowboy_req:req()} | {error, Why :: binary()}.
body(Req0) ->
    case rabbit_mgmt_util:read_complete_body(Req0) of
        {ok, Body, Req} ->
            case rabbit_delay_json:object(Body) of
                {ok, Json} -> {ok, Json, Req};
                {error, _} = Error -> Error
            end;
        _ ->
            {error, <<"the request's body is too large">>}
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
                                {error, text("unknown parameter ~ts", [rabbit_delay_text:value(Word)])}
                        end;
                    (_, Error) ->
                        Error
                end, {ok, #{}}, Given).

-spec integer(atom(), #{atom() => binary()}, integer(), integer(), integer()) ->
          {ok, integer()} | {error, binary()}.
integer(Name, Words, Default, Min, Max) ->
    Word = maps:get(Name, Words, integer_to_binary(Default)),
    case rabbit_delay_notation:number(Word) of
        {ok, N} when N >= Min, N =< Max -> {ok, N};
        _ -> {error, text("~s: not a number from ~b to ~b", [Name, Min, Max])}
    end.

-spec boolean(atom(), #{atom() => binary()}) -> {ok, boolean()} | {error, binary()}.
boolean(Name, Words) ->
    case maps:get(Name, Words, <<"false">>) of
        <<"true">> -> {ok, true};
        <<"false">> -> {ok, false};
        _ -> {error, text("~s: neither true nor false", [Name])}
    end.

%% Of a JSON object; false if it is not there.
-spec json_boolean(Name :: atom() | binary(), map()) -> {ok, boolean()} | {error, Why :: binary()}.
json_boolean(Name, Json) ->
    case maps:get(Name, Json, false) of
        Value when is_boolean(Value) -> {ok, Value};
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

%% Then has the answer to a result that is no error.
-spec answer({error, {atom(), Why :: binary()}} | Result, fun((Result) -> Answer), cowboy_req:req(),
             #context{}) -> Answer | {stop, cowboy_req:req(), #context{}}.
answer({error, Failure}, _, Req, Context) ->
    failed(Failure, Req, Context);
answer(Result, Then, _, _) ->
    Then(Result).

-spec encoded(term(), cowboy_req:req(), #context{}) -> {iodata(), cowboy_req:req(), #context{}}.
encoded(Term, Req, Context) ->
    with_json(rabbit_json:encode(Term), Req, Context).

%% The answer of to_json/2.
-spec with_json(iodata(), cowboy_req:req(), #context{}) ->
          {iodata(), cowboy_req:req(), #context{}}.
with_json(Json, Req, Context) ->
    {Json, cowboy_req:set_resp_header(<<"cache-control">>, <<"no-cache">>, Req), Context}.

-spec failed({bad_request | forbidden | not_found | conflict | busy | unavailable, Why :: binary()},
             cowboy_req:req(), #context{}) -> {stop, cowboy_req:req(), #context{}}.
failed({Kind, Why}, Req, Context) ->
    Status = case Kind of
                 bad_request -> 400;
                 forbidden -> 403;
                 not_found -> 404;
                 conflict -> 409;
                 busy -> 429;
                 unavailable -> 503
             end,
    refuse(Status, Kind, Why, Req, Context).

-spec bad_request(Why :: binary(), cowboy_req:req(), #context{}) ->
          {stop, cowboy_req:req(), #context{}}.
bad_request(Why, Req, Context) ->
    refuse(400, bad_request, Why, Req, Context).

-spec refuse(400..599, atom(), Why :: binary(), cowboy_req:req(), #context{}) ->
          {stop, cowboy_req:req(), #context{}}.
refuse(Status, Error, Why, Req, Context) ->
    reply(Status, #{error => Error, reason => Why}, Req, Context).

-spec reply(200..599, term(), cowboy_req:req(), #context{}) ->
          {stop, cowboy_req:req(), #context{}}.
reply(Status, Term, Req, Context) ->
    {stop, cowboy_req:reply(Status, #{<<"content-type">> => <<"application/json">>},
                            rabbit_json:encode(Term), Req), Context}.

text(Format, Args) ->
    rabbit_delay_text:printable(io_lib:format(Format, Args)).
