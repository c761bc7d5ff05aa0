%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_text_tests).

-include_lib("eunit/include/eunit.hrl").

printable_test_() ->
    [?_assertEqual(<<"é€"/utf8>>, rabbit_delay_text:printable(Text))
     || Text <- [<<"é€"/utf8>>, [233, 8364], [<<"é"/utf8>>, <<"€"/utf8>>]],
        is_list(Text) orelse is_binary(Text)] ++
        [?_assertEqual(<<"aÿb"/utf8>>, rabbit_delay_text:printable(<<"a", 255, "b">>)),
         ?_assertEqual(<<"€: ÿ"/utf8>>, rabbit_delay_text:printable([8364, ": ", <<255>>])),
         ?_assertEqual(<<"€ÿx"/utf8>>, rabbit_delay_text:printable([<<"€"/utf8>>, [<<255>> | <<"x">>]]))].

escaped_test_() ->
    [?_assertEqual(<<"a\\u000ab">>, rabbit_delay_text:escaped(<<"a\nb">>)),
     ?_assertEqual(<<"\\u001b[2J\\u007f\\u0085\\u2028\\u202e">>,
                   rabbit_delay_text:escaped([27, "[2J", 127, 16#85, 16#2028, 16#202e])),
     ?_assertEqual(<<"é€ plain"/utf8>>, rabbit_delay_text:escaped(<<"é€ plain"/utf8>>))].

any_bytes_test() ->
    lists:foreach(
      fun (_) ->
              Bytes = crypto:strong_rand_bytes(rand:uniform(40)),
              Text = rabbit_delay_text:escaped(Bytes),
              ?assertEqual(Text, unicode:characters_to_binary(Text)),
              ?assertEqual(nomatch, re:run(Text, "[\\x00-\\x1f\\x7f]"))
      end, lists:seq(1, 2000)).

value_test_() ->
    [?_assertEqual(Text, rabbit_delay_text:value(Value))
     || {Value, Text} <-
            [{<<"5m">>, <<"\"5m\"">>}, {<<>>, <<"\"\"">>}, {<<"fünf"/utf8>>, <<"\"fünf\""/utf8>>},
             {<<255, "\n">>, <<"\"ÿ\\u000a\""/utf8>>}, {17, <<"17">>}, {1.5, <<"1.5">>}, {true, <<"true">>},
             {null, <<"null">>}, {undefined, <<"null">>}, {#{<<"ms">> => 5}, <<"an object">>},
             {[1, 2], <<"a list">>}, {[], <<"a list">>}, {[{signedint, 300}], <<"a list">>},
             {[{<<"ms">>, signedint, 5}], <<"a table">>}, {{2, 150}, <<"150e-2">>},
             {binary:copy(<<"€"/utf8>>, 100),
              <<"\"", (binary:copy(<<"€"/utf8>>, 76))/binary, "...">>},
             {binary:copy(<<"€"/utf8>>, 78), <<"\"", (binary:copy(<<"€"/utf8>>, 78))/binary, "\"">>},
             %% One letter to those who read it.
             {<<"a", (binary:copy(<<16#301/utf8>>, 1_000_000))/binary>>,
              <<"\"a", (binary:copy(<<16#301/utf8>>, 75))/binary, "...">>}]].

setting_test_() ->
    [?_assertEqual(<<"\"f\\u00fcnf\\u000a\"">>, rabbit_delay_text:setting(<<"fünf\n"/utf8>>)),
     ?_assertEqual(<<"\"\\ud83d\\ude00\"">>, rabbit_delay_text:setting(<<16#1f600/utf8>>)),
     ?_assertEqual(<<"1.5">>, rabbit_delay_text:setting(1.5))].

reply_is_cut_between_characters_test() ->
    ?assertEqual(<<"short">>, rabbit_delay_text:reply("short")),
    lists:foreach(
      fun ({Length, Char}) ->
              Whole = unicode:characters_to_binary(["a" | lists:duplicate(Length, Char)]),
              Reply = rabbit_delay_text:reply(Whole),
              ?assert(byte_size(Reply) =< 230),
              ?assertEqual(Reply, unicode:characters_to_binary(Reply)),
              case byte_size(Whole) =< 230 of
                  true -> ?assertEqual(Whole, Reply);
                  false -> ?assertMatch(nomatch, string:prefix(Whole, Reply)),
                           ?assertNotEqual(nomatch,
                                           string:prefix(Whole, binary:part(Reply, 0, byte_size(Reply) - 3)))
              end
      end, [{Length, Char} || Length <- [56, 57, 58, 76, 77, 113, 114, 115, 228, 229, 230, 1000],
                              Char <- [$b, 16#fc, 16#20ac, 16#1f600]]).

rs_test_() ->
    [?_assertEqual(Text, rabbit_delay_text:rs({resource, <<"/">>, Kind, Name}))
     || {Kind, Name, Text} <-
            [{queue, <<"a\nb">>, <<"queue 'a\\u000ab' in vhost '/'">>},
             {exchange, <<"a\nb">>, <<"exchange 'a\\u000ab' in vhost '/'">>},
             {exchange, <<>>, <<"exchange 'amq.default' in vhost '/'">>},
             {queue, <<>>, <<"queue '' in vhost '/'">>}]].

count_test_() ->
    [?_assertEqual(Text, rabbit_delay_text:count(N, "message"))
     || {N, Text} <- [{0, "0 messages"}, {1, "1 message"}, {2, "2 messages"}]].

%% Words where there are any, a term only where there is nothing else.
reason_test_() ->
    [?_assertEqual(Text, rabbit_delay_text:reason(Reason))
     || {Reason, Text} <-
            [{enospc, <<"no space left on device">>}, {{eio, erofs}, <<"read-only file system">>},
             {{eacces, eperm}, <<"not owner">>}, {timeout, <<"it did not answer in time">>},
             {noconnection, <<"it cannot be reached">>}, {eclosed, <<"it is closed">>},
             {not_an_errno, <<"not_an_errno">>}, {{odd, 1}, <<"{odd,1}">>},
             %% What a process ends with may have bytes of a message.
             {{odd, <<16#e9>>}, <<"{odd,<<\"é\">>}"/utf8>>}]].
