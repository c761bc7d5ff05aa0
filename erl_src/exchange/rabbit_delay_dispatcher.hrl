%% SPDX-License-Identifier: MPL-2.0

%% What a dispatcher knows, for the modules that do its work in its process: rabbit_delay_dispatcher,
%% rabbit_delay_release, rabbit_delay_outcomes, rabbit_delay_overflow, rabbit_delay_watch and
%% rabbit_delay_agenda.
-include("rabbit_delay_in_flight.hrl").

-record(state,
        {exchange :: rabbit_exchange:name(),
         %% this node's Raft server, while it leads, and our monitor of it
         leader :: undefined | {ra:server_id(), reference()},
         %% the note whose application says that the store is up to date
         note :: undefined | reference(),
         store :: undefined | rabbit_delay_store:store(),
         %% the machine's, as its last note said
         machine_version = 2 :: ra_machine:version(),
         %% the leader's, when we last began
         term :: undefined | non_neg_integer(),
         %% who waits for the store
         awaiting = [] :: [gen_server:from()],
         paused = false :: boolean(),
         %% takes nothing for now, as another one is to lead; and whoever waits until nothing is in flight
         resting = none :: none | {gen_server:from() | answered, reference()},
         %% until when messages may be taken, and the note that was asked for to know for longer
         asked :: undefined | reference(),
         lease = rabbit_delay_lease:new() :: rabbit_delay_lease:lease(),
         changes = rabbit_delay_changes:new() :: rabbit_delay_changes:changes(),
         %% what it is to do: rabbit_delay_agenda
         timer :: undefined | {DueMs :: integer(), reference()},
         %% a `pump' message is under way to ourselves
         pumping = false :: boolean(),
         %% an `overflow' message is under way to ourselves, or comes when something is settled
         dropping = false :: false | soon | later,
         ticking = false :: boolean(),
         max_messages :: pos_integer(),
         max_bytes :: pos_integer(),
         rate :: rabbit_delay_rate:rate(),
         %% what becomes of what is later than this, ms
         overdue = deliver :: rabbit_delay_policy:overdue(),
         %% and of dead letters
         retry = none :: rabbit_delay_retry:plan() | none,
         in_flight = rabbit_delay_in_flight:new() :: rabbit_delay_in_flight:book(),
         targets = rabbit_delay_targets:new() :: rabbit_delay_targets:targets(),
         publishers = #{} :: #{pid() => rabbit_amqqueue:name()},
         %% what this batch has for each queue, the last one first
         out = #{} :: #{rabbit_amqqueue:name() =>
                            {rabbit_delay_broker:queue(),
                             [{pos_integer(), rabbit_delay_broker:message()}]}},
         %% and how many through each exchange, for the broker's statistics
         routed = #{} :: #{{rabbit_exchange:name(), rabbit_amqqueue:name()} => pos_integer()},
         %% whose waiting messages are being published
         waking = none :: none | rabbit_delay_targets:name(),
         %% when the log last said who takes nothing, monotonic ms
         reported :: integer(),
         warned = rabbit_delay_warnings:new() :: rabbit_delay_warnings:warnings(),
         counters :: rabbit_delay_counters:ref()}).
