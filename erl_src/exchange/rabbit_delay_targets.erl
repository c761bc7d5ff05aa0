%% SPDX-License-Identifier: MPL-2.0

%% What a dispatcher knows of the queues that it publishes to: how much each may be sent, and what
%% waits for it. Data only; who calls tells the time (ms, monotonic) and runs the processes.
%%
%% What a queue rejects, and what is due while it takes nothing, waits: of such a message only its place is kept here, 16 bytes, in order,
%% and its record stays taken out of the store. There is a bound for that too, beyond which a message
%% is left where it is and only counted: it is found again when all that is taken is handed out anew.
%%
%% A queue that does not confirm within a second is slow. What only slow queues have not confirmed
%% does not count as in flight, so that the others go on, but has a limit of its own, twice that of
%% what is in flight: each queue may be sent at most half of what is left of that, which is all that
%% may be in flight while none is slow. A queue that rejects is left alone for a pause, which
%% doubles while it goes on, and then gets one message, two, four and so on.
%%
%% Not only queues are waited for: any other term may be a name, and is never sent anything.
-module(rabbit_delay_targets).

-export([new/0, limits/3, names/1, publisher/2, started/3]).
-export([is_open/2, is_taking/2, room/2, least_room/1, crowded/1]).
-export([sent/5, confirmed/4, rejected/3, given_up/2, gone/2]).
-export([pause/4, resume/2, resume_all/1, widen/2]).
-export([wait/4, wait_first/4, next/3, forget_waiting/1, waiting/1, has_lost/1]).
-export([tick/2, slow/1, has_slow/1, beyond/1, silent/3, unused/2, stuck/1]).

-export_type([targets/0, name/0, place/0]).

-type name() :: term().
-type place() :: {Due :: rabbit_delay_store:ms(), rabbit_delay_store:id()}.
-type ms() :: integer().

-define(SLOW_MS, 1000).
%% Each queue may always be sent so many.
-define(LEAST, 16).
%% Beside what may be in flight, of those that only slow queues have not confirmed.
-define(MORE_SLOW, 256).
-define(MAX_WAITING, 1000000).
%% Messages that are worth reading at once.
-define(ENOUGH, 256).
%% Places that are kept in one binary.
-define(PACKED, 512).

%% The first ones in order, then what has come since, the last one first.
-record(places, {first = <<>> :: binary(),
                 packed = queue:new() :: queue:queue(binary()),
                 last = [] :: [place()],
                 last_length = 0 :: non_neg_integer()}).

-record(target,
        {publisher :: undefined | pid(),
         %% sizes, by the sequence number that they were published with, and their sum
         unconfirmed = #{} :: #{pos_integer() => non_neg_integer()},
         bytes = 0 :: non_neg_integer(),
         %% the last one sent; one by whose confirm the time is taken that a confirm needs, and when
         %% that was sent
         last = 0 :: non_neg_integer(),
         mark :: undefined | {pos_integer(), ms()},
         slow = false :: boolean(),
         %% since when it has not been heard of, if anything is unconfirmed
         heard :: ms(),
         window = infinity :: pos_integer() | infinity,
         %% the present pause, or the last one if nothing has been confirmed since
         pause = 0 :: non_neg_integer(),
         paused = false :: boolean(),
         places = #places{} :: #places{},
         %% what has been in flight, to it or to others, in the place that it had before
         again = gb_sets:new() :: gb_sets:set(place()),
         %% others wait that are not among these
         lost = false :: boolean(),
         used :: ms()}).

-record(targets, {by_name = #{} :: #{name() => #target{}},
                  messages = 1 :: pos_integer(),
                  bytes = 1 :: pos_integer(),
                  slow_messages = 0 :: non_neg_integer(),
                  slow_bytes = 0 :: non_neg_integer(),
                  waiting = 0 :: non_neg_integer(),
                  %% of the lost ones there may be more, and fewer
                  lost = 0 :: non_neg_integer()}).

-opaque targets() :: #targets{}.

-spec new() -> targets().
new() -> #targets{}.

%% How much may be in flight in all.
-spec limits(pos_integer(), pos_integer(), targets()) -> targets().
limits(Messages, Bytes, Ts) -> Ts#targets{messages = Messages, bytes = Bytes}.

-spec names(targets()) -> [name()].
names(#targets{by_name = ByName}) -> maps:keys(ByName).

-spec publisher(name(), targets()) -> undefined | pid().
publisher(Name, #targets{by_name = ByName}) ->
    case ByName of
        #{Name := #target{publisher = Pid}} -> Pid;
        _ -> undefined
    end.

-spec started(name(), pid(), targets()) -> targets().
started(Name, Pid, Ts) ->
    update(Name, fun (T) -> T#target{publisher = Pid} end, Ts).

%% --------------------------------------------------------------------------------- windows

%% Whether it may be sent a message that has not waited for it.
-spec is_open(name(), targets()) -> boolean().
is_open(Name, #targets{by_name = ByName} = Ts) ->
    case ByName of
        #{Name := T} -> none_waits(T) andalso room_of(T, Ts) > 0;
        _ -> true
    end.

%% Or one that has.
-spec is_taking(name(), targets()) -> boolean().
is_taking(Name, Ts) -> room(Name, Ts) > 0.

-spec room(name(), targets()) -> non_neg_integer().
room(Name, #targets{by_name = ByName} = Ts) ->
    case ByName of
        #{Name := T} -> room_of(T, Ts);
        _ -> limit(Ts)
    end.

room_of(#target{paused = true}, _) ->
    0;
room_of(#target{unconfirmed = Unconfirmed, bytes = Bytes, window = Window}, Ts) ->
    case Bytes > 0 andalso Bytes >= limit_bytes(Ts) of
        true -> 0;
        false -> max(0, min(Window, limit(Ts)) - map_size(Unconfirmed))
    end.

limit(#targets{messages = Max, slow_messages = Slow}) ->
    max(min(?LEAST, Max), (2 * Max - Slow) div 2).

limit_bytes(#targets{bytes = Max, slow_bytes = Slow}) ->
    max(1, (2 * Max - Slow) div 2).

%% As many messages as are worth reading: if they went to the queue that has the least room of those
%% that confirm in time, none would have to wait. None if that one should be waited for first.
-spec least_room(targets()) -> non_neg_integer().
least_room(#targets{by_name = ByName} = Ts) ->
    Limit = limit(Ts),
    Least = maps:fold(fun (_, #target{slow = false, window = infinity, unconfirmed = U} = T, L)
                            when map_size(U) > 0 ->
                              min(L, room_of(T, Ts));
                          (_, _, L) ->
                              L
                      end, Limit, ByName),
    case Least >= enough(Limit) of
        true -> Least;
        false -> 0
    end.

enough(Limit) -> min(?ENOUGH, (Limit + 3) div 4).

%% Those that can be sent enough of what waits for them, and whether any confirms in time: then it is
%% no use to look for more messages before these have gone.
-spec crowded(targets()) -> {[name()], InTime :: boolean()}.
crowded(#targets{waiting = 0, lost = 0}) ->
    {[], false};
crowded(#targets{by_name = ByName} = Ts) ->
    Enough = enough(limit(Ts)),
    maps:fold(fun (Name, #target{paused = false} = T, {Names, InTime} = Acc) ->
                      case none_waits(T) of
                          true -> Acc;
                          false -> {case is_worth(room_of(T, Ts), Enough, T) of
                                        true -> [Name | Names];
                                        false -> Names
                                    end, InTime orelse is_in_time(T)}
                      end;
                  (_, _, Acc) ->
                      Acc
              end, {[], false}, ByName).

is_worth(0, _, _) -> false;
is_worth(Room, Enough, #target{unconfirmed = U, window = W}) ->
    Room >= Enough orelse map_size(U) =:= 0 orelse W =/= infinity.

is_in_time(#target{slow = Slow, window = Window}) -> not Slow andalso Window =:= infinity.

-spec sent(name(), SeqNo :: pos_integer(), Bytes :: non_neg_integer(), ms(), targets()) ->
          targets().
sent(Name, SeqNo, Size, Now, Ts0) ->
    #targets{by_name = ByName} = Ts0,
    #target{unconfirmed = U, bytes = Bytes, mark = Mark, heard = Heard} = T0 =
        maps:get(Name, ByName, #target{heard = Now, used = Now}),
    T = T0#target{unconfirmed = U#{SeqNo => Size}, bytes = Bytes + Size, last = SeqNo, used = Now,
                  mark = case Mark of undefined -> {SeqNo, Now}; _ -> Mark end,
                  heard = case map_size(U) of 0 -> Now; _ -> Heard end},
    Ts = Ts0#targets{by_name = ByName#{Name => T}},
    case T of
        #target{slow = true} -> slower(1, Size, Ts);
        _ -> Ts
    end.

slower(Messages, Bytes, #targets{slow_messages = M, slow_bytes = B} = Ts) ->
    Ts#targets{slow_messages = M + Messages, slow_bytes = B + Bytes}.

%% It has these.
-spec confirmed(name(), [pos_integer()], ms(), targets()) -> targets().
confirmed(Name, SeqNos, Now, Ts0) ->
    answered(
      Name, SeqNos, Now,
      fun (#target{window = Window} = T) ->
              T#target{pause = 0,
                       window = case Window of
                                    infinity -> infinity;
                                    _ -> wider(Window, length(SeqNos), Ts0)
                                end}
      end, Ts0).

wider(Window, By, Ts) ->
    case Window + By >= limit(Ts) of
        true -> infinity;
        false -> Window + By
    end.

%% It does not have these and will not. To be left alone for a while: pause/5.
-spec rejected(name(), [pos_integer()], targets()) -> targets().
rejected(Name, SeqNos, Ts) ->
    answered(Name, SeqNos, none, fun (T) -> T end, Ts).

answered(Name, SeqNos, Now, Fun, #targets{by_name = ByName} = Ts0) ->
    case ByName of
        #{Name := #target{unconfirmed = U0, bytes = Bytes0, slow = Slow} = T0} ->
            {U, Bytes} = lists:foldl(fun (SeqNo, {U1, B1}) ->
                                             case maps:take(SeqNo, U1) of
                                                 {Size, U2} -> {U2, B1 - Size};
                                                 error -> {U1, B1}
                                             end
                                     end, {U0, Bytes0}, SeqNos),
            Ts = case Slow of
                     true -> slower(map_size(U) - map_size(U0), Bytes - Bytes0, Ts0);
                     false -> Ts0
                 end,
            T = Fun(T0#target{unconfirmed = U, bytes = Bytes}),
            timed(Name, T, Now, Ts);
        _ ->
            Ts0
    end.

%% Whether it is slow is known anew when what the time is taken by is answered.
timed(Name, #target{unconfirmed = U} = T, Now, Ts) when map_size(U) =:= 0 ->
    set_slow(Name, false, T#target{mark = undefined, heard = heard(Now, T)}, Ts);
timed(Name, #target{unconfirmed = U, mark = {SeqNo, At}, last = Last} = T, Now, Ts)
  when is_integer(Now), not is_map_key(SeqNo, U) ->
    set_slow(Name, Now - At >= ?SLOW_MS, T#target{mark = {Last, Now}, heard = Now}, Ts);
timed(Name, T, Now, #targets{by_name = ByName} = Ts) ->
    Ts#targets{by_name = ByName#{Name := T#target{heard = heard(Now, T)}}}.

heard(none, #target{heard = Heard}) -> Heard;
heard(Now, _) -> Now.

set_slow(Name, Slow, #target{slow = Before, unconfirmed = U, bytes = Bytes} = T,
         #targets{by_name = ByName} = Ts0) ->
    Ts = Ts0#targets{by_name = ByName#{Name := T#target{slow = Slow}}},
    case {Before, Slow} of
        {false, true} -> slower(map_size(U), Bytes, Ts);
        {true, false} -> slower(-map_size(U), -Bytes, Ts);
        _ -> Ts
    end.

%% Its publisher has ended: what has not been answered yet.
-spec given_up(name(), targets()) -> {[pos_integer()], targets()}.
given_up(Name, #targets{by_name = ByName} = Ts) ->
    case ByName of
        #{Name := #target{unconfirmed = U}} ->
            SeqNos = lists:sort(maps:keys(U)),
            {SeqNos, answered(Name, SeqNos, none,
                              fun (T) -> T#target{publisher = undefined} end, Ts)};
        _ ->
            {[], Ts}
    end.

%% It does not exist any more. What waited for it, to be routed again.
-spec gone(name(), targets()) -> {Unanswered :: [pos_integer()], targets()}.
gone(Name, Ts0) ->
    {SeqNos, Ts} = given_up(Name, Ts0),
    {SeqNos, update(Name, fun (T) -> T#target{paused = false, pause = 0, window = infinity} end,
                    Ts)}.

%% ---------------------------------------------------------------------------------- pauses

%% It is to be left alone. The pause, unless it is within one.
-spec pause(name(), {Min :: pos_integer(), Max :: pos_integer()}, ms(), targets()) ->
          {paused, targets()} | {pause, Ms :: pos_integer(), targets()}.
pause(Name, {Min, Max}, Now, #targets{by_name = ByName} = Ts) ->
    case maps:get(Name, ByName, #target{heard = Now, used = Now}) of
        #target{paused = true} ->
            {paused, Ts};
        #target{pause = Before} = T ->
            Ms = case Before of
                     0 -> Min;
                     _ -> min(2 * Before, Max)
                 end,
            {pause, Ms, Ts#targets{by_name = ByName#{Name => T#target{paused = true, pause = Ms,
                                                                    window = 1, used = Now}}}}
    end.

%% The pause is over.
-spec resume(name(), targets()) -> targets().
resume(Name, Ts) ->
    update(Name, fun (T) -> T#target{paused = false} end, Ts).

%% Whatever they waited for may have come: nothing is known of the past.
-spec resume_all(targets()) -> targets().
resume_all(#targets{by_name = ByName} = Ts) ->
    Ts#targets{by_name = maps:map(fun (_, T) -> T#target{paused = false, pause = 0} end, ByName)}.

%% What it was sent last did not come back: it may be sent more.
-spec widen(name(), targets()) -> targets().
widen(Name, Ts) ->
    update(Name, fun (#target{paused = true} = T) -> T;
                     (#target{window = infinity} = T) -> T;
                     (#target{window = Window} = T) ->
                         T#target{window = wider(Window, Window, Ts), pause = 0}
                 end, Ts).

%% --------------------------------------------------------------------------------- waiting

none_waits(#target{lost = true}) ->
    false;
none_waits(#target{places = #places{first = <<>>, last = [], packed = Packed}, again = Again}) ->
    queue:is_empty(Packed) andalso gb_sets:is_empty(Again);
none_waits(_) ->
    false.

%% Behind all that wait for it.
-spec wait(name(), place(), ms(), targets()) -> targets().
wait(Name, Place, Now, #targets{by_name = ByName, waiting = N, lost = Lost} = Ts) ->
    T = maps:get(Name, ByName, #target{heard = Now, used = Now}),
    case T of
        _ when N >= ?MAX_WAITING ->
            Ts#targets{by_name = ByName#{Name => T#target{lost = true}}, lost = Lost + 1};
        #target{lost = true} ->
            Ts#targets{lost = Lost + 1};
        #target{places = Places} ->
            Ts#targets{by_name = ByName#{Name => T#target{places = in(Place, Places)}},
                       waiting = N + 1}
    end.

%% It has been in flight already, and has its place before whatever is due later.
-spec wait_first(name(), place(), ms(), targets()) -> targets().
wait_first(Name, Place, Now, #targets{by_name = ByName, waiting = N} = Ts) ->
    #target{again = Again} = T = maps:get(Name, ByName, #target{heard = Now, used = Now}),
    case gb_sets:is_member(Place, Again) of
        true ->
            Ts;
        false ->
            Ts#targets{by_name = ByName#{Name => T#target{again = gb_sets:add(Place, Again)}},
                       waiting = N + 1}
    end.

%% The next N that wait for it.
-spec next(name(), N :: non_neg_integer(), targets()) -> {[place()], targets()}.
next(Name, N, #targets{by_name = ByName, waiting = Waiting} = Ts) ->
    case ByName of
        #{Name := #target{again = Again0, places = Places0} = T} ->
            {Next, Again, Places} = merge(N, Again0, Places0, []),
            {Next, Ts#targets{by_name = ByName#{Name := T#target{again = Again, places = Places}},
                              waiting = Waiting - length(Next)}};
        _ ->
            {[], Ts}
    end.

%% Of both, in order: what waits has a place among what was in flight.
merge(0, Again, Places, Acc) ->
    {lists:reverse(Acc), Again, Places};
merge(N, Again0, Places0, Acc) ->
    case gb_sets:is_empty(Again0) of
        true ->
            {Rest, Places} = out(N, Places0, []),
            {lists:reverse(Acc, Rest), Again0, Places};
        false ->
            {Smallest, Again} = gb_sets:take_smallest(Again0),
            case out(1, Places0, []) of
                {[First], Places} when First < Smallest ->
                    merge(N - 1, Again0, Places, [First | Acc]);
                _ ->
                    merge(N - 1, Again, Places0, [Smallest | Acc])
            end
    end.

in(Place, #places{last = Last, last_length = ?PACKED - 1, packed = Packed} = Places) ->
    Binary = << <<Due:64, Id:64>> || {Due, Id} <- lists:reverse([Place | Last]) >>,
    Places#places{last = [], last_length = 0, packed = queue:in(Binary, Packed)};
in(Place, #places{last = Last, last_length = N} = Places) ->
    Places#places{last = [Place | Last], last_length = N + 1}.

out(0, Places, Acc) ->
    {lists:reverse(Acc), Places};
out(N, #places{first = <<Due:64, Id:64, First/binary>>} = Places, Acc) ->
    out(N - 1, Places#places{first = First}, [{Due, Id} | Acc]);
out(N, #places{packed = Packed0, last = Last} = Places, Acc) ->
    case queue:out(Packed0) of
        {{value, First}, Packed} ->
            out(N, Places#places{first = First, packed = Packed}, Acc);
        {empty, _} when Last =:= [] ->
            {lists:reverse(Acc), Places};
        {empty, _} ->
            First = << <<Due:64, Id:64>> || {Due, Id} <- lists:reverse(Last) >>,
            out(N, Places#places{first = First, last = [], last_length = 0}, Acc)
    end.

%% Whatever waits is handed out anew by the store.
-spec forget_waiting(targets()) -> targets().
forget_waiting(#targets{by_name = ByName} = Ts) ->
    Ts#targets{waiting = 0, lost = 0,
               by_name = maps:map(fun (_, T) -> T#target{places = #places{}, lost = false,
                                                         again = gb_sets:new()}
                                  end, ByName)}.

%% How many wait.
-spec waiting(targets()) -> non_neg_integer().
waiting(#targets{waiting = N, lost = Lost}) -> N + Lost.

%% Whether one that could be sent what waits has none left but lost ones.
-spec has_lost(targets()) -> boolean().
has_lost(#targets{lost = 0}) ->
    false;
has_lost(#targets{by_name = ByName} = Ts) ->
    lists:any(fun (#target{lost = true} = T) ->
                      room_of(T, Ts) > 0 andalso none_waits(T#target{lost = false});
                  (_) ->
                      false
              end, maps:values(ByName)).

%% --------------------------------------------------------------------------------- slowness

%% Who is slow is looked at; those that have become so.
-spec tick(ms(), targets()) -> {[name()], targets()}.
tick(Now, #targets{by_name = ByName} = Ts0) ->
    maps:fold(fun (Name, #target{slow = false, mark = {_, At}} = T, {Slow, Ts})
                    when Now - At >= ?SLOW_MS ->
                      {[Name | Slow], set_slow(Name, true, T, Ts)};
                  (_, _, Acc) ->
                      Acc
              end, {[], Ts0}, ByName).

-spec slow(targets()) -> [name()].
slow(#targets{by_name = ByName}) ->
    [Name || {Name, #target{slow = true}} <- maps:to_list(ByName)].

-spec has_slow(targets()) -> boolean().
has_slow(#targets{slow_messages = N}) -> N > 0.

%% If several slow queues hold more than they may in all, the one that has been slow for longest.
-spec beyond(targets()) -> none | name().
beyond(#targets{messages = Max, bytes = MaxBytes, slow_messages = M, slow_bytes = B})
  when M =< 2 * Max + ?MORE_SLOW, B =< 3 * MaxBytes ->
    none;
beyond(#targets{by_name = ByName}) ->
    case lists:sort([{At, Name}
                     || {Name, #target{slow = true, mark = {_, At}}} <- maps:to_list(ByName)]) of
        [{_, Name}, _ | _] -> Name;
        _ -> none
    end.

%% Those that have answered nothing for so long.
-spec silent(ms(), For :: ms(), targets()) -> [name()].
silent(Now, For, #targets{by_name = ByName}) ->
    [Name || {Name, #target{unconfirmed = U, heard = Heard}} <- maps:to_list(ByName),
             map_size(U) > 0, Now - Heard >= For].

%% Those that nothing is known of that matters, for so long unused: they are forgotten. Their
%% publishers are to be ended.
-spec unused(Before :: ms(), targets()) -> {[pid()], targets()}.
unused(Before, #targets{by_name = ByName} = Ts) ->
    {Unused, Used} =
        lists:partition(fun ({_, #target{unconfirmed = U, paused = Paused, used = At} = T}) ->
                                map_size(U) =:= 0 andalso not Paused andalso At < Before
                                    andalso none_waits(T)
                        end, maps:to_list(ByName)),
    case Unused of
        [] -> {[], Ts};
        _ -> {[Pid || {_, #target{publisher = Pid}} <- Unused, is_pid(Pid)],
              Ts#targets{by_name = maps:from_list(Used)}}
    end.

%% Those that take nothing now, or do not confirm within a second.
-spec stuck(targets()) -> [name()].
stuck(#targets{by_name = ByName}) ->
    [Name || {Name, #target{slow = Slow, paused = Paused, pause = Pause}} <- maps:to_list(ByName),
             Slow orelse Paused orelse Pause > 0].

update(Name, Fun, #targets{by_name = ByName} = Ts) ->
    case ByName of
        #{Name := T} -> Ts#targets{by_name = ByName#{Name := Fun(T)}};
        _ -> Ts
    end.
