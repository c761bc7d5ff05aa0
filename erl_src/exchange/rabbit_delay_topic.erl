%% SPDX-License-Identifier: MPL-2.0

%% An index of topic bindings, for exchanges whose bindings the broker's own index leaves out: under
%% Khepri that is filled for exchanges of type topic only.
%%
%% A trie over the words of the binding keys, one row of a table for each prefix of a key:
%%
%%   {{Exchange, PrefixReversed}, Below, Bindings}
%%
%% Below counts the bindings at that prefix or beyond it; Bindings are those whose key ends there.
%% One process writes, so that a row without bindings below it can be dropped; whoever routes reads.
%% It is derived from the bindings that the broker keeps, and filled from them at boot.
-module(rabbit_delay_topic).

-behaviour(gen_server).

-include_lib("rabbit_common/include/resource.hrl").

-export([start_link/0, add/2, remove/2, replace/2, match/2]).
-export([init/1, handle_call/3, handle_cast/2]).

-export_type([entry/0]).

-type entry() :: {BindingKey :: binary(), rabbit_types:binding_destination(),
                  Args :: rabbit_framing:amqp_table()}.

-type prefix() :: [binary()].

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec add(rabbit_exchange:name(), entry()) -> ok.
add(XName, Entry) -> call({add, XName, Entry}).

-spec remove(rabbit_exchange:name(), [entry()]) -> ok.
remove(XName, Entries) -> call({remove, XName, Entries}).

%% All of an exchange's bindings.
-spec replace(rabbit_exchange:name(), [entry()]) -> ok.
replace(XName, Entries) -> call({replace, XName, Entries}).

%% While the plugin stops or starts there is nothing to keep up to date.
call(Request) ->
    try
        gen_server:call(?MODULE, Request, infinity)
    catch
        exit:{noproc, _} -> ok;
        exit:{shutdown, _} -> ok
    end.

%% The destinations whose binding keys match a routing key, with that key where they are queues. One
%% may come more than once.
-spec match(rabbit_exchange:name(), RoutingKey :: binary()) ->
          [rabbit_types:binding_destination() | {rabbit_amqqueue:name(), BindingKey :: binary()}].
match(XName, RoutingKey) ->
    case ets:whereis(?MODULE) of
        undefined -> [];
        Table -> match(Table, XName, [], words(RoutingKey), [])
    end.

-spec match(ets:tid(), rabbit_exchange:name(), prefix(), [binary()], list()) -> list().
match(Table, XName, Prefix, [], Acc) ->
    skip(Table, XName, Prefix, [], bindings(Table, XName, Prefix) ++ Acc);
match(Table, XName, Prefix, [Word | Rest] = Words, Acc0) ->
    Acc1 = down(Table, XName, [Word | Prefix], Rest, Acc0),
    Acc2 = down(Table, XName, [<<"*">> | Prefix], Rest, Acc1),
    skip(Table, XName, Prefix, Words, Acc2).

down(Table, XName, Prefix, Words, Acc) ->
    case ets:member(Table, {XName, Prefix}) of
        true -> match(Table, XName, Prefix, Words, Acc);
        false -> Acc
    end.

%% "#" stands for any number of words.
skip(Table, XName, Prefix0, Words, Acc) ->
    Prefix = [<<"#">> | Prefix0],
    case ets:member(Table, {XName, Prefix}) of
        true -> skip_any(Table, XName, Prefix, Words, Acc);
        false -> Acc
    end.

skip_any(Table, XName, Prefix, [], Acc) ->
    match(Table, XName, Prefix, [], Acc);
skip_any(Table, XName, Prefix, [_ | Rest] = Words, Acc) ->
    skip_any(Table, XName, Prefix, Rest, match(Table, XName, Prefix, Words, Acc)).

bindings(Table, XName, Prefix) ->
    [case Destination of
         #resource{kind = queue} -> {Destination, Key};
         _ -> Destination
     end || {Key, Destination, _} <- entries(Table, XName, Prefix)].

-spec init([]) -> {ok, ets:tid()}.
init([]) ->
    ?MODULE = ets:new(?MODULE, [named_table, protected, {read_concurrency, true}]),
    {ok, ets:whereis(?MODULE)}.

-spec handle_call(term(), term(), ets:tid()) -> {reply, ok, ets:tid()}.
handle_call({add, XName, Entry}, _From, Table) ->
    ok = insert(Table, XName, Entry),
    {reply, ok, Table};
handle_call({remove, XName, Entries}, _From, Table) ->
    lists:foreach(fun (Entry) -> delete(Table, XName, Entry) end, Entries),
    {reply, ok, Table};
handle_call({replace, XName, Entries}, _From, Table) ->
    Old = lists:append(ets:select(Table, [{{{XName, '_'}, '_', '$1'}, [], ['$1']}])),
    lists:foreach(fun (Entry) -> delete(Table, XName, Entry) end, Old -- Entries),
    lists:foreach(fun (Entry) -> insert(Table, XName, Entry) end, Entries),
    {reply, ok, Table}.

-spec handle_cast(term(), ets:tid()) -> {noreply, ets:tid()}.
handle_cast(_, Table) ->
    {noreply, Table}.

insert(Table, XName, {Key, _, _} = Entry) ->
    [Leaf | Above] = prefixes(words(Key)),
    Entries = entries(Table, XName, Leaf),
    case lists:member(Entry, Entries) of
        true ->
            ok;
        false ->
            lists:foreach(fun (Prefix) -> count(Table, XName, Prefix, 1) end, [Leaf | Above]),
            true = ets:update_element(Table, {XName, Leaf}, {3, [Entry | Entries]}),
            ok
    end.

delete(Table, XName, {Key, _, _} = Entry) ->
    [Leaf | Above] = prefixes(words(Key)),
    Entries = entries(Table, XName, Leaf),
    case lists:member(Entry, Entries) of
        true ->
            true = ets:update_element(Table, {XName, Leaf}, {3, lists:delete(Entry, Entries)}),
            lists:foreach(fun (Prefix) -> count(Table, XName, Prefix, -1) end, [Leaf | Above]);
        false ->
            ok
    end.

entries(Table, XName, Prefix) ->
    case ets:lookup(Table, {XName, Prefix}) of
        [{_, _, Entries}] -> Entries;
        [] -> []
    end.

count(Table, XName, Prefix, N) ->
    case ets:update_counter(Table, {XName, Prefix}, {2, N}, {{XName, Prefix}, 0, []}) of
        0 -> true = ets:delete(Table, {XName, Prefix}), ok;
        _ -> ok
    end.

words(<<>>) -> [];
words(Key) -> binary:split(Key, <<".">>, [global]).

%% Reversed, the longest first.
-spec prefixes([binary()]) -> [prefix(), ...].
prefixes(Words) ->
    lists:foldl(fun (Word, [Longest | _] = Acc) -> [[Word | Longest] | Acc] end, [[]], Words).
