%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_destinations_tests).

-include_lib("eunit/include/eunit.hrl").

-define(D, rabbit_delay_destinations).

%% What is late is dealt with as the exchange wants it, dead letters too.
how_test_() ->
    Plain = 1,
    Marked = rabbit_delay_retry:mark(1),
    [?_assertEqual({Encoding, Overdue, Late, How},
                   {Encoding, Overdue, Late, ?D:how(5000, Encoding, Overdue, 5000 + Late)})
     || {Encoding, Overdue, Late, How} <-
            [{Plain, deliver, 0, released},
             {Plain, deliver, 1000000, released},
             {Marked, deliver, 1000000, returned},
             {Plain, {drop, 100}, -1, released},
             {Plain, {drop, 100}, 100, released},
             {Plain, {drop, 100}, 101, drop},
             {Marked, {drop, 100}, 100, returned},
             {Marked, {drop, 100}, 101, drop},
             {Plain, {dead_letter, 0}, 0, released},
             {Plain, {dead_letter, 0}, 1, {dead_lettered, overdue}},
             {Marked, {dead_letter, 0}, 0, returned},
             {Marked, {dead_letter, 0}, 1, {dead_lettered, overdue}}]].

plan(Attempts, To) ->
    #{pauses => {schedule, [1000]}, jitter => 0, attempts => Attempts,
      reasons => [<<"rejected">>], to => To, parking => none}.

death(Queue, Reason, Count) -> #{queue => Queue, reason => Reason, count => Count}.

%% For all that a dead letter's settings can be.
verdict_test_() ->
    Rejected = fun (N) -> [death(<<"q">>, <<"rejected">>, N)] end,
    Expired = [death(<<"q">>, <<"expired">>, 1)],
    [?_assertEqual({Deaths, Plan, HasPlace, Verdict},
                   {Deaths, Plan, HasPlace, ?D:verdict(Deaths, Plan, fun () -> HasPlace end)})
     || {Deaths, Plan, HasPlace, Verdict} <-
            [{Rejected(1), none, false, queue},
             {Rejected(1), none, true, queue},
             {Rejected(1), plan(3, queue), true, queue},
             {Rejected(3), plan(3, queue), true, queue},
             {Rejected(4), plan(3, queue), true, {park, attempts_used_up}},
             {Rejected(4), plan(3, queue), false, queue},
             {Rejected(3), plan(3, exchange), true, exchange},
             {Rejected(4), plan(3, exchange), true, {park, attempts_used_up}},
             {Rejected(4), plan(3, exchange), false, queue},
             {Rejected(1000000), plan(infinity, exchange), false, exchange},
             {Rejected(1), plan(0, queue), true, {park, attempts_used_up}},
             {Expired, plan(3, queue), true, {park, not_retried}},
             {Expired, plan(3, exchange), false, {park, not_retried}}]].

%% Whether there is a place is asked for only where it matters: it is looked up in the settings.
place_is_asked_for_only_when_attempts_are_used_up_test() ->
    Nobody = fun () -> error(asked) end,
    ?assertEqual(queue, ?D:verdict([death(<<"q">>, <<"rejected">>, 1)], plan(1, queue), Nobody)),
    ?assertError(asked, ?D:verdict([death(<<"q">>, <<"rejected">>, 2)], plan(1, queue), Nobody)).

attempts_are_all_deaths_in_the_last_queue_test() ->
    ?assertEqual(7, ?D:attempts([death(<<"q">>, <<"rejected">>, 2), death(<<"r">>, <<"rejected">>, 9),
                                 death(<<"q">>, <<"expired">>, 4),
                                 #{queue => <<"q">>, reason => <<"maxlen">>}])).
