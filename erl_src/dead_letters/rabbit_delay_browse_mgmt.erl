%% SPDX-License-Identifier: MPL-2.0

%% The HTTP API for single messages of a queue: to look at them, page by page, and to redrive, to drop or to
%% send an edited copy of those that were looked at, by their ids (rabbit_delay_dead_letter).
%%
%% Who may what: to look and to drop takes `read' permission for the queue, as consuming from it and purging
%% it does; to redrive or to send also `write' where to, see rabbit_delay_redrive_request.
%%
%% It is an extension of the management plugin for its page. Its paths are among those of
%% rabbit_delay_dead_letter_mgmt, as some of that match them, too.
%%
%% It runs in the process of the request. What changes something has a process of its own, which ends with
%% the request's, and after ?CHANGE_MS.
-module(rabbit_delay_browse_mgmt).

-export([paths/0]).

-type resource() :: messages | redrive | drop | send.

-include("rabbit_delay_mgmt.hrl").

-define(COUNT, 20).
-define(MAX_COUNT, 100).
%% Of a message's body.
-define(BODY, 2000).
-define(MAX_BODY, 262144).
%% A page has no more than the message that passes this, as it is in memory.
-define(PAGE_BYTES, 4194304).
-define(CHANGE_MS, 20000).

-spec dispatcher() -> [].
dispatcher() -> [].

-spec web_ui() -> [{javascript, binary()}].
web_ui() -> [{javascript, <<"dead_letter_messages.js">>}].

-spec paths() -> [{string(), module(), [resource()]}].
paths() ->
    [{"/dead-letters/:vhost/:queue/messages" ++ Path, ?MODULE, [Resource]}
     || {Path, Resource} <- [{"", messages}, {"/redrive", redrive}, {"/drop", drop}, {"/send", send}]].

-spec allowed_methods(cowboy_req:req(), #context{}) -> reply().
allowed_methods(Req, #context{impl = messages} = Context) ->
    {[<<"HEAD">>, <<"GET">>, <<"OPTIONS">>], Req, Context};
allowed_methods(Req, Context) ->
    {[<<"POST">>, <<"OPTIONS">>], Req, Context}.

-spec is_authorized(cowboy_req:req(), #context{}) -> reply().
is_authorized(Req, Context) ->
    rabbit_mgmt_util:is_authorized_vhost(Req, Context).

-spec forbidden(cowboy_req:req(), #context{}) -> {boolean() | stop, cowboy_req:req(), #context{}}.
forbidden(Req, Context) ->
    case cowboy_req:method(Req) of
        <<"OPTIONS">> -> {false, Req, Context};
        _ -> rabbit_delay_http:permitted("dead letters", read, queue, Req, Context)
    end.

%% ------------------------------------------------------------------------------- to look

-spec to_json(cowboy_req:req(), #context{}) -> reply().
to_json(Req, Context) ->
    rabbit_delay_http:with_parameters([from, count, body_bytes], fun (Words) -> listed(Words, Req, Context) end,
                                      Req, Context).

listed(Words, Req, Context) ->
    VHost = rabbit_mgmt_util:vhost(Req),
    Queue = rabbit_mgmt_util:id(queue, Req),
    Most = rabbit_delay_browse:usual_max(VHost, Queue),
    Asked = rabbit_delay_http:all(
              [{from, rabbit_delay_http:integer(from, Words, 1, 1, Most)},
               {count, rabbit_delay_http:integer(count, Words, ?COUNT, 1, ?MAX_COUNT)},
               {body, rabbit_delay_http:integer(body_bytes, Words, ?BODY, 0, ?MAX_BODY)}],
              fun (Page) -> {ok, Page#{most => Most}} end),
    case Asked of
        {ok, Page} ->
            rabbit_delay_http:answer(
              rabbit_delay_budget:with(bytes, 2 * ?PAGE_BYTES, fun () -> page(VHost, Queue, Page) end),
              fun ({ok, Shown}) -> rabbit_delay_http:encoded(Shown, Req, Context) end, Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end.

page(VHost, Queue, #{from := From, count := Count, body := Body, most := Most}) ->
    Add = fun (Message, {Position, Bytes, Items}) ->
                  Item = (rabbit_delay_dead_letter:shown(Message, Body))#{position => Position},
                  Sum = Bytes + erlang:external_size(Item),
                  Acc = {Position + 1, Sum, [Item | Items]},
                  case Sum > ?PAGE_BYTES of
                      true -> {enough, Acc};
                      false -> Acc
                  end
          end,
    case rabbit_delay_browse:fold(VHost, Queue, {From - 1, min(Count, Most - From + 1)}, Add, {From, 0, []}) of
        {ok, {Next, Bytes, Items}, Truncated} ->
            IsLast = Next > Most orelse (Next - From < Count andalso Bytes =< ?PAGE_BYTES),
            {ok, #{version => 1, from => From, max => Most, truncated => Truncated,
                   next => case IsLast of true -> null; false -> Next end,
                   messages => lists:reverse(Items)}};
        {error, _} = Error ->
            Error
    end.

%% ----------------------------------------------------------------------------- to change

-spec accept(cowboy_req:req(), #context{}) -> reply().
accept(Req, Context) ->
    rabbit_delay_http:with_parameters([], fun (_) -> accept_body(Req, Context) end, Req, Context).

accept_body(Req0, #context{impl = Resource, user = User} = Context) ->
    case rabbit_delay_http:body(Req0) of
        {ok, Json, Req} ->
            case asked(Resource, Json, User) of
                {ok, Options} -> change(Options, Req, Context);
                {error, Why} -> rabbit_delay_http:bad_request(Why, Req, Context)
            end;
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req0, Context)
    end.

asked(redrive, Json, _) ->
    without_words(rabbit_delay_redrive_request:chosen(Json, [ids], targets));
asked(drop, Json, _) ->
    without_words(rabbit_delay_redrive_request:chosen(Json, [ids], nowhere));
asked(send, Json, #user{username = Username}) ->
    Members = [id, keep, payload, payload_encoding, properties, headers],
    case rabbit_delay_redrive_request:chosen(Json, Members, targets) of
        {ok, Options, Words} ->
            rabbit_delay_http:all(
              [{edit, rabbit_delay_dead_letter:edit(Words)}, {keep, rabbit_delay_http:json_boolean(keep, Words)}],
              fun (#{edit := Edit, keep := Keep}) ->
                      {ok, Options#{edit => {Edit, Username}, keep => Keep}}
              end);
        Error ->
            Error
    end.

without_words({ok, Options, _}) -> {ok, Options};
without_words(Error) -> Error.

change(Options, Req, #context{user = User} = Context) ->
    VHost = rabbit_mgmt_util:vhost(Req),
    Request = Options#{vhost => VHost, queue => rabbit_mgmt_util:id(queue, Req), time => ?CHANGE_MS,
                       may_publish => rabbit_delay_redrive_request:may_publish(User, VHost),
                       by => rabbit_delay_redrive_request:by(User)},
    rabbit_delay_http:answer(
      rabbit_delay_redrive_request:wait(Request),
      fun ({ok, Counts}) ->
              rabbit_delay_http:reply(200, rabbit_delay_redrive:json(Counts), Req, Context)
      end, Req, Context).
