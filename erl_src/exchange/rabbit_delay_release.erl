%% SPDX-License-Identifier: MPL-2.0

%% How a dispatcher lets messages out: it takes what is due from the store, and before that what waits
%% for queues that take something again, as far as there is room; and sends each to the queues that
%% rabbit_delay_destinations finds for it, all of a batch for a queue at once to that queue's publisher.
%%
%% In the dispatcher's process. A message that a queue cannot be sent now waits for that queue alone; one
%% that cannot be read, decoded or routed holds up no other; one that is in flight, being settled, or
%% held by an operator's change is passed over.
-module(rabbit_delay_release).

-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay_dispatcher.hrl").

-export([pump/1, hand_out_anew/1, configured/2, occupied/1, is_free/2, free/1]).
-export([publishing/3, publish/4, damaged/3, dropped/3]).

%% How many records are read and published before other messages are looked at.
-define(TAKE_MESSAGES, 256).
-define(TAKE_BYTES, 4194304).

-define(STORE_RETRY_MS, 1000).
%% How often the log says of a message that only a later version can read.
-define(UNKNOWN_RETRY_MS, 600000).

-type id() :: rabbit_delay_store:id().
-type damaged() :: {corrupt, id(), rabbit_delay_store:ms(), file:filename_all(), non_neg_integer()}.

%% Takes what is due and publishes it, as far as there is room.
-spec pump(#state{}) -> #state{}.
pump(#state{store = undefined} = State) ->
    State;
pump(#state{paused = true} = State) ->
    State;
pump(#state{resting = {_, _}} = State) ->
    State;
pump(State) ->
    case rabbit_delay_agenda:may_take(State) of
        {true, Leading} -> pump_allowed(Leading);
        {false, Waiting} -> Waiting
    end.

pump_allowed(State0) ->
    case allowed(State0) of
        {0, State} ->
            allow_later(State);
        {Allowed, State1} ->
            case wake_waiting(Allowed, State1) of
                #state{store = undefined} = State -> State;
                State -> rabbit_delay_watch:waiting_known(take_more(State))
            end
    end.

take_more(#state{targets = Targets, max_messages = MaxMessages, max_bytes = MaxBytes} = State) ->
    {Allowed, _} = allowed(State),
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
        %% What has no room waits until something is answered or settled, or a queue becomes slow.
        false when Names =/= [], Room > 0, Bytes < MaxBytes ->
            rabbit_delay_agenda:pump_soon(State);
        false ->
            State
    end.

%% What is in flight and being settled, but what only slow queues have not confirmed.
-spec occupied(#state{}) -> {Messages :: integer(), Bytes :: integer()}.
occupied(#state{in_flight = Book, targets = Targets}) ->
    rabbit_delay_in_flight:occupied(rabbit_delay_targets:slow(Targets), Book).

%% No more than the exchange's rate allows.
allowed(#state{rate = Rate0} = State) ->
    {Allowed, Rate} = rabbit_delay_rate:allowed(now_ms(), ?TAKE_MESSAGES, Rate0),
    {Allowed, State#state{rate = Rate}}.

now_ms() -> erlang:monotonic_time(millisecond).

allow_later(#state{rate = Rate, exchange = XName} = State) ->
    Missing = rabbit_delay_rate:wait_ms(Rate),
    %% The rate may be another one by then.
    Next = case rabbit_delay_broker:lookup_exchange(XName) of
               {ok, X} -> configured(X, State);
               {error, not_found} -> State
           end,
    rabbit_delay_agenda:sleep_until(rabbit_delay_config:now_ms() + Missing, Next).

spend(N, #state{rate = Rate} = State) ->
    State#state{rate = rabbit_delay_rate:spend(N, Rate)}.

%% Policies may have changed.
-spec configured(rabbit_delay_broker:exchange(), #state{}) -> #state{}.
configured(X, #state{exchange = XName, max_bytes = MaxBytes, targets = Targets,
                     rate = Rate} = State) ->
    %% Deleted and declared again: what is in this store is none of its messages.
    rabbit_delay_group:is_of(X, rabbit_delay_registry:life(XName), rabbit_delay_registry:server_id(XName))
        orelse exit({shutdown, other_life}),
    Args = rabbit_delay_broker:exchange_arguments(X),
    MaxMessages = rabbit_delay_config:in_flight_messages(Args),
    State#state{max_messages = MaxMessages,
                targets = rabbit_delay_targets:limits(MaxMessages, MaxBytes, Targets),
                rate = rabbit_delay_rate:set(rabbit_delay_policy:release_rate(X), Rate),
                overdue = rabbit_delay_policy:overdue(X),
                retry = rabbit_delay_policy:retry(X)}.

warn(Warning, #state{warned = Warned} = State) ->
    State#state{warned = rabbit_delay_warnings:warn(Warning, now_ms(), Warned)}.

%% ------------------------------------------------------------------------- what is due now

take(Messages, Bytes, #state{store = Store, exchange = XName} = State) ->
    Now = rabbit_delay_config:now_ms(),
    case rabbit_delay_store:take(Store, Now, Messages, Bytes) of
        {ok, [], NextDue} ->
            rabbit_delay_agenda:sleep_until(NextDue, State);
        {ok, Taken, NextDue} ->
            case rabbit_delay_broker:lookup_exchange(XName) of
                {ok, X} ->
                    release_taken(Taken, NextDue, Now, X, State);
                {error, not_found} ->
                    %% It is being deleted, and this process with it, or it cannot be seen for now.
                    Again = Now + ?STORE_RETRY_MS,
                    _ = [rabbit_delay_store:postpone(Store, id_of(Record), Again)
                         || Record <- Taken],
                    rabbit_delay_agenda:sleep_until(Again, State)
            end;
        {error, eclosed} ->
            rabbit_delay_agenda:attach_later(State);
        {error, Reason} ->
            rabbit_delay_agenda:sleep_until(
              Now + ?STORE_RETRY_MS,
              warn({unreadable, "delayed messages of ~ts: the store cannot be read: ~0p; it is tried "
                    "again", [rabbit_delay_text:rs(XName), Reason]}, State))
    end.

release_taken(Taken, NextDue, Now, X, State0) ->
    {Records, State1} = keep_aside(Taken, spend(length(Taken), configured(X, State0))),
    State = release(Records, X, State1),
    case NextDue =/= infinity andalso NextDue =< Now of
        true -> rabbit_delay_agenda:pump_soon(State);
        false -> rabbit_delay_agenda:sleep_until(NextDue, State)
    end.

id_of({corrupt, Id, _, _, _}) -> Id;
id_of({Id, _, _, _}) -> Id.

%% What is damaged is kept aside before it is settled; what cannot be kept is taken again later, and
%% so is what turns out to be whole.
keep_aside(Taken, State) ->
    case [Id || {corrupt, Id, _, _, _} <- Taken, not is_in_hand(Id, State)] of
        [] -> {Taken, State};
        Ids -> keep_aside(Ids, Taken, State)
    end.

keep_aside(Ids, Taken, #state{store = Store, exchange = XName} = State0) ->
    Now = rabbit_delay_config:now_ms(),
    {Kept, Until, State} =
        case rabbit_delay_store:keep_aside(Store, Now, << <<Id:64/little>> || Id <- Ids >>) of
            {ok, Some} ->
                {Some, Now, State0};
            {error, Reason} ->
                {[], Now + ?STORE_RETRY_MS,
                 warn({unreadable, "delayed messages of ~ts: ~b damaged records cannot be kept "
                       "aside: ~0p; it is tried again",
                       [rabbit_delay_text:rs(XName), length(Ids), Reason]}, State0)}
        end,
    %% Other members have what is damaged here.
    Replicated = Kept =/= [] andalso rabbit_delay_registry:group_size(XName) > 1,
    Others = case Replicated of
                 true -> Ids;
                 false -> Ids -- Kept
             end,
    lists:foreach(fun (Id) -> _ = rabbit_delay_store:postpone(Store, Id, Until) end, Others),
    {[Record || Record <- Taken, not is_corrupt(Record, Others)],
     case {Replicated, Others} of
         {true, _} ->
             ok = rabbit_delay_local_member:damaged(XName, io_lib:format("~b records", [length(Kept)])),
             _ = self() ! detach,
             State;
         {false, []} ->
             State;
         {false, _} ->
             rabbit_delay_agenda:sleep_until(Until, State)
     end}.

is_corrupt({corrupt, Id, _, _, _}, Ids) -> lists:member(Id, Ids);
is_corrupt(_, _) -> false.

%% ------------------------------------------------------------------------------ what waits

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
    case rabbit_delay_broker:lookup_exchange(XName) of
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
                                 targets = case Name of
                                               #resource{kind = queue} -> Published;
                                               _ -> rabbit_delay_targets:widen(Name, Published)
                                           end},
            {State, length(Places)};
        _ ->
            {State0, 0}
    end.

%% What is there no more was cancelled; what has been given a later time is handed out by the store. An
%% earlier one it may have been given while it was taken, by its key.
read_again(Name, Places0, #state{store = Store} = State0) ->
    Places = [Place || {_, Id} = Place <- Places0,
                       not is_in_hand(Id, State0) orelse lacks(Name, Id, State0)],
    case Places =/= [] andalso
        rabbit_delay_store:read_many(Store, << <<Id:64/little>> || {_, Id} <- Places >>,
                                     ?TAKE_BYTES) of
        false ->
            {[], State0};
        {ok, Found, Seen} ->
            ById = maps:from_list([{Id, Record} || #{id := Id} = Record <- Found]),
            {Looked, Unseen} = lists:split(Seen, Places),
            State1 = wait_on(Name, Unseen, State0),
            lists:foldr(
              fun ({Due, Id}, {Records, S}) ->
                      case ById of
                          #{Id := #{due := Now, encoding := Encoding, body := Body}} when Now =< Due ->
                              {[{Id, Now, Encoding, Body} | Records], S};
                          #{Id := _} ->
                              {Records, S};
                          _ ->
                              {Records, not_read(Id, S)}
                      end
              end, {[], State1}, Looked);
        {error, eclosed} ->
            {[], rabbit_delay_agenda:attach_later(State0)};
        {error, _} ->
            {[], wait_on(Name, Places, State0)}
    end.

wait_on(Name, Places, State) ->
    lists:foldl(fun (Place, S) -> rabbit_delay_outcomes:wait_first(Name, Place, S) end, State, Places).

%% Why it cannot be read is found out when it is handed out again.
not_read(Id, #state{store = Store, in_flight = Book} = State) ->
    Again = rabbit_delay_config:now_ms() + ?STORE_RETRY_MS,
    case is_in_hand(Id, State) orelse rabbit_delay_store:read(Store, Id) of
        %% It waits again when those that it is in flight to have answered.
        true ->
            State;
        {error, enoent} ->
            State#state{in_flight = rabbit_delay_in_flight:forget(Id, Book)};
        _ ->
            _ = rabbit_delay_store:postpone(Store, Id, Again),
            rabbit_delay_agenda:sleep_until(Again, State)
    end.

%% What is in flight is passed over when it comes.
-spec hand_out_anew(#state{}) -> #state{}.
hand_out_anew(#state{store = Store, targets = Targets, in_flight = Book} = State) ->
    case rabbit_delay_store:untake(Store) of
        ok ->
            State#state{targets = rabbit_delay_targets:forget_waiting(Targets),
                        in_flight = rabbit_delay_in_flight:forget_places(Book)};
        {error, _} ->
            rabbit_delay_agenda:attach_later(State)
    end.

%% ------------------------------------------------------------------------------- one batch

%% Publishes what Fun makes of each item.
-spec publishing(fun((Item, #state{}) -> #state{}), [Item], #state{}) -> #state{}.
publishing(Fun, Items, State0) ->
    State = rabbit_delay_exchange:while_releasing(
              fun () -> lists:foldl(fun (Item, S) -> attempt(Fun, Item, S) end, State0, Items) end),
    flush(State).

%% A message that something cannot cope with, in it or in what it is routed by, holds up no other.
attempt(Fun, Item, State) ->
    try
        Fun(Item, State)
    catch
        Class:Reason:Stack ->
            failed(Item, warn({failed, "a message of ~s cannot be released for now: ~p:~0P ~0P",
                               [rabbit_delay_text:rs(State#state.exchange), Class, Reason, 20, Stack,
                                20]}, State))
    end.

failed({Id, Due, _, _}, #state{in_flight = Book} = State) ->
    rabbit_delay_outcomes:wait(
      failing, {Due, Id},
      rabbit_delay_outcomes:pause(
        failing, failed, State#state{in_flight = rabbit_delay_in_flight:forget_places(Id, Book)}));
failed(_, State) ->
    State.

%% To the queues' publishers, all of the batch for a queue at once.
flush(#state{out = Out, routed = Routed} = State) ->
    maps:foreach(fun ({XName, QName}, N) ->
                         rabbit_delay_broker:count_published(XName, QName, N)
                 end, Routed),
    maps:fold(fun (QName, {Q, Messages}, S0) ->
                      {Pid, S} = publisher(QName, S0),
                      ok = rabbit_delay_publisher:publish(Pid, Q, lists:reverse(Messages)),
                      S
              end, rabbit_delay_agenda:tick_soon(State#state{out = #{}, routed = #{}}), Out).

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
    publishing(fun (Record, S) ->
                       case is_in_hand(id_of(Record), S) of
                           true -> join(Record, X, S);
                           false -> release_one(Record, X, S)
                       end
               end, Records, State).

%% What is in flight to others goes to the queue that it waits for as well. What the store hands out anew has lost its
%% place there, and gets it back. All else that is in hand is passed over.
join({Id, Due, Encoding, Body}, X, #state{waking = Waking, in_flight = Book, retry = Plan} = State) ->
    case rabbit_delay_in_flight:lacking(Id, Book) of
        {_, #in_flight{due = Due, rejected = Rejected, later = Later} = InFlight} when Waking =:= none ->
            rabbit_delay_outcomes:wait_already(Rejected ++ Later, InFlight, State);
        {SeqNo, #in_flight{due = Due} = InFlight} ->
            case lacks(Waking, Id, State) of
                true ->
                    {ok, Message} = rabbit_delay_broker:decode(Encoding, Body),
                    join(SeqNo, InFlight, rabbit_delay_destinations:find(Message, InFlight, X, Plan), State);
                false ->
                    State
            end;
        _ ->
            State
    end;
join(_, _, State) ->
    State.

join(SeqNo, #in_flight{how = How} = InFlight, {Qs, Message, #in_flight{how = How}},
     #state{waking = Waking, in_flight = Book, targets = Targets} = State) ->
    case {[Q || Q <- Qs, name(Q) =:= Waking], rabbit_delay_targets:is_taking(Waking, Targets)} of
        {[], _} ->
            State#state{in_flight = rabbit_delay_in_flight:excuse(Waking, SeqNo, Book)};
        {[{absent, _} | _], _} ->
            rabbit_delay_outcomes:wait_already([Waking], InFlight,
                                               rabbit_delay_outcomes:pause(Waking, absent, State));
        {_, false} ->
            rabbit_delay_outcomes:wait_already([Waking], InFlight, State);
        {[Q | _], true} ->
            send([{Waking, Q}], SeqNo, Message, InFlight,
                 State#state{in_flight = rabbit_delay_in_flight:join(Waking, SeqNo, Book)})
    end;
%% It is routed otherwise by now, which is for all of its queues to have: when they have answered.
join(_, _, _, State) ->
    State.

lacks(Name, Id, #state{in_flight = Book}) -> rabbit_delay_in_flight:lacks(Name, Id, Book).

%% ----------------------------------------------------------------------------- one message

is_in_hand(Id, #state{in_flight = Book, changes = Changes}) ->
    rabbit_delay_in_flight:is_held(Id, Book) orelse rabbit_delay_changes:is_held(Id, Changes).

%% What some queue has already is in flight, and what only waits is not.
-spec is_free(id(), #state{}) -> boolean().
is_free(Id, #state{in_flight = Book} = State) ->
    not is_in_hand(Id, State) andalso not rabbit_delay_in_flight:has_some(Id, Book).

%% Which messages are: all, or those that a function says.
-spec free(#state{}) -> all | fun((id()) -> boolean()).
free(#state{in_flight = Book, changes = Changes} = State) ->
    case rabbit_delay_in_flight:has_none(Book) andalso rabbit_delay_changes:holds_none(Changes) of
        true -> all;
        false -> fun (Id) -> is_free(Id, State) end
    end.

release_one({Id, Due, Encoding, Body}, X, #state{exchange = XName} = State0) ->
    {How, Already, Places} = what(Id, Due, Encoding, State0),
    Size = byte_size(Body),
    case How =/= drop andalso rabbit_delay_broker:decode(Encoding, Body) of
        false ->
            rabbit_delay_outcomes:done(Id, Due, Size, hold(Id, Size, dropped(expired, Id, State0)));
        {ok, Message} ->
            publish(Message, #in_flight{id = Id, due = Due, bytes = Size, how = How,
                                        settled = Already, places = Places},
                    X, hold(Id, Size, State0));
        {error, {unknown_encoding, Number, Series}} ->
            State = warn({unknown_encoding,
                          "delayed message ~b of ~ts is kept and not released: a later version of "
                          "the plugin or of RabbitMQ stored it (encoding ~b, series ~b)",
                          [Id, rabbit_delay_text:rs(XName), Number, Series]}, State0),
            rabbit_delay_outcomes:put_back(Id, 0, ?UNKNOWN_RETRY_MS, hold(Id, 0, State));
        {error, Reason} ->
            lost(Id, Due, "it cannot be decoded: ~0p", [Reason], State0)
    end;
release_one({corrupt, Id, Due, File, Offset}, _, State) ->
    lost(Id, Due, "its record in ~ts at offset ~b is damaged", [File, Offset], State).

%% What is to become of it, who has it already, and for whom else it waits.
what(Id, Due, Encoding, #state{in_flight = Book, waking = Waking, overdue = Overdue}) ->
    case rabbit_delay_in_flight:remains(Id, Book) of
        {How, [_ | _] = Already, Places} ->
            {How, Already, other_places(Places, Waking)};
        Remains ->
            Places = case Remains of
                         {_, [], Some} -> other_places(Some, Waking);
                         whole -> []
                     end,
            {rabbit_delay_destinations:how(Due, Encoding, Overdue, rabbit_delay_config:now_ms()), [],
             Places}
    end.

%% Where a message has its place is not known for sure of one that the store hands out.
other_places(_, none) -> [];
other_places(Places, Waking) -> lists:delete(Waking, Places).

hold(Id, Size, #state{in_flight = Book} = State) ->
    State#state{in_flight = rabbit_delay_in_flight:hold(Id, Size, Book)}.

lost(Id, Due, Format, Args, #state{exchange = XName, counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, corrupt, 1),
    rabbit_delay_outcomes:done(
      Id, Due, 0, hold(Id, 0, warn({lost, "delayed message ~b of ~ts is lost: " ++ Format,
                               [Id, rabbit_delay_text:rs(XName) | Args]}, State))).

%% Its record is damaged: it is lost when that has been kept aside.
-spec damaged(damaged(), rabbit_delay_broker:exchange(), #state{}) -> #state{}.
damaged(Record, X, State0) ->
    case keep_aside([Record], State0) of
        {[_], State} -> release_one(Record, X, State);
        {[], State} -> State
    end.

%% To where it goes now. It is held already.
-spec publish(rabbit_delay_broker:message(), rabbit_delay_in_flight:message(),
              rabbit_delay_broker:exchange(), #state{}) -> #state{}.
publish(Message0, InFlight0, X, #state{retry = Plan, counters = Counters} = State) ->
    case rabbit_delay_destinations:find(Message0, InFlight0, X, Plan) of
        {nobody, #in_flight{id = Id, due = Due, bytes = Bytes}, Warning} ->
            rabbit_delay_counters:add(Counters, unroutable, 1),
            rabbit_delay_outcomes:done(Id, Due, Bytes, warn(Warning, State));
        {kept, InFlight, Warning} ->
            %% In the store, until another attempt.
            rabbit_delay_outcomes:wait_for(
              [parking], InFlight,
              rabbit_delay_outcomes:pause(parking, no_place, warn(Warning, State)));
        {Qs, Message, InFlight} ->
            publish_to(Qs, Message, InFlight, State)
    end.

%% To those of the queues that do not have it.
publish_to(AllQs, Message, #in_flight{id = Id, due = Due, bytes = Bytes, how = How,
                                      settled = Already} = InFlight0, State0) ->
    case [Q || Q <- AllQs, not lists:member(name(Q), Already)] of
        [] ->
            rabbit_delay_outcomes:done(Id, Due, Bytes, case Already of
                                                           [] -> dropped(to_nobody(How), Id, State0);
                                                           _ -> State0
                                                       end);
        Qs ->
            {Open, Closed, #state{in_flight = Book} = State} = apart(Qs, State0),
            InFlight = InFlight0#in_flight{later = Closed},
            Whole = Closed =/= [] andalso Already =:= [] andalso rabbit_delay_in_flight:is_full(Book),
            case Open =:= [] orelse Whole of
                true -> rabbit_delay_outcomes:wait_for(Closed, InFlight, State);
                false -> hand_over(Open, Message, InFlight, State)
            end
    end.

%% Counted, and said of one of many.
-spec dropped(expired | overflowed | unroutable, id(), #state{}) -> #state{}.
dropped(What, Id, #state{exchange = XName, counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, What, 1),
    warn({What, "delayed message ~b of ~ts is dropped: ~s",
          [Id, rabbit_delay_text:rs(XName), case What of
                                                expired -> "it is overdue";
                                                overflowed -> "the exchange has more than its limit";
                                                unroutable -> "no queue is bound for it"
                                            end]}, State).

to_nobody({dead_lettered, overdue}) -> expired;
to_nobody({dead_lettered, maxlen}) -> overflowed;
to_nobody(_) -> unroutable.

name({absent, QName}) -> QName;
name(Q) -> rabbit_delay_broker:queue_name(Q).

%% The queues that it can be sent to now, and the names of the others.
apart(Qs, State) ->
    lists:foldr(fun ({absent, QName}, {Open, Closed, S}) ->
                        {Open, [QName | Closed], rabbit_delay_outcomes:pause(QName, absent, S)};
                    (Q, {Open, Closed, #state{targets = Targets, waking = Waking} = S}) ->
                        QName = rabbit_delay_broker:queue_name(Q),
                        case QName =:= Waking andalso rabbit_delay_targets:is_taking(QName, Targets)
                            orelse rabbit_delay_targets:is_open(QName, Targets) of
                            true -> {[Q | Open], Closed, S};
                            false -> {Open, [QName | Closed], S}
                        end
                end, {[], [], State}, Qs).

%% Those that it cannot be sent now have their place for it from now on.
hand_over(Qs, Message, #in_flight{later = Later, places = Places} = InFlight0, #state{in_flight = Book0} = State) ->
    Names = [{rabbit_delay_broker:queue_name(Q), Q} || Q <- Qs],
    InFlight = InFlight0#in_flight{unsettled = [QName || {QName, _} <- Names]},
    {SeqNo, Book} = rabbit_delay_in_flight:send(InFlight, Book0),
    rabbit_delay_outcomes:wait_already(
      Later -- Places, InFlight, send(Names, SeqNo, Message, InFlight, State#state{in_flight = Book})).

%% Behind what this batch has for these queues.
send(Names, SeqNo, Message, #in_flight{bytes = Bytes, how = How},
     #state{targets = Targets0, out = Out0, routed = Routed0, exchange = XName} = State) ->
    Via = case How of
              returned -> XName;
              _ -> rabbit_delay_broker:exchange_of(Message, XName)
          end,
    Now = now_ms(),
    {Targets, Out, Routed} =
        lists:foldl(fun ({QName, Q}, {Ts, O, R}) ->
                            {_, Before} = maps:get(QName, O, {Q, []}),
                            {rabbit_delay_targets:sent(QName, SeqNo, Bytes, Now, Ts),
                             O#{QName => {Q, [{SeqNo, Message} | Before]}},
                             maps:update_with({Via, QName}, fun (N) -> N + 1 end, 1, R)}
                    end, {Targets0, Out0, Routed0}, Names),
    State#state{targets = Targets, out = Out, routed = Routed}.
