%% SPDX-License-Identifier: MPL-2.0

%% Which file is this machine's native library: the plugin brings one for each processor and C library
%% that it is built for, in priv/PROCESSOR-LIBC. Data only; rabbit_delay_store loads it.
-module(rabbit_delay_library).

-export([files/0, builds/1]).

-define(APP, rabbitmq_delay_wheel).
-define(FILE_NAME, "rabbit_delay_store.so").

%% The files that may be this machine's, the likeliest first.
-spec files() -> [file:filename(), ...].
files() ->
    [filename:join([code:priv_dir(?APP), Build, ?FILE_NAME])
     || Build <- builds(erlang:system_info(system_architecture))].

%% For what Erlang says that it was built for. Where that is not the C library that it runs on, the other
%% one may load.
-spec builds(Architecture :: string()) -> [string(), ...].
builds(Architecture) ->
    [Machine | _] = string:split(Architecture, "-"),
    Libcs = case string:find(Architecture, "musl") of
                nomatch -> ["gnu", "musl"];
                _ -> ["musl", "gnu"]
            end,
    [processor(Machine) ++ "-" ++ Libc || Libc <- Libcs].

processor("amd64") -> "x86_64";
processor("arm64") -> "aarch64";
processor(Machine) -> Machine.
