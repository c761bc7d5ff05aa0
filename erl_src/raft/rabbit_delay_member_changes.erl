%% SPDX-License-Identifier: MPL-2.0

%% Changes of the members of exchanges' groups, by the node that leads: what operators ask for
%% (rabbit_delay_members), and what rabbit_delay_membership finds to be needed (rabbit_delay_reconciler asks
%% now and then).
%%
%% A member is named in the exchange's record, then started, then added to Raft's configuration; and it is
%% taken out of that before it is taken out of the record, and its files are deleted last. So the record
%% names all that Raft knows; what is interrupted is found by the next who looks, and undone or gone on
%% with. All is decided from what the local server says, and done by it: if it leads no more, nothing is.
%%
%% It owns no process. Everything here may take seconds.
%% Longer than other files are, as each change is decided from one view, and made with one lock.
-module(rabbit_delay_member_changes).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([add/2, remove/2, transfer/2, force_shrink/1, log_end/1, reconcile/1, move_leaders/0]).
-export([members/1, ask/2, state_of/2, voters/1]).

-type why() :: iodata().

-define(ASK_MS, 5000).
-define(START_MS, 40000).
%% How long a change of Raft's configuration is waited for.
-define(CHANGE_MS, 30000).
-define(TRANSFER_MS, 10000).
-define(AGAIN_MS, 50).
%% How often somebody else's change of the same group is waited for, each time for up to 8 s.
-define(LOCK_RETRIES, 5).
%% How many steps are made of an exchange's group before others have their turn.
-define(STEPS, 8).

%% ------------------------------------------------------------------- on the leader's node

-spec add(rabbit_exchange:name(), node()) -> ok | again | {error, why()}.
add(XName, Node) ->
    change(XName, fun (Group, View, Peers) -> add(XName, Node, Group, View, Peers) end).

add(XName, Node, Group, #{members := Members, voters := Voters} = View, Peers) ->
    case {lists:keymember(Node, 2, Members), Peers} of
        {true, _} ->
            ok;
        {false, #{Node := #{ready := true}}} when length(Voters) =:= length(Members) ->
            case rabbit_delay_membership:may_add(View) of
                true ->
                    case add_member(XName, Node, Group, View) of
                        ok -> rabbit_delay_group:aimed_at(XName, Group, length(Members) + 1);
                        Error -> failed("cannot be added", Node, Error)
                    end;
                false ->
                    {error, "too few of its members are up: with one more that is not there yet they "
                     "would be no majority"}
            end;
        {false, #{Node := #{ready := true}}} ->
            {error, "a member that was added is not up to date yet; try again when it is"};
        {false, #{Node := _}} ->
            {error, io_lib:format("on node ~s delayed messages are unavailable: its log says why", [Node])};
        {false, _} ->
            {error, io_lib:format("node ~s is not in the cluster, does not answer, or does not run this "
                                  "plugin", [Node])}
    end.

-spec remove(rabbit_exchange:name(), node()) -> ok | again | {error, why()}.
remove(XName, Node) ->
    change(XName, fun (Group, View, Peers) -> remove(XName, Node, Group, View, Peers) end).

remove(XName, Node, Group, #{members := Members, leader := {_, Here} = Leader} = View, Peers) ->
    case [Id || {_, N} = Id <- Members, N =:= Node] of
        [] ->
            ok;
        [_] when length(Members) =:= 1 ->
            {error, "it is the only member: all of its messages would be lost"};
        [_] when Node =:= Here ->
            case leave_leadership(XName, Leader, Group, Peers) of
                ok -> again;
                Error -> Error
            end;
        [Id] ->
            case rabbit_delay_membership:may_remove(Id, View) of
                true ->
                    case remove_member(XName, Id, Group, View) of
                        ok -> rabbit_delay_group:aimed_at(XName, Group, length(Members) - 1);
                        Error -> failed("cannot be removed", Node, Error)
                    end;
                false ->
                    {error, "too few of its other members are up to be a majority without it"}
            end
    end.

failed(What, Node, {error, Reason}) ->
    ?LOG_WARNING("delayed messages: the member on ~s ~s: ~0P", [Node, What, Reason, 20], ?LOG_DOMAIN),
    {error, io_lib:format("the member on ~s ~s at present: the broker's log says why", [Node, What])}.

-spec transfer(rabbit_exchange:name(), node()) -> ok | again | {error, why()}.
transfer(XName, Node) when Node =:= node() ->
    case view(XName) of
        {ok, _, _, _} -> ok;
        _ -> again
    end;
transfer(XName, Node) ->
    change(XName, fun (_, #{members := Members, leader := Leader, up := Up}, _) ->
                          case [{Id, lists:member(Id, Up)} || {_, N} = Id <- Members, N =:= Node] of
                              [{Id, true}] -> lead(XName, Leader, Id);
                              %% Ra would wait for it, half a minute with nobody who leads.
                              [{_, false}] -> not_leading(Node);
                              [] -> {error, io_lib:format("node ~s has no member of it", [Node])}
                          end
                  end).

%% Returns when it leads. What is in flight would come again.
lead(XName, Leader, {_, Node} = Id) ->
    _ = case rabbit_delay_registry:dispatcher(XName) of
            undefined -> ok;
            Pid -> rabbit_delay_dispatcher:rest(Pid, ?TRANSFER_MS)
        end,
    case ra:transfer_leadership(Leader, Id) of
        ok -> await_leader(Id, erlang:monotonic_time(millisecond) + ?TRANSFER_MS);
        already_leader -> ok;
        Error ->
            ?LOG_WARNING("delayed messages of ~ts: the member on ~s does not come to lead: ~0P",
                         [rabbit_delay_text:rs(XName), Node, Error, 20], ?LOG_DOMAIN),
            not_leading(Node)
    end.

await_leader({_, Node} = Id, Deadline) ->
    case {rabbit_delay_group:leader([Id]), erlang:monotonic_time(millisecond) < Deadline} of
        {{ok, Id}, _} ->
            ok;
        {_, true} ->
            receive after ?AGAIN_MS -> ok end,
            await_leader(Id, Deadline);
        {_, false} ->
            not_leading(Node)
    end.

not_leading(Node) ->
    {error, io_lib:format("the member on ~s does not come to lead: it may be behind, or not be up", [Node])}.

%% Another one leads, of a node that is to stay.
leave_leadership(XName, {_, Here} = Leader, #{members := Members}, Peers) ->
    case [Id || {{_, Node} = Id, _} = Member <- Members, Node =/= Here,
                state_of(Member, Peers) =:= running,
                not maps:get(draining, maps:get(Node, Peers))] of
        [Id | _] -> lead(XName, Leader, Id);
        [] -> {error, "no other member is up that could lead"}
    end.

%% ------------------------------------------------------------------- without a majority

%% This node's member goes on as the only one, as the nodes of a majority have been lost and are in the cluster no
%% more: what comes back of them has no part in it. Nobody leads, so no other says what is to be done.
-spec force_shrink(rabbit_exchange:name()) -> ok | {error, why()}.
force_shrink(XName) ->
    one_at_a_time(XName, fun () -> force_shrink(XName, rabbit_delay_group:find(XName), rabbit_delay_table:member(XName))
                         end).

force_shrink(XName, {ok, #{formed := true, members := Members} = Group}, {ok, {Id, _} = Member}) ->
    Nodes = rabbit_delay_broker:cluster_nodes(),
    Left = [M || {{_, Node}, _} = M <- Members, lists:member(Node, Nodes)],
    case {lists:member(Member, Left), 2 * length(Left) > length(Members)} of
        {false, _} ->
            {error, "the exchange's record does not name this node's member"};
        {true, true} ->
            {error, "the nodes of a majority of its members are in the cluster: it has a leader when they are up"};
        {true, false} ->
            case first_error([fun () -> has_most(Id, Left -- [Member]) end, fun () -> is_alone(Id) end]) of
                ok -> said(XName, "the member on ~s goes on alone", node(),
                           unname(XName, rabbit_delay_group:ids(Group) -- [Id], Group));
                Error -> Error
            end
    end;
force_shrink(_, _, _) ->
    {error, "this node holds none of its messages, or not yet"}.

%% Of the members that are left: what a majority has confirmed, the one with the longest log has.
has_most({_, Here} = Id, Others) ->
    Ends = [{Node, end_of(Other)} || {{_, Node} = Other, _} <- Others],
    case {end_of(Id), [Node || {Node, unknown} <- Ends]} of
        {unknown, _} ->
            {error, io_lib:format("the member on ~s does not answer", [Here])};
        {_, [Node | _]} ->
            {error, io_lib:format("the member on ~s, which is in the cluster, does not say how much it has", [Node])};
        {Ours, []} ->
            case [Node || {Node, Theirs} <- Ends, Theirs > Ours] of
                [] -> ok;
                [Node | _] -> {error, io_lib:format("the member on ~s has more", [Node])}
            end
    end.

end_of({_, Node} = Id) ->
    try
        erpc:call(Node, ?MODULE, log_end, [Id], ?ASK_MS)
    catch
        error:_ -> unknown
    end.

%% How far the log on its disk goes; asked by others.
-spec log_end(ra:server_id()) -> {Term :: non_neg_integer(), Index :: non_neg_integer()} | unknown.
log_end(Id) ->
    case rabbit_delay_broker:raft_overview(Id, ?ASK_MS) of
        {ok, #{log := #{last_written_index_term := {Index, Term}}}} -> {Term, Index};
        _ -> unknown
    end.

%% It may be so from before. The adapter for 3.10 has one answer only.
-dialyzer({no_match, is_alone/1}).
is_alone(Id) ->
    case rabbit_delay_broker:raft_overview(Id, ?ASK_MS) of
        {ok, #{cluster := Cluster, leader_id := Id}} when map_size(Cluster) =:= 1 ->
            ok;
        {ok, _} ->
            case rabbit_delay_broker:raft_alone(Id) of
                ok -> await_leader(Id, erlang:monotonic_time(millisecond) + ?TRANSFER_MS);
                {error, not_supported} -> {error, "RabbitMQ before 3.13 has no way to do that"};
                Error -> failed("does not go on alone", node(), Error)
            end;
        Error ->
            failed("does not answer", node(), Error)
    end.

change(XName, Change) ->
    one_at_a_time(XName, fun () ->
                                 case view(XName) of
                                     {ok, Group, View, Peers} -> Change(Group, View, Peers);
                                     not_leading -> again;
                                     {error, _} = Error -> Error
                                 end
                         end).

one_at_a_time(XName, Fun) ->
    case global:trans({{?MODULE, XName}, self()}, Fun, [node()], ?LOCK_RETRIES) of
        aborted -> {error, "its members are being changed at present; try again"};
        Result -> Result
    end.

%% --------------------------------------------------------------------- what is needed

%% Of the exchanges that this node leads. All says that they are looked at closely, even where nothing
%% seems to be wrong, and that all nodes are to know them.
-spec reconcile(All :: boolean()) -> ok.
reconcile(All) ->
    case rabbit_delay_broker:cluster_nodes() of
        [_] ->
            ok;
        Nodes ->
            Groups = lists:filtermap(fun group/1, rabbit_delay_table:led()),
            Peers = ask(Nodes, lists:append([Members || {_, #{members := Members}} <- Groups])),
            lists:foreach(fun ({XName, Group}) ->
                                  case seems_right(XName, Group, Nodes, Peers)
                                      andalso not (All andalso differs(XName, Group)) of
                                      true -> ok;
                                      false -> steps(XName)
                                  end
                          end, Groups),
            _ = All andalso not rabbit_delay_broker:is_khepri()
                andalso tell(maps:keys(Peers) -- [node()], [XName || {XName, _} <- Groups]),
            ok
    end.

%% A change was interrupted, or Mnesia has set the record back.
differs(XName, Group) ->
    case overview(XName) of
        {ok, _, #{cluster := Cluster}} -> lists:sort(maps:keys(Cluster)) =/= lists:sort(rabbit_delay_group:ids(Group));
        not_leading -> false
    end.

%% Where databases have been apart since a split, others may know nothing of groups that have been formed.
tell(Nodes, XNames) ->
    lists:foreach(fun (Node) -> erpc:cast(Node, rabbit_delay_group, learn, [XNames]) end, Nodes).

group(XName) ->
    case rabbit_delay_group:find(XName) of
        {ok, #{formed := true} = Group} ->
            {true, {XName, Group}};
        none ->
            %% It was alone.
            ok = rabbit_delay_group:adopt(XName),
            case rabbit_delay_group:find(XName) of
                {ok, #{formed := true} = Group} ->
                    ok = joined(XName, Group),
                    {true, {XName, Group}};
                _ ->
                    false
            end;
        _ ->
            false
    end.

joined(XName, Group) ->
    case rabbit_delay_registry:queue(XName) of
        Pid when is_pid(Pid) -> rabbit_delay_queue:has_group(Pid, Group);
        undefined -> ok
    end.

seems_right(XName, #{members := Members} = Group, Nodes, Peers) ->
    Holding = [Node || {{_, Node}, _} <- Members],
    Holding -- Nodes =:= []
        andalso not lists:any(fun (Member) -> is_lost(state_of(Member, Peers)) end, Members)
        andalso (length(Members) >= rabbit_delay_group:target(XName, Group)
                 orelse candidates(Holding, Peers) =:= []).

steps(XName) ->
    case one_at_a_time(XName, fun () -> steps(XName, ?STEPS) end) of
        ok -> ok;
        {error, Reason} ->
            ?LOG_WARNING("delayed messages of ~ts: its members cannot be changed as is needed, which is "
                         "tried again: ~0P", [rabbit_delay_text:rs(XName), Reason, 20], ?LOG_DOMAIN)
    end.

steps(_, 0) ->
    ok;
steps(XName, Left) ->
    case view(XName) of
        {ok, Group, #{leader := Leader, lost := Lost} = View, Peers} ->
            case lists:member(Leader, Lost) of
                true ->
                    %% It is the next leader's to replace it.
                    leave_leadership(XName, Leader, Group, Peers);
                false ->
                    case step(rabbit_delay_membership:next(View), XName, Group, View) of
                        done -> steps(XName, Left - 1);
                        rest -> ok;
                        {error, _} = Error -> Error
                    end
            end;
        not_leading ->
            ok;
        {error, _} = Error ->
            Error
    end.

step(rest, _, _, _) ->
    rest;
step({add, Node}, XName, Group, View) ->
    done(add_member(XName, Node, Group, View));
step({remove, Id}, XName, Group, View) ->
    done(remove_member(XName, Id, Group, View));
step({unname, Ids}, XName, Group, _) ->
    done(unname(XName, Ids, Group));
step({name, Ids}, XName, Group, #{members := All}) ->
    %% The record has been set back by the metadata store, and may have said that there are fewer.
    Members = [{Id, Uid} || Id <- Ids, {ok, Uid} <- [uid_of(Id)]],
    case Members of
        [] -> rest;
        _ -> done(first_error([fun () -> group_grows(XName, length(All)) end,
                               fun () -> result(rabbit_delay_group:named(XName, Group, Members)) end]))
    end.

%% Of a member that the record does not name; none if its node knows of no such.
uid_of({Name, Node}) ->
    try erpc:call(Node, ra_directory, uid_of, [?RA_SYSTEM, Name], ?ASK_MS) of
        Uid when is_binary(Uid) -> {ok, Uid};
        undefined -> none
    catch
        error:_ -> unknown
    end.

done(ok) -> done;
done(Error) -> Error.

result({ok, _}) -> ok;
result(Error) -> Error.

add_member(XName, Node, #{life := Life} = Group, #{leader := Leader, members := Members} = View) ->
    Member = rabbit_delay_raft:added_member(XName, Node, Life),
    said(XName, "a member on ~s is added", Node,
         first_error([fun () -> result(rabbit_delay_group:named(XName, Group, [Member])) end,
                      %% From here on it may come to lead no more.
                      fun () -> group_grows(XName, length(Members) + 1) end,
                      fun () -> on(Node, start_added, [XName, Life, Member], ?START_MS) end,
                      fun () ->
                              changed(XName, View, fun rabbit_delay_membership:may_add/1,
                                      fun (Timeout) -> join(Leader, Member, Timeout) end)
                      end])).

group_grows(XName, Members) ->
    ok = rabbit_delay_table:group_grows(XName, Members),
    case rabbit_delay_registry:dispatcher(XName) of
        undefined -> {error, no_dispatcher};
        Pid -> rabbit_delay_dispatcher:group_grows(Pid, Members)
    end.

%% Raft's configuration first, then the record, then the files.
remove_member(XName, {_, Node} = Id, Group, #{leader := Leader} = View) ->
    said(XName, "the member on ~s is removed", Node,
         first_error([fun () ->
                              changed(XName, View,
                                      fun (Now) -> rabbit_delay_membership:may_remove(Id, Now) end,
                                      fun (Timeout) -> leave(Leader, Id, Timeout) end)
                      end,
                      fun () -> unname(XName, [Id], Group) end])).

%% Its node may be away, and finds out for itself.
unname(XName, Ids, #{members := Members} = Group) ->
    case rabbit_delay_group:unnamed(XName, Group, Ids) of
        {ok, _} ->
            lists:foreach(
              fun ({{_, Node} = Id, _} = Member) ->
                      _ = lists:member(Id, Ids) andalso lists:member(Node, nodes())
                          andalso on(Node, end_member, [XName, Member, delete], ?START_MS)
              end, Members);
        Error ->
            Error
    end.

said(XName, Format, Node, Result) ->
    ?LOG_INFO("delayed messages of ~ts: " ++ Format ++ ": ~0P",
              [rabbit_delay_text:rs(XName), Node, Result, 20], ?LOG_DOMAIN),
    Result.

on(Node, Function, Args, Timeout) ->
    try
        erpc:call(Node, rabbit_delay_local_member, Function, Args, Timeout)
    catch
        error:{exception, Reason, _} -> {error, {Node, Reason}};
        error:{erpc, Reason} -> {error, {Node, Reason}};
        exit:{exception, Reason} -> {error, {Node, Reason}}
    end.

first_error([]) ->
    ok;
first_error([Step | Rest]) ->
    case Step() of
        ok -> first_error(Rest);
        Error -> Error
    end.

%% Raft makes one change at a time, and none before an entry of the leader's own term is committed.
changed(XName, View, May, Change) ->
    changed(XName, View, May, Change, erlang:monotonic_time(millisecond) + ?CHANGE_MS).

changed(XName, View, May, Change, Deadline) ->
    Left = Deadline - erlang:monotonic_time(millisecond),
    case still_may(XName, View, May) of
        ok ->
            case Change(max(0, Left)) of
                {error, cluster_change_not_permitted} when Left > 0 ->
                    receive after ?AGAIN_MS -> ok end,
                    changed(XName, View, May, Change, Deadline);
                Result ->
                    Result
            end;
        Error ->
            Error
    end.

%% Changes of Raft's configuration by this node's server, if it leads now: what was decided here is not
%% passed on to another leader, which knows better. They return when the change is committed.
join(Leader, Member, Timeout) ->
    change_members(Leader, {'$ra_join', rabbit_delay_broker:raft_member(Member), await_consensus}, Timeout).

leave(Leader, Id, Timeout) ->
    change_members(Leader, {'$ra_leave', Id, await_consensus}, Timeout).

%% As ra:add_member/3, but for following a redirection.
change_members({Name, Node}, Command, Timeout) when Node =:= node() ->
    try gen_statem:call(Name, {leader_call, {command, normal, Command}}, Timeout) of
        {wrap_reply, _} -> ok;
        {redirect, Other} -> {error, {not_leader, Other}};
        {error, Reason} -> {error, Reason};
        Other -> {error, Other}
    catch
        exit:{Reason, _} -> {error, Reason}
    end.

%% What it was decided from is looked at again: starting a member may have taken long, and others may have
%% gone down meanwhile.
still_may(XName, #{term := Term, members := Members}, May) ->
    case view(XName) of
        {ok, _, #{term := Term, members := Members} = Now, _} ->
            case May(Now) of
                true -> ok;
                false -> {error, too_few_up}
            end;
        {ok, _, _, _} ->
            {error, changed};
        _ ->
            {error, not_leading}
    end.

%% ------------------------------------------------------------------------------ the view

%% The record's; else this node's own.
-spec members(rabbit_exchange:name()) -> [rabbit_delay_group:member()].
members(XName) ->
    case {rabbit_delay_group:find(XName), rabbit_delay_table:member(XName)} of
        {{ok, #{members := Members}}, _} -> Members;
        {none, {ok, Member}} -> [Member];
        _ -> []
    end.

view(XName) ->
    case {overview(XName), rabbit_delay_group:find(XName)} of
        {{ok, Member, #{cluster := Cluster} = Overview}, {ok, #{formed := true} = Group}} ->
            case is_of_group(Member, maps:keys(Cluster), Group) of
                true -> view(XName, Member, Overview, Group);
                false -> not_leading
            end;
        {_, none} ->
            {error, "the node that holds its messages is in no cluster"};
        _ ->
            not_leading
    end.

%% The record may be an exchange's that was declared since, or name another group: that one's members are
%% not this one's to change. A member that was made on a node that was alone has no life in its name.
is_of_group({_, Uid}, Members, #{life := Life} = Group) ->
    rabbit_delay_raft:life_of(Uid) =:= Life
        orelse lists:any(fun (Id) -> lists:member(Id, Members) end, rabbit_delay_group:ids(Group)).

view(XName, {Leader, _}, #{current_term := Term, cluster := Cluster} = Overview,
     #{members := Named} = Group) ->
    Nodes = rabbit_delay_broker:cluster_nodes(),
    Members = lists:sort(maps:keys(Cluster)),
    Ids = rabbit_delay_group:ids(Group),
    Peers = ask(Nodes, Named),
    {ok, Group,
     #{leader => Leader,
       term => Term,
       members => Members,
       voters => voters(Overview),
       named => Ids,
       cluster => Nodes,
       up => [Id || {Id, _} = Member <- Named, state_of(Member, Peers) =:= running],
       lost => [Id || {Id, _} = Member <- Named, is_lost(state_of(Member, Peers))]
           ++ [Id || {_, Node} = Id <- Members -- Ids, is_ready(Node, Peers), uid_of(Id) =:= none],
       candidates => candidates([Node || {_, Node} <- Members], Peers),
       target => rabbit_delay_group:target(XName, Group)},
     Peers}.

overview(XName) ->
    case rabbit_delay_table:member(XName) of
        {ok, {Id, _} = Member} ->
            case rabbit_delay_broker:raft_overview(Id, ?ASK_MS) of
                {ok, #{leader_id := Id} = Overview} -> {ok, Member, Overview};
                _ -> not_leading
            end;
        none ->
            not_leading
    end.

%% Before Ra 2.6 all do.
-spec voters(map()) -> [ra:server_id()].
voters(#{cluster := Cluster}) ->
    [Id || {Id, Peer} <- maps:to_list(Cluster),
           case Peer of
               #{voter_status := #{membership := Membership}} -> Membership =:= voter;
               _ -> true
           end].

%% What those nodes say of themselves and of these members; whoever does not answer is not among them.
-spec ask([node()], [rabbit_delay_group:member()]) -> #{node() => rabbit_delay_local_member:here()}.
ask(Nodes, Members) ->
    Up = [Node || Node <- Nodes, Node =:= node() orelse lists:member(Node, nodes())],
    maps:from_list([{Node, Here} || {Node, {ok, #{} = Here}}
                                        <- lists:zip(Up, erpc:multicall(Up, rabbit_delay_local_member, here,
                                                                        [Members],
                                                                        ?ASK_MS))]).

%% Of its files nobody knows while the node's disk is not in use.
-spec state_of(rabbit_delay_group:member(), #{node() => rabbit_delay_local_member:here()}) ->
          rabbit_delay_local_member:state() | unknown.
state_of({{_, Node}, Uid}, Peers) ->
    case Peers of
        #{Node := #{members := #{Uid := none}, ready := false}} -> unknown;
        #{Node := #{members := #{Uid := State}}} -> State;
        _ -> unknown
    end.

%% Another is to take its place.
is_lost(State) -> State =:= none orelse State =:= damaged.

is_ready(Node, Peers) ->
    case Peers of
        #{Node := #{ready := Ready}} -> Ready;
        _ -> false
    end.

candidates(Holding, Peers) ->
    [Node || {_, Node} <- lists:sort([{Load, Node}
                                      || {Node, #{ready := true, draining := false, load := Load}}
                                             <- maps:to_list(Peers), not lists:member(Node, Holding)])].

%% ------------------------------------------------------------------------- leaving the lead

%% Another node leads what this one leads before it is stopped for maintenance, and as long as too little of its
%% disk is free, if one has more. Whether either is so.
-spec move_leaders() -> boolean().
move_leaders() ->
    case {rabbit_delay_local_member:is_draining(), rabbit_delay_system:status()} of
        {true, _} -> move_leaders(drained);
        {false, {full, _}} -> move_leaders(full);
        {false, _} -> false
    end.

move_leaders(Why) ->
    lists:foreach(fun (XName) -> move_leader(XName, Why) end, rabbit_delay_table:led()),
    true.

move_leader(XName, Why) ->
    change(XName, fun (#{members := [_]}, _, _) ->
                          ok;
                      (Group, #{leader := Leader}, Peers) ->
                          left(XName, Why, leave_leadership(XName, Leader, Group, may_lead(Why, Peers)))
                  end).

may_lead(drained, Peers) -> Peers;
may_lead(full, Peers) -> maps:filter(fun (_, #{ready := Ready}) -> Ready end, Peers).

left(XName, drained, Result) ->
    said(XName, "~s is drained, and another node leads", node(), Result);
left(XName, full, ok) ->
    said(XName, "~s has too little space, and another node leads", node(), ok);
left(_, full, _) ->
    ok.
