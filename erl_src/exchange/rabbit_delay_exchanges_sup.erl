%% SPDX-License-Identifier: MPL-2.0

%% One child per exchange that delays. A child that gives up is not restarted here but, after a
%% pause, by rabbit_delay_registry.
-module(rabbit_delay_exchanges_sup).

-behaviour(supervisor).

-export([start_link/0, start_exchange/2, stop_exchange/1]).
-export([init/1]).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec start_exchange(rabbit_exchange:name(), Durable :: boolean()) ->
          {ok, pid()} | {error, term()}.
start_exchange(XName, Durable) ->
    supervisor:start_child(?MODULE, [XName, Durable]).

%% Its processes may take their time to end: their own supervisor waits for them, not this one, by
%% which others are started.
-spec stop_exchange(pid()) -> ok.
stop_exchange(Pid) ->
    ok = rabbit_delay_exchange_sup:stop_children(Pid),
    _ = supervisor:terminate_child(?MODULE, Pid),
    ok.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    {ok, {#{strategy => simple_one_for_one},
          [#{id => undefined,
             type => supervisor,
             restart => temporary,
             start => {rabbit_delay_exchange_sup, start_link, []}}]}}.
