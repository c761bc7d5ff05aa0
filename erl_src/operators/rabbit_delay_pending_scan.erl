%% SPDX-License-Identifier: MPL-2.0

%% Goes over the messages in an exchange's store that a filter can mean, in due order or against it, a
%% batch at a time, and reads those whose content is wanted, many in one go.
%%
%% It runs in the process that asks, beside the store's writer, whom it does not keep waiting. It holds a
%% batch of {Due, Id, Size} and what it read ahead, of no more than ?AHEAD_BYTES and a record; who reads
%% takes that from rabbit_delay_budget (with_budget/2). It looks up single keys where few messages have
%% one, and tells when it goes on for too long (is_late/1); to end then is the caller's.
-module(rabbit_delay_pending_scan).

-export([new/4, batch/1, with_budget/2, places/3, read/2, read_ahead/3, is_late/1, unavailable/1]).

-export_type([scan/0, place/0, read/0]).

-type place() :: {Due :: rabbit_delay_store:ms(), rabbit_delay_store:id(), Size :: non_neg_integer()}.

-type scan() :: #{store := rabbit_delay_store:store(),
                  filter := rabbit_delay_filter:filter(),
                  %% those with the filter's key, if they are few
                  of_key := all | [place()],
                  %% whether messages are read
                  read := boolean(),
                  %% what was read ahead
                  ahead := #{rabbit_delay_store:id() => map() | unread},
                  %% so many are looked at in one go
                  batch := pos_integer(),
                  deadline := integer(),
                  %% the caller's
                  atom() => term()}.

-type unavailable() :: {error, {unavailable, Why :: binary()}}.

%% A record and its message, or what keeps it from being read.
-type read() :: {ok, map(), rabbit_delay_broker:message()} | {damaged, Where :: map()} | gone
              | unavailable().

%% What a request that reads messages takes of rabbit_delay_budget: a page as it is and as it is sent,
%% and the record that is being read.
-define(READING_BYTES, 33554432).
%% Any request goes on later after so long.
-define(PAGE_MS, 5000).

%% What is read from the store at a time, where most of it is passed over: finding a page means a walk
%% over all that is pending, so of much, much at a time.
-define(MIN_BATCH, 512).
-define(MAX_BATCH, 131072).

%% Messages that are read from the store in one go, and their bytes.
-define(AHEAD, 256).
-define(AHEAD_BYTES, 1048576).

%% Messages of one key that are looked up by it: with more of them, all that is pending is walked over.
-define(OF_ONE_KEY, 8192).

%% Read: whether messages are to be read.
-spec new(rabbit_delay_store:store(), rabbit_exchange:name(), rabbit_delay_filter:filter(),
          Read :: boolean()) -> scan().
new(Store, XName, Filter, Read) ->
    #{store => Store, filter => Filter, of_key => of_key(Store, XName, Filter), read => Read,
      ahead => #{}, batch => batch(Store),
      deadline => erlang:monotonic_time(millisecond) + ?PAGE_MS}.

%% How much it is wise to look at in one go, where most of it is passed over.
-spec batch(rabbit_delay_store:store()) -> pos_integer().
batch(Store) ->
    case rabbit_delay_store:stat(Store) of
        #{pending := Pending} -> min(max(Pending div 16, ?MIN_BATCH), ?MAX_BATCH);
        {error, _} -> ?MIN_BATCH
    end.

%% Records are read whole, as their checksums cover all of it; what is shown is copied out of them, so
%% that no more than one is held.
-spec with_budget(Read :: boolean(), fun(() -> Result)) -> Result | unavailable().
with_budget(true, Fun) -> rabbit_delay_budget:with(bytes, ?READING_BYTES, Fun);
with_budget(false, Fun) -> Fun().

%% Of the messages that a filter can mean, the next after or before a position.
-spec places(rabbit_delay_pending_cursor:position(), forward | backward, scan()) ->
          {ok, [place()]} | {error, term()}.
places(Position, Direction, #{store := Store, of_key := all, batch := Batch}) ->
    rabbit_delay_store:places(Store, Position, Direction, Batch);
places(Position, forward, #{of_key := Records, batch := Batch}) ->
    {ok, lists:sublist([Record || {Due, Id, _} = Record <- Records, {Due, Id} > Position], Batch)};
places(Position, backward, #{of_key := Records, batch := Batch}) ->
    {ok, lists:sublist([Record || {Due, Id, _} = Record <- lists:reverse(Records),
                                  {Due, Id} < Position], Batch)}.

%% Those with the key that the filter wants, in due order, or `all' if they are many or it wants none.
of_key(Store, XName, Filter) ->
    case rabbit_delay_filter:key(Filter) of
        none ->
            all;
        Key ->
            case rabbit_delay_group:key_salt(XName) of
                {ok, Salt} -> hashed_so(Store, rabbit_delay_key:hash(Salt, Key));
                {error, _} -> all
            end
    end.

hashed_so(Store, Hash) ->
    case rabbit_delay_store:find(Store, Hash, ?OF_ONE_KEY) of
        {ok, Ids, Total} when Total =< ?OF_ONE_KEY ->
            lists:sort([{Due, Id, Size}
                        || Id <- Ids,
                           {ok, #{due := Due, length := Size}} <- [rabbit_delay_store:read(Store, Id)]]);
        _ ->
            all
    end.

%% One message.
-spec read(rabbit_delay_store:store(), rabbit_delay_store:id()) -> read().
read(Store, Id) ->
    case rabbit_delay_store:read(Store, Id) of
        {ok, Record} ->
            decoded(Record);
        {error, {corrupt, File, Offset}} ->
            {damaged, #{file => File, offset => Offset}};
        {error, enoent} ->
            gone;
        {error, eclosed} = Error ->
            unavailable(Error);
        {error, Reason} ->
            {damaged, #{reason => rabbit_delay_text:reason(Reason)}}
    end.

decoded(#{encoding := Encoding, body := Body} = Record) ->
    case rabbit_delay_broker:decode(Encoding, Body) of
        {ok, Message} -> {ok, Record, Message};
        {error, {unknown_encoding, What, Series}} ->
            {damaged, #{reason => text("a later version of the plugin or of RabbitMQ stored it "
                                       "(encoding ~b, series ~b)", [What, Series])}};
        {error, Reason} -> {damaged, #{reason => text("~0P", [Reason, 20])}}
    end.

%% The same, with those behind it read in one go: `ahead' has what was read, or `unread'.
-spec read_ahead(place(), Behind :: [place()], scan()) -> {read(), scan()}.
read_ahead({_, Id, _} = Record, Rest, #{store := Store, ahead := Ahead} = Scan) ->
    case Ahead of
        #{Id := unread} ->
            {read(Store, Id), Scan};
        #{Id := Read} ->
            {decoded(Read), Scan};
        _ ->
            Ids = [I || {_, I, _} <- [Record | lists:sublist(Rest, ?AHEAD - 1)]],
            case rabbit_delay_store:read_many(Store, << <<I:64/little>> || I <- Ids >>,
                                              ?AHEAD_BYTES) of
                {ok, Reads, Seen} ->
                    Found = maps:from_list([{I, Read} || #{id := I} = Read <- Reads]),
                    Unread = maps:from_list([{I, unread} || I <- lists:sublist(Ids, Seen)]),
                    read_ahead(Record, Rest, Scan#{ahead := maps:merge(Unread, Found)});
                {error, _} = Error ->
                    {unavailable(Error), Scan}
            end
    end.
%% Whether it has gone on for so long that the rest is for another request.
-spec is_late(scan()) -> boolean().
is_late(#{deadline := Deadline}) ->
    erlang:monotonic_time(millisecond) > Deadline.

%% The answer to who asks, where the store gave an error.
-spec unavailable({error, term()}) -> unavailable().
unavailable({error, Reason}) ->
    {error, {unavailable, text("the store cannot be read: ~ts", [rabbit_delay_text:reason(Reason)])}}.

text(Format, Args) ->
    unicode:characters_to_binary(io_lib:format(Format, Args)).
