%% SPDX-License-Identifier: MPL-2.0

%% Each delay queue is a process of the test, and the node that leads is this one.
-module(rabbit_delay_conditions_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include("../../../erl_src/exchange/rabbit_delay_table.hrl").

-define(C, rabbit_delay_conditions).
-define(WAIT_MS, 30000).

conditions_test_() ->
    {foreach,
     fun () ->
             ok = rabbit_delay_registry:create_table(),
             ok = rabbit_delay_system:create_table(),
             {ok, Pid} = ?C:start_link(),
             Pid
     end,
     fun (Pid) ->
             true = unlink(Pid),
             ok = gen_server:stop(Pid),
             true = ets:delete(rabbit_delay_system),
             true = ets:delete(rabbit_delay_registry)
     end,
     [fun (Pid) -> {timeout, 120, fun () -> Test(Pid) end} end
      || Test <- [fun told_at_once/1, fun told_of_changes/1, fun told_anew_when_it_follows_anew/1,
                  fun unknown_of_a_node_that_is_not_there/1, fun one_question_for_all/1,
                  fun none_for_who_left_or_ended/1]]}.

%% Before it is time to ask again, which it never is here; if a question is under way, after it.
told_at_once(Pid) ->
    _ = sys:replace_state(Pid, fun (State) -> setelement(4, State, make_ref()) end),
    ok = ?C:follow(node(), x(1)),
    _ = told(),
    Question = make_ref(),
    _ = sys:replace_state(Pid, fun (State) -> setelement(3, State, #{node() => Question}) end),
    ok = ?C:leave(),
    ok = ?C:follow(node(), x(2)),
    _ = sys:get_state(Pid),
    ?assertEqual(none, receive {condition, _, _} = Told -> Told after 0 -> none end),
    Pid ! {'DOWN', Question, process, self(), normal},
    _ = told().

told_of_changes(_) ->
    ok = set_machine(x(1), 3),
    ok = ?C:follow(node(), x(1)),
    ?assertMatch(#{machine := 3, stat := #{pending := 0}}, told()),
    ok = set_machine(x(1), 4),
    ?assertMatch(#{machine := 4}, told()).

told_anew_when_it_follows_anew(_) ->
    ok = ?C:follow(node(), x(1)),
    First = told(),
    ok = ?C:follow(node(), x(1)),
    ?assertEqual(First, told()),
    ok = ?C:leave(),
    ok = ?C:follow(node(), x(1)),
    ?assertEqual(First, told()).

unknown_of_a_node_that_is_not_there(_) ->
    ok = ?C:follow('nobody@127.0.0.1', x(1)),
    ?assertEqual({'nobody@127.0.0.1', unknown}, receive {condition, Node, Said} -> {Node, Said} after ?WAIT_MS -> none end),
    ok = ?C:follow(node(), x(1)),
    ?assertMatch(#{status := _}, told()).

one_question_for_all(Pid) ->
    ok = set_machine(x(0), 1),
    ok = ?C:follow(node(), x(0)),
    _ = told(),
    Queues = [follower(x(N)) || N <- lists:seq(1, 100)],
    Questions = questions(Pid, fun () -> told_each(x(0), [2, 3, 4]) end),
    lists:foreach(fun (Queue) -> exit(Queue, kill) end, Queues),
    ?assertEqual([101], lists:usort([length(XNames) || XNames <- Questions])).

none_for_who_left_or_ended(Pid) ->
    ok = set_machine(x(0), 1),
    Gone = follower(x(1)),
    ok = ?C:follow(node(), x(0)),
    _ = told(),
    Ref = monitor(process, Gone),
    exit(Gone, kill),
    receive {'DOWN', Ref, _, _, _} -> ok after ?WAIT_MS -> error(timeout) end,
    Leaver = follower(x(2)),
    Leaver ! leave,
    receive {left, Leaver} -> ok after ?WAIT_MS -> error(timeout) end,
    %% After two more changes a question has been asked that began when both had been heard of.
    Questions = questions(Pid, fun () -> told_each(x(0), [2, 3]) end),
    exit(Leaver, kill),
    ?assertEqual([x(0)], lists:last(Questions)).

x(N) -> #resource{virtual_host = <<"/">>, kind = exchange, name = integer_to_binary(N)}.

set_machine(XName, Version) -> rabbit_delay_table:update(XName, {#row.machine, Version}).

told_each(XName, Versions) ->
    lists:foreach(fun (Version) ->
                          ok = set_machine(XName, Version),
                          ?assertMatch(#{machine := Version}, told())
                  end, Versions).

told() ->
    Here = node(),
    receive {condition, Here, Condition} -> Condition after ?WAIT_MS -> error(not_told) end.

follower(XName) ->
    Self = self(),
    Pid = spawn_link(fun () ->
                             ok = ?C:follow(node(), XName),
                             _ = told(),
                             Self ! {follows, self()},
                             receive leave -> ok end,
                             ok = ?C:leave(),
                             Self ! {left, self()},
                             receive never -> ok end
                     end),
    true = unlink(Pid),
    receive {follows, Pid} -> Pid after ?WAIT_MS -> error(not_told) end.

%% What is asked for by its questions, one after the other, while Fun is done.
questions(Pid, Fun) ->
    _ = erlang:trace(Pid, true, [call, set_on_spawn]),
    _ = erlang:trace_pattern({erpc, call, 5}, true, []),
    try
        _ = Fun(),
        Ref = erlang:trace_delivered(all),
        receive {trace_delivered, all, Ref} -> asked() end
    after
        _ = erlang:trace_pattern({erpc, call, 5}, false, []),
        _ = erlang:trace(Pid, false, [call, set_on_spawn])
    end.

asked() ->
    receive
        {trace, _, call, {erpc, call, [_, lists, map, [_, XNames], _]}} -> [XNames | asked()]
    after 0 -> []
    end.
