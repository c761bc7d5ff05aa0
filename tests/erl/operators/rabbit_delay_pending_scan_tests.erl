%% SPDX-License-Identifier: MPL-2.0

%% Going over a real store, and reading ahead in it, on RabbitMQ 3.10.
-module(rabbit_delay_pending_scan_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").

-define(S, rabbit_delay_store).
-define(P, rabbit_delay_pending_scan).
-define(X, {resource, <<"/">>, exchange, <<"x">>}).
-define(MAX, {16#ffffffffffff, 16#ffffffffffffffff}).

%% In batches of any size and either direction it comes over each message once, in order.
places_test_() ->
    {timeout, 1200,
     ?_assert(proper:quickcheck(
                ?FORALL({Dues, Batch}, {non_empty(list(range(1, 40))), range(1, 10)},
                        with_store(
                          [{Due, <<"body">>} || Due <- Dues],
                          fun (Store) ->
                                  Scan = (scan(Store, true))#{batch := Batch},
                                  All = lists:sort([{Due, (1 bsl 16) + I}
                                                    || {I, Due} <- lists:zip(lists:seq(0, length(Dues) - 1),
                                                                             Dues)]),
                                  All =:= over({0, 0}, forward, Scan)
                                      andalso lists:reverse(All) =:= over(?MAX, backward, Scan)
                                      %% and so over those of a key, which it has at hand
                                      andalso All =:= over({0, 0}, forward, Scan#{of_key := places(Scan)})
                                      andalso lists:reverse(All)
                                      =:= over(?MAX, backward, Scan#{of_key := places(Scan)})
                          end)), [{numtests, 200}, quiet]))}.

over(Position, Direction, #{batch := Batch} = Scan) ->
    case ?P:places(Position, Direction, Scan) of
        {ok, []} ->
            [];
        {ok, Places} ->
            ?assert(length(Places) =< Batch),
            {Due, Id, _} = lists:last(Places),
            [{D, I} || {D, I, _} <- Places] ++ over({Due, Id}, Direction, Scan)
    end.

places(#{store := Store}) ->
    {ok, Places} = ?S:places(Store, {0, 0}, forward, 65535),
    Places.

%% What is read ahead is what is read one by one: messages, those that cannot be read, those that have
%% gone since; more than are read in one go, and larger than is read in one go.
read_ahead_test_() ->
    {timeout, 600, fun () -> true = with_store(bodies(), fun as_one_by_one/1) end}.

as_one_by_one(Store) ->
    Scan = scan(Store, true),
    Places = places(Scan),
    Gone = [Id || {N, {_, Id, _}} <- lists:zip(lists:seq(1, length(Places)), Places), N rem 10 =:= 0],
    {ok, _} = ?S:settle(Store, 2, << <<Id:64/little>> || Id <- Gone >>),
    {_, Kinds} = lists:foldl(
                   fun ({_, Id, _} = Place, {[_ | Rest], {S, Acc}}) ->
                           {Read, Next} = ?P:read_ahead(Place, Rest, S),
                           ?assertEqual(?P:read(Store, Id), Read),
                           Kind = case Read of
                                      {Tag, _, _} -> Tag;
                                      {Tag, _} -> Tag;
                                      Tag -> Tag
                                  end,
                           {Rest, {Next, [Kind | Acc]}}
                   end, {Places, {Scan, []}}, Places),
    {_, Seen} = Kinds,
    ?assertEqual([damaged, gone, ok], lists:usort(Seen)),
    ?assertEqual(length(Gone), length([gone || gone <- Seen])),
    true.

bodies() ->
    [{N, case N rem 9 of
             0 -> <<"no message">>;
             1 -> message(binary:copy(<<"x">>, 500000));
             _ -> message(<<"body">>)
         end} || N <- lists:seq(1, 600)].

message(Body) ->
    Message = #basic_message{exchange_name = ?X, routing_keys = [<<"k">>], is_persistent = true, id = <<>>,
                             content = rabbit_basic:build_content(#'P_basic'{}, Body)},
    rabbit_delay_broker:encode(Message).

scan(Store, Read) ->
    {ok, All} = rabbit_delay_filter:parse(#{}, 0),
    ?P:new(Store, ?X, All, Read).

late_test() ->
    true = with_store(
             [{1, <<"x">>}],
             fun (Store) ->
                     Scan = scan(Store, false),
                     ?assertNot(?P:is_late(Scan#{deadline := erlang:monotonic_time(millisecond) + 3600000})),
                     ?P:is_late(Scan#{deadline := erlang:monotonic_time(millisecond) - 1})
             end).

closed_store_test() ->
    true = with_store(
             [{1, <<"x">>}],
             fun (Store) ->
                     ok = ?S:close(Store),
                     {error, _} = Error = ?P:places({0, 0}, forward, (scan_of_closed(Store))),
                     ?assertMatch({error, {unavailable, <<_/binary>>}}, ?P:unavailable(Error)),
                     ?assertMatch({error, {unavailable, <<_/binary>>}}, ?P:read(Store, 65536)),
                     ?assertMatch({{error, {unavailable, <<_/binary>>}}, _},
                                  ?P:read_ahead({1, 65536, 1}, [], scan_of_closed(Store))),
                     true
             end).

scan_of_closed(Store) -> (scan(Store, true))#{batch := 10}.

with_store(Messages, Test) ->
    Dir = filename:join(os:getenv("TMPDIR", "/tmp"),
                        "delay-scan-" ++ os:getpid() ++ "-" ++
                            integer_to_list(erlang:unique_integer([positive]))),
    ok = file:make_dir(Dir),
    {ok, Store, _} = ?S:open(Dir, #{now => 1}),
    try
        {ok, _, _, _, _} = ?S:insert(Store, 1, 0, [record(Due, Body) || {Due, Body} <- Messages]),
        Test(Store)
    after
        _ = ?S:close(Store),
        ok = file:del_dir_r(Dir)
    end.

%% Due at a time of the clock.
record(Due, {Encoding, Body}) ->
    <<(byte_size(Body)):32/little, 1:16/little, Encoding:16/little, Due:64/little, 0:64, Body/binary>>;
record(Due, Body) ->
    record(Due, {1, Body}).
