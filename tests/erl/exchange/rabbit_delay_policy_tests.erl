%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_policy_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/rabbit.hrl").

-define(P, rabbit_delay_policy).

valid() ->
    [{<<"delay-default">>, [1, 3153600000000, <<"1">>, <<"30s">>, <<" 10 m">>, <<"36500d">>]},
     {<<"delay-max-length">>, [0, 4294967294]},
     {<<"delay-max-length-bytes">>, [0, 16#7fffffffffffffff, <<"2kB">>, <<"2MB">>, <<"0">>]},
     {<<"delay-release-rate">>, [1, 10000000]},
     {<<"delay-initial-group-size">>, [1, 2, 3, 7, 2147483647]},
     {<<"delay-overdue">>, [<<"deliver">>, <<"drop">>, <<"dead-letter">>]},
     {<<"delay-overdue-after">>, [0, 3153600000000, <<"1w">>]}].

invalid() ->
    [{<<"delay-default">>, [0, 3153600000001, 1.5, <<"0s">>, <<"36501d">>, <<"soon">>, true]},
     {<<"delay-max-length">>, [-1, 4294967295, <<"2kB">>]},
     {<<"delay-max-length-bytes">>, [-1, 1 bsl 63, <<"8388608TB">>, <<"2s">>]},
     {<<"delay-release-rate">>, [0, 10000001]},
     {<<"delay-initial-group-size">>, [0, -1, 1.5, 2147483648, <<"3">>, <<"all">>, true]},
     {<<"delay-overdue">>, [<<"Drop">>, <<>>, 1]},
     {<<"delay-overdue-after">>, [-1, 3153600000001, <<"-1s">>, <<"2kB">>]}].

pairs(List) -> [{Name, Value} || {Name, Values} <- List, Value <- Values].

policy_test_() ->
    [?_assertEqual(ok, ?P:validate_policy([Pair])) || Pair <- pairs(valid())]
        ++ [?_assertMatch({error, _, [Name | _]},
                          ?P:validate_policy([{<<"delay-default">>, 5}, {Name, Value}]))
            || {Name, Value} <- pairs(invalid())].

arguments_test_() ->
    Args = fun (Name, Value) -> [{<<"x-", Name/binary>>, long, Value}] end,
    [?_assertEqual(ok, ?P:validate_arguments(Args(Name, Value))) || {Name, Value} <- pairs(valid())]
        ++ [?_assertMatch({error, _, [<<"x-", Name/binary>> | _]},
                          ?P:validate_arguments(Args(Name, Value)))
            || {Name, Value} <- pairs(invalid())]
        ++ [?_assertEqual(ok, ?P:validate_arguments([]))].

%% The argument, else the policy, else nothing; what is invalid is nothing.
settings_test_() ->
    X = #exchange{arguments = [], policy = undefined, operator_policy = undefined},
    Arg = fun (Name, Value) -> X#exchange{arguments = [{<<"x-", Name/binary>>, long, Value}]} end,
    Policy = fun (Definition, Y) -> Y#exchange{policy = [{definition, Definition}]} end,
    Default = <<"delay-default">>,
    [?_assertEqual(none, ?P:default_delay(X)),
     ?_assertEqual(5, ?P:default_delay(Arg(Default, 5))),
     ?_assertEqual(7, ?P:default_delay(Policy([{Default, 7}], X))),
     ?_assertEqual(5, ?P:default_delay(Policy([{Default, 7}], Arg(Default, 5)))),
     ?_assertEqual(none, ?P:default_delay(Policy([{Default, <<"soon">>}], X))),
     ?_assertEqual(30000, ?P:default_delay(Policy([{Default, <<"30s">>}], X))),
     ?_assertEqual(30000, ?P:default_delay(Arg(Default, <<"30s">>))),
     ?_assertEqual({infinity, 2048}, ?P:limits(Arg(<<"delay-max-length-bytes">>, <<"2kB">>))),
     ?_assertEqual({drop, 60000}, ?P:overdue(Policy([{<<"delay-overdue-after">>, <<"1m">>}],
                                                    Arg(<<"delay-overdue">>, <<"drop">>)))),
     ?_assertEqual({infinity, infinity}, ?P:limits(X)),
     ?_assertEqual(rabbit_delay_config:group_size(), ?P:group_size(X)),
     ?_assertEqual(5, ?P:group_size(Arg(<<"delay-initial-group-size">>, 5))),
     ?_assertEqual(1, ?P:group_size(Policy([{<<"delay-initial-group-size">>, 1}], X))),
     ?_assertEqual(5, ?P:group_size(Policy([{<<"delay-initial-group-size">>, 1}],
                                           Arg(<<"delay-initial-group-size">>, 5)))),
     ?_assertEqual({3, infinity}, ?P:limits(Arg(<<"delay-max-length">>, 3))),
     ?_assertEqual({3, 9}, ?P:limits(Policy([{<<"delay-max-length">>, 3},
                                             {<<"delay-max-length-bytes">>, 9}], X))),
     ?_assertEqual(infinity, ?P:release_rate(X)),
     ?_assertEqual(100, ?P:release_rate(Arg(<<"delay-release-rate">>, 100))),
     ?_assertEqual(deliver, ?P:overdue(X)),
     ?_assertEqual(deliver, ?P:overdue(Arg(<<"delay-overdue-after">>, 100))),
     ?_assertEqual({drop, 0}, ?P:overdue(Arg(<<"delay-overdue">>, <<"drop">>))),
     ?_assertEqual({drop, 9}, ?P:overdue(Policy([{<<"delay-overdue-after">>, 9}],
                                                Arg(<<"delay-overdue">>, <<"drop">>)))),
     ?_assertEqual(deliver, ?P:overdue(Arg(<<"delay-overdue">>, <<"dead-letter">>))),
     ?_assertEqual({dead_letter, 0},
                   ?P:overdue(Policy([{<<"delay-dead-letter-exchange">>, <<"dlx">>}],
                                     Arg(<<"delay-overdue">>, <<"dead-letter">>)))),
     ?_assertEqual(none, ?P:dead_letter_exchange(X)),
     %% By policy only.
     ?_assertEqual(none, ?P:dead_letter_exchange(Arg(<<"delay-dead-letter-exchange">>, <<"dlx">>))),
     ?_assertEqual({<<"dlx">>, undefined},
                   ?P:dead_letter_exchange(
                      Policy([{<<"delay-dead-letter-exchange">>, <<"dlx">>}], X))),
     ?_assertEqual({<<"dlx">>, <<"k">>},
                   ?P:dead_letter_exchange(
                      Policy([{<<"delay-dead-letter-exchange">>, <<"dlx">>},
                              {<<"delay-dead-letter-routing-key">>, <<"k">>}], X))),
     ?_assertEqual(none, ?P:dead_letter_exchange(
                            Policy([{<<"delay-dead-letter-exchange">>, 5}], X))),
     ?_assertEqual(3, ?P:merge_policy_value(<<"delay-max-length">>, 3, 4)),
     ?_assertEqual(3, ?P:merge_policy_value(<<"delay-max-length">>, 5, 3)),
     [?_assertEqual(Lower, ?P:merge_policy_value(<<"delay-max-length-bytes">>, Value, Operators))
      || {Lower, Value, Operators} <- [{<<"2kB">>, <<"2kB">>, <<"1MB">>}, {<<"2kB">>, <<"1MB">>, <<"2kB">>},
                                       {5, <<"2kB">>, 5}, {5, 5, <<"2kB">>},
                                       {<<"2kB">>, 3000, <<"2kB">>}, {<<"2kB">>, <<"2kB">>, 3000}]]].
