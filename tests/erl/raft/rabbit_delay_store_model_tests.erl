%% SPDX-License-Identifier: MPL-2.0

%% Random sequences of calls, against a map. A sequence also closes the store and opens it again at
%% its last checkpoint, or restores it from a snapshot, and then replays the commands since, as Raft
%% does.
-module(rabbit_delay_store_model_tests).

-include_lib("eunit/include/eunit.hrl").

-define(S, rabbit_delay_store).
-define(T0, 1600000000000).
-define(KEYS, [1, 2, 16#ffffffffffffffff]).

-record(entry, {due, encoding, key, body,
                at,              % when it comes out next
                taken = false,
                %% rescheduled or postponed since the store was opened: its place among those of the
                %% same millisecond is not said
                moved = false}).

-record(model, {dir, store, options,
                now = ?T0,
                index = 0,
                entries = #{},
                %% commands with their index, newest first; what is at or below the checkpoint stays
                log = [],
                %% {Id, Due} of what was ever taken, newest first
                released = [],
                %% {Index, Entries} of the last one that is durable, and of the snapshot
                checkpoint = {0, #{}},
                snapshot = none}).

model_test_() ->
    Run = fun(Options, Scale) ->
        {timeout, 6000, fun() ->
            Property = proper:forall(commands(Scale), fun(Commands) -> holds(Options, Commands) end),
            case proper:quickcheck(Property, [quiet, long_result, {numtests, 150}]) of
                true -> ok;
                Counterexample -> error({Counterexample, get(?MODULE)})
            end
        end}
    end,
    [{"delays within a minute", Run(#{}, 60000)},
     {"delays within a year, small partitions",
      Run(#{partition_bytes => 4096, split_bytes => 1024, max_open_files => 8}, 31536000000)},
     {"delays within some milliseconds", Run(#{partition_bytes => 65536}, 5)}].

commands(Scale) ->
    proper_types:resize(60, proper_types:list(proper_types:frequency(
      [{15, {insert, proper_types:non_empty(proper_types:list(record(Scale)))}},
       {10, {insert_keyed, proper_types:non_empty(proper_types:list(keyed_record(Scale)))}},
       {10, {settle, proper_types:list(pick())}},
       {1, purge},
       {10, {proper_types:oneof([settle_due, settle_due_by]), proper_types:list({pick(), proper_types:oneof([taken, taken, due, at,
                                                                        pick()])})}},
       {15, {take, ahead(Scale), proper_types:integer(1, 20), proper_types:integer(1, 3000)}},
       {5, {postpone, pick(), ahead(Scale)}},
       {2, untake},
       {6, {reschedule, pick(), ahead(Scale)}},
       {3, note},
       {3, {repeat, pick()}},
       {4, flush},
       {5, {maintain, ahead(Scale), proper_types:integer(1, 5000)}},
       {4, checkpoint},
       {2, snapshot},
       {3, reopen},
       {1, restore},
       {2, {clock_back, ahead(Scale)}},
       {5, check}]))).

record(Scale) ->
    {proper_types:oneof([0, 1, proper_types:integer(0, Scale), proper_types:integer(0, Scale)]),
     proper_types:frequency([{4, delay}, {1, absolute}]),
     proper_types:integer(0, 65535),
     proper_types:oneof([0, 0 | ?KEYS]),
     proper_types:oneof([proper_types:integer(1, 200), proper_types:integer(1, 3000)])}.

keyed_record(Scale) ->
    proper_types:oneof(
      [{keep, record(Scale)},
       {proper_types:oneof([replace, drop, cancel, release]), proper_types:oneof(?KEYS), record(Scale)}]).

pick() -> proper_types:integer(0, 1000000).

ahead(Scale) -> proper_types:oneof([0, 1, proper_types:integer(0, Scale div 10 + 1),
                                    proper_types:integer(0, Scale)]).

%% Debian's PropEr does not survive an exception of the property on this OTP.
holds(Options, Commands) ->
    try run(Options, Commands)
    catch Class:Reason:Stack ->
            put(?MODULE, {Class, Reason, Stack}),
            false
    end.

run(Options, Commands) ->
    Dir = filename:join(os:getenv("TMPDIR", "/tmp"),
                        "delay-model-" ++ os:getpid() ++ "-" ++
                            integer_to_list(erlang:unique_integer([positive]))),
    ok = file:make_dir(Dir),
    try
        Model = lists:foldl(fun step/2, open(#model{dir = Dir, options = Options}),
                            Commands ++ [check, reopen, check]),
        ok = ?S:close(Model#model.store),
        true
    after
        file:del_dir_r(Dir)
    end.

live(#model{dir = Dir}) -> filename:join(Dir, "live").

snapshot(#model{dir = Dir, index = Index}) ->
    filename:join(Dir, "snapshot-" ++ integer_to_list(Index)).

open(#model{options = Options, now = Now, checkpoint = {Index, Entries}} = M) ->
    {ok, Store, Report} = ?S:open(live(M), Options#{now => Now}),
    Pending = map_size(Entries),
    #{applied := Index, pending := Pending, corrupt_records := 0} = Report,
    Index = ?S:applied(Store),
    M#model{store = Store, entries = Entries}.

step({insert, Records}, M) ->
    logged({insert, M#model.now, [{Delay, Kind, Encoding, Key, body(Size, Delay, N)}
                                  || {N, {Delay, Kind, Encoding, Key, Size}}
                                         <- lists:zip(lists:seq(1, length(Records)), Records)]}, M);
step({insert_keyed, Records}, M) ->
    logged({insert_keyed, M#model.now,
            [made(Record, N) || {N, Record} <- lists:zip(lists:seq(1, length(Records)), Records)]},
           M);
step({settle, Picks}, M) ->
    logged({settle, [pick(Pick, M) || Pick <- Picks]}, M);
step(purge, M) ->
    logged(purge, M);
step({Settle, Picks}, #model{released = Released} = M) when Settle =:= settle_due; Settle =:= settle_due_by ->
    Taken = [T || {Pick, taken} <- Picks, T <- one_of(Pick, Released)],
    logged({Settle, Taken ++ [released(pick(Pick, M), Which, M)
                                  || {Pick, Which} <- Picks, Which =/= taken]}, M);
step({reschedule, Pick, Ahead}, M) ->
    logged({reschedule, pick(Pick, M), M#model.now + Ahead}, M);
step(note, M) ->
    logged(note, M);
step({take, Ahead, MaxN, MaxBytes}, #model{store = Store, now = Now0} = M) ->
    Now = Now0 + Ahead,
    {ok, Taken, Next} = ?S:take(Store, Now, MaxN, MaxBytes),
    Entries = taken(Taken, Now, MaxN, MaxBytes, M#model.entries),
    Next = next_due(Entries),
    M#model{entries = Entries, now = Now,
            released = [{Id, Due} || {Id, Due, _, _} <- Taken] ++ M#model.released};
step({clock_back, Back}, #model{store = Store, now = Now0} = M) ->
    Now = max(0, Now0 - Back),
    {ok, Taken, Next} = ?S:take(Store, Now, 1, 1),
    Entries = taken(Taken, Now, 1, 1, M#model.entries),
    Next = next_due(Entries),
    M#model{entries = Entries};
step({postpone, Pick, Ahead}, #model{store = Store, now = Now, entries = Entries} = M) ->
    Id = pick(Pick, M),
    case Entries of
        #{Id := #entry{taken = true} = E} ->
            ok = ?S:postpone(Store, Id, Now + Ahead),
            M#model{entries = Entries#{Id := E#entry{taken = false, at = Now + Ahead,
                                                      moved = true}}};
        _ ->
            {error, enoent} = ?S:postpone(Store, Id, Now + Ahead),
            M
    end;
step(untake, #model{store = Store, entries = Entries} = M) ->
    ok = ?S:untake(Store),
    M#model{entries = maps:map(fun(_, #entry{taken = true, due = Due} = E) ->
                                       E#entry{taken = false, at = Due};
                                  (_, E) ->
                                       E
                               end, Entries)};
step({repeat, _}, #model{log = []} = M) ->
    M;
step({repeat, Pick}, #model{log = Log} = M) ->
    %% Applied already: nothing happens.
    {Index, Command} = lists:nth(Pick rem length(Log) + 1, Log),
    case call(Command, Index, M) of
        {ok, 0, 0, _, _} -> ok;
        {ok, {ok, 0, 0, _, _}, ByKey} ->
            ?assertEqual([0], lists:usort(maps:values(ByKey)));
        {ok, 0} -> ok;
        {ok, 0, 0} -> ok;
        {error, enoent} -> ok;
        ok -> ok
    end,
    M;
step(flush, #model{store = Store} = M) ->
    ok = ?S:flush(Store),
    #{buffered := 0} = ?S:stat(Store),
    M;
step({maintain, Ahead, Bytes}, #model{store = Store, now = Now} = M) ->
    maintain(Store, Now + Ahead, Bytes, 1000),
    M#model{now = Now + Ahead};
step(checkpoint, #model{store = Store, index = Index} = M) ->
    {ok, Checkpoint, Index} = ?S:checkpoint(Store),
    ok = ?S:finish(Checkpoint, none),
    {ok, Index} = ?S:peek_applied(live(M)),
    M#model{checkpoint = {Index, fresh(M#model.entries)}};
step(snapshot, #model{store = Store, index = Index} = M) ->
    {ok, Checkpoint, Index} = ?S:checkpoint(Store),
    _ = file:del_dir_r(snapshot(M)),
    ok = file:make_dir(snapshot(M)),
    ok = ?S:finish(Checkpoint, snapshot(M)),
    {ok, Index} = ?S:validate(snapshot(M)),
    Made = {Index, fresh(M#model.entries)},
    M#model{checkpoint = Made, snapshot = {snapshot(M), Made}};
step(reopen, #model{store = Store} = M) ->
    ok = ?S:close(Store),
    replay(open(M), M);
step(restore, #model{snapshot = none} = M) ->
    M;
step(restore, #model{snapshot = {Dir, {Index, _} = Made}} = M) ->
    ok = ?S:restore(live(M), Dir),
    {ok, Index} = ?S:peek_applied(live(M)),
    replay(open(M#model{checkpoint = Made}), M);
step(check, M) ->
    check(M),
    M.

made({keep, {Delay, Kind, Encoding, Key, Size}}, N) ->
    {keep, {Delay, Kind, Encoding, Key, body(Size, Delay, N)}};
made({OnKey, Key, _}, _) when OnKey =:= cancel; OnKey =:= release ->
    {OnKey, {0, delay, 0, Key, <<>>}};
made({OnKey, Key, {Delay, Kind, Encoding, _, Size}}, N) ->
    {OnKey, {Delay, Kind, Encoding, Key, body(Size, Delay, N)}}.

maintain(_, _, _, 0) -> error(never_done);
maintain(Store, Now, Bytes, N) ->
    case ?S:maintain(Store, Now, Bytes) of
        {ok, more} -> maintain(Store, Now, Bytes, N - 1);
        {ok, done} -> ok
    end.

body(Size, Delay, N) ->
    Seed = <<(erlang:phash2({Size, Delay, N})):32>>,
    binary:part(binary:copy(Seed, Size div 4 + 1), 0, Size).

pick(Pick, #model{entries = Entries, index = Index}) ->
    case maps:keys(Entries) of
        [] -> Pick;
        _ when Pick rem 10 =:= 0 -> (Index bsl 16) + Pick;
        Ids -> lists:nth(Pick rem length(Ids) + 1, Ids)
    end.

one_of(_, []) -> [];
one_of(Pick, List) -> [lists:nth(Pick rem length(List) + 1, List)].

%% With its due time, with that of the retry, and with another one.
released(Id, Which, #model{entries = Entries}) ->
    #entry{due = Due, at = At} = maps:get(Id, Entries, #entry{due = ?T0, at = ?T0}),
    {Id, case Which of
             due -> Due;
             at -> At;
             N -> Due + N rem 3 - 1
         end}.

%% What a crash leaves: nothing is taken or postponed.
fresh(Entries) ->
    maps:map(fun(_, #entry{due = Due} = E) -> E#entry{taken = false, at = Due, moved = false} end,
             Entries).

logged(Command, #model{index = Index0, log = Log} = M0) ->
    Index = Index0 + 1,
    M = apply_command(Command, Index, M0#model{index = Index}),
    M#model{log = [{Index, Command} | Log]}.

%% M is as it was opened, Before as it was then: the commands in between come again.
replay(#model{checkpoint = {Applied, _}, log = Log} = M, #model{index = Index}) ->
    lists:foldl(fun({I, Command}, Acc) -> apply_command(Command, I, Acc#model{index = I}) end,
                M#model{index = Index},
                lists:reverse([C || {I, _} = C <- Log, I > Applied])).

apply_command({insert, Base, Records} = Command, Index, #model{entries = Entries0} = M) ->
    New = [{(Index bsl 16) + N, entry(Base, Record)}
           || {N, Record} <- lists:zip(lists:seq(0, length(Records) - 1), Records)],
    Entries = maps:merge(Entries0, maps:from_list(New)),
    Count = length(New),
    Bytes = lists:sum([byte_size(E#entry.body) || {_, E} <- New]),
    Next = next_due(Entries),
    {ok, Count, Bytes, Next, _} = call(Command, Index, M),
    M#model{entries = Entries};
apply_command({insert_keyed, Base, Records} = Command, Index, #model{entries = Entries0} = M) ->
    Went0 = #{cancelled => 0, replaced => 0, taken => 0, dropped => 0, released => []},
    {Entries, #{released := Released} = Went1} =
        lists:foldl(fun ({N, Record}, Acc) -> on_key((Index bsl 16) + N, Base, Record, Acc) end,
                    {Entries0, Went0}, lists:zip(lists:seq(0, length(Records) - 1), Records)),
    Went = Went1#{released := length([Id || Id <- Released, is_map_key(Id, Entries)])},
    New = maps:filter(fun (Id, _) -> Id bsr 16 =:= Index end, Entries),
    Count = map_size(New),
    Bytes = lists:sum([byte_size(E#entry.body) || E <- maps:values(New)]),
    Next = next_due(Entries),
    {ok, {ok, Count, Bytes, Next, _}, Went} = call(Command, Index, M),
    M#model{entries = Entries};
apply_command({settle, Ids} = Command, Index, #model{entries = Entries0} = M) ->
    Entries = maps:without(Ids, Entries0),
    Removed = map_size(Entries0) - map_size(Entries),
    {ok, Removed} = call(Command, Index, M),
    M#model{entries = Entries};
apply_command(purge, Index, #model{entries = Entries} = M) ->
    Removed = map_size(Entries),
    Taken = length([E || #entry{taken = true} = E <- maps:values(Entries)]),
    {ok, Removed, Taken} = call(purge, Index, M),
    M#model{entries = #{}};
apply_command({Settle, Released} = Command, Index, #model{entries = Entries0} = M)
  when Settle =:= settle_due; Settle =:= settle_due_by ->
    Gone = [Id || {Id, Due} <- Released, {ok, #entry{due = D}} <- [maps:find(Id, Entries0)],
                  D =:= Due orelse Settle =:= settle_due_by andalso D < Due],
    Entries = maps:without(Gone, Entries0),
    Removed = map_size(Entries0) - map_size(Entries),
    {ok, Removed} = call(Command, Index, M),
    M#model{entries = Entries};
apply_command({reschedule, Id, Due} = Command, Index, #model{store = Store, entries = Entries} = M) ->
    case Entries of
        #{Id := E} ->
            ok = call(Command, Index, M),
            M#model{entries = Entries#{Id := E#entry{due = Due, at = Due, moved = true}}};
        _ ->
            {error, enoent} = call(Command, Index, M),
            ok = ?S:note(Store, Index),
            M
    end;
apply_command(note, Index, #model{store = Store} = M) ->
    ok = call(note, Index, M),
    Index = ?S:applied(Store),
    M.

on_key(Id, Base, {OnKey, {_, _, _, Key, _} = Record}, {Entries0, Went0}) ->
    {Entries, Went} = case OnKey of
                          replace -> without_key(Key, replaced, Entries0, Went0);
                          cancel -> without_key(Key, cancelled, Entries0, Went0);
                          _ -> {Entries0, Went0}
                      end,
    case OnKey of
        cancel -> {Entries, Went};
        release -> released_by(Key, Base, {Entries, Went});
        drop ->
            case under(Key, Entries) of
                [] -> {Entries#{Id => entry(Base, Record)}, Went};
                _ -> {Entries, maps:update_with(dropped, fun (N) -> N + 1 end, Went)}
            end;
        _ -> {Entries#{Id => entry(Base, Record)}, Went}
    end.

released_by(Key, Base, {Entries, #{released := Before} = Went}) ->
    Later = [Id || {Id, #entry{key = K, due = Due}} <- maps:to_list(Entries), K =:= Key, Due > Base],
    {lists:foldl(fun (Id, Es) ->
                         Es#{Id := (map_get(Id, Es))#entry{due = Base, at = Base, moved = true}}
                 end, Entries, Later), Went#{released := lists:usort(Later ++ Before)}}.

under(Key, Entries) ->
    [Id || {Id, #entry{key = K}} <- maps:to_list(Entries), K =:= Key].

without_key(Key, How, Entries, Went) ->
    lists:foldl(fun (Id, {Es, W}) ->
                        Counter = case Es of
                                      #{Id := #entry{taken = true}} -> taken;
                                      _ -> How
                                  end,
                        {maps:remove(Id, Es), maps:update_with(Counter, fun (N) -> N + 1 end, W)}
                end, {Entries, Went}, under(Key, Entries)).

call({insert, Base, Records}, Index, #model{store = Store}) ->
    ?S:insert(Store, Index, Base, [encode(Base, Record) || Record <- Records]);
call({insert_keyed, Base, Records}, Index, #model{store = Store}) ->
    ?S:insert_keyed(Store, Index, Base, [encode(OnKey, Base, R) || {OnKey, R} <- Records],
                    case lists:keymember(release, 1, Records) of
                        true -> 2;
                        false -> 1
                    end);
call(purge, Index, #model{store = Store}) ->
    ?S:purge(Store, Index);
call({settle, Ids}, Index, #model{store = Store}) ->
    ?S:settle(Store, Index, << <<Id:64/little>> || Id <- Ids >>);
call({Settle, Released}, Index, #model{store = Store}) when Settle =:= settle_due; Settle =:= settle_due_by ->
    ?S:Settle(Store, Index, << <<Id:64/little, Due:64/little>> || {Id, Due} <- Released >>);
call({reschedule, Id, Due}, Index, #model{store = Store}) ->
    ?S:reschedule(Store, Index, Id, Due);
call(note, Index, #model{store = Store}) ->
    ?S:note(Store, Index).

encode(Base, Record) ->
    encode(keep, Base, Record).

encode(OnKey, Base, {Delay, Kind, Encoding, Key, Body}) ->
    {Absolute, When} = case Kind of
                           delay -> {0, Delay};
                           absolute -> {1, Base + Delay}
                       end,
    Flags = Absolute bor case OnKey of
                             keep -> 0;
                             replace -> 2;
                             drop -> 4;
                             cancel -> 6;
                             release -> 8
                         end,
    [<<(byte_size(Body)):32/little, Flags:16/little, Encoding:16/little, When:64/little,
       Key:64/little>>, Body].

entry(Base, {Delay, _, Encoding, Key, Body}) ->
    #entry{due = Base + Delay, at = Base + Delay, encoding = Encoding, key = Key, body = Body}.

next_due(Entries) ->
    lists:min([infinity | [At || #entry{taken = false, at = At} <- maps:values(Entries)]]).

%% Checks what a take answered, and marks it.
taken(Taken, Now, MaxN, MaxBytes, Entries) ->
    Due = lists:sort([{At, Id} || {Id, #entry{taken = false, at = At}} <- maps:to_list(Entries),
                                  At =< Now]),
    Actual = [{(maps:get(Id, Entries))#entry.at, Id} || {Id, _, _, _} <- Taken],
    ?assertEqual([], Actual -- Due),
    ?assertEqual([At || {At, _} <- lists:sublist(Due, length(Actual))], [At || {At, _} <- Actual]),
    ?assertEqual(within(Actual ++ (Due -- Actual), MaxN, MaxBytes, Entries), Actual),
    Unmoved = fun(List) -> [Id || {_, Id} <- List, not (maps:get(Id, Entries))#entry.moved] end,
    ?assert(lists:prefix(Unmoved(Actual), Unmoved(Due))),
    lists:foldl(fun({Id, DueThen, Encoding, Body}, Acc) ->
                        #entry{due = DueThen, encoding = Encoding, body = Body} = E =
                            maps:get(Id, Acc),
                        Acc#{Id := E#entry{taken = true}}
                end, Entries, Taken).

within([], _, _, _) -> [];
within(_, 0, _, _) -> [];
within(_, _, Bytes, _) when Bytes =< 0 -> [];
within([{At, Id} | Rest], N, Bytes, Entries) ->
    #{Id := #entry{body = Body}} = Entries,
    [{At, Id} | within(Rest, N - 1, Bytes - byte_size(Body), Entries)].

check(#model{store = Store, entries = Entries, index = Index, checkpoint = {Durable, _}}) ->
    All = maps:values(Entries),
    Stat = ?S:stat(Store),
    ?assertEqual(#{pending => map_size(Entries),
                   pending_bytes => lists:sum([byte_size(E#entry.body) || E <- All]),
                   taken => length([E || #entry{taken = true} = E <- All]),
                   next_due => next_due(Entries),
                   applied => Index,
                   digest => digest(Entries),
                   checkpoint_applied => Durable,
                   corrupt_records => 0},
                 maps:with([pending, pending_bytes, taken, next_due, applied, digest, checkpoint_applied,
                            corrupt_records], Stat)),
    ?assertEqual(next_due(Entries), ?S:next_due(Store)),
    Shown = [#{id => Id, due => E#entry.due, key_hash => E#entry.key,
               length => byte_size(E#entry.body), encoding => E#entry.encoding}
             || {_, Id, E} <- lists:sort([{E#entry.due, Id, E} || {Id, E} <- maps:to_list(Entries)])],
    ?assertEqual(Shown, pages(Store, {0, 0})),
    [begin
         {ok, Found, Total} = ?S:find(Store, Key, 65535),
         Ids = [Id || {Id, #entry{key = K}} <- maps:to_list(Entries), K =:= Key],
         ?assertEqual(lists:sort(Ids), lists:sort(Found)),
         ?assertEqual(length(Ids), Total)
     end || Key <- ?KEYS],
    [?assertEqual({ok, Map#{body => (maps:get(Id, Entries))#entry.body}}, ?S:read(Store, Id))
     || #{id := Id} = Map <- Shown, erlang:phash2(Id, 7) =:= 0],
    ok.

%% As c_src/dw_digest.h says it is made.
digest(Entries) ->
    Golden = 16#9E3779B97F4A7C15,
    lists:sum([mix(mix(mix(Id + Golden) + Key) + Due + byte_size(Body) * Golden)
               || {Id, #entry{due = Due, key = Key, body = Body}} <- maps:to_list(Entries)])
        band 16#ffffffffffffffff.

mix(X0) ->
    X1 = X0 band 16#ffffffffffffffff,
    X2 = (X1 bxor (X1 bsr 30)) * 16#BF58476D1CE4E5B9 band 16#ffffffffffffffff,
    X3 = (X2 bxor (X2 bsr 27)) * 16#94D049BB133111EB band 16#ffffffffffffffff,
    X3 bxor (X3 bsr 31).

pages(Store, After) ->
    case ?S:page(Store, After, 7) of
        {ok, []} -> [];
        {ok, Page} ->
            #{due := Due, id := Id} = lists:last(Page),
            Page ++ pages(Store, {Due, Id})
    end.
