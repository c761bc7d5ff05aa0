%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl export_delayed_messages: writes what is pending on an exchange to a file, a line of JSON
%% each. The messages stay pending. With --mnesia-dir, what the official plugin has in the data directory
%% of a node that does not run.
%%
%% It runs in rabbitmqctl, which owns the file and asks rabbit_delay_transfer in the broker for a page
%% at a time. The file has its name when it is complete, and not before; what there is of an export that
%% was ended is in <file>.part, and says where to go on.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ExportDelayedMessagesCommand').

-include("rabbit_delay_command.hrl").

-define(PAGE, 2000).
-define(EXIT_DAMAGED, 1).
-define(EXIT_DATA, 65).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {mnesia_dir, string}, {resume, boolean}].

-spec usage() -> binary().
usage() ->
    <<"export_delayed_messages [--vhost <vhost>] --file <file> {<exchange> [--resume] | "
      "--mnesia-dir <dir> [<exchange>]}">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"--file">>, <<"where to; it must not be there yet">>],
     [<<"--resume">>, <<"go on where an export to this file was ended, in <file>.part">>],
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
validate(_, #{resume := true, mnesia_dir := _}) ->
    {validation_failure, {bad_argument, <<"--resume goes without --mnesia-dir">>}};
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
            case opened(Part, Args, Options) of
                {ok, Device, From} ->
                    Result = write(Args, Options, Device, From),
                    Closed = [file:datasync(Device), file:close(Device)],
                    finish(Result, lists:usort(Closed), Part, File);
                {error, _, _} = Failure ->
                    Failure;
                {error, Reason} ->
                    failed(Part, Reason)
            end
    end.

%% Where to go on, {0, 0} at first, and how many lines there are already.
opened(Part, [Exchange], #{resume := true, vhost := VHost}) ->
    case file:open(Part, [read, write, raw, binary, {read_ahead, 1048576}]) of
        {ok, Device} ->
            case whole_lines(Device, 0, 0, none) of
                {ok, End, Count, Last} ->
                    case position(Last, VHost, Exchange) of
                        {ok, Position} ->
                            {ok, End} = file:position(Device, End),
                            ok = file:truncate(Device),
                            {ok, Device, {Position, Count}};
                        Failure ->
                            ok = file:close(Device),
                            {error, ?EXIT_DATA, <<Part/binary, (not_resumed(Failure))/binary>>}
                    end;
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            Error
    end;
opened(Part, _, _) ->
    case file:open(Part, [write, raw, binary, delayed_write]) of
        {ok, Device} -> {ok, Device, {{0, 0}, 0}};
        {error, _} = Error -> Error
    end.

position(none, _, _) -> {ok, {0, 0}};
position(Line, VHost, Exchange) -> rabbit_delay_transfer:position(Line, VHost, Exchange).

not_resumed(error) -> <<" does not say where to go on">>;
not_resumed({error, other_exchange}) -> <<" is of another exchange">>.

%% What was ended may have cut the last one.
whole_lines(Device, End, Count, Last) ->
    case file:read_line(Device) of
        {ok, Line} ->
            case binary:last(Line) of
                $\n -> whole_lines(Device, End + byte_size(Line), Count + 1, Line);
                _ -> {ok, End, Count, Last}
            end;
        eof ->
            {ok, End, Count, Last};
        {error, _} = Error ->
            Error
    end.

write(Args, #{mnesia_dir := Dir} = Options, Device, _) ->
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
write([Exchange], #{vhost := VHost} = Options, Device, {From, Before}) ->
    Total = rabbit_delay_cli:pending(rabbit_misc:r(VHost, exchange, Exchange), Options),
    Progress = rabbit_delay_progress:new(max(0, Total - Before), Options),
    case rabbit_delay_cli:fold_pending(
           fun (Cursor) -> call(places, [Exchange, Cursor], Options) end, From, ?PAGE,
           fun (Ids, Acc) -> page(call(export, [Exchange, Ids], Options), Device, Acc) end,
           {0, 0, Progress}) of
        {ok, {Count, Damaged, Ended}} ->
            ok = rabbit_delay_progress:ended(Ended),
            {ok, Before + Count, Damaged, []};
        {stopped, {error, Failure}, {Count, _, Ended}} ->
            ok = rabbit_delay_progress:ended(Ended),
            stopped(Failure, Before + Count);
        {stopped, {file, _} = Failure, _} ->
            Failure
    end.

%% The broker makes lines of them: it knows the records of earlier series.
official(Entries, Exchange, #{node := Node, vhost := VHost, timeout := Timeout}, Device,
         {Count, Damaged, Others0}) ->
    case rpc:call(Node, rabbit_delay_transfer, official_lines, [VHost, Exchange, Entries], Timeout) of
        {badrpc, _} = Failed ->
            throw({stopped, rabbit_delay_cli:unanswered(Failed)});
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

page({ok, Lines, Bad, Seen}, Device, {Count, Damaged, Progress}) ->
    case file:write(Device, [[Line, $\n] || Line <- Lines]) of
        ok ->
            Written = Count + length(Lines),
            {ok, Seen, {Written, Damaged + Bad, rabbit_delay_progress:step(Written, Progress)}};
        {error, Reason} ->
            {file, Reason}
    end;
page({error, _} = Failure, _, _) ->
    Failure.

call(Function, Args, #{node := Node, vhost := VHost, timeout := Timeout}) ->
    case rpc:call(Node, rabbit_delay_transfer, Function, [VHost | Args], Timeout) of
        {badrpc, _} = Failed -> {error, {unavailable, rabbit_delay_cli:went_away(Failed)}};
        Result -> Result
    end.

%% What is written so far stays, if there is any.
stopped(Failure, Written) ->
    {error, Code, Why} = rabbit_delay_cli:failure(Failure),
    case Written of
        0 ->
            {error, Code, Why};
        N ->
            {kept, {error, Code, unicode:characters_to_binary(
                                   [Why, io_lib:format("~n~s so far: go on with --resume",
                                                       [rabbit_delay_text:count(N, "message")])])}}
    end.

finish({ok, Count, Damaged, Notes}, [ok], Part, File) ->
    case file:rename(Part, File) of
        ok when Damaged =:= 0 ->
            {ok, unicode:characters_to_binary([[rabbit_delay_text:count(Count, "message"), " exported"], Notes])};
        ok ->
            {error, ?EXIT_DAMAGED,
             unicode:characters_to_binary(
               [[rabbit_delay_text:count(Count, "message"), " exported, "],
                io_lib:format("~b could not be read: see the broker's log", [Damaged]), Notes])};
        {error, Reason} ->
            failed(File, Reason)
    end;
finish({kept, Failure}, [ok], _, _) ->
    Failure;
finish({kept, Failure}, Closed, Part, File) ->
    finish(Failure, Closed, Part, File);
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
