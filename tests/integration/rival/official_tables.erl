%% SPDX-License-Identifier: MPL-2.0

%% The tables of the official delayed-message plugin, made in a broker's own Mnesia with its names,
%% attributes and records. The broker compiles this itself.
-module(official_tables).

-export([create/0, write_range/6, write/6, delete/1, count/0]).

table() -> list_to_atom("rabbit_delayed_message" ++ atom_to_list(node())).

index() -> list_to_atom(atom_to_list(table()) ++ "_index").

%% A broker on Khepri has no Mnesia running: that plugin starts it there.
create() ->
    case mnesia:system_info(is_running) of
        yes ->
            ok;
        _ ->
            ok = application:set_env(mnesia, dir, rabbit:data_dir()),
            _ = mnesia:create_schema([node()]),
            ok = mnesia:start()
    end,
    _ = mnesia:create_table(table(), [{record_name, delay_entry},
                                      {attributes, [delay_key, delivery, ref]},
                                      {type, bag}, {disc_copies, [node()]}]),
    _ = mnesia:create_table(index(), [{record_name, delay_index}, {attributes, [delay_key, const]},
                                      {type, ordered_set}, {disc_copies, [node()]}]),
    ok = mnesia:wait_for_tables([table(), index()], 30000).

count() -> mnesia:table_info(table(), size).

%% Bodies "m<N>" from N = From to To, which are due PerMs of them in a millisecond from Due on. Size:
%% padded to so many bytes.
write_range(XName, {From, To}, Due, PerMs, Key, Size) ->
    X = exchange(XName),
    Containers = has_containers(),
    lists:foreach(
      fun (N) ->
              Text = <<"m", (integer_to_binary(N))/binary>>,
              Body = <<Text/binary, 0:(max(0, Size - byte_size(Text)))/unit:8>>,
              Headers = [{<<"x-delay">>, signedint, 3600000}, {<<"n">>, long, N}],
              put(X, Due + (N - From) div PerMs, Key, Headers, undefined, Body, Containers)
      end, lists:seq(From, To)),
    ok = mnesia:sync_log().

write(XName, Due, Key, Headers, MessageId, Body) ->
    put(exchange(XName), Due, Key, Headers, MessageId, Body, has_containers()),
    ok = mnesia:sync_log().

%% The record as it is, or as it was of an exchange that is not there any more.
exchange(XName) ->
    case rabbit_exchange:lookup(XName) of
        {ok, X} ->
            X;
        {error, not_found} ->
            {exchange, XName, 'x-delayed-message', true, false, false,
             [{<<"x-delayed-type">>, longstr, <<"direct">>}], undefined, undefined, undefined,
             {[], []}, #{user => <<"guest">>}}
    end.

put(X, Due, Key, Headers, MessageId, Body, Containers) ->
    DelayKey = {delay_key, Due, X},
    mnesia:dirty_write(index(), {delay_index, DelayKey, true}),
    mnesia:dirty_write(table(), {delay_entry, DelayKey,
                                 delivery(element(2, X), Key, Headers, MessageId, Body, Containers),
                                 make_ref()}).

%% From 3.13 on.
has_containers() ->
    {module, mc_amqpl} =:= code:ensure_loaded(mc_amqpl).

%% A message container, or #delivery{} with #basic_message{}.
delivery(XName, Key, Headers, MessageId, Body, Containers) ->
    Properties = {'P_basic', <<"text/plain">>, undefined, Headers, 2, 3, <<"c">>, undefined,
                  undefined, MessageId, 1700000000, undefined, undefined, <<"app">>, undefined},
    Content = encoded({content, 60, Properties, none, none, [Body]}),
    case Containers of
        true ->
            {ok, Message} = mc_amqpl:message(XName, Key, Content),
            Message;
        false ->
            {ok, Message} = rabbit_basic:message(XName, Key, Content),
            rabbit_basic:delivery(false, true, Message, 1)
    end.

%% What it has of a message is as the channel took it: properties in both forms.
encoded(Content) ->
    case erlang:function_exported(rabbit_binary_generator, ensure_content_encoded, 1) of
        true -> rabbit_binary_generator:ensure_content_encoded(Content);
        false -> rabbit_binary_generator:ensure_content_encoded(Content, rabbit_framing_amqp_0_9_1)
    end.

%% As it does when they have been delivered.
delete(Due) ->
    lists:foreach(fun (Key) ->
                          mnesia:dirty_delete(table(), Key),
                          mnesia:dirty_delete(index(), Key)
                  end, [Key || {delay_key, Ms, _} = Key <- mnesia:dirty_all_keys(table()), Ms =:= Due]),
    ok = mnesia:sync_log().
