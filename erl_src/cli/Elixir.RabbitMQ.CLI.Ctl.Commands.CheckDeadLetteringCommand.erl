%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl check_dead_lettering: the traps in how a broker, or a definitions file of any broker,
%% dead-letters. Exit code 0, or 1 where something as severe as --fail-on was found; 65 for a file that
%% cannot be read. The report goes to the standard output in either case.
%%
%% It runs in rabbitmqctl: the rules (rabbit_delay_doctor) in the broker for a running one, in the tool
%% itself for a file. Nothing is changed.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.CheckDeadLetteringCommand').

-export([distribution/1]).

-define(SCOPES, [ctl, diagnostics]).
-define(BROKER_UNUSED, #{definitions := _}).
-include("rabbit_delay_command.hrl").

-define(EXIT_FOUND, 1).
-define(EXIT_DATA, 65).

-type options() :: #{atom() => term()}.

-spec switches() -> [{atom(), atom()}].
switches() ->
    [{timeout, integer}, {definitions, string}, {accept, string}, {fail_on, string},
     {all_vhosts, boolean}].

-spec usage() -> binary().
usage() ->
    <<"check_dead_lettering [--vhost <vhost> | --all-vhosts] [--definitions <file>] "
      "[--accept <file>] [--fail-on <error|warning|info|never>] [--formatter json]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"--vhost">>, <<"of which vhost; default: /, or with --definitions all">>],
     [<<"--definitions">>, <<"check this definitions file (JSON, of any broker); needs no broker">>],
     [<<"--accept">>, <<"findings in this file (JSON) do not count">>],
     [<<"--fail-on">>, <<"exit code 1 where something as severe is found; default: error">>],
     [<<"--formatter">>, <<"json: the findings as one JSON object">>]].

-spec description() -> binary().
description() -> <<"Finds traps in dead-lettering and TTLs: what loses messages or blocks them">>.

-spec banner([binary()], options()) -> binary().
banner(_, #{definitions := File}) -> <<"Checking dead-lettering in ", File/binary, " ...">>;
banner(_, _) -> <<"Checking dead-lettering ...">>.

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) -> {Args, maps:merge(#{fail_on => <<"error">>}, Options)}.

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate([_ | _], _) ->
    {validation_failure, too_many_args};
validate([], #{fail_on := FailOn}) ->
    case threshold(FailOn) of
        unknown -> {validation_failure,
                    {bad_argument, <<"--fail-on is none of error, warning, info and never">>}};
        _ -> ok
    end.

%% A file is checked without a broker.
-spec distribution(options()) -> none | cli.
distribution(#{definitions := _}) -> none;
distribution(_) -> cli.

-spec run([binary()], options()) -> {ok, [rabbit_delay_doctor:finding()]} | {error, term()} |
          {error, integer(), binary()} | {badrpc, term()}.
run([], #{accept := File} = Options) ->
    case rabbit_delay_doctor_accepted:of_file(File) of
        {ok, Accepted} ->
            case run([], maps:remove(accept, Options)) of
                {ok, Findings} ->
                    Meant = [{maps:get(vhost, A, <<>>), A} || A <- Accepted, is_looked_at(A, Options)],
                    {ok, rabbit_delay_doctor_accepted:mark(Findings, Accepted)
                         ++ rabbit_delay_doctor_accepted:unused(Findings, Meant)};
                Failed -> Failed
            end;
        {error, Why} ->
            {error, ?EXIT_DATA, unicode:characters_to_binary(Why)}
    end;
run([], #{definitions := File} = Options) ->
    case rabbit_delay_topology:of_file(File, maps:get(vhost, Options, <<"/">>)) of
        {ok, Topology} ->
            findings_in_file(Topology, Options);
        {error, Why} ->
            {error, ?EXIT_DATA, unicode:characters_to_binary(Why)}
    end;
run([], #{node := Node, timeout := Timeout} = Options) ->
    VHosts = case Options of
                 #{all_vhosts := true} -> all;
                 _ -> [maps:get(vhost, Options, <<"/">>)]
             end,
    case rpc:call(Node, rabbit_delay_doctor, live, [VHosts], Timeout) of
        {badrpc, _} = Failed -> rabbit_delay_cli:unanswered(Failed);
        Result -> Result
    end.

%% Whether all that a file's entry can be for is looked at: it may be for other vhosts, too.
is_looked_at(_, #{all_vhosts := true}) -> true;
is_looked_at(#{vhost := VHost}, #{vhost := VHost}) -> true;
is_looked_at(_, #{vhost := _}) -> false;
is_looked_at(_, #{definitions := _}) -> true;
is_looked_at(Accepted, _) -> maps:get(vhost, Accepted, none) =:= <<"/">>.

findings_in_file(#{vhosts := VHosts} = Topology, #{vhost := VHost}) ->
    case VHosts of
        #{VHost := Objects} ->
            {ok, rabbit_delay_doctor:check(Topology#{vhosts := #{VHost => Objects}})};
        _ ->
            {error, {no_such_vhost, VHost}}
    end;
findings_in_file(Topology, _) ->
    {ok, rabbit_delay_doctor:check(Topology)}.

-spec output(term(), options()) -> term().
output({ok, Findings}, #{fail_on := FailOn} = Options) ->
    Report = case Options of
                 #{formatter := <<"json">>} -> <<(rabbit_delay_doctor_report:json(Findings))/binary, $\n>>;
                 _ -> rabbit_delay_doctor_report:text(Findings)
             end,
    ok = io:put_chars(standard_io, Report),
    case rabbit_delay_doctor_report:worst(Findings) >= threshold(FailOn) of
        true -> {error, ?EXIT_FOUND, rabbit_delay_doctor_report:summary(Findings)};
        false -> {ok, nil}
    end;
output(Failure, _) ->
    Failure.

threshold(<<"never">>) -> infinity;
threshold(<<"error">>) -> rabbit_delay_doctor:severity_rank(error);
threshold(<<"warning">>) -> rabbit_delay_doctor:severity_rank(warning);
threshold(<<"info">>) -> rabbit_delay_doctor:severity_rank(info);
threshold(_) -> unknown.
