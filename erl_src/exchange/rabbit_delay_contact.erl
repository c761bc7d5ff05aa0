%% SPDX-License-Identifier: MPL-2.0

%% The first contact with a quorum queue: who leads it.
%%
%% The broker's client of one asks the server that led it when that was last known, and waits for its answer
%% for as long as the net tick takes, a minute: also if its node is cut off and another one leads by now. So
%% all its servers are asked before, and the client is begun when one says that it leads. Nothing has been
%% sent to the queue until then.
%%
%% In a queue's publisher, which waits here.
-module(rabbit_delay_contact).

-export([find_leader/1]).

-define(WAIT_MS, 15000).
%% Between two rounds: at first, and at the longest, as there may be many queues without a leader.
-define(AGAIN_MS, 50).
-define(LONGEST_AGAIN_MS, 1000).

%% The queue as its client is to be begun with it; no_leader if none has been found for so long. Others than
%% quorum queues are not looked at.
-spec find_leader(rabbit_delay_broker:queue()) -> {ok, rabbit_delay_broker:queue()} | no_leader.
find_leader(Q) ->
    case rabbit_delay_broker:raft_servers(Q) of
        [] -> {ok, Q};
        Ids -> find_leader(Q, Ids, #{}, ?AGAIN_MS, now_ms() + ?WAIT_MS)
    end.

now_ms() -> erlang:monotonic_time(millisecond).

%% Those that are not being asked are asked; what they say before the next round counts.
find_leader(Q, Ids, Asked0, Pause, Deadline) ->
    Known = [Id || {Id, _} <- maps:values(Asked0)],
    Asked = lists:foldl(fun ask/2, Asked0, reachable(Ids) -- Known),
    Now = now_ms(),
    case answers(Q, Asked, min(Now + Pause, Deadline)) of
        {ok, Led, Rest} ->
            ok = forget(Rest),
            {ok, Led};
        {unknown, Rest} when Now < Deadline ->
            find_leader(Q, Ids, Rest, min(2 * Pause, ?LONGEST_AGAIN_MS), Deadline);
        {unknown, Rest} ->
            ok = forget(Rest),
            no_leader
    end.

answers(Q, Asked, Until) ->
    receive
        {'DOWN', Ref, process, _, Answer} when is_map_key(Ref, Asked) ->
            {{Id, _}, Rest} = maps:take(Ref, Asked),
            case Answer =:= {pong, leader} andalso rabbit_delay_broker:led_by(Q, Id) of
                {ok, Led} -> {ok, Led, Rest};
                _ -> answers(Q, Rest, Until)
            end
    after max(0, Until - now_ms()) ->
            {unknown, Asked}
    end.

%% Nobody is to wait for a connection that cannot be had.
reachable(Ids) ->
    Nodes = [node() | nodes()],
    [Id || {_, Node} = Id <- Ids, lists:member(Node, Nodes)].

-dialyzer({nowarn_function, ask/2}).
ask(Id, Asked) ->
    {Pid, Ref} = spawn_monitor(fun () -> exit(ra:ping(Id, ?WAIT_MS)) end),
    Asked#{Ref => {Id, Pid}}.

forget(Asked) ->
    maps:foreach(fun (Ref, {_, Pid}) ->
                         true = demonitor(Ref, [flush]),
                         exit(Pid, kill)
                 end, Asked).
