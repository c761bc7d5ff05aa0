%% SPDX-License-Identifier: MPL-2.0

%% What a node of a simulated cluster knows of the one exchange that is simulated: its registry, the
%% exchange's group, and the Ra system. All functions are of the node whose process calls.
-module(simulated_node).

-include_lib("rabbit_common/include/resource.hrl").

-export([exchange/0, begin_all/1, node_started/1, forget/1, dir/1, server_id/1]).
%% rabbit_delay_table, rabbit_delay_registry
-export([update_known/2, lookup/2,
         register_queue/2, register_dispatcher/2, register_store/2, register_life/2, register_leader/2,
         register_paused/2, register_unable/2, queue_name/1, counters/1, queue/1, dispatcher/1, store/1, life/1,
         pending/1, stat/1, group_size/1, refusal/1, leader/2, leader/3, no_leader/1, take_permit/1,
         checkpointed/2]).
%% rabbit_delay_group
-export([obtain/1, salt/1, ids/1, member/1, is_of/3, of_record/1, key_salt/1, leader/1, led_or_stand/2]).
%% rabbit_delay_system, rabbit_delay_raft
-export([status/0, ready/0, check_space/0, look_at_space/0, log_pid/0, has_library/0, server_failed/2,
         start_member/2, start_member/4, store_dir/1, store_dir_of_snapshot/1]).
%% rabbit_delay_local_member, rabbit_delay_newer
-export([is_damaged/1, damaged/2, found_damaged/2, look_for_damage/2, refuse/2, words/3]).

-define(X, #resource{virtual_host = <<"/">>, kind = exchange, name = <<"delayed">>}).
-define(LIFE, <<"life">>).
-define(SALT, <<"salt">>).

exchange() -> ?X.

begin_all(Dir) ->
    erlang:put({?MODULE, dir}, Dir),
    lists:foreach(fun forget/1, simulated_process:all_nodes()).

dir(Node) -> filename:join(erlang:get({?MODULE, dir}), atom_to_list(Node)).

%% A node begins with nothing in memory.
forget(Node) ->
    _ = erlang:put({?MODULE, row, Node}, #{}),
    ok.

node_started(Node) ->
    _ = erlang:put({?MODULE, row, Node}, #{counters => rabbit_delay_counters:new()}),
    ok.

row(Key) -> row(Key, undefined).

row(Key, Default) -> maps:get(Key, erlang:get({?MODULE, row, simulated_process:node()}), Default).

set(Key, Value) ->
    Row = {?MODULE, row, simulated_process:node()},
    _ = erlang:put(Row, (erlang:get(Row))#{Key => Value}),
    ok.

update_known(_, {Column, Value}) -> set({column, Column}, Value) =:= ok.
lookup(_, Column) -> row({column, Column}).
register_queue(_, Pid) -> set(queue, Pid).
register_dispatcher(_, Pid) -> set(dispatcher, Pid).
register_store(_, Store) -> set(store, Store).
register_life(_, Life) -> set(life, Life).
register_leader(_, ServerId) -> set(leader, ServerId).
register_paused(_, _) -> ok.
register_unable(_, _) -> ok.

queue_name(_) -> (?X)#resource{kind = queue, name = atom_to_binary(simulated_process:node())}.
counters(_) -> row(counters).
queue(_) -> row(queue).
dispatcher(_) -> row(dispatcher).
store(_) -> row(store).
life(group) -> ?LIFE;
life(_) -> row(life).
pending(_) -> 0.
group_size(_) -> length(simulated_process:all_nodes()).
refusal(_) -> undefined.
take_permit(_) -> true.
checkpointed(_, _) -> ok.

stat(_) ->
    case row(store) of
        undefined -> #{};
        Store -> case rabbit_delay_store:stat(Store) of
                     #{} = Stat -> Stat;
                     {error, _} -> #{}
                 end
    end.

%% This node's server leads.
leader(XName, {_, Here} = ServerId, Store) ->
    ok = set(store, Store),
    ok = set(leads, true),
    lists:foreach(fun (Node) ->
                          Here =/= Node andalso simulated_process:over(
                                                  Here, Node, fun () -> tell_leader(Node, XName, ServerId) end)
                  end, simulated_process:nodes()),
    leader(XName, ServerId).

tell_leader(Node, XName, ServerId) ->
    case simulated_process:named(Node, registry) of
        undefined -> ok;
        Pid -> simulated_process:as(Pid, fun () -> leader(XName, ServerId) end)
    end.

leader(XName, {_, Node} = ServerId) ->
    ok = register_leader(XName, ServerId),
    Here = simulated_process:node(),
    _ = [rabbit_delay_queue:leader(Queue, ServerId) || Queue <- [row(queue)], is_pid(Queue)],
    _ = [rabbit_delay_dispatcher:leader(Dispatcher, ServerId)
         || Dispatcher <- [row(dispatcher)], is_pid(Dispatcher), Node =:= Here],
    ok.

no_leader(_) ->
    case row(leads) of
        true ->
            ok = set(leads, false),
            case row(dispatcher) of
                undefined -> ok;
                Pid -> simulated_process:kill(Pid, {shutdown, not_leading})
            end;
        _ ->
            ok
    end.

obtain(_) -> {ok, group}.
salt(_) -> ?SALT.
key_salt(_) -> {ok, ?SALT}.
of_record(_) -> {ok, group}.
is_of(_, Life, _) -> Life =:= undefined orelse Life =:= ?LIFE.
ids(group) -> [{member, Node} || Node <- simulated_process:all_nodes()].
member(group) -> {ok, {{member, simulated_process:node()}, <<"uid">>}}.

%% Whom the first of them that answers takes for the leader.
leader(Ids) -> simulated_raft:who_leads(simulated_process:node(), Ids).
led_or_stand(_, Ids) -> leader(Ids).

server_id(_) -> {member, simulated_process:node()}.
status() -> up.
ready() -> {ok, 1}.
check_space() -> ok.
look_at_space() -> ok.
log_pid() -> undefined.
has_library() -> false.
server_failed(_, _) -> ok.
start_member(_, _) -> ok.
start_member(_, _, _, _) -> ok.
store_dir(Uid) -> filename:join(dir(binary_to_atom(Uid)), "delay_store").
store_dir_of_snapshot(Dir) -> filename:join(filename:dirname(filename:dirname(Dir)), "delay_store").

is_damaged(_) -> false.
-spec damaged(term(), term()) -> no_return().
damaged(_, What) -> error({damaged, What}).
-spec found_damaged(term(), term()) -> no_return().
found_damaged(_, What) -> error({damaged, What}).
-spec look_for_damage(map(), term()) -> ok.
look_for_damage(#{corrupt_records := 0, rebuilt_indexes := 0}, _) -> ok;
look_for_damage(Report, _) -> error({damaged, Report}).
words(What, Format, Args) -> [What, io_lib:format(Format, Args)].
-spec refuse(term(), term()) -> no_return().
refuse(_, Why) -> error({refused, Why}).
