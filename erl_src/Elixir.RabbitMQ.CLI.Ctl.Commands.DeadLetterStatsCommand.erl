%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl dead_letter_stats: what lies in a queue of dead letters, without taking it out.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.DeadLetterStatsCommand').

-behaviour('Elixir.RabbitMQ.CLI.CommandBehaviour').

-export([scopes/0, switches/0, aliases/0, usage/0, usage_additional/0, usage_doc_guides/0,
         help_section/0, description/0, formatter/0, banner/2, merge_defaults/2, validate/2,
         validate_execution_environment/2, run/2, output/2]).

-define(DEFAULT_OUTPUT, 'Elixir.RabbitMQ.CLI.DefaultOutput').
-define(VALIDATORS, 'Elixir.RabbitMQ.CLI.Core.Validators').
-define(LIMIT, 10000).

-type options() :: #{atom() => term()}.

-spec scopes() -> [atom()].
scopes() -> [ctl, diagnostics].

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {limit, integer}].

-spec aliases() -> [{atom(), atom()}].
aliases() -> [{t, timeout}].

-spec usage() -> binary().
usage() -> <<"dead_letter_stats [--vhost <vhost>] [--limit <n>] <queue>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"--limit">>, <<"look at no more than so many messages, from the head; default: 10000">>],
     [<<"What it changes">>, <<"quorum queues: nothing. Classic queues: messages are fetched and put "
                               "back in their place, and count as redelivered from then on">>]].

-spec usage_doc_guides() -> [binary()].
usage_doc_guides() -> [].

-spec help_section() -> {plugin, atom()}.
help_section() -> {plugin, rabbitmq_delay_wheel}.

-spec description() -> binary().
description() -> <<"Groups a queue's dead letters by where and why they died, and by age">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], options()) -> binary().
banner([Queue], #{vhost := VHost}) ->
    <<"Dead letters in queue ", Queue/binary, " of vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) ->
    {Args, maps:merge(#{vhost => <<"/">>, table_headers => true, limit => ?LIMIT}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([_], #{limit := Limit}) when Limit < 1 ->
    {validation_failure, {bad_argument, <<"--limit is not positive">>}};
validate([_], _) -> ok;
validate([], _) -> {validation_failure, not_enough_args};
validate(_, _) -> {validation_failure, too_many_args}.

-spec validate_execution_environment([binary()], options()) -> ok | {validation_failure, term()}.
validate_execution_environment(Args, Options) ->
    ?VALIDATORS:rabbit_is_running(Args, Options).

-spec run([binary()], options()) -> term().
run([Queue], #{node := Node, vhost := VHost, limit := Limit, timeout := Timeout}) ->
    case rpc:call(Node, rabbit_delay_redrive, stats, [VHost, Queue, Limit], Timeout) of
        {ok, Rows} -> Rows;
        {badrpc, _} = Failed -> {error, Failed};
        {error, _} = Error -> Error
    end.

-spec output(term(), options()) -> term().
output(Result, _Options) -> ?DEFAULT_OUTPUT:output(Result).
