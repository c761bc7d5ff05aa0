/* SPDX-License-Identifier: MPL-2.0 */
/* One scenario that uses all of the store, with each fault (fault_sweep.h). What fails must say why
 * and change nothing, and succeed when it is tried again. What is open then, and what is there
 * after a kill and a clean opening, is what the model has: nothing less, nothing more, nothing of
 * it corrupt. All of it: `make soak-faults`. */
#include "dw_store_internal.h"
#include "fault_sweep.h"
#include "store_fixture.h"
#include "store_model.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)

struct world {
    struct fixture f;
    struct model model;
    struct collected collected;
    struct fault fault;
};

static void arm(struct world *w) {
    fault_arm(&w->fault, &w->f.alloc);
}

static bool disarm(struct world *w) {
    return fault_disarm(&w->fault, &w->f.alloc);
}

static void open_again(struct world *w) {
    fixture_close(&w->f);
    fixture_open(&w->f);
    assert_int_equal(w->f.report.corrupt_records, 0);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    model_replay(&w->model, w->f.store, 0);
    model_compare(&w->model, w->f.store, true);
}

/* The result of one operation under the fault: an error only if there was one. Then it is to be
 * tried again. */
static bool again(struct world *w, int result) {
    const bool fired = disarm(w);
    if (result != DW_OK) {
        assert_true(fired);
        fault_check(&w->fault, result);
    }
    if (fired && w->f.store != NULL) {
        model_compare(&w->model, w->f.store, true);
    }
    return result != DW_OK;
}

/* Tries `call` under the fault and, if it fails, once more without. */
#define TRY(w, call)                                                                               \
    do {                                                                                           \
        const bool before = (w)->fault.fired;                                                      \
        arm(w);                                                                                    \
        if (again(w, call)) {                                                                      \
            assert_int_equal(call, DW_OK);                                                         \
        }                                                                                          \
        if ((w)->fault.fired && !before && (w)->fault.kill && (w)->f.store != NULL) {              \
            open_again(w);                                                                         \
        }                                                                                          \
    } while (0)

static void insert_n(struct world *w, size_t n, uint64_t delay, uint64_t step, uint32_t length) {
    struct model_new_record records[64];
    assert_true(n <= 64);
    for (size_t i = 0; i < n; i++) {
        records[i] = (struct model_new_record){.when = delay + i * step,
                                               .key_hash = i % 3,
                                               .length = length,
                                               .encoding = (uint16_t)i};
    }
    TRY(w, model_insert(&w->model, w->f.store, NOW, records, n));
}

static bool is_due(const struct model_record *record, uint64_t now) {
    return !record->taken && record->until <= now;
}

static uint64_t count_due(const struct world *w, uint64_t now) {
    uint64_t n = 0;
    for (size_t i = 0; i < w->model.count; i++) {
        n += is_due(&w->model.records[i], now);
    }
    return n;
}

/* All that is due, as far as it can be read; each as it should be. */
static int take_due(struct world *w, uint64_t now) {
    uint64_t next_due = 0;
    int result = DW_OK;
    for (unsigned calls = 0; result == DW_OK && next_due <= now; calls++) {
        const struct dw_sink sink = collected_sink(&w->collected);
        assert_true(calls < 100);
        result = dw_store_take(w->f.store, now, 40, UINT64_MAX, &sink, &next_due);
        for (uint32_t i = 0; i < w->collected.count; i++) {
            const struct dw_record *got = &w->collected.records[i];
            struct model_record *record = model_find(&w->model, got->id);
            assert_non_null(record);
            assert_true(is_due(record, now));
            assert_false(w->collected.corrupt[i]);
            assert_int_equal(got->due, record->due);
            assert_int_equal(got->key_hash, record->key_hash);
            assert_int_equal(got->length, record->length);
            assert_int_equal(got->encoding, record->encoding);
            record->taken = true;
        }
    }
    return result;
}

/* What is left is what could not be read, and comes in a second. */
static void put_off(struct world *w, uint64_t now) {
    struct dw_stat stat;
    assert_int_equal(dw_store_stat(w->f.store, &stat), DW_OK);
    assert_int_equal(stat.unreadable, count_due(w, now));
    assert_int_equal(stat.corrupt_records, 0);
    for (size_t i = 0; i < w->model.count; i++) {
        struct model_record *record = &w->model.records[i];
        if (is_due(record, now)) {
            record->until = now + 1000;
            record->moved = true;
        }
    }
}

static void take_and_settle(struct world *w, uint64_t now, size_t kept) {
    uint64_t ids[512];
    size_t n = 0;
    arm(w);
    const int result = take_due(w, now);
    const bool fired = disarm(w);
    if (result != DW_OK) {
        assert_true(fired);
        fault_check(&w->fault, result);
        model_compare(&w->model, w->f.store, true);
    } else if (count_due(w, now) > 0) {
        assert_true(fired && w->fault.kind == FAULT_IO && !dw_is_scarcity(w->fault.err));
        put_off(w, now);
        model_compare(&w->model, w->f.store, true);
    }
    if (fired) {
        if (w->fault.kill) {
            open_again(w);
        }
        assert_int_equal(take_due(w, now), DW_OK);
        assert_int_equal(take_due(w, now + 1000), DW_OK);
        assert_int_equal(count_due(w, now), 0);
        put_off(w, 0);
    }
    for (size_t i = 0; i < w->model.count; i++) {
        if (w->model.records[i].taken && n < 512) {
            ids[n++] = w->model.records[i].id;
        }
    }
    TRY(w, model_settle(&w->model, w->f.store, ids, n > kept ? n - kept : 0));
}

/* Of those that were taken some: with their due times, with other ones, and with both. */
static int settle_released(struct world *w) {
    struct dw_id_due released[64];
    size_t n = 0;
    for (size_t i = 0; i < w->model.count && n + 2 < 64; i++) {
        const struct model_record *record = &w->model.records[i];
        if (record->taken || record->until != record->due) {
            released[n++] = (struct dw_id_due){record->id, record->due + i % 2};
            released[n++] =
                (struct dw_id_due){record->id, i % 3 == 0 ? record->due : record->until};
        }
    }
    return model_settle_due(&w->model, w->f.store, released, n);
}

static void postpone_taken(struct world *w, uint64_t until) {
    for (size_t i = 0; i < w->model.count; i++) {
        if (w->model.records[i].taken) {
            TRY(w, model_postpone(&w->model, w->f.store, w->model.records[i].id, until + i));
        }
    }
}

/* Without memory some remain taken; which, the model does not say. */
static void untake(struct world *w) {
    arm(w);
    const int result = model_untake(&w->model, w->f.store);
    if (disarm(w) && result != DW_OK) {
        assert_int_equal(result, DW_ENOMEM);
        assert_null(dw_store_check(w->f.store));
        assert_int_equal(model_untake(&w->model, w->f.store), DW_OK);
    } else {
        assert_int_equal(result, DW_OK);
    }
}

static int maintain(struct world *w, uint64_t now) {
    bool more = true;
    int result = DW_OK;
    for (unsigned i = 0; result == DW_OK && more; i++) {
        assert_true(i < 10000);
        result = dw_store_maintain(w->f.store, now, 1, &more);
    }
    return result;
}

static int read_one(struct world *w, uint64_t id) {
    const struct dw_sink sink = collected_sink(&w->collected);
    int result = dw_store_read(w->f.store, id, &sink);
    assert_int_equal(w->collected.count, result == DW_OK);
    assert_true(w->collected.count == 0 || !w->collected.corrupt[0]);
    return result;
}

/* Those that can be read, and all if nothing fails. */
static int read_many(struct world *w) {
    uint64_t ids[64];
    uint32_t n = 0, seen;
    for (size_t i = 0; i < w->model.count && n < 64; i++) {
        ids[n++] = w->model.records[i].id;
    }
    const struct dw_sink sink = collected_sink(&w->collected);
    int result = dw_store_read_many(w->f.store, ids, n, UINT64_MAX, &sink, &seen);
    uint32_t at = 0;
    for (uint32_t i = 0; i < w->collected.count; i++) {
        while (at < n && ids[at] != w->collected.records[i].id) {
            at++;
        }
        assert_true(at < n);
        assert_false(w->collected.corrupt[i]);
    }
    assert_true(result != DW_OK || seen == n);
    assert_true(w->collected.count == n || w->fault.kind != FAULT_NONE);
    return result;
}

/* Nothing is corrupt, so nothing is kept. */
static int keep_aside(struct world *w) {
    uint64_t ids[8];
    bool kept[8];
    for (unsigned i = 0; i < 8; i++) {
        ids[i] = w->model.records[i * w->model.count / 8].id;
    }
    int result = dw_store_keep_aside(w->f.store, NOW, ids, 8, kept);
    for (unsigned i = 0; i < 8; i++) {
        assert_false(kept[i]);
    }
    return result;
}

static int reschedule_many(struct world *w) {
    struct dw_id_due dues[8];
    uint64_t moved = 0;
    for (unsigned i = 0; i < 8; i++) {
        const struct model_record *record = &w->model.records[i * w->model.count / 8];
        dues[i] = (struct dw_id_due){.id = record->id, .due = record->due + 40000000 * (i % 3)};
    }
    const uint64_t index = w->model.index + 1;
    int result = dw_store_reschedule_many(w->f.store, index, dues, 8, &moved);
    if (result == DW_OK) {
        assert_int_equal(moved, 8);
    } else {
        /* Some may have moved: only another opening is as it was. */
        assert_int_equal(result, DW_ENOMEM);
        assert_true(disarm(w));
        open_again(w);
        assert_int_equal(dw_store_reschedule_many(w->f.store, index, dues, 8, &moved), DW_OK);
        assert_int_equal(moved, 8);
    }
    model_reschedule_many(&w->model, dues, 8);
    return DW_OK;
}

static int insert_keyed(struct world *w) {
    static const enum dw_on_key what[] = {DW_KEEP, DW_REPLACE, DW_DROP, DW_CANCEL};
    struct model_new_record records[12];
    for (unsigned i = 0; i < 12; i++) {
        records[i] = (struct model_new_record){.when = 50000 + i,
                                               .key_hash = 101 + i % 5,
                                               .length = what[i % 4] == DW_CANCEL ? 0 : 70,
                                               .on_key = what[i % 4]};
    }
    return model_insert_keyed(&w->model, w->f.store, NOW, records, 12);
}

/* Some may be released when there is no memory for all: only another opening is as it was. */
static int release(struct world *w) {
    const struct model_new_record records[] = {
        {.when = 90000, .key_hash = 101, .length = 70}, {.key_hash = 101, .on_key = DW_RELEASE},
        {.when = 90000, .key_hash = 101, .length = 70}, {.key_hash = 1, .on_key = DW_RELEASE},
        {.key_hash = 2, .on_key = DW_RELEASE},
    };
    const size_t n = sizeof records / sizeof *records;
    int result = model_insert_keyed(&w->model, w->f.store, NOW + 20000, records, n);
    if (result != DW_OK) {
        assert_int_equal(result, DW_ENOMEM);
        assert_true(disarm(w));
        open_again(w);
        result = model_insert_keyed(&w->model, w->f.store, NOW + 20000, records, n);
    }
    return result;
}

static int page(struct world *w) {
    struct dw_record records[20];
    uint32_t n;
    int result = dw_store_page(w->f.store, 0, 0, records, 20, &n);
    assert_true(result != DW_OK || n == (w->model.count < 20 ? w->model.count : 20));
    return result;
}

static int find(struct world *w) {
    uint64_t ids[64], n, expected = 0;
    int result = dw_store_find(w->f.store, 1, ids, 64, &n);
    for (size_t i = 0; i < w->model.count; i++) {
        expected += w->model.records[i].key_hash == 1;
    }
    assert_true(result != DW_OK || n == expected);
    return result;
}

/* What comes of an opening under a fault is right, or there is none, and the next one is. */
static void reopen(struct world *w) {
    arm(w);
    fixture_close(&w->f);
    const int result = fixture_try_open(&w->f);
    if (disarm(w) && result != DW_OK) {
        assert_null(w->f.store);
        fault_check(&w->fault, result);
        fixture_open(&w->f);
    } else {
        assert_int_equal(result, DW_OK);
    }
    assert_int_equal(w->f.report.corrupt_records, 0);
    assert_int_equal(w->f.report.rebuilt_indexes, 0);
    model_replay(&w->model, w->f.store, 0);
    model_compare(&w->model, w->f.store, true);
}

static int validate(struct world *w) {
    uint64_t applied;
    return dw_validate_with(fixture_path(&w->f, "snapshot"), &applied, &fault_io,
                            &w->f.alloc.alloc);
}

static int restore(struct world *w) {
    return dw_restore_with(w->f.dir, fixture_path(&w->f, "snapshot"), &fault_io, &w->f.alloc.alloc);
}

/* After a failed fsync the checkpoint is tried again, in vain, until records were moved. */
static int checkpoint(struct world *w, const char *snapshot_dir) {
    int result = fixture_checkpoint(&w->f, snapshot_dir);
    if (result != DW_OK && w->fault.fired) {
        assert_int_equal(maintain(w, NOW), DW_OK);
        result = fixture_checkpoint(&w->f, snapshot_dir);
    }
    return result;
}

static void scenario(struct world *w) {
    const char *snapshot = fixture_path(&w->f, "snapshot");
    w->f.store = NULL;
    reopen(w);
    insert_n(w, 40, 0, 3000, 300);
    insert_n(w, 20, 3000000, 100000, 40000);
    TRY(w, dw_store_flush(w->f.store));
    insert_n(w, 64, 3000000, 10, 500);
    take_and_settle(w, NOW + 50000, 8);
    postpone_taken(w, NOW + 60000);
    TRY(w, settle_released(w));
    TRY(w, checkpoint(w, NULL));
    insert_n(w, 10, 60000, 0, 10);
    TRY(w, insert_keyed(w));
    TRY(w, release(w));
    TRY(w, insert_keyed(w));
    TRY(w, model_reschedule(&w->model, w->f.store, UINT64_C(2) << 16, NOW + 5));
    TRY(w, model_reschedule(&w->model, w->f.store, UINT64_C(2) << 16 | 1, NOW + 50000000));
    TRY(w, reschedule_many(w));
    untake(w);
    TRY(w, read_one(w, UINT64_C(2) << 16 | 2));
    TRY(w, read_many(w));
    TRY(w, page(w));
    TRY(w, find(w));
    TRY(w, keep_aside(w));
    TRY(w, maintain(w, NOW + 2900000));
    TRY(w, checkpoint(w, snapshot));
    reopen(w);
    TRY(w, reschedule_many(w));
    take_and_settle(w, NOW + 70000, 6);
    TRY(w, settle_released(w));
    untake(w);
    TRY(w, validate(w));
    TRY(w, checkpoint(w, NULL));
    reopen(w);
    TRY(w, maintain(w, NOW + 2900000));
    fixture_close(&w->f);
    TRY(w, restore(w));
    reopen(w);
    take_and_settle(w, NOW + 4000000, 0);
    TRY(w, checkpoint(w, NULL));
    TRY(w, model_purge(&w->model, w->f.store));
    insert_n(w, 10, 60000, 0, 10);
    TRY(w, checkpoint(w, NULL));
    reopen(w);
    open_again(w);
}

static bool run(const void *arg, struct fault fault) {
    struct world w = {.fault = fault};
    (void)arg;
    fixture_init(&w.f);
    w.f.config.split_bytes = 1000;
    scenario(&w);
    fixture_end(&w.f);
    model_free(&w.model);
    collected_free(&w.collected);
    return w.fault.fired;
}

static void test_no_fault(void **state) {
    (void)state;
    assert_false(run(NULL, (struct fault){.kind = FAULT_NONE}));
}

static void test_each_allocation(void **state) {
    (void)state;
    fault_sweep_allocations(run, NULL, 60);
}

#define TEST_CALL(name, call, every)                                                               \
    static void test_each_##name(void **state) {                                                   \
        (void)state;                                                                               \
        fault_sweep_calls(run, NULL, call, every);                                                 \
    }
TEST_CALL(open, FAULT_OPEN, 25)
TEST_CALL(read, FAULT_PREAD, 25)
TEST_CALL(write, FAULT_PWRITE, 12)
TEST_CALL(fstat, FAULT_FSTAT, 12)
TEST_CALL(truncation, FAULT_FTRUNCATE, 2)
TEST_CALL(fdatasync, FAULT_FDATASYNC, 9)
TEST_CALL(fsync, FAULT_FSYNC, 4)
TEST_CALL(mkdir, FAULT_MKDIR, 2)
TEST_CALL(rename, FAULT_RENAME, 2)
TEST_CALL(link, FAULT_LINK, 6)
TEST_CALL(unlink, FAULT_UNLINK, 9)
TEST_CALL(listing, FAULT_LIST, 9)
TEST_CALL(close, FAULT_CLOSE, 40)
TEST_CALL(advice, FAULT_ADVISE, 2)

#define TEST(name) cmocka_unit_test_teardown(name, fault_say)

int main(void) {
    fault_seed();
    const struct CMUnitTest tests[] = {
        TEST(test_no_fault),        TEST(test_each_allocation), TEST(test_each_open),
        TEST(test_each_read),       TEST(test_each_write),      TEST(test_each_fstat),
        TEST(test_each_truncation), TEST(test_each_fdatasync),  TEST(test_each_fsync),
        TEST(test_each_mkdir),      TEST(test_each_rename),     TEST(test_each_link),
        TEST(test_each_unlink),     TEST(test_each_listing),    TEST(test_each_close),
        TEST(test_each_advice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
