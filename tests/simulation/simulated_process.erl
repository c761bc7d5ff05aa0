%% SPDX-License-Identifier: MPL-2.0

%% The processes of a simulated cluster, their clock, their timers and the network between them. All of them
%% run in the one process that simulates, one event after the other; what the plugin's modules ask of the VM
%% comes here (simulated_code). Times are ms. All that is known of them is in the dictionary of that process, as a
%% table would copy each message and each state. A pid is a name only: there is no process of the VM behind it.
%%
%% A process belongs to a node, has a mailbox, and one of three shapes: a gen_server's or a gen_batch_server's
%% callbacks, or a function of its state and a message. A node can be paused, which delays whatever happens
%% there, and killed. Between two nodes messages keep their order. A link that is cut holds what is sent, as TCP
%% does, until it is whole again, or until the nodes notice: then what it held is lost, and monitors fire.
-module(simulated_process).

-compile({no_auto_import, [now/0, self/0, node/0, nodes/0, make_ref/0, spawn/1, spawn_opt/2, spawn_monitor/1, monitor/2,
                           demonitor/1, demonitor/2, link/1, unlink/1, exit/2, put/2, get/1, erase/1,
                           process_flag/2, process_info/2, whereis/1]}).

%% What the VM does for a process.
-export([self/0, node/0, nodes/0, make_ref/0, spawn/1, spawn_opt/2, spawn_monitor/1, monitor/2, demonitor/1,
         demonitor/2, link/1, unlink/1, exit/2, put/2, get/1, erase/1, process_flag/2, process_info/2, whereis/1,
         send/2, send_after/3, start_timer/3, cancel_timer/1, cancel_timer/2, monotonic_time/1, system_time/1]).
-export([cast/2, reply/2, monitor_nodes/1, call/5]).
%% What the simulation does.
-export([begin_at/2, now/0, after_ms/2, after_ms/3, next/0, start/4, link_to/2, deliver/2, is_there/1, where/1, as/2,
         is_up/1, kill_node/1, start_node/1,
         pause_node/2, is_running/1, cut/3, notice/2, mend/0, over/3, is_linked/2, chance/1, up_to/1, one_of/1, named/2,
         ended_with/1, all_nodes/0, kill/2, note/2, notes/0, clock/1]).

-define(NODES, ['a@sim', 'b@sim', 'c@sim']).

-record(proc, {pid :: pid(), node :: node(), name :: atom(), shape :: gen_server | gen_batch_server | plain,
               module :: module() | undefined, mailbox = [] :: [term()], runs = false :: boolean(),
               dictionary = #{} :: map(), monitors = [] :: [{reference(), Watcher :: pid()}],
               linked :: pid() | undefined, state :: term(), restart :: fun(() -> term()) | undefined}).

-record(node, {name :: node(), up = false :: boolean(), life = 0 :: non_neg_integer(), paused = false :: boolean(),
               deferred = [] :: [fun()], clock = 0 :: integer()}).

-record(link, {pair :: {node(), node()}, state = whole :: whole | held | down, held = [] :: [fun()],
               last = 0 :: integer()}).

%% The last part of pids, which the VM's own processes do not come to in a run; and how many there are of a part.
-define(OF_PIDS, 4096).
-define(PIDS, 32768).

%% ------------------------------------------------------------------------------- the simulation's own state

begin_at(Now, Seed) ->
    lists:foreach(fun ({Key, Value}) -> erlang:put(Key, Value) end,
                  [{sim_random, rand:mwc59_seed(Seed)}, {sim_now, Now}, {sim_seq, 0}, {sim_current, none},
                   {sim_notes, []}, {sim_events, gb_trees:empty()}, {sim_pids, []}, {sim_last_pid, 0}]),
    lists:foreach(fun (Node) -> set_node(#node{name = Node, clock = up_to(20)}) end, ?NODES),
    lists:foreach(fun (Pair) -> set_link(#link{pair = Pair}) end, pairs()).

now() -> erlang:get(sim_now).

%% For whoever reads how a seed went.
note(Format, Args) ->
    _ = erlang:put(sim_notes, [{now(), Format, Args} | erlang:get(sim_notes)]),
    ok.

notes() -> lists:reverse(erlang:get(sim_notes)).

random(N) ->
    Next = rand:mwc59(erlang:get(sim_random)),
    _ = erlang:put(sim_random, Next),
    rand:mwc59_value32(Next) rem N.

chance(Percent) -> random(100) < Percent.

up_to(N) -> random(N + 1).

one_of(List) -> lists:nth(1 + random(length(List)), List).

all_nodes() -> ?NODES.

%% What happens at the same time happens in any order.
after_ms(Ms, Fun) -> at(now() + Ms, 1 + random(1 bsl 20), Fun).

%% After all of these that are to happen by then.
in_order(At, Fun) -> at(At, 0, Fun).

at(At, Place, Fun) ->
    Seq = erlang:get(sim_seq) + 1,
    _ = erlang:put(sim_seq, Seq),
    _ = erlang:put(sim_events, gb_trees:insert({At, Place, Seq}, Fun, erlang:get(sim_events))),
    ok.

%% On a node: later if it is paused then, never if it has been killed.
after_ms(Ms, Node, Fun) ->
    #node{life = Life} = node_of(Node),
    after_ms(Ms, fun () -> on(Node, Life, Fun) end).

on(Node, Life, Fun) ->
    case node_of(Node) of
        #node{up = true, life = Life, paused = false} -> Fun();
        #node{up = true, life = Life, deferred = Deferred} = N ->
            set_node(N#node{deferred = [fun () -> on(Node, Life, Fun) end | Deferred]});
        _ -> ok
    end.

%% Lets the next event happen.
next() ->
    Events = erlang:get(sim_events),
    case gb_trees:is_empty(Events) of
        true ->
            none;
        false ->
            {{At, _, _}, Fun, Rest} = gb_trees:take_smallest(Events),
            _ = erlang:put(sim_events, Rest),
            _ = erlang:put(sim_now, max(At, now())),
            _ = Fun(),
            ok
    end.

%% ------------------------------------------------------------------------------- nodes

node_of(Node) -> erlang:get({sim_node, Node}).

set_node(#node{name = Node} = N) ->
    _ = erlang:put({sim_node, Node}, N),
    ok.

is_up(Node) -> (node_of(Node))#node.up.

is_running(Node) ->
    #node{up = Up, paused = Paused} = node_of(Node),
    Up andalso not Paused.

start_node(Node) ->
    ok = set_node((node_of(Node))#node{up = true}),
    tell_of(Node, nodeup).

kill_node(Node) ->
    #node{life = Life} = N = node_of(Node),
    ok = set_node(N#node{up = false, life = Life + 1, paused = false, deferred = []}),
    lists:foreach(fun (#proc{pid = Pid} = P) -> ended(P, noconnection), forget_proc(Pid) end,
                  [P || #proc{node = On} = P <- procs(), On =:= Node]),
    lists:foreach(fun ({From, To}) ->
                          From =:= Node andalso set_link((link_of(From, To))#link{held = []})
                  end, pairs()),
    tell_of(Node, nodedown).

pause_node(Node, Ms) ->
    #node{life = Life} = N = node_of(Node),
    ok = set_node(N#node{paused = true}),
    after_ms(Ms, fun () ->
                         case node_of(Node) of
                             #node{life = Life, deferred = Deferred} = Paused ->
                                 ok = set_node(Paused#node{paused = false, deferred = []}),
                                 lists:foreach(fun (Fun) -> in_order(now(), Fun) end, lists:reverse(Deferred));
                             _ ->
                                 ok
                         end
                 end).

tell_of(Node, What) ->
    lists:foreach(fun (#proc{pid = Pid, dictionary = #{monitors_nodes := true}, node = On}) when On =/= Node ->
                          after_ms(up_to(20), On, fun () -> mail(Pid, {What, Node}) end);
                      (_) ->
                          ok
                  end, procs()).

%% Its clock: nodes' run at the same speed, and tell not quite the same time.
clock(Node) -> now() + (node_of(Node))#node.clock.

%% ------------------------------------------------------------------------------- the network

pairs() -> [{A, B} || A <- ?NODES, B <- ?NODES, A =/= B].

link_of(From, To) -> erlang:get({sim_link, From, To}).

set_link(#link{pair = {From, To}} = L) ->
    _ = erlang:put({sim_link, From, To}, L),
    ok.

is_linked(Same, Same) -> true;
is_linked(From, To) -> (link_of(From, To))#link.state =:= whole.

%% In one direction.
cut(From, To, _) when From =:= To -> ok;
cut(From, To, Held) ->
    case link_of(From, To) of
        #link{state = whole} = L -> set_link(L#link{state = Held});
        _ -> ok
    end.

%% The two nodes find that they do not hear each other.
notice(A, B) ->
    lists:foreach(fun ({From, To}) -> set_link((link_of(From, To))#link{state = down, held = []}) end,
                  [{A, B}, {B, A}]),
    lists:foreach(
      fun (#proc{node = Node, monitors = Monitors} = P) ->
              Other = case Node of A -> B; B -> A; _ -> none end,
              {Gone, Kept} = lists:partition(fun ({_, Watcher}) -> where(Watcher) =:= Other end, Monitors),
              ok = set_proc(P#proc{monitors = Kept}),
              _ = Other =/= none andalso [down(Ref, Watcher, P, noconnection) || {Ref, Watcher} <- Gone]
      end, procs()).

%% The node of a process.
where(Pid) ->
    case proc(Pid) of
        #proc{node = Node} -> Node;
        none -> gone
    end.

%% All links are whole again.
mend() ->
    lists:foreach(
      fun ({From, To} = Pair) ->
              #link{state = State, held = Held} = link_of(From, To),
              ok = set_link(#link{pair = Pair}),
              lists:foreach(fun (Fun) -> over(From, To, Fun) end, lists:reverse(Held)),
              _ = State =:= down andalso
                  lists:foreach(fun (#proc{pid = Pid, dictionary = #{monitors_nodes := true}, node = On}) when On =:= To ->
                                        after_ms(up_to(20), On, fun () -> mail(Pid, {nodeup, From}) end);
                                    (_) -> ok
                                end, procs())
      end, pairs()).

%% Has Fun done on the other node when a message has come there.
over(Same, Same, Fun) ->
    #node{life = Life} = node_of(Same),
    on(Same, Life, Fun);
over(From, To, Fun) ->
    case link_of(From, To) of
        #link{state = whole, last = Last} = L ->
            At = max(Last, now() + up_to(8)),
            ok = set_link(L#link{last = At}),
            #node{life = Life} = node_of(To),
            in_order(At, fun () -> on(To, Life, Fun) end);
        #link{state = held, held = Held} = L ->
            set_link(L#link{held = [Fun | Held]});
        #link{state = down} ->
            ok
    end.

%% ------------------------------------------------------------------------------- processes

proc(Pid) ->
    case erlang:get(Pid) of
        undefined -> none;
        P -> P
    end.

set_proc(#proc{pid = Pid} = P) ->
    _ = erlang:put(Pid, P),
    ok.

new_proc(P) ->
    N = erlang:get(sim_last_pid) + 1,
    _ = erlang:put(sim_last_pid, N),
    Pid = list_to_pid(lists:concat(["<0.", N rem ?PIDS, ".", ?OF_PIDS + N div ?PIDS, ">"])),
    _ = erlang:put(sim_pids, [Pid | erlang:get(sim_pids)]),
    ok = set_proc(P#proc{pid = Pid}),
    Pid.

forget_proc(Pid) ->
    _ = erlang:put(sim_pids, lists:delete(Pid, erlang:get(sim_pids))),
    case erlang:erase(Pid) of
        undefined -> none;
        P -> P
    end.

procs() -> [erlang:get(Pid) || Pid <- erlang:get(sim_pids)].

%% Of this shape; Begin gives its state, in the process.
start(Node, Name, {Shape, Module}, Begin) ->
    Pid = new_proc(#proc{node = Node, name = Name, shape = Shape, module = Module,
                         restart = case Shape of
                                       plain -> undefined;
                                       _ -> fun () -> start(Node, Name, {Shape, Module}, Begin) end
                                   end}),
    _ = erlang:put({sim_named, Node, Name}, Pid),
    run(Pid, fun (undefined) -> begun(Begin(), Module) end),
    Pid.

begun({ok, State}, _) ->
    State;
begun({ok, State, {continue, What}}, Module) ->
    {noreply, Next} = Module:handle_continue(What, State),
    Next.

%% The process of a name on a node.
named(Node, Name) ->
    Pid = erlang:get({sim_named, Node, Name}),
    case Pid =/= undefined andalso is_there(Pid) of
        true -> Pid;
        false -> undefined
    end.

%% Fun is what the process does now.
as(Pid, Fun) ->
    Before = erlang:put(sim_current, Pid),
    try Fun() after erlang:put(sim_current, Before) end.

run(Pid, Fun) ->
    try as(Pid, fun () -> Fun((proc(Pid))#proc.state) end) of
        {stop, Reason, _} ->
            died(Pid, Reason);
        State ->
            case proc(Pid) of
                none -> ok;
                P -> set_proc(P#proc{state = State})
            end
    catch
        exit:Reason -> died(Pid, Reason)
    end.

is_there(Pid) -> erlang:get(Pid) =/= undefined.

deliver(Pid, Message) -> mail(Pid, Message).

mail(Pid, Message) ->
    case proc(Pid) of
        #proc{mailbox = Mailbox, runs = Runs, node = Node} = P ->
            ok = set_proc(P#proc{mailbox = [Message | Mailbox], runs = true}),
            _ = Runs orelse after_ms(up_to(2), Node, fun () -> serve(Pid) end),
            ok;
        none ->
            ok
    end.

serve(Pid) ->
    case proc(Pid) of
        #proc{mailbox = []} = P ->
            set_proc(P#proc{runs = false});
        #proc{mailbox = Reversed, shape = gen_batch_server, module = Module} = P ->
            ok = set_proc(P#proc{mailbox = [], runs = false}),
            Ops = [op(Message) || Message <- lists:reverse(Reversed)],
            run(Pid, fun (State) ->
                             {ok, _, Next} = Module:handle_batch(Ops, State),
                             Next
                     end);
        #proc{mailbox = Reversed, node = Node} = P ->
            [First | Rest] = lists:reverse(Reversed),
            ok = set_proc(P#proc{mailbox = lists:reverse(Rest), runs = Rest =/= []}),
            _ = Rest =/= [] andalso after_ms(up_to(1), Node, fun () -> serve(Pid) end),
            run(Pid, fun (State) -> served(First, State, P) end);
        none ->
            ok
    end.

op({'$cast', Message}) -> {cast, Message};
op(Message) -> {info, Message}.

served(Message, {Fun, State}, #proc{shape = plain}) ->
    {Fun, Fun(Message, State)};
served(Message, State, #proc{module = Module}) ->
    Handled = case Message of
                  {'$cast', Cast} -> Module:handle_cast(Cast, State);
                  {'$call', From, Call} -> Module:handle_call(Call, From, State);
                  _ -> Module:handle_info(Message, State)
              end,
    case Handled of
        {noreply, Next} ->
            Next;
        {reply, Reply, Next} ->
            {'$call', To, _} = Message,
            reply(To, Reply),
            Next;
        {stop, _, _} ->
            Handled
    end.

died(Pid, Reason) ->
    case forget_proc(Pid) of
        #proc{node = Node, restart = Restart, name = Name} = P ->
            note("~p on ~p ended: ~0P", [Name, Node, Reason, 12]),
            _ = erlang:put({sim_ended, Pid}, Reason),
            ended(P, Reason),
            _ = is_function(Restart) andalso after_ms(up_to(30), Node, Restart),
            ok;
        none ->
            ok
    end.

ended(#proc{pid = Pid, monitors = Monitors} = P, Reason) ->
    lists:foreach(fun ({Ref, Watcher}) -> down(Ref, Watcher, P, Reason) end, Monitors),
    %% Those that are linked to it end as well.
    lists:foreach(fun (#proc{pid = Linked}) -> died(Linked, Reason) end,
                  [L || #proc{linked = To} = L <- procs(), To =:= Pid]).

down(Ref, Watcher, #proc{node = Node, pid = Pid}, Reason) ->
    case where(Watcher) of
        gone -> ok;
        On ->
            Said = case On of
                       Node -> Reason;
                       _ when Reason =:= noconnection -> noconnection;
                       _ -> Reason
                   end,
            Fun = fun () -> mail(Watcher, {'DOWN', Ref, process, Pid, Said}) end,
            case Said of
                noconnection -> after_ms(up_to(40), On, Fun);
                _ -> over(Node, On, Fun)
            end
    end.

kill(Pid, Reason) -> died(Pid, Reason).

%% Why a process ended that its node did not take along.
ended_with(Pid) -> erlang:get({sim_ended, Pid}).

%% ------------------------------------------------------------------------------- what the VM does

self() -> erlang:get(sim_current).

node() -> (current())#proc.node.

current() -> erlang:get(self()).

nodes() ->
    Here = node(),
    [Node || Node <- ?NODES, Node =/= Here, is_up(Node), (link_of(Here, Node))#link.state =/= down,
             (link_of(Node, Here))#link.state =/= down].

make_ref() -> erlang:make_ref().

send(undefined, _) -> ok;
send(Name, Message) when is_atom(Name) -> send({Name, node()}, Message);
send({Name, Node}, Message) ->
    over(node(), Node, fun () -> mail(named(Node, Name), Message) end),
    Message;
send(Pid, Message) when is_pid(Pid) ->
    case proc(Pid) of
        #proc{node = Node} -> over(node(), Node, fun () -> mail(Pid, Message) end);
        none -> ok
    end,
    Message.

send_after(Ms, Pid, Message) -> timer(Ms, Pid, fun (_) -> Message end).

start_timer(Ms, Pid, Message) -> timer(Ms, Pid, fun (Ref) -> {timeout, Ref, Message} end).

%% A timer that was cancelled is of no use to its process.
timer(Ms, Pid, Message) ->
    Ref = make_ref(),
    #proc{node = Node} = current(),
    _ = erlang:put({sim_timer, Ref}, set),
    after_ms(Ms, Node, fun () -> erlang:erase({sim_timer, Ref}) =:= set andalso mail(Pid, Message(Ref)) end),
    Ref.

cancel_timer(Ref) ->
    _ = erlang:erase({sim_timer, Ref}),
    ok.

cancel_timer(Ref, _) -> cancel_timer(Ref).

monotonic_time(millisecond) -> now().

system_time(millisecond) -> clock(node()).

spawn(Fun) -> task(Fun, []).

spawn_opt(Fun, _) -> task(Fun, [self()]).

spawn_monitor(Fun) -> task(Fun, [self()]).

%% Does one thing, later, and ends.
task(Fun, Watchers) ->
    #proc{node = Node} = current(),
    Refs = [{make_ref(), Watcher} || Watcher <- Watchers],
    Pid = new_proc(#proc{node = Node, name = task, shape = plain, monitors = Refs}),
    after_ms(up_to(20), Node, fun () ->
                                      case is_there(Pid) of
                                          true ->
                                              run(Pid, fun (State) -> _ = Fun(), State end),
                                              died_quietly(Pid);
                                          false ->
                                              ok
                                      end
                              end),
    case Refs of
        [] -> Pid;
        [{Ref, _}] -> {Pid, Ref}
    end.

died_quietly(Pid) ->
    case forget_proc(Pid) of
        none -> ok;
        P -> ended(P, normal)
    end.

monitor(process, Target) ->
    Ref = make_ref(),
    Watcher = self(),
    Here = node(),
    {Pid, Node} = case Target of
                      {Name, On} -> {named(On, Name), On};
                      _ -> {Target, where(Target)}
                  end,
    Reachable = Node =:= Here orelse lists:member(Node, nodes()),
    case Reachable andalso proc(Pid) of
        #proc{monitors = Monitors} = P ->
            _ = erlang:put({sim_monitor, Ref}, Pid),
            ok = set_proc(P#proc{monitors = [{Ref, Watcher} | Monitors]});
        _ ->
            after_ms(up_to(10), Here, fun () -> mail(Watcher, {'DOWN', Ref, process, Target, noproc}) end)
    end,
    Ref.

demonitor(Ref) -> demonitor(Ref, []).

demonitor(Ref, _) ->
    case proc(erlang:erase({sim_monitor, Ref})) of
        none -> ok;
        #proc{monitors = Monitors} = Watched ->
            set_proc(Watched#proc{monitors = lists:keydelete(Ref, 1, Monitors)})
    end,
    #proc{mailbox = Mailbox} = P = current(),
    ok = set_proc(P#proc{mailbox = [M || M <- Mailbox, not is_down(Ref, M)]}),
    true.

is_down(Ref, {'DOWN', Ref, _, _, _}) -> true;
is_down(_, _) -> false.

link(_) -> true.

%% It ends with that one.
link_to(Pid, To) ->
    ok = set_proc((proc(Pid))#proc{linked = To}),
    true.

unlink(Pid) ->
    case proc(Pid) of
        none -> true;
        P -> set_proc(P#proc{linked = undefined}) =:= ok
    end.

exit(Pid, Reason) -> died(Pid, Reason).

put(Key, Value) ->
    #proc{dictionary = D} = P = current(),
    ok = set_proc(P#proc{dictionary = D#{Key => Value}}),
    maps:get(Key, D, undefined).

get(Key) -> maps:get(Key, (current())#proc.dictionary, undefined).

erase(Key) ->
    #proc{dictionary = D} = P = current(),
    ok = set_proc(P#proc{dictionary = maps:remove(Key, D)}),
    maps:get(Key, D, undefined).

process_flag(_, Value) -> Value.

process_info(Pid, registered_name) ->
    #proc{name = Name} = proc(Pid),
    {registered_name, Name}.

whereis(Name) -> named(node(), Name).

monitor_nodes(true) ->
    _ = put(monitors_nodes, true),
    ok.

cast(To, Message) ->
    _ = send(To, {'$cast', Message}),
    ok.

reply({Pid, Tag}, Reply) ->
    _ = send(Pid, {Tag, Reply}),
    ok.

%% Done there now, as if no time went by.
call(Node, Module, Function, Args, _) ->
    Here = node(),
    case Node =:= Here orelse is_running(Node) andalso is_linked(Here, Node) andalso is_linked(Node, Here) of
        true -> as(named(Node, member), fun () -> apply(Module, Function, Args) end);
        false -> error({erpc, noconnection})
    end.
