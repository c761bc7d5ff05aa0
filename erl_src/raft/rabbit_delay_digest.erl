%% SPDX-License-Identifier: MPL-2.0

%% What a member of an exchange's group holds, so that it can be compared with what others do: members that
%% have applied the log up to the same index hold the same.
%%
%% A digest is of all that the machine's state has: of the messages, which the store keeps up to date with
%% each change (dw_digest.h), and of the rest, which a snapshot keeps beside the store's files. Members of
%% different versions compare it. So neither part ever changes; a part of the state that a later version adds
%% is to be hashed only where it differs from what a state without it means.
%%
%% A member at work is seldom at an index at which others are looked at, too. So it is looked at many times:
%% each is one query of the member's Raft server, of the same small work however many messages are pending,
%% and comes between two entries. What has been seen is then compared where it is of one index.
-module(rabbit_delay_digest).

-export([of_state/1, seen_here/2]).

-export_type([held/0, seen/0]).

%% How many messages are pending, and the digest: 8 bytes of these and 4 of the rest.
-type held() :: {Messages :: non_neg_integer(), <<_:96>>}.
%% By the index that had been applied.
-type seen() :: #{ra:index() => held()}.

%% Less than what another node that asks waits for.
-define(QUERY_MS, 4000).
%% From one look to the next.
-define(LOOK_MS, 3).

%% `none' while a log is replayed into a store that is ahead of it, or if the store is closed.
-spec of_state(rabbit_delay_machine:state()) -> {ra:index(), held()} | none.
of_state(State) ->
    #{seen := Seen, sessions := Sessions, paused := Paused} = Kept = rabbit_delay_machine:to_snapshot(State),
    case rabbit_delay_store:stat(rabbit_delay_machine:store(State)) of
        #{applied := Seen, pending := Messages, digest := Digest} ->
            Rest = erlang:phash2({Sessions, Paused, maps:get(opened, Kept, [])}, 1 bsl 32),
            {Seen, {Messages, <<Digest:64, Rest:32>>}};
        _ ->
            none
    end.

%% What the one of these members that is on this node holds, time and again until so many ms have passed; at
%% least once. Another node asks.
-spec seen_here([ra:server_id()], ForMs :: non_neg_integer()) -> {ok, seen()} | {error, not_started | unknown}.
seen_here(Ids, ForMs) ->
    case [Id || {Name, Node} = Id <- Ids, Node =:= node(), whereis(Name) =/= undefined] of
        [Id | _] -> look(Id, erlang:monotonic_time(millisecond) + ForMs, #{});
        [] -> {error, not_started}
    end.

look(Id, Until, Seen) ->
    case ra:local_query(Id, fun ?MODULE:of_state/1, ?QUERY_MS) of
        {ok, {_, {Index, Held}}, _} -> look_again(Id, Until, Seen#{Index => Held});
        {ok, {_, none}, _} -> look_again(Id, Until, Seen);
        _ -> {error, unknown}
    end.

look_again(Id, Until, Seen) ->
    case erlang:monotonic_time(millisecond) < Until of
        true ->
            receive after ?LOOK_MS -> ok end,
            look(Id, Until, Seen);
        false ->
            {ok, Seen}
    end.
