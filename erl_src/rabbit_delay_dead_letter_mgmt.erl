%% SPDX-License-Identifier: MPL-2.0

%% The HTTP API for dead-lettering: what check_dead_lettering, dead_letter_stats, explain_dead_letter
%% and redrive_dead_letters do, as an extension of the management plugin. priv/openapi.json describes
%% it.
%%
%% Who may what: the check and the graph show policies, and so take what /api/policies takes, the tag
%% policymaker or administrator. Looking at a queue's messages takes access to the vhost and `read'
%% permission for the queue, as consuming from it does; redriving also `write' permission for each
%% exchange that is published to, which is amq.default where the target is a queue.
-module(rabbit_delay_dead_letter_mgmt).

-behaviour(rabbit_mgmt_extension).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbitmq_management_agent/include/rabbit_mgmt_records.hrl").
-include("rabbit_delay.hrl").

-export([dispatcher/0, web_ui/0]).
-export([init/2, variances/2, allowed_methods/2, content_types_provided/2,
         content_types_accepted/2, is_authorized/2, forbidden/2, resource_exists/2, to_json/2,
         accept/2]).

%% Messages that are looked at, and moved, in a request.
-define(MAX_STATS, 1000000).
-define(LIMIT, 1000).
-define(MAX_LIMIT, 100000).
-define(MAX_RATE, 1000000).
-define(MAX_S, 16#ffffffff).
%% A request for longer would be given up by the client, or by the HTTP server.
-define(REDRIVE_MS, 20000).

-type resource() :: check | check_vhost | graph | stats | explanation | redrive.
-type reply() :: {term(), cowboy_req:req(), #context{}}.

-spec dispatcher() -> [{string(), module(), [resource()]}].
dispatcher() ->
    [{Path, ?MODULE, [Resource]}
     || {Path, Resource} <- [{"/dead-lettering", check},
                             {"/dead-lettering/:vhost", check_vhost},
                             {"/dead-lettering/:vhost/graph", graph},
                             {"/dead-letters/:vhost/:queue", stats},
                             {"/dead-letters/:vhost/:queue/redrive", redrive},
                             {"/dead-letters/:vhost/:queue/:position", explanation}]].

-spec web_ui() -> [{javascript, binary()}].
web_ui() -> [{javascript, <<"dead_letters.js">>}].

-spec init(cowboy_req:req(), [resource()]) -> {cowboy_rest, cowboy_req:req(), #context{}}.
init(Req, [Resource]) ->
    {cowboy_rest, rabbit_mgmt_headers:set_common_permission_headers(Req, ?MODULE),
     #context{impl = Resource}}.

-spec variances(cowboy_req:req(), #context{}) -> reply().
variances(Req, Context) ->
    {[<<"accept-encoding">>, <<"origin">>], Req, Context}.

-spec allowed_methods(cowboy_req:req(), #context{}) -> reply().
allowed_methods(Req, #context{impl = redrive} = Context) ->
    {[<<"POST">>, <<"OPTIONS">>], Req, Context};
allowed_methods(Req, Context) ->
    {[<<"HEAD">>, <<"GET">>, <<"OPTIONS">>], Req, Context}.

-spec content_types_provided(cowboy_req:req(), #context{}) -> reply().
content_types_provided(Req, Context) ->
    {[{<<"application/json">>, to_json}], Req, Context}.

-spec content_types_accepted(cowboy_req:req(), #context{}) -> reply().
content_types_accepted(Req, Context) ->
    {[{'*', accept}], Req, Context}.

-spec is_authorized(cowboy_req:req(), #context{}) -> reply().
is_authorized(Req, #context{impl = Resource} = Context)
  when Resource =:= check; Resource =:= check_vhost; Resource =:= graph ->
    rabbit_mgmt_util:is_authorized_policies(Req, Context);
is_authorized(Req, Context) ->
    rabbit_mgmt_util:is_authorized_vhost(Req, Context).

-spec forbidden(cowboy_req:req(), #context{}) -> {boolean() | stop, cowboy_req:req(), #context{}}.
forbidden(Req, #context{impl = Resource, user = User} = Context)
  when Resource =:= stats; Resource =:= explanation; Resource =:= redrive ->
    case cowboy_req:method(Req) =:= <<"OPTIONS">> orelse rabbit_mgmt_util:vhost(Req) of
        true -> {false, Req, Context};
        not_found -> {false, Req, Context};
        VHost ->
            Queue = rabbit_misc:r(VHost, queue, rabbit_mgmt_util:id(queue, Req)),
            case may(User, Queue, read) of
                true -> {false, Req, Context};
                false -> refuse_access(User, Queue, read, Req, Context)
            end
    end;
forbidden(Req, Context) ->
    {false, Req, Context}.

may(User, Resource, Permission) ->
    try
        rabbit_access_control:check_resource_access(User, Resource, Permission, #{}) =:= ok
    catch
        exit:#amqp_error{} -> false
    end.

refuse_access(#user{username = Username}, Resource, Permission, Req, Context) ->
    Why = text("~ts permission for ~ts refused for user '~ts'",
               [Permission, rabbit_misc:rs(Resource), Username]),
    ?LOG_WARNING("dead letters: ~ts (~ts ~ts)",
                 [Why, cowboy_req:method(Req), cowboy_req:path(Req)], ?LOG_DOMAIN),
    rabbit_delay_mgmt:refuse(403, forbidden, Why, Req, Context).

-spec resource_exists(cowboy_req:req(), #context{}) -> reply().
resource_exists(Req, Context) ->
    {rabbit_mgmt_util:vhost(Req) =/= not_found, Req, Context}.

-spec to_json(cowboy_req:req(), #context{}) -> reply().
to_json(Req, #context{impl = check, user = User} = Context) ->
    found(rabbit_mgmt_util:list_visible_vhosts_names(User), Req, Context);
to_json(Req, #context{impl = check_vhost} = Context) ->
    found([rabbit_mgmt_util:vhost(Req)], Req, Context);
to_json(Req, #context{impl = graph} = Context) ->
    case rabbit_delay_doctor:live_graph(rabbit_mgmt_util:vhost(Req)) of
        {ok, Graph} -> encoded(rabbit_delay_doctor_report:graph_json(Graph), Req, Context);
        {error, _} -> gone(Req, Context)
    end;
to_json(Req, #context{impl = stats} = Context) ->
    VHost = rabbit_mgmt_util:vhost(Req),
    Queue = rabbit_mgmt_util:id(queue, Req),
    case rabbit_delay_mgmt:parameters(Req, [max]) of
        {ok, Words} ->
            case rabbit_delay_mgmt:integer(max, Words, rabbit_delay_browse:usual_max(VHost, Queue), 1,
                                           ?MAX_STATS) of
                {ok, Max} ->
                    looked(rabbit_delay_redrive:stats(VHost, Queue, Max),
                           fun (Rows) ->
                                   rabbit_json:encode(
                                     #{max => Max,
                                       groups => [maps:from_list([{K, readable(V)} || {K, V} <- Row])
                                                  || Row <- Rows]})
                           end, Req, Context);
                {error, Why} ->
                    bad_request(Why, Req, Context)
            end;
        {error, Why} ->
            bad_request(Why, Req, Context)
    end;
to_json(Req, #context{impl = explanation} = Context) ->
    case rabbit_delay_mgmt:integer(position, #{position => rabbit_mgmt_util:id(position, Req)}, 1, 1,
                                   ?MAX_STATS) of
        {ok, Position} ->
            looked(rabbit_delay_redrive:explain(rabbit_mgmt_util:vhost(Req),
                                                rabbit_mgmt_util:id(queue, Req), Position),
                   fun (Sentences) ->
                           rabbit_json:encode(#{sentences => [readable(S) || S <- Sentences]})
                   end, Req, Context);
        {error, Why} ->
            bad_request(Why, Req, Context)
    end.

found(VHosts, Req, Context) ->
    case rabbit_delay_doctor:live(VHosts) of
        {ok, Findings} -> encoded(rabbit_delay_doctor_report:json(Findings), Req, Context);
        {error, _} -> gone(Req, Context)
    end.

%% The vhost was deleted meanwhile.
gone(Req, Context) ->
    rabbit_delay_mgmt:refuse(404, not_found, <<"there is no such vhost">>, Req, Context).

looked({ok, Result}, Json, Req, Context) -> encoded(Json(Result), Req, Context);
looked({error, Why}, _, Req, Context) ->
    rabbit_delay_mgmt:refuse(404, not_found, Why, Req, Context).

encoded(Json, Req, Context) ->
    {Json, cowboy_req:set_resp_header(<<"cache-control">>, <<"no-cache">>, Req), Context}.

%% ----------------------------------------------------------------------------------- redrive

-spec accept(cowboy_req:req(), #context{}) -> reply().
accept(Req0, #context{user = User} = Context) ->
    case rabbit_delay_mgmt:body(Req0) of
        {ok, Json, Req} ->
            VHost = rabbit_mgmt_util:vhost(Req),
            Queue = rabbit_mgmt_util:id(queue, Req),
            case request(Json) of
                {ok, Options} ->
                    Request = Options#{vhost => VHost, queue => Queue, time => ?REDRIVE_MS,
                                       may_publish => may_publish(User, VHost)},
                    case redrive(Request) of
                        {ok, Counts} ->
                            #user{username = Username} = User,
                            ?LOG_INFO("dead letters of ~ts: ~b of ~b redriven by user '~ts' over HTTP",
                                      [rabbit_misc:rs(rabbit_misc:r(VHost, queue, Queue)),
                                       maps:get(redriven, Counts), maps:get(examined, Counts),
                                       Username], ?LOG_DOMAIN),
                            rabbit_delay_mgmt:reply(200, rabbit_delay_redrive:json(Counts), Req,
                                                    Context);
                        {error, Why} ->
                            bad_request(Why, Req, Context)
                    end;
                {error, Why} ->
                    bad_request(Why, Req, Context)
            end;
        {error, Why} ->
            bad_request(Why, Req0, Context)
    end.

may_publish(User, VHost) ->
    fun (<<>>) -> may(User, rabbit_misc:r(VHost, exchange, <<"amq.default">>), write);
        (X) -> may(User, rabbit_misc:r(VHost, exchange, X), write)
    end.

%% It ends with this process.
redrive(Request) ->
    Pid = rabbit_delay_redrive:start(Request, self()),
    Monitor = monitor(process, Pid),
    await(Pid, Monitor).

await(Pid, Monitor) ->
    receive
        {redrive, Pid, progress, _} ->
            await(Pid, Monitor);
        {redrive, Pid, done, Result} ->
            true = demonitor(Monitor, [flush]),
            Result;
        {'DOWN', Monitor, process, _, Reason} ->
            {error, text("the redrive failed: ~0P", [Reason, 10])}
    end.

request(Json) ->
    Members = [to_queue, to_exchange, routing_key, to_original_exchange, reason, origin, header,
               older_than, newer_than, limit, rate, dry_run, keep_x_death],
    Names = maps:from_list([{atom_to_binary(Name, utf8), Name} || Name <- Members]),
    case maps:keys(maps:without(maps:keys(Names), Json)) of
        [] ->
            Words = maps:from_list([{maps:get(Name, Names), Value}
                                    || {Name, Value} <- maps:to_list(Json), Value =/= null]),
            checked([fun to/1,
                     fun (W) -> optional(reason, fun is_text/1, W) end,
                     fun (W) -> optional(origin, fun is_text/1, W) end,
                     fun header/1,
                     fun (W) -> optional(older_than, number_up_to(?MAX_S), W) end,
                     fun (W) -> optional(newer_than, number_up_to(?MAX_S), W) end,
                     fun (W) -> number(limit, ?LIMIT, ?MAX_LIMIT, W) end,
                     fun (W) -> number(rate, infinity, ?MAX_RATE, W) end,
                     fun (W) -> flag(dry_run, W) end,
                     fun (W) -> flag(keep_x_death, W) end], Words, #{});
        [Unknown | _] ->
            {error, text("unknown member ~0tp", [Unknown])}
    end.

checked([], _, Options) ->
    {ok, Options};
checked([Check | Rest], Words, Options) ->
    case Check(Words) of
        {ok, More} -> checked(Rest, Words, maps:merge(Options, More));
        {error, _} = Error -> Error
    end.

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
            {ok, #{to => original_exchange}};
        #{to_original_exchange := _} ->
            {error, <<"to_original_exchange is true or absent">>};
        _ ->
            {ok, #{to => origin}}
    end.

target(Given, Target) ->
    case [Name || {Name, Value} <- Given, not is_text(Value)] of
        [] -> {ok, #{to => Target}};
        [Name | _] -> {error, text("~s is not a string of at most 255 bytes", [Name])}
    end.

is_text(Value) -> is_binary(Value) andalso byte_size(Value) =< 255.

number_up_to(Max) -> fun (N) -> is_integer(N) andalso N >= 0 andalso N =< Max end.

optional(Name, IsGood, Words) ->
    case Words of
        #{Name := Value} ->
            case IsGood(Value) of
                true -> {ok, #{Name => Value}};
                false -> {error, text("~s has no usable value", [Name])}
            end;
        _ ->
            {ok, #{}}
    end.

header(#{header := Word}) when is_binary(Word) ->
    case binary:split(Word, <<"=">>) of
        [Name, Value] when Name =/= <<>> -> {ok, #{header => {Name, Value}}};
        _ -> {error, <<"header is not of the form name=value">>}
    end;
header(#{header := _}) ->
    {error, <<"header is not of the form name=value">>};
header(_) ->
    {ok, #{}}.

number(Name, Default, Max, Words) ->
    case maps:get(Name, Words, Default) of
        Default -> {ok, #{Name => Default}};
        N when is_integer(N), N >= 1, N =< Max -> {ok, #{Name => N}};
        _ -> {error, text("~s is not a number from 1 to ~b", [Name, Max])}
    end.

flag(Name, Words) ->
    case maps:get(Name, Words, false) of
        Value when is_boolean(Value) -> {ok, #{Name => Value}};
        _ -> {error, text("~s is neither true nor false", [Name])}
    end.

%% ------------------------------------------------------------------------------------ answers

bad_request(Why, Req, Context) ->
    rabbit_delay_mgmt:refuse(400, bad_request, Why, Req, Context).

readable(Value) when is_binary(Value) ->
    case unicode:characters_to_binary(Value) of
        Value -> Value;
        _ -> unicode:characters_to_binary(Value, latin1)
    end;
readable(Value) ->
    Value.

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
