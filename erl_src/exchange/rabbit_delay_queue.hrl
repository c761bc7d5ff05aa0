%% SPDX-License-Identifier: MPL-2.0

%% What a delay queue's process knows, for the modules that do its work in it: rabbit_delay_queue,
%% rabbit_delay_intake, rabbit_delay_append and, of what it takes in, rabbit_delay_batch.

%% A burst can use up the disk's space between two looks at it.
-define(LOOK_AT_SPACE_BYTES, 1048576).

-record(waiting, {message :: rabbit_delay_broker:message(),
                  %% of its payload, bytes
                  size = 0 :: non_neg_integer(),
                  %% of an exchange that retries, when it was sent; restored: as it was pending before, with
                  %% its due time
                  dead_letter = false :: boolean() | restored,
                  sender :: pid(),
                  seq_no :: undefined | pos_integer(),
                  flow :: flow | noflow}).

-record(batch, {entry :: rabbit_delay_batch:entry(),
                messages :: non_neg_integer(),
                %% of all that is in it, how much has nobody who hears of a rejection
                untold = 0 :: non_neg_integer(),
                %% when it was first sent, ms, monotonic
                since = 0 :: integer(),
                confirms = #{} :: #{Sender :: pid() => [pos_integer()]},
                %% of an import: who is told what the machine answers, and its place in its session
                from :: undefined | pid(),
                place :: undefined | rabbit_delay_queue:place()}).

-record(state,
        {exchange :: rabbit_exchange:name(),
         name :: rabbit_amqqueue:name(),
         durable :: boolean(),
         %% of the group that was joined
         life :: undefined | binary(),
         %% the Raft server that leads, and our monitor of it
         leader :: undefined | {ra:server_id(), reference()},
         %% this node's, if it has one: our monitor of it, and the generation of the Ra system that it
         %% belongs to
         member :: undefined | ended | {pid(), reference()},
         generation = 0 :: non_neg_integer(),
         %% of the node that leads
         condition = unknown :: rabbit_delay_condition:condition() | unknown,
         %% what has been appended since the free space was looked at, bytes
         appended = 0 :: non_neg_integer(),
         %% the process that starts the member
         starter :: undefined | reference(),
         %% what keys are hashed with, once there is a member
         salt :: undefined | rabbit_delay_key:salt(),
         counters :: rabbit_delay_counters:ref(),
         %% the life of this process, and the session that the machine has opened for it; until it has,
         %% what was asked of it last
         nonce :: binary(),
         session :: undefined | ra:index(),
         opening :: undefined | {note | open, reference()},
         %% the machine's, as its last note said
         machine_version = 0 :: ra_machine:version(),
         last_seq_no = 0 :: non_neg_integer(),
         %% under way, by sequence number
         batches = #{} :: #{rabbit_delay_queue:batch_key() => #batch{}},
         batches_bytes = 0 :: non_neg_integer(),
         max_batches_bytes :: pos_integer(),
         resend_timer :: undefined | reference(),
         append_timer :: undefined | reference(),
         %% looks for batches that have been under way for long
         late_timer :: undefined | reference(),
         %% why the store can take no more
         unable = none :: none | string(),
         %% beyond which messages are dropped, if they are, and bytes
         drop_beyond = none :: none | rabbit_delay_room:limits(),
         %% not yet appended
         waiting :: rabbit_delay_waiting:waiting(),
         %% how many of those in memory can be rejected
         rejectable = 0 :: non_neg_integer(),
         %% of what the log has just told: why the last one, and how many since then
         untold = #{} :: #{dropped | unusable => {Why :: unicode:chardata(), non_neg_integer()}},
         %% who sends dead letters, and which
         dead_letterers = #{} :: #{pid() => true | restored},
         give_up_timer :: undefined | reference()}).
