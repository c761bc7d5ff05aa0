%% SPDX-License-Identifier: MPL-2.0

%% What the extensions of the management plugin's HTTP API have in common: cowboy's callbacks that are
%% the same in all. A resource is what its path says that it is.
%%
%% With RESOURCES_OF_ANOTHER it is a module whose resources another one names: the management plugin wants a
%% page of each that is an extension.

-ifndef(RESOURCES_OF_ANOTHER).
-behaviour(rabbit_mgmt_extension).
-export([dispatcher/0, web_ui/0]).
-endif.

-include_lib("rabbit_common/include/rabbit.hrl").
-include_lib("rabbitmq_management_agent/include/rabbit_mgmt_records.hrl").
-include("rabbit_delay.hrl").

-export([init/2, variances/2, known_methods/2, allowed_methods/2, valid_content_headers/2,
         content_types_provided/2, content_types_accepted/2, is_authorized/2, forbidden/2,
         resource_exists/2, to_json/2, accept/2]).

-type reply() :: {term(), cowboy_req:req(), #context{}}.

-spec init(cowboy_req:req(), [resource()]) -> {cowboy_rest, cowboy_req:req(), #context{}}.
init(Req, [Resource]) ->
    {cowboy_rest, rabbit_mgmt_headers:set_common_permission_headers(Req, ?MODULE),
     #context{impl = Resource}}.

-spec variances(cowboy_req:req(), #context{}) -> reply().
variances(Req, Context) ->
    {[<<"accept-encoding">>, <<"origin">>], Req, Context}.

%% What a resource does not allow is answered with 405, be it TRACE.
-spec known_methods(cowboy_req:req(), #context{}) -> reply().
known_methods(Req, Context) ->
    {[cowboy_req:method(Req)], Req, Context}.

-spec valid_content_headers(cowboy_req:req(), #context{}) -> reply().
valid_content_headers(Req, Context) ->
    rabbit_delay_http:check_content(Req, Context).

-spec content_types_provided(cowboy_req:req(), #context{}) -> reply().
content_types_provided(Req, Context) ->
    {[{<<"application/json">>, to_json}], Req, Context}.

-spec content_types_accepted(cowboy_req:req(), #context{}) -> reply().
content_types_accepted(Req, Context) ->
    {[{'*', accept}], Req, Context}.

-spec resource_exists(cowboy_req:req(), #context{}) -> reply().
resource_exists(Req, Context) ->
    case rabbit_mgmt_util:vhost(Req) of
        not_found ->
            rabbit_delay_http:refuse(404, not_found, <<"there is no such vhost">>, Req, Context);
        _ ->
            {true, Req, Context}
    end.
