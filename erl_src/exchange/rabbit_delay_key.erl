%% SPDX-License-Identifier: MPL-2.0

%% The publisher's own names for delayed messages, within an exchange. Headers, all strings:
%%
%%   x-delay-key           the message's key, 1 to 255 bytes. Without it the message_id is the key
%%   x-delay-on-duplicate  what becomes of messages that are pending under the same key:
%%                         "keep" (the default: they stay), "replace" (they go), or "drop" (they
%%                         stay, and this message goes if there are any)
%%   x-delay-cancel        a key, 1 to 255 bytes: what is pending under it goes. The message itself
%%                         has no other effect, whatever else it says
%%   x-delay-release       likewise: what is pending under it is due now
%%
%% They count where a publisher published the message to the exchange itself, which takes `write'
%% permission for it. What comes by a binding, as an alternate exchange's or as a dead letter may be of
%% somebody who has none: it has no key and does nothing to others' messages, unless the policy
%% delay-keys-from says "anyone". A dead letter that comes back to be retried still has the key with
%% which it was published here, or, if it was published elsewhere, its message_id.
%%
%% In the store and in the Raft log a key is a 64-bit number: the first 8 bytes of SHA-256 over the
%% exchange's salt (rabbit_delay_raft:key_salt/1) and the key, little-endian; 0 means no key, and 1
%% is used in its place. Two keys with the same number are one key. Among N keys that are pending
%% at a time some two have it with a probability of N^2 / 2^65, 1 in 37 million for a million; a
%% cancel meets another key than its own with one of N / 2^64. Nobody who does not know the salt,
%% which is random, can make two such keys.
-module(rabbit_delay_key).

-export([asked/2, asks/1, of_message/2, hash/2, names/0, acting/0]).

-export_type([use/0, key/0, on_duplicate/0, salt/0]).

-define(KEY, <<"x-delay-key">>).
-define(ON_DUPLICATE, <<"x-delay-on-duplicate">>).
-define(CANCEL, <<"x-delay-cancel">>).
-define(RELEASE, <<"x-delay-release">>).

-define(MAX_KEY_BYTES, 255).

-type key() :: <<_:8, _:_*8>>.
-type on_duplicate() :: keep | replace | drop.
-type salt() :: binary().

%% What a message says of keys.
-type use() :: none
             | {on_duplicate(), key()}
             | {cancel | release, key()}
             | {invalid, Header :: binary(), Value :: {Type :: atom(), term()}, Why :: string()}.

%% The headers that are understood.
-spec names() -> [binary()].
names() -> [?KEY, ?ON_DUPLICATE, ?CANCEL, ?RELEASE].

%% Those by which a message acts on others.
-spec acting() -> [binary()].
acting() -> [?ON_DUPLICATE, ?CANCEL, ?RELEASE].

%% Whether some header is there that says something of keys.
-spec asks(rabbit_delay_header:headers()) -> boolean().
asks(undefined) -> false;
asks(Headers) -> lists:any(fun (Name) -> lists:keymember(Name, 1, Headers) end, names()).

%% A null value counts as absent, but for a cancel and a release: what was meant to do that must not be
%% routed.
-spec asked(rabbit_delay_header:headers(), MessageId :: binary() | undefined) -> use().
asked(Headers, MessageId) when Headers =:= undefined; Headers =:= [] ->
    named(keep, key_of(undefined, MessageId));
asked(Headers, MessageId) ->
    case {lists:keyfind(?CANCEL, 1, Headers), lists:keyfind(?RELEASE, 1, Headers)} of
        {{_, _, _}, {_, Type, Value}} ->
            {invalid, ?RELEASE, {Type, Value}, "must not be there beside x-delay-cancel"};
        {{_, _, _} = Field, false} ->
            of_others(cancel, Field);
        {false, {_, _, _} = Field} ->
            of_others(release, Field);
        {false, false} ->
            case on_duplicate(rabbit_delay_header:find(?ON_DUPLICATE, Headers)) of
                {invalid, _, _, _} = Invalid -> Invalid;
                OnDuplicate ->
                    named(OnDuplicate, key_of(rabbit_delay_header:find(?KEY, Headers), MessageId))
            end
    end.

of_others(What, {Header, Type, Value}) ->
    case is_key(Type, Value) of
        true -> {What, Value};
        false -> {invalid, Header, {Type, Value}, "must be a string of 1 to 255 bytes"}
    end.

named(_, {invalid, _, _, _} = Invalid) -> Invalid;
named(keep, none) -> none;
named(OnDuplicate, none) ->
    {invalid, ?ON_DUPLICATE, {longstr, atom_to_binary(OnDuplicate, utf8)},
     "needs a key: x-delay-key or a message_id"};
named(OnDuplicate, Key) -> {OnDuplicate, Key}.

%% The key that a stored message has.
-spec of_message(rabbit_delay_header:headers(), MessageId :: binary() | undefined) -> key() | none.
of_message(Headers, MessageId) ->
    Named = case Headers of
                undefined -> undefined;
                _ -> rabbit_delay_header:find(?KEY, Headers)
            end,
    case key_of(Named, MessageId) of
        {invalid, _, _, _} -> none;
        Key -> Key
    end.

%% A message_id is not there for our sake: one that cannot be a key is none.
key_of(undefined, MessageId) ->
    case is_key(longstr, MessageId) of
        true -> MessageId;
        false -> none
    end;
key_of({Type, Value}, _) ->
    case is_key(Type, Value) of
        true -> Value;
        false -> {invalid, ?KEY, {Type, Value}, "must be a string of 1 to 255 bytes"}
    end.

on_duplicate(undefined) -> keep;
on_duplicate({Type, Word}) when Type =:= longstr; Type =:= binary ->
    case Word of
        <<"keep">> -> keep;
        <<"replace">> -> replace;
        <<"drop">> -> drop;
        _ -> unknown_word(Type, Word)
    end;
on_duplicate({Type, Value}) -> unknown_word(Type, Value).

unknown_word(Type, Value) ->
    {invalid, ?ON_DUPLICATE, {Type, Value}, "must be 'keep', 'replace' or 'drop'"}.

is_key(Type, Value) ->
    (Type =:= longstr orelse Type =:= binary) andalso is_binary(Value)
        andalso Value =/= <<>> andalso byte_size(Value) =< ?MAX_KEY_BYTES.

-spec hash(salt(), key()) -> pos_integer().
hash(Salt, Key) ->
    case crypto:hash(sha256, [Salt, Key]) of
        <<0:64, _/binary>> -> 1;
        <<Hash:64/little, _/binary>> -> Hash
    end.
