%% SPDX-License-Identifier: MPL-2.0

-module(rabbit_delay_system_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("rabbit_common/include/resource.hrl").

-behaviour(supervisor).

-export([init/1, start_link/1, log/2]).

-define(X, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"x">>}).
-define(WITHIN_MS, 60000).

%% What ends on purpose, and is started again by its supervisor, is a line of ours and no fault; what is
%% killed by another is one.
on_purpose_test_() ->
    {timeout, 120, fun on_purpose/0}.

on_purpose() ->
    ok = logger:add_primary_filter(?MODULE, {fun rabbit_delay_system:shorten/2, []}),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => self(), level => all}),
    {ok, Sup} = supervisor:start_link(?MODULE, []),
    try
        lists:foreach(
          fun ({Id, End, Level}) ->
                  Pid = child(Sup, Id),
                  End(Pid),
                  {Seen, Text} = next(),
                  ?assertEqual({Id, Level}, {Id, Seen}),
                  ?assertEqual(Level =:= info, string:find(Text, "delayed messages of exchange 'x'") =/= nomatch),
                  ?assertNotEqual(Pid, child(Sup, Id))
          end, [{rabbit_delay_dispatcher, fun rabbit_delay_dispatcher:stop_leading/1, info},
                {rabbit_delay_dispatcher, fun (Pid) -> exit(Pid, kill) end, error},
                {rabbit_delay_queue, fun (Pid) -> exit(Pid, {shutdown, other_life}) end, info},
                {rabbit_delay_queue, fun (Pid) -> exit(Pid, {shutdown, other}) end, error},
                {somebody_else, fun (Pid) -> exit(Pid, {shutdown, not_leading}) end, error}])
    after
        unlink(Sup),
        Ref = monitor(process, Sup),
        exit(Sup, shutdown),
        receive {'DOWN', Ref, process, Sup, _} -> ok end,
        ok = logger:remove_handler(?MODULE),
        ok = logger:remove_primary_filter(?MODULE)
    end.

child(Sup, Id) ->
    {Id, Pid, _, _} = lists:keyfind(Id, 1, supervisor:which_children(Sup)),
    Pid.

%% The next event about an end.
next() ->
    receive
        {logged, #{level := Level, msg := {report, #{label := {supervisor, child_terminated}}}}} ->
            {Level, ""};
        {logged, #{level := Level, msg := {Format, Args}}} when is_list(Args) ->
            {Level, lists:flatten(io_lib:format(Format, Args))};
        {logged, _} ->
            next()
    after ?WITHIN_MS ->
            none
    end.

-spec log(logger:log_event(), logger:handler_config()) -> ok.
log(Event, #{config := Pid}) ->
    Pid ! {logged, Event},
    ok.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    {ok, {#{intensity => 20, period => 1},
          [#{id => Id, start => {?MODULE, start_link, [?X]}}
           || Id <- [rabbit_delay_dispatcher, rabbit_delay_queue, somebody_else]]}}.

-spec start_link(rabbit_exchange:name()) -> {ok, pid()}.
start_link(_) ->
    {ok, spawn_link(fun () -> receive never -> ok end end)}.
