%% SPDX-License-Identifier: MPL-2.0

%% The plugin's settings: rabbitmq.conf (priv/schema/rabbitmq_delay_wheel.schema), overridden by
%% arguments of an exchange where that makes sense. Units are in the names of the application
%% environment's keys where they are not bytes or counts.
%%
%% It owns nothing: each call reads the application environment, in the process that asks. What is
%% wrong in an exchange's arguments is refused when it is declared (validate/1).
-module(rabbit_delay_config).

-export([read_sizes/0, data_dir/0, misplaced/0, misplaced/2,
         max_delay_ms/0, max_delay_ms/1, unusable_delay/1, max_message_size/0,
         in_flight_messages/1, in_flight_bytes/0, wal_size/0, snapshot_interval/0,
         disk_free_limit/0, appending_bytes/0, max_open_files/1, spare_descriptors/1,
         group_size/0, reconciles/0, reconciliation_interval/0, retry_interval_ms/0, clock_offset_ms/0, now_ms/0, validate/1, arguments/0]).

-define(APP, rabbitmq_delay_wheel).
-define(MIB, 1048576).

-define(MAX_DELAY_MS, 315360000000).
-define(MAX_DELAY_LIMIT_MS, 3153600000000).
-define(IN_FLIGHT_LIMIT, 65535).
-define(GROUP_SIZE, 3).
-define(MIN_OPEN_FILES, 16).
-define(MAX_OPEN_FILES, 65536).

%% Where the Raft log and the stores live. Absolute, or relative to the broker's data directory, of
%% which RabbitMQ 4 deletes what it does not know by name when it moves to Khepri: hence `quorum'.
-spec data_dir() -> file:filename().
data_dir() ->
    Base = rabbit_delay_broker:data_dir(),
    case filename:absname(env(data_dir, "quorum/delayed"), Base) of
        Dir when is_binary(Dir) -> unicode:characters_to_list(Dir);
        Dir -> Dir
    end.

%% The broker's reader of rabbitmq.conf knows KB, MB and GB, and leaves kB to us: what is text becomes a
%% number, before anything is asked here.
-spec read_sizes() -> ok.
read_sizes() ->
    lists:foreach(
      fun (Key) ->
              case application:get_env(?APP, Key) of
                  {ok, Text} when is_list(Text) ->
                      {ok, Bytes} = rabbit_delay_notation:size(list_to_binary(Text)),
                      application:set_env(?APP, Key, Bytes);
                  _ ->
                      ok
              end
      end, [max_message_size, in_flight_bytes, wal_size, snapshot_interval_bytes, disk_free_limit]).

%% Why data_dir/0 is not used: what RabbitMQ 4 would delete is no place to keep messages.
-spec misplaced() -> ok | {error, Why :: binary()}.
misplaced() ->
    misplaced(data_dir(), filename:absname(rabbit_delay_broker:data_dir())).

-spec misplaced(file:filename(), Base :: file:filename()) -> ok | {error, Why :: binary()}.
misplaced(Dir, Base) ->
    Quorum = filename:join(Base, "quorum"),
    case is_below(Dir, Base) andalso not is_below(Dir, Quorum) of
        true ->
            {error, unicode:characters_to_binary(
                      io_lib:format("data directory ~ts (delayed_message.data_dir) is in the broker's own "
                                    "data directory and not below its quorum: RabbitMQ deletes what it "
                                    "finds there when it moves to Khepri. Stop the broker, move it to ~ts "
                                    "or to another place, and set delayed_message.data_dir to that",
                                    [Dir, filename:join(Quorum, filename:basename(Dir))]))};
        false ->
            ok
    end.

is_below(Dir, Base) ->
    lists:suffix(parts(Base), parts(Dir)).

%% The last first, and without dots.
parts(Path) ->
    lists:foldl(fun (".", Parts) -> Parts;
                    ("..", [_ | Parts]) -> Parts;
                    (Part, Parts) -> [Part | Parts]
                end, [], filename:split(unicode:characters_to_list(Path))).

%% The longest delay that a publisher may ask for.
-spec max_delay_ms() -> pos_integer().
max_delay_ms() ->
    env(max_delay, ?MAX_DELAY_MS).

-spec max_delay_ms(rabbit_framing:amqp_table()) -> pos_integer().
max_delay_ms(Args) ->
    case argument(<<"x-delay-max">>, Args, none) of
        none -> max_delay_ms();
        Value -> {ok, Ms} = milliseconds(Value), Ms
    end.

%% What happens to a message whose delay cannot be used: reject (a channel error), nack (its publisher
%% gets one, for this message alone), or route_now.
-spec unusable_delay(rabbit_framing:amqp_table()) -> reject | nack | route_now.
unusable_delay(Args) ->
    case argument(<<"x-delay-unusable">>, Args, env(unusable_delay, reject)) of
        <<"reject">> -> reject;
        <<"nack">> -> nack;
        <<"route_now">> -> route_now;
        Mode -> Mode
    end.

%% The largest message that can be delayed, bytes as stored (its properties included).
-spec max_message_size() -> pos_integer().
max_message_size() ->
    env(max_message_size, 128 * ?MIB).

%% How many released messages may await their target queues' confirms, per exchange.
-spec in_flight_messages(rabbit_framing:amqp_table()) -> pos_integer().
in_flight_messages(Args) ->
    argument(<<"x-delay-in-flight">>, Args, env(in_flight_messages, 4000)).

-spec in_flight_bytes() -> pos_integer().
in_flight_bytes() ->
    env(in_flight_bytes, 32 * ?MIB).

-spec wal_size() -> pos_integer().
wal_size() ->
    env(wal_size, 64 * ?MIB).

%% A snapshot is taken after so many messages or bytes, whichever comes first.
-spec snapshot_interval() -> {Messages :: pos_integer(), Bytes :: pos_integer()}.
snapshot_interval() ->
    {env(snapshot_interval_messages, 100000), env(snapshot_interval_bytes, 32 * ?MIB)}.

%% With less free space than this, bytes, delayed messages are refused. Never less than what is
%% already under way may take: Ra's segment writer does not notice a full disk, and deletes the WAL
%% file whose entries it has failed to write.
-spec disk_free_limit() -> pos_integer().
disk_free_limit() ->
    max(env(disk_free_limit, 0), 2 * wal_size() + 4 * ?MIB).

%% How many bytes of a delay queue's batches may be under way to the log.
-spec appending_bytes() -> pos_integer().
appending_bytes() ->
    max(?MIB, wal_size() div 4).

%% How many members the group of an exchange has that first delays something in a cluster, where neither an
%% argument nor a policy says so: fewer where there are not so many nodes, and always an odd number.
-spec group_size() -> pos_integer().
group_size() ->
    env(initial_group_size, ?GROUP_SIZE).

%% Whether groups get and lose members as the cluster does, and how often it is looked, ms.
-spec reconciles() -> boolean().
reconciles() ->
    env(membership_reconciliation, true).

-spec reconciliation_interval() -> pos_integer().
reconciliation_interval() ->
    env(membership_reconciliation_interval, 5000).

%% How many file descriptors the stores may keep open, of the broker's Limit: never more than half.
-spec max_open_files(Limit :: pos_integer()) -> pos_integer().
max_open_files(Limit) ->
    Default = max(?MIN_OPEN_FILES, min(?MAX_OPEN_FILES, Limit div 4)),
    max(?MIN_OPEN_FILES, min(env(max_open_files, Default), Limit div 2)).

%% With fewer file descriptors than this free of the broker's Limit, no other exchange begins to delay
%% messages.
-spec spare_descriptors(Limit :: pos_integer()) -> pos_integer().
spare_descriptors(Limit) ->
    max(64, Limit div 16).

%% How long a queue that takes nothing is left alone before it is tried with one message: doubled
%% from the first number up to the second.
-spec retry_interval_ms() -> {Min :: pos_integer(), Max :: pos_integer()}.
retry_interval_ms() ->
    Min = env(retry_interval_min, 500),
    {Min, max(Min, env(retry_interval_max, 5000))}.

%% Added to the clock by which messages are released: a seam for tests.
-spec clock_offset_ms() -> integer().
clock_offset_ms() ->
    env(clock_offset_ms, 0).

%% The clock that due times are compared with: the same one that Ra stamps its entries by.
-spec now_ms() -> integer().
now_ms() ->
    erlang:system_time(millisecond) + clock_offset_ms().

%% The exchange arguments that are ours.
-spec arguments() -> [binary()].
arguments() ->
    [<<"x-delay-max">>, <<"x-delay-unusable">>, <<"x-delay-in-flight">>
     | rabbit_delay_policy:arguments()].

%% They are checked when an exchange is declared.
-spec validate(rabbit_framing:amqp_table()) -> ok | {error, Format :: string(), [term()]}.
validate(Args) ->
    first_error(
      [max_delay_argument(<<"x-delay-max">>, Args),
       integer_argument(<<"x-delay-in-flight">>, Args, 1, ?IN_FLIGHT_LIMIT),
       case rabbit_misc:table_lookup(Args, <<"x-delay-unusable">>) of
           undefined -> ok;
           {longstr, <<"reject">>} -> ok;
           {longstr, <<"nack">>} -> ok;
           {longstr, <<"route_now">>} -> ok;
           {_, Other} -> {error, "x-delay-unusable must be \"reject\", \"nack\" or \"route_now\", "
                          "not ~s", [rabbit_delay_text:setting(Other)]}
       end,
       rabbit_delay_policy:validate_arguments(Args)]).

max_delay_argument(Name, Args) ->
    case rabbit_misc:table_lookup(Args, Name) of
        undefined ->
            ok;
        {_, Value} ->
            case milliseconds(Value) of
                {ok, Ms} when Ms >= 1, Ms =< ?MAX_DELAY_LIMIT_MS ->
                    ok;
                _ ->
                    {error, "~s must be a time from 1 to ~b ms (such as 30s, 10m or 2h), not ~s",
                     [Name, ?MAX_DELAY_LIMIT_MS, rabbit_delay_text:setting(Value)]}
            end
    end.

milliseconds(Ms) when is_integer(Ms) -> {ok, Ms};
milliseconds(Text) when is_binary(Text) -> rabbit_delay_notation:interval(Text);
milliseconds(_) -> error.

integer_argument(Name, Args, Min, Max) ->
    case rabbit_misc:table_lookup(Args, Name) of
        undefined ->
            ok;
        {_, N} when is_integer(N), N >= Min, N =< Max ->
            ok;
        {_, Other} ->
            {error, "~s must be an integer from ~b to ~b, not ~s", [Name, Min, Max, rabbit_delay_text:setting(Other)]}
    end.

first_error([]) -> ok;
first_error([ok | Rest]) -> first_error(Rest);
first_error([Error | _]) -> Error.

argument(Name, Args, Default) ->
    case rabbit_misc:table_lookup(Args, Name) of
        {_, Value} -> Value;
        undefined -> Default
    end.

env(Key, Default) ->
    application:get_env(?APP, Key, Default).
