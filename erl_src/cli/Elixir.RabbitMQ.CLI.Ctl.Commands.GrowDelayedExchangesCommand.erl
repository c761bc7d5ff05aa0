%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl grow_delayed_exchanges: a node gets a member of all delayed exchanges that have none there, or of
%% those that have an even number of members.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker for one after the other: if it is
%% interrupted, the others are left as they are.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.GrowDelayedExchangesCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {errors_only, boolean} | rabbit_delay_cli_members:pattern_switches()].

-spec usage() -> binary().
usage() ->
    <<"grow_delayed_exchanges <node> <all | even> [--vhost-pattern <regexp>] "
      "[--exchange-pattern <regexp>] [--errors-only]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<node>">>, <<"a node of the cluster that runs this plugin">>],
     [<<"<all | even>">>, <<"all exchanges that have no member there, or those of an even number of members">>],
     [<<"--errors-only">>, <<"shows those only that failed">>] | rabbit_delay_cli_members:pattern_usage()].

-spec description() -> binary().
description() -> <<"Adds a member on a node to delayed exchanges that have none there">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner([Node, Which], _) -> <<"Growing ", Which/binary, " delayed exchanges on ", Node/binary, " ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{table_headers => true}, Options)}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, Options) ->
    rabbit_delay_cli_members:check_number(
      Args, 2, fun () ->
                       case lists:last(Args) of
                           Which when Which =:= <<"all">>; Which =:= <<"even">> ->
                               rabbit_delay_cli_members:check_patterns(Options);
                           _ ->
                               {validation_failure, {bad_argument, <<"which exchanges? all or even">>}}
                       end
               end).

-spec run([binary()], rabbit_delay_cli:options()) ->
          rabbit_delay_cli:result() | rabbit_delay_cli_members:changes().
run([Node, Which], Options) ->
    rabbit_delay_cli_members:ask(
      Options, to_grow, [Node, case Which of <<"all">> -> all; <<"even">> -> even end,
                         rabbit_delay_cli_members:patterns(Options)],
      fun ({ok, Exchanges}) -> rabbit_delay_cli_members:each(add, Node, Exchanges, Options) end).

-spec output(rabbit_delay_cli:result() | rabbit_delay_cli_members:changes(), rabbit_delay_cli:options()) ->
          term().
output(Result, Options) -> rabbit_delay_cli_members:output(?MODULE, Result, Options).
