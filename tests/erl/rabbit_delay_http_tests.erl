%% SPDX-License-Identifier: MPL-2.0

%% What of a request is taken: only what is known, once, and of its type.
-module(rabbit_delay_http_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(H, rabbit_delay_http).

known_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL(Given, list({oneof([<<"limit">>, <<"key">>, <<"body">>, <<"keys">>, <<>>, binary()]),
                                     range(0, 9)}),
                        begin
                            Names = [Name || {Name, _} <- Given],
                            Good = Names -- [<<"limit">>, <<"key">>] =:= [],
                            case ?H:known(Given, [limit, key]) of
                                {ok, Known} ->
                                    Good andalso lists:sort(Given)
                                        =:= lists:sort([{atom_to_binary(Name), Value}
                                                        || {Name, Value} <- maps:to_list(Known)]);
                                {error, <<_/binary>>} ->
                                    not Good
                            end
                        end), [{numtests, 2000}, quiet]))}.

integer_test_() ->
    [?_assertEqual({ok, 5}, ?H:integer(limit, #{}, 5, 1, 9)),
     ?_assertEqual({ok, 1}, ?H:integer(limit, #{limit => <<"1">>}, 5, 1, 9)),
     ?_assertEqual({ok, 9}, ?H:integer(limit, #{limit => <<"9">>}, 5, 1, 9))
     | [?_assertEqual({error, <<"limit: not a number from 1 to 9">>}, ?H:integer(limit, #{limit => W}, 5, 1, 9))
        || W <- [<<"0">>, <<"10">>, <<"05">>, <<"+5">>, <<>>, <<"5.0">>, <<255>>]]].

boolean_test_() ->
    [[?_assertEqual({ok, Value}, ?H:boolean(b, Words))
      || {Value, Words} <- [{false, #{}}, {true, #{b => <<"true">>}}, {false, #{b => <<"false">>}}]],
     [?_assertEqual({error, <<"b: neither true nor false">>}, ?H:boolean(b, #{b => W}))
      || W <- [<<>>, <<"TRUE">>, <<"1">>, true]],
     [?_assertEqual({ok, Value}, ?H:json_boolean(<<"b">>, Json))
      || {Value, Json} <- [{false, #{}}, {true, #{<<"b">> => true}}, {false, #{<<"b">> => false}}]],
     [?_assertEqual({error, <<"b: neither true nor false">>}, ?H:json_boolean(<<"b">>, #{<<"b">> => W}))
      || W <- [<<"true">>, 1, null, [], #{}]]].

%% The first error is the answer; without one all values are there.
all_test_() ->
    [?_assertEqual(#{a => 1, b => 2}, ?H:all([{a, {ok, 1}}, {b, {ok, 2}}], fun (Values) -> Values end)),
     ?_assertEqual({error, <<"first">>}, ?H:all([{a, {ok, 1}}, {b, {error, <<"first">>}},
                                                 {c, {error, <<"second">>}}], fun (_) -> error(called) end))].
