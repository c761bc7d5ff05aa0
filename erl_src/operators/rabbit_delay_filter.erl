%% SPDX-License-Identifier: MPL-2.0

%% Which pending messages an operator means, in the words of the command-line tool and the HTTP API:
%% by due time, key, routing key, the exchange they were published to, and a header; or by their
%% ids.
%%
%% Pure functions, in the process that asks, rabbitmqctl's among them.
-module(rabbit_delay_filter).

-include("rabbit_delay.hrl").

-export([parse/2, is_empty/1, due_range/1, key/1, needs_content/1, matches/2, time/2, offset/1,
         id/1, text/1]).

-export_type([filter/0, words/0]).

-opaque filter() :: #{due_from => ms(), due_to => ms(), key => rabbit_delay_key:key(),
                      routing_key => binary(), published_to => binary(),
                      header => {Name :: binary(), Value :: binary()}}.

%% As given: due_from, due_to (see time/2), key (rabbit_delay_key), routing_key, published_to, header
%% (name=value).
-type words() :: #{atom() => binary() | integer()}.
-type ms() :: rabbit_delay_store:ms().

%% Name and value.
-define(MAX_HEADER, 4096).
%% No time is written with more: of a number, all digits are read before it is out of range.
-define(MAX_TIME, 100).

%% Reads a filter. Keys that it does not know are the caller's to refuse.
-spec parse(words(), Now :: ms()) -> {ok, filter()} | {error, Why :: binary()}.
parse(Words, Now) ->
    Known = maps:with([due_from, due_to, key, routing_key, published_to, header], Words),
    in_order(maps:fold(fun (Key, Word, {ok, Filter}) -> parse(Key, Word, Now, Filter);
                           (_, _, Error) -> Error
                       end, {ok, #{}}, Known)).

parse(Key, Word, Now, Filter) when Key =:= due_from; Key =:= due_to ->
    case time(Word, Now) of
        {ok, Ms} -> {ok, Filter#{Key => Ms}};
        {error, Why} -> {error, text("~s: ~ts", [Key, Why])}
    end;
parse(header, Word, _, _) when is_binary(Word), byte_size(Word) > ?MAX_HEADER ->
    {error, text("header: more than ~b bytes", [?MAX_HEADER])};
parse(header, Word, _, Filter) when is_binary(Word) ->
    case binary:split(Word, <<"=">>) of
        [Name, Value] when Name =/= <<>> -> {ok, Filter#{header => {Name, Value}}};
        _ -> {error, text("header: ~ts is not of the form name=value", [rabbit_delay_text:value(Word)])}
    end;
parse(key, <<>>, _, _) ->
    {error, <<"key: not a string of 1 to 255 bytes">>};
parse(Key, Word, _, Filter) when is_binary(Word) ->
    case is_short(Word) of
        true -> {ok, Filter#{Key => Word}};
        false -> {error, text("~s: not a string of at most 255 characters", [Key])}
    end;
parse(Key, _, _, _) ->
    {error, text("~s: not a string of at most 255 characters", [Key])}.

%% Of those of more bytes there are none, which is no reason to refuse them.
is_short(Word) when byte_size(Word) =< 255 -> true;
is_short(Word) when byte_size(Word) =< 4 * 255 ->
    case unicode:characters_to_list(Word) of
        Chars when is_list(Chars) -> length(Chars) =< 255;
        _ -> false
    end;
is_short(_) -> false.

in_order({ok, #{due_from := From, due_to := To}}) when From > To ->
    {error, text("due_from (~s) is after due_to (~s)", [rabbit_delay_time:exact(From), rabbit_delay_time:exact(To)])};
in_order(Result) ->
    Result.

%% Whether it lets every message pass.
-spec is_empty(filter()) -> boolean().
is_empty(Filter) -> map_size(Filter) =:= 0.

%% The earliest and the latest due time, both included.
-spec due_range(filter()) -> {ms(), ms()}.
due_range(Filter) ->
    {maps:get(due_from, Filter, 0), maps:get(due_to, Filter, ?MAX_MS)}.

%% All that it lets pass has this key, if it is not `none'.
-spec key(filter()) -> rabbit_delay_key:key() | none.
key(Filter) -> maps:get(key, Filter, none).

%% Whether a message has to be read for matches/2.
-spec needs_content(filter()) -> boolean().
needs_content(Filter) ->
    map_size(maps:without([due_from, due_to], Filter)) > 0.

%% Whether a message passes; its due time is the caller's to compare.
-spec matches(filter(), rabbit_delay_broker:message()) -> boolean().
matches(Filter, Message) ->
    {Exchange, Keys} = rabbit_delay_broker:routing(Message),
    case Filter of
        #{routing_key := Key} -> lists:member(Key, Keys);
        _ -> true
    end andalso
    case Filter of
        #{published_to := Exchange} -> true;
        #{published_to := _} -> false;
        _ -> true
    end andalso
    case Filter of
        #{key := Named} ->
            rabbit_delay_key:of_message(rabbit_delay_broker:headers(Message),
                                        rabbit_delay_broker:message_id(Message)) =:= Named;
        _ ->
            true
    end andalso
    case Filter of
        #{header := {Name, Value}} ->
            #{headers := Headers} = rabbit_delay_broker:content(Message),
            lists:any(fun ({N, Type, V}) -> N =:= Name andalso value_text(Type, V) =:= Value end,
                      Headers);
        _ ->
            true
    end.

value_text(_, Value) when is_binary(Value) -> Value;
value_text(_, Value) when is_integer(Value) -> integer_to_binary(Value);
value_text(_, Value) when is_boolean(Value) -> atom_to_binary(Value, utf8);
value_text(_, Value) when is_float(Value) -> text("~p", [Value]);
value_text(void, _) -> <<>>;
value_text(_, _) -> not_comparable.

%% A time: ms since the epoch, RFC 3339 (2027-01-31T12:00:00Z), without a zone that of the machine on
%% which this runs (2027-01-31 12:00:00), or an offset from now (+90m, -1h).
-spec time(binary() | integer(), Now :: ms()) -> {ok, ms()} | {error, Why :: binary()}.
time(Ms, _) when is_integer(Ms) ->
    in_range(Ms, Ms);
time(<<Sign, _/binary>> = Word, Now) when Sign =:= $+; Sign =:= $- ->
    case offset(Word) of
        {ok, Offset} -> in_range(Now + Offset, Word);
        Error -> Error
    end;
time(Word, _) when is_binary(Word), byte_size(Word) > ?MAX_TIME ->
    not_a_time(Word);
time(Word, _) when is_binary(Word) ->
    try
        in_range(binary_to_integer(Word), Word)
    catch
        error:badarg -> written(Word)
    end;
time(Word, _) ->
    {error, text("~ts is not a time", [rabbit_delay_text:value(Word)])}.

written(Word) ->
    case rabbit_delay_time:local(Word) of
        {ok, Ms} ->
            in_range(Ms, Word);
        {error, twice} ->
            {error, text("~ts comes twice, as clocks are put back: say which with a zone, as in "
                         "2027-01-31T12:00:00+01:00", [rabbit_delay_text:value(Word)])};
        {error, no_such_time} ->
            {error, text("there is no ~ts in this machine's time zone", [rabbit_delay_text:value(Word)])};
        {error, not_local} ->
            rfc3339(Word)
    end.

rfc3339(Word) ->
    try
        in_range(calendar:rfc3339_to_system_time(binary_to_list(Word), [{unit, millisecond}]), Word)
    catch
        error:_ -> not_a_time(Word)
    end.

not_a_time(Word) ->
    {error, text("~ts is not a time: ms since the epoch, 2027-01-31 12:00:00, "
                 "2027-01-31T12:00:00Z, or an offset such as +90m", [rabbit_delay_text:value(Word)])}.

in_range(Ms, _) when Ms >= 0, Ms =< ?MAX_MS -> {ok, Ms};
in_range(_, Word) -> {error, text("~ts is out of range: times from 1970 to 10889", [rabbit_delay_text:value(Word)])}.

%% A span of time in ms: an integer, or a string with a sign and a unit.
-spec offset(binary() | integer()) -> {ok, integer()} | {error, Why :: binary()}.
offset(Ms) when is_integer(Ms), abs(Ms) =< ?MAX_MS ->
    {ok, Ms};
offset(Word) when is_binary(Word) ->
    case rabbit_delay_notation:offset(Word) of
        {ok, Ms} when abs(Ms) =< ?MAX_MS ->
            {ok, Ms};
        {ok, _} ->
            {error, text("~ts is out of range: an offset is at most 3257812d", [rabbit_delay_text:value(Word)])};
        error ->
            {error, text("~ts is not an offset such as +90m or -1h (ms, s, m, h, d, w)",
                         [rabbit_delay_text:value(Word)])}
    end;
offset(Ms) when is_integer(Ms) ->
    {error, text("~b is out of range: an offset is at most ~b ms", [Ms, ?MAX_MS])};
offset(Word) ->
    {error, text("~ts is not an offset in ms", [rabbit_delay_text:value(Word)])}.

%% Reads an id as items show it.
-spec id(binary()) -> {ok, rabbit_delay_store:id()} | {error, Why :: binary()}.
id(Word) ->
    case rabbit_delay_notation:number(Word) of
        {ok, Id} when Id =< ?MAX_ID -> {ok, Id};
        _ -> {error, text("~ts is not the id of a message", [rabbit_delay_text:value(Word)])}
    end.

%% In words, for the log.
-spec text(filter()) -> binary().
text(Filter) when map_size(Filter) =:= 0 ->
    <<"all messages">>;
text(Filter) ->
    Value = fun (Text) when is_binary(Text) -> [$', rabbit_delay_text:escaped(Text), $'];
                (Ms) when is_integer(Ms) -> rabbit_delay_time:exact(Ms);
                ({Name, Text}) -> [$', rabbit_delay_text:escaped([Name, $=, Text]), $']
            end,
    iolist_to_binary(["messages with ",
                      lists:join(" and ", [[atom_to_binary(Name, utf8), $\s, Value(Wanted)]
                                           || {Name, Wanted} <- maps:to_list(Filter)])]).

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
