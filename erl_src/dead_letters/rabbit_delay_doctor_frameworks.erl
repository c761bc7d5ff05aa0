%% SPDX-License-Identifier: MPL-2.0

%% The queues that libraries declare by themselves, again and again, to delay and to retry. Nothing is
%% mended about them in the broker: declared otherwise, the library's next declaration is refused.
%%
%% Pure functions of names.
-module(rabbit_delay_doctor_frameworks).

-export([known/1, of_queue/1, is_parking/1]).

%% The same of a queue, which can also be known by where its dead letters go.
-spec of_queue(rabbit_delay_topology:queue()) -> {Library :: string(), Advice :: string()} | none.
of_queue(#{name := Name, arguments := Arguments}) ->
    Retry = <<Name/binary, "-retry">>,
    case {known(Name), Arguments} of
        {none, #{<<"x-dead-letter-exchange">> := <<"DLX">>, <<"x-dead-letter-routing-key">> := Name}} ->
            known(<<Name/binary, ".dlq">>);
        {none, #{<<"x-dead-letter-exchange">> := Retry}} ->
            known(Retry);
        {Known, _} ->
            Known
    end.

%% The library whose queue this is by its name, and what to set there instead.
-spec known(binary()) -> {Library :: string(), Advice :: string()} | none.
known(Name) ->
    known(Name, libraries()).

known(_, []) ->
    none;
known(Name, [{Pattern, Library, Advice} | Others]) ->
    case re:run(Name, Pattern, [{capture, none}, dollar_endonly]) of
        match -> {Library, Advice};
        nomatch -> known(Name, Others)
    end.

libraries() ->
    [{"^delay_.*_[0-9]+(_delay|_retry)?$", "Symfony Messenger",
      "publish to a delayed exchange with the header x-delay (an AmqpStamp) in place of a "
      "DelayStamp; the transport's delay[queue_name_pattern] names these queues."},
     {"^.+\\.delay\\.[0-9]+$", "Laravel",
      "publish to a delayed exchange with the header x-delay in place of later() and release()."},
     {"^delay\\.[0-9]+\\.", "Machinery",
      "publish to a delayed exchange with the header x-delay in place of ETA and RetryTimeout."},
     {"^celery_delayed_[0-9]+$", "Celery",
      "publish to a delayed exchange with the header x-delay in place of countdown and eta; Celery "
      "goes on using these queues for those, also for queues that are bound to a delayed exchange: "
      "both delays add up, or, with x-delayed-type: direct, the task never comes."},
     {"^nsb\\.(v2\\.)?delay-level-[0-9]+$", "NServiceBus",
      "publish to a delayed exchange with the header x-delay in place of delayed delivery."},
     {"^.+_(error|skipped)$", "MassTransit",
      "set UseMessageRetry, UseDelayedRedelivery or ConfigureDeadLetterQueueDeadLetterTransport of "
      "the receive endpoint."},
     {"^.+\\.[^.]+\\.dlq$", "Spring Cloud Stream",
      "set the binding's consumer.dlqDeadLetterExchange, dlqDeadLetterRoutingKey, dlqTtl and "
      "dlqExpires."},
     {"^.+-(retry|error)$", "Sneakers",
      "set retry_max_times, retry_timeout, retry_exchange and retry_error_exchange of its Maxretry "
      "handler."}].

%% Whether a queue is by its name one in which dead letters are to stay.
-spec is_parking(binary()) -> boolean().
is_parking(Name) ->
    re:run(Name, "park|(?<![a-z0-9])dead|dead.?letter|dlq|dlx|dlt|error|fail|poison|skipped|undeliver|reject",
           [caseless, {capture, none}]) =:= match.
