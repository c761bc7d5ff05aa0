%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_cli_tests).

-include_lib("eunit/include/eunit.hrl").

-define(UNAVAILABLE, 69).
-define(SUM, #{examined => 9, matched => 8, changed => 7, in_flight => 1}).
-define(REQUEST, #{by => <<"rabbitmqctl">>, dry_run => false, cursor => <<"CURSOR">>}).

%% What was ended says how to go on, whoever ended it: what is moved by a span must not be met again.
stopped_test_() ->
    [?_assertEqual({Operation, Failure, ?UNAVAILABLE, Text},
                   begin
                       {error, Code, Said} = rabbit_delay_cli:stopped(Failure, ?SUM, Operation, ?REQUEST),
                       {Operation, Failure, Code, iolist_to_binary(Said)}
                   end)
     || {Failure, Why} <- [{{error, ?UNAVAILABLE, <<"no leader">>}, <<"no leader">>},
                           {{error, {badrpc, timeout}}, <<"the broker did not answer in time (--timeout)">>},
                           {{error, {badrpc, nodedown}}, <<"the broker went away">>}],
        {Operation, Text} <- [{{reschedule_by, 1000},
                               <<Why/binary, "\n7 messages rescheduled so far: go on with --cursor CURSOR">>},
                              {cancel, <<Why/binary, "\n7 messages cancelled so far: run it again to go on">>}]].

nothing_was_done_test() ->
    Failure = {error, {badrpc, nodedown}},
    ?assertEqual(Failure, rabbit_delay_cli:stopped(Failure, ?SUM#{changed := 0}, cancel, ?REQUEST)).
