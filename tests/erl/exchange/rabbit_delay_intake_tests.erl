%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_intake_tests).

-include_lib("eunit/include/eunit.hrl").

-define(I, rabbit_delay_intake).
-define(W, rabbit_delay_waiting).

%% A message whose publisher hears of it waits for a leader as long as there is little of it, and with
%% one for its log; nothing waits where nothing will be taken.
told_test_() ->
    in_directory(
      fun (Dir) ->
              Small = holding(1, 10, Dir),
              Full = holding(20000, 10, Dir),
              Many = holding(200000, 10, Dir),
              Large = holding(1, 268435456, Dir),
              Verdicts =
                  [{up, known, Small, wait}, {up, known, Full, wait}, {up, known, Many, reject},
                   {up, known, Large, reject}, {up, awaited, Small, wait},
                   {up, awaited, Full, reject}, {up, awaited, Large, reject},
                   {up, refused, Small, reject}, {starting, awaited, Small, wait},
                   {starting, refused, Small, reject}]
                  ++ [{{What, "why"}, Leader, Waiting, reject}
                      || What <- [down, full], Leader <- [known, awaited, refused],
                         Waiting <- [Small, Full]],
              [?assertEqual({Status, Leader, Verdict},
                            {Status, Leader, ?I:verdict_on_told(Status, Leader, Waiting)})
               || {Status, Leader, Waiting, Verdict} <- Verdicts]
      end).

%% One that nobody hears of waits whatever happens, in memory and then in files, behind what is there;
%% it is lost only when there is no room on the disk.
untold_test_() ->
    in_directory(
      fun (Dir) ->
              Small = holding(1, 10, Dir),
              Full = holding(20000, 10, Dir),
              Overflowing = ?W:overflow(last, 10, Small),
              [?assertEqual({Status, Verdict}, {Status, ?I:verdict_on_untold(Status, Waiting)})
               || {Status, Waiting, Verdict} <-
                      [{Status, Small, wait} || Status <- [up, {down, "why"}, {full, "why"}]] ++
                      [{Status, Waiting, overflow}
                       || Waiting <- [Full, Overflowing], Status <- [up, {down, "why"}]] ++
                      [{{full, "why"}, Waiting, {drop, "why"}} || Waiting <- [Full, Overflowing]]]
      end).

in_directory(Fun) ->
    {timeout, 1200,
     fun () ->
             Dir = filename:join(filename:basedir(user_cache, "delay-wheel-tests"),
                                 "intake" ++ os:getpid()),
             try Fun(Dir) after _ = file:del_dir_r(Dir) end
     end}.

holding(N, Size, Dir) ->
    lists:foldl(fun (I, W) -> ?W:in(I, Size, W) end, ?W:new(Dir, {20000, 67108864}),
                lists:seq(1, N)).
