%% SPDX-License-Identifier: MPL-2.0

%% What people are shown of an exchange's traffic: how fast messages come and go, when those that are
%% pending are due, and how late those were that have gone. The broker shows rates of what its
%% channels do; a release is none of that.
%%
%% It runs in the process that asks, and owns nothing: it reads counters, their samples, and what the
%% store says of itself.
-module(rabbit_delay_statistics).

-export([sample/2, rate/2, message_stats/2, sum/1, due_times/1, lateness/1]).

-export_type([samples/0, buckets/0]).

-define(COUNTS, [published, released]).
%% What else became of messages, of which no rate is shown.
-define(OUTCOMES, [cancelled, replaced, deduplicated, unroutable, expired, overflowed, dead_lettered, returned,
                   parked, rejected, unusable, keys_ignored, dropped, corrupt]).
%% As far back as the management pages' shortest range, and one before it to begin with.
-define(KEPT_MS, 65000).
%% Samples are taken by a timer: one that comes this much early is in time.
-define(SLACK_MS, 500).

%% ms: at once, 1, 5 and 15 min, 1, 3 and 12 h, 1, 3, 7, 30 and 90 d, 1 year
-define(DUE_BOUNDS, [0, 60000, 300000, 900000, 3600000, 10800000, 43200000, 86400000, 259200000,
                     604800000, 2592000000, 7776000000, 31536000000]).

%% The newest first; when by the monotonic clock, when by the system's, and how many until then, all
%% in ms.
-type samples() :: [{integer(), integer(), #{published | released => non_neg_integer()}}].

%% How many until each bound, ms, and after the one before.
-type buckets() :: [{UpTo :: non_neg_integer() | infinity, non_neg_integer()}].

%% With one more, if it is time: as often as the broker collects its own statistics.
-spec sample(rabbit_delay_counters:ref(), samples()) -> samples().
sample(Counters, Samples) ->
    Now = erlang:monotonic_time(millisecond),
    Interval = application:get_env(rabbit, collect_statistics_interval, 5000),
    case Samples of
        [{At, _, _} | _] when Now - At < Interval - ?SLACK_MS ->
            Samples;
        _ ->
            [{Now, erlang:system_time(millisecond), counts(Counters)}
             | [Sample || {At, _, _} = Sample <- Samples, Now - At =< ?KEPT_MS]]
    end.

counts(Counters) ->
    maps:from_list([{Name, rabbit_delay_counters:get(Counters, Name)} || Name <- ?COUNTS]).

%% Messages a second, between the last two samples.
-spec rate(published | released, samples()) -> float().
rate(Name, [{At1, _, Counts1}, {At0, _, Counts0} | _]) when At1 > At0 ->
    (maps:get(Name, Counts1) - maps:get(Name, Counts0)) * 1000 / (At1 - At0);
rate(_, _) ->
    0.0.

%% In the form of the HTTP API's message_stats, with the samples or not.
-spec message_stats(rabbit_exchange:name(), samples | rates) -> map().
message_stats(XName, What) ->
    Samples = rabbit_delay_registry:samples(XName),
    Counted = case rabbit_delay_registry:known_counters(XName) of
                  undefined -> fun (_) -> 0 end;
                  Counters -> fun (Name) -> rabbit_delay_counters:get(Counters, Name) end
              end,
    maps:from_list([{Name, Counted(Name)} || Name <- ?COUNTS ++ ?OUTCOMES]
                   ++ [{<<(atom_to_binary(Name, utf8))/binary, "_details">>, details(Name, Samples, What)}
                       || Name <- ?COUNTS]).

details(Name, Samples, rates) ->
    #{rate => rate(Name, Samples)};
details(Name, Samples, samples) ->
    #{rate => rate(Name, Samples),
      samples => [#{timestamp => At, sample => maps:get(Name, Counts)}
                  || {_, At, Counts} <- Samples]}.

%% Of several nodes' for one exchange. Nodes take samples at times of their own: what each had at those of
%% the one that has the most.
-spec sum([map(), ...]) -> map().
sum([_ | _] = Each) ->
    maps:from_list([{Key, case Value of
                              #{} -> sum_details([maps:get(Key, Stats) || Stats <- Each]);
                              _ -> lists:sum([maps:get(Key, Stats) || Stats <- Each])
                          end} || {Key, Value} <- maps:to_list(hd(Each))]).

sum_details(Each) ->
    Sum = #{rate => lists:sum([Rate || #{rate := Rate} <- Each])},
    case [[{At, N} || #{timestamp := At, sample := N} <- Samples]
          || #{samples := [_ | _] = Samples} <- Each] of
        [] when is_map_key(samples, hd(Each)) ->
            Sum#{samples => []};
        [] ->
            Sum;
        Nodes ->
            {_, Most} = lists:max([{length(Samples), Samples} || Samples <- Nodes]),
            Sum#{samples => [#{timestamp => At,
                               sample => lists:sum([sample_at(At, Samples) || Samples <- Nodes])}
                             || {At, _} <- Most]}
    end.

%% The newest first; before the first sample it was that.
sample_at(At, [{Taken, N} | _]) when Taken =< At -> N;
sample_at(_, [{_, N}]) -> N;
sample_at(At, [_ | Older]) -> sample_at(At, Older).

%% When what is pending is due, from now on; what is overdue or in flight is in the first bucket.
%% Looks at every message. What is here and cannot be seen yet is not nothing.
-spec due_times(rabbit_exchange:name()) -> buckets() | {error, {unavailable, Why :: binary()}}.
due_times(XName) ->
    Now = rabbit_delay_config:now_ms(),
    Bounds = [Now + Bound || Bound <- ?DUE_BOUNDS],
    case rabbit_delay_registry:store(XName) of
        undefined ->
            case rabbit_delay_raft:find_member(XName) of
                none -> [{Bound, 0} || Bound <- ?DUE_BOUNDS ++ [infinity]];
                {ok, _} -> unavailable(XName, <<"try again">>)
            end;
        Store ->
            case rabbit_delay_budget:with(counts, 1, fun () -> rabbit_delay_store:count_until(Store, Bounds) end) of
                {ok, Counts} -> lists:zip(?DUE_BOUNDS ++ [infinity], Counts);
                {error, {unavailable, _}} = Busy -> Busy;
                {error, Reason} -> unavailable(XName, rabbit_delay_text:reason(Reason))
            end
    end.

unavailable(XName, Why) ->
    {error, {unavailable, <<"what ", (rabbit_delay_text:rs(XName))/binary, " holds is not at hand: ", Why/binary>>}}.

%% How late released messages were, since the node started, and the sum, ms.
-spec lateness(rabbit_exchange:name()) -> {buckets(), Sum :: non_neg_integer()}.
lateness(XName) ->
    Counters = case rabbit_delay_registry:known_counters(XName) of
                   undefined -> rabbit_delay_counters:new();
                   Known -> Known
               end,
    #{lateness := Lateness} = rabbit_delay_counters:read(Counters),
    Lateness.
