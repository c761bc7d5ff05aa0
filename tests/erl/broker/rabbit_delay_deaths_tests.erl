%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_deaths_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

%% As RabbitMQ writes it: delayed by its own TTL in wait, then rejected three times in work.
headers() ->
    [{<<"x-death">>, array,
      [{table, [{<<"count">>, long, 3}, {<<"reason">>, longstr, <<"rejected">>},
                {<<"queue">>, longstr, <<"work">>}, {<<"time">>, timestamp, 1700000060},
                {<<"exchange">>, longstr, <<>>}, {<<"routing-keys">>, array, [{longstr, <<"work">>}]}]},
       {table, [{<<"count">>, long, 1}, {<<"reason">>, longstr, <<"expired">>},
                {<<"queue">>, longstr, <<"wait">>}, {<<"time">>, timestamp, 1700000000},
                {<<"exchange">>, longstr, <<"x">>},
                {<<"routing-keys">>, array, [{longstr, <<"k">>}, {longstr, <<"cc">>}]},
                {<<"original-expiration">>, longstr, <<"60000">>}]}]},
     {<<"x-first-death-queue">>, longstr, <<"wait">>},
     {<<"x-first-death-reason">>, longstr, <<"expired">>},
     {<<"x-first-death-exchange">>, longstr, <<"x">>},
     {<<"CC">>, array, [{longstr, <<"cc">>}]},
     {<<"mine">>, long, 1}].

plain() -> rabbit_delay_deaths:plain(headers()).

the_latest_death_comes_first_test() ->
    {[#{queue := <<"work">>, count := 3, time := 1700000060},
      #{queue := <<"wait">>, keys := [<<"k">>, <<"cc">>]}], false} =
        rabbit_delay_deaths:history(plain()),
    ?assertMatch(#{queue := <<"wait">>, reason := <<"expired">>, exchange := <<"x">>},
                 rabbit_delay_deaths:first(plain())).

sentences_test() ->
    ?assertEqual(
       [<<"It was published to exchange \"x\" with the keys \"k\", \"cc\".">>,
        <<"First it died in queue \"wait\": its own TTL of 60000 ms had passed, on "
          "2023-11-14T22:13:20Z.">>,
        <<"Then it died in queue \"work\": a consumer rejected it without giving it back, first on "
          "2023-11-14T22:14:20Z, 3 times.">>,
        <<"It died 4 times in all.">>,
        <<"Now it is in queue \"parked\".">>],
       rabbit_delay_deaths:explain(plain(), <<"parked">>)).

every_reason_has_a_sentence_test() ->
    [?assertNotEqual(nomatch, binary:match(Sentence, Part))
     || {Reason, Part} <- [{<<"maxlen">>, <<"full">>}, {<<"delivery_limit">>, <<"delivery limit">>},
                           {<<"expired">>, <<"expired">>}, {<<"new">>, <<"no broker writes">>}],
        [_, Sentence | _] <- [rabbit_delay_deaths:explain(
                                #{<<"x-death">> => [#{<<"queue">> => <<"q">>, <<"reason">> => Reason,
                                                      <<"exchange">> => <<>>}]}, undefined)]].

no_history_test() ->
    ?assertEqual({[], false}, rabbit_delay_deaths:history(#{})),
    ?assertMatch([<<"It has no x-death", _/binary>>], rabbit_delay_deaths:explain(#{}, undefined)).

%% What a terminal would obey is not printed.
control_characters_test() ->
    [Sentence | _] = rabbit_delay_deaths:explain(
                       #{<<"x-death">> => [#{<<"queue">> => <<"a\e[2J", 255>>,
                                             <<"reason">> => <<"rejected">>}]}, undefined),
    ?assertEqual(<<"First it died in queue \"a\\u001b[2J\x{c3}\x{bf}\": a consumer rejected it without giving it "
                   "back.">>, Sentence).

put_aside_by_a_delayed_exchange_test_() ->
    [?_assert(lists:member(
                <<"The delayed exchange \"retry\" put it aside: ", Text/binary, ".">>,
                rabbit_delay_deaths:explain(
                  (plain())#{<<"x-delay-death-reason">> => Reason,
                             <<"x-delay-death-exchange">> => <<"retry">>}, undefined)))
     || {Reason, Text} <-
            [{<<"attempts_used_up">>, <<"its retries were used up">>},
             {<<"not_retried">>, <<"the exchange does not retry what dies for that reason">>},
             {<<"queue_gone">>, <<"the queue that it was to come back to was gone">>},
             {<<"unroutable">>, <<"no queue was bound for it when it was due">>},
             {<<"overdue">>, <<"it was due too long ago">>},
             {<<"maxlen">>, <<"the exchange was full">>},
             {<<"odd">>, <<"for the reason \"odd\"">>}]].

redriven_without_its_history_test() ->
    ?assertEqual([{<<"x-redrive-count">>, long, 1}, {<<"mine">>, long, 1}],
                 rabbit_delay_deaths:redriven(headers(), plain(), false, false)),
    Kept = rabbit_delay_deaths:redriven(headers(), plain(), true, true),
    ?assertEqual([{<<"x-redrive-count">>, long, 1} | headers()], Kept).

%% What its author asked of other delayed messages is not done in the name of who redrives; its own key stays.
redriven_without_what_acts_on_others_test() ->
    Own = [{<<"x-delay">>, long, 1}, {<<"x-delay-key">>, longstr, <<"k">>}],
    Acting = [{<<"x-delay-on-duplicate">>, longstr, <<"replace">>}, {<<"x-delay-cancel">>, longstr, <<"k">>},
              {<<"x-delay-release">>, longstr, <<"k">>}],
    ?assertEqual([{<<"x-redrive-count">>, long, 1} | Own],
                 rabbit_delay_deaths:redriven(Own ++ Acting, rabbit_delay_deaths:plain(Own ++ Acting), true, true)).

redrives_are_counted_test() ->
    Once = rabbit_delay_deaths:redriven(undefined, #{}, false, false),
    Twice = rabbit_delay_deaths:redriven(Once, rabbit_delay_deaths:plain(Once), false, false),
    ?assertEqual([{<<"x-redrive-count">>, long, 2}], Twice),
    ?assertEqual(0, rabbit_delay_deaths:redrives(#{<<"x-redrive-count">> => <<"many">>})).

%% Whatever a client wrote, it is told in UTF-8 and counted for nothing.
any_header_test_() ->
    {timeout, 1200, ?_assert(proper:quickcheck(any_header(), [{numtests, 2000}, quiet]))}.

any_header() ->
    ?FORALL(Headers, forged_headers(),
            begin
                Told = rabbit_delay_deaths:explain(Headers, <<"q">>),
                {Deaths, Broken} = rabbit_delay_deaths:history(Headers),
                _ = rabbit_delay_deaths:first(Headers),
                is_boolean(Broken) andalso is_list(Deaths)
                    andalso lists:all(fun (Sentence) ->
                                              is_list(unicode:characters_to_list(Sentence))
                                      end, Told)
            end).

forged_headers() ->
    ?LET(Fields, list({oneof([<<"x-death">>, <<"x-first-death-queue">>, <<"x-redrive-count">>]),
                       forged_value()}),
         maps:from_list(Fields)).

forged_value() ->
    oneof([binary(), integer(), list(oneof([binary(), entry()])), entry()]).

entry() ->
    ?LET(Fields, list({oneof([<<"queue">>, <<"reason">>, <<"exchange">>, <<"count">>, <<"time">>,
                              <<"routing-keys">>, <<"original-expiration">>]),
                       oneof([binary(), integer(), 1 bsl 70, list(binary()), <<"rejected">>])}),
         maps:from_list(Fields)).
