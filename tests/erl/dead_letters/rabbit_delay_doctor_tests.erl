%% SPDX-License-Identifier: MPL-2.0

%% Each rule on a topology that has the trap, and on a sound one beside it.
-module(rabbit_delay_doctor_tests).

-include_lib("eunit/include/eunit.hrl").

-export([cases/0, found/1, by_rule/2, definitions/1, topology/2, queue/2, exchange/2, binding/3,
         policy/3, ring/1, matches/2]).

%% {Rule, its severity there, the object it names, broken, sound}; both as a definitions file is.
cases() ->
    Work = queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>}),
    Keyed = queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                <<"x-dead-letter-routing-key">> => <<"dead">>}),
    Parked = queue(<<"parked">>, #{<<"x-max-length">> => 1000}),
    Dlx = exchange(<<"dlx">>, <<"direct">>),
    Fanout = exchange(<<"dlx">>, <<"fanout">>),
    ToParked = binding(<<"dlx">>, <<"parked">>, <<"dead">>),
    FromFanout = binding(<<"amq.fanout">>, <<"parked">>, <<>>),
    Sound = #{queues => [Keyed, Parked], exchanges => [Dlx], bindings => [ToParked]},
    Delay = fun (Arguments) ->
                    queue(<<"delay">>, maps:merge(#{<<"x-dead-letter-exchange">> => <<>>,
                                                    <<"x-dead-letter-routing-key">> => <<"parked">>},
                                                  Arguments))
            end,
    Quorum = fun (Arguments) ->
                     queue(<<"work">>, maps:merge(#{<<"x-queue-type">> => <<"quorum">>}, Arguments))
             end,
    QuorumDlx = fun (Arguments) ->
                        Quorum(maps:merge(#{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                            <<"x-dead-letter-routing-key">> => <<"dead">>},
                                          Arguments))
                end,
    AtLeastOnce = #{<<"x-dead-letter-strategy">> => <<"at-least-once">>,
                    <<"x-overflow">> => <<"reject-publish">>},
    WithQueue = fun (Q) -> Sound#{queues := [Q, Parked]} end,
    Delayed = fun (Arguments) ->
                      (exchange(<<"dlx">>, <<"x-delayed-message">>))#{
                        <<"arguments">> := Arguments#{<<"x-delayed-type">> => <<"direct">>}}
              end,
    Retry = #{<<"x-delay-retry">> => <<"1s,10s">>},
    Unwatched = fun (#{queues := Queues} = Case) ->
                        Case#{queues := [Q || #{<<"name">> := Name} = Q <- Queues,
                                              Name =/= <<"parked">>] ++ [queue(<<"parked">>, #{})],
                              figures => #{<<"parked">> => {0, 10000}}}
                end,
    ToWork = #{<<"x-dead-letter-routing-key">> => <<"work">>},
    Certain = fun (Type, Key, Match) ->
                      #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                                       <<"x-message-ttl">> => 1000}), Parked],
                        exchanges => [exchange(<<"dlx">>, Type)],
                        bindings => [(binding(<<"dlx">>, <<"work">>, Key))#{<<"arguments">> := Match},
                                     binding(<<"amq.topic">>, <<"work">>, <<"#">>)]}
              end,
    %% work to an exchange that takes any key, to a delay, and by the key that was kept to work again
    Kept = fun (Type, Key) ->
                   #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                                    <<"x-dead-letter-routing-key">> => <<"work">>}),
                                queue(<<"pause">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                                     <<"x-message-ttl">> => 1000})],
                     exchanges => [exchange(<<"dlx">>, Type)],
                     bindings => [binding(<<"dlx">>, <<"pause">>, Key)]}
           end,
    [{dlx_missing, error, <<"work">>, #{queues => [Work]}, Sound},
     {dlx_missing, error, <<"work">>,
      #{queues => [queue(<<"work">>, #{}), Parked],
        policies => [policy(<<"dl">>, <<"^work$">>, #{<<"dead-letter-exchange">> => <<"gone">>})]},
      #{queues => [queue(<<"work">>, #{}), Parked],
        policies => [policy(<<"dl">>, <<"^work$">>,
                            #{<<"dead-letter-exchange">> => <<>>,
                              <<"dead-letter-routing-key">> => <<"parked">>})]}},
     %% by the dead-letter routing key
     {dlx_unroutable, error, <<"work">>,
      Sound#{bindings := [binding(<<"dlx">>, <<"parked">>, <<"other">>)]}, Sound},
     %% by the keys that messages have
     {dlx_unroutable, error, <<"work">>,
      #{queues => [Work, Parked], exchanges => [Dlx],
        bindings => [binding(<<"amq.direct">>, <<"work">>, <<"k">>), ToParked]},
      #{queues => [Work, Parked], exchanges => [Dlx],
        bindings => [binding(<<"amq.direct">>, <<"work">>, <<"dead">>), ToParked]}},
     {dlx_unroutable, warning, <<"work">>,
      #{queues => [Work, Parked], exchanges => [Dlx],
        bindings => [binding(<<"amq.direct">>, <<"work">>, <<"k">>),
                     binding(<<"amq.direct">>, <<"work">>, <<"dead">>), ToParked]},
      #{queues => [Work, Parked], exchanges => [Fanout],
        bindings => [binding(<<"amq.direct">>, <<"work">>, <<"k">>),
                     binding(<<"amq.direct">>, <<"work">>, <<"dead">>), ToParked]}},
     %% without any binding, the messages can only come by the queue's name
     {dlx_unroutable, error, <<"work">>, Sound#{queues := [Work, Parked]},
      #{queues => [Work, Parked], exchanges => [Dlx],
        bindings => [binding(<<"dlx">>, <<"parked">>, <<"work">>)]}},
     {dlx_unroutable, error, <<"work">>, #{queues => [(Delay(#{}))#{<<"name">> := <<"work">>}]},
      #{queues => [(Delay(#{}))#{<<"name">> := <<"work">>}, Parked]}},
     {dlx_unroutable, warning, <<"work">>,
      #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<>>})],
        bindings => [binding(<<"amq.fanout">>, <<"work">>, <<>>)]},
      #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                       <<"x-dead-letter-routing-key">> => <<"parked">>}), Parked],
        bindings => [binding(<<"amq.fanout">>, <<"work">>, <<>>)]}},
     %% a topic exchange; patterns that can and cannot meet
     {dlx_unroutable, error, <<"work">>,
      #{queues => [Work, Parked], exchanges => [exchange(<<"dlx">>, <<"topic">>)],
        bindings => [binding(<<"amq.topic">>, <<"work">>, <<"eu.*.new">>),
                     binding(<<"dlx">>, <<"parked">>, <<"us.#">>)]},
      #{queues => [Work, Parked], exchanges => [exchange(<<"dlx">>, <<"topic">>)],
        bindings => [binding(<<"amq.topic">>, <<"work">>, <<"eu.*.new">>),
                     binding(<<"dlx">>, <<"parked">>, <<"#.new">>)]}},
     %% a headers exchange whose only binding can match nothing
     {dlx_unroutable, error, <<"work">>,
      #{queues => [Keyed, Parked], exchanges => [exchange(<<"dlx">>, <<"headers">>)],
        bindings => [(binding(<<"dlx">>, <<"parked">>, <<>>))
                     #{<<"arguments">> := #{<<"x-match">> => <<"any">>,
                                            <<"x-first-death-reason">> => <<"rejected">>}}]},
      #{queues => [Keyed, Parked], exchanges => [exchange(<<"dlx">>, <<"headers">>)],
        bindings => [(binding(<<"dlx">>, <<"parked">>, <<>>))
                     #{<<"arguments">> := #{<<"x-match">> => <<"any-with-x">>,
                                            <<"x-first-death-reason">> => <<"rejected">>}}]}},
     %% through the alternate exchange, and through one that is bound to another
     {dlx_unroutable, error, <<"work">>,
      #{queues => [Keyed, Parked], exchanges => [Dlx, exchange(<<"last">>, <<"fanout">>)],
        bindings => [binding(<<"last">>, <<"parked">>, <<>>)]},
      #{queues => [Keyed, Parked],
        exchanges => [Dlx#{<<"arguments">> := #{<<"alternate-exchange">> => <<"last">>}},
                      exchange(<<"last">>, <<"fanout">>)],
        bindings => [binding(<<"last">>, <<"parked">>, <<>>)]}},
     {dlx_unroutable, error, <<"work">>,
      #{queues => [Keyed, Parked], exchanges => [Dlx, exchange(<<"last">>, <<"direct">>)],
        bindings => [to_exchange(<<"dlx">>, <<"last">>, <<"dead">>),
                     binding(<<"last">>, <<"parked">>, <<"other">>)]},
      #{queues => [Keyed, Parked], exchanges => [Dlx, exchange(<<"last">>, <<"direct">>)],
        bindings => [to_exchange(<<"dlx">>, <<"last">>, <<"dead">>),
                     binding(<<"last">>, <<"parked">>, <<"dead">>)]}},
     %% a delayed exchange routes as its underlying type
     {dlx_unroutable, error, <<"work">>,
      Sound#{exchanges := [(exchange(<<"dlx">>, <<"x-delayed-message">>))
                           #{<<"arguments">> := #{<<"x-delayed-type">> => <<"direct">>}}],
             bindings := [binding(<<"dlx">>, <<"parked">>, <<"#">>)]},
      Sound#{exchanges := [(exchange(<<"dlx">>, <<"x-delayed-message">>))
                           #{<<"arguments">> := #{<<"x-delayed-type">> => <<"topic">>}}],
             bindings := [binding(<<"dlx">>, <<"parked">>, <<"#">>)]}},
     {routing_key_without_dlx, warning, <<"work">>,
      Sound#{queues := [queue(<<"work">>, #{<<"x-dead-letter-routing-key">> => <<"dead">>})]}, Sound},
     {ttl_without_dlx, warning, <<"work">>,
      #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => 1000})]},
      #{queues => [Delay(#{<<"x-message-ttl">> => 1000}), Parked]}},
     %% what is meant to forget
     {ttl_without_dlx, warning, <<"work">>, #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => 1000})]},
      #{queues => [queue(<<"orders.reply">>, #{<<"x-message-ttl">> => 1000}),
                   queue(<<"last-value-cache">>, #{<<"x-message-ttl">> => 1000}),
                   queue(<<"a">>, #{<<"x-message-ttl">> => 1000, <<"x-expires">> => 9000}),
                   queue(<<"b">>, #{<<"x-message-ttl">> => 1000, <<"x-max-length">> => 1}),
                   (queue(<<"c">>, #{<<"x-message-ttl">> => 1000}))#{<<"durable">> := false},
                   (queue(<<"d">>, #{<<"x-message-ttl">> => 1000}))#{<<"auto_delete">> := true}]}},
     %% the operator's TTL holds too
     {ttl_without_dlx, warning, <<"work">>,
      #{queues => [queue(<<"work">>, #{})],
        operator => [policy(<<"op">>, <<".*">>, #{<<"message-ttl">> => 1000})]},
      #{queues => [queue(<<"work">>, #{})],
        operator => [policy(<<"op">>, <<"other">>, #{<<"message-ttl">> => 1000})]}},
     {expires_loses_messages, error, <<"delay">>,
      #{queues => [Delay(#{<<"x-message-ttl">> => 60000, <<"x-expires">> => 60000}), Parked]},
      #{queues => [Delay(#{<<"x-message-ttl">> => 60000}), Parked]}},
     {expires_loses_messages, warning, <<"delay">>,
      #{queues => [Delay(#{<<"x-message-ttl">> => 60000, <<"x-expires">> => 70000}), Parked]},
      #{queues => [queue(<<"reply">>, #{<<"x-expires">> => 70000})]}},
     %% declared each time, and so it is not lost
     {expires_loses_messages, info, <<"parked.delay.60000">>,
      #{queues => [(Delay(#{<<"x-message-ttl">> => 60000, <<"x-expires">> => 120000}))
                   #{<<"name">> := <<"parked.delay.60000">>}, Parked]}, Sound},
     {expires_loses_messages, warning, <<"parked">>,
      Sound#{queues := [Keyed, queue(<<"parked">>, #{<<"x-expires">> => 1000,
                                                     <<"x-max-length">> => 9})]},
      Sound},
     {head_of_line_ttl, warning, <<"delay">>, #{queues => [Delay(ToWork), queue(<<"work">>, #{})]},
      #{queues => [Delay(ToWork#{<<"x-message-ttl">> => 1000}), queue(<<"work">>, #{})]}},
     %% by its place in a cycle; there a queue that only has no consumer at the moment is none
     {head_of_line_ttl, warning, <<"pause">>,
      #{queues => [queue(<<"pause">>, ToWork#{<<"x-dead-letter-exchange">> => <<>>}),
                   queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                       <<"x-dead-letter-routing-key">> => <<"pause">>})],
        figures => #{<<"work">> => {1, 0}, <<"pause">> => {0, 0}}},
      #{queues => [queue(<<"pause">>, ToWork#{<<"x-dead-letter-exchange">> => <<>>,
                                              <<"x-message-ttl">> => 1000}),
                   queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                       <<"x-dead-letter-routing-key">> => <<"pause">>})],
        figures => #{<<"work">> => {0, 0}, <<"pause">> => {0, 0}}}},
     {head_of_line_ttl, warning, <<"delay">>, #{queues => [Delay(ToWork), queue(<<"work">>, #{})]},
      #{queues => [Delay(#{}), Parked]}},
     {cycle_dropped, error, <<"delay">>,
      #{queues => [Delay(#{<<"x-message-ttl">> => 1000}),
                   queue(<<"parked">>, #{<<"x-message-ttl">> => 1000,
                                         <<"x-dead-letter-exchange">> => <<>>,
                                         <<"x-dead-letter-routing-key">> => <<"delay">>})]},
      #{queues => [Delay(#{<<"x-message-ttl">> => 1000}), Parked]}},
     %% through a queue's own name
     {cycle_dropped, error, <<"work">>,
      #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => 1000,
                                       <<"x-dead-letter-exchange">> => <<>>})]},
      #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => 1000,
                                       <<"x-dead-letter-exchange">> => <<>>,
                                       <<"x-dead-letter-routing-key">> => <<"parked">>}), Parked]}},
     %% which the delivery limit closes
     {cycle_dropped, error, <<"delay">>,
      #{queues => [queue(<<"delay">>, #{<<"x-message-ttl">> => 1000,
                                        <<"x-dead-letter-exchange">> => <<>>,
                                        <<"x-dead-letter-routing-key">> => <<"work">>}),
                   Quorum(#{<<"x-delivery-limit">> => 3, <<"x-dead-letter-exchange">> => <<>>,
                            <<"x-dead-letter-routing-key">> => <<"delay">>})]},
      #{queues => [queue(<<"delay">>, #{<<"x-message-ttl">> => 1000,
                                        <<"x-dead-letter-exchange">> => <<>>,
                                        <<"x-dead-letter-routing-key">> => <<"work">>}),
                   Quorum(#{<<"x-dead-letter-exchange">> => <<>>,
                            <<"x-dead-letter-routing-key">> => <<"delay">>})]}},
     {cycle_unbounded, warning, <<"work">>,
      #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                       <<"x-dead-letter-routing-key">> => <<"delay">>}),
                   Delay(#{<<"x-message-ttl">> => 1000, <<"x-dead-letter-routing-key">> => <<"work">>})]},
      Sound},
     %% where only some keys make it one
     {cycle_unbounded, info, <<"work">>,
      #{queues => [Work], exchanges => [Dlx],
        bindings => [binding(<<"amq.fanout">>, <<"work">>, <<>>),
                     binding(<<"dlx">>, <<"work">>, <<"k">>)]},
      Sound},
     %% and where all do
     {cycle_unbounded, warning, <<"work">>,
      #{queues => [Work], exchanges => [Fanout],
        bindings => [binding(<<"amq.fanout">>, <<"work">>, <<>>),
                     binding(<<"dlx">>, <<"work">>, <<>>)]},
      Sound},
     {cycle_dropped, error, <<"work">>, Certain(<<"fanout">>, <<>>, #{}), Sound},
     {cycle_dropped, error, <<"work">>, Certain(<<"topic">>, <<"#">>, #{}), Sound},
     {cycle_dropped, error, <<"work">>, Certain(<<"headers">>, <<>>, #{<<"x-match">> => <<"all">>}), Sound},
     {cycle_dropped, error, <<"work">>,
      Certain(<<"headers">>, <<>>, #{<<"x-match">> => <<"all">>, <<"x-h">> => 1}), Sound},
     {cycle_dropped, warning, <<"work">>,
      Certain(<<"headers">>, <<>>, #{<<"x-match">> => <<"all">>, <<"h">> => 1}), Sound},
     {cycle_dropped, warning, <<"work">>,
      Certain(<<"headers">>, <<>>, #{<<"x-match">> => <<"all-with-x">>, <<"x-h">> => 1}), Sound},
     {cycle_dropped, warning, <<"work">>, Certain(<<"topic">>, <<"a.#">>, #{}), Sound},
     {cycle_dropped, warning, <<"work">>, Certain(<<"direct">>, <<"a">>, #{}), Sound},
     {cycle_unbounded, warning, <<"work">>, Kept(<<"topic">>, <<"#">>), Sound},
     {cycle_unbounded, warning, <<"work">>, Kept(<<"fanout">>, <<>>), Sound},
     {cycle_unbounded, warning, <<"work">>, Kept(<<"headers">>, <<>>), Sound},
     %% by the alternate exchange
     {cycle_unbounded, warning, <<"work">>,
      (Kept(<<"direct">>, <<"other">>))#{
        exchanges := [(exchange(<<"dlx">>, <<"direct">>))
                      #{<<"arguments">> := #{<<"alternate-exchange">> => <<"last">>}},
                      exchange(<<"last">>, <<"fanout">>)],
        bindings := [binding(<<"last">>, <<"pause">>, <<>>)]}, Sound},
     {dlx_unroutable, error, <<"pause">>,
      (Kept(<<"topic">>, <<"work">>))#{queues := [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                                       <<"x-dead-letter-routing-key">> => <<"gone">>}),
                                   queue(<<"pause">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                                        <<"x-message-ttl">> => 1000})],
                                bindings := [binding(<<"dlx">>, <<"pause">>, <<"gone">>)]},
      Kept(<<"topic">>, <<"#">>)},
     %% a delayed exchange that retries goes by no binding, and not for ever
     {cycle_unbounded, warning, <<"work">>,
      #{queues => [Keyed], exchanges => [Delayed(#{})],
        bindings => [binding(<<"dlx">>, <<"work">>, <<"dead">>)]},
      #{queues => [Keyed], exchanges => [Delayed(Retry)],
        bindings => [binding(<<"dlx">>, <<"work">>, <<"dead">>)]}},
     {cycle_dropped, error, <<"work">>,
      #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                       <<"x-message-ttl">> => 1000})],
        exchanges => [Delayed(#{})], bindings => [binding(<<"dlx">>, <<"work">>, <<"work">>)]},
      #{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                       <<"x-message-ttl">> => 1000})],
        exchanges => [Delayed(#{})], bindings => [binding(<<"dlx">>, <<"work">>, <<"work">>)],
        policies => [(policy(<<"retry">>, <<"^dlx$">>, #{<<"delay-retry-initial">> => 1000}))
                     #{<<"apply-to">> := <<"exchanges">>}]}},
     {dlx_unroutable, error, <<"work">>, #{queues => [Work], exchanges => [Delayed(#{})]},
      #{queues => [Work], exchanges => [Delayed(Retry)]}},
     {retry_parking_missing, error, <<"work">>,
      #{queues => [Work], exchanges => [Delayed(Retry#{<<"x-delay-retry-parking-exchange">> =>
                                                           <<"gone">>})]},
      #{queues => [Work, Parked],
        exchanges => [Delayed(Retry#{<<"x-delay-retry-parking-exchange">> => <<>>,
                                     <<"x-delay-retry-parking-routing-key">> => <<"parked">>})]}},
     {at_most_once, warning, <<"work">>, WithQueue(QuorumDlx(#{})), WithQueue(QuorumDlx(AtLeastOnce))},
     {at_most_once, warning, <<"work">>,
      Sound#{policies => [policy(<<"ha">>, <<"work">>, #{<<"ha-mode">> => <<"all">>})]}, Sound},
     {at_least_once_drop_head, error, <<"work">>,
      WithQueue(QuorumDlx(#{<<"x-dead-letter-strategy">> => <<"at-least-once">>})),
      WithQueue(QuorumDlx(AtLeastOnce))},
     {at_least_once_unavailable, error, <<"work">>,
      (WithQueue(QuorumDlx(AtLeastOnce)))#{version => <<"3.9.29">>},
      WithQueue(QuorumDlx(AtLeastOnce))},
     {delivery_limit_without_dlx, error, <<"work">>, #{queues => [Quorum(#{<<"x-delivery-limit">> => 5})]},
      #{queues => [Quorum(#{})]}},
     {delivery_limit_without_dlx, warning, <<"work">>, #{queues => [Quorum(#{})], version => <<"4.0.5">>},
      #{queues => [Quorum(#{<<"x-delivery-limit">> => -1})], version => <<"4.0.5">>}},
     {parking_unwatched, warning, <<"parked">>, Unwatched(Sound),
      (Unwatched(Sound))#{figures := #{<<"parked">> => {0, 9999}}}},
     {parking_unwatched, warning, <<"parked">>, Unwatched(Sound),
      (Unwatched(Sound))#{figures := #{<<"parked">> => {1, 10000}}}},
     %% what is parked by a delayed exchange that retries is looked at too, work that is published to an
     %% exchange is not
     {parking_unwatched, warning, <<"parked">>,
      Unwatched(#{queues => [Work],
                  exchanges => [Delayed(Retry#{<<"x-delay-retry-parking-exchange">> => <<>>,
                                               <<"x-delay-retry-parking-routing-key">> => <<"parked">>})]}),
      (Unwatched(Sound))#{bindings := [ToParked, binding(<<"amq.topic">>, <<"parked">>, <<"k">>)]}},
     %% nor what comes by a delay alone
     {parking_unwatched, warning, <<"parked">>, Unwatched(Sound),
      Unwatched(#{queues => [Delay(#{<<"x-message-ttl">> => 1000})]})},
     {policy_key_as_argument, error, <<"work">>,
      #{queues => [queue(<<"work">>, #{<<"dead-letter-exchange">> => <<>>,
                                       <<"dead-letter-routing-key">> => <<"parked">>}), Parked]},
      #{queues => [queue(<<"work">>, #{<<"dead-letter-exchange">> => <<>>,
                                       <<"x-dead-letter-exchange">> => <<>>,
                                       <<"x-dead-letter-routing-key">> => <<"parked">>}), Parked]}},
     {argument_as_policy_key, error, <<"dl">>,
      #{queues => [queue(<<"work">>, #{}), Parked],
        policies => [policy(<<"dl">>, <<"^work$">>, #{<<"x-dead-letter-exchange">> => <<>>,
                                                      <<"dead-letter-routing-key">> => <<"parked">>})]},
      #{queues => [queue(<<"work">>, #{}), Parked],
        policies => [policy(<<"dl">>, <<"^work$">>, #{<<"dead-letter-exchange">> => <<>>,
                                                      <<"dead-letter-routing-key">> => <<"parked">>})]}},
     {x_death_growth, info, <<"q0">>, #{queues => ring(8)}, #{queues => ring(7)}},
     {priority_ttl, warning, <<"delay">>,
      #{queues => [Delay(#{<<"x-message-ttl">> => 1000, <<"x-max-priority">> => 5}), Parked]},
      #{queues => [Delay(#{<<"x-message-ttl">> => 1000}), Parked]}},
     {ttl_zero, error, <<"work">>, #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => 0})]},
      #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => 1})]}},
     {ttl_zero, warning, <<"delay">>, #{queues => [Delay(#{<<"x-message-ttl">> => 0}), Parked]},
      #{queues => [Delay(#{<<"x-message-ttl">> => 1}), Parked]}},
     {policy_tie, error, <<"a">>,
      #{queues => [queue(<<"work">>, #{})],
        policies => [policy(<<"a">>, <<"^w">>, #{<<"max-length">> => 10}),
                     policy(<<"b">>, <<"k$">>, #{<<"max-length">> => 20})]},
      #{queues => [queue(<<"work">>, #{})],
        policies => [(policy(<<"a">>, <<"^w">>, #{<<"max-length">> => 10}))#{<<"priority">> := 1},
                     policy(<<"b">>, <<"k$">>, #{<<"max-length">> => 20})]}},
     {policy_shadowed, error, <<"limits">>,
      #{queues => [queue(<<"work">>, #{}), Parked], bindings => [FromFanout],
        policies => [(policy(<<"limits">>, <<"work">>, #{<<"max-length">> => 9}))#{<<"priority">> := 1},
                     policy(<<"dl">>, <<".*">>, #{<<"dead-letter-exchange">> => <<"amq.fanout">>})]},
      #{queues => [queue(<<"work">>, #{}), Parked], bindings => [FromFanout],
        policies => [(policy(<<"limits">>, <<"work">>,
                             #{<<"max-length">> => 9, <<"dead-letter-exchange">> => <<"amq.fanout">>}))
                     #{<<"priority">> := 1},
                     policy(<<"dl">>, <<".*">>, #{<<"dead-letter-exchange">> => <<"amq.fanout">>})]}},
     {policy_not_applicable, error, <<"dl">>,
      #{queues => [queue(<<"work">>, #{}), Parked], bindings => [FromFanout],
        policies => [policy(<<"dl">>, <<"work">>, #{<<"dead-letter-exchange">> => <<"amq.fanout">>,
                                                    <<"delivery-limit">> => 3})]},
      #{queues => [queue(<<"work">>, #{}), Parked], bindings => [FromFanout],
        policies => [policy(<<"dl">>, <<"work">>, #{<<"dead-letter-exchange">> => <<"amq.fanout">>})]}},
     {argument_over_policy, info, <<"dl">>,
      Sound#{policies => [policy(<<"dl">>, <<"work">>, #{<<"dead-letter-exchange">> => <<"x">>})]},
      Sound#{policies => [policy(<<"dl">>, <<"work">>, #{<<"dead-letter-exchange">> => <<"dlx">>})]}},
     {policy_unusable, error, <<"dl">>,
      Sound#{policies => [policy(<<"dl">>, <<"*(">>, #{<<"expires">> => 1})]}, Sound},
     %% for so many steps that the broker would hang
     {policy_unusable, error, <<"dl">>,
      #{queues => [queue(binary:copy(<<"a">>, 60), #{})],
        policies => [policy(<<"dl">>, <<"^(a+)+[bc]$">>, #{<<"expires">> => 1})]},
      #{queues => [queue(binary:copy(<<"a">>, 60), #{})],
        policies => [policy(<<"dl">>, <<"^a+$">>, #{<<"expires">> => 1})]}},
     {unusable_value, error, <<"work">>,
      #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => <<"soon">>})]},
      #{queues => [queue(<<"work">>, #{<<"x-message-ttl">> => 9})]}},
     {unreadable_entry, warning, <<"policies[0].pattern">>,
      Sound#{policies => [#{<<"name">> => <<"p">>}]}, Sound},
     {acceptance_unused, info, <<"gone">>,
      Sound#{parameters => [acceptance(<<"gone">>)]},
      #{queues => [queue(<<"gone">>, #{<<"x-message-ttl">> => 1000})], parameters => [acceptance(<<"gone">>)]}},
     {topic_permissions_unchecked, warning, <<"dlx">>,
      Sound#{exchanges := [(Delayed(#{}))#{<<"arguments">> := #{<<"x-delayed-type">> => <<"topic">>}}],
             topic_permissions => [topic_permission(<<"dlx">>)]},
      Sound#{exchanges := [Dlx, exchange(<<"t">>, <<"topic">>)],
             topic_permissions => [topic_permission(<<"dlx">>), topic_permission(<<"t">>),
                                   topic_permission(<<"gone">>)]}},
     {delay_ladder, info, <<"wait1">>, #{queues => ladder([1000, 5000, 60000])},
      #{queues => ladder([1000, 1000, 1000])}},
     %% binary levels, each into the next
     {delay_ladder, info, <<"level0">>, levels(5), levels(2)}].

acceptance(Name) ->
    #{<<"component">> => <<"accepted-dead-lettering">>, <<"vhost">> => <<"/">>, <<"name">> => <<"a">>,
      <<"value">> => #{<<"rule">> => <<"ttl_without_dlx">>, <<"name">> => Name, <<"reason">> => <<"known">>}}.

topic_permission(X) ->
    #{<<"user">> => <<"app">>, <<"vhost">> => <<"/">>, <<"exchange">> => X, <<"write">> => <<"^a">>,
      <<"read">> => <<"^a">>}.

queue(Name, Arguments) ->
    #{<<"name">> => Name, <<"vhost">> => <<"/">>, <<"durable">> => true, <<"auto_delete">> => false,
      <<"arguments">> => Arguments}.

exchange(Name, Type) ->
    #{<<"name">> => Name, <<"vhost">> => <<"/">>, <<"type">> => Type, <<"durable">> => true,
      <<"arguments">> => #{}}.

binding(X, Queue, Key) -> binding(X, <<"queue">>, Queue, Key).

to_exchange(X, To, Key) -> binding(X, <<"exchange">>, To, Key).

binding(X, Kind, To, Key) ->
    #{<<"source">> => X, <<"vhost">> => <<"/">>, <<"destination_type">> => Kind,
      <<"destination">> => To, <<"routing_key">> => Key, <<"arguments">> => #{}}.

policy(Name, Pattern, Definition) ->
    #{<<"name">> => Name, <<"vhost">> => <<"/">>, <<"pattern">> => Pattern,
      <<"apply-to">> => <<"queues">>, <<"priority">> => 0, <<"definition">> => Definition}.

ring(N) ->
    [queue(name("q", I), #{<<"x-dead-letter-exchange">> => <<>>,
                           <<"x-dead-letter-routing-key">> => name("q", (I + 1) rem N)})
     || I <- lists:seq(0, N - 1)].

ladder(Ttls) ->
    [queue(<<"work">>, #{}) |
     [queue(name("wait", I), #{<<"x-message-ttl">> => Ttl, <<"x-dead-letter-exchange">> => <<>>,
                               <<"x-dead-letter-routing-key">> => <<"work">>})
      || {I, Ttl} <- lists:zip(lists:seq(1, length(Ttls)), Ttls)]].

%% Level I waits 2^I s and goes on to the exchange of level I-1, the last to work.
levels(N) ->
    #{queues => [queue(<<"work">>, #{<<"x-max-length">> => 9}) |
                 [queue(name("level", I), #{<<"x-message-ttl">> => 1000 bsl I,
                                            <<"x-dead-letter-exchange">> => name("x", I)})
                  || I <- lists:seq(0, N - 1)]],
      exchanges => [exchange(name("x", I), <<"topic">>) || I <- lists:seq(0, N - 1)],
      bindings => [case I of
                       0 -> binding(name("x", I), <<"work">>, <<"#">>);
                       _ -> binding(name("x", I), name("level", I - 1), <<"#">>)
                   end || I <- lists:seq(0, N - 1)]
          ++ [binding(<<"amq.topic">>, name("level", N - 1), <<"#">>)]}.

name(Prefix, N) -> iolist_to_binary([Prefix, integer_to_binary(N)]).

definitions(Case) ->
    #{<<"rabbitmq_version">> => maps:get(version, Case, <<"3.10.8">>),
      <<"vhosts">> => [#{<<"name">> => <<"/">>}],
      <<"queues">> => maps:get(queues, Case, []), <<"exchanges">> => maps:get(exchanges, Case, []),
      <<"bindings">> => maps:get(bindings, Case, []),
      <<"policies">> => maps:get(policies, Case, []),
      <<"topic_permissions">> => maps:get(topic_permissions, Case, []),
      <<"parameters">> => [#{<<"component">> => <<"operator_policy">>, <<"vhost">> => <<"/">>,
                             <<"name">> => Name, <<"value">> => Policy}
                           || #{<<"name">> := Name} = Policy <- maps:get(operator, Case, [])]
          ++ maps:get(parameters, Case, [])}.

found(Case) ->
    rabbit_delay_doctor:check(topology(definitions(Case), maps:get(figures, Case, #{}))).

%% As if they came from a broker with so many {consumers, messages} in queues.
topology(Definitions, Figures) ->
    {ok, #{vhosts := #{<<"/">> := #{queues := Queues} = Objects}} = Topology} =
        rabbit_delay_topology:of_definitions(Definitions, <<"/">>),
    Topology#{vhosts := #{<<"/">> => Objects#{
        queues := maps:map(fun (Name, Q) ->
                                   case Figures of
                                       #{Name := {Consumers, Messages}} ->
                                           Q#{consumers := Consumers, messages := Messages};
                                       _ ->
                                           Q
                                   end
                           end, Queues)}}}.

by_rule(Rule, Findings) -> [{S, Name} || #{rule := R, severity := S, name := Name} <- Findings, R =:= Rule].

rules_test_() ->
    [{lists:flatten(io_lib:format("~s ~b", [Rule, N])),
      [?_assertEqual([{Severity, Name}], by_rule(Rule, found(Broken))),
       ?_assertEqual([], by_rule(Rule, found(Sound)))]}
     || {N, {Rule, Severity, Name, Broken, Sound}} <- lists:zip(lists:seq(1, length(cases())), cases())].

every_rule_has_a_case_test() ->
    ?assertEqual([], rabbit_delay_doctor:rules() -- [element(1, Case) || Case <- cases()]).

%% Each says why and what to do, in text and in JSON, and its commands are whole words of a shell.
every_finding_is_told_test_() ->
    [fun () ->
             Findings = [#{why := Why, mend := Mend} | _] = found(Broken),
             ?assert(byte_size(Why) > 20 andalso byte_size(Mend) > 10),
             Text = rabbit_delay_doctor_report:text(Findings),
             ?assertNotEqual(nomatch, binary:match(Text, atom_to_binary(Rule))),
             {ok, #{<<"version">> := 1, <<"findings">> := Told}} =
                 rabbit_json:try_decode(rabbit_delay_doctor_report:json(Findings)),
             ?assertEqual(length(Findings), length(Told)),
             [?assertEqual("ok", string:trim(os:cmd("sh -n -c " ++ quote(Command) ++ " && echo ok")))
              || #{<<"commands">> := Commands} <- Told, Command <- lists:sublist(Commands, 1)]
     end || {Rule, _, _, Broken, _} <- cases()].

quote(Command) ->
    "'" ++ lists:flatten(string:replace(unicode:characters_to_list(Command), "'", "'\\''", all)) ++ "'".

%% Names that a shell, a regular expression, a URL or JSON would read as something else.
hostile_names_test() ->
    Name = <<"a b/c'd\"e.*\x{c3}\x{a9}%\\$(x)">>,
    Bad = <<255, 0, 39>>,
    Findings = found(#{queues => [queue(Name, #{<<"x-dead-letter-exchange">> => <<"no">>}),
                                  queue(Bad, #{<<"x-message-ttl">> => 1})]}),
    ?assertEqual([{error, Name}], by_rule(dlx_missing, Findings)),
    ?assertEqual([{warning, Bad}], by_rule(ttl_without_dlx, Findings)),
    {ok, _} = rabbit_json:try_decode(rabbit_delay_doctor_report:json(Findings)),
    [#{commands := [_, Command | _]}] = [F || #{rule := dlx_missing} = F <- Findings],
    ?assertNotEqual(nomatch, binary:match(Command, <<"/queues/%2F/no.parked">>)).

%% An export of one vhost names none.
one_vhost_test() ->
    {ok, Topology} = rabbit_delay_topology:of_definitions(
                       #{<<"queues">> => [maps:remove(<<"vhost">>, queue(<<"q">>, #{}))]}, <<"mine">>),
    ?assertEqual([<<"mine">>], rabbit_delay_topology:vhosts(Topology)).

%% What the type of a queue is, where it does not say so itself.
default_queue_type_test() ->
    {ok, #{vhosts := #{<<"/">> := #{queues := #{<<"q">> := #{type := Type}}}}}} =
        rabbit_delay_topology:of_definitions(
          #{<<"vhosts">> => [#{<<"name">> => <<"/">>,
                               <<"metadata">> => #{<<"default_queue_type">> => <<"quorum">>}}],
            <<"queues">> => [queue(<<"q">>, #{})]}, <<"/">>),
    ?assertEqual(quorum, Type).

%% Patterns that cost a naive matcher an age: each # doubles its work.
many_hashes_test() ->
    Hashes = iolist_to_binary(lists:join($., lists:duplicate(30, <<"#">>))),
    Key = iolist_to_binary(lists:join($., lists:duplicate(60, <<"a">>))),
    Found = found(#{queues => [queue(<<"work">>, #{<<"x-dead-letter-exchange">> => <<"dlx">>,
                                                   <<"x-dead-letter-routing-key">> => Key}),
                               queue(<<"parked">>, #{})],
                    exchanges => [exchange(<<"dlx">>, <<"topic">>)],
                    bindings => [binding(<<"dlx">>, <<"parked">>, <<Hashes/binary, ".b">>)]}),
    ?assertEqual([{error, <<"work">>}], by_rule(dlx_unroutable, Found)).

%% Against the definition of topic matching, on all keys of up to four words.
topic_matching_test_() ->
    Words = [<<"a">>, <<"b">>],
    Patterns = [iolist_to_binary(lists:join($., P))
                || P <- sequences(3, Words ++ [<<"*">>, <<"#">>]), P =/= []],
    Keys = [iolist_to_binary(lists:join($., K)) || K <- sequences(4, Words), K =/= []],
    {timeout, 1200,
     fun () ->
             Wrong = [{Pattern, Key}
                      || Pattern <- Patterns, Key <- Keys,
                         routes(Pattern, Key) =/= matches(binary:split(Pattern, <<".">>, [global]),
                                                          binary:split(Key, <<".">>, [global]))],
             ?assertEqual([], Wrong)
     end}.

%% Two patterns meet if there is a key that both match.
pattern_overlap_test_() ->
    Words = [<<"a">>, <<"b">>],
    Patterns = [P || P <- sequences(3, Words ++ [<<"*">>, <<"#">>]), P =/= []],
    %% What begins with a wildcard is taken to meet all.
    Published = [P || [First | _] = P <- Patterns, First =/= <<"*">>, First =/= <<"#">>,
                      lists:any(fun (W) -> W =:= <<"*">> orelse W =:= <<"#">> end, P)],
    Keys = sequences(6, [<<"a">>, <<"b">>, <<"c">>]),
    {timeout, 1200,
     fun () ->
             Matched = maps:from_list([{P, [K || K <- Keys, K =/= [], matches(P, K)]} || P <- Patterns]),
             Wrong = [{A, B} || A <- Published, B <- Patterns,
                                meets(A, B) =/= (ordsets:intersection(
                                                   lists:sort(maps:get(A, Matched)),
                                                   lists:sort(maps:get(B, Matched))) =/= [])],
             ?assertEqual([], Wrong)
     end}.

sequences(0, _) -> [[]];
sequences(N, Words) ->
    Shorter = sequences(N - 1, Words),
    lists:usort(Shorter ++ [[W | S] || W <- Words, S <- Shorter]).

matches([], []) -> true;
matches([<<"#">> | P], K) -> matches(P, K) orelse (K =/= [] andalso matches([<<"#">> | P], tl(K)));
matches([<<"*">> | P], [_ | K]) -> matches(P, K);
matches([W | P], [W | K]) -> matches(P, K);
matches(_, _) -> false.

routes(Pattern, Key) ->
    leads([binding(<<"dlx">>, <<"parked">>, Pattern)],
          #{<<"x-dead-letter-exchange">> => <<"dlx">>, <<"x-dead-letter-routing-key">> => Key}).

meets(Published, Bound) ->
    leads([binding(<<"dlx">>, <<"parked">>, iolist_to_binary(lists:join($., Bound))),
           binding(<<"amq.topic">>, <<"work">>, iolist_to_binary(lists:join($., Published)))],
          #{<<"x-dead-letter-exchange">> => <<"dlx">>}).

leads(Bindings, Arguments) ->
    [] =:= by_rule(dlx_unroutable,
                   found(#{queues => [queue(<<"work">>, Arguments), queue(<<"parked">>, #{})],
                           exchanges => [exchange(<<"dlx">>, <<"topic">>)],
                           bindings => Bindings})).
