%% SPDX-License-Identifier: MPL-2.0

%% Which Raft members hold an exchange's delayed messages: the exchange's group.
%%
%% In a cluster the exchange's own record in the broker's metadata says so, in a scratch as federation
%% keeps its: who writes it first decides, every node reads it, definitions do not export it, and it goes
%% with the exchange. It has the group's life, which is random and never used again, what keys are hashed
%% with, and the members. A member is started only if this node's copy of the record names it, never
%% because there is a directory of it.
%%
%% A new group is formed in two steps: it is named, then all its members are started; only when all are
%% there does the record say so, and only then do clients send anything. A member without its files is
%% started while the group is being formed and never after that. What cannot be formed is replaced, by a side
%% of the network that a majority of the nodes is on.
%%
%% Mnesia may lose the record when it takes a part of a split cluster back: the members have kept what they
%% hold, and the group is named again (rabbit_delay_lost_record).
%%
%% A node that is alone has a group of one, which needs no record. When it is in a cluster, it names that
%% group (adopt/1).
%%
%% It owns no process. All but find/1 may take seconds, as they ask other nodes and write metadata.
-module(rabbit_delay_group).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([find/1, of_record/1, life_of/1, life_of_id/1, is_of/3, obtain/1, adopt/1, learn/1, is_named/2, ids/1,
         member/1, life/1, salt/1, key_salt/1, leader/1, led_or_stand/2, may_lead/3, configuration/1,
         target/2, size_of/1, nodes_of/1, aim_of/1]).
-export([named/3, unnamed/3, aimed_at/3]).
-export([held/1, start_new/3, complete/1, await_named/3]).

-export_type([group/0, member/0]).

%% A later version of the plugin adds keys, or raises the version and is refused.
%% target: how many members an operator wants, if one has said so. lost: it had been formed before its record was
%% lost, and its members have their files.
-type group() :: #{version := 1, life := binary(), salt := rabbit_delay_key:salt(),
                   formed := boolean(), members := [member(), ...], target => pos_integer(), lost => true}.
-type member() :: {ra:server_id(), rabbit_delay_raft:uid()}.

-define(APP, rabbitmq_delay_wheel).
-define(SALT_BYTES, 16).
%% How long others are waited for: that they say what they hold, that they have started a member, and that
%% their copy of the record is the present one.
-define(ASK_MS, 5000).
-define(START_MS, 20000).
-define(COPY_MS, 10000).
%% How long the first member's node has for forming the group before others do it.
-define(FORM_MS, 10000).
-define(COPY_AGAIN_MS, 20).
%% How long nobody leads before a member stands, and how often it is asked meanwhile.
-define(STAND_MS, 3000).
-define(LEADER_AGAIN_MS, 500).

%% What the exchange's record says.
-spec find(rabbit_exchange:name()) -> {ok, group()} | none | {later, Version :: pos_integer()}.
find(XName) ->
    case rabbit_exchange:lookup_scratch(XName, ?APP) of
        {ok, #{version := 1} = Group} -> {ok, Group};
        {ok, #{version := Version}} -> {later, Version};
        {error, not_found} -> none
    end.

%% The same of this record of the exchange.
-spec of_record(rabbit_delay_broker:exchange()) -> {ok, group()} | none.
of_record(X) ->
    case rabbit_delay_broker:scratch(X, ?APP) of
        {ok, #{version := 1} = Group} -> {ok, Group};
        _ -> none
    end.

%% The life of the group that this record of the exchange names.
-spec life_of(rabbit_delay_broker:exchange()) -> binary() | undefined.
life_of(X) ->
    case rabbit_delay_broker:scratch(X, ?APP) of
        {ok, #{life := Life}} -> Life;
        _ -> undefined
    end.

%% The one that a member was made for, which is in its name; none in one that was alone.
-spec life_of_id(ra:server_id()) -> binary() | undefined.
life_of_id({Name, _}) ->
    case binary:split(atom_to_binary(Name), <<"_">>, [global]) of
        [<<"rabbit">>, <<"delay">>, _, Life | _] -> Life;
        _ -> undefined
    end.

%% The nodes that this record of the exchange names.
-spec nodes_of(rabbit_delay_broker:exchange()) -> [node()] | none.
nodes_of(X) ->
    case rabbit_delay_broker:scratch(X, ?APP) of
        {ok, #{members := Members}} -> [Node || {{_, Node}, _} <- Members];
        _ -> none
    end.

%% Whether it is still the exchange that whoever knows of this life and of this server serves: it may have
%% been deleted and declared again. A group that had no record when it was joined may have been given one.
-spec is_of(rabbit_delay_broker:exchange(), Life :: binary() | undefined, ra:server_id() | undefined) ->
          boolean().
is_of(X, undefined, ServerId) ->
    case rabbit_delay_broker:scratch(X, ?APP) of
        {ok, #{members := Members}} -> lists:keymember(ServerId, 1, Members);
        _ -> true
    end;
is_of(X, Life, _) ->
    life_of(X) =:= Life.

-spec ids(group()) -> [ra:server_id()].
ids(#{members := Members}) -> [Id || {Id, _} <- Members].

%% This node's.
-spec member(group()) -> {ok, member()} | none.
member(#{members := Members}) ->
    case [Member || {{_, Node}, _} = Member <- Members, Node =:= node()] of
        [Member] -> {ok, Member};
        [] -> none
    end.

-spec life(group()) -> binary().
life(#{life := Life}) -> Life.

-spec salt(group()) -> rabbit_delay_key:salt().
salt(#{salt := Salt}) -> Salt.

%% How many members the group is to have.
-spec target(rabbit_exchange:name(), group()) -> pos_integer().
target(_, #{target := Target}) -> Target;
target(XName, _) -> size_of(XName).

%% What the exchange's keys are hashed with: also on a node that has no member of its group.
-spec key_salt(rabbit_exchange:name()) -> {ok, rabbit_delay_key:salt()} | {error, Why :: string()}.
key_salt(XName) ->
    case find(XName) of
        {ok, Group} -> {ok, salt(Group)};
        {later, Version} -> {error, later_words(Version)};
        none -> rabbit_delay_raft:key_salt(XName)
    end.

later_words(Version) ->
    rabbit_delay_newer:words("its group's record", "version ~b, this one reads 1", [Version]).

%% Whether the exchange's messages are to be in this member of this node. One that was made for a group
%% is never another's, also if the exchange has none yet: it was deleted and declared again.
-spec is_named(rabbit_exchange:name(), rabbit_delay_raft:uid()) -> boolean().
is_named(XName, Uid) ->
    case find(XName) of
        {ok, Group} ->
            case member(Group) of
                {ok, {_, Uid}} -> true;
                _ -> false
            end;
        {later, _} ->
            true;
        none ->
            rabbit_delay_raft:life_of(Uid) =:= undefined
    end.

%% The exchange's group, made if there is none; `alone' on a node that is in no cluster.
-spec obtain(rabbit_exchange:name()) -> {ok, group()} | alone | {error, term()}.
obtain(XName) ->
    case find(XName) of
        {ok, #{formed := true} = Group} ->
            {ok, Group};
        {ok, Group} ->
            form_in_turn(XName, Group);
        none ->
            case rabbit_delay_broker:cluster_nodes() of
                [_] -> alone;
                Nodes -> propose(XName, Nodes)
            end;
        {later, Version} ->
            rabbit_delay_newer:refused(XName, later_words(Version))
    end.

%% This node holds the exchange's messages, from before it was in a cluster.
-spec adopt(rabbit_exchange:name()) -> ok.
adopt(XName) ->
    case {rabbit_delay_broker:cluster_nodes(), find(XName)} of
        {[_, _ | _] = Nodes, none} ->
            _ = propose(XName, Nodes),
            ok;
        _ ->
            ok
    end.

%% Another node leads groups of these exchanges, which this one's own copy of the record may not name.
-spec learn([rabbit_exchange:name()]) -> ok.
learn(XNames) ->
    lists:foreach(fun (XName) ->
                          case find(XName) of
                              {ok, #{formed := true}} -> ok;
                              _ -> obtain(XName)
                          end
                  end, [XName || XName <- XNames, {ok, _} <- [rabbit_delay_broker:lookup_exchange(XName)]]).

%% ------------------------------------------------------------------------------ proposing

%% Every node that can be asked says what it holds of the exchange, and they must be a majority: what a
%% node that is away holds from before the exchange had a group is not known.
propose(XName, Nodes) ->
    case asked(XName, Nodes) of
        {ok, #{formed := _} = Lost} ->
            name(XName, Lost);
        {ok, Known} ->
            name(XName, case [{Id, Uid, Salt} || {_, #{member := {Id, Uid, Salt}}} <- Known] of
                            [{Id, Uid, Salt} | _] ->
                                #{version => 1, life => rabbit_delay_lost_record:new_life(XName), salt => Salt,
                                  formed => true, members => [{Id, Uid}]};
                            [] ->
                                Loads = [{Node, Load} || {Node, #{load := Load, ready := true}} <- Known],
                                new_group(XName, choose(node(), size_of(XName), Loads))
                        end);
        Error ->
            Error
    end.

%% What those of the nodes hold that answer; or the group whose record was lost.
asked(XName, Nodes) ->
    {Known, Without} = said(XName, Nodes),
    case 2 * (length(Known) + length(Without)) > length(Nodes) andalso lost(XName, Known) of
        false -> {error, no_majority};
        none -> {ok, Known};
        unknown -> {error, forming};
        Lost -> {ok, Lost}
    end.

%% What nodes hold, and those that do not run this plugin.
said(XName, Nodes) ->
    Answers = lists:zip(Nodes, erpc:multicall(Nodes, ?MODULE, held, [XName], ?ASK_MS)),
    {[{Node, Held} || {Node, {ok, #{} = Held}} <- Answers],
     [Node || {Node, {error, {exception, undef, _}}} <- Answers]}.

lost(XName, Known) ->
    case rabbit_delay_lost_record:find(XName, [{Node, maps:get(complete, Held, []), maps:get(others, Held, [])}
                                               || {Node, Held} <- Known]) of
        {ok, Life, Salt, Members} ->
            #{version => 1, life => Life, salt => Salt, formed => false, lost => true, members => Members};
        Other ->
            Other
    end.

new_group(XName, Nodes) ->
    Life = rabbit_delay_lost_record:new_life(XName),
    #{version => 1, life => Life, salt => crypto:strong_rand_bytes(?SALT_BYTES), formed => false,
      members => [rabbit_delay_raft:new_member(XName, Node, Life) || Node <- Nodes]}.

%% What this node holds of the exchange, and how much of others; asked by others.
-spec held(rabbit_exchange:name()) -> map().
held(XName) ->
    {Complete, Others} = rabbit_delay_lost_record:held(XName),
    Held = #{load => length(rabbit_delay_table:members()),
             ready => rabbit_delay_system:status() =:= up,
             complete => Complete,
             others => Others},
    case rabbit_delay_raft:find_member(XName) of
        {ok, Uid} ->
            %% One of a group is not an exchange's that has none: that group's is being deleted.
            case rabbit_delay_raft:life_of(Uid) of
                undefined -> Held#{member => {rabbit_delay_raft:id_of(Uid), Uid,
                                              rabbit_delay_raft:salt_of(Uid)}};
                _ -> Held
            end;
        none ->
            Held
    end.

%% How many members the exchange's group is to have: an odd number, as two survive less than one, and four
%% no more than three.
-spec size_of(rabbit_exchange:name() | rabbit_delay_broker:exchange()) -> pos_integer().
size_of({resource, _, _, _} = XName) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} -> size_of(X);
        {error, not_found} -> odd(rabbit_delay_config:group_size())
    end;
size_of(X) ->
    odd(rabbit_delay_policy:group_size(X)).

%% The same as operators see it in this record of the exchange: what one of them has said goes before.
-spec aim_of(rabbit_delay_broker:exchange()) -> pos_integer().
aim_of(X) ->
    case rabbit_delay_broker:scratch(X, ?APP) of
        {ok, #{target := Target}} -> Target;
        _ -> size_of(X)
    end.

odd(N) when N > 1, N rem 2 =:= 0 -> N - 1;
odd(N) -> N.

%% This node first, then those that have the fewest members; of one where there are not three nodes.
choose(Here, Size, Candidates) ->
    Others = [Node || {_, Node} <- lists:sort([{Load, Node} || {Node, Load} <- Candidates,
                                                               Node =/= Here])],
    [Here | lists:sublist(Others, odd(max(1, min(Size, length(Others) + 1))) - 1)].

%% The record's first group is the exchange's.
name(XName, Group) ->
    ok = rabbit_exchange:update_scratch(XName, ?APP, fun (undefined) -> Group;
                                                         (Present) -> Present
                                                     end),
    case find(XName) of
        {ok, #{formed := true} = Present} -> {ok, Present};
        {ok, Present} -> form_in_turn(XName, Present);
        _ -> {error, exchange_not_found}
    end.

%% -------------------------------------------------------------------------------- forming

%% Its first member's node forms it; where that is away, any other. Each step can be done again.
form_in_turn(XName, #{members := [{{_, First}, _} | _]} = Group) ->
    case First =:= node() orelse not lists:member(First, nodes()) of
        true ->
            form(XName, Group);
        false ->
            %% Nothing may run for the exchange there yet.
            ok = gen_server:cast({rabbit_delay_registry, First}, {start_later, XName}),
            await_formed(XName, Group, erlang:monotonic_time(millisecond) + ?FORM_MS)
    end.

await_formed(XName, #{life := Life} = Group, Deadline) ->
    case {find(XName), erlang:monotonic_time(millisecond) < Deadline} of
        {{ok, #{formed := true} = Formed}, _} ->
            {ok, Formed};
        {{ok, #{life := Life}}, true} ->
            receive after ?COPY_AGAIN_MS -> ok end,
            await_formed(XName, Group, Deadline);
        {{ok, #{life := Life}}, false} ->
            form(XName, Group);
        _ ->
            {error, forming}
    end.

form(XName, #{lost := true} = Group) ->
    form_again(XName, Group);
form(XName, #{life := Life} = Group) ->
    %% Mnesia may have brought this record back in place of a later group's.
    {Known, _} = said(XName, [Node || Node <- rabbit_delay_broker:cluster_nodes(),
                                      Node =:= node() orelse lists:member(Node, nodes())]),
    case lost(XName, Known) of
        #{life := Other} = Lost when Other =/= Life -> place(XName, Life, Lost);
        unknown -> {error, forming};
        _ -> form_new(XName, Group)
    end.

%% What cannot be formed has confirmed nothing, and another group takes its place.
form_new(XName, #{life := Life, members := Members} = Group) ->
    Nodes = [Node || {{_, Node}, _} <- Members],
    Answers = started(XName, Nodes, Group),
    case [{Node, Answer} || {Node, Answer} <- Answers, Answer =/= {ok, ok}] of
        [] ->
            case completed(Members) of
                true ->
                    _ = ra:trigger_election(first(Members)),
                    formed(XName, Life);
                false ->
                    {error, forming}
            end;
        Failed ->
            ?LOG_WARNING("delayed messages of ~ts: a group of ~0p cannot be formed, and another is to "
                         "be named: ~0P", [rabbit_delay_text:rs(XName), Nodes, Failed, 20], ?LOG_DOMAIN),
            replace(XName, Life, Nodes -- [Node || {Node, _} <- Failed])
    end.

started(XName, Nodes, Group) ->
    Durable = case rabbit_delay_broker:lookup_exchange(XName) of
                  {ok, X} -> rabbit_delay_broker:is_durable(X);
                  {error, not_found} -> true
              end,
    lists:zip(Nodes, erpc:multicall(Nodes, ?MODULE, start_new, [XName, Durable, Group], ?START_MS)).

%% Most of its members know it before anything is confirmed. An earlier version of the plugin does not know of that.
completed(Members) ->
    Answers = erpc:multicall([Node || {{_, Node}, _} <- Members], ?MODULE, complete, [Members], ?ASK_MS),
    2 * length([told || {ok, ok} <- Answers] ++ [earlier || {error, {exception, undef, _}} <- Answers])
        > length(Members).

%% Of these, this node's.
-spec complete([member(), ...]) -> ok.
complete(Members) ->
    [Uid] = [Uid || {{_, Node}, Uid} <- Members, Node =:= node()],
    ok = rabbit_delay_raft:mark_complete(Uid).

%% Of one whose record was lost most members are enough; who else there is their leader knows.
form_again(XName, #{life := Life, members := Members} = Group) ->
    Nodes = [Node || {{_, Node}, _} <- Members],
    Answers = started(XName, Nodes, Group),
    case 2 * length([Node || {Node, {ok, ok}} <- Answers]) > length(Members) andalso completed(Members) of
        true ->
            ?LOG_WARNING("delayed messages of ~ts: the broker's metadata had lost the record of their group, as "
                         "it does when it takes a part of a split cluster back; it is made again, with members "
                         "on ~0p", [rabbit_delay_text:rs(XName), Nodes], ?LOG_DOMAIN),
            formed(XName, Life);
        false ->
            case asked(XName, rabbit_delay_broker:cluster_nodes()) of
                {ok, #{life := Life}} -> {error, forming};
                {ok, #{formed := _} = Lost} -> place(XName, Life, Lost);
                {ok, _} -> place(XName, Life, new_group(XName, [node()]));
                Error -> Error
            end
    end.

first(Members) ->
    case [Id || {{_, Node} = Id, _} <- Members, Node =:= node()] of
        [Id] -> Id;
        [] -> element(1, hd(Members))
    end.

formed(XName, Life) ->
    ok = update_of(XName, Life, fun (Group) -> maps:remove(lost, Group#{formed := true}) end),
    case find(XName) of
        {ok, #{life := Life, formed := true} = Group} -> {ok, Group};
        _ -> {error, not_formed}
    end.

%% By one of those that are there, if a majority of all nodes is: another part of the network may replace it, too.
replace(XName, Life, There) ->
    case asked(XName, rabbit_delay_broker:cluster_nodes()) of
        {ok, #{formed := _} = Lost} ->
            place(XName, Life, Lost);
        {ok, _} ->
            place(XName, Life, new_group(XName, choose(node(), length(There), [{Node, 0} || Node <- There])));
        Error ->
            Error
    end.

place(XName, Life, Next) ->
    ok = update_of(XName, Life, fun (#{formed := false}) -> Next;
                                    (Formed) -> Formed
                                end),
    {error, forming}.

update_of(XName, Life, Fun) ->
    rabbit_exchange:update_scratch(XName, ?APP, fun (#{life := L} = Group) when L =:= Life -> Fun(Group);
                                                    (Other) -> Other
                                                end).

%% ------------------------------------------------------------------------- later changes

%% The record names these members, too, each in place of what it named on that node, if it is of that life
%% and names what it did.
-spec named(rabbit_exchange:name(), group(), [member()]) -> {ok, group()} | {error, changed}.
named(XName, Group, Members) ->
    Nodes = [Node || {{_, Node}, _} <- Members],
    change_members(XName, Group, fun (Before) ->
                                         [Member || {{_, Node}, _} = Member <- Before,
                                                    not lists:member(Node, Nodes)] ++ Members
                                 end).

%% It names these members no more.
-spec unnamed(rabbit_exchange:name(), group(), [ra:server_id()]) -> {ok, group()} | {error, changed}.
unnamed(XName, Group, Ids) ->
    change_members(XName, Group, fun (Before) ->
                                         [Member || {Id, _} = Member <- Before,
                                                    not lists:member(Id, Ids)]
                                 end).

change_members(XName, #{life := Life, members := Before}, Change) ->
    After = Change(Before),
    ok = update_of(XName, Life, fun (#{formed := true, members := Members} = Group)
                                      when Members =:= Before -> Group#{members := After};
                                    (Other) -> Other
                                end),
    case find(XName) of
        {ok, #{life := Life, members := After} = Group} -> {ok, Group};
        _ -> {error, changed}
    end.

%% How many members an operator wants it to have.
-spec aimed_at(rabbit_exchange:name(), group(), pos_integer()) -> ok.
aimed_at(XName, #{life := Life}, Target) ->
    update_of(XName, Life, fun (Group) -> Group#{target => Target} end).

%% Starts this node's member of a group that is being formed; asked by whoever forms it.
-spec start_new(rabbit_exchange:name(), Durable :: boolean(), group()) -> ok | {error, term()}.
start_new(XName, Durable, #{life := Life} = Group) ->
    case await_copy(XName, Life, erlang:monotonic_time(millisecond) + ?COPY_MS) of
        {ok, _} ->
            %% What it confirms must find its record again.
            ok = rabbit_delay_broker:sync_metadata(),
            case rabbit_delay_system:ready() =/= not_ready andalso
                rabbit_delay_registry:end_other(XName, Life) of
                ok ->
                    {ok, {Id, _} = Member} = member(Group),
                    %% Whoever else forms it asks for the same.
                    Start = fun () -> start_first(XName, Durable, Member, Group) end,
                    case global:trans({Id, self()}, Start, [node()]) of
                        ok -> rabbit_delay_registry:start_later(XName);
                        Error -> Error
                    end;
                false ->
                    {error, not_ready};
                Other ->
                    {error, {an_earlier_one_is_still_here, Other}}
            end;
        Error ->
            Error
    end.

start_first(XName, Durable, Member, #{lost := true} = Group) ->
    rabbit_delay_raft:start_member(XName, Durable, Member, Group);
start_first(XName, Durable, Member, Group) ->
    rabbit_delay_raft:start_new_member(XName, Durable, Member, Group).

%% A member is started only if this node's own copy of the record names it.
await_copy(XName, Life, Deadline) ->
    case find(XName) of
        {ok, #{life := Life} = Group} ->
            {ok, Group};
        Other ->
            case erlang:monotonic_time(millisecond) < Deadline of
                true ->
                    receive after ?COPY_AGAIN_MS -> ok end,
                    await_copy(XName, Life, Deadline);
                false ->
                    {error, {other_group, Other}}
            end
    end.

%% Waits until this node's copy of the record names this member, or does not.
-spec await_named(rabbit_exchange:name(), member(), boolean()) -> {ok, group()} | {error, term()}.
await_named(XName, Member, IsNamed) ->
    await_named(XName, Member, IsNamed, erlang:monotonic_time(millisecond) + ?COPY_MS).

await_named(XName, Member, IsNamed, Deadline) ->
    case find(XName) of
        {ok, #{members := Members} = Group} ->
            case {lists:member(Member, Members), erlang:monotonic_time(millisecond) < Deadline} of
                {IsNamed, _} ->
                    {ok, Group};
                {_, true} ->
                    receive after ?COPY_AGAIN_MS -> ok end,
                    await_named(XName, Member, IsNamed, Deadline);
                {_, false} ->
                    {error, {other_group, Members}}
            end;
        Other ->
            {error, {other_group, Other}}
    end.

%% ---------------------------------------------------------------------------------- leader

%% Whether what is said to lead is of the group of that life: a member that was away may yet lead an
%% earlier one.
-spec may_lead(rabbit_exchange:name(), ra:server_id(), Life :: binary() | undefined) -> boolean().
may_lead(_, _, undefined) ->
    true;
may_lead(XName, ServerId, Life) ->
    case life_of_id(ServerId) of
        Life -> true;
        undefined -> case find(XName) of
                         {ok, #{life := Life} = Group} -> lists:member(ServerId, ids(Group));
                         _ -> false
                     end;
        _ -> false
    end.

%% Who leads, as one of the members knows it, which are asked in turns.
-spec leader([ra:server_id()]) -> {ok, ra:server_id()} | none.
leader(Ids) ->
    case led(Ids) of
        {ok, _, Leader} -> {ok, Leader};
        none -> none
    end.

%% The same, on the node of a member, which stands for election where nobody leads for a while: servers that have
%% never heard of a leader await one without a bound in Ra, and the first may be lost before.
-spec led_or_stand(Own :: ra:server_id(), [ra:server_id()]) -> {ok, ra:server_id()} | none.
led_or_stand(Own, Ids) ->
    led_or_stand(Own, Ids, erlang:monotonic_time(millisecond) + ?STAND_MS).

led_or_stand(Own, Ids, Until) ->
    case {leader(Ids), erlang:monotonic_time(millisecond) < Until} of
        {none, true} ->
            receive after ?LEADER_AGAIN_MS -> led_or_stand(Own, Ids, Until) end;
        {none, false} ->
            _ = try ra:trigger_election(Own) catch exit:_ -> gone end,
            none;
        {Led, _} ->
            Led
    end.

%% The ids of all members in Raft's configuration, as the leader has it.
-spec configuration([ra:server_id()]) -> {ok, [ra:server_id()]} | none.
configuration(Ids) ->
    case led(Ids) of
        {ok, Members, _} -> {ok, Members};
        none -> none
    end.

%% Whoever is asked has the leader answer.
led([]) ->
    none;
led([Id | Rest]) ->
    try ra:members(Id, ?ASK_MS) of
        {ok, Members, {_, _} = Leader} -> {ok, Members, Leader};
        _ -> led(Rest)
    catch
        exit:_ -> led(Rest)
    end.
