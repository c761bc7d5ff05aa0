%% SPDX-License-Identifier: MPL-2.0

%% Where a request that was answered in part goes on: hexadecimal text, opaque to those who hold it, of
%% the exchange and the kind of request that it came from. It is refused by any other.
%%
%% Pure functions; what is in a cursor is the client's to forge, and says nothing but where to go on.
-module(rabbit_delay_pending_cursor).

-include_lib("rabbit_common/include/resource.hrl").
-include("rabbit_delay.hrl").

-export([write/4, read/3, before/1]).

-export_type([position/0, bounds/0]).

%% What comes after it, or before it, is next.
-type position() :: {Due :: rabbit_delay_store:ms(), rabbit_delay_store:id()}.
%% A change's (rabbit_delay_pending_change); {0, 0} if there are none.
-type bounds() :: {Below :: rabbit_delay_store:id(), Now :: rabbit_delay_store:ms()}.

-spec write(Kind :: term(), rabbit_exchange:name(), position(), bounds()) -> binary().
write(Kind, XName, {Due, Id}, {Below, Now}) ->
    binary:encode_hex(<<1, (tag(Kind, XName)):32, Due:64, Id:64, Below:64, Now:64>>).


-spec read(Kind :: term(), rabbit_exchange:name(), Cursor :: binary()) ->
          {ok, position(), bounds()} | {error, {bad_request, Why :: binary()}}.
read(Kind, XName, Cursor) ->
    Tag = tag(Kind, XName),
    try binary:decode_hex(Cursor) of
        <<1, Tag:32, Due:64, Id:64, Below:64, Now:64>> when Due =< ?MAX_MS ->
            {ok, {Due, Id}, {Below, Now}};
        _ ->
            {error, {bad_request, <<"the cursor is not from such a request on this exchange">>}}
    catch
        error:_ -> {error, {bad_request, <<"the cursor is malformed">>}}
    end.

tag(Kind, #resource{virtual_host = VHost, name = Name}) ->
    erlang:phash2({Kind, VHost, Name}).

%% The position after which all that is due at a time or later comes.
-spec before(rabbit_delay_store:ms()) -> position().
before(0) -> {0, 0};
before(Due) -> {Due - 1, ?MAX_ID}.
