%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl pause_delayed_exchange: what comes due is held back.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_pending in the broker; when it has succeeded the
%% exchange is paused, over restarts as well.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.PauseDelayedExchangeCommand').

-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer} | rabbit_delay_cli:several_switches()].

-spec usage() -> binary().
usage() ->
    <<"pause_delayed_exchange [--vhost <vhost>] (<exchange> | "
      "--pattern <regexp> | --all-exchanges)">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>] | rabbit_delay_cli:several_usage()].

-spec description() -> binary().
description() -> <<"Holds back the messages of a delayed exchange that come due, until it is resumed">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli:banner(<<"Pausing">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, Options) -> rabbit_delay_cli:check_exchange(Args, Options).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli:switch(pause, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
