%% SPDX-License-Identifier: MPL-2.0

%% Raft as this plugin uses it: one Ra system of our own, and in it one Ra cluster per delayed
%% exchange. Everything that knows names, directories and Ra's settings is here. It owns no process: its
%% functions run in whoever calls them.
%%
%% On disk, below the plugin's data directory:
%%
%%   *.wal, meta.dets, names.dets   Ra's, for the whole system
%%   D<hash>_<random>/              one member: Ra's segments, snapshots and config, and
%%     delay_store/                 the delay store's files (c_src/)
%%     held/                        links to some of them, while they are read (rabbit_delay_held_files)
%%     deleted                      there if its exchange has been deleted
%%     complete                     there once all members of its group have been started
%%   deleted-D<hash>_<random>/      what is being removed
%%   quarantine/                    members whose exchange no longer exists
%%
%% <hash> is of the exchange's vhost and name, <random> distinguishes an exchange from an earlier one
%% of the same name, whose entries may still lie in the WAL.
-module(rabbit_delay_raft).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include("rabbit_delay.hrl").

-export([system_config/0, server_id/1, id_of/1, is_running/1, salt_of/1, life_of/1,
         new_member/3, added_member/3, register_members/0, members/0, find_member/1, start_member/2,
         start_member/4, start_new_member/4, start_new_member/5, stop_member/1, remove_member/1, put_aside_member/1,
         mark_deleted/1, delete_member/2, sweep/0, discard_member/1, quarantine_member/1,
         key_salt/1, last_seq_no/2, store_dir/1, store_dir_of_snapshot/1, member_dir_of_snapshot/1]).
-export([mark_complete/1, members_of_groups/1, initial_members/1]).

-type uid() :: binary().
-export_type([uid/0]).

-define(HASH_BYTES, 12).
-define(RANDOM_BYTES, 6).
-define(SALT_BYTES, 16).
-define(INCARNATION_BYTES, 3).
%% That of the first plugin that has groups of several members.
-define(INITIAL_MACHINE_VERSION, 2).
-define(TICK_MS, 1000).
%% The longest that a server's start is waited for before it is stopped.
-define(START_MS, 5000).
-define(QUERY_MS, 5000).
%% How long an entry that is not applied goes on before the server is looked at.
-define(APPLIED_MS, 1000).
-define(NAMES_FILE, "names.dets").
%% In the directory of a member whose exchange has been deleted.
-define(DELETED_MARK, "deleted").
%% In that of one whose group has been complete: it may hold what was confirmed.
-define(COMPLETE_MARK, "complete").

%% Our own Ra system, so that delayed messages neither slow nor endanger quorum queues.
-spec system_config() -> ra_system:config().
system_config() ->
    Dir = rabbit_delay_config:data_dir(),
    WalSize = rabbit_delay_config:wal_size(),
    Defaults = maps:merge(ra_system:default_config(), rabbit_delay_broker:segment_config(WalSize)),
    maps:remove(wal_max_entries,
                Defaults#{name => ?RA_SYSTEM,
                          names => ra_system:derive_names(?RA_SYSTEM),
                          data_dir => Dir,
                          wal_data_dir => Dir,
                          wal_max_size_bytes => WalSize,
                          %% The last segment stays, even if all in it is in a snapshot.
                          segment_max_entries => 1024,
                          wal_sync_method => datasync,
                          wal_write_strategy => default}).

%% The local member of an exchange's group, as it was last started; else that of one that is alone.
-spec server_id(rabbit_exchange:name()) -> ra:server_id().
server_id(XName) ->
    case rabbit_delay_registry:server_id(XName) of
        undefined -> {binary_to_atom(server_name(XName), utf8), node()};
        ServerId -> ServerId
    end.

server_name(XName) ->
    <<"rabbit_delay_", (hash(XName))/binary>>.

%% What a member of a group in a cluster is called: Ra's messages tell servers apart by their names
%% alone, so the group's life is in it.
-spec new_member(rabbit_exchange:name(), node(), Life :: binary()) -> rabbit_delay_group:member().
new_member(XName, Node, Life) ->
    {{binary_to_atom(<<(server_name(XName))/binary, $_, Life/binary>>, utf8), Node}, new_uid(XName)}.

%% One that is added to a group later, where an earlier member of it may have been: so its name has an
%% incarnation, too.
-spec added_member(rabbit_exchange:name(), node(), Life :: binary()) -> rabbit_delay_group:member().
added_member(XName, Node, Life) ->
    Incarnation = binary:encode_hex(crypto:strong_rand_bytes(?INCARNATION_BYTES)),
    Name = <<(server_name(XName))/binary, $_, Life/binary, $_, Incarnation/binary>>,
    {{binary_to_atom(Name, utf8), Node}, new_uid(XName)}.

%% The server that a member's files are of.
-spec id_of(uid()) -> ra:server_id().
id_of(Uid) ->
    case ra_log:read_config(server_dir(Uid)) of
        {ok, #{id := Id}} -> Id;
        _ -> {binary_to_atom(<<"rabbit_delay_", (hash_of_uid(Uid))/binary>>, utf8), node()}
    end.

%% Enters every member that has a directory into Ra's table of names, before the system is started.
%% That table lags behind by up to half a second, and from version 3 on Ra drops what the WAL holds of
%% servers that are not in it. One that cannot be read is made anew.
-spec register_members() -> ok.
register_members() ->
    case members(maps:values(newest(wildcard("D*_*")))) of
        [] ->
            ok;
        Members ->
            File = filename:join(rabbit_delay_config:data_dir(), ?NAMES_FILE),
            ok = open_names(File),
            lists:foreach(
              fun ({_, _, Uid}) ->
                      {Name, _} = id_of(Uid),
                      ok = dets:insert(?MODULE, {Name, Uid})
              end, Members),
            ok = dets:close(?MODULE)
    end.

open_names(File) ->
    case dets:open_file(?MODULE, [{file, File}]) of
        {ok, ?MODULE} ->
            ok;
        {error, Reason} ->
            ?LOG_WARNING("delayed messages: ~ts cannot be read and is made anew: ~0p",
                         [File, Reason], ?LOG_DOMAIN),
            ok = file:rename(File, filename:join(rabbit_delay_config:data_dir(),
                                                 ?NAMES_FILE ".damaged")),
            {ok, ?MODULE} = dets:open_file(?MODULE, [{file, File}]),
            ok
    end.

%% Every member that has a directory here, with the exchange that it belongs to.
-spec members() -> [{rabbit_exchange:name(), Durable :: boolean(), uid()}].
members() ->
    members([uid_of_dir(Dir) || Dir <- wildcard("D*_*")]).

%% One that is put aside or deleted meanwhile is not among them.
members(Uids) ->
    lists:filtermap(
      fun (Uid) ->
              case ra_log:read_config(server_dir(Uid)) of
                  {ok, #{machine := {module, rabbit_delay_machine,
                                     #{exchange := XName, durable := Durable}}}} ->
                      {true, {XName, Durable, Uid}};
                  _ ->
                      false
              end
      end, Uids).

%% The member that holds an exchange's messages, if there is one.
-spec find_member(rabbit_exchange:name()) -> {ok, uid()} | none.
find_member(XName) ->
    found(XName, wildcard(pattern(XName))).

pattern(XName) ->
    binary_to_list(<<"D", (hash(XName))/binary, "_*">>).

found(XName, Dirs) ->
    Hash = hash(XName),
    case newest(Dirs) of
        #{Hash := Uid} -> {ok, Uid};
        _ -> none
    end.

%% Of each exchange, by its hash.
newest(Dirs) ->
    maps:from_list([{hash_of_uid(Uid), Uid}
                    || {_, Dir} <- lists:sort([{filelib:last_modified(Dir), Dir} || Dir <- Dirs]),
                       Uid <- [uid_of_dir(Dir)]]).

%% Starts the local member, a new one if there is none. One whose files are of a later version is
%% refused before anything is opened: Ra deletes what it cannot read.
-spec start_member(rabbit_exchange:name(), Durable :: boolean()) -> ok | {error, term()}.
start_member(XName, Durable) ->
    case find_member(XName) of
        {ok, Uid} ->
            case rabbit_delay_newer:in_files(server_dir(Uid), store_dir(Uid)) of
                none ->
                    Id = id_of(Uid),
                    case start_server(XName, Durable, {Id, Uid}, [Id], salt_of(Uid), #{}) of
                        started -> applies(XName, Id);
                        Other -> Other
                    end;
                Why ->
                    rabbit_delay_newer:refused(XName, Why)
            end;
        none ->
            Id = {binary_to_atom(server_name(XName), utf8), node()},
            case start_server(XName, Durable, {Id, new_uid(XName)}, [Id],
                              crypto:strong_rand_bytes(?SALT_BYTES), #{}) of
                started ->
                    _ = ra:trigger_election(Id),
                    ok;
                Other ->
                    Other
            end
    end.

%% Starts the local member of a group in a cluster from its files. One that has lost them has
%% forgotten what it acknowledged, and is not started again.
-spec start_member(rabbit_exchange:name(), Durable :: boolean(), rabbit_delay_group:member(),
                   rabbit_delay_group:group()) -> ok | {error, term()}.
start_member(XName, Durable, {_, Uid} = Member, Group) ->
    case filelib:is_dir(server_dir(Uid))
        andalso rabbit_delay_newer:in_files(server_dir(Uid), store_dir(Uid)) of
        false -> {error, {no_files, Uid}};
        none -> complete_if_formed(start_new_member(XName, Durable, Member, Group), Uid, Group);
        Why -> rabbit_delay_newer:refused(XName, Why)
    end.

%% Whoever formed the group may have been cut off before this node was told.
complete_if_formed(ok, Uid, #{formed := true}) ->
    _ = is_complete(Uid) orelse mark_complete(Uid),
    ok;
complete_if_formed(Started, _, _) ->
    Started.

%% The same of one that may have none yet, as its group is being formed.
-spec start_new_member(rabbit_exchange:name(), Durable :: boolean(), rabbit_delay_group:member(),
                       rabbit_delay_group:group()) -> ok | {error, term()}.
start_new_member(XName, Durable, Member, Group) -> start_new_member(XName, Durable, Member, Group, #{}).

%% More: `membership' of one that is added, which votes when it has caught up.
-spec start_new_member(rabbit_exchange:name(), Durable :: boolean(), rabbit_delay_group:member(),
                       rabbit_delay_group:group(), More :: map()) -> ok | {error, term()}.
start_new_member(XName, Durable, Member, Group, More) ->
    case start_server(XName, Durable, Member, rabbit_delay_group:ids(Group),
                      rabbit_delay_group:salt(Group), More) of
        started -> ok;
        Other -> Other
    end.

start_server(XName, Durable, {{Name, _}, _} = Member, Members, Salt, More) ->
    case whereis(Name) of
        undefined -> start_stopped_server(XName, Durable, Member, Members, Salt, More);
        _ -> ok
    end.

start_stopped_server(XName, Durable, {{Name, _} = ServerId, Uid} = Member, Members, Salt, More) ->
    ok = rabbit_delay_registry:register_server(XName, Member, length(Members)),
    Conf = #{cluster_name => Name,
             id => ServerId,
             uid => Uid,
             initial_members => Members,
             tick_timeout => ?TICK_MS,
             %% The machine's own snapshot_module/0 does not reach every place in Ra that looks.
             log_init_args => #{uid => Uid,
                                snapshot_module => rabbit_delay_snapshot,
                                snapshot_interval => 0},
             %% All members of a cluster have the same key_salt: keys' hashes are in its log.
             machine => {module, rabbit_delay_machine,
                         #{exchange => XName, durable => Durable, uid => Uid, key_salt => Salt}}},
    ok = forget_other_registration(Name, Uid),
    ok = rabbit_delay_held_files:sweep(server_dir(Uid)),
    ok = rabbit_delay_registry:permit_start(XName),
    case ra:start_server(?RA_SYSTEM, maps:merge(maps:merge(Conf, More), initial_version())) of
        ok ->
            ok = sync_new_member(Uid),
            started;
        {error, {already_started, _}} ->
            ok;
        {error, not_new} ->
            case ra:restart_server(?RA_SYSTEM, ServerId) of
                ok -> started;
                {error, {already_started, _}} -> ok;
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% Where Ra lets all members have a version before it is in effect, from 2.16 on, it begins with 0 otherwise.
%% The same on all nodes, whatever version of the plugin each has: a member that began with a later one would
%% apply what others stop at.
initial_version() ->
    maps:from_list([{initial_machine_version, ?INITIAL_MACHINE_VERSION}]).

%% A server whose log goes on with a later version of the machine leads, and applies nothing more,
%% without a word.
applies(XName, ServerId) ->
    case noted(ServerId) orelse rabbit_delay_broker:raft_overview(ServerId, ?QUERY_MS) of
        true ->
            ok;
        {ok, #{effective_machine_version := Needed, machine_version := Ours}} when Needed > Ours ->
            ok = stop_member(XName),
            rabbit_delay_newer:refused(
              XName, rabbit_delay_newer:words("its Raft log", "machine ~b, this one's is ~b",
                                              [Needed, Ours]));
        {ok, _} ->
            applies(XName, ServerId);
        {error, _} = Error ->
            case rabbit_delay_registry:refusal(XName) of
                undefined -> Error;
                _ -> {error, refused}
            end
    end.

noted(ServerId) ->
    try
        case ra:process_command(ServerId, {note, 1}, ?APPLIED_MS) of
            {ok, ok, ServerId} -> true;
            {ok, {ok, _}, ServerId} -> true;
            _ -> false
        end
    catch
        %% It ended meanwhile.
        exit:_ -> false
    end.

%% What is confirmed is in the WAL, and the WAL means nothing without the member's directory.
sync_new_member(Uid) ->
    #{names := #{directory_rev := Names}} = ra_system:fetch(?RA_SYSTEM),
    ok = dets:sync(Names),
    lists:foreach(fun (Dir) -> ok = rabbit_delay_snapshot:sync_dir(Dir) end,
                  [server_dir(Uid), rabbit_delay_config:data_dir()]).

%% What the keys of an exchange's messages are hashed with: random, and as long-lived as its member.
%% Empty in members from before there were keys.
-spec key_salt(rabbit_exchange:name()) -> {ok, rabbit_delay_key:salt()} | {error, Why :: string()}.
key_salt(XName) ->
    %% It may be just being deleted.
    case found(XName, directories(pattern(XName))) of
        {ok, Uid} -> {ok, salt_of(Uid)};
        none -> {error, "it has no messages here"}
    end.

-spec salt_of(uid()) -> rabbit_delay_key:salt().
salt_of(Uid) ->
    case ra_log:read_config(server_dir(Uid)) of
        {ok, #{machine := {module, rabbit_delay_machine, #{key_salt := Salt}}}} -> Salt;
        _ -> <<>>
    end.

%% How far a session of batches has come, everything that was appended being applied.
-spec last_seq_no(rabbit_exchange:name(), Session :: pos_integer()) ->
          {ok, non_neg_integer()} | {error, term()}.
last_seq_no(XName, Session) ->
    ServerId = case rabbit_delay_registry:leader_of(XName) of
                   undefined -> server_id(XName);
                   Leader -> Leader
               end,
    case ra:process_command(ServerId, {note, 1}, ?QUERY_MS) of
        {ok, Noted, _} when Noted =:= ok; element(1, Noted) =:= ok ->
            case ra:local_query(ServerId,
                                fun (State) -> rabbit_delay_machine:last_seq_no(Session, State) end,
                                ?QUERY_MS) of
                {ok, {_, SeqNo}, _} -> {ok, SeqNo};
                Failure -> {error, Failure}
            end;
        Failure ->
            {error, Failure}
    end.

-spec stop_member(rabbit_exchange:name()) -> ok.
stop_member(XName) ->
    stop_server(server_id(XName)).

stop_server(ServerId) ->
    _ = ra:stop_server(?RA_SYSTEM, ServerId),
    ok.

%% Stops a member that is in its group no more, and keeps its files in quarantine.
-spec put_aside_member(uid()) -> {ok, file:filename()} | {error, file:posix()}.
put_aside_member(Uid) ->
    Id = id_of(Uid),
    ok = stop_server(Id),
    Result = quarantine_member(Uid),
    ok = unregister(Uid, Id),
    Result.

%% The same, but its files are discarded.
-spec remove_member(uid()) -> ok.
remove_member(Uid) ->
    Id = id_of(Uid),
    ok = stop_server(Id),
    Deleted = rename_to_deleted(Uid),
    ok = unregister(Uid, Id),
    _ = file:del_dir_r(Deleted),
    ok.

%% Of the group that a member was made for, which is in its name; none in one that was alone.
-spec life_of(uid()) -> binary() | undefined.
life_of(Uid) -> rabbit_delay_group:life_of_id(id_of(Uid)).

%% All first members of this one's group have been started; in a moment the record says so.
-spec mark_complete(uid()) -> ok | {error, file:posix()}.
mark_complete(Uid) ->
    case file:write_file(filename:join(server_dir(Uid), ?COMPLETE_MARK), <<>>) of
        ok -> rabbit_delay_snapshot:sync_dir(server_dir(Uid));
        Error -> Error
    end.

%% Those that the node has of an exchange's groups in a cluster, the newest last, and whether each is marked so.
-spec members_of_groups(rabbit_exchange:name()) -> [{uid(), IsComplete :: boolean()}].
members_of_groups(XName) ->
    [{Uid, is_complete(Uid)}
     || {_, Dir} <- lists:sort([{filelib:last_modified(Dir), Dir} || Dir <- wildcard(pattern(XName))]),
        Uid <- [uid_of_dir(Dir)], is_complete(Uid) orelse life_of(Uid) =/= undefined].

is_complete(Uid) -> filelib:is_file(filename:join(server_dir(Uid), ?COMPLETE_MARK)).

%% Who the members of a group were when this one was made.
-spec initial_members(uid()) -> [ra:server_id()].
initial_members(Uid) ->
    case ra_log:read_config(server_dir(Uid)) of
        {ok, #{initial_members := Ids}} -> Ids;
        _ -> [id_of(Uid)]
    end.

%% The member that holds the messages of an exchange that has been deleted, which is not found any
%% more, not even after a crash.
-spec mark_deleted(rabbit_exchange:name()) -> {ok, uid()} | none.
mark_deleted(XName) ->
    case running_member(XName) of
        {ok, Uid} ->
            case file:write_file(filename:join(server_dir(Uid), ?DELETED_MARK), <<>>) of
                ok ->
                    ok = rabbit_delay_snapshot:sync_dir(server_dir(Uid));
                {error, Reason} ->
                    ?LOG_WARNING("delayed messages of ~ts, which is deleted, cannot be marked so "
                                 "before they are removed: ~0p",
                                 [rabbit_delay_text:rs(XName), Reason], ?LOG_DOMAIN)
            end,
            {ok, Uid};
        none ->
            none
    end.

%% Stops the member and discards what it holds, for good; Member is what mark_deleted/1 has answered.
%% Another may have been made since for the exchange's queue process, which has ended by now.
-spec delete_member(rabbit_exchange:name(), Member :: {ok, uid()} | none) -> ok.
delete_member(XName, Member) ->
    ok = case has_server_name(XName) of
             true -> await_start(server_id(XName));
             false -> ok
         end,
    lists:foreach(fun ({ok, Uid}) -> remove_member(Uid);
                      (none) -> ok
                  end, [Member, running_member(XName)]).

%% What runs for the exchange, or would.
running_member(XName) ->
    case rabbit_delay_registry:member_uid(XName) of
        undefined -> find_member(XName);
        Uid -> case filelib:is_dir(server_dir(Uid)) of
                   true -> {ok, Uid};
                   false -> none
               end
    end.

%% The name is made with the first message that the exchange delays, and stays for the node's life:
%% nothing else that is done with an exchange's name may make one.
has_server_name(XName) ->
    rabbit_delay_registry:server_id(XName) =/= undefined orelse is_atom_known(server_name(XName)).

is_atom_known(Name) ->
    try binary_to_existing_atom(Name, utf8) of
        _ -> true
    catch
        error:badarg -> false
    end.

%% Removes what a crash has left of deleted exchanges; no member runs yet. That may take long, and
%% nobody waits for it.
-spec sweep() -> ok.
sweep() ->
    Base = rabbit_delay_config:data_dir(),
    Marked = [rename_to_deleted(uid_of_dir(Dir)) || Dir <- directories("D*_*"), is_marked_deleted(Dir)],
    case lists:usort(Marked ++ [filename:join(Base, Name)
                                || Name <- filelib:wildcard("deleted-*", Base)]) of
        [] ->
            ok;
        Deleted ->
            _ = spawn(fun () -> lists:foreach(fun file:del_dir_r/1, Deleted) end),
            ok
    end.

is_marked_deleted(Dir) ->
    filelib:is_file(filename:join(Dir, ?DELETED_MARK)).

%% Discards what a member that was never started in this run holds, for good.
-spec discard_member(uid()) -> ok.
discard_member(Uid) ->
    _ = file:del_dir_r(rename_to_deleted(Uid)),
    ok.

%% Another name, so that a crash in the middle leaves nothing that could come back.
rename_to_deleted(Uid) ->
    Dir = server_dir(Uid),
    Deleted = filename:join(filename:dirname(Dir), "deleted-" ++ binary_to_list(Uid)),
    _ = file:rename(Dir, Deleted),
    Deleted.

%% Ra's supervisor starts one server at a time, and does nothing else meanwhile. From Ra 3 on the
%% server then asks its supervisor for a helper, and waits for five seconds if that is ending it.
await_start(ServerId) ->
    #{names := #{server_sup := Sup}} = system_config(),
    case whereis(Sup) of
        undefined ->
            ok;
        Pid ->
            _ = supervisor:count_children(Pid),
            try ra:ping(ServerId, ?START_MS) of
                _ -> ok
            catch
                %% It ended while it was asked.
                exit:_ -> ok
            end
    end.

%% Puts a member aside whose exchange is gone: its messages will not be delivered, and an operator
%% who wants them has them.
-spec quarantine_member(uid()) -> {ok, file:filename()} | {error, file:posix()}.
quarantine_member(Uid) ->
    From = server_dir(Uid),
    To = filename:join([filename:dirname(From), "quarantine", binary_to_list(Uid)]),
    _ = filelib:ensure_dir(To),
    case file:rename(From, To) of
        ok -> {ok, To};
        Error -> Error
    end.

%% Whether a server of this node has these files open.
-spec is_running(uid()) -> boolean().
is_running(Uid) ->
    {Name, _} = id_of(Uid),
    is_pid(whereis(Name)) andalso ra_directory:uid_of(?RA_SYSTEM, Name) =:= Uid.

-spec store_dir(uid()) -> file:filename().
store_dir(Uid) ->
    filename:join(server_dir(Uid), "delay_store").

%% A snapshot lies in <member>/snapshots/<term>_<index>.
-spec store_dir_of_snapshot(file:filename_all()) -> file:filename_all().
store_dir_of_snapshot(SnapshotDir) ->
    filename:join(member_dir_of_snapshot(SnapshotDir), "delay_store").

-spec member_dir_of_snapshot(file:filename_all()) -> file:filename_all().
member_dir_of_snapshot(SnapshotDir) ->
    filename:dirname(filename:dirname(SnapshotDir)).

hash(#resource{virtual_host = VHost, kind = exchange, name = Name}) ->
    <<Hash:?HASH_BYTES/binary, _/binary>> = crypto:hash(sha256, [VHost, 0, Name]),
    binary:encode_hex(Hash).

%% Not ra:new_uid/1: a member is found by its exchange, whose hash its directory's name begins with.
new_uid(XName) ->
    Random = crypto:strong_rand_bytes(?RANDOM_BYTES),
    <<"D", (hash(XName))/binary, "_", (binary:encode_hex(Random))/binary>>.

hash_of_uid(<<"D", HashAndRandom/binary>>) ->
    hd(binary:split(HashAndRandom, <<"_">>)).

server_dir(Uid) ->
    filename:join(rabbit_delay_config:data_dir(), binary_to_list(Uid)).

%% Members' directories; not those of deleted exchanges.
wildcard(Pattern) ->
    [Dir || Dir <- directories(Pattern), not is_marked_deleted(Dir)].

directories(Pattern) ->
    Base = rabbit_delay_config:data_dir(),
    lists:filter(fun filelib:is_dir/1,
                 [filename:join(Base, Name) || Name <- filelib:wildcard(Pattern, Base)]).

uid_of_dir(Dir) ->
    list_to_binary(filename:basename(Dir)).

%% Ra finds a member's UId by its name in a table that lags behind by up to half a second, and a
%% crash can leave there an earlier exchange's. Not with ra_directory:unregister_name/2: in Ra 2.2 that
%% leaves on disk the name of whatever is not registered in memory, which is all that is from before.
forget_other_registration(Name, Uid) ->
    #{names := #{directory := Directory, directory_rev := Reverse}} = ra_system:fetch(?RA_SYSTEM),
    case ra_directory:uid_of(?RA_SYSTEM, Name) of
        Uid -> ok;
        undefined -> ok;
        Other ->
            true = ets:delete(Directory, Other),
            ok = dets:delete(Reverse, Name)
    end.

unregister(Uid, {Name, _}) ->
    #{names := #{directory := Directory, directory_rev := Reverse, log_meta := Meta}} =
        ra_system:fetch(?RA_SYSTEM),
    _ = ra_log_meta:delete(Meta, Uid),
    ets:delete(Directory, Uid),
    _ = dets:delete(Reverse, Name),
    %% Not every version of Ra has all of these.
    _ = [ets:delete(Table, Key) || {Table, Key} <- [{ra_log_snapshot_state, Uid},
                                                    {ra_log_metrics, Uid},
                                                    {ra_metrics, Name}, {ra_state, Name}],
                                   ets:whereis(Table) =/= undefined],
    ok.
