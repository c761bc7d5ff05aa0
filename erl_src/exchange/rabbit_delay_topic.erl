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
%%
%% It is derived from the bindings that the broker keeps, and never the only answer. An exchange
%% whose bindings are all in it has a row {Exchange, Generation} with the present generation; where
%% there is none, whoever routes goes through the broker's bindings, and has the exchange indexed. So
%% it may end and begin empty at any time. Whoever changes a binding waits for the index, for a
%% bounded time: what it has not heard of by then begins a new generation, in which nothing is
%% indexed yet.
%%
%% Changes of the same binding may come in another order than the broker made them: some time after
%% an exchange's last change its index is compared with the broker's bindings.
-module(rabbit_delay_topic).

-behaviour(gen_server).

-include_lib("rabbit_common/include/resource.hrl").

-export([start_link/0, start_link/1, add/2, remove/2, forget/1, match/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([entry/0, read/0]).

-type entry() :: {BindingKey :: binary(), rabbit_types:binding_destination(),
                  Args :: rabbit_framing:amqp_table()}.

%% Where the bindings are read, without waiting for anyone.
-type read() :: fun((rabbit_exchange:name()) -> [entry()]).

-type prefix() :: [binary()].

-define(INDEX, {?MODULE, index}).
-define(CHANGE_MS, 5000).
-define(COMPARE_MS, 2000).
%% The part of its time that this process may spend on comparing: one in so many.
-define(COMPARE_PART, 20).

-record(state, {table :: ets:tid(),
                generation :: atomics:atomics_ref(),
                read :: read(),
                %% not yet compared, and when each was last changed
                changed = #{} :: #{rabbit_exchange:name() => integer()},
                timer :: undefined | reference()}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    start_link(fun rabbit_delay_broker:topic_bindings/1).

-spec start_link(read()) -> {ok, pid()} | {error, term()}.
start_link(Read) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, Read, []).

%% The broker has added a binding.
-spec add(rabbit_exchange:name(), entry()) -> ok.
add(XName, Entry) -> change({add, XName, Entry}).

%% The broker has removed bindings.
-spec remove(rabbit_exchange:name(), [entry()]) -> ok.
remove(XName, Entries) -> change({remove, XName, Entries}).

%% The exchange has been deleted.
-spec forget(rabbit_exchange:name()) -> ok.
forget(XName) -> change({forget, XName}).

%% Without the process there is no index, and the next one reads what has changed.
change(Request) ->
    try
        gen_server:call(?MODULE, Request, ?CHANGE_MS)
    catch
        exit:{noproc, _} -> ok;
        exit:_ -> nothing_is_indexed()
    end.

nothing_is_indexed() ->
    case persistent_term:get(?INDEX, none) of
        none -> ok;
        {Generation, _} -> atomics:add(Generation, 1, 1)
    end.

%% The destinations whose binding keys match a routing key, with that key where they are queues. One
%% may come more than once.
-spec match(rabbit_exchange:name(), RoutingKey :: binary()) ->
          [rabbit_types:binding_destination() | {rabbit_amqqueue:name(), BindingKey :: binary()}].
match(XName, RoutingKey) ->
    Words = words(RoutingKey),
    case ets:whereis(?MODULE) of
        undefined ->
            scan(XName, Words);
        Table ->
            %% It can end at any moment.
            try match_indexed(Table, XName, Words) of
                not_indexed -> scan(XName, Words);
                Found -> Found
            catch
                error:badarg -> scan(XName, Words)
            end
    end.

match_indexed(Table, XName, Words) ->
    {Generation, _} = persistent_term:get(?INDEX),
    Present = atomics:get(Generation, 1),
    case ets:lookup(Table, XName) of
        [{_, Present}] ->
            match(Table, XName, [], Words, []);
        _ ->
            %% Asked for once, however many route.
            _ = ets:insert_new(Table, {{wanted, XName}})
                andalso gen_server:cast(?MODULE, {index, XName}),
            not_indexed
    end.

scan(XName, Words) ->
    Read = case persistent_term:get(?INDEX, none) of
               none -> fun rabbit_delay_broker:topic_bindings/1;
               {_, Given} -> Given
           end,
    [found(Entry) || {Key, _, _} = Entry <- Read(XName), matches([words(Key)], Words)].

%% Patterns are what may be left of the key's words, each once: time is the product of the lengths,
%% whatever the key.
matches([], _) ->
    false;
matches(Patterns, []) ->
    lists:any(fun (Pattern) -> [Word || Word <- Pattern, Word =/= <<"#">>] =:= [] end, Patterns);
matches(Patterns, [Word | Rest]) ->
    matches(lists:usort(lists:flatmap(fun (Pattern) -> after_word(Word, Pattern) end, Patterns)),
            Rest).

after_word(Word, [<<"#">> | Rest] = Pattern) -> [Pattern | after_word(Word, Rest)];
after_word(_, [<<"*">> | Rest]) -> [Rest];
after_word(Word, [Word | Rest]) -> [Rest];
after_word(_, _) -> [].

found({Key, #resource{kind = queue} = Queue, _}) -> {Queue, Key};
found({_, Destination, _}) -> Destination.

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
    [found(Entry) || Entry <- entries(Table, XName, Prefix)].

-spec init(read()) -> {ok, #state{}}.
init(Read) ->
    %% Public, so that whoever routes can ask for an exchange.
    ?MODULE = ets:new(?MODULE, [named_table, public, {read_concurrency, true}]),
    Generation = case persistent_term:get(?INDEX, none) of
                     {Ref, _} -> Ref;
                     none -> atomics:new(1, [])
                 end,
    %% Nothing, if it is what was there.
    persistent_term:put(?INDEX, {Generation, Read}),
    {ok, #state{table = ets:whereis(?MODULE), generation = Generation, read = Read}}.

-spec handle_call(term(), term(), #state{}) -> {reply, ok, #state{}}.
handle_call({add, XName, Entry}, _From, #state{table = Table} = State) ->
    ok = index_first(XName, State),
    ok = insert(Table, XName, Entry),
    {reply, ok, changed(XName, State)};
handle_call({remove, XName, Entries}, _From, #state{table = Table} = State) ->
    ok = index_first(XName, State),
    lists:foreach(fun (Entry) -> delete(Table, XName, Entry) end, Entries),
    {reply, ok, changed(XName, State)};
handle_call({forget, XName}, _From, #state{table = Table, changed = Changed} = State) ->
    ok = replace(Table, XName, []),
    true = ets:delete(Table, XName),
    {reply, ok, State#state{changed = maps:remove(XName, Changed)}}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({index, XName}, State) ->
    ok = index_first(XName, State),
    {noreply, State};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(compare, #state{changed = Changed} = State0) ->
    Began = now_ms(),
    {Due, Fresh} = lists:partition(fun ({_, At}) -> At + ?COMPARE_MS =< Began end,
                                   maps:to_list(Changed)),
    State = State0#state{changed = maps:from_list(Fresh), timer = undefined},
    Compared = lists:foldl(fun ({XName, _}, S) -> compare(XName, S) end, State, Due),
    Pause = max(?COMPARE_MS, ?COMPARE_PART * (now_ms() - Began)),
    {noreply, case map_size(Compared#state.changed) of
                  0 -> Compared;
                  _ -> compare_later(Pause, Compared)
              end};
handle_info(_, State) ->
    {noreply, State}.

%% All of an exchange's bindings, unless they are there. A change that is made meanwhile, and whose
%% maker gives up before it is heard of, begins another generation than this one.
index_first(XName, #state{table = Table, generation = Ref, read = Read}) ->
    Generation = atomics:get(Ref, 1),
    true = ets:delete(Table, {wanted, XName}),
    case ets:lookup(Table, XName) of
        [{_, Generation}] ->
            ok;
        _ ->
            ok = replace(Table, XName, Read(XName)),
            true = ets:insert(Table, {XName, Generation}),
            ok
    end.

%% Again after a difference: it may be a change that is just being made.
compare(XName, #state{table = Table, read = Read} = State) ->
    case ets:member(Table, XName) of
        true ->
            Bindings = Read(XName),
            case lists:sort(indexed(Table, XName)) =:= lists:usort(Bindings) of
                true ->
                    State;
                false ->
                    ok = replace(Table, XName, Bindings),
                    State#state{changed = (State#state.changed)#{XName => now_ms()}}
            end;
        false ->
            State
    end.

changed(XName, #state{changed = Changed} = State) ->
    compare_later(?COMPARE_MS, State#state{changed = Changed#{XName => now_ms()}}).

compare_later(Pause, #state{timer = undefined} = State) ->
    State#state{timer = erlang:send_after(Pause, self(), compare)};
compare_later(_, State) ->
    State.

now_ms() -> erlang:monotonic_time(millisecond).

replace(Table, XName, Entries) ->
    lists:foreach(fun (Entry) -> delete(Table, XName, Entry) end,
                  indexed(Table, XName) -- Entries),
    lists:foreach(fun (Entry) -> insert(Table, XName, Entry) end, Entries).

indexed(Table, XName) ->
    lists:append(ets:select(Table, [{{{XName, '_'}, '_', '$1'}, [], ['$1']}])).

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
