%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl delayed_exchange_status: the nodes that hold the messages of a delayed exchange, which of them
%% leads, how far the others are behind it, and whether all hold the same.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication in the broker, and changes nothing.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.DelayedExchangeStatusCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, diagnostics, queues]).
-include("rabbit_delay_command.hrl").

-define(COLUMNS, [node, state, voter, behind, messages_delayed]).
-define(INDEXES, [last_index, last_applied, commit_index, snapshot_index, term]).

-spec switches() -> [{atom(), atom()}].
switches() -> [{digest, boolean}, {timeout, integer}].

-spec usage() -> binary().
usage() -> <<"delayed_exchange_status [--vhost <vhost>] [--digest] <exchange>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"--digest">>, <<"compares what the members hold at one index of the log, for 5 s at most: of each a digest "
                        "of the ids, due times, keys and sizes of its messages and of publishers' sessions. Ends "
                        "with 1 if they differ, with 69 if some could not be compared">>],
     [<<"state">>, <<"leader, follower, candidate, ...; down: its node does not answer; not_started: it does, "
                     "and the member does not run; unknown">>],
     [<<"voter">>, <<"whether it counts for a majority: one that was just added catches up first">>],
     [<<"behind">>, <<"how many entries of the leader's log it does not have">>],
     [<<"messages_delayed">>, <<"how many messages it holds; with --digest, at digest_index">>]].

-spec description() -> binary().
description() -> <<"Shows the members of a delayed exchange: the nodes that hold its messages">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli_members:banner(<<"Members of">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) ->
    {Args, maps:merge(#{vhost => <<"/">>, table_headers => true, digest => false}, Options)}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 1, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) ->
          rabbit_delay_cli:result() | rabbit_delay_cli_members:compared().
run([Exchange], #{digest := false} = Options) ->
    rabbit_delay_cli_members:ask(
      Options, status, [rabbit_delay_cli:resource(Exchange, Options)],
      fun ({ok, Members}) -> {stream, rows(?COLUMNS ++ ?INDEXES, Members, Options)} end);
run([Exchange], Options) ->
    rabbit_delay_cli_members:ask(
      Options, compared, [rabbit_delay_cli:resource(Exchange, Options)],
      fun ({ok, #{members := Members, outcome := Outcome, why := Why}}) ->
              {compared, rows(?COLUMNS ++ [digest_index, digest | ?INDEXES], Members, Options), Outcome, Why}
      end).

rows(Columns, Members, Options) ->
    [rabbit_delay_cli_members:row(Columns, maps:with(Columns, Member), Options) || Member <- Members].

-spec output(rabbit_delay_cli:result() | rabbit_delay_cli_members:compared(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> rabbit_delay_cli_members:output(?MODULE, Result, Options).
