%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl export_delayed_messages: writes what is pending on an exchange to a file, a line of JSON
%% each. The messages stay pending. With --mnesia-dir, what the official plugin has in the data directory
%% of a node that does not run.
%%
%% It runs in rabbitmqctl, which owns the file and asks rabbit_delay_transfer in the broker for a page
%% at a time. The file has its name when it is complete, and not before.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ExportDelayedMessagesCommand').

-include("rabbit_delay_command.hrl").

-define(PAGE, 2000).
-define(EXIT_DAMAGED, 1).
-define(EXIT_DATA, 65).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {mnesia_dir, string}].

-spec usage() -> binary().
usage() ->
    <<"export_delayed_messages [--vhost <vhost>] --file <file> {<exchange> | "
      "--mnesia-dir <dir> [<exchange>]}">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"--file">>, <<"where to; it must not be there yet">>],
     [<<"--mnesia-dir">>, <<"of what the official plugin has in this data directory of a node that does "
                            "not run, seen from here">>]].

-spec description() -> binary().
description() -> <<"Writes pending delayed messages to a file">>.

-spec banner([binary()], options()) -> binary().
banner(_, #{vhost := VHost, mnesia_dir := Dir}) ->
    <<"Exporting delayed messages of the official plugin in vhost ", VHost/binary, " from ", Dir/binary,
      " ...">>;
banner([Exchange], #{vhost := VHost}) ->
    <<"Exporting delayed messages of exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{vhost => <<"/">>}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([], #{file := _, mnesia_dir := _}) -> ok;
validate([_], #{file := _}) -> ok;
validate([_], _) -> {validation_failure, {not_enough_args, <<"--file is missing">>}};
validate([], _) -> {validation_failure, not_enough_args};
validate(_, _) -> {validation_failure, too_many_args}.

%% The file gets its name when it is whole.
-spec run([binary()], options()) -> term().
run(Args, #{file := File} = Options) ->
    Part = <<File/binary, ".part">>,
    case filelib:is_file(File) of
        true ->
            {error, ?EXIT_DATA, <<File/binary, " is there already">>};
        false ->
            case file:open(Part, [write, raw, binary, delayed_write]) of
                {ok, Device} ->
                    Result = write(Args, Options, Device),
                    Closed = [file:datasync(Device), file:close(Device)],
                    finish(Result, lists:usort(Closed), Part, File);
                {error, Reason} ->
                    failed(Part, Reason)
            end
    end.

write(Args, #{mnesia_dir := Dir} = Options, Device) ->
    Exchange = case Args of
                   [Name] -> Name;
                   [] -> all
               end,
    try rabbit_delay_official_files:fold(
          Dir, fun (Entries, Sum) -> official(Entries, Exchange, Options, Device, Sum) end,
          {0, 0, #{}}) of
        {ok, {Count, Damaged, Others}, Lost} -> {ok, Count, Damaged, notes(Others, Lost)};
        {error, Why} -> {error, ?EXIT_DATA, unicode:characters_to_binary(Why)}
    catch
        throw:{stopped, Failure} -> Failure
    end;
write([Exchange], Options, Device) ->
    pages(Exchange, Options, Device, {0, 0}, 0, 0).

%% The broker makes lines of them: it knows the records of earlier series.
official(Entries, Exchange, #{node := Node, vhost := VHost, timeout := Timeout}, Device,
         {Count, Damaged, Others0}) ->
    case rpc:call(Node, rabbit_delay_transfer, official_lines, [VHost, Exchange, Entries], Timeout) of
        {badrpc, _} = Failed ->
            throw({stopped, {error, Failed}});
        {Lines, Others, Bad} ->
            case file:write(Device, [[Line, $\n] || Line <- Lines]) of
                ok ->
                    {Count + length(Lines), Damaged + Bad,
                     maps:fold(fun (Other, N, Acc) ->
                                       maps:update_with(Other, fun (M) -> M + N end, N, Acc)
                               end, Others0, Others)};
                {error, Reason} ->
                    throw({stopped, {file, Reason}})
            end
    end.

notes(Others, Lost) ->
    [["\nleft out: ", integer_to_list(N), " of vhost \"", rabbit_delay_cli:text(Other), "\" (--vhost)"]
     || {Other, N} <- lists:sort(maps:to_list(Others))] ++
        [["\nThe last ", integer_to_list(Lost), " bytes were not written whole by the node that stopped."]
         || Lost > 0].

pages(Exchange, #{node := Node, vhost := VHost, timeout := Timeout} = Options, Device, Cursor, Count,
      Damaged) ->
    case rpc:call(Node, rabbit_delay_transfer, export, [VHost, Exchange, Cursor, ?PAGE], Timeout) of
        {ok, Lines, Bad, Next} ->
            case file:write(Device, [[Line, $\n] || Line <- Lines]) of
                ok when Next =:= done ->
                    {ok, Count + length(Lines), Damaged + Bad, []};
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

finish({ok, Count, Damaged, Notes}, [ok], Part, File) ->
    case file:rename(Part, File) of
        ok when Damaged =:= 0 ->
            {ok, unicode:characters_to_binary([io_lib:format("~b messages exported", [Count]), Notes])};
        ok ->
            {error, ?EXIT_DAMAGED,
             unicode:characters_to_binary(
               [io_lib:format("~b messages exported, ~b could not be read: see the broker's log",
                              [Count, Damaged]), Notes])};
        {error, Reason} ->
            failed(File, Reason)
    end;
finish(Failure, Closed, Part, _) ->
    _ = file:delete(Part),
    case Failure of
        {file, Reason} -> failed(Part, Reason);
        {ok, _, _, _} -> failed(Part, hd([Reason || {error, Reason} <- Closed]));
        _ -> Failure
    end.

failed(File, Reason) ->
    {error, ?EXIT_DATA, unicode:characters_to_binary([File, ": ", file:format_error(Reason)])}.

-spec output(term(), options()) -> term().
output(Result, _Options) -> ?DEFAULT_OUTPUT:output(Result).
