%% SPDX-License-Identifier: MPL-2.0

%% Whether this build serves the broker that it runs in, and which functions this broker has of those
%% that some of the series that it serves lack.
%%
%% Looked at once, by a boot step (rabbit_delay_sup), and kept in persistent terms: whoever asks reads
%% one. The series that are known stand in the application's environment, known_series.
%%
%% An archive may be put into a broker that it is not for, on an Erlang that loads few of its modules:
%% this one, as rabbit_delay_sup, has to be loaded by all, and matches no binaries and updates no
%% records.
-module(rabbit_delay_series).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([look/0, takes_part/0, status/0, has/1]).
-export_type([status/0]).
-export([varying/0, verdict/3, missing/2]).
-export([log_no_part/1]).

-define(APP, rabbitmq_delay_wheel).
-define(ADAPTER, rabbit_delay_broker).
-define(KEY(What), {?MODULE, What}).

%% In a boot it is said a second time: of more than 500 events in a second the broker's log drops the rest, and
%% each module that does not load is told of in six.
-define(AGAIN_MS, 3000).

%% Whether the plugin takes part in this broker; or cannot; or its archive is not for this broker at all,
%% and few of its modules may be loaded.
-type status() :: ok | {unable | wrong, Why :: string()}.

%% Functions of the broker that not all of the series have. Each is called only where has/1 says that
%% it is there; tests/static/broker_calls holds this list against the sources of each series.
-spec varying() -> [mfa()].
varying() ->
    [{amqqueue, make_internal, 2},
     {rabbit_amqp_util, protocol_error, 3},
     {rabbit_amqqueue, lookup_many, 1},
     {rabbit_db_queue, get_targets, 1},
     {rabbit_db_topic_exchange, set, 1}].

%% Cheap. Before the boot step, as in a test, it is looked up.
-spec has(mfa()) -> boolean().
has(Function) ->
    case persistent_term:get(?KEY(Function), unknown) of
        unknown -> is_there(Function);
        Has -> Has
    end.

-spec takes_part() -> boolean().
takes_part() ->
    status() =:= ok.

-spec status() -> status().
status() ->
    persistent_term:get(?KEY(status), ok).

%% At boot the broker must not fail because of us. Enabling at run time is refused.
-spec look() -> ok.
look() ->
    _ = [persistent_term:put(?KEY(Function), is_there(Function)) || Function <- varying()],
    {ok, Version} = application:get_key(rabbit, vsn),
    {ok, Known} = application:get_env(?APP, known_series),
    IsAllowed = application:get_env(?APP, allow_untested_series, false),
    case verdict(Version, Known, IsAllowed) of
        ok -> look_at_calls(Version, is_known(Version, Known));
        Status -> take_no_part(Status)
    end.

look_at_calls(Version, IsKnown) ->
    {ok, Ours} = application:get_key(?APP, modules),
    Callers = case IsKnown of
                  true -> [?ADAPTER];
                  false -> Ours
              end,
    case missing(Callers, Ours) of
        [] ->
            persistent_term:put(?KEY(status), ok),
            _ = IsKnown orelse
                ?LOG_WARNING("rabbitmq_delay_wheel has not been tested with RabbitMQ ~ts; it takes part, "
                             "as delayed_message.allow_untested_series is true", [Version],
                             ?LOG_DOMAIN),
            ok;
        Missing ->
            lists:foreach(fun ({M, F, A}) ->
                                  ?LOG_ERROR("rabbitmq_delay_wheel needs ~p:~p/~b, which RabbitMQ ~ts "
                                             "does not have", [M, F, A, Version], ?LOG_DOMAIN)
                          end, Missing),
            take_no_part({unable, format("RabbitMQ ~ts lacks ~s that it calls, as the log says",
                                         [Version, rabbit_delay_text:count(length(Missing), "function")])})
    end.

take_no_part({_, Why} = Status) ->
    persistent_term:put(?KEY(status), Status),
    ok = log_no_part(Why),
    case rabbit:is_booted() of
        true ->
            throw({error, format("rabbitmq_delay_wheel does not take part: ~ts", [Why])});
        false ->
            {ok, _} = timer:apply_after(?AGAIN_MS, ?MODULE, log_no_part, [Why]),
            ok
    end.

-spec log_no_part(Why :: string()) -> ok.
log_no_part(Why) ->
    ?LOG_ERROR("rabbitmq_delay_wheel does not take part in this broker: ~ts", [Why], ?LOG_DOMAIN).

%% Of a broker's version, of the series that are known, in ascending order.
-spec verdict(Version :: string(), Known :: [string(), ...], IsAllowed :: boolean()) -> status().
verdict(Version, Known, IsAllowed) ->
    Series = series(Version),
    IsLater = Series > series(lists:last(Known)),
    case is_known(Version, Known) of
        true ->
            ok;
        false when IsLater, IsAllowed ->
            ok;
        false when IsLater ->
            {unable, format("it is tested up to RabbitMQ ~s, not with ~ts; "
                            "delayed_message.allow_untested_series = true lets it try",
                            [lists:last(Known), Version])};
        false ->
            {wrong, format("this archive is not for RabbitMQ ~ts but for ~s",
                           [Version, lists:join(", ", Known)])}
    end.

is_known(Version, Known) ->
    lists:member(series(Version), [series(Name) || Name <- Known]).

series(Version) ->
    [Major, Minor | _] = string:lexemes(Version, ".-+"),
    {list_to_integer(Major), list_to_integer(Minor)}.

%% What these modules of Ours call and this broker does not have, but for what is asked for before. Of
%% modules that are not there at all only those count that the adapter calls: others are of plugins that
%% need not be enabled.
-spec missing(Callers :: [module()], Ours :: [module()]) -> [mfa()].
missing(Callers, Ours) ->
    Called = lists:usort([{Caller =:= ?ADAPTER, Function}
                          || Caller <- Callers, {Module, _, _} = Function <- imports(Caller),
                             not lists:member(Module, Ours)]),
    lists:usort([Function || {IsNeeded, {Module, _, _} = Function} <- Called,
                             not is_there(Function), not lists:member(Function, varying()),
                             IsNeeded orelse code:which(Module) =/= non_existing]).

imports(Module) ->
    case beam_lib:chunks(code:which(Module), [imports]) of
        {ok, {Module, [{imports, Functions}]}} -> Functions;
        {error, beam_lib, _} -> []
    end.

is_there({Module, Name, Arity}) ->
    _ = code:ensure_loaded(Module),
    erlang:function_exported(Module, Name, Arity).

format(Format, Args) ->
    lists:flatten(io_lib:format(Format, Args)).
