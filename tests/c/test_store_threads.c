/* SPDX-License-Identifier: MPL-2.0 */
/* A store used by many threads at once: one that writes, one that finishes checkpoints, some that
 * take, and some that look. Built with ThreadSanitizer as well. */
#include "dw_le.h"
#include "store_fixture.h"
#include "store_model.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)

enum { BATCH = 40, TAKERS = 2, LOOKERS = 2, QUEUE = 1 << 16 };

struct world {
    struct fixture f;
    dw_store *store;
    unsigned batches;
    unsigned inserted;          /* batches, so far; the writer's */
    uint64_t messages;          /* that these have left to be settled */
    bool keyed;                 /* some of these cancel, replace and drop */
    atomic_uint_fast64_t clock; /* goes on as the writer says */
    atomic_uint_fast64_t settled;
    atomic_bool over;
    atomic_uint wrong; /* the line of the first thing that was not as it should be */
    atomic_uint looked;
    /* What was taken, from the takers to the writer. */
    pthread_mutex_t lock;
    struct dw_id_due queue[QUEUE];
    unsigned queued;
    dw_checkpoint *checkpoint; /* from the writer to the finisher */
    pthread_cond_t begun;
    unsigned finished;
};

/* cmocka's assertions are for the main thread. */
#define EXPECT(w, what)                                                                            \
    do {                                                                                           \
        unsigned none = 0;                                                                         \
        if (!(what)) {                                                                             \
            atomic_compare_exchange_strong(&(w)->wrong, &none, __LINE__);                          \
        }                                                                                          \
    } while (0)

/* ------------------------------------------------------------------ takers */

struct taking {
    struct world *w;
    uint8_t body[4096];
    struct dw_id_due taken[64];
    uint32_t n;
    uint64_t now; /* nothing due later may come out */
};

static void *take_body(void *ctx, const struct dw_record *record) {
    struct taking *taking = ctx;
    return record->length <= sizeof taking->body ? taking->body : NULL;
}

static void take_done(void *ctx, const struct dw_record *record) {
    struct taking *taking = ctx;
    uint8_t expected[4096];
    model_body(record->id, record->length, expected);
    EXPECT(taking->w, memcmp(expected, taking->body, record->length) == 0);
    EXPECT(taking->w, record->due <= taking->now);
    taking->taken[taking->n++] = (struct dw_id_due){.id = record->id, .due = record->due};
}

static void take_corrupt(void *ctx, const struct dw_record *record, const char *file,
                         uint64_t offset) {
    struct taking *taking = ctx;
    (void)record;
    (void)file;
    (void)offset;
    EXPECT(taking->w, false);
}

static void hand_over(struct world *w, const struct taking *taking) {
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = 0; i < taking->n && w->queued < QUEUE; i++) {
        w->queue[w->queued++] = taking->taken[i];
    }
    pthread_mutex_unlock(&w->lock);
}

static void *taker(void *arg) {
    struct world *w = arg;
    struct taking *taking = calloc(1, sizeof *taking);
    const struct dw_sink sink = {take_body, take_done, take_corrupt, taking};
    uint64_t random = (uintptr_t)taking | 1;
    taking->w = w;
    for (;;) {
        uint64_t next_due;
        taking->n = 0;
        taking->now = atomic_load(&w->clock);
        int result =
            dw_store_take(w->store, taking->now, 1 + (uint32_t)(model_random(&random) % 64),
                          UINT64_MAX, &sink, &next_due);
        if (result == DW_ECLOSED) {
            break;
        }
        EXPECT(w, result == DW_OK);
        /* Some are to be tried again later. */
        uint32_t kept = 0;
        for (uint32_t i = 0; i < taking->n; i++) {
            if (model_random(&random) % 16 == 0) {
                result = dw_store_postpone(w->store, taking->taken[i].id,
                                           atomic_load(&w->clock) + model_random(&random) % 50);
                EXPECT(w, result == DW_OK || result == DW_ECLOSED ||
                              (w->keyed && result == DW_ENOENT));
            } else {
                taking->taken[kept++] = taking->taken[i];
            }
        }
        taking->n = kept;
        hand_over(w, taking);
        if (kept == 0) {
            sched_yield();
        }
    }
    free(taking);
    return NULL;
}

/* ----------------------------------------------------------------- lookers */

static void look_at_pages(struct world *w) {
    struct dw_record page[50];
    uint64_t due = 0, id = 0;
    uint32_t n;
    do {
        int result = dw_store_page(w->store, due, id, page, 50, &n);
        EXPECT(w, result == DW_OK || result == DW_ECLOSED);
        for (uint32_t i = 0; i < n; i++) {
            EXPECT(w, page[i].due > due || (page[i].due == due && page[i].id > id));
            due = page[i].due;
            id = page[i].id;
        }
    } while (n > 0);
}

static void *looker(void *arg) {
    struct world *w = arg;
    struct taking *taking = calloc(1, sizeof *taking);
    const struct dw_sink sink = {take_body, take_done, take_corrupt, taking};
    uint64_t random = (uintptr_t)taking | 1, applied = 0;
    struct dw_stat stat;
    taking->w = w;
    taking->now = UINT64_MAX;
    int result;
    do {
        result = dw_store_stat(w->store, &stat);
        EXPECT(w, stat.applied >= applied);
        EXPECT(w, stat.pending >= stat.taken);
        EXPECT(w, stat.pending_bytes >= stat.pending);
        EXPECT(w, stat.checkpoint_applied <= stat.applied);
        applied = stat.applied;
        EXPECT(w, dw_store_applied(w->store) >= applied);
        dw_store_next_due(w->store);
        uint64_t ids[8], n;
        int found = dw_store_find(w->store, 1 + model_random(&random) % 8, ids, 8, &n);
        EXPECT(w, found == DW_OK || found == DW_ECLOSED);
        for (uint64_t i = 0; found == DW_OK && i < n && i < 8; i++) {
            taking->n = 0;
            int read = dw_store_read(w->store, ids[i], &sink);
            EXPECT(w, read == DW_OK ? taking->n == 1 : read == DW_ENOENT || read == DW_ECLOSED);
        }
        if (model_random(&random) % 8 == 0) {
            look_at_pages(w);
        }
        atomic_fetch_add(&w->looked, 1);
    } while (result == DW_OK);
    EXPECT(w, result == DW_ECLOSED);
    free(taking);
    return NULL;
}

/* ---------------------------------------------------------------- finisher */

static void *finisher(void *arg) {
    struct world *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!atomic_load(&w->over) || w->checkpoint != NULL) {
        dw_checkpoint *checkpoint = w->checkpoint;
        if (checkpoint == NULL) {
            pthread_cond_wait(&w->begun, &w->lock);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        int result = dw_checkpoint_finish(checkpoint, NULL);
        EXPECT(w, result == DW_OK || result == DW_ECLOSED);
        dw_checkpoint_release(checkpoint);
        pthread_mutex_lock(&w->lock);
        w->checkpoint = NULL;
        w->finished++;
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ------------------------------------------------------------------ writer */

static void insert_batch(struct world *w, uint64_t index, uint64_t *random) {
    struct model_new_record records[BATCH];
    const uint64_t now = atomic_load(&w->clock);
    for (unsigned i = 0; i < BATCH; i++) {
        const bool far = model_random(random) % 8 == 0;
        records[i] = (struct model_new_record){
            .when = model_random(random) % (far ? 400000 : 300),
            .key_hash = model_random(random) % 9,
            .length = 1 + (uint32_t)(model_random(random) % 600),
        };
    }
    size_t bytes;
    uint8_t *batch = model_batch(index, records, BATCH, &bytes);
    struct dw_inserted out;
    EXPECT(w, dw_store_insert(w->store, index, now, batch, bytes, &out) == DW_OK);
    EXPECT(w, out.count == BATCH);
    free(batch);
    w->inserted++;
    w->messages += BATCH;
}

static void insert_keyed(struct world *w, uint64_t index, uint64_t *random) {
    struct model_new_record records[BATCH];
    const uint64_t now = atomic_load(&w->clock);
    unsigned messages = 0;
    for (unsigned i = 0; i < BATCH; i++) {
        const enum dw_on_key on_key = (enum dw_on_key)(model_random(random) % (DW_RELEASE + 1));
        records[i] = (struct model_new_record){
            .when = model_random(random) % 300,
            .key_hash = 1 + model_random(random) % 8,
            .length = model_is_empty(on_key) ? 0 : 1 + (uint32_t)(model_random(random) % 600),
            .on_key = on_key,
        };
        messages += !model_is_empty(on_key);
    }
    size_t bytes;
    uint8_t *batch = model_batch(index, records, BATCH, &bytes);
    struct dw_keyed out;
    EXPECT(w, dw_store_insert_keyed(w->store, index, now, batch, bytes, DW_KEYED_2, &out) == DW_OK);
    EXPECT(w, out.inserted.count <= messages);
    free(batch);
    w->inserted++;
    w->messages += messages;
    w->messages -= out.dropped + out.cancelled + out.replaced + out.taken;
}

static void settle_queued(struct world *w, uint64_t index) {
    static struct dw_id_due taken[QUEUE];
    static uint64_t ids[QUEUE];
    uint64_t removed;
    pthread_mutex_lock(&w->lock);
    const unsigned n = w->queued;
    memcpy(taken, w->queue, n * sizeof *taken);
    w->queued = 0;
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < n; i++) {
        ids[i] = taken[i].id;
    }
    EXPECT(w,
           (index % 2 == 0 ? dw_store_settle(w->store, index, ids, n, &removed)
                           : dw_store_settle_due_by(w->store, index, taken, n, &removed)) == DW_OK);
    EXPECT(w, removed == n || (w->keyed && removed < n));
    atomic_fetch_add(&w->settled, removed);
}

static void begin_checkpoint(struct world *w) {
    pthread_mutex_lock(&w->lock);
    const bool busy = w->checkpoint != NULL;
    pthread_mutex_unlock(&w->lock);
    dw_checkpoint *checkpoint;
    if (!busy) {
        int result = dw_store_checkpoint(w->store, &checkpoint);
        EXPECT(w, result == DW_OK);
        pthread_mutex_lock(&w->lock);
        w->checkpoint = checkpoint;
        pthread_cond_signal(&w->begun);
        pthread_mutex_unlock(&w->lock);
    }
}

/* One of what the writer does; the changes' index goes on. */
static void write_some(struct world *w, uint64_t *index, uint64_t *random) {
    bool more;
    switch (model_random(random) % 10) {
    case 0:
        EXPECT(w, dw_store_flush(w->store) == DW_OK);
        break;
    case 1:
        begin_checkpoint(w);
        break;
    case 2:
    case 3:
        EXPECT(w, dw_store_maintain(w->store, atomic_load(&w->clock), 20000, &more) == DW_OK);
        break;
    case 4:
    case 5:
    case 6:
        settle_queued(w, ++*index);
        break;
    default:
        if (w->inserted < w->batches && w->keyed && model_random(random) % 4 == 0) {
            insert_keyed(w, ++*index, random);
        } else if (w->inserted < w->batches) {
            insert_batch(w, ++*index, random);
        }
        break;
    }
    atomic_fetch_add(&w->clock, w->inserted < w->batches ? 20 : 2000);
}

static void setup(struct world *w, unsigned batches) {
    fixture_init(&w->f);
    w->f.config.alloc = NULL;
    w->f.config.io = NULL;
    w->f.config.log = NULL;
    w->f.config.split_bytes = 20000;
    w->f.config.partition_bytes = 200000;
    w->f.config.max_open_files = 8;
    fixture_open(&w->f);
    w->store = w->f.store;
    w->batches = batches;
    atomic_init(&w->clock, NOW);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->begun, NULL);
}

static void start(struct world *w, pthread_t threads[TAKERS + LOOKERS + 1]) {
    unsigned n = 0;
    for (unsigned i = 0; i < TAKERS; i++) {
        assert_int_equal(pthread_create(&threads[n++], NULL, taker, w), 0);
    }
    for (unsigned i = 0; i < LOOKERS; i++) {
        assert_int_equal(pthread_create(&threads[n++], NULL, looker, w), 0);
    }
    assert_int_equal(pthread_create(&threads[n++], NULL, finisher, w), 0);
}

static void stop(struct world *w, pthread_t threads[TAKERS + LOOKERS + 1]) {
    pthread_mutex_lock(&w->lock);
    atomic_store(&w->over, true);
    pthread_cond_broadcast(&w->begun);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < TAKERS + LOOKERS + 1; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->begun);
}

static void every_record_once(bool keyed) {
    struct world *w = calloc(1, sizeof *w);
    pthread_t threads[TAKERS + LOOKERS + 1];
    uint64_t index = 0, random = 12345;
    assert_non_null(w);
    setup(w, fixture_rounds(400));
    w->keyed = keyed;
    start(w, threads);
    while ((w->inserted < w->batches || atomic_load(&w->settled) < w->messages) &&
           atomic_load(&w->wrong) == 0) {
        write_some(w, &index, &random);
    }
    struct dw_stat stat;
    assert_int_equal(dw_store_stat(w->store, &stat), DW_OK);
    assert_int_equal(stat.pending, w->messages - atomic_load(&w->settled));
    assert_null(dw_store_check(w->store));
    dw_store_close(w->store);
    stop(w, threads);
    assert_int_equal(atomic_load(&w->wrong), 0);
    assert_int_equal(atomic_load(&w->settled), w->messages);
    assert_true(atomic_load(&w->looked) > 0);
    assert_true(w->finished > 0);
    fixture_end(&w->f);
    free(w);
}

static void test_every_record_once(void **state) {
    (void)state;
    every_record_once(false);
}

/* What is cancelled while others take, read and postpone it is gone once. */
static void test_every_keyed_record_once(void **state) {
    (void)state;
    every_record_once(true);
}

enum { SHOWN_BATCH = 5000, SHOWN_CHANGES = 24 };

struct shown {
    dw_store *store;
    uint64_t digests[SHOWN_CHANGES + 1]; /* by index */
    atomic_bool over;
    atomic_uint wrong;
    atomic_uint seen; /* how often another thread published in the midst of a change */
};

/* Inserts many, settles some of them, cancels others and gives the rest another due time. Each in
 * several steps, but for the first. */
static void change_much(dw_store *store, uint64_t index) {
    static struct model_new_record records[SHOWN_BATCH];
    static struct dw_id_due some[SHOWN_BATCH];
    struct dw_inserted out;
    struct dw_keyed keyed;
    uint64_t n;
    size_t bytes;
    for (unsigned i = 0; i < SHOWN_BATCH; i++) {
        records[i] = (struct model_new_record){.when = 100000 + i, .key_hash = i % 2, .length = 1};
        some[i] = (struct dw_id_due){.id = (index - 1) << 16 | i, .due = NOW + 100000 + i};
    }
    const struct model_new_record cancel = {.key_hash = 1, .on_key = DW_CANCEL};
    const bool insert = index % 3 == 1, settle = index % 3 == 2;
    uint8_t *batch =
        model_batch(index, insert ? records : &cancel, insert ? SHOWN_BATCH : 1, &bytes);
    assert_int_equal(insert   ? dw_store_insert(store, index, NOW, batch, bytes, &out)
                     : settle ? dw_store_settle_due(store, index, some, SHOWN_BATCH * 3 / 4, &n)
                              : dw_store_insert_keyed(store, index, NOW, batch, bytes, DW_KEYED_1,
                                                      &keyed),
                     DW_OK);
    free(batch);
}

static void *watch(void *arg) {
    struct shown *shown = arg;
    struct dw_stat stat, before = {0};
    while (!atomic_load(&shown->over)) {
        /* Publishes, whatever it answers. */
        (void)dw_store_postpone(shown->store, 0, NOW);
        dw_store_stat(shown->store, &stat);
        if (stat.applied > SHOWN_CHANGES || stat.digest != shown->digests[stat.applied]) {
            atomic_store(&shown->wrong, 1);
        }
        if (stat.applied == before.applied && stat.pending != before.pending) {
            atomic_fetch_add(&shown->seen, 1);
        }
        before = stat;
    }
    return NULL;
}

/* The digest that is shown is that of the index that is shown with it, also while a change has let
 * go of the lock between two steps. */
static void test_digest_at_index(void **state) {
    (void)state;
    struct shown shown = {0};
    pthread_t thread;
    for (unsigned pass = 0; pass < 2; pass++) {
        struct fixture f;
        fixture_init(&f);
        fixture_open(&f);
        shown.store = f.store;
        if (pass == 1) {
            assert_int_equal(pthread_create(&thread, NULL, watch, &shown), 0);
        }
        for (uint64_t index = 1; index <= SHOWN_CHANGES; index++) {
            change_much(f.store, index);
            struct dw_stat stat;
            assert_int_equal(dw_store_stat(f.store, &stat), DW_OK);
            if (pass == 0) {
                shown.digests[index] = stat.digest;
            }
            assert_int_equal(stat.digest, shown.digests[index]);
        }
        if (pass == 1) {
            atomic_store(&shown.over, true);
            pthread_join(thread, NULL);
        }
        assert_null(dw_store_check(f.store));
        fixture_end(&f);
    }
    assert_int_equal(atomic_load(&shown.wrong), 0);
    print_message("shown %u times in the midst of a change\n", atomic_load(&shown.seen));
}

/* Closing in the midst of it all: every call ends, and what the disk has is a checkpoint. */
static void test_close_under_way(void **state) {
    (void)state;
    for (unsigned round = 0; round < fixture_rounds(10); round++) {
        struct world *w = calloc(1, sizeof *w);
        pthread_t threads[TAKERS + LOOKERS + 1];
        uint64_t index = 0, random = 777 + round;
        assert_non_null(w);
        setup(w, 1000);
        start(w, threads);
        for (unsigned i = 0; i < 30 + 10 * round; i++) {
            write_some(w, &index, &random);
        }
        dw_store_close(w->store);
        stop(w, threads);
        assert_int_equal(atomic_load(&w->wrong), 0);
        fixture_close(&w->f);
        fixture_open(&w->f);
        assert_int_equal(w->f.report.corrupt_records, 0);
        assert_int_equal(w->f.report.rebuilt_indexes, 0);
        assert_null(dw_store_check(w->f.store));
        fixture_end(&w->f);
        free(w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_record_once),
        cmocka_unit_test(test_digest_at_index),
        cmocka_unit_test(test_every_keyed_record_once),
        cmocka_unit_test(test_close_under_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
