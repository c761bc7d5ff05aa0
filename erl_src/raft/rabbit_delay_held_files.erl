%% SPDX-License-Identifier: MPL-2.0

%% Files of a member that somebody reads for a while: hard links to them in a directory of their own, below
%% the member's, so that they can be opened one after the other, whatever becomes of their first names.
%%
%%   held/<run>.<random>/   <run> is that of the VM, so that a later one knows what an earlier one has left
%%
%% They go when the process that they are held for has ended: another process waits for that.
-module(rabbit_delay_held_files).

-include_lib("kernel/include/file.hrl").

-export([hold/3, whole/3, dir/2, sweep/1]).

-export_type([held/0]).

%% The name of their directory, and their own names and sizes, in the order given.
-type held() :: {Name :: binary(), [{binary(), non_neg_integer()}]}.

-define(DIR, "held").
-define(RANDOM_BYTES, 8).
-define(LINGER_MS, 30000).

%% Those of these files that are there.
-spec hold(file:filename_all(), [file:filename_all()], pid()) -> {ok, held()} | {error, term()}.
hold(MemberDir, Files, For) ->
    begin_hold(MemberDir, For, fun (Dir) ->
                                       {ok, [One || File <- Files, {ok, One} <- [linked(File, Dir)]]}
                               end).

%% All of these files or none; where the file system has no hard links they are copied.
-spec whole(file:filename_all(), [file:filename_all()], pid()) -> {ok, held()} | {error, term()}.
whole(MemberDir, Files, For) ->
    begin_hold(MemberDir, For, fun (Dir) -> all(Files, Dir, []) end).

begin_hold(MemberDir, For, Fill) ->
    Name = iolist_to_binary([run(), ".", binary:encode_hex(crypto:strong_rand_bytes(?RANDOM_BYTES))]),
    Dir = dir(MemberDir, Name),
    %% Not more than that: a member's directory is not made again when it has been deleted.
    _ = file:make_dir(filename:dirname(Dir)),
    case file:make_dir(Dir) of
        ok ->
            Ending = end_with(For, Dir),
            case Fill(Dir) of
                {ok, Files} ->
                    {ok, {Name, Files}};
                Error ->
                    Ending ! stop,
                    Error
            end;
        Error ->
            Error
    end.

all([], _, Held) ->
    {ok, lists:reverse(Held)};
all([File | Files], Dir, Held) ->
    case link_or_copy(File, Dir) of
        {ok, One} -> all(Files, Dir, [One | Held]);
        Error -> Error
    end.

link_or_copy(File, Dir) ->
    case linked(File, Dir) of
        {error, Reason} when Reason =:= exdev; Reason =:= eperm; Reason =:= emlink; Reason =:= enotsup;
                             Reason =:= eopnotsupp ->
            To = filename:join(Dir, filename:basename(File)),
            case file:copy(File, To) of
                {ok, _} -> sized(To);
                Error -> Error
            end;
        Result ->
            Result
    end.

linked(File, Dir) ->
    To = filename:join(Dir, filename:basename(File)),
    case file:make_link(File, To) of
        ok -> sized(To);
        Error -> Error
    end.

sized(File) ->
    case file:read_file_info(File, [raw]) of
        {ok, #file_info{size = Size}} -> {ok, {iolist_to_binary(filename:basename(File)), Size}};
        Error -> Error
    end.

%% A receiver may have the last chunk before it, and not have got round to it, when its sender ends.
end_with(For, Dir) ->
    spawn(fun () ->
                  Ref = monitor(process, For),
                  receive
                      {'DOWN', Ref, process, _, _} when node(For) =/= node() -> timer:sleep(?LINGER_MS);
                      {'DOWN', Ref, process, _, _} -> ok;
                      stop -> ok
                  end,
                  delete(Dir)
          end).

delete(Dir) ->
    _ = file:del_dir_r(Dir),
    %% The last one does.
    _ = file:del_dir(filename:dirname(Dir)),
    ok.

-spec dir(file:filename_all(), Name :: binary()) -> file:filename_all().
dir(MemberDir, Name) -> filename:join([MemberDir, ?DIR, Name]).

%% Deletes what an earlier run of the VM has left in a member's directory.
-spec sweep(file:filename_all()) -> ok.
sweep(MemberDir) ->
    case file:list_dir(filename:join(MemberDir, ?DIR)) of
        {ok, Names} ->
            Ours = run() ++ ".",
            lists:foreach(fun (Name) -> delete(filename:join([MemberDir, ?DIR, Name])) end,
                          [Name || Name <- Names, not lists:prefix(Ours, Name)]);
        {error, _} ->
            ok
    end.

run() -> lists:concat([os:getpid(), ".", erlang:system_info(creation)]).
