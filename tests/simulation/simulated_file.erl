%% SPDX-License-Identifier: MPL-2.0

%% Files as the simulated plugin has them. The store's are on disk; what is written as a whole beside them is in memory,
%% as the VM gives each call to do with a file to another thread, which costs far more than what is done. Nothing is
%% synced: no power fails here.
-module(simulated_file).

-export([open/2, close/1, position/2, pread/3, pwrite/3, sync/1, write_file/2, read_file/1, rename/2, delete/1,
         list_dir/1]).
-export([ensure_dir/1, forget/1, removes/0, remove/1]).

open(Name, Modes) ->
    case lists:member(directory, Modes) of
        true -> {ok, directory};
        false -> prim_file:open(Name, Modes)
    end.

close(directory) -> ok;
close(Fd) -> prim_file:close(Fd).

position(Fd, At) -> prim_file:position(Fd, At).

pread(Fd, At, Length) -> prim_file:pread(Fd, At, Length).

pwrite(Fd, At, Data) -> prim_file:pwrite(Fd, At, Data).

sync(_) -> ok.

list_dir(Dir) -> prim_file:list_dir(Dir).

write_file(Name, Bytes) ->
    _ = erlang:put({?MODULE, Name}, iolist_to_binary(Bytes)),
    ok.

read_file(Name) ->
    case erlang:get({?MODULE, Name}) of
        undefined -> {error, enoent};
        Bytes -> {ok, Bytes}
    end.

rename(From, To) ->
    case erlang:erase({?MODULE, From}) of
        undefined -> prim_file:rename(From, To);
        Bytes -> write_file(To, Bytes)
    end.

delete(Name) ->
    case erlang:erase({?MODULE, Name}) of
        undefined -> prim_file:delete(Name);
        _ -> ok
    end.

%% ------------------------------------------------------------------------------- the simulation's own

%% Of a file.
ensure_dir(File) ->
    Dir = filename:dirname(File),
    case prim_file:make_dir(Dir) of
        {error, enoent} ->
            ok = ensure_dir(Dir),
            ensure_dir(File);
        Made when Made =:= ok; Made =:= {error, eexist} ->
            ok
    end.

%% A directory is out of the way, and is removed when the seed is over.
forget(Dir) ->
    N = case erlang:get({?MODULE, forgotten}) of
            undefined -> 0;
            Before -> Before
        end,
    _ = erlang:put({?MODULE, forgotten}, N + 1),
    prim_file:rename(Dir, lists:concat([Dir, ".forgotten.", N])).

%% A program beside the VM removes directories from now on.
removes() ->
    case whereis(?MODULE) of
        undefined -> true = register(?MODULE, open_port({spawn, "/bin/sh"}, [out])), ok;
        _ -> ok
    end.

remove(Dir) ->
    true = port_command(?MODULE, ["rm -rf '", Dir, "'\n"]),
    ok.
