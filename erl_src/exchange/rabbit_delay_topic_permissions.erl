%% SPDX-License-Identifier: MPL-2.0

%% Topic permissions, as the broker asks for them where an exchange is of type topic: for publishing
%% with a key and for binding with one. It asks of its own type only; here it is done for delayed
%% exchanges that route as a topic exchange does.
%%
%% An exchange type is not told who publishes or binds. A channel's process says whose it is in the
%% broker's own metrics, so what channels do is checked, against the permissions that the broker itself
%% keeps. Not checked, as it cannot be known: AMQP 1.0 of 4.x, bindings where the metadata are in Mnesia,
%% whose transactions run in processes of their own, and permissions of other backends (OAuth 2, HTTP).
-module(rabbit_delay_topic_permissions).

-include_lib("rabbit_common/include/rabbit.hrl").

-export([is_permitted/4, check/3]).

%% As many as a channel keeps.
-define(CACHED, 12).

%% Whether topic permissions allow it; they have no say on exchanges that do not route by topics.
-spec is_permitted(rabbit_types:user(), rabbit_exchange:name(), Key :: binary(), read | write) ->
          boolean().
is_permitted(User, XName, Key, Permission) ->
    case rabbit_delay_broker:lookup_exchange(XName) of
        {ok, X} -> not is_topic(X) orelse is_allowed(User, XName, Key, Permission);
        {error, not_found} -> true
    end.

%% Closes the channel whose process this is, unless its user may do that with each key on our exchange X.
-spec check(rabbit_delay_broker:exchange(), [binary()], read | write) -> ok.
check(X, Keys, Permission) ->
    case rabbit_delay_exchange:underlying_type(X) of
        rabbit_exchange_type_topic ->
            case rabbit_delay_broker:channel_user() of
                {ok, Username} -> check(X, Keys, Permission, Username);
                unknown -> ok
            end;
        _ ->
            ok
    end.

check(X, Keys, Permission, Username) ->
    XName = rabbit_delay_broker:exchange_name(X),
    Cache = case get(?MODULE) of
                undefined -> [];
                Known -> Known
            end,
    case [Key || Key <- Keys, not lists:member({XName, Key, Permission}, Cache)] of
        [] ->
            ok;
        New ->
            case [Key || Key <- New, not is_allowed(internal(Username), XName, Key, Permission)] of
                [] ->
                    put(?MODULE, lists:sublist([{XName, Key, Permission} || Key <- New] ++ Cache,
                                               ?CACHED)),
                    ok;
                [Key | _] ->
                    _ = rabbit_delay_broker:raise_to_client(
                          access_refused, "~s access to topic '~ts' in ~ts refused for user '~ts'",
                          [Permission, rabbit_delay_text:escaped(Key), rabbit_delay_text:rs(XName),
                           rabbit_delay_text:escaped(Username)]),
                    ok
            end
    end.

%% The user as the broker's own permissions know it.
internal(Username) ->
    #user{username = Username, tags = [],
          authz_backends = [{rabbit_auth_backend_internal, none}
                            || lists:member(rabbit_auth_backend_internal, authorising())]}.

authorising() ->
    lists:flatten([case Backend of
                       {_, Authorising} -> Authorising;
                       _ -> Backend
                   end || Backend <- application:get_env(rabbit, auth_backends, [])]).

is_topic(X) ->
    case rabbit_delay_broker:is_delayed(X) of
        true -> rabbit_delay_exchange:underlying_type(X) =:= rabbit_exchange_type_topic;
        false -> rabbit_delay_broker:exchange_type(X) =:= topic
    end.

is_allowed(#user{username = Username} = User, #resource{virtual_host = VHost} = XName, Key,
           Permission) ->
    Context = #{routing_key => Key,
                variable_map => #{<<"vhost">> => VHost, <<"username">> => Username}},
    try
        rabbit_access_control:check_topic_access(User, XName#resource{kind = topic}, Permission,
                                                 Context) =:= ok
    catch
        exit:#amqp_error{} -> false
    end.
