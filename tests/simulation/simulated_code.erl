%% SPDX-License-Identifier: MPL-2.0

%% The plugin's own modules, compiled from their sources for a simulation: whatever a process asks of the
%% Erlang VM, of Ra or of the broker goes to the simulation instead, and nothing else is changed. So one
%% process of the VM can be all processes of a cluster, in an order that is drawn from a seed.
-module(simulated_code).

-export([load/2, mutations/0]).

-export_type([mutation/0]).

%% What a function is replaced by, so that the simulation is seen to miss it: its module and its clauses; or clauses
%% that come before its own.
-type mutation() :: {module(), Function :: string() | {before, Clauses :: string()}}.

%% Those whose code is simulated.
-define(MODULES,
        ["exchange/rabbit_delay_queue", "exchange/rabbit_delay_intake", "exchange/rabbit_delay_append",
         "exchange/rabbit_delay_batch", "exchange/rabbit_delay_waiting", "exchange/rabbit_delay_condition",
         "exchange/rabbit_delay_conditions",
         "exchange/rabbit_delay_dispatcher", "exchange/rabbit_delay_release",
         "exchange/rabbit_delay_outcomes", "exchange/rabbit_delay_agenda", "exchange/rabbit_delay_watch",
         "exchange/rabbit_delay_overflow", "exchange/rabbit_delay_retry", "exchange/rabbit_delay_lease",
         "exchange/rabbit_delay_in_flight", "exchange/rabbit_delay_changes",
         "raft/rabbit_delay_commands", "raft/rabbit_delay_machine", "raft/rabbit_delay_snapshot"]).

%% What the VM does for a process.
-define(OF_VM,
        [self, node, nodes, make_ref, spawn, spawn_opt, spawn_monitor, monitor, demonitor, link, unlink,
         exit, put, get, erase, process_flag, process_info, whereis, send_after, start_timer,
         cancel_timer, monotonic_time, system_time]).
%% That take the other number of arguments for what it is: exit/1 ends the caller.
-define(AS_THEY_ARE, [{exit, 1}, {get, 0}, {node, 1}]).

%% Whose functions the simulation has.
-define(OF_OTHERS,
        #{ra => simulated_raft,
          rabbit_delay_registry => simulated_node,
          rabbit_delay_table => simulated_node,
          rabbit_delay_group => simulated_node,
          rabbit_delay_system => simulated_node,
          rabbit_delay_raft => simulated_node,
          rabbit_delay_local_member => simulated_node,
          rabbit_delay_newer => simulated_node,
          gen_server => simulated_process,
          gen_batch_server => simulated_process,
          net_kernel => simulated_process,
          erpc => simulated_process,
          file => simulated_file,
          ra_lib => simulated_file,
          credit_flow => simulated_broker,
          rabbit_delay_broker => simulated_broker,
          rabbit_delay_policy => simulated_broker,
          rabbit_delay_config => simulated_broker,
          rabbit_delay_publisher => simulated_broker,
          rabbit_delay_destinations => simulated_broker,
          rabbit_delay_exchange => simulated_broker}).

%% What waits for another process, which has nothing to wait for here.
-define(WAITS, [{rabbit_delay_queue, "key_salt(XName) -> {ok, Salt} = rabbit_delay_group:key_salt(XName), Salt."}]).

%% Loads them all, with these functions replaced. Each is compiled once as it is.
-spec load(Root :: file:filename(), [mutation()]) -> ok.
load(Root, Mutations) ->
    lists:foreach(
      fun (Name) ->
              Module = list_to_atom(filename:basename(Name)),
              Beam = case [Text || {M, Text} <- Mutations, M =:= Module] of
                         [] -> as_it_is(Root, Name, Module);
                         Texts -> compiled(Root, Name, Module, Texts)
                     end,
              {module, Module} = code:load_binary(Module, Name, Beam)
      end, ?MODULES).

as_it_is(Root, Name, Module) ->
    case get({compiled, Module}) of
        undefined ->
            Beam = compiled(Root, Name, Module, []),
            _ = put({compiled, Module}, Beam),
            Beam;
        Beam ->
            Beam
    end.

compiled(Root, Name, Module, Texts) ->
    Forms = mutated(forms(Root, Name), [Text || {M, Text} <- ?WAITS, M =:= Module] ++ Texts),
    _ = put(own, [{F, A} || {function, _, F, A, _} <- Forms]),
    {ok, Module, Beam} = compile:forms([simulated(Form) || Form <- Forms],
                                       [nowarn_unused_function, nowarn_unused_vars]),
    Beam.

forms(Root, Name) ->
    File = filename:join([Root, "erl_src", Name ++ ".erl"]),
    {ok, Forms} = epp:parse_file(File, [{includes, [filename:join(Root, "include"), filename:dirname(File)]}]),
    [] = [Error || {error, Error} <- Forms],
    Forms.

mutated(Forms, Texts) -> lists:foldl(fun mutate/2, Forms, Texts).

mutate({before, Text}, Forms) ->
    change(Text, fun (Clauses, Own) -> Clauses ++ Own end, Forms);
mutate(Text, Forms) ->
    change(Text, fun (Clauses, _) -> Clauses end, Forms).

change(Text, Change, Forms) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, {function, _, Name, Arity, Clauses}} = erl_parse:parse_form(Tokens),
    [_] = [found || {function, _, N, A, _} <- Forms, N =:= Name, A =:= Arity],
    [case Form of
         {function, Line, Name, Arity, Own} -> {function, Line, Name, Arity, Change(Clauses, Own)};
         _ -> Form
     end || Form <- Forms].

%% Guards cannot ask the simulation which node this is: it is an argument more of the function.
simulated({function, Line, Name, Arity, Clauses} = Function) ->
    case asks_in_guard(Clauses) of
        true -> with_node(Line, Name, Arity, Clauses);
        false -> rewritten(Function)
    end;
simulated(Form) ->
    Form.

asks_in_guard(Term) ->
    case Term of
        {clause, _, _, Guards, Body} -> asks_node(Guards) orelse asks_in_guard(Body);
        _ when is_tuple(Term) -> asks_in_guard(tuple_to_list(Term));
        [Head | Tail] -> asks_in_guard(Head) orelse asks_in_guard(Tail);
        _ -> false
    end.

asks_node({call, _, {atom, _, node}, []}) -> true;
asks_node(Term) when is_tuple(Term) -> asks_node(tuple_to_list(Term));
asks_node([Head | Tail]) -> asks_node(Head) orelse asks_node(Tail);
asks_node(_) -> false.

%% name(A1, ...) begins with asking, and the clauses become a fun's, applied to all of it.
with_node(Line, Name, Arity, Clauses) ->
    Here = {var, Line, 'Here@simulated'},
    Args = [{var, Line, list_to_atom("Arg" ++ integer_to_list(N) ++ "@simulated")} || N <- lists:seq(1, Arity)],
    Inner = [{clause, L, Patterns, with_var(Guards, Here), inner(Body, Here)}
             || {clause, L, Patterns, Guards, Body} <- Clauses],
    {function, Line, Name, Arity,
     [{clause, Line, Args, [],
       [{match, Line, Here, {call, Line, {remote, Line, {atom, Line, simulated_process}, {atom, Line, node}}, []}},
        {call, Line, {'fun', Line, {clauses, Inner}}, Args}]}]}.

with_var({call, _, {atom, _, node}, []}, Here) -> Here;
with_var(Term, Here) when is_tuple(Term) -> list_to_tuple(with_var(tuple_to_list(Term), Here));
with_var([Head | Tail], Here) -> [with_var(Head, Here) | with_var(Tail, Here)];
with_var(Term, _) -> Term.

inner(Body, Here) -> rewritten(with_var(Body, Here)).

rewritten({call, Line, {atom, _, Function} = F, Args}) ->
    call(Line, F, case lists:member({Function, length(Args)}, get(own)) of
                      true -> as_it_is;
                      false -> of_vm(Function, length(Args))
                  end, Args);
rewritten({call, Line, {remote, _, {atom, _, erlang}, {atom, _, Function}} = F, Args}) ->
    call(Line, F, of_vm(Function, length(Args)), Args);
rewritten({call, Line, {remote, L, {atom, _, Module}, Function}, Args}) ->
    {call, Line, {remote, L, {atom, L, of_other(Module, Function, length(Args))}, Function}, rewritten(Args)};
rewritten({call, Line, {remote, L, Module, Function}, Args}) ->
    {call, Line, {remote, L, Module, Function}, rewritten(Args)};
rewritten({'fun', Line, {function, {atom, L, Module}, Function, Arity}}) ->
    {'fun', Line, {function, {atom, L, maps:get(Module, ?OF_OTHERS, Module)}, Function, Arity}};
rewritten({op, Line, '!', To, What}) ->
    call(Line, none, {simulated_process, send}, [To, What]);
rewritten({clause, Line, Patterns, Guards, Body}) ->
    {clause, Line, Patterns, Guards, rewritten(Body)};
rewritten(Term) when is_tuple(Term) ->
    list_to_tuple(rewritten(tuple_to_list(Term)));
rewritten([Head | Tail]) ->
    [rewritten(Head) | rewritten(Tail)];
rewritten(Term) ->
    Term.

%% Of files, what there is.
of_other(file, {atom, _, Function}, Arity) ->
    case lists:member({Function, Arity}, simulated_file:module_info(exports)) of
        true -> simulated_file;
        false -> file
    end;
of_other(Module, _, _) ->
    maps:get(Module, ?OF_OTHERS, Module).

of_vm(Function, Arity) ->
    case lists:member(Function, ?OF_VM) andalso not lists:member({Function, Arity}, ?AS_THEY_ARE) of
        true -> {simulated_process, Function};
        false -> as_it_is
    end.

call(Line, Function, as_it_is, Args) ->
    {call, Line, Function, rewritten(Args)};
call(Line, _, {Module, Function}, Args) ->
    {call, Line, {remote, Line, {atom, Line, Module}, {atom, Line, Function}}, rewritten(Args)}.

%% Ways to get it wrong, each of which some seed must find; some by what they are known for.
-spec mutations() -> [{Name :: atom(), Violation :: any | atom(), [mutation()]}].
mutations() ->
    rules_of_sessions() ++ [{Name, any, Mutations} || {Name, Mutations} <- others()].

rules_of_sessions() ->
    [{sends_in_another_session, stored_twice,
      [{rabbit_delay_queue,
        {before,
         "applied({SeqNo, {error, unknown_session}}, #state{batches = Batches, session = Session} = State)"
         "  when is_map_key(SeqNo, Batches), Session =/= undefined ->"
         "    open_session(State#state{session = undefined, opening = undefined});"
         "applied({SeqNo, {error, unknown_session}}, State) when is_integer(SeqNo) -> State."}},
       {rabbit_delay_queue,
        {before,
         "opens(Ref, {ok, Session, 0}, #state{opening = {open, Ref}, batches = Batches} = State) ->"
         "    Again = lists:zip(lists:seq(1, map_size(Batches)),"
         "                      [Batch || {_, Batch} <- lists:sort(maps:to_list(Batches))]),"
         "    send_all_again(State#state{opening = undefined, session = Session, batches = maps:from_list(Again),"
         "                               last_seq_no = length(Again)})."}}]},
     {takes_an_answer_by_its_number, confirmed_unstored,
      [{rabbit_delay_queue,
        {before,
         "applied({SeqNo, {error, unknown_session}}, #state{batches = Batches, name = QName} = State)"
         "  when is_map_key(SeqNo, Batches) ->"
         "    Tell = fun (Sender, SeqNos) -> rabbit_delay_intake:reject_all(Sender, QName, SeqNos) end,"
         "    Ended = lists:foldl(fun (N, S) -> ended(N, Tell, S) end, State, maps:keys(Batches)),"
         "    open_session(Ended#state{session = undefined, opening = undefined, last_seq_no = 0})."}}]},
     {forgets_the_number_of_what_is_late, lost,
      [{rabbit_delay_append,
        {before,
         "rejected(SeqNo, #batch{untold = 0, entry = {_, _, Bytes}}, _,"
         "         #state{batches = Batches, batches_bytes = All} = State) ->"
         "    State#state{batches = maps:remove(SeqNo, Batches), batches_bytes = All - byte_size(Bytes)}."}}]},
     {gives_another_batch_the_number_of_what_is_late, confirmed_unstored,
      [{rabbit_delay_append,
        {before,
         "rejected(SeqNo, #batch{untold = 0, entry = {_, _, Bytes}}, _,"
         "         #state{batches = Batches, batches_bytes = All} = State) ->"
         "    _ = put(free, case get(free) of undefined -> [SeqNo]; Free -> Free ++ [SeqNo] end),"
         "    State#state{batches = maps:remove(SeqNo, Batches), batches_bytes = All - byte_size(Bytes)}."}},
       {rabbit_delay_append,
        {before,
         "append_next(SeqNo, #batch{} = Batch, _, State) ->"
         "    append(case get(free) of"
         "               [Free | Rest] -> _ = put(free, Rest), under_way(Free, Batch, State);"
         "               _ -> under_way(SeqNo, Batch, State#state{last_seq_no = SeqNo})"
         "           end)."}}]}].

others() ->
    [{lease_never_ends, [{rabbit_delay_lease, "holds(_, _) -> true."}]},
     {releases_what_is_being_changed, [{rabbit_delay_changes, "is_held(_, _) -> false."}]},
     {releases_what_is_in_flight, [{rabbit_delay_in_flight, "is_held(_, _) -> false."}]},
     {settles_what_one_queue_has,
      [{rabbit_delay_in_flight,
        "fate(#in_flight{settled = [_ | _]}) -> done;"
        "fate(#in_flight{rejected = [], later = []}) -> nobody_has_it;"
        "fate(#in_flight{rejected = Rejected, later = Later}) -> {waits_for, Rejected ++ Later}."}]},
     {settles_by_the_exact_time,
      [{rabbit_delay_commands,
        "settle(ServerId, _, Released, Correlation) ->"
        "    ra:pipeline_command(ServerId, {settle, 2, Released}, Correlation, normal)."}]},
     {does_not_send_again, [{rabbit_delay_queue, "send_all_again(State) -> open_session(State)."}]},
     {takes_a_batch_twice, [{rabbit_delay_machine, "used(_, _, _, State) -> State."}]},
     {forgets_sessions_in_snapshots,
      [{rabbit_delay_machine,
        "to_snapshot(#rabbit_delay_machine{exchange = XName, seen = Seen, sessions = Sessions, paused = Paused}) ->"
        "    #{version => 2, exchange => XName, seen => Seen, sessions => Sessions, paused => Paused}."}]},
     {confirms_what_is_lost,
      [{rabbit_delay_queue,
        "lost_leader(#state{leader = undefined} = State) -> State;"
        "lost_leader(#state{leader = {_, Ref}, name = QName, batches = Batches} = State) ->"
        "    true = demonitor(Ref, [flush]),"
        "    Tell = fun (Sender, SeqNos) -> rabbit_delay_broker:confirm(Sender, QName, SeqNos) end,"
        "    lists:foldl(fun (SeqNo, S) -> ended(SeqNo, Tell, S) end,"
        "                State#state{leader = undefined, condition = unknown}, maps:keys(Batches))."}]},
     {knows_nothing_of_other_terms,
      [{rabbit_delay_dispatcher, "at_term(Term, State) -> State#state{term = Term}."},
       {rabbit_delay_machine, "state_enter(leader, #rabbit_delay_machine{exchange = XName, store = Store}) ->"
                              "    [{mod_call, rabbit_delay_registry, leader, [XName, server_id(), Store]}];"
                              "state_enter(_, _) -> []."}]},
     {uses_the_version_that_it_has_itself,
      [{rabbit_delay_queue,
        "opens(Ref, {ok, #{machine_version := _}}, #state{opening = {note, Ref}, session = Session} = State)"
        "  when is_integer(Session) ->"
        "    State#state{opening = undefined, machine_version = rabbit_delay_machine:version()};"
        "opens(Ref, {ok, #{machine_version := _}},"
        "      #state{opening = {note, Ref}, leader = {ServerId, _}, nonce = Nonce} = State) ->"
        "    Open = make_ref(),"
        "    ok = rabbit_delay_commands:open_session(ServerId, Nonce, Open),"
        "    _ = erlang:send_after(3000, self(), {unanswered, Open}),"
        "    State#state{opening = {open, Open}, machine_version = rabbit_delay_machine:version()};"
        "opens(Ref, {ok, Session, 0}, #state{opening = {open, Ref}} = State) ->"
        "    State#state{opening = undefined, session = Session}."}]},
     {settles_as_the_later_version_does,
      [{rabbit_delay_commands,
        "settle(ServerId, _, Released, Correlation) ->"
        "    ra:pipeline_command(ServerId, {settle, 3, Released}, Correlation, normal)."}]},
     {never_hears_of_a_later_version,
      [{rabbit_delay_condition,
        "said(Node, Condition, #state{leader = {{_, Node}, _}} = State) -> heard(Condition, State);"
        "said(_, _, State) -> State."}]}].
