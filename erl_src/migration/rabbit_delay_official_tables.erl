%% SPDX-License-Identifier: MPL-2.0

%% What the official delayed-message plugin left in this node's Mnesia, and how it comes to ours.
%%
%% Its tables, both on disk and in memory, of this node alone:
%%
%%   rabbit_delayed_message<node>         bag of {delay_entry, Key, Delivery, Ref}
%%   rabbit_delayed_message<node>_index   ordered_set of {delay_index, Key, true}
%%
%% Key is {delay_key, Ms, Exchange}: when it is due, and the record of the exchange as it was then.
%%
%% The import goes through the index in due order, a window of messages at a time. What is in the window is
%% encoded (rabbit_delay_official_record), noted in a file of ours (rabbit_delay_official_note), appended to the Raft
%% logs of its exchanges (rabbit_delay_official_batches), and when all have it deleted from the tables, on disk. The
%% note says in which batch of which session each message went; the machine keeps how far a session came. So whoever
%% goes on after a crash knows of each message in the tables whether it is in already, and sends what is not as it was
%% sent before: none is lost, and none comes twice.
%% Each step runs in a process that rabbitmqctl has here for it, one at a time on a node, for ?STEP_MS and what is in
%% the window then; it waits for no exchange for longer than ?PATIENCE_MS.
-module(rabbit_delay_official_tables).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([announce/0, begin_import/1, import/2, end_import/1]).
-export([table/1, exchange_of/1]).

-export_type([key/0, entry/0, cursor/0, counts/0, skipped/0, progress/0]).

-define(OFFICIAL, rabbit_delayed_message).
%% A window, whichever comes first.
-define(MESSAGES, 8000).
-define(BYTES, 4194304).
%% One call of import/2.
-define(STEP_MS, 2000).
%% How long an answer is waited for until the batch is offered again, and how long that goes on.
-define(ANSWER_MS, 10000).
-define(RETRY_MS, 50).
-define(PATIENCE_MS, 60000).
-define(TABLES_MS, 30000).
-define(SURVEY_ENTRIES, 1000).

-record(delay_entry, {delay_key, delivery, ref}).

-type key() :: {delay_key, Ms :: integer(), Exchange :: tuple()}.
-type entry() :: #delay_entry{}.
%% Where to go on, and which exchanges have no room left.
-type cursor() :: {key() | first, [rabbit_exchange:name()]}.
-type why() :: no_exchange | not_delayed | full | unreadable | too_large.
-type counts() :: #{rabbit_exchange:name() => non_neg_integer()}.
-type progress() :: #{imported | already := non_neg_integer(), skipped := skipped()}.
-type skipped() :: #{{rabbit_exchange:name(), why()} => pos_integer()}.

%% A message that is ready to go.
-record(ready, {key :: key(), id :: rabbit_delay_official_note:id(), exchange :: rabbit_exchange:name(),
                due :: non_neg_integer(), size :: pos_integer(), record :: iodata()}).

-record(step, {table :: atom(), index :: atom(),
               vhost :: rabbit_types:vhost() | all,
               deadline :: integer(),
               note :: rabbit_delay_official_note:note(),
               full :: [rabbit_exchange:name()],
               %% under way since an import that was ended, and no room for them
               held = [] :: [rabbit_delay_official_note:batch()],
               exchanges = #{} :: #{rabbit_exchange:name() =>
                                        {ok, pid(), rabbit_delay_key:salt()} | why()},
               %% newest first
               window = [] :: [#ready{}],
               messages = 0 :: non_neg_integer(),
               bytes = 0 :: non_neg_integer(),
               %% keys of which all is looked at, and what of them is in or in the window;
               %% stay: there is more, which is not to be deleted
               whole = [] :: [{key(), go | stay, [rabbit_delay_official_note:id()]}],
               keys = 0 :: non_neg_integer(),
               %% what there was no room for
               refused = #{} :: #{rabbit_delay_official_note:id() => []},
               imported = 0 :: non_neg_integer(),
               %% that an earlier import had taken
               already = 0 :: non_neg_integer(),
               skipped = #{} :: skipped()}).

%% Says in the log, when the broker starts, that there is something to be imported.
-spec announce() -> ok.
announce() ->
    case is_there(table(node())) andalso count(table(node())) of
        N when is_integer(N), N > 0 ->
            ?LOG_WARNING("~s of the official delayed-message plugin ~s in Mnesia: "
                         "`rabbitmqctl import_delayed_messages` takes over what it left",
                         [rabbit_delay_text:count(N, "message"), case N of 1 -> "is"; _ -> "are" end],
                         ?LOG_DOMAIN);
        _ ->
            ok
    end.

%% The table's name on a node.
-spec table(node()) -> atom().
table(Node) -> list_to_atom(atom_to_list(?OFFICIAL) ++ atom_to_list(Node)).

index(Node) -> list_to_atom(atom_to_list(table(Node)) ++ "_index").

%% The name is the first field of an #exchange{} of every version.
-spec exchange_of(key()) -> rabbit_exchange:name().
exchange_of({delay_key, _, X}) -> element(2, X).

is_there(Table) ->
    whereis(mnesia_sup) =/= undefined andalso lists:member(Table, mnesia:system_info(tables)).

count(Table) -> mnesia:table_info(Table, size).

%% How many messages there are for each exchange, after making sure that nobody else uses the tables.
-spec begin_import(rabbit_types:vhost() | all) ->
          {ok, counts()} | none | {error, {unavailable, Why :: binary()}}.
begin_import(VHost) ->
    case {whereis(?OFFICIAL), rabbit_delay_exchange:is_registered()} of
        {undefined, true} ->
            exclusively(fun () -> survey(VHost) end);
        {Pid, _} when is_pid(Pid) ->
            unavailable("the official plugin is running and delivers its messages itself. Write it off "
                        "with rabbitmq-plugins disable --offline rabbitmq_delayed_message_exchange "
                        "(without --offline it deletes them), and restart the broker");
        {undefined, false} ->
            unavailable("this plugin does not serve the exchange type: see the broker's log")
    end.

unavailable(Why) -> {error, {unavailable, unicode:characters_to_binary(Why)}}.

%% One import at a time.
exclusively(Fun) ->
    Lock = {?MODULE, self()},
    case global:set_lock(Lock, [node()], 0) of
        true ->
            try
                Fun()
            after
                global:del_lock(Lock, [node()])
            end;
        false ->
            unavailable("another import is under way")
    end.

survey(VHost) ->
    Table = table(node()),
    case is_there(Table) of
        false ->
            none;
        true ->
            case mnesia:wait_for_tables([Table, index(node())], ?TABLES_MS) of
                ok -> survey(Table, index(node()), VHost);
                Failure -> unavailable(io_lib:format("the tables cannot be loaded: ~0P", [Failure, 10]))
            end
    end.

%% What is not in the index is entered there.
survey(Table, Index, VHost) ->
    ets:safe_fixtable(Table, true),
    try
        {ok, survey_chunk(ets:select(Table, [{#delay_entry{delay_key = '$1', _ = '_'}, [], ['$1']}],
                                     ?SURVEY_ENTRIES), Index, VHost, #{})}
    after
        ets:safe_fixtable(Table, false)
    end.

survey_chunk('$end_of_table', _, _, Counts) ->
    Counts;
survey_chunk({Keys, Continuation}, Index, VHost, Counts0) ->
    Counts = lists:foldl(
               fun (Key, Acc) ->
                       _ = ets:member(Index, Key) orelse
                           mnesia:dirty_write(Index, {delay_index, Key, true}),
                       XName = exchange_of(Key),
                       case is_meant(XName, VHost) of
                           true -> maps:update_with(XName, fun (N) -> N + 1 end, 1, Acc);
                           false -> Acc
                       end
               end, Counts0, Keys),
    survey_chunk(ets:select(Continuation), Index, VHost, Counts).

is_meant(_, all) -> true;
is_meant(#resource{virtual_host = VHost}, Meant) -> VHost =:= Meant.

%% Imports for a while, from the cursor on, {first, []} to begin with. Skipped are those that it passed
%% over, which stay in the tables; already are those that an import which was ended had taken. After an
%% error nothing is lost: begin again.
-spec import(rabbit_types:vhost() | all, cursor()) ->
          {ok, progress(), cursor() | done} |
          {error, {unavailable, Why :: binary()}}.
import(VHost, {Key, Full}) ->
    exclusively(
      fun () ->
              try
                  Step = resumed(#step{table = table(node()), index = index(node()), vhost = VHost,
                                       deadline = erlang:monotonic_time(millisecond) + ?STEP_MS,
                                       note = rabbit_delay_official_note:read(), full = Full}),
                  walk(next_key(Key, Step), Key, Step)
              catch
                  throw:{unavailable, Why} -> unavailable(Why)
              end
      end).

next_key(first, #step{index = Index}) -> ets:first(Index);
next_key(Key, #step{index = Index}) -> ets:next(Index, Key).

walk('$end_of_table', _, Step0) ->
    Step = flush(Step0),
    result(done, Step);
walk(Key, _, Step0) ->
    Step = maybe_flush(key(Key, Step0)),
    case Step of
        #step{window = [], whole = [], deadline = Deadline} ->
            case erlang:monotonic_time(millisecond) >= Deadline of
                true -> result({Key, Step#step.full}, Step);
                false -> walk(next_key(Key, Step), Key, Step)
            end;
        _ ->
            walk(next_key(Key, Step), Key, Step)
    end.

result(Cursor, #step{imported = Imported, already = Already, skipped = Skipped}) ->
    _ = Imported > 0 andalso
        ?LOG_INFO("~s of the official delayed-message plugin imported",
                  [rabbit_delay_text:count(Imported, "message")], ?LOG_DOMAIN),
    {ok, #{imported => Imported, already => Already, skipped => Skipped}, Cursor}.

maybe_flush(#step{messages = Messages, bytes = Bytes, keys = Keys} = Step)
  when Messages >= ?MESSAGES; Bytes >= ?BYTES; Keys >= ?MESSAGES ->
    flush(Step);
maybe_flush(Step) ->
    Step.

key(Key, #step{vhost = VHost} = Step0) ->
    XName = exchange_of(Key),
    case is_meant(XName, VHost) of
        false ->
            Step0;
        true ->
            {Target, Step} = target(XName, Step0),
            case Target of
                {ok, _, Salt} -> entries(Key, XName, Salt, Step);
                %% Some may be in.
                full -> entries(Key, XName, <<>>, Step);
                Why -> skip(XName, Why, length(fields(Step#step.table, Key, #delay_entry.ref)), Step)
            end
    end.

%% By the key itself: it holds a map, and what matches a map is looked for everywhere.
fields(Table, Key, Position) ->
    try
        ets:lookup_element(Table, Key, Position)
    catch
        error:badarg -> []
    end.

deliveries(Table, Key) ->
    Refs = fields(Table, Key, #delay_entry.ref),
    lists:zip([rabbit_delay_official_record:id(Key, Ref) || Ref <- Refs], fields(Table, Key, #delay_entry.delivery)).

skip(_, _, 0, Step) ->
    Step;
skip(XName, Why, N, #step{skipped = Skipped} = Step) ->
    Step#step{skipped = maps:update_with({XName, Why}, fun (M) -> M + N end, N, Skipped)}.

%% The process that takes the exchange's messages in.
target(XName, #step{exchanges = Exchanges, full = Full} = Step) ->
    case Exchanges of
        #{XName := Target} ->
            {Target, Step};
        _ ->
            Target = case lists:member(XName, Full) of
                         true -> full;
                         false -> find_target(XName)
                     end,
            {Target, Step#step{exchanges = Exchanges#{XName => Target}}}
    end.

find_target(XName) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {error, not_found} ->
            no_exchange;
        {ok, X} ->
            case rabbit_delay_broker:is_delayed(X) of
                true -> started(XName, deadline(?PATIENCE_MS));
                false -> not_delayed
            end
    end.

started(XName, Deadline) ->
    case rabbit_delay_registry:ensure(XName) of
        {ok, _} ->
            Pid = rabbit_delay_registry:queue(XName),
            case is_pid(Pid) andalso room(Pid) of
                {_, _} -> salted(XName, Pid, Deadline);
                _ -> started_later(XName, Deadline, "its delay queue does not start")
            end;
        {error, Why} ->
            started_later(XName, Deadline, Why)
    end.

salted(XName, Pid, Deadline) ->
    case rabbit_delay_group:key_salt(XName) of
        {ok, Salt} -> {ok, Pid, Salt};
        {error, Why} -> started_later(XName, Deadline, Why)
    end.

started_later(XName, Deadline, Why) ->
    _ = erlang:monotonic_time(millisecond) < Deadline orelse
        throw({unavailable, [rabbit_delay_text:rs(XName), ": ", Why]}),
    timer:sleep(?RETRY_MS),
    started(XName, Deadline).

room(Pid) ->
    try
        rabbit_delay_queue:room(Pid)
    catch
        exit:_ -> not_ready
    end.

deadline(Ms) -> erlang:monotonic_time(millisecond) + Ms.

%% All messages of a key: those of one exchange that are due in the same millisecond.
entries(Key, XName, Salt, #step{table = Table} = Step0) ->
    {Step, Fate, Ids} =
        lists:foldl(
          fun ({Id, Delivery}, {S0, Fate0, Ids0}) ->
                  case entry(Key, Id, XName, Salt, Delivery, maybe_flush(S0)) of
                      {ok, S} -> {S, Fate0, [Id | Ids0]};
                      {skipped, S} -> {S, stay, Ids0}
                  end
          end, {Step0, go, []}, deliveries(Table, Key)),
    %% Some may have been refused in the meantime.
    Taken = [Id || Id <- Ids, not is_map_key(Id, Step#step.refused)],
    Step#step{whole = [{Key, case Taken of Ids -> Fate; _ -> stay end, Taken} | Step#step.whole],
              keys = Step#step.keys + 1}.

entry(Key, Id, XName, Salt, Delivery, #step{note = Note, exchanges = Exchanges} = Step) ->
    case rabbit_delay_official_note:is_in(Id, Note) of
        true ->
            {ok, Step#step{already = Step#step.already + 1}};
        false ->
            case Exchanges of
                #{XName := Why} when is_atom(Why) -> {skipped, skip(XName, Why, 1, Step)};
                _ -> ready(Key, Id, XName, Salt, Delivery, Step)
            end
    end.

ready(Key, Id, XName, Salt, Delivery,
      #step{window = Window, messages = Messages, bytes = Bytes} = Step) ->
    case made_ready(Key, Id, XName, Salt, Delivery) of
        {ok, #ready{size = Size} = Ready} ->
            {ok, Step#step{window = [Ready | Window], messages = Messages + 1, bytes = Bytes + Size}};
        {error, Why} ->
            {skipped, skip(XName, Why, 1, Step)}
    end.

made_ready(Key, Id, XName, Salt, Delivery) ->
    case rabbit_delay_official_record:record(Key, Salt, Delivery) of
        {ok, Due, Size, Record} ->
            {ok, #ready{key = Key, id = Id, exchange = XName, due = Due, size = Size, record = Record}};
        {error, _} = Error ->
            Error
    end.

%% ----------------------------------------------------------------------------- a window

%% Takes what the window has to the exchanges, and out of the tables.
flush(#step{window = [], whole = []} = Step) ->
    Step;
flush(#step{window = Window} = Step0) ->
    ByExchange = lists:foldl(
                   fun (#ready{exchange = XName} = Ready, Acc) ->
                           maps:update_with(XName, fun (Rest) -> [Ready | Rest] end, [Ready], Acc)
                   end, #{}, Window),
    {Batches, Step1} = lists:foldl(fun fitting/2, {[], Step0}, maps:to_list(ByExchange)),
    Step = send(Batches, Step1),
    forget(Step#step{window = [], messages = 0, bytes = 0}).

%% As many as the exchange's limits leave room for.
fitting({XName, Ready}, {Batches, #step{exchanges = Exchanges} = Step}) ->
    #{XName := {ok, Pid, _}} = Exchanges,
    Sized = [{Size, R} || #ready{size = Size} = R <- Ready],
    {Fitting, Over} = case room(Pid) of
                          {Messages, Bytes} ->
                              rabbit_delay_official_batches:fit(Sized, Messages, Bytes);
                          not_ready ->
                              {Sized, []}
                      end,
    {[{XName, Pid, Batch} || Batch <- rabbit_delay_official_batches:batches(Fitting)] ++ Batches,
     refused(XName, [R || {_, R} <- Over], Step)}.

refused(_, [], Step) ->
    Step;
refused(XName, Over, #step{exchanges = Exchanges, full = Full, whole = Whole,
                           refused = Refused} = Step) ->
    Keys = maps:from_list([{Key, []} || #ready{key = Key} <- Over]),
    Ids = maps:from_list([{Id, []} || #ready{id = Id} <- Over]),
    skip(XName, full, length(Over),
         Step#step{exchanges = Exchanges#{XName => full}, full = lists:usort([XName | Full]),
                   refused = maps:merge(Refused, Ids),
                   whole = [case is_map_key(Key, Keys) of
                                true -> {Key, stay, [Id || Id <- Of, not is_map_key(Id, Ids)]};
                                false -> W
                            end || {Key, _, Of} = W <- Whole]}).

send([], Step) ->
    Step;
send(Batches, #step{note = Note0, held = Held} = Step0) ->
    {Placed, Note} = lists:mapfoldl(fun place/2, Note0, Batches),
    ok = rabbit_delay_official_note:write(Held ++ [noted(Batch) || Batch <- Placed], Note),
    {Again, Step1} = offered(Placed, fun answered/3, {[], Step0#step{note = Note}}),
    send(Again, Step1).

noted({XName, _, Ready, Place}) -> {XName, Place, << <<Id/binary>> || #ready{id = Id} <- Ready >>}.

offered(Placed, Answered, Acc0) ->
    Deadline = deadline(?PATIENCE_MS),
    Asked = [{Batch, append(Batch)} || Batch <- Placed],
    lists:foldl(fun ({Batch, Ref}, Acc) -> Answered(await(Ref, Batch, once, Deadline), Batch, Acc) end, Acc0, Asked).

place({XName, Pid, Ready}, Note0) ->
    {Place, Note} = rabbit_delay_official_note:place(XName, Note0),
    {{XName, Pid, Ready, Place}, Note}.

answered(ok, {_, _, Ready, _} = Batch, {Again, Step}) ->
    {Again, taken(Batch, Step#step{imported = Step#step.imported + length(Ready)})};
answered(full, {XName, _, Ready, _}, {Again, Step}) ->
    {Again, refused(XName, Ready, Step)};
answered({gap, _}, {XName, Pid, Ready, _}, {Again, #step{note = Note} = Step}) ->
    %% One before it was refused, or the machine has forgotten the session: another one.
    {[{XName, Pid, Ready} | Again],
     Step#step{note = rabbit_delay_official_note:forget_session(XName, Note)}}.

taken({XName, _, Ready, Place}, #step{note = Note} = Step) ->
    Step#step{note = rabbit_delay_official_note:taken(XName, Place, [Id || #ready{id = Id} <- Ready], Note)}.

append({_, Pid, Ready, Place}) ->
    Earliest = lists:min([Due || #ready{due = Due} <- Ready]),
    Records = iolist_to_binary([Record || #ready{record = Record} <- Ready]),
    rabbit_delay_queue:import(Pid, Place, {1, {none, max(Earliest, 1)}, Records}, length(Ready)).

%% The machine drops a batch that it has: it can be offered again until there is an answer. What has been offered
%% before may be on its way, and is not refused any more.
await(Ref, {XName, _, Ready, Place} = Batch, Times, Deadline) ->
    Again = fun (Why, Now) ->
                    _ = erlang:monotonic_time(millisecond) < Deadline orelse
                        throw({unavailable, [rabbit_delay_text:rs(XName), ": ", Why]}),
                    timer:sleep(?RETRY_MS),
                    case find_target(XName) of
                        {ok, Pid, _} ->
                            await(append({XName, Pid, Ready, Place}), Batch, Now, Deadline);
                        _ ->
                            throw({unavailable, [rabbit_delay_text:rs(XName), " has gone meanwhile"]})
                    end
            end,
    receive
        {Ref, ok} -> ok;
        {Ref, full} when Times =:= once -> full;
        {Ref, full} -> Again("there is no room for what may be under way", Times);
        {Ref, {gap, _} = Gap} -> Gap;
        {Ref, not_ready} -> Again("it has no leader", Times);
        {Ref, {unavailable, Why}} -> throw({unavailable, Why});
        {Ref, {error, Why}} -> throw({unavailable, [rabbit_delay_text:rs(XName), ": the store refuses a batch: ",
                                                   rabbit_delay_text:reason(Why)]})
    after ?ANSWER_MS ->
        Again("it does not answer", again)
    end.

%% Deletes from the tables what is in, on disk.
forget(#step{whole = []} = Step) ->
    Step;
forget(#step{whole = Whole, table = Table, index = Index, note = Note} = Step) ->
    %% One entry in Mnesia's log: many small ones would have it write its files again and again.
    {atomic, ok} = mnesia:transaction(
                     fun () ->
                             _ = mnesia:write_lock_table(Table),
                             _ = mnesia:write_lock_table(Index),
                             lists:foreach(fun (Key) -> forget(Table, Index, Key) end, Whole)
                     end),
    ok = mnesia:sync_log(),
    Step#step{whole = [], keys = 0,
              note = rabbit_delay_official_note:forget([Id || {_, _, Ids} <- Whole, Id <- Ids],
                                                       Note)}.

forget(Table, Index, {Key, go, _}) ->
    ok = mnesia:delete(Table, Key, write),
    ok = mnesia:delete(Index, Key, write);
forget(_, _, {_, stay, []}) ->
    ok;
forget(Table, _, {Key, stay, Ids}) ->
    %% Deleting one by one from many of one key would take for ever.
    Gone = maps:from_list([{Id, []} || Id <- Ids]),
    Entries = mnesia:read(Table, Key, write),
    ok = mnesia:delete(Table, Key, write),
    lists:foreach(fun (Entry) -> ok = mnesia:write(Table, Entry, write) end,
                  [E || #delay_entry{ref = Ref} = E <- Entries, not is_map_key(rabbit_delay_official_record:id(Key, Ref), Gone)]).

%% Of the batches that were under way when an import was ended, the machines know which are in. The others may still
%% come, from a leader that was replaced meanwhile: so each goes on in its session, with the same messages under the
%% same number. For those that there is no room for it waits for the next import.
resumed(#step{note = Note0} = Step) ->
    {Sent, Note1} = rabbit_delay_official_note:under_way(Note0),
    {NotIn, Note} = lists:foldl(fun not_in/2, {[], Note1}, Sent),
    {Placed, Step1} = placed_before(lists:keysort(2, NotIn), Step#step{note = Note}),
    offered(Placed, fun gone_on/3, Step1).

%% An exchange that has gone has taken its messages with it.
not_in({XName, {Session, SeqNo}, _} = Batch, {NotIn, Note}) ->
    case find_target(XName) of
        {ok, Pid, _} ->
            ok = rabbit_delay_queue:forget_imported(Pid),
            case last_seq_no(XName, Session, deadline(?PATIENCE_MS)) of
                Last when Last >= SeqNo -> {NotIn, rabbit_delay_official_note:arrived(Batch, Note)};
                _ -> {[Batch | NotIn], Note}
            end;
        _ ->
            {NotIn, rabbit_delay_official_note:forget_session(XName, Note)}
    end.

%% With what is still in the tables of each, in the order that it had. What is not there is in.
placed_before([], Step) ->
    {[], Step};
placed_before(Batches, #step{index = Index} = Step0) ->
    Wanted = maps:from_list([{Id, XName} || {XName, _, Ids} <- Batches, <<Id:8/binary>> <= Ids]),
    {Found, Step} = found(ets:first(Index), Wanted, #{}, Step0),
    {[{XName, Pid, Ready, Place} || {XName, Place, Ids} <- Batches,
                                    {ok, Pid, _} <- [map_get(XName, Step#step.exchanges)],
                                    Ready <- [[map_get(Id, Found) || <<Id:8/binary>> <= Ids, is_map_key(Id, Found)]],
                                    Ready =/= []],
     Step}.

found('$end_of_table', _, Found, Step) ->
    {Found, Step};
found(_, Wanted, Found, Step) when map_size(Wanted) =:= map_size(Found) ->
    {Found, Step};
found(Key, Wanted, Found, #step{table = Table, index = Index} = Step0) ->
    {Target, Step} = target(exchange_of(Key), Step0),
    Here = maps:from_list([{Id, Ready} || {ok, _, Salt} <- [Target], {Id, Delivery} <- deliveries(Table, Key),
                                          is_map_key(Id, Wanted),
                                          {ok, Ready} <- [made_ready(Key, Id, exchange_of(Key), Salt, Delivery)]]),
    found(ets:next(Index, Key), Wanted, maps:merge(Found, Here), Step).

gone_on(ok, Batch, Step) ->
    taken(Batch, Step);
gone_on(full, {XName, _, _, _} = Batch, #step{held = Held, full = Full, exchanges = Exchanges} = Step) ->
    Step#step{held = Held ++ [noted(Batch)], full = lists:usort([XName | Full]),
              exchanges = Exchanges#{XName => full}};
gone_on({gap, _}, {XName, _, _, _} = Batch, #step{held = Held, note = Note} = Step) ->
    case lists:keymember(XName, 1, Held) of
        %% It comes behind one that waits.
        true -> Step#step{held = Held ++ [noted(Batch)]};
        %% The machine has forgotten the session.
        false -> Step#step{note = rabbit_delay_official_note:forget_session(XName, Note)}
    end.

last_seq_no(XName, Session, Deadline) ->
    case rabbit_delay_raft:last_seq_no(XName, Session) of
        {ok, SeqNo} ->
            SeqNo;
        {error, Reason} ->
            _ = erlang:monotonic_time(millisecond) < Deadline orelse
                throw({unavailable, io_lib:format("~ts does not answer: ~0P",
                                                  [rabbit_delay_text:rs(XName), Reason, 10])}),
            timer:sleep(?RETRY_MS),
            last_seq_no(XName, Session, Deadline)
    end.

%% An import has come to the end of the index. How many messages there are now for each exchange.
-spec end_import(rabbit_types:vhost() | all) ->
          {ok, counts(), Tables :: [atom()]} | {error, {unavailable, Why :: binary()}}.
end_import(VHost) ->
    exclusively(
      fun () ->
              ok = forget_import(),
              {ok, Counts} = survey(table(node()), index(node()), VHost),
              {ok, Counts, [table(node()), index(node())]}
      end).

%% Not while something may be under way.
forget_import() ->
    try
        {Sent, Note} = rabbit_delay_official_note:under_way(rabbit_delay_official_note:read()),
        case lists:foldl(fun not_in/2, {[], Note}, Sent) of
            {[], _} -> rabbit_delay_official_note:delete();
            {_, _} -> ok
        end
    catch
        throw:{unavailable, _} -> ok
    end.
