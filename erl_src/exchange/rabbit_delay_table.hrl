%% SPDX-License-Identifier: MPL-2.0

%% What is known of an exchange that delays messages, or did: a row of rabbit_delay_table.
-record(row, {exchange :: rabbit_exchange:name(),
              queue :: pid() | undefined,
              dispatcher :: pid() | undefined,
              %% the open store, where this node's member leads
              store :: rabbit_delay_store:store() | undefined,
              counters :: rabbit_delay_counters:ref() | undefined,
              %% of these
              samples = [] :: rabbit_delay_statistics:samples(),
              %% an operator has paused it; known while the store is
              paused = false :: boolean(),
              %% its Raft server may start, once
              permit = false :: boolean(),
              %% why it is not to be started, and its exchange delays nothing
              refusal :: string() | undefined,
              %% why its store can take no more, as long as it cannot
              unable = none :: none | string(),
              %% what is being done: it outlives the registry
              job :: {rabbit_delay_jobs:what(), pid()} | undefined,
              %% until when nobody waits for that, monotonic ms
              late :: integer() | undefined}).
