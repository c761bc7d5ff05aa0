%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_in_flight_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include("../../erl_src/exchange/rabbit_delay_in_flight.hrl").

-define(B, rabbit_delay_in_flight).

message(Id) -> message(Id, 10).

message(Id, Bytes) -> #in_flight{id = Id, due = 1000 + Id, bytes = Bytes}.

%% Held, and published to these queues.
sent(InFlight = #in_flight{id = Id, bytes = Bytes}, QNames, Book) ->
    ?B:send(InFlight#in_flight{unsettled = QNames}, ?B:hold(Id, Bytes, Book)).

%% ------------------------------------------------------------------------------ one message

all_queues_are_awaited_and_then_it_has_a_fate_test_() ->
    [{lists:flatten(io_lib:format("~0p", [Answers])),
      fun () ->
              {SeqNo, Book0} = sent(message(1), [QName || {_, QName} <- Answers], ?B:new()),
              {Last, Book} = answers(Answers, SeqNo, Book0),
              ?assertEqual(Fate, ?B:fate(Last)),
              %% It is in nobody else's hands yet, whatever its fate.
              ?assertEqual({1, 10}, ?B:held(Book)),
              ?assertEqual(unknown, ?B:answered(settled, a, SeqNo, Book))
      end}
     || {Answers, Fate} <- [{[{settled, a}], done},
                            {[{gone, a}], nobody_has_it},
                            {[{rejected, a}], {waits_for, [a]}},
                            {[{settled, a}, {settled, b}], done},
                            {[{settled, a}, {gone, b}], done},
                            {[{gone, a}, {settled, b}], done},
                            {[{gone, a}, {gone, b}], nobody_has_it},
                            {[{settled, a}, {rejected, b}], {waits_for, [b]}},
                            {[{rejected, a}, {settled, b}], {waits_for, [a]}},
                            {[{rejected, a}, {gone, b}], {waits_for, [a]}},
                            {[{rejected, a}, {rejected, b}], {waits_for, [b, a]}}]].

answers([{Answer, QName}], SeqNo, Book0) ->
    {finished, InFlight, Book} = ?B:answered(Answer, QName, SeqNo, Book0),
    {InFlight, Book};
answers([{Answer, QName} | Rest], SeqNo, Book0) ->
    {awaits_more, _, Book} = ?B:answered(Answer, QName, SeqNo, Book0),
    answers(Rest, SeqNo, Book).

what_it_could_not_be_sent_yet_is_waited_for_behind_what_rejects_it_test() ->
    ?assertEqual({waits_for, [c]}, ?B:fate((message(1))#in_flight{settled = [a], later = [c]})),
    ?assertEqual({waits_for, [b, c]},
                 ?B:fate((message(1))#in_flight{settled = [a], rejected = [b], later = [c]})).

numbers_are_never_used_twice_test() ->
    {1, B1} = sent(message(1), [a], ?B:new()),
    {2, B2} = sent(message(2), [a], B1),
    {finished, _, B3} = ?B:answered(settled, a, 2, B2),
    {3, B4} = sent(message(3), [a], B3),
    Forgotten = ?B:forget_all(B4),
    ?assertEqual({0, 0}, ?B:held(Forgotten)),
    ?assertEqual({0, 0}, ?B:occupied([], Forgotten)),
    ?assertEqual(none, ?B:to_settle(make_ref(), Forgotten)),
    ?assertEqual(unknown, ?B:answered(settled, a, 1, Forgotten)),
    ?assertMatch({4, _}, sent(message(1), [a], Forgotten)).

%% ---------------------------------------------------------------------------------- settling

settled_in_entries_and_held_until_they_are_applied_test() ->
    B0 = lists:foldl(fun (Id, B) -> ?B:hold(Id, 10 * Id, B) end, ?B:new(), [1, 2, 3]),
    {true, B1} = ?B:done(1, 101, 10, B0),
    {false, B2} = ?B:done(3, 103, 30, B1),
    ?assertEqual({3, 60}, ?B:held(B2)),
    ?assertEqual({3, 20}, ?B:occupied([], B2)),
    [First, Second] = [make_ref(), make_ref()],
    {<<3:64/little, 103:64/little, 1:64/little, 101:64/little>> = Both, B3} = ?B:to_settle(First, B2),
    ?assertEqual(none, ?B:to_settle(Second, B3)),
    {true, B4} = ?B:done(2, 102, 20, B3),
    {<<2:64/little, 102:64/little>> = Third, B5} = ?B:to_settle(Second, B4),
    %% What is sent to a new leader again.
    ?assertEqual(lists:sort([{First, Both}, {Second, Third}]),
                 lists:sort(?B:settling(B5))),
    ?assertEqual([true, true, true], [?B:is_held(Id, B5) || Id <- [1, 2, 3]]),
    {ok, B6} = ?B:settled(First, B5),
    ?assertEqual([false, true, false], [?B:is_held(Id, B6) || Id <- [1, 2, 3]]),
    ?assertEqual({1, 20}, ?B:held(B6)),
    ?assertEqual(error, ?B:settled(First, B6)),
    {ok, B7} = ?B:settled(Second, B6),
    ?assertEqual({0, 0}, ?B:held(B7)).

slow_queues_take_up_no_room_alone_test() ->
    {_, B1} = sent(message(1, 10), [a, b], ?B:new()),
    {_, B2} = sent(message(2, 20), [b], B1),
    {_, B3} = sent(message(3, 40), [a], B2),
    ?assertEqual({3, 70}, ?B:occupied([], B3)),
    ?assertEqual({2, 50}, ?B:occupied([b], B3)),
    ?assertEqual({0, 0}, ?B:occupied([a, b], B3)),
    {awaits_more, _, B4} = ?B:answered(settled, a, 1, B3),
    ?assertEqual({1, 40}, ?B:occupied([b], B4)).

%% ----------------------------------------------------------------------------------- waiting

a_whole_message_that_waits_for_one_queue_is_not_remembered_test() ->
    {[a], Book} = ?B:wait([a], message(1), ?B:hold(1, 10, ?B:new())),
    ?assertEqual(whole, ?B:remains(1, Book)),
    ?assertEqual({0, 0}, ?B:held(Book)).

who_has_it_and_for_whom_it_waits_is_remembered_test() ->
    {[a, b], B1} = ?B:wait([a, b], message(1), ?B:hold(1, 10, ?B:new())),
    ?assertEqual({released, [], [a, b]}, ?B:remains(1, B1)),
    ?assertNot(?B:has_some(1, B1)),
    %% It is sent to a, which has it; for b it has its place already.
    InFlight = (message(1))#in_flight{settled = [a], places = [b]},
    {[], B2} = ?B:wait([b], InFlight, ?B:hold(1, 10, B1)),
    ?assertEqual({released, [a], [b]}, ?B:remains(1, B2)),
    ?assert(?B:has_some(1, B2)),
    %% Every place is lost when all that waits is handed out anew, but not who has it.
    {[c, d], B3} = ?B:wait([c, d], message(2), ?B:hold(2, 10, B2)),
    B4 = ?B:forget_places(B3),
    ?assertEqual({released, [a], []}, ?B:remains(1, B4)),
    ?assertEqual(whole, ?B:remains(2, B4)),
    ?assertEqual({released, [a], []}, ?B:remains(1, ?B:forget_places(1, B3))),
    ?assertEqual({released, [], [c, d]}, ?B:remains(2, ?B:forget_places(1, B3))),
    ?assertEqual(whole, ?B:remains(1, ?B:forget(1, B3))),
    {true, B5} = ?B:done(1, 100, 10, ?B:hold(1, 10, B3)),
    ?assertEqual(whole, ?B:remains(1, B5)).

when_too_many_wait_for_several_a_whole_one_waits_for_one_test_() ->
    {timeout, 1200,
     fun () ->
             Full = lists:foldl(fun (Id, B0) ->
                                        ?assertNot(?B:is_full(B0)),
                                        {[a, b], B} = ?B:wait([a, b], message(Id), B0),
                                        B
                                end, ?B:new(), lists:seq(1, 100000)),
             ?assert(?B:is_full(Full)),
             {[c], B1} = ?B:wait([c, d], message(0), Full),
             ?assertEqual(whole, ?B:remains(0, B1)),
             %% That some queue has one is never forgotten: it would be sent there again.
             {[d], B2} = ?B:wait([d], (message(0))#in_flight{settled = [c]}, Full),
             ?assertEqual({released, [c], [d]}, ?B:remains(0, B2))
     end}.

%% ------------------------------------------------------------------------------------- model

%% As a list of messages would, one entry each: what is sent, done, being settled or waiting.
model_test_() ->
    {timeout, 1200,
     fun () ->
             ?assert(proper:quickcheck(
                       ?FORALL(Steps, list(step()), agrees(Steps, ?B:new(), #{})),
                       [{numtests, 500}, {to_file, user}]))
     end}.

step() ->
    oneof([{send, range(1, 20), non_empty(list(oneof([a, b, c]))), list(oneof([b, c, d]))},
           {oneof([join, excuse]), oneof([a, b, c, d]), range(1, 20)},
           {answer, oneof([settled, rejected, gone]), oneof([a, b, c, d]), range(1, 40)},
           settle, {applied, range(1, 5)}, forget_places, {forget, range(1, 20)}]).

%% The model: Id => {sent, SeqNo, #in_flight{}} | {done, size} | {settling, Correlation, size} |
%% {waiting, Settled, Names}.
agrees([], Book, Model) ->
    is_same(Book, Model);
agrees([Step | Steps], Book0, Model0) ->
    {Book, Model} = step(Step, Book0, Model0),
    is_same(Book, Model) andalso agrees(Steps, Book, Model).

is_same(Book, Model) ->
    Sizes = [Size || {_, Size} <- in_hand(Model)],
    Flying = [Size || {sent, _, #in_flight{bytes = Size}} <- maps:values(Model)],
    Sent = [M || {sent, _, M} <- maps:values(Model)],
    SlowOnly = [M || #in_flight{unsettled = U} = M <- Sent, U -- [a] =:= []],
    {length(Sizes), lists:sum(Sizes)} =:= ?B:held(Book)
        andalso {length(Sizes), lists:sum(Flying)} =:= ?B:occupied([], Book)
        andalso {length(Sizes) - length(SlowOnly),
                 lists:sum(Flying) - lists:sum([S || #in_flight{bytes = S} <- SlowOnly])}
                    =:= ?B:occupied([a], Book)
        andalso lists:all(fun (Id) -> is_same(Id, Book, Model) end, lists:seq(1, 20))
        andalso lists:all(fun (Id) ->
                                  ?B:lacking(Id, Book) =:= lacking(Id, Model)
                                      andalso lists:all(fun (QName) ->
                                                                ?B:lacks(QName, Id, Book)
                                                                    =:= (lacks(QName, Id, Model) =/= false)
                                                        end, [a, b, c, d])
                          end, lists:seq(1, 20)).

lacking(Id, Model) ->
    case Model of
        #{Id := {sent, SeqNo, #in_flight{rejected = R, later = L} = InFlight}} when R =/= []; L =/= [] ->
            {SeqNo, InFlight};
        _ ->
            false
    end.

lacks(QName, Id, Model) ->
    case Model of
        #{Id := {sent, SeqNo, #in_flight{rejected = R, later = L} = InFlight}} ->
            lists:member(QName, R ++ L) andalso {SeqNo, InFlight};
        _ ->
            false
    end.

is_same(Id, Book, Model) ->
    case Model of
        #{Id := {waiting, Settled, Names}} ->
            not ?B:is_held(Id, Book)
                andalso ?B:has_some(Id, Book) =:= (Settled =/= [])
                andalso ?B:remains(Id, Book) =:= remains(Settled, Names);
        #{Id := {sent, _, #in_flight{}}} ->
            ?B:is_held(Id, Book);
        #{Id := _} ->
            ?B:is_held(Id, Book) andalso ?B:remains(Id, Book) =:= whole;
        _ ->
            not ?B:is_held(Id, Book) andalso ?B:remains(Id, Book) =:= whole
    end.

remains([], Names) when length(Names) < 2 -> whole;
remains(Settled, Names) -> {released, Settled, Names}.

in_hand(Model) ->
    maps:fold(fun (Id, {sent, _, #in_flight{bytes = Size}}, Acc) -> [{Id, Size} | Acc];
                  (Id, {done, Size}, Acc) -> [{Id, Size} | Acc];
                  (Id, {settling, _, Size}, Acc) -> [{Id, Size} | Acc];
                  (_, {waiting, _, _}, Acc) -> Acc
              end, [], Model).

%% As the dispatcher does it: what is in hand is passed over.
step({send, Id, QNames0, Later0}, Book0, Model) ->
    QNames = lists:usort(QNames0),
    Later = lists:usort(Later0) -- QNames,
    case Model of
        #{Id := {waiting, Settled, Places}} ->
            case QNames -- Settled of
                [] -> {Book0, Model};
                New -> send(Id, New, Later -- Settled, Settled, Places -- New, Book0, Model)
            end;
        #{Id := _} ->
            {Book0, Model};
        _ ->
            send(Id, QNames, Later, [], [], Book0, Model)
    end;
step({What, QName, Id}, Book, Model) when What =:= join; What =:= excuse ->
    case lacks(QName, Id, Model) of
        {SeqNo, #in_flight{unsettled = U, rejected = R, later = L} = InFlight} ->
            {?B:What(QName, SeqNo, Book),
             Model#{Id := {sent, SeqNo, InFlight#in_flight{unsettled = [QName || What =:= join] ++ U,
                                                           rejected = R -- [QName],
                                                           later = L -- [QName]}}}};
        false ->
            {Book, Model}
    end;
step({answer, Answer, QName, SeqNo}, Book0, Model) ->
    case [Id || {Id, {sent, N, #in_flight{unsettled = U}}} <- maps:to_list(Model), N =:= SeqNo,
                lists:member(QName, U)] of
        [] -> {Book0, Model};
        [Id] -> answer(Answer, QName, SeqNo, Id, Book0, Model)
    end;
step(settle, Book0, Model) ->
    Correlation = make_ref(),
    Done = lists:sort([Id || {Id, {done, _}} <- maps:to_list(Model)]),
    case ?B:to_settle(Correlation, Book0) of
        none ->
            [] = Done,
            {Book0, Model};
        {Released, Book} ->
            Done = lists:sort([Id || <<Id:64/little, Due:64/little>> <= Released,
                                     Due =:= due(Id)]),
            {Book, maps:map(fun (_, {done, Size}) -> {settling, Correlation, Size};
                                (_, Other) -> Other
                            end, Model)}
    end;
step({applied, N}, Book0, Model) ->
    Correlations = lists:usort([C || {settling, C, _} <- maps:values(Model)]),
    case N =< length(Correlations) of
        true ->
            Correlation = lists:nth(N, Correlations),
            {ok, Book} = ?B:settled(Correlation, Book0),
            {Book, maps:filter(fun (_, {settling, C, _}) -> C =/= Correlation;
                                   (_, _) -> true
                               end, Model)};
        false ->
            {Book0, Model}
    end;
step(forget_places, Book0, Model) ->
    {?B:forget_places(Book0),
     maps:map(fun (_, {waiting, Settled, _}) -> {waiting, Settled, []};
                  (_, Other) -> Other
              end, Model)};
step({forget, Id}, Book0, Model) ->
    case Model of
        #{Id := {waiting, _, _}} -> {?B:forget(Id, Book0), maps:remove(Id, Model)};
        _ -> {Book0, Model}
    end.

send(Id, QNames, Later, Settled, Places, Book0, Model) ->
    InFlight = (message(Id, Id))#in_flight{settled = Settled, places = Places,
                                           unsettled = QNames, later = Later},
    {SeqNo, Book} = ?B:send(InFlight, ?B:hold(Id, Id, Book0)),
    {Book, Model#{Id => {sent, SeqNo, InFlight}}}.

answer(Answer, QName, SeqNo, Id, Book0, Model) ->
    #{Id := {sent, _, #in_flight{unsettled = U, settled = S, rejected = R} = InFlight0}} = Model,
    InFlight = InFlight0#in_flight{unsettled = U -- [QName],
                                   settled = [QName || Answer =:= settled] ++ S,
                                   rejected = [QName || Answer =:= rejected] ++ R},
    case ?B:answered(Answer, QName, SeqNo, Book0) of
        {awaits_more, InFlight, Book} ->
            true = U -- [QName] =/= [],
            {Book, Model#{Id := {sent, SeqNo, InFlight}}};
        {finished, InFlight, Book} ->
            [] = U -- [QName],
            end_of(?B:fate(InFlight), InFlight, Book, Model)
    end.

end_of(done, #in_flight{id = Id, bytes = Size}, Book0, Model) ->
    {_, Book} = ?B:done(Id, due(Id), Size, Book0),
    {Book, Model#{Id := {done, Size}}};
end_of(nobody_has_it, #in_flight{id = Id, bytes = Size}, Book, Model) ->
    {?B:forget(Id, ?B:release(Id, Size, Book)), maps:remove(Id, Model)};
end_of({waits_for, Names}, #in_flight{id = Id, settled = Settled} = InFlight, Book0, Model) ->
    {Names, Book} = ?B:wait(Names, InFlight#in_flight{places = []}, Book0),
    {Book, Model#{Id := {waiting, Settled, Names}}}.

due(Id) -> 1000 + Id.
