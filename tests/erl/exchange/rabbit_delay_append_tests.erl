%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_append_tests).

-include_lib("eunit/include/eunit.hrl").

%% A store takes more until it is full, or until what it cannot write is too much, its own or that of
%% all stores of the node.
why_unable_test_() ->
    Full = "its store is full: there are as many messages, or files of them, as it can have",
    NoSpace = "its files cannot be written to (no space)",
    Stat = fun (Error, Buffered, IsFull) ->
                   #{write_error => Error, buffered => Buffered, full => IsFull}
           end,
    [?_assertEqual(Why, rabbit_delay_append:why_unable(S, fun () -> OfAll end))
     || {S, OfAll, Why} <-
            [{Stat(none, 0, false), 0, none},
             {Stat(none, 1 bsl 40, false), 1 bsl 40, none},
             {Stat(none, 0, true), 0, Full},
             {Stat("no space", 0, true), 0, Full},
             {Stat("no space", 0, false), 0, none},
             {Stat("no space", 16777216, false), 67108864, none},
             {Stat("no space", 16777217, false), 0, NoSpace},
             {Stat("no space", 0, false), 67108865, NoSpace},
             {#{pending => 0}, 0, none}]].

%% What all stores have is asked for only where it matters.
all_are_asked_only_if_one_cannot_write_test() ->
    Asked = fun () -> error(asked) end,
    Unable = fun (Stat) -> rabbit_delay_append:why_unable(Stat, Asked) end,
    ?assertEqual(none, Unable(#{write_error => none, buffered => 1 bsl 40, full => false})),
    ?assertError(asked, Unable(#{write_error => "no space", buffered => 0, full => false})).
