%% SPDX-License-Identifier: MPL-2.0

%% The machine, its snapshots and the store below them, in a real Ra system without a broker.
%% Longer than other files are, as they share that system, what starts and ends it, and the records.
-module(rabbit_delay_raft_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("kernel/include/file.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").


-define(X, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>}).
-define(HOUR, 3600000).
-define(SESSION, 4711).
%% The answer to a keyed batch, where nothing has been handed out.
-define(WENT(Cancelled, Replaced, Dropped),
        {ok, #{cancelled := Cancelled, replaced := Replaced, dropped := Dropped, taken := 0}}).

raft_test_() ->
    {foreach, fun start/0, fun stop/1,
     [fun (_) -> {timeout, 1200, {Title, Test}} end
      || {Title, Test} <-
             [{"a batch is applied once, however often it is sent", fun sent_again/0},
              {"a refused batch uses its number up, and a copy is refused again", fun refused_again/0},
              {"what was admitted is replayed, whatever the limits are now", fun lower_limit/0},
              {"Ra's own commands change nothing", fun commands_of_ra/0},
              {"an unknown command stops its member alone, in words", fun unknown_command/0},
              {"a log that goes on with a later machine is refused, and kept", fun later_log/0},
              {"a snapshot of a later version is refused, and kept", fun later_snapshot/0},
              {"a store of a later version is refused, and kept", fun later_store/0},
              {"a snapshot that cannot be read at present is kept", fun unreadable_snapshot/0},
              {"a snapshot that is damaged is kept, and nothing begins afresh", fun damaged_snapshot/0},
              {"snapshots whose directories are binaries", fun binary_dirs/0},
              {"a batch before its turn is not applied", fun gap/0},
              {"a malformed batch is refused and changes nothing", fun malformed/0},
              {"settled messages are gone after a restart, the others are there", fun restart/0},
              {"a snapshot is taken when enough has come, and restarts begin there", fun snapshot/0},
              {"keys have their effect in the order of the log", fun keys/0},
              {"a keyed batch is applied once, however often it is sent", fun keyed_again/0},
              {"a malformed keyed batch changes nothing", fun keyed_malformed/0},
              {"replay brings nothing back that went by its key", fun keyed_replay/0},
              {"a member keeps the salt of its keys", fun salt/0},
              {"a member without a salt is served", fun no_salt/0},
              {"a lost live store is restored from the snapshot", fun lost_store/0},
              {"a damaged manifest of the live store is replaced by the snapshot", fun damaged/0},
              {"a damaged file costs what is in it, not the snapshot and the log", fun emptied/0},
              {"a snapshot sent in chunks is the snapshot", fun chunks/0},
              {"a snapshot of which a file cannot be opened is not sent", fun unopened/0},
              {"a delayed exchange made again starts empty", fun made_again/0},
              {"cancelled messages are gone, and counted once", fun cancel/0},
              {"rescheduled messages keep their new time over restarts", fun reschedule/0},
              {"a pause outlives restarts, from the log and from a snapshot", fun pause/0},
              {"a snapshot of version 1 is one of an exchange that is not paused", fun version_1/0},
              {"any sequence of changes leaves what a model says", fun changes/0},
              {"the Ra system comes back after it was killed", fun system_killed/0}]]}.

start() ->
    Dir = filename:join("_build", "raft_tests." ++ os:getpid() ++ "." ++
                            integer_to_list(erlang:unique_integer([positive]))),
    Abs = filename:absname(Dir),
    application:set_env(rabbitmq_delay_wheel, data_dir, Abs),
    application:set_env(rabbitmq_delay_wheel, snapshot_interval_messages, 1000),
    application:set_env(ra, data_dir, Abs),
    {ok, _} = application:ensure_all_started(ra),
    ok = rabbit_delay_registry:create_table(),
    ok = rabbit_delay_system:create_table(),
    {ok, System} = rabbit_delay_system:start_link(),
    await(fun () -> rabbit_delay_system:status() =:= up end),
    {System, Abs}.

stop({System, Dir}) ->
    unlink(System),
    exit(System, shutdown),
    await(fun () -> not is_process_alive(System) end),
    true = ets:delete(rabbit_delay_registry),
    true = ets:delete(rabbit_delay_system),
    ok = application:stop(ra),
    [application:unset_env(rabbitmq_delay_wheel, Key) ||
        Key <- [data_dir, snapshot_interval_messages]],
    ok = file:del_dir_r(Dir).

sent_again() ->
    start_member(),
    ?assertEqual(ok, enqueue(1, records(10, ?HOUR))),
    ?assertEqual(ok, enqueue(1, records(10, ?HOUR))),
    ?assertEqual(ok, enqueue(2, records(5, ?HOUR))),
    ?assertEqual(15, pending()).

gap() ->
    start_member(),
    ?assertEqual({gap, 0}, enqueue(2, records(1, ?HOUR))),
    ?assertEqual(ok, enqueue(1, records(1, ?HOUR))),
    ?assertEqual({gap, 1}, enqueue(3, records(1, ?HOUR))),
    ?assertEqual(ok, enqueue(2, records(1, ?HOUR))),
    ?assertEqual(2, pending()).

malformed() ->
    start_member(),
    ?assertEqual({error, einval}, enqueue(1, <<1, 2, 3>>)),
    ?assertEqual({error, einval}, enqueue(2, <<>>)),
    ?assertEqual({error, etoobig}, enqueue(3, <<16#80000000:32/little, 0:160, "x">>)),
    ?assertEqual(ok, enqueue(4, records(1, ?HOUR))),
    ?assertEqual(1, pending()).

refused_again() ->
    start_member(),
    Bad = <<1, 2, 3>>,
    BadKeyed = iolist_to_binary(keyed_record({drop, 0})),
    Check = fun () ->
                    ?assertEqual({error, einval}, enqueue(1, Bad)),
                    ?assertEqual({error, einval}, enqueue(2, 2, BadKeyed))
            end,
    Check(),
    Check(),
    ?assertEqual(ok, enqueue(3, records(1, ?HOUR))),
    Check(),
    restart_member(),
    Check(),
    ?assertEqual(ok, enqueue(3, records(1, ?HOUR))),
    ?assertEqual({gap, 3}, enqueue(5, records(1, ?HOUR))),
    ?assertEqual(1, pending()).

lower_limit() ->
    start_member(),
    Large = <<0:800000>>,
    Batch = [rabbit_delay_store:record_header(byte_size(Large), 0, 1, ?HOUR, 0), Large],
    ok = enqueue(1, iolist_to_binary(Batch)),
    ?WENT(0, 0, 0) = enqueue(2, 2, iolist_to_binary([keyed_record({replace, 9}) | Batch])),
    Ids = pending_ids(),
    ?assertEqual(3, length(Ids)),
    application:set_env(rabbitmq_delay_wheel, max_message_size, 1024),
    try
        stop_member(),
        {ok, Uid} = rabbit_delay_raft:find_member(?X),
        ok = file:del_dir_r(rabbit_delay_raft:store_dir(Uid)),
        start_member(),
        ?assertEqual(Ids, pending_ids()),
        ?assertEqual(ok, enqueue(3, records(1, ?HOUR)))
    after
        application:unset_env(rabbitmq_delay_wheel, max_message_size)
    end.

commands_of_ra() ->
    start_member(),
    ok = enqueue(1, records(3, ?HOUR)),
    [?assertEqual(ok, command(Command))
     || Command <- [{down, self(), normal}, {nodeup, node()}, {nodedown, node()}, {timeout, x},
                    {machine_version, 0, 1}]],
    restart_member(),
    ?assertEqual(3, pending()).

%% Its messages stay, and another exchange's member goes on.
unknown_command() ->
    Other = ?X#resource{name = <<"another">>},
    await(fun () -> rabbit_delay_raft:start_member(Other, true) =:= ok end),
    OtherPid = whereis(element(1, rabbit_delay_raft:server_id(Other))),
    [begin
         start_member(),
         ok = enqueue(1, records(3, ?HOUR)),
         ?assertEqual(no_reply, command(Command)),
         await_refusal("machine 4 or later, this one's is 3"),
         await(fun () -> whereis(element(1, rabbit_delay_raft:server_id(?X))) =:= undefined end),
         %% From the log, too, and without an end to it.
         ok = rabbit_delay_registry:refuse(?X, undefined),
         await(fun () -> rabbit_delay_raft:start_member(?X, true) =/= ok end),
         await_refusal("machine 4 or later, this one's is 3"),
         {ok, Uid} = rabbit_delay_raft:find_member(?X),
         ?assertMatch({ok, _}, file:list_dir(rabbit_delay_raft:store_dir(Uid))),
         ok = rabbit_delay_raft:delete_member(?X, rabbit_delay_raft:mark_deleted(?X)),
         ok = rabbit_delay_registry:refuse(?X, undefined)
     end || Command <- [{enqueue, 5, 1, 1, {none, none}, <<>>}, {settle, 4, <<>>}, {purge, 2}, {open, 2, node()},
                        {note, 2}, {pause, 2}, unknown, {machine_version, 1}]],
    ?assertEqual(OtherPid, whereis(element(1, rabbit_delay_raft:server_id(Other)))),
    ok = rabbit_delay_raft:delete_member(Other, rabbit_delay_raft:mark_deleted(Other)).

%% As a leader of a later version writes it, before its first entry of the term.
later_log() ->
    start_member(),
    ok = enqueue(1, records(3, ?HOUR)),
    #{machine_version := 3, effective_machine_version := 3} = overview(),
    gen_statem:cast(rabbit_delay_raft:server_id(?X),
                    {command, {noop, #{ts => erlang:system_time(millisecond)}, 4}}),
    await(fun () -> maps:get(effective_machine_version, overview()) =:= 4 end),
    stop_member(),
    ?assertEqual({error, refused}, rabbit_delay_raft:start_member(?X, true)),
    await_refusal("machine 4, this one's is 3"),
    ?assertEqual(undefined, whereis(element(1, rabbit_delay_raft:server_id(?X)))).

%% The newest one of a member that has been stopped.
snapshot_of_stopped() ->
    start_member(),
    [ok = enqueue(N, records(100, ?HOUR)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    stop_member(),
    await(fun () -> writers() =:= [] end),
    hd(snapshots()).

%% Processes that write a snapshot, which a member that stops leaves behind.
writers() ->
    [Pid || Pid <- processes(), {current_stacktrace, Calls} <- [process_info(Pid, current_stacktrace)],
            {Module, _, _, _} <- Calls, lists:member(Module, [ra_snapshot, rabbit_delay_snapshot])].

later_snapshot() ->
    Snapshot = snapshot_of_stopped(),
    File = filename:join(Snapshot, "delay_snapshot"),
    {ok, <<"DWSN", 1, _:32, Content/binary>> = Before} = file:read_file(File),
    {Meta, State} = binary_to_term(Content),
    #{machine_version := 3} = Meta,
    Written = fun (Term) ->
                      Bytes = term_to_binary(Term),
                      <<"DWSN", 1, (erlang:crc32(Bytes)):32, Bytes/binary>>
              end,
    [begin
         ok = file:write_file(File, Later),
         ?assertEqual({error, refused}, rabbit_delay_raft:start_member(?X, true)),
         await_refusal(Words),
         ?assertEqual({ok, Later}, file:read_file(File)),
         ok = rabbit_delay_registry:refuse(?X, undefined)
     end || {Later, Words} <- [{<<"DWSN", 2, "whatever">>, "file 2, this one reads 1"},
                               {Written({Meta#{machine_version := 4}, State}), "machine 4"},
                               {Written({Meta, State#{version := 4}}), "state 4, this one reads 3"}]],
    %% Ra asks it itself and deletes what it calls invalid: not this.
    ok = file:write_file(File, <<"DWSN", 2, "whatever">>),
    ?assertExit({delay_snapshot, Snapshot, {invalid_version, 2}},
                rabbit_delay_snapshot:validate(Snapshot)),
    ?assertExit({machine_version, 4, 3}, rabbit_delay_machine:which_module(4)),
    ok = file:write_file(File, Before),
    start_member(),
    ?assertEqual(2500, pending()).

later_store() ->
    start_member(),
    [ok = enqueue(N, records(100, ?HOUR)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    stop_member(),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    [begin
         File = filename:join(Dir, "MANIFEST"),
         {ok, <<Magic:8/binary, 1:32/little, _:32, Rest/binary>> = Before} = file:read_file(File),
         Crc = crc32c([<<Magic/binary, 2:32/little>>, Rest]),
         ok = file:delete(File),
         ok = file:write_file(File, Later = <<Magic/binary, 2:32/little, Crc:32/little, Rest/binary>>),
         ?assertEqual({error, eversion}, rabbit_delay_store:peek_applied(Dir)),
         ?assertEqual({error, refused}, rabbit_delay_raft:start_member(?X, true)),
         await_refusal("the manifest in [^ ]* is of a later version"),
         ?assertEqual({ok, Later}, file:read_file(File)),
         ok = file:write_file(File, Before),
         ok = rabbit_delay_registry:refuse(?X, undefined)
     end || Dir <- [rabbit_delay_raft:store_dir(Uid), hd(snapshots())]],
    start_member(),
    ?assertEqual(2500, pending()).

%% A file that cannot be read is none that is not whole.
unreadable_snapshot() ->
    Snapshot = snapshot_of_stopped(),
    File = filename:join(Snapshot, "delay_snapshot"),
    Away = filename:join(Snapshot, "away"),
    ok = file:rename(File, Away),
    ok = file:make_dir(File),
    ?assertExit({delay_snapshot, Snapshot, eisdir}, rabbit_delay_snapshot:validate(Snapshot)),
    ?assertMatch({error, _}, rabbit_delay_raft:start_member(?X, true)),
    ok = file:del_dir(File),
    ok = file:rename(Away, File),
    start_member(),
    ?assertEqual(2500, pending()).

%% A group of one has it nowhere else. Begun afresh it would take in what its store then passes over.
damaged_snapshot() ->
    Snapshot = snapshot_of_stopped(),
    File = filename:join(Snapshot, "delay_snapshot"),
    {ok, <<Before:20/binary, Byte, After/binary>> = Whole} = file:read_file(File),
    ok = file:write_file(File, Damaged = <<Before/binary, (Byte bxor 1), After/binary>>),
    ?assertMatch({error, _}, rabbit_delay_raft:start_member(?X, true)),
    ?assertEqual({ok, Damaged}, file:read_file(File)),
    ?assertNot(rabbit_delay_local_member:is_damaged(?X)),
    ok = file:write_file(File, Whole),
    start_member(),
    ?assertEqual(ok, enqueue(26, records(7, ?HOUR))),
    ?assertEqual(2507, pending()).

%% As Ra gives them from 2.16 on.
binary_dirs() ->
    start_member(),
    ok = enqueue(1, records(100, ?HOUR)),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    Base = iolist_to_binary(filename:join([rabbit_delay_config:data_dir(), Uid, "snapshots"])),
    [Taken, Copy] = [<<Base/binary, "/", Name/binary>> || Name <- [<<"1_taken">>, <<"1_copy">>]],
    [ok = file:make_dir(Dir) || Dir <- [Taken, Copy]],
    Meta = #{index => 2, term => 1, cluster => #{}, machine_version => 1},
    {ok, {_, State}, _} = ra:local_query(rabbit_delay_raft:server_id(?X), fun (S) -> S end),
    {ok, Bytes} = rabbit_delay_snapshot:write(Taken, Meta,
                                              rabbit_delay_snapshot:prepare(Meta, State), true),
    ?assertEqual({ok, Bytes}, rabbit_delay_snapshot:get_size(Taken)),
    ?assert(Bytes > 100 * 4),
    {ok, Meta, Reading} = rabbit_delay_snapshot:begin_read(Taken, #{}),
    {ok, Accepting} = rabbit_delay_snapshot:begin_accept(Copy, Meta),
    ok = send(Reading, Taken, Accepting),
    [begin
         ?assertEqual(ok, rabbit_delay_snapshot:validate(Dir)),
         ?assertEqual({ok, Meta}, rabbit_delay_snapshot:read_meta(Dir)),
         ?assertEqual(#{file => 1, machine => 1, state => 2}, rabbit_delay_snapshot:versions(Dir))
     end || Dir <- [Taken, Copy]],
    stop_member(),
    ok = file:del_dir_r(rabbit_delay_raft:store_dir(Uid)),
    ok = rabbit_delay_registry:permit_start(?X),
    {ok, Meta, Recovered} = rabbit_delay_snapshot:recover(Copy),
    ?assertMatch(#{pending := 100},
                 rabbit_delay_store:stat(rabbit_delay_machine:store(Recovered))),
    ok = rabbit_delay_store:close(rabbit_delay_machine:store(Recovered)).

command(Command) ->
    try ra:process_command(rabbit_delay_raft:server_id(?X), Command, 5000) of
        {ok, Reply, _} -> Reply;
        _ -> no_reply
    catch
        exit:_ -> no_reply
    end.

overview() ->
    {ok, Overview} = rabbit_delay_broker:raft_overview(rabbit_delay_raft:server_id(?X), 5000),
    Overview.

await_refusal(Words) ->
    await(fun () -> rabbit_delay_registry:refusal(?X) =/= undefined end),
    ?assertMatch({match, _}, re:run(rabbit_delay_registry:refusal(?X), Words)),
    ?assertMatch({match, _}, re:run(rabbit_delay_registry:refusal(?X), "install that version")).

crc32c(Data) ->
    lists:foldl(fun (Byte, Crc) -> crc32c(8, Crc bxor Byte) end, 16#ffffffff,
                binary_to_list(iolist_to_binary(Data))) bxor 16#ffffffff.

crc32c(0, Crc) -> Crc;
crc32c(N, Crc) when Crc band 1 =:= 1 -> crc32c(N - 1, (Crc bsr 1) bxor 16#82f63b78);
crc32c(N, Crc) -> crc32c(N - 1, Crc bsr 1).

restart() ->
    start_member(),
    ok = enqueue(1, records(100, 0)),
    {ok, Taken, _} = take(50),
    ?assertEqual(50, length(Taken)),
    ?assertEqual({ok, 50}, settle(Taken)),
    restart_member(),
    ?assertEqual(50, pending()),
    {ok, Rest, infinity} = take(100),
    ?assertEqual([], ids(Taken) -- (ids(Taken) -- ids(Rest))),
    ?assertEqual(50, length(Rest)),
    ?assertEqual(ok, enqueue(1, records(100, 0))),
    ?assertEqual(50, pending()).

snapshot() ->
    start_member(),
    [ok = enqueue(N, records(100, ?HOUR)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    ?assertEqual(2500, pending()),
    restart_member(),
    ?assertEqual(2500, pending()),
    ?assertEqual({gap, 25}, enqueue(27, records(1, ?HOUR))),
    ?assertEqual(ok, enqueue(26, records(1, ?HOUR))),
    ?assertEqual(2501, pending()).

keys() ->
    start_member(),
    ?assertMatch(?WENT(0, 0, 0), keyed(1, [{keep, 1}, {keep, 1}, {keep, 2}])),
    ?assertMatch(?WENT(0, 0, 1), keyed(2, [{drop, 1}, {drop, 3}])),
    ?assertMatch(?WENT(0, 2, 0), keyed(3, [{replace, 1}])),
    ?assertEqual([1, 2, 3], pending_keys()),
    ?assertMatch(?WENT(2, 0, 1), keyed(4, [{cancel, 1}, {drop, 1}, {drop, 1}, {cancel, 2}])),
    ?assertEqual([1, 3], pending_keys()),
    ?assertMatch(?WENT(0, 0, 0), keyed(5, [{cancel, 2}])),
    ?assertMatch(?WENT(3, 1, 0), keyed(6, [{keep, 4}, {replace, 4}, {cancel, 4}, {cancel, 1},
                                          {cancel, 3}])),
    ?assertEqual([], pending_keys()),
    %% Of either version, in one log.
    ?assertEqual(ok, enqueue(7, iolist_to_binary(keyed_record({keep, 5})))),
    ?assertMatch(?WENT(1, 0, 0), keyed(8, [{cancel, 5}])).

keyed_again() ->
    start_member(),
    ?assertMatch(?WENT(0, 0, 0), keyed(1, [{keep, 1}])),
    ?assertMatch(?WENT(0, 1, 0), keyed(2, [{replace, 1}])),
    ?assertMatch(?WENT(1, 0, 0), keyed(3, [{cancel, 1}])),
    ?assertEqual(ok, keyed(1, [{keep, 1}])),
    ?assertEqual(ok, keyed(2, [{replace, 1}])),
    ?assertEqual({gap, 3}, keyed(5, [{keep, 1}])),
    ?assertEqual([], pending_keys()).

keyed_malformed() ->
    start_member(),
    ?assertMatch(?WENT(0, 0, 0), keyed(1, [{keep, 1}])),
    Cancel = keyed_record({cancel, 1}),
    [?assertEqual({error, einval}, enqueue(N, 2, iolist_to_binary([Cancel, Bad])))
     || {N, Bad} <- [{2, <<1, 2, 3>>}, {3, keyed_record({cancel, 0})},
                     {4, keyed_record({drop, 0})}]],
    ?assertEqual({error, einval}, enqueue(5, 1, iolist_to_binary(Cancel))),
    ?assertEqual([1], pending_keys()).

%% The log's tail comes again after a restart, over a store that has some or none of it.
keyed_replay() ->
    start_member(),
    Rounds = 40,
    [begin
         ?WENT(_, _, _) = keyed(N, [{keep, 1000 + N} | [{replace, K} || K <- lists:seq(1, 50)]]),
         N rem 7 =:= 0 andalso restart_member()
     end || N <- lists:seq(1, Rounds)],
    ?WENT(_, _, _) = keyed(Rounds + 1, [{cancel, K} || K <- lists:seq(2, 50)]),
    Expected = [1 | lists:seq(1001, 1000 + Rounds)],
    ?assertEqual(Expected, pending_keys()),
    restart_member(),
    ?assertEqual(Expected, pending_keys()),
    stop_member(),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    ok = file:del_dir_r(rabbit_delay_raft:store_dir(Uid)),
    start_member(),
    ?assertEqual(Expected, pending_keys()),
    ?assertMatch(?WENT(1, 0, 0), keyed(Rounds + 2, [{cancel, 1}])).

salt() ->
    start_member(),
    {ok, Salt} = rabbit_delay_raft:key_salt(?X),
    ?assertEqual(16, byte_size(Salt)),
    restart_member(),
    ?assertEqual({ok, Salt}, rabbit_delay_raft:key_salt(?X)),
    ok = rabbit_delay_raft:delete_member(?X, rabbit_delay_raft:mark_deleted(?X)),
    ?assertMatch({error, _}, rabbit_delay_raft:key_salt(?X)),
    start_member(),
    ?assertNotEqual({ok, Salt}, rabbit_delay_raft:key_salt(?X)).

%% As members were made before there were keys.
no_salt() ->
    start_member(),
    ok = enqueue(1, records(10, ?HOUR)),
    stop_member(),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    Dir = filename:dirname(rabbit_delay_raft:store_dir(Uid)),
    {ok, #{machine := {module, Module, Args}} = Config} = ra_log:read_config(Dir),
    Older = Config#{machine := {module, Module, maps:remove(key_salt, Args)}},
    ok = file:write_file(filename:join(Dir, "config"), io_lib:format("~w.", [Older])),
    start_member(),
    ?assertEqual({ok, <<>>}, rabbit_delay_raft:key_salt(?X)),
    ?assertEqual(10, pending()).

lost_store() ->
    start_member(),
    [ok = enqueue(N, records(100, 0)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    stop_member(),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    ok = file:del_dir_r(rabbit_delay_raft:store_dir(Uid)),
    start_member(),
    ?assertEqual(2500, pending()),
    {ok, Taken, infinity} = take(5000),
    ?assertEqual(2500, length(lists:usort(ids(Taken)))),
    [?assertEqual(<<"body">>, Body) || {_, _, _, Body} <- Taken].

damaged() ->
    start_member(),
    [ok = enqueue(N, records(100, 0)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    stop_member(),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    ok = file:write_file(filename:join(rabbit_delay_raft:store_dir(Uid), "MANIFEST"), <<"nonsense">>),
    start_member(),
    ?assertEqual(2500, pending()).

%% Emptied under both its names, the live store's and the snapshot's.
emptied() ->
    start_member(),
    [ok = enqueue(N, records(100, ?HOUR * N)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    stop_member(),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    Live = [{file_inode(File), File}
            || File <- filelib:wildcard(filename:join(rabbit_delay_raft:store_dir(Uid), "*.rec"))],
    [Snapshot | _] = snapshots(),
    [File | _] = [File || Linked <- filelib:wildcard(filename:join(Snapshot, "*.rec")),
                          {Inode, File} <- Live, Inode =:= file_inode(Linked)],
    ok = file:write_file(File, <<>>),
    ?assertMatch({error, _}, rabbit_delay_store:validate(Snapshot)),
    ?assertEqual(ok, rabbit_delay_snapshot:validate(Snapshot)),
    start_member(),
    ?assertEqual(ok, enqueue(26, records(100, ?HOUR))),
    ?assert(pending() >= 100).

file_inode(File) ->
    {ok, Info} = file:read_file_info(File),
    Info#file_info.inode.

chunks() ->
    start_member(),
    [ok = enqueue(N, records(100, ?HOUR)) || N <- lists:seq(1, 25)],
    {Snapshot, Meta, Reading} = open_snapshot(),
    Copy = filename:join([filename:dirname(filename:dirname(Snapshot)), "accepted", "copy"]),
    ok = filelib:ensure_dir(filename:join(Copy, "x")),
    {ok, Accepting} = rabbit_delay_snapshot:begin_accept(Copy, Meta),
    ?assertMatch({error, _}, rabbit_delay_snapshot:validate(Copy)),
    ok = send(Reading, Snapshot, Accepting),
    ?assertEqual(ok, rabbit_delay_snapshot:validate(Copy)),
    ?assertEqual({ok, Meta}, rabbit_delay_snapshot:read_meta(Copy)),
    {ok, Applied} = rabbit_delay_store:validate(Copy),
    ?assert(Applied >= maps:get(index, Meta)).

%% What cannot be opened is not taken for what is not there: a snapshot is sent whole, or not at all.
unopened() ->
    start_member(),
    [ok = enqueue(N, records(100, ?HOUR)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    Snapshot = snapshot_of_stopped(),
    Odd = filename:join(Snapshot, "0.rec"),
    ok = file:make_symlink("0.rec", Odd),
    ?assertEqual({error, eloop}, rabbit_delay_snapshot:begin_read(Snapshot)),
    ok = file:delete(Odd),
    {ok, _, _} = rabbit_delay_snapshot:begin_read(Snapshot).

%% A later snapshot may delete the one that is found before it is opened, not after.
open_snapshot() ->
    await(fun () -> snapshots() =/= [] end),
    [Snapshot | _] = snapshots(),
    case rabbit_delay_snapshot:begin_read(Snapshot) of
        {ok, Meta, Reading} -> {Snapshot, Meta, Reading};
        {error, _} -> open_snapshot()
    end.

send(Reading, Dir, Accepting) ->
    case rabbit_delay_snapshot:read_chunk(Reading, 1000, Dir) of
        {ok, Chunk, {next, Next}} ->
            {ok, Accepting1} = rabbit_delay_snapshot:accept_chunk(Chunk, Accepting),
            send(Next, Dir, Accepting1);
        {ok, Chunk, last} ->
            rabbit_delay_snapshot:complete_accept(Chunk, Accepting)
    end.

made_again() ->
    start_member(),
    ok = enqueue(1, records(10, ?HOUR)),
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    ok = rabbit_delay_raft:delete_member(?X, rabbit_delay_raft:mark_deleted(?X)),
    ?assertEqual(none, rabbit_delay_raft:find_member(?X)),
    start_member(),
    ?assertEqual(0, pending()),
    ?assertNotEqual({ok, Uid}, rabbit_delay_raft:find_member(?X)),
    restart_member(),
    ?assertEqual(0, pending()).

system_killed() ->
    start_member(),
    ok = enqueue(1, records(10, ?HOUR)),
    #{names := #{wal := Wal, log_sup := LogSup}} = rabbit_delay_raft:system_config(),
    exit(whereis(LogSup), kill),
    await(fun () -> is_pid(whereis(Wal)) andalso rabbit_delay_system:status() =:= up end),
    %% The tables that Ra looks names up in are away for a while.
    await(fun () -> (catch rabbit_delay_raft:start_member(?X, true)) =:= ok end),
    await_leader(),
    ?assertEqual(10, pending()).

cancel() ->
    start_member(),
    ok = enqueue(1, records(10, ?HOUR)),
    [First, Second | _] = Ids = pending_ids(),
    ?assertEqual({ok, 2}, change({cancel, <<First:64/little, Second:64/little>>})),
    ?assertEqual({ok, 0}, change({cancel, <<First:64/little>>})),
    ?assertEqual({ok, 0}, change({cancel, <<>>})),
    restart_member(),
    ?assertEqual(Ids -- [First, Second], pending_ids()).

reschedule() ->
    start_member(),
    ok = enqueue(1, records(3, ?HOUR)),
    [First, Second, Third] = pending_ids(),
    Now = erlang:system_time(millisecond),
    ?assertEqual({ok, 2}, change({reschedule, <<Third:64/little, (Now - 5):64/little,
                                                77:64/little, Now:64/little,
                                                First:64/little, (Now + 2 * ?HOUR):64/little>>})),
    ?assertEqual([Third, Second, First], pending_ids()),
    restart_member(),
    ?assertEqual([Third, Second, First], pending_ids()),
    {ok, [{Third, Due, 1, <<"body">>}], _} = take(10),
    ?assertEqual(Now - 5, Due).

pause() ->
    start_member(),
    ?assertNot(is_paused()),
    ?assertEqual(ok, change(pause)),
    ?assert(is_paused()),
    restart_member(),
    ?assert(is_paused()),
    [ok = enqueue(N, records(100, ?HOUR)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    restart_member(),
    ?assert(is_paused()),
    ?assertEqual(ok, change(resume)),
    restart_member(),
    ?assertNot(is_paused()),
    ?assertEqual(2500, pending()).

version_1() ->
    start_member(),
    [ok = enqueue(N, records(100, ?HOUR)) || N <- lists:seq(1, 25)],
    await(fun () -> snapshots() =/= [] end),
    Snapshot = #{version => 1, exchange => ?X, seen => 7, sessions => [{?SESSION, 25}]},
    State = rabbit_delay_machine:from_snapshot(Snapshot, store()),
    ?assertNot(rabbit_delay_machine:is_paused(State)),
    ?assertEqual(Snapshot#{version := 2, paused => false},
                 rabbit_delay_machine:to_snapshot(State)),
    Unknown = fun () -> rabbit_delay_machine:from_snapshot(Snapshot#{version := 4}, store()) end,
    ?assertError(function_clause, Unknown()).

%% ------------------------------------------------------------------- sequences of changes

changes() ->
    Property = ?FORALL(Steps, list(step()), holds(Steps)),
    ?assert(proper:quickcheck(Property, [{numtests, 40}, {max_size, 40}, {to_file, user}])).

%% Which messages are meant is a number of places in due order, and some that are not there.
step() ->
    frequency([{6, {enqueue, integer(1, 20), integer(1, 1000)}},
               {3, {cancel, list(integer(0, 60))}},
               {2, {settle, list(integer(0, 60))}},
               {4, {reschedule, list({integer(0, 60), integer(0, 2000)})}},
               {1, purge}, {1, pause}, {1, resume}, {1, restart}]).

holds(Steps) ->
    _ = rabbit_delay_raft:delete_member(?X, rabbit_delay_raft:mark_deleted(?X)),
    start_member(),
    %% Far from now: nothing comes due meanwhile.
    Base = erlang:system_time(millisecond) + ?HOUR,
    {Dues, Paused, _} =
        lists:foldl(fun (Step, Model) -> run(Step, Base, Model) end, {#{}, false, 0}, Steps),
    restart_member(),
    {ok, Records} = rabbit_delay_store:page(store(), {0, 0}, 65535),
    ?assertEqual(lists:sort([{Due, Id} || {Id, Due} <- maps:to_list(Dues)]),
                 [{Due, Id} || #{id := Id, due := Due} <- Records]),
    is_paused() =:= Paused.

run({enqueue, Count, Offset}, Base, {Dues, Paused, SeqNo}) ->
    Due = Base + Offset,
    ok = enqueue(SeqNo + 1, << <<4:32/little, 1:16/little, 1:16/little, Due:64/little, 0:64, "body">>
                               || _ <- lists:seq(1, Count) >>),
    New = [Id || Id <- pending_ids(), not is_map_key(Id, Dues)],
    Count = length(New),
    {maps:merge(Dues, maps:from_list([{Id, Due} || Id <- New])), Paused, SeqNo + 1};
run({Removal, Places}, _, {Dues, Paused, SeqNo}) when Removal =:= cancel; Removal =:= settle ->
    Ids = [place(Place, Dues) || Place <- Places],
    Binary = << <<Id:64/little>> || Id <- Ids >>,
    There = length([Id || Id <- lists:usort(Ids), is_map_key(Id, Dues)]),
    {ok, There} = case Removal of
                      cancel -> change({cancel, Binary});
                      settle -> settle_released(<< <<Id:64/little, (due(Id, Dues)):64/little>>
                                                   || Id <- Ids >>)
                  end,
    {maps:without(Ids, Dues), Paused, SeqNo};
run({reschedule, Moves}, Base, {Dues0, Paused, SeqNo}) ->
    Pairs = [{place(Place, Dues0), Base + Offset} || {Place, Offset} <- Moves],
    There = length([Id || {Id, _} <- Pairs, is_map_key(Id, Dues0)]),
    {ok, There} = change({reschedule, << <<Id:64/little, Due:64/little>> || {Id, Due} <- Pairs >>}),
    Dues = lists:foldl(fun ({Id, Due}, Acc) when is_map_key(Id, Acc) -> Acc#{Id := Due};
                           (_, Acc) -> Acc
                       end, Dues0, Pairs),
    {Dues, Paused, SeqNo};
run(purge, _, {Dues, Paused, SeqNo}) ->
    Count = map_size(Dues),
    {ok, #{removed := Count, taken := 0}} = change(purge),
    {#{}, Paused, SeqNo};
run(restart, _, Model) ->
    restart_member(),
    Model;
run(Switch, _, {Dues, _, SeqNo}) ->
    ok = change(Switch),
    {Dues, Switch =:= pause, SeqNo}.

due(Id, Dues) -> maps:get(Id, Dues, 1).

place(Place, Dues) ->
    Ids = [Id || {_, Id} <- lists:sort([{Due, Id} || {Id, Due} <- maps:to_list(Dues)])],
    case Place < length(Ids) of
        true -> lists:nth(Place + 1, Ids);
        false -> Place + 1
    end.

%% ------------------------------------------------------------------------------ helpers

%% What the member before was still writing as a snapshot may be in the way for a moment.
start_member() ->
    await(fun () -> rabbit_delay_raft:start_member(?X, true) =:= ok end),
    _ = await_leader(),
    ok.

stop_member() ->
    ok = rabbit_delay_raft:stop_member(?X).

restart_member() ->
    stop_member(),
    start_member().

await_leader() ->
    Id = rabbit_delay_raft:server_id(?X),
    await(fun () -> case ra:members(Id, 1000) of
                        {ok, _, Id} -> true;
                        _ -> false
                    end
          end),
    Ref = make_ref(),
    ok = rabbit_delay_commands:note(Id, Ref),
    {ok, #{machine_version := 3, term := Term}} = reply(Ref),
    Term.

keyed(SeqNo, Records) ->
    enqueue(SeqNo, 2, iolist_to_binary([keyed_record(R) || R <- Records])).

keyed_record({cancel, Key}) ->
    <<0:32, (3 bsl 1):16/little, 0:16, 0:64, Key:64/little>>;
keyed_record({OnKey, Key}) ->
    Flags = case OnKey of keep -> 0; replace -> 1 bsl 1; drop -> 2 bsl 1 end,
    <<4:32/little, Flags:16/little, 1:16/little, ?HOUR:64/little, Key:64/little, "body">>.

pending_keys() ->
    {ok, Records} = rabbit_delay_store:page(store(), {0, 0}, 1000),
    lists:sort([Key || #{key_hash := Key} <- Records]).

enqueue(SeqNo, Batch) ->
    enqueue(SeqNo, 1, Batch).

enqueue(SeqNo, Version, Batch) ->
    Ref = make_ref(),
    ok = rabbit_delay_commands:enqueue(rabbit_delay_raft:server_id(?X), ?SESSION, SeqNo,
                                   {Version, {0, none}, Batch}, Ref),
    reply(Ref).

settle(Taken) ->
    settle_released(<< <<Id:64/little, Due:64/little>> || {Id, Due, _, _} <- Taken >>).

settle_released(Released) ->
    Ref = make_ref(),
    ok = rabbit_delay_commands:settle(rabbit_delay_raft:server_id(?X), 3, Released, Ref),
    reply(Ref).

change(Change) ->
    Ref = make_ref(),
    ok = rabbit_delay_commands:change(rabbit_delay_raft:server_id(?X), await_leader(), Change, Ref),
    reply(Ref).

is_paused() ->
    {ok, {_, Paused}, _} = ra:local_query(rabbit_delay_raft:server_id(?X),
                                          fun rabbit_delay_machine:is_paused/1),
    Paused.

pending_ids() ->
    {ok, Records} = rabbit_delay_store:page(store(), {0, 0}, 65535),
    [Id || #{id := Id} <- Records].

reply(Ref) ->
    receive
        {ra_event, _, {applied, Replies}} ->
            case lists:keyfind(Ref, 1, Replies) of
                {Ref, Reply} -> Reply;
                false -> reply(Ref)
            end
    after 120000 ->
            no_reply
    end.

take(N) ->
    rabbit_delay_store:take(store(), erlang:system_time(millisecond) + 10, N, 1 bsl 20).

ids(Taken) ->
    [Id || {Id, _, _, _} <- Taken].

pending() ->
    #{pending := Pending} = rabbit_delay_store:stat(store()),
    Pending.

store() ->
    {ok, {_, Store}, _} = ra:local_query(rabbit_delay_raft:server_id(?X),
                                         fun rabbit_delay_machine:store/1),
    Store.

records(N, Delay) ->
    iolist_to_binary([<<4:32/little, 0:16, 1:16/little, Delay:64/little, 0:64, "body">>
                      || _ <- lists:seq(1, N)]).

%% The newest first, which is the one that Ra begins with.
snapshots() ->
    {ok, Uid} = rabbit_delay_raft:find_member(?X),
    Dir = filename:join(filename:dirname(rabbit_delay_raft:store_dir(Uid)), "snapshots"),
    [S || S <- lists:reverse(lists:sort(filelib:wildcard(filename:join(Dir, "*")))),
          rabbit_delay_snapshot:validate(S) =:= ok].

await(Condition) ->
    await(Condition, erlang:monotonic_time(millisecond) + 300000).

await(Condition, Deadline) ->
    case Condition() of
        true ->
            ok;
        false ->
            ?assert(erlang:monotonic_time(millisecond) < Deadline),
            receive after 20 -> ok end,
            await(Condition, Deadline)
    end.
