%% SPDX-License-Identifier: MPL-2.0

%% The pending messages of one delayed exchange, for operators: listed in due order, shown, cancelled,
%% released early, rescheduled, held back. The command-line tool and the HTTP API are made of this.
%%
%% Reading goes to the store, page by page, beside the writer: it keeps nobody waiting, and takes as
%% much memory as a page. A page ends early when it becomes large or takes long; its cursor says where
%% to go on.
%%
%% Changes go through the exchange's dispatcher and Raft. Of a change and the release of the same
%% message exactly one happens: a message that was handed to its queues is `in_flight' and left alone
%% until they have confirmed it (then it is gone) or all of them have rejected it (then it waits for
%% the next attempt, and can be changed). One that only some of its queues have taken stays in flight.
%%
%% A change of many covers what was there when it began, each message once; what is published
%% meanwhile is left alone.
%%
%% A cursor is opaque: hexadecimal text, of the exchange and the kind of request that it came from.
-module(rabbit_delay_pending).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([list/3, show/3, change_ids/4, change_matching/4, pause/2, resume/2]).

-export_type([error/0, operation/0, item/0, outcome/0, summary/0]).

-type error() :: {error, {not_found | bad_request | unavailable, Why :: binary()}}.

-type operation() :: cancel
                   | release
                   | {reschedule_to, rabbit_delay_store:ms()}
                   | {reschedule_by, Ms :: integer()}.

%% Ready for JSON: binaries that are not UTF-8 are #{base64 => Text}, a payload that is not is
%% encoded as payload_encoding says.
%%   id, due (ms since the epoch), size (bytes as stored); cursor, where it is asked for;
%%   with content: key (absent if it has none), exchange, routing_key, routing_keys, properties,
%%   headers, payload_bytes;
%%   with the body: payload, payload_encoding (string, base64), truncated if it is;
%%   damaged (file, offset) where the record cannot be read.
-type item() :: #{atom() => term()}.

-type outcome() :: done | in_flight | not_found.

%% examined: messages looked at; matched: of these, those meant; changed; in_flight: not changed for
%% that reason. The others of those matched were gone. cursor: go on with it, `none' if it is done.
-type summary() :: #{examined | matched | changed | in_flight := non_neg_integer(),
                     cursor := binary() | none}.

-type list_options() :: #{cursor => binary(), limit := 1..65535,
                          %% each item has a cursor, behind it
                          cursors => boolean(),
                          content => boolean(),
                          %% how much of each body, bytes
                          body => non_neg_integer()}.

%% A page of items ends at about so many bytes of them, and any request goes on later after so long.
-define(PAGE_BYTES, 8388608).
%% What a request that reads messages takes of rabbit_delay_budget: a page as it is and as it is sent,
%% and the record that is being read.
-define(READING_BYTES, 33554432).
-define(PAGE_MS, 5000).

%% What is read from the store at a time, where most of it is passed over: finding a page means a walk
%% over all that is pending, so of much, much at a time.
-define(MIN_BATCH, 512).
-define(MAX_BATCH, 16384).

%% Messages that are read from the store in one go, and their bytes.
-define(AHEAD, 256).
-define(AHEAD_BYTES, 1048576).

%% Messages of one key that are looked up by it: with more of them, all that is pending is walked over.
-define(OF_ONE_KEY, 8192).

%% Messages of one Raft entry. Rescheduling reads and writes each; meanwhile others wait.
-define(CANCEL_AT_ONCE, 2048).
-define(RESCHEDULE_AT_ONCE, 128).
-define(IDS_AT_ONCE, 256).

-define(READY_MS, 15000).
-define(ANSWER_MS, 60000).

%% --------------------------------------------------------------------------------- reading

%% The pending messages that Filter means, in due order. The page may be short, or empty, and yet have
%% a cursor: `none' says that there are no more.
-spec list(rabbit_exchange:name(), rabbit_delay_filter:filter(), list_options()) ->
          {ok, [item()], Cursor :: binary() | none} | error().
list(XName, Filter, #{limit := Limit} = Options) ->
    with_store(
      XName,
      fun (none, _) ->
              {ok, [], none};
          (Store, _) ->
              {From, _} = rabbit_delay_filter:due_range(Filter),
              case position(list, XName, Options, before(From)) of
                  {ok, Position, _} ->
                      Scan = #{store => Store, filter => Filter, options => Options,
                               of_key => of_key(Store, XName, Filter),
                               exchange => XName, deadline => deadline(),
                               read => reads(Filter, Options), ahead => #{},
                               batch => case rabbit_delay_filter:needs_content(Filter) of
                                            true -> max(Limit, batch(Store));
                                            false -> Limit
                                        end},
                      reading(Scan, fun () -> collect(Position, Limit, ?PAGE_BYTES, [], Scan) end);
                  Error ->
                      Error
              end
      end).

%% Records are read whole, as their checksums cover all of it; what is shown is copied out of them, so
%% that no more than one is held.
reading(#{read := true}, Fun) -> rabbit_delay_budget:with(bytes, ?READING_BYTES, Fun);
reading(#{read := false}, Fun) -> Fun().

reads(Filter, Options) ->
    rabbit_delay_filter:needs_content(Filter) orelse maps:get(content, Options, false)
        orelse is_map_key(body, Options).

collect(Position, Want, Bytes, Acc, #{batch := Batch} = Scan) ->
    case places(Position, forward, Scan) of
        {ok, Records} ->
            case collect_page(Records, Position, Want, Bytes, Acc, Scan) of
                {more, Next, Left, LeftBytes, Items} when length(Records) =:= Batch ->
                    collect(Next, Left, LeftBytes, Items, Scan);
                {more, _, _, _, Items} ->
                    {ok, lists:reverse(Items), none};
                {full, Next, Items} ->
                    {ok, lists:reverse(Items), cursor(list, Next, {0, 0}, Scan)};
                {done, Items} ->
                    {ok, lists:reverse(Items), none};
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            unavailable(Error)
    end.

%% Of the messages that a filter can mean, the next after or before a position.
places(Position, Direction, #{store := Store, of_key := all, batch := Batch}) ->
    rabbit_delay_store:places(Store, Position, Direction, Batch);
places(Position, forward, #{of_key := Records, batch := Batch}) ->
    {ok, lists:sublist([Record || {Due, Id, _} = Record <- Records, {Due, Id} > Position], Batch)};
places(Position, backward, #{of_key := Records, batch := Batch}) ->
    {ok, lists:sublist([Record || {Due, Id, _} = Record <- lists:reverse(Records),
                                  {Due, Id} < Position], Batch)}.

%% Those with the key that the filter wants, in due order, or `all' if they are many or it wants none.
of_key(Store, XName, Filter) ->
    case rabbit_delay_filter:key(Filter) of
        none ->
            all;
        Key ->
            Hash = rabbit_delay_key:hash(rabbit_delay_raft:key_salt(XName), Key),
            case rabbit_delay_store:find(Store, Hash, ?OF_ONE_KEY) of
                {ok, Ids, Total} when Total =< ?OF_ONE_KEY ->
                    lists:sort([{Due, Id, Size}
                                || Id <- Ids,
                                   {ok, #{due := Due, length := Size}}
                                       <- [rabbit_delay_store:read(Store, Id)]]);
                _ ->
                    all
            end
    end.

collect_page([], Position, Want, Bytes, Acc, _) ->
    {more, Position, Want, Bytes, Acc};
collect_page(_, Position, Want, Bytes, Acc, _) when Want =:= 0; Bytes =< 0 ->
    {full, Position, Acc};
collect_page([{Due, Id, _} = Record | Rest], Position, Want, Bytes, Acc,
             #{filter := Filter, options := Options, read := Read} = Scan0) ->
    {_, To} = rabbit_delay_filter:due_range(Filter),
    case Due =< To andalso not (Read andalso is_late(Scan0)) of
        true ->
            {Shown, Scan} = item(Record, Rest, Scan0),
            case Shown of
                {ok, Item0, Size} ->
                    Item = case Options of
                               #{cursors := true} ->
                                   Item0#{cursor => cursor(list, {Due, Id}, {0, 0}, Scan)};
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

item(Record, _, #{read := false} = Scan) ->
    {{ok, bare(Record), 100}, Scan};
item(Record, Rest, #{filter := Filter, options := Options} = Scan0) ->
    {Read, Scan} = read_ahead(Record, Rest, Scan0),
    {case Read of
         {ok, #{length := Size}, Message} ->
             case rabbit_delay_filter:matches(Filter, Message) of
                 true ->
                     #{payload_bytes := Body} = Described = described(Message, Options),
                     {ok, maps:merge(bare(Record), Described),
                      300 + max(0, Size - Body) + min(Body, maps:get(body, Options, 0))};
                 false ->
                     skip
             end;
         {damaged, Where} ->
             case rabbit_delay_filter:needs_content(Filter) of
                 true -> skip;
                 false -> {ok, (bare(Record))#{damaged => Where}, 300}
             end;
         gone ->
             skip;
         {error, _} = Error ->
             Error
     end, Scan}.

bare({Due, Id, Size}) ->
    #{id => integer_to_binary(Id), due => Due, size => Size}.

%% A record and its message, or what keeps it from being read.
read(Store, Id) ->
    case rabbit_delay_store:read(Store, Id) of
        {ok, Record} ->
            decoded(Record);
        {error, {corrupt, File, Offset}} ->
            {damaged, #{file => File, offset => Offset}};
        {error, enoent} ->
            gone;
        {error, eclosed} = Error ->
            unavailable(Error);
        {error, Reason} ->
            {damaged, #{reason => text("~0p", [Reason])}}
    end.

decoded(#{encoding := Encoding, body := Body} = Record) ->
    case rabbit_delay_broker:decode(Encoding, Body) of
        {ok, Message} -> {ok, Record, Message};
        {error, {unknown_encoding, What, Series}} ->
            {damaged, #{reason => text("a later version of the plugin or of RabbitMQ stored it "
                                       "(encoding ~b, series ~b)", [What, Series])}};
        {error, Reason} -> {damaged, #{reason => text("~0P", [Reason, 20])}}
    end.

%% The same, with those behind it read in one go: `ahead' has what was read, or `unread'.
read_ahead({_, Id, _} = Record, Rest, #{store := Store, ahead := Ahead} = Scan) ->
    case Ahead of
        #{Id := unread} ->
            {read(Store, Id), Scan};
        #{Id := Read} ->
            {decoded(Read), Scan};
        _ ->
            Ids = [I || {_, I, _} <- [Record | lists:sublist(Rest, ?AHEAD - 1)]],
            case rabbit_delay_store:read_many(Store, << <<I:64/little>> || I <- Ids >>,
                                              ?AHEAD_BYTES) of
                {ok, Reads, Seen} ->
                    Found = maps:from_list([{I, Read} || #{id := I} = Read <- Reads]),
                    Unread = maps:from_list([{I, unread} || I <- lists:sublist(Ids, Seen)]),
                    read_ahead(Record, Rest, Scan#{ahead := maps:merge(Unread, Found)});
                {error, _} = Error ->
                    {unavailable(Error), Scan}
            end
    end.

%% One message. Options: body, as in list/3.
-spec show(rabbit_exchange:name(), rabbit_delay_store:id(), #{body => non_neg_integer()}) ->
          {ok, item()} | error().
show(XName, Id, Options) ->
    with_store(
      XName,
      fun (none, _) ->
              no_message(Id);
          (Store, _) ->
              rabbit_delay_budget:with(bytes, ?READING_BYTES,
                                       fun () -> show_stored(Store, Id, Options) end)
      end).

show_stored(Store, Id, Options) ->
    case read(Store, Id) of
        {ok, #{due := Due, length := Size}, Message} ->
            {ok, maps:merge(bare({Due, Id, Size}), described(Message, Options))};
        {damaged, Where} ->
            {ok, #{id => integer_to_binary(Id), damaged => Where}};
        gone ->
            no_message(Id);
        {error, _} = Error ->
            Error
    end.

no_message(Id) ->
    {error, {not_found, text("no message with id ~b is pending there", [Id])}}.

described(Message, Options) ->
    #{exchange := Exchange, routing_keys := Keys, properties := Properties, headers := Headers,
      payload := Payload0} = rabbit_delay_broker:content(Message),
    Size = iolist_size(Payload0),
    Keyed = case rabbit_delay_key:of_message(rabbit_delay_broker:headers(Message),
                                             rabbit_delay_broker:message_id(Message)) of
                none -> #{};
                Key -> #{key => readable(Key)}
            end,
    Item = Keyed#{exchange => readable(Exchange),
                  routing_key => case Keys of [First | _] -> readable(First); [] -> <<>> end,
                  routing_keys => [readable(K) || K <- Keys],
                  properties => maps:from_list([{Name, readable(Value)}
                                                || {Name, Value} <- Properties]),
                  headers => table(Headers),
                  payload_bytes => Size},
    case Options of
        #{body := Most} ->
            Payload = binary:copy(binary:part(iolist_to_binary(Payload0), 0, min(Size, Most))),
            {Encoding, Text} = case readable(Payload) of
                                   #{base64 := Base64} -> {base64, Base64};
                                   _ -> {string, Payload}
                               end,
            Item#{payload => Text, payload_encoding => Encoding, truncated => Most < Size};
        _ ->
            Item
    end.

table(Headers) ->
    maps:from_list([{case readable(Name) of
                         #{base64 := Base64} -> <<"base64:", Base64/binary>>;
                         Text -> Text
                     end, value(Type, Value)} || {Name, Type, Value} <- Headers]).

value(table, Fields) -> table(Fields);
value(array, Values) -> [value(Type, Value) || {Type, Value} <- Values];
value(void, _) -> null;
value(decimal, {Scale, Number}) -> text("~be-~b", [Number, Scale]);
value(_, Value) when is_binary(Value) -> readable(Value);
value(_, Value) when is_number(Value); is_boolean(Value) -> Value;
value(_, Value) -> text("~0tp", [Value]).

readable(Binary) when is_binary(Binary) ->
    case unicode:characters_to_binary(Binary) of
        Binary -> binary:copy(Binary);
        _ -> #{base64 => base64:encode(Binary)}
    end;
readable(Value) ->
    Value.

%% -------------------------------------------------------------------------------- changing

%% Changes the messages with these ids, and says what became of each.
-spec change_ids(rabbit_exchange:name(), operation(), [rabbit_delay_store:id()],
                 By :: binary()) ->
          {ok, [{rabbit_delay_store:id(), outcome()}]} | error().
change_ids(XName, Operation, Ids0, By) ->
    Ids = lists:usort(Ids0),
    with_allowed(
      XName, Operation,
      fun (none, _) ->
              {ok, [{Id, not_found} || Id <- Ids]};
          (Store, Dispatcher) ->
              ok = asked(XName, Operation, text("messages ~w", [Ids]), By),
              Now = rabbit_delay_config:now_ms(),
              case change_each(Ids, Operation, Now, Store, Dispatcher, []) of
                  {ok, Outcomes} ->
                      log(XName, Operation, length([1 || {_, done} <- Outcomes]), By),
                      {ok, Outcomes};
                  Error ->
                      Error
              end
      end).

%% An entry for each, so that it is known what became of each; many under way at a time.
change_each([], _, _, _, _, Acc) ->
    {ok, lists:append(lists:reverse(Acc))};
change_each(Ids, Operation, Now, Store, Dispatcher, Acc) ->
    {Some, Rest} = lists:split(min(?IDS_AT_ONCE, length(Ids)), Ids),
    Requests = [{Id, request(Id, Operation, Now, Store, Dispatcher)} || Id <- Some],
    case outcomes(Requests, []) of
        {ok, Outcomes} -> change_each(Rest, Operation, Now, Store, Dispatcher, [Outcomes | Acc]);
        Error -> Error
    end.

request(Id, cancel, _, _, Dispatcher) ->
    rabbit_delay_dispatcher:change_async(Dispatcher, {cancel, [Id]});
request(Id, Operation, Now, Store, Dispatcher) ->
    case rabbit_delay_store:read(Store, Id) of
        {ok, #{due := Due}} ->
            rabbit_delay_dispatcher:change_async(
              Dispatcher, {reschedule, [{Id, new_due(Operation, Due, Now)}]});
        {error, _} ->
            not_found
    end.

%% All are awaited, whatever became of one.
outcomes([], Acc) ->
    {ok, lists:reverse(Acc)};
outcomes([{Id, not_found} | Rest], Acc) ->
    outcomes(Rest, [{Id, not_found} | Acc]);
outcomes([{Id, Request} | Rest], Acc) ->
    case gen_server:receive_response(Request, ?ANSWER_MS) of
        {reply, {ok, 1, []}} ->
            outcomes(Rest, [{Id, done} | Acc]);
        {reply, {ok, 0, [Id]}} ->
            outcomes(Rest, [{Id, in_flight} | Acc]);
        {reply, {ok, 0, []}} ->
            outcomes(Rest, [{Id, not_found} | Acc]);
        {reply, {error, _} = Error} ->
            _ = outcomes(Rest, []),
            failed(Error, length([1 || {_, done} <- Acc]));
        _ ->
            failed({error, interrupted}, length([1 || {_, done} <- Acc]))
    end.

%% Changes the messages that Filter means; with dry_run only counts them.
-spec change_matching(rabbit_exchange:name(), operation(), rabbit_delay_filter:filter(),
                      #{cursor => binary(), dry_run => boolean(), by := binary()}) ->
          {ok, summary()} | error().
change_matching(XName, Operation, Filter, #{by := By} = Options) ->
    None = #{examined => 0, matched => 0, changed => 0, in_flight => 0, cursor => none},
    with_allowed(
      XName, Operation,
      fun (none, _) ->
              {ok, None};
          (Store, Dispatcher) ->
              Begin = case is_backward(Operation) of
                          true -> {element(2, rabbit_delay_filter:due_range(Filter)), ?MAX_ID};
                          false -> before(element(1, rabbit_delay_filter:due_range(Filter)))
                      end,
              case position(Operation, XName, Options, Begin) of
                  {ok, Position, Bounds} ->
                      Walk = #{store => Store, dispatcher => Dispatcher, exchange => XName,
                               of_key => of_key(Store, XName, Filter),
                               operation => Operation, filter => Filter,
                               range => rabbit_delay_filter:due_range(Filter),
                               read => rabbit_delay_filter:needs_content(Filter),
                               dry_run => maps:get(dry_run, Options, false),
                               bounds => case Bounds of
                                             {0, 0} -> bounds(Store);
                                             _ -> Bounds
                                         end,
                               batch => batch(Store), deadline => deadline(), ahead => #{}},
                      _ = maps:get(dry_run, Walk)
                          orelse asked(XName, Operation, rabbit_delay_filter:text(Filter), By),
                      case reading(Walk, fun () -> walk(Position, None, Walk) end) of
                          {ok, #{changed := Changed}} = Result ->
                              log(XName, Operation, Changed, By),
                              Result;
                          Error ->
                              Error
                      end;
                  Error ->
                      Error
              end
      end).

%% Only ids below the first number are meant; the second is what `now' is.
bounds(Store) ->
    {(rabbit_delay_store:applied(Store) + 1) bsl 16, rabbit_delay_config:now_ms()}.

%% Messages that are given a later time are met from the last one on, so that none is met again.
is_backward({reschedule_by, Ms}) -> Ms > 0;
is_backward(_) -> false.

walk(Position, Sum, #{operation := Operation, batch := Batch} = Walk) ->
    Direction = case is_backward(Operation) of
                    true -> backward;
                    false -> forward
                end,
    case places(Position, Direction, Walk) of
        {ok, Records} ->
            case walk_page(Records, Position, [], 0, Sum, Walk) of
                {more, Next, Sum1} when length(Records) =:= Batch ->
                    case is_late(Walk) of
                        true -> {ok, Sum1#{cursor := cursor(Operation, Next,
                                                            maps:get(bounds, Walk), Walk)}};
                        false -> walk(Next, Sum1, Walk)
                    end;
                {more, _, Sum1} ->
                    {ok, Sum1};
                {full, Next, Sum1} ->
                    {ok, Sum1#{cursor := cursor(Operation, Next, maps:get(bounds, Walk), Walk)}};
                {done, Sum1} ->
                    {ok, Sum1};
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            unavailable(Error)
    end.

walk_page([], Position, Chosen, _, Sum, Walk) ->
    change_chosen(Chosen, more, Position, Sum, Walk);
walk_page(Records, Position, Chosen, Count, Sum, #{operation := Operation} = Walk)
  when Operation =:= cancel, Count =:= ?CANCEL_AT_ONCE;
       Operation =/= cancel, Count =:= ?RESCHEDULE_AT_ONCE ->
    case change_chosen(Chosen, more, Position, Sum, Walk) of
        {more, _, Sum1} ->
            case is_late(Walk) of
                true -> {full, Position, Sum1};
                false -> walk_page(Records, Position, [], 0, Sum1, Walk)
            end;
        Error ->
            Error
    end;
walk_page([{Due, Id, _} = Record | Rest], Position, Chosen, Count, Sum0,
          #{range := {From, To}, bounds := {Below, Now}, read := Read,
            operation := Operation} = Walk0) ->
    case is_backward(Operation) andalso Due < From orelse
         (not is_backward(Operation)) andalso Due > To of
        true ->
            change_chosen(Chosen, done, Position, Sum0, Walk0);
        false ->
            Sum = Sum0#{examined := maps:get(examined, Sum0) + 1},
            {IsMeant, Walk} =
                case Due >= From andalso Due =< To andalso Id < Below
                    andalso concerns(Operation, Due, Now) of
                    true -> passes(Record, Rest, Walk0);
                    false -> {false, Walk0}
                end,
            case IsMeant of
                true ->
                    walk_page(Rest, {Due, Id}, [Record | Chosen], Count + 1, Sum, Walk);
                false ->
                    case Read andalso is_late(Walk) of
                        true -> change_chosen(Chosen, full, {Due, Id}, Sum, Walk);
                        false -> walk_page(Rest, {Due, Id}, Chosen, Count, Sum, Walk)
                    end
            end
    end.

%% What is due at that time already is not moved there, be it by us.
concerns({reschedule_to, Time}, Due, _) -> Due =/= Time;
concerns(release, Due, Now) -> Due > Now;
concerns(_, _, _) -> true.

passes(_, _, #{read := false} = Walk) ->
    {true, Walk};
passes(Record, Rest, #{filter := Filter} = Walk0) ->
    {Read, Walk} = read_ahead(Record, Rest, Walk0),
    {case Read of
         {ok, _, Message} -> rabbit_delay_filter:matches(Filter, Message);
         _ -> false
     end, Walk}.

change_chosen([], Then, Position, Sum, _) ->
    then(Then, Position, Sum);
change_chosen(Chosen, Then, Position, #{matched := Matched} = Sum, #{dry_run := true}) ->
    then(Then, Position, Sum#{matched := Matched + length(Chosen)});
change_chosen(Chosen0, Then, Position,
              #{matched := Matched, changed := Changed, in_flight := InFlight} = Sum,
              #{dispatcher := Dispatcher, operation := Operation, bounds := {_, Now}}) ->
    %% In due order, which those that get the same time then keep.
    Chosen = case is_backward(Operation) of
                 true -> Chosen0;
                 false -> lists:reverse(Chosen0)
             end,
    Change = case Operation of
                 cancel -> {cancel, [Id || {_, Id, _} <- Chosen]};
                 _ -> {reschedule, [{Id, new_due(Operation, Due, Now)}
                                    || {Due, Id, _} <- Chosen]}
             end,
    case rabbit_delay_dispatcher:change(Dispatcher, Change) of
        {ok, N, NotNow} ->
            then(Then, Position, Sum#{matched := Matched + length(Chosen), changed := Changed + N,
                                      in_flight := InFlight + length(NotNow)});
        Error ->
            failed(Error, Changed)
    end.

then(more, Position, Sum) -> {more, Position, Sum};
then(full, Position, Sum) -> {full, Position, Sum};
then(done, _, Sum) -> {done, Sum}.

new_due(release, _, Now) -> Now;
new_due({reschedule_to, Time}, _, _) -> Time;
new_due({reschedule_by, Ms}, Due, _) -> min(max(Due + Ms, 0), ?MAX_MS).

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
what({reschedule_to, Time}) -> text("rescheduled to ~b", [Time]);
what({reschedule_by, Ms}) -> text("rescheduled by ~b ms", [Ms]).

%% Holds back what comes due, until resume/2. What is in flight is not affected. Survives a restart.
-spec pause(rabbit_exchange:name(), By :: binary()) -> ok | error().
pause(XName, By) -> switch(XName, pause, By).

-spec resume(rabbit_exchange:name(), By :: binary()) -> ok | error().
resume(XName, By) -> switch(XName, resume, By).

switch(XName, Change, By) ->
    with_exchange(
      XName,
      fun (_) ->
              ?LOG_NOTICE("delayed messages of ~ts: to be ~sd, asked for by ~ts",
                          [rabbit_delay_text:rs(XName), Change, By], ?LOG_DOMAIN),
              case rabbit_delay_registry:ensure(XName) of
                  {ok, _} ->
                      with_dispatcher(
                        XName,
                        fun (_, Dispatcher) ->
                                case rabbit_delay_dispatcher:change(Dispatcher, Change) of
                                    {ok, _, _} ->
                                        ?LOG_NOTICE("delayed messages of ~ts: ~sd by ~ts",
                                                    [rabbit_delay_text:rs(XName), Change, By],
                                                    ?LOG_DOMAIN),
                                        ok;
                                    Error ->
                                        failed(Error, 0)
                                end
                        end);
                  {error, Why} ->
                      {error, {unavailable, unicode:characters_to_binary(Why)}}
              end
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

%% --------------------------------------------------------------------------------- cursors

%% A position is {Due, Id}: what comes after it, or before it, is next. Bounds are a change's.
cursor(Kind, {Due, Id}, {Below, Now}, #{exchange := XName}) ->
    binary:encode_hex(<<1, (tag(Kind, XName)):32, Due:64, Id:64, Below:64, Now:64>>).

position(Kind, XName, #{cursor := Cursor}, _) ->
    Tag = tag(Kind, XName),
    try binary:decode_hex(Cursor) of
        <<1, Tag:32, Due:64, Id:64, Below:64, Now:64>> when Due =< ?MAX_MS ->
            {ok, {Due, Id}, {Below, Now}};
        _ ->
            {error, {bad_request, <<"the cursor is not from such a request on this exchange">>}}
    catch
        error:_ -> {error, {bad_request, <<"the cursor is malformed">>}}
    end;
position(_, _, _, Begin) ->
    {ok, Begin, {0, 0}}.

tag(Kind, #resource{virtual_host = VHost, name = Name}) ->
    erlang:phash2({Kind, VHost, Name}).

before(0) -> {0, 0};
before(Due) -> {Due - 1, ?MAX_ID}.

%% ----------------------------------------------------------------------------- the exchange

%% Fun(none, none): nothing was ever delayed.
with_store(XName, Fun) ->
    with_exchange(
      XName,
      fun (_) ->
              case rabbit_delay_registry:dispatcher(XName) of
                  undefined ->
                      case rabbit_delay_raft:find_member(XName) of
                          none -> Fun(none, none);
                          {ok, _} -> not_ready(XName)
                      end;
                  _ ->
                      with_dispatcher(XName, Fun)
              end
      end).

with_exchange(XName, Fun) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case rabbit_delay_broker:is_delayed(X) of
                true -> Fun(X);
                false -> {error, {not_found, text("~ts is not of type ~s",
                                                  [rabbit_delay_text:rs(XName), ?EXCHANGE_TYPE])}}
            end;
        {error, not_found} ->
            {error, {not_found, text("there is no ~ts", [rabbit_delay_text:rs(XName)])}}
    end.

with_dispatcher(XName, Fun) ->
    case rabbit_delay_registry:dispatcher(XName) of
        undefined ->
            not_ready(XName);
        Dispatcher ->
            case rabbit_delay_dispatcher:await_ready(Dispatcher, ?READY_MS) of
                ok ->
                    case rabbit_delay_registry:store(XName) of
                        undefined -> not_ready(XName);
                        Store -> Fun(Store, Dispatcher)
                    end;
                {error, not_ready} ->
                    not_ready(XName)
            end
    end.

not_ready(XName) ->
    {error, {unavailable, text("the delayed messages of ~ts are not available at present: see the "
                               "broker's log", [rabbit_delay_text:rs(XName)])}}.

unavailable({error, Reason}) ->
    {error, {unavailable, text("the store cannot be read: ~0p", [Reason])}}.

failed({error, not_ready}, Done) ->
    {error, {unavailable, text("the exchange has no Raft leader at present; ~b messages were "
                               "changed before", [Done])}};
failed({error, interrupted}, Done) ->
    {error, {unavailable, text("interrupted by a change of the Raft leader: ~b messages were "
                               "changed, and perhaps some more; list them to see", [Done])}}.

batch(Store) ->
    case rabbit_delay_store:stat(Store) of
        #{pending := Pending} -> min(max(Pending div 64, ?MIN_BATCH), ?MAX_BATCH);
        {error, _} -> ?MIN_BATCH
    end.

deadline() ->
    erlang:monotonic_time(millisecond) + ?PAGE_MS.

is_late(#{deadline := Deadline}) ->
    erlang:monotonic_time(millisecond) > Deadline.

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
