%% SPDX-License-Identifier: MPL-2.0

%% A pending message as operators see it, ready for JSON: binaries that are not UTF-8 are
%% #{base64 => Text}, a payload that is not is encoded as payload_encoding says.
%%
%% Pure functions of a message, in whoever shows one. What they give back refers to no part of the
%% record that the message was read from: it is copied, so that the record can go.
-module(rabbit_delay_pending_item).

-export([bare/1, described/2]).

-export_type([item/0, options/0]).

%%   id, due (ms since the epoch), size (bytes as stored); cursor, where it is asked for;
%%   with content: key (absent if it has none), exchange, routing_key, routing_keys, properties,
%%   headers, payload_bytes;
%%   with the body: payload, payload_encoding (string, base64), truncated if it is;
%%   damaged (file, offset) where the record cannot be read.
-type item() :: #{atom() => term()}.

-type options() :: #{%% how much of the body, bytes
                     body => non_neg_integer(),
                     atom() => term()}.

%% What is known of a message without reading it.
-spec bare({rabbit_delay_store:ms(), rabbit_delay_store:id(), Size :: non_neg_integer()}) -> item().
bare({Due, Id, Size}) ->
    #{id => integer_to_binary(Id), due => Due, size => Size}.

%% What a message says.
-spec described(rabbit_delay_broker:message(), options()) -> item().
described(Message, Options) ->
    Keyed = case rabbit_delay_key:of_message(rabbit_delay_broker:headers(Message),
                                             rabbit_delay_broker:message_id(Message)) of
                none -> #{};
                Key -> #{key => rabbit_delay_content:readable(Key)}
            end,
    maps:merge(Keyed, rabbit_delay_content:shown(rabbit_delay_broker:content(Message), Options)).
