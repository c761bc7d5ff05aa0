%% SPDX-License-Identifier: MPL-2.0

%% The plugin's boot steps.
-module(rabbit_delay_sup_tests).

-include_lib("eunit/include/eunit.hrl").

%% In a broker that the archive is not for, other modules may not be loaded.
all_boot_steps_are_in_one_module_test() ->
    _ = application:load(rabbitmq_delay_wheel),
    {ok, Modules} = application:get_key(rabbitmq_delay_wheel, modules),
    ?assertMatch([_, _ | _], Modules),
    ?assertEqual([rabbit_delay_sup],
                 [Module || Module <- Modules,
                            lists:keymember(rabbit_boot_step, 1, Module:module_info(attributes))]).

%% What each does is there.
they_call_what_is_exported_test_() ->
    [{atom_to_list(Step), ?_assert(erlang:function_exported(M, F, length(A)))}
     || {rabbit_boot_step, [{Step, Properties}]} <- rabbit_delay_sup:module_info(attributes),
        {What, {M, F, A}} <- Properties, What =:= mfa orelse What =:= cleanup,
        {module, M} =:= code:ensure_loaded(M)].
