%% SPDX-License-Identifier: MPL-2.0

%% Changes of many, on a real store, against a model: each message that was there is met once, whatever
%% it becomes, in however many requests. The dispatcher's part, to do a change, is this module's.
-module(rabbit_delay_pending_change_tests).

-behaviour(gen_server).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([init/1, handle_call/3, handle_cast/2]).

-define(S, rabbit_delay_store).
-define(P, rabbit_delay_pending_change).
-define(MAX, 16#ffffffffffff).
%% Half of the messages are due later.
-define(NOW, 30).
-define(X, {resource, <<"/">>, exchange, <<"x">>}).

walk_test_() ->
    {timeout, 1200, ?_assert(proper:quickcheck(walked(), [{numtests, 150}, quiet]))}.

walked() ->
    ?FORALL({Dues, Operation, Range, Batch, IsLate, InFlight},
            {non_empty(list(range(1, 60))), operation(), {range(0, 60), range(0, 60)}, range(1, 20),
             boolean(), list(range(1, 60))},
            with_store(
              Dues,
              fun (Store, Ids) ->
                      Held = [Id || N <- lists:usort(InFlight), N =< length(Ids),
                                    Id <- [lists:nth(N, Ids)]],
                      {ok, Dispatcher} = gen_server:start_link(?MODULE, {Store, Held}, []),
                      {Below, _} = ?P:bounds(Store),
                      Bounds = {Below, ?NOW},
                      {Sum, Requests} = walk(Store, Dispatcher, Operation, in_order(Range), Batch,
                                             IsLate, Bounds),
                      ok = gen_server:stop(Dispatcher),
                      Before = lists:zip(Ids, Dues),
                      Meant = meant(Operation, in_order(Range), Before, Bounds),
                      Changed = [Id || Id <- Meant, not lists:member(Id, Held)],
                      {After, Counts} = {contents(Store),
                                         maps:with([matched, changed, in_flight], Sum)},
                      Expected = lists:sort(
                                   [{new(Operation, Due, lists:member(Id, Changed), Bounds), Id}
                                    || {Id, Due} <- Before,
                                       not (Operation =:= cancel andalso lists:member(Id, Changed))]),
                      (After =:= Expected
                       andalso Counts =:= #{matched => length(Meant), changed => length(Changed),
                                            in_flight => length(Meant) - length(Changed)}
                       andalso (IsLate orelse Requests =:= 1))
                          orelse begin
                                     io:format(user, "~p: ~p, not ~p; ~p~n",
                                               [Operation, After, Expected, Sum]),
                                     false
                                 end
              end)).

%% A request after the other, each as late as can be: it ends after a page, with a cursor.
walk(Store, Dispatcher, Operation, Range, Batch, IsLate, Bounds) ->
    {ok, Filter} = rabbit_delay_filter:parse(#{due_from => element(1, Range),
                                               due_to => element(2, Range)}, 0),
    Scan = rabbit_delay_pending_scan:new(Store, ?X, Filter, false),
    Walk = Scan#{exchange => ?X, dispatcher => Dispatcher, operation => Operation, range => Range,
                 dry_run => false, bounds => Bounds, batch := Batch,
                 deadline := case IsLate of
                                 true -> erlang:monotonic_time(millisecond) - 1;
                                 false -> erlang:monotonic_time(millisecond) + 3600000
                             end},
    None = #{examined => 0, matched => 0, changed => 0, in_flight => 0, cursor => none},
    requests(?P:first(Operation, Range), None, Walk, 1).

requests(Position, Sum0, #{operation := Operation, bounds := Bounds} = Walk, N) ->
    {ok, #{cursor := Cursor} = Sum} = ?P:walk(Position, Sum0, Walk),
    case Cursor of
        none ->
            {Sum, N};
        _ ->
            {ok, Next, Bounds} = rabbit_delay_pending_cursor:read(Operation, ?X, Cursor),
            requests(Next, Sum#{cursor := none}, Walk, N + 1)
    end.

%% What was published meanwhile is left alone.
meanwhile_test() ->
    true = with_store(
             [10, 20],
             fun (Store, _) ->
                     {ok, Dispatcher} = gen_server:start_link(?MODULE, {Store, []}, []),
                     Bounds = ?P:bounds(Store),
                     {ok, 1, _, _, _} = ?S:insert(Store, 2, 0, record(15)),
                     {#{changed := 2}, 1} = walk(Store, Dispatcher, cancel, {0, ?MAX}, 1, false, Bounds),
                     ok = gen_server:stop(Dispatcher),
                     [{15, 131072}] =:= contents(Store)
             end).

%% The clock is looked at, too, where many are met and none is meant.
late_test() ->
    true = with_store(
             lists:duplicate(1000, 7),
             fun (Store, _) ->
                     {ok, Dispatcher} = gen_server:start_link(?MODULE, {Store, []}, []),
                     {#{examined := 1000, matched := 0}, Requests} =
                         walk(Store, Dispatcher, {reschedule_to, 7}, {0, ?MAX}, 1000, true, ?P:bounds(Store)),
                     ok = gen_server:stop(Dispatcher),
                     Requests >= 1000 div 128
             end).

%% However many there are, an entry of the log, which others wait for, has a bounded number of them.
entries_are_bounded_test_() ->
    {timeout, 300,
     fun () ->
             N = 3 * 2048 + 7,
             true = with_store(
                      lists:seq(1, N),
                      fun (Store, _) ->
                              {ok, Dispatcher} = gen_server:start_link(?MODULE, {Store, []}, []),
                              Bounds = ?P:bounds(Store),
                              {#{changed := N}, 1} = walk(Store, Dispatcher, {reschedule_by, 100000},
                                                          {0, ?MAX}, N, false, Bounds),
                              {#{changed := N}, 1} = walk(Store, Dispatcher, cancel, {0, ?MAX}, N, false,
                                                          Bounds),
                              ?assertEqual(2048, gen_server:call(Dispatcher, most)),
                              ok = gen_server:stop(Dispatcher),
                              [] =:= contents(Store)
                      end)
     end}.

%% By ids, more than are asked for at a time, with some that are in flight and some that are not there.
each_test() ->
    N = 700,
    true = with_store(
             lists:seq(1, N),
             fun (Store, Ids) ->
                     Held = [Id || Id <- Ids, Id rem 7 =:= 0],
                     {ok, Dispatcher} = gen_server:start_link(?MODULE, {Store, Held}, []),
                     None = [1, 2, 3],
                     {ok, Outcomes} = ?P:each(None ++ Ids, {reschedule_by, 1000}, Store, Dispatcher),
                     ok = gen_server:stop(Dispatcher),
                     ?assertEqual(None ++ Ids, [Id || {Id, _} <- Outcomes]),
                     ?assertEqual([{Id, case {lists:member(Id, None), lists:member(Id, Held)} of
                                            {true, _} -> not_found;
                                            {_, true} -> in_flight;
                                            _ -> done
                                        end} || Id <- None ++ Ids], Outcomes),
                     lists:sort([{case lists:member(Id, Held) of
                                      true -> Due;
                                      false -> Due + 1000
                                  end, Id} || {Id, Due} <- lists:zip(Ids, lists:seq(1, N))])
                         =:= contents(Store)
             end).

new_due_test_() ->
    [?_assertEqual(Due, ?P:new_due(Operation, 1000, 700))
     || {Due, Operation} <- [{700, release}, {5, {reschedule_to, 5}}, {1001, {reschedule_by, 1}},
                             {0, {reschedule_by, -1001}}, {?MAX, {reschedule_by, ?MAX}}]].

%% ----------------------------------------------------------------------------------- the model

operation() ->
    oneof([cancel, release, {reschedule_to, range(0, 60)}, {reschedule_by, range(-70, 70)}]).

in_order({From, To}) -> {min(From, To), max(From, To)}.

meant(Operation, {From, To}, Messages, {_, Now}) ->
    [Id || {Id, Due} <- Messages, Due >= From, Due =< To,
           case Operation of
               {reschedule_to, Time} -> Due =/= Time;
               release -> Due > Now;
               _ -> true
           end].

new({reschedule_to, Time}, _, true, _) -> Time;
new({reschedule_by, Ms}, Due, true, _) -> max(0, Due + Ms);
new(release, _, true, {_, Now}) -> Now;
new(_, Due, _, _) -> Due.

%% ------------------------------------------------------------------------ a store and who changes it

with_store(Dues, Test) ->
    Dir = filename:join(os:getenv("TMPDIR", "/tmp"),
                        "delay-change-" ++ os:getpid() ++ "-" ++
                            integer_to_list(erlang:unique_integer([positive]))),
    ok = file:make_dir(Dir),
    {ok, Store, _} = ?S:open(Dir, #{now => 1}),
    try
        N = length(Dues),
        {ok, N, _, _, _} = ?S:insert(Store, 1, 0, [record(Due) || Due <- Dues]),
        Test(Store, [(1 bsl 16) + I || I <- lists:seq(0, N - 1)])
    after
        ok = ?S:close(Store),
        ok = file:del_dir_r(Dir)
    end.

%% Due at a time of the clock.
record(Due) -> <<1:32/little, 1:16/little, 1:16/little, Due:64/little, 0:64, "x">>.

contents(Store) ->
    {ok, Places} = ?S:places(Store, {0, 0}, forward, 65535),
    [{Due, Id} || {Due, Id, _} <- Places].

init({Store, Held}) -> {ok, {Store, Held, 1000}}.

handle_call(most, _, State) ->
    {reply, get(most), State};
handle_call({change, {What, Binary}}, From, State) when is_binary(Binary) ->
    Change = {What, case What of
                        cancel -> [Id || <<Id:64/little>> <= Binary];
                        reschedule -> [{Id, Due} || <<Id:64/little, Due:64/little>> <= Binary]
                    end},
    _ = put(most, max(length(element(2, Change)), case get(most) of undefined -> 0; N -> N end)),
    handle_call({change, Change}, From, State);
handle_call({change, Change}, _, {Store, Held, Index}) ->
    Reply = case Change of
                {cancel, Ids} ->
                    Free = Ids -- Held,
                    {ok, N} = ?S:settle(Store, Index, << <<Id:64/little>> || Id <- Free >>),
                    {ok, N, Ids -- Free};
                {reschedule, Dues} ->
                    Free = [D || {Id, _} = D <- Dues, not lists:member(Id, Held)],
                    {ok, N} = ?S:reschedule_many(
                                Store, Index, << <<Id:64/little, Due:64/little>> || {Id, Due} <- Free >>),
                    {ok, N, [Id || {Id, _} <- Dues -- Free]}
            end,
    {reply, Reply, {Store, Held, Index + 1}}.

handle_cast(_, State) -> {noreply, State}.
