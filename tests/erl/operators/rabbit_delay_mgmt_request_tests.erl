%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_mgmt_request_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(R, rabbit_delay_mgmt_request).

change_test_() ->
    {ok, All} = rabbit_delay_filter:parse(#{}, 0),
    {ok, Keyed} = rabbit_delay_filter:parse(#{key => <<"k">>}, 0),
    [?_assertEqual({ok, Operation, Which, Options}, ?R:change(Resource, Json))
     || {Operation, Which, Options, Resource, Json} <-
            [{cancel, {filter, All}, #{dry_run => false}, cancel, #{<<"all">> => true}},
             {release, {filter, Keyed}, #{dry_run => true}, release,
              #{<<"filter">> => #{<<"key">> => <<"k">>}, <<"dry_run">> => true}},
             {cancel, {ids, [2, 1]}, #{dry_run => false}, cancel, #{<<"ids">> => [<<"1">>, <<"2">>]}},
             {{reschedule_by, -3600000}, {filter, All}, #{dry_run => false, cursor => <<"c">>}, reschedule,
              #{<<"all">> => true, <<"by">> => <<"-1h">>, <<"cursor">> => <<"c">>}},
             {{reschedule_to, 17}, {filter, All}, #{dry_run => false}, reschedule,
              #{<<"all">> => true, <<"to">> => 17, <<"cursor">> => null}}]].

%% Which messages are meant must be said, once; and nothing else may be.
refused_test_() ->
    [{lists:flatten(io_lib:format("~0p", [Json])),
      ?_assertMatch({error, <<_/binary>>}, ?R:change(Resource, Json))}
     || {Resource, Json} <-
            [{cancel, #{}}, {cancel, #{<<"all">> => false}}, {cancel, #{<<"all">> => 1}},
             {cancel, #{<<"filter">> => #{}}}, {cancel, #{<<"filter">> => [<<"key">>]}},
             {cancel, #{<<"filter">> => #{<<"keys">> => <<"k">>}}},
             {cancel, #{<<"all">> => true, <<"ids">> => [<<"1">>]}},
             {cancel, #{<<"all">> => true, <<"filter">> => #{<<"key">> => <<"k">>}}},
             {cancel, #{<<"ids">> => []}}, {cancel, #{<<"ids">> => [1]}},
             {cancel, #{<<"ids">> => [<<"x">>]}}, {cancel, #{<<"ids">> => <<"1">>}},
             {cancel, #{<<"ids">> => lists:duplicate(1001, <<"1">>)}},
             {cancel, #{<<"ids">> => [<<"1">>], <<"dry_run">> => true}},
             {cancel, #{<<"ids">> => [<<"1">>], <<"cursor">> => null}},
             {cancel, #{<<"all">> => true, <<"to">> => 1}}, {cancel, #{<<"all">> => true, <<"dry-run">> => true}},
             {cancel, #{<<"all">> => true, <<"dry_run">> => <<"true">>}},
             {cancel, #{<<"all">> => true, <<"cursor">> => 1}},
             {reschedule, #{<<"all">> => true}},
             {reschedule, #{<<"all">> => true, <<"to">> => 1, <<"by">> => 1}},
             {reschedule, #{<<"all">> => true, <<"by">> => <<"soon">>}},
             {reschedule, #{<<"all">> => true, <<"to">> => -1}}]].

%% Of any JSON: what is taken names messages, and has no member that is not known.
any_json_test_() ->
    Names = [<<"ids">>, <<"filter">>, <<"all">>, <<"dry_run">>, <<"cursor">>, <<"to">>, <<"by">>, <<"other">>],
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL({Resource, Fields}, {oneof([cancel, release, reschedule]),
                                             list({oneof(Names), json(2)})},
                        begin
                            Json = maps:from_list(Fields),
                            case ?R:change(Resource, Json) of
                                {ok, _, Which, _} ->
                                    1 =:= map_size(maps:with([<<"ids">>, <<"filter">>, <<"all">>], Json))
                                        andalso not is_map_key(<<"other">>, Json)
                                        andalso case Which of
                                                    {ids, [_ | _]} -> true;
                                                    {filter, F} ->
                                                        rabbit_delay_filter:is_empty(F)
                                                            =:= is_map_key(<<"all">>, Json)
                                                end;
                                {error, <<_/binary>>} ->
                                    true
                            end
                        end), [{numtests, 3000}, quiet]))}.

json(0) -> oneof([null, true, false, 1, <<"1">>, <<"k">>, <<"+1h">>]);
json(Depth) -> oneof([json(0), list(json(Depth - 1)),
                      ?LET({Key, Value}, {oneof([<<"key">>, <<"due_to">>, <<"header">>]), json(Depth - 1)},
                           #{Key => Value})]).

list_test_() ->
    [?_assertMatch({ok, _, #{limit := 100, content := true}}, ?R:list(#{})),
     ?_assertMatch({ok, _, #{limit := 7, cursor := <<"c">>, body := 50000}},
                   ?R:list(#{limit => <<"7">>, cursor => <<"c">>, body => <<"true">>})),
     ?_assertNot(is_map_key(body, element(3, ?R:list(#{body_bytes => <<"5">>})))),
     ?_assertMatch({ok, 65536, #{body := 5}},
                   ?R:message(<<"65536">>, #{body => <<"true">>, body_bytes => <<"5">>}))
     | [?_assertMatch({error, <<_/binary>>}, ?R:list(Words))
        || Words <- [#{limit => <<"0">>}, #{limit => <<"1001">>}, #{limit => <<"01">>}, #{body => <<"1">>},
                     #{body_bytes => <<"-1">>}, #{body_bytes => <<"16777217">>}, #{due_to => <<"soon">>},
                     #{header => <<"x">>}]]]
        ++ [?_assertMatch({error, <<_/binary>>}, ?R:message(Id, #{})) || Id <- [<<>>, <<".">>, <<"-1">>]].
