%% SPDX-License-Identifier: MPL-2.0

%% Sends a snapshot to another member, in a process that Ra has for that. The files are held before the first
%% is sent, as Ra may delete their directory meanwhile; one at a time is open.
%%
%% A receiver that says what it has (rabbit_delay_blocks) is sent the rest, and where the former is. Its chunks are
%% {delayed, 1, Transfer, Chunk}: two transfers with the same one are of the same chunks, and it takes no
%% others in the middle, which Ra may give it when another leader goes on. Any other receiver is sent all, and the
%% chunks alone. What they are: docs/internals/formats.md.
-module(rabbit_delay_snapshot_sender).

-export([context/0, begin_read/2, read_chunk/2]).

-export_type([chunk/0, part/0]).

-type part() :: {file, Name :: binary(), Offset :: non_neg_integer(), binary()}
              | {same, Name :: binary(), Offset :: non_neg_integer(), Held :: binary(), [rabbit_delay_blocks:block()]}
              | {content, binary()}.
-type chunk() :: part() | {delayed, 1, Transfer :: binary(), part()}.

-define(QUERY_MS, 5000).
-define(BORROW_MS, 5000).
-define(BORROW_AGAIN_MS, 100).

-record(reading, {dir :: file:filename_all(),
                  %% what `open' counts as
                  borrowed :: rabbit_delay_store:borrowed(),
                  content :: binary(),
                  %% none: of a receiver that says nothing
                  transfer = none :: binary() | none,
                  held = <<>> :: binary(),
                  index :: rabbit_delay_blocks:index(),
                  open = none :: {Name :: binary(), file:fd(), Offset :: non_neg_integer(),
                                  Size :: non_neg_integer()} | none,
                  files :: [{Name :: binary(), Size :: non_neg_integer()}]}).

%% What this node says to others that are to send it a snapshot. Up to Ra 2.9 they do not ask.
-spec context() -> map().
context() ->
    #{delayed_node => node(), delayed_chunks => rabbit_delay_blocks:version()}.

-spec begin_read(file:filename_all(), Context :: map() | none) ->
          {ok, ra_snapshot:meta(), #reading{}} | {error, term()}.
begin_read(Dir, Context) ->
    case first(Dir, fun rabbit_delay_snapshot:read_state/1) of
        {ok, {_, #{exchange := XName}}} ->
            %% It may take long, and a later snapshot be there then.
            Offer = ask(receiver(Dir, Context), XName),
            case borrow(erlang:monotonic_time(millisecond) + ?BORROW_MS) of
                {ok, Borrowed} -> first(Dir, fun (One) -> open(One, Borrowed, Offer) end);
                Error -> Error
            end;
        Error ->
            Error
    end.

%% One of the descriptors that all stores of the node have, for as long as this process reads. It is refused if
%% there is none for a while: Ra tries again.
borrow(Until) ->
    case {rabbit_delay_store:borrow_open_file(), erlang:monotonic_time(millisecond) < Until} of
        {none, true} ->
            timer:sleep(?BORROW_AGAIN_MS),
            borrow(Until);
        {none, false} ->
            {error, no_descriptor_left};
        {Borrowed, _} ->
            Borrowed
    end.

ask(none, _) -> none;
ask(Node, XName) -> rabbit_delay_blocks:ask(Node, XName, self()).

receiver(_, #{delayed_node := Node, delayed_chunks := Version}) when Version >= 1 -> Node;
receiver(Dir, none) -> sent_to(rabbit_delay_raft:member_dir_of_snapshot(Dir));
receiver(_, _) -> none.

%% Whom the leader has this process send to.
sent_to(MemberDir) ->
    Leader = rabbit_delay_raft:id_of(iolist_to_binary(filename:basename(MemberDir))),
    case rabbit_delay_broker:raft_overview(Leader, ?QUERY_MS) of
        {ok, #{cluster := Peers}} ->
            case [Node || {{_, Node}, #{status := {sending_snapshot, Pid}}} <- maps:to_list(Peers), Pid =:= self()] of
                [Node] -> Node;
                _ -> none
            end;
        _ ->
            none
    end.

%% A newer one may have replaced it meanwhile, which Ra sends as well: it takes the index from here. The last of
%% them may be just being written.
first(Dir, Read) ->
    case Read(Dir) of
        {error, enoent} ->
            Snapshots = filename:dirname(Dir),
            case file:list_dir(Snapshots) of
                {ok, Names} ->
                    first([filename:join(Snapshots, Name) || Name <- lists:reverse(lists:sort(Names))], Read,
                          {error, enoent});
                Error ->
                    Error
            end;
        Result ->
            Result
    end.

first([], _, Error) ->
    Error;
first([Dir | Dirs], Read, _) ->
    case Read(Dir) of
        {error, enoent} = Error -> first(Dirs, Read, Error);
        Result -> Result
    end.

open(Dir, Borrowed, Offer) ->
    case rabbit_delay_snapshot:read_state(Dir) of
        {ok, {Meta, _} = State} ->
            MemberDir = rabbit_delay_raft:member_dir_of_snapshot(Dir),
            case rabbit_delay_held_files:whole(MemberDir, rabbit_delay_snapshot:files(Dir), self()) of
                {ok, {Held, Files}} ->
                    HeldDir = rabbit_delay_held_files:dir(MemberDir, Held),
                    %% Nothing was deleted before it was held.
                    case rabbit_delay_store:validate(HeldDir) of
                        {ok, _} ->
                            Reading = #reading{dir = HeldDir, borrowed = Borrowed, content = term_to_binary(State),
                                               files = named(HeldDir, Files), index = none()},
                            {ok, Meta, offered(Offer, Reading)};
                        Error ->
                            Error
                    end;
                Error ->
                    Error
            end;
        Error ->
            Error
    end.

%% As far as the manifest (c_src/dw_manifest.h) names them: as they are the live store's, too, more may have come.
named(Dir, Files) ->
    {ok, <<"DWHMAN\r\n", 1:32/little, _:20/binary, Count:32/little, _:12/binary, Parts/binary>>} =
        file:read_file(filename:join(Dir, "MANIFEST")),
    Count = byte_size(Parts) div 64,
    Lengths = maps:from_list(lists:append(
                               [[{{Serial, <<".rec">>}, Records}, {{Serial, <<".idx">>}, Index}]
                                || <<Serial:64/little, _:16/binary, Records:64/little, Index:64/little, _:24/binary>>
                                       <= Parts])),
    lists:filtermap(fun ({<<"MANIFEST">>, _}) ->
                            true;
                        ({Name, _}) ->
                            {Serial, _} = string:to_integer(Name),
                            case maps:find({Serial, filename:extension(Name)}, Lengths) of
                                {ok, Length} -> {true, {Name, Length}};
                                error -> false
                            end
                    end, Files).

offered(none, Reading) ->
    Reading;
offered(#{held := Held} = Offer, #reading{content = Content, files = Files} = Reading) ->
    Transfer = crypto:hash(sha256, term_to_binary({node(), Content, Files, rabbit_delay_blocks:digest(Offer)})),
    Reading#reading{transfer = Transfer, held = Held, index = rabbit_delay_blocks:index(Offer)}.

none() -> rabbit_delay_blocks:index(#{held => <<>>, files => [], blocks => <<>>}).

-spec read_chunk(#reading{}, pos_integer()) ->
          {ok, chunk(), {next, #reading{}} | last} | {error, term()}.
read_chunk(#reading{open = none, files = [], content = Content} = Reading, _) ->
    {ok, chunk({content, Content}, Reading), last};
read_chunk(#reading{open = none, files = [{Name, Size} | Files], dir = Dir} = Reading, ChunkSize) ->
    case file:open(filename:join(Dir, Name), [raw, binary, read]) of
        {ok, Fd} -> read_chunk(Reading#reading{open = {Name, Fd, 0, Size}, files = Files}, ChunkSize);
        Error -> Error
    end;
read_chunk(#reading{open = {Name, Fd, Offset, Size}, index = Index} = Reading, ChunkSize) ->
    {Length, Cut} = case rabbit_delay_blocks:is_empty(Index) orelse Offset =:= Size of
                        true ->
                            {min(ChunkSize, Size - Offset), none};
                        false ->
                            Lengths = rabbit_delay_blocks:lengths(Offset, Size, ChunkSize),
                            {lists:sum(Lengths), Lengths}
                    end,
    case rabbit_delay_blocks:read(Fd, Offset, Length) of
        {ok, Data} ->
            {Part, Taken} = part(Name, Offset, Data, Cut, Reading),
            {ok, chunk(Part, Reading), {next, after_part(Offset + Taken, Reading)}};
        Error ->
            Error
    end.

%% As many blocks as the receiver has, or else as many as it lacks.
part(Name, Offset, Data, none, _) ->
    {{file, Name, Offset, Data}, byte_size(Data)};
part(Name, Offset, Data, Lengths, #reading{index = Index, held = Held}) ->
    Found = [{rabbit_delay_blocks:find(Hash, Index), Piece}
             || {Hash, Piece} <- rabbit_delay_blocks:blocks(Data, Lengths)],
    case lists:splitwith(fun ({Where, _}) -> Where =:= none end, Found) of
        {[], _} ->
            Blocks = [Block || {{ok, Block}, _} <- lists:takewhile(fun ({Where, _}) -> Where =/= none end, Found)],
            {{same, Name, Offset, Held, Blocks}, lists:sum([Length || {_, _, _, Length} <- Blocks])};
        {Lacking, _} ->
            Bytes = iolist_to_binary([Piece || {_, Piece} <- Lacking]),
            {{file, Name, Offset, Bytes}, byte_size(Bytes)}
    end.

chunk(Part, #reading{transfer = none}) -> Part;
chunk(Part, #reading{transfer = Transfer}) -> {delayed, 1, Transfer, Part}.

after_part(Size, #reading{open = {_, Fd, _, Size}} = Reading) ->
    ok = file:close(Fd),
    Reading#reading{open = none};
after_part(Offset, #reading{open = {Name, Fd, _, Size}} = Reading) ->
    Reading#reading{open = {Name, Fd, Offset, Size}}.
