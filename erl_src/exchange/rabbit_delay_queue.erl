%% SPDX-License-Identifier: MPL-2.0

%% One process per delayed exchange, beside its Raft leader: what publishers' channels take for a
%% classic queue. It gathers the messages that come in, appends them to the Raft log many at a time,
%% and confirms them when they are applied, which is when they are durable on a quorum.
%%
%% What it cannot take it rejects (publishers see a nack); it never confirms what is not stored.
%% Credit goes back to a channel when its messages are appended, and only so many batches are under
%% way: a publisher that is faster than the log is slowed down, not buffered.
%%
%% A queue that dead-letters waits for neither a confirm nor credit, and a publisher that awaits no
%% confirm hears of no rejection: their messages wait here as long as it takes, those that are too
%% many for memory in files (rabbit_delay_waiting). They are dropped only when the disk has no room
%% for them, which is counted and logged.
%%
%% Batches are numbered within a session, the life of this process. After a change of leader all that
%% are under way are sent again in order; the machine drops those that it has. An import brings
%% batches of a session of its own, which outlives this process.
-module(rabbit_delay_queue).

-behaviour(gen_batch_server).

-include_lib("kernel/include/logger.hrl").
-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([start_link/2, leader/2, announce_leader/1, introduce/1, room/1, import/4,
         forget_imported/1]).
-export([init/1, handle_batch/2, terminate/2]).

%% How many batches may be under way, and how large one may be.
-define(MAX_BATCHES, 16).
-define(MAX_MESSAGES, 4096).
-define(MAX_BYTES, 1048576).

%% How much waits in memory. Beyond that what can be rejected is, if there is no leader, and what
%% cannot goes to files.
-define(MAX_WAITING, 20000).
-define(MAX_WAITING_BYTES, 67108864).
%% How much that can be rejected may wait for a leader's log, at most; and how long for a leader.
-define(MAX_REJECTABLE, 200000).
-define(MAX_REJECTABLE_BYTES, 268435456).
-define(MAX_WAITING_MS, 15000).

%% One line in so long says how many messages were dropped.
-define(DROPPED_MS, 10000).

-define(LOOK_AT_SPACE_BYTES, 1048576).

%% How far an exchange that drops what is due last may be beyond its limits while it does: then it
%% rejects.
-define(BEYOND_MESSAGES, 65536).
-define(BEYOND_BYTES, 67108864).

%% How much an exchange's store may hold in memory that it cannot write, and all of the node's together,
%% before messages are rejected; and how often the store is looked at then.
-define(MAX_UNWRITTEN_BYTES, 16777216).
-define(MAX_UNWRITTEN_BYTES_OF_ALL, 67108864).
-define(LOOK_AT_STORE_MS, 500).

-define(MEMBER_RETRY_MS, 1000).
-define(STORE_RETRY_MS, 50).
-define(RESEND_MS, 50).
-define(STATS_MS, 5000).
-define(CALL_MS, 60000).

%% Of each record of a batch (include/dw_store.h).
-define(RECORD_HEADER_BYTES, 24).

%% A due time beyond this is not refused here: route/1 has judged it already.
-define(NO_LIMIT, ?MAX_MS).

-record(waiting, {message :: rabbit_delay_broker:message(),
                  %% of its payload, bytes
                  size = 0 :: non_neg_integer(),
                  %% of an exchange that retries, when it was sent
                  dead_letter = false :: boolean(),
                  sender :: pid(),
                  seq_no :: undefined | pos_integer(),
                  flow :: flow | noflow}).

%% What may be added before a limit is met. If that is not exact, there may be more.
-record(room, {messages = infinity :: non_neg_integer() | infinity,
               bytes = infinity :: non_neg_integer() | infinity,
               exact :: boolean()}).

-type place() :: {Session :: pos_integer(), SeqNo :: pos_integer()}.
-type entry() :: {1 | 2, rabbit_delay_machine:earliest(), binary()}.

%% Its number in our own session, or of an import, what its answer goes by.
-type batch_key() :: pos_integer() | reference().

-record(batch, {entry :: entry(),
                messages :: non_neg_integer(),
                confirms = #{} :: #{Sender :: pid() => [pos_integer()]},
                %% of an import: who is told what the machine answers, and its place in its session
                from :: undefined | pid(),
                place :: undefined | place()}).

-record(state,
        {exchange :: rabbit_exchange:name(),
         name :: rabbit_amqqueue:name(),
         durable :: boolean(),
         server_id :: ra:server_id(),
         %% the Raft server, while it leads, our monitor of it, and the generation of the Ra system
         %% that it belongs to
         leader :: undefined | {pid(), reference()},
         generation = 0 :: non_neg_integer(),
         %% what has been appended since the free space was looked at, bytes
         appended = 0 :: non_neg_integer(),
         %% the process that starts the member
         starter :: undefined | reference(),
         %% what keys are hashed with, once there is a member
         salt :: undefined | rabbit_delay_key:salt(),
         counters :: rabbit_delay_counters:ref(),
         session :: pos_integer(),
         last_seq_no = 0 :: non_neg_integer(),
         %% under way, by sequence number
         batches = #{} :: #{batch_key() => #batch{}},
         batches_bytes = 0 :: non_neg_integer(),
         max_batches_bytes :: pos_integer(),
         resend_timer :: undefined | reference(),
         append_timer :: undefined | reference(),
         %% why the store can take no more
         unable = none :: none | string(),
         %% beyond which messages are dropped, if they are, and bytes
         drop_beyond = none :: none | {non_neg_integer() | infinity, non_neg_integer() | infinity},
         %% not yet appended
         waiting :: rabbit_delay_waiting:waiting(),
         %% how many of those in memory can be rejected
         rejectable = 0 :: non_neg_integer(),
         %% that could be neither rejected nor kept: why the last one, and how many since the log
         %% said so
         dropped = none :: none | {Why :: string(), non_neg_integer()},
         %% who sends dead letters
         dead_letterers = #{} :: #{pid() => reference()},
         give_up_timer :: undefined | reference()}).

-spec start_link(rabbit_exchange:name(), Durable :: boolean()) -> {ok, pid()} | {error, term()}.
start_link(XName, Durable) ->
    gen_batch_server:start_link(undefined, ?MODULE, {XName, Durable}, []).

%% The exchange's Raft server on this node leads.
-spec leader(pid(), ServerPid :: pid()) -> ok.
leader(Pid, ServerPid) ->
    gen_batch_server:cast(Pid, {leader, ServerPid}).

%% Has whoever needs to know told again of the leader.
-spec announce_leader(pid()) -> ok.
announce_leader(Pid) ->
    gen_batch_server:cast(Pid, announce_leader).

%% The calling process, which is no client's, routes dead letters to this exchange: what it sends
%% after this may come back to the queue that it died in. A client's message may not, whatever its
%% headers say.
-spec introduce(rabbit_exchange:name()) -> ok.
introduce(XName) ->
    Known = get({?MODULE, XName}),
    case rabbit_delay_registry:queue(XName) of
        Pid when is_pid(Pid), Pid =/= Known ->
            put({?MODULE, XName}, Pid),
            gen_batch_server:cast(Pid, {dead_letters_from, self()});
        _ ->
            ok
    end.

%% What the exchange's limits leave room for at present, its Raft server being there.
-spec room(pid()) -> {Messages, Bytes} | not_ready
              when Messages :: non_neg_integer() | infinity, Bytes :: non_neg_integer() | infinity.
room(Pid) ->
    gen_batch_server:call(Pid, room, ?CALL_MS).

%% Appends a batch of a session that is not this process's. The caller gets {Ref, Answer}: what the
%% machine answers; not_ready, and it is to try again; full; or {unavailable, Why}.
-spec import(pid(), place(), entry(), Messages :: pos_integer()) -> Ref :: reference().
import(Pid, Place, Entry, Messages) ->
    Ref = make_ref(),
    gen_batch_server:cast(Pid, {import, Ref, #batch{entry = Entry, messages = Messages,
                                                    from = self(), place = Place}}),
    Ref.

%% What an importer that has ended left under way is not sent again.
-spec forget_imported(pid()) -> ok.
forget_imported(Pid) ->
    gen_batch_server:call(Pid, forget_imported, ?CALL_MS).

-spec init({rabbit_exchange:name(), boolean()}) -> {ok, #state{}}.
init({XName, Durable}) ->
    process_flag(trap_exit, true),
    process_flag(message_queue_data, off_heap),
    QName = rabbit_delay_registry:queue_name(XName),
    ok = rabbit_delay_registry:register_queue(XName, self()),
    <<Session:62, _:2>> = crypto:strong_rand_bytes(8),
    self() ! start_member,
    _ = erlang:send_after(?STATS_MS, self(), emit_stats),
    {ok, #state{exchange = XName,
                name = QName,
                durable = Durable,
                server_id = rabbit_delay_raft:server_id(XName),
                counters = rabbit_delay_registry:counters(XName),
                waiting = rabbit_delay_waiting:new(rabbit_delay_waiting:directory(XName),
                                                   {?MAX_WAITING, ?MAX_WAITING_BYTES}),
                session = Session + 1,
                max_batches_bytes = rabbit_delay_config:appending_bytes()}}.

-spec handle_batch([gen_batch_server:op()], #state{}) ->
          {ok, [gen_batch_server:action()], #state{}}.
handle_batch(Ops, State0) ->
    {Replies, State1} = lists:foldl(fun handle_op/2, {[], State0}, Ops),
    {ok, Replies, append(write_overflow(State1))}.

-spec terminate(term(), #state{}) -> ok.
terminate(_, #state{batches = Batches, name = QName} = State) ->
    #state{waiting = Waiting} = reject_waiting(State),
    ok = say_lost(Waiting, State),
    ok = rabbit_delay_waiting:close(Waiting),
    maps:foreach(
      fun (_, #batch{confirms = Confirms}) ->
              maps:foreach(fun (Sender, SeqNos) -> reject_all(Sender, QName, SeqNos) end, Confirms)
      end, Batches).

say_lost(Waiting, #state{exchange = XName, counters = Counters}) ->
    Left = rabbit_delay_waiting:all(Waiting),
    case Left > 0 andalso rabbit_delay_broker:lookup_exchange(XName) of
        {ok, _} ->
            rabbit_delay_counters:add(Counters, dropped, Left),
            ?LOG_ERROR("delayed messages of ~ts: ~b dead letters, or messages whose publisher awaits no "
                       "confirm, waited for a Raft leader and are lost, as their process ends",
                       [rabbit_delay_text:rs(XName), Left], ?LOG_DOMAIN);
        _ ->
            ok
    end.

handle_op({cast, {leader, ServerPid}}, {Replies, State}) ->
    {Replies, follow_leader(ServerPid, State)};
handle_op({cast, announce_leader}, {Replies, #state{leader = Leader} = State}) ->
    case Leader of
        {Pid, _} -> rabbit_delay_registry:leader(State#state.exchange, Pid);
        undefined -> ok
    end,
    {Replies, State};
handle_op({cast, {import, Ref, Batch}}, {Replies, State}) ->
    {Replies, append_imported(Ref, Batch, State)};
handle_op({cast, {dead_letters_from, Pid}}, {Replies, #state{dead_letterers = Pids} = State}) ->
    {Replies, State#state{dead_letterers = Pids#{Pid => monitor(process, Pid)}}};
handle_op({cast, Cast}, {Replies, #state{dead_letterers = Pids} = State}) ->
    case rabbit_delay_broker:delivery(Cast) of
        {ok, Message, Sender, SeqNo, Flow} ->
            {Replies, take(#waiting{message = Message, sender = Sender, seq_no = SeqNo, flow = Flow,
                                    dead_letter = is_map_key(Sender, Pids)}, State)};
        unknown ->
            {Replies, State}
    end;
handle_op({call, From, forget_imported}, {Replies, #state{batches = Batches} = State}) ->
    {[{reply, From, ok} | Replies],
     lists:foldl(fun (Ref, S) -> ended(Ref, fun (_, _) -> ok end, S) end, State,
                 [Ref || Ref <- maps:keys(Batches), is_reference(Ref)])};
handle_op({call, From, Call}, {Replies, State}) ->
    {[{reply, From, answer(Call, State)} | Replies], State};
handle_op({info, Info}, {Replies, State}) ->
    {Replies, handle_info(Info, State)}.

handle_info({ra_event, _, {applied, Replies}}, State) ->
    lists:foldl(fun applied/2, State, Replies);
handle_info({ra_event, _, {rejected, _}}, State) ->
    %% The server does not lead at present; when it does again, all is sent again.
    State;
handle_info({'DOWN', Ref, process, _, Reason}, #state{leader = {_, Ref}} = State) ->
    ok = case Reason of
             normal -> ok;
             shutdown -> ok;
             {shutdown, _} -> ok;
             _ ->
                 %% One that ended itself over a later version has failed in nothing.
                 case rabbit_delay_registry:refusal(State#state.exchange) of
                     undefined ->
                         rabbit_delay_system:server_failed(State#state.generation, Reason);
                     _ ->
                         ok
                 end
         end,
    start_member_later(State#state{leader = undefined});
handle_info({generation, Generation}, State) ->
    State#state{generation = Generation};
handle_info({member, {leader, Pid}}, #state{exchange = XName} = State) ->
    ok = rabbit_delay_registry:leader(XName, Pid),
    State;
handle_info({member, not_leader}, State) ->
    start_member_later(State);
handle_info({member, {error, refused}}, State) ->
    start_member_later(State);
handle_info({member, {error, Reason}}, State) ->
    ?LOG_ERROR("delayed messages of ~ts: the Raft server does not start: ~0P",
               [rabbit_delay_text:rs(State#state.exchange), Reason, 20], ?LOG_DOMAIN),
    start_member_later(State);
handle_info({'DOWN', Ref, process, _, normal}, #state{starter = Ref} = State) ->
    State#state{starter = undefined};
handle_info({'DOWN', Ref, process, _, Reason}, #state{starter = Ref} = State) ->
    handle_info({member, {error, Reason}}, State#state{starter = undefined});
handle_info({'DOWN', _, process, Pid, _}, #state{dead_letterers = Pids} = State)
  when is_map_key(Pid, Pids) ->
    State#state{dead_letterers = maps:remove(Pid, Pids)};
handle_info(start_member, #state{leader = undefined, starter = undefined} = State) ->
    case {rabbit_delay_registry:refusal(State#state.exchange), rabbit_delay_system:status()} of
        {undefined, {down, _}} -> start_member_later(State);
        {undefined, starting} -> start_member_later(State);
        {undefined, _} -> start_member(State);
        {_, _} -> reject_all(State)
    end;
handle_info(resend, State) ->
    send_all_again(State#state{resend_timer = undefined});
handle_info(look_at_store, #state{unable = none} = State) ->
    State;
handle_info(look_at_store, State) ->
    _ = erlang:send_after(?LOOK_AT_STORE_MS, self(), look_at_store),
    look_at_store(State);
handle_info(append, State) ->
    State#state{append_timer = undefined};
handle_info(give_up, #state{leader = undefined, rejectable = Rejectable} = State)
  when Rejectable > 0 ->
    ?LOG_ERROR("delayed messages of ~ts: rejecting ~b messages that no Raft leader took for ~b ms",
               [rabbit_delay_text:rs(State#state.exchange), Rejectable, ?MAX_WAITING_MS], ?LOG_DOMAIN),
    reject_waiting(State#state{give_up_timer = undefined});
handle_info(say_dropped, #state{dropped = Dropped} = State) ->
    _ = case Dropped of
            none -> ok;
            {Why, N} when N > 0 -> say_dropped(Why, N, State);
            _ -> ok
        end,
    State#state{dropped = none};
handle_info(give_up, State) ->
    State#state{give_up_timer = undefined};
handle_info(emit_stats, #state{name = QName, exchange = XName} = State0) ->
    _ = erlang:send_after(?STATS_MS, self(), emit_stats),
    %% Policies may have changed.
    State = case rabbit_delay_broker:lookup_exchange(XName) of
                {ok, X} -> State0#state{drop_beyond = element(2, limits(X))};
                {error, not_found} -> State0
            end,
    ok = drop_beyond(State),
    ok = rabbit_delay_broker:queue_stats(QName, rabbit_delay_registry:pending(XName)),
    State;
handle_info({bump_credit, Message}, State) ->
    credit_flow:handle_bump_msg(Message),
    State;
handle_info(_, State) ->
    State.

%% -------------------------------------------------------------------------- the Raft member

%% Opening a store can take a while: not in this process.
start_member(#state{exchange = XName, durable = Durable, server_id = ServerId} = State) ->
    Queue = self(),
    %% Linked: it must not start a member for an exchange that has been deleted meanwhile.
    {_, Ref} = spawn_opt(
                 fun () -> Queue ! {member, start_member(Queue, XName, Durable, ServerId)} end,
                 [link, monitor]),
    State#state{starter = Ref}.

start_member(Queue, XName, Durable, {Name, _} = ServerId) ->
    case rabbit_delay_system:ready() of
        {ok, Generation} ->
            Queue ! {generation, Generation},
            case rabbit_delay_raft:start_member(XName, Durable) of
                ok ->
                    case ra:members(ServerId) of
                        {ok, _, ServerId} -> {leader, whereis(Name)};
                        _ -> not_leader
                    end;
                {error, _} = Error ->
                    Error
            end;
        not_ready ->
            not_leader
    end.

start_member_later(State) ->
    _ = erlang:send_after(?MEMBER_RETRY_MS, self(), start_member),
    State.

follow_leader(Pid, #state{leader = {Pid, _}} = State) ->
    send_all_again(State);
follow_leader(Pid, #state{salt = undefined, exchange = XName} = State) ->
    follow_leader(Pid, State#state{salt = key_salt(XName)});
follow_leader(Pid, #state{leader = Old} = State) ->
    _ = case Old of
            {_, Ref} -> demonitor(Ref, [flush]);
            undefined -> ok
        end,
    send_all_again(State#state{leader = {Pid, monitor(process, Pid)}}).

%% Found by listing a directory with that of every other exchange in it: that is garbage in a process
%% that ends, not in one that may do nothing for long.
-dialyzer({nowarn_function, key_salt/1}).
key_salt(XName) ->
    {_, Ref} = spawn_monitor(fun () -> exit({salt, rabbit_delay_raft:key_salt(XName)}) end),
    receive
        {'DOWN', Ref, process, _, {salt, Salt}} -> Salt;
        {'DOWN', Ref, process, _, Reason} -> exit({key_salt, Reason})
    end.

send_all_again(#state{leader = undefined} = State) ->
    State;
send_all_again(#state{batches = Batches} = State) ->
    lists:foreach(fun ({SeqNo, Batch}) -> send(SeqNo, Batch, State) end,
                  lists:sort(maps:to_list(Batches))),
    State.

send(Ref, #batch{entry = Entry, place = {Session, SeqNo}}, #state{server_id = ServerId}) ->
    rabbit_delay_raft:enqueue(ServerId, Session, SeqNo, Entry, Ref);
send(SeqNo, #batch{entry = Entry}, #state{server_id = ServerId, session = Session}) ->
    rabbit_delay_raft:enqueue(ServerId, Session, SeqNo, Entry, SeqNo).

%% What the machine answers to a batch: stored, refused, or not in its turn. Nothing else is taken for
%% any of them.
applied({SeqNo, ok}, #state{name = QName, batches = Batches, counters = Counters} = State) ->
    case Batches of
        #{SeqNo := #batch{messages = N}} -> rabbit_delay_counters:add(Counters, published, N);
        _ -> ok
    end,
    ok = drop_beyond(State),
    answered(SeqNo, ok,
             fun (Sender, SeqNos) -> rabbit_delay_broker:confirm(Sender, QName, SeqNos) end, State);
applied({SeqNo, {ok, #{cancelled := Cancelled, replaced := Replaced, dropped := Dropped}}},
        #state{counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, cancelled, Cancelled),
    rabbit_delay_counters:add(Counters, replaced, Replaced),
    rabbit_delay_counters:add(Counters, deduplicated, Dropped),
    applied({SeqNo, ok}, State);
applied({SeqNo, {error, Reason}}, #state{name = QName} = State) ->
    ?LOG_ERROR("delayed messages of ~ts: a batch was refused by the store: ~p",
               [rabbit_delay_text:rs(State#state.exchange), Reason], ?LOG_DOMAIN),
    ok = count_refused(SeqNo, State),
    answered(SeqNo, {error, Reason},
             fun (Sender, SeqNos) -> reject_all(Sender, QName, SeqNos) end, State);
applied({Ref, {gap, _} = Gap}, State) when is_reference(Ref) ->
    imported(Ref, Gap, State);
applied({SeqNo, {gap, Last}}, #state{batches = Batches} = State) ->
    %% One before it went to a server that was about to end.
    case maps:is_key(SeqNo, Batches) of
        true ->
            case maps:is_key(Last + 1, Batches) of
                true -> resend_soon(State);
                false -> exit({session_lost, SeqNo, Last})
            end;
        false ->
            State
    end;
applied({Key, Other}, State) ->
    applied({Key, {error, {unknown_answer, Other}}}, State).

%% Of those of them that nobody is told of.
count_refused(SeqNo, #state{batches = Batches, counters = Counters}) ->
    case Batches of
        #{SeqNo := #batch{messages = N, confirms = Confirms, from = undefined}} ->
            Told = lists:sum([length(SeqNos) || SeqNos <- maps:values(Confirms)]),
            rabbit_delay_counters:add(Counters, dropped, max(0, N - Told));
        _ ->
            ok
    end.

answered(Ref, Answer, _, State) when is_reference(Ref) -> imported(Ref, Answer, State);
answered(SeqNo, _, Tell, State) -> ended(SeqNo, Tell, State).

imported(Ref, Answer, #state{batches = Batches} = State) ->
    _ = case Batches of
            #{Ref := #batch{from = Pid}} -> Pid ! {Ref, Answer};
            _ -> ok
        end,
    ended(Ref, fun (_, _) -> ok end, State).

%% A batch is no longer under way: Answer goes to each of its senders.
ended(SeqNo, Answer, #state{batches = Batches, batches_bytes = All} = State) ->
    case maps:take(SeqNo, Batches) of
        {#batch{entry = {_, _, Bytes}, confirms = Confirms}, Rest} ->
            maps:foreach(Answer, Confirms),
            State#state{batches = Rest, batches_bytes = All - byte_size(Bytes)};
        error ->
            State
    end.

%% Nothing that has come will be taken.
reject_all(#state{name = QName, batches = Batches} = State0) ->
    State = reject_waiting(State0),
    lists:foldl(fun (Key, S) ->
                        answered(Key, {error, refused},
                                 fun (Sender, SeqNos) -> reject_all(Sender, QName, SeqNos) end, S)
                end, State, maps:keys(Batches)).

reject_all(Sender, QName, SeqNos) ->
    lists:foreach(fun (SeqNo) -> rabbit_delay_broker:reject(Sender, QName, SeqNo) end, SeqNos).

resend_soon(#state{resend_timer = undefined} = State) ->
    State#state{resend_timer = erlang:send_after(?RESEND_MS, self(), resend)};
resend_soon(State) ->
    State.

%% ------------------------------------------------------------------------- taking messages in

take(#waiting{message = Message} = W, #state{waiting = Waiting} = State) ->
    Size = rabbit_delay_broker:payload_size(Message),
    case verdict(W, State) of
        wait -> wait(W#waiting{size = Size}, State);
        overflow ->
            State#state{waiting = rabbit_delay_waiting:overflow(W#waiting{size = Size}, Size,
                                                                Waiting)};
        reject -> reject(W, State);
        {drop, Why} -> drop(Why, 1, reject(W, State))
    end.

wait(#waiting{size = Size} = W, #state{waiting = Waiting} = State) ->
    rejectable(W, 1, State#state{waiting = rabbit_delay_waiting:in(W, Size, Waiting)}).

rejectable(#waiting{seq_no = undefined}, _, State) -> State;
rejectable(_, N, #state{rejectable = M} = State) -> State#state{rejectable = M + N}.

verdict(#waiting{message = Message, seq_no = SeqNo},
        #state{exchange = XName, leader = Leader, waiting = Waiting}) ->
    ByName = (rabbit_delay_broker:exchange_of(Message, XName))#resource.name =:= <<>>,
    Full = rabbit_delay_waiting:is_full(Waiting),
    case rabbit_delay_system:status() of
        _ when ByName, SeqNo =:= undefined ->
            {drop, "they were sent to its internal queue by name"};
        _ when ByName ->
            reject;
        {_, _} when SeqNo =/= undefined ->
            reject;
        Status when SeqNo =:= undefined ->
            case {Full orelse rabbit_delay_waiting:overflowing(Waiting), Status} of
                {false, _} -> wait;
                {true, {full, Why}} -> {drop, Why};
                {true, _} -> overflow
            end;
        _ when Leader =:= undefined ->
            case Full orelse rabbit_delay_registry:refusal(XName) =/= undefined of
                true -> reject;
                false -> wait
            end;
        _ ->
            case rabbit_delay_waiting:count(Waiting) >= ?MAX_REJECTABLE
                orelse rabbit_delay_waiting:bytes(Waiting) >= ?MAX_REJECTABLE_BYTES of
                true -> reject;
                false -> wait
            end
    end.

%% Who awaits no confirm hears nothing of it: whoever calls this for such a message has it counted
%% (drop/3).
reject(#waiting{sender = Sender, seq_no = SeqNo, flow = Flow},
       #state{name = QName, counters = Counters} = State) ->
    rabbit_delay_broker:ack_credit(Sender, Flow),
    case SeqNo of
        undefined ->
            ok;
        _ ->
            rabbit_delay_counters:add(Counters, rejected, 1),
            rabbit_delay_broker:reject(Sender, QName, SeqNo)
    end,
    State.

drop(_, 0, State) ->
    State;
drop(Why, N, #state{dropped = Dropped, counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, dropped, N),
    case Dropped of
        none ->
            ok = say_dropped(Why, N, State),
            _ = erlang:send_after(?DROPPED_MS, self(), say_dropped),
            State#state{dropped = {Why, 0}};
        {_, Before} ->
            State#state{dropped = {Why, Before + N}}
    end.

say_dropped(Why, N, #state{exchange = XName}) ->
    ?LOG_ERROR("delayed messages of ~ts: dropped ~b dead letters, or messages whose publisher awaits "
               "no confirm: ~ts", [rabbit_delay_text:rs(XName), N, Why], ?LOG_DOMAIN).

%% What cannot be rejected waits on.
reject_waiting(#state{rejectable = 0} = State) ->
    State;
reject_waiting(#state{waiting = Waiting} = State) ->
    Kept = rabbit_delay_waiting:filter(fun (#waiting{seq_no = undefined}) -> true;
                                           (W) -> _ = reject(W, State), false
                                       end, Waiting),
    State#state{waiting = Kept, rejectable = 0}.

%% Files may take what the disk has room for.
write_overflow(#state{waiting = Waiting0, appended = Appended} = State) ->
    case rabbit_delay_waiting:write(Waiting0) of
        {ok, 0, _} ->
            State;
        {ok, Bytes, Waiting} when Appended + Bytes < ?LOOK_AT_SPACE_BYTES ->
            State#state{waiting = Waiting, appended = Appended + Bytes};
        {ok, _, Waiting} ->
            ok = rabbit_delay_system:look_at_space(),
            State#state{waiting = Waiting, appended = 0};
        {error, Reason, Lost, Waiting} ->
            Why = lists:flatten(io_lib:format("too many wait, and they cannot be written to ~ts: ~0p",
                                              [rabbit_delay_config:data_dir(), Reason])),
            lists:foldl(fun reject/2, drop(Why, length(Lost), State#state{waiting = Waiting}), Lost)
    end.

refill(#state{waiting = Waiting0} = State) ->
    case rabbit_delay_waiting:refill(Waiting0) of
        {ok, Waiting} ->
            State#state{waiting = Waiting};
        {lost, N, Waiting} ->
            drop("the file that they waited in is damaged", N, State#state{waiting = Waiting});
        {error, Reason, Waiting} ->
            ?LOG_ERROR("delayed messages of ~ts: those that wait in a file cannot be read, which is "
                       "tried again: ~0p", [rabbit_delay_text:rs(State#state.exchange), Reason], ?LOG_DOMAIN),
            State#state{waiting = Waiting}
    end.

append(State) ->
    append_waiting(refill(State)).

append_waiting(#state{waiting = Waiting} = State) ->
    case rabbit_delay_waiting:is_empty(Waiting) of
        true -> State;
        false -> append_held(State)
    end.

append_held(#state{leader = undefined, give_up_timer = undefined, rejectable = Rejectable} = State)
  when Rejectable > 0 ->
    State#state{give_up_timer = erlang:send_after(?MAX_WAITING_MS, self(), give_up)};
append_held(#state{leader = undefined} = State) ->
    State;
append_held(#state{batches = Batches} = State) when map_size(Batches) >= ?MAX_BATCHES ->
    State;
append_held(#state{batches_bytes = Bytes, max_batches_bytes = Max} = State) when Bytes >= Max ->
    State;
append_held(State) ->
    case rabbit_delay_system:status() of
        {_, _} ->
            reject_waiting(State);
        _ ->
            case look_at_store(State) of
                #state{unable = none} = Looked -> append_some(Looked);
                Looked -> reject_waiting(Looked)
            end
    end.

%% What the store cannot write stays in memory: beyond a bound no more is taken in, until it can. Nor
%% is anything when a limit of the store itself is near, since what is in the log must be applied.
look_at_store(#state{unable = Before, exchange = XName} = State) ->
    case unable(rabbit_delay_registry:stat(XName)) of
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

unable(#{write_error := none, full := false}) ->
    none;
unable(#{full := true}) ->
    "its store is full: there are as many messages, or files of them, as it can have";
unable(#{write_error := Error, buffered := Buffered}) ->
    Beyond = Buffered > ?MAX_UNWRITTEN_BYTES orelse
        maps:get(unwritten, rabbit_delay_store:shared()) > ?MAX_UNWRITTEN_BYTES_OF_ALL,
    case Beyond of
        true -> lists:flatten(io_lib:format("its files cannot be written to (~ts)", [Error]));
        false -> none
    end;
unable(_) ->
    %% The store is not open yet.
    none.

append_some(#state{exchange = XName} = State0) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            {Limits, DropBeyond} = limits(X),
            case room(Limits, State0) of
                unknown ->
                    append_later(State0);
                Room ->
                    {Ws, State} = next_batch(0, 0, [], State0#state{drop_beyond = DropBeyond}),
                    append(Ws, Room,
                           {rabbit_delay_policy:default_delay(X), retry(X),
                            rabbit_delay_policy:keys_from(X)}, State)
            end;
        {error, not_found} ->
            %% It is being deleted, and this process with it.
            State0
    end.

%% How long dead letters wait, and whether there is a place for those that do not come back.
retry(X) ->
    case rabbit_delay_policy:retry(X) of
        none -> none;
        #{parking := none} = Plan -> {Plan, rabbit_delay_policy:dead_letter_exchange(X) =/= none};
        Plan -> {Plan, true}
    end.

append_imported(Ref, #batch{entry = {_, _, Bytes}, from = Pid} = Batch, State0) ->
    State = look_at_store(State0),
    case admitted(Batch, State) of
        ok ->
            ok = send(Ref, Batch, State),
            watch_space(byte_size(Bytes),
                        State#state{batches = (State#state.batches)#{Ref => Batch},
                                    batches_bytes = State#state.batches_bytes + byte_size(Bytes)});
        Refusal ->
            Pid ! {Ref, Refusal},
            State
    end.

admitted(_, #state{leader = undefined}) ->
    not_ready;
admitted(_, #state{batches = Batches}) when map_size(Batches) >= ?MAX_BATCHES ->
    not_ready;
admitted(#batch{messages = N, entry = {_, _, Records}}, #state{exchange = XName} = State) ->
    case rabbit_delay_system:status() of
        {_, Why} ->
            {unavailable, Why};
        _ when State#state.unable =/= none ->
            {unavailable, State#state.unable};
        _ ->
            %% The limits count bodies, and Records has a header for each.
            Size = byte_size(Records) - N * ?RECORD_HEADER_BYTES,
            case room_now(XName, State) of
                #room{messages = Messages, bytes = Bytes} when Messages >= N, Bytes >= Size -> ok;
                #room{exact = true} -> full;
                _ -> not_ready
            end
    end.

room_now(XName, State) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} -> room(element(1, limits(X)), State);
        {error, not_found} -> unknown
    end.

%% Beyond what messages are rejected, and beyond what they are dropped.
limits(X) ->
    case {rabbit_delay_policy:limits(X), rabbit_delay_policy:overflow(X)} of
        {{infinity, infinity} = Limits, _} -> {Limits, none};
        {Limits, reject_publish} -> {Limits, none};
        {{Messages, Bytes} = Limits, drop_latest_due} ->
            {{plus(Messages, ?BEYOND_MESSAGES), plus(Bytes, ?BEYOND_BYTES)}, Limits}
    end.

plus(infinity, _) -> infinity;
plus(N, More) -> N + More.

%% Has what is too much dropped.
drop_beyond(#state{drop_beyond = none}) ->
    ok;
drop_beyond(#state{drop_beyond = {Messages, Bytes}, exchange = XName}) ->
    case rabbit_delay_registry:stat(XName) of
        #{pending := Pending, pending_bytes := PendingBytes}
          when Pending > Messages; PendingBytes > Bytes ->
            rabbit_delay_dispatcher:overflow(XName);
        _ ->
            ok
    end.

append_later(#state{append_timer = undefined} = State) ->
    State#state{append_timer = erlang:send_after(?STORE_RETRY_MS, self(), append)};
append_later(State) ->
    State.

append(Ws, Room, Delays, State0) ->
    SeqNo = State0#state.last_seq_no + 1,
    {Batch, Rejected, Left} = batch(Ws, Room, Delays, State0),
    ok = uncount(lists:sublist(Ws, length(Ws) - length(Left)), State0),
    State1 = lists:foldl(fun reject/2, State0, Rejected),
    State2 = drop("the exchange is full, or they are too large", untold(Rejected), State1),
    append_next(SeqNo, Batch, Left, lists:foldr(fun put_back/2, State2, Left)).

untold(Ws) -> length([W || #waiting{seq_no = undefined} = W <- Ws]).

put_back(#waiting{size = Size} = W, #state{waiting = Waiting} = State) ->
    rejectable(W, 1, State#state{waiting = rabbit_delay_waiting:in_r(W, Size, Waiting)}).

append_next(SeqNo, Batch, Left, State) ->
    case Batch of
        none when Left =:= [] ->
            append(State);
        none ->
            %% When what is under way has been applied, there is room or there is none.
            State;
        #batch{entry = {_, _, Bytes}} ->
            ok = send(SeqNo, Batch, State),
            append(watch_space(byte_size(Bytes),
                               State#state{last_seq_no = SeqNo,
                                           batches = (State#state.batches)#{SeqNo => Batch},
                                           batches_bytes = State#state.batches_bytes +
                                               byte_size(Bytes)}))
    end.

%% What may be added to the exchange's messages: exactly, if nothing is under way, else at least.
room({infinity, infinity}, _) ->
    #room{exact = true};
room({MaxMessages, MaxBytes}, #state{exchange = XName, batches = Batches, batches_bytes = Bytes}) ->
    case rabbit_delay_registry:stat(XName) of
        #{applied := _, pending := Pending, pending_bytes := PendingBytes} ->
            Messages = maps:fold(fun (_, #batch{messages = N}, Acc) -> N + Acc end, 0, Batches),
            #room{messages = left(MaxMessages, Pending + Messages),
                  bytes = left(MaxBytes, PendingBytes + Bytes),
                  exact = map_size(Batches) =:= 0};
        _ ->
            %% The store is not open yet.
            unknown
    end.

left(infinity, _) -> infinity;
left(Max, N) -> max(0, Max - N).

%% A burst can use up the space between two looks at it.
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

next_batch(Count, Bytes, Acc, #state{waiting = Waiting0} = State)
  when Count < ?MAX_MESSAGES, Bytes < ?MAX_BYTES ->
    case rabbit_delay_waiting:out(Waiting0) of
        {W, Size, Waiting} ->
            next_batch(Count + 1, Bytes + Size, [W | Acc],
                       rejectable(W, -1, State#state{waiting = Waiting}));
        empty ->
            {lists:reverse(Acc), State}
    end;
next_batch(_, _, Acc, State) ->
    {lists:reverse(Acc), State}.

-record(building, {now :: integer(),
                   %% of a message, as stored, bytes
                   limit :: pos_integer(),
                   room :: #room{},
                   default :: pos_integer() | none,
                   retry :: {rabbit_delay_retry:plan(), HasPlace :: boolean()} | none,
                   %% whose headers about keys count
                   keys_from :: publishers | anyone,
                   exchange :: rabbit_exchange:name(),
                   salt :: rabbit_delay_key:salt(),
                   counters :: rabbit_delay_counters:ref(),
                   messages = 0 :: non_neg_integer(),
                   %% 2: some record does something with its key
                   version = 1 :: 1 | 2,
                   records = [] :: iodata(),
                   earliest = {none, none} :: rabbit_delay_machine:earliest(),
                   confirms = #{} :: #{pid() => [pos_integer()]},
                   rejected = [] :: [#waiting{}]}).

%% The Raft entry for these messages, in the store's batch format (include/dw_store.h); those that
%% are too large for it, or for which there is no room; and those, from one of them on, of which that
%% is not known yet.
batch(Ws, Room, {Default, Retry, KeysFrom}, #state{exchange = XName, salt = Salt, counters = Counters}) ->
    {B, Left} = add_all(Ws, #building{now = rabbit_delay_config:now_ms(),
                                      limit = rabbit_delay_config:max_message_size(),
                                      room = Room, default = Default, retry = Retry,
                                      keys_from = KeysFrom,
                                      exchange = XName, salt = Salt,
                                      counters = Counters}),
    #building{version = Version, records = Records, messages = Messages, earliest = Earliest,
              confirms = Confirms, rejected = Rejected} = B,
    case Records of
        [] -> {none, Rejected, Left};
        _ -> {#batch{entry = {Version, Earliest, iolist_to_binary(lists:reverse(Records))},
                     messages = Messages, confirms = Confirms}, Rejected, Left}
    end.

add_all([], B) ->
    {B, []};
add_all([W | Rest] = Ws, B) ->
    case add(W, B) of
        no_room -> {B, Ws};
        B1 -> add_all(Rest, B1)
    end.

add(#waiting{message = Message} = W, B) ->
    Parsed = rabbit_delay_broker:parsed(Message),
    Headers = rabbit_delay_broker:headers(Parsed),
    Deaths = deaths(W, Parsed, B),
    case use_of_key(W, Parsed, Headers, Deaths, B) of
        {cancel, Key} when Deaths =:= [] ->
            add_record(W, on_key(cancel), 0, 0, rabbit_delay_key:hash(B#building.salt, Key), <<>>,
                       B#building{version = 2});
        Use ->
            {Encoding, Body} = rabbit_delay_broker:encode(Message),
            case fits(byte_size(Body), B) of
                true when Deaths =/= [] -> add_dead_letter(W, Deaths, Use, Encoding, Body, B);
                true -> add_message(W, due(Headers, B), Use, Encoding, Body, B);
                false -> B#building{rejected = [W | B#building.rejected]};
                unknown -> no_room
            end
    end.

%% As route/2 has judged it: only of what a publisher published to the exchange itself. A dead letter
%% that is retried was, if it had gone to this exchange before it died; another is known, for being
%% cancelled while it waits, by its message_id.
use_of_key(_, Message, Headers, _, #building{keys_from = anyone}) ->
    rabbit_delay_key:asked(Headers, rabbit_delay_broker:message_id(Message));
use_of_key(#waiting{dead_letter = true}, Message, Headers,
           [#{exchange := Name} | _], #building{exchange = #resource{name = Name}}) ->
    rabbit_delay_key:asked(Headers, rabbit_delay_broker:message_id(Message));
use_of_key(#waiting{dead_letter = false}, Message, Headers, _, #building{exchange = XName}) ->
    case rabbit_delay_retry:is_sent_to(XName, Message) of
        true -> rabbit_delay_key:asked(Headers, rabbit_delay_broker:message_id(Message));
        false -> none
    end;
use_of_key(#waiting{dead_letter = true}, Message, _, [_ | _], _) ->
    rabbit_delay_key:asked(undefined, rabbit_delay_broker:message_id(Message));
use_of_key(_, _, _, _, _) ->
    none.

fits(Size, #building{limit = Limit}) when Size > Limit -> false;
fits(Size, #building{room = #room{messages = Messages, bytes = Bytes}})
  when Messages > 0, Size =< Bytes -> true;
fits(_, #building{room = #room{exact = true}}) -> false;
fits(_, _) -> unknown.

%% `infinity' sorts after every number.
fill(infinity, _) -> infinity;
fill(Room, N) -> Room - N.

%% Of a dead letter that the exchange retries.
deaths(#waiting{dead_letter = true}, Message, #building{exchange = XName, retry = {_, _}}) ->
    case rabbit_delay_retry:is_sent_to(XName, Message) of
        true -> rabbit_delay_broker:deaths(Message);
        false -> []
    end;
deaths(_, _, _) ->
    [].

%% What the message says of delays and of other messages was meant when it was first published. Its
%% key is still good for cancelling it.
add_dead_letter(W, Deaths, Use, Encoding, Body, #building{retry = {Plan, HasPlace}} = B) ->
    Pause = case rabbit_delay_retry:judge(Deaths, Plan) of
                {retry, Attempt} -> rabbit_delay_retry:pause(Attempt, Plan);
                {used_up, Attempt} when not HasPlace -> rabbit_delay_retry:pause(Attempt, Plan);
                _ -> 0
            end,
    Kept = case Use of
               {OnDuplicate, Key} when OnDuplicate =:= replace; OnDuplicate =:= drop -> {keep, Key};
               {cancel, _} -> none;
               _ -> Use
           end,
    add_message(W, {0, Pause, earliest(Pause, B)}, Kept, rabbit_delay_retry:mark(Encoding), Body,
                B).

earliest(Delay, #building{earliest = {LeastDelay, LeastTime}}) ->
    {min(Delay, LeastDelay), LeastTime}.

add_message(W, {Absolute, When, Earliest}, Use, Encoding, Body,
            #building{now = Now, salt = Salt, room = Room, counters = Counters,
                      messages = Messages} = B0) ->
    rabbit_delay_counters:delay(Counters, When - Absolute * Now),
    B = B0#building{earliest = Earliest, messages = Messages + 1,
                    room = Room#room{messages = fill(Room#room.messages, 1),
                                     bytes = fill(Room#room.bytes, byte_size(Body))}},
    case Use of
        {keep, Key} ->
            add_record(W, Absolute, Encoding, When, rabbit_delay_key:hash(Salt, Key), Body, B);
        {OnDuplicate, Key} ->
            add_record(W, Absolute bor on_key(OnDuplicate), Encoding, When,
                       rabbit_delay_key:hash(Salt, Key), Body, B#building{version = 2});
        _ ->
            add_record(W, Absolute, Encoding, When, 0, Body, B)
    end.

add_record(#waiting{sender = Sender, seq_no = SeqNo, flow = Flow}, Flags, Encoding, When, Key, Body,
           #building{records = Records, confirms = Confirms} = B) ->
    rabbit_delay_broker:ack_credit(Sender, Flow),
    Header = rabbit_delay_store:record_header(byte_size(Body), Flags, Encoding, When, Key),
    B#building{records = [Body, Header | Records],
               confirms = await_confirm(Sender, SeqNo, Confirms)}.

on_key(replace) -> 1 bsl 1;
on_key(drop) -> 2 bsl 1;
on_key(cancel) -> 3 bsl 1.

due(Headers, #building{now = Now, default = Default, earliest = {LeastDelay, LeastTime}} = B) ->
    case rabbit_delay_header:due(Headers, Now, ?NO_LIMIT, not_given) of
        {delay, Delay} ->
            {0, Delay, earliest(Delay, B)};
        {time, Time} ->
            {1, Time, {LeastDelay, min(Time, LeastTime)}};
        not_given when is_integer(Default) ->
            {0, Default, earliest(Default, B)};
        _ ->
            {0, 0, earliest(0, B)}
    end.

await_confirm(_, undefined, Confirms) ->
    Confirms;
await_confirm(Sender, SeqNo, Confirms) ->
    case Confirms of
        #{Sender := SeqNos} -> Confirms#{Sender := [SeqNo | SeqNos]};
        _ -> Confirms#{Sender => [SeqNo]}
    end.

%% ------------------------------------------------------------------- what the broker asks of a queue

answer(info, State) ->
    answer({info, [name, messages, consumers, state]}, State);
answer({info, Items}, State) ->
    {ok, [{Item, info(Item, State)} || Item <- Items]};
answer(room, #state{leader = undefined}) ->
    not_ready;
answer(room, #state{exchange = XName} = State) ->
    case room_now(XName, State) of
        #room{messages = Messages, bytes = Bytes} -> {Messages, Bytes};
        unknown -> not_ready
    end;
answer(stat, #state{exchange = XName}) ->
    {ok, rabbit_delay_registry:pending(XName), 0};
answer(consumers, _) ->
    [];
answer(purge, _) ->
    {ok, 0};
%% The record is removed with the exchange, never alone: delayed messages would be routed to nothing
%% and confirmed. Deleting a vhost deletes its queues first, so this must not fail.
answer({delete, _IfUnused, _IfEmpty, User}, #state{name = QName}) ->
    ?LOG_INFO("~ts belongs to its exchange and is deleted with it: ignoring its deletion by ~ts",
              [rabbit_delay_text:rs(QName), User], ?LOG_DOMAIN),
    {ok, 0};
answer(_, _) ->
    {error, not_supported}.

info(name, #state{name = QName}) -> QName;
info(pid, _) -> self();
info(owner_pid, _) -> self();
info(messages, #state{exchange = XName}) -> rabbit_delay_registry:pending(XName);
info(messages_ready, State) -> info(messages, State);
info(messages_unacknowledged, _) -> 0;
info(consumers, _) -> 0;
info(type, _) -> rabbit_classic_queue;
info(state, _) -> running;
info(durable, _) -> false;
info(auto_delete, _) -> false;
info(exclusive, _) -> true;
info(arguments, _) -> [];
info(_, _) -> ''.
