%% SPDX-License-Identifier: MPL-2.0

%% How times, offsets, ids and filters are read.
-module(rabbit_delay_filter_tests).

-include_lib("eunit/include/eunit.hrl").

-define(F, rabbit_delay_filter).
-define(NOW, 1800000000000).
-define(MAX, 16#ffffffffffff).

time_test_() ->
    [?_assertEqual({ok, Ms}, ?F:time(Word, ?NOW))
     || {Ms, Word} <- [{0, 0}, {0, <<"0">>}, {?MAX, ?MAX}, {17, <<"17">>},
                       {?NOW + 90 * 60000, <<"+90m">>}, {?NOW - 1000, <<"-1s">>},
                       {1896091200000, <<"2030-01-31T12:00:00Z">>},
                       {1896091200250, <<"2030-01-31T13:00:00.250+01:00">>}]]
        ++ [?_assertMatch({error, <<_/binary>>}, ?F:time(Word, ?NOW))
            || Word <- [-1, ?MAX + 1, 1.5, true, null, [], #{}, <<>>, <<"now">>, <<"2030-01-31">>,
                        <<"1 h">>, <<"1969-12-31T00:00:00Z">>, <<255, 254>>,
                        <<"99999999999999999999">>, binary:copy(<<"x">>, 100000),
                        %% Digits that it would take minutes to read.
                        binary:copy(<<"7">>, 10_000_000), <<$-, (binary:copy(<<"7">>, 10_000_000))/binary>>,
                        <<"2030-01-31T12:00:00.", (binary:copy(<<"7">>, 10_000_000))/binary, "Z">>]].

offset_test_() ->
    [?_assertEqual({ok, Ms}, ?F:offset(Word))
     || {Ms, Word} <- [{5, 5}, {-5, -5}, {5, <<"5">>}, {5, <<"5ms">>}, {-5000, <<"-5s">>},
                       {60000, <<"+1m">>}, {7200000, <<"2h">>}, {86400000, <<"1d">>},
                       {-604800000, <<"-1w">>}]]
        ++ [?_assertMatch({error, <<_/binary>>}, ?F:offset(Word))
            || Word <- [<<>>, <<"h">>, <<"1y">>, <<"1h1m">>, <<"--1">>, <<"1 1">>,
                        <<"999999999999999w">>, <<"9999999999999999">>, ?MAX + 1, 1.5, null]].

id_test_() ->
    [?_assertEqual({ok, 65536}, ?F:id(<<"65536">>)),
     ?_assertEqual({ok, 16#ffffffffffffffff}, ?F:id(<<"18446744073709551615">>))
     | [?_assertMatch({error, _}, ?F:id(Word))
        || Word <- [<<>>, <<"-1">>, <<"18446744073709551616">>, <<"1.0">>, <<"a">>, <<255>>]]].

parse_test() ->
    {ok, All} = ?F:parse(#{}, ?NOW),
    ?assert(?F:is_empty(All)),
    ?assertNot(?F:needs_content(All)),
    ?assertEqual({0, ?MAX}, ?F:due_range(All)),
    {ok, Due} = ?F:parse(#{due_from => <<"-1h">>, due_to => ?NOW, limit => <<"7">>}, ?NOW),
    ?assertNot(?F:is_empty(Due)),
    ?assertNot(?F:needs_content(Due)),
    ?assertEqual({?NOW - 3600000, ?NOW}, ?F:due_range(Due)),
    [begin
         {ok, Filter} = ?F:parse(Words, ?NOW),
         ?assert(?F:needs_content(Filter))
     end || Words <- [#{routing_key => <<>>}, #{published_to => <<"x">>},
                      #{header => <<"a=b=c">>}, #{header => <<"a=">>}]].

refused_test_() ->
    [?_assertMatch({error, <<_/binary>>}, ?F:parse(Words, ?NOW))
     || Words <- [#{due_from => 2, due_to => 1}, #{header => <<"=x">>}, #{header => <<"x">>},
                  #{routing_key => binary:copy(<<"k">>, 256)}, #{published_to => 7},
                  #{header => <<"a=", (binary:copy(<<"x">>, 4095))/binary>>}, #{due_to => <<"soon">>}]].

%% A value that is out of range is told with the range, in words that people read.
range_test_() ->
    [?_assertMatch({match, _}, re:run(element(2, {error, _} = Refused), Words))
     || {Refused, Words} <-
            [{?F:time(?MAX + 1, ?NOW), "281474976710656 is out of range: times from 1970 to 10889"},
             {?F:time(<<"+3257000d">>, ?NOW), "\"\\+3257000d\" is out of range: times from 1970"},
             {?F:offset(<<"9999999d">>), "\"9999999d\" is out of range: an offset is at most 3257812d"},
             {?F:offset(?MAX + 1), "281474976710656 is out of range: an offset is at most 281474976710655 ms"},
             {?F:parse(#{due_from => 2, due_to => 1}, ?NOW),
              "due_from \\(1970-01-01T00:00:00.002Z\\) is after due_to \\(1970-01-01T00:00:00.001Z\\)"}]].
