%% SPDX-License-Identifier: MPL-2.0

%% What the commands about exchanges' members have in common; rabbit_delay_cli has what all have. This
%% runs in the command-line tool, whose own modules it calls, and asks rabbit_delay_replication in the broker.
-module(rabbit_delay_cli_members).

-export([member_usage/1, pattern_switches/0, pattern_usage/0, patterns/1, banner/3, check_number/3, check_patterns/1,
         ask/4, change_member/3, transfer_each/2, each/4, output/3, row/3, exchange/1]).

-export_type([changes/0, compared/0]).

%% Done one after the other while they are shown; the number of those that failed.
-type changes() :: {changes, Stream :: term(), Failed :: counters:counters_ref()}.
%% Members, and whether they hold the same.
-type compared() :: {compared, Rows :: [[{atom(), term()}]], same | different | unknown, Why :: binary()}.

-define(CONFIG, 'Elixir.RabbitMQ.CLI.Core.Config').
-define(OUTPUT, 'Elixir.RabbitMQ.CLI.Core.Output').
-define(BY, <<"rabbitmqctl">>).
-define(EXIT_PART, 1).
-define(EXIT_UNAVAILABLE, 69).

-spec member_usage(Node :: binary()) -> [[binary()]].
member_usage(Node) ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>], [<<"<node>">>, Node]].

-spec pattern_switches() -> [{atom(), atom()}].
pattern_switches() -> [{vhost_pattern, string}, {exchange_pattern, string}].

-spec pattern_usage() -> [[binary()]].
pattern_usage() ->
    [[<<"--vhost-pattern <regexp>">>, <<"those of vhosts whose names it matches">>],
     [<<"--exchange-pattern <regexp>">>, <<"those whose names it matches">>]].

-spec patterns(rabbit_delay_cli:options()) -> {VHosts :: binary(), Exchanges :: binary()}.
patterns(Options) ->
    {maps:get(vhost_pattern, Options, <<>>), maps:get(exchange_pattern, Options, <<>>)}.

%% Doing is what is done to the exchange, which is named behind it.
-spec banner(Doing :: binary(), [binary()], rabbit_delay_cli:options()) -> binary().
banner(Doing, [Exchange | _], #{vhost := VHost}) ->
    <<Doing/binary, " delayed exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>.

-spec check_number([binary()], non_neg_integer(), fun(() -> Result)) ->
          Result | {validation_failure, not_enough_args | too_many_args}.
check_number(Args, Number, _) when length(Args) < Number -> {validation_failure, not_enough_args};
check_number(Args, Number, _) when length(Args) > Number -> {validation_failure, too_many_args};
check_number(_, _, Then) -> Then().

-spec check_patterns(rabbit_delay_cli:options()) -> ok | {validation_failure, term()}.
check_patterns(Options) ->
    case [{Name, Why, At} || {Name, Key} <- [{"--vhost-pattern", vhost_pattern},
                                             {"--exchange-pattern", exchange_pattern}],
                             {error, {Why, At}} <- [re:compile(maps:get(Key, Options, <<>>))]] of
        [] -> ok;
        [{Name, Why, At} | _] ->
            {validation_failure, {bad_argument, format("~s is no regular expression: ~s at ~b",
                                                       [Name, Why, At])}}
    end.

%% What the broker refuses becomes what the tool makes an exit code of.
-spec ask(rabbit_delay_cli:options(), atom(), [term()], fun((term()) -> rabbit_delay_cli:result())) ->
          rabbit_delay_cli:result().
ask(#{node := Node, timeout := Timeout}, Function, Args, Then) ->
    case rpc:call(Node, rabbit_delay_replication, Function, Args, Timeout) of
        {error, Failure} -> rabbit_delay_cli:failure(Failure);
        {badrpc, _} = Failure -> rabbit_delay_cli:unanswered(Failure);
        Result -> Then(Result)
    end.

-spec change_member(add | delete | transfer, [binary()], rabbit_delay_cli:options()) ->
          rabbit_delay_cli:result().
change_member(Change, [Exchange, Node], Options) ->
    ask(Options, Change, [rabbit_delay_cli:resource(Exchange, Options), Node, ?BY],
        fun (ok) -> ok;
            (unchanged) -> {ok, unchanged(Change, Node)}
        end).

unchanged(add, Node) -> format("node ~ts has a member already", [rabbit_delay_cli:text(Node)]);
unchanged(delete, Node) -> format("node ~ts has no member", [rabbit_delay_cli:text(Node)]);
unchanged(transfer, Node) -> format("node ~ts has the only member, which leads", [rabbit_delay_cli:text(Node)]).

%% What fails is told, and the others are done.
-spec transfer_each([{rabbit_exchange:name(), Node :: binary()}], rabbit_delay_cli:options()) ->
          rabbit_delay_cli:result().
transfer_each(Moves, Options) ->
    case lists:append([transfer(XName, Node, Options) || {XName, Node} <- Moves]) of
        [] -> ok;
        Failed -> {error, ?EXIT_PART, unicode:characters_to_binary(lists:join($\n, Failed))}
    end.

transfer(XName, Node, Options) ->
    Failed = fun (Why) ->
                     #{vhost := VHost, name := Name} = exchange(XName),
                     [format("exchange '~ts' in vhost '~ts' is not led by ~ts: ~ts",
                             [rabbit_delay_cli:text(Name), rabbit_delay_cli:text(VHost), Node, Why])]
             end,
    case ask(Options, transfer, [XName, Node, ?BY], fun (Result) -> Result end) of
        Done when Done =:= ok; Done =:= unchanged -> [];
        {error, _, Why} -> Failed(Why);
        {error, Failure} -> Failed(rabbit_delay_cli:went_away(Failure))
    end.

%% A change of each of these exchanges, of which it is known how many members they have.
-spec each(add | delete | force_shrink, Node :: binary(), [{rabbit_exchange:name(), pos_integer()}],
           rabbit_delay_cli:options()) -> changes().
each(Change, Node, Exchanges, Options) ->
    Failed = counters:new(1, []),
    {changes, 'Elixir.Stream':resource(fun () -> Exchanges end,
                                       fun (Left) -> next(Left, Change, Node, Failed, Options) end,
                                       fun (_) -> ok end), Failed}.

next([], _, _, _, _) ->
    {halt, []};
next([{XName, Size} | Left], Change, Node, Failed, Options) ->
    {Done, Result} = case ask(Options, Change, [XName, Node, ?BY], fun (Result) -> Result end) of
                         ok -> {by(Change, Size), <<"ok">>};
                         unchanged -> {0, <<"ok">>};
                         {error, _, Why} -> {0, <<"error: ", Why/binary>>};
                         {error, Failure} ->
                             {0, <<"error: ", (rabbit_delay_cli:went_away(Failure))/binary>>}
                     end,
    ok = counters:add(Failed, 1, case Result of <<"ok">> -> 0; _ -> 1 end),
    case {Result, Options} of
        {<<"ok">>, #{errors_only := true}} ->
            next(Left, Change, Node, Failed, Options);
        _ ->
            Row = maps:merge(exchange(XName), #{size => Size + Done, result => Result}),
            {[row([vhost, name, size, result], Row, Options)], Left}
    end.

by(add, _) -> 1;
by(delete, _) -> -1;
by(force_shrink, Size) -> 1 - Size.

%% Shows changes as they are done, and what was compared; of others, what the tool makes of it.
-spec output(module(), rabbit_delay_cli:result() | changes() | compared(), rabbit_delay_cli:options()) -> term().
output(Command, {compared, Rows, Outcome, Why}, Options) ->
    ok = show(Command, {stream, Rows}, Options),
    case {Outcome, rabbit_delay_cli:is_for_programs(Options) orelse maps:get(silent, Options, false)} of
        {same, true} -> {ok, nil};
        {same, false} -> io:put_chars([Why, $\n]), {ok, nil};
        {different, _} -> {error, ?EXIT_PART, Why};
        {unknown, _} -> {error, ?EXIT_UNAVAILABLE, Why}
    end;
output(Command, {changes, Stream, Failed}, Options) ->
    ok = show(Command, {stream, Stream}, Options),
    case counters:get(Failed, 1) of
        0 -> {ok, nil};
        N -> {error, ?EXIT_PART, format("of ~s it is not done", [rabbit_delay_text:count(N, "exchange")])}
    end;
output(_, Result, Options) ->
    'Elixir.RabbitMQ.CLI.DefaultOutput':output(Result, Options).

show(Command, Stream, Options) ->
    Shown = ?OUTPUT:format_output(Stream, ?CONFIG:get_formatter(Command, Options), Options),
    ?OUTPUT:print_output(Shown, ?CONFIG:get_printer(Command, Options), Options).

%% For the formatter that was chosen; what is undefined is null, or empty for people.
-spec row([atom()], map(), rabbit_delay_cli:options()) -> [{atom(), term()}].
row(Columns, Item, Options) ->
    Shown = case rabbit_delay_cli:is_json(Options) of
                true -> rabbit_delay_cli:json(maps:map(fun (_, undefined) -> null;
                                                           (_, Value) -> Value
                                                       end, Item));
                false -> maps:map(fun (_, undefined) -> <<>>;
                                      (_, Value) -> rabbit_delay_cli:text(Value)
                                  end, Item)
            end,
    [{Column, maps:get(Column, Shown)} || Column <- Columns].

-spec exchange(rabbit_exchange:name()) -> #{vhost | name := binary()}.
exchange({resource, VHost, exchange, Name}) -> #{vhost => VHost, name => Name}.

format(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
