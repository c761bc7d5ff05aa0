%% SPDX-License-Identifier: MPL-2.0

%% The exchange type x-delayed-message in a broker that the plugin takes no part in (rabbit_delay_series):
%% exchanges that are there stay, and whoever publishes to them, or declares one, is told why that is
%% refused. It needs of the broker and of the rest of the plugin as little as can be.
-module(rabbit_delay_no_part).

-behaviour(rabbit_exchange_type).

-include("rabbit_delay.hrl").

-export([register/0, unregister/0]).
-export([description/0, serialise_events/0, route/2, route/3, validate/1, validate_binding/2,
         create/2, delete/2, delete/3, policy_changed/2, add_binding/3, remove_bindings/3,
         assert_args_equivalence/2, info/1, info/2]).

%% The official plugin may be there.
-spec register() -> ok.
register() ->
    case rabbit_registry:lookup_module(exchange, 'x-delayed-message') of
        {ok, _} -> ok;
        {error, not_found} -> rabbit_registry:register(exchange, ?EXCHANGE_TYPE, ?MODULE)
    end.

-spec unregister() -> ok.
unregister() ->
    case rabbit_registry:lookup_module(exchange, 'x-delayed-message') of
        {ok, ?MODULE} -> rabbit_registry:unregister(exchange, ?EXCHANGE_TYPE);
        _ -> ok
    end.

-spec description() -> [{description, binary()}].
description() ->
    [{description, <<"Delayed message exchange, out of use: the broker's log says why">>}].

-spec serialise_events() -> boolean().
serialise_events() -> false.

-spec route(rabbit_delay_broker:exchange(), rabbit_delay_broker:delivery()) -> [].
route(X, Delivery) ->
    route(X, Delivery, #{}).

%% Who is no client, such as a queue that dead-letters, must not fail over it.
-spec route(rabbit_delay_broker:exchange(), rabbit_delay_broker:delivery(), map()) -> [].
route(X, _, _) ->
    Told = [rabbit_delay_text:rs(rabbit_delay_broker:exchange_name(X)), why_not()],
    no_client = rabbit_delay_broker:raise_to_client(
                  precondition_failed, "cannot take a message published to ~ts: "
                  "rabbitmq_delay_wheel takes no part: ~ts", Told),
    ok = rabbit_delay_exchange:say_dropped("rabbitmq_delay_wheel takes no part: ~ts", Told),
    [].

%% What is imported, or was there before, stays.
-spec validate(rabbit_delay_broker:exchange()) -> ok.
validate(X) ->
    case rabbit_delay_broker:serves_client() of
        true ->
            rabbit_delay_broker:protocol_error(
              precondition_failed, "cannot declare ~ts: rabbitmq_delay_wheel takes no part: ~ts",
              [rabbit_delay_text:rs(rabbit_delay_broker:exchange_name(X)), why_not()]);
        false ->
            ok
    end.

why_not() ->
    {_, Why} = rabbit_delay_series:status(),
    Why.

-spec validate_binding(rabbit_delay_broker:exchange(), rabbit_types:binding()) -> ok.
validate_binding(_, _) -> ok.

-spec create(term(), rabbit_delay_broker:exchange()) -> ok.
create(_, _) -> ok.

-spec delete(term(), rabbit_delay_broker:exchange()) -> ok.
delete(_, _) -> ok.

-spec delete(term(), rabbit_delay_broker:exchange(), [rabbit_types:binding()]) -> ok.
delete(_, _, _) -> ok.

-spec policy_changed(rabbit_delay_broker:exchange(), rabbit_delay_broker:exchange()) -> ok.
policy_changed(_, _) -> ok.

-spec add_binding(term(), rabbit_delay_broker:exchange(), rabbit_types:binding()) -> ok.
add_binding(_, _, _) -> ok.

-spec remove_bindings(term(), rabbit_delay_broker:exchange(), [rabbit_types:binding()]) -> ok.
remove_bindings(_, _, _) -> ok.

-spec assert_args_equivalence(rabbit_delay_broker:exchange(), rabbit_framing:amqp_table()) -> ok.
assert_args_equivalence(_, _) -> ok.

-spec info(rabbit_delay_broker:exchange()) -> [].
info(_) -> [].

-spec info(rabbit_delay_broker:exchange(), [atom()]) -> [].
info(_, _) -> [].
