%% SPDX-License-Identifier: MPL-2.0

%% The broker of a simulated cluster: messages, the queues that they are released to, and the exchange's
%% settings. A queue takes what it is given, or rejects it, or its client is lost on the way; soon or late.
-module(simulated_broker).

-export([message/2, queues/1, channel/1]).
%% rabbit_delay_broker
-export([delivery/1, lookup_exchange/1, exchange_arguments/1, exchange_of/2, exchange_name/1, payload_size/1, parsed/1,
         headers/1, message_id/1, deaths/1, encode/1, decode/2, ack_credit/2, confirm/3, reject/3, queue_stats/2,
         uncount_published/4, count_published/3, queue_name/1, sends_again/1, field_word/2]).
%% rabbit_delay_policy, rabbit_delay_config
-export([default_delay/1, limits/1, overflow/1, keys_from/1, overdue/1, release_rate/1, retry/1, dead_letter_exchange/1]).
-export([now_ms/0, appending_bytes/0, data_dir/0, in_flight_bytes/0, in_flight_messages/1, max_delay_ms/1,
         max_message_size/0, retry_interval_ms/0, snapshot_interval/0, unusable_delay/1]).
%% rabbit_delay_destinations, rabbit_delay_publisher, rabbit_delay_exchange, credit_flow
-export([how/4, find/4, start_link/1, publish/3, while_releasing/1, handle_bump_msg/1]).

-include_lib("rabbit_common/include/resource.hrl").

-define(IN_FLIGHT, 12).

%% ------------------------------------------------------------------------------- messages

message(Number, Headers) -> #{n => Number, headers => Headers}.

%% Some go to two queues.
queues(Number) when Number rem 4 =:= 0 -> [queue(1), queue(2)];
queues(Number) -> [queue(1 + Number rem 2)].

queue(N) -> (simulated_node:exchange())#resource{kind = queue, name = <<"q", (integer_to_binary(N))/binary>>}.

%% As a channel sends it.
channel({deliver, Message, Sender, SeqNo}) -> {'$cast', {deliver, Message, Sender, SeqNo}}.

delivery({deliver, Message, Sender, SeqNo}) -> {ok, Message, Sender, SeqNo, noflow};
delivery(_) -> unknown.

lookup_exchange(_) -> {ok, exchange}.
exchange_arguments(exchange) -> [].
exchange_name(exchange) -> simulated_node:exchange().
exchange_of(_, XName) -> XName.
payload_size(Message) -> byte_size(term_to_binary(Message)).
parsed(Message) -> Message.
headers(#{headers := Headers}) -> Headers.
message_id(_) -> undefined.
deaths(_) -> [].
encode(Message) -> {1, term_to_binary(Message)}.
decode(1, Body) -> {ok, binary_to_term(Body)}.
ack_credit(_, _) -> ok.
queue_stats(_, _) -> ok.
uncount_published(_, _, _, _) -> ok.
count_published(_, _, _) -> ok.
queue_name({queue, Name}) -> Name.
sends_again(_) -> false.
field_word(_, _) -> <<"header">>.

confirm(Sender, _, SeqNos) ->
    lists:foreach(fun simulated_model:confirmed/1, [N || N <- SeqNos, N < simulation:first_without_message()]),
    _ = simulated_process:send(Sender, {confirmed, SeqNos}),
    ok.

reject(Sender, _, SeqNo) ->
    _ = simulated_process:send(Sender, {rejected, [SeqNo]}),
    ok.

%% ------------------------------------------------------------------------------- settings

default_delay(_) -> none.
limits(_) -> {infinity, infinity}.
overflow(_) -> reject_publish.
keys_from(_) -> publishers.
overdue(_) -> deliver.
release_rate(_) -> infinity.
retry(_) -> none.
dead_letter_exchange(_) -> none.

now_ms() -> simulated_process:clock(simulated_process:node()).
appending_bytes() -> 16777216.
data_dir() -> filename:join(simulated_node:dir(simulated_process:node()), "waiting").
in_flight_bytes() -> 1048576.
in_flight_messages(_) -> ?IN_FLIGHT.
max_delay_ms(_) -> 1 bsl 40.
max_message_size() -> 1048576.
retry_interval_ms() -> {100, 1000}.
snapshot_interval() -> {30, 1048576}.
unusable_delay(_) -> reject.

%% ------------------------------------------------------------------------------- queues

how(_, _, _, _) -> released.

find(#{n := Number} = Message, InFlight, _, _) -> {[{queue, Name} || Name <- queues(Number)], Message, InFlight}.

while_releasing(Fun) -> Fun().

handle_bump_msg(_) -> ok.

start_link(QName) ->
    Dispatcher = simulated_process:self(),
    Pid = simulated_process:start(simulated_process:node(), publisher, {plain, undefined},
                                  fun () -> {ok, {fun publishing/2, {QName, Dispatcher}}} end),
    true = simulated_process:link_to(Pid, Dispatcher),
    {ok, Pid}.

%% Called by the dispatcher: what it takes out of the store it gives away at once.
publish(Pid, {queue, QName}, Messages) ->
    Node = simulated_process:node(),
    Dispatcher = {simulated_process:self(), simulated_raft:term(Node)},
    Attempts = [{SeqNo, simulated_model:sent(N, QName, Node, Dispatcher, Pid)} || {SeqNo, #{n := N}} <- Messages],
    _ = simulated_process:send(Pid, {publish, Attempts}),
    %% It may have ended, which the dispatcher is about to hear.
    simulated_process:is_there(Pid) orelse simulated_model:lost(Pid),
    ok.

publishing({publish, Attempts}, State) ->
    lists:foreach(fun (Attempt) -> one(Attempt, simulated_process:up_to(99), State) end, Attempts),
    State;
publishing(lost, {_, Dispatcher}) ->
    Self = simulated_process:self(),
    ok = simulated_model:lost(Self),
    _ = simulated_process:send(Dispatcher, {given_up, Self, lost}),
    erlang:exit(normal);
publishing({outcome, SeqNo, Attempt, Answer}, {_, Dispatcher} = State) ->
    ok = simulated_model:answered(Attempt, Answer),
    _ = simulated_process:send(Dispatcher, {outcomes, simulated_process:self(), [{Answer, [SeqNo]}]}),
    State.

%% What becomes of a message is up to its queue, which does not end with its client.
one({SeqNo, Attempt}, Luck, {QName, _}) ->
    Client = simulated_process:self(),
    Node = simulated_process:node(),
    Latency = case Luck of
                  _ when Luck < 90 -> simulated_process:up_to(10);
                  _ -> simulated_process:up_to(1500)
              end,
    {Number, QName, _} = Attempt,
    simulated_process:after_ms(
      Latency,
      fun () ->
              Accepts = Luck >= 4,
              ok = simulated_model:accepted(Attempt, Accepts),
              Answer = case Accepts of
                           true -> settled;
                           false -> rejected
                       end,
              simulated_process:note("~b is ~p by ~ts", [Number, Answer, QName#resource.name]),
              tell(Node, Client, Luck, SeqNo, Attempt, Answer)
      end).

%% Its answer may be lost with the client.
tell(Node, Client, Luck, SeqNo, Attempt, Answer) ->
    simulated_process:after_ms(
      simulated_process:up_to(10), Node,
      fun () ->
              simulated_process:deliver(Client, case Luck of
                                                    7 -> lost;
                                                    _ -> {outcome, SeqNo, Attempt, Answer}
                                                end)
      end).
