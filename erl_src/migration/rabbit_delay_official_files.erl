%% SPDX-License-Identifier: MPL-2.0

%% Reads what the official delayed-message plugin has in the data directory of a node that does not run:
%% its table (rabbit_delayed_message<node>) as Mnesia writes it. It needs no Mnesia, and changes nothing.
%% The files are disk logs, of terms:
%%
%%   <table>.DCD                 the records, some time ago; none twice
%%   <table>.DCL                 what has been done to them since: {{Table, Key}, Value, Operation}
%%   PREVIOUS.LOG, LATEST.LOG    commits, whose fifth element has such operations: those that have not
%%                               come to the .DCL, or have and were not taken away yet
%%
%% A first pass over the operations finds what was deleted after it was written, a second one over all
%% tells what is left, each record once. What is kept in memory are a hundred bytes or so for each
%% operation; Mnesia sees to it that these are few beside the records.
%%
%% It runs in rabbitmqctl, without a broker.
-module(rabbit_delay_official_files).

-export([fold/3]).

-record(done, {table :: atom(),
               %% {delete, Key} or {delete, Key, Ref}: the last operation that deletes it;
               %% {write, Key, Ref}: one that writes it, and no other was told of yet
               operations :: ets:tid(),
               cleared = 0 :: non_neg_integer(),
               position = 0 :: non_neg_integer()}).

%% Over the entries that are there, some at a time. Lost: bytes of files that end in the middle of a
%% record, as they do after a crash.
-spec fold(Dir :: file:filename_all(), fun(([rabbit_delay_official_tables:entry()], Acc) -> Acc), Acc) ->
          {ok, Acc, Lost :: non_neg_integer()} | {error, Why :: unicode:chardata()}.
fold(Dir0, Fun, Acc0) ->
    Dir = unicode:characters_to_list(Dir0),
    try
        {Acc, Lost} = lists:foldl(fun (Table, {Acc1, Lost1}) ->
                                          {Acc2, Lost2} = fold_table(Dir, Table, Fun, Acc1),
                                          {Acc2, Lost1 + Lost2}
                                  end, {Acc0, 0}, tables(Dir)),
        {ok, Acc, Lost}
    catch
        throw:{unreadable, Why} -> {error, Why}
    end.

tables(Dir) ->
    case [filename:rootname(File) || File <- filelib:wildcard("rabbit_delayed_message*.DCD", Dir),
                                     not lists:suffix("_index.DCD", File)] of
        [] -> throw({unreadable, [Dir, " has no table of the official plugin "
                                  "(rabbit_delayed_message*.DCD)"]});
        Names -> Names
    end.

fold_table(Dir, Name, Fun, Acc0) ->
    Table = list_to_atom(Name),
    Operations = ets:new(?MODULE, [set, private]),
    Logs = [{dcl, filename:join(Dir, Name ++ ".DCL")},
            {log, filename:join(Dir, "PREVIOUS.LOG")},
            {log, filename:join(Dir, "LATEST.LOG")}],
    try
        {Done, Lost1} =
            lists:foldl(fun ({Kind, File}, Acc) ->
                                terms(File, fun (Terms, D) -> note(Kind, Terms, D) end, Acc)
                        end, {#done{table = Table, operations = Operations}, 0}, Logs),
        {Acc1, Lost2} = terms(filename:join(Dir, Name ++ ".DCD"),
                              fun (Terms, Acc) -> tell([E || E <- Terms, is_entry(E),
                                                             was_there(E, Done)], Fun, Acc)
                              end, {Acc0, Lost1}),
        {{_, Acc3}, _} =
            lists:foldl(fun ({Kind, File}, Acc) ->
                                terms(File,
                                      fun (Terms, {Position, Acc2}) ->
                                              {Live, Next} = left(Kind, Terms, Position, Done),
                                              {Next, tell(Live, Fun, Acc2)}
                                      end, Acc)
                        end, {{0, Acc1}, 0}, Logs),
        {Acc3, Lost2}
    after
        ets:delete(Operations)
    end.

tell([], _, Acc) -> Acc;
tell(Entries, Fun, Acc) -> Fun(Entries, Acc).

is_entry(Term) -> is_tuple(Term) andalso tuple_size(Term) =:= 4 andalso element(1, Term) =:= delay_entry.

%% -------------------------------------------------------------------------- operations

operations(Kind, Terms, Table) ->
    lists:append([operations_of(Kind, Term, Table) || Term <- Terms]).

operations_of(dcl, {{Table, _}, _, _} = Operation, Table) ->
    [Operation];
operations_of(log, Commit, Table) when element(1, Commit) =:= commit, tuple_size(Commit) >= 5 ->
    %% Several values of one key may be in one operation.
    lists:append([case Operation of
                      {{Table, _} = Oid, Values, What} when is_list(Values) ->
                          [{Oid, Value, What} || Value <- Values];
                      {{Table, _}, _, _} ->
                          [Operation];
                      _ ->
                          []
                  end || Operation <- element(5, Commit)]);
operations_of(_, _, _) ->
    [].

note(Kind, Terms, #done{table = Table} = Done) ->
    lists:foldl(fun note_operation/2, Done, operations(Kind, Terms, Table)).

note_operation({{_, Key}, Value, What}, #done{operations = Operations, position = Last} = Done) ->
    Position = Last + 1,
    case What of
        write -> ets:insert(Operations, {{write, id(Key, Value)}, Position});
        delete -> ets:insert(Operations, {{delete, id(Key)}, Position});
        delete_object -> ets:insert(Operations, {{delete, id(Key, Value)}, Position});
        _ -> true
    end,
    case What of
        clear_table -> Done#done{position = Position, cleared = Position};
        _ -> Done#done{position = Position}
    end.

%% Whether a record of the .DCD has outlived the operations. If one of them wrote it again, it is not to
%% be told of another time.
was_there(Entry, Done) ->
    outlives(Entry, 0, Done) andalso untold(Entry, Done).

left(Kind, Terms, Position0, #done{table = Table} = Done) ->
    {Live, Position} =
        lists:foldl(
          fun ({_, Value, What}, {Acc, Last}) ->
                  Live = What =:= write andalso is_entry(Value)
                      andalso outlives(Value, Last + 1, Done)
                      andalso was_written(Value, Done) andalso untold(Value, Done),
                  {[Value || Live] ++ Acc, Last + 1}
          end, {[], Position0}, operations(Kind, Terms, Table)),
    {lists:reverse(Live), Position}.

outlives({delay_entry, Key, _, _} = Entry, Position,
         #done{operations = Operations, cleared = Cleared}) ->
    Cleared =< Position andalso
        lists:all(fun (Id) ->
                          case ets:lookup(Operations, {delete, Id}) of
                              [{_, Deleted}] -> Deleted < Position;
                              [] -> true
                          end
                  end, [id(Key), id(Key, Entry)]).

was_written({delay_entry, Key, _, _} = Entry, #done{operations = Operations}) ->
    ets:member(Operations, {write, id(Key, Entry)}).

untold({delay_entry, Key, _, _} = Entry, #done{operations = Operations}) ->
    true = ets:delete(Operations, {write, id(Key, Entry)}).

id(Key) -> digest(Key).

id(Key, {delay_entry, _, _, Ref}) -> digest({Key, Ref}).

digest(Term) ->
    <<Id:16/binary, _/binary>> = crypto:hash(sha256, term_to_binary(Term)),
    Id.

%% ------------------------------------------------------------------------------ files

%% Over the terms of a disk log, if it is there.
terms(File, Fun, {Acc, Lost}) ->
    case filelib:is_regular(File) of
        true ->
            case disk_log:open([{name, {?MODULE, File}}, {file, File}, {mode, read_only}]) of
                {ok, Log} -> closing(Log, File, Fun, Acc, Lost);
                {repaired, Log, _, _} -> closing(Log, File, Fun, Acc, Lost);
                {error, Reason} -> unreadable(File, Reason)
            end;
        false ->
            {Acc, Lost}
    end.

closing(Log, File, Fun, Acc, Lost) ->
    try
        chunks(disk_log:chunk(Log, start), Log, File, Fun, Acc, Lost)
    after
        disk_log:close(Log)
    end.

chunks(eof, _, _, _, Acc, Lost) ->
    {Acc, Lost};
chunks({error, Reason}, _, File, _, _, _) ->
    unreadable(File, Reason);
chunks({Continuation, Terms}, Log, File, Fun, Acc, Lost) ->
    chunks({Continuation, Terms, 0}, Log, File, Fun, Acc, Lost);
chunks({Continuation, Terms, Bad}, Log, File, Fun, Acc, Lost) ->
    chunks(disk_log:chunk(Log, Continuation), Log, File, Fun, Fun(Terms, Acc), Lost + Bad).

-spec unreadable(file:filename(), term()) -> no_return().
unreadable(File, Reason) ->
    throw({unreadable, [File, ": ", disk_log:format_error({error, Reason})]}).
