%% SPDX-License-Identifier: MPL-2.0

%% Times as people read and write them: in the zone of the machine on which this runs, with how far off
%% they are, and in UTC.
%%
%% Pure functions but for the zone, in the broker and in rabbitmqctl.
-module(rabbit_delay_time).

-export([shown/2, utc/1, exact/1, local/1, span/1]).

-type ms() :: integer().

%% 2027-01-31 12:00:00 (in 46m)
-spec shown(ms(), Now :: ms()) -> binary().
shown(Ms, Now) ->
    {{Year, Month, Day}, {Hour, Minute, Second}} =
        calendar:system_time_to_local_time(Ms div 1000, second),
    iolist_to_binary(io_lib:format("~4..0b-~2..0b-~2..0b ~2..0b:~2..0b:~2..0b (~s)",
                                   [Year, Month, Day, Hour, Minute, Second, from_now(Ms - Now)])).

from_now(Ms) when abs(Ms) < 1000 -> "now";
from_now(Ms) when Ms > 0 -> ["in ", span(Ms)];
from_now(Ms) -> [span(-Ms), " ago"].

%% A span of time in its two largest units, of which the smaller one is left out below an hour: 46m,
%% 3h 20m, 12d.
-spec span(non_neg_integer()) -> binary().
span(Ms) when Ms < 60000 -> parts([{Ms div 1000, "s"}]);
span(Ms) when Ms < 3600000 -> parts([{Ms div 60000, "m"}]);
span(Ms) when Ms < 86400000 -> parts([{Ms div 3600000, "h"}, {Ms div 60000 rem 60, "m"}]);
span(Ms) -> parts([{Ms div 86400000, "d"}, {Ms div 3600000 rem 24, "h"}]).

parts([{N, Unit} | Rest]) ->
    iolist_to_binary([integer_to_binary(N), Unit,
                      [[$\s, integer_to_binary(M), Smaller] || {M, Smaller} <- Rest, M > 0]]).

%% 2027-01-31T12:00:00Z
-spec utc(ms()) -> binary().
utc(Ms) ->
    list_to_binary(calendar:system_time_to_rfc3339(Ms div 1000, [{offset, "Z"}])).

%% The same to the millisecond: 2027-01-31T12:00:00.000Z, which has four digits for a year.
-spec exact(ms()) -> binary().
exact(Ms) when Ms >= 253402300800000 ->
    integer_to_binary(Ms);
exact(Ms) ->
    list_to_binary(calendar:system_time_to_rfc3339(Ms, [{unit, millisecond}, {offset, "Z"}])).

%% What a clock on the wall shows, 2027-01-31 12:00:00 or 2027-01-31T12:00, in ms since the epoch. There
%% are none and two of a time when clocks are put forward and back.
-spec local(binary()) -> {ok, ms()} | {error, not_local | no_such_time | twice}.
local(Word) ->
    case re:run(Word, "^([0-9]{4})-([0-9]{2})-([0-9]{2})[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2}))?$",
                [dollar_endonly, {capture, all_but_first, list}]) of
        {match, Parts} ->
            [Year, Month, Day, Hour, Minute | Second] = [list_to_integer(Part) || Part <- Parts],
            Time = {Hour, Minute, lists:sum(Second)},
            case calendar:valid_date(Year, Month, Day) andalso
                Time < {24, 0, 0} andalso Minute < 60 andalso lists:sum(Second) < 60 of
                true -> universal(calendar:local_time_to_universal_time_dst({{Year, Month, Day}, Time}));
                false -> {error, no_such_time}
            end;
        nomatch ->
            {error, not_local}
    end.

universal([Universal]) ->
    {ok, (calendar:datetime_to_gregorian_seconds(Universal)
          - calendar:datetime_to_gregorian_seconds({{1970, 1, 1}, {0, 0, 0}})) * 1000};
universal([]) -> {error, no_such_time};
universal([_, _]) -> {error, twice}.
