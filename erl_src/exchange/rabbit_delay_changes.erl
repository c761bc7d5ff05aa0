%% SPDX-License-Identifier: MPL-2.0

%% What operators ask a dispatcher to change of messages that wait, from when it is appended to the
%% Raft log until it is applied. Data only, of the dispatcher's process; who calls appends, answers
%% and hands messages out again.
%%
%% What a change is about is held: it is not released until the change is applied, or it is certain
%% that it will not be. What is in flight is left out of the change, and named to who asked for it. A
%% purge is of all that is pending when it is applied: it holds nothing and leaves nothing out.
-module(rabbit_delay_changes).

-export([new/0, encoded/1, allowed/2, append/5, is_held/2, holds_none/1, applied/2, interrupt/1, take_held/1,
         ids/1]).

-export_type([changes/0, change/0, encoded/0]).

%% Ids: each once.
-type change() :: {cancel, [rabbit_delay_store:id()]}
                | {reschedule, [{rabbit_delay_store:id(), DueMs :: rabbit_delay_store:ms()}]}
                | purge | pause | resume.

%% As the machine takes it, and as it comes to the dispatcher: a binary of thousands of ids is neither
%% copied from process to process nor looked at by collections of garbage.
-type encoded() :: {cancel, Ids :: binary()} | {reschedule, Dues :: binary()} | purge | pause | resume.

-record(changes,
        {%% appended and not yet applied
         under_way = #{} :: #{reference() => {gen_server:from(),
                                              InFlight :: [rabbit_delay_store:id()], encoded()}},
         held = #{} :: #{rabbit_delay_store:id() => []},
         %% whether what is not under way any more may hold some of these
         interrupted = false :: boolean()}).

-opaque changes() :: #changes{}.

-spec new() -> changes().
new() -> #changes{}.

-spec encoded(change()) -> encoded().
encoded({cancel, Ids}) -> {cancel, << <<Id:64/little>> || Id <- Ids >>};
encoded({reschedule, Dues}) -> {reschedule, << <<Id:64/little, Due:64/little>>
                                               || {Id, Due} <- Dues >>};
encoded(Change) -> Change.

%% What of it can be done, IsFree saying which messages are in nobody's hands (`all': there are no others),
%% and which cannot; nothing if it is of messages and all of them are in flight.
-spec allowed(encoded(), all | fun((rabbit_delay_store:id()) -> boolean())) ->
          {nothing | encoded(), InFlight :: [rabbit_delay_store:id()]}.
allowed({_, <<>>}, _) ->
    {nothing, []};
allowed(Change, all) ->
    {Change, []};
allowed(Change, IsFree) ->
    case {[Id || Id <- ids(Change), not IsFree(Id)], Change} of
        {[], _} -> {Change, []};
        {InFlight, {What, _}} ->
            case without(maps:from_list([{Id, []} || Id <- InFlight]), Change) of
                <<>> -> {nothing, InFlight};
                Left -> {{What, Left}, InFlight}
            end
    end.

without(Not, {cancel, Ids}) ->
    << <<Id:64/little>> || <<Id:64/little>> <= Ids, not is_map_key(Id, Not) >>;
without(Not, {reschedule, Dues}) ->
    << <<Id:64/little, Due:64>> || <<Id:64/little, Due:64>> <= Dues, not is_map_key(Id, Not) >>.

-spec ids(encoded()) -> [rabbit_delay_store:id()].
ids({cancel, Ids}) -> [Id || <<Id:64/little>> <= Ids];
ids({reschedule, Dues}) -> [Id || <<Id:64/little, _:64>> <= Dues];
ids(_) -> [].

%% It has been, with this correlation: what it is about is held.
-spec append(reference(), gen_server:from(), encoded(), InFlight :: [rabbit_delay_store:id()],
             changes()) -> changes().
append(Correlation, From, Change, InFlight, #changes{under_way = UnderWay, held = Held} = C) ->
    C#changes{under_way = UnderWay#{Correlation => {From, InFlight, Change}},
              held = maps:merge(Held, maps:from_list([{Id, []} || Id <- ids(Change)]))}.

-spec is_held(rabbit_delay_store:id(), changes()) -> boolean().
is_held(Id, #changes{held = Held}) -> is_map_key(Id, Held).

-spec holds_none(changes()) -> boolean().
holds_none(#changes{held = Held}) -> map_size(Held) =:= 0.

%% There is an answer: whose change that was, if it is one's correlation. It holds nothing any more.
-spec applied(Correlation :: term(), changes()) ->
          {gen_server:from(), InFlight :: [rabbit_delay_store:id()], encoded(), changes()} | error.
applied(Correlation, #changes{under_way = UnderWay, held = Held, interrupted = Interrupted} = C) ->
    case maps:take(Correlation, UnderWay) of
        {{From, InFlight, Change}, Rest} ->
            Holds = case map_size(Rest) =:= 0 andalso not Interrupted of
                        true -> #{};
                        false -> maps:without(ids(Change), Held)
                    end,
            {From, InFlight, Change, C#changes{under_way = Rest, held = Holds}};
        error ->
            error
    end.

%% It is not known what becomes of those under way, whose senders these are. What they held stays
%% held until all that was appended is applied: take_held/1.
-spec interrupt(changes()) -> {[gen_server:from()], changes()}.
interrupt(#changes{under_way = UnderWay} = C) ->
    {[From || {From, _, _} <- maps:values(UnderWay)], C#changes{under_way = #{}, interrupted = true}}.

%% What was held by changes that are not under way any more.
-spec take_held(changes()) -> {[rabbit_delay_store:id()], changes()}.
take_held(#changes{under_way = UnderWay, held = Held0} = C) ->
    Held = maps:from_list([{Id, []} || {_, _, Change} <- maps:values(UnderWay),
                                       Id <- ids(Change)]),
    {maps:keys(maps:without(maps:keys(Held), Held0)), C#changes{held = Held, interrupted = false}}.
