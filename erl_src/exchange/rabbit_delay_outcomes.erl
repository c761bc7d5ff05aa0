%% SPDX-License-Identifier: MPL-2.0

%% What becomes of a message that a dispatcher has in its hands: all its queues have confirmed it and
%% it is settled through Raft, many in an entry; no queue has it any more and it is put back into the
%% store; or it waits there, taken, for those that have not taken it.
%%
%% In the dispatcher's process, as the publishers report and as the broker's state is found to be when
%% a message is to be sent. A message is settled only when every queue that it was sent to has
%% confirmed it or was deleted, and at least one has it.
-module(rabbit_delay_outcomes).

-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay_dispatcher.hrl").

-export([outcomes/3, given_up/3, queue_gone/2]).
-export([done/4, put_back/4, wait_for/3, wait_already/3, wait/3, wait_first/3, pause/3, settle/1]).

%% ------------------------------------------------------------------------ what queues answer

%% A publisher's answers for a queue.
-spec outcomes([{settled | rejected, [pos_integer()]}], rabbit_amqqueue:name(), #state{}) ->
          #state{}.
outcomes(Outcomes, QName, State0) ->
    #state{targets = Targets} = State =
        lists:foldl(fun (Outcome, S) -> answers(Outcome, QName, S) end, State0, Outcomes),
    case rabbit_delay_targets:waiting(Targets) > 0 orelse rabbit_delay_targets:has_slow(Targets) of
        true -> rabbit_delay_agenda:pump_soon(State);
        false -> State
    end.

answers({settled, SeqNos}, QName, #state{targets = Targets} = State) ->
    each(settled, SeqNos, QName,
         State#state{targets = rabbit_delay_targets:confirmed(QName, SeqNos, now_ms(), Targets)});
answers({rejected, SeqNos}, QName, #state{targets = Targets} = State) ->
    each(rejected, SeqNos, QName,
         pause(QName, rejects,
               State#state{targets = rabbit_delay_targets:rejected(QName, SeqNos, Targets)})).

now_ms() -> erlang:monotonic_time(millisecond).

%% Its publisher has ended: what is unconfirmed may be there or not, and is sent again.
-spec given_up(rabbit_amqqueue:name(), Why :: term(), #state{}) -> #state{}.
given_up(QName, Why, #state{targets = Targets0} = State) ->
    {SeqNos, Targets} = rabbit_delay_targets:given_up(QName, Targets0),
    rabbit_delay_agenda:pump_soon(each(rejected, SeqNos, QName,
                                       pause(QName, Why, State#state{targets = Targets}))).

%% A queue was deleted with messages of ours unconfirmed. Where it was the only one, routing decides
%% again.
-spec queue_gone(rabbit_amqqueue:name(), #state{}) -> #state{}.
queue_gone(QName, #state{targets = Targets0} = State) ->
    {SeqNos, Targets} = rabbit_delay_targets:gone(QName, Targets0),
    rabbit_delay_agenda:pump_soon(each(gone, SeqNos, QName, State#state{targets = Targets})).

each(Answer, SeqNos, QName, State) ->
    lists:foldl(fun (SeqNo, S) -> answered(Answer, SeqNo, QName, S) end, State, SeqNos).

answered(Answer, SeqNo, QName, #state{in_flight = Book0} = State) ->
    case rabbit_delay_in_flight:answered(Answer, QName, SeqNo, Book0) of
        {finished, InFlight, Book} -> finished(InFlight, State#state{in_flight = Book});
        {awaits_more, InFlight, Book} when Answer =:= rejected ->
            wait_already([QName], InFlight, State#state{in_flight = Book});
        {awaits_more, _, Book} -> State#state{in_flight = Book};
        unknown -> State
    end.

finished(#in_flight{id = Id, due = Due, bytes = Bytes, how = How, rejected = Rejected} = InFlight,
         #state{counters = Counters} = State) ->
    case rabbit_delay_in_flight:fate(InFlight) of
        done ->
            rabbit_delay_counters:add(Counters, case How of
                                                    {What, _} -> What;
                                                    What -> What
                                                end, 1),
            _ = How =/= {dead_lettered, maxlen} andalso
                rabbit_delay_counters:lateness(Counters, rabbit_delay_config:now_ms() - Due),
            done(Id, Due, Bytes, State);
        nobody_has_it ->
            rabbit_delay_counters:add(Counters, retried, 1),
            {Pause, _} = rabbit_delay_config:retry_interval_ms(),
            case How of
                {dead_lettered, maxlen} -> not_dropped(InFlight, Pause, State);
                _ -> put_back(Id, Bytes, Pause, State)
            end;
        {waits_for, Names} ->
            _ = Rejected =/= [] andalso rabbit_delay_counters:add(Counters, retried, 1),
            %% What it waited for otherwise has been passed over while it was in flight.
            wait_for(Names, InFlight#in_flight{order = again, places = []}, State)
    end.

%% -------------------------------------------------------------------------------- settled

%% Settled in batches: by whatever else is in the mailbox when the first is done.
-spec done(rabbit_delay_store:id(), Due :: rabbit_delay_store:ms(), Bytes :: non_neg_integer(),
           #state{}) -> #state{}.
done(Id, Due, Bytes, #state{in_flight = Book0} = State) ->
    {First, Book} = rabbit_delay_in_flight:done(Id, Due, Bytes, Book0),
    _ = First andalso rabbit_delay_agenda:settle_soon(),
    State#state{in_flight = Book}.

-spec settle(#state{}) -> #state{}.
settle(#state{in_flight = Book0, leader = Leader, machine_version = Version} = State) ->
    Correlation = make_ref(),
    case rabbit_delay_in_flight:to_settle(Correlation, Book0) of
        {Released, Book} ->
            Sending = rabbit_delay_agenda:sending(Correlation, State#state{in_flight = Book}),
            %% Without a leader it is sent when there is one again.
            ok = case Leader of
                     {ServerId, _} -> rabbit_delay_commands:settle(ServerId, Version, Released, Correlation);
                     undefined -> ok
                 end,
            Sending;
        none ->
            State
    end.

%% ------------------------------------------------------------------------------- put back

-spec put_back(rabbit_delay_store:id(), Bytes :: non_neg_integer(), Pause :: non_neg_integer(),
               #state{}) -> #state{}.
put_back(Id, Bytes, Pause, #state{store = Store, in_flight = Book} = State0) ->
    State = State0#state{in_flight = rabbit_delay_in_flight:release(Id, Bytes, Book)},
    Until = rabbit_delay_config:now_ms() + Pause,
    case Store =/= undefined andalso rabbit_delay_store:postpone(Store, Id, Until) of
        ok -> rabbit_delay_agenda:pump_soon(rabbit_delay_agenda:sleep_until(Until, State));
        %% Without a store there is nothing to put it back into: it was never taken from the next.
        false -> State;
        {error, enoent} ->
            %% It was cancelled while it was in flight.
            rabbit_delay_counters:add(State#state.counters, cancelled, 1),
            rabbit_delay_agenda:pump_soon(State);
        {error, eclosed} -> State
    end.

%% It stays, and may have come due meanwhile: then it was handed out and passed over.
not_dropped(#in_flight{id = Id, due = Due, bytes = Bytes}, Pause,
            #state{store = Store, in_flight = Book} = State) ->
    _ = Store =/= undefined andalso rabbit_delay_store:postpone(Store, Id, Due),
    rabbit_delay_agenda:pump_soon(
      rabbit_delay_agenda:drop_after(
        Pause, State#state{in_flight = rabbit_delay_in_flight:release(Id, Bytes, Book)})).

%% --------------------------------------------------------------------------------- waiting

%% In the store, until one of these takes it.
-spec wait_for([rabbit_delay_targets:name()], rabbit_delay_in_flight:message(), #state{}) ->
          #state{}.
wait_for(_, #in_flight{how = {dead_lettered, maxlen}, settled = []} = InFlight, State) ->
    {Min, _} = rabbit_delay_config:retry_interval_ms(),
    not_dropped(InFlight, Min, State);
wait_for(Names, #in_flight{id = Id, due = Due, order = Order} = InFlight,
         #state{in_flight = Book0, waking = Waking} = State) ->
    {New, Book} = rabbit_delay_in_flight:wait(Names, InFlight, Book0),
    Wait = case Order =:= again orelse Waking =/= none of
               true -> fun wait_first/3;
               false -> fun wait/3
           end,
    lists:foldl(fun (Name, S) -> Wait(Name, {Due, Id}, S) end, State#state{in_flight = Book}, New).

%% While others still have to answer: so it keeps its place before whatever is due later, and gets it as soon as
%% these queues take it, however long the others need.
-spec wait_already([rabbit_delay_targets:name()], rabbit_delay_in_flight:message(), #state{}) -> #state{}.
wait_already(_, #in_flight{how = {dead_lettered, maxlen}, settled = []}, State) ->
    %% Not due, and it stays if one of them does not take it.
    State;
wait_already(Names, #in_flight{id = Id, due = Due}, State) ->
    lists:foldl(fun (Name, S) -> wait_first(Name, {Due, Id}, S) end, State, Names).

%% Behind all that wait for it.
-spec wait(rabbit_delay_targets:name(), rabbit_delay_targets:place(), #state{}) -> #state{}.
wait(Name, Place, #state{targets = Targets} = State) ->
    rabbit_delay_agenda:tick_soon(
      State#state{targets = rabbit_delay_targets:wait(Name, Place, now_ms(), Targets)}).

%% In the place that it had. Those that are no queues get them all in turns.
-spec wait_first(rabbit_delay_targets:name(), rabbit_delay_targets:place(), #state{}) -> #state{}.
wait_first(#resource{} = Name, Place, #state{targets = Targets} = State) ->
    rabbit_delay_agenda:tick_soon(
      State#state{targets = rabbit_delay_targets:wait_first(Name, Place, now_ms(), Targets)});
wait_first(Name, Place, State) ->
    wait(Name, Place, State).

%% It is left alone for a while.
-spec pause(rabbit_delay_targets:name(), Why :: term(), #state{}) -> #state{}.
pause(Name, Why, #state{targets = Targets0} = State) ->
    case rabbit_delay_targets:pause(Name, rabbit_delay_config:retry_interval_ms(), now_ms(),
                                    Targets0) of
        {paused, Targets} ->
            State#state{targets = Targets};
        {pause, Ms, Targets} ->
            _ = erlang:send_after(Ms, self(), {resume, Name}),
            say_stuck(Name, Why, rabbit_delay_agenda:tick_soon(State#state{targets = Targets}))
    end.

say_stuck(#resource{kind = queue} = QName, Why, #state{exchange = XName, warned = Warned} = State) ->
    State#state{warned = rabbit_delay_warnings:warn(
                           {stuck, "~ts takes no delayed messages of ~ts for now (~0P), they wait",
                            [rabbit_delay_text:rs(QName), rabbit_delay_text:rs(XName), Why, 10]},
                           now_ms(), Warned)};
say_stuck(_, _, State) ->
    State.
