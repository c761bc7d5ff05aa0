%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_connection_tests).

-include_lib("eunit/include/eunit.hrl").

%% As amqp_client ends calls, channels and connections.
ended_test_() ->
    Close = {server_initiated_close, 405, <<"RESOURCE_LOCKED - cannot obtain it">>},
    [?_assertEqual(Text, rabbit_delay_connection:ended(Reason))
     || {Text, Reason} <-
            [{<<"405 RESOURCE_LOCKED - cannot obtain it">>, Reason}
             || Reason <- [{{shutdown, Close}, {gen_server, call, [self(), x, infinity]}}, {shutdown, Close},
                           {shutdown, {connection_closing, Close}}]] ++
            [{<<"the connection was closed">>, Reason}
             || Reason <- [normal, noproc, {noproc, {gen_server, call, [self(), x]}}, killed]] ++
            [{<<"it did not answer in time">>, {timeout, {gen_server, call, [self(), x]}}},
             {<<"{odd,1}">>, {odd, 1}},
             %% Names in it are as somebody chose them.
             {<<"404 no queue 'a\\u001b'">>, {server_initiated_close, 404, <<"no queue 'a\e'">>}}]].
