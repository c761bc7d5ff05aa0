%% SPDX-License-Identifier: MPL-2.0

-define(EXCHANGE_TYPE, <<"x-delayed-message">>).
-define(RA_SYSTEM, rabbit_delay_wheel).
%% The latest time, ms since the epoch, and the longest delay that the store can hold.
-define(MAX_MS, 16#ffffffffffff).
-define(MAX_ID, 16#ffffffffffffffff).
%% Whether a machine of that version knows what came with releases by key: enqueue 6, settle 3, purge.
-define(KNOWS_RELEASES(MachineVersion), (MachineVersion >= 3)).
-define(LOG_DOMAIN, #{domain => [rabbitmq, delayed_message]}).
