%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl explain_dead_letter: the history of a dead letter in sentences, of a message in a queue
%% or of headers in a file.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_dead_letter_stats in the broker, and no broker for a
%% file.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ExplainDeadLetterCommand').

-export([distribution/1]).

-define(SCOPES, [ctl, diagnostics]).
-define(BROKER_UNUSED, #{file := _}).
-include("rabbit_delay_command.hrl").

-define(EXIT_DATA, 65).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {position, integer}].

-spec usage() -> binary().
usage() ->
    <<"explain_dead_letter [--vhost <vhost>] [--position <n>] <queue> | --file <file>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"--position">>, <<"which message of the queue, from the head; default: 1">>],
     [<<"--file">>, <<"JSON: a message's headers, or an object that has them as \"headers\" or in "
                      "\"properties\"; /dev/stdin is the standard input">>]].

-spec description() -> binary().
description() -> <<"Tells the history of a dead-lettered message">>.

-spec banner([binary()], options()) -> nil.
banner(_, _) -> nil.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) ->
    {Args, maps:merge(#{vhost => <<"/">>, position => 1}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([], #{file := _}) -> ok;
validate([_], #{file := _}) -> {validation_failure, too_many_args};
validate([], _) -> {validation_failure, not_enough_args};
validate([_], #{position := Position}) when Position < 1 ->
    {validation_failure, {bad_argument, <<"--position must be at least 1">>}};
validate([_], _) -> ok;
validate(_, _) -> {validation_failure, too_many_args}.

-spec distribution(options()) -> none | cli.
distribution(#{file := _}) -> none;
distribution(_) -> cli.

-spec run([binary()], options()) -> {ok, [binary()]} | {error, term()} | {error, integer(), binary()}.
run([], #{file := File}) ->
    case file:read_file(File) of
        {ok, Json} -> of_json(rabbit_json:try_decode(Json));
        {error, Reason} -> unreadable([File, ": ", file:format_error(Reason)])
    end;
run([Queue], #{node := Node, vhost := VHost, position := Position, timeout := Timeout}) ->
    case rpc:call(Node, rabbit_delay_dead_letter_stats, explain, [VHost, Queue, Position], Timeout) of
        {badrpc, _} = Failed -> rabbit_delay_cli:unanswered(Failed);
        {error, Failure} -> rabbit_delay_cli:failure(Failure);
        {ok, Sentences, _} -> {ok, Sentences}
    end.

of_json({ok, #{<<"properties">> := #{<<"headers">> := #{} = Headers}}}) -> explained(Headers);
of_json({ok, #{<<"headers">> := #{} = Headers}}) -> explained(Headers);
of_json({ok, #{} = Headers}) -> explained(Headers);
of_json({ok, _}) -> unreadable("the file is not a JSON object");
of_json({error, _}) -> unreadable("the file is not JSON").

explained(Headers) -> {ok, rabbit_delay_deaths:explain(Headers, undefined)}.

unreadable(Why) -> {error, ?EXIT_DATA, unicode:characters_to_binary(Why)}.

-spec output(term(), options()) -> term().
output({ok, Sentences}, #{formatter := <<"json">>}) ->
    print(rabbit_json:encode(#{<<"version">> => 1, <<"sentences">> => Sentences}));
output({ok, Sentences}, _) ->
    print(lists:join($\n, Sentences));
output(Failure, _) ->
    Failure.

print(Text) ->
    ok = io:put_chars(standard_io, [Text, $\n]),
    {ok, nil}.
