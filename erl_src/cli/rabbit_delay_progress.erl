%% SPDX-License-Identifier: MPL-2.0

%% How far a long command is, and how long it will take: on a terminal a bar, elsewhere a line every few
%% seconds, without control characters. On standard error; nothing with --quiet, --silent or a formatter
%% for programs.
%%
%% It runs in rabbitmqctl, in the process of the command.
-module(rabbit_delay_progress).

-export([new/2, total/2, step/2, ended/1, line/3, bar/3]).

-export_type([progress/0]).

-opaque progress() :: none | #{total := non_neg_integer(), kind := terminal | lines, began := integer(),
                               %% when it is shown next
                               next := integer()}.

-define(LINE_MS, 5000).
-define(BAR_MS, 200).
-define(WIDTH, 30).

-spec new(Total :: non_neg_integer(), rabbit_delay_cli:options()) -> progress().
new(_, #{quiet := true}) -> none;
new(_, #{silent := true}) -> none;
new(Total, Options) ->
    case rabbit_delay_cli:is_for_programs(Options) of
        true -> none;
        false -> new(Total)
    end.

new(Total) ->
    Now = now_ms(),
    case is_terminal() of
        true -> #{total => Total, kind => terminal, began => Now, next => Now};
        false -> #{total => Total, kind => lines, began => Now, next => Now + ?LINE_MS}
    end.

%% The tool's VM has none for Erlang, so that io:columns/1 knows nothing of it.
is_terminal() ->
    case file:read_link("/proc/self/fd/2") of
        {ok, "/dev/pts/" ++ _} -> true;
        {ok, "/dev/tty" ++ _} -> true;
        {ok, "/dev/console"} -> true;
        _ -> false
    end.

%% How many there are is known only now.
-spec total(non_neg_integer(), progress()) -> progress().
total(_, none) -> none;
total(Total, Progress) -> Progress#{total := Total}.

%% So many have been looked at by now.
-spec step(Done :: non_neg_integer(), progress()) -> progress().
step(_, none) ->
    none;
step(Done, #{total := Total, kind := Kind, began := Began, next := Next} = Progress) ->
    case now_ms() of
        Now when Now < Next ->
            Progress;
        Now when Kind =:= terminal ->
            ok = io:put_chars(standard_error, ["\r", bar(Done, Total, Now - Began), "\e[K"]),
            Progress#{next := Now + ?BAR_MS};
        Now ->
            ok = io:put_chars(standard_error, [line(Done, Total, Now - Began), "\n"]),
            Progress#{next := Now + ?LINE_MS}
    end.

%% Nothing of it stays on a terminal.
-spec ended(progress()) -> ok.
ended(#{kind := terminal}) -> io:put_chars(standard_error, "\r\e[K");
ended(_) -> ok.

-spec bar(Done :: non_neg_integer(), Total :: non_neg_integer(), Ms :: non_neg_integer()) -> iolist().
bar(Done, Total, Ms) ->
    Filled = case Total of
                 0 -> 0;
                 _ -> ?WIDTH * min(Done, Total) div Total
             end,
    [$[, lists:duplicate(Filled, $#), lists:duplicate(?WIDTH - Filled, $.), "] ", line(Done, Total, Ms)].

%% 120000 of 1000000 (12 %), 24000/s, 36s left
-spec line(Done :: non_neg_integer(), Total :: non_neg_integer(), Ms :: non_neg_integer()) -> iolist().
line(0, Total, _) ->
    io_lib:format("0 of ~b", [Total]);
line(Done, Total, Ms) when Done =< Total ->
    io_lib:format("~b of ~b (~b %), ~b/s, ~s left",
                  [Done, Total, 100 * Done div Total, Done * 1000 div max(1, Ms),
                   rabbit_delay_time:span(Ms * (Total - Done) div Done)]);
line(Done, _, Ms) ->
    io_lib:format("~b, ~b/s", [Done, Done * 1000 div max(1, Ms)]).

now_ms() ->
    erlang:monotonic_time(millisecond).
