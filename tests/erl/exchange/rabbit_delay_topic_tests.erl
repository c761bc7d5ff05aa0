%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_topic_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/resource.hrl").

-export([bindings/1]).

-define(X1, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"one">>}).
-define(X2, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"two">>}).

%% The broker's bindings, as far as an index is to be built from them.
-define(BROKER, rabbit_delay_topic_tests_broker).

topic_test_() ->
    {setup,
     fun () ->
             ?BROKER = ets:new(?BROKER, [named_table, public]),
             start()
     end,
     fun (_) ->
             stop(),
             ets:delete(?BROKER)
     end,
     [fun queues_come_with_their_keys/0,
      fun without_the_process/0,
      {timeout, 1200, fun nothing_is_missed_while_it_does_not_answer/0},
      {timeout, 1200, fun changes_heard_of_in_another_order_are_set_right/0},
      {timeout, 1200, fun as_a_list_of_bindings_would/0},
      {timeout, 1200, fun no_binding_is_missed_while_it_ends_and_bindings_change/0}]}.

start() ->
    {ok, Pid} = rabbit_delay_topic:start_link(fun ?MODULE:bindings/1),
    true = unlink(Pid),
    ok.

stop() ->
    end_of(whereis(rabbit_delay_topic), shutdown).

end_of(Pid, Reason) ->
    Ref = monitor(process, Pid),
    exit(Pid, Reason),
    receive {'DOWN', Ref, process, _, _} -> ok end.

bindings(X) -> [Entry || [Entry] <- ets:match(?BROKER, {{X, '$1'}})].

bind(X, Entry) ->
    true = ets:insert(?BROKER, {{X, Entry}}),
    rabbit_delay_topic:add(X, Entry).

unbind(X, Entries) ->
    _ = [ets:delete(?BROKER, {X, Entry}) || Entry <- Entries],
    rabbit_delay_topic:remove(X, Entries).

%% What it holds of an exchange, once it has heard of all before.
indexed(X) ->
    ok = gen_server:cast(rabbit_delay_topic, {index, X}),
    _ = sys:get_state(rabbit_delay_topic),
    lists:sort(lists:append([Entries || {{Y, _}, _, Entries} <- ets:tab2list(rabbit_delay_topic),
                                        Y =:= X])).

clear() ->
    _ = [unbind(X, bindings(X)) || X <- [?X1, ?X2]],
    _ = [rabbit_delay_topic:forget(X) || X <- [?X1, ?X2]],
    ?assertEqual([], ets:tab2list(?BROKER)),
    ?assertEqual([], ets:tab2list(rabbit_delay_topic)).

queues_come_with_their_keys() ->
    ok = bind(?X1, {<<"a.*">>, queue(1), []}),
    ok = bind(?X1, {<<"#">>, ?X2, []}),
    ?assertEqual([{queue(1), <<"a.*">>}, ?X2],
                 lists:sort(rabbit_delay_topic:match(?X1, <<"a.b">>))),
    ?assertEqual([?X2], rabbit_delay_topic:match(?X1, <<>>)),
    clear().

without_the_process() ->
    stop(),
    ok = bind(?X1, {<<"a.#">>, queue(1), []}),
    ?assertEqual([{queue(1), <<"a.#">>}], rabbit_delay_topic:match(?X1, <<"a.b">>)),
    start(),
    ?assertEqual([{queue(1), <<"a.#">>}], rabbit_delay_topic:match(?X1, <<"a.b">>)),
    ?assertEqual([{<<"a.#">>, queue(1), []}], indexed(?X1)),
    clear().

%% Who binds does not wait for it for ever, and what it says afterwards is not what it knew before.
nothing_is_missed_while_it_does_not_answer() ->
    ok = bind(?X1, {<<"a">>, queue(1), []}),
    ?assertEqual([{queue(1), <<"a">>}], rabbit_delay_topic:match(?X1, <<"a">>)),
    ok = sys:suspend(rabbit_delay_topic),
    ok = bind(?X1, {<<"*">>, queue(2), []}),
    Both = [{queue(1), <<"a">>}, {queue(2), <<"*">>}],
    ?assertEqual(Both, lists:sort(rabbit_delay_topic:match(?X1, <<"a">>))),
    ok = sys:resume(rabbit_delay_topic),
    ?assertEqual(Both, lists:sort(rabbit_delay_topic:match(?X1, <<"a">>))),
    ?assertEqual(lists:sort(bindings(?X1)), indexed(?X1)),
    clear().

%% Two clients bind and unbind the same at once, and the second is heard of first.
changes_heard_of_in_another_order_are_set_right() ->
    Kept = {<<"a">>, queue(1), []},
    Gone = {<<"a">>, queue(2), []},
    ok = bind(?X1, Kept),
    ok = rabbit_delay_topic:add(?X1, Gone),
    ok = rabbit_delay_topic:remove(?X1, [Kept]),
    ?assertEqual([Gone], indexed(?X1)),
    await(fun () -> indexed(?X1) =:= [Kept] end),
    ?assertEqual([{queue(1), <<"a">>}], rabbit_delay_topic:match(?X1, <<"a">>)),
    clear().

await(Condition) ->
    case Condition() of
        true -> ok;
        false -> timer:sleep(20), await(Condition)
    end.

%% While the process is killed and started again, bindings come and go; one is there all the time.
no_binding_is_missed_while_it_ends_and_bindings_change() ->
    Stays = {<<"a.#">>, queue(1), []},
    ok = bind(?X1, Stays),
    Self = self(),
    Changer = spawn(fun () -> change_for_ever(0) end),
    Matchers = [spawn_link(fun () -> Self ! {self(), match_often(20000, 0)} end)
                || _ <- lists:seq(1, 2)],
    Kills = kill_often(Matchers, 0),
    ?assertEqual([0, 0], [receive {Matcher, Missed} -> Missed end || Matcher <- Matchers]),
    ?assert(Kills > 0),
    end_of(Changer, kill),
    await(fun () -> indexed(?X1) =:= lists:sort(bindings(?X1)) end),
    clear().

change_for_ever(N) ->
    Entry = {<<"a.b">>, queue(2 + N rem 5), []},
    ok = bind(?X1, Entry),
    ok = unbind(?X1, [Entry]),
    change_for_ever(N + 1).

match_often(0, Missed) ->
    Missed;
match_often(N, Missed) ->
    case lists:member({queue(1), <<"a.#">>}, rabbit_delay_topic:match(?X1, <<"a.b">>)) of
        true -> match_often(N - 1, Missed);
        false -> match_often(N - 1, Missed + 1)
    end.

kill_often(Matchers, Kills) ->
    case lists:any(fun is_process_alive/1, Matchers) of
        true ->
            end_of(whereis(rabbit_delay_topic), kill),
            start(),
            _ = sys:get_state(rabbit_delay_topic),
            kill_often(Matchers, Kills + 1);
        false ->
            Kills
    end.

%% Any sequence of changes, against the bindings as a list and the definition of a match.
as_a_list_of_bindings_would() ->
    ?assert(proper:quickcheck(
              ?FORALL({Changes, Keys}, {list(change()), non_empty(list(key([<<"a">>, <<"b">>, <<>>])))},
                      begin
                          clear(),
                          Bindings = lists:foldl(fun change/2, [], Changes),
                          Scanned = [scanned(X, Key) || X <- [?X1, ?X2], Key <- Keys],
                          _ = [indexed(X) || X <- [?X1, ?X2]],
                          Same = [{X, Key, expected(X, Key, Bindings), found(X, Key)}
                                  || X <- [?X1, ?X2], Key <- Keys],
                          Rows = length(ets:tab2list(rabbit_delay_topic)),
                          Prefixes = 2 + length(lists:usort(
                                                  [{X, lists:sublist(words(Key), N)}
                                                   || {X, {Key, _, _}} <- Bindings,
                                                      N <- lists:seq(0, length(words(Key)))])),
                          ?WHENFAIL(?debugFmt("~p ~p~n~p ~p", [Changes, Same, Rows, Prefixes]),
                                    lists:all(fun ({_, _, E, F}) -> E =:= F end, Same)
                                    andalso Scanned =:= [E || {_, _, E, _} <- Same]
                                    andalso Rows =:= Prefixes)
                      end), [{numtests, 500}, {to_file, user}])).

%% As it is found where there is no index of the exchange.
scanned(X, Key) ->
    true = ets:delete(rabbit_delay_topic, X),
    Found = found(X, Key),
    _ = sys:get_state(rabbit_delay_topic),
    Found.

change() ->
    oneof([{add, x(), entry()}, {add, x(), entry()}, {add, x(), entry()},
           {remove, x(), list(entry())}, {forget, x()}]).

x() -> oneof([?X1, ?X2]).

entry() ->
    {key([<<"a">>, <<"b">>, <<"*">>, <<"#">>, <<>>]), ?LET(N, range(1, 3), queue(N)),
     oneof([[], [{<<"k">>, long, 1}]])}.

key(Words) ->
    ?LET(Chosen, resize(5, list(oneof(Words))), iolist_to_binary(lists:join(<<".">>, Chosen))).

queue(N) ->
    #resource{virtual_host = <<"/">>, kind = queue, name = integer_to_binary(N)}.

change({add, X, Entry}, Bindings) ->
    ok = bind(X, Entry),
    lists:usort([{X, Entry} | Bindings]);
change({remove, X, Entries}, Bindings) ->
    ok = unbind(X, Entries),
    Bindings -- [{X, Entry} || Entry <- lists:usort(Entries)];
change({forget, X}, Bindings) ->
    true = ets:match_delete(?BROKER, {{X, '_'}}),
    ok = rabbit_delay_topic:forget(X),
    [B || {Y, _} = B <- Bindings, Y =/= X].

expected(X, Key, Bindings) ->
    lists:usort([{Queue, Pattern} || {Y, {Pattern, Queue, _}} <- Bindings, Y =:= X,
                                     matches(words(Pattern), words(Key))]).

found(X, Key) ->
    lists:usort(rabbit_delay_topic:match(X, Key)).

matches([], Words) -> Words =:= [];
matches([<<"#">> | Rest], Words) ->
    lists:any(fun (N) -> matches(Rest, lists:nthtail(N, Words)) end, lists:seq(0, length(Words)));
matches([<<"*">> | Rest], [_ | Words]) -> matches(Rest, Words);
matches([Word | Rest], [Word | Words]) -> matches(Rest, Words);
matches(_, _) -> false.

words(<<>>) -> [];
words(Key) -> binary:split(Key, <<".">>, [global]).
