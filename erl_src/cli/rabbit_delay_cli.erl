%% SPDX-License-Identifier: MPL-2.0

%% What the plugin's rabbitmqctl commands have in common. This runs in the command-line tool, not in
%% the broker: only rabbit_delay_filter is called directly.
-module(rabbit_delay_cli).

-export([selecting_switches/0, selecting_usage/0, defaults/2, check_exchange/1, check_selection/3,
         check_filter/1, filter/1, resource/2, call/4, failure/1, switch/3, change/3, text/1, times/2, json/1, is_json/1]).

-export_type([options/0, result/0]).

-type options() :: #{atom() => term()}.
-type result() :: term().

-define(BY, <<"rabbitmqctl">>).
-define(EXIT_USAGE, 64).
-define(EXIT_DATA, 65).
-define(EXIT_UNAVAILABLE, 69).

%% The switches that say which messages are meant.
-spec selecting_switches() -> [{atom(), atom()}].
selecting_switches() ->
    [{due_from, string}, {due_to, string}, {key, string}, {routing_key, string},
     {published_to, string}, {header, string}].

-spec selecting_usage() -> [[binary()]].
selecting_usage() ->
    [[<<"<exchange>">>, <<"a delayed message exchange">>],
     [<<"--due-from <time>, --due-to <time>">>,
      <<"those due in this range, both included: 2027-01-31 12:00:00 (this machine's time zone), "
        "2027-01-31T12:00:00Z, an offset from now (+90m, -1h; ms, s, m, h, d, w), or ms since the "
        "epoch">>],
     [<<"--key <key>">>, <<"those with this x-delay-key, or message_id if they have none">>],
     [<<"--routing-key <key>">>, <<"those published with this routing key (or a copy by CC)">>],
     [<<"--published-to <exchange>">>,
      <<"those published to this exchange, where exchanges are bound to each other">>],
     [<<"--header <name>=<value>">>, <<"those with a header of this value, compared as text">>]].

%% --dry-run is a switch that the tool knows, and with which it does not run a command.
-spec defaults([binary()], options()) -> {[binary()], options()}.
defaults(Args, Options) ->
    Defaults = #{vhost => <<"/">>, count_only => maps:get(dry_run, Options, false)},
    {Args, maps:merge(Defaults, maps:remove(dry_run, Options))}.

-spec check_exchange([binary()]) -> ok | {validation_failure, term()}.
check_exchange([_]) -> ok;
check_exchange([]) -> {validation_failure, not_enough_args};
check_exchange(_) -> {validation_failure, too_many_args}.

%% Of an exchange and ids, or a filter, or --all where that is offered.
-spec check_selection([binary()], options(), OfferedAll :: boolean()) ->
          ok | {validation_failure, term()}.
check_selection([], _, _) ->
    {validation_failure, not_enough_args};
check_selection([_ | Ids], Options, OfferedAll) ->
    HasFilter = maps:size(words(Options)) > 0,
    All = OfferedAll andalso maps:get(all, Options, false),
    case {Ids, HasFilter, All, maps:get(count_only, Options, false)} of
        {[_ | _], false, false, false} ->
            first([check_id(Id) || Id <- Ids]);
        {[_ | _], _, _, _} ->
            bad("ids go without filters, --all and --dry-run");
        {[], true, true, _} ->
            bad("either a filter or --all");
        {[], true, false, _} ->
            check_filter(Options);
        {[], false, true, _} ->
            ok;
        {[], false, false, _} when OfferedAll ->
            bad("which messages? Give ids, a filter, or --all");
        {[], false, false, _} ->
            bad("which messages? Give ids or a filter; purge_delayed_messages cancels all")
    end.

check_id(Word) ->
    case rabbit_delay_filter:id(Word) of
        {ok, _} -> ok;
        {error, Why} -> bad(Why)
    end.

first([]) -> ok;
first([ok | Rest]) -> first(Rest);
first([Failure | _]) -> Failure.

bad(Why) ->
    {validation_failure, {bad_argument, unicode:characters_to_binary(Why)}}.

-spec check_filter(options()) -> ok | {validation_failure, term()}.
check_filter(Options) ->
    case rabbit_delay_filter:parse(words(Options), now_ms()) of
        {ok, _} -> ok;
        {error, Why} -> bad(Why)
    end.

-spec filter(options()) -> rabbit_delay_filter:filter().
filter(Options) ->
    {ok, Filter} = rabbit_delay_filter:parse(words(Options), now_ms()),
    Filter.

words(Options) ->
    maps:with([Name || {Name, _} <- selecting_switches()], Options).

now_ms() ->
    erlang:system_time(millisecond).

-spec resource(binary(), options()) -> rabbit_exchange:name().
resource(Exchange, #{vhost := VHost}) ->
    rabbit_misc:r(VHost, exchange, Exchange).

%% Calls rabbit_delay_pending in the broker; its errors become what the tool makes an exit code of.
-spec call(options(), atom(), [term()], fun((term()) -> result())) -> result().
call(#{node := Node, timeout := Timeout}, Function, Args, Then) ->
    case rpc:call(Node, rabbit_delay_pending, Function, Args, Timeout) of
        {error, Failure} -> failure(Failure);
        {badrpc, _} = Failure -> Failure;
        Result -> Then(Result)
    end.

%% The exit code and the words of what the broker refused (docs/operating.md has the table).
-spec failure({Kind :: atom(), Why :: binary()}) -> {error, integer(), binary()}.
failure({bad_request, Why}) -> {error, ?EXIT_USAGE, Why};
failure({unavailable, Why}) -> {error, ?EXIT_UNAVAILABLE, Why};
failure({_, Why}) -> {error, ?EXIT_DATA, Why}.

%% Pauses or resumes an exchange.
-spec switch(pause | resume, [binary()], options()) -> result().
switch(Change, [Exchange], Options) ->
    call(Options, Change, [resource(Exchange, Options), ?BY], fun (ok) -> ok end).

%% Runs an operation on an exchange's messages, by ids or as the options say.
-spec change(rabbit_delay_pending:operation(), [binary()], options()) -> result().
change(Operation, [Exchange], Options) ->
    Sum = #{examined => 0, matched => 0, changed => 0, in_flight => 0},
    change_matching(resource(Exchange, Options), Operation, filter(Options),
                    #{by => ?BY, dry_run => maps:get(count_only, Options, false)}, Sum, Options);
change(Operation, [Exchange | Words], Options) ->
    Ids = [Id || Word <- Words, {ok, Id} <- [rabbit_delay_filter:id(Word)]],
    call(Options, change_ids, [resource(Exchange, Options), Operation, Ids, ?BY],
         fun ({ok, Outcomes}) -> by_ids(Operation, Outcomes, Options) end).

%% In steps, so that it ends with the tool.
change_matching(XName, Operation, Filter, Request, Sum0, Options) ->
    call(Options, change_matching, [XName, Operation, Filter, Request],
         fun ({ok, #{cursor := Cursor} = Step}) ->
                 Sum = maps:map(fun (Key, N) -> N + maps:get(Key, Step) end, Sum0),
                 case Cursor of
                     none -> matching(Operation, Sum, Options);
                     _ -> change_matching(XName, Operation, Filter, Request#{cursor => Cursor},
                                          Sum, Options)
                 end
         end).

matching(Operation, #{matched := Matched, changed := Changed, in_flight := InFlight} = Sum,
         Options) ->
    case is_json(Options) of
        true ->
            Sum;
        false when map_get(count_only, Options) ->
            {ok, format("~b messages would be ~s", [Matched, done(Operation)])};
        false when InFlight > 0 ->
            {ok, format("~b messages ~s, ~b are in flight already", [Changed, done(Operation),
                                                                    InFlight])};
        false ->
            {ok, format("~b messages ~s", [Changed, done(Operation)])}
    end.

by_ids(Operation, Outcomes, Options) ->
    AllDone = lists:all(fun ({_, Outcome}) -> Outcome =:= done end, Outcomes),
    case is_json(Options) of
        true when AllDone ->
            {stream, [[{id, integer_to_binary(Id)}, {outcome, done}] || {Id, done} <- Outcomes]};
        true ->
            Rows = [format("{\"id\":\"~b\",\"outcome\":\"~s\"}", [Id, Outcome])
                    || {Id, Outcome} <- Outcomes],
            {error, ?EXIT_DATA, iolist_to_binary([$[, lists:join($,, Rows), $]])};
        false ->
            Rows = [format("~b: ~s", [Id, outcome(Outcome, Operation)])
                    || {Id, Outcome} <- Outcomes],
            Text = iolist_to_binary(lists:join($\n, Rows)),
            case AllDone of
                true -> {ok, Text};
                false -> {error, ?EXIT_DATA, Text}
            end
    end.

outcome(done, Operation) -> done(Operation);
outcome(in_flight, _) -> "in flight already";
outcome(not_found, _) -> "not pending".

done(cancel) -> "cancelled";
done(release) -> "released";
done(_) -> "rescheduled".

%% An item for the tool's JSON, whose encoders of some versions garble control characters: text with
%% any goes as text that is not UTF-8 does.
-spec json(rabbit_delay_pending:item()) -> rabbit_delay_pending:item().
json(#{payload := Payload, payload_encoding := string} = Item) ->
    case safe(Payload) of
        Payload ->
            (json(maps:remove(payload, Item)))#{payload => Payload};
        #{base64 := Base64} ->
            (json(maps:remove(payload, Item)))#{payload => Base64, payload_encoding => base64}
    end;
json(Item) ->
    maps:map(fun (_, Value) -> json_value(Value) end, Item).

json_value(null) -> null();
json_value(#{base64 := _} = Encoded) when map_size(Encoded) =:= 1 -> Encoded;
json_value(Map) when is_map(Map) ->
    maps:from_list([{json_name(safe(Name)), json_value(Value)} || {Name, Value} <- maps:to_list(Map)]);
json_value(List) when is_list(List) -> [json_value(Value) || Value <- List];
json_value(Value) -> safe(Value).

%% What the tool's encoder writes as null: since 4.3 it is another one, which comes with this module.
null() ->
    case code:ensure_loaded('Elixir.RabbitMQ.CLI.Core.JSON') of
        {module, _} -> null;
        {error, _} -> nil
    end.

json_name(#{base64 := Base64}) -> <<"base64:", Base64/binary>>;
json_name(Name) -> Name.

safe(Text) when is_binary(Text) ->
    case re:run(Text, "[\\x00-\\x07\\x0b\\x0e-\\x1f\\x7f]", [{capture, none}]) of
        match -> #{base64 => base64:encode(Text)};
        nomatch -> Text
    end;
safe(Value) ->
    Value.

-spec is_json(options()) -> boolean().
is_json(#{formatter := <<"json">>}) -> true;
is_json(_) -> false.

%% Of what is shown to people, times (due, next_due) as they read them; programs get ms.
-spec times(#{atom() => term()}, options()) -> #{atom() => term()}.
times(Item, #{formatter := Formatter}) when Formatter =/= <<"pretty_table">>, Formatter =/= <<"table">> ->
    Item;
times(Item, _) ->
    maps:map(fun (Key, Ms) when Key =:= due orelse Key =:= next_due, is_integer(Ms) ->
                     rabbit_delay_time:shown(Ms, now_ms());
                 (_, Value) ->
                     Value
             end, Item).

%% A value of an item, for people: one line, and nothing that a terminal would act on.
-spec text(term()) -> binary().
text(Value) ->
    rabbit_delay_text:escaped(written(Value)).

written(Value) when is_binary(Value) -> Value;
written(Value) when is_integer(Value) -> integer_to_binary(Value);
written(Value) when is_float(Value); is_atom(Value) -> io_lib:format("~p", [Value]);
written(Map) when is_map(Map) ->
    [${, lists:join(", ", [[name(Name), ": ", quoted(Value)]
                           || {Name, Value} <- lists:sort(maps:to_list(Map))]), $}];
written(List) when is_list(List) ->
    [$[, lists:join(", ", [quoted(Value) || Value <- List]), $]].

name(Name) when is_atom(Name) -> atom_to_binary(Name, utf8);
name(Name) -> Name.

quoted(Value) when is_binary(Value) -> [$", Value, $"];
quoted(Value) -> written(Value).

format(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
