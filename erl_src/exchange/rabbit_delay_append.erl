%% SPDX-License-Identifier: MPL-2.0

%% How a delay queue appends what waits in it to the Raft log: many messages in an entry, as far as the
%% exchange's limits, its store and what is under way already leave room; and what an import brings,
%% as it is.
%%
%% In the delay queue's process, which never waits here: the machine's answers come to it later. Only
%% so many entries are under way, and only so many bytes in them; whatever hinders the next one is
%% looked at again when an answer comes, or after a while.
-module(rabbit_delay_append).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").
-include("rabbit_delay_queue.hrl").

-export([append/1, import/3, send/3, give_up/1, reject_late/1]).
-export([room_now/1, look_at_store/1, look_at_store_again/1, look_at_limits/1, drop_beyond/1]).
-export([why_unable/2]).

%% How many batches may be under way, and how large one may be.
-define(MAX_BATCHES, 16).
-define(MAX_MESSAGES, 4096).
-define(MAX_BYTES, 1048576).

%% How long what can be rejected waits for a leader, and is under way to one, and how often the latter is
%% looked at.
-define(MAX_WAITING_MS, 15000).
-define(LOOK_FOR_LATE_MS, 1000).
%% How long it is under way before it is asked whether that one leads.
-define(UNANSWERED_MS, 1000).

%% How much an exchange's store may hold in memory that it cannot write, and all of the node's together,
%% before messages are rejected; and how often the store is looked at then.
-define(MAX_UNWRITTEN_BYTES, 16777216).
-define(MAX_UNWRITTEN_BYTES_OF_ALL, 67108864).
-define(LOOK_AT_STORE_MS, 500).

-define(STORE_RETRY_MS, 50).

%% Of each record of a batch (include/dw_store.h).
-define(RECORD_HEADER_BYTES, 24).

%% Or none yet that has opened our session.
-define(HAS_NO_LEADER(State),
        (State#state.condition =:= unknown orelse State#state.session =:= undefined)).

-spec append(#state{}) -> #state{}.
append(#state{give_up_timer = Timer} = State) when Timer =/= undefined, not ?HAS_NO_LEADER(State) ->
    _ = erlang:cancel_timer(Timer),
    append(State#state{give_up_timer = undefined});
append(State) ->
    append_waiting(rabbit_delay_intake:refill(State)).

append_waiting(#state{waiting = Waiting} = State) ->
    case rabbit_delay_waiting:is_empty(Waiting) of
        true -> State;
        false -> append_held(State)
    end.

append_held(#state{give_up_timer = undefined, rejectable = Rejectable} = State)
  when ?HAS_NO_LEADER(State), Rejectable > 0 ->
    State#state{give_up_timer = erlang:send_after(?MAX_WAITING_MS, self(), give_up)};
append_held(State) when ?HAS_NO_LEADER(State) ->
    State;
append_held(#state{batches = Batches} = State) when map_size(Batches) >= ?MAX_BATCHES ->
    State;
append_held(#state{batches_bytes = Bytes, max_batches_bytes = Max} = State) when Bytes >= Max ->
    State;
append_held(State) ->
    case rabbit_delay_condition:status(State) of
        {_, _} ->
            rabbit_delay_intake:reject_waiting(State);
        _ ->
            case look_at_store(State) of
                #state{unable = none} = Looked -> append_some(Looked);
                Looked -> rabbit_delay_intake:reject_waiting(Looked)
            end
    end.

%% No leader has come.
-spec give_up(#state{}) -> #state{}.
give_up(#state{rejectable = Rejectable, exchange = XName} = State)
  when ?HAS_NO_LEADER(State), Rejectable > 0 ->
    ?LOG_ERROR("delayed messages of ~ts: rejecting ~s that no Raft leader took for ~b ms",
               [rabbit_delay_text:rs(XName), rabbit_delay_text:count(Rejectable, "message"), ?MAX_WAITING_MS],
               ?LOG_DOMAIN),
    rabbit_delay_intake:reject_waiting(State#state{give_up_timer = undefined});
give_up(State) ->
    State#state{give_up_timer = undefined}.

append_some(#state{exchange = XName} = State0) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            %% Deleted and declared again: what waits is for the one that is gone.
            #state{life = Life, leader = {Leader, _}} = State0,
            rabbit_delay_group:is_of(X, Life, Leader) orelse exit({shutdown, other_life}),
            ok = learn_life(Life, X),
            {Limits, DropBeyond} = limits(X),
            case room(Limits, State0) of
                unknown ->
                    append_later(State0);
                Room ->
                    {Ws, State} = rabbit_delay_intake:next(?MAX_MESSAGES, ?MAX_BYTES,
                                                           State0#state{drop_beyond = DropBeyond}),
                    append_batch(Ws, rabbit_delay_batch:build(Ws, Room, settings(X, State)), State)
            end;
        {error, not_found} ->
            %% It is being deleted, and this process with it.
            State0
    end.

%% The group has been given a record since it was joined.
learn_life(undefined, X) ->
    case rabbit_delay_group:of_record(X) of
        {ok, Group} ->
            self() ! {group, rabbit_delay_group:life(Group), rabbit_delay_group:salt(Group)},
            ok;
        none ->
            ok
    end;
learn_life(_, _) ->
    ok.

settings(X, #state{exchange = XName, salt = Salt, counters = Counters} = State) ->
    #{exchange => XName, salt => Salt, counters => Counters, now => rabbit_delay_config:now_ms(),
      limit => rabbit_delay_config:max_message_size(),
      default => rabbit_delay_policy:default_delay(X), retry => retry(X),
      keys_from => rabbit_delay_policy:keys_from(X), unusable => unusable(X),
      releases => ?KNOWS_RELEASES(State#state.machine_version)}.

unusable(X) ->
    Args = rabbit_delay_broker:exchange_arguments(X),
    case rabbit_delay_config:unusable_delay(Args) of
        nack -> {nack, rabbit_delay_config:max_delay_ms(Args)};
        _ -> now
    end.

%% How long dead letters wait, and whether there is a place for those that do not come back.
retry(X) ->
    case rabbit_delay_policy:retry(X) of
        none -> none;
        #{parking := none} = Plan -> {Plan, rabbit_delay_policy:dead_letter_exchange(X) =/= none};
        Plan -> {Plan, true}
    end.

append_later(#state{append_timer = undefined} = State) ->
    State#state{append_timer = erlang:send_after(?STORE_RETRY_MS, self(), append)};
append_later(State) ->
    State.

append_batch(Ws, {Batch, Rejected, Unusable, Left}, State0) ->
    SeqNo = State0#state.last_seq_no + 1,
    ok = uncount(lists:sublist(Ws, length(Ws) - length(Left)), State0),
    State1 = lists:foldl(fun rabbit_delay_intake:reject/2, State0, Rejected),
    State2 = rabbit_delay_intake:drop("the exchange is full, or they are too large",
                                      untold(Rejected), State1),
    State3 = rabbit_delay_intake:refuse_unusable(Unusable, State2),
    %% All members may have the version by now that some of these need.
    _ = lists:keymember(no_releases, 2, Unusable) andalso (self() ! open_session),
    append_next(SeqNo, Batch, Left, rabbit_delay_intake:put_back(Left, State3)).

untold(Ws) -> length([W || #waiting{seq_no = undefined} = W <- Ws]).

append_next(SeqNo, Batch, Left, State) ->
    case Batch of
        none when Left =:= [] ->
            append(State);
        none ->
            %% When what is under way has been applied, there is room or there is none.
            State;
        #batch{} ->
            append(under_way(SeqNo, Batch, State#state{last_seq_no = SeqNo}))
    end.

under_way(Key, #batch{entry = {_, _, Bytes}} = Batch0,
          #state{batches = Batches, batches_bytes = BatchesBytes} = State) ->
    Batch = Batch0#batch{since = now_ms()},
    ok = send(Key, Batch, State),
    watch_space(byte_size(Bytes),
                look_for_late(State#state{batches = Batches#{Key => Batch},
                                          batches_bytes = BatchesBytes + byte_size(Bytes)})).

now_ms() -> erlang:monotonic_time(millisecond).

look_for_late(#state{late_timer = undefined, batches = Batches} = State)
  when map_size(Batches) > 0 ->
    State#state{late_timer = erlang:send_after(?LOOK_FOR_LATE_MS, self(), look_for_late)};
look_for_late(State) ->
    State.

%% What has been under way for too long is rejected, where somebody hears of it: publishers are not kept
%% waiting for a leader that has no majority or a log that does not answer. It may have been stored all
%% the same. Its number is filled by an empty batch, so that what is behind it can come; but one that
%% has messages that nobody hears of stays as it is, since these may not be dropped. What waits behind it,
%% because no more may be under way, is rejected, too.
-spec reject_late(#state{}) -> #state{}.
reject_late(#state{batches = Batches, exchange = XName, name = QName} = State0) ->
    ok = ask_who_leads(State0),
    Before = now_ms() - ?MAX_WAITING_MS,
    Late = [{SeqNo, Batch} || {SeqNo, #batch{since = Since, confirms = Confirms} = Batch} <-
                                  maps:to_list(Batches),
                              is_integer(SeqNo), Since =< Before, map_size(Confirms) > 0],
    _ = Late =/= [] andalso
        ?LOG_ERROR("delayed messages of ~ts: rejecting ~b messages that have been under way to the Raft "
                   "log for ~b ms; they may have been stored all the same",
                   [rabbit_delay_text:rs(XName), lists:sum([told(Batch) || {_, Batch} <- Late]),
                    ?MAX_WAITING_MS], ?LOG_DOMAIN),
    State1 = lists:foldl(
               fun ({SeqNo, #batch{confirms = Confirms} = Batch}, State) ->
                       maps:foreach(
                         fun (Sender, SeqNos) ->
                                 rabbit_delay_intake:reject_all(Sender, QName, SeqNos)
                         end, Confirms),
                       rejected(SeqNo, Batch, told(Batch), State)
               end, State0, Late),
    look_for_late(reject_behind(Before, State1)).

%% What was sent to a server that led and did not know that it does no more is lost with its log's end, and nothing
%% is said of it. As a follower it rejects this note, and says who leads.
ask_who_leads(#state{batches = Batches, leader = {ServerId, _}}) ->
    Now = now_ms(),
    case lists:any(fun (#batch{since = Since}) ->
                           Now - Since >= ?UNANSWERED_MS andalso Now - Since < ?MAX_WAITING_MS
                   end, maps:values(Batches)) of
        true -> rabbit_delay_commands:note(ServerId, make_ref());
        false -> ok
    end;
ask_who_leads(_) ->
    ok.

reject_behind(Before, #state{batches = Batches, rejectable = Rejectable} = State) when Rejectable > 0 ->
    Stuck = [SeqNo || {SeqNo, #batch{since = Since}} <- maps:to_list(Batches),
                      is_integer(SeqNo), Since =< Before],
    case Stuck of
        [] -> State;
        _ -> rabbit_delay_intake:reject_waiting(State)
    end;
reject_behind(_, State) ->
    State.

told(#batch{confirms = Confirms}) ->
    lists:sum([length(SeqNos) || SeqNos <- maps:values(Confirms)]).

rejected(SeqNo, #batch{untold = 0, since = Since, entry = {_, _, Bytes}}, Told,
         #state{batches = Batches, batches_bytes = All, counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, rejected, Told),
    State#state{batches = Batches#{SeqNo := #batch{entry = {1, {none, none}, <<>>}, messages = 0,
                                                     since = Since}},
                batches_bytes = All - byte_size(Bytes)};
rejected(SeqNo, Batch, Told, #state{batches = Batches, counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, rejected, Told),
    State#state{batches = Batches#{SeqNo := Batch#batch{confirms = #{}}}}.

%% To the leader, if it is one: else it is sent again when there is one.
-spec send(rabbit_delay_queue:batch_key(), #batch{}, #state{}) -> ok.
send(Ref, #batch{entry = Entry, place = {Session, SeqNo}}, #state{leader = {ServerId, _}}) ->
    rabbit_delay_commands:enqueue(ServerId, Session, SeqNo, Entry, Ref);
send(SeqNo, #batch{entry = Entry}, #state{leader = {ServerId, _}, session = Session}) ->
    rabbit_delay_commands:enqueue(ServerId, {opened, Session}, SeqNo, Entry, SeqNo).

watch_space(Bytes, #state{appended = Appended} = State)
  when Appended + Bytes < ?LOOK_AT_SPACE_BYTES ->
    State#state{appended = Appended + Bytes};
watch_space(_, State) ->
    ok = rabbit_delay_system:check_space(),
    State#state{appended = 0}.

%% The channels have counted these as published into a queue; that comes when they are due.
uncount(Ws, #state{name = QName, exchange = XName}) ->
    Counts = lists:foldl(fun (#waiting{message = Message, sender = Sender}, Acc) ->
                                 Via = rabbit_delay_broker:exchange_of(Message, XName),
                                 maps:update_with({Sender, Via}, fun (N) -> N + 1 end, 1, Acc)
                         end, #{}, Ws),
    maps:foreach(fun ({Sender, Via}, N) ->
                         rabbit_delay_broker:uncount_published(Sender, Via, QName, N)
                 end, Counts).

%% ---------------------------------------------------------------------------------- import

%% A batch of a session that is not this process's: its sender hears what becomes of it.
-spec import(reference(), #batch{}, #state{}) -> #state{}.
import(Ref, #batch{from = Pid} = Batch, State0) ->
    State = look_at_store(State0),
    case admitted(Batch, State) of
        ok ->
            under_way(Ref, Batch, State);
        Refusal ->
            Pid ! {Ref, Refusal},
            State
    end.

admitted(_, #state{condition = unknown}) ->
    not_ready;
admitted(_, #state{batches = Batches}) when map_size(Batches) >= ?MAX_BATCHES ->
    not_ready;
admitted(#batch{messages = N, entry = {_, _, Records}}, State) ->
    case rabbit_delay_condition:status(State) of
        {_, Why} ->
            {unavailable, Why};
        _ when State#state.unable =/= none ->
            {unavailable, State#state.unable};
        _ ->
            %% The limits count bodies, and Records has a header for each.
            Size = byte_size(Records) - N * ?RECORD_HEADER_BYTES,
            case room_now(State) of
                unknown ->
                    not_ready;
                Room ->
                    case rabbit_delay_room:admits(N, Size, Room) of
                        true -> ok;
                        false -> full;
                        unknown -> not_ready
                    end
            end
    end.

%% --------------------------------------------------------------------------------- limits

%% What may be added, by the exchange's settings as they are now.
-spec room_now(#state{}) -> rabbit_delay_room:room() | unknown.
room_now(#state{exchange = XName} = State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} -> room(element(1, limits(X)), State);
        {error, not_found} -> unknown
    end.

limits(X) ->
    rabbit_delay_room:limits(rabbit_delay_policy:limits(X), rabbit_delay_policy:overflow(X)).

room({infinity, infinity} = Limits, _) ->
    rabbit_delay_room:room(Limits, #{}, none);
room(Limits, #state{batches = Batches, batches_bytes = Bytes} = State) ->
    UnderWay = case map_size(Batches) of
                   0 -> none;
                   _ -> {maps:fold(fun (_, #batch{messages = N}, Acc) -> N + Acc end, 0, Batches),
                         Bytes}
               end,
    rabbit_delay_room:room(Limits, rabbit_delay_condition:stat(State), UnderWay).

%% Policies may have changed.
-spec look_at_limits(#state{}) -> #state{}.
look_at_limits(#state{exchange = XName} = State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} -> State#state{drop_beyond = element(2, limits(X))};
        {error, not_found} -> State
    end.

%% Has what is too much dropped.
-spec drop_beyond(#state{}) -> ok.
drop_beyond(#state{drop_beyond = none}) ->
    ok;
drop_beyond(#state{drop_beyond = Limits, exchange = XName} = State) ->
    case rabbit_delay_room:is_beyond(Limits, rabbit_delay_condition:stat(State)) of
        true -> rabbit_delay_dispatcher:overflow(XName);
        false -> ok
    end.

%% What the store cannot write stays in memory: beyond a bound no more is taken in, until it can. Nor
%% is anything when a limit of the store itself is near, since what is in the log must be applied.
-spec look_at_store(#state{}) -> #state{}.
look_at_store(#state{unable = Before, exchange = XName} = State) ->
    case why_unable(rabbit_delay_condition:stat(State),
                    fun () -> rabbit_delay_condition:unwritten(State) end) of
        Before ->
            State;
        none ->
            ?LOG_NOTICE("delayed messages of ~ts are accepted again", [rabbit_delay_text:rs(XName)],
                        ?LOG_DOMAIN),
            ok = rabbit_delay_registry:register_unable(XName, none),
            State#state{unable = none};
        Why ->
            ?LOG_ERROR("delayed messages of ~ts are refused: ~ts", [rabbit_delay_text:rs(XName), Why],
                       ?LOG_DOMAIN),
            ok = rabbit_delay_registry:register_unable(XName, Why),
            _ = erlang:send_after(?LOOK_AT_STORE_MS, self(), look_at_store),
            State#state{unable = Why}
    end.

%% Until it can take more.
-spec look_at_store_again(#state{}) -> #state{}.
look_at_store_again(#state{unable = none} = State) ->
    State;
look_at_store_again(State) ->
    _ = erlang:send_after(?LOOK_AT_STORE_MS, self(), look_at_store),
    look_at_store(State).

%% Why a store that says that of itself can take no more, if it cannot. A file that cannot be written
%% is no reason as long as there is little to be written.
-spec why_unable(Stat :: map(), UnwrittenOfAll :: fun(() -> non_neg_integer())) -> none | string().
why_unable(#{write_error := none, full := false}, _) ->
    none;
why_unable(#{full := true}, _) ->
    "its store is full: there are as many messages, or files of them, as it can have";
why_unable(#{write_error := Error, buffered := Buffered}, UnwrittenOfAll) ->
    case Buffered > ?MAX_UNWRITTEN_BYTES orelse UnwrittenOfAll() > ?MAX_UNWRITTEN_BYTES_OF_ALL of
        true -> lists:flatten(io_lib:format("its files cannot be written to (~ts)", [Error]));
        false -> none
    end;
why_unable(_, _) ->
    %% The store is not open yet.
    none.
