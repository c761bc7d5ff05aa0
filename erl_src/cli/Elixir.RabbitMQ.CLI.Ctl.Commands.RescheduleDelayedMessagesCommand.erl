%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl reschedule_delayed_messages: gives pending messages another due time.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_pending in the broker, step by step; each message
%% that was pending when it began is moved once.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.RescheduleDelayedMessagesCommand').

-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {all, boolean}, {to, string}, {by, string}, {cursor, string}
               | rabbit_delay_cli:several_switches() ++ rabbit_delay_cli:selecting_switches()].

-spec usage() -> binary().
usage() ->
    <<"reschedule_delayed_messages [--vhost <vhost>] (<exchange> | "
      "--pattern <regexp> | --all-exchanges) (--to <time> | --by <offset>) "
      "(<id> ... | --all | [--due-from <time>] [--due-to <time>] [--key <key>] "
      "[--routing-key <key>] [--published-to <exchange>] [--header <name>=<value>]) [--dry-run]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    rabbit_delay_cli:selecting_usage() ++ rabbit_delay_cli:several_usage() ++
        [[<<"<id>">>, <<"of a message, as list_delayed_messages shows it">>],
         [<<"--all">>, <<"every pending message">>],
         [<<"--to <time>">>, <<"the new due time, written as for --due-from">>],
         [<<"--by <offset>">>, <<"how much later (90m) or earlier (-90m): ms, s, m, h, d, w">>],
         [<<"--cursor <cursor>">>, <<"go on where one that was ended says so">>],
         [<<"--dry-run">>, <<"only counts the messages that are meant">>]].

-spec description() -> binary().
description() -> <<"Gives pending delayed messages another due time">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli:banner(<<"Rescheduling messages of">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, Options) ->
    case operation(Options) of
        {ok, _} -> rabbit_delay_cli:check_selection(Args, Options, true);
        {error, Why} -> {validation_failure, {bad_argument, Why}}
    end.

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) ->
    {ok, Operation} = operation(Options),
    rabbit_delay_cli:change(Operation, Args, Options).

operation(#{to := _, by := _}) ->
    {error, <<"either --to or --by">>};
operation(#{to := Word}) ->
    case rabbit_delay_filter:time(Word, erlang:system_time(millisecond)) of
        {ok, Time} -> {ok, {reschedule_to, Time}};
        Error -> Error
    end;
operation(#{by := Word}) ->
    case rabbit_delay_filter:offset(Word) of
        {ok, Offset} -> {ok, {reschedule_by, Offset}};
        Error -> Error
    end;
operation(_) ->
    {error, <<"to when? Give --to or --by">>}.

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output({ok, Text}, Options) when is_binary(Text) -> ?DEFAULT_OUTPUT:output(Text, Options);
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
