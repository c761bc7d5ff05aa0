%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl check_if_node_is_delayed_exchange_critical: whether delayed exchanges would be without a majority of
%% their members if a node was stopped. To be asked before it is, as check_if_node_is_quorum_critical, which knows of
%% queues only; it ends and speaks as that does.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_replication on that node, and changes nothing.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.CheckIfNodeIsDelayedExchangeCriticalCommand').

-define(SCOPES, [ctl, diagnostics, queues]).
-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec usage() -> binary().
usage() -> <<"check_if_node_is_delayed_exchange_critical">>.

-spec usage_additional() -> [[binary()]].
usage_additional() -> [].

-spec description() -> binary().
description() ->
    <<"Health check that exits with a non-zero code if there are delayed exchanges that would lose the majority of "
      "their members if the target node was shut down">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(_, #{node := Node}) ->
    <<"Checking if node ", (atom_to_binary(Node))/binary, " is critical for a majority of members of any delayed "
      "exchange ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> {Args, Options}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, _) -> rabbit_delay_cli_members:check_number(Args, 0, fun () -> ok end).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run([], Options) -> rabbit_delay_cli_members:ask(Options, critical, [], fun (Result) -> Result end).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output({ok, What}, #{node := Node} = Options) ->
    Quiet = maps:get(silent, Options, false),
    case {What, rabbit_delay_cli:is_json(Options)} of
        {[_ | _], true} ->
            {error, check_failed, #{<<"result">> => <<"error">>,
                                    <<"exchanges">> => [shown(XName) || XName <- What],
                                    <<"message">> => <<"Node ", (atom_to_binary(Node))/binary,
                                                       " has members of delayed exchanges that would be "
                                                       "without a majority">>}};
        {[_ | _], false} when Quiet -> {error, check_failed};
        {[_ | _], false} ->
            {error, check_failed, unicode:characters_to_binary(
                                    lists:join($\n, [[readable(XName), " will become unavailable if node ",
                                                      atom_to_binary(Node), " stops"] || XName <- What]))};
        {[], true} -> {ok, #{<<"result">> => <<"ok">>}};
        {_, true} -> {ok, #{<<"result">> => <<"ok">>, <<"message">> => passed(What, <<"Target node">>)}};
        {_, false} when Quiet -> {ok, check_passed};
        {_, false} -> {ok, passed(What, <<"Node ", (atom_to_binary(Node))/binary>>)}
    end;
output(Result, Options) ->
    ?DEFAULT_OUTPUT:output(Result, Options).

passed([], Node) ->
    <<Node/binary, " has no members of delayed exchanges that would be without a majority">>;
passed(single_node_cluster, Node) ->
    <<Node/binary, " seems to be the only one in a single node cluster, the check does not apply">>;
passed(under_maintenance, Node) ->
    <<Node/binary, " seems to be in maintenance mode, the check does not apply">>.

shown(XName) ->
    #{vhost := VHost, name := Name} = rabbit_delay_cli_members:exchange(XName),
    #{<<"name">> => rabbit_delay_cli:text(Name), <<"virtual_host">> => rabbit_delay_cli:text(VHost),
      <<"readable_name">> => readable(XName)}.

readable(XName) ->
    #{vhost := VHost, name := Name} = rabbit_delay_cli_members:exchange(XName),
    unicode:characters_to_binary(["delayed exchange '", rabbit_delay_cli:text(Name), "' in vhost '",
                                  rabbit_delay_cli:text(VHost), $']).
