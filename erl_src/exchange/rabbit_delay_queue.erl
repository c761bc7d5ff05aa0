%% SPDX-License-Identifier: MPL-2.0

%% One process per delayed exchange on each node where something is published to it: what publishers'
%% channels take for a classic queue. It gathers the messages that come in, sends them to the Raft leader,
%% which may be on another node, many at a time, and confirms them when they are applied, which is when
%% they are durable on a quorum.
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
%% Batches are numbered within a session, which the machine opens for this process when it first has a
%% leader. After a change of leader all that are under way are sent again in order; the machine drops
%% those that it has. What has been under way for too long is rejected, and its number filled. An import
%% brings batches of a session of its own, which outlives this process.
%%
%% This module is the process: what it is told and asked, its Raft member and the answers to what is
%% under way. What it does with messages is in rabbit_delay_intake and rabbit_delay_append, which share
%% its state (rabbit_delay_queue.hrl); rabbit_delay_batch and rabbit_delay_room know nothing of it.
-module(rabbit_delay_queue).

-behaviour(gen_batch_server).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").
-include("rabbit_delay_queue.hrl").

-export([start_link/2, leader/2, has_group/2, has_member/1, announce_leader/1, introduce/1, introduce_restorer/2, room/1, import/4,
         forget_imported/1]).
-export([init/1, handle_batch/2, terminate/2]).

-export_type([place/0, batch_key/0]).

-define(MEMBER_RETRY_MS, 1000).
-define(RESEND_MS, 50).
%% How long until it is looked again whether another node has formed the group.
-define(FORMING_MS, 100).
%% How long until it is asked again whether the machine is of a version that opens sessions.
-define(OPEN_AGAIN_MS, 1000).
%% And until it is asked once more by whom nothing was answered. Each is an entry, if that one leads.
-define(UNOPENED_MS, 3000).
-define(NONCE_BYTES, 16).
-define(STATS_MS, 5000).
-define(CALL_MS, 60000).

-type place() :: {Session :: pos_integer(), SeqNo :: pos_integer()}.

%% Its number in our own session, or of an import, what its answer goes by.
-type batch_key() :: pos_integer() | reference().

-spec start_link(rabbit_exchange:name(), Durable :: boolean()) -> {ok, pid()} | {error, term()}.
start_link(XName, Durable) ->
    gen_batch_server:start_link(undefined, ?MODULE, {XName, Durable}, []).

%% That Raft server leads.
-spec leader(pid(), ra:server_id()) -> ok.
leader(Pid, ServerId) ->
    gen_batch_server:cast(Pid, {leader, ServerId}).

%% The exchange's group, of which this node has the one member, has a record from now on.
-spec has_group(pid(), rabbit_delay_group:group()) -> ok.
has_group(Pid, Group) ->
    Pid ! {group, rabbit_delay_group:life(Group), rabbit_delay_group:salt(Group)},
    ok.

%% This node has a member from now on.
-spec has_member(pid()) -> ok.
has_member(Pid) ->
    gen_batch_server:cast(Pid, has_member).

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

%% What Sender publishes after this are dead letters that were pending before, due at x-opt-delivery-time.
-spec introduce_restorer(pid(), Sender :: pid()) -> ok.
introduce_restorer(Pid, Sender) ->
    gen_batch_server:call(Pid, {restored_by, Sender}, ?CALL_MS).

%% What the exchange's limits leave room for at present, its Raft server being there.
-spec room(pid()) -> {Messages, Bytes} | not_ready
              when Messages :: non_neg_integer() | infinity, Bytes :: non_neg_integer() | infinity.
room(Pid) ->
    gen_batch_server:call(Pid, room, ?CALL_MS).

%% Appends a batch of a session that is not this process's. The caller gets {Ref, Answer}: what the
%% machine answers; not_ready, and it is to try again; full; or {unavailable, Why}.
-spec import(pid(), place(), rabbit_delay_batch:entry(), Messages :: pos_integer()) -> Ref :: reference().
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
    ok = rabbit_delay_registry:register_queue(XName, self()),
    QName = rabbit_delay_registry:queue_name(XName),
    self() ! join,
    _ = erlang:send_after(?STATS_MS, self(), emit_stats),
    {ok, rabbit_delay_condition:forget(
           #state{exchange = XName,
                  name = QName,
                  durable = Durable,
                  counters = rabbit_delay_registry:counters(XName),
                  waiting = rabbit_delay_intake:new(XName),
                  nonce = crypto:strong_rand_bytes(?NONCE_BYTES),
                  max_batches_bytes = rabbit_delay_config:appending_bytes()})}.

-spec handle_batch([gen_batch_server:op()], #state{}) ->
          {ok, [gen_batch_server:action()], #state{}}.
handle_batch(Ops, State0) ->
    {Replies, State1} = lists:foldl(fun handle_op/2, {[], State0}, Ops),
    {ok, Replies, rabbit_delay_append:append(rabbit_delay_intake:write_overflow(State1))}.

-spec terminate(term(), #state{}) -> ok.
terminate(_, #state{batches = Batches, name = QName} = State) ->
    #state{waiting = Waiting} = rabbit_delay_intake:reject_waiting(State),
    ok = rabbit_delay_intake:say_lost(Waiting, State),
    ok = rabbit_delay_waiting:close(Waiting),
    maps:foreach(
      fun (_, #batch{confirms = Confirms}) ->
              maps:foreach(fun (Sender, SeqNos) ->
                                   rabbit_delay_intake:reject_all(Sender, QName, SeqNos)
                           end, Confirms)
      end, Batches).

handle_op({cast, {leader, ServerId}}, {Replies, State}) ->
    {Replies, follow_leader(ServerId, State)};
handle_op({cast, has_member}, {Replies, State}) ->
    {Replies, join_soon(0, case State of
                               #state{member = {_, _}} -> State;
                               _ -> State#state{member = ended}
                           end)};
handle_op({cast, announce_leader}, {Replies, #state{leader = Leader} = State}) ->
    case Leader of
        {ServerId, _} -> rabbit_delay_registry:leader(State#state.exchange, ServerId);
        undefined -> ok
    end,
    {Replies, State};
handle_op({cast, {import, Ref, Batch}}, {Replies, State}) ->
    {Replies, rabbit_delay_append:import(Ref, Batch, State)};
handle_op({cast, {dead_letters_from, Pid}}, {Replies, State}) ->
    {Replies, sends_dead_letters(Pid, true, State)};
handle_op({cast, Cast}, {Replies, #state{dead_letterers = Pids} = State}) ->
    case rabbit_delay_broker:delivery(Cast) of
        {ok, Message, Sender, SeqNo, Flow} ->
            {Replies, rabbit_delay_intake:take(
                        #waiting{message = Message, sender = Sender, seq_no = SeqNo, flow = Flow,
                                 dead_letter = maps:get(Sender, Pids, false)}, State)};
        unknown ->
            {Replies, State}
    end;
handle_op({call, From, forget_imported}, {Replies, #state{batches = Batches} = State}) ->
    {[{reply, From, ok} | Replies],
     lists:foldl(fun (Ref, S) -> ended(Ref, fun (_, _) -> ok end, S) end, State,
                 [Ref || Ref <- maps:keys(Batches), is_reference(Ref)])};
handle_op({call, From, {restored_by, Pid}}, {Replies, State}) ->
    {[{reply, From, ok} | Replies], sends_dead_letters(Pid, restored, State)};
handle_op({call, From, Call}, {Replies, State}) ->
    {[{reply, From, answer(Call, State)} | Replies], State};
handle_op({info, Info}, {Replies, State}) ->
    {Replies, handle_info(Info, State)}.

sends_dead_letters(Pid, Which, #state{dead_letterers = Pids} = State) ->
    _ = monitor(process, Pid),
    State#state{dead_letterers = Pids#{Pid => Which}}.

handle_info({ra_event, _, {applied, Replies}}, State) ->
    lists:foldl(fun applied/2, State, Replies);
handle_info({ra_event, ServerId, {rejected, {not_leader, {_, _} = Leader, _}}},
            #state{leader = {ServerId, _}} = State) when Leader =/= ServerId ->
    follow_leader(Leader, State);
handle_info({ra_event, _, {rejected, _}}, State) ->
    %% The server does not lead at present; when one does again, all is sent again.
    State;
handle_info({'DOWN', _, process, Pid, _}, #state{dead_letterers = Pids} = State) when is_map_key(Pid, Pids) ->
    State#state{dead_letterers = maps:remove(Pid, Pids)};
handle_info(resend, State) ->
    send_all_again(State#state{resend_timer = undefined});
handle_info(look_at_store, State) ->
    rabbit_delay_append:look_at_store_again(State);
handle_info(append, State) ->
    State#state{append_timer = undefined};
handle_info(give_up, State) ->
    rabbit_delay_append:give_up(State);
handle_info(open_session, #state{leader = {_, _}, opening = undefined} = State) ->
    open_session(State);
handle_info(open_session, #state{opening = {_, _}} = State) ->
    _ = erlang:send_after(?OPEN_AGAIN_MS, self(), open_session),
    State;
%% Lost with a server that led and did not know that it does no more. As a follower it says who leads.
handle_info({unanswered, Ref}, #state{opening = {_, Ref}} = State) ->
    open_session(State#state{opening = undefined});
handle_info(look_for_late, State) ->
    rabbit_delay_append:reject_late(State#state{late_timer = undefined});
handle_info({say_again, What}, State) ->
    rabbit_delay_intake:say_again(What, State);
handle_info(emit_stats, #state{name = QName, exchange = XName} = State0) ->
    _ = erlang:send_after(?STATS_MS, self(), emit_stats),
    State = rabbit_delay_append:look_at_limits(State0),
    ok = rabbit_delay_append:drop_beyond(State),
    ok = rabbit_delay_broker:queue_stats(QName, rabbit_delay_registry:pending(XName)),
    rabbit_delay_condition:ask(State);
handle_info({bump_credit, Message}, State) ->
    credit_flow:handle_bump_msg(Message),
    State;
handle_info(Info, State) ->
    about_group(Info, State).

%% Of the group, its leader and this node's member of it.
about_group({'DOWN', Ref, process, _, Reason}, #state{member = {_, Ref}} = State) ->
    member_ended(Reason, State#state{member = ended});
about_group({'DOWN', Ref, process, _, _}, #state{leader = {_, Ref}} = State) ->
    join_soon(0, lost_leader(State));
about_group({condition, Node, Condition}, State) ->
    rabbit_delay_condition:said(Node, Condition, State);
about_group({generation, Generation}, State) ->
    State#state{generation = Generation};
about_group({member, Pid}, State) when is_pid(Pid) ->
    follow_member(Pid, State);
about_group({group, Life, Salt}, #state{life = Before, exchange = XName} = State)
  when Before =:= undefined; Before =:= Life ->
    ok = rabbit_delay_registry:register_life(XName, Life),
    State#state{life = Life, salt = Salt};
about_group({group, Life, _}, _) ->
    exit({other_life, Life});
about_group({joined, Result}, State) ->
    joined(Result, State);
about_group({'DOWN', Ref, process, _, normal}, #state{starter = Ref} = State) ->
    State#state{starter = undefined};
about_group({'DOWN', Ref, process, _, Reason}, #state{starter = Ref} = State) ->
    joined({error, Reason}, State#state{starter = undefined});
%% The leader may have been heard of while the group was being formed.
about_group(join, #state{leader = Leader, life = Life, starter = undefined} = State)
  when Leader =:= undefined; Life =:= undefined ->
    case rabbit_delay_registry:refusal(State#state.exchange) of
        undefined -> join(State);
        _ -> reject_all(State)
    end;
%% While another node leads, a member of this one that has ended is started again, too.
about_group(join, #state{member = ended, starter = undefined} = State) ->
    case rabbit_delay_registry:refusal(State#state.exchange) of
        undefined -> join(State);
        _ -> State
    end;
about_group(join, #state{member = ended} = State) ->
    join_soon(?FORMING_MS, State);
about_group(_, State) ->
    State.

%% -------------------------------------------------------------------------------- the group

%% Starting a member opens a store, and other nodes are asked: not in this process.
join(#state{exchange = XName, durable = Durable} = State) ->
    Queue = self(),
    %% Linked: it must not start a member for an exchange that has been deleted meanwhile.
    {_, Ref} = spawn_opt(fun () -> Queue ! {joined, join(Queue, XName, Durable)} end,
                         [link, monitor]),
    State#state{starter = Ref}.

join(Queue, XName, Durable) ->
    case rabbit_delay_group:obtain(XName) of
        alone ->
            start_member(Queue, XName, fun () -> rabbit_delay_raft:start_member(XName, Durable) end,
                         fun (Own) -> [Own] end);
        {ok, Group} ->
            Queue ! {group, rabbit_delay_group:life(Group), rabbit_delay_group:salt(Group)},
            Ids = rabbit_delay_group:ids(Group),
            case rabbit_delay_group:member(Group) of
                {ok, Member} ->
                    start_member(Queue, XName,
                                 fun () ->
                                         rabbit_delay_raft:start_member(XName, Durable, Member, Group)
                                 end, fun (_) -> Ids end);
                none ->
                    leader(rabbit_delay_group:leader(Ids))
            end;
        {error, _} = Error ->
            Error
    end.

start_member(Queue, XName, Start, Ids) ->
    case rabbit_delay_system:status() of
        Down when Down =:= starting; element(1, Down) =:= down ->
            not_ready;
        _ ->
            case rabbit_delay_system:ready() of
                {ok, Generation} ->
                    Queue ! {generation, Generation},
                    case Start() of
                        ok ->
                            {Name, _} = Own = rabbit_delay_raft:server_id(XName),
                            case whereis(Name) of
                                undefined ->
                                    not_ready;
                                Pid ->
                                    Queue ! {member, Pid},
                                    leader(rabbit_delay_group:led_or_stand(Own, Ids(Own)))
                            end;
                        {error, _} = Error ->
                            Error
                    end;
                not_ready ->
                    not_ready
            end
    end.

leader(Led) ->
    case Led of
        {ok, Leader} -> {leader, Leader};
        none -> not_ready
    end.

joined({leader, ServerId}, #state{exchange = XName, leader = undefined} = State) ->
    ok = rabbit_delay_registry:leader(XName, ServerId),
    State;
joined({leader, _}, State) ->
    State;
joined({error, forming}, State) ->
    join_soon(?FORMING_MS, State);
joined(NotNow, State) when NotNow =:= not_ready; NotNow =:= {error, refused} ->
    join_soon(?MEMBER_RETRY_MS, State);
joined({error, Reason}, State) ->
    ?LOG_ERROR("delayed messages of ~ts: the Raft server does not start: ~0P",
               [rabbit_delay_text:rs(State#state.exchange), Reason, 20], ?LOG_DOMAIN),
    join_soon(?MEMBER_RETRY_MS, State).

join_soon(Ms, State) ->
    _ = erlang:send_after(Ms, self(), join),
    State.

follow_member(Pid, #state{member = {Pid, _}} = State) ->
    State;
follow_member(Pid, #state{member = Old} = State) ->
    _ = case Old of
            {_, Ref} -> demonitor(Ref, [flush]);
            _ -> ok
        end,
    State#state{member = {Pid, monitor(process, Pid)}}.

%% One that ended itself over a later version has failed in nothing.
member_ended(Reason, #state{exchange = XName, generation = Generation, leader = Leader} = State) ->
    ok = case Reason of
             normal -> ok;
             shutdown -> ok;
             {shutdown, _} -> ok;
             _ ->
                 case rabbit_delay_registry:refusal(XName) of
                     undefined -> rabbit_delay_system:server_failed(Generation, Reason);
                     _ -> ok
                 end
         end,
    join_soon(?MEMBER_RETRY_MS, case Leader of
                                    {{_, Node}, _} when Node =:= node() -> lost_leader(State);
                                    _ -> State
                                end).

lost_leader(#state{leader = undefined} = State) ->
    State;
lost_leader(#state{leader = {_, Ref}, exchange = XName} = State) ->
    true = demonitor(Ref, [flush]),
    ok = rabbit_delay_registry:register_leader(XName, undefined),
    rabbit_delay_condition:forget(State#state{leader = undefined}).

follow_leader(ServerId, #state{leader = {ServerId, _}} = State) ->
    send_all_again(State);
follow_leader(ServerId, #state{salt = undefined, exchange = XName} = State) ->
    follow_leader(ServerId, State#state{salt = key_salt(XName)});
follow_leader(ServerId, State) ->
    #state{exchange = XName} = Lost = lost_leader(State),
    ok = rabbit_delay_registry:register_leader(XName, ServerId),
    send_all_again(rabbit_delay_condition:ask(Lost#state{leader = {ServerId, monitor(process, ServerId)}})).

%% Found by listing a directory with that of every other exchange in it: that is garbage in a process
%% that ends, not in one that may do nothing for long.
-dialyzer({nowarn_function, key_salt/1}).
key_salt(XName) ->
    {_, Ref} = spawn_monitor(fun () -> exit(rabbit_delay_group:key_salt(XName)) end),
    receive
        {'DOWN', Ref, process, _, {ok, Salt}} -> Salt;
        {'DOWN', Ref, process, _, Reason} -> exit({key_salt, Reason})
    end.

send_all_again(#state{leader = undefined} = State) ->
    State;
send_all_again(#state{batches = Batches} = State) ->
    lists:foreach(fun ({SeqNo, Batch}) -> rabbit_delay_append:send(SeqNo, Batch, State) end,
                  lists:sort(maps:to_list(Batches))),
    open_session(State).

%% A note first: an earlier version of the machine, which another member may still have, stops at what
%% it does not know.
open_session(#state{leader = {ServerId, _}, session = Session, machine_version = Version} = State)
  when Session =:= undefined; not ?KNOWS_RELEASES(Version) ->
    Ref = make_ref(),
    ok = rabbit_delay_commands:note(ServerId, Ref),
    _ = erlang:send_after(?UNOPENED_MS, self(), {unanswered, Ref}),
    State#state{opening = {note, Ref}};
open_session(State) ->
    State.

opens(Ref, {ok, #{machine_version := Version}},
      #state{opening = {note, Ref}, session = Session} = State) when is_integer(Session) ->
    State#state{opening = undefined, machine_version = Version};
opens(Ref, {ok, #{machine_version := Version}},
      #state{opening = {note, Ref}, leader = {ServerId, _}, nonce = Nonce} = State)
  when Version >= 2 ->
    Open = make_ref(),
    ok = rabbit_delay_commands:open_session(ServerId, Nonce, Open),
    _ = erlang:send_after(?UNOPENED_MS, self(), {unanswered, Open}),
    State#state{opening = {open, Open}, machine_version = Version};
opens(Ref, _, #state{opening = {note, Ref}} = State) ->
    _ = erlang:send_after(?OPEN_AGAIN_MS, self(), open_session),
    State#state{opening = undefined};
opens(Ref, {ok, Session, 0}, #state{opening = {open, Ref}} = State) ->
    State#state{opening = undefined, session = Session}.

%% ---------------------------------------------------------------------- what is under way

%% What the machine answers to a batch: stored, refused, or not in its turn. Nothing else is taken for
%% any of them.
applied({Ref, Answer}, #state{opening = {_, Ref}} = State) ->
    opens(Ref, Answer, State);
%% To an earlier opening, which was sent again, or to an importer that has ended.
applied({Ref, _}, #state{batches = Batches} = State)
  when is_reference(Ref), not is_map_key(Ref, Batches) ->
    State;
applied({SeqNo, ok}, #state{name = QName, batches = Batches, counters = Counters} = State) ->
    case Batches of
        #{SeqNo := #batch{messages = N}} -> rabbit_delay_counters:add(Counters, published, N);
        _ -> ok
    end,
    ok = rabbit_delay_append:drop_beyond(State),
    answered(SeqNo, ok,
             fun (Sender, SeqNos) -> rabbit_delay_broker:confirm(Sender, QName, SeqNos) end,
             added(SeqNo, State));
applied({SeqNo, {ok, #{cancelled := Cancelled, replaced := Replaced, dropped := Dropped}}},
        #state{counters = Counters} = State) ->
    rabbit_delay_counters:add(Counters, cancelled, Cancelled),
    rabbit_delay_counters:add(Counters, replaced, Replaced),
    rabbit_delay_counters:add(Counters, deduplicated, Dropped),
    applied({SeqNo, ok}, State);
applied({SeqNo, {error, unknown_session}}, #state{batches = Batches} = State)
  when is_integer(SeqNo) ->
    %% What is under way may have been stored or not: it is rejected, and never sent in another session.
    case maps:is_key(SeqNo, Batches) of
        true -> exit({session_lost, SeqNo, unknown});
        false -> State
    end;
applied({SeqNo, {error, Reason}}, State) ->
    ?LOG_ERROR("delayed messages of ~ts: a batch was refused by the store: ~p",
               [rabbit_delay_text:rs(State#state.exchange), Reason], ?LOG_DOMAIN),
    ok = count_refused(SeqNo, State),
    answered(SeqNo, {error, Reason}, nack(State), State);
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

added(SeqNo, #state{batches = Batches} = State) ->
    case Batches of
        #{SeqNo := #batch{messages = N, entry = {_, _, Bytes}}} ->
            rabbit_delay_condition:added(N, byte_size(Bytes), State);
        _ ->
            State
    end.

%% Of those of them that nobody is told of.
count_refused(SeqNo, #state{batches = Batches, counters = Counters}) ->
    case Batches of
        #{SeqNo := #batch{untold = Untold, from = undefined}} ->
            rabbit_delay_counters:add(Counters, dropped, Untold);
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
reject_all(#state{batches = Batches} = State0) ->
    State = rabbit_delay_intake:reject_waiting(State0),
    lists:foldl(fun (Key, S) -> answered(Key, {error, refused}, nack(State), S) end, State, maps:keys(Batches)).

nack(#state{name = QName, counters = Counters}) ->
    fun (Sender, SeqNos) ->
            rabbit_delay_counters:add(Counters, rejected, length(SeqNos)),
            rabbit_delay_intake:reject_all(Sender, QName, SeqNos)
    end.

resend_soon(#state{resend_timer = undefined} = State) ->
    State#state{resend_timer = erlang:send_after(?RESEND_MS, self(), resend)};
resend_soon(State) ->
    State.

%% ------------------------------------------------------------------- what the broker asks of a queue

answer(info, State) ->
    answer({info, [name, messages, consumers, state]}, State);
answer({info, Items}, State) ->
    {ok, [{Item, info(Item, State)} || Item <- Items]};
answer(room, #state{condition = unknown}) ->
    not_ready;
answer(room, State) ->
    case rabbit_delay_append:room_now(State) of
        unknown -> not_ready;
        Room -> rabbit_delay_room:left(Room)
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
info(Number, _) when Number =:= messages_ready; Number =:= messages_unacknowledged; Number =:= consumers -> 0;
info(type, _) -> rabbit_classic_queue;
info(state, _) -> running;
info(durable, _) -> false;
info(auto_delete, _) -> false;
info(exclusive, _) -> true;
info(arguments, _) -> [];
info(_, _) -> ''.
