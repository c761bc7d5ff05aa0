%% SPDX-License-Identifier: MPL-2.0

%% This node's members of exchanges' groups, as the leaders of these groups ask for them and have them go.
%%
%% It owns no process. Everything here may take seconds, but for is_draining/0.
-module(rabbit_delay_local_member).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([here/1, is_draining/0, start_added/3, end_member/3, look_at/2]).
-export([damaged/2, found_damaged/2, look_for_damage/2, is_damaged/1]).

-export_type([here/0, state/0]).

%% What a node says of itself and of members of its own.
-type here() :: #{ready := boolean(), draining := boolean(), load := non_neg_integer(),
                  members := #{rabbit_delay_raft:uid() => state()}}.

%% none: it has no files.
-type state() :: running | stopped | damaged | none.

%% In the directory of a member that holds something else than what was written.
-define(DAMAGED_MARK, "damaged").

%% Of these, those that are this node's.
-spec here([rabbit_delay_group:member()]) -> here().
here(Members) ->
    #{ready => rabbit_delay_system:status() =:= up,
      draining => is_draining(),
      load => length(rabbit_delay_table:members()),
      members => maps:from_list([{Uid, held(Member)} || {{_, Node}, Uid} = Member <- Members,
                                                        Node =:= node()])}.

held({{Name, _}, Uid}) ->
    case {is_pid(whereis(Name)), filelib:is_dir(rabbit_delay_raft:store_dir(Uid))} of
        {false, false} -> none;
        {IsRunning, _} ->
            case filelib:is_file(damaged_mark(Uid)) of
                true -> damaged;
                false when IsRunning -> running;
                false -> stopped
            end
    end.

%% This node's member of a group of several holds something else than what was written. The others have it
%% right: so it releases nothing, leads only until another does, and is replaced by a new one.
-spec damaged(rabbit_exchange:name(), Why :: iodata()) -> ok.
damaged(XName, Why) ->
    case rabbit_delay_table:member(XName) of
        {ok, {_, Uid}} ->
            Mark = damaged_mark(Uid),
            Result = case file:write_file(Mark, <<>>) of
                         ok -> rabbit_delay_snapshot:sync_dir(filename:dirname(Mark));
                         Error -> Error
                     end,
            ?LOG_ERROR("delayed messages of ~ts: what this node holds of them is damaged: ~ts. Other nodes have "
                       "them: this node's member releases nothing, and a new one takes its place (~0p)",
                       [rabbit_delay_text:rs(XName), Why, Result], ?LOG_DOMAIN);
        none ->
            ok
    end.

%% As damaged/2, of what is found when a member's files are opened; a group of one has nobody who would know better.
-spec found_damaged(rabbit_exchange:name(), Why :: iodata()) -> ok.
found_damaged(XName, Why) ->
    case rabbit_delay_registry:group_size(XName) of
        1 -> ok;
        _ -> damaged(XName, Why)
    end.

%% What the opening of a store says that it found.
-spec look_for_damage(#{atom() => non_neg_integer()}, rabbit_exchange:name()) -> ok.
look_for_damage(#{corrupt_records := Records, rebuilt_indexes := Indexes}, XName) when Records + Indexes > 0 ->
    found_damaged(XName, io_lib:format("~b records, ~b indexes", [Records, Indexes]));
look_for_damage(_, _) ->
    ok.

%% This node's member, if it has one.
-spec is_damaged(rabbit_exchange:name()) -> boolean().
is_damaged(XName) ->
    case rabbit_delay_table:member(XName) of
        {ok, {_, Uid}} -> filelib:is_file(damaged_mark(Uid));
        none -> false
    end.

damaged_mark(Uid) -> filename:join(filename:dirname(rabbit_delay_raft:store_dir(Uid)), ?DAMAGED_MARK).

%% Whether it is about to be stopped for maintenance.
-spec is_draining() -> boolean().
is_draining() ->
    try
        rabbit_maintenance:is_being_drained_local_read(node())
    catch
        _:_ -> false
    end.

%% Starts this node's member, which the record names from now on; the group's leader asks.
-spec start_added(rabbit_exchange:name(), Life :: binary(), rabbit_delay_group:member()) ->
          ok | {error, term()}.
start_added(XName, Life, {Id, Uid} = Member) ->
    case {rabbit_delay_group:await_named(XName, Member, true), rabbit_delay_system:ready(),
          rabbit_delay_broker:lookup_exchange(XName)} of
        {{ok, Group}, {ok, _}, {ok, X}} ->
            ok = rabbit_delay_broker:sync_metadata(),
            ok = rabbit_delay_registry:end_other(XName, Life),
            Start = fun () ->
                            case put_aside_other(XName, Uid, Group) of
                                ok -> start_new(XName, rabbit_delay_broker:is_durable(X), Member, Group);
                                Error -> Error
                            end
                    end,
            case global:trans({Id, self()}, Start, [node()]) of
                ok ->
                    ok = has_member(XName),
                    rabbit_delay_registry:start_later(XName);
                Error ->
                    Error
            end;
        {{ok, _}, _, _} ->
            {error, not_ready};
        {Error, _, _} ->
            Error
    end.

start_new(XName, Durable, {_, Uid} = Member, Group) ->
    case rabbit_delay_raft:start_new_member(XName, Durable, Member, Group, #{membership => promotable}) of
        ok -> rabbit_delay_raft:mark_complete(Uid);
        Error -> Error
    end.

%% An earlier member of this node: only one has a place here.
put_aside_other(XName, Uid, Group) ->
    case rabbit_delay_raft:find_member(XName) of
        {ok, Other} when Other =/= Uid ->
            Id = rabbit_delay_raft:id_of(Other),
            case is_out(Id, Group) of
                true -> end_files(XName, {Id, Other}, put_aside);
                Answer -> {error, {holds, Id, Answer}}
            end;
        _ ->
            ok
    end.

%% Ends this node's member, which is in its group no more. What its leader asks for is deleted, unless it is
%% damaged; that, and what was found here, is put aside.
-spec end_member(rabbit_exchange:name(), rabbit_delay_group:member(), delete | put_aside) ->
          ok | {error, term()}.
end_member(XName, {Id, _} = Member, How) ->
    case rabbit_delay_group:await_named(XName, Member, false) of
        {ok, Group} ->
            case is_out(Id, Group) of
                true -> global:trans({Id, self()}, fun () -> end_files(XName, Member, How) end, [node()]);
                Answer -> {error, {in_group, Answer}}
            end;
        Error ->
            Error
    end.

%% The group's leader knows. Who asks for a member's end may have been replaced meanwhile, and the metadata
%% store may have set the record back.
is_out(Id, Group) ->
    case rabbit_delay_group:configuration(rabbit_delay_group:ids(Group)) of
        {ok, Configuration} -> not lists:member(Id, Configuration);
        none -> unknown
    end.

end_files(XName, {_, Uid} = Member, How) ->
    ok = rabbit_delay_table:forget_member(XName, Member),
    case How =:= delete andalso not filelib:is_file(damaged_mark(Uid)) of
        true ->
            rabbit_delay_raft:remove_member(Uid);
        false ->
            Result = rabbit_delay_raft:put_aside_member(Uid),
            ?LOG_WARNING("delayed messages of ~ts: the member that this node had of its group is in it no "
                         "more, and is put aside: ~0p. Delete that directory to be rid of it.",
                         [rabbit_delay_text:rs(XName), Result], ?LOG_DOMAIN),
            ok
    end.

%% A member of this node that the record does not name.
-spec look_at(rabbit_exchange:name(), rabbit_delay_group:member()) -> done | unknown.
look_at(XName, {_, Uid} = Member) ->
    case rabbit_delay_group:find(XName) of
        {ok, #{formed := true, members := Members} = Group} ->
            case lists:member(Member, Members) orelse end_member(XName, Member, put_aside) of
                true ->
                    %% Named again: what runs here for the exchange may have begun without it.
                    _ = rabbit_delay_raft:is_running(Uid) orelse has_member(XName),
                    done;
                ok ->
                    done;
                {error, {in_group, unknown}} ->
                    ok = start_unnamed(XName, Member, Group),
                    unknown;
                {error, _} ->
                    unknown
            end;
        _ ->
            case filelib:is_dir(rabbit_delay_raft:store_dir(Uid)) of
                true -> unknown;
                false -> done
            end
    end.

%% Nobody leads its group: it may be this one's vote that is missing, as the metadata store has set the record
%% back. Whoever leads then names it again, or has it end.
start_unnamed(XName, {_, Uid} = Member, #{life := Life, members := Named} = Group) ->
    Here = rabbit_delay_table:member(XName),
    case rabbit_delay_raft:life_of(Uid) =:= Life andalso not rabbit_delay_raft:is_running(Uid)
        andalso (Here =:= none orelse Here =:= {ok, Member})
        andalso {rabbit_delay_system:ready(), rabbit_delay_broker:lookup_exchange(XName)} of
        {{ok, _}, {ok, X}} ->
            Result = rabbit_delay_raft:start_member(XName, rabbit_delay_broker:is_durable(X), Member, Group),
            ok = rabbit_delay_table:group_grows(XName, length(Named) + 1),
            ?LOG_WARNING("delayed messages of ~ts: the exchange's record does not name the member that this node "
                         "has of their group, and nobody leads that: it is started: ~0p",
                         [rabbit_delay_text:rs(XName), Result], ?LOG_DOMAIN),
            has_member(XName);
        _ ->
            ok
    end.

has_member(XName) ->
    case rabbit_delay_registry:queue(XName) of
        Pid when is_pid(Pid) -> rabbit_delay_queue:has_member(Pid);
        undefined -> ok
    end.
