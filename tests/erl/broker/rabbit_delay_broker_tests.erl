%% SPDX-License-Identifier: MPL-2.0

%% Of the adapter for RabbitMQ 3.10, which EUnit's tests run on: what it reads of AMQP 1.0.
-module(rabbit_delay_broker_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").
-include_lib("amqp10_common/include/amqp10_framing.hrl").

-define(ANNOTATIONS, <<"x-amqp-1.0-message-annotations">>).
-define(PROPERTIES, <<"x-amqp-1.0-app-properties">>).

message(Headers) ->
    #basic_message{exchange_name = #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>},
                   routing_keys = [<<"k">>], is_persistent = true, id = <<>>,
                   content = rabbit_basic:build_content(#'P_basic'{headers = Headers}, <<"b">>)}.

annotations(Fields) ->
    section(?ANNOTATIONS, #'v1_0.message_annotations'{
                             content = [{{symbol, Name}, Value} || {Name, Value} <- Fields]}).

properties(Fields) ->
    section(?PROPERTIES, #'v1_0.application_properties'{
                            content = [{{utf8, Name}, Value} || {Name, Value} <- Fields]}).

section(Header, Section) ->
    {Header, longstr, iolist_to_binary(amqp10_framing:encode_bin(Section))}.

due(Headers) ->
    rabbit_delay_header:due(rabbit_delay_broker:headers(message(Headers)), 1700000000000, 1000000, none).

%% An annotation goes before a header, and both before a property; of keys as of times, one not for the
%% other.
what_counts_of_amqp_1_0_test_() ->
    A = annotations([{<<"x-delay">>, {uint, 1}}]),
    P = properties([{<<"x-opt-delivery-delay">>, {long, 2}}, {<<"other">>, {utf8, <<"o">>}}]),
    H = {<<"x-delay">>, long, 3},
    Key = properties([{<<"x-delay-key">>, {utf8, <<"p">>}}, {<<"x-delay">>, {int, 4}}]),
    Of = fun (Headers) ->
                 rabbit_delay_key:asked(rabbit_delay_broker:headers(message(Headers)), undefined)
         end,
    [?_assertEqual({delay, 1}, due([A, P, H])),
     ?_assertEqual({delay, 3}, due([P, H])),
     ?_assertEqual({delay, 2}, due([P])),
     ?_assertEqual({delay, 2}, due([P, annotations([{<<"other">>, {uint, 5}}])])),
     ?_assertEqual({delay, 2}, due([P, {<<"x-delay">>, void, undefined}])),
     ?_assertEqual(none, due([properties([{<<"other">>, {uint, 5}}])])),
     ?_assertEqual({keep, <<"p">>}, Of([Key, A])),
     ?_assertEqual({delay, 1}, due([Key, A])),
     ?_assertEqual({keep, <<"h">>}, Of([Key, {<<"x-delay-key">>, longstr, <<"h">>}])),
     ?_assertEqual({delay, 4}, due([Key, {<<"x-delay-key">>, longstr, <<"h">>}]))].

%% Anyone can write such headers.
what_is_none_of_it_harms_nothing_test_() ->
    [?_assertEqual(none, due([{Header, Type, Value}]))
     || Header <- [?ANNOTATIONS, ?PROPERTIES],
        {Type, Value} <- [{longstr, <<>>}, {longstr, <<0>>}, {longstr, <<255, 254, 0, 83, 116>>},
                          {longstr, <<0, 83, 16#74, 16#d1, 0, 0, 0, 9, 255, 255, 255, 255>>},
                          {long, 5}, {void, undefined}, {array, [{long, 5}]},
                          {longstr, iolist_to_binary(amqp10_framing:encode_bin(
                                                       #'v1_0.header'{durable = true}))}]].

%% Sent again as it came it is not delayed again, whatever it was delayed by.
what_has_been_delayed_says_so_test_() ->
    [fun () ->
             {delay, _} = due(Headers),
             #basic_message{content = Content} = rabbit_delay_broker:released(message(Headers)),
             Released = rabbit_basic:extract_headers(Content),
             ?assertEqual(now, due(Released)),
             ?assertEqual(lists:keyfind(?PROPERTIES, 1, Headers),
                          lists:keyfind(?PROPERTIES, 1, Released))
     end
     || Headers <- [[annotations([{<<"x-delay">>, {uint, 5}}, {<<"other">>, {utf8, <<"o">>}}])],
                    [properties([{<<"x-delay">>, {long, 5}}])],
                    [properties([{<<"x-delay">>, {utf8, <<"5">>}}])],
                    [properties([{<<"x-opt-delivery-delay">>, {ulong, 5}}, {<<"x-delay">>, {int, 7}}])],
                    [properties([{<<"x-delay">>, {long, 5}}]),
                     annotations([{<<"other">>, {utf8, <<"o">>}}])],
                    [{<<"x-delay">>, long, 5}, properties([{<<"x-delay">>, {long, 6}}])]]].
