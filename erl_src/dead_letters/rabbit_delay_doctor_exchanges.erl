%% SPDX-License-Identifier: MPL-2.0

%% The doctor's rules for exchanges.
%%
%% Pure functions of a topology.
-module(rabbit_delay_doctor_exchanges).

-export([check/1]).

-import(rabbit_delay_doctor_mends, [exchange_finding/7, command/1, sh/1]).

-spec check(rabbit_delay_doctor:context()) -> [rabbit_delay_doctor:finding()].
check(#{objects := #{topic_permissions := Permitted, exchanges := Exchanges}} = Context) ->
    [unchecked(X, Context) || X <- lists:usort(Permitted), is_delayed_topic(X, Exchanges)].

is_delayed_topic(Name, Exchanges) ->
    case Exchanges of
        #{Name := #{type := <<"x-delayed-message">>,
                    arguments := #{<<"x-delayed-type">> := <<"topic">>}}} -> true;
        _ -> false
    end.

%% rabbit_delay_topic_permissions says why. Whose permissions they are is for administrators only.
unchecked(X, #{vhost := VHost, topology := #{version := Version}} = Context) ->
    exchange_finding(
      topic_permissions_unchecked, warning, X, Context,
      ["Topic permissions for this delayed exchange do not hold for all that they would on a topic "
       "exchange: not for ", gaps(Version), "."],
      "Where that matters, permit users to write to the exchange, and to read from it, only if they "
      "may use all of its topics; the others get an exchange of their own.",
      [command(["rabbitmqctl list_permissions --vhost ", sh(VHost)])]).

gaps(Version) when Version >= [4] ->
    "what is published over AMQP 1.0, and for binding unless the metadata are in Khepri";
gaps([_ | _]) ->
    "binding";
gaps([]) ->
    "binding unless the metadata are in Khepri, and on RabbitMQ 4 for what is published over AMQP "
    "1.0".
