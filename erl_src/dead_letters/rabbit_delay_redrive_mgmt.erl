%% SPDX-License-Identifier: MPL-2.0

%% The HTTP API for redrives that go on when nobody waits for them: to begin one, to watch and to stop it.
%%
%% Who may what: to begin one, or to see those of a queue, takes `read' permission for the queue, as looking at
%% its messages does; what it may publish where, see rabbit_delay_redrive_request. Stopping one is for who began
%% it, and for administrators. The paths are of the extension rabbit_delay_dead_letter_mgmt.
-module(rabbit_delay_redrive_mgmt).

-export([paths/0]).

-type resource() :: everywhere | redrives | redrive | stop.

-define(RESOURCES_OF_ANOTHER, true).
-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay_mgmt.hrl").

%% Of messages, if the request says how many.
-define(MAX_LIMIT, 1000000000).

-spec paths() -> [{string(), module(), [resource()]}].
paths() ->
    [{Path, ?MODULE, [Resource]}
     || {Path, Resource} <- [{"/dead-letter-redrives", everywhere},
                             {"/dead-letters/:vhost/:queue/redrives", redrives},
                             {"/dead-letters/:vhost/:queue/redrives/:id", redrive},
                             {"/dead-letters/:vhost/:queue/redrives/:id/stop", stop}]].

-spec allowed_methods(cowboy_req:req(), #context{}) -> reply().
allowed_methods(Req, #context{impl = redrives} = Context) ->
    {[<<"HEAD">>, <<"GET">>, <<"POST">>, <<"OPTIONS">>], Req, Context};
allowed_methods(Req, #context{impl = stop} = Context) ->
    {[<<"POST">>, <<"OPTIONS">>], Req, Context};
allowed_methods(Req, Context) ->
    {[<<"HEAD">>, <<"GET">>, <<"OPTIONS">>], Req, Context}.

-spec is_authorized(cowboy_req:req(), #context{}) -> reply().
is_authorized(Req, #context{impl = everywhere} = Context) ->
    rabbit_mgmt_util:is_authorized(Req, Context);
is_authorized(Req, Context) ->
    rabbit_mgmt_util:is_authorized_vhost(Req, Context).

-spec forbidden(cowboy_req:req(), #context{}) -> {boolean() | stop, cowboy_req:req(), #context{}}.
forbidden(Req, #context{impl = everywhere} = Context) ->
    {false, Req, Context};
forbidden(Req, Context) ->
    case cowboy_req:method(Req) of
        <<"OPTIONS">> -> {false, Req, Context};
        _ -> rabbit_delay_http:permitted("dead letters", read, queue, Req, Context)
    end.

-spec to_json(cowboy_req:req(), #context{}) -> reply().
to_json(Req, Context) ->
    rabbit_delay_http:with_parameters([], fun (_) -> shown(Req, Context) end, Req, Context).

shown(Req, #context{impl = everywhere, user = User} = Context) ->
    VHosts = rabbit_mgmt_util:list_visible_vhosts_names(User),
    listed([Job || #{vhost := VHost, queue := Queue} = Job <- rabbit_delay_redrive_jobs:all(),
                   lists:member(VHost, VHosts),
                   rabbit_delay_broker:is_permitted(User, rabbit_misc:r(VHost, queue, Queue), read)],
           Req, Context);
shown(Req, #context{impl = redrives} = Context) ->
    listed(rabbit_delay_redrive_jobs:of_queue(rabbit_mgmt_util:vhost(Req),
                                              rabbit_mgmt_util:id(queue, Req)), Req, Context);
shown(Req, #context{impl = redrive} = Context) ->
    rabbit_delay_http:answer(
      found(Req), fun ({ok, Job}) ->
                          rabbit_delay_http:encoded(rabbit_delay_redrive_jobs:json(Job), Req, Context)
                  end, Req, Context).

listed(Jobs, Req, Context) ->
    rabbit_delay_http:encoded(#{version => 1,
                                redrives => [rabbit_delay_redrive_jobs:json(Job) || Job <- Jobs]},
                              Req, Context).

found(Req) ->
    rabbit_delay_redrive_jobs:find(rabbit_mgmt_util:vhost(Req), rabbit_mgmt_util:id(queue, Req),
                                   rabbit_mgmt_util:id(id, Req)).

-spec accept(cowboy_req:req(), #context{}) -> reply().
accept(Req, Context) ->
    rabbit_delay_http:with_parameters([], fun (_) -> accept_body(Req, Context) end, Req, Context).

accept_body(Req0, Context) ->
    case rabbit_delay_http:body(Req0) of
        {ok, Json, Req} -> asked(Json, Req, Context);
        {error, Why} -> rabbit_delay_http:bad_request(Why, Req0, Context)
    end.

asked(Json0, Req, #context{impl = redrives, user = #user{username = Username} = User} = Context) ->
    %% It is remembered for long. What the decoder gives are parts of the request's body, which would be as well.
    Json = binary_to_term(term_to_binary(Json0)),
    case rabbit_delay_redrive_request:options(Json, {infinity, ?MAX_LIMIT}, []) of
        {ok, Options0} ->
            VHost = rabbit_mgmt_util:vhost(Req),
            Options = Options0#{vhost => VHost, queue => rabbit_mgmt_util:id(queue, Req),
                                may_publish => rabbit_delay_redrive_request:may_publish(User, VHost),
                                by => rabbit_delay_redrive_request:by(User)},
            answer(rabbit_delay_redrive_jobs:start(Options, Username, Json), 202, Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end;
asked(Json, Req, #context{impl = stop} = Context) ->
    case {rabbit_delay_http:known(maps:to_list(Json), []), found(Req)} of
        {{error, Why}, _} -> rabbit_delay_http:bad_request(Why, Req, Context);
        {_, {ok, Job}} -> stop(Job, Req, Context);
        {_, {error, Failure}} -> rabbit_delay_http:failed(Failure, Req, Context)
    end.

stop(#{user := Username} = Job, Req, #context{user = #user{username = Username} = User} = Context) ->
    answer(rabbit_delay_redrive_jobs:stop(Job, rabbit_delay_redrive_request:by(User)), 200, Req, Context);
stop(#{id := Id} = Job, Req, #context{user = #user{tags = Tags} = User} = Context) ->
    By = rabbit_delay_redrive_request:by(User),
    case lists:member(administrator, Tags) of
        true ->
            answer(rabbit_delay_redrive_jobs:stop(Job, By), 200, Req, Context);
        false ->
            Why = rabbit_delay_text:printable(
                    io_lib:format("to stop redrive ~ts is for who began it and for administrators, "
                                  "not for ~ts", [Id, By])),
            ?LOG_WARNING("dead letters: ~ts", [Why], ?LOG_DOMAIN),
            rabbit_delay_http:refuse(403, forbidden, Why, Req, Context)
    end.

answer(Result, Status, Req, Context) ->
    rabbit_delay_http:answer(
      Result, fun ({ok, Job}) ->
                      rabbit_delay_http:reply(Status, rabbit_delay_redrive_jobs:json(Job), Req, Context)
              end, Req, Context).
