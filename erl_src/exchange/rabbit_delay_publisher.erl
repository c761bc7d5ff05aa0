%% SPDX-License-Identifier: MPL-2.0

%% One process per queue that a dispatcher publishes to: it is the queue's client.
%%
%% The broker's clients of quorum queues and streams make the first contact in their caller's
%% process, and wait there for as long as the queue has no leader; later they look for one now and
%% then, and wait again. Here that holds up nobody but the messages for this very queue. They wait for a
%% server that does not answer, too, as long as they know of no other: rabbit_delay_contact asks before.
%%
%% A client that can do nothing but reject is given up, and its process with it: a quorum queue knows
%% its publishers by their processes, and confirms without a trace, as repeated, what a second client
%% of the same process sends.
%%
%% It is linked to its dispatcher, so that it never outlives that one, and ends normally whatever
%% the broker does, so that it never takes that one along. It tells it, as messages:
%%
%%   {outcomes, Pid, [{settled | rejected, [SeqNo]}]}
%%   {gone, Pid}                  the queue was deleted
%%   {given_up, Pid, Why}         whatever was not told of has not been taken
-module(rabbit_delay_publisher).

-behaviour(gen_server).

-export([start_link/1, publish/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-record(state, {dispatcher :: pid(),
                queue :: rabbit_amqqueue:name(),
                client :: rabbit_delay_broker:publisher(),
                %% whether it has been begun
                met = false :: boolean(),
                unconfirmed = #{} :: #{pos_integer() => []}}).

%% Of the calling process.
-spec start_link(rabbit_amqqueue:name()) -> {ok, pid()}.
start_link(QName) ->
    {ok, _} = gen_server:start_link(?MODULE, {self(), QName}, []).

%% In this order.
-spec publish(pid(), rabbit_delay_broker:queue(),
              [{SeqNo :: pos_integer(), rabbit_delay_broker:message()}]) -> ok.
publish(Pid, Q, Messages) ->
    gen_server:cast(Pid, {publish, Q, Messages}).

-spec init({pid(), rabbit_amqqueue:name()}) -> {ok, #state{}}.
init({Dispatcher, QName}) ->
    {ok, #state{dispatcher = Dispatcher, queue = QName, client = rabbit_delay_broker:publisher()}}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, not_supported}, #state{}}.
handle_call(_, _, State) ->
    {reply, {error, not_supported}, State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}} | {stop, normal, #state{}}.
handle_cast({publish, Q, Messages}, #state{met = false} = State) ->
    guarded(fun () ->
                    case rabbit_delay_contact:find_leader(Q) of
                        {ok, Led} -> publish_all(Led, Messages, [], State#state{met = true});
                        no_leader -> give_up(no_leader, [], State)
                    end
            end, State);
handle_cast({publish, Q, Messages}, State) ->
    guarded(fun () -> publish_all(Q, Messages, [], State) end, State);
handle_cast({queue_event, QName, Event}, #state{client = Client} = State) ->
    guarded(fun () -> handled(rabbit_delay_broker:handle_event(QName, Event, Client), State) end,
            State);
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}} | {stop, normal, #state{}}.
handle_info({bump_credit, Message}, State) ->
    credit_flow:handle_bump_msg(Message),
    {noreply, State};
handle_info(Message, #state{client = Client} = State) ->
    guarded(fun () ->
                    case rabbit_delay_broker:handle_down(Message, Client) of
                        {eol, _, Client1} -> handled({eol, Client1}, State);
                        Result -> handled(Result, State)
                    end
            end, State).

%% The broker's own code, at the mercy of whatever a queue's node does.
guarded(Fun, State) ->
    try
        Fun()
    catch
        Class:Reason -> give_up({Class, Reason}, [], State)
    end.

handled({ok, Client, Actions}, State) ->
    Outcomes = outcomes(Actions),
    ok = tell(Outcomes, State),
    {noreply, told(Outcomes, State#state{client = Client})};
handled({eol, _}, #state{dispatcher = Dispatcher} = State) ->
    Dispatcher ! {gone, self()},
    {stop, normal, State};
handled(unknown, State) ->
    {noreply, State}.

publish_all(_, [], Outcomes, State) ->
    ok = tell(lists:reverse(Outcomes), State),
    {noreply, State};
publish_all(Q, [{SeqNo, Message} | Rest], Outcomes0, #state{client = Client0} = State0) ->
    case rabbit_delay_broker:publish([Q], Message, SeqNo, Client0) of
        {ok, Client, Actions} ->
            New = outcomes(Actions),
            #state{unconfirmed = Before} = State0,
            State = told(New, State0#state{client = Client, unconfirmed = Before#{SeqNo => []}}),
            Outcomes = lists:reverse(New, Outcomes0),
            case State of
                #state{unconfirmed = None} when map_size(None) =:= 0, map_size(Before) =:= 0 ->
                    case lists:member({rejected, [SeqNo]}, New) of
                        true -> give_up(rejects, Outcomes, State);
                        false -> publish_all(Q, Rest, Outcomes, State)
                    end;
                _ ->
                    publish_all(Q, Rest, Outcomes, State)
            end;
        {error, Reason} ->
            give_up(Reason, Outcomes0, State0)
    end.

outcomes(Actions) ->
    [{Outcome, SeqNos} || {Outcome, _, [_ | _] = SeqNos} <- Actions,
                          Outcome =:= settled orelse Outcome =:= rejected].

told(Outcomes, State) ->
    lists:foldl(fun ({_, SeqNos}, #state{unconfirmed = Unconfirmed} = S) ->
                        S#state{unconfirmed = maps:without(SeqNos, Unconfirmed)}
                end, State, Outcomes).

tell([], _) ->
    ok;
tell(Outcomes, #state{dispatcher = Dispatcher}) ->
    Dispatcher ! {outcomes, self(), Outcomes},
    ok.

give_up(Why, OutcomesReversed, #state{dispatcher = Dispatcher} = State) ->
    ok = tell(lists:reverse(OutcomesReversed), State),
    Dispatcher ! {given_up, self(), Why},
    {stop, normal, State}.
