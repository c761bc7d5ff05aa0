%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl delayed_exchange_status: the nodes that hold the messages of a delayed exchange, which of them
%% leads, and how far the others are behind it.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker, and changes nothing.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.DelayedExchangeStatusCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, diagnostics, queues]).
-include("rabbit_delay_command.hrl").

-define(COLUMNS, [node, state, voter, behind, last_index, last_applied, commit_index, snapshot_index, term]).

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec usage() -> binary().
usage() -> <<"delayed_exchange_status [--vhost <vhost>] <exchange>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"state">>, <<"leader, follower, candidate, ...; down: its node does not answer; not_started: it does, "
                     "and the member does not run; unknown">>],
     [<<"voter">>, <<"whether it counts for a majority: one that was just added catches up first">>],
     [<<"behind">>, <<"how many entries of the leader's log it does not have">>]].

-spec description() -> binary().
description() -> <<"Shows the members of a delayed exchange: the nodes that hold its messages">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli_members:banner(<<"Members of">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{vhost => <<"/">>, table_headers => true}, Options)}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 1, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run([Exchange], Options) ->
    rabbit_delay_cli_members:ask(
      Options, status, [rabbit_delay_cli:resource(Exchange, Options)],
      fun ({ok, Members}) ->
              {stream, [rabbit_delay_cli_members:row(?COLUMNS, maps:with(?COLUMNS, Member), Options)
                        || Member <- Members]}
      end).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
