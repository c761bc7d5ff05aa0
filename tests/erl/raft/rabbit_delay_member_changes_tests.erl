%% SPDX-License-Identifier: MPL-2.0

%% Members of a group that are started, ended and changed, with real Ra servers and the broker's own table of
%% exchanges: three members on this node, each of an exchange as far as its files go, and one on a node that is away.
-module(rabbit_delay_member_changes_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include("rabbit_delay.hrl").

-define(X, (x(<<"x">>))).
-define(LIFE, <<"0123456789AB">>).
-define(OTHER_LIFE, <<"BA9876543210">>).
-define(AWAY, 'away@nohost').
-define(APP, rabbitmq_delay_wheel).

changes_test_() ->
    each([{"a change is made as it was decided", fun as_decided/1},
          {"what was decided in an earlier term is not done", fun earlier_term/1},
          {"what was decided of another configuration is not done", fun other_configuration/1},
          {"what was decided when more were up is not done", fun fewer_up/1},
          {"a change is not passed on to who leads now", fun not_passed_on/1}]).

lives_test_() ->
    each([{"a leader changes no members of another life's group", fun other_life/1}]).

starting_test_() ->
    each([{"a member is started only if this node's record names it", fun started_if_named/1},
          {"one that is added, too, and only if there is no other here", fun added_if_named/1}]).

staying_test_() ->
    each([{"a member that the record lacks stays until its leader says that it is out", fun stays/1}]).

each(Tests) ->
    {foreach, fun start/0, fun stop/1,
     [fun (World) -> {timeout, 120, {Title, fun () -> Test(World) end}} end || {Title, Test} <- Tests]}.

%% ------------------------------------------------------------------------------- changes (D1)

as_decided(#{away := Away} = World) ->
    ?assertEqual(ok, rabbit_delay_member_changes:remove(?X, ?AWAY)),
    ?assertEqual(lists:sort(ids(World)) -- [Away], configuration(World)),
    ?assertEqual(lists:sort(ids(World)) -- [Away], named()).

earlier_term(#{a := {A, _}, b := {B, _}} = World) ->
    before_second_look(A, fun () -> lead(A, B), lead(B, A) end),
    ?assertMatch({error, _}, rabbit_delay_member_changes:remove(?X, ?AWAY)),
    unchanged(World).

other_configuration(#{a := {A, _}, e := {E, _}, away := Away} = World) ->
    before_second_look(A, fun () -> {ok, _, _} = ra:remove_member(A, E) end),
    ?assertMatch({error, _}, rabbit_delay_member_changes:remove(?X, ?AWAY)),
    ?assertEqual(lists:sort(ids(World)) -- [E], configuration(World)),
    ?assert(lists:member(Away, named())).

fewer_up(#{a := {A, _}, b := {B, _}, e := {E, _}} = World) ->
    before_second_look(A, fun () -> [ok = ra:stop_server(?RA_SYSTEM, Id) || Id <- [B, E]] end),
    ?assertMatch({error, _}, rabbit_delay_member_changes:remove(?X, ?AWAY)),
    unchanged(World).

not_passed_on(#{a := {A, _}, b := {B, _}} = World) ->
    interpose(A, fun ({'$gen_call', _, {leader_call, {command, _, {'$ra_leave', _, _}}}}) -> true;
                     (_) -> false
                 end, fun () -> lead(A, B) end),
    ?assertMatch({error, _}, rabbit_delay_member_changes:remove(?X, ?AWAY)),
    unchanged(World).

%% ------------------------------------------------------------------------------- lives (C5)

%% The exchange was deleted and declared again, and its new group is of the same nodes.
other_life(World) ->
    Member = rabbit_delay_raft:new_member(?X, node(), ?OTHER_LIFE),
    Others = group(?OTHER_LIFE, [Member, rabbit_delay_raft:new_member(?X, ?AWAY, ?OTHER_LIFE)]),
    ok = record(Others),
    ?assertEqual([?X], [XName || XName <- rabbit_delay_table:led(), XName =:= ?X]),
    ?assertEqual(again, rabbit_delay_member_changes:remove(?X, ?AWAY)),
    ?assertEqual(again, rabbit_delay_member_changes:add(?X, ?AWAY)),
    ok = rabbit_delay_member_changes:reconcile(true),
    ?assertEqual(lists:sort(ids(World)), configuration(World)),
    ?assertEqual({ok, Others}, rabbit_delay_group:find(?X)).

%% ------------------------------------------------------------------------------- starting (C3)

%% What a node answers takes as long as it waits for its copy of the record.
started_if_named(_) ->
    Other = x(<<"other">>),
    [{_, Uid} = Member] = [rabbit_delay_raft:new_member(Other, node(), ?LIFE)],
    Group = group(?LIFE, [Member]),
    Start = fun () -> rabbit_delay_group:start_new(Other, true, Group) end,
    %% It knows of no such exchange; of one without a group; of another group.
    ?assertMatch([{error, {other_group, none}}, {error, {other_group, none}}, {error, {other_group, {ok, _}}}],
                 together([Start,
                           fun () -> rabbit_delay_group:start_new(declared(x(<<"without">>)), true, Group) end,
                           fun () ->
                                   Declared = declared(x(<<"with">>)),
                                   ok = record(Declared, group(?OTHER_LIFE, [Member])),
                                   rabbit_delay_group:start_new(Declared, true, Group)
                           end])),
    ?assertNot(is_here(Member)),
    ?assertEqual([], [M || {_, _, M} <- rabbit_delay_raft:members(), M =:= Uid]),
    %% Its copy comes while it waits.
    Waiting = asked(Start),
    ok = record(declared(Other), Group),
    ?assertEqual(ok, answer(Waiting)),
    ?assert(is_here(Member)).

added_if_named(#{a := {A, _} = First, b := {B, _}} = World) ->
    {_, Uid} = Added = rabbit_delay_raft:added_member(?X, node(), ?LIFE),
    Start = fun () -> rabbit_delay_local_member:start_added(?X, ?LIFE, Added) end,
    ?assertMatch({error, {other_group, _}}, Start()),
    ?assertNot(is_here(Added)),
    %% It is named in place of the one that is here, which is in Raft's configuration yet.
    ok = record(group(?LIFE, [Added | members(World) -- [First]])),
    ?assertMatch({error, {holds, A, false}}, Start()),
    ?assertNot(is_here(Added)),
    ?assert(is_here(First)),
    lead(A, B),
    {ok, _, _} = ra:remove_member(B, A),
    ?assertEqual(ok, Start()),
    ?assert(is_here(Added)),
    ?assertNot(is_here(First)),
    ?assertEqual({ok, Uid}, rabbit_delay_raft:find_member(?X)),
    ?assert(is_put_aside(First)).

%% ------------------------------------------------------------------------------- staying (C4)

stays(#{a := {A, _} = First, b := {B, _} = Second, e := {E, _} = Third} = World) ->
    ok = record(group(?LIFE, members(World) -- [First])),
    End = fun (How) -> rabbit_delay_local_member:end_member(?X, First, How) end,
    Stays = fun (Why) ->
                    [?assertEqual({error, {in_group, Why}}, End(How)) || How <- [put_aside, delete]],
                    ?assertEqual(unknown, rabbit_delay_local_member:look_at(?X, First)),
                    ?assert(is_here(First))
            end,
    Stays(false),
    %% Nobody leads.
    [ok = ra:stop_server(?RA_SYSTEM, Id) || Id <- [B, E]],
    Stays(unknown),
    [ok = restart(Member) || Member <- [Second, Third]],
    lead(leader(A), B),
    Stays(false),
    {ok, _, _} = ra:remove_member(B, A),
    ?assertEqual(done, rabbit_delay_local_member:look_at(?X, First)),
    ?assertNot(is_here(First)),
    ?assert(is_put_aside(First)).

%% ------------------------------------------------------------------------------- the world

x(Name) -> #resource{virtual_host = <<"/">>, kind = exchange, name = Name}.

start() ->
    Dir = filename:absname(filename:join("_build", lists:concat(["member_tests.", os:getpid(), ".",
                                                                 erlang:unique_integer([positive])]))),
    application:set_env(?APP, data_dir, Dir),
    application:set_env(ra, data_dir, Dir),
    {ok, _} = application:ensure_all_started(ra),
    ok = rabbit_delay_registry:create_table(),
    ok = rabbit_delay_system:create_table(),
    {ok, System} = rabbit_delay_system:start_link(),
    Broker = start_metadata(filename:join(Dir, "mnesia")),
    await(fun () -> rabbit_delay_system:status() =:= up end),
    [A, B, E] = [rabbit_delay_raft:new_member(x(Name), node(), ?LIFE) || Name <- [<<"x">>, <<"b">>, <<"e">>]],
    {Away, _} = C = rabbit_delay_raft:new_member(?X, ?AWAY, ?LIFE),
    World = #{a => A, b => B, e => E, c => C, away => Away, system => System, broker => Broker, dir => Dir},
    Group = group(?LIFE, members(World)),
    ok = record(declared(?X), Group),
    [ok = rabbit_delay_raft:start_new_member(x(Name), true, Member, Group)
     || {Name, Member} <- [{<<"x">>, A}, {<<"b">>, B}, {<<"e">>, E}]],
    {First, _} = A,
    ok = ra:trigger_election(First),
    lead(leader(First), First),
    %% Raft's configuration is not changed before an entry of the term is committed.
    {ok, {ok, _}, First} = ra:process_command(First, {note, 1}, 30000),
    World.

%% Which nodes are in the cluster stands in files, as long as not all of the broker's tables are there.
start_metadata(Dir) ->
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    ok = application:set_env(mnesia, dir, Dir),
    ok = application:set_env(rabbit, feature_flags_file, filename:join(Dir, "feature_flags")),
    ok = mnesia:start(),
    [{atomic, ok} = mnesia:create_table(Table, [{record_name, exchange}, {attributes, record_info(fields, exchange)}])
     || Table <- [rabbit_exchange, rabbit_durable_exchange]],
    [ok = file:write_file(filename:join(Dir, Name), io_lib:format("~p.~n", [Term]))
     || {Name, Term} <- [{"cluster_nodes.config", {[node(), ?AWAY], [node(), ?AWAY]}},
                         {"nodes_running_at_shutdown", [node()]}, {"feature_flags", []}]],
    lists:map(fun (Start) -> {ok, Pid} = Start(), Pid end,
              [fun rabbit_registry:start_link/0, fun file_handle_cache:start_link/0,
               fun () -> worker_pool_sup:start_link(1, worker_pool:default_pool()) end]).

stop(#{system := System, broker := Broker, dir := Dir}) ->
    [begin
         unlink(Pid),
         exit(Pid, shutdown),
         await(fun () -> not is_process_alive(Pid) end)
     end || Pid <- [System | Broker]],
    stopped = mnesia:stop(),
    ok = application:unset_env(mnesia, dir),
    ok = application:unset_env(rabbit, feature_flags_file),
    true = ets:delete(rabbit_delay_registry),
    true = ets:delete(rabbit_delay_system),
    ok = application:stop(ra),
    ok = application:unset_env(?APP, data_dir),
    ok = file:del_dir_r(Dir).

members(#{a := A, b := B, e := E, c := C}) -> [A, B, E, C].

ids(World) -> [Id || {Id, _} <- members(World)].

group(Life, Members) ->
    #{version => 1, life => Life, salt => <<"salt">>, formed => true, members => Members}.

declared(XName) ->
    ok = mnesia:dirty_write(rabbit_exchange,
                            #exchange{name = XName, type = 'x-delayed-message', durable = true, auto_delete = false,
                                      internal = false, arguments = [], decorators = {[], []}}),
    XName.

record(Group) -> record(?X, Group).

record(XName, Group) ->
    [#exchange{} = X] = mnesia:dirty_read(rabbit_exchange, XName),
    mnesia:dirty_write(rabbit_exchange, X#exchange{scratches = [{?APP, Group}]}).

named() ->
    {ok, Group} = rabbit_delay_group:find(?X),
    lists:sort(rabbit_delay_group:ids(Group)).

unchanged(World) ->
    ?assertEqual(lists:sort(ids(World)), configuration(World)),
    ?assertEqual(lists:sort(ids(World)), named()).

%% Raft's, with what is not committed, as the one that leads has it.
configuration(#{a := {A, _}}) ->
    {ok, #{cluster := Cluster}} = rabbit_delay_broker:raft_overview(leader(A), 5000),
    lists:sort(maps:keys(Cluster)).

leader(Id) ->
    await(fun () -> case ra:members(Id, 1000) of
                        {ok, _, {_, _} = Leader} -> {true, Leader};
                        _ -> false
                    end
          end).

%% Both know it then.
lead(From, To) ->
    _ = From =/= To andalso ra:transfer_leadership(From, To),
    await(fun () -> lists:all(fun (Id) -> follows(Id, To) end, [From, To]) end).

follows(Id, Leader) ->
    case rabbit_delay_broker:raft_overview(Id, 1000) of
        {ok, #{leader_id := Leader}} -> true;
        _ -> false
    end.

restart({Id, Uid}) ->
    {XName, _, Uid} = lists:keyfind(Uid, 3, rabbit_delay_raft:members()),
    ok = rabbit_delay_registry:permit_start(XName),
    ra:restart_server(?RA_SYSTEM, Id).

is_here({{Name, _}, Uid}) ->
    case {is_pid(whereis(Name)), filelib:is_dir(rabbit_delay_raft:store_dir(Uid))} of
        {Both, Both} -> Both
    end.

is_put_aside({_, Uid}) ->
    filelib:is_dir(filename:join([rabbit_delay_config:data_dir(), "quarantine", Uid, "delay_store"])).

%% ------------------------------------------------------------------------------- in between

%% What a change is decided from is what its own server says; that is looked at again before it is made.
before_second_look(Id, Do) ->
    Looks = counters:new(1, []),
    interpose(Id, fun ({'$gen_call', _, {local_call, {state_query, all}}}) ->
                          ok = counters:add(Looks, 1, 1),
                          counters:get(Looks, 1) =:= 2;
                      (_) -> false
                  end, Do).

%% All that is sent to this server passes another process, until the message comes that is waited for: then that process
%% steps aside, and has something done before it passes that one on. Who has sent it monitors that process.
interpose({Name, _}, Is, Do) ->
    Real = whereis(Name),
    true = unregister(Name),
    true = register(Name, spawn(fun () -> Ref = monitor(process, Real), pass_on(Name, {Real, Ref}, Is, Do) end)),
    ok.

pass_on(Name, {Real, Ref} = Server, Is, Do) ->
    receive
        {'DOWN', Ref, _, _, _} ->
            ok;
        Message ->
            case Is(Message) of
                true ->
                    true = unregister(Name),
                    true = register(Name, Real),
                    _ = Do(),
                    Real ! Message,
                    pass_on_all(Server);
                false ->
                    Real ! Message,
                    pass_on(Name, Server, Is, Do)
            end
    end.

pass_on_all({Real, Ref} = Server) ->
    receive
        {'DOWN', Ref, _, _, _} ->
            ok;
        Message ->
            Real ! Message,
            pass_on_all(Server)
    end.

together(Funs) -> [answer(Ref) || Ref <- [asked(Fun) || Fun <- Funs]].

asked(Fun) -> element(2, spawn_monitor(fun () -> exit({answer, Fun()}) end)).

answer(Ref) ->
    receive
        {'DOWN', Ref, process, _, {answer, Answer}} -> Answer
    after 60000 -> error(no_answer)
    end.

await(Fun) -> await(Fun, erlang:monotonic_time(millisecond) + 30000).

await(Fun, Deadline) ->
    case Fun() of
        true -> ok;
        {true, What} -> What;
        false ->
            ?assert(erlang:monotonic_time(millisecond) < Deadline),
            receive after 10 -> await(Fun, Deadline) end
    end.
