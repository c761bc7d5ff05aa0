%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_key_tests).

-include_lib("eunit/include/eunit.hrl").

-define(K, rabbit_delay_key).

header(Name, Value) -> {<<"x-delay-", Name/binary>>, longstr, Value}.

asked_test_() ->
    Key = header(<<"key">>, <<"a">>),
    On = fun (Word) -> header(<<"on-duplicate">>, Word) end,
    Cancel = header(<<"cancel">>, <<"b">>),
    Long = binary:copy(<<"k">>, 255),
    [?_assertEqual(Expected, ?K:asked(Headers, Id))
     || {Headers, Id, Expected} <-
            [{undefined, undefined, none},
             {[], <<"m">>, {keep, <<"m">>}},
             {[{<<"x">>, long, 1}], undefined, none},
             {[Key], undefined, {keep, <<"a">>}},
             {[Key], <<"m">>, {keep, <<"a">>}},
             {[Key, On(<<"keep">>)], undefined, {keep, <<"a">>}},
             {[Key, On(<<"drop">>)], undefined, {drop, <<"a">>}},
             {[On(<<"replace">>)], <<"m">>, {replace, <<"m">>}},
             {[Key, On(<<"replace">>), Cancel], <<"m">>, {cancel, <<"b">>}},
             {[Key, header(<<"release">>, <<"b">>)], <<"m">>, {release, <<"b">>}},
             {[header(<<"key">>, Long)], undefined, {keep, Long}},
             {[{<<"x-delay-key">>, binary, <<255, 0>>}], undefined, {keep, <<255, 0>>}},
             %% A null counts as absent.
             {[{<<"x-delay-key">>, void, undefined}], <<"m">>, {keep, <<"m">>}},
             {[Key, {<<"x-delay-on-duplicate">>, void, undefined}], <<"m">>, {keep, <<"a">>}},
             %% A message_id that cannot be a key is none.
             {[], <<>>, none},
             {[], <<Long/binary, "k">>, none}]].

invalid_test_() ->
    TooLong = binary:copy(<<"k">>, 256),
    [?_assertMatch({invalid, Header, Value, [_ | _]}, ?K:asked(Headers, undefined))
     || {Headers, Header, Value} <-
            [{[header(<<"key">>, TooLong)], <<"x-delay-key">>, {longstr, TooLong}},
             {[header(<<"key">>, <<>>)], <<"x-delay-key">>, {longstr, <<>>}},
             {[{<<"x-delay-key">>, long, 5}], <<"x-delay-key">>, {long, 5}},
             {[header(<<"cancel">>, <<>>)], <<"x-delay-cancel">>, {longstr, <<>>}},
             {[header(<<"cancel">>, TooLong)], <<"x-delay-cancel">>, {longstr, TooLong}},
             {[{<<"x-delay-cancel">>, void, undefined}], <<"x-delay-cancel">>, {void, undefined}},
             {[{<<"x-delay-cancel">>, bool, true}], <<"x-delay-cancel">>, {bool, true}},
             {[header(<<"release">>, <<>>)], <<"x-delay-release">>, {longstr, <<>>}},
             {[{<<"x-delay-release">>, void, undefined}], <<"x-delay-release">>, {void, undefined}},
             {[header(<<"cancel">>, <<"a">>), header(<<"release">>, <<"a">>)], <<"x-delay-release">>,
              {longstr, <<"a">>}},
             {[header(<<"on-duplicate">>, <<"replace">>)], <<"x-delay-on-duplicate">>,
              {longstr, <<"replace">>}},
             {[header(<<"key">>, <<"a">>), header(<<"on-duplicate">>, <<"Drop">>)],
              <<"x-delay-on-duplicate">>, {longstr, <<"Drop">>}},
             {[header(<<"key">>, <<"a">>), {<<"x-delay-on-duplicate">>, long, 1}],
              <<"x-delay-on-duplicate">>, {long, 1}}]].

%% What is in logs and stores depends on it: for ever the same.
hash_test() ->
    <<Expected:64/little, _/binary>> = crypto:hash(sha256, <<"salta">>),
    ?assertEqual(Expected, ?K:hash(<<"salt">>, <<"a">>)),
    ?assertEqual(16#4ee4e15e12ff29be, ?K:hash(<<0:128>>, <<"order 17">>)),
    ?assertNotEqual(?K:hash(<<"salt">>, <<"a">>), ?K:hash(<<"salt">>, <<"b">>)),
    ?assertNotEqual(?K:hash(<<"salt">>, <<"a">>), ?K:hash(<<"Salt">>, <<"a">>)).

%% Keys that resemble one another do not meet.
spread_test_() ->
    {timeout, 1200, fun spread/0}.

spread() ->
    N = 100000,
    Hashes = [?K:hash(<<"salt">>, integer_to_binary(I)) || I <- lists:seq(1, N)],
    ?assertEqual(N, length(lists:usort(Hashes))),
    ?assert(lists:all(fun (H) -> H > 0 andalso H < 1 bsl 64 end, Hashes)).
