%% SPDX-License-Identifier: MPL-2.0

%% What a drawing of dead letters' ways is told: circles, what leads nowhere, and depths.
-module(rabbit_delay_doctor_report_tests).

-include_lib("eunit/include/eunit.hrl").

-import(rabbit_delay_doctor_tests, [definitions/1, topology/2, queue/2, exchange/2, binding/3, ring/1]).

drawing_test() ->
    #{vhosts := #{<<"/">> := Objects}} =
        topology(definitions(#{queues => [queue(<<"lost">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                                              <<"x-dead-letter-routing-key">> => <<"no">>}),
                                          queue(<<"found">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                                               <<"x-dead-letter-routing-key">> => <<"yes">>}),
                                          queue(<<"gone">>, #{<<"x-dead-letter-exchange">> => <<"none">>}),
                                          queue(<<"any">>, #{<<"x-dead-letter-exchange">> => <<>>}),
                                          queue(<<"end">>, #{}) | ring(3)],
                               exchanges => [exchange(<<"dlx">>, <<"direct">>)],
                               bindings => [binding(<<"dlx">>, <<"end">>, <<"yes">>),
                                            binding(<<"amq.fanout">>, <<"any">>, <<>>)]}),
                 #{<<"end">> => {0, 17}}),
    {ok, #{<<"nodes">> := Nodes}} =
        rabbit_json:try_decode(rabbit_delay_doctor_report:graph_json(rabbit_delay_doctor:graph(Objects))),
    ?assertEqual([{<<"dlx">>, <<"no">>}, {<<"none">>, null}],
                 lists:sort([{Name, maps:get(<<"key">>, Node, null)}
                             || #{<<"leads_nowhere">> := true, <<"name">> := Name} = Node <- Nodes])),
    ?assertEqual([<<"q0">>, <<"q1">>, <<"q2">>],
                 lists:sort([Name || #{<<"circle">> := 1, <<"kind">> := <<"queue">>, <<"name">> := Name}
                                         <- Nodes])),
    ?assertEqual([<<"queue">>, <<"exchange">>],
                 lists:usort(fun (A, B) -> A >= B end,
                             [Kind || #{<<"circle">> := _, <<"kind">> := Kind} <- Nodes])),
    ?assertEqual([{<<"end">>, 17}], [{Name, N} || #{<<"messages">> := N, <<"name">> := Name} <- Nodes]).

%% Many work queues that share a delay by the keys that they set: all are in the circle.
shared_delay_test() ->
    Work = [iolist_to_binary(["work", integer_to_list(N)]) || N <- lists:seq(1, 50)],
    #{vhosts := #{<<"/">> := Objects}} =
        topology(definitions(#{queues => [queue(<<"pause">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                                               <<"x-message-ttl">> => 1000}) |
                                          [queue(Name, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                                         <<"x-dead-letter-routing-key">> => Name})
                                           || Name <- Work]],
                               exchanges => [exchange(<<"dlx">>, <<"fanout">>)],
                               bindings => [binding(<<"dlx">>, <<"pause">>, <<>>)]}), #{}),
    {ok, #{<<"nodes">> := Nodes}} =
        rabbit_json:try_decode(rabbit_delay_doctor_report:graph_json(rabbit_delay_doctor:graph(Objects))),
    ?assertEqual(lists:sort([<<"pause">> | Work]),
                 lists:sort([Name || #{<<"circle">> := 1, <<"kind">> := <<"queue">>, <<"name">> := Name}
                                         <- Nodes])).

%% Dead letters with nowhere to go block a queue that dead-letters at least once, and are dropped by others.
at_least_once_blocks_test_() ->
    [?_assertNotEqual(nomatch, binary:match(Why, Word))
     || X <- [<<"gone">>, <<"dlx">>],
        {Strategy, Word} <- [{<<"at-least-once">>, <<"block it">>}, {<<"at-most-once">>, <<"drops them">>}],
        #{rule := Rule, why := Why}
            <- rabbit_delay_doctor:check(
                 topology(definitions(#{queues => [queue(<<"work">>,
                                                         #{<<"x-queue-type">> => <<"quorum">>,
                                                           <<"x-dead-letter-exchange">> => X,
                                                           <<"x-dead-letter-strategy">> => Strategy,
                                                           <<"x-overflow">> => <<"reject-publish">>})],
                                        exchanges => [exchange(<<"dlx">>, <<"direct">>)]}), #{})),
        Rule =:= dlx_missing orelse Rule =:= dlx_unroutable].
