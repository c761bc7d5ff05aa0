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
%% has been settled. It is ended when its server no longer leads, by that. A server that has been
%% deposed may not know: so records are taken out of the store only for a while after a majority has
%% confirmed that it leads (rabbit_delay_lease).
%%
%% What operators ask for goes through here too (change/2), so that cancelling and releasing a message
%% cannot both succeed: what is in flight is left alone (but by a purge), and what is not is kept from being released
%% until the change is applied.
%%
%% This module is the process: its calls, its leader and its store, and operators' changes. What it
%% does is in modules that share its state (rabbit_delay_dispatcher.hrl): rabbit_delay_release,
%% rabbit_delay_outcomes, rabbit_delay_overflow, rabbit_delay_watch and rabbit_delay_agenda. What it
%% decides and remembers is in others that know nothing of the process: rabbit_delay_in_flight,
%% rabbit_delay_destinations, rabbit_delay_changes, rabbit_delay_rate and rabbit_delay_targets.
-module(rabbit_delay_dispatcher).

-behaviour(gen_server).

-include("rabbit_delay.hrl").
-include("rabbit_delay_dispatcher.hrl").

-export([start_link/1, leader/2, stop_leading/1, group_grows/2, rest/2,
         wake/2, raised/2, overflow/1, counters/1, await_ready/2, change/2,
         change_async/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([change/0, changed/0]).

-type change() :: rabbit_delay_changes:change().

%% How many messages were changed, and which were not because they are in flight; the others were not
%% there any more. Of a purge, how many went, and how many of them were in flight, which may be
%% delivered all the same. {error, interrupted}: the Raft leader changed, and it may have happened or
%% not; {error, not_known}: some member has an earlier version of the machine.
-type changed() :: {ok, Changed :: non_neg_integer(), InFlight :: [rabbit_delay_store:id()]}
                 | {purged, Removed :: non_neg_integer(), InFlight :: non_neg_integer()}
                 | {error, not_ready | interrupted | not_known}.

-define(QUERY_MS, 30000).
%% How long what is in flight is waited for, where another is to lead.
-define(REST_MS, 3000).

%% No answer for so long is none.
-define(CHANGE_MS, 60000).

-spec start_link(rabbit_exchange:name()) -> {ok, pid()} | {error, term()}.
start_link(XName) ->
    gen_server:start_link(?MODULE, XName, []).

%% The exchange's Raft server on this node leads.
-spec leader(pid(), ra:server_id()) -> ok.
leader(Pid, ServerId) ->
    gen_server:cast(Pid, {leader, ServerId}).

%% It does not lead any more. Called by that server, for which this process never waits: it is at its end
%% when this returns, and its publishers with it, as none of them traps exits; another one takes its place,
%% and waits.
-spec stop_leading(pid()) -> ok.
stop_leading(Pid) ->
    Ref = monitor(process, Pid),
    exit(Pid, {shutdown, not_leading}),
    receive {'DOWN', Ref, process, Pid, _} -> ok end.

%% The group of the server that it works beside is about to have so many members.
-spec group_grows(pid(), Members :: pos_integer()) -> ok | {error, term()}.
group_grows(Pid, Members) ->
    try
        gen_server:call(Pid, {group_grows, Members}, ?QUERY_MS)
    catch
        exit:Reason -> {error, Reason}
    end.

%% Another one is to lead: so that nothing comes twice, it takes no more, for HoldMs at most, and this
%% returns when nothing is in flight, or after a while.
-spec rest(pid(), HoldMs :: pos_integer()) -> ok.
rest(Pid, HoldMs) ->
    try
        gen_server:call(Pid, {rest, HoldMs}, ?REST_MS)
    catch
        exit:_ -> ok
    end.

%% Something that is due at DueMs has been added, perhaps before all else. Called by the leader.
-spec wake(rabbit_exchange:name(), DueMs :: integer()) -> ok.
wake(XName, DueMs) ->
    case rabbit_delay_registry:dispatcher(XName) of
        undefined -> ok;
        Pid -> gen_server:cast(Pid, {wake, DueMs})
    end.

%% So much of the machine may be used from now on.
-spec raised(rabbit_exchange:name(), ra_machine:version()) -> ok.
raised(XName, Version) ->
    case rabbit_delay_registry:dispatcher(XName) of
        undefined -> ok;
        Pid -> gen_server:cast(Pid, {raised, Version})
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
        gen_server:call(Pid, {change, rabbit_delay_changes:encoded(Change)}, ?CHANGE_MS)
    catch
        exit:_ -> {error, interrupted}
    end.

%% The answer comes by gen_server:receive_response/2.
-spec change_async(pid(), change()) -> gen_server:request_id().
change_async(Pid, Change) ->
    gen_server:send_request(Pid, {change, rabbit_delay_changes:encoded(Change)}).

-spec init(rabbit_exchange:name()) -> {ok, #state{}, {continue, find_leader}}.
init(XName) ->
    process_flag(message_queue_data, off_heap),
    ok = net_kernel:monitor_nodes(true),
    Counters = rabbit_delay_registry:counters(XName),
    ok = rabbit_delay_counters:waiting(Counters, 0, 0, 0),
    ok = rabbit_delay_registry:register_dispatcher(XName, self()),
    Now = erlang:monotonic_time(millisecond),
    {ok, #state{exchange = XName,
                max_messages = rabbit_delay_config:in_flight_messages([]),
                max_bytes = rabbit_delay_config:in_flight_bytes(),
                rate = rabbit_delay_rate:new(Now),
                reported = Now,
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
handle_call({group_grows, Members}, _, #state{lease = Lease} = State) ->
    {reply, ok, rabbit_delay_agenda:pump_soon(
                  State#state{lease = rabbit_delay_lease:needed(Members, Lease)})};
handle_call({rest, _}, _, #state{resting = {_, _}} = State) ->
    {reply, ok, State};
handle_call({rest, HoldMs}, From, State) ->
    {noreply, at_rest(rabbit_delay_outcomes:settle(
                        State#state{resting = {From, erlang:start_timer(HoldMs, self(), rested)}}))};
handle_call(counters, _From, #state{counters = C} = State) ->
    {reply, rabbit_delay_counters:read(C), State};
handle_call(_, _, State) ->
    {reply, {error, not_supported}, State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({leader, ServerPid}, State) ->
    {noreply, follow_leader(ServerPid, State)};
%% What is being settled may have been appended after that, in the form of the earlier version, which does not settle what
%% has been released by key since.
handle_cast({raised, Version}, State) ->
    Raised = State#state{machine_version = Version},
    ok = settle_again(Raised),
    {noreply, Raised};
handle_cast({wake, DueMs}, State) ->
    {noreply, rabbit_delay_agenda:sleep_until(DueMs, State)};
handle_cast(overflow, State) ->
    {noreply, rabbit_delay_agenda:drop_soon(State)};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(pump, State) ->
    {noreply, rabbit_delay_release:pump(State#state{pumping = false})};
handle_info({timeout, Ref, rested}, #state{resting = {_, Ref}} = State) ->
    {noreply, rabbit_delay_agenda:pump_soon(State#state{resting = none})};
handle_info({timeout, Ref, due}, #state{timer = {_, Ref}} = State) ->
    {noreply, rabbit_delay_release:pump(State#state{timer = undefined})};
handle_info(overflow, State) ->
    {noreply, rabbit_delay_overflow:drop_latest_due(State#state{dropping = false})};
handle_info(settle, State) ->
    {noreply, rabbit_delay_outcomes:settle(State)};
handle_info({ra_event, ServerId, {applied, Replies}}, #state{leader = {ServerId, _}} = State) ->
    {noreply, lists:foldl(fun applied/2, State, Replies)};
%% By another leader, which has what was appended here: our own server's store may still hold what that settled.
handle_info({ra_event, _, {applied, _}}, State) ->
    {noreply, State};
handle_info({ra_event, _, {rejected, {_, _, Correlation}}}, State) ->
    %% When the server leads again, we are told, and append again.
    {noreply, answered(Correlation, {error, not_ready}, State)};
handle_info({outcomes, Pid, Outcomes}, #state{publishers = Publishers} = State) ->
    case Publishers of
        #{Pid := QName} -> {noreply, rabbit_delay_outcomes:outcomes(Outcomes, QName, State)};
        _ -> {noreply, State}
    end;
handle_info({given_up, Pid, Why}, #state{publishers = Publishers} = State) ->
    case maps:take(Pid, Publishers) of
        {QName, Rest} ->
            {noreply, rabbit_delay_outcomes:given_up(QName, Why, State#state{publishers = Rest})};
        error -> {noreply, State}
    end;
handle_info({gone, Pid}, #state{publishers = Publishers} = State) ->
    case maps:take(Pid, Publishers) of
        {QName, Rest} ->
            {noreply, rabbit_delay_outcomes:queue_gone(QName, State#state{publishers = Rest})};
        error -> {noreply, State}
    end;
handle_info({resume, Name}, #state{targets = Targets} = State) ->
    {noreply, rabbit_delay_agenda:pump_soon(
                State#state{targets = rabbit_delay_targets:resume(Name, Targets)})};
handle_info(tick, State) ->
    {noreply, rabbit_delay_watch:tick(State#state{ticking = false})};
%% What was away may be back.
handle_info({nodeup, _}, #state{targets = Targets} = State) ->
    {noreply, rabbit_delay_agenda:pump_soon(
                State#state{targets = rabbit_delay_targets:resume_all(Targets)})};
handle_info(detach, State) ->
    {noreply, rabbit_delay_agenda:attach_later(State)};
handle_info(attach, #state{leader = {_, _}, store = undefined} = State) ->
    {noreply, begin_again(State)};
handle_info({'DOWN', Ref, process, _, _}, #state{leader = {_, Ref}, exchange = XName,
                                                 store = Store} = State) ->
    %% Its next one may have been opened.
    ok = case rabbit_delay_registry:store(XName) of
             Store -> rabbit_delay_registry:register_store(XName, undefined);
             _ -> ok
         end,
    {noreply, rabbit_delay_agenda:cancel_timer(
                interrupt(State#state{leader = undefined, note = undefined, asked = undefined,
                                      store = undefined}))};
handle_info(_, State) ->
    {noreply, State}.

%% ------------------------------------------------------------------------------ leadership

follow_leader(ServerId, #state{leader = {ServerId, _}} = State) ->
    begin_again(State);
follow_leader(ServerId, #state{leader = Old, exchange = XName, lease = Lease} = State) ->
    _ = case Old of
            {_, Ref} -> demonitor(Ref, [flush]);
            undefined -> ok
        end,
    begin_again(interrupt(
                  State#state{leader = {ServerId, monitor(process, ServerId)},
                              lease = rabbit_delay_lease:needed(
                                        rabbit_delay_registry:group_size(XName), Lease)})).

begin_again(#state{leader = {ServerId, _}} = State) ->
    ok = settle_again(State),
    Note = make_ref(),
    Sending = rabbit_delay_agenda:sending(Note, State#state{note = Note}),
    ok = rabbit_delay_commands:note(ServerId, Note),
    Sending.

settle_again(#state{leader = undefined}) ->
    ok;
settle_again(#state{in_flight = Book, leader = {ServerId, _}, machine_version = Version}) ->
    lists:foreach(fun ({Correlation, Released}) ->
                          rabbit_delay_commands:settle(ServerId, Version, Released, Correlation)
                  end, rabbit_delay_in_flight:settling(Book)).

applied({Correlation, Reply}, #state{lease = Lease} = State) ->
    answer(Correlation, Reply, State#state{lease = rabbit_delay_lease:applied(Correlation, Lease)}).

answer(Note, {ok, #{machine_version := Version, term := Term, paused := Paused}},
       #state{note = Note, machine_version = Raised} = State) ->
    attach(Term, Paused, State#state{note = undefined, machine_version = max(Version, Raised)});
answer(Note, _, #state{note = Note} = State) ->
    %% The machine is of an earlier version, which another member may still have.
    rabbit_delay_agenda:attach_later(State#state{note = undefined});
answer(Asked, {ok, #{machine_version := Version}}, #state{asked = Asked, machine_version = Raised} = State) ->
    drop_later(rabbit_delay_agenda:pump_soon(
                 State#state{asked = undefined, machine_version = max(Version, Raised)}));
answer(Correlation, {ok, _} = Reply, #state{in_flight = Book0} = State) ->
    case rabbit_delay_in_flight:settled(Correlation, Book0) of
        {ok, Book} ->
            drop_later(rabbit_delay_agenda:pump_soon(at_rest(State#state{in_flight = Book})));
        error -> answered(Correlation, Reply, State)
    end;
answer(Correlation, Reply, State) ->
    answered(Correlation, Reply, State).

at_rest(#state{resting = {{_, _} = From, Ref}, in_flight = Book} = State) ->
    case rabbit_delay_in_flight:held(Book) of
        {0, _} ->
            gen_server:reply(From, ok),
            State#state{resting = {answered, Ref}};
        _ ->
            State
    end;
at_rest(State) ->
    State.

drop_later(#state{dropping = later} = State) -> rabbit_delay_agenda:drop_soon(State);
drop_later(State) -> State.

%% All that is not in flight is handed out again: what waited here, and what an earlier process of
%% ours had taken out.
attach(Term, Paused, #state{exchange = XName} = State0) ->
    case {leaders_store(State0), rabbit_delay_broker:lookup_exchange(XName)} of
        {{ok, Store}, {ok, X}} ->
            ok = rabbit_delay_registry:register_paused(XName, Paused),
            ok = rabbit_delay_registry:register_store(XName, Store),
            case rabbit_delay_release:hand_out_anew(
                   at_term(Term, State0#state{store = Store, paused = Paused})) of
                #state{store = undefined} = State -> State;
                State -> rabbit_delay_release:pump(ready(rabbit_delay_release:configured(X, State)))
            end;
        _ ->
            %% The exchange is being deleted, and this process with it, or the server is stopping;
            %% or it is only for now.
            rabbit_delay_agenda:attach_later(State0)
    end.

%% From a damaged one nothing is released: another is about to lead.
leaders_store(#state{leader = {ServerId, _}, exchange = XName}) ->
    case not rabbit_delay_local_member:is_damaged(XName)
        andalso ra:local_query(ServerId, fun rabbit_delay_machine:store/1, ?QUERY_MS) of
        {ok, {_, Store}, _} when Store =/= undefined -> {ok, Store};
        _ -> error
    end.

%% Between two terms that follow each other nobody else has led: what is in flight is still ours
%% alone. Otherwise others may have released, settled and changed all of it.
at_term(Term, #state{term = Before} = State)
  when Before =:= undefined; Term =:= Before; Term =:= Before + 1 ->
    State#state{term = Term};
at_term(Term, #state{publishers = Publishers, in_flight = Book} = State) ->
    lists:foreach(fun rabbit_delay_watch:end_publisher/1, maps:keys(Publishers)),
    State#state{term = Term, in_flight = rabbit_delay_in_flight:forget_all(Book),
                targets = rabbit_delay_targets:new(), publishers = #{}}.

%% -------------------------------------------------------------------- operators' changes

%% All that was appended before is applied or lost: what it held is handed out again.
ready(#state{awaiting = Awaiting, changes = Changes0} = State) ->
    lists:foreach(fun (From) -> gen_server:reply(From, ok) end, Awaiting),
    {Ids, Changes} = rabbit_delay_changes:take_held(Changes0),
    hand_out(Ids, State#state{awaiting = [], changes = Changes}).

change(purge, From, #state{machine_version = Version} = State) when not ?KNOWS_RELEASES(Version) ->
    gen_server:reply(From, {error, not_known}),
    State;
change(Change, From, #state{changes = Changes, leader = {ServerId, _}, term = Term} = State) ->
    case rabbit_delay_changes:allowed(Change, rabbit_delay_release:free(State)) of
        {nothing, InFlight} ->
            gen_server:reply(From, {ok, 0, InFlight}),
            State;
        {Allowed, InFlight} ->
            Correlation = make_ref(),
            Sending = rabbit_delay_agenda:sending(
                        Correlation,
                        State#state{changes = rabbit_delay_changes:append(
                                                Correlation, From, Allowed, InFlight, Changes)}),
            ok = rabbit_delay_commands:change(ServerId, Term, Allowed, Correlation),
            Sending
    end.

%% What became of a change, if this is one's correlation.
answered(Correlation, Reply, #state{changes = Changes0} = State) ->
    case rabbit_delay_changes:applied(Correlation, Changes0) of
        {From, InFlight, Change, Changes} ->
            changed(Reply, From, InFlight, Change, State#state{changes = Changes});
        error ->
            State
    end.

changed({ok, #{removed := Removed, taken := Taken}}, From, _, purge,
        #state{counters = Counters, in_flight = Book} = State) ->
    %% What only waits was taken, too.
    {Held, _} = rabbit_delay_in_flight:held(Book),
    InFlight = min(Taken, Held),
    rabbit_delay_counters:add(Counters, cancelled, Removed - InFlight),
    gen_server:reply(From, {purged, Removed, InFlight}),
    State;
changed({ok, Changed}, From, InFlight, Change, #state{counters = Counters} = State) ->
    _ = is_tuple(Change) andalso element(1, Change) =:= cancel
        andalso rabbit_delay_counters:add(Counters, cancelled, Changed),
    gen_server:reply(From, {ok, Changed, InFlight}),
    moved(Change, State);
changed(ok, From, _, Change, #state{exchange = XName} = State) ->
    Paused = Change =:= pause,
    ok = rabbit_delay_registry:register_paused(XName, Paused),
    gen_server:reply(From, {ok, 0, []}),
    rabbit_delay_agenda:pump_soon(State#state{paused = Paused});
changed({error, Reason}, From, _, Change, State) ->
    gen_server:reply(From, {error, case Reason of
                                       %% Another one leads by now.
                                       {other_term, _} -> not_ready;
                                       _ -> Reason
                                   end}),
    hand_out(rabbit_delay_changes:ids(Change), State).

%% What became due meanwhile was taken out of the store and passed over.
moved({reschedule, Dues}, #state{store = Store} = State) when Store =/= undefined, Dues =/= <<>> ->
    _ = case rabbit_delay_store:stat(Store) of
            #{taken := 0} -> ok;
            _ -> rabbit_delay_store:postpone_many(Store, Dues)
        end,
    rabbit_delay_agenda:pump_soon(State);
moved(_, State) ->
    State.

hand_out([_ | _] = Ids, #state{store = Store} = State) when Store =/= undefined ->
    Now = rabbit_delay_config:now_ms(),
    _ = rabbit_delay_store:postpone_many(Store, << <<Id:64/little, Now:64/little>> || Id <- Ids >>),
    rabbit_delay_agenda:pump_soon(State);
hand_out(_, State) ->
    State.

interrupt(#state{changes = Changes0} = State) ->
    {Froms, Changes} = rabbit_delay_changes:interrupt(Changes0),
    lists:foreach(fun (From) -> gen_server:reply(From, {error, interrupted}) end, Froms),
    State#state{changes = Changes}.
