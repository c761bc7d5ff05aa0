%% SPDX-License-Identifier: MPL-2.0

%% A queue as the doctor's rules see it: what holds for it, and the policies that match it, those that
%% hold first; foreign are those that match but are not for its type.
-record(q, {name :: binary(),
            queue :: rabbit_delay_topology:queue(),
            type :: classic | quorum | stream | other,
            settings :: rabbit_delay_queue_settings:settings(),
            held :: [rabbit_delay_topology:policy()],
            foreign :: [rabbit_delay_topology:policy()]}).

%% How many names a text lists.
-define(NAMES, 5).
