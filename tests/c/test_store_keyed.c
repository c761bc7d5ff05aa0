/* SPDX-License-Identifier: MPL-2.0 */
/* Keyed batches: what a record does with its key, alone, within a batch, and to what was there. */
#include "store_fixture.h"
#include "store_model.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)
#define HOUR UINT64_C(3600000)

struct world {
    struct fixture f;
    struct model model;
    struct collected collected;
};

static int setup(void **state) {
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    fixture_init(&w->f);
    w->f.config.now_ms = NOW;
    fixture_open(&w->f);
    *state = w;
    return 0;
}

static int teardown(void **state) {
    struct world *w = *state;
    fixture_end(&w->f);
    model_free(&w->model);
    collected_free(&w->collected);
    free(w);
    return 0;
}

static struct model_new_record with_key(enum dw_on_key on_key, uint64_t key_hash, uint64_t when) {
    return (struct model_new_record){.on_key = on_key,
                                     .key_hash = key_hash,
                                     .when = when,
                                     .length = model_is_empty(on_key) ? 0 : 10};
}

/* One record that does that with a key. */
static void one(struct world *w, enum dw_on_key on_key, uint64_t key_hash, uint64_t when) {
    const struct model_new_record record = with_key(on_key, key_hash, when);
    assert_int_equal(model_insert_keyed(&w->model, w->f.store, NOW, &record, 1), DW_OK);
    model_compare(&w->model, w->f.store, true);
}

static void test_what_each_does(void **state) {
    struct world *w = *state;
    one(w, DW_KEEP, 7, HOUR);
    one(w, DW_KEEP, 7, 2 * HOUR);
    one(w, DW_KEEP, 8, HOUR);
    assert_int_equal(w->model.count, 3);
    one(w, DW_DROP, 7, 3 * HOUR);
    assert_int_equal(w->model.count, 3);
    one(w, DW_DROP, 9, 3 * HOUR);
    assert_int_equal(w->model.count, 4);
    one(w, DW_REPLACE, 7, 5 * HOUR);
    assert_int_equal(w->model.count, 3);
    one(w, DW_REPLACE, 10, 5 * HOUR);
    assert_int_equal(w->model.count, 4);
    one(w, DW_CANCEL, 11, 0);
    assert_int_equal(w->model.count, 4);
    one(w, DW_CANCEL, 7, 0);
    assert_int_equal(w->model.count, 3);
    one(w, DW_DROP, 7, HOUR);
    assert_int_equal(w->model.count, 4);
    one(w, DW_RELEASE, 7, 0);
    one(w, DW_RELEASE, 11, 0);
    assert_int_equal(w->model.count, 4);
    assert_int_equal(dw_store_next_due(w->f.store), NOW);
}

/* Every sequence of up to four things done with one key in one batch, upon a store that has
 * nothing, one message and two under it: against the model, which does one after the other. */
static void test_every_short_batch(void **state) {
    struct world *w = *state;
    enum { MOST = 4, KINDS = DW_RELEASE + 1 };
    static const unsigned powers[] = {1, KINDS, KINDS * KINDS, KINDS * KINDS * KINDS,
                                      KINDS * KINDS * KINDS * KINDS};
    for (unsigned there = 0; there < 3; there++) {
        for (unsigned n = 1; n <= MOST; n++) {
            for (unsigned code = 0; code < powers[n]; code++) {
                struct model_new_record records[MOST];
                const uint64_t key = (uint64_t)code << 16 | n << 8 | there << 4 | 1;
                for (unsigned i = 0; i < there; i++) {
                    const struct model_new_record before = with_key(DW_KEEP, key, HOUR + i);
                    assert_int_equal(model_insert(&w->model, w->f.store, NOW, &before, 1), DW_OK);
                }
                for (unsigned i = 0; i < n; i++) {
                    records[i] =
                        with_key((enum dw_on_key)(code / powers[i] % KINDS), key, HOUR + code);
                }
                assert_int_equal(model_insert_keyed(&w->model, w->f.store, NOW, records, n), DW_OK);
            }
        }
    }
    model_compare(&w->model, w->f.store, true);
    fixture_close(&w->f);
    fixture_open(&w->f);
    model_replay(&w->model, w->f.store, w->model.index);
    model_compare(&w->model, w->f.store, true);
}

static void test_malformed(void **state) {
    struct world *w = *state;
    static const struct model_new_record bad[] = {
        {.on_key = DW_CANCEL, .key_hash = 1, .length = 1},  /* a cancel is no message */
        {.on_key = DW_REPLACE, .key_hash = 1, .length = 0}, /* and others are */
        {.on_key = DW_DROP, .key_hash = 1, .length = 0},
        {.on_key = DW_KEEP, .key_hash = 1, .length = 0},
        {.on_key = DW_CANCEL, .key_hash = 0, .length = 0}, /* without a key */
        {.on_key = DW_REPLACE, .key_hash = 0, .length = 1},
        {.on_key = DW_DROP, .key_hash = 0, .length = 1},
        {.on_key = DW_RELEASE, .key_hash = 1, .length = 1}, /* nor is a release */
        {.on_key = DW_RELEASE, .key_hash = 0, .length = 0},
        {.on_key = 5, .key_hash = 1, .length = 1}, /* what has no meaning */
        {.on_key = 6, .key_hash = 1, .length = 0},
        {.on_key = 7, .key_hash = 1, .length = 1},
        {.on_key = 8, .key_hash = 1, .length = 1}, /* an unknown flag */
    };
    one(w, DW_KEEP, 1, HOUR);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct model_new_record two[2] = {with_key(DW_CANCEL, 1, 0), bad[i]};
        assert_int_equal(model_insert_keyed(&w->model, w->f.store, NOW, two, 2), DW_EINVAL);
        model_compare(&w->model, w->f.store, false);
        assert_int_equal(w->model.count, 1);
    }
    /* What is new is refused where it was refused before there were keyed batches. */
    const struct model_new_record cancel = with_key(DW_CANCEL, 1, 0);
    assert_int_equal(model_insert(&w->model, w->f.store, NOW, &cancel, 1), DW_EINVAL);
    size_t bytes;
    uint32_t count;
    uint8_t *batch = model_batch(1, &cancel, 1, &bytes);
    assert_int_equal(dw_batch_check(batch, bytes, 100, &count), DW_EINVAL);
    assert_int_equal(dw_batch_check_keyed(batch, bytes, 100, DW_KEYED_1, &count), DW_OK);
    assert_int_equal(count, 1);
    free(batch);
    /* And so is a release before there were any. */
    const struct model_new_record release = with_key(DW_RELEASE, 1, 0);
    struct dw_keyed out;
    batch = model_batch(2, &release, 1, &bytes);
    assert_int_equal(dw_batch_check_keyed(batch, bytes, 100, DW_KEYED_1, &count), DW_EINVAL);
    assert_int_equal(dw_store_insert_keyed(w->f.store, 2, NOW, batch, bytes, DW_KEYED_1, &out),
                     DW_EINVAL);
    assert_int_equal(dw_batch_check_keyed(batch, bytes, 100, DW_KEYED_2, &count), DW_OK);
    assert_int_equal(count, 1);
    free(batch);
    model_compare(&w->model, w->f.store, false);
}

static void test_what_was_handed_out(void **state) {
    struct world *w = *state;
    for (uint64_t key = 1; key <= 3; key++) {
        one(w, DW_KEEP, key, 1);
        one(w, DW_KEEP, key, HOUR);
    }
    assert_int_equal(model_take(&w->model, w->f.store, NOW + 10, 10, UINT64_MAX, &w->collected),
                     DW_OK);
    assert_int_equal(w->collected.count, 3);
    const uint64_t first = w->collected.records[0].id;
    one(w, DW_CANCEL, 1, 0); /* the model says how many of each kind went */
    one(w, DW_REPLACE, 2, HOUR);
    one(w, DW_DROP, 3, HOUR);
    assert_int_equal(w->model.count, 1 + 2);
    /* It has gone: neither is it handed out again, nor is there anything to settle. */
    assert_int_equal(dw_store_postpone(w->f.store, first, NOW + 20), DW_ENOENT);
    assert_int_equal(model_settle(&w->model, w->f.store, &first, 1), DW_OK);
    assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    model_compare(&w->model, w->f.store, true);
}

/* A change that the store is already at does nothing, and says so. */
static void test_applied_before(void **state) {
    struct world *w = *state;
    one(w, DW_KEEP, 1, HOUR);
    const struct model_new_record cancel = with_key(DW_CANCEL, 1, 0);
    size_t bytes;
    uint8_t *batch = model_batch(1, &cancel, 1, &bytes);
    struct dw_keyed out;
    for (uint64_t index = 0; index <= w->model.index; index++) {
        assert_int_equal(dw_store_insert_keyed(w->f.store, index, NOW, batch, bytes, DW_KEYED_2,
                                               &out),
                         DW_OK);
        assert_int_equal(out.cancelled, 0);
        assert_int_equal(out.inserted.next_due, NOW + HOUR);
    }
    model_compare(&w->model, w->f.store, false);
    assert_int_equal(dw_store_insert_keyed(w->f.store, UINT64_C(1) << 48, NOW, batch, bytes,
                                           DW_KEYED_2, &out),
                     DW_EINVAL);
    dw_store_close(w->f.store);
    assert_int_equal(dw_store_insert_keyed(w->f.store, 9, NOW, batch, bytes, DW_KEYED_2, &out),
                     DW_ECLOSED);
    free(batch);
}

/* What was taken stays so, as it may have been delivered, and is settled by the time that it was
 * released for; what was postponed, and what is due already, is handed out when it was to be. */
static void test_release_of_what_was_handed_out(void **state) {
    struct world *w = *state;
    one(w, DW_KEEP, 1, 0);
    one(w, DW_KEEP, 1, 5);
    one(w, DW_KEEP, 1, 7);
    assert_int_equal(model_take(&w->model, w->f.store, NOW + 6, 10, UINT64_MAX, &w->collected),
                     DW_OK);
    assert_int_equal(w->collected.count, 2);
    const struct dw_id_due first = {w->collected.records[0].id, NOW},
                           second = {w->collected.records[1].id, NOW + 5};
    one(w, DW_RELEASE, 1, 0);
    assert_int_equal(model_settle_due(&w->model, w->f.store, &second, 1), DW_OK);
    assert_int_equal(w->model.count, 3);
    const struct dw_id_due early = {second.id, NOW - 1};
    assert_int_equal(model_settle_due_by(&w->model, w->f.store, &early, 1), DW_OK);
    assert_int_equal(w->model.count, 3);
    assert_int_equal(model_settle_due_by(&w->model, w->f.store, &second, 1), DW_OK);
    assert_int_equal(w->model.count, 2);
    assert_int_equal(model_take(&w->model, w->f.store, NOW, 10, UINT64_MAX, &w->collected), DW_OK);
    assert_int_equal(w->collected.count, 1);
    assert_int_equal(model_postpone(&w->model, w->f.store, first.id, NOW + HOUR), DW_OK);
    one(w, DW_RELEASE, 1, 0);
    assert_int_equal(dw_store_next_due(w->f.store), NOW + HOUR);
    model_compare(&w->model, w->f.store, true);
}

/* As many under one key as make the call let go of the lock in between. */
static void test_many_under_one_key(void **state) {
    struct world *w = *state;
    enum { BATCH = 500, BATCHES = 8 };
    struct model_new_record records[BATCH];
    for (unsigned b = 0; b < BATCHES; b++) {
        for (unsigned i = 0; i < BATCH; i++) {
            records[i] = with_key(DW_KEEP, i % 10 == 0 ? 2 : 1, HOUR + b * 100000 + i);
        }
        assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, BATCH), DW_OK);
    }
    one(w, DW_RELEASE, 1, 0);
    assert_int_equal(model_take(&w->model, w->f.store, NOW, BATCHES * BATCH, UINT64_MAX,
                                &w->collected),
                     DW_OK);
    assert_int_equal(w->collected.count, BATCHES * BATCH * 9 / 10);
    one(w, DW_REPLACE, 1, HOUR);
    assert_int_equal(w->model.count, BATCHES * BATCH / 10 + 1);
    one(w, DW_CANCEL, 2, 0);
    assert_int_equal(w->model.count, 1);
    one(w, DW_CANCEL, 1, 0);
    assert_int_equal(w->model.count, 0);
}

/* Each allocation of a batch that does everything fails in turn: nothing has changed then, and it
 * succeeds when it is tried again. */
static void test_without_memory(void **state) {
    struct world *w = *state;
    enum { KEYS = 300 };
    struct model_new_record records[KEYS + 3];
    for (unsigned i = 0; i < KEYS; i++) {
        records[i] = with_key(DW_KEEP, 1 + i % 40, HOUR * (1 + i % 30));
    }
    assert_int_equal(model_insert(&w->model, w->f.store, NOW, records, KEYS), DW_OK);
    unsigned failures = 0;
    for (uint64_t nth = 1;; nth++) {
        for (unsigned i = 0; i < KEYS; i++) {
            const enum dw_on_key on_key = (enum dw_on_key)((i + nth) % 4);
            records[i] = with_key(on_key, 1 + (i * 7 + nth) % 60, HOUR * (1 + i * 5 % 700));
        }
        fault_alloc_fail(&w->f.alloc, nth, false);
        w->f.alloc.failed = 0;
        int result = model_insert_keyed(&w->model, w->f.store, NOW, records, KEYS);
        const bool failed = w->f.alloc.failed > 0;
        fault_alloc_fail(&w->f.alloc, 0, false);
        model_compare(&w->model, w->f.store, false);
        if (!failed) {
            assert_int_equal(result, DW_OK);
            break;
        }
        /* Some memory is only for speed. */
        assert_true(result == DW_OK || result == DW_ENOMEM);
        if (result == DW_ENOMEM) {
            failures++;
            assert_int_equal(model_insert_keyed(&w->model, w->f.store, NOW, records, KEYS), DW_OK);
        }
    }
    assert_true(failures >= 4);
    model_compare(&w->model, w->f.store, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_each_does, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_short_batch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_malformed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_was_handed_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_release_of_what_was_handed_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_applied_before, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_under_one_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_memory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
