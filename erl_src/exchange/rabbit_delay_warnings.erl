%% SPDX-License-Identifier: MPL-2.0

%% Warnings that may come of each message of many: one of a kind goes to the log in ten seconds, and
%% says how many did not since the one before. Kept by the process that warns.
-module(rabbit_delay_warnings).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([new/0, warn/3, counted/3]).

-export_type([warnings/0, warning/0]).

-define(WARN_MS, 10000).

-type warning() :: {Kind :: atom(), Format :: string(), Args :: [term()]}.

%% Until when those of a kind are counted only, monotonic ms, and how many were.
-opaque warnings() :: #{atom() => {Until :: integer(), non_neg_integer()}}.

-spec new() -> warnings().
new() -> #{}.

-spec warn(warning(), Now :: integer(), warnings()) -> warnings().
warn({Kind, Format, Args}, Now, Ws0) ->
    case counted(Kind, Now, Ws0) of
        {say, Unsaid, Ws} ->
            ?LOG_WARNING(Format ++ " (~b more since the last such warning)", Args ++ [Unsaid],
                         ?LOG_DOMAIN),
            Ws;
        {say_nothing, Ws} ->
            Ws
    end.

%% Whether there is to be one of this kind, and how many there were not.
-spec counted(Kind :: atom(), Now :: integer(), warnings()) ->
          {say, Unsaid :: non_neg_integer(), warnings()} | {say_nothing, warnings()}.
counted(Kind, Now, Ws) ->
    case Ws of
        #{Kind := {Until, N}} when Now < Until ->
            {say_nothing, Ws#{Kind := {Until, N + 1}}};
        _ ->
            {_, Unsaid} = maps:get(Kind, Ws, {Now, 0}),
            {say, Unsaid, Ws#{Kind => {Now + ?WARN_MS, 0}}}
    end.
