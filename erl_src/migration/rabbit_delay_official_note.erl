%% SPDX-License-Identifier: MPL-2.0

%% What an import of the official plugin's messages writes down, so that whoever goes on after a crash
%% knows of each message in the tables whether it is in already (rabbit_delay_official_tables).
%%
%% A value, and the file that holds it: `official_import' in the plugin's data directory, written whole
%% and renamed into place before anything is appended that it speaks of (docs/internals/formats.md). One
%% import at a time, which holds a lock, reads and writes it; what cannot be read or written is thrown as
%% {unavailable, Why}.
-module(rabbit_delay_official_note).

-export([read/0, write/2, delete/0]).
-export([under_way/1, is_in/2, place/2, taken/4, arrived/2, forget_session/2, forget/2]).

-export_type([note/0, id/0, place/0, batch/0]).

%% Of an entry, 8 bytes.
-type id() :: <<_:64>>.

%% Of a batch: the session that it belongs to, and its number there.
-type place() :: {Session :: pos_integer(), SeqNo :: pos_integer()}.

%% What is on its way.
-type batch() :: {rabbit_exchange:name(), place(), Ids :: binary()}.

-define(NOTE_FILE, "official_import").
-define(NOTE_MAGIC, "DWOI").
-define(NOTE_VERSION, 1).

%% What the file holds: the session of each exchange and its last sequence number, the batches of the
%% window, and what is known to be in although it may be in the tables still.
-record(note, {sessions = #{} :: #{rabbit_exchange:name() => {Session :: pos_integer(),
                                                             SeqNo :: non_neg_integer()}},
               sent = [] :: [batch()],
               done = #{} :: #{id() => []}}).

-opaque note() :: #note{}.

%% What an import that was ended has left; nothing, if there was none.
-spec read() -> note().
read() ->
    case file:read_file(note_file()) of
        {ok, <<?NOTE_MAGIC, ?NOTE_VERSION:32/little, Crc:32/little, Body/binary>>} ->
            case erlang:crc32(Body) of
                Crc ->
                    {Sessions, Sent, Done} = binary_to_term(Body),
                    #note{sessions = Sessions, sent = Sent, done = add_ids(Done, #{})};
                _ ->
                    damaged()
            end;
        {ok, _} ->
            damaged();
        {error, enoent} ->
            #note{};
        {error, Reason} ->
            throw({unavailable, [note_file(), ": ", file:format_error(Reason)]})
    end.

%% With the batches that are to be sent now.
-spec write([batch()], note()) -> ok.
write(Sent, #note{sessions = Sessions, done = Done}) ->
    Body = term_to_binary({Sessions, Sent, << <<Id/binary>> || Id <- maps:keys(Done) >>}),
    File = note_file(),
    case rabbit_delay_snapshot:replace_file(
           File, [<<?NOTE_MAGIC, ?NOTE_VERSION:32/little, (erlang:crc32(Body)):32/little>>, Body]) of
        ok -> ok;
        {error, Reason} -> throw({unavailable, [File, ": ", file:format_error(Reason)]})
    end.

-spec delete() -> ok.
delete() ->
    _ = file:delete(note_file()),
    ok.

note_file() -> filename:join(rabbit_delay_config:data_dir(), ?NOTE_FILE).

-spec damaged() -> no_return().
damaged() ->
    throw({unavailable, [note_file(), " is damaged. Delete it to go on: what was under way when the "
                         "last import ended may then come twice"]}).

add_ids(Ids, Done) ->
    maps:merge(Done, maps:from_list([{Id, []} || <<Id:8/binary>> <= Ids])).

%% The batches that were under way, of which the machines know whether they are in, and the note without
%% them.
-spec under_way(note()) -> {[batch()], note()}.
under_way(#note{sent = Sent} = Note) ->
    {Sent, Note#note{sent = []}}.

%% A batch that was under way is in.
-spec arrived(batch(), note()) -> note().
arrived({_, _, Ids}, #note{done = Done} = Note) ->
    Note#note{done = add_ids(Ids, Done)}.

%% Whether a message is known to be in.
-spec is_in(id(), note()) -> boolean().
is_in(Id, #note{done = Done}) ->
    is_map_key(Id, Done).

%% The next place of an exchange's session, of a new one if it has none.
-spec place(rabbit_exchange:name(), note()) -> {place(), note()}.
place(XName, #note{sessions = Sessions} = Note) ->
    {Session, Last} = case Sessions of
                          #{XName := Known} -> Known;
                          _ -> new_session()
                      end,
    Place = {Session, Last + 1},
    {Place, Note#note{sessions = Sessions#{XName => Place}}}.

new_session() ->
    <<Session:62, _:2>> = crypto:strong_rand_bytes(8),
    {Session + 1, 0}.

%% A batch has been taken in at its place.
-spec taken(rabbit_exchange:name(), place(), [id()], note()) -> note().
taken(XName, Place, Ids, #note{sessions = Sessions, done = Done} = Note) ->
    Note#note{done = lists:foldl(fun (Id, Acc) -> Acc#{Id => []} end, Done, Ids),
              sessions = Sessions#{XName => Place}}.

%% The exchange goes on in another session.
-spec forget_session(rabbit_exchange:name(), note()) -> note().
forget_session(XName, #note{sessions = Sessions} = Note) ->
    Note#note{sessions = maps:remove(XName, Sessions)}.

%% These are in the tables no more.
-spec forget([id()], note()) -> note().
forget(Ids, #note{done = Done} = Note) ->
    Note#note{done = maps:without(Ids, Done)}.
