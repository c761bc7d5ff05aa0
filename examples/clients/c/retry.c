// SPDX-License-Identifier: MPL-2.0
// Retry: the consumer rejects, the exchange gives the message back after a pause, three times at
// most, and parks it then.
//
//     cc -o retry retry.c -lrabbitmq
//     ./retry [amqp://guest:guest@localhost:5672]

#include "later.h"

static int is(amqp_bytes_t bytes, const char *text) {
    return bytes.len == strlen(text) && memcmp(bytes.bytes, text, bytes.len) == 0;
}

// One more than it was rejected.
static int64_t attempt_of(amqp_envelope_t *message) {
    int64_t attempt = 1;
    amqp_field_value_t *deaths = header_of(message, "x-death");
    for (int i = 0; deaths != NULL && i < deaths->value.array.num_entries; i++) {
        amqp_table_t *death = &deaths->value.array.entries[i].value.table;
        amqp_field_value_t *queue = entry_of(death, "queue");
        amqp_field_value_t *count = entry_of(death, "count");
        if (queue != NULL && count != NULL && is(queue->value.bytes, "orders")) {
            attempt += count->value.i64;
        }
    }
    return attempt;
}

int main(int argc, char **argv) {
    amqp_connection_state_t connection = connect_to(argc, argv);
    amqp_table_entry_t retry[] = {text_entry("x-delayed-type", "direct"),
                                  text_entry("x-delay-retry", "100ms,200ms,400ms"),
                                  text_entry("x-delay-retry-parking-exchange", ""),
                                  text_entry("x-delay-retry-parking-routing-key", "parked")};
    declare_exchange(connection, "retry", table_of(retry, 4));
    declare_queue(connection, "parked", amqp_empty_table);
    amqp_table_entry_t dead = text_entry("x-dead-letter-exchange", "retry");
    declare_queue(connection, "orders", table_of(&dead, 1));

    publish(connection, "", "orders", "order 1", 0, amqp_empty_table);
    check(wait_for_confirm(connection, NULL, 0));
    consume(connection, "orders");
    consume(connection, "parked");
    for (int parked = 0; !parked;) {
        amqp_envelope_t message = receive(connection);
        amqp_bytes_t body = message.message.body;
        parked = is(message.consumer_tag, "parked");
        if (parked) {
            amqp_bytes_t reason = header_of(&message, "x-delay-death-reason")->value.bytes;
            printf("%.*s is parked: %.*s\n", (int)body.len, (char *)body.bytes, (int)reason.len,
                   (char *)reason.bytes);
            check_status(amqp_basic_ack(connection, CHANNEL, message.delivery_tag, 0));
        } else {
            printf("%.*s, attempt %lld\n", (int)body.len, (char *)body.bytes,
                   (long long)attempt_of(&message));
            check_status(amqp_basic_reject(connection, CHANNEL, message.delivery_tag, 0));
        }
        amqp_destroy_envelope(&message);
    }
    disconnect(connection);
    return 0;
}
