%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl show_delayed_message: one pending message, with its headers and, if wanted, its body.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_pending in the broker. Nothing of it changes the
%% message.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ShowDelayedMessageCommand').

-include("rabbit_delay_command.hrl").

%% More than any message can have.
-define(WHOLE_BODY, 16#7fffffff).

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {body, boolean}].

-spec usage() -> binary().
usage() ->
    <<"show_delayed_message [--vhost <vhost>] <exchange> <id> [--body]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"<id>">>, <<"of a message, as list_delayed_messages shows it">>],
     [<<"--body">>, <<"its body, too; in base64 if it is not UTF-8">>]].

-spec description() -> binary().
description() -> <<"Shows one delayed message that is pending">>.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner([Exchange | _], #{vhost := VHost}) ->
    <<"Showing a message of delayed exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults(Args, Options) -> rabbit_delay_cli:defaults(Args, Options).

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate([_, Id], _Options) ->
    case rabbit_delay_filter:id(Id) of
        {ok, _} -> ok;
        {error, Why} -> {validation_failure, {bad_argument, Why}}
    end;
validate(Args, _Options) when length(Args) > 2 ->
    {validation_failure, too_many_args};
validate(_, _) ->
    {validation_failure, not_enough_args}.

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run([Exchange, Word], Options) ->
    {ok, Id} = rabbit_delay_filter:id(Word),
    Shown = case Options of
                #{body := true} -> #{body => ?WHOLE_BODY};
                _ -> #{}
            end,
    rabbit_delay_cli:call(Options, show, [rabbit_delay_cli:resource(Exchange, Options), Id, Shown],
                          fun ({ok, Item}) -> {item, Item} end).

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output({item, Item}, Options) ->
    case rabbit_delay_cli:is_json(Options) of
        true ->
            ?DEFAULT_OUTPUT:output(rabbit_delay_cli:json(Item), Options);
        false ->
            Shown = case Item of
                        #{due := Due} -> (rabbit_delay_cli:times(Item, Options))
                                             #{due_utc => rabbit_delay_time:utc(Due)};
                        _ -> Item
                    end,
            Lines = [[atom_to_binary(Name, utf8), ": ", rabbit_delay_cli:text(Value)]
                     || Name <- [id, due, due_utc, size, exchange, routing_key, routing_keys, properties,
                                 headers, payload_bytes, payload_encoding, truncated, payload,
                                 damaged],
                        {ok, Value} <- [maps:find(Name, Shown)]],
            ?DEFAULT_OUTPUT:output(iolist_to_binary(lists:join($\n, Lines)), Options)
    end;
output(Result, Options) ->
    ?DEFAULT_OUTPUT:output(Result, Options).
