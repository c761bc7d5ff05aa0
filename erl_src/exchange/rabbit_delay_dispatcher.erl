%% SPDX-License-Identifier: MPL-2.0

%% One process per delayed exchange, at work beside its Raft leader: lets messages out when they are
%% due.
%%
%% It reads due records from the leader's own store, never through Raft; routes each by the bindings
%% as they are now; publishes it to the queues as a channel would; and when all of them have
%% confirmed it, settles it through Raft, many in an entry. So a message is delivered at least once,
%% and again only if this process, the leader or a queue ends between the two.
%%
%% Only so many messages and bytes are in flight. A message that no queue took is put back into the
%% store until later, which costs no memory here; the pause doubles for each queue that keeps
%% rejecting. One that some queues took and others did not stays in flight, without its body, so that
%% it goes only to the others next time.
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

%% At most this long is slept: the clock may be stepped meanwhile.
-define(MAX_SLEEP_MS, 1000).
-define(STORE_RETRY_MS, 1000).
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
         rejected = [] :: [rabbit_amqqueue:name()]}).

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
         publisher :: rabbit_delay_broker:publisher(),
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
         %% the present pause of each queue that rejects, ms, and since when
         pauses = #{} :: #{rabbit_amqqueue:name() => {pos_integer(), Since :: integer()}},
         %% until when warnings of a kind are counted only, monotonic ms, and how many were
         warned = #{} :: #{dropped | kept | unreadable =>
                            {Until :: integer(), non_neg_integer()}},
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
    ok = rabbit_delay_registry:register_dispatcher(XName, self()),
    {ok, #state{exchange = XName,
                server_id = rabbit_delay_raft:server_id(XName),
                max_messages = rabbit_delay_config:in_flight_messages([]),
                max_bytes = rabbit_delay_config:in_flight_bytes(),
                allowed_at = erlang:monotonic_time(millisecond),
                publisher = rabbit_delay_broker:publisher(),
                counters = rabbit_delay_registry:counters(XName)},
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
handle_cast({queue_event, QName, Event}, #state{publisher = Publisher0} = State) ->
    case rabbit_delay_broker:handle_event(QName, Event, Publisher0) of
        {ok, Publisher, Actions} ->
            {noreply, handle_actions(Actions, State#state{publisher = Publisher})};
        {eol, Publisher} ->
            {noreply, queue_gone(QName, State#state{publisher = Publisher})}
    end;
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
handle_info({retry, SeqNo}, State) ->
    {noreply, retry(SeqNo, State)};
handle_info({'DOWN', Ref, process, _, _}, #state{leader = {_, Ref}, exchange = XName} = State) ->
    ok = rabbit_delay_registry:register_store(XName, undefined),
    {noreply, cancel_timer(interrupt(State#state{leader = undefined, note = undefined,
                                                 store = undefined}))};
handle_info({bump_credit, Message}, State) ->
    credit_flow:handle_bump_msg(Message),
    {noreply, State};
handle_info(Message, #state{publisher = Publisher0} = State) ->
    case rabbit_delay_broker:handle_down(Message, Publisher0) of
        {ok, Publisher, Actions} ->
            {noreply, handle_actions(Actions, State#state{publisher = Publisher})};
        {eol, QName, Publisher} ->
            {noreply, queue_gone(QName, State#state{publisher = Publisher})};
        unknown ->
            {noreply, State}
    end.

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

%% What an earlier process of ours had taken out is to be handed out again.
attach(#state{exchange = XName, server_id = ServerId, ids = Ids} = State) ->
    {ok, {_, Store}, _} = ra:local_query(ServerId, fun rabbit_delay_machine:store/1, infinity),
    {ok, {_, Paused}, _} = ra:local_query(ServerId, fun rabbit_delay_machine:is_paused/1, infinity),
    ok = rabbit_delay_registry:register_paused(XName, Paused),
    ok = rabbit_delay_registry:register_store(XName, Store),
    case map_size(Ids) of
        0 -> ok = rabbit_delay_store:untake(Store);
        _ -> ok
    end,
    case lookup(XName) of
        {ok, X} ->
            pump(configured(X, ready(State#state{store = Store, paused = Paused})));
        {error, not_found} ->
            %% It is being deleted, and this process with it.
            State
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

is_free(Id, #state{ids = Ids, held = Held}) ->
    not is_map_key(Id, Ids) andalso not is_map_key(Id, Held).

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
configured(X, State) ->
    Args = rabbit_delay_broker:exchange_arguments(X),
    State#state{max_messages = rabbit_delay_config:in_flight_messages(Args),
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
pump(#state{ids = Ids, max_messages = MaxMessages, bytes = Bytes, max_bytes = MaxBytes} = State) ->
    Room = MaxMessages - map_size(Ids),
    %% A batch that is worth the call, unless the limit itself is small.
    case Room >= min(?TAKE_MESSAGES, (MaxMessages + 3) div 4) andalso Bytes < MaxBytes of
        true -> take_allowed(min(Room, ?TAKE_MESSAGES), min(MaxBytes - Bytes, ?TAKE_BYTES), State);
        false -> State
    end.

%% No more than the exchange's rate allows: what it allows in RATE_MS may come at once.
take_allowed(Messages, Bytes, #state{rate = infinity} = State) ->
    take(Messages, Bytes, State);
take_allowed(Messages, Bytes, #state{rate = Rate, allowance = Allowance0, allowed_at = At,
                                     exchange = XName} = State0) ->
    Now = erlang:monotonic_time(millisecond),
    Most = max(1.0, Rate * ?RATE_MS / 1000),
    Allowance = min(Most, Allowance0 + Rate * (Now - At) / 1000),
    State = State0#state{allowance = Allowance, allowed_at = Now},
    case trunc(Allowance) of
        0 ->
            Missing = ceil((1.0 - Allowance) * 1000 / Rate),
            %% The rate may be another one by then.
            Next = case lookup(XName) of
                       {ok, X} -> configured(X, State);
                       {error, not_found} -> State
                   end,
            sleep_until(rabbit_delay_config:now_ms() + Missing, Next);
        N ->
            take(min(Messages, N), Bytes, State)
    end.

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
                    %% It is being deleted, and this process with it.
                    State0#state{store = undefined}
            end;
        {error, eclosed} ->
            State0#state{store = undefined};
        {error, Reason} ->
            State = warn(unreadable, "delayed messages of ~s: the store cannot be read: ~0p; it is "
                         "tried again", [rabbit_misc:rs(XName), Reason], State0),
            sleep_until(Now + ?STORE_RETRY_MS, State)
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
                         warn(unreadable, "delayed messages of ~s: ~b damaged records cannot be kept "
                              "aside: ~0p; it is tried again",
                              [rabbit_misc:rs(XName), length(Ids), Reason], State0)}
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
        rabbit_delay_exchange:while_releasing(fun () -> lists:foldl(Fun, {State0, #{}}, Items) end),
    ok = count(Routed),
    State.

release(Records, X, State) ->
    publishing(fun (Record, Acc) -> release_one(Record, X, Acc) end, Records, State).

release_one({Id, _, _, _}, _, {#state{ids = Ids, held = Held}, _} = Acc)
  when is_map_key(Id, Ids); is_map_key(Id, Held) ->
    Acc;
release_one({corrupt, Id, _, _, _}, _, {#state{ids = Ids, held = Held}, _} = Acc)
  when is_map_key(Id, Ids); is_map_key(Id, Held) ->
    Acc;
release_one({Id, Due, Encoding, Body}, X, {#state{overdue = Overdue} = State0, Routed}) ->
    How = case Overdue of
              {What, After} ->
                  case rabbit_delay_config:now_ms() - Due > After of
                      true -> What;
                      false -> deliver
                  end;
              deliver ->
                  deliver
          end,
    case How =/= drop andalso rabbit_delay_broker:decode(Encoding, Body) of
        false ->
            rabbit_delay_counters:add(State0#state.counters, expired, 1),
            {done(Id, byte_size(Body), hold(Id, byte_size(Body), State0)), Routed};
        {ok, Message} ->
            State1 = hold(Id, byte_size(Body), State0),
            InFlight = #in_flight{id = Id, due = Due, bytes = byte_size(Body),
                                  how = case rabbit_delay_retry:is_marked(Encoding) of
                                            _ when How =:= dead_letter -> {dead_lettered, overdue};
                                            true -> returned;
                                            false -> released
                                        end},
            publish(Message, [], X, State1#state.next_seq_no, InFlight, State1, Routed);
        {error, {unknown_encoding, Number, Series}} ->
            State = warn(unknown_encoding,
                         "delayed message ~b of ~s is kept and not released: a later version of the "
                         "plugin or of RabbitMQ stored it (encoding ~b, series ~b)",
                         [Id, rabbit_misc:rs(State0#state.exchange), Number, Series], State0),
            {put_back(Id, 0, ?UNKNOWN_RETRY_MS, hold(Id, 0, State)), Routed};
        {error, Reason} ->
            {lost(Id, "it cannot be decoded: ~0p", [Reason], State0), Routed}
    end;
release_one({corrupt, Id, _Due, File, Offset}, _, {State, Routed}) ->
    {lost(Id, "its record in ~ts at offset ~b is damaged", [File, Offset], State), Routed}.

hold(Id, Size, #state{ids = Ids, ids_bytes = IdsBytes, bytes = Bytes} = State) ->
    State#state{ids = Ids#{Id => Size}, ids_bytes = IdsBytes + Size, bytes = Bytes + Size}.

lost(Id, Format, Args, #state{exchange = XName, counters = Counters} = State0) ->
    ?LOG_ERROR("delayed message ~b of ~s is lost: " ++ Format,
               [Id, rabbit_misc:rs(XName) | Args], ?LOG_DOMAIN),
    rabbit_delay_counters:add(Counters, corrupt, 1),
    done(Id, 0, hold(Id, 0, State0)).

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
        absent ->
            {keep(InFlight, State), Routed};
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
                            [Queue, rabbit_misc:rs(XName), Why], State), Routed);
        none when Already =:= [] ->
            {Place, _} = hd(Places),
            {keep(InFlight,
                  warn(kept, "a dead letter of queue '~ts' cannot be parked by ~ts (~s) and is "
                       "kept: exchange '~ts' has no queue for it",
                       [Queue, rabbit_misc:rs(XName), Why, Place], State)), Routed};
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
keep(#in_flight{id = Id, bytes = Bytes}, State) ->
    {_, Pause} = rabbit_delay_config:retry_interval_ms(),
    put_back(Id, Bytes, Pause, State).

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
    Qs = [Q || Q <- AllQs, not lists:member(rabbit_delay_broker:queue_name(Q), Already)],
    #state{publisher = Publisher0, in_flight = All, counters = Counters} = State0,
    #in_flight{id = Id, bytes = Bytes, how = How} = InFlight0,
    case Qs of
        [] when Already =:= [] ->
            rabbit_delay_counters:add(Counters, case How of
                                                    {dead_lettered, overdue} -> expired;
                                                    {dead_lettered, maxlen} -> overflowed;
                                                    _ -> unroutable
                                                end, 1),
            {done(Id, Bytes, State0), Routed};
        [] ->
            {done(Id, Bytes, State0), Routed};
        _ ->
            QNames = [rabbit_delay_broker:queue_name(Q) || Q <- Qs],
            InFlight = InFlight0#in_flight{unsettled = QNames, rejected = []},
            State = State0#state{in_flight = All#{SeqNo => InFlight},
                                 next_seq_no = max(SeqNo + 1, State0#state.next_seq_no)},
            case rabbit_delay_broker:publish(Qs, Message, SeqNo, Publisher0) of
                {ok, Publisher, Actions} ->
                    {handle_actions(Actions, State#state{publisher = Publisher}),
                     routed(case How of
                                returned -> State#state.exchange;
                                _ -> rabbit_delay_broker:exchange_of(Message, State#state.exchange)
                            end, QNames, Routed)};
                {error, Reason} ->
                    ?LOG_WARNING("delayed messages of ~s: cannot publish to ~0p: ~0P",
                                 [rabbit_misc:rs(State#state.exchange), QNames, Reason, 10],
                                 ?LOG_DOMAIN),
                    {lists:foldl(fun (QName, S) -> outcome(rejected, QName, SeqNo, S) end,
                                 State, QNames), Routed}
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

drop_latest_due(X, #state{store = Store, ids = Ids, ids_bytes = IdsBytes, bytes = Bytes,
                          max_messages = MaxMessages, max_bytes = MaxBytes} = State0) ->
    {Messages, Size} = rabbit_delay_policy:limits(X),
    Excess = case rabbit_delay_store:stat(Store) of
                 #{pending := Pending, pending_bytes := PendingBytes} ->
                     {beyond(Messages, Pending - map_size(Ids)),
                      beyond(Size, PendingBytes - IdsBytes)};
                 {error, _} ->
                     {0, 0}
             end,
    Room = min(MaxMessages - map_size(Ids), ?DROP_MESSAGES),
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

handle_actions(Actions, State) ->
    lists:foldl(
      fun ({Outcome, QName, SeqNos}, S) when Outcome =:= settled; Outcome =:= rejected ->
              lists:foldl(fun (SeqNo, S1) -> outcome(Outcome, QName, SeqNo, S1) end, S, SeqNos);
          (_, S) ->
              S
      end, State, Actions).

outcome(Outcome, QName, SeqNo, #state{in_flight = All, pauses = Pauses} = State) ->
    case All of
        #{SeqNo := #in_flight{unsettled = Unsettled, settled = Settled,
                              rejected = Rejected} = InFlight0} ->
            InFlight1 = InFlight0#in_flight{unsettled = lists:delete(QName, Unsettled)},
            case Outcome of
                settled ->
                    finish(SeqNo, InFlight1#in_flight{settled = [QName | Settled]},
                           State#state{pauses = case map_size(Pauses) of
                                                    0 -> Pauses;
                                                    _ -> maps:remove(QName, Pauses)
                                                end});
                rejected ->
                    finish(SeqNo, InFlight1#in_flight{rejected = [QName | Rejected]}, State);
                gone ->
                    finish(SeqNo, InFlight1, State)
            end;
        _ ->
            State
    end.

%% A queue was deleted with messages of ours unconfirmed. Where it was the only one, routing decides
%% again.
queue_gone(QName, #state{in_flight = All} = State) ->
    SeqNos = [SeqNo || {SeqNo, #in_flight{unsettled = Unsettled}} <- maps:to_list(All),
                       lists:member(QName, Unsettled)],
    lists:foldl(fun (SeqNo, S) -> outcome(gone, QName, SeqNo, S) end, State, SeqNos).

finish(SeqNo, #in_flight{unsettled = [_ | _]} = InFlight, #state{in_flight = All} = State) ->
    State#state{in_flight = All#{SeqNo := InFlight}};
finish(SeqNo, #in_flight{rejected = [], settled = [_ | _], id = Id, due = Due, bytes = Bytes,
                        how = How},
       #state{in_flight = All, counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, case How of
                                            {What, _} -> What;
                                            What -> What
                                        end, 1),
    _ = How =/= {dead_lettered, maxlen} andalso
        rabbit_delay_counters:lateness(Counters, rabbit_delay_config:now_ms() - Due),
    done(Id, Bytes, State#state{in_flight = maps:remove(SeqNo, All)});
finish(SeqNo, #in_flight{rejected = Rejected, settled = [], how = {dead_lettered, maxlen}} = InFlight,
       #state{in_flight = All, counters = Counters} = State0) ->
    rabbit_delay_counters:add(Counters, retried, 1),
    {Pause, State} = pause(Rejected, State0),
    not_dropped(InFlight, Pause, State#state{in_flight = maps:remove(SeqNo, All)});
finish(SeqNo, #in_flight{rejected = Rejected, settled = [], id = Id, bytes = Bytes},
       #state{in_flight = All, counters = Counters} = State0) ->
    rabbit_delay_counters:add(Counters, retried, 1),
    {Pause, State} = pause(Rejected, State0),
    put_back(Id, Bytes, Pause, State#state{in_flight = maps:remove(SeqNo, All)});
finish(SeqNo, #in_flight{rejected = Rejected, bytes = Bytes} = InFlight,
       #state{in_flight = All, counters = Counters} = State0) ->
    rabbit_delay_counters:add(Counters, retried, 1),
    {Pause, State} = pause(Rejected, State0),
    _ = erlang:send_after(Pause, self(), {retry, SeqNo}),
    State#state{in_flight = All#{SeqNo := InFlight#in_flight{bytes = 0}},
                bytes = State#state.bytes - Bytes}.

pause([], State) ->
    {Min, _} = rabbit_delay_config:retry_interval_ms(),
    {Min, State};
pause(QNames, #state{pauses = Pauses0} = State) ->
    {Min, Max} = rabbit_delay_config:retry_interval_ms(),
    Now = erlang:monotonic_time(millisecond),
    {Pause, Pauses} =
        lists:foldl(
          fun (QName, {Longest, Acc}) ->
                  Next = case Acc of
                             %% All that were rejected within one pause count once.
                             #{QName := {P, Since}} when Now - Since < P -> {P, Since};
                             #{QName := {P, _}} -> {min(2 * P, Max), Now};
                             _ -> {Min, Now}
                         end,
                  {max(Longest, element(1, Next)), Acc#{QName => Next}}
          end, {Min, Pauses0}, QNames),
    {Pause, State#state{pauses = Pauses}}.

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

%% Again to those queues that did not take it.
retry(SeqNo, #state{in_flight = All, store = Store, exchange = XName} = State) ->
    case All of
        #{SeqNo := #in_flight{id = Id, settled = Settled} = InFlight} when Store =/= undefined ->
            case {rabbit_delay_store:read(Store, Id), lookup(XName)} of
                {{ok, #{encoding := Encoding, body := Body}}, {ok, X}} ->
                    {ok, Message} = rabbit_delay_broker:decode(Encoding, Body),
                    publishing(fun (Again, {S, Routed}) ->
                                       publish(Message, Settled, X, SeqNo, Again, S, Routed)
                               end, [InFlight],
                               configured(X, State#state{in_flight = maps:remove(SeqNo, All)}));
                {{error, enoent}, _} ->
                    done(Id, 0, State#state{in_flight = maps:remove(SeqNo, All)});
                {{error, {corrupt, File, Offset}}, _} ->
                    damaged_meanwhile(SeqNo, InFlight, File, Offset, State);
                _ ->
                    _ = erlang:send_after(?STORE_RETRY_MS, self(), {retry, SeqNo}),
                    State
            end;
        #{SeqNo := _} ->
            _ = erlang:send_after(?STORE_RETRY_MS, self(), {retry, SeqNo}),
            State;
        _ ->
            State
    end.

%% Some of its queues have it, and the others cannot.
damaged_meanwhile(SeqNo, #in_flight{id = Id}, File, Offset,
                  #state{in_flight = All, store = Store, exchange = XName,
                         counters = Counters} = State) ->
    case rabbit_delay_store:keep_aside(Store, rabbit_delay_config:now_ms(), <<Id:64/little>>) of
        {ok, [Id]} ->
            ?LOG_ERROR("delayed message ~b of ~s is lost for some of its queues: its record in ~ts at "
                       "offset ~b is damaged",
                       [Id, rabbit_misc:rs(XName), File, Offset], ?LOG_DOMAIN),
            rabbit_delay_counters:add(Counters, corrupt, 1),
            done(Id, 0, State#state{in_flight = maps:remove(SeqNo, All)});
        _ ->
            _ = erlang:send_after(?STORE_RETRY_MS, self(), {retry, SeqNo}),
            State
    end.

%% Settled in batches: by whatever else is in the mailbox when the first is done.
done(Id, Bytes, #state{done = Done, bytes = All} = State) ->
    _ = Done =:= [] andalso (self() ! settle),
    State#state{done = [Id | Done], bytes = All - Bytes}.

settle(#state{done = []} = State) ->
    State;
settle(#state{done = Done, settling = Settling, server_id = ServerId} = State) ->
    Ids = << <<Id:64/little>> || Id <- Done >>,
    Correlation = make_ref(),
    ok = rabbit_delay_raft:settle(ServerId, Ids, Correlation),
    State#state{done = [], settling = Settling#{Correlation => Ids}}.
