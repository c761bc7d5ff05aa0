%% SPDX-License-Identifier: MPL-2.0

%% A cluster of three nodes, its publishers and operators, in one process: everything that happens, and
%% when, is drawn from a seed, so that what goes wrong once goes wrong again. Delay queues, dispatchers and
%% machines are the plugin's own, with the real store. What may happen is said by simulated_model.
-module(simulation).

-export([main/1, run/1, first_without_message/0, kill/1]).

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
%% So many of 100 messages are published without awaiting a confirm.
-define(UNTOLD, 10).
%% That of a seed's process, at first: it is not to be collected every few events.
-define(HEAP_WORDS, 50000).

first_without_message() -> ?WITHOUT_MESSAGE.

%% Arguments of tests/simulation/run, behind the root of the sources. ROOT seeds FIRST COUNT JUNIT: so many seeds, from
%% the first on. ROOT broken MOST JUNIT NTH OF: each way to get it wrong, of so many parts of them that one, is found by
%% one of the first so many seeds. ROOT seed SEED [WAY]: that one, with what happened.
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
main("broken", Root, [Most, Junit, Nth, Of]) ->
    Ways = simulated_code:mutations(),
    Found = [{Name, found(Way, Root, lists:seq(1, list_to_integer(Most)))}
             || {N, {Name, _, _} = Way} <- lists:zip(lists:seq(1, length(Ways)), Ways),
                N rem list_to_integer(Of) =:= list_to_integer(Nth)],
    ok = written(Junit, [{["broken: ", atom_to_list(Name)], case Seed of
                                                                none -> "no seed finds it";
                                                                _ -> ok
                                                            end} || {Name, Seed} <- Found]),
    [Name || {Name, none} <- Found];
main("seed", Root, [Seed | Way]) ->
    ok = simulated_code:load(Root, [Mutation || Name <- Way, {N, _, Mutations} <- simulated_code:mutations(),
                                                atom_to_list(N) =:= Name, Mutation <- Mutations]),
    {Result, Notes} = run(list_to_integer(Seed), fun simulated_process:notes/0),
    lists:foreach(fun ({At, Format, Args}) -> io:format("~8b  " ++ Format ++ "~n", [At - ?NOW | Args]) end, Notes),
    io:format("~p~n", [Result]),
    [Result || Result =/= ok].

found({Name, What, Mutations}, Root, Seeds) ->
    ok = simulated_code:load(Root, Mutations),
    case first_wrong(What, Seeds) of
        {Seed, Wrong} -> io:format("~ts: seed ~b: ~0P~n", [Name, Seed, Wrong, 12]), Seed;
        none -> io:format("~ts: not found~n", [Name]), none
    end.

%% By what comes of it: what the change itself makes crash is not found.
first_wrong(_, []) -> none;
first_wrong(What, [Seed | Rest]) ->
    case run(Seed) of
        {violation, Found, _} = Wrong when Found =:= What; What =:= any -> {Seed, Wrong};
        _ -> first_wrong(What, Rest)
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

%% One seed, in a process of its own: what is known of the cluster goes with it.
-spec run(pos_integer()) -> ok | {violation, atom(), term()} | {crashed, term()}.
run(Seed) ->
    {Result, _} = run(Seed, fun () -> [] end),
    Result.

%% With what Fun says of it at the end.
run(Seed, Fun) ->
    ok = simulated_file:removes(),
    {Pid, Ref} = spawn_opt(fun () -> exit({said, {in_process(Seed), Fun()}}) end,
                           [monitor, {min_heap_size, ?HEAP_WORDS}]),
    receive
        {'DOWN', Ref, process, Pid, {said, Said}} -> Said;
        {'DOWN', Ref, process, Pid, Reason} -> {{crashed, Reason}, []}
    end.

in_process(Seed) ->
    Dir = filename:join(os:getenv("TMPDIR", "/tmp"), lists:concat(["simulation.", os:getpid(), ".", Seed])),
    ok = simulated_process:begin_at(?NOW, Seed),
    ok = simulated_node:begin_all(Dir),
    ok = simulated_versions:begin_all(),
    ok = simulated_raft:begin_all(),
    ok = simulated_model:begin_all(),
    lists:foreach(fun ({Key, Value}) -> set(Key, Value) end,
                  [{number, 0}, {probes, []}, {releases, []}, {outstanding, #{}}]),
    Until = ?NOW + ?ALL_MS + simulated_faults:begin_all(),
    try
        begun(),
        happen(Until),
        simulated_model:at_end(simulated_process:all_nodes(), known(probes)),
        all_known(known(releases)),
        answered()
    catch
        throw:{violation, _, _} = Violation -> Violation;
        error:Reason:Stack -> {crashed, {Reason, Stack}}
    after
        lists:foreach(fun (Node) ->
                              case simulated_raft:state(Node) of
                                  undefined -> ok;
                                  State -> rabbit_delay_store:close(rabbit_delay_machine:store(State))
                              end
                      end, simulated_process:all_nodes()),
        simulated_file:remove(Dir)
    end.

known(Key) -> erlang:get({?MODULE, Key}).

set(Key, Value) -> _ = erlang:put({?MODULE, Key}, Value), ok.

begun() ->
    lists:foreach(fun start/1, simulated_process:all_nodes()),
    every(60, fun () -> simulated_raft:look() end),
    people(fun publish/0, 30),
    people(fun operate/0, 250),
    people(fun simulated_faults:fail/0, 500),
    ok = simulated_faults:begun(),
    lists:foreach(fun (Node) -> simulated_process:after_ms(simulated_process:up_to(?UPGRADED_MS),
                                                           fun () -> upgrade(Node) end)
                  end, simulated_versions:earlier_ones()),
    simulated_process:after_ms(?FAULTS_MS + simulated_faults:lasts_longer(), fun all_well/0),
    %% Whose session has been forgotten finds that out before.
    simulated_process:after_ms(?PROBES_MS - 1500 + simulated_faults:lasts_longer(),
                               fun () -> lists:foreach(fun publish/1, simulated_process:all_nodes()) end),
    simulated_process:after_ms(?PROBES_MS + simulated_faults:lasts_longer(),
                               fun () -> lists:foreach(fun probe/1, simulated_process:all_nodes()) end).

happen(Until) ->
    case simulated_process:now() < Until andalso simulated_process:next() of
        ok -> happen(Until);
        _ -> ok
    end.

every(Ms, Fun) ->
    Fun(),
    simulated_process:after_ms(Ms, fun () -> every(Ms, Fun) end).

%% As long as there are faults; where these last for long, after a while there is less of it.
people(Fun, MeanMs) ->
    Slower = case simulated_process:now() - ?NOW > ?FAULTS_MS of
                 true -> 10;
                 false -> 1
             end,
    simulated_process:after_ms(simulated_process:up_to(2 * MeanMs * Slower),
                               fun () ->
                                       case simulated_faults:happen() of
                                           true -> Fun(), people(Fun, MeanMs);
                                           false -> ok
                                       end
                               end).

all_well() ->
    ok = simulated_faults:all_well(),
    lists:foreach(fun upgrade/1, simulated_versions:earlier_ones()),
    resume().

%% Whoever leads is asked until it has answered.
resume() ->
    _ = [ask(Node, resume) || Node <- simulated_process:all_nodes(), simulated_process:is_running(Node),
                              simulated_raft:leads(Node)],
    simulated_process:now() < ?NOW + ?FAULTS_MS + simulated_faults:lasts_longer() + 10000
        andalso simulated_process:after_ms(1000, fun resume/0).

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

-spec kill(node()) -> ok.
kill(Node) -> kill(Node, ?DOWN_MS).

kill(Node, DownMs) ->
    simulated_process:note("~p is killed", [Node]),
    simulated_raft:kill_member(Node),
    simulated_process:kill_node(Node),
    ok = simulated_node:forget(Node),
    %% Their publishers' connections with it.
    set(outstanding, maps:filter(fun (_, {On, _}) -> On =/= Node end, known(outstanding))),
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
    case simulated_faults:happen() andalso simulated_versions:may_go_back() andalso simulated_process:chance(15) of
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
    set(probes, [SeqNo | known(probes)]),
    Release = publish(Node, {[field(<<"x-delay-release">>, {longstr, <<"k0">>})], ?WITHOUT_MESSAGE}),
    set(releases, [Release | known(releases)]).

publish(Node, {Headers, First}) ->
    Last = known(number),
    Number = First + Last + 1,
    set(number, Last + 1),
    Queue = simulated_process:named(Node, queue),
    %% Not all of them await a confirm.
    Told = case First =:= 0 andalso simulated_faults:happen() andalso simulated_process:chance(?UNTOLD) of
               true ->
                   ok = simulated_model:untold(Number, Queue),
                   undefined;
               false ->
                   set(outstanding, (known(outstanding))#{Number => {Node, Queue}}),
                   Number
           end,
    Channel = simulated_process:named(Node, channel),
    Message = simulated_broker:message(Number, Headers),
    simulated_process:as(Channel, fun () ->
                                          simulated_process:send(Queue, simulated_broker:channel(
                                                                          {deliver, Message, Channel, Told}))
                                  end),
    Number.

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
    _ = Outcome =:= confirmed andalso set(releases, known(releases) -- SeqNos),
    set(outstanding, maps:without(SeqNos, known(outstanding))),
    Node;
channel(_, Node) ->
    Node.

%% What only the later version of the machine knows is taken in the end, on all nodes.
all_known([]) -> ok;
all_known(Refused) -> throw({violation, not_known_in_the_end, Refused}).

%% Whoever sent something to a queue process that is there still has been told what became of it.
answered() ->
    case [SeqNo || {SeqNo, {Node, Queue}} <- maps:to_list(known(outstanding)),
                   simulated_process:named(Node, queue) =:= Queue] of
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
                    ask(Node, {reschedule, [{Id, simulated_process:clock(Node) + simulated_process:up_to(2000)}
                                            || Id <- Ids]});
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
                                                  simulated_process:send(
                                                    Dispatcher, {'$call', {Channel, change},
                                                                 {change, rabbit_delay_changes:encoded(Change)}})
                                          end)
    end.
