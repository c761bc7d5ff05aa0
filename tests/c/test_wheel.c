/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_wheel.h"

#include "fault_alloc.h"
#include "rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* A wheel, its slab and its allocator. */
struct fixture {
    struct fault_alloc memory;
    dw_slab *slab;
    dw_wheel *wheel;
};

static void begin(struct fixture *f, uint64_t now) {
    fault_alloc_init(&f->memory);
    f->slab = dw_slab_new(&f->memory.alloc);
    assert_non_null(f->slab);
    f->wheel = dw_wheel_new(&f->memory.alloc, f->slab, now);
    assert_non_null(f->wheel);
}

static void end(struct fixture *f) {
    dw_wheel_free(f->wheel);
    dw_slab_free(f->slab);
    fault_alloc_check_released(&f->memory);
}

static void check(const struct fixture *f) {
    const char *wrong = dw_wheel_check(f->wheel);
    if (wrong != NULL)
        fail_msg("dw_wheel_check: %s", wrong);
}

static uint32_t entry(struct fixture *f, uint64_t due) {
    uint32_t k = dw_slab_get(f->slab);
    assert_int_not_equal(k, DW_NIL);
    dw_slab_at(f->slab, k)->due = due & DW_DUE_MAX;
    return k;
}

static uint32_t insert(struct fixture *f, uint64_t due) {
    uint32_t k = entry(f, due);
    assert_int_equal(dw_wheel_insert(f->wheel, k), DW_OK);
    assert_int_equal(dw_slab_at(f->slab, k)->state, DW_WAITING);
    return k;
}

/* The next entry due, taken out and given back to the slab; DW_NIL if there is none. */
static uint32_t take(struct fixture *f, uint64_t now) {
    uint32_t k = DW_NIL;
    enum dw_peek seen;
    do
        seen = dw_wheel_peek(f->wheel, now, 1000, &k);
    while (seen == DW_PEEK_AGAIN);
    if (seen == DW_PEEK_NONE)
        return DW_NIL;
    dw_wheel_pop(f->wheel);
    assert_int_equal(dw_slab_at(f->slab, k)->state, DW_TAKEN);
    dw_slab_put(f->slab, k);
    return k;
}

#define T0 UINT64_C(1700000000123)

/* ---- against a model: all entries in an array, in the order of insertion */

#define MODEL_MAX 3000u

struct model_entry {
    uint64_t due;
    uint32_t k;
};

struct model {
    struct fixture f;
    struct rng rng;
    uint64_t seed;
    uint64_t now; /* the greatest that peek was given */
    uint32_t n;
    unsigned style;
    struct model_entry entry[MODEL_MAX];
};

#define CHECK(m, condition)                                                                        \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("DW_TEST_SEED=%llu: %s", (unsigned long long)(m)->seed, #condition);          \
    } while (0)

static uint32_t model_first(const struct model *m) {
    uint32_t first = DW_NIL;
    for (uint32_t i = 0; i < m->n; i++)
        if (first == DW_NIL || m->entry[i].due < m->entry[first].due)
            first = i;
    return first;
}

static void model_remove(struct model *m, uint32_t i) {
    m->n--;
    memmove(&m->entry[i], &m->entry[i + 1], (m->n - i) * sizeof m->entry[0]);
}

static uint64_t model_next(const struct model *m) {
    uint32_t first = model_first(m);
    return first == DW_NIL ? DW_NEVER : m->entry[first].due;
}

/* A delay in the round's style. */
static uint64_t some_due(struct model *m) {
    uint64_t now = dw_wheel_now(m->f.wheel), due;
    switch (m->style) {
    case 0: /* any distance */
        due = now + rng_bits(&m->rng, 48);
        break;
    case 1: /* soon, many in each millisecond */
        due = now + rng_below(&m->rng, 40);
        break;
    case 2: /* at, just before and just after the beginnings of slots */
        due = now + rng_bits(&m->rng, 48);
        due >>= 8 * (1 + rng_below(&m->rng, 5));
        due <<= 8 * (1 + rng_below(&m->rng, 5));
        due += rng_below(&m->rng, 3) - 1;
        break;
    case 3: /* one of a few times, all far or near */
        due = T0 + (rng_below(&m->rng, 10) << rng_below(&m->rng, 44));
        break;
    case 4: /* the same delay for all */
        due = now + 3600000;
        break;
    default: /* some seconds to minutes */
        due = now + rng_below(&m->rng, 600000);
        break;
    }
    return due < DW_DUE_MAX ? due : DW_DUE_MAX;
}

static void model_insert(struct model *m) {
    uint64_t due = some_due(m), now = dw_wheel_now(m->f.wheel);
    if (m->n == MODEL_MAX)
        return;
    uint32_t k = entry(&m->f, due);
    int rc = dw_wheel_insert(m->f.wheel, k);
    CHECK(m, rc == (due < now ? DW_ELATE : DW_OK));
    if (rc == DW_OK)
        m->entry[m->n++] = (struct model_entry){.due = due, .k = k};
    else
        dw_slab_put(m->f.slab, k);
}

static void model_cancel(struct model *m) {
    if (m->n == 0)
        return;
    uint32_t i = rng_percent(&m->rng, 50) ? model_first(m) : (uint32_t)rng_below(&m->rng, m->n);
    dw_wheel_cancel(m->f.wheel, m->entry[i].k);
    model_remove(m, i);
}

static uint64_t some_later_time(struct model *m) {
    uint64_t next = model_next(m), now = m->now;
    switch (rng_below(&m->rng, 6)) {
    case 0:
        now += rng_bits(&m->rng, m->style == 0 ? 46 : 20);
        break;
    case 1:
        now = next == DW_NEVER ? now : next;
        break;
    case 2:
        now = next == DW_NEVER || next == 0 ? now : next - 1;
        break;
    case 3: /* the clock was stepped back */
        return now - rng_below(&m->rng, now < 2 ? 1 : 3);
    default:
        now += rng_below(&m->rng, 300);
        break;
    }
    if (now < m->now)
        now = m->now;
    return now < DW_DUE_MAX ? now : DW_DUE_MAX;
}

static void model_take(struct model *m) {
    uint64_t now = some_later_time(m);
    uint64_t most = rng_below(&m->rng, 30);
    uint32_t budget = (uint32_t)(rng_percent(&m->rng, 50) ? rng_below(&m->rng, 5) : 500);
    for (uint64_t taken = 0; taken <= most;) {
        uint32_t k = DW_NIL, first = model_first(m);
        enum dw_peek seen = dw_wheel_peek(m->f.wheel, now, budget, &k);
        if (now > m->now)
            m->now = now;
        CHECK(m, dw_wheel_now(m->f.wheel) <= m->now);
        if (seen == DW_PEEK_AGAIN)
            continue;
        if (seen == DW_PEEK_NONE) {
            CHECK(m, first == DW_NIL || m->entry[first].due > now);
            CHECK(m, dw_wheel_now(m->f.wheel) >= now);
            return;
        }
        CHECK(m, first != DW_NIL);
        CHECK(m, m->entry[first].due <= now);
        CHECK(m, k == m->entry[first].k);
        if (taken++ == most)
            return; /* shown, and left there */
        dw_wheel_pop(m->f.wheel);
        CHECK(m, dw_slab_at(m->f.slab, k)->state == DW_TAKEN);
        dw_slab_put(m->f.slab, k);
        model_remove(m, first);
    }
}

static void model_check(struct model *m) {
    const char *wrong = dw_wheel_check(m->f.wheel);
    if (wrong != NULL)
        fail_msg("DW_TEST_SEED=%llu: %s", (unsigned long long)m->seed, wrong);
    uint64_t out[48], sum = 0;
    dw_wheel_histogram(m->f.wheel, out);
    for (unsigned i = 0; i < 48; i++)
        sum += out[i];
    CHECK(m, sum == m->n);
    /* What is not live is dead: at most as many and a few thousand. */
    CHECK(m, dw_slab_used(m->f.slab) <= 2 * m->n + 5000);
}

static void model_round(struct model *m, uint64_t seed) {
    m->seed = seed;
    m->rng = rng_of(seed);
    m->style = (unsigned)(seed % 6);
    m->n = 0;
    m->now = seed % 7 == 0 ? 0 : T0;
    begin(&m->f, m->now);
    unsigned inserts = 20 + (unsigned)rng_below(&m->rng, 60);
    unsigned cancels = (unsigned)rng_below(&m->rng, inserts);
    for (unsigned step = 0; step < 2500; step++) {
        if (rng_percent(&m->rng, inserts))
            model_insert(m);
        if (rng_percent(&m->rng, cancels))
            model_cancel(m);
        if (rng_percent(&m->rng, 5))
            model_take(m);
        if (rng_percent(&m->rng, 10))
            dw_wheel_work(m->f.wheel, (uint32_t)rng_below(&m->rng, 100));
        if (rng_percent(&m->rng, 20))
            CHECK(m, dw_wheel_next(m->f.wheel) == model_next(m));
        CHECK(m, dw_wheel_count(m->f.wheel) == m->n);
        if (step % 250 == 0)
            model_check(m);
    }
    model_check(m);
    while (m->n > 0) {
        uint32_t first = model_first(m);
        CHECK(m, take(&m->f, DW_DUE_MAX) == m->entry[first].k);
        model_remove(m, first);
    }
    CHECK(m, take(&m->f, DW_DUE_MAX) == DW_NIL);
    CHECK(m, dw_slab_used(m->f.slab) == 0);
    model_check(m);
    end(&m->f);
}

static void behaves_as_the_model(void **state) {
    (void)state;
    static struct model m;
    uint64_t first = rng_first(), rounds = rng_rounds(60);
    for (uint64_t seed = first; seed < first + rounds; seed++)
        model_round(&m, seed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behaves_as_the_model),
    };
    (void)check;
    (void)insert;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
