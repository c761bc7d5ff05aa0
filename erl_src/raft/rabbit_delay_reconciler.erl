%% SPDX-License-Identifier: MPL-2.0

%% Has the members of exchanges' groups follow the cluster: now and then it is looked whether a group that
%% this node leads needs a change (rabbit_delay_member_changes), whether this node is to lead nothing, as it is
%% being drained or short of space, and whether it has a member that its group does not have any more.
%%
%% That is done by a process of its own, one at a time, which may take as long as it needs.
-module(rabbit_delay_reconciler).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([start_link/0, unnamed/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% How often it is looked whether the node is to lead nothing.
-define(TICK_MS, 1000).
%% Every so many times all groups are looked at closely.
-define(CLOSELY, 12).

-record(state, {worker :: undefined | reference(),
                %% when it is time, monotonic ms, and how many times it has been
                next :: integer(),
                looks = 0 :: non_neg_integer(),
                leaving = false :: boolean(),
                unnamed = #{} :: #{rabbit_delay_raft:uid() => rabbit_exchange:name()}}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% This node holds files of a member that the exchange's record does not name.
-spec unnamed(rabbit_exchange:name(), rabbit_delay_raft:uid()) -> ok.
unnamed(XName, Uid) ->
    gen_server:cast(?MODULE, {unnamed, XName, Uid}).

-spec init([]) -> {ok, #state{}}.
init([]) ->
    _ = erlang:send_after(?TICK_MS, self(), tick),
    {ok, #state{next = now_ms() + rabbit_delay_config:reconciliation_interval()}}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, term(), #state{}}.
handle_call(_, _, State) ->
    {reply, {error, not_supported}, State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({unnamed, XName, Uid}, #state{unnamed = Unnamed} = State) ->
    {noreply, State#state{unnamed = Unnamed#{Uid => XName}}};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(tick, State) ->
    _ = erlang:send_after(?TICK_MS, self(), tick),
    {noreply, case State of
                  #state{worker = undefined} -> look(State);
                  _ -> State
              end};
handle_info({'DOWN', Ref, process, _, Reason}, #state{worker = Ref, unnamed = Unnamed} = State) ->
    {noreply, case Reason of
                  {looked, IsLeaving, Done} ->
                      State#state{worker = undefined, leaving = IsLeaving,
                                  unnamed = maps:without(Done, Unnamed)};
                  _ ->
                      ?LOG_ERROR("delayed messages: members are not looked after: ~0P", [Reason, 20],
                                 ?LOG_DOMAIN),
                      State#state{worker = undefined}
              end};
handle_info(_, State) ->
    {noreply, State}.

now_ms() -> erlang:monotonic_time(millisecond).

-dialyzer({nowarn_function, look/1}).
look(#state{next = Next, looks = Looks, unnamed = Unnamed, leaving = Was} = State) ->
    IsDue = now_ms() >= Next,
    All = Looks rem ?CLOSELY =:= 0,
    {_, Ref} = spawn_monitor(fun () ->
                                     {IsLeaving, Done} = look(IsDue, All, Was, Unnamed),
                                     exit({looked, IsLeaving, Done})
                             end),
    case IsDue of
        true -> State#state{worker = Ref, looks = Looks + 1,
                            next = now_ms() + rabbit_delay_config:reconciliation_interval()};
        false -> State#state{worker = Ref}
    end.

%% Leaders that could not be moved are tried again when it is due.
look(IsDue, All, WasLeaving, Unnamed) ->
    case rabbit_delay_system:status() of
        Down when Down =:= starting; element(1, Down) =:= down ->
            {false, []};
        _ ->
            IsLeaving = case IsDue orelse not WasLeaving of
                            true -> rabbit_delay_member_changes:move_leaders();
                            false -> WasLeaving
                        end,
            NotYet = case IsDue andalso rabbit_delay_config:reconciles() of
                         true -> reconcile(All, Unnamed);
                         false -> []
                     end,
            _ = IsDue andalso All andalso rabbit_delay_newer:look_at_running(),
            {IsLeaving, NotYet}
    end.

reconcile(All, Unnamed) ->
    ok = rabbit_delay_member_changes:reconcile(All),
    ok = look_at_running(),
    [Uid || {Uid, XName} <- maps:to_list(Unnamed),
            rabbit_delay_local_member:look_at(XName, {rabbit_delay_raft:id_of(Uid), Uid}) =:= done].

%% A member that was cut off when it was removed has not been told.
look_at_running() ->
    lists:foreach(
      fun ({XName, {_, Uid} = Member}) ->
              case rabbit_delay_group:is_named(XName, Uid) of
                  true -> ok;
                  false -> rabbit_delay_local_member:look_at(XName, Member)
              end
      end, rabbit_delay_table:following()).
