%% SPDX-License-Identifier: MPL-2.0

%% The queues, exchanges, bindings and policies of a broker as one value, whether they come from a
%% running broker or from a definitions file of any broker.
%%
%% It runs in the process that asks, rabbitmqctl's for a file, and owns nothing. An entry that is not as
%% definitions files have it is left out and named; a file is refused only if it has no definitions.
-module(rabbit_delay_topology).

-include_lib("rabbit_common/include/resource.hrl").

-export([of_file/2, of_definitions/2, live/1, vhosts/1]).

-export_type([topology/0, vhost/0, queue/0, exchange/0, binding/0, policy/0]).

%% Larger definitions files are refused: a million queues take some 300 MB.
-define(MAX_FILE_BYTES, (512 * 1024 * 1024)).

-type topology() :: #{source := live | definitions,
                      %% of the broker, as [3, 10, 8]; [] if not known
                      version := [non_neg_integer()],
                      %% whether the broker can dead-letter at least once
                      at_least_once := boolean(),
                      vhosts := #{binary() => vhost()},
                      %% entries of a file that are left out: where, and why
                      odd := [{Where :: binary(), What :: binary()}]}.

-type vhost() :: #{queues := #{binary() => queue()},
                   exchanges := #{binary() => exchange()},
                   bindings := [binding()],
                   policies := [policy()],
                   operator_policies := [policy()],
                   %% the exchanges that have some
                   topic_permissions := [binary()],
                   accepted := [rabbit_delay_doctor_accepted:accepted()]}.

-type queue() :: #{name := binary(), type := classic | quorum | stream | other,
                   durable := boolean(),
                   %% it ends with its consumers or its connection
                   temporary := boolean(),
                   arguments := #{binary() => term()},
                   consumers := non_neg_integer() | unknown,
                   messages := non_neg_integer() | unknown}.

-type exchange() :: #{name := binary(), type := binary(), durable := boolean(),
                      internal => boolean(),
                      arguments := #{binary() => term()}}.

-type binding() :: #{source := binary(), destination := {queue | exchange, binary()},
                     key := binary(), arguments := #{binary() => term()}}.

-type policy() :: #{name := binary(), pattern := binary(), apply_to := binary(),
                    priority := integer(), definition := #{binary() => term()}}.

-spec vhosts(topology()) -> [binary()].
vhosts(#{vhosts := VHosts}) -> lists:sort(maps:keys(VHosts)).

%% ------------------------------------------------------------------------- definitions files

%% Objects without a vhost, as in the export of a single one, are taken to be of DefaultVHost.
-spec of_file(file:name_all(), DefaultVHost :: binary()) -> {ok, topology()} | {error, iodata()}.
of_file(Path, DefaultVHost) ->
    case filelib:file_size(Path) of
        Size when Size > ?MAX_FILE_BYTES ->
            {error, io_lib:format("~ts has ~b bytes; at most ~b are read",
                                  [Path, Size, ?MAX_FILE_BYTES])};
        _ ->
            case file:read_file(Path) of
                {ok, <<>>} -> {error, [Path, " is empty"]};
                {ok, Json} -> of_json(Path, Json, DefaultVHost);
                {error, Reason} -> {error, [Path, ": ", file:format_error(Reason)]}
            end
    end.

of_json(Path, Bytes, DefaultVHost) ->
    case rabbit_delay_definitions:decode(Bytes, ?MAX_FILE_BYTES) of
        {ok, Definitions} ->
            case of_definitions(Definitions, DefaultVHost) of
                {ok, _} = Ok -> Ok;
                {error, Why} -> {error, [Path, ": ", Why]}
            end;
        error ->
            {error, [Path, " is not JSON, or it is cut off"]}
    end.

-spec of_definitions(term(), DefaultVHost :: binary()) -> {ok, topology()} | {error, iodata()}.
of_definitions(#{} = Definitions, DefaultVHost) ->
    {ok, read(Definitions, DefaultVHost)};
of_definitions(_, _) ->
    {error, "the definitions are not a JSON object"}.

read(Definitions, DefaultVHost) ->
    {Types, OddVHosts} = read(fun vhost_default_type/1, <<"vhosts">>, Definitions),
    TypeOf = maps:from_list(Types),
    Each = fun (Read) -> fun (Entry) -> Read(Entry, DefaultVHost) end end,
    Read = [{Kind, read(Reader, Category, Definitions)}
            || {Kind, Category, Reader} <-
                   [{queues, <<"queues">>, fun (Q) -> read_queue(Q, TypeOf, DefaultVHost) end},
                    {exchanges, <<"exchanges">>, Each(fun read_exchange/2)},
                    {bindings, <<"bindings">>, Each(fun read_binding/2)},
                    {policies, <<"policies">>, Each(fun read_policy/2)},
                    {parameters, <<"parameters">>, Each(fun read_parameter/2)},
                    {topic_permissions, <<"topic_permissions">>,
                     Each(fun read_topic_permission/2)}]],
    Parts = [Part || {Kind, {Objects, _}} <- Read, Part <- parts(Kind, Objects)],
    VHosts = case maps:keys(TypeOf) of
                 [] -> [DefaultVHost];
                 Names -> Names
             end,
    Version = broker_version(Definitions),
    #{source => definitions, version => Version,
      at_least_once => Version =:= [] orelse Version >= [3, 10],
      vhosts => assemble(VHosts, Parts),
      odd => OddVHosts ++ lists:append([Odd || {_, {_, Odd}} <- Read])}.

%% Of RabbitMQ; that of another broker says nothing here.
broker_version(#{<<"lavinmq_version">> := _}) ->
    [];
broker_version(Definitions) ->
    version(first([<<"rabbitmq_version">>, <<"rabbit_version">>], Definitions, <<>>)).

parts(parameters, Objects) ->
    [{Kind, [{VHost, Object} || {VHost, {K, Object}} <- Objects, K =:= Kind]}
     || Kind <- [operator_policies, accepted]];
parts(Kind, Objects) ->
    [{Kind, Objects}].

%% What the entries of a category are, and those that are not what they should be.
read(Reader, Category, Definitions) ->
    lists:foldr(fun (Entry, {Good, Odd}) ->
                        try Reader(Entry) of
                            none -> {Good, Odd};
                            Object -> {[Object | Good], Odd}
                        catch
                            throw:{malformed, Where, What} -> {Good, [odd(Where, What) | Odd]}
                        end
                end, {[], not_listed(Category, Definitions)}, entries(Category, Definitions)).

odd(Where, What) ->
    {unicode:characters_to_binary(Where), unicode:characters_to_binary(What)}.

assemble(Names, Parts) ->
    Grouped = lists:foldl(
                fun ({Kind, Objects}, Acc0) ->
                        lists:foldl(fun ({VHost, Object}, Acc) ->
                                            maps:update_with({VHost, Kind},
                                                             fun (Os) -> [Object | Os] end,
                                                             [Object], Acc)
                                    end, Acc0, Objects)
                end, #{}, Parts),
    All = lists:usort(Names ++ [VHost || {VHost, _} <- maps:keys(Grouped)]),
    maps:from_list([{VHost, vhost(fun (Kind) -> maps:get({VHost, Kind}, Grouped, []) end)}
                    || VHost <- All]).

vhost(Objects) ->
    #{queues => by_name(Objects(queues)),
      exchanges => maps:merge(predeclared(), by_name(Objects(exchanges))),
      bindings => Objects(bindings), policies => Objects(policies),
      operator_policies => Objects(operator_policies),
      topic_permissions => Objects(topic_permissions), accepted => Objects(accepted)}.

by_name(Objects) -> maps:from_list([{Name, Object} || #{name := Name} = Object <- Objects]).

%% They are in no definitions file.
predeclared() ->
    by_name([#{name => Name, type => Type, durable => true, arguments => #{}}
             || {Name, Type} <- [{<<>>, <<"direct">>}, {<<"amq.direct">>, <<"direct">>},
                                 {<<"amq.fanout">>, <<"fanout">>}, {<<"amq.topic">>, <<"topic">>},
                                 {<<"amq.headers">>, <<"headers">>},
                                 {<<"amq.match">>, <<"headers">>},
                                 {<<"amq.rabbitmq.trace">>, <<"topic">>}]]).

entries(Category, Definitions) ->
    case Definitions of
        #{Category := List} when is_list(List) ->
            [{where(Category, N), Entry}
             || {N, Entry} <- lists:zip(lists:seq(0, length(List) - 1), List)];
        _ ->
            []
    end.

not_listed(Category, Definitions) ->
    case maps:get(Category, Definitions, []) of
        List when is_list(List) -> [];
        null -> [];
        _ -> [odd(Category, "is not a list")]
    end.

where(Category, N) -> [Category, $[, integer_to_binary(N), $]].

-spec malformed(iodata(), iodata()) -> no_return().
malformed(Where, What) -> throw({malformed, Where, What}).

first([], _, Default) -> Default;
first([Key | Keys], Map, Default) ->
    case Map of
        #{Key := Value} when is_binary(Value) -> Value;
        _ -> first(Keys, Map, Default)
    end.

version(Text) ->
    case re:run(Text, "^(\\d{1,4})\\.(\\d{1,4})(?:\\.(\\d{1,4}))?",
                [{capture, all_but_first, list}]) of
        {match, Numbers} -> [list_to_integer(N) || N <- Numbers];
        nomatch -> []
    end.

vhost_default_type({Where, Entry0}) ->
    Entry = entry(Entry0, Where),
    {text(<<"name">>, Entry, Where),
     case Entry of
         #{<<"default_queue_type">> := Type} when is_binary(Type) -> Type;
         #{<<"metadata">> := #{<<"default_queue_type">> := Type}} when is_binary(Type) -> Type;
         _ -> <<"classic">>
     end}.

read_queue({Where, Entry0}, Types, DefaultVHost) ->
    Entry = entry(Entry0, Where),
    VHost = vhost_of(Where, Entry, DefaultVHost),
    Arguments = object(<<"arguments">>, Entry, Where),
    Type = first([<<"type">>], Entry,
                 first([<<"x-queue-type">>], Arguments, maps:get(VHost, Types, <<"classic">>))),
    {VHost, #{name => text(<<"name">>, Entry, Where), type => queue_type(Type),
              durable => maps:get(<<"durable">>, Entry, true) =:= true,
              temporary => maps:get(<<"auto_delete">>, Entry, false) =:= true
                  orelse maps:get(<<"exclusive">>, Entry, false) =:= true,
              arguments => Arguments, consumers => unknown, messages => unknown}}.

read_exchange({Where, Entry0}, DefaultVHost) ->
    Entry = entry(Entry0, Where),
    {vhost_of(Where, Entry, DefaultVHost),
     #{name => text(<<"name">>, Entry, Where), type => text(<<"type">>, Entry, Where),
       durable => maps:get(<<"durable">>, Entry, true) =:= true,
       arguments => object(<<"arguments">>, Entry, Where)}}.

read_binding({Where, Entry0}, DefaultVHost) ->
    Entry = entry(Entry0, Where),
    Kind = case text(<<"destination_type">>, Entry, Where) of
               <<"queue">> -> queue;
               <<"exchange">> -> exchange;
               _ -> malformed([Where, ".destination_type"], "is neither queue nor exchange")
           end,
    {vhost_of(Where, Entry, DefaultVHost),
     #{source => text(<<"source">>, Entry, Where),
       destination => {Kind, text(<<"destination">>, Entry, Where)},
       key => case Entry of
                  #{<<"routing_key">> := null} -> <<>>;
                  _ -> text(<<"routing_key">>, Entry, Where)
              end,
       arguments => object(<<"arguments">>, Entry, Where)}}.

read_policy({Where, Entry0}, DefaultVHost) ->
    Entry = entry(Entry0, Where),
    {vhost_of(Where, Entry, DefaultVHost),
     policy(text(<<"name">>, Entry, Where), Entry, Where)}.

read_parameter({Where, Entry0}, DefaultVHost) ->
    Entry = entry(Entry0, Where),
    Accepted = rabbit_delay_doctor_accepted:component(),
    case Entry of
        #{<<"component">> := <<"operator_policy">>} ->
            {vhost_of(Where, Entry, DefaultVHost),
             {operator_policies, policy(text(<<"name">>, Entry, Where),
                                        object(<<"value">>, Entry, Where), [Where, ".value"])}};
        #{<<"component">> := Accepted} ->
            case rabbit_delay_doctor_accepted:parse(object(<<"value">>, Entry, Where)) of
                {ok, What} -> {vhost_of(Where, Entry, DefaultVHost), {accepted, What}};
                {error, Why} -> malformed([Where, ".value"], Why)
            end;
        _ ->
            none
    end.

read_topic_permission({Where, Entry0}, DefaultVHost) ->
    Entry = entry(Entry0, Where),
    {vhost_of(Where, Entry, DefaultVHost), text(<<"exchange">>, Entry, Where)}.

policy(Name, Entry, Where) ->
    #{name => Name, pattern => text(<<"pattern">>, Entry, Where),
      apply_to => first([<<"apply-to">>], Entry, <<"all">>),
      priority => case maps:get(<<"priority">>, Entry, 0) of
                      Priority when is_integer(Priority) -> Priority;
                      null -> 0;
                      Priority when is_float(Priority), Priority == trunc(Priority) -> trunc(Priority);
                      _ -> malformed([Where, ".priority"], "is not a whole number")
                  end,
      definition => object(<<"definition">>, Entry, Where)}.

vhost_of(Where, Entry, DefaultVHost) ->
    case Entry of
        #{<<"vhost">> := VHost} when VHost =/= null -> text(<<"vhost">>, Entry, Where);
        _ -> DefaultVHost
    end.

entry(#{} = Entry, _) -> Entry;
entry(_, Where) -> malformed(Where, "is not an object").

text(Key, Entry, Where) ->
    case Entry of
        #{Key := Text} when is_binary(Text) -> Text;
        #{Key := _} -> malformed([Where, $., Key], "is not a string");
        _ -> malformed([Where, $., Key], "is missing")
    end.

object(Key, Entry, Where) ->
    case Entry of
        #{Key := #{} = Object} -> Object;
        %% An empty object, as some brokers write it.
        #{Key := []} -> #{};
        #{Key := null} -> #{};
        #{Key := _} -> malformed([Where, $., Key], "is not an object");
        _ -> #{}
    end.

queue_type(<<"classic">>) -> classic;
queue_type(<<"quorum">>) -> quorum;
queue_type(<<"stream">>) -> stream;
queue_type(<<"rabbit_classic_queue">>) -> classic;
queue_type(<<"rabbit_quorum_queue">>) -> quorum;
queue_type(<<"rabbit_stream_queue">>) -> stream;
queue_type(_) -> other.

%% ----------------------------------------------------------------------------- a live broker

%% These vhosts of the broker that this runs in.
-spec live([rabbit_types:vhost()]) -> topology().
live(VHosts) ->
    Version = version(list_to_binary(rabbit_misc:version())),
    #{source => live, version => Version, odd => [],
      at_least_once => Version >= [4] orelse rabbit_feature_flags:is_enabled(stream_queue),
      vhosts => maps:from_list([{VHost, live_vhost(VHost)} || VHost <- VHosts])}.

live_vhost(VHost) ->
    #{queues => by_name([live_queue(Q) || Q <- rabbit_amqqueue:list(VHost)]),
      exchanges => by_name([live_exchange(X) || X <- rabbit_exchange:list(VHost)]),
      %% Those of the default exchange go without saying.
      bindings => [Binding || B <- rabbit_binding:list(VHost),
                              #{source := Source} = Binding <- [live_binding(B)],
                              Source =/= <<>>],
      policies => [live_policy(P) || P <- rabbit_policy:list(VHost)],
      operator_policies => [live_policy(P) || P <- rabbit_policy:list_op(VHost)],
      topic_permissions => [proplists:get_value(exchange, P)
                            || P <- rabbit_auth_backend_internal:list_vhost_topic_permissions(
                                      VHost)],
      accepted => rabbit_delay_doctor_accepted:of_vhost(VHost)}.

live_queue(Q) ->
    #resource{name = Name} = amqqueue:get_name(Q),
    {Consumers, Messages} = figures(Q),
    #{name => Name, type => queue_type(atom_to_binary(amqqueue:get_type(Q), utf8)),
      durable => amqqueue:is_durable(Q),
      arguments => rabbit_delay_deaths:plain(amqqueue:get_arguments(Q)),
      temporary => amqqueue:is_auto_delete(Q) orelse amqqueue:get_exclusive_owner(Q) =/= none,
      consumers => Consumers, messages => Messages}.

%% Unknown where the queue is down.
figures(Q) ->
    try rabbit_amqqueue:info(Q, [consumers, messages]) of
        [{consumers, Consumers}, {messages, Messages}] -> {known(Consumers), known(Messages)};
        _ -> {unknown, unknown}
    catch
        _:_ -> {unknown, unknown}
    end.

known(N) when is_integer(N) -> N;
known(_) -> unknown.

live_exchange(X) ->
    [{name, #resource{name = Name}}, {type, Type}, {durable, Durable}, {internal, Internal},
     {arguments, Arguments}] =
        rabbit_exchange:info(X, [name, type, durable, internal, arguments]),
    #{name => Name, type => atom_to_binary(Type, utf8), durable => Durable, internal => Internal,
      arguments => rabbit_delay_deaths:plain(Arguments)}.

live_binding(B) ->
    [{source_name, Source}, {destination_name, Destination}, {destination_kind, Kind},
     {routing_key, Key}, {arguments, Arguments}] =
        rabbit_binding:info(B, [source_name, destination_name, destination_kind, routing_key,
                                arguments]),
    #{source => Source, destination => {Kind, Destination}, key => Key,
      arguments => rabbit_delay_deaths:plain(Arguments)}.

live_policy(Policy) ->
    #{name => proplists:get_value(name, Policy),
      pattern => proplists:get_value(pattern, Policy),
      apply_to => proplists:get_value('apply-to', Policy, <<"all">>),
      priority => proplists:get_value(priority, Policy, 0),
      definition => case proplists:get_value(definition, Policy) of
                        #{} = Definition -> Definition;
                        Definition -> maps:from_list(Definition)
                    end}.
