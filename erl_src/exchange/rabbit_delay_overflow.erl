%% SPDX-License-Identifier: MPL-2.0

%% What a dispatcher does when its exchange holds more than it may and what is due last is to go: of
%% what is pending and in nobody's hands, as many of the last due as are beyond the limits go to the
%% dead-letter exchange, if there is one.
%%
%% In the dispatcher's process; what goes is published and settled like what is released, and has no
%% room but what that leaves. The choice itself (excess/3, last_due/4) is pure. It looks at a bounded
%% number of messages, so it may choose less than is beyond the limits, and says so.
-module(rabbit_delay_overflow).

-include("rabbit_delay.hrl").
-include("rabbit_delay_dispatcher.hrl").

-export([drop_latest_due/1]).
-export([excess/3, last_due/4]).

-export_type([excess/0]).

-type limit() :: non_neg_integer() | infinity.
%% How many messages, and how many bytes, are beyond the limits.
-type excess() :: {Messages :: non_neg_integer(), Bytes :: non_neg_integer()}.
-type before() :: {rabbit_delay_store:ms(), rabbit_delay_store:id()}.
-type place() :: {rabbit_delay_store:ms(), rabbit_delay_store:id(), Size :: non_neg_integer()}.

%% Messages that are dropped at a time, and how many are looked at for that.
-define(DROP_MESSAGES, 256).
-define(DROP_LOOK_AT, 4096).

-spec drop_latest_due(#state{}) -> #state{}.
drop_latest_due(#state{store = undefined} = State) ->
    State;
drop_latest_due(#state{} = State) ->
    case rabbit_delay_agenda:may_drop(State) of
        {true, Leading} -> drop_latest_due_of(Leading);
        {false, Waiting} -> Waiting
    end.

drop_latest_due_of(#state{exchange = XName} = State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case rabbit_delay_policy:overflow(X) of
                drop_latest_due -> drop_latest_due(X, rabbit_delay_release:configured(X, State));
                reject_publish -> State
            end;
        {error, not_found} ->
            State
    end.

drop_latest_due(X, #state{store = Store, in_flight = Book, max_messages = MaxMessages,
                          max_bytes = MaxBytes} = State0) ->
    {Held, _} = InHand = rabbit_delay_in_flight:held(Book),
    Excess = excess(rabbit_delay_policy:limits(X), rabbit_delay_store:stat(Store), InHand),
    {InFlight, Bytes} = rabbit_delay_release:occupied(State0),
    Room = min(MaxMessages - InFlight, ?DROP_MESSAGES),
    case Excess of
        {0, 0} ->
            State0;
        _ when Room =< 0; Bytes >= MaxBytes ->
            State0#state{dropping = later};
        _ ->
            {Last, Left} =
                last_due(Excess, Room,
                         fun (Id) -> rabbit_delay_release:is_free(Id, State0) end,
                         fun (Before, Most) ->
                                 rabbit_delay_store:places(Store, Before, backward, Most)
                         end),
            State = rabbit_delay_release:publishing(
                      fun (IdAndDue, S) -> drop_one(IdAndDue, X, S) end, Last, State0),
            case {Left, rabbit_delay_in_flight:held(State#state.in_flight)} of
                {{0, 0}, _} -> State;
                {_, {Held, _}} -> State#state{dropping = later};
                _ -> rabbit_delay_agenda:drop_soon(State)
            end
    end.

drop_one({Id, Due}, X, #state{store = Store, in_flight = Book} = State0) ->
    case rabbit_delay_store:read(Store, Id) of
        {ok, #{encoding := Encoding, body := Body}} ->
            Size = byte_size(Body),
            State = State0#state{in_flight = rabbit_delay_in_flight:hold(Id, Size, Book)},
            case rabbit_delay_broker:decode(Encoding, Body) of
                {ok, Message} ->
                    rabbit_delay_release:publish(Message, #in_flight{id = Id, due = Due, bytes = Size,
                                                                     how = {dead_lettered, maxlen}},
                                                 X, State);
                {error, _} ->
                    rabbit_delay_outcomes:done(Id, Due, Size, rabbit_delay_release:dropped(overflowed, Id, State))
            end;
        {error, {corrupt, File, Offset}} ->
            rabbit_delay_release:damaged({corrupt, Id, Due, File, Offset}, X, State0);
        {error, _} ->
            State0
    end.

%% --------------------------------------------------------------------------------- the choice

%% What is pending and not in hand is what may be dropped, and what the limits are about.
-spec excess({Messages :: limit(), Bytes :: limit()}, Stat :: map() | {error, term()},
             InHand :: {Messages :: non_neg_integer(), Bytes :: non_neg_integer()}) -> excess().
excess({Messages, Bytes}, #{pending := Pending, pending_bytes := PendingBytes}, {InHand, InHandBytes}) ->
    {beyond(Messages, Pending - InHand), beyond(Bytes, PendingBytes - InHandBytes)};
excess(_, {error, _}, _) ->
    {0, 0}.

beyond(infinity, _) -> 0;
beyond(Max, N) -> max(0, N - Max).

%% At most Room of the last due that are free, the last one first, and what is beyond the limits
%% without them. Records tells so many of what is due before a place, the last one first.
-spec last_due(excess(), Room :: non_neg_integer(),
               IsFree :: fun((rabbit_delay_store:id()) -> boolean()),
               Records :: fun((before(), pos_integer()) -> {ok, [place()]} | {error, term()})) ->
          {[{rabbit_delay_store:id(), rabbit_delay_store:ms()}], excess()}.
last_due(Excess, Room, IsFree, Records) ->
    last_due({?MAX_MS, ?MAX_ID}, ?DROP_LOOK_AT, {Excess, Room, []}, IsFree, Records).

last_due(_, LookAt, {{Messages, Bytes} = Excess, Room, Acc}, _, _)
  when Messages =:= 0, Bytes =:= 0; Room =:= 0; LookAt =< 0 ->
    {lists:reverse(Acc), Excess};
last_due(Before, LookAt, {Excess, _, Acc} = Chosen, IsFree, Records) ->
    case Records(Before, ?DROP_MESSAGES) of
        {ok, [_ | _] = Some} ->
            {Due, Id, _} = lists:last(Some),
            last_due({Due, Id}, LookAt - length(Some),
                     lists:foldl(fun (Record, C) -> choose(Record, IsFree, C) end, Chosen, Some),
                     IsFree, Records);
        _ ->
            {lists:reverse(Acc), Excess}
    end.

choose({Due, Id, Size}, IsFree, {{M, B}, Room, Acc} = Chosen) when M + B > 0, Room > 0 ->
    case IsFree(Id) of
        true -> {{max(0, M - 1), max(0, B - Size)}, Room - 1, [{Id, Due} | Acc]};
        false -> Chosen
    end;
choose(_, _, Chosen) ->
    Chosen.
