%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_official_files_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/resource.hrl").

-define(DUES, 40).

table() -> rabbit_delay_official_tables:table(node()).

%% What a real Mnesia holds is what is read from a copy of its files, whenever that is taken.
what_mnesia_holds_test_() ->
    {timeout, 3000, fun what_mnesia_holds/0}.

what_mnesia_holds() ->
    Dir = scratch(),
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, warning),
    start(Dir),
    _ = rand:seed(exsss, {1, 2, 3}),
    try
        lists:foldl(fun (N, _) -> step(Dir, N) end, ok, lists:seq(1, 400))
    after
        stopped = mnesia:stop(),
        ok = logger:set_primary_config(level, Level),
        ok = file:del_dir_r(Dir)
    end.

%% After a stop as after a crash, and when what is in the log has been written to the table's files in
%% part, again and again.
step(Dir, N) ->
    case rand:uniform(100) of
        R when R =< 60 ->
            [mnesia:dirty_write(table(), entry(rand:uniform(?DUES))) || _ <- lists:seq(1, 20)];
        R when R =< 75 ->
            mnesia:dirty_delete(table(), key(rand:uniform(?DUES)));
        R when R =< 78 ->
            [mnesia:dirty_delete_object(table(), E)
             || E <- mnesia:dirty_read(table(), key(rand:uniform(?DUES)))];
        R when R =< 82 ->
            %% As an import of ours puts back what is to stay.
            Key = key(rand:uniform(?DUES)),
            {atomic, ok} =
                mnesia:transaction(
                  fun () ->
                          Entries = mnesia:read(table(), Key, write),
                          ok = mnesia:delete(table(), Key, write),
                          [ok = mnesia:write(table(), E, write) || E <- Entries, rand:uniform(2) =:= 1],
                          ok
                  end);
        R when R =< 88 ->
            dumped = mnesia:dump_log();
        R when R =< 90 ->
            dumped = mnesia_dumper:snapshot_dcd([table()]);
        R when R =< 92 ->
            stopped = mnesia:stop(),
            start(Dir);
        R when R =< 93, N > 200 ->
            {atomic, ok} = mnesia:clear_table(table());
        _ ->
            compare(Dir)
    end.

compare(Dir) ->
    ok = mnesia:sync_log(),
    Copy = Dir ++ ".copy",
    _ = os:cmd("cp -a '" ++ Dir ++ "' '" ++ Copy ++ "'"),
    Held = lists:sort(ets:tab2list(table())),
    {ok, Read, 0} = rabbit_delay_official_files:fold(Copy, fun (Es, Acc) -> Es ++ Acc end, []),
    ?assertEqual(Held, lists:sort(Read)),
    %% The log once more, as if it had been written to the .DCL and not been taken away yet.
    Latest = filename:join(Copy, "LATEST.LOG"),
    {ok, _} = file:copy(Latest, filename:join(Copy, "PREVIOUS.LOG")),
    {ok, Again, 0} = rabbit_delay_official_files:fold(Copy, fun (Es, Acc) -> Es ++ Acc end, []),
    ?assertEqual(Held, lists:sort(Again)),
    ok = file:del_dir_r(Copy).

start(Dir) ->
    ok = application:set_env(mnesia, dir, Dir),
    _ = mnesia:create_schema([node()]),
    ok = mnesia:start(),
    _ = mnesia:create_table(table(), [{record_name, delay_entry},
                                      {attributes, [delay_key, delivery, ref]}, {type, bag},
                                      {disc_copies, [node()]}]),
    ok = mnesia:wait_for_tables([table()], 120000).

scratch() ->
    Dir = filename:join(["/tmp", "official_files_" ++ os:getpid()]),
    _ = file:del_dir_r(Dir),
    Dir.

%% Two records of one exchange, as after a change of its policy.
key(N) ->
    {delay_key, 1000 + N,
     {exchange, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>},
      'x-delayed-message', #{variant => N rem 2}}}.

entry(N) -> {delay_entry, key(N), {delivery, N}, make_ref()}.

a_directory_without_the_table_test() ->
    ?assertMatch({error, _}, rabbit_delay_official_files:fold("/tmp", fun (_, Acc) -> Acc end, [])),
    ?assertMatch({error, _},
                 rabbit_delay_official_files:fold(<<"/none">>, fun (_, Acc) -> Acc end, [])).

what_is_no_log_test() ->
    Dir = scratch(),
    Table = filename:join(Dir, atom_to_list(table()) ++ ".DCD"),
    ok = filelib:ensure_dir(Table),
    ok = file:write_file(Table, <<"no disk log">>),
    {error, Why} = rabbit_delay_official_files:fold(Dir, fun (_, Acc) -> Acc end, []),
    ?assertNotEqual(nomatch, string:find(Why, ".DCD")),
    ok = file:del_dir_r(Dir).
