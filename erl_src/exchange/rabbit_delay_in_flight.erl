%% SPDX-License-Identifier: MPL-2.0

%% What a dispatcher has in its hands: the messages that it has taken out of the store and not given
%% back, from the moment that one is held until Raft has settled it or it waits again; and of those
%% that wait, which ones some queues have already. Data only, of the dispatcher's process; who calls
%% publishes, settles and puts back.
%%
%% A message is held by its id as long as a reopened store could hand it out again, that is until it
%% is settled, and its size counts as in flight until all its queues have confirmed it. Every
%% operation costs the same however much is held, but occupied/2 while queues are slow.
-module(rabbit_delay_in_flight).

-include("rabbit_delay_in_flight.hrl").

-export([new/0, hold/3, is_held/2, held/1, has_none/1, release/3, occupied/2]).
-export([send/2, answered/4, fate/1]).
-export([lacks/3, lacking/2, join/3, excuse/3]).
-export([done/4, to_settle/2, settling/1, settled/2]).
-export([wait/3, remains/2, has_some/2, is_full/1, forget_places/1, forget_places/2, forget/2,
         forget_all/1]).

-export_type([book/0, how/0, parked_because/0, message/0]).

-type parked_because() :: attempts_used_up | not_retried | queue_gone | unroutable.

%% To its queues, or to those of the dead-letter exchange, and why; a dead letter, to the queue that
%% it died in, or to those of the parking exchange.
-type how() :: released | {dead_lettered, unroutable | overdue | maxlen} |
               returned | {parked, parked_because()}.

-type message() :: #in_flight{}.

%% A message that waits: what it is, who has it, for whom it waits.
-type shared() :: {how(), Settled :: [rabbit_amqqueue:name()], [rabbit_delay_targets:name()]}.

%% How many messages may wait for a queue that others have, or for several.
-define(MAX_SHARED, 100000).

-record(book,
        {%% published, awaiting confirms, by the sequence number they were published with
         sent = #{} :: #{pos_integer() => message()},
         next_seq_no = 1 :: pos_integer(),
         %% of those that also wait for a queue, by their ids
         lacking = #{} :: #{rabbit_delay_store:id() => pos_integer()},
         %% ids in flight or being settled: a reopened store hands them out again. Their sizes, and
         %% the sum of these
         ids = #{} :: #{rabbit_delay_store:id() => non_neg_integer()},
         ids_bytes = 0 :: non_neg_integer(),
         %% of those in flight
         bytes = 0 :: non_neg_integer(),
         %% confirmed by all their queues, not yet appended
         done = [] :: [{rabbit_delay_store:id(), Due :: rabbit_delay_store:ms()}],
         %% appended, not yet applied
         settling = #{} :: #{reference() => binary()},
         %% those that wait and that some queue has, or that wait for several
         shared = #{} :: #{rabbit_delay_store:id() => shared()}}).

-opaque book() :: #book{}.

-spec new() -> book().
new() -> #book{}.

%% Of so many bytes.
-spec hold(rabbit_delay_store:id(), non_neg_integer(), book()) -> book().
hold(Id, Size, #book{ids = Ids, ids_bytes = IdsBytes, bytes = Bytes} = B) ->
    B#book{ids = Ids#{Id => Size}, ids_bytes = IdsBytes + Size, bytes = Bytes + Size}.

-spec is_held(rabbit_delay_store:id(), book()) -> boolean().
is_held(Id, #book{ids = Ids}) -> is_map_key(Id, Ids).

%% How many messages, and how many bytes, are not in the store's hands.
-spec held(book()) -> {Messages :: non_neg_integer(), Bytes :: non_neg_integer()}.
held(#book{ids = Ids, ids_bytes = Bytes}) -> {map_size(Ids), Bytes}.

%% Whether nothing is, and nothing waits of which some queue has it.
-spec has_none(book()) -> boolean().
has_none(#book{ids = Ids, shared = Shared}) -> map_size(Ids) =:= 0 andalso map_size(Shared) =:= 0.

%% It is not in flight any more and will not be settled.
-spec release(rabbit_delay_store:id(), Bytes :: non_neg_integer(), book()) -> book().
release(Id, Bytes, #book{bytes = All} = B) ->
    let_go(Id, B#book{bytes = All - Bytes}).

let_go(Id, #book{ids = Ids0, ids_bytes = IdsBytes} = B) ->
    case maps:take(Id, Ids0) of
        {Size, Ids} -> B#book{ids = Ids, ids_bytes = IdsBytes - Size};
        error -> B
    end.

%% How many messages and bytes are in flight and being settled, but for what only the Slow have not
%% confirmed.
-spec occupied(Slow :: [rabbit_delay_targets:name()], book()) ->
          {Messages :: integer(), Bytes :: integer()}.
occupied([], #book{ids = Ids, bytes = Bytes}) ->
    {map_size(Ids), Bytes};
occupied(Slow, #book{ids = Ids, bytes = Bytes, sent = Sent}) ->
    maps:fold(fun (_, #in_flight{unsettled = QNames, bytes = Size}, {M, B}) ->
                      case QNames -- Slow of
                          [] -> {M - 1, B - Size};
                          _ -> {M, B}
                      end
              end, {map_size(Ids), Bytes}, Sent).

%% ------------------------------------------------------------------------------- in flight

%% It is published to its unsettled queues, with this number.
-spec send(message(), book()) -> {SeqNo :: pos_integer(), book()}.
send(InFlight, #book{sent = Sent, next_seq_no = SeqNo} = B) ->
    {SeqNo, lacking(SeqNo, InFlight, B#book{sent = Sent#{SeqNo => InFlight}, next_seq_no = SeqNo + 1})}.

lacking(_, #in_flight{rejected = [], later = []}, B) -> B;
lacking(SeqNo, #in_flight{id = Id}, #book{lacking = Lacking} = B) -> B#book{lacking = Lacking#{Id => SeqNo}}.

%% What one of its queues says of it. When all have said something it is not in flight any more, but
%% still held: fate/1.
-spec answered(settled | rejected | gone, rabbit_amqqueue:name(), SeqNo :: pos_integer(), book()) ->
          {awaits_more, message(), book()} | {finished, message(), book()} | unknown.
answered(Answer, QName, SeqNo, #book{sent = Sent, lacking = Lacking} = B) ->
    case Sent of
        #{SeqNo := #in_flight{unsettled = Unsettled} = InFlight0} ->
            InFlight = answer(Answer, QName,
                              InFlight0#in_flight{unsettled = lists:delete(QName, Unsettled)}),
            case InFlight of
                #in_flight{unsettled = [], id = Id} ->
                    {finished, InFlight, B#book{sent = maps:remove(SeqNo, Sent),
                                                lacking = maps:remove(Id, Lacking)}};
                _ ->
                    {awaits_more, InFlight, lacking(SeqNo, InFlight, B#book{sent = Sent#{SeqNo := InFlight}})}
            end;
        _ ->
            unknown
    end.

answer(settled, QName, #in_flight{settled = Settled} = InFlight) ->
    InFlight#in_flight{settled = [QName | Settled]};
answer(rejected, QName, #in_flight{rejected = Rejected} = InFlight) ->
    InFlight#in_flight{rejected = [QName | Rejected]};
answer(gone, _, InFlight) ->
    InFlight.

%% Whether it is in flight to others than this queue, which is to have it, too.
-spec lacks(rabbit_delay_targets:name(), rabbit_delay_store:id(), book()) -> boolean().
lacks(QName, Id, B) ->
    case lacking(Id, B) of
        {_, #in_flight{rejected = Rejected, later = Later}} ->
            lists:member(QName, Rejected) orelse lists:member(QName, Later);
        false ->
            false
    end.

%% What is in flight to some of its queues and not to all of them.
-spec lacking(rabbit_delay_store:id(), book()) -> {SeqNo :: pos_integer(), message()} | false.
lacking(Id, #book{lacking = Lacking, sent = Sent}) ->
    case Lacking of
        #{Id := SeqNo} -> {SeqNo, maps:get(SeqNo, Sent)};
        _ -> false
    end.

%% It is published to such a queue, with the number that the others have it by.
-spec join(rabbit_amqqueue:name(), SeqNo :: pos_integer(), book()) -> book().
join(QName, SeqNo, B0) ->
    #book{sent = #{SeqNo := #in_flight{unsettled = Unsettled} = InFlight} = Sent} = B =
        excuse(QName, SeqNo, B0),
    B#book{sent = Sent#{SeqNo := InFlight#in_flight{unsettled = [QName | Unsettled]}}}.

%% Such a queue need not have it any more.
-spec excuse(rabbit_amqqueue:name(), SeqNo :: pos_integer(), book()) -> book().
excuse(QName, SeqNo, #book{sent = Sent, lacking = Lacking} = B) ->
    #{SeqNo := #in_flight{id = Id, rejected = Rejected, later = Later} = InFlight0} = Sent,
    InFlight = InFlight0#in_flight{rejected = lists:delete(QName, Rejected), later = lists:delete(QName, Later)},
    lacking(SeqNo, InFlight, B#book{sent = Sent#{SeqNo := InFlight}, lacking = maps:remove(Id, Lacking)}).

%% What becomes of a message that no queue is still to answer for: it is done, no queue has it any
%% more, or it waits for those that have not taken it.
-spec fate(message()) -> done | nobody_has_it | {waits_for, [rabbit_delay_targets:name(), ...]}.
fate(#in_flight{rejected = [], later = [], settled = [_ | _]}) -> done;
fate(#in_flight{rejected = [], later = []}) -> nobody_has_it;
fate(#in_flight{rejected = Rejected, later = Later}) -> {waits_for, Rejected ++ Later}.

%% -------------------------------------------------------------------------------- settling

%% It is to be settled, having been released for this due time; and whether it is the first one since
%% to_settle/2.
-spec done(rabbit_delay_store:id(), Due :: rabbit_delay_store:ms(), Bytes :: non_neg_integer(),
           book()) -> {First :: boolean(), book()}.
done(Id, Due, Bytes, #book{done = Done, bytes = All, shared = Shared} = B) ->
    {Done =:= [],
     B#book{done = [{Id, Due} | Done], bytes = All - Bytes,
            shared = case map_size(Shared) of
                         0 -> Shared;
                         _ -> maps:remove(Id, Shared)
                     end}}.

%% All that is to be settled, as the machine takes it.
-spec to_settle(Correlation :: reference(), book()) -> {Released :: binary(), book()} | none.
to_settle(_, #book{done = []}) ->
    none;
to_settle(Correlation, #book{done = Done, settling = Settling} = B) ->
    Released = << <<Id:64/little, Due:64/little>> || {Id, Due} <- Done >>,
    {Released, B#book{done = [], settling = Settling#{Correlation => Released}}}.

-spec settling(book()) -> [{Correlation :: reference(), Released :: binary()}].
settling(#book{settling = Settling}) -> maps:to_list(Settling).

-spec settled(Correlation :: term(), book()) -> {ok, book()} | error.
settled(Correlation, #book{settling = Settling} = B) ->
    case maps:take(Correlation, Settling) of
        {Released, Rest} ->
            {ok, lists:foldl(fun let_go/2, B#book{settling = Rest},
                             [Id || <<Id:64/little, _:64>> <= Released])};
        error ->
            error
    end.

%% --------------------------------------------------------------------------------- waiting

%% It is in nobody's hands and waits for Names, as for those that it has its place with already.
%% With which of them it is to have a place now: a whole message that would wait for several has it
%% only with the first, when too many such ones wait.
-spec wait([rabbit_delay_targets:name()], message(), book()) ->
          {[rabbit_delay_targets:name()], book()}.
wait(Names, #in_flight{id = Id, bytes = Bytes, how = How, settled = Settled, unsettled = [],
                       places = Places}, B0) ->
    #book{shared = Shared} = B = release(Id, Bytes, B0),
    New = Names -- Places,
    case Settled =:= [] andalso (Places ++ New) of
        [_ | [_ | _]] when map_size(Shared) >= ?MAX_SHARED, Places =:= [] ->
            {[hd(New)], B};
        [_] ->
            {New, B#book{shared = maps:remove(Id, Shared)}};
        _ ->
            {New, B#book{shared = Shared#{Id => {How, Settled, Places ++ New}}}}
    end.

%% What is known of one that waits: the whole message does if there is nothing.
-spec remains(rabbit_delay_store:id(), book()) -> shared() | whole.
remains(Id, #book{shared = Shared}) ->
    case Shared of
        #{Id := Known} -> Known;
        _ -> whole
    end.

%% Whether some queue has it, and others do not.
-spec has_some(rabbit_delay_store:id(), book()) -> boolean().
has_some(Id, #book{shared = Shared}) ->
    case Shared of
        #{Id := {_, [_ | _], _}} -> true;
        _ -> false
    end.

%% Whether no more can be remembered of those that wait for several queues.
-spec is_full(book()) -> boolean().
is_full(#book{shared = Shared}) -> map_size(Shared) >= ?MAX_SHARED.

%% Nothing has its place any more: who has which message is remembered.
-spec forget_places(book()) -> book().
forget_places(#book{shared = Shared} = B) ->
    B#book{shared = maps:filtermap(fun (_, {_, [], _}) -> false;
                                       (_, {How, Has, _}) -> {true, {How, Has, []}}
                                   end, Shared)}.

-spec forget_places(rabbit_delay_store:id(), book()) -> book().
forget_places(Id, #book{shared = Shared} = B) ->
    case Shared of
        #{Id := {How, Has, _}} -> B#book{shared = Shared#{Id := {How, Has, []}}};
        _ -> B
    end.

%% It is not in the store any more.
-spec forget(rabbit_delay_store:id(), book()) -> book().
forget(Id, #book{shared = Shared} = B) ->
    B#book{shared = maps:remove(Id, Shared)}.

%% Others may have had all of it in their hands. Answers to what was sent before are to no message.
-spec forget_all(book()) -> book().
forget_all(#book{next_seq_no = SeqNo}) ->
    #book{next_seq_no = SeqNo}.
