%% SPDX-License-Identifier: MPL-2.0

%% The birth and death of an exchange's processes: what rabbit_delay_registry's jobs do, each in a
%% process of its own that may take its time with the broker's metadata, files, supervisors and Ra; and
%% what is done at the start with what is held for exchanges that are gone.
%%
%% Everything here can be done again after it has been interrupted anywhere. An exchange that is deleted
%% cannot come back: that is marked on the disk first.
-module(rabbit_delay_life).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").
-include("rabbit_delay_table.hrl").

-export([do/3, running/1, delete_record/1, put_aside_homeless/0]).
-export([serves/2, serves_other/2, is_other/2]).

%% The registry is told of the supervisor that is started.
-spec do(rabbit_delay_jobs:what(), rabbit_exchange:name(), Registry :: pid()) ->
          ok | nothing | {error, Why :: iodata()}.
do(ensure, XName, Registry) ->
    case running(rabbit_delay_table:row(XName)) of
        none -> start(XName, Registry);
        _ -> declare(XName)
    end;
do(delete, XName, _) ->
    %% From here on it cannot come back, whatever happens.
    Member = rabbit_delay_raft:mark_deleted(XName),
    ok = case running(rabbit_delay_table:row(XName)) of
             none -> ok;
             Sup -> rabbit_delay_exchanges_sup:stop_exchange(Sup)
         end,
    ok = delete_record(XName),
    %% A server that is just starting has its permit until here.
    ok = rabbit_delay_raft:delete_member(XName, Member),
    forget(XName);
do(put_aside, XName, _) ->
    Row = rabbit_delay_table:row(XName),
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case is_other(Row, X) of
                true -> put_aside(XName, Row);
                false -> nothing
            end;
        {error, not_found} ->
            nothing
    end.

forget(XName) ->
    Taken = rabbit_delay_table:take(XName),
    _ = [ok = rabbit_delay_store:close(Store) || #row{store = Store} <- Taken, Store =/= undefined],
    _ = [rabbit_delay_figures:gone(C) || #row{counters = C} <- Taken, C =/= undefined],
    ok.

%% What serves an earlier exchange of this name ends; what it holds is kept, as whoever deleted that
%% exchange could not tell this node.
put_aside(XName, #row{uid = Uid} = Row) ->
    ok = case running(Row) of
             none -> ok;
             Sup -> rabbit_delay_exchanges_sup:stop_exchange(Sup)
         end,
    ok = delete_record(XName),
    ok = case Uid of
             undefined -> ok;
             _ -> say_put_aside(XName, rabbit_delay_raft:put_aside_member(Uid))
         end,
    forget(XName).

%% Whether what runs here is for the exchange of that life. A member without a name of any is of an exchange
%% that has been given a group since, or has none yet.
-spec serves(#row{} | none, Life :: binary() | undefined) -> boolean().
serves(#row{life = undefined, server_id = {_, _} = ServerId}, _) ->
    rabbit_delay_group:life_of_id(ServerId) =:= undefined;
serves(#row{life = Life}, Life) ->
    Life =/= undefined;
serves(_, _) ->
    false.

%% Or for one of another life.
-spec serves_other(#row{} | none, Life :: binary()) -> boolean().
serves_other(#row{life = undefined, server_id = {_, _} = ServerId}, Life) ->
    rabbit_delay_group:life_of_id(ServerId) =/= Life;
serves_other(#row{life = Other}, Life) ->
    Other =/= undefined andalso Other =/= Life;
serves_other(none, _) ->
    false.

%% Whether it is an earlier exchange of this one's name that what runs here is for.
-spec is_other(#row{} | none, rabbit_delay_broker:exchange()) -> boolean().
is_other(none, _) ->
    false;
is_other(#row{life = Life, uid = Uid, exchange = XName}, X) ->
    case rabbit_delay_group:life_of(X) of
        Life -> false;
        undefined -> true;
        _ -> Uid =:= undefined andalso Life =/= undefined
                 orelse Uid =/= undefined andalso not rabbit_delay_group:is_named(XName, Uid)
    end.

%% One that has to wait until there are file descriptors is tried again.
start(XName, Registry) ->
    case room(XName) of
        ok ->
            start_processes(XName, Registry);
        {error, Why} = Error ->
            ?LOG_ERROR("delayed messages of ~ts: not started: ~ts", [rabbit_delay_text:rs(XName), Why],
                       ?LOG_DOMAIN),
            Error
    end.

%% One that has a member here has a name.
room(XName) ->
    case {rabbit_delay_system:room_for_store(), rabbit_delay_registry:member_uid(XName)} of
        {ok, undefined} -> rabbit_delay_system:room_for_name();
        {Room, _} -> Room
    end.

start_processes(XName, Registry) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            Durable = rabbit_delay_broker:is_durable(X),
            %% What it confirms must find its exchange again.
            ok = rabbit_delay_broker:sync_metadata(),
            case rabbit_delay_exchanges_sup:start_exchange(XName, Durable) of
                {ok, Sup} ->
                    Registry ! {started, XName, Sup},
                    declare(XName);
                {error, Reason} ->
                    ?LOG_ERROR("delayed messages of ~ts: cannot be started: ~0P",
                               [rabbit_delay_text:rs(XName), Reason, 20], ?LOG_DOMAIN),
                    {error, "its delay queue cannot be started, see the broker's log"}
            end;
        {error, not_found} ->
            {error, "the exchange does not exist"}
    end.

declare(XName) ->
    case rabbit_delay_table:lookup(XName, #row.queue) of
        Pid when is_pid(Pid) ->
            %% The metadata store may throw where it has no majority.
            try rabbit_delay_broker:declare_queue(rabbit_delay_registry:queue_name(XName), XName, Pid) of
                ok -> ok;
                {error, Reason} -> {error, rabbit_delay_text:reason(Reason)}
            catch
                Class:Reason ->
                    ?LOG_ERROR("delayed messages of ~ts: its internal queue cannot be declared: ~0P",
                               [rabbit_delay_text:rs(XName), {Class, Reason}, 20], ?LOG_DOMAIN),
                    {error, "the broker's metadata store does not take the record of its delay queue"}
            end;
        undefined ->
            {error, "its delay queue is not running"}
    end.

%% A record that stays names a process that is gone: the next one takes its place, and a restart of
%% the node removes it.
-spec delete_record(rabbit_exchange:name()) -> ok.
delete_record(XName) ->
    try
        rabbit_delay_broker:delete_queue(rabbit_delay_registry:queue_name(XName))
    catch
        Class:Reason ->
            ?LOG_WARNING("delayed messages of ~ts: the record of its internal queue cannot be "
                         "deleted at present, and stays: ~0P",
                         [rabbit_delay_text:rs(XName), {Class, Reason}, 20], ?LOG_DOMAIN)
    end.

%% The supervisor of an exchange's processes, if they run.
-spec running(#row{} | none) -> pid() | none.
running(#row{queue = Queue}) when is_pid(Queue) ->
    case process_info(Queue, dictionary) of
        {_, Dictionary} ->
            case lists:keyfind('$ancestors', 1, Dictionary) of
                {_, [Sup | _]} when is_pid(Sup) -> Sup;
                _ -> none
            end;
        undefined ->
            none
    end;
running(_) ->
    none.

%% What belongs to no exchange is put aside, or discarded if its exchange was not durable. Answers
%% the exchanges that hold something and can be started. One whose vhost is not up starts with its
%% first message, or at the next boot.
-spec put_aside_homeless() -> [rabbit_exchange:name()].
put_aside_homeless() ->
    Durable = maps:from_list([{rabbit_delay_broker:exchange_name(X), true}
                              || X <- rabbit_delay_broker:durable_delayed_exchanges()]),
    lists:filtermap(fun (Member) -> has_home(Member, Durable) end, rabbit_delay_raft:members()).

has_home({XName, IsDurable, Uid}, Durable) ->
    Own = rabbit_delay_raft:life_of(Uid),
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} ->
            case rabbit_delay_group:is_named(XName, Uid) of
                true ->
                    ok = rabbit_delay_group:adopt(XName),
                    {true, XName};
                false ->
                    ok = case rabbit_delay_group:life_of(X) of
                             Life when Life =/= undefined, Life =:= Own ->
                                 rabbit_delay_reconciler:unnamed(XName, Uid);
                             _ ->
                                 unnamed(XName, Own, Uid)
                         end,
                    {true, XName}
            end;
        {error, not_found} when is_map_key(XName, Durable) ->
            false;
        {error, not_found} when not IsDurable ->
            ok = rabbit_delay_raft:discard_member(Uid),
            false;
        {error, not_found} ->
            Result = rabbit_delay_raft:quarantine_member(Uid),
            ?LOG_WARNING("delayed messages of ~ts, which does not exist any more, are put aside: "
                         "~0p. Delete that directory to be rid of them.",
                         [rabbit_delay_text:rs(XName), Result], ?LOG_DOMAIN),
            false
    end.

%% A group whose record was lost is not put aside before the exchange has another.
unnamed(XName, Own, Uid) ->
    case rabbit_delay_lost_record:may_be_of(XName, Own) of
        true -> rabbit_delay_reconciler:unnamed(XName, Uid);
        false -> put_aside_other(XName, Uid)
    end.

%% An exchange of this name was deleted and declared again while this node was away, or another group
%% was named: what is here is not that group's.
put_aside_other(XName, Uid) ->
    case rabbit_delay_raft:is_running(Uid) of
        true ->
            ok;
        false ->
            say_put_aside(XName, rabbit_delay_raft:quarantine_member(Uid))
    end.

say_put_aside(XName, Result) ->
    ?LOG_WARNING("delayed messages of an earlier ~ts, which is another exchange by now, are put aside: ~0p. "
                 "Delete that directory to be rid of them.",
                 [rabbit_delay_text:rs(XName), Result], ?LOG_DOMAIN).
