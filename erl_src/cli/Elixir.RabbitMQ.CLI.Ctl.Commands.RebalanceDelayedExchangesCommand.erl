%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl rebalance_delayed_exchanges: leaders of delayed exchanges are spread evenly over the nodes that
%% have members and run.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker for one after the other: if it is
%% interrupted, the others are left as they are. It shows how many each node leads in the end.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.RebalanceDelayedExchangesCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer} | rabbit_delay_cli_members:pattern_switches()].

-spec usage() -> binary().
usage() -> <<"rebalance_delayed_exchanges [--vhost-pattern <regexp>] [--exchange-pattern <regexp>]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() -> rabbit_delay_cli_members:pattern_usage().

-spec description() -> binary().
description() -> <<"Spreads the leaders of delayed exchanges evenly over the nodes that have members">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(_, _) -> <<"Re-balancing leaders of delayed exchanges ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{table_headers => true}, Options)}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, Options) ->
    rabbit_delay_cli_members:check_number(
      Args, 0, fun () -> rabbit_delay_cli_members:check_patterns(Options) end).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run([], Options) ->
    rabbit_delay_cli_members:ask(
      Options, to_rebalance, [rabbit_delay_cli_members:patterns(Options)],
      fun ({ok, Moves}) ->
              case rabbit_delay_cli_members:transfer_each(Moves, Options) of
                  ok -> leaders(Options);
                  Failure -> Failure
              end
      end).

leaders(Options) ->
    rabbit_delay_cli_members:ask(
      Options, leaders, [],
      fun ({ok, Leaders}) ->
              {stream, [rabbit_delay_cli_members:row([node, leaders], #{node => Node, leaders => N}, Options)
                        || {Node, N} <- lists:sort(Leaders)]}
      end).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
