%% SPDX-License-Identifier: MPL-2.0

%% The state machine without Ra: any sequence of entries is applied to two replicas, each with a store of
%% its own, of which one is stopped and started again at any time, from any snapshot. What each answers
%% and holds is compared with a model, and with the other.
-module(rabbit_delay_machine_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").

-define(M, rabbit_delay_machine).
-define(X, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>}).
-define(VERSION, 3).
-define(NOW, 1800000000000).
-define(BAD, <<1, 2, 3>>).

%% Of the machine's state, what follows from the log.
-record(model, {pending = #{} :: #{pos_integer() => {Due :: pos_integer(), Key :: non_neg_integer()}},
                opened = #{} :: #{pos_integer() => {binary(), binary(), non_neg_integer()}},
                %% every session that ever was
                sessions = [] :: [pos_integer()],
                imported = 0 :: non_neg_integer(),
                paused = false :: boolean(),
                term = 1 :: pos_integer()}).

-record(replica, {dir :: file:filename(),
                  state :: ?M:state(),
                  snapshot :: ?M:snapshot()}).

%% ------------------------------------------------------------------- sequences of entries

any_sequence_test_() ->
    {timeout, 1200,
     fun () ->
             Property = ?FORALL(Steps, list(step()), said(Steps)),
             ?assert(proper:quickcheck(Property, [{numtests, 300}, {max_size, 60}, {to_file, user}]))
     end}.

%% Sessions and messages are meant by their place among those that there are, or are none of them.
step() ->
    frequency([{4, {open, oneof([<<"a">>, <<"b">>, <<"c">>]), oneof([<<"1">>, <<"2">>])}},
               {12, {enqueue, range(0, 4), oneof([1, 1, 1, 1, 0, -1, 2]),
                     frequency([{3, batch()}, {1, releasing()}])}},
               {2, {import, oneof([1, 1, 0, 2]), batch()}},
               {5, {settle, oneof([2, 3]), list({range(0, 8), oneof([same, same, other, before])})}},
               {2, {settle_ids, list(range(0, 8))}},
               {3, {cancel, which_term(), list(range(0, 8))}},
               {4, {reschedule, which_term(), list({range(0, 8), range(0, 50)})}},
               {1, oneof([pause, resume])},
               {1, purge},
               {2, note},
               {1, new_term},
               {2, snapshot},
               {2, restart}]).

which_term() -> oneof([same, same, same, other]).

batch() ->
    frequency([{6, {plain, non_empty(list(range(0, 50)))}},
               {4, {keyed, non_empty(list({range(0, 50), range(1, 3)}))}},
               {1, empty},
               {1, bad}]).

%% Of version 6 of the command alone.
releasing() ->
    {releasing, non_empty(list({oneof([replace, replace, release]), range(0, 50), range(1, 3)}))}.

%% An exception of a property is more than this version of PropEr can report.
said(Steps) ->
    try
        holds(Steps)
    catch
        Class:Reason:Stack ->
            io:format(user, "~0p:~0p~n~p~n", [Class, Reason, Stack]),
            false
    end.

holds(Steps) ->
    Dir = filename:absname(filename:join("_build", "machine_tests." ++ os:getpid())),
    try
        Replicas = [replica(filename:join(Dir, Name)) || Name <- ["steady", "restarted"]],
        {End, _, Log, Model} = lists:foldl(fun run/2, {Replicas, 1, [], #model{}}, Steps),
        [Steady, Restarted] = [same_as(Model, R) || R <- [hd(End), restarted(lists:nth(2, End), Log)]],
        ?assertEqual(Steady, Restarted),
        [ok = rabbit_delay_store:close(?M:store(State)) || #replica{state = State} <- End],
        true
    after
        _ = file:del_dir_r(Dir)
    end.

replica(Dir) ->
    ok = filelib:ensure_dir(Dir),
    Snapshot = #{version => 1, exchange => ?X, seen => 0, sessions => []},
    #replica{dir = Dir, snapshot = Snapshot, state = ?M:from_snapshot(Snapshot, opened(Dir))}.

opened(Dir) ->
    {ok, Store, _} = rabbit_delay_store:open(Dir, #{now => ?NOW}),
    Store.

run(new_term, {Replicas, Index, Log, #model{term = Term} = Model}) ->
    {Replicas, Index, Log, Model#model{term = Term + 1}};
run(snapshot, {[Steady, Other], Index, Log, Model}) ->
    {[Steady, with_snapshot(Other)], Index, Log, Model};
run(restart, {[Steady, Other], Index, Log, Model}) ->
    {[Steady, restarted(Other, Log)], Index, Log, Model};
run(Step, {Replicas0, Index, Log, #model{term = Term} = Model0}) ->
    {Command, Expected, Model} = entry(Step, Index, Model0),
    Meta = #{index => Index, term => Term, system_time => ?NOW, machine_version => ?VERSION},
    Replicas = [begin
                    {State, Reply} = applied(Meta, Command, R#replica.state),
                    ?assertEqual({Command, Expected}, {Command, Reply}),
                    R#replica{state = State}
                end || R <- Replicas0],
    lists:foreach(fun (R) -> same_as(Model, R) end, Replicas),
    {Replicas, Index + 1, [{Meta, Command} | Log], Model}.

applied(Meta, Command, State0) ->
    case ?M:apply(Meta, Command, State0) of
        {State, Reply} -> {State, Reply};
        {State, Reply, _Effects} -> {State, Reply}
    end.

%% What operators change is cheap to apply again: a snapshot comes after eight times as many, but no later
%% than after as many entries, be they of one change each.
snapshots_are_offered_by_what_is_to_be_applied_again_test_() ->
    [{timeout, 60, ?_assertEqual(Offers, offers(Command, Entries))}
     || {Command, Entries, Offers} <-
            [{{cancel, 1, ids(800)}, 99, 0}, {{cancel, 1, ids(800)}, 100, 1},
             {{reschedule, 1, <<(ids(800))/binary, (ids(800))/binary>>}, 100, 1},
             {{cancel, 1, ids(1)}, 10100, 1}, {{settle, 1, ids(800)}, 26, 2}]].

ids(N) -> << <<Id:64/little>> || Id <- lists:seq(1, N) >>.

%% How many are offered, with one due after 10,100 messages.
offers(Command, Entries) ->
    ok = application:set_env(rabbitmq_delay_wheel, snapshot_interval_messages, 10100),
    Dir = filename:absname(filename:join("_build", "machine_tests.offers." ++ os:getpid())),
    try
        #replica{state = State} = replica(filename:join(Dir, "store")),
        {_, Offers} = lists:foldl(
                        fun (Index, {S0, N}) ->
                                case ?M:apply(#{index => Index, term => 1, system_time => ?NOW,
                                                machine_version => ?VERSION}, Command, S0) of
                                    {S, _} -> {S, N};
                                    {S, _, Effects} ->
                                        {S, N + length([1 || {release_cursor, _, _} <- Effects])}
                                end
                        end, {State, 0}, lists:seq(1, Entries)),
        Offers
    after
        ok = application:unset_env(rabbitmq_delay_wheel, snapshot_interval_messages),
        ok = file:del_dir_r(Dir)
    end.

with_snapshot(#replica{state = State} = R) ->
    {ok, Checkpoint, _} = rabbit_delay_store:checkpoint(?M:store(State)),
    ok = rabbit_delay_store:finish(Checkpoint, none),
    R#replica{snapshot = binary_to_term(term_to_binary(?M:to_snapshot(State)))}.

%% Everything since the snapshot is applied again, to a store that is at it.
restarted(#replica{dir = Dir, state = State0, snapshot = #{seen := Seen} = Snapshot} = R, Log) ->
    ok = rabbit_delay_store:close(?M:store(State0)),
    State = lists:foldr(fun ({#{index := Index} = Meta, Command}, S) when Index > Seen ->
                                {S1, _} = applied(Meta, Command, S),
                                S1;
                            (_, S) ->
                                S
                        end, ?M:from_snapshot(Snapshot, opened(Dir)), Log),
    R#replica{state = State}.

same_as(#model{pending = Pending, opened = Opened, paused = Paused, imported = Imported},
        #replica{state = State}) ->
    {ok, Records} = rabbit_delay_store:page(?M:store(State), {0, 0}, 65535),
    ?assertEqual(lists:sort([{Due, Id, Key} || {Id, {Due, Key}} <- maps:to_list(Pending)]),
                 [{Due, Id, Key} || #{id := Id, due := Due, key_hash := Key} <- Records]),
    ?assertEqual(Paused, ?M:is_paused(State)),
    ?assertEqual(Imported, ?M:last_seq_no(4711, State)),
    Snapshot = ?M:to_snapshot(State),
    ?assertEqual(lists:sort(maps:to_list(Opened)), maps:get(opened, Snapshot, [])),
    #{digest := Digest} = rabbit_delay_store:stat(?M:store(State)),
    {Snapshot, Digest}.

%% ------------------------------------------------------------------------------- the model

%% The command, what it is answered, and what is there afterwards.
entry({open, Node, Nonce}, Index, #model{opened = Opened, sessions = Sessions} = M) ->
    Reply = case [{Session, Last} || {Session, {N, Once, Last}} <- maps:to_list(Opened), N =:= Node,
                                     Once =:= Nonce] of
                [{Session, Last}] -> {ok, Session, Last};
                [] -> {ok, Index, 0}
            end,
    Others = maps:filter(fun (_, {N, _, _}) -> N =/= Node end, Opened),
    {{open, 1, Node, Nonce}, Reply,
     case Reply of
         {ok, Index, 0} -> M#model{opened = Others#{Index => {Node, Nonce, 0}},
                                   sessions = [Index | Sessions]};
         _ -> M
     end};
entry({enqueue, Place, Ahead, Batch}, Index, #model{opened = Opened, sessions = Sessions} = M) ->
    Session = lists:nth(1, lists:nthtail(min(Place, length(Sessions)), Sessions ++ [999999])),
    Last = case Opened of
               #{Session := {_, _, L}} -> L;
               _ -> closed
           end,
    SeqNo = case Last of
                closed -> max(1, Ahead);
                _ -> max(1, Last + Ahead)
            end,
    {Version, Bytes} = encoded(Batch),
    Command = {enqueue, Version + 2, Session, SeqNo, {none, none}, Bytes},
    case Last of
        closed ->
            {Command, {error, unknown_session}, M};
        _ when SeqNo > Last + 1 ->
            {Command, {gap, Last}, M};
        _ when SeqNo =< Last ->
            {Command, verdict(Batch), M};
        _ ->
            {Reply, Next} = insert(Batch, Index, M),
            {Node, Nonce, _} = map_get(Session, Opened),
            {Command, Reply, Next#model{opened = Opened#{Session := {Node, Nonce, SeqNo}}}}
    end;
entry({import, Ahead, Batch}, Index, #model{imported = Last} = M) ->
    SeqNo = max(1, Last + Ahead),
    {Version, Bytes} = encoded(Batch),
    Command = {enqueue, Version, 4711, SeqNo, {none, none}, Bytes},
    case SeqNo of
        _ when SeqNo > Last + 1 ->
            {Command, {gap, Last}, M};
        _ when SeqNo =< Last, Batch =:= empty ->
            {Command, {error, einval}, M};
        _ when SeqNo =< Last ->
            {Command, verdict(Batch), M};
        _ when Batch =:= empty ->
            {Command, {error, einval}, M#model{imported = SeqNo}};
        _ ->
            {Reply, Next} = insert(Batch, Index, M),
            {Command, Reply, Next#model{imported = SeqNo}}
    end;
entry(purge, _, #model{pending = Pending} = M) ->
    {{purge, 1}, {ok, #{removed => map_size(Pending), taken => 0}}, M#model{pending = #{}}};
entry({settle, Version, Places}, _, #model{pending = Pending} = M) ->
    Released = [begin
                    {Id, Due} = place(Place, M),
                    {Id, case Which of same -> Due; other -> Due + 1; before -> Due - 1 end}
                end || {Place, Which} <- Places],
    Gone = [Id || {Id, Due} <- Released, is_due(Version, Id, Due, M)],
    {{settle, Version, << <<Id:64/little, Due:64/little>> || {Id, Due} <- Released >>},
     {ok, length(lists:usort(Gone))}, M#model{pending = maps:without(Gone, Pending)}};
entry({settle_ids, Places}, _, M) ->
    removed(settle, [Id || Place <- Places, {Id, _} <- [place(Place, M)]], M);
entry({cancel, Which, Places}, _, #model{term = Term} = M) ->
    Ids = [Id || Place <- Places, {Id, _} <- [place(Place, M)]],
    {{_, 1, Binary}, Reply, Next} = removed(cancel, Ids, M),
    fenced(cancel, Which, Binary, Reply, Next, Term, M);
entry({reschedule, Which, Moves}, _, #model{term = Term, pending = Pending} = M) ->
    Dues = [{element(1, place(Place, M)), ?NOW + Offset} || {Place, Offset} <- Moves],
    There = [Move || {Id, _} = Move <- Dues, is_map_key(Id, Pending)],
    Next = lists:foldl(fun ({Id, Due}, P) ->
                               {_, Key} = map_get(Id, P),
                               P#{Id := {Due, Key}}
                       end, Pending, There),
    fenced(reschedule, Which, << <<Id:64/little, Due:64/little>> || {Id, Due} <- Dues >>,
           {ok, length(There)}, M#model{pending = Next}, Term, M);
entry(note, _, #model{term = Term, paused = Paused} = M) ->
    {{note, 1}, {ok, #{machine_version => ?VERSION, term => Term, paused => Paused}}, M};
entry(Switch, _, M) ->
    {{Switch, 1}, ok, M#model{paused = Switch =:= pause}}.

fenced(Change, same, Binary, Reply, Next, Term, _) ->
    {{Change, 2, Term, Binary}, Reply, Next};
fenced(Change, other, Binary, _, _, Term, M) ->
    {{Change, 2, Term + 1, Binary}, {error, {other_term, Term}}, M}.

removed(What, Ids, #model{pending = Pending} = M) ->
    There = lists:usort([Id || Id <- Ids, is_map_key(Id, Pending)]),
    {{What, 1, << <<Id:64/little>> || Id <- Ids >>}, {ok, length(There)},
     M#model{pending = maps:without(There, Pending)}}.

is_due(Version, Id, Due, #model{pending = Pending}) ->
    case Pending of
        #{Id := {Due, _}} -> true;
        #{Id := {Earlier, _}} -> Version =:= 3 andalso Earlier < Due;
        _ -> false
    end.

%% One that is pending, or an id that nobody has.
place(Place, #model{pending = Pending}) ->
    case lists:nthtail(min(Place, map_size(Pending)), lists:sort(maps:to_list(Pending))) of
        [{Id, {Due, _}} | _] -> {Id, Due};
        [] -> {Place + 1, ?NOW}
    end.

encoded({plain, Offsets}) ->
    {1, iolist_to_binary([record(1, Offset, 0) || Offset <- Offsets])};
encoded({keyed, Records}) ->
    {2, iolist_to_binary([record(1 bor (1 bsl 1), Offset, Key) || {Offset, Key} <- Records])};
encoded({releasing, Records}) ->
    {4, iolist_to_binary([case What of
                              replace -> record(1 bor (1 bsl 1), Offset, Key);
                              release -> rabbit_delay_store:record_header(0, 4 bsl 1, 0, 0, Key)
                          end || {What, Offset, Key} <- Records])};
encoded(empty) ->
    {1, <<>>};
encoded(bad) ->
    {1, ?BAD}.

%% Replacing what is pending under its key.
record(Flags, Offset, Key) ->
    [rabbit_delay_store:record_header(4, Flags, 1, ?NOW + Offset, Key), "body"].

verdict(bad) -> {error, einval};
verdict(_) -> ok.

insert({plain, Offsets}, Index, M) ->
    {ok, lists:foldl(fun ({Position, Offset}, Acc) -> add(Index, Position, Offset, 0, Acc) end, M,
                     lists:zip(lists:seq(0, length(Offsets) - 1), Offsets))};
insert({keyed, Records}, Index, M) ->
    insert({releasing, [{replace, Offset, Key} || {Offset, Key} <- Records]}, Index, M);
insert({releasing, Records}, Index, #model{pending = Before} = M0) ->
    {M, Released} = lists:foldl(
          fun ({Position, {replace, Offset, Key}}, {#model{pending = Pending} = Acc, Moved}) ->
                  Others = maps:filter(fun (_, {_, K}) -> K =/= Key end, Pending),
                  {add(Index, Position, Offset, Key, Acc#model{pending = Others}), Moved};
              ({_, {release, _, Key}}, {#model{pending = Pending} = Acc, Moved}) ->
                  Later = [Id || {Id, {Due, K}} <- maps:to_list(Pending), K =:= Key, Due > ?NOW + 1],
                  {Acc#model{pending = maps:merge(Pending, maps:from_list([{Id, {?NOW + 1, Key}}
                                                                           || Id <- Later]))},
                   Later ++ Moved}
          end, {M0, []}, lists:zip(lists:seq(0, length(Records) - 1), Records)),
    Replaced = map_size(maps:without(maps:keys(M#model.pending), Before)),
    InBatch = length([R || {replace, _, _} = R <- Records])
        - length([1 || Id <- maps:keys(M#model.pending), Id bsr 16 =:= Index]),
    {{ok, #{cancelled => 0, replaced => Replaced + InBatch, dropped => 0, taken => 0,
            released => length([Id || Id <- Released, is_map_key(Id, M#model.pending)])}}, M};
insert(empty, _, M) ->
    {ok, M};
insert(bad, _, M) ->
    {{error, einval}, M}.

add(Index, Position, Offset, Key, #model{pending = Pending} = M) ->
    M#model{pending = Pending#{(Index bsl 16) + Position => {?NOW + Offset, Key}}}.

%% --------------------------------------------------------------------------- single entries

entries_test_() ->
    {foreach,
     fun () ->
             Dir = filename:absname(filename:join("_build", "machine_tests." ++ os:getpid())),
             replica(Dir)
     end,
     fun (#replica{dir = Dir, state = State}) ->
             ok = rabbit_delay_store:close(?M:store(State)),
             ok = file:del_dir_r(Dir)
     end,
     [fun (#replica{state = State}) -> {Title, fun () -> Test(State) end} end
      || {Title, Test} <-
             [{"what belongs to a machine is unknown to the entries of an earlier one", fun earlier/1},
              {"only so many nodes' sessions are kept, those opened last", fun many_nodes/1},
              {"a snapshot says more only when there is more", fun snapshots/1}]]}.

earlier(State) ->
    Meta = #{index => 1, term => 1, system_time => ?NOW},
    _ = rabbit_delay_registry:create_table(),
    try
        [begin
             ?assertExit({unknown_command, 1}, ?M:apply(M, Command, State))
         end || Command <- [{open, 1, <<"a">>, <<"1">>}, {enqueue, 3, 1, 1, {none, none}, <<>>},
                            {enqueue, 4, 1, 1, {none, none}, <<>>}, {settle, 2, <<>>},
                            {cancel, 2, 1, <<>>}, {reschedule, 2, 1, <<>>}],
                M <- [Meta, Meta#{machine_version => 0}, Meta#{machine_version => 1}]],
        [?assertExit({unknown_command, 1}, ?M:apply(M, Command, State))
         || Command <- [{enqueue, 6, 1, 1, {none, none}, <<>>}, {settle, 3, <<>>}, {purge, 1}],
            M <- [Meta | [Meta#{machine_version => Version} || Version <- [0, 1, 2]]]],
        [?assertExit({unknown_command, 1}, ?M:apply(Meta#{machine_version => ?VERSION}, Command, State))
         || Command <- [{enqueue, 5, 1, 1, {none, none}, <<>>}, {enqueue, 7, 1, 1, {none, none}, <<>>},
                        {settle, 4, <<>>}, {purge, 2}]],
        [?assertMatch({_, ok}, ?M:apply(M, {note, 1}, State))
         || M <- [Meta, Meta#{machine_version => 0}, Meta#{machine_version => 1}]]
    after
        true = ets:delete(rabbit_delay_registry)
    end.

many_nodes(State0) ->
    Nodes = lists:seq(1, 200),
    State = lists:foldl(
              fun (N, S0) ->
                      {S, {ok, N, 0}} = applied(meta(N), {open, 1, integer_to_binary(N), <<"1">>}, S0),
                      S
              end, State0, Nodes),
    #{opened := Opened} = ?M:to_snapshot(State),
    ?assertEqual(lists:seq(73, 200), [Session || {Session, _} <- Opened]),
    Enqueue = fun (Session) ->
                      {_, Reply} = applied(meta(201), {enqueue, 3, Session, 1, {none, none}, <<>>},
                                           State),
                      Reply
              end,
    ?assertEqual([{error, unknown_session}, ok, ok], [Enqueue(S) || S <- [72, 73, 200]]).

snapshots(State0) ->
    ?assertMatch(#{version := 2}, ?M:to_snapshot(State0)),
    {State, {ok, 1, 0}} = applied(meta(1), {open, 1, <<"a">>, <<"1">>}, State0),
    Snapshot = ?M:to_snapshot(State),
    ?assertEqual(#{version => 3, exchange => ?X, seen => 1, sessions => [], paused => false,
                   opened => [{1, {<<"a">>, <<"1">>, 0}}]}, Snapshot),
    ?assertEqual(Snapshot, ?M:to_snapshot(?M:from_snapshot(Snapshot, ?M:store(State)))),
    ?assertError(function_clause, ?M:from_snapshot(Snapshot#{version := 4}, ?M:store(State))).

meta(Index) ->
    #{index => Index, term => 1, system_time => ?NOW, machine_version => ?VERSION}.
