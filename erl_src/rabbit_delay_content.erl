%% SPDX-License-Identifier: MPL-2.0

%% What a message says, ready for JSON: binaries that are not UTF-8 are #{base64 => Text}, a payload that is
%% not is encoded as payload_encoding says. Pure functions, in whoever shows one; what they give back is
%% copied, so that what the message was read from can go.
-module(rabbit_delay_content).

-export([shown/2, readable/1]).

%% exchange, routing_key, routing_keys, properties, headers, payload_bytes; with `body', how much of the body
%% in bytes, also payload, payload_encoding (string, base64) and whether it is truncated.
-spec shown(rabbit_delay_broker:content(), #{body => non_neg_integer(), atom() => term()}) ->
          #{atom() => term()}.
shown(#{exchange := Exchange, routing_keys := Keys, properties := Properties, headers := Headers,
          payload := Payload0}, Options) ->
    Size = iolist_size(Payload0),
    Item = #{exchange => readable(Exchange),
             routing_key => case Keys of [First | _] -> readable(First); [] -> <<>> end,
             routing_keys => [readable(K) || K <- Keys],
             properties => maps:from_list([{Name, readable(Value)} || {Name, Value} <- Properties]),
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

-spec readable(binary() | Other) -> binary() | #{base64 := binary()} | Other.
readable(Binary) when is_binary(Binary) ->
    case unicode:characters_to_binary(Binary) of
        Binary -> binary:copy(Binary);
        _ -> #{base64 => base64:encode(Binary)}
    end;
readable(Value) ->
    Value.

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
