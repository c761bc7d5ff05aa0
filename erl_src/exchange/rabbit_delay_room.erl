%% SPDX-License-Identifier: MPL-2.0

%% How much an exchange may take in before it has as much as its settings allow. Data only, of the
%% delay queue's process; every operation is O(1).
%%
%% What is under way is not in the store yet, and some of it may never be: while there is any, it is
%% certain only that there is as much room as if all of it were, and there may be more. So nobody is
%% refused for want of room before that is known exactly.
-module(rabbit_delay_room).

-export([limits/2, room/3, fits/2, fill/2, admits/3, left/1, is_beyond/2]).

-export_type([room/0, limit/0, limits/0]).

-type limit() :: non_neg_integer() | infinity.
-type limits() :: {Messages :: limit(), Bytes :: limit()}.

%% How far an exchange that drops what is due last may be beyond its limits while it does: then it
%% rejects.
-define(BEYOND_MESSAGES, 65536).
-define(BEYOND_BYTES, 67108864).

%% What may be added before a limit is met. If that is not exact, there may be more.
-record(room, {messages = infinity :: limit(),
               bytes = infinity :: limit(),
               exact :: boolean()}).

-opaque room() :: #room{}.

%% Beyond what messages are rejected, and beyond what they are dropped.
-spec limits(limits(), reject_publish | drop_latest_due) -> {limits(), none | limits()}.
limits({infinity, infinity} = Limits, _) ->
    {Limits, none};
limits(Limits, reject_publish) ->
    {Limits, none};
limits({Messages, Bytes} = Limits, drop_latest_due) ->
    {{plus(Messages, ?BEYOND_MESSAGES), plus(Bytes, ?BEYOND_BYTES)}, Limits}.

plus(infinity, _) -> infinity;
plus(N, More) -> N + More.

%% What may be added, by what the store says of itself: exactly, if nothing is under way, else at
%% least. Unknown while it is not open.
-spec room(limits(), Stat :: map(), UnderWay :: none | {Messages, Bytes}) -> room() | unknown
              when Messages :: non_neg_integer(), Bytes :: non_neg_integer().
room({infinity, infinity}, _, _) ->
    #room{exact = true};
room(Limits, Stat, none) ->
    room(Limits, Stat, {0, 0}, true);
room(Limits, Stat, UnderWay) ->
    room(Limits, Stat, UnderWay, false).

room({MaxMessages, MaxBytes}, #{applied := _, pending := Pending, pending_bytes := PendingBytes},
     {Messages, Bytes}, Exact) ->
    #room{messages = less(MaxMessages, Pending + Messages), bytes = less(MaxBytes, PendingBytes + Bytes),
          exact = Exact};
room(_, _, _, _) ->
    unknown.

less(infinity, _) -> infinity;
less(Max, N) -> max(0, Max - N).

%% Whether there is room for a message of this size.
-spec fits(Size :: non_neg_integer(), room()) -> boolean() | unknown.
fits(Size, #room{messages = Messages, bytes = Bytes}) when Messages > 0, Size =< Bytes -> true;
fits(_, #room{exact = true}) -> false;
fits(_, _) -> unknown.

%% There is one more.
-spec fill(Size :: non_neg_integer(), room()) -> room().
fill(Size, #room{messages = Messages, bytes = Bytes} = Room) ->
    Room#room{messages = minus(Messages, 1), bytes = minus(Bytes, Size)}.

minus(infinity, _) -> infinity;
minus(N, Less) -> N - Less.

%% Whether there is room for so many at once.
-spec admits(Messages :: pos_integer(), Bytes :: non_neg_integer(), room()) -> boolean() | unknown.
admits(N, Size, #room{messages = Messages, bytes = Bytes}) when Messages >= N, Bytes >= Size -> true;
admits(_, _, #room{exact = true}) -> false;
admits(_, _, _) -> unknown.

-spec left(room()) -> {Messages :: limit(), Bytes :: limit()}.
left(#room{messages = Messages, bytes = Bytes}) -> {Messages, Bytes}.

%% Whether the store holds more than that.
-spec is_beyond(limits(), Stat :: map()) -> boolean().
is_beyond({Messages, Bytes}, #{pending := Pending, pending_bytes := PendingBytes}) ->
    Pending > Messages orelse PendingBytes > Bytes;
is_beyond(_, _) ->
    false.
