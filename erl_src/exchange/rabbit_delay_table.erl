%% SPDX-License-Identifier: MPL-2.0

%% The table of who is who: a row for each exchange that has or had processes. Anybody reads it at any
%% time, and each column has one writer: the process that it is about, or rabbit_delay_registry and its
%% jobs.
%%
%% It is owned by the plugin's supervisor, so that it outlives the registry; there is none while the
%% plugin does not run, which readers need not know.
-module(rabbit_delay_table).

-include("rabbit_delay_table.hrl").

-export([create/0, row/1, rows/0, lookup/2, update/2, update_known/2, take/1]).
-export([leads/1, leads_as_far_as_known/1, is_led_elsewhere/1, led/0, member/1, members/0, following/0, needs/2,
         forget_member/2, group_grows/2]).

%% The registry's name is the table's.
-define(TABLE, rabbit_delay_registry).

-type update() :: {Column :: pos_integer(), term()} | [{Column :: pos_integer(), term()}].

-spec create() -> ok.
create() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {keypos, #row.exchange},
                              {read_concurrency, true}]),
    ok.

-spec row(rabbit_exchange:name()) -> #row{} | none.
row(XName) ->
    try ets:lookup(?TABLE, XName) of
        [Row] -> Row;
        [] -> none
    catch
        error:badarg -> none
    end.

-spec rows() -> [#row{}].
rows() ->
    case ets:whereis(?TABLE) of
        undefined -> [];
        Table -> ets:tab2list(Table)
    end.

-spec lookup(rabbit_exchange:name(), Column :: pos_integer()) -> term().
lookup(XName, Column) ->
    case row(XName) of
        none -> undefined;
        Row -> element(Column, Row)
    end.

%% There is a row from now on.
-spec update(rabbit_exchange:name(), update()) -> ok.
update(XName, Update) ->
    _ = ets:insert_new(?TABLE, #row{exchange = XName}),
    true = ets:update_element(?TABLE, XName, Update),
    ok.

%% If there is a row.
-spec update_known(rabbit_exchange:name(), update()) -> boolean().
update_known(XName, Update) ->
    try
        ets:update_element(?TABLE, XName, Update)
    catch
        error:badarg -> false
    end.

-spec take(rabbit_exchange:name()) -> [#row{}].
take(XName) ->
    ets:take(?TABLE, XName).

%% Whether this node's member leads the exchange's group, as far as it knows.
-spec leads(rabbit_exchange:name()) -> boolean().
leads(XName) -> lookup(XName, #row.leads) =:= true.

%% The same, but unknown where this node has a member that does not, or has files that it cannot read.
-spec leads_as_far_as_known(rabbit_exchange:name()) -> boolean() | unknown.
leads_as_far_as_known(XName) ->
    case row(XName) of
        #row{refusal = Why} when Why =/= undefined -> unknown;
        #row{leads = true} -> true;
        #row{server_id = {_, _}} -> unknown;
        _ -> false
    end.

%% Whether the exchange has a group in a cluster, and this node's member, if there is one, does not lead it.
-spec is_led_elsewhere(rabbit_exchange:name()) -> boolean().
is_led_elsewhere(XName) ->
    case row(XName) of
        #row{leads = false, life = Life, group_size = Members} -> Life =/= undefined orelse Members > 1;
        _ -> false
    end.

%% The exchanges whose groups this node's members lead, as far as it knows.
-spec led() -> [rabbit_exchange:name()].
led() -> [XName || #row{exchange = XName, leads = true} <- rows()].

%% This node's member, as it was last started.
-spec member(rabbit_exchange:name()) -> {ok, rabbit_delay_group:member()} | none.
member(XName) ->
    case row(XName) of
        #row{server_id = {_, _} = Id, uid = Uid} -> {ok, {Id, Uid}};
        _ -> none
    end.

-spec members() -> [{rabbit_exchange:name(), rabbit_delay_group:member()}].
members() -> [{XName, {Id, Uid}} || #row{exchange = XName, server_id = {_, _} = Id, uid = Uid} <- rows()].

%% Members of this node that do not lead their groups, which have records.
-spec following() -> [{rabbit_exchange:name(), rabbit_delay_group:member()}].
following() ->
    [{XName, {Id, Uid}} || #row{exchange = XName, server_id = {_, _} = Id, uid = Uid, leads = false,
                                life = Life} <- rows(), Life =/= undefined].

%% This node's member needs that version of the machine to go on. Whether that is new.
-spec needs(rabbit_exchange:name(), ra_machine:version()) -> boolean().
needs(XName, Version) ->
    lookup(XName, #row.needs) =/= Version andalso update_known(XName, {#row.needs, Version}).

%% It is this node's no more. It may have led: then its store is known here.
-spec forget_member(rabbit_exchange:name(), rabbit_delay_group:member()) -> ok.
forget_member(XName, {_, Uid}) ->
    case row(XName) of
        #row{uid = Uid, store = Store} ->
            _ = update_known(XName, [{#row.server_id, undefined}, {#row.uid, undefined},
                                     {#row.store, undefined}, {#row.leads, false}]),
            case Store of
                undefined -> ok;
                _ -> rabbit_delay_store:close(Store)
            end;
        _ ->
            ok
    end.

%% The group of this node's member is about to have so many.
-spec group_grows(rabbit_exchange:name(), Members :: pos_integer()) -> ok.
group_grows(XName, Members) -> update(XName, {#row.group_size, Members}).
