%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl transfer_delayed_exchange_leadership: another member of a delayed
%% exchange leads, and releases its messages.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.TransferDelayedExchangeLeadershipCommand').

-define(SCOPES, [ctl, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec usage() -> binary().
usage() -> <<"transfer_delayed_exchange_leadership [--vhost <vhost>] <exchange> <node>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() -> rabbit_delay_cli_members:member_usage(<<"one that has a member, which is to lead">>).

-spec description() -> binary().
description() -> <<"Has another member of a delayed exchange lead it">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli_members:banner(<<"Transferring the leadership of">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 2, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli_members:change_member(transfer, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
