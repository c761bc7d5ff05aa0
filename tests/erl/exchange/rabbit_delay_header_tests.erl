%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_header_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(NOW, 1700000000000).
-define(MAX, 1000000).

due(Fields) ->
    rabbit_delay_header:due(Fields, ?NOW, ?MAX).

without_a_header_it_is_due_now_test() ->
    ?assertEqual(now, due(undefined)),
    ?assertEqual(now, due([])),
    ?assertEqual(now, due([{<<"x-other">>, long, 5000}])).

every_integer_type_is_a_delay_test() ->
    [?assertEqual({delay, 100}, due([{<<"x-delay">>, Type, 100}]))
     || Type <- [signedint, long, byte, short, unsignedbyte, unsignedshort, unsignedint]].

a_fraction_counts_as_a_whole_test() ->
    ?assertEqual({delay, 1501}, due([{<<"x-delay">>, double, 1500.01}])),
    ?assertEqual({delay, 1501}, due([{<<"x-delay">>, float, 1500.5}])),
    ?assertEqual({delay, 16}, due([{<<"x-delay">>, decimal, {2, 1501}}])),
    ?assertEqual({delay, 15}, due([{<<"x-delay">>, decimal, {2, 1500}}])),
    ?assertEqual({delay, 1}, due([{<<"x-delay">>, double, 0.1}])),
    ?assertEqual(now, due([{<<"x-delay">>, double, -0.9}])).

a_decimal_is_signed_test() ->
    [?assertEqual(now, due([{<<"x-delay">>, decimal, {0, N}}]))
     || N <- [16#ffffffff, 16#80000000, 16#ffffffff - 4999]],
    ?assertMatch({unusable, _, _, {beyond, ?MAX}}, due([{<<"x-delay">>, decimal, {0, 16#7fffffff}}])).

text_that_is_a_number_is_a_delay_test() ->
    [?assertEqual({delay, 5000}, due([{<<"x-delay">>, longstr, Text}]))
     || Text <- [<<"5000">>, <<" 5000 ">>, <<"+5000">>, <<"4999.7">>, <<"5.0e3">>, <<"5e3">>,
                 <<"5E+3">>, <<".5e4">>, <<"50000e-1">>, <<"5000.">>, <<"\t5000\r\n">>, <<"005000">>]],
    ?assertEqual({delay, 1}, due([{<<"x-delay">>, longstr, <<".5">>}])),
    ?assertEqual({delay, 1}, due([{<<"x-delay">>, longstr, <<"1e-99">>}])),
    ?assertEqual(now, due([{<<"x-delay">>, longstr, <<"-1e-99">>}])),
    ?assertEqual({delay, 5000}, due([{<<"x-delay">>, binary, <<"5000">>}])).

what_is_not_a_number_is_unusable_test() ->
    [?assertMatch({unusable, <<"x-delay">>, {Type, Value}, not_a_number},
                  due([{<<"x-delay">>, Type, Value}]))
     || {Type, Value} <- [{longstr, <<"soon">>}, {longstr, <<>>}, {longstr, <<"12 apples">>},
                          {longstr, <<"2,500">>}, {longstr, <<"2 500">>}, {longstr, <<"1_000">>},
                          {longstr, <<"e3">>}, {longstr, <<".">>}, {longstr, <<"--5">>},
                          {longstr, <<"0x10">>}, {longstr, <<"1e400">>}, {longstr, <<"NaN">>},
                          {longstr, <<"   ">>}, {longstr, <<"5m">>}, {longstr, <<"5\n\n;">>},
                          {bool, true}, {table, []}, {array, []}, {timestamp, 5},
                          {longstr, binary:copy(<<"9">>, 33)}]].

zero_and_less_is_now_test() ->
    [?assertEqual(now, due([{<<"x-delay">>, long, N}])) || N <- [0, -1, -5000]].

null_counts_as_absent_test() ->
    ?assertEqual(now, due([{<<"x-delay">>, void, undefined}])),
    ?assertEqual({delay, 7}, due([{<<"x-opt-delivery-time">>, void, undefined},
                                  {<<"x-delay">>, long, 7}])).

the_maximum_is_inclusive_test() ->
    ?assertEqual({delay, ?MAX}, due([{<<"x-delay">>, long, ?MAX}])),
    ?assertEqual({unusable, <<"x-delay">>, {long, ?MAX + 1}, {beyond, ?MAX}},
                 due([{<<"x-delay">>, long, ?MAX + 1}])),
    ?assertEqual({time, ?NOW + ?MAX}, due([{<<"x-opt-delivery-time">>, long, ?NOW + ?MAX}])),
    ?assertMatch({unusable, <<"x-opt-delivery-time">>, _, {beyond, ?MAX}},
                 due([{<<"x-opt-delivery-time">>, long, ?NOW + ?MAX + 1}])).

an_absolute_time_goes_first_then_the_relative_one_test() ->
    Time = {<<"x-opt-delivery-time">>, long, ?NOW + 10},
    Delay = {<<"x-opt-delivery-delay">>, long, 20},
    XDelay = {<<"x-delay">>, long, 30},
    ?assertEqual({time, ?NOW + 10}, due([XDelay, Delay, Time])),
    ?assertEqual({delay, 20}, due([XDelay, Delay])),
    ?assertEqual({delay, 30}, due([XDelay])),
    %% The first present decides, also if it says `now'.
    ?assertEqual(now, due([{<<"x-opt-delivery-time">>, long, ?NOW}, XDelay])).

an_amqp_timestamp_counts_in_seconds_test() ->
    ?assertEqual({time, ?NOW + 1000},
                 due([{<<"x-opt-delivery-time">>, timestamp, ?NOW div 1000 + 1}])).

what_cannot_be_meant_as_a_time_is_refused_test() ->
    Time = fun (Type, Value) -> due([{<<"x-opt-delivery-time">>, Type, Value}]) end,
    [?assertMatch({unusable, _, {Type, Value}, seconds}, Time(Type, Value))
     || {Type, Value} <- [{long, ?NOW div 1000}, {signedint, 1}, {longstr, <<"1700000000">>},
                          {double, 1.7e9}, {long, 99999999999}]],
    [?assertMatch({unusable, _, {float, _}, imprecise}, Time(float, F)) || F <- [1.7e12, 1.7e9, 1.0]],
    [?assertEqual(now, Time(Type, Value))
     || {Type, Value} <- [{long, 100000000000}, {long, 0}, {long, -1}, {float, 0.0}, {timestamp, 1},
                          {double, 1.6e12}]].

any_time_can_be_written_test() ->
    [?assertEqual(now, due([rabbit_delay_header:at(Ms)])) || Ms <- [0, 1, 1000, 99999999999, ?NOW]],
    ?assertEqual({time, ?NOW + 1}, due([rabbit_delay_header:at(?NOW + 1)])).

every_number_comes_back_as_a_64_bit_integer_test() ->
    Negated = fun (Type, Value) ->
                      [{_, T, V}] = rabbit_delay_header:negate([{<<"x-delay">>, Type, Value}]),
                      {T, V}
              end,
    [?assertEqual({long, -100}, Negated(Type, 100))
     || Type <- [signedint, long, short, byte, unsignedbyte, unsignedshort, unsignedint]],
    ?assertEqual({long, -16#ffffffff}, Negated(unsignedint, 16#ffffffff)),
    ?assertEqual({longstr, <<"-5000">>}, Negated(longstr, <<"5000">>)),
    ?assertEqual({long, -5001}, Negated(double, 5000.5)),
    ?assertEqual({long, -16}, Negated(decimal, {2, 1599})).

negating_leaves_everything_else_alone_test() ->
    Others = [{<<"a">>, longstr, <<"b">>}, {<<"x-opt-delivery-delay">>, long, 5}],
    ?assertEqual(undefined, rabbit_delay_header:negate(undefined)),
    ?assertEqual(Others, rabbit_delay_header:negate(Others)),
    ?assertEqual([{<<"x-delay">>, long, -5}], rabbit_delay_header:negate([{<<"x-delay">>, long, -5}])),
    ?assertEqual(Others ++ [{<<"x-delay">>, long, -5}],
                 rabbit_delay_header:negate(Others ++ [{<<"x-delay">>, long, 5}])).

a_negated_message_is_never_delayed_again_test_() ->
    {timeout, 1200, ?_assert(proper:quickcheck(prop_negated_is_due_now(),
                                               [{to_file, user}, {numtests, 1000}]))}.

prop_negated_is_due_now() ->
    ?FORALL({Type, Value}, field(),
            begin
                Headers = [{<<"x-delay">>, Type, Value}],
                case due(Headers) of
                    {delay, _} -> due(rabbit_delay_header:negate(Headers)) =:= now;
                    _ -> true
                end
            end).

field() ->
    oneof([{oneof([signedint, long, unsignedint]), integer(-10, 2 * ?MAX)},
           {oneof([byte, unsignedbyte]), integer(0, 127)},
           {oneof([double, float]), float(0.0, 2.0 * ?MAX)},
           {decimal, {integer(0, 9), non_neg_integer()}},
           {longstr, ?LET(N, integer(-10, 2 * ?MAX), integer_to_binary(N))},
           {longstr, binary()}]).

values_of_amqp_1_0_are_delays_test() ->
    Due = fun (Name, Value) -> due(rabbit_delay_header:from_amqp10(Name, Value)) end,
    [?assertEqual({delay, 100}, Due(<<"x-delay">>, {Tag, 100}))
     || Tag <- [ulong, uint, ushort, ubyte, long, int, short, byte]],
    [?assertEqual({delay, 100}, Due(<<"x-opt-delivery-delay">>, {Tag, <<"100">>}))
     || Tag <- [utf8, symbol, binary]],
    ?assertEqual({delay, 101}, Due(<<"x-delay">>, {double, 100.5})),
    ?assertEqual({time, ?NOW + 5}, Due(<<"x-opt-delivery-time">>, {timestamp, ?NOW + 5})),
    ?assertEqual(now, Due(<<"x-delay">>, null)),
    ?assertEqual(now, Due(<<"x-delay">>, undefined)),
    [?assertMatch({unusable, <<"x-delay">>, _, not_a_number}, Due(<<"x-delay">>, Value))
     || Value <- [{boolean, true}, {list, []}, {map, []}, {timestamp, 100}, {utf8, <<"soon">>},
                  {as_is, 16#94, <<1>>}]].

negated_they_are_64_bit_integers_too_test() ->
    [?assertEqual(Negated, rabbit_delay_header:to_amqp10(Field))
     || {Value, Negated} <- [{{long, 5}, {long, -5}}, {{uint, 5}, {long, -5}}, {{int, 5}, {long, -5}},
                             {{utf8, <<"5">>}, {utf8, <<"-5">>}}, {{double, 5.5}, {long, -6}}],
        Field <- rabbit_delay_header:negate(
                   rabbit_delay_header:from_amqp10(<<"x-delay">>, Value))].

%% What a sender is told: one line, his own notation, nothing of Erlang's.
explained(Type, Value) ->
    explained(<<"x-delay">>, Type, Value).

explained(Header, Type, Value) ->
    {unusable, _, _, _} = Unusable = due([{Header, Type, Value}]),
    unicode:characters_to_list(rabbit_delay_header:explain(Unusable, "header")).

what_is_unusable_is_told_in_the_senders_words_test_() ->
    [?_assertEqual("header x-delay is " ++ Told, explained(Type, Value))
     || {Type, Value, Told} <-
            [{longstr, <<"5m">>, "the string \"5m\", not a number of milliseconds"},
             {longstr, <<"a\"b">>, "the string \"a\\\"b\", not a number of milliseconds"},
             {longstr, <<"f\x{fc}nf"/utf8>>, "the string \"f\x{fc}nf\", not a number of milliseconds"},
             {longstr, <<255, 10, 27>>, "the string \"\\xff\\x0a\\x1b\", not a number of milliseconds"},
             {longstr, <<>>, "the string \"\", not a number of milliseconds"},
             {binary, <<0, 255>>, "the byte array 0x00ff, not a number of milliseconds"},
             {bool, true, "the boolean true, not a number of milliseconds"},
             {array, [{signedint, 300}], "the array [300], not a number of milliseconds"},
             {table, [{<<"ms">>, signedint, 5000}],
              "the table {\"ms\": 5000}, not a number of milliseconds"},
             {timestamp, 1795790497,
              "the timestamp 1795790497, not a number of milliseconds; a time of delivery is written "
              "as x-opt-delivery-time"},
             {long, ?MAX + 1, "the 64-bit integer 1000001, more than the maximum delay of 1000000 ms"},
             {decimal, {1, 99999999},
              "the decimal 99999999e-1, more than the maximum delay of 1000000 ms"},
             {as_is, {132, <<1>>}, "of a type that is no number, not a number of milliseconds"}]]
    ++ [?_assertEqual("header x-opt-delivery-time is the 64-bit integer 1700000000, which are seconds; "
                      "it takes milliseconds since the epoch",
                      explained(<<"x-opt-delivery-time">>, long, 1700000000))].

no_value_makes_a_long_or_an_odd_text_test() ->
    ?assert(proper:quickcheck(prop_text_is_short_and_printable(), [{to_file, user}, {numtests, 1000}])).

prop_text_is_short_and_printable() ->
    ?FORALL({Type, Value}, oneof([{longstr, binary()}, {longstr, ?LET(S, string(), unicode:characters_to_binary(S))},
                                  {binary, binary()}, {longstr, binary(2000)}, {binary, binary(2000)},
                                  {array, list({longstr, binary()})},
                                  {table, list({binary(), longstr, binary()})},
                                  {array, list({array, list({signedint, integer()})})}]),
            begin
                Text = unicode:characters_to_list(rabbit_delay_header:shown(Type, Value)),
                length(Text) =< 100
                    andalso lists:all(fun (C) -> C >= 32 andalso (C < 127 orelse C >= 160) end, Text)
            end).

%% Of AMQP 1.0's application properties the broker tells the values only.
properties_test() ->
    Names = rabbit_delay_header:names(),
    Properties = #{<<"x-delay">> => 5, <<"x-opt-delivery-delay">> => <<"7">>, <<"other">> => 9,
                   <<"x-opt-delivery-time">> => undefined},
    Headers = rabbit_delay_header:from_properties(Names, Properties),
    ?assertEqual([{<<"x-opt-delivery-delay">>, longstr, <<"7">>}, {<<"x-delay">>, long, 5}], Headers),
    ?assertEqual({delay, 7}, rabbit_delay_header:due(Headers, ?NOW, 1000)),
    ?assertEqual([{<<"x-opt-delivery-delay">>, longstr, <<"-7">>}, {<<"x-delay">>, long, -5}],
                 rabbit_delay_header:negated_properties(Headers)),
    [?assertEqual([], rabbit_delay_header:negated_properties(
                        rabbit_delay_header:from_properties(Names, #{Name => Value})))
     || {Name, Value} <- [{<<"x-delay">>, 0}, {<<"x-delay">>, -1}, {<<"x-delay">>, <<"soon">>},
                          {<<"x-delay">>, true}, {<<"x-opt-delivery-time">>, ?NOW + 5}]],
    ?assertEqual([{<<"x-delay">>, long, -3}],
                 rabbit_delay_header:negated_properties(
                   rabbit_delay_header:from_properties(Names, #{<<"x-delay">> => 2.5}))).

%% The protocol says that these are milliseconds.
a_timestamp_of_amqp_1_0_is_never_taken_for_seconds_test() ->
    Due = fun (Ms) ->
                  rabbit_delay_header:due(
                    rabbit_delay_header:from_amqp10(<<"x-opt-delivery-time">>, {timestamp, Ms}),
                    ?NOW, 1000)
          end,
    [?assertEqual(now, Due(Ms)) || Ms <- [-1, 0, 1, 1795790497, ?NOW]],
    ?assertEqual({time, ?NOW + 1}, Due(?NOW + 1)),
    ?assertMatch({unusable, _, _, {beyond, 1000}}, Due(?NOW + 1001)).
