// SPDX-License-Identifier: MPL-2.0
// Mandatory: what is delayed is taken, and never returned; what is not delayed is returned if no
// queue is bound now.
//
//     cc -o mandatory mandatory.c -lrabbitmq
//     ./mandatory [amqp://guest:guest@localhost:5672]

#include "later.h"

// A return comes before the message's confirm.
static void publish_mandatory(amqp_connection_state_t connection, const char *text,
                              amqp_table_t headers) {
    char returned[256] = "";
    publish(connection, "later", "nobody", text, 1, headers);
    check(wait_for_confirm(connection, returned, sizeof returned));
    if (returned[0] != '\0') {
        printf("%s: returned, %s\n", text, returned);
    } else {
        printf("%s: taken\n", text);
    }
}

int main(int argc, char **argv) {
    amqp_connection_state_t connection = connect_to(argc, argv);
    declare_later(connection, 0);
    amqp_table_entry_t delay = number_entry("x-delay", 1000);
    publish_mandatory(connection, "in a second", table_of(&delay, 1));
    publish_mandatory(connection, "at once", amqp_empty_table);
    disconnect(connection);
    return 0;
}
