%% SPDX-License-Identifier: MPL-2.0

%% The numbers that stored messages are read by, on RabbitMQ 3.10.
-module(rabbit_delay_formats_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").

-define(B, rabbit_delay_broker).
-define(RETRIED, 16#8000).

number_test_() ->
    {Number, Body} = ?B:encode(message()),
    [{"says the encoding and the series", ?_assertEqual(16#0101, Number)},
     [{"is read: " ++ Title, ?_assertMatch({ok, #basic_message{}}, ?B:decode(N, Body))}
      || {Title, N} <- [{"as written", Number}, {"by 0.1", 1}, {"a dead letter", Number + ?RETRIED},
                        {"a dead letter by 0.1", 1 + ?RETRIED},
                        {"marked", rabbit_delay_retry:mark(Number)}]],
     [{"is not tried: " ++ Title,
       ?_assertEqual({error, {unknown_encoding, Encoding, Series}}, ?B:decode(N, Body))}
      || {Title, N, Encoding, Series} <-
             [{"another encoding", 2, 2, 0}, {"none", 0, 0, 0}, {"of a later series", 16#0201, 1, 2},
              {"of a much later one", 16#7f01, 1, 16#7f}, {"both", 16#0202, 2, 2},
              {"a dead letter of a later series", 16#8201, 1, 2},
              {"an encoding of many bits", 16#00ff, 255, 0}]],
     {"damage is no later version",
      ?_assertEqual({error, not_a_term}, ?B:decode(Number, <<1, 2, 3>>))},
     {"another term is none of ours",
      ?_assertEqual({error, not_a_message}, ?B:decode(Number, term_to_binary(x)))}].

message() ->
    #basic_message{exchange_name = #resource{virtual_host = <<"/">>, kind = exchange,
                                             name = <<"x">>},
                   routing_keys = [<<"k">>], is_persistent = true, id = <<>>,
                   content = rabbit_basic:build_content(#'P_basic'{headers = []}, <<"body">>)}.
