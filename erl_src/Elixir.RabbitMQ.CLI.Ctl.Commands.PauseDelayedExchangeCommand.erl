%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl pause_delayed_exchange: what comes due is held back.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.PauseDelayedExchangeCommand').

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
    <<"pause_delayed_exchange [--vhost <vhost>] <exchange>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>]].

-spec usage_doc_guides() -> [binary()].
usage_doc_guides() -> [].

-spec help_section() -> {plugin, atom()}.
help_section() -> {plugin, rabbitmq_delay_wheel}.

-spec description() -> binary().
description() -> <<"Holds back the messages of a delayed exchange that come due, until it is resumed">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner([Exchange | _], #{vhost := VHost}) ->
    <<"Pausing delayed exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>.

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
run([Exchange], Options) ->
    rabbit_delay_cli:call(Options, pause,
                          [rabbit_delay_cli:resource(Exchange, Options), <<"rabbitmqctl">>],
                          fun (ok) -> ok end).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
