// SPDX-License-Identifier: MPL-2.0
// A message that arrives two seconds after it is published.
//
//     cc -o delayed delayed.c -lrabbitmq
//     ./delayed [amqp://guest:guest@localhost:5672]

#include <time.h>

#include "later.h"

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    amqp_connection_state_t connection = connect_to(argc, argv);
    declare_later(connection, 1);

    double published = seconds();
    amqp_table_entry_t delay = number_entry("x-delay", 2000);
    publish(connection, "later", "job", "hello", 0, table_of(&delay, 1));
    check(wait_for_confirm(connection, NULL, 0));

    consume(connection, "work");
    amqp_envelope_t message = receive(connection);
    printf("%.*s, %.1f s later\n", (int)message.message.body.len,
           (char *)message.message.body.bytes, seconds() - published);
    printf("x-delay: %lld\n", (long long)header_of(&message, "x-delay")->value.i64);
    check_status(amqp_basic_ack(connection, CHANNEL, message.delivery_tag, 0));
    amqp_destroy_envelope(&message);
    disconnect(connection);
    return 0;
}
