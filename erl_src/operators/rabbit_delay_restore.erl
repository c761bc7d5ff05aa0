%% SPDX-License-Identifier: MPL-2.0

%% Takes dead letters that waited for their retry in again, as an import brings them: they wait as before, and go
%% where a retry goes, which nobody can have a message do by publishing it.
%%
%% In the process that imports, as a client of the exchange's delay queue on this node, which knows it for that:
%% what it sends is confirmed, or rejected, as what channels send.
-module(rabbit_delay_restore).

-export([publish/2]).

-define(CONFIRM_MS, 30000).

%% All are confirmed when it answers ok; else some may be. Each has its due time as x-opt-delivery-time.
-spec publish(rabbit_exchange:name(), [rabbit_delay_broker:message(), ...]) ->
          ok | {error, {unavailable, Why :: binary()}}.
publish(XName, Messages) ->
    case queue(XName) of
        {ok, Q} -> publish_to(Q, Messages);
        {error, Why} -> {error, {unavailable, unicode:characters_to_binary(Why)}}
    end.

queue(XName) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case rabbit_delay_registry:ensure_for(X) of
                {ok, QName} -> found(rabbit_delay_broker:queue_named(QName));
                {error, _} = Error -> Error
            end;
        {error, not_found} ->
            {error, "the exchange is gone"}
    end.

found([Q]) when not is_tuple(Q); element(1, Q) =/= absent -> {ok, Q};
found(_) -> {error, "the exchange's delay queue does not start"}.

publish_to(Q, Messages) ->
    {ok, Publisher} = rabbit_delay_publisher:start_link(rabbit_delay_broker:queue_name(Q)),
    try
        ok = rabbit_delay_queue:introduce_restorer(amqqueue:get_pid(Q), Publisher),
        ok = rabbit_delay_publisher:publish(Publisher, Q, lists:zip(lists:seq(1, length(Messages)), Messages)),
        await(Publisher, length(Messages), erlang:monotonic_time(millisecond) + ?CONFIRM_MS)
    catch
        %% The delay queue has ended.
        exit:_ -> not_taken()
    after
        unlink(Publisher),
        exit(Publisher, kill)
    end.

await(_, 0, _) ->
    ok;
await(Publisher, Left, Deadline) ->
    receive
        {outcomes, Publisher, Outcomes} ->
            case lists:keymember(rejected, 1, Outcomes) of
                true -> not_taken();
                false -> await(Publisher, Left - length([1 || {settled, SeqNos} <- Outcomes, _ <- SeqNos]),
                               Deadline)
            end;
        {gone, Publisher} ->
            not_taken();
        {given_up, Publisher, _} ->
            not_taken()
    after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
            not_taken()
    end.

not_taken() -> {error, {unavailable, <<"the exchange does not take messages at present">>}}.
