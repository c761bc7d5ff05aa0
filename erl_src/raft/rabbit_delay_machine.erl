%% SPDX-License-Identifier: MPL-2.0

%% The Raft state machine of one delayed exchange. It is thin: each command becomes one call of the
%% delay store (rabbit_delay_store, in C), whose handle is part of the state. The store is on disk
%% and skips what it has already applied, so replaying the log after a restart is harmless; the rest
%% of the state is small and goes into every snapshot (rabbit_delay_snapshot).
%%
%% The machine has a version (version/0), which Ra writes into the log when a leader first has it: an
%% entry's own is in the meta data of apply/3. What apply/3 makes of an entry follows from the state,
%% the entry and its version alone: a limit that is a node's own is kept to before something is
%% appended, never here. docs/internals/formats.md has the rules for what is added.
%%
%%   0  that of 0.1
%%   1  a batch that is refused uses its number up; a copy of it is judged again
%%   2  open, enqueue 3 and 4, settle 2, cancel 2 and reschedule 2 are known; a note says more
%%   3  enqueue 6, settle 3 and purge are known
%%
%% Commands, each with a version of its own. They are in logs and snapshots for ever.
%%
%%   {enqueue, 1, Session, SeqNo, Earliest, Batch}
%%      Batch is what rabbit_delay_store:insert/4 takes. Session is the delay queue process's, or that
%%      of an import (rabbit_delay_official_tables). SeqNo counts its batches from 1: a batch that was
%%      seen is answered `ok' and dropped, one that comes before its turn is answered
%%      {gap, LastSeqNo} and not applied. Earliest is {LeastDelay | none, LeastTime | none} of the
%%      batch. What is malformed is refused, as einval or, if a body has 2^31 bytes or more, etoobig.
%%      Reply: ok | {gap, LastSeqNo} | {error, einval | etoobig}
%%   {enqueue, 2, Session, SeqNo, Earliest, Batch}
%%      The same with a keyed batch, which rabbit_delay_store:insert_keyed/5 takes: so what is
%%      cancelled, replaced and dropped is decided here, in the order of the log. Earliest is of
%%      those of its records that are messages, {none, none} if none is.
%%      Reply: ok, if it was seen before | {ok, rabbit_delay_store:by_key()} | {gap, LastSeqNo} |
%%      {error, einval | etoobig}. What is replayed into a store that has it reports nothing as
%%      removed.
%%   {enqueue, 3 | 4, Session, SeqNo, Earliest, Batch}
%%      As 1 and 2, of a session that {open, ...} has opened. One of a session that is not open changes
%%      nothing, its first one too. An empty batch uses its number up and is no other's: so the number of
%%      one that was given up is filled.
%%      Reply: as 1 and 2, or {error, unknown_session}
%%   {enqueue, 6, Session, SeqNo, Earliest, Batch}
%%      As 4, with a batch in which records may release what is pending under their keys, which Earliest
%%      counts as delays of 0. What had been taken for its later time stays taken, and is settled by
%%      settle 3.
%%   {open, 1, Node, Nonce}
%%      Opens a session for the delay queue process of Node (a binary), in place of Node's earlier one;
%%      it is named by this entry's index, and Nonce, of the process's life, tells a copy of the command
%%      that has opened the present one, which is answered alike.
%%      Reply: {ok, Session, LastSeqNo}
%%   {settle, 1, Ids}
%%      Ids: 64-bit little-endian. Reply: {ok, Removed} | {error, Reason}
%%   {settle, 2, Released}
%%      Released: <<Id:64/little, DueMs:64/little, ...>>, with the due time that each was released for:
%%      one that has another by now stays, as it has not been released for that.
%%      Reply: {ok, Removed} | {error, Reason}
%%   {settle, 3, Released}
%%      As 2, but what is due before that time now is settled, too: it was released for less than that.
%%      Reply: {ok, Removed} | {error, Reason}
%%   {purge, 1}
%%      All that is pending goes, what is in flight too. Reply: {ok, #{removed, taken}}, taken being how
%%      many of those removed were in the dispatcher's hands | {error, Reason}
%%   {note, 1}
%%      Changes nothing. Reply: ok, and from machine 2 on
%%      {ok, #{machine_version := Version, term := Term, paused := boolean()}}, of this entry
%%   {cancel, 1, Ids}
%%      As settle, but not delivered. Reply: {ok, Removed} | {error, Reason}
%%   {reschedule, 1, Dues}
%%      Dues: <<Id:64/little, DueMs:64/little, ...>>. Messages that are not there are passed over.
%%      Reply: {ok, Moved} | {error, Reason}
%%   {cancel, 2, Term, Ids}, {reschedule, 2, Term, Dues}
%%      The same, asked for by the dispatcher of Term, which has these messages held: in an entry of any
%%      other term, where another dispatcher may have released them, nothing is changed.
%%      Reply: as 1, or {error, {other_term, EntrysTerm}}
%%   {pause, 1}, {resume, 1}
%%      Until it is resumed, nothing is released. Reply: ok
%%
%% Any other is of a later version. What it means is unknown, so this member stops before it.
%%
%% Due times: the entry's Raft timestamp, the same on every replica, plus the delay. The timestamp
%% was cut to a millisecond, so one is added: never early.
%%
%% It runs in the exchange's Ra server, which is the store's one writer.
-module(rabbit_delay_machine).

-behaviour(ra_machine).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([version/0, which_module/1, init/1, apply/3, state_enter/2, tick/2, overview/1,
         snapshot_module/0, init_aux/1, handle_aux/5, handle_aux/6]).
-export([store/1, is_paused/1, last_seq_no/2, to_snapshot/1, from_snapshot/2,
         snapshot_version/0, open_store/2]).

-export_type([state/0, command/0, earliest/0, snapshot/0]).

-compile({no_auto_import, [apply/3]}).

-define(VERSION, 3).
%% Whether an entry may be one of the commands that are known from machine 2 on, or 3.
-define(IS_OF_2(Meta), map_get(machine_version, Meta) >= 2).
-define(IS_OF_3(Meta), map_get(machine_version, Meta) >= 3).
-define(IS_KEYED(EnqueueVersion), (EnqueueVersion band 1 =:= 0)).
%% Of a batch that the store takes: of the format, and for ever.
-define(MAX_RECORD_BYTES, 16#7fffffff).
%% Of what to_snapshot/1 gives.
-define(SNAPSHOT_VERSION, 3).

%% How many sessions' last sequence numbers are kept that no entry has opened, those that were used last:
%% imports', and delay queue processes' from before machine 2.
-define(SESSIONS, 16).
%% How many nodes' sessions are kept, those that were opened last: more than any cluster has nodes.
-define(NODES, 128).
%% The store's write buffers are flushed when they hold this much, bytes.
-define(FLUSH_BYTES, 1048576).
%% One step of the store's upkeep, bytes of record bodies.
-define(MAINTAIN_BYTES, 1048576).
%% Of an entry's changes so many are taken again, after a restart, in the time of one message, as all that
%% they take is memory.
-define(CHANGES_AS_A_MESSAGE, 8).
%% How often the tick offers a snapshot; exchanges take turns.
-define(OFFER_SECONDS, 10).

-record(?MODULE,
        {store :: rabbit_delay_store:store(),
         exchange :: rabbit_exchange:name(),
         %% the last index that apply/3 has seen
         seen = 0 :: ra:index(),
         %% newest first
         sessions = [] :: [{Session :: pos_integer(), LastSeqNo :: non_neg_integer()}],
         %% by the index that names each
         opened = #{} :: #{Session :: ra:index() => opened()},
         paused = false :: boolean(),
         %% what has come since a snapshot was last offered to Ra; nothing but that follows from it
         messages_since = 0 :: non_neg_integer(),
         bytes_since = 0 :: non_neg_integer()}).

-opaque state() :: #?MODULE{}.

-type earliest() :: {LeastDelay :: none | non_neg_integer(), LeastTime :: none | pos_integer()}.

%% A node's session, and how far it has come.
-type opened() :: {Node :: binary(), Nonce :: binary(), LastSeqNo :: non_neg_integer()}.

-type command() :: {enqueue, 1 | 2 | 3 | 4 | 6, Session :: pos_integer(), SeqNo :: pos_integer(), earliest(),
                    Batch :: binary()}
                 | {open, 1, Node :: binary(), Nonce :: binary()}
                 | {settle, 1, Ids :: binary()}
                 | {settle, 2 | 3, Released :: binary()}
                 | {purge, 1}
                 | {note, 1}
                 | {cancel, 1, Ids :: binary()}
                 | {cancel, 2, Term :: non_neg_integer(), Ids :: binary()}
                 | {reschedule, 1, Dues :: binary()}
                 | {reschedule, 2, Term :: non_neg_integer(), Dues :: binary()}
                 | {pause, 1}
                 | {resume, 1}.

%% What a snapshot keeps beside the store's own files. Version 1 has no `paused', and 2 no `opened'.
-type snapshot() :: #{version := 1 | 2 | 3,
                      exchange := rabbit_exchange:name(),
                      seen := ra:index(),
                      sessions := [{pos_integer(), non_neg_integer()}],
                      paused => boolean(),
                      opened => [{ra:index(), opened()}]}.

-spec version() -> pos_integer().
version() -> ?VERSION.

%% One module reads all versions up to its own. Ra asks for a later one if a snapshot is of that.
-spec which_module(ra_machine:version()) -> module().
which_module(Version) when Version =< ?VERSION -> ?MODULE;
which_module(Version) -> exit({machine_version, Version, ?VERSION}).

-spec init(map()) -> state().
init(#{exchange := XName, uid := Uid}) ->
    #?MODULE{store = open_store(rabbit_delay_raft:store_dir(Uid), XName), exchange = XName}.

-spec snapshot_module() -> module().
snapshot_module() -> rabbit_delay_snapshot.

-spec apply(ra_machine:command_meta_data(), command() | ra_machine:builtin_command(), state()) ->
          {state(), term()} | {state(), term(), ra_machine:effects()}.
apply(#{index := Index} = Meta, {enqueue, Version, Session, SeqNo, Earliest, Batch}, State0)
  when Version =:= 1; Version =:= 2; ?IS_OF_2(Meta), (Version =:= 3 orelse Version =:= 4);
       ?IS_OF_3(Meta), Version =:= 6 ->
    ok = rabbit_delay_traffic:passes(),
    State = State0#?MODULE{seen = Index},
    case last_seq_no(Version, Session, State) of
        closed ->
            {noted(Index, State), {error, unknown_session}};
        Last when SeqNo =:= Last + 1, Batch =:= <<>>, Version >= 3 ->
            {noted(Index, used(Version, Session, SeqNo, State)), ok};
        Last when SeqNo =:= Last + 1 ->
            insert(Meta, Version, Session, SeqNo, Earliest, Batch, State);
        Last when SeqNo =< Last ->
            {noted(Index, State), seen(Meta, Version, Batch)};
        Last ->
            {noted(Index, State), {gap, Last}}
    end;
apply(#{index := Index} = Meta, {open, 1, Node, Nonce}, State) when ?IS_OF_2(Meta) ->
    open(Index, Node, Nonce, State#?MODULE{seen = Index});
apply(#{index := Index}, {settle, 1, Ids}, State) ->
    remove(Index, Ids, State#?MODULE{seen = Index});
apply(#{index := Index} = Meta, {settle, 2, Released}, State) when ?IS_OF_2(Meta) ->
    remove_released(Index, Released, fun rabbit_delay_store:settle_due/3, State#?MODULE{seen = Index});
apply(#{index := Index} = Meta, {settle, 3, Released}, State) when ?IS_OF_3(Meta) ->
    remove_released(Index, Released, fun rabbit_delay_store:settle_due_by/3, State#?MODULE{seen = Index});
apply(#{index := Index} = Meta, {purge, 1}, State) when ?IS_OF_3(Meta) ->
    purge(Index, State#?MODULE{seen = Index});
apply(#{index := Index}, {cancel, 1, Ids}, #?MODULE{store = Store} = State) ->
    removed(rabbit_delay_store:settle(Store, Index, Ids), byte_size(Ids), as_messages(byte_size(Ids) div 8),
            State#?MODULE{seen = Index});
apply(#{index := Index}, {reschedule, 1, Dues}, State) ->
    move(Index, Dues, State#?MODULE{seen = Index});
apply(#{index := Index, term := Term} = Meta, {Change, 2, Term, What}, State)
  when ?IS_OF_2(Meta), (Change =:= cancel orelse Change =:= reschedule) ->
    apply(Meta, {Change, 1, What}, State#?MODULE{seen = Index});
apply(#{index := Index, term := Term} = Meta, {Change, 2, _, _}, State)
  when ?IS_OF_2(Meta), (Change =:= cancel orelse Change =:= reschedule) ->
    {noted(Index, State#?MODULE{seen = Index}), {error, {other_term, Term}}};
apply(#{index := Index}, {Change, 1}, State) when Change =:= pause; Change =:= resume ->
    {noted(Index, State#?MODULE{seen = Index, paused = Change =:= pause}), ok};
apply(#{index := Index} = Meta, {note, 1}, #?MODULE{paused = Paused} = State) ->
    Reply = case Meta of
                #{machine_version := Version, term := Term} when Version >= 2 ->
                    {ok, #{machine_version => Version, term => Term, paused => Paused}};
                _ ->
                    ok
            end,
    {noted(Index, State#?MODULE{seen = Index}), Reply};
apply(#{index := Index} = Meta, Command, State) ->
    case is_of_ra(Command) of
        true -> {noted(Index, State#?MODULE{seen = Index}), ok, raised(Command, State)};
        false -> stop(Meta, Command, State)
    end.

%% ra_machine:builtin_command() of all versions of Ra up to 3.1. We ask for none of them but
%% machine_version, which Ra makes itself.
is_of_ra({machine_version, From, To}) -> is_integer(From) andalso is_integer(To);
is_of_ra({down, Pid, _}) -> is_pid(Pid);
is_of_ra({Change, Node}) when Change =:= nodeup; Change =:= nodedown -> is_atom(Node);
is_of_ra({timeout, _}) -> true;
is_of_ra(_) -> false.

%% From Ra 2.16 on it may be so in the midst of a term.
raised({machine_version, _, Version}, #?MODULE{exchange = XName}) ->
    [{mod_call, rabbit_delay_condition, raised, [XName, Version]}];
raised(_, _) ->
    [].

-spec stop(ra_machine:command_meta_data(), term(), state()) -> no_return().
stop(#{index := Index} = Meta, Command, #?MODULE{exchange = XName}) ->
    Why = rabbit_delay_newer:words(
            io_lib:format("entry ~b of the Raft log, ~ts,", [Index, shown(Command)]),
            "machine ~b or later, this one's is ~b",
            [max(maps:get(machine_version, Meta, 0), ?VERSION + 1), ?VERSION]),
    ok = rabbit_delay_newer:refuse(XName, Why),
    exit({unknown_command, Index}).

%% Its name and version, if it has them where ours do. Never what it brings.
shown(Command) when is_tuple(Command), tuple_size(Command) >= 2, is_atom(element(1, Command)),
                    is_integer(element(2, Command)) ->
    io_lib:format("{~ts, ~b, ...}", [element(1, Command), element(2, Command)]);
shown(Command) ->
    io_lib:format("~0P", [Command, 5]).

%% A copy of the command that opened the present session of the node opens no other. One of an earlier
%% session does, if it comes so late: then the later one is unknown, and its process opens another.
open(Index, Node, Nonce, #?MODULE{opened = Opened} = State) ->
    case [{Session, Last} || {Session, {N, Once, Last}} <- maps:to_list(Opened), N =:= Node,
                             Once =:= Nonce] of
        [{Session, Last}] ->
            {noted(Index, State), {ok, Session, Last}};
        [] ->
            Others = maps:filter(fun (_, {N, _, _}) -> N =/= Node end, Opened),
            {noted(Index, State#?MODULE{opened = (last_opened(Others))#{Index => {Node, Nonce, 0}}}),
             {ok, Index, 0}}
    end.

last_opened(Opened) when map_size(Opened) < ?NODES -> Opened;
last_opened(Opened) -> maps:remove(lists:min(maps:keys(Opened)), Opened).

last_seq_no(Version, Session, #?MODULE{sessions = Sessions}) when Version =< 2 ->
    proplists:get_value(Session, Sessions, 0);
last_seq_no(_, Session, #?MODULE{opened = Opened}) ->
    case Opened of
        #{Session := {_, _, Last}} -> Last;
        _ -> closed
    end.

remove(Index, Ids, #?MODULE{store = Store} = State) ->
    removed(rabbit_delay_store:settle(Store, Index, Ids), byte_size(Ids), byte_size(Ids) div 8, State).

remove_released(Index, Released, Settle, #?MODULE{store = Store} = State) ->
    ok = rabbit_delay_traffic:passes(),
    removed(Settle(Store, Index, Released), byte_size(Released), byte_size(Released) div 16, State).

purge(Index, #?MODULE{store = Store} = State) ->
    case rabbit_delay_store:purge(Store, Index) of
        {ok, Removed, Taken} -> offer(Removed, 0, {ok, #{removed => Removed, taken => Taken}}, [], State);
        {error, _} = Error -> failed(purge, Error, State)
    end.

%% Of changes that operators ask for: a snapshot for each 100,000 of these would be several a second, and
%% who syncs a file meanwhile waits for its files.
as_messages(Changes) -> 1 + Changes div ?CHANGES_AS_A_MESSAGE.

removed({ok, Removed}, Bytes, Count, State) ->
    offer(Count, Bytes, {ok, Removed}, [], State);
removed({error, _} = Error, _, _, State) ->
    failed(settle, Error, State).

move(Index, Dues, #?MODULE{store = Store} = State) ->
    case rabbit_delay_store:reschedule_many(Store, Index, Dues) of
        {ok, Moved} ->
            #{buffered := Buffered, next_due := NextDue} = rabbit_delay_store:stat(Store),
            flush(Buffered, State),
            offer(as_messages(byte_size(Dues) div 16), byte_size(Dues), {ok, Moved},
                  [Effect || is_integer(NextDue), Effect <- wake(NextDue, NextDue, State)], State);
        {error, _} = Error ->
            failed(reschedule, Error, State)
    end.

%% The store refuses a batch only if it is malformed, which no replica would take, or if it cannot:
%% then this replica must not go on as if it had.
insert(#{index := Index, system_time := Now} = Meta, Version, Session, SeqNo, Earliest, Batch,
       State0) ->
    Base = Now + 1,
    case insert(Version, Index, Base, Batch, State0) of
        {ok, {ok, Count, Bytes, NextDue, Buffered}, Removed, Reply} ->
            State = used(Version, Session, SeqNo, State0),
            flush(Buffered, State),
            offer(Count + Removed, Bytes, Reply, wake(earliest_due(Base, Earliest), NextDue, State),
                  State);
        {error, Reason} when Reason =:= einval; Reason =:= etoobig ->
            State = case Meta of
                        #{machine_version := V} when V >= 1 ->
                            used(Version, Session, SeqNo, State0);
                        _ -> State0
                    end,
            {noted(Index, State), {error, Reason}};
        {error, _} = Error ->
            failed(insert, Error, State0)
    end.

used(Version, Session, SeqNo, #?MODULE{opened = Opened} = State) when Version >= 3 ->
    #{Session := {Node, Nonce, _}} = Opened,
    State#?MODULE{opened = Opened#{Session := {Node, Nonce, SeqNo}}};
used(_, Session, SeqNo, #?MODULE{sessions = Sessions} = State) ->
    State#?MODULE{sessions = lists:sublist([{Session, SeqNo} |
                                            lists:keydelete(Session, 1, Sessions)], ?SESSIONS)}.

%% What a batch is answered whose number has been used: one that was refused is refused again.
seen(_, Version, <<>>) when Version >= 3 ->
    ok;
seen(#{machine_version := V}, Version, Batch) when V >= 1 ->
    Checked = case ?IS_KEYED(Version) of
                  false -> rabbit_delay_store:check_batch(Batch, ?MAX_RECORD_BYTES);
                  true -> rabbit_delay_store:check_keyed_batch(Batch, ?MAX_RECORD_BYTES, keyed_version(Version))
              end,
    case Checked of
        {ok, _} -> ok;
        {error, _} -> Checked
    end;
seen(_, _, _) ->
    ok.

insert(Version, Index, Base, Batch, #?MODULE{store = Store}) when not ?IS_KEYED(Version) ->
    case rabbit_delay_store:insert(Store, Index, Base, Batch) of
        {error, _} = Error -> Error;
        Inserted -> {ok, Inserted, 0, ok}
    end;
insert(Version, Index, Base, Batch, #?MODULE{store = Store}) ->
    case rabbit_delay_store:insert_keyed(Store, Index, Base, Batch, keyed_version(Version)) of
        {ok, Inserted, #{cancelled := Cancelled, replaced := Replaced, taken := Taken} = ByKey} ->
            {ok, Inserted, Cancelled + Replaced + Taken, {ok, ByKey}};
        {error, _} = Error ->
            Error
    end.

keyed_version(6) -> 2;
keyed_version(_) -> 1.

%% A time can have passed already: that is the store's next due time then, too.
earliest_due(_, {none, none}) -> none;
earliest_due(_, {none, Time}) -> Time;
earliest_due(Base, {Delay, none}) -> Base + Delay;
earliest_due(Base, {Delay, Time}) -> min(Base + Delay, Time).

%% The dispatcher sleeps until what was the next due time: it must hear of an earlier one.
wake(Due, NextDue, #?MODULE{exchange = XName}) when is_integer(Due), Due =< NextDue ->
    [{mod_call, rabbit_delay_dispatcher, wake, [XName, Due]}];
wake(_, _, _) ->
    [].

%% What cannot be written stays in memory and in the Raft log. The store says so in the log, tries again
%% as it is maintained, and shows it to those who take messages in (rabbit_delay_queue).
flush(Buffered, _) when Buffered < ?FLUSH_BYTES ->
    ok;
flush(_, #?MODULE{store = Store}) ->
    _ = rabbit_delay_store:flush(Store),
    ok.

noted(Index, #?MODULE{store = Store} = State) ->
    case rabbit_delay_store:note(Store, Index) of
        ok -> State;
        {error, _} = Error -> failed(note, Error, State)
    end.

%% A store that found itself to be wrong has closed itself. This member goes no further, and is not
%% started again before the plugin is: from the store's last checkpoint and the log. Nobody else is
%% concerned.
-spec failed(atom(), {error, term()}, state()) -> no_return().
failed(Call, {error, ebroken}, #?MODULE{exchange = XName}) ->
    ok = rabbit_delay_newer:refuse(
           XName, "its store found itself to be wrong and was closed, the log says where; what it "
           "holds is read again from the disk when the broker is started again"),
    exit({store_broken, Call});
failed(Call, Error, _) ->
    exit({delay_store, Call, Error}).

%% Offers Ra a snapshot when enough has come since the last one, by this node's settings: nothing that
%% others see follows from it.
offer(Messages, Bytes, Reply, Effects,
      #?MODULE{messages_since = M0, bytes_since = B0} = State0) ->
    {MaxMessages, MaxBytes} = rabbit_delay_config:snapshot_interval(),
    case {M0 + Messages, B0 + Bytes} of
        {M, B} when M >= MaxMessages; B >= MaxBytes ->
            State = State0#?MODULE{messages_since = 0, bytes_since = 0},
            {State, Reply, [{release_cursor, cursor(State), State} | Effects]};
        {M, B} ->
            {State0#?MODULE{messages_since = M, bytes_since = B}, Reply, Effects}
    end.

%% Where others may come to lead, the last entry stays in the log: before Ra 3.1 a leader that was cut off,
%% whose snapshot had all that was committed, ended when the next one had it drop what it had after that.
%% The state has that entry already; it changes nothing when it is applied to it again.
cursor(#?MODULE{exchange = XName, seen = Seen}) ->
    case rabbit_delay_registry:group_size(XName) of
        1 -> Seen;
        _ -> Seen - 1
    end.

%% The dispatcher lives beside the leader. When that stops leading it is ended here, not by an effect:
%% from Ra 3.1 on those of others than the leader are not carried out.
-spec state_enter(ra_server:ra_state() | eol, state()) -> ra_machine:effects().
state_enter(leader, #?MODULE{exchange = XName, store = Store}) ->
    [{mod_call, rabbit_delay_registry, leader, [XName, server_id(), Store]}];
state_enter(_, #?MODULE{exchange = XName}) ->
    ok = rabbit_delay_registry:no_leader(XName),
    [].

server_id() ->
    {registered_name, Name} = process_info(self(), registered_name),
    {Name, node()}.

%% Ra drops an offer that comes while it writes a snapshot, and an idle log gets none: now and then
%% the tick offers again, so that what is left to replay after a restart stays short. When space
%% runs out it does so at once: what is in a snapshot is not needed from the log.
-spec tick(non_neg_integer(), state()) -> ra_machine:effects().
tick(TimeMs, #?MODULE{store = Store, exchange = XName, seen = Seen} = State) ->
    Slot = erlang:phash2(XName, ?OFFER_SECONDS),
    case TimeMs div 1000 rem ?OFFER_SECONDS =:= Slot orelse rabbit_delay_system:status() of
        Now when Now =:= true; element(1, Now) =:= full ->
            case rabbit_delay_store:stat(Store) of
                #{checkpoint_applied := Checkpoint} when Checkpoint < Seen ->
                    [{release_cursor, cursor(State), State}];
                _ ->
                    []
            end;
        _ ->
            []
    end.

-spec overview(state()) -> map().
overview(#?MODULE{store = Store, exchange = XName, seen = Seen, sessions = Sessions,
                  opened = Opened, paused = Paused}) ->
    #{type => ?MODULE,
      exchange => XName,
      seen => Seen,
      sessions => length(Sessions) + map_size(Opened),
      paused => Paused,
      store => rabbit_delay_store:stat(Store)}.

-spec init_aux(atom()) -> undefined.
init_aux(_) -> undefined.

%% From ra 2.10 on.
-spec handle_aux(ra_server:ra_state(), cast | {call, term()}, term(), undefined, Ra) ->
          {no_reply, undefined, Ra} | {reply, term(), undefined, Ra}
          | {no_reply, undefined, Ra, [{monitor, process, aux, pid()}]} when Ra :: term().
handle_aux(RaftState, Type, Command, Aux, Ra) ->
    handle_aux(RaftState, Type, Command, Aux, Ra, rabbit_delay_broker:machine_state(Ra)).

-spec handle_aux(ra_server:ra_state(), cast | {call, term()}, term(), undefined,
                 ra_log:state(), state()) ->
          {no_reply, undefined, ra_log:state()} | {reply, term(), undefined, ra_log:state()}
          | {no_reply, undefined, ra_log:state(), [{monitor, process, aux, pid()}]}.
handle_aux(Role, cast, tick, Aux, Log, State) when Role =/= leader ->
    ok = maintain(State),
    {no_reply, Aux, Log, offers(State)};
handle_aux(_, cast, Step, Aux, Log, State) when Step =:= tick; Step =:= maintain ->
    ok = maintain(State),
    {no_reply, Aux, Log};
handle_aux(_, cast, _, Aux, Log, _) ->
    {no_reply, Aux, Log};
handle_aux(_, {call, _}, _, Aux, Log, _) ->
    {reply, {error, unknown_aux_command}, Aux, Log}.

%% Ra asks tick/2 of the leader alone, and an idle follower would never take its last snapshot. From here it
%% carries out any effect, though it names one.
-dialyzer({nowarn_function, offers/1}).
-spec offers(state()) -> [{monitor, process, aux, pid()}].
offers(State) ->
    tick(erlang:system_time(millisecond), State).

%% The store's upkeep in steps, between which commands are served. Ra sends `tick' itself.
maintain(#?MODULE{store = Store, exchange = XName} = State) ->
    case rabbit_delay_store:maintain(Store, rabbit_delay_config:now_ms(), ?MAINTAIN_BYTES) of
        {ok, more} ->
            ra:cast_aux_command(server_id(), maintain);
        {ok, done} ->
            ok;
        {error, ebroken} = Error ->
            failed(maintain, Error, State);
        {error, Reason} ->
            case rabbit_delay_store:stat(Store) of
                #{write_error := Error} when Error =/= none ->
                    ok;
                _ ->
                    ?LOG_WARNING("delayed messages of ~ts: upkeep of the store failed: ~p",
                                 [rabbit_delay_text:rs(XName), Reason], ?LOG_DOMAIN)
            end
    end.

%% The store's handle, for ra:local_query/2: a reader beside the leader.
-spec store(state()) -> rabbit_delay_store:store().
store(#?MODULE{store = Store}) -> Store.

%% Whether nothing is to be released.
-spec is_paused(state()) -> boolean().
is_paused(#?MODULE{paused = Paused}) -> Paused.

%% Of a session that no entry has opened; 0 if nothing of it is known.
-spec last_seq_no(Session :: pos_integer(), state()) -> non_neg_integer().
last_seq_no(Session, #?MODULE{sessions = Sessions}) ->
    proplists:get_value(Session, Sessions, 0).

-spec to_snapshot(state()) -> snapshot().
to_snapshot(#?MODULE{exchange = XName, seen = Seen, sessions = Sessions, paused = Paused, opened = Opened}) ->
    Snapshot = #{version => 2, exchange => XName, seen => Seen, sessions => Sessions, paused => Paused},
    %% Before machine 2 has opened one, members of earlier versions may be sent it.
    case map_size(Opened) of
        0 -> Snapshot;
        _ -> Snapshot#{version := 3, opened => lists:sort(maps:to_list(Opened))}
    end.

%% The latest that from_snapshot/2 reads.
-spec snapshot_version() -> pos_integer().
snapshot_version() -> ?SNAPSHOT_VERSION.

-spec from_snapshot(snapshot(), rabbit_delay_store:store()) -> state().
from_snapshot(#{version := Version, exchange := XName, seen := Seen, sessions := Sessions} = S,
              Store) when Version >= 1, Version =< ?SNAPSHOT_VERSION ->
    #?MODULE{store = Store, exchange = XName, seen = Seen, sessions = Sessions,
             paused = maps:get(paused, S, false),
             opened = maps:from_list(maps:get(opened, S, []))}.

%% Opens the store in Dir and says what was found there. Ra comes here whenever a server starts, and
%% is refused where it restarts one by itself; and when a running one has been sent a snapshot.
-spec open_store(file:filename_all(), rabbit_exchange:name()) -> rabbit_delay_store:store().
open_store(Dir, XName) ->
    _ = get({?MODULE, opened}) =:= XName orelse rabbit_delay_registry:take_permit(XName)
        orelse exit({not_permitted, XName}),
    Config = #{now => rabbit_delay_config:now_ms(),
               max_record_bytes => ?MAX_RECORD_BYTES,
               log => rabbit_delay_system:log_pid()},
    case rabbit_delay_store:open(Dir, Config) of
        {ok, Store, Report} ->
            ?LOG_DEBUG("delayed messages of ~ts: store opened: ~p",
                       [rabbit_delay_text:rs(XName), Report], ?LOG_DOMAIN),
            _ = put({?MODULE, opened}, XName),
            ok = rabbit_delay_registry:register_store(XName, Store),
            ok = rabbit_delay_local_member:look_for_damage(Report, XName),
            Store;
        {error, ecorrupt} ->
            ok = rabbit_delay_local_member:found_damaged(XName, "its manifest, or a file that it names"),
            exit({delay_store, open, Dir, ecorrupt});
        {error, Reason} ->
            exit({delay_store, open, Dir, Reason})
    end.
