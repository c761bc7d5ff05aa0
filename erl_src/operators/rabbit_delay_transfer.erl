%% SPDX-License-Identifier: MPL-2.0

%% Pending messages as lines of JSON, to take them to another broker and back.
%%
%% A line, format 1, is an object with
%%   format        1
%%   exchange      the delayed exchange that holds it
%%   due           ms since the epoch
%%   routing_keys  the first is the one that it was published with, others are those of CC and BCC
%%   properties    of AMQP 0-9-1, by name, without headers; what is not set is not there
%%   headers       [name, type, value] each, the types as rabbit_framing names them; a table is such a
%%                 list again, an array a list of [type, value]
%%   body          base64
%% and, where it was pending when it was exported,
%%   id            its id there, as text; where the export can be resumed
%%   vhost         that of the exchange. An import goes to the vhost that it is told, whatever this says
%% A line of format 2 is one of format 1 with
%%   retry         true: a dead letter that waits for its retry. Who passes that over would route it by the
%%                 exchange's bindings, of which there need be none
%% Names, keys and text that are not UTF-8 are {"base64": ...}, as are headers of type binary.
%%
%% It runs in the process that asks, in the broker, a page of lines at a time; what reads the store is done
%% where that is, on the node that leads the exchange's group (rabbit_delay_leader). To export changes
%% nothing. Of lines to be imported, none is published if one is malformed, and all are confirmed when
%% it answers `ok'.
-module(rabbit_delay_transfer).

-include_lib("amqp_client/include/amqp_client.hrl").
-include("rabbit_delay.hrl").

-export([places_here/3, export_here/3]).
-export([places/3, export/3, official_lines/3, import/3, marks/2, pending_marks/3, line/3,
         parse/1, position/3]).

-export_type([cursor/0]).

-define(FORMAT, 1).
-define(FORMAT_OF_RETRY, 2).
-define(PAGE_BYTES, 262144).
-define(PLACES, 65535).
-define(READ_AT_ONCE, 512).
-define(CONFIRM_SECONDS, 30).
-define(DELAY_HEADERS, [<<"x-delay">>, <<"x-opt-delivery-time">>, <<"x-opt-delivery-delay">>]).

-type cursor() :: {rabbit_delay_store:ms(), rabbit_delay_store:id()}.

%% Of a line.
-type message() :: #{exchange := binary(), due := rabbit_delay_store:ms(), keys := [binary(), ...],
                     properties := #'P_basic'{}, payload := binary(), retry := boolean()}.

%% ------------------------------------------------------------------------------------- export

%% The ids, <<Id:64/little, ...>>, of the next messages after a cursor, {0, 0} at first, in due order, and
%% where to go on. The store finds them by a walk over all that is pending, so they are as many as it
%% gives at once.
-spec places(rabbit_types:vhost(), Exchange :: binary(), cursor()) ->
          {ok, Ids :: binary(), cursor() | done} | rabbit_delay_pending:error().
places(VHost, Exchange, Cursor) ->
    at_leader(VHost, Exchange, places_here, [VHost, Exchange, Cursor]).

-spec places_here(rabbit_types:vhost(), Exchange :: binary(), cursor()) ->
          {ok, Ids :: binary(), cursor() | done} | rabbit_delay_pending:error().
places_here(VHost, Exchange, Cursor) ->
    with_store(VHost, Exchange,
               fun (none) ->
                       {ok, <<>>, done};
                   (Store) ->
                       case rabbit_delay_store:places(Store, Cursor, forward, ?PLACES) of
                           {ok, Places} ->
                               {ok, << <<Id:64/little>> || {_, Id, _} <- Places >>, next(Places)};
                           {error, Reason} ->
                               unreadable(Reason)
                       end
               end).

next(Places) when length(Places) < ?PLACES -> done;
next(Places) ->
    {Due, Id, _} = lists:last(Places),
    {Due, Id}.

%% The lines of the first Seen of these messages, as many as make a page, but of those that are gone; and
%% how many could not be read.
-spec export(rabbit_types:vhost(), Exchange :: binary(), Ids :: binary()) ->
          {ok, [binary()], Damaged :: non_neg_integer(), Seen :: pos_integer()}
          | rabbit_delay_pending:error().
export(VHost, Exchange, Ids) ->
    at_leader(VHost, Exchange, export_here, [VHost, Exchange, Ids]).

-spec export_here(rabbit_types:vhost(), Exchange :: binary(), Ids :: binary()) ->
          {ok, [binary()], Damaged :: non_neg_integer(), Seen :: pos_integer()}
          | rabbit_delay_pending:error().
export_here(VHost, Exchange, Ids) ->
    with_store(VHost, Exchange,
               fun (none) ->
                       {ok, [], 0, byte_size(Ids) div 8};
                   (Store) ->
                       Of = {iolist_to_binary(quoted(VHost)), iolist_to_binary(quoted(Exchange))},
                       lines(Ids, ?PAGE_BYTES, [], 0, 0, Of, Store)
               end).

at_leader(VHost, Exchange, Function, Args) ->
    rabbit_delay_leader:call(rabbit_misc:r(VHost, exchange, Exchange), read, ?MODULE, Function, Args).

with_store(VHost, Exchange, Fun) ->
    XName = rabbit_misc:r(VHost, exchange, Exchange),
    case is_delayed(XName) of
        false -> {error, {not_found, no_exchange(VHost, Exchange)}};
        true -> rabbit_delay_pending:with_store(
                  XName, fun (Store, _) -> rabbit_delay_background:run(fun () -> Fun(Store) end) end)
    end.

is_delayed(XName) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} -> rabbit_delay_broker:is_delayed(X);
        {error, not_found} -> false
    end.

no_exchange(VHost, Exchange) ->
    <<"there is no delayed exchange \"", Exchange/binary, "\" in vhost \"", VHost/binary, "\"">>.

unreadable(Reason) ->
    {error, {unavailable, iolist_to_binary(["the store cannot be read: ", rabbit_delay_text:reason(Reason)])}}.

%% Some at a time, as it is dear to collect the garbage of many.
lines(Ids, Bytes, Lines, Damaged, Seen, Of, Store) ->
    Some = binary:part(Ids, Seen * 8, min(byte_size(Ids) - Seen * 8, ?READ_AT_ONCE * 8)),
    case Some =/= <<>> andalso Bytes > 0 andalso rabbit_delay_store:read_many(Store, Some, Bytes) of
        false ->
            {ok, lists:reverse(Lines), Damaged, Seen};
        {ok, Records, N} ->
            case lines_of(binary:part(Some, 0, N * 8), Records, Lines, Damaged, Of, Store) of
                {error, Reason} ->
                    unreadable(Reason);
                {Lines1, Damaged1} ->
                    Read = lists:sum([Length || #{length := Length} <- Records]),
                    lines(Ids, Bytes - Read, Lines1, Damaged1, Seen + N, Of, Store)
            end;
        {error, Reason} ->
            unreadable(Reason)
    end.

%% Of what was not among those read in one go it is found out whether it is gone.
lines_of(<<Id:64/little, Ids/binary>>, [#{id := Id} = Record | Records], Lines, Damaged, Of, Store) ->
    case pending_line(Of, Id, Record) of
        damaged -> lines_of(Ids, Records, Lines, Damaged + 1, Of, Store);
        Line -> lines_of(Ids, Records, [Line | Lines], Damaged, Of, Store)
    end;
lines_of(<<Id:64/little, Rest/binary>> = Ids, Records, Lines, Damaged, Of, Store) ->
    case rabbit_delay_store:read(Store, Id) of
        {ok, Record} -> lines_of(Ids, [Record | Records], Lines, Damaged, Of, Store);
        {error, enoent} -> lines_of(Rest, Records, Lines, Damaged, Of, Store);
        {error, eclosed} = Error -> Error;
        {error, _} -> lines_of(Rest, Records, Lines, Damaged + 1, Of, Store)
    end;
lines_of(<<>>, [], Lines, Damaged, _, _) ->
    {Lines, Damaged}.

pending_line({VHost, Exchange}, Id, #{due := Due, encoding := Encoding, body := Body}) ->
    case rabbit_delay_broker:decode(Encoding, Body) of
        {ok, Message} ->
            line(Exchange, Due, rabbit_delay_broker:content(Message),
                 pending(VHost, Id, rabbit_delay_retry:is_marked(Encoding)));
        {error, _} ->
            damaged
    end.

%% Where an export of this exchange goes on behind this line, if it says so and is of it. Lines of earlier
%% versions do not say of which vhost they are.
-spec position(binary(), rabbit_types:vhost(), Exchange :: binary()) ->
          {ok, cursor()} | error | {error, other_exchange}.
position(Line, VHost, Exchange) ->
    Named = text(Exchange),
    OfVHost = text(VHost),
    case rabbit_json:try_decode(Line) of
        {ok, #{<<"vhost">> := Other}} when Other =/= OfVHost ->
            {error, other_exchange};
        {ok, #{<<"format">> := Format, <<"due">> := Due, <<"id">> := Word, <<"exchange">> := Named}}
          when Format =:= ?FORMAT orelse Format =:= ?FORMAT_OF_RETRY, is_integer(Due), is_binary(Word) ->
            case rabbit_delay_notation:number(Word) of
                {ok, Id} -> {ok, {Due, Id}};
                error -> error
            end;
        {ok, #{<<"exchange">> := Other}} when Other =/= Named ->
            {error, other_exchange};
        _ ->
            error
    end.

%% The lines of what the official plugin had in another node's data directory, for one exchange of a
%% vhost or for all; how many messages are of each other vhost; and how many could not be read.
-spec official_lines(rabbit_types:vhost(), Exchange :: binary() | all,
                     [rabbit_delay_official_tables:entry()]) ->
          {[binary()], #{rabbit_types:vhost() => pos_integer()}, Unreadable :: non_neg_integer()}.
official_lines(VHost, Exchange, Entries) ->
    {Lines, Others, Bad} =
        lists:foldl(fun (Entry, Acc) -> official_line(VHost, Exchange, Entry, Acc) end, {[], #{}, 0},
                    Entries),
    {lists:reverse(Lines), Others, Bad}.

official_line(VHost, Exchange, {delay_entry, {delay_key, Due, _} = Key, Delivery, _},
              {Lines, Others, Bad}) ->
    case rabbit_delay_official_tables:exchange_of(Key) of
        #resource{virtual_host = VHost, name = Name} when Exchange =:= all; Exchange =:= Name ->
            try
                {ok, Message} = rabbit_delay_broker:from_official(Delivery),
                {[line(Name, Due, rabbit_delay_broker:content(Message)) | Lines], Others, Bad}
            catch
                error:_ -> {Lines, Others, Bad + 1}
            end;
        #resource{virtual_host = VHost} ->
            {Lines, Others, Bad};
        #resource{virtual_host = Other} ->
            {Lines, maps:update_with(Other, fun (N) -> N + 1 end, 1, Others), Bad}
    end.

%% A message's line, without its end.
-spec line(Exchange :: binary(), rabbit_delay_store:ms(), rabbit_delay_broker:content()) -> binary().
line(Exchange, Due, Content) ->
    line(quoted(Exchange), Due, Content, []).

%% Written out, as a term for the broker's JSON to encode would take most of the time of an export.
line(Exchange, Due, #{routing_keys := Keys, properties := Properties, headers := Headers,
                      payload := Payload}, More) ->
    iolist_to_binary(
      [<<"{\"body\":\"">>, base64:encode(iolist_to_binary(Payload)),
       <<"\",\"due\":">>, integer_to_binary(Due), <<",\"exchange\":">>, Exchange,
       <<",\"headers\":">>, fields(Headers), <<",\"properties\":{">>,
       lists:join($,, [[$", atom_to_binary(Name, utf8), <<"\":">>, value(property, Value)]
                       || {Name, Value} <- Properties]),
       <<"},\"routing_keys\":">>, array([quoted(Key) || Key <- Keys]),
       case More of
           [] -> format(?FORMAT);
           _ -> More
       end, $}]).

%% What a line has of a message that is pending.
pending(VHost, Id, IsRetry) ->
    [<<",\"id\":\"">>, integer_to_binary(Id), <<"\",\"vhost\":">>, VHost,
     case IsRetry of
         true -> [<<",\"retry\":true">>, format(?FORMAT_OF_RETRY)];
         false -> format(?FORMAT)
     end].

format(Format) -> [<<",\"format\":">>, integer_to_binary(Format)].

array(Values) -> [$[, lists:join($,, Values), $]].

fields(Table) -> array([[$[, quoted(Name), $,, typed(Type, Value), $]] || {Name, Type, Value} <- Table]).

typed(Type, Value) -> [$", atom_to_binary(Type, utf8), <<"\",">>, value(Type, Value)].

value(table, Table) -> fields(Table);
value(array, Values) -> array([[$[, typed(Type, V), $]] || {Type, V} <- Values]);
value(decimal, {Scale, Number}) -> array([integer_to_binary(Scale), integer_to_binary(Number)]);
value(void, _) -> <<"null">>;
value(binary, Bytes) -> encoded(Bytes);
value(_, Text) when is_binary(Text) -> quoted(Text);
value(_, Number) when is_integer(Number) -> integer_to_binary(Number);
%% Text, as not every JSON library gives the same number back.
value(_, Number) when is_float(Number) -> [$", float_to_binary(Number), $"];
value(_, Word) when is_boolean(Word) -> atom_to_binary(Word, utf8).

quoted(Text) ->
    case is_plain(Text) of
        true ->
            [$", Text, $"];
        false ->
            case is_utf8(Text) of
                true -> rabbit_json:encode(Text);
                false -> encoded(Text)
            end
    end.

is_plain(<<C, Rest/binary>>) when C >= 32, C < 127, C =/= $", C =/= $\\ -> is_plain(Rest);
is_plain(Rest) -> Rest =:= <<>>.

is_utf8(Bytes) -> unicode:characters_to_binary(Bytes) =:= Bytes.

encoded(Bytes) -> [<<"{\"base64\":\"">>, base64:encode(Bytes), <<"\"}">>].

%% As who reads a line has it.
text(Bytes) ->
    case is_utf8(Bytes) of
        true -> Bytes;
        false -> #{<<"base64">> => base64:encode(Bytes)}
    end.

%% ------------------------------------------------------------------------------------- import

%% Publishes the messages of some lines and waits until all are confirmed. Nothing is published if one
%% of them is malformed: its number is told, from 1. Exchange: that of all, not what the lines say.
%% Unroutable are those of them that are due already, and no queue is bound for them.
-spec import(rabbit_types:vhost(), [binary()], Exchange :: binary() | undefined) ->
          {ok, Unroutable :: non_neg_integer()}
          | {error, {line, pos_integer(), Why :: binary()} | {unavailable, Why :: binary()} |
                binary()}.
import(VHost, Lines, Exchange) ->
    try
        Messages = [parsed(N, Line) || {N, Line} <- lists:zip(lists:seq(1, length(Lines)), Lines)],
        Targets = lists:usort([target(Message, Exchange) || Message <- Messages]),
        case [X || X <- Targets, not is_delayed(rabbit_misc:r(VHost, exchange, X))] of
            [] ->
                case rabbit_delay_config:misplaced() of
                    ok -> publish(VHost, Messages, Exchange);
                    {error, Why} -> {error, {unavailable, Why}}
                end;
            [Missing | _] -> {error, no_exchange(VHost, Missing)}
        end
    catch
        throw:{line, _, _} = Malformed -> {error, Malformed}
    end.

%% By which the same message is known again, in a line and where it is pending: all that is in it and its
%% due time, but what an import changes of its headers; and the exchange that it is for.
-spec marks([binary()], Exchange :: binary() | undefined) ->
          {ok, [{binary(), Mark :: binary()}]} | {error, {line, pos_integer(), Why :: binary()}}.
marks(Lines, Exchange) ->
    try
        {ok, [mark(parsed(N, Line), Exchange)
              || {N, Line} <- lists:zip(lists:seq(1, length(Lines)), Lines)]}
    catch
        throw:{line, _, _} = Malformed -> {error, Malformed}
    end.

%% Those of the first Seen of these messages that can be read.
-spec pending_marks(rabbit_types:vhost(), Exchange :: binary(), Ids :: binary()) ->
          {ok, [binary()], Seen :: pos_integer()} | rabbit_delay_pending:error().
pending_marks(VHost, Exchange, Ids) ->
    case export(VHost, Exchange, Ids) of
        {ok, Lines, _, Seen} ->
            {ok, [Mark || Line <- Lines, {ok, Message} <- [parse(Line)],
                          {_, Mark} <- [mark(Message, Exchange)]], Seen};
        Failure ->
            Failure
    end.

mark(#{due := Due, keys := Keys, payload := Payload, retry := IsRetry,
       properties := #'P_basic'{headers = Headers} = Properties} = Message, Exchange) ->
    X = target(Message, Exchange),
    Kept = [Header || {Name, _, _} = Header <- Headers, not lists:member(Name, ?DELAY_HEADERS)],
    {X, erlang:md5(term_to_binary({X, Due, lists:sort(Keys), lists:sort(Kept), Payload, IsRetry,
                                   Properties#'P_basic'{headers = undefined}}))}.

target(#{exchange := X}, undefined) -> X;
target(_, X) -> X.

parsed(N, Line) ->
    case parse(Line) of
        {ok, Message} -> Message;
        {error, Why} -> throw({line, N, Why})
    end.

publish(VHost, Messages, Exchange) ->
    {Retries, Others} = lists:partition(fun (#{retry := IsRetry}) -> IsRetry end, Messages),
    case publish_others(VHost, Others, Exchange) of
        {ok, Unroutable} ->
            ByTarget = lists:foldr(fun (Message, Acc) ->
                                           maps:update_with(target(Message, Exchange),
                                                            fun (Rest) -> [Message | Rest] end, [Message], Acc)
                                   end, #{}, Retries),
            restore(VHost, maps:to_list(ByTarget), Unroutable);
        Failure ->
            Failure
    end.

restore(_, [], Unroutable) ->
    {ok, Unroutable};
restore(VHost, [{X, Retries} | Rest], Unroutable) ->
    XName = rabbit_misc:r(VHost, exchange, X),
    case rabbit_delay_restore:publish(XName, [retry(XName, Retry) || Retry <- Retries]) of
        ok -> restore(VHost, Rest, Unroutable);
        Failure -> Failure
    end.

retry(XName, #{due := Due, keys := Keys, payload := Payload, properties := Properties}) ->
    rabbit_delay_broker:dead_letter(XName, Keys, due_at(Due, Properties), Payload).

publish_others(_, [], _) ->
    {ok, 0};
publish_others(VHost, Messages, Exchange) ->
    case rabbit_delay_connection:open(VHost, <<"import_delayed_messages">>) of
        {ok, {_, Channel} = Connection} ->
            try
                #'confirm.select_ok'{} = amqp_channel:call(Channel, #'confirm.select'{}),
                ok = amqp_channel:register_return_handler(Channel, self()),
                lists:foreach(fun (Message) -> publish_one(Channel, Message, Exchange) end, Messages),
                case amqp_channel:wait_for_confirms(Channel, ?CONFIRM_SECONDS) of
                    true -> {ok, returned(0)};
                    _ -> unavailable("the exchange does not take messages at present")
                end
            catch
                exit:Reason ->
                    refused(Reason)
            after
                rabbit_delay_connection:close(Connection)
            end;
        {error, {unavailable, _}} = Error ->
            Error
    end.

%% They came before the confirms.
returned(N) ->
    receive
        {#'basic.return'{}, _} -> returned(N + 1)
    after 0 ->
        N
    end.

unavailable(Why) -> {error, {unavailable, unicode:characters_to_binary(Why)}}.

%% An exception of the channel names the message's fault; else the broker is going away.
refused({{shutdown, {server_initiated_close, Code, Text}}, _}) ->
    {error, iolist_to_binary(io_lib:format("the broker refuses a message: ~b ~ts", [Code, Text]))};
refused({shutdown, {server_initiated_close, Code, Text}}) ->
    {error, iolist_to_binary(io_lib:format("the broker refuses a message: ~b ~ts", [Code, Text]))};
refused(Reason) ->
    unavailable(["the broker goes away: ", rabbit_delay_connection:ended(Reason)]).

%% Its due time goes before whatever else it says of a delay; and where that is over, it must not be
%% delayed again by what had delayed it.
publish_one(Channel, #{due := Due, keys := [Key | Keys], payload := Payload,
                       properties := #'P_basic'{headers = Headers0} = Properties} = Message, Exchange) ->
    Copies = Keys -- copies(Headers0),
    Negated = Properties#'P_basic'{headers = rabbit_delay_header:negate(Headers0)},
    #'P_basic'{headers = Dated} = due_at(Due, Negated),
    Headers = Dated ++ [{<<"BCC">>, array, [{longstr, Copy} || Copy <- Copies]} || Copies =/= []],
    ok = amqp_channel:call(Channel, #'basic.publish'{exchange = target(Message, Exchange),
                                                     routing_key = Key, mandatory = true},
                           #amqp_msg{props = Properties#'P_basic'{headers = Headers},
                                     payload = Payload}).

due_at(Due, #'P_basic'{headers = Headers} = Properties) ->
    {Name, _, _} = At = rabbit_delay_header:at(Due),
    Properties#'P_basic'{headers = [At | lists:keydelete(Name, 1, Headers)]}.

copies(Headers) ->
    case lists:keyfind(<<"CC">>, 1, Headers) of
        {_, array, Values} -> [Key || {longstr, Key} <- Values];
        _ -> []
    end.

%% The message of a line.
-spec parse(binary()) -> {ok, message()} | {error, binary()}.
parse(Line) ->
    case rabbit_json:try_decode(Line) of
        {ok, #{<<"format">> := ?FORMAT} = Object} ->
            if_well_formed(fun () -> (read(Object))#{retry => false} end);
        {ok, #{<<"format">> := ?FORMAT_OF_RETRY} = Object} ->
            if_well_formed(fun () -> read_retry(Object) end);
        {ok, #{<<"format">> := _}} ->
            {error, <<"it is of another format">>};
        {ok, _} ->
            {error, <<"it is not an object with a format">>};
        {error, _} ->
            {error, <<"it is not JSON, or cut off">>}
    end.

if_well_formed(Read) ->
    try
        {ok, Read()}
    catch
        throw:{malformed, What} -> {error, <<What/binary, " is missing or malformed">>}
    end.

%% Its history says where it goes back to.
read_retry(#{<<"retry">> := true} = Object) ->
    #{properties := #'P_basic'{headers = Headers}} = Message = read(Object),
    case rabbit_delay_deaths:history(rabbit_delay_deaths:plain(Headers)) of
        {[_ | _], false} -> Message#{retry => true};
        _ -> malformed(<<"the header x-death of a retry">>)
    end;
read_retry(_) ->
    malformed(<<"retry">>).

read(#{<<"exchange">> := X, <<"due">> := Due, <<"routing_keys">> := [_ | _] = Keys,
       <<"properties">> := #{} = Properties, <<"headers">> := Headers, <<"body">> := Body})
  when is_integer(Due), Due >= 0, Due =< ?MAX_MS ->
    Table = read_fields(Headers),
    #{exchange => short(X, <<"exchange">>), due => Due,
      keys => [short(Key, <<"routing_keys">>) || Key <- Keys],
      properties => maps:fold(fun read_property/3, #'P_basic'{headers = Table}, Properties),
      payload => from_base64(Body, <<"body">>)};
read(_) ->
    malformed(<<"one of exchange, due, routing_keys, properties, headers and body">>).

-spec malformed(binary()) -> no_return().
malformed(What) -> throw({malformed, What}).

read_text(#{<<"base64">> := Encoded}, What) -> from_base64(Encoded, What);
read_text(Text, _) when is_binary(Text) -> Text;
read_text(_, What) -> malformed(What).

short(Value, What) ->
    case read_text(Value, What) of
        Text when byte_size(Text) =< 255 -> Text;
        _ -> malformed(What)
    end.

from_base64(Encoded, What) when is_binary(Encoded) ->
    try
        base64:decode(Encoded)
    catch
        error:_ -> malformed(What)
    end;
from_base64(_, What) ->
    malformed(What).

read_property(<<"delivery_mode">>, N, P) when N =:= 1; N =:= 2 -> P#'P_basic'{delivery_mode = N};
read_property(<<"priority">>, N, P) when is_integer(N), N >= 0, N =< 255 -> P#'P_basic'{priority = N};
read_property(<<"timestamp">>, N, P) when is_integer(N), N >= 0, N < 1 bsl 64 ->
    P#'P_basic'{timestamp = N};
read_property(Name, Value, P) ->
    Text = short(Value, <<"properties">>),
    case Name of
        <<"content_type">> -> P#'P_basic'{content_type = Text};
        <<"content_encoding">> -> P#'P_basic'{content_encoding = Text};
        <<"correlation_id">> -> P#'P_basic'{correlation_id = Text};
        <<"reply_to">> -> P#'P_basic'{reply_to = Text};
        <<"expiration">> -> P#'P_basic'{expiration = Text};
        <<"message_id">> -> P#'P_basic'{message_id = Text};
        <<"type">> -> P#'P_basic'{type = Text};
        <<"user_id">> -> P#'P_basic'{user_id = Text};
        <<"app_id">> -> P#'P_basic'{app_id = Text};
        <<"cluster_id">> -> P#'P_basic'{cluster_id = Text};
        _ -> malformed(<<"properties">>)
    end.

read_fields(Fields) when is_list(Fields) -> [read_field(Field) || Field <- Fields];
read_fields(_) -> malformed(<<"headers">>).

read_field([Name, Type, Value]) ->
    {T, V} = read_value([Type, Value]),
    {short(Name, <<"headers">>), T, V};
read_field(_) ->
    malformed(<<"headers">>).

read_value([Type, Value]) ->
    case {Type, Value} of
        {<<"table">>, _} -> {table, read_fields(Value)};
        {<<"array">>, _} when is_list(Value) -> {array, [read_value(V) || V <- Value]};
        {<<"longstr">>, _} -> {longstr, read_text(Value, <<"headers">>)};
        {<<"binary">>, _} -> {binary, read_text(Value, <<"headers">>)};
        {<<"void">>, _} -> {void, undefined};
        {<<"bool">>, _} when is_boolean(Value) -> {bool, Value};
        {<<"decimal">>, [Scale, N]} when is_integer(Scale), Scale >= 0, Scale =< 255, is_integer(N),
                                         N >= 0, N < 1 bsl 32 -> {decimal, {Scale, N}};
        {<<"double">>, _} -> {double, read_float(Value)};
        {<<"float">>, _} -> {float, read_float(Value)};
        _ -> read_integer(Type, Value)
    end;
read_value(_) ->
    malformed(<<"headers">>).

read_float(Text) when is_binary(Text) ->
    try
        binary_to_float(Text)
    catch
        error:badarg -> malformed(<<"headers">>)
    end;
read_float(_) ->
    malformed(<<"headers">>).

read_integer(Name, Value) ->
    case lists:keyfind(Name, 1, [{<<"signedint">>, signedint, -(1 bsl 31), 1 bsl 31},
                                 {<<"long">>, long, -(1 bsl 63), 1 bsl 63},
                                 {<<"byte">>, byte, -128, 128},
                                 {<<"short">>, short, -(1 bsl 15), 1 bsl 15},
                                 {<<"unsignedbyte">>, unsignedbyte, 0, 256},
                                 {<<"unsignedshort">>, unsignedshort, 0, 1 bsl 16},
                                 {<<"unsignedint">>, unsignedint, 0, 1 bsl 32},
                                 {<<"timestamp">>, timestamp, 0, 1 bsl 64}]) of
        {_, Type, From, To} when is_integer(Value), Value >= From, Value < To -> {Type, Value};
        _ -> malformed(<<"headers">>)
    end.
