%% SPDX-License-Identifier: MPL-2.0

%% What operators ask a dispatcher to change of messages that wait, from when it is appended to the
%% Raft log until it is applied. Data only, of the dispatcher's process; who calls appends, answers
%% and hands messages out again.
%%
%% What a change is about is held: it is not released until the change is applied, or it is certain
%% that it will not be. What is in flight is left out of the change, and named to who asked for it. A
%% purge is of all that is pending when it is applied: it holds nothing and leaves nothing out.
-module(rabbit_delay_changes).

-export([new/0, allowed/2, encoded/1, append/5, is_held/2, applied/2, interrupt/1, take_held/1, ids/1]).

-export_type([changes/0, change/0]).

%% Ids: each once.
-type change() :: {cancel, [rabbit_delay_store:id()]}
                | {reschedule, [{rabbit_delay_store:id(), DueMs :: rabbit_delay_store:ms()}]}
                | purge | pause | resume.

-record(changes,
        {%% appended and not yet applied
         under_way = #{} :: #{reference() => {gen_server:from(),
                                              InFlight :: [rabbit_delay_store:id()], change()}},
         held = #{} :: #{rabbit_delay_store:id() => []}}).

-opaque changes() :: #changes{}.

-spec new() -> changes().
new() -> #changes{}.

%% What of it can be done, IsFree saying which messages are in nobody's hands, and which cannot;
%% nothing if it is of messages and all of them are in flight.
-spec allowed(change(), IsFree :: fun((rabbit_delay_store:id()) -> boolean())) ->
          {nothing | change(), InFlight :: [rabbit_delay_store:id()]}.
allowed(Change, IsFree) ->
    {Free, InFlight} = lists:partition(IsFree, ids(Change)),
    case Free =:= [] andalso is_tuple(Change) of
        true -> {nothing, InFlight};
        false -> {without(InFlight, Change), InFlight}
    end.

without([], Change) -> Change;
without(Not, {cancel, Ids}) -> {cancel, Ids -- Not};
without(Not, {reschedule, Dues}) ->
    Gone = maps:from_list([{Id, []} || Id <- Not]),
    {reschedule, [D || {Id, _} = D <- Dues, not is_map_key(Id, Gone)]}.

-spec ids(change()) -> [rabbit_delay_store:id()].
ids({cancel, Ids}) -> Ids;
ids({reschedule, Dues}) -> [Id || {Id, _} <- Dues];
ids(_) -> [].

%% As the machine takes it.
-spec encoded(change()) -> {cancel | reschedule, binary()} | purge | pause | resume.
encoded({cancel, Ids}) -> {cancel, << <<Id:64/little>> || Id <- Ids >>};
encoded({reschedule, Dues}) -> {reschedule, << <<Id:64/little, Due:64/little>>
                                               || {Id, Due} <- Dues >>};
encoded(Change) -> Change.

%% It has been, with this correlation: what it is about is held.
-spec append(reference(), gen_server:from(), change(), InFlight :: [rabbit_delay_store:id()],
             changes()) -> changes().
append(Correlation, From, Change, InFlight, #changes{under_way = UnderWay, held = Held}) ->
    #changes{under_way = UnderWay#{Correlation => {From, InFlight, Change}},
             held = lists:foldl(fun (Id, Acc) -> Acc#{Id => []} end, Held, ids(Change))}.

-spec is_held(rabbit_delay_store:id(), changes()) -> boolean().
is_held(Id, #changes{held = Held}) -> is_map_key(Id, Held).

%% There is an answer: whose change that was, if it is one's correlation. It holds nothing any more.
-spec applied(Correlation :: term(), changes()) ->
          {gen_server:from(), InFlight :: [rabbit_delay_store:id()], change(), changes()} | error.
applied(Correlation, #changes{under_way = UnderWay, held = Held} = C) ->
    case maps:take(Correlation, UnderWay) of
        {{From, InFlight, Change}, Rest} ->
            {From, InFlight, Change, C#changes{under_way = Rest,
                                               held = maps:without(ids(Change), Held)}};
        error ->
            error
    end.

%% It is not known what becomes of those under way, whose senders these are. What they held stays
%% held until all that was appended is applied: take_held/1.
-spec interrupt(changes()) -> {[gen_server:from()], changes()}.
interrupt(#changes{under_way = UnderWay} = C) ->
    {[From || {From, _, _} <- maps:values(UnderWay)], C#changes{under_way = #{}}}.

%% What was held by changes that are not under way any more.
-spec take_held(changes()) -> {[rabbit_delay_store:id()], changes()}.
take_held(#changes{under_way = UnderWay, held = Held0} = C) ->
    Held = maps:from_list([{Id, []} || {_, _, Change} <- maps:values(UnderWay),
                                       Id <- ids(Change)]),
    {maps:keys(maps:without(maps:keys(Held), Held0)), C#changes{held = Held}}.
