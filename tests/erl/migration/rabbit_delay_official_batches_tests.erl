%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_official_batches_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(B, rabbit_delay_official_batches).
-define(BATCH_BYTES, 1048576).

%% All, in their order; each batch but the last has its bytes, and had not without its last message.
batches_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL(Sizes, list(size_()),
                        begin
                            Messages = numbered(Sizes),
                            Batches = ?B:batches(Messages),
                            Size = fun (Batch) -> lists:sum([S || {S, _} <- Batch]) end,
                            Sized = [[{S, N} || N <- Batch, {S, M} <- [lists:nth(N, Messages)], M =:= N]
                                     || Batch <- Batches],
                            lists:append(Sized) =:= Messages
                                andalso lists:all(fun (Batch) ->
                                                          Batch =/= []
                                                              andalso Size(lists:droplast(Batch)) < ?BATCH_BYTES
                                                  end, Sized)
                                andalso (Sized =:= [] orelse
                                         lists:all(fun (Batch) -> Size(Batch) >= ?BATCH_BYTES end,
                                                   lists:droplast(Sized)))
                        end), [{numtests, 500}, quiet]))}.

%% The most that fit without leaving one out that comes before another.
fit_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL({Sizes, Messages, Bytes}, {list(range(1, 10)), room(20), room(60)},
                        begin
                            All = numbered(Sizes),
                            {Fitting, Over} = ?B:fit(All, Messages, Bytes),
                            Fits = fun (L) -> length(L) =< Messages
                                                  andalso lists:sum([S || {S, _} <- L]) =< Bytes
                                   end,
                            Fitting ++ Over =:= All andalso Fits(Fitting)
                                andalso (Over =:= [] orelse not Fits(Fitting ++ [hd(Over)]))
                        end), [{numtests, 1000}, quiet]))}.

%% Atoms are more than every number.
room(Max) -> oneof([infinity, range(0, Max)]).
size_() -> oneof([range(1, 100), range(100000, 600000), 1048575, 1048576, 1048577, 5000000]).
numbered(Sizes) -> lists:zip(Sizes, lists:seq(1, length(Sizes))).
