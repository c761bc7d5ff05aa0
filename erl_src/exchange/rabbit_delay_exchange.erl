%% SPDX-License-Identifier: MPL-2.0

%% The exchange type x-delayed-message. Routing, bindings and arguments are those of the type that
%% the argument x-delayed-type names; a message that asks for a delay (rabbit_delay_header) goes to
%% the exchange's internal delay queue instead, and is routed when it is due.
-module(rabbit_delay_exchange).

-behaviour(rabbit_exchange_type).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([register/0, is_registered/0, unregister/0]).
-export([description/0, serialise_events/0, route/2, route/3, validate/1, validate_binding/2,
         create/2, delete/2, delete/3, policy_changed/2, add_binding/3, remove_bindings/3,
         assert_args_equivalence/2, info/1, info/2]).
-export([underlying_type/1, while_releasing/1, say_dropped/2, list/2, list_in/2, show/2]).

-define(DELAYED_TYPE, <<"x-delayed-type">>).
-define(RELEASING, {?MODULE, releasing}).
-define(DROPPED, {?MODULE, dropped}).
-define(DROPPED_MS, 10000).
%% Of a header's value, in an error.

%% The official delayed-message plugin registers the same type. Enabling ours beside it at run time
%% is refused; at boot the broker must not fail because of us.
-spec register() -> ok.
register() ->
    case served_by() of
        {other, Module} ->
            case rabbit_delay_broker:is_booted() of
                true -> throw({error, lists:flatten(rivalry(Module))});
                false -> ok
            end;
        _ ->
            rabbit_registry:register(exchange, ?EXCHANGE_TYPE, ?MODULE)
    end.

%% Whether the exchange type is ours, now that every plugin has registered its own: the last one
%% to do so has it. If it is not, the log says what to do.
-spec is_registered() -> boolean().
is_registered() ->
    case served_by() of
        us ->
            true;
        {other, Module} ->
            ?LOG_ERROR("~ts", [rivalry(Module)], ?LOG_DOMAIN),
            false;
        none ->
            false
    end.

served_by() ->
    case rabbit_registry:lookup_module(exchange, 'x-delayed-message') of
        {ok, ?MODULE} -> us;
        {ok, Module} -> {other, Module};
        {error, not_found} -> none
    end.

rivalry(Module) ->
    io_lib:format("exchange type ~s is served by ~s: rabbitmq_delay_wheel does not take part. "
                  "Disable the other plugin with rabbitmq-plugins disable --offline "
                  "rabbitmq_delayed_message_exchange (without --offline it deletes the messages that it "
                  "holds), enable rabbitmq_delay_wheel with --offline too, and restart the broker.",
                  [?EXCHANGE_TYPE, Module]).

-spec unregister() -> ok.
unregister() ->
    case served_by() of
        us -> rabbit_registry:unregister(exchange, ?EXCHANGE_TYPE);
        _ -> ok
    end.

-spec description() -> [{description, binary()}].
description() ->
    [{description, <<"Delayed message exchange, durable and replicated">>}].

-spec serialise_events() -> boolean().
serialise_events() -> false.

%% Until 3.13.
-spec route(rabbit_delay_broker:exchange(), rabbit_delay_broker:delivery()) ->
          rabbit_router:match_result().
route(X, Delivery) ->
    route(X, Delivery, #{}).

%% Options are for the underlying type.
-spec route(rabbit_delay_broker:exchange(), rabbit_delay_broker:delivery(), Options :: map()) ->
          rabbit_router:match_result().
route(X, Delivery, Options) ->
    case get(?RELEASING) of
        true -> route_now(X, Delivery, Options);
        undefined -> route_or_delay(X, Delivery, Options)
    end.

route_now(X, Delivery, Options) ->
    rabbit_delay_broker:route_by(underlying_type(X), X, Delivery, Options).

%% Runs Fun, in which our exchanges route what they are given without delaying it.
-spec while_releasing(fun(() -> Result)) -> Result.
while_releasing(Fun) ->
    put(?RELEASING, true),
    try
        Fun()
    after
        erase(?RELEASING)
    end.

route_or_delay(X, Delivery, Options) ->
    Message = rabbit_delay_broker:message_of(Delivery),
    IsSentHere = rabbit_delay_retry:is_sent_to(rabbit_delay_broker:exchange_name(X), Message),
    case IsSentHere andalso rabbit_delay_broker:is_dead_letter(Message) of
        true ->
            case rabbit_delay_policy:retry(X) of
                none -> introduced(X, route_or_delay(X, Delivery, Options, Message, ignored));
                _ -> dead_letter(X, Delivery, Message)
            end;
        false when IsSentHere ->
            {_, RoutingKeys} = rabbit_delay_broker:routing(Message),
            ok = rabbit_delay_topic_permissions:check(X, RoutingKeys, write),
            route_or_delay(X, Delivery, Options, Message, counts);
        false ->
            route_or_delay(X, Delivery, Options, Message, ignored)
    end.

%% Whether it comes back or is parked is found out when it is stored, and again when it is due.
dead_letter(X, Delivery, Message) ->
    rabbit_delay_broker:dead_letter_to(introduced(X, delay(X, Delivery, Message)), Delivery).

%% The queue process is told of who sends dead letters, before it gets one.
introduced(X, QNames) ->
    XName = rabbit_delay_broker:exchange_name(X),
    _ = lists:member(rabbit_delay_registry:queue_name(XName), QNames)
        andalso rabbit_delay_queue:introduce(XName),
    QNames.

route_or_delay(X, Delivery, Options, Message, Keys) ->
    Headers = rabbit_delay_broker:headers(Message),
    Args = rabbit_delay_broker:exchange_arguments(X),
    case Keys =:= counts orelse rabbit_delay_policy:keys_from(X) =:= anyone
        orelse ignore_keys(X, Headers) of
        true -> by_key(X, Delivery, Options, Message, Headers, Args);
        false -> route_or_delay(X, Delivery, Options, Message, Headers, Args)
    end.

ignore_keys(X, Headers) ->
    _ = rabbit_delay_key:asks(Headers) andalso tell_ignored(rabbit_delay_broker:exchange_name(X)),
    false.

tell_ignored(XName) ->
    Counters = rabbit_delay_registry:counters(XName),
    ok = rabbit_delay_counters:add(Counters, keys_ignored, 1),
    case rabbit_delay_counters:may_tell(Counters, erlang:monotonic_time(second)) of
        true ->
            ?LOG_WARNING("delayed messages of ~ts: headers about keys do not count in what comes by a "
                         "binding, as an alternate exchange's or as a dead letter; ~b such messages "
                         "until now (a policy with delay-keys-from can make them count)",
                         [rabbit_delay_text:rs(XName),
                          rabbit_delay_counters:get(Counters, keys_ignored)], ?LOG_DOMAIN);
        false ->
            ok
    end.

by_key(X, Delivery, Options, Message, Headers, Args) ->
    case rabbit_delay_key:asked(Headers, rabbit_delay_broker:message_id(Message)) of
        {What, _} when What =:= cancel; What =:= release ->
            delay(X, Delivery, Message);
        {invalid, Header, Value, Why} ->
            refuse_key(X, Header, Value, Why, Message),
            route_or_delay(X, Delivery, Options, Message, Headers, Args);
        _ ->
            route_or_delay(X, Delivery, Options, Message, Headers, Args)
    end.

route_or_delay(X, Delivery, Options, Message, Headers, Args) ->
    case rabbit_delay_header:due(Headers, rabbit_delay_config:now_ms(),
                                 rabbit_delay_config:max_delay_ms(Args), not_given) of
        now ->
            route_now(X, Delivery, Options);
        not_given ->
            case rabbit_delay_policy:default_delay(X) of
                none -> route_now(X, Delivery, Options);
                _ -> delay(X, Delivery, Message)
            end;
        {unusable, _, _, _} = Unusable ->
            Mode = rabbit_delay_config:unusable_delay(Args),
            case Mode =:= nack andalso rabbit_delay_broker:takes_nacks() of
                true ->
                    %% Which is the queue's to do.
                    to_queue(X);
                false ->
                    _ = Mode =/= route_now andalso refuse_unusable(X, Unusable, Message),
                    route_now(X, Delivery, Options)
            end;
        _ ->
            delay(X, Delivery, Message)
    end.

%% A client is told; anyone else, a queue that dead-letters for instance, must not fail over it.
refuse_unusable(X, Unusable, Message) ->
    rabbit_delay_broker:raise_to_client(
      precondition_failed, "cannot delay a message published to ~ts: ~ts",
      [rabbit_delay_text:rs(rabbit_delay_broker:exchange_name(X)),
       rabbit_delay_header:explain(
         Unusable, rabbit_delay_broker:field_word(rabbit_delay_header:names(), Message))]).

%% As above. For anyone but a client the message is one without a key.
refuse_key(X, Header, {Type, Value}, Why, Message) ->
    rabbit_delay_broker:raise_to_client(
      precondition_failed,
      "cannot take a message published to ~ts: ~s ~s ~s; it is ~ts",
      [rabbit_delay_text:rs(rabbit_delay_broker:exchange_name(X)),
       rabbit_delay_broker:field_word(rabbit_delay_key:names(), Message), Header, Why,
       rabbit_delay_header:shown(Type, Value)]).

delay(X, Delivery, Message) ->
    XName = rabbit_delay_broker:exchange_name(X),
    rabbit_delay_broker:if_storable(
      Message,
      fun () -> delay_at(X, XName, Delivery, Message) end,
      fun (Why) -> refuse(precondition_failed, "~ts", [Why], XName) end).

delay_at(X, XName, Delivery, Message) ->
    Size = rabbit_delay_broker:payload_size(Message),
    case rabbit_delay_config:max_message_size() of
        Limit when Size > Limit ->
            refuse(precondition_failed, "~b bytes are more than delayed_message.max_message_size, "
                   "~b", [Size, Limit], XName);
        _ ->
            ok = refuse_if_unavailable(X, Delivery, XName),
            to_queue(X)
    end.

to_queue(X) ->
    case rabbit_delay_registry:ensure_for(X) of
        {ok, QName} -> [QName];
        %% This closes a channel, not the connection.
        {error, Why} ->
            refuse(precondition_failed, "~ts", [Why], rabbit_delay_broker:exchange_name(X))
    end.

%% A publisher that awaits a confirm gets a nack from the queue; another one has to be told here,
%% where the broker lets us know which it is. Dead letters wait.
refuse_if_unavailable(X, Delivery, XName) ->
    case rabbit_delay_broker:confirms(Delivery) =:= false
        andalso {rabbit_delay_condition:leaders_status(X), rabbit_delay_registry:unable(XName)} of
        false -> ok;
        {{_, Why}, _} -> refuse_for_now(XName, Why);
        {_, none} -> ok;
        {_, Why} -> refuse_for_now(XName, Why)
    end.

refuse_for_now(XName, Why) ->
    _ = rabbit_delay_broker:raise_to_client(resource_error, "cannot delay a message published to ~ts: ~ts",
                                            [rabbit_delay_text:rs(XName), Why]),
    ok.

refuse(ErrorName, Format, Args, XName) ->
    no_client = rabbit_delay_broker:raise_to_client(
                  ErrorName, "cannot delay a message published to ~ts: " ++ Format,
                  [rabbit_delay_text:rs(XName) | Args]),
    ok = case rabbit_delay_broker:keeps_unrouted() of
             true ->
                 ok;
             false ->
                 ok = rabbit_delay_registry:dropped(XName),
                 say_dropped(Format, [rabbit_delay_text:rs(XName) | Args])
         end,
    [].

%% Once in a while by each process. The first of Args is the exchange.
-spec say_dropped(io:format(), [term(), ...]) -> ok.
say_dropped(Format, Args) ->
    Now = erlang:monotonic_time(millisecond),
    case get(?DROPPED) of
        {Until, N} when Now < Until ->
            put(?DROPPED, {Until, N + 1}),
            ok;
        Before ->
            Unsaid = case Before of
                         undefined -> 0;
                         {_, N} -> N
                     end,
            put(?DROPPED, {Now + ?DROPPED_MS, 0}),
            ?LOG_ERROR("a message for ~ts is dropped by its publisher, ~b since the last such line: "
                       ++ Format, [hd(Args), Unsaid + 1 | tl(Args)], ?LOG_DOMAIN)
    end.

%% The exchange type that routes; rabbit_exchange_type_invalid if it is not there any more.
-spec underlying_type(rabbit_delay_broker:exchange()) -> module().
underlying_type(X) ->
    case underlying_type_name(rabbit_delay_broker:exchange_arguments(X)) of
        {ok, _, Module} -> Module;
        {error, _, _} -> rabbit_exchange_type_invalid
    end.

underlying_type_name(Args) ->
    case rabbit_misc:table_lookup(Args, ?DELAYED_TYPE) of
        {longstr, ?EXCHANGE_TYPE} ->
            {error, "argument '~s' must not be ~s itself", [?DELAYED_TYPE, ?EXCHANGE_TYPE]};
        {longstr, TypeName} ->
            case rabbit_registry:binary_to_type(TypeName) of
                {error, not_found} ->
                    {error, "argument '~s': unknown exchange type '~ts'", [?DELAYED_TYPE, TypeName]};
                Type ->
                    case rabbit_registry:lookup_module(exchange, Type) of
                        {ok, Module} ->
                            {ok, Type, Module};
                        {error, not_found} ->
                            {error, "argument '~s': unknown exchange type '~ts'",
                             [?DELAYED_TYPE, TypeName]}
                    end
            end;
        undefined ->
            {error, "argument '~s' is required: the type by which the exchange routes",
             [?DELAYED_TYPE]};
        _ ->
            {error, "argument '~s' must be a string", [?DELAYED_TYPE]}
    end.

-spec validate(rabbit_delay_broker:exchange()) -> ok.
validate(X) ->
    Args = rabbit_delay_broker:exchange_arguments(X),
    case underlying_type_name(Args) of
        {ok, _, Module} ->
            case rabbit_delay_config:validate(Args) of
                ok ->
                    ok = validate_names(X, Args),
                    ok = validate_parking(X, rabbit_delay_retry:parking_argument(Args)),
                    Module:validate(X);
                {error, Format, FormatArgs} ->
                    invalid_declaration(X, Format, FormatArgs)
            end;
        {error, Format, FormatArgs} ->
            invalid_declaration(X, Format, FormatArgs)
    end.

%% A name that looks like one of ours and is none was misspelt, or is of a later version. A client is
%% told; what is imported, or was there before, is taken.
validate_names(X, Args) ->
    Known = rabbit_delay_config:arguments(),
    case [Name || {<<"x-delay-", _/binary>> = Name, _, _} <- Args, not lists:member(Name, Known)] of
        [] ->
            ok;
        [Name | _] ->
            case rabbit_delay_broker:serves_client() of
                true ->
                    invalid_declaration(X, "argument '~ts' is ~s",
                                        [Name, case rabbit_delay_policy:is_by_policy_only(Name) of
                                                   true -> "a policy's key only, without x-";
                                                   false -> "none of this exchange type's"
                                               end]);
                false ->
                    ?LOG_WARNING("~ts: argument '~ts' is none of this exchange type's, and has no "
                                 "effect", [rabbit_delay_text:rs(rabbit_delay_broker:exchange_name(X)),
                                            rabbit_delay_text:escaped(Name)], ?LOG_DOMAIN)
            end
    end.

validate_parking(_, none) ->
    ok;
validate_parking(X, Parking) ->
    XName = rabbit_delay_broker:exchange_name(X),
    case rabbit_delay_broker:may_forward(X, Parking) of
        true ->
            ok;
        false ->
            rabbit_delay_broker:protocol_error(
              access_refused,
              "cannot declare ~ts with a parking exchange: that takes read permission for it and "
              "write permission for ~ts, by a user whom the broker can look up; a policy can name it, too",
              [rabbit_delay_text:rs(XName), rabbit_delay_text:rs(XName#resource{name = Parking})])
    end.

-spec invalid_declaration(rabbit_delay_broker:exchange(), string(), [term()]) -> no_return().
invalid_declaration(X, Format, Args) ->
    rabbit_delay_broker:protocol_error(precondition_failed, "invalid declaration of ~ts: " ++ Format,
                               [rabbit_delay_text:rs(rabbit_delay_broker:exchange_name(X)) | Args]).

-spec validate_binding(rabbit_delay_broker:exchange(), rabbit_types:binding()) ->
          rabbit_types:ok_or_error({binding_invalid, string(), [any()]}).
validate_binding(X, Binding) ->
    ok = rabbit_delay_topic_permissions:check(X, [rabbit_delay_broker:binding_key(Binding)], read),
    (underlying_type(X)):validate_binding(X, Binding).

-spec create(transaction | none | pos_integer(), rabbit_delay_broker:exchange()) -> ok.
create(Serial, X) ->
    ok = (underlying_type(X)):create(Serial, X),
    case Serial of
        transaction -> ok;
        _ -> rabbit_delay_lost_record:mark(rabbit_delay_broker:exchange_name(X))
    end.

%% From 3.13 on.
-spec delete(none | pos_integer(), rabbit_delay_broker:exchange()) -> ok.
delete(Serial, X) ->
    delete(Serial, X, []).

-spec delete(transaction | none | pos_integer(), rabbit_delay_broker:exchange(),
             [rabbit_types:binding()]) -> ok.
delete(Serial, X, Bindings) ->
    case rabbit_delay_broker:delete_exchange(underlying_type(X), Serial, X, Bindings) of
        true -> rabbit_delay_registry:delete(X);
        false -> ok
    end.

-spec policy_changed(rabbit_delay_broker:exchange(), rabbit_delay_broker:exchange()) -> ok.
policy_changed(Old, New) ->
    (underlying_type(New)):policy_changed(Old, New).

-spec add_binding(transaction | none | pos_integer(), rabbit_delay_broker:exchange(),
                  rabbit_types:binding()) -> ok.
add_binding(Serial, X, Binding) ->
    rabbit_delay_broker:add_binding(underlying_type(X), Serial, X, Binding).

-spec remove_bindings(transaction | none | pos_integer(), rabbit_delay_broker:exchange(),
                      [rabbit_types:binding()]) -> ok.
remove_bindings(Serial, X, Bindings) ->
    rabbit_delay_broker:remove_bindings(underlying_type(X), Serial, X, Bindings).

-spec assert_args_equivalence(rabbit_delay_broker:exchange(), rabbit_framing:amqp_table()) -> ok.
assert_args_equivalence(X, Args) ->
    XName = rabbit_delay_broker:exchange_name(X),
    Present = rabbit_delay_broker:exchange_arguments(X),
    ok = rabbit_misc:assert_args_equivalence(Present, Args, XName, rabbit_delay_config:arguments()),
    ok = tell_other_type(XName, type_argument(Present), type_argument(Args)),
    (underlying_type(X)):assert_args_equivalence(X, Args).

%% As the official plugin has it, this is no error.
tell_other_type(_, Type, Type) ->
    ok;
tell_other_type(XName, Present, Other) ->
    ?LOG_WARNING("~ts is declared again with x-delayed-type ~ts; it goes on to route as ~ts",
                 [rabbit_delay_text:rs(XName), Other, Present], ?LOG_DOMAIN).

type_argument(Args) ->
    case rabbit_misc:table_lookup(Args, ?DELAYED_TYPE) of
        undefined -> "none";
        {Type, Value} -> unicode:characters_to_binary(rabbit_delay_header:shown(Type, Value))
    end.

-spec info(rabbit_delay_broker:exchange()) -> [{atom(), term()}].
info(X) ->
    [{messages_delayed, rabbit_delay_listing:pending(rabbit_delay_broker:exchange_name(X))}].

-spec info(rabbit_delay_broker:exchange(), [atom()]) -> [{atom(), term()}].
info(X, Items) ->
    case lists:member(messages_delayed, Items) of
        true -> info(X);
        false -> []
    end.

%% The delayed exchanges of a vhost, for operators: these items of each.
-spec list(rabbit_types:vhost(), [rabbit_delay_listing:item()]) -> [[{rabbit_delay_listing:item(), term()}]].
list(VHost, Items) ->
    list_in([VHost], Items).

%% The same, of several.
-spec list_in([rabbit_types:vhost()], [rabbit_delay_listing:item()]) ->
          [[{rabbit_delay_listing:item(), term()}]].
list_in(VHosts, Items) ->
    Wanted = maps:from_list([{VHost, true} || VHost <- VHosts]),
    rabbit_delay_listing:rows([X || X <- rabbit_delay_broker:delayed_exchanges(),
                                    #resource{virtual_host = VHost}
                                        <- [rabbit_delay_broker:exchange_name(X)],
                                    is_map_key(VHost, Wanted)], Items).

%% The same, of one exchange.
-spec show(rabbit_exchange:name(), [rabbit_delay_listing:item()]) ->
          {ok, [{rabbit_delay_listing:item(), term()}]} | {error, not_found}.
show(XName, Items) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case rabbit_delay_broker:is_delayed(X) of
                true -> {ok, hd(rabbit_delay_listing:rows([X], Items))};
                false -> {error, not_found}
            end;
        {error, not_found} ->
            {error, not_found}
    end.
