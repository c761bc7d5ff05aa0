%% SPDX-License-Identifier: MPL-2.0

%% The HTTP API for delayed messages, as an extension of the management plugin, which finds this module
%% by its behaviour and is needed by nothing else here. priv/www/api describes it.
%%
%% Who may what: as in the management plugin's own API, a user needs one of its tags and access to
%% the vhost, which is enough to see exchanges and how much they hold. Besides that, and whatever the
%% tags, seeing messages takes `read' permission for the exchange, which is what binding a queue to
%% it takes; changing, pausing and resuming take `configure', which is what deleting it takes. To
%% choose by what messages say, which tells what that is, takes `read' as well.
%%
%% It runs in the process of the request, and holds no more than an answer, whose memory is of
%% rabbit_delay_budget. rabbit_delay_http has what is common to the HTTP APIs, rabbit_delay_mgmt_request
%% what is asked, rabbit_delay_mgmt_page the list of exchanges.
-module(rabbit_delay_mgmt).

-type resource() :: exchanges | exchange | due_times | lateness | members | messages | message | pause
                  | resume | cancel | release | reschedule.

-export([delete_resource/2]).

-include("rabbit_delay_mgmt.hrl").

%% Of rabbit_delay_budget.
-define(READING_BYTES, 67108864).
-define(COLUMNS, [name, type, messages_delayed, bytes_delayed, next_due, overdue, in_flight,
                  unreadable, paused, leader, members, group_size]).

-spec dispatcher() -> [{string(), module(), [resource()]}].
dispatcher() ->
    [{"/delayed-exchanges" ++ Path, ?MODULE, [Resource]}
     || {Path, Resource} <-
            [{"", exchanges},
             {"/:vhost", exchanges},
             {"/:vhost/:exchange", exchange},
             {"/:vhost/:exchange/due-times", due_times},
             {"/:vhost/:exchange/lateness", lateness},
             {"/:vhost/:exchange/members", members},
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
                  members -> [<<"HEAD">>, <<"GET">>];
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
        Permission ->
            rabbit_delay_http:permitted("delayed messages", Permission, exchange, Req, Context)
    end.

permission(_, <<"OPTIONS">>) -> none;
permission(exchanges, _) -> none;
permission(exchange, _) -> none;
permission(due_times, _) -> none;
permission(lateness, _) -> none;
permission(members, _) -> none;
permission(_, <<"POST">>) -> configure;
permission(_, <<"DELETE">>) -> configure;
permission(_, _) -> read.

%% ------------------------------------------------------------------------------------- GET

-spec to_json(cowboy_req:req(), #context{}) -> reply().
to_json(Req, #context{impl = exchanges, user = User} = Context) ->
    case asked(rabbit_delay_mgmt_page:parameters(), fun rabbit_delay_mgmt_page:request/1, Req) of
        {ok, Request} ->
            VHosts = case rabbit_mgmt_util:vhost(Req) of
                         none -> rabbit_mgmt_util:list_visible_vhosts_names(User);
                         VHost -> [VHost]
                     end,
            Rows = rabbit_delay_exchange:list_in(VHosts, items(rates)),
            Page = rabbit_delay_mgmt_page:page([shown_exchange(Row) || Row <- Rows], Request),
            rabbit_delay_http:encoded(Page, Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end;
to_json(Req, #context{impl = exchange} = Context) ->
    XName = exchange(Req),
    rabbit_delay_http:with_parameters(
      [], fun (_) ->
                  case rabbit_delay_exchange:show(XName, items(samples)) of
                      {ok, Row} ->
                          rabbit_delay_http:encoded(shown_exchange(Row), Req, Context);
                      {error, not_found} -> refuse_unknown(XName, Req, Context)
                  end
          end, Req, Context);
to_json(Req, #context{impl = due_times} = Context) ->
    of_exchange(fun due_times/1, Req, Context);
to_json(Req, #context{impl = lateness} = Context) ->
    of_exchange(fun (XName) ->
                        {Buckets, Sum} = rabbit_delay_listing:lateness(XName),
                        #{buckets => buckets(Buckets), sum => Sum}
                end, Req, Context);
to_json(Req, #context{impl = members} = Context) ->
    case asked([digest], fun (Words) -> rabbit_delay_http:boolean(digest, Words) end, Req) of
        {ok, Compared} -> shown_of(fun (XName) -> members(XName, Compared) end, Req, Context);
        {error, Why} -> rabbit_delay_http:bad_request(Why, Req, Context)
    end;
to_json(Req, #context{impl = messages} = Context) ->
    case asked(rabbit_delay_mgmt_request:parameters(list), fun rabbit_delay_mgmt_request:list/1,
               Req) of
        {ok, Filter, Options} ->
            reading(fun () -> rabbit_delay_pending:list(exchange(Req), Filter, Options) end,
                    fun ({ok, Items, Cursor}) ->
                            rabbit_delay_http:encoded(#{items => Items, cursor => or_null(Cursor)},
                                                      Req, Context)
                    end, Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end;
to_json(Req, #context{impl = message} = Context) ->
    case asked(rabbit_delay_mgmt_request:parameters(message),
               fun (Words) ->
                       rabbit_delay_mgmt_request:message(rabbit_mgmt_util:id(id, Req), Words)
               end, Req) of
        {ok, Id, Options} ->
            reading(fun () -> rabbit_delay_pending:show(exchange(Req), Id, Options) end,
                    fun ({ok, Item}) -> rabbit_delay_http:encoded(Item, Req, Context) end,
                    Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end.

due_times(XName) ->
    case rabbit_delay_leader:call(XName, read, rabbit_delay_statistics, due_times, [XName]) of
        {error, _} = Error -> Error;
        Buckets -> #{buckets => buckets(Buckets)}
    end.

members(XName, Compared) ->
    Result = case Compared of
                 true -> rabbit_delay_replication:compared(XName);
                 false -> rabbit_delay_replication:status(XName)
             end,
    case Result of
        {ok, #{members := Members} = All} -> All#{members := shown_members(Members)};
        {ok, Members} -> #{members => shown_members(Members)};
        %% It has none, as it has delayed nothing.
        {error, {conflict, _}} -> #{members => []};
        {error, _} = Error -> Error
    end.

shown_members(Members) ->
    [maps:map(fun (_, Value) -> if_undefined(Value) end, Member) || Member <- Members].

%% As JSON it takes several times the memory: that counts as well.
reading(Read, Then, Req, Context) ->
    case rabbit_delay_budget:with(
           bytes, ?READING_BYTES,
           fun () -> rabbit_delay_http:answer(Read(), Then, Req, Context) end) of
        {error, _} = Busy -> rabbit_delay_http:answer(Busy, Then, Req, Context);
        Answer -> Answer
    end.

items(What) -> [vhost, {message_stats, What} | ?COLUMNS].

shown_exchange(Row) ->
    maps:fold(fun (Item, Value, Acc) when Item =:= vhost; Item =:= name; Item =:= type ->
                      Acc#{atom_to_binary(Item, utf8) => rabbit_delay_text:printable(Value)};
                  ({Item, _}, Value, Acc) ->
                      Acc#{atom_to_binary(Item, utf8) => Value};
                  (Item, Value, Acc) ->
                      Acc#{atom_to_binary(Item, utf8) => if_none(Value)}
              end, #{}, maps:from_list(Row)).

of_exchange(Fun, Req, Context) ->
    rabbit_delay_http:with_parameters([], fun (_) -> shown_of(Fun, Req, Context) end, Req, Context).

shown_of(Fun, Req, Context) ->
    XName = exchange(Req),
    case rabbit_delay_exchange:show(XName, []) of
        {ok, _} ->
            rabbit_delay_http:answer(Fun(XName), fun (Shown) -> rabbit_delay_http:encoded(Shown, Req, Context) end,
                                     Req, Context);
        {error, not_found} ->
            refuse_unknown(XName, Req, Context)
    end.

buckets(Buckets) ->
    [#{up_to => case UpTo of infinity -> null; _ -> UpTo end, messages => N}
     || {UpTo, N} <- Buckets].

if_none('') -> null;
if_none(Value) -> Value.

if_undefined(undefined) -> null;
if_undefined(Value) -> Value.

or_null(none) -> null;
or_null(Value) -> Value.

asked(Parameters, Read, Req) ->
    case rabbit_delay_http:parameters(Req, Parameters) of
        {ok, Words} -> Read(Words);
        Error -> Error
    end.

%% -------------------------------------------------------------------------- POST and DELETE

-spec accept(cowboy_req:req(), #context{}) -> reply().
accept(Req, Context) ->
    rabbit_delay_http:with_parameters([], fun (_) -> accept_body(Req, Context) end, Req, Context).

accept_body(Req0, #context{impl = Switch} = Context) when Switch =:= pause; Switch =:= resume ->
    case cowboy_req:has_body(Req0) andalso rabbit_delay_http:body(Req0) of
        Nothing when Nothing =:= false; element(2, Nothing) =:= #{} ->
            switched(rabbit_delay_pending:Switch(exchange(Req0), by(Context)), Req0, Context);
        {ok, _, Req} ->
            rabbit_delay_http:bad_request(<<"nothing is to be said of it">>, Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req0, Context)
    end;
accept_body(Req0, #context{impl = Resource, user = User} = Context) ->
    case rabbit_delay_http:body(Req0) of
        {ok, Json, Req} ->
            XName = exchange(Req),
            case rabbit_delay_mgmt_request:change(Resource, Json) of
                {ok, Operation, Which, Options} ->
                    case discloses(Which)
                        andalso not rabbit_delay_broker:is_permitted(User, XName, read) of
                        true ->
                            rabbit_delay_http:refuse_permission("delayed messages", read, XName, Req,
                                                                Context);
                        false ->
                            change(Operation, Which, Options, Req, Context)
                    end;
                {error, Why} ->
                    rabbit_delay_http:bad_request(Why, Req, Context)
            end;
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req0, Context)
    end.

%% How many match says what is in them.
discloses({filter, Filter}) -> rabbit_delay_filter:needs_content(Filter);
discloses({ids, _}) -> false.

switched(Result, Req, Context) ->
    rabbit_delay_http:answer(
      Result, fun (ok) -> {stop, cowboy_req:reply(204, Req), Context} end, Req, Context).

-spec delete_resource(cowboy_req:req(), #context{}) -> reply().
delete_resource(Req, #context{impl = messages} = Context) ->
    rabbit_delay_http:with_parameters(
      [cursor, dry_run],
      fun (Words) ->
              case rabbit_delay_http:boolean(dry_run, Words) of
                  {ok, DryRun} ->
                      {ok, All} = rabbit_delay_filter:parse(#{}, 0),
                      change(cancel, {filter, All},
                             (maps:with([cursor], Words))#{dry_run => DryRun}, Req, Context);
                  {error, Why} ->
                      rabbit_delay_http:bad_request(Why, Req, Context)
              end
      end, Req, Context);
delete_resource(Req, #context{impl = message} = Context) ->
    rabbit_delay_http:with_parameters([], fun (_) -> delete_message(Req, Context) end, Req, Context).

delete_message(Req, Context) ->
    case rabbit_delay_filter:id(rabbit_mgmt_util:id(id, Req)) of
        {ok, Id} ->
            Result = rabbit_delay_pending:change_ids(exchange(Req), cancel, [Id], by(Context)),
            rabbit_delay_http:answer(
              Result,
              fun ({ok, [{_, done}]}) ->
                      {stop, cowboy_req:reply(204, Req), Context};
                  ({ok, [{_, in_flight}]}) ->
                      rabbit_delay_http:refuse(409, conflict, <<"the message is in flight to its queues">>,
                                               Req, Context);
                  ({ok, [{_, not_found}]}) ->
                      Why = io_lib:format("no message with id ~b is pending there", [Id]),
                      rabbit_delay_http:refuse(404, not_found, rabbit_delay_text:printable(Why), Req,
                                               Context)
              end, Req, Context);
        {error, Why} ->
            rabbit_delay_http:bad_request(Why, Req, Context)
    end.

change(Operation, {ids, Ids}, _, Req, Context) ->
    rabbit_delay_http:answer(
      rabbit_delay_pending:change_ids(exchange(Req), Operation, Ids, by(Context)),
      fun ({ok, Outcomes}) ->
              Results = [#{id => integer_to_binary(Id), outcome => Outcome}
                         || {Id, Outcome} <- Outcomes],
              done(#{results => Results}, Req, Context)
      end, Req, Context);
change(Operation, {filter, Filter}, Options, Req, Context) ->
    rabbit_delay_http:answer(
      rabbit_delay_pending:change_matching(exchange(Req), Operation, Filter,
                                           Options#{by => by(Context)}),
      fun ({ok, #{cursor := Cursor} = Summary}) ->
              done(Summary#{cursor := or_null(Cursor)}, Req, Context)
      end, Req, Context).

by(#context{user = #user{username = Username}}) ->
    <<"user '", (rabbit_delay_text:escaped(Username))/binary, "' over HTTP">>.

%% ----------------------------------------------------------------------------- the request

exchange(Req) ->
    rabbit_misc:r(rabbit_mgmt_util:vhost(Req), exchange, rabbit_mgmt_util:id(exchange, Req)).

done(Term, Req, Context) ->
    rabbit_delay_http:reply(200, Term, Req, Context).

refuse_unknown(XName, Req, Context) ->
    Why = io_lib:format("there is no delayed ~ts", [rabbit_delay_text:rs(XName)]),
    rabbit_delay_http:refuse(404, not_found, rabbit_delay_text:printable(Why), Req, Context).
