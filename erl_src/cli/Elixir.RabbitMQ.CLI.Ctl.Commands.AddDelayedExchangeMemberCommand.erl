%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl add_delayed_exchange_member: another node holds the messages of a delayed
%% exchange. Nothing is done where it does already.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.AddDelayedExchangeMemberCommand').

-define(SCOPES, [ctl, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec usage() -> binary().
usage() -> <<"add_delayed_exchange_member [--vhost <vhost>] <exchange> <node>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() -> rabbit_delay_cli_members:member_usage(<<"a node of the cluster that runs this plugin">>).

-spec description() -> binary().
description() -> <<"Adds a member to a delayed exchange: a node that holds its messages, too">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli_members:banner(<<"Adding a member to">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 2, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli_members:change_member(add, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
