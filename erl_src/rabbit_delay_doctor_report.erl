%% SPDX-License-Identifier: MPL-2.0

%% The doctor's findings as text for people and as JSON for programs.
-module(rabbit_delay_doctor_report).

-export([text/1, json/1, summary/1, worst/1]).

-spec text([rabbit_delay_doctor:finding()]) -> binary().
text([]) ->
    <<"No traps found.\n">>;
text(Findings) ->
    unicode:characters_to_binary(lists:join($\n, [text_of(Finding) || Finding <- Findings])).

text_of(#{rule := Rule, severity := Severity, vhost := VHost, kind := Kind, name := Name,
          why := Why, mend := Mend, commands := Commands}) ->
    [io_lib:format("~s ~s: ~s \"~ts\" in vhost \"~ts\"~n",
                   [Severity, Rule, Kind, printable(Name), printable(VHost)]),
     "  ", printable(Why), "\n  ", printable(Mend), $\n,
     [["    ", printable(Command), $\n] || Command <- Commands]].

%% One object: how many findings of each severity, and the findings. Shapes: README.
-spec json([rabbit_delay_doctor:finding()]) -> binary().
json(Findings) ->
    iolist_to_binary(
      rabbit_json:encode(#{<<"version">> => 1, <<"counts">> => counts(Findings),
                           <<"findings">> => [json_of(Finding) || Finding <- Findings]})).

json_of(Finding) ->
    maps:fold(fun (commands, Commands, Acc) ->
                      Acc#{<<"commands">> => [printable(Command) || Command <- Commands]};
                  (Key, Value, Acc) when is_atom(Value) ->
                      Acc#{atom_to_binary(Key, utf8) => atom_to_binary(Value, utf8)};
                  (Key, Value, Acc) ->
                      Acc#{atom_to_binary(Key, utf8) => printable(Value)}
              end, #{}, Finding).

counts(Findings) ->
    lists:foldl(fun (#{severity := Severity}, Acc) ->
                        maps:update_with(atom_to_binary(Severity, utf8), fun (N) -> N + 1 end, Acc)
                end, #{<<"error">> => 0, <<"warning">> => 0, <<"info">> => 0}, Findings).

-spec summary([rabbit_delay_doctor:finding()]) -> binary().
summary(Findings) ->
    #{<<"error">> := Errors, <<"warning">> := Warnings, <<"info">> := Infos} = counts(Findings),
    iolist_to_binary(io_lib:format("dead-lettering: ~b error, ~b warning, ~b info",
                                   [Errors, Warnings, Infos])).

%% 0 where there is none.
-spec worst([rabbit_delay_doctor:finding()]) -> 0..3.
worst(Findings) ->
    lists:max([0 | [rabbit_delay_doctor:severity_rank(S) || #{severity := S} <- Findings]]).

%% Names may be any bytes.
printable(Text) ->
    case unicode:characters_to_binary(Text) of
        Valid when is_binary(Valid) -> Valid;
        _ -> unicode:characters_to_binary(Text, latin1)
    end.
