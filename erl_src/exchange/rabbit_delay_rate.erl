%% SPDX-License-Identifier: MPL-2.0

%% How many messages an exchange may release now, by the rate that its settings give. Data only, of
%% the dispatcher's process; who calls tells the time (ms, monotonic).
%%
%% What the rate allows in 100 ms may come at once, and one message always: so nothing is saved up
%% while nothing is due, and no rate is too low to be met.
-module(rabbit_delay_rate).

-export([new/1, set/2, allowed/3, spend/2, wait_ms/1]).

-export_type([rate/0, per_second/0]).

-type ms() :: integer().
-type per_second() :: pos_integer() | infinity.

-define(AT_ONCE_MS, 100).

-record(rate, {per_second = infinity :: per_second(),
               %% how many were allowed at that time
               allowance = 0.0 :: float(),
               at :: ms()}).

-opaque rate() :: #rate{}.

%% No limit.
-spec new(ms()) -> rate().
new(Now) -> #rate{at = Now}.

-spec set(per_second(), rate()) -> rate().
set(PerSecond, #rate{per_second = PerSecond} = R) -> R;
set(PerSecond, R) -> R#rate{per_second = PerSecond}.

%% How many are allowed now, Unlimited if there is no limit.
-spec allowed(ms(), Unlimited :: pos_integer(), rate()) -> {integer(), rate()}.
allowed(_, Unlimited, #rate{per_second = infinity} = R) ->
    {Unlimited, R};
allowed(Now, _, #rate{per_second = PerSecond, allowance = Allowance0, at = At} = R) ->
    Most = max(1.0, PerSecond * ?AT_ONCE_MS / 1000),
    Allowance = min(Most, Allowance0 + PerSecond * (Now - At) / 1000),
    {trunc(Allowance), R#rate{allowance = Allowance, at = Now}}.

%% So many have been released.
-spec spend(non_neg_integer(), rate()) -> rate().
spend(_, #rate{per_second = infinity} = R) -> R;
spend(N, #rate{allowance = Allowance} = R) -> R#rate{allowance = Allowance - N}.

%% How long after that it is until one is allowed.
-spec wait_ms(rate()) -> integer().
wait_ms(#rate{per_second = PerSecond, allowance = Allowance}) when is_integer(PerSecond) ->
    ceil((1.0 - Allowance) * 1000 / PerSecond).
