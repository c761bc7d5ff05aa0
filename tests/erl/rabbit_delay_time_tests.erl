%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_time_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(T, rabbit_delay_time).
-define(MAX_MS, 16#ffffffffffff).

span_test_() ->
    [?_assertEqual(Text, ?T:span(Ms))
     || {Ms, Text} <- [{0, <<"0s">>}, {999, <<"0s">>}, {59999, <<"59s">>}, {60000, <<"1m">>},
                       {3599999, <<"59m">>}, {3600000, <<"1h">>}, {12060000, <<"3h 21m">>},
                       {86399999, <<"23h 59m">>}, {86400000, <<"1d">>}, {93600000, <<"1d 2h">>}]].

utc_test_() ->
    [?_assertEqual(Text, ?T:utc(Ms))
     || {Ms, Text} <- [{0, <<"1970-01-01T00:00:00Z">>}, {1896091200250, <<"2030-01-31T12:00:00Z">>}]].

exact_test_() ->
    [?_assertEqual(Text, ?T:exact(Ms))
     || {Ms, Text} <- [{0, <<"1970-01-01T00:00:00.000Z">>}, {1896091200250, <<"2030-01-31T12:00:00.250Z">>},
                       {253402300799999, <<"9999-12-31T23:59:59.999Z">>},
                       {253402300800000, <<"253402300800000">>}]].

from_now_test_() ->
    [?_assertMatch({match, _}, re:run(?T:shown(Now + Ms, Now), ["^[-0-9]{10} [:0-9]{8} \\(", Text, "\\)$"]))
     || Now <- [1896091200000],
        {Ms, Text} <- [{0, "now"}, {999, "now"}, {-999, "now"}, {1000, "in 1s"}, {2760000, "in 46m"},
                       {-12060000, "3h 21m ago"}]].

%% What is shown is read as the same second, in whatever zone this runs; but in the hour that comes twice
%% a year it is asked for the zone.
shown_is_read_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL(Ms, oneof([range(0, ?MAX_MS), range(1700000000000, 1900000000000)]),
                        begin
                            <<Local:19/binary, _/binary>> = ?T:shown(Ms, 0),
                            Year = binary_to_integer(hd(binary:split(Local, <<"-">>))),
                            case ?T:local(Local) of
                                {ok, Read} -> Read =:= Ms div 1000 * 1000;
                                {error, twice} -> true;
                                {error, _} -> Year > 9999
                            end
                        end), [{numtests, 500}, quiet]))}.

local_test_() ->
    [?_assertMatch({ok, _}, ?T:local(Word))
     || Word <- [<<"2030-01-31 12:00:00">>, <<"2030-01-31T12:00:00">>, <<"2030-01-31 12:00">>]]
        ++ [?_assertEqual(?T:local(<<"2030-01-31 12:00:00">>), ?T:local(<<"2030-01-31T12:00">>))]
        ++ [?_assertEqual({error, not_local}, ?T:local(Word))
            || Word <- [<<>>, <<"2030-01-31">>, <<"2030-01-31 12">>, <<"2030-01-31 12:00:00Z">>,
                        <<"2030-01-31 12:00:00\n">>, <<255>>]]
        ++ [?_assertEqual({error, no_such_time}, ?T:local(Word))
            || Word <- [<<"2030-02-30 12:00:00">>, <<"2030-13-01 12:00:00">>, <<"2030-01-31 24:00:00">>,
                        <<"2030-01-31 12:60:00">>, <<"2030-01-31 12:00:60">>]].
