%% SPDX-License-Identifier: MPL-2.0

%% One message of a queue: what it is known by, how it is shown, and a copy of it that somebody edited.
%% Pure functions, in whoever looks at a queue or redrives it.
%%
%% A queue gives its messages no names, and their places change while others consume. So a message is known
%% by a digest of all that it says: what was looked at is either found again as it was, wherever it is now,
%% or not at all. Which of several that say the same is taken makes no difference to anybody.
-module(rabbit_delay_dead_letter).

-include_lib("rabbit_common/include/rabbit_framing.hrl").

-export([id/1, properties/1, shown/2, edit/1, edited/3, edit_text/1]).

-export_type([id/0, message/0, edit/0]).

%% Hexadecimal digits.
-type id() :: binary().

-type message() :: #{exchange := binary(), key := binary(), properties := [{atom(), term()}],
                     table := undefined | rabbit_framing:amqp_table(), payload := binary(), atom() => term()}.

%% What is said anew; what is set to null is taken off. The rest stays as it is, types of headers included.
-type edit() :: #{payload => binary(), properties => #{binary() => term()}, headers => #{binary() => term()}}.

%% What brokers add when they deliver a message.
-define(ON_DELIVERY, [<<"x-opt-rabbitmq-sent-time">>]).
-define(DIGITS, 32).
-define(MAX_SHORT, 255).
%% That a request names; each is looked for among the message's.
-define(MAX_HEADERS, 1000).
%% Of what is edited, for the log.
-define(LOGGED, 20).

%% Headers that say by which keys a message is routed are for the request's own routing_key.
-define(NOT_TO_EDIT, [<<"CC">>, <<"BCC">>]).

-spec id(message()) -> id().
id(#{exchange := X, key := Key, properties := Properties, table := Table, payload := Payload}) ->
    Headers = lists:sort([Field || {Name, _, _} = Field <- rabbit_delay_deaths:uncounted(Table),
                                   not lists:member(Name, ?ON_DELIVERY)]),
    Said = term_to_binary({1, X, Key, Properties, Headers}, [{minor_version, 2}]),
    Digest = crypto:hash(sha256, [<<(byte_size(Said)):64>>, Said, Payload]),
    string:lowercase(binary:part(binary:encode_hex(Digest), 0, ?DIGITS)).

%% As rabbit_delay_broker:content() has them.
-spec properties(#'P_basic'{}) -> [{atom(), term()}].
properties(Properties) ->
    [{Name, Value} || {Name, Value} <- lists:zip(record_info(fields, 'P_basic'),
                                                 tl(tuple_to_list(Properties))),
                      Name =/= headers, Value =/= undefined].

%% For JSON, with so many bytes of its body at most.
-spec shown(message(), Body :: non_neg_integer()) -> #{atom() => term()}.
shown(#{exchange := X, key := Key, properties := Properties, table := Table, payload := Payload,
        headers := Headers} = Message, Body) ->
    Content = #{exchange => X, routing_keys => [Key], properties => Properties,
                headers => case Table of undefined -> []; _ -> Table end, payload => Payload},
    Item = rabbit_delay_content:shown(Content, #{body => Body}),
    {Deaths, _} = rabbit_delay_deaths:history(Headers),
    Last = rabbit_delay_deaths:last(Deaths),
    (maps:remove(routing_keys, Item))#{
      id => id(Message),
      death => case Last of
                   #{queue := Queue} ->
                       #{queue => rabbit_delay_text:printable(Queue),
                         reason => rabbit_delay_text:printable(maps:get(reason, Last, <<>>)),
                         time => maps:get(time, Last, null)};
                   _ ->
                       null
               end,
      history => [rabbit_delay_text:printable(S) || S <- rabbit_delay_deaths:explain(Headers, undefined)]}.

%% --------------------------------------------------------------------------------- editing

%% Reads what a request says of a copy: payload with payload_encoding, properties and headers.
-spec edit(#{atom() => term()}) -> {ok, edit()} | {error, Why :: binary()}.
edit(Words) ->
    rabbit_delay_http:all(
      [{payload, payload(Words)},
       {properties, members(properties, Words, fun property/2)},
       {headers, members(headers, Words, fun header/2)}],
      fun (Edit) -> {ok, maps:filter(fun (_, Value) -> Value =/= none end, Edit)} end).

payload(#{payload := Text} = Words) when is_binary(Text) ->
    case maps:get(payload_encoding, Words, <<"string">>) of
        <<"string">> ->
            {ok, Text};
        <<"base64">> ->
            try
                {ok, base64:decode(Text)}
            catch
                error:_ -> {error, <<"payload is not base64">>}
            end;
        _ ->
            {error, <<"payload_encoding is neither string nor base64">>}
    end;
payload(#{payload := _}) ->
    {error, <<"payload is not a string">>};
payload(#{payload_encoding := _}) ->
    {error, <<"payload_encoding goes with payload">>};
payload(_) ->
    {ok, none}.

members(Name, Words, Check) ->
    case maps:get(Name, Words, none) of
        none ->
            {ok, none};
        #{} = Members when map_size(Members) > ?MAX_HEADERS ->
            {error, text("~s has more than ~b members", [Name, ?MAX_HEADERS])};
        #{} = Members ->
            case [Why || {Member, Value} <- maps:to_list(Members), {error, Why} <- [Check(Member, Value)]] of
                [] -> {ok, Members};
                [Why | _] -> {error, Why}
            end;
        _ ->
            {error, text("~s is not an object", [Name])}
    end.

property(Name, Value) ->
    case {Name, kind(Name)} of
        {_, unknown} -> {error, text("there is no property ~ts to edit", [rabbit_delay_text:value(Name)])};
        _ when Value =:= null -> ok;
        {_, short} when is_binary(Value), byte_size(Value) =< ?MAX_SHORT -> expiration(Name, Value);
        {_, {Least, Most}} when is_integer(Value), Value >= Least, Value =< Most -> ok;
        {_, short} -> {error, text("property ~ts is not a string of at most 255 bytes", [Name])};
        {_, {Least, Most}} -> {error, text("property ~ts is not a number from ~b to ~b", [Name, Least, Most])}
    end.

%% user_id is what the broker vouches for.
kind(<<"delivery_mode">>) -> {1, 2};
kind(<<"priority">>) -> {0, 255};
kind(<<"timestamp">>) -> {0, 16#7fffffffffffffff};
kind(Name) ->
    case lists:member(Name, [<<"content_type">>, <<"content_encoding">>, <<"correlation_id">>,
                             <<"reply_to">>, <<"expiration">>, <<"message_id">>, <<"type">>,
                             <<"app_id">>]) of
        true -> short;
        false -> unknown
    end.

expiration(<<"expiration">>, Value) ->
    case rabbit_delay_notation:number(Value) of
        {ok, N} when N >= 0, N =< 16#ffffffff -> ok;
        _ -> {error, <<"property expiration is not a number of ms from 0 to 4294967295">>}
    end;
expiration(_, _) ->
    ok.

header(Name, Value) ->
    case lists:member(Name, ?NOT_TO_EDIT) of
        true -> {error, text("header ~ts is not to be edited: use routing_key", [Name])};
        false when Name =:= <<>>; byte_size(Name) > ?MAX_SHORT ->
            {error, <<"a header's name has 1 to 255 bytes">>};
        false ->
            try
                _ = typed(Value),
                ok
            catch
                throw:Why -> {error, text("header ~ts: ~s", [Name, Why])}
            end
    end.

typed(Value) when is_binary(Value) -> {longstr, Value};
typed(Value) when is_boolean(Value) -> {bool, Value};
typed(Value) when is_integer(Value), Value >= -16#8000000000000000, Value =< 16#7fffffffffffffff ->
    {long, Value};
typed(Value) when is_float(Value) -> {double, Value};
typed(null) -> {void, undefined};
typed(Values) when is_list(Values) -> {array, [typed(Value) || Value <- Values]};
typed(Members) when is_map(Members) -> {table, [field(Name, Value) || {Name, Value} <- maps:to_list(Members)]};
typed(_) -> throw("a number is too large").

field(Name, _) when byte_size(Name) > ?MAX_SHORT -> throw("a member's name has more than 255 bytes");
field(Name, Value) ->
    {Type, Typed} = typed(Value),
    {Name, Type, Typed}.

%% The copy. User: who edits it. What is not as it came is not said to be of whoever published that.
-spec edited(edit(), rabbit_types:username(), {#'P_basic'{}, Payload :: binary()}) ->
          {#'P_basic'{}, Payload :: binary()}.
edited(Edit, User, {Properties0 = #'P_basic'{headers = Table0, user_id = UserId}, Payload}) ->
    Table = maps:fold(fun (Name, null, Acc) -> lists:keydelete(Name, 1, Acc);
                          (Name, Value, Acc) -> lists:keystore(Name, 1, Acc, field(Name, Value))
                      end, case Table0 of undefined -> []; _ -> Table0 end, maps:get(headers, Edit, #{})),
    Fields = record_info(fields, 'P_basic'),
    Changed = maps:get(properties, Edit, #{}),
    Values = [case maps:get(atom_to_binary(Name, utf8), Changed, unchanged) of
                  unchanged -> Value;
                  null -> undefined;
                  New -> New
              end || {Name, Value} <- lists:zip(Fields, tl(tuple_to_list(Properties0)))],
    Properties = list_to_tuple(['P_basic' | Values]),
    {Properties#'P_basic'{headers = Table, user_id = case UserId of User -> User; _ -> undefined end},
     maps:get(payload, Edit, Payload)}.

%% What is edited, for the log.
-spec edit_text(edit()) -> binary().
edit_text(Edit) ->
    Names = fun (Kind) -> lists:sort(maps:keys(maps:get(Kind, Edit, #{}))) end,
    Parts = ["body" || is_map_key(payload, Edit)]
        ++ [["property ", rabbit_delay_text:escaped(Name)] || Name <- Names(properties)]
        ++ [["header ", rabbit_delay_text:escaped(Name)] || Name <- Names(headers)],
    case Parts of
        [] ->
            <<"nothing">>;
        _ ->
            Shown = lists:sublist(Parts, ?LOGGED) ++ ["..." || length(Parts) > ?LOGGED],
            rabbit_delay_text:printable(lists:join(", ", Shown))
    end.

text(Format, Args) ->
    rabbit_delay_text:printable(io_lib:format(Format, Args)).
