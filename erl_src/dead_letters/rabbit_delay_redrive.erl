%% SPDX-License-Identifier: MPL-2.0

%% Moves the dead letters of a queue back to where they are to be worked on. A message is published
%% with a confirm and acknowledged after that, so that whatever ends this process loses none, and
%% repeats at most those that were in flight. If the broker is killed, a classic queue also has again
%% what it had been acknowledged and had not written yet.
%%
%% It takes what was in the queue when it started. What it does not move it holds until the end and
%% gives back then, in its place. rabbit_delay_redrive_plan says what is to go where.
%%
%% A redrive is a process of its own, with a connection to the broker, which ends with the one that
%% started it and is told how far it is. In flight are no more than ?WINDOW messages, and as many as it
%% holds besides.
-module(rabbit_delay_redrive).

-include_lib("amqp_client/include/amqp_client.hrl").
-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([start/2, stop/2, json/1]).

-export_type([options/0, target/0, result/0]).

-type target() :: rabbit_delay_redrive_plan:target().

-type options() :: #{vhost := binary(), queue := binary(), to := target(),
                     limit := pos_integer() | infinity,
                     %% messages a second
                     rate := pos_integer() | infinity,
                     dry_run := boolean(), keep_x_death := boolean(),
                     %% of the last death
                     reason => binary(), origin => binary(),
                     header => {binary(), binary()},
                     %% how long ago it died last, s
                     older_than => non_neg_integer(), newer_than => non_neg_integer(),
                     %% it ends after so long, ms
                     time => pos_integer(),
                     %% to which exchanges with which keys; all, if not given
                     may_publish => fun((Exchange :: binary(), Key :: binary()) -> boolean()),
                     %% no other than these, as result() names them
                     targets => [binary()],
                     %% who asks
                     by := binary()}.

%% Messages by what became of them: redriven; skipped by a filter; without a target in their history;
%% not published as they would come back at once; routed to no queue; refused by the target, or for
%% want of permission; put at
%% the end of the queue, as giving them back once more would drop them; published and not confirmed
%% when it ended.
-type result() :: #{total | examined | redriven | skipped | no_target | would_loop | unroutable |
                    refused | moved | unconfirmed := non_neg_integer(),
                    targets := #{binary() => pos_integer()},
                    %% what ended it before the last message
                    stopped := binary() | undefined}.

-define(WINDOW, 500).
-define(PROGRESS_MS, 500).
%% What a rate may make up for after a pause.
-define(CATCH_UP_US, 100000).
%% Without a delivery for so long it looks whether others emptied the queue.
-define(IDLE_MS, 1000).
-define(CONFIRM_MS, 60000).
-define(SETTLED_MS, 1000).
-define(LOGGED_TARGETS, 20).
-define(TAG, <<"redrive_dead_letters">>).

-record(s, {options :: options(),
            watcher :: pid(),
            %% none: it is closed, and nothing comes of it any more
            channel :: pid() | none,
            plan :: rabbit_delay_redrive_plan:plan(),
            %% of a queue that drops what is given back more often
            delivery_limit :: non_neg_integer() | infinity,
            counts :: result(),
            taken = 0 :: non_neg_integer(),
            %% deliveries that wait for their turn
            waiting = queue:new() :: queue:queue({pos_integer(), #amqp_msg{}, #'basic.deliver'{}}),
            in_flight = #{} :: #{SeqNo :: pos_integer() =>
                                     {redriven | moved, Tag :: pos_integer(), Target :: binary(),
                                      {binary(), binary(), binary()}, returned | sent}},
            consumers = 0 :: non_neg_integer(),
            credit = 0 :: non_neg_integer(),
            held = 0 :: non_neg_integer(),
            %% when the rate allows the next, us
            next_at :: integer(),
            %% when the watcher is told next, and when it ends, ms
            progress_at :: integer(),
            ends_at :: integer() | infinity}).

%% Runs until it is done or the watcher ends. The watcher gets {redrive, Pid, accepted, Since}, once what is
%% asked for can be done at all, {redrive, Pid, progress, result()} now and then, and at the end
%% {redrive, Pid, done, {ok, result()} | rabbit_delay_browse:error()}.
-spec start(options(), Watcher :: pid()) -> pid().
start(Options, Watcher) ->
    spawn(fun () ->
                  Monitor = monitor(process, Watcher),
                  Watcher ! {redrive, self(), done, run(Options, Watcher, Monitor)}
          end).

%% It ends when what is in flight is confirmed. Why: for its result.
-spec stop(pid(), Why :: binary()) -> ok.
stop(Pid, Why) ->
    Pid ! {stop, Why},
    ok.

run(#{vhost := VHost, queue := Queue} = Options, Watcher, Monitor) ->
    try
        {Version, Objects, Index} = topology(VHost, Queue),
        Limit = delivery_limit(Queue, Objects, Version),
        Plan = rabbit_delay_redrive_plan:new(Options, Objects, Index),
        Prepared = fun (Channel, Meant) ->
                           #s{options = Meant, watcher = Watcher, channel = Channel,
                              plan = rabbit_delay_redrive_plan:new(Meant, Objects, Index),
                              delivery_limit = Limit, counts = counts(), next_at = now_us(),
                              progress_at = now_ms() + ?PROGRESS_MS,
                              ends_at = case Options of
                                            #{time := Ms} -> now_ms() + Ms;
                                            _ -> infinity
                                        end}
                   end,
        ok = case rabbit_delay_redrive_plan:check_target(Plan) of
                 ok -> ok;
                 {refused, Refused, Because} -> refuse(Refused, Because)
             end,
        Watcher ! {redrive, self(), accepted, erlang:system_time(millisecond)},
        case Options of
            #{dry_run := true} -> dry_run(Options, Prepared(self(), Options));
            _ -> redrive_to_shown(Prepared, Options, Watcher, Monitor)
        end
    catch
        throw:{refused, Kind, Why} -> {error, {Kind, rabbit_delay_text:printable(Why)}}
    end.

-spec refuse(bad_request | forbidden | not_found | unavailable, iodata()) -> no_return().
refuse(Kind, Why) -> throw({refused, Kind, Why}).

topology(VHost, Queue) ->
    case rabbit_vhost:exists(VHost) of
        false -> refuse(not_found, ["there is no vhost ", name(VHost)]);
        true -> ok
    end,
    #{version := Version, vhosts := #{VHost := #{queues := Queues} = Objects}} =
        rabbit_delay_topology:live([VHost]),
    case Queues of
        #{Queue := #{type := Type}} when Type =:= classic; Type =:= quorum -> ok;
        #{Queue := _} -> refuse(bad_request, [name(Queue), " is neither a classic nor a quorum queue"]);
        _ -> {error, {Kind, Why}} = rabbit_delay_browse:no_queue(VHost, Queue), refuse(Kind, Why)
    end,
    {Version, Objects, rabbit_delay_doctor:at_once(Objects)}.

name(Name) -> [$", rabbit_delay_text:escaped(Name), $"].

delivery_limit(Queue, #{queues := Queues} = Objects, Version) ->
    case {maps:get(Queue, Queues), rabbit_delay_doctor:settings(Queue, Objects)} of
        {#{type := quorum}, #{delivery_limit := {Limit, _}}} -> Limit;
        {#{type := quorum}, _} -> rabbit_delay_queue_settings:default_delivery_limit(Version);
        _ -> infinity
    end.

counts() ->
    maps:merge(maps:from_list([{Key, 0} || Key <- [total, examined, redriven, skipped, no_target,
                                                   would_loop, unroutable, refused, moved,
                                                   unconfirmed]]),
               #{targets => #{}, stopped => undefined}).

decide(Message, #s{plan = Plan0} = S) ->
    {Decision, Plan} = rabbit_delay_redrive_plan:decide(Message, Plan0),
    {Decision, S#s{plan = Plan}}.

count(Key, #s{counts = Counts} = S) -> count(Key, 1, Counts, S).

count(Key, N, Counts, S) -> S#s{counts = maps:update_with(Key, fun (Old) -> Old + N end, Counts)}.

count_target(Target, #s{counts = #{targets := Targets} = Counts} = S) ->
    S#s{counts = Counts#{targets := maps:update_with(Target, fun (N) -> N + 1 end, 1, Targets)}}.

dry_run(#{vhost := VHost, queue := Queue, limit := Limit}, S) ->
    Look = fun (Message, Acc0) ->
                   {Decision, Acc1} = decide(Message, Acc0),
                   Acc = count(total, count(examined, Acc1)),
                   case Decision of
                       _ when Acc#s.taken >= Limit -> count(skipped, Acc);
                       {X, Key} ->
                           Target = rabbit_delay_redrive_plan:target_text(X, Key),
                           taken(count_target(Target, count(redriven, Acc)));
                       Not -> count(Not, Acc)
                   end
           end,
    Max = rabbit_delay_browse:usual_max(VHost, Queue),
    case rabbit_delay_browse:fold(VHost, Queue, Max, Look, S) of
        {ok, #s{counts = #{examined := N} = Counts}, Truncated} when N =:= Max; Truncated ->
            {ok, Counts#{stopped := iolist_to_binary(
                                      io_lib:format("only the first ~b messages were looked at",
                                                    [N]))}};
        {ok, #s{counts = Counts}, _} -> {ok, Counts};
        {error, {Kind, Why}} -> refuse(Kind, Why)
    end.

taken(#s{taken = N} = S) -> S#s{taken = N + 1}.

%% ------------------------------------------------------------------------------------- the work

%% A message's history can be forged, on a broker that keeps it in a header, and is long on any: where
%% each is to go by its own, it is found out first where that would be, and the watcher and the log are
%% told before any is moved. What would go elsewhere stays, unless the queue holds more messages than are
%% looked at, which the log says.
redrive_to_shown(Prepared, #{to := To} = Options, Watcher, Monitor)
  when To =:= origin; To =:= original_exchange ->
    {ok, #{targets := Targets, stopped := Stopped}} = dry_run(Options, Prepared(self(), Options)),
    Watcher ! {redrive, self(), targets, Targets},
    case Options of
        #{targets := Given} ->
            Allowed = [T || T <- Given, is_map_key(T, Targets)],
            redrive_audited(Prepared, Options#{targets => Allowed}, Allowed, Monitor);
        _ when Stopped =:= undefined ->
            Allowed = maps:keys(Targets),
            redrive_audited(Prepared, Options#{targets => Allowed}, Allowed, Monitor);
        _ ->
            redrive_audited(Prepared, Options, maps:keys(Targets) ++ [Stopped], Monitor)
    end;
redrive_to_shown(Prepared, #{to := {queue, Queue}} = Options, _, Monitor) ->
    redrive_audited(Prepared, Options, [rabbit_delay_redrive_plan:target_text(<<>>, Queue)], Monitor);
redrive_to_shown(Prepared, #{to := {exchange, X, _}} = Options, _, Monitor) ->
    redrive_audited(Prepared, Options, [<<"exchange ", X/binary>>], Monitor).

redrive_audited(Prepared, #{vhost := VHost, queue := Queue, by := By} = Options, Targets, Monitor) ->
    QName = rabbit_delay_text:rs(rabbit_misc:r(VHost, queue, Queue)),
    ?LOG_INFO("dead letters of ~ts: to be redriven to ~ts, asked for by ~ts",
              [QName, case Targets of
                          [] -> <<"nowhere">>;
                          _ -> lists:join(", ", [rabbit_delay_text:escaped(T)
                                                 || T <- lists:sublist(Targets, ?LOGGED_TARGETS)])
                      end, By], ?LOG_DOMAIN),
    Result = redrive(Prepared, Options, Monitor),
    case Result of
        {ok, #{redriven := Redriven, examined := Examined}} ->
            ?LOG_INFO("dead letters of ~ts: ~b of ~b redriven by ~ts", [QName, Redriven, Examined, By],
                      ?LOG_DOMAIN);
        _ ->
            ok
    end,
    Result.

redrive(Prepared, #{vhost := VHost, queue := Queue} = Options, Monitor) ->
    Name = <<"redrive ", (rabbit_delay_text:escaped(Queue))/binary>>,
    case rabbit_delay_connection:open(VHost, Name) of
        {ok, {_, Channel} = Connection} ->
            ChannelMonitor = monitor(process, Channel),
            S0 = #s{counts = Counts} = Prepared(Channel, Options),
            try
                #'queue.declare_ok'{message_count = Total} =
                    amqp_channel:call(Channel, #'queue.declare'{queue = Queue, passive = true}),
                #'confirm.select_ok'{} = amqp_channel:call(Channel, #'confirm.select'{}),
                ok = amqp_channel:register_confirm_handler(Channel, self()),
                ok = amqp_channel:register_return_handler(Channel, self()),
                S = S0#s{counts = Counts#{total := Total}},
                case Total of
                    0 -> {ok, S#s.counts};
                    _ -> loop(consume(?WINDOW, S), {Monitor, ChannelMonitor})
                end
            catch
                exit:Reason ->
                    refuse(unavailable, io_lib:format("the queue cannot be consumed: ~0P", [Reason, 15]))
            after
                ok = await_acknowledged(rabbit_misc:r(VHost, queue, Queue)),
                %% What was not acknowledged goes back to its place.
                rabbit_delay_connection:close(Connection)
            end;
        {error, {Kind, Why}} ->
            refuse(Kind, Why)
    end.

%% A channel sends acknowledgements to a quorum queue as fast as that takes them, and forgets the rest
%% when it is closed: messages that were moved would be in both places. So it is closed when the number
%% of messages that are out no longer falls.
await_acknowledged(QName) ->
    case rabbit_amqqueue:lookup(QName) of
        {ok, Q} ->
            case amqqueue:get_type(Q) of
                rabbit_quorum_queue -> await_acknowledged(amqqueue:get_pid(Q), none, now_ms());
                _ -> ok
            end;
        {error, not_found} ->
            ok
    end.

await_acknowledged(Leader, Last, Since) ->
    case ra:local_query(Leader, fun rabbit_fifo:query_messages_checked_out/1) of
        {ok, {_, 0}, _} ->
            ok;
        {ok, {_, N}, _} ->
            case now_ms() - Since of
                Ms when N =:= Last, Ms >= ?SETTLED_MS ->
                    ok;
                _ ->
                    timer:sleep(?SETTLED_MS div 20),
                    await_acknowledged(Leader, N, case N of Last -> Since; _ -> now_ms() end)
            end;
        _ ->
            ok
    end.

%% One more consumer gives that much more credit, on queues of either type.
consume(Prefetch, #s{channel = Channel, consumers = N, credit = Credit,
                     options = #{queue := Queue}} = S) ->
    Tag = <<?TAG/binary, ".", (integer_to_binary(N + 1))/binary>>,
    #'basic.qos_ok'{} = amqp_channel:call(Channel, #'basic.qos'{prefetch_count = Prefetch}),
    #'basic.consume_ok'{} =
        amqp_channel:subscribe(Channel, #'basic.consume'{queue = Queue, consumer_tag = Tag}, self()),
    S#s{consumers = N + 1, credit = Credit + Prefetch}.

loop(#s{counts = #{stopped := Stopped}} = S0, Monitors) ->
    S = publish_due(progress(S0)),
    case is_done(S) of
        true -> {ok, ended(S)};
        false when Stopped =/= undefined -> drain(S, Monitors);
        false -> loop(await(S, Monitors), Monitors)
    end.

is_done(#s{counts = #{examined := Examined, total := Total}, taken = Taken, in_flight = InFlight,
           options = #{limit := Limit}}) ->
    map_size(InFlight) =:= 0 andalso (Examined >= Total orelse Taken >= Limit).

ended(#s{counts = Counts, in_flight = InFlight}) ->
    Counts#{unconfirmed := map_size(InFlight)}.

%% Only the confirms of what is in flight are awaited still.
drain(#s{in_flight = InFlight, channel = Channel} = S, _)
  when map_size(InFlight) =:= 0; Channel =:= none ->
    {ok, ended(S)};
drain(S, {_, Channel} = Monitors) ->
    receive
        #'basic.ack'{} = Ack -> drain(confirmed(Ack, S), Monitors);
        #'basic.nack'{} = Nack -> drain(confirmed(Nack, S), Monitors);
        {#'basic.return'{} = Return, Message} -> drain(returned(Return, Message, S), Monitors);
        {'DOWN', Channel, process, _, _} -> {ok, ended(S)}
    after ?CONFIRM_MS ->
            {ok, ended(S)}
    end.

%% Publishes what waits, as far as limit and rate allow.
publish_due(#s{waiting = Waiting, next_at = Next, taken = Taken,
               counts = #{stopped := undefined, examined := Examined, total := Total},
               options = #{limit := Limit}} = S)
  when Taken < Limit, Examined < Total ->
    case queue:out(Waiting) of
        {{value, Delivery}, Rest} ->
            case now_us() >= Next of
                true -> publish_due(handle(Delivery, S#s{waiting = Rest}));
                false -> S
            end;
        {empty, _} ->
            S
    end;
publish_due(S) ->
    S.

await(#s{waiting = Waiting, next_at = Next} = S, {Watcher, Channel}) ->
    Timeout = case queue:is_empty(Waiting) of
                  true -> ?IDLE_MS;
                  false -> min(?IDLE_MS, max(0, Next - now_us()) div 1000)
              end,
    receive
        {#'basic.deliver'{delivery_tag = Tag} = Deliver, #amqp_msg{} = Message} ->
            S#s{waiting = queue:in({Tag, Message, Deliver}, Waiting)};
        #'basic.ack'{} = Ack ->
            confirmed(Ack, S);
        #'basic.nack'{} = Nack ->
            confirmed(Nack, S);
        {#'basic.return'{} = Return, Message} ->
            returned(Return, Message, S);
        #'basic.consume_ok'{} ->
            S;
        #'basic.cancel'{} ->
            stopped(<<"the queue is gone">>, S);
        {stop, Why} ->
            stopped(Why, S);
        {'DOWN', Watcher, process, _, _} ->
            stopped(<<"the command was interrupted">>, S);
        {'DOWN', Channel, process, _, Reason} ->
            stopped(unicode:characters_to_binary(
                      io_lib:format("the broker closed the channel: ~0P", [Reason, 15])),
                    S#s{channel = none})
    after Timeout ->
            idle(S)
    end.

stopped(Why, #s{counts = #{stopped := undefined} = Counts} = S) ->
    S#s{counts = Counts#{stopped := Why}};
stopped(_, S) ->
    S.

%% Others consume from the queue too, perhaps.
idle(#s{waiting = Waiting, in_flight = InFlight, channel = Channel, options = #{queue := Queue}} = S) ->
    case queue:is_empty(Waiting) andalso map_size(InFlight) =:= 0 of
        true ->
            try amqp_channel:call(Channel, #'queue.declare'{queue = Queue, passive = true}) of
                #'queue.declare_ok'{message_count = 0} ->
                    #s{counts = #{examined := Examined} = Counts} = S,
                    S#s{counts = Counts#{total := Examined}};
                _ ->
                    S
            catch
                exit:_ -> stopped(<<"the queue is gone">>, S)
            end;
        false ->
            S
    end.

handle({Tag, #amqp_msg{props = #'P_basic'{headers = Table}, payload = Payload} = Message,
        #'basic.deliver'{exchange = X0, routing_key = Key0}}, S0) ->
    Headers = rabbit_delay_deaths:plain(Table),
    {Decision, S} = decide(#{exchange => X0, key => Key0, table => Table, headers => Headers,
                             payload => Payload}, count(examined, S0)),
    case Decision of
        {X, Key} -> redrive_one(X, Key, Tag, Message, Headers, S);
        Not -> hold(Not, Tag, Message, Headers, S)
    end.

redrive_one(X, Key, Tag, #amqp_msg{props = Properties = #'P_basic'{headers = Table}} = Message,
            Headers, #s{options = #{to := To, keep_x_death := Keep, rate := Rate},
                        next_at = Next} = S) ->
    Redriven = rabbit_delay_deaths:redriven(Table, Headers, Keep, To =:= original_exchange),
    S1 = publish(redriven, X, Key, Tag,
                 Message#amqp_msg{props = Properties#'P_basic'{headers = Redriven}}, S),
    taken(S1#s{next_at = case Rate of
                             infinity -> Next;
                             _ -> max(Next, now_us() - ?CATCH_UP_US) + 1000000 div Rate
                         end}).

publish(As, X, Key, Tag, #amqp_msg{payload = Payload} = Message,
        #s{channel = Channel, in_flight = InFlight} = S) ->
    SeqNo = amqp_channel:next_publish_seqno(Channel),
    ok = amqp_channel:call(Channel, #'basic.publish'{exchange = X, routing_key = Key,
                                                     mandatory = true}, Message),
    Target = rabbit_delay_redrive_plan:target_text(X, Key),
    S#s{in_flight = InFlight#{SeqNo => {As, Tag, Target, {X, Key, Payload}, sent}}}.

%% A message that stays. Where giving it back once more would drop it, a copy goes to the queue's end.
hold(Why, Tag, #amqp_msg{props = #'P_basic'{headers = Table} = Properties} = Message,
     #{<<"x-delivery-count">> := Count},
     #s{delivery_limit = Limit, options = #{queue := Queue}} = S)
  when is_integer(Count), is_integer(Limit), Count >= Limit ->
    Uncounted = Properties#'P_basic'{headers = rabbit_delay_deaths:uncounted(Table)},
    publish(moved, <<>>, Queue, Tag, Message#amqp_msg{props = Uncounted}, count(Why, S));
hold(Why, _, _, _, S) ->
    held(count(Why, S)).

held(#s{held = Held, credit = Credit} = S) when Held + 1 >= Credit div 2 ->
    consume(min(65535, Credit), S#s{held = Held + 1});
held(#s{held = Held} = S) ->
    S#s{held = Held + 1}.

%% The first of those in flight that is what came back; it is confirmed all the same.
returned(#'basic.return'{exchange = X, routing_key = Key}, #amqp_msg{payload = Payload},
         #s{in_flight = InFlight} = S) ->
    case lists:sort([SeqNo || {SeqNo, {_, _, _, Sent, sent}} <- maps:to_list(InFlight),
                              Sent =:= {X, Key, Payload}]) of
        [SeqNo | _] ->
            {As, Tag, Target, Sent, sent} = maps:get(SeqNo, InFlight),
            S#s{in_flight = InFlight#{SeqNo := {As, Tag, Target, Sent, returned}}};
        [] ->
            S
    end.

confirmed(#'basic.ack'{delivery_tag = SeqNo, multiple = Multiple}, S) ->
    lists:foldl(fun settle/2, S, covered(SeqNo, Multiple, S));
confirmed(#'basic.nack'{delivery_tag = SeqNo, multiple = Multiple}, S0) ->
    S = lists:foldl(fun (N, #s{in_flight = InFlight} = Acc) ->
                            held(count(refused, Acc#s{in_flight = maps:remove(N, InFlight)}))
                    end, S0, covered(SeqNo, Multiple, S0)),
    stopped(<<"the target does not take messages">>, S).

covered(SeqNo, false, #s{in_flight = InFlight}) -> [SeqNo || is_map_key(SeqNo, InFlight)];
covered(SeqNo, true, #s{in_flight = InFlight}) ->
    lists:sort([N || N <- maps:keys(InFlight), N =< SeqNo]).

settle(SeqNo, #s{in_flight = InFlight, channel = Channel} = S0) ->
    {{As, Tag, Target, _, Sent}, Rest} = maps:take(SeqNo, InFlight),
    S = S0#s{in_flight = Rest},
    case Sent of
        returned ->
            held(count(unroutable, S));
        sent ->
            ok = amqp_channel:cast(Channel, #'basic.ack'{delivery_tag = Tag}),
            case As of
                redriven -> count_target(Target, count(redriven, S));
                moved -> count(moved, S)
            end
    end.

progress(#s{watcher = Watcher, counts = Counts, progress_at = At, ends_at = EndsAt} = S) ->
    case now_ms() of
        Now when Now >= EndsAt ->
            stopped(<<"its time is over">>, S);
        Now when Now >= At ->
            Watcher ! {redrive, self(), progress, Counts},
            S#s{progress_at = Now + ?PROGRESS_MS};
        _ ->
            S
    end.

now_ms() -> erlang:monotonic_time(millisecond).

now_us() -> erlang:monotonic_time(microsecond).

%% A result for JSON.
-spec json(result()) -> #{binary() => term()}.
json(#{targets := Targets, stopped := Stopped} = Counts) ->
    maps:fold(fun (Key, N, Acc) when is_integer(N) -> Acc#{atom_to_binary(Key, utf8) => N};
                  (_, _, Acc) -> Acc
              end, #{<<"version">> => 1, <<"targets">> => Targets,
                     <<"stopped">> => case Stopped of undefined -> null; _ -> Stopped end},
              Counts).
