%% SPDX-License-Identifier: MPL-2.0

%% Figures of delayed messages in the broker's Prometheus endpoint, for as long as the plugin
%% rabbitmq_prometheus is enabled; this module is not used otherwise. As with the broker's own,
%% /metrics shows the sums of all exchanges of this node, unless
%% prometheus.return_per_object_metrics is on, /metrics/per-object each exchange's, and
%% /metrics/detailed each exchange's under the name rabbitmq_detailed_delayed_..., if the query asks
%% for family=delayed_exchange_metrics.
%%
%% Of an exchange of a cluster, each node counts what happened there, and the one that leads it has what it
%% holds: what is the sum over nodes is right.
%%
%% Counts begin with the broker's start. Times are in seconds, sizes in bytes.
%%
%% It runs in the process of whoever scrapes, and owns nothing: it reads counters and what the stores
%% say of themselves.
-module(rabbit_delay_prometheus).

-behaviour(prometheus_collector).

-include_lib("rabbit_common/include/resource.hrl").

-export([ensure_registered/0, unregister/0]).
-export([collect_mf/2, deregister_cleanup/1]).

-define(TABLE, prometheus_registry_table).
-define(REGISTRIES, [default, 'per-object', detailed]).
-define(FAMILY, delayed_exchange_metrics).

%% Cheap, and to be called now and then: the other plugin may be enabled at any time. (The prometheus
%% application finds collectors by their behaviour as it starts, but only for /metrics, and also if
%% our plugin is not running.)
-spec ensure_registered() -> ok.
ensure_registered() ->
    case ets:whereis(?TABLE) of
        undefined ->
            ok;
        _ ->
            lists:foreach(fun (Registry) -> register_in(Registry) end, ?REGISTRIES)
    end.

%% It may be disabled meanwhile.
register_in(Registry) ->
    try prometheus_registry:collector_registeredp(Registry, ?MODULE) of
        true -> ok;
        false -> prometheus_registry:register_collector(Registry, ?MODULE)
    catch
        error:_ -> ok
    end.

-spec unregister() -> ok.
unregister() ->
    case ets:whereis(?TABLE) of
        undefined ->
            ok;
        _ ->
            try
                lists:foreach(fun (Registry) ->
                                      prometheus_registry:deregister_collector(Registry, ?MODULE)
                              end, ?REGISTRIES)
            catch
                error:_ -> ok
            end
    end.

-spec deregister_cleanup(prometheus_registry:registry()) -> ok.
deregister_cleanup(_) -> ok.

-spec collect_mf(prometheus_registry:registry(), prometheus_collector:collect_mf_callback()) -> ok.
collect_mf(detailed, Callback) ->
    case get(prometheus_mf_filter) of
        Families when is_list(Families) ->
            case lists:member(?FAMILY, Families) of
                true -> each("rabbitmq_detailed_delayed_", filtered(exchanges()), Callback);
                false -> ok
            end;
        _ ->
            ok
    end;
collect_mf('per-object', Callback) ->
    each("rabbitmq_delayed_", exchanges(), Callback),
    node_figures(Callback);
collect_mf(_, Callback) ->
    case application:get_env(rabbitmq_prometheus, return_per_object_metrics, false) of
        true -> each("rabbitmq_delayed_", exchanges(), Callback);
        _ -> all("rabbitmq_delayed_", exchanges(), Callback)
    end,
    node_figures(Callback).

exchanges() ->
    [{XName, (stat(XName))#{member => rabbit_delay_table:member(XName) =/= none}, rabbit_delay_counters:read(Counters)}
     || {XName, Counters} <- rabbit_delay_registry:all_counters()].

%% Where another node leads the exchange's group, what it holds is in that one's figures.
stat(XName) ->
    case rabbit_delay_table:is_led_elsewhere(XName) of
        true -> #{elsewhere => true};
        false -> (rabbit_delay_registry:stat(XName))#{paused => rabbit_delay_registry:is_paused(XName)}
    end.

filtered(Exchanges) ->
    case get(prometheus_vhost_filter) of
        VHosts when is_list(VHosts) ->
            [X || {#resource{virtual_host = VHost}, _, _} = X <- Exchanges,
                  lists:member(VHost, VHosts)];
        _ ->
            Exchanges
    end.

node_figures(Callback) ->
    figure(Callback, "rabbitmq_delayed_", "up", gauge,
           "1 if delayed messages are accepted on this node, 0 if not: the log says why",
           [{[], case rabbit_delay_system:status() of up -> 1; _ -> 0 end}]),
    _ = rabbit_delay_system:has_library()
        andalso store_figures(rabbit_delay_store:shared(), Callback),
    ok.

store_figures(Shared, Callback) ->
    lists:foreach(fun ({Key, Name, Type, Help}) ->
                          figure(Callback, "rabbitmq_delayed_", Name, Type, Help,
                                 [{[], maps:get(Key, Shared)}])
                  end,
                  [{open_files, "descriptors_open", gauge,
                    "File descriptors that the delay stores of this node have open"},
                   {max_open_files, "descriptors_limit", gauge,
                    "File descriptors that they may keep open"},
                   {failing, "stores_failing", gauge,
                    "Exchanges to whose files the last try to write failed"},
                   {unwritten, "stores_unwritten_bytes", gauge,
                    "What these hold in memory instead"},
                   {failed_writes, "store_write_failures_total", counter,
                    "Tries to write to a delay store's files that failed"},
                   {failed_syncs, "store_sync_failures_total", counter,
                    "Files of delay stores that could not be made durable and were written anew"}]).

%% Each exchange's, labelled.
each(Prefix, Exchanges, Callback) ->
    Now = rabbit_delay_config:now_ms(),
    Labelled = [{[{exchange, Name}, {vhost, VHost}], gauges(Stat, Now), Values}
                || {#resource{name = Name, virtual_host = VHost}, Stat, Values} <- Exchanges],
    show(Prefix, Labelled, Callback).

%% The sums.
all(Prefix, Exchanges, Callback) ->
    Now = rabbit_delay_config:now_ms(),
    Gauges = lists:foldl(fun ({_, Stat, _}, Acc) -> together(gauges(Stat, Now), Acc) end,
                         #{}, Exchanges),
    Gone = rabbit_delay_counters:read(rabbit_delay_registry:gone_counters()),
    Values = rabbit_delay_counters:sum([Gone | [V || {_, _, V} <- Exchanges]]),
    figure(Callback, Prefix, "exchanges", gauge,
           "Exchanges that have delayed messages since the node started, or hold some",
           [{[], length([X || {_, Stat, _} = X <- Exchanges, not is_map_key(elsewhere, Stat)])}]),
    show(Prefix, [{[], maps:merge(gauges(#{}, Now), Gauges), Values}], Callback).

together(A, B) ->
    maps:fold(fun (next_due, Due, Acc) -> maps:update_with(next_due, fun (D) -> min(D, Due) end,
                                                          Due, Acc);
                  (lag, Lag, Acc) -> maps:update_with(lag, fun (L) -> max(L, Lag) end, Lag, Acc);
                  (Name, N, Acc) -> maps:update_with(Name, fun (M) -> M + N end, N, Acc)
              end, B, A).

%% `undefined' sorts after every number, and is not shown.
gauges(Stat, Now) ->
    NextDue = maps:get(next_due, Stat, infinity),
    Get = fun (Key) -> maps:get(Key, Stat, 0) end,
    #{pending => Get(pending),
      pending_bytes => Get(pending_bytes),
      in_flight => Get(taken),
      unreadable => Get(unreadable),
      waiting => Get(waiting),
      stuck_queues => Get(stuck_queues),
      overdue => case Stat of
                     #{histogram := _} -> rabbit_delay_counters:overdue(Stat, Now);
                     _ -> 0
                 end,
      next_due => case NextDue of infinity -> undefined; _ -> NextDue / 1000 end,
      lag => case Stat of
                 #{paused := true} -> 0;
                 _ when NextDue =:= infinity -> 0;
                 _ -> max(0, Now - NextDue) / 1000
             end,
      partitions => Get(partitions),
      file_bytes => Get(file_bytes),
      dead_bytes => Get(dead_bytes),
      memory_bytes => Get(memory_bytes),
      buffered => Get(buffered),
      open_files => Get(open_files),
      unchecked => max(0, Get(applied) - Get(checkpoint_applied)),
      paused => case Stat of #{paused := true} -> 1; _ -> 0 end,
      leading => case Stat of #{applied := _} -> 1; _ -> 0 end,
      member => case Stat of #{member := true} -> 1; _ -> 0 end}.

show(Prefix, Rows, Callback) ->
    lists:foreach(
      fun ({Key, Name, Help}) ->
              figure(Callback, Prefix, Name, gauge, Help,
                     [{Labels, V} || {Labels, #{Key := V}, _} <- Rows, V =/= undefined])
      end, gauge_figures()),
    lists:foreach(
      fun ({Key, Name, Help}) ->
              figure(Callback, Prefix, Name, counter, Help,
                     [{Labels, V} || {Labels, _, #{Key := V}} <- Rows])
      end, counter_figures()),
    figure(Callback, Prefix, "release_lateness_seconds", histogram,
           "Time from when released messages were due until all their queues had confirmed them",
           [histogram(Labels, H) || {Labels, _, #{lateness := H}} <- Rows]),
    figure(Callback, Prefix, "message_delay_seconds", histogram,
           "Delays that publishers asked for",
           [histogram(Labels, H) || {Labels, _, #{delay := H}} <- Rows]),
    figure(Callback, Prefix, "store_checkpoint_timestamp_seconds", gauge,
           "When the last checkpoint of the store since the node's start became durable",
           [{Labels, At / 1000} || {Labels, _, #{checkpoint := {At, _}}} <- Rows, At > 0]),
    figure(Callback, Prefix, "store_checkpoint_duration_seconds", gauge,
           "How long the last checkpoint of the store took",
           [{Labels, Ms / 1000} || {Labels, _, #{checkpoint := {At, Ms}}} <- Rows, At > 0]).

gauge_figures() ->
    [{pending, "messages_pending", "Delayed messages that wait or are in flight"},
     {pending_bytes, "messages_pending_bytes", "Their size as stored"},
     {in_flight, "messages_in_flight", "Delayed messages handed to queues and not yet confirmed"},
     {unreadable, "messages_unreadable",
      "Delayed messages whose record could not be read when it was last tried; it is tried again"},
     {waiting, "messages_waiting",
      "Delayed messages that are due and wait for queues that do not take them for now"},
     {stuck_queues, "stuck_queues",
      "Queues that reject delayed messages, are not there, or have not confirmed for a second"},
     {overdue, "messages_overdue",
      "Delayed messages that are due and not yet confirmed by their queues; an estimate of those "
      "not in flight"},
     {next_due, "next_due_timestamp_seconds", "When the next delayed message is due"},
     {lag, "release_lag_seconds",
      "How long the next delayed message has been due; 0 if it is not due yet, or its exchange paused"},
     {paused, "paused", "1 if an operator has paused the exchange; as a sum, how many are"},
     {partitions, "store_partitions", "Partitions of the delay store"},
     {file_bytes, "store_file_bytes", "Bytes in the delay store's files"},
     {dead_bytes, "store_dead_bytes", "Of these, bytes of messages that are gone"},
     {memory_bytes, "store_memory_bytes", "Memory of the delay store"},
     {buffered, "store_buffered_bytes", "Bytes not yet written to the delay store's files"},
     {open_files, "store_open_files", "Files that the delay store has open"},
     {unchecked, "store_uncheckpointed_entries",
      "Raft log entries applied since the delay store's last checkpoint"},
     {leading, "raft_leaders",
      "Raft members of delayed exchanges that lead on this node, and release messages"},
     {member, "raft_members", "Raft members of delayed exchanges on this node"}].

counter_figures() ->
    [{published, "messages_published_total", "Messages taken to be delayed"},
     {released, "messages_released_total",
      "Delayed messages confirmed by all queues that they were routed to"},
     {unroutable, "messages_unroutable_total",
      "Delayed messages dropped because no queue was bound for them when they were due"},
     {cancelled, "messages_cancelled_total", "Delayed messages cancelled"},
     {replaced, "messages_replaced_total", "Delayed messages replaced by another of the same key"},
     {deduplicated, "messages_deduplicated_total",
      "Messages dropped because one with the same key was pending"},
     {rejected, "messages_rejected_total", "Messages refused with a nack"},
     {retried, "messages_retried_total", "Tries to release a message that a queue rejected"},
     {expired, "messages_expired_total",
      "Delayed messages dropped because it was too late to release them"},
     {overflowed, "messages_overflowed_total",
      "Delayed messages dropped because their exchange was full"},
     {dead_lettered, "messages_dead_lettered_total",
      "Delayed messages that went to the dead-letter exchange"},
     {returned, "messages_returned_total", "Dead letters that came back to be tried again"},
     {parked, "messages_parked_total",
      "Dead letters that were not tried again, and were parked or dead-lettered"},
     {keys_ignored, "messages_keys_ignored_total",
      "Messages not published to the delayed exchange itself, whose headers about keys did not count"},
     {unusable, "messages_unusable_total",
      "Messages refused alone, with a nack or none, as their delay could not be used"},
     {corrupt, "messages_corrupt_total",
      "Delayed messages lost to damage of the delay store's files"},
     {dropped, "messages_dropped_total",
      "Dead letters, and messages whose publisher awaits no confirm, that could be neither taken nor "
      "kept waiting"}].

histogram(Labels, {Buckets, Sum}) ->
    {Cumulative, Count} = lists:mapfoldl(fun ({Bound, N}, Acc) ->
                                                 {{seconds(Bound), Acc + N}, Acc + N}
                                         end, 0, Buckets),
    {Labels, Cumulative, Count, Sum / 1000}.

seconds(infinity) -> infinity;
seconds(Ms) when Ms rem 1000 =:= 0 -> Ms div 1000;
seconds(Ms) -> Ms / 1000.

figure(_, _, _, _, _, []) ->
    ok;
figure(Callback, Prefix, Name, Type, Help, Metrics) ->
    _ = Callback(prometheus_model_helpers:create_mf(iolist_to_binary([Prefix, Name]),
                                                    list_to_binary(Help), Type, Metrics)),
    ok.
