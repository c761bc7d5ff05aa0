%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl list_exchanges with one more column, messages_delayed. The broker's own command has a
%% fixed list of columns; this one takes its place while the plugin is enabled, and leaves everything
%% else to it.
-module('Elixir.RabbitMQ.CLI.DelayedMessage.Commands.ListExchangesCommand').

-behaviour('Elixir.RabbitMQ.CLI.CommandBehaviour').

-export([scopes/0, switches/0, aliases/0, usage/0, usage_additional/0, help_section/0,
         description/0, formatter/0, banner/2, merge_defaults/2, validate/2,
         validate_execution_environment/2, run/2, output/2]).

-define(STOCK, 'Elixir.RabbitMQ.CLI.Ctl.Commands.ListExchangesCommand').
-define(INFO_KEYS, 'Elixir.RabbitMQ.CLI.Ctl.InfoKeys').

-type options() :: #{atom() => term()}.

-spec scopes() -> [atom()].
scopes() -> [ctl, diagnostics].

-spec switches() -> list().
switches() -> ?STOCK:switches().

-spec aliases() -> list().
aliases() -> ?STOCK:aliases().

-spec usage() -> binary().
usage() -> ?STOCK:usage().

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    Names = lists:sort([atom_to_binary(Key, utf8) || Key <- info_keys()]),
    [[<<"<column>">>, iolist_to_binary(["must be one of ", lists:join(", ", Names)])]].

-spec help_section() -> term().
help_section() -> ?STOCK:help_section().

-spec description() -> binary().
description() -> ?STOCK:description().

-spec formatter() -> module().
formatter() -> ?STOCK:formatter().

-spec banner([binary()], options()) -> binary().
banner(Args, Options) -> ?STOCK:banner(Args, Options).

-spec merge_defaults([binary()], options()) -> {[binary()], options()}.
merge_defaults(Args, Options) -> ?STOCK:merge_defaults(Args, Options).

-spec validate([binary()], options()) -> ok | {validation_failure, term()}.
validate(Args, _Options) ->
    case ?INFO_KEYS:validate_info_keys(Args, info_keys()) of
        {ok, _} -> ok;
        Failure -> Failure
    end.

-spec validate_execution_environment([binary()], options()) -> ok | {validation_failure, term()}.
validate_execution_environment(Args, Options) ->
    ?STOCK:validate_execution_environment(Args, Options).

-spec run([binary()], options()) -> term().
run(Args, #{node := Node, vhost := VHost, timeout := Timeout} = Options) ->
    Keys = ?INFO_KEYS:prepare_info_keys(Args),
    case lists:member(messages_delayed, Keys) of
        true -> rpc:call(Node, rabbit_delay_exchange, list, [VHost, Keys], Timeout);
        false -> ?STOCK:run(Args, Options)
    end.

-spec output(term(), options()) -> term().
output(Result, Options) -> ?STOCK:output(Result, Options).

info_keys() -> ?STOCK:info_keys() ++ [messages_delayed].
