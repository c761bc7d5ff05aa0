%% SPDX-License-Identifier: MPL-2.0

%% A pending message as operators see it, ready for JSON: binaries that are not UTF-8 are
%% #{base64 => Text}, a payload that is not is encoded as payload_encoding says.
%%
%% Pure functions of a message, in whoever shows one. What they give back refers to no part of the
%% record that the message was read from: it is copied, so that the record can go.
-module(rabbit_delay_pending_item).

-export([bare/1, described/2]).

-export_type([item/0, options/0]).

%%   id, due (ms since the epoch), size (bytes as stored); cursor, where it is asked for;
%%   with content: key (absent if it has none), exchange, routing_key, routing_keys, properties,
%%   headers, payload_bytes;
%%   with the body: payload, payload_encoding (string, base64), truncated if it is;
%%   damaged (file, offset) where the record cannot be read.
-type item() :: #{atom() => term()}.

-type options() :: #{%% how much of the body, bytes
                     body => non_neg_integer(),
                     atom() => term()}.

%% What is known of a message without reading it.
-spec bare({rabbit_delay_store:ms(), rabbit_delay_store:id(), Size :: non_neg_integer()}) -> item().
bare({Due, Id, Size}) ->
    #{id => integer_to_binary(Id), due => Due, size => Size}.

%% What a message says.
-spec described(rabbit_delay_broker:message(), options()) -> item().
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

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
