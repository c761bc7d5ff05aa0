%% SPDX-License-Identifier: MPL-2.0

%% What goes wrong in a simulated cluster, and when: nodes that are killed, paused, and cut off from others;
%% processes that end; leaders that are replaced; sessions that the machine forgets. In a part of the seeds one
%% node hears nothing of the others, or they nothing of it, for longer than a batch may be under way.
-module(simulated_faults).

-export([begin_all/0, begun/0, lasts_longer/0, happen/0, all_well/0, fail/0]).

%% So many of 100 seeds have a node that is cut off for so long, of so much more time for faults, ms.
-define(LONG, 15).
-define(CUT_OFF_MS, 15200).
-define(LONGER_MS, 17500).

%% How much longer there are faults than in other seeds, ms.
begin_all() ->
    set(faults, true),
    set(long_cut, false),
    set(longer, case simulated_process:chance(?LONG) of
                    true -> ?LONGER_MS;
                    false -> 0
                end),
    lasts_longer().

known(Key) -> erlang:get({?MODULE, Key}).

set(Key, Value) -> _ = erlang:put({?MODULE, Key}, Value), ok.

lasts_longer() -> known(longer).

%% Whether anything goes wrong at present.
happen() -> known(faults).

begun() ->
    case lasts_longer() of
        0 -> ok;
        _ -> simulated_process:after_ms(300 + simulated_process:up_to(1500), fun cut_off/0)
    end.

all_well() ->
    set(faults, false),
    set(long_cut, false),
    simulated_process:note("all is well from now on", []),
    mend().

%% One that is cut off for long stays so.
mend() ->
    _ = known(long_cut) orelse simulated_process:mend(),
    ok.

fail() ->
    Node = simulated_process:one_of(simulated_process:all_nodes()),
    case simulated_process:up_to(99) of
        N when N < 20 -> simulated_process:is_up(Node) andalso simulation:kill(Node);
        N when N < 40 -> pause(Node, 3000);
        N when N < 60 -> cut(Node);
        N when N < 70 -> session_lost(Node, simulated_raft:true_leader());
        N when N < 85 -> simulated_process:note("another is to lead", []), simulated_raft:transfer();
        N when N < 89 -> kill_process(Node, queue);
        N when N < 93 -> kill_process(Node, dispatcher);
        N when N < 95 -> kill_process(Node, rabbit_delay_conditions);
        _ -> simulated_raft:replace(Node)
    end.

pause(Node, MostMs) ->
    Ms = simulated_process:up_to(MostMs),
    case simulated_process:is_running(Node) of
        true ->
            simulated_process:note("~p is paused for ~b ms", [Node, Ms]),
            simulated_process:pause_node(Node, Ms);
        false ->
            ok
    end.

kill_process(Node, Name) ->
    case simulated_process:named(Node, Name) of
        undefined -> ok;
        Pid -> simulated_process:is_running(Node) andalso simulated_process:kill(Pid, killed)
    end.

%% From all others, or one; both ways or one way; and noticed or not.
cut(Node) ->
    Others = simulated_process:all_nodes() -- [Node],
    From = case simulated_process:chance(60) of
               true -> Others;
               false -> [simulated_process:one_of(Others)]
           end,
    Ms = simulated_process:up_to(3000),
    ok = cut(Node, From, simulated_process:one_of([both, both, in, out]), Ms),
    ok = noticed(Node, From, 1500),
    simulated_process:after_ms(Ms, fun mend/0).

cut(Node, From, Ways, Ms) ->
    simulated_process:note("~p is cut off from ~p (~p) for ~b ms", [Node, From, Ways, Ms]),
    lists:foreach(fun (Other) ->
                          _ = Ways =/= out andalso simulated_process:cut(Other, Node, held),
                          _ = Ways =/= in andalso simulated_process:cut(Node, Other, held)
                  end, From).

noticed(Node, From, WithinMs) ->
    lists:foreach(fun (Other) ->
                          simulated_process:after_ms(30 + simulated_process:up_to(WithinMs),
                                                     fun () -> notice(Node, Other) end)
                  end, From).

notice(Node, Other) ->
    case simulated_process:is_linked(Node, Other) andalso simulated_process:is_linked(Other, Node) of
        true ->
            ok;
        false ->
            simulated_process:note("~p and ~p notice", [Node, Other]),
            simulated_process:notice(Node, Other)
    end.

%% For longer than a batch may be under way: the one that leads, or any.
cut_off() ->
    Node = case {simulated_raft:true_leader(), simulated_process:chance(50)} of
               {Leader, true} when Leader =/= none -> Leader;
               _ -> simulated_process:one_of(simulated_process:all_nodes())
           end,
    Others = simulated_process:all_nodes() -- [Node],
    Ms = ?CUT_OFF_MS + simulated_process:up_to(1800),
    simulated_process:mend(),
    ok = cut(Node, Others, simulated_process:one_of([both, in, out]), Ms),
    set(long_cut, true),
    _ = simulated_process:chance(50) andalso noticed(Node, Others, Ms - 100),
    simulated_process:after_ms(Ms, fun () -> set(long_cut, false), mend() end).

%% An opening that an earlier delay queue process of the node had sent comes late, so its session is forgotten; what the
%% leader has answered comes later still, when another one leads.
session_lost(Node, Leader) when Leader =:= none; Leader =:= Node ->
    simulated_raft:opens(Node);
session_lost(Node, Leader) ->
    Ms = 250 + simulated_process:up_to(700),
    ok = cut(Node, [Leader], in, Ms),
    simulated_process:after_ms(simulated_process:up_to(150), fun () -> simulated_raft:opens(Node) end),
    simulated_process:after_ms(150 + simulated_process:up_to(100), fun simulated_raft:transfer/0),
    simulated_process:after_ms(250 + simulated_process:up_to(200), fun () -> pause_leader(Leader) end),
    simulated_process:after_ms(Ms, fun mend/0).

pause_leader(Before) ->
    case simulated_raft:true_leader() of
        Leader when Leader =:= none; Leader =:= Before -> ok;
        Leader -> pause(Leader, 500)
    end.
