%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_retry_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(R, rabbit_delay_retry).

-define(REASONS, [<<"rejected">>, <<"expired">>, <<"delivery_limit">>, <<"maxlen">>]).

plan(Settings) ->
    ?R:plan(fun (Name) -> maps:get(Name, Settings, undefined) end).

pauses(N, Settings) ->
    [?R:pause(Attempt, plan(Settings), 0.0) || Attempt <- lists:seq(1, N)].

units_test_() ->
    [?_assertEqual(Expected, pauses(length(Expected), #{<<"delay-retry">> => Text}))
     || {Text, Expected} <- [{<<"250ms">>, [250]},
                             {<<"1s,10s,1m,10m">>, [1000, 10000, 60000, 600000]},
                             {<<" 2h , 1d">>, [7200000, 86400000]}, {<<"5,1s">>, [5, 1000]},
                             {7, [7, 7]}, {<<"1s,2s">>, [1000, 2000, 2000, 2000]}]].

exponential_test_() ->
    Initial = <<"delay-retry-initial">>,
    [?_assertEqual([1000, 2000, 4000, 8000], pauses(4, #{Initial => <<"1s">>})),
     ?_assertEqual([1000, 1500, 2250, 3000, 3000],
                   pauses(5, #{Initial => 1000, <<"delay-retry-multiplier">> => 1.5,
                               <<"delay-retry-max">> => <<"3s">>})),
     ?_assertEqual([10, 10, 10], pauses(3, #{Initial => 10, <<"delay-retry-multiplier">> => 1})),
     ?_assertEqual([10, 1000], pauses(2, #{Initial => 10,
                                           <<"delay-retry-multiplier">> => {1, 1000}})),
     %% The default of the longest is no shorter than the first.
     ?_assertEqual([86400000, 86400000], pauses(2, #{Initial => <<"1d">>})),
     ?_assertEqual(3600000, ?R:pause(1 bsl 62, plan(#{Initial => 1}), 0.0))].

defaults_test_() ->
    Default = #{jitter => 0, reasons => [<<"rejected">>, <<"delivery_limit">>], to => queue,
                parking => none},
    [?_assertEqual(none, plan(#{})),
     ?_assertEqual(none, plan(#{<<"delay-retry-attempts">> => 5})),
     ?_assertEqual(Default#{pauses => {schedule, [1000, 2000]}, attempts => 2},
                   plan(#{<<"delay-retry">> => <<"1s,2s">>})),
     ?_assertEqual(Default#{pauses => {exponential, 1000, 2, 3600000}, attempts => 10},
                   plan(#{<<"delay-retry-initial">> => <<"1s">>})),
     %% An argument beside a policy: the schedule wins.
     ?_assertMatch(#{pauses := {schedule, [1]}},
                   plan(#{<<"delay-retry">> => 1, <<"delay-retry-initial">> => 5})),
     ?_assertMatch(#{attempts := infinity},
                   plan(#{<<"delay-retry">> => 1, <<"delay-retry-attempts">> => <<"unlimited">>})),
     ?_assertMatch(#{parking := {<<"p">>, undefined}},
                   plan(#{<<"delay-retry">> => 1, <<"delay-retry-parking-exchange">> => <<"p">>})),
     ?_assertMatch(#{parking := none},
                   plan(#{<<"delay-retry">> => 1,
                          <<"delay-retry-parking-routing-key">> => <<"k">>}))].

invalid_test_() ->
    [?_assertMatch({error, _, [<<"shown">>, Told]}, ?R:check(Name, <<"shown">>, Value))
     || {Name, Values} <-
            [{<<"delay-retry">>, [<<>>, <<",">>, <<"1s,">>, <<"1 s x">>, <<"-1s">>, <<"1e3">>, 0,
                                  -1, 1.5, true, <<"9999999999999999s">>]},
             {<<"delay-retry-initial">>, [<<>>, 0, <<"0s">>, <<"1s,2s">>, 3153600000001]},
             {<<"delay-retry-multiplier">>, [0, 0.99, 1000.5, <<>>, <<"2x">>, {20, 5}]},
             {<<"delay-retry-jitter">>, [-0.1, 1.1, <<"-1">>, true]},
             {<<"delay-retry-reasons">>, [<<>>, <<"rejected;expired">>]}],
        Value <- Values, Told <- [rabbit_delay_text:setting(Value)]].

death(Queue, Reason, Count) -> #{queue => Queue, reason => Reason, count => Count}.

judge_test_() ->
    Plan = plan(#{<<"delay-retry">> => <<"1s,2s,3s">>}),
    [?_assertEqual(Verdict, ?R:judge(Deaths, Plan))
     || {Verdict, Deaths} <-
            [{{retry, 1}, [death(<<"q">>, <<"rejected">>, 1)]},
             {{retry, 3}, [death(<<"q">>, <<"rejected">>, 3)]},
             {{used_up, 4}, [death(<<"q">>, <<"rejected">>, 4)]},
             {{retry, 3}, [death(<<"q">>, <<"delivery_limit">>, 1),
                           death(<<"q">>, <<"rejected">>, 2)]},
             {{retry, 1}, [death(<<"q">>, <<"rejected">>, 1), death(<<"other">>, <<"rejected">>, 9),
                           death(<<"q">>, <<"expired">>, 9)]},
             {not_retried, [death(<<"q">>, <<"expired">>, 1), death(<<"q">>, <<"rejected">>, 1)]},
             %% what a client may have made of it
             {not_retried, [#{queue => <<"q">>}]},
             {{retry, 1}, [#{queue => <<"q">>, reason => <<"rejected">>}]}]].

mark_test_() ->
    [?_assertEqual({true, N}, {?R:is_marked(?R:mark(N)), ?R:mark(N) band 16#7fff})
     || N <- [1, 2, 99]]
        ++ [?_assertNot(?R:is_marked(2)), ?_assertEqual(16#8002, ?R:mark(2))].

proper_test_() ->
    [{timeout, 1200, ?_assert(proper:quickcheck(Property, [{numtests, 1000}, {to_file, user}]))}
     || Property <- [prop_pauses_grow_to_the_longest(), prop_jitter_only_shortens(),
                     prop_each_death_counts_once()]].

exponential() ->
    ?LET({Initial, Multiplier, Longer}, {range(1, 100000), float(1.0, 1000.0), range(0, 1 bsl 36)},
         plan(#{<<"delay-retry-initial">> => Initial, <<"delay-retry-multiplier">> => Multiplier,
                <<"delay-retry-max">> => Initial + Longer})).

attempt() -> oneof([range(1, 20), range(1, 1 bsl 62)]).

prop_pauses_grow_to_the_longest() ->
    ?FORALL({#{pauses := {exponential, Initial, _, Max}} = Plan, Attempt},
            {exponential(), attempt()},
            begin
                Pause = ?R:pause(Attempt, Plan, 0.0),
                Next = ?R:pause(Attempt + 1, Plan, 0.0),
                Initial =< Pause andalso Pause =< Next andalso Next =< Max
                    andalso ?R:pause(1, Plan, 0.0) =:= Initial
            end).

prop_jitter_only_shortens() ->
    ?FORALL({Plan, Attempt, Jitter, Random},
            {exponential(), attempt(), float(0.0, 1.0), float(0.0, 1.0)},
            begin
                Full = ?R:pause(Attempt, Plan, 0.0),
                Pause = ?R:pause(Attempt, Plan#{jitter := Jitter}, Random),
                Pause >= 1 andalso Pause =< Full andalso Pause >= trunc(Full * (1 - Jitter))
            end).

%% Deaths one after another in a few queues, merged as the broker does it.
prop_each_death_counts_once() ->
    ?FORALL({Happened, Attempts},
            {non_empty(list({oneof([<<"a">>, <<"b">>]), oneof(?REASONS)})), range(0, 20)},
            begin
                Deaths = lists:foldl(fun record/2, [], Happened),
                {Queue, Reason} = lists:last(Happened),
                Retried = [<<"rejected">>, <<"maxlen">>],
                Count = length([Q || {Q, R} <- Happened, Q =:= Queue, lists:member(R, Retried)]),
                ?R:judge(Deaths, plan(#{<<"delay-retry">> => 1,
                                        <<"delay-retry-attempts">> => Attempts,
                                        <<"delay-retry-reasons">> => <<"rejected,maxlen">>}))
                    =:= case lists:member(Reason, Retried) of
                            false -> not_retried;
                            true when Count =< Attempts -> {retry, Count};
                            true -> {used_up, Count}
                        end
            end).

record({Queue, Reason}, Deaths) ->
    Same = fun (#{queue := Q, reason := R}) -> {Q, R} =:= {Queue, Reason} end,
    case lists:partition(Same, Deaths) of
        {[#{count := N} = Death], Others} -> [Death#{count := N + 1} | Others];
        {[], _} -> [death(Queue, Reason, 1) | Deaths]
    end.
