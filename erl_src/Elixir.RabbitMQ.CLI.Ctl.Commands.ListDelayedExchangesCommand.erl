%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl list_delayed_exchanges: what each delayed exchange of a vhost holds. (The columns of
%% list_exchanges are fixed in the broker's command-line tool, and its commands go before a plugin's.)
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ListDelayedExchangesCommand').

-behaviour('Elixir.RabbitMQ.CLI.CommandBehaviour').

-export([scopes/0, switches/0, aliases/0, usage/0, usage_additional/0, usage_doc_guides/0,
         help_section/0, description/0, formatter/0, banner/2, merge_defaults/2, validate/2,
         validate_execution_environment/2, run/2, output/2]).

-define(INFO_KEYS, 'Elixir.RabbitMQ.CLI.Ctl.InfoKeys').
-define(DEFAULT_OUTPUT, 'Elixir.RabbitMQ.CLI.DefaultOutput').
-define(VALIDATORS, 'Elixir.RabbitMQ.CLI.Core.Validators').

-define(COLUMNS, [{name, "the exchange"},
                  {type, "the type by which it routes"},
                  {messages_delayed, "how many messages wait"},
                  {bytes_delayed, "their size as stored"},
                  {next_due, "when the next is due, ms since the epoch; empty if none"},
                  {overdue, "how many should have been released, and are not in flight"},
                  {in_flight, "released, not yet confirmed by their queues"},
                  {paused, "whether releasing is held back (pause_delayed_exchange)"}]).

-type options() :: #{atom() => term()}.

-spec scopes() -> [atom()].
scopes() -> [ctl, diagnostics].

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec aliases() -> [{atom(), atom()}].
aliases() -> [{t, timeout}].

-spec usage() -> binary().
usage() ->
    <<"list_delayed_exchanges [--vhost <vhost>] [--no-table-headers] [<column> ...]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[atom_to_binary(Column, utf8), list_to_binary(Meaning)] || {Column, Meaning} <- ?COLUMNS].

-spec usage_doc_guides() -> [binary()].
usage_doc_guides() -> [].

-spec help_section() -> {plugin, atom()}.
help_section() -> {plugin, rabbitmq_delay_wheel}.

-spec description() -> binary().
description() -> <<"Lists delayed message exchanges and what they hold">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], options()) -> binary().
banner(_, #{vhost := VHost}) ->
    <<"Listing delayed exchanges for vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults([], Options) ->
    merge_defaults([<<"name">>, <<"messages_delayed">>, <<"next_due">>], Options);
merge_defaults(Args, Options) ->
    {Args, maps:merge(#{vhost => <<"/">>, table_headers => true}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate(Args, _Options) ->
    case ?INFO_KEYS:validate_info_keys(Args, [Column || {Column, _} <- ?COLUMNS]) of
        {ok, _} -> ok;
        Failure -> Failure
    end.

-spec validate_execution_environment([binary()], options()) -> ok | {validation_failure, term()}.
validate_execution_environment(Args, Options) ->
    ?VALIDATORS:rabbit_is_running(Args, Options).

-spec run([binary()], options()) -> term().
run(Args, #{node := Node, vhost := VHost, timeout := Timeout}) ->
    rpc:call(Node, rabbit_delay_exchange, list, [VHost, ?INFO_KEYS:prepare_info_keys(Args)],
             Timeout).

-spec output(term(), options()) -> term().
output(Result, _Options) -> ?DEFAULT_OUTPUT:output(Result).
