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
%%
%% Longer than other files are, as whoever asks for what is known of an exchange asks here.
%%
%% What it keeps for others is in rabbit_delay_table, which is read and written here without asking this
%% process, and rabbit_delay_figures; which job is next, in rabbit_delay_jobs; and what the jobs do, in
%% rabbit_delay_life.
-module(rabbit_delay_registry).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").
-include("rabbit_delay_table.hrl").

-export([create_table/0, start_link/0, recover/0, withdraw/0, system_up/0]).
-export([ensure/1, ensure_for/1, start_later/1, delete/1, end_other/2, life/1, register_life/2, queue_name/1]).
-export([leader/2, leader/3, no_leader/1, leader_of/1, register_leader/2, server_id/1, member_uid/1,
         group_size/1, register_server/3, pending/1, stat/1, overdue/2,
         register_queue/2, register_dispatcher/2, register_store/2, register_paused/2, queue/1,
         dispatcher/1, store/1, is_paused/1,
         counters/1, known_counters/1, dropped/1, all_counters/0, gone_counters/0, samples/1,
         checkpointed/2, permit_start/1, take_permit/1, refuse/2, refusal/1,
         register_unable/2, unable/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% The queue names of clients cannot begin with "amq.".
-define(QUEUE_PREFIX, "amq.delayed.").
-define(RECOVERED, {?MODULE, recovered}).
-define(HEAL_MS, 1000).
%% The pauses between attempts to remove what a deleted exchange held.
-define(RESTART_MS, 1000).
-define(MAX_RESTART_MS, 30000).
%% The longest that others wait for a job. After that nobody waits for it, for so long or until it
%% ends.
-define(WAIT_MS, 5000).
-define(LATE_MS, 30000).
-define(ASK_AGAIN_MS, 50).

-record(state, {%% the supervisors of those that run
                exchanges = #{} :: #{rabbit_exchange:name() => pid()},
                monitors = #{} :: #{reference() => rabbit_exchange:name()},
                jobs = rabbit_delay_jobs:new() :: rabbit_delay_jobs:jobs(),
                refs = #{} :: #{reference() => rabbit_exchange:name()},
                %% looks for what is to be started, and whether it is to look again
                looking :: undefined | {reference(), Again :: boolean()}}).

%% Owned by the supervisor, so that it outlives this process; as does the note that the broker has
%% recovered its exchanges.
-spec create_table() -> ok.
create_table() ->
    ok = rabbit_delay_table:create(),
    ok = rabbit_delay_figures:create(),
    persistent_term:put(?RECOVERED, false).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The broker has recovered its exchanges: their bindings may need help, and what was held for
%% exchanges that are gone is put aside, before a client can declare one of the same name.
-spec recover() -> ok.
recover() ->
    _ = rabbit_delay_life:put_aside_homeless(),
    Exchanges = rabbit_delay_broker:delayed_exchanges(),
    lists:foreach(
      fun (X) ->
              rabbit_delay_broker:restore_bindings(rabbit_delay_exchange:underlying_type(X), X)
      end, Exchanges),
    ok = rabbit_delay_lost_record:mark_all([rabbit_delay_broker:exchange_name(X) || X <- Exchanges]),
    persistent_term:put(?RECOVERED, true),
    ok = rabbit_delay_official_tables:announce(),
    gen_server:cast(?MODULE, start_members).

%% Takes the internal queues' records away: the plugin is being disabled.
-spec withdraw() -> ok.
withdraw() ->
    lists:foreach(fun (#row{exchange = XName}) -> rabbit_delay_life:delete_record(XName) end,
                  rabbit_delay_table:rows()).

%% The Ra system has been started.
-spec system_up() -> ok.
system_up() ->
    gen_server:cast(?MODULE, start_members).

%% Each node of a cluster has its own.
-spec queue_name(rabbit_exchange:name()) -> rabbit_amqqueue:name().
queue_name(XName) ->
    case rabbit_delay_table:lookup(XName, #row.queue_name) of
        undefined -> queue_name(XName, cluster_nodes());
        QName -> QName
    end.

%% The metadata store may not be running, and then it throws.
cluster_nodes() ->
    try
        rabbit_delay_broker:cluster_nodes()
    catch
        throw:_ -> [node()]
    end.

queue_name(#resource{kind = exchange, name = Name} = XName, [_]) ->
    XName#resource{kind = queue, name = <<?QUEUE_PREFIX, Name/binary>>};
queue_name(#resource{kind = exchange, name = Name} = XName, _) ->
    Here = atom_to_binary(node()),
    XName#resource{kind = queue, name = <<?QUEUE_PREFIX, Name/binary, $@, Here/binary>>}.

%% Makes sure that the exchange has a live internal queue with a record, and names it. Takes
%% ?WAIT_MS at most, and no time while something has taken longer.
-spec ensure(rabbit_exchange:name()) -> {ok, rabbit_amqqueue:name()} | {error, Why :: iodata()}.
ensure(XName) -> ensure_row(XName, rabbit_delay_table:row(XName)).

%% The same for this exchange, and not for an earlier one of its name that was deleted while this node was
%% away: what runs here for that one is ended.
-spec ensure_for(rabbit_delay_broker:exchange()) ->
          {ok, rabbit_amqqueue:name()} | {error, Why :: iodata()}.
ensure_for(X) ->
    XName = rabbit_delay_broker:exchange_name(X),
    Row = rabbit_delay_table:row(XName),
    case rabbit_delay_life:is_other(Row, X) of
        true -> within(XName, Row#row.late, fun (Until) -> put_aside(XName, Until) end);
        false -> ensure_row(XName, Row)
    end.

put_aside(XName, Until) ->
    case ask({put_aside, XName}, Until) of
        timeout -> timeout;
        {error, _} = Error -> Error;
        _ -> ensure_until(XName, Until)
    end.

ensure_row(XName, Row) ->
    case Row of
        #row{job = {What, _}, late = Late} when What =/= ensure ->
            %% What is there is an earlier exchange's.
            ensure(XName, Late);
        #row{refusal = Why} when Why =/= undefined ->
            {error, Why};
        #row{queue = Pid, queue_name = QName, late = Late} when is_pid(Pid) ->
            case rabbit_delay_broker:queue_pid(QName) of
                Pid -> {ok, QName};
                _ -> ensure(XName, Late)
            end;
        #row{late = Late} ->
            ensure(XName, Late);
        none ->
            ensure(XName, undefined)
    end.

ensure(XName, Late) ->
    within(XName, Late, fun (Until) -> ensure_until(XName, Until) end).

ensure_until(XName, Until) ->
    case ask({ensure, XName}, Until) of
        ok -> routable(XName, Until);
        Other -> Other
    end.

%% What takes ?WAIT_MS at most, and is not tried while something has taken longer.
within(XName, Late, Do) ->
    case is_integer(Late) andalso now_ms() < Late of
        true ->
            {error, late()};
        false ->
            case Do(now_ms() + ?WAIT_MS) of
                timeout ->
                    _ = rabbit_delay_table:update_known(XName, {#row.late, now_ms() + ?LATE_MS}),
                    {error, late()};
                Result ->
                    Result
            end
    end.

%% The broker drops, and confirms, what is routed to a queue that it does not find.
routable(XName, Until) ->
    QName = queue_name(XName),
    case {rabbit_delay_broker:queue_pid(QName), now_ms() < Until} of
        {Pid, _} when is_pid(Pid) ->
            {ok, QName};
        {undefined, true} ->
            receive after ?ASK_AGAIN_MS -> ok end,
            routable(XName, Until);
        {undefined, false} ->
            {error, late()}
    end.

late() ->
    io_lib:format("its delay queue was not ready within ~b ms: the broker's metadata store does not "
                  "answer, or what a deleted exchange of this name held is still being removed",
                  [?WAIT_MS]).

%% The exchange's processes are to run here, and nobody waits for it.
-spec start_later(rabbit_exchange:name()) -> ok.
start_later(XName) ->
    gen_server:cast(?MODULE, {start_later, XName}).

%% Ends the exchange's processes and discards its messages. If that takes longer than ?WAIT_MS it
%% goes on, and an exchange of this name that is made meanwhile begins when it is done.
-spec delete(rabbit_delay_broker:exchange()) -> ok.
delete(X) ->
    XName = rabbit_delay_broker:exchange_name(X),
    %% One that was away finds out for itself: see rabbit_delay_life.
    _ = gen_server:abcast(nodes(), ?MODULE, {deleted, XName, rabbit_delay_group:life_of(X)}),
    _ = ask({delete, XName}, now_ms() + ?WAIT_MS),
    ok.

%% What runs here for an earlier exchange of this name, of another life, ends.
-spec end_other(rabbit_exchange:name(), Life :: binary()) -> ok | timeout | {error, Why :: iodata()}.
end_other(XName, Life) ->
    case rabbit_delay_life:serves_other(rabbit_delay_table:row(XName), Life) of
        true -> ask({put_aside, XName}, now_ms() + ?WAIT_MS);
        false -> ok
    end.

%% Of the group that its processes here have joined.
-spec life(rabbit_exchange:name()) -> binary() | undefined.
life(XName) -> rabbit_delay_table:lookup(XName, #row.life).

-spec register_life(rabbit_exchange:name(), Life :: binary() | undefined) -> ok.
register_life(XName, Life) -> rabbit_delay_table:update(XName, {#row.life, Life}).

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
%% anything that it holds has been confirmed. The other nodes are told, if that costs no waiting.
-spec leader(rabbit_exchange:name(), ra:server_id(), rabbit_delay_store:store()) -> ok.
leader(XName, ServerId, Store) ->
    ok = rabbit_delay_table:update(XName, [{#row.store, Store}, {#row.leads, true}]),
    lists:foreach(fun (Node) ->
                          erlang:send({?MODULE, Node}, {leader, XName, ServerId},
                                      [noconnect, nosuspend])
                  end, nodes()),
    leader(XName, ServerId).

%% Whoever follows it here is told.
-spec leader(rabbit_exchange:name(), ra:server_id()) -> ok.
leader(XName, {_, Node} = ServerId) ->
    case rabbit_delay_table:row(XName) of
        #row{queue = Queue, dispatcher = Dispatcher, life = Life} ->
            case rabbit_delay_group:may_lead(XName, ServerId, Life) of
                true ->
                    ok = register_leader(XName, ServerId),
                    _ = [rabbit_delay_queue:leader(Queue, ServerId) || is_pid(Queue)],
                    _ = [rabbit_delay_dispatcher:leader(Dispatcher, ServerId)
                         || is_pid(Dispatcher), Node =:= node()],
                    ok;
                false ->
                    ok
            end;
        none ->
            ok
    end.

%% An effect of the Raft machine: this node's member does not lead. What its dispatcher has in its hands
%% is another's to release from now on, so it has ended when this returns.
-spec no_leader(rabbit_exchange:name()) -> ok.
no_leader(XName) ->
    case rabbit_delay_table:row(XName) of
        #row{leads = true, group_size = Members, dispatcher = Dispatcher} when Members > 1 ->
            ok = rabbit_delay_table:update(XName, {#row.leads, false}),
            case is_pid(Dispatcher) of
                true -> rabbit_delay_dispatcher:stop_leading(Dispatcher);
                false -> ok
            end;
        _ ->
            ok
    end.

%% ----------------------------------------------------------------------------- who is who

-spec register_queue(rabbit_exchange:name(), pid()) -> ok.
register_queue(XName, Pid) ->
    rabbit_delay_table:update(XName, [{#row.queue, Pid}, {#row.queue_name, queue_name(XName)}]).

-spec register_dispatcher(rabbit_exchange:name(), pid()) -> ok.
register_dispatcher(XName, Pid) -> rabbit_delay_table:update(XName, {#row.dispatcher, Pid}).

-spec register_store(rabbit_exchange:name(), rabbit_delay_store:store() | undefined) -> ok.
register_store(XName, Store) -> rabbit_delay_table:update(XName, {#row.store, Store}).

-spec register_paused(rabbit_exchange:name(), boolean()) -> ok.
register_paused(XName, Paused) -> rabbit_delay_table:update(XName, {#row.paused, Paused}).

%% The exchange's Raft server may start, once: see rabbit_delay_system.
-spec permit_start(rabbit_exchange:name()) -> ok.
permit_start(XName) -> rabbit_delay_table:update(XName, {#row.permit, true}).

%% By the server that starts.
-spec take_permit(rabbit_exchange:name()) -> boolean().
take_permit(XName) ->
    Permitted = rabbit_delay_table:lookup(XName, #row.permit) =:= true,
    _ = Permitted andalso rabbit_delay_table:update(XName, {#row.permit, false}),
    Permitted.

%% Its files are of a later version: see rabbit_delay_newer. It is tried again when the plugin is
%% started.
-spec refuse(rabbit_exchange:name(), Why :: string()) -> ok.
refuse(XName, Why) -> rabbit_delay_table:update(XName, {#row.refusal, Why}).

-spec refusal(rabbit_exchange:name()) -> string() | undefined.
refusal(XName) -> rabbit_delay_table:lookup(XName, #row.refusal).

-spec register_unable(rabbit_exchange:name(), none | string()) -> ok.
register_unable(XName, Why) -> rabbit_delay_table:update(XName, {#row.unable, Why}).

%% Why the exchange's store can take no more.
-spec unable(rabbit_exchange:name()) -> none | string().
unable(XName) ->
    case rabbit_delay_table:lookup(XName, #row.unable) of
        undefined -> none;
        Why -> Why
    end.

%% This node's member, of a group of so many.
-spec register_server(rabbit_exchange:name(), rabbit_delay_group:member(), Members :: pos_integer()) ->
          ok.
register_server(XName, {ServerId, Uid}, Members) ->
    rabbit_delay_table:update(XName, [{#row.server_id, ServerId}, {#row.uid, Uid},
                                      {#row.group_size, Members}]).

-spec member_uid(rabbit_exchange:name()) -> rabbit_delay_raft:uid() | undefined.
member_uid(XName) -> rabbit_delay_table:lookup(XName, #row.uid).

-spec group_size(rabbit_exchange:name()) -> pos_integer().
group_size(XName) ->
    case rabbit_delay_table:lookup(XName, #row.group_size) of
        undefined -> 1;
        Members -> Members
    end.

%% This node's member, when it was last started.
-spec server_id(rabbit_exchange:name()) -> ra:server_id() | undefined.
server_id(XName) -> rabbit_delay_table:lookup(XName, #row.server_id).

-spec register_leader(rabbit_exchange:name(), ra:server_id() | undefined) -> ok.
register_leader(XName, ServerId) -> rabbit_delay_table:update(XName, {#row.leader, ServerId}).

%% Who leads, as far as this node knows.
-spec leader_of(rabbit_exchange:name()) -> ra:server_id() | undefined.
leader_of(XName) -> rabbit_delay_table:lookup(XName, #row.leader).

-spec queue(rabbit_exchange:name()) -> pid() | undefined.
queue(XName) -> rabbit_delay_table:lookup(XName, #row.queue).

-spec dispatcher(rabbit_exchange:name()) -> pid() | undefined.
dispatcher(XName) -> rabbit_delay_table:lookup(XName, #row.dispatcher).

%% The exchange's store, where it is open.
-spec store(rabbit_exchange:name()) -> rabbit_delay_store:store() | undefined.
store(XName) -> rabbit_delay_table:lookup(XName, #row.store).

-spec is_paused(rabbit_exchange:name()) -> boolean().
is_paused(XName) -> rabbit_delay_table:lookup(XName, #row.paused) =:= true.

%% ------------------------------------------------------- figures, see rabbit_delay_figures

-spec counters(rabbit_exchange:name()) -> rabbit_delay_counters:ref().
counters(XName) -> rabbit_delay_figures:counters(XName).

-spec known_counters(rabbit_exchange:name()) -> rabbit_delay_counters:ref() | undefined.
known_counters(XName) -> rabbit_delay_figures:known_counters(XName).

-spec dropped(rabbit_exchange:name()) -> ok.
dropped(XName) -> rabbit_delay_figures:dropped(XName).

-spec samples(rabbit_exchange:name()) -> rabbit_delay_statistics:samples().
samples(XName) -> rabbit_delay_figures:samples(XName).

-spec all_counters() -> [{rabbit_exchange:name(), rabbit_delay_counters:ref()}].
all_counters() -> rabbit_delay_figures:all_counters().

-spec gone_counters() -> rabbit_delay_counters:ref().
gone_counters() -> rabbit_delay_figures:gone_counters().

-spec checkpointed(rabbit_exchange:name(), Ms :: non_neg_integer()) -> ok.
checkpointed(XName, Ms) -> rabbit_delay_figures:checkpointed(XName, Ms).

-spec pending(rabbit_exchange:name()) -> non_neg_integer().
pending(XName) -> rabbit_delay_figures:pending(XName).

-spec stat(rabbit_exchange:name()) ->
          #{pending | pending_bytes | taken | waiting | stuck_queues := non_neg_integer(),
            next_due := non_neg_integer() | infinity,
            atom() => term()}.
stat(XName) -> rabbit_delay_figures:stat(XName).

-spec overdue(rabbit_exchange:name(), map()) -> non_neg_integer().
overdue(XName, Stat) -> rabbit_delay_figures:overdue(XName, Stat).

%% ----------------------------------------------------------------------------- the process

-spec init([]) -> {ok, #state{}}.
init([]) ->
    _ = erlang:send_after(?HEAL_MS, self(), heal),
    %% What an earlier registry left running is adopted.
    {ok, lists:foldl(fun adopt/2, #state{}, rabbit_delay_table:rows())}.

adopt(#row{exchange = XName, job = Job} = Row, State0) ->
    State = case rabbit_delay_life:running(Row) of
                none -> State0;
                Sup -> monitor_exchange(XName, Sup, State0)
            end,
    case Job of
        {What, Pid} ->
            #state{jobs = Jobs} = State,
            under_way(XName, Pid,
                      State#state{jobs = rabbit_delay_jobs:adopt(What, XName, now_ms(), Jobs)});
        undefined -> State
    end.

-spec handle_call(term(), gen_server:from(), #state{}) -> {noreply, #state{}}.
handle_call({What, XName}, From, State) when What =:= ensure; What =:= delete; What =:= put_aside ->
    {noreply, asked(What, XName, From, State)}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({deleted, XName, Life}, State) ->
    {noreply, case rabbit_delay_life:serves(rabbit_delay_table:row(XName), Life) of
                  true -> asked(delete, XName, none, State);
                  false -> State
              end};
handle_cast({start_later, XName}, State) ->
    {noreply, start_later(XName, State)};
handle_cast(start_members, State) ->
    case persistent_term:get(?RECOVERED) andalso rabbit_delay_system:status() =:= up of
        true -> {noreply, look_for_members(State)};
        false -> {noreply, State}
    end.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(heal, State) ->
    _ = erlang:send_after(?HEAL_MS, self(), heal),
    ok = rabbit_delay_figures:sample_all(),
    ok = rabbit_delay_prometheus:ensure_registered(),
    {noreply, heal_all(State)};
handle_info({leader, XName, ServerId}, State) ->
    ok = leader(XName, ServerId),
    {noreply, State};
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
            Others = maps:filter(fun (_, Pid) -> Pid =/= Sup end, Exchanges),
            {noreply, stopped(XName, Reason, State#state{monitors = Rest, exchanges = Others})};
        error ->
            {noreply, State}
    end;
handle_info({restart, XName}, State) ->
    {noreply, start_later(XName, State)};
handle_info(_, State) ->
    {noreply, State}.

%% ------------------------------------------------------------------------------------ jobs

%% Of one that is deleted, or put aside, that is the job's doing.
stopped(XName, Reason, #state{jobs = Jobs} = State) ->
    case rabbit_delay_jobs:is_under_way(XName, Jobs) andalso rabbit_delay_jobs:current(XName, Jobs) of
        {What, _} when What =/= ensure ->
            State;
        _ ->
            ?LOG_WARNING("delayed messages of ~ts: stopped (~0P), will be started again",
                         [rabbit_delay_text:rs(XName), Reason, 10], ?LOG_DOMAIN),
            start_again(XName, State)
    end.

asked(What, XName, From, #state{jobs = Jobs0} = State) ->
    case rabbit_delay_jobs:ask(What, XName, From, now_ms(), Jobs0) of
        {start, Jobs} -> begin_job(What, XName, 0, State#state{jobs = Jobs});
        {wait, Jobs} -> State#state{jobs = Jobs}
    end.

%% It begins when the table says so: another registry must find it.
-dialyzer({nowarn_function, begin_job/4}).
begin_job(What, XName, Pause, State) ->
    Registry = self(),
    Pid = spawn(fun () ->
                        receive
                            go -> exit({done, rabbit_delay_life:do(What, XName, Registry)})
                        after 2 * ?MAX_RESTART_MS ->
                            exit(abandoned)
                        end
                end),
    ok = rabbit_delay_table:update(XName, {#row.job, {What, Pid}}),
    _ = erlang:send_after(Pause, Pid, go),
    under_way(XName, Pid, State).

under_way(XName, Pid, #state{refs = Refs} = State) ->
    State#state{refs = Refs#{monitor(process, Pid) => XName}}.

ended(XName, Reason, #state{jobs = Jobs0} = State0) ->
    {What, Began} = rabbit_delay_jobs:current(XName, Jobs0),
    _ = rabbit_delay_table:update_known(XName, [{#row.job, undefined}, {#row.late, undefined}]),
    Took = now_ms() - Began,
    _ = Took > ?WAIT_MS
        andalso ?LOG_WARNING("delayed messages of ~ts: ~s took ~b ms",
                             [rabbit_delay_text:rs(XName), described(What), Took], ?LOG_DOMAIN),
    case outcome(What, XName, Reason, State0) of
        again ->
            begin_job(What, XName, min(max(Took, ?RESTART_MS), ?MAX_RESTART_MS),
                      State0#state{jobs = rabbit_delay_jobs:again(XName, Jobs0)});
        {Reply, #state{jobs = Jobs1} = State1} ->
            {Froms, Next, Jobs} = rabbit_delay_jobs:ended(XName, now_ms(), Jobs1),
            lists:foreach(fun (From) -> gen_server:reply(From, Reply) end,
                          [From || From <- Froms, From =/= none]),
            State = State1#state{jobs = Jobs},
            start_more(case Next of
                           {start, Then} -> begin_job(Then, XName, 0, State);
                           nothing -> State
                       end)
    end.

described(ensure) -> "starting its delay queue";
described(delete) -> "removing what the deleted exchange held";
described(put_aside) -> "putting aside what an earlier exchange held".

outcome(ensure, XName, {done, ok}, #state{jobs = Jobs} = State) ->
    {ok, State#state{jobs = rabbit_delay_jobs:succeeded(XName, Jobs)}};
outcome(ensure, XName, {done, {error, _} = Error}, State) ->
    {Error, start_again_if_there(XName, State)};
outcome(put_aside, _, {done, nothing}, State) ->
    {ok, State};
outcome(_, XName, {done, ok}, State) ->
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
        _ ->
            %% Nothing of this name may begin before that is done.
            again
    end.

%% What is held waits for no publisher.
start_again_if_there(XName, State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} -> start_again(XName, State);
        {error, not_found} -> State
    end.

start_again(XName, #state{jobs = Jobs0} = State) ->
    {Pause, Jobs} = rabbit_delay_jobs:failed(XName, Jobs0),
    _ = erlang:send_after(Pause, self(), {restart, XName}),
    State#state{jobs = Jobs}.

start_later(XName, #state{jobs = Jobs} = State) ->
    start_more(State#state{jobs = rabbit_delay_jobs:later(XName, Jobs)}).

start_more(#state{jobs = Jobs0} = State) ->
    case rabbit_delay_jobs:next(now_ms(), Jobs0) of
        {start, XName, Jobs} -> start_more(begin_job(ensure, XName, 0, State#state{jobs = Jobs}));
        {none, Jobs} -> State#state{jobs = Jobs}
    end.

monitor_exchange(XName, Sup, #state{exchanges = Exchanges, monitors = Monitors} = State) ->
    case Exchanges of
        #{XName := Sup} ->
            State;
        _ ->
            State#state{exchanges = Exchanges#{XName => Sup},
                        monitors = Monitors#{monitor(process, Sup) => XName}}
    end.

forget(XName, #state{exchanges = Exchanges, monitors = Monitors, jobs = Jobs} = State) ->
    Refs = case is_map_key(XName, Exchanges) of
               true -> [Ref || {Ref, Name} <- maps:to_list(Monitors), Name =:= XName];
               false -> []
           end,
    lists:foreach(fun (Ref) -> demonitor(Ref, [flush]) end, Refs),
    State#state{exchanges = maps:remove(XName, Exchanges), monitors = maps:without(Refs, Monitors),
                jobs = rabbit_delay_jobs:succeeded(XName, Jobs)}.

heal_all(#state{exchanges = Exchanges} = State) ->
    maps:fold(
      fun (XName, _, S) ->
              case rabbit_delay_table:lookup(XName, #row.queue) of
                  Pid when is_pid(Pid) ->
                      case rabbit_delay_broker:queue_pid(queue_name(XName)) of
                          Pid -> leave(XName, S);
                          _ -> heal(XName, S)
                      end;
                  undefined ->
                      S
              end
      end, State, Exchanges).

%% An exchange that was deleted and declared again while this node was cut off: nobody has told it.
leave(XName, #state{jobs = Jobs} = State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case rabbit_delay_life:is_other(rabbit_delay_table:row(XName), X)
                andalso not rabbit_delay_jobs:is_under_way(XName, Jobs) of
                true -> asked(put_aside, XName, none, State);
                false -> State
            end;
        {error, not_found} ->
            State
    end.

%% Not while the pause after the last attempt lasts.
heal(XName, #state{jobs = Jobs} = State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} ->
            case rabbit_delay_jobs:is_failing(XName, Jobs) of
                true -> State;
                false -> start_later(XName, State)
            end;
        {error, not_found} ->
            State
    end.

%% Exchanges that hold something are started.
-dialyzer({nowarn_function, look_for_members/1}).
look_for_members(#state{looking = undefined} = State) ->
    {_, Ref} = spawn_monitor(fun () -> exit({done, rabbit_delay_life:put_aside_homeless()}) end),
    State#state{looking = {Ref, false}};
look_for_members(#state{looking = {Ref, _}} = State) ->
    State#state{looking = {Ref, true}}.
