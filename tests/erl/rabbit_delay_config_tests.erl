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
