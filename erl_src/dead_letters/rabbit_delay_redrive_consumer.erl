%% SPDX-License-Identifier: MPL-2.0

%% The consumer by which a redrive takes messages out of a queue: how many it may have unacknowledged, and
%% how it ends without harm to those that it has and does not want. It is a value of the redrive's process,
%% which gets the deliveries.
%%
%% What a quorum queue has sent to a consumer that is cancelled meanwhile goes back, which counts as a
%% delivery, and is dropped if that is one too many. So before it is cancelled all that may come has come.
-module(rabbit_delay_redrive_consumer).

-include_lib("amqp_client/include/amqp_client.hrl").

-export([new/2, allow/2, hold/1, delivered/1, ack/2, close/1, ended/1]).
-export([out/1, await_acknowledged/1, await_given_back/2]).

-export_type([consumer/0, delivery/0]).

-type delivery() :: {Tag :: pos_integer(), #amqp_msg{}, #'basic.deliver'{}}.

-record(consumer, {channel :: pid(),
                   queue :: binary(),
                   %% how many consumers it is made of, and how much those may have
                   consumers = 0 :: non_neg_integer(),
                   credit = 0 :: non_neg_integer(),
                   delivered = 0 :: non_neg_integer(),
                   acked = 0 :: non_neg_integer(),
                   held = 0 :: non_neg_integer(),
                   %% it asks for no more
                   closed = false :: boolean()}).

-opaque consumer() :: #consumer{}.

-define(TAG, <<"redrive_dead_letters">>).
-define(MAX_PREFETCH, 65535).
-define(LOOK_MS, 50).
-define(SETTLED_MS, 1000).
%% A queue that has a message for it and does not send it for so long has lost its leader, or another
%% consumer that is the only one.
-define(COMING_MS, 5000).
%% What others take and give back changes the number of those that are out, too: it is looked at for no longer.
-define(ACKNOWLEDGED_MS, 15000).

-spec new(Channel :: pid(), Queue :: binary()) -> consumer().
new(Channel, Queue) ->
    #consumer{channel = Channel, queue = Queue}.

%% One more consumer gives that much more credit, on queues of either type.
-spec allow(Prefetch :: pos_integer(), consumer()) -> consumer().
allow(Prefetch, #consumer{channel = Channel, queue = Queue, consumers = N, credit = Credit} = C) ->
    #'basic.qos_ok'{} = amqp_channel:call(Channel, #'basic.qos'{prefetch_count = Prefetch}),
    #'basic.consume_ok'{} =
        amqp_channel:subscribe(Channel, #'basic.consume'{queue = Queue, consumer_tag = tag(N + 1)}, self()),
    C#consumer{consumers = N + 1, credit = Credit + Prefetch}.

tag(N) -> <<?TAG/binary, ".", (integer_to_binary(N))/binary>>.

%% One more stays with it until it ends.
-spec hold(consumer()) -> consumer().
hold(#consumer{closed = true} = C) ->
    C;
hold(#consumer{held = Held, credit = Credit} = C) when Held + 1 >= Credit div 2 ->
    allow(min(?MAX_PREFETCH, Credit), C#consumer{held = Held + 1});
hold(#consumer{held = Held} = C) ->
    C#consumer{held = Held + 1}.

-spec delivered(consumer()) -> consumer().
delivered(#consumer{delivered = N} = C) -> C#consumer{delivered = N + 1}.

-spec ack(Tag :: pos_integer(), consumer()) -> consumer().
ack(Tag, #consumer{channel = Channel, acked = N} = C) ->
    ok = amqp_channel:cast(Channel, #'basic.ack'{delivery_tag = Tag}),
    C#consumer{acked = N + 1}.

-spec close(consumer()) -> consumer().
close(C) -> C#consumer{closed = true}.

%% Nothing more comes after that; with what has come meanwhile. Exits as amqp_channel does.
-spec ended(consumer()) -> {[delivery()], consumer()}.
ended(#consumer{channel = Channel, consumers = N} = C) ->
    Coming = coming(now_ms() + ?COMING_MS, [], C),
    _ = [amqp_channel:call(Channel, #'basic.cancel'{consumer_tag = tag(I)}) || I <- lists:seq(1, N)],
    {lists:reverse(in_mailbox(Coming)), close(C)}.

coming(_, Acc, #consumer{credit = Credit, delivered = Delivered, acked = Acked})
  when Delivered - Acked >= Credit ->
    Acc;
coming(Until, Acc, #consumer{channel = Channel, queue = Queue} = C) ->
    receive
        {#'basic.deliver'{delivery_tag = Tag} = Deliver, #amqp_msg{} = Message} ->
            coming(Until, [{Tag, Message, Deliver} | Acc], delivered(C))
    after ?LOOK_MS ->
            case amqp_channel:call(Channel, #'queue.declare'{queue = Queue, passive = true}) of
                #'queue.declare_ok'{message_count = 0} -> Acc;
                _ -> case now_ms() > Until of
                         true -> Acc;
                         false -> coming(Until, Acc, C)
                     end
            end
    end.

in_mailbox(Acc) ->
    receive
        {#'basic.deliver'{delivery_tag = Tag} = Deliver, #amqp_msg{} = Message} ->
            in_mailbox([{Tag, Message, Deliver} | Acc])
    after 0 ->
            Acc
    end.

%% How many messages of a quorum queue are out with consumers.
-spec out(rabbit_amqqueue:name()) -> non_neg_integer() | unknown.
out(QName) ->
    case rabbit_amqqueue:lookup(QName) of
        {ok, Q} ->
            case amqqueue:get_type(Q) of
                rabbit_quorum_queue ->
                    case ra:local_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_checked_out/1) of
                        {ok, {_, N}, _} -> N;
                        _ -> unknown
                    end;
                _ ->
                    unknown
            end;
        {error, not_found} ->
            unknown
    end.

%% A channel sends acknowledgements to a quorum queue as fast as that takes them, and forgets the rest
%% when it is closed: messages that were moved would be in both places. So it is closed when the number
%% of messages that are out no longer changes, and, where others keep changing it, after a time that a queue
%% which keeps up does not need.
-spec await_acknowledged(rabbit_amqqueue:name()) -> ok.
await_acknowledged(QName) -> await_out(QName, 0, ?SETTLED_MS, ?ACKNOWLEDGED_MS).

%% The queue learns some time after that the channel is closed. Until then who asks again would not find what
%% was given back. Before: how many were out with others.
-spec await_given_back(rabbit_amqqueue:name(), Before :: non_neg_integer() | unknown) -> ok.
await_given_back(_, unknown) -> ok;
await_given_back(QName, Before) -> await_out(QName, Before, ?COMING_MS, ?COMING_MS).

%% Until it is no more than Wanted, or has been the same for so long, or for no longer than Longest.
await_out(QName, Wanted, Ms, Longest) ->
    Now = now_ms(),
    await_out(QName, Wanted, Ms, none, Now, Now + Longest).

await_out(QName, Wanted, Ms, Last, Since, Until) ->
    Now = now_ms(),
    case out(QName) of
        unknown -> ok;
        N when N =< Wanted -> ok;
        N when N =:= Last, Now - Since >= Ms -> ok;
        _ when Now >= Until -> ok;
        N ->
            timer:sleep(?LOOK_MS),
            await_out(QName, Wanted, Ms, N, case N of Last -> Since; _ -> Now end, Until)
    end.

now_ms() -> erlang:monotonic_time(millisecond).
