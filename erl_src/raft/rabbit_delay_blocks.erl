%% SPDX-License-Identifier: MPL-2.0

%% What a member that is to be sent a snapshot has already. Members' files are not the same, byte for byte: each
%% places, moves and rewrites by a clock of its own. So nothing follows from a name or a length. The files are
%% looked at in blocks, and what has the same SHA-256 is the same.
%%
%% A block is the header of a file, or so many bytes of what comes after it: two files with the same records
%% differ in their headers alone.
%%
%% offer/2 runs on the receiver's node, in a process that the sender's call has made there; nobody else waits for
%% it. It takes so long and no longer, and offers what it has read until then.
-module(rabbit_delay_blocks).

-export([version/0, ask/3, offer/2, lengths/3, blocks/2, find/2, index/1, is_empty/1, read/3, read_here/2, digest/1]).

-export_type([offer/0, index/0, block/0]).

%% Held until `for' has ended; each block is <<Hash:32/binary, File:32, Offset:64, Length:32>>, File being the
%% number, from 0, of the file's name in `files'.
-type offer() :: #{held := binary(), files := [binary()], blocks := binary()}.
-opaque index() :: #{binary() => {File :: binary(), Offset :: non_neg_integer(), pos_integer()}}.
-type block() :: {Hash :: binary(), File :: binary(), Offset :: non_neg_integer(), Length :: pos_integer()}.

-define(VERSION, 1).
%% That of the store's files (c_src/dw_partition.h).
-define(HEADER_BYTES, 64).
%% Two and a header are in one of Ra's chunks of 1,000,000 bytes.
-define(BLOCK_BYTES, 491520).
%% What is less is sent.
-define(WORTH_BYTES, 1048576).
%% Some 60 GB, of which the list has 6 MB.
-define(MAX_BLOCKS, 131072).
-define(READ_MS, 60000).
%% With the wait for others who read.
-define(ASK_MS, 90000).
-define(READERS, blocks).

%% Of what is offered, and of the chunks that are sent to those who offer.
-spec version() -> pos_integer().
version() -> ?VERSION.

%% Asks a node; none: it cannot be told, so everything is to be sent, in the way that all versions read.
-spec ask(node(), rabbit_exchange:name(), Sender :: pid()) -> offer() | none.
ask(Node, XName, Sender) ->
    try erpc:call(Node, ?MODULE, offer, [XName, Sender], ?ASK_MS) of
        #{held := _, files := _, blocks := _} = Offer -> Offer;
        _ -> none
    catch
        _:_ -> none
    end.

%% What this node's member has.
-spec offer(rabbit_exchange:name(), Sender :: pid()) -> offer() | none.
offer(XName, Sender) ->
    _ = process_flag(priority, low),
    case rabbit_delay_table:member(XName) of
        {ok, {_, Uid}} -> offered(rabbit_delay_raft:store_dir(Uid), Sender);
        none -> none
    end.

offered(Store, Sender) ->
    Files = [filename:join(Store, Name) || Extension <- ["*.rec", "*.idx"],
                                           Name <- filelib:wildcard(Extension, Store)],
    case lists:sum([filelib:file_size(File) || File <- Files]) of
        Bytes when Bytes < ?WORTH_BYTES ->
            nothing();
        _ ->
            case rabbit_delay_budget:with(?READERS, 1, fun () -> borrow_and_read(Store, Files, Sender) end) of
                {error, _} -> nothing();
                Offer -> Offer
            end
    end.

nothing() -> #{held => <<>>, files => [], blocks => <<>>}.

%% One file at a time is open, which counts until this process ends.
borrow_and_read(Store, Files, Sender) ->
    case rabbit_delay_store:borrow_open_file() of
        {ok, Borrowed} ->
            _ = put({?MODULE, borrowed}, Borrowed),
            offer_of(Store, Files, Sender);
        none ->
            {error, no_descriptor_left}
    end.

offer_of(Store, Files, Sender) ->
    MemberDir = filename:dirname(Store),
    case rabbit_delay_held_files:hold(MemberDir, Files, Sender) of
        {ok, {Held, Sized}} ->
            Until = erlang:monotonic_time(millisecond) + ?READ_MS,
            Dir = rabbit_delay_held_files:dir(MemberDir, Held),
            #{held => Held, files => [Name || {Name, _} <- Sized],
              blocks => iolist_to_binary(read_files(Sized, 0, Dir, Until, ?MAX_BLOCKS))};
        Error ->
            Error
    end.

read_files([{Name, Size} | Files], Number, Dir, Until, Room) when Room > 0 ->
    case file:open(filename:join(Dir, Name), [raw, binary, read]) of
        {ok, Fd} ->
            Blocks = read_blocks(Fd, 0, Size, Number, Until, Room),
            ok = file:close(Fd),
            [Blocks | read_files(Files, Number + 1, Dir, Until, Room - length(Blocks))];
        {error, _} ->
            read_files(Files, Number + 1, Dir, Until, Room)
    end;
read_files(_, _, _, _, _) ->
    [].

read_blocks(Fd, Offset, Size, Number, Until, Room) when Offset < Size, Room > 0 ->
    Length = length_at(Offset, Size),
    case erlang:monotonic_time(millisecond) < Until andalso read(Fd, Offset, Length) of
        {ok, Data} ->
            [<<(hash(Data))/binary, Number:32, Offset:64, Length:32>>
             | read_blocks(Fd, Offset + Length, Size, Number, Until, Room - 1)];
        _ ->
            []
    end;
read_blocks(_, _, _, _, _, _) ->
    [].

length_at(0, Size) -> min(?HEADER_BYTES, Size);
length_at(Offset, Size) -> min(?BLOCK_BYTES - (Offset - ?HEADER_BYTES) rem ?BLOCK_BYTES, Size - Offset).

hash(Data) -> crypto:hash(sha256, Data).

%% Of the blocks of a file of Size bytes from Offset on, which is where one begins: as many as have room, one at
%% least.
-spec lengths(Offset :: non_neg_integer(), Size :: pos_integer(), Room :: pos_integer()) -> [pos_integer()].
lengths(Offset, Size, Room) when Offset < Size ->
    Length = length_at(Offset, Size),
    [Length | more_lengths(Offset + Length, Size, Room - Length)].

more_lengths(Offset, Size, Room) when Offset < Size ->
    case length_at(Offset, Size) of
        Length when Length =< Room -> [Length | more_lengths(Offset + Length, Size, Room - Length)];
        _ -> []
    end;
more_lengths(_, _, _) ->
    [].

%% Cut into pieces of these lengths, with the hash of each.
-spec blocks(binary(), [pos_integer()]) -> [{Hash :: binary(), binary()}].
blocks(<<>>, []) ->
    [];
blocks(Data, [Length | Lengths]) ->
    <<Piece:Length/binary, Rest/binary>> = Data,
    [{hash(Piece), Piece} | blocks(Rest, Lengths)].

-spec index(offer()) -> index().
index(#{files := Files, blocks := Blocks}) ->
    Names = list_to_tuple(Files),
    maps:from_list([{Hash, {element(Number + 1, Names), Offset, Length}}
                    || <<Hash:32/binary, Number:32, Offset:64, Length:32>> <= Blocks]).

-spec is_empty(index()) -> boolean().
is_empty(Index) -> map_size(Index) =:= 0.

-spec find(Hash :: binary(), index()) -> {ok, block()} | none.
find(Hash, Index) ->
    case Index of
        #{Hash := {File, Offset, Length}} -> {ok, {Hash, File, Offset, Length}};
        #{} -> none
    end.

%% What an offer says, whenever it was made.
-spec digest(offer()) -> binary().
digest(#{files := Files, blocks := Blocks}) -> hash([lists:join(0, Files), 0, Blocks]).

%% The bytes of a block in this open file, if they are what they were.
-spec read_here(file:fd(), block()) -> {ok, binary()} | {error, term()}.
read_here(Fd, {Hash, _, Offset, Length}) ->
    case read(Fd, Offset, Length) of
        {ok, Data} ->
            case hash(Data) of
                Hash -> {ok, Data};
                _ -> {error, other_bytes}
            end;
        Error ->
            Error
    end.

%% So many bytes and no less.
-spec read(file:fd(), Offset :: non_neg_integer(), Length :: non_neg_integer()) -> {ok, binary()} | {error, term()}.
read(_, _, 0) ->
    {ok, <<>>};
read(Fd, Offset, Length) ->
    case file:pread(Fd, Offset, Length) of
        {ok, Data} when byte_size(Data) =:= Length -> {ok, Data};
        {ok, _} -> {error, short_read};
        eof -> {error, short_read};
        Error -> Error
    end.
