%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl export_delayed_messages: writes what is pending on an exchange to a file, a line of JSON
%% each. The messages stay pending.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ExportDelayedMessagesCommand').

-include("rabbit_delay_command.hrl").

-define(PAGE, 2000).
-define(EXIT_DAMAGED, 1).
-define(EXIT_DATA, 65).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}].

-spec usage() -> binary().
usage() -> <<"export_delayed_messages [--vhost <vhost>] --file <file> <exchange>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"--file">>, <<"where to; it must not be there yet">>]].

-spec description() -> binary().
description() -> <<"Writes the pending messages of a delayed exchange to a file">>.

-spec banner([binary()], options()) -> binary().
banner([Exchange], #{vhost := VHost}) ->
    <<"Exporting delayed messages of exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{vhost => <<"/">>}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([_], #{file := _}) -> ok;
validate([_], _) -> {validation_failure, {not_enough_args, <<"--file is missing">>}};
validate([], _) -> {validation_failure, not_enough_args};
validate(_, _) -> {validation_failure, too_many_args}.

%% The file gets its name when it is whole.
-spec run([binary()], options()) -> term().
run([Exchange], #{file := File} = Options) ->
    Part = <<File/binary, ".part">>,
    case filelib:is_file(File) of
        true ->
            {error, ?EXIT_DATA, <<File/binary, " is there already">>};
        false ->
            case file:open(Part, [write, raw, binary, delayed_write]) of
                {ok, Device} ->
                    Result = pages(Exchange, Options, Device, {0, 0}, 0, 0),
                    Closed = [file:datasync(Device), file:close(Device)],
                    finish(Result, lists:usort(Closed), Part, File);
                {error, Reason} ->
                    failed(Part, Reason)
            end
    end.

pages(Exchange, #{node := Node, vhost := VHost, timeout := Timeout} = Options, Device, Cursor, Count,
      Damaged) ->
    case rpc:call(Node, rabbit_delay_transfer, export, [VHost, Exchange, Cursor, ?PAGE], Timeout) of
        {ok, Lines, Bad, Next} ->
            case file:write(Device, [[Line, $\n] || Line <- Lines]) of
                ok when Next =:= done ->
                    {ok, Count + length(Lines), Damaged + Bad};
                ok ->
                    pages(Exchange, Options, Device, Next, Count + length(Lines), Damaged + Bad);
                {error, Reason} ->
                    {file, Reason}
            end;
        {badrpc, _} = Failed ->
            {error, Failed};
        {error, _} = Error ->
            Error
    end.

finish({ok, Count, Damaged}, [ok], Part, File) ->
    case file:rename(Part, File) of
        ok when Damaged =:= 0 ->
            {ok, iolist_to_binary(io_lib:format("~b messages exported", [Count]))};
        ok ->
            {error, ?EXIT_DAMAGED,
             iolist_to_binary(io_lib:format("~b messages exported, ~b could not be read: see the "
                                            "broker's log", [Count, Damaged]))};
        {error, Reason} ->
            failed(File, Reason)
    end;
finish(Failure, Closed, Part, _) ->
    _ = file:delete(Part),
    case Failure of
        {error, _} -> Failure;
        {file, Reason} -> failed(Part, Reason);
        {ok, _, _} -> failed(Part, hd([Reason || {error, Reason} <- Closed]))
    end.

failed(File, Reason) ->
    {error, ?EXIT_DATA, unicode:characters_to_binary([File, ": ", file:format_error(Reason)])}.

-spec output(term(), options()) -> term().
output(Result, _Options) -> ?DEFAULT_OUTPUT:output(Result).
