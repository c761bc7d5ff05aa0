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

%% Against a model: what names the objects of a JSON text have, however they are written.
a_name_that_is_there_twice_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL(Value, json(3),
                        begin
                            {Text, Twice} = written(Value),
                            Json = iolist_to_binary(Text),
                            {ok, _} = rabbit_json:try_decode(Json),
                            case ?H:twice(Json) of
                                none -> Twice =:= [];
                                Name -> lists:member(Name, Twice)
                            end
                        end), [{numtests, 3000}, quiet]))}.

%% A decoder may take them.
what_is_no_json_has_an_end_test_() ->
    [?_assertEqual(malformed, ?H:twice(Text))
     || Text <- [<<"{\"a\": 1 /* { */}">>, <<"{\"a\": 1 /* \" */}">>, <<"{'a': 1, \"a\": 2}">>, <<"{\"a">>, <<"{\"a\\">>]].

json(0) -> oneof([{literal, oneof(["null", "true", "-1.5e3", "0"])}, {string, name()}]);
json(Depth) ->
    oneof([json(0), {array, short(json(Depth - 1))}, {object, short({name(), json(Depth - 1)})}]).

short(Of) -> ?LET(N, range(0, 3), vector(N, Of)).

%% Each character as it is or escaped.
name() -> ?LET(N, range(0, 2), vector(N, oneof([{oneof([$a, $b, ${, $:, $]]), boolean()}, {oneof([$", $\\]), true}]))).

%% As JSON, and the names that an object in it has twice.
written({literal, Text}) ->
    {Text, []};
written({string, Name}) ->
    {quoted(Name), []};
written({array, Values}) ->
    {Texts, Twice} = lists:unzip([written(Value) || Value <- Values]),
    {[" [ ", lists:join(" , ", Texts), " ] "], lists:append(Twice)};
written({object, Members}) ->
    {Texts, Twice} = lists:unzip([written(Value) || {_, Value} <- Members]),
    Names = [<< <<Char>> || {Char, _} <- Name >> || {Name, _} <- Members],
    {["{", lists:join(",", [[quoted(Name), " : ", Text] || {{Name, _}, Text} <- lists:zip(Members, Texts)]), "}"],
     (Names -- lists:usort(Names)) ++ lists:append(Twice)}.

quoted(Name) ->
    [$", [case Escaped of
              true when Char =:= $"; Char =:= $\\ -> [$\\, Char];
              true -> io_lib:format("\\u~4.16.0b", [Char]);
              false -> Char
          end || {Char, Escaped} <- Name], $"].
