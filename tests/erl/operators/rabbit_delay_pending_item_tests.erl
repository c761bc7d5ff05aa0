%% SPDX-License-Identifier: MPL-2.0

%% What operators see of a message, on RabbitMQ 3.10.
-module(rabbit_delay_pending_item_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").

-define(I, rabbit_delay_pending_item).

bare_test() ->
    ?assertEqual(#{id => <<"65537">>, due => 17, size => 9}, ?I:bare({17, 65537, 9})).

%% What is text goes as text, what is not as base64, wherever it stands.
described_test() ->
    Headers = [{<<"text">>, longstr, <<"caf\x{c3}\x{a9}">>}, {<<"bytes">>, binary, <<255, 0>>},
               {<<254>>, long, 7}, {<<"none">>, void, undefined}, {<<"half">>, decimal, {1, 5}},
               {<<"yes">>, bool, true}, {<<"x-delay-key">>, longstr, <<"k">>},
               {<<"deep">>, table, [{<<"list">>, array, [{long, 1}, {longstr, <<253>>}]}]}],
    #{payload_bytes := 3, exchange := <<"x">>, routing_key := #{base64 := <<"/w==">>},
      routing_keys := [#{base64 := <<"/w==">>}, <<"cc">>], key := <<"k">>, properties := Properties,
      headers := Shown} = Item = ?I:described(message([<<255>>, <<"cc">>], Headers, <<"abc">>), #{}),
    ?assertEqual(#{<<"text">> => <<"caf\x{c3}\x{a9}">>, <<"bytes">> => #{base64 => <<"/wA=">>},
                   <<"base64:/g==">> => 7, <<"none">> => null, <<"half">> => <<"5e-1">>,
                   <<"yes">> => true, <<"x-delay-key">> => <<"k">>,
                   <<"deep">> => #{<<"list">> => [1, #{base64 => <<"/Q==">>}]}}, Shown),
    ?assertEqual(#{message_id => #{base64 => <<"/w==">>}}, Properties),
    ?assertNot(is_map_key(payload, Item)),
    {ok, _} = rabbit_json:try_decode(rabbit_json:encode(Item)).

body_test_() ->
    [?_assertEqual({Payload, Encoding, Truncated, byte_size(Body)},
                   begin
                       #{payload := P, payload_encoding := E, truncated := T, payload_bytes := N} =
                           ?I:described(message([<<"k">>], [], Body), #{body => Most}),
                       {P, E, T, N}
                   end)
     || {Payload, Encoding, Truncated, Body, Most} <-
            [{<<"abc">>, string, false, <<"abc">>, 3}, {<<"ab">>, string, true, <<"abc">>, 2},
             {<<>>, string, true, <<"abc">>, 0}, {<<>>, string, false, <<>>, 0},
             {<<"/w==">>, base64, false, <<255>>, 100},
             %% cut within a character
             {<<"ww==">>, base64, true, <<"\x{c3}\x{a9}">>, 1}]].

%% What is kept for a page keeps no record, and no whole body.
refers_to_nothing_else_test() ->
    Large = binary:copy(<<"x">>, 1000000),
    <<Text:300/binary, _/binary>> = Large,
    Item = ?I:described(message([Text], [{<<"h">>, longstr, Text}], Large), #{body => 300}),
    #{payload := Payload, routing_keys := [Key], headers := #{<<"h">> := Header}} = Item,
    [?assertEqual({300, 300}, {byte_size(Kept), binary:referenced_byte_size(Kept)})
     || Kept <- [Payload, Key, Header]].

message(Keys, Headers, Body) ->
    Properties = #'P_basic'{headers = Headers, message_id = <<255>>},
    #basic_message{exchange_name = #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>},
                   routing_keys = Keys, is_persistent = true, id = <<>>,
                   content = rabbit_basic:build_content(Properties, Body)}.
