%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_progress_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(P, rabbit_delay_progress).

line_test_() ->
    [?_assertEqual(Text, lists:flatten(?P:line(Done, Total, Ms)))
     || {Text, Done, Total, Ms} <- [{"0 of 0", 0, 0, 0}, {"0 of 5", 0, 5, 100},
                                    {"120000 of 1000000 (12 %), 24000/s, 36s left", 120000, 1000000, 5000},
                                    {"5 of 5 (100 %), 5000/s, 0s left", 5, 5, 0},
                                    {"7, 7/s", 7, 5, 1000}]].

%% In a pipe there is nothing that a terminal would act on; a bar is as wide whatever there is.
any_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL({Done, Total, Ms}, {non_neg_integer(), non_neg_integer(), non_neg_integer()},
                        begin
                            Line = lists:flatten(?P:line(Done, Total, Ms)),
                            Bar = lists:flatten(?P:bar(Done, Total, Ms)),
                            lists:all(fun (C) -> C >= 32 andalso C < 127 end, Bar)
                                andalso lists:nthtail(33, Bar) =:= Line
                                andalso lists:nth(32, Bar) =:= $]
                        end), [{numtests, 300}, quiet]))}.

%% What programs read has no such lines in it.
silent_test_() ->
    [?_assertEqual(none, ?P:step(1, ?P:total(5, ?P:new(5, Options))))
     || Options <- [#{quiet => true}, #{silent => true}, #{formatter => <<"json">>},
                    #{formatter => <<"csv">>}]].
