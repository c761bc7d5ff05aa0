%% SPDX-License-Identifier: MPL-2.0

%% One process per delayed exchange, at work beside its Raft leader: lets messages out when they are
%% due.
%%
%% It reads due records from the leader's own store, never through Raft; routes each by the bindings
%% as they are now; publishes it to the queues as a channel would; and when all of them have
%% confirmed it, settles it through Raft, many in an entry. So a message is delivered at least once,
%% and again only if this process, the leader or a queue ends between the two.
%%
%% Only so many messages and bytes are in flight, and to each queue only a part of them, through a
%% process of its own (rabbit_delay_publisher), so that a queue that answers late, or never, holds up
%% nobody else's messages. Messages for a queue that takes nothing wait for it, in order
%% (rabbit_delay_targets): they stay in the store, taken, and here is only their place. One that some
%% queues took and others did not is remembered with those that did, so that it goes only to the
%% others; when there are too many of these, whole messages wait.
%%
%% A message that is cancelled or replaced while it is in flight is gone from the store, on every
%% replica. It is out of our hands: the queues that take it have it, and it counts as released; if
%% none does, it is found to be gone where it is put back, and counts as cancelled.
%%
%% It begins when an entry of its own has been applied: before that, the store may still show what
%% has been settled.
%%
%% What operators ask for goes through here too (change/2), so that cancelling and releasing a message
%% cannot both succeed: what is in flight is left alone, and what is not is kept from being released
%% until the change is applied.
-module(rabbit_delay_dispatcher).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([start_link/1, leader/2, wake/2, overflow/1, counters/1, await_ready/2, change/2,
         change_async/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([change/0, changed/0]).

%% Ids: each once.
-type change() :: {cancel, [rabbit_delay_store:id()]}
                | {reschedule, [{rabbit_delay_store:id(), DueMs :: rabbit_delay_store:ms()}]}
                | pause | resume.

%% How many messages were changed, and which were not because they are in flight; the others were not
%% there any more. {error, interrupted}: the Raft leader changed, and it may have happened or not.
-type changed() :: {ok, Changed :: non_neg_integer(), InFlight :: [rabbit_delay_store:id()]}
                 | {error, not_ready | interrupted}.

%% How many records are read and published before other messages are looked at.
-define(TAKE_MESSAGES, 256).
-define(TAKE_BYTES, 4194304).

%% How many messages may wait for a queue that others have, or for several.
-define(MAX_SHARED, 100000).
%% How often it is looked at which queues are slow.
-define(TICK_MS, 250).
%% What a queue that does not send again by itself has not confirmed in this time is sent again.
-define(SETTLE_MS, 180000).
%% After this time without use a queue's publisher ends, or at once if there are so many.
-define(UNUSED_MS, 30000).
-define(MANY_PUBLISHERS, 1000).
-define(REPORT_MS, 60000).

%% At most this long is slept: the clock may be stepped meanwhile.
-define(MAX_SLEEP_MS, 1000).
-define(STORE_RETRY_MS, 1000).
-define(QUERY_MS, 30000).
-define(RATE_MS, 100).
-define(WARN_MS, 10000).
%% How often the log says of a message that only a later version can read.
-define(UNKNOWN_RETRY_MS, 600000).

%% Messages that are dropped from a full exchange at a time, and how many are looked at for that.
-define(DROP_MESSAGES, 256).
-define(DROP_LOOK_AT, 4096).

%% No answer for so long is none.
-define(CHANGE_MS, 60000).

-type parked_because() :: attempts_used_up | not_retried | queue_gone | unroutable.

-record(in_flight,
        {id :: rabbit_delay_store:id(),
         due :: rabbit_delay_store:ms(),
         bytes :: non_neg_integer(),
         %% to its queues, or to those of the dead-letter exchange, and why; a dead letter, to the
         %% queue that it died in, or to those of the parking exchange
         how = released :: released | {dead_lettered, unroutable | overdue | maxlen} |
                           returned | {parked, parked_because()},
         unsettled = [] :: [rabbit_amqqueue:name()],
         settled = [] :: [rabbit_amqqueue:name()],
         rejected = [] :: [rabbit_amqqueue:name()],
         %% those that it is to wait for, and for which of them it does already
         later = [] :: [rabbit_delay_targets:name()],
         places = [] :: [rabbit_delay_targets:name()],
         %% whether it has been in flight before, and so waits before those that have not
         order = first :: first | again}).

%% A message that waits: what it is, who has it, for whom it waits.
-type shared() :: {How :: term(), Settled :: [rabbit_amqqueue:name()],
                   [rabbit_delay_targets:name()]}.

-record(state,
        {exchange :: rabbit_exchange:name(),
         server_id :: ra:server_id(),
         leader :: undefined | {pid(), reference()},
         %% the note whose application says that the store is up to date
         note :: undefined | reference(),
         store :: undefined | rabbit_delay_store:store(),
         timer :: undefined | {DueMs :: integer(), reference()},
         %% a `pump' message is under way to ourselves
         pumping = false :: boolean(),
         max_messages :: pos_integer(),
         max_bytes :: pos_integer(),
         %% messages per second, and how many were allowed at that time, monotonic ms
         rate = infinity :: pos_integer() | infinity,
         allowance = 0.0 :: float(),
         allowed_at :: integer(),
         %% what becomes of what is later than this, ms
         overdue = deliver :: rabbit_delay_policy:overdue(),
         %% and of dead letters
         retry = none :: rabbit_delay_retry:plan() | none,
         %% published, awaiting confirms, by the sequence number they were published with
         in_flight = #{} :: #{pos_integer() => #in_flight{}},
         %% ids in flight or being settled: a reopened store hands them out again. Their sizes, and
         %% the sum of these
         ids = #{} :: #{rabbit_delay_store:id() => non_neg_integer()},
         ids_bytes = 0 :: non_neg_integer(),
         %% of those in flight
         bytes = 0 :: non_neg_integer(),
         %% an `overflow' message is under way to ourselves, or comes when something is settled
         dropping = false :: false | soon | later,
         next_seq_no = 1 :: pos_integer(),
         targets = rabbit_delay_targets:new() :: rabbit_delay_targets:targets(),
         publishers = #{} :: #{pid() => rabbit_amqqueue:name()},
         %% what this batch has for each queue, the last one first
         out = #{} :: #{rabbit_amqqueue:name() =>
                            {rabbit_delay_broker:queue(),
                             [{pos_integer(), rabbit_delay_broker:message()}]}},
         %% whose waiting messages are being published
         waking = none :: none | rabbit_delay_targets:name(),
         %% those that wait and that some queue has, or that wait for several
         shared = #{} :: #{rabbit_delay_store:id() => shared()},
         ticking = false :: boolean(),
         %% monotonic ms
         reported = 0 :: integer(),
         %% the leader's, when we last began
         term :: undefined | non_neg_integer(),
         %% confirmed by all their queues, not yet appended
         done = [] :: [rabbit_delay_store:id()],
         %% appended, not yet applied
         settling = #{} :: #{reference() => binary()},
         paused = false :: boolean(),
         %% operators' changes, appended and not yet applied, with the ids that they hold
         changing = #{} :: #{reference() => {{gen_server:from(), InFlight :: [rabbit_delay_store:id()]},
                                             change()}},
         held = #{} :: #{rabbit_delay_store:id() => []},
         %% who waits for the store
         awaiting = [] :: [gen_server:from()],
         %% until when warnings of a kind are counted only, monotonic ms, and how many were
         warned = #{} :: #{atom() => {Until :: integer(), non_neg_integer()}},
         counters :: rabbit_delay_counters:ref()}).

-spec start_link(rabbit_exchange:name()) -> {ok, pid()} | {error, term()}.
start_link(XName) ->
    gen_server:start_link(?MODULE, XName, []).

%% The exchange's Raft server on this node leads.
-spec leader(pid(), ServerPid :: pid()) -> ok.
leader(Pid, ServerPid) ->
    gen_server:cast(Pid, {leader, ServerPid}).

%% Something that is due at DueMs has been added, perhaps before all else. Called by the leader.
-spec wake(rabbit_exchange:name(), DueMs :: integer()) -> ok.
wake(XName, DueMs) ->
    case rabbit_delay_registry:dispatcher(XName) of
        undefined -> ok;
        Pid -> gen_server:cast(Pid, {wake, DueMs})
    end.

%% The exchange holds more than it may, and what is due last is to go.
-spec overflow(rabbit_exchange:name()) -> ok.
overflow(XName) ->
    case rabbit_delay_registry:dispatcher(XName) of
        undefined -> ok;
        Pid -> gen_server:cast(Pid, overflow)
    end.

%% Since the exchange's processes were first started.
-spec counters(pid()) -> rabbit_delay_counters:values().
counters(Pid) ->
    gen_server:call(Pid, counters, infinity).

%% Waits until change/2 can be asked for.
-spec await_ready(pid(), timeout()) -> ok | {error, not_ready}.
await_ready(Pid, Timeout) ->
    try
        gen_server:call(Pid, await_ready, Timeout)
    catch
        exit:_ -> {error, not_ready}
    end.

-spec change(pid(), change()) -> changed().
change(Pid, Change) ->
    try
        gen_server:call(Pid, {change, Change}, ?CHANGE_MS)
    catch
        exit:_ -> {error, interrupted}
    end.

%% The answer comes by gen_server:receive_response/2.
-spec change_async(pid(), change()) -> gen_server:request_id().
change_async(Pid, Change) ->
    gen_server:send_request(Pid, {change, Change}).

-spec init(rabbit_exchange:name()) -> {ok, #state{}, {continue, find_leader}}.
init(XName) ->
    process_flag(message_queue_data, off_heap),
    ok = net_kernel:monitor_nodes(true),
    Counters = rabbit_delay_registry:counters(XName),
    ok = rabbit_delay_counters:waiting(Counters, 0, 0, 0),
    ok = rabbit_delay_registry:register_dispatcher(XName, self()),
    {ok, #state{exchange = XName,
                server_id = rabbit_delay_raft:server_id(XName),
                max_messages = rabbit_delay_config:in_flight_messages([]),
                max_bytes = rabbit_delay_config:in_flight_bytes(),
                allowed_at = now_ms(),
                reported = now_ms(),
                counters = Counters},
     {continue, find_leader}}.

%% After a crash of this process the leader may have been known for long.
-spec handle_continue(find_leader, #state{}) -> {noreply, #state{}}.
handle_continue(find_leader, #state{exchange = XName} = State) ->
    case rabbit_delay_registry:queue(XName) of
        undefined -> ok;
        Queue -> rabbit_delay_queue:announce_leader(Queue)
    end,
    {noreply, State}.

-spec handle_call(term(), gen_server:from(), #state{}) ->
          {reply, term(), #state{}} | {noreply, #state{}}.
handle_call(await_ready, From, #state{store = undefined, awaiting = Awaiting} = State) ->
    {noreply, State#state{awaiting = [From | Awaiting]}};
handle_call(await_ready, _, State) ->
    {reply, ok, State};
handle_call({change, _}, _, #state{store = undefined} = State) ->
    {reply, {error, not_ready}, State};
handle_call({change, Change}, From, State) ->
    {noreply, change(Change, From, State)};
handle_call(counters, _From, #state{counters = C} = State) ->
    {reply, rabbit_delay_counters:read(C), State};
handle_call(_, _, State) ->
    {reply, {error, not_supported}, State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({leader, ServerPid}, State) ->
    {noreply, follow_leader(ServerPid, State)};
handle_cast({wake, DueMs}, State) ->
    {noreply, sleep_until(DueMs, State)};
handle_cast(overflow, State) ->
    {noreply, drop_soon(State)};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(pump, State) ->
    {noreply, pump(State#state{pumping = false})};
handle_info({timeout, Ref, due}, #state{timer = {_, Ref}} = State) ->
    {noreply, pump(State#state{timer = undefined})};
handle_info(overflow, State) ->
    {noreply, drop_latest_due(State#state{dropping = false})};
handle_info(settle, State) ->
    {noreply, settle(State)};
handle_info({ra_event, _, {applied, Replies}}, State) ->
    {noreply, lists:foldl(fun applied/2, State, Replies)};
handle_info({ra_event, _, {rejected, {_, _, Correlation}}}, State) ->
    %% When the server leads again, we are told, and append again.
    {noreply, changed(Correlation, {error, not_ready}, State)};
handle_info({outcomes, Pid, Outcomes}, #state{publishers = Publishers} = State) ->
    case Publishers of
        #{Pid := QName} -> {noreply, outcomes(Outcomes, QName, State)};
        _ -> {noreply, State}
    end;
handle_info({given_up, Pid, Why}, #state{publishers = Publishers} = State) ->
    case maps:take(Pid, Publishers) of
        {QName, Rest} -> {noreply, given_up(QName, Why, State#state{publishers = Rest})};
        error -> {noreply, State}
    end;
handle_info({gone, Pid}, #state{publishers = Publishers} = State) ->
    case maps:take(Pid, Publishers) of
        {QName, Rest} -> {noreply, queue_gone(QName, State#state{publishers = Rest})};
        error -> {noreply, State}
    end;
handle_info({resume, Name}, #state{targets = Targets} = State) ->
    {noreply, pump_soon(State#state{targets = rabbit_delay_targets:resume(Name, Targets)})};
handle_info(tick, State) ->
    {noreply, tick(State#state{ticking = false})};
%% What was away may be back.
handle_info({nodeup, _}, #state{targets = Targets} = State) ->
    {noreply, pump_soon(State#state{targets = rabbit_delay_targets:resume_all(Targets)})};
handle_info(attach, #state{leader = {_, _}, store = undefined} = State) ->
    {noreply, begin_again(State)};
handle_info({'DOWN', Ref, process, _, _}, #state{leader = {_, Ref}, exchange = XName} = State) ->
    ok = rabbit_delay_registry:register_store(XName, undefined),
    {noreply, cancel_timer(interrupt(State#state{leader = undefined, note = undefined,
                                                 store = undefined}))};
handle_info(_, State) ->
    {noreply, State}.

now_ms() -> erlang:monotonic_time(millisecond).

%% ------------------------------------------------------------------------------ leadership

follow_leader(Pid, #state{leader = {Pid, _}} = State) ->
    begin_again(State);
follow_leader(Pid, #state{leader = Old} = State) ->
    _ = case Old of
            {_, Ref} -> demonitor(Ref, [flush]);
            undefined -> ok
        end,
    begin_again(interrupt(State#state{leader = {Pid, monitor(process, Pid)}})).

begin_again(#state{settling = Settling, server_id = ServerId} = State) ->
    maps:foreach(fun (Correlation, Ids) ->
                         rabbit_delay_raft:settle(ServerId, Ids, Correlation)
                 end, Settling),
    Note = make_ref(),
    ok = rabbit_delay_raft:note(ServerId, Note),
    State#state{note = Note}.

applied({Note, ok}, #state{note = Note} = State) ->
    attach(State#state{note = undefined});
applied({Correlation, {ok, _} = Reply}, #state{settling = Settling, ids = Ids0,
                                               ids_bytes = Bytes0, dropping = Dropping} = State0) ->
    case maps:take(Correlation, Settling) of
        {Settled, Rest} ->
            {Ids, Bytes} = without(Settled, Ids0, Bytes0),
            State = pump_soon(State0#state{settling = Rest, ids = Ids, ids_bytes = Bytes}),
            case Dropping of
                later -> drop_soon(State);
                _ -> State
            end;
        error ->
            changed(Correlation, Reply, State0)
    end;
applied({Correlation, Reply}, State) ->
    changed(Correlation, Reply, State).

without(<<>>, Ids, Bytes) ->
    {Ids, Bytes};
without(<<Id:64/little, Rest/binary>>, Ids0, Bytes) ->
    case maps:take(Id, Ids0) of
        {Size, Ids} -> without(Rest, Ids, Bytes - Size);
        error -> without(Rest, Ids0, Bytes)
    end.

%% All that is not in flight is handed out again: what waited here, and what an earlier process of
%% ours had taken out.
attach(#state{exchange = XName} = State0) ->
    case {leaders_state(State0), lookup(XName)} of
        {{ok, Store, Term, Paused}, {ok, X}} ->
            ok = rabbit_delay_registry:register_paused(XName, Paused),
            ok = rabbit_delay_registry:register_store(XName, Store),
            case hand_out_anew(at_term(Term, State0#state{store = Store, paused = Paused})) of
                #state{store = undefined} = State -> State;
                State -> pump(ready(configured(X, State)))
            end;
        _ ->
            %% The exchange is being deleted, and this process with it, or the server is stopping;
            %% or it is only for now.
            attach_later(State0)
    end.

leaders_state(#state{server_id = ServerId}) ->
    case ra:local_query(ServerId, fun rabbit_delay_machine:store/1, ?QUERY_MS) of
        {ok, {{_, Term}, Store}, _} when Store =/= undefined ->
            case ra:local_query(ServerId, fun rabbit_delay_machine:is_paused/1, ?QUERY_MS) of
                {ok, {_, Paused}, _} -> {ok, Store, Term, Paused};
                _ -> error
            end;
        _ ->
            error
    end.

attach_later(State) ->
    _ = erlang:send_after(?STORE_RETRY_MS, self(), attach),
    State#state{store = undefined}.

%% Between two terms that follow each other nobody else has led: what is in flight is still ours
%% alone. Otherwise others may have released, settled and changed all of it.
at_term(Term, #state{term = Before} = State)
  when Before =:= undefined; Term =:= Before; Term =:= Before + 1 ->
    State#state{term = Term};
at_term(Term, #state{publishers = Publishers} = State) ->
    lists:foreach(fun end_publisher/1, maps:keys(Publishers)),
    State#state{term = Term, in_flight = #{}, ids = #{}, ids_bytes = 0, bytes = 0, done = [],
                settling = #{}, targets = rabbit_delay_targets:new(), publishers = #{},
                shared = #{}}.

%% What is in flight is passed over when it comes.
hand_out_anew(#state{store = Store, targets = Targets, shared = Shared} = State) ->
    case rabbit_delay_store:untake(Store) of
        ok ->
            State#state{targets = rabbit_delay_targets:forget_waiting(Targets),
                        shared = maps:filtermap(fun (_, {_, [], _}) -> false;
                                                    (_, {How, Has, _}) -> {true, {How, Has, []}}
                                                end, Shared)};
        {error, _} ->
            attach_later(State)
    end.

lookup(XName) ->
    rabbit_delay_broker:lookup_exchange(XName).

%% -------------------------------------------------------------------- operators' changes

%% All that was appended before is applied or lost: what it held is handed out again.
ready(#state{awaiting = Awaiting, held = Held0, changing = Changing} = State) ->
    lists:foreach(fun (From) -> gen_server:reply(From, ok) end, Awaiting),
    Held = maps:from_list([{Id, []} || {_, Change} <- maps:values(Changing), Id <- ids_of(Change)]),
    hand_out(maps:keys(maps:without(maps:keys(Held), Held0)),
             State#state{awaiting = [], held = Held}).

change(Change, From, #state{changing = Changing, held = Held, server_id = ServerId} = State) ->
    {Free, InFlight} = lists:partition(fun (Id) -> is_free(Id, State) end, ids_of(Change)),
    case Free =:= [] andalso is_tuple(Change) of
        true ->
            gen_server:reply(From, {ok, 0, InFlight}),
            State;
        false ->
            Allowed = without_ids(InFlight, Change),
            Correlation = make_ref(),
            ok = rabbit_delay_raft:change(ServerId, encoded(Allowed), Correlation),
            State#state{changing = Changing#{Correlation => {{From, InFlight}, Allowed}},
                        held = lists:foldl(fun (Id, Acc) -> Acc#{Id => []} end, Held, Free)}
    end.

%% What some queue has already is in flight, and what only waits is not.
is_free(Id, #state{ids = Ids, held = Held, shared = Shared}) ->
    not is_map_key(Id, Ids) andalso not is_map_key(Id, Held)
        andalso case Shared of
                    #{Id := {_, [_ | _], _}} -> false;
                    _ -> true
                end.

ids_of({cancel, Ids}) -> Ids;
ids_of({reschedule, Dues}) -> [Id || {Id, _} <- Dues];
ids_of(_) -> [].

without_ids([], Change) -> Change;
without_ids(Not, {cancel, Ids}) -> {cancel, Ids -- Not};
without_ids(Not, {reschedule, Dues}) -> {reschedule, [D || {Id, _} = D <- Dues,
                                                           not lists:member(Id, Not)]}.

encoded({cancel, Ids}) -> {cancel, << <<Id:64/little>> || Id <- Ids >>};
encoded({reschedule, Dues}) -> {reschedule, << <<Id:64/little, Due:64/little>>
                                               || {Id, Due} <- Dues >>};
encoded(Change) -> Change.

%% What became of a change, if this is one's correlation.
changed(Correlation, Reply, #state{changing = Changing, held = Held} = State0) ->
    case maps:take(Correlation, Changing) of
        {{{From, InFlight}, Change}, Rest} ->
            State = State0#state{changing = Rest, held = maps:without(ids_of(Change), Held)},
            case Reply of
                {ok, Changed} ->
                    gen_server:reply(From, {ok, Changed, InFlight}),
                    moved(Change, State);
                ok ->
                    ok = rabbit_delay_registry:register_paused(State#state.exchange,
                                                               Change =:= pause),
                    gen_server:reply(From, {ok, 0, []}),
                    pump_soon(State#state{paused = Change =:= pause});
                {error, _} = Error ->
                    gen_server:reply(From, Error),
                    hand_out(ids_of(Change), State)
            end;
        error ->
            State0
    end.

%% What became due meanwhile was taken out of the store and passed over.
moved({reschedule, Dues}, #state{store = Store} = State) when Store =/= undefined ->
    lists:foreach(fun ({Id, Due}) -> _ = rabbit_delay_store:postpone(Store, Id, Due) end, Dues),
    pump_soon(State);
moved(_, State) ->
    State.

hand_out([_ | _] = Ids, #state{store = Store} = State) when Store =/= undefined ->
    Now = rabbit_delay_config:now_ms(),
    lists:foreach(fun (Id) -> _ = rabbit_delay_store:postpone(Store, Id, Now) end, Ids),
    pump_soon(State);
hand_out(_, State) ->
    State.

%% What they held stays held until all that was appended is applied.
interrupt(#state{changing = Changing} = State) ->
    maps:foreach(fun (_, {{From, _}, _}) -> gen_server:reply(From, {error, interrupted}) end,
                 Changing),
    State#state{changing = #{}}.

%% Policies may have changed.
configured(X, #state{max_bytes = MaxBytes, targets = Targets} = State) ->
    Args = rabbit_delay_broker:exchange_arguments(X),
    MaxMessages = rabbit_delay_config:in_flight_messages(Args),
    State#state{max_messages = MaxMessages,
                targets = rabbit_delay_targets:limits(MaxMessages, MaxBytes, Targets),
                rate = rabbit_delay_policy:release_rate(X),
                overdue = rabbit_delay_policy:overdue(X),
                retry = rabbit_delay_policy:retry(X)}.

%% ---------------------------------------------------------------------------------- release

pump_soon(#state{pumping = true} = State) ->
    State;
pump_soon(#state{store = undefined} = State) ->
    State;
pump_soon(State) ->
    self() ! pump,
    State#state{pumping = true}.

%% Takes what is due and publishes it, as far as there is room.
pump(#state{store = undefined} = State) ->
    State;
pump(#state{paused = true} = State) ->
    State;
pump(State0) ->
    case allowed(State0) of
        {0, State} ->
            allow_later(State);
        {Allowed, State1} ->
            case wake_waiting(Allowed, State1) of
                #state{store = undefined} = State -> State;
                State -> waiting_known(take_more(allowed(State), State))
            end
    end.

take_more({Allowed, _}, #state{targets = Targets, max_messages = MaxMessages,
                               max_bytes = MaxBytes} = State) ->
    {Messages, Bytes} = occupied(State),
    Room = MaxMessages - Messages,
    {Names, InTime} = rabbit_delay_targets:crowded(Targets),
    Least = rabbit_delay_targets:least_room(Targets),
    %% A batch that is worth the call, unless the limit itself is small.
    case not InTime andalso Least > 0 andalso Room >= min(?TAKE_MESSAGES, (MaxMessages + 3) div 4)
        andalso Bytes < MaxBytes of
        true when Allowed > 0 ->
            take(min(min(Room, Least), min(Allowed, ?TAKE_MESSAGES)),
                 min(MaxBytes - Bytes, ?TAKE_BYTES), State);
        true ->
            allow_later(State);
        false when Names =/= [] ->
            pump_soon(State);
        false ->
            State
    end.

%% What is in flight and being settled, but what only slow queues have not confirmed.
occupied(#state{ids = Ids, bytes = Bytes, targets = Targets, in_flight = InFlight}) ->
    case rabbit_delay_targets:slow(Targets) of
        [] ->
            {map_size(Ids), Bytes};
        Slow ->
            maps:fold(fun (_, #in_flight{unsettled = QNames, bytes = Size}, {M, B}) ->
                              case QNames -- Slow of
                                  [] -> {M - 1, B - Size};
                                  _ -> {M, B}
                              end
                      end, {map_size(Ids), Bytes}, InFlight)
    end.

%% No more than the exchange's rate allows: what it allows in RATE_MS may come at once.
allowed(#state{rate = infinity} = State) ->
    {?TAKE_MESSAGES, State};
allowed(#state{rate = Rate, allowance = Allowance0, allowed_at = At} = State) ->
    Now = now_ms(),
    Most = max(1.0, Rate * ?RATE_MS / 1000),
    Allowance = min(Most, Allowance0 + Rate * (Now - At) / 1000),
    {trunc(Allowance), State#state{allowance = Allowance, allowed_at = Now}}.

allow_later(#state{rate = Rate, allowance = Allowance, exchange = XName} = State) ->
    Missing = ceil((1.0 - Allowance) * 1000 / Rate),
    %% The rate may be another one by then.
    Next = case lookup(XName) of
               {ok, X} -> configured(X, State);
               {error, not_found} -> State
           end,
    sleep_until(rabbit_delay_config:now_ms() + Missing, Next).

spend(_, #state{rate = infinity} = State) -> State;
spend(N, #state{allowance = Allowance} = State) -> State#state{allowance = Allowance - N}.

take(Messages, Bytes, #state{store = Store, exchange = XName} = State0) ->
    Now = rabbit_delay_config:now_ms(),
    case rabbit_delay_store:take(Store, Now, Messages, Bytes) of
        {ok, [], NextDue} ->
            sleep_until(NextDue, State0);
        {ok, Taken, NextDue} ->
            case lookup(XName) of
                {ok, X} ->
                    {Records, State1} = keep_aside(Taken, spend(length(Taken),
                                                                configured(X, State0))),
                    State = release(Records, X, State1),
                    case NextDue =/= infinity andalso NextDue =< Now of
                        true -> pump_soon(State);
                        false -> sleep_until(NextDue, State)
                    end;
                {error, not_found} ->
                    %% It is being deleted, and this process with it, or it cannot be seen for now.
                    Again = Now + ?STORE_RETRY_MS,
                    _ = [rabbit_delay_store:postpone(Store, id_of(Record), Again)
                         || Record <- Taken],
                    sleep_until(Again, State0)
            end;
        {error, eclosed} ->
            attach_later(State0);
        {error, Reason} ->
            State = warn(unreadable, "delayed messages of ~ts: the store cannot be read: ~0p; it is "
                         "tried again", [rabbit_delay_text:rs(XName), Reason], State0),
            sleep_until(Now + ?STORE_RETRY_MS, State)
    end.

id_of({corrupt, Id, _, _, _}) -> Id;
id_of({Id, _, _, _}) -> Id.

%% What waits for queues that take something goes before what is due only now.
wake_waiting(Allowed, #state{targets = Targets} = State) ->
    case rabbit_delay_targets:has_lost(Targets) of
        true ->
            hand_out_anew(State);
        false ->
            case rabbit_delay_targets:crowded(Targets) of
                {[], _} -> State;
                {Names, _} -> wake_waiting(Names, Allowed, State)
            end
    end.

wake_waiting(Names, Allowed, #state{exchange = XName} = State0) ->
    case lookup(XName) of
        {ok, X} ->
            Each = max(1, min(Allowed, ?TAKE_MESSAGES) div length(Names)),
            {State, _} = lists:foldl(fun (_, {_, 0} = Acc) ->
                                             Acc;
                                         (Name, {S0, Left}) ->
                                             {S, N} = wake_for(Name, min(Each, Left), X, S0),
                                             {S, Left - N}
                                     end, {configured(X, State0), Allowed}, Names),
            State;
        {error, not_found} ->
            State0
    end.

wake_for(_, _, _, #state{store = undefined} = State) ->
    {State, 0};
wake_for(Name, Most, X, #state{targets = Targets0, max_messages = Max,
                               max_bytes = MaxBytes} = State0) ->
    {Messages, Bytes} = occupied(State0),
    case min(Most, min(Max - Messages, rabbit_delay_targets:room(Name, Targets0))) of
        N when N > 0, Bytes < MaxBytes ->
            {Places, Targets} = rabbit_delay_targets:next(Name, N, Targets0),
            {Records, State1} = read_again(Name, Places, State0#state{targets = Targets}),
            #state{targets = Published} = State2 =
                release(Records, X, spend(length(Records), State1#state{waking = Name})),
            State = State2#state{waking = none,
                                 targets = case is_queue(Name) of
                                               true -> Published;
                                               false -> rabbit_delay_targets:widen(Name, Published)
                                           end},
            {State, length(Places)};
        _ ->
            {State0, 0}
    end.

is_queue(#resource{kind = queue}) -> true;
is_queue(_) -> false.

%% What is there no more was cancelled; what has another due time is handed out by the store.
read_again(Name, Places0, #state{store = Store} = State0) ->
    Places = [Place || {_, Id} = Place <- Places0, not is_map_key(Id, State0#state.ids),
                       not is_map_key(Id, State0#state.held)],
    case Places =/= [] andalso
        rabbit_delay_store:read_many(Store, << <<Id:64/little>> || {_, Id} <- Places >>,
                                     ?TAKE_BYTES) of
        false ->
            {[], State0};
        {ok, Found, Seen} ->
            ById = maps:from_list([{Id, Record} || #{id := Id} = Record <- Found]),
            {Looked, Unseen} = lists:split(Seen, Places),
            State1 = lists:foldl(fun (Place, S) -> wait_first(Name, Place, S) end, State0, Unseen),
            lists:foldr(
              fun ({Due, Id}, {Records, S}) ->
                      case ById of
                          #{Id := #{due := Due, encoding := Encoding, body := Body}} ->
                              {[{Id, Due, Encoding, Body} | Records], S};
                          #{Id := _} ->
                              {Records, S};
                          _ ->
                              {Records, not_read(Id, S)}
                      end
              end, {[], State1}, Looked);
        {error, eclosed} ->
            {[], attach_later(State0)};
        {error, _} ->
            {[], lists:foldl(fun (Place, S) -> wait_first(Name, Place, S) end, State0, Places)}
    end.

%% Why it cannot be read is found out when it is handed out again.
not_read(Id, #state{store = Store, shared = Shared} = State) ->
    Again = rabbit_delay_config:now_ms() + ?STORE_RETRY_MS,
    case rabbit_delay_store:read(Store, Id) of
        {error, enoent} ->
            State#state{shared = maps:remove(Id, Shared)};
        _ ->
            _ = rabbit_delay_store:postpone(Store, Id, Again),
            sleep_until(Again, State)
    end.

%% What is damaged is kept aside before it is settled; what cannot be kept is taken again later, and
%% so is what turns out to be whole.
keep_aside(Taken, #state{ids = InFlight, held = Held, store = Store, exchange = XName} = State0) ->
    case [Id || {corrupt, Id, _, _, _} <- Taken,
                not is_map_key(Id, InFlight), not is_map_key(Id, Held)] of
        [] ->
            {Taken, State0};
        Ids ->
            Now = rabbit_delay_config:now_ms(),
            {Kept, Until, State} =
                case rabbit_delay_store:keep_aside(Store, Now, << <<Id:64/little>> || Id <- Ids >>) of
                    {ok, Some} ->
                        {Some, Now, State0};
                    {error, Reason} ->
                        {[], Now + ?STORE_RETRY_MS,
                         warn(unreadable, "delayed messages of ~ts: ~b damaged records cannot be kept "
                              "aside: ~0p; it is tried again",
                              [rabbit_delay_text:rs(XName), length(Ids), Reason], State0)}
                end,
            Others = Ids -- Kept,
            lists:foreach(fun (Id) -> _ = rabbit_delay_store:postpone(Store, Id, Until) end, Others),
            {[Record || Record <- Taken, not is_corrupt(Record, Others)],
             case Others of [] -> State; _ -> sleep_until(Until, State) end}
    end.

is_corrupt({corrupt, Id, _, _, _}, Ids) -> lists:member(Id, Ids);
is_corrupt(_, _) -> false.

sleep_until(infinity, State) ->
    State;
sleep_until(_, #state{store = undefined} = State) ->
    State;
sleep_until(DueMs, #state{timer = {Sooner, _}} = State) when Sooner =< DueMs ->
    State;
sleep_until(DueMs, State0) ->
    State = cancel_timer(State0),
    Sleep = min(max(DueMs - rabbit_delay_config:now_ms(), 0), ?MAX_SLEEP_MS),
    State#state{timer = {DueMs, erlang:start_timer(Sleep, self(), due)}}.

cancel_timer(#state{timer = {_, Ref}} = State) ->
    _ = erlang:cancel_timer(Ref, [{async, true}, {info, false}]),
    State#state{timer = undefined};
cancel_timer(State) ->
    State.

%% Publishes what Fun makes of each item.
publishing(Fun, Items, State0) ->
    {State, Routed} =
        rabbit_delay_exchange:while_releasing(
          fun () -> lists:foldl(fun (Item, Acc) -> attempt(Fun, Item, Acc) end, {State0, #{}}, Items)
          end),
    ok = count(Routed),
    flush(State).

%% A message that something cannot cope with, in it or in what it is routed by, holds up no other.
attempt(Fun, Item, {State, Routed} = Acc) ->
    try
        Fun(Item, Acc)
    catch
        Class:Reason:Stack ->
            {failed(Item, warn(failed, "a message of ~s cannot be released for now: ~p:~0P ~0P",
                               [rabbit_delay_text:rs(State#state.exchange), Class, Reason, 20, Stack, 20],
                               State)), Routed}
    end.

failed({Id, Due, _, _}, #state{shared = Shared} = State) ->
    wait(failing, {Due, Id},
         pause(failing, failed, State#state{shared = case Shared of
                                                         #{Id := {How, Has, _}} ->
                                                             Shared#{Id := {How, Has, []}};
                                                         _ ->
                                                             Shared
                                                     end}));
failed(_, State) ->
    State.

%% To the queues' publishers, all of the batch for a queue at once.
flush(#state{out = Out} = State) ->
    maps:fold(fun (QName, {Q, Messages}, S0) ->
                      {Pid, S} = publisher(QName, S0),
                      ok = rabbit_delay_publisher:publish(Pid, Q, lists:reverse(Messages)),
                      S
              end, ticking(State#state{out = #{}}), Out).

publisher(QName, #state{targets = Targets, publishers = Publishers} = State) ->
    case rabbit_delay_targets:publisher(QName, Targets) of
        undefined ->
            {ok, Pid} = rabbit_delay_publisher:start_link(QName),
            {Pid, State#state{targets = rabbit_delay_targets:started(QName, Pid, Targets),
                              publishers = Publishers#{Pid => QName}}};
        Pid ->
            {Pid, State}
    end.

release(Records, X, State) ->
    publishing(fun (Record, Acc) -> release_one(Record, X, Acc) end, Records, State).

release_one({Id, _, _, _}, _, {#state{ids = Ids, held = Held}, _} = Acc)
  when is_map_key(Id, Ids); is_map_key(Id, Held) ->
    Acc;
release_one({corrupt, Id, _, _, _}, _, {#state{ids = Ids, held = Held}, _} = Acc)
  when is_map_key(Id, Ids); is_map_key(Id, Held) ->
    Acc;
release_one({Id, Due, Encoding, Body}, X, {State0, Routed}) ->
    {How, Already, Places} = what(Id, Due, Encoding, State0),
    State1 = hold(Id, byte_size(Body), State0),
    case How =/= drop andalso rabbit_delay_broker:decode(Encoding, Body) of
        false ->
            rabbit_delay_counters:add(State0#state.counters, expired, 1),
            {done(Id, byte_size(Body), State1), Routed};
        {ok, Message} ->
            publish(Message, Already, X, State1#state.next_seq_no,
                    #in_flight{id = Id, due = Due, bytes = byte_size(Body), how = How,
                               places = Places}, State1, Routed);
        {error, {unknown_encoding, Number, Series}} ->
            State = warn(unknown_encoding,
                         "delayed message ~b of ~ts is kept and not released: a later version of the "
                         "plugin or of RabbitMQ stored it (encoding ~b, series ~b)",
                         [Id, rabbit_delay_text:rs(State0#state.exchange), Number, Series], State0),
            {put_back(Id, 0, ?UNKNOWN_RETRY_MS, hold(Id, 0, State)), Routed};
        {error, Reason} ->
            {lost(Id, "it cannot be decoded: ~0p", [Reason], State0), Routed}
    end;
release_one({corrupt, Id, _Due, File, Offset}, _, {State, Routed}) ->
    {lost(Id, "its record in ~ts at offset ~b is damaged", [File, Offset], State), Routed}.

%% What is to become of it, who has it already, and for whom else it waits.
what(Id, Due, Encoding, #state{shared = Shared, waking = Waking, overdue = Overdue}) ->
    case Shared of
        #{Id := {How, [_ | _] = Already, Places}} ->
            {How, Already, other_places(Places, Waking)};
        _ ->
            Late = case Overdue of
                       {What, After} ->
                           case rabbit_delay_config:now_ms() - Due > After of
                               true -> What;
                               false -> deliver
                           end;
                       deliver ->
                           deliver
                   end,
            How = case Late of
                      drop -> drop;
                      dead_letter -> {dead_lettered, overdue};
                      deliver ->
                          case rabbit_delay_retry:is_marked(Encoding) of
                              true -> returned;
                              false -> released
                          end
                  end,
            {_, _, Places} = maps:get(Id, Shared, {How, [], []}),
            {How, [], other_places(Places, Waking)}
    end.

%% Where a message has its place is not known for sure of one that the store hands out.
other_places(_, none) -> [];
other_places(Places, Waking) -> lists:delete(Waking, Places).

hold(Id, Size, #state{ids = Ids, ids_bytes = IdsBytes, bytes = Bytes} = State) ->
    State#state{ids = Ids#{Id => Size}, ids_bytes = IdsBytes + Size, bytes = Bytes + Size}.

lost(Id, Format, Args, #state{exchange = XName, counters = Counters} = State0) ->
    rabbit_delay_counters:add(Counters, corrupt, 1),
    done(Id, 0, hold(Id, 0, warn(lost, "delayed message ~b of ~ts is lost: " ++ Format,
                                 [Id, rabbit_delay_text:rs(XName) | Args], State0))).

%% To the queues that it is routed to, but those of Already, which have it.
publish(Message0, Already, X, SeqNo, #in_flight{how = returned} = InFlight, State, Routed) ->
    Message = rabbit_delay_broker:uncounted(rabbit_delay_broker:released(Message0)),
    case rabbit_delay_broker:deaths(Message) of
        [] ->
            publish(Message, Already, X, SeqNo, InFlight#in_flight{how = released}, State,
                    Routed);
        Deaths ->
            give_back(Deaths, Message, Already, X, SeqNo, InFlight, State, Routed)
    end;
publish(Message0, Already, X, SeqNo, #in_flight{how = {parked, Why}} = InFlight, State, Routed) ->
    Message = rabbit_delay_broker:uncounted(rabbit_delay_broker:released(Message0)),
    park(Why, Message, Already, X, SeqNo, InFlight, State, Routed);
publish(Message0, Already, X, SeqNo, #in_flight{how = How} = InFlight, State, Routed) ->
    Message = rabbit_delay_broker:released(Message0),
    case How =:= released andalso rabbit_delay_broker:route(X, Message) of
        [_ | _] = Qs ->
            publish_to(Qs, Message, Already, SeqNo, InFlight, State, Routed);
        [] when Already =/= [] ->
            publish_to([], Message, Already, SeqNo, InFlight, State, Routed);
        [] ->
            dead_letter(Message, Already, X, SeqNo,
                        InFlight#in_flight{how = {dead_lettered, unroutable}}, State, Routed);
        false ->
            dead_letter(Message, Already, X, SeqNo, InFlight, State, Routed)
    end.

%% A dead letter, by what the exchange's settings are now. If they say nothing of retries any more,
%% it still comes back.
give_back([#{queue := Name} = Death | _] = Deaths, Message, Already, X, SeqNo, InFlight, State,
          Routed) ->
    Plan = State#state.retry,
    case Plan =/= none andalso rabbit_delay_retry:judge(Deaths, Plan) of
        not_retried ->
            park(not_retried, Message, Already, X, SeqNo, InFlight, State, Routed);
        {used_up, _} ->
            case places(X, State) of
                [] -> to_queue(Name, Death, Message, Already, X, SeqNo, InFlight, State, Routed);
                _ -> park(attempts_used_up, Message, Already, X, SeqNo, InFlight, State, Routed)
            end;
        {retry, _} when map_get(to, Plan) =:= exchange ->
            case rabbit_delay_broker:route(X, Message) of
                [] when Already =:= [] ->
                    park(unroutable, Message, Already, X, SeqNo, InFlight, State, Routed);
                Qs ->
                    publish_to(Qs, Message, Already, SeqNo, InFlight, State, Routed)
            end;
        _ ->
            to_queue(Name, Death, Message, Already, X, SeqNo, InFlight, State, Routed)
    end.

to_queue(Name, Death, Message, Already, X, SeqNo, InFlight, #state{exchange = XName} = State,
         Routed) ->
    case rabbit_delay_broker:queue_named(XName#resource{kind = queue, name = Name}) of
        [] ->
            park(queue_gone, Message, Already, X, SeqNo, InFlight, State, Routed);
        Qs ->
            publish_to(Qs, rabbit_delay_broker:returned(Message, Death), Already, SeqNo, InFlight,
                       State, Routed)
    end.

%% Where dead letters go that do not come back, best first.
places(X, #state{retry = Plan}) ->
    Parking = case Plan of
                  #{parking := {_, _} = Configured} -> [Configured];
                  _ -> []
              end,
    Parking ++ dead_letter_places(X).

dead_letter_places(X) ->
    case rabbit_delay_policy:dead_letter_exchange(X) of
        none -> [];
        Place -> [Place]
    end.

%% Where there is a place, and no queue takes it there, it is kept until one does: somebody has to
%% look into that.
park(Why, Message0, Already, X, SeqNo, #in_flight{due = Due} = InFlight0,
     #state{exchange = XName} = State, Routed) ->
    InFlight = InFlight0#in_flight{how = {parked, Why}},
    [#{queue := Queue} | _] = Deaths = rabbit_delay_broker:deaths(Message0),
    Attempts = lists:sum([maps:get(count, Death, 1) || #{queue := Q} = Death <- Deaths,
                                                       Q =:= Queue]),
    Places = places(X, State),
    case put_aside(Places, Message0, XName,
                   death(Why, XName, Due) ++
                       [{<<"x-delay-death-queue">>, longstr, Queue},
                        {<<"x-delay-death-count">>, long, Attempts},
                        {<<"x-delay-death-time">>, long, rabbit_delay_config:now_ms()}]) of
        {Qs, Message} ->
            publish_to(Qs, Message, Already, SeqNo, InFlight, State, Routed);
        none when Places =:= [], Already =:= [] ->
            publish_to([], Message0, Already, SeqNo, InFlight,
                       warn(dropped, "a dead letter of queue '~ts' is dropped by ~ts (~s): the "
                            "exchange has no parking exchange and no dead-letter exchange",
                            [rabbit_delay_text:escaped(Queue), rabbit_delay_text:rs(XName), Why],
                            State), Routed);
        none when Already =:= [] ->
            {Place, _} = hd(Places),
            {keep(InFlight,
                  warn(kept, "a dead letter of queue '~ts' cannot be parked by ~ts (~s) and is "
                       "kept: exchange '~ts' has no queue for it",
                       [rabbit_delay_text:escaped(Queue), rabbit_delay_text:rs(XName), Why,
                        rabbit_delay_text:escaped(Place)], State)), Routed};
        none ->
            publish_to([], Message0, Already, SeqNo, InFlight, State, Routed)
    end.

%% What says in a message why, by whom, and due when it was put aside.
death(Reason, #resource{name = Name}, Due) ->
    [{<<"x-delay-death-reason">>, longstr, atom_to_binary(Reason, utf8)},
     {<<"x-delay-death-exchange">>, longstr, Name},
     {<<"x-delay-death-due">>, long, Due}].

%% The queues of the first of these exchanges that has some for it, and what they get.
put_aside([], _, _, _) ->
    none;
put_aside([{Name, Key} | Places], Message0, XName, Headers) ->
    case lookup(XName#resource{name = Name}) of
        {ok, X} ->
            Message = rabbit_delay_broker:dead_lettered(Message0, Name, Key, Headers),
            case rabbit_delay_broker:route(X, Message) of
                [] -> put_aside(Places, Message0, XName, Headers);
                Qs -> {Qs, Message}
            end;
        {error, not_found} ->
            put_aside(Places, Message0, XName, Headers)
    end.

%% Not for each message of many.
warn(What, Format, Args, #state{warned = Warned} = State) ->
    Now = erlang:monotonic_time(millisecond),
    State#state{warned = case Warned of
                             #{What := {Until, N}} when Now < Until ->
                                 Warned#{What := {Until, N + 1}};
                             _ ->
                                 {_, Unsaid} = maps:get(What, Warned, {Now, 0}),
                                 ?LOG_WARNING(Format ++ " (~b more since the last such warning)",
                                              Args ++ [Unsaid], ?LOG_DOMAIN),
                                 Warned#{What => {Now + ?WARN_MS, 0}}
                         end}.

%% In the store, until another attempt.
keep(InFlight, State) ->
    wait_for([parking], InFlight, pause(parking, no_place, State)).

%% To the dead-letter exchange's queues, if there is one; it says why, and when it was due.
dead_letter(Message0, Already, X, SeqNo,
            #in_flight{how = {_, Reason}, due = Due} = InFlight,
            #state{exchange = XName} = State, Routed) ->
    {Qs, Message} = case put_aside(dead_letter_places(X), Message0, XName,
                                   death(Reason, XName, Due)) of
                        none -> {[], Message0};
                        Found -> Found
                    end,
    publish_to(Qs, Message, Already, SeqNo, InFlight, State, Routed).

publish_to(AllQs, Message, Already, SeqNo, InFlight0, State0, Routed) ->
    Qs = [Q || Q <- AllQs, not lists:member(name(Q), Already)],
    #in_flight{id = Id, bytes = Bytes, how = How} = InFlight0,
    case Qs of
        [] when Already =:= [] ->
            rabbit_delay_counters:add(State0#state.counters,
                                      case How of
                                          {dead_lettered, overdue} -> expired;
                                          {dead_lettered, maxlen} -> overflowed;
                                          _ -> unroutable
                                      end, 1),
            {done(Id, Bytes, State0), Routed};
        [] ->
            {done(Id, Bytes, State0), Routed};
        _ ->
            {Open, Closed, State} = apart(Qs, State0),
            InFlight = InFlight0#in_flight{settled = Already, later = Closed},
            Whole = Closed =/= [] andalso Already =:= []
                andalso map_size(State#state.shared) >= ?MAX_SHARED,
            case Open =:= [] orelse Whole of
                true ->
                    {wait_for(Closed, InFlight, State), Routed};
                false ->
                    QNames = [rabbit_delay_broker:queue_name(Q) || Q <- Open],
                    Via = case How of
                              returned -> State#state.exchange;
                              _ -> rabbit_delay_broker:exchange_of(Message, State#state.exchange)
                          end,
                    {hand_over(Open, Message, SeqNo, InFlight#in_flight{unsettled = QNames}, State),
                     routed(Via, QNames, Routed)}
            end
    end.

name({absent, QName}) -> QName;
name(Q) -> rabbit_delay_broker:queue_name(Q).

%% The queues that it can be sent to now, and the names of the others.
apart(Qs, State) ->
    lists:foldr(fun ({absent, QName}, {Open, Closed, S}) ->
                        {Open, [QName | Closed], pause(QName, absent, S)};
                    (Q, {Open, Closed, #state{targets = Targets, waking = Waking} = S}) ->
                        QName = rabbit_delay_broker:queue_name(Q),
                        case QName =:= Waking andalso rabbit_delay_targets:is_taking(QName, Targets)
                            orelse rabbit_delay_targets:is_open(QName, Targets) of
                            true -> {[Q | Open], Closed, S};
                            false -> {Open, [QName | Closed], S}
                        end
                end, {[], [], State}, Qs).

hand_over(Qs, Message, SeqNo, #in_flight{bytes = Bytes} = InFlight,
          #state{in_flight = All, next_seq_no = Next} = State) ->
    Now = now_ms(),
    lists:foldl(fun (Q, #state{targets = Targets, out = Out} = S) ->
                        QName = rabbit_delay_broker:queue_name(Q),
                        {_, Before} = maps:get(QName, Out, {Q, []}),
                        S#state{targets = rabbit_delay_targets:sent(QName, SeqNo, Bytes, Now,
                                                                    Targets),
                                out = Out#{QName => {Q, [{SeqNo, Message} | Before]}}}
                end, State#state{in_flight = All#{SeqNo => InFlight},
                                 next_seq_no = max(SeqNo + 1, Next)}, Qs).

%% In the store, until one of these takes it.
wait_for(_, #in_flight{how = {dead_lettered, maxlen}, settled = []} = InFlight, State) ->
    {Min, _} = rabbit_delay_config:retry_interval_ms(),
    not_dropped(InFlight, Min, State);
wait_for(Names, #in_flight{id = Id, due = Due, bytes = Bytes, how = How, settled = Settled,
                           unsettled = [], places = Places, order = Order}, State0) ->
    #state{shared = Shared} = State1 = release_hold(Id, Bytes, State0),
    New = Names -- Places,
    Place = {Due, Id},
    Wait = fun (Name, S) when Order =:= again; S#state.waking =/= none ->
                   wait_first(Name, Place, S);
               (Name, S) -> wait(Name, Place, S)
           end,
    case Settled =:= [] andalso (Places ++ New) of
        [_ | [_ | _]] when map_size(Shared) >= ?MAX_SHARED, Places =:= [] ->
            Wait(hd(New), State1);
        [_] ->
            lists:foldl(Wait, State1#state{shared = maps:remove(Id, Shared)}, New);
        _ ->
            lists:foldl(Wait, State1#state{shared = Shared#{Id => {How, Settled, Places ++ New}}},
                        New)
    end.

wait(Name, Place, #state{targets = Targets} = State) ->
    ticking(State#state{targets = rabbit_delay_targets:wait(Name, Place, now_ms(), Targets)}).

%% Those that are no queues get them all in turns.
wait_first(#resource{} = Name, Place, #state{targets = Targets} = State) ->
    ticking(State#state{targets = rabbit_delay_targets:wait_first(Name, Place, now_ms(), Targets)});
wait_first(Name, Place, State) ->
    wait(Name, Place, State).

%% It is left alone for a while.
pause(Name, Why, #state{targets = Targets0, exchange = XName} = State) ->
    case rabbit_delay_targets:pause(Name, rabbit_delay_config:retry_interval_ms(), now_ms(), Targets0) of
        {paused, Targets} ->
            State#state{targets = Targets};
        {pause, Ms, Targets} ->
            _ = erlang:send_after(Ms, self(), {resume, Name}),
            Paused = ticking(State#state{targets = Targets}),
            case is_queue(Name) of
                true -> warn(stuck, "~ts takes no delayed messages of ~ts for now (~0P), they wait",
                             [rabbit_delay_text:rs(Name), rabbit_delay_text:rs(XName), Why, 10], Paused);
                false -> Paused
            end
    end.

routed(XName, QNames, Routed) ->
    lists:foldl(fun (QName, Acc) ->
                        maps:update_with({XName, QName}, fun (N) -> N + 1 end, 1, Acc)
                end, Routed, QNames).

count(Routed) ->
    maps:foreach(fun ({XName, QName}, N) ->
                         rabbit_delay_broker:count_published(XName, QName, N)
                 end, Routed).

%% --------------------------------------------------------------------------------- overflow

drop_soon(#state{dropping = soon} = State) ->
    State;
drop_soon(State) ->
    self() ! overflow,
    State#state{dropping = soon}.

%% Of what is pending and not in flight, the last due go until the rest is within the limits, to the
%% dead-letter exchange if there is one.
drop_latest_due(#state{store = undefined} = State) ->
    State;
drop_latest_due(#state{exchange = XName} = State) ->
    case lookup(XName) of
        {ok, X} ->
            case rabbit_delay_policy:overflow(X) of
                drop_latest_due -> drop_latest_due(X, configured(X, State));
                reject_publish -> State
            end;
        {error, not_found} ->
            State
    end.

drop_latest_due(X, #state{store = Store, ids = Ids, ids_bytes = IdsBytes,
                          max_messages = MaxMessages, max_bytes = MaxBytes} = State0) ->
    {Messages, Size} = rabbit_delay_policy:limits(X),
    Excess = case rabbit_delay_store:stat(Store) of
                 #{pending := Pending, pending_bytes := PendingBytes} ->
                     {beyond(Messages, Pending - map_size(Ids)),
                      beyond(Size, PendingBytes - IdsBytes)};
                 {error, _} ->
                     {0, 0}
             end,
    {InFlight, Bytes} = occupied(State0),
    Room = min(MaxMessages - InFlight, ?DROP_MESSAGES),
    case Excess of
        {0, 0} ->
            State0;
        _ when Room =< 0; Bytes >= MaxBytes ->
            State0#state{dropping = later};
        _ ->
            {Last, Left} = last_due({?MAX_MS, ?MAX_ID}, ?DROP_LOOK_AT, Excess, Room, [], State0),
            State = publishing(fun (IdAndDue, Acc) -> drop_one(IdAndDue, X, Acc) end, Last, State0),
            case Left of
                {0, 0} -> State;
                _ when map_size(State#state.ids) =:= map_size(Ids) -> State#state{dropping = later};
                _ -> drop_soon(State)
            end
    end.

beyond(infinity, _) -> 0;
beyond(Max, N) -> max(0, N - Max).

%% The last due that are free, the last one first, and what is beyond the limits without them.
last_due(_, LookAt, {Messages, Bytes} = Excess, Room, Acc, _)
  when Messages =:= 0, Bytes =:= 0; Room =:= 0; LookAt =< 0 ->
    {lists:reverse(Acc), Excess};
last_due(Before, LookAt, Excess0, Room0, Acc0, #state{store = Store} = State) ->
    case rabbit_delay_store:places(Store, Before, backward, ?DROP_MESSAGES) of
        {ok, [_ | _] = Records} ->
            {Excess, Room, Acc} =
                lists:foldl(
                  fun ({Due, Id, Size}, {{M, B}, R, A}) when M + B > 0, R > 0 ->
                          case is_free(Id, State) of
                              true -> {{max(0, M - 1), max(0, B - Size)}, R - 1, [{Id, Due} | A]};
                              false -> {{M, B}, R, A}
                          end;
                      (_, Full) ->
                          Full
                  end, {Excess0, Room0, Acc0}, Records),
            {Due, Id, _} = lists:last(Records),
            last_due({Due, Id}, LookAt - length(Records), Excess, Room, Acc, State);
        _ ->
            {lists:reverse(Acc0), Excess0}
    end.

drop_one({Id, Due}, X, {#state{store = Store} = State0, Routed}) ->
    case rabbit_delay_store:read(Store, Id) of
        {ok, #{encoding := Encoding, body := Body}} ->
            Size = byte_size(Body),
            State = hold(Id, Size, State0),
            case rabbit_delay_broker:decode(Encoding, Body) of
                {ok, Message} ->
                    publish(Message, [], X, State#state.next_seq_no,
                            #in_flight{id = Id, due = Due, bytes = Size,
                                       how = {dead_lettered, maxlen}}, State, Routed);
                {error, _} ->
                    rabbit_delay_counters:add(State#state.counters, overflowed, 1),
                    {done(Id, Size, State), Routed}
            end;
        {error, {corrupt, File, Offset}} ->
            case keep_aside([{corrupt, Id, Due, File, Offset}], State0) of
                {[Record], State} -> release_one(Record, X, {State, Routed});
                {[], State} -> {State, Routed}
            end;
        {error, _} ->
            {State0, Routed}
    end.

%% It stays, and may have come due meanwhile: then it was handed out and passed over.
not_dropped(#in_flight{id = Id, due = Due, bytes = Bytes}, Pause, #state{store = Store} = State0) ->
    State = release_hold(Id, Bytes, State0),
    _ = Store =/= undefined andalso rabbit_delay_store:postpone(Store, Id, Due),
    _ = erlang:send_after(Pause, self(), overflow),
    pump_soon(State#state{dropping = soon}).

%% --------------------------------------------------------------------------------- outcomes

outcomes(Outcomes, QName, State0) ->
    #state{targets = Targets} = State =
        lists:foldl(fun ({settled, SeqNos}, #state{targets = Ts} = S) ->
                            each(settled, SeqNos, QName,
                                 S#state{targets = rabbit_delay_targets:confirmed(
                                                     QName, SeqNos, now_ms(), Ts)});
                        ({rejected, SeqNos}, #state{targets = Ts} = S) ->
                            each(rejected, SeqNos, QName,
                                 pause(QName, rejects,
                                       S#state{targets = rabbit_delay_targets:rejected(
                                                           QName, SeqNos, Ts)}))
                    end, State0, Outcomes),
    case rabbit_delay_targets:waiting(Targets) > 0 orelse rabbit_delay_targets:has_slow(Targets) of
        true -> pump_soon(State);
        false -> State
    end.

each(Outcome, SeqNos, QName, State) ->
    lists:foldl(fun (SeqNo, S) -> outcome(Outcome, QName, SeqNo, S) end, State, SeqNos).

outcome(Outcome, QName, SeqNo, #state{in_flight = All} = State) ->
    case All of
        #{SeqNo := #in_flight{unsettled = Unsettled, settled = Settled,
                              rejected = Rejected} = InFlight0} ->
            InFlight = InFlight0#in_flight{unsettled = lists:delete(QName, Unsettled)},
            case Outcome of
                settled -> finish(SeqNo, InFlight#in_flight{settled = [QName | Settled]}, State);
                rejected -> finish(SeqNo, InFlight#in_flight{rejected = [QName | Rejected]}, State);
                gone -> finish(SeqNo, InFlight, State)
            end;
        _ ->
            State
    end.

%% Its publisher has ended: what is unconfirmed may be there or not, and is sent again.
given_up(QName, Why, #state{targets = Targets0} = State) ->
    {SeqNos, Targets} = rabbit_delay_targets:given_up(QName, Targets0),
    pump_soon(each(rejected, SeqNos, QName,
                   pause(QName, Why, State#state{targets = Targets}))).

give_up(QName, Why, #state{targets = Targets, publishers = Publishers} = State) ->
    case rabbit_delay_targets:publisher(QName, Targets) of
        undefined ->
            State;
        Pid ->
            end_publisher(Pid),
            given_up(QName, Why, State#state{publishers = maps:remove(Pid, Publishers)})
    end.

end_publisher(Pid) ->
    unlink(Pid),
    exit(Pid, kill).

%% A queue was deleted with messages of ours unconfirmed. Where it was the only one, routing decides
%% again.
queue_gone(QName, #state{targets = Targets0} = State) ->
    {SeqNos, Targets} = rabbit_delay_targets:gone(QName, Targets0),
    pump_soon(each(gone, SeqNos, QName, State#state{targets = Targets})).

finish(SeqNo, #in_flight{unsettled = [_ | _]} = InFlight, #state{in_flight = All} = State) ->
    State#state{in_flight = All#{SeqNo := InFlight}};
finish(SeqNo, #in_flight{rejected = [], later = [], settled = [_ | _], id = Id, due = Due,
                         bytes = Bytes, how = How},
       #state{in_flight = All, counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, case How of
                                            {What, _} -> What;
                                            What -> What
                                        end, 1),
    _ = How =/= {dead_lettered, maxlen} andalso
        rabbit_delay_counters:lateness(Counters, rabbit_delay_config:now_ms() - Due),
    done(Id, Bytes, State#state{in_flight = maps:remove(SeqNo, All)});
finish(SeqNo, #in_flight{rejected = [], later = [], id = Id, bytes = Bytes, how = How} = InFlight,
       #state{in_flight = All, counters = Counters} = State0) ->
    rabbit_delay_counters:add(Counters, retried, 1),
    {Pause, _} = rabbit_delay_config:retry_interval_ms(),
    State = State0#state{in_flight = maps:remove(SeqNo, All)},
    case How of
        {dead_lettered, maxlen} -> not_dropped(InFlight, Pause, State);
        _ -> put_back(Id, Bytes, Pause, State)
    end;
finish(SeqNo, #in_flight{rejected = Rejected, later = Later} = InFlight,
       #state{in_flight = All, counters = Counters} = State) ->
    _ = Rejected =/= [] andalso rabbit_delay_counters:add(Counters, retried, 1),
    %% What it waited for otherwise has been passed over while it was in flight.
    wait_for(Rejected ++ Later, InFlight#in_flight{order = again, places = []},
             State#state{in_flight = maps:remove(SeqNo, All)}).

put_back(Id, Bytes, Pause, #state{store = Store} = State0) ->
    State = release_hold(Id, Bytes, State0),
    Until = rabbit_delay_config:now_ms() + Pause,
    case Store =/= undefined andalso rabbit_delay_store:postpone(Store, Id, Until) of
        ok -> pump_soon(sleep_until(Until, State));
        %% Without a store there is nothing to put it back into: it was never taken from the next.
        false -> State;
        {error, enoent} ->
            %% It was cancelled while it was in flight.
            rabbit_delay_counters:add(State#state.counters, cancelled, 1),
            pump_soon(State);
        {error, eclosed} -> State
    end.

release_hold(Id, Bytes, #state{ids = Ids0, ids_bytes = IdsBytes0, bytes = All} = State) ->
    {Ids, IdsBytes} = without(<<Id:64/little>>, Ids0, IdsBytes0),
    State#state{ids = Ids, ids_bytes = IdsBytes, bytes = All - Bytes}.

%% Settled in batches: by whatever else is in the mailbox when the first is done.
done(Id, Bytes, #state{done = Done, bytes = All, shared = Shared} = State) ->
    _ = Done =:= [] andalso (self() ! settle),
    State#state{done = [Id | Done], bytes = All - Bytes,
                shared = case map_size(Shared) of
                             0 -> Shared;
                             _ -> maps:remove(Id, Shared)
                         end}.

settle(#state{done = []} = State) ->
    State;
settle(#state{done = Done, settling = Settling, server_id = ServerId} = State) ->
    Ids = << <<Id:64/little>> || Id <- Done >>,
    Correlation = make_ref(),
    ok = rabbit_delay_raft:settle(ServerId, Ids, Correlation),
    State#state{done = [], settling = Settling#{Correlation => Ids}}.

%% ------------------------------------------------------------------------ the queues' behaviour

ticking(#state{ticking = true} = State) ->
    State;
ticking(State) ->
    _ = erlang:send_after(?TICK_MS, self(), tick),
    State#state{ticking = true}.

tick(#state{targets = Targets0, exchange = XName} = State0) ->
    Now = now_ms(),
    {Slow, Targets1} = rabbit_delay_targets:tick(Now, Targets0),
    State1 = lists:foldl(fun (QName, S) ->
                                 warn(slow, "~s has not confirmed delayed messages of ~s for a while",
                                      [rabbit_delay_text:rs(QName), rabbit_delay_text:rs(XName)], S)
                         end, State0#state{targets = Targets1}, Slow),
    State2 = silent(Now, within_bounds(State1)),
    Before = case map_size(State2#state.publishers) > ?MANY_PUBLISHERS of
                 true -> Now;
                 false -> Now - ?UNUSED_MS
             end,
    {Unused, Targets} = rabbit_delay_targets:unused(Before, State2#state.targets),
    lists:foreach(fun end_publisher/1, Unused),
    State = waiting_known(report(Now, State2#state{
                                        targets = Targets,
                                        publishers = maps:without(Unused,
                                                                  State2#state.publishers)})),
    case rabbit_delay_targets:names(Targets) of
        [] -> State;
        _ -> pump_soon(ticking(State))
    end.

%% So many slow queues that together they hold too much: what they have is counted as lost, and
%% waits in the store.
within_bounds(#state{targets = Targets} = State) ->
    case rabbit_delay_targets:beyond(Targets) of
        none -> State;
        QName -> within_bounds(give_up(QName, too_many_slow_queues, State))
    end.

%% A client that sends again by itself never tires; all others' messages may be lost.
silent(Now, #state{targets = Targets} = State) ->
    lists:foldl(fun (QName, S) ->
                        case rabbit_delay_broker:sends_again(QName) of
                            true -> S;
                            false -> give_up(QName, no_confirm, S)
                        end
                end, State, rabbit_delay_targets:silent(Now, ?SETTLE_MS, Targets)).

%% As a line of the log now and then for as long as it lasts.
report(Now, #state{reported = At} = State) when Now - At < ?REPORT_MS ->
    State;
report(Now, #state{targets = Targets, exchange = XName} = State) ->
    case {rabbit_delay_targets:stuck(Targets), rabbit_delay_targets:waiting(Targets)} of
        {[_ | _] = Stuck, Waiting} when Waiting > 0 ->
            ?LOG_WARNING("~b delayed messages of ~s are due and wait for ~b queues: ~ts",
                         [Waiting, rabbit_delay_text:rs(XName), length(Stuck),
                          lists:join(", ", [shown(Name) || Name <- lists:sublist(Stuck, 5)])],
                         ?LOG_DOMAIN);
        _ ->
            ok
    end,
    State#state{reported = Now}.

shown(#resource{} = QName) -> rabbit_delay_text:rs(QName);
shown(parking) -> "a place for dead letters that are not retried";
shown(failing) -> "what they cannot be routed without".

waiting_known(#state{targets = Targets, counters = Counters, ids = Ids} = State) ->
    ok = rabbit_delay_counters:waiting(Counters, rabbit_delay_targets:waiting(Targets),
                                       length(rabbit_delay_targets:stuck(Targets)),
                                       map_size(Ids)),
    State.
