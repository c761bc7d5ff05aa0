%% SPDX-License-Identifier: MPL-2.0

%% Which exchanges delay messages at present, and the processes that do it. An exchange's processes
%% are started when it is first asked to delay a message, or after a restart if it holds some.
%%
%% The broker's record of an exchange's internal queue is derived from this: it is made with the
%% process, and made again whenever it is found missing, by route/1 and by a timer.
%%
%% This process only keeps the books. Whatever may take long (the broker's metadata, files,
%% supervisors, Ra) is done by jobs, processes of their own, one at a time for an exchange and in the
%% order asked for: so an exchange made again is not started before the end of the one before. Who
%% asks waits for a bounded time; the job goes on.
-module(rabbit_delay_registry).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include("rabbit_delay.hrl").

-export([create_table/0, start_link/0, recover/0, withdraw/0, system_up/0]).
-export([ensure/1, delete/1, leader/2, leader/3, queue_name/1, pending/1, stat/1, overdue/2,
         register_queue/2, register_dispatcher/2, register_store/2, register_paused/2, queue/1,
         dispatcher/1, store/1, is_paused/1,
         counters/1, known_counters/1, dropped/1, all_counters/0, gone_counters/0, samples/1,
         checkpointed/2, permit_start/1, take_permit/1, refuse/2, refusal/1,
         register_unable/2, unable/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% The queue names of clients cannot begin with "amq.".
-define(QUEUE_PREFIX, "amq.delayed.").
-define(RECOVERED, {?MODULE, recovered}).
-define(GONE_COUNTERS, {?MODULE, gone_counters}).
-define(HEAL_MS, 1000).
-define(COUNTED, 10000).
%% The pauses between attempts to start an exchange's processes again.
-define(RESTART_MS, 1000).
-define(MAX_RESTART_MS, 30000).
%% The longest that others wait for a job. After that nobody waits for it, for so long or until it
%% ends.
-define(WAIT_MS, 5000).
-define(LATE_MS, 30000).
-define(ASK_AGAIN_MS, 50).
%% How many exchanges are started at once that nobody waits for.
-define(BACKGROUND, 8).

-record(row, {exchange :: rabbit_exchange:name(),
              queue :: pid() | undefined,
              dispatcher :: pid() | undefined,
              %% the open store, where this node's member leads
              store :: rabbit_delay_store:store() | undefined,
              counters :: rabbit_delay_counters:ref() | undefined,
              %% of these
              samples = [] :: rabbit_delay_statistics:samples(),
              %% an operator has paused it; known while the store is
              paused = false :: boolean(),
              %% its Raft server may start, once
              permit = false :: boolean(),
              %% why it is not to be started, and its exchange delays nothing
              refusal :: string() | undefined,
              %% why its store can take no more, as long as it cannot
              unable = none :: none | string(),
              %% what is being done: it outlives this process
              job :: {what(), pid()} | undefined,
              %% until when nobody waits for that, monotonic ms
              late :: integer() | undefined}).

-type what() :: ensure | delete.

-record(job, {what :: what(),
              began :: integer(),
              %% nobody asked for it
              background = false :: boolean(),
              froms = [] :: [gen_server:from()],
              %% what is to be done next, in this order
              next = [] :: [{what(), [gen_server:from()]}]}).

-record(state, {exchanges = #{} :: #{rabbit_exchange:name() => pid()},
                monitors = #{} :: #{reference() => rabbit_exchange:name()},
                jobs = #{} :: #{rabbit_exchange:name() => #job{}},
                refs = #{} :: #{reference() => rabbit_exchange:name()},
                %% those to be started that nobody waits for
                backlog = queue:new() :: queue:queue(rabbit_exchange:name()),
                queued = #{} :: #{rabbit_exchange:name() => []},
                background = 0 :: non_neg_integer(),
                %% the present pause of each exchange that cannot be started, ms
                pauses = #{} :: #{rabbit_exchange:name() => pos_integer()},
                %% looks for what is to be started, and whether it is to look again
                looking :: undefined | {reference(), Again :: boolean()}}).

%% Owned by the supervisor, so that it outlives this process; as does the note that the broker has
%% recovered its exchanges.
-spec create_table() -> ok.
create_table() ->
    ?MODULE = ets:new(?MODULE, [named_table, public, {keypos, #row.exchange},
                                {read_concurrency, true}]),
    persistent_term:put(?GONE_COUNTERS, rabbit_delay_counters:new()),
    persistent_term:put(?RECOVERED, false).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The broker has recovered its exchanges: their bindings may need help, and what was held for
%% exchanges that are gone is put aside, before a client can declare one of the same name.
-spec recover() -> ok.
recover() ->
    _ = put_aside_homeless(),
    lists:foreach(
      fun (X) ->
              rabbit_delay_broker:restore_bindings(rabbit_delay_exchange:underlying_type(X), X)
      end, rabbit_delay_broker:delayed_exchanges()),
    persistent_term:put(?RECOVERED, true),
    ok = rabbit_delay_official_tables:announce(),
    gen_server:cast(?MODULE, start_members).

%% What has happened to the exchange's messages, to be added to. They outlive its processes.
-spec counters(rabbit_exchange:name()) -> rabbit_delay_counters:ref().
counters(XName) ->
    case lookup(XName, #row.counters) of
        undefined ->
            Counters = rabbit_delay_counters:new(),
            ok = update(XName, {#row.counters, Counters}),
            %% To compare the first counts with.
            ok = update(XName, {#row.samples, rabbit_delay_statistics:sample(Counters, [])}),
            Counters;
        Counters ->
            Counters
    end.

-spec known_counters(rabbit_exchange:name()) -> rabbit_delay_counters:ref() | undefined.
known_counters(XName) -> lookup(XName, #row.counters).

%% A message for the exchange was dropped before it came to it.
-spec dropped(rabbit_exchange:name()) -> ok.
dropped(XName) ->
    Counters = case known_counters(XName) of
                   undefined -> gone_counters();
                   Known -> Known
               end,
    rabbit_delay_counters:add(Counters, dropped, 1).

-spec samples(rabbit_exchange:name()) -> rabbit_delay_statistics:samples().
samples(XName) ->
    case lookup(XName, #row.samples) of
        undefined -> [];
        Samples -> Samples
    end.

%% Those of each exchange that has processes.
-spec all_counters() -> [{rabbit_exchange:name(), rabbit_delay_counters:ref()}].
all_counters() ->
    [{XName, Counters} || #row{exchange = XName, counters = Counters, queue = Queue} <- rows(),
                          Counters =/= undefined, Queue =/= undefined].

%% A checkpoint of the exchange's store has just become durable, in so many ms. The exchange may have
%% been deleted meanwhile, and the plugin disabled.
-spec checkpointed(rabbit_exchange:name(), Ms :: non_neg_integer()) -> ok.
checkpointed(XName, Ms) ->
    case lookup(XName, #row.counters) of
        undefined -> ok;
        Counters -> rabbit_delay_counters:checkpoint(Counters, rabbit_delay_config:now_ms(), Ms)
    end.

%% The sum of those of exchanges that have been deleted, so that the node's sums never fall.
-spec gone_counters() -> rabbit_delay_counters:ref().
gone_counters() ->
    case persistent_term:get(?GONE_COUNTERS, none) of
        none -> rabbit_delay_counters:new();
        Counters -> Counters
    end.

%% Takes the internal queues' records away: the plugin is being disabled.
-spec withdraw() -> ok.
withdraw() ->
    lists:foreach(fun (#row{exchange = XName}) -> delete_record(XName) end, rows()).

%% A record that stays names a process that is gone: the next one takes its place, and a restart of
%% the node removes it.
delete_record(XName) ->
    try
        rabbit_delay_broker:delete_queue(queue_name(XName))
    catch
        Class:Reason ->
            ?LOG_WARNING("delayed messages of ~ts: the record of its internal queue cannot be "
                         "deleted at present, and stays: ~0P",
                         [rabbit_delay_text:rs(XName), {Class, Reason}, 20], ?LOG_DOMAIN)
    end.

rows() ->
    case ets:whereis(?MODULE) of
        undefined -> [];
        Table -> ets:tab2list(Table)
    end.

%% The Ra system has been started.
-spec system_up() -> ok.
system_up() ->
    gen_server:cast(?MODULE, start_members).

-spec queue_name(rabbit_exchange:name()) -> rabbit_amqqueue:name().
queue_name(#resource{kind = exchange, name = Name} = XName) ->
    XName#resource{kind = queue, name = <<?QUEUE_PREFIX, Name/binary>>}.

%% Makes sure that the exchange has a live internal queue with a record, and names it. Takes
%% ?WAIT_MS at most, and no time while something has taken longer.
-spec ensure(rabbit_exchange:name()) -> {ok, rabbit_amqqueue:name()} | {error, Why :: iodata()}.
ensure(XName) ->
    QName = queue_name(XName),
    case row(XName) of
        #row{job = {delete, _}, late = Late} ->
            %% What is there is an earlier exchange's.
            ensure(XName, QName, Late);
        #row{refusal = Why} when Why =/= undefined ->
            {error, Why};
        #row{queue = Pid, late = Late} when is_pid(Pid) ->
            case rabbit_delay_broker:queue_pid(QName) of
                Pid -> {ok, QName};
                _ -> ensure(XName, QName, Late)
            end;
        #row{late = Late} ->
            ensure(XName, QName, Late);
        none ->
            ensure(XName, QName, undefined)
    end.

ensure(XName, QName, Late) ->
    case is_integer(Late) andalso now_ms() < Late of
        true ->
            {error, late()};
        false ->
            case ask({ensure, XName}, now_ms() + ?WAIT_MS) of
                ok ->
                    {ok, QName};
                timeout ->
                    _ = update_known(XName, {#row.late, now_ms() + ?LATE_MS}),
                    {error, late()};
                Error ->
                    Error
            end
    end.

late() ->
    io_lib:format("its delay queue was not ready within ~b ms: the broker's metadata store does not "
                  "answer, or what a deleted exchange of this name held is still being removed",
                  [?WAIT_MS]).

%% Ends the exchange's processes and discards its messages. If that takes longer than ?WAIT_MS it
%% goes on, and an exchange of this name that is made meanwhile begins when it is done.
-spec delete(rabbit_exchange:name()) -> ok.
delete(XName) ->
    _ = ask({delete, XName}, now_ms() + ?WAIT_MS),
    ok.

%% This process may be just being started again.
ask(Request, Until) ->
    Left = max(0, Until - now_ms()),
    try
        gen_server:call(?MODULE, Request, Left)
    catch
        exit:{timeout, _} ->
            timeout;
        exit:_ ->
            case whereis(rabbit_delay_sup) of
                Pid when is_pid(Pid), Left > ?ASK_AGAIN_MS ->
                    timer:sleep(?ASK_AGAIN_MS),
                    ask(Request, Until);
                _ ->
                    {error, "the plugin is not running"}
            end
    end.

now_ms() -> erlang:monotonic_time(millisecond).

%% An effect of the Raft machine: this node's member leads. Its store is known from here on, before
%% anything that it holds has been confirmed.
-spec leader(rabbit_exchange:name(), pid(), rabbit_delay_store:store()) -> ok.
leader(XName, ServerPid, Store) ->
    ok = register_store(XName, Store),
    leader(XName, ServerPid).

-spec leader(rabbit_exchange:name(), pid()) -> ok.
leader(XName, ServerPid) ->
    case row(XName) of
        #row{queue = Queue, dispatcher = Dispatcher} ->
            _ = [rabbit_delay_queue:leader(Queue, ServerPid) || is_pid(Queue)],
            _ = [rabbit_delay_dispatcher:leader(Dispatcher, ServerPid) || is_pid(Dispatcher)],
            ok;
        none ->
            ok
    end.

%% How many messages the exchange holds.
-spec pending(rabbit_exchange:name()) -> non_neg_integer().
pending(XName) ->
    #{pending := Pending} = stat(XName),
    Pending.

%% What the exchange's store says of itself (rabbit_delay_store:stat/1), O(1), but that of what is
%% taken out of it there is `taken', in flight, and `waiting' for queues that do not take it, and how
%% many `stuck_queues' there are; all zero where it is not open.
-spec stat(rabbit_exchange:name()) ->
          #{pending | pending_bytes | taken | waiting | stuck_queues := non_neg_integer(),
            next_due := non_neg_integer() | infinity,
            atom() => term()}.
stat(XName) ->
    Stat = case lookup(XName, #row.store) of
               undefined -> {error, not_open};
               Store -> rabbit_delay_store:stat(Store)
           end,
    {Places, Stuck, InFlight} = case known_counters(XName) of
                                    undefined -> {0, 0, 0};
                                    Counters -> rabbit_delay_counters:waiting(Counters)
                                end,
    case Stat of
        #{taken := Taken} ->
            %% What was cancelled may still have its place.
            Waiting = min(Places, max(0, Taken - InFlight)),
            Stat#{taken := Taken - Waiting, waiting => Waiting, stuck_queues => Stuck};
        {error, _} ->
            #{pending => 0, pending_bytes => 0, taken => 0, waiting => 0, stuck_queues => 0,
              next_due => infinity}
    end.

%% Of an exchange whose store says that of itself, how many messages should have been released by now
%% and are not in flight. Where something is overdue that is counted among so many messages; among more
%% of them it is estimated.
-spec overdue(rabbit_exchange:name(), map()) -> non_neg_integer().
overdue(XName, #{taken := Taken, next_due := NextDue, pending := Pending} = Stat) ->
    Now = rabbit_delay_config:now_ms(),
    case lookup(XName, #row.store) of
        Store when Store =/= undefined, NextDue =< Now, Pending =< ?COUNTED ->
            case rabbit_delay_store:count(Store, 0, Now) of
                {ok, Due, _} -> max(Due - Taken, 0);
                {error, _} -> 0
            end;
        Store when Store =/= undefined, NextDue =< Now ->
            rabbit_delay_counters:overdue(Stat, Now) - Taken;
        _ ->
            0
    end.

-spec register_queue(rabbit_exchange:name(), pid()) -> ok.
register_queue(XName, Pid) -> update(XName, {#row.queue, Pid}).

-spec register_dispatcher(rabbit_exchange:name(), pid()) -> ok.
register_dispatcher(XName, Pid) -> update(XName, {#row.dispatcher, Pid}).

-spec register_store(rabbit_exchange:name(), rabbit_delay_store:store() | undefined) -> ok.
register_store(XName, Store) -> update(XName, {#row.store, Store}).

-spec register_paused(rabbit_exchange:name(), boolean()) -> ok.
register_paused(XName, Paused) -> update(XName, {#row.paused, Paused}).

%% The exchange's Raft server may start, once: see rabbit_delay_system.
-spec permit_start(rabbit_exchange:name()) -> ok.
permit_start(XName) -> update(XName, {#row.permit, true}).

%% By the server that starts.
-spec take_permit(rabbit_exchange:name()) -> boolean().
take_permit(XName) ->
    Permitted = lookup(XName, #row.permit) =:= true,
    _ = Permitted andalso update(XName, {#row.permit, false}),
    Permitted.

%% Its files are of a later version: see rabbit_delay_raft. It is tried again when the plugin is
%% started.
-spec refuse(rabbit_exchange:name(), Why :: string()) -> ok.
refuse(XName, Why) -> update(XName, {#row.refusal, Why}).

-spec refusal(rabbit_exchange:name()) -> string() | undefined.
refusal(XName) -> lookup(XName, #row.refusal).

-spec register_unable(rabbit_exchange:name(), none | string()) -> ok.
register_unable(XName, Why) -> update(XName, {#row.unable, Why}).

%% Why the exchange's store can take no more.
-spec unable(rabbit_exchange:name()) -> none | string().
unable(XName) ->
    case lookup(XName, #row.unable) of
        undefined -> none;
        Why -> Why
    end.

-spec queue(rabbit_exchange:name()) -> pid() | undefined.
queue(XName) -> lookup(XName, #row.queue).

-spec dispatcher(rabbit_exchange:name()) -> pid() | undefined.
dispatcher(XName) -> lookup(XName, #row.dispatcher).

%% The exchange's store, where it is open.
-spec store(rabbit_exchange:name()) -> rabbit_delay_store:store() | undefined.
store(XName) -> lookup(XName, #row.store).

-spec is_paused(rabbit_exchange:name()) -> boolean().
is_paused(XName) -> lookup(XName, #row.paused) =:= true.

lookup(XName, Field) ->
    case row(XName) of
        none -> undefined;
        Row -> element(Field, Row)
    end.

%% There is no table while the plugin does not run, and whoever routes may ask at any time.
row(XName) ->
    try ets:lookup(?MODULE, XName) of
        [Row] -> Row;
        [] -> none
    catch
        error:badarg -> none
    end.

update(XName, Update) ->
    _ = ets:insert_new(?MODULE, #row{exchange = XName}),
    true = ets:update_element(?MODULE, XName, Update),
    ok.

update_known(XName, Update) ->
    try
        ets:update_element(?MODULE, XName, Update)
    catch
        error:badarg -> false
    end.

-spec init([]) -> {ok, #state{}}.
init([]) ->
    _ = erlang:send_after(?HEAL_MS, self(), heal),
    %% What an earlier registry left running is adopted.
    {ok, lists:foldl(fun adopt/2, #state{}, rows())}.

adopt(#row{exchange = XName, job = Job} = Row, State0) ->
    State = case running(Row) of
                none -> State0;
                Sup -> monitor_exchange(XName, Sup, State0)
            end,
    case Job of
        {What, Pid} -> under_way(XName, Pid, #job{what = What, began = now_ms()}, State);
        undefined -> State
    end.

%% The supervisor of an exchange's processes, if they run.
running(#row{queue = Queue}) when is_pid(Queue) ->
    case process_info(Queue, dictionary) of
        {_, Dictionary} ->
            case lists:keyfind('$ancestors', 1, Dictionary) of
                {_, [Sup | _]} when is_pid(Sup) -> Sup;
                _ -> none
            end;
        undefined ->
            none
    end;
running(_) ->
    none.

-spec handle_call(term(), gen_server:from(), #state{}) -> {noreply, #state{}}.
handle_call({What, XName}, From, State) when What =:= ensure; What =:= delete ->
    {noreply, asked(What, XName, From, State)}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(start_members, State) ->
    case persistent_term:get(?RECOVERED) andalso rabbit_delay_system:status() =:= up of
        true -> {noreply, look_for_members(State)};
        false -> {noreply, State}
    end.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(heal, State) ->
    _ = erlang:send_after(?HEAL_MS, self(), heal),
    ok = sample_all(),
    ok = rabbit_delay_prometheus:ensure_registered(),
    {noreply, heal_all(State)};
handle_info({started, XName, Sup}, State) ->
    {noreply, monitor_exchange(XName, Sup, State)};
handle_info({'DOWN', Ref, process, _, Reason}, #state{looking = {Ref, Again}} = State0) ->
    State = State0#state{looking = undefined},
    {noreply, case {Reason, Again} of
                  {{done, XNames}, false} ->
                      lists:foldl(fun start_later/2, State, XNames);
                  {{done, _}, true} ->
                      look_for_members(State);
                  _ ->
                      ?LOG_ERROR("delayed messages: cannot look for what is held: ~0P",
                                 [Reason, 20], ?LOG_DOMAIN),
                      _ = erlang:send_after(?MAX_RESTART_MS, self(), look_for_members),
                      State
              end};
handle_info(look_for_members, State) ->
    handle_cast(start_members, State);
handle_info({'DOWN', Ref, process, _, Reason}, #state{refs = Refs} = State)
  when is_map_key(Ref, Refs) ->
    #{Ref := XName} = Refs,
    {noreply, ended(XName, Reason, State#state{refs = maps:remove(Ref, Refs)})};
handle_info({'DOWN', Ref, process, Sup, Reason}, #state{monitors = Monitors,
                                                        exchanges = Exchanges} = State) ->
    case maps:take(Ref, Monitors) of
        {XName, Rest} ->
            ?LOG_WARNING("delayed messages of ~ts: stopped (~0P), will be started again",
                         [rabbit_delay_text:rs(XName), Reason, 10], ?LOG_DOMAIN),
            Others = maps:filter(fun (_, Pid) -> Pid =/= Sup end, Exchanges),
            {noreply, start_again(XName, State#state{monitors = Rest, exchanges = Others})};
        error ->
            {noreply, State}
    end;
handle_info({restart, XName}, State) ->
    {noreply, start_later(XName, State)};
handle_info(_, State) ->
    {noreply, State}.

%% ------------------------------------------------------------------------------------ jobs

asked(What, XName, From, #state{jobs = Jobs} = State) ->
    case Jobs of
        #{XName := #job{what = What, froms = Froms, next = []} = Job} ->
            State#state{jobs = Jobs#{XName := Job#job{froms = [From | Froms]}}};
        #{XName := #job{next = Next} = Job} ->
            State#state{jobs = Jobs#{XName := Job#job{next = then(What, From, Next)}}};
        _ ->
            begin_job(XName, #job{what = What, began = now_ms(), froms = [From]}, 0, State)
    end.

%% Whoever asks for the same as the one before has the same answer.
then(What, From, []) -> [{What, [From]}];
then(What, From, [{What, Froms}]) -> [{What, [From | Froms]}];
then(What, From, [First | Rest]) -> [First | then(What, From, Rest)].

%% It begins when the table says so: another registry must find it.
-dialyzer({nowarn_function, begin_job/4}).
begin_job(XName, #job{what = What} = Job, Pause, State) ->
    Registry = self(),
    Pid = spawn(fun () ->
                        receive
                            go -> exit({done, do(What, XName, Registry)})
                        after 2 * ?MAX_RESTART_MS ->
                            exit(abandoned)
                        end
                end),
    ok = update(XName, {#row.job, {What, Pid}}),
    _ = erlang:send_after(Pause, Pid, go),
    under_way(XName, Pid, Job, State).

under_way(XName, Pid, Job, #state{jobs = Jobs, refs = Refs} = State) ->
    State#state{jobs = Jobs#{XName => Job},
                refs = Refs#{monitor(process, Pid) => XName}}.

ended(XName, Reason, #state{jobs = Jobs, background = N} = State0) ->
    {#job{what = What, froms = Froms, next = Next, began = Began, background = Background}, Rest} =
        maps:take(XName, Jobs),
    _ = update_known(XName, [{#row.job, undefined}, {#row.late, undefined}]),
    Took = now_ms() - Began,
    _ = Took > ?WAIT_MS
        andalso ?LOG_WARNING("delayed messages of ~ts: ~s took ~b ms",
                             [rabbit_delay_text:rs(XName), described(What), Took], ?LOG_DOMAIN),
    State1 = State0#state{jobs = Rest, background = case Background of
                                                        true -> N - 1;
                                                        false -> N
                                                    end},
    case outcome(What, XName, Reason, State1) of
        again ->
            begin_job(XName, #job{what = What, began = Began, froms = Froms, next = Next},
                      min(max(Took, ?RESTART_MS), ?MAX_RESTART_MS), State1);
        {Reply, State2} ->
            lists:foreach(fun (From) -> gen_server:reply(From, Reply) end, Froms),
            start_more(
              case Next of
                  [] ->
                      State2;
                  [{Then, Waiting} | Others] ->
                      begin_job(XName, #job{what = Then, began = now_ms(), froms = Waiting,
                                            next = Others}, 0, State2)
              end)
    end.

described(ensure) -> "starting its delay queue";
described(delete) -> "removing what the deleted exchange held".

outcome(ensure, XName, {done, ok}, #state{pauses = Pauses} = State) ->
    {ok, State#state{pauses = maps:remove(XName, Pauses)}};
outcome(ensure, XName, {done, {error, _} = Error}, State) ->
    {Error, start_again_if_there(XName, State)};
outcome(delete, XName, {done, ok}, State) ->
    {ok, forget(XName, State)};
outcome(What, XName, Reason, State) ->
    %% noproc: it ended while there was no registry.
    _ = Reason =/= noproc
        andalso ?LOG_ERROR("delayed messages of ~ts: ~s failed: ~0P",
                           [rabbit_delay_text:rs(XName), described(What), Reason, 20], ?LOG_DOMAIN),
    case What of
        ensure ->
            {{error, "its delay queue cannot be started, see the broker's log"},
             start_again_if_there(XName, State)};
        delete ->
            %% Nothing of this name may begin before that is done.
            again
    end.

%% What is held waits for no publisher.
start_again_if_there(XName, State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} -> start_again(XName, State);
        {error, not_found} -> State
    end.

start_again(XName, #state{pauses = Pauses} = State) ->
    Pause = maps:get(XName, Pauses, ?RESTART_MS),
    _ = erlang:send_after(Pause, self(), {restart, XName}),
    State#state{pauses = Pauses#{XName => min(2 * Pause, ?MAX_RESTART_MS)}}.

start_later(XName, #state{queued = Queued, jobs = Jobs, backlog = Backlog} = State) ->
    case is_map_key(XName, Queued) orelse is_map_key(XName, Jobs) of
        true -> State;
        false -> start_more(State#state{queued = Queued#{XName => []},
                                        backlog = queue:in(XName, Backlog)})
    end.

start_more(#state{background = N} = State) when N >= ?BACKGROUND ->
    State;
start_more(#state{backlog = Backlog0, queued = Queued, jobs = Jobs, background = N} = State0) ->
    case queue:out(Backlog0) of
        {{value, XName}, Backlog} ->
            State = State0#state{backlog = Backlog, queued = maps:remove(XName, Queued)},
            start_more(case is_map_key(XName, Jobs) of
                           true ->
                               State;
                           false ->
                               begin_job(XName, #job{what = ensure, began = now_ms(),
                                                     background = true},
                                         0, State#state{background = N + 1})
                       end);
        {empty, _} ->
            State0
    end.

monitor_exchange(XName, Sup, #state{exchanges = Exchanges, monitors = Monitors} = State) ->
    case Exchanges of
        #{XName := Sup} ->
            State;
        _ ->
            State#state{exchanges = Exchanges#{XName => Sup},
                        monitors = Monitors#{monitor(process, Sup) => XName}}
    end.

forget(XName, #state{exchanges = Exchanges, monitors = Monitors, pauses = Pauses} = State) ->
    Refs = case is_map_key(XName, Exchanges) of
               true -> [Ref || {Ref, Name} <- maps:to_list(Monitors), Name =:= XName];
               false -> []
           end,
    lists:foreach(fun (Ref) -> demonitor(Ref, [flush]) end, Refs),
    State#state{exchanges = maps:remove(XName, Exchanges), monitors = maps:without(Refs, Monitors),
                pauses = maps:remove(XName, Pauses)}.

heal_all(#state{exchanges = Exchanges} = State) ->
    maps:fold(
      fun (XName, _, S) ->
              case lookup(XName, #row.queue) of
                  Pid when is_pid(Pid) ->
                      case rabbit_delay_broker:queue_pid(queue_name(XName)) of
                          Pid -> S;
                          _ -> heal(XName, S)
                      end;
                  undefined ->
                      S
              end
      end, State, Exchanges).

%% Not while the pause after the last attempt lasts.
heal(XName, #state{pauses = Pauses} = State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} when not is_map_key(XName, Pauses) -> start_later(XName, State);
        _ -> State
    end.

sample_all() ->
    lists:foreach(
      fun (#row{counters = undefined}) ->
              ok;
          (#row{exchange = XName, counters = Counters, samples = Samples}) ->
              case rabbit_delay_statistics:sample(Counters, Samples) of
                  Samples -> ok;
                  More -> update_known(XName, {#row.samples, More})
              end
      end, rows()).

%% Exchanges that hold something are started.
-dialyzer({nowarn_function, look_for_members/1}).
look_for_members(#state{looking = undefined} = State) ->
    {_, Ref} = spawn_monitor(fun () -> exit({done, put_aside_homeless()}) end),
    State#state{looking = {Ref, false}};
look_for_members(#state{looking = {Ref, _}} = State) ->
    State#state{looking = {Ref, true}}.

%% ----------------------------------------------------- what is done, in a process of its own

do(ensure, XName, Registry) ->
    case running(row(XName)) of
        none -> start(XName, Registry);
        _ -> declare(XName)
    end;
do(delete, XName, _) ->
    %% From here on it cannot come back, whatever happens.
    Member = rabbit_delay_raft:mark_deleted(XName),
    ok = case running(row(XName)) of
             none -> ok;
             Sup -> rabbit_delay_exchanges_sup:stop_exchange(Sup)
         end,
    ok = delete_record(XName),
    %% A server that is just starting has its permit until here.
    ok = rabbit_delay_raft:delete_member(XName, Member),
    Taken = ets:take(?MODULE, XName),
    _ = [ok = rabbit_delay_store:close(Store) || #row{store = Store} <- Taken, Store =/= undefined],
    _ = [rabbit_delay_counters:move(C, gone_counters()) || #row{counters = C} <- Taken,
                                                           C =/= undefined],
    ok.

%% One that has to wait until there are file descriptors is tried again.
start(XName, Registry) ->
    case rabbit_delay_system:room_for_store() of
        ok ->
            start_processes(XName, Registry);
        {error, Why} = Error ->
            ?LOG_ERROR("delayed messages of ~ts: not started: ~ts", [rabbit_delay_text:rs(XName), Why],
                       ?LOG_DOMAIN),
            Error
    end.

start_processes(XName, Registry) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            Durable = rabbit_delay_broker:is_durable(X),
            case rabbit_delay_exchanges_sup:start_exchange(XName, Durable) of
                {ok, Sup} ->
                    Registry ! {started, XName, Sup},
                    declare(XName);
                {error, Reason} ->
                    ?LOG_ERROR("delayed messages of ~ts: cannot be started: ~0P",
                               [rabbit_delay_text:rs(XName), Reason, 20], ?LOG_DOMAIN),
                    {error, "its delay queue cannot be started, see the broker's log"}
            end;
        {error, not_found} ->
            {error, "the exchange does not exist"}
    end.

declare(XName) ->
    case lookup(XName, #row.queue) of
        Pid when is_pid(Pid) ->
            %% The metadata store may throw where it has no majority.
            try rabbit_delay_broker:declare_queue(queue_name(XName), XName, Pid) of
                ok -> ok;
                {error, Reason} -> {error, io_lib:format("~0p", [Reason])}
            catch
                Class:Reason ->
                    ?LOG_ERROR("delayed messages of ~ts: its internal queue cannot be declared: ~0P",
                               [rabbit_delay_text:rs(XName), {Class, Reason}, 20], ?LOG_DOMAIN),
                    {error, "the broker's metadata store does not take the record of its delay queue"}
            end;
        undefined ->
            {error, "its delay queue is not running"}
    end.

%% What belongs to no exchange is put aside, or discarded if its exchange was not durable. Answers
%% the exchanges that hold something and can be started. One whose vhost is not up starts with its
%% first message, or at the next boot.
put_aside_homeless() ->
    Durable = maps:from_list([{rabbit_delay_broker:exchange_name(X), true}
                              || X <- rabbit_delay_broker:durable_delayed_exchanges()]),
    lists:filtermap(fun (Member) -> has_home(Member, Durable) end, rabbit_delay_raft:members()).

has_home({XName, IsDurable, Uid}, Durable) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} ->
            {true, XName};
        {error, not_found} when is_map_key(XName, Durable) ->
            false;
        {error, not_found} when not IsDurable ->
            ok = rabbit_delay_raft:discard_member(Uid),
            false;
        {error, not_found} ->
            Result = rabbit_delay_raft:quarantine_member(Uid),
            ?LOG_WARNING("delayed messages of ~ts, which does not exist any more, are put aside: "
                         "~0p. Delete that directory to be rid of them.",
                         [rabbit_delay_text:rs(XName), Result], ?LOG_DOMAIN),
            false
    end.
