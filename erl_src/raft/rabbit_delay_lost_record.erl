%% SPDX-License-Identifier: MPL-2.0

%% Groups whose record the broker's metadata has lost: on Mnesia, when a cluster was split and one part is
%% taken back to what the other has (autoheal, or nodes that an operator starts again).
%%
%% Nothing but the exchange's mark tells such a group from one of an earlier exchange of the same name, which
%% was deleted while a node was away. The mark is random, made when the exchange is declared, and goes with it;
%% the life of each of its groups begins with it. What is on Khepri is not lost, and is not marked.
%%
%% It owns no process.
-module(rabbit_delay_lost_record).

-export([mark/1, mark_all/1, new_life/1, may_be_of/2, held/1, find/2]).
-export([chosen/4]).

-export_type([held/0]).

%% This node's members of groups that were complete, the newest last; or of others, as far as is known here.
-type held() :: [{ra:server_id(), rabbit_delay_raft:uid(), rabbit_delay_key:salt(), Initial :: [ra:server_id()]}].

%% Of the scratch in the exchange's record.
-define(APP, rabbitmq_delay_wheel_mark).
-define(MARK_BYTES, 6).
-define(LIFE_BYTES, 6).

%% An exchange that has been declared.
-spec mark(rabbit_exchange:name()) -> ok.
mark(XName) ->
    mark_all([XName]).

%% Those of these that an earlier version has declared.
-spec mark_all([rabbit_exchange:name()]) -> ok.
mark_all(XNames) ->
    _ = rabbit_delay_broker:is_khepri() orelse lists:foreach(fun mark_unmarked/1, XNames),
    ok.

mark_unmarked(XName) ->
    try of_exchange(XName) of
        undefined ->
            Mark = random(?MARK_BYTES),
            rabbit_exchange:update_scratch(XName, ?APP, fun (undefined) -> Mark;
                                                            (Present) -> Present
                                                        end);
        _ ->
            ok
    catch
        %% It is as one that was declared by an earlier version.
        _:_ -> ok
    end.

of_exchange(XName) ->
    case rabbit_exchange:lookup_scratch(XName, ?APP) of
        {ok, Mark} -> Mark;
        {error, not_found} -> undefined
    end.

random(Bytes) -> binary:encode_hex(crypto:strong_rand_bytes(Bytes)).

%% Of a new group.
-spec new_life(rabbit_exchange:name()) -> binary().
new_life(XName) ->
    case of_exchange(XName) of
        undefined -> random(?LIFE_BYTES);
        Mark -> <<Mark/binary, (random(?LIFE_BYTES))/binary>>
    end.

%% Whether a group of that life is this very exchange's, and may be named by its record again.
-spec may_be_of(rabbit_exchange:name(), Life :: binary() | undefined) -> boolean().
may_be_of(_, undefined) ->
    false;
may_be_of(XName, Life) ->
    case rabbit_delay_group:find(XName) of
        {ok, #{formed := true}} -> false;
        {later, _} -> false;
        _ -> is_marked(Life, of_exchange(XName))
    end.

is_marked(_, undefined) -> false;
is_marked(Life, Mark) -> binary:longest_common_prefix([Life, Mark]) =:= byte_size(Mark).

-spec held(rabbit_exchange:name()) -> {Complete :: held(), Others :: held()}.
held(XName) ->
    {Complete, Others} = lists:partition(fun ({_, IsComplete}) -> IsComplete end,
                                         rabbit_delay_raft:members_of_groups(XName)),
    {[described(Uid) || {Uid, _} <- Complete], [described(Uid) || {Uid, _} <- Others]}.

described(Uid) ->
    {rabbit_delay_raft:id_of(Uid), Uid, rabbit_delay_raft:salt_of(Uid), rabbit_delay_raft:initial_members(Uid)}.

%% The group that the record of the exchange is to name again, as nodes answer what they hold. unknown: it may be
%% one of which not enough members are there at present.
-spec find(rabbit_exchange:name(), [{node(), Complete :: held(), Others :: held()}]) ->
          {ok, Life :: binary(), rabbit_delay_key:salt(), [rabbit_delay_group:member(), ...]} | none | unknown.
find(XName, Answers) ->
    chosen(of_exchange(XName), lists:append([Complete || {_, Complete, _} <- Answers]),
           lists:append([Others || {_, _, Others} <- Answers]),
           rabbit_delay_broker:cluster_nodes() -- [Node || {Node, _, _} <- Answers]).

%% The same of what all hold that have answered, and the nodes of the cluster that have not. Groups that most members
%% know to have been complete go before such as may have been: of these that may be, who is away may know.
-spec chosen(Mark :: binary() | undefined, Complete :: held(), Others :: held(), Away :: [node()]) ->
          {ok, Life :: binary(), rabbit_delay_key:salt(), [rabbit_delay_group:member(), ...]} | none | unknown.
chosen(Mark, Complete, Others, Away) ->
    Lives = lists:usort([Life || {Id, _, _, _} <- Complete, Life <- [rabbit_delay_group:life_of_id(Id)],
                                 Life =/= undefined, is_marked(Life, Mark)]),
    Groups = [group(Life, Complete, Others, Away) || Life <- Lives],
    case {[Group || {complete, Group} <- Groups], lists:member(unknown, Groups),
          [Group || {may_be, Group} <- Groups]} of
        {[{Life, Salt, Members} | _], _, _} -> {ok, Life, Salt, Members};
        {[], true, _} -> unknown;
        {[], false, [{Life, Salt, Members} | _]} -> {ok, Life, Salt, Members};
        {[], false, []} -> none
    end.

%% Any of its members that knows says who they were when that one was made. All were started before one could know, so
%% the files of a majority are enough, whether these know or not. Who the others are its leader knows.
group(Life, Complete, Others, Away) ->
    Own = [Member || {Id, _, _, _} = Member <- Complete, rabbit_delay_group:life_of_id(Id) =:= Life],
    Present = maps:from_list([{Node, {Id, Uid}} || {{_, Node} = Id, Uid, _, _} <- Others ++ Complete,
                                                   is_in(Id, Own)]),
    Ids = [Id || {Id, _} <- maps:values(Present)],
    Know = [Id || Id <- Ids, lists:keymember(Id, 1, Complete)],
    Said = [said(Initial, Know, Ids, Away) || {_, _, _, Initial} <- Own],
    [{_, _, Salt, _} | _] = Own,
    Group = {Life, Salt, lists:sort(maps:values(Present))},
    case [Word || Word <- [complete, may_be, unknown], lists:member(Word, Said)] of
        [unknown | _] -> unknown;
        [Word | _] -> {Word, Group};
        [] -> none
    end.

is_in(Id, Own) -> lists:any(fun ({Other, _, _, Initial}) -> Id =:= Other orelse lists:member(Id, Initial) end, Own).

said(Initial, Know, Ids, Away) ->
    All = length(Initial),
    Knowing = length([Id || Id <- Initial, lists:member(Id, Know)]),
    There = length([Id || Id <- Initial, lists:member(Id, Ids)]),
    Gone = length([Id || {_, Node} = Id <- Initial, not lists:member(Id, Ids), lists:member(Node, Away)]),
    case {2 * Knowing > All, 2 * (Knowing + Gone) > All, 2 * There > All} of
        {true, _, _} -> complete;
        {false, true, true} -> may_be;
        {false, true, false} -> unknown;
        {false, false, _} -> none
    end.
