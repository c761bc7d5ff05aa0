%% SPDX-License-Identifier: MPL-2.0

%% A connection to the broker from within it, by its own client, for what is done as a client does it:
%% with confirms, acknowledgements and a channel's limits. It is used by the process that opens it, which
%% closes it whatever happens; to close one that has ended is no error. Should that process be killed, a
%% guard closes it: nothing else would, and what was not acknowledged would stay out.
-module(rabbit_delay_connection).

-include_lib("amqp_client/include/amqp_client.hrl").

-export([open/2, close/1, ended/1]).

-export_type([connection/0]).

-type connection() :: {Connection :: pid(), Channel :: pid()}.

%% With a channel; rabbitmqctl list_connections shows it by that name.
-spec open(rabbit_types:vhost(), Name :: binary()) ->
          {ok, connection()} | {error, {unavailable, Why :: binary()}}.
open(VHost, Name) ->
    Parameters = #amqp_params_direct{
                    virtual_host = VHost,
                    client_properties = [{<<"connection_name">>, longstr, Name},
                                         {<<"product">>, longstr, <<"rabbitmq_delay_wheel">>}]},
    %% What the client logs belongs to the broker's log, not to the terminal of who asked.
    true = group_leader(whereis(user), self()),
    case amqp_connection:start(Parameters) of
        {ok, Connection} ->
            Owner = self(),
            _ = spawn(fun () -> guard(Owner, Connection) end),
            case amqp_connection:open_channel(Connection) of
                {ok, Channel} -> {ok, {Connection, Channel}};
                Error -> _ = amqp_connection:close(Connection), failed(Error)
            end;
        Error ->
            failed(Error)
    end.

guard(Owner, Connection) ->
    Ended = monitor(process, Owner),
    Closed = monitor(process, Connection),
    receive
        {'DOWN', Closed, process, _, _} ->
            ok;
        {'DOWN', Ended, process, _, _} ->
            try amqp_connection:close(Connection) of
                _ -> ok
            catch
                exit:_ -> ok
            end
    end.

failed(Error) ->
    {error, {unavailable,
             unicode:characters_to_binary(
               ["no connection to the broker from within it: ",
                case Error of
                    {error, Reason} -> ended(Reason);
                    _ -> ended(Error)
                end])}}.

%% Why a channel of it ended, or a call to one, in words.
-spec ended(term()) -> binary().
ended({{shutdown, _} = Shutdown, _}) ->
    ended(Shutdown);
ended({shutdown, {server_initiated_close, Code, Text}}) ->
    rabbit_delay_text:escaped([integer_to_list(Code), $\s, Text]);
ended({shutdown, {connection_closing, Reason}}) ->
    ended(Reason);
ended({server_initiated_close, _, _} = Close) ->
    ended({shutdown, Close});
ended({Gone, {gen_server, call, _}}) when is_atom(Gone) ->
    ended(Gone);
ended(Gone) when Gone =:= normal; Gone =:= shutdown; Gone =:= noproc; Gone =:= killed ->
    <<"the connection was closed">>;
ended(Reason) ->
    rabbit_delay_text:reason(Reason).

-spec close(connection()) -> ok.
close({Connection, Channel}) ->
    try
        _ = amqp_channel:close(Channel),
        _ = amqp_connection:close(Connection),
        ok
    catch
        exit:_ -> ok
    end.
