%% SPDX-License-Identifier: MPL-2.0

%% Raft as the plugin's processes see it, and no more of it: one log of what is committed, members that have
%% stored and applied some of it, and a leader, which may be one that another has replaced and does not know
%% it. What that one has appended is never committed; what a leader had appended when another was elected is
%% there or not, in order. Elections come whenever there is no leader with a majority, and sometimes without
%% need.
%%
%% The machine is the plugin's own, one for each member, with the real store on disk; snapshots are taken,
%% sent and recovered from as its rabbit_delay_snapshot does.
-module(simulated_raft).

-export([begin_all/0, start_member/1, kill_member/1, look/0, who_leads/2, true_leader/0, deposed_at/2,
         applied/1, term/1, first_of/1, leads/1, state/1, transfer/0, replace/1, opens/1]).
%% ra
-export([pipeline_command/4, local_query/3, cast_aux_command/2]).

-define(M, rabbit_delay_machine).

-record(entry, {term :: pos_integer(), time :: integer(), command :: term(),
                from = none :: none | {Correlation :: term(), pid()}}).

-record(member, {node :: node(), role = follower :: follower | leader, term = 0 :: non_neg_integer(),
                 %% who leads, as it has heard
                 leader = undefined :: undefined | node(),
                 %% what it has stored of the log that is committed, and applied
                 stored = 0 :: non_neg_integer(), applied = 0 :: non_neg_integer(),
                 snapshot = none :: none | {Index :: non_neg_integer(), Dir :: file:filename()},
                 taken = 0 :: non_neg_integer(),
                 %% whether it counts for a majority: one that was just added has to catch up first
                 votes = true :: boolean(),
                 %% appended, not committed, the last one first
                 tail = [] :: [#entry{}],
                 %% it is about to commit some of them
                 commits = false :: boolean()}).

%% ------------------------------------------------------------------------------- all of it

begin_all() ->
    lists:foreach(fun ({K, V}) -> set(K, V) end,
                  [{commit, 0}, {term, 0}, {leader, none}, {elected, []}] ++
                      [{{member, Node}, #member{node = Node}} || Node <- simulated_process:all_nodes()]).

raft(Key) -> erlang:get({raft, Key}).

set(Key, Value) ->
    _ = erlang:put({raft, Key}, Value),
    ok.

member(Node) -> raft({member, Node}).

update(#member{node = Node} = M) -> set({member, Node}, M).

true_leader() -> raft(leader).

applied(Node) -> (member(Node))#member.applied.

term(Node) -> (member(Node))#member.term.

%% Or takes itself for the one that does.
leads(Node) -> (member(Node))#member.role =:= leader.

%% When another than the leader of this term was elected.
deposed_at(Node, Term) ->
    {Later, Others} = lists:splitwith(fun ({T, _, _}) -> T > Term end, raft(elected)),
    case {Others, Later} of
        {[{Term, Node, _} | _], []} -> never;
        {[{Term, Node, _} | _], _} -> element(3, lists:last(Later));
        _ -> 0
    end.

%% Its first entry.
first_of(Term) -> raft({first, Term}).

state(Node) -> erlang:get({?MODULE, machine, Node}).

%% ------------------------------------------------------------------------------- members

%% From its files, as Ra does it: its snapshot, and what was applied after that again.
start_member(Node) ->
    #member{snapshot = Snapshot} = M = member(Node),
    Pid = simulated_process:start(Node, member, {plain, undefined}, fun () -> {ok, {fun message/2, Node}} end),
    simulated_process:as(
      Pid,
      fun () ->
              Applied = case Snapshot of
                            none ->
                                ok = simulated_file:ensure_dir(simulated_node:dir(Node) ++ "/x"),
                                opened(Node, ?M:init(#{exchange => simulated_node:exchange(),
                                                       uid => atom_to_binary(Node)})),
                                0;
                            {Index, Dir} ->
                                ok = rabbit_delay_snapshot:validate(Dir),
                                {ok, #{index := Index}, State} = rabbit_delay_snapshot:recover(Dir),
                                opened(Node, State),
                                Index
                        end,
              update(M#member{role = follower, leader = undefined, applied = Applied, tail = [], commits = false})
      end),
    simulated_process:after_ms(1000, Node, fun () -> tick(Node, Pid) end),
    apply_soon(Node).

%% A member that does not lead is removed, and another, which has nothing, is added on its node: by a leader that the
%% third one hears, which has all that is committed then.
replace(Node) ->
    Leader = raft(leader),
    case Leader =/= none andalso Leader =/= Node andalso leads(Leader) andalso not leads(Node)
        andalso simulated_process:is_running(Node) andalso voters(Leader) -- [Leader, Node] of
        [Third] ->
            simulated_process:note("the member on ~p is replaced", [Node]),
            ok = stored(Third),
            ok = rabbit_delay_store:close(?M:store(state(Node))),
            simulated_process:kill(simulated_process:named(Node, member), removed),
            ok = simulated_file:forget(simulated_node:dir(Node)),
            #member{taken = Taken, term = Term} = member(Node),
            update(#member{node = Node, term = Term, taken = Taken, votes = false}),
            start_member(Node),
            simulated_process:after_ms(simulated_process:up_to(60), Node, fun () -> catch_up(Leader, Node) end);
        _ ->
            ok
    end.

machine(Node, State) -> erlang:put({?MODULE, machine, Node}, State).

opened(Node, State) ->
    #{applied := Found} = rabbit_delay_store:stat(?M:store(State)),
    _ = erlang:put({?MODULE, found_at, Node}, Found),
    machine(Node, State).

%% What it has not written is gone.
kill_member(Node) ->
    update((member(Node))#member{role = follower, tail = [], commits = false}),
    ok.

%% Followers hear later of what is committed.
apply_soon(Node) ->
    Ms = case leads(Node) of
             true -> 12;
             false -> 120
         end,
    simulated_process:after_ms(simulated_process:up_to(Ms), Node, fun () -> apply_some(Node) end).

%% A majority of members that vote, of three or of two, that hear each other, this one among them and all of them at
%% work.
has_majority(Node) -> length(voters(Node)) >= 2.

voters(Node) -> [Other || Other <- reached(Node), (member(Other))#member.votes].

reached(Node) ->
    [Other || Other <- simulated_process:all_nodes(), simulated_process:is_running(Other),
              simulated_process:is_linked(Node, Other), simulated_process:is_linked(Other, Node)].

%% By what each of those that hear it knows of versions.
has_votes(Node) ->
    length([Voter || Voter <- voters(Node), #member{applied = Applied, stored = Stored} <- [member(Voter)],
                     simulated_versions:votes(Voter, Node, Applied, Stored)]) >= 2.

%% ------------------------------------------------------------------------------- elections

%% Now and then.
look() ->
    Leader = raft(leader),
    case Leader =/= none andalso simulated_process:is_running(Leader) andalso has_majority(Leader)
        andalso (member(Leader))#member.role =:= leader of
        true -> ok;
        false -> simulated_process:chance(30) andalso elect(Leader)
    end,
    lists:foreach(fun hear/1, simulated_process:all_nodes()).

%% Another one is to lead, for no reason.
transfer() -> elect(raft(leader)).

elect(Old) ->
    case [Node || Node <- simulated_process:all_nodes(), simulated_process:is_running(Node), has_votes(Node),
                  has_all(Node)] of
        [] ->
            ok;
        Candidates ->
            Node = simulated_process:one_of(Candidates),
            Term = raft(term) + 1 + simulated_process:up_to(1),
            %% What it has of the old leader's, uncommitted.
            Kept = case Old =/= none andalso Old =/= Node andalso simulated_process:is_up(Old)
                       andalso member(Old) of
                       #member{tail = [_ | _] = Tail} ->
                           lists:sublist(lists:reverse(Tail), simulated_process:up_to(length(Tail)));
                       #member{} -> [];
                       false when Old =:= Node -> lists:reverse((member(Node))#member.tail);
                       false -> []
                   end,
            simulated_process:note("~p elected in term ~b, of ~p, with ~b of its entries",
                                   [Node, Term, Old, length(Kept)]),
            lists:foreach(fun commit/1, Kept),
            set(term, Term),
            set(elected, [{Term, Node, simulated_process:now()} | raft(elected)]),
            set({first, Term}, raft(commit) + 1),
            set(leader, Node),
            M = member(Node),
            commit(#entry{term = Term, time = simulated_process:clock(Node),
                          command = {noop, simulated_versions:of_first(Node, M#member.applied)}}),
            WasLeader = M#member.role =:= leader,
            update(M#member{role = leader, term = Term, leader = Node, tail = [], stored = raft(commit)}),
            _ = WasLeader andalso entered(Node, follower),
            _ = entered(Node, leader),
            ask_versions(Node),
            store_soon(Node),
            apply_soon(Node)
    end.

%% What is committed was stored by a majority: whoever wins their votes has it.
has_all(Node) ->
    #member{stored = Stored, votes = Votes} = member(Node),
    Votes andalso Stored =:= raft(commit).

%% Now and then a member hears of a later term; and with the first entry of it.
hear(Node) ->
    Leader = raft(leader),
    case Leader =/= none andalso simulated_process:is_running(Node) andalso simulated_process:is_running(Leader)
        andalso simulated_process:is_linked(Leader, Node) andalso simulated_process:chance(70) of
        true -> heard(Node);
        false -> ok
    end.

heard(Node) ->
    #member{role = Role, term = Before, leader = Known} = M = member(Node),
    case raft(term) of
        Term when Term > Before ->
            update(M#member{role = follower, term = Term, leader = raft(leader), tail = []}),
            _ = Role =:= leader andalso entered(Node, follower),
            ok;
        %% It was started in that term.
        Before when Known =:= undefined ->
            update(M#member{leader = raft(leader)});
        _ ->
            ok
    end.

%% Of the others'. That of all of them is appended, as often as it is found to be another than what is in effect.
ask_versions(Node) ->
    #member{applied = Applied, term = Term} = member(Node),
    InEffect = simulated_versions:in_effect(Applied),
    case simulated_versions:has_heard(Node, Term, reached(Node) -- [Node]) of
        Version when is_integer(Version), Version > InEffect ->
            append(Node, {noop, Version}, none);
        _ ->
            ok
    end.

entered(Node, Role) ->
    Pid = simulated_process:named(Node, member),
    simulated_process:as(Pid, fun () -> effects(?M:state_enter(Role, state(Node)), Node) end).

who_leads(Asker, Ids) ->
    Answers = [Leader || {_, Node} <- Ids, simulated_process:is_running(Node),
                         simulated_process:is_linked(Asker, Node), simulated_process:is_linked(Node, Asker),
                         Leader <- [(member(Node))#member.leader], Leader =/= undefined],
    case Answers of
        [Leader | _] -> {ok, {member, Leader}};
        [] -> none
    end.

%% ------------------------------------------------------------------------------- the log

pipeline_command(ServerId, Command, Correlation, normal) ->
    _ = simulated_process:send(ServerId, {command, Command, Correlation, simulated_process:self()}),
    ok.

local_query({_, Node} = ServerId, Fun, _) ->
    {ok, {{applied(Node), (member(Node))#member.term}, Fun(state(Node))}, ServerId}.

cast_aux_command(ServerId, Command) ->
    _ = simulated_process:send(ServerId, {aux, Command}),
    ok.

message({command, Command, Correlation, From}, Node) ->
    case member(Node) of
        #member{role = leader} ->
            append(Node, Command, {Correlation, From});
        #member{leader = Leader} ->
            Known = case Leader of
                        undefined -> undefined;
                        _ -> {member, Leader}
                    end,
            simulated_process:send(From, {ra_event, {member, Node}, {rejected, {not_leader, Known, Correlation}}})
    end,
    Node;
message({aux, Command}, Node) ->
    aux(Node, Command),
    Node.

%% What a delay queue process of this node had sent that is gone comes to the leader.
opens(Node) ->
    Leader = raft(leader),
    case Leader =/= none andalso simulated_process:is_running(Leader) andalso leads(Leader) of
        true ->
            simulated_process:note("an earlier opening of ~p comes late", [Node]),
            Nonce = <<"late ", (integer_to_binary(raft(commit)))/binary>>,
            append(Leader, {open, 1, atom_to_binary(Node), Nonce}, none);
        false ->
            ok
    end.

append(Node, Command, From) ->
    #member{term = Term, tail = Tail, commits = Commits} = M = member(Node),
    update(M#member{tail = [#entry{term = Term, time = simulated_process:clock(Node), command = Command, from = From}
                            | Tail], commits = true}),
    _ = Commits orelse
        simulated_process:after_ms(1 + simulated_process:up_to(6), Node, fun () -> commit_tail(Node) end),
    ok.

%% By the leader, if it is one still, and a majority hears it.
commit_tail(Node) ->
    #member{role = Role, tail = Tail, term = Term} = M = member(Node),
    case Role =:= leader andalso Tail =/= [] andalso raft(leader) =:= Node andalso raft(term) =:= Term
        andalso has_majority(Node) of
        true ->
            Some = lists:sublist(lists:reverse(Tail), 1 + simulated_process:up_to(length(Tail) - 1)),
            lists:foreach(fun commit/1, Some),
            update(M#member{tail = lists:sublist(Tail, length(Tail) - length(Some)), stored = raft(commit)}),
            store_soon(Node),
            apply_soon(Node),
            commit_later(Node, 1);
        false when Role =:= leader, Tail =/= [] ->
            commit_later(Node, 40);
        false ->
            commit_later(Node, none)
    end.

commit_later(Node, Ms) ->
    #member{tail = Tail} = M = member(Node),
    update(M#member{commits = Tail =/= [] andalso Ms =/= none}),
    _ = Tail =/= [] andalso Ms =/= none andalso
        simulated_process:after_ms(Ms, Node, fun () -> commit_tail(Node) end),
    ok.

commit(#entry{term = Term, time = Time, command = Command} = Entry) ->
    Index = raft(commit) + 1,
    set({entry, Index}, Entry),
    set(commit, Index),
    _ = is_tuple(Command) andalso element(1, Command) =:= noop
        andalso simulated_versions:appended(Index, element(2, Command)),
    simulated_model:committed(Index, Term, Time, Command).

%% One follower that the leader reaches, and that votes, has it at once, which makes the majority, and the others later.
store_soon(Leader) ->
    Others = reached(Leader) -- [Leader],
    case voters(Leader) -- [Leader] of
        [] ->
            ok;
        Voters ->
            First = simulated_process:one_of(Voters),
            stored(First),
            lists:foreach(fun (Node) -> simulated_process:after_ms(simulated_process:up_to(60), Node,
                                                                   fun () -> catch_up(Leader, Node) end)
                          end, Others -- [First])
    end.

catch_up(Leader, Node) ->
    case simulated_process:is_running(Leader) andalso simulated_process:is_linked(Leader, Node)
        andalso simulated_process:is_linked(Node, Leader) of
        true -> stored(Node);
        false -> ok
    end.

stored(Node) ->
    ok = heard(Node),
    update((member(Node))#member{stored = raft(commit), votes = true}),
    apply_soon(Node).

%% A few at a time; a member that lacks many may be sent a snapshot for them.
apply_some(Node) ->
    #member{applied = Applied} = member(Node),
    Stored = to_apply(Node),
    case Applied < Stored of
        true ->
            Leader = raft(leader),
            case snapshot_for(Node, Leader, Applied) of
                none -> apply_to(Node, min(Stored, Applied + 1 + simulated_process:up_to(7)));
                Snapshot -> install(Node, Snapshot)
            end,
            (member(Node))#member.applied < to_apply(Node) andalso apply_soon(Node);
        false ->
            ok
    end.

to_apply(Node) -> min((member(Node))#member.stored, simulated_versions:goes_up_to(Node)).

apply_to(Node, Last) ->
    Pid = simulated_process:named(Node, member),
    simulated_process:as(Pid, fun () -> apply_next(Node, Last, []) end).

apply_next(Node, Last, Replies) ->
    case member(Node) of
        #member{applied = Last} ->
            answer(Node, lists:reverse(Replies));
        #member{applied = Applied, role = Role} ->
            Index = Applied + 1,
            #entry{from = From} = Entry = raft({entry, Index}),
            Reply = apply_entry(Node, Index, Entry),
            update((member(Node))#member{applied = Index}),
            apply_next(Node, Last, case From of
                                       {Correlation, Pid} when Role =:= leader -> [{Pid, Correlation, Reply} | Replies];
                                       _ -> Replies
                                   end)
    end.

apply_entry(Node, Index, #entry{command = {noop, _}} = Entry) ->
    case simulated_versions:raised_at(Index) of
        none -> none;
        {From, To} -> apply_entry(Node, Index, Entry#entry{command = {machine_version, From, To}})
    end;
apply_entry(Node, Index, #entry{term = Term, time = Time, command = Command}) ->
    State0 = state(Node),
    %% Its store may be further.
    IsNew = Index > erlang:get({?MODULE, found_at, Node}),
    {State, Reply, Effects} = case ?M:apply(#{index => Index, term => Term, system_time => Time,
                                              machine_version => simulated_versions:in_effect(Index)},
                                            Command, State0) of
                                  {S, R} -> {S, R, []};
                                  {S, R, E} -> {S, R, E}
                              end,
    machine(Node, State),
    ok = simulated_model:applied(Node, Index, IsNew, Reply, State),
    effects(Effects, Node),
    Reply.

answer(Node, Replies) ->
    Pids = lists:usort([Pid || {Pid, _, _} <- Replies]),
    lists:foreach(fun (Pid) ->
                          simulated_process:send(Pid, {ra_event, {member, Node},
                                                       {applied, [{C, shown_to(Pid, R)} || {P, C, R} <- Replies, P =:= Pid]}})
                  end, Pids).

shown_to(Pid, Reply) ->
    case simulated_process:where(Pid) of
        gone -> Reply;
        Node -> simulated_versions:shown_to(Node, Reply)
    end.

%% ------------------------------------------------------------------------------- effects and snapshots

effects(Effects, Node) when is_list(Effects) -> lists:foreach(fun (Effect) -> effect(Effect, Node) end, Effects);
effects(Effect, Node) -> effect(Effect, Node).

effect({mod_call, rabbit_delay_registry, Function, Args}, _) ->
    apply(simulated_node, Function, Args);
effect({mod_call, Module, Function, Args}, Node) ->
    _ = (member(Node))#member.role =:= leader andalso apply(Module, Function, Args),
    ok;
effect({release_cursor, Index, State}, Node) ->
    #member{snapshot = Snapshot, taken = Taken, applied = Applied} = M = member(Node),
    case Index > 0 andalso Index =< Applied + 1 andalso (Snapshot =:= none orelse Index > element(1, Snapshot)) of
        true ->
            Meta = #{index => Index, term => (raft({entry, Index}))#entry.term,
                     machine_version => simulated_versions:in_effect(Index), cluster => []},
            Ref = rabbit_delay_snapshot:prepare(Meta, State),
            Dir = snapshot_dir(Node, Taken + 1),
            update(M#member{taken = Taken + 1}),
            Pid = simulated_process:named(Node, member),
            simulated_process:after_ms(
              simulated_process:up_to(50), Node,
              fun () ->
                      simulated_process:is_there(Pid) andalso
                          simulated_process:as(Pid, fun () -> written(Node, Index, Dir, Meta, Ref) end)
              end);
        false ->
            ok
    end.

snapshot_dir(Node, N) ->
    Dir = filename:join([simulated_node:dir(Node), "snapshots", integer_to_list(N)]),
    ok = simulated_file:ensure_dir(filename:join(Dir, "x")),
    Dir.

written(Node, Index, Dir, Meta, Ref) ->
    case rabbit_delay_snapshot:write(Dir, Meta, Ref) of
        ok -> has_snapshot(Node, Index, Dir);
        %% Another was begun meanwhile, or the store opened again.
        {error, Given} when Given =:= enoent; Given =:= eclosed -> ok
    end.

has_snapshot(Node, Index, Dir) ->
    #member{snapshot = Before} = M = member(Node),
    case Before of
        {Later, _} when Later >= Index ->
            ok;
        _ ->
            update(M#member{snapshot = {Index, Dir}})
    end.

snapshot_for(Node, Leader, Applied) ->
    case Leader =/= none andalso Leader =/= Node andalso catching_up(Node) andalso (member(Leader))#member.snapshot of
        {Index, Dir} when Index > Applied + 8 ->
            case simulated_process:is_running(Leader) andalso simulated_process:is_linked(Leader, Node)
                andalso Index =< simulated_versions:goes_up_to(Node) of
                true -> {Index, Dir};
                false -> none
            end;
        _ ->
            none
    end.

catching_up(Node) -> (member(Node))#member.role =:= follower andalso simulated_process:chance(50).

install(Node, {Index, From}) ->
    Pid = simulated_process:named(Node, member),
    simulated_process:note("~p is sent the snapshot at ~b", [Node, Index]),
    simulated_process:as(
      Pid,
      fun () ->
              #member{taken = Taken} = M = member(Node),
              Dir = snapshot_dir(Node, Taken + 1),
              {ok, Meta, Read} = rabbit_delay_snapshot:begin_read(From, #{}),
              {ok, Accept} = rabbit_delay_snapshot:begin_accept(Dir, Meta),
              ok = chunks(Read, From, Accept),
              {ok, #{index := Index}, State} = rabbit_delay_snapshot:recover(Dir),
              opened(Node, State),
              update(M#member{taken = Taken + 1, applied = Index}),
              ok = has_snapshot(Node, Index, Dir),
              ok = simulated_model:installed(Node, Index, State)
      end).

chunks(Read, From, Accept) ->
    case rabbit_delay_snapshot:read_chunk(Read, 65536, From) of
        {ok, Chunk, last} ->
            rabbit_delay_snapshot:complete_accept(Chunk, Accept);
        {ok, Chunk, {next, Next}} ->
            {ok, Accepted} = rabbit_delay_snapshot:accept_chunk(Chunk, Accept),
            chunks(Next, From, Accepted)
    end.

%% ------------------------------------------------------------------------------- upkeep

%% Of a member that is there still, not of one in its place.
tick(Node, Pid) ->
    case simulated_process:is_there(Pid) of
        true ->
            aux(Node, tick),
            _ = leads(Node) andalso ask_versions(Node),
            _ = leads(Node) andalso
                simulated_process:as(Pid, fun () -> effects(?M:tick(simulated_process:clock(Node), state(Node)), Node) end),
            simulated_process:after_ms(1000, Node, fun () -> tick(Node, Pid) end);
        false ->
            ok
    end.

aux(Node, Command) ->
    #member{role = Role} = member(Node),
    simulated_process:as(
      simulated_process:named(Node, member),
      fun () ->
              case ?M:handle_aux(Role, cast, Command, undefined, log, state(Node)) of
                  {no_reply, undefined, log} -> ok;
                  {no_reply, undefined, log, Effects} -> effects(Effects, Node)
              end
      end).
