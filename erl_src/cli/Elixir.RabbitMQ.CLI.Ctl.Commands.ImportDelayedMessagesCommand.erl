%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl import_delayed_messages: takes over what the official plugin left in Mnesia; with --file,
%% publishes the messages of a file that export_delayed_messages wrote. They come due when they would
%% have.
%%
%% It runs in rabbitmqctl, step by step with rabbit_delay_official_tables or rabbit_delay_transfer in
%% the broker. From Mnesia no message is lost and none comes twice, whatever ends it; from a file, what
%% was published before it was ended is there, and comes again if it is imported again.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ImportDelayedMessagesCommand').

-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay_command.hrl").

%% Lines at a time: what may be there twice after a crash.
-define(LINES, 1000).
-define(BYTES, 8388608).
-define(EXIT_LEFT, 1).
-define(EXIT_DATA, 65).
-define(EXIT_UNAVAILABLE, 69).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {exchange, string}, {from_line, integer},
               {skip_pending, boolean}].

-spec usage() -> binary().
usage() ->
    <<"import_delayed_messages [--vhost <vhost>] [--file <file> [--exchange <exchange>] "
      "[--from-line <n>] [--skip-pending]]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"--file">>, <<"what export_delayed_messages wrote; otherwise what the official plugin left in "
                      "the node's Mnesia">>],
     [<<"--vhost">>, <<"of a file, the vhost that it goes to, by default \"/\"; of Mnesia, the only one "
                       "that is looked at">>],
     [<<"--exchange">>, <<"to this delayed exchange; otherwise to the one that each line names">>],
     [<<"--from-line">>, <<"go on from here; default: 1">>],
     [<<"--skip-pending">>, <<"leave out what is pending already, as it was when this began: for a file "
                              "that is imported again">>]].

-spec description() -> binary().
description() ->
    <<"Takes in delayed messages of the official plugin, or of a file, each due when it was">>.

-spec banner([binary()], options()) -> binary().
banner(_, #{vhost := VHost, file := File}) ->
    <<"Importing delayed messages from ", File/binary, " into vhost ", VHost/binary, " ...">>;
banner(_, #{node := Node}) ->
    <<"Importing delayed messages of the official plugin on node ", (atom_to_binary(Node, utf8))/binary,
      " ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, #{file := _} = Options) ->
    {Args, maps:merge(#{vhost => <<"/">>, from_line => 1}, Options)};
merge_defaults(Args, Options) ->
    {Args, Options}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([], #{from_line := Line}) when Line < 1 ->
    {validation_failure, {bad_argument, <<"--from-line must be at least 1">>}};
validate([], #{file := _}) -> ok;
validate([], #{exchange := _}) -> needs_file();
validate([], #{from_line := _}) -> needs_file();
validate([], #{skip_pending := true}) -> needs_file();
validate([], _) -> ok;
validate(_, _) -> {validation_failure, too_many_args}.

needs_file() ->
    {validation_failure, {bad_argument, <<"--exchange, --from-line and --skip-pending go with --file">>}}.

-spec run([binary()], options()) -> term().
run([], #{file := File, from_line := From} = Options) ->
    case file:open(File, [read, raw, binary, {read_ahead, 1048576}]) of
        {ok, Device} ->
            Result = case skip(Device, From - 1) of
                         ok -> from_file(Device, File, From, Options);
                         Failure -> Failure
                     end,
            _ = file:close(Device),
            Result;
        {error, Reason} ->
            {error, ?EXIT_DATA, unicode:characters_to_binary([File, ": ", file:format_error(Reason)])}
    end;
run([], Options) ->
    official(Options).

%% ------------------------------------------------------------- from the official plugin's tables

official(Options) ->
    VHost = maps:get(vhost, Options, all),
    case call(begin_import, [VHost], Options) of
        {ok, Before} ->
            Total = total(Before),
            steps(VHost, {first, []}, #{imported => 0, already => 0, skipped => #{}}, Total, Options);
        none ->
            {error, ?EXIT_DATA,
             <<"the official plugin has left no tables in this node's Mnesia. What lies in the data "
               "directory of another node, or of this one before it moved to Khepri, is read by "
               "export_delayed_messages --mnesia-dir">>};
        Failure ->
            failed(Failure)
    end.

call(Function, Args, #{node := Node, timeout := Timeout}) ->
    rpc:call(Node, rabbit_delay_official_tables, Function, Args, Timeout).

failed({error, {unavailable, Why}}) ->
    {error, ?EXIT_UNAVAILABLE, Why};
failed({badrpc, _} = Failure) ->
    {error, ?EXIT_UNAVAILABLE, rabbit_delay_cli:went_away(Failure)}.

%% In steps, so that it ends with the tool.
steps(VHost, Cursor, Sum0, Total, Options) ->
    case call(import, [VHost, Cursor], Options) of
        {ok, Progress, Next} ->
            Sum = add(Progress, Sum0),
            ok = tell(Sum, Total, Options),
            case Next of
                done -> ended(VHost, Sum, Total, Options);
                _ -> steps(VHost, Next, Sum, Total, Options)
            end;
        Failure ->
            {error, Code, Why} = failed(Failure),
            {error, Code,
             format("~ts~n~b of ~s imported. Nothing is lost and nothing comes twice: run it again to go on.",
                    [Why, maps:get(imported, Sum0), rabbit_delay_text:count(Total, "message")])}
    end.

add(#{imported := I, already := A, skipped := S}, #{imported := I0, already := A0, skipped := S0}) ->
    #{imported => I0 + I, already => A0 + A,
      skipped => maps:fold(fun (Key, N, Acc) -> maps:update_with(Key, fun (M) -> M + N end, N, Acc) end,
                           S0, S)}.

tell(_, _, #{quiet := true}) -> ok;
tell(_, _, #{silent := true}) -> ok;
tell(#{imported := Imported, already := Already}, Total, Options) ->
    case rabbit_delay_cli:is_json(Options) of
        true -> ok;
        false -> io:format(standard_error, "~b of ~s~n",
                           [Imported + Already, rabbit_delay_text:count(Total, "message")])
    end.

total(Counts) -> lists:sum(maps:values(Counts)).

ended(VHost, #{imported := Imported, already := Already, skipped := Skipped} = Sum, Total, Options) ->
    case call(end_import, [VHost], Options) of
        {ok, Counts, Tables} ->
            Left = total(Counts),
            Agrees = Imported + Already + Left =:= Total andalso total(Skipped) =:= Left,
            Why = case {Left, Agrees} of
                      {0, true} -> none;
                      {_, true} -> <<"What is left stays in Mnesia. Mend what keeps it there, and "
                                     "run it again.">>;
                      {_, false} -> <<"The counts do not agree: the tables were changed meanwhile. "
                                      "Run it again.">>
                  end,
            Report = case rabbit_delay_cli:is_json(Options) of
                         true -> json(Sum, Total, Left);
                         false -> [summary(Sum, Total, Left),
                                   [["\n", left_row(Row)] || Row <- lists:sort(maps:to_list(Skipped))],
                                   [["\n", farewell(VHost, Tables)] || Why =:= none]]
                     end,
            {report, unicode:characters_to_binary(Report), Why};
        Failure ->
            failed(Failure)
    end.

json(#{imported := Imported, already := Already, skipped := Skipped}, Total, Left) ->
    rabbit_json:encode(
      #{found => Total, imported => Imported, imported_before => Already, left => Left,
        skipped => [#{vhost => VHost, exchange => Exchange, reason => Reason, messages => N}
                    || {{#resource{virtual_host = VHost, name = Exchange}, Reason}, N}
                           <- lists:sort(maps:to_list(Skipped))]}).

summary(#{imported := Imported, already := Already}, Total, Left) ->
    [format("~s found in the official plugin's tables: ~b imported, ",
            [rabbit_delay_text:count(Total, "message"), Imported]),
     [format("~b imported before, ", [Already]) || Already > 0],
     format("~b left.", [Left])].

left_row({{#resource{virtual_host = VHost, name = Exchange}, Why}, N}) ->
    [integer_to_list(N), ": exchange \"", rabbit_delay_cli:text(Exchange), "\" in vhost \"",
     rabbit_delay_cli:text(VHost), "\" ", reason(Why)].

reason(no_exchange) -> "does not exist";
reason(not_delayed) -> "is not of type x-delayed-message";
reason(full) -> "is full (x-delay-max-length or x-delay-max-length-bytes)";
reason(unreadable) -> "cannot read them";
reason(too_large) -> "does not take such large ones (delayed_message.max_message_size)".

farewell(all, Tables) ->
    format("The official plugin is not needed any more: delete "
           "rabbitmq_delayed_message_exchange-*.ez from the plugins directory, and its empty tables "
           "with~n"
           "    rabbitmqctl eval '[mnesia:delete_table(T) || T <- ~0p].'", [Tables]);
farewell(VHost, _) ->
    ["This was vhost \"", rabbit_delay_cli:text(VHost), "\" alone; without --vhost it is all of them."].

format(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).

%% --------------------------------------------------------------------------------- from a file

skip(_, 0) ->
    ok;
skip(Device, N) ->
    case file:read_line(Device) of
        {ok, _} -> skip(Device, N - 1);
        eof -> {error, ?EXIT_DATA, <<"--from-line: the file has fewer lines">>};
        {error, Reason} -> {error, ?EXIT_DATA, unicode:characters_to_binary(file:format_error(Reason))}
    end.

from_file(Device, File, From, Options) ->
    {ok, Begin} = file:position(Device, cur),
    Import = #{device => Device, options => Options, size => max(0, filelib:file_size(File) - Begin),
               %% how often each is pending that is to be left out
               pending => case Options of
                              #{skip_pending := true} -> ets:new(pending, [set, private]);
                              _ -> none
                          end,
               %% of which exchanges that is known
               known => #{}, unroutable => 0, progress => rabbit_delay_progress:new(0, Options)},
    #{progress := Progress} = Import,
    Result = chunks(From, 0, 0, 0, Import),
    ok = rabbit_delay_progress:ended(Progress),
    Result.

%% First: the number of the first line that is not in yet.
chunks(First, Count, Skipped, Bytes,
       #{device := Device, options := Options, unroutable := Unroutable} = Import0) ->
    case lines(Device, ?LINES, ?BYTES, []) of
        {ok, []} ->
            {ok, iolist_to_binary([rabbit_delay_text:count(Count, "message"), " imported",
                                   [[", ", rabbit_delay_text:count(Skipped, "message"), " left out as pending"]
                                    || is_map_key(skip_pending, Options)],
                                   [[", of which ", integer_to_binary(Unroutable), " due already and "
                                     "unroutable: no queue is bound for them"] || Unroutable > 0]])};
        {ok, Lines} ->
            case chunk(Lines, Import0) of
                {ok, New, Import} ->
                    Read = Bytes + iolist_size(Lines),
                    chunks(First + length(Lines), Count + New, Skipped + length(Lines) - New, Read,
                           shown(Count + Skipped + length(Lines), Read, Import));
                {error, {line, N, Why}} ->
                    malformed(First + N - 1, First, Count, Why);
                {error, {unavailable, Why}} ->
                    stopped(?EXIT_UNAVAILABLE, First, Count, Why);
                {error, {_, Why}} ->
                    stopped(?EXIT_DATA, First, Count, Why);
                {error, Why} ->
                    stopped(?EXIT_DATA, First, Count, Why);
                {badrpc, _} = Failure ->
                    stopped(?EXIT_UNAVAILABLE, First, Count, rabbit_delay_cli:went_away(Failure))
            end;
        {error, Reason} ->
            stopped(?EXIT_DATA, First, Count, file:format_error(Reason))
    end.

%% As many lines as there would be if the rest were as long as those so far.
shown(Lines, Read, #{progress := Progress, size := Size} = Import) ->
    Total = max(Lines, Lines * Size div max(1, Read)),
    Import#{progress := rabbit_delay_progress:step(Lines, rabbit_delay_progress:total(Total, Progress))}.

chunk(Lines, Import0) ->
    case left(Lines, Import0) of
        {ok, [], Import} ->
            {ok, 0, Import};
        {ok, Left, #{options := #{vhost := VHost} = Options} = Import} ->
            case transfer(import, [VHost, Left, maps:get(exchange, Options, undefined)], Import) of
                {ok, N} -> {ok, length(Left), Import#{unroutable := maps:get(unroutable, Import) + N}};
                Failure -> Failure
            end;
        Failure ->
            Failure
    end.

%% Those that are not pending already. What is there twice in the file and once pending is imported once.
left(Lines, #{pending := none} = Import) ->
    {ok, Lines, Import};
left(Lines, #{options := Options, pending := Pending} = Import0) ->
    case transfer(marks, [Lines, maps:get(exchange, Options, undefined)], Import0) of
        {ok, Marks} ->
            case known(lists:usort([Exchange || {Exchange, _} <- Marks]), Import0) of
                {ok, Import} ->
                    {ok, [Line || {Line, {_, Mark}} <- lists:zip(Lines, Marks),
                                  not is_pending(Mark, Pending)], Import};
                Failure ->
                    Failure
            end;
        Failure ->
            Failure
    end.

is_pending(Mark, Pending) ->
    case ets:lookup(Pending, Mark) of
        [{_, N}] when N > 0 -> ets:insert(Pending, {Mark, N - 1});
        _ -> false
    end.

known([], Import) ->
    {ok, Import};
known([Exchange | Rest], #{known := Known} = Import) when is_map_key(Exchange, Known) ->
    known(Rest, Import);
known([Exchange | Rest], #{known := Known} = Import) ->
    case learn(Exchange, Import) of
        {ok, _} -> known(Rest, Import#{known := Known#{Exchange => []}});
        {stopped, Failure, _} -> Failure
    end.

learn(Exchange, #{options := #{vhost := VHost}, pending := Pending} = Import) ->
    rabbit_delay_cli:fold_pending(
      fun (Cursor) -> transfer(places, [VHost, Exchange, Cursor], Import) end, {0, 0}, ?LINES,
      fun (Ids, Acc) ->
              case transfer(pending_marks, [VHost, Exchange, Ids], Import) of
                  {ok, Marks, Seen} ->
                      lists:foreach(fun (Mark) -> ets:update_counter(Pending, Mark, 1, {Mark, 0}) end,
                                    Marks),
                      {ok, Seen, Acc};
                  Failure ->
                      Failure
              end
      end, learnt).

transfer(Function, Args, #{options := #{node := Node, timeout := Timeout}}) ->
    rpc:call(Node, rabbit_delay_transfer, Function, Args, Timeout).

%% Nothing of a chunk that has such a line was published.
malformed(Line, First, Count, Why) ->
    {error, ?EXIT_DATA,
     unicode:characters_to_binary(
       ["line ", integer_to_list(Line), ": ", Why,
        io_lib:format("~n~s imported, none from line ~b on. Mend the line and go on with --from-line ~b.",
                      [rabbit_delay_text:count(Count, "message"), First, First])])}.

stopped(Code, First, Count, Why) ->
    {error, Code,
     unicode:characters_to_binary(
       [Why, io_lib:format("~n~s imported. Go on with --from-line ~b; of the ~b lines from there on some "
                           "may be in already: --skip-pending leaves these out.",
                           [rabbit_delay_text:count(Count, "message"), First, ?LINES])])}.

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
output({report, Report, Why}, _) ->
    ok = io:put_chars(standard_io, [Report, $\n]),
    case Why of
        none -> {ok, nil};
        _ -> {error, ?EXIT_LEFT, Why}
    end;
output(Result, _) ->
    ?DEFAULT_OUTPUT:output(Result).
