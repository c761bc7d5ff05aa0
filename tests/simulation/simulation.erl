%% SPDX-License-Identifier: MPL-2.0

%% A cluster of three nodes, its publishers, operators and faults, in one process: everything that happens, and
%% when, is drawn from a seed, so that what goes wrong once goes wrong again. Delay queues, dispatchers and
%% machines are the plugin's own, with the real store. What may happen is said by simulated_model.
-module(simulation).

-export([main/1, run/1, first_without_message/0]).

-define(NOW, 1800000000000).
%% How long messages are sent and things go wrong, and how long until all must be well again, ms.
-define(FAULTS_MS, 4500).
-define(ALL_MS, 25000).
%% By when nodes are upgraded, but for those that are not before all is well.
-define(UPGRADED_MS, 3500).
%% For how long a node is down: stopped and started again, at most.
-define(RESTARTED_MS, 300).
-define(DOWN_MS, 2000).
%% When nothing that was sent before may be under way any more: what is sent then is stored and comes.
-define(PROBES_MS, 21500).
%% Numbers of what a publisher sends that is no message: it cancels or releases others.
-define(WITHOUT_MESSAGE, 1000000).

first_without_message() -> ?WITHOUT_MESSAGE.

%% Arguments of tests/simulation/run, behind the root of the sources. ROOT seeds FIRST COUNT JUNIT: so many seeds, from the first on.
%% ROOT broken MOST JUNIT: each way to get it wrong is found by one of the first so many seeds.
%% ROOT seed SEED [WAY]: that one, with what happened.
main([Root, What | Args]) ->
    ok = logger:set_primary_config(level, none),
    halt(case main(What, Root, Args) of
             [] -> 0;
             _ -> 1
         end).

main("seeds", Root, [First, Count, Junit]) ->
    ok = simulated_code:load(Root, []),
    Seeds = lists:seq(list_to_integer(First), list_to_integer(First) + list_to_integer(Count) - 1),
    Wrong = [{Seed, Result} || Seed <- Seeds, Result <- [said(Seed, run(Seed))], Result =/= ok],
    ok = written(Junit, [{io_lib:format("~b seeds from ~ts on", [length(Seeds) - length(Wrong), First]), ok}
                         | [{integer_to_list(Seed), Result} || {Seed, Result} <- Wrong]]),
    Wrong;
main("broken", Root, [Most, Junit]) ->
    Found = [{Name, found(Name, Mutations, Root, lists:seq(1, list_to_integer(Most)))}
             || {Name, Mutations} <- simulated_code:mutations()],
    ok = written(Junit, [{["broken: ", atom_to_list(Name)], case Seed of
                                                                none -> "no seed finds it";
                                                                _ -> ok
                                                            end} || {Name, Seed} <- Found]),
    [Name || {Name, none} <- Found];
main("seed", Root, [Seed | Way]) ->
    ok = simulated_code:load(Root, [Mutation || Name <- Way, {N, Mutations} <- simulated_code:mutations(),
                                                atom_to_list(N) =:= Name, Mutation <- Mutations]),
    Result = run(list_to_integer(Seed)),
    lists:foreach(fun ({At, Format, Args}) -> io:format("~8b  " ++ Format ++ "~n", [At - ?NOW | Args]) end, notes()),
    io:format("~p~n", [Result]),
    [Result || Result =/= ok].

found(Name, Mutations, Root, Seeds) ->
    ok = simulated_code:load(Root, Mutations),
    case first_wrong(Seeds) of
        {Seed, Wrong} -> io:format("~ts: seed ~b: ~0P~n", [Name, Seed, Wrong, 12]), Seed;
        none -> io:format("~ts: not found~n", [Name]), none
    end.

%% By what comes of it: what the change itself makes crash is not found.
first_wrong([]) -> none;
first_wrong([Seed | Rest]) ->
    case run(Seed) of
        {violation, _, _} = Wrong -> {Seed, Wrong};
        _ -> first_wrong(Rest)
    end.

written(Junit, Cases) ->
    file:write_file(Junit,
                    ["<testsuite name=\"simulation\">\n",
                     [["<testcase classname=\"simulation\" name=\"", Name, "\">",
                       case Result of
                           ok -> "";
                           _ -> ["<failure message=\"", Name, "\">",
                                 escaped(io_lib:format("~p", [Result])), "</failure>"]
                       end, "</testcase>\n"] || {Name, Result} <- Cases],
                     "</testsuite>\n"]).

said(_, ok) ->
    ok;
said(Seed, Wrong) ->
    io:format("seed ~b: ~0P~n", [Seed, Wrong, 40]),
    Wrong.

escaped(Text) -> string:replace(string:replace(Text, "&", "&amp;", all), "<", "&lt;", all).

notes() -> erlang:get({?MODULE, notes}).

%% One seed.
-spec run(pos_integer()) -> ok | {violation, atom(), term()} | {crashed, term()}.
run(Seed) ->
    Dir = filename:join(os:getenv("TMPDIR", "/tmp"), "simulation." ++ os:getpid()),
    ok = simulated_process:begin_at(?NOW, Seed),
    ok = simulated_node:begin_all(Dir),
    ok = simulated_versions:begin_all(),
    ok = simulated_raft:begin_all(),
    ok = simulated_model:begin_all(),
    _ = ets:new(outstanding, [ordered_set, named_table, private]),
    _ = erlang:put({?MODULE, number}, 0),
    _ = erlang:put({?MODULE, probes}, []),
    _ = erlang:put({?MODULE, releases}, []),
    _ = erlang:put({?MODULE, faults}, true),
    try
        begun(),
        happen(?NOW + ?ALL_MS),
        simulated_model:at_end(simulated_process:all_nodes(), erlang:get({?MODULE, probes})),
        known(erlang:get({?MODULE, releases})),
        answered()
    catch
        throw:{violation, _, _} = Violation -> Violation;
        error:Reason:Stack -> {crashed, {Reason, Stack}}
    after
        erlang:put({?MODULE, notes}, simulated_process:notes()),
        lists:foreach(fun (Node) ->
                              case simulated_raft:state(Node) of
                                  undefined -> ok;
                                  State -> rabbit_delay_store:close(rabbit_delay_machine:store(State))
                              end
                      end, simulated_process:all_nodes()),
        simulated_process:end_all(),
        simulated_model:end_all(),
        simulated_versions:end_all(),
        lists:foreach(fun ets:delete/1, [raft, outstanding]),
        lists:foreach(fun ({{Module, _, _} = Key, _}) when is_atom(Module) -> erlang:erase(Key);
                          ({{Module, _} = Key, _}) when is_atom(Module), Key =/= {?MODULE, notes} -> erlang:erase(Key);
                          (_) -> ok
                      end, erlang:get()),
        _ = file:del_dir_r(Dir)
    end.

begun() ->
    lists:foreach(fun start/1, simulated_process:all_nodes()),
    every(60, fun () -> simulated_raft:look() end),
    people(fun publish/0, 30),
    people(fun operate/0, 250),
    people(fun fail/0, 500),
    lists:foreach(fun (Node) -> simulated_process:after_ms(simulated_process:up_to(?UPGRADED_MS),
                                                           fun () -> upgrade(Node) end)
                  end, simulated_versions:earlier_ones()),
    simulated_process:after_ms(?FAULTS_MS, fun all_well/0),
    simulated_process:after_ms(?PROBES_MS, fun () -> lists:foreach(fun probe/1, simulated_process:all_nodes()) end).

happen(Until) ->
    case simulated_process:now() < Until andalso simulated_process:next() of
        ok -> happen(Until);
        _ -> ok
    end.

every(Ms, Fun) ->
    Fun(),
    simulated_process:after_ms(Ms, fun () -> every(Ms, Fun) end).

%% As long as there are faults.
people(Fun, MeanMs) ->
    simulated_process:after_ms(simulated_process:up_to(2 * MeanMs),
                               fun () ->
                                       case erlang:get({?MODULE, faults}) of
                                           true -> Fun(), people(Fun, MeanMs);
                                           false -> ok
                                       end
                               end).

all_well() ->
    erlang:put({?MODULE, faults}, false),
    simulated_process:note("all is well from now on", []),
    simulated_process:mend(),
    lists:foreach(fun upgrade/1, simulated_versions:earlier_ones()),
    resume().

%% Whoever leads is asked until it has answered.
resume() ->
    _ = [ask(Node, resume) || Node <- simulated_process:all_nodes(), simulated_process:is_running(Node),
                              simulated_raft:leads(Node)],
    simulated_process:now() < ?NOW + ?FAULTS_MS + 10000 andalso simulated_process:after_ms(1000, fun resume/0).

%% ------------------------------------------------------------------------------- nodes

start(Node) ->
    XName = simulated_node:exchange(),
    ok = simulated_process:start_node(Node),
    ok = simulated_node:node_started(Node),
    _ = simulated_process:start(Node, registry, {plain, undefined}, fun () -> {ok, {fun (_, S) -> S end, none}} end),
    _ = simulated_process:start(Node, channel, {plain, undefined}, fun () -> {ok, {fun channel/2, Node}} end),
    _ = simulated_process:start(Node, rabbit_delay_conditions, {gen_server, rabbit_delay_conditions},
                                fun () -> rabbit_delay_conditions:init([]) end),
    ok = simulated_raft:start_member(Node),
    _ = simulated_process:start(Node, dispatcher, {gen_server, rabbit_delay_dispatcher},
                                fun () -> rabbit_delay_dispatcher:init(XName) end),
    _ = simulated_process:start(Node, queue, {gen_batch_server, rabbit_delay_queue},
                                fun () -> rabbit_delay_queue:init({XName, true}) end),
    ok.

kill(Node) -> kill(Node, ?DOWN_MS).

kill(Node, DownMs) ->
    simulated_process:note("~p is killed", [Node]),
    simulated_raft:kill_member(Node),
    simulated_process:kill_node(Node),
    ok = simulated_node:forget(Node),
    %% Their publishers' connections with it.
    lists:foreach(fun ({SeqNo, On, _}) -> On =:= Node andalso ets:delete(outstanding, SeqNo) end,
                  ets:tab2list(outstanding)),
    simulated_process:after_ms(simulated_process:up_to(DownMs), fun () ->
                                                                      go_back(Node),
                                                                      simulated_process:note("~p starts", [Node]),
                                                                      start(Node)
                                                              end).

%% It is stopped as if by a crash, and started with the later version.
upgrade(Node) ->
    case lists:member(Node, simulated_versions:earlier_ones()) of
        true ->
            simulated_process:note("~p is upgraded", [Node]),
            simulated_versions:set(Node, later),
            simulated_process:is_up(Node) andalso kill(Node, ?RESTARTED_MS);
        false ->
            ok
    end.

%% Now and then a node is taken back, as long as it can be; and upgraded again in the end.
go_back(Node) ->
    case erlang:get({?MODULE, faults}) andalso simulated_versions:may_go_back() andalso simulated_process:chance(15) of
        true ->
            simulated_process:note("~p is taken back to the earlier version", [Node]),
            simulated_versions:set(Node, earlier);
        false ->
            ok
    end.

%% ------------------------------------------------------------------------------- publishers

publish() ->
    case [Node || Node <- simulated_process:all_nodes(), simulated_process:is_running(Node)] of
        [] -> ok;
        Nodes ->
            Node = simulated_process:one_of(Nodes),
            simulated_process:named(Node, queue) =/= undefined andalso
                lists:foreach(fun (_) -> publish(Node) end, lists:seq(0, simulated_process:up_to(3)))
    end.

publish(Node) -> publish(Node, headers()).

%% Not by a key, which others may have; and a release by key, which only the later version of the machine knows.
probe(Node) ->
    SeqNo = publish(Node, {[{<<"x-delay">>, long, 100}], 0}),
    erlang:put({?MODULE, probes}, [SeqNo | erlang:get({?MODULE, probes})]),
    Release = publish(Node, {[field(<<"x-delay-release">>, {longstr, <<"k0">>})], ?WITHOUT_MESSAGE}),
    erlang:put({?MODULE, releases}, [Release | erlang:get({?MODULE, releases})]).

publish(Node, {Headers, First}) ->
    Last = erlang:get({?MODULE, number}),
    SeqNo = First + Last + 1,
    erlang:put({?MODULE, number}, Last + 1),
    Queue = simulated_process:named(Node, queue),
    true = ets:insert(outstanding, {SeqNo, Node, Queue}),
    Channel = simulated_process:named(Node, channel),
    simulated_process:as(Channel, fun () ->
                                          simulated_process:send(Queue, simulated_broker:channel(
                                                                          {deliver, simulated_broker:message(SeqNo, Headers),
                                                                           Channel, SeqNo}))
                                  end),
    SeqNo.

headers() ->
    Key = {longstr, <<"k", (integer_to_binary(simulated_process:up_to(2)))/binary>>},
    Delay = {<<"x-delay">>, long, simulated_process:up_to(1500)},
    case simulated_process:up_to(99) of
        N when N < 4 -> {[field(<<"x-delay-cancel">>, Key)], ?WITHOUT_MESSAGE};
        N when N < 20 -> {[field(<<"x-delay-release">>, Key)], ?WITHOUT_MESSAGE};
        N when N < 27 -> {[Delay, field(<<"x-delay-key">>, Key), on_duplicate(<<"replace">>)], 0};
        N when N < 34 -> {[Delay, field(<<"x-delay-key">>, Key), on_duplicate(<<"drop">>)], 0};
        N when N < 62 -> {[Delay, field(<<"x-delay-key">>, Key)], 0};
        _ -> {[Delay], 0}
    end.

field(Name, {Type, Value}) -> {Name, Type, Value}.

on_duplicate(What) -> {<<"x-delay-on-duplicate">>, longstr, What}.

channel({Outcome, SeqNos}, Node) when Outcome =:= confirmed; Outcome =:= rejected ->
    _ = Outcome =:= confirmed andalso erlang:put({?MODULE, releases}, erlang:get({?MODULE, releases}) -- SeqNos),
    lists:foreach(fun (SeqNo) -> ets:delete(outstanding, SeqNo) end, SeqNos),
    Node;
channel(_, Node) ->
    Node.

%% What only the later version of the machine knows is taken in the end, on all nodes.
known([]) -> ok;
known(Refused) -> throw({violation, not_known_in_the_end, Refused}).

%% Whoever sent something to a queue process that is there still has been told what became of it.
answered() ->
    case [SeqNo || {SeqNo, Node, Queue} <- ets:tab2list(outstanding), simulated_process:named(Node, queue) =:= Queue] of
        [] -> ok;
        SeqNos -> {violation, never_answered, SeqNos}
    end.

%% ------------------------------------------------------------------------------- operators

operate() ->
    case [Node || Node <- simulated_process:all_nodes(), simulated_process:is_running(Node),
                  simulated_raft:leads(Node)] of
        [] -> ok;
        Nodes ->
            Node = simulated_process:one_of(Nodes),
            Ids = some([Id || {Id, _} <- simulated_model:ids(simulated_raft:applied(Node))]),
            case simulated_process:up_to(99) of
                N when N < 30, Ids =/= [] -> ask(Node, {cancel, Ids});
                N when N < 75, Ids =/= [] ->
                    ask(Node, {reschedule, [{Id, simulated_process:clock(Node) + simulated_process:up_to(2000)} || Id <- Ids]});
                N when N < 82 -> ask(Node, pause);
                N when N < 97 -> ask(Node, resume);
                _ -> ask(Node, purge)
            end
    end.

some([]) -> [];
some(Ids) -> lists:usort([simulated_process:one_of(Ids) || _ <- lists:seq(0, simulated_process:up_to(2))]).

ask(Node, Change) ->
    case {simulated_process:named(Node, dispatcher), simulated_process:named(Node, channel)} of
        {undefined, _} -> ok;
        {Dispatcher, Channel} ->
            simulated_process:note("~p is asked to ~p", [Node, Change]),
            simulated_process:as(Channel, fun () ->
                                                  simulated_process:send(Dispatcher, {'$call', {Channel, change}, {change, rabbit_delay_changes:encoded(Change)}})
                                          end)
    end.

%% ------------------------------------------------------------------------------- faults

fail() ->
    Node = simulated_process:one_of(simulated_process:all_nodes()),
    case simulated_process:up_to(99) of
        N when N < 20 -> simulated_process:is_up(Node) andalso kill(Node);
        N when N < 40 -> simulated_process:is_running(Node) andalso pause(Node);
        N when N < 70 -> cut(Node);
        N when N < 85 -> simulated_process:note("another is to lead", []), simulated_raft:transfer();
        N when N < 89 -> kill_process(Node, queue);
        N when N < 93 -> kill_process(Node, dispatcher);
        N when N < 95 -> kill_process(Node, rabbit_delay_conditions);
        _ -> simulated_raft:replace(Node)
    end.

pause(Node) ->
    Ms = simulated_process:up_to(3000),
    simulated_process:note("~p is paused for ~b ms", [Node, Ms]),
    simulated_process:pause_node(Node, Ms).

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
    Ways = simulated_process:one_of([both, both, in, out]),
    Ms = simulated_process:up_to(3000),
    simulated_process:note("~p is cut off from ~p (~p) for ~b ms", [Node, From, Ways, Ms]),
    lists:foreach(fun (Other) ->
                          _ = Ways =/= out andalso simulated_process:cut(Other, Node, held),
                          _ = Ways =/= in andalso simulated_process:cut(Node, Other, held),
                          simulated_process:after_ms(
                            30 + simulated_process:up_to(1500),
                            fun () ->
                                    case simulated_process:is_linked(Node, Other)
                                        andalso simulated_process:is_linked(Other, Node) of
                                        true -> ok;
                                        false ->
                                            simulated_process:note("~p and ~p notice", [Node, Other]),
                                            simulated_process:notice(Node, Other)
                                    end
                            end)
                  end, From),
    simulated_process:after_ms(Ms, fun simulated_process:mend/0).
