%% SPDX-License-Identifier: MPL-2.0

%% How a publisher says when a message is to be delivered. Three headers, the first present wins:
%%
%%   x-opt-delivery-time   when, ms since the epoch (an AMQP 0-9-1 timestamp counts in seconds)
%%   x-opt-delivery-delay  how long from now, ms
%%   x-delay               how long from now, ms: the official delayed-message plugin's
%%
%% Values may be of any integer type, float or double or decimal, or a string that holds a number; a
%% fraction of a millisecond counts as a whole one: never early. Zero, negative, and a time that has
%% passed mean: at once. A decimal's mantissa is signed, as clients write it, though the broker reads
%% it unsigned.
%%
%% A string holds a number, with blanks around it or not, if it is
%%
%%   [+|-] digits [. [digits]] [e|E [+|-] digits]   or   [+|-] . digits [e|E [+|-] digits]
%%
%% What cannot be meant as a time is refused: a positive number below 10^11 ms (seconds since the epoch,
%% not milliseconds), and a 32-bit float, which counts times of today in steps of two minutes.
-module(rabbit_delay_header).

-export([due/3, due/4, at/1, find/2, negate/1, explain/2, shown/2, names/0]).
-export([from_amqp10/2, from_properties/2, negated_properties/1, to_amqp10/1]).

-export_type([due/0, unusable/0, headers/0]).

-type headers() :: [{binary(), atom(), term()}] | undefined.

%% A value of AMQP 1.0, as RabbitMQ tags it.
-type amqp10_value() :: {Tag :: atom(), term()} | null | undefined.

-type due() :: now
             | {delay, Ms :: pos_integer()}
             | {time, MsSinceEpoch :: pos_integer()}
             | unusable().

-type unusable() :: {unusable, Header :: binary(), {Type :: atom(), Value :: term()},
                     Why :: not_a_number | {beyond, MaxDelay :: pos_integer()} | seconds | imprecise}.

-define(TIME, <<"x-opt-delivery-time">>).
-define(DELAY, <<"x-opt-delivery-delay">>).
-define(X_DELAY, <<"x-delay">>).

%% The longest text that can be a number within any limit.
-define(MAX_DIGITS, 32).
%% 1973 in milliseconds, the year 5138 in seconds.
-define(LEAST_TIME_MS, 100000000000).
%% How much of a value a text shows, characters, and how many entries of a table.
-define(SHOWN, 80).
-define(SHOWN_ENTRIES, 4).

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

%% The header that says: at that time. A time before the least that is taken for one has long passed.
-spec at(non_neg_integer()) -> {binary(), long, pos_integer()}.
at(Ms) -> {?TIME, long, max(Ms, ?LEAST_TIME_MS)}.

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
from_amqp10(?TIME, {timestamp, Ms}) -> [{?TIME, timestamp_ms, Ms}];
from_amqp10(Name, {Tag, Text}) when Tag =:= utf8; Tag =:= symbol -> [{Name, longstr, Text}];
from_amqp10(Name, {Tag, N}) when Tag =:= ulong; Tag =:= uint; Tag =:= ushort; Tag =:= ubyte;
                                 Tag =:= int ->
    [{Name, long, N}];
from_amqp10(Name, {Tag, Value}) -> [{Name, Tag, Value}];
from_amqp10(Name, Value) -> [{Name, unknown, Value}].

%% AMQP 1.0's application properties of these names as headers, where the broker tells of their values
%% only.
-spec from_properties([binary()], #{binary() => term()}) -> [{binary(), atom(), term()}].
from_properties(Names, Properties) ->
    [{Name, type_of(Value), Value} || Name <- Names, is_map_key(Name, Properties),
                                      Value <- [maps:get(Name, Properties)], Value =/= undefined].

type_of(Value) when is_integer(Value) -> long;
type_of(Value) when is_float(Value) -> double;
type_of(Value) when is_binary(Value) -> longstr;
type_of(Value) when is_boolean(Value) -> bool;
type_of(_) -> unknown.

%% The annotations that say of a message with such properties that it has been delayed: properties
%% cannot be changed on the way.
-spec negated_properties([{binary(), atom(), term()}]) -> [{binary(), atom(), term()}].
negated_properties(Properties) ->
    [setelement(1, negated(Type, N), Name)
     || {Name, Type, Value} <- Properties, Name =:= ?X_DELAY orelse Name =:= ?DELAY,
        N <- [number(Type, Value)], is_integer(N), N > 0].

%% A header of ours as another protocol's annotation.
-spec to_amqp10({binary(), atom(), term()}) -> amqp10_value().
to_amqp10({_, longstr, Text}) -> {utf8, Text};
to_amqp10({_, Tag, Value}) -> {Tag, Value}.

%% The header of that name; one that is void counts as none.
-spec find(binary(), [{binary(), atom(), term()}]) -> {Tag :: atom(), term()} | undefined.
find(Name, Headers) ->
    case lists:keyfind(Name, 1, Headers) of
        false -> undefined;
        {_, void, _} -> undefined;
        {_, Type, Value} -> {Type, Value}
    end.

delay(Header, {Type, Value} = Field, MaxDelay) ->
    case number(Type, Value) of
        not_a_number -> {unusable, Header, Field, not_a_number};
        N when N =< 0 -> now;
        N when N > MaxDelay -> {unusable, Header, Field, {beyond, MaxDelay}};
        N -> {delay, N}
    end.

time({timestamp, Seconds}, Now, MaxDelay) when is_integer(Seconds) ->
    time(Seconds * 1000, {timestamp, Seconds}, Now, MaxDelay);
time({Type, Value} = Field, Now, MaxDelay) ->
    case number(Type, Value) of
        not_a_number -> {unusable, ?TIME, Field, not_a_number};
        N when N > 0, Type =:= float -> {unusable, ?TIME, Field, imprecise};
        N when N > 0, N < ?LEAST_TIME_MS, Type =/= timestamp_ms -> {unusable, ?TIME, Field, seconds};
        N -> time(N, Field, Now, MaxDelay)
    end.

time(N, _, Now, _) when N =< Now -> now;
time(N, Field, Now, MaxDelay) when N - Now > MaxDelay -> {unusable, ?TIME, Field, {beyond, MaxDelay}};
time(N, _, _, _) -> {time, N}.

number(Type, N) when is_integer(N),
                     (Type =:= signedint orelse Type =:= long orelse Type =:= byte orelse
                      Type =:= short orelse Type =:= unsignedbyte orelse
                      Type =:= unsignedshort orelse Type =:= unsignedint orelse
                      Type =:= timestamp_ms) ->
    N;
number(Type, F) when is_float(F), (Type =:= double orelse Type =:= float) ->
    ceil(F);
number(decimal, {Places, N}) ->
    scaled(signed(N), -Places);
number(Type, Text) when is_binary(Text), (Type =:= longstr orelse Type =:= binary) ->
    text(Text);
number(_, _) ->
    not_a_number.

signed(N) when N >= 16#80000000 -> N - 16#100000000;
signed(N) -> N.

text(Text) when byte_size(Text) > ?MAX_DIGITS ->
    not_a_number;
text(Text) ->
    try
        binary_to_integer(Text)
    catch
        error:badarg -> written_out(Text)
    end.

written_out(Text) ->
    case re:run(Text, "^[ \\t\\r\\n]*([+-]?)(?:(\\d+)(?:\\.(\\d*))?|\\.(\\d+))(?:[eE]([+-]?\\d{1,2}))?"
                "[ \\t\\r\\n]*$", [dollar_endonly, {capture, all_but_first, list}]) of
        {match, [Sign, Whole, Fraction | Rest]} ->
            {Places, Exponent} = case Rest of
                                     [] -> {Fraction, "0"};
                                     [P] -> {Fraction ++ P, "0"};
                                     [P, E] -> {Fraction ++ P, E}
                                 end,
            scaled(list_to_integer(Sign ++ Whole ++ Places),
                   list_to_integer(Exponent) - length(Places));
        {match, [Sign, Whole]} ->
            list_to_integer(Sign ++ Whole);
        nomatch ->
            not_a_number
    end.

%% N times 10 to the power of that, rounded up.
scaled(N, Power) when Power >= 0 ->
    N * pow10(Power);
scaled(N, Power) ->
    Divisor = pow10(-Power),
    case N rem Divisor of
        Rest when Rest > 0 -> N div Divisor + 1;
        _ -> N div Divisor
    end.

pow10(0) -> 1;
pow10(N) -> 10 * pow10(N - 1).

%% Every number becomes a 64-bit integer, which all clients read as signed; text stays text.
negated(Type, N) when Type =:= longstr; Type =:= binary ->
    {?X_DELAY, Type, integer_to_binary(-N)};
negated(_, N) ->
    {?X_DELAY, long, -N}.

%% ----------------------------------------------------------------------------- what a sender is told

%% Why a delay cannot be used, as the end of a sentence. Word is what the sender's protocol calls such
%% a field: header, annotation.
-spec explain(unusable(), Word :: string()) -> unicode:chardata().
explain({unusable, Header, {timestamp = Type, Value}, not_a_number}, Word) ->
    [Word, $\s, Header, " is ", shown(Type, Value), ", not a number of milliseconds; a time of delivery "
     "is written as ", ?TIME];
explain({unusable, ?TIME, {Type, Value}, not_a_number}, Word) ->
    [Word, $\s, ?TIME, " is ", shown(Type, Value), ", not a time in milliseconds since the epoch"];
explain({unusable, Header, {Type, Value}, not_a_number}, Word) ->
    [Word, $\s, Header, " is ", shown(Type, Value), ", not a number of milliseconds"];
explain({unusable, Header, {Type, Value}, {beyond, MaxDelay}}, Word) ->
    [Word, $\s, Header, " is ", shown(Type, Value), ", more than the maximum delay of ",
     integer_to_list(MaxDelay), " ms",
     case Header of
         ?TIME -> " from now";
         _ -> ""
     end];
explain({unusable, Header, {Type, Value}, seconds}, Word) ->
    [Word, $\s, Header, " is ", shown(Type, Value), ", which are seconds; it takes milliseconds since the "
     "epoch"];
explain({unusable, Header, {Type, Value}, imprecise}, Word) ->
    [Word, $\s, Header, " is ", shown(Type, Value), ", too coarse for a time: write an integer or a "
     "64-bit double"].

%% A value and its AMQP type as one would write them, one line, cut.
-spec shown(Type :: atom(), Value :: term()) -> unicode:chardata().
shown(void, _) -> "null";
shown(bool, Value) -> ["the boolean ", written(bool, Value)];
shown(boolean, Value) -> ["the boolean ", written(bool, Value)];
shown(Type, Value) ->
    case {type_name(Type), written(Type, Value)} of
        {unknown, _} -> "of a type that is no number";
        {Name, Text} -> ["the ", Name, $\s, cut(Text)]
    end.

type_name(longstr) -> "string";
type_name(binary) -> "byte array";
type_name(byte) -> "8-bit integer";
type_name(unsignedbyte) -> "unsigned 8-bit integer";
type_name(short) -> "16-bit integer";
type_name(unsignedshort) -> "unsigned 16-bit integer";
type_name(signedint) -> "32-bit integer";
type_name(unsignedint) -> "unsigned 32-bit integer";
type_name(long) -> "64-bit integer";
type_name(float) -> "32-bit float";
type_name(double) -> "double";
type_name(decimal) -> "decimal";
type_name(timestamp) -> "timestamp";
type_name(timestamp_ms) -> "timestamp";
type_name(table) -> "table";
type_name(map) -> "map";
type_name(array) -> "array";
type_name(list) -> "list";
type_name(_) -> unknown.

written(longstr, Text) -> [$", printable(Text), $"];
written(binary, Bytes) ->
    case is_plain(Bytes) of
        true -> [$", Bytes, $"];
        false -> ["0x", [io_lib:format("~2.16.0b", [B])
                         || <<B>> <= binary:part(Bytes, 0, min(byte_size(Bytes), ?SHOWN div 2))]]
    end;
written(bool, Value) when is_atom(Value) -> atom_to_list(Value);
written(_, N) when is_integer(N) -> integer_to_list(N);
written(_, F) when is_float(F) -> io_lib:format("~w", [F]);
written(decimal, {Places, N}) ->
    [integer_to_list(signed(N)), case Places of 0 -> ""; _ -> ["e-", integer_to_list(Places)] end];
written(table, Fields) when is_list(Fields) ->
    [${, entries([[$", printable(Name), "\": ", written(Type, Value)]
                  || {Name, Type, Value} <- lists:sublist(Fields, ?SHOWN_ENTRIES)], Fields), $}];
written(array, Items) when is_list(Items) ->
    [$[, entries([written(Type, Value) || {Type, Value} <- lists:sublist(Items, ?SHOWN_ENTRIES)],
                 Items), $]];
written(void, _) -> "null";
written(_, _) -> "...".

entries(Written, All) ->
    lists:join(", ", Written ++ ["..." || length(All) > ?SHOWN_ENTRIES]).

%% Bytes that are no printable text are written as such.
printable(Text) ->
    escaped(binary:part(Text, 0, min(byte_size(Text), 4 * ?SHOWN))).

escaped(<<C/utf8, Rest/binary>>) when C >= 32, C < 127, C =/= $"; C >= 160 -> [C | escaped(Rest)];
escaped(<<$", Rest/binary>>) -> [$\\, $" | escaped(Rest)];
escaped(<<B, Rest/binary>>) -> [io_lib:format("\\x~2.16.0b", [B]) | escaped(Rest)];
escaped(<<>>) -> [].

is_plain(Bytes) ->
    lists:all(fun (B) -> B >= 32 andalso B < 127 end,
              binary_to_list(binary:part(Bytes, 0, min(byte_size(Bytes), ?SHOWN)))).

cut(Text) ->
    case string:length(Text) > ?SHOWN of
        true -> [string:slice(Text, 0, ?SHOWN - 3), "..."];
        false -> Text
    end.
