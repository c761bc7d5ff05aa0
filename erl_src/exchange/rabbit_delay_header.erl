%% SPDX-License-Identifier: MPL-2.0

%% How a publisher says when a message is to be delivered. Three headers, the first present wins:
%%
%%   x-opt-delivery-time   when, ms since the epoch (an AMQP 0-9-1 timestamp counts in seconds)
%%   x-opt-delivery-delay  how long from now, ms
%%   x-delay               how long from now, ms: the official delayed-message plugin's
%%
%% Values may be of any integer type, float or double or decimal (truncated), or a string that holds
%% a number. Zero, negative, and a time that has passed mean: at once.
-module(rabbit_delay_header).

-export([due/3, due/4, find/2, negate/1, from_amqp10/2, to_amqp10/1, names/0]).

-export_type([due/0, headers/0]).

-type headers() :: [{binary(), atom(), term()}] | undefined.

%% A value of AMQP 1.0, as RabbitMQ tags it.
-type amqp10_value() :: {Tag :: atom(), term()} | null | undefined.

-type due() :: now
             | {delay, Ms :: pos_integer()}
             | {time, MsSinceEpoch :: pos_integer()}
             | {unusable, Header :: binary(), Value :: term(),
                Why :: not_a_number | {beyond, MaxDelay :: pos_integer()}}.

-define(TIME, <<"x-opt-delivery-time">>).
-define(DELAY, <<"x-opt-delivery-delay">>).
-define(X_DELAY, <<"x-delay">>).

%% The longest text that can be a number within any limit.
-define(MAX_DIGITS, 32).

%% When a message with these headers is due, at Now (ms since the epoch), where delays of more than
%% MaxDelay ms are refused.
-spec due(headers(), Now :: integer(), MaxDelay :: pos_integer()) -> due().
due(Headers, Now, MaxDelay) ->
    due(Headers, Now, MaxDelay, now).

%% The same, where NotGiven is the answer if they do not say when.
-spec due(headers(), Now :: integer(), MaxDelay :: pos_integer(), NotGiven) -> due() | NotGiven.
due(undefined, _, _, NotGiven) ->
    NotGiven;
due([], _, _, NotGiven) ->
    NotGiven;
due(Headers, Now, MaxDelay, NotGiven) ->
    case find(?TIME, Headers) of
        undefined ->
            case find(?DELAY, Headers) of
                undefined ->
                    case find(?X_DELAY, Headers) of
                        undefined -> NotGiven;
                        Field -> delay(?X_DELAY, Field, MaxDelay)
                    end;
                Field ->
                    delay(?DELAY, Field, MaxDelay)
            end;
        Field ->
            time(Field, Now, MaxDelay)
    end.

%% The headers that a message carries after its delay: x-delay negated, so that it is not delayed
%% again when it is published again, and a consumer still sees how long it waited.
-spec negate(headers()) -> headers().
negate(undefined) ->
    undefined;
negate(Headers) ->
    case lists:keyfind(?X_DELAY, 1, Headers) of
        false ->
            Headers;
        {_, Type, Value} ->
            case number(Type, Value) of
                N when is_integer(N), N > 0 ->
                    lists:keyreplace(?X_DELAY, 1, Headers, negated(Type, N));
                _ ->
                    Headers
            end
    end.

%% The headers that are understood.
-spec names() -> [binary()].
names() -> [?TIME, ?DELAY, ?X_DELAY].

%% Another protocol's annotation as a header; none if it has no value. AMQP 1.0's timestamps are in
%% ms.
-spec from_amqp10(binary(), amqp10_value()) -> [{binary(), atom(), term()}].
from_amqp10(_, undefined) -> [];
from_amqp10(_, null) -> [];
from_amqp10(?TIME, {timestamp, Ms}) -> [{?TIME, long, Ms}];
from_amqp10(Name, {Tag, Text}) when Tag =:= utf8; Tag =:= symbol -> [{Name, longstr, Text}];
from_amqp10(Name, {Tag, N}) when Tag =:= ulong; Tag =:= uint; Tag =:= ushort; Tag =:= ubyte;
                                 Tag =:= int ->
    [{Name, long, N}];
from_amqp10(Name, {Tag, Value}) -> [{Name, Tag, Value}];
from_amqp10(Name, Value) -> [{Name, unknown, Value}].

%% A header of ours as another protocol's annotation.
-spec to_amqp10({binary(), atom(), term()}) -> amqp10_value().
to_amqp10({_, longstr, Text}) -> {utf8, Text};
to_amqp10({_, signedint, N}) -> {int, N};
to_amqp10({_, Tag, Value}) -> {Tag, Value}.

%% The header of that name; one that is void counts as none.
-spec find(binary(), [{binary(), atom(), term()}]) -> {Tag :: atom(), term()} | undefined.
find(Name, Headers) ->
    case lists:keyfind(Name, 1, Headers) of
        false -> undefined;
        {_, void, _} -> undefined;
        {_, Type, Value} -> {Type, Value}
    end.

delay(Header, {Type, Value}, MaxDelay) ->
    case number(Type, Value) of
        not_a_number -> {unusable, Header, Value, not_a_number};
        N when N =< 0 -> now;
        N when N > MaxDelay -> {unusable, Header, Value, {beyond, MaxDelay}};
        N -> {delay, N}
    end.

time({timestamp, Seconds}, Now, MaxDelay) ->
    time({long, Seconds * 1000}, Now, MaxDelay);
time({Type, Value}, Now, MaxDelay) ->
    case number(Type, Value) of
        not_a_number -> {unusable, ?TIME, Value, not_a_number};
        N when N =< Now -> now;
        N when N - Now > MaxDelay -> {unusable, ?TIME, Value, {beyond, MaxDelay}};
        N -> {time, N}
    end.

number(Type, N) when is_integer(N),
                     (Type =:= signedint orelse Type =:= long orelse Type =:= byte orelse
                      Type =:= short orelse Type =:= unsignedbyte orelse
                      Type =:= unsignedshort orelse Type =:= unsignedint) ->
    N;
number(Type, F) when is_float(F), (Type =:= double orelse Type =:= float) ->
    trunc(F);
number(decimal, {Places, N}) ->
    N div pow10(Places);
number(Type, Text) when is_binary(Text), (Type =:= longstr orelse Type =:= binary) ->
    text(Text);
number(_, _) ->
    not_a_number.

text(Text) when byte_size(Text) > ?MAX_DIGITS ->
    not_a_number;
text(Text) ->
    Trimmed = string:trim(binary_to_list(Text)),
    case string:to_integer(Trimmed) of
        {N, []} ->
            N;
        _ ->
            case string:to_float(Trimmed) of
                {F, []} -> trunc(F);
                _ -> not_a_number
            end
    end.

pow10(0) -> 1;
pow10(N) -> 10 * pow10(N - 1).

%% Keeps the type where it can hold the negative value; unsigned types and decimals cannot.
negated(Type, N) when Type =:= signedint; Type =:= long; Type =:= byte; Type =:= short ->
    {?X_DELAY, Type, -N};
negated(Type, N) when Type =:= double; Type =:= float ->
    {?X_DELAY, Type, float(-N)};
negated(Type, N) when Type =:= longstr; Type =:= binary ->
    {?X_DELAY, Type, integer_to_binary(-N)};
negated(_, N) when N =< 16#7fffffff ->
    {?X_DELAY, signedint, -N};
negated(_, N) ->
    {?X_DELAY, long, -N}.
