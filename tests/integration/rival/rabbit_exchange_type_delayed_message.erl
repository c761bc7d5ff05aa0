%% SPDX-License-Identifier: MPL-2.0

%% Stands for the official delayed-message plugin where two plugins register one exchange type. It
%% has that one's application, module and boot step by name, and routes like a direct exchange.
-module(rabbit_exchange_type_delayed_message).

-behaviour(rabbit_exchange_type).

-export([description/0, serialise_events/0, route/2, route/3, validate/1, validate_binding/2,
         create/2, delete/2, delete/3, policy_changed/2, add_binding/3, remove_bindings/3, assert_args_equivalence/2,
         info/1, info/2]).

-rabbit_boot_step(
   {?MODULE,
    [{description, "exchange type x-delayed-message: the other plugin's"},
     {mfa, {rabbit_registry, register, [exchange, <<"x-delayed-message">>, ?MODULE]}},
     {cleanup, {rabbit_registry, unregister, [exchange, <<"x-delayed-message">>]}},
     {requires, rabbit_registry},
     {enables, kernel_ready}]}).

-define(DIRECT, rabbit_exchange_type_direct).

-spec description() -> [{description, binary()}].
description() -> [{description, <<"the other plugin's">>}].

-spec serialise_events() -> boolean().
serialise_events() -> false.

-spec route(rabbit_types:exchange(), rabbit_types:delivery()) -> rabbit_router:match_result().
route(X, Delivery) -> ?DIRECT:route(X, Delivery).

-spec route(rabbit_types:exchange(), Message :: term(), map()) -> rabbit_router:match_result().
route(X, Message, Options) -> ?DIRECT:route(X, Message, Options).

-spec validate(rabbit_types:exchange()) -> ok.
validate(X) -> ?DIRECT:validate(X).

-spec validate_binding(rabbit_types:exchange(), rabbit_types:binding()) -> ok.
validate_binding(X, B) -> ?DIRECT:validate_binding(X, B).

-spec create(transaction | none, rabbit_types:exchange()) -> ok.
create(Tx, X) -> ?DIRECT:create(Tx, X).

-spec delete(none | pos_integer(), rabbit_types:exchange()) -> ok.
delete(Serial, X) -> ?DIRECT:delete(Serial, X).

-spec delete(transaction | none, rabbit_types:exchange(), [rabbit_types:binding()]) -> ok.
delete(Tx, X, Bs) -> ?DIRECT:delete(Tx, X, Bs).

-spec policy_changed(rabbit_types:exchange(), rabbit_types:exchange()) -> ok.
policy_changed(X1, X2) -> ?DIRECT:policy_changed(X1, X2).

-spec add_binding(transaction | none, rabbit_types:exchange(), rabbit_types:binding()) -> ok.
add_binding(Tx, X, B) -> ?DIRECT:add_binding(Tx, X, B).

-spec remove_bindings(transaction | none, rabbit_types:exchange(), [rabbit_types:binding()]) -> ok.
remove_bindings(Tx, X, Bs) -> ?DIRECT:remove_bindings(Tx, X, Bs).

-spec assert_args_equivalence(rabbit_types:exchange(), rabbit_framing:amqp_table()) -> ok.
assert_args_equivalence(X, Args) -> rabbit_exchange:assert_args_equivalence(X, Args).

-spec info(rabbit_types:exchange()) -> [{atom(), term()}].
info(X) -> ?DIRECT:info(X).

-spec info(rabbit_types:exchange(), [atom()]) -> [{atom(), term()}].
info(X, Items) -> ?DIRECT:info(X, Items).
