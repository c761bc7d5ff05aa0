%% SPDX-License-Identifier: MPL-2.0

%% rabbitmqctl list_delayed_messages: what is pending on an exchange, in due order. It is fetched page by
%% page as it is printed.
%%
%% It runs in rabbitmqctl, which asks rabbit_delay_pending in the broker and holds one page.
-module('Elixir.RabbitMQ.CLI.Ctl.Commands.ListDelayedMessagesCommand').

-export([formatter/0]).

-include("rabbit_delay_command.hrl").

-define(INFO_KEYS, 'Elixir.RabbitMQ.CLI.Ctl.InfoKeys').
-define(STREAM, 'Elixir.Stream').

-define(COLUMNS, [{id, "names the message within its exchange"},
                  {due, "when it is due; ms since the epoch for programs (--formatter json)"},
                  {due_utc, "the same in UTC"},
                  {size, "bytes as stored"},
                  {key, "its x-delay-key, or else its message_id"},
                  {routing_key, "the first, if there are several"},
                  {routing_keys, "those of CC and BCC, too"},
                  {exchange, "that it was published to"},
                  {properties, "without the headers"},
                  {headers, "by name"},
                  {payload_bytes, "the size of its body"},
                  {payload, "its body, or the beginning of it"},
                  {payload_encoding, "string, or base64 if it is not UTF-8"},
                  {truncated, "whether there is more of the body"},
                  {damaged, "where its record is, if it cannot be read"},
                  {cursor, "for --cursor"}]).

%% Messages that are fetched at a time.
-define(PAGE, 8192).
-define(BODY_BYTES, 1000).
-define(MAX_BODY_BYTES, 16#7fffffff).

-spec switches() -> [{atom(), atom()}].
switches() -> [{timeout, integer}, {limit, integer}, {cursor, string}, {body_bytes, integer}
               | rabbit_delay_cli:selecting_switches()].

-spec usage() -> binary().
usage() ->
    <<"list_delayed_messages [--vhost <vhost>] [--no-table-headers] <exchange> "
      "[--due-from <time>] [--due-to <time>] [--key <key>] [--routing-key <key>] "
      "[--published-to <exchange>] [--header <name>=<value>] [--limit <count>] [--cursor <cursor>] "
      "[--body-bytes <bytes>] [<column> ...]">>.

-spec usage_additional() -> [[binary()]].
usage_additional() ->
    rabbit_delay_cli:selecting_usage() ++
        [[<<"--limit <count>">>, <<"at most so many">>],
         [<<"--cursor <cursor>">>, <<"those after the message that had this in column cursor">>],
         [<<"--body-bytes <bytes>">>, <<"how much of a body column payload shows; default 1000">>]
         | [[atom_to_binary(Column, utf8), list_to_binary(Meaning)]
            || {Column, Meaning} <- ?COLUMNS]].

-spec description() -> binary().
description() -> <<"Lists the messages that are pending on a delayed message exchange, in due order">>.

-spec formatter() -> module().
formatter() -> 'Elixir.RabbitMQ.CLI.Formatters.Table'.

-spec banner([binary()], rabbit_delay_cli:options()) -> binary().
banner([Exchange | _], #{vhost := VHost}) ->
    <<"Listing messages of delayed exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>.

-spec merge_defaults([binary()], rabbit_delay_cli:options()) ->
          {[binary()], rabbit_delay_cli:options()}.
merge_defaults([Exchange], Options) ->
    merge_defaults([Exchange, <<"id">>, <<"due">>, <<"routing_key">>, <<"size">>], Options);
merge_defaults(Args, Options) ->
    {Args, maps:merge(#{vhost => <<"/">>, table_headers => true, body_bytes => ?BODY_BYTES},
                      Options)}.

-spec validate([binary()], rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
validate([], _Options) ->
    {validation_failure, not_enough_args};
validate(_, #{limit := Limit}) when Limit < 1 ->
    {validation_failure, {bad_argument, <<"--limit must be at least 1">>}};
validate(_, #{body_bytes := Bytes}) when Bytes < 0; Bytes > ?MAX_BODY_BYTES ->
    {validation_failure, {bad_argument, <<"--body-bytes must be from 0 to 2147483647">>}};
validate([_ | Columns], Options) ->
    case ?INFO_KEYS:validate_info_keys(Columns, [Column || {Column, _} <- ?COLUMNS]) of
        {ok, _} -> rabbit_delay_cli:check_filter(Options);
        Failure -> Failure
    end.

-spec run([binary()], rabbit_delay_cli:options()) -> rabbit_delay_cli:result().
run([Exchange | Words], Options) ->
    Columns = ?INFO_KEYS:prepare_info_keys(Words),
    Request = maps:merge(maps:with([cursor], Options), wanted(Columns, Options)),
    Fetch = fun (Cursor, Left) ->
                    fetch(rabbit_delay_cli:resource(Exchange, Options),
                          rabbit_delay_cli:filter(Options), Request, Cursor, Left, Options)
            end,
    %% The first page now, so that what is wrong with the request is told before anything is printed.
    case Fetch(first, maps:get(limit, Options, infinity)) of
        {page, _, _, _} = Page ->
            {stream, ?STREAM:resource(fun () -> Page end,
                                      fun (State) -> next(State, Columns, Fetch, Options) end,
                                      fun (_) -> ok end)};
        Failure ->
            Failure
    end.

wanted(Columns, #{body_bytes := Bytes}) ->
    Body = [payload, payload_encoding, truncated],
    Content = Columns -- [id, due, due_utc, size, cursor],
    maps:from_list([{cursors, true} || lists:member(cursor, Columns)] ++
                   [{content, true} || Content =/= []] ++
                   [{body, Bytes} || Columns -- Body =/= Columns]).

fetch(XName, Filter, Request0, Cursor, Left, Options) ->
    Request = case Cursor of
                  first -> Request0#{limit => min(Left, ?PAGE)};
                  _ -> Request0#{limit => min(Left, ?PAGE), cursor => Cursor}
              end,
    rabbit_delay_cli:call(Options, list, [XName, Filter, Request],
                          fun ({ok, Items, Next}) -> {page, Items, Next, left(Left, Items)} end).

left(infinity, _) -> infinity;
left(Left, Items) -> Left - length(Items).

next({page, [], none, _} = State, _, _, _) ->
    {halt, State};
next({page, [], _, 0} = State, _, _, _) ->
    {halt, State};
next({page, [], Cursor, Left}, _, Fetch, _) ->
    case Fetch(Cursor, Left) of
        {page, _, _, _} = Page -> {[], Page};
        {error, _, Why} -> {[{error, Why}], {page, [], none, 0}};
        {error, Gone} -> {[{error, rabbit_delay_cli:went_away(Gone)}], {page, [], none, 0}}
    end;
next({page, Items, Cursor, Left}, Columns, _, Options) ->
    {[row(Item, Columns, Options) || Item <- Items], {page, [], Cursor, Left}}.

row(Item00, Columns, Options) ->
    Item0 = case lists:member(due_utc, Columns) of
                true -> Item00#{due_utc => rabbit_delay_time:utc(maps:get(due, Item00))};
                false -> Item00
            end,
    Item = case rabbit_delay_cli:is_json(Options) of
               true -> rabbit_delay_cli:json(Item0);
               false -> maps:map(fun (_, Value) -> rabbit_delay_cli:text(Value) end,
                                 rabbit_delay_cli:times(Item0, Options))
           end,
    [{Column, maps:get(Column, Item, <<>>)} || Column <- Columns].

-spec output(rabbit_delay_cli:result(), rabbit_delay_cli:options()) -> term().
output(Result, Options) -> ?DEFAULT_OUTPUT:output(Result, Options).
