%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl list_delayed_exchanges: what each delayed exchange of a vhost holds. (The columns of
%% list_exchanges are fixed in the broker's command-line tool, and its commands go before a plugin's.)
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_exchange in the broker, and changes nothing.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ListDelayedExchangesCommand').

-export([formatter/0]).

-define(SCOPES, [ctl, diagnostics]).
-include("rabbit_delay_command.hrl").

-define(INFO_KEYS, 'Elixir.RabbitMQ.CLI.Ctl.InfoKeys').
-define(STREAM, 'Elixir.Stream').

-define(COLUMNS, [{name, "the exchange"},
                  {type, "the type by which it routes"},
                  {messages_delayed, "how many messages wait"},
                  {bytes_delayed, "their size as stored"},
                  {next_due, "when the next is due (ms since the epoch for programs); empty if none"},
                  {overdue, "how many should have been released, and are not in flight"},
                  {in_flight, "released, not yet confirmed by their queues"},
                  {waiting, "due, waiting for queues that do not take them for now"},
                  {stuck_queues, "how many queues those are"},
                  {publish_rate, "messages taken a second"},
                  {release_rate, "messages released a second"},
                  {released, "taken by their queues since the node started"},
                  {cancelled, "cancelled since then, by keys or by operators"},
                  {unroutable, "due since then, and no queue was bound for them"},
                  {dead_lettered, "sent to delay-dead-letter-exchange since then"},
                  {expired, "dropped since then as overdue (delay-overdue)"},
                  {overflowed, "dropped since then by drop-latest-due"},
                  {dropped, "since then neither taken nor kept, of those whose sender awaits no confirm"},
                  {unreadable, "whose record cannot be read now; tried again"},
                  {paused, "whether releasing is held back (pause_delayed_exchange)"},
                  {leader, "the node that leads its members; empty if none does"},
                  {members, "the nodes that hold its messages"},
                  {group_size, "how many nodes of a cluster are to"}]).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {watch, string}].

-spec usage() -> binary().
usage() ->
    <<"list_delayed_exchanges [--vhost <vhost>] [--no-table-headers] [--watch <pause>] "
      "[<column> ...]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"--watch <pause>">>, <<"again and again, until it is ended, with a pause (2s) and the time, "
                               "column at">>]
     | [[atom_to_binary(Column, utf8), list_to_binary(Meaning)] || {Column, Meaning} <- ?COLUMNS]].

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
validate(Args, Options) ->
    case pause(Options) of
        {ok, _} -> columns(Args);
        error -> {validation_failure, {bad_argument, <<"--watch is a span of time from 100ms to 1d">>}}
    end.

pause(#{watch := Word}) ->
    case rabbit_delay_notation:interval(Word) of
        {ok, Ms} when Ms >= 100, Ms =< 86400000 -> {ok, Ms};
        _ -> error
    end;
pause(_) ->
    {ok, none}.

columns(Args) ->
    case ?INFO_KEYS:validate_info_keys(Args, [Column || {Column, _} <- ?COLUMNS]) of
        {ok, _} -> ok;
        Failure -> Failure
    end.

-spec run([binary()], options()) -> term().
run(Args, #{watch := _} = Options) ->
    {ok, Pause} = pause(Options),
    case rows(Args, Options) of
        Rows when is_list(Rows) ->
            {stream, ?STREAM:resource(fun () -> Rows end,
                                      fun (Next) -> watched(Next, Pause, Args, Options) end,
                                      fun (_) -> ok end)};
        Failure ->
            Failure
    end;
run(Args, Options) ->
    rows(Args, Options).

watched(ended, _, _, _) ->
    {halt, ended};
watched(wait, Pause, Args, Options) ->
    receive after Pause -> watched(rows(Args, Options), Pause, Args, Options) end;
watched(Rows, _, _, Options) when is_list(Rows) ->
    At = maps:get(due, rabbit_delay_cli:times(#{due => erlang:system_time(millisecond)}, Options)),
    {[[{at, clock(At)} | Row] || Row <- Rows], wait};
watched({error, _, Why}, _, _, _) ->
    {[{error, Why}], ended};
watched({error, {no_such_vhost, VHost}}, _, _, _) ->
    {[{error, <<"there is no vhost '", VHost/binary, "' any more">>}], ended};
watched({error, Failure}, _, _, _) ->
    {[{error, rabbit_delay_cli:went_away(Failure)}], ended}.

%% Without how far off it is.
clock(<<Shown:19/binary, _/binary>>) -> Shown;
clock(Ms) -> Ms.

rows(Args, #{node := Node, vhost := VHost, timeout := Timeout} = Options) ->
    case rpc:call(Node, rabbit_delay_exchange, list, [VHost, ?INFO_KEYS:prepare_info_keys(Args)],
                  Timeout) of
        [] ->
            %% Nothing in a vhost is not the same as none of that name.
            case rpc:call(Node, rabbit_vhost, exists, [VHost], Timeout) of
                false -> {error, {no_such_vhost, VHost}};
                _ -> []
            end;
        Rows when is_list(Rows) -> [times(Row, Options) || Row <- Rows];
        Failure -> rabbit_delay_cli:unanswered(Failure)
    end.

times(Row, Options) ->
    Shown = rabbit_delay_cli:times(maps:from_list(Row), Options),
    [{Column, maps:get(Column, Shown)} || {Column, _} <- Row].

-spec output(term(), options()) -> term().
output(Result, _Options) -> ?DEFAULT_OUTPUT:output(Result).
