%% SPDX-License-Identifier: MPL-2.0

%% Every group of up to five nodes, with any of them in the cluster, up, or without its files: what is
%% done next keeps the rules, and what is done one after the other comes to rest where it should.
-module(rabbit_delay_membership_tests).

-include_lib("eunit/include/eunit.hrl").

-define(NODES, [a, b, c, d, e]).
%% More steps than any group of these needs.
-define(STEPS, 20).

every_group_test_() ->
    {timeout, 120, fun every_group/0}.

every_group() ->
    Worlds = [#{members => Members, cluster => Cluster, up => Up, lost => Lost, target => Target}
              || Members <- subsets(?NODES), lists:member(a, Members),
                 Cluster <- subsets(?NODES), lists:member(a, Cluster),
                 Up <- subsets(Cluster), lists:member(a, Up),
                 Lost <- subsets(Members -- [a]), Lost -- Cluster =:= [],
                 Target <- [1, 3]],
    ?assert(length(Worlds) > 1000),
    lists:foreach(fun (World) -> rests(World, ?STEPS) end, Worlds).

rests(World, 0) ->
    error({does_not_rest, World});
rests(World, Left) ->
    case rabbit_delay_membership:next(view(World)) of
        rest -> ?assertEqual(none, missing(World), World);
        Step -> rests(done(Step, World), Left - 1)
    end.

%% The leader is on a. A node that is up runs its member, if that has its files.
view(#{members := Members, cluster := Cluster, up := Up, lost := Lost, target := Target}) ->
    #{leader => id(a), members => ids(Members), voters => ids(Members), named => ids(Members),
      cluster => Cluster, up => ids([N || N <- Members, is_up(N, Up, Lost)]),
      lost => ids([N || N <- Lost, lists:member(N, Up)]),
      candidates => Up -- Members, target => Target}.

is_up(Node, Up, Lost) -> lists:member(Node, Up) andalso not lists:member(Node, Lost).

done({remove, {_, Node} = Id}, #{members := Members, cluster := Cluster, up := Up, lost := Lost} = World) ->
    ?assert(lists:member(Node, Members)),
    ?assertNotEqual(id(a), Id),
    %% Not for being down.
    ?assert(not lists:member(Node, Cluster) orelse lists:member(Node, Lost)),
    Staying = Members -- [Node],
    ?assert(is_majority(Staying, Up, Lost)),
    World#{members := Staying, lost := Lost -- [Node]};
done({add, Node}, #{members := Members, up := Up, lost := Lost, target := Target} = World) ->
    ?assertNot(lists:member(Node, Members)),
    ?assert(lists:member(Node, Up)),
    ?assert(length(Members) < Target),
    %% A majority of the larger group without it, but for a second one.
    ?assert(2 * length([N || N <- Members, is_up(N, Up, Lost)]) > length(Members) + 1
            orelse Members =:= [a]),
    ?assert(length(Members) > 1 orelse length(Up -- Members) >= 2),
    World#{members := Members ++ [Node]}.

is_majority(Members, Up, Lost) ->
    2 * length([N || N <- Members, is_up(N, Up, Lost)]) > length(Members).

%% What is left to do and could be done.
missing(#{members := Members, cluster := Cluster, up := Up, lost := Lost, target := Target}) ->
    Removable = [N || N <- Members -- [a],
                      not lists:member(N, Cluster) orelse (lists:member(N, Lost) andalso lists:member(N, Up)),
                      is_majority(Members -- [N], Up, Lost)],
    Gone = [N || N <- Members -- [a], not lists:member(N, Cluster) orelse (lists:member(N, Lost)
                                                                           andalso lists:member(N, Up))],
    Others = Up -- Members,
    MayGrow = Gone =:= [] andalso length(Members) < Target andalso Others =/= []
        andalso (case Members of
                     [a] -> length(Others) >= 2;
                     _ -> length(Members) + length(Others) >= 3 andalso
                              2 * length([N || N <- Members, is_up(N, Up, Lost)]) > length(Members) + 1
                 end),
    case {Removable, MayGrow} of
        {[_ | _], _} -> case hd(Gone) =:= hd(Removable) of
                            true -> {not_removed, Removable};
                            %% One at a time, in order.
                            false -> none
                        end;
        {[], true} -> not_grown;
        _ -> none
    end.

%% ------------------------------------------------------------------------------- the record

the_record_comes_first_test() ->
    World = view(#{members => [a, b], cluster => ?NODES, up => ?NODES, lost => [], target => 3}),
    ?assertEqual({name, [id(b)]}, rabbit_delay_membership:next(World#{named := [id(a)]})),
    ?assertEqual({unname, [id(c)]}, rabbit_delay_membership:next(World#{named := ids([a, b, c])})),
    ?assertEqual({add, c}, rabbit_delay_membership:next(World)).

%% As the record was set back while they were members. Nobody can name them.
what_the_record_lacks_and_nobody_has_is_removed_test() ->
    World = view(#{members => [a, b, c], cluster => ?NODES, up => ?NODES, lost => [], target => 3}),
    Named = World#{named := ids([a, b])},
    ?assertEqual({name, [id(c)]}, rabbit_delay_membership:next(Named)),
    ?assertEqual({remove, id(c)}, rabbit_delay_membership:next(Named#{lost := [id(c)]})),
    ?assertEqual({remove, id(c)}, rabbit_delay_membership:next(Named#{cluster := [a, b, d, e]})),
    %% Another one is named all the same.
    ?assertEqual({name, [id(b)]}, rabbit_delay_membership:next(World#{named := [id(a)], lost := [id(c)]})).

one_that_does_not_vote_yet_is_waited_for_test() ->
    World = view(#{members => [a, b], cluster => ?NODES, up => ?NODES, lost => [], target => 3}),
    ?assertEqual(rest, rabbit_delay_membership:next(World#{voters := [id(a)]})).

ids(Nodes) -> [id(Node) || Node <- Nodes].

id(Node) -> {member, Node}.

subsets([]) -> [[]];
subsets([Node | Rest]) -> [Subset || Others <- subsets(Rest), Subset <- [Others, [Node | Others]]].
