%% SPDX-License-Identifier: MPL-2.0

%% What the log says, and what a simulated cluster may do: the oracle. It applies each entry when it is
%% committed, by what docs/internals says of it and without the store, and judges what members answer and
%% hold, what is released, confirmed and delivered. What is wrong is thrown, as {violation, What, Details}.
%%
%% Messages are numbered, and each is sent once by its publisher.
-module(simulated_model).

-export([begin_all/0, committed/4, applied/5, installed/3, ids/1]).
-export([confirmed/1, untold/2, sent/5, lost/1, accepted/2, answered/2, at_end/2]).

-define(LEASE_MS, 500).
%% At every so many-th index all that is held is compared.
-define(ALL_OF, 16).

-record(pending, {number :: pos_integer(), due :: integer(), key :: non_neg_integer()}).

-record(model,
        {pending = #{} :: #{Id :: non_neg_integer() => #pending{}},
         opened = #{} :: #{pos_integer() => {binary(), binary(), non_neg_integer()}},
         paused = false :: boolean(),
         %% of each message that was stored: the index from which it had a due time, or none, newest first
         history = #{} :: #{pos_integer() => [{pos_integer(), integer() | gone}]},
         %% whose record has taken effect, whatever that was
         stored = #{} :: #{pos_integer() => pos_integer()}}).

%% One attempt to give a message to a queue.
-record(attempt, {dispatcher :: term(), client :: pid(), answer = none :: none | settled | rejected,
                  accepted = false :: boolean()}).

begin_all() ->
    _ = erlang:put(?MODULE, #model{}),
    _ = erlang:put(attempts, #{}),
    _ = erlang:put(untold, []),
    ok.

model() -> erlang:get(?MODULE).

-spec wrong(atom(), term()) -> no_return().
wrong(What, Details) -> throw({violation, What, Details}).

%% What a member that has applied so much shows to operators.
ids(Index) ->
    [{Id, N} || {Id, #pending{number = N}} <- maps:to_list((model())#model.pending), held_at(N, Index) =/= gone].

%% When a message was due by the log up to there.
held_at(Number, Index) ->
    case [What || {At, What} <- maps:get(Number, (model())#model.history, []), At =< Index] of
        [What | _] -> What;
        [] -> gone
    end.

is_stored(Number) -> maps:is_key(Number, (model())#model.stored).

%% ------------------------------------------------------------------------------- entries

committed(Index, Term, Time, Command) ->
    simulated_versions:needed_by(Command) =< simulated_versions:in_effect(Index) orelse
        wrong(not_in_effect, {Index, element(1, Command), element(2, Command)}),
    {Reply, Model} = entry(Command, Index, Term, Time, model()),
    _ = erlang:put(?MODULE, Model),
    _ = erlang:put({reply, Index}, {Reply, held(Index, Model)}),
    ok.

%% How many are pending after it, and now and then which.
held(Index, #model{pending = Pending}) when Index rem ?ALL_OF =:= 0 ->
    lists:sort([{Due, Id, Key} || {Id, #pending{due = Due, key = Key}} <- maps:to_list(Pending)]);
held(_, #model{pending = Pending}) ->
    map_size(Pending).

entry({noop, _}, Index, _, _, M) ->
    {case simulated_versions:raised_at(Index) of
         none -> none;
         {_, _} -> ok
     end, M};
entry({note, 1}, Index, Term, _, #model{paused = Paused} = M) ->
    {{ok, #{machine_version => simulated_versions:in_effect(Index), term => Term, paused => Paused}}, M};
entry({open, 1, Node, Nonce}, Index, _, _, #model{opened = Opened} = M) ->
    case [{Session, Last} || {Session, {N, Once, Last}} <- maps:to_list(Opened), N =:= Node, Once =:= Nonce] of
        [{Session, Last}] ->
            {{ok, Session, Last}, M};
        [] ->
            Others = maps:filter(fun (_, {N, _, _}) -> N =/= Node end, Opened),
            {{ok, Index, 0}, M#model{opened = Others#{Index => {Node, Nonce, 0}}}}
    end;
entry({enqueue, Version, Session, SeqNo, _, Batch}, Index, _, Time, #model{opened = Opened} = M) ->
    case Opened of
        #{Session := {Node, Nonce, Last}} when SeqNo =:= Last + 1 ->
            batch(Version, Batch, Index, Time + 1,
                  M#model{opened = Opened#{Session := {Node, Nonce, SeqNo}}});
        #{Session := {_, _, Last}} when SeqNo =< Last -> {ok, M};
        #{Session := {_, _, Last}} -> {{gap, Last}, M};
        _ -> {{error, unknown_session}, M}
    end;
entry({settle, Version, Released}, Index, _, _, M) ->
    Gone = [Id || <<Id:64/little, Due:64/little>> <= Released,
                  #{Id := #pending{due = Now}} <- [M#model.pending],
                  case Version of 2 -> Now =:= Due; 3 -> Now =< Due end],
    lists:foreach(fun (Id) -> was_delivered(map_get(Id, M#model.pending), Index) end, Gone),
    {{ok, length(Gone)}, gone(Gone, Index, M)};
entry({cancel, 2, Term, Ids}, Index, Term, _, M) ->
    Gone = [Id || <<Id:64/little>> <= Ids, is_map_key(Id, M#model.pending)],
    lists:foreach(fun (Id) -> in_no_hands(map_get(Id, M#model.pending), Term) end, Gone),
    {{ok, length(Gone)}, gone(Gone, Index, M)};
entry({reschedule, 2, Term, Dues}, Index, Term, _, M) ->
    Moved = [{Id, Due} || <<Id:64/little, Due:64/little>> <= Dues, is_map_key(Id, M#model.pending)],
    {{ok, length(Moved)}, lists:foldl(fun ({Id, Due}, Acc) -> due(Id, Due, Index, Acc) end, M, Moved)};
entry({Change, 2, _, _}, _, Term, _, M) when Change =:= cancel; Change =:= reschedule ->
    {{error, {other_term, Term}}, M};
entry({purge, 1}, Index, _, _, M) ->
    Ids = maps:keys(M#model.pending),
    {{ok, #{removed => length(Ids)}}, gone(Ids, Index, M)};
entry({pause, 1}, _, _, _, M) -> {ok, M#model{paused = true}};
entry({resume, 1}, _, _, _, M) -> {ok, M#model{paused = false}}.

batch(_, <<>>, _, _, M) ->
    {ok, M};
batch(Version, Batch, Index, Base, M0) ->
    {M, _, Counts} = records(Batch, 0, Index, Base, M0, #{removed => 0, dropped => 0, released => []}),
    case Version of
        3 -> {ok, M};
        _ -> {{ok, Counts#{released := length([Id || Id <- lists:usort(map_get(released, Counts)), is_map_key(Id, M#model.pending)])}}, M}
    end.

records(<<>>, Position, _, _, M, Counts) ->
    {M, Position, Counts};
records(<<Length:32/little, Flags:16/little, _:16, When:64/little, Key:64/little, Body:Length/binary, Rest/binary>>,
        Position, Index, Base, #model{stored = Stored} = M0, Counts0) ->
    Number = case {Flags bsr 1 band 7, Body} of
                 {Use, <<>>} when Use =:= 3; Use =:= 4 -> none;
                 {_, _} -> maps:get(n, binary_to_term(Body))
             end,
    _ = Number =/= none andalso is_map_key(Number, Stored) andalso wrong(stored_twice, Number),
    Due = case Flags band 1 of
              1 -> When;
              0 -> Base + When
          end,
    Under = case Key of
                0 -> [];
                _ -> lists:sort([Id || {Id, #pending{key = K}} <- maps:to_list(M0#model.pending), K =:= Key])
            end,
    Id = Index bsl 16 + Position,
    {M, Counts} =
        case Flags bsr 1 band 7 of
            0 -> {insert(Id, Number, Due, Key, Index, M0), Counts0};
            1 -> {insert(Id, Number, Due, Key, Index, gone(Under, Index, M0)), more(removed, length(Under), Counts0)};
            2 when Under =:= [] -> {insert(Id, Number, Due, Key, Index, M0), Counts0};
            2 -> {M0, more(dropped, 1, Counts0)};
            3 -> {gone(Under, Index, M0), more(removed, length(Under), Counts0)};
            4 ->
                Later = [I || I <- Under, (map_get(I, M0#model.pending))#pending.due > Base],
                {lists:foldl(fun (I, Acc) -> due(I, Base, Index, Acc) end, M0, Later),
                 Counts0#{released := Later ++ map_get(released, Counts0)}}
        end,
    records(Rest, Position + 1, Index, Base,
            case Number of
                none -> M;
                _ -> M#model{stored = (M#model.stored)#{Number => Index}}
            end, Counts).

more(What, N, Counts) -> maps:update_with(What, fun (M) -> M + N end, Counts).

insert(Id, Number, Due, Key, Index, #model{pending = Pending} = M) ->
    since(Number, Index, Due, M#model{pending = Pending#{Id => #pending{number = Number, due = Due, key = Key}}}).

since(Number, Index, What, #model{history = History} = M) ->
    M#model{history = maps:update_with(Number, fun (Before) -> [{Index, What} | Before] end, [{Index, What}], History)}.

gone(Ids, Index, M) ->
    lists:foldl(fun (Id, #model{pending = Pending} = Acc) ->
                        {#pending{number = Number}, Rest} = maps:take(Id, Pending),
                        since(Number, Index, gone, Acc#model{pending = Rest})
                end, M, Ids).

due(Id, Due, Index, #model{pending = Pending} = M) ->
    #{Id := #pending{number = Number} = P} = Pending,
    since(Number, Index, Due, M#model{pending = Pending#{Id := P#pending{due = Due}}}).

%% ------------------------------------------------------------------------------- members

%% A member has applied an entry, for the first time or again. Replicas at one index hold the same.
applied(Node, Index, IsNew, Reply, State) ->
    {Expected, _} = erlang:get({reply, Index}),
    _ = IsNew andalso shown(Reply) =/= Expected andalso wrong(answer, {Node, Index, Reply, Expected}),
    same(Node, Index, State).

shown({ok, #{cancelled := C, replaced := R, taken := T, dropped := D, released := Released}}) ->
    {ok, #{removed => C + R + T, dropped => D, released => Released}};
shown({ok, #{removed := Removed, taken := _}}) ->
    {ok, #{removed => Removed}};
shown(Reply) ->
    Reply.

installed(Node, Index, State) -> same(Node, Index, State).

same(Node, Index, State) ->
    case rabbit_delay_digest:of_state(State) of
        {Index, {Pending, _} = Held} ->
            ok = holds(Node, Index, Pending, State),
            case erlang:put({digest, Index}, Held) of
                undefined -> ok;
                Held -> ok;
                Other -> wrong(replicas_differ, {Node, Index, Held, Other})
            end;
        _ ->
            %% Its store was here before.
            ok
    end.

%% A member holds what the log says.
holds(Node, Index, Pending, State) ->
    case erlang:get({reply, Index}) of
        {_, Pending} ->
            ok;
        {_, All} when is_list(All) ->
            {ok, Page} = rabbit_delay_store:page(rabbit_delay_machine:store(State), {0, 0}, Pending + 1),
            case [{Due, Id, Key} || #{id := Id, due := Due, key_hash := Key} <- Page] of
                All -> ok;
                Held -> wrong(holds_other, {Node, Index, Held -- All, All -- Held})
            end;
        {_, Other} ->
            wrong(holds_other, {Node, Index, Pending, Other})
    end.

%% ------------------------------------------------------------------------------- deliveries

%% A dispatcher gives a message to a queue.
sent(Number, Queue, Node, Dispatcher, Client) ->
    Now = simulated_process:clock(Node),
    {_, Term} = Dispatcher,
    simulated_process:note("~b goes to ~ts from ~p, which has applied ~b, ~p",
                           [Number, element(4, Queue), Node, simulated_raft:applied(Node), Dispatcher]),
    %% It begins when it has seen all that was there when it was elected.
    case held_at(Number, max(simulated_raft:applied(Node), simulated_raft:first_of(Term))) of
        gone -> wrong(released_though_gone, {Number, Node});
        Due when Due > Now -> wrong(early, {Number, Node, Due, Now});
        _ -> ok
    end,
    case simulated_raft:deposed_at(Node, Term) of
        never -> ok;
        At -> simulated_process:now() - At =< ?LEASE_MS orelse
                  wrong(released_by_a_former_leader, {Number, Node, Term, At})
    end,
    Attempts = attempts(Number, Queue),
    _ = [wrong(sent_twice, {Number, Queue, Dispatcher, Attempt})
         || #attempt{dispatcher = D, answer = Answer} = Attempt <- Attempts, D =:= Dispatcher, Answer =/= rejected],
    set_attempts(Number, Queue, [#attempt{dispatcher = Dispatcher, client = Client} | Attempts]),
    {Number, Queue, length(Attempts) + 1}.

attempts(Number, Queue) -> maps:get({Number, Queue}, erlang:get(attempts), []).

set_attempts(Number, Queue, Attempts) ->
    _ = erlang:put(attempts, (erlang:get(attempts))#{{Number, Queue} => Attempts}),
    ok.

accepted(Attempt, true) -> change(Attempt, fun (A) -> A#attempt{accepted = true} end);
accepted(_, false) -> ok.

answered(Attempt, Answer) -> change(Attempt, fun (A) -> A#attempt{answer = Answer} end).

%% What a client that is lost has not been answered may be sent again.
lost(Client) ->
    _ = erlang:put(attempts, maps:map(fun (_, Attempts) ->
                                              [case A of
                                                   #attempt{client = Client, answer = none} ->
                                                       A#attempt{answer = rejected};
                                                   _ -> A
                                               end || A <- Attempts]
                                      end, erlang:get(attempts))),
    ok.

change({Number, Queue, Nth}, Fun) ->
    Attempts = attempts(Number, Queue),
    {Later, [A | Before]} = lists:split(length(Attempts) - Nth, Attempts),
    set_attempts(Number, Queue, Later ++ [Fun(A) | Before]).

%% What is cancelled is not released, too, by the dispatcher that was asked.
in_no_hands(#pending{number = Number}, Term) ->
    Dispatcher = {simulated_process:named(simulated_raft:true_leader(), dispatcher), Term},
    _ = [wrong(cancelled_in_flight, {Number, Attempt})
         || Queue <- simulated_broker:queues(Number),
            #attempt{dispatcher = D, answer = A} = Attempt <- attempts(Number, Queue), D =:= Dispatcher, A =/= rejected],
    ok.

%% It is settled only when all its queues have it.
was_delivered(#pending{number = Number}, Index) ->
    Missing = [Queue || Queue <- simulated_broker:queues(Number),
                        not lists:any(fun (#attempt{accepted = A}) -> A end, attempts(Number, Queue))],
    Missing =:= [] orelse wrong(settled_undelivered, {Number, Missing, Index}).

confirmed(Number) ->
    is_stored(Number) orelse wrong(confirmed_unstored, Number).

%% It came to this delay queue process, and nobody hears of its rejection.
untold(Number, Queue) ->
    _ = erlang:put(untold, [{Number, Queue} | erlang:get(untold)]),
    ok.

%% Only what ends that process loses it, or that its session is forgotten.
is_lost({Number, Queue}) ->
    not is_stored(Number) andalso case simulated_process:is_there(Queue) orelse simulated_process:ended_with(Queue) of
                                      true -> true;
                                      {session_lost, _, Last} -> is_integer(Last);
                                      _ -> false
                                  end.

%% All faults are over, and enough time has gone by.
at_end(Nodes, Probes) ->
    #model{pending = Pending} = model(),
    lists:foreach(fun (Number) -> is_stored(Number) orelse wrong(never_stored, Number) end, Probes),
    Pending =:= #{} orelse wrong(never_released, Pending),
    Lost = lists:filter(fun is_lost/1, erlang:get(untold)),
    Lost =:= [] orelse wrong(lost, Lost),
    lists:foreach(fun (Node) ->
                          #{pending := N} = rabbit_delay_store:stat(
                                              rabbit_delay_machine:store(simulated_raft:state(Node))),
                          N =:= 0 orelse wrong(member_holds_more, {Node, N})
                  end, Nodes).
