%% SPDX-License-Identifier: MPL-2.0

%% Where a due message goes, by the exchange's settings and bindings as they are now: to the queues
%% that it is routed to, or that it died in, or to those of a dead-letter or a parking exchange; to
%% nobody; or nowhere for now.
%%
%% Called by the dispatcher, in its process, once for a message that is released. It changes nothing
%% and keeps nothing: it reads the broker's metadata, and makes the message that the queues get.
-module(rabbit_delay_destinations).

-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay_in_flight.hrl").

-export([how/4, find/4]).
-export([verdict/3, attempts/1]).

-type queues() :: [rabbit_delay_broker:queue() | {absent, rabbit_amqqueue:name()}].

%% What is to become of a message as stored, that no queue has yet: if it is later than the exchange
%% wants it, what its settings say of that.
-spec how(rabbit_delay_store:ms(), Encoding :: non_neg_integer(), rabbit_delay_policy:overdue(),
          Now :: rabbit_delay_store:ms()) -> drop | rabbit_delay_in_flight:how().
how(Due, _, {drop, After}, Now) when Now - Due > After ->
    drop;
how(Due, _, {dead_letter, After}, Now) when Now - Due > After ->
    {dead_lettered, overdue};
how(_, Encoding, _, _) ->
    case rabbit_delay_retry:is_marked(Encoding) of
        true -> returned;
        false -> released
    end.

%% The queues that it goes to, those that have it already among them, and what they get. Where none
%% is left, nobody gets it, which may be worth a warning; or it is to be kept until there is one.
-spec find(rabbit_delay_broker:message(), rabbit_delay_in_flight:message(),
           rabbit_delay_broker:exchange(), rabbit_delay_retry:plan() | none) ->
          {queues(), rabbit_delay_broker:message(), rabbit_delay_in_flight:message()} |
          {nobody, rabbit_delay_in_flight:message(), rabbit_delay_warnings:warning()} |
          {kept, rabbit_delay_in_flight:message(), rabbit_delay_warnings:warning()}.
find(Message0, #in_flight{how = returned} = InFlight, X, Plan) ->
    Message = rabbit_delay_broker:uncounted(rabbit_delay_broker:released(Message0)),
    case rabbit_delay_broker:deaths(Message) of
        [] -> find(Message, InFlight#in_flight{how = released}, X, Plan);
        Deaths -> give_back(Deaths, Message, InFlight, X, Plan)
    end;
find(Message0, #in_flight{how = {parked, Why}} = InFlight, X, Plan) ->
    park(Why, rabbit_delay_broker:uncounted(rabbit_delay_broker:released(Message0)), InFlight, X,
         Plan);
find(Message0, #in_flight{how = How, settled = Already} = InFlight, X, _) ->
    Message = rabbit_delay_broker:released(Message0),
    case How =:= released andalso rabbit_delay_broker:route(X, Message) of
        [_ | _] = Qs ->
            {Qs, Message, InFlight};
        [] when Already =/= [] ->
            {[], Message, InFlight};
        [] ->
            dead_letter(Message, InFlight#in_flight{how = {dead_lettered, unroutable}}, X);
        false ->
            dead_letter(Message, InFlight, X)
    end.

%% A dead letter, by what the exchange's settings are now.
give_back([#{queue := Name} = Death | _] = Deaths, Message, #in_flight{settled = Already} = InFlight,
          X, Plan) ->
    case verdict(Deaths, Plan, fun () -> places(X, Plan) =/= [] end) of
        queue ->
            XName = rabbit_delay_broker:exchange_name(X),
            case rabbit_delay_broker:queue_named(XName#resource{kind = queue, name = Name}) of
                [] -> park(queue_gone, Message, InFlight, X, Plan);
                Qs -> {Qs, rabbit_delay_broker:returned(Message, Death), InFlight}
            end;
        exchange ->
            case rabbit_delay_broker:route(X, Message) of
                [] when Already =:= [] -> park(unroutable, Message, InFlight, X, Plan);
                Qs -> {Qs, Message, InFlight}
            end;
        {park, Why} ->
            park(Why, Message, InFlight, X, Plan)
    end.

%% Whether it comes back, and where to. One whose attempts are used up does, if there is no place for
%% it; and so do all, if the settings say nothing of retries any more.
-spec verdict([rabbit_delay_deaths:death()], rabbit_delay_retry:plan() | none,
              HasPlace :: fun(() -> boolean())) ->
          queue | exchange | {park, rabbit_delay_in_flight:parked_because()}.
verdict(Deaths, Plan, HasPlace) ->
    case Plan =/= none andalso rabbit_delay_retry:judge(Deaths, Plan) of
        not_retried ->
            {park, not_retried};
        {used_up, _} ->
            case HasPlace() of
                true -> {park, attempts_used_up};
                false -> queue
            end;
        {retry, _} when map_get(to, Plan) =:= exchange ->
            exchange;
        _ ->
            queue
    end.

%% Where dead letters go that do not come back, best first.
places(X, Plan) ->
    Parking = case Plan of
                  #{parking := {_, _} = Configured} -> [Configured];
                  _ -> []
              end,
    Parking ++ dead_letter_places(X).

dead_letter_places(X) ->
    case rabbit_delay_policy:dead_letter_exchange(X) of
        none -> [];
        Place -> [Place]
    end.

%% Where there is a place, and no queue takes it there, it is kept until one does: somebody has to
%% look into that.
park(Why, Message0, #in_flight{due = Due, settled = Already} = InFlight0, X, Plan) ->
    InFlight = InFlight0#in_flight{how = {parked, Why}},
    XName = rabbit_delay_broker:exchange_name(X),
    [#{queue := Queue} | _] = Deaths = rabbit_delay_broker:deaths(Message0),
    Places = places(X, Plan),
    case put_aside(Places, Message0, XName,
                   death(Why, XName, Due) ++
                       [{<<"x-delay-death-queue">>, longstr, Queue},
                        {<<"x-delay-death-count">>, long, attempts(Deaths)},
                        {<<"x-delay-death-time">>, long, rabbit_delay_config:now_ms()}]) of
        {Qs, Message} ->
            {Qs, Message, InFlight};
        none when Places =:= [], Already =:= [] ->
            {nobody, InFlight,
             {dropped, "a dead letter of queue '~ts' is dropped by ~ts (~s): the exchange has no "
              "parking exchange and no dead-letter exchange",
              [rabbit_delay_text:escaped(Queue), rabbit_delay_text:rs(XName), Why]}};
        none when Already =:= [] ->
            {Place, _} = hd(Places),
            {kept, InFlight,
             {kept, "a dead letter of queue '~ts' cannot be parked by ~ts (~s) and is kept: "
              "exchange '~ts' has no queue for it",
              [rabbit_delay_text:escaped(Queue), rabbit_delay_text:rs(XName), Why,
               rabbit_delay_text:exchange(Place)]}};
        none ->
            {[], Message0, InFlight}
    end.

%% How often it has died in the queue that it died in last, for whatever reason.
-spec attempts([rabbit_delay_deaths:death(), ...]) -> integer().
attempts([#{queue := Queue} | _] = Deaths) ->
    lists:sum([maps:get(count, Death, 1) || #{queue := Q} = Death <- Deaths, Q =:= Queue]).

%% To the dead-letter exchange's queues, if there is one; it says why, and when it was due.
dead_letter(Message0, #in_flight{how = {_, Reason}, due = Due} = InFlight, X) ->
    XName = rabbit_delay_broker:exchange_name(X),
    case put_aside(dead_letter_places(X), Message0, XName, death(Reason, XName, Due)) of
        none -> {[], Message0, InFlight};
        {Qs, Message} -> {Qs, Message, InFlight}
    end.

%% What says in a message why, by whom, and due when it was put aside.
death(Reason, #resource{name = Name}, Due) ->
    [{<<"x-delay-death-reason">>, longstr, atom_to_binary(Reason, utf8)},
     {<<"x-delay-death-exchange">>, longstr, Name},
     {<<"x-delay-death-due">>, long, Due}].

%% The queues of the first of these exchanges that has some for it, and what they get.
put_aside([], _, _, _) ->
    none;
put_aside([{Name, Key} | Places], Message0, XName, Headers) ->
    case rabbit_delay_broker:lookup_exchange(XName#resource{name = Name}) of
        {ok, X} ->
            Message = rabbit_delay_broker:dead_lettered(Message0, Name, Key, Headers),
            case rabbit_delay_broker:route(X, Message) of
                [] -> put_aside(Places, Message0, XName, Headers);
                Qs -> {Qs, Message}
            end;
        {error, not_found} ->
            put_aside(Places, Message0, XName, Headers)
    end.
