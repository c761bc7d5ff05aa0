%% SPDX-License-Identifier: MPL-2.0

%% What a later version of the plugin has left, in a member's files or in its log: it is refused in words,
%% and left alone.
%%
%% In whoever starts a member, in the Raft server that meets such an entry, and in who looks after those that
%% run. It only looks.
-module(rabbit_delay_newer).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([refuse/2, refused/2, words/3, in_files/2, look_at_running/0]).

-define(QUERY_MS, 5000).
%% How long members are looked at: those that do not answer keep nothing else waiting.
-define(LOOK_MS, 10000).

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

%% A member of a group of several takes what it is sent, and applies nothing from where a later version is in
%% effect on: Ra says nothing of that. The log says it once.
-spec look_at_running() -> ok.
look_at_running() ->
    Ours = rabbit_delay_machine:version(),
    IsMixed = lists:any(fun (Answer) -> is_tuple(Answer) andalso element(1, Answer) =:= ok
                                            andalso element(2, Answer) > Ours
                        end, erpc:multicall(nodes(), rabbit_delay_machine, version, [], ?QUERY_MS)),
    Until = erlang:monotonic_time(millisecond) + ?LOOK_MS,
    lists:foreach(fun ({XName, {Id, _}}) ->
                          erlang:monotonic_time(millisecond) < Until
                              andalso rabbit_delay_registry:group_size(XName) > 1
                              andalso look_at(XName, Id, IsMixed, Ours)
                  end, rabbit_delay_table:members()).

look_at(XName, Id, IsMixed, Ours) ->
    case max(in_effect(Id), in_effect(IsMixed andalso rabbit_delay_registry:leader_of(XName))) of
        Needed when Needed > Ours ->
            rabbit_delay_table:needs(XName, Needed) andalso say_needs(XName, Needed, Ours);
        _ ->
            ok
    end.

%% The leader is asked, too: what is not in its log any more it sends as a snapshot, which is not taken if it is of a
%% later version, and such a member hears of nothing.
in_effect({_, Node} = Id) ->
    %% On 3.10 what is asked is the server's state, which has a store of its node in it.
    try erpc:call(Node, rabbit_delay_broker, raft_overview, [Id, ?QUERY_MS], 2 * ?QUERY_MS) of
        {ok, Overview} -> effective(Overview);
        _ -> 0
    catch
        error:_ -> 0
    end;
in_effect(_) ->
    0.

effective(#{effective_machine_version := Version}) -> Version.

say_needs(XName, Needed, Ours) ->
    ?LOG_ERROR("delayed messages of ~ts: ~ts. This node's member takes what it is sent, and goes on when it knows that; "
               "others go on",
               [rabbit_delay_text:rs(XName),
                words("their Raft log", "machine ~b, this one's is ~b", [Needed, Ours])], ?LOG_DOMAIN).

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
