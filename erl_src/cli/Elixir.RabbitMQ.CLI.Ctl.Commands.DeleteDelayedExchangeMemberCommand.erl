%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl delete_delayed_exchange_member: a node holds the messages of a delayed
%% exchange no more. Nothing is done where it does not; the last one stays.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.DeleteDelayedExchangeMemberCommand').

-define(SCOPES, [ctl, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec usage() -> binary().
usage() -> <<"delete_delayed_exchange_member [--vhost <vhost>] <exchange> <node>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() -> rabbit_delay_cli_members:member_usage(<<"one that has a member, be it still in the cluster or not">>).

-spec description() -> binary().
description() -> <<"Deletes a member of a delayed exchange: its node holds the messages no more">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli_members:banner(<<"Deleting a member of">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 2, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli_members:change_member(delete, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
