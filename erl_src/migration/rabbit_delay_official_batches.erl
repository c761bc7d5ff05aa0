%% SPDX-License-Identifier: MPL-2.0

%% Which of the messages of a window an exchange has room for, and how these become batches, each an
%% entry of its Raft log. Pure functions of the messages' sizes; the messages' order is kept.
-module(rabbit_delay_official_batches).

-export([fit/3, batches/1]).

%% A message's size in bytes, and whatever stands for it.
-type sized(Message) :: {Size :: pos_integer(), Message}.
-type room() :: non_neg_integer() | infinity.

%% Of one Raft entry, about.
-define(BATCH_BYTES, 1048576).

%% Those that fit, from the first on, until one does not; and the others.
-spec fit([sized(Message)], Messages :: room(), Bytes :: room()) ->
          {[sized(Message)], Over :: [sized(Message)]}.
fit(Ready, Messages, Bytes) ->
    fit(Ready, Messages, Bytes, []).

fit([{Size, _} = Ready | Rest], Messages, Bytes, Acc) when Messages > 0, Size =< Bytes ->
    fit(Rest, less(Messages, 1), less(Bytes, Size), [Ready | Acc]);
fit(Over, _, _, Acc) ->
    {lists:reverse(Acc), Over}.

%% `infinity' is more than every number.
less(infinity, _) -> infinity;
less(N, M) -> N - M.

%% A batch is full when it has so many bytes; the message that fills it is the last in it.
-spec batches([sized(Message)]) -> [[Message, ...]].
batches(Ready) ->
    batches(Ready, [], 0).

batches([], [], _) ->
    [];
batches([{Size, Message} | Rest], Batch, Bytes) when Bytes < ?BATCH_BYTES ->
    batches(Rest, [Message | Batch], Bytes + Size);
batches(Rest, Batch, _) ->
    [lists:reverse(Batch) | batches(Rest, [], 0)].
