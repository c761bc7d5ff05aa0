%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl resume_delayed_exchange: what is due is released again.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_pending in the broker.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ResumeDelayedExchangeCommand').

-include("rabbit_delay_command.hrl").

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer} | rabbit_delay_cli:several_switches()].

-spec usage() -> binary().
usage() ->
    <<"resume_delayed_exchange [--vhost <vhost>] (<exchange> | "
      "--pattern <regexp> | --all-exchanges)">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>] | rabbit_delay_cli:several_usage()].

-spec description() -> binary().
description() -> <<"Ends the pause of a delayed exchange: what is overdue is released">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner(Args, Options) -> rabbit_delay_cli:banner(<<"Resuming">>, Args, Options).

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate(Args, Options) -> rabbit_delay_cli:check_exchange(Args, Options).

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run(Args, Options) -> rabbit_delay_cli:switch(resume, Args, Options).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
