%% SPDX-License-Identifier: MPL-2.0

%% A message of the official plugin's tables as a record of a batch (include/dw_store.h), and what an import
%% knows it by. The same message gives the same record each time, but for what is not taken any more.
-module(rabbit_delay_official_record).

-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([id/2, record/3]).

-define(ABSOLUTE, 1).

%% Of an entry, from the key of the table and the entry's reference.
-spec id(rabbit_delay_official_tables:key(), Ref :: term()) -> rabbit_delay_official_note:id().
id({delay_key, Ms, _} = Key, Ref) ->
    <<Id:8/binary, _/binary>> =
        crypto:hash(sha256, term_to_binary({Ms, rabbit_delay_official_tables:exchange_of(Key), Ref},
                                           [{minor_version, 1}])),
    Id.

%% Due at a time of the clock. A key of the publisher's is for those to come that cancel it: what the official
%% plugin took was not to replace or drop any.
-spec record(rabbit_delay_official_tables:key(), rabbit_delay_key:salt(), Delivery :: term()) ->
          {ok, Due :: rabbit_delay_store:ms(), Size :: pos_integer(), iodata()} | {error, too_large | unreadable}.
record({delay_key, Ms, _}, Salt, Delivery) ->
    case rabbit_delay_broker:from_official(Delivery) of
        {ok, Message} ->
            {Encoding, Body} = rabbit_delay_broker:encode(Message),
            Due = min(max(Ms, 0), ?MAX_MS),
            case {byte_size(Body), rabbit_delay_config:max_message_size()} of
                {Size, Limit} when Size > Limit ->
                    {error, too_large};
                {Size, _} ->
                    {ok, Due, Size, [rabbit_delay_store:record_header(Size, ?ABSOLUTE, Encoding, Due,
                                                                      key_hash(Salt, Message)), Body]}
            end;
        {error, _} ->
            {error, unreadable}
    end.

key_hash(Salt, Message) ->
    Parsed = rabbit_delay_broker:parsed(Message),
    case rabbit_delay_key:asked(rabbit_delay_broker:headers(Parsed),
                                rabbit_delay_broker:message_id(Parsed)) of
        {OnDuplicate, Key} when OnDuplicate =/= cancel -> rabbit_delay_key:hash(Salt, Key);
        _ -> 0
    end.
