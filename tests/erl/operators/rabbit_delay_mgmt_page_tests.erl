%% SPDX-License-Identifier: MPL-2.0
-module(rabbit_delay_mgmt_page_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(P, rabbit_delay_mgmt_page).

%% All pages together are the list, sorted, of those whose name has the text, each once.
pages_test_() ->
    {timeout, 600,
     ?_assert(proper:quickcheck(
                ?FORALL({Names, Sort, Reverse, Part, Size},
                        {list({oneof([<<"v">>, <<"w">>]), name(), range(0, 3)}),
                         oneof([<<>>, <<"n">>, <<"stats.n">>, <<"none">>, <<"stats">>]), boolean(),
                         oneof([<<>>, <<"a">>, <<"AB">>]), range(1, 5)},
                        begin
                            Rows = rows(Names),
                            Words = #{sort => Sort, name => Part, page_size => integer_to_binary(Size),
                                      sort_reverse => atom_to_binary(Reverse)},
                            Pages = pages(Rows, Words, 1),
                            Key = fun (#{<<"vhost">> := V, <<"name">> := Name, n := N}) ->
                                          {case Sort of
                                               <<"n">> -> N;
                                               <<"stats.n">> -> N;
                                               _ -> 0
                                           end, V, Name}
                                  end,
                            Ordered = lists:sort(fun (A, B) -> Key(A) =< Key(B) end, Rows),
                            Sorted = case Reverse of
                                         true -> lists:reverse(Ordered);
                                         false -> Ordered
                                     end,
                            lists:append(Pages)
                                =:= [R || #{<<"name">> := Name} = R <- Sorted,
                                          string:find(string:lowercase(Name),
                                                      string:lowercase(Part)) =/= nomatch]
                                andalso [] =:= [P || P <- lists:droplast(Pages), length(P) =/= Size]
                        end), [{numtests, 500}, quiet]))}.

pages(Rows, Words, N) ->
    {ok, Request} = ?P:request(Words#{page => integer_to_binary(N)}),
    #{items := Items, page := N, item_count := Count, filtered_count := Filtered, total_count := Total,
      page_count := PageCount, page_size := Size} = ?P:page(Rows, Request),
    ?assertEqual({length(Items), length(Rows), (Filtered + Size - 1) div Size},
                 {Count, Total, PageCount}),
    case N >= PageCount of
        true -> [Items];
        false -> [Items | pages(Rows, Words, N + 1)]
    end.

%% Names are of a vhost once.
rows(Names) ->
    maps:values(maps:from_list([{{V, Name}, #{<<"vhost">> => V, <<"name">> => Name, n => N,
                                              <<"stats">> => #{n => N}}} || {V, Name, N} <- Names])).

name() -> ?LET(Chars, list(oneof("abAB")), list_to_binary(Chars)).

beyond_the_last_test() ->
    {ok, Request} = ?P:request(#{page => <<"1000000000">>}),
    ?assertMatch(#{items := [], item_count := 0, filtered_count := 1}, ?P:page(rows([{<<"v">>, <<"a">>, 1}]),
                                                                              Request)).

%% Without a page all of them, by no name.
no_page_test() ->
    {ok, Request} = ?P:request(#{name => <<"nothing">>}),
    ?assertEqual([<<"a">>, <<"b">>],
                 [Name || #{<<"name">> := Name} <- ?P:page(rows([{<<"v">>, <<"b">>, 1}, {<<"v">>, <<"a">>, 2}]),
                                                           Request)]).

columns_test_() ->
    Row = #{<<"vhost">> => <<"v">>, <<"name">> => <<"a">>, n => 1,
            <<"stats">> => #{in => #{rate => 1.5, sum => 2}, out => 3}},
    [?_assertEqual([Shown], begin
                                {ok, Request} = ?P:request(#{columns => Columns}),
                                ?P:page([Row], Request)
                            end)
     || {Shown, Columns} <- [{#{<<"name">> => <<"a">>, n => 1}, <<"name,n">>},
                             {#{<<"stats">> => #{in => #{rate => 1.5}}}, <<"stats.in.rate">>},
                             {#{<<"stats">> => #{in => #{rate => 1.5, sum => 2}}}, <<"stats.in">>},
                             {#{<<"stats">> => #{in => #{sum => 2}, out => 3}}, <<"stats.in.sum,stats.out">>},
                             {#{}, <<"none">>}]].

regex_test_() ->
    Matches = fun (Pattern) ->
                      {ok, #{matches := M}} = ?P:request(#{name => Pattern, use_regex => <<"true">>}),
                      [Name || Name <- [<<"orders">>, <<"Orders.eu">>, <<"x">>], M(Name)]
              end,
    [?_assertEqual([<<"orders">>, <<"Orders.eu">>], Matches(<<"^ord">>)),
     ?_assertEqual([<<"Orders.eu">>], Matches(<<"\\.">>)),
     %% One that backtracks without end matches nothing rather than going on.
     ?_assertEqual([], Matches(<<"(o*)*(r*)*(d*)*(([a-z]*)*)*!">>))].

refused_test_() ->
    [?_assertMatch({error, <<_/binary>>}, ?P:request(Words))
     || Words <- [#{page => <<"0">>}, #{page => <<"1000000001">>}, #{page => <<"one">>},
                  #{page_size => <<"501">>}, #{page_size => <<"0">>}, #{sort_reverse => <<"yes">>},
                  #{use_regex => <<"1">>}, #{pagination => <<>>},
                  #{name => <<"(">>, use_regex => <<"true">>}, #{name => binary:copy(<<"a">>, 251)}]].
