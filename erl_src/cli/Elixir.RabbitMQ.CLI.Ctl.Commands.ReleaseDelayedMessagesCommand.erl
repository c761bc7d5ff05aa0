%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl release_delayed_messages: makes pending messages due now.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_pending in the broker, step by step. Those that are
%% in flight are told, and left alone.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ReleaseDelayedMessagesCommand').

-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {all, boolean}
               | rabbit_delay_cli:several_switches() ++ rabbit_delay_cli:selecting_switches()].

-spec usage() -> binary().
usage() ->
    <<"release_delayed_messages [--vhost <vhost>] (<exchange> | "
      "--pattern <regexp> | --all-exchanges) (<id> ... | --all | "
      "[--due-from <time>] [--due-to <time>] [--key <key>] [--routing-key <key>] "
      "[--published-to <exchange>] [--header <name>=<value>]) [--dry-run]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    rabbit_delay_cli:selecting_usage() ++ rabbit_delay_cli:several_usage() ++
        [[<<"<id>">>, <<"of a message, as list_delayed_messages shows it">>],
         [<<"--all">>, <<"every pending message">>],
         [<<"--dry-run">>, <<"only counts the messages that are meant">>]].

-spec description() -> binary().
description() -> <<"Releases delayed messages before they are due">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli:banner(<<"Releasing messages of">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, Options) -> rabbit_delay_cli:check_selection(Args, Options, true).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli:change(release, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output({ok, Text}, Options) when is_binary(Text) -> ?DEFAULT_OUTPUT:output(Text, Options);
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
