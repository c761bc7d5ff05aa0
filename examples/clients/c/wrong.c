// SPDX-License-Identifier: MPL-2.0
// A wrong delay closes the channel. librabbitmq has no thread of its own: the channel.close is the
// next frame that somebody reads, here where a confirm is awaited. It wants an answer.
//
//     cc -o wrong wrong.c -lrabbitmq
//     ./wrong [amqp://guest:guest@localhost:5672]

#include "later.h"

static void publish_later(amqp_connection_state_t connection, const char *text,
                          amqp_table_entry_t delay) {
    publish(connection, "later", "job", "hello", 0, table_of(&delay, 1));
    amqp_rpc_reply_t reply = wait_for_confirm(connection, NULL, 0);
    if (reply.reply_type == AMQP_RESPONSE_NORMAL) {
        printf("%s: taken\n", text);
        return;
    }
    printf("%s: ", text);
    print_reason(reply);
    amqp_channel_close_ok_t closed = {0};
    check_status(amqp_send_method(connection, CHANNEL, AMQP_CHANNEL_CLOSE_OK_METHOD, &closed));
    open_confirming(connection);
}

int main(int argc, char **argv) {
    amqp_connection_state_t connection = connect_to(argc, argv);
    declare_later(connection, 0);
    publish_later(connection, "5m", text_entry("x-delay", "5m"));
    publish_later(connection, "1000", number_entry("x-delay", 1000));
    disconnect(connection);
    return 0;
}
