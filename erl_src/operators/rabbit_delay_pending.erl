%% SPDX-License-Identifier: MPL-2.0

%% The pending messages of one delayed exchange, for operators: listed in due order, shown, cancelled,
%% released early, rescheduled, held back. The command-line tool and the HTTP API are made of this.
%%
%% All of it is done on the node that leads the exchange's group (rabbit_delay_leader), by the functions
%% called _here: in the process that asks, or for it. Reading goes to the store, page by page, beside the writer
%% (rabbit_delay_pending_scan): it keeps nobody waiting, and takes as much memory as a page. A page ends
%% early when it becomes large or takes long; its cursor says where to go on.
%%
%% Changes go through the exchange's dispatcher and Raft (rabbit_delay_pending_change). Of a change and
%% the release of the same message exactly one happens: a message that was handed to its queues is
%% `in_flight' and left alone until they have confirmed it (then it is gone) or all of them have
%% rejected it (then it waits for the next attempt, and can be changed). One that only some of its
%% queues have taken stays in flight.
%%
%% A change of many covers what was there when it began, each message once; what is published
%% meanwhile is left alone. To cancel all is a purge, one entry of the log, which takes what is in flight
%% off the exchange as well.
-module(rabbit_delay_pending).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([list/3, show/3, change_ids/4, change_matching/4, pause/2, resume/2, with_store/2]).
-export([list_here/3, show_here/3, change_ids_here/4, change_matching_here/4, switch_here/3]).

-export_type([error/0, operation/0, item/0, outcome/0, summary/0]).

-type error() :: {error, {not_found | bad_request | unavailable, Why :: binary()}}.

-type operation() :: rabbit_delay_pending_change:operation().
-type item() :: rabbit_delay_pending_item:item().
-type outcome() :: rabbit_delay_pending_change:outcome().
-type summary() :: rabbit_delay_pending_change:summary().

-type list_options() :: #{cursor => binary(), limit := 1..65535,
                          %% each item has a cursor, behind it
                          cursors => boolean(),
                          content => boolean(),
                          %% how much of each body, bytes
                          body => non_neg_integer()}.

%% A page of items ends at about so many bytes of them.
-define(PAGE_BYTES, 8388608).

-define(READY_MS, 15000).
-define(LOOK_MS, 100).

%% --------------------------------------------------------------------------------- reading

%% The pending messages that Filter means, in due order. The page may be short, or empty, and yet have
%% a cursor: `none' says that there are no more.
-spec list(rabbit_exchange:name(), rabbit_delay_filter:filter(), list_options()) ->
          {ok, [item()], Cursor :: binary() | none} | error().
list(XName, Filter, Options) ->
    rabbit_delay_leader:call(XName, read, ?MODULE, list_here, [XName, Filter, Options]).

-spec list_here(rabbit_exchange:name(), rabbit_delay_filter:filter(), list_options()) ->
          {ok, [item()], Cursor :: binary() | none} | error().
list_here(XName, Filter, #{limit := Limit} = Options) ->
    with_store(
      XName,
      fun (none, _) ->
              {ok, [], none};
          (Store, _) ->
              {From, _} = rabbit_delay_filter:due_range(Filter),
              case position(list, XName, Options, rabbit_delay_pending_cursor:before(From)) of
                  {ok, Position, _} ->
                      Read = reads(Filter, Options),
                      #{batch := Batch} = Scan0 =
                          rabbit_delay_pending_scan:new(Store, XName, Filter, Read),
                      Scan = Scan0#{exchange => XName, options => Options,
                                    batch := case rabbit_delay_filter:needs_content(Filter) of
                                                 true -> max(Limit, Batch);
                                                 false -> Limit
                                             end},
                      in_background(Read, fun () -> collect(Position, Limit, ?PAGE_BYTES, [], Scan) end);
                  Error ->
                      Error
              end
      end).

reads(Filter, Options) ->
    rabbit_delay_filter:needs_content(Filter) orelse maps:get(content, Options, false)
        orelse is_map_key(body, Options).

collect(Position, Want, Bytes, Acc, #{batch := Batch} = Scan) ->
    case rabbit_delay_pending_scan:places(Position, forward, Scan) of
        {ok, Records} ->
            case collect_page(Records, Position, Want, Bytes, Acc, Scan) of
                {more, Next, Left, LeftBytes, Items} when length(Records) =:= Batch ->
                    collect(Next, Left, LeftBytes, Items, Scan);
                {more, _, _, _, Items} ->
                    {ok, lists:reverse(Items), none};
                {full, Next, Items} ->
                    {ok, lists:reverse(Items), cursor(Next, Scan)};
                {done, Items} ->
                    {ok, lists:reverse(Items), none};
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            rabbit_delay_pending_scan:unavailable(Error)
    end.

collect_page([], Position, Want, Bytes, Acc, _) ->
    {more, Position, Want, Bytes, Acc};
collect_page(_, Position, Want, Bytes, Acc, _) when Want =:= 0; Bytes =< 0 ->
    {full, Position, Acc};
collect_page([{Due, Id, _} = Record | Rest], Position, Want, Bytes, Acc,
             #{filter := Filter, options := Options, read := Read} = Scan0) ->
    {_, To} = rabbit_delay_filter:due_range(Filter),
    case Due =< To andalso not (Read andalso rabbit_delay_pending_scan:is_late(Scan0)) of
        true ->
            {Shown, Scan} = item(Record, Rest, Scan0),
            case Shown of
                {ok, Item0, Size} ->
                    Item = case Options of
                               #{cursors := true} ->
                                   Item0#{cursor => cursor({Due, Id}, Scan)};
                               _ ->
                                   Item0
                           end,
                    collect_page(Rest, {Due, Id}, Want - 1, Bytes - Size, [Item | Acc], Scan);
                skip ->
                    collect_page(Rest, {Due, Id}, Want, Bytes, Acc, Scan);
                {error, _} = Error ->
                    Error
            end;
        false when Due > To ->
            {done, Acc};
        false ->
            {full, Position, Acc}
    end.

cursor(Position, #{exchange := XName}) ->
    rabbit_delay_pending_cursor:write(list, XName, Position, {0, 0}).

item(Record, _, #{read := false} = Scan) ->
    {{ok, rabbit_delay_pending_item:bare(Record), 100}, Scan};
item(Record, Rest, #{filter := Filter, options := Options} = Scan0) ->
    {Read, Scan} = rabbit_delay_pending_scan:read_ahead(Record, Rest, Scan0),
    Bare = rabbit_delay_pending_item:bare(Record),
    {case Read of
         {ok, #{length := Size}, Message} ->
             case rabbit_delay_filter:matches(Filter, Message) of
                 true ->
                     #{payload_bytes := Body} = Described =
                         rabbit_delay_pending_item:described(Message, Options),
                     {ok, maps:merge(Bare, Described),
                      300 + max(0, Size - Body) + min(Body, maps:get(body, Options, 0))};
                 false ->
                     skip
             end;
         {damaged, Where} ->
             case rabbit_delay_filter:needs_content(Filter) of
                 true -> skip;
                 false -> {ok, Bare#{damaged => Where}, 300}
             end;
         gone ->
             skip;
         {error, _} = Error ->
             Error
     end, Scan}.

%% One message. Options: body, as in list/3.
-spec show(rabbit_exchange:name(), rabbit_delay_store:id(), #{body => non_neg_integer()}) ->
          {ok, item()} | error().
show(XName, Id, Options) ->
    rabbit_delay_leader:call(XName, read, ?MODULE, show_here, [XName, Id, Options]).

-spec show_here(rabbit_exchange:name(), rabbit_delay_store:id(), #{body => non_neg_integer()}) ->
          {ok, item()} | error().
show_here(XName, Id, Options) ->
    with_store(
      XName,
      fun (none, _) ->
              no_message(Id);
          (Store, _) ->
              rabbit_delay_pending_scan:with_budget(
                true, fun () -> show_stored(Store, Id, Options) end)
      end).

show_stored(Store, Id, Options) ->
    case rabbit_delay_pending_scan:read(Store, Id) of
        {ok, #{due := Due, length := Size}, Message} ->
            {ok, maps:merge(rabbit_delay_pending_item:bare({Due, Id, Size}),
                            rabbit_delay_pending_item:described(Message, Options))};
        {damaged, Where} ->
            {ok, #{id => integer_to_binary(Id), damaged => Where}};
        gone ->
            no_message(Id);
        {error, _} = Error ->
            Error
    end.

no_message(Id) ->
    {error, {not_found, text("no message with id ~b is pending there", [Id])}}.

%% -------------------------------------------------------------------------------- changing

%% Changes the messages with these ids, and says what became of each.
-spec change_ids(rabbit_exchange:name(), operation(), [rabbit_delay_store:id()],
                 By :: binary()) ->
          {ok, [{rabbit_delay_store:id(), outcome()}]} | error().
change_ids(XName, Operation, Ids, By) ->
    rabbit_delay_leader:call(XName, change, ?MODULE, change_ids_here, [XName, Operation, Ids, By]).

-spec change_ids_here(rabbit_exchange:name(), operation(), [rabbit_delay_store:id()],
                      By :: binary()) ->
          {ok, [{rabbit_delay_store:id(), outcome()}]} | error().
change_ids_here(XName, Operation, Ids0, By) ->
    Ids = lists:usort(Ids0),
    with_allowed(
      XName, Operation,
      fun (none, _) ->
              {ok, [{Id, not_found} || Id <- Ids]};
          (Store, Dispatcher) ->
              ok = asked(XName, Operation, text("messages ~w", [Ids]), By),
              case rabbit_delay_pending_change:each(Ids, Operation, Store, Dispatcher) of
                  {ok, Outcomes} ->
                      log(XName, Operation, length([1 || {_, done} <- Outcomes]), By),
                      {ok, Outcomes};
                  Error ->
                      Error
              end
      end).

%% Changes the messages that Filter means; with dry_run only counts them.
-spec change_matching(rabbit_exchange:name(), operation(), rabbit_delay_filter:filter(),
                      #{cursor => binary(), dry_run => boolean(), by := binary()}) ->
          {ok, summary()} | error().
change_matching(XName, Operation, Filter, Options) ->
    rabbit_delay_leader:call(XName, change, ?MODULE, change_matching_here,
                             [XName, Operation, Filter, Options]).

-spec change_matching_here(rabbit_exchange:name(), operation(), rabbit_delay_filter:filter(),
                           #{cursor => binary(), dry_run => boolean(), by := binary()}) ->
          {ok, summary()} | error().
change_matching_here(XName, Operation, Filter, Options) ->
    with_allowed(
      XName, Operation,
      fun (none, _) ->
              {ok, none_changed()};
          (Store, Dispatcher) ->
              Purged = case is_purge(Operation, Filter, Options) of
                           true -> purge(XName, Filter, Options, Dispatcher);
                           false -> not_known
                       end,
              case Purged of
                  not_known -> walk(XName, Operation, Filter, Options, Store, Dispatcher);
                  _ -> Purged
              end
      end).

none_changed() ->
    #{examined => 0, matched => 0, changed => 0, in_flight => 0, cursor => none}.

is_purge(cancel, Filter, Options) ->
    rabbit_delay_filter:is_empty(Filter) andalso not is_map_key(cursor, Options)
        andalso not maps:get(dry_run, Options, false);
is_purge(_, _, _) ->
    false.

purge(XName, Filter, #{by := By}, Dispatcher) ->
    ok = asked(XName, cancel, rabbit_delay_filter:text(Filter), By),
    case rabbit_delay_pending_change:purge(Dispatcher) of
        {ok, #{changed := Changed}} = Result ->
            log(XName, cancel, Changed, By),
            Result;
        Other ->
            Other
    end.

walk(XName, Operation, Filter, #{by := By} = Options, Store, Dispatcher) ->
    Range = rabbit_delay_filter:due_range(Filter),
    Begin = rabbit_delay_pending_change:first(Operation, Range),
    case position(Operation, XName, Options, Begin) of
        {ok, Position, Bounds} ->
            Read = rabbit_delay_filter:needs_content(Filter),
            Scan = rabbit_delay_pending_scan:new(Store, XName, Filter, Read),
            Walk = Scan#{dispatcher => Dispatcher, exchange => XName,
                         operation => Operation, range => Range,
                         dry_run => maps:get(dry_run, Options, false),
                         bounds => case Bounds of
                                       {0, 0} -> rabbit_delay_pending_change:bounds(Store);
                                       _ -> Bounds
                                   end},
            _ = maps:get(dry_run, Walk)
                orelse asked(XName, Operation, rabbit_delay_filter:text(Filter), By),
            case in_background(
                   Read, fun () -> rabbit_delay_pending_change:walk(Position, none_changed(), Walk) end) of
                {ok, #{changed := Changed}} = Result ->
                    log(XName, Operation, Changed, By),
                    Result;
                Error ->
                    Error
            end;
        Error ->
            Error
    end.

%% Before it is done: whatever becomes of it, it is known who asked for what.
asked(XName, Operation, Which, By) ->
    ?LOG_INFO("delayed messages of ~ts: ~ts are to be ~ts, asked for by ~ts",
              [rabbit_delay_text:rs(XName), Which, what(Operation), By], ?LOG_DOMAIN).

log(_, _, 0, _) ->
    ok;
log(XName, Operation, Count, By) ->
    ?LOG_INFO("delayed messages of ~ts: ~b ~ts by ~ts",
              [rabbit_delay_text:rs(XName), Count, what(Operation), By], ?LOG_DOMAIN).

what(cancel) -> <<"cancelled">>;
what(release) -> <<"released before their time">>;
what({reschedule_to, Time}) -> text("rescheduled to ~s", [rabbit_delay_time:exact(Time)]);
what({reschedule_by, Ms}) -> text("rescheduled by ~b ms", [Ms]).

%% Holds back what comes due, until resume/2. What is in flight is not affected. Survives a restart.
-spec pause(rabbit_exchange:name(), By :: binary()) -> ok | error().
pause(XName, By) -> switch(XName, pause, By).

-spec resume(rabbit_exchange:name(), By :: binary()) -> ok | error().
resume(XName, By) -> switch(XName, resume, By).

switch(XName, Change, By) ->
    case begun(XName) of
        ok -> rabbit_delay_leader:call(XName, change, ?MODULE, switch_here, [XName, Change, By]);
        Error -> Error
    end.

%% In a cluster there is a leader only once there is a group.
begun(XName) ->
    case rabbit_delay_leader:has_begun(XName) orelse rabbit_delay_broker:cluster_nodes() of
        Begun when Begun =:= true; tl(Begun) =:= [] ->
            ok;
        _ ->
            Deadline = erlang:monotonic_time(millisecond) + ?READY_MS,
            with_exchange(XName, fun (_) -> await_group(XName, Deadline) end)
    end.

await_group(XName, Deadline) ->
    case {rabbit_delay_registry:ensure(XName), rabbit_delay_leader:has_begun(XName)} of
        {{ok, _}, true} ->
            ok;
        {{ok, _}, false} ->
            case erlang:monotonic_time(millisecond) < Deadline of
                true -> receive after ?LOOK_MS -> await_group(XName, Deadline) end;
                false -> not_ready(XName)
            end;
        {{error, Why}, _} ->
            {error, {unavailable, unicode:characters_to_binary(Why)}}
    end.

-spec switch_here(rabbit_exchange:name(), pause | resume, By :: binary()) -> ok | error().
switch_here(XName, Change, By) ->
    with_exchange(
      XName,
      fun (_) ->
              ?LOG_NOTICE("delayed messages of ~ts: to be ~sd, asked for by ~ts",
                          [rabbit_delay_text:rs(XName), Change, By], ?LOG_DOMAIN),
              with_started(
                XName,
                fun (_, Dispatcher) ->
                        case rabbit_delay_dispatcher:change(Dispatcher, Change) of
                            {ok, _, _} ->
                                ?LOG_NOTICE("delayed messages of ~ts: ~sd by ~ts",
                                            [rabbit_delay_text:rs(XName), Change, By],
                                            ?LOG_DOMAIN),
                                ok;
                            Error ->
                                rabbit_delay_pending_change:failed(Error, 0)
                        end
                end)
      end).

%% The longest delay that a publisher may ask for holds for operators too.
with_allowed(XName, Operation, Fun) ->
    with_exchange(
      XName,
      fun (X) ->
              Max = rabbit_delay_config:max_delay_ms(rabbit_delay_broker:exchange_arguments(X)),
              Delay = case Operation of
                          {reschedule_to, Time} -> Time - rabbit_delay_config:now_ms();
                          {reschedule_by, Ms} -> Ms;
                          _ -> 0
                      end,
              case Delay =< Max of
                  true ->
                      with_store(XName, Fun);
                  false ->
                      {error, {bad_request, text("that is more than the maximum delay of the "
                                                 "exchange, ~b ms", [Max])}}
              end
      end).

%% Where to begin, and a change's bounds.
position(Kind, XName, #{cursor := Cursor}, _) ->
    rabbit_delay_pending_cursor:read(Kind, XName, Cursor);
position(_, _, _, Begin) ->
    {ok, Begin, {0, 0}}.

%% A walk over what is pending.
in_background(Read, Walk) ->
    rabbit_delay_pending_scan:with_budget(Read, fun () -> rabbit_delay_background:run(Walk) end).

%% ----------------------------------------------------------------------------- the exchange

%% Fun(none, none): nothing was ever delayed. What is held but cannot be seen yet is not nothing: it is
%% waited for, for a bounded time, and then an error.
-spec with_store(rabbit_exchange:name(),
                 fun((rabbit_delay_store:store() | none, Dispatcher :: pid() | none) -> Result)) ->
          Result | error().
with_store(XName, Fun) ->
    with_exchange(
      XName,
      fun (_) ->
              case rabbit_delay_registry:dispatcher(XName) of
                  undefined ->
                      case rabbit_delay_raft:find_member(XName) of
                          none -> Fun(none, none);
                          {ok, _} -> with_started(XName, Fun)
                      end;
                  _ ->
                      with_dispatcher(XName, Fun)
              end
      end).

with_exchange(XName, Fun) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case rabbit_delay_broker:is_delayed(X) of
                true ->
                    case rabbit_delay_config:misplaced() of
                        ok -> Fun(X);
                        {error, Why} -> {error, {unavailable, Why}}
                    end;
                false -> {error, {not_found, text("~ts is not of type ~s",
                                                  [rabbit_delay_text:rs(XName), ?EXCHANGE_TYPE])}}
            end;
        {error, not_found} ->
            {error, {not_found, text("there is no ~ts", [rabbit_delay_text:rs(XName)])}}
    end.

with_started(XName, Fun) ->
    case rabbit_delay_registry:ensure(XName) of
        {ok, _} -> with_dispatcher(XName, Fun);
        {error, Why} -> {error, {unavailable, unicode:characters_to_binary(Why)}}
    end.

with_dispatcher(XName, Fun) ->
    case {rabbit_delay_registry:refusal(XName), rabbit_delay_registry:dispatcher(XName)} of
        {undefined, undefined} ->
            not_ready(XName);
        {undefined, Dispatcher} ->
            case rabbit_delay_dispatcher:await_ready(Dispatcher, ?READY_MS) of
                ok ->
                    case rabbit_delay_registry:store(XName) of
                        undefined -> not_ready(XName);
                        Store -> Fun(Store, Dispatcher)
                    end;
                {error, not_ready} ->
                    not_ready(XName)
            end;
        {Why, _} ->
            {error, {unavailable, text("the delayed messages of ~ts are not available: ~ts",
                                       [rabbit_delay_text:rs(XName), Why])}}
    end.

not_ready(XName) ->
    {error, {unavailable, text("the delayed messages of ~ts are not available at present: see the "
                               "broker's log", [rabbit_delay_text:rs(XName)])}}.

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
