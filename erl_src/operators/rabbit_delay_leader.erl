%% SPDX-License-Identifier: MPL-2.0

%% Has done on the node that leads an exchange's group what operators ask for on any node: there are the
%% store that is read and the dispatcher that changes go through.
%%
%% It runs in the process that asks, which waits for a bounded time: for a leader, if there is none at
%% present, and for the answer of its node. Where that is this node, as on a node that is alone, it is
%% a call like any other.
-module(rabbit_delay_leader).

-export([call/5, known/1, has_begun/1]).
-export([run/4]).

-export_type([kind/0]).

%% Whether it can be done again where it is not known if it was done.
-type kind() :: read | change.

-type unavailable() :: {error, {unavailable, Why :: binary()}}.

%% How long a leader is waited for, and how often it is looked for.
-define(LEADER_MS, 15000).
-define(AGAIN_MS, 100).
%% How long an answer is: what is called there has bounds of its own.
-define(READ_MS, 45000).
-define(CHANGE_MS, 120000).

%% Applies Module:Function to Args on the node that leads.
-spec call(rabbit_exchange:name(), kind(), module(), Function :: atom(), Args :: [term()]) ->
          term() | unavailable().
call(XName, Kind, Module, Function, Args) ->
    at(place(XName), XName, Kind, {Module, Function, Args}, deadline()).

at(here, _, _, {Module, Function, Args}, _) ->
    apply(Module, Function, Args);
at(none, XName, Kind, Call, Deadline) ->
    again(XName, Kind, Call, no_leader(XName), Deadline);
at({there, Node}, XName, Kind, {Module, Function, Args} = Call, Deadline) ->
    try erpc:call(Node, ?MODULE, run, [XName, Module, Function, Args], answer_ms(Kind)) of
        {done, Result} -> Result;
        not_leading -> again(XName, Kind, Call, no_leader(XName), Deadline)
    catch
        error:{erpc, timeout} ->
            unavailable("node ~s, which holds its messages, did not answer in time~s",
                        [Node, in_doubt(Kind)]);
        error:{erpc, _} when Kind =:= read ->
            again(XName, Kind, Call, went_away(Node, Kind), Deadline);
        error:{erpc, _} ->
            went_away(Node, Kind);
        error:{exception, undef, [{M, _, _, _} | _]} when M =:= ?MODULE; M =:= Module ->
            unavailable("node ~s, which holds its messages, has an earlier version of the plugin, or "
                        "it is not running there", [Node])
    end.

answer_ms(read) -> ?READ_MS;
answer_ms(change) -> ?CHANGE_MS.

went_away(Node, Kind) ->
    unavailable("node ~s, which holds its messages, went away~s", [Node, in_doubt(Kind)]).

in_doubt(read) -> "";
in_doubt(change) -> ": what was asked for may have been done or not; list the messages to see".

no_leader(XName) ->
    unavailable("the delayed messages of ~ts have no leader at present, which takes a majority of "
                "the nodes that hold them", [rabbit_delay_text:rs(XName)]).

again(XName, Kind, Call, Failure, Deadline) ->
    case erlang:monotonic_time(millisecond) < Deadline of
        true ->
            receive after ?AGAIN_MS -> ok end,
            at(place(XName), XName, Kind, Call, Deadline);
        false ->
            Failure
    end.

deadline() ->
    erlang:monotonic_time(millisecond) + ?LEADER_MS.

%% Asked by another node, which takes this one for the leader's.
-spec run(rabbit_exchange:name(), module(), Function :: atom(), Args :: [term()]) ->
          {done, term()} | not_leading.
run(XName, Module, Function, Args) ->
    case rabbit_delay_table:leads(XName) of
        true -> {done, apply(Module, Function, Args)};
        false -> not_leading
    end.

%% Whether the exchange has a group, and with it a leader, or will have one.
-spec has_begun(rabbit_exchange:name()) -> boolean().
has_begun(XName) ->
    rabbit_delay_table:leads(XName) orelse rabbit_delay_group:find(XName) =/= none.

%% The same without asking anybody; `unknown' if that is what it takes.
-spec known(rabbit_exchange:name()) -> here | {there, node()} | unknown.
known(XName) ->
    case known_place(XName) of
        unknown ->
            case rabbit_delay_group:find(XName) of
                none -> here;
                _ -> unknown
            end;
        Place ->
            Place
    end.

%% An exchange without a group has delayed nothing, or what it has is here.
place(XName) ->
    case known_place(XName) of
        unknown -> place_of_group(XName);
        Place -> Place
    end.

known_place(XName) ->
    Here = node(),
    case rabbit_delay_table:leads(XName) orelse rabbit_delay_registry:leader_of(XName) of
        true ->
            here;
        {_, Node} when Node =/= Here ->
            case lists:member(Node, nodes()) of
                true -> {there, Node};
                false -> unknown
            end;
        _ ->
            unknown
    end.

place_of_group(XName) ->
    case rabbit_delay_group:find(XName) of
        none ->
            here;
        {ok, Group} ->
            case rabbit_delay_group:ids(Group) of
                [{_, Node}] when Node =:= node() -> here;
                Ids -> asked([Id || {_, Node} = Id <- Ids, Node =:= node() orelse
                                        lists:member(Node, nodes())])
            end;
        {later, _} ->
            none
    end.

%% One that this node only hears of may still be unknown to what runs here.
asked(Ids) ->
    case rabbit_delay_group:leader(Ids) of
        {ok, {_, Node}} when Node =:= node() -> here;
        {ok, {_, Node}} -> case lists:member(Node, nodes()) of
                               true -> {there, Node};
                               false -> none
                           end;
        none -> none
    end.

-spec unavailable(io:format(), [term()]) -> unavailable().
unavailable(Format, Args) ->
    {error, {unavailable, unicode:characters_to_binary(io_lib:format(Format, Args))}}.
