%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl shrink_delayed_exchanges: a node has no member of a delayed exchange any more, but for those of
%% which it has the only one.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker for one after the other: if it is
%% interrupted, the others are left as they are.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ShrinkDelayedExchangesCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {errors_only, boolean}].

-spec usage() -> binary().
usage() -> <<"shrink_delayed_exchanges <node> [--errors-only]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<node>">>, <<"one that has members, be it still in the cluster or not">>],
     [<<"--errors-only">>, <<"shows those only that failed">>]].

-spec description() -> binary().
description() -> <<"Deletes the members on a node of all delayed exchanges">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner([Node], _) -> <<"Shrinking delayed exchanges on ", Node/binary, " ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{table_headers => true}, Options)}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 1, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) ->
          rabbit_delay_cli:result() | rabbit_delay_cli_members:changes().
run([Node], Options) ->
    rabbit_delay_cli_members:ask(
      Options, to_shrink, [Node],
      fun ({ok, Exchanges}) -> rabbit_delay_cli_members:each(delete, Node, Exchanges, Options) end).

-spec output(rabbit_delay_cli:result() | rabbit_delay_cli_members:changes(), rabbit_delay_cli:options()) ->
          term().
output(Result, Options) -> rabbit_delay_cli_members:output(?MODULE, Result, Options).
