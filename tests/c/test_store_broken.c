/* SPDX-License-Identifier: MPL-2.0 */
/* An invariant of the store turns out to be broken, each time another one that is looked at: that
 * store is closed, with a line in the log, and nothing else is. What it wrote before is sound. */
#include "dw_invariant.h"
#include "fault_io.h"
#include "store_fixture.h"
#include "store_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)

#ifdef DW_TESTS

struct world {
    struct fixture f;
    struct model model;
    struct collected collected;
    uint64_t random;
    uint64_t now;
    dw_checkpoint *checkpoint;
};

/* What the log says of it, as further lines may follow. */
static char said[1024];

static void keep_what_is_said(void *ctx, enum dw_level level, const char *message) {
    struct fixture *f = ctx;
    f->logged[level]++;
    if (level == DW_LOG_ERROR && strstr(message, "something that must hold does not: ") != NULL) {
        snprintf(said, sizeof said, "%s", message);
    }
}

static uint64_t pick(struct world *w, uint64_t below) {
    return model_random(&w->random) % below;
}

static int insert_some(struct world *w, bool keyed) {
    static const uint64_t scale[] = {50, 5000, 100000, 2000000, 30000000, 5000000000};
    struct model_new_record records[16];
    const size_t n = 1 + pick(w, 16);
    for (size_t i = 0; i < n; i++) {
        static const enum dw_on_key kinds[] = {DW_KEEP, DW_REPLACE, DW_DROP, DW_RELEASE};
        const enum dw_on_key on_key = keyed ? kinds[pick(w, 4)] : DW_KEEP;
        records[i] = (struct model_new_record){
            .when = pick(w, scale[pick(w, 6)]),
            .key_hash = keyed ? 1 + pick(w, 6) : pick(w, 6),
            .length = on_key == DW_RELEASE ? 0 : (uint32_t)(1 + pick(w, 200)),
            .on_key = on_key,
        };
    }
    return keyed ? model_insert_keyed(&w->model, w->f.store, w->now, records, n)
                 : model_insert(&w->model, w->f.store, w->now, records, n);
}

static int settle_some(struct world *w) {
    uint64_t ids[16];
    const size_t n = w->model.count > 0 ? 1 + pick(w, 16) : 0;
    for (size_t i = 0; i < n; i++) {
        ids[i] = w->model.records[pick(w, w->model.count)].id;
    }
    return model_settle(&w->model, w->f.store, ids, n);
}

static int reschedule_one(struct world *w) {
    if (w->model.count == 0) {
        return DW_OK;
    }
    const uint64_t id = w->model.records[pick(w, w->model.count)].id;
    return model_reschedule(&w->model, w->f.store, id, w->now + pick(w, 10000000));
}

static int postpone_one(struct world *w) {
    for (size_t i = 0; i < w->model.count; i++) {
        if (w->model.records[i].taken) {
            return model_postpone(&w->model, w->f.store, w->model.records[i].id,
                                  w->now + pick(w, 10000));
        }
    }
    return DW_OK;
}

static int read_one(struct world *w) {
    if (w->model.count == 0) {
        return DW_OK;
    }
    const struct dw_sink sink = collected_sink(&w->collected);
    return dw_store_read(w->f.store, w->model.records[pick(w, w->model.count)].id, &sink);
}

static int page_and_find(struct world *w) {
    struct dw_record records[10];
    uint32_t n;
    uint64_t ids[10], found;
    int result = dw_store_page(w->f.store, 0, 0, records, 10, &n);
    return result == DW_OK ? dw_store_find(w->f.store, 1, ids, 10, &found) : result;
}

static int maintain_some(struct world *w) {
    int result = DW_OK;
    bool more = true;
    for (unsigned i = 0; result == DW_OK && more && i < 3; i++) {
        result = dw_store_maintain(w->f.store, w->now, 1, &more);
    }
    return result;
}

static int checkpoint(struct world *w) {
    int result = dw_store_checkpoint(w->f.store, &w->checkpoint);
    if (result == DW_OK) {
        result = dw_checkpoint_finish(w->checkpoint, NULL);
    }
    dw_checkpoint_release(w->checkpoint);
    w->checkpoint = NULL;
    return result;
}

static int something(struct world *w) {
    switch (pick(w, 14)) {
    case 0:
    case 1:
    case 2:
        return insert_some(w, false);
    case 3:
        return insert_some(w, true);
    case 4:
    case 5:
        return settle_some(w);
    case 6:
        return reschedule_one(w);
    case 7:
        w->now += pick(w, 200000);
        return maintain_some(w);
    case 8:
        return checkpoint(w);
    case 9:
        return model_take(&w->model, w->f.store, w->now, 20, UINT64_MAX, &w->collected);
    case 10:
        return postpone_one(w);
    case 11:
        return model_untake(&w->model, w->f.store);
    case 12:
        return pick(w, 2) == 0 ? read_one(w) : page_and_find(w);
    default:
        return pick(w, 10) == 0 ? model_purge(&w->model, w->f.store) : dw_store_flush(w->f.store);
    }
}

static void assert_all_refused(struct world *w) {
    dw_store *store = w->f.store;
    struct dw_inserted inserted;
    struct dw_keyed keyed;
    struct dw_stat stat;
    struct dw_record record;
    dw_checkpoint *none;
    const struct dw_sink sink = collected_sink(&w->collected);
    uint64_t n, bytes, id = 1 << 16;
    const struct dw_id_due released = {id, NOW};
    uint32_t few;
    bool more;
    uint8_t batch[25] = {1};
    const uint64_t index = w->model.index + 100;
    assert_int_equal(dw_store_insert(store, index, NOW, batch, 25, &inserted), DW_EBROKEN);
    assert_int_equal(dw_store_insert_keyed(store, index, NOW, batch, 25, DW_KEYED_1, &keyed),
                     DW_EBROKEN);
    assert_int_equal(dw_store_settle(store, index, &id, 1, &n), DW_EBROKEN);
    assert_int_equal(dw_store_settle_due(store, index, &released, 1, &n), DW_EBROKEN);
    assert_int_equal(dw_store_settle_due_by(store, index, &released, 1, &n), DW_EBROKEN);
    assert_int_equal(dw_store_purge(store, index, &n, &bytes), DW_EBROKEN);
    assert_int_equal(dw_store_reschedule(store, index, id, NOW), DW_EBROKEN);
    assert_int_equal(dw_store_flush(store), DW_EBROKEN);
    assert_int_equal(dw_store_maintain(store, NOW, 1, &more), DW_EBROKEN);
    assert_int_equal(dw_store_checkpoint(store, &none), DW_EBROKEN);
    assert_int_equal(dw_store_take(store, NOW, 1, 1, &sink, &n), DW_EBROKEN);
    assert_int_equal(dw_store_postpone(store, id, NOW), DW_EBROKEN);
    assert_int_equal(dw_store_untake(store), DW_EBROKEN);
    assert_int_equal(dw_store_read(store, id, &sink), DW_EBROKEN);
    assert_int_equal(dw_store_read_many(store, &id, 1, 1, &sink, &few), DW_EBROKEN);
    assert_int_equal(dw_store_page(store, 0, 0, &record, 1, &few), DW_EBROKEN);
    assert_int_equal(dw_store_find(store, 1, &id, 1, &n), DW_EBROKEN);
    assert_int_equal(dw_store_count(store, 0, NOW, &n, &bytes), DW_EBROKEN);
    assert_int_equal(dw_store_stat(store, &stat), DW_EBROKEN);
    assert_int_equal(dw_store_next_due(store), DW_NEVER);
}

/* Counts no further; answers how many are left until one is broken, 0: none will be. */
static unsigned long pause_breaking(unsigned long n) {
    const unsigned long seen = dw_invariants_seen();
    dw_invariant_break(0);
    return n > seen ? n - seen : 0;
}

/* False: nothing was broken, as there are not so many that are looked at. */
static bool break_one(unsigned long n, dw_store *other) {
    struct world w = {.random = 88172645463325252u, .now = NOW, .model.may_break = true};
    bool opened;
    fixture_init(&w.f);
    w.f.config.split_bytes = 1000;
    w.f.config.partition_bytes = 3000;
    w.f.config.log = keep_what_is_said;
    said[0] = '\0';
    int result = DW_OK;
    dw_invariant_break(n);
    for (unsigned turn = 0; result == DW_OK && turn < 6; turn++) {
        result = fixture_try_open(&w.f);
        opened = result == DW_OK;
        /* What is left unsaid would be taken for another store's, by this thread's next call. */
        assert_null(dw_broken_note());
        if (opened) {
            /* Replaying is not the model's, as it must be able to fail. */
            n = pause_breaking(n);
            model_replay(&w.model, w.f.store, 0);
            dw_invariant_break(n);
        }
        for (unsigned i = 0; result == DW_OK && i < 40; i++) {
            result = something(&w);
            result = result == DW_ENOENT ? DW_OK : result;
            assert_null(dw_broken_note());
        }
        if (result == DW_OK) {
            n = pause_breaking(n);
            fixture_close(&w.f);
            dw_invariant_break(n);
        }
    }
    const bool broken = result == DW_EBROKEN;
    if (broken) {
        const unsigned logged = w.f.logged[DW_LOG_ERROR];
        assert_int_equal(strncmp(said, w.f.dir, strlen(w.f.dir)), 0);
        if (w.f.store != NULL) {
            assert_all_refused(&w);
            assert_int_equal(w.f.logged[DW_LOG_ERROR], logged);
        }
    } else {
        assert_int_equal(result, DW_OK);
    }
    fixture_close(&w.f);
    dw_invariant_break(0);
    assert_null(dw_broken_note());

    /* Another store of the same thread is none the wiser, and this one is as it should be. */
    uint64_t count, bytes;
    assert_int_equal(dw_store_count(other, 0, DW_DUE_MAX, &count, &bytes), DW_OK);
    assert_int_equal(count, 1);
    w.model.may_break = false;
    fixture_open(&w.f);
    assert_int_equal(w.f.report.corrupt_records, 0);
    assert_int_equal(w.f.report.rebuilt_indexes, 0);
    model_replay(&w.model, w.f.store, 0);
    model_compare(&w.model, w.f.store, true);
    fixture_end(&w.f);
    model_free(&w.model);
    collected_free(&w.collected);
    return broken;
}

static void test_each_invariant(void **state) {
    (void)state;
    struct fixture other;
    struct model model = {0};
    const struct model_new_record record = {.when = 1, .length = 1};
    fixture_init(&other);
    fixture_open(&other);
    assert_int_equal(model_insert(&model, other.store, NOW, &record, 1), DW_OK);
    alarm(1200); /* something that goes round in circles */
    unsigned long n = 1, broken = 0;
    while (break_one(n, other.store)) {
        broken++;
        n += n < 120 ? 1 : 1 + n / fixture_rounds(40);
    }
    print_message("%lu of %lu\n", broken, n);
    assert_true(broken > 100);
    alarm(0);
    fixture_end(&other);
    model_free(&model);
}

#else

static void test_each_invariant(void **state) {
    (void)state;
    skip(); /* the seam is in the other flavours */
}

#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_invariant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
