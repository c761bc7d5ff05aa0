%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl force_shrink_delayed_exchanges: where the nodes of a majority of an exchange's members have been lost
%% for good and forgotten, the member on a node goes on as the only one.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker for one after the other: if it is
%% interrupted, the others are left as they are.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ForceShrinkDelayedExchangesCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {errors_only, boolean}].

-spec usage() -> binary().
usage() -> <<"force_shrink_delayed_exchanges <node> [--errors-only]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<node>">>, <<"one that has members; those of the others, lost and forgotten, are given up">>],
     [<<"--errors-only">>, <<"shows those only that failed">>]].

-spec description() -> binary().
description() -> <<"Has delayed exchanges that have lost a majority of their members go on with the one on a node">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner([Node], _) -> <<"Shrinking delayed exchanges without a majority to ", Node/binary, " ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{table_headers => true}, Options)}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 1, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) ->
          rabbit_delay_cli:result() | rabbit_delay_cli_members:changes().
run([Node], Options) ->
    rabbit_delay_cli_members:ask(
      Options, to_force_shrink, [Node],
      fun ({ok, Exchanges}) -> rabbit_delay_cli_members:each(force_shrink, Node, Exchanges, Options) end).

-spec output(rabbit_delay_cli:result() | rabbit_delay_cli_members:changes(), rabbit_delay_cli:options()) ->
          term().
output(Result, Options) -> rabbit_delay_cli_members:output(?MODULE, Result, Options).
