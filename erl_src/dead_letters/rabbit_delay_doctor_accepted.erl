%% SPDX-License-Identifier: MPL-2.0

%% Findings of the doctor that somebody has looked at and lives with, each for a reason: by a runtime
%% parameter of the vhost, or by a file. They are told apart, and count no more.
%%
%%   {"rule": "cycle_unbounded", "name": "orders", "reason": "the consumer looks at x-death"}
%%
%% Instead of name, "pattern" is a regular expression; without either it is all of that rule, in the
%% vhost of the parameter, or in "vhost" in a file. "kind" narrows it to queue, policy, exchange or entry.
%%
%% Registered as a kind of runtime parameter when the broker boots; else pure functions.
-module(rabbit_delay_doctor_accepted).

-behaviour(rabbit_runtime_parameter).

-export([register/0, unregister/0, validate/5, notify/5, notify_clear/4]).
-export([component/0, of_vhost/1, of_file/1, parse/1, mark/2, unused/2, split/1]).

-export_type([accepted/0]).

-type accepted() :: #{rule := binary(), reason := binary(), vhost => binary(), kind => binary(),
                      name => binary(), pattern => tuple()}.

-define(COMPONENT, <<"accepted-dead-lettering">>).
-define(MAX_FILE_BYTES, (16 * 1024 * 1024)).
-define(MATCH_LIMIT, 20000).
-define(KEYS, [<<"rule">>, <<"reason">>, <<"vhost">>, <<"kind">>, <<"name">>, <<"pattern">>]).
-define(KINDS, [<<"queue">>, <<"policy">>, <<"exchange">>, <<"entry">>]).

-spec register() -> ok.
register() -> rabbit_registry:register(runtime_parameter, ?COMPONENT, ?MODULE).

-spec unregister() -> ok.
unregister() -> rabbit_registry:unregister(runtime_parameter, ?COMPONENT).

-spec validate(rabbit_types:vhost(), binary(), binary(), term(), term()) ->
          ok | {error, string(), [term()]}.
validate(_, ?COMPONENT, _, Term, _) ->
    case parse(to_map(Term)) of
        {ok, #{vhost := _}} -> {error, "vhost is for files: a parameter has one already", []};
        {ok, _} -> ok;
        {error, Why} -> {error, "~ts", [Why]}
    end.

-spec notify(rabbit_types:vhost(), binary(), binary(), term(), term()) -> ok.
notify(_, _, _, _, _) -> ok.

-spec notify_clear(rabbit_types:vhost(), binary(), binary(), term()) -> ok.
notify_clear(_, _, _, _) -> ok.

%% The name of the parameters' component.
-spec component() -> binary().
component() -> ?COMPONENT.

%% By the parameters of a vhost of the broker that this runs in.
-spec of_vhost(rabbit_types:vhost()) -> [accepted()].
of_vhost(VHost) ->
    [Accepted || Parameter <- rabbit_runtime_parameters:list(VHost, ?COMPONENT),
                 {ok, Accepted} <- [parse(to_map(proplists:get_value(value, Parameter)))]].

to_map(Term) when is_map(Term) -> Term;
to_map(Term) ->
    try maps:from_list(Term)
    catch error:_ -> Term
    end.

%% {"accepted": [...]}
-spec of_file(file:name_all()) -> {ok, [accepted()]} | {error, iodata()}.
of_file(Path) ->
    case filelib:file_size(Path) =< ?MAX_FILE_BYTES andalso file:read_file(Path) of
        {ok, Bytes} ->
            case rabbit_delay_definitions:decode(Bytes, ?MAX_FILE_BYTES) of
                {ok, #{<<"accepted">> := Entries}} when is_list(Entries) -> entries(Path, Entries, 0, []);
                {ok, _} -> {error, [Path, " has no list \"accepted\""]};
                error -> {error, [Path, " is not JSON, or it is cut off"]}
            end;
        {error, Reason} ->
            {error, [Path, ": ", file:format_error(Reason)]};
        false ->
            {error, [Path, " is too large"]}
    end.

entries(_, [], _, Acc) ->
    {ok, lists:reverse(Acc)};
entries(Path, [Entry | Entries], N, Acc) ->
    case parse(Entry) of
        {ok, Accepted} -> entries(Path, Entries, N + 1, [Accepted | Acc]);
        {error, Why} -> {error, io_lib:format("~ts: accepted[~b]: ~ts", [Path, N, Why])}
    end.

-spec parse(term()) -> {ok, accepted()} | {error, iodata()}.
parse(#{<<"rule">> := _, <<"reason">> := Reason} = Entry) ->
    Rules = [atom_to_binary(Rule, utf8) || Rule <- rabbit_delay_doctor:rules()],
    Unknown = maps:keys(maps:without(?KEYS, Entry)),
    NoTexts = [Key || {Key, Value} <- maps:to_list(Entry), not is_binary(Value)],
    case Entry of
        _ when Unknown =/= [] -> {error, ["it has ", hd(Unknown), ", which is not known"]};
        _ when NoTexts =/= [] -> {error, [hd(NoTexts), " is not a string"]};
        _ when Reason =:= <<>> -> {error, "the reason is empty"};
        #{<<"name">> := _, <<"pattern">> := _} -> {error, "it has both name and pattern"};
        #{<<"rule">> := Rule} ->
            case {lists:member(Rule, Rules),
                  lists:member(maps:get(<<"kind">>, Entry, <<"queue">>), ?KINDS),
                  re:compile(maps:get(<<"pattern">>, Entry, <<>>))} of
                {false, _, _} -> {error, [Rule, " is no rule"]};
                {_, false, _} -> {error, "kind is none of queue, policy, exchange and entry"};
                {_, _, {error, _}} -> {error, "the pattern is no regular expression"};
                {true, true, {ok, Pattern}} -> {ok, parsed(Entry, Pattern)}
            end
    end;
parse(#{}) ->
    {error, "it must have rule and reason"};
parse(_) ->
    {error, "it is not an object"}.

parsed(Entry, Pattern) ->
    maps:from_list([{rule, maps:get(<<"rule">>, Entry)}, {reason, maps:get(<<"reason">>, Entry)}
                    | [{Key, Value} || {Key, Name} <- [{vhost, <<"vhost">>}, {kind, <<"kind">>},
                                                       {name, <<"name">>}],
                                       {ok, Value} <- [maps:find(Name, Entry)]]]
                   ++ [{pattern, Pattern} || is_map_key(<<"pattern">>, Entry)]).

%% The findings, with the reason at those that are accepted.
-spec mark([rabbit_delay_doctor:finding()], [accepted()]) -> [rabbit_delay_doctor:finding()].
mark(Findings, Accepted) ->
    [case [Reason || #{reason := Reason} = A <- Accepted, is_accepted(Finding, A)] of
         [Reason | _] -> maps:merge(#{accepted => Reason}, Finding);
         [] -> Finding
     end || Finding <- Findings].

%% A finding for each of those that accept none of the findings.
-spec unused([rabbit_delay_doctor:finding()], [{rabbit_types:vhost(), accepted()}]) ->
          [rabbit_delay_doctor:finding()].
unused(Findings, Accepted) ->
    [#{rule => acceptance_unused, severity => info, vhost => VHost, kind => entry,
       name => maps:get(name, A, Rule),
       why => rabbit_delay_text:printable(
                ["A finding of the rule ", Rule, " is accepted (", Reason, "), and there is none that it is for: "
                 "it was mended since, or what it names is called otherwise. A new one of that name would "
                 "be accepted unseen."]),
       mend => <<"Clear the parameter, or take the entry out of the file; or correct what it names.">>,
       commands => []}
     || {VHost, #{rule := Rule, reason := Reason} = A} <- Accepted,
        not lists:any(fun (Finding) -> is_accepted(Finding, A) end, Findings)].

is_accepted(#{rule := Rule, vhost := VHost, kind := Kind, name := Name}, #{rule := R} = Accepted) ->
    R =:= atom_to_binary(Rule, utf8)
        andalso maps:get(vhost, Accepted, VHost) =:= VHost
        andalso maps:get(kind, Accepted, atom_to_binary(Kind, utf8)) =:= atom_to_binary(Kind, utf8)
        andalso maps:get(name, Accepted, Name) =:= Name
        andalso case Accepted of
                    #{pattern := Pattern} ->
                        re:run(Name, Pattern, [{capture, none}, {match_limit, ?MATCH_LIMIT},
                                               {match_limit_recursion, ?MATCH_LIMIT}]) =:= match;
                    _ ->
                        true
                end.

%% Those that count, and those that are accepted.
-spec split([rabbit_delay_doctor:finding()]) ->
          {[rabbit_delay_doctor:finding()], [rabbit_delay_doctor:finding()]}.
split(Findings) -> lists:partition(fun (Finding) -> not is_map_key(accepted, Finding) end, Findings).
