/* SPDX-License-Identifier: MPL-2.0 */
/* Longer than other files are, as the wheel is: its model, and a test for each of its rules. */
#include "dw_wheel.h"

#include "dw_invariant.h"

#include "fault_alloc.h"
#include "rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
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

static void model_insert_at(struct model *m, uint64_t due) {
    uint64_t now = dw_wheel_now(m->f.wheel);
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

static void model_insert(struct model *m) {
    uint64_t due = some_due(m);
    for (uint64_t n = rng_percent(&m->rng, 3) ? rng_below(&m->rng, 150) : 1; n > 0; n--)
        model_insert_at(m, due);
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
    unsigned cancels = (unsigned)rng_below(&m->rng, 3 * inserts);
    unsigned takes = 1 + (unsigned)rng_below(&m->rng, 15);
    for (unsigned step = 0; step < 2000; step++) {
        if (rng_percent(&m->rng, inserts))
            model_insert(m);
        if (rng_percent(&m->rng, cancels))
            model_cancel(m);
        if (rng_percent(&m->rng, takes))
            model_take(m);
        if (rng_percent(&m->rng, 10))
            dw_wheel_work(m->f.wheel, (uint32_t)rng_below(&m->rng, 100));
        if (rng_percent(&m->rng, 10))
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

/* ---- many entries: what comes out is sorted by due, and by insertion within a millisecond */

struct many {
    uint64_t due, id;
};

static int compare_many(const void *a, const void *b) {
    const struct many *x = a, *y = b;
    if (x->due != y->due)
        return x->due < y->due ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Inserts n entries due within `reach` in `steps` steps, cancels `percent` of them on the way, and
 * takes them all out. */
static void in_order(uint64_t seed, uint32_t n, uint64_t reach, uint64_t grain, unsigned percent) {
    struct fixture f;
    struct rng rng = rng_of(seed);
    struct many *all = malloc(n * sizeof *all);
    uint32_t *number = malloc(n * sizeof *number);
    uint32_t live = 0;
    assert_non_null(all);
    assert_non_null(number);
    begin(&f, T0);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t due = T0 + 1000 + rng_below(&rng, reach) / grain * grain;
        uint32_t k = entry(&f, due);
        dw_slab_at(f.slab, k)->id = i;
        assert_int_equal(dw_wheel_insert(f.wheel, k), DW_OK);
        all[live] = (struct many){.due = due, .id = i};
        number[live++] = k;
        while (live > 0 && rng_percent(&rng, percent)) {
            uint32_t gone = (uint32_t)rng_below(&rng, live);
            dw_wheel_cancel(f.wheel, number[gone]);
            all[gone] = all[--live];
            number[gone] = number[live];
        }
        if (i % 64 == 0)
            dw_wheel_work(f.wheel, 10);
    }
    check(&f);
    assert_int_equal(dw_wheel_count(f.wheel), live);
    assert_in_range(dw_slab_used(f.slab), live, 2 * (uint64_t)live + 5000);
    qsort(all, live, sizeof *all, compare_many);
    for (uint32_t i = 0; i < live; i++) {
        uint32_t k = DW_NIL;
        if (i % 1000 == 0)
            assert_true(dw_wheel_next(f.wheel) == all[i].due);
        while (dw_wheel_peek(f.wheel, all[i].due, 1 + (uint32_t)(i % 300), &k) == DW_PEEK_AGAIN)
            ;
        if (k == DW_NIL || dw_slab_at(f.slab, k)->id != all[i].id)
            fail_msg("seed %llu: wrong entry %u", (unsigned long long)seed, i);
        dw_wheel_pop(f.wheel);
        dw_slab_put(f.slab, k);
        if (i % 32768 == 0)
            check(&f);
    }
    assert_int_equal(take(&f, DW_DUE_MAX), DW_NIL);
    assert_int_equal(dw_slab_used(f.slab), 0);
    check(&f);
    end(&f);
    free(number);
    free(all);
}

static void many_come_out_in_order(void **state) {
    (void)state;
    uint32_t n = (uint32_t)rng_size(60000, 5000);
    in_order(1, n, UINT64_C(3600000), 1, 0);
    in_order(2, n, UINT64_C(3600000), 1000, 30);
    in_order(3, n, UINT64_C(1) << 46, 1, 20);
    in_order(4, n, 500, 1, 40);
    in_order(5, n, UINT64_C(1) << 40, UINT64_C(1) << 36, 45);
    in_order(6, n, UINT64_C(1) << 26, 256, 48);
}

/* ---- one thing each */

static void late_insert_changes_nothing(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, T0);
    uint32_t k = entry(&f, T0 - 1);
    dw_slab_at(f.slab, k)->state = DW_LATE;
    assert_int_equal(dw_wheel_insert(f.wheel, k), DW_ELATE);
    assert_int_equal(dw_slab_at(f.slab, k)->state, DW_LATE);
    assert_int_equal(dw_wheel_count(f.wheel), 0);
    assert_true(dw_wheel_next(f.wheel) == DW_NEVER);
    insert(&f, T0);
    assert_true(dw_wheel_next(f.wheel) == T0);
    check(&f);
    end(&f);
}

static void the_last_millisecond(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 0);
    uint32_t last = insert(&f, DW_DUE_MAX), before = insert(&f, DW_DUE_MAX - 1);
    uint32_t first = insert(&f, 0), last2 = insert(&f, DW_DUE_MAX);
    assert_int_equal(take(&f, 0), first);
    assert_int_equal(take(&f, DW_DUE_MAX - 2), DW_NIL);
    assert_true(dw_wheel_next(f.wheel) == DW_DUE_MAX - 1);
    assert_int_equal(take(&f, DW_NEVER), before);
    assert_int_equal(take(&f, DW_NEVER), last);
    assert_int_equal(take(&f, DW_NEVER), last2);
    assert_int_equal(take(&f, DW_NEVER), DW_NIL);
    assert_true(dw_wheel_now(f.wheel) == DW_DUE_MAX);
    uint32_t again = insert(&f, DW_DUE_MAX);
    assert_int_equal(take(&f, DW_NEVER), again);
    check(&f);
    end(&f);
}

/* Entries with one due time, inserted at all distances from it, while drains are half done. */
static void first_in_first_out_through_all_levels(void **state) {
    (void)state;
    struct fixture f;
    uint32_t number[4000], n = 0;
    const uint64_t due = T0 + (UINT64_C(1) << 45);
    begin(&f, T0);
    for (unsigned bit = 46; bit-- > 0;) {
        for (unsigned i = 0; i < 10; i++) {
            number[n++] = insert(&f, due);
            dw_wheel_work(f.wheel, i % 3);
        }
        uint32_t k;
        while (dw_wheel_peek(f.wheel, due - (UINT64_C(1) << bit), 3, &k) == DW_PEEK_AGAIN) {
            assert_true(n < 4000);
            number[n++] = insert(&f, due);
        }
        check(&f);
    }
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(take(&f, due), number[i]);
    assert_int_equal(take(&f, due), DW_NIL);
    end(&f);
}

/* An idle year, and then a century, cost no more than the entries on the way. */
static void time_jumps(void **state) {
    (void)state;
    struct fixture f;
    const uint64_t year = UINT64_C(31557600000);
    begin(&f, T0);
    for (unsigned i = 1; i <= 100; i++)
        insert(&f, T0 + i * year);
    uint32_t calls = 0, taken = 0, k;
    while (taken < 100) {
        calls++;
        if (dw_wheel_peek(f.wheel, T0 + 100 * year, 1, &k) == DW_PEEK_ENTRY) {
            dw_wheel_pop(f.wheel);
            dw_slab_put(f.slab, k);
            taken++;
        }
    }
    /* Each moves down five levels at most. */
    assert_in_range(calls, 100, 700);
    assert_int_equal(dw_wheel_peek(f.wheel, DW_DUE_MAX, 1, &k), DW_PEEK_NONE);
    assert_true(dw_wheel_now(f.wheel) == DW_DUE_MAX);
    end(&f);
}

/* All of 20,000 entries move down three levels before the first is due, and no call moves more than
 * its budget. */
static void budget_bounds_each_call(void **state) {
    (void)state;
    struct fixture f;
    const uint32_t n = 20000, budget = 50;
    begin(&f, 0);
    const uint64_t due = (UINT64_C(5) << 24) + 1;
    for (uint32_t i = 0; i < n; i++)
        insert(&f, due);
    uint32_t again = 0, k = DW_NIL;
    enum dw_peek seen;
    while ((seen = dw_wheel_peek(f.wheel, due, budget, &k)) == DW_PEEK_AGAIN)
        again++;
    assert_int_equal(seen, DW_PEEK_ENTRY);
    assert_in_range(again, 3 * n / budget - 3, 3 * n / budget + 10);

    /* The dead are passed at the same rate. */
    for (uint32_t i = 0; i < 3000; i++)
        dw_wheel_cancel(f.wheel, i);
    again = 0;
    while ((seen = dw_wheel_peek(f.wheel, due, 1, &k)) == DW_PEEK_AGAIN)
        again++;
    assert_int_equal(seen, DW_PEEK_ENTRY);
    assert_int_equal(k, 3000);
    assert_in_range(again, 2999, 3000);
    check(&f);
    end(&f);
}

/* With time standing before a full slot, work alone brings everything into the level below. */
static void work_ahead_leaves_little_to_do(void **state) {
    (void)state;
    struct fixture f;
    const uint32_t n = 10000;
    begin(&f, 65536 - 10);
    for (uint32_t i = 0; i < n; i++)
        insert(&f, 3 * 65536 + i % 1000);
    uint32_t k;
    assert_int_equal(dw_wheel_peek(f.wheel, 3 * 65536 - 300, 1, &k), DW_PEEK_NONE);
    uint32_t calls = 1;
    while (dw_wheel_work(f.wheel, 100))
        calls++;
    assert_in_range(calls, n / 100, n / 100 + 5);
    assert_false(dw_wheel_work(f.wheel, 0));
    assert_true(dw_wheel_now(f.wheel) == 3 * 65536 - 300);
    check(&f);
    /* What is left is to bring the first 256 ms down one level. */
    uint32_t again = 0;
    while (dw_wheel_peek(f.wheel, 3 * 65536, 1, &k) == DW_PEEK_AGAIN)
        again++;
    assert_in_range(again, 0, 2600);
    end(&f);
}

/* Where peek is called every millisecond, the next slot has been drained when time enters it. */
static void peek_works_ahead(void **state) {
    (void)state;
    for (unsigned busy = 0; busy < 2; busy++) {
        struct fixture f;
        const uint32_t n = 10000;
        begin(&f, 65536);
        for (uint32_t i = 0; busy && i < 256; i++)
            insert(&f, 65536 + 256 + i);
        for (uint32_t i = 0; i < n; i++)
            insert(&f, 65536 + 512 + i % 256);
        for (uint64_t now = 65536 + 256; now < 65536 + 512; now++) {
            uint32_t k;
            if (busy) {
                assert_int_equal(dw_wheel_peek(f.wheel, now, 1000, &k), DW_PEEK_ENTRY);
                dw_wheel_pop(f.wheel);
                dw_slab_put(f.slab, k);
            } else {
                assert_int_equal(dw_wheel_peek(f.wheel, now, 100, &k), DW_PEEK_NONE);
            }
        }
        uint32_t k;
        assert_int_equal(dw_wheel_peek(f.wheel, 65536 + 512, 1, &k), DW_PEEK_ENTRY);
        check(&f);
        end(&f);
    }
}

static void next_follows_cancels_of_the_earliest(void **state) {
    (void)state;
    const uint64_t steps[] = {1, 100, 100000, UINT64_C(1) << 30};
    for (unsigned s = 0; s < 4; s++) {
        struct fixture f;
        const uint32_t n = (uint32_t)rng_size(5000, 1000);
        begin(&f, T0);
        for (uint32_t i = 0; i < n; i++)
            insert(&f, T0 + 7200000 + i * steps[s]);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(dw_wheel_next(f.wheel) == T0 + 7200000 + i * steps[s]);
            dw_wheel_cancel(f.wheel, i);
        }
        assert_true(dw_wheel_next(f.wheel) == DW_NEVER);
        check(&f);
        end(&f);
    }
}

/* Many cancelled ahead of one that stays, which is then looked for, with and without work before.
 */
static void next_after_many_cancels(void **state) {
    (void)state;
    for (unsigned order = 0; order < 3; order++) {
        struct fixture f;
        struct rng rng = rng_of(9);
        const uint32_t n = 20000;
        begin(&f, T0);
        for (uint32_t i = 0; i < n; i++)
            insert(&f, T0 + 7200000 + (order == 0 ? rng_below(&rng, 10000000) : i * UINT64_C(500)));
        uint32_t stays = insert(&f, T0 + 99999999);
        for (uint32_t i = 0; i < n; i++)
            dw_wheel_cancel(f.wheel, order == 1 ? n - 1 - i : i);
        for (uint32_t calls = 0; order < 2 && dw_wheel_work(f.wheel, order * 1000);)
            assert_true(++calls < 1000);
        assert_true(dw_wheel_next(f.wheel) == T0 + 99999999);
        assert_int_equal(take(&f, T0 + 99999999), stays);
        check(&f);
        end(&f);
    }
}

/* The earlier half of far entries is cancelled, the earliest first, last or in between. */
static void next_after_half_is_cancelled(void **state) {
    (void)state;
    const uint32_t n = (uint32_t)rng_size(4000, 500);
    struct many *all = malloc(n * sizeof *all);
    assert_non_null(all);
    for (unsigned order = 0; order < 3; order++)
        for (uint64_t reach = n; reach < UINT64_C(1) << 44; reach *= 1000) {
            struct fixture f;
            struct rng rng = rng_of(reach + order);
            begin(&f, T0);
            for (uint32_t i = 0; i < n; i++) {
                all[i].due = T0 + reach + rng_below(&rng, reach);
                all[i].id = insert(&f, all[i].due);
            }
            qsort(all, n, sizeof *all, compare_many);
            for (uint32_t i = 0; i < n / 2; i++) {
                uint32_t at = order == 0 ? i : order == 1 ? n / 2 - 1 - i : (i + n / 3) % (n / 2);
                dw_wheel_cancel(f.wheel, (uint32_t)all[at].id);
            }
            assert_true(dw_wheel_next(f.wheel) == all[n / 2].due);
            check(&f);
            end(&f);
        }
    free(all);
}

/* What the last of many cancels at the front costs is spread: a call visits no more than its
 * budget, answers no later a time than the right one, and gets there. Visits are counted by the
 * invariants that each lookup of an entry checks, where these are. */
static void next_within_a_budget(void **state) {
    (void)state;
    const uint32_t n = (uint32_t)rng_size(100000, 20000), budget = 4096;
    struct many *all = malloc(n * sizeof *all);
    assert_non_null(all);
    for (uint64_t reach = 1000000; reach < UINT64_C(1) << 40; reach *= 1000) {
        struct fixture f;
        struct rng rng = rng_of(reach);
        begin(&f, T0);
        for (uint32_t i = 0; i < n; i++) {
            all[i].due = T0 + 7200000 + rng_below(&rng, reach);
            all[i].id = insert(&f, all[i].due);
        }
        qsort(all, n, sizeof *all, compare_many);
        const uint32_t cancelled = n / 5 * 2;
        for (uint32_t i = cancelled; i-- > 0;)
            dw_wheel_cancel(f.wheel, (uint32_t)all[i].id);
        uint64_t before = 0, due = 0;
        for (uint32_t calls = 0; due != all[cancelled].due; calls++) {
#ifdef DW_TESTS
            dw_invariant_break(0);
#endif
            due = dw_wheel_next_within(f.wheel, budget);
#ifdef DW_TESTS
            assert_in_range(dw_invariants_seen(), 0, 6 * budget); /* some for each visit */
#endif
            assert_true(before <= due && due <= all[cancelled].due);
            before = due;
            assert_true(calls <= 2 * n / budget + 2);
        }
        assert_true(dw_wheel_next(f.wheel) == due);
        check(&f);
        end(&f);
    }
    free(all);
}

static void the_dead_are_bounded(void **state) {
    (void)state;
    const uint64_t delays[] = {0, 1, 300, 5000, 3600000, UINT64_C(1) << 33, UINT64_C(1) << 44};
    for (unsigned d = 0; d < 7; d++) {
        struct fixture f;
        begin(&f, T0);
        for (uint32_t i = 0; i < 100; i++)
            insert(&f, T0 + 500000);
        for (uint32_t i = 0; i < rng_size(30000, 6000); i++) {
            dw_wheel_cancel(f.wheel, insert(&f, T0 + delays[d] + i % 3 * delays[d] / 2));
            assert_in_range(dw_slab_used(f.slab), 100, 100 + 5000);
        }
        check(&f);
        assert_in_range(dw_wheel_bytes(f.wheel), 1, 400000);
        assert_int_equal(dw_wheel_count(f.wheel), 100);
        end(&f);
    }
}

/* Pops too keep the dead in proportion: here they are far ones, the live near. */
static void the_dead_are_bounded_when_the_live_go(void **state) {
    (void)state;
    struct fixture f;
    const uint32_t n = 20000;
    begin(&f, T0);
    for (uint32_t i = 0; i < n; i++) {
        insert(&f, T0 + i % 100);
        uint32_t far = insert(&f, T0 + 86400000 + i);
        if (i % 2 == 0)
            dw_wheel_cancel(f.wheel, far);
        else
            assert_true(far != DW_NIL);
    }
    while (take(&f, T0 + 200) != DW_NIL)
        ;
    assert_int_equal(dw_wheel_count(f.wheel), n / 2);
    assert_in_range(dw_slab_used(f.slab), n / 2, n / 2 + n / 4 + 5000);
    check(&f);
    end(&f);
}

static void memory_is_reused(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, T0);
    size_t most = 0;
    const uint64_t n = rng_size(20000, 2000);
    for (unsigned cycle = 0; cycle < 10; cycle++) {
        uint64_t now = dw_wheel_now(f.wheel);
        for (uint64_t i = 0; i < n; i++)
            insert(&f, now + 1 + i * 37 % 100000);
        while (take(&f, now + 100000) != DW_NIL)
            ;
        if (cycle == 2)
            most = dw_wheel_bytes(f.wheel) * 5 / 4;
        if (cycle > 2)
            assert_in_range(dw_wheel_bytes(f.wheel), 1, most);
    }
    assert_int_equal(f.memory.bytes, dw_wheel_bytes(f.wheel) + dw_slab_bytes(f.slab));
    end(&f);
}

/* Where most are cancelled, what they took is there for others, although few chunks are empty. */
static void memory_of_the_cancelled_is_reused(void **state) {
    (void)state;
    struct fixture f;
    struct rng rng = rng_of(5);
    const uint32_t n = (uint32_t)rng_size(60000, 10000);
    begin(&f, T0);
    for (uint32_t i = 0; i < n; i++)
        insert(&f, T0 + 1000 + rng_below(&rng, 1000000));
    size_t most = dw_wheel_bytes(f.wheel);
    for (uint32_t i = 0; i < n; i++)
        if (i % 16 != 0)
            dw_wheel_cancel(f.wheel, i);
    check(&f);
    for (uint32_t i = 0; i < n * 3 / 4; i++)
        insert(&f, T0 + (UINT64_C(1) << 30) + rng_below(&rng, 1000000));
    assert_in_range(dw_wheel_bytes(f.wheel), 1, most);
    check(&f);
    end(&f);
}

static void memory_per_entry(void **state) {
    (void)state;
    struct fixture f;
    struct rng rng = rng_of(4);
    const uint32_t n = 200000;
    begin(&f, T0);
    assert_in_range(dw_wheel_bytes(f.wheel), 1, 50000);
    insert(&f, T0 + 1000);
    assert_in_range(dw_wheel_bytes(f.wheel), 1, 100000);
    for (uint32_t i = 0; i < n; i++)
        insert(&f, T0 + rng_below(&rng, 3600000));
    assert_in_range(dw_wheel_bytes(f.wheel), 8 * n, 10 * n);
    assert_in_range(dw_slab_bytes(f.slab), 32 * n, 32 * n + (4 << 20));
    end(&f);
}

/* With one entry, its bucket's bounds must be within a slot's width of its distance. */
static void histogram_is_near_the_truth(void **state) {
    (void)state;
    for (uint64_t distance = 0; distance < UINT64_C(1) << 47; distance = distance * 5 / 3 + 1) {
        struct fixture f;
        uint64_t out[48];
        begin(&f, T0);
        insert(&f, T0 + distance);
        dw_wheel_histogram(f.wheel, out);
        unsigned at = 0;
        for (unsigned i = 0; i < 48; i++)
            if (out[i] != 0)
                at = i;
        assert_int_equal(out[at], 1);
        uint64_t width = 256;
        while (width * 512 <= distance)
            width *= 256;
        uint64_t low = at == 0 ? 0 : UINT64_C(1) << at, high = UINT64_C(1) << (at + 1);
        assert_true(low <= distance + width);
        assert_true(high + width > distance);
        end(&f);
    }
}

static void histogram_follows(void **state) {
    (void)state;
    struct fixture f;
    uint64_t out[48];
    begin(&f, 0);
    for (uint32_t i = 0; i < 1000; i++)
        insert(&f, (UINT64_C(3) << 30) + i);
    dw_wheel_histogram(f.wheel, out);
    assert_int_equal(out[31], 1000);
    for (uint32_t i = 0; i < 400; i++)
        dw_wheel_cancel(f.wheel, i);
    dw_wheel_histogram(f.wheel, out);
    assert_int_equal(out[31], 600);
    assert_int_equal(take(&f, (UINT64_C(3) << 30) - (3 << 20)), DW_NIL);
    while (dw_wheel_work(f.wheel, 1000))
        ;
    dw_wheel_histogram(f.wheel, out);
    assert_int_equal(out[21], 600);
    end(&f);
}

/* ---- without memory */

/* Inserts, drains and cancels with the n-th allocation failing, or all from the n-th: every insert
 * either is done or did nothing, and when there is memory again all comes out in order. False when
 * n was more than there are. */
static bool without_memory(uint64_t n, bool on) {
    struct fixture f;
    struct rng rng = rng_of(n);
    uint32_t inserted = 0, refused = 0;
    begin(&f, T0);
    uint32_t number[3000];
    for (uint32_t i = 0; i < 3000; i++)
        number[i] = entry(&f, T0 + 1 + rng_below(&rng, 200000));
    fault_alloc_fail(&f.memory, n, on);
    for (uint32_t i = 0; i < 3000; i++) {
        uint64_t count = dw_wheel_count(f.wheel);
        dw_slab_at(f.slab, number[i])->state = DW_TAKEN;
        int rc = dw_wheel_insert(f.wheel, number[i]);
        if (rc == DW_OK) {
            inserted++;
        } else {
            assert_int_equal(rc, DW_ENOMEM);
            assert_int_equal(dw_wheel_count(f.wheel), count);
            assert_int_equal(dw_slab_at(f.slab, number[i])->state, DW_TAKEN);
            refused++;
            dw_slab_put(f.slab, number[i]);
        }
    }
    check(&f);
    assert_true(refused == 0 || f.memory.failed > 0);
    uint64_t last = 0;
    uint32_t taken = 0, k;
    for (uint32_t again = 0; taken < inserted;) {
        enum dw_peek seen = dw_wheel_peek(f.wheel, T0 + 300000, 50, &k);
        assert_int_not_equal(seen, DW_PEEK_NONE);
        if (seen == DW_PEEK_AGAIN) {
            check(&f);
            if (++again % 1000 == 0) {
                assert_true(f.memory.failed > 0);
                fault_alloc_fail(&f.memory, 0, false);
            }
            continue;
        }
        assert_true(dw_slab_at(f.slab, k)->due >= last);
        last = dw_slab_at(f.slab, k)->due;
        dw_wheel_pop(f.wheel);
        dw_slab_put(f.slab, k);
        taken++;
    }
    bool failed = f.memory.failed > 0;
    assert_int_equal(take(&f, DW_DUE_MAX), DW_NIL);
    assert_int_equal(dw_slab_used(f.slab), 0);
    end(&f);
    return failed;
}

static void nothing_is_lost_without_memory(void **state) {
    (void)state;
    for (uint64_t n = 1; without_memory(n, true); n++)
        assert_true(without_memory(n, false));
}

/* Only the drain lacks memory: 300 entries of one slot need 256 below. */
static void a_drain_without_memory_waits(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 0);
    for (uint32_t i = 0; i < 300; i++)
        insert(&f, 512 + i % 256);
    fault_alloc_fail(&f.memory, 1, true);
    uint32_t k, taken = 0;
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(dw_wheel_peek(f.wheel, 600, 1000, &k), DW_PEEK_AGAIN);
    assert_false(dw_wheel_work(f.wheel, 100000));
    assert_true(f.memory.failed >= 100);
    assert_true(dw_wheel_next(f.wheel) == 512);
    check(&f);
    fault_alloc_fail(&f.memory, 0, false);
    while (take(&f, 1000) != DW_NIL)
        taken++;
    assert_int_equal(taken, 300);
    end(&f);
}

static void no_wheel_without_memory(void **state) {
    (void)state;
    struct fault_alloc memory;
    fault_alloc_init(&memory);
    fault_alloc_fail(&memory, 1, true);
    assert_null(dw_wheel_new(&memory.alloc, NULL, 0));
    fault_alloc_check_released(&memory);
    dw_wheel_free(NULL);
}

/* A sweep is under way when time passes the last of what it would have swept. */
static void a_sweep_ends_with_the_last_chunk(void **state) {
    struct fixture f;
    static uint32_t dead[1100];
    (void)state;
    begin(&f, T0);
    for (unsigned i = 0; i < 1100; i++)
        dead[i] = insert(&f, T0 + 100 * i);
    for (unsigned i = 1100; i-- > 0;)
        dw_wheel_cancel(f.wheel, dead[i]);
    assert_int_equal(take(&f, T0 + 200000), DW_NIL);
    while (dw_wheel_work(f.wheel, 1000))
        check(&f);
    assert_int_equal(dw_slab_used(f.slab), 0);
    check(&f);
    end(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behaves_as_the_model),
        cmocka_unit_test(many_come_out_in_order),
        cmocka_unit_test(late_insert_changes_nothing),
        cmocka_unit_test(the_last_millisecond),
        cmocka_unit_test(first_in_first_out_through_all_levels),
        cmocka_unit_test(time_jumps),
        cmocka_unit_test(budget_bounds_each_call),
        cmocka_unit_test(work_ahead_leaves_little_to_do),
        cmocka_unit_test(peek_works_ahead),
        cmocka_unit_test(next_follows_cancels_of_the_earliest),
        cmocka_unit_test(next_after_many_cancels),
        cmocka_unit_test(next_after_half_is_cancelled),
        cmocka_unit_test(next_within_a_budget),
        cmocka_unit_test(the_dead_are_bounded),
        cmocka_unit_test(the_dead_are_bounded_when_the_live_go),
        cmocka_unit_test(a_sweep_ends_with_the_last_chunk),
        cmocka_unit_test(memory_is_reused),
        cmocka_unit_test(memory_of_the_cancelled_is_reused),
        cmocka_unit_test(memory_per_entry),
        cmocka_unit_test(histogram_is_near_the_truth),
        cmocka_unit_test(histogram_follows),
        cmocka_unit_test(nothing_is_lost_without_memory),
        cmocka_unit_test(a_drain_without_memory_waits),
        cmocka_unit_test(no_wheel_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
