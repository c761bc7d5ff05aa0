%% SPDX-License-Identifier: MPL-2.0

%% What the adapters for all series have in common, compiled into each with the records of its series.
%% An adapter includes it behind its own attributes, with rabbit.hrl and rabbit_framing.hrl before it,
%% and has series/0, is_alive/1, internal/2, delete_queue/1 and decode/3.

-export([is_booted/0, cluster_nodes/0, sync_metadata/0, scratch/2, exchange_name/1, exchange_type/1, exchange_arguments/1, binding_key/1,
         is_durable/1, is_delayed/1, lookup_exchange/1, may_forward/2, is_permitted/3,
         channel_user/0]).
-export([decode/2, dead_letter/4, serves_client/0, keeps_unrouted/0, delivery/1, confirm/3, reject/3, ack_credit/2]).
-export([declare_queue/3, queue_stats/2, publisher/0, queue_name/1, raft_servers/1, led_by/2, sends_again/1,
         count_published/3, uncount_published/4]).

-export_type([publisher/0, exchange/0, content/0]).

-type exchange() :: #exchange{}.
-type content() :: #{exchange := binary(), routing_keys := [binary()],
                     properties := [{atom(), binary() | integer()}],
                     headers := rabbit_framing:amqp_table(), payload := iodata()}.
-opaque publisher() :: rabbit_queue_type:state().

%% In the dictionary of a queue's process: what is not taken back yet.
-define(UNCOUNTED, {?MODULE, uncounted}).

-define(WITHOUT_NACKS, ['STOMP', 'Web STOMP', 'MQTT', 'Web MQTT', 'AMQP']).

%% Who rabbitmqctl acts as.
-define(CLI_USER, <<"rmq-cli">>).

%% What a stored message says of how it is to be read, a number of 16 bits:
%%
%%   bits 0 to 7   the encoding: one of those below
%%   bits 8 to 14  series/0 of who stored it: 1 is 3.10, 2 is 3.13 to 4.2, 3 is 4.3; 0.1 said nothing, 0
%%   bit 15        rabbit_delay_retry's
%%
%% Numbers are never used again. docs/internals/formats.md has the rules.
-define(STORED(Encoding), ((series() bsl 8) bor Encoding)).

%% #basic_message{} of 3.10, its content in encoded form, as term_to_binary/1 writes it.
-define(ENCODING_BASIC_MESSAGE_3_10, 1).

%% Of AMQP 0-9-1: what content belongs to.
-define(CLASS_BASIC, 60).

%% Whether the broker has booted, so that a boot step runs because a plugin was enabled.
-spec is_booted() -> boolean().
is_booted() -> rabbit:is_booted().

%% All that are in the cluster, whether they run or not, this one among them.
-spec cluster_nodes() -> [node()].
cluster_nodes() -> rabbit_nodes:all().

%% What this node knows of exchanges and bindings it still knows after a crash. Mnesia may have it in memory
%% alone for two seconds, as the broker does not always wait for it to be written; Khepri does. A node
%% without a disk has no log.
-spec sync_metadata() -> ok.
sync_metadata() ->
    _ = case whereis(mnesia_sup) of
            undefined -> ok;
            _ -> mnesia:sync_log()
        end,
    ok.

%% What App keeps in the exchange's record.
-spec scratch(exchange(), App :: atom()) -> {ok, term()} | none.
scratch(#exchange{scratches = [_ | _] = Scratches}, App) ->
    case orddict:find(App, Scratches) of
        {ok, Scratch} -> {ok, Scratch};
        error -> none
    end;
scratch(_, _) ->
    none.

-spec exchange_name(exchange()) -> rabbit_exchange:name().
exchange_name(#exchange{name = Name}) -> Name.

-spec exchange_type(exchange()) -> atom().
exchange_type(#exchange{type = Type}) -> Type.

-spec exchange_arguments(exchange()) -> rabbit_framing:amqp_table().
exchange_arguments(#exchange{arguments = Args}) -> Args.

-spec binding_key(rabbit_types:binding()) -> binary().
binding_key(#binding{key = Key}) -> Key.

-spec is_durable(exchange()) -> boolean().
is_durable(#exchange{durable = Durable}) -> Durable.

%% Whether it is of our type.
-spec is_delayed(exchange()) -> boolean().
is_delayed(#exchange{type = Type}) -> Type =:= 'x-delayed-message'.

-spec lookup_exchange(rabbit_exchange:name()) -> {ok, exchange()} | {error, not_found}.
lookup_exchange(Name) -> rabbit_exchange:lookup(Name).

%% Whether whoever declares the exchange may have it forward messages to exchange Name: what the
%% broker asks for an alternate exchange. Where users cannot be looked up by their names, as with
%% OAuth 2, nobody may.
-spec may_forward(exchange(), Name :: binary()) -> boolean().
may_forward(#exchange{options = #{user := User}}, _) when User =:= ?INTERNAL_USER;
                                                          User =:= ?CLI_USER ->
    true;
may_forward(#exchange{name = XName, options = #{user := Username}}, Name) ->
    case rabbit_access_control:check_user_login(Username, []) of
        {ok, User} ->
            is_permitted(User, XName, read)
                andalso is_permitted(User, XName#resource{name = Name}, write);
        _ ->
            false
    end;
may_forward(_, _) ->
    false.

%% The user of the channel whose process this is.
-spec channel_user() -> {ok, rabbit_types:username()} | unknown.
channel_user() ->
    case is_channel() andalso ets:lookup(channel_created, self()) of
        [{_, Infos}] ->
            case lists:keyfind(user, 1, Infos) of
                {user, Username} when is_binary(Username) -> {ok, Username};
                _ -> unknown
            end;
        _ ->
            unknown
    end.

%% STOMP has no nack, nor have the plugins that bring MQTT and AMQP 1.0 by a channel: their connections
%% end over one, and do not say why.
channel_takes_nacks() ->
    case [Connection || {_, Infos} <- ets:lookup(channel_created, self()),
                        {connection, Pid} <- Infos,
                        {_, Connection} <- ets:lookup(connection_created, Pid)] of
        [Infos] ->
            case lists:keyfind(protocol, 1, Infos) of
                {protocol, {Name, _}} -> not lists:member(Name, ?WITHOUT_NACKS);
                _ -> true
            end;
        [] ->
            true
    end.

-spec is_permitted(rabbit_types:user(), rabbit_types:r(exchange | queue), configure | write | read) ->
          boolean().
is_permitted(User, Resource, Permission) ->
    try
        rabbit_access_control:check_resource_access(User, Resource, Permission, #{}) =:= ok
    catch
        exit:#amqp_error{} -> false
    end.

%% ----------------------------------------------------------------------------- messages

%% What encode/1 gave, here or in an earlier series. What a later version or series stored may look as
%% if it could be read: it is not tried.
-spec decode(Number :: non_neg_integer(), binary()) ->
          {ok, message()} | {error, {unknown_encoding, Encoding :: byte(), Series :: byte()} | term()}.
decode(Number, Binary) ->
    Ours = series(),
    case {Number band 16#ff, (Number bsr 8) band 16#7f} of
        {Encoding, Series} when Series =< Ours ->
            case decode(Encoding, rabbit_delay_retry:is_marked(Number), Binary) of
                unknown -> {error, {unknown_encoding, Encoding, Series}};
                Result -> Result
            end;
        {Encoding, Series} ->
            {error, {unknown_encoding, Encoding, Series}}
    end.

%% A dead letter made anew, as a queue would send it to exchange XName: its deaths are those of its headers.
-spec dead_letter(rabbit_exchange:name(), Keys :: [binary(), ...], #'P_basic'{}, Payload :: binary()) ->
          message().
dead_letter(XName, Keys, #'P_basic'{delivery_mode = Mode} = Properties, Payload) ->
    Content = #content{class_id = ?CLASS_BASIC, properties = Properties, properties_bin = none,
                       protocol = none, payload_fragments_rev = [Payload]},
    {ok, Message} = decode(?ENCODING_BASIC_MESSAGE_3_10, true,
                           term_to_binary(#basic_message{exchange_name = XName, routing_keys = Keys,
                                                         content = Content, id = <<>>,
                                                         is_persistent = Mode =:= 2})),
    Message.

%% Whether this process serves a client that declares: a channel, a session or a request of the HTTP
%% API. Definitions are imported by other processes.
-spec serves_client() -> boolean().
serves_client() ->
    case get('$initial_call') of
        {Module, _, _} -> lists:member(Module, [rabbit_channel, rabbit_amqp_session, cowboy_stream_h]);
        _ -> false
    end.

is_channel() ->
    case get('$initial_call') of
        {rabbit_channel, init, _} -> true;
        _ -> false
    end.

%% Whether the process that routes keeps what is not routed, and tries again: the worker that
%% dead-letters at least once.
-spec keeps_unrouted() -> boolean().
keeps_unrouted() ->
    case get('$initial_call') of
        {rabbit_fifo_dlx_worker, _, _} -> true;
        _ -> false
    end.

message_id_of(Content) ->
    #content{properties = #'P_basic'{message_id = Id}} =
        rabbit_binary_parser:ensure_content_decoded(Content),
    Id.

content_of(Exchange, Keys, Content) ->
    #content{properties = Properties, payload_fragments_rev = Payload} =
        rabbit_binary_parser:ensure_content_decoded(Content),
    #'P_basic'{headers = Headers} = Properties,
    #{exchange => Exchange, routing_keys => Keys,
      properties => set_properties(record_info(fields, 'P_basic'), 2, Properties),
      headers => case Headers of undefined -> []; _ -> Headers end,
      payload => lists:reverse(Payload)}.

set_properties([], _, _) -> [];
set_properties([headers | Names], N, Properties) -> set_properties(Names, N + 1, Properties);
set_properties([Name | Names], N, Properties) ->
    case element(N, Properties) of
        undefined -> set_properties(Names, N + 1, Properties);
        Value -> [{Name, Value} | set_properties(Names, N + 1, Properties)]
    end.

%% With these headers besides its own, or in their place.
content_with_headers(Added, Content) ->
    rabbit_basic:map_headers(
      fun (undefined) -> Added;
          (Headers) -> lists:foldl(fun (Field, Acc) ->
                                           lists:keystore(element(1, Field), 1, Acc, Field)
                                   end, Headers, Added)
      end, Content).

%% ------------------------------------------------ the classic queue process's protocol

%% A message handed to our queue process: who sent it, what to confirm it with (undefined: nothing),
%% and whether the sender awaits credit for it.
-spec delivery(term()) ->
          {ok, message(), Sender :: pid(), SeqNo :: undefined | pos_integer(), flow | noflow} |
          unknown.
delivery({deliver, #delivery{message = Message, sender = Sender, flow = Flow,
                             confirm = Confirm, msg_seq_no = SeqNo}, _}) ->
    {ok, Message, Sender, case Confirm of true -> SeqNo; _ -> undefined end, Flow};
delivery(_) ->
    unknown.

-spec confirm(Sender :: pid(), rabbit_amqqueue:name(), [pos_integer()]) -> ok.
confirm(Sender, QName, SeqNos) ->
    rabbit_classic_queue:confirm_to_sender(Sender, QName, SeqNos).

-spec reject(Sender :: pid(), rabbit_amqqueue:name(), pos_integer()) -> ok.
reject(Sender, QName, SeqNo) ->
    rabbit_classic_queue:send_rejection(Sender, QName, SeqNo).

-spec ack_credit(Sender :: pid(), flow | noflow) -> ok.
ack_credit(Sender, flow) -> credit_flow:ack(Sender);
ack_credit(_, noflow) -> ok.

%% ------------------------------------------------------------- the internal queue's record

%% Records that QName, of exchange XName, is served by process Pid. The record is non-durable, and
%% exclusive to Pid so that clients are refused any use of it.
-spec declare_queue(rabbit_amqqueue:name(), rabbit_exchange:name(), pid()) -> ok | {error, term()}.
declare_queue(#resource{virtual_host = VHost} = QName, XName, Pid) ->
    Q = internal(amqqueue:new(QName, Pid, false, false, Pid, [], VHost,
                              #{user => ?INTERNAL_USER}, rabbit_classic_queue), XName),
    case rabbit_amqqueue:internal_declare(Q, false) of
        {created, _} ->
            ok;
        {existing, Existing} ->
            case amqqueue:get_pid(Existing) of
                Pid ->
                    ok;
                Other ->
                    case is_pid(Other) andalso is_alive(Other) of
                        true ->
                            {error, {name_taken, QName}};
                        false ->
                            ok = delete_queue(QName),
                            declare_queue(QName, XName, Pid)
                    end
            end;
        Other ->
            {error, Other}
    end.

%% What the management pages and Prometheus show of the internal queue. Nothing of it is ready: nobody could
%% consume it, and alerts and autoscalers that look at all queues would take it for a backlog.
-spec queue_stats(rabbit_amqqueue:name(), Pending :: non_neg_integer()) -> ok.
queue_stats(QName, Pending) ->
    _ = [uncount(Id, N) || {{?UNCOUNTED, Id}, N} <- get()],
    {reductions, Reductions} = process_info(self(), reductions),
    %% Without the counts, which the management plugin adds from the second call.
    rabbit_core_metrics:queue_stats(QName, [{consumers, 0}, {state, running}]),
    rabbit_core_metrics:queue_stats(QName, 0, 0, Pending, Reductions).

%% -------------------------------------------------------------------------------- release

%% The state that publishing to queues and awaiting their confirms needs.
-spec publisher() -> publisher().
publisher() -> rabbit_queue_type:init().

-spec queue_name(queue()) -> rabbit_amqqueue:name().
queue_name(Q) -> amqqueue:get_name(Q).

%% Of a quorum queue. What routing answers from 4.3 on does not say where its members are.
-spec raft_servers(queue()) -> [ra:server_id()].
raft_servers(Q) ->
    case amqqueue:get_type(Q) =:= rabbit_quorum_queue andalso rabbit_amqqueue:lookup(amqqueue:get_name(Q)) of
        {ok, Whole} ->
            {Name, _} = amqqueue:get_pid(Whole),
            case amqqueue:get_type_state(Whole) of
                #{nodes := Nodes} when is_list(Nodes) -> [{Name, Node} || Node <- Nodes];
                #{nodes := Nodes} when is_map(Nodes) -> [{Name, Node} || Node <- maps:keys(Nodes)];
                _ -> []
            end;
        _ ->
            []
    end.

%% The queue as one that this server leads, once this node knows of no other leader: a client that is begun
%% with it asks that server first.
-spec led_by(queue(), ra:server_id()) -> {ok, queue()} | unknown.
led_by(Q, {Name, _} = Leader) ->
    case ra_leaderboard:lookup_leader(Name) of
        Known when Known =:= Leader; Known =:= undefined ->
            case amqqueue:get_type_state(Q) of
                #{nodes := _} -> {ok, amqqueue:set_pid(Q, Leader)};
                %% No whole record: the client looks the queue up.
                _ -> {ok, Q}
            end;
        _ ->
            unknown
    end.

%% Whether the queue's client sends what it has not seen confirmed again, by itself, when the queue has
%% a leader again.
-spec sends_again(rabbit_amqqueue:name()) -> boolean().
sends_again(QName) ->
    case rabbit_amqqueue:lookup(QName) of
        {ok, Q} -> lists:member(amqqueue:get_type(Q), [rabbit_quorum_queue, rabbit_stream_queue]);
        {error, not_found} -> false
    end.

%% The management pages' rates: N messages that were published to exchange XName went into queue
%% QName.
-spec count_published(rabbit_exchange:name(), rabbit_amqqueue:name(), pos_integer()) -> ok.
count_published(XName, QName, N) ->
    case application:get_env(rabbit, collect_statistics) of
        {ok, fine} ->
            rabbit_core_metrics:channel_stats(queue_exchange_stats, publish,
                                              {self(), {QName, XName}}, N);
        _ ->
            ok
    end.

%% A channel has counted our internal queue QName as one that N messages went into. That is taken
%% back where it stands, so that it goes with the channel. The channel may be about to count: then it
%% is taken back with the next statistics of this process.
-spec uncount_published(Sender :: pid(), rabbit_exchange:name(), rabbit_amqqueue:name(),
                        pos_integer()) -> ok.
uncount_published(Sender, XName, QName, N) ->
    case application:get_env(rabbit, collect_statistics) of
        {ok, fine} ->
            Id = {Sender, {QName, XName}},
            uncount(Id, N + case get({?UNCOUNTED, Id}) of undefined -> 0; Before -> Before end);
        _ ->
            ok
    end.

uncount({Sender, _} = Id, N) ->
    IsCounting = ets:member(channel_created, Sender),
    case IsCounting andalso
        ets:select_replace(channel_queue_exchange_metrics,
                           [{{Id, '$1', 0}, [{'>=', '$1', N}],
                             [{{{const, Id}, {'-', '$1', N}, 0}}]}]) of
        0 -> put({?UNCOUNTED, Id}, N);
        _ -> erase({?UNCOUNTED, Id})
    end,
    ok.
