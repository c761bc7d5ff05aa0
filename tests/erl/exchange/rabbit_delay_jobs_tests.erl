%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_jobs_tests).

%% PropEr's before EUnit's: both define ?LET, and only EUnit minds.
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(J, rabbit_delay_jobs).
-define(BACKGROUND, 8).

x(Name) -> {resource, <<"/">>, exchange, atom_to_binary(Name)}.

from(N) -> {self(), N}.

%% ----------------------------------------------------------------------------- one exchange

who_asks_for_the_same_has_the_same_answer_test() ->
    {start, J1} = ?J:ask(ensure, x(a), from(1), 10, ?J:new()),
    {wait, J2} = ?J:ask(ensure, x(a), from(2), 20, J1),
    {wait, J3} = ?J:ask(delete, x(a), from(3), 30, J2),
    {wait, J4} = ?J:ask(ensure, x(a), from(4), 40, J3),
    {wait, J5} = ?J:ask(ensure, x(a), from(5), 50, J4),
    {wait, J6} = ?J:ask(delete, x(a), from(6), 60, J5),
    ?assertEqual({ensure, 10}, ?J:current(x(a), J6)),
    {First, {start, delete}, J7} = ?J:ended(x(a), 100, J6),
    ?assertEqual([from(1), from(2)], lists:sort(First)),
    %% Who asked for an exchange that is being deleted waits for the end of that.
    ?assertEqual({delete, 100}, ?J:current(x(a), J7)),
    {[{_, 3}], {start, ensure}, J8} = ?J:ended(x(a), 200, J7),
    {Others, {start, delete}, J9} = ?J:ended(x(a), 300, J8),
    ?assertEqual([from(4), from(5)], lists:sort(Others)),
    {[{_, 6}], nothing, J10} = ?J:ended(x(a), 400, J9),
    ?assertNot(?J:is_under_way(x(a), J10)).

another_attempt_keeps_who_waits_and_since_when_test() ->
    {start, J1} = ?J:ask(delete, x(a), from(1), 10, ?J:new()),
    {wait, J2} = ?J:ask(ensure, x(a), from(2), 20, J1),
    J3 = ?J:again(x(a), J2),
    ?assertEqual({delete, 10}, ?J:current(x(a), J3)),
    {[{_, 1}], {start, ensure}, J4} = ?J:ended(x(a), 500, J3),
    ?assertMatch({[{_, 2}], nothing, _}, ?J:ended(x(a), 600, J4)).

what_an_earlier_registry_left_is_waited_for_test() ->
    J1 = ?J:adopt(delete, x(a), 10, ?J:new()),
    {wait, J2} = ?J:ask(ensure, x(a), from(1), 20, J1),
    {[], {start, ensure}, J3} = ?J:ended(x(a), 30, J2),
    ?assertEqual({ensure, 30}, ?J:current(x(a), J3)).

pauses_double_up_to_a_bound_test() ->
    {Pauses, J} = lists:foldl(fun (_, {Acc, J0}) ->
                                      {Pause, J1} = ?J:failed(x(a), J0),
                                      {[Pause | Acc], J1}
                              end, {[], ?J:new()}, lists:seq(1, 8)),
    ?assertEqual([1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000], lists:reverse(Pauses)),
    ?assert(?J:is_failing(x(a), J)),
    ?assertNot(?J:is_failing(x(b), J)),
    ?assertMatch({1000, _}, ?J:failed(x(b), J)),
    ?assertMatch({1000, _}, ?J:failed(x(a), ?J:succeeded(x(a), J))).

%% ------------------------------------------------------------------------------------- model

%% Whatever is asked for, and whatever ends in whatever order: one job at a time for an exchange, at
%% most so many that nobody asked for, each of which is begun once; everyone who asks is answered once,
%% by a job of the kind asked for that ended after that; and in the end nothing is left.
model_test_() ->
    {timeout, 1200,
     fun () ->
             ?assert(proper:quickcheck(
                       ?FORALL(Steps, list(step()), is_right(Steps)),
                       [{numtests, 1000}, {to_file, user}]))
     end}.

step() ->
    oneof([{ask, oneof([ensure, delete, put_aside]), name()}, {later, name()}, {ended, range(1, 20)},
           {again, range(1, 20)}]).

name() -> oneof([list_to_atom("x" ++ integer_to_list(N)) || N <- lists:seq(1, 14)]).

%% Asked: who, for what and of which exchange. Running: which, what, whether nobody asked for it.
%% Wanted: those that are to be started and that nobody waits for.
-record(model, {jobs = ?J:new(), now = 0, asked = [], running = [], wanted = [], begun = 0}).

is_right(Steps) ->
    M = lists:foldl(fun (Step, M0) -> more(step(Step, M0#model{now = M0#model.now + 1})) end,
                    #model{}, Steps),
    is_all_done(M, 10 * length(Steps) + 10).

is_all_done(#model{running = [], asked = Asked, wanted = Wanted}, _) ->
    Asked =:= [] andalso Wanted =:= [];
is_all_done(M, Left) when Left > 0 ->
    is_all_done(more(step({ended, 1}, M#model{now = M#model.now + 1})), Left - 1).

step({ask, What, Name}, #model{jobs = J0, now = Now, asked = Asked, running = Running} = M) ->
    From = from(Now),
    {Then, J} = ?J:ask(What, x(Name), From, Now, J0),
    Then = case lists:keymember(Name, 1, Running) of true -> wait; false -> start end,
    M#model{jobs = J, asked = Asked ++ [{Name, What, From}],
            running = Running ++ [{Name, What, asked, Now} || Then =:= start]};
step({later, Name}, #model{jobs = J, running = Running, wanted = Wanted} = M) ->
    IsNew = not lists:keymember(Name, 1, Running) andalso not lists:member(Name, Wanted),
    M#model{jobs = ?J:later(x(Name), J), wanted = Wanted ++ [Name || IsNew]};
step({_, N}, #model{running = Running} = M) when N > length(Running) ->
    M;
step({again, N}, #model{jobs = J, running = Running} = M) ->
    {Name, What, _, Began} = Job = lists:nth(N, Running),
    {What, Began} = ?J:current(x(Name), J),
    M#model{jobs = ?J:again(x(Name), J),
            running = [case R of Job -> {Name, What, asked, Began}; _ -> R end || R <- Running]};
step({ended, N}, #model{jobs = J0, now = Now, asked = Asked0, running = Running} = M) ->
    {Name, What, _, Began} = Job = lists:nth(N, Running),
    {What, Began} = ?J:current(x(Name), J0),
    {Froms, Next, J} = ?J:ended(x(Name), Now, J0),
    Of = [A || {Who, _, _} = A <- Asked0, Who =:= Name],
    %% Those at the front of the exchange's line that want the same.
    Answered = lists:takewhile(fun ({_, Wants, _}) -> Wants =:= What end, Of),
    true = lists:sort(Froms) =:= lists:sort([From || {_, _, From} <- Answered]),
    true = Next =:= case Of -- Answered of
                        [] -> nothing;
                        [{_, Then, _} | _] -> {start, Then}
                    end,
    M#model{jobs = J, asked = Asked0 -- Answered,
            running = (Running -- [Job]) ++ case Next of
                                                {start, Then1} -> [{Name, Then1, asked, Now}];
                                                nothing -> []
                                            end}.

more(#model{jobs = J0, now = Now, running = Running, wanted = Wanted} = M) ->
    Busy = length([R || {_, _, nobody, _} = R <- Running]),
    true = Busy =< ?BACKGROUND,
    Due = lists:dropwhile(fun (Name) -> lists:keymember(Name, 1, Running) end, Wanted),
    case ?J:next(Now, J0) of
        {none, J} when Busy =:= ?BACKGROUND ->
            M#model{jobs = J};
        {none, J} ->
            [] = Due,
            M#model{jobs = J, wanted = []};
        {start, X, J} ->
            [Name | Rest] = Due,
            X = x(Name),
            more(M#model{jobs = J, wanted = Rest, running = Running ++ [{Name, ensure, nobody, Now}]})
    end.
