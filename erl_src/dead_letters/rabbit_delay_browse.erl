%% SPDX-License-Identifier: MPL-2.0

%% Looks at the messages of a queue and leaves them there. What that changes:
%%
%%   quorum queue   nothing: they are read from its log
%%   classic queue  messages are fetched and given back in their place. They are marked redelivered,
%%                  and while it looks consumers do not get them
%%
%% It runs in the process that asks, for no longer than ?LOOK_MS, and holds one message at a time.
%% rabbit_delay_budget bounds how many queues are looked at in all.
-module(rabbit_delay_browse).

-include_lib("amqp_client/include/amqp_client.hrl").

-export([fold/5, usual_max/2, no_queue/2, message/3]).

%% Each message of a quorum queue is looked for from the queue's head on, in the queue's own process: so
%% many take 1 s or 2, ten times as many a hundred times as long.
-define(QUORUM_MAX, 3000).
-define(CLASSIC_MAX, 100000).

%% It ends after so long, wherever it is.
-define(LOOK_MS, 20000).

-export_type([message/0, error/0]).

%% Properties as rabbit_delay_broker:content() has them.
-type message() :: #{exchange := binary(), key := binary(), table := undefined | list(),
                     headers := rabbit_delay_deaths:headers(), properties := [{atom(), term()}],
                     payload := binary()}.

-type error() :: {error, {bad_request | forbidden | not_found | unavailable, Why :: binary()}}.

%% As many messages as it is wise to look at in such a queue.
-spec usual_max(rabbit_types:vhost(), Queue :: binary()) -> pos_integer().
usual_max(VHost, Queue) ->
    case rabbit_amqqueue:lookup(rabbit_misc:r(VHost, queue, Queue)) of
        {ok, Q} ->
            case amqqueue:get_type(Q) of
                rabbit_quorum_queue -> ?QUORUM_MAX;
                _ -> ?CLASSIC_MAX
            end;
        {error, _} ->
            ?CLASSIC_MAX
    end.

%% Over no more than Max messages, from the head or after so many that are passed over, until Fun says {enough, Acc}. Truncated: the time was over
%% before. Fails for a queue that cannot be looked at, and where the node has enough to do with others'
%% looking.
-spec fold(rabbit_types:vhost(), Queue :: binary(),
           Max :: pos_integer() | {After :: non_neg_integer(), Max :: pos_integer()},
           fun((message(), Acc) -> Acc | {enough, Acc}), Acc) ->
          {ok, Acc, Truncated :: boolean()} | error().
fold(VHost, Queue, Max, Fun, Acc) when is_integer(Max) ->
    fold(VHost, Queue, {0, Max}, Fun, Acc);
fold(VHost, Queue, {After, Max}, Fun, Acc) ->
    Deadline = erlang:monotonic_time(millisecond) + ?LOOK_MS,
    case rabbit_amqqueue:lookup(rabbit_misc:r(VHost, queue, Queue)) of
        {ok, Q} ->
            case amqqueue:get_type(Q) of
                rabbit_quorum_queue ->
                    rabbit_delay_budget:with(
                      looks, 1, fun () ->
                                        peek(amqqueue:get_pid(Q), After + 1, After + Max, Deadline, Fun, Acc)
                                end);
                rabbit_classic_queue ->
                    rabbit_delay_budget:with(
                      looks, 1, fun () ->
                                        get_all(VHost, Queue, {After, Max}, Deadline, Fun, Acc)
                                end);
                Type ->
                    {error, {bad_request, iolist_to_binary(
                                            io_lib:format("a ~s cannot be browsed", [Type]))}}
            end;
        {error, _} ->
            no_queue(VHost, Queue)
    end.

-spec no_queue(rabbit_types:vhost(), Queue :: binary()) -> error().
no_queue(VHost, Queue) ->
    {error, {not_found, <<"there is no ",
                          (rabbit_delay_text:rs(rabbit_misc:r(VHost, queue, Queue)))/binary>>}}.

peek(Leader, Pos, Max, Deadline, Fun, Acc) ->
    case Pos > Max orelse is_late(Deadline) orelse ra:aux_command(Leader, {peek, Pos}) of
        true ->
            {ok, Acc, Pos =< Max};
        {ok, {_, Message}} ->
            case Fun(peeked(rabbit_delay_broker:content(Message)), Acc) of
                {enough, Last} -> {ok, Last, false};
                Next -> peek(Leader, Pos + 1, Max, Deadline, Fun, Next)
            end;
        {error, no_message_at_pos} ->
            {ok, Acc, false};
        _ ->
            unavailable("the quorum queue's leader does not answer", [])
    end.

peeked(#{exchange := X, routing_keys := Keys, headers := Table, properties := Properties,
         payload := Payload}) ->
    Key = case Keys of [First | _] -> First; [] -> <<>> end,
    as_message({X, Key}, {Table, Properties}, iolist_to_binary(Payload)).

is_late(Deadline) -> erlang:monotonic_time(millisecond) > Deadline.

unavailable(Format, Args) ->
    {error, {unavailable, unicode:characters_to_binary(io_lib:format(Format, Args))}}.

get_all(VHost, Queue, {After, Max}, Deadline, Fun, Acc) ->
    case rabbit_delay_connection:open(VHost, <<"browse ", (rabbit_delay_text:escaped(Queue))/binary>>) of
        {ok, {_, Channel} = Connection} ->
            try
                get_each(Channel, Queue, After, Max, Deadline, Fun, Acc)
            catch
                exit:Reason ->
                    unavailable("the queue cannot be looked at: ~ts", [rabbit_delay_connection:ended(Reason)])
            after
                %% What was fetched goes back to its place.
                rabbit_delay_connection:close(Connection)
            end;
        {error, _} = Error ->
            Error
    end.

get_each(_, _, _, 0, _, _, Acc) ->
    {ok, Acc, false};
get_each(Channel, Queue, After, Left, Deadline, Fun, Acc) ->
    case is_late(Deadline) orelse amqp_channel:call(Channel, #'basic.get'{queue = Queue}) of
        true ->
            {ok, Acc, true};
        {#'basic.get_ok'{}, _} when After > 0 ->
            get_each(Channel, Queue, After - 1, Left, Deadline, Fun, Acc);
        {#'basic.get_ok'{exchange = X, routing_key = Key}, Message} ->
            case Fun(message(X, Key, Message), Acc) of
                {enough, Last} -> {ok, Last, false};
                Next -> get_each(Channel, Queue, 0, Left - 1, Deadline, Fun, Next)
            end;
        #'basic.get_empty'{} ->
            {ok, Acc, false}
    end.

%% A message as it is delivered.
-spec message(Exchange :: binary(), Key :: binary(), #amqp_msg{}) -> message().
message(X, Key, #amqp_msg{props = #'P_basic'{headers = Table} = Properties, payload = Payload}) ->
    as_message({X, Key}, {Table, rabbit_delay_dead_letter:properties(Properties)}, Payload).

as_message({X, Key}, {Table, Properties}, Payload) ->
    #{exchange => X, key => Key, table => Table, headers => rabbit_delay_deaths:plain(Table),
      properties => Properties, payload => Payload}.
