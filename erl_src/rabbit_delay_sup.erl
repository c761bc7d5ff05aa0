%% SPDX-License-Identifier: MPL-2.0

%% The plugin's processes, and how they are started and stopped with the broker or with the plugin.
%%
%%   rabbit_delay_sup
%%     rabbit_delay_topic          topic bindings, where the broker does not index them
%%     rabbit_delay_budget         what all who look at messages may use together
%%     rabbit_delay_redrive_jobs   redrives that go on when nobody waits for them
%%     rabbit_delay_system         the Ra system, kept alive
%%     rabbit_delay_conditions     what other nodes that lead say of themselves
%%     rabbit_delay_exchanges_sup  one rabbit_delay_exchange_sup per exchange that delays:
%%       rabbit_delay_queue          takes messages in
%%       rabbit_delay_dispatcher     lets them out
%%     rabbit_delay_registry       starts, heals and ends the above
%%     rabbit_delay_reconciler     has groups' members follow the cluster
%%
%% The broker's own supervisor would take the broker down if this one gave up, so it must not:
%% whatever can fail again and again (a full disk, a store that cannot be opened) is retried with
%% pauses by rabbit_delay_system and rabbit_delay_registry, which themselves do nothing that fails.
-module(rabbit_delay_sup).

-behaviour(supervisor).

-export([register_type/0, unregister_type/0, register_policies/0, unregister_policies/0,
         register_accepted/0, unregister_accepted/0]).
-export([boot/0, recover/0, stop/0, start_link/0]).
-export([init/1]).

%% All boot steps are here: in a broker that this archive is not for, other modules may not be loaded.
-rabbit_boot_step(
   {rabbit_delay_series,
    [{description, "delayed messages: the broker's series"},
     {mfa,         {rabbit_delay_series, look, []}},
     {requires,    rabbit_registry},
     {enables,     kernel_ready}]}).

-rabbit_boot_step(
   {rabbit_delay_exchange,
    [{description, "exchange type x-delayed-message"},
     {mfa,         {?MODULE, register_type, []}},
     {cleanup,     {?MODULE, unregister_type, []}},
     {requires,    [rabbit_registry, rabbit_delay_series]},
     {enables,     kernel_ready}]}).

-rabbit_boot_step(
   {rabbit_delay_policy,
    [{description, "policies of delayed exchanges"},
     {mfa,         {?MODULE, register_policies, []}},
     {cleanup,     {?MODULE, unregister_policies, []}},
     {requires,    [rabbit_registry, rabbit_delay_series]},
     {enables,     recovery}]}).

-rabbit_boot_step(
   {rabbit_delay_doctor_accepted,
    [{description, "accepted findings of check_dead_lettering"},
     {mfa,         {?MODULE, register_accepted, []}},
     {cleanup,     {?MODULE, unregister_accepted, []}},
     {requires,    [rabbit_registry, rabbit_delay_series]},
     {enables,     recovery}]}).

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

-spec register_type() -> ok.
register_type() ->
    case rabbit_delay_series:status() of
        ok -> rabbit_delay_exchange:register();
        {unable, _} -> rabbit_delay_no_part:register();
        {wrong, _} -> ok
    end.

-spec unregister_type() -> ok.
unregister_type() ->
    case rabbit_delay_series:status() of
        ok -> rabbit_delay_exchange:unregister();
        {unable, _} -> rabbit_delay_no_part:unregister();
        {wrong, _} -> ok
    end.

-spec register_policies() -> ok.
register_policies() -> unless_wrong(fun rabbit_delay_policy:register/0).

-spec unregister_policies() -> ok.
unregister_policies() -> unless_wrong(fun rabbit_delay_policy:unregister/0).

-spec register_accepted() -> ok.
register_accepted() -> unless_wrong(fun rabbit_delay_doctor_accepted:register/0).

-spec unregister_accepted() -> ok.
unregister_accepted() -> unless_wrong(fun rabbit_delay_doctor_accepted:unregister/0).

-spec boot() -> ok.
boot() ->
    if_it_takes_part(fun () ->
                             ok = rabbit_delay_config:read_sizes(),
                             rabbit_sup:start_supervisor_child(?MODULE)
                     end).

%% The exchanges are known now; what they hold is opened in the background.
-spec recover() -> ok.
recover() ->
    if_it_takes_part(fun () ->
                             case rabbit_delay_exchange:is_registered() of
                                 true -> rabbit_delay_registry:recover();
                                 false -> ok
                             end
                     end).

-spec stop() -> ok.
stop() ->
    if_it_takes_part(fun () ->
                             ok = rabbit_delay_prometheus:unregister(),
                             ok = rabbit_delay_registry:withdraw(),
                             rabbit_sup:stop_child(?MODULE)
                     end).

%% Policies that name ours can be set, and be imported, whether they have an effect or not.
unless_wrong(Fun) ->
    case rabbit_delay_series:status() of
        {wrong, _} -> ok;
        _ -> Fun()
    end.

if_it_takes_part(Fun) ->
    case rabbit_delay_series:takes_part() of
        true -> Fun();
        false -> ok
    end.

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = rabbit_delay_registry:create_table(),
    ok = rabbit_delay_system:create_table(),
    ok = rabbit_delay_traffic:create(),
    ok = rabbit_delay_waiting:put_aside_files(),
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10},
          [#{id => rabbit_delay_topic,
             start => {rabbit_delay_topic, start_link, []}},
           #{id => rabbit_delay_budget,
             start => {rabbit_delay_budget, start_link, []}},
           #{id => rabbit_delay_redrive_jobs,
             start => {rabbit_delay_redrive_jobs, start_link, []}},
           #{id => rabbit_delay_system,
             start => {rabbit_delay_system, start_link, []},
             shutdown => 60000},
           #{id => rabbit_delay_conditions,
             start => {rabbit_delay_conditions, start_link, []}},
           #{id => rabbit_delay_exchanges_sup,
             type => supervisor,
             start => {rabbit_delay_exchanges_sup, start_link, []}},
           #{id => rabbit_delay_registry,
             start => {rabbit_delay_registry, start_link, []}},
           #{id => rabbit_delay_reconciler,
             start => {rabbit_delay_reconciler, start_link, []}}]}}.
