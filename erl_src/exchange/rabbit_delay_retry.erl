%% SPDX-License-Identifier: MPL-2.0

%% Retry with backoff: what a delayed exchange does with the messages that queues dead-letter to it.
%% Each comes back, after a pause, to the queue that it died in; when its attempts are used up it is
%% parked. Settings of the exchange, by argument (x-NAME) or policy (NAME):
%%
%%   delay-retry             the pauses, as in "1s,10s,1m,10m"; or else
%%   delay-retry-initial     the first pause,
%%   delay-retry-multiplier  how much longer each is than the one before (2 if not given),
%%   delay-retry-max         and the longest (1 h if not given)
%%   delay-retry-jitter      up to which part of it, 0 to 1, a pause is shortened at random (0)
%%   delay-retry-attempts    how often it comes back, or "unlimited"; if not given, as often as
%%                           there are pauses in the schedule, else 10 times. The last pause repeats
%%   delay-retry-reasons     the kinds of death that are retried: "rejected,delivery_limit" if not
%%                           given
%%   delay-retry-to          "queue" (default), or "exchange": it is routed by the exchange's
%%                           bindings
%%   delay-retry-parking-exchange, delay-retry-parking-routing-key
%%
%% Attempts are the deaths in the queue where it died last, for a reason that is retried, as the
%% broker counts them. Its cycle detection never strikes: it looks at where a dead letter is going,
%% and that is the internal delay queue, in which nothing dies; what comes back is published anew.
-module(rabbit_delay_retry).

-export([names/0, check/3, check_together/1, parking_argument/1, plan/1]).
-export([judge/2, pause/2, pause/3]).
-export([is_sent_to/2, mark/1, is_marked/1]).

-export_type([plan/0, verdict/0]).

-type ms() :: pos_integer().

-type pauses() :: {schedule, [ms(), ...]}
                | {exponential, Initial :: ms(), Multiplier :: number(), Max :: ms()}.

-type plan() :: #{pauses := pauses(), jitter := number(), attempts := non_neg_integer() | infinity,
                  reasons := [binary()], to := queue | exchange,
                  parking := {Exchange :: binary(), RoutingKey :: binary() | undefined} | none}.

%% Attempt: which one it is, from 1.
-type verdict() :: {retry | used_up, Attempt :: pos_integer()} | not_retried.

-define(SCHEDULE, <<"delay-retry">>).
-define(INITIAL, <<"delay-retry-initial">>).
-define(MULTIPLIER, <<"delay-retry-multiplier">>).
-define(MAX, <<"delay-retry-max">>).
-define(JITTER, <<"delay-retry-jitter">>).
-define(ATTEMPTS, <<"delay-retry-attempts">>).
-define(REASONS, <<"delay-retry-reasons">>).
-define(TO, <<"delay-retry-to">>).
-define(PARKING, <<"delay-retry-parking-exchange">>).
-define(PARKING_KEY, <<"delay-retry-parking-routing-key">>).

-define(LONGEST_MS, 3153600000000).
-define(DEFAULT_MAX_MS, 3600000).
-define(MOST_PAUSES, 100).
-define(MOST_ATTEMPTS, 1000000).
-define(DEFAULT_ATTEMPTS, 10).
-define(MOST_MULTIPLIER, 1000).
-define(ALL_REASONS, [<<"rejected">>, <<"expired">>, <<"delivery_limit">>, <<"maxlen">>]).

%% In the number of a stored message (rabbit_delay_broker:decode/2): it is a dead letter that is to
%% come back.
-define(MARK, 16#8000).

-spec names() -> [binary()].
names() ->
    [?SCHEDULE, ?INITIAL, ?MULTIPLIER, ?MAX, ?JITTER, ?ATTEMPTS, ?REASONS, ?TO, ?PARKING,
     ?PARKING_KEY].

%% -------------------------------------------------------------------------------- settings

%% Whether that is a value for the setting, which the error calls Shown.
-spec check(binary(), Shown :: binary(), term()) -> ok | {error, string(), [term()]}.
check(Name, Shown, Value) ->
    case understood(Name, Value) of
        {ok, _} -> ok;
        error -> {error, "~s must be " ++ wanted(Name) ++ ", not ~s", [Shown, rabbit_delay_text:setting(Value)]}
    end.

wanted(?SCHEDULE) ->
    "1 to 100 times such as \"1s,10s,1m,10m\" (ms, s, m, h, d), each from 1 ms to 100 years";
wanted(Name) when Name =:= ?INITIAL; Name =:= ?MAX ->
    "a time from 1 ms to 100 years, a number of milliseconds or a string such as \"10s\" "
        "(ms, s, m, h, d)";
wanted(?MULTIPLIER) -> "a number from 1 to 1000";
wanted(?JITTER) -> "a number from 0 to 1";
wanted(?ATTEMPTS) -> "an integer from 0 to 1000000 or \"unlimited\"";
wanted(?REASONS) -> "one or more of \"rejected,expired,delivery_limit,maxlen\"";
wanted(?TO) -> "\"queue\" or \"exchange\"";
wanted(_) -> "a string of at most 255 bytes".

%% Whether these settings, all from one declaration or one policy, can be together.
-spec check_together(#{binary() => {Shown :: binary(), term()}}) ->
          ok | {error, string(), [term()]}.
check_together(#{?SCHEDULE := {Schedule, _}, ?INITIAL := {Initial, _}}) ->
    {error, "~s and ~s exclude each other", [Schedule, Initial]};
check_together(#{?INITIAL := {ShownInitial, Initial}, ?MAX := {ShownMax, Max}}) ->
    case {understood(?INITIAL, Initial), understood(?MAX, Max)} of
        {{ok, Least}, {ok, Most}} when Least > Most ->
            {error, "~s must not be shorter than ~s", [ShownMax, ShownInitial]};
        _ ->
            ok
    end;
check_together(_) ->
    ok.

understood(?SCHEDULE, Text) when is_binary(Text) ->
    Times = [time(Part) || Part <- binary:split(Text, <<",">>, [global])],
    case lists:member(error, Times) orelse length(Times) > ?MOST_PAUSES of
        true -> error;
        false -> {ok, [Ms || {ok, Ms} <- Times]}
    end;
understood(?SCHEDULE, Ms) ->
    case time(Ms) of
        {ok, _} -> {ok, [Ms]};
        error -> error
    end;
understood(Name, Value) when Name =:= ?INITIAL; Name =:= ?MAX ->
    time(Value);
understood(?MULTIPLIER, Value) ->
    number(Value, 1, ?MOST_MULTIPLIER);
understood(?JITTER, Value) ->
    number(Value, 0, 1);
understood(?ATTEMPTS, <<"unlimited">>) ->
    {ok, infinity};
understood(?ATTEMPTS, N) when is_integer(N), N >= 0, N =< ?MOST_ATTEMPTS ->
    {ok, N};
understood(?REASONS, Text) when is_binary(Text) ->
    Reasons = [trimmed(Part) || Part <- binary:split(Text, <<",">>, [global])],
    case Reasons -- ?ALL_REASONS of
        [] -> {ok, Reasons};
        _ -> error
    end;
understood(?TO, <<"queue">>) ->
    {ok, queue};
understood(?TO, <<"exchange">>) ->
    {ok, exchange};
understood(Name, Value) when Name =:= ?PARKING orelse Name =:= ?PARKING_KEY,
                             is_binary(Value), byte_size(Value) =< 255 ->
    {ok, Value};
understood(_, _) ->
    error.

%% Plain numbers are milliseconds.
time(Ms) when is_integer(Ms), Ms >= 1, Ms =< ?LONGEST_MS ->
    {ok, Ms};
time(Text) when is_binary(Text) ->
    case rabbit_delay_notation:interval(Text) of
        {ok, Ms} -> time(Ms);
        error -> error
    end;
time(_) ->
    error.

%% An AMQP table has decimals, and some clients know of no doubles: a string will do.
number(N, Min, Max) when is_number(N), N >= Min, N =< Max ->
    {ok, N};
number({Places, N}, Min, Max) when is_integer(Places), Places < 16, is_integer(N) ->
    number(N / math:pow(10, Places), Min, Max);
number(Text, Min, Max) when is_binary(Text), byte_size(Text) < 32 ->
    Trimmed = binary_to_list(trimmed(Text)),
    case {string:to_float(Trimmed), string:to_integer(Trimmed)} of
        {{F, []}, _} -> number(F, Min, Max);
        {_, {N, []}} -> number(N, Min, Max);
        _ -> error
    end;
number(_, _, _) ->
    error.

trimmed(Text) ->
    re:replace(Text, "^\\s+|\\s+$", "", [global, {return, binary}]).

%% The parking exchange that an exchange's arguments name. Whoever declares it must be asked for
%% permissions.
-spec parking_argument(rabbit_framing:amqp_table()) -> binary() | none.
parking_argument(Args) ->
    case rabbit_misc:table_lookup(Args, <<"x-", (?PARKING)/binary>>) of
        {_, Name} -> Name;
        undefined -> none
    end.

%% The plan that the settings make, of which Setting gives the valid ones; none if they say nothing
%% of pauses.
-spec plan(fun((Name :: binary()) -> term() | undefined)) -> plan() | none.
plan(Setting) ->
    Get = fun (Name, Default) ->
                  case Setting(Name) of
                      undefined -> Default;
                      Value -> {ok, Understood} = understood(Name, Value), Understood
                  end
          end,
    case {Get(?SCHEDULE, none), Get(?INITIAL, none)} of
        {none, none} ->
            none;
        {none, Initial} ->
            Max = max(Initial, Get(?MAX, ?DEFAULT_MAX_MS)),
            plan({exponential, Initial, Get(?MULTIPLIER, 2), Max}, ?DEFAULT_ATTEMPTS, Get);
        {Schedule, _} ->
            plan({schedule, Schedule}, length(Schedule), Get)
    end.

plan(Pauses, Attempts, Get) ->
    #{pauses => Pauses,
      jitter => Get(?JITTER, 0),
      attempts => Get(?ATTEMPTS, Attempts),
      reasons => Get(?REASONS, [<<"rejected">>, <<"delivery_limit">>]),
      to => Get(?TO, queue),
      parking => case Get(?PARKING, none) of
                     none -> none;
                     Exchange -> {Exchange, Get(?PARKING_KEY, undefined)}
                 end}.

%% -------------------------------------------------------------------------------- attempts

%% What becomes of a message with these deaths, the latest first.
-spec judge([rabbit_delay_deaths:death(), ...], plan()) -> verdict().
judge([#{queue := Queue} = Last | _] = Deaths, #{reasons := Reasons, attempts := Attempts}) ->
    case lists:member(maps:get(reason, Last, none), Reasons) of
        true ->
            case lists:sum([maps:get(count, Death, 1)
                            || #{queue := Q, reason := Reason} = Death <- Deaths,
                               Q =:= Queue, lists:member(Reason, Reasons)]) of
                N when N =< Attempts -> {retry, N};
                N -> {used_up, N}
            end;
        false ->
            not_retried
    end.

%% How long it waits for this attempt, ms.
-spec pause(Attempt :: pos_integer(), plan()) -> ms().
pause(Attempt, Plan) ->
    pause(Attempt, Plan, rand:uniform()).

%% The same, where Random, 0 to 1, is how much of the jitter counts.
-spec pause(Attempt :: pos_integer(), plan(), Random :: float()) -> ms().
pause(Attempt, #{pauses := Pauses, jitter := Jitter}, Random) ->
    max(1, round(full_pause(Attempt, Pauses) * (1 - Jitter * Random))).

full_pause(Attempt, {schedule, Schedule}) ->
    lists:nth(min(Attempt, length(Schedule)), Schedule);
full_pause(Attempt, {exponential, Initial, Multiplier, Max}) ->
    %% Compared before it is computed: there is no float for the pause of the millionth attempt.
    case (Attempt - 1) * math:log(Multiplier) >= math:log(Max / Initial) of
        true -> Max;
        false -> min(Max, round(Initial * math:pow(Multiplier, Attempt - 1)))
    end.

%% ------------------------------------------------------------------------------ messages

%% Whether the dead letter's queue names the exchange, or has it by policy. What comes here by a
%% binding to another exchange does not go back: whoever made that binding need not be allowed to
%% write there.
-spec is_sent_to(rabbit_exchange:name(), rabbit_delay_broker:message()) -> boolean().
is_sent_to(XName, Message) ->
    rabbit_delay_broker:exchange_of(Message, XName) =:= XName.

-spec mark(rabbit_delay_store:encoding()) -> rabbit_delay_store:encoding().
mark(Encoding) -> Encoding bor ?MARK.

-spec is_marked(rabbit_delay_store:encoding()) -> boolean().
is_marked(Encoding) -> Encoding band ?MARK =/= 0.
