%% SPDX-License-Identifier: MPL-2.0

%% A snapshot that is sent to a member that has some of it. The store whose snapshot it is is a real one; what the
%% receiver has is made of that at random, and a model says what has to be sent.
-module(rabbit_delay_snapshot_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").

-define(X, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>}).
-define(META, #{index => 10, term => 1, cluster => [], machine_version => 3}).
-define(HOUR, 3600000).
-define(HEADER, 64).
-define(BLOCK, 491520).
-define(CHUNK, 1000000).
-define(RUNS, 25).

snapshot_test_() ->
    {setup, fun start/0, fun stop/1,
     fun (S) ->
             [{timeout, 600, {Title, fun () -> Test(S) end}}
              || {Title, Test} <-
                     [{"only what the receiver lacks is sent, whatever it has", fun any_files/1},
                      {"a file of the same name and length is sent if its bytes are others", fun other_bytes/1},
                      {"what has come to a file since the snapshot is not sent", fun since/1},
                      {"a receiver that says nothing is sent all, in chunks that all versions know", fun earlier/1},
                      {"one that cannot be asked is sent all", fun cannot_be_asked/1},
                      {"chunks of another transfer are not taken", fun another_transfer/1},
                      {"what is not there any more is not made up", fun gone/1},
                      {"nothing is left out of a file, and no file of a snapshot", fun left_out/1},
                      {"a damaged one is not deleted nor passed over, and its member is one that others mend", fun damaged/1},
                      {"a sender has one of the stores' descriptors, or waits, or is refused", fun descriptors/1},
                      {"no file is held when the sender has ended, or was ended before", fun held/1}]]
     end}.

start() ->
    Base = filename:absname(filename:join("_build", "snapshot_tests." ++ os:getpid())),
    application:set_env(rabbitmq_delay_wheel, data_dir, Base),
    ok = rabbit_delay_registry:create_table(),
    {ok, Budget} = rabbit_delay_budget:start_link(),
    Sender = filename:join([Base, "Dsender", "snapshots", "1_10"]),
    ok = filelib:ensure_dir(filename:join(Sender, "x")),
    Digest = write_snapshot(filename:join([Base, "Dsender", "delay_store"]), Sender),
    Receiver = filename:join(Base, "Dreceiver"),
    ok = rabbit_delay_registry:register_server(?X, {{receiver, node()}, <<"Dreceiver">>}, 3),
    #{base => Base, budget => Budget, sender => Sender, receiver => Receiver, digest => Digest}.

stop(#{base := Base, budget := Budget}) ->
    unlink(Budget),
    exit(Budget, kill),
    true = ets:delete(rabbit_delay_registry),
    application:unset_env(rabbitmq_delay_wheel, data_dir),
    ok = file:del_dir_r(Base).

%% Three files of records of several blocks, and some small ones.
write_snapshot(Live, Snapshot) ->
    Now = erlang:system_time(millisecond),
    {ok, Store, _} = rabbit_delay_store:open(Live, #{now => Now}),
    [{ok, _, _, _, _} = rabbit_delay_store:insert(Store, Index, Now, batch(Delay, Count, Bytes))
     || {Index, Delay, Count, Bytes} <- [{1, ?HOUR, 700, 2000}, {2, 3 * 24 * ?HOUR, 1500, 900},
                                         {3, 30 * 24 * ?HOUR, 20, 100000}, {4, 1000, 10, 100},
                                         {5, 100 * ?HOUR, 1, 5000}]],
    ok = rabbit_delay_store:note(Store, 10),
    #{digest := Digest} = rabbit_delay_store:stat(Store),
    {ok, Checkpoint, 10} = rabbit_delay_store:checkpoint(Store),
    ok = rabbit_delay_store:finish(Checkpoint, Snapshot),
    ok = rabbit_delay_store:close(Store),
    State = #{version => 2, exchange => ?X, seen => 10, sessions => [], paused => false},
    ok = rabbit_delay_snapshot:write_state(Snapshot, term_to_binary({?META, State})),
    Digest.

batch(Delay, Count, Bytes) ->
    [[rabbit_delay_store:record_header(Bytes, 0, 1, Delay, 0), rand:bytes(Bytes)] || _ <- lists:seq(1, Count)].

%% ------------------------------------------------------------------ what the receiver has

any_files(S) ->
    _ = [begin
             _ = rand:seed(exsss, Run),
             ok = has(S, any_of(S)),
             {Chunks, Copy} = transfer(S, offering()),
             ?assertEqual({Run, lacking(S)}, {Run, sent(Chunks)}),
             ok = is_snapshot(S, Copy)
         end || Run <- lists:seq(1, ?RUNS)],
    ok.

%% Of each file of the snapshot what the receiver has, and under which name; and others.
any_of(#{sender := Sender}) ->
    lists:append([have(rand:uniform(8), Name, Bytes) || {Name, Bytes} <- contents(Sender), is_partition(Name)])
        ++ [{integer_to_list(N) ++ "-0-0.rec", rand:bytes(rand:uniform(3 * ?BLOCK))} || N <- [90001, 90002]].

have(1, _, _) -> [];
have(2, Name, Bytes) -> [{Name, binary:part(Bytes, 0, rand:uniform(byte_size(Bytes)))}];
have(3, Name, Bytes) -> [{Name, flip(Bytes, rand:uniform(byte_size(Bytes)) - 1)}];
have(4, Name, Bytes) -> [{Name, rand:bytes(byte_size(Bytes))}];
have(5, Name, Bytes) -> [{"7" ++ Name, Bytes}];
have(6, Name, Bytes) -> [{Name, <<Bytes/binary, (rand:bytes(1000))/binary>>}];
have(_, Name, Bytes) -> [{Name, Bytes}].

flip(Bytes, At) ->
    <<Before:At/binary, Byte, After/binary>> = Bytes,
    <<Before/binary, (Byte bxor 1), After/binary>>.

other_bytes(#{sender := Sender} = S) ->
    All = [One || {Name, _} = One <- contents(Sender), is_partition(Name)],
    ok = has(S, All),
    {Same, Copy} = transfer(S, offering()),
    Manifest = filelib:file_size(filename:join(Sender, "MANIFEST")),
    ?assertEqual(Manifest, sent(Same)),
    ok = is_snapshot(S, Copy),
    {Name, Bytes} = hd(lists:reverse(lists:keysort(2, [{N, B} || {N, B} <- All, byte_size(B) > 2 * ?BLOCK]))),
    ok = has(S, lists:keystore(Name, 1, All, {Name, flip(Bytes, byte_size(Bytes) div 2)})),
    {Other, OtherCopy} = transfer(S, offering()),
    ?assertEqual(Manifest + ?BLOCK, sent(Other)),
    ok = is_snapshot(S, OtherCopy),
    ok = has(S, lists:keystore(Name, 1, All, {Name, rand:bytes(byte_size(Bytes))})),
    {Others, _} = transfer(S, offering()),
    ?assertEqual(Manifest + byte_size(Bytes), sent(Others)).

since(#{sender := Sender} = S) ->
    ok = has(S, []),
    Before = contents(Sender),
    [ok = file:write_file(filename:join(Sender, Name), <<"more">>, [append]) || {Name, _} <- Before,
                                                                                is_partition(Name)],
    _ = [begin
             {_, Copy} = transfer(S, Context),
             ?assertEqual(Before, contents(Copy))
         end || Context <- [#{}, offering()]],
    [ok = file:write_file(filename:join(Sender, Name), Bytes) || {Name, Bytes} <- Before].

earlier(#{sender := Sender} = S) ->
    ok = has(S, [One || {Name, _} = One <- contents(Sender), is_partition(Name)]),
    {Chunks, Copy} = transfer(S, #{}),
    ?assertEqual(lists:sum([byte_size(Bytes) || {_, Bytes} <- contents(Sender)]), sent(Chunks)),
    ?assertEqual([content, file], lists:usort([element(1, Chunk) || Chunk <- Chunks])),
    ok = is_snapshot(S, Copy).

cannot_be_asked(#{sender := Sender} = S) ->
    ok = has(S, [One || {Name, _} = One <- contents(Sender), is_partition(Name)]),
    {Chunks, Copy} = transfer(S, (offering())#{delayed_node := 'nobody@nowhere'}),
    ?assertEqual([content, file], lists:usort([element(1, Chunk) || Chunk <- Chunks])),
    ok = is_snapshot(S, Copy).

%% ---------------------------------------------------------------------- what must not be

another_transfer(#{sender := Sender} = S) ->
    ok = has(S, [One || {Name, _} = One <- contents(Sender), is_partition(Name)]),
    {ok, [First | _], One} = chunks(S, offering()),
    ok = has(S, []),
    {ok, [_, Second | _] = Others, Two} = chunks(S, offering()),
    {ok, Plain, Three} = chunks(S, #{}),
    [begin
         {ok, Begun} = rabbit_delay_snapshot:begin_accept(copy(S), ?META),
         {ok, Accepting} = rabbit_delay_snapshot:accept_chunk(Begin, Begun),
         ?assertEqual({error, of_another_transfer}, rabbit_delay_snapshot:accept_chunk(Other, Accepting)),
         ?assertEqual({error, of_another_transfer},
                      rabbit_delay_snapshot:complete_accept(lists:last(Last), Accepting))
     end || {Begin, Other, Last} <- [{First, Second, Others}, {hd(Plain), Second, Others},
                                     {First, lists:nth(2, Plain), Plain}]],
    [Pid ! stop || Pid <- [One, Two, Three]].

gone(#{sender := Sender, receiver := Receiver} = S) ->
    ok = has(S, [One || {Name, _} = One <- contents(Sender), is_partition(Name)]),
    {ok, Chunks, Reading} = chunks(S, offering()),
    {ok, Accepting} = rabbit_delay_snapshot:begin_accept(copy(S), ?META),
    [{delayed, 1, _, {same, _, _, Held, [{_, File, _, _} | _]}} = Chunk | _] =
        [C || {delayed, 1, _, {same, _, _, _, _}} = C <- Chunks],
    Path = filename:join([Receiver, "held", Held, File]),
    {ok, Bytes} = file:read_file(Path),
    ok = file:delete(Path),
    ?assertMatch({error, {own_file, File, enoent}}, rabbit_delay_snapshot:accept_chunk(Chunk, Accepting)),
    ok = file:write_file(Path, rand:bytes(byte_size(Bytes))),
    ?assertMatch({error, {own_file, File, other_bytes}}, rabbit_delay_snapshot:accept_chunk(Chunk, Accepting)),
    ok = file:write_file(Path, <<>>),
    ?assertMatch({error, {own_file, File, short_read}}, rabbit_delay_snapshot:accept_chunk(Chunk, Accepting)),
    Reading ! stop.

left_out(S) ->
    ok = has(S, []),
    {ok, Chunks, Reading} = chunks(S, #{}),
    Reading ! stop,
    {ok, Begun} = rabbit_delay_snapshot:begin_accept(copy(S), ?META),
    [{file, Name, 0, _} = First | _] = Chunks,
    {ok, Accepting} = rabbit_delay_snapshot:accept_chunk(First, Begun),
    Length = filelib:file_size(filename:join(copy(S), Name)),
    ?assertEqual({error, {gap, Name, Length, Length + 1}},
                 rabbit_delay_snapshot:accept_chunk({file, Name, Length + 1, <<"x">>}, Accepting)),
    Lacking = accept([C || {file, N, _, _} = C <- Chunks, N =/= Name], begun(S)),
    ?assertMatch({error, _}, rabbit_delay_snapshot:complete_accept(lists:last(Chunks), Lacking)),
    ?assertMatch({error, _}, rabbit_delay_snapshot:validate(copy(S))).

%% Of a group of three. Nothing is deleted but what was not finished, as Ra would begin afresh behind it.
damaged(#{receiver := Receiver} = S) ->
    ok = has(S, []),
    {_, Copy} = transfer(S, #{}),
    [Content, Manifest] = [filename:join(Copy, Name) || Name <- ["delay_snapshot", "MANIFEST"]],
    [Records | _] = [filename:join(Copy, Name) || {Name, Bytes} <- contents(Copy), byte_size(Bytes) > ?BLOCK],
    Validate = fun () -> rabbit_delay_snapshot:validate(Copy) end,
    Recover = fun () -> rabbit_delay_snapshot:recover(Copy) end,
    [begin
         ok = with_bytes(File, Damage,
                         fun () -> ?assertExit({delay_snapshot, Copy, Reason}, Opening()) end),
         ?assertEqual({File, true}, {File, rabbit_delay_local_member:is_damaged(?X)}),
         ok = file:delete(filename:join(Receiver, "damaged"))
     end || {File, Damage, Opening, Reason} <-
                [{Content, fun (B) -> flip(B, 20) end, Validate, checksum_error},
                 {Content, fun (B) -> flip(B, 20) end, Recover, checksum_error},
                 {Content, fun (B) -> flip(B, 0) end, Validate, invalid_format},
                 {Manifest, fun (B) -> flip(B, 20) end, Validate, ecorrupt},
                 {Manifest, fun (B) -> flip(B, 20) end, Recover, ecorrupt},
                 {Records, fun (B) -> binary:part(B, 0, ?BLOCK) end, Recover, ecorrupt}]],
    %% The live store has what the snapshot has lost.
    ok = rabbit_delay_store:restore(filename:join(Receiver, "delay_store"), Copy),
    ok = with_bytes(Manifest, fun (B) -> flip(B, 20) end, fun () -> ?assertEqual(ok, Validate()) end),
    ok = with_bytes(Content, fun (_) -> <<"DWSN", 2>> end,
                    fun () -> ?assertExit({delay_snapshot, Copy, {invalid_version, 2}}, Validate()) end),
    ok = file:delete(Content),
    ?assertEqual({error, enoent}, Validate()),
    ok = file:make_dir(Content),
    ?assertExit({delay_snapshot, Copy, eisdir}, Validate()),
    ok = file:del_dir(Content),
    ?assertNot(rabbit_delay_local_member:is_damaged(?X)).

with_bytes(File, Damage, Fun) ->
    {ok, Bytes} = file:read_file(File),
    %% Another file: of the restored store it may be a link.
    ok = file:delete(File),
    ok = file:write_file(File, Damage(Bytes)),
    _ = Fun(),
    file:write_file(File, Bytes).

held(#{sender := Sender, receiver := Receiver} = S) ->
    ok = has(S, [One || {Name, _} = One <- contents(Sender), is_partition(Name)]),
    Members = [Receiver, rabbit_delay_raft:member_dir_of_snapshot(Sender)],
    [await(fun () -> not filelib:is_dir(filename:join(Member, "held")) end) || Member <- Members],
    {ok, _, Reading} = chunks(S, offering()),
    [?assertMatch([_], filelib:wildcard("held/*", Member)) || Member <- Members],
    [ok = rabbit_delay_held_files:sweep(Member) || Member <- Members],
    [?assertMatch([_], filelib:wildcard("held/*", Member)) || Member <- Members],
    Reading ! stop,
    [await(fun () -> not filelib:is_dir(filename:join(Member, "held")) end) || Member <- Members],
    Left = filename:join([Receiver, "held", "1.1.AB", "x.rec"]),
    ok = filelib:ensure_dir(Left),
    ok = file:write_file(Left, <<"x">>),
    ok = rabbit_delay_held_files:sweep(Receiver),
    ?assertNot(filelib:is_dir(filename:join(Receiver, "held"))).

descriptors(#{sender := Sender} = S) ->
    #{max_open_files := Before, open_files := 0} = rabbit_delay_store:shared(),
    ok = rabbit_delay_store:limit_open_files(3),
    Readers = [Pid || _ <- lists:seq(1, 3), {ok, _, Pid} <- [chunks(S, #{})]],
    ?assertMatch(#{open_files := 3}, rabbit_delay_store:shared()),
    ?assertEqual({error, no_descriptor_left}, rabbit_delay_snapshot:begin_read(Sender, #{})),
    %% Nor does a receiver look at what it has.
    ok = has(S, [One || {Name, _} = One <- contents(Sender), is_partition(Name)]),
    ?assertMatch(#{blocks := <<>>}, rabbit_delay_blocks:offer(?X, self())),
    Self = self(),
    Waiting = spawn_link(fun () ->
                                 {ok, _, Reading} = rabbit_delay_snapshot:begin_read(Sender, #{}),
                                 Self ! {self(), length(read(Reading, Sender))},
                                 receive stop -> ok end
                         end),
    hd(Readers) ! stop,
    receive {Waiting, Count} -> ?assert(Count > 1) end,
    ?assertMatch(#{open_files := 3}, rabbit_delay_store:shared()),
    [Pid ! stop || Pid <- [Waiting | tl(Readers)]],
    await(fun () -> map_get(open_files, rabbit_delay_store:shared()) =:= 0 end),
    ok = rabbit_delay_store:limit_open_files(Before).

%% ------------------------------------------------------------------------------ helpers

offering() -> rabbit_delay_snapshot:context().

has(#{receiver := Receiver}, Files) ->
    _ = file:del_dir_r(filename:join(Receiver, "delay_store")),
    Store = filename:join(Receiver, "delay_store"),
    ok = filelib:ensure_dir(filename:join(Store, "x")),
    lists:foreach(fun ({Name, Bytes}) -> ok = file:write_file(filename:join(Store, Name), Bytes) end, Files).

%% What has to be sent: of each block that the receiver has nowhere, all bytes.
lacking(#{sender := Sender, receiver := Receiver}) ->
    Has = [One || {Name, _} = One <- contents(filename:join(Receiver, "delay_store")), is_partition(Name)],
    Bytes = lists:sum([byte_size(B) || {_, B} <- Has]),
    Known = case Bytes >= 1048576 of
                true -> maps:from_list([{Piece, true} || {_, B} <- Has, Piece <- pieces(B)]);
                false -> #{}
            end,
    lists:sum([byte_size(Piece) || {_, B} <- contents(Sender), Piece <- pieces(B), not is_map_key(Piece, Known)]).

pieces(<<Header:?HEADER/binary, Rest/binary>>) -> [Header | cut(Rest)];
pieces(Bytes) -> cut(Bytes).

cut(<<Block:?BLOCK/binary, Rest/binary>>) -> [Block | cut(Rest)];
cut(<<>>) -> [];
cut(Rest) -> [Rest].

is_partition(Name) -> lists:member(filename:extension(Name), [".rec", ".idx"]).

contents(Dir) ->
    {ok, Names} = file:list_dir(Dir),
    [{Name, Bytes} || Name <- lists:sort(Names), Name =:= "MANIFEST" orelse is_partition(Name),
                      {ok, Bytes} <- [file:read_file(filename:join(Dir, Name))]].

copy(#{base := Base}) -> filename:join([Base, "Dreceiver", "snapshots", "1_10"]).

begun(S) ->
    Copy = copy(S),
    ok = filelib:ensure_dir(filename:join(Copy, "x")),
    {ok, Begun} = rabbit_delay_snapshot:begin_accept(Copy, ?META),
    Begun.

%% All chunks, read by a process that lives on until it is told.
chunks(#{sender := Sender} = S, Context) ->
    _ = begun(S),
    Self = self(),
    {Pid, Ref} = spawn_monitor(
                   fun () ->
                           {ok, #{index := 10}, Reading} = rabbit_delay_snapshot:begin_read(Sender, Context),
                           Self ! {self(), read(Reading, Sender)},
                           receive stop -> ok end
                   end),
    receive
        {Pid, Chunks} -> demonitor(Ref, [flush]), {ok, Chunks, Pid};
        {'DOWN', Ref, process, Pid, Reason} -> error(Reason)
    end.

read(Reading, Dir) ->
    case rabbit_delay_snapshot:read_chunk(Reading, ?CHUNK, Dir) of
        {ok, Chunk, {next, Next}} -> [Chunk | read(Next, Dir)];
        {ok, Chunk, last} -> [Chunk]
    end.

transfer(S, Context) ->
    {ok, Chunks, Reading} = chunks(S, Context),
    ok = rabbit_delay_snapshot:complete_accept(lists:last(Chunks), accept(lists:droplast(Chunks), begun(S))),
    Reading ! stop,
    {Chunks, copy(S)}.

accept(Chunks, Begun) ->
    lists:foldl(fun (Chunk, Accepting) ->
                        {ok, Next} = rabbit_delay_snapshot:accept_chunk(Chunk, Accepting),
                        Next
                end, Begun, Chunks).

%% Bytes of files; no chunk is larger than Ra asks for.
sent(Chunks) ->
    Sizes = [byte_size(Bytes) || Chunk <- Chunks, {file, _, _, Bytes} <- [part(Chunk)]],
    ?assert(lists:max([0 | Sizes]) =< ?CHUNK),
    lists:sum(Sizes).

part({delayed, 1, _, Part}) -> Part;
part(Part) -> Part.

%% The same files, of which a store is opened that holds the same.
is_snapshot(#{sender := Sender, base := Base, digest := Digest}, Copy) ->
    ?assertEqual(contents(Sender), contents(Copy)),
    ?assertEqual(ok, rabbit_delay_snapshot:validate(Copy)),
    ?assertEqual({ok, ?META}, rabbit_delay_snapshot:read_meta(Copy)),
    Restored = filename:join([Base, "restored", "delay_store"]),
    ok = filelib:ensure_dir(filename:join(Restored, "x")),
    ok = rabbit_delay_store:restore(Restored, Copy),
    {ok, Store, Report} = rabbit_delay_store:open(Restored, #{now => erlang:system_time(millisecond)}),
    ?assertMatch(#{corrupt_records := 0, rebuilt_indexes := 0, applied := 10}, Report),
    ?assertMatch(#{digest := Digest}, rabbit_delay_store:stat(Store)),
    ok = rabbit_delay_store:close(Store).

await(Condition) -> await(Condition, erlang:monotonic_time(millisecond) + 60000).

await(Condition, Until) ->
    Condition() orelse begin
                           ?assert(erlang:monotonic_time(millisecond) < Until),
                           receive after 20 -> ok end,
                           await(Condition, Until)
                       end.
