%% SPDX-License-Identifier: MPL-2.0

-module(rabbit_delay_dead_letter_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").

-define(D, rabbit_delay_dead_letter).

message() -> message(#{}).

message(Changed) ->
    maps:merge(#{exchange => <<"x">>, key => <<"k">>, properties => [{content_type, <<"a/b">>}],
                 table => [{<<"a">>, long, 1}, {<<"b">>, longstr, <<"c">>}], headers => #{}, payload => <<"p">>},
               Changed).

%% What a broker adds when it delivers makes no other message of it.
id_of_the_same_test_() ->
    Id = ?D:id(message()),
    [?_assertMatch({match, _}, re:run(Id, "^[0-9a-f]{32}$"))]
        ++ [?_assertEqual(Id, ?D:id(message(#{table => Table, position => 7})))
            || Table <- [[{<<"b">>, longstr, <<"c">>}, {<<"a">>, long, 1}],
                         [{<<"x-delivery-count">>, long, 3}, {<<"a">>, long, 1}, {<<"b">>, longstr, <<"c">>}],
                         [{<<"a">>, long, 1}, {<<"x-acquired-count">>, long, 3}, {<<"b">>, longstr, <<"c">>}],
                         [{<<"a">>, long, 1}, {<<"b">>, longstr, <<"c">>},
                          {<<"x-opt-rabbitmq-sent-time">>, long, 5}]]]
        ++ [?_assertEqual(?D:id(message(#{table => undefined})), ?D:id(message(#{table => []})))].

id_of_another_test() ->
    Others = [message(), message(#{exchange => <<"y">>}), message(#{key => <<>>}), message(#{payload => <<>>}),
              message(#{properties => []}), message(#{table => undefined}),
              message(#{table => [{<<"a">>, signedint, 1}, {<<"b">>, longstr, <<"c">>}]}),
              message(#{table => [{<<"a">>, long, 1}]}),
              %% What belongs to which is not to be shifted.
              message(#{exchange => <<"xk">>, key => <<>>}),
              message(#{table => [{<<"a">>, long, 1}, {<<"bc">>, longstr, <<>>}]})],
    ?assertEqual(length(Others), length(lists:usort([?D:id(Message) || Message <- Others]))).

edit(Words) -> {ok, Edit} = ?D:edit(Words), Edit.

edited_test() ->
    Properties = #'P_basic'{headers = [{<<"n">>, signedint, 1}, {<<"t">>, timestamp, 5}], priority = 3,
                            content_type = <<"a/b">>, user_id = <<"them">>},
    ?assertEqual({Properties#'P_basic'{user_id = undefined}, <<"p">>},
                 ?D:edited(edit(#{}), <<"me">>, {Properties, <<"p">>})),
    ?assertEqual({Properties, <<"p">>}, ?D:edited(edit(#{}), <<"them">>, {Properties, <<"p">>})),
    Edit = edit(#{payload => <<"/w==">>, payload_encoding => <<"base64">>,
                  properties => #{<<"priority">> => null, <<"type">> => <<"y">>},
                  headers => #{<<"n">> => null, <<"m">> => #{<<"l">> => [1.5, true, null]}}}),
    ?assertEqual({#'P_basic'{headers = [{<<"t">>, timestamp, 5},
                                        {<<"m">>, table, [{<<"l">>, array, [{double, 1.5}, {bool, true},
                                                                            {void, undefined}]}]}],
                             content_type = <<"a/b">>, type = <<"y">>}, <<255>>},
                 ?D:edited(Edit, <<"me">>, {Properties, <<"p">>})),
    ?assertEqual({#'P_basic'{headers = []}, <<>>}, ?D:edited(edit(#{}), <<"me">>, {#'P_basic'{}, <<>>})).

%% What is taken off is as known as what is set.
edit_refused_test_() ->
    [?_assertMatch({error, <<_/binary>>}, ?D:edit(Words))
     || Words <- [#{properties => #{<<"nonsense">> => null}}, #{properties => #{<<"x\nforged">> => null}},
                  #{properties => #{<<"headers">> => null}}, #{properties => #{<<"user_id">> => null}},
                  #{headers => #{<<"CC">> => null}}, #{headers => #{binary:copy(<<"h">>, 256) => null}},
                  #{headers => headers(1001)}]].

headers(N) -> maps:from_list([{iolist_to_binary(io_lib:format("h~4..0b\n", [I])), I} || I <- lists:seq(1, N)]).

edit_text_test_() ->
    [?_assertEqual(Text, ?D:edit_text(edit(Words)))
     || {Text, Words} <- [{<<"nothing">>, #{}}, {<<"body">>, #{payload => <<>>}},
                          {<<"property type, header h">>, #{properties => #{<<"type">> => null},
                                                            headers => #{<<"h">> => 1}}}]]
        ++ [?_assertEqual(iolist_to_binary([[["header h", $0, $0, integer_to_list(N div 10), integer_to_list(N rem 10),
                                              "\\u000a, "] || N <- lists:seq(1, 20)], "..."]),
                          ?D:edit_text(edit(#{headers => headers(1000)})))].
