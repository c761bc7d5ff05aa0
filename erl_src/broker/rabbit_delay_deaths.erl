%% SPDX-License-Identifier: MPL-2.0

%% The history that the broker writes into a dead-lettered message: the headers x-death and
%% x-first-death-*. Clients can write such headers too, so nothing about them is taken for granted.
%% Pure functions; explain/2 also runs in rabbitmqctl, on headers from a file.
-module(rabbit_delay_deaths).

-export([reasons/0, plain/1, history/1, last/1, first/1, first_key/2, redrives/1, explain/2, copies/1, redriven/4,
         to_queue/1, uncounted/1]).

-export_type([headers/0, death/0]).

%% Why messages die, as brokers write it.
-spec reasons() -> [binary()].
reasons() -> [<<"rejected">>, <<"expired">>, <<"maxlen">>, <<"delivery_limit">>].

%% Headers without AMQP's types, as JSON has them.
-type headers() :: #{binary() => term()}.

%% One queue and reason. Keys that are not there, or not of their type, are left out.
-type death() :: #{queue | reason | exchange => binary(), keys => [binary()],
                   count => pos_integer(),
                   %% of the first such death, s since the epoch
                   time => non_neg_integer(),
                   %% the message's own TTL, ms, which it lost by dying
                   expiration => binary()}.

-define(X_DEATH, <<"x-death">>).
-define(X_REDRIVE_COUNT, <<"x-redrive-count">>).
-define(HISTORY, [?X_DEATH, <<"x-first-death-queue">>, <<"x-first-death-reason">>,
                  <<"x-first-death-exchange">>, <<"x-last-death-queue">>,
                  <<"x-last-death-reason">>, <<"x-last-death-exchange">>]).
%% Who would forge more is not told about more.
-define(MOST_TOLD, 100).

-spec plain(undefined | rabbit_framing:amqp_table()) -> headers().
plain(undefined) -> #{};
plain(Table) -> maps:from_list([{Name, plain(Type, Value)} || {Name, Type, Value} <- Table]).

plain(table, Table) -> plain(Table);
plain(array, Values) -> [plain(Type, Value) || {Type, Value} <- Values];
plain(_, Value) -> Value.

%% The latest death first; and whether some of x-death could not be understood.
-spec history(headers()) -> {[death()], Broken :: boolean()}.
history(#{?X_DEATH := Entries}) when is_list(Entries) ->
    Deaths = [death(Entry) || #{} = Entry <- Entries],
    {[Death || Death <- Deaths, is_map_key(queue, Death)],
     not lists:all(fun (Death) -> is_map_key(queue, Death) andalso is_map_key(reason, Death) end,
                   Deaths) orelse length(Deaths) =/= length(Entries)};
history(#{?X_DEATH := _}) ->
    {[], true};
history(_) ->
    {[], false}.

death(Entry) ->
    Text = fun is_binary/1,
    lists:foldl(fun ({Key, Name, Check}, Acc) ->
                        case Entry of
                            #{Name := Value} ->
                                case Check(Value) of
                                    true -> Acc#{Key => Value};
                                    false -> Acc
                                end;
                            _ ->
                                Acc
                        end
                end, #{},
                [{queue, <<"queue">>, Text}, {reason, <<"reason">>, Text},
                 {exchange, <<"exchange">>, Text}, {expiration, <<"original-expiration">>, Text},
                 {count, <<"count">>, fun (N) -> is_integer(N) andalso N > 0 end},
                 {time, <<"time">>, fun (T) -> is_integer(T) andalso T >= 0 end},
                 {keys, <<"routing-keys">>,
                  fun (Keys) -> is_list(Keys) andalso lists:all(Text, Keys) end}]).

%% The latest of them.
-spec last([death()]) -> death().
last([]) -> #{};
last([Death | _]) -> Death.

%% The key that it was published with first, of its deaths; Key if they do not say.
-spec first_key([death()], Key :: binary()) -> binary().
first_key([_ | _] = Deaths, Key) ->
    case lists:last(Deaths) of
        #{keys := [First | _]} -> First;
        _ -> Key
    end;
first_key([], Key) ->
    Key.

%% Where it died first, as far as the headers say.
-spec first(headers()) -> death().
first(Headers) ->
    Oldest = case history(Headers) of
                 {[_ | _] = Deaths, _} -> lists:last(Deaths);
                 _ -> #{}
             end,
    lists:foldl(fun ({Key, Name}, Acc) ->
                        case Headers of
                            #{Name := Value} when is_binary(Value) -> Acc#{Key => Value};
                            _ -> Acc
                        end
                end, Oldest, [{queue, <<"x-first-death-queue">>},
                              {reason, <<"x-first-death-reason">>},
                              {exchange, <<"x-first-death-exchange">>}]).

%% How often it was redriven.
-spec redrives(headers()) -> non_neg_integer().
redrives(#{?X_REDRIVE_COUNT := N}) when is_integer(N), N > 0 -> N;
redrives(_) -> 0.

%% The keys that it is routed by besides its own, where it is published with these headers.
-spec copies(headers()) -> [binary()].
copies(#{<<"CC">> := Keys}) when is_list(Keys) -> [Key || Key <- Keys, is_binary(Key)];
copies(_) -> [].

%% The headers that it is redriven with. KeepCC: where its other keys are to be routed by too. (What another
%% protocol has under these names, the broker would refuse.) What its author asked to become of other delayed
%% messages is not done again, in the name of who redrives.
-spec redriven(undefined | rabbit_framing:amqp_table(), headers(), KeepHistory :: boolean(),
               KeepCC :: boolean()) -> rabbit_framing:amqp_table().
redriven(Table, Headers, KeepHistory, KeepCC) ->
    Without = [?X_REDRIVE_COUNT | rabbit_delay_key:acting()]
        ++ case KeepHistory of true -> []; false -> ?HISTORY end
        ++ case Headers of #{<<"CC">> := Keys} when KeepCC, is_list(Keys) -> []; _ -> [<<"CC">>] end,
    [{?X_REDRIVE_COUNT, long, redrives(Headers) + 1} |
     [Field || {Name, _, _} = Field <- uncounted(Table), not lists:member(Name, [<<"BCC">> | Without])]].

%% Those with which it is put into a queue by its name: other keys would take it to the queues of those names.
-spec to_queue(undefined | rabbit_framing:amqp_table()) -> rabbit_framing:amqp_table().
to_queue(Table) ->
    [Field || {Name, _, _} = Field <- uncounted(Table), Name =/= <<"CC">>, Name =/= <<"BCC">>].

%% Without what a quorum queue adds on delivery.
-spec uncounted(undefined | rabbit_framing:amqp_table()) -> rabbit_framing:amqp_table().
uncounted(undefined) ->
    [];
uncounted(Table) ->
    [Field || {Name, _, _} = Field <- Table,
              Name =/= <<"x-delivery-count">>, Name =/= <<"x-acquired-count">>].

%% ------------------------------------------------------------------------------------- sentences

%% The message's life in sentences, the first death first. Queue: where it is now.
-spec explain(headers(), Queue :: binary() | undefined) -> [binary()].
explain(Headers, Queue) ->
    {Deaths, Broken} = history(Headers),
    Told = lists:sublist(lists:reverse(Deaths), ?MOST_TOLD),
    [unicode:characters_to_binary(Sentence)
     || Sentence <- nothing(Deaths, Headers) ++ published(Told, Headers)
            ++ [sentence(N, Death) || {N, Death} <- lists:zip(lists:seq(1, length(Told)), Told)]
            ++ more(Deaths) ++ total(Deaths) ++ contradiction(Told, Headers)
            ++ broken(Broken) ++ put_aside(Headers) ++ redriven_text(Headers) ++ now_in(Queue)].

nothing([], Headers) when not is_map_key(?X_DEATH, Headers) ->
    ["It has no x-death header: it was never dead-lettered, or the history was taken off it."];
nothing(_, _) ->
    [].

published([#{exchange := X} = Death | _], _) ->
    [["It was published to ", exchange(X), keys(Death), "."]];
published(_, _) ->
    [].

exchange(<<>>) -> "the default exchange";
exchange(X) -> ["exchange ", name(X)].

keys(#{keys := [Key]}) -> [" with the key ", name(Key)];
keys(#{keys := [_ | _] = Keys}) -> [" with the keys ", lists:join(", ", [name(K) || K <- Keys])];
keys(_) -> "".

sentence(N, #{queue := Queue} = Death) ->
    [case N of 1 -> "First"; _ -> "Then" end, " it died in queue ", name(Queue), ": ",
     reason(Death), when_(Death), times(Death), "."].

reason(#{reason := <<"rejected">>}) ->
    "a consumer rejected it without giving it back";
reason(#{reason := <<"expired">>, expiration := Ms}) ->
    ["its own TTL of ", rabbit_delay_text:escaped(Ms), " ms had passed"];
reason(#{reason := <<"expired">>}) ->
    "it expired, by the TTL of the queue or its own";
reason(#{reason := <<"maxlen">>}) ->
    "the queue was full";
reason(#{reason := <<"delivery_limit">>}) ->
    "it was given back more often than the delivery limit allows";
reason(#{reason := Other}) ->
    ["for the reason ", name(Other), ", which no broker writes"];
reason(_) ->
    "it does not say why".

when_(#{time := Seconds} = Death) when Seconds < 253402300800 ->
    [case Death of #{count := N} when N > 1 -> ", first on "; _ -> ", on " end,
     calendar:system_time_to_rfc3339(Seconds, [{offset, "Z"}])];
when_(_) ->
    "".

times(#{count := N}) when N > 1 -> [", ", integer_to_list(N), " times"];
times(_) -> "".

more(Deaths) ->
    case length(Deaths) - ?MOST_TOLD of
        N when N > 0 -> [["And ", integer_to_list(N), " more queues."]];
        _ -> []
    end.

total([_, _ | _] = Deaths) ->
    [["It died ", integer_to_list(lists:sum([maps:get(count, D, 1) || D <- Deaths])),
      " times in all."]];
total(_) ->
    [].

contradiction([#{queue := Queue} | _], #{<<"x-first-death-queue">> := Said})
  when is_binary(Said), Said =/= Queue ->
    [["x-first-death-queue says that it first died in ", name(Said), ": the deaths in a cycle are "
      "counted where they come last, or a client wrote the header."]];
contradiction(_, _) ->
    [].

broken(true) ->
    ["Part of x-death is not what a broker writes, so a client wrote or changed it: it proves "
     "nothing."];
broken(false) ->
    [].

%% By a delayed exchange.
put_aside(#{<<"x-delay-death-reason">> := Why, <<"x-delay-death-exchange">> := X})
  when is_binary(Why), is_binary(X) ->
    [["The delayed exchange ", name(X), " put it aside: ", because(Why), "."]];
put_aside(_) ->
    [].

because(<<"attempts_used_up">>) -> "its retries were used up";
because(<<"not_retried">>) -> "the exchange does not retry what dies for that reason";
because(<<"queue_gone">>) -> "the queue that it was to come back to was gone";
because(<<"unroutable">>) -> "no queue was bound for it when it was due";
because(<<"overdue">>) -> "it was due too long ago";
because(<<"maxlen">>) -> "the exchange was full";
because(Other) -> ["for the reason ", name(Other)].

redriven_text(Headers) ->
    case redrives(Headers) of
        0 -> [];
        1 -> ["It was redriven once."];
        N -> [["It was redriven ", integer_to_list(N), " times."]]
    end.

now_in(undefined) -> [];
now_in(Queue) -> [["Now it is in queue ", name(Queue), "."]].

name(Name) -> [$", rabbit_delay_text:escaped(Name), $"].
