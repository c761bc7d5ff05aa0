%% SPDX-License-Identifier: MPL-2.0

%% What a later version of the plugin has left, in a member's files or in its log: it is refused in words,
%% and left alone.
%%
%% In whoever starts a member, and in the Raft server that meets such an entry. It only looks.
-module(rabbit_delay_newer).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([refuse/2, refused/2, words/3, in_files/2]).

%% Has the exchange's member stopped for good, the exchange refused in these words, and the log say
%% so, once.
-spec refuse(rabbit_exchange:name(), Why :: string()) -> ok.
refuse(XName, Why) ->
    ?LOG_ERROR("delayed messages of ~ts are unavailable: ~ts", [rabbit_delay_text:rs(XName), Why],
               ?LOG_DOMAIN),
    rabbit_delay_registry:refuse(XName, Why).

-spec refused(rabbit_exchange:name(), Why :: string()) -> {error, refused}.
refused(XName, Why) ->
    ok = refuse(XName, Why),
    {error, refused}.

-spec words(What :: iodata(), io:format(), [term()]) -> string().
words(What, Format, Args) ->
    lists:flatten(
      io_lib:format("~ts is of a later version of the plugin (" ++ Format ++ "). Nothing of it is "
                    "lost: install that version again, or a later one", [What | Args])).

%% What of a member's files is, in words.
-spec in_files(ServerDir :: file:filename(), StoreDir :: file:filename()) -> none | string().
in_files(ServerDir, StoreDir) ->
    Snapshots = filelib:wildcard(filename:join([ServerDir, "snapshots", "*"])),
    first([fun () -> in_store(Dir) end || Dir <- [StoreDir | Snapshots]] ++
              [fun () -> in_snapshot(Dir) end || Dir <- Snapshots]).

first([]) ->
    none;
first([Look | Rest]) ->
    case Look() of
        none -> first(Rest);
        Why -> Why
    end.

in_store(Dir) ->
    case rabbit_delay_system:has_library() andalso rabbit_delay_store:peek_applied(Dir) of
        {error, eversion} ->
            words("the manifest in " ++ filename:basename(Dir), "this one reads version 1", []);
        _ ->
            none
    end.

in_snapshot(Dir) ->
    Ours = #{file => rabbit_delay_snapshot:version(), machine => rabbit_delay_machine:version(),
             state => rabbit_delay_machine:snapshot_version()},
    case [{What, Version} || {What, Version} <- maps:to_list(rabbit_delay_snapshot:versions(Dir)),
                             Version > map_get(What, Ours)] of
        [] ->
            none;
        [{machine, Version} | _] ->
            words("its snapshot", "machine ~b, this one's is ~b", [Version, map_get(machine, Ours)]);
        [{What, Version} | _] ->
            words("its snapshot", "~s ~b, this one reads ~b", [What, Version, map_get(What, Ours)])
    end.
