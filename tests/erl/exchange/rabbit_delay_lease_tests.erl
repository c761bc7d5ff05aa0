%% SPDX-License-Identifier: MPL-2.0

%% The lease against its rule: messages may be taken exactly for as long after the latest time at which
%% something was sent that has been applied.
-module(rabbit_delay_lease_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(L, rabbit_delay_lease).
-define(MS, 500).

alone_it_always_holds_test() ->
    L = ?L:needed(1, ?L:new()),
    ?assert(?L:holds(-(1 bsl 60), L)),
    ?assertEqual(L, ?L:sending(make_ref(), 0, L)).

at_first_it_does_not_hold_test() ->
    ?assertNot(?L:holds(0, ?L:new())),
    ?assertNot(?L:holds(-(1 bsl 60), ?L:needed(3, ?L:needed(1, ?L:new())))).

what_is_sent_proves_nothing_until_it_is_applied_test() ->
    Ref = make_ref(),
    Sent = ?L:sending(Ref, 1000, ?L:needed(3, ?L:new())),
    ?assertNot(?L:holds(1000, Sent)),
    Applied = ?L:applied(Ref, Sent),
    ?assertEqual([true, true, false], [?L:holds(At, Applied) || At <- [1000, 1000 + ?MS - 1, 1000 + ?MS]]),
    ?assertEqual(Applied, ?L:applied(make_ref(), Applied)).

any_sequence_test_() ->
    {timeout, 300,
     fun () ->
             Property = ?FORALL(Steps, list(step()), holds(Steps)),
             ?assert(proper:quickcheck(Property, [{numtests, 1000}, {to_file, user}]))
     end}.

%% Times go forward; what is applied was sent in any order before, or never.
step() ->
    {range(0, 400), oneof([send, {applied, range(1, 6)}, none])}.

holds(Steps) ->
    {_, _, _, _, Right} =
        lists:foldl(
          fun ({Passed, What}, {Before, Sent, Proved, L0, Right}) ->
                  Now = Before + Passed,
                  {Sent1, Proved1, L} = run(What, Now, Sent, Proved, L0),
                  Expected = Proved1 =/= none andalso Now - Proved1 < ?MS,
                  {Now, Sent1, Proved1, L, Right andalso ?L:holds(Now, L) =:= Expected}
          end, {-5000, [], none, ?L:needed(3, ?L:new()), true}, Steps),
    Right.

run(send, Now, Sent, Proved, L) ->
    Ref = make_ref(),
    {Sent ++ [{Ref, Now}], Proved, ?L:sending(Ref, Now, L)};
run({applied, N}, _, Sent, Proved, L) when N =< length(Sent) ->
    {Ref, At} = lists:nth(N, Sent),
    {lists:delete({Ref, At}, Sent), latest(At, Proved), ?L:applied(Ref, L)};
run(_, _, Sent, Proved, L) ->
    {Sent, Proved, L}.

latest(At, none) -> At;
latest(At, Proved) -> max(At, Proved).
