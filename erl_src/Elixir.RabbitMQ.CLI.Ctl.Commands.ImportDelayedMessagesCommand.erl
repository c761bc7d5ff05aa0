%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl import_delayed_messages: publishes the messages of a file that export_delayed_messages
%% wrote, so that they come due when they would have.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ImportDelayedMessagesCommand').

-include("rabbit_delay_command.hrl").

%% Lines at a time: what may be there twice after a crash.
-define(LINES, 1000).
-define(BYTES, 8388608).
-define(EXIT_DATA, 65).
-define(EXIT_UNAVAILABLE, 69).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {exchange, string}, {from_line, integer}].

-spec usage() -> binary().
usage() ->
    <<"import_delayed_messages [--vhost <vhost>] [--exchange <exchange>] [--from-line <n>] "
      "--file <file>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"--file">>, <<"what export_delayed_messages wrote">>],
     [<<"--exchange">>, <<"to this delayed exchange; otherwise to the one that each line names">>],
     [<<"--from-line">>, <<"go on from here; default: 1">>]].

-spec description() -> binary().
description() -> <<"Publishes exported delayed messages, each due when it was">>.

-spec banner([binary()], options()) -> binary().
banner(_, #{vhost := VHost, file := File}) ->
    <<"Importing delayed messages from ", File/binary, " into vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{vhost => <<"/">>, from_line => 1}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([], #{from_line := Line}) when Line < 1 ->
    {validation_failure, {bad_argument, <<"--from-line is not positive">>}};
validate([], #{file := _}) -> ok;
validate([], _) -> {validation_failure, {not_enough_args, <<"--file is missing">>}};
validate(_, _) -> {validation_failure, too_many_args}.

-spec run([binary()], options()) -> term().
run([], #{file := File, from_line := From} = Options) ->
    case file:open(File, [read, raw, binary, {read_ahead, 1048576}]) of
        {ok, Device} ->
            Result = case skip(Device, From - 1) of
                         ok -> chunks(Device, From, 0, Options);
                         Failure -> Failure
                     end,
            _ = file:close(Device),
            Result;
        {error, Reason} ->
            {error, ?EXIT_DATA, unicode:characters_to_binary([File, ": ", file:format_error(Reason)])}
    end.

skip(_, 0) ->
    ok;
skip(Device, N) ->
    case file:read_line(Device) of
        {ok, _} -> skip(Device, N - 1);
        eof -> {error, ?EXIT_DATA, <<"the file has fewer lines">>};
        {error, Reason} -> {error, ?EXIT_DATA, unicode:characters_to_binary(file:format_error(Reason))}
    end.

%% First: the number of the first line that is not in yet.
chunks(Device, First, Count, #{node := Node, vhost := VHost, timeout := Timeout} = Options) ->
    case lines(Device, ?LINES, ?BYTES, []) of
        {ok, []} ->
            {ok, iolist_to_binary(io_lib:format("~b messages imported", [Count]))};
        {ok, Lines} ->
            case rpc:call(Node, rabbit_delay_transfer, import,
                          [VHost, Lines, maps:get(exchange, Options, undefined)], Timeout) of
                ok ->
                    chunks(Device, First + length(Lines), Count + length(Lines), Options);
                {error, {line, N, Why}} ->
                    stopped(?EXIT_DATA, First, Count, ["line ", integer_to_list(First + N - 1), ": ", Why]);
                {error, {unavailable, Why}} ->
                    stopped(?EXIT_UNAVAILABLE, First, Count, Why);
                {error, Why} ->
                    stopped(?EXIT_DATA, First, Count, Why);
                {badrpc, Reason} ->
                    stopped(?EXIT_UNAVAILABLE, First, Count, io_lib:format("the broker went away: ~0P", [Reason, 8]))
            end;
        {error, Reason} ->
            stopped(?EXIT_DATA, First, Count, file:format_error(Reason))
    end.

stopped(Code, First, Count, Why) ->
    {error, Code,
     unicode:characters_to_binary(
       [Why, io_lib:format("~n~b messages are imported. Go on with --from-line ~b; of the ~b lines from "
                           "there on some may be in already.", [Count, First, ?LINES])])}.

lines(_, 0, _, Lines) ->
    {ok, lists:reverse(Lines)};
lines(_, _, Bytes, Lines) when Bytes =< 0 ->
    {ok, lists:reverse(Lines)};
lines(Device, N, Bytes, Lines) ->
    case file:read_line(Device) of
        {ok, Line} -> lines(Device, N - 1, Bytes - byte_size(Line), [Line | Lines]);
        eof -> {ok, lists:reverse(Lines)};
        {error, _} = Error -> Error
    end.

-spec output(term(), options()) -> term().
output(Result, _Options) -> ?DEFAULT_OUTPUT:output(Result).
