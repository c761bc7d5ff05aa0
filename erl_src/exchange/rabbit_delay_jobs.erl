%% SPDX-License-Identifier: MPL-2.0

%% What is done, and is to be done, for which exchange: one job at a time for each, in the order asked
%% for, and only so many at once that nobody waits for. Data only, of rabbit_delay_registry's process;
%% who calls tells the time (ms, monotonic) and runs the jobs.
%%
%% Whoever asks for the same as the one that asked before has the same answer, and every one that asks
%% has one. An exchange whose start fails is tried again after a pause, which doubles while it goes on.
-module(rabbit_delay_jobs).

-export([new/0, ask/5, later/2, next/2, adopt/4, current/2, again/2, ended/3, is_under_way/2]).
-export([failed/2, succeeded/2, is_failing/2]).

-export_type([jobs/0, what/0]).

-type what() :: ensure | delete | put_aside.
-type ms() :: integer().
%% none: nobody waits for it.
-type from() :: gen_server:from() | none.

%% How many exchanges are started at once that nobody waits for.
-define(BACKGROUND, 8).
%% The pauses between attempts to start an exchange's processes again.
-define(RESTART_MS, 1000).
-define(MAX_RESTART_MS, 30000).

-record(job, {what :: what(),
              began :: ms(),
              %% nobody asked for it
              background = false :: boolean(),
              froms = [] :: [from()],
              %% what is to be done next, in this order
              next = [] :: [{what(), [from()]}]}).

-record(jobs, {under_way = #{} :: #{rabbit_exchange:name() => #job{}},
               %% those to be started that nobody waits for
               backlog = queue:new() :: queue:queue(rabbit_exchange:name()),
               queued = #{} :: #{rabbit_exchange:name() => []},
               background = 0 :: non_neg_integer(),
               %% the present pause of each exchange that cannot be started, ms
               pauses = #{} :: #{rabbit_exchange:name() => pos_integer()}}).

-opaque jobs() :: #jobs{}.

-spec new() -> jobs().
new() -> #jobs{}.

%% Somebody waits for it. It is to be started now, or will be when others have ended.
-spec ask(what(), rabbit_exchange:name(), from(), Now :: ms(), jobs()) -> {start | wait, jobs()}.
ask(What, XName, From, Now, #jobs{under_way = UnderWay} = J) ->
    case UnderWay of
        #{XName := #job{what = What, froms = Froms, next = []} = Job} ->
            {wait, J#jobs{under_way = UnderWay#{XName := Job#job{froms = [From | Froms]}}}};
        #{XName := #job{next = Next} = Job} ->
            {wait, J#jobs{under_way = UnderWay#{XName := Job#job{next = add(What, From, Next)}}}};
        _ ->
            {start, start(XName, #job{what = What, began = Now, froms = [From]}, J)}
    end.

%% Whoever asks for the same as the one before has the same answer.
add(What, From, []) -> [{What, [From]}];
add(What, From, [{What, Froms}]) -> [{What, [From | Froms]}];
add(What, From, [First | Rest]) -> [First | add(What, From, Rest)].

start(XName, Job, #jobs{under_way = UnderWay} = J) ->
    J#jobs{under_way = UnderWay#{XName => Job}}.

%% It is under way already, and nobody is known to wait for it.
-spec adopt(what(), rabbit_exchange:name(), Now :: ms(), jobs()) -> jobs().
adopt(What, XName, Now, J) ->
    start(XName, #job{what = What, began = Now}, J).

%% It is to be started, and nobody waits for that.
-spec later(rabbit_exchange:name(), jobs()) -> jobs().
later(XName, #jobs{queued = Queued, backlog = Backlog} = J) ->
    case is_map_key(XName, Queued) orelse is_under_way(XName, J) of
        true -> J;
        false -> J#jobs{queued = Queued#{XName => []}, backlog = queue:in(XName, Backlog)}
    end.

%% The next of these, if it is to be started now.
-spec next(Now :: ms(), jobs()) -> {start, rabbit_exchange:name(), jobs()} | {none, jobs()}.
next(_, #jobs{background = N} = J) when N >= ?BACKGROUND ->
    {none, J};
next(Now, #jobs{backlog = Backlog0, queued = Queued, background = N} = J0) ->
    case queue:out(Backlog0) of
        {{value, XName}, Backlog} ->
            J = J0#jobs{backlog = Backlog, queued = maps:remove(XName, Queued)},
            case is_under_way(XName, J) of
                true ->
                    next(Now, J);
                false ->
                    {start, XName, start(XName, #job{what = ensure, began = Now, background = true},
                                         J#jobs{background = N + 1})}
            end;
        {empty, _} ->
            {none, J0}
    end.

-spec is_under_way(rabbit_exchange:name(), jobs()) -> boolean().
is_under_way(XName, #jobs{under_way = UnderWay}) -> is_map_key(XName, UnderWay).

%% What is under way, and since when somebody has wanted it.
-spec current(rabbit_exchange:name(), jobs()) -> {what(), Began :: ms()}.
current(XName, #jobs{under_way = UnderWay}) ->
    #{XName := #job{what = What, began = Began}} = UnderWay,
    {What, Began}.

%% It is done once more, for who waits for it.
-spec again(rabbit_exchange:name(), jobs()) -> jobs().
again(XName, #jobs{under_way = UnderWay} = J) ->
    #{XName := Job} = UnderWay,
    start(XName, Job#job{background = false}, less_background(Job, J)).

%% It has ended: who is to be told, and what is to be started in its place.
-spec ended(rabbit_exchange:name(), Now :: ms(), jobs()) ->
          {[from()], {start, what()} | nothing, jobs()}.
ended(XName, Now, #jobs{under_way = UnderWay} = J0) ->
    {#job{froms = Froms, next = Next} = Job, Rest} = maps:take(XName, UnderWay),
    J = less_background(Job, J0#jobs{under_way = Rest}),
    case Next of
        [] ->
            {Froms, nothing, J};
        [{Then, Waiting} | Others] ->
            {Froms, {start, Then},
             start(XName, #job{what = Then, began = Now, froms = Waiting, next = Others}, J)}
    end.

less_background(#job{background = true}, #jobs{background = N} = J) -> J#jobs{background = N - 1};
less_background(_, J) -> J.

%% ---------------------------------------------------------------------------------- pauses

%% The exchange's processes could not be started, or have ended: how long to wait.
-spec failed(rabbit_exchange:name(), jobs()) -> {PauseMs :: pos_integer(), jobs()}.
failed(XName, #jobs{pauses = Pauses} = J) ->
    Pause = maps:get(XName, Pauses, ?RESTART_MS),
    {Pause, J#jobs{pauses = Pauses#{XName => min(2 * Pause, ?MAX_RESTART_MS)}}}.

%% They run, or are not to.
-spec succeeded(rabbit_exchange:name(), jobs()) -> jobs().
succeeded(XName, #jobs{pauses = Pauses} = J) ->
    J#jobs{pauses = maps:remove(XName, Pauses)}.

-spec is_failing(rabbit_exchange:name(), jobs()) -> boolean().
is_failing(XName, #jobs{pauses = Pauses}) -> is_map_key(XName, Pauses).
