%% SPDX-License-Identifier: MPL-2.0

%% The two processes of one delayed exchange.
-module(rabbit_delay_exchange_sup).

-behaviour(supervisor).

-export([start_link/2, stop_children/1]).
-export([init/1]).

-spec start_link(rabbit_exchange:name(), Durable :: boolean()) -> {ok, pid()} | {error, term()}.
start_link(XName, Durable) ->
    supervisor:start_link(?MODULE, {XName, Durable}).

%% Ends the processes, for good.
-spec stop_children(pid()) -> ok.
stop_children(Pid) ->
    try
        lists:foreach(fun (Id) -> supervisor:terminate_child(Pid, Id) end,
                      [rabbit_delay_queue, rabbit_delay_dispatcher])
    catch
        exit:_ -> ok
    end.

-spec init({rabbit_exchange:name(), boolean()}) ->
          {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init({XName, Durable}) ->
    {ok, {#{strategy => one_for_one, intensity => 20, period => 10},
          [#{id => rabbit_delay_dispatcher,
             start => {rabbit_delay_dispatcher, start_link, [XName]},
             shutdown => 10000},
           #{id => rabbit_delay_queue,
             start => {rabbit_delay_queue, start_link, [XName, Durable]},
             shutdown => 10000}]}}.
