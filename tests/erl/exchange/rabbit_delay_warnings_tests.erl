%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_warnings_tests).

-include_lib("eunit/include/eunit.hrl").

-define(W, rabbit_delay_warnings).

%% Of one every 3 s of one kind and one every 7 s of another, for two minutes: each kind is said at
%% most once in ten seconds, whatever the other does, and every one is said or counted.
one_of_a_kind_in_ten_seconds_test() ->
    Events = lists:sort([{T, often} || T <- lists:seq(-60000, 60000, 3000)] ++
                            [{T, seldom} || T <- lists:seq(-60000, 60000, 7000)]),
    {Said, _} = lists:foldl(fun ({Now, Kind}, {Acc, Ws0}) ->
                                    case ?W:counted(Kind, Now, Ws0) of
                                        {say, Unsaid, Ws} -> {[{Kind, Now, Unsaid} | Acc], Ws};
                                        {say_nothing, Ws} -> {Acc, Ws}
                                    end
                            end, {[], ?W:new()}, Events),
    [begin
         OfKind = lists:reverse([{Now, N} || {K, Now, N} <- Said, K =:= Kind]),
         ?assertEqual([{T, N} || T <- lists:seq(-60000, 60000, Apart),
                                 N <- [case T of -60000 -> 0; _ -> Between end]], OfKind)
     end || {Kind, Apart, Between} <- [{often, 12000, 3}, {seldom, 14000, 1}]].
