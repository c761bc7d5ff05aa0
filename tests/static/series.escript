#!/usr/bin/env escript
%% SPDX-License-Identifier: MPL-2.0
%% series.escript SOURCES PLUGINS SERIES: compiles the plugin with this Erlang against a broker's plugins
%% folder, its behaviours included, and holds what it calls and that broker does not have against
%% broker_calls.eterm.
-mode(compile).

main([Sources, Plugins, Series]) ->
    Out = filename:join(Sources, "out"),
    ok = filelib:ensure_path(Out),
    Libraries = filelib:wildcard(filename:join([Plugins, "*", "ebin"])),
    ok = code:add_pathsz(Libraries),
    Options = [debug_info, warnings_as_errors, report, {outdir, Out},
               {i, filename:join(Sources, "include")}],
    Files = [_ | _] = filelib:wildcard(filename:join([Sources, "erl_src", "**", "rabbit*.erl"])),
    Failed = [File || File <- Files, compile:file(File, Options) =:= error],
    {ok, _} = xref:start(?MODULE, [{xref_mode, functions}]),
    ok = xref:set_library_path(?MODULE, Libraries ++ filelib:wildcard(
                                          filename:join([code:lib_dir(), "*", "ebin"]))),
    {ok, _} = xref:add_directory(?MODULE, Out),
    {ok, Undefined} = xref:analyze(?MODULE, undefined_function_calls),
    {ok, Table} = file:consult(filename:join(Sources, "broker_calls.eterm")),
    Lacking = [Call || {calls, _, Of, Calls} <- Table, Of =/= all, not lists:member(Series, Of),
                       Call <- Calls],
    %% rabbitmqctl's modules are in its own archive: broker_calls.eterm says where they were looked up.
    Unknown = [Call || {_, {Module, _, _} = To} = Call <- Undefined, not lists:member(To, Lacking),
                       not lists:prefix("Elixir.", atom_to_list(Module))],
    Wrong = Lacking -- [To || {_, To} <- Undefined],
    [io:format("~p:~p/~p calls ~p:~p/~p, which does not exist~n",
               tuple_to_list(From) ++ tuple_to_list(To)) || {From, To} <- Unknown],
    [io:format("~p:~p/~p exists: tests/static/broker_calls.eterm is wrong~n", tuple_to_list(To))
     || To <- Wrong],
    halt(case {Failed, Unknown, Wrong} of {[], [], []} -> 0; _ -> 1 end).
