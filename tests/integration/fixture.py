# SPDX-License-Identifier: MPL-2.0
"""What the fixtures in tests/fixtures are made with and opened in: the same node, exchanges and
queues."""

import json

from node import evaluate

# Raft's files name their node.
NODE = {"name": "fixture", "enable": ["rabbitmq_delay_wheel", "rabbitmq_management",
                                      "rabbitmq_amqp1_0"],
        "conf": ["delayed_message.max_delay = 3153600000000",
                 "delayed_message.snapshot_interval.messages = 100"]}

EXCHANGES = {"plain": {}, "keyed": {}, "paused": {}, "log": {},
             "retry": {"x-delay-retry-initial": "2522880000000ms",
                       "x-delay-retry-max": "3153600000000ms"}}

# Reads a store's pending messages by its own functions alone, which every version has.
LISTING = """(fun () ->
    XName = rabbit_misc:r(<<"/">>, exchange, <<"EXCHANGE">>),
    Store = rabbit_delay_registry:store(XName),
    {ok, Page} = rabbit_delay_store:page(Store, {0, 0}, 10000),
    Hex = fun (Bytes) -> [io_lib:format("~2.16.0b", [B]) || <<B>> <= Bytes] end,
    file:write_file("FILE", ["[", lists:join(",", [begin
        {ok, #{body := Body}} = rabbit_delay_store:read(Store, Id),
        {ok, Message} = rabbit_delay_broker:decode(Encoding, Body),
        #{exchange := X, routing_keys := Keys, properties := Properties, headers := Headers,
          payload := Payload} = rabbit_delay_broker:content(Message),
        io_lib:format("[\\"~b\\",\\"~b\\",\\"~b\\",~b,\\"~s\\",\\"~s\\"]",
                      [Id, Due, Key, Encoding, Hex(erlang:md5(Payload)),
                       Hex(erlang:md5(term_to_binary({X, Keys, lists:sort(Properties),
                                                      lists:sort(Headers)})))])
    end || #{id := Id, due := Due, key_hash := Key, encoding := Encoding} <- Page]), "]"])
end)()."""


def declare_queues(client):
    client.queue(("plain", "k"), ("keyed", "k"), ("paused", "k"), ("log", "k"), ("retry", "k"),
                 name="work", keep=True)
    client.queue(name="mortal", keep=True, arguments={"x-dead-letter-exchange": "retry"})


def listing(broker, exchange):
    """Every pending message: id, due time, key's hash, encoding, and what is in it, digested."""
    file = broker.path("listing.json")
    listing = LISTING.replace("EXCHANGE", exchange).replace("FILE", file)
    assert evaluate(broker, " ".join(listing.split())) == "ok"
    with open(file, encoding="utf-8") as f:
        return json.load(f)
