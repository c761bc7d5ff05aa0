%% SPDX-License-Identifier: MPL-2.0

%% What is known of an exchange that delays messages, or did: a row of rabbit_delay_table.
-record(row, {exchange :: rabbit_exchange:name(),
              queue :: pid() | undefined,
              dispatcher :: pid() | undefined,
              %% what its internal queue on this node is called
              queue_name :: rabbit_amqqueue:name() | undefined,
              %% this node's member, when it was last started, and who leads, as far as known
              server_id :: ra:server_id() | undefined,
              uid :: rabbit_delay_raft:uid() | undefined,
              group_size = 1 :: pos_integer(),
              %% of the group that its processes here have joined; none where it has no record
              life :: binary() | undefined,
              leads = false :: boolean(),
              leader :: ra:server_id() | undefined,
              %% what that one's node last said of itself, if it is another one
              elsewhere :: rabbit_delay_intake:status() | undefined,
              %% the machine's, where it was raised while this node's member led
              machine :: ra_machine:version() | undefined,
              %% of a later version of the plugin: what this node's member would have to know to go on
              needs :: ra_machine:version() | undefined,
              %% the open store, where this node has a member
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
