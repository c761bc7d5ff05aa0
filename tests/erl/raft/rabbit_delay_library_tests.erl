%% SPDX-License-Identifier: MPL-2.0

%% Which library is looked for on which machine.
-module(rabbit_delay_library_tests).

-include_lib("eunit/include/eunit.hrl").

%% As Debian, RabbitMQ's images, Alpine and others' packages of Erlang say it.
builds_test_() ->
    [{Said, ?_assertEqual(Builds, rabbit_delay_library:builds(Said))}
     || {Said, Builds} <- [{"x86_64-pc-linux-gnu", ["x86_64-gnu", "x86_64-musl"]},
                           {"x86_64-redhat-linux-gnu", ["x86_64-gnu", "x86_64-musl"]},
                           {"x86_64-unknown-linux-gnu", ["x86_64-gnu", "x86_64-musl"]},
                           {"amd64-linux", ["x86_64-gnu", "x86_64-musl"]},
                           {"x86_64-pc-linux-musl", ["x86_64-musl", "x86_64-gnu"]},
                           {"x86_64-alpine-linux-musl", ["x86_64-musl", "x86_64-gnu"]},
                           {"aarch64-unknown-linux-gnu", ["aarch64-gnu", "aarch64-musl"]},
                           {"arm64-linux", ["aarch64-gnu", "aarch64-musl"]},
                           {"aarch64-alpine-linux-musl", ["aarch64-musl", "aarch64-gnu"]},
                           {"riscv64-unknown-linux-gnu", ["riscv64-gnu", "riscv64-musl"]}]].

this_machines_is_there_test() ->
    [First | _] = rabbit_delay_library:files(),
    ?assert(filelib:is_regular(First)).
