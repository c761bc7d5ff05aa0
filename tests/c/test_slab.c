/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_slab.h"

#include "fault_alloc.h"
#include "rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void a_fresh_entry_is_blank(void **state) {
    (void)state;
    dw_slab *slab = dw_slab_new(&dw_alloc_libc);
    for (unsigned round = 0; round < 2; round++) {
        uint32_t k = dw_slab_get(slab);
        struct dw_entry *e = dw_slab_at(slab, k);
        assert_int_equal(e->state, DW_WAITING);
        assert_true(e->due == 0 && e->part == 0 && e->id == 0 && e->key_hash == 0);
        assert_true(e->off == 0 && e->len == 0);
        *e = (struct dw_entry){.due = DW_DUE_MAX,
                               .part = DW_PART_MAX,
                               .state = DW_TAKEN,
                               .id = UINT64_MAX,
                               .key_hash = UINT64_MAX,
                               .off = UINT32_MAX,
                               .len = UINT32_MAX};
        assert_true(e->due == DW_DUE_MAX && e->part == DW_PART_MAX && e->state == DW_TAKEN);
        dw_slab_put(slab, k);
        assert_int_equal(e->state, DW_FREE);
    }
    dw_slab_free(slab);
}

static void the_last_freed_is_reused_first(void **state) {
    (void)state;
    dw_slab *slab = dw_slab_new(&dw_alloc_libc);
    uint32_t a = dw_slab_get(slab), b = dw_slab_get(slab), c = dw_slab_get(slab);
    assert_true(a != b && b != c && a != c);
    dw_slab_put(slab, a);
    dw_slab_put(slab, c);
    assert_int_equal(dw_slab_used(slab), 1);
    assert_int_equal(dw_slab_get(slab), c);
    assert_int_equal(dw_slab_get(slab), a);
    assert_int_equal(dw_slab_limit(slab), 3);
    assert_int_equal(dw_slab_used(slab), 3);
    dw_slab_free(slab);
}

/* Over the boundaries of pieces and segments addresses stay, and no entry overlaps another. */
static void entries_stay_where_they_are(void **state) {
    (void)state;
    const uint32_t n = (uint32_t)rng_size(20 * 65536, 3 * 65536) + 7;
    dw_slab *slab = dw_slab_new(&dw_alloc_libc);
    struct dw_entry **at = malloc(n * sizeof *at);
    assert_non_null(at);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = dw_slab_get(slab);
        assert_int_equal(k, i);
        at[k] = dw_slab_at(slab, k);
        *at[k] = (struct dw_entry){
            .due = k, .state = DW_WAITING, .id = k, .key_hash = ~(uint64_t)k, .off = k, .len = ~k};
    }
    for (uint32_t k = 0; k < n; k++) {
        assert_ptr_equal(dw_slab_at(slab, k), at[k]);
        assert_true(at[k]->due == k && at[k]->id == k && at[k]->key_hash == ~(uint64_t)k);
        assert_true(at[k]->off == k && at[k]->len == ~k);
    }
    assert_in_range(dw_slab_bytes(slab), 32 * (uint64_t)n, 32 * (uint64_t)n + (5 << 19));
    free(at);
    dw_slab_free(slab);
}

static void behaves_as_the_model(void **state) {
    (void)state;
    const uint32_t max = 5000;
    uint64_t first = rng_first(), rounds = rng_rounds(20);
    for (uint64_t seed = first; seed < first + rounds; seed++) {
        struct rng rng = rng_of(seed);
        dw_slab *slab = dw_slab_new(&dw_alloc_libc);
        uint32_t held[5000], n = 0, most = 0;
        for (unsigned step = 0; step < 10000; step++) {
            if (n < max && rng_percent(&rng, 40 + (unsigned)(seed % 20))) {
                held[n] = dw_slab_get(slab);
                dw_slab_at(slab, held[n])->id = seed + held[n];
                n++;
            } else if (n > 0) {
                uint32_t i = (uint32_t)rng_below(&rng, n);
                if (dw_slab_at(slab, held[i])->id != seed + held[i])
                    fail_msg("DW_TEST_SEED=%llu: an entry was overwritten",
                             (unsigned long long)seed);
                dw_slab_put(slab, held[i]);
                held[i] = held[--n];
            }
            most = n > most ? n : most;
            if (dw_slab_used(slab) != n || dw_slab_limit(slab) != most)
                fail_msg("DW_TEST_SEED=%llu: wrong count", (unsigned long long)seed);
        }
        dw_slab_free(slab);
    }
}

static void starts_small(void **state) {
    (void)state;
    dw_slab *slab = dw_slab_new(&dw_alloc_libc);
    assert_in_range(dw_slab_bytes(slab), 1, 2000);
    dw_slab_get(slab);
    assert_in_range(dw_slab_bytes(slab), 32, 40000);
    dw_slab_free(slab);
}

static void without_memory_nothing_changes(void **state) {
    (void)state;
    struct fault_alloc memory;
    const uint32_t n = 3 * 65536;
    fault_alloc_init(&memory);
    fault_alloc_fail(&memory, 1, false);
    assert_null(dw_slab_new(&memory.alloc));
    for (uint64_t nth = 2;; nth++) {
        fault_alloc_fail(&memory, nth, false);
        memory.failed = 0;
        dw_slab *slab = dw_slab_new(&memory.alloc);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t used = dw_slab_used(slab), k = dw_slab_get(slab);
            if (k == DW_NIL) {
                assert_int_equal(dw_slab_used(slab), used);
                assert_int_equal(dw_slab_limit(slab), used);
                k = dw_slab_get(slab);
            }
            assert_int_equal(k, i);
        }
        assert_int_equal(dw_slab_bytes(slab), memory.bytes);
        dw_slab_free(slab);
        fault_alloc_check_released(&memory);
        if (memory.failed == 0)
            break;
    }
    dw_slab_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fresh_entry_is_blank),
        cmocka_unit_test(the_last_freed_is_reused_first),
        cmocka_unit_test(entries_stay_where_they_are),
        cmocka_unit_test(behaves_as_the_model),
        cmocka_unit_test(starts_small),
        cmocka_unit_test(without_memory_nothing_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
