#!/usr/bin/env escript
%% SPDX-License-Identifier: MPL-2.0
%% series.escript SOURCES PLUGINS DEFINES...: compiles the plugin with this Erlang against a broker's
%% plugins folder, its behaviours included, and looks for calls of what that broker does not have.
-mode(compile).

main([Sources, Plugins | Defines]) ->
    Out = filename:join(Sources, "out"),
    ok = filelib:ensure_path(Out),
    Libraries = filelib:wildcard(filename:join([Plugins, "*", "ebin"])),
    ok = code:add_pathsz(Libraries),
    Options = [debug_info, warnings_as_errors, report, {outdir, Out},
               {i, filename:join(Sources, "include")} | [{d, list_to_atom(D)} || D <- Defines]],
    Files = [_ | _] = filelib:wildcard(filename:join([Sources, "erl_src", "**", "rabbit*.erl"])),
    Failed = [File || File <- Files, compile:file(File, Options) =:= error],
    {ok, _} = xref:start(?MODULE, [{xref_mode, functions}]),
    ok = xref:set_library_path(?MODULE, Libraries ++ filelib:wildcard(
                                          filename:join([code:lib_dir(), "*", "ebin"]))),
    {ok, _} = xref:add_directory(?MODULE, Out),
    {ok, Undefined} = xref:analyze(?MODULE, undefined_function_calls),
    [io:format("~p:~p/~p calls ~p:~p/~p, which does not exist~n",
               tuple_to_list(From) ++ tuple_to_list(To)) || {From, To} <- Undefined],
    halt(case {Failed, Undefined} of {[], []} -> 0; _ -> 1 end).
