/* SPDX-License-Identifier: MPL-2.0 */
/* One scenario that uses all of the store, run over and over: each time another allocation fails,
 * or another system call, once or from then on. What fails must say so and change nothing, and
 * succeed when it is tried again; nothing pending may be lost. */
#include "dw_store_internal.h"
#include "fault_io.h"
#include "store_fixture.h"
#include "store_model.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)

enum fault_kind { FAULT_ALLOC, FAULT_IO };

struct world {
    struct fixture f;
    struct model model;
    struct collected collected;
    enum fault_kind kind;
    unsigned calls; /* FAULT_IO: which */
    int err;
    bool on;     /* all that follow fail too, until the operation has failed */
    uint64_t at; /* the call that fails */
    bool fired;
};

/* Counts up to the one that fails over all operations of the scenario. */
static uint64_t passed(const struct world *w) {
    return w->kind == FAULT_ALLOC ? w->f.alloc.calls : fault_io_counted();
}

static void arm(struct world *w) {
    if (w->fired) {
        return;
    }
    if (w->kind == FAULT_ALLOC) {
        fault_alloc_fail(&w->f.alloc, w->at, w->on);
        w->f.alloc.calls = 0;
        w->f.alloc.fail_at = w->at;
        w->f.alloc.failed = 0;
    } else {
        fault_io_fail(w->calls, w->at, w->on, w->err);
    }
}

static bool disarm(struct world *w) {
    if (w->fired) {
        return false;
    }
    const uint64_t n = passed(w);
    w->fired = w->kind == FAULT_ALLOC ? w->f.alloc.failed > 0 : fault_io_failed() > 0;
    w->at = w->fired ? 0 : w->at - n;
    fault_alloc_fail(&w->f.alloc, 0, false);
    fault_io_fail(0, 0, false, 0);
    return w->fired;
}

/* The result of one operation under the fault: an error only if there was one. Then it is to be
 * tried again. */
static bool again(struct world *w, int result) {
    const bool fired = disarm(w);
    if (result == DW_OK) {
        return false;
    }
    assert_true(fired);
    if (w->kind == FAULT_ALLOC) {
        assert_int_equal(result, DW_ENOMEM);
    } else if ((w->calls & FAULT_PREAD) != 0 && result == DW_ECORRUPT) {
        assert_int_equal(w->err, EIO); /* what cannot be read is as good as damaged */
    } else {
        assert_true(result == DW_EIO || result == DW_ENOSPC || result == DW_EACCES);
        assert_int_equal(dw_store_errno(), w->err);
    }
    if (w->f.store != NULL) {
        model_compare(&w->model, w->f.store, false);
    }
    return true;
}

/* Tries `call` under the fault and, if it fails, once more without. */
#define TRY(w, call)                                                                               \
    do {                                                                                           \
        arm(w);                                                                                    \
        if (again(w, call)) {                                                                      \
            assert_int_equal(call, DW_OK);                                                         \
        }                                                                                          \
    } while (0)

static void insert_n(struct world *w, size_t n, uint64_t delay, uint64_t step, uint32_t length) {
    struct model_new_record records[64];
    assert_true(n <= 64);
    for (size_t i = 0; i < n; i++) {
        records[i] = (struct model_new_record){
            .when = delay + i * step, .key_hash = i % 3, .length = length, .encoding = (uint16_t)i};
    }
    TRY(w, model_insert(&w->model, w->f.store, NOW, records, n));
}

static int take(struct world *w, uint64_t now, uint32_t max_n) {
    return model_take(&w->model, w->f.store, now, max_n, UINT64_MAX, &w->collected);
}

/* A record that was being read when a call failed may have been handed out as corrupt. */
static void allow_corrupt(struct world *w, bool allowed) {
    for (size_t i = 0; i < w->model.count; i++) {
        w->model.records[i].corrupt = allowed;
    }
}

static void take_and_settle(struct world *w, uint64_t now, uint32_t max_n, size_t kept) {
    uint64_t ids[512];
    size_t n = 0;
    allow_corrupt(w, true);
    TRY(w, take(w, now, max_n));
    for (size_t i = 0; i < w->model.count; i++) {
        if (w->model.records[i].taken && n < 512) {
            ids[n++] = w->model.records[i].id;
        }
    }
    allow_corrupt(w, false);
    TRY(w, model_settle(&w->model, w->f.store, ids, n > kept ? n - kept : 0));
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

static int open_under_fault(struct world *w) {
    int result = fixture_try_open(&w->f);
    /* What it made of a file that it could not read is no matter here: it is closed again. */
    if (result == DW_OK && w->kind == FAULT_IO && fault_io_failed() > 0) {
        fixture_close(&w->f);
        errno = w->err;
        return dw_io_error(w->err);
    }
    return result;
}

static void reopen(struct world *w) {
    fixture_close(&w->f);
    arm(w);
    const int result = open_under_fault(w);
    if (disarm(w) && result != DW_OK) {
        assert_null(w->f.store);
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
    if (result == DW_EIO && w->fired) {
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
    take_and_settle(w, NOW + 50000, 15, 5);
    postpone_taken(w, NOW + 60000);
    TRY(w, checkpoint(w, NULL));
    insert_n(w, 10, 60000, 0, 10);
    TRY(w, model_reschedule(&w->model, w->f.store, UINT64_C(2) << 16, NOW + 5));
    TRY(w, model_reschedule(&w->model, w->f.store, UINT64_C(2) << 16 | 1, NOW + 50000000));
    untake(w);
    allow_corrupt(w, true);
    TRY(w, read_one(w, UINT64_C(2) << 16 | 2));
    allow_corrupt(w, false);
    TRY(w, page(w));
    TRY(w, find(w));
    TRY(w, maintain(w, NOW + 2900000));
    TRY(w, checkpoint(w, snapshot));
    take_and_settle(w, NOW + 70000, 100, 3);
    untake(w);
    TRY(w, validate(w));
    TRY(w, checkpoint(w, NULL));
    model_compare(&w->model, w->f.store, true);
    reopen(w);
    TRY(w, maintain(w, NOW + 2900000));
    fixture_close(&w->f);
    TRY(w, restore(w));
    reopen(w);
    take_and_settle(w, NOW + 4000000, 400, 0);
    TRY(w, checkpoint(w, NULL));
    reopen(w);
}

/* Runs the scenario with one fault; false if it had no call of that number. */
static bool run(enum fault_kind kind, unsigned calls, int err, bool on, uint64_t at) {
    struct world w = {.kind = kind, .calls = calls, .err = err, .on = on, .at = at};
    fixture_init(&w.f);
    w.f.config.split_bytes = 1000;
    scenario(&w);
    fixture_end(&w.f);
    model_free(&w.model);
    collected_free(&w.collected);
    return w.fired;
}

/* All of them or, to be quick, every few. */
static void run_all(enum fault_kind kind, unsigned calls, int err, bool on, unsigned every) {
    const unsigned rounds = fixture_rounds(100);
    const unsigned step = rounds >= 1000 ? 1 : rounds >= 100 ? every : 20 * every;
    uint64_t at = 1;
    while (run(kind, calls, err, on, at)) {
        at += step;
    }
    assert_true(at > 1);
}

static void test_no_fault(void **state) {
    (void)state;
    assert_false(run(FAULT_ALLOC, 0, 0, false, UINT32_MAX));
}

static void test_each_allocation(void **state) {
    (void)state;
    run_all(FAULT_ALLOC, 0, 0, false, 13);
}

static void test_all_allocations_from_one_on(void **state) {
    (void)state;
    run_all(FAULT_ALLOC, 0, 0, true, 13);
}

static void test_each_write(void **state) {
    (void)state;
    run_all(FAULT_IO, FAULT_PWRITE | FAULT_FTRUNCATE, ENOSPC, false, 5);
    run_all(FAULT_IO, FAULT_PWRITE, EIO, false, 11);
    run_all(FAULT_IO, FAULT_PWRITE, ENOSPC, true, 11);
}

static void test_each_sync(void **state) {
    (void)state;
    run_all(FAULT_IO, FAULT_FDATASYNC | FAULT_FSYNC, EIO, false, 3);
}

static void test_each_change_of_a_name(void **state) {
    (void)state;
    run_all(FAULT_IO, FAULT_RENAME | FAULT_MKDIR, EIO, false, 1);
    run_all(FAULT_IO, FAULT_LINK, EIO, false, 3);
    run_all(FAULT_IO, FAULT_LINK, EXDEV, true, 7);
    run_all(FAULT_IO, FAULT_UNLINK, EACCES, false, 7);
}

static void test_each_open(void **state) {
    (void)state;
    run_all(FAULT_IO, FAULT_OPEN, EMFILE, false, 13);
    run_all(FAULT_IO, FAULT_OPEN, EMFILE, true, 29);
    run_all(FAULT_IO, FAULT_LIST, EIO, false, 5);
}

static void test_each_read(void **state) {
    (void)state;
    run_all(FAULT_IO, FAULT_PREAD | FAULT_FSTAT, ENOMEM, false, 13);
    run_all(FAULT_IO, FAULT_PREAD, ENOMEM, true, 29);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_fault),
        cmocka_unit_test(test_each_allocation),
        cmocka_unit_test(test_all_allocations_from_one_on),
        cmocka_unit_test(test_each_write),
        cmocka_unit_test(test_each_sync),
        cmocka_unit_test(test_each_change_of_a_name),
        cmocka_unit_test(test_each_open),
        cmocka_unit_test(test_each_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
