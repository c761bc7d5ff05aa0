%% SPDX-License-Identifier: MPL-2.0

%% The Raft server is the process of the test.
-module(rabbit_delay_dispatcher_tests).

-include_lib("eunit/include/eunit.hrl").
-include("../../erl_src/exchange/rabbit_delay_dispatcher.hrl").

-define(D, rabbit_delay_dispatcher).
-define(WAIT_MS, 30000).

%% What was sent in the form of the version before may come behind the entry that raises the machine.
what_is_being_settled_is_settled_again_when_the_machine_is_raised_test() ->
    true = register(?MODULE, self()),
    try
        Correlation = make_ref(),
        Book0 = rabbit_delay_in_flight:hold(1, 10, rabbit_delay_in_flight:new()),
        {true, Book1} = rabbit_delay_in_flight:done(1, 1001, 10, Book0),
        {Released, Book} = rabbit_delay_in_flight:to_settle(Correlation, Book1),
        State = #state{leader = {{?MODULE, node()}, make_ref()}, in_flight = Book, machine_version = 2},
        {noreply, Raised} = ?D:handle_cast({raised, 3}, State),
        ?assertEqual({{settle, 3, Released}, Correlation}, appended()),
        ?assertEqual(State#state{machine_version = 3}, Raised),
        %% And what is settled is not.
        {ok, Settled} = rabbit_delay_in_flight:settled(Correlation, Book),
        {noreply, _} = ?D:handle_cast({raised, 4}, Raised#state{in_flight = Settled}),
        ?assertEqual(none, receive {'$gen_cast', _} = More -> More after 0 -> none end),
        %% Nor by one that has no leader: it does it when there is one.
        {noreply, Led} = ?D:handle_cast({raised, 3}, State#state{leader = undefined}),
        ?assertMatch(#state{machine_version = 3, in_flight = Book}, Led)
    after
        unregister(?MODULE)
    end.

appended() ->
    receive
        {'$gen_cast', {command, _, {'$usr', Command, {notify, Correlation, _}}}} -> {Command, Correlation}
    after ?WAIT_MS ->
            receive Other -> Other after 0 -> nothing end
    end.
