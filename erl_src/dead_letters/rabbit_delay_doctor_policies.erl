%% SPDX-License-Identifier: MPL-2.0

%% The doctor's rules for policies.
%%
%% Pure functions of a topology.
-module(rabbit_delay_doctor_policies).

-include("rabbit_delay_doctor.hrl").

-export([check/3]).

-import(rabbit_delay_doctor_mends, [policy_finding/7, names/1, set_policy/2]).
-import(rabbit_delay_doctor_queues, [has/2]).

-define(DEAD_LETTER_KEYS, [<<"dead-letter-exchange">>, <<"message-ttl">>]).

-spec check([#q{}], Unusable :: [rabbit_delay_topology:policy()], rabbit_delay_doctor:context()) ->
          [rabbit_delay_doctor:finding()].
check(Qs, Unusable, Context) ->
    clashing(Qs, Context) ++ [unusable_policy(P, Context) || P <- Unusable].

clashing(Qs, Context) ->
    Found = lists:foldl(
              fun (#q{name = Name} = Q, Acc) ->
                      lists:foldl(
                        fun (Clash, A) ->
                                maps:update_with(Clash, fun (Names) -> [Name | Names] end, [Name], A)
                        end, Acc, clashes(Q))
              end, #{}, Qs),
    [policy_finding(Clash, lists:sort(Names), Context)
     || {Clash, Names} <- lists:sort(maps:to_list(Found))].

clashes(#q{held = Held, foreign = Foreign} = Q) ->
    [{not_applicable, Name} || #{name := Name, definition := Definition} <- Foreign,
                               lists:any(fun (Key) -> is_map_key(Key, Definition) end,
                                         ?DEAD_LETTER_KEYS)]
        ++ held_clashes(Held, Q).

held_clashes([], _) ->
    [];
held_clashes([#{name := Best, priority := Priority, definition := Definition} | Others],
             #q{queue = #{arguments := Arguments}} = Q) ->
    [{tie, Best, Name} || #{name := Name, priority := P, definition := D} <- Others,
                          P =:= Priority, D =/= Definition]
        ++ lists:sublist(
             [{shadowed, Best, Name}
              || #{name := Name, priority := P, definition := #{<<"dead-letter-exchange">> := _}}
                     <- Others,
                 P < Priority, not is_map_key(<<"dead-letter-exchange">>, Definition),
                 not has(dlx, Q)], 1)
        ++ [{argument, Best} || #{<<"dead-letter-exchange">> := OfPolicy} <- [Definition],
                                #{<<"x-dead-letter-exchange">> := OfArgument} <- [Arguments],
                                OfPolicy =/= OfArgument].

policy_finding({tie, Best, Other}, Queues, Context) ->
    #{priority := Priority} = Policy = policy(Best, Context),
    policy_finding(policy_tie, error, Best, Context,
                   ["The policies \"", Best, "\" and \"", Other, "\" both match ", names(Queues),
                    " with priority ", integer_to_binary(Priority), ". Only one of them holds, and "
                    "which one is not defined."],
                   "Give one of them a higher priority.",
                   [set_policy(Policy#{priority := Priority + 1}, Context)]);
policy_finding({shadowed, Best, Other}, Queues, Context) ->
    #{definition := Definition} = Policy = policy(Best, Context),
    #{definition := Lost} = policy(Other, Context),
    policy_finding(policy_shadowed, error, Best, Context,
                   ["The policy \"", Other, "\" says where the dead letters of ", names(Queues),
                    " go, but \"", Best, "\" matches with a higher priority and holds alone: policies "
                    "are not merged. Their dead letters are dropped."],
                   "Put the keys of both into the one that wins.",
                   [set_policy(Policy#{definition := maps:merge(Lost, Definition)}, Context)]);
policy_finding({argument, Best}, Queues, Context) ->
    policy_finding(argument_over_policy, info, Best, Context,
                   ["The dead-letter exchange of the policy \"", Best, "\" does not hold for ",
                    names(Queues), ": the queue's argument x-dead-letter-exchange goes first."],
                   "Declare the queues without that argument, so that the policy decides.",
                   []);
policy_finding({not_applicable, Name}, Queues, #{qs := Qs} = Context) ->
    #{definition := Definition} = Policy = policy(Name, Context),
    #q{type = Type} = maps:get(hd(Queues), Qs),
    Keys = rabbit_delay_queue_settings:foreign_keys({queue, Type}, Definition),
    policy_finding(policy_not_applicable, error, Name, Context,
                   ["The policy \"", Name, "\" matches ", names(Queues), " but does not apply: ",
                    lists:join(", ", Keys), " is not for ", atom_to_binary(Type, utf8),
                    " queues, and then the broker ignores the whole policy. Dead-letter exchange and "
                    "TTL in it do not hold."],
                   "Make a policy without these keys for such queues.",
                   [set_policy(Policy#{name := <<Name/binary, "-", (atom_to_binary(Type, utf8))/binary>>,
                                       definition := maps:without(Keys, Definition)}, Context)]).

unusable_policy(#{name := Name, pattern := Pattern} = Policy, Context) ->
    policy_finding(policy_unusable, error, Name, Context,
                   ["Its pattern \"", Pattern, "\" is not a regular expression, or takes so many "
                    "steps that the broker is slow with each declaration."],
                   "Write a simpler pattern.",
                   [set_policy(Policy#{pattern := <<"^replace me$">>}, Context)]).

policy(Name, #{objects := #{policies := Policies}}) ->
    hd([Policy || #{name := N} = Policy <- Policies, N =:= Name]).
