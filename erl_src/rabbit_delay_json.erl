%% SPDX-License-Identifier: MPL-2.0

%% The body of a request, a JSON object. It is read by the grammar of RFC 8259 before the broker's decoder gets it:
%% that is not the same on each series, and can take comments, quotes and commas besides, of which it makes what it
%% likes, and of a number as many digits as there are, for which it can need minutes.
%%
%% Pure functions, in the process of the request.
-module(rabbit_delay_json).

-export([object/1]).

%% Of arrays and objects in each other.
-define(MAX_DEPTH, 100).
%% Of one number, as it is written.
-define(MAX_DIGITS, 1000).

-define(IS_DIGIT(C), C >= $0, C =< $9).
-define(IS_HEX(C), (C >= $0 andalso C =< $9 orelse C >= $a andalso C =< $f orelse C >= $A andalso C =< $F)).

%% A name that an object has twice is refused: which of its values counts would be the decoder's choice, and for whoever
%% reads the request another one.
-spec object(binary()) -> {ok, map()} | {error, Why :: binary()}.
object(Text) ->
    try
        ok = document(Text),
        decoded(Text)
    catch
        throw:{refused, Why} -> {error, Why}
    end.

document(Text) ->
    %% Some decoders take bytes that are not UTF-8.
    case unicode:characters_to_binary(Text) of
        Text -> ok;
        _ -> no_json()
    end,
    case value(Text, 0) of
        <<>> -> ok;
        _ -> no_json()
    end.

decoded(Text) ->
    case rabbit_json:try_decode(Text) of
        {ok, Json} when is_map(Json) -> {ok, Json};
        {ok, _} -> {error, <<"the request's body is not a JSON object">>};
        %% Such as a number that no float can be.
        {error, _} -> no_json()
    end.

-spec no_json() -> no_return().
no_json() -> refuse(<<"the request's body is not JSON">>).

-spec refuse(binary()) -> no_return().
refuse(Why) -> throw({refused, Why}).

%% What comes after a value, and after the blanks behind it.
value(Text, Depth) ->
    blank(case blank(Text) of
              <<$", Rest/binary>> -> string(Rest);
              <<${, Rest/binary>> -> first_member(blank(Rest), deeper(Depth));
              <<$[, Rest/binary>> -> first_element(blank(Rest), deeper(Depth));
              <<"true", Rest/binary>> -> Rest;
              <<"false", Rest/binary>> -> Rest;
              <<"null", Rest/binary>> -> Rest;
              Other -> number(Other)
          end).

%% Not by string:trim/3, for which the two characters that end a line are one.
blank(<<C, Rest/binary>>) when C =:= $\s; C =:= $\t; C =:= $\r; C =:= $\n -> blank(Rest);
blank(Rest) -> Rest.

deeper(?MAX_DEPTH) ->
    refuse(text("the request's body has more than ~b arrays and objects in each other", [?MAX_DEPTH]));
deeper(Depth) ->
    Depth + 1.

first_member(<<$}, Rest/binary>>, _) -> Rest;
first_member(Text, Depth) -> a_member(Text, Depth, #{}).

a_member(<<$", Text/binary>>, Depth, Names) ->
    Rest = string(Text),
    Name = name(binary:part(Text, 0, byte_size(Text) - byte_size(Rest) - 1)),
    _ = is_map_key(Name, Names) andalso refuse(text("~ts is there twice", [rabbit_delay_text:value(Name)])),
    case blank(Rest) of
        <<$:, Value/binary>> ->
            case value(Value, Depth) of
                <<$,, Next/binary>> -> a_member(blank(Next), Depth, Names#{Name => true});
                <<$}, Next/binary>> -> Next;
                _ -> no_json()
            end;
        _ ->
            no_json()
    end;
a_member(_, _, _) ->
    no_json().

name(Written) ->
    case binary:match(Written, <<$\\>>) of
        nomatch ->
            Written;
        _ ->
            case rabbit_json:try_decode(<<"[\"", Written/binary, "\"]">>) of
                {ok, [Name]} -> Name;
                {error, _} -> no_json()
            end
    end.

first_element(<<$], Rest/binary>>, _) -> Rest;
first_element(Text, Depth) -> an_element(Text, Depth).

an_element(Text, Depth) ->
    case value(Text, Depth) of
        <<$,, Next/binary>> -> an_element(Next, Depth);
        <<$], Next/binary>> -> Next;
        _ -> no_json()
    end.

string(<<$", Rest/binary>>) -> Rest;
string(<<$\\, $u, A, B, C, D, Rest/binary>>) when ?IS_HEX(A), ?IS_HEX(B), ?IS_HEX(C), ?IS_HEX(D) -> string(Rest);
string(<<$\\, C, Rest/binary>>) when C =:= $"; C =:= $\\; C =:= $/; C =:= $b; C =:= $f; C =:= $n; C =:= $r; C =:= $t ->
    string(Rest);
string(<<C, Rest/binary>>) when C >= $\s, C =/= $\\ -> string(Rest);
string(_) -> no_json().

number(Text) ->
    Rest = exponent(fraction(whole(case Text of
                                       <<$-, Digits/binary>> -> Digits;
                                       _ -> Text
                                   end))),
    case byte_size(Text) - byte_size(Rest) =< ?MAX_DIGITS of
        true -> Rest;
        false -> refuse(text("a number in the request's body has more than ~b characters", [?MAX_DIGITS]))
    end.

whole(<<$0, Rest/binary>>) -> Rest;
whole(Text) -> digits(Text).

fraction(<<$., Text/binary>>) -> digits(Text);
fraction(Rest) -> Rest.

exponent(<<E, Sign, Text/binary>>) when E =:= $e orelse E =:= $E, Sign =:= $+ orelse Sign =:= $- -> digits(Text);
exponent(<<E, Text/binary>>) when E =:= $e; E =:= $E -> digits(Text);
exponent(Rest) -> Rest.

digits(<<C, Rest/binary>>) when ?IS_DIGIT(C) -> more_digits(Rest);
digits(_) -> no_json().

more_digits(<<C, Rest/binary>>) when ?IS_DIGIT(C) -> more_digits(Rest);
more_digits(Rest) -> Rest.

text(Format, Args) ->
    rabbit_delay_text:printable(io_lib:format(Format, Args)).
