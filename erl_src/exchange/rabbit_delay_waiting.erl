%% SPDX-License-Identifier: MPL-2.0

%% What a delay queue's process has taken in and not yet appended to the log, in order. A part is in
%% memory; what can be neither refused nor held where it comes from goes behind that to files, when
%% there is too much for memory. They are an extension of memory, without fsync: they end with the
%% process.
%%
%% A file is read from its beginning while another one is written, and is deleted when it has been
%% read. What is in it: <<Bytes:32, term_to_binary({Size, Item})/binary>>, again and again.
-module(rabbit_delay_waiting).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([new/2, in/3, in_r/3, out/1, is_empty/1, is_full/1, count/1, bytes/1, all/1, filter/2,
         overflow/3, overflowing/1, write/1, refill/1, close/1, put_aside_files/0, directory/1]).

-export_type([waiting/0]).

-define(FILE_BYTES, 16777216).
-define(READ_BYTES, 1048576).
-define(DIRECTORY, "overflow").

-record(file, {number :: pos_integer(),
               %% of what has been written completely
               bytes = 0 :: non_neg_integer(),
               items = 0 :: non_neg_integer()}).

-record(waiting, {memory = queue:new() :: queue:queue({Size :: non_neg_integer(), item()}),
                  count = 0 :: non_neg_integer(),
                  bytes = 0 :: non_neg_integer(),
                  limits :: {Count :: pos_integer(), Bytes :: pos_integer()},
                  directory :: file:filename_all(),
                  %% to be written, newest first
                  unwritten = [] :: [{Size :: non_neg_integer(), item()}],
                  %% oldest first; the last one may be being written
                  files = queue:new() :: queue:queue(#file{}),
                  last = 0 :: non_neg_integer(),
                  writer :: undefined | file:fd(),
                  reader :: undefined | {file:fd(), Offset :: non_neg_integer(),
                                         Items :: non_neg_integer()}}).

-type item() :: term().
-opaque waiting() :: #waiting{}.

%% So much is kept in memory, as far as its user lets it.
-spec new(file:filename_all(), {Count :: pos_integer(), Bytes :: pos_integer()}) -> waiting().
new(Directory, Limits) ->
    ok = say_lost(Directory),
    _ = file:del_dir_r(Directory),
    #waiting{directory = Directory, limits = Limits}.

%% Where an exchange's files are.
-spec directory(rabbit_exchange:name()) -> file:filename_all().
directory(XName) ->
    <<Name:16/binary, _/binary>> = crypto:hash(sha256, term_to_binary(XName)),
    filename:join([rabbit_delay_config:data_dir(), ?DIRECTORY,
                   binary_to_list(binary:encode_hex(Name))]).

%% Of an earlier run, before any of this one are made: they are deleted with what is left of deleted
%% exchanges.
-spec put_aside_files() -> ok.
put_aside_files() ->
    Dir = rabbit_delay_config:data_dir(),
    ok = say_lost(filename:join(Dir, ?DIRECTORY)),
    Aside = "deleted-" ++ integer_to_list(erlang:system_time()),
    _ = file:rename(filename:join(Dir, ?DIRECTORY), filename:join(Dir, Aside)),
    ok.

%% A process that was killed has said nothing of them.
say_lost(Dir) ->
    case filelib:fold_files(Dir, "", true, fun (File, {Files, Bytes}) ->
                                                   {Files + 1, Bytes + filelib:file_size(File)}
                                           end, {0, 0}) of
        {0, 0} ->
            ok;
        {Files, Bytes} ->
            ?LOG_WARNING("delayed messages: dead letters, and messages without a confirm, that waited in files to be "
                         "stored when the broker or their exchange's process was killed are lost: up to ~b bytes in ~b "
                         "files below ~ts", [Bytes, Files, Dir], ?LOG_DOMAIN)
    end.

%% ------------------------------------------------------------------------------ in memory

-spec in(item(), Size :: non_neg_integer(), waiting()) -> waiting().
in(Item, Size, #waiting{memory = Memory, count = Count, bytes = Bytes} = W) ->
    W#waiting{memory = queue:in({Size, Item}, Memory), count = Count + 1, bytes = Bytes + Size}.

%% Before all others.
-spec in_r(item(), Size :: non_neg_integer(), waiting()) -> waiting().
in_r(Item, Size, #waiting{memory = Memory, count = Count, bytes = Bytes} = W) ->
    W#waiting{memory = queue:in_r({Size, Item}, Memory), count = Count + 1, bytes = Bytes + Size}.

%% The next one in memory: refill/1 brings there what is in files.
-spec out(waiting()) -> {item(), Size :: non_neg_integer(), waiting()} | empty.
out(#waiting{memory = Memory0, count = Count, bytes = Bytes} = W) ->
    case queue:out(Memory0) of
        {{value, {Size, Item}}, Memory} ->
            {Item, Size, W#waiting{memory = Memory, count = Count - 1, bytes = Bytes - Size}};
        {empty, _} ->
            empty
    end.

%% Of what is in memory, and when that is empty, of all.
-spec is_empty(waiting()) -> boolean().
is_empty(#waiting{count = Count}) -> Count =:= 0.

-spec is_full(waiting()) -> boolean().
is_full(#waiting{count = Count, bytes = Bytes, limits = {MaxCount, MaxBytes}}) ->
    Count >= MaxCount orelse Bytes >= MaxBytes.

%% Of what is in memory.
-spec count(waiting()) -> non_neg_integer().
count(#waiting{count = Count}) -> Count.

-spec bytes(waiting()) -> non_neg_integer().
bytes(#waiting{bytes = Bytes}) -> Bytes.

%% Of what has not come out, wherever it is.
-spec all(waiting()) -> non_neg_integer().
all(#waiting{count = Count, unwritten = Unwritten, files = Files, reader = Reader}) ->
    Read = case Reader of
               {_, _, N} -> N;
               undefined -> 0
           end,
    Count + length(Unwritten) + lists:sum([N || #file{items = N} <- queue:to_list(Files)]) - Read.

%% Keeps of what is in memory what Keep says.
-spec filter(fun((item()) -> boolean()), waiting()) -> waiting().
filter(Keep, #waiting{memory = Memory} = W) ->
    lists:foldl(fun ({Size, Item}, Acc) -> in(Item, Size, Acc) end,
                W#waiting{memory = queue:new(), count = 0, bytes = 0},
                [Pair || {_, Item} = Pair <- queue:to_list(Memory), Keep(Item)]).

%% ------------------------------------------------------------------------------- in files

%% Behind all others; in a file after write/1.
-spec overflow(item(), Size :: non_neg_integer(), waiting()) -> waiting().
overflow(Item, Size, #waiting{unwritten = Unwritten} = W) ->
    W#waiting{unwritten = [{Size, Item} | Unwritten]}.

%% Whether anything is there that is not in memory: what comes after it must not overtake it.
-spec overflowing(waiting()) -> boolean().
overflowing(#waiting{unwritten = [], files = Files}) -> not queue:is_empty(Files);
overflowing(_) -> true.

%% Items that cannot be written are gone, and answered, in order.
-spec write(waiting()) -> {ok, Bytes :: non_neg_integer(), waiting()} |
                          {error, file:posix() | term(), Lost :: [item()], waiting()}.
write(#waiting{unwritten = []} = W) ->
    {ok, 0, W};
write(#waiting{unwritten = Unwritten} = W0) ->
    Bytes = iolist_to_binary([record(Pair) || Pair <- lists:reverse(Unwritten)]),
    case writable(W0#waiting{unwritten = []}) of
        {ok, #waiting{writer = Writer, files = Files0} = W} ->
            case file:write(Writer, Bytes) of
                ok ->
                    {{value, #file{bytes = Size, items = Items} = File}, Files} =
                        queue:out_r(Files0),
                    Written = File#file{bytes = Size + byte_size(Bytes),
                                        items = Items + length(Unwritten)},
                    {ok, byte_size(Bytes), full_file(Written, W#waiting{files = queue:in(Written,
                                                                                         Files)})};
                {error, Reason} ->
                    %% A part may be there: nothing more goes into this one.
                    {error, Reason, items(Unwritten), without_empty(close_writer(W))}
            end;
        {error, Reason} ->
            {error, Reason, items(Unwritten), W0#waiting{unwritten = []}}
    end.

items(Unwritten) -> [Item || {_, Item} <- lists:reverse(Unwritten)].

record(Pair) ->
    Binary = term_to_binary(Pair),
    [<<(byte_size(Binary)):32>>, Binary].

writable(#waiting{writer = undefined, directory = Dir, last = Last, files = Files} = W) ->
    Name = name(Dir, Last + 1),
    case filelib:ensure_dir(Name) of
        ok ->
            case file:open(Name, [raw, binary, write, exclusive]) of
                {ok, Writer} ->
                    {ok, W#waiting{writer = Writer, last = Last + 1,
                                   files = queue:in(#file{number = Last + 1}, Files)}};
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            Error
    end;
writable(W) ->
    {ok, W}.

full_file(#file{bytes = Bytes}, W) when Bytes >= ?FILE_BYTES -> close_writer(W);
full_file(_, W) -> W.

close_writer(#waiting{writer = undefined} = W) ->
    W;
close_writer(#waiting{writer = Writer} = W) ->
    _ = file:close(Writer),
    W#waiting{writer = undefined}.

%% A last file in which nothing is.
without_empty(#waiting{files = Files0, directory = Dir} = W) ->
    case queue:out_r(Files0) of
        {{value, #file{number = Number, items = 0}}, Files} ->
            _ = file:delete(name(Dir, Number)),
            W#waiting{files = Files};
        _ ->
            W
    end.

name(Dir, Number) -> filename:join(Dir, integer_to_list(Number)).

%% Brings some of what is in files to memory, if that is half empty. Lost of them cannot be read;
%% after any other error it can be tried again.
-spec refill(waiting()) -> {ok, waiting()} | {lost, pos_integer(), waiting()} |
                           {error, file:posix() | term(), waiting()}.
refill(#waiting{count = Count, bytes = Bytes, limits = {MaxCount, MaxBytes}} = W)
  when 2 * Count > MaxCount; 2 * Bytes > MaxBytes ->
    {ok, W};
refill(#waiting{files = Files} = W) ->
    case queue:peek(Files) of
        {value, File} -> refill(File, W);
        empty -> {ok, W}
    end.

%% The one that is being written and has been read is ended.
refill(#file{bytes = Bytes}, #waiting{reader = {_, Bytes, _}} = W) ->
    refill(drop_first(W));
refill(#file{number = Number} = File, #waiting{reader = undefined, directory = Dir} = W) ->
    case file:open(name(Dir, Number), [raw, binary, read]) of
        {ok, Fd} -> refill(File, W#waiting{reader = {Fd, 0, 0}});
        {error, enoent} -> lost(File, 0, W);
        {error, Reason} -> {error, Reason, W}
    end;
refill(#file{bytes = Bytes} = File, #waiting{reader = {Fd, Offset, Read}} = W) ->
    case read(Fd, Offset, Bytes - Offset) of
        {ok, [_ | _] = Pairs, Size} ->
            {ok, lists:foldl(fun ({ItemSize, Item}, Acc) -> in(Item, ItemSize, Acc) end,
                             W#waiting{reader = {Fd, Offset + Size, Read + length(Pairs)}}, Pairs)};
        damaged ->
            lost(File, Read, W);
        {error, Reason} ->
            {error, Reason, W}
    end.

lost(#file{items = Items}, Read, W) ->
    {lost, Items - Read, drop_first(W)}.

drop_first(#waiting{files = Files0, reader = Reader, directory = Dir, last = Last} = W0) ->
    {{value, #file{number = Number}}, Files} = queue:out(Files0),
    _ = [file:close(Fd) || {Fd, _, _} <- [Reader]],
    _ = file:delete(name(Dir, Number)),
    W = W0#waiting{files = Files, reader = undefined},
    case Number of
        Last -> close_writer(W);
        _ -> W
    end.

%% Whole records, one at least.
read(Fd, Offset, Left) ->
    case file:pread(Fd, Offset, min(Left, ?READ_BYTES)) of
        {ok, <<Bytes:32, Rest/binary>>} when byte_size(Rest) < Bytes, Bytes + 4 =< Left ->
            case file:pread(Fd, Offset, Bytes + 4) of
                {ok, Record} -> records(Record, [], 0);
                eof -> damaged;
                {error, _} = Error -> Error
            end;
        {ok, Binary} ->
            records(Binary, [], 0);
        eof ->
            damaged;
        {error, _} = Error ->
            Error
    end.

records(<<Bytes:32, Binary:Bytes/binary, Rest/binary>>, Pairs, Size) ->
    try binary_to_term(Binary) of
        {ItemSize, Item} -> records(Rest, [{ItemSize, Item} | Pairs], Size + 4 + Bytes)
    catch
        error:badarg -> so_far(Pairs, Size)
    end;
records(_, Pairs, Size) ->
    so_far(Pairs, Size).

so_far([], _) -> damaged;
so_far(Pairs, Size) -> {ok, lists:reverse(Pairs), Size}.

-spec close(waiting()) -> ok.
close(#waiting{writer = Writer, reader = Reader, directory = Dir}) ->
    _ = [file:close(Fd) || Fd <- [Writer], Fd =/= undefined],
    _ = [file:close(Fd) || {Fd, _, _} <- [Reader]],
    _ = file:del_dir_r(Dir),
    ok.
