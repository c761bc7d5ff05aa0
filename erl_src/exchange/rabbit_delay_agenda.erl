%% SPDX-License-Identifier: MPL-2.0

%% What a dispatcher is to do next, as messages and timers to itself: each thing is under way at most
%% once, however often it is asked for. In the dispatcher's process.
%%
%%   pump      looks for what can be released, soon or when something is due
%%   settle    settles what is done, behind whatever else is in the mailbox then
%%   overflow  drops what is due last, soon, after a while, or when something has been settled
%%   tick      looks at how the queues behave, as long as there are any
%%   attach    asks the leader for its store again
-module(rabbit_delay_agenda).

-include("rabbit_delay_dispatcher.hrl").

-export([pump_soon/1, sleep_until/2, cancel_timer/1, settle_soon/0, drop_soon/1, drop_after/2,
         tick_soon/1, attach_later/1, sending/2, may_take/1, may_drop/1]).

%% At most this long is slept: the clock may be stepped meanwhile.
-define(MAX_SLEEP_MS, 1000).
-define(STORE_RETRY_MS, 1000).
%% How often it is looked at which queues are slow.
-define(TICK_MS, 250).

-spec pump_soon(#state{}) -> #state{}.
pump_soon(#state{pumping = true} = State) ->
    State;
pump_soon(#state{store = undefined} = State) ->
    State;
pump_soon(State) ->
    self() ! pump,
    State#state{pumping = true}.

%% Unless it wakes sooner.
-spec sleep_until(DueMs :: integer() | infinity, #state{}) -> #state{}.
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

-spec cancel_timer(#state{}) -> #state{}.
cancel_timer(#state{timer = {_, Ref}} = State) ->
    _ = erlang:cancel_timer(Ref, [{async, true}, {info, false}]),
    State#state{timer = undefined};
cancel_timer(State) ->
    State.

-spec settle_soon() -> ok.
settle_soon() ->
    self() ! settle,
    ok.

-spec drop_soon(#state{}) -> #state{}.
drop_soon(#state{dropping = soon} = State) ->
    State;
drop_soon(State) ->
    self() ! overflow,
    State#state{dropping = soon}.

-spec drop_after(Ms :: non_neg_integer(), #state{}) -> #state{}.
drop_after(Ms, State) ->
    _ = erlang:send_after(Ms, self(), overflow),
    State#state{dropping = soon}.

-spec tick_soon(#state{}) -> #state{}.
tick_soon(#state{ticking = true} = State) ->
    State;
tick_soon(State) ->
    _ = erlang:send_after(?TICK_MS, self(), tick),
    State#state{ticking = true}.

%% The store cannot be used: until then there is none.
-spec attach_later(#state{}) -> #state{}.
attach_later(State) ->
    _ = erlang:send_after(?STORE_RETRY_MS, self(), attach),
    State#state{store = undefined}.

%% An entry is about to be appended, whose application says that this server has led until now. Before, not
%% after: this process may be paused between the two, and another lead meanwhile.
-spec sending(reference(), #state{}) -> #state{}.
sending(Correlation, #state{lease = Lease} = State) ->
    State#state{lease = rabbit_delay_lease:sending(Correlation, erlang:monotonic_time(millisecond),
                                                   Lease)}.

%% Whether messages may be taken out of the store now. If not, and there are any to be taken, it is
%% asked for, and they are looked for again when it is answered.
-spec may_take(#state{}) -> {boolean(), #state{}}.
may_take(#state{lease = Lease, store = Store, targets = Targets} = State) ->
    case rabbit_delay_lease:holds(erlang:monotonic_time(millisecond), Lease) of
        true ->
            {true, State};
        false ->
            Now = rabbit_delay_config:now_ms(),
            case {rabbit_delay_store:next_due(Store), rabbit_delay_targets:crowded(Targets)} of
                {Due, {[], _}} when Due =:= infinity; is_integer(Due), Due > Now ->
                    {false, sleep_until(Due, State)};
                _ ->
                    {false, ask(State)}
            end
    end.

%% The same of what is due last, which is dropped.
-spec may_drop(#state{}) -> {boolean(), #state{}}.
may_drop(#state{lease = Lease} = State) ->
    case rabbit_delay_lease:holds(erlang:monotonic_time(millisecond), Lease) of
        true -> {true, State};
        false -> {false, ask(State#state{dropping = later})}
    end.

ask(#state{asked = undefined, leader = {ServerId, _}} = State) ->
    Asked = make_ref(),
    Sending = sending(Asked, State#state{asked = Asked}),
    ok = rabbit_delay_commands:note(ServerId, Asked),
    Sending;
ask(State) ->
    State.
