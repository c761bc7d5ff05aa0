%% SPDX-License-Identifier: MPL-2.0

%% What the plugin's rabbitmqctl commands have in common. This runs in the command-line tool, not in
%% the broker: only what is pure, filters, words and times, is called directly.
-module(rabbit_delay_cli).

-export([several_switches/0, several_usage/0, banner/3, pending/2, fold_pending/5, went_away/1, unanswered/1,
         stopped/4, unroutable/3, selecting_switches/0, selecting_usage/0, defaults/2, check_exchange/2,
         check_selection/3, check_filter/1, filter/1, resource/2, call/4, failure/1, switch/3, change/3,
         text/1, times/2, json/1, is_json/1, is_for_programs/1]).

-export_type([options/0, result/0]).

-type options() :: #{atom() => term()}.
-type result() :: term().

-define(BY, <<"rabbitmqctl">>).
%% How long it waits to see what became of messages that it made due.
-define(SETTLED_MS, 5000).
-define(LOOK_MS, 100).
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

%% The switches that name exchanges, in the place of one.
-spec several_switches() -> [{atom(), atom()}].
several_switches() -> [{pattern, string}, {all_exchanges, boolean}].

-spec several_usage() -> [[binary()]].
several_usage() ->
    [[<<"--pattern <regexp>">>, <<"instead of an exchange: all delayed ones of the vhost whose name it "
                                  "matches, as a policy's pattern does">>],
     [<<"--all-exchanges">>, <<"instead of an exchange: all delayed ones of the vhost">>]].

%% Doing: <<"Purging">>, for instance.
-spec banner(Doing :: binary(), [binary()], options()) -> binary().
banner(Doing, [Exchange | _], #{vhost := VHost}) ->
    <<Doing/binary, " delayed exchange ", Exchange/binary, " in vhost ", VHost/binary, " ...">>;
banner(Doing, [], #{vhost := VHost} = Options) ->
    <<Doing/binary, " delayed exchanges ", (case Options of
                                                #{pattern := Pattern} -> <<"matching ", Pattern/binary, " ">>;
                                                _ -> <<>>
                                            end)/binary, "in vhost ", VHost/binary, " ...">>.

%% An exchange, or what names several.
-spec check_exchange([binary()], options()) -> ok | {validation_failure, term()}.
check_exchange(Args, Options) ->
    case {Args, Options} of
        {_, #{pattern := _, all_exchanges := true}} ->
            bad("either --pattern or --all-exchanges");
        {[], #{pattern := Pattern}} ->
            case re:compile(Pattern) of
                {ok, _} -> ok;
                {error, {Why, At}} -> bad(format("--pattern is no regular expression: ~s at ~b", [Why, At]))
            end;
        {[], #{all_exchanges := true}} ->
            ok;
        {[_ | _], _} when is_map_key(pattern, Options); map_get(all_exchanges, Options) ->
            bad("either an exchange, or --pattern or --all-exchanges; ids go with an exchange");
        {[_], _} ->
            ok;
        {[], _} ->
            {validation_failure, not_enough_args};
        _ ->
            {validation_failure, too_many_args}
    end.

%% Of an exchange and ids, or a filter, or --all where that is offered.
-spec check_selection([binary()], options(), OfferedAll :: boolean()) ->
          ok | {validation_failure, term()}.
check_selection(Args, Options, OfferedAll) ->
    Exchange = case is_several(Options) of
                   true -> Args;
                   false -> lists:sublist(Args, 1)
               end,
    case check_exchange(Exchange, Options) of
        ok -> check_messages(Args -- Exchange, Options, OfferedAll);
        Failure -> Failure
    end.

is_several(Options) ->
    is_map_key(pattern, Options) orelse maps:get(all_exchanges, Options, false).

check_messages(Ids, Options, OfferedAll) ->
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
        {error, Why} -> bad(switches(Why))
    end.

%% What a filter's reason names, as it is written here.
switches(Why) ->
    lists:foldl(fun ({Name, _}, Text) ->
                        re:replace(Text, ["(^|after )", atom_to_list(Name), "(?=:| \\()"], ["\\1", switch_of(Name)],
                                   [{return, binary}])
                end, Why, selecting_switches()).

switch_of(Name) -> ["--", string:replace(atom_to_list(Name), "_", "-", all)].

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
        {badrpc, _} = Failure -> unanswered(Failure);
        Result -> Then(Result)
    end.

%% The exit code and the words of what the broker refused (docs/operating.md has the table).
-spec failure({Kind :: atom(), Why :: binary()}) -> {error, integer(), binary()}.
failure({unavailable, Why}) -> {error, ?EXIT_UNAVAILABLE, Why};
failure({_, Why}) -> {error, ?EXIT_DATA, Why}.

%% Pauses or resumes exchanges.
-spec switch(pause | resume, [binary()], options()) -> result().
switch(Change, Args, Options) ->
    each(Args, Options,
         fun (Exchange) ->
                 call(Options, Change, [resource(Exchange, Options), ?BY], fun (ok) -> {done, Exchange} end)
         end,
         fun (_) -> ok end).

%% Runs an operation on messages of exchanges, by ids or as the options say.
-spec change(rabbit_delay_pending:operation(), [binary()], options()) -> result().
change(Operation, [Exchange, First | Others], Options) ->
    Ids = [Id || Word <- [First | Others], {ok, Id} <- [rabbit_delay_filter:id(Word)]],
    unroutable(
      Operation =:= release, Options,
      fun () ->
              call(Options, change_ids, [resource(Exchange, Options), Operation, Ids, ?BY],
                   fun ({ok, Outcomes}) -> by_ids(Operation, Outcomes, Options) end)
      end);
change(Operation, Args, Options) ->
    Several = is_several(Options),
    DryRun = maps:get(count_only, Options, false),
    unroutable(
      Operation =:= release andalso not DryRun, Options,
      fun () ->
              each(Args, Options,
                   fun (Exchange) -> change_one(Operation, Exchange, DryRun, Options) end,
                   fun (Done) -> told(Operation, Done, Several, Options) end)
      end).

change_one(Operation, Exchange, DryRun, Options) ->
    XName = resource(Exchange, Options),
    Sum = #{examined => 0, matched => 0, changed => 0, in_flight => 0},
    Progress = rabbit_delay_progress:new(pending(XName, Options), Options),
    case change_matching(XName, Operation, filter(Options),
                         maps:merge(#{by => ?BY, dry_run => DryRun}, maps:with([cursor], Options)),
                         Sum, Progress, Options) of
        #{} = All -> {done, {Exchange, All}};
        Failure -> Failure
    end.

%% In steps, so that it ends with the tool.
change_matching(XName, Operation, Filter, Request, Sum0, Progress0, Options) ->
    case call(Options, change_matching, [XName, Operation, Filter, Request], fun (Result) -> Result end) of
        {ok, #{cursor := Cursor} = Step} ->
            #{examined := Examined} = Sum =
                maps:map(fun (Key, N) -> N + maps:get(Key, Step) end, Sum0),
            Progress = rabbit_delay_progress:step(Examined, Progress0),
            case Cursor of
                none ->
                    ok = rabbit_delay_progress:ended(Progress),
                    Sum;
                _ ->
                    change_matching(XName, Operation, Filter, Request#{cursor => Cursor}, Sum, Progress,
                                    Options)
            end;
        Failure ->
            ok = rabbit_delay_progress:ended(Progress0),
            stopped(Failure, Sum0, Operation, Request)
    end.

%% What is run again does what is left, but a reschedule by a span would move some twice.
-spec stopped(Failure :: result(), Sum :: map(), rabbit_delay_pending:operation(), Request :: map()) -> result().
stopped({error, {badrpc, _} = Gone}, #{changed := Changed} = Sum, Operation, Request) when Changed > 0 ->
    stopped(failure({unavailable, went_away(Gone)}), Sum, Operation, Request);
stopped({error, Code, Why}, #{changed := Changed}, {reschedule_by, _} = Operation,
        #{cursor := Cursor}) ->
    {error, Code, format("~ts~n~s ~s so far: go on with --cursor ~s",
                         [Why, rabbit_delay_text:count(Changed, "message"), done(Operation), Cursor])};
stopped({error, Code, Why}, #{changed := Changed}, Operation, _) when Changed > 0 ->
    {error, Code, format("~ts~n~s ~s so far: run it again to go on",
                         [Why, rabbit_delay_text:count(Changed, "message"), done(Operation)])};
stopped(Failure, _, _, _) ->
    Failure.

%% One exchange after the other; what was done stays done if one fails.
each([Exchange], _, Fun, Then) ->
    case Fun(Exchange) of
        {done, Result} -> Then([Result]);
        Failure -> Failure
    end;
each([], #{node := Node, vhost := VHost, timeout := Timeout} = Options, Fun, Then) ->
    case rpc:call(Node, rabbit_delay_exchange, list, [VHost, [name]], Timeout) of
        Rows when is_list(Rows) ->
            Pattern = maps:get(pattern, Options, <<>>),
            case lists:sort([Name || [{name, Name}] <- Rows, re:run(Name, Pattern) =/= nomatch]) of
                [] -> {error, ?EXIT_DATA, <<"there is no such delayed exchange in vhost '", VHost/binary, "'">>};
                Names -> each_of(Names, Fun, Then, [])
            end;
        Failure ->
            unanswered(Failure)
    end.

each_of([], _, Then, Done) ->
    Then(lists:reverse(Done));
each_of([Name | Rest], Fun, Then, Done) ->
    case Fun(Name) of
        {done, Result} ->
            each_of(Rest, Fun, Then, [Result | Done]);
        {error, Code, Why} ->
            {error, Code, format("exchange '~ts': ~ts~n~s before it done",
                                 [text(Name), Why, rabbit_delay_text:count(length(Done), "exchange")])};
        Failure ->
            Failure
    end.

told(Operation, Done, Several, Options) ->
    case is_json(Options) of
        true when Several ->
            {stream, [[{exchange, Name} | maps:to_list(Sum)] || {Name, Sum} <- Done]};
        true ->
            [{_, Sum}] = Done,
            Sum;
        false when Several ->
            {ok, iolist_to_binary(lists:join($\n, [[text(Name), ": ", matching(Operation, Sum, Options)]
                                                   || {Name, Sum} <- Done]))};
        false ->
            [{_, Sum}] = Done,
            {ok, matching(Operation, Sum, Options)}
    end.

matching(Operation, #{matched := Matched, changed := Changed, in_flight := InFlight}, Options) ->
    case maps:get(count_only, Options, false) of
        true ->
            format("~s would be ~s", [rabbit_delay_text:count(Matched, "message"), done(Operation)]);
        false when InFlight > 0 ->
            format("~s ~s, ~b ~s in flight already and may still be delivered",
                   [rabbit_delay_text:count(Changed, "message"), done(Operation), InFlight, are(InFlight)]);
        false ->
            format("~s ~s", [rabbit_delay_text:count(Changed, "message"), done(Operation)])
    end.

are(1) -> "is";
are(_) -> "are".

%% How many messages an exchange holds, as far as that can be said.
-spec pending(rabbit_exchange:name(), options()) -> non_neg_integer().
pending(XName, #{node := Node, timeout := Timeout}) ->
    case rpc:call(Node, rabbit_delay_exchange, show, [XName, [messages_delayed]], Timeout) of
        {ok, [{messages_delayed, N}]} when is_integer(N) -> N;
        _ -> 0
    end.

%% Folds over what is pending, in due order: Places says of which ids it is, many at a time, from a cursor
%% on, and Fun is called with Max of them at most and says of how many it was. Whatever else either
%% answers ends it.
-spec fold_pending(fun((Cursor) -> {ok, Ids :: binary(), Cursor | done} | Failure), Cursor, Max :: pos_integer(),
                   fun((Ids :: binary(), Acc) -> {ok, Seen :: pos_integer(), Acc} | Failure), Acc) ->
          {ok, Acc} | {stopped, Failure, Acc} when Cursor :: rabbit_delay_transfer:cursor(), Failure :: term().
fold_pending(Places, Cursor, Max, Fun, Acc0) ->
    case Places(Cursor) of
        {ok, Ids, Next} ->
            case fold_ids(Ids, Max, Fun, Acc0) of
                {ok, Acc} when Next =:= done -> {ok, Acc};
                {ok, Acc} -> fold_pending(Places, Next, Max, Fun, Acc);
                Stopped -> Stopped
            end;
        Failure ->
            {stopped, Failure, Acc0}
    end.

fold_ids(<<>>, _, _, Acc) ->
    {ok, Acc};
fold_ids(Ids, Max, Fun, Acc0) ->
    case Fun(binary:part(Ids, 0, min(Max * 8, byte_size(Ids))), Acc0) of
        {ok, Seen, Acc} ->
            <<_:Seen/binary-unit:64, Rest/binary>> = Ids,
            fold_ids(Rest, Max, Fun, Acc);
        Failure ->
            {stopped, Failure, Acc0}
    end.

%% Why there was no answer.
-spec went_away({badrpc, term()}) -> binary().
went_away({badrpc, timeout}) -> <<"the broker did not answer in time (--timeout)">>;
went_away({badrpc, {'EXIT', {undef, _}}}) ->
    <<"the plugin does not run there, or is of another version than the tool's">>;
went_away({badrpc, {'EXIT', Reason}}) ->
    <<"it failed in the broker: ", (rabbit_delay_text:reason(Reason))/binary>>;
went_away({badrpc, _}) -> <<"the broker went away">>.

%% Of a node that cannot be reached the tool itself tells more; of all else it would show a term, or end with a code
%% that is not in the table.
-spec unanswered({badrpc, term()}) -> {error, {badrpc, nodedown}} | {error, integer(), binary()}.
unanswered({badrpc, nodedown} = Failure) -> {error, Failure};
unanswered(Failure) -> failure({unavailable, went_away(Failure)}).

%% Does what makes messages due, and tells how many were unroutable meanwhile, of each exchange of the
%% vhost. What goes on is awaited, for a bounded time: to a queue that takes nothing it would be long.
-spec unroutable(boolean(), options(), fun(() -> result())) -> result().
unroutable(false, _, Fun) ->
    Fun();
unroutable(true, Options, Fun) ->
    Before = routing(Options),
    Result = Fun(),
    case Result of
        {error, {badrpc, _}} ->
            Result;
        _ ->
            After = settled(2, Options, erlang:monotonic_time(millisecond) + ?SETTLED_MS),
            with_unroutable(Result, [{Name, N - maps:get(Name, Before, 0)}
                                     || {Name, N} <- lists:sort(maps:to_list(After)),
                                        N > maps:get(Name, Before, 0)])
    end.

routing(Options) ->
    maps:map(fun (_, {N, _}) -> N end, routed(Options)).

routed(#{node := Node, vhost := VHost, timeout := Timeout}) ->
    case rpc:call(Node, rabbit_delay_exchange, list,
                  [VHost, [name, unroutable, overdue, in_flight, paused]], Timeout) of
        Rows when is_list(Rows) ->
            maps:from_list([{Name, {N, Paused =:= false andalso Overdue + InFlight > 0}}
                            || [{_, Name}, {_, N}, {_, Overdue}, {_, InFlight}, {_, Paused}] <- Rows]);
        _ ->
            #{}
    end.

%% Nothing is under way where so many looks in a row find it so: one alone may fall between two figures.
settled(Looks, Options, Until) ->
    Routed = routed(Options),
    Left = case lists:any(fun ({_, Busy}) -> Busy end, maps:values(Routed)) of
               true -> 2;
               false -> Looks - 1
           end,
    case Left > 0 andalso erlang:monotonic_time(millisecond) < Until of
        true -> receive after ?LOOK_MS -> settled(Left, Options, Until) end;
        false -> maps:map(fun (_, {N, _}) -> N end, Routed)
    end.

with_unroutable(Result, []) ->
    Result;
with_unroutable(#{} = Sum, Exchanges) ->
    Sum#{unroutable => lists:sum([N || {_, N} <- Exchanges])};
with_unroutable({ok, Text}, Exchanges) ->
    {ok, iolist_to_binary([Text, unroutable_text(Exchanges)])};
with_unroutable({error, Code, Text}, Exchanges) ->
    {error, Code, iolist_to_binary([Text, unroutable_text(Exchanges)])};
with_unroutable(Result, Exchanges) ->
    _ = io:put_chars(standard_error, [unroutable_text(Exchanges), $\n]),
    Result.

unroutable_text(Exchanges) ->
    [["\n", rabbit_delay_text:count(N, "message"), " of exchange '", text(Name), "' ",
      case N of 1 -> "was"; _ -> "were" end, " unroutable meanwhile: no queue is bound for ",
      case N of 1 -> "it"; _ -> "them" end]
     || {Name, N} <- Exchanges].

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

%% Whether a formatter was chosen that is not for people.
-spec is_for_programs(options()) -> boolean().
is_for_programs(#{formatter := Formatter}) -> not lists:member(Formatter, [<<"pretty_table">>, <<"table">>]);
is_for_programs(_) -> false.

%% Of what is shown to people, times (due, next_due) as they read them; programs get ms.
-spec times(#{atom() => term()}, options()) -> #{atom() => term()}.
times(Item, Options) ->
    case is_for_programs(Options) of
        true ->
            Item;
        false ->
            maps:map(fun (Key, Ms) when Key =:= due orelse Key =:= next_due, is_integer(Ms) ->
                             rabbit_delay_time:shown(Ms, now_ms());
                         (_, Value) ->
                             Value
                     end, Item)
    end.

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
