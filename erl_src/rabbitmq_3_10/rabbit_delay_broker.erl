%% SPDX-License-Identifier: MPL-2.0

%% The broker as the rest of the plugin sees it: whatever differs between RabbitMQ's series is here,
%% and nowhere else. This is the adapter for RabbitMQ 3.10.
-module(rabbit_delay_broker).

-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").
-include_lib("amqp10_common/include/amqp10_framing.hrl").

-export([series/0, data_dir/0, is_booted/0, machine_state/1]).
-export([exchange_name/1, exchange_arguments/1, is_durable/1, is_delayed/1, lookup_exchange/1,
         delayed_exchanges/0, durable_delayed_exchanges/0]).
-export([restore_bindings/2, add_binding/4, remove_bindings/4, delete_exchange/4, route_by/4]).
-export([message_of/1, confirms/1, parsed/1, headers/1, message_id/1, payload_size/1,
         exchange_of/2, encode/1, decode/2, routing/1, content/1, released/1, dead_lettered/4]).
-export([delivery/1, confirm/3, reject/3, ack_credit/2, raise_to_client/3]).
-export([declare_queue/3, delete_queue/1, queue_pid/1, queue_stats/2]).
-export([publisher/0, route/2, publish/4, handle_event/3, handle_down/2, count_published/3,
         queue_name/1]).

-export_type([message/0, delivery/0, publisher/0, exchange/0, queue/0, content/0]).

-type exchange() :: #exchange{}.
-type message() :: #basic_message{}.
-type delivery() :: #delivery{}.
-type queue() :: amqqueue:amqqueue().
-type content() :: #{exchange := binary(), routing_keys := [binary()],
                     properties := [{atom(), binary() | integer()}],
                     headers := rabbit_framing:amqp_table(), payload := iodata()}.
-opaque publisher() :: rabbit_queue_type:state().

%% #basic_message{} of 3.10, its content in encoded form, as term_to_binary/1 writes it.
-define(ENCODING_BASIC_MESSAGE_3_10, 1).

%% Where the AMQP 1.0 plugin keeps a message's annotations, as they came.
-define(AMQP10_ANNOTATIONS, <<"x-amqp-1.0-message-annotations">>).

%% ------------------------------------------------------------------------------- the node

-spec series() -> string().
series() -> "3.10".

%% The directory that holds this node's data.
-spec data_dir() -> file:filename().
data_dir() -> rabbit_mnesia:dir().

%% Whether the broker has booted, so that a boot step runs because a plugin was enabled.
-spec is_booted() -> boolean().
is_booted() -> rabbit:is_booted().

%% The machine's state, of what Ra gives to handle_aux/5; this Ra calls handle_aux/6.
-spec machine_state(State) -> State.
machine_state(State) -> State.

%% ---------------------------------------------------------------------------- exchanges

-spec exchange_name(exchange()) -> rabbit_exchange:name().
exchange_name(#exchange{name = Name}) -> Name.

-spec exchange_arguments(exchange()) -> rabbit_framing:amqp_table().
exchange_arguments(#exchange{arguments = Args}) -> Args.

-spec is_durable(exchange()) -> boolean().
is_durable(#exchange{durable = Durable}) -> Durable.

%% Whether it is of our type.
-spec is_delayed(exchange()) -> boolean().
is_delayed(#exchange{type = Type}) -> Type =:= 'x-delayed-message'.

-spec lookup_exchange(rabbit_exchange:name()) -> {ok, exchange()} | {error, not_found}.
lookup_exchange(Name) -> rabbit_exchange:lookup(Name).

%% Those that exist now, in every vhost.
-spec delayed_exchanges() -> [exchange()].
delayed_exchanges() ->
    mnesia:dirty_match_object(rabbit_exchange, #exchange{type = 'x-delayed-message', _ = '_'}).

%% Those that will exist when every vhost has been recovered.
-spec durable_delayed_exchanges() -> [exchange()].
durable_delayed_exchanges() ->
    mnesia:dirty_match_object(rabbit_durable_exchange,
                              #exchange{type = 'x-delayed-message', _ = '_'}).

%% The topic type's index of an exchange's bindings is not filled when the broker recovers while
%% our exchange type is unknown to it: fill it if it is empty.
-spec restore_bindings(module(), exchange()) -> ok.
restore_bindings(rabbit_exchange_type_topic = Type, #exchange{name = Name} = X) ->
    Indexed = mnesia:dirty_match_object(
                rabbit_topic_trie_node,
                #topic_trie_node{trie_node = #trie_node{exchange_name = Name, _ = '_'}, _ = '_'}),
    case Indexed of
        [] ->
            rabbit_misc:execute_mnesia_transaction(
              fun () ->
                      _ = [ok = Type:add_binding(transaction, X, B)
                           || B <- rabbit_binding:list_for_source(Name)],
                      ok
              end);
        _ ->
            ok
    end;
restore_bindings(_, _) ->
    ok.

-spec add_binding(module(), transaction | none | pos_integer(), exchange(),
                  rabbit_types:binding()) -> ok.
add_binding(Type, Serial, X, Binding) ->
    Type:add_binding(Serial, X, Binding).

-spec remove_bindings(module(), transaction | none | pos_integer(), exchange(),
                      [rabbit_types:binding()]) -> ok.
remove_bindings(Type, Serial, X, Bindings) ->
    Type:remove_bindings(Serial, X, Bindings).

%% Called twice, in a transaction and after it. Deleted = true when the exchange is gone for good.
-spec delete_exchange(module(), transaction | none, exchange(), [rabbit_types:binding()]) ->
          Deleted :: boolean().
delete_exchange(Type, Serial, X, Bindings) ->
    ok = Type:delete(Serial, X, Bindings),
    Serial =:= none.

%% Where the exchange type Type sends what is published to X.
-spec route_by(module(), exchange(), delivery(), Options :: map()) -> rabbit_router:match_result().
route_by(Type, X, Delivery, _Options) ->
    Type:route(X, Delivery).

%% ----------------------------------------------------------------------------- messages

%% The message that an exchange is asked to route.
-spec message_of(delivery()) -> message().
message_of(#delivery{message = Message}) -> Message.

%% Whether the publisher awaits a confirm.
-spec confirms(delivery()) -> boolean() | unknown.
confirms(#delivery{confirm = Confirm}) -> Confirm.

%% With its properties parsed, so that those who read several things do it once.
-spec parsed(message()) -> message().
parsed(#basic_message{content = Content} = Message) ->
    Message#basic_message{content = rabbit_binary_parser:ensure_content_decoded(Content)}.

%% AMQP 1.0's message annotations among them.
-spec headers(message()) -> rabbit_delay_header:headers().
headers(#basic_message{content = Content}) ->
    Headers = rabbit_basic:extract_headers(Content),
    case amqp10_annotations(Headers) of
        [] ->
            Headers;
        Annotations ->
            [Field || Name <- rabbit_delay_header:names() ++ rabbit_delay_key:names(),
                      {{symbol, N}, Value} <- Annotations, N =:= Name,
                      Field <- rabbit_delay_header:from_amqp10(Name, Value)] ++ Headers
    end.

amqp10_annotations(undefined) ->
    [];
amqp10_annotations(Headers) ->
    case lists:keyfind(?AMQP10_ANNOTATIONS, 1, Headers) of
        {_, longstr, Binary} ->
            %% Anyone can send such a header.
            try amqp10_framing:decode_bin(Binary) of
                [#'v1_0.message_annotations'{content = Content}] when is_list(Content) -> Content;
                _ -> []
            catch
                _:_ -> []
            end;
        _ ->
            []
    end.

-spec message_id(message()) -> binary() | undefined.
message_id(#basic_message{content = Content}) ->
    #content{properties = #'P_basic'{message_id = Id}} =
        rabbit_binary_parser:ensure_content_decoded(Content),
    Id.

-spec payload_size(message()) -> non_neg_integer().
payload_size(#basic_message{content = #content{payload_fragments_rev = Payload}}) ->
    iolist_size(Payload).

%% The exchange that it was published to, which need not be the one that delays it.
-spec exchange_of(message(), rabbit_exchange:name()) -> rabbit_exchange:name().
exchange_of(#basic_message{exchange_name = XName}, _) -> XName.

%% What is stored of a message, and the number that says how to read it.
-spec encode(message()) -> {Encoding :: pos_integer(), binary()}.
encode(#basic_message{content = Content} = Message) ->
    Encoded = rabbit_binary_generator:ensure_content_encoded(Content, rabbit_framing_amqp_0_9_1),
    Stored = Message#basic_message{content = rabbit_binary_parser:clear_decoded_content(Encoded),
                                   id = <<>>},
    {?ENCODING_BASIC_MESSAGE_3_10, term_to_binary(Stored)}.

-spec decode(Encoding :: non_neg_integer(), binary()) -> {ok, message()} | {error, term()}.
decode(?ENCODING_BASIC_MESSAGE_3_10, Binary) ->
    try binary_to_term(Binary) of
        #basic_message{} = Message -> {ok, Message};
        _ -> {error, not_a_message}
    catch
        error:badarg -> {error, not_a_term}
    end;
decode(Encoding, _) ->
    {error, {unknown_encoding, Encoding}}.

%% Where it was published to, and with which routing keys.
-spec routing(message()) -> {Exchange :: binary(), [binary()]}.
routing(#basic_message{exchange_name = #resource{name = Exchange}, routing_keys = Keys}) ->
    {Exchange, Keys}.

%% What operators see of a message.
-spec content(message()) -> content().
content(#basic_message{exchange_name = #resource{name = Exchange}, routing_keys = Keys,
                       content = Content}) ->
    content_of(Exchange, Keys, Content).

content_of(Exchange, Keys, Content) ->
    #content{properties = Properties, payload_fragments_rev = Payload} =
        rabbit_binary_parser:ensure_content_decoded(Content),
    #'P_basic'{headers = Headers} = Properties,
    #{exchange => Exchange, routing_keys => Keys,
      properties => [{Name, Value}
                     || {Name, Value} <- lists:zip(record_info(fields, 'P_basic'),
                                                   tl(tuple_to_list(Properties))),
                        Name =/= headers, Value =/= undefined],
      headers => case Headers of undefined -> []; _ -> Headers end,
      payload => lists:reverse(Payload)}.

%% As it is delivered after its delay.
-spec released(message()) -> message().
released(#basic_message{content = Content} = Message) ->
    Message#basic_message{
      content = rabbit_basic:map_headers(
                  fun (Headers) -> negate_annotation(rabbit_delay_header:negate(Headers)) end,
                  Content)}.

%% As it goes to the dead-letter exchange XName: with these headers, and RoutingKey if that is not
%% undefined.
-spec dead_lettered(message(), XName :: binary(), RoutingKey :: binary() | undefined,
                    [{binary(), longstr | long, binary() | integer()}]) -> message().
dead_lettered(#basic_message{exchange_name = Name, content = Content} = Message, XName, RoutingKey,
              Added) ->
    Addressed = case RoutingKey of
                    undefined -> Message;
                    _ -> Message#basic_message{routing_keys = [RoutingKey]}
                end,
    Addressed#basic_message{
      exchange_name = Name#resource{name = XName},
      content = rabbit_basic:map_headers(fun (Headers) -> with_headers(Added, Headers) end,
                                         Content)}.

with_headers(Added, undefined) -> Added;
with_headers(Added, Headers) ->
    lists:foldl(fun (Field, Acc) -> lists:keystore(element(1, Field), 1, Acc, Field) end,
                Headers, Added).

negate_annotation(Headers) ->
    Annotations = amqp10_annotations(Headers),
    case negated([{Key, Field} || {{symbol, <<"x-delay">> = Name} = Key, Value} <- Annotations,
                                  Field <- rabbit_delay_header:from_amqp10(Name, Value)]) of
        {Key, Field} ->
            Value = rabbit_delay_header:to_amqp10(Field),
            Encoded = amqp10_framing:encode_bin(
                        #'v1_0.message_annotations'{
                           content = lists:keyreplace(Key, 1, Annotations, {Key, Value})}),
            lists:keyreplace(?AMQP10_ANNOTATIONS, 1, Headers,
                             {?AMQP10_ANNOTATIONS, longstr, iolist_to_binary(Encoded)});
        none ->
            Headers
    end.

negated([{Key, Field}]) ->
    case rabbit_delay_header:negate([Field]) of
        [Field] -> none;
        [Negated] -> {Key, Negated}
    end;
negated(_) ->
    none.

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

%% Raises an error that closes the channel whose message this process routes; every protocol is
%% served by channels. Returns where it is not a channel: in a queue that dead-letters to us for
%% example, where an error would end a process that other messages depend on.
-spec raise_to_client(precondition_failed | resource_error, io:format(), [term()]) -> no_client.
raise_to_client(Name, Format, Args) ->
    case get(process_name) of
        {rabbit_channel, _} -> rabbit_misc:protocol_error(Name, Format, Args);
        _ -> no_client
    end.

%% ------------------------------------------------------------- the internal queue's record

%% Records that QName, of exchange XName, is served by process Pid. The record is non-durable, and
%% exclusive to Pid so that clients are refused any use of it.
-spec declare_queue(rabbit_amqqueue:name(), rabbit_exchange:name(), pid()) -> ok | {error, term()}.
declare_queue(#resource{virtual_host = VHost} = QName, XName, Pid) ->
    Q = amqqueue:new(QName, Pid, false, false, Pid, [], VHost,
                     #{user => ?INTERNAL_USER}, rabbit_classic_queue),
    case rabbit_amqqueue:internal_declare(Q, false) of
        {created, _} ->
            ok;
        {existing, Existing} ->
            case amqqueue:get_pid(Existing) of
                Pid ->
                    ok;
                Other ->
                    case is_pid(Other) andalso rabbit_mnesia:is_process_alive(Other) of
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

-spec delete_queue(rabbit_amqqueue:name()) -> ok.
delete_queue(QName) ->
    rabbit_amqqueue:internal_delete(QName, ?INTERNAL_USER).

%% The process that the record names, if there is a record.
-spec queue_pid(rabbit_amqqueue:name()) -> pid() | undefined.
queue_pid(QName) ->
    case ets:lookup(rabbit_queue, QName) of
        [Q] -> amqqueue:get_pid(Q);
        [] -> undefined
    end.

%% What the management pages show of the internal queue.
-spec queue_stats(rabbit_amqqueue:name(), Pending :: non_neg_integer()) -> ok.
queue_stats(QName, Pending) ->
    {reductions, Reductions} = process_info(self(), reductions),
    %% Without the counts, which the management plugin adds from the second call.
    rabbit_core_metrics:queue_stats(QName, [{consumers, 0}, {state, running}]),
    rabbit_core_metrics:queue_stats(QName, Pending, 0, Pending, Reductions).

%% -------------------------------------------------------------------------------- release

%% The state that publishing to queues and awaiting their confirms needs.
-spec publisher() -> publisher().
publisher() -> rabbit_queue_type:init().

%% The queues that a message goes to from exchange X now.
-spec route(exchange(), message()) -> [queue()].
route(X, Message) ->
    Names = rabbit_exchange:route(X, rabbit_basic:delivery(false, true, Message, undefined)),
    rabbit_amqqueue:prepend_extra_bcc(rabbit_amqqueue:lookup(Names)).

-spec queue_name(queue()) -> rabbit_amqqueue:name().
queue_name(Q) -> amqqueue:get_name(Q).

%% Publishes to these queues; what becomes of it arrives as actions, now or from the two functions
%% below: {settled | rejected, QName, [SeqNo]}.
-spec publish([queue()], message(), SeqNo :: pos_integer(), publisher()) ->
          {ok, publisher(), [term()]} | {error, term()}.
publish(Qs, Message, SeqNo, Publisher) ->
    rabbit_queue_type:deliver(Qs, rabbit_basic:delivery(false, true, Message, SeqNo), Publisher).

-spec handle_event(rabbit_amqqueue:name(), term(), publisher()) ->
          {ok, publisher(), [term()]} | {eol, publisher()}.
handle_event(QName, Event, Publisher) ->
    case rabbit_queue_type:handle_event(QName, Event, Publisher) of
        {ok, Publisher1, Actions} -> {ok, Publisher1, Actions};
        eol -> {eol, rabbit_queue_type:remove(QName, Publisher)};
        {protocol_error, _, _, _} -> {ok, Publisher, []}
    end.

%% What a queue's monitor said, or unknown.
-spec handle_down(Message :: term(), publisher()) ->
          {ok, publisher(), [term()]} | {eol, rabbit_amqqueue:name(), publisher()} | unknown.
handle_down({'DOWN', _, process, Pid, Reason}, Publisher) ->
    case rabbit_queue_type:handle_down(Pid, Reason, Publisher) of
        {ok, Publisher1, Actions} -> {ok, Publisher1, Actions};
        {eol, Publisher1, QName} -> {eol, QName, rabbit_queue_type:remove(QName, Publisher1)}
    end;
handle_down(_, _) ->
    unknown.

%% The management pages' rates: N messages that were published to exchange XName went into queue
%% QName, or, N being negative, did not: a channel counts our internal queue as one.
-spec count_published(rabbit_exchange:name(), rabbit_amqqueue:name(), integer()) -> ok.
count_published(XName, QName, N) ->
    case application:get_env(rabbit, collect_statistics) of
        {ok, fine} ->
            rabbit_core_metrics:channel_stats(queue_exchange_stats, publish,
                                              {self(), {QName, XName}}, N);
        _ ->
            ok
    end.
