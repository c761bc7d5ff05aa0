%% SPDX-License-Identifier: MPL-2.0

%% What a state's digest is of: replicas that differ in anything that the log decides have different ones.
-module(rabbit_delay_digest_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").

-define(M, rabbit_delay_machine).
-define(X, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>}).
-define(NOW, 1800000000000).

all_test_() ->
    {foreach,
     fun () -> filename:absname(filename:join("_build", "digest_tests." ++ os:getpid())) end,
     fun (Dir) -> _ = file:del_dir_r(Dir) end,
     [fun (Dir) -> {Name, fun () -> Test(Dir) end} end
      || {Name, Test} <- [{"it is of all that the log decides", fun is_of_all/1},
                          {"it stays what it is", fun stays/1},
                          {"of a store that is ahead there is none", fun is_ahead/1},
                          {"of a store that is closed there is none", fun is_closed/1}]]}.

is_of_all(Dir) ->
    Others = [first(),
              [open(<<"n">>, <<"2">>), batch(1, 1)],
              [open(<<"m">>, <<"1">>), batch(1, 1)],
              [open(<<"n">>, <<"1">>), batch(1, 2)],
              first() ++ [batch(2, 1)],
              first() ++ [{pause, 1}],
              first() ++ [{settle, 1, <<(2 bsl 16):64/little>>}],
              first() ++ [{enqueue, 1, 7, 1, {none, none}, <<"refused, which uses the number up">>}]],
    Digests = [begin
                   {Index, {Messages, Digest}} = held(filename:join(Dir, integer_to_list(N)), Log),
                   ?assertEqual(length(Log), Index),
                   ?assertEqual(12, byte_size(Digest)),
                   {Messages, Digest}
               end || {N, Log} <- lists:enumerate(Others)],
    ?assertEqual(length(Others), length(lists:usort(Digests))),
    %% Of the same log it is the same, and has nothing to do with where the index is.
    ?assertEqual(hd(Digests), element(2, held(filename:join(Dir, "again"), first()))),
    ?assertEqual({4, hd(Digests)}, held(filename:join(Dir, "noted"), first() ++ [{note, 1}, {resume, 1}])).

%% Members of other versions have it so.
stays(Dir) ->
    {3, {1, Digest}} = held(filename:join(Dir, "store"), [open(<<"n">>, <<"1">>), batch(1, 1), {pause, 1}]),
    ?assertEqual(<<"A6F6072ADC1441437B502925">>, binary:encode_hex(Digest)).

is_ahead(Dir) ->
    State = state(Dir, first()),
    ?assertEqual(none, rabbit_delay_digest:of_state(
                         ?M:from_snapshot((?M:to_snapshot(State))#{seen := 1}, ?M:store(State)))),
    close(State).

is_closed(Dir) ->
    State = state(Dir, first()),
    close(State),
    ?assertEqual(none, rabbit_delay_digest:of_state(State)).

first() -> [open(<<"n">>, <<"1">>), batch(1, 1)].

open(Node, Nonce) -> {open, 1, Node, Nonce}.

%% In the session that the first entry opens.
batch(SeqNo, Key) -> {enqueue, 3, 1, SeqNo, {1000, none}, message(1000, Key)}.

message(Delay, Key) -> [rabbit_delay_store:record_header(4, 0, 1, Delay, Key), <<"body">>].

held(Dir, Log) ->
    State = state(Dir, Log),
    Held = rabbit_delay_digest:of_state(State),
    close(State),
    Held.

close(State) -> ok = rabbit_delay_store:close(?M:store(State)).

state(Dir, Log) ->
    ok = filelib:ensure_dir(Dir),
    {ok, Store, _} = rabbit_delay_store:open(Dir, #{now => ?NOW}),
    lists:foldl(fun ({Index, Command}, State) ->
                        element(1, ?M:apply(#{index => Index, term => 1, system_time => ?NOW, machine_version => 3},
                                            Command, State))
                end,
                ?M:from_snapshot(#{version => 1, exchange => ?X, seen => 0, sessions => []}, Store),
                lists:enumerate(Log)).
