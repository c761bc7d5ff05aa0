%% SPDX-License-Identifier: MPL-2.0

%% Definitions files as they are found: in the encoding that an editor or a shell gave them, with what a
%% command printed around them, or as the Erlang term that rabbitmqctl can export.
%%
%% Pure functions, in the process that asks.
-module(rabbit_delay_definitions).

-export([decode/2]).

%% What the file's JSON is.
-spec decode(binary(), MaxBytes :: pos_integer()) -> {ok, term()} | error.
decode(<<131, 80, Size:32, _/binary>>, MaxBytes) when Size > MaxBytes ->
    error;
decode(<<131, _/binary>> = Bytes, _) ->
    %% Its keys are atoms that RabbitMQ has, or none; it makes none here.
    try rabbit_json:try_decode(iolist_to_binary(rabbit_json:encode(binary_to_term(Bytes, [safe])))) of
        {ok, Json} -> {ok, Json};
        {error, _} -> error
    catch
        error:_ -> error
    end;
decode(Bytes, _) ->
    Text = utf8(Bytes),
    case rabbit_json:try_decode(Text) of
        {ok, Json} ->
            {ok, Json};
        {error, _} ->
            case within(Text) of
                Text -> error;
                Json -> decoded(Json)
            end
    end.

decoded(Text) ->
    case rabbit_json:try_decode(Text) of
        {ok, Json} -> {ok, Json};
        {error, _} -> error
    end.

%% From the first brace to the last.
within(Text) ->
    case {binary:match(Text, <<"{">>), re:run(Text, "}[^}]*$", [{capture, first, index}])} of
        {{First, _}, {match, [{Last, _}]}} when Last > First ->
            binary:part(Text, First, Last - First + 1);
        _ ->
            Text
    end.

%% A byte-order mark says which encoding it is; without one, the first character does, which is one of
%% ASCII. What is not UTF-8 otherwise is taken for Latin-1.
utf8(Bytes) ->
    {Encoding, Text} = case unicode:bom_to_encoding(Bytes) of
                           {latin1, 0} -> {guessed(Bytes), Bytes};
                           {Marked, Size} -> {Marked, binary:part(Bytes, Size, byte_size(Bytes) - Size)}
                       end,
    case unicode:characters_to_binary(Text, Encoding) of
        Utf8 when is_binary(Utf8) -> Utf8;
        _ when Encoding =:= utf8 -> unicode:characters_to_binary(Text, latin1);
        %% Cut off.
        {_, Utf8, _} -> Utf8
    end.

guessed(<<0, 0, 0, C, _/binary>>) when C > 0 -> {utf32, big};
guessed(<<C, 0, 0, 0, _/binary>>) when C > 0 -> {utf32, little};
guessed(<<0, C, _/binary>>) when C > 0 -> {utf16, big};
guessed(<<C, 0, D, _/binary>>) when C > 0, D > 0 -> {utf16, little};
guessed(_) -> utf8.
