%% SPDX-License-Identifier: MPL-2.0

%% What has happened to an exchange's delayed messages on this node since it was started: counts
%% that only grow, and histograms. Its processes add to them, and anyone may read.
%%
%%   published     messages taken and confirmed, cancels not among them
%%   released      messages that every queue which they were routed to has confirmed
%%   unroutable    messages that were dropped because no queue was bound for them when they were
%%                 due
%%   cancelled     messages that were cancelled by their key
%%   replaced      messages in whose place another came
%%   deduplicated  messages that were not taken because of one with their key
%%   rejected      messages that were refused: publishers got a nack
%%   retried       tries to release that a queue rejected
%%   expired       messages that were dropped because it was too late to release them
%%   overflowed    messages that were dropped because the exchange was full
%%   dead_lettered messages that went to the dead-letter exchange, for one of these reasons
%%   returned      dead letters that came back to be tried again
%%   parked        dead letters that were not, and went to the parking or the dead-letter exchange
%%   keys_ignored  messages whose headers about keys did not count, as nobody published them to the
%%                 exchange itself
%%   unusable      messages whose delay could not be used, and that were refused for it where the
%%                 exchange refuses one alone: publishers got a nack, and of one that awaits no confirm
%%                 it is dropped. Not among those rejected or dropped
%%   corrupt       messages lost to damage of the store's files
%%   dropped       dead letters, and messages whose publisher awaits no confirm, that could be neither
%%                 taken nor kept waiting
%%
%% Messages that were on their way to their queues when they were cancelled or replaced count as
%% released if their queues take them.
%%
%% Nobody owns them: they are counters (counters:new/2) of a fixed layout, one array for an exchange,
%% written without a lock by whichever process has something to count. Not seshat's, which has neither
%% histograms nor a way to hand counts over when an exchange is deleted (move/2), the most of this.
-module(rabbit_delay_counters).

-export([new/0, may_tell/2, add/3, get/2, delay/2, lateness/2, checkpoint/3, waiting/1, waiting/4, move/2, read/1,
         sum/1, overdue/2]).

-export_type([ref/0, name/0, histogram/0, values/0]).

-opaque ref() :: counters:counters_ref().

%% In two, as dialyzer takes a longer list for any atom.
-type name() :: count() | returned | parked | dropped | keys_ignored | unusable.
-type count() :: published | released | unroutable | cancelled | replaced | deduplicated | rejected
               | retried | expired | overflowed | dead_lettered | corrupt.

%% How many were at most so many ms, not counting those of smaller bounds; the sum of all, ms.
-type histogram() :: {[{UpTo :: pos_integer() | infinity, non_neg_integer()}],
                      Sum :: non_neg_integer()}.

-type values() :: #{count() => non_neg_integer(),
                    returned := non_neg_integer(), parked := non_neg_integer(),
                    dropped := non_neg_integer(), keys_ignored := non_neg_integer(),
                    unusable := non_neg_integer(),
                    %% as asked for by publishers
                    delay := histogram(),
                    %% from the due time to the last queue's confirm, of released messages
                    lateness := histogram(),
                    %% the last checkpoint of the store: when it was durable, ms since the epoch (0:
                    %% none yet), and how long it took, ms
                    checkpoint := {At :: non_neg_integer(), Ms :: non_neg_integer()}}.

-define(NAMES, [published, released, unroutable, cancelled, replaced, deduplicated, rejected,
                retried, expired, overflowed, dead_lettered, corrupt]).
-define(CHECKPOINT_AT, 12).
-define(CHECKPOINT_MS, 13).
%% The first is the sum, then a count for each bound and for what is beyond the last.
-define(DELAY, 14).
-define(LATENESS, 32).
%% Not counts: how many messages wait for queues, how many queues are waited for, how many messages
%% are in flight.
-define(WAITING, 58).
-define(STUCK, 59).
-define(IN_FLIGHT, 60).
-define(SIZE, 64).
-define(TOLD_AT, 61).
-define(TELL_S, 60).

%% ms: 100 ms, 1 s, 10 s, 1 min, 10 min, 1 h, 6 h, 1 d, 7 d, 30 d, 1 year
-define(DELAY_BOUNDS, [100, 1000, 10000, 60000, 600000, 3600000, 21600000, 86400000, 604800000,
                       2592000000, 31536000000]).
-define(LATENESS_BOUNDS, [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 60000,
                          600000, 3600000]).

-spec new() -> ref().
new() -> counters:new(?SIZE, []).

-spec add(ref(), name(), non_neg_integer()) -> ok.
add(_, _, 0) -> ok;
add(Ref, Name, N) -> counters:add(Ref, index(Name), N).

-spec get(ref(), name()) -> non_neg_integer().
get(Ref, Name) -> counters:get(Ref, index(Name)).

index(published) -> 1;
index(released) -> 2;
index(unroutable) -> 3;
index(cancelled) -> 4;
index(replaced) -> 5;
index(deduplicated) -> 6;
index(rejected) -> 7;
index(retried) -> 8;
index(expired) -> 9;
index(dead_lettered) -> 10;
index(corrupt) -> 11;
index(overflowed) -> 50;
index(returned) -> 51;
index(parked) -> 52;
index(dropped) -> 53;
index(keys_ignored) -> 62;
index(unusable) -> 63.

-spec delay(ref(), Ms :: integer()) -> ok.
delay(Ref, Ms) -> observe(Ref, ?DELAY, ?DELAY_BOUNDS, max(Ms, 0)).

-spec lateness(ref(), Ms :: integer()) -> ok.
lateness(Ref, Ms) -> observe(Ref, ?LATENESS, ?LATENESS_BOUNDS, max(Ms, 0)).

observe(Ref, First, Bounds, Ms) ->
    counters:add(Ref, First, Ms),
    counters:add(Ref, bucket(Bounds, Ms, First + 1), 1).

bucket([Bound | _], Ms, I) when Ms =< Bound -> I;
bucket([_ | Rest], Ms, I) -> bucket(Rest, Ms, I + 1);
bucket([], _, I) -> I.

%% A checkpoint of the store became durable At, after so many ms.
-spec checkpoint(ref(), At :: non_neg_integer(), Ms :: non_neg_integer()) -> ok.
checkpoint(Ref, At, Ms) ->
    counters:put(Ref, ?CHECKPOINT_AT, At),
    counters:put(Ref, ?CHECKPOINT_MS, Ms).

%% Whether it is time to say again that keys are ignored, given the time in s: once a minute.
-spec may_tell(ref(), Now :: integer()) -> boolean().
may_tell(Ref, Now) ->
    case counters:get(Ref, ?TOLD_AT) of
        At when At =:= 0; Now - At >= ?TELL_S; Now < At ->
            counters:put(Ref, ?TOLD_AT, Now),
            true;
        _ ->
            false
    end.

%% At most so many messages are due and wait for so many queues; besides so many are in flight.
-spec waiting(ref(), Waiting :: non_neg_integer(), Queues :: non_neg_integer(),
              InFlight :: non_neg_integer()) -> ok.
waiting(Ref, Waiting, Queues, InFlight) ->
    counters:put(Ref, ?WAITING, Waiting),
    counters:put(Ref, ?STUCK, Queues),
    counters:put(Ref, ?IN_FLIGHT, InFlight).

-spec waiting(ref()) -> {Waiting :: non_neg_integer(), Queues :: non_neg_integer(),
                         InFlight :: non_neg_integer()}.
waiting(Ref) ->
    {counters:get(Ref, ?WAITING), counters:get(Ref, ?STUCK), counters:get(Ref, ?IN_FLIGHT)}.

%% Adds one's counts to another's. Checkpoints are not counts.
-spec move(From :: ref(), To :: ref()) -> ok.
move(From, To) ->
    lists:foreach(fun (I) -> counters:add(To, I, counters:get(From, I)) end,
                  lists:seq(1, ?SIZE) -- [?CHECKPOINT_AT, ?CHECKPOINT_MS, ?WAITING, ?STUCK,
                                              ?IN_FLIGHT, ?TOLD_AT]).

-spec read(ref()) -> values().
read(Ref) ->
    Counts = maps:from_list([{Name, counters:get(Ref, index(Name))} || Name <- ?NAMES]),
    Counts#{returned => counters:get(Ref, index(returned)),
            parked => counters:get(Ref, index(parked)),
            dropped => counters:get(Ref, index(dropped)),
            keys_ignored => counters:get(Ref, index(keys_ignored)),
            unusable => counters:get(Ref, index(unusable)),
            delay => histogram(Ref, ?DELAY, ?DELAY_BOUNDS),
            lateness => histogram(Ref, ?LATENESS, ?LATENESS_BOUNDS),
            checkpoint => {counters:get(Ref, ?CHECKPOINT_AT), counters:get(Ref, ?CHECKPOINT_MS)}}.

histogram(Ref, First, Bounds) ->
    {[{Bound, counters:get(Ref, I)}
      || {I, Bound} <- lists:zip(lists:seq(First + 1, First + 1 + length(Bounds)),
                                 Bounds ++ [infinity])],
     counters:get(Ref, First)}.

%% Of several exchanges together. The checkpoint is the oldest one, with the longest time.
-spec sum([values()]) -> values().
sum(All) ->
    lists:foldl(fun plus/2, read(new()), All).

plus(A, B) ->
    maps:map(fun (checkpoint, {0, _}) -> maps:get(checkpoint, B);
                 (checkpoint, {At, Ms}) ->
                     case B of
                         #{checkpoint := {0, _}} -> {At, Ms};
                         #{checkpoint := {At1, Ms1}} -> {min(At, At1), max(Ms, Ms1)}
                     end;
                 (Name, {Buckets, Sum}) ->
                     #{Name := {Buckets1, Sum1}} = B,
                     {lists:zipwith(fun ({Bound, N}, {Bound, N1}) -> {Bound, N + N1} end,
                                    Buckets, Buckets1), Sum + Sum1};
                 (Name, N) ->
                     N + maps:get(Name, B)
             end, A).

%% How many messages are past their due time, of what rabbit_delay_store:stat/1 says: those handed
%% out, exactly, and of the others an estimate by the histogram of times to due, whose counts are
%% for ranges that double.
-spec overdue(map(), Now :: integer()) -> non_neg_integer().
overdue(#{taken := Taken, next_due := NextDue, histogram := Histogram}, Now)
  when is_integer(NextDue), NextDue =< Now ->
    Taken + max(1, trunc(up_to(Now - NextDue, 0, 2, Histogram)));
overdue(#{taken := Taken}, _) ->
    Taken.

up_to(_, _, _, []) -> 0;
up_to(Ms, From, To, [N | _]) when Ms < To -> N * (Ms - From) / (To - From);
up_to(Ms, _, To, [N | Rest]) -> N + up_to(Ms, To, 2 * To, Rest).
