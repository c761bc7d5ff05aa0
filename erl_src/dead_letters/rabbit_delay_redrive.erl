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
                     %% to which exchanges with which keys, those of CC too; all, if not given
                     may_publish => fun((Exchange :: binary(), Key :: binary()) -> boolean()),
                     %% no other than these, as result() names them
                     targets => [binary()],
                     %% no other than these, as many of each as it is there
                     ids => [rabbit_delay_dead_letter:id()],
                     %% what is said anew, and by which user; with keep the message itself stays, too
                     edit => {rabbit_delay_dead_letter:edit(), rabbit_types:username()},
                     keep => boolean(),
                     %% how many it needs at a time
                     window => pos_integer(),
                     %% who asks
                     by := binary()}.

%% Messages by what became of them: redriven; skipped by a filter; without a target in their history;
%% not published as they would come back at once; routed to no queue; refused by the target, or for
%% want of permission; put at
%% the end of the queue, as giving them back once more would drop them; published and not confirmed
%% when it ended. Where ids are given, also dropped and not_found: not in the queue, or out with another
%% consumer, or not looked at before it was stopped.
-type result() :: #{total | examined | redriven | skipped | no_target | would_loop | unroutable |
                    refused | moved | unconfirmed := non_neg_integer(),
                    dropped | not_found => non_neg_integer(),
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
                                     {redriven | copied | moved, Tag :: pos_integer(), Target :: binary(),
                                      {binary(), binary(), binary()}, returned | sent}},
            consumer :: rabbit_delay_redrive_consumer:consumer() | undefined,
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
                              delivery_limit = Limit, counts = counts(Meant), next_at = now_us(),
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

counts(Options) ->
    maps:merge(maps:from_list([{Key, 0} || Key <- [total, examined, redriven, skipped, no_target,
                                                   would_loop, unroutable, refused, moved,
                                                   unconfirmed]
                                               ++ [Key || Key <- [dropped, not_found],
                                                          is_map_key(ids, Options)]]),
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
                   Acc = would(Decision, Limit, count(total, count(examined, Acc1))),
                   case rabbit_delay_redrive_plan:not_met(Acc#s.plan) of
                       0 -> {enough, Acc};
                       _ -> Acc
                   end
           end,
    Max = rabbit_delay_browse:usual_max(VHost, Queue),
    case rabbit_delay_browse:fold(VHost, Queue, Max, Look, S) of
        {ok, #s{counts = #{examined := N}} = Looked, Truncated} when N =:= Max; Truncated ->
            Counts = ended(Looked),
            {ok, Counts#{stopped := iolist_to_binary(
                                      io_lib:format("only the first ~b messages were looked at",
                                                    [N]))}};
        {ok, Looked, _} -> {ok, ended(Looked)};
        {error, {Kind, Why}} -> refuse(Kind, Why)
    end.

would(_, Limit, #s{taken = Taken} = S) when Taken >= Limit -> count(skipped, S);
would({X, Key}, _, S) ->
    taken(count_target(rabbit_delay_redrive_plan:target_text(X, Key), count(redriven, S)));
would(drop, _, S) -> taken(count(dropped, S));
would(Not, _, S) -> count(Not, S).

taken(#s{taken = N} = S) -> S#s{taken = N + 1}.

%% ------------------------------------------------------------------------------------- the work

%% A message's history can be forged, on a broker that keeps it in a header, and is long on any: where
%% each is to go by its own, it is found out first where that would be, and the watcher and the log are
%% told before any is moved. What would go elsewhere stays, unless the queue holds more messages than are
%% looked at, which the log says.
redrive_to_shown(Prepared, #{to := To} = Options0, Watcher, Monitor)
  when To =:= origin; To =:= original_exchange; is_map_key(ids, Options0) ->
    {ok, #{targets := Targets, stopped := Stopped} = Would} = dry_run(Options0, Prepared(self(), Options0)),
    Watcher ! {redrive, self(), targets, Targets},
    Options = with_window(Would, Options0),
    case {Options, Would} of
        {#{ids := _}, #{stopped := undefined, redriven := 0, dropped := 0}} ->
            {ok, Would};
        {#{targets := Given}, _} ->
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

%% Those that are named are among the first that were looked at.
with_window(#{examined := N}, #{ids := _} = Options) -> Options#{window => max(1, N)};
with_window(_, Options) -> Options.

redrive_audited(Prepared, #{vhost := VHost, queue := Queue, by := By} = Options, Targets, Monitor) ->
    QName = rabbit_delay_text:rs(rabbit_misc:r(VHost, queue, Queue)),
    ?LOG_INFO("dead letters of ~ts: ~ts, asked for by ~ts",
              [QName, rabbit_delay_redrive_plan:text(Options, Targets), By], ?LOG_DOMAIN),
    Result = redrive(Prepared, Options, Monitor),
    case Result of
        {ok, #{dropped := Dropped}} when map_get(to, Options) =:= nowhere ->
            ?LOG_INFO("dead letters of ~ts: ~b dropped by ~ts", [QName, Dropped, By], ?LOG_DOMAIN);
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
            QName = rabbit_misc:r(VHost, queue, Queue),
            Out = rabbit_delay_redrive_consumer:out(QName),
            try
                #'queue.declare_ok'{message_count = Total} =
                    amqp_channel:call(Channel, #'queue.declare'{queue = Queue, passive = true}),
                #'confirm.select_ok'{} = amqp_channel:call(Channel, #'confirm.select'{}),
                ok = amqp_channel:register_confirm_handler(Channel, self()),
                ok = amqp_channel:register_return_handler(Channel, self()),
                S = S0#s{counts = Counts#{total := Total}},
                case Total of
                    0 -> {ok, ended(S)};
                    _ ->
                        C = rabbit_delay_redrive_consumer:new(Channel, Queue),
                        loop(S#s{consumer = rabbit_delay_redrive_consumer:allow(window(Options), C)},
                             {Monitor, ChannelMonitor})
                end
            catch
                exit:Reason ->
                    refuse(unavailable, ["the queue cannot be consumed: ", rabbit_delay_connection:ended(Reason)])
            after
                ok = rabbit_delay_redrive_consumer:await_acknowledged(QName),
                %% What was not acknowledged goes back to its place.
                rabbit_delay_connection:close(Connection),
                rabbit_delay_redrive_consumer:await_given_back(QName, Out)
            end;
        {error, {Kind, Why}} ->
            refuse(Kind, Why)
    end.

%% No more than needed, as what it gives back counts as delivered. (An atom is more than any number.)
window(#{limit := Limit} = Options) -> lists:min([?WINDOW, Limit, maps:get(window, Options, infinity)]).

loop(#s{counts = #{stopped := Stopped}} = S0, Monitors) ->
    S = publish_due(progress(S0)),
    case is_enough(S) orelse Stopped =/= undefined of
        true -> drain(give_back(S), Monitors);
        false -> loop(await(S, Monitors), Monitors)
    end.

is_enough(#s{counts = #{examined := Examined, total := Total}, taken = Taken, plan = Plan,
             options = #{limit := Limit}}) ->
    Examined >= Total orelse Taken >= Limit orelse rabbit_delay_redrive_plan:not_met(Plan) =:= 0.

%% What it has and did not come to goes back to its place when the channel is closed, and that counts as a
%% delivery: where one more would drop it, a copy goes to the queue's end, as of what is held.
give_back(#s{delivery_limit = Limit, channel = Channel, consumer = C} = S)
  when Limit =:= infinity; Channel =:= none ->
    S#s{consumer = rabbit_delay_redrive_consumer:close(C)};
give_back(#s{consumer = C0, waiting = Waiting} = S) ->
    try
        {Came, C} = rabbit_delay_redrive_consumer:ended(C0),
        lists:foldl(fun give_back_one/2, S#s{consumer = C, waiting = queue:new()},
                    queue:to_list(Waiting) ++ Came)
    catch
        exit:_ -> S#s{channel = none}
    end.

give_back_one({Tag, #amqp_msg{props = #'P_basic'{headers = Table}} = Message, _}, S) ->
    case is_last_delivery(rabbit_delay_deaths:plain(Table), S) of
        true -> move(Tag, Message, S);
        false -> S
    end.

ended(#s{counts = Counts, in_flight = InFlight, plan = Plan}) ->
    maps:merge(Counts#{unconfirmed := map_size(InFlight)},
               case rabbit_delay_redrive_plan:not_met(Plan) of
                   infinity -> #{};
                   N -> #{not_found => N}
               end).

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
publish_due(#s{waiting = Waiting, next_at = Next, counts = #{stopped := undefined}} = S) ->
    case is_enough(S) orelse queue:out(Waiting) of
        true ->
            S;
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

await(#s{waiting = Waiting, next_at = Next, consumer = C} = S, {Watcher, Channel}) ->
    Timeout = case queue:is_empty(Waiting) of
                  true -> ?IDLE_MS;
                  false -> min(?IDLE_MS, max(0, Next - now_us()) div 1000)
              end,
    receive
        {#'basic.deliver'{delivery_tag = Tag} = Deliver, #amqp_msg{} = Message} ->
            S#s{waiting = queue:in({Tag, Message, Deliver}, Waiting),
                consumer = rabbit_delay_redrive_consumer:delivered(C)};
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
            stopped(<<"the broker closed the channel: ", (rabbit_delay_connection:ended(Reason))/binary>>,
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

handle({Tag, Message, #'basic.deliver'{exchange = X0, routing_key = Key0}}, S0) ->
    Looked = #{headers := Headers} = rabbit_delay_browse:message(X0, Key0, Message),
    {Decision, S} = decide(Looked, count(examined, S0)),
    case Decision of
        {X, Key} ->
            redrive_one(X, Key, Tag, Message, Headers, S);
        drop ->
            taken(count(dropped, acked(Tag, S)));
        Not ->
            hold(Not, Tag, Message, Headers, S)
    end.

redrive_one(X, Key, Tag, #amqp_msg{props = Properties0 = #'P_basic'{headers = Table}, payload = Payload0},
            Headers, #s{options = #{to := To, keep_x_death := Keep, rate := Rate} = Options,
                        next_at = Next} = S) ->
    Redriven = rabbit_delay_deaths:redriven(Table, Headers, Keep, To =:= original_exchange),
    Copied = {Properties0#'P_basic'{headers = Redriven}, Payload0},
    {Properties, Payload} = case Options of
                                #{edit := {Edit, User}} -> rabbit_delay_dead_letter:edited(Edit, User, Copied);
                                _ -> Copied
                            end,
    As = case Options of #{keep := true} -> copied; _ -> redriven end,
    S1 = publish(As, X, Key, Tag, #amqp_msg{props = Properties, payload = Payload}, S),
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
hold(Why, Tag, Message, Headers, S) ->
    case is_last_delivery(Headers, S) of
        true -> move(Tag, Message, count(Why, S));
        false -> held(count(Why, S))
    end.

is_last_delivery(#{<<"x-delivery-count">> := Count}, #s{delivery_limit = Limit}) ->
    is_integer(Count) andalso is_integer(Limit) andalso Count >= Limit;
is_last_delivery(_, _) ->
    false.

move(Tag, #amqp_msg{props = #'P_basic'{headers = Table} = Properties} = Message,
     #s{options = #{queue := Queue}} = S) ->
    Uncounted = Properties#'P_basic'{headers = rabbit_delay_deaths:to_queue(Table)},
    publish(moved, <<>>, Queue, Tag, Message#amqp_msg{props = Uncounted}, S).

held(#s{consumer = C} = S) -> S#s{consumer = rabbit_delay_redrive_consumer:hold(C)}.

acked(Tag, #s{consumer = C} = S) -> S#s{consumer = rabbit_delay_redrive_consumer:ack(Tag, C)}.

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

settle(SeqNo, #s{in_flight = InFlight} = S0) ->
    {{As, Tag, Target, _, Sent}, Rest} = maps:take(SeqNo, InFlight),
    S = S0#s{in_flight = Rest},
    case Sent of
        returned ->
            held(count(unroutable, S));
        sent when As =:= copied ->
            held(count_target(Target, count(redriven, S)));
        sent ->
            case As of
                redriven -> count_target(Target, count(redriven, acked(Tag, S)));
                moved -> count(moved, acked(Tag, S))
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
