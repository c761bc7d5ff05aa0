%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_official_note_tests).

-include_lib("eunit/include/eunit.hrl").

-define(N, rabbit_delay_official_note).
-define(X, {resource, <<"/">>, exchange, <<"x">>}).
-define(Y, {resource, <<"/">>, exchange, <<"y">>}).

note_test_() ->
    {foreach, fun start/0, fun stop/1,
     [fun (File) -> {Title, fun () -> Test(File) end} end
      || {Title, Test} <- [{"nothing is written, nothing is in", fun none/1},
                           {"an import goes on where one was ended", fun goes_on/1},
                           {"a session begins once, and again when it is forgotten", fun sessions/1},
                           {"a file as it was written by 0.1", fun as_written/1},
                           {"a damaged file is told, and kept", fun damaged/1}]]}.

start() ->
    Dir = filename:absname(filename:join("_build", "note_tests." ++ os:getpid() ++ "." ++
                                             integer_to_list(erlang:unique_integer([positive])))),
    ok = filelib:ensure_dir(filename:join(Dir, "file")),
    application:set_env(rabbitmq_delay_wheel, data_dir, Dir),
    filename:join(Dir, "official_import").

stop(File) ->
    application:unset_env(rabbitmq_delay_wheel, data_dir),
    ok = file:del_dir_r(filename:dirname(File)).

none(File) ->
    Note = ?N:read(),
    ?assertNot(?N:is_in(id(1), Note)),
    ?assertMatch({[], _}, ?N:under_way(Note)),
    ?assertEqual({error, enoent}, file:read_file(File)),
    ok = ?N:delete().

%% Of two batches one was answered when the import ended; the machine has the other one as well.
goes_on(File) ->
    {PlaceX, Note1} = ?N:place(?X, ?N:read()),
    {PlaceY, Note2} = ?N:place(?Y, Note1),
    Sent = [{?X, PlaceX, <<(id(1))/binary, (id(2))/binary>>}, {?Y, PlaceY, id(3)}],
    ok = ?N:write(Sent, Note2),
    Answered = ?N:taken(?X, PlaceX, [id(1), id(2)], Note2),
    ?assertEqual([true, true, false], [?N:is_in(id(N), Answered) || N <- [1, 2, 3]]),
    {Found, Note3} = ?N:under_way(?N:read()),
    ?assertEqual(Sent, Found),
    ?assertEqual([false, false, false], [?N:is_in(id(N), Note3) || N <- [1, 2, 3]]),
    Note4 = lists:foldl(fun ?N:arrived/2, Note3, Found),
    ?assertEqual([true, true, true], [?N:is_in(id(N), Note4) || N <- [1, 2, 3]]),
    %% and is asked about no more when it has gone from the tables
    Note5 = ?N:forget([id(1), id(3)], Note4),
    ok = ?N:write([], Note5),
    Read = ?N:read(),
    ?assertEqual([false, true, false], [?N:is_in(id(N), Read) || N <- [1, 2, 3]]),
    ?assertMatch({[], _}, ?N:under_way(Read)),
    {Session, SeqNo} = PlaceX,
    ?assertMatch({{Session, Next}, _} when Next =:= SeqNo + 1, ?N:place(?X, Read)),
    ok = ?N:delete(),
    ?assertEqual({error, enoent}, file:read_file(File)).

sessions(_) ->
    {{Session, 1}, Note1} = ?N:place(?X, ?N:read()),
    {{Session, 2}, Note2} = ?N:place(?X, Note1),
    {{Other, 1}, Note3} = ?N:place(?Y, Note2),
    ?assertNotEqual(Session, Other),
    {{Again, 1}, _} = ?N:place(?X, ?N:forget_session(?X, Note3)),
    ?assertNotEqual(Session, Again),
    ?assertMatch({{Other, 2}, _}, ?N:place(?Y, ?N:forget_session(?X, Note3))).

as_written(File) ->
    Body = term_to_binary({#{?X => {77, 5}}, [{?X, {77, 6}, id(2)}], id(1)}),
    ok = file:write_file(File, [<<"DWOI", 1:32/little, (erlang:crc32(Body)):32/little>>, Body]),
    {[{?X, {77, 6}, _}] = Sent, Note} = ?N:under_way(?N:read()),
    ?assert(?N:is_in(id(1), Note)),
    ?assertMatch({{77, 6}, _}, ?N:place(?X, Note)),
    {ok, Before} = file:read_file(File),
    ok = ?N:write(Sent, Note),
    ?assertEqual({ok, Before}, file:read_file(File)).

damaged(File) ->
    {_, Note} = ?N:place(?X, ?N:read()),
    ok = ?N:write([], Note),
    {ok, <<Magic:4/binary, Rest/binary>> = Bytes} = file:read_file(File),
    [begin
         ok = file:write_file(File, Damaged),
         ?assertThrow({unavailable, [File, " is damaged" ++ _]}, ?N:read()),
         ?assertEqual({ok, Damaged}, file:read_file(File))
     end || Damaged <- [<<>>, Magic, binary:part(Bytes, 0, byte_size(Bytes) - 1), <<"XXXX", Rest/binary>>,
                        <<Bytes/binary, 0>>, <<Magic/binary, 2:32/little, (binary:part(Rest, 4, byte_size(Rest) - 4))/binary>>]].

id(N) -> <<N:64>>.
