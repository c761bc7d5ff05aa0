%% SPDX-License-Identifier: MPL-2.0

%% For how long a dispatcher may take messages out of its store: a Raft server that has been deposed may
%% not know it, and would have its dispatcher release what another one has released or cancelled. An entry
%% that is applied was stored by a majority after it had been sent, so until then nobody else led; for a
%% while after that moment messages are taken. Settling renews it, so a busy dispatcher never waits; an
%% idle one appends an entry that changes nothing before it takes something.
%%
%% It needs no agreement between clocks, only that they run about as fast. What a process that was paused
%% after taking a batch does with that batch it does not prevent.
%%
%% The server of a group of one cannot be deposed, and needs none.
%%
%% Data only, of the dispatcher's process. Times are ms, monotonic.
-module(rabbit_delay_lease).

-export([new/0, needed/2, sending/3, applied/2, holds/2]).

-export_type([lease/0]).

-define(LEASE_MS, 500).

-record(lease, {needed = true :: boolean(),
                %% when each was sent that is not applied yet
                sent = #{} :: #{reference() => integer()},
                %% when the last one was sent that has been applied
                proved :: undefined | integer()}).

-opaque lease() :: #lease{}.

-spec new() -> lease().
new() -> #lease{}.

%% For a server that leads from now on, in a group of so many.
-spec needed(Members :: pos_integer(), lease()) -> lease().
needed(Members, _) -> #lease{needed = Members > 1}.

%% It is about to be sent: Now was read before.
-spec sending(reference(), Now :: integer(), lease()) -> lease().
sending(_, _, #lease{needed = false} = L) -> L;
sending(Ref, Now, #lease{sent = Sent} = L) -> L#lease{sent = Sent#{Ref => Now}}.

-spec applied(reference(), lease()) -> lease().
applied(Ref, #lease{sent = Sent, proved = Proved} = L) ->
    case maps:take(Ref, Sent) of
        {At, Rest} when Proved =:= undefined; At > Proved -> L#lease{sent = Rest, proved = At};
        {_, Rest} -> L#lease{sent = Rest};
        error -> L
    end.

-spec holds(Now :: integer(), lease()) -> boolean().
holds(_, #lease{needed = false}) -> true;
holds(_, #lease{proved = undefined}) -> false;
holds(Now, #lease{proved = Proved}) -> Now - Proved < ?LEASE_MS.
