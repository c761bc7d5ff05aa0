%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_waiting_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(LIMITS, {10, 1000}).

waiting_test_() ->
    [{timeout, 120, fun as_a_list_would/0},
     {timeout, 120, fun many_files_are_read_and_deleted/0},
     {timeout, 120, fun what_is_cut_off_is_counted/0}].

directory() ->
    filename:join([os:getenv("TMPDIR", "/tmp"),
                   "rabbit_delay_waiting_tests-" ++ os:getpid() ++ "-" ++
                       integer_to_list(erlang:unique_integer([positive]))]).

%% Whatever comes and goes, and whether or not files can be written at the time: it comes out in
%% order, once, and what does not come out was said to be lost.
as_a_list_would() ->
    Dir = directory(),
    ?assert(proper:quickcheck(
              ?FORALL(Steps, list(step()),
                      begin
                          allow(Dir),
                          {W, Model} = lists:foldl(fun (Step, Acc) -> step(Step, Dir, Acc) end,
                                                   {rabbit_delay_waiting:new(Dir, ?LIMITS), []},
                                                   number(Steps)),
                          allow(Dir),
                          All = rabbit_delay_waiting:all(W),
                          {Rest, Last} = drain(written(W), []),
                          Overflows = rabbit_delay_waiting:overflowing(Last),
                          Files = filelib:wildcard("*", Dir),
                          ok = rabbit_delay_waiting:close(Last),
                          ?WHENFAIL(?debugFmt("~p~n~p~n~p~n~p", [Steps, Model, Rest, Files]),
                                    Rest =:= Model andalso All =:= length(Model) andalso not Overflows andalso Files =:= []
                                    andalso not filelib:is_file(Dir))
                      end), [{numtests, 1000}, {to_file, user}])).

step() ->
    frequency([{6, {in, range(0, 400)}}, {6, {overflow, range(0, 400)}}, {4, out}, {1, in_r},
               {1, filter}, {3, refill}, {1, refuse}, {1, allow}]).

number(Steps) -> lists:zip(lists:seq(1, length(Steps)), Steps).

%% As its user does it: nothing overtakes what is in files.
step({N, {in, Size}}, _, {W, Model}) ->
    case rabbit_delay_waiting:overflowing(W) of
        true -> {W, Model};
        false -> {rabbit_delay_waiting:in({item, N}, Size, W), Model ++ [{item, N}]}
    end;
step({N, {overflow, Size}}, _, {W, Model}) ->
    Item = {item, N, binary:copy(<<"x">>, Size)},
    case rabbit_delay_waiting:write(rabbit_delay_waiting:overflow(Item, Size, W)) of
        {ok, Bytes, W1} when Bytes > Size -> {W1, Model ++ [Item]};
        {error, _, [Item], W1} -> {W1, Model}
    end;
step({_, out}, _, {W, Model}) ->
    case {rabbit_delay_waiting:out(W), Model} of
        {{Item, _, W1}, [Item | Rest]} -> {W1, Rest};
        {empty, _} -> {W, Model}
    end;
step({_, in_r}, _, {W, Model}) ->
    case rabbit_delay_waiting:out(W) of
        {Item, Size, W1} -> {rabbit_delay_waiting:in_r(Item, Size, W1), Model};
        empty -> {W, Model}
    end;
step({_, filter}, _, {W, Model}) ->
    Kept = lists:nthtail(rabbit_delay_waiting:count(W), Model),
    {rabbit_delay_waiting:filter(fun is_kept/1, W),
     [Item || Item <- lists:sublist(Model, rabbit_delay_waiting:count(W)), is_kept(Item)] ++ Kept};
step({_, refill}, _, {W, Model}) ->
    {ok, W1} = rabbit_delay_waiting:refill(W),
    {W1, Model};
step({_, refuse}, Dir, {W, Model}) ->
    %% Files that are open can be written to; a new one cannot be made.
    case filelib:is_file(Dir) of
        true -> ok;
        false -> ok = file:write_file(Dir, <<>>)
    end,
    {W, Model};
step({_, allow}, Dir, Acc) ->
    allow(Dir),
    Acc.

is_kept(Item) -> element(2, Item) rem 3 =/= 0.

allow(Dir) ->
    _ = filelib:is_regular(Dir) andalso file:delete(Dir),
    ok.

written(W) ->
    {ok, 0, W1} = rabbit_delay_waiting:write(W),
    W1.

drain(W0, Acc) ->
    {ok, W} = rabbit_delay_waiting:refill(W0),
    case rabbit_delay_waiting:out(W) of
        {Item, _, W1} -> drain(W1, [Item | Acc]);
        empty -> {lists:reverse(Acc), W}
    end.

many_files_are_read_and_deleted() ->
    Dir = directory(),
    Item = fun (N) -> {N, binary:copy(<<N:32>>, 25000)} end,
    W = lists:foldl(fun (N, Acc) ->
                            {ok, _, Acc1} = rabbit_delay_waiting:write(
                                              rabbit_delay_waiting:overflow(Item(N), 100000, Acc)),
                            Acc1
                    end, rabbit_delay_waiting:new(Dir, {100, 1000000}), lists:seq(1, 600)),
    ?assert(length(filelib:wildcard("*", Dir)) > 2),
    {Items, Last} = drain(W, []),
    ?assertEqual([Item(N) || N <- lists:seq(1, 600)], Items),
    ?assertEqual([], filelib:wildcard("*", Dir)),
    ok = rabbit_delay_waiting:close(Last).

what_is_cut_off_is_counted() ->
    Dir = directory(),
    {ok, _, W} = rabbit_delay_waiting:write(
                   lists:foldl(fun (N, Acc) -> rabbit_delay_waiting:overflow(N, 1, Acc) end,
                               rabbit_delay_waiting:new(Dir, ?LIMITS), lists:seq(1, 100))),
    [File] = filelib:wildcard(filename:join(Dir, "*")),
    {ok, Fd} = file:open(File, [read, write, raw]),
    {ok, _} = file:position(Fd, filelib:file_size(File) div 2),
    ok = file:truncate(Fd),
    ok = file:close(Fd),
    {Items, Lost, Last} = drain_damaged(W, []),
    ?assertEqual(lists:seq(1, length(Items)), Items),
    ?assertEqual(100, length(Items) + Lost),
    ?assertNot(rabbit_delay_waiting:overflowing(Last)),
    ok = rabbit_delay_waiting:close(Last).

drain_damaged(W0, Acc) ->
    case rabbit_delay_waiting:out(W0) of
        {Item, _, W} ->
            drain_damaged(W, [Item | Acc]);
        empty ->
            case rabbit_delay_waiting:refill(W0) of
                {ok, W} -> drain_damaged(W, Acc);
                {lost, Lost, W} -> {lists:reverse(Acc), Lost, W}
            end
    end.
