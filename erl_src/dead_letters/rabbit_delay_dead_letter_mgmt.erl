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
%% request's, and after ?REDRIVE_MS; those that go on are rabbit_delay_redrive_mgmt's,
%% and what is done with single messages is rabbit_delay_browse_mgmt's.
-module(rabbit_delay_dead_letter_mgmt).

-type resource() :: check | check_vhost | graph | stats | explanation | redrive.

-include("rabbit_delay_mgmt.hrl").

%% Messages that are moved in a request.
-define(LIMIT, 1000).
-define(MAX_LIMIT, 100000).
%% A request for longer would be given up by the client, or by the HTTP server.
-define(REDRIVE_MS, 20000).

-spec dispatcher() -> [{string(), module(), [atom()]}].
dispatcher() ->
    rabbit_delay_redrive_mgmt:paths() ++ rabbit_delay_browse_mgmt:paths() ++
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

accept_body(Req0, #context{user = User} = Context) ->
    case rabbit_delay_http:body(Req0) of
        {ok, Json, Req} ->
            VHost = rabbit_mgmt_util:vhost(Req),
            case rabbit_delay_redrive_request:options(Json, {?LIMIT, ?MAX_LIMIT}, [dry_run]) of
                {ok, Options} ->
                    Request = Options#{vhost => VHost, queue => rabbit_mgmt_util:id(queue, Req),
                                       time => ?REDRIVE_MS,
                                       may_publish => rabbit_delay_redrive_request:may_publish(User, VHost),
                                       by => rabbit_delay_redrive_request:by(User)},
                    rabbit_delay_http:answer(
                      rabbit_delay_redrive_request:wait(Request),
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
