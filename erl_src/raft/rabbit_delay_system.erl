%% SPDX-License-Identifier: MPL-2.0

%% Keeps the plugin's Ra system running.
%%
%% The system is linked to this process rather than to Ra's own supervisor, which would end the
%% broker's quorum queues with it if it failed twice in a row, as it does on a full disk. When the
%% system ends, or its directory cannot be used, this process says so in the log and tries again,
%% with pauses of 1 to 30 s; until then delayed publishes are refused.
%%
%% Ra's parts restart one by one, and a server that restarts while the WAL is down sees only what is
%% in segments: it would lead, and overwrite what the WAL still holds. So no server of ours restarts
%% by itself (rabbit_delay_registry:permit_start/1), and when one has failed the whole system is
%% started afresh, the WAL before the servers.
%%
%% It also watches the free space, below a limit of which delayed messages are refused, and it is
%% where the stores' log lines arrive, since C has no logger.
-module(rabbit_delay_system).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([create_table/0, start_link/0, status/0, ready/0, server_failed/2, check_space/0,
         look_at_space/0, log_pid/0,
         room_for_store/0, room_for_name/0, has_library/0]).
-export([shorten/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

%% A part of the node's atoms: this one in so many is left to the broker.
-define(SPARE_ATOMS, 20).
-define(MIN_PAUSE_MS, 1000).
-define(MAX_PAUSE_MS, 30000).
-define(WATCH_MS, 500).
-define(CHECK_MS, 5000).
-define(LIBRARY_MS, 10000).
%% What is refused for want of space is accepted again when the limit is exceeded by one in so many.
-define(ACCEPT_AGAIN_PART, 20).
%% Of the stores' lines so many are logged in so many times WATCH_MS.
-define(MAX_LINES, 100).
-define(LOOKS_OF_LINES, 20).
-define(REPORT_DEPTH, 30).
-define(START_BYTES, 4194304).

-record(state, {system :: pid() | undefined,
                generation = 0 :: non_neg_integer(),
                %% log lines of the stores since the free space was looked at, now and then
                lines = 0 :: non_neg_integer(),
                looks = 0 :: non_neg_integer(),
                pause = ?MIN_PAUSE_MS :: pos_integer(),
                started_at = 0 :: integer()}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Owned by the supervisor. Not a persistent term: a disk may be full and not full again and again, and
%% each change of one has every process of the node collect its garbage.
-spec create_table() -> ok.
create_table() ->
    ?MODULE = ets:new(?MODULE, [named_table, public, {read_concurrency, true}]),
    ok.

%% Whether delayed messages can be taken (up), soon (starting), not as long as there is so little
%% space (full), or not as long as the Ra system does not run (down). Cheap.
-spec status() -> up | starting | {down | full, Why :: string()}.
status() ->
    try
        ets:lookup_element(?MODULE, status, 2)
    catch
        error:badarg -> {down, "the plugin is not running"}
    end.

%% Whether servers can be started now, and in which generation of the system. Answered after all
%% that the caller has said before.
-spec ready() -> {ok, Generation :: pos_integer()} | not_ready.
ready() ->
    gen_server:call(?MODULE, ready, infinity).

%% A Raft server that ran in that generation has failed.
-spec server_failed(Generation :: pos_integer(), Why :: term()) -> ok.
server_failed(Generation, Why) ->
    gen_server:cast(?MODULE, {server_failed, Generation, Why}).

%% Looks at the free space now. For whoever has just used some; while the system is being started,
%% which can take long, nobody waits for it.
-spec check_space() -> ok.
check_space() ->
    try
        gen_server:call(?MODULE, check_space, ?CHECK_MS)
    catch
        exit:_ -> ok
    end.

%% The same for what is not of the Ra system, in the calling process.
-spec look_at_space() -> ok.
look_at_space() ->
    Limit = rabbit_delay_config:disk_free_limit(),
    case rabbit_delay_store:disk_free(rabbit_delay_config:data_dir()) of
        {ok, Free} when Free < Limit -> check_space();
        _ -> ok
    end.

%% Whether another exchange may begin to delay messages: its Raft member and its store will need file
%% descriptors, and the broker is not to run out of them over it. Those that have begun go on.
-spec room_for_store() -> ok | {error, Why :: string()}.
room_for_store() ->
    case has_library() andalso rabbit_delay_store:descriptors() of
        {Used, Limit} ->
            case rabbit_delay_config:spare_descriptors(Limit) of
                Spare when Limit - Used < Spare ->
                    {error, format("~b of the ~b file descriptors that the broker may have open are in "
                                   "use, and fewer than ~b left; exchanges that delay messages "
                                   "already go on", [Used, Limit, Spare])};
                _ ->
                    ok
            end;
        _ ->
            ok
    end.

%% Whether another member may have a name: it is an atom, which stays until the node ends, and a node without any left
%% ends.
-spec room_for_name() -> ok | {error, Why :: string()}.
room_for_name() ->
    Limit = erlang:system_info(atom_limit),
    case erlang:system_info(atom_count) of
        Used when Limit - Used < Limit div ?SPARE_ATOMS ->
            {error, format("~b of the ~b atoms that the node may have are in use (RABBITMQ_MAX_NUMBER_OF_ATOMS), which "
                           "end with its restart; exchanges that delay messages already go on", [Used, Limit])};
        _ ->
            ok
    end.

%% Whether rabbit_delay_store has been loaded. Nobody else is to call it before: a call loads it, and
%% where two processes load a module at a time whose library cannot be loaded, Erlang's code server
%% owes one of them its answer.
-spec has_library() -> boolean().
has_library() ->
    erlang:function_exported(rabbit_delay_store, descriptors, 0).

-spec log_pid() -> pid().
log_pid() ->
    case whereis(?MODULE) of
        undefined -> self();
        Pid -> Pid
    end.

-spec init([]) -> {ok, #state{}, {continue, start}}.
init([]) ->
    process_flag(trap_exit, true),
    _ = logger:add_primary_filter(?MODULE, {fun ?MODULE:shorten/2, []}),
    set_status(starting),
    watch(),
    {ok, #state{}, {continue, start}}.

%% The WAL of the last run is read here: the broker's boot does not wait for it.
-spec handle_continue(start, #state{}) -> {noreply, #state{}}.
handle_continue(start, State) ->
    {noreply, start(State)}.

-spec handle_call(term(), term(), #state{}) -> {reply, term(), #state{}}.
handle_call(ready, _From, #state{system = undefined} = State) ->
    {reply, not_ready, State};
handle_call(ready, _From, #state{generation = Generation} = State) ->
    {reply, {ok, Generation}, State};
handle_call(check_space, _From, State) ->
    {reply, ok, check_space(State)};
handle_call(_, _, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({server_failed, Generation, Why},
            #state{system = System, generation = Generation} = State) when System =/= undefined ->
    set_status({down, "it is being restarted"}),
    ok = stop_system(System),
    {noreply, retry("a Raft server failed: " ++ format(Why), State#state{system = undefined})};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}} | {stop, term(), #state{}}.
handle_info({'EXIT', Pid, Reason}, #state{system = Pid} = State) ->
    {noreply, retry("the Raft log ended: " ++ format(Reason), State#state{system = undefined})};
handle_info(start, #state{system = undefined} = State) ->
    {noreply, start(State)};
handle_info(watch, State) ->
    watch(),
    {noreply, check_space(count_lines(State))};
handle_info({rabbit_delay_store, Level, Message}, #state{lines = Lines} = State) ->
    _ = Lines < ?MAX_LINES andalso log(Level, Message),
    {noreply, State#state{lines = Lines + 1}};
handle_info(_, State) ->
    {noreply, State}.

-spec terminate(term(), #state{}) -> ok.
terminate(_, #state{system = System}) ->
    set_status({down, "the plugin is stopping"}),
    _ = logger:remove_primary_filter(?MODULE),
    ok = case System of
             undefined -> ok;
             _ -> stop_system(System)
         end,
    _ = has_library() andalso rabbit_delay_store:give_back(),
    ok.

stop_system(System) ->
    Ref = monitor(process, System),
    exit(System, shutdown),
    receive {'DOWN', Ref, process, System, _} -> ok end,
    receive {'EXIT', System, _} -> ok after 0 -> ok end.

start(#state{generation = Generation} = State) ->
    Dir = rabbit_delay_config:data_dir(),
    case first_error([fun rabbit_delay_broker:ready/0, fun library/0,
                      fun rabbit_delay_config:misplaced/0, fun () -> usable(Dir) end]) of
        ok ->
            ok = limit_open_files(),
            Config = rabbit_delay_raft:system_config(),
            ok = ra_system:store(Config),
            try
                ok = rabbit_delay_raft:sweep(),
                ok = rabbit_delay_raft:register_members(),
                ra_system_sup:start_link(Config)
            of
                {ok, Pid} ->
                    ?LOG_INFO("delayed messages are kept in ~ts", [Dir], ?LOG_DOMAIN),
                    set_status(up),
                    rabbit_delay_registry:system_up(),
                    State#state{system = Pid, generation = Generation + 1,
                                started_at = erlang:monotonic_time(millisecond)};
                {error, Reason} ->
                    retry("the Raft log does not start: " ++ format(Reason), State)
            catch
                _:Reason ->
                    retry("the Raft log does not start: " ++ format(Reason), State)
            end;
        {error, Why} ->
            retry(Why, State)
    end.

%% Tried again each time: it may be mended meanwhile.
library() ->
    Self = self(),
    Answer = make_ref(),
    {Pid, Ref} = spawn_monitor(fun () ->
                                       Self ! {Answer, code:ensure_loaded(rabbit_delay_store)}
                               end),
    Loaded = receive
                 {Answer, Result} -> Result;
                 {'DOWN', Ref, process, Pid, Reason} -> {error, Reason}
             after ?LIBRARY_MS ->
                 exit(Pid, kill),
                 timeout
             end,
    demonitor(Ref, [flush]),
    case Loaded of
        {module, _} ->
            ok;
        timeout ->
            {error, format("Erlang's code server has not loaded the library within ~b ms", [?LIBRARY_MS])};
        _ ->
            [File | _] = Files = rabbit_delay_library:files(),
            {error, case lists:any(fun filelib:is_regular/1, Files) of
                        true ->
                            format("the library ~ts cannot be loaded: a line with rabbit_delay_store in "
                                   "the broker's log says why", [File]);
                        false ->
                            format("the library ~ts is not in this archive of the plugin, which was built "
                                   "for other machines", [File])
                    end}
    end.

%% A disk that fails, fails for thousands of exchanges.
count_lines(#state{looks = Looks} = State) when Looks < ?LOOKS_OF_LINES ->
    State#state{looks = Looks + 1};
count_lines(#state{lines = Lines} = State) ->
    _ = Lines > ?MAX_LINES andalso
        ?LOG_WARNING("delayed messages: ~b more lines of the stores' are left out",
                     [Lines - ?MAX_LINES], ?LOG_DOMAIN),
    State#state{lines = 0, looks = 0}.

watch() ->
    _ = erlang:send_after(?WATCH_MS, self(), watch),
    ok.

check_space(#state{system = undefined} = State) ->
    State;
check_space(State) ->
    Dir = rabbit_delay_config:data_dir(),
    Limit = rabbit_delay_config:disk_free_limit(),
    case {rabbit_delay_store:disk_free(Dir), status()} of
        {{ok, Free}, up} when Free < Limit ->
            Why = format("only ~b bytes are free in ~ts, fewer than delayed_message."
                         "disk_free_limit, ~b", [Free, Dir, Limit]),
            ?LOG_ERROR("delayed messages are refused: ~ts", [Why], ?LOG_DOMAIN),
            set_status({full, Why});
        {{ok, Free}, {full, _}} when Free >= Limit + Limit div ?ACCEPT_AGAIN_PART ->
            ?LOG_NOTICE("delayed messages are accepted again: ~b bytes are free in ~ts",
                        [Free, Dir], ?LOG_DOMAIN),
            set_status(up);
        _ ->
            ok
    end,
    State.

%% A system that had been running for a while is tried again at once.
retry(Why, #state{pause = Pause0, started_at = StartedAt} = State) ->
    Pause = case erlang:monotonic_time(millisecond) - StartedAt > ?MAX_PAUSE_MS
                 andalso StartedAt =/= 0 of
                true -> ?MIN_PAUSE_MS;
                false -> Pause0
            end,
    set_status({down, Why}),
    ?LOG_ERROR("delayed messages are unavailable: ~ts; publishing with a delay is refused, what "
               "is pending waits; next attempt in ~b ms", [Why, Pause], ?LOG_DOMAIN),
    _ = erlang:send_after(Pause, self(), start),
    State#state{pause = min(Pause * 2, ?MAX_PAUSE_MS)}.

limit_open_files() ->
    case rabbit_delay_store:descriptors() of
        {_, Limit} ->
            rabbit_delay_store:limit_open_files(rabbit_delay_config:max_open_files(Limit));
        unknown ->
            ok
    end.

%% Found out by doing it: permissions, a read-only file system, a file in the place.
usable(Dir) ->
    Probe = filename:join(Dir, "writable.probe"),
    Steps = [fun () -> filelib:ensure_dir(Probe) end,
             fun () -> file:write_file(Probe, <<"x">>, [raw]) end,
             fun () -> file:delete(Probe) end],
    case first_error(Steps) of
        ok ->
            first_error([fun () -> claim(Dir) end, fun () -> enough_space(Dir) end]);
        {error, Reason} ->
            {error, format("data directory ~ts (delayed_message.data_dir) cannot be used: ~ts",
                           [Dir, file:format_error(Reason)])}
    end.

%% One lock for all stores, so that idle ones need none. It is held until this process ends.
claim(Dir) ->
    case rabbit_delay_store:claim(Dir) of
        ok ->
            ok;
        {error, {eacces, eagain}} ->
            {error, format("data directory ~ts (delayed_message.data_dir) is in use by another "
                           "process", [Dir])};
        {error, Reason} ->
            {error, format("data directory ~ts (delayed_message.data_dir) cannot be locked: ~ts",
                           [Dir, rabbit_delay_text:reason(Reason)])}
    end.

%% Reading the WAL of the last run may write all of it again, to segments, before it is deleted.
enough_space(Dir) ->
    Wals = lists:sum([filelib:file_size(File)
                      || File <- filelib:wildcard(filename:join(Dir, "*.wal"))]),
    Needed = 2 * Wals + ?START_BYTES,
    case rabbit_delay_store:disk_free(Dir) of
        {ok, Free} when Free < Needed ->
            {error, format("~b bytes are free in ~ts, and ~b are needed to open what is there",
                           [Free, Dir, Needed])};
        _ ->
            ok
    end.

first_error([]) ->
    ok;
first_error([Step | Rest]) ->
    case Step() of
        ok -> first_error(Rest);
        Error -> Error
    end.

set_status(Status) ->
    true = ets:insert(?MODULE, {status, Status}),
    ok.

format(Reason) ->
    format("~0P", [Reason, 20]).

format(Format, Args) ->
    lists:flatten(io_lib:format(Format, Args)).

log(info, Message) -> ?LOG_INFO("~ts", [Message], ?LOG_DOMAIN);
log(warning, Message) -> ?LOG_WARNING("~ts", [Message], ?LOG_DOMAIN);
log(error, Message) -> ?LOG_ERROR("~ts", [Message], ?LOG_DOMAIN).

%% A logger filter. What Ra's processes say when they crash holds every message in their mailbox and
%% state: many seconds of formatting, in the process that is to end.
-spec shorten(logger:log_event(), term()) -> logger:filter_return().
shorten(#{msg := {report, #{label := {proc_lib, crash}, report := [Info | _]}}} = Event, _)
  when is_list(Info) ->
    case proplists:get_value(registered_name, Info) of
        Name when is_atom(Name), Name =/= [] ->
            shorten_if_ours(Name, proplists:get_value(error_info, Info), Event);
        _ ->
            ignore
    end;
shorten(#{msg := {report, #{label := {gen_statem, terminate}, name := Name,
                            reason := Reason}}} = Event, _) ->
    shorten_if_ours(Name, Reason, Event);
%% What ends on purpose, to be begun anew, is no fault.
shorten(#{msg := {report, #{label := {supervisor, child_terminated}, report := Report}},
          meta := Meta} = Event, _) when is_list(Report) ->
    case {proplists:get_value(reason, Report), proplists:get_value(offender, Report)} of
        {{shutdown, Why}, [_ | _] = Offender} when Why =:= not_leading; Why =:= other_life ->
            case {proplists:get_value(id, Offender), proplists:get_value(mfargs, Offender)} of
                {Id, {_, _, [XName | _]}} when Id =:= rabbit_delay_dispatcher; Id =:= rabbit_delay_queue ->
                    Event#{level := info, meta := maps:merge(Meta, ?LOG_DOMAIN),
                           msg := {"delayed messages of ~ts: ~s", [rabbit_delay_text:rs(XName), anew(Why)]}};
                _ ->
                    ignore
            end;
        _ ->
            ignore
    end;
shorten(_, _) ->
    ignore.

anew(not_leading) -> "this node's member does not lead any more";
anew(other_life) -> "the exchange has been deleted and declared again, or given a group since".

shorten_if_ours(Name, Reason, Event) when is_atom(Name) ->
    case atom_to_list(Name) of
        "ra_rabbit_delay_wheel_" ++ _ -> shortened(Name, Reason, Event);
        "rabbit_delay_" ++ _ -> shortened(Name, Reason, Event);
        _ -> ignore
    end;
shorten_if_ours(_, _, _) ->
    ignore.

shortened(Name, Reason, Event) ->
    Event#{msg := {"~s ended: ~0P", [Name, Reason, ?REPORT_DEPTH]}}.
