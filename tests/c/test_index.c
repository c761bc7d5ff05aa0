/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_index.h"

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
    dw_index *index;
    enum dw_index_field field;
};

static void begin(struct fixture *f, enum dw_index_field field) {
    fault_alloc_init(&f->memory);
    f->field = field;
    f->slab = dw_slab_new(&dw_alloc_libc);
    f->index = dw_index_new(&f->memory.alloc, f->slab, field);
    assert_non_null(f->slab);
    assert_non_null(f->index);
}

static void end(struct fixture *f) {
    assert_int_equal(f->memory.bytes, dw_index_bytes(f->index));
    dw_index_free(f->index);
    dw_slab_free(f->slab);
    fault_alloc_check_released(&f->memory);
}

static void check(const struct fixture *f) {
    const char *wrong = dw_index_check(f->index);
    if (wrong != NULL)
        fail_msg("dw_index_check: %s", wrong);
}

static uint32_t entry(struct fixture *f, uint64_t value) {
    uint32_t k = dw_slab_get(f->slab);
    struct dw_entry *e = dw_slab_at(f->slab, k);
    e->id = f->field == DW_BY_ID ? value : ~value;
    e->key_hash = f->field == DW_BY_KEY ? value : ~value;
    return k;
}

static uint32_t put(struct fixture *f, uint64_t value) {
    uint32_t k = entry(f, value);
    assert_int_equal(dw_index_put(f->index, k), DW_OK);
    return k;
}

static void del(struct fixture *f, uint32_t k) {
    dw_index_del(f->index, k);
    dw_slab_put(f->slab, k);
}

static int compare_numbers(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Raft indexes one after the other, with 64 positions each. */
static uint64_t nth_id(uint64_t n) {
    return n / 64 << 16 | n % 64;
}

static void finds_by_id(void **state) {
    (void)state;
    struct fixture f;
    const uint32_t n = (uint32_t)rng_size(100000, 5000);
    begin(&f, DW_BY_ID);
    assert_int_equal(dw_index_find(f.index, 0), DW_NIL);
    for (uint32_t i = 0; i < n; i++)
        put(&f, nth_id(i));
    assert_int_equal(dw_index_count(f.index), n);
    check(&f);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(dw_index_find(f.index, nth_id(i)), i);
    for (uint32_t i = n; i < 2 * n; i++)
        assert_int_equal(dw_index_find(f.index, nth_id(i)), DW_NIL);
    for (uint32_t i = 0; i < n; i += 2)
        del(&f, i);
    check(&f);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(dw_index_find(f.index, nth_id(i)), i % 2 == 0 ? DW_NIL : i);
    for (uint32_t i = 1; i < n; i += 2)
        del(&f, i);
    assert_int_equal(dw_index_count(f.index), 0);
    check(&f);
    end(&f);
}

/* At every size, but for a segment not yet full; and it shrinks again. */
static void bytes_an_entry(void **state) {
    (void)state;
    struct fixture f;
    const uint32_t n = (uint32_t)rng_size(300000, 20000);
    begin(&f, DW_BY_ID);
    assert_in_range(dw_index_bytes(f.index), 1, 2000);
    for (uint32_t i = 0; i < n; i++) {
        put(&f, nth_id(i));
        if (i % 1000 == 0)
            assert_in_range(dw_index_bytes(f.index), i * 6, i * 15 / 2 + 70000);
    }
    size_t most = dw_index_bytes(f.index);
    for (uint32_t i = 0; i < n - 100; i++)
        del(&f, i);
    assert_in_range(dw_index_bytes(f.index), 1, most / 4 + 150000);
    check(&f);
    end(&f);
}

static void all_with_a_key(void **state) {
    (void)state;
    struct fixture f;
    uint32_t out[10];
    begin(&f, DW_BY_KEY);
    put(&f, 4);
    uint32_t a = put(&f, 5), b = put(&f, 5), c = put(&f, 5);
    put(&f, 6);
    assert_int_equal(dw_index_all(f.index, 5, NULL, 0), 3);
    out[2] = DW_NIL;
    assert_int_equal(dw_index_all(f.index, 5, out, 2), 3);
    assert_true(out[0] != out[1] && out[2] == DW_NIL);
    assert_int_equal(dw_index_all(f.index, 5, out, 10), 3);
    qsort(out, 3, sizeof *out, compare_numbers);
    assert_true(out[0] == a && out[1] == b && out[2] == c);
    del(&f, b);
    assert_int_equal(dw_index_all(f.index, 5, out, 10), 2);
    qsort(out, 2, sizeof *out, compare_numbers);
    assert_true(out[0] == a && out[1] == c);
    assert_int_equal(dw_index_all(f.index, 7, out, 10), 0);
    assert_int_equal(dw_index_find(f.index, 7), DW_NIL);
    check(&f);
    end(&f);
}

/* In one chain this would take minutes. */
static void many_with_one_key(void **state) {
    (void)state;
    struct fixture f;
    struct rng rng = rng_of(2);
    const uint32_t n = (uint32_t)rng_size(200000, 10000);
    uint32_t *out = malloc(n * sizeof *out);
    assert_non_null(out);
    begin(&f, DW_BY_KEY);
    for (uint32_t i = 0; i < n; i++)
        put(&f, i % 4 == 0 ? i : 77);
    check(&f);
    const uint32_t alike = n / 4 * 3;
    assert_in_range(dw_index_bytes(f.index), n, n * 8 + 70000);
    assert_int_equal(dw_index_all(f.index, 77, out, n), alike);
    qsort(out, alike, sizeof *out, compare_numbers);
    for (uint32_t i = 0; i < alike; i++)
        assert_int_equal(out[i], i / 3 * 4 + i % 3 + 1);

    /* Found and deleted one after the other, or some at random. */
    for (uint32_t i = 0; i < alike / 3; i++) {
        uint32_t k = dw_index_find(f.index, 77);
        assert_int_equal(dw_slab_at(f.slab, k)->key_hash, 77);
        del(&f, k);
    }
    uint64_t left = dw_index_all(f.index, 77, out, n);
    assert_int_equal(left, alike - alike / 3);
    check(&f);
    for (; left > 5; left--) {
        uint64_t i = rng_below(&rng, left);
        del(&f, out[i]);
        out[i] = out[left - 1];
    }
    check(&f);
    assert_int_equal(dw_index_all(f.index, 77, NULL, 0), 5);
    for (; left > 0; left--)
        del(&f, out[left - 1]);
    assert_int_equal(dw_index_find(f.index, 77), DW_NIL);
    assert_int_equal(dw_index_count(f.index), n / 4);
    check(&f);
    free(out);
    end(&f);
}

/* An index that is freed with such keys in it leaks nothing; nor do those that come and go. */
static void keys_that_come_and_go(void **state) {
    (void)state;
    struct fixture f;
    size_t most = 0;
    begin(&f, DW_BY_KEY);
    for (uint64_t key = 0; key < 300; key++) {
        for (uint32_t i = 0; i < 200; i++)
            put(&f, key);
        for (uint32_t k; key >= 3 && (k = dw_index_find(f.index, key - 3)) != DW_NIL;)
            del(&f, k);
        if (key == 20)
            most = dw_index_bytes(f.index);
        if (key > 20)
            assert_in_range(dw_index_bytes(f.index), 1, 2 * most);
    }
    assert_int_equal(dw_index_count(f.index), 600);
    check(&f);
    end(&f);
}

/* ---- against a model: the numbers that are in it */

#define MODEL_MAX 4000u

struct model {
    struct fixture f;
    uint64_t seed;
    uint32_t n;
    uint32_t held[MODEL_MAX];
};

#define CHECK(m, condition)                                                                        \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("DW_TEST_SEED=%llu: %s", (unsigned long long)(m)->seed, #condition);          \
    } while (0)

static void model_compare(struct model *m, uint64_t value) {
    static uint32_t out[MODEL_MAX], expected[MODEL_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n; i++)
        if (dw_slab_at(m->f.slab, m->held[i])->key_hash == value)
            expected[n++] = m->held[i];
    CHECK(m, dw_index_all(m->f.index, value, out, MODEL_MAX) == n);
    qsort(out, n, sizeof *out, compare_numbers);
    qsort(expected, n, sizeof *expected, compare_numbers);
    CHECK(m, memcmp(out, expected, n * sizeof *out) == 0);
    uint32_t k = dw_index_find(m->f.index, value);
    CHECK(m, n == 0 ? k == DW_NIL : k != DW_NIL && dw_slab_at(m->f.slab, k)->key_hash == value);
}

/* `bad_memory` per cent of the allocations fail. */
static void model_round(struct model *m, uint64_t seed, unsigned bad_memory) {
    struct rng rng = rng_of(seed);
    m->seed = seed;
    m->n = 0;
    begin(&m->f, DW_BY_KEY);
    uint64_t values = 1 + rng_bits(&rng, 14);
    unsigned puts = 50;
    for (unsigned step = 0; step < 6000; step++) {
        if (step % 1000 == 0)
            puts = 10 + (unsigned)rng_below(&rng, 80);
        if (bad_memory > 0)
            fault_alloc_fail(&m->f.memory, rng_percent(&rng, bad_memory), false);
        if (m->n < MODEL_MAX && rng_percent(&rng, puts)) {
            /* Half of them share a few keys. */
            uint64_t value = rng_below(&rng, rng_percent(&rng, 50) ? 1 + values / 1000 : values);
            uint32_t k = entry(&m->f, value);
            int rc = dw_index_put(m->f.index, k);
            CHECK(m, rc == DW_OK || (rc == DW_ENOMEM && m->f.memory.failed > 0));
            if (rc == DW_OK)
                m->held[m->n++] = k;
            else
                dw_slab_put(m->f.slab, k);
        } else if (m->n > 0) {
            uint32_t i = (uint32_t)rng_below(&rng, m->n);
            del(&m->f, m->held[i]);
            m->held[i] = m->held[--m->n];
        }
        CHECK(m, dw_index_count(m->f.index) == m->n);
        if (step % 100 == 0) {
            const char *wrong = dw_index_check(m->f.index);
            if (wrong != NULL)
                fail_msg("DW_TEST_SEED=%llu: %s", (unsigned long long)seed, wrong);
            model_compare(m, rng_below(&rng, 1 + values / 1000));
            model_compare(m, rng_below(&rng, values));
        }
    }
    fault_alloc_fail(&m->f.memory, 0, false);
    while (m->n > 0)
        del(&m->f, m->held[--m->n]);
    check(&m->f);
    end(&m->f);
}

static void behaves_as_the_model(void **state) {
    (void)state;
    static struct model m;
    uint64_t first = rng_first(), rounds = rng_rounds(40);
    for (uint64_t seed = first; seed < first + rounds; seed++) {
        model_round(&m, seed, 0);
        model_round(&m, seed, 30);
    }
}

/* ---- without memory */

/* The n-th allocation fails, or all from the n-th on: each put is done or did nothing, and all that
 * were done are found. */
static bool without_memory(enum dw_index_field field, uint64_t nth, bool on) {
    struct fixture f;
    const uint32_t n = 4000;
    bool in[4000];
    uint32_t count = 0;
    begin(&f, field);
    fault_alloc_fail(&f.memory, nth, on);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = entry(&f, field == DW_BY_KEY && i % 2 == 0 ? i % 32 : 1000 + i);
        int rc = dw_index_put(f.index, k);
        assert_true(rc == DW_OK || (rc == DW_ENOMEM && f.memory.failed > 0));
        in[k] = rc == DW_OK;
        count += in[k];
        assert_int_equal(dw_index_count(f.index), count);
    }
    bool failed = f.memory.failed > 0;
    check(&f);
    for (uint32_t k = 0; k < n; k++) {
        const struct dw_entry *e = dw_slab_at(f.slab, k);
        uint64_t value = field == DW_BY_ID ? e->id : e->key_hash;
        if (value >= 1000)
            assert_int_equal(dw_index_find(f.index, value), in[k] ? k : DW_NIL);
        if (in[k])
            dw_index_del(f.index, k);
    }
    assert_int_equal(dw_index_count(f.index), 0);
    check(&f);
    end(&f);
    return failed;
}

static void without_memory_nothing_is_lost(void **state) {
    (void)state;
    for (unsigned field = DW_BY_ID; field <= DW_BY_KEY; field++)
        for (uint64_t nth = 1; without_memory(field, nth, true); nth++)
            assert_true(without_memory(field, nth, false));
}

/* Memory runs out while the entries of one key move to a table of their own, at any point of that:
 * other keys, with too few entries for that, decide how much of the last allocation is left. */
static uint64_t memory_ends_at(uint32_t keys, uint32_t each, uint64_t nth) {
    struct fixture f;
    const uint32_t alike = 120, others = keys * each;
    uint64_t refused = 0;
    begin(&f, DW_BY_KEY);
    for (uint32_t i = 0; i < others; i++)
        put(&f, 1000 + i % keys);
    fault_alloc_fail(&f.memory, nth, true);
    for (uint32_t i = 0; i < alike; i++) {
        uint32_t k = entry(&f, 1);
        if (i == 100)
            fault_alloc_fail(&f.memory, 0, false);
        if (dw_index_put(f.index, k) == DW_OK)
            continue;
        assert_true(f.memory.failed > 0);
        refused++;
        dw_slab_put(f.slab, k);
    }
    check(&f);
    uint64_t in = dw_index_count(f.index) - others;
    assert_int_equal(in, alike - refused);
    assert_int_equal(dw_index_all(f.index, 1, NULL, 0), in);
    for (uint32_t k; (k = dw_index_find(f.index, 1)) != DW_NIL; in--)
        del(&f, k);
    assert_int_equal(in, 0);
    check(&f);
    end(&f);
    return refused;
}

static void without_memory_a_key_may_stay_in_its_chain(void **state) {
    (void)state;
    uint64_t refused = 0;
    for (uint32_t keys = 20; keys < 50; keys += (uint32_t)rng_size(1, 7))
        for (uint32_t each = 33; each < 63; each += 5)
            for (uint64_t nth = 1; nth <= 3; nth++)
                refused += memory_ends_at(keys, each, nth);
    assert_true(refused > 0);
}

static void no_index_without_memory(void **state) {
    (void)state;
    struct fault_alloc memory;
    fault_alloc_init(&memory);
    for (uint64_t nth = 1; nth <= 2; nth++) {
        fault_alloc_fail(&memory, nth, false);
        assert_null(dw_index_new(&memory.alloc, NULL, DW_BY_ID));
        fault_alloc_check_released(&memory);
    }
    dw_index_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_by_id),
        cmocka_unit_test(bytes_an_entry),
        cmocka_unit_test(all_with_a_key),
        cmocka_unit_test(many_with_one_key),
        cmocka_unit_test(keys_that_come_and_go),
        cmocka_unit_test(behaves_as_the_model),
        cmocka_unit_test(without_memory_nothing_is_lost),
        cmocka_unit_test(without_memory_a_key_may_stay_in_its_chain),
        cmocka_unit_test(no_index_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
