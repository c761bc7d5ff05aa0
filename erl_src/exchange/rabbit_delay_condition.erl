%% SPDX-License-Identifier: MPL-2.0

%% Whether the node that leads can take messages, as far as a delay queue's process knows: of this node at
%% any time, of another one as it last said, half a second ago or so.
%%
%% In the delay queue's process, but of_node/2 (which asks another node, and waits) and of_here/1 (which it
%% answers).
-module(rabbit_delay_condition).

-include("rabbit_delay_queue.hrl").

-export([status/1, stat/1, unwritten/1, added/3]).
-export([of_node/2, of_here/1]).

-export_type([condition/0]).

%% Unwritten: the bytes that stores which cannot be written to hold in memory.
-type condition() :: here
                   | #{status := term(), stat := map(), unwritten := non_neg_integer()}.

-define(ASK_MS, 5000).

%% rabbit_delay_system:status/0, of the node that leads.
-spec status(#state{}) -> up | starting | {down | full, Why :: string()}.
status(#state{condition = #{status := Status}}) -> Status;
status(_) -> rabbit_delay_system:status().

%% rabbit_delay_registry:stat/1, the same.
-spec stat(#state{}) -> map().
stat(#state{condition = #{stat := Stat}}) -> Stat;
stat(#state{exchange = XName}) -> rabbit_delay_registry:stat(XName).

-spec unwritten(#state{}) -> non_neg_integer().
unwritten(#state{condition = #{unwritten := Bytes}}) -> Bytes;
unwritten(_) -> unwritten_here().

unwritten_here() ->
    case rabbit_delay_system:has_library() of
        true -> maps:get(unwritten, rabbit_delay_store:shared());
        false -> 0
    end.

%% What has been added since another node last said what it holds.
-spec added(Messages :: non_neg_integer(), Bytes :: non_neg_integer(), #state{}) -> #state{}.
added(Messages, Bytes, #state{condition = #{stat := #{pending := P, pending_bytes := B} = Stat} = C} = State) ->
    State#state{condition = C#{stat := Stat#{pending := P + Messages, pending_bytes := B + Bytes}}};
added(_, _, State) ->
    State.

-spec of_node(node(), rabbit_exchange:name()) -> condition() | unknown.
of_node(Node, XName) ->
    try
        erpc:call(Node, ?MODULE, of_here, [XName], ?ASK_MS)
    catch
        error:_ -> unknown
    end.

-spec of_here(rabbit_exchange:name()) -> condition().
of_here(XName) ->
    #{status => rabbit_delay_system:status(),
      stat => maps:with([applied, pending, pending_bytes, write_error, full, buffered],
                        rabbit_delay_registry:stat(XName)),
      unwritten => unwritten_here()}.
