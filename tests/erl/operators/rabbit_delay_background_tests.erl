%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_background_tests).

-include_lib("eunit/include/eunit.hrl").

-define(B, rabbit_delay_background).

priority() ->
    {priority, Priority} = process_info(self(), priority),
    Priority.

%% Whatever becomes of it, who asked is as before.
its_priority_is_low_meanwhile_test() ->
    Before = priority(),
    ?assertEqual(low, ?B:run(fun priority/0)),
    ?assertEqual(Before, priority()),
    ?assertError(failed, ?B:run(fun () -> error(failed) end)),
    ?assertEqual(Before, priority()),
    ?assertEqual({low, low}, ?B:run(fun () -> {?B:run(fun priority/0), priority()} end)),
    ?assertEqual(Before, priority()).

%% A turn ends after a bounded number of steps, be they ever so cheap: a trace shows each time that the VM
%% takes another.
turns_are_short_test() ->
    Steps = 1000,
    Ended = ended_turns(fun () -> lists:foreach(fun ?B:give_way/1, lists:seq(1, Steps)) end),
    ?assert(length(Ended) >= Steps div 128).

by_turns_answers_what_it_was_test_() ->
    [fun () ->
             ok = rabbit_delay_traffic:create(),
             ok = Before(),
             Rested = make_ref(),
             self() ! Rested,
             ?assertEqual(answer, ?B:by_turns(fun () -> answer end)),
             %% Nothing of who asked is taken.
             ?assertEqual(Rested, receive Rested -> Rested after 0 -> gone end)
     end || Before <- [fun () -> ok end, fun rabbit_delay_traffic:passes/0]].

%% It takes turns with messages that pass, and with nobody.
by_turns_rests_while_messages_pass_test() ->
    ok = begin_anew(),
    ?assertNot(rests(fun () -> ok end)),
    ?assert(rests(fun rabbit_delay_traffic:passes/0)),
    ok = begin_anew(),
    ?assertNot(rests(fun () -> ok end)).

begin_anew() ->
    _ = persistent_term:erase({rabbit_delay_traffic, last}),
    rabbit_delay_traffic:create().

%% Whether who asks waits after what took a while.
rests(Meanwhile) ->
    lists:member({?B, by_turns, 1},
                 ended_turns(fun () ->
                                     done = ?B:by_turns(fun () ->
                                                                ok = busy_until(erlang:monotonic_time(millisecond) + 5),
                                                                ok = Meanwhile(),
                                                                done
                                                        end)
                             end)).

%% Where a process that does it is each time that the VM takes another, as a trace shows.
ended_turns(Fun) ->
    Tester = self(),
    Pid = spawn(fun () ->
                        receive go -> ok end,
                        _ = Fun(),
                        Tester ! done,
                        receive never -> ok end
                end),
    1 = erlang:trace(Pid, true, [running]),
    Pid ! go,
    receive done -> ok end,
    Delivered = erlang:trace_delivered(Pid),
    receive {trace_delivered, Pid, Delivered} -> ok end,
    Ended = ended_turns_of(Pid),
    exit(Pid, kill),
    Ended.

ended_turns_of(Pid) ->
    receive
        {trace, Pid, out, Where} -> [Where | ended_turns_of(Pid)];
        {trace, Pid, in, _} -> ended_turns_of(Pid)
    after 0 ->
        []
    end.

busy_until(Ms) ->
    case erlang:monotonic_time(millisecond) < Ms of
        true -> busy_until(Ms);
        false -> ok
    end.
