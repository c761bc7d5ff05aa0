%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl purge_delayed_messages: cancels all that is pending on an exchange.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_pending in the broker: for one entry of the log, or,
%% while a member has an earlier version, step by step. What is in flight goes from the exchange, too,
%% and its queues may still get it: it is told how many those are.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.PurgeDelayedMessagesCommand').

-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer} | rabbit_delay_cli:several_switches()].

-spec usage() -> binary().
usage() ->
    <<"purge_delayed_messages [--vhost <vhost>] (<exchange> | "
      "--pattern <regexp> | --all-exchanges) [--dry-run]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"--dry-run">>, <<"only counts the messages">>] | rabbit_delay_cli:several_usage()].

-spec description() -> binary().
description() -> <<"Cancels every delayed message that is pending on an exchange">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli:banner(<<"Purging">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, Options) -> rabbit_delay_cli:check_exchange(Args, Options).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli:change(cancel, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output({ok, Text}, Options) when is_binary(Text) -> ?DEFAULT_OUTPUT:output(Text, Options);
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
