%% SPDX-License-Identifier: MPL-2.0

-define(EXCHANGE_TYPE, <<"x-delayed-message">>).
-define(RA_SYSTEM, rabbit_delay_wheel).
-define(LOG_DOMAIN, #{domain => [rabbitmq, delayed_message]}).
