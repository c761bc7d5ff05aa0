%% SPDX-License-Identifier: MPL-2.0

%% Whether the node that leads can take messages, as far as a delay queue's process knows: of this node at
%% any time, of another one as it last said, half a second ago or so (rabbit_delay_conditions). And the version of the
%% machine there.
%%
%% In the delay queue's process, but of_here/1 (which another node asks for), leaders_status/1 (in whoever publishes)
%% and raised/2 (in the Raft server).
-module(rabbit_delay_condition).

-include("rabbit_delay_queue.hrl").
-include("rabbit_delay_table.hrl").

-export([ask/1, said/3, forget/1, status/1, stat/1, unwritten/1, added/3]).
-export([of_here/1, leaders_status/1, raised/2]).

-export_type([condition/0]).

%% Unwritten: the bytes that stores which cannot be written to hold in memory.
-type condition() :: here
                   | #{status := rabbit_delay_intake:status(), stat := map(), unwritten := non_neg_integer(),
                       machine => ra_machine:version() | undefined}.

%% How long, and how often, a publisher looks for who leads, and for how long not again when nobody did.
-define(AWAIT_MS, 2000).
-define(LOOK_MS, 20).
-define(AWAIT_AGAIN_MS, 20000).
%% In a publisher's dictionary: when it has waited in vain.
-define(IN_VAIN, {?MODULE, in_vain}).

%% Has another node that leads asked, from now on. To be said now and then: who does it may have ended, and begun again;
%% and what was added here may have been in what that node said.
-spec ask(#state{}) -> #state{}.
ask(#state{leader = {{_, Node}, _}, exchange = XName} = State) when Node =/= node() ->
    ok = rabbit_delay_conditions:follow(Node, XName),
    State;
ask(#state{leader = {_, _}, condition = unknown} = State) ->
    heard(here, State);
ask(State) ->
    State.

%% That is what the node has answered.
-spec said(node(), condition() | unknown, #state{}) -> #state{}.
said(Node, Condition, #state{leader = {{_, Node}, _}, machine_version = Version} = State) ->
    _ = case Condition of
            %% A later one is in effect: a note says so.
            #{machine := Now} when is_integer(Now), Now > Version -> self() ! open_session;
            _ -> ok
        end,
    heard(Condition, State);
said(_, _, State) ->
    State.

%% Nobody leads.
-spec forget(#state{}) -> #state{}.
forget(State) ->
    ok = rabbit_delay_conditions:leave(),
    heard(unknown, State).

heard(Condition, #state{exchange = XName} = State) ->
    _ = rabbit_delay_table:update_known(XName, {#row.elsewhere, case Condition of
                                                                    #{status := Status} -> Status;
                                                                    _ -> undefined
                                                                end}),
    State#state{condition = Condition}.

%% The leader's node's, for who publishes here. Where this node has no space and it is not known who leads, as nothing
%% has been published here before or another one is being elected, that is waited for.
-spec leaders_status(rabbit_delay_broker:exchange()) -> rabbit_delay_intake:status().
leaders_status(X) ->
    XName = rabbit_delay_broker:exchange_name(X),
    case {rabbit_delay_table:lookup(XName, #row.elsewhere), rabbit_delay_system:status()} of
        {undefined, {full, _} = Here} ->
            Until = monotonic_ms() + ?AWAIT_MS,
            case may_await() andalso rabbit_delay_registry:ensure_for(X) of
                {ok, _} -> await(XName, Here, Until);
                _ -> Here
            end;
        {undefined, Here} -> Here;
        {Status, _} -> Status
    end.

%% Nobody who leads is known to a node that sees no other one.
may_lead_elsewhere() -> nodes() =/= [].

%% A process that has waited in vain does not wait again soon, for whichever exchange: not each of the messages that it
%% publishes takes so long.
may_await() ->
    may_lead_elsewhere() andalso case get(?IN_VAIN) of
                                     undefined -> true;
                                     Since -> monotonic_ms() - Since >= ?AWAIT_AGAIN_MS
                                 end.

await(XName, Here, Until) ->
    case {rabbit_delay_table:row(XName), monotonic_ms() < Until} of
        {#row{elsewhere = Status}, _} when Status =/= undefined ->
            Status;
        {#row{leads = false}, true} ->
            timer:sleep(?LOOK_MS),
            await(XName, Here, Until);
        {#row{leads = false}, false} ->
            _ = put(?IN_VAIN, monotonic_ms()),
            Here;
        _ ->
            Here
    end.

monotonic_ms() -> erlang:monotonic_time(millisecond).

%% A later version of the machine is in effect; this node's member leads.
-spec raised(rabbit_exchange:name(), ra_machine:version()) -> ok.
raised(XName, Version) ->
    _ = rabbit_delay_table:update_known(XName, {#row.machine, Version}),
    ok = rabbit_delay_dispatcher:raised(XName, Version),
    case rabbit_delay_registry:queue(XName) of
        undefined -> ok;
        Queue ->
            Queue ! open_session,
            ok
    end.

%% rabbit_delay_system:status/0, of the node that leads. While it is not known who does, a full disk here is no reason.
-spec status(#state{}) -> rabbit_delay_intake:status().
status(#state{condition = #{status := Status}}) -> Status;
status(#state{condition = unknown}) ->
    case {rabbit_delay_system:status(), may_lead_elsewhere()} of
        {{full, _}, true} -> starting;
        {Here, _} -> Here
    end;
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

-spec of_here(rabbit_exchange:name()) -> condition().
of_here(XName) ->
    #{status => rabbit_delay_system:status(),
      stat => maps:with([applied, pending, pending_bytes, write_error, full, buffered],
                        rabbit_delay_registry:stat(XName)),
      unwritten => unwritten_here(),
      machine => rabbit_delay_table:lookup(XName, #row.machine)}.
