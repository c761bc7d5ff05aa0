%% SPDX-License-Identifier: MPL-2.0

%% Libraries' own ladders, retries and parking, as they declare them: what is found in them, that no
%% command touches what they declare, and that what a command makes leads to their consumers.
-module(rabbit_delay_doctor_frameworks_tests).

-include_lib("eunit/include/eunit.hrl").

-import(rabbit_delay_doctor_tests, [definitions/1, topology/2, queue/2, exchange/2, binding/3]).
-import(rabbit_delay_doctor_mends_tests, [mend/2, reached/2, routed/4]).

%% {Library, definitions, rules found, {the exchange to publish to instead, the key, the queue}}
libraries() ->
    [{"Symfony Messenger",
      #{queues => [queue(<<"messages">>, #{}) |
                   [delay(["delay_orders_k_", integer_to_list(Ms), "_delay"], Ms, Ms + 10000, <<"orders">>,
                          <<"k">>) || Ms <- [1000, 5000, 60000]]]
            ++ [delay("delay_orders_k_2000_retry", 2000, 12000, <<"orders">>, <<"k">>)],
        exchanges => [exchange(<<"orders">>, <<"direct">>), exchange(<<"delays">>, <<"direct">>)],
        bindings => [binding(<<"orders">>, <<"messages">>, <<"k">>)]},
      [delay_ladder, expires_loses_messages], {<<"orders.delayed">>, <<"k">>, <<"messages">>}},
     {"Laravel",
      #{queues => [queue(<<"default">>, #{}) |
                   [delay(["default.delay.", integer_to_list(Ms)], Ms, 2 * Ms, <<>>, <<"default">>)
                    || Ms <- [1000, 5000, 60000]]]},
      [delay_ladder, expires_loses_messages], {<<"delayed">>, <<"default">>, <<"default">>}},
     {"Machinery",
      #{queues => [queue(<<"machinery_tasks">>, #{}) |
                   [delay(["delay.", integer_to_list(Ms), ".machinery.tasks"], Ms, 2 * Ms,
                          <<"machinery">>, <<"tasks">>) || Ms <- [1000, 5000, 60000]]],
        exchanges => [exchange(<<"machinery">>, <<"direct">>)],
        bindings => [binding(<<"machinery">>, <<"machinery_tasks">>, <<"tasks">>)]},
      [delay_ladder, expires_loses_messages],
      {<<"machinery.delayed">>, <<"tasks">>, <<"machinery_tasks">>}},
     {"Celery", levels("celery_delayed_", <<"celery_delayed_delivery">>), [delay_ladder],
      {<<"celery_delayed_delivery.delayed">>, <<"work">>, <<"work">>}},
     {"NServiceBus", levels("nsb.v2.delay-level-", <<"nsb.v2.delay-delivery">>), [delay_ladder],
      {<<"nsb.v2.delay-delivery.delayed">>, <<"work">>, <<"work">>}},
     {"MassTransit", #{queues => [queue(Name, #{}) || Name <- [<<"orders">>, <<"orders_error">>,
                                                               <<"orders_skipped">>]]}, [], none},
     {"Spring Cloud Stream", spring(#{}), [], none},
     {"Spring Cloud Stream",
      spring(#{<<"x-message-ttl">> => 5000, <<"x-dead-letter-exchange">> => <<>>,
               <<"x-dead-letter-routing-key">> => <<"orders.audit">>}), [cycle_unbounded], none},
     {"Sneakers",
      #{queues => [queue(<<"downloads">>, #{<<"x-dead-letter-exchange">> => <<"downloads-retry">>}),
                   queue(<<"downloads-retry">>,
                         #{<<"x-message-ttl">> => 60000,
                           <<"x-dead-letter-exchange">> => <<"downloads-retry-requeue">>}),
                   queue(<<"downloads-error">>, #{})],
        exchanges => [exchange(X, <<"topic">>) || X <- [<<"downloads-retry">>, <<"downloads-error">>,
                                                        <<"downloads-retry-requeue">>]],
        bindings => [binding(<<"downloads-retry">>, <<"downloads-retry">>, <<"#">>),
                     binding(<<"downloads-error">>, <<"downloads-error">>, <<"#">>),
                     binding(<<"downloads-retry-requeue">>, <<"downloads">>, <<"#">>)]},
      [cycle_unbounded], none}].

delay(Name, Ttl, Expires, X, Key) ->
    queue(iolist_to_binary(Name), #{<<"x-message-ttl">> => Ttl, <<"x-expires">> => Expires,
                                    <<"x-dead-letter-exchange">> => X,
                                    <<"x-dead-letter-routing-key">> => Key}).

spring(OfDlq) ->
    #{queues => [queue(<<"orders.audit">>, #{<<"x-dead-letter-exchange">> => <<"DLX">>,
                                             <<"x-dead-letter-routing-key">> => <<"orders.audit">>}),
                 queue(<<"orders.audit.dlq">>, OfDlq)],
      exchanges => [exchange(<<"orders">>, <<"topic">>), exchange(<<"DLX">>, <<"direct">>)],
      bindings => [binding(<<"orders">>, <<"orders.audit">>, <<"#">>),
                   binding(<<"DLX">>, <<"orders.audit.dlq">>, <<"orders.audit">>)]}.

%% A level for each bit of the delay, the words of the key from the highest on.
levels(Prefix, Delivery) ->
    Levels = 6,
    Name = fun (N) -> iolist_to_binary(io_lib:format("~s~2..0b", [Prefix, N])) end,
    Down = fun (0) -> Delivery; (N) -> Name(N - 1) end,
    Stars = fun (N) -> lists:duplicate(Levels - 1 - N, "*.") end,
    #{queues => [queue(<<"work">>, #{<<"x-queue-type">> => <<"quorum">>}) |
                 [queue(Name(N), #{<<"x-queue-type">> => <<"quorum">>, <<"x-message-ttl">> => 1000 bsl N,
                                   <<"x-dead-letter-strategy">> => <<"at-least-once">>,
                                   <<"x-overflow">> => <<"reject-publish">>,
                                   <<"x-dead-letter-exchange">> => Down(N)}) || N <- lists:seq(0, Levels - 1)]],
      exchanges => [exchange(X, <<"topic">>) || X <- [Delivery | [Name(N) || N <- lists:seq(0, Levels - 1)]]],
      bindings => lists:append([[binding(Name(N), Name(N), iolist_to_binary([Stars(N), "1.#"])),
                                 (binding(Name(N), Down(N), iolist_to_binary([Stars(N), "0.#"])))
                                 #{<<"destination_type">> := <<"exchange">>}]
                                || N <- lists:seq(0, Levels - 1)])
          ++ [binding(Delivery, <<"work">>, <<"#.work">>)]}.

libraries_test_() ->
    [{Library, fun () -> untouched(Library, Case, Rules, Instead) end}
     || {Library, Case, Rules, Instead} <- libraries()].

%% Workers are away, and much is in all queues.
untouched(Library, #{queues := Queues} = Case, Rules, Instead) ->
    Before = definitions(Case),
    Found = rabbit_delay_doctor:check(
              topology(Before, #{})),
    Live = rabbit_delay_doctor:check(
             topology(Before, maps:from_list([{Name, {0, 50000}} || #{<<"name">> := Name} <- Queues]))),
    ?assertEqual(Rules, lists:usort([Rule || #{rule := Rule} <- Found])),
    ?assertEqual([], [Rule || #{rule := Rule, name := Name} <- Live, Rule =/= parking_unwatched
                                  orelse not rabbit_delay_doctor_frameworks:is_parking(Name)] --
                     [Rule || #{rule := Rule} <- Found]),
    [?assertNotEqual(nomatch, binary:match(Mend, list_to_binary(Library)))
     || #{rule := Rule, mend := Mend} <- Found, Rule =/= expires_loses_messages],
    After = mend(lists:append([Commands || #{commands := Commands} <- Found]), Before),
    [?assertEqual([], maps:get(Kind, Before) -- maps:get(Kind, After))
     || Kind <- [<<"queues">>, <<"exchanges">>, <<"bindings">>]],
    ?assertEqual(maps:get(<<"queues">>, Before), maps:get(<<"queues">>, After)),
    ?assertEqual(maps:get(<<"policies">>, Before), maps:get(<<"policies">>, After)),
    [?assertEqual(reached(Name, Before), reached(Name, After)) || #{<<"name">> := Name} <- Queues],
    case Instead of
        {X, Key, Queue} -> ?assertEqual([Queue], routed(X, Key, 5, After));
        none -> ok
    end.

%% Celery takes its ladder for whatever exchange is not direct.
celerys_ladder_leads_to_delayed_exchanges_test() ->
    {"Celery", Advice} = rabbit_delay_doctor_frameworks:known(<<"celery_delayed_27">>),
    ?assertMatch({match, _}, re:run(Advice, "both delays add up.*x-delayed-type: direct")).

%% Queues that are nobody's but the application's.
others_test_() ->
    [?_assertEqual(none, rabbit_delay_doctor_frameworks:of_queue(#{name => Name, arguments => #{}}))
     || Name <- [<<"work">>, <<"orders.dlq">>, <<"delayed">>, <<"wait1">>, <<"celery">>, <<"delay">>,
                 <<"errors">>, <<"retry">>, <<"orders.delay.soon">>]].
