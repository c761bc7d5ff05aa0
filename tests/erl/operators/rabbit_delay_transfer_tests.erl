%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_transfer_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").

%% Any message that a broker can hold comes back from its line as it was.
there_and_back_test_() ->
    {timeout, 1200, ?_assert(proper:quickcheck(there_and_back(), [{numtests, 1000}, quiet]))}.

there_and_back() ->
    ?FORALL({X, Due, Keys, Headers, Payload, Priority, Id},
            {short(), range(0, 16#ffffffffffff), non_empty(list(short())), headers(3), binary(),
             range(0, 255), short()},
            begin
                Line = rabbit_delay_transfer:line(
                         X, Due, #{exchange => <<"other">>, routing_keys => Keys,
                                   properties => [{priority, Priority}, {message_id, Id}],
                                   headers => Headers, payload => [Payload]}),
                {ok, #{exchange := X1, due := Due1, keys := Keys1, payload := Payload1,
                       properties := Properties}} = rabbit_delay_transfer:parse(Line),
                {X1, Due1, Keys1, Payload1} =:= {X, Due, Keys, Payload}
                    andalso Properties =:= #'P_basic'{headers = Headers, priority = Priority,
                                                      message_id = Id}
                    andalso binary:match(Line, <<"\n">>) =:= nomatch
            end).

short() -> ?SUCHTHAT(Text, oneof([binary(), <<"key">>, <<"\n">>, <<255>>]), byte_size(Text) < 256).

headers(Depth) -> list(?LET({Name, {Type, Value}}, {short(), typed(Depth)}, {Name, Type, Value})).

typed(Depth) ->
    oneof([{longstr, binary()}, {binary, binary()}, {signedint, range(-(1 bsl 31), (1 bsl 31) - 1)},
           {long, range(-(1 bsl 63), (1 bsl 63) - 1)}, {byte, range(-128, 127)},
           {short, range(-32768, 32767)}, {unsignedbyte, range(0, 255)},
           {unsignedshort, range(0, 65535)}, {unsignedint, range(0, (1 bsl 32) - 1)},
           {timestamp, range(0, (1 bsl 64) - 1)}, {bool, boolean()}, {void, undefined},
           {double, float()}, {decimal, {range(0, 255), range(0, (1 bsl 32) - 1)}} |
           case Depth of
               0 -> [];
               _ -> [{table, headers(Depth - 1)}, {array, list(typed(Depth - 1))}]
           end]).

%% What is no such line is refused and does nothing worse.
any_line_test_() ->
    {timeout, 1200,
     ?_assert(proper:quickcheck(
                ?FORALL(Object, forged(),
                        begin
                            {Result, _} = rabbit_delay_transfer:parse(
                                            iolist_to_binary(rabbit_json:encode(Object))),
                            Result =:= error orelse Result =:= ok
                        end), [{numtests, 2000}, quiet]))}.

forged() ->
    ?LET(Fields, list({oneof([<<"exchange">>, <<"due">>, <<"routing_keys">>, <<"properties">>,
                              <<"headers">>, <<"body">>, <<"format">>, <<"retry">>]), json(3)}),
         maps:merge(#{<<"format">> => 1 + length(Fields) rem 2, <<"retry">> => true,
                      <<"exchange">> => <<"x">>, <<"due">> => 1, <<"routing_keys">> => [<<"k">>], <<"properties">> => #{},
                      <<"headers">> => [], <<"body">> => <<>>}, maps:from_list(Fields))).

json(0) ->
    oneof([null, true, integer(), <<"text">>, <<"longstr">>, <<"table">>, <<"YQ==">>]);
json(Depth) ->
    oneof([json(0), list(json(Depth - 1)), [[<<"a">>, <<"array">>, json(Depth - 1)]],
           [[<<"x-death">>, <<"array">>, list([<<"table">>, json(0)])]],
           ?LET({Key, Value}, {oneof([<<"base64">>, <<"priority">>]), json(Depth - 1)},
                #{Key => Value})]).
