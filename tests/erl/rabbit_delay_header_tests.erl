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

fractions_are_cut_test() ->
    ?assertEqual({delay, 1500}, due([{<<"x-delay">>, double, 1500.99}])),
    ?assertEqual({delay, 1500}, due([{<<"x-delay">>, float, 1500.5}])),
    ?assertEqual({delay, 15}, due([{<<"x-delay">>, decimal, {2, 1599}}])),
    ?assertEqual(now, due([{<<"x-delay">>, double, 0.9}])).

text_that_is_a_number_is_a_delay_test() ->
    [?assertEqual({delay, 5000}, due([{<<"x-delay">>, longstr, Text}]))
     || Text <- [<<"5000">>, <<" 5000 ">>, <<"+5000">>, <<"5000.7">>, <<"5.0e3">>]],
    ?assertEqual({delay, 5000}, due([{<<"x-delay">>, binary, <<"5000">>}])).

what_is_not_a_number_is_unusable_test() ->
    [?assertMatch({unusable, <<"x-delay">>, Value, not_a_number}, due([{<<"x-delay">>, Type, Value}]))
     || {Type, Value} <- [{longstr, <<"soon">>}, {longstr, <<>>}, {longstr, <<"12 apples">>},
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
    ?assertEqual({unusable, <<"x-delay">>, ?MAX + 1, {beyond, ?MAX}},
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

negated_keeps_the_type_that_can_hold_it_test() ->
    Negated = fun (Type, Value) ->
                      [{_, T, V}] = rabbit_delay_header:negate([{<<"x-delay">>, Type, Value}]),
                      {T, V}
              end,
    [?assertEqual({Type, -100}, Negated(Type, 100)) || Type <- [signedint, long, short, byte]],
    [?assertEqual({signedint, -100}, Negated(Type, 100))
     || Type <- [unsignedbyte, unsignedshort, unsignedint]],
    ?assertEqual({long, -16#ffffffff}, Negated(unsignedint, 16#ffffffff)),
    ?assertEqual({longstr, <<"-5000">>}, Negated(longstr, <<"5000">>)),
    ?assertEqual({double, -5000.0}, Negated(double, 5000.5)),
    ?assertEqual({signedint, -15}, Negated(decimal, {2, 1599})).

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
    ?assertEqual({delay, 100}, Due(<<"x-delay">>, {double, 100.5})),
    ?assertEqual({time, ?NOW + 5}, Due(<<"x-opt-delivery-time">>, {timestamp, ?NOW + 5})),
    ?assertEqual(now, Due(<<"x-delay">>, null)),
    ?assertEqual(now, Due(<<"x-delay">>, undefined)),
    [?assertMatch({unusable, <<"x-delay">>, _, not_a_number}, Due(<<"x-delay">>, Value))
     || Value <- [{boolean, true}, {list, []}, {map, []}, {timestamp, 100}, {utf8, <<"soon">>},
                  {as_is, 16#94, <<1>>}]].

negated_they_keep_their_type_where_it_has_negative_values_test() ->
    [?assertEqual(Negated, rabbit_delay_header:to_amqp10(Field))
     || {Value, Negated} <- [{{long, 5}, {long, -5}}, {{uint, 5}, {long, -5}}, {{int, 5}, {long, -5}},
                             {{utf8, <<"5">>}, {utf8, <<"-5">>}}, {{double, 5.5}, {double, -5.0}}],
        Field <- rabbit_delay_header:negate(
                   rabbit_delay_header:from_amqp10(<<"x-delay">>, Value))].
