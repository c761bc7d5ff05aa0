%% SPDX-License-Identifier: MPL-2.0

%% Numbers, spans of time and sizes as people write them, the same wherever the plugin takes them. Pure
%% functions; the words in which something is refused are the caller's.
-module(rabbit_delay_notation).

-export([number/1, offset/1, interval/1, seconds/1, size/1]).

%% A number as integer_to_binary/1 writes it, not negative.
-spec number(binary()) -> {ok, non_neg_integer()} | error.
number(Word) when byte_size(Word) =< 20 ->
    try binary_to_integer(Word) of
        N when N >= 0 ->
            case integer_to_binary(N) of
                Word -> {ok, N};
                _ -> error
            end;
        _ ->
            error
    catch
        error:badarg -> error
    end;
number(_) ->
    error.

%% In ms, as operators say how far from now or how much later: an interval, with a sign or without.
-spec offset(binary()) -> {ok, integer()} | error.
offset(Word) ->
    case re:run(Word, "^\\s*([+-]?)([0-9]{1,15})\\s*(ms|s|m|h|d|w|)\\s*$", [{capture, all_but_first, binary}]) of
        {match, [<<"-">>, Digits, Unit]} -> {ok, -ms(Digits, Unit)};
        {match, [_, Digits, Unit]} -> {ok, ms(Digits, Unit)};
        nomatch -> error
    end.

%% In ms: digits and a unit (ms, s, m, h, d, w; ms if there is none), with blanks around them or without.
-spec interval(binary()) -> {ok, non_neg_integer()} | error.
interval(Text) ->
    case re:run(Text, "^\\s*([0-9]{1,15})\\s*(ms|s|m|h|d|w|)\\s*$", [{capture, [1, 2], binary}]) of
        {match, [Digits, Unit]} -> {ok, ms(Digits, Unit)};
        nomatch -> error
    end.

%% An age, in s: an interval, but that a plain number is in s.
-spec seconds(binary()) -> {ok, non_neg_integer()} | error.
seconds(Text) ->
    case {number(Text), interval(Text)} of
        {{ok, Seconds}, _} -> {ok, Seconds};
        {error, {ok, Ms}} -> {ok, Ms div 1000};
        _ -> error
    end.

%% In bytes: digits and a unit (kB, MB, GB, TB, in either case and with or without its B; 1024 times as
%% much each; bytes if there is none).
-spec size(binary()) -> {ok, non_neg_integer()} | error.
size(Text) ->
    case re:run(Text, "^\\s*([0-9]{1,15})\\s*([kmgt]?)(?:(?<=[a-z])i)?b?\\s*$",
                [caseless, {capture, [1, 2], binary}]) of
        {match, [Digits, Unit]} ->
            {ok, binary_to_integer(Digits) bsl (10 * thousands(string:lowercase(Unit)))};
        nomatch ->
            error
    end.

thousands(<<>>) -> 0;
thousands(<<"k">>) -> 1;
thousands(<<"m">>) -> 2;
thousands(<<"g">>) -> 3;
thousands(<<"t">>) -> 4.

ms(Digits, Unit) ->
    binary_to_integer(Digits) * unit(Unit).

unit(<<"s">>) -> 1000;
unit(<<"m">>) -> 60000;
unit(<<"h">>) -> 3600000;
unit(<<"d">>) -> 86400000;
unit(<<"w">>) -> 604800000;
unit(_) -> 1.
