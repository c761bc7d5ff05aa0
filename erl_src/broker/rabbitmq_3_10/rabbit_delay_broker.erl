%% SPDX-License-Identifier: MPL-2.0

%% The broker as the rest of the plugin sees it: whatever differs between RabbitMQ's series is here,
%% and nowhere else. This is the adapter for RabbitMQ 3.10.
%%
%% It owns no process and no table: its functions run in whoever calls them.
%% include/rabbit_delay_broker.hrl has what is the same in all adapters.
-module(rabbit_delay_broker).

-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbit_common/include/rabbit_framing.hrl").
-include_lib("amqp10_common/include/amqp10_framing.hrl").

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

-type message() :: #basic_message{}.
-type delivery() :: #delivery{}.
-type queue() :: amqqueue:amqqueue().

%% Where the AMQP 1.0 plugin keeps a message's annotations and application properties, as they came.
-define(AMQP10_ANNOTATIONS, <<"x-amqp-1.0-message-annotations">>).
-define(AMQP10_PROPERTIES, <<"x-amqp-1.0-app-properties">>).

%% In the dictionary of a process that routes: bindings of absent queues.
-define(ABSENT, {?MODULE, absent}).
-define(ABSENT_MS, 1000).

-include("rabbit_delay_broker.hrl").

%% ------------------------------------------------------------------------------- the node

%% Whether messages can be stored and released.
-spec ready() -> ok.
ready() -> ok.

%% The number for what is stored here.
series() -> 1.

%% The directory that holds this node's data.
-spec data_dir() -> file:filename().
data_dir() -> rabbit_mnesia:dir().

%% What this series' Ra is told of the size of a segment, bytes, beside its number of entries.
-spec segment_config(pos_integer()) -> map().
segment_config(_) -> #{}.

%% The machine's state, of what Ra gives to handle_aux/5; this Ra calls handle_aux/6.
-spec machine_state(State) -> State.

%% What Ra says of one of its servers on this node.
-spec raft_overview(ra:server_id(), timeout()) -> {ok, map()} | {error, term()}.
raft_overview(ServerId, Timeout) ->
    try ra_server_proc:local_state_query(ServerId, all, Timeout) of
        {ok, State, _} -> {ok, ra_server:overview(State)};
        Failure -> {error, Failure}
    catch
        exit:Reason -> {error, Reason}
    end.
machine_state(State) -> State.

%% As Ra takes a member that is to join: at once, as one that votes.
-spec raft_member(rabbit_delay_group:member()) -> ra:server_id().
raft_member({Id, _}) -> Id.

%% Has a server of this node be the only member of its cluster, whatever became of the others. This Ra cannot.
-spec raft_alone(ra:server_id()) -> {error, not_supported}.
raft_alone(_) -> {error, not_supported}.

%% ---------------------------------------------------------------------------- exchanges

%% Those that exist now, in every vhost.
-spec delayed_exchanges() -> [exchange()].
delayed_exchanges() ->
    mnesia:dirty_match_object(rabbit_exchange, #exchange{type = 'x-delayed-message', _ = '_'}).

%% Those that will exist when every vhost has been recovered.
-spec durable_delayed_exchanges() -> [exchange()].
durable_delayed_exchanges() ->
    mnesia:dirty_match_object(rabbit_durable_exchange,
                              #exchange{type = 'x-delayed-message', _ = '_'}).

-spec is_khepri() -> false.
is_khepri() -> false.

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

%% The topic type's own index has them all.
-spec topic_bindings(rabbit_exchange:name()) -> [].
topic_bindings(_) -> [].

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

%% Store() if it can be stored.
-spec if_storable(message(), fun(() -> Result), fun((Why :: string()) -> Result)) -> Result.
if_storable(_, Store, _) -> Store().

%% Whether the publisher, if it is a client that can be told something, awaits a confirm.
-spec confirms(delivery()) -> boolean() | unknown.
confirms(#delivery{confirm = Confirm}) ->
    case is_channel() of
        true -> Confirm;
        false -> unknown
    end.

%% With its properties parsed, so that those who read several things do it once.
-spec parsed(message()) -> message().
parsed(#basic_message{content = Content} = Message) ->
    Message#basic_message{content = rabbit_binary_parser:ensure_content_decoded(Content)}.

%% AMQP 1.0's message annotations among them and, where neither these nor a header say when, or whose, its
%% application properties.
-spec headers(message()) -> rabbit_delay_header:headers().
headers(#basic_message{content = Content}) ->
    Headers = rabbit_basic:extract_headers(Content),
    case is_amqp10(Headers) of
        false ->
            Headers;
        true ->
            Sections = amqp10_sections(Headers),
            {_, Delay} = amqp10_fields(rabbit_delay_header:names(), Sections, Headers),
            {_, Key} = amqp10_fields(rabbit_delay_key:names(), Sections, Headers),
            Delay ++ Key ++ Headers
    end.

is_amqp10(undefined) ->
    false;
is_amqp10(Headers) ->
    lists:keymember(?AMQP10_ANNOTATIONS, 1, Headers)
        orelse lists:keymember(?AMQP10_PROPERTIES, 1, Headers).

%% What AMQP 1.0's sections say under these names, and which section that is.
amqp10_fields(Names, {Annotations, Properties}, Headers) ->
    case fields(Names, symbol, Annotations) of
        [] ->
            case lists:any(fun (Name) -> rabbit_delay_header:find(Name, Headers) =/= undefined end,
                           Names) of
                true -> {"header", []};
                false -> {"application property", fields(Names, utf8, Properties)}
            end;
        Annotated ->
            {"annotation", Annotated}
    end.

fields(Names, Tag, Section) ->
    [Field || Name <- Names, {{T, N}, Value} <- Section, T =:= Tag, N =:= Name,
              Field <- rabbit_delay_header:from_amqp10(Name, Value)].

amqp10_sections(Headers) ->
    {amqp10_section(?AMQP10_ANNOTATIONS, Headers), amqp10_section(?AMQP10_PROPERTIES, Headers)}.

amqp10_section(Name, Headers) ->
    case lists:keyfind(Name, 1, Headers) of
        {_, longstr, Binary} ->
            %% Anyone can send such a header.
            try amqp10_framing:decode_bin(Binary) of
                [#'v1_0.message_annotations'{content = Content}] when is_list(Content) -> Content;
                [#'v1_0.application_properties'{content = Content}] when is_list(Content) -> Content;
                _ -> []
            catch
                _:_ -> []
            end;
        _ ->
            []
    end.

%% What its protocol calls the field that its delay is in, or its key, by the names that say so.
-spec field_word([binary()], message()) -> string().
field_word(Names, #basic_message{content = Content}) ->
    Headers = rabbit_basic:extract_headers(Content),
    case is_amqp10(Headers) of
        false -> "header";
        true -> element(1, amqp10_fields(Names, amqp10_sections(Headers), Headers))
    end.

-spec message_id(message()) -> binary() | undefined.
message_id(#basic_message{content = Content}) ->
    message_id_of(Content).

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
    {?STORED(?ENCODING_BASIC_MESSAGE_3_10), term_to_binary(Stored)}.

decode(?ENCODING_BASIC_MESSAGE_3_10, _, Binary) ->
    try binary_to_term(Binary) of
        #basic_message{} = Message -> {ok, Message};
        _ -> {error, not_a_message}
    catch
        error:badarg -> {error, not_a_term}
    end;
decode(_, _, _) ->
    unknown.

%% The message of what the official plugin keeps in its table.
-spec from_official(Delivery :: term()) -> {ok, message()} | {error, term()}.
from_official(#delivery{message = #basic_message{} = Message}) -> {ok, Message};
from_official(_) -> {error, not_a_message}.

%% Where it was published to, and with which routing keys.
-spec routing(message()) -> {Exchange :: binary(), [binary()]}.
routing(#basic_message{exchange_name = #resource{name = Exchange}, routing_keys = Keys}) ->
    {Exchange, Keys}.

%% What operators see of a message.
-spec content(message()) -> content().
content(#basic_message{exchange_name = #resource{name = Exchange}, routing_keys = Keys,
                       content = Content}) ->
    content_of(Exchange, Keys, Content).

%% As it is delivered after its delay.
-spec released(message()) -> message().
released(#basic_message{content = Content} = Message) ->
    Message#basic_message{
      content = rabbit_basic:map_headers(
                  fun (Headers) -> rabbit_delay_header:negate(negate_amqp10(Headers)) end,
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
      content = content_with_headers(Added, Content)}.

%% Whether a queue dead-letters the message that this process routes. A client can write an x-death,
%% but its messages are routed by its channel.
-spec is_dead_letter(message()) -> boolean().
is_dead_letter(Message) ->
    case get(process_name) of
        {rabbit_channel, _} -> false;
        _ -> deaths(Message) =/= []
    end.

%% Where the broker is to send the dead letter. It drops what has died before in a queue that it
%% goes to, by an x-death that a client may have written. Ours kills no message, so it gets such a
%% one from here; the worker that dead-letters at least once keeps its messages anyway.
-spec dead_letter_to([rabbit_amqqueue:name()], delivery()) -> [rabbit_amqqueue:name()].
dead_letter_to([#resource{name = Name}] = QNames, #delivery{message = Message} = Delivery) ->
    Forged = lists:any(fun (#{queue := Queue}) -> Queue =:= Name end, deaths(Message)),
    case get('$initial_call') of
        {rabbit_fifo_dlx_worker, _, _} ->
            QNames;
        _ when Forged ->
            _ = rabbit_queue_type:deliver(rabbit_amqqueue:lookup(QNames), Delivery, stateless),
            [];
        _ ->
            QNames
    end;
dead_letter_to([], _) ->
    [].

%% Its deaths, the latest first. The latest one of a dead letter is not a client's word.
-spec deaths(message()) -> [rabbit_delay_deaths:death()].
deaths(#basic_message{content = Content}) ->
    Headers = case rabbit_basic:extract_headers(Content) of
                  undefined -> [];
                  Table -> [Field || {<<"x-death">>, _, _} = Field <- Table]
              end,
    {Deaths, _} = rabbit_delay_deaths:history(rabbit_delay_deaths:plain(Headers)),
    Deaths.

%% Without what a quorum queue has counted of its deliveries.
-spec uncounted(message()) -> message().
uncounted(#basic_message{content = Content} = Message) ->
    Message#basic_message{
      content = rabbit_basic:map_headers(fun rabbit_delay_deaths:uncounted/1, Content)}.

%% As it goes back to the queue that it died in: as it came there before.
-spec returned(message(), rabbit_delay_deaths:death()) -> message().
returned(#basic_message{exchange_name = Name, routing_keys = Keys} = Message, Death) ->
    Message#basic_message{
      exchange_name = Name#resource{name = maps:get(exchange, Death, Name#resource.name)},
      routing_keys = case Death of
                         #{keys := [_ | _] = Original} -> Original;
                         _ -> Keys
                     end}.

%% Annotations are negated in their place; of properties, which cannot be changed on the way, an annotation
%% says so.
negate_amqp10(Headers) ->
    case is_amqp10(Headers) of
        false -> Headers;
        true -> negate_sections(Headers)
    end.

negate_sections(Headers) ->
    {Before, _} = Sections = amqp10_sections(Headers),
    Negated = case amqp10_fields(rabbit_delay_header:names(), Sections, Headers) of
                  {"annotation", Fields} -> rabbit_delay_header:negate(Fields) -- Fields;
                  {_, Fields} -> rabbit_delay_header:negated_properties(Fields)
              end,
    case [{{symbol, element(1, Field)}, rabbit_delay_header:to_amqp10(Field)} || Field <- Negated] of
        [] ->
            Headers;
        Annotations ->
            Content = lists:foldl(fun ({Key, _} = Annotation, Acc) ->
                                          lists:keystore(Key, 1, Acc, Annotation)
                                  end, Before, Annotations),
            Encoded = amqp10_framing:encode_bin(#'v1_0.message_annotations'{content = Content}),
            lists:keystore(?AMQP10_ANNOTATIONS, 1, Headers,
                           {?AMQP10_ANNOTATIONS, longstr, iolist_to_binary(Encoded)})
    end.

%% ----------------------------------------------------------------------- the publishing client

%% Raises an error that closes the channel whose message this process routes; every protocol is
%% served by channels. Returns where it is not a channel: in a queue that dead-letters to us for
%% example, where an error would end a process that other messages depend on.
-spec raise_to_client(access_refused | precondition_failed | resource_error, io:format(), [term()]) -> no_client.
raise_to_client(Name, Format, Args) ->
    case get(process_name) of
        {rabbit_channel, _} -> protocol_error(Name, Format, Args);
        _ -> no_client
    end.

%% Whether the message that this process routes is a client's who can be told that it was rejected.
-spec takes_nacks() -> boolean().
takes_nacks() -> is_channel() andalso channel_takes_nacks().

%% Of a channel that declares for example. What is sent are this text's elements as bytes.
-spec protocol_error(atom(), io:format(), [term()]) -> no_return().
protocol_error(Name, Format, Args) ->
    Text = rabbit_delay_text:reply(io_lib:format(Format, Args)),
    rabbit_misc:protocol_error(Name, "~s", [binary_to_list(Text)]).

%% ------------------------------------------------------------- the internal queue's record

%% A record as we declare it, marked as the broker's own where it knows such.
internal(Q, _) -> Q.

is_alive(Pid) -> rabbit_mnesia:is_process_alive(Pid).

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

%% -------------------------------------------------------------------------------- release

%% The queues that a message goes to from exchange X now; of those that exist on a node that is down,
%% the names.
-spec route(exchange(), message()) -> [queue() | {absent, rabbit_amqqueue:name()}].
route(X, Message) ->
    route(X, rabbit_basic:delivery(false, true, Message, undefined), absent_bindings()).

%% Bindings go from those that are known to the absent ones and back: what was one of these before and
%% after the message was routed is either.
route(X, Delivery, Bindings) ->
    Names = rabbit_exchange:route(X, Delivery),
    Qs = rabbit_amqqueue:lookup(Names),
    Missing = case length(Qs) =:= length(Names) of
                  true -> [];
                  false -> missing(Names -- [amqqueue:get_name(Q) || Q <- Qs])
              end,
    case absent_bindings() of
        Other when Other =/= Bindings ->
            route(X, Delivery, Other);
        _ when map_size(Bindings) > 0 ->
            case walk([X], [], Delivery, Bindings, {[], []}) of
                {_, []} -> Missing ++ with_bcc(Qs);
                {Present, Absent} ->
                    absent(Absent -- Present) ++ with_bcc(rabbit_amqqueue:lookup(Present))
            end;
        _ ->
            Missing ++ with_bcc(Qs)
    end.

with_bcc(Qs) -> rabbit_amqqueue:prepend_extra_bcc(Qs).

missing(QNames) ->
    absent([QName || QName <- QNames, mnesia:dirty_read(rabbit_durable_queue, QName) =/= []]).

absent(QNames) -> [{absent, QName} || QName <- QNames].

%% The queue of that name, as where to route to.
-spec queue_named(rabbit_amqqueue:name()) -> [queue() | {absent, rabbit_amqqueue:name()}].
queue_named(QName) ->
    case rabbit_amqqueue:lookup([QName]) of
        [] -> missing([QName]);
        Qs -> Qs
    end.

%% While the node of a durable classic queue is down, and while it starts, this series knows nothing
%% of the queue's bindings but what is on the disk. Those bindings, by their source, and what they
%% were found from: they are looked for when a node, queues or bindings go, and after so long.
absent_bindings() ->
    case mnesia:system_info(db_nodes) of
        [_] ->
            #{};
        _ ->
            Running = mnesia:system_info(running_db_nodes),
            Sizes = {mnesia:table_info(rabbit_queue, size), mnesia:table_info(rabbit_route, size)},
            Now = erlang:monotonic_time(millisecond),
            case get(?ABSENT) of
                {Running, {Queues, Routes}, At, Bindings}
                  when element(1, Sizes) >= Queues, element(2, Sizes) >= Routes,
                       Now - At < ?ABSENT_MS ->
                    _ = Sizes =:= {Queues, Routes}
                        orelse put(?ABSENT, {Running, Sizes, At, Bindings}),
                    Bindings;
                _ ->
                    Bindings = find_absent_bindings(),
                    put(?ABSENT, {Running, Sizes, Now, Bindings}),
                    Bindings
            end
    end.

find_absent_bindings() ->
    ets:foldl(fun (#route{binding = #binding{source = Source,
                                             destination = #resource{kind = queue}} = B}, Acc) ->
                      case ets:member(rabbit_route, B) of
                          true -> Acc;
                          false -> maps:update_with(Source, fun (Bs) -> [B | Bs] end, [B], Acc)
                      end;
                  (_, Acc) ->
                      Acc
              end, #{}, rabbit_semi_durable_route).

%% As rabbit_exchange:route/2, with the absent queues. An exchange that has one for the message needs
%% no alternate exchange.
walk([], _, _, _, {Present, Absent}) ->
    {lists:usort(Present), lists:usort(Absent)};
walk([#exchange{name = XName, type = Type} = X | Rest], Walked, Delivery, Bindings,
     {Present0, Absent0}) ->
    {ok, Module} = rabbit_registry:lookup_module(exchange, Type),
    Found = Module:route(X, Delivery),
    Matched = [QName || #binding{destination = QName} = B <- maps:get(XName, Bindings, []),
                        matches(routed_by(X), B, Delivery)],
    Others = case Found ++ Matched of
                 [] -> alternate(X);
                 _ -> []
             end,
    {Xs, Present} = lists:partition(fun (#resource{kind = Kind}) -> Kind =:= exchange end,
                                    Found ++ Others),
    Next = [X1 || Name <- lists:usort(Xs), not lists:member(Name, [XName | Walked]),
                  {ok, X1} <- [rabbit_exchange:lookup(Name)]],
    walk(Next ++ Rest, [XName | [Name || #exchange{name = Name} <- Next] ++ Walked], Delivery,
         Bindings, {Present ++ Present0, Matched ++ Absent0}).

alternate(#exchange{name = Name} = X) ->
    case rabbit_policy:get_arg(<<"alternate-exchange">>, <<"alternate-exchange">>, X) of
        undefined -> [];
        Alternate -> [Name#resource{name = Alternate}]
    end.

routed_by(#exchange{type = 'x-delayed-message', arguments = Args}) ->
    {longstr, Type} = rabbit_misc:table_lookup(Args, <<"x-delayed-type">>),
    binary_to_existing_atom(Type, utf8);
routed_by(#exchange{type = Type}) ->
    Type.

%% How other types choose cannot be told without them.
matches(fanout, _, _) ->
    true;
matches(direct, #binding{key = Key}, #delivery{message = #basic_message{routing_keys = Keys}}) ->
    lists:member(Key, Keys);
matches(topic, #binding{key = Key}, #delivery{message = #basic_message{routing_keys = Keys}}) ->
    Pattern = words(Key),
    lists:any(fun (K) -> topic_matches(Pattern, words(K)) end, Keys);
matches(headers, #binding{args = Args}, #delivery{message = #basic_message{content = Content}}) ->
    Headers = case rabbit_basic:extract_headers(Content) of undefined -> []; Table -> Table end,
    {Match, WithX} = case rabbit_misc:table_lookup(Args, <<"x-match">>) of
                         {longstr, <<"any">>} -> {any, false};
                         {longstr, <<"any-with-x">>} -> {any, true};
                         {longstr, <<"all-with-x">>} -> {all, true};
                         _ -> {all, false}
                     end,
    Each = [case lists:keyfind(Name, 1, Headers) of
                {_, _, Found} -> Type =:= void orelse Found == Value;
                false -> false
            end || {Name, Type, Value} <- Args, Name =/= <<"x-match">>, WithX orelse not is_x(Name)],
    case Match of
        any -> lists:member(true, Each);
        all -> not lists:member(false, Each)
    end;
matches(_, _, _) ->
    false.

is_x(<<"x-", _/binary>>) -> true;
is_x(_) -> false.

words(Key) -> binary:split(Key, <<".">>, [global]).

topic_matches([<<"#">>], _) -> true;
topic_matches([<<"#">> | Pattern], Words) ->
    topic_matches(Pattern, Words)
        orelse (Words =/= [] andalso topic_matches([<<"#">> | Pattern], tl(Words)));
topic_matches([<<"*">> | Pattern], [_ | Words]) -> topic_matches(Pattern, Words);
topic_matches([Word | Pattern], [Word | Words]) -> topic_matches(Pattern, Words);
topic_matches(Pattern, Words) -> Pattern =:= [] andalso Words =:= [].

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
