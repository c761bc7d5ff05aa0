%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_config_tests).

-include_lib("eunit/include/eunit.hrl").

-define(BASE, "/var/lib/rabbitmq/mnesia/rabbit@h").

misplaced_test_() ->
    [?_assertEqual(ok, rabbit_delay_config:misplaced(Dir, ?BASE))
     || Dir <- [?BASE ++ "/quorum/delayed", ?BASE ++ "/x/../quorum/delayed", ?BASE ++ "2/delayed", "/srv/delayed",
                ?BASE ++ "/../delayed", "/var/lib/rabbitmq/mnesia/delayed"]]
        ++ [?_assertMatch({error, <<_/binary>>}, rabbit_delay_config:misplaced(Dir, ?BASE))
            || Dir <- [?BASE, ?BASE ++ "/delayed", ?BASE ++ "/./delayed", ?BASE ++ "/quorum2/delayed",
                       ?BASE ++ "/quorum/../delayed", "/srv/.." ++ ?BASE ++ "/delayed"]].

%% What the broker's reader leaves as text is a number from then on; numbers, and what is not set, stay.
sizes_are_read_once_test() ->
    Keys = [wal_size, in_flight_bytes, max_message_size],
    Before = [{Key, application:get_env(rabbitmq_delay_wheel, Key)} || Key <- Keys],
    try
        application:set_env(rabbitmq_delay_wheel, wal_size, "2048kB"),
        application:set_env(rabbitmq_delay_wheel, in_flight_bytes, 65536),
        application:unset_env(rabbitmq_delay_wheel, max_message_size),
        [begin
             ok = rabbit_delay_config:read_sizes(),
             ?assertEqual([{ok, 2097152}, {ok, 65536}, undefined],
                          [application:get_env(rabbitmq_delay_wheel, Key) || Key <- Keys]),
             ?assertEqual([2097152, 65536, 134217728],
                          [rabbit_delay_config:wal_size(), rabbit_delay_config:in_flight_bytes(),
                           rabbit_delay_config:max_message_size()])
         end || _ <- [1, 2]]
    after
        [case Value of
             {ok, Set} -> application:set_env(rabbitmq_delay_wheel, Key, Set);
             undefined -> application:unset_env(rabbitmq_delay_wheel, Key)
         end || {Key, Value} <- Before]
    end.
