%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_budget_tests).

-include_lib("eunit/include/eunit.hrl").

budget_test_() ->
    {setup,
     fun () -> {ok, Pid} = rabbit_delay_budget:start_link(), Pid end,
     fun (Pid) -> unlink(Pid), exit(Pid, kill) end,
     [fun within/0, fun others_wait/0, fun what_a_dead_process_had_is_given_back/0, fun kinds_are_apart/0]}.

%% Who has some asks for no more.
within() ->
    ?assertEqual(done, rabbit_delay_budget:with(
                         looks, 1000, fun () -> rabbit_delay_budget:with(looks, 4, fun () -> done end) end)),
    ?assertError(wrong, rabbit_delay_budget:with(looks, 4, fun () -> error(wrong) end)),
    ?assertEqual(done, rabbit_delay_budget:with(looks, 4, fun () -> done end)).

holder(Kind, Amount) ->
    Self = self(),
    Pid = spawn(fun () ->
                        rabbit_delay_budget:with(Kind, Amount, fun () ->
                                                                       Self ! {self(), has},
                                                                       receive go -> ok end
                                                               end),
                        Self ! {self(), over}
                end),
    Pid.

has(Pid) -> receive {Pid, has} -> ok end.

others_wait() ->
    A = holder(looks, 3),
    has(A),
    B = holder(looks, 2),
    C = holder(looks, 1),
    %% In the order of asking: C does not go before B. Whatever was sent is seen when this is answered.
    _ = sys:get_state(rabbit_delay_budget),
    receive {P, has} when P =:= B; P =:= C -> error(too_early) after 0 -> ok end,
    A ! go,
    has(B),
    has(C),
    B ! go,
    C ! go,
    [receive {P, over} -> ok end || P <- [A, B, C]].

what_a_dead_process_had_is_given_back() ->
    A = holder(looks, 4),
    has(A),
    B = holder(looks, 4),
    exit(A, kill),
    has(B),
    B ! go,
    receive {B, over} -> ok end.

kinds_are_apart() ->
    A = holder(looks, 4),
    has(A),
    ?assertEqual(done, rabbit_delay_budget:with(bytes, 1, fun () -> done end)),
    A ! go,
    receive {A, over} -> ok end.
