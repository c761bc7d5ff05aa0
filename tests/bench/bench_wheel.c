/* SPDX-License-Identifier: MPL-2.0 */
#include "dw_heap.h"
#include "dw_index.h"
#include "dw_wheel.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What the wheel takes, beside a binary heap over the same slab:
 *
 *     bench_wheel [entries...]        (1,000,000 and 10,000,000 if none are given)
 *
 * n entries due at random within an hour are inserted, a tenth of them at random is cancelled, and
 * the rest is taken out as time goes by a millisecond at a time. Each thing is done twice: once for
 * the nanoseconds an entry, once with a clock around every call for the longest one. On a shared
 * machine the longest includes whatever else ran: hence also how many took over 100 microseconds.
 */

#define T0 UINT64_C(1700000000123)
#define HOUR 3600000u
#define BUDGET 1000u

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t random_state = 1;

static uint64_t random64(void) {
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void *need(void *p) {
    if (p == NULL) {
        fputs("bench_wheel: no memory\n", stderr);
        exit(1);
    }
    return p;
}

static void must(int wrong, const char *what) {
    if (wrong) {
        fprintf(stderr, "bench_wheel: %s\n", what);
        exit(1);
    }
}

/* The longest of many calls, if asked for. */
struct longest {
    bool on;
    uint64_t begin, most, over;
};

static inline void call_begins(struct longest *l) {
    if (l->on)
        l->begin = now_ns();
}

static inline void call_ends(struct longest *l) {
    if (!l->on)
        return;
    uint64_t ns = now_ns() - l->begin;
    l->most = ns > l->most ? ns : l->most;
    l->over += ns > 100000;
}

/* A rival: what is measured of each. */
struct queue {
    const char *name;
    void *(*new)(dw_slab *slab);
    void (*free)(void *q);
    int (*insert)(void *q, uint32_t k);
    void (*cancel)(void *q, uint32_t k);
    /* The next entry due, removed; DW_NIL: none is; DW_NIL - 1: call again. */
    uint32_t (*take)(void *q, dw_slab *slab, uint64_t now);
    uint64_t (*next)(void *q, dw_slab *slab);
    size_t (*bytes)(const void *q);
};

#define AGAIN (DW_NIL - 1)

static void *wheel_new(dw_slab *slab) {
    return dw_wheel_new(&dw_alloc_libc, slab, T0);
}

static void wheel_free(void *q) {
    dw_wheel_free(q);
}

static int wheel_insert(void *q, uint32_t k) {
    return dw_wheel_insert(q, k);
}

static void wheel_cancel(void *q, uint32_t k) {
    dw_wheel_cancel(q, k);
}

static uint32_t wheel_take(void *q, dw_slab *slab, uint64_t now) {
    uint32_t k = DW_NIL;
    (void)slab;
    switch (dw_wheel_peek(q, now, BUDGET, &k)) {
    case DW_PEEK_NONE:
        return DW_NIL;
    case DW_PEEK_AGAIN:
        return AGAIN;
    case DW_PEEK_ENTRY:
        dw_wheel_pop(q);
    }
    return k;
}

static uint64_t wheel_next(void *q, dw_slab *slab) {
    (void)slab;
    return dw_wheel_next(q);
}

static size_t wheel_bytes(const void *q) {
    return dw_wheel_bytes(q);
}

static void *heap_new(dw_slab *slab) {
    return dw_heap_new(&dw_alloc_libc, slab);
}

static void heap_free(void *q) {
    dw_heap_free(q);
}

static int heap_insert(void *q, uint32_t k) {
    return dw_heap_push(q, k);
}

static void heap_cancel(void *q, uint32_t k) {
    dw_heap_cancel(q, k);
}

static uint32_t heap_take(void *q, dw_slab *slab, uint64_t now) {
    uint32_t k = dw_heap_top(q);
    if (k == DW_NIL || dw_slab_at(slab, k)->due > now)
        return DW_NIL;
    dw_heap_pop(q);
    return k;
}

static uint64_t heap_next(void *q, dw_slab *slab) {
    uint32_t k = dw_heap_top(q);
    return k == DW_NIL ? DW_NEVER : dw_slab_at(slab, k)->due;
}

static size_t heap_bytes(const void *q) {
    return dw_heap_bytes(q);
}

static const struct queue queues[] = {
    {"wheel", wheel_new, wheel_free, wheel_insert, wheel_cancel, wheel_take, wheel_next,
     wheel_bytes},
    {"heap", heap_new, heap_free, heap_insert, heap_cancel, heap_take, heap_next, heap_bytes},
};

struct phase {
    const char *name;
    uint64_t calls, ns;
    struct longest longest;
};

static void begin(struct phase *p, const char *name, bool clocked) {
    *p = (struct phase){.name = name, .longest = {.on = clocked}, .ns = now_ns()};
}

static void end(struct phase *p) {
    p->ns = now_ns() - p->ns;
}

/* One run: three phases, and the bytes an entry when all are in. */
static void run(const struct queue *queue, uint32_t n, bool clocked, struct phase phase[3],
                double bytes[2]) {
    random_state = n;
    dw_slab *slab = need(dw_slab_new(&dw_alloc_libc));
    void *q = need(queue->new (slab));

    begin(&phase[0], "insert", clocked);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t due = T0 + 1 + random64() % HOUR;
        call_begins(&phase[0].longest);
        uint32_t k = dw_slab_get(slab);
        must(k == DW_NIL, "no memory");
        struct dw_entry *e = dw_slab_at(slab, k);
        e->due = due & DW_DUE_MAX;
        e->id = i;
        must(queue->insert(q, k) != DW_OK, "an insert failed");
        call_ends(&phase[0].longest);
    }
    end(&phase[0]);
    phase[0].calls = n;
    bytes[0] = (double)queue->bytes(q) / n;
    bytes[1] = (double)dw_slab_bytes(slab) / n;

    begin(&phase[1], "cancel", clocked);
    uint32_t cancelled = 0;
    for (uint32_t i = 0; i < n / 10; i++) {
        uint32_t k = i * 10 + (uint32_t)(random64() % 10);
        enum dw_state state = dw_slab_at(slab, k)->state;
        if (state != DW_WAITING && state != DW_LATE)
            continue;
        call_begins(&phase[1].longest);
        queue->cancel(q, k);
        call_ends(&phase[1].longest);
        cancelled++;
    }
    end(&phase[1]);
    phase[1].calls = cancelled;

    begin(&phase[2], "expire", clocked);
    uint64_t taken = 0, last = 0;
    for (uint64_t now = T0; now <= T0 + HOUR; now++) {
        for (;;) {
            call_begins(&phase[2].longest);
            uint32_t k = queue->take(q, slab, now);
            call_ends(&phase[2].longest);
            if (k == DW_NIL)
                break;
            if (k == AGAIN)
                continue;
            must(dw_slab_at(slab, k)->due < last, "out of order");
            last = dw_slab_at(slab, k)->due;
            dw_slab_put(slab, k);
            taken++;
        }
    }
    end(&phase[2]);
    phase[2].calls = taken;
    must(taken + cancelled != n, "not all came out");
    queue->free(q);
    dw_slab_free(slab);
}

/* The earliest cancelled one after the other, and the next due time asked for after each. */
static void run_next(const struct queue *queue, uint32_t n) {
    const uint32_t cancels = n / 10;
    dw_slab *slab = need(dw_slab_new(&dw_alloc_libc));
    void *q = need(queue->new (slab));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = dw_slab_get(slab);
        must(k == DW_NIL, "no memory");
        dw_slab_at(slab, k)->due = (T0 + HOUR + i) & DW_DUE_MAX;
        dw_slab_at(slab, k)->id = i;
        must(queue->insert(q, k) != DW_OK, "an insert failed");
    }
    struct longest longest = {.on = false};
    uint64_t ns = 0, start = now_ns();
    for (uint32_t i = 0; i < 2 * cancels; i++) {
        if (i == cancels) {
            ns = now_ns() - start;
            longest.on = true;
        }
        call_begins(&longest);
        queue->cancel(q, i);
        must(queue->next(q, slab) != T0 + HOUR + i + 1, "a wrong next due time");
        call_ends(&longest);
    }
    printf("%-6s %10" PRIu32 "  %-18s %8.1f ns  longest %8.1f us, %" PRIu64 " over 100 us\n",
           queue->name, n, "cancel first, next", (double)ns / cancels, (double)longest.most / 1e3,
           longest.over);
    queue->free(q);
    dw_slab_free(slab);
}

static void run_index(uint32_t n) {
    dw_slab *slab = need(dw_slab_new(&dw_alloc_libc));
    dw_index *index = need(dw_index_new(&dw_alloc_libc, slab, DW_BY_ID));
    struct phase phase[3];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = dw_slab_get(slab);
        must(k == DW_NIL, "no memory");
        dw_slab_at(slab, k)->id = (uint64_t)(i / 64) << 16 | i % 64;
    }
    double bytes = 0;
    for (unsigned clocked = 0; clocked < 2; clocked++) {
        struct phase p;
        begin(&p, "put", clocked != 0);
        for (uint32_t k = 0; k < n; k++) {
            call_begins(&p.longest);
            must(dw_index_put(index, k) != DW_OK, "no memory");
            call_ends(&p.longest);
        }
        end(&p);
        phase[0] = clocked ? (struct phase){p.name, n, phase[0].ns, p.longest} : p;
        bytes = (double)dw_index_bytes(index) / n;
        begin(&p, "find", clocked != 0);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t k = (uint32_t)(random64() % n);
            call_begins(&p.longest);
            must(dw_index_find(index, dw_slab_at(slab, k)->id) != k, "a wrong entry");
            call_ends(&p.longest);
        }
        end(&p);
        phase[1] = clocked ? (struct phase){p.name, n, phase[1].ns, p.longest} : p;
        begin(&p, "delete", clocked != 0);
        for (uint32_t k = 0; k < n; k++) {
            call_begins(&p.longest);
            dw_index_del(index, k);
            call_ends(&p.longest);
        }
        end(&p);
        phase[2] = clocked ? (struct phase){p.name, n, phase[2].ns, p.longest} : p;
    }
    for (unsigned i = 0; i < 3; i++)
        printf("%-6s %10" PRIu32 "  %-18s %8.1f ns  longest %8.1f us, %" PRIu64 " over 100 us\n",
               "index", n, phase[i].name, (double)phase[i].ns / n,
               (double)phase[i].longest.most / 1e3, phase[i].longest.over);
    printf("%-6s %10" PRIu32 "  bytes an entry     %8.2f\n", "index", n, bytes);
    dw_index_free(index);
    dw_slab_free(slab);
}

static void compare(uint32_t n) {
    for (unsigned i = 0; i < sizeof queues / sizeof queues[0]; i++) {
        struct phase plain[3], clocked[3];
        double bytes[2];
        run(&queues[i], n, false, plain, bytes);
        run(&queues[i], n, true, clocked, bytes);
        for (unsigned p = 0; p < 3; p++)
            printf("%-6s %10" PRIu32 "  %-18s %8.1f ns  longest %8.1f us, %" PRIu64
                   " over 100 us\n",
                   queues[i].name, n, plain[p].name, (double)plain[p].ns / (double)plain[p].calls,
                   (double)clocked[p].longest.most / 1e3, clocked[p].longest.over);
        printf("%-6s %10" PRIu32 "  bytes an entry     %8.2f and %.2f in the slab\n",
               queues[i].name, n, bytes[0], bytes[1]);
        run_next(&queues[i], n);
    }
    run_index(n);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        compare(1000000);
        compare(10000000);
    }
    for (int i = 1; i < argc; i++) {
        uint32_t n = (uint32_t)strtoul(argv[i], NULL, 10);
        must(n < 10, "give numbers of entries from 10 on");
        compare(n);
    }
    return 0;
}
