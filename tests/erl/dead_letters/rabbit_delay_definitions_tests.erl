%% SPDX-License-Identifier: MPL-2.0

%% Definitions files of whatever broker, hand and encoding, and the findings that they or a file accept.
-module(rabbit_delay_definitions_tests).

-include_lib("eunit/include/eunit.hrl").

-import(rabbit_delay_doctor_tests, [found/1, by_rule/2, definitions/1, queue/2, exchange/2, binding/3,
                                    policy/3]).

malformed_test_() ->
    [?_assertMatch({error, _}, rabbit_delay_topology:of_definitions(Definitions, <<"/">>))
     || Definitions <- [[], <<"x">>, 1, null]].

%% One odd entry costs a finding of its own, and nothing of the rest.
odd_test_() ->
    Whole = definitions(Sound = sound()),
    Broken = found(Sound#{bindings := []}),
    [{binary_to_list(Where),
      fun () ->
              Found = found_in(maps:update_with(Category, fun (Entries) -> Entries ++ [Odd] end, [Odd],
                                                Whole)),
              ?assertEqual([{warning, Where}], by_rule(unreadable_entry, Found)),
              ?assertEqual([], [F || #{rule := R} = F <- Found, R =/= unreadable_entry]),
              OfBroken = found_in((definitions(Sound#{bindings := []}))
                                  #{Category => maps:get(Category, definitions(Sound#{bindings := []}), [])
                                    ++ [Odd]}),
              ?assertEqual(Broken, [F || #{rule := R} = F <- OfBroken, R =/= unreadable_entry])
      end}
     || {Category, Where, Odd} <-
            [{<<"queues">>, <<"queues[2]">>, 1}, {<<"queues">>, <<"queues[2].name">>, #{}},
             {<<"queues">>, <<"queues[2].name">>, #{<<"name">> => 1}},
             {<<"queues">>, <<"queues[2].arguments">>, (queue(<<"q">>, #{}))#{<<"arguments">> := 1}},
             {<<"policies">>, <<"policies[0].pattern">>, #{<<"name">> => <<"p">>}},
             {<<"policies">>, <<"policies[0].priority">>,
              (policy(<<"p">>, <<"x">>, #{}))#{<<"priority">> := <<"high">>}},
             {<<"topic_permissions">>, <<"topic_permissions[0].exchange">>, #{<<"user">> => <<"u">>}},
             {<<"vhosts">>, <<"vhosts[1].name">>, #{}},
             {<<"parameters">>, <<"parameters[0].value.pattern">>,
              #{<<"component">> => <<"operator_policy">>, <<"name">> => <<"p">>, <<"value">> => #{}}},
             {<<"parameters">>, <<"parameters[0].value">>,
              #{<<"component">> => <<"accepted-dead-lettering">>, <<"value">> => #{<<"rule">> => <<"x">>}}},
             {<<"exchanges">>, <<"exchanges[1].type">>, #{<<"name">> => <<"x">>, <<"type">> => null}}]].

not_a_list_test() ->
    Found = found_in((definitions(sound()))#{<<"permissions">> => 7, <<"policies">> => 7}),
    ?assertEqual([{warning, <<"policies">>}], by_rule(unreadable_entry, Found)).

%% As other brokers and hands write them.
unusual_but_readable_test_() ->
    #{<<"queues">> := [Q | Qs]} = Whole = definitions(sound()),
    [?_assertEqual([], found_in(maps:merge(Whole, Change)))
     || Change <- [#{<<"policies">> => null}, #{<<"policies">> => []}, #{<<"parameters">> => []},
                   #{<<"lavinmq_version">> => <<"2.4.0">>, <<"rabbitmq_version">> => <<"2.4.0">>},
                   #{<<"queues">> => [Q, (queue(<<"q">>, #{}))#{<<"arguments">> := null} | Qs]},
                   #{<<"queues">> => [Q#{<<"vhost">> := null} | Qs]},
                   #{<<"policies">> => [(policy(<<"p">>, <<"x">>, #{}))#{<<"priority">> := null}]},
                   #{<<"policies">> => [(policy(<<"p">>, <<"x">>, #{}))#{<<"priority">> := 1.0}]},
                   #{<<"parameters">> => [#{<<"component">> => <<"shovel">>, <<"value">> => 1}]}]].

sound() ->
    #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                     <<"x-dead-letter-routing-key">> => <<"dead">>}),
                 queue(<<"parked">>, #{})],
      exchanges => [exchange(<<"dlx">>, <<"direct">>)],
      bindings => [binding(<<"dlx">>, <<"parked">>, <<"dead">>)]}.

found_in(Definitions) ->
    {ok, Topology} = rabbit_delay_topology:of_definitions(Definitions, <<"/">>),
    rabbit_delay_doctor:check(Topology).

%% Whatever an editor, a shell or rabbitmqctl made of the file.
encodings_test_() ->
    Name = <<"w\x{e9}rk"/utf8>>,
    Definitions = definitions(#{queues => [queue(Name, #{<<"x-dead-letter-exchange">> => <<"no">>})]}),
    Json = iolist_to_binary(rabbit_json:encode(Definitions)),
    In = fun (Encoding) -> unicode:characters_to_binary(Json, utf8, Encoding) end,
    Marked = fun (Encoding) -> [unicode:encoding_to_bom(Encoding), In(Encoding)] end,
    Files = [Json, [Json, "\r\n"], Marked(utf8), In(latin1),
             ["Exporting definitions in JSON to standard output ...\r\n", Json, "\n"],
             unicode:characters_to_binary(["\x{feff}", "Exporting ...\r\n", Json, "\r\n"], utf8,
                                          {utf16, little}),
             term_to_binary(Definitions), term_to_binary(Definitions, [{compressed, 9}]),
             term_to_binary(maps:from_list([{binary_to_atom(Key), Value}
                                            || {Key, Value} <- maps:to_list(Definitions)]))
             | [Made(Encoding) || Encoding <- [{utf16, little}, {utf16, big}, {utf32, little}, {utf32, big}],
                                  Made <- [In, Marked]]],
    [fun () ->
             {ok, Decoded} = rabbit_delay_definitions:decode(iolist_to_binary(File), 1 bsl 20),
             ?assertEqual([{error, Name}], by_rule(dlx_missing, found_in(Decoded)))
     end || File <- Files].

undecodable_test_() ->
    [?_assertEqual(error, rabbit_delay_definitions:decode(iolist_to_binary(Bytes), 1000))
     || Bytes <- [<<>>, "{", "}{", "{\"queues\": [", <<255, 254>>, <<0>>, <<131>>, <<131, 104>>,
                  <<131, 80, 1001:32, 0>>, term_to_binary(binary:copy(<<0>>, 2000), [compressed]),
                  term_to_binary(self()), [<<131, 119, 20>>, "an_atom_nobody_has_1"]]].

%% Accepted findings are told apart, and count no more.
accepted_test_() ->
    Broken = definitions((sound())#{bindings := []}),
    Parameter = fun (Value) ->
                        Broken#{<<"parameters">> => [#{<<"component">> => <<"accepted-dead-lettering">>,
                                                       <<"vhost">> => <<"/">>, <<"name">> => <<"a">>,
                                                       <<"value">> => Value#{<<"reason">> => <<"known">>}}]}
                end,
    [{lists:flatten(io_lib:format("~p", [Value])),
      fun () ->
              [#{rule := dlx_unroutable} = Finding | Unused] = Findings = found_in(Parameter(Value)),
              ?assertEqual([acceptance_unused || not Accepted], [Rule || #{rule := Rule} <- Unused]),
              ?assertEqual(case Accepted of true -> <<"known">>; false -> none end,
                           maps:get(accepted, Finding, none)),
              ?assertEqual(case Accepted of true -> 0; false -> 3 end,
                           rabbit_delay_doctor_report:worst(Findings)),
              {ok, #{<<"counts">> := #{<<"error">> := Errors}, <<"findings">> := Open,
                     <<"accepted">> := Told}} =
                  rabbit_json:try_decode(rabbit_delay_doctor_report:json(Findings)),
              ?assertEqual(case Accepted of true -> {0, 0, 1}; false -> {1, 2, 0} end,
                           {Errors, length(Open), length(Told)}),
              [?assertMatch([#{<<"accepted">> := <<"known">>, <<"name">> := <<"work">>}], Told) || Accepted],
              ?assertEqual(Accepted, nomatch =/= binary:match(rabbit_delay_doctor_report:text(Findings),
                                                              <<"accepted dlx_unroutable">>))
      end}
     || {Accepted, Value} <-
            [{true, #{<<"rule">> => <<"dlx_unroutable">>}},
             {true, #{<<"rule">> => <<"dlx_unroutable">>, <<"name">> => <<"work">>}},
             {true, #{<<"rule">> => <<"dlx_unroutable">>, <<"pattern">> => <<"^w">>, <<"kind">> => <<"queue">>}},
             {false, #{<<"rule">> => <<"dlx_missing">>}},
             {false, #{<<"rule">> => <<"dlx_unroutable">>, <<"name">> => <<"wor">>}},
             {false, #{<<"rule">> => <<"dlx_unroutable">>, <<"pattern">> => <<"x">>}},
             {false, #{<<"rule">> => <<"dlx_unroutable">>, <<"kind">> => <<"policy">>}},
             {false, #{<<"rule">> => <<"dlx_unroutable">>, <<"vhost">> => <<"other">>}}]].

acceptances_that_are_none_test_() ->
    [?_assertMatch({error, _}, rabbit_delay_doctor_accepted:parse(Entry))
     || Good <- [#{<<"rule">> => <<"dlx_missing">>, <<"reason">> => <<"r">>}],
        Entry <- [1, [], #{}, maps:remove(<<"reason">>, Good), maps:remove(<<"rule">>, Good),
                  Good#{<<"reason">> := <<>>}, Good#{<<"reason">> := 1}, Good#{<<"rule">> := <<"x">>},
                  Good#{<<"nam">> => <<"q">>}, Good#{<<"kind">> => <<"vhost">>},
                  Good#{<<"pattern">> => <<"*(">>},
                  Good#{<<"pattern">> => <<"x">>, <<"name">> => <<"x">>}]].
