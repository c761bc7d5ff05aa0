%% SPDX-License-Identifier: MPL-2.0

%% What is to become of dead letters in the queue `dead', which those of `work' come to by the exchange
%% dlx. Messages came to `work' by the exchange `in' with the key `job'.
-module(rabbit_delay_redrive_plan_tests).

-include_lib("eunit/include/eunit.hrl").

-define(P, rabbit_delay_redrive_plan).

plan(Options) ->
    {ok, #{vhosts := #{<<"/">> := Objects0}}} =
        rabbit_delay_topology:of_definitions(
          #{<<"rabbitmq_version">> => <<"3.10.8">>, <<"vhosts">> => [#{<<"name">> => <<"/">>}],
            <<"queues">> => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>}),
                             queue(<<"dead">>, #{}), queue(<<"other">>, #{})],
            <<"exchanges">> => [exchange(Name) || Name <- [<<"dlx">>, <<"in">>, <<"inside">>]],
            <<"bindings">> => [binding(<<"dlx">>, <<"dead">>, <<"job">>),
                               binding(<<"in">>, <<"work">>, <<"job">>),
                               binding(<<"in">>, <<"dead">>, <<"stays">>),
                               binding(<<"inside">>, <<"work">>, <<"job">>)]}, <<"/">>),
    %% A definitions file does not say which exchanges are internal; the broker does.
    #{exchanges := #{<<"inside">> := Inside} = Exchanges} = Objects0,
    Objects = Objects0#{exchanges := Exchanges#{<<"inside">> := Inside#{internal => true}}},
    ?P:new(maps:merge(#{queue => <<"dead">>, to => origin}, Options), Objects,
           rabbit_delay_doctor:at_once(Objects)).

queue(Name, Arguments) ->
    #{<<"name">> => Name, <<"vhost">> => <<"/">>, <<"durable">> => true, <<"auto_delete">> => false,
      <<"arguments">> => Arguments}.

exchange(Name) ->
    #{<<"name">> => Name, <<"vhost">> => <<"/">>, <<"type">> => <<"direct">>, <<"durable">> => true,
      <<"auto_delete">> => false, <<"arguments">> => #{}}.

binding(Source, Destination, Key) ->
    #{<<"source">> => Source, <<"vhost">> => <<"/">>, <<"destination">> => Destination,
      <<"destination_type">> => <<"queue">>, <<"routing_key">> => Key, <<"arguments">> => #{}}.

%% A message of which the broker writes this history, the latest death first.
message(Deaths) -> message(Deaths, #{}).

message(Deaths, More) ->
    History = [#{<<"queue">> => Queue, <<"reason">> => Reason, <<"exchange">> => X, <<"routing-keys">> => [Key],
                 <<"count">> => 1, <<"time">> => Time} || {Queue, Reason, X, Key, Time} <- Deaths],
    #{exchange => <<"dlx">>, key => <<"job">>, headers => maps:merge(#{<<"x-death">> => History}, More)}.

died() -> {<<"work">>, <<"rejected">>, <<"in">>, <<"job">>, 1700000000}.

decided(Options, Message) -> element(1, ?P:decide(Message, plan(Options))).

targets_test_() ->
    [{lists:flatten(io_lib:format("~0p", [To])), ?_assertEqual(Decision, decided(#{to => To}, message([died()])))}
     || {Decision, To} <- [{{<<>>, <<"work">>}, origin}, {{<<"in">>, <<"job">>}, original_exchange},
                           {{<<>>, <<"other">>}, {queue, <<"other">>}},
                           {{<<"in">>, <<"job">>}, {exchange, <<"in">>, undefined}},
                           {unroutable, {exchange, <<"in">>, <<"nothing">>}},
                           {unroutable, {queue, <<"gone">>}}, {unroutable, {exchange, <<"gone">>, <<"job">>}},
                           {would_loop, {queue, <<"dead">>}}, {would_loop, {exchange, <<"in">>, <<"stays">>}},
                           {would_loop, {exchange, <<"dlx">>, undefined}},
                           {refused, {exchange, <<"inside">>, <<"job">>}}]].

%% Without a history nothing says where it is from; a target that is given needs none.
no_history_test_() ->
    [?_assertEqual(Decision, decided(#{to => To}, message([])))
     || {Decision, To} <- [{no_target, origin}, {no_target, original_exchange},
                           {{<<>>, <<"other">>}, {queue, <<"other">>}},
                           {{<<"in">>, <<"job">>}, {exchange, <<"in">>, undefined}}]].

%% A history that cannot be true sends nothing anywhere, whatever it names; one that the broker vouches
%% for is believed, and one that it says is a client's is not.
forged_test_() ->
    Other = {<<"other">>, <<"rejected">>, <<"in">>, <<"job">>, 1700000000},
    Elsewhere = {<<"work">>, <<"rejected">>, <<"amq.direct">>, <<"secret">>, 1700000000},
    [?_assertEqual(Decision, decided(#{to => To}, (message([Death]))#{proven => Proven}))
     || {Decision, To, Death, Proven} <-
            [{{<<>>, <<"work">>}, origin, died(), true}, {no_target, origin, died(), false},
             {{<<>>, <<"other">>}, origin, Other, true}, {no_target, origin, Other, false},
             {unroutable, original_exchange, Elsewhere, true}]]
        ++ [?_assertEqual(Decision, decided(#{to => To}, message([Death])))
            || {Decision, To, Death} <-
                   [%% what dies in `other' does not come here
                    {no_target, origin, Other}, {no_target, original_exchange, Other},
                    %% and what is published there does not get to `work'
                    {no_target, original_exchange, Elsewhere},
                    {unroutable, origin, setelement(1, died(), <<"gone">>)}]].

filters_test_() ->
    Now = erlang:system_time(second),
    Message = message([setelement(5, died(), Now - 3600),
                       {<<"first">>, <<"expired">>, <<"in">>, <<"job">>, Now - 7200}], #{<<"n">> => 7, <<"b">> => true}),
    [{lists:flatten(io_lib:format("~0p", [Filter])),
      ?_assertEqual(Meant, skipped =/= decided(Filter#{to => {queue, <<"other">>}}, Message))}
     || {Meant, Filter} <- [{true, #{}}, {true, #{reason => <<"rejected">>}}, {false, #{reason => <<"expired">>}},
                            {true, #{origin => <<"work">>}}, {false, #{origin => <<"first">>}},
                            {true, #{header => {<<"n">>, <<"7">>}}}, {true, #{header => {<<"b">>, <<"true">>}}},
                            {false, #{header => {<<"n">>, <<"8">>}}}, {false, #{header => {<<"none">>, <<>>}}},
                            {true, #{older_than => 1800}}, {false, #{older_than => 5400}},
                            {true, #{newer_than => 5400}}, {false, #{newer_than => 1800}},
                            {false, #{reason => <<"rejected">>, origin => <<"first">>}}]]
        ++ [?_assertEqual(skipped, decided(Filter, message([])))
            || Filter <- [#{older_than => 0}, #{newer_than => 1000000000}, #{reason => <<"rejected">>}]].

%% Who may not publish there does not by a redrive, and is asked about each exchange and key once.
may_publish_test() ->
    Self = self(),
    Ask = fun (X, Key) -> Self ! {asked, X, Key}, {X, Key} =/= {<<>>, <<"work">>} end,
    Plan0 = plan(#{may_publish => Ask}),
    {refused, Plan1} = ?P:decide(message([died()]), Plan0),
    {refused, _} = ?P:decide(message([died()]), Plan1),
    ?assertEqual([{<<>>, <<"work">>}], asked()),
    ?assertEqual({<<"in">>, <<"job">>}, decided(#{may_publish => Ask, to => original_exchange}, message([died()]))),
    ?assertEqual([{<<"in">>, <<"job">>}], asked()).

%% The keys of CC go with a message to its original exchange, and nowhere else.
copies_test_() ->
    Message = message([died()], #{<<"CC">> => [<<"work">>, <<"other">>]}),
    Ask = fun (Refused) -> fun (X, Key) -> {X, Key} =/= Refused end end,
    [?_assertEqual(Decision, decided(#{may_publish => Ask(Refused), to => To}, Message))
     || {Decision, Refused, To} <- [{refused, {<<"in">>, <<"other">>}, original_exchange},
                                    {{<<"in">>, <<"job">>}, {<<"in">>, <<"work">>}, {exchange, <<"in">>, <<"job">>}},
                                    {{<<"in">>, <<"job">>}, none, original_exchange},
                                    {{<<>>, <<"work">>}, {<<>>, <<"other">>}, origin}]]
        ++ [?_assertEqual(would_loop, decided(#{to => original_exchange},
                                              message([died()], #{<<"CC">> => [<<"stays">>]}))),
            %% It died where only the other key takes it.
            ?_assertEqual({<<"in">>, <<"nothing">>},
                          decided(#{to => original_exchange},
                                  message([setelement(4, died(), <<"nothing">>)], #{<<"CC">> => [<<"job">>]})))].

asked() ->
    receive {asked, X, Key} -> [{X, Key} | asked()] after 0 -> [] end.

%% What was not shown before stays.
shown_test_() ->
    [?_assertEqual(Decision, decided(#{targets => Targets}, message([died()])))
     || {Decision, Targets} <- [{{<<>>, <<"work">>}, [<<"queue work">>]}, {no_target, []},
                                {no_target, [<<"queue other">>]}]].

%% A target that is the same for all is refused before anything is taken.
check_target_test_() ->
    [?_assertMatch(Expected, case ?P:check_target(plan(#{to => To, may_publish => fun (X, _) -> X =/= <<"in">> end})) of
                                 ok -> ok;
                                 {refused, Kind, Why} -> ?assert(byte_size(iolist_to_binary(Why)) > 10), Kind
                             end)
     || {Expected, To} <- [{ok, origin}, {ok, original_exchange}, {ok, {queue, <<"other">>}},
                           {ok, {exchange, <<"dlx">>, undefined}},
                           {bad_request, {queue, <<"dead">>}}, {bad_request, {queue, <<"gone">>}},
                           {bad_request, {exchange, <<"inside">>, undefined}},
                           {bad_request, {exchange, <<"dlx">>, <<"nothing">>}},
                           {forbidden, {exchange, <<"in">>, <<"job">>}}]].

target_text_test_() ->
    [?_assertEqual(<<"queue work">>, ?P:target_text(<<>>, <<"work">>)),
     ?_assertEqual(<<"exchange in key job">>, ?P:target_text(<<"in">>, <<"job">>))].

%% Those that are named, as often as they are, and none after that.
ids_test() ->
    Named = (message([died()]))#{properties => [], table => undefined, payload => <<"a">>},
    Other = Named#{payload := <<"b">>},
    Id = rabbit_delay_dead_letter:id(Named),
    Plan0 = plan(#{ids => [Id, Id]}),
    ?assertEqual({infinity, 2}, {?P:not_met(plan(#{})), ?P:not_met(Plan0)}),
    {skipped, Plan1} = ?P:decide(Other, Plan0),
    {{<<>>, <<"work">>}, Plan2} = ?P:decide(Named, Plan1),
    ?assertEqual(1, ?P:not_met(Plan2)),
    {{<<>>, <<"work">>}, Plan3} = ?P:decide(Named, Plan2),
    ?assertEqual(0, ?P:not_met(Plan3)),
    ?assertMatch({skipped, _}, ?P:decide(Named, Plan3)),
    ?assertMatch({drop, _}, ?P:decide(Named, plan(#{ids => [Id], to => nowhere}))),
    ?assertMatch({skipped, _}, ?P:decide(Other, plan(#{ids => [Id], to => nowhere}))),
    ?assertEqual(ok, ?P:check_target(plan(#{to => nowhere}))).

text_test_() ->
    [?_assertEqual(Text, iolist_to_binary(?P:text(Options, Targets)))
     || {Text, Options, Targets} <-
            [{<<"to be redriven to queue q">>, #{to => origin}, [<<"queue q">>]},
             {<<"to be redriven to nowhere">>, #{to => origin}, []},
             {<<"2 of them (i, j) to be dropped">>, #{to => nowhere, ids => [<<"i">>, <<"j">>]}, []},
             {<<"1 of them (i) to be redriven to queue q with another body">>,
              #{to => origin, ids => [<<"i">>], edit => {#{payload => <<>>}, <<"me">>}}, [<<"queue q">>]}]].
