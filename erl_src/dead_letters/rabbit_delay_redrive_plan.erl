%% SPDX-License-Identifier: MPL-2.0

%% Which dead letters of a queue are meant, and where each of them is to go.
%%
%% Pure functions of the message's own history, of a topology and of what is asked for, in the process
%% that redrives. What goes where is found out once for each exchange and key and kept in the plan.
%%
%% No message goes by a history that cannot be true, comes back to the queue at once, or goes to where
%% nobody publishes, nothing is bound, or whoever asks may not publish.
-module(rabbit_delay_redrive_plan).

-export([new/3, check_target/1, decide/2, not_met/1, target_text/2, text/2]).

-export_type([plan/0, target/0, options/0, message/0, decision/0]).

-type target() ::
        %% the queue in which it died last
        origin |
        %% the exchange that it was published to first
        original_exchange |
        {queue, binary()} |
        %% with its first key where none is given
        {exchange, binary(), Key :: binary() | undefined} |
        %% it is taken out
        nowhere.

%% Those of rabbit_delay_redrive:options() that say what is meant.
-type options() :: #{queue := binary(), to := target(), atom() => term()}.

%% As rabbit_delay_browse:message(); proven says whether the broker vouches for its history.
-type message() :: #{exchange := binary(), key := binary(), headers := rabbit_delay_deaths:headers(),
                     proven => boolean(), atom() => term()}.

-type decision() :: {Exchange :: binary(), Key :: binary()}
                  | drop | skipped | no_target | would_loop | unroutable | refused.

%% So many targets and ids are in the log.
-define(LOGGED, 20).

-record(plan, {options :: options(),
               index :: rabbit_delay_dead_letter_routes:index(),
               %% queues whose dead letters come here
               feeders :: #{binary() => true},
               %% as target_text/2 names them
               targets :: all | #{binary() => []},
               %% those that are meant and were not met yet, and how many of each
               ids :: all | #{rabbit_delay_dead_letter:id() => pos_integer()},
               %% exchanges that nobody may publish to
               internal :: #{binary() => true},
               routes = #{} :: #{{binary(), Keys :: [binary(), ...]} =>
                                     ok | would_loop | unroutable | refused}}).

-opaque plan() :: #plan{}.

-spec new(options(), rabbit_delay_topology:vhost(), rabbit_delay_dead_letter_routes:index()) -> plan().
new(#{queue := Queue} = Options, #{exchanges := Exchanges} = Objects, Index) ->
    #plan{options = Options, index = Index,
          targets = case Options of
                        #{targets := Targets} -> maps:from_keys(Targets, []);
                        _ -> all
                    end,
          ids = case Options of
                    #{ids := Ids} -> lists:foldl(fun (Id, N) -> maps:update_with(Id, fun (K) -> K + 1 end, 1, N)
                                                 end, #{}, Ids);
                    _ -> all
                end,
          feeders = rabbit_delay_doctor:feeders(Queue, Objects),
          internal = maps:map(fun (_, _) -> true end,
                              maps:filter(fun (_, X) -> maps:get(internal, X, false) end,
                                          Exchanges))}.

%% A target that is the same for all is looked at before anything is taken.
-spec check_target(plan()) -> ok | {refused, bad_request | forbidden, Why :: iodata()}.
check_target(#plan{options = #{to := To}} = Plan) ->
    check_target(To, Plan).

check_target({queue, Target}, Plan) ->
    check_route(<<>>, Target, Plan);
check_target({exchange, X, _}, #plan{internal = Internal}) when is_map_key(X, Internal) ->
    {refused, bad_request, ["exchange ", exchange(X), " is internal: nobody publishes to it"]};
check_target({exchange, X, Key}, Plan) when Key =/= undefined ->
    check_route(X, Key, Plan);
check_target(_, _) ->
    ok.

check_route(X, Key, #plan{options = #{queue := Queue}} = Plan) ->
    case route(X, [Key], Plan) of
        {ok, _} ->
            ok;
        {would_loop, _} ->
            {refused, bad_request, ["messages would come back to ", name(Queue), " at once"]};
        {unroutable, _} ->
            {refused, bad_request,
             ["no queue is there for exchange ", exchange(X), " and key ", name(Key)]};
        {refused, _} ->
            {refused, forbidden, ["no permission to publish to exchange ", exchange(X),
                                  " with key ", name(Key)]}
    end.

name(Name) -> [$", rabbit_delay_text:escaped(Name), $"].

exchange(Name) -> [$", rabbit_delay_text:exchange(Name), $"].

route(X, Keys, #plan{routes = Routes, index = Index, options = #{queue := Queue} = Options} = Plan) ->
    case Routes of
        #{{X, Keys} := Known} ->
            {Known, Plan};
        _ ->
            Reached = reached(X, Keys, Index),
            Route = case Reached of
                        _ when is_map_key(X, Plan#plan.internal) -> refused;
                        #{Queue := _} -> would_loop;
                        _ when map_size(Reached) =:= 0 -> unroutable;
                        _ ->
                            case Options of
                                #{may_publish := May} ->
                                    case lists:all(fun (Key) -> May(X, Key) end, Keys) of
                                        true -> ok;
                                        false -> refused
                                    end;
                                _ ->
                                    ok
                            end
                    end,
            {Route, Plan#plan{routes = Routes#{{X, Keys} => Route}}}
    end.

reached(X, Keys, Index) ->
    lists:foldl(fun (Key, Acc) -> maps:merge(Acc, rabbit_delay_doctor:reaches_at_once(X, Key, Index)) end,
                #{}, Keys).

%% What is to become of a message.
-spec decide(message(), plan()) -> {decision(), plan()}.
decide(Message, #plan{ids = all} = Plan) ->
    decide_meant(Message, Plan);
decide(_, #plan{ids = Ids} = Plan) when map_size(Ids) =:= 0 ->
    {skipped, Plan};
decide(Message, #plan{ids = Ids} = Plan) ->
    Id = rabbit_delay_dead_letter:id(Message),
    case maps:take(Id, Ids) of
        {1, Others} -> decide_meant(Message, Plan#plan{ids = Others});
        {N, Others} -> decide_meant(Message, Plan#plan{ids = Others#{Id => N - 1}});
        error -> {skipped, Plan}
    end.

%% Of those that are meant by their ids, how many were not among what was decided on.
-spec not_met(plan()) -> non_neg_integer() | infinity.
not_met(#plan{ids = all}) -> infinity;
not_met(#plan{ids = Ids}) -> lists:sum(maps:values(Ids)).

decide_meant(#{headers := Headers} = Message, #plan{options = #{to := To} = Options} = Plan0) ->
    {Deaths, _} = rabbit_delay_deaths:history(Headers),
    case matches(Options, Deaths, Headers) of
        false ->
            {skipped, Plan0};
        true when To =:= nowhere ->
            {drop, Plan0};
        true ->
            case believed(To, target(To, Deaths, Message), Deaths, Message, Plan0) of
                {X, Key} ->
                    case route(X, [Key | copies(To, Message)], Plan0) of
                        {ok, Plan} -> {shown(X, Key, Plan), Plan};
                        {Not, Plan} -> {Not, Plan}
                    end;
                none ->
                    {no_target, Plan0}
            end
    end.

%% The keys that it keeps besides.
copies(original_exchange, #{headers := Headers}) -> rabbit_delay_deaths:copies(Headers);
copies(_, _) -> [].

%% Clients can write a history. Where the broker does not vouch for it, it must be one that can be true:
%% what dies in that queue comes here, and what is published to that exchange with those keys gets to the
%% queue where it died first.
believed(To, Target, Deaths, Message, #plan{feeders = Feeders, index = Index})
  when To =:= origin; To =:= original_exchange ->
    case {Target, maps:get(proven, Message, unknown)} of
        {none, _} -> none;
        {_, true} -> Target;
        {_, false} -> none;
        {{X, Key}, unknown} ->
            [#{queue := Last} | _] = Deaths,
            #{queue := First} = lists:last(Deaths),
            #{queues := Queues} = Index,
            %% A queue that is not there is unroutable, whoever names it.
            case (is_map_key(Last, Feeders) orelse not is_map_key(Last, Queues))
                andalso (To =:= origin orelse
                         is_map_key(First, reached(X, [Key | copies(To, Message)], Index))) of
                true -> Target;
                false -> none
            end
    end;
believed(_, Target, _, _, _) ->
    Target.

shown(X, Key, #plan{targets = all}) ->
    {X, Key};
shown(X, Key, #plan{targets = Targets}) ->
    case is_map_key(target_text(X, Key), Targets) of
        true -> {X, Key};
        false -> no_target
    end.

matches(Options, Deaths, Headers) ->
    Last = rabbit_delay_deaths:last(Deaths),
    Age = case Deaths of
              [#{time := _} | _] ->
                  erlang:system_time(second)
                      - lists:max([maps:get(time, Death, 0) || Death <- Deaths]);
              _ ->
                  unknown
          end,
    lists:all(fun ({reason, Reason}) -> maps:get(reason, Last, none) =:= Reason;
                  ({origin, Queue}) -> maps:get(queue, Last, none) =:= Queue;
                  ({header, {Name, Value}}) -> header_text(maps:get(Name, Headers, none)) =:= Value;
                  ({older_than, Seconds}) -> is_integer(Age) andalso Age > Seconds;
                  ({newer_than, Seconds}) -> is_integer(Age) andalso Age =< Seconds;
                  (_) -> true
              end, maps:to_list(Options)).

header_text(Value) when is_binary(Value) -> Value;
header_text(Value) when is_integer(Value) -> integer_to_binary(Value);
header_text(Value) when is_boolean(Value) -> atom_to_binary(Value, utf8);
header_text(_) -> none.

target({queue, Queue}, _, _) -> {<<>>, Queue};
target({exchange, X, undefined}, Deaths, Message) -> {X, first_key(Deaths, Message)};
target({exchange, X, Key}, _, _) -> {X, Key};
target(origin, [#{queue := Queue} | _], _) -> {<<>>, Queue};
target(original_exchange, [_ | _] = Deaths, #{headers := Headers} = Message) ->
    case rabbit_delay_deaths:first(Headers) of
        #{exchange := X} -> {X, first_key(Deaths, Message)};
        _ -> none
    end;
target(_, [], _) -> none.

first_key(Deaths, #{key := Key}) ->
    rabbit_delay_deaths:first_key(Deaths, Key).

%% A target as people and results name it.
-spec target_text(Exchange :: binary(), Key :: binary()) -> binary().
target_text(<<>>, Key) -> rabbit_delay_text:printable(["queue ", Key]);
target_text(X, Key) -> rabbit_delay_text:printable(["exchange ", X, " key ", Key]).

%% What is asked for, for the log.
-spec text(options(), Targets :: [binary()]) -> iolist().
text(Options, Targets) ->
    [case Options of
         #{ids := Ids} -> io_lib:format("~b of them (~ts) ", [length(Ids), shortened(Ids)]);
         _ -> ""
     end,
     case {Options, Targets} of
         {#{to := nowhere}, _} -> "to be dropped";
         {_, []} -> "to be redriven to nowhere";
         _ -> ["to be redriven to ", shortened(Targets)]
     end,
     case Options of
         #{edit := {Edit, _}} -> [" with another ", rabbit_delay_dead_letter:edit_text(Edit)];
         _ -> ""
     end].

shortened(Texts) ->
    lists:join(", ", [rabbit_delay_text:escaped(T) || T <- lists:sublist(Texts, ?LOGGED)])
        ++ [", ..." || length(Texts) > ?LOGGED].
