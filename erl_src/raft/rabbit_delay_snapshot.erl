%% SPDX-License-Identifier: MPL-2.0

%% Ra snapshots of a delayed exchange: a checkpoint of the delay store, hard-linked, and beside it
%% the rest of the machine's state. Taking one costs almost nothing, whatever is pending.
%%
%% In which of Ra's processes a callback runs is said there.
%%
%% Directories come as strings up to Ra 2.15 and as binaries from 2.16 on.
%%
%% A snapshot directory holds the store's files and its MANIFEST (see c_src/dw_manifest.h), and
%%
%%   delay_snapshot   "DWSN", version (1 byte, 1), CRC-32 (4 bytes, big-endian) of the rest, and
%%                    term_to_binary({ra_snapshot:meta(), rabbit_delay_machine:snapshot()})
%%
%% which is written last and renamed into place: without it there is no snapshot. Files of other
%% names are left alone (later versions of Ra add some).
%%
%% The store is ahead of the index that Ra snapshots, because effects run after a batch of applies;
%% it skips what it has already applied. The live store's own manifest is made durable before the
%% snapshot is: so recovery can keep the live store, which is at the snapshot or past it, and uses
%% the snapshot's files only if the live ones are lost.
-module(rabbit_delay_snapshot).

-behaviour(ra_snapshot).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([prepare/2, write/3, write/4, sync/1, begin_accept/2, accept_chunk/2, complete_accept/2,
         begin_read/1, begin_read/2, read_chunk/3, recover/1, validate/1, read_meta/1,
         context/0, get_size/1]).
-export([versions/1, version/0, files/1, read_state/1, write_state/2, replace_file/2, sync_dir/1]).

-define(STATE_FILE, "delay_snapshot").
-define(MAGIC, "DWSN").
-define(VERSION, 1).

%% Runs in the Ra server: what is to be snapshotted is fixed here. A checkpoint that an earlier writer
%% died with is given up by the store.
-spec prepare(term(), rabbit_delay_machine:state()) -> term().
prepare(_Meta, State) ->
    {rabbit_delay_store:checkpoint(rabbit_delay_machine:store(State)),
     rabbit_delay_machine:to_snapshot(State)}.

%% Runs in a process of its own.
-spec write(file:filename_all(), ra_snapshot:meta(), term()) -> ok | {error, term()}.
write(Dir, Meta, {{ok, Checkpoint, _Applied}, #{exchange := XName} = Snapshot}) ->
    Began = erlang:monotonic_time(millisecond),
    case rabbit_delay_store:finish(Checkpoint, Dir) of
        ok ->
            ok = rabbit_delay_registry:checkpointed(
                   XName, erlang:monotonic_time(millisecond) - Began),
            write_state(Dir, term_to_binary({Meta, Snapshot}));
        Error ->
            Error
    end;
write(_, _, {{error, _} = Error, _}) ->
    Error.

%% From ra 2.10 on.
-spec write(file:filename_all(), ra_snapshot:meta(), term(), Sync :: boolean()) ->
          {ok, non_neg_integer()} | {error, term()}.
write(Dir, Meta, Ref, _Sync) ->
    case write(Dir, Meta, Ref) of
        ok -> get_size(Dir);
        Error -> Error
    end.

%% Bytes. From ra 3.1 on.
-spec get_size(file:filename_all()) -> {ok, non_neg_integer()}.
get_size(Dir) ->
    {ok, lists:sum([filelib:file_size(File) || File <- files(Dir)])}.

-spec sync(file:filename_all()) -> ok.
sync(_Dir) -> ok.

-spec context() -> map().
context() -> rabbit_delay_snapshot_sender:context().

%% Ra deletes a snapshot that is not valid, and begins afresh where its log no longer does: what it then takes
%% in, the store has had by its index. So only one that was not finished is not valid, as nothing relies on it.
%% What cannot be read, now or any more, or is of a later version, keeps the server from starting and is left
%% alone. Its files are the live store's own, under other names: damage to one is no reason to lose the others,
%% and is found when the store is opened. So only what was written last is looked at.
-spec validate(file:filename_all()) -> ok | {error, term()}.
validate(Dir) ->
    case read_state(Dir) of
        {ok, {#{index := Index}, #{exchange := XName}}} ->
            case first_at([Dir, rabbit_delay_raft:store_dir_of_snapshot(Dir)], Index) of
                ok -> ok;
                {error, ecorrupt} -> damaged(Dir, XName, ecorrupt);
                {error, Reason} -> unusable(Dir, Reason)
            end;
        {error, enoent} = Error ->
            Error;
        {error, Reason} ->
            unreadable(Dir, Reason)
    end.

%% Whether in one of these directories there is a checkpoint that recovery can go on from.
first_at([], _) ->
    {error, ecorrupt};
first_at([Dir | Dirs], Index) ->
    case rabbit_delay_store:peek_applied(Dir) of
        {ok, Applied} when Applied >= Index -> ok;
        Other when element(1, Other) =:= ok; Other =:= {error, ecorrupt} -> first_at(Dirs, Index);
        Error -> Error
    end.

-spec unreadable(file:filename_all(), term()) -> no_return().
unreadable(Dir, Reason) when Reason =:= checksum_error; Reason =:= invalid_format ->
    damaged(Dir, exchange(Dir), Reason);
unreadable(Dir, Reason) ->
    unusable(Dir, Reason).

%% Other members have what is damaged here.
-spec damaged(file:filename_all(), rabbit_exchange:name() | none, term()) -> no_return().
damaged(Dir, XName, Reason) ->
    ?LOG_ERROR("delayed messages: the snapshot in ~ts is damaged (~0p): its member is not started, and nothing is deleted",
               [Dir, Reason], ?LOG_DOMAIN),
    ok = case XName of
             none -> ok;
             _ -> rabbit_delay_local_member:found_damaged(XName, ["its snapshot ", filename:basename(Dir)])
         end,
    unusable(Dir, Reason).

%% The one whose member it is that is being started.
exchange(Dir) ->
    Uid = iolist_to_binary(filename:basename(rabbit_delay_raft:member_dir_of_snapshot(Dir))),
    case [XName || {XName, {_, Of}} <- rabbit_delay_table:members(), Of =:= Uid] of
        [XName] -> XName;
        [] -> none
    end.

-spec unusable(file:filename_all(), term()) -> no_return().
unusable(Dir, Reason) ->
    exit({delay_snapshot, Dir, Reason}).

%% The versions that a snapshot is of, as far as they can be read: of its file, of the machine that it
%% was taken of, and of the machine's state in it.
-spec versions(file:filename_all()) ->
          #{file => byte(), machine => ra_machine:version(), state => pos_integer()}.
versions(Dir) ->
    case read_state(Dir) of
        {ok, {Meta, Snapshot}} ->
            #{file => ?VERSION, machine => maps:get(machine_version, Meta, 0),
              state => maps:get(version, Snapshot, 1)};
        {error, {invalid_version, Version}} ->
            #{file => Version};
        {error, _} ->
            #{}
    end.

%% The latest that is read.
-spec version() -> byte().
version() -> ?VERSION.

-spec read_meta(file:filename_all()) -> {ok, ra_snapshot:meta()} | {error, term()}.
read_meta(Dir) ->
    case read_state(Dir) of
        {ok, {Meta, _}} -> {ok, Meta};
        Error -> Error
    end.

%% Where this answers with an error, Ra 3 begins afresh.
-spec recover(file:filename_all()) -> {ok, ra_snapshot:meta(), rabbit_delay_machine:state()}.
recover(Dir) ->
    case read_state(Dir) of
        {ok, {#{index := Index} = Meta, #{exchange := XName} = Snapshot}} ->
            Live = rabbit_delay_raft:store_dir_of_snapshot(Dir),
            case ensure_live(Live, Dir, Index, XName) of
                ok ->
                    Store = rabbit_delay_machine:open_store(Live, XName),
                    {ok, Meta, rabbit_delay_machine:from_snapshot(Snapshot, Store)};
                {error, ecorrupt} ->
                    damaged(Dir, XName, ecorrupt);
                {error, Reason} ->
                    unusable(Dir, Reason)
            end;
        {error, Reason} ->
            unreadable(Dir, Reason)
    end.

ensure_live(Live, Dir, Index, XName) ->
    case rabbit_delay_store:peek_applied(Live) of
        {ok, Applied} when Applied >= Index ->
            ok;
        Other ->
            ?LOG_NOTICE("delayed messages of ~ts: the store is restored from the snapshot at "
                        "index ~b (it was found at ~p)",
                        [rabbit_delay_text:rs(XName), Index, Other], ?LOG_DOMAIN),
            rabbit_delay_store:restore(Live, Dir)
    end.

%% Before Ra 2.10, which does not say to whom.
-spec begin_read(file:filename_all()) -> {ok, ra_snapshot:meta(), term()} | {error, term()}.
begin_read(Dir) ->
    rabbit_delay_snapshot_sender:begin_read(Dir, none).

-spec begin_read(file:filename_all(), map()) -> {ok, ra_snapshot:meta(), term()} | {error, term()}.
begin_read(Dir, Context) ->
    rabbit_delay_snapshot_sender:begin_read(Dir, Context).

-spec read_chunk(term(), pos_integer(), file:filename_all()) ->
          {ok, term(), {next, term()} | last} | {error, term()}.
read_chunk(Reading, ChunkSize, _) ->
    rabbit_delay_snapshot_sender:read_chunk(Reading, ChunkSize).

-spec begin_accept(file:filename_all(), ra_snapshot:meta()) -> {ok, term()}.
begin_accept(Dir, _Meta) ->
    %% First: with that, and without the others, it would be a damaged one.
    _ = file:delete(filename:join(Dir, ?STATE_FILE)),
    ok = sync_dir(Dir),
    lists:foreach(fun file:delete/1, files(Dir)),
    {ok, rabbit_delay_snapshot_receiver:begin_accept(Dir)}.

-spec accept_chunk(term(), term()) -> {ok, term()} | {error, term()}.
accept_chunk(Chunk, Accepting) ->
    rabbit_delay_snapshot_receiver:accept_chunk(Chunk, Accepting).

-spec complete_accept(term(), term()) -> ok | {error, term()}.
complete_accept(Chunk, Accepting) ->
    rabbit_delay_snapshot_receiver:complete_accept(Chunk, Accepting).

%% The store's files in a snapshot, its MANIFEST last.
-spec files(file:filename_all()) -> [file:filename_all()].
files(Dir) ->
    case file:list_dir(Dir) of
        {ok, Names} ->
            {Manifest, Others} = lists:partition(
                                   fun (Name) -> Name =:= "MANIFEST" end,
                                   [Name || Name <- lists:sort(Names), is_store_file(Name)]),
            [filename:join(Dir, Name) || Name <- Others ++ Manifest];
        {error, _} ->
            []
    end.

is_store_file("MANIFEST") -> true;
is_store_file(Name) -> lists:member(filename:extension(Name), [".rec", ".idx"]).

%% Makes what is in the directory a snapshot.
-spec write_state(file:filename_all(), Content :: binary()) -> ok | {error, file:posix() | badarg | terminated}.
write_state(Dir, Content) ->
    replace_file(filename:join(Dir, ?STATE_FILE),
                 [<<?MAGIC, ?VERSION, (erlang:crc32(Content)):32>>, Content]).

%% Gives the file this content, durably: whatever happens it has the old one or this.
-spec replace_file(file:filename_all(), iodata()) -> ok | {error, file:posix() | badarg | terminated}.
replace_file(File, Bytes) ->
    Tmp = tmp(File),
    case ra_lib:write_file(Tmp, Bytes) of
        ok ->
            case file:rename(Tmp, File) of
                ok -> sync_dir(filename:dirname(File));
                Error -> Error
            end;
        Error ->
            Error
    end.

tmp(File) when is_binary(File) -> <<File/binary, ".tmp">>;
tmp(File) -> File ++ ".tmp".

-spec read_state(file:filename_all()) ->
          {ok, {ra_snapshot:meta(), rabbit_delay_machine:snapshot()}} | {error, term()}.
read_state(Dir) ->
    case file:read_file(filename:join(Dir, ?STATE_FILE)) of
        {ok, <<?MAGIC, ?VERSION, Crc:32, Content/binary>>} ->
            case erlang:crc32(Content) of
                Crc -> {ok, binary_to_term(Content)};
                _ -> {error, checksum_error}
            end;
        {ok, <<?MAGIC, Version, _/binary>>} ->
            {error, {invalid_version, Version}};
        {ok, _} ->
            {error, invalid_format};
        Error ->
            Error
    end.

%% Makes the names of the files in a directory durable.
-spec sync_dir(file:filename_all()) -> ok | {error, file:posix()}.
sync_dir(Dir) ->
    case file:open(Dir, [read, raw, directory]) of
        {ok, Fd} ->
            Result = file:sync(Fd),
            _ = file:close(Fd),
            Result;
        Error ->
            Error
    end.
