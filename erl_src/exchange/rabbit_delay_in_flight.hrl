%% SPDX-License-Identifier: MPL-2.0

%% A message that a dispatcher releases, from when it knows what is to become of it until it is
%% settled or put back.
-record(in_flight,
        {id :: rabbit_delay_store:id(),
         due :: rabbit_delay_store:ms(),
         bytes :: non_neg_integer(),
         how = released :: rabbit_delay_in_flight:how(),
         unsettled = [] :: [rabbit_amqqueue:name()],
         settled = [] :: [rabbit_amqqueue:name()],
         rejected = [] :: [rabbit_amqqueue:name()],
         %% those that it is to wait for, and for which of them it does already
         later = [] :: [rabbit_delay_targets:name()],
         places = [] :: [rabbit_delay_targets:name()],
         %% whether it has been in flight before, and so waits before those that have not
         order = first :: first | again}).
