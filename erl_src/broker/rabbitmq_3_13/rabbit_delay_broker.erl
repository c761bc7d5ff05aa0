%% SPDX-License-Identifier: MPL-2.0

%% The broker as the rest of the plugin sees it: whatever differs between RabbitMQ's series is here,
%% and nowhere else. This is the adapter for RabbitMQ from 3.13 on, on Mnesia or Khepri. What these
%% series do not have in common is found out when the broker starts, by rabbit_delay_series.
%%
%% It owns no process and no table: its functions run in whoever calls them.
%% include/rabbit_delay_broker.hrl has what is the same in all adapters.
%% Longer than other files are, as all that differs is here.
-module(rabbit_delay_broker).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").
-include_lib("rabbit/include/mc.hrl").
-include_lib("amqp10_common/include/amqp10_framing.hrl").
-include("rabbit_delay.hrl").

-export([ready/0, data_dir/0, segment_config/1, machine_state/1, raft_overview/2, raft_member/1,
         raft_alone/1]).
-export([delayed_exchanges/0, durable_delayed_exchanges/0, is_khepri/0]).
-export([restore_bindings/2, topic_bindings/1, add_binding/4, remove_bindings/4, delete_exchange/4,
         route_by/4]).
-export([message_of/1, if_storable/3, confirms/1, parsed/1, headers/1, field_word/2, message_id/1,
         payload_size/1, exchange_of/2, encode/1, from_official/1, routing/1, content/1, released/1,
         dead_lettered/4]).
-export([is_dead_letter/1, dead_letter_to/2, deaths/1, uncounted/1, returned/2, queue_named/1]).
-export([raise_to_client/3, takes_nacks/0, protocol_error/3]).
-export([delete_queue/1, queue_pid/1]).
-export([route/2, publish/4, handle_event/3, handle_down/2]).

-export_type([message/0, delivery/0, queue/0]).

-type message() :: mc:state().
-type delivery() :: mc:state().

%% From 4.2 on not all of the record, but what routing needs of it.
-type queue() :: amqqueue:amqqueue() | tuple().

%% A message container as mc:prepare(store, _) leaves it, as term_to_binary/1 writes it.
-define(ENCODING_CONTAINER, 2).

%% mc keeps this to itself; what queues keep on disk depends on it.
-define(CONTAINER(Protocol, Data, Annotations), {mc, Protocol, Data, Annotations}).

-define(X_DELAY, <<"x-delay">>).
-define(NO_CONTAINERS, "feature flag message_containers is not enabled: "
                       "rabbitmqctl enable_feature_flag message_containers").

%% What some series have and others have not.
-define(MAKE_INTERNAL, {amqqueue, make_internal, 2}).
-define(SESSION_ERROR, {rabbit_amqp_util, protocol_error, 3}).
-define(GET_TARGETS, {rabbit_db_queue, get_targets, 1}).
-define(INDEX_TOPIC, {rabbit_db_topic_exchange, set, 1}).

-include("rabbit_delay_broker.hrl").

%% ------------------------------------------------------------------------------- the node

%% Whether messages can be stored and released: before 4.0 that takes a feature flag.
-spec ready() -> ok | {error, Why :: string()}.
ready() ->
    case rabbit_delay_series:has(?SESSION_ERROR)
        orelse rabbit_feature_flags:is_enabled(message_containers) of
        true -> ok;
        false -> {error, ?NO_CONTAINERS}
    end.

%% The number for what is stored here: 4.3, the first without Mnesia, has one of its own.
series() ->
    case rabbit_delay_series:has(?INDEX_TOPIC) of
        true -> 2;
        false -> 3
    end.

%% The directory that holds this node's data.
-spec data_dir() -> file:filename().
data_dir() -> rabbit:data_dir().

%% What this series' Ra is told of the size of a segment, bytes, beside its number of entries.
-spec segment_config(pos_integer()) -> map().
segment_config(MaxBytes) -> #{segment_max_size_bytes => MaxBytes}.

%% The machine's state, of what Ra gives to handle_aux/5.
-spec machine_state(ra_aux:internal_state()) -> term().
machine_state(Ra) -> ra_aux:machine_state(Ra).

%% What Ra says of one of its servers on this node.
-spec raft_overview(ra:server_id(), timeout()) -> {ok, map()} | {error, term()}.
raft_overview(ServerId, Timeout) ->
    try ra:member_overview(ServerId, Timeout) of
        {ok, Overview, _} -> {ok, Overview};
        Failure -> {error, Failure}
    catch
        exit:Reason -> {error, Reason}
    end.

%% As Ra takes a member that is to join: one that votes when it has caught up.
-spec raft_member(rabbit_delay_group:member()) -> map().
raft_member({Id, Uid}) -> #{id => Id, uid => Uid, membership => promotable}.

%% Has a server of this node be the only member of its cluster, whatever became of the others.
-spec raft_alone(ra:server_id()) -> ok | {error, not_supported | term()}.
raft_alone(ServerId) ->
    ra_server_proc:force_shrink_members_to_current_member(ServerId).

%% ---------------------------------------------------------------------------- exchanges

%% Those that exist now, in every vhost.
-spec delayed_exchanges() -> [exchange()].
delayed_exchanges() ->
    case rabbit_db_exchange:match(#exchange{type = 'x-delayed-message', _ = '_'}) of
        Xs when is_list(Xs) -> Xs;
        {error, _} -> []
    end.

%% Those that will exist when every vhost has been recovered.
-spec durable_delayed_exchanges() -> [exchange()].
durable_delayed_exchanges() ->
    [X || #exchange{type = 'x-delayed-message', durable = true} = X
              <- rabbit_db_exchange:get_all_durable()].

%% Routing by the topic type needs help. Under Khepri its index covers exchanges of type topic only:
%% ours are in rabbit_delay_topic. Under Mnesia it is not filled when the broker recovers while our
%% exchange type is unknown to it.
-spec restore_bindings(module(), exchange()) -> ok.
restore_bindings(rabbit_exchange_type_topic, #exchange{name = Name}) -> index_again(Name);
restore_bindings(_, _) -> ok.

%% 4.3 has nothing else, and no way to fill the index of topics that Mnesia has.
-spec is_khepri() -> boolean().
is_khepri() ->
    not rabbit_delay_series:has(?INDEX_TOPIC) orelse rabbit_khepri:get_feature_state() =:= enabled.

index_again(Name) ->
    case is_khepri() orelse is_indexed(Name) of
        true -> ok;
        false -> lists:foreach(fun (B) -> ok = rabbit_db_topic_exchange:set(B) end,
                               rabbit_binding:list_for_source(Name))
    end.

is_indexed(Name) ->
    [] =/= mnesia:dirty_match_object(
             rabbit_topic_trie_node, #topic_trie_node{trie_node = #trie_node{exchange_name = Name, _ = '_'}, _ = '_'}).

-spec add_binding(module(), none | pos_integer(), exchange(), rabbit_types:binding()) -> ok.
add_binding(Type, Serial, #exchange{name = Name} = X, Binding) ->
    ok = Type:add_binding(Serial, X, Binding),
    case has_own_index(Type) of
        true -> rabbit_delay_topic:add(Name, topic_entry(Binding));
        false -> ok
    end.

-spec remove_bindings(module(), none | pos_integer(), exchange(), [rabbit_types:binding()]) -> ok.
remove_bindings(Type, Serial, #exchange{name = Name} = X, Bindings) ->
    ok = Type:remove_bindings(Serial, X, Bindings),
    case has_own_index(Type) of
        true -> rabbit_delay_topic:remove(Name, [topic_entry(B) || B <- Bindings]);
        false -> ok
    end.

has_own_index(rabbit_exchange_type_topic) -> is_khepri();
has_own_index(_) -> false.

%% An exchange's bindings as rabbit_delay_topic has them, from this node's memory.
-spec topic_bindings(rabbit_exchange:name()) -> [rabbit_delay_topic:entry()].
topic_bindings(Name) ->
    [topic_entry(B) || B <- rabbit_binding:list_for_source(Name)].

topic_entry(#binding{key = Key, destination = Destination, args = Args}) ->
    {Key, Destination, Args}.

%% Deleted = true when the exchange is gone for good.
-spec delete_exchange(module(), none | pos_integer(), exchange(), [rabbit_types:binding()]) ->
          Deleted :: boolean().
delete_exchange(Type, Serial, #exchange{name = Name} = X, _Bindings) ->
    ok = Type:delete(Serial, X),
    _ = has_own_index(Type) andalso rabbit_delay_topic:forget(Name),
    true.

%% Where the exchange type Type sends what is published to X.
-spec route_by(module(), exchange(), delivery(), rabbit_exchange:route_opts()) ->
          rabbit_router:match_result() | [{rabbit_amqqueue:name(), rabbit_types:binding_key()}].
route_by(rabbit_exchange_type_topic = Type, #exchange{name = Name} = X, Message, Options) ->
    case has_own_index(Type) of
        true -> lists:append([rabbit_delay_topic:match(Name, Key)
                              || Key <- mc:routing_keys(Message)]);
        false -> Type:route(X, Message, Options)
    end;
route_by(Type, X, Message, Options) ->
    case erlang:function_exported(Type, route, 3) of
        true -> Type:route(X, Message, Options);
        false -> Type:route(X, Message)
    end.

%% ----------------------------------------------------------------------------- messages

%% The message that an exchange is asked to route.
-spec message_of(delivery()) -> message().
message_of(Message) -> Message.

%% Store() if it can be stored. 3.13 has messages as 3.10 has them until message containers are enabled.
-spec if_storable(message(), fun(() -> Result), fun((Why :: string()) -> Result)) -> Result.
if_storable(?CONTAINER(_, _, _), Store, _) -> Store();
if_storable(#basic_message{}, _, Refuse) -> Refuse(?NO_CONTAINERS).

%% Whether the publisher awaits a confirm. An exchange is not told here.
-spec confirms(delivery()) -> boolean() | unknown.
confirms(_) -> unknown.

%% With its properties parsed, so that those who read several things do it once.
-spec parsed(message()) -> message().
parsed(?CONTAINER(mc_amqpl, Content, Annotations)) ->
    ?CONTAINER(mc_amqpl, rabbit_binary_parser:ensure_content_decoded(Content), Annotations);
parsed(Message) ->
    Message.

%% Those that a delay can be in. AMQP 1.0's are message annotations or, where none of them says when,
%% or none whose, application properties; MQTT's are user properties.
-spec headers(message()) -> rabbit_delay_header:headers().
headers(?CONTAINER(mc_amqpl, Content, Annotations)) ->
    Headers = rabbit_basic:extract_headers(Content),
    case Annotations of
        #{?X_DELAY := Delay} when is_integer(Delay); is_binary(Delay) ->
            Type = case is_binary(Delay) of
                       true -> longstr;
                       false -> long
                   end,
            lists:keystore(?X_DELAY, 1, case Headers of undefined -> []; _ -> Headers end,
                           {?X_DELAY, Type, Delay});
        _ ->
            Headers
    end;
headers(?CONTAINER(mc_amqp, _, _) = Message) ->
    case {annotated(rabbit_delay_header:names(), Message),
          annotated(rabbit_delay_key:names(), Message)} of
        {[_ | _] = Delay, [_ | _] = Key} ->
            Delay ++ Key;
        {Delay, Key} ->
            Properties = mc:routing_headers(Message, []),
            or_properties(Delay, rabbit_delay_header:names(), Properties)
                ++ or_properties(Key, rabbit_delay_key:names(), Properties)
    end;
headers(#basic_message{content = Content}) ->
    rabbit_basic:extract_headers(Content);
headers(Message) ->
    annotated(rabbit_delay_header:names() ++ rabbit_delay_key:names(), Message).

annotated(Names, Message) ->
    lists:flatmap(fun (Name) ->
                          rabbit_delay_header:from_amqp10(Name, mc:x_header(Name, Message))
                  end, Names).

or_properties([], Names, Properties) -> rabbit_delay_header:from_properties(Names, Properties);
or_properties(Annotated, _, _) -> Annotated.

%% What its protocol calls the field that its delay is in, or its key, by the names that say so.
-spec field_word([binary()], message()) -> string().
field_word(Names, ?CONTAINER(mc_amqp, _, _) = Message) ->
    case annotated(Names, Message) of
        [] -> "application property";
        _ -> "annotation"
    end;
field_word(_, _) ->
    "header".

%% As text, if it is not text: a number in decimal, a UUID as a URN.
-spec message_id(message()) -> binary() | undefined.
message_id(?CONTAINER(mc_amqpl, Content, _)) ->
    message_id_of(Content);
message_id(Message) ->
    case mc:message_id(Message) of
        {uuid, Uuid} -> mc_util:uuid_to_urn_string(Uuid);
        {ulong, N} -> integer_to_binary(N);
        {_, Id} when is_binary(Id) -> Id;
        _ -> undefined
    end.

%% mc_amqp knows the size of what it has prepared for a queue only.
-spec payload_size(message()) -> non_neg_integer().
payload_size(?CONTAINER(mc_amqp, _, _) = Message) ->
    element(2, mc:size(mc:prepare(store, Message)));
payload_size(Message) ->
    element(2, mc:size(Message)).

%% The exchange that it was published to, which need not be the one that delays it.
-spec exchange_of(message(), rabbit_exchange:name()) -> rabbit_exchange:name().
exchange_of(Message, XName) ->
    XName#resource{name = mc:exchange(Message)}.

%% What is stored of a message, and the number that says how to read it. Its id is a queue's.
-spec encode(message()) -> {Encoding :: pos_integer(), binary()}.
encode(Message0) ->
    {_, Message} = mc:take_annotation(id, Message0),
    {?STORED(?ENCODING_CONTAINER), term_to_binary(mc:prepare(store, Message))}.

decode(?ENCODING_CONTAINER, Marked, Binary) ->
    decoded(Binary, Marked, fun (?CONTAINER(_, _, _) = Message) -> {ok, Message};
                                (_) -> {error, not_a_message}
                            end);
decode(?ENCODING_BASIC_MESSAGE_3_10, Marked, Binary) ->
    decoded(Binary, Marked, fun from_basic_message/1);
decode(_, _, _) ->
    unknown.

%% A dead letter of 3.10 has its deaths in a header.
with_deaths(?CONTAINER(mc_amqpl, Content, Annotations) = Message)
  when not is_map_key(deaths, Annotations) ->
    Headers = case rabbit_basic:extract_headers(Content) of
                  undefined -> [];
                  Table -> Table
              end,
    {Deaths, _} = rabbit_delay_deaths:history(rabbit_delay_deaths:plain(Headers)),
    Now = os:system_time(millisecond),
    mc:set_annotation(
      deaths,
      [begin
           Time = case Death of
                      #{time := Seconds} -> Seconds * 1000;
                      _ -> Now
                  end,
           {{Queue, Known}, #death{exchange = maps:get(exchange, Death, <<>>),
                                   routing_keys = maps:get(keys, Death, [<<>>]),
                                   count = maps:get(count, Death, 1),
                                   anns = #{first_time => Time, last_time => Time}}}
       end || #{queue := Queue, reason := Reason} = Death <- Deaths,
              {Known, Name} <- [{rejected, <<"rejected">>}, {expired, <<"expired">>},
                                {maxlen, <<"maxlen">>}, {delivery_limit, <<"delivery_limit">>}],
              Reason =:= Name],
      Message);
with_deaths(Message) ->
    Message.

decoded(Binary, Marked, Fun) ->
    try binary_to_term(Binary) of
        Term ->
            case Fun(Term) of
                {ok, Message} when Marked -> {ok, with_deaths(Message)};
                Result -> Result
            end
    catch
        error:badarg -> {error, not_a_term}
    end.

%% The keys of BCC are not in the content any more.
from_basic_message(#basic_message{exchange_name = XName, routing_keys = [Key | _] = Keys,
                                  content = Content0}) ->
    Content = rabbit_binary_parser:ensure_content_decoded(Content0),
    case mc_amqpl:message(XName, Key, Content) of
        {ok, Message} -> {ok, mc:set_annotation(?ANN_ROUTING_KEYS, Keys, Message)};
        {error, _} = Error -> Error
    end;
from_basic_message(_) ->
    {error, not_a_message}.

%% The message of what the official plugin keeps in its table: a container, or a delivery from before
%% 3.13.
-spec from_official(Delivery :: term()) -> {ok, message()} | {error, term()}.
from_official(?CONTAINER(_, _, _) = Message) -> {ok, Message};
from_official(Delivery) when is_tuple(Delivery), element(1, Delivery) =:= delivery ->
    case lists:keyfind(basic_message, 1, tl(tuple_to_list(Delivery))) of
        false -> {error, not_a_message};
        Message -> from_basic_message(Message)
    end;
from_official(_) ->
    {error, not_a_message}.

%% Where it was published to, and with which routing keys.
-spec routing(message()) -> {Exchange :: binary(), [binary()]}.
routing(Message) ->
    {mc:exchange(Message), mc:routing_keys(Message)}.

%% What operators see of a message: as AMQP 0-9-1 has it, whatever protocol it came by.
-spec content(message()) -> content().
content(Message) ->
    content_of(mc:exchange(Message), mc:routing_keys(Message),
               mc:protocol_state(mc:convert(mc_amqpl, Message))).

%% As it is delivered after its delay.
-spec released(message()) -> message().
released(?CONTAINER(mc_amqpl, Content, Annotations)) ->
    ?CONTAINER(mc_amqpl, rabbit_basic:map_headers(fun rabbit_delay_header:negate/1, Content),
               Annotations);
released(Message) ->
    Headers = annotated(rabbit_delay_header:names(), Message),
    case rabbit_delay_header:negate(Headers) of
        [] ->
            lists:foldl(fun ({Name, _, Value}, M) ->
                                mc:set_annotation(Name, as_annotation(Value), M)
                        end, Message, rabbit_delay_header:negated_properties(headers(Message)));
        Headers ->
            Message;
        Negated ->
            {_, _, Value} = lists:keyfind(?X_DELAY, 1, Negated),
            mc:set_annotation(?X_DELAY, as_annotation(Value), Message)
    end.

%% As it goes to the dead-letter exchange XName: with these headers, and RoutingKey if that is not
%% undefined.
-spec dead_lettered(message(), XName :: binary(), RoutingKey :: binary() | undefined,
                    [{binary(), longstr | long, binary() | integer()}]) -> message().
dead_lettered(Message0, XName, RoutingKey, Added) ->
    Message = mc:set_annotation(?ANN_EXCHANGE, XName, with_headers(Added, Message0)),
    case RoutingKey of
        undefined -> Message;
        _ -> mc:set_annotation(?ANN_ROUTING_KEYS, [RoutingKey], Message)
    end.

%% Whether a queue dead-letters the message that this process routes.
-spec is_dead_letter(message()) -> boolean().
is_dead_letter(Message) ->
    deaths(Message) =/= [].

%% Where the broker is to send the dead letter.
-spec dead_letter_to([rabbit_amqqueue:name()], delivery()) -> [rabbit_amqqueue:name()].
dead_letter_to(QNames, _) -> QNames.

%% Its deaths, the latest first. They are the broker's: no client can write them.
-spec deaths(message()) -> [rabbit_delay_deaths:death()].
deaths(?CONTAINER(_, _, #{deaths := Deaths})) ->
    case Deaths of
        #deaths{last = Last, records = Records} ->
            {Latest, Others} = maps:take(Last, Records),
            [death({Last, Latest}) | [death(Death) || Death <- maps:to_list(Others)]];
        _ ->
            [death(Death) || Death <- Deaths]
    end;
deaths(_) ->
    [].

death({{Queue, Reason}, #death{exchange = Exchange, routing_keys = Keys, count = Count}}) ->
    #{queue => Queue, reason => atom_to_binary(Reason, utf8), exchange => Exchange, keys => Keys,
      count => Count}.

%% Without what a quorum queue has counted of its deliveries: the next one would go on from there,
%% up to its delivery limit.
-spec uncounted(message()) -> message().
uncounted(?CONTAINER(Protocol, Data, Annotations)) ->
    ?CONTAINER(Protocol,
               case Protocol of
                   mc_amqpl -> rabbit_basic:map_headers(fun rabbit_delay_deaths:uncounted/1, Data);
                   _ -> Data
               end,
               maps:without([delivery_count, acquired_count, <<"x-delivery-count">>,
                             <<"x-acquired-count">>], Annotations)).

%% As it goes back to the queue that it died in: as it came there before.
-spec returned(message(), rabbit_delay_deaths:death()) -> message().
returned(Message, #{exchange := Exchange, keys := Keys}) ->
    mc:set_annotation(?ANN_ROUTING_KEYS, Keys,
                      mc:set_annotation(?ANN_EXCHANGE, Exchange, Message)).

with_headers(Added, ?CONTAINER(mc_amqpl, Content, Annotations)) ->
    ?CONTAINER(mc_amqpl, content_with_headers(Added, Content), Annotations);
with_headers(Added, Message) ->
    lists:foldl(fun ({Name, _, Value}, M) -> mc:set_annotation(Name, Value, M) end, Message, Added).

as_annotation(Text) when is_binary(Text) -> Text;
as_annotation(Number) -> trunc(Number).

%% ----------------------------------------------------------------------- the publishing client

%% Raises an error that closes the channel (AMQP 0-9-1, STOMP), session (AMQP 1.0) or connection
%% (MQTT, whose clients are not told why: the log is) of the client whose message this process routes.
%% Returns where it is not a client's: in a queue that dead-letters to us for example, where an error
%% would end a process that other messages depend on.
-spec raise_to_client(access_refused | precondition_failed | resource_error, io:format(), [term()]) -> no_client.
raise_to_client(Name, Format, Args) ->
    case get('$initial_call') of
        {rabbit_channel, init, _} -> protocol_error(Name, Format, Args);
        {rabbit_amqp_session, init, _} -> end_session(amqp10_condition(Name), client_text(Format, Args));
        {Reader, init, _} when Reader =:= rabbit_mqtt_reader; Reader =:= rabbit_web_mqtt_handler ->
            Why = client_text(Format, Args),
            ?LOG_ERROR("~ts", [Why], ?LOG_DOMAIN),
            exit({Name, Why});
        _ -> no_client
    end.

%% Whether the message that this process routes is a client's who can be told that it was rejected.
-spec takes_nacks() -> boolean().
takes_nacks() ->
    case get('$initial_call') of
        {rabbit_channel, init, _} -> channel_takes_nacks();
        {Module, init, _} -> lists:member(Module, [rabbit_amqp_session, rabbit_mqtt_reader,
                                                   rabbit_web_mqtt_handler]);
        _ -> false
    end.

%% Until 4.0 what AMQP 1.0 brings comes by a channel.
end_session(Condition, Text) ->
    case rabbit_delay_series:has(?SESSION_ERROR) of
        true -> rabbit_amqp_util:protocol_error(Condition, "~ts", [Text]);
        false -> no_client
    end.

amqp10_condition(access_refused) -> ?V_1_0_AMQP_ERROR_UNAUTHORIZED_ACCESS;
amqp10_condition(precondition_failed) -> ?V_1_0_AMQP_ERROR_PRECONDITION_FAILED;
amqp10_condition(resource_error) -> ?V_1_0_AMQP_ERROR_RESOURCE_LIMIT_EXCEEDED.

%% Of a channel or session that declares for example. Until 4.0.5 a channel sends what this text's elements
%% are as bytes, later as characters: a binary among them is the same for both.
-spec protocol_error(atom(), io:format(), [term()]) -> no_return().
protocol_error(Name, Format, Args) ->
    Text = rabbit_delay_text:reply(io_lib:format(Format, Args)),
    case get('$initial_call') of
        {rabbit_channel, init, _} -> exit(#amqp_error{name = Name, explanation = [Text]});
        _ -> rabbit_misc:protocol_error(Name, "~ts", [Text])
    end.

client_text(Format, Args) -> rabbit_delay_text:escaped(io_lib:format(Format, Args)).

%% ------------------------------------------------------------- the internal queue's record

is_alive(Pid) -> rabbit_process:is_process_alive(Pid).

%% A record as we declare it, marked as the broker's own where it knows such.
internal(Q, XName) ->
    case rabbit_delay_series:has(?MAKE_INTERNAL) of
        true -> amqqueue:make_internal(Q, XName);
        false -> Q
    end.

-spec delete_queue(rabbit_amqqueue:name()) -> ok.
delete_queue(QName) ->
    case rabbit_amqqueue:lookup(QName) of
        {ok, Q} ->
            _ = rabbit_amqqueue:internal_delete(Q, ?INTERNAL_USER),
            ok;
        {error, not_found} -> ok
    end.

%% The process that what is routed there goes to, if it would be found: from 4.2 on in an index of its own.
-spec queue_pid(rabbit_amqqueue:name()) -> pid() | undefined.
queue_pid(QName) ->
    case lookup_queues([QName]) of
        [Q] -> amqqueue:get_pid(Q);
        [] -> undefined
    end.

%% -------------------------------------------------------------------------------- release

%% The queues that a message goes to from exchange X now; of those that exist on a node that is down,
%% the names where the broker does not know more.
-spec route(exchange(), message()) -> [queue() | {absent, rabbit_amqqueue:name()}].
route(X, Message) ->
    Names = rabbit_exchange:route(X, Message, #{}),
    Qs = lookup_queues(Names),
    Missing = case length(Qs) =:= length(Names) of
                  true -> [];
                  false -> missing(Names -- [amqqueue:get_name(Q) || Q <- Qs])
              end,
    Missing ++ rabbit_amqqueue:prepend_extra_bcc(Qs).

lookup_queues(Names) ->
    case rabbit_delay_series:has(?GET_TARGETS) of
        true -> rabbit_db_queue:get_targets(Names);
        false -> rabbit_amqqueue:lookup_many(Names)
    end.

%% Khepri's index has all of them, wherever they are.
is_absent(QName) ->
    not is_khepri() andalso rabbit_db_queue:get_durable(QName) =/= {error, not_found}.

missing(QNames) -> [{absent, QName} || QName <- QNames, is_absent(QName)].

%% The queue of that name, as where to route to.
-spec queue_named(rabbit_amqqueue:name()) -> [queue() | {absent, rabbit_amqqueue:name()}].
queue_named(QName) ->
    case lookup_queues([QName]) of
        [] -> missing([QName]);
        Qs -> Qs
    end.

%% Publishes to these queues; what becomes of it arrives as actions, now or from the two functions
%% below: {settled | rejected, QName, [SeqNo]}.
-spec publish([queue()], message(), SeqNo :: pos_integer(), publisher()) ->
          {ok, publisher(), [term()]} | {error, term()}.
publish(Qs, Message, SeqNo, Publisher) ->
    outcome(rabbit_queue_type:deliver(Qs, Message, #{correlation => SeqNo}, Publisher)).

-spec handle_event(rabbit_amqqueue:name(), term(), publisher()) ->
          {ok, publisher(), [term()]} | {eol, publisher()}.
handle_event(QName, Event, Publisher) ->
    case outcome(rabbit_queue_type:handle_event(QName, Event, Publisher)) of
        {ok, _, _} = Ok -> Ok;
        {eol, _} -> {eol, rabbit_queue_type:remove(QName, Publisher)};
        _ -> {ok, Publisher, []}
    end.

%% What a queue's monitor said, or unknown.
-spec handle_down(Message :: term(), publisher()) ->
          {ok, publisher(), [term()]} | {eol, rabbit_amqqueue:name(), publisher()} | unknown.
handle_down({{'DOWN', QName}, _, process, Pid, Reason}, Publisher) ->
    case outcome(rabbit_queue_type:handle_down(Pid, QName, Reason, Publisher)) of
        {ok, _, _} = Ok -> Ok;
        {eol, Publisher1, _} -> {eol, QName, rabbit_queue_type:remove(QName, Publisher1)};
        _ -> {ok, Publisher, []}
    end;
handle_down(_, _) -> unknown.

%% 4.3 says why a queue rejects.
outcome({ok, Publisher, Actions}) ->
    {ok, Publisher, [case Action of
                         {rejected, QName, _Why, SeqNos} -> {rejected, QName, SeqNos};
                         _ -> Action
                     end || Action <- Actions]};
outcome(Other) -> Other.
