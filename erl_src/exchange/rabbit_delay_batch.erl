%% SPDX-License-Identifier: MPL-2.0

%% From messages to an entry of the Raft log: one batch of records in the store's format
%% (include/dw_store.h), with what is due first in it and who is to be told of what.
%%
%% In the delay queue's process. It keeps nothing, looks at no setting but those that it is given, and
%% costs what is in the batch; a body is copied once, into the entry. Who sent a message that is in the
%% entry is given credit for another.
-module(rabbit_delay_batch).

-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").
-include("rabbit_delay_queue.hrl").

-export([build/3]).

-export_type([entry/0, settings/0, unusable/0]).

%% 2: some record does something with its key; 3: some record releases what is pending under it.
-type entry() :: {1 | 2 | 3, rabbit_delay_machine:earliest(), binary()}.

-type settings() ::
        #{exchange := rabbit_exchange:name(),
          salt := rabbit_delay_key:salt(),
          counters := rabbit_delay_counters:ref(),
          now := rabbit_delay_store:ms(),
          %% of a message, as stored, bytes
          limit := pos_integer(),
          %% what a message waits that says nothing of it
          default := pos_integer() | none,
          retry := {rabbit_delay_retry:plan(), HasPlace :: boolean()} | none,
          %% whose headers about keys count
          keys_from := publishers | anyone,
          %% whether the machine of all members knows what releases by key
          releases := boolean(),
          %% whether a message is refused for a delay that cannot be used, one of more ms for instance;
          %% if not, it is due at once
          unusable := {nack, MaxDelay :: pos_integer()} | now}.

%% A due time beyond this is not refused here: route/1 has judged it already.
-define(NO_LIMIT, ?MAX_MS).

-type unusable() :: {#waiting{}, rabbit_delay_header:unusable() | no_releases}.

-record(building, {settings :: settings(),
                   room :: rabbit_delay_room:room(),
                   messages = 0 :: non_neg_integer(),
                   untold = 0 :: non_neg_integer(),
                   %% of the entry
                   version = 1 :: 1 | 2 | 3,
                   records = [] :: iodata(),
                   earliest = {none, none} :: rabbit_delay_machine:earliest(),
                   confirms = #{} :: #{pid() => [pos_integer()]},
                   rejected = [] :: [#waiting{}],
                   unusable = [] :: [unusable()]}).

%% The batch for these messages; those that are too large for it, or for which there is no room; those
%% whose delay cannot be used; and those, from one of them on, of which it is not known yet if there is
%% room.
-spec build([#waiting{}], rabbit_delay_room:room(), settings()) ->
          {#batch{} | none, Rejected :: [#waiting{}], [unusable()], Left :: [#waiting{}]}.
build(Ws, Room, Settings) ->
    {#building{version = Version, records = Records, messages = Messages, untold = Untold,
               earliest = Earliest, confirms = Confirms, rejected = Rejected,
               unusable = Unusable}, Left} =
        add_all(Ws, #building{settings = Settings, room = Room}),
    case Records of
        [] -> {none, Rejected, Unusable, Left};
        _ -> {#batch{entry = {Version, Earliest, iolist_to_binary(lists:reverse(Records))},
                     messages = Messages, untold = Untold, confirms = Confirms}, Rejected, Unusable, Left}
    end.

add_all([], B) ->
    {B, []};
add_all([W | Rest] = Ws, B) ->
    case add(W, B) of
        no_room -> {B, Ws};
        B1 -> add_all(Rest, B1)
    end.

add(#waiting{dead_letter = restored} = W, B) ->
    add_restored(W, B);
add(#waiting{message = Message} = W, B) ->
    Parsed = rabbit_delay_broker:parsed(Message),
    Headers = rabbit_delay_broker:headers(Parsed),
    Deaths = deaths(W, Parsed, B),
    case use_of_key(W, Parsed, Headers, Deaths, B) of
        {cancel, Key} when Deaths =:= [] ->
            add_record(W, {on_key(cancel), 0, 0, hash(Key, B), <<>>}, at_least(2, B));
        {release, Key} when Deaths =:= [], map_get(releases, B#building.settings) ->
            add_record(W, {on_key(release), 0, 0, hash(Key, B), <<>>},
                       at_least(3, B#building{earliest = earliest(0, B)}));
        {release, _} when Deaths =:= [] ->
            B#building{unusable = [{W, no_releases} | B#building.unusable]};
        Use when Deaths =/= [] ->
            add_if_fits(W, fun ({Encoding, Body}) ->
                                   add_dead_letter(W, Deaths, Use,
                                                   {rabbit_delay_retry:mark(Encoding), Body}, B)
                           end, B);
        Use ->
            case due(W, Headers, B) of
                {unusable, _, _, _} = Why ->
                    B#building{unusable = [{W, Why} | B#building.unusable]};
                Due ->
                    add_if_fits(W, fun (Stored) -> add_message(W, Due, Use, Stored, B) end, B)
            end
    end.

add_if_fits(#waiting{message = Message} = W, Add,
            #building{settings = #{limit := Limit}, room = Room} = B) ->
    {_, Body} = Stored = rabbit_delay_broker:encode(Message),
    Size = byte_size(Body),
    case Size =< Limit andalso rabbit_delay_room:fits(Size, Room) of
        true -> Add(Stored);
        false -> B#building{rejected = [W | B#building.rejected]};
        unknown -> no_room
    end.

hash(Key, #building{settings = #{salt := Salt}}) -> rabbit_delay_key:hash(Salt, Key).

%% As route/2 has judged it: only of what a publisher published to the exchange itself. A dead letter
%% that is retried was, if it had gone to this exchange before it died; another is known, for being
%% cancelled while it waits, by its message_id.
use_of_key(_, Message, Headers, _, #building{settings = #{keys_from := anyone}}) ->
    rabbit_delay_key:asked(Headers, rabbit_delay_broker:message_id(Message));
use_of_key(#waiting{dead_letter = true}, Message, Headers,
           [#{exchange := Name} | _],
           #building{settings = #{exchange := #resource{name = Name}}}) ->
    rabbit_delay_key:asked(Headers, rabbit_delay_broker:message_id(Message));
use_of_key(#waiting{dead_letter = false}, Message, Headers, _,
           #building{settings = #{exchange := XName}}) ->
    case rabbit_delay_retry:is_sent_to(XName, Message) of
        true -> rabbit_delay_key:asked(Headers, rabbit_delay_broker:message_id(Message));
        false -> none
    end;
use_of_key(#waiting{dead_letter = true}, Message, _, [_ | _], _) ->
    rabbit_delay_key:asked(undefined, rabbit_delay_broker:message_id(Message));
use_of_key(_, _, _, _, _) ->
    none.

%% Of a dead letter that the exchange retries.
deaths(#waiting{dead_letter = true}, Message,
       #building{settings = #{exchange := XName, retry := {_, _}}}) ->
    case rabbit_delay_retry:is_sent_to(XName, Message) of
        true -> rabbit_delay_broker:deaths(Message);
        false -> []
    end;
deaths(_, _, _) ->
    [].

%% What the message says of delays and of other messages was meant when it was first published. Its
%% key is still good for cancelling it.
add_dead_letter(W, Deaths, Use, Stored, #building{settings = #{retry := {Plan, HasPlace}}} = B) ->
    Pause = case rabbit_delay_retry:judge(Deaths, Plan) of
                {retry, Attempt} -> rabbit_delay_retry:pause(Attempt, Plan);
                {used_up, Attempt} when not HasPlace -> rabbit_delay_retry:pause(Attempt, Plan);
                _ -> 0
            end,
    add_message(W, {0, Pause, earliest(Pause, B)}, kept(Use), Stored, B).

%% One that was pending before, whatever the exchange's settings say of dead letters now.
add_restored(#waiting{message = Message} = W0, B) ->
    Parsed = rabbit_delay_broker:parsed(Message),
    Headers = rabbit_delay_broker:headers(Parsed),
    W = W0#waiting{dead_letter = true},
    Use = kept(use_of_key(W, Parsed, Headers, rabbit_delay_broker:deaths(Parsed), B)),
    add_if_fits(W, fun ({Encoding, Body}) ->
                           add_message(W, due(W, Headers, B), Use, {rabbit_delay_retry:mark(Encoding), Body}, B)
                   end, B).

kept({OnDuplicate, Key}) when OnDuplicate =:= replace; OnDuplicate =:= drop -> {keep, Key};
kept({What, _}) when What =:= cancel; What =:= release -> none;
kept(Use) -> Use.

earliest(Delay, #building{earliest = {LeastDelay, LeastTime}}) ->
    {min(Delay, LeastDelay), LeastTime}.

add_message(W, {Absolute, When, Earliest}, Use, {Encoding, Body},
            #building{settings = #{now := Now, counters := Counters}, room = Room,
                      messages = Messages} = B0) ->
    rabbit_delay_counters:delay(Counters, When - Absolute * Now),
    B = B0#building{earliest = Earliest, messages = Messages + 1,
                    room = rabbit_delay_room:fill(byte_size(Body), Room)},
    case Use of
        {keep, Key} ->
            add_record(W, {Absolute, Encoding, When, hash(Key, B), Body}, B);
        {OnDuplicate, Key} ->
            add_record(W, {Absolute bor on_key(OnDuplicate), Encoding, When, hash(Key, B), Body},
                       at_least(2, B));
        _ ->
            add_record(W, {Absolute, Encoding, When, 0, Body}, B)
    end.

add_record(#waiting{sender = Sender, seq_no = SeqNo, flow = Flow},
           {Flags, Encoding, When, Key, Body},
           #building{records = Records, confirms = Confirms, untold = Untold} = B) ->
    rabbit_delay_broker:ack_credit(Sender, Flow),
    Header = rabbit_delay_store:record_header(byte_size(Body), Flags, Encoding, When, Key),
    B#building{records = [Body, Header | Records],
               untold = case SeqNo of undefined -> Untold + 1; _ -> Untold end,
               confirms = await_confirm(Sender, SeqNo, Confirms)}.

on_key(replace) -> 1 bsl 1;
on_key(drop) -> 2 bsl 1;
on_key(cancel) -> 3 bsl 1;
on_key(release) -> 4 bsl 1.

at_least(Version, #building{version = Before} = B) -> B#building{version = max(Version, Before)}.

%% What a queue dead-letters is due at once where nothing else can be done with it: that queue may have
%% no other place for it.
due(#waiting{dead_letter = IsDeadLetter}, Headers,
    #building{settings = #{now := Now, default := Default, unusable := Unusable},
              earliest = {LeastDelay, LeastTime}} = B) ->
    MaxDelay = case Unusable of
                   {nack, Max} when not IsDeadLetter -> Max;
                   _ -> ?NO_LIMIT
               end,
    case rabbit_delay_header:due(Headers, Now, MaxDelay, not_given) of
        {delay, Delay} ->
            {0, Delay, earliest(Delay, B)};
        {time, Time} ->
            {1, Time, {LeastDelay, min(Time, LeastTime)}};
        not_given when is_integer(Default) ->
            {0, Default, earliest(Default, B)};
        {unusable, _, _, _} = Why when Unusable =/= now, not IsDeadLetter ->
            Why;
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
