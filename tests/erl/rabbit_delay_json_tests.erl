%% SPDX-License-Identifier: MPL-2.0

%% What of a request's body is taken for JSON.
-module(rabbit_delay_json_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(J, rabbit_delay_json).
-define(NO_JSON, {error, <<"the request's body is not JSON">>}).

%% Against a model: what names the objects of a JSON text have, however they are written.
a_name_that_is_there_twice_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL({Value, Ends}, {json(3), ends()},
                        begin
                            {Text, Twice} = written(Value, Ends),
                            Json = iolist_to_binary(["{\"\":", Text, "}", Ends]),
                            {ok, Decoded} = rabbit_json:try_decode(Json),
                            case ?J:object(Json) of
                                {ok, Object} -> Twice =:= [] andalso Object =:= Decoded;
                                {error, Why} -> lists:member(Why, [twice(Name) || Name <- Twice])
                            end
                        end), [{numtests, 3000}, quiet]))}.

twice(Name) -> <<(rabbit_delay_text:value(Name))/binary, " is there twice">>.

%% A decoder may take them: some do.
what_is_no_json_test_() ->
    [?_assertEqual({Text, ?NO_JSON}, {Text, ?J:object(Text)})
     || Text <- [<<>>, <<" ">>, <<"{">>, <<"{\"a">>, <<"{\"a\\">>, <<"{\"a\"">>, <<"{\"a\":">>, <<"{\"a\":1">>,
                 <<"{\"a\":1,">>,
                 <<"{\"a\":1,}">>, <<"{\"a\":[1,]}">>, <<"{\"a\":[,1]}">>, <<"{\"a\":[1 2]}">>, <<"{\"a\" 1}">>,
                 <<"{a:1}">>,
                 <<"{'a':1}">>, <<"{\"a\":'1'}">>, <<"{,}">>, <<"{}{}">>, <<"{} x">>, <<"{\"a\":1 /* { */}">>,
                 <<"// a\n{}">>, <<"{\"a\":\"\n\"}">>, <<"{\"a\":\"\\q\"}">>, <<"{\"a\":\"\\u12g4\"}">>,
                 <<"{\"a\":\"", 255, "\"}">>, <<"{\"a\":\"", 16#ed, 16#a0, 16#80, "\"}">>, <<16#feff/utf8, "{}">>,
                 <<"{}", 0>>, <<"{\"a\":TRUE}">>, <<"{\"a\":NaN}">>, <<"{\"a\":Infinity}">>, <<"{\"a\":nul}">>]
         ++ [<<"{\"a\":", Number/binary, "}">>
             || Number <- [<<"01">>, <<"-">>, <<"+1">>, <<".5">>, <<"1.">>, <<"1.e5">>, <<"1e">>, <<"1e+">>,
                 <<"0x10">>,
                           <<"--1">>, <<"-01">>, <<"1_0">>, <<"1e400">>, <<"-1e400">>, <<"1e99999999999">>]]].

what_is_json_test_() ->
    [?_assertEqual({ok, Object}, ?J:object(Text))
     || {Text, Object} <-
            [{<<"{}">>, #{}}, {<<"\t\r\n {\r\n}\r\n">>, #{}}, {<<"{\"a\"\r\n:\r\n1\r\n,\r\n\"b\":[]}">>,
                #{<<"a">> => 1, <<"b">> => []}},
             {<<"{\"a\":[-0,1e3,-1.5E-3,0.25]}">>, #{<<"a">> => [0, 1.0e3, -1.5e-3, 0.25]}},
             {<<"{\"a\":{\"a\":{\"a\":null}}}">>, #{<<"a">> => #{<<"a">> => #{<<"a">> => null}}}},
             {<<"{\"\\u00e9\\n\\/\":\"\\ud83d\\ude00\"}">>, #{<<"é\n/"/utf8>> => <<16#1f600/utf8>>}}]].

what_is_no_object_test_() ->
    [?_assertEqual({error, <<"the request's body is not a JSON object">>}, ?J:object(Text))
     || Text <- [<<"[]">>, <<"1">>, <<"null">>, <<"\"a\"">>, <<"[{}]">>]].

%% Whatever ends the line before the colon.
a_name_twice_however_it_is_written_test_() ->
    [?_assertEqual({error, <<"\"a\" is there twice">>}, ?J:object(Text))
     || Text <- [<<"{\"a\":1,\"a\":2}">>, <<"{\"a\"\r\n:1,\"a\":2}">>, <<"{\"a\":1,\"a\"\t\r\n :2}">>,
                 <<"{\"\\u0061\":1,\"a\":2}">>,
                 <<"{\"b\":[{\"a\":1,\"c\":{\"a\":1},\"a\":2}]}">>]].

%% Neither is read for minutes.
long_numbers_and_deep_ones_are_refused_test_() ->
    Digits = fun (N) -> <<"{\"a\":", (binary:copy(<<"7">>, N))/binary, "}">> end,
    Deep = fun (N) -> <<"{\"a\":", (binary:copy(<<"[">>, N - 1))/binary, (binary:copy(<<"]">>, N - 1))/binary,
        "}">> end,
    [?_assertMatch({ok, _}, ?J:object(Digits(1000))),
     [?_assertEqual({error, <<"a number in the request's body has more than 1000 characters">>}, ?J:object(Text))
      || Text <- [Digits(1001), Digits(10_000_000), <<"{\"a\":1e", (binary:copy(<<"0">>, 1000))/binary, "}">>]],
     ?_assertMatch({ok, _}, ?J:object(Deep(100))),
     [?_assertEqual({error, <<"the request's body has more than 100 arrays and objects in each other">>},
         ?J:object(Text))
      || Text <- [Deep(101), binary:copy(<<"[">>, 10_000_000), binary:copy(<<"{\"a\":">>, 1_000_000)]]].

json(0) -> oneof([{literal, oneof(["null", "true", "-1.5e3", "0"])}, {string, name()}]);
json(Depth) ->
    oneof([json(0), {array, short(json(Depth - 1))}, {object, short({name(), json(Depth - 1)})}]).

short(Of) -> ?LET(N, range(0, 3), vector(N, Of)).

%% Between a name and its colon, and before commas.
ends() -> list(oneof(["\r\n", "\n", " ", "\t"])).

%% Each character as it is or escaped.
name() -> ?LET(N, range(0, 2), vector(N, oneof([{oneof([$a, $b, ${, $:, $]]), boolean()}, {oneof([$", $\\]), true}]))).

%% As JSON, and the names that an object in it has twice.
written({literal, Text}, _) ->
    {Text, []};
written({string, Name}, _) ->
    {quoted(Name), []};
written({array, Values}, Ends) ->
    {Texts, Twice} = lists:unzip([written(Value, Ends) || Value <- Values]),
    {[" [ ", lists:join([Ends, ", "], Texts), " ] "], lists:append(Twice)};
written({object, Members}, Ends) ->
    {Texts, Twice} = lists:unzip([written(Value, Ends) || {_, Value} <- Members]),
    Names = [<< <<Char>> || {Char, _} <- Name >> || {Name, _} <- Members],
    {["{", lists:join(",", [[quoted(Name), Ends, ": ", Text] || {{Name, _}, Text} <- lists:zip(Members, Texts)]), "}"],
     (Names -- lists:usort(Names)) ++ lists:append(Twice)}.

quoted(Name) ->
    [$", [case Escaped of
              true when Char =:= $"; Char =:= $\\ -> [$\\, Char];
              true -> io_lib:format("\\u~4.16.0b", [Char]);
              false -> Char
          end || {Char, Escaped} <- Name], $"].
