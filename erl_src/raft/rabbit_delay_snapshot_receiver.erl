%% SPDX-License-Identifier: MPL-2.0

%% Takes a snapshot that another member sends (rabbit_delay_snapshot_sender), in the Ra server. What cannot be
%% right ends the server: Ra has nothing else for it, and it begins again.
-module(rabbit_delay_snapshot_receiver).

-include_lib("kernel/include/logger.hrl").
-include("rabbit_delay.hrl").

-export([begin_accept/1, accept_chunk/2, complete_accept/2]).

-record(accepting, {dir :: file:filename_all(),
                    %% unknown: nothing has come
                    transfer = unknown :: binary() | none | unknown,
                    %% what is being written, and how much there is of it
                    file = none :: {Name :: binary(), file:fd(), non_neg_integer()} | none,
                    %% what is being read from, of this member's own
                    own = none :: {file:filename_all(), file:fd()} | none,
                    sent = 0 :: non_neg_integer(),
                    had = 0 :: non_neg_integer()}).

-spec begin_accept(file:filename_all()) -> #accepting{}.
begin_accept(Dir) ->
    #accepting{dir = Dir}.

-spec accept_chunk(rabbit_delay_snapshot_sender:chunk(), #accepting{}) -> {ok, #accepting{}} | {error, term()}.
accept_chunk(Chunk, Accepting) ->
    case of_transfer(Chunk, Accepting) of
        {ok, Part, Accepting1} -> accept_part(Part, Accepting1);
        Error -> Error
    end.

%% Ra 2 takes the first chunks of another leader's snapshot for those of the present one sent again.
of_transfer({delayed, 1, Transfer, Part}, Accepting) -> of_transfer(Transfer, Part, Accepting);
of_transfer(Part, Accepting) -> of_transfer(none, Part, Accepting).

of_transfer(Transfer, Part, #accepting{transfer = unknown} = Accepting) ->
    {ok, Part, Accepting#accepting{transfer = Transfer}};
of_transfer(Transfer, Part, #accepting{transfer = Transfer} = Accepting) ->
    {ok, Part, Accepting};
of_transfer(_, _, _) ->
    {error, of_another_transfer}.

accept_part({file, Name, Offset, Data}, Accepting) ->
    write(Name, Offset, Data, #accepting.sent, Accepting);
accept_part({same, Name, Offset, Held, Blocks}, Accepting) ->
    accept_same(Name, Offset, Held, Blocks, Accepting).

accept_same(_, _, _, [], Accepting) ->
    {ok, Accepting};
accept_same(Name, Offset, Held, [{_, File, _, Length} = Block | Blocks], Accepting) ->
    case open_own(Held, File, Accepting) of
        {ok, #accepting{own = {_, Fd}} = Accepting1} ->
            case rabbit_delay_blocks:read_here(Fd, Block) of
                {ok, Data} ->
                    case write(Name, Offset, Data, #accepting.had, Accepting1) of
                        {ok, Accepting2} -> accept_same(Name, Offset + Length, Held, Blocks, Accepting2);
                        Error -> Error
                    end;
                {error, Reason} ->
                    {error, {own_file, File, Reason}}
            end;
        {error, Reason} ->
            {error, {own_file, File, Reason}}
    end.

open_own(Held, File, #accepting{dir = Dir, own = Own} = Accepting) ->
    case {filename:basename(Held), filename:basename(File)} of
        {Held, File} ->
            MemberDir = rabbit_delay_raft:member_dir_of_snapshot(Dir),
            Path = filename:join(rabbit_delay_held_files:dir(MemberDir, Held), File),
            case Own of
                {Path, _} -> {ok, Accepting};
                _ -> open_own(Path, Accepting)
            end;
        _ ->
            {error, bad_file_name}
    end.

open_own(Path, Accepting) ->
    ok = close_own(Accepting),
    case file:open(Path, [raw, binary, read]) of
        {ok, Fd} -> {ok, Accepting#accepting{own = {Path, Fd}}};
        Error -> Error
    end.

close_own(#accepting{own = none}) -> ok;
close_own(#accepting{own = {_, Fd}}) -> file:close(Fd).

%% Of a file nothing is left out: what is not sent would be taken for zeros.
write(Name, Offset, Data, Counted, Accepting) ->
    case open_to_write(Name, Accepting) of
        {ok, #accepting{file = {_, Fd, Offset}} = Opened} ->
            case file:pwrite(Fd, Offset, Data) of
                ok ->
                    Bytes = byte_size(Data),
                    {ok, setelement(Counted, Opened#accepting{file = {Name, Fd, Offset + Bytes}},
                                    element(Counted, Opened) + Bytes)};
                Error ->
                    Error
            end;
        {ok, #accepting{file = {_, _, Length}}} ->
            {error, {gap, Name, Length, Offset}};
        Error ->
            Error
    end.

open_to_write(Name, #accepting{file = {Name, _, _}} = Accepting) ->
    {ok, Accepting};
open_to_write(Name, #accepting{dir = Dir} = Accepting) ->
    ok = close_written(Accepting),
    case filename:basename(Name) of
        Name ->
            case file:open(filename:join(Dir, Name), [raw, binary, read, write]) of
                {ok, Fd} -> {ok, Accepting#accepting{file = {Name, Fd, 0}}};
                Error -> Error
            end;
        _ ->
            {error, {bad_file_name, Name}}
    end.

close_written(#accepting{file = none}) ->
    ok;
close_written(#accepting{file = {_, Fd, _}}) ->
    ok = file:sync(Fd),
    file:close(Fd).

%% Only what is whole becomes a snapshot.
-spec complete_accept(rabbit_delay_snapshot_sender:chunk(), #accepting{}) -> ok | {error, term()}.
complete_accept(Chunk, Accepting0) ->
    case of_transfer(Chunk, Accepting0) of
        {ok, {content, Content}, #accepting{dir = Dir} = Accepting} ->
            ok = close_written(Accepting),
            ok = close_own(Accepting),
            ok = rabbit_delay_snapshot:sync_dir(Dir),
            case rabbit_delay_store:validate(Dir) of
                {ok, _} ->
                    ok = say(binary_to_term(Content), Accepting),
                    rabbit_delay_snapshot:write_state(Dir, Content);
                Error ->
                    Error
            end;
        Error ->
            Error
    end.

say({#{index := Index}, #{exchange := XName}}, #accepting{sent = Sent, had = Had}) ->
    ?LOG_INFO("delayed messages of ~ts: another node has sent the snapshot at index ~b: ~b bytes, and ~b bytes "
              "were here", [rabbit_delay_text:rs(XName), Index, Sent, Had], ?LOG_DOMAIN).
