%% SPDX-License-Identifier: MPL-2.0

%% Names and values that users chose, as text for logs, terminals, errors and answers: valid UTF-8, and
%% on one line, with nothing in it that a terminal would act on or that would look like another line
%% of a log. Of bytes that are not UTF-8 each is taken for a character of Latin 1.
%%
%% Pure functions, in the broker and in rabbitmqctl.
-module(rabbit_delay_text).

-export([printable/1, escaped/1, value/1, setting/1, reply/1, rs/1, exchange/1, count/2, reason/1]).

-type chars() :: unicode:chardata().

%% How much is told of a value.
-define(SHOWN_CHARS, 80).

%% Of the 255 bytes that AMQP 0-9-1 has for an error's text the broker puts the error's name before
%% ours, and a longer one closes the connection on some series.
-define(REPLY_BYTES, 230).

%% Valid UTF-8, whatever it was.
-spec printable(chars()) -> binary().
printable(Text) when is_binary(Text) ->
    case unicode:characters_to_binary(Text) of
        Text -> Text;
        _ -> unicode:characters_to_binary(Text, latin1)
    end;
printable(Text) when is_list(Text) ->
    try unicode:characters_to_binary(Text) of
        Valid when is_binary(Valid) -> Valid;
        _ -> parts(Text)
    catch
        error:badarg -> parts(Text)
    end.

parts([]) -> <<>>;
parts(Text) when is_binary(Text) -> printable(Text);
parts(Char) when is_integer(Char) -> unicode:characters_to_binary([Char]);
parts([Part | Rest]) -> <<(parts(Part))/binary, (parts(Rest))/binary>>.

%% The same, with control characters, the separators of lines, and what changes the direction of
%% text, as \uXXXX.
-spec escaped(chars()) -> binary().
escaped(Text) ->
    Printable = printable(Text),
    case is_plain(Printable) of
        true -> Printable;
        false -> << <<(escape(C))/binary>> || <<C/utf8>> <= Printable >>
    end.

is_plain(<<C, Rest/binary>>) when C >= 32, C < 127 -> is_plain(Rest);
is_plain(<<>>) -> true;
is_plain(_) -> false.

escape(C) when C < 32; C >= 127, C < 160; C >= 16#2028, C =< 16#202e; C >= 16#2066, C =< 16#2069 ->
    units(C);
escape(C) ->
    <<C/utf8>>.

%% As JSON writes it: beyond 16#ffff there are two.
units(C) -> iolist_to_binary([io_lib:format("\\u~4.16.0b", [Unit]) || <<Unit:16>> <= <<C/utf16>>]).

%% A value, of JSON or of an AMQP table, as one would write it, cut; of what has parts, what it is.
-spec value(term()) -> binary().
value(Value) ->
    cut(escaped(written(Value))).

%% The same of an argument or a policy: the ways on which the broker tells of these garble what is not
%% ASCII, or fail.
-spec setting(term()) -> binary().
setting(Value) ->
    cut(<< <<(ascii(C))/binary>> || <<C/utf8>> <= escaped(written(Value)) >>).

ascii(C) when C < 127 -> <<C>>;
ascii(C) -> units(C).

%% By characters: what reads as one can be a letter with any number of accents.
cut(Text) ->
    case {after_chars(Text, ?SHOWN_CHARS), after_chars(Text, ?SHOWN_CHARS - 3)} of
        {<<>>, _} -> Text;
        {_, Rest} -> <<(binary:part(Text, 0, byte_size(Text) - byte_size(Rest)))/binary, "...">>
    end.

after_chars(<<_/utf8, Rest/binary>>, N) when N > 0 -> after_chars(Rest, N - 1);
after_chars(Rest, _) -> Rest.

written(Text) when is_binary(Text) -> [$", Text, $"];
written(Value) when is_integer(Value) -> integer_to_list(Value);
written(Value) when is_float(Value) -> io_lib:format("~w", [Value]);
written(Value) when is_boolean(Value) -> atom_to_list(Value);
written(Value) when Value =:= undefined; Value =:= null -> "null";
written({Places, Number}) -> [integer_to_list(Number), "e-", integer_to_list(Places)];
written(Map) when is_map(Map) -> "an object";
written([{_, _, _} | _]) -> "a table";
written(_) -> "a list".

%% The text of an AMQP 0-9-1 error, cut between two characters.
-spec reply(chars()) -> binary().
reply(Text) ->
    case escaped(Text) of
        <<Start:(?REPLY_BYTES - 3)/binary, Rest/binary>> when byte_size(Rest) > 3 ->
            case unicode:characters_to_binary(Start) of
                {incomplete, Whole, _} -> <<Whole/binary, "...">>;
                Start -> <<Start/binary, "...">>
            end;
        Short ->
            Short
    end.

%% What rabbit_misc:rs/1 says of a queue, an exchange and so on; the default exchange has a name there.
-spec rs(rabbit_types:r(atom())) -> binary().
rs({resource, VHost, exchange, Name}) ->
    rs(<<"exchange">>, exchange(Name), VHost);
rs({resource, VHost, Kind, Name}) ->
    rs(atom_to_binary(Kind, utf8), escaped(Name), VHost).

rs(Kind, Name, VHost) ->
    <<Kind/binary, " '", Name/binary, "' in vhost '", (escaped(VHost))/binary, "'">>.

%% An exchange's name as permissions have it.
-spec exchange(Name :: binary()) -> binary().
exchange(<<>>) -> <<"amq.default">>;
exchange(Name) -> escaped(Name).

%% 1 message, 2 messages
-spec count(non_neg_integer(), string()) -> string().
count(1, What) -> "1 " ++ What;
count(N, What) -> integer_to_list(N) ++ " " ++ What ++ "s".

%% Why something failed, where that is an error of the system or of a call to another node; a term is
%% shown only where there is nothing else.
-spec reason(term()) -> binary().
reason({Kind, Errno}) when Kind =:= eio; Kind =:= enospc; Kind =:= eacces -> reason(Errno);
reason(timeout) -> <<"it did not answer in time">>;
reason(noconnection) -> <<"it cannot be reached">>;
reason(eclosed) -> <<"it is closed">>;
reason(Errno) when is_atom(Errno) ->
    case file:format_error(Errno) of
        "unknown POSIX error" ++ _ -> atom_to_binary(Errno, utf8);
        Text -> list_to_binary(Text)
    end;
reason(Reason) -> printable(io_lib:format("~0P", [Reason, 20])).
