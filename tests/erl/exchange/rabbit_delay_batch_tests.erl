%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_batch_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").
-include("../../erl_src/exchange/rabbit_delay_queue.hrl").

-define(NOW, 1700000000000).
-define(SALT, <<"0123456789abcdef">>).
-define(ENCODING, 16#0101).

xname() -> xname(<<"x">>).

xname(Name) -> #resource{virtual_host = <<"/">>, kind = exchange, name = Name}.

message(Headers, Payload) -> message(Headers, Payload, #{}).

message(Headers, Payload, Options) ->
    Properties = #'P_basic'{headers = Headers, message_id = maps:get(message_id, Options, undefined)},
    #basic_message{exchange_name = xname(maps:get(exchange, Options, <<"x">>)),
                   routing_keys = [<<"k">>], is_persistent = true, id = <<>>,
                   content = rabbit_basic:build_content(Properties, Payload)}.

waiting(Message) -> waiting(Message, 1).

waiting(Message, SeqNo) ->
    #waiting{message = Message, sender = self(), seq_no = SeqNo, flow = noflow}.

settings() ->
    #{exchange => xname(), salt => ?SALT, counters => rabbit_delay_counters:new(), now => ?NOW,
      limit => 100000, default => none, retry => none, keys_from => publishers, unusable => now,
      releases => true}.

unlimited() -> rabbit_delay_room:room({infinity, infinity}, #{}, none).

room(Limits, UnderWay) ->
    rabbit_delay_room:room(Limits, #{applied => 1, pending => 0, pending_bytes => 0}, UnderWay).

build(Ws, Settings) -> rabbit_delay_batch:build(Ws, unlimited(), Settings).

%% As the store reads them.
records(<<>>) ->
    [];
records(<<Size:32/little, Flags:16/little, Encoding:16/little, When:64/little, Key:64/little,
          Body:Size/binary, Rest/binary>>) ->
    [{Flags, Encoding, When, Key, Body} | records(Rest)].

%% {version, earliest, flags, encoding, when, key} of a message alone.
record(Message, Settings) -> record_of(waiting(Message), Settings).

record_of(W, Settings) ->
    {#batch{entry = {Version, Earliest, Records}}, [], [], []} = build([W], Settings),
    [{Flags, Encoding, When, Key, Body}] = records(Records),
    _ = Body =:= <<>>
        orelse ?assertMatch({ok, #basic_message{}}, rabbit_delay_broker:decode(Encoding, Body)),
    {Version, Earliest, Flags, Encoding, When, Key}.

hash(Key) -> rabbit_delay_key:hash(?SALT, Key).

%% ---------------------------------------------------------------------------- one message

when_it_is_due_and_what_it_does_with_its_key_test_() ->
    Key = {<<"x-delay-key">>, longstr, <<"a">>},
    On = fun (What) -> {<<"x-delay-on-duplicate">>, longstr, What} end,
    Delay = {<<"x-delay">>, long, 5000},
    Of = settings(),
    [{Title, ?_assertEqual(Expected, record(Message, Settings))}
     || {Title, Message, Settings, Expected} <-
            [{"no delay", message([], <<"b">>), Of, {1, {0, none}, 0, ?ENCODING, 0, 0}},
             {"no headers", message(undefined, <<"b">>), Of, {1, {0, none}, 0, ?ENCODING, 0, 0}},
             {"the exchange's delay", message([], <<"b">>), Of#{default := 7},
              {1, {7, none}, 0, ?ENCODING, 7, 0}},
             {"its own before that", message([Delay], <<"b">>), Of#{default := 7},
              {1, {5000, none}, 0, ?ENCODING, 5000, 0}},
             {"a time", message([{<<"x-opt-delivery-time">>, long, ?NOW + 9}], <<"b">>), Of,
              {1, {none, ?NOW + 9}, 1, ?ENCODING, ?NOW + 9, 0}},
             {"a key", message([Delay, Key], <<"b">>), Of,
              {1, {5000, none}, 0, ?ENCODING, 5000, hash(<<"a">>)}},
             {"its message_id", message([Delay], <<"b">>, #{message_id => <<"m">>}), Of,
              {1, {5000, none}, 0, ?ENCODING, 5000, hash(<<"m">>)}},
             {"replaces", message([Delay, Key, On(<<"replace">>)], <<"b">>), Of,
              {2, {5000, none}, 1 bsl 1, ?ENCODING, 5000, hash(<<"a">>)}},
             {"is dropped", message([Delay, Key, On(<<"drop">>)], <<"b">>), Of,
              {2, {5000, none}, 2 bsl 1, ?ENCODING, 5000, hash(<<"a">>)}},
             {"cancels", message([{<<"x-delay-cancel">>, longstr, <<"a">>}], <<"b">>), Of,
              {2, {none, none}, 3 bsl 1, 0, 0, hash(<<"a">>)}},
             {"releases", message([Delay, {<<"x-delay-release">>, longstr, <<"a">>}], <<"b">>), Of,
              {3, {0, none}, 4 bsl 1, 0, 0, hash(<<"a">>)}},
             {"a release that came by another exchange",
              message([Delay, {<<"x-delay-release">>, longstr, <<"a">>}], <<"b">>, #{exchange => <<"y">>}),
              Of, {1, {5000, none}, 0, ?ENCODING, 5000, 0}},
             {"came by another exchange",
              message([Delay, Key, On(<<"replace">>)], <<"b">>, #{exchange => <<"y">>}), Of,
              {1, {5000, none}, 0, ?ENCODING, 5000, 0}},
             {"came by another exchange, and keys count from anyone",
              message([Delay, Key, On(<<"replace">>)], <<"b">>, #{exchange => <<"y">>}),
              Of#{keys_from := anyone},
              {2, {5000, none}, 1 bsl 1, ?ENCODING, 5000, hash(<<"a">>)}}]].

%% Its delay was meant when it was first published; its pause is that of its attempt.
dead_letters_pause_test_() ->
    Plan = #{pauses => {schedule, [100, 200]}, jitter => 0, attempts => 2,
             reasons => [<<"rejected">>], to => queue, parking => none},
    Marked = rabbit_delay_retry:mark(?ENCODING),
    [{Title, ?_assertEqual({1, {Pause, none}, 0, Encoding, Pause, Key},
                           record_of((waiting(Message))#waiting{dead_letter = IsDeadLetter},
                                     (settings())#{retry := Retry}))}
     || {Title, IsDeadLetter, Message, Retry, Pause, Encoding, Key} <-
            [{"the first", true, dead(1, <<"rejected">>), {Plan, true}, 100, Marked, 0},
             {"the second", true, dead(2, <<"rejected">>), {Plan, true}, 200, Marked, 0},
             {"used up", true, dead(3, <<"rejected">>), {Plan, true}, 0, Marked, 0},
             {"used up, and no place", true, dead(3, <<"rejected">>), {Plan, false}, 200, Marked, 0},
             {"not retried", true, dead(1, <<"expired">>), {Plan, true}, 0, Marked, 0},
             {"of an exchange that does not retry", true, dead(1, <<"rejected">>), none, 5000,
              ?ENCODING, 0},
             {"only says so", false, dead(1, <<"rejected">>), {Plan, true}, 5000, ?ENCODING, 0}]].

dead(Count, Reason) ->
    message([{<<"x-delay">>, long, 5000},
             {<<"x-death">>, array,
              [{table, [{<<"count">>, long, Count}, {<<"reason">>, longstr, Reason},
                        {<<"queue">>, longstr, <<"q">>}, {<<"exchange">>, longstr, <<"y">>},
                        {<<"routing-keys">>, array, [{longstr, <<"k">>}]}]}]}], <<"b">>).

%% -------------------------------------------------------------------------- many messages

nothing_is_no_entry_test() ->
    ?assertEqual({none, [], [], []}, build([], settings())),
    Large = waiting(message([], binary:copy(<<"b">>, 100000))),
    ?assertEqual({none, [Large], [], []}, build([Large], settings())).

%% A delay that cannot be used is not looked at where the exchange refuses none, and never in a dead
%% letter; a message that cancels has none.
what_is_refused_for_its_delay_test_() ->
    Nack = (settings())#{unusable := {nack, 1000}},
    At = fun (Ms) -> {<<"x-opt-delivery-time">>, long, Ms} end,
    Soon = {<<"x-delay">>, longstr, <<"soon">>},
    Refused = fun (Header) ->
                      {none, [], [{_, {unusable, _, _, Why}}], []} =
                          build([waiting(message([Header], <<"b">>))], Nack),
                      Why
              end,
    Dead = (waiting(message([Soon], <<"b">>)))#waiting{dead_letter = true},
    Cancel = message([Soon, {<<"x-delay-cancel">>, longstr, <<"a">>}], <<"b">>),
    [?_assertEqual(not_a_number, Refused(Soon)),
     ?_assertEqual({beyond, 1000}, Refused({<<"x-delay">>, long, 1001})),
     ?_assertEqual({beyond, 1000}, Refused(At(?NOW + 1001))),
     ?_assertEqual(seconds, Refused(At(?NOW div 1000))),
     ?_assertMatch({1, {1000, none}, 0, _, 1000, 0},
                   record(message([{<<"x-delay">>, long, 1000}], <<"b">>), Nack)),
     ?_assertMatch({1, {none, ?NOW + 1000}, 1, _, ?NOW + 1000, 0},
                   record(message([At(?NOW + 1000)], <<"b">>), Nack)),
     ?_assertMatch({1, {0, none}, 0, _, 0, 0}, record(message([Soon], <<"b">>), settings())),
     ?_assertMatch({1, {0, none}, 0, _, 0, 0}, record_of(Dead, Nack)),
     ?_assertMatch({2, {none, none}, 3 bsl 1, _, 0, _}, record(Cancel, Nack))].

not_every_member_knows_releases_test() ->
    Release = waiting(message([{<<"x-delay-release">>, longstr, <<"a">>}], <<"b">>)),
    Other = waiting(message([{<<"x-delay">>, long, 1}], <<"b">>)),
    {#batch{entry = {1, {1, none}, _}, messages = 1}, [], [{Release, no_releases}], []} =
        build([Release, Other], (settings())#{releases := false}).

%% Every message is in the entry, rejected, refused for its delay, or left with all that come after it;
%% in order; and each in the entry is confirmed to who sent it and awaits that.
model_test_() ->
    {timeout, 1200,
     fun () ->
             ?assert(proper:quickcheck(
                       ?FORALL({Kinds, MaxMessages, MaxBytes, UnderWay},
                               {list({oneof([delay, time, cancel, release, large, unusable]), range(0, 600),
                                      range(0, 2), boolean()}),
                                oneof([infinity, range(0, 20)]),
                                oneof([infinity, range(0, 8000)]),
                                oneof([none, {1, 10}])},
                               agrees(Kinds, {MaxMessages, MaxBytes}, UnderWay)),
                       [{numtests, 500}, {to_file, user}]))
     end}.

agrees(Kinds, Limits, UnderWay) ->
    Senders = [self() | [element(1, spawn_monitor(fun () -> ok end)) || _ <- [1, 2]]],
    Ws = [(waiting(of_kind(Kind, N)))#waiting{sender = lists:nth(Sender + 1, Senders),
                                              seq_no = case Confirm of
                                                           true -> I;
                                                           false -> undefined
                                                       end}
          || {I, {Kind, N, Sender, Confirm}} <- lists:zip(lists:seq(1, length(Kinds)), Kinds)],
    Room = room(Limits, UnderWay),
    {Taken, Rejected, Left} = walk(Ws, Kinds, Room, [], []),
    {Batch, Large, Unusable, TheirLeft} =
        rabbit_delay_batch:build(Ws, Room, (settings())#{limit := 4000, unusable := {nack, ?NOW}}),
    Large =:= [W || {W, Kind} <- Rejected, Kind =/= unusable]
        andalso [W || {W, {unusable, <<"x-delay">>, _, not_a_number}} <- Unusable]
                    =:= [W || {W, unusable} <- Rejected]
        andalso TheirLeft =:= Left
        andalso case Batch of
                    none -> Taken =:= [];
                    _ -> is_entry_of(Taken, Batch)
                end.

of_kind(delay, N) -> message([{<<"x-delay">>, long, N}], binary:copy(<<"b">>, N));
of_kind(time, N) -> message([{<<"x-opt-delivery-time">>, long, ?NOW + 1 + N}], <<"b">>);
of_kind(cancel, N) -> message([{<<"x-delay-cancel">>, longstr, integer_to_binary(N)}], <<"b">>);
of_kind(release, N) -> message([{<<"x-delay-release">>, longstr, integer_to_binary(N)}], <<"b">>);
of_kind(unusable, N) -> message([{<<"x-delay">>, longstr, <<"soon">>}], binary:copy(<<"b">>, N));
of_kind(large, _) -> message([], binary:copy(<<"b">>, 4000)).

%% Rejected: the last one first.
walk([], _, _, Taken, Rejected) ->
    {lists:reverse(Taken), Rejected, []};
walk([#waiting{message = Message} = W | Rest] = Ws, [{Kind, N, _, _} | Kinds], Room, Taken, Rejected) ->
    {_, Body} = rabbit_delay_broker:encode(Message),
    case Kind of
        large -> walk(Rest, Kinds, Room, Taken, [{W, Kind} | Rejected]);
        unusable -> walk(Rest, Kinds, Room, Taken, [{W, Kind} | Rejected]);
        _ when Kind =:= cancel; Kind =:= release ->
            walk(Rest, Kinds, Room, [{W, Kind, N, <<>>} | Taken], Rejected);
        _ ->
            case rabbit_delay_room:fits(byte_size(Body), Room) of
                true -> walk(Rest, Kinds, rabbit_delay_room:fill(byte_size(Body), Room),
                             [{W, Kind, N, Body} | Taken], Rejected);
                false -> walk(Rest, Kinds, Room, Taken, [{W, Kind} | Rejected]);
                unknown -> {lists:reverse(Taken), Rejected, Ws}
            end
    end.

is_entry_of(Taken, #batch{entry = {Version, Earliest, Records}, messages = Messages,
                          confirms = Confirms}) ->
    Version =:= lists:max([1 | [version(Kind) || {_, Kind, _, _} <- Taken]])
        andalso Earliest =:= {least([N || {_, delay, N, _} <- Taken] ++ [0 || {_, release, _, _} <- Taken]),
                              least([?NOW + 1 + N || {_, time, N, _} <- Taken])}
        andalso Messages =:= length([T || {_, Kind, _, _} = T <- Taken, version(Kind) =:= 1])
        andalso [{Flags, When, Body} || {Flags, _, When, _, Body} <- records(Records)]
                    =:= [{flags(Kind), due(Kind, N), Body} || {_, Kind, N, Body} <- Taken]
        andalso lists:sort([{Sender, SeqNo} || {Sender, SeqNos} <- maps:to_list(Confirms),
                                               SeqNo <- SeqNos])
                    =:= lists:sort([{Sender, SeqNo}
                                    || {#waiting{sender = Sender, seq_no = SeqNo}, _, _, _} <- Taken,
                                       SeqNo =/= undefined]).

version(cancel) -> 2;
version(release) -> 3;
version(_) -> 1.

flags(delay) -> 0;
flags(time) -> 1;
flags(cancel) -> 6;
flags(release) -> 8.

due(delay, N) -> N;
due(time, N) -> ?NOW + 1 + N;
due(_, _) -> 0.

least([]) -> none;
least(Numbers) -> lists:min(Numbers).

%% One that was pending before is due when it was, marked, whatever the exchange's settings are; its key is good for
%% cancelling it and for nothing else.
restored_test_() ->
    At = rabbit_delay_header:at(?NOW + 5000),
    Anyone = (settings())#{keys_from => anyone, unusable => {nack, 1}, default => 7},
    Named = [{<<"x-delay">>, long, 9}, {<<"x-delay-key">>, longstr, <<"k">>},
             {<<"x-delay-on-duplicate">>, longstr, <<"drop">>}],
    [?_assertEqual({1, {none, ?NOW + 5000}, 1, ?ENCODING bor 16#8000, ?NOW + 5000, hash(Key)},
                   record_of((waiting(message([At | died(From) ++ Headers], <<"body">>, #{message_id => <<"m">>})))
                             #waiting{dead_letter = restored}, Settings))
     || {Settings, From, Headers, Key} <- [{settings(), <<"other">>, [], <<"m">>},
                                           {settings(), <<"other">>, Named, <<"m">>},
                                           {settings(), <<"x">>, Named, <<"k">>},
                                           {Anyone, <<"other">>, Named, <<"k">>}]].

died(From) ->
    [{<<"x-death">>, array, [{table, [{<<"queue">>, longstr, <<"q">>}, {<<"reason">>, longstr, <<"rejected">>},
                                      {<<"count">>, long, 1}, {<<"exchange">>, longstr, From}]}]}].
