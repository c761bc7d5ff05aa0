%% SPDX-License-Identifier: MPL-2.0

%% What becomes of a message that comes to a delay queue, until it is appended: it waits, in memory or
%% in files (rabbit_delay_waiting), or is rejected, which its publisher is told; or it is dropped, which
%% is counted and logged, as is what is refused for its delay.
%%
%% In the delay queue's process. What has somebody who hears of a rejection is never dropped, and
%% nothing else is rejected; what waits in memory is bounded, and what is in files by the disk's free
%% space.
-module(rabbit_delay_intake).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").
-include("rabbit_delay_queue.hrl").

-export([new/1, take/2, next/3, put_back/2, refill/1, write_overflow/1]).
-export([reject/2, reject_all/3, reject_waiting/1, drop/3, refuse_unusable/2, say_again/2, say_lost/2]).
-export([verdict_on_told/3, verdict_on_untold/2]).

%% How much waits in memory. Beyond that what can be rejected is, if there is no leader, and what
%% cannot goes to files.
-define(MAX_WAITING, 20000).
-define(MAX_WAITING_BYTES, 67108864).
%% How much that can be rejected may wait for a leader's log, at most.
-define(MAX_REJECTABLE, 200000).
-define(MAX_REJECTABLE_BYTES, 268435456).

%% One line in so long says how many messages were dropped, and one how many were refused.
-define(SAY_MS, 10000).

%% rabbit_delay_system:status/0.
-export_type([status/0]).

-type status() :: up | starting | {down | full, Why :: string()}.

-spec new(rabbit_exchange:name()) -> rabbit_delay_waiting:waiting().
new(XName) ->
    rabbit_delay_waiting:new(rabbit_delay_waiting:directory(XName),
                             {?MAX_WAITING, ?MAX_WAITING_BYTES}).

-spec take(#waiting{}, #state{}) -> #state{}.
take(#waiting{message = Message} = W, #state{waiting = Waiting} = State) ->
    Size = rabbit_delay_broker:payload_size(Message),
    case verdict(W, State) of
        wait -> wait(W#waiting{size = Size}, State);
        overflow ->
            State#state{waiting = rabbit_delay_waiting:overflow(W#waiting{size = Size}, Size,
                                                                Waiting)};
        reject -> reject(W, State);
        {drop, Why} -> drop(Why, 1, reject(W, State))
    end.

wait(#waiting{size = Size} = W, #state{waiting = Waiting} = State) ->
    rejectable(W, 1, State#state{waiting = rabbit_delay_waiting:in(W, Size, Waiting)}).

rejectable(#waiting{seq_no = undefined}, _, State) -> State;
rejectable(_, N, #state{rejectable = M} = State) -> State#state{rejectable = M + N}.

verdict(#waiting{message = Message, seq_no = SeqNo},
        #state{exchange = XName, waiting = Waiting} = State) ->
    case (rabbit_delay_broker:exchange_of(Message, XName))#resource.name of
        <<>> when SeqNo =:= undefined ->
            {drop, "they were sent to its internal queue by name"};
        <<>> ->
            reject;
        _ when SeqNo =:= undefined ->
            verdict_on_untold(rabbit_delay_system:status(), Waiting);
        _ ->
            verdict_on_told(rabbit_delay_condition:status(State), leader(State), Waiting)
    end.

leader(#state{condition = unknown, exchange = XName}) ->
    case rabbit_delay_registry:refusal(XName) of
        undefined -> awaited;
        _ -> refused
    end;
leader(_) ->
    known.

%% Of a message that somebody hears of. With a leader it waits for no more than the log.
-spec verdict_on_told(status(), Leader :: known | awaited | refused,
                      rabbit_delay_waiting:waiting()) -> wait | reject.
verdict_on_told({_, _}, _, _) ->
    reject;
verdict_on_told(_, refused, _) ->
    reject;
verdict_on_told(_, awaited, Waiting) ->
    reject_if(rabbit_delay_waiting:is_full(Waiting));
verdict_on_told(_, known, Waiting) ->
    reject_if(rabbit_delay_waiting:count(Waiting) >= ?MAX_REJECTABLE
                  orelse rabbit_delay_waiting:bytes(Waiting) >= ?MAX_REJECTABLE_BYTES).

reject_if(true) -> reject;
reject_if(false) -> wait.

%% Of one that nobody hears of: it is in files behind all that are there.
-spec verdict_on_untold(status(), rabbit_delay_waiting:waiting()) ->
          wait | overflow | {drop, Why :: string()}.
verdict_on_untold(Status, Waiting) ->
    case {rabbit_delay_waiting:is_full(Waiting) orelse rabbit_delay_waiting:overflowing(Waiting),
          Status} of
        {false, _} -> wait;
        {true, {full, Why}} -> {drop, Why};
        {true, _} -> overflow
    end.

%% The next ones that wait in memory, until they are so many or so large.
-spec next(Messages :: pos_integer(), Bytes :: pos_integer(), #state{}) -> {[#waiting{}], #state{}}.
next(Messages, Bytes, State) ->
    next({0, Messages}, {0, Bytes}, [], State).

next({Count, MaxCount}, {Bytes, MaxBytes}, Acc, #state{waiting = Waiting0} = State)
  when Count < MaxCount, Bytes < MaxBytes ->
    case rabbit_delay_waiting:out(Waiting0) of
        {W, Size, Waiting} ->
            next({Count + 1, MaxCount}, {Bytes + Size, MaxBytes}, [W | Acc],
                 rejectable(W, -1, State#state{waiting = Waiting}));
        empty ->
            {lists:reverse(Acc), State}
    end;
next(_, _, Acc, State) ->
    {lists:reverse(Acc), State}.

%% They wait as before, before all others.
-spec put_back([#waiting{}], #state{}) -> #state{}.
put_back(Ws, State) ->
    lists:foldr(fun (#waiting{size = Size} = W, #state{waiting = Waiting} = S) ->
                        rejectable(W, 1,
                                   S#state{waiting = rabbit_delay_waiting:in_r(W, Size, Waiting)})
                end, State, Ws).

%% -------------------------------------------------------------------- rejected and dropped

%% Who awaits no confirm hears nothing of it: whoever calls this for such a message has it counted
%% (drop/3).
-spec reject(#waiting{}, #state{}) -> #state{}.
reject(#waiting{seq_no = SeqNo} = W, #state{counters = Counters} = State) ->
    _ = SeqNo =/= undefined andalso rabbit_delay_counters:add(Counters, rejected, 1),
    ok = give_back(W, State),
    State.

give_back(#waiting{sender = Sender, seq_no = SeqNo, flow = Flow}, #state{name = QName}) ->
    rabbit_delay_broker:ack_credit(Sender, Flow),
    case SeqNo of
        undefined -> ok;
        _ -> rabbit_delay_broker:reject(Sender, QName, SeqNo)
    end.

-spec reject_all(Sender :: pid(), rabbit_amqqueue:name(), [pos_integer()]) -> ok.
reject_all(Sender, QName, SeqNos) ->
    lists:foreach(fun (SeqNo) -> rabbit_delay_broker:reject(Sender, QName, SeqNo) end, SeqNos).

%% So many that nobody hears of.
-spec drop(Why :: string(), non_neg_integer(), #state{}) -> #state{}.
drop(_, 0, State) ->
    State;
drop(Why, N, #state{counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, dropped, N),
    tell(dropped, Why, N, State).

%% Each alone, and whether or not anybody hears of it.
-spec refuse_unusable([rabbit_delay_batch:unusable()], #state{}) -> #state{}.
refuse_unusable([], State) ->
    State;
refuse_unusable([{#waiting{message = Message}, Why} | _] = Refused,
                #state{counters = Counters} = State) ->
    N = length(Refused),
    rabbit_delay_counters:add(Counters, unusable, N),
    lists:foreach(fun ({W, _}) -> ok = give_back(W, State) end, lists:reverse(Refused)),
    tell(unusable, unicode:characters_to_binary(explain(Why, Message)), N, State).

explain(no_releases, _) ->
    "x-delay-release is not known to all nodes that hold the exchange's messages: one of them has an earlier "
    "version of the plugin";
explain(Why, Message) ->
    Word = rabbit_delay_broker:field_word(rabbit_delay_header:names(), Message),
    rabbit_delay_header:explain(Why, Word).

tell(What, Why, N, #state{untold = Untold} = State) ->
    case Untold of
        #{What := {_, Before}} -> State#state{untold = Untold#{What := {Why, Before + N}}};
        _ -> say(What, Why, N, State)
    end.

%% After a while, if there were more.
-spec say_again(dropped | unusable, #state{}) -> #state{}.
say_again(What, #state{untold = Untold0} = State) ->
    case maps:take(What, Untold0) of
        {{_, 0}, Untold} -> State#state{untold = Untold};
        {{Why, N}, _} -> say(What, Why, N, State)
    end.

say(What, Why, N, #state{exchange = XName, untold = Untold} = State) ->
    ok = log(What, Why, N, XName),
    _ = erlang:send_after(?SAY_MS, self(), {say_again, What}),
    State#state{untold = Untold#{What => {Why, 0}}}.

log(dropped, Why, N, XName) ->
    ?LOG_ERROR("delayed messages of ~ts: dropped ~b dead letters, or messages whose publisher awaits "
               "no confirm: ~ts", [rabbit_delay_text:rs(XName), N, Why], ?LOG_DOMAIN);
log(unusable, Why, N, XName) ->
    ?LOG_WARNING("cannot delay a message published to ~ts: ~ts; refused ~b such messages, with a nack "
                 "where their publisher awaits a confirm", [rabbit_delay_text:rs(XName), Why, N],
                 ?LOG_DOMAIN).

%% What cannot be rejected waits on.
-spec reject_waiting(#state{}) -> #state{}.
reject_waiting(#state{rejectable = 0} = State) ->
    State;
reject_waiting(#state{waiting = Waiting} = State) ->
    Kept = rabbit_delay_waiting:filter(fun (#waiting{seq_no = undefined}) -> true;
                                           (W) -> _ = reject(W, State), false
                                       end, Waiting),
    State#state{waiting = Kept, rejectable = 0}.

%% At the end of the process.
-spec say_lost(rabbit_delay_waiting:waiting(), #state{}) -> ok.
say_lost(Waiting, #state{exchange = XName, counters = Counters}) ->
    Left = rabbit_delay_waiting:all(Waiting),
    case Left > 0 andalso rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} ->
            rabbit_delay_counters:add(Counters, dropped, Left),
            ?LOG_ERROR("delayed messages of ~ts: ~b dead letters, or messages whose publisher awaits no "
                       "confirm, waited for a Raft leader and are lost, as their process ends",
                       [rabbit_delay_text:rs(XName), Left], ?LOG_DOMAIN);
        _ ->
            ok
    end.

%% ----------------------------------------------------------------------------------- files

%% Files may take what the disk has room for.
-spec write_overflow(#state{}) -> #state{}.
write_overflow(#state{waiting = Waiting0, appended = Appended} = State) ->
    case rabbit_delay_waiting:write(Waiting0) of
        {ok, 0, _} ->
            State;
        {ok, Bytes, Waiting} when Appended + Bytes < ?LOOK_AT_SPACE_BYTES ->
            State#state{waiting = Waiting, appended = Appended + Bytes};
        {ok, _, Waiting} ->
            ok = rabbit_delay_system:look_at_space(),
            State#state{waiting = Waiting, appended = 0};
        {error, Reason, Lost, Waiting} ->
            Why = lists:flatten(io_lib:format("too many wait, and they cannot be written to ~ts: ~ts",
                                              [rabbit_delay_config:data_dir(), rabbit_delay_text:reason(Reason)])),
            lists:foldl(fun reject/2, drop(Why, length(Lost), State#state{waiting = Waiting}), Lost)
    end.

-spec refill(#state{}) -> #state{}.
refill(#state{waiting = Waiting0} = State) ->
    case rabbit_delay_waiting:refill(Waiting0) of
        {ok, Waiting} ->
            State#state{waiting = Waiting};
        {lost, N, Waiting} ->
            drop("the file that they waited in is damaged", N, State#state{waiting = Waiting});
        {error, Reason, Waiting} ->
            ?LOG_ERROR("delayed messages of ~ts: those that wait in a file cannot be read, which is "
                       "tried again: ~ts",
                       [rabbit_delay_text:rs(State#state.exchange), rabbit_delay_text:reason(Reason)], ?LOG_DOMAIN),
            State#state{waiting = Waiting}
    end.
