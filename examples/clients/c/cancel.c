// SPDX-License-Identifier: MPL-2.0
// Cancel: a message with the header x-delay-cancel cancels what is pending under that key.
//
//     cc -o cancel cancel.c -lrabbitmq
//     ./cancel [amqp://guest:guest@localhost:5672]

#include "later.h"

int main(int argc, char **argv) {
    amqp_connection_state_t connection = connect_to(argc, argv);
    declare_later(connection, 1);

    const char *orders[] = {"order 1", "order 2", "order 3"};
    for (int i = 0; i < 3; i++) {
        amqp_table_entry_t headers[] = {number_entry("x-delay", 5000),
                                        text_entry("x-delay-key", orders[i])};
        publish(connection, "later", "job", orders[i], 0, table_of(headers, 2));
        check(wait_for_confirm(connection, NULL, 0));
    }
    amqp_table_entry_t cancel = text_entry("x-delay-cancel", "order 2");
    publish(connection, "later", "job", "", 0, table_of(&cancel, 1));
    check(wait_for_confirm(connection, NULL, 0));

    consume(connection, "work");
    for (int left = 2; left > 0; left--) {
        amqp_envelope_t message = receive(connection);
        printf("expired: %.*s\n", (int)message.message.body.len,
               (char *)message.message.body.bytes);
        check_status(amqp_basic_ack(connection, CHANNEL, message.delivery_tag, 0));
        amqp_destroy_envelope(&message);
    }
    disconnect(connection);
    return 0;
}
