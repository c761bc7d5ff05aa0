%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl dead_letter_stats: what lies in a queue of dead letters, without taking it out.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_dead_letter_stats in the broker.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.DeadLetterStatsCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, diagnostics]).
-include("rabbit_delay_command.hrl").

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {limit, integer}].

-spec usage() -> binary().
usage() -> <<"dead_letter_stats [--vhost <vhost>] [--limit <n>] <queue>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"--limit">>, <<"look at no more than so many messages, from the head; default: 100000, and "
                       "3000 of a quorum queue, where ten times as many take a hundred times as "
                       "long">>],
     [<<"What it changes">>, <<"quorum queues: nothing. Classic queues: messages are fetched and put "
                               "back in their place, and count as redelivered from then on">>]].

-spec description() -> binary().
description() -> <<"Groups a queue's dead letters by where and why they died, and by age">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], options()) -> binary().
banner([Queue], #{vhost := VHost}) ->
    <<"Dead letters in queue ", Queue/binary, " of vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) ->
    {Args, maps:merge(#{vhost => <<"/">>, table_headers => true, limit => usual}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([_], #{limit := Limit}) when Limit < 1 ->
    {validation_failure, {bad_argument, <<"--limit must be at least 1">>}};
validate([_], _) -> ok;
validate([], _) -> {validation_failure, not_enough_args};
validate(_, _) -> {validation_failure, too_many_args}.

-spec run([binary()], options()) -> term().
run([Queue], #{node := Node, vhost := VHost, limit := Limit, timeout := Timeout}) ->
    case rpc:call(Node, rabbit_delay_dead_letter_stats, stats, [VHost, Queue, Limit], Timeout) of
        {ok, Rows, Truncated} ->
            _ = Truncated andalso io:put_chars(standard_error,
                                               "Looking took too long: there are more.\n"),
            [[{Name, text(Value)} || {Name, Value} <- Row] || Row <- Rows];
        {badrpc, _} = Failed -> rabbit_delay_cli:unanswered(Failed);
        {error, Failure} -> rabbit_delay_cli:failure(Failure)
    end.

text(Name) when is_binary(Name) -> rabbit_delay_text:escaped(Name);
text(Number) -> Number.

-spec output(term(), options()) -> term().
output(Result, _Options) -> ?DEFAULT_OUTPUT:output(Result).
