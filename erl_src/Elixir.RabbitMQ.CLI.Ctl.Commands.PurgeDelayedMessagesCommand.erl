%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl purge_delayed_messages: cancels all that is pending on an exchange.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.PurgeDelayedMessagesCommand').

-behaviour('Elixir.RabbitMQ.CLI.CommandBehaviour').

-export([scopes/0, switches/0, aliases/0, usage/0, usage_additional/0, usage_doc_guides/0,
         help_section/0, description/0, banner/2, merge_defaults/2, validate/2,
         validate_execution_environment/2, run/2, output/2]).

-define(DEFAULT_OUTPUT, 'Elixir.RabbitMQ.CLI.DefaultOutput').
-define(VALIDATORS, 'Elixir.RabbitMQ.CLI.Core.Validators').

-spec scopes() -> [atom()].
scopes() -> [ctl].

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec aliases() -> [{atom(), atom()}].
aliases() -> [{t, timeout}].

-spec usage() -> binary().
usage() ->
    <<"purge_delayed_messages [--vhost <vhost>] <exchange> [--dry-run]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"--dry-run">>, <<"only counts its messages">>]].

-spec usage_doc_guides() -> [binary()].
usage_doc_guides() -> [].

-spec help_section() -> {plugin, atom()}.
help_section() -> {plugin, rabbitmq_delay_wheel}.

-spec description() -> binary().
description() -> <<"Cancels every delayed message that is pending on an exchange">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner([Exchange | _], #{vhost := VHost}) ->
    <<"Purging delayed exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _Options) -> rabbit_delay_cli:check_exchange(Args).

-spec validate_execution_environment([binary()], rabbit_delay_cli:options()) ->
          ok | {validation_failure, term()}.
validate_execution_environment(Args, Options) ->
    ?VALIDATORS:rabbit_is_running(Args, Options).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli:change(cancel, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output({ok, Text}, Options) when is_binary(Text) -> ?DEFAULT_OUTPUT:output(Text, Options);
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
