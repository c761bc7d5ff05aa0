/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_heap.h"

#include "fault_alloc.h"
#include "rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct fixture {
    struct fault_alloc memory;
    dw_slab *slab;
    dw_heap *heap;
};

static void begin(struct fixture *f) {
    fault_alloc_init(&f->memory);
    f->slab = dw_slab_new(&dw_alloc_libc);
    f->heap = dw_heap_new(&f->memory.alloc, f->slab);
    assert_non_null(f->slab);
    assert_non_null(f->heap);
}

static void end(struct fixture *f) {
    assert_int_equal(f->memory.bytes, dw_heap_bytes(f->heap));
    dw_heap_free(f->heap);
    dw_slab_free(f->slab);
    fault_alloc_check_released(&f->memory);
}

static void check(const struct fixture *f) {
    const char *wrong = dw_heap_check(f->heap);
    if (wrong != NULL)
        fail_msg("dw_heap_check: %s", wrong);
}

static uint32_t entry(struct fixture *f, uint64_t due, uint64_t id) {
    uint32_t k = dw_slab_get(f->slab);
    dw_slab_at(f->slab, k)->due = due & DW_DUE_MAX;
    dw_slab_at(f->slab, k)->id = id;
    return k;
}

static uint32_t push(struct fixture *f, uint64_t due, uint64_t id) {
    uint32_t k = entry(f, due, id);
    assert_int_equal(dw_heap_push(f->heap, k), DW_OK);
    assert_int_equal(dw_slab_at(f->slab, k)->state, DW_LATE);
    return k;
}

static uint32_t pop(struct fixture *f) {
    uint32_t k = dw_heap_top(f->heap);
    if (k == DW_NIL)
        return DW_NIL;
    dw_heap_pop(f->heap);
    assert_int_equal(dw_slab_at(f->slab, k)->state, DW_TAKEN);
    dw_slab_put(f->slab, k);
    return k;
}

static void by_due_then_id(void **state) {
    (void)state;
    struct fixture f;
    begin(&f);
    assert_int_equal(dw_heap_top(f.heap), DW_NIL);
    uint32_t d = push(&f, 20, 1), c = push(&f, 10, 9), a = push(&f, 10, 7), b = push(&f, 10, 8);
    uint32_t e = push(&f, DW_DUE_MAX, 0);
    assert_int_equal(dw_heap_count(f.heap), 5);
    check(&f);
    const uint32_t order[] = {a, b, c, d, e, DW_NIL};
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(pop(&f), order[i]);
    assert_int_equal(dw_heap_count(f.heap), 0);
    end(&f);
}

static void the_cancelled_do_not_come_out(void **state) {
    (void)state;
    struct fixture f;
    begin(&f);
    uint32_t a = push(&f, 1, 1), b = push(&f, 2, 2), c = push(&f, 3, 3);
    dw_heap_cancel(f.heap, b);
    assert_int_equal(dw_heap_count(f.heap), 2);
    assert_int_equal(dw_heap_top(f.heap), a);
    dw_heap_cancel(f.heap, a);
    assert_int_equal(pop(&f), c);
    assert_int_equal(pop(&f), DW_NIL);
    assert_int_equal(dw_slab_used(f.slab), 0);
    check(&f);
    end(&f);
}

#define MODEL_MAX 2000u

static uint32_t model_least(const struct fixture *f, const uint32_t *held, uint32_t n) {
    uint32_t least = 0;
    for (uint32_t i = 1; i < n; i++) {
        const struct dw_entry *x = dw_slab_at(f->slab, held[i]);
        const struct dw_entry *y = dw_slab_at(f->slab, held[least]);
        if (x->due < y->due || (x->due == y->due && x->id < y->id))
            least = i;
    }
    return least;
}

static void model_round(uint64_t seed) {
    struct fixture f;
    struct rng rng = rng_of(seed);
    uint32_t held[MODEL_MAX], n = 0;
    begin(&f);
    unsigned pushes = 30 + (unsigned)(seed % 40), cancels = (unsigned)rng_below(&rng, 60);
    uint64_t range = 1 + rng_bits(&rng, 40);
    for (uint64_t step = 0; step < 3000 || n > 0; step++) {
        if (step < 3000 && n < MODEL_MAX && rng_percent(&rng, pushes)) {
            held[n++] = push(&f, rng_below(&rng, range), rng_next(&rng));
        } else if (n > 0) {
            uint32_t least = model_least(&f, held, n), i = least;
            if (dw_heap_top(f.heap) != held[least])
                fail_msg("DW_TEST_SEED=%llu: wrong top", (unsigned long long)seed);
            if (rng_percent(&rng, cancels)) {
                if (rng_percent(&rng, 70))
                    i = (uint32_t)rng_below(&rng, n);
                dw_heap_cancel(f.heap, held[i]);
            } else {
                assert_int_equal(pop(&f), held[least]);
            }
            held[i] = held[--n];
        }
        assert_int_equal(dw_heap_count(f.heap), n);
        if (step % 200 == 0)
            check(&f);
    }
    assert_int_equal(dw_heap_top(f.heap), DW_NIL);
    assert_int_equal(dw_slab_used(f.slab), 0);
    check(&f);
    end(&f);
}

static void behaves_as_the_model(void **state) {
    (void)state;
    uint64_t first = rng_first(), rounds = rng_rounds(60);
    for (uint64_t seed = first; seed < first + rounds; seed++)
        model_round(seed);
}

/* Over many segments; memory is given back as it empties. */
static void many(void **state) {
    (void)state;
    struct fixture f;
    struct rng rng = rng_of(3);
    const uint32_t n = (uint32_t)rng_size(100000, 10000);
    begin(&f);
    assert_in_range(dw_heap_bytes(f.heap), 1, 1000);
    for (uint32_t i = 0; i < n; i++)
        push(&f, rng_below(&rng, 1000), rng_next(&rng));
    check(&f);
    assert_in_range(dw_heap_bytes(f.heap), 4 * n, 4 * n + 40000);
    uint64_t due = 0, id = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct dw_entry *e = dw_slab_at(f.slab, dw_heap_top(f.heap));
        assert_true(e->due > due || (e->due == due && e->id >= id));
        due = e->due;
        id = e->id;
        pop(&f);
    }
    assert_in_range(dw_heap_bytes(f.heap), 1, 20000);
    end(&f);
}

/* Whatever is cancelled, the dead are few beside the live. */
static void the_dead_are_bounded(void **state) {
    (void)state;
    struct fixture f;
    struct rng rng = rng_of(8);
    const uint32_t live = 1000;
    begin(&f);
    for (uint32_t i = 0; i < live; i++)
        push(&f, 1 + rng_below(&rng, 1000), i);
    for (uint32_t i = 0; i < rng_size(50000, 5000); i++) {
        uint32_t k = push(&f, i % 2 == 0 ? 500 + rng_below(&rng, 1000) : 2000, i);
        dw_heap_cancel(f.heap, k);
        assert_int_equal(dw_heap_count(f.heap), live);
        assert_in_range(dw_slab_used(f.slab), live, 2 * live);
    }
    check(&f);
    end(&f);
}

static void without_memory_nothing_changes(void **state) {
    (void)state;
    struct fixture f;
    fault_alloc_init(&f.memory);
    fault_alloc_fail(&f.memory, 1, false);
    assert_null(dw_heap_new(&f.memory.alloc, NULL));
    dw_heap_free(NULL);
    uint64_t failures;
    for (uint64_t nth = 1;; nth++) {
        begin(&f);
        fault_alloc_fail(&f.memory, nth, false);
        failures = 0;
        for (uint32_t i = 0; i < 20000; i++) {
            uint32_t k = entry(&f, 20000 - i, i);
            int rc = dw_heap_push(f.heap, k);
            if (rc == DW_OK)
                continue;
            failures++;
            assert_int_equal(rc, DW_ENOMEM);
            assert_int_equal(dw_slab_at(f.slab, k)->state, DW_WAITING);
            assert_int_equal(dw_heap_count(f.heap), i);
            check(&f);
            assert_int_equal(dw_heap_push(f.heap, k), DW_OK);
        }
        assert_int_equal(failures, f.memory.failed);
        for (uint32_t i = 20000; i-- > 0;)
            assert_int_equal(pop(&f), i);
        end(&f);
        if (failures == 0)
            break;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_due_then_id),       cmocka_unit_test(the_cancelled_do_not_come_out),
        cmocka_unit_test(behaves_as_the_model), cmocka_unit_test(many),
        cmocka_unit_test(the_dead_are_bounded), cmocka_unit_test(without_memory_nothing_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
