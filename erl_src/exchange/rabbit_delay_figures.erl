%% SPDX-License-Identifier: MPL-2.0

%% What is counted and known of an exchange's messages: its counters and their samples, and what its
%% store says of itself. They outlive the exchange's processes; what a deleted exchange has counted is
%% added up for all such, so that the node's sums never fall.
%%
%% In whatever process asks; nothing here waits, and all of it can be asked for at any time, with or
%% without the exchange or the plugin. rabbit_delay_registry has all of it for others.
-module(rabbit_delay_figures).

-include("rabbit_delay_table.hrl").

-export([create/0, counters/1, known_counters/1, dropped/1, samples/1, all_counters/0, checkpointed/2,
         gone_counters/0, gone/1, sample_all/0]).
-export([pending/1, stat/1, overdue/2]).
-export([without_waiting/2]).

-define(GONE_COUNTERS, {?MODULE, gone_counters}).
-define(COUNTED, 10000).

%% With the table, before all others.
-spec create() -> ok.
create() ->
    persistent_term:put(?GONE_COUNTERS, rabbit_delay_counters:new()).

%% What has happened to the exchange's messages, to be added to. They outlive its processes.
-spec counters(rabbit_exchange:name()) -> rabbit_delay_counters:ref().
counters(XName) ->
    case rabbit_delay_table:lookup(XName, #row.counters) of
        undefined ->
            Counters = rabbit_delay_counters:new(),
            ok = rabbit_delay_table:update(XName, {#row.counters, Counters}),
            %% To compare the first counts with.
            ok = rabbit_delay_table:update(XName, {#row.samples, rabbit_delay_statistics:sample(Counters, [])}),
            Counters;
        Counters ->
            Counters
    end.

-spec known_counters(rabbit_exchange:name()) -> rabbit_delay_counters:ref() | undefined.
known_counters(XName) -> rabbit_delay_table:lookup(XName, #row.counters).

%% A message for the exchange was dropped before it came to it.
-spec dropped(rabbit_exchange:name()) -> ok.
dropped(XName) ->
    Counters = case known_counters(XName) of
                   undefined -> gone_counters();
                   Known -> Known
               end,
    rabbit_delay_counters:add(Counters, dropped, 1).

-spec samples(rabbit_exchange:name()) -> rabbit_delay_statistics:samples().
samples(XName) ->
    case rabbit_delay_table:lookup(XName, #row.samples) of
        undefined -> [];
        Samples -> Samples
    end.

%% Those of each exchange that has processes.
-spec all_counters() -> [{rabbit_exchange:name(), rabbit_delay_counters:ref()}].
all_counters() ->
    [{XName, Counters} || #row{exchange = XName, counters = Counters, queue = Queue}
                              <- rabbit_delay_table:rows(),
                          Counters =/= undefined, Queue =/= undefined].

%% A checkpoint of the exchange's store has just become durable, in so many ms. The exchange may have
%% been deleted meanwhile, and the plugin disabled.
-spec checkpointed(rabbit_exchange:name(), Ms :: non_neg_integer()) -> ok.
checkpointed(XName, Ms) ->
    case rabbit_delay_table:lookup(XName, #row.counters) of
        undefined -> ok;
        Counters -> rabbit_delay_counters:checkpoint(Counters, rabbit_delay_config:now_ms(), Ms)
    end.

%% The sum of those of exchanges that have been deleted, so that the node's sums never fall.
-spec gone_counters() -> rabbit_delay_counters:ref().
gone_counters() ->
    case persistent_term:get(?GONE_COUNTERS, none) of
        none -> rabbit_delay_counters:new();
        Counters -> Counters
    end.

%% Those of a deleted exchange are.
-spec gone(rabbit_delay_counters:ref()) -> ok.
gone(Counters) ->
    rabbit_delay_counters:move(Counters, gone_counters()).

%% Now and then: what the rates are computed from.
-spec sample_all() -> ok.
sample_all() ->
    lists:foreach(
      fun (#row{counters = undefined}) ->
              ok;
          (#row{exchange = XName, counters = Counters, samples = Samples}) ->
              case rabbit_delay_statistics:sample(Counters, Samples) of
                  Samples -> ok;
                  More -> rabbit_delay_table:update_known(XName, {#row.samples, More})
              end
      end, rabbit_delay_table:rows()).

%% ----------------------------------------------------------------------------------- stores

%% How many messages the exchange holds, where its group's leader is.
-spec pending(rabbit_exchange:name()) -> non_neg_integer().
pending(XName) ->
    case rabbit_delay_table:is_led_elsewhere(XName) of
        true -> 0;
        false -> maps:get(pending, stat(XName))
    end.

%% What the exchange's store says of itself (rabbit_delay_store:stat/1), O(1), but that of what is
%% taken out of it there is `taken', in flight, and `waiting' for queues that do not take it, and how
%% many `stuck_queues' there are; all zero where it is not open.
-spec stat(rabbit_exchange:name()) ->
          #{pending | pending_bytes | taken | waiting | stuck_queues := non_neg_integer(),
            next_due := non_neg_integer() | infinity,
            atom() => term()}.
stat(XName) ->
    Stat = case rabbit_delay_table:lookup(XName, #row.store) of
               undefined -> {error, not_open};
               Store -> rabbit_delay_store:stat(Store)
           end,
    without_waiting(Stat, case known_counters(XName) of
                              undefined -> {0, 0, 0};
                              Counters -> rabbit_delay_counters:waiting(Counters)
                          end).

%% Of what is taken out of a store, so many are in flight, and the others wait.
-spec without_waiting(Stat :: map() | {error, term()},
                      {Places :: non_neg_integer(), Stuck :: non_neg_integer(),
                       InFlight :: non_neg_integer()}) ->
          #{pending | pending_bytes | taken | waiting | stuck_queues := non_neg_integer(),
            next_due := non_neg_integer() | infinity,
            atom() => term()}.
without_waiting(#{taken := Taken} = Stat, {Places, Stuck, InFlight}) ->
    %% What was cancelled may still have its place.
    Waiting = min(Places, max(0, Taken - InFlight)),
    Stat#{taken := Taken - Waiting, waiting => Waiting, stuck_queues => Stuck};
without_waiting({error, _}, _) ->
    #{pending => 0, pending_bytes => 0, taken => 0, waiting => 0, stuck_queues => 0,
      next_due => infinity}.

%% Of an exchange whose store says that of itself, how many messages should have been released by now
%% and are not in flight. Where something is overdue that is counted among so many messages; among more
%% of them it is estimated.
-spec overdue(rabbit_exchange:name(), map()) -> non_neg_integer().
overdue(XName, #{taken := Taken, next_due := NextDue, pending := Pending} = Stat) ->
    Now = rabbit_delay_config:now_ms(),
    case rabbit_delay_table:lookup(XName, #row.store) of
        Store when Store =/= undefined, NextDue =< Now, Pending =< ?COUNTED ->
            case rabbit_delay_store:count(Store, 0, Now) of
                {ok, Due, _} -> max(Due - Taken, 0);
                {error, _} -> 0
            end;
        Store when Store =/= undefined, NextDue =< Now ->
            rabbit_delay_counters:overdue(Stat, Now) - Taken;
        _ ->
            0
    end.
