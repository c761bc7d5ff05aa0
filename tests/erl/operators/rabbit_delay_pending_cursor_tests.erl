%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_pending_cursor_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(C, rabbit_delay_pending_cursor).
-define(MAX_MS, 16#ffffffffffff).
-define(MAX_ID, 16#ffffffffffffffff).

%% A cursor says what it was made of to the request that it came from, and nothing to any other.
own_request_only_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL({Kind, X, Other, OtherX, Position, Bounds},
                        {kind(), name(), kind(), name(), {ms(), id()}, {id(), ms()}},
                        begin
                            Cursor = ?C:write(Kind, X, Position, Bounds),
                            Same = {Kind, X} =:= {Other, OtherX},
                            {ok, Position, Bounds} =:= ?C:read(Kind, X, Cursor)
                                andalso case ?C:read(Other, OtherX, Cursor) of
                                            {ok, Position, Bounds} -> Same;
                                            {error, {bad_request, <<_/binary>>}} -> not Same
                                        end
                        end), [{numtests, 500}, quiet]))}.

%% Whatever a client sends is refused, or is a position that there can be.
forged_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL(Cursor, oneof([binary(), ?LET(B, binary(), binary:encode_hex(B)),
                                       ?LET(B, binary(37), binary:encode_hex(B)), changed()]),
                        case ?C:read(list, x(<<"x">>), Cursor) of
                            {ok, {Due, Id}, {Below, Now}} ->
                                Due =< ?MAX_MS andalso Id =< ?MAX_ID
                                    andalso is_integer(Below) andalso is_integer(Now);
                            {error, {bad_request, <<_/binary>>}} ->
                                true
                        end), [{numtests, 2000}, quiet]))}.

%% Clients keep cursors over an upgrade of the broker.
format_test() ->
    ?assertEqual(<<"01", (binary:encode_hex(<<(erlang:phash2({list, <<"/">>, <<"x">>})):32>>))/binary,
                   "0000018BCFE56800", "0000000000010002", "0000000000000003", "0000000000000004">>,
                 ?C:write(list, x(<<"x">>), {1700000000000, 65538}, {3, 4})).

before_test_() ->
    [?_assertEqual({0, 0}, ?C:before(0)), ?_assertEqual({6, ?MAX_ID}, ?C:before(7))].

kind() -> oneof([list, cancel, release, {reschedule_to, range(0, 2)}, {reschedule_by, range(0, 2)}]).
name() -> ?LET(Name, oneof([<<"x">>, <<"y">>, binary()]), x(Name)).
ms() -> oneof([0, ?MAX_MS, range(0, ?MAX_MS)]).
id() -> oneof([0, ?MAX_ID, range(0, ?MAX_ID)]).
x(Name) -> {resource, <<"/">>, exchange, Name}.

changed() ->
    ?LET({At, Digit}, {range(0, 73), oneof("0123456789ABCDEFabcdef")},
         begin
             <<Head:At/binary, _, Tail/binary>> = ?C:write(list, x(<<"x">>), {1, 2}, {3, 4}),
             <<Head/binary, Digit, Tail/binary>>
         end).
