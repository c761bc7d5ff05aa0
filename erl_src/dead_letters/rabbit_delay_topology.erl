%% SPDX-License-Identifier: MPL-2.0

%% The queues, exchanges, bindings and policies of a broker as one value, whether they come from a
%% running broker or from a definitions file of any broker.
%%
%% It runs in the process that asks, rabbitmqctl's for a file, and owns nothing. What is not as a
%% definitions file has it is refused with what it is.
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
                      vhosts := #{binary() => vhost()}}.

-type vhost() :: #{queues := #{binary() => queue()},
                   exchanges := #{binary() => exchange()},
                   bindings := [binding()],
                   policies := [policy()],
                   operator_policies := [policy()],
                   %% the exchanges that have some
                   topic_permissions := [binary()]}.

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

of_json(Path, Json, DefaultVHost) ->
    case rabbit_json:try_decode(Json) of
        {ok, Definitions} ->
            case of_definitions(Definitions, DefaultVHost) of
                {ok, _} = Ok -> Ok;
                {error, Why} -> {error, [Path, ": ", Why]}
            end;
        {error, _} ->
            {error, [Path, " is not JSON, or it is cut off"]}
    end.

-spec of_definitions(term(), DefaultVHost :: binary()) -> {ok, topology()} | {error, iodata()}.
of_definitions(#{} = Definitions, DefaultVHost) ->
    try
        {ok, read(Definitions, DefaultVHost)}
    catch
        throw:{malformed, Where, What} -> {error, [Where, " ", What]}
    end;
of_definitions(_, _) ->
    {error, "the definitions are not a JSON object"}.

read(Definitions, DefaultVHost) ->
    Version = version(first([<<"rabbitmq_version">>, <<"rabbit_version">>], Definitions, <<>>)),
    Types = maps:from_list([vhost_default_type(V) || V <- entries(<<"vhosts">>, Definitions)]),
    Parts = [{queues, [read_queue(Q, Types, DefaultVHost)
                       || Q <- entries(<<"queues">>, Definitions)]},
             {exchanges, [read_exchange(X, DefaultVHost)
                          || X <- entries(<<"exchanges">>, Definitions)]},
             {bindings, [read_binding(B, DefaultVHost)
                         || B <- entries(<<"bindings">>, Definitions)]},
             {policies, [read_policy(P, DefaultVHost)
                         || P <- entries(<<"policies">>, Definitions)]},
             {operator_policies, [read_operator_policy(P, DefaultVHost)
                                  || {_, #{<<"component">> := <<"operator_policy">>}} = P
                                         <- entries(<<"parameters">>, Definitions)]},
             {topic_permissions, [read_topic_permission(P, DefaultVHost)
                                  || P <- entries(<<"topic_permissions">>, Definitions)]}],
    VHosts = case maps:keys(Types) of
                 [] -> [DefaultVHost];
                 Names -> Names
             end,
    #{source => definitions, version => Version,
      at_least_once => Version =:= [] orelse Version >= [3, 10],
      vhosts => assemble(VHosts, Parts)}.

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
      topic_permissions => Objects(topic_permissions)}.

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
            [case Entry of
                 #{} -> {where(Category, N), Entry};
                 _ -> malformed(where(Category, N), "is not an object")
             end || {N, Entry} <- lists:zip(lists:seq(0, length(List) - 1), List)];
        #{Category := _} ->
            malformed(Category, "is not a list");
        _ ->
            []
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

vhost_default_type({Where, Entry}) ->
    {text(<<"name">>, Entry, Where),
     case Entry of
         #{<<"default_queue_type">> := Type} when is_binary(Type) -> Type;
         #{<<"metadata">> := #{<<"default_queue_type">> := Type}} when is_binary(Type) -> Type;
         _ -> <<"classic">>
     end}.

read_queue({Where, Entry}, Types, DefaultVHost) ->
    VHost = vhost_of(Where, Entry, DefaultVHost),
    Arguments = object(<<"arguments">>, Entry, Where),
    Type = first([<<"type">>], Entry,
                 first([<<"x-queue-type">>], Arguments, maps:get(VHost, Types, <<"classic">>))),
    {VHost, #{name => text(<<"name">>, Entry, Where), type => queue_type(Type),
              durable => maps:get(<<"durable">>, Entry, true) =:= true,
              temporary => maps:get(<<"auto_delete">>, Entry, false) =:= true
                  orelse maps:get(<<"exclusive">>, Entry, false) =:= true,
              arguments => Arguments, consumers => unknown, messages => unknown}}.

read_exchange({Where, Entry}, DefaultVHost) ->
    {vhost_of(Where, Entry, DefaultVHost),
     #{name => text(<<"name">>, Entry, Where), type => text(<<"type">>, Entry, Where),
       durable => maps:get(<<"durable">>, Entry, true) =:= true,
       arguments => object(<<"arguments">>, Entry, Where)}}.

read_binding({Where, Entry}, DefaultVHost) ->
    Kind = case text(<<"destination_type">>, Entry, Where) of
               <<"queue">> -> queue;
               <<"exchange">> -> exchange;
               _ -> malformed([Where, ".destination_type"], "is neither queue nor exchange")
           end,
    {vhost_of(Where, Entry, DefaultVHost),
     #{source => text(<<"source">>, Entry, Where),
       destination => {Kind, text(<<"destination">>, Entry, Where)},
       key => text(<<"routing_key">>, Entry, Where),
       arguments => object(<<"arguments">>, Entry, Where)}}.

read_policy({Where, Entry}, DefaultVHost) ->
    {vhost_of(Where, Entry, DefaultVHost),
     policy(text(<<"name">>, Entry, Where), Entry, Where)}.

read_operator_policy({Where, Entry}, DefaultVHost) ->
    {vhost_of(Where, Entry, DefaultVHost),
     policy(text(<<"name">>, Entry, Where), object(<<"value">>, Entry, Where),
            [Where, ".value"])}.

read_topic_permission({Where, Entry}, DefaultVHost) ->
    {vhost_of(Where, Entry, DefaultVHost), text(<<"exchange">>, Entry, Where)}.

policy(Name, Entry, Where) ->
    #{name => Name, pattern => text(<<"pattern">>, Entry, Where),
      apply_to => first([<<"apply-to">>], Entry, <<"all">>),
      priority => case maps:get(<<"priority">>, Entry, 0) of
                      Priority when is_integer(Priority) -> Priority;
                      _ -> malformed([Where, ".priority"], "is not a whole number")
                  end,
      definition => object(<<"definition">>, Entry, Where)}.

vhost_of(Where, Entry, DefaultVHost) ->
    case Entry of
        #{<<"vhost">> := _} -> text(<<"vhost">>, Entry, Where);
        _ -> DefaultVHost
    end.

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
    #{source => live, version => Version,
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
                                      VHost)]}.

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
