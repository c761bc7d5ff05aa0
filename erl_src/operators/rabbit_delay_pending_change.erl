%% SPDX-License-Identifier: MPL-2.0

%% Changes pending messages, by their ids or all that a filter means.
%%
%% It runs in the process that asks, and has the exchange's dispatcher do each change through Raft. A
%% change of many covers what was there when it began, each message once: only ids below a bound are
%% meant, which goes with the cursor, as does what was `now'; and messages that are given a later time
%% are met from the last one on. Those that are given the same time keep their order.
-module(rabbit_delay_pending_change).

-include("rabbit_delay.hrl").

-export([each/4, purge/1, bounds/1, first/2, walk/3, new_due/3, concerns/3, is_backward/1, failed/2]).

-export_type([operation/0, outcome/0, summary/0, walk/0]).

-type operation() :: cancel
                   | release
                   | {reschedule_to, rabbit_delay_store:ms()}
                   | {reschedule_by, Ms :: integer()}.

-type outcome() :: done | in_flight | not_found.

%% examined: messages looked at; matched: of these, those meant; changed; in_flight: not changed for
%% that reason. The others of those matched were gone. cursor: go on with it, `none' if it is done.
-type summary() :: #{examined | matched | changed | in_flight := non_neg_integer(),
                     cursor := binary() | none}.

%% A scan with exchange, dispatcher, operation, range (of due times), dry_run and bounds.
-type walk() :: rabbit_delay_pending_scan:scan().

%% Messages of one Raft entry; while it is applied, some ms, others of this exchange wait.
-define(AT_ONCE, 2048).
-define(IDS_AT_ONCE, 256).
%% Records that are looked at, and not read, between two looks at the clock.
-define(LOOK_AGAIN, 128).

-define(ANSWER_MS, 60000).

%% An entry for each, so that it is known what became of each; many under way at a time.
-spec each([rabbit_delay_store:id()], operation(), rabbit_delay_store:store(), Dispatcher :: pid()) ->
          {ok, [{rabbit_delay_store:id(), outcome()}]} | {error, {unavailable, Why :: binary()}}.
each(Ids, Operation, Store, Dispatcher) ->
    change_each(Ids, Operation, rabbit_delay_config:now_ms(), Store, Dispatcher, []).

change_each([], _, _, _, _, Acc) ->
    {ok, lists:append(lists:reverse(Acc))};
change_each(Ids, Operation, Now, Store, Dispatcher, Acc) ->
    {Some, Rest} = lists:split(min(?IDS_AT_ONCE, length(Ids)), Ids),
    Requests = [{Id, request(Id, Operation, Now, Store, Dispatcher)} || Id <- Some],
    case outcomes(Requests, []) of
        {ok, Outcomes} -> change_each(Rest, Operation, Now, Store, Dispatcher, [Outcomes | Acc]);
        Error -> Error
    end.

request(Id, cancel, _, _, Dispatcher) ->
    rabbit_delay_dispatcher:change_async(Dispatcher, {cancel, [Id]});
request(Id, Operation, Now, Store, Dispatcher) ->
    case rabbit_delay_store:read(Store, Id) of
        {ok, #{due := Due}} ->
            rabbit_delay_dispatcher:change_async(
              Dispatcher, {reschedule, [{Id, new_due(Operation, Due, Now)}]});
        {error, _} ->
            not_found
    end.

%% All are awaited, whatever became of one.
outcomes([], Acc) ->
    {ok, lists:reverse(Acc)};
outcomes([{Id, not_found} | Rest], Acc) ->
    outcomes(Rest, [{Id, not_found} | Acc]);
outcomes([{Id, Request} | Rest], Acc) ->
    case gen_server:receive_response(Request, ?ANSWER_MS) of
        {reply, {ok, 1, []}} ->
            outcomes(Rest, [{Id, done} | Acc]);
        {reply, {ok, 0, [Id]}} ->
            outcomes(Rest, [{Id, in_flight} | Acc]);
        {reply, {ok, 0, []}} ->
            outcomes(Rest, [{Id, not_found} | Acc]);
        {reply, {error, _} = Error} ->
            _ = outcomes(Rest, []),
            failed(Error, length([1 || {_, done} <- Acc]));
        _ ->
            failed({error, interrupted}, length([1 || {_, done} <- Acc]))
    end.

%% Cancels all that is pending in one entry, whatever its number; not_known: not while a member has an
%% earlier version. What is in flight is gone from the store, too, and may be delivered all the same.
-spec purge(Dispatcher :: pid()) ->
          {ok, summary()} | not_known | {error, {unavailable, Why :: binary()}}.
purge(Dispatcher) ->
    case rabbit_delay_dispatcher:change(Dispatcher, purge) of
        {purged, Removed, InFlight} ->
            {ok, #{examined => Removed, matched => Removed, changed => Removed - InFlight,
                   in_flight => InFlight, cursor => none}};
        {error, not_known} ->
            not_known;
        Error ->
            failed(Error, 0)
    end.

%% Only ids below the first number are meant; the second is what `now' is.
-spec bounds(rabbit_delay_store:store()) -> rabbit_delay_pending_cursor:bounds().
bounds(Store) ->
    {(rabbit_delay_store:applied(Store) + 1) bsl 16, rabbit_delay_config:now_ms()}.

%% Where a walk over a range of due times begins.
-spec first(operation(), {From :: rabbit_delay_store:ms(), To :: rabbit_delay_store:ms()}) ->
          rabbit_delay_pending_cursor:position().
first(Operation, {From, To}) ->
    case is_backward(Operation) of
        true -> {To, ?MAX_ID};
        false -> rabbit_delay_pending_cursor:before(From)
    end.

%% Messages that are given a later time are met from the last one on, so that none is met again.
-spec is_backward(operation()) -> boolean().
is_backward({reschedule_by, Ms}) -> Ms > 0;
is_backward(_) -> false.

%% Changes what it meets from a position on, until it is through or late.
-spec walk(rabbit_delay_pending_cursor:position(), summary(), walk()) ->
          {ok, summary()} | {error, {unavailable, Why :: binary()}}.
walk(Position, Sum, #{operation := Operation, batch := Batch} = Walk) ->
    Direction = case is_backward(Operation) of
                    true -> backward;
                    false -> forward
                end,
    case rabbit_delay_pending_scan:places(Position, Direction, Walk) of
        {ok, Records} ->
            case walk_page(Records, Position, [], 0, Sum, Walk) of
                {more, Next, Sum1} when length(Records) =:= Batch ->
                    case rabbit_delay_pending_scan:is_late(Walk) of
                        true -> {ok, Sum1#{cursor := cursor(Next, Walk)}};
                        false -> walk(Next, Sum1, Walk)
                    end;
                {more, _, Sum1} ->
                    {ok, Sum1};
                {full, Next, Sum1} ->
                    {ok, Sum1#{cursor := cursor(Next, Walk)}};
                {done, Sum1} ->
                    {ok, Sum1};
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            rabbit_delay_pending_scan:unavailable(Error)
    end.

cursor(Position, #{operation := Operation, exchange := XName, bounds := Bounds}) ->
    rabbit_delay_pending_cursor:write(Operation, XName, Position, Bounds).

walk_page([], Position, Chosen, _, Sum, Walk) ->
    change_chosen(Chosen, more, Position, Sum, Walk);
walk_page(Records, Position, Chosen, ?AT_ONCE, Sum, Walk) ->
    case change_chosen(Chosen, more, Position, Sum, Walk) of
        {more, _, Sum1} ->
            case rabbit_delay_pending_scan:is_late(Walk) of
                true -> {full, Position, Sum1};
                false -> walk_page(Records, Position, [], 0, Sum1, Walk)
            end;
        Error ->
            Error
    end;
walk_page([{Due, Id, _} = Record | Rest], Position, Chosen, Count, Sum0,
          #{range := {From, To}, bounds := {Below, Now}, read := Read,
            operation := Operation} = Walk0) ->
    case is_backward(Operation) andalso Due < From orelse
         (not is_backward(Operation)) andalso Due > To of
        true ->
            change_chosen(Chosen, done, Position, Sum0, Walk0);
        false ->
            Examined = maps:get(examined, Sum0) + 1,
            Sum = Sum0#{examined := Examined},
            ok = rabbit_delay_background:give_way(Examined),
            {IsMeant, Walk} =
                case Due >= From andalso Due =< To andalso Id < Below
                    andalso concerns(Operation, Due, Now) of
                    true -> passes(Record, Rest, Walk0);
                    false -> {false, Walk0}
                end,
            {Chosen1, Count1} = case IsMeant of
                                    true -> {[Record | Chosen], Count + 1};
                                    false -> {Chosen, Count}
                                end,
            case (Read orelse Examined rem ?LOOK_AGAIN =:= 0) andalso rabbit_delay_pending_scan:is_late(Walk) of
                true -> change_chosen(Chosen1, full, {Due, Id}, Sum, Walk);
                false -> walk_page(Rest, {Due, Id}, Chosen1, Count1, Sum, Walk)
            end
    end.

%% What is due at that time already is not moved there, be it by us.
-spec concerns(operation(), Due :: rabbit_delay_store:ms(), Now :: rabbit_delay_store:ms()) ->
          boolean().
concerns({reschedule_to, Time}, Due, _) -> Due =/= Time;
concerns(release, Due, Now) -> Due > Now;
concerns(_, _, _) -> true.

passes(_, _, #{read := false} = Walk) ->
    {true, Walk};
passes(Record, Rest, #{filter := Filter} = Walk0) ->
    {Read, Walk} = rabbit_delay_pending_scan:read_ahead(Record, Rest, Walk0),
    {case Read of
         {ok, _, Message} -> rabbit_delay_filter:matches(Filter, Message);
         _ -> false
     end, Walk}.

change_chosen([], Then, Position, Sum, _) ->
    then(Then, Position, Sum);
change_chosen(Chosen, Then, Position, #{matched := Matched} = Sum, #{dry_run := true}) ->
    then(Then, Position, Sum#{matched := Matched + length(Chosen)});
change_chosen(Chosen0, Then, Position,
              #{matched := Matched, changed := Changed, in_flight := InFlight} = Sum,
              #{dispatcher := Dispatcher, operation := Operation, bounds := {_, Now}}) ->
    %% In due order, which those that get the same time then keep.
    Chosen = case is_backward(Operation) of
                 true -> Chosen0;
                 false -> lists:reverse(Chosen0)
             end,
    Change = case Operation of
                 cancel -> {cancel, [Id || {_, Id, _} <- Chosen]};
                 _ -> {reschedule, [{Id, new_due(Operation, Due, Now)}
                                    || {Due, Id, _} <- Chosen]}
             end,
    Appended = fun () -> rabbit_delay_dispatcher:change(Dispatcher, Change) end,
    case rabbit_delay_background:by_turns(Appended) of
        {ok, N, NotNow} ->
            then(Then, Position, Sum#{matched := Matched + length(Chosen), changed := Changed + N,
                                      in_flight := InFlight + length(NotNow)});
        Error ->
            failed(Error, Changed)
    end.

then(more, Position, Sum) -> {more, Position, Sum};
then(full, Position, Sum) -> {full, Position, Sum};
then(done, _, Sum) -> {done, Sum}.

%% When a message is due that was due at Due.
-spec new_due(operation(), Due :: rabbit_delay_store:ms(), Now :: rabbit_delay_store:ms()) ->
          rabbit_delay_store:ms().
new_due(release, _, Now) -> Now;
new_due({reschedule_to, Time}, _, _) -> Time;
new_due({reschedule_by, Ms}, Due, _) -> min(max(Due + Ms, 0), ?MAX_MS).

%% The answer to who asks, where the dispatcher gave an error after so many were changed.
-spec failed({error, not_ready | interrupted}, Done :: non_neg_integer()) ->
          {error, {unavailable, Why :: binary()}}.
failed({error, not_ready}, Done) ->
    {error, {unavailable, text("the exchange has no Raft leader at present; before, ~s changed",
                                  [were(Done)])}};
failed({error, interrupted}, Done) ->
    {error, {unavailable, text("interrupted by a change of the Raft leader: ~s changed, and perhaps "
                                  "some more; list them to see", [were(Done)])}}.

were(1) -> "1 message was";
were(N) -> rabbit_delay_text:count(N, "message") ++ " were".

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
