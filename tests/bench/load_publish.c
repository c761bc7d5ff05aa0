/* SPDX-License-Identifier: MPL-2.0 */
#include "load.h"

#include <amqp_framing.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* Each connection has a thread, and keeps up to `window` messages unconfirmed until its part of
 * the count is confirmed. A message that is rejected or whose connection is lost is not sent
 * again; another takes its place, under a new sequence number. */

enum { CHANNEL = 1, SPAN = 16 };

/* A message sent on this connection and not yet spoken for; tag 0: none. */
struct unconfirmed {
    uint64_t tag;
    uint64_t seq;
    int64_t published_us;
};

struct run {
    const struct options *options;
    struct ledger ledger;
    _Atomic uint64_t next_seq;
    pthread_barrier_t start;
    _Atomic bool failed;
    _Atomic int64_t began_us;
    _Atomic int64_t last_due_us;
};

struct publisher {
    struct run *run;
    pthread_t thread;
    struct link link;
    struct batch batch;
    struct unconfirmed *ring; /* of SPAN windows, indexed by delivery tag */
    uint64_t ring_size;
    uint64_t next_tag;   /* of this connection, from 1 */
    uint64_t oldest_tag; /* at or below every unconfirmed one */
    uint64_t in_flight;
    uint64_t target;
    uint64_t published;
    uint64_t confirmed;
    uint64_t rejected;
    uint64_t unknown; /* the connection was lost before an answer */
    uint64_t lost_connections;
    uint64_t late; /* published when already due */
    int64_t began_us;
    struct samples confirmed_at; /* us since the epoch */
    struct samples latency;      /* us from publish to confirm */
};

static void settle(struct publisher *p, uint64_t tag, uint8_t state, int64_t now) {
    struct unconfirmed *entry = &p->ring[tag % p->ring_size];
    if (entry->tag != tag) {
        return;
    }
    p->run->ledger.state[entry->seq] = state;
    entry->tag = 0;
    p->in_flight--;
    if (state == CONFIRMED) {
        p->confirmed++;
        if (!samples_add(&p->confirmed_at, now) ||
            !samples_add(&p->latency, now - entry->published_us)) {
            p->run->failed = true;
        }
    } else {
        p->rejected++;
    }
}

static void settle_up_to(struct publisher *p, uint64_t tag, bool multiple, uint8_t state) {
    int64_t now = now_us();
    if (multiple) {
        for (uint64_t t = p->oldest_tag; t <= tag && t < p->next_tag; t++) {
            settle(p, t, state, now);
        }
    } else {
        settle(p, tag, state, now);
    }
    while (p->oldest_tag < p->next_tag && p->ring[p->oldest_tag % p->ring_size].tag == 0) {
        p->oldest_tag++;
    }
}

/* Reads what is there, waiting at most so long for the first of it. */
static enum link_status read_confirms(struct publisher *p, int64_t wait_us) {
    do {
        amqp_frame_t frame;
        enum link_status status = link_read(&p->link, &frame, wait_us);
        if (status != LINK_OK) {
            return status == LINK_TIMEOUT ? LINK_OK : status;
        }
        wait_us = 0;
        if (frame.frame_type != AMQP_FRAME_METHOD) {
            continue;
        }
        if (frame.payload.method.id == AMQP_BASIC_ACK_METHOD) {
            const amqp_basic_ack_t *ack = frame.payload.method.decoded;
            settle_up_to(p, ack->delivery_tag, ack->multiple != 0, CONFIRMED);
        } else if (frame.payload.method.id == AMQP_BASIC_NACK_METHOD) {
            const amqp_basic_nack_t *nack = frame.payload.method.decoded;
            settle_up_to(p, nack->delivery_tag, nack->multiple != 0, REJECTED);
        }
    } while (link_has_input(&p->link));
    return LINK_OK;
}

static void note_due(struct run *run, int64_t due_us) {
    int64_t seen = atomic_load_explicit(&run->last_due_us, memory_order_relaxed);
    while (due_us > seen && !atomic_compare_exchange_weak(&run->last_due_us, &seen, due_us)) {
    }
}

/* Encodes and writes up to `most` messages at once. */
static enum link_status send_some(struct publisher *p, uint64_t most) {
    const struct options *options = p->run->options;
    p->batch.length = 0;
    for (uint64_t i = 0; i < most; i++) {
        uint64_t seq = atomic_fetch_add(&p->run->next_seq, 1);
        if (seq >= p->run->ledger.capacity) {
            complain("too many messages were rejected or lost");
            return LINK_REFUSED;
        }
        int64_t now = now_us();
        struct stamp stamp = {.run = options->run, .seq = seq, .published_us = now};
        stamp.due_us = delay_due_us(&options->delay, seq, now);
        p->late += options->delay.kind != DELAY_NONE && stamp.due_us < now;
        note_due(p->run, stamp.due_us);
        if (!batch_add(&p->batch, options, &stamp)) {
            return LINK_REFUSED;
        }
        p->ring[p->next_tag % p->ring_size] =
            (struct unconfirmed){.tag = p->next_tag, .seq = seq, .published_us = now};
        p->next_tag++;
        p->in_flight++;
        p->published++;
        p->run->ledger.state[seq] = SENT;
    }
    return link_write(&p->link, p->batch.bytes, p->batch.length);
}

/* How many may be sent now; if none, *wait_us is how long until it is worth looking again. */
static uint64_t allowance(const struct publisher *p, int64_t *wait_us) {
    const struct options *options = p->run->options;
    uint64_t room = options->window - p->in_flight;
    uint64_t span = p->ring_size - (p->next_tag - p->oldest_tag);
    uint64_t wanted = p->target - p->confirmed - p->in_flight;
    uint64_t most = room < span ? room : span;
    most = most < wanted ? most : wanted;
    *wait_us = 100000;
    if (options->rate > 0 && most > 0) {
        double rate = options->rate / options->connections;
        double elapsed_s = (double)(now_us() - p->began_us) / 1e6;
        double owed = elapsed_s * rate - (double)p->published;
        if (owed < 1) {
            *wait_us = (int64_t)((1 - owed) / rate * 1e6) + 1;
            return 0;
        }
        most = (double)most < owed ? most : (uint64_t)owed;
    }
    return most;
}

static enum link_status open_for_confirms(struct publisher *p) {
    const struct options *options = p->run->options;
    enum link_status status =
        options->reconnect ? link_open_patiently(&p->link, options) : link_open(&p->link, options);
    if (status != LINK_OK) {
        return status;
    }
    amqp_confirm_select(p->link.state, CHANNEL);
    if (amqp_get_rpc_reply(p->link.state).reply_type != AMQP_RESPONSE_NORMAL) {
        link_drop(&p->link);
        return LINK_LOST;
    }
    p->next_tag = 1;
    p->oldest_tag = 1;
    return LINK_OK;
}

static void forget_in_flight(struct publisher *p) {
    for (uint64_t i = 0; i < p->ring_size; i++) {
        p->ring[i].tag = 0;
    }
    p->unknown += p->in_flight;
    p->in_flight = 0;
    p->lost_connections++;
}

static enum link_status publish_all(struct publisher *p) {
    while (p->confirmed < p->target && !stopping() && !p->run->failed) {
        int64_t wait_us = 0;
        uint64_t most = allowance(p, &wait_us);
        enum link_status status = most > 0 ? send_some(p, most) : LINK_OK;
        if (status == LINK_OK) {
            status = read_confirms(p, most > 0 ? 0 : wait_us);
        }
        if (status == LINK_LOST && p->run->options->reconnect) {
            forget_in_flight(p);
            link_drop(&p->link);
            status = open_for_confirms(p);
            if (status != LINK_OK) {
                return status;
            }
        }
        if (status != LINK_OK) {
            link_drop(&p->link);
            return status;
        }
    }
    link_close(&p->link);
    return LINK_OK;
}

static void *run_publisher(void *argument) {
    struct publisher *p = argument;
    enum link_status status;
    do {
        status = open_for_confirms(p);
    } while (status == LINK_LOST && p->run->options->reconnect && !stopping());
    if (status != LINK_OK) {
        p->run->failed = true;
    }
    pthread_barrier_wait(&p->run->start);
    p->began_us = now_us();
    int64_t unset = 0;
    atomic_compare_exchange_strong(&p->run->began_us, &unset, p->began_us);
    if (status == LINK_OK) {
        status = publish_all(p);
    }
    if (status == LINK_LOST || status == LINK_REFUSED) {
        p->run->failed = true;
        complain("a connection was %s", status == LINK_LOST ? "lost" : "refused");
    }
    return NULL;
}

static bool publisher_init(struct publisher *p, struct run *run, uint64_t target) {
    p->run = run;
    p->target = target;
    p->ring_size = (uint64_t)run->options->window * SPAN;
    p->ring = calloc(p->ring_size, sizeof *p->ring);
    return (p->ring != NULL && batch_init(&p->batch, run->options)) || complain("out of memory");
}

static bool gather(struct samples *into, const struct samples *from) {
    for (size_t i = 0; i < from->count; i++) {
        if (!samples_add(into, from->at[i])) {
            return false;
        }
    }
    return true;
}

static bool report(struct run *run, struct publisher *publishers) {
    const struct options *options = run->options;
    struct publisher sum = {0};
    for (uint32_t i = 0; i < options->connections; i++) {
        const struct publisher *p = &publishers[i];
        sum.published += p->published;
        sum.confirmed += p->confirmed;
        sum.rejected += p->rejected;
        sum.unknown += p->unknown;
        sum.lost_connections += p->lost_connections;
        sum.late += p->late;
        if (!gather(&sum.confirmed_at, &p->confirmed_at) || !gather(&sum.latency, &p->latency)) {
            return false;
        }
    }
    samples_sort(&sum.confirmed_at);
    samples_sort(&sum.latency);
    int64_t began = run->began_us;
    int64_t ended = sum.confirmed_at.count == 0 ? began : samples_quantile(&sum.confirmed_at, 1);
    double seconds = (double)(ended - began) / 1e6;
    printf("{\"published\": %" PRIu64 ", \"confirmed\": %" PRIu64 ", \"rejected\": %" PRIu64
           ", \"unknown\": %" PRIu64 ", \"lost_connections\": %" PRIu64
           ", \"published_late\": %" PRIu64 ",\n",
           sum.published, sum.confirmed, sum.rejected, sum.unknown, sum.lost_connections, sum.late);
    printf(" \"began_ms\": %.3f, \"ended_ms\": %.3f, \"seconds\": %.6f, \"rate\": %.1f,"
           " \"last_due_ms\": %.3f,\n ",
           (double)began / 1e3, (double)ended / 1e3, seconds,
           seconds > 0 ? (double)sum.confirmed / seconds : 0, (double)run->last_due_us / 1e3);
    samples_print_ms("confirm_ms", &sum.latency);
    printf(",\n ");
    int64_t origin = options->origin_ms > 0 ? options->origin_ms * 1000 : began;
    samples_print_curve(&sum.confirmed_at, origin, options->bucket_ms * 1000);
    printf("}\n");
    free(sum.confirmed_at.at);
    free(sum.latency.at);
    return sum.confirmed == options->count;
}

int publish(const struct options *options) {
    struct run run = {.options = options};
    struct publisher *publishers = calloc(options->connections, sizeof *publishers);
    uint64_t spare = 64 * (uint64_t)options->window * options->connections;
    if (publishers == NULL ||
        !ledger_create(&run.ledger, options->ledger_path, 2 * options->count + spare) ||
        pthread_barrier_init(&run.start, NULL, options->connections) != 0) {
        free(publishers);
        return 1;
    }
    for (uint32_t i = 0; i < options->connections; i++) {
        uint64_t target = options->count / options->connections +
                          (i < options->count % options->connections ? 1 : 0);
        if (!publisher_init(&publishers[i], &run, target)) {
            return 1;
        }
    }
    for (uint32_t i = 0; i < options->connections; i++) {
        if (pthread_create(&publishers[i].thread, NULL, run_publisher, &publishers[i]) != 0) {
            complain("no thread");
            return 1;
        }
    }
    for (uint32_t i = 0; i < options->connections; i++) {
        pthread_join(publishers[i].thread, NULL);
    }
    *run.ledger.closed = 1;
    bool complete = report(&run, publishers);
    for (uint32_t i = 0; i < options->connections; i++) {
        free(publishers[i].ring);
        free(publishers[i].confirmed_at.at);
        free(publishers[i].latency.at);
        batch_free(&publishers[i].batch);
    }
    free(publishers);
    ledger_unmap(&run.ledger);
    pthread_barrier_destroy(&run.start);
    return run.failed ? 1 : complete ? 0 : 2;
}
