/* SPDX-License-Identifier: MPL-2.0 */
/* Many stores, one budget of file descriptors: no more are open than it allows, idle stores hold
 * none, one store makes room for another, and each holds what it should. */
#include "dw_store_internal.h"
#include "store_fixture.h"
#include "store_model.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define NOW UINT64_C(1700000000000)

enum { STORES = 40, LIMIT = 16, THREADS = 4, ROUNDS = 30 };

struct one {
    struct fixture f;
    struct model model;
    struct collected collected;
    char snapshot[128];
};

struct world {
    dw_budget *budget;
    struct one stores[STORES];
};

static struct dw_budget_use use_of(struct world *w) {
    struct dw_budget_use use;
    dw_budget_use(w->budget, &use);
    return use;
}

static struct dw_stat stat_of(struct one *one) {
    struct dw_stat stat;
    assert_int_equal(dw_store_stat(one->f.store, &stat), DW_OK);
    return stat;
}

static int setup(void **state) {
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->budget = dw_budget_new(&dw_alloc_libc, LIMIT);
    assert_non_null(w->budget);
    for (unsigned i = 0; i < STORES; i++) {
        struct one *one = &w->stores[i];
        fixture_init(&one->f);
        one->f.config.budget = w->budget;
        one->f.config.io = &dw_io_posix;
        snprintf(one->snapshot, sizeof one->snapshot, "%s/snapshot", one->f.base);
        fixture_open(&one->f);
    }
    *state = w;
    return 0;
}

static int teardown(void **state) {
    struct world *w = *state;
    for (unsigned i = 0; i < STORES; i++) {
        fixture_end(&w->stores[i].f);
        model_free(&w->stores[i].model);
        collected_free(&w->stores[i].collected);
    }
    assert_int_equal(use_of(w).open, 0);
    assert_int_equal(use_of(w).failing, 0);
    dw_budget_drop(w->budget);
    free(w);
    return 0;
}

static void insert_n(struct one *one, size_t n, uint64_t delay, uint64_t step) {
    struct model_new_record records[64];
    assert_true(n <= 64);
    for (size_t i = 0; i < n; i++) {
        records[i] = (struct model_new_record){.when = delay + i * step, .length = 100};
    }
    assert_int_equal(model_insert(&one->model, one->f.store, NOW, records, n), DW_OK);
}

static void maintain_n(struct one *one, unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        bool more;
        assert_int_equal(dw_store_maintain(one->f.store, NOW, 1, &more), DW_OK);
    }
}

static void test_one_budget(void **state) {
    struct world *w = *state;
    uint32_t most = 0;
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < STORES; i++) {
            insert_n(&w->stores[i], 8, 1000, 10000000);
            assert_int_equal(dw_store_flush(w->stores[i].f.store), DW_OK);
            most = use_of(w).open > most ? use_of(w).open : most;
            assert_true(use_of(w).open <= LIMIT);
        }
        for (unsigned i = 0; i < STORES; i++) {
            assert_int_equal(fixture_checkpoint(&w->stores[i].f, w->stores[i].snapshot), DW_OK);
            remove_dir(w->stores[i].snapshot);
            assert_true(use_of(w).open <= LIMIT);
        }
        for (unsigned i = 0; i < STORES; i++) {
            model_compare(&w->stores[i].model, w->stores[i].f.store, true);
            assert_true(use_of(w).open <= LIMIT);
        }
    }
    assert_int_equal(most, LIMIT);
}

/* What others have open counts, and is refused where the stores need what is left. */
static void test_borrowed(void **state) {
    struct world *w = *state;
    for (unsigned i = 0; i < STORES; i++) {
        insert_n(&w->stores[i], 8, 1000, 10000000);
        assert_int_equal(dw_store_flush(w->stores[i].f.store), DW_OK);
    }
    assert_int_equal(use_of(w).open, LIMIT);
    for (unsigned i = 0; i < LIMIT; i++) {
        assert_true(dw_budget_borrow(w->budget));
        assert_int_equal(use_of(w).open, LIMIT);
    }
    assert_false(dw_budget_borrow(w->budget));
    assert_int_equal(use_of(w).open, LIMIT);
    /* The stores go on beside that. */
    insert_n(&w->stores[0], 8, 1000, 10000000);
    assert_int_equal(dw_store_flush(w->stores[0].f.store), DW_OK);
    model_compare(&w->stores[0].model, w->stores[0].f.store, true);
    dw_budget_give_back(w->budget);
    assert_true(dw_budget_borrow(w->budget));
    assert_int_equal(use_of(w).open, LIMIT);
    for (unsigned i = 0; i < LIMIT; i++) {
        dw_budget_give_back(w->budget);
    }
    assert_int_equal(use_of(w).open, 0);
}

static void test_idle_stores_hold_none(void **state) {
    struct world *w = *state;
    for (unsigned i = 0; i < STORES; i++) {
        insert_n(&w->stores[i], 8, 1000000, 10000000);
        assert_int_equal(fixture_checkpoint(&w->stores[i].f, NULL), DW_OK);
    }
    for (unsigned i = 0; i < STORES; i++) {
        maintain_n(&w->stores[i], 70);
        assert_int_equal(stat_of(&w->stores[i]).open_files, 0);
    }
    assert_int_equal(use_of(w).open, 0);
    model_compare(&w->stores[7].model, w->stores[7].f.store, true);
}

/* Somebody else in the process takes every descriptor that there is: stores that are open go on
 * with what they have. */
static void test_the_system_has_no_more(void **state) {
    struct world *w = *state;
    struct rlimit before, low;
    for (unsigned i = 0; i < STORES; i++) {
        insert_n(&w->stores[i], 8, 1000, 10000000);
        assert_int_equal(dw_store_flush(w->stores[i].f.store), DW_OK);
    }
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    const int lowest = dup(0);
    assert_true(lowest >= 0);
    close(lowest);
    low = before;
    low.rlim_cur = (rlim_t)lowest + 1;
    int taken[64];
    unsigned n = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    while (n < 64 && (taken[n] = dup(0)) >= 0) {
        n++;
    }
    assert_true(n < 64 && errno == EMFILE);
    for (unsigned i = 0; i < STORES; i++) {
        struct one *one = &w->stores[i];
        insert_n(one, 8, 1000, 10000000);
        assert_int_equal(dw_store_flush(one->f.store), DW_OK);
        assert_int_equal(fixture_checkpoint(&one->f, NULL), DW_OK);
        model_compare(&one->model, one->f.store, true);
    }
    while (n > 0) {
        close(taken[--n]);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* Another directory in the place of a store's: nothing of it is touched. */
static void test_a_directory_is_replaced(void **state) {
    struct world *w = *state;
    struct one *one = &w->stores[0];
    char aside[sizeof one->f.dir + 8];
    insert_n(one, 8, 1000000, 10000000);
    maintain_n(one, 70);
    snprintf(aside, sizeof aside, "%s.aside", one->f.dir);
    assert_int_equal(rename(one->f.dir, aside), 0);
    assert_int_equal(dw_store_flush(one->f.store), DW_EIO);
    assert_int_equal(dw_store_errno(), ENOENT);
    assert_int_equal(mkdir(one->f.dir, 0700), 0);
    assert_int_equal(dw_store_flush(one->f.store), DW_EIO);
    assert_int_equal(dw_store_errno(), ESTALE);
    assert_int_equal(count_files(one->f.dir, ""), 0);
    assert_int_equal(rmdir(one->f.dir), 0);
    assert_int_equal(rename(aside, one->f.dir), 0);
    assert_int_equal(dw_store_flush(one->f.store), DW_OK);
    assert_int_equal(fixture_checkpoint(&one->f, NULL), DW_OK);
    fixture_close(&one->f);
    fixture_open(&one->f);
    model_compare(&one->model, one->f.store, true);
}

struct thread {
    struct world *w;
    unsigned number;
    unsigned wrong;
};

/* Its own stores, used in every way at once with those of the others. */
static void *use_stores(void *arg) {
    struct thread *thread = arg;
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = thread->number; i < STORES; i += THREADS) {
            struct one *one = &thread->w->stores[i];
            struct model_new_record record = {.when = 1000 + round * 10000000, .length = 50};
            size_t bytes;
            struct dw_inserted inserted;
            bool more;
            const uint64_t index = ++one->model.index;
            uint8_t *batch = model_batch(index, &record, 1, &bytes);
            thread->wrong +=
                dw_store_insert(one->f.store, index, NOW, batch, bytes, &inserted) != DW_OK;
            free(batch);
            thread->wrong += dw_store_flush(one->f.store) != DW_OK;
            for (unsigned n = 0; n < 70 && round % 10 == 0; n++) {
                thread->wrong += dw_store_maintain(one->f.store, NOW, 1, &more) != DW_OK;
            }
            if ((round + i) % 5 == 0) {
                dw_checkpoint *checkpoint;
                int result = dw_store_checkpoint(one->f.store, &checkpoint);
                thread->wrong += result != DW_OK;
                thread->wrong += result == DW_OK && dw_checkpoint_finish(checkpoint, NULL) != DW_OK;
                dw_checkpoint_release(checkpoint);
            }
            if ((round + i) % 11 == 0) {
                dw_store_close(one->f.store);
                dw_store_release(one->f.store);
                one->f.store = NULL;
                struct dw_recovery report;
                if (dw_store_open(one->f.dir, &one->f.config, &one->f.store, &report) != DW_OK) {
                    thread->wrong++;
                    return NULL;
                }
            }
        }
    }
    return NULL;
}

static void test_many_threads(void **state) {
    struct world *w = *state;
    pthread_t ids[THREADS];
    struct thread threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        threads[i] = (struct thread){.w = w, .number = i};
        assert_int_equal(pthread_create(&ids[i], NULL, use_stores, &threads[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(ids[i], NULL), 0);
        assert_int_equal(threads[i].wrong, 0);
    }
    /* Each thread has at most three pinned beyond the limit. */
    assert_true(use_of(w).open <= LIMIT + 3 * THREADS);
    for (unsigned i = 0; i < STORES; i++) {
        assert_null(dw_store_check(w->stores[i].f.store));
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_one_budget),
        TEST(test_borrowed),
        TEST(test_idle_stores_hold_none),
        TEST(test_the_system_has_no_more),
        TEST(test_a_directory_is_replaced),
        TEST(test_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
