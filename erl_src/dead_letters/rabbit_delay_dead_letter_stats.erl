%% SPDX-License-Identifier: MPL-2.0

%% What lies in a queue of dead letters, and the history of one of them, without taking any out. It runs
%% in the process that asks, and looks through rabbit_delay_browse, which says what that changes and
%% bounds how long it takes and how many look at a time.
-module(rabbit_delay_dead_letter_stats).

-export([stats/3, explain/3]).

%% What lies in a queue, no more than Max messages of it: by first queue, last reason, exchange and
%% key, with the ages of the oldest and the newest death in s.
-spec stats(rabbit_types:vhost(), Queue :: binary(), Max :: pos_integer() | usual) ->
          {ok, [[{atom(), term()}]], Truncated :: boolean()} | rabbit_delay_browse:error().
stats(VHost, Queue, usual) ->
    stats(VHost, Queue, rabbit_delay_browse:usual_max(VHost, Queue));
stats(VHost, Queue, Max) ->
    Now = erlang:system_time(second),
    Add = fun (#{headers := Headers} = Message, Groups) ->
                  {Group, Age} = group(Headers, Message, Now),
                  maps:update_with(Group,
                                   fun ({N, Oldest, Newest}) -> {N + 1, max(Oldest, Age),
                                                                 min(Newest, Age)} end,
                                   {1, Age, Age}, Groups)
          end,
    case rabbit_delay_browse:fold(VHost, Queue, Max, Add, #{}) of
        {ok, Groups, Truncated} ->
            Rows = [{N, Group, Oldest, Newest} || {Group, {N, Oldest, Newest}} <- maps:to_list(Groups)],
            {ok, [[{first_queue, First}, {reason, Reason}, {exchange, X}, {routing_key, Key},
                   {messages, N}, {oldest_s, Oldest}, {newest_s, Newest}]
                  || {N, {First, Reason, X, Key}, Oldest, Newest} <- lists:reverse(lists:sort(Rows))],
             Truncated};
        {error, _} = Error ->
            Error
    end.

group(Headers, #{exchange := X, key := Key}, Now) ->
    First = rabbit_delay_deaths:first(Headers),
    {Deaths, _} = rabbit_delay_deaths:history(Headers),
    Times = [Time || #{time := Time} <- Deaths],
    {{maps:get(queue, First, <<>>), maps:get(reason, rabbit_delay_deaths:last(Deaths), <<>>),
      maps:get(exchange, First, X), rabbit_delay_deaths:first_key(Deaths, Key)},
     case Times of [] -> 0; _ -> max(0, Now - lists:max(Times)) end}.

%% The history of the message at a position, from 1, in sentences.
-spec explain(rabbit_types:vhost(), Queue :: binary(), Position :: pos_integer()) ->
          {ok, [binary()], false} | rabbit_delay_browse:error().
explain(VHost, Queue, Position) ->
    Last = fun (#{headers := Headers}, {N, _}) -> {N + 1, Headers} end,
    case rabbit_delay_browse:fold(VHost, Queue, Position, Last, {0, none}) of
        {ok, {Position, Headers}, _} ->
            {ok, rabbit_delay_deaths:explain(Headers, Queue), false};
        {ok, {N, _}, false} ->
            {error, {not_found, iolist_to_binary(["the queue has ", rabbit_delay_text:count(N, "message")])}};
        {ok, {N, _}, true} ->
            {error, {unavailable, iolist_to_binary(
                                    io_lib:format("looking took too long, and ended at message ~b", [N]))}};
        {error, _} = Error ->
            Error
    end.
