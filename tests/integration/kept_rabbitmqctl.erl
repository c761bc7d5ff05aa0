%% SPDX-License-Identifier: MPL-2.0

%% RabbitMQ's command-line tool in a VM that is kept: runs a command for each packet that comes from
%% kept_rabbitmqctl.py, as the tool would, and answers with its exit code and what it said.
-module(kept_rabbitmqctl).

-export([start/1]).

%% The tool is an archive with a header.
-spec start([Port :: atom()]) -> no_return().
start([Port]) ->
    [Tool | _] = init:get_plain_arguments(),
    Dir = unpacked(Tool),
    ok = code:add_pathsa([Dir | filelib:wildcard(filename:join([Dir, "*", "ebin"]))]),
    {ok, _} = application:ensure_all_started(rabbitmqctl),
    {module, _} = code:ensure_loaded('Elixir.RabbitMQCtl'),
    true = unregister(standard_error),
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, list_to_integer(atom_to_list(Port)),
                                   [binary, {packet, 4}, {active, false}]),
    serve(Socket).

unpacked(Tool) ->
    Dir = filename:join([filename:dirname(code:which(?MODULE)),
                         "rabbitmqctl-" ++ integer_to_list(erlang:phash2(Tool))]),
    case filelib:is_dir(Dir) of
        true ->
            Dir;
        false ->
            {ok, Sections} = escript:extract(Tool, []),
            {ok, _} = zip:unzip(proplists:get_value(archive, Sections), [{cwd, Dir}]),
            Dir
    end.

serve(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Arguments} ->
            Each = lists:droplast(binary:split(Arguments, <<0>>, [global])),
            ok = gen_tcp:send(Socket, run(Each)),
            serve(Socket);
        {error, closed} ->
            halt(0)
    end.

%% The exit code, how long standard output is, standard output, standard error.
run(Arguments) ->
    {ok, Output} = 'Elixir.StringIO':open(<<>>),
    {ok, Errors} = 'Elixir.StringIO':open(<<>>),
    true = register(standard_error, Errors),
    {Pid, Ref} = spawn_monitor(fun () ->
                                       true = group_leader(Output, self()),
                                       main(Arguments)
                               end),
    Code = receive
               {'DOWN', Ref, process, Pid, {shutdown, N}} ->
                   N;
               {'DOWN', Ref, process, Pid, normal} ->
                   0;
               {'DOWN', Ref, process, Pid, Crash} ->
                   ok = io:format(Errors, "~p~n", [Crash]),
                   1
           end,
    true = unregister(standard_error),
    {ok, {_, Out}} = 'Elixir.StringIO':close(Output),
    {ok, {_, Err}} = 'Elixir.StringIO':close(Errors),
    <<Code:32, (byte_size(Out)):32, Out/binary, Err/binary>>.

%% From 4.3 on main/1 ends the VM after main1/1, which does what it did before.
main(Arguments) ->
    case erlang:function_exported('Elixir.RabbitMQCtl', main1, 1) of
        true ->
            Words = [unicode:characters_to_binary(Argument) || Argument <- Arguments],
            ok = 'Elixir.System':argv(Words),
            'Elixir.RabbitMQCtl':main1(Words);
        false ->
            'Elixir.RabbitMQCtl':main(Arguments)
    end.
