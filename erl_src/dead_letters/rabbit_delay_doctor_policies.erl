%% SPDX-License-Identifier: MPL-2.0

%% The doctor's rules for policies.
%%
%% Pure functions of a topology.
-module(rabbit_delay_doctor_policies).

-include("rabbit_delay_doctor.hrl").

-export([check/3]).

-import(rabbit_delay_doctor_mends, [policy_finding/7, names/1, set_policy/2, above/3]).
-import(rabbit_delay_doctor_queues, [has/2]).

-define(DEAD_LETTER_KEYS, [<<"dead-letter-exchange">>, <<"message-ttl">>]).

%% Queue arguments written as keys: the broker refuses such a policy.
argument_keys(#{name := Name, definition := Definition} = Policy, Context) ->
    case [Key || <<"x-", _/binary>> = Key <- maps:keys(Definition), is_dead_lettering(Key)] of
        [] ->
            [];
        Keys ->
            Renamed = maps:from_list([{Short, maps:get(Key, Definition)}
                                      || <<"x-", Short/binary>> = Key <- Keys]),
            [policy_finding(argument_as_policy_key, error, Name, Context,
                            ["It has ", lists:join(", ", Keys), ": these are arguments of queues. In a "
                             "policy they are written without x-, and the broker refuses it so."],
                            "Write them without x-.",
                            [set_policy(Policy#{definition := maps:merge(
                                                                maps:without(Keys, Definition),
                                                                Renamed)}, Context)])]
    end.

is_dead_lettering(<<"x-", Key/binary>>) ->
    lists:member(Key, [<<"dead-letter-routing-key">>, <<"dead-letter-strategy">>, <<"expires">>,
                       <<"max-length">>, <<"max-length-bytes">>, <<"overflow">>,
                       <<"delivery-limit">> | ?DEAD_LETTER_KEYS]).

-spec check([#q{}], Unusable :: [rabbit_delay_topology:policy()], rabbit_delay_doctor:context()) ->
          [rabbit_delay_doctor:finding()].
check(Qs, Unusable, #{objects := #{policies := Policies}} = Context) ->
    lists:append([clashing(Qs, Context), [unusable_policy(P, Context) || P <- Unusable],
                  lists:append([argument_keys(P, Context) || P <- Policies])]).

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
                               not is_said(maps:with(?DEAD_LETTER_KEYS, Definition), Held)]
        ++ held_clashes(Held, Q).

%% Whether the policy that holds says the same.
is_said(Wanted, [#{definition := Definition} | _]) -> maps:with(maps:keys(Wanted), Definition) =:= Wanted;
is_said(Wanted, []) -> Wanted =:= #{}.

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
                   "Give one of them a higher priority, and those that were above it a higher one "
                   "still.",
                   above([Policy], Priority, Context));
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
    #{definition := Definition, priority := Priority} = Policy = policy(Name, Context),
    #q{type = Type} = maps:get(hd(Queues), Qs),
    Keys = rabbit_delay_queue_settings:foreign_keys({queue, Type}, Definition),
    policy_finding(policy_not_applicable, error, Name, Context,
                   ["The policy \"", Name, "\" matches ", names(Queues), " but does not apply: ",
                    lists:join(", ", Keys), " is not for ", atom_to_binary(Type, utf8),
                    " queues, and then the broker ignores the whole policy. Dead-letter exchange and "
                    "TTL in it do not hold."],
                   "Make a policy without these keys for such queues, below this one, which goes on "
                   "holding for the others.",
                   %% The new one takes this one's place.
                   [above([Policy], Priority, Context),
                    set_policy(Policy#{name := <<Name/binary, "-", (atom_to_binary(Type, utf8))/binary>>,
                                       definition := maps:without(Keys, Definition)}, Context)]).

unusable_policy(#{name := Name, pattern := Pattern}, Context) ->
    policy_finding(policy_unusable, error, Name, Context,
                   ["Its pattern \"", Pattern, "\" is not a regular expression, or takes so many "
                    "steps that the broker is slow with each declaration."],
                   "Write a simpler pattern.",
                   []).

policy(Name, #{objects := #{policies := Policies}}) ->
    hd([Policy || #{name := N} = Policy <- Policies, N =:= Name]).
