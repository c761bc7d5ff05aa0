%% SPDX-License-Identifier: MPL-2.0

%% What findings' commands do, run by a shell on definitions instead of a broker: the finding is gone,
%% no other has come, and each message still gets to where it went before.
-module(rabbit_delay_doctor_mends_tests).

-include_lib("eunit/include/eunit.hrl").

-export([mend/2, reached/2, routed/4]).

-import(rabbit_delay_doctor_tests, [cases/0, definitions/1, topology/2, queue/2, exchange/2, binding/3]).

%% Their commands prepare what publishers are to use, or show something.
-define(PREPARE, [delay_ladder, head_of_line_ttl, parking_unwatched, topic_permissions_unchecked,
                  at_least_once_unavailable]).

mends_test_() ->
    {timeout, 300,
     [{lists:flatten(io_lib:format("~s ~b", [Rule, N])), fun () -> mended(Rule, Name, Case) end}
      || {N, {Rule, _, Name, Case, _}} <- lists:zip(lists:seq(1, length(cases())), cases())]}.

%% The same where a policy holds for all queues, and where there are others around its priority.
mends_beside_policies_test_() ->
    Wide = fun (Name, Priority, Definition) ->
                   #{<<"name">> => Name, <<"vhost">> => <<"/">>, <<"pattern">> => <<"\\.parked$">>,
                     <<"apply-to">> => <<"queues">>, <<"priority">> => Priority,
                     <<"definition">> => Definition}
           end,
    Loses = #{<<"message-ttl">> => 1000, <<"max-length">> => 5},
    {timeout, 300,
     [{lists:flatten(io_lib:format("~s ~b", [Rule, N])),
       fun () ->
               mended(Rule, Name, Case#{policies => [Wide(<<"wide">>, 1, Loses)
                                                     | maps:get(policies, Case, [])]})
       end}
      || {N, {Rule, _, Name, Case, _}} <- lists:zip(lists:seq(1, length(cases())), cases()),
         lists:member(Rule, [dlx_missing, dlx_unroutable, ttl_without_dlx, cycle_unbounded,
                             cycle_dropped, delivery_limit_without_dlx, policy_tie,
                             policy_not_applicable])]}.

mended(Rule, Name, Case) ->
    Before = definitions(Case),
    Figures = maps:get(figures, Case, #{}),
    Found = rabbit_delay_doctor:check(topology(Before, Figures)),
    [#{commands := Commands, mend := Mend}] =
        [F || #{rule := R, name := N} = F <- Found, R =:= Rule, N =:= Name],
    After = mend(Commands, Before),
    FoundThen = rabbit_delay_doctor:check(topology(After, Figures)),
    Then = [{R, N} || #{rule := R, name := N} <- FoundThen],
    ?assertEqual([], Then -- [{R, N} || #{rule := R, name := N} <- Found]),
    case lists:member(Rule, ?PREPARE) orelse Commands =:= []
        orelse Commands =:= [<<"rabbitmqctl list_operator_policies">>] of
        true ->
            ?assert(byte_size(Mend) > 0),
            [?assertEqual([], maps:get(Kind, Before) -- maps:get(Kind, After))
             || Kind <- [<<"queues">>, <<"exchanges">>, <<"bindings">>, <<"policies">>]];
        false ->
            ?assertNot(lists:member({Rule, Name}, Then))
    end,
    Lost = [{From, To} || From <- queues(Before), To <- reached(From, Before),
                          not is_delay(To, Before), not lists:member(To, reached(From, After))],
    %% What a mend takes away it says.
    ?assert(Lost =:= [] orelse nomatch =/= binary:match(Mend, <<"no longer">>),
            lists:flatten(io_lib:format("~p", [{Lost, Mend, Commands}]))).

%% The definitions after these commands.
mend(Commands, Definitions) -> lists:foldl(fun execute/2, Definitions, words(Commands)).

%% What each command would give the program.
words(Commands) ->
    Shell = ["curl() { for w; do printf '%s\\037' \"$w\"; done; printf '\\036'; }\n"
             "rabbitmqctl() { printf 'rabbitmqctl\\037'; curl \"$@\"; }\n", lists:join($\n, Commands)],
    Script = iolist_to_binary(Shell),
    Port = open_port({spawn_executable, "/bin/sh"}, [binary, exit_status, {args, ["-c", Script]}]),
    [binary:split(Command, <<31>>, [global, trim_all])
     || Command <- binary:split(output(Port, <<>>), <<30>>, [global, trim_all])].

output(Port, Acc) ->
    receive
        {Port, {data, Data}} -> output(Port, <<Acc/binary, Data/binary>>);
        {Port, {exit_status, 0}} -> Acc
    end.

execute([<<"-fsS">>, <<"-X">>, Method, Url | Body], Definitions) ->
    {Path, Query} = case binary:split(Url, <<"?">>) of
                        [P, Q] -> {P, Q};
                        [P] -> {P, <<>>}
                    end,
    [<<>> | Parts] = [uri_string:percent_decode(Part) || Part <- binary:split(Path, <<"/">>, [global])],
    Json = case Body of
               [<<"-H">>, _, <<"-d">>, Text] -> element(2, {ok, _} = rabbit_json:try_decode(Text));
               [] -> #{}
           end,
    request(Method, Parts, Query, Json, Definitions);
execute([<<"rabbitmqctl">>, <<"set_policy">>, <<"--vhost">>, VHost, <<"--priority">>, Priority,
         <<"--apply-to">>, To, <<"--">>, Name, Pattern, Json], #{<<"policies">> := Policies} = Definitions) ->
    {ok, Definition} = rabbit_json:try_decode(Json),
    Policy = #{<<"name">> => Name, <<"vhost">> => VHost, <<"pattern">> => Pattern, <<"apply-to">> => To,
               <<"priority">> => binary_to_integer(Priority), <<"definition">> => Definition},
    Definitions#{<<"policies">> := [Policy | [P || #{<<"name">> := N} = P <- Policies, N =/= Name]]};
execute([<<"rabbitmqctl">>, Command | _], Definitions) ->
    ?assert(lists:member(Command, [<<"dead_letter_stats">>, <<"list_permissions">>,
                                   <<"list_operator_policies">>, <<"enable_feature_flag">>])),
    Definitions.

%% A queue is deleted with its bindings, and only if nobody uses it and nothing is in it.
request(<<"DELETE">>, [<<"queues">>, _, Name], <<"if-empty=true&if-unused=true">>, _,
        #{<<"queues">> := Queues, <<"bindings">> := Bindings} = Definitions) ->
    [Queue] = [Q || #{<<"name">> := N} = Q <- Queues, N =:= Name],
    ?assertNotMatch(#{<<"arguments">> := #{<<"x-queue-type">> := <<"quorum">>}}, Queue),
    Definitions#{<<"queues">> := Queues -- [Queue],
                 <<"bindings">> := [B || #{<<"destination">> := D, <<"destination_type">> := T} = B <- Bindings,
                                         {T, D} =/= {<<"queue">>, Name}]};
request(<<"PUT">>, [Kind, VHost, Name], _, #{<<"durable">> := Durable, <<"arguments">> := Arguments} = Json,
        Definitions) when Kind =:= <<"queues">>; Kind =:= <<"exchanges">> ->
    Objects = maps:get(Kind, Definitions),
    %% What is there would be refused if it were otherwise.
    ?assertEqual([], [O || #{<<"name">> := N} = O <- Objects, N =:= Name]),
    New = maps:merge(Json, #{<<"name">> => Name, <<"vhost">> => VHost, <<"durable">> => Durable,
                             <<"arguments">> => Arguments}),
    Definitions#{Kind := [New | Objects]};
request(<<"POST">>, [<<"bindings">>, VHost, <<"e">>, X, Kind, To], _,
        #{<<"routing_key">> := Key, <<"arguments">> := Arguments}, #{<<"bindings">> := Bindings} = Definitions) ->
    New = #{<<"source">> => X, <<"vhost">> => VHost, <<"destination">> => To, <<"routing_key">> => Key,
            <<"destination_type">> => case Kind of <<"q">> -> <<"queue">>; <<"e">> -> <<"exchange">> end,
            <<"arguments">> => Arguments},
    Definitions#{<<"bindings">> := lists:usort([New | Bindings])}.

%% -------------------------------------------------------------------- where messages get to

queues(#{<<"queues">> := Queues}) -> [Name || #{<<"name">> := Name} <- Queues].

is_delay(Name, Definitions) ->
    case settings(Name, Definitions) of
        #{ttl := {Ttl, _}, dlx := _} when Ttl > 0 -> true;
        _ -> false
    end.

settings(Name, Definitions) ->
    #{vhosts := #{<<"/">> := Objects}} = topology(Definitions, #{}),
    rabbit_delay_doctor:settings(Name, Objects).

%% The queues that a message gets to from this one, dying again and again, with each of the keys that
%% bindings have or its name.
reached(Name, #{<<"bindings">> := Bindings} = Definitions) ->
    Keys = lists:usort([Name | [Key || #{<<"destination">> := To, <<"routing_key">> := Key} <- Bindings,
                                       To =:= Name]]),
    lists:usort([To || {To, _} <- die([{Name, Key} || Key <- Keys], [], Definitions)]).

die([], Seen, _) ->
    Seen;
die([{Name, Key} | Rest], Seen, Definitions) ->
    Next = [{To, K} || {To, K} <- next(Name, Key, settings(Name, Definitions), Definitions),
                       lists:member(To, queues(Definitions))],
    die(Rest ++ (lists:usort(Next) -- Seen), lists:usort(Next ++ Seen), Definitions).

next(Name, Key, #{dlx := {X, _}} = Settings, #{<<"exchanges">> := Exchanges} = Definitions) ->
    NextKey = case Settings of
                  #{dlk := {DLK, _}} -> DLK;
                  _ -> Key
              end,
    case [Arguments || #{<<"name">> := N, <<"arguments">> := #{<<"x-delay-retry">> := _} = Arguments} <- Exchanges,
                       N =:= X] of
        [#{<<"x-delay-retry-parking-exchange">> := <<>>, <<"x-delay-retry-parking-routing-key">> := Parked}] ->
            [{Name, Key}, {Parked, Parked}];
        [_] ->
            [{Name, Key}];
        [] ->
            [{To, NextKey} || To <- routed(X, NextKey, 5, Definitions)]
    end;
next(_, _, _, _) ->
    [].

routed(<<>>, Key, _, _) ->
    [Key];
routed(_, _, 0, _) ->
    [];
routed(X, Key, N, #{<<"exchanges">> := Exchanges, <<"bindings">> := Bindings} = Definitions) ->
    Type = case [T || #{<<"name">> := Name, <<"type">> := T} <- Exchanges, Name =:= X] of
               [T] -> T;
               [] -> binary:replace(X, <<"amq.">>, <<>>)
           end,
    lists:append([case B of
                      #{<<"destination_type">> := <<"queue">>, <<"destination">> := To} -> [To];
                      #{<<"destination">> := To} -> routed(To, Key, N - 1, Definitions)
                  end || #{<<"source">> := Source, <<"routing_key">> := Bound} = B <- Bindings,
                         Source =:= X, is_bound(Type, Bound, Key)]).

is_bound(<<"topic">>, Bound, Key) ->
    rabbit_delay_doctor_tests:matches(binary:split(Bound, <<".">>, [global]),
                                      binary:split(Key, <<".">>, [global]));
is_bound(<<"direct">>, Bound, Key) -> Bound =:= Key;
is_bound(_, _, _) -> true.
