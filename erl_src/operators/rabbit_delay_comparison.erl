%% SPDX-License-Identifier: MPL-2.0

%% Whether the members of an exchange's group hold the same: each is asked what it held at the indexes of the
%% log at which it was seen (rabbit_delay_digest), until there is one at which all were. While messages come
%% and go that takes some luck, so it ends after a time, and says which could not be compared.
%%
%% It runs in the process that asks, on any node, and owns nothing.
-module(rabbit_delay_comparison).

-export([compare/1, judge/1, shown/1]).

-export_type([answer/0, comparison/0]).

-type answer() :: {ok, rabbit_delay_digest:seen()} | {error, down | earlier | not_started | unknown}.

%% same: all members were seen at one index, and held the same there. different: two did not. unknown: some
%% could not be compared, and the others held the same.
%%
%% held: of each member that answered, at the index at which it was compared; if it was not, when last seen.
-type comparison() :: #{outcome := same | different | unknown,
                        why := binary(),
                        held := #{node() => {ra:index(), rabbit_delay_digest:held()}}}.

-type at() :: [{node(), rabbit_delay_digest:held()}].

%% How long they are looked at in all, and each time.
-define(FOR_MS, 5000).
-define(EACH_MS, 500).
-define(ANSWER_MS, 5000).
%% Of the digest, what is of the messages.
-define(OF_MESSAGES, 8).

-spec compare([ra:server_id()]) -> comparison().
compare(Ids) ->
    Until = erlang:monotonic_time(millisecond) + ?FOR_MS,
    judge(looked_at(ask(Ids, 0), Ids, Until)).

%% One that has not answered is not asked again.
looked_at(Said, Ids, Until) ->
    case is_settled(Said) orelse erlang:monotonic_time(millisecond) >= Until of
        true ->
            Said;
        false ->
            Able = [Id || {_, Node} = Id <- Ids, {N, {ok, _}} <- Said, N =:= Node],
            Again = ask(Able, ?EACH_MS),
            looked_at([{Node, also(Answer, proplists:get_value(Node, Again))} || {Node, Answer} <- Said], Ids, Until)
    end.

ask(Ids, ForMs) ->
    Nodes = [Node || {_, Node} <- Ids],
    lists:zip(Nodes, [answer(Answer) || Answer <- erpc:multicall(Nodes, rabbit_delay_digest, seen_here, [Ids, ForMs],
                                                                 ForMs + ?ANSWER_MS)]).

answer({ok, Answer}) -> Answer;
answer({error, {exception, undef, [{rabbit_delay_digest, _, _, _} | _]}}) -> {error, earlier};
answer({error, {erpc, _}}) -> {error, down};
answer(_) -> {error, unknown}.

also({ok, Before}, {ok, Seen}) -> {ok, maps:merge(Before, Seen)};
also({ok, _}, {error, _} = Error) -> Error;
also({error, _} = Error, undefined) -> Error.

%% Nothing that would be seen later could say more: all that answer were at one index, or there are no two.
is_settled(Said) ->
    case [Seen || {_, {ok, Seen}} <- Said] of
        [First | [_ | _] = Others] ->
            lists:any(fun (Index) -> lists:all(fun (Seen) -> is_map_key(Index, Seen) end, Others) end,
                      maps:keys(First));
        _ ->
            true
    end.

%% What the answers of all members come to.
-spec judge([{node(), answer()}]) -> comparison().
judge([{_, {ok, Seen}}] = Said) ->
    #{outcome => same, why => <<"it has one member: there is nothing to compare">>,
      held => held(lists:max([0 | maps:keys(Seen)]), Said)};
judge(Said) ->
    Shared = [Each || {_, [_, _ | _]} = Each <- maps:to_list(by_index(Said))],
    Different = [Each || {_, At} = Each <- Shared, length(groups(At)) > 1],
    case {best(Different), best(Shared)} of
        {{Index, At}, _} ->
            outcome(different, Index, [different(Index, groups(At))], Said, At);
        {none, {Index, At}} when length(At) =:= length(Said) ->
            outcome(same, Index, [same(Index, At)], Said, At);
        {none, {Index, At}} ->
            outcome(unknown, Index, [same(Index, At)], Said, At);
        {none, none} ->
            outcome(unknown, none, [], Said, [])
    end.

outcome(Outcome, Index, Words, Said, At) ->
    Left = case [{not_compared(Answer, Said), Node} || {Node, Answer} <- Said, not lists:keymember(Node, 1, At)] of
               [] -> [];
               All -> [["not compared: ", lists:join("; ", [[named(Nodes), " (", Why, ")"]
                                                            || {Why, Nodes} <- collected(All)])]]
           end,
    #{outcome => Outcome, why => unicode:characters_to_binary(lists:join("; ", Words ++ Left)),
      held => held(Index, Said)}.

-spec by_index([{node(), answer()}]) -> #{ra:index() => at()}.
by_index(Said) ->
    lists:foldr(fun ({Index, Held}, All) ->
                        maps:update_with(Index, fun (At) -> [Held | At] end, [Held], All)
                end, #{}, [{Index, {Node, Held}} || {Node, {ok, Seen}} <- Said, {Index, Held} <- maps:to_list(Seen)]).

%% Where most were seen, and of such the last.
best([]) -> none;
best(Each) ->
    {_, Index, At} = lists:max([{length(At), Index, At} || {Index, At} <- Each]),
    {Index, At}.

held(Index, Said) ->
    maps:from_list([{Node, case Seen of
                               #{Index := Held} -> {Index, Held};
                               _ -> lists:max(maps:to_list(Seen))
                           end} || {Node, {ok, Seen}} <- Said, map_size(Seen) > 0]).

%% Those that hold the same, together.
groups(At) -> collected([{Held, Node} || {Node, Held} <- At]).

%% In the order in which they first come.
collected(Pairs) ->
    lists:foldl(fun ({Key, Value}, All) ->
                        case lists:keyfind(Key, 1, All) of
                            {_, Values} -> lists:keyreplace(Key, 1, All, {Key, Values ++ [Value]});
                            false -> All ++ [{Key, [Value]}]
                        end
                end, [], Pairs).

%% ---------------------------------------------------------------------------------- words

same(Index, At) ->
    io_lib:format("~ts hold the same at index ~b of the log", [named([Node || {Node, _} <- At]), Index]).

different(Index, Groups) ->
    What = case lists:usort([{N, binary:part(Digest, 0, ?OF_MESSAGES)} || {{N, Digest}, _} <- Groups]) of
               [_] -> "the same messages, but not the same sessions of publishers, or one is paused";
               _ -> "different messages"
           end,
    io_lib:format("members hold ~ts: at index ~b of the log ~ts",
                  [What, Index, lists:join(", ", [io_lib:format("~ts ~ts (digest ~ts)",
                                                                [named(Nodes), rabbit_delay_text:count(N, "message"),
                                                                 shown(Digest)])
                                                  || {{N, Digest}, Nodes} <- Groups])]).

not_compared({error, down}, _) ->
    "its node does not answer";
not_compared({error, earlier}, _) ->
    "its node has an earlier version of the plugin, which does not tell, or it is not running there";
not_compared({error, not_started}, _) ->
    "its member does not run";
not_compared({error, unknown}, _) ->
    "its member does not answer";
not_compared({ok, _}, Said) ->
    case [Node || {Node, {ok, _}} <- Said] of
        [_] -> "no other answers";
        _ -> io_lib:format("not seen at an index at which another was, in ~b s: it is behind, or messages come and "
                           "go; try again, best while none do", [?FOR_MS div 1000])
    end.

named([Node]) -> atom_to_binary(Node);
named(Nodes) -> [lists:join(", ", [atom_to_binary(Node) || Node <- lists:droplast(Nodes)]), " and ",
                 atom_to_binary(lists:last(Nodes))].

-spec shown(<<_:96>>) -> binary().
shown(Digest) -> string:lowercase(binary:encode_hex(Digest)).
