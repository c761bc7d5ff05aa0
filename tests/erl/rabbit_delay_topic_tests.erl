%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_topic_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/resource.hrl").

-define(X1, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"one">>}).
-define(X2, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"two">>}).

topic_test_() ->
    {setup,
     fun () -> {ok, Pid} = rabbit_delay_topic:start_link(), Pid end,
     fun (Pid) -> unlink(Pid), exit(Pid, shutdown) end,
     [fun queues_come_with_their_keys/0,
      {timeout, 120, fun as_a_list_of_bindings_would/0}]}.

without_the_process_test() ->
    ok = rabbit_delay_topic:add(?X1, {<<"a">>, queue(1), []}),
    ?assertEqual([], rabbit_delay_topic:match(?X1, <<"a">>)).

queues_come_with_their_keys() ->
    ok = rabbit_delay_topic:replace(?X1, [{<<"a.*">>, queue(1), []}, {<<"#">>, ?X2, []}]),
    ?assertEqual([{queue(1), <<"a.*">>}, ?X2],
                 lists:sort(rabbit_delay_topic:match(?X1, <<"a.b">>))),
    ?assertEqual([?X2], rabbit_delay_topic:match(?X1, <<>>)),
    ok = rabbit_delay_topic:replace(?X1, []),
    ?assertEqual([], ets:tab2list(rabbit_delay_topic)).

%% Any sequence of changes, against the bindings as a list and the definition of a match.
as_a_list_of_bindings_would() ->
    ?assert(proper:quickcheck(
              ?FORALL({Changes, Keys}, {list(change()), non_empty(list(key([<<"a">>, <<"b">>, <<>>])))},
                      begin
                          ok = rabbit_delay_topic:replace(?X1, []),
                          ok = rabbit_delay_topic:replace(?X2, []),
                          Bindings = lists:foldl(fun change/2, [], Changes),
                          Same = [{X, Key, expected(X, Key, Bindings), found(X, Key)}
                                  || X <- [?X1, ?X2], Key <- Keys],
                          Rows = length(ets:tab2list(rabbit_delay_topic)),
                          Prefixes = length(lists:usort(
                                              [{X, lists:sublist(words(Key), N)}
                                               || {X, {Key, _, _}} <- Bindings,
                                                  N <- lists:seq(0, length(words(Key)))])),
                          ?WHENFAIL(?debugFmt("~p ~p~n~p ~p", [Changes, Same, Rows, Prefixes]),
                                    lists:all(fun ({_, _, E, F}) -> E =:= F end, Same)
                                    andalso Rows =:= Prefixes)
                      end), [{numtests, 500}, {to_file, user}])).

change() ->
    oneof([{add, x(), entry()}, {add, x(), entry()}, {add, x(), entry()},
           {remove, x(), list(entry())}, {replace, x(), list(entry())}]).

x() -> oneof([?X1, ?X2]).

entry() ->
    {key([<<"a">>, <<"b">>, <<"*">>, <<"#">>, <<>>]), ?LET(N, range(1, 3), queue(N)),
     oneof([[], [{<<"k">>, long, 1}]])}.

key(Words) ->
    ?LET(Chosen, resize(5, list(oneof(Words))), iolist_to_binary(lists:join(<<".">>, Chosen))).

queue(N) ->
    #resource{virtual_host = <<"/">>, kind = queue, name = integer_to_binary(N)}.

change({add, X, Entry}, Bindings) ->
    ok = rabbit_delay_topic:add(X, Entry),
    lists:usort([{X, Entry} | Bindings]);
change({remove, X, Entries}, Bindings) ->
    ok = rabbit_delay_topic:remove(X, Entries),
    Bindings -- [{X, Entry} || Entry <- lists:usort(Entries)];
change({replace, X, Entries}, Bindings) ->
    ok = rabbit_delay_topic:replace(X, Entries),
    lists:usort([B || {Y, _} = B <- Bindings, Y =/= X] ++ [{X, Entry} || Entry <- Entries]).

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
