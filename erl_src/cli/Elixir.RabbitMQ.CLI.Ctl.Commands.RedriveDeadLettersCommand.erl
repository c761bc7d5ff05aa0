%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl redrive_dead_letters: moves dead letters back to work, with what it moves, where to, how
%% many and how fast. Exit code 0, or 1 where some that were meant to move did not.
%%
%% It runs in rabbitmqctl, with a process of rabbit_delay_redrive in the broker that ends with it.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.RedriveDeadLettersCommand').

-define(ALIASES, []).
-include("rabbit_delay_command.hrl").

-define(EXIT_LEFT, 1).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() ->
    [{to_queue, string}, {to_exchange, string}, {routing_key, string},
     {to_original_exchange, boolean}, {reason, string}, {origin, string}, {header, string},
     {older_than, string}, {newer_than, string}, {limit, integer}, {rate, integer},
     {keep_x_death, boolean}].

-spec usage() -> binary().
usage() ->
    <<"redrive_dead_letters [--vhost <vhost>] [--to-queue <queue> | --to-exchange <exchange> "
      "[--routing-key <key>] | --to-original-exchange] [--reason <reason>] [--origin <queue>] "
      "[--header <name>=<value>] [--older-than <age>] [--newer-than <age>] [--limit <n>] [--rate <n>] "
      "[--keep-x-death] [--dry-run] [--formatter json] <queue>">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"(no target)">>, <<"each message goes to the queue in which it died last">>],
     [<<"--to-queue">>, <<"to this queue">>],
     [<<"--to-exchange">>, <<"to this exchange, with --routing-key or the first key it had">>],
     [<<"--to-original-exchange">>, <<"to the exchange that it was published to, with its key">>],
     [<<"--reason">>, <<"only those that died last for it: rejected, expired, maxlen or "
                        "delivery_limit">>],
     [<<"--origin">>, <<"only those that died last in this queue">>],
     [<<"--header">>, <<"only those with this header">>],
     [<<"--older-than, --newer-than">>, <<"only those that died last longer, or no longer, than this "
                                          "ago: 90s, 10m, 2h, 3d (a plain number: seconds)">>],
     [<<"--limit">>, <<"move no more than so many">>],
     [<<"--rate">>, <<"move no more than so many a second">>],
     [<<"--keep-x-death">>, <<"leave the history in the message; otherwise it is taken off">>],
     [<<"--dry-run">>, <<"only say what would be moved where">>]].

-spec description() -> binary().
description() -> <<"Moves dead letters back to the queue they died in, or elsewhere">>.

-spec banner([binary()], options()) -> binary().
banner([Queue], #{vhost := VHost, preview := Preview}) ->
    <<(case Preview of true -> <<"Looking at">>; false -> <<"Redriving">> end)/binary,
      " dead letters of queue ", Queue/binary, " in vhost ", VHost/binary, " ...">>.

%% rabbitmqctl itself would do nothing with --dry-run.
-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) ->
    Preview = maps:get(dry_run, Options, false),
    {Args, maps:merge(#{vhost => <<"/">>, preview => Preview}, maps:remove(dry_run, Options))}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([_], Options) ->
    Targets = [Key || Key <- [to_queue, to_exchange, to_original_exchange], is_map_key(Key, Options)],
    Positive = [Key || Key <- [limit, rate], maps:get(Key, Options, 1) < 1],
    case Options of
        _ when length(Targets) > 1 ->
            bad(<<"more than one target is given">>);
        #{routing_key := _} when not is_map_key(to_exchange, Options) ->
            bad(<<"--routing-key goes with --to-exchange">>);
        _ when Positive =/= [] ->
            bad(<<"--limit and --rate must be at least 1">>);
        #{reason := Reason} ->
            case lists:member(Reason, rabbit_delay_deaths:reasons()) of
                true ->
                    ages(Options);
                false ->
                    bad(iolist_to_binary(["--reason is one of ",
                                          lists:join(", ", rabbit_delay_deaths:reasons()), ", not '",
                                          rabbit_delay_text:escaped(Reason), "'"]))
            end;
        _ ->
            ages(Options)
    end;
validate([], _) -> {validation_failure, not_enough_args};
validate(_, _) -> {validation_failure, too_many_args}.

ages(Options) ->
    case [Key || Key <- [older_than, newer_than], Age <- [maps:get(Key, Options, <<"0">>)],
                 rabbit_delay_notation:seconds(Age) =:= error] of
        [] -> header(Options);
        _ -> bad(<<"--older-than and --newer-than are spans of time such as 90s, 10m, 2h or 3d">>)
    end.

header(Options) ->
    case Options of
        #{header := Header} ->
            case binary:split(Header, <<"=">>) of
                [_, _] -> ok;
                _ -> bad(<<"--header is not of the form name=value">>)
            end;
        _ ->
            ok
    end.

bad(Why) -> {validation_failure, {bad_argument, Why}}.

-spec run([binary()], options()) -> {ok, rabbit_delay_redrive:result()} | {error, term()}.
run([Queue], #{node := Node} = Options) ->
    case rpc:call(Node, rabbit_delay_redrive, start, [request(Queue, Options), self()]) of
        {badrpc, _} = Failed ->
            rabbit_delay_cli:unanswered(Failed);
        Pid ->
            Shown = not (is_map_key(quiet, Options) orelse is_map_key(silent, Options)
                         orelse is_map_key(formatter, Options)),
            await(Pid, monitor(process, Pid), Shown, rabbit_delay_progress:new(0, Options))
    end.

request(Queue, #{vhost := VHost, preview := Preview} = Options) ->
    To = case Options of
             #{to_queue := Target} -> {queue, Target};
             #{to_exchange := X} -> {exchange, X, maps:get(routing_key, Options, undefined)};
             #{to_original_exchange := true} -> original_exchange;
             _ -> origin
         end,
    Ages = maps:map(fun (_, Age) -> {ok, Seconds} = rabbit_delay_notation:seconds(Age), Seconds end,
                    maps:with([older_than, newer_than], Options)),
    Filters0 = maps:merge(maps:with([reason, origin], Options), Ages),
    Filters = case Options of
                  #{header := Header} ->
                      [Name, Value] = binary:split(Header, <<"=">>),
                      Filters0#{header => {Name, Value}};
                  _ ->
                      Filters0
              end,
    maps:merge(#{vhost => VHost, queue => Queue, to => To, by => <<"rabbitmqctl">>,
                 limit => maps:get(limit, Options, infinity),
                 rate => maps:get(rate, Options, infinity), dry_run => Preview,
                 keep_x_death => maps:get(keep_x_death, Options, false)}, Filters).

await(Pid, Monitor, Shown, Progress0) ->
    receive
        {redrive, Pid, progress, #{total := Total, examined := Examined}} ->
            Progress = rabbit_delay_progress:step(Examined,
                                                  rabbit_delay_progress:total(Total, Progress0)),
            await(Pid, Monitor, Shown, Progress);
        {redrive, Pid, targets, Targets} ->
            _ = Shown andalso Targets =/= #{} andalso
                io:put_chars(standard_error,
                                           ["To be redriven:", targets(Targets), $\n]),
            await(Pid, Monitor, Shown, Progress0);
        {redrive, Pid, done, Result} ->
            ok = rabbit_delay_progress:ended(Progress0),
            case Result of
                {error, Failure} -> rabbit_delay_cli:failure(Failure);
                _ -> Result
            end;
        {'DOWN', Monitor, process, _, Reason} ->
            ok = rabbit_delay_progress:ended(Progress0),
            rabbit_delay_cli:failure(
              {unavailable, <<(rabbit_delay_cli:went_away({badrpc, Reason}))/binary, ". What was not moved "
                              "is in the queue still; what was just on its way may be in both.">>})
    end.

-spec output(term(), options()) -> term().
output({ok, Counts}, #{preview := Preview} = Options) ->
    Report = case Options of
                 #{formatter := <<"json">>} -> rabbit_json:encode(rabbit_delay_redrive:json(Counts));
                 _ -> text(Counts, Preview)
             end,
    ok = io:put_chars(standard_io, [Report, $\n]),
    case left(Counts) of
        [] -> {ok, nil};
        Left -> {error, ?EXIT_LEFT, unicode:characters_to_binary(lists:join("; ", Left))}
    end;
output(Failure, _) ->
    Failure.

text(#{redriven := Redriven, skipped := Skipped, examined := Examined, targets := Targets}, Preview) ->
    [io_lib:format("~b of ~b ~s, ~b not asked for",
                   [Redriven, Examined, case Preview of
                                            true -> "would be redriven";
                                            false -> "redriven"
                                        end, Skipped]),
     targets(Targets)].

targets(Targets) ->
    [["\n  to ", rabbit_delay_text:escaped(Target), ": ", integer_to_binary(N)]
     || {Target, N} <- lists:sort(maps:to_list(Targets))].

%% What was asked for and did not happen.
left(#{stopped := Stopped} = Counts) ->
    [[rabbit_delay_text:count(N, "message"), Text]
     || {Key, Text} <- [{no_target, " left: no x-death that names a target"},
                        {would_loop, " left: would come back at once"},
                        {unroutable, " left: the target is not there"},
                        {refused, " left: refused by the target"},
                        {unconfirmed, " published and not confirmed: left, and perhaps in both places"}],
        N <- [maps:get(Key, Counts)], N > 0]
        ++ [["ended early: ", Stopped] || Stopped =/= undefined].
