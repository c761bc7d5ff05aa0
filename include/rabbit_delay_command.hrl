%% SPDX-License-Identifier: MPL-2.0

%% What the plugin's rabbitmqctl commands have in common: the callbacks that are the same in all, or
%% in all but those that define a macro before they include this.
%%
%%   SCOPES         in which tools the command is, if not in rabbitmqctl alone
%%   ALIASES        if it has no --timeout, of which -t is the short form
%%   BROKER_UNUSED  a pattern of the options with which it needs no broker

-behaviour('Elixir.RabbitMQ.CLI.CommandBehaviour').

-export([scopes/0, switches/0, aliases/0, usage/0, usage_additional/0, usage_doc_guides/0,
         help_section/0, description/0, banner/2, merge_defaults/2, validate/2,
         validate_execution_environment/2, run/2, output/2]).

-define(DEFAULT_OUTPUT, 'Elixir.RabbitMQ.CLI.DefaultOutput').
-define(VALIDATORS, 'Elixir.RabbitMQ.CLI.Core.Validators').

-ifndef(SCOPES).
-define(SCOPES, [ctl]).
-endif.
-ifndef(ALIASES).
-define(ALIASES, [{t, timeout}]).
-endif.

-spec scopes() -> [atom()].
scopes() -> ?SCOPES.

-spec aliases() -> [{atom(), atom()}].
aliases() -> ?ALIASES.

-spec usage_doc_guides() -> [binary()].
usage_doc_guides() -> [].

-spec help_section() -> {plugin, atom()}.
help_section() -> {plugin, rabbitmq_delay_wheel}.

-spec validate_execution_environment([binary()], rabbit_delay_cli:options()) ->
          ok | {validation_failure, term()}.
-ifdef(BROKER_UNUSED).
validate_execution_environment(_, ?BROKER_UNUSED) -> ok;
validate_execution_environment(Args, Options) -> ?VALIDATORS:rabbit_is_running(Args, Options).
-else.
validate_execution_environment(Args, Options) -> ?VALIDATORS:rabbit_is_running(Args, Options).
-endif.
