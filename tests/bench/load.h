/* SPDX-License-Identifier: MPL-2.0 */
#ifndef LOAD_H
#define LOAD_H

#include <amqp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The load generator of the benchmark: a publisher with confirms, and a consumer that knows what
 * was due when. They are separate processes; each prints one JSON object when it ends.
 *
 * Each body begins with a stamp (run, sequence number, publish time, due time), so that the
 * consumer needs nothing from the publisher to tell lateness, duplicates and gaps. Sequence
 * numbers are dense from 0 and shared by the connections of a run.
 *
 * librabbitmq does the handshake, the encoding and the reading; publishes are gathered into one
 * buffer and written together, because a generator that takes three system calls a message takes
 * them from the broker's share of a small machine. */

/* ---- time */

int64_t now_us(void); /* wall clock, microseconds since the epoch */

/* ---- what to do */

enum delay_kind { DELAY_NONE, DELAY_FIXED, DELAY_UNIFORM, DELAY_WINDOW, DELAY_SCATTER };

/* How a message says when it is due; KEY: with its sequence number as its key; CANCEL: not at all,
 * for it cancels what has that key. */
enum delay_header {
    HEADER_NONE,
    HEADER_X_DELAY,
    HEADER_DELIVERY_TIME,
    HEADER_EXPIRATION,
    HEADER_KEY,
    HEADER_CANCEL,
};

struct delay_plan {
    enum delay_kind kind;
    int64_t from_ms; /* the delay, the least delay, or the window's start (since the epoch) */
    int64_t to_ms;   /* the greatest delay, or the window's length */
    uint64_t seed;
    uint64_t count; /* of messages spread over the window: in order (WINDOW) or not (SCATTER) */
};

struct options {
    const char *host;
    int port;
    const char *exchange;
    const char *key;
    const char *queue;
    const char *ledger_path;
    struct delay_plan delay;
    enum delay_header header;
    uint64_t run;
    uint64_t count; /* publisher: to be confirmed; consumer: to be received, 0 if not known */
    uint32_t connections;
    uint32_t window;
    uint32_t size;
    uint32_t prefetch; /* 0: automatic acknowledgement */
    double rate;       /* messages a second over all connections, 0: as fast as confirmed */
    double idle_s;     /* consumer: end after so long without a message */
    double linger_s;   /* consumer: wait so long for duplicates after the last one expected */
    double timeout_s;
    int64_t origin_ms; /* start of the curve; 0: the first publish or the first due time */
    int64_t bucket_ms; /* of the curve */
    int64_t window_s;  /* of the lateness windows */
    bool reconnect;
};

/* Each prints its JSON object and answers the exit status: 0 all done, 1 failed, 2 stopped before
 * it was done (a signal, or its timeout). */
int publish(const struct options *options);
int consume(const struct options *options);
int probe(const struct options *options);
int calibrate(void);

/* True once a signal or the timeout has asked to stop. */
bool stopping(void);

/* Complains on standard error. Always false, so that callers can return it. */
bool complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- connections (load_link.c) */

struct link {
    amqp_connection_state_t state;
    int fd;
};

enum link_status { LINK_OK, LINK_TIMEOUT, LINK_LOST, LINK_REFUSED };

/* One connection with channel 1 open. LINK_LOST if nobody answers, LINK_REFUSED (told on standard
 * error) if the broker does not want us. */
enum link_status link_open(struct link *link, const struct options *options);
/* Keeps trying for as long as nobody answers; gives up when stopping(). */
enum link_status link_open_patiently(struct link *link, const struct options *options);
void link_close(struct link *link);
void link_drop(struct link *link); /* without a farewell: the peer is gone */

/* Writes all of it. LINK_OK or LINK_LOST. */
enum link_status link_write(struct link *link, const uint8_t *bytes, size_t length);

/* Reads one frame, waiting at most so long. A channel or connection closed by the broker is
 * LINK_REFUSED, with the reason on standard error, unless it is the broker going down. */
enum link_status link_read(struct link *link, amqp_frame_t *frame, int64_t wait_us);
/* True if a frame can be had without a system call. */
bool link_has_input(const struct link *link);

/* ---- messages (load_message.c) */

enum { STAMP_BYTES = 32 };

struct stamp {
    uint64_t run;
    uint64_t seq;
    int64_t published_us;
    int64_t due_us;
};

void stamp_write(uint8_t out[STAMP_BYTES], const struct stamp *stamp);
void stamp_read(const uint8_t in[STAMP_BYTES], struct stamp *stamp);

/* When message `seq` published at `published_us` is due. */
int64_t delay_due_us(const struct delay_plan *plan, uint64_t seq, int64_t published_us);

/* A buffer of encoded basic.publish frames. */
struct batch {
    uint8_t *bytes;
    size_t length;
    size_t capacity;
    size_t method_length; /* the publish method frame, the same for each message, comes first */
    uint8_t method[1024];
};

bool batch_init(struct batch *batch, const struct options *options);
void batch_free(struct batch *batch);
bool batch_add(struct batch *batch, const struct options *options, const struct stamp *stamp);

/* ---- the ledger: what became of each message, in a file shared between processes (load_ledger.c)
 */

enum { UNUSED = 0, SENT = 1, CONFIRMED = 2, REJECTED = 3 };

struct ledger {
    uint8_t *state; /* of each sequence number */
    uint64_t capacity;
    _Atomic uint32_t *closed; /* the publisher is done */
    void *map;
    size_t map_bytes;
};

/* The publisher makes it (without a path: for itself), the consumer opens it. */
bool ledger_create(struct ledger *ledger, const char *path, uint64_t capacity);
bool ledger_open(struct ledger *ledger, const char *path);
void ledger_unmap(struct ledger *ledger);

/* ---- figures (load_figures.c) */

/* A growing array of 64-bit numbers. */
struct samples {
    int64_t *at;
    size_t count;
    size_t capacity;
};

bool samples_add(struct samples *samples, int64_t value);
void samples_sort(struct samples *samples);
/* Of sorted samples; 0 if there are none. */
int64_t samples_quantile(const struct samples *samples, double q);
/* "name": {"p50": ..., ...} in ms, from sorted samples in us. */
void samples_print_ms(const char *name, const struct samples *samples);
/* "curve": {...}: how many of the (sorted) instants fall into each bucket. */
void samples_print_curve(const struct samples *sorted_us, int64_t origin_us, int64_t bucket_us);

#endif
