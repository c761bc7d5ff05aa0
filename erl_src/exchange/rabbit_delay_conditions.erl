%% SPDX-License-Identifier: MPL-2.0

%% What other nodes that lead say of their disk and their stores: asked for by one process a node, for all its delay
%% queues, and told to each when it has changed. So on an idle cluster that is one question twice a second to each
%% node that leads something, and no message to a queue, however many exchanges there are.
%%
%% A question is asked by a process of its own, as it may wait; of a node one at a time.
-module(rabbit_delay_conditions).

-behaviour(gen_server).

-export([start_link/0, follow/2, leave/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(AGAIN_MS, 500).
-define(ASK_MS, 5000).

-record(follower, {exchange :: rabbit_exchange:name(),
                   node :: node(),
                   monitor :: reference(),
                   %% that it has been told
                   said = nothing :: nothing | unknown | rabbit_delay_condition:condition()}).

-record(state, {followers = #{} :: #{pid() => #follower{}},
                asking = #{} :: #{node() => reference()},
                timer :: undefined | reference()}).

-spec start_link() -> {ok, pid()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The caller, a delay queue's process, is sent {condition, Node, Condition}: soon, and whenever that is another one,
%% until it leaves, or follows another node. If it follows again what it follows it is told again, at the next question:
%% it may have counted what it was told of once more (rabbit_delay_condition:added/3).
-spec follow(node(), rabbit_exchange:name()) -> ok.
follow(Node, XName) ->
    gen_server:cast(?MODULE, {follow, self(), Node, XName}).

-spec leave() -> ok.
leave() ->
    gen_server:cast(?MODULE, {leave, self()}).

-spec init([]) -> {ok, #state{}}.
init([]) ->
    {ok, #state{}}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {noreply, #state{}}.
handle_call(_, _, State) ->
    {noreply, State}.

-spec handle_cast({follow, pid(), node(), rabbit_exchange:name()} | {leave, pid()}, #state{}) ->
          {noreply, #state{}}.
handle_cast({follow, Queue, Node, XName}, #state{followers = Followers} = State0) ->
    case Followers of
        #{Queue := #follower{node = Node} = Follower} ->
            {noreply, State0#state{followers = Followers#{Queue := Follower#follower{said = nothing}}}};
        _ ->
            #state{followers = Others} = State = without(Queue, State0),
            Follower = #follower{exchange = XName, node = Node, monitor = monitor(process, Queue)},
            {noreply, ask_again_later(ask(Node, #{Queue => XName},
                                          State#state{followers = Others#{Queue => Follower}}))}
    end;
handle_cast({leave, Queue}, State) ->
    {noreply, without(Queue, State)}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(ask, #state{followers = Followers} = State) ->
    Nodes = lists:usort([Node || #follower{node = Node} <- maps:values(Followers)]),
    {noreply, ask_again_later(lists:foldl(fun (Node, Acc) -> ask(Node, followers(Node, Acc), Acc) end,
                                          State#state{timer = undefined}, Nodes))};
handle_info({answers, Node, Answers}, State) ->
    {noreply, maps:fold(fun (Queue, Condition, Acc) -> said(Queue, Node, Condition, Acc) end, State, Answers)};
handle_info({'DOWN', Ref, process, Pid, Reason}, #state{asking = Asking} = State) ->
    case [Node || {Node, R} <- maps:to_list(Asking), R =:= Ref] of
        [Node] -> {noreply, asked(Node, Reason, State#state{asking = maps:remove(Node, Asking)})};
        [] -> {noreply, without(Pid, State)}
    end;
handle_info(_, State) ->
    {noreply, State}.

without(Queue, #state{followers = Followers} = State) ->
    case maps:take(Queue, Followers) of
        {#follower{monitor = Ref}, Others} ->
            true = demonitor(Ref, [flush]),
            State#state{followers = Others};
        error ->
            State
    end.

followers(Node, #state{followers = Followers}) ->
    maps:from_list([{Queue, XName} || {Queue, #follower{node = N, exchange = XName}} <- maps:to_list(Followers),
                                      N =:= Node]).

%% Those who have begun to follow it meanwhile are asked for at once.
asked(Node, normal, #state{followers = Followers} = State) ->
    ask(Node, maps:filter(fun (Queue, _) -> (maps:get(Queue, Followers))#follower.said =:= nothing end,
                          followers(Node, State)), State);
asked(_, _, State) ->
    State.

ask(_, Queues, State) when map_size(Queues) =:= 0 ->
    State;
ask(Node, _, #state{asking = Asking} = State) when is_map_key(Node, Asking) ->
    State;
ask(Node, Queues, #state{asking = Asking} = State) ->
    Self = self(),
    {_, Ref} = spawn_monitor(fun () -> Self ! {answers, Node, answers(Node, Queues)} end),
    State#state{asking = Asking#{Node => Ref}}.

%% By a function that every version of the plugin has.
answers(Node, Queues) ->
    {Pids, XNames} = lists:unzip(maps:to_list(Queues)),
    Conditions = try
                     erpc:call(Node, lists, map, [fun rabbit_delay_condition:of_here/1, XNames], ?ASK_MS)
                 catch
                     _:_ -> [unknown || _ <- XNames]
                 end,
    maps:from_list(lists:zip(Pids, Conditions)).

said(Queue, Node, Condition, #state{followers = Followers} = State) ->
    case Followers of
        #{Queue := #follower{node = Node, said = Said} = Follower} when Said =/= Condition ->
            Queue ! {condition, Node, Condition},
            State#state{followers = Followers#{Queue := Follower#follower{said = Condition}}};
        _ ->
            State
    end.

ask_again_later(#state{followers = Followers, timer = undefined} = State) when map_size(Followers) > 0 ->
    State#state{timer = erlang:send_after(?AGAIN_MS, self(), ask)};
ask_again_later(State) ->
    State.
