%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_registry_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").

-define(R, rabbit_delay_registry).
-define(X, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>}).
-define(Y, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"y">>}).

%% The table alone: none of this asks the process.
table_test_() ->
    {foreach,
     fun () -> ok = ?R:create_table() end,
     fun (_) -> true = ets:delete(?R) end,
     [fun nothing_is_known_of_others/0,
      fun a_permit_is_for_one_start/0,
      fun what_is_registered_is_read/0,
      fun counters_stay_and_are_those_of_one_exchange/0,
      fun what_is_dropped_of_an_unknown_exchange_counts_for_the_node/0]}.

nothing_is_known_of_others() ->
    ok = ?R:register_paused(?X, true),
    ?assertEqual([undefined, undefined, undefined, false, undefined, none, false, undefined, []],
                 [?R:queue(?Y), ?R:dispatcher(?Y), ?R:store(?Y), ?R:is_paused(?Y), ?R:refusal(?Y),
                  ?R:unable(?Y), ?R:take_permit(?Y), ?R:known_counters(?Y), ?R:samples(?Y)]),
    ?assertEqual(0, ?R:pending(?Y)),
    %% And that has not made a row of it.
    ?assertEqual([?X], [element(2, Row) || Row <- ets:tab2list(?R)]).

a_permit_is_for_one_start() ->
    ?assertNot(?R:take_permit(?X)),
    ok = ?R:permit_start(?X),
    ok = ?R:permit_start(?X),
    ?assertNot(?R:take_permit(?Y)),
    ?assert(?R:take_permit(?X)),
    ?assertNot(?R:take_permit(?X)).

what_is_registered_is_read() ->
    Pid = self(),
    ok = ?R:register_queue(?X, Pid),
    ok = ?R:register_dispatcher(?X, Pid),
    ok = ?R:refuse(?X, "why"),
    ?assertEqual({Pid, Pid, "why", false},
                 {?R:queue(?X), ?R:dispatcher(?X), ?R:refusal(?X), ?R:is_paused(?X)}),
    [begin
         ok = ?R:register_unable(?X, Why),
         ok = ?R:register_paused(?X, Is),
         ?assertEqual({Why, Is}, {?R:unable(?X), ?R:is_paused(?X)})
     end || {Why, Is} <- [{"full", true}, {none, false}]],
    %% What a refused exchange is asked to delay is refused, whatever else is known of it.
    ?assertEqual({error, "why"}, ?R:ensure(?X)).

counters_stay_and_are_those_of_one_exchange() ->
    Counters = ?R:counters(?X),
    ?assertEqual(Counters, ?R:counters(?X)),
    ?assertEqual(Counters, ?R:known_counters(?X)),
    ok = ?R:dropped(?X),
    ?assertEqual(1, rabbit_delay_counters:get(Counters, dropped)),
    ?assertNotEqual([], ?R:samples(?X)),
    %% Only an exchange with processes has figures that are shown.
    ?assertEqual([], ?R:all_counters()),
    ok = ?R:register_queue(?X, self()),
    _ = ?R:counters(?Y),
    ?assertEqual([{?X, Counters}], ?R:all_counters()).

what_is_dropped_of_an_unknown_exchange_counts_for_the_node() ->
    ok = ?R:dropped(?X),
    ?assertEqual(1, rabbit_delay_counters:get(?R:gone_counters(), dropped)),
    ?assertEqual(undefined, ?R:known_counters(?X)),
    Counters = ?R:counters(?X),
    ok = ?R:dropped(?X),
    ok = rabbit_delay_figures:gone(Counters),
    ?assertEqual(2, rabbit_delay_counters:get(?R:gone_counters(), dropped)).

%% While the plugin does not run, whoever routes has an answer all the same.
without_a_table_test() ->
    ?assertEqual(undefined, ets:whereis(?R)),
    ?assertEqual([undefined, undefined, false, [], []],
                 [?R:queue(?X), ?R:known_counters(?X), ?R:is_paused(?X), ?R:samples(?X),
                  ?R:all_counters()]),
    ?assertEqual({error, "the plugin is not running"}, ?R:ensure(?X)),
    ok = ?R:checkpointed(?X, 1),
    ok = ?R:delete(#exchange{name = ?X}).

%% Of what a store has handed out, no more is in flight than the dispatcher has in its hands, and the
%% rest waits, as far as it has a place.
what_waits_is_not_in_flight_test_() ->
    Stat = #{pending => 100, pending_bytes => 1, next_due => 5, applied => 7},
    [?_assertEqual(Stat#{taken => InFlight, waiting => Waiting, stuck_queues => 3},
                   rabbit_delay_figures:without_waiting(Stat#{taken => Taken}, {Places, 3, Held}))
     || {Taken, Places, Held, InFlight, Waiting} <-
            [{0, 0, 0, 0, 0}, {10, 0, 10, 10, 0}, {10, 7, 3, 3, 7},
             %% cancelled, and it still has its place
             {6, 7, 3, 3, 3}, {2, 7, 3, 2, 0},
             %% it has several places
             {10, 20, 3, 3, 7},
             %% taken out by a dispatcher that is gone
             {10, 0, 3, 10, 0}]].

and_nothing_is_said_of_a_store_that_is_not_open_test() ->
    ?assertEqual(#{pending => 0, pending_bytes => 0, taken => 0, waiting => 0, stuck_queues => 0,
                   next_due => infinity},
                 rabbit_delay_figures:without_waiting({error, not_open}, {7, 1, 2})).
