%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_series_tests).

-include_lib("eunit/include/eunit.hrl").

-define(KNOWN, ["3.13", "4.0", "4.1", "4.2", "4.3"]).

verdict_test_() ->
    [{Version ++ case IsAllowed of true -> ", allowed"; false -> "" end,
      ?_assertEqual(Verdict, kind(rabbit_delay_series:verdict(Version, ?KNOWN, IsAllowed)))}
     || {Version, IfNot, If} <- [{"3.10.8", wrong, wrong}, {"3.12.14", wrong, wrong},
                                 {"3.13.0", ok, ok}, {"3.13.7", ok, ok}, {"4.0.5", ok, ok},
                                 {"4.0.0-rc.1", ok, ok}, {"4.3.6+dfsg", ok, ok}, {"4.3.99", ok, ok},
                                 {"4.4.0", unable, ok}, {"4.4.0-alpha.1", unable, ok},
                                 {"4.10.0", unable, ok}, {"5.0.0", unable, ok}],
        {IsAllowed, Verdict} <- [{false, IfNot}, {true, If}]].

%% Of the archive for one series.
verdict_of_one_test() ->
    ?assertMatch(ok, rabbit_delay_series:verdict("3.10.8", ["3.10"], false)),
    ?assertMatch({wrong, _}, rabbit_delay_series:verdict("3.9.29", ["3.10"], true)),
    ?assertMatch({unable, _}, rabbit_delay_series:verdict("3.11.0", ["3.10"], false)).

reason_test() ->
    {unable, Why} = rabbit_delay_series:verdict("4.4.1", ?KNOWN, false),
    [?assertNotEqual(nomatch, string:find(Why, Said))
     || Said <- ["4.3", "4.4.1", "delayed_message.allow_untested_series"]],
    {wrong, Wrong} = rabbit_delay_series:verdict("3.10.8", ?KNOWN, false),
    [?assertNotEqual(nomatch, string:find(Wrong, Said)) || Said <- ["3.10.8" | ?KNOWN]].

kind({Kind, _}) -> Kind;
kind(ok) -> ok.

has_test() ->
    ?assert(rabbit_delay_series:has({lists, sort, 1})),
    ?assertNot(rabbit_delay_series:has({lists, sort, 7})),
    ?assertNot(rabbit_delay_series:has({no_such_module, sort, 1})).

%% What this broker has, it has.
nothing_is_missing_test_() ->
    {timeout, 60, fun () ->
        Dir = filename:dirname(code:which(rabbit_delay_broker)),
        Ours = [list_to_atom(filename:basename(File, ".beam"))
                || File <- filelib:wildcard(filename:join(Dir, "*.beam"))],
        ?assert(length(Ours) > 50),
        ?assertEqual([], rabbit_delay_series:missing(Ours, Ours)) end}.

%% The adapter's are all needed; of other modules', what is in a module that is there.
missing_test_() ->
    {setup,
     fun () ->
             Dir = string:trim(os:cmd("mktemp -d")),
             [compiled(Dir, Module, Calls)
              || {Module, Calls} <- [{caller, "lists:none(), no_such_module:f(), lists:sort([])"},
                                     {rabbit_delay_broker, "lists:none(), no_such_module:f(), caller:f()"}]],
             true = code:add_patha(Dir),
             ok = load_again(rabbit_delay_broker),
             Dir
     end,
     fun (Dir) ->
             true = code:del_path(Dir),
             ok = load_again(rabbit_delay_broker),
             false = filename:dirname(code:which(rabbit_delay_broker)) =:= Dir,
             ok = file:del_dir_r(Dir)
     end,
     fun (_) ->
             Missing = fun (Callers) -> rabbit_delay_series:missing(Callers, [caller, rabbit_delay_broker]) end,
             [{"of any module", ?_assertEqual([{lists, none, 0}], Missing([caller]))},
              {"of the adapter", ?_assertEqual([{lists, none, 0}, {no_such_module, f, 0}],
                                               Missing([rabbit_delay_broker]))},
              {"each once", ?_assertEqual([{lists, none, 0}, {no_such_module, f, 0}],
                                          Missing([caller, rabbit_delay_broker]))}]
     end}.

%% From where it is found now.
load_again(Module) ->
    _ = code:purge(Module),
    {module, Module} = code:load_file(Module),
    _ = code:purge(Module),
    ok.

compiled(Dir, Module, Calls) ->
    File = filename:join(Dir, Module),
    ok = file:write_file(File ++ ".erl", io_lib:format("-module(~s).~n-export([f/0]).~nf() -> ~s.~n",
                                                       [Module, Calls])),
    {ok, Module} = compile:file(File, [{outdir, Dir}]).
