/* SPDX-License-Identifier: MPL-2.0 */
#include "load.h"

#include <amqp_framing.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One connection, one consumer. Counts each sequence number, and keeps when it was due and when it
 * came. With a ledger it knows what must come: everything confirmed. */

enum { CHANNEL = 1, MOST_SEQ = 1 << 28, MOST_NAMED = 10, PATIENCE_US = 50000 };

struct consumer {
    const struct options *options;
    struct link link;
    struct ledger ledger;
    bool has_ledger;
    uint8_t *received; /* how often, at most 255, by sequence number */
    uint64_t capacity;
    uint64_t distinct;
    uint64_t duplicates;
    uint64_t duplicates_unmarked; /* not marked as redelivered */
    uint64_t foreign;             /* of another run */
    uint64_t early;
    int64_t earliest_us; /* by how much, at most */
    uint64_t out_of_order;
    uint64_t lost_connections;
    uint64_t unacked;
    uint64_t last_tag;
    int64_t last_arrival_us;
    int64_t last_new_us; /* when a sequence number last came for the first time */
    int64_t due_seen_us;
    struct samples due;
    struct samples arrival;
};

/* The message that is being read. */
struct delivery {
    bool redelivered;
    uint64_t remaining;
    size_t stamped;
    uint8_t stamp[STAMP_BYTES];
};

static bool make_room(struct consumer *c, uint64_t seq) {
    if (seq < c->capacity) {
        return true;
    }
    if (seq >= MOST_SEQ) {
        return complain("sequence number %" PRIu64 " is too high", seq);
    }
    uint64_t capacity = c->capacity == 0 ? 65536 : c->capacity;
    while (capacity <= seq) {
        capacity *= 2;
    }
    uint8_t *received = realloc(c->received, capacity);
    if (received == NULL) {
        return complain("out of memory");
    }
    memset(received + c->capacity, 0, capacity - c->capacity);
    c->received = received;
    c->capacity = capacity;
    return true;
}

static bool arrived(struct consumer *c, const struct delivery *delivery) {
    struct stamp stamp;
    int64_t now = now_us();
    c->last_arrival_us = now;
    stamp_read(delivery->stamp, &stamp);
    if (delivery->stamped < STAMP_BYTES || stamp.run != c->options->run) {
        c->foreign++;
        return true;
    }
    if (!make_room(c, stamp.seq)) {
        return false;
    }
    if (now < stamp.due_us) {
        c->early++;
        int64_t by = stamp.due_us - now;
        c->earliest_us = by > c->earliest_us ? by : c->earliest_us;
    }
    if (c->received[stamp.seq] > 0) {
        c->duplicates++;
        c->duplicates_unmarked += !delivery->redelivered;
        if (c->received[stamp.seq] < UINT8_MAX) {
            c->received[stamp.seq]++;
        }
        return true;
    }
    c->received[stamp.seq] = 1;
    c->distinct++;
    c->last_new_us = now;
    c->out_of_order += stamp.due_us < c->due_seen_us;
    c->due_seen_us = stamp.due_us > c->due_seen_us ? stamp.due_us : c->due_seen_us;
    return samples_add(&c->due, stamp.due_us) && samples_add(&c->arrival, now);
}

static enum link_status acknowledge(struct consumer *c) {
    if (c->unacked == 0 || c->options->prefetch == 0) {
        return LINK_OK;
    }
    int status = amqp_basic_ack(c->link.state, CHANNEL, c->last_tag, 1);
    c->unacked = 0;
    return status == AMQP_STATUS_OK ? LINK_OK : LINK_LOST;
}

static enum link_status take_frame(struct consumer *c, struct delivery *d,
                                   const amqp_frame_t *frame) {
    if (frame->frame_type == AMQP_FRAME_METHOD) {
        if (frame->payload.method.id == AMQP_BASIC_CANCEL_METHOD) {
            complain("the consumer was cancelled by the broker");
            return LINK_LOST;
        }
        if (frame->payload.method.id == AMQP_BASIC_DELIVER_METHOD) {
            const amqp_basic_deliver_t *method = frame->payload.method.decoded;
            *d = (struct delivery){.redelivered = method->redelivered != 0};
            c->last_tag = method->delivery_tag;
        }
        return LINK_OK;
    }
    if (frame->frame_type == AMQP_FRAME_HEADER) {
        d->remaining = frame->payload.properties.body_size;
    } else {
        amqp_bytes_t body = frame->payload.body_fragment;
        size_t take = STAMP_BYTES - d->stamped;
        take = take < body.len ? take : body.len;
        memcpy(d->stamp + d->stamped, body.bytes, take);
        d->stamped += take;
        d->remaining -= body.len < d->remaining ? body.len : d->remaining;
    }
    if (d->remaining > 0) {
        return LINK_OK;
    }
    c->unacked++;
    if (!arrived(c, d)) {
        return LINK_REFUSED;
    }
    return c->unacked * 2 >= c->options->prefetch ? acknowledge(c) : LINK_OK;
}

static enum link_status subscribe(struct consumer *c) {
    const struct options *o = c->options;
    enum link_status status =
        o->reconnect ? link_open_patiently(&c->link, o) : link_open(&c->link, o);
    if (status != LINK_OK) {
        return status;
    }
    c->unacked = 0;
    if (o->prefetch > 0) {
        amqp_basic_qos(c->link.state, CHANNEL, 0, (uint16_t)o->prefetch, 0);
    }
    amqp_basic_consume(c->link.state, CHANNEL, amqp_cstring_bytes(o->queue), amqp_empty_bytes, 0,
                       o->prefetch == 0, 0, amqp_empty_table);
    amqp_rpc_reply_t reply = amqp_get_rpc_reply(c->link.state);
    if (reply.reply_type == AMQP_RESPONSE_NORMAL) {
        return LINK_OK;
    }
    link_drop(&c->link);
    complain("%s cannot be consumed from", o->queue);
    /* Not found or locked stays so; anything else may be a broker that still comes up. */
    bool refused = reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
                   reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD;
    return refused ? LINK_REFUSED : LINK_LOST;
}

static uint64_t confirmed_but_missing(const struct consumer *c) {
    uint64_t missing = 0;
    for (uint64_t seq = 0; seq < c->ledger.capacity; seq++) {
        missing +=
            c->ledger.state[seq] == CONFIRMED && (seq >= c->capacity || c->received[seq] == 0);
    }
    return missing;
}

static bool have_all(const struct consumer *c) {
    if (c->has_ledger) {
        return *c->ledger.closed != 0 && confirmed_but_missing(c) == 0;
    }
    return c->options->count > 0 && c->distinct >= c->options->count;
}

/* Called when nothing has come for a moment. */
static bool finished(const struct consumer *c) {
    double quiet_s = (double)(now_us() - c->last_arrival_us) / 1e6;
    return quiet_s >= c->options->idle_s || (quiet_s >= c->options->linger_s && have_all(c));
}

static enum link_status consume_all(struct consumer *c) {
    struct delivery delivery = {0};
    while (!stopping()) {
        amqp_frame_t frame;
        enum link_status status = link_read(&c->link, &frame, PATIENCE_US);
        if (status == LINK_OK) {
            status = take_frame(c, &delivery, &frame);
            if (status == LINK_OK && !link_has_input(&c->link)) {
                status = acknowledge(c);
            }
        } else if (status == LINK_TIMEOUT) {
            if (finished(c)) {
                break;
            }
            status = LINK_OK;
        }
        if (status == LINK_LOST && c->options->reconnect) {
            c->lost_connections++;
            link_drop(&c->link);
            do {
                status = subscribe(c);
            } while (status == LINK_LOST && !stopping());
            if (status != LINK_OK) {
                return status;
            }
        }
        if (status != LINK_OK) {
            link_drop(&c->link);
            return status;
        }
    }
    link_close(&c->link);
    return LINK_OK;
}

static bool print_windows(const struct consumer *c, int64_t first_due_us, int64_t last_due_us) {
    int64_t length = c->options->window_s * 1000000;
    size_t count = c->due.count == 0 ? 0 : (size_t)((last_due_us - first_due_us) / length) + 1;
    struct samples *windows = calloc(count == 0 ? 1 : count, sizeof *windows);
    bool ok = windows != NULL;
    for (size_t i = 0; ok && i < c->due.count; i++) {
        size_t window = (size_t)((c->due.at[i] - first_due_us) / length);
        ok = samples_add(&windows[window], c->arrival.at[i] - c->due.at[i]);
    }
    printf(",\n \"windows\": [");
    for (size_t i = 0; ok && i < count; i++) {
        samples_sort(&windows[i]);
        printf("%s{\"from_s\": %" PRId64 ", ", i == 0 ? "" : ",\n  ",
               (int64_t)i * c->options->window_s);
        samples_print_ms("lateness_ms", &windows[i]);
        printf("}");
        free(windows[i].at);
    }
    printf("]");
    free(windows);
    return ok;
}

static void print_ledger(const struct consumer *c) {
    uint64_t confirmed = 0;
    uint64_t unconfirmed_received = 0;
    uint64_t named = 0;
    for (uint64_t seq = 0; seq < c->ledger.capacity; seq++) {
        bool received = seq < c->capacity && c->received[seq] > 0;
        confirmed += c->ledger.state[seq] == CONFIRMED;
        unconfirmed_received += c->ledger.state[seq] != CONFIRMED && received;
    }
    printf(",\n \"confirmed\": %" PRIu64 ", \"lost\": %" PRIu64
           ", \"unconfirmed_received\": %" PRIu64 ", \"first_lost\": [",
           confirmed, confirmed_but_missing(c), unconfirmed_received);
    for (uint64_t seq = 0; seq < c->ledger.capacity && named < MOST_NAMED; seq++) {
        if (c->ledger.state[seq] == CONFIRMED && (seq >= c->capacity || c->received[seq] == 0)) {
            printf("%s%" PRIu64, named++ == 0 ? "" : ", ", seq);
        }
    }
    printf("]");
}

static bool report(struct consumer *c) {
    struct samples lateness = {0};
    int64_t first_due = INT64_MAX;
    int64_t last_due = 0;
    for (size_t i = 0; i < c->due.count; i++) {
        if (!samples_add(&lateness, c->arrival.at[i] - c->due.at[i])) {
            return false;
        }
        first_due = c->due.at[i] < first_due ? c->due.at[i] : first_due;
        last_due = c->due.at[i] > last_due ? c->due.at[i] : last_due;
    }
    first_due = c->due.count == 0 ? 0 : first_due;
    samples_sort(&lateness);
    int64_t first_arrival = c->arrival.count == 0 ? 0 : c->arrival.at[0];
    printf("{\"received\": %" PRIu64 ", \"duplicates\": %" PRIu64
           ", \"duplicates_unmarked\": %" PRIu64 ", \"foreign\": %" PRIu64
           ", \"out_of_order\": %" PRIu64 ", \"early\": %" PRIu64
           ", \"earliest_ms\": %.3f, \"lost_connections\": %" PRIu64 ",\n",
           c->distinct, c->duplicates, c->duplicates_unmarked, c->foreign, c->out_of_order,
           c->early, (double)c->earliest_us / 1e3, c->lost_connections);
    printf(" \"first_due_ms\": %.3f, \"last_due_ms\": %.3f, \"first_arrival_ms\": %.3f,"
           " \"last_arrival_ms\": %.3f,\n ",
           (double)first_due / 1e3, (double)last_due / 1e3, (double)first_arrival / 1e3,
           (double)c->last_new_us / 1e3);
    samples_print_ms("lateness_ms", &lateness);
    bool ok = print_windows(c, first_due, last_due);
    printf(",\n ");
    int64_t origin = c->options->origin_ms > 0 ? c->options->origin_ms * 1000 : first_due;
    samples_sort(&c->arrival);
    samples_print_curve(&c->arrival, origin, c->options->bucket_ms * 1000);
    if (c->has_ledger) {
        print_ledger(c);
    }
    printf("}\n");
    free(lateness.at);
    return ok;
}

int consume(const struct options *options) {
    struct consumer consumer = {.options = options};
    consumer.has_ledger = options->ledger_path != NULL;
    if (consumer.has_ledger && !ledger_open(&consumer.ledger, options->ledger_path)) {
        return 1;
    }
    enum link_status status;
    do {
        status = subscribe(&consumer);
    } while (status == LINK_LOST && options->reconnect && !stopping());
    if (status != LINK_OK) {
        complain("no consumer");
        return 1;
    }
    consumer.last_arrival_us = now_us();
    printf("{\"consuming_ms\": %.3f}\n", (double)consumer.last_arrival_us / 1e3);
    fflush(stdout);
    status = consume_all(&consumer);
    if (status != LINK_OK) {
        complain("the connection was %s", status == LINK_LOST ? "lost" : "refused");
    }
    bool complete = report(&consumer) && have_all(&consumer);
    free(consumer.received);
    free(consumer.due.at);
    free(consumer.arrival.at);
    if (consumer.has_ledger) {
        ledger_unmap(&consumer.ledger);
    }
    return status != LINK_OK ? 1 : complete ? 0 : 2;
}
