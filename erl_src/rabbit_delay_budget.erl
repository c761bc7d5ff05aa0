%% SPDX-License-Identifier: MPL-2.0

%% What all who look at messages or read much else may use together, so that many who ask at a time take
%% no more of the node than a few do. Who finds too little left waits for a while, in the order of
%% asking, and is told then that it is busy. What a process has is given back when it ends.
%%
%%   bytes   memory for messages that are read and shown
%%   looks   queues that are looked at, each of which then has less time for its own work
%%   counts  of all that is pending, each of which has a dirty scheduler meanwhile
%%   blocks  members' files that are read through (rabbit_delay_blocks)
%%
%% The process of this module owns what is left and who waits; Fun of with/3 runs in the process that
%% asks.
-module(rabbit_delay_budget).

-behaviour(gen_server).

-export([start_link/0, with/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([kind/0]).

-type kind() :: bytes | looks | counts | blocks.
-type waiting() :: {gen_server:from(), reference(), kind(), pos_integer()}.

-define(TOTALS, #{bytes => 134217728, looks => 4, counts => 1, blocks => 2}).
-define(WAIT_MS, 15000).
-define(MAX_WAITING, 1000).

-record(state, {left = ?TOTALS :: #{kind() => non_neg_integer()},
                held = #{} :: #{reference() => {kind(), pos_integer()}},
                waiting = queue:new() :: queue:queue(waiting())}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Runs Fun when so much is left, which it has until it returns. Who asks for more than there is in all
%% gets all; Fun itself may ask for no more of the kind, and has that.
-spec with(kind(), Amount :: pos_integer(), fun(() -> Result)) ->
          Result | {error, {unavailable, Why :: binary()}}.
with(Kind, Amount, Fun) ->
    case get({?MODULE, Kind}) of
        undefined -> take(Kind, Amount, Fun);
        true -> Fun()
    end.

take(Kind, Amount, Fun) ->
    try gen_server:call(?MODULE, {take, Kind, min(Amount, maps:get(Kind, ?TOTALS))},
                        2 * ?WAIT_MS) of
        {ok, Ref} ->
            put({?MODULE, Kind}, true),
            try
                Fun()
            after
                erase({?MODULE, Kind}),
                gen_server:cast(?MODULE, {give_back, Ref})
            end;
        busy ->
            busy()
    catch
        exit:{_, {gen_server, call, [?MODULE | _]}} -> busy()
    end.

busy() ->
    {error, {unavailable, <<"others look at messages on this node, as many as may at a time; try "
                            "again">>}}.

-spec init([]) -> {ok, #state{}}.
init([]) ->
    {ok, #state{}}.

-spec handle_call(term(), gen_server:from(), #state{}) ->
          {reply, busy, #state{}} | {noreply, #state{}}.
handle_call({take, _, _}, _, #state{held = Held} = State) when map_size(Held) > ?MAX_WAITING ->
    {reply, busy, State};
handle_call({take, Kind, Amount}, {Pid, _} = From, #state{waiting = Waiting} = State) ->
    Ref = monitor(process, Pid),
    _ = erlang:send_after(?WAIT_MS, self(), {too_long, Ref}),
    {noreply, serve(State#state{waiting = queue:in({From, Ref, Kind, Amount}, Waiting)})}.

-spec handle_cast({give_back, reference()}, #state{}) -> {noreply, #state{}}.
handle_cast({give_back, Ref}, State) ->
    true = demonitor(Ref, [flush]),
    {noreply, serve(forget(Ref, State))}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({'DOWN', Ref, process, _, _}, State) ->
    {noreply, serve(forget(Ref, State))};
handle_info({too_long, Ref}, #state{held = Held} = State) when is_map_key(Ref, Held) ->
    {noreply, State};
handle_info({too_long, Ref}, #state{waiting = Waiting} = State) ->
    _ = [gen_server:reply(From, busy) || {From, R, _, _} <- queue:to_list(Waiting), R =:= Ref],
    true = demonitor(Ref, [flush]),
    {noreply, serve(forget(Ref, State))};
handle_info(_, State) ->
    {noreply, State}.

forget(Ref, #state{held = Held, left = Left, waiting = Waiting} = State) ->
    case maps:take(Ref, Held) of
        {{Kind, Amount}, Others} ->
            State#state{held = Others, left = maps:update_with(Kind, fun (N) -> N + Amount end, Left)};
        error ->
            State#state{waiting = queue:filter(fun ({_, R, _, _}) -> R =/= Ref end, Waiting)}
    end.

%% In order within a kind.
serve(#state{waiting = Waiting} = State) ->
    {Served, Left, _} = lists:foldl(fun serve_one/2, {State, [], []}, queue:to_list(Waiting)),
    Served#state{waiting = queue:from_list(lists:reverse(Left))}.

serve_one({From, Ref, Kind, Amount} = W, {#state{left = Left, held = Held} = State, Waiting, Stuck}) ->
    case Left of
        #{Kind := N} when N >= Amount ->
            case lists:member(Kind, Stuck) of
                false ->
                    gen_server:reply(From, {ok, Ref}),
                    {State#state{left = Left#{Kind := N - Amount},
                                 held = Held#{Ref => {Kind, Amount}}}, Waiting, Stuck};
                true ->
                    {State, [W | Waiting], Stuck}
            end;
        _ ->
            {State, [W | Waiting], [Kind | Stuck]}
    end.
