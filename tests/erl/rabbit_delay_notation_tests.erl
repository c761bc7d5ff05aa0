%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_notation_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(N, rabbit_delay_notation).

%% What is written as Erlang writes it is that number, and nothing else is a number.
number_test_() ->
    [{timeout, 600,
      ?_assert(proper:quickcheck(
                 ?FORALL(N, oneof([range(0, (1 bsl 64) - 1), range(0, 100)]),
                         {ok, N} =:= ?N:number(integer_to_binary(N))), [{numtests, 500}, quiet]))},
     [?_assertEqual(error, ?N:number(Word))
      || Word <- [<<>>, <<"-1">>, <<"+1">>, <<"01">>, <<"00">>, <<" 1">>, <<"1 ">>, <<"1\n">>, <<"1.0">>,
                  <<"1e3">>, <<"0x1">>, <<"one">>, <<255>>, <<"123456789012345678901">>,
                  binary:copy(<<"1">>, 100000)]]].

%% A span of time is the same wherever it is written.
both_test_() ->
    [?_assertEqual({{ok, Ms}, {ok, Ms}}, {?N:offset(Word), ?N:interval(Word)})
     || {Ms, Word} <- [{0, <<"0">>}, {5, <<"5">>}, {5, <<"5ms">>}, {5000, <<"5s">>}, {60000, <<"1m">>},
                       {7200000, <<"2h">>}, {86400000, <<"1d">>}, {1, <<"01">>},
                       {604800000, <<"1w">>}, {5000, <<" 5 s ">>}, {5, <<"5\n">>}, {60000, <<"\t1\tm">>},
                       {999999999999999 * 86400000, <<"999999999999999d">>}]].

%% What has a sign is no length.
offset_only_test_() ->
    [?_assertEqual({{ok, Ms}, error}, {?N:offset(Word), ?N:interval(Word)})
     || {Ms, Word} <- [{-5000, <<"-5s">>}, {90000, <<"+90s">>}, {0, <<"-0">>}]].

seconds_test_() ->
    [?_assertEqual(Wanted, ?N:seconds(Word))
     || {Wanted, Word} <- [{{ok, 90}, <<"90">>}, {{ok, 90}, <<"90s">>}, {{ok, 600}, <<"10m">>},
                           {{ok, 604800}, <<"1w">>}, {{ok, 1}, <<"1999ms">>}, {error, <<"-1">>}, {error, <<"1y">>},
                           {error, <<>>}]].

size_test_() ->
    [?_assertEqual({ok, Bytes}, ?N:size(Word))
     || {Bytes, Word} <- [{0, <<"0">>}, {12, <<"12">>}, {12, <<"12B">>}, {2048, <<"2kB">>}, {2048, <<"2KB">>},
                          {2048, <<"2 k">>}, {2048, <<"2KiB">>}, {2097152, <<"2MB">>}, {2097152, <<"2mb">>},
                          {3 bsl 30, <<" 3GB ">>}, {1 bsl 40, <<"1TB">>}]]
        ++ [?_assertEqual(error, ?N:size(Word))
            || Word <- [<<>>, <<"kB">>, <<"big">>, <<"-1">>, <<"1.5MB">>, <<"1PB">>, <<"1iB">>, <<"1kBB">>,
                        <<"1000000000000000">>, <<255>>, binary:copy(<<"1">>, 100000)]].

neither_test_() ->
    [?_assertEqual({error, error}, {?N:offset(Word), ?N:interval(Word)})
     || Word <- [<<>>, <<"h">>, <<"1y">>, <<"1h1m">>, <<"--1">>, <<"1.5h">>, <<"1H">>, <<"1000000000000000">>,
                 <<255>>, binary:copy(<<"1">>, 100000)]].
