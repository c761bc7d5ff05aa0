%% SPDX-License-Identifier: MPL-2.0

%% The plugin's processes, and how they are started and stopped with the broker or with the plugin.
%%
%%   rabbit_delay_sup
%%     rabbit_delay_topic          topic bindings, where the broker does not index them
%%     rabbit_delay_system         the Ra system, kept alive
%%     rabbit_delay_exchanges_sup  one rabbit_delay_exchange_sup per exchange that delays:
%%       rabbit_delay_queue          takes messages in
%%       rabbit_delay_dispatcher     lets them out
%%     rabbit_delay_registry       starts, heals and ends the above
%%
%% The broker's own supervisor would take the broker down if this one gave up, so it must not:
%% whatever can fail again and again (a full disk, a store that cannot be opened) is retried with
%% pauses by rabbit_delay_system and rabbit_delay_registry, which themselves do nothing that fails.
-module(rabbit_delay_sup).

-behaviour(supervisor).

-export([boot/0, recover/0, stop/0, start_link/0, is_for_this_broker/0]).
-export([init/1]).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-rabbit_boot_step(
   {rabbit_delay_sup,
    [{description, "delayed messages: processes"},
     {mfa,         {?MODULE, boot, []}},
     {cleanup,     {?MODULE, stop, []}},
     {requires,    core_initialized},
     {enables,     recovery}]}).

-rabbit_boot_step(
   {rabbit_delay_recovery,
    [{description, "delayed messages: recovery"},
     {mfa,         {?MODULE, recover, []}},
     {requires,    [recovery, rabbit_delay_sup, rabbit_delay_exchange]},
     {enables,     routing_ready}]}).

-spec boot() -> ok.
boot() ->
    case is_for_this_broker() of
        true ->
            rabbit_sup:start_supervisor_child(?MODULE);
        false ->
            ?LOG_ERROR("this build of rabbitmq_delay_wheel is for RabbitMQ ~s and does not take part",
                       [rabbit_delay_broker:series()], ?LOG_DOMAIN)
    end.

%% RabbitMQ 3.10 runs the boot steps even of a plugin that it has refused for its version.
-spec is_for_this_broker() -> boolean().
is_for_this_broker() ->
    {ok, Version} = application:get_key(rabbit, vsn),
    lists:prefix(rabbit_delay_broker:series() ++ ".", Version).

%% The exchanges are known now; what they hold is opened in the background.
-spec recover() -> ok.
recover() ->
    case is_for_this_broker() andalso rabbit_delay_exchange:is_registered() of
        true -> rabbit_delay_registry:recover();
        false -> ok
    end.

-spec stop() -> ok.
stop() ->
    ok = rabbit_delay_prometheus:unregister(),
    ok = rabbit_delay_registry:withdraw(),
    rabbit_sup:stop_child(?MODULE).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = rabbit_delay_registry:create_table(),
    ok = rabbit_delay_system:create_table(),
    ok = rabbit_delay_waiting:put_aside_files(),
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10},
          [#{id => rabbit_delay_topic,
             start => {rabbit_delay_topic, start_link, []}},
           #{id => rabbit_delay_budget,
             start => {rabbit_delay_budget, start_link, []}},
           #{id => rabbit_delay_system,
             start => {rabbit_delay_system, start_link, []},
             shutdown => 60000},
           #{id => rabbit_delay_exchanges_sup,
             type => supervisor,
             start => {rabbit_delay_exchanges_sup, start_link, []}},
           #{id => rabbit_delay_registry,
             start => {rabbit_delay_registry, start_link, []}}]}}.
