%% SPDX-License-Identifier: MPL-2.0

%% A list that is asked for as those of the management plugin are, a page of it sorted by a column and
%% chosen by name, and answered alike. Not by its code: of some combinations that makes a status of 500.
%%
%% Pure functions, in the process of the request.
-module(rabbit_delay_mgmt_page).

-export([parameters/0, request/1, page/2]).

-export_type([request/0]).

-type request() :: #{page := pos_integer() | all, pagination := boolean(), size := pos_integer(),
                     reverse := boolean(), sort := [binary()], columns := all | [[binary()]],
                     matches := fun((Name :: binary()) -> boolean())}.

-type row() :: #{binary() => term()}.

-define(PAGE_SIZE, 100).
-define(MAX_PAGE_SIZE, 500).
-define(MAX_PAGE, 1000000000).
-define(MAX_PATTERN, 250).

-spec parameters() -> [atom()].
parameters() -> [page, page_size, name, use_regex, sort, sort_reverse, columns, pagination].

%% Reads what was asked for with these parameters.
-spec request(#{atom() => binary()}) -> {ok, request()} | {error, Why :: binary()}.
request(Words) ->
    rabbit_delay_http:all(
      [{page, page_number(Words)},
       {pagination, rabbit_delay_http:boolean(pagination, Words)},
       {size, rabbit_delay_http:integer(page_size, Words, ?PAGE_SIZE, 1, ?MAX_PAGE_SIZE)},
       {reverse, rabbit_delay_http:boolean(sort_reverse, Words)},
       {sort, {ok, path(maps:get(sort, Words, <<>>))}},
       {columns, {ok, columns(Words)}},
       {matches, matcher(Words)}], fun (Request) -> {ok, Request} end).

page_number(#{page := _} = Words) -> rabbit_delay_http:integer(page, Words, 1, 1, ?MAX_PAGE);
page_number(_) -> {ok, all}.

path(Word) ->
    [Name || Name <- binary:split(Word, <<".">>, [global]), Name =/= <<>>].

columns(#{columns := Word}) -> [path(Column) || Column <- binary:split(Word, <<",">>, [global])];
columns(_) -> all.

matcher(Words) ->
    case {maps:get(name, Words, <<>>), rabbit_delay_http:boolean(use_regex, Words)} of
        {_, {error, _} = Error} ->
            Error;
        {<<>>, _} ->
            {ok, fun (_) -> true end};
        {Bytes, {ok, UseRegex}} ->
            Name = rabbit_delay_text:printable(Bytes),
            case length(unicode:characters_to_list(Name)) =< ?MAX_PATTERN of
                true -> matcher(Name, UseRegex);
                false -> {error, text("name: more than ~b characters", [?MAX_PATTERN])}
            end
    end.

matcher(Name, UseRegex) ->
    case UseRegex of
        false ->
            Part = string:casefold(Name),
            {ok, fun (Other) -> string:find(string:casefold(Other), Part) =/= nomatch end};
        true ->
            case re:compile(Name, [caseless, unicode]) of
                {ok, Regex} ->
                    {ok, fun (Other) ->
                                 re:run(Other, Regex, [{capture, none},
                                                       {match_limit, 10000}]) =:= match
                         end};
                {error, _} ->
                    {error, <<"name: not a regular expression">>}
            end
    end.

%% Of rows with a name and a vhost. Of whatever has no such column, nothing comes first.
-spec page([row()], request()) -> [row()] | #{atom() => term()}.
page(Rows, #{page := Page, size := Size, sort := Sort, reverse := Reverse, columns := Columns,
             matches := Matches}) ->
    Keyed = lists:sort([{at(Sort, Row), maps:get(<<"vhost">>, Row), maps:get(<<"name">>, Row), Row}
                        || Row <- Rows]),
    Sorted = [Row || {_, _, _, Row} <- case Reverse of
                                           true -> lists:reverse(Keyed);
                                           false -> Keyed
                                       end],
    case Page of
        all ->
            [with_columns(Row, Columns) || Row <- Sorted];
        _ ->
            Filtered = [Row || #{<<"name">> := Name} = Row <- Sorted, Matches(Name)],
            Count = length(Filtered),
            Items = case (Page - 1) * Size of
                        Offset when Offset < Count -> lists:sublist(Filtered, Offset + 1, Size);
                        _ -> []
                    end,
            #{total_count => length(Sorted), filtered_count => Count, item_count => length(Items),
              page => Page, page_size => Size, page_count => (Count + Size - 1) div Size,
              items => [with_columns(Row, Columns) || Row <- Items]}
    end.

at([], _) -> 0;
at([Name | Rest], Map) when is_map(Map) ->
    Known = [Value || {Key, Value} <- maps:to_list(Map), key_name(Key) =:= Name],
    case {Known, Rest} of
        {[null], _} -> 0;
        {[Value], []} when not is_map(Value), not is_list(Value) -> Value;
        {[Value], _} -> at(Rest, Value);
        {[], _} -> 0
    end;
at(_, _) -> 0.

key_name(Key) when is_atom(Key) -> atom_to_binary(Key, utf8);
key_name(Key) -> Key.

with_columns(Value, all) ->
    Value;
with_columns(Map, Columns) when is_map(Map) ->
    maps:from_list([{Key, with_columns(Value, case lists:member([], Below) of
                                                  true -> all;
                                                  false -> Below
                                              end)}
                    || {Key, Value} <- maps:to_list(Map),
                       Below <- [[Rest || [Name | Rest] <- Columns, Name =:= key_name(Key)]],
                       Below =/= []]);
with_columns(Value, _) ->
    Value.

text(Format, Args) ->
    rabbit_delay_text:printable(io_lib:format(Format, Args)).
