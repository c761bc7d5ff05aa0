%% SPDX-License-Identifier: MPL-2.0

%% The members of exchanges' groups, for operators: what is asked on any node is done on the one that leads.
-module(rabbit_delay_members).

-export([status/1, compared/1, add/2, remove/2, transfer/2, force_shrink/2, critical/1]).
-export([status_here/1]).

-export_type([status/0]).

%% Of one member. Indexes are of Raft's log; undefined where the member does not say.
-type status() :: #{node := node(), state := atom(), voter := boolean(),
                    term | last_index | commit_index | last_applied | snapshot_index | messages_delayed :=
                        non_neg_integer() | undefined}.
%% messages_delayed is of digest_index then, with which the digest is: in hexadecimal.
-type compared() :: #{digest_index := non_neg_integer() | undefined, digest := binary() | undefined, atom() => term()}.

-type why() :: iodata().

-define(ASK_MS, 5000).
%% Others are asked, and it comes to lead.
-define(FORCE_MS, 60000).
%% How often it is looked for another leader, where one leaves its leadership first.
-define(TIMES, 3).

%% Asked on any node.
-spec status(rabbit_exchange:name()) -> {ok, [status()]} | {error, why()}.
status(XName) ->
    case rabbit_delay_member_changes:members(XName) of
        [] ->
            {error, delays_nothing(XName)};
        Members ->
            Answers = erpc:multicall([Node || {{_, Node}, _} <- Members], ?MODULE, status_here,
                                     [[Id || {Id, _} <- Members]], ?ASK_MS),
            Statuses = [status(Id, Answer) || {{Id, _}, Answer} <- lists:zip(Members, Answers)],
            Voters = lists:append([Voters || {_, #{state := leader}, Voters} <- Statuses]),
            {ok, [Status#{voter => Voters =:= [] orelse lists:member(Id, Voters)}
                  || {Id, Status, _} <- Statuses]}
    end.

%% With what each holds, and whether that is the same.
-spec compared(rabbit_exchange:name()) -> {ok, [compared()], rabbit_delay_comparison:comparison()} | {error, why()}.
compared(XName) ->
    case status(XName) of
        {ok, Members} ->
            #{held := Held} = Comparison = rabbit_delay_comparison:compare(
                                             [Id || {Id, _} <- rabbit_delay_member_changes:members(XName)]),
            {ok, [maps:merge(Member, held(maps:get(Node, Held, none))) || #{node := Node} = Member <- Members],
             Comparison};
        Error ->
            Error
    end.

held({Index, {Messages, Digest}}) ->
    #{messages_delayed => Messages, digest_index => Index, digest => rabbit_delay_comparison:shown(Digest)};
held(none) ->
    #{digest_index => undefined, digest => undefined}.

%% An earlier version does not say how many messages are pending.
status({_, Node} = Id, {ok, Said}) when is_map(Said) ->
    case Said of
        #{Id := {Status, Voters}} -> {Id, (maps:merge(unknown(unknown), Status))#{node => Node}, Voters};
        _ -> {Id, (unknown(not_started))#{node => Node}, []}
    end;
status({_, Node} = Id, _) ->
    {Id, (unknown(down))#{node => Node}, []}.

unknown(State) ->
    maps:from_list([{state, State} | [{Key, undefined}
                                         || Key <- [term, last_index, commit_index, last_applied, snapshot_index,
                                                    messages_delayed]]]).

%% Another node asks.
-spec status_here([ra:server_id()]) -> #{ra:server_id() => {map(), [ra:server_id()]}}.
status_here(Ids) ->
    maps:from_list([{Id, status_of(Id)} || {Name, Node} = Id <- Ids, Node =:= node(),
                                           whereis(Name) =/= undefined]).

status_of({Name, _} = Id) ->
    case rabbit_delay_broker:raft_overview(Id, ?ASK_MS) of
        {ok, #{current_term := Term, commit_index := Commit, last_applied := Applied} = Overview} ->
            Log = maps:get(log, Overview, #{}),
            {#{state => raft_state(Name), term => Term, commit_index => Commit, last_applied => Applied,
               last_index => maps:get(last_index, Log, undefined),
               snapshot_index => maps:get(snapshot_index, Log, undefined),
               messages_delayed => pending(Overview)},
             rabbit_delay_member_changes:voters(Overview)};
        {error, _} ->
            {unknown(unknown), []}
    end.

pending(#{machine := #{store := #{pending := Messages}}}) -> Messages;
pending(_) -> undefined.

raft_state(Name) ->
    try ets:lookup_element(ra_state, Name, 2) of
        State when is_atom(State) -> State
    catch
        error:badarg -> unknown
    end.

%% Adds a member on Node, if it has none.
-spec add(rabbit_exchange:name(), node()) -> ok | {error, why()}.
add(XName, Node) -> by_leader(XName, add, Node, ?TIMES).

%% Removes that on Node, if it has one.
-spec remove(rabbit_exchange:name(), node()) -> ok | {error, why()}.
remove(XName, Node) -> by_leader(XName, remove, Node, ?TIMES).

%% Has that on Node lead.
-spec transfer(rabbit_exchange:name(), node()) -> ok | {error, why()}.
transfer(XName, Node) -> by_leader(XName, transfer, Node, ?TIMES).

%% Has that on Node go on as the only one, which takes no leader.
-spec force_shrink(rabbit_exchange:name(), node()) -> ok | {error, why()}.
force_shrink(XName, Node) ->
    try
        erpc:call(Node, rabbit_delay_member_changes, force_shrink, [XName], ?FORCE_MS)
    catch
        error:{exception, undef, _} -> {error, io_lib:format("node ~s runs an earlier version", [Node])};
        error:{erpc, Reason} -> {error, io_lib:format("node ~s: ~ts", [Node, rabbit_delay_text:reason(Reason)])}
    end.

by_leader(XName, Function, Node, Times) ->
    case rabbit_delay_member_changes:members(XName) of
        [] ->
            {error, delays_nothing(XName)};
        _ ->
            case rabbit_delay_leader:call(XName, change, rabbit_delay_member_changes, Function,
                                          [XName, Node]) of
                again when Times > 1 -> by_leader(XName, Function, Node, Times - 1);
                again -> {error, "its leader changes at present; try again"};
                {error, {unavailable, Why}} -> {error, Why};
                Result -> Result
            end
    end.

delays_nothing(XName) ->
    ["nothing has been delayed by ", rabbit_delay_text:rs(XName), " yet: it has no members"].

%% The exchanges that would be without a majority of their members without Node, which is asked. On a
%% node that is alone there is nobody to ask for.
-spec critical(node()) -> {ok, [rabbit_exchange:name()]} | {error, why()}.
critical(Node) when Node =/= node() ->
    try
        erpc:call(Node, ?MODULE, critical, [Node], 2 * ?ASK_MS)
    catch
        error:{erpc, Reason} -> {error, io_lib:format("node ~s: ~ts", [Node, rabbit_delay_text:reason(Reason)])}
    end;
critical(Node) ->
    case rabbit_delay_broker:cluster_nodes() of
        [_] ->
            {ok, []};
        Nodes ->
            Groups = [{XName, rabbit_delay_member_changes:members(XName)} || {XName, _} <- rabbit_delay_table:members()],
            Peers = rabbit_delay_member_changes:ask(Nodes -- [Node], lists:append([Members || {_, Members} <- Groups])),
            {ok, [XName || {XName, Members} <- Groups,
                           lists:keymember(Node, 2, [Id || {Id, _} <- Members]),
                           2 * length([M || M <- Members, rabbit_delay_member_changes:state_of(M, Peers) =:= running])
                               =< length(Members)]}
    end.
