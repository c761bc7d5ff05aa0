%% SPDX-License-Identifier: MPL-2.0

%% Redrives that nobody needs to wait for: each is a rabbit_delay_redrive whose watcher is the process of
%% this module, and which ends when that ends. A node runs ?RUNNING at a time, and one for a queue. What
%% became of the last ?KEPT is remembered until the node stops; messages are where they were, or where
%% they were moved to, whatever is forgotten.
%%
%% Who may ask is for the caller to say; what a redrive may publish is in its options, so that it is
%% done with the permissions of who asked for it.
%%
%% A redrive runs on the node where it was asked for. all/0 and find/3 ask all nodes that are connected.
-module(rabbit_delay_redrive_jobs).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([start_link/0, start/3, all/0, of_queue/2, find/3, stop/2, json/1]).
-export([local/0, local_stop/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([job/0]).

%% state: starting (nobody sees it), running, stopping, ended, failed. Times are ms since the epoch.
-type job() :: #{id := binary(), node := node(), vhost := rabbit_types:vhost(), queue := binary(),
                 user := rabbit_types:username(), request := map(), state := atom(),
                 started := integer(), ended := integer() | undefined,
                 progress := rabbit_delay_redrive:result() | undefined, reason := binary() | undefined}.

-define(RUNNING, 4).
-define(KEPT, 100).
%% Of those, so many bytes, of what was asked for and what became of it.
-define(KEPT_BYTES, 4194304).
%% Of what was redriven, so many targets are remembered, those that got most.
-define(TARGETS, 100).
%% Topologies are large, nodes are far.
-define(START_MS, 60000).
-define(ASK_MS, 5000).

-record(state, {jobs = #{} :: #{Id :: binary() => job()},
                %% of those that run
                pids = #{} :: #{pid() => {Id :: binary(), reference()}},
                %% who waits until they have begun
                waiting = #{} :: #{Id :: binary() => gen_server:from()},
                %% those that have ended, the last one first
                ended = [] :: [Id :: binary()]}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Request: what was asked for, to be shown.
-spec start(rabbit_delay_redrive:options(), rabbit_types:username(), Request :: map()) ->
          {ok, job()} | {error, {conflict | busy, Why :: binary()}} | rabbit_delay_browse:error().
start(#{vhost := VHost, queue := Queue} = Options, User, Request) ->
    case [Id || #{id := Id} = Job <- of_queue(VHost, Queue), is_under_way(Job)] of
        [] ->
            try
                gen_server:call(?MODULE, {start, Options, User, Request}, ?START_MS)
            catch
                exit:{_, {gen_server, call, _}} ->
                    {error, {unavailable, <<"the redrive has not begun yet, or could not: see whether it is "
                                            "listed">>}}
            end;
        [Id | _] ->
            conflict(Id)
    end.

conflict(Id) ->
    {error, {conflict, <<"the queue is being redriven already, by ", Id/binary>>}}.

is_under_way(#{state := State}) -> State =/= ended andalso State =/= failed.

%% On all nodes that answer, the last one that began first.
-spec all() -> [job()].
all() ->
    Jobs = [Job || {_, {ok, Local}} <- everywhere(local, []), Job <- Local, maps:get(state, Job) =/= starting],
    lists:sort(fun (#{started := A, id := IdA}, #{started := B, id := IdB}) -> {A, IdA} >= {B, IdB} end,
               Jobs).

-spec of_queue(rabbit_types:vhost(), Queue :: binary()) -> [job()].
of_queue(VHost, Queue) ->
    [Job || #{vhost := V, queue := Q} = Job <- all(), V =:= VHost, Q =:= Queue].

-spec find(rabbit_types:vhost(), Queue :: binary(), Id :: binary()) ->
          {ok, job()} | {error, {not_found, Why :: binary()}}.
find(VHost, Queue, Id) ->
    case [Job || #{id := I} = Job <- of_queue(VHost, Queue), I =:= Id] of
        [Job] -> {ok, Job};
        [] -> {error, {not_found, <<"there is no such redrive, or it was forgotten since">>}}
    end.

%% Asks a job to stop. By: who wants that, for the log and its result.
-spec stop(job(), By :: binary()) -> {ok, job()} | {error, {unavailable, Why :: binary()}}.
stop(#{id := Id, node := Node} = Job, By) ->
    case everywhere([Node], local_stop, [Id, By]) of
        [{_, {ok, {ok, _} = Stopping}}] -> Stopping;
        [{_, {ok, gone}}] -> {ok, Job};
        _ -> {error, {unavailable, <<"the redrive's node does not answer">>}}
    end.

everywhere(Function, Args) ->
    everywhere([node() | nodes()], Function, Args).

everywhere(Nodes, Function, Args) ->
    lists:zip(Nodes, erpc:multicall(Nodes, ?MODULE, Function, Args, ?ASK_MS)).

-spec local() -> [job()].
local() -> gen_server:call(?MODULE, list, ?ASK_MS).

-spec local_stop(Id :: binary(), By :: binary()) -> {ok, job()} | gone.
local_stop(Id, By) -> gen_server:call(?MODULE, {stop, Id, By}, ?ASK_MS).

%% A job for JSON.
-spec json(job()) -> #{atom() => term()}.
json(#{node := Node, progress := Progress, reason := Reason, ended := Ended} = Job) ->
    Null = fun (undefined) -> null; (Value) -> Value end,
    Job#{version => 1, node := atom_to_binary(Node, utf8), reason := Null(Reason), ended := Null(Ended),
         progress := case Progress of
                         undefined -> null;
                         _ -> rabbit_delay_redrive:json(Progress)
                     end}.

%% ------------------------------------------------------------------------------- the process

-spec init([]) -> {ok, #state{}}.
init([]) ->
    {ok, #state{}}.

-spec handle_call(term(), gen_server:from(), #state{}) ->
          {reply, term(), #state{}} | {noreply, #state{}}.
handle_call(list, _, #state{jobs = Jobs} = S) ->
    {reply, maps:values(Jobs), S};
handle_call({start, #{vhost := VHost, queue := Queue} = Options, User, Request}, From,
            #state{jobs = Jobs, pids = Pids, waiting = Waiting} = S) ->
    case [Id || #{id := Id, vhost := V, queue := Q} = Job <- maps:values(Jobs), V =:= VHost,
                Q =:= Queue, is_under_way(Job)] of
        [Id | _] ->
            {reply, conflict(Id), S};
        [] when map_size(Pids) >= ?RUNNING ->
            {reply, {error, {busy, <<"this node runs as many redrives as it may at a time; try again when "
                                     "one has ended">>}}, S};
        [] ->
            Id = string:lowercase(binary:encode_hex(crypto:strong_rand_bytes(8))),
            Pid = rabbit_delay_redrive:start(Options, self()),
            Job = #{id => Id, node => node(), vhost => VHost, queue => Queue, user => User,
                    request => Request, state => starting, started => erlang:system_time(millisecond),
                    ended => undefined, progress => undefined, reason => undefined},
            {noreply, S#state{jobs = Jobs#{Id => Job}, waiting = Waiting#{Id => From},
                              pids = Pids#{Pid => {Id, monitor(process, Pid)}}}}
    end;
handle_call({stop, Id, By}, _, #state{jobs = Jobs, pids = Pids} = S) ->
    case [{Pid, Job} || {Pid, {I, _}} <- maps:to_list(Pids), I =:= Id, #{I := Job} <- [Jobs]] of
        [{Pid, #{state := running, vhost := VHost, queue := Queue} = Job0}] ->
            ?LOG_INFO("dead letters of ~ts: redrive ~ts is to be stopped, asked for by ~ts",
                      [rabbit_delay_text:rs(rabbit_misc:r(VHost, queue, Queue)), Id, By], ?LOG_DOMAIN),
            ok = rabbit_delay_redrive:stop(Pid, <<"it was stopped by ", By/binary>>),
            Job = Job0#{state := stopping},
            {reply, {ok, Job}, S#state{jobs = Jobs#{Id := Job}}};
        [{_, Job}] ->
            {reply, {ok, Job}, S};
        [] ->
            {reply, gone, S}
    end.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_, S) ->
    {noreply, S}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({redrive, Pid, What, Told}, #state{pids = Pids} = S) ->
    case Pids of
        #{Pid := {Id, _}} -> {noreply, told(What, Told, Pid, Id, S)};
        _ -> {noreply, S}
    end;
handle_info({'DOWN', _, process, Pid, Reason}, #state{pids = Pids} = S) ->
    case Pids of
        #{Pid := {Id, _}} ->
            Why = <<"the redrive failed: ", (rabbit_delay_text:reason(Reason))/binary>>,
            {noreply, ended({error, {unavailable, Why}}, Pid, Id, S)};
        _ ->
            {noreply, S}
    end;
handle_info(_, S) ->
    {noreply, S}.

told(accepted, Since, _, Id, #state{jobs = Jobs, waiting = Waiting} = S) ->
    #{Id := Job0} = Jobs,
    Job = Job0#{state := running, started := Since},
    {From, Others} = maps:take(Id, Waiting),
    gen_server:reply(From, {ok, Job}),
    S#state{jobs = Jobs#{Id := Job}, waiting = Others};
told(progress, Counts, _, Id, #state{jobs = Jobs} = S) ->
    #{Id := Job} = Jobs,
    S#state{jobs = Jobs#{Id := Job#{progress := bounded(Counts)}}};
told(done, Result, Pid, Id, S) ->
    ended(Result, Pid, Id, S);
told(_, _, _, _, S) ->
    S.

%% What was refused before it began is not remembered.
ended(Result, Pid, Id, #state{jobs = Jobs, pids = Pids, waiting = Waiting} = S0) ->
    {{Id, Monitor}, Running} = maps:take(Pid, Pids),
    true = demonitor(Monitor, [flush]),
    S = S0#state{pids = Running},
    case Waiting of
        #{Id := From} ->
            gen_server:reply(From, Result),
            S#state{jobs = maps:remove(Id, Jobs), waiting = maps:remove(Id, Waiting)};
        _ ->
            #{Id := Job} = Jobs,
            remember(became(Result, Job#{ended := erlang:system_time(millisecond)}), S)
    end.

became({ok, Counts}, Job) ->
    Job#{state := ended, progress := bounded(Counts)};
became({error, {_, Why}}, #{id := Id, vhost := VHost, queue := Queue} = Job) ->
    ?LOG_WARNING("dead letters of ~ts: redrive ~ts: ~ts",
                 [rabbit_delay_text:rs(rabbit_misc:r(VHost, queue, Queue)), Id, Why], ?LOG_DOMAIN),
    Job#{state := failed, reason := Why}.

remember(#{id := Id} = Job, #state{jobs = Jobs0, ended = Ended} = S) ->
    Jobs = Jobs0#{Id := Job},
    {Kept, _} = lists:foldl(fun (I, {Acc, Bytes0}) ->
                                    case Bytes0 + erlang:external_size(maps:get(I, Jobs)) of
                                        Bytes when Acc =:= []; Bytes =< ?KEPT_BYTES -> {[I | Acc], Bytes};
                                        Bytes -> {Acc, Bytes}
                                    end
                            end, {[], 0}, lists:sublist([Id | Ended], ?KEPT)),
    S#state{jobs = maps:without([Id | Ended] -- Kept, Jobs), ended = lists:reverse(Kept)}.

bounded(#{targets := Targets} = Counts) when map_size(Targets) > ?TARGETS ->
    Most = lists:sublist(lists:reverse(lists:keysort(2, maps:to_list(Targets))), ?TARGETS),
    Counts#{targets := maps:from_list(Most)};
bounded(Counts) ->
    Counts.
