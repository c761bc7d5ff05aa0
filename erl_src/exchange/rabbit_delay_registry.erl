%% SPDX-License-Identifier: MPL-2.0

%% Which exchanges delay messages at present, and the processes that do it. An exchange's processes
%% are started when it is first asked to delay a message, or after a restart if it holds some.
%%
%% The broker's record of an exchange's internal queue is derived from this: it is made with the
%% process, and made again whenever it is found missing, by route/1 and by a timer.
-module(rabbit_delay_registry).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include("rabbit_delay.hrl").

-export([create_table/0, start_link/0, recover/0, withdraw/0, system_up/0]).
-export([ensure/1, delete/1, leader/2, leader/3, queue_name/1, pending/1, stat/1, overdue/1,
         register_queue/2, register_dispatcher/2, register_store/2, register_paused/2, queue/1,
         dispatcher/1, store/1, is_paused/1,
         counters/1, known_counters/1, all_counters/0, gone_counters/0, samples/1, checkpointed/2,
         permit_start/1, take_permit/1, refuse/2, refusal/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% The queue names of clients cannot begin with "amq.".
-define(QUEUE_PREFIX, "amq.delayed.").
-define(RECOVERED, {?MODULE, recovered}).
-define(GONE_COUNTERS, {?MODULE, gone_counters}).
-define(HEAL_MS, 1000).
-define(RESTART_MS, 1000).

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
              refusal :: string() | undefined}).

-record(state, {exchanges = #{} :: #{rabbit_exchange:name() => pid()},
                monitors = #{} :: #{reference() => rabbit_exchange:name()}}).

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

-spec samples(rabbit_exchange:name()) -> rabbit_delay_statistics:samples().
samples(XName) ->
    case lookup(XName, #row.samples) of
        undefined -> [];
        Samples -> Samples
    end.

%% Those of each exchange that has processes.
-spec all_counters() -> [{rabbit_exchange:name(), rabbit_delay_counters:ref()}].
all_counters() ->
    case ets:whereis(?MODULE) of
        undefined -> [];
        _ -> [{XName, Counters} || #row{exchange = XName, counters = Counters, queue = Queue}
                                       <- ets:tab2list(?MODULE),
                                   Counters =/= undefined, Queue =/= undefined]
    end.

%% A checkpoint of the exchange's store has just become durable, in so many ms. The exchange may have
%% been deleted meanwhile, and the plugin disabled.
-spec checkpointed(rabbit_exchange:name(), Ms :: non_neg_integer()) -> ok.
checkpointed(XName, Ms) ->
    case ets:whereis(?MODULE) =/= undefined andalso lookup(XName, #row.counters) of
        Absent when Absent =:= false; Absent =:= undefined -> ok;
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
    lists:foreach(
      fun (#row{exchange = XName}) -> rabbit_delay_broker:delete_queue(queue_name(XName)) end,
      ets:tab2list(?MODULE)).

%% The Ra system has been started.
-spec system_up() -> ok.
system_up() ->
    gen_server:cast(?MODULE, start_members).

-spec queue_name(rabbit_exchange:name()) -> rabbit_amqqueue:name().
queue_name(#resource{kind = exchange, name = Name} = XName) ->
    XName#resource{kind = queue, name = <<?QUEUE_PREFIX, Name/binary>>}.

%% Makes sure that the exchange has a live internal queue with a record, and names it.
-spec ensure(rabbit_exchange:name()) -> {ok, rabbit_amqqueue:name()} | {error, Why :: iodata()}.
ensure(XName) ->
    QName = queue_name(XName),
    case ets:lookup(?MODULE, XName) of
        [#row{refusal = Why}] when Why =/= undefined ->
            {error, Why};
        [#row{queue = Pid}] when is_pid(Pid) ->
            case rabbit_delay_broker:queue_pid(QName) of
                Pid -> {ok, QName};
                _ -> call({ensure, XName}, QName)
            end;
        _ ->
            call({ensure, XName}, QName)
    end.

call(Request, QName) ->
    try gen_server:call(?MODULE, Request, infinity) of
        ok -> {ok, QName};
        {error, _} = Error -> Error
    catch
        exit:_ -> {error, "the plugin is not running"}
    end.

%% Ends the exchange's processes and discards its messages.
-spec delete(rabbit_exchange:name()) -> ok.
delete(XName) ->
    try
        gen_server:call(?MODULE, {delete, XName}, infinity)
    catch
        exit:{noproc, _} -> ok
    end.

%% An effect of the Raft machine: this node's member leads. Its store is known from here on, before
%% anything that it holds has been confirmed.
-spec leader(rabbit_exchange:name(), pid(), rabbit_delay_store:store()) -> ok.
leader(XName, ServerPid, Store) ->
    ok = register_store(XName, Store),
    leader(XName, ServerPid).

-spec leader(rabbit_exchange:name(), pid()) -> ok.
leader(XName, ServerPid) ->
    case ets:lookup(?MODULE, XName) of
        [#row{queue = Queue, dispatcher = Dispatcher}] ->
            _ = [rabbit_delay_queue:leader(Queue, ServerPid) || is_pid(Queue)],
            _ = [rabbit_delay_dispatcher:leader(Dispatcher, ServerPid) || is_pid(Dispatcher)],
            ok;
        [] ->
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

%% How many messages should have been released by now and are not in flight. Looks at every message.
-spec overdue(rabbit_exchange:name()) -> non_neg_integer().
overdue(XName) ->
    case lookup(XName, #row.store) of
        undefined ->
            0;
        Store ->
            case {rabbit_delay_store:count(Store, 0, rabbit_delay_config:now_ms()), stat(XName)} of
                {{ok, Due, _}, #{taken := Taken}} -> max(Due - Taken, 0);
                {{error, _}, _} -> 0
            end
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
    case ets:lookup(?MODULE, XName) of
        [Row] -> element(Field, Row);
        [] -> undefined
    end.

update(XName, Update) ->
    _ = ets:insert_new(?MODULE, #row{exchange = XName}),
    true = ets:update_element(?MODULE, XName, Update),
    ok.

-spec init([]) -> {ok, #state{}}.
init([]) ->
    _ = erlang:send_after(?HEAL_MS, self(), heal),
    %% Those that an earlier registry left running are adopted.
    State = lists:foldl(fun ({_, Sup, _, _}, S) -> adopt(Sup, S) end, #state{},
                        supervisor:which_children(rabbit_delay_exchanges_sup)),
    {ok, State}.

-spec handle_call(term(), term(), #state{}) -> {reply, ok | {error, iodata()}, #state{}}.
handle_call({ensure, XName}, _From, State0) ->
    {Reply, State} = ensure_started(XName, State0),
    {reply, Reply, State};
handle_call({delete, XName}, _From, State0) ->
    State = stop(XName, State0),
    ok = rabbit_delay_broker:delete_queue(queue_name(XName)),
    %% A server that is just starting has its permit until here.
    ok = rabbit_delay_raft:delete_member(XName),
    Row = ets:take(?MODULE, XName),
    _ = [ok = rabbit_delay_store:close(Store) || #row{store = Store} <- Row, Store =/= undefined],
    _ = [rabbit_delay_counters:move(C, gone_counters()) || #row{counters = C} <- Row,
                                                          C =/= undefined],
    {reply, ok, State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(start_members, State) ->
    case persistent_term:get(?RECOVERED) andalso rabbit_delay_system:status() =:= up of
        true -> {noreply, start_members(State)};
        false -> {noreply, State}
    end.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(heal, State) ->
    _ = erlang:send_after(?HEAL_MS, self(), heal),
    ok = heal_all(State),
    ok = sample_all(),
    ok = rabbit_delay_prometheus:ensure_registered(),
    {noreply, State};
handle_info({'DOWN', Ref, process, _, Reason}, #state{monitors = Monitors} = State) ->
    case maps:take(Ref, Monitors) of
        {XName, Rest} ->
            ?LOG_WARNING("delayed messages of ~s: stopped (~0P), will be started again",
                         [rabbit_misc:rs(XName), Reason, 10], ?LOG_DOMAIN),
            _ = erlang:send_after(?RESTART_MS, self(), {restart, XName}),
            {noreply, State#state{monitors = Rest,
                                  exchanges = maps:remove(XName, State#state.exchanges)}};
        error ->
            {noreply, State}
    end;
handle_info({restart, XName}, State0) ->
    {_, State} = ensure_started(XName, State0),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

ensure_started(XName, #state{exchanges = Exchanges} = State) ->
    case Exchanges of
        #{XName := _} ->
            {declare(XName), State};
        _ ->
            case rabbit_delay_broker:lookup_exchange(XName) of
                {ok, X} -> start(XName, rabbit_delay_broker:is_durable(X), State);
                {error, not_found} -> {{error, "the exchange does not exist"}, State}
            end
    end.

start(XName, Durable, State) ->
    case rabbit_delay_exchanges_sup:start_exchange(XName, Durable) of
        {ok, Sup} ->
            {declare(XName), monitor_exchange(XName, Sup, State)};
        {error, Reason} ->
            ?LOG_ERROR("delayed messages of ~s: cannot be started: ~0P",
                       [rabbit_misc:rs(XName), Reason, 20], ?LOG_DOMAIN),
            {{error, "its delay queue cannot be started, see the broker's log"}, State}
    end.

monitor_exchange(XName, Sup, #state{exchanges = Exchanges, monitors = Monitors} = State) ->
    State#state{exchanges = Exchanges#{XName => Sup},
                monitors = Monitors#{monitor(process, Sup) => XName}}.

adopt(Sup, State) ->
    case [Pid || {rabbit_delay_queue, Pid, _, _} <- supervisor:which_children(Sup), is_pid(Pid)] of
        [Queue] ->
            case lists:keyfind(Queue, #row.queue, ets:tab2list(?MODULE)) of
                #row{exchange = XName} -> monitor_exchange(XName, Sup, State);
                false -> State
            end;
        [] ->
            State
    end.

stop(XName, #state{exchanges = Exchanges, monitors = Monitors} = State) ->
    case maps:take(XName, Exchanges) of
        {Sup, Rest} ->
            Refs = [Ref || {Ref, Name} <- maps:to_list(Monitors), Name =:= XName],
            lists:foreach(fun (Ref) -> demonitor(Ref, [flush]) end, Refs),
            ok = rabbit_delay_exchanges_sup:stop_exchange(Sup),
            State#state{exchanges = Rest, monitors = maps:without(Refs, Monitors)};
        error ->
            State
    end.

declare(XName) ->
    case ets:lookup(?MODULE, XName) of
        [#row{queue = Pid}] when is_pid(Pid) ->
            case rabbit_delay_broker:declare_queue(queue_name(XName), XName, Pid) of
                ok -> ok;
                {error, Reason} -> {error, io_lib:format("~0p", [Reason])}
            end;
        _ ->
            {error, "its delay queue is not running"}
    end.

heal_all(#state{exchanges = Exchanges}) ->
    lists:foreach(
      fun (XName) ->
              case ets:lookup(?MODULE, XName) of
                  [#row{queue = Pid}] when is_pid(Pid) ->
                      case rabbit_delay_broker:queue_pid(queue_name(XName)) of
                          Pid -> ok;
                          _ -> heal(XName)
                      end;
                  _ ->
                      ok
              end
      end, maps:keys(Exchanges)).

heal(XName) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} -> declare(XName);
        {error, not_found} -> ok
    end.

sample_all() ->
    lists:foreach(
      fun (#row{counters = undefined}) ->
              ok;
          (#row{exchange = XName, counters = Counters, samples = Samples}) ->
              case rabbit_delay_statistics:sample(Counters, Samples) of
                  Samples -> ok;
                  More -> update(XName, {#row.samples, More})
              end
      end, ets:tab2list(?MODULE)).

%% Exchanges that hold something are started.
start_members(State) ->
    lists:foldl(fun (XName, S) ->
                        {_, S1} = ensure_started(XName, S),
                        S1
                end, State, put_aside_homeless()).

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
            ?LOG_WARNING("delayed messages of ~s, which does not exist any more, are put aside: "
                         "~0p. Delete that directory to be rid of them.",
                         [rabbit_misc:rs(XName), Result], ?LOG_DOMAIN),
            false
    end.
