%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_changes_tests).

-include_lib("eunit/include/eunit.hrl").

-define(C, rabbit_delay_changes).

from() -> {self(), make_ref()}.

is_odd(Id) -> Id rem 2 =:= 1.

%% What is left of a change when the even ones are in flight.
in_flight_is_left_out_and_named_test_() ->
    [?_assertEqual({encoded(Allowed), InFlight}, ?C:allowed(?C:encoded(Change), fun is_odd/1))
     || {Change, Allowed, InFlight} <-
            [{{cancel, [1, 3]}, {cancel, [1, 3]}, []},
             {{cancel, [1, 2, 3, 4]}, {cancel, [1, 3]}, [2, 4]},
             {{cancel, [2, 4]}, nothing, [2, 4]},
             {{cancel, []}, nothing, []},
             {{reschedule, [{1, 10}, {2, 20}, {3, 30}]}, {reschedule, [{1, 10}, {3, 30}]}, [2]},
             {{reschedule, [{2, 20}]}, nothing, [2]},
             {pause, pause, []},
             {purge, purge, []},
             {resume, resume, []}]].

%% Where nothing is in flight, no message is looked at.
all_are_free_test_() ->
    [?_assertEqual({Allowed, []}, ?C:allowed(?C:encoded(Change), all))
     || {Change, Allowed} <- [{{cancel, [1, 2]}, ?C:encoded({cancel, [1, 2]})}, {{cancel, []}, nothing},
                              {{reschedule, []}, nothing}, {purge, purge}]].

encoded(nothing) -> nothing;
encoded(Change) -> ?C:encoded(Change).

encoded_as_the_machine_takes_it_test_() ->
    [?_assertEqual(Encoded, ?C:encoded(Change))
     || {Change, Encoded} <-
            [{{cancel, [1, 16#ffffffffffffffff]}, {cancel, <<1:64/little, 16#ffffffffffffffff:64>>}},
             {{reschedule, [{1, 2}]}, {reschedule, <<1:64/little, 2:64/little>>}},
             {pause, pause},
             {resume, resume}]].

held_until_it_is_applied_test() ->
    [One, Two, From] = [make_ref(), make_ref(), from()],
    [Cancel, Reschedule] = [?C:encoded(C) || C <- [{cancel, [1, 2]}, {reschedule, [{3, 30}]}]],
    ?assert(?C:holds_none(?C:new())),
    C1 = ?C:append(One, From, Cancel, [9], ?C:new()),
    C2 = ?C:append(Two, From, Reschedule, [], C1),
    ?assertNot(?C:holds_none(C2)),
    ?assertEqual([true, true, true, false], [?C:is_held(Id, C2) || Id <- [1, 2, 3, 9]]),
    ?assertEqual(error, ?C:applied(make_ref(), C2)),
    {From, [9], Cancel, C3} = ?C:applied(One, C2),
    ?assertEqual([false, false, true], [?C:is_held(Id, C3) || Id <- [1, 2, 3]]),
    ?assertEqual(error, ?C:applied(One, C3)),
    {From, [], Reschedule, C4} = ?C:applied(Two, C3),
    ?assertNot(?C:is_held(3, C4)),
    ?assert(?C:holds_none(C4)).

%% Whether they happen is not known: what they are about is neither released nor changed until all
%% that was appended is applied. What was asked for since holds on.
an_interrupted_change_holds_until_it_is_taken_test() ->
    [One, Two, First, Second] = [make_ref(), make_ref(), from(), from()],
    C1 = ?C:append(One, First, ?C:encoded({cancel, [1, 2]}), [], ?C:new()),
    {[First], C2} = ?C:interrupt(C1),
    ?assertEqual(error, ?C:applied(One, C2)),
    ?assertEqual({[], C2}, ?C:interrupt(C2)),
    C3 = ?C:append(Two, Second, ?C:encoded({cancel, [3]}), [], C2),
    ?assertEqual([true, true, true], [?C:is_held(Id, C3) || Id <- [1, 2, 3]]),
    {Second, [], _, Left} = ?C:applied(Two, C3),
    ?assertEqual([true, true, false], [?C:is_held(Id, Left) || Id <- [1, 2, 3]]),
    {Freed, C4} = ?C:take_held(C3),
    ?assertEqual([1, 2], lists:sort(Freed)),
    ?assertEqual([false, false, true], [?C:is_held(Id, C4) || Id <- [1, 2, 3]]),
    ?assertEqual({[], C4}, ?C:take_held(C4)),
    {Second, [], _, C5} = ?C:applied(Two, C4),
    ?assert(?C:holds_none(C5)).
