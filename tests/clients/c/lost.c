// SPDX-License-Identifier: MPL-2.0
// What librabbitmq says of a broker that is lost while a confirm is out (../lost.py).

#include "later.h"

int main(int argc, char **argv) {
    amqp_connection_state_t connection = connect_to(argc, argv);
    declare_queue(connection, "lost", amqp_empty_table);
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    getchar();
    publish(connection, "", "lost", "x", 0, amqp_empty_table);
    puts("sent");
    amqp_rpc_reply_t reply = wait_for_confirm(connection, NULL, 0);
    if (reply.reply_type == AMQP_RESPONSE_NORMAL) {
        puts("confirmed");
    } else {
        print_reason(reply);
    }
    amqp_destroy_connection(connection);
    return 0;
}
