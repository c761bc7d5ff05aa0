%% SPDX-License-Identifier: MPL-2.0

%% The HTTP API for dead-lettering: what check_dead_lettering, dead_letter_stats, explain_dead_letter
%% and redrive_dead_letters do, as an extension of the management plugin. priv/www/api describes it.
%%
%% Who may what: the check and the graph show policies, and so take what /api/policies takes, the tag
%% policymaker or administrator. Looking at a queue's messages takes access to the vhost and `read'
%% permission for the queue, as consuming from it does; redriving also `write' permission for each
%% exchange that is published to, which is amq.default where the target is a queue.
%%
%% It runs in the process of the request. A redrive has a process of its own, which ends with the
%% request's, and after ?REDRIVE_MS.
-module(rabbit_delay_dead_letter_mgmt).

-type resource() :: check | check_vhost | graph | stats | explanation | redrive.

-include("rabbit_delay_mgmt.hrl").

%% Messages that are moved in a request.
-define(LIMIT, 1000).
-define(MAX_LIMIT, 100000).
-define(MAX_RATE, 1000000).
-define(MAX_S, 16#ffffffff).
-define(MAX_TARGETS, 1000).
%% A request for longer would be given up by the client, or by the HTTP server.
-define(REDRIVE_MS, 20000).

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

-spec allowed_methods(cowboy_req:req(), #context{}) -> reply().
allowed_methods(Req, #context{impl = redrive} = Context) ->
    {[<<"POST">>, <<"OPTIONS">>], Req, Context};
allowed_methods(Req, Context) ->
    {[<<"HEAD">>, <<"GET">>, <<"OPTIONS">>], Req, Context}.

-spec is_authorized(cowboy_req:req(), #context{}) -> reply().
is_authorized(Req, #context{impl = Resource} = Context)
  when Resource =:= check; Resource =:= check_vhost; Resource =:= graph ->
    rabbit_mgmt_util:is_authorized_policies(Req, Context);
is_authorized(Req, Context) ->
    rabbit_mgmt_util:is_authorized_vhost(Req, Context).

-spec forbidden(cowboy_req:req(), #context{}) -> {boolean() | stop, cowboy_req:req(), #context{}}.
forbidden(Req, #context{impl = Resource} = Context)
  when Resource =:= stats; Resource =:= explanation; Resource =:= redrive ->
    case cowboy_req:method(Req) of
        <<"OPTIONS">> -> {false, Req, Context};
        _ -> rabbit_delay_http:permitted("dead letters", read, queue, Req, Context)
    end;
forbidden(Req, Context) ->
    {false, Req, Context}.

-spec to_json(cowboy_req:req(), #context{}) -> reply().
to_json(Req, #context{impl = Resource} = Context) when Resource =/= stats, Resource =/= explanation ->
    rabbit_delay_http:with_parameters([], fun (_) -> checked(Req, Context) end, Req, Context);
to_json(Req, #context{impl = stats} = Context) ->
    VHost = rabbit_mgmt_util:vhost(Req),
    Queue = rabbit_mgmt_util:id(queue, Req),
    case max_looked_at(VHost, Queue, Req) of
        {ok, Max} ->
            looked(rabbit_delay_dead_letter_stats:stats(VHost, Queue, Max),
                   fun (Rows, Truncated) ->
                           #{max => Max, truncated => Truncated,
                             groups => [maps:from_list([{Key, printable(Value)}
                                                        || {Key, Value} <- Row]) || Row <- Rows]}
                   end, Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end;
to_json(Req, #context{impl = explanation} = Context) ->
    VHost = rabbit_mgmt_util:vhost(Req),
    Queue = rabbit_mgmt_util:id(queue, Req),
    Position = rabbit_mgmt_util:id(position, Req),
    case {rabbit_delay_http:integer(position, #{position => Position}, 1, 1,
                                    rabbit_delay_browse:usual_max(VHost, Queue)),
          rabbit_delay_http:parameters(Req, [])} of
        {{ok, N}, {ok, _}} ->
            looked(rabbit_delay_dead_letter_stats:explain(VHost, Queue, N),
                   fun (Sentences, _) -> #{sentences => [printable(S) || S <- Sentences]} end,
                   Req, Context);
        {{error, Why}, _} ->
            rabbit_delay_http:bad_request(Why, Req, Context);
        {_, {error, Why}} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end.

checked(Req, #context{impl = check, user = User} = Context) ->
    found(rabbit_mgmt_util:list_visible_vhosts_names(User), Req, Context);
checked(Req, #context{impl = check_vhost} = Context) ->
    found([rabbit_mgmt_util:vhost(Req)], Req, Context);
checked(Req, #context{impl = graph} = Context) ->
    case rabbit_delay_doctor:live_graph(rabbit_mgmt_util:vhost(Req)) of
        {ok, Graph} ->
            rabbit_delay_http:with_json(rabbit_delay_doctor_report:graph_json(Graph), Req, Context);
        {error, _} -> gone(Req, Context)
    end.

found(VHosts, Req, Context) ->
    case rabbit_delay_doctor:live(VHosts) of
        {ok, Findings} ->
            rabbit_delay_http:with_json(rabbit_delay_doctor_report:json(Findings), Req, Context);
        {error, _} -> gone(Req, Context)
    end.

%% The vhost was deleted meanwhile.
gone(Req, Context) ->
    rabbit_delay_http:refuse(404, not_found, <<"there is no such vhost">>, Req, Context).

max_looked_at(VHost, Queue, Req) ->
    case rabbit_delay_http:parameters(Req, [max]) of
        {ok, Words} ->
            Most = rabbit_delay_browse:usual_max(VHost, Queue),
            rabbit_delay_http:integer(max, Words, Most, 1, Most);
        Error ->
            Error
    end.

looked(Looked, Shown, Req, Context) ->
    rabbit_delay_http:answer(
      Looked, fun ({ok, Result, Truncated}) ->
                      rabbit_delay_http:encoded(Shown(Result, Truncated), Req, Context)
              end, Req, Context).

printable(Text) when is_binary(Text) -> rabbit_delay_text:printable(Text);
printable(Number) -> Number.

%% ----------------------------------------------------------------------------------- redrive

-spec accept(cowboy_req:req(), #context{}) -> reply().
accept(Req, Context) ->
    rabbit_delay_http:with_parameters([], fun (_) -> accept_body(Req, Context) end, Req, Context).

accept_body(Req0, #context{user = #user{username = Username} = User} = Context) ->
    case rabbit_delay_http:body(Req0) of
        {ok, Json, Req} ->
            VHost = rabbit_mgmt_util:vhost(Req),
            case request(Json) of
                {ok, Options} ->
                    Request = Options#{vhost => VHost, queue => rabbit_mgmt_util:id(queue, Req),
                                       time => ?REDRIVE_MS, may_publish => may_publish(User, VHost),
                                       by => text("user '~ts' over HTTP",
                                                  [rabbit_delay_text:escaped(Username)])},
                    rabbit_delay_http:answer(
                      redrive(Request),
                      fun ({ok, Counts}) ->
                              rabbit_delay_http:reply(200, rabbit_delay_redrive:json(Counts), Req,
                                                      Context)
                      end, Req, Context);
                {error, Why} ->
                    rabbit_delay_http:bad_request(Why, Req, Context)
            end;
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req0, Context)
    end.

%% As the broker asks of a publisher.
may_publish(User, VHost) ->
    fun (<<>>, _) ->
            rabbit_delay_broker:is_permitted(User, rabbit_misc:r(VHost, exchange, <<"amq.default">>),
                                             write);
        (X, Key) ->
            Resource = rabbit_misc:r(VHost, exchange, X),
            rabbit_delay_broker:is_permitted(User, Resource, write)
                andalso rabbit_delay_topic_permissions:is_permitted(User, Resource, Key, write)
    end.

%% It ends with this process.
redrive(Request) ->
    Pid = rabbit_delay_redrive:start(Request, self()),
    Monitor = monitor(process, Pid),
    await(Pid, Monitor).

await(Pid, Monitor) ->
    receive
        {redrive, Pid, What, _} when What =/= done ->
            await(Pid, Monitor);
        {redrive, Pid, done, Result} ->
            true = demonitor(Monitor, [flush]),
            Result;
        {'DOWN', Monitor, process, _, Reason} ->
            {error, {unavailable, text("the redrive failed: ~0P", [Reason, 10])}}
    end.

request(Json) ->
    Members = [to_queue, to_exchange, routing_key, to_original_exchange, reason, origin, header,
               older_than, newer_than, limit, rate, dry_run, keep_x_death, targets],
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
               {limit, number(limit, ?LIMIT, ?MAX_LIMIT, Words)},
               {rate, number(rate, infinity, ?MAX_RATE, Words)},
               {dry_run, rabbit_delay_http:json_boolean(dry_run, Words)},
               {keep_x_death, rabbit_delay_http:json_boolean(keep_x_death, Words)}],
              fun (Options) -> {ok, maps:filter(fun (_, Value) -> Value =/= none end, Options)} end);
        Error ->
            Error
    end.

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
