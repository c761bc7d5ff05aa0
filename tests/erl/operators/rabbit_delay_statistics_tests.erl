%% SPDX-License-Identifier: MPL-2.0

%% What several nodes count of one exchange, added up.
-module(rabbit_delay_statistics_tests).

-include_lib("eunit/include/eunit.hrl").

-define(S, rabbit_delay_statistics).

stats(Published, Rate, Samples) ->
    #{published => Published, cancelled => 1,
      <<"published_details">> => case Samples of
                                     none -> #{rate => Rate};
                                     _ -> #{rate => Rate, samples => [#{timestamp => At, sample => N}
                                                                      || {At, N} <- Samples]}
                                 end}.

counts_and_rates_are_added_up_test() ->
    ?assertEqual(#{published => 7, cancelled => 2, <<"published_details">> => #{rate => 2.5}},
                 ?S:sum([stats(3, 1.0, none), stats(4, 1.5, none)])).

one_nodes_are_its_own_test() ->
    One = stats(3, 1.0, [{20, 3}, {10, 1}]),
    ?assertEqual(One, ?S:sum([One])).

samples_are_what_each_had_at_the_times_of_the_one_with_the_most_test() ->
    #{<<"published_details">> := #{samples := Samples}} =
        ?S:sum([stats(9, 0.0, [{33, 9}, {23, 5}]),
                stats(4, 0.0, [{40, 4}, {30, 3}, {20, 2}, {10, 0}]),
                stats(0, 0.0, [])]),
    ?assertEqual([{40, 13}, {30, 8}, {20, 7}, {10, 5}],
                 [{At, N} || #{timestamp := At, sample := N} <- Samples]).

without_any_sample_there_is_none_test() ->
    #{<<"published_details">> := Details} = ?S:sum([stats(0, 0.0, []), stats(0, 0.0, [])]),
    ?assertEqual(#{rate => 0.0, samples => []}, Details).
