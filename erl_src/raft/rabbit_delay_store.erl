%% SPDX-License-Identifier: MPL-2.0

%% The delay store: the messages pending on one delayed exchange, on one replica, as the C library
%% in c_src/ keeps them. include/dw_store.h says what each call does; this is how it looks here.
%%
%% Times are in ms since the epoch, below 2^48. Index is a Raft index, below 2^48: a change whose
%% index the store is already at or beyond changes nothing and answers as if it had found nothing to
%% do. An id is Index bsl 16 + the record's position in its batch.
%%
%% A batch, as it stands in a Raft entry: 1 to 65,535 records, one after the other, each
%%
%%   <<Length:32/little,       of the body, at least 1
%%     Flags:16/little,        bit 0: When is absolute; others 0
%%     Encoding:16/little,     the caller's; stored and given back
%%     When:64/little,         ms of delay after BaseMs, or ms since the epoch
%%     KeyHash:64/little,      0: no key
%%     Body:Length/binary>>
%%
%% In a keyed batch, bits 1 to 3 of Flags say what the record does with its key:
%%
%%   0  keep      what is pending under it stays
%%   1  replace   what is pending under it goes
%%   2  drop      the record is not inserted if anything is pending under it
%%   3  cancel    what is pending under it goes; the record is no message, and Length is 0
%%   4  release   what is pending under it and due later is due at BaseMs; likewise no message. In
%%                batches of version 2 only
%%
%% in the records' order, so that each sees what those before it have left. Of all but 0, KeyHash is
%% not 0.
%%
%% Who may call what. One process at a time writes: insert, insert_keyed, settle, settle_due,
%% settle_due_by, purge, reschedule, reschedule_many, note, flush, maintain, checkpoint. A second one that tries meanwhile
%% gets {error, busy}, and so does whoever begins a checkpoint while one is being finished. Any process
%% may call the rest at any time.
%%
%% A directory has one opening. Opening or restoring it again closes the older one first, waiting
%% for what is under way in it; calls on that one then answer {error, eclosed}, as after close/1. So
%% a process that takes over from one that died need not know what that left behind. A store that
%% nobody refers to any more is closed and freed in the background. What was not flushed is dropped
%% in all these cases: Raft's log has it.
%%
%% Wrong types and numbers out of range are badarg. Errors of the operating system come as
%% {error, {eio | enospc | eacces, Errno}}, {eacces, eagain} being a directory that another
%% process of the operating system has open; the others are atoms, named as in c_src/dw_error.h.
%%
%% Calls that may touch a file, and those that may take long, run on dirty schedulers.
-module(rabbit_delay_store).

-export([open/2, close/1, peek_applied/1, restore/2, validate/1]).
-export([insert/4, insert_keyed/5, check_batch/2, check_keyed_batch/3, settle/3, settle_due/3,
         settle_due_by/3, purge/2, reschedule/4, reschedule_many/3, note/2, flush/1, maintain/3, checkpoint/1, finish/2]).
-export([take/4, keep_aside/3, postpone/3, postpone_many/2, untake/1, next_due/1, applied/1, stat/1, read/2,
         read_many/3,
         page/3, places/4, count/3, count_until/2, find/3, record_header/5]).
-export([disk_free/1, claim/1, give_back/0, limit_open_files/1, borrow_open_file/0, shared/0, descriptors/0]).

-export_type([store/0, checkpoint/0, borrowed/0, index/0, id/0, ms/0, encoding/0, key_hash/0, taken/0,
              stored/0, by_key/0, keyed_version/0, error/0]).

-on_load(init/0).

-define(NOT_LOADED, erlang:nif_error({not_loaded, ?MODULE})).

-opaque store() :: reference().
-opaque checkpoint() :: reference().
-opaque borrowed() :: reference().
-type index() :: 0..16#ffffffffffff.
-type id() :: 0..16#ffffffffffffffff.
-type ms() :: 0..16#ffffffffffff.
-type encoding() :: 0..16#ffff.
-type key_hash() :: 0..16#ffffffffffffffff.
-type errno() :: atom().
-type error() :: {error, atom() | {eio | enospc | eacces, errno()}}.

%% A record that has come due, or one that should have and is damaged: it is in File at Offset, and is
%% pending until it is settled. Damaged is what was read, twice, and is not what was written.
-type taken() ::
        {id(), Due :: ms(), encoding(), Body :: binary()}
        | {corrupt, id(), Due :: ms(), File :: binary(), Offset :: non_neg_integer()}.

%% `body' is there from read/2, not from page/3.
-type stored() ::
        #{id := id(), due := ms(), key_hash := key_hash(), length := pos_integer(),
          encoding := encoding(), body => binary()}.

%% What became of messages by keys: of those that were pending, how many were cancelled, replaced,
%% and cancelled or replaced after they had been handed out by take/4; of the batch, how many were
%% dropped; and of both, how many that were due later were released.
-type by_key() :: #{cancelled | replaced | taken | dropped | released := non_neg_integer()}.

%% 2: with records that release.
-type keyed_version() :: 1 | 2.

-type options() ::
        #{now := ms(),
          %% a larger body is refused; default 2^31-1
          max_record_bytes => 1..16#7fffffff,
          %% file descriptors of this store alone; default shared: out of one budget for all stores
          max_open_files => 8..4096 | shared,
          %% sizes at which files are ended and split; for tests, which have less than 1 GB
          partition_bytes => pos_integer(),
          split_bytes => pos_integer(),
          %% is sent {rabbit_delay_store, info | warning | error, Message :: binary()}
          log => pid()}.

%% ------------------------------------------------------------------- open and close

%% Opens the store in Dir, made if it is missing, at its last durable checkpoint. The report says
%% what was found: applied, pending, corrupt_records, cut_bytes, rebuilt_indexes, partitions.
-spec open(file:filename_all(), options()) ->
          {ok, store(), Report :: #{atom() => non_neg_integer()}} | error().
open(Dir, #{now := Now} = Options) ->
    Defaults = #{max_record_bytes => 16#7fffffff, max_open_files => shared, partition_bytes => 1 bsl 30,
                 split_bytes => 1 bsl 23, log => undefined},
    case map_size(maps:without([now | maps:keys(Defaults)], Options)) of
        0 ->
            #{max_record_bytes := MaxRecord, max_open_files := MaxFiles, log := Log,
              partition_bytes := Partition, split_bytes := Split} = maps:merge(Defaults, Options),
            open_nif(path(Dir), Now, MaxRecord, max_files(MaxFiles), Partition, Split, Log);
        _ ->
            error(badarg)
    end;
open(_, _) ->
    error(badarg).

max_files(shared) -> 0;
max_files(0) -> error(badarg);
max_files(MaxFiles) -> MaxFiles.

%% Ends all use of the store, now. Any number of times, by anyone.
-spec close(store()) -> ok.
close(_Store) ->
    ?NOT_LOADED.

%% The Raft index of the last durable checkpoint in Dir, 0 if there is none.
-spec peek_applied(file:filename_all()) -> {ok, index()} | error().
peek_applied(Dir) ->
    peek_applied_nif(path(Dir)).

%% Replaces whatever is in Dir by the checkpoint in SnapshotDir.
-spec restore(file:filename_all(), file:filename_all()) -> ok | error().
restore(Dir, SnapshotDir) ->
    restore_nif(path(Dir), path(SnapshotDir)).

%% Whether the checkpoint in SnapshotDir is whole, and the index that it is at.
-spec validate(file:filename_all()) -> {ok, index()} | error().
validate(SnapshotDir) ->
    validate_nif(path(SnapshotDir)).

%% --------------------------------------------------------------------------- writer

%% Inserts a batch, all of it or nothing. Buffered: bytes that wait for flush/1.
-spec insert(store(), index(), BaseMs :: ms(), Batch :: iodata()) ->
          {ok, Count :: non_neg_integer(), Bytes :: non_neg_integer(), NextDue :: ms() | infinity,
           Buffered :: non_neg_integer()}
          | error().
insert(Store, Index, BaseMs, Batch) ->
    insert_nif(Store, Index, BaseMs, flat(Batch)).

%% Inserts a keyed batch and removes what it cancels and replaces, all of it or nothing; what it
%% releases is due at BaseMs. After {error, enomem} some may be released: open the store again.
-spec insert_keyed(store(), index(), BaseMs :: ms(), Batch :: iodata(), keyed_version()) ->
          {ok,
           {ok, Count :: non_neg_integer(), Bytes :: non_neg_integer(), NextDue :: ms() | infinity,
            Buffered :: non_neg_integer()},
           by_key()}
          | error().
insert_keyed(Store, Index, BaseMs, Batch, Version) ->
    insert_keyed_nif(Store, Index, BaseMs, flat(Batch), Version).

%% Checks a batch as insert/4 would.
-spec check_batch(Batch :: iodata(), MaxRecordBytes :: pos_integer()) ->
          {ok, Count :: pos_integer()} | error().
check_batch(Batch, MaxRecordBytes) ->
    check_batch_nif(flat(Batch), MaxRecordBytes).

%% Checks a batch as insert_keyed/5 would.
-spec check_keyed_batch(Batch :: iodata(), MaxRecordBytes :: pos_integer(), keyed_version()) ->
          {ok, Count :: pos_integer()} | error().
check_keyed_batch(Batch, MaxRecordBytes, Version) ->
    check_keyed_batch_nif(flat(Batch), MaxRecordBytes, Version).

%% Removes records, delivered or cancelled. Ids is <<Id:64/little, ...>>; those that are not there
%% are passed over.
-spec settle(store(), index(), Ids :: binary()) -> {ok, Removed :: non_neg_integer()} | error().
settle(_Store, _Index, _Ids) ->
    ?NOT_LOADED.

%% Removes those of these records that are due, as inserted or rescheduled and never as postponed,
%% at the time given with them; others are passed over. Released is
%% <<Id:64/little, Due:64/little, ...>>.
-spec settle_due(store(), index(), Released :: binary()) ->
          {ok, Removed :: non_neg_integer()} | error().
settle_due(_Store, _Index, _Released) ->
    ?NOT_LOADED.

%% The same of those that are due at that time or before: one that was given an earlier time after it
%% was released has been released for that, too.
-spec settle_due_by(store(), index(), Released :: binary()) ->
          {ok, Removed :: non_neg_integer()} | error().
settle_due_by(_Store, _Index, _Released) ->
    ?NOT_LOADED.

%% Removes all that is pending: so many, of which so many had been taken. What it takes does not grow
%% with their number.
-spec purge(store(), index()) ->
          {ok, Removed :: non_neg_integer(), Taken :: non_neg_integer()} | error().
purge(_Store, _Index) ->
    ?NOT_LOADED.

%% Gives a pending record a new due time, whether or not it can be read now. One that was taken stays
%% taken.
-spec reschedule(store(), index(), id(), Due :: ms()) -> ok | error().
reschedule(_Store, _Index, _Id, _Due) ->
    ?NOT_LOADED.

%% The same for many at one index; Dues is <<Id:64/little, Due:64/little, ...>>. One that is not there
%% is passed over. After {error, enomem | efull} some may have moved: open the store again.
-spec reschedule_many(store(), index(), Dues :: binary()) ->
          {ok, Moved :: non_neg_integer()} | error().
reschedule_many(_Store, _Index, _Dues) ->
    ?NOT_LOADED.

%% Notes that Index was applied and concerned the store in nothing.
-spec note(store(), index()) -> ok | error().
note(_Store, _Index) ->
    ?NOT_LOADED.

%% Writes the buffers to the files, without fsync. After an error they are kept for the next try.
-spec flush(store()) -> ok | error().
flush(_Store) ->
    ?NOT_LOADED.

%% One step of upkeep, of some MaxBytes of bodies at most. `more': call again soon.
-spec maintain(store(), Now :: ms(), MaxBytes :: pos_integer()) -> {ok, more | done} | error().
maintain(_Store, _Now, _MaxBytes) ->
    ?NOT_LOADED.

%% Begins a checkpoint of everything up to Applied. A checkpoint that was begun before and is not
%% being finished is given up.
-spec checkpoint(store()) -> {ok, checkpoint(), Applied :: index()} | error().
checkpoint(_Store) ->
    ?NOT_LOADED.

%% Makes a checkpoint durable, and then, unless SnapshotDir is `none', a copy of it in that
%% directory. By any process, once: {error, enoent} if it was finished before or given up.
-spec finish(checkpoint(), SnapshotDir :: file:filename_all() | none) -> ok | error().
finish(Checkpoint, none) ->
    finish_nif(Checkpoint, none);
finish(Checkpoint, SnapshotDir) ->
    finish_nif(Checkpoint, path(SnapshotDir)).

%% --------------------------------------------------------------------------- anyone

%% Takes the next records due at Now or before, in (due, id) order: at most MaxN, and none further
%% once MaxBytes of bodies are reached. They stay pending, but are not handed out again before
%% postpone/3 or untake/1. NextDue is that of what is left to hand out; if it is not after Now,
%% there is more. Each body is a binary of its own. What cannot be read now comes later: `unreadable' of
%% stat/1 says how many.
-spec take(store(), Now :: ms(), MaxN :: 1..65535, MaxBytes :: pos_integer()) ->
          {ok, [taken()], NextDue :: ms() | infinity} | error().
take(_Store, _Now, _MaxN, _MaxBytes) ->
    ?NOT_LOADED.

%% Writes what can be read of those of these records (<<Id:64/little, ...>>, 1 to 65535) that are pending
%% and damaged, durably, to the file CORRUPT in the store's directory (include/dw_store.h), and answers
%% which. {error, {eio, eagain}}: another process is doing it.
-spec keep_aside(store(), Now :: ms(), Ids :: binary()) -> {ok, [id()]} | error().
keep_aside(_Store, _Now, _Ids) ->
    ?NOT_LOADED.

%% Hands a taken record out again at Until. {error, enoent}: gone, or not taken.
-spec postpone(store(), id(), Until :: ms()) -> ok | error().
postpone(_Store, _Id, _Until) ->
    ?NOT_LOADED.

%% The same for many, <<Id:64/little, Until:64/little, ...>>; those that are gone, or not taken, are passed
%% over.
-spec postpone_many(store(), Untils :: binary()) -> ok | error().
postpone_many(_Store, _Untils) ->
    ?NOT_LOADED.

%% Hands everything taken out again, at its due time: for a reader that starts afresh.
-spec untake(store()) -> ok | error().
untake(_Store) ->
    ?NOT_LOADED.

%% When the next record is to be handed out.
-spec next_due(store()) -> ms() | infinity | error().
next_due(_Store) ->
    ?NOT_LOADED.

%% The Raft index of the last change.
-spec applied(store()) -> index() | error().
applied(_Store) ->
    ?NOT_LOADED.

%% pending, pending_bytes, taken, next_due, applied, checkpoint_applied, buffered, file_bytes,
%% dead_bytes, memory_bytes, corrupt_records, partitions, open_files, unreadable (whose record could not
%% be read when it was last tried), read_errors (such tries since the opening), histogram: 48 counts, the
%% I-th (from 0) of what comes due in 2^I to 2^(I+1) ms; write_error: why the last try to write failed,
%% or `none'; and full: whether a limit of the store is near, and nothing is to be taken in that is not
%% in Raft's log. digest: of id, due time as inserted or rescheduled, key hash and length of all that was
%% pending at `applied', a number of 64 bits: replicas that are at the same index have the same one if
%% they hold the same. O(1), and waits for nobody.
-spec stat(store()) -> #{atom() => non_neg_integer() | [non_neg_integer()] | atom()} | error().
stat(_Store) ->
    ?NOT_LOADED.

%% Shows a pending record. {error, enoent}: there is none with this id.
-spec read(store(), id()) ->
          {ok, stored()} | error()
          | {error, {corrupt, File :: binary(), Offset :: non_neg_integer()}}.
read(_Store, _Id) ->
    ?NOT_LOADED.

%% Those of the first Seen of these ids (<<Id:64/little, ...>>, 1 to 65535) that are pending and can be
%% read, in the order given: until MaxBytes of bodies are reached.
-spec read_many(store(), Ids :: binary(), MaxBytes :: pos_integer()) ->
          {ok, [stored()], Seen :: non_neg_integer()} | error().
read_many(_Store, _Ids, _MaxBytes) ->
    ?NOT_LOADED.

%% The first MaxN pending records after {Due, Id}, in this order; {0, 0} begins.
-spec page(store(), {ms(), id()}, MaxN :: 1..65535) -> {ok, [stored()]} | error().
page(_Store, _After, _MaxN) ->
    ?NOT_LOADED.

%% The places of the first MaxN pending records after {Due, Id}, in this order; or, backwards, of the
%% last ones before it, the last one first: {16#ffffffffffff, 16#ffffffffffffffff} begins. From
%% memory alone.
-spec places(store(), {ms(), id()}, forward | backward, MaxN :: 1..131072) ->
          {ok, [{Due :: ms(), id(), Length :: pos_integer()}]} | error().
places(Store, From, forward, MaxN) -> places_nif(Store, From, 0, MaxN);
places(Store, From, backward, MaxN) -> places_nif(Store, From, 1, MaxN).

%% How many records are pending that are due from From to To, and the bytes of their bodies.
-spec count(store(), From :: ms(), To :: ms()) ->
          {ok, Count :: non_neg_integer(), Bytes :: non_neg_integer()} | error().
count(_Store, _From, _To) ->
    ?NOT_LOADED.

%% How many are due until each of these times (at most 64, ascending, none twice) and after the one
%% before, and how many after the last.
-spec count_until(store(), [ms()]) -> {ok, [non_neg_integer()]} | error().
count_until(_Store, _Bounds) ->
    ?NOT_LOADED.

%% The ids of at most Max pending records with this key hash, and how many there are in all.
-spec find(store(), key_hash(), Max :: 1..65535) ->
          {ok, [id()], Total :: non_neg_integer()} | error().
find(_Store, _KeyHash, _Max) ->
    ?NOT_LOADED.

%% The bytes that may still be written to the file system of Dir by the user that this runs as.
-spec disk_free(file:filename_all()) -> {ok, non_neg_integer()} | error().
disk_free(Dir) ->
    disk_free_nif(path(Dir)).

%% Keeps other processes of the operating system out of all stores below Dir that are opened from now
%% on, until it is given back and they are closed. {error, {eacces, eagain}}: another one has it.
-spec claim(file:filename_all()) -> ok | error().
claim(Dir) ->
    claim_nif(path(Dir)).

-spec give_back() -> ok.
give_back() ->
    ?NOT_LOADED.

%% How many file descriptors all stores together keep open, but for those that one was opened with
%% a number of its own for.
-spec limit_open_files(pos_integer()) -> ok.
limit_open_files(_Limit) ->
    ?NOT_LOADED.

%% One of these for a file that the caller opens itself, for as long as anybody refers to what is answered.
%% none: all are in use.
-spec borrow_open_file() -> {ok, borrowed()} | none.
borrow_open_file() ->
    ?NOT_LOADED.

%% Of those stores: open_files and max_open_files; failing: how many could not be written to at the
%% last try, and unwritten: the bytes that these hold in memory; failed_writes and failed_syncs, ever.
-spec shared() -> #{atom() => non_neg_integer()}.
shared() ->
    ?NOT_LOADED.

%% The file descriptors of this process of the operating system.
-spec descriptors() -> {Used :: non_neg_integer(), Limit :: pos_integer()} | unknown.
descriptors() ->
    ?NOT_LOADED.

%% The header of a record of a batch (include/dw_store.h), before its body.
-spec record_header(Bytes :: pos_integer() | 0, Flags :: 0..16#ffff, encoding(), When :: ms(),
                    key_hash()) -> <<_:192>>.
record_header(Bytes, Flags, Encoding, When, KeyHash) ->
    <<Bytes:32/little, Flags:16/little, Encoding:16/little, When:64/little, KeyHash:64/little>>.

%% -------------------------------------------------------------------------- library

open_nif(_Dir, _Now, _MaxRecordBytes, _MaxOpenFiles, _PartitionBytes, _SplitBytes, _Log) ->
    ?NOT_LOADED.

peek_applied_nif(_Dir) ->
    ?NOT_LOADED.

restore_nif(_Dir, _SnapshotDir) ->
    ?NOT_LOADED.

validate_nif(_SnapshotDir) ->
    ?NOT_LOADED.

insert_nif(_Store, _Index, _BaseMs, _Batch) ->
    ?NOT_LOADED.

insert_keyed_nif(_Store, _Index, _BaseMs, _Batch, _Version) ->
    ?NOT_LOADED.

check_batch_nif(_Batch, _MaxRecordBytes) ->
    ?NOT_LOADED.

check_keyed_batch_nif(_Batch, _MaxRecordBytes, _Version) ->
    ?NOT_LOADED.

finish_nif(_Checkpoint, _SnapshotDir) ->
    ?NOT_LOADED.

disk_free_nif(_Dir) ->
    ?NOT_LOADED.

claim_nif(_Dir) ->
    ?NOT_LOADED.

places_nif(_Store, _From, _Back, _MaxN) ->
    ?NOT_LOADED.

%% Flattening may take long, and iolist_to_binary/1 gives way where a NIF could not.
flat(Batch) when is_binary(Batch) -> Batch;
flat(Batch) -> iolist_to_binary(Batch).

path(Name) when is_binary(Name), Name =/= <<>> ->
    filename:absname(Name);
path(Name) when is_list(Name) ->
    case unicode:characters_to_binary(Name, unicode, file:native_name_encoding()) of
        Binary when is_binary(Binary) -> path(Binary);
        _ -> error(badarg)
    end;
path(_) ->
    error(badarg).

init() ->
    [First | Others] = rabbit_delay_library:files(),
    load(First, Others).

%% Where none can be loaded, it is the first one's fault that counts.
load(File, Others) ->
    case load(File) of
        {error, {load_failed, _}} = Error ->
            case lists:any(fun (Other) -> load(Other) =:= ok end, Others) of
                true -> ok;
                false -> Error
            end;
        Result ->
            Result
    end.

load(File) ->
    case file:read_file(File) of
        {ok, Bytes} ->
            Build = binary:encode_hex(erlang:md5(Bytes)),
            case is_whole(File, Build) of
                true -> erlang:load_nif(filename:rootname(own_copy(File, Bytes, Build)), Build);
                false -> {error, {load_failed, {File, "not what was built: its checksum differs"}}}
            end;
        {error, Reason} ->
            {error, {load_failed, {File, Reason}}}
    end.

%% The system's loader maps a library that has been cut off, and then the VM ends where it is used.
is_whole(File, Build) ->
    case file:read_file(filename:rootname(File) ++ ".md5") of
        {ok, Sum} -> string:uppercase(string:trim(binary_to_list(Sum))) =:= binary_to_list(Build);
        {error, _} -> true
    end.

%% Where the broker unpacks plugin archives, it does so again, over the files in use, whenever any
%% plugin is enabled or disabled at run time; a library that is being executed would then crash the
%% VM. So there a copy is loaded, under a name that tells builds apart and is never written twice.
own_copy(File, Bytes, Build) ->
    case application:get_env(rabbit, plugins_expand_dir) of
        {ok, Expanded} ->
            case lists:prefix(filename:split(Expanded), filename:split(File)) of
                true -> copied(filename:rootname(File) ++ "-" ++ binary_to_list(Build) ++ ".so",
                               Bytes, File);
                false -> File
            end;
        undefined ->
            File
    end.

copied(Copy, Bytes, File) ->
    New = Copy ++ ".new",
    %% A crash of the machine may have left less of it.
    case file:read_file(Copy) of
        {ok, Bytes} ->
            Copy;
        _ ->
            case file:write_file(New, Bytes) of
                ok ->
                    case file:rename(New, Copy) of
                        ok -> Copy;
                        {error, _} -> File
                    end;
                {error, _} ->
                    File
            end
    end.
